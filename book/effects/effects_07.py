"""The experiments of chapter 07: what a weight on the KL term, or a codebook, costs
and buys.

Small autoencoders (173,000 weights) learn beginnings of eight kinds of SoundWorld's
sounds, 0.32 s each. On the latents of some, one small diffusion model each learns to
make such sounds; the shipped judge, trained apart from both, says which kind it hears.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from effects import Claim, experiment
from torch import Tensor

from minilib import audio
from minilib.classifier import Classifier
from minilib.cli import shipped_judge
from minilib.conditions import Context, to_batch
from minilib.diffusion import ddim_sample
from minilib.frechet import frechet_distance
from minilib.quantise import perplexity
from minilib.soundworld import SoundWorld
from minilib.training import Recipe, fit
from minilib.training.stages import noised
from minilib.unet import UNet, UNetConfig
from minilib.vae import VAE, VQVAE, VAEConfig, VQVAEConfig, centre

KINDS = ("alarm", "bell", "bird", "dog", "drum", "frog", "laser", "rain")
FRAMES = 32
SECONDS = FRAMES * audio.HOP / audio.SAMPLE_RATE
LIMITS = math.log(1e-5), 3.0  # of a log-mel: silence, and the loudest there is
EACH = 60, 32  # sounds of a kind: to learn from, and to compare with
WEIGHTS = (1e-6, 0.015, 0.1, 1.0, 10.0)
DIFFUSED = (1e-6, 0.1, 1.0, 10.0)  # those on whose latents diffusion models learn
SIZES = dict(
    latent_channels=4, block_out_channels=(8, 16, 32), layers_per_block=1,
    norm_num_groups=4, scaling_factor=1.0, final_norm=False,
)  # fmt: skip
AUTOENCODER = Recipe(steps=120, batch_size=16, lr=4e-3, warmup=20)
DIFFUSION = Recipe(steps=160, batch_size=64, lr=3e-3, warmup=20, ema=0.98)


@cache
def sounds(split: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-mels (n, 1, T, F) of beginnings of sounds, and their kinds (n,)."""
    world, rows = SoundWorld(("train", "valid")[split], seed, pairs=0.0), {}
    i = 0
    while len(rows) < len(KINDS) or min(map(len, rows.values())) < EACH[split]:
        (event,) = world.scene(i).events
        kept = rows.setdefault(event.name, []) if event.name in KINDS else None
        if kept is not None and len(kept) < EACH[split]:
            begin = max(0, int((event.onset - 0.02) * audio.SAMPLE_RATE))
            wave = torch.from_numpy(world.samples(i)).float() / 32767
            kept.append(wave[begin : begin + FRAMES * audio.HOP])
            if len(kept[-1]) < FRAMES * audio.HOP:
                kept.pop()
        i += 1
    waves = torch.stack([wave for kind in KINDS for wave in rows[kind]])
    return audio.log_mel(waves), torch.arange(len(KINDS)).repeat_interleave(EACH[split])


@cache
def judge() -> Classifier:
    """The shipped judge, which has heard other clips of the same world."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32)


@torch.no_grad()
def heard(mel: Tensor) -> Tensor:
    """Which of the eight kinds the judge takes each sound for: (n,)."""
    known = [judge().config.classes.index(kind) for kind in KINDS]
    return judge()(mel)[:, known].argmax(dim=1)


@torch.no_grad()
def distance(mel: Tensor, real: Tensor) -> float:
    """Frechet distance of two sets of sounds, as the judge's features see them."""
    return frechet_distance(judge().features(mel), judge().features(real))


def trained(model: VAE, seed: int) -> VAE:
    """An autoencoder that has learned the training sounds."""
    centre(model, -7.0, 3.0)
    mels, C = sounds(0)[0], model.config.latent_channels

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(mels), (AUTOENCODER.batch_size,), generator=generator)
        eps = torch.randn(len(rows), C, FRAMES // 4, 16, generator=generator)
        return {"mel": mels[rows], "eps": eps}

    fit(model, batch, AUTOENCODER, seed, progress=False)
    return model


def kl_autoencoder(weight: float, seed: int) -> VAE:
    """A small VAE of this weight, trained."""
    torch.manual_seed(seed)
    return trained(VAE(VAEConfig(**SIZES, kl_weight=weight)), seed)


def vq_autoencoder(codes: int, seed: int, **how: float) -> VQVAE:
    """A small autoencoder with a quantiser, trained."""
    torch.manual_seed(seed)
    return trained(VQVAE(VQVAEConfig(**SIZES, n_codes=codes, **how)), seed)


@torch.no_grad()
def rate(model: VAE) -> float:
    """Kilobits a second that the latent holds, of the sounds to compare with: the KL
    term, or the entropy of the codes.
    """
    mel = sounds(1)[0]
    mean, log_variance = model.moments(mel)
    if isinstance(model, VQVAE):
        codes = model.quantise(mean).codes
        each = float(perplexity(codes, model.config.n_codes).log())
        nats = each * codes[0].numel()
    else:
        kl = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance)
        nats = float(kl.sum(dim=(1, 2, 3)).mean())
    return nats / math.log(2) / SECONDS / 1000


@torch.no_grad()
def error(model: VAE) -> float:
    """Mean error in decibels of the sounds to compare with, from draws."""
    mel = sounds(1)[0]
    mean, log_variance = model.moments(mel)
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    restored = model.restore(mean + (0.5 * log_variance).exp() * eps)
    return float(audio.decibels((restored - mel).abs().mean()))


@torch.no_grad()
def halfway(model: VAE) -> Tensor:
    """Sounds (n, 1, T, F) decoded halfway between the latents of two of one kind."""
    mel = sounds(1)[0].view(len(KINDS), -1, 1, FRAMES, 64)
    a, b = (x.flatten(0, 1) for x in mel.chunk(2, dim=1))
    return model.decode((model.encode(a) + model.encode(b)) / 2)


def generated(vae: VAE, seed: int) -> tuple[Tensor, Tensor]:
    """Sounds that a small diffusion on the latents makes, and their kinds."""
    mels, kinds = sounds(0)
    with torch.no_grad():
        z = vae.encode(mels)
    mean, std = z.mean(dim=(0, 2, 3), keepdim=True), z.std(dim=(0, 2, 3), keepdim=True)
    z = (z - mean) / std
    label = torch.eye(len(KINDS))[:, None]  # (8, 1, 8): a condition of one vector each
    torch.manual_seed(seed)
    unet = UNet(UNetConfig(
        in_channels=4, patch=2, block_out_channels=(32, 64), attention=(False, True),
        layers_per_block=1, norm_num_groups=8, cross_attention=(None, "kind"),
        cross_attention_dim=(None, len(KINDS)), n_head=4, prediction="v",
    ))  # fmt: skip

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(z), (DIFFUSION.batch_size,), generator=generator)
        told = to_batch({"kind": Context(label[kinds[rows]])})
        return noised(z[rows], 1000, generator) | told

    fit(unet, batch, DIFFUSION, seed, progress=False)
    kinds = sounds(1)[1]
    told = {"kind": Context(label[kinds])}
    xT = torch.randn(
        len(kinds), *z.shape[1:], generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        model = lambda xt, t: unet(xt, t, told)
        made = ddim_sample(model, unet.schedule, xT, steps=20)
        return vae.decode(made * std + mean).clamp(*LIMITS), kinds


# written out, so that they stand in the order of their size wherever they are sorted
WRITTEN = "0.000001", "0.015", "0.1", "1", "10"
NAMES = {w: f"KL, weight {written}" for w, written in zip(WEIGHTS, WRITTEN)}
LEAST, LIGHT, OURS, HEAVY, HEAVIEST = NAMES.values()


def falls(means: dict[str, float]) -> bool:
    """Whether the value is lower at each larger weight."""
    values = [means[name] for name in NAMES.values()]
    return all(a > b for a, b in zip(values, values[1:]))


def arm(weight: float, seed: int) -> dict[str, float]:
    """What one weight costs, and how well diffusion works on its latents."""
    (real, kinds), model = sounds(1), kl_autoencoder(weight, seed)
    pairs = kinds.view(len(KINDS), -1).chunk(2, dim=1)[0].flatten()
    values = {
        "rate": rate(model),
        "error": error(model),
        "halfway": float((heard(halfway(model)) == pairs).float().mean()),
    }
    if weight in DIFFUSED:
        made, asked = generated(model, seed)
        values["right"] = float((heard(made) == asked).float().mean())
        values["real"] = distance(made, real)
    return values


@experiment(
    Claim(
        "rate",
        "a larger weight on the KL term leaves fewer bits a second in the latent",
        "kilobits a second",
        falls,
    ),
    Claim(
        "error",
        "from 1e-6 to 0.015 the error hardly grows, from 0.1 on it grows by decibels",
        "decibels",
        lambda x: x[LIGHT] - x[LEAST] < 0.5 and x[HEAVY] - x[OURS] > 1.0,
        control=HEAVIEST,
    ),
    Claim(
        "right",
        "sounds that a small diffusion makes on the latents are heard as what they "
        "should be most often at a weight inside",
        "share of 256 sounds",
        lambda x: max(x[LEAST], x[HEAVIEST]) < max(x[OURS], x[HEAVY]),
        control=HEAVIEST,
        chance=1 / len(KINDS),
        ceiling=1.0,
    ),
    Claim(
        "real",
        "they are also nearest to real sounds at a weight inside",
        "squared Frechet distance of the judge's features",
        lambda x: min(x[LEAST], x[HEAVIEST]) > min(x[OURS], x[HEAVY]),
        control=HEAVIEST,
    ),
    Claim(
        "halfway",
        "halfway between two latents of a kind lies a sound that is heard as this kind",
        "share of 128 sounds",
        lambda x: min(x[LEAST], x[LIGHT], x[OURS]) > 0.7 > x[HEAVIEST],
        control=HEAVIEST,
        chance=1 / len(KINDS),
        ceiling=1.0,
    ),
)
def weights(seed: int) -> dict[str, dict[str, float]]:
    """Five weights side by side."""
    arms = {name: arm(weight, seed) for weight, name in NAMES.items()}
    return {
        effect: {name: found[effect] for name, found in arms.items() if effect in found}
        for effect in arms[LEAST]
    }


QUANTISERS = {
    "16 codes": (16, {}),
    "512 codes": (512, {}),
    "512 codes, no restarts": (512, {"restart": 0.0}),
    "512 codes, by gradient": (512, {"decay": 0.0, "restart": 0.0}),
}


@experiment(
    Claim(
        "perplexity",
        "of 512 codes, running means keep more in use than gradients do, and restarts "
        "many more",
        "codes in use, in effect",
        lambda x: (
            x["512 codes"] > 5 * x["512 codes, no restarts"]
            and x["512 codes, no restarts"] > x["512 codes, by gradient"]
        ),
        control="512 codes, by gradient",
        chance=1.0,
        ceiling=512.0,
    ),
    Claim(
        "vq_rate",
        "more codes in use hold more bits a second",
        "kilobits a second",
        lambda x: x["512 codes"] > x["16 codes"] > x["512 codes, by gradient"],
    ),
    Claim(
        "vq_error",
        "more codes in use restore better",
        "decibels",
        lambda x: x["512 codes"] < x["16 codes"] < x["512 codes, by gradient"],
        control="512 codes, by gradient",
    ),
)
def codes(seed: int) -> dict[str, dict[str, float]]:
    """Quantisers of two sizes, and the larger one without its remedies."""
    found = {"perplexity": {}, "vq_rate": {}, "vq_error": {}}
    for name, (n_codes, how) in QUANTISERS.items():
        model = vq_autoencoder(n_codes, seed, **how)
        with torch.no_grad():
            used = model.quantise(model.moments(sounds(1)[0])[0]).codes
        if n_codes > 16:
            found["perplexity"][name] = float(perplexity(used, n_codes))
        found["vq_rate"][name] = rate(model)
        found["vq_error"][name] = error(model)
    return found
