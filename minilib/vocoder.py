"""From the log-mel back to a waveform: HiFi-GAN, and Vocos with an inverse-STFT head.

HiFi-GAN (Kong et al., 2010.05646) is the released model's vocoder, and has the names
and layout of transformers' SpeechT5HifiGan. Vocos (Siuzdak, 2306.00814) keeps one
resolution and leaves the upsampling to an inverse STFT. This is several times faster on
a CPU, so the `tiny` pipeline uses it. Chapter 08 builds both.
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


class Vocoder(Model):
    """What vocoders share: log-mels (B, 1, T, F) in, waves (B, N) out. Chapter 08."""

    def wave(self, log_mel: Tensor) -> Tensor:
        """The waveform for a log-mel that a network wrote."""
        return self(log_mel)

    def unlimited(self, log_mel: Tensor) -> Tensor:
        """The waveform that the losses read, before any limit."""
        return self(log_mel)

    @staticmethod
    def full(x: Tensor) -> Tensor:
        """x in single precision at least: rounding to half precision adds noise."""
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`spectral_loss` of `wave` (B, N) from its `mel` (B, 1, T, F)."""
        wave, mel = batch["wave"], batch["mel"]
        return spectral_loss(self.unlimited(mel)[:, : wave.shape[1]], wave, mel)


@dataclass(frozen=True)
class HiFiGANConfig:
    """Sizes of the HiFi-GAN generator; the defaults are the released model's."""

    model_in_dim: int = 64  # mel bands
    upsample_initial_channel: int = 1024  # halved at every upsampling
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)  # product: the hop, 160 samples
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    leaky_relu_slope: float = 0.1

    @property
    def upsampling(self) -> list[tuple[int, int]]:
        """Rate and kernel of every upsampling."""
        pairs = zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)
        return list(pairs)

    @property
    def receptive_fields(self) -> list[tuple[int, tuple[int, ...]]]:
        """Kernel and dilations of each receptive field, side by side at every rate."""
        kernels, dilations = self.resblock_kernel_sizes, self.resblock_dilation_sizes
        return list(zip(kernels, dilations, strict=True))

    @property
    def context(self) -> int:
        """Frames to either side that a sample depends on."""
        reach, rate = 3.0, 1  # of conv_pre, in frames
        sizes = self.receptive_fields
        widest = max(sum(d + 1 for d in D) * (size - 1) / 2 for size, D in sizes)
        for step, kernel in self.upsampling:
            reach += kernel / step / rate + widest / (rate * step)
            rate *= step
        return math.ceil(reach + 3 / rate)


class ResidualStack(nn.Module):
    """One receptive field of HiFi-GAN: pairs of a dilated and a plain convolution
    (2010.05646 §2.2). Chapter 08.
    """

    def __init__(
        self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float
    ):
        super().__init__()
        self.slope, reach = slope, (kernel - 1) // 2
        sizes = channels, channels, kernel
        conv = lambda d: nn.Conv1d(*sizes, dilation=d, padding=d * reach)
        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2):
            h = dilated(F.leaky_relu(x, self.slope))
            x = x + plain(F.leaky_relu(h, self.slope))
        return x  # (B, C, N)


class HiFiGAN(Vocoder):
    """The HiFi-GAN generator: transposed convolutions up to the sample rate (2010.05646
    §2.2). Chapter 08.
    """

    config_class = HiFiGANConfig

    def __init__(self, config: HiFiGANConfig):
        super().__init__(config)
        C, slope = config.upsample_initial_channel, config.leaky_relu_slope
        self.conv_pre = nn.Conv1d(config.model_in_dim, C, 7, padding=3)
        self.upsampler, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in config.upsampling:
            around = (kernel - rate) // 2
            up = nn.ConvTranspose1d(C, C // 2, kernel, rate, padding=around)
            self.upsampler.append(up)
            C //= 2
            for size, dilations in config.receptive_fields:
                self.resblocks.append(ResidualStack(C, size, dilations, slope))
        self.conv_post = nn.Conv1d(C, 1, 7, padding=3)
        # part of the released weights, unused
        self.register_buffer("mean", torch.zeros(config.model_in_dim))
        self.register_buffer("scale", torch.ones(config.model_in_dim))

    def forward(self, log_mel: Tensor) -> Tensor:
        """Turn a log-mel (B, 1, T, F) into a waveform (B, N) in [-1, 1], N = 160 T (and
        32 more, as released).
        """
        x = log_mel[:, 0].transpose(1, 2).to(self.dtype)  # (B, F, T)
        x = self.conv_pre(x)  # (B, C, T)
        n = len(self.config.receptive_fields)
        for i, upsample in enumerate(self.upsampler):
            # (B, C, n) -> (B, C/2, n * rate)
            x = upsample(F.leaky_relu(x, self.config.leaky_relu_slope))
            blocks = self.resblocks[i * n : (i + 1) * n]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        return self.full(torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0])


@dataclass(frozen=True)
class VocosConfig:
    """Sizes of the inverse-STFT vocoder."""

    n_mels: int = audio.N_MELS
    dim: int = 512
    intermediate_dim: int = 1536
    n_layer: int = 8
    n_fft: int = audio.N_FFT

    @property
    def context(self) -> int:
        """Frames to either side that a sample depends on."""
        return 3 + 3 * self.n_layer + math.ceil(self.n_fft / 2 / audio.HOP)


class ConvNeXtBlock(nn.Module):
    """Depth-wise convolution, then a network at each frame (Liu et al., 2201.03545, in
    one dimension). Chapter 08.
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


class Vocos(Vocoder):
    """A vocoder that predicts magnitude and phase of every STFT bin, then inverts
    (2306.00814 §3).

    The magnitude is the estimate of the mel filters' pseudo-inverse times a correction,
    so an untrained network already has about the right loudness in each band.
    Chapter 08.
    """

    config_class = VocosConfig

    def __init__(self, config: VocosConfig):
        super().__init__(config)
        dim, n_layer, K = config.dim, config.n_layer, config.n_fft // 2 + 1
        block = lambda: ConvNeXtBlock(dim, config.intermediate_dim, n_layer)
        self.embed = nn.Conv1d(config.n_mels, dim, 7, padding=3)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convnext = nn.ModuleList(block() for _ in range(n_layer))
        self.final_norm = nn.LayerNorm(dim, eps=1e-6)
        # log-magnitude correction, real and imaginary part of the phase
        self.head = nn.Linear(dim, 3 * K)

    def spectrum(self, log_mel: Tensor) -> Tensor:
        """The complex STFT (B, T, K) predicted for a log-mel (B, 1, T, F)."""
        log_mel = self.full(log_mel)
        # (B, T, F), about unit variance
        x = ((log_mel[:, 0] + 7.0) / 3.0).to(self.dtype)
        h = self.norm(self.embed(x.transpose(1, 2)).transpose(1, 2))  # (B, T, dim)
        for block in self.convnext:
            h = block(h)
        h = self.head(self.final_norm(h)).float()
        correction, real, imaginary = h.chunk(3, dim=-1)  # each (B, T, K)
        guess = audio.mel_to_linear(log_mel).clamp(min=1e-5)
        magnitude = guess * correction.clamp(-7.0, 7.0).exp()
        # the two parts give the phase, never its length
        scale = magnitude * (real**2 + imaginary**2 + 1e-8).rsqrt()
        return torch.complex(scale * real, scale * imaginary)

    def unlimited(self, log_mel: Tensor) -> Tensor:
        """The waveform (B, 160 T) before the limit, so a loss sees what is too loud."""
        return audio.istft(self.spectrum(log_mel), log_mel.shape[2] * audio.HOP)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Turn a log-mel (B, 1, T, F) into a waveform (B, 160 T) in [-1, 1]."""
        return soft_limit(self.unlimited(log_mel))

    def wave(self, log_mel: Tensor) -> Tensor:
        """The waveform for a log-mel that a network wrote: no band louder than any
        clip's, and no peak bent (`vocode` turns down what is too loud).
        """
        return self.unlimited(log_mel.clamp(max=LOUDEST))


def vocode(vocoder: Vocoder, log_mel: Tensor, frames: int = 512) -> Tensor:
    """Turn a log-mel (B, 1, T, F) that a network wrote into waves, `frames` at a time,
    to save memory.

    Each piece is given the surroundings that it depends on. Guidance may ask for more
    than a wave can hold: a sound that would leave [-1, 1] is turned down as a whole,
    because bending its peaks would distort it.
    """
    T, context, pieces = log_mel.shape[2], vocoder.config.context, []
    for start in range(0, T, frames):
        first = max(start - context, 0)
        wave = vocoder.wave(log_mel[:, :, first : start + frames + context])
        end = (start + frames - first) * audio.HOP if start + frames < T else None
        pieces.append(wave[:, (start - first) * audio.HOP : end])
    wave = torch.cat(pieces, dim=1)
    return wave / wave.abs().amax(dim=1, keepdim=True).clamp_min(1.0)


def soft_limit(wave: Tensor, knee: float = 0.8) -> Tensor:
    """Bend what is above the knee towards 1, and leave the rest as it is.

    The phases that a vocoder finds are not the recording's, so the peaks of a loud
    sound may come out above 1, where a hard cut would add frequencies that were not
    there. (HiFi-GAN ends in a tanh.) wave: any shape.
    """
    size = wave.abs()
    bent = knee + (1.0 - knee) * torch.tanh((size - knee) / (1.0 - knee))
    return torch.where(size > knee, wave.sign() * bent, wave)


def stft_distance(generated: Tensor, wave: Tensor, n_fft: int) -> Tensor:
    """Spectral convergence plus log-magnitude L1 of waves (B, N) at one resolution
    (Yamamoto et al., 1910.11480). Chapter 08.
    """
    window = torch.hann_window(n_fft, device=wave.device)
    stft = lambda x: torch.stft(
        x, n_fft, n_fft // 4, window=window, return_complex=True
    )
    a, b = (stft(x).abs().clamp(min=1e-4) for x in (generated, wave))
    convergence = (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    return convergence.mean() + (a.log() - b.log()).abs().mean()


def spectral_loss(
    generated: Tensor, wave: Tensor, log_mel: Tensor
) -> dict[str, Tensor]:
    """L1 of the log-mel plus `stft_distance` at three resolutions; waves (B, N).

    The mel term is HiFi-GAN's (2010.05646 §2.4), the others Parallel WaveGAN's
    (1910.11480); they stand in for the discriminators, which take longer to train.
    Chapter 08.
    """
    mel_l1 = (audio.log_mel(generated) - log_mel).abs().mean()
    stft = sum(stft_distance(generated, wave, n_fft) for n_fft in (256, 512, 2048)) / 3
    return {"loss": mel_l1 + stft, "mel_l1": mel_l1.detach(), "stft": stft.detach()}


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
VOCODERS: dict[str, type[Vocoder]] = {"tiny": Vocos, "colab": HiFiGAN, "full": HiFiGAN}
