"""Make-An-Audio 2: captions parsed into <event & order> pairs, a second text encoder
that learns to read them, and a latent without frequency (Huang et al., 2305.18474).

A grammar takes the place of the language model that parses; a knob sets how often it is
wrong. VAE and transformer run along time alone. Chapter 22 builds it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio, diffusion
from minilib.arguments import MAX_SEED, check_path, check_whole
from minilib.conditions import Conditions, Context, drop, from_batch
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling
from minilib.model import Model, read_json
from minilib.peers import text_ldm
from minilib.peers.text_ldm import JoinedClips, TextBlock, TextLDM, TextLDMConfig
from minilib.soundworld import SoundWorld
from minilib.text import T5Config, T5Encoder
from minilib.training import Recipe, fit
from minilib.training.loop import Batches
from minilib.vae import VAE, VAEConfig, standardise
from minilib.vocoder import vocode

BORROWED = ("text", "vocoder")
VAE_RECIPE = Recipe(700, 16, 2e-2, warmup=30, ema=0.99, muon=("linear", "conv"))
RECIPE = replace(text_ldm.RECIPE, steps=1500, lr=1e-2)
SAMPLING = Sampling(steps=12, guidance=1.5, temperature=0.7)
MEL_MEAN, MEL_STD = -6.8, 2.8  # of SoundWorld's log-mel
N_CROPPED = 3000  # sounds from which the VAE learns
N_SOUNDS = 2000  # of each kind: single sounds, and short ones to be joined
PADDED = 24  # tokens of a structured caption, at least

# --------------------------------------------------------------------------------------
# The parser

# Each names the event that is heard first `a` and the other `b`.
FORMS = (
    r"(?:first )?(?P<a>.+?),? (?:(?:and )?then|followed by) (?P<b>.+)",
    r"after (?P<a>.+?), (?P<b>.+)",
    r"before (?P<b>.+?), (?P<a>.+)",
    r"(?P<a>.+?) before (?P<b>.+)",
    r"(?P<b>.+?) after (?P<a>.+)",
)


def parse(caption: str) -> list[tuple[str, str]]:
    """The events of a caption and when each is heard, in the order of time: [("a dog
    barks", "start"), ("a bell rings", "end")].

    A caption that no form fits is one event, heard at "all" times, as in 2305.18474's
    code. The grammar stands for the language model of §3.2. Chapter 22.
    """
    said = " ".join(caption.lower().rstrip(" .").split()).removeprefix("the sound of ")
    for form in FORMS:
        if found := re.fullmatch(form, said):
            return [(found["a"], "start"), (found["b"], "end")]
    return [(said, "all")]


def structured(events: Sequence[tuple[str, str]]) -> str:
    """Parsed events as the text that the second encoder reads (2305.18474 §3.2): "<dog
    barks& start>@<bell rings& end>". Chapter 22.
    """
    return "@".join(f"<{bare(event)}& {order}>" for event, order in events)


def bare(event: str) -> str:
    """An event without its article."""
    return re.sub(r"^(a|an|the) ", "", event)


@dataclass(frozen=True)
class Parser:
    """A parser that gives two events each other's order with a known probability, as a
    language model might. Chapter 22.
    """

    error: float = 0.0  # 0 to 1

    def __call__(self, caption: str, generator: torch.Generator | None = None) -> str:
        """The structured caption; the generator decides which ones are wrong."""
        events = parse(caption)
        if torch.rand((), generator=generator) < self.error and len(events) == 2:
            (first, _), (second, _) = events
            events = [(second, "start"), (first, "end")]
        return structured(events)


# --------------------------------------------------------------------------------------
# The VAE along time


@dataclass(frozen=True)
class VAE1DConfig(VAEConfig):
    """Sizes of the 1-D VAE; the defaults are those that ship."""

    latent_channels: int = 20
    block_out_channels: tuple[int, ...] = (96, 192)
    layers_per_block: int = 1
    norm_num_groups: int = 8
    scaling_factor: float = 1.0
    kl_weight: float = 1e-3
    bands: int = 64  # F, which become channels


class ResBlock1D(nn.Module):
    """Two normalised convolutions along time beside a skip connection. Chapter 22."""

    def __init__(self, n_in: int, n_out: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, n_in), nn.GroupNorm(groups, n_out)
        self.conv1 = nn.Conv1d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv1d(n_out, n_out, 3, padding=1)
        self.skip = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, T) -> (B, n_out, T)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class VAE1D(VAE):
    """A VAE whose channels are the bands of the mel, and whose latent has time but no
    frequency: (B, 1, T, F) to (B, C, T/r, 1) (2305.18474 §3.3).

    Loss and use are those of `VAE`. Chapter 22.
    """

    config_class = VAE1DConfig

    def __init__(self, config: VAE1DConfig):
        Model.__init__(self, config)
        widths, C = config.block_out_channels, config.latent_channels
        block = lambda n_in, n_out: ResBlock1D(n_in, n_out, config.norm_num_groups)
        down = [nn.Conv1d(config.bands, widths[0], 3, padding=1)]
        up = [nn.Conv1d(C, widths[-1], 3, padding=1)]
        for a, b in zip(widths, widths[1:]):
            down += [nn.Conv1d(a, b, 4, stride=2, padding=1), block(b, b)]
        for a, b in zip(widths[::-1], widths[-2::-1]):
            up += [block(a, b), nn.ConvTranspose1d(b, b, 4, stride=2, padding=1)]
        down += [block(widths[-1], widths[-1]), nn.Conv1d(widths[-1], 2 * C, 1)]
        up += [block(widths[0], widths[0]), nn.Conv1d(widths[0], config.bands, 1)]
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)
        self.quant_conv = nn.Conv2d(2 * C, 2 * C, 1)
        self.post_quant_conv = nn.Conv2d(C, C, 1)

    def moments(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (in [-30, 20]) of q(z | mel), each (B, C, T/r, 1)."""
        bands = (mel[:, 0].transpose(1, 2) - MEL_MEAN) / MEL_STD  # (B, F, T)
        both = self.quant_conv(self.encoder(bands.to(self.dtype))[..., None])
        mean, log_variance = both.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def restore(self, z: Tensor) -> Tensor:
        """The log-mel (B, 1, T, F) from a latent z (B, C, T/r, 1), not scaled."""
        bands = self.decoder(self.post_quant_conv(z.to(self.dtype))[..., 0])
        return (bands * MEL_STD + MEL_MEAN).transpose(1, 2)[:, None]


VAE1D.presets = {"tiny": VAE1DConfig()}


def mel_batches(seconds: float, seed: int, config: VAE1DConfig) -> Batches:
    """Batches of `VAE1D.loss`: crops of SoundWorld's sounds, singles and pairs."""
    world, n = SoundWorld("train", seed, text_ldm.SECONDS), N_CROPPED
    waves = torch.stack([world[i].wave for i in range(n)])
    length, B = round(seconds * audio.SAMPLE_RATE), VAE_RECIPE.batch_size

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(n, (B,), generator=generator).tolist()
        ends = torch.randint(waves.shape[1] - length + 1, (B,), generator=generator)
        crops = [waves[i, k : k + length] for i, k in zip(rows, ends.tolist())]
        mel = audio.log_mel(torch.stack(crops))
        shape = B, config.latent_channels, mel.shape[2] // config.reduction, 1
        return {"mel": mel, "eps": torch.randn(shape, generator=generator)}

    return batch


def train_vae(seed: int = 0, steps: int | None = None, progress: bool = True) -> VAE1D:
    """The 1-D VAE, trained on SoundWorld, its latent at mean 0 and variance 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE1D.preset("tiny")
    batches = mel_batches(1.28, seed, vae.config)
    recipe = replace(VAE_RECIPE, steps=steps or VAE_RECIPE.steps)
    fit(vae, batches, recipe, seed, "vae", progress)
    generator, found = torch.Generator().manual_seed(seed), []
    with torch.no_grad():
        for _ in range(8):
            mean, log_variance = vae.moments(batches(generator)["mel"])
            noise = torch.randn(mean.shape, generator=generator)
            found.append(mean + (0.5 * log_variance).exp() * noise)
    z = torch.cat(found)
    standardise(vae, z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3)))
    return vae


# --------------------------------------------------------------------------------------
# The transformer that reads two encoders


@dataclass(frozen=True)
class StructuredLDMConfig(TextLDMConfig):
    """Sizes of transformer and second encoder; the defaults are those that ship."""

    in_channels: int = 20  # C of the 1-D VAE
    bins: int = 1  # it has no frequency
    patch: int = 4  # 80 ms
    width: int = 128
    n_layer: int = 3
    context_dim: int = 128  # of what both encoders tell, after their heads
    context_length: int = 128
    text_dim: int = 128  # width of the first encoder's states
    streams: tuple[str, ...] = ("text", "structure")  # which of the two are read
    vocab_size: int = 1000
    n_reader: int = 2  # layers of the second encoder


class TokenConv(nn.Conv1d):
    """A convolution over neighbouring tokens: (B, S, n_in) -> (B, S, n_out)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvBlock(TextBlock):
    """The block of `TextLDM`, whose MLP begins with a convolution over neighbouring
    tokens: that of a feed-forward transformer (2305.18474 §3.4). Chapter 22.
    """

    def __init__(self, width: int, n_head: int):
        super().__init__(width, n_head)
        self.up = TokenConv(width, 2 * width, 3, padding=1)
        self.down = nn.Linear(2 * width, width)
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)


class StructuredLDM(TextLDM):
    """`TextLDM` on a latent without frequency, told by two encoders: states of a frozen
    one that reads the caption, and those of its own, which reads the parsed caption and
    learns with it (2305.18474 §3.2). Chapter 22.
    """

    config_class = StructuredLDMConfig

    def __init__(self, config: StructuredLDMConfig):
        super().__init__(config)
        D, dim = config.width, config.text_dim
        blocks = [ConvBlock(D, config.n_head) for _ in range(config.n_layer)]
        self.blocks = nn.ModuleList(blocks)
        reader = T5Config(config.vocab_size, dim, 32, 256, config.n_reader, 0, 4)
        self.structure = T5Encoder(reader)
        head = lambda: nn.Sequential(
            nn.Linear(dim, D), nn.GELU(), nn.Linear(D, D), nn.LayerNorm(D)
        )
        self.heads = nn.ModuleDict({name: head() for name in config.streams})

    def read(self, given: Conditions) -> Context:
        """What both encoders tell, one after the other: (B, S1 + S2, width).

        `text` holds states (B, S1, D), `structure` tokens (B, S2, 1).
        """
        told = []
        for name in self.config.streams:
            states, mask = given[name]
            if name == "structure":
                states = self.structure(states[..., 0], mask)
            told.append((self.heads[name](states), mask))
        return Context(*(torch.cat(some, dim=1) for some in zip(*told)))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the velocity; the second encoder learns from it too."""
        told = {"text": self.read(from_batch(batch, self.config.streams))}
        given = self.schedule, batch["z0"], batch["t"], batch["eps"]
        return diffusion.v_loss(lambda zt, t: self(zt, t, told), *given)


StructuredLDM.presets = {"tiny": StructuredLDMConfig()}


def start_from(model: StructuredLDM, text: T5Encoder) -> None:
    """Let the second encoder begin as the lower layers of one that can read."""
    mine, theirs = model.structure.state_dict(), text.state_dict()
    model.structure.load_state_dict({name: theirs[name] for name in mine})


class DualEncoder(nn.Module):
    """Both encoders as one: captions to the condition of `StructuredLDM`. Chapter 22.

    Args:
        text: the frozen encoder, with its tokenizer.
        unet: owns the second one.
        parser: makes the structured caption.
    """

    def __init__(self, text: T5Encoder, unet: StructuredLDM, parser: Parser = Parser()):
        super().__init__()
        self.text, self.unet, self.parser = text, unet, parser
        self.tokenizer = text.tokenizer

    def given(
        self, captions: list[str], generator: torch.Generator | None = None
    ) -> Conditions:
        """What `StructuredLDM.read` expects, for B captions."""
        parsed = [self.parser(x, generator) if x else "" for x in captions]
        ids, mask = self.tokenizer.encode(parsed, pad_to=PADDED)
        with torch.no_grad():
            told = self.text.encode(captions)
        return {"text": told, "structure": Context(ids[..., None], mask)}

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Context:
        """The joint condition (B, S, width) of B captions."""
        return self.unet.read(self.given(captions))


class StructuredClips(JoinedClips):
    """The batches of another source of joined clips, with parsed captions beside them.

    Args:
        clips: what draws sounds and captions.
        encoder: reads the captions twice; its parser may err.

    Chapter 22.
    """

    def __init__(self, clips: JoinedClips, encoder: DualEncoder):
        vars(self).update(vars(clips))
        self.pair, self.encoder = clips.pair, encoder
        self.empty = encoder.given([""])

    def read(
        self, captions: list[str], dropped: Tensor, generator: torch.Generator
    ) -> Conditions:
        """Both readings of the captions; of the dropped ones, nothing."""
        return drop(self.encoder.given(captions, generator), self.empty, dropped)


# --------------------------------------------------------------------------------------
# Weights and pipeline


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights, `out/vae` and `out/unet` in float16, and `out/pipeline.json`,
    which names the parts that are borrowed.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: of each of the two parts; None for those of the recipes.
        progress: show a bar for each part.
        weights: the folder whose text encoder and vocoder it uses.

    Raises:
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = None if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    text = load_part(weights, "text", torch.float32)
    vae = train_vae(seed, steps, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = StructuredLDM.preset("tiny")
    start_from(unet, text)
    clips = JoinedClips(text, vae, n=N_SOUNDS, seed=seed)
    batches = StructuredClips(clips, DualEncoder(text, unet))
    recipe = replace(RECIPE, steps=steps or RECIPE.steps)
    fit(unet, batches, recipe, seed, "make_an_audio_2", progress)
    with replacing_folder(out) as new:
        for name, model in (("vae", vae), ("unet", unet)):
            model.save_pretrained(new / name, dtype=torch.float16)
        there = {x: os.path.relpath(weights / x, out) for x in BORROWED}
        told = {"peer": "make_an_audio_2", "seconds": text_ldm.SECONDS, **there}
        (new / "pipeline.json").write_text(json.dumps(told, indent=1) + "\n")
    return out


class TextToAudio(text_ldm.TextToAudio):
    """The pipeline: caption -> parser -> both encoders -> diffusion -> 1-D VAE ->
    vocoder; it is called as `AudioLDM2` is.
    """

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextToAudio:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        seconds = read_json(folder / "pipeline.json").get("seconds", text_ldm.SECONDS)
        text, vocoder = (load_part(folder, x, torch.float32) for x in BORROWED)
        unet = StructuredLDM.from_pretrained(folder / "unet", dtype=torch.float32)
        vae = VAE1D.from_pretrained(folder / "vae", dtype=torch.float32)
        return cls(unet, DualEncoder(text, unet), vae, vocoder, SAMPLING, seconds)

    @torch.no_grad()
    def decode(self, z0: Tensor, n_samples: int) -> Tensor:
        """Latents (B, C, T/r, 1) to waveforms (B, N)."""
        return vocode(self.vocoder, self.vae.decode(z0))[:, :n_samples]
