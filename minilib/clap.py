"""CLAP: captions and sounds in one space, where a matching pair points the same way.

Contrastive Language-Audio Pretraining (Elizalde et al., 2206.04769): a BERT (Devlin et
al., 1810.04805) whose [CLS] state stands for the sentence, a stack of 2-D convolutions
over the log-mel (PANNs, Kong et al., 1912.10211), and a projection each. AudioLDM 2
takes its global condition and the ranking of its candidates from it. Chapter 10 builds
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.conditions import Context
from minilib.layers import attention, gathered
from minilib.model import Model
from minilib.tokenizer import CLS, Reader, check_ids

INITIAL_TEMPERATURE = 0.07
# beyond it training is unstable (Radford et al., 2103.00020 §2.5)
MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(frozen=True)
class CLAPConfig:
    """Sizes of both towers; the defaults are those of Elizalde et al.: BERT-base and
    Cnn14.

    Chapter 10.
    """

    dim: int = 1024  # of the space in which captions and sounds meet
    dropout: float = 0.5  # in the projections
    vocab_size: int = 30522
    n_embd: int = 768  # width of the text tower
    n_layer: int = 12
    n_head: int = 12
    n_positions: int = 512  # <cls> included
    # of each convolutional block
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    # of the first convolution; 2 makes the audio tower four times cheaper
    stride: int = 1
    # of SoundWorld's log-mel: the audio tower sees zero mean ...
    mel_mean: float = -6.8
    mel_std: float = 2.8  # ... and unit variance


class BERTLayer(nn.Module):
    """Self-attention, then a network, each added to its input, *then* normalised
    (1810.04805).

    Chapter 10.
    """

    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.attn_in = nn.Linear(n_embd, 3 * n_embd)
        self.attn_out = nn.Linear(n_embd, n_embd)
        self.norm_1 = nn.LayerNorm(n_embd, eps=1e-12)
        self.mlp_in = nn.Linear(n_embd, 4 * n_embd)
        self.mlp_out = nn.Linear(4 * n_embd, n_embd)
        self.norm_2 = nn.LayerNorm(n_embd, eps=1e-12)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """x (B, S, n_embd), keep (B, 1, 1, S) bool -> (B, S, n_embd)."""
        q, k, v = self.attn_in(x).chunk(3, dim=-1)
        h = self.attn_out(attention(q, k, v, self.n_head, keep))
        x = self.norm_1(x + h)
        return self.norm_2(x + self.mlp_out(F.gelu(self.mlp_in(x))))


class TextTower(nn.Module):
    """BERT (1810.04805): learned positions, full attention, [CLS] stands for the
    sentence.

    Chapter 10.
    """

    def __init__(self, config: CLAPConfig):
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.n_embd)
        self.position = nn.Embedding(config.n_positions, config.n_embd)
        self.norm = nn.LayerNorm(config.n_embd, eps=1e-12)
        self.layers = nn.ModuleList(
            BERTLayer(config.n_embd, config.n_head) for _ in range(config.n_layer)
        )
        self.apply(self.initialise)

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Draw weights as BERT does: normal with a standard deviation of 0.02, biases
        zero.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, S) without <cls>, mask (B, S) -> state of [CLS] (B, n_embd)."""
        most = self.position.num_embeddings - 1
        mask = check_ids(ids, mask, self.token.num_embeddings, most)
        ids = F.pad(ids, (1, 0), value=CLS)  # (B, 1 + S)
        keep = F.pad(mask, (1, 0), value=True)[:, None, None]  # (B, 1, 1, 1 + S)
        position = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.token(ids) + self.position(position))
        for layer in self.layers:
            x = layer(x, keep)
        return x[:, 0]


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, then a mean over squares
    (1912.10211).

    Chapter 10.
    """

    def __init__(self, n_in: int, n_out: int, pool: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """x (B, n_in, T, F) -> (B, n_out, T / stride / pool, F / stride / pool)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


class AudioTower(nn.Module):
    """2-D convolutions over the log-mel, pooled to a vector: PANNs' Cnn14 (1912.10211).

    Chapter 10.
    """

    def __init__(self, config: CLAPConfig):
        super().__init__()
        self.mel_mean, self.mel_std = config.mel_mean, config.mel_std
        widths, n_blocks = (1, *config.channels), len(config.channels)
        self.blocks = nn.ModuleList()
        for i in range(n_blocks):
            pool = 2 if i < n_blocks - 1 else 1
            stride = config.stride if i == 0 else 1
            self.blocks.append(ConvBlock(widths[i], widths[i + 1], pool, stride))
        self.fc = nn.Linear(widths[-1], widths[-1])
        # mel frames to one frame of the last block
        self.reduction = config.stride * 2 ** (n_blocks - 1)

    def forward(self, log_mel: Tensor) -> Tensor:
        """log_mel (B, 1, T, F) -> (B, channels[-1])."""
        shape, least = tuple(log_mel.shape), self.reduction
        if len(shape) != 4 or shape[1] != 1 or min(shape[2:]) < least:
            wanted = f"(B, 1, T, F), T and F at least {least}"
            raise ValueError(f"log_mel must have shape {wanted}, not {shape}")
        x = (log_mel - self.mel_mean) / self.mel_std
        for block in self.blocks:
            x = block(x)
        x = x.mean(dim=3)  # (B, C, T'): over frequency
        x = x.amax(dim=2) + x.mean(dim=2)  # (B, C): the loudest moment and the whole
        return F.relu(self.fc(x))


class ProjectionHead(nn.Module):
    """Bring a tower's vector into the common space: LN(e1 + dropout(W2 GELU(e1))), e1 =
    W1 x (2206.04769).

    The result has unit length. Chapter 10.
    """

    def __init__(self, n_in: int, dim: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(n_in, dim, bias=False)
        self.linear2 = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, n_in) -> (B, dim), of unit length."""
        e1 = self.linear1(x)
        e2 = self.dropout(self.linear2(F.gelu(e1)))
        return F.normalize(self.norm(e1 + e2), dim=-1)


def same_captions(ids: Tensor) -> Tensor:
    """Tell which captions of a batch are alike, token by token: ids (B, S) -> (B, B)
    bool.

    Chapter 10.
    """
    return (ids[:, None, :] == ids[None, :, :]).all(dim=-1)


def contrastive_loss(
    text: Tensor, audio: Tensor, logit_scale: Tensor, same: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy: find the sound by its caption in the batch, and the
    reverse (2206.04769).

    Args:
        text, audio: embeddings (B, D) of unit length; row i of one belongs to row i of
            the other.
        logit_scale: 1 / temperature.
        same: (B, B) bool, True where two captions are alike: those are not counted as
            wrong answers.

    Returns:
        The mean of both directions, in nats; log(B) is chance. Chapter 10.
    """
    logits = logit_scale * text @ audio.T  # (B, B): captions by sounds
    if same is not None:
        other = same & ~torch.eye(len(text), dtype=torch.bool, device=text.device)
        logits = logits.masked_fill(other, float("-inf"))
    target = torch.arange(len(text), device=text.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class CLAP(Reader, Model):
    """Two towers, two projections and a learned temperature (Elizalde et al.,
    2206.04769).

    Chapter 10.
    """

    config_class = CLAPConfig

    def __init__(self, config: CLAPConfig):
        super().__init__(config)
        self.dim = config.dim
        self.text, self.audio = TextTower(config), AudioTower(config)
        head = lambda n_in: ProjectionHead(n_in, config.dim, config.dropout)
        self.text_projection = head(config.n_embd)
        self.audio_projection = head(config.channels[-1])
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def embed_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed captions: ids (B, S) of the tokenizer, mask (B, S) -> (B, dim), of unit
        length.
        """
        return self.text_projection(self.text(ids, mask))

    def embed_audio(self, log_mel: Tensor) -> Tensor:
        """Embed sounds: log_mel (B, 1, T, F) -> (B, dim), of unit length."""
        return self.audio_projection(self.audio(log_mel.to(self.dtype)))

    def embed_waves(self, waves: Tensor) -> Tensor:
        """Embed sounds from their waveforms: (B, N) at 16 kHz -> (B, dim), of unit
        length.
        """
        return self.embed_audio(audio.log_mel(waves.float()))

    def encode(self, inputs: list[str], pad_to: int = 0) -> Context:
        """Encode B captions as a condition: one vector each, (B, 1, dim), whatever
        `pad_to`.
        """
        return Context(self.embed_text(*self.read(inputs))[:, None])

    @staticmethod
    def similarity(text: Tensor, audio: Tensor) -> Tensor:
        """Cosine of every caption with every sound: embeddings (B, dim), (N, dim) ->
        (B, N) in [-1, 1].
        """
        return text @ audio.T

    def forward(
        self, ids: Tensor, mask: Tensor | None, log_mel: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embed captions and sounds -> text (B, dim), audio (N, dim)."""
        return self.embed_text(ids, mask), self.embed_audio(log_mel)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Contrastive loss of a batch of B pairs, in nats; if several processes train,
        of all their batches together.

        The batch holds `log_mel` (B, 1, T, F), `ids` and `mask` (B, S), and `same` (B,
        B) bool, True for like captions of all pairs; without it, captions are compared
        by their ids.
        """
        # the parameter itself: clamped in use only, it would have no gradient there
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        text, audio = map(gathered, self(batch["ids"], batch["mask"], batch["log_mel"]))
        same = batch.get("same")
        same = same_captions(gathered(batch["ids"])) if same is None else same
        return contrastive_loss(text, audio, self.logit_scale.exp(), same)


CLAP.presets = {
    "tiny": CLAPConfig(  # without dropout: all that is random in its loss is the batch
        dim=128, dropout=0.0, vocab_size=1000, n_embd=128, n_layer=2, n_head=4,
        n_positions=80, channels=(24, 48, 96, 192), stride=2,
    ),
    "colab": CLAPConfig(
        dim=256, dropout=0.1, vocab_size=4000, n_embd=256, n_layer=4, n_head=8,
        n_positions=160, channels=(32, 64, 128, 256, 512),
    ),
    "full": CLAPConfig(),
}  # fmt: skip
