"""NExT-GPT in small: a language model that hears, sees and answers in sound and picture
(Wu et al., 2309.05519).

ImageBind perceives, a language model thinks, diffusion models draw and play. All three
are frozen: what learns are a linear layer between the first two, a few new words called
signals, and small transformers that translate their hidden states into the condition
that a decoder already reads. Chapter 25 builds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio, diffusion
from minilib.arguments import MAX_SEED, as_list, check_path, check_whole, seeded
from minilib.audioldm2 import as_waves
from minilib.bind import add_lora
from minilib.conditions import Context, drop, to_batch
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling, guided
from minilib.model import Model, read_json
from minilib.peers import text_ldm
from minilib.peers.text_ldm import (
    BORROWED,
    CURVE,
    P_EMPTY,
    SAMPLING,
    TextLDM,
    TextLDMConfig,
)
from minilib.pictures import check_pictures
from minilib.soundworld import (
    SENSES,
    Event,
    Scene,
    SoundWorld,
    describe,
    plain,
    vocabulary,
)
from minilib.tokenizer import split_words
from minilib.training import Recipe, fit
from minilib.transformer import GPT2, TransformerConfig

TIMES = {None: "", 1: "once", 2: "twice", 3: "three times", 4: "four times"}
# What is asked for, in several wordings; an answer ends by naming what it is.
REQUESTS = {
    "text": ("describe this", "tell me about this", "what is this"),
    "image": ("draw this", "show me a picture of this", "what does this look like"),
    "audio": ("play this", "let me hear this", "what does this sound like"),
}
ENDINGS = {"text": "in words", "image": "in a picture", "audio": "in a sound"}
MODES = tuple(REQUESTS)  # text, image, audio: what goes in, and what comes out
SPECIAL = ("<pad>", "<user>", "<bot>", "<end>", "<sensed>")
PAD, USER, BOT, END, SENSED = range(5)
STAGES = {  # what learns in each stage: beginnings of the names of parameters
    "language": ("words", "llm"),
    "input": ("project_in",),
    "output": ("signals", "project_out"),
    "instructions": ("signals", "project_in", "project_out", "lora"),
}
TASKS = {  # what goes in, and what is asked for
    "language": tuple(("text", out) for out in MODES),
    "input": (("image", "text"), ("audio", "text")),
    "output": (("text", "image"), ("text", "audio")),
    "instructions": tuple((given, out) for given in MODES for out in MODES),
}
HOW = {"batch_size": 36, "warmup": 20, "muon": ("linear",)}
RECIPES = {
    "language": Recipe(400, lr=3e-3, **HOW),
    "input": Recipe(400, lr=3e-3, **HOW),
    "output": Recipe(900, lr=5e-3, **HOW),
    "instructions": Recipe(500, lr=2e-3, **HOW),
}
ICON_RECIPE = Recipe(  # of the decoder that draws
    2500, 32, 3e-3, warmup=20, ema=0.99, muon=("linear", "conv")
)
PIXELS = 16  # of a side of a drawn picture, before it is enlarged
ICONS = TextLDMConfig(
    in_channels=3, bins=PIXELS, patch=1, condition="picture", context_length=1,
    width=128, n_layer=3,
)  # fmt: skip
DRAWING = replace(SAMPLING, guidance=3.0)
N_SCENES = 1500  # that are seen and heard in training
MOST = 20  # words and signals of an answer


@dataclass(frozen=True)
class NextGPTConfig:
    """Sizes of what lies between encoders and decoders; the defaults are those that
    ship.
    """

    words: tuple[str, ...]  # those that it can read and write
    n_embd: int = 128
    n_layer: int = 3
    n_head: int = 4
    n_positions: int = 64
    sensed: int = 128  # numbers of an ImageBind vector
    n_sensed: int = 4  # positions that it takes in the language model
    image_signals: int = 2
    audio_signals: int = 4
    image_states: int = 1  # of the condition that the decoder reads
    audio_states: int = 8
    state_dim: int = 128  # their width
    width: int = 64  # of the output projections
    rank: int = 4  # of LoRA
    alpha: float = 8.0


class OutputProjection(nn.Module):
    """Hidden states of signals in, a decoder's condition out: a transformer whose
    decoder starts from learned queries, one for each state of the condition.

    The released one has width 512 and 4 + 4 layers. Chapter 25.
    """

    def __init__(self, n_embd: int, width: int, n_states: int, dim: int):
        super().__init__()
        self.start = nn.Linear(n_embd, width)
        self.queries = nn.Parameter(torch.randn(1, n_states, width))
        sizes, kind = (4 * width, 0.0), {"batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, 4, *sizes, **kind)
        norm = nn.LayerNorm(width)
        reader = nn.TransformerEncoder(layer, 1, norm, enable_nested_tensor=False)
        kind["custom_encoder"] = reader  # nn.Transformer's own warns about nesting
        self.transformer = nn.Transformer(width, 4, 1, 1, *sizes, **kind)
        self.out = nn.Linear(width, dim)

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """hidden states and embeddings of the signals, (B, K, n_embd) each -> (B,
        n_states, dim).
        """
        x = self.start(hidden + embedded)  # (B, K, width)
        return self.out(self.transformer(x, self.queries.expand(len(x), -1, -1)))


class Literate:
    """A base of models that read and write the words of a list, `tokens`."""

    tokens: dict[str, int]
    config: NextGPTConfig

    def read(self, text: str) -> list[int]:
        """The ids of a sentence; ValueError names a word that it does not know."""
        words = [word for word in split_words(text) if word]
        if unknown := [word for word in words if word not in self.tokens]:
            said = f"must hold words of SoundWorld, not {unknown[0]!r}"
            raise ValueError(f"the sentence {said}")
        return [self.tokens[word] for word in words]

    def write(self, ids: Sequence[int]) -> str:
        """The words among ids, without signals."""
        words = list(self.tokens)
        return " ".join(words[i] for i in ids if len(SPECIAL) <= i < len(words))

    def prompt(self, request: str, text: str | None = None) -> list[int]:
        """The ids of what a user says: a request, then a text, or if that is None the
        positions of what is sensed.
        """
        given = [SENSED] * self.config.n_sensed if text is None else self.read(text)
        return [USER, *self.read(request), *given, BOT]


class NextGPT(Literate, Model):
    """The language model and the layers around it.

    Its words are those of captions and requests. The signals follow them in the
    vocabulary, those of pictures before those of sounds. Chapter 25.
    """

    config_class = NextGPTConfig

    def __init__(self, config: NextGPTConfig):
        super().__init__(config)
        c, D = config, config.n_embd
        self.tokens = {word: i for i, word in enumerate((*SPECIAL, *c.words))}
        n = len(self.tokens)
        self.places = {  # ids of the signals
            "image": range(n, n + c.image_signals),
            "audio": range(n + c.image_signals, n + c.image_signals + c.audio_signals),
        }
        self.words = nn.Parameter(0.1 * torch.randn(n, D))
        n_signals = c.image_signals + c.audio_signals
        self.signals = nn.Parameter(0.1 * torch.randn(n_signals, D))
        sizes = TransformerConfig(D, c.n_layer, c.n_head, c.n_positions, vocab_size=1)
        self.llm = add_lora(GPT2(sizes), c.rank, c.alpha)
        self.project_in = nn.Linear(c.sensed, c.n_sensed * D)
        states = {"image": c.image_states, "audio": c.audio_states}
        self.project_out = nn.ModuleDict(
            {x: OutputProjection(D, c.width, k, c.state_dim) for x, k in states.items()}
        )

    def learn(self, stage: str) -> nn.Module:
        """Let only the parameters of a stage learn, one of `STAGES`."""
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, not {stage!r}")
        for name, parameter in self.named_parameters():
            name = "lora" if name.endswith((".A", ".B")) else name
            # GPT2's own table of words is not used, so it does not learn
            learns = name.startswith(STAGES[stage]) and name != "llm.wte.weight"
            parameter.requires_grad_(learns)
        return self

    def embedded(self, ids: Tensor, sensed: Tensor) -> Tensor:
        """Vectors (B, S, n_embd) of ids (B, S); what is sensed, (B, sensed), stands
        where the ids say so.
        """
        x = F.embedding(ids, torch.cat([self.words, self.signals]))
        seen = self.project_in(sensed).unflatten(1, (-1, x.shape[2]))
        here = ids == SENSED
        some = here.any(dim=1)
        return x.masked_scatter(here[..., None], seen[some].to(x.dtype))

    def forward(self, ids: Tensor, sensed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of the next ids (B, S, V), the hidden states and the embeddings,
        (B, S, n_embd), for ids (B, S) and ImageBind's vectors (B, sensed).
        """
        x = self.embedded(ids, sensed)
        hidden = self.llm(x)
        table = torch.cat([self.words, self.signals])
        return hidden @ table.T, hidden, x

    def condition(self, mode: str, ids: Tensor, hidden: Tensor, x: Tensor) -> Tensor:
        """The condition (B, states, state_dim) that the signals of a mode stand for;
        every row of ids (B, S) holds all of them, in order.
        """
        places = self.places[mode]
        here = (ids >= places.start) & (ids < places.stop)
        rows = (len(ids), len(places), -1)
        return self.project_out[mode](hidden[here].view(rows), x[here].view(rows))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the answers in nats, and, where the batch holds `image` or
        `audio`, the conditions (B, states, state_dim) that a decoder's own encoder
        makes of the caption, the squared distance to them over their square.

        The batch holds `ids` (B, S), `answer` (B, S), true for ids to be predicted,
        `sensed` (B, sensed) and `mode` (B,), the index of what is asked for.
        """
        ids = batch["ids"]
        logits, hidden, x = self(ids, batch["sensed"])
        asked = batch["answer"][:, 1:]
        losses = {"text": F.cross_entropy(logits[:, :-1][asked], ids[:, 1:][asked])}
        for mode in ("image", "audio"):
            rows = batch["mode"] == MODES.index(mode)
            if mode in batch and rows.any():
                made = self.condition(mode, ids[rows], hidden[rows], x[rows])
                target = batch[mode][rows]
                apart = (made - target).square().sum() / target.square().sum()
                losses[mode] = apart
        return {"loss": sum(losses.values()), **losses}

    @torch.no_grad()
    def answer(
        self, prompts: list[list[int]], sensed: Tensor
    ) -> tuple[list[list[int]], list[dict[str, Tensor]]]:
        """Answer B prompts with the likeliest ids: for each the ids, without <end>, and
        the conditions (states, state_dim) of the modes whose signals it gave in full.
        """
        rows, done = [list(prompt) for prompt in prompts], [False] * len(prompts)
        for _ in range(MOST):
            ids, _ = padded(rows)
            logits = self(ids, sensed)[0]
            for i, row in enumerate(rows):
                if not done[i]:
                    row.append(int(logits[i, len(row) - 1].argmax()))
                    done[i] = row[-1] == END
            if all(done):
                break
        ids, _ = padded(rows)
        _, hidden, x = self(ids, sensed)
        found = []
        for i, (row, prompt) in enumerate(zip(rows, prompts)):
            found.append({})
            for mode, places in self.places.items():
                given = [k for k in row[len(prompt) :] if k in places]
                if given == list(places):
                    one = slice(i, i + 1)
                    made = self.condition(mode, ids[one], hidden[one], x[one])
                    found[i][mode] = made[0]
        cut = (row[len(p) :] for row, p in zip(rows, prompts))
        return [[k for k in row if k != END] for row in cut], found


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (B, S), padded behind, and their lengths (B,)."""
    S = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (S - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


def known_words() -> tuple[str, ...]:
    """The words of captions, requests and answers, sorted."""
    texts = [*(text for some in REQUESTS.values() for text in some), *ENDINGS.values()]
    texts += [text for text in TIMES.values() if text]
    return tuple(sorted({*vocabulary(), *(w for text in texts for w in text.split())}))


def told(event: Event) -> str:
    """What an answer says of an event, and what its decoders are to show: its class and
    how often it sounds, "a dog barks twice". Chapter 25.
    """
    return f"{plain(event.name)} {TIMES[event.count]}".strip()


class Decoders:
    """The conditions that the decoders' own encoders make of a caption.

    A picture is drawn from ImageBind's vector of the caption, a sound from the states
    of T5. States beyond a caption's end are zero; a predicted state counts as zero if
    its root mean square is at most a half. Chapter 25.
    """

    def __init__(self, bind: nn.Module, text: nn.Module, n_states: int = 8):
        self.bind, self.text, self.n_states = bind, text, n_states

    @torch.no_grad()
    def image(self, captions: list[str]) -> Tensor:
        """(B, 1, D), of length sqrt(D), like a state of T5."""
        vectors = self.bind.embed("text", captions)[:, None]
        return F.rms_norm(vectors, vectors.shape[-1:])

    @torch.no_grad()
    def audio(self, captions: list[str]) -> Tensor:
        """(B, n_states, D)."""
        states, mask = self.text.encode(captions)
        states = F.rms_norm(states, states.shape[-1:]) * mask[..., None]
        return states[:, : self.n_states]

    @staticmethod
    def read(states: Tensor) -> Context:
        """The condition that a decoder reads, from states (B, S, D), some of them zero
        or nearly so.
        """
        mask = states.square().mean(dim=-1).sqrt() > 0.5
        mask[:, 0] = True
        return Context(states, mask)


class Dialogues:
    """Training batches of one stage: requests and their answers.

    Args:
        model: whose words and signals are used.
        decoders: make the conditions that the signals are to stand for.
        stage: one of `STAGES`.
        senses: the scenes, and what ImageBind makes of them, from `perceive`.

    Chapter 25.
    """

    def __init__(
        self,
        model: NextGPT,
        decoders: Decoders,
        stage: str,
        senses: tuple[list[Event], dict[str, Tensor]],
        batch_size: int | None = None,
    ):
        self.model, self.stage, (self.events, self.senses) = model, stage, senses
        self.signals = stage in ("output", "instructions")
        self.batch_size = batch_size or RECIPES[stage].batch_size
        captions = sorted({told(event) for event in self.events})
        self.row = {caption: i for i, caption in enumerate(captions)}
        modes = MODES[1:] if self.signals else ()
        self.targets = {x: getattr(decoders, x)(captions) for x in modes}

    def dialogue(
        self, event: Event, given: str, out: str, rng: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        """A prompt and its answer, about an event."""
        model = self.model
        request = REQUESTS[out][rng.integers(len(REQUESTS[out]))]
        text = describe_event(event, rng) if given == "text" else None
        answer = model.read(f"{told(event)} {ENDINGS[out]}")
        if self.signals and out != "text":
            answer += [*model.places[out]]
        return model.prompt(request, text), [*answer, END]

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `NextGPT.loss`."""
        rng = np.random.default_rng(int(torch.randint(2**32, (), generator=generator)))
        n, tasks = self.batch_size, TASKS[self.stage]
        asked = [tasks[k % len(tasks)] for k in range(n)]
        about = rng.integers(len(self.events), size=n).tolist()
        said = [self.dialogue(self.events[i], *x, rng) for i, x in zip(about, asked)]
        ids, ends = padded([prompt + answer for prompt, answer in said])
        starts = torch.tensor([len(prompt) for prompt, _ in said])
        at = torch.arange(ids.shape[1])
        sensed = torch.zeros(n, self.model.config.sensed)
        for k, (i, (given, _)) in enumerate(zip(about, asked)):
            if given != "text":
                sensed[k] = self.senses[given][i]
        batch = {
            "ids": ids,
            "answer": (at >= starts[:, None]) & (at < ends[:, None]),
            "sensed": sensed,
            "mode": torch.tensor([MODES.index(out) for _, out in asked]),
        }
        which = [self.row[told(self.events[i])] for i in about]
        return batch | {x: y[which] for x, y in self.targets.items()}


def describe_event(event: Event, rng: np.random.Generator) -> str:
    """A caption of a single event, in one of SoundWorld's wordings."""
    return describe(Scene((event,), text_ldm.SECONDS, 0), rng)


@torch.no_grad()
def perceive(
    bind: nn.Module, n: int, seed: int, split: str = "train"
) -> tuple[list[Event], dict[str, Tensor]]:
    """The events of n scenes, and ImageBind's vectors (n, D) of their pictures and
    sounds, scaled to numbers of order one.
    """
    world = SoundWorld(split, seed, text_ldm.SECONDS, pairs=0.0)
    scenes, found = [world.scene(i) for i in range(n)], {"image": [], "audio": []}
    for some in torch.arange(n).split(16):
        waves = torch.stack([world[i].wave for i in some.tolist()])
        drawn = torch.stack([SENSES["image"](scenes[i]) for i in some.tolist()])
        found["image"].append(bind.embed("image", drawn))
        found["audio"].append(bind.embed("audio", audio.log_mel(waves)))
    dim = (bind.config.dim,)
    vectors = {x: F.rms_norm(torch.cat(y), dim) for x, y in found.items()}
    return [scene.events[0] for scene in scenes], vectors


class Pictures:
    """Training batches of the decoder that draws: pictures of scenes, and ImageBind's
    vectors of their captions.
    """

    def __init__(self, decoders: Decoders, n: int = N_SCENES, seed: int = 0):
        world = SoundWorld("train", seed, text_ldm.SECONDS, pairs=0.0)
        scenes = [world.scene(i) for i in range(n)]
        drawn = torch.stack([SENSES["image"](scene) for scene in scenes])
        self.z0 = 2 * F.adaptive_avg_pool2d(drawn, PIXELS) - 1
        self.states = decoders.image([told(scene.events[0]) for scene in scenes])

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `TextLDM.loss`."""
        n, T = ICON_RECIPE.batch_size, ICONS.n_steps
        i = torch.randint(len(self.z0), (n,), generator=generator)
        u = torch.rand(n, generator=generator) ** CURVE
        t = 1 + (u * T).long().clamp_max(T - 1)
        none = {"picture": Context(torch.zeros_like(self.states[:1]))}
        dropped = torch.rand(n, generator=generator) < P_EMPTY
        read = drop({"picture": Context(self.states[i])}, none, dropped)
        z0 = self.z0[i]
        eps = torch.randn(z0.shape, generator=generator)
        return {"z0": z0, "t": t, "eps": eps, **to_batch(read)}


@torch.no_grad()
def draw_pictures(
    model: TextLDM, states: Tensor, seed: int = 0, sampling: Sampling = DRAWING
) -> Tensor:
    """Pictures (B, 3, 32, 32), 0 to 1, from conditions (B, 1, D), enlarged from 16
    by 16 pixels. Chapter 25.
    """
    n, g = len(states), torch.Generator().manual_seed(seed)
    zT = sampling.temperature * torch.randn(n, 3, PIXELS, PIXELS, generator=g)
    told = {"picture": Context(states)}
    none = {"picture": Context(torch.zeros_like(states))}
    velocity = guided(model, told, none, sampling)
    as_eps = lambda zt, t: model.as_eps(zt, t, velocity(zt, t))
    z0 = diffusion.ddim_sample(as_eps, model.schedule, zT, sampling.steps)
    return F.interpolate(((z0 + 1) / 2).clamp(0, 1), scale_factor=2, mode="bilinear")


class Answer(NamedTuple):
    """What the system says, and what it draws or plays, or None."""

    words: str
    picture: Tensor | None = None  # (3, 32, 32), 0 to 1
    wave: Tensor | None = None  # (N,) at 16 kHz


class Imagined:
    """A text encoder in the place of T5: it asks the language model to play a caption,
    and gives the decoder what its signals stand for. Chapter 25.
    """

    def __init__(self, model: NextGPT, text: nn.Module):
        self.model, self.text = model, text

    def encode(self, captions: list[str]) -> Context:
        """The conditions of B captions; empty ones, by which guidance compares, are
        T5's own.
        """
        if not any(captions):
            return self.text.encode(captions)
        prompts = [self.model.prompt(REQUESTS["audio"][0], x) for x in captions]
        nothing = torch.zeros(len(prompts), self.model.config.sensed)
        _, found = self.model.answer(prompts, nothing)
        for caption, made in zip(captions, found):
            if "audio" not in made:
                said = "the language model gave no signal to play"
                raise ValueError(f"{said} {caption!r}")
        return Decoders.read(torch.stack([made["audio"] for made in found]))


class TextToAudio(text_ldm.TextToAudio):
    """The pipeline of `text_ldm`, whose captions pass through the language model; and
    `ask`, by which any sense is answered in any other.
    """

    model: NextGPT
    bind: nn.Module
    icons: TextLDM

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextToAudio:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        told = read_json(folder / "pipeline.json")
        parts = [load_part(folder, x, torch.float32) for x in BORROWED]
        load = {"dtype": torch.float32}
        unet = TextLDM.from_pretrained(folder / str(told.get("unet", "unet")), **load)
        model = NextGPT.from_pretrained(folder / "nextgpt", **load)
        known = {field.name for field in fields(Sampling)} & set(told)
        sampling = Sampling().changed(**{name: told[name] for name in known})
        imagined = Imagined(model, parts[0])
        imagined.tokenizer = parts[0].tokenizer  # the command line asks how it pads
        pipe = cls(
            unet, imagined, *parts[1:], sampling, told.get("seconds", text_ldm.SECONDS)
        )
        pipe.model, pipe.bind = model, load_part(folder, "bind", torch.float32)
        pipe.icons = TextLDM.from_pretrained(folder / "icons", **load)
        return pipe

    @torch.no_grad()
    def ask(
        self,
        request: str,
        text: str | None = None,
        picture: Tensor | None = None,
        wave: Tensor | None = None,
        seed: int = 0,
    ) -> Answer:
        """Ask about a text, a picture (3, H, W) or a sound (N,) as long as those that
        it makes: one of the three.

        Raises:
            ValueError, TypeError: none or several of them are given, a word is not
                known, or an argument is not as described.
        """
        given = [x for x in (text, picture, wave) if x is not None]
        if len(given) != 1:
            said = f"one of text, picture and wave must be given, not {len(given)}"
            raise ValueError(said)
        for name, words in (("request", request), ("text", text)):
            if words is not None and not "".join(as_list(name, words)).strip():
                raise ValueError(f"{name} is empty: write words of SoundWorld")
        (g,) = seeded(seed, 1)
        n = round(self.seconds * audio.SAMPLE_RATE)
        vector = torch.zeros(1, self.model.config.sensed)
        if text is None and wave is None:
            seen = check_pictures(picture, self.bind.config.image.shape[1:])
            vector = self.bind.embed("image", seen[:1])
        elif text is None:
            fits = lambda B, N: (B, N) == (1, n)
            heard = as_waves("wave", wave, f"({n},), {self.seconds:g} s", fits)
            vector = self.bind.embed("audio", audio.log_mel(heard))
        vector = F.rms_norm(vector, vector.shape[1:])
        (ids,), (made,) = self.model.answer([self.model.prompt(request, text)], vector)
        drawn = played = None
        if "image" in made:
            drawn = draw_pictures(self.icons, made["image"][None], seed)[0]
        if "audio" in made:
            told = {"text": Decoders.read(made["audio"][None])}
            none = {"text": self.text.encode([""])}
            z0 = self.sample(told, none, n, self.sampling, [g])
            played = self.decode(z0, n)[0]
        return Answer(self.model.write(ids), drawn, played)


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights: `out/nextgpt` and `out/icons` in float16, and
    `out/pipeline.json`, which names the parts that it borrows.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of scenes, weights and batches; a whole number >= 0.
        steps: of each stage; None for those of its recipe.
        progress: show a bar.
        weights: the folder whose T5, VAE and vocoder it uses. Beside it lie `picture`,
            with ImageBind, and `peers/text_ldm`, which plays.

    Raises:
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    if steps is not None:
        check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    recipe = lambda r: r if steps is None else replace(r, steps=steps)
    parts = {x: weights / x for x in BORROWED}
    parts |= {"bind": weights.parent / "picture/bind"}
    parts |= {"unet": weights.parent / "peers/text_ldm/unet"}
    bind = load_part(weights.parent / "picture", "bind", torch.float32)
    text, *_ = (load_part(weights, x, torch.float32) for x in BORROWED)
    TextLDM.from_pretrained(parts["unet"])  # a missing one shall not cost the training
    decoders = Decoders(bind, text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, icons = NextGPT(NextGPTConfig(known_words())), TextLDM(ICONS)
    n = N_SCENES if steps is None else 64
    pictures = Pictures(decoders, n, seed)
    fit(icons, pictures, recipe(ICON_RECIPE), seed, "icons", progress)
    senses = perceive(bind, n, seed)
    for stage, how in RECIPES.items():
        batches = Dialogues(model, decoders, stage, senses)
        fit(model.learn(stage), batches, recipe(how), seed, stage, progress)
    with replacing_folder(out) as new:
        model.save_pretrained(new / "nextgpt", dtype=torch.float16)
        icons.save_pretrained(new / "icons", dtype=torch.float16)
        text_ldm.save_description(new, out, parts, "nextgpt")
    return out
