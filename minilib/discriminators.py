"""Discriminators that tell what a network made from what was recorded, and their game
with it: HiFi-GAN's for waveforms, and one for the log-mels of the VAE.

Kong et al. (2010.05646 §2.3): voiced sound is a sum of periodic signals. So some of
them fold the wave at a period, and samples one period apart stand below each other.
The others read the wave itself, at three scales. They are needed in training only and
don't ship.
Chapter 08 builds HiFi-GAN's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from minilib import audio
from minilib.layers import gathered
from minilib.model import Model
from minilib.vae import VAE
from minilib.vocoder import Vocoder

SLOPE = 0.1  # of the leaky ReLU
# weights of HiFi-GAN's losses beside the adversarial one (2010.05646 §2.4)
FEATURES, MEL = 2.0, 45.0
# of each discriminator: its scores and the features of its layers
Judgements = list[tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class DiscriminatorsConfig:
    """Sizes of both kinds of discriminators; the defaults are HiFi-GAN's."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)  # samples at which the wave is folded
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    n_scales: int = 3  # each reads half the sample rate of the one before
    scale_channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
    scale_groups: tuple[int, ...] = (1, 4, 16, 16, 16, 16, 1)


def convolve(
    convs: nn.ModuleList, last: nn.Module, x: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Scores (B, S), and the features of every layer: both are used in the losses.

    Chapter 08.
    """
    features = []
    for conv in convs:
        x = F.leaky_relu(conv(x), SLOPE)
        features.append(x)
    score = last(x)
    return score.flatten(1), [*features, score]


class PeriodDiscriminator(nn.Module):
    """Folds the wave at a period, and convolves down its columns only (2010.05646
    §2.3). Chapter 08.
    """

    def __init__(self, period: int, channels: tuple[int, ...]):
        super().__init__()
        self.period = period
        strides = (3,) * (len(channels) - 1) + (1,)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(n_in, n_out, (5, 1), (stride, 1), padding=(2, 0)))
            for n_in, n_out, stride in zip((1, *channels), channels, strides)
        )
        self.conv_post = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        wave = F.pad(wave[:, None], (0, -wave.shape[1] % self.period), mode="reflect")
        x = wave.unflatten(2, (-1, self.period))  # (B, 1, N / period, period)
        return convolve(self.convs, self.conv_post, x)


class ScaleDiscriminator(nn.Module):
    """Convolves the wave itself, in groups with a wide view (2010.05646 §2.3, after
    MelGAN).

    All have weight norm here; the authors give spectral norm to the first, which reads
    the wave as it is. Chapter 08.
    """

    def __init__(self, channels: tuple[int, ...], groups: tuple[int, ...]):
        super().__init__()
        kernels = (15, *(41,) * (len(channels) - 2), 5)
        strides = (1, 2, 2, 4, 4, *(1,) * (len(channels) - 5))
        sizes = zip((1, *channels), channels, kernels, strides, groups)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(n_in, n_out, k, stride, k // 2, groups=n_groups))
            for n_in, n_out, k, stride, n_groups in sizes
        )
        self.conv_post = weight_norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        return convolve(self.convs, self.conv_post, wave[:, None])


class Discriminators(Model):
    """The multi-period and the multi-scale discriminator, eight networks in all
    (2010.05646 §2.3). Chapter 08.
    """

    config_class = DiscriminatorsConfig

    def __init__(self, config: DiscriminatorsConfig):
        super().__init__(config)
        folds = (PeriodDiscriminator(p, config.period_channels) for p in config.periods)
        self.by_period = nn.ModuleList(folds)
        sizes = config.scale_channels, config.scale_groups
        scales = (ScaleDiscriminator(*sizes) for _ in range(config.n_scales))
        self.by_scale = nn.ModuleList(scales)

    def forward(self, wave: Tensor) -> Judgements:
        """The judgements on a wave (B, N): from each network its scores, near 1 for a
        recording, and its features.
        """
        judgements = [discriminator(wave) for discriminator in self.by_period]
        for discriminator in self.by_scale:
            judgements.append(discriminator(wave))
            wave = F.avg_pool1d(wave[:, None], 4, 2, padding=2)[:, 0]
        return judgements


def discriminator_loss(real: Judgements, generated: Judgements) -> Tensor:
    """Recordings should score 1, generated waves 0 (least squares; 2010.05646 §2.4).

    Chapter 08.
    """
    pairs = zip(real, generated)
    return sum((1 - a).square().mean() + b.square().mean() for (a, _), (b, _) in pairs)


def adversarial_loss(generated: Judgements) -> Tensor:
    """Generator loss: its waves should score 1 (2010.05646 §2.4). Chapter 08."""
    return sum((1 - score).square().mean() for score, _ in generated)


def feature_loss(real: Judgements, generated: Judgements) -> Tensor:
    """L1 between the features of the recording, held fixed, and those of the generated
    wave, layer by layer (2010.05646 §2.4). Chapter 08.
    """
    layers = [pair for (_, a), (_, b) in zip(real, generated) for pair in zip(a, b)]
    return sum((a.detach() - b).abs().mean() for a, b in layers)


class Adversarial(nn.Module):
    """A vocoder against discriminators, as one model: each side's loss reaches its own
    weights only. Chapter 08.
    """

    def __init__(self, vocoder: Vocoder, discriminators: Discriminators):
        super().__init__()
        self.vocoder, self.discriminators = vocoder, discriminators

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of both sides (2010.05646 §2.4) on `wave` (B, N) and its `mel` (B,
        1, T, F).

        Both take their steps at the same time, where the authors take turns. AdamW
        scales the step of each weight by its own gradients, so one optimizer serves
        both sides; only the norm for gradient clipping is taken over both.
        """
        wave, mel = batch["wave"], batch["mel"]
        generated = self.vocoder.unlimited(mel)[:, : wave.shape[1]]
        real, told = self.discriminators(wave), self.discriminators(generated.detach())
        still = {k: x.detach() for k, x in self.discriminators.named_parameters()}
        judged = torch.func.functional_call(self.discriminators, still, (generated,))
        losses = {
            "adversarial": adversarial_loss(judged),
            "features": feature_loss(real, judged),
            "mel_l1": (audio.log_mel(generated) - mel).abs().mean(),
            "discriminator": discriminator_loss(real, told),
        }
        weights = {"features": FEATURES, "mel_l1": MEL}
        loss = sum(weights.get(name, 1.0) * x for name, x in losses.items())
        return {"loss": loss, **{name: x.detach() for name, x in losses.items()}}


@dataclass(frozen=True)
class PatchDiscriminatorConfig:
    """Sizes of the discriminator of log-mels; the defaults are latent diffusion's."""

    channels: int = 64  # after the first convolution; doubled by each further one
    n_layers: int = 3  # convolutions that halve the resolution


class PatchDiscriminator(Model):
    """Judges a log-mel patch by patch: PatchGAN (Isola et al., 1611.07004 §3.2.2), as
    latent diffusion trains its autoencoders with it (2112.10752 §3.1).
    """

    config_class = PatchDiscriminatorConfig

    def __init__(self, config: PatchDiscriminatorConfig):
        super().__init__(config)
        n, most = config.n_layers, 8 * config.channels
        widths = [min(config.channels * 2**i, most) for i in range(n + 1)]
        layers = [nn.Conv2d(1, widths[0], 4, 2, padding=1)]
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            stride = 2 if i < n - 1 else 1
            conv = nn.Conv2d(n_in, n_out, 4, stride, padding=1, bias=False)
            layers += [nn.LeakyReLU(0.2), conv, nn.BatchNorm2d(n_out)]
        last = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2), last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, mel: Tensor) -> Tensor:
        """A score for each patch of a log-mel (B, 1, T, F), high for a recording's:
        (B, 1, T', F').
        """
        return self.layers(mel)


class AdversarialVAE(nn.Module):
    """A VAE against a discriminator, as one model (2112.10752 §3.1): each side's loss
    reaches its own weights only.

    The VAE's authors sum L1 over the values of a clip (1024 x 64 at the released
    length), and weight the mean of the KL by 1000 and the adversarial term by half of
    the ratio of both gradients at the decoder's last layer, 10,000 at most. `VAE.loss`
    takes means: the VAE's loss here is theirs over the number of values. They also
    weight a distance between features of VGG, a network for photographs, which is left
    out.

    Args:
        vae, discriminator: both sides.
        start: calls of `loss` in training before the discriminator joins in. It counts
            them in the buffer `calls`, so a resumed run goes on with it.
    """

    weight, most, kl_weight = 0.5, 1e4, 1000.0

    def __init__(self, vae: VAE, discriminator: PatchDiscriminator, start: int = 0):
        super().__init__()
        self.vae, self.discriminator, self.start = vae, discriminator, start
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of both sides on `mel` (B, 1, T, F) and `eps` (B, C, T/r, F/r), in
        nats for each mel value; the hinge loss for the discriminator (1705.02894).
        """
        mel, n = batch["mel"], batch["mel"][0].numel()
        mean, log_variance = self.vae.moments(mel)
        restored = self.vae.restore(mean + (0.5 * log_variance).exp() * batch["eps"])
        l1 = (restored - mel).abs().mean()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).mean()
        real, told = self.discriminator(mel), self.discriminator(restored.detach())
        hinge = 0.5 * ((1 - real).relu().mean() + (1 + told).relu().mean())
        still = {k: x.detach() for k, x in self.discriminator.named_parameters()}
        judged = torch.func.functional_call(self.discriminator, still, (restored,))
        adversarial = -judged.mean()
        on = (self.calls >= self.start).to(l1)  # 0 or 1
        share = on * self.balance(l1, adversarial, n)
        loss = l1 + self.kl_weight / n * kl + share * adversarial + on * hinge
        if self.training:
            self.calls += 1
        losses = {"l1": l1, "kl": kl, "adversarial": adversarial, "hinge": hinge}
        return {"loss": loss, **{name: x.detach() for name, x in losses.items()}}

    def balance(self, l1: Tensor, adversarial: Tensor, n: int) -> Tensor:
        """The weight of the adversarial loss beside the mean L1 over n values; both are
        means over the clips of all processes, and so are their gradients.
        """
        if not torch.is_grad_enabled():
            return l1.new_zeros(())
        last = self.vae.decoder.conv_out.weight
        slope = lambda x: torch.autograd.grad(x, last, retain_graph=True)[0]
        norm = lambda x: gathered(slope(x)[None]).mean(dim=0).norm()
        ratio = n * norm(l1) / (norm(adversarial) + 1e-4)
        return self.weight / n * ratio.clamp(max=self.most).detach()


Discriminators.presets = {
    "tiny": DiscriminatorsConfig(
        period_channels=(4, 16, 64, 128, 128),
        scale_channels=(16, 16, 32, 64, 128, 128, 128),
    ),
    "colab": DiscriminatorsConfig(
        period_channels=(8, 32, 128, 256, 256),
        scale_channels=(32, 32, 64, 128, 256, 256, 256),
    ),
    "full": DiscriminatorsConfig(),
}
PatchDiscriminator.presets = {
    "tiny": PatchDiscriminatorConfig(channels=8),
    "colab": PatchDiscriminatorConfig(channels=32),
    "full": PatchDiscriminatorConfig(),
}
