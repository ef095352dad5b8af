"""What chapter 09 measures: what AudioMAE learns by filling in, and what the Language
of Audio keeps.

Sweeps train a small encoder for a few hundred steps; everything else reads the weights
that ship. Clips of one event stand for the sounds whose description says all.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from effects import Claim, Measured, experiment
from torch import Tensor

from minilib import audio
from minilib.audiomae import AudioMAE, pool_patches, random_mask
from minilib.cli import shipped_weights
from minilib.folders import Stored
from minilib.soundworld import SoundWorld
from minilib.soundworld.effects import CLASSES
from minilib.soundworld.scene import ONSET, Scene, draw_event
from minilib.training import Recipe, fit

LABELS = 4  # of each class, that a probe learns from
WIDTH = 64  # numbers that a probe reads of a clip
RIDGE = 0.1  # of the regressions, in units of the variance of what they read
LAMBDAS = (1, 2, 4, 8)
RATIOS = (0.25, 0.5, 0.8, 0.95)
# of training for each share that is hidden: fewer visible patches make faster steps,
# and all trainings take about as long
STEPS = {0.0: 210, 0.25: 260, 0.5: 320, 0.8: 500, 0.95: 630}
N_TRAIN = 600  # clips on which the maps to and from the LOA are fitted
# what a probe of the class is measured by
READ = {
    "unit": "share of clips whose class is read right",
    "chance": 1 / len(CLASSES),
    "ceiling": 1.0,
}
SMALL = dict(
    hidden_size=96, num_hidden_layers=3, num_attention_heads=4,
    decoder_hidden_size=64, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
)  # fmt: skip


def rises(values: list[float]) -> bool:
    """Whether each value is larger than the one before."""
    return all(a < b for a, b in itertools.pairwise(values))


@dataclass(frozen=True)
class Clips:
    """Clips of SoundWorld: log-mels (N, 1, T, F), captions and scenes."""

    mel: Tensor
    captions: list[str]
    scenes: list[Scene]

    @property
    def classes(self) -> Tensor:
        """Number of the class of each clip's first event, (N,)."""
        names = list(CLASSES)
        return torch.tensor([names.index(s.events[0].name) for s in self.scenes])


@cache
def clips(split: str, seed: int, n: int, pairs: float = 0.0) -> Clips:
    """The first n clips of a world that no shipped part has heard."""
    world = SoundWorld(split, seed=900 + seed, pairs=pairs)
    some = [world[i] for i in range(n)]
    mel = torch.cat([audio.log_mel(clip.wave[None]) for clip in some])
    return Clips(mel, [clip.caption for clip in some], [clip.scene for clip in some])


@cache
def shipped() -> Stored:
    """The parts that ship, in float32."""
    return Stored.from_pretrained(shipped_weights(), device="cpu")


def in_pieces(function, mel: Tensor) -> Tensor:
    """A function of log-mels, a few clips at a time."""
    with torch.no_grad():
        return torch.cat([function(piece) for piece in mel.split(32)])


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """The weights (D, K) of the linear regression of y (N, K) on x (N, D), both of mean
    zero.
    """
    penalty = RIDGE * len(x) * x.square().mean() * torch.eye(x.shape[1])
    return torch.linalg.solve(x.T @ x + penalty, x.T @ y)


def probed(features: Tensor, classes: Tensor, seed: int, shuffled=False) -> float:
    """Share of clips whose class a linear probe reads from WIDTH principal components
    of the features (N, D), after LABELS labels a class.
    """
    x = (features - features.mean(dim=0)) / features.std(dim=0)
    x = torch.nan_to_num(x)  # what never changes says nothing
    x = x @ torch.linalg.svd(x, full_matrices=False)[2][:WIDTH].T  # (N, WIDTH)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    of_class = [order[classes[order] == k] for k in classes.unique()]
    train = torch.cat([clip[:LABELS] for clip in of_class])
    test = torch.cat([clip[LABELS:] for clip in of_class])
    told = classes[train]
    if shuffled:
        told = told[
            torch.randperm(len(told), generator=torch.Generator().manual_seed(seed))
        ]
    wanted = F.one_hot(told, len(CLASSES)).float() - 1 / len(CLASSES)
    middle = x[train].mean(dim=0)
    scores = (x[test] - middle) @ ridge(x[train] - middle, wanted)  # (n, classes)
    return float((scores.argmax(dim=1) == classes[test]).float().mean())


# --------------------------------------------------------------------------------------
# Filling in


def at_hidden(restored: Tensor, patches: Tensor, mask: Tensor) -> float:
    """Mean squared error on the hidden patches; (B, P, patch^2) twice, (B, P)."""
    error = (restored - patches).square().mean(dim=2)
    return float((error * mask).sum() / mask.sum())


def along_time(x: Tensor, seen: Tensor) -> Tensor:
    """Fill x (B, 1, T, F), in every band by straight lines between the frames that are
    seen (B, 1, T, F); a band of which nothing is seen takes the clip's mean.
    """
    filled = x.clone()
    frames = np.arange(x.shape[2])
    for b in range(len(x)):
        middle = x[b][seen[b]].mean()
        for band in range(x.shape[3]):
            at = seen[b, 0, :, band].numpy()
            values = x[b, 0, at, band].numpy()
            line = np.interp(frames, frames[at], values) if at.any() else middle
            filled[b, 0, :, band] = torch.as_tensor(line)
    return filled


@experiment(
    Claim(
        "hidden",
        "AudioMAE restores hidden patches better than averages and interpolation do",
        "mean squared error on the hidden patches",
        lambda m: m["AudioMAE"] < 0.8 * min(v for k, v in m.items() if k != "AudioMAE"),
        control="AudioMAE shown another clip",
        ceiling=0.0,
    )
)
def filling(seed: int) -> Measured:
    """The shipped model against what needs no learning, on unheard combinations."""
    mae, test = shipped().audiomae, clips("test", seed, 128, 0.5)
    corpus = mae.normalise(clips("train", seed, 300, 0.5).mel).mean(dim=0)
    chance = torch.rand(128, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        restored, patches, mask = mae(test.mel, chance)
        # the same places are seen, of the clip before
        visible, _ = random_mask(chance, mae.config.mask_ratio)
        other = mae.normalise(test.mel.roll(1, dims=0))
        fooled = mae.decoder(mae.vit.layernorm(mae.vit(other, visible)[-1]), visible)
        x = mae.normalise(test.mel)
    seen = F.interpolate(1 - mask.view(-1, 1, *mae.config.grid), scale_factor=16) > 0
    of_clip = torch.stack([row[s].mean() for row, s in zip(x, seen)])
    lines = mae.patchify(along_time(x, seen))
    error = lambda guess: at_hidden(guess, patches, mask)
    return {
        "hidden": {
            "mean of the clip": error(of_clip[:, None, None]),
            "mean of the corpus at that place": error(mae.patchify(corpus[None])),
            "interpolation along time": error(lines),
            "AudioMAE": error(restored),
            "AudioMAE shown another clip": error(fooled),
        }
    }


class Everywhere(AudioMAE):
    """The trap: the loss counts all patches, those that are seen too."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predicted, patches, _ = self(batch["mel"], batch["noise"])
        return (predicted - patches).square().mean()


def trained(kind: type[AudioMAE], ratio: float, seed: int) -> AudioMAE:
    """A small model, trained on 512 clips with a share of their patches hidden."""
    mel = clips("train", seed, 512, 0.5).mel
    torch.manual_seed(seed)
    model = kind.preset("tiny", mask_ratio=ratio, **SMALL)

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randperm(len(mel), generator=generator)[:16]
        noise = torch.rand(16, 64, generator=generator)
        return {"mel": mel[chosen], "noise": noise}

    recipe = Recipe(steps=STEPS[ratio], batch_size=16, lr=2e-3, ema=0.99)
    fit(model, batch, recipe, seed, progress=False)
    return model


def errors(model: AudioMAE, seed: int) -> tuple[float, float]:
    """Mean squared error on the hidden patches of test clips, and on all patches."""
    mel = clips("test", seed, 128, 0.5).mel
    chance = torch.rand(128, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        restored, patches, mask = model(mel, chance)
    return (
        at_hidden(restored, patches, mask),
        at_hidden(restored, patches, torch.ones_like(mask)),
    )


def read(model: AudioMAE, seed: int) -> float:
    """What a probe reads from a model's LOA at lambda 4."""
    some = clips("valid", seed, 400)
    loa = lambda mel: pool_patches(model.features(mel), 4).flatten(1)
    return probed(in_pieces(loa, some.mel), some.classes, seed)


@experiment(
    Claim(
        "copying",
        "with the loss over all patches the loss is lower, and what was hidden is "
        "restored no better",
        "mean squared error",
        lambda m: (
            m["trained on all: all patches"] < 0.8 * m["trained on hidden: hidden"]
            and m["trained on all: hidden"] > 0.97 * m["trained on hidden: hidden"]
        ),
        control="copy and mean: hidden",
    ),
    Claim(
        "ratio",
        "a probe reads the class best after training with most of the patches hidden",
        holds=lambda m: max(m, key=m.get) in ("0.8 hidden", "0.95 hidden"),
        control="untrained",
        **READ,
    ),
    Claim(
        "harder",
        "the more is hidden, the larger the error on a hidden patch",
        "mean squared error on the hidden patches",
        lambda m: rises([m[f"{ratio} hidden"] for ratio in RATIOS]),
    ),
)
def sweep(seed: int) -> Measured:
    """Small models trained with different shares hidden, and one whose loss counts
    everything.
    """
    found = {f"{ratio} hidden": trained(AudioMAE, ratio, seed) for ratio in RATIOS}
    scored = {name: errors(model, seed) for name, model in found.items()}
    everywhere = errors(trained(Everywhere, 0.25, seed), seed)
    torch.manual_seed(seed)
    copier = trained(Everywhere, 0.0, seed)
    untrained = AudioMAE.preset("tiny", **SMALL).eval()
    mae, mel = untrained, clips("test", seed, 128, 0.5).mel
    at_place = mae.normalise(clips("train", seed, 512, 0.5).mel).mean(dim=0)
    missed = (mae.patchify(mae.normalise(mel)) - mae.patchify(at_place[None])).square()
    copied = float(missed.mean())
    return {
        "copying": {
            "trained on hidden: hidden": scored["0.25 hidden"][0],
            "trained on hidden: all patches": scored["0.25 hidden"][1],
            "trained on all: hidden": everywhere[0],
            "trained on all: all patches": everywhere[1],
            "copy and mean: hidden": copied,
            "copy and mean: all patches": 0.25 * copied,
        },
        "ratio": {
            "untrained": read(untrained, seed),
            "nothing hidden, loss over all": read(copier, seed),
            **{name: read(model, seed) for name, model in found.items()},
        },
        "harder": {name: scored[name][0] for name in found},
    }


# --------------------------------------------------------------------------------------
# The Language of Audio


def again(scenes: list[Scene], seed: int) -> Tensor:
    """Log-mels of other sounds with the same descriptions: what a caption leaves open
    is drawn anew.
    """
    rng, mels = np.random.default_rng(seed), []
    for scene in scenes:
        onset = rng.uniform(*ONSET)
        room = scene.seconds - 0.02 - onset
        event = draw_event(scene.events[0].combination, onset, room, rng)
        other = replace(scene, events=(event,), seed=int(rng.integers(2**32)))
        mels.append(audio.log_mel(SoundWorld().render(other)[None]))
    return torch.cat(mels)


def blocks(mel: Tensor, patch: int, pool: int) -> Tensor:
    """The piece of the log-mel (B, 1, T, F) that each LOA vector stands for: (B, L,
    values).
    """
    size = patch * pool, min(patch * pool, mel.shape[3])
    return F.unfold(mel, size, stride=size).transpose(1, 2)


def told(captions: list[str]) -> Tensor:
    """What a caption says to a linear map: the CLAP vector and the mean T5 state, (N,
    D).
    """
    parts, rows = shipped(), []
    with torch.no_grad():
        for start in range(0, len(captions), 64):
            some = captions[start : start + 64]
            states, mask = parts.text.encode(some)
            mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            rows.append(torch.cat([parts.clap.encode(some).sequence[:, 0], mean], 1))
    x = torch.cat(rows)
    return (x - x.mean(dim=0)) / x.std(dim=0)


def in_order(pooled: Tensor) -> Tensor:
    """A map (N, D, T', F') as a sequence of vectors (N, L, D)."""
    return pooled.flatten(2).transpose(1, 2)


def centred(y: Tensor) -> Tensor:
    """LOA (N, L, D) in units of its deviation, without its mean at each place, both
    measured on the training clips.
    """
    return (y - y[:N_TRAIN].mean(dim=0)) / y[:N_TRAIN].std(dim=(0, 1))


def off(x: Tensor, mel: Tensor, pool: int, spoil=lambda x: x) -> float:
    """How far log-mels (N, 1, T, F) are, in dB, from what a linear map restores of them
    from each vector of the LOA x (N, L, D), fitted on the training clips; `spoil`
    changes what the map is given.
    """
    mel = blocks(mel, shipped().audiomae.config.patch_size, pool)
    at_place = mel[:N_TRAIN].mean(dim=0)
    w = ridge(x[:N_TRAIN].flatten(0, 1), (mel - at_place)[:N_TRAIN].flatten(0, 1))
    error = spoil(x[N_TRAIN:]) @ w + at_place - mel[N_TRAIN:]
    return float(audio.decibels(error.abs().mean()))


def missed(captions: Tensor, x: Tensor, shuffled: bool = False) -> float:
    """The share of the variance of the LOA x (N, L, D) that a linear map of what the
    captions say (N, K) misses, fitted on the training clips.
    """
    y = x.flatten(1)
    w = ridge(captions[:N_TRAIN], y[:N_TRAIN])
    test = captions[N_TRAIN:].roll(1, dims=0) if shuffled else captions[N_TRAIN:]
    return float((test @ w - y[N_TRAIN:]).square().sum() / y[N_TRAIN:].square().sum())


@experiment(
    Claim(
        "restored",
        "the larger lambda, the less of the log-mel can be restored from the LOA",
        "dB, mean error of the log-mel",
        lambda m: rises([m[f"λ = {pool}"] for pool in LAMBDAS]),
        control="λ = 1, of another clip",
    ),
    Claim(
        "kept",
        "more of the log-mel can be restored from half of each at lambda 4 than from "
        "the mean alone",
        "dB, mean error of the log-mel",
        lambda m: m["half of each"] < m["mean"],
    ),
    Claim(
        "predicted",
        "the larger lambda, the better a caption predicts the LOA",
        "squared error of the prediction over the variance",
        lambda m: rises([-m[f"λ = {pool}"] for pool in LAMBDAS]),
        control="λ = 8, captions shuffled",
        chance=1.0,
    ),
    Claim(
        "open",
        "the larger lambda, the less of the LOA is left open by the description",
        "variance among sounds of one description over the variance",
        lambda m: rises([-m[f"λ = {pool}"] for pool in LAMBDAS]),
        chance=1.0,
    ),
)
def trade(seed: int) -> Measured:
    """What the LOA keeps, and how well a caption tells it, at every lambda."""
    mae, some = shipped().audiomae, clips("train", seed, N_TRAIN + 200)
    features = in_pieces(mae.features, some.mel)
    other = in_pieces(mae.features, again(some.scenes[N_TRAIN:], seed))
    captions = told(some.captions)
    found = {"restored": {}, "kept": {}, "predicted": {}, "open": {}}
    for pool in LAMBDAS:
        x = centred(in_order(pool_patches(features, pool)))
        found["restored"][f"λ = {pool}"] = off(x, some.mel, pool)
        found["predicted"][f"λ = {pool}"] = missed(captions, x)
        y, y2 = (in_order(pool_patches(f, pool)) for f in (features, other))
        apart = ((y[N_TRAIN:] - y2) / y[:N_TRAIN].std(dim=(0, 1))).square().mean()
        left_open = apart / 2 / x[N_TRAIN:].square().mean()
        found["open"][f"λ = {pool}"] = float(left_open)
    found["predicted"]["λ = 8, captions shuffled"] = missed(captions, x, shuffled=True)
    x = centred(in_order(features))
    found["restored"]["mean of the corpus"] = off(x, some.mel, 1, lambda x: 0 * x)
    other_clip = off(x, some.mel, 1, lambda x: x.roll(1, dims=0))
    found["restored"]["λ = 1, of another clip"] = other_clip
    mean, most = F.avg_pool2d(features, 4), F.max_pool2d(features, 4)
    for name, y in {"mean": mean, "maximum": most, "half of each": mean + most}.items():
        found["kept"][name] = off(centred(in_order(y)), some.mel, 4)
    return found


@experiment(
    Claim(
        "probe",
        "with four labels a class and equal width, the class is read better from "
        "AudioMAE than from VAE latents, and from these better than from patches",
        holds=lambda m: m["AudioMAE"] > m["VAE latent"] > m["raw patches"],
        control="AudioMAE, labels shuffled",
        **READ,
    ),
    Claim(
        "layers",
        "the class can be read from the last layer no worse than from the first",
        holds=lambda m: m["layer 4"] >= m["layer 1"],
        **READ,
    ),
    Claim(
        "pooling",
        "the class is read better from half of each than from the mean alone",
        holds=lambda m: m["half of each"] > m["mean"],
        **READ,
    ),
    Claim(
        "reading",
        "the class is read best where nothing is hidden",
        holds=lambda m: m["nothing hidden"] > m["half hidden"] > m["0.8 hidden"],
        **READ,
    ),
)
def probes(seed: int) -> Measured:
    """The shipped encoder's features, beside other ways to write a sound down."""
    mae, vae, some = shipped().audiomae, shipped().vae, clips("valid", seed, 400)
    patch, grid, classes = mae.config.patch_size, mae.config.grid, some.classes
    torch.manual_seed(seed)
    untrained = AudioMAE.preset("tiny").eval()
    vae.to(memory_format=torch.channels_last)

    def patches(x: Tensor) -> Tensor:
        """A map (B, C, T', F') as AudioMAE's patches see it: (B, values, 16, 4)."""
        size = x.shape[2] // grid[0], x.shape[3] // grid[1]
        return F.unfold(x, size, stride=size).unflatten(2, grid)

    def layers(mel: Tensor) -> Tensor:
        every = [mae.vit.layernorm(h[:, 1:]) for h in mae.vit(mae.normalise(mel))]
        return torch.stack(every, dim=1).transpose(2, 3).unflatten(3, grid)

    def score(features: Tensor, shuffled: bool = False) -> float:
        return probed(features.flatten(1), classes, seed, shuffled)

    def seen(ratio: float) -> float:
        """Read from the patches that a mask leaves, mean and maximum over the clip."""
        generator = torch.Generator().manual_seed(seed)

        def one(mel: Tensor) -> Tensor:
            noise = torch.rand(len(mel), grid[0] * grid[1], generator=generator)
            visible, _ = random_mask(noise, ratio)
            h = mae.vit.layernorm(mae.vit(mae.normalise(mel), visible)[-1])[:, 1:]
            return (h.mean(dim=1) + h.amax(dim=1)) / 2

        return score(in_pieces(one, some.mel))

    every = in_pieces(layers, some.mel)  # (N, 4, D, 16, 4)
    last = every[:, -1]
    mean, most = F.avg_pool2d(last, 4), F.max_pool2d(last, 4)
    latent = patches(in_pieces(vae.encode, some.mel))
    plain = in_pieces(untrained.features, some.mel)
    assert patches(some.mel).shape[1] == patch**2
    return {
        "probe": {
            "raw patches": score(pool_patches(patches(some.mel), 4)),
            "VAE latent": score(pool_patches(latent, 4)),
            "AudioMAE, untrained": score(pool_patches(plain, 4)),
            "AudioMAE": score(pool_patches(last, 4)),
            "AudioMAE, labels shuffled": score(pool_patches(last, 4), shuffled=True),
        },
        "layers": {
            f"layer {k + 1}": score(pool_patches(every[:, k], 4)) for k in range(4)
        },
        "pooling": {
            "mean": score(mean),
            "maximum": score(most),
            "half of each": score((mean + most) / 2),
        },
        "reading": {
            "nothing hidden": seen(0.0),
            "half hidden": seen(0.5),
            "0.8 hidden": seen(0.8),
        },
    }
