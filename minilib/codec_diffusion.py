"""Diffusion of a codec's vectors along a plan, as in NaturalSpeech 2 (Shen et al.,
2304.09116).

The latent is the sum of the vectors of all codebooks: no code is written, so more
codebooks cost nothing more. How long each phoneme lasts and how high the voice is are
predicted first, so that every frame knows what it says. Then a WaveNet removes noise
from all frames at once, and a prompt says in whose voice. Chapter 24 builds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import diffusion
from minilib.layers import attention
from minilib.model import Model
from minilib.phonemes import PhonemeTokenizer
from minilib.unet import TimeEmbedding


@dataclass(frozen=True)
class NaturalSpeech2Config:
    """Sizes; the defaults are those that ship."""

    n_symbols: int = PhonemeTokenizer.vocab_size
    dim: int = 32  # D, of the codec's vectors
    n_q: int = 8  # codebooks whose vectors are summed, Q
    n_codes: int = 64  # of each, K
    width: int = 96
    n_head: int = 4
    n_block: int = 2  # of the phoneme encoder, the prompt encoder and each predictor
    n_layer: int = 9  # of the WaveNet
    cycle: int = 3  # dilations are 1, 2, 4, 1, ...
    n_queries: int = 8  # learned, through which the WaveNet reads the prompt
    n_pitches: int = 64  # steps from 50 to 500 Hz
    n_steps: int = 1000  # T
    beta_1: float = 5e-5  # 0.05 and 20 over T: the paper's variance-preserving process
    beta_T: float = 0.02
    ce: float = 0.1  # lambda, the weight of the cross-entropy
    scale: float = 1.0  # brings the codec's vectors to variance 1
    codec: str = ""  # the fingerprint of the codec whose vectors these are


def ce_rvq(z: Tensor, codes: Tensor, codebooks: Tensor) -> Tensor:
    """The cross-entropy of codes under what predicted vectors leave over, in nats a
    code (2304.09116 §3.2, L_ce-rvq).

    At level q the logits are minus the squared distances from z, less the true vectors
    of the levels before, to the codebook. What does not depend on the code is left out.

    Args:
        z: (..., D) predicted; codes: (..., Q) true; codebooks: (Q, K, D).

    Chapter 24.
    """
    vectors = codebooks[torch.arange(len(codebooks)), codes]  # (..., Q, D)
    rest = z[..., None, :] - (vectors.cumsum(dim=-2) - vectors)  # (..., Q, D)
    logits = 2 * torch.einsum("...qd,qkd->...qk", rest, codebooks)
    logits = logits - codebooks.square().sum(dim=2)
    return F.cross_entropy(logits.flatten(0, -2), codes.flatten())


def expand(x: Tensor, durations: Tensor) -> Tensor:
    """The length regulator: x (B, S, D) and durations (B, S) of equal sums M to (B, M,
    D), in which piece s stands d_s times, once and in its place. Chapter 24.
    """
    return torch.stack([row.repeat_interleave(d, 0) for row, d in zip(x, durations)])


class ReadingBlock(nn.Module):
    """A convolution along a sequence, then attention to another one. Chapter 24."""

    def __init__(self, width: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding=2)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.mix, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, there: Tensor, other: Tensor, keep: Tensor) -> Tensor:
        """x (B, S, D), there (B, S, 1); other (B, P, D), keep (B, P) -> (B, S, D)."""
        h = self.conv((self.norm_1(x) * there).transpose(1, 2)).transpose(1, 2)
        x = x + self.mix(F.gelu(h))
        k, v = self.to_kv(other).chunk(2, dim=-1)
        q = self.to_q(self.norm_2(x))
        return x + self.out(attention(q, k, v, self.n_head, keep[:, None, None]))


class WaveNetLayer(nn.Module):
    """A gated convolution with holes, told the noise level and what each frame says
    (1609.03499); with `reads`, attention to the voice scales and shifts it, as FiLM
    does (1709.07871). Chapter 24.
    """

    def __init__(self, width: int, n_head: int, dilation: int, reads: bool):
        super().__init__()
        self.n_head, self.reads = n_head, reads
        around = {"padding": dilation, "dilation": dilation}
        self.conv = nn.Conv1d(width, 2 * width, 3, **around)
        self.time, self.told = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, 2 * width)
        if reads:
            self.norm = nn.LayerNorm(width)
            self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
            self.film = nn.Linear(width, 4 * width)

    def forward(
        self, x: Tensor, time: Tensor, told: Tensor, voice: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x, told (B, M, D), time (B, D), voice (B, n_queries, D) -> x and skip."""
        h = x + self.time(time)[:, None]
        y = self.conv(h.transpose(1, 2)).transpose(1, 2) + self.told(told)
        if self.reads:
            k, v = self.to_kv(voice).chunk(2, dim=-1)
            read = attention(self.to_q(self.norm(h)), k, v, self.n_head)
            gain, bias = self.film(read).chunk(2, dim=-1)
            y = y * (1 + gain) + bias
        gate, value = y.chunk(2, dim=-1)
        more, skip = self.out(gate.sigmoid() * value.tanh()).chunk(2, dim=-1)
        return (x + more) / 2**0.5, skip


class Read(NamedTuple):
    """A prompt that was read."""

    states: Tensor  # (B, 1 + P, D), the first is learned and always there
    keep: Tensor  # (B, 1 + P), true where the predictors read
    voice: Tensor  # (B, n_queries, D), what the WaveNet reads


class NaturalSpeech2(Model):
    """Phonemes, durations, pitch and a prompt to the codec's vectors (2304.09116 §3).

    Chapter 24.
    """

    config_class = NaturalSpeech2Config

    def __init__(self, config: NaturalSpeech2Config):
        super().__init__(config)
        c, D = config, config.width
        blocks = lambda: nn.ModuleList(
            ReadingBlock(D, c.n_head) for _ in range(c.n_block)
        )
        self.symbols = nn.Embedding(c.n_symbols, D, padding_idx=0)
        self.text, self.prompt = blocks(), blocks()
        self.duration, self.pitch = blocks(), blocks()
        self.frames_in, self.nobody = nn.Linear(c.dim, D), nn.Parameter(torch.randn(D))
        self.queries = nn.Parameter(torch.randn(c.n_queries, D))
        self.to_kv = nn.Linear(D, 2 * D)
        self.to_duration, self.to_pitch = nn.Linear(D, 1), nn.Linear(D, 1)
        self.pitches = nn.Embedding(c.n_pitches, D)
        self.time_embedding, self.z_in = TimeEmbedding(D // 4), nn.Linear(c.dim, D)
        self.layers = nn.ModuleList(
            WaveNetLayer(D, c.n_head, 2 ** (i % c.cycle), i % 3 == 0)
            for i in range(c.n_layer)
        )
        self.norm_told, self.norm_out = nn.LayerNorm(D), nn.LayerNorm(D)
        self.z_out = nn.Linear(D, c.dim)
        self.register_buffer("codebooks", torch.zeros(c.n_q, c.n_codes, c.dim))
        nn.init.constant_(self.to_pitch.bias, float(np.log(150)))

    @property
    def schedule(self) -> diffusion.Schedule:
        """The noise levels: beta grows along a line."""
        c = self.config
        return diffusion.linear_schedule(c.n_steps, c.beta_1, c.beta_T)

    def read(self, prompt: Tensor, prompted: Tensor) -> Read:
        """Read the codec's vectors (B, P, dim) of a prompt, where `prompted` (B,)."""
        B, P, _ = prompt.shape
        x, all_there = self.frames_in(self.config.scale * prompt), prompt.new_ones(B, P)
        for block in self.prompt:
            x = block(x, all_there[..., None], x, all_there.bool())
        states = torch.cat([self.nobody.expand(B, 1, -1), x], dim=1)
        keep = F.pad(prompted[:, None].expand(B, P), (1, 0), value=True)
        k, v = self.to_kv(states).chunk(2, dim=-1)
        asked = self.queries.expand(B, -1, -1)
        voice = attention(asked, k, v, self.config.n_head, keep[:, None, None])
        return Read(states, keep, voice)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Phonemes (B, S, n), ids of n characters, to states (B, S, D), and where there
        are any (B, S).
        """
        there = ids.any(dim=2)
        x = self.symbols(ids).sum(dim=2)
        for block in self.text:
            x = block(x, there[..., None], x, there)
        return x, there

    def log_durations(self, x: Tensor, there: Tensor, read: Read) -> Tensor:
        """log(1 + d) (B, S) of the frames d that each piece lasts."""
        for block in self.duration:
            x = block(x, there[..., None], read.states, read.keep)
        return self.to_duration(x)[..., 0]

    def log_pitch(self, frames: Tensor, read: Read) -> Tensor:
        """The pitch (B, M) of expanded frames (B, M, D), in nepers of hertz."""
        there = frames.new_ones(frames.shape[:2])[..., None]
        for block in self.pitch:
            frames = block(frames, there, read.states, read.keep)
        return self.to_pitch(frames)[..., 0]

    def told(self, frames: Tensor, log_f0: Tensor) -> Tensor:
        """Frames (B, M, D) that know their pitch (B, M), in steps."""
        share = (log_f0 - np.log(50)) / np.log(10)  # of the way from 50 to 500 Hz
        step = (share * self.config.n_pitches).long()
        return frames + self.pitches(step.clamp(0, self.config.n_pitches - 1))

    def forward(self, zt: Tensor, t: Tensor, told: Tensor, voice: Tensor) -> Tensor:
        """Predict the clean z0 from zt (B, M, dim) at levels t (B,), 1 to T."""
        x, time = F.relu(self.z_in(zt)), self.time_embedding(t - 1)
        told, total = self.norm_told(told), 0.0
        for layer in self.layers:
            x, skip = layer(x, time, told, voice)
            total = total + skip
        return self.z_out(F.gelu(self.norm_out(total)))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error of z0, lambda times the cross-entropy, and the absolute errors
        of log(1 + d), without the silence at both ends, and of log f0 where a voice is.
        The batch is that of `peers.naturalspeech2.Takes.batches`.
        """
        read = self.read(batch["prompt"], batch["prompted"])
        x, there = self.encode(batch["ids"])
        d = batch["durations"]
        inner = (d.cumsum(1) < d.sum(1, keepdim=True)) & there
        inner[:, 0] = False
        off = (self.log_durations(x, there, read) - torch.log1p(d.float())).abs()
        frames = expand(x, d)
        off_pitch = (self.log_pitch(frames, read) - batch["log_f0"]).abs()
        z0 = self.config.scale * batch["vectors"]
        zt = diffusion.q_sample(self.schedule, z0, batch["t"], batch["eps"])
        told = self.told(frames, batch["log_f0"])
        z0_hat = self(zt, batch["t"], told, read.voice)
        parts = {
            "data": (z0_hat - z0).square().mean(),
            "ce": ce_rvq(z0_hat, batch["codes"], self.config.scale * self.codebooks),
            "duration": off[inner].mean(),
            "pitch": off_pitch[batch["voiced"]].mean(),
        }
        weighed = {**parts, "ce": self.config.ce * parts["ce"]}
        told = {name: x.detach() for name, x in parts.items()}
        return {"loss": sum(weighed.values()), **told}

    @torch.no_grad()
    def plan(self, ids: Tensor, read: Read, M: int = 0) -> tuple[Tensor, Tensor]:
        """How long and how high: durations (B, S), each phoneme one frame or longer,
        and log f0 (B, M). The last silence fills M frames, or as many as the longest
        phrase needs.
        """
        x, there = self.encode(ids)
        d = (self.log_durations(x, there, read).exp() - 1).round().clamp(min=1).long()
        d = d * there
        d[:, 0] = 2
        last = there.sum(dim=1, keepdim=True) - 1
        d.scatter_(1, last, 0)
        M = max(M, int(d.sum(dim=1).max()) + 2)
        d.scatter_(1, last, M - d.sum(dim=1, keepdim=True))
        return d, self.log_pitch(expand(x, d), read)

    @torch.no_grad()
    def generate(
        self, ids: Tensor, durations: Tensor, log_f0: Tensor, read: Read,
        generators: list[torch.Generator], steps: int = 20,
        temperature: float = 0.8, progress: bool = False,
    ) -> Tensor:  # fmt: skip
        """The codec's vectors (B, M, dim), from noise, all frames at once.

        `temperature` scales the noise at the start (Amphion divides it by 1.2).
        """
        told = self.told(expand(self.encode(ids)[0], durations), log_f0)
        zT = told.new_zeros(*told.shape[:2], self.config.dim)
        zT = temperature * diffusion.randn_like(zT, generators)
        schedule = self.schedule
        eps = lambda zt, t: diffusion.eps_from_x0(
            schedule, zt, t, self(zt, t, told, read.voice)
        )
        given = eps, schedule, zT, steps
        how = {"spacing": "trailing", "last": 0, "progress": progress}
        return diffusion.ddim_sample(*given, **how) / self.config.scale


NaturalSpeech2.presets = {"tiny": NaturalSpeech2Config()}
