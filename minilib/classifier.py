"""A small convolutional network that recognises the class of a sound: it judges the
sounds of other models, and is trained separately from all of them. Chapter 17 builds
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.model import Model
from minilib.soundworld import CLASSES, INSTRUMENTS

BATCH = 16  # sounds that are classified together


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of the classifier."""

    classes: tuple[str, ...]  # names of the classes, in the order of the logits
    # channels of each block; each block halves time and frequency
    channels: tuple[int, ...] = (16, 32, 64, 128, 192)
    mel_mean: float = -6.8  # of SoundWorld's log-mel; the input is scaled to mean 0 ...
    mel_std: float = 2.8  # ... and variance 1


class ClassifierBlock(nn.Module):
    """A convolution with batch norm and ReLU, then max pooling.

    Chapter 17.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, pool: int):
        super().__init__()
        around = kernel // 2
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, around, bias=False)
        self.norm = nn.BatchNorm2d(n_out)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """x (B, n_in, T, F) -> (B, n_out, T / stride / pool, F / stride / pool)."""
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), self.pool)


class Classifier(Model):
    """A small convolutional classifier that recognises the class of a sound.

    It is trained on clean renders, separately from everything that it judges, and never
    hears a generated sound in training. Chapter 17.
    """

    config_class = ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__(config)
        widths, n_blocks = (1, *config.channels), len(config.channels)
        self.blocks = nn.ModuleList()
        for i in range(n_blocks):
            kernel, stride = (5, 2) if i == 0 else (3, 1)
            pool = 2 if i < n_blocks - 1 else 1
            block = ClassifierBlock(widths[i], widths[i + 1], kernel, stride, pool)
            self.blocks.append(block)
        self.head = nn.Linear(2 * widths[-1], len(config.classes))
        self.reduction = 2**n_blocks  # frames to one frame of the last block

    def forward(self, mel: Tensor) -> Tensor:
        """Logits (B, K) of the classes from a log-mel (B, 1, T, F), T at least 32."""
        return self.head(self.features(mel))

    def features(self, mel: Tensor) -> Tensor:
        """The features from which the logits are computed: (B, 1, T, F) -> (B, 2C), the
        means and maxima over time and frequency.
        """
        if mel.ndim != 4 or mel.shape[1] != 1 or min(mel.shape[2:]) < self.reduction:
            least = f"(B, 1, T, F) with T and F at least {self.reduction}"
            raise ValueError(f"mel must have shape {least}, not {tuple(mel.shape)}")
        x = (mel - self.config.mel_mean) / self.config.mel_std
        for block in self.blocks:
            x = block(x)
        x = x.flatten(2)  # (B, C, T' * F')
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy, in nats, for `mel` (B, 1, T, F) and `label` (B,), the indices
        of the classes.
        """
        return F.cross_entropy(self(batch["mel"]), batch["label"])

    @torch.no_grad()
    def hear(self, waves: Tensor) -> Tensor:
        """The index of the likeliest class (B,) for each waveform (B, N)."""
        return self.head(self.embed(waves).to(self.device)).argmax(dim=1).cpu()

    @torch.no_grad()
    def embed(self, waves: Tensor) -> Tensor:
        """`features` (B, 2C) of waveforms (B, N)."""
        mels = (audio.log_mel(batch.to(self.device)) for batch in waves.split(BATCH))
        return torch.cat([self.features(mel).cpu() for mel in mels])


# One size for all presets: the measure must not depend on the model being measured.
Classifier.presets = dict.fromkeys(
    ("tiny", "colab", "full"), ClassifierConfig(classes=(*CLASSES, *INSTRUMENTS))
)
