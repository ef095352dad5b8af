"""NaturalSpeech 2 (Shen et al., 2304.09116): diffusion writes the codec's vectors.

A phrase becomes phonemes; how long each lasts and how high the voice is are predicted,
so that every frame knows what it says before any sound is made. Then a WaveNet removes
noise from all frames at once, and a prompt says in whose voice. The latent is the sum
of the codec's 8 vectors: no code is written, so more codebooks cost nothing more.
Chapter 24 builds it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio, diffusion
from minilib.arguments import (
    MAX_SEED,
    check_path,
    check_seconds,
    check_whole,
    one_each,
    seeded,
)
from minilib.audioldm2 import Profile
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling, check_sampling
from minilib.layers import attention
from minilib.model import Model, read_json
from minilib.peers.codec import CodecAndVocoder, log_mels
from minilib.phonemes import PhonemeTokenizer
from minilib.soundworld.phrases import HOP, M_CLIP, pieces_of, say
from minilib.soundworld.speech import OTHERS
from minilib.soundworld.talkers import NOISE, TALKERS, Talker
from minilib.training import Recipe, fit
from minilib.unet import TimeEmbedding
from minilib.vocoder import vocode

PROMPT = 48  # frames of the prompt: 0.96 s
SIGNS = 6  # characters of a phoneme with its marks, at most
N_TAKES = 2500  # each of two phrases
RATES = (120, 170)  # words per minute, the slowest and the fastest
PEAKS = (0.4, 0.9)
P_NO_PROMPT = 0.15
RECIPE = Recipe(1600, 24, 4e-3, warmup=40, ema=0.99, muon=("linear", "conv"))
SAMPLING = Sampling(steps=20, guidance=1.0, temperature=0.8)
IDS = PhonemeTokenizer.ids
KNOWN = ("ids", "durations", "log_f0", "voiced", "codes", "vectors")  # of a phrase


# ---- What is said


def numbers(pieces: Sequence[tuple[str, ...]]) -> Tensor:
    """Pieces of B phrases as ids (B, S, SIGNS) of their characters, 0 for none."""
    rows = [[[IDS[c] for c in piece][:SIGNS] for piece in row] for row in pieces]
    out = torch.zeros(len(rows), max(map(len, rows)), SIGNS, dtype=torch.long)
    for b, row in enumerate(rows):
        for s, some in enumerate(row):
            out[b, s, : len(some)] = torch.tensor(some)
    return out


class Takes:
    """n takes: two phrases in one voice, at one rate and level. Each is the prompt of
    the other, where the paper cuts its prompt out of the sound itself.

    Args:
        pipe: the codec.
        n: how many.
        seed: of words, voices, rates and levels.
        words, talkers: to be drawn from; the talkers in turn.
        n_words: the fewest and the most of a phrase.
    """

    def __init__(
        self, pipe: CodecAndVocoder, n: int, seed: int, words: Sequence[str] = OTHERS,
        talkers: Sequence[Talker] = TALKERS, n_words: tuple[int, int] = (1, 3),
    ):  # fmt: skip
        rng = np.random.default_rng([seed, 24])
        self.texts, self.talkers, self.phrases, waves = [], [], [], []
        while len(self.texts) < 2 * n:
            talker = talkers[len(self.texts) // 2 % len(talkers)]
            rate, peak = int(rng.integers(*RATES)), rng.uniform(*PEAKS)
            drawn = [rng.choice(words, rng.integers(*n_words, endpoint=True))
                     for _ in range(2)]  # fmt: skip
            texts = [" ".join(some) for some in drawn]
            try:
                both = [
                    say(text, talker, rate, rng.uniform(0.02, 0.06)) for text in texts
                ]
            except ValueError:
                continue  # too long
            self.texts, self.phrases = self.texts + texts, self.phrases + both
            self.talkers += [talker, talker]
            hiss = NOISE * rng.standard_normal((2, M_CLIP * HOP))
            waves += [peak * phrase.wave + noise for phrase, noise in zip(both, hiss)]
        self.waves = torch.from_numpy(np.stack(waves)).float()  # (2n, N)
        mels = log_mels(list(self.waves))
        self.codes = torch.cat([pipe.encode(some) for some in mels.split(64)])
        with torch.no_grad():
            self.vectors = pipe.codec.quantiser.decode(self.codes)  # (2n, M, dim)
        self.ids = numbers([phrase.pieces for phrase in self.phrases])
        durations = [phrase.durations for phrase in self.phrases]
        self.durations = nn.utils.rnn.pad_sequence(durations, batch_first=True)
        self.log_f0 = torch.stack([phrase.log_f0 for phrase in self.phrases])
        self.voiced = torch.stack([phrase.voiced for phrase in self.phrases])

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What is known of phrases (B,), and their prompts."""
        told = {name: getattr(self, name)[rows] for name in KNOWN}
        return told | {"prompt": self.vectors[rows ^ 1, :PROMPT]}

    def batches(self, batch_size: int, config: NaturalSpeech2Config) -> Any:
        """Batches for `NaturalSpeech2.loss`, some rows without a prompt."""

        def drawn(generator: torch.Generator) -> dict[str, Tensor]:
            uniform = lambda *shape: torch.rand(shape, generator=generator)
            rows = (uniform(batch_size) * len(self.texts)).long()
            batch = self.batch(rows)
            u = (uniform(1) + torch.arange(batch_size) / batch_size) % 1
            batch["t"] = 1 + (u * config.n_steps).long().clamp(max=config.n_steps - 1)
            shape = batch["vectors"].shape
            batch["eps"] = torch.randn(shape, generator=generator)
            return batch | {"prompted": uniform(batch_size) >= P_NO_PROMPT}

        return drawn


# ---- The networks


@dataclass(frozen=True)
class NaturalSpeech2Config:
    """Sizes; the defaults are those that ship."""

    n_symbols: int = PhonemeTokenizer.vocab_size
    dim: int = 32  # D, of the codec's vectors
    n_q: int = 8  # codebooks whose vectors are summed, Q
    n_codes: int = 64  # of each, K
    width: int = 96
    n_head: int = 4
    n_block: int = 2  # of the phoneme encoder, the prompt encoder and each predictor
    n_layer: int = 9  # of the WaveNet
    cycle: int = 3  # dilations are 1, 2, 4, 1, ...
    n_queries: int = 8  # learned, through which the WaveNet reads the prompt
    n_pitches: int = 64  # steps from 50 to 500 Hz
    n_steps: int = 1000  # T
    beta_1: float = 5e-5  # 0.05 and 20 over T: the paper's variance-preserving process
    beta_T: float = 0.02
    ce: float = 0.1  # lambda, the weight of the cross-entropy
    scale: float = 1.0  # brings the codec's vectors to variance 1
    codec: str = ""  # the fingerprint of the codec whose vectors these are


def ce_rvq(z: Tensor, codes: Tensor, codebooks: Tensor) -> Tensor:
    """The cross-entropy of codes under what predicted vectors leave over, in nats a
    code (2304.09116 §3.2, L_ce-rvq).

    At level q the logits are minus the squared distances from z, less the true vectors
    of the levels before, to the codebook. What does not depend on the code is left out.

    Args:
        z: (..., D) predicted; codes: (..., Q) true; codebooks: (Q, K, D).

    Chapter 24.
    """
    vectors = codebooks[torch.arange(len(codebooks)), codes]  # (..., Q, D)
    rest = z[..., None, :] - (vectors.cumsum(dim=-2) - vectors)  # (..., Q, D)
    logits = 2 * torch.einsum("...qd,qkd->...qk", rest, codebooks)
    logits = logits - codebooks.square().sum(dim=2)
    return F.cross_entropy(logits.flatten(0, -2), codes.flatten())


def expand(x: Tensor, durations: Tensor) -> Tensor:
    """The length regulator: x (B, S, D) and durations (B, S) of equal sums M to (B, M,
    D), in which piece s stands d_s times, once and in its place. Chapter 24.
    """
    return torch.stack([row.repeat_interleave(d, 0) for row, d in zip(x, durations)])


class ReadingBlock(nn.Module):
    """A convolution along a sequence, then attention to another one. Chapter 24."""

    def __init__(self, width: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding=2)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.mix, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, there: Tensor, other: Tensor, keep: Tensor) -> Tensor:
        """x (B, S, D), there (B, S, 1); other (B, P, D), keep (B, P) -> (B, S, D)."""
        h = self.conv((self.norm_1(x) * there).transpose(1, 2)).transpose(1, 2)
        x = x + self.mix(F.gelu(h))
        k, v = self.to_kv(other).chunk(2, dim=-1)
        q = self.to_q(self.norm_2(x))
        return x + self.out(attention(q, k, v, self.n_head, keep[:, None, None]))


class WaveNetLayer(nn.Module):
    """A gated convolution with holes, told the noise level and what each frame says
    (1609.03499); with `reads`, attention to the voice scales and shifts it, as FiLM
    does (1709.07871). Chapter 24.
    """

    def __init__(self, width: int, n_head: int, dilation: int, reads: bool):
        super().__init__()
        self.n_head, self.reads = n_head, reads
        around = {"padding": dilation, "dilation": dilation}
        self.conv = nn.Conv1d(width, 2 * width, 3, **around)
        self.time, self.told = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, 2 * width)
        if reads:
            self.norm = nn.LayerNorm(width)
            self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
            self.film = nn.Linear(width, 4 * width)

    def forward(
        self, x: Tensor, time: Tensor, told: Tensor, voice: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x, told (B, M, D), time (B, D), voice (B, n_queries, D) -> x and skip."""
        h = x + self.time(time)[:, None]
        y = self.conv(h.transpose(1, 2)).transpose(1, 2) + self.told(told)
        if self.reads:
            k, v = self.to_kv(voice).chunk(2, dim=-1)
            read = attention(self.to_q(self.norm(h)), k, v, self.n_head)
            gain, bias = self.film(read).chunk(2, dim=-1)
            y = y * (1 + gain) + bias
        gate, value = y.chunk(2, dim=-1)
        more, skip = self.out(gate.sigmoid() * value.tanh()).chunk(2, dim=-1)
        return (x + more) / 2**0.5, skip


class Read(NamedTuple):
    """A prompt that was read."""

    states: Tensor  # (B, 1 + P, D), the first is learned and always there
    keep: Tensor  # (B, 1 + P), true where the predictors read
    voice: Tensor  # (B, n_queries, D), what the WaveNet reads


class NaturalSpeech2(Model):
    """Phonemes, durations, pitch and a prompt to the codec's vectors (2304.09116 §3).

    Chapter 24.
    """

    config_class = NaturalSpeech2Config

    def __init__(self, config: NaturalSpeech2Config):
        super().__init__(config)
        c, D = config, config.width
        blocks = lambda: nn.ModuleList(
            ReadingBlock(D, c.n_head) for _ in range(c.n_block)
        )
        self.symbols = nn.Embedding(c.n_symbols, D, padding_idx=0)
        self.text, self.prompt = blocks(), blocks()
        self.duration, self.pitch = blocks(), blocks()
        self.frames_in, self.nobody = nn.Linear(c.dim, D), nn.Parameter(torch.randn(D))
        self.queries = nn.Parameter(torch.randn(c.n_queries, D))
        self.to_kv = nn.Linear(D, 2 * D)
        self.to_duration, self.to_pitch = nn.Linear(D, 1), nn.Linear(D, 1)
        self.pitches = nn.Embedding(c.n_pitches, D)
        self.time_embedding, self.z_in = TimeEmbedding(D // 4), nn.Linear(c.dim, D)
        self.layers = nn.ModuleList(
            WaveNetLayer(D, c.n_head, 2 ** (i % c.cycle), i % 3 == 0)
            for i in range(c.n_layer)
        )
        self.norm_told, self.norm_out = nn.LayerNorm(D), nn.LayerNorm(D)
        self.z_out = nn.Linear(D, c.dim)
        self.register_buffer("codebooks", torch.zeros(c.n_q, c.n_codes, c.dim))
        nn.init.constant_(self.to_pitch.bias, float(np.log(150)))

    @property
    def schedule(self) -> diffusion.Schedule:
        """The noise levels: beta grows along a line."""
        c = self.config
        return diffusion.linear_schedule(c.n_steps, c.beta_1, c.beta_T)

    def read(self, prompt: Tensor, prompted: Tensor) -> Read:
        """Read the codec's vectors (B, P, dim) of a prompt, where `prompted` (B,)."""
        B, P, _ = prompt.shape
        x, all_there = self.frames_in(self.config.scale * prompt), prompt.new_ones(B, P)
        for block in self.prompt:
            x = block(x, all_there[..., None], x, all_there.bool())
        states = torch.cat([self.nobody.expand(B, 1, -1), x], dim=1)
        keep = F.pad(prompted[:, None].expand(B, P), (1, 0), value=True)
        k, v = self.to_kv(states).chunk(2, dim=-1)
        asked = self.queries.expand(B, -1, -1)
        voice = attention(asked, k, v, self.config.n_head, keep[:, None, None])
        return Read(states, keep, voice)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Phonemes (B, S, SIGNS) to states (B, S, D) and where some are (B, S)."""
        there = ids.any(dim=2)
        x = self.symbols(ids).sum(dim=2)
        for block in self.text:
            x = block(x, there[..., None], x, there)
        return x, there

    def log_durations(self, x: Tensor, there: Tensor, read: Read) -> Tensor:
        """log(1 + d) (B, S) of the frames d that each piece lasts."""
        for block in self.duration:
            x = block(x, there[..., None], read.states, read.keep)
        return self.to_duration(x)[..., 0]

    def log_pitch(self, frames: Tensor, read: Read) -> Tensor:
        """The pitch (B, M) of expanded frames (B, M, D), in nepers of hertz."""
        there = frames.new_ones(frames.shape[:2])[..., None]
        for block in self.pitch:
            frames = block(frames, there, read.states, read.keep)
        return self.to_pitch(frames)[..., 0]

    def told(self, frames: Tensor, log_f0: Tensor) -> Tensor:
        """Frames (B, M, D) that know their pitch (B, M), in steps."""
        share = (log_f0 - np.log(50)) / np.log(10)  # of the way from 50 to 500 Hz
        step = (share * self.config.n_pitches).long()
        return frames + self.pitches(step.clamp(0, self.config.n_pitches - 1))

    def forward(self, zt: Tensor, t: Tensor, told: Tensor, voice: Tensor) -> Tensor:
        """Predict the clean z0 from zt (B, M, dim) at levels t (B,), 1 to T."""
        x, time = F.relu(self.z_in(zt)), self.time_embedding(t - 1)
        told, total = self.norm_told(told), 0.0
        for layer in self.layers:
            x, skip = layer(x, time, told, voice)
            total = total + skip
        return self.z_out(F.gelu(self.norm_out(total)))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error of z0, lambda times the cross-entropy, and the absolute errors
        of log(1 + d), without the silence at both ends, and of log f0 where a voice is.
        The batch is that of `Takes.batches`. Chapter 24.
        """
        read = self.read(batch["prompt"], batch["prompted"])
        x, there = self.encode(batch["ids"])
        d = batch["durations"]
        inner = (d.cumsum(1) < d.sum(1, keepdim=True)) & there
        inner[:, 0] = False
        off = (self.log_durations(x, there, read) - torch.log1p(d.float())).abs()
        frames = expand(x, d)
        off_pitch = (self.log_pitch(frames, read) - batch["log_f0"]).abs()
        z0 = self.config.scale * batch["vectors"]
        zt = diffusion.q_sample(self.schedule, z0, batch["t"], batch["eps"])
        told = self.told(frames, batch["log_f0"])
        z0_hat = self(zt, batch["t"], told, read.voice)
        parts = {
            "data": (z0_hat - z0).square().mean(),
            "ce": ce_rvq(z0_hat, batch["codes"], self.config.scale * self.codebooks),
            "duration": off[inner].mean(),
            "pitch": off_pitch[batch["voiced"]].mean(),
        }
        total = sum(parts.values()) - (1 - self.config.ce) * parts["ce"]
        return {"loss": total, **{name: x.detach() for name, x in parts.items()}}

    @torch.no_grad()
    def plan(self, ids: Tensor, read: Read, M: int = 0) -> tuple[Tensor, Tensor]:
        """How long and how high: durations (B, S), each phoneme one frame or longer,
        and log f0 (B, M). The last silence fills M frames, or as many as the longest
        phrase needs. Chapter 24.
        """
        x, there = self.encode(ids)
        d = (self.log_durations(x, there, read).exp() - 1).round().clamp(min=1).long()
        d = d * there
        d[:, 0] = 2
        last = there.sum(dim=1, keepdim=True) - 1
        d.scatter_(1, last, 0)
        M = max(M, int(d.sum(dim=1).max()) + 2)
        d.scatter_(1, last, M - d.sum(dim=1, keepdim=True))
        return d, self.log_pitch(expand(x, d), read)

    @torch.no_grad()
    def generate(
        self, ids: Tensor, durations: Tensor, log_f0: Tensor, read: Read,
        generators: list[torch.Generator], steps: int = SAMPLING.steps,
        temperature: float = SAMPLING.temperature, progress: bool = False,
    ) -> Tensor:  # fmt: skip
        """The codec's vectors (B, M, dim), from noise, all frames at once.

        `temperature` scales the noise at the start, as in Amphion's code. Chapter 24.
        """
        told = self.told(expand(self.encode(ids)[0], durations), log_f0)
        zT = told.new_zeros(*told.shape[:2], self.config.dim)
        zT = temperature * diffusion.randn_like(zT, generators)
        schedule = self.schedule
        eps = lambda zt, t: diffusion.eps_from_x0(
            schedule, zt, t, self(zt, t, told, read.voice)
        )
        given = eps, schedule, zT, steps
        how = {"spacing": "trailing", "last": 0, "progress": progress}
        return diffusion.ddim_sample(*given, **how) / self.config.scale


NaturalSpeech2.presets = {"tiny": NaturalSpeech2Config()}


# ---- Training


def untrained(
    pipe: CodecAndVocoder, takes: Takes, seed: int = 0, **changes: Any
) -> NaturalSpeech2:
    """Fresh weights for a codec; `changes` replace fields of the config."""
    codec, scale = pipe.codec, 1 / float(takes.vectors.std())
    config = replace(NaturalSpeech2Config(), scale=scale, codec=codec.fingerprint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NaturalSpeech2(replace(config, **changes))
    levels = [level.embedding.weight.detach() for level in codec.quantiser.levels]
    model.codebooks.copy_(torch.stack(levels))
    return model


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights: `out/naturalspeech2` in float16, and `out/pipeline.json`, which
    names codec and vocoder.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose vocoder it uses; the codec's lies beside it, in
            `../peers/codec`.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    codec = weights.parent / "peers" / "codec"
    pipe = CodecAndVocoder.from_pretrained(codec)
    takes = Takes(pipe, N_TAKES, seed)
    model = untrained(pipe, takes, seed)
    batches = takes.batches(RECIPE.batch_size, model.config)
    fit(model, batches, replace(RECIPE, steps=steps), seed, "naturalspeech2", progress)
    there = {"codec": codec, "vocoder": weights / "vocoder"}
    told = {name: os.path.relpath(path, out) for name, path in there.items()}
    with replacing_folder(out) as new:
        model.save_pretrained(new / "naturalspeech2", dtype=torch.float16)
        told = json.dumps({"peer": "naturalspeech2", **told}, indent=1) + "\n"
        (new / "pipeline.json").write_text(told)
    return out


# ---- The pipeline


class TextToAudio:
    """A transcription and a voice -> durations and pitch -> the codec's vectors ->
    log-mel -> wave; called as `AudioLDM2` is with a voice.

    Raises:
        ValueError: the network writes the vectors of another codec.
    """

    speaks, sees = True, False
    text = SimpleNamespace(tokenizer=PhonemeTokenizer())
    seconds = None  # as long as the phrase needs

    def __init__(
        self,
        model: NaturalSpeech2,
        pipe: CodecAndVocoder,
        sampling: Sampling = SAMPLING,
    ):
        pipe.codec.check_fingerprint(model.config.codec)
        self.model, self.pipe, self.sampling = model.eval(), pipe, sampling
        self.profile = Profile()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextToAudio:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        told = read_json(folder / "pipeline.json")
        pipe = CodecAndVocoder.from_pretrained(folder / str(told.get("codec", "codec")))
        pipe.vocoder = load_part(folder, "vocoder", torch.float32)
        there = folder / "naturalspeech2"
        return cls(NaturalSpeech2.from_pretrained(there, dtype=torch.float32), pipe)

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        *,
        transcription: str | Sequence[str] | None = None,
        voice: Tensor | None = None,
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        candidates: int = 1,
        progress: bool = False,
        **changes: Any,
    ) -> Tensor:
        """Say phrases in a voice.

        Args:
            captions: not read, and refused without a voice; as many sounds are made as
                there are captions, or one.
            sampling: only steps and temperature are used.
            transcription: the words, one text for all or one for each.
            voice: a recording (N,) at 16 kHz of whom to copy; None for any voice.
            seconds: length of the sounds; None for as long as the phrases need.
            seed, candidates: as for `AudioLDM2`; there is nothing to choose among
                candidates, so they must be 1.
        Returns:
            (B, N).
        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        how = check_sampling(sampling, self.sampling).changed(**changes)
        for field in fields(Sampling):
            own = getattr(self.sampling, field.name)
            if (
                field.name not in ("steps", "temperature")
                and getattr(how, field.name) != own
            ):
                said = "these weights have steps and a temperature alone"
                raise ValueError(f"{said}: leave out {field.name}")
        if candidates != 1:
            said = f"must be 1 without a CLAP to choose, not {candidates}"
            raise ValueError(f"candidates {said}")
        if transcription is None:
            raise ValueError("these weights speak: transcription must give the words")
        if captions is not None and voice is None:
            said = "leave captions out, or give a recording as voice"
            raise ValueError(f"these weights read no captions: {said}")
        n = 1 if captions is None or isinstance(captions, str) else len(captions)
        texts = one_each("transcription", transcription, n)
        if not all(text.strip() for text in texts):
            raise ValueError("a transcription is empty: write the words to speak")
        frames = 0
        if seconds is not None:
            frames = round(check_seconds(seconds) * audio.SAMPLE_RATE / HOP)
        generators, self.profile = seeded(seed, n), Profile()
        with self.profile.measure("encode"):
            ids = numbers([pieces_of(text) for text in texts])
            read = self.enrol(voice, n)
            durations, log_f0 = self.model.plan(ids, read, frames)
            if 0 < frames < durations.shape[1] or 0 < frames < log_f0.shape[1]:
                least = log_f0.shape[1] * HOP / audio.SAMPLE_RATE
                raise ValueError(f"seconds must be {least:g} or more for these words")
        with self.profile.measure("sample"):
            how = {"steps": how.steps, "temperature": how.temperature}
            z = self.model.generate(ids, durations, log_f0, read, generators, **how)
        with self.profile.measure("decode"):
            return self.decode(z)

    def unknown_words(self, caption: str) -> list[str]:
        """None: captions are not read."""
        return []

    @torch.no_grad()
    def enrol(self, voice: Tensor | None, n: int = 1) -> Read:
        """Read a recording (N,) as the prompt of n phrases; None for no prompt."""
        config = self.model.config
        if voice is None:
            nothing = torch.zeros(n, PROMPT, config.dim)
            return self.model.read(nothing, torch.zeros(n, dtype=torch.bool))
        if not isinstance(voice, Tensor) or voice.ndim != 1 or not voice.any():
            raise ValueError("voice must be a recording (N,) that is not silent")
        if len(voice) < (least := round(0.1 * audio.SAMPLE_RATE)):
            seconds = len(voice) / audio.SAMPLE_RATE
            said = f"{least / audio.SAMPLE_RATE} s or longer, not {seconds:.2f} s"
            raise ValueError(f"voice must last {said}")
        x = voice.float() * (np.mean(PEAKS) / float(voice.abs().max()))
        loud = int((x.abs() > 0.05).int().argmax())
        x = F.pad(x[max(0, loud - 2 * HOP) :], (0, PROMPT * HOP))[: PROMPT * HOP]
        noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
        codes = self.pipe.encode(log_mels([x + NOISE * noise]))
        vectors = self.pipe.codec.quantiser.decode(codes)  # (1, PROMPT, dim)
        return self.model.read(vectors.expand(n, -1, -1), torch.ones(n).bool())

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The codec's vectors (B, M, dim) to waves (B, N)."""
        return vocode(self.pipe.vocoder, self.pipe.codec.restore(z))
