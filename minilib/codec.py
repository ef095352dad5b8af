"""A codec of the log-mel: frames become a few whole numbers each, and come back.

Encoder, residual quantiser and decoder, as in SoundStream (Zeghidour et al.,
2107.03312) and the codecs after it, but of a log-mel instead of a waveform: the vocoder
writes the wave. A config chooses HiFi-Codec's groups (Yang et al., 2305.02765) or
FunCodec's semantic residual (Du et al., 2309.07405). Chapter 19 builds it.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minilib import audio
from minilib.arguments import check_whole
from minilib.layers import gathered
from minilib.model import Model
from minilib.quantise import GRVQ, RVQ
from minilib.vocoder import ConvNeXtBlock


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec, and what its quantiser is given."""

    n_mels: int = audio.N_MELS
    stride: int = 2  # frames of the log-mel in a frame of the codec, M = T / stride
    width: int = 128
    n_layer: int = 3  # blocks of the encoder, and as many of the decoder
    dim: int = 32  # D, of the vectors that are quantised
    n_groups: int = 1  # G: RVQ for 1, GRVQ for more
    n_levels: int = 8  # of each group
    n_codes: int = 64  # K
    n_symbols: int = 0  # of the semantic residual, such as phonemes; 0 for none
    beta: float = 0.25  # weight of the commitment term
    decay: float = 0.99  # of the running means that the codes follow
    restart: float = 0.1  # share of its fair share below which a code starts again
    mel_mean: float = -6.8  # of SoundWorld's log-mel; the input is scaled to mean 0 ...
    mel_std: float = 2.8  # ... and variance 1

    @property
    def n_codebooks(self) -> int:
        """How many codes a frame has: Q."""
        return self.n_groups * self.n_levels

    @property
    def frames_per_second(self) -> float:
        """Frames of the codec in a second."""
        return audio.SAMPLE_RATE / audio.HOP / self.stride

    @property
    def bits_per_code(self) -> float:
        """Bits that one code costs: log2 K."""
        return math.log2(self.n_codes)

    @property
    def bits_per_frame(self) -> float:
        """Bits of all Q codes of a frame; symbols are not counted."""
        return self.n_codebooks * self.bits_per_code

    @property
    def kbit_per_second(self) -> float:
        """Thousands of bits a second of all codebooks; symbols are not counted."""
        return self.bits_per_frame * self.frames_per_second / 1000


class Means(nn.Module):
    """The running mean of the vectors of each symbol, as the V_s of FunCodec's semantic
    residual (2309.07405 §2.3): what the quantiser need not say.

    The means get no gradient. What the decoder gets is V_s plus the quantised rest, and
    the rest is the encoder's vector minus V_s: passed straight through, the two
    gradients with respect to V_s cancel.

    Chapter 19.
    """

    def __init__(self, n_symbols: int, dim: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("hits", torch.zeros(n_symbols))  # running means a batch
        self.register_buffer("sums", torch.zeros(n_symbols, dim))

    def forward(self, symbols: Tensor) -> Tensor:
        """The means (..., D) of symbols (...,); 0 for a symbol never seen."""
        return (self.sums / self.hits.clamp_min(1e-6)[:, None])[symbols]

    @torch.no_grad()
    def follow(self, vectors: Tensor, symbols: Tensor) -> None:
        """Move the means of symbols (...,) towards their vectors (..., D)."""
        rows, own = gathered(vectors.flatten(0, -2)), gathered(symbols.flatten())
        chosen = nn.functional.one_hot(own, len(self.hits)).to(self.sums)
        self.sums.lerp_(chosen.T @ rows.to(self.sums), 1.0 - self.decay)
        self.hits.lerp_(chosen.sum(dim=0), 1.0 - self.decay)


class Coded(NamedTuple):
    """What the codec makes of log-mels (B, 1, T, F)."""

    mel: Tensor  # (B, 1, T, F), back from the codes
    codes: Tensor  # (B, M, Q)
    loss: Tensor  # the quantiser's


class CodecNetworks(Model):
    """The networks of the codec: log-mel to vectors, quantiser, vectors to log-mel.

    Chapter 19.
    """

    config_class = CodecConfig

    def __init__(self, config: CodecConfig):
        super().__init__(config)
        C, n, stride = config.width, config.n_layer, config.stride
        if stride % 2:
            raise ValueError(f"stride must be even, not {stride}")
        blocks = lambda: nn.ModuleList(ConvNeXtBlock(C, 3 * C, n) for _ in range(n))
        around = {"kernel_size": 2 * stride, "stride": stride, "padding": stride // 2}
        self.conv_in = nn.Conv1d(config.n_mels, C, **around)
        self.encoder, self.norm_in = blocks(), nn.LayerNorm(C)
        self.to_latent = nn.Linear(C, config.dim)
        own = config.n_levels, config.n_codes, config.dim
        how = {k: getattr(config, k) for k in ("beta", "decay", "restart")}
        G = config.n_groups
        self.quantiser = RVQ(*own, **how) if G == 1 else GRVQ(G, *own, **how)
        if config.n_symbols:
            self.means = Means(config.n_symbols, config.dim, config.decay)
        self.from_latent = nn.Linear(config.dim, C)
        self.decoder, self.norm_out = blocks(), nn.LayerNorm(C)
        self.conv_out = nn.ConvTranspose1d(C, config.n_mels, **around)

    def latent(self, mel: Tensor) -> Tensor:
        """The encoder's vectors (B, M, D) of a log-mel (B, 1, T, F)."""
        c = self.config
        if mel.dim() != 4 or mel.shape[1] != 1 or mel.shape[2] % c.stride:
            wanted = f"(B, 1, T, F) with T a multiple of {c.stride}"
            raise ValueError(f"mel must be {wanted}, not {tuple(mel.shape)}")
        x = ((mel[:, 0] - c.mel_mean) / c.mel_std).to(self.dtype)  # (B, T, F)
        x = self.conv_in(x.transpose(1, 2)).transpose(1, 2)  # (B, M, width)
        for block in self.encoder:
            x = block(x)
        return self.to_latent(self.norm_in(x))

    def restore(self, z: Tensor) -> Tensor:
        """The log-mel (B, 1, T, F) from vectors (B, M, D)."""
        x = self.from_latent(z.to(self.dtype))
        for block in self.decoder:
            x = block(x)
        x = self.conv_out(self.norm_out(x).transpose(1, 2)).transpose(1, 2)
        return (self.config.mel_mean + self.config.mel_std * x)[:, None]


class Codec(CodecNetworks):
    """Log-mel to codes and back (2107.03312 §III). Chapter 19."""

    def told(self, symbols: Tensor | None, shape: torch.Size) -> Tensor | float:
        """V_s (B, M, D) of symbols (B, M); 0 in a codec without any."""
        S = self.config.n_symbols
        if (symbols is None) != (S == 0):
            known = f"this codec has {S} symbols" if S else "this codec has no symbols"
            given = "none were" if symbols is None else "some were"
            raise ValueError(f"symbols must be given where there are any: {known}, "
                             f"and {given} given")  # fmt: skip
        if symbols is None:
            return 0.0
        check_codes("symbols", symbols, S)
        if symbols.shape != shape:
            wanted, given = tuple(shape), tuple(symbols.shape)
            raise ValueError(f"symbols must be (B, M) = {wanted}, not {given}")
        return self.means(symbols)

    def encode(self, mel: Tensor, symbols: Tensor | None = None) -> Tensor:
        """The codes (B, M, Q) of a log-mel (B, 1, T, F), M = T / stride, from 0 to
        K - 1; with a semantic residual, what symbols (B, M) leave to be said.

        Raises ValueError unless T is a multiple of the stride and symbols fit.
        """
        z = self.latent(mel)
        return self.quantiser.encode(z - self.told(symbols, z.shape[:2]))

    def decode(self, codes: Tensor, symbols: Tensor | None = None) -> Tensor:
        """The log-mel (B, 1, T, F) from the first n codes (B, M, n) of each frame.

        Raises ValueError unless n is from 1 to Q and every code from 0 to K - 1.
        """
        Q, shape = self.config.n_codebooks, tuple(codes.shape)
        if codes.dim() != 3:
            raise ValueError(f"codes must be (B, M, n), not {shape}")
        if not 1 <= shape[2] <= Q:
            said = f"must have 1 to {Q} codebooks, as this codec has, not {shape[2]}"
            raise ValueError(f"codes {said}")
        check_codes("codes", codes, self.config.n_codes)
        z = self.quantiser.decode(codes) + self.told(symbols, codes.shape[:2])
        return self.restore(z)

    def forward(
        self, mel: Tensor, keep: Tensor | None = None, symbols: Tensor | None = None
    ) -> Coded:
        """There and back, with the gradient passed straight through; keep (B,) is the
        number of codebooks that each row uses, None for all.
        """
        z = self.latent(mel)
        if self.training and symbols is not None and self.config.n_symbols:
            self.means.follow(z.detach(), symbols)
        said = self.told(symbols, z.shape[:2])
        made = self.quantiser(z - said, keep)
        return Coded(self.restore(made.vectors + said), made.codes, made.loss)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """L1 of the log-mel plus the quantiser's loss, of `mel` (B, 1, T, F), and
        where there are any `keep` (B,) and `symbols` (B, M).
        """
        made = self(batch["mel"], batch.get("keep"), batch.get("symbols"))
        l1 = (made.mel - batch["mel"]).abs().mean()
        return {"loss": l1 + made.loss, "l1": l1.detach(), "vq": made.loss.detach()}

    def first(self, n: int | None) -> int:
        """n, if the codec has as many codebooks; all for None."""
        Q = self.config.n_codebooks
        return Q if n is None else check_whole("codebooks", n, 1, Q)

    @property
    def fingerprint(self) -> str:
        """Eight digits that tell codecs apart: models of codes store them, and codes
        mean nothing to another codec. Saving in half precision doesn't change them.
        """
        books = [x for name, x in self.quantiser.named_parameters() if "embed" in name]
        half = torch.cat([x.detach().flatten() for x in books]).to("cpu", torch.float16)
        return f"{zlib.crc32(half.numpy().tobytes()):08x}"

    def check_fingerprint(self, wanted: str) -> None:
        """Raise ValueError unless this is the codec whose fingerprint is wanted."""
        if wanted != self.fingerprint:
            said = f"these weights need codec {wanted}, and this one is"
            raise ValueError(f"the codec is another one: {said} {self.fingerprint}")


def check_codes(name: str, codes: Tensor, n: int) -> None:
    """Raise ValueError unless codes, of any shape, are whole numbers from 0 to n - 1;
    `name` is what the sentence calls them.
    """
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, not {codes.dtype}")
    if codes.numel() and not (0 <= codes.min() and codes.max() < n):
        worst = int(codes.min() if codes.min() < 0 else codes.max())
        raise ValueError(f"{name} must lie between 0 and {n - 1}, not be {worst}")


Codec.presets = {
    "tiny": CodecConfig(),
    "colab": CodecConfig(width=384, n_layer=6, dim=64, n_codes=256),
    "full": CodecConfig(width=768, n_layer=8, dim=128, n_codes=1024),
}
