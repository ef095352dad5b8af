"""The effects of chapter 08, The vocoder.

periods: what discriminators that fold bring to steady tones and to bursts of noise,
beside as many that do not; rounds: the shipped vocoder beside Griffin-Lim; tuned: a
vocoder that goes on with the log-mels that the VAE writes.
"""

from __future__ import annotations

import copy
import math

import torch
from effects import Claim, experiment
from torch import Tensor, nn

from minilib import audio
from minilib.cli import shipped_weights
from minilib.discriminators import (
    MEL,
    Adversarial,
    Discriminators,
    DiscriminatorsConfig,
)
from minilib.soundworld import SoundWorld
from minilib.training import Recipe, fit
from minilib.vae import VAE
from minilib.vocoder import Vocoder, Vocos, VocosConfig, spectral_loss, stft_distance

RATE = audio.SAMPLE_RATE

# --------------------------------------------------------------------------------------
# Sounds whose truth is known, and what is measured of them


def tones(n: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Steady tones (n, N) of 24 partials with random phases, and their pitch in hertz
    (n,), 120 to 300.
    """
    f0 = 120 * 2.5 ** torch.rand(n, 1, 1, generator=generator)
    time = torch.arange(frames * audio.HOP) / RATE
    k = torch.arange(1.0, 25.0)[:, None]  # of the partials
    turns = torch.rand(n, 24, 1, generator=generator)
    level = k**-0.7 * (k * f0 < 5000)
    wave = (level * torch.cos(2 * math.pi * (k * f0 * time + turns))).sum(dim=1)
    wave = wave / wave.std(dim=1, keepdim=True)
    wave = wave + 0.01 * torch.randn(wave.shape, generator=generator)
    return (0.25 * wave).clamp(-1, 1), f0[:, 0, 0]


def bursts(n: int, frames: int, generator: torch.Generator) -> Tensor:
    """Bursts of noise (n, N), each of its own colour, onset and decay."""
    n_samples = frames * audio.HOP
    noise = torch.randn(n, n_samples, generator=generator)
    centre = 500 * 10 ** torch.rand(n, 1, generator=generator)
    hz = torch.fft.rfftfreq(n_samples, 1 / RATE)
    shape = 1 / (1 + (2 * (hz - centre) / centre) ** 2)
    wave = torch.fft.irfft(torch.fft.rfft(noise) * shape, n_samples)
    onset = 0.02 + 0.05 * torch.rand(n, 1, generator=generator)
    decay = 0.03 * 4 ** torch.rand(n, 1, generator=generator)
    since = torch.arange(n_samples) / RATE - onset  # seconds, (n, N)
    wave = wave / wave.std(dim=1, keepdim=True) * (since > 0) * (-since / decay).exp()
    hiss = 0.001 * torch.randn(n, n_samples, generator=generator)
    return (0.3 * wave + hiss).clamp(-1, 1)


def repeats(wave: Tensor, f0: Tensor) -> tuple[float, float]:
    """How well 0.1 s of each tone (n, N) repeat one period later: the mean
    harmonic-to-noise ratio in decibels (Boersma 1993), and the median distance from the
    true pitch in cents.
    """
    ratios, cents = [], []
    for x, period in zip(wave.double(), (RATE / f0).tolist()):
        lags = range(round(0.9 * period), round(1.1 * period) + 2)
        a, rest = x[1600:3200], [x[1600 + lag : 3200 + lag] for lag in lags]
        r = torch.stack([a @ b / (a.norm() * b.norm()) for b in rest])
        i = int(r[1:-1].argmax()) + 1
        left, top, right = r[i - 1 : i + 2].tolist()  # a parabola through these
        step = (left - right) / (2 * (left - 2 * top + right))
        peak = min(max(top - (left - right) * step / 4, 1e-3), 1 - 1e-6)
        ratios.append(10 * math.log10(peak / (1 - peak)))
        cents.append(abs(1200 * math.log2((lags[i] + step) / period)))
    return sum(ratios) / len(ratios), float(torch.tensor(cents).median())


def error(wave: Tensor, log_mel: Tensor) -> float:
    """Mean L1 of a wave's log-mel from the one asked for, in decibels."""
    return float(audio.decibels((audio.log_mel(wave) - log_mel).abs().mean()))


# --------------------------------------------------------------------------------------
# With and without discriminators that fold


class MelAlone(nn.Module):
    """A vocoder that is trained on the L1 of the log-mel and nothing else."""

    def __init__(self, vocoder: Vocoder):
        super().__init__()
        self.vocoder = vocoder

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """HiFi-GAN's mel term alone."""
        heard = audio.log_mel(self.vocoder.unlimited(batch["mel"]))
        return MEL * (heard - batch["mel"]).abs().mean()


def tones_and_bursts(generator: torch.Generator) -> dict[str, Tensor]:
    """Four tones and four bursts of 0.32 s."""
    wave = torch.cat([tones(4, 32, generator)[0], bursts(4, 32, generator)])
    return {"wave": wave, "mel": audio.log_mel(wave)}


def narrow(**changes: int | tuple[int, ...]) -> Discriminators:
    """Discriminators a thirty-second of HiFi-GAN's width, of one scale."""
    sizes = {
        "period_channels": (4, 8, 16, 32, 32),
        "n_scales": 1,
        "scale_channels": (4, 4, 8, 16, 32, 32, 32),
        "scale_groups": (1, 2, 2, 4, 4, 4, 1),
    }
    return Discriminators(DiscriminatorsConfig(**sizes | changes))


@experiment(
    Claim(
        "tones",
        "with five period discriminators steady tones repeat better than with as many "
        "that do not fold",
        "dB of harmonics over noise, steady tones",
        lambda mean: (
            mean["one scale, five periods"] > max(mean["one scale"], mean["six scales"])
        ),
        control="six scales",
        ceiling=29.4,  # of the tones themselves
    ),
    Claim(
        "bursts",
        "bursts of noise come out alike with period discriminators and without",
        "distance of the STFT, bursts of noise",
        lambda mean: (
            abs(mean["one scale, five periods"] / mean["one scale"] - 1) < 0.05
        ),
        ceiling=0.0,
    ),
    Claim(
        "flatters",
        "training on the log-mel alone has the lowest error of the log-mel",
        "dB of log-mel error, steady tones",
        lambda mean: min(mean, key=mean.get) == "mel L1 alone",
        ceiling=0.0,
    ),
)
def periods(seed: int) -> dict[str, dict[str, float]]:
    """One small vocoder, warmed up on the mel term; then four losses from there.

    Six scales are as many discriminators as one scale and five periods.
    """
    torch.manual_seed(seed)
    start = Vocos(VocosConfig(dim=128, intermediate_dim=256, n_layer=3))
    warm = Recipe(steps=250, batch_size=8, lr=2e-3)
    fit(MelAlone(start), tones_and_bursts, warm, seed, progress=False)
    # HiFi-GAN's betas, and a clip that never bites
    goes_on = Recipe(250, 8, lr=1e-3, betas=(0.8, 0.99), clip=1e3, final_lr=0.1)
    found = {"tones": {}, "bursts": {}, "flatters": {}}
    arms = {
        "mel L1 alone": None,
        "one scale": {"periods": ()},
        "six scales": {"periods": (), "n_scales": 6},
        "one scale, five periods": {},
    }
    for arm, judges in arms.items():
        vocoder = copy.deepcopy(start)
        torch.manual_seed(seed)
        if judges is None:
            model = MelAlone(vocoder)
        else:
            model = Adversarial(vocoder, narrow(**judges))
        fit(model, tones_and_bursts, goes_on, seed + 1, progress=False)
        fresh = torch.Generator().manual_seed(1000 + seed)
        (wave, f0), noise = tones(32, 50, fresh), bursts(32, 50, fresh)
        with torch.no_grad():
            sung, hissed = (vocoder(audio.log_mel(x)) for x in (wave, noise))
        found["tones"][arm] = repeats(sung, f0)[0]
        found["bursts"][arm] = float(stft_distance(hissed, noise, 512))
        found["flatters"][arm] = error(sung, audio.log_mel(wave))
    return found


# --------------------------------------------------------------------------------------
# The shipped vocoder


def shipped() -> tuple[Vocos, VAE]:
    """The vocoder and the VAE of the weights that ship."""
    parts = (Vocos, "vocoder"), (VAE, "vae")
    load = lambda kind, name: kind.from_pretrained(
        shipped_weights() / name, dtype=torch.float32
    )
    vocoder, vae = (load(*part).requires_grad_(False).eval() for part in parts)
    return vocoder, vae


def clips(split: str, first: int, n: int) -> Tensor:
    """Waves (n, N) of single sound effects."""
    world = SoundWorld(split, pairs=0.0)
    waves = [torch.as_tensor(world[first + i].wave) for i in range(n)]
    return torch.stack(waves).float()


@experiment(
    Claim(
        "rounds",
        "32 rounds of Griffin-Lim fit a log-mel better than one pass of the vocoder",
        "dB of log-mel error, held-out sound effects",
        lambda mean: (
            mean["Griffin-Lim, 32 rounds"]
            < mean["the vocoder"]
            < mean["random phases"] / 2
        ),
        control="random phases",
        ceiling=0.0,
    ),
    Claim(
        "harmonics",
        "Griffin-Lim leaves a steady tone cleaner than the vocoder does, and neither "
        "comes near the tone itself",
        "dB of harmonics over noise, steady tones",
        lambda mean: (
            mean["noise"]
            < mean["the vocoder"]
            < mean["Griffin-Lim, 32 rounds"]
            < mean["the tones themselves"] - 10
        ),
        control="noise",
    ),
    Claim(
        "pitch",
        "the vocoder keeps the pitch of a steady tone, Griffin-Lim more closely",
        "cents from the true pitch, steady tones",
        lambda mean: (
            mean["Griffin-Lim, 32 rounds"] < mean["the vocoder"] < mean["noise"] / 3
        ),
        control="noise",
    ),
)
def rounds(seed: int) -> dict[str, dict[str, float]]:
    """Griffin-Lim beside the shipped vocoder."""
    vocoder, _ = shipped()
    fresh = lambda: torch.Generator().manual_seed(2000 + seed)
    waves, (steady, f0) = clips("test", 64 * seed, 32), tones(32, 100, fresh())
    log_mel, steady_mel = audio.log_mel(waves), audio.log_mel(steady)
    lim = lambda n: lambda mel: audio.griffin_lim(mel, n, fresh())
    ways = {"random phases": lim(0), "Griffin-Lim, 4 rounds": lim(4)}
    ways["Griffin-Lim, 32 rounds"] = lim(32)
    ways["the vocoder"] = torch.no_grad()(vocoder)
    noise = torch.randn(steady.shape, generator=fresh())
    heard = {"noise": repeats(noise, f0)}
    heard |= {arm: repeats(way(steady_mel), f0) for arm, way in ways.items()}
    heard["the tones themselves"] = repeats(steady, f0)
    return {
        "rounds": {arm: error(way(log_mel), log_mel) for arm, way in ways.items()},
        "harmonics": {arm: ratio for arm, (ratio, _) in heard.items()},
        "pitch": {arm: cents for arm, (_, cents) in heard.items()},
    }


# --------------------------------------------------------------------------------------
# Log-mels that a network wrote


class Tuned(nn.Module):
    """A vocoder that reads one log-mel, and is scored on the wave behind it."""

    def __init__(self, vocoder: Vocoder):
        super().__init__()
        self.vocoder = vocoder

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`spectral_loss` with the true log-mel, whatever was `read`."""
        heard = self.vocoder.unlimited(batch["read"])
        return spectral_loss(heard, batch["wave"], batch["mel"])


@experiment(
    Claim(
        "tuned",
        "through the VAE, going on with its log-mels is better than with true ones",
        "dB of log-mel error, through VAE and vocoder",
        lambda mean: (
            mean["goes on with the VAE's"] < mean["goes on with true log-mels"] - 0.02
        ),
        control="goes on with true log-mels",
        ceiling=0.0,
    ),
    Claim(
        "untuned",
        "on true log-mels that vocoder is the worse one",
        "dB of log-mel error, vocoder alone",
        lambda mean: (
            mean["goes on with the VAE's"] > mean["goes on with true log-mels"]
        ),
        ceiling=0.0,
    ),
)
def tuned(seed: int) -> dict[str, dict[str, float]]:
    """The shipped vocoder, 80 steps further on what the VAE writes or on the truth."""
    start, vae = shipped()
    learned, held_out = clips("train", 256 * seed, 128), clips("test", 64 * seed, 32)

    @torch.no_grad()
    def through_vae(waves: Tensor) -> Tensor:
        mels = audio.log_mel(waves).split(16)
        return torch.cat([vae.decode(vae.encode(mel)) for mel in mels])

    written, frames = through_vae(learned), 48
    # the log-mel of a whole clip: a crop's own would have other frames at its ends
    true = audio.log_mel(learned)

    def batches(source: Tensor):
        def draw(generator: torch.Generator) -> dict[str, Tensor]:
            who = torch.randint(len(learned), (8,), generator=generator).tolist()
            at = torch.randint(208, (8,), generator=generator).tolist()
            cut = lambda x: torch.stack(
                [x[i, :, s : s + frames] for i, s in zip(who, at)]
            )
            hop = audio.HOP
            waves = [learned[i, s * hop : (s + frames) * hop] for i, s in zip(who, at)]
            wave = torch.stack(waves)
            return {"wave": wave, "mel": audio.log_mel(wave), "read": cut(source)}

        return draw

    arms = {"as shipped": start}
    for arm, source in {
        "goes on with true log-mels": true,
        "goes on with the VAE's": written,
    }.items():
        model = Tuned(copy.deepcopy(start).requires_grad_(True))
        recipe = Recipe(steps=80, batch_size=8, lr=2e-4)
        fit(model, batches(source), recipe, seed, progress=False)
        arms[arm] = model.vocoder
    mel, decoded = audio.log_mel(held_out), through_vae(held_out)
    with torch.no_grad():
        return {
            "tuned": {arm: error(x(decoded), mel) for arm, x in arms.items()},
            "untuned": {arm: error(x(mel), mel) for arm, x in arms.items()},
        }
