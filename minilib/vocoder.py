"""From the log-mel back to a waveform: HiFi-GAN, and Vocos with an inverse-STFT head.

HiFi-GAN (Kong et al., 2010.05646) is the released model's vocoder, and has the names
and layout of transformers' SpeechT5HifiGan. Vocos (Siuzdak, 2306.00814) keeps one
resolution and leaves the upsampling to an inverse STFT: many times faster on a CPU, so
the `tiny` pipeline uses it. Chapter 08 builds both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.model import Model

# Of a log-mel: the loudest bands of SoundWorld's clips reach it, and those of a tone at
# full scale.
LOUDEST = 2.0


@dataclass(frozen=True)
class HiFiGANConfig:
    """Sizes of the HiFi-GAN generator; the defaults are the released model's.

    Chapter 08.
    """

    model_in_dim: int = 64  # mel bands
    upsample_initial_channel: int = 1024  # halved at every upsampling
    # their product is the hop, 160 samples
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = (
        (1, 3, 5),
        (1, 3, 5),
        (1, 3, 5),
    )
    leaky_relu_slope: float = 0.1


class ResidualStack(nn.Module):
    """One receptive field of HiFi-GAN: pairs of a dilated and a plain convolution
    (2010.05646 §2.2).

    Chapter 08.
    """

    def __init__(
        self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float
    ):
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(
            nn.Conv1d(
                channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2
            )
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2)
            for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(
                F.leaky_relu(dilated(F.leaky_relu(x, self.slope)), self.slope)
            )
        return x  # (B, C, N)


class HiFiGAN(Model):
    """The HiFi-GAN generator: transposed convolutions up to the sample rate (2010.05646
    §2.2).

    Chapter 08.
    """

    config_class = HiFiGANConfig

    def __init__(self, config: HiFiGANConfig):
        super().__init__(config)
        channels = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.model_in_dim, channels, 7, padding=3)
        self.upsampler, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(
            config.upsample_rates, config.upsample_kernel_sizes, strict=True
        ):
            up = nn.ConvTranspose1d(
                channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2
            )
            self.upsampler.append(up)
            channels //= 2
            for size, dilations in zip(
                config.resblock_kernel_sizes,
                config.resblock_dilation_sizes,
                strict=True,
            ):
                self.resblocks.append(
                    ResidualStack(channels, size, dilations, config.leaky_relu_slope)
                )
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)
        # kept by the released weights, not used
        self.register_buffer("mean", torch.zeros(config.model_in_dim))
        self.register_buffer("scale", torch.ones(config.model_in_dim))

    @property
    def context(self) -> int:
        """Frames to either side that a sample depends on."""
        config, rate = self.config, 1
        reach = 3.0  # of conv_pre, in frames
        for step, kernel in zip(
            config.upsample_rates, config.upsample_kernel_sizes, strict=True
        ):
            reach += kernel / step / rate
            rate *= step
            pairs = zip(
                config.resblock_kernel_sizes,
                config.resblock_dilation_sizes,
                strict=True,
            )
            reach += (
                max(
                    sum((d + 1) * (size - 1) / 2 for d in dilations)
                    for size, dilations in pairs
                )
                / rate
            )
        return math.ceil(reach + 3 / rate)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Turn a log-mel (B, 1, T, F) into a waveform (B, N), N = 160 T (and 32 more,
        as released).

        Chapter 08.
        """
        x = self.conv_pre(log_mel[:, 0].transpose(1, 2))  # (B, F, T) -> (B, C, T)
        n = len(self.config.resblock_kernel_sizes)
        for i, upsample in enumerate(self.upsampler):
            # (B, C, n) -> (B, C/2, n * rate)
            x = upsample(F.leaky_relu(x, self.config.leaky_relu_slope))
            x = torch.stack(
                [block(x) for block in self.resblocks[i * n : (i + 1) * n]]
            ).mean(dim=0)
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0]

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Spectral distance to `wave` (B, 160 T) from its `mel` (B, 1, T, F), without a
        discriminator.

        Chapter 08.
        """
        n = batch["wave"].shape[-1]
        return spectral_loss(self(batch["mel"])[:, :n], batch["wave"], batch["mel"])


@dataclass(frozen=True)
class VocosConfig:
    """Sizes of the inverse-STFT vocoder. Chapter 08."""

    n_mels: int = audio.N_MELS
    dim: int = 512
    intermediate_dim: int = 1536
    n_layer: int = 8
    n_fft: int = audio.N_FFT


class ConvNeXtBlock(nn.Module):
    """Depth-wise convolution, then a network at each frame (Liu et al., 2201.03545, in
    one dimension).

    Chapter 08.
    """

    def __init__(self, dim: int, intermediate_dim: int, n_layer: int):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, intermediate_dim)
        self.pwconv2 = nn.Linear(intermediate_dim, dim)
        # each block starts as a small change
        self.gamma = nn.Parameter(torch.full((dim,), 1.0 / n_layer))

    def forward(self, x: Tensor) -> Tensor:
        h = self.dwconv(x.transpose(1, 2)).transpose(1, 2)  # (B, T, dim)
        return x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(h))))


class Vocos(Model):
    """A vocoder that predicts magnitude and phase of every STFT bin, then inverts
    (2306.00814 §3).

    The magnitude is a correction of the one that the pseudo-inverse of the mel filters
    gives, so that an untrained network already has the right loudness in the right
    band. Chapter 08.
    """

    config_class = VocosConfig

    def __init__(self, config: VocosConfig):
        super().__init__(config)
        K = config.n_fft // 2 + 1
        self.embed = nn.Conv1d(config.n_mels, config.dim, 7, padding=3)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.convnext = nn.ModuleList(
            ConvNeXtBlock(config.dim, config.intermediate_dim, config.n_layer)
            for _ in range(config.n_layer)
        )
        self.final_norm = nn.LayerNorm(config.dim, eps=1e-6)
        # log-magnitude correction, real and imaginary part of the phase
        self.head = nn.Linear(config.dim, 3 * K)

    @property
    def context(self) -> int:
        """Frames to either side that a sample depends on."""
        return 3 + 3 * len(self.convnext) + math.ceil(self.config.n_fft / 2 / audio.HOP)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Turn a log-mel (B, 1, T, F) into a waveform (B, 160 T) in [-1, 1].

        Chapter 08.
        """
        return soft_limit(self.unlimited(log_mel))

    def unlimited(self, log_mel: Tensor) -> Tensor:
        """The waveform (B, 160 T) before it is limited: the loss must see what is too
        loud.

        Chapter 08.
        """
        return audio.istft(self.spectrum(log_mel), log_mel.shape[2] * audio.HOP)

    def spectrum(self, log_mel: Tensor) -> Tensor:
        """The complex STFT (B, T, K) that the network gives for a log-mel (B, 1, T, F).

        Chapter 08.
        """
        x = (log_mel[:, 0] + 7.0) / 3.0  # (B, T, F), about unit variance
        h = self.norm(self.embed(x.transpose(1, 2)).transpose(1, 2))  # (B, T, dim)
        for block in self.convnext:
            h = block(h)
        # each (B, T, K)
        correction, real, imaginary = (
            self.head(self.final_norm(h)).float().chunk(3, dim=-1)
        )
        magnitude = (
            audio.mel_to_linear(log_mel).clamp(min=1e-5)
            * correction.clamp(-7.0, 7.0).exp()
        )
        # the two parts give the phase, never its length
        scale = magnitude * (real**2 + imaginary**2 + 1e-8).rsqrt()
        return torch.complex(scale * real, scale * imaginary)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Spectral distance to `wave` (B, 160 T) from its `mel` (B, 1, T, F), without a
        discriminator.

        Chapter 08.
        """
        return spectral_loss(self.unlimited(batch["mel"]), batch["wave"], batch["mel"])


def vocode(vocoder: HiFiGAN | Vocos, log_mel: Tensor, frames: int = 512) -> Tensor:
    """What the vocoder makes of a log-mel (B, 1, T, F) that a network wrote, `frames`
    at a time: in less memory.

    Each piece is given the surroundings that it depends on. Guidance may ask for more
    than a wave can hold: with Vocos, no band gets louder than any clip's, and a sound
    that would leave [-1, 1] is turned down as a whole, where bending its peaks would be
    heard as clicks. (HiFi-GAN ends in a tanh.) Chapter 08.
    """
    T, context, pieces = log_mel.shape[2], vocoder.context, []
    bounded = isinstance(vocoder, HiFiGAN)
    speak = vocoder if bounded else lambda x: vocoder.unlimited(x.clamp(max=LOUDEST))
    for start in range(0, T, frames):
        before = min(start, context)
        wave = speak(log_mel[:, :, start - before : start + frames + context])
        last = start + frames >= T
        pieces.append(
            wave[
                :, before * audio.HOP : None if last else (before + frames) * audio.HOP
            ]
        )
    wave = torch.cat(pieces, dim=1)
    return (
        wave if bounded else wave / wave.abs().amax(dim=1, keepdim=True).clamp_min(1.0)
    )


def soft_limit(wave: Tensor, knee: float = 0.8) -> Tensor:
    """Bend what is above the knee towards 1, and leave the rest as it is.

    The phases that a vocoder finds are not the recording's, so that the peaks of a loud
    sound come out higher or lower; cut off at 1 they would crackle. (HiFi-GAN ends in a
    tanh.) wave: any shape. Chapter 08.
    """
    size = wave.abs()
    bent = knee + (1.0 - knee) * torch.tanh((size - knee) / (1.0 - knee))
    return torch.where(size > knee, wave.sign() * bent, wave)


def spectral_loss(
    generated: Tensor, wave: Tensor, log_mel: Tensor
) -> dict[str, Tensor]:
    """L1 of the log-mel plus spectral convergence and log-magnitude L1 at three
    resolutions.

    The mel term is HiFi-GAN's (2010.05646 §2.4), the others Parallel WaveGAN's
    (1910.11480 Eq. 6-8); they replace the discriminators that a few minutes on a CPU do
    not pay for. Waves (B, N). Chapter 08.
    """
    mel_l1 = (audio.log_mel(generated) - log_mel).abs().mean()
    stft = sum(stft_distance(generated, wave, n_fft) for n_fft in (256, 512, 2048)) / 3
    return {"loss": mel_l1 + stft, "mel_l1": mel_l1.detach(), "stft": stft.detach()}


def stft_distance(generated: Tensor, wave: Tensor, n_fft: int) -> Tensor:
    """Spectral convergence plus log-magnitude L1 at one resolution (1910.11480 Eq. 7,
    8). Waves (B, N).

    Chapter 08.
    """
    window = torch.hann_window(n_fft, device=wave.device)
    a, b = (
        torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True)
        .abs()
        .clamp(min=1e-4)
        for x in (generated, wave)
    )
    convergence = (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    return convergence.mean() + (a.log() - b.log()).abs().mean()


HiFiGAN.presets = {
    "tiny": HiFiGANConfig(upsample_initial_channel=128),
    "colab": HiFiGANConfig(upsample_initial_channel=256),
    "full": HiFiGANConfig(),
}
Vocos.presets = {
    "tiny": VocosConfig(dim=192, intermediate_dim=576, n_layer=5),
    "colab": VocosConfig(dim=384, intermediate_dim=1152, n_layer=8),
    "full": VocosConfig(),
}
