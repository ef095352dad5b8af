"""The experiments of chapter 19: what residual and grouped quantisers keep, when groups
pay, what symbols save, and how much each kind of code tells of a sound.

Points of known structure come first. Then small codecs (300,000 weights) learn the
same 800 clips of SoundWorld, half of them spoken words. They are tested on clips that
they never heard, the words among them held out; the shipped judges, trained apart, and
a recogniser that nobody here trained say what is still there.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch
from effects import Claim, Measured, experiment
from torch import Tensor, nn

import minilib
from minilib import audio, judges
from minilib.cli import shipped_judge, shipped_weights
from minilib.codec import Codec, CodecConfig
from minilib.metrics.hearing import SpeechJudges
from minilib.quantise import GRVQ, RVQ, Quantised, perplexity
from minilib.soundworld import CLASSES, WORDS, SoundWorld, SpeechWorld
from minilib.soundworld.scene import Scene
from minilib.soundworld.talkers import TALKERS, known_talkers, say
from minilib.training import Recipe, fit
from minilib.voices import KnownVoices

# --------------------------------------------------------------------------------------
# Points of known structure

D = 16
K = 64  # codes in a codebook
KINDS = {"RVQ 4": (1, 4), "GRVQ 2 x 2": (2, 2), "RVQ 8": (1, 8)}  # groups, levels
POINTS = Recipe(steps=800, batch_size=256, lr=1e-2, warmup=20)


def quantiser(kind: str, seed: int, dim: int = D, n_codes: int = K) -> RVQ | GRVQ:
    """A quantiser of KINDS."""
    n_groups, n_levels = KINDS[kind]
    if n_groups == 1:
        return RVQ(n_levels, n_codes, dim, seed=seed)
    return GRVQ(n_groups, n_levels, n_codes, dim, seed=seed)


class Source:
    """Points (n, 16): each half on a curved surface of four dimensions of its own
    ("aligned"), the same turned ("rotated"), or a Gaussian whose dimensions are
    correlated ("gaussian").
    """

    def __init__(self, kind: str, seed: int):
        generator = torch.Generator().manual_seed(1000 + seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator)
        self.kind, self.generator = kind, generator
        self.first, self.second = 1.5 * draw(2, 4, 16), draw(2, 16, D // 2) / 4
        self.turn = torch.linalg.qr(draw(D, D))[0]
        self.scale = 0.7 ** torch.arange(D)

    def __call__(self, n: int) -> Tensor:
        """n points, of variance about 1 a dimension."""
        if self.kind == "gaussian":
            x = torch.randn(n, D, generator=self.generator) * self.scale
            return x @ self.turn * math.sqrt(D / float(self.scale.square().sum()))
        where = torch.rand(2, n, 4, generator=self.generator) * 2 - 1
        halves = (where @ self.first).tanh() @ self.second  # (2, n, 8)
        x = halves.transpose(0, 1).flatten(1)
        return x if self.kind == "aligned" else x @ self.turn


def turn() -> nn.Linear:
    """A linear map of points that changes nothing before it learns."""
    linear = nn.Linear(D, D, bias=False)
    nn.init.eye_(linear.weight)
    return linear


class Points(nn.Module):
    """Encoder, quantiser and decoder of points. Encoder and decoder are linear, since
    all they need to learn is to turn; those of a frozen one change nothing.
    """

    def __init__(self, kind: str, seed: int, frozen: bool):
        super().__init__()
        self.encoder = nn.Identity() if frozen else turn()
        self.quantiser = quantiser(kind, seed)
        self.decoder = nn.Identity() if frozen else turn()
        self.scale = nn.Parameter(torch.ones(1))  # so that there is something to learn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points, restored; their codes; the quantiser's loss."""
        made = self.quantiser(self.encoder(x))
        return self.decoder(made.vectors), made.codes, made.loss

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Squared error and the quantiser's loss."""
        restored, _, own = self(batch["x"])
        return (restored - batch["x"]).square().mean() + own + 0 * self.scale.sum()


def shared_bits(a: Tensor, b: Tensor, n_codes: int = K) -> float:
    """Mutual information of two series of codes (n,), in bits, less what shuffled
    codes appear to share.
    """

    def told(a: Tensor, b: Tensor) -> float:
        joint = torch.bincount(a * n_codes + b, minlength=n_codes**2).double()
        joint = (joint / joint.sum()).view(n_codes, n_codes)
        entropies = (torch.special.entr(p).sum() for p in (joint.sum(0), joint.sum(1)))
        return float(sum(entropies) - torch.special.entr(joint).sum()) / math.log(2)

    order = torch.randperm(len(b), generator=torch.Generator().manual_seed(0))
    return told(a, b) - told(a, b[order])


def learned(source: Source, kind: str, seed: int, frozen: bool, steps: int) -> Points:
    """Encoder, quantiser and decoder that have learned points of a source."""
    model, recipe = Points(kind, seed, frozen), replace(POINTS, steps=steps)
    fit(model, lambda generator: {"x": source(256)}, recipe, seed, progress=False)
    return model.eval()


def noise(restored: Tensor, x: Tensor) -> float:
    """The SNR of restored points in dB."""
    off = (restored - x).square().mean() / (x - x.mean(0)).square().mean()
    return -10 * math.log10(float(off))


@torch.no_grad()
def points(
    source: str, kind: str, seed: int, frozen: bool, steps: int = 800
) -> dict[str, float]:
    """The SNR of fresh points in dB, and what the first two codes share in bits; for
    groups also the SNR if they get dimensions of the latent at random, and new
    codebooks learn these.
    """
    draw = Source(source, seed)
    with torch.enable_grad():
        model = learned(draw, kind, seed, frozen, steps)
    x = draw(40_000)
    restored, codes, _ = model(x)
    found = {"snr": noise(restored, x), "shared": shared_bits(*codes.T[:2])}
    order = torch.randperm(D, generator=torch.Generator().manual_seed(seed))
    fresh = quantiser(kind, seed).train()
    for _ in range(200):
        fresh(model.encoder(draw(1024))[:, order])
    z = fresh.eval()(model.encoder(x)[:, order]).vectors[:, order.argsort()]
    return {**found, "dealt": noise(model.decoder(z), x)}


SNR = {"unit": "signal to noise in dB"}


@experiment(
    Claim(
        "frozen_factors",
        "at equal bits, groups help points as they are only if the two factors lie in "
        "the two halves",
        holds=lambda x: (
            x["in halves, GRVQ 2 x 2"] > x["in halves, RVQ 4"] + 1
            and x["turned, GRVQ 2 x 2"] < x["turned, RVQ 4"] - 1
        ),
        control="turned, GRVQ 2 x 2",
        **SNR,
    ),
    Claim(
        "joint_factors",
        "an encoder that learns with the quantiser makes groups win at equal bits for "
        "turned factors as well; 4 codebooks do not match 8",
        holds=lambda x: x["RVQ 4"] + 1 < x["GRVQ 2 x 2"] < x["RVQ 8"],
        control="GRVQ 2 x 2, shuffled halves",
        **SNR,
    ),
    Claim(
        "joint_gaussian",
        "without factors, groups hardly differ from RVQ at equal bits if the encoder "
        "learns too",
        holds=lambda x: abs(x["GRVQ 2 x 2"] - x["RVQ 4"]) < 1,
        **SNR,
    ),
    Claim(
        "factors_shared",
        "the learned encoder takes away more than half of what the two groups share",
        "bits that the groups' first codes share",
        lambda x: x["turned, learned"] < 0.5 * x["turned, as they are"],
        control="turned, as they are",
        chance=0.0,
        ceiling=math.log2(K),
    ),
)
def factors(seed: int) -> Measured:
    """RVQ and GRVQ on points with two factors and on Gaussian ones."""
    found: Measured = {"frozen_factors": {}, "joint_factors": {}, "joint_gaussian": {}}
    shared = found["factors_shared"] = {}
    for source, said in (("aligned", "in halves"), ("rotated", "turned")):
        for kind in ("RVQ 4", "GRVQ 2 x 2"):
            made = points(source, kind, seed, True)
            found["frozen_factors"][f"{said}, {kind}"] = made["snr"]
            if kind != "RVQ 4":
                shared[f"{said}, as they are"] = made["shared"]
    for kind in KINDS:
        made = points("rotated", kind, seed, False)
        found["joint_factors"][kind] = made["snr"]
        if kind == "GRVQ 2 x 2":
            shared["turned, learned"] = made["shared"]
            dealt = made["dealt"]
        gaussian = points("gaussian", kind, seed, False)
        found["joint_gaussian"][kind] = gaussian["snr"]
    # the control: the learned latent, its dimensions dealt to the groups at random
    found["joint_factors"]["GRVQ 2 x 2, shuffled halves"] = dealt
    return found


# --------------------------------------------------------------------------------------
# Sounds

SECONDS = 1.28
FRAMES = 64  # of the log-mel in a training example
EACH = 400, 48  # clips of either world: to learn from, and to test
SIZES = {"width": 96, "n_layer": 2}
CODEC = Recipe(steps=200, batch_size=16, lr=2e-3, warmup=20)
LONG = Recipe(steps=400, batch_size=16, lr=2e-3, warmup=20)
KEEP = torch.tensor([1, 2, 4, 8])  # codebooks that quantiser dropout may keep


@cache
def phonemes() -> dict[str, int]:
    """Numbers of the symbols: 0 for silence, phonemes, then classes of sounds."""
    scenes = (world(0, "speech").scene(i) for i in range(EACH[0]))
    names = {p.symbol for scene in scenes for p in scene.events[0].phonemes}
    return {name: i for i, name in enumerate(["", *sorted(names), *CLASSES])}


@cache
def world(split: int, kind: str) -> SoundWorld:
    """What the clips come from: to learn from (0), or to test (1)."""
    name = ("train", "test")[split]
    if kind == "speech":
        return SpeechWorld(name, 0, SECONDS, (1,), others=0.0 if split else 0.7)
    return SoundWorld(name, 0, SECONDS, pairs=0.0)


def symbols(scene: Scene, M: int) -> Tensor:
    """What is said or heard in each of M frames of a codec (50 a second): (M,)."""
    told, (event,) = torch.zeros(M, dtype=torch.long), scene.events
    pieces = getattr(event, "phonemes", None)
    spans = [(event.name, event.onset, event.end)]
    if pieces is not None:
        spans = [(p.symbol, p.start, p.end) for p in pieces]
    for name, start, end in spans:
        told[round(start * 50) : round(end * 50)] = phonemes().get(name, 0)
    return told


@cache
def clips(split: int) -> SimpleNamespace:
    """Spoken words, then other sounds: `mel` (n, 1, T, F), `symbols` (n, M), `scenes`,
    `waves` (n, N).
    """
    waves, scenes = [], []
    for kind in ("speech", "sounds"):
        of, i = world(split, kind), 0
        while len(waves) < EACH[split] * (1 + (kind == "sounds")):
            scene = of.scene(i)
            # of sounds to test on, those that have a pitch
            if not split or kind == "speech" or scene.events[0].pitch:
                waves.append(of[i].wave)
                scenes.append(scene)
            i += 1
    waves = torch.stack(waves)
    mel = torch.cat([audio.log_mel(x) for x in waves.split(64)])
    told = torch.stack([symbols(scene, mel.shape[2] // 2) for scene in scenes])
    return SimpleNamespace(mel=mel, symbols=told, scenes=scenes, waves=waves)


class Open(nn.Module):
    """No quantiser at all."""

    n_codebooks = 0

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Quantised:
        """The vectors as they are."""
        return Quantised(x, x.new_zeros(*x.shape[:-1], 0).long(), x.new_zeros(()))


@cache
def codec(
    seed: int, n_groups: int = 1, n_levels: int = 8, n_codes: int = K,
    dropout: bool = False, told: str = "", recipe: Recipe = CODEC, rounds: int = 10,
    restart: float = 0.1,
) -> Codec:  # fmt: skip
    """A small codec, trained. No levels: no quantiser. told: its semantic residual is
    given the "right" symbols, those of an "other" clip, or ("") has none.
    """
    torch.manual_seed(seed)
    n_symbols = len(phonemes()) if told else 0
    model = Codec(CodecConfig(
        **SIZES, n_groups=n_groups, n_levels=max(1, n_levels), n_codes=n_codes,
        n_symbols=n_symbols, restart=restart,
    ))  # fmt: skip
    if not n_levels:
        model.quantiser = Open()
    for rvq in getattr(model.quantiser, "groups", [model.quantiser]):
        rvq.rounds = rounds
    heard, Q = clips(0), n_groups * n_levels

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        B = recipe.batch_size
        rows = torch.randint(len(heard.mel), (B,), generator=generator)
        starts = torch.randint(
            (heard.mel.shape[2] - FRAMES) // 2 + 1, (B,), generator=generator
        )
        cut = [heard.mel[r, :, 2 * s :][:, :FRAMES] for r, s in zip(rows, starts)]
        batch = {"mel": torch.stack(cut)}
        if dropout:
            some = KEEP[Q >= KEEP]
            which = torch.randint(len(some), (B,), generator=generator)
            batch["keep"] = some[which]
        if told:
            other = rows if told == "right" else rows.roll(1)
            said = [heard.symbols[r, s:][: FRAMES // 2] for r, s in zip(other, starts)]
            batch["symbols"] = torch.stack(said)
        return batch

    fit(model, draw, recipe, seed, progress=False)
    return model.eval()


@torch.no_grad()
def restored(model: Codec, n: int | None = None, told: str = "") -> Tensor:
    """The test clips (n, 1, T, F) from the first n codes of each frame."""
    heard, said = clips(1), None
    if told:
        said = heard.symbols if told == "right" else heard.symbols.roll(1, dims=0)
    if isinstance(model.quantiser, Open):
        return model(heard.mel).mel
    return model.decode(model.encode(heard.mel, said)[..., :n], said)


def error(mel: Tensor) -> float:
    """Mean absolute error of the test clips in decibels."""
    return float(audio.decibels((mel - clips(1).mel).abs().mean()))


def used(model: Codec) -> float:
    """Codes in use, in effect, in the mean over the codebooks."""
    codes = model.encode(clips(1).mel)
    each = [perplexity(c, model.config.n_codes) for c in codes.unbind(-1)]
    return float(torch.stack(each).mean())


DB = {"unit": "mean error in dB"}


@experiment(
    Claim(
        "starts",
        "codebooks that start from clusters, and codes that start again, restore "
        "better",
        holds=lambda x: (
            x["both"] < x["no clusters, no restarts"]
            and x["no clusters"] < x["no clusters, no restarts"]
        ),
        control="no clusters, no restarts",
        **DB,
    ),
    Claim(
        "starts_used",
        "without clusters and restarts, few codes are in use",
        "codes in use, in effect, mean of 8 codebooks",
        lambda x: x["no clusters, no restarts"] < 0.5 * x["both"],
        control="no clusters, no restarts",
        chance=1.0,
        ceiling=float(K),
    ),
)
def starts(seed: int) -> Measured:
    """RVQ with and without its remedies."""
    arms = {
        "both": {},
        "no clusters": {"rounds": 0},
        "no restarts": {"restart": 0.0},
        "no clusters, no restarts": {"rounds": 0, "restart": 0.0},
    }
    made = {name: codec(seed, **how) for name, how in arms.items()}
    return {
        "starts": {name: error(restored(x)) for name, x in made.items()},
        "starts_used": {name: used(x) for name, x in made.items()},
    }


@experiment(
    Claim(
        "dropout",
        "one codec trained with dropout comes close to a codec of its own for each "
        "number of codebooks; one trained without cannot be cut short",
        holds=lambda x: (
            all(x[f"{n}: dropout"] < x[f"{n}: own codec"] + 0.5 for n in (1, 2, 4))
            and x["1: cut short"] > x["1: dropout"] + 1
        ),
        control="1: cut short",
        **DB,
    )
)
def dropout(seed: int) -> Measured:
    """The first n of 8 codebooks, n = 1, 2, 4, 8."""
    whole, dropped, arms = codec(seed), codec(seed, dropout=True), {}
    for n in KEEP.tolist():
        arms[f"{n}: own codec"] = error(restored(codec(seed, n_levels=n)))
        arms[f"{n}: dropout"] = error(restored(dropped, n))
        if n < 8:
            arms[f"{n}: cut short"] = error(restored(whole, n))
    return {"dropout": arms}


@experiment(
    Claim(
        "mels",
        "at 24 bits a frame, groups lose to RVQ on log-mels, though encoder and "
        "quantiser learn together",
        holds=lambda x: x["RVQ 4 x 64"] < x["GRVQ 2 x 2 x 64"],
        control="no bits: the mean frame",
        **DB,
    ),
    Claim(
        "frozen_mels",
        "in the latent of an encoder that never met a quantiser, groups lose too",
        holds=lambda x: x["RVQ 4 x 64"] < x["GRVQ 2 x 2 x 64"],
        **DB,
    ),
    Claim(
        "mels_shared",
        "the groups of a codec of log-mels share bits, learned together or not",
        "bits that the groups' first codes share",
        lambda x: min(x["learned together"], x["frozen encoder"]) > 0.5,
        chance=0.0,
        ceiling=math.log2(K),
    ),
)
def mels(seed: int) -> Measured:
    """Quantisers of 24 bits a frame on log-mels."""
    sizes = {
        "GRVQ 2 x 2 x 64": (2, 2, 64),
        "GRVQ 4 x 1 x 64": (4, 1, 64), "RVQ 8 x 8": (1, 8, 8),
    }  # fmt: skip
    plain = codec(seed, n_levels=0)
    joint = {"RVQ 4 x 64": codec(seed, n_levels=4)}
    joint |= {name: codec(seed, *size) for name, size in sizes.items()}
    arms = {name: error(restored(model)) for name, model in joint.items()}
    mean = clips(0).mel.mean(dim=(0, 2), keepdim=True).expand_as(clips(1).mel)
    arms |= {"not quantised": error(restored(plain)), "no bits: the mean frame": 0.0}
    arms["no bits: the mean frame"] = error(mean)
    frozen, dim = {}, plain.config.dim
    with torch.no_grad():
        rows = plain.latent(clips(0).mel).flatten(0, 1)
        z = plain.latent(clips(1).mel)
        for kind in ("RVQ 4", "GRVQ 2 x 2"):
            learned = quantiser(kind, seed, dim).train()
            draw = torch.Generator().manual_seed(seed)
            for _ in range(200):
                some = torch.randint(len(rows), (2048,), generator=draw)
                learned(rows[some])
            made = learned.eval()(z)
            frozen[f"{kind} x 64"] = error(plain.restore(made.vectors))
        many = learned.encode(rows).unbind(-1)
        together = joint["GRVQ 2 x 2 x 64"].encode(clips(0).mel).flatten(0, 1)
    return {
        "mels": arms,
        "frozen_mels": frozen,
        "mels_shared": {
            "frozen encoder": shared_bits(many[0], many[1]),
            "learned together": shared_bits(together[:, 0], together[:, 1]),
        },
    }


def symbol_bits() -> float:
    """Bits a frame that the symbols of the test clips cost if each is told by the
    one before, with probabilities counted in the training clips.
    """
    S = len(phonemes())
    pairs = lambda told: (told[:, :-1] * S + told[:, 1:]).flatten()
    counts = torch.bincount(pairs(clips(0).symbols), minlength=S * S).view(S, S) + 0.1
    cost = -(counts / counts.sum(dim=1, keepdim=True)).log2().flatten()
    return float(cost[pairs(clips(1).symbols)].mean())


@experiment(
    Claim(
        "semantic",
        "what symbols say need not be quantised: the gain is largest with few "
        "codebooks and fades with many",
        "dB less error than the plain codec with as many codebooks",
        lambda x: x["1"] > 0.3 and x["1"] > x["2"] > x["8"],
        control="1, another clip's symbols",
        chance=0.0,
    ),
    Claim(
        "semantic_counted",
        "if the bits of the symbols are counted, the gain shrinks",
        "dB less error than the plain codec at as many bits",
        lambda x: all(x[n] < x["uncounted, " + n] for n in ("1", "2", "4")),
    ),
    Claim(
        "symbol_bits",
        "the symbols of a frame cost fewer bits than a code",
        "bits a frame",
        lambda x: x["a symbol, told by the one before"] < x["a code"],
    ),
)
def semantic(seed: int) -> Measured:
    """FunCodec's semantic residual: V_s, and what it leaves."""
    plain = codec(seed, dropout=True)
    right = codec(seed, dropout=True, told="right")
    other = codec(seed, dropout=True, told="other")
    bits, steps = symbol_bits(), list(range(1, 9))
    curve = [error(restored(plain, n)) for n in steps]
    gains, counted = {}, {}
    for n in KEEP.tolist():
        now = error(restored(right, n, "right"))
        gains[str(n)] = curve[n - 1] - now
        if n < 8:
            at = n + bits / math.log2(K)  # codebooks that cost as many bits
            counted[str(n)] = float(np.interp(at, steps, curve)) - now
            counted[f"uncounted, {n}"] = gains[str(n)]
    wrong = error(restored(other, 1, "other"))
    gains["1, another clip's symbols"] = curve[0] - wrong
    return {
        "semantic": gains,
        "semantic_counted": counted,
        "symbol_bits": {
            "a symbol, told by the one before": bits, "a code": math.log2(K),
        },
    }  # fmt: skip


# --------------------------------------------------------------------------------------
# What is kept


@cache
def pipeline(name: str) -> minilib.AudioLDM2:
    """A pipeline that ships."""
    folder = shipped_weights().parent / name
    return minilib.AudioLDM2.from_pretrained(folder, device="cpu")


@cache
def speech_judges() -> SpeechJudges:
    """The judges of words and voices."""
    return SpeechJudges.load(shipped_judge().parent)


@torch.no_grad()
def from_loa(seed: int) -> tuple[Tensor, float]:
    """What diffusion makes from the true LOA of the test clips, (n, N), and the
    numbers that an LOA has a second.
    """
    heard, made, numbers = clips(1), [], []
    for name, waves in zip(("speech", "tiny"), heard.waves.split(EACH[1])):
        pipe = pipeline(name)
        n = waves.shape[1]
        mel = audio.log_mel(nn.functional.pad(waves, (0, pipe.n_samples() - n)))
        reader = getattr(pipe, "columns", None)
        loa = reader.loa(pipe.audiomae, mel) if reader else pipe.audiomae.loa(mel)
        numbers.append(loa[0].numel() / pipe.seconds)
        for some in loa.split(16):
            empty = pipe.encode([""] * len(some))
            told = {**empty, "loa": pipe.loa_of_negative(empty, pipe.sampling)}
            generator = torch.Generator().manual_seed(seed)
            latents = pipe.noise(len(some), pipe.n_samples(), generator=generator)
            z0 = pipe.sample(some, empty, None, told, latents)
            made.append(pipe.decode(z0, pipe.n_samples())[:, :n])
    return torch.cat(made), sum(numbers) / len(numbers)


def kept(mel: Tensor | None, waves: Tensor | None = None) -> dict[str, float]:
    """The shares of words, voices and pitches that are still right in log-mels or
    sounds of the test clips, and the error in dB.
    """
    scenes, n = clips(1).scenes, EACH[1]
    if waves is None:
        with torch.no_grad():
            waves = pipeline("tiny").vocoder.wave(mel)
    mel = audio.log_mel(waves) if mel is None else mel
    heard = speech_judges().heard(waves[:n])
    spoken = [scene.events[0] for scene in scenes[:n]]
    right = {
        "words": [h == e.words[0] for h, e in zip(heard["word"], spoken)],
        "voice": [h == e.voice for h, e in zip(heard["voice"], spoken)],
        "pitch": [
            judges.answers(wave, scene.events[0])["pitch"]
            for wave, scene in zip(waves[n:], scenes[n:])
        ],
    }
    shares = {name: sum(map(float, x)) / len(x) for name, x in right.items()}
    return {**shares, "error": error(mel)}


@torch.no_grad()
def vae_bits() -> float:
    """Kilobits a second that the shipped VAE's latent of the test clips holds: its KL
    from the prior.
    """
    mean, log_variance = pipeline("tiny").vae.moments(clips(1).mel)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3))
    return float(kl.mean()) / math.log(2) / SECONDS / 1000


@cache
def shipped_codec() -> Codec:
    """The codec that ships."""
    folder = shipped_weights().parent / "peers" / "codec" / "codec"
    return Codec.from_pretrained(folder, dtype=torch.float32).eval()


def kilobits(bits_a_frame: float) -> float:
    """Kilobits a second of a codec with 50 frames a second."""
    return bits_a_frame * 50 / 1000


SHARE = {"ceiling": 1.0, "holds": lambda x: x["RVQ 4"] > x["RVQ 1"]}


def by_measure(
    prefix: str, found: dict[str, dict[str, float]], bits: dict[str, float]
) -> Measured:
    """What was found for each arm, as effects: measure -> arm -> value."""
    shown = {
        f"{prefix}_{name}": {arm: x[name] for arm, x in found.items()}
        for name in ("words", "voice", "pitch", "error")
    }
    return {**shown, f"{prefix}_bits": bits}


@experiment(
    Claim(
        "kept_words", "more codes keep more words", "share of 48 words",
        chance=1 / 60, control="no sound", **SHARE,
    ),
    Claim(
        "kept_voice", "more codes keep more of the voice", "share of 48 voices",
        chance=1 / 8, control="no sound", **SHARE,
    ),
    Claim(
        "kept_pitch", "more codes keep more pitches", "share of 48 sounds",
        chance=1 / 3, control="no sound", **SHARE,
    ),
    Claim(
        "kept_error", "more codes leave less error", "mean error in dB",
        lambda x: x["RVQ 8"] < x["RVQ 4"] < x["RVQ 1"], control="no sound",
    ),
    Claim(
        "kept_bits", "what is kept costs bits", "kilobits a second",
        lambda x: x["RVQ 8"] > x["RVQ 4"] > x["RVQ 1"],
    ),
)  # fmt: skip
def codes_kept(seed: int) -> Measured:
    """What is left of the test clips in one large codebook, and in 1 to 8 codes."""
    bits, found = {"no sound": 0.0}, {}
    found["no sound"] = kept(torch.full_like(clips(1).mel, math.log(1e-5)))
    vq = codec(seed, n_levels=1, n_codes=1024, recipe=LONG)
    bits["VQ 1024"], found["VQ 1024"] = kilobits(10), kept(restored(vq))
    rvq = codec(seed, dropout=True, recipe=LONG)
    for q in KEEP.tolist():
        bits[f"RVQ {q}"] = kilobits(6 * q)
        found[f"RVQ {q}"] = kept(restored(rvq, q))
    return by_measure("kept", found, bits)


LIKELY = {"ceiling": 1.0, "holds": lambda x: x["symbols + RVQ 1"] > x["wrong symbols"]}


@experiment(
    Claim(
        "others_words", "symbols keep words if they are the right ones",
        "share of 48 words", chance=1 / 60, control="wrong symbols", **LIKELY,
    ),
    Claim(
        "others_voice", "with one code, voices need the right symbols",
        "share of 48 voices", chance=1 / 8, control="wrong symbols", **LIKELY,
    ),
    Claim(
        "others_pitch", "with one code, pitches need the right symbols",
        "share of 48 sounds", chance=1 / 3, control="wrong symbols", **LIKELY,
    ),
    Claim(
        "others_error", "wrong symbols cost decibels", "mean error in dB",
        lambda x: x["wrong symbols"] > x["symbols + RVQ 1"] + 1,
        control="wrong symbols",
    ),
    Claim(
        "others_bits", "the symbols add less than a code", "kilobits a second",
        lambda x: x["symbols + RVQ 1"] < 2 * kilobits(6),
    ),
)  # fmt: skip
def others_kept(seed: int) -> Measured:
    """What is left of the test clips with groups, and with symbols."""
    bits, found = {}, {}
    grvq = codec(seed, 2, 4, dropout=True, recipe=LONG)
    for q in (4, 8):
        bits[f"GRVQ {q}"] = kilobits(6 * q)
        found[f"GRVQ {q}"] = kept(restored(grvq, q))
    told = codec(seed, dropout=True, told="right", recipe=LONG)
    for q in (1, 4):
        bits[f"symbols + RVQ {q}"] = kilobits(6 * q + symbol_bits())
        found[f"symbols + RVQ {q}"] = kept(restored(told, q, "right"))
    # the control: codes and symbols of a clip, decoded with those of another
    heard = clips(1)
    with torch.no_grad():
        codes = told.encode(heard.mel, heard.symbols)[..., :1]
        wrong = told.decode(codes, heard.symbols.roll(1, dims=0))
    bits["wrong symbols"] = bits["symbols + RVQ 1"]
    found["wrong symbols"] = kept(wrong)
    return by_measure("others", found, bits)


WHOLE = {
    "ceiling": 1.0,
    "holds": lambda x: min(x["latent"], x["LOA"]) > x["no sound"] + 0.2,
}


@experiment(
    Claim(
        "features_words", "continuous features keep words", "share of 48 words",
        chance=1 / 60, control="no sound", **WHOLE,
    ),
    Claim(
        "features_voice", "continuous features keep the voice", "share of 48 voices",
        chance=1 / 8, control="no sound", **WHOLE,
    ),
    Claim(
        "features_pitch", "continuous features keep pitches", "share of 48 sounds",
        chance=1 / 3, control="no sound", **WHOLE,
    ),
    Claim(
        "features_error", "the latent leaves less error than the LOA",
        "mean error in dB", lambda x: x["latent"] < x["LOA"], control="no sound",
    ),
    Claim(
        "features_bits",
        "written as numbers of 16 bits, the features cost far more than codes do, and "
        "most bits of the latent say nothing: its KL is small",
        "kilobits a second",
        lambda x: (
            min(x["latent, 16 bits a number"], x["LOA, 16 bits a number"])
            > 5 * kilobits(48)
            and x["latent, by its KL"] < 0.2 * x["latent, 16 bits a number"]
        ),
    ),
)  # fmt: skip
def features_kept(seed: int) -> Measured:
    """What is left of the test clips in the features that AudioLDM 2 keeps real, and
    in the codes of the codec that ships, which learned for minutes as they did.
    """
    bits, found = {}, {}
    found["no sound"] = kept(torch.full_like(clips(1).mel, math.log(1e-5)))
    with torch.no_grad():
        latent = pipeline("tiny").reconstruct(clips(1).mel)
    shipped = shipped_codec()
    for q in KEEP.tolist():
        found[f"shipped RVQ {q}"] = kept(restored(shipped, q))
        bits[f"shipped RVQ {q}"] = shipped.config.kbit_per_second * q / 8
    found["latent"] = kept(latent)
    waves, numbers = from_loa(seed)
    found["LOA"], found["log-mel"] = kept(None, waves), kept(clips(1).mel)
    of_latent = pipeline("tiny").vae.encode(clips(1).mel)[0].numel() / SECONDS
    bits["latent, by its KL"] = vae_bits()
    bits["latent, 16 bits a number"] = of_latent * 16 / 1000
    bits["LOA, 16 bits a number"] = numbers * 16 / 1000
    bits["log-mel, 16 bits a number"] = 100 * 64 * 16 / 1000
    return by_measure("features", found, bits)


# --------------------------------------------------------------------------------------
# Two domains

TRAINED = 10.0  # seconds of training for each
STRIDES = 5, 4, 4, 4  # 320 samples: 50 frames a second


class TimeCodec(nn.Module):
    """A codec of the waveform: convolutions along time (SoundStream's form)."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        widths, down, up = (16, 32, 64, 96), [], []
        n_in = 1
        for n_out, s in zip(widths, STRIDES):
            around = {"kernel_size": 2 * s, "stride": s, "padding": (s + 1) // 2}
            more = {"output_padding": s % 2}
            down += [nn.Conv1d(n_in, n_out, **around), nn.ELU()]
            last = nn.ConvTranspose1d(n_out, n_in, **around, **more)
            up = [last, *up] if n_in == 1 else [last, nn.ELU(), *up]
            n_in = n_out
        self.down = nn.Sequential(*down, nn.Conv1d(n_in, 32, 3, padding=1))
        self.up = nn.Sequential(nn.Conv1d(32, n_in, 3, padding=1), nn.ELU(), *up)
        self.quantiser = RVQ(8, K, 32, seed=seed)

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Waves (B, N), restored, and the quantiser's loss."""
        made = self.quantiser(self.down(wave[:, None]).transpose(1, 2))
        return self.up(made.vectors.transpose(1, 2))[:, 0], made.loss

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """L1 of the wave and of the log-mel, and the quantiser's loss."""
        restored, own = self(batch["wave"])
        wave = (restored - batch["wave"]).abs().mean()
        mel = audio.log_mel(restored) - audio.log_mel(batch["wave"])
        return 10 * wave + mel.abs().mean() + own


class FrequencyCodec(TimeCodec):
    """A codec of log-magnitude and phase: convolutions over time and frequency
    (FreqCodec's form, 2309.07405 §2.2).
    """

    def __init__(self, seed: int):
        super().__init__(seed)
        widths, down, up = (3, 12, 24, 48), [], []
        for n_in, n_out, s in zip(widths, widths[1:], (1, 1, 2)):
            around = dict(kernel_size=(2 + s, 8), stride=(s, 4), padding=(1, 2))
            down += [nn.Conv2d(n_in, n_out, **around), nn.ELU()]
            last = nn.ConvTranspose2d(n_out, n_in, **around)
            up = [last, *up] if n_in == 3 else [last, nn.ELU(), *up]
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)
        self.to_latent, self.from_latent = nn.Linear(192, 32), nn.Linear(32, 192)
        self.register_buffer("window", torch.hann_window(512))

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Waves (B, N), restored, and the quantiser's loss."""
        how = {"n_fft": 512, "hop_length": 160, "window": self.window}
        spec = torch.stft(wave, **how, return_complex=True)[:, :256, :-1]  # (B, 256, T)
        magnitude = spec.abs().clamp_min(1e-5)
        phase = spec / magnitude
        x = torch.stack([magnitude.log() / 3 + 1, phase.real, phase.imag], dim=1)
        x = self.down(x.transpose(2, 3))  # (B, 48, M, 4)
        made = self.quantiser(self.to_latent(x.transpose(1, 2).flatten(2)))
        x = self.from_latent(made.vectors).view(*made.vectors.shape[:2], 48, 4)
        x = self.up(x.transpose(1, 2)).transpose(2, 3)  # (B, 3, 256, T)
        turned = torch.complex(x[:, 1], x[:, 2])
        spec = (3 * (x[:, 0] - 1)).clamp(-12, 6).exp() * turned
        spec = spec / turned.abs().clamp_min(1e-3)
        spec = nn.functional.pad(spec, (0, 1, 0, 1))
        return torch.istft(spec, **how, length=wave.shape[1]), made.loss


def trained_for(model: nn.Module, seed: int) -> tuple[nn.Module, int]:
    """Train for about TRAINED seconds of this machine; the model, and the steps."""
    waves, n = clips(0).waves, FRAMES * audio.HOP

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(waves), (8,), generator=generator)
        starts = torch.randint(waves.shape[1] - n + 1, (8,), generator=generator)
        cut = [waves[i, s : s + n] for i, s in zip(rows, starts)]
        return {"wave": torch.stack(cut)}

    probe, generator = model.train(), torch.Generator().manual_seed(seed)
    state = {name: x.clone() for name, x in probe.state_dict().items()}
    probe.loss(draw(generator)).backward()  # the first step is slow
    began = time.process_time()
    for _ in range(5):
        probe.loss(draw(generator)).backward()
    each = (time.process_time() - began) / 5
    model.load_state_dict(state)
    model.zero_grad()
    steps = max(20, round(TRAINED / (1.15 * each)))
    recipe = Recipe(steps=steps, batch_size=8, lr=2e-3, warmup=20)
    fit(model, draw, recipe, seed, progress=False)
    return model.eval(), steps


@experiment(
    Claim(
        "domains",
        "after ten seconds of training each, a codec of magnitude and phase restores "
        "better than one of the wave; a codec of log-mels, 200 steps, does better with "
        "a vocoder trained before",
        "mean error of the log-mel in dB",
        lambda x: (
            x["log-mel and vocoder"] < x["frequency"]
            and x["frequency"] < min(x["time"], x["no bits: the mean frame"])
        ),
        control="no bits: the mean frame",
    ),
    Claim(
        "domain_weights",
        "the codec of magnitude and phase has fewer weights",
        "thousands of weights, without codebooks",
        lambda x: x["frequency"] < x["time"],
    ),
    Claim(
        "domain_waves",
        "the codec of the wave is nearer to the samples of the wave",
        "signal to noise of the wave in dB",
        lambda x: x["time"] > max(x["frequency"], x["silence"]),
        control="silence",
    ),
    Claim(
        "domain_steps",
        "both codecs take more than a hundred steps in ten seconds",
        "steps",
        lambda x: min(x["time"], x["frequency"]) > 100,
    ),
)
def domains(seed: int) -> Measured:
    """A codec of the wave and one of its spectrum, 48 bits a frame both."""
    shown: dict[str, float] = {}
    weights: dict[str, float] = {}
    steps: dict[str, float] = {}
    near, x = {"silence": 0.0}, clips(1).waves
    for name, kind in (("time", TimeCodec), ("frequency", FrequencyCodec)):
        model, steps[name] = trained_for(kind(seed), seed)
        with torch.no_grad():
            wave = model(x)[0]
        shown[name] = error(audio.log_mel(wave))
        off = (wave - x).square().mean() / x.square().mean()
        near[name] = -10 * math.log10(float(off))
        own = [p.numel() for p in model.parameters() if p.requires_grad]
        weights[name] = sum(own) / 1000
    mel = restored(codec(seed))
    with torch.no_grad():
        wave = pipeline("tiny").vocoder.wave(mel)
    shown["log-mel and vocoder"] = error(audio.log_mel(wave))
    mean = clips(0).mel.mean(dim=(0, 2), keepdim=True).expand_as(clips(1).mel)
    shown["no bits: the mean frame"] = error(mean)
    return {
        "domains": shown, "domain_weights": weights, "domain_waves": near,
        "domain_steps": steps,
    }  # fmt: skip


# --------------------------------------------------------------------------------------
# The codec that ships, in the forty voices of its training


def through(waves: Tensor, n: int = 0) -> Tensor:
    """Waves (B, N) through n codebooks of the shipped codec and the vocoder; for 0
    through the vocoder alone.
    """
    mel = audio.log_mel(waves)
    if n:
        mel = shipped_codec().decode(shipped_codec().encode(mel)[..., :n])
    return pipeline("tiny").vocoder.wave(mel)


@cache
def talkers_judge() -> KnownVoices:
    """The judge of the forty, who knows them by the vocoder as well."""
    return known_talkers(through)


RISES = {"ceiling": 1.0, "holds": lambda x: x["8"] > x["4"] > x["1"] > x["another's"]}


@experiment(
    Claim(
        "talkers_words", "more codebooks keep more words", "share of 96 words",
        chance=1 / 60, control="another's", **RISES,
    ),
    Claim(
        "talkers_variant", "more codebooks keep more of the voice",
        "share of 96 variants, of ten", chance=1 / 10, control="another's", **RISES,
    ),
    Claim(
        "talkers_voice", "more codebooks keep more of voice and pitch",
        "share of 96 voices, of forty", chance=1 / 40, control="another's", **RISES,
    ),
)  # fmt: skip
@torch.no_grad()
def talkers(seed: int) -> Measured:
    """Words that the shipped codec never learned, in the voices that it did."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(96):
        pairs.append((WORDS[i % len(WORDS)], TALKERS[int(rng.integers(len(TALKERS)))]))
    real = torch.stack([say(word, talker, rng) for word, talker in pairs])
    sounds = {str(n): through(real, n) for n in KEEP.tolist()}
    sounds |= {"another's": sounds["8"].roll(1, dims=0)}
    sounds |= {"vocoder alone": through(real), "as they are": real}
    found: Measured = {"talkers_words": {}, "talkers_variant": {}, "talkers_voice": {}}
    share = lambda right: sum(right) / len(pairs)
    for arm, waves in sounds.items():
        words = [speech_judges().recogniser(wave) for wave in waves]
        voices = talkers_judge().hear(waves)
        both = list(zip(pairs, words, voices, strict=True))
        said = share(word == w for (w, _), word, _ in both)
        known = share(voice.split()[0] == t.variant for (_, t), _, voice in both)
        found["talkers_words"][arm], found["talkers_variant"][arm] = said, known
        same = share(voice == t.name for (_, t), _, voice in both)
        found["talkers_voice"][arm] = same
    return found
