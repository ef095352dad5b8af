"""Language models of a codec's codes: what is written when, and what it may depend on.

A frame of a codec is Q codes, so a language model must choose an order. In three of
them one network on `transformer` writes all codes: one by one, with a delay from
codebook to codebook, or all codes of a frame at once. VALL-E takes two (Wang et al.,
2301.02111): the first codebook one by one, then each further codebook in one pass.
Chapter 20 builds these. UniAudio takes two others (Yang et al., 2310.00704), one over
frames and one inside the frame, which chapter 20b builds. What a model is to do, and in
whose voice, stands in front of the codes: conditions by name and a prompt of codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import codec
from minilib.arguments import check_number, check_whole
from minilib.conditions import Conditions, Context, from_batch
from minilib.gpt import initialise
from minilib.model import Model
from minilib.transformer import GPT2, GPT2Block, TransformerConfig, prefix_mask

PROMPT = "prompt"  # the name of the condition that is codes: (B, P, Q) long
NOTHING = -1  # in place of a code that isn't known yet


# ---- Patterns

# The pass in which the code of frame m and codebook q, both from 0, is written.
PATTERNS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "flat": lambda m, q, M, Q: m * Q + q,
    "delay": lambda m, q, M, Q: m + q,
    "parallel": lambda m, q, M, Q: m + 0 * q,
    "ar_nar": lambda m, q, M, Q: torch.where(q == 0, m, M - 1 + q),
    "multi_scale": lambda m, q, M, Q: m * Q + q,
}
ONE_NETWORK = ("flat", "delay", "parallel")  # patterns of `PatternLM`


def written(pattern: str, M: int, Q: int) -> Tensor:
    """The pass, from 0, in which each code is written: (M, Q) long.

    A code may depend on those of earlier passes and on no others; codes of one pass are
    drawn independently. Chapter 20.
    """
    check_pattern(pattern, tuple(PATTERNS))
    m, q = torch.arange(M)[:, None], torch.arange(Q)
    return PATTERNS[pattern](m, q, M, Q)


class Work(NamedTuple):
    """What one network does for M frames of Q codes, the prefix not counted."""

    passes: int  # calls, one after the other, to write the codes
    sequences: int  # in training, to predict all of them ...
    length: int  # ... each over so many positions

    @property
    def attention(self) -> int:
        """Pairs of a query and a key, masked ones included, in one head and layer."""
        return self.sequences * self.length**2


def work(pattern: str, M: int, Q: int) -> tuple[Work, ...]:
    """What each network of a pattern does. Chapter 20."""
    S = int(written(pattern, M, Q).max()) + 1
    if pattern == "ar_nar":  # one pass a frame, then one a codebook
        return Work(M, 1, M), Work(Q - 1, Q - 1, M)
    if pattern == "multi_scale":  # over frames, then inside each frame
        return Work(M, 1, M), Work(M * Q, M, Q)
    return (Work(S, 1, S),)


# ---- What all models share


@dataclass(frozen=True)
class CodecLMConfig(TransformerConfig):
    """Sizes that all language models of codes have; the defaults are VALL-E's."""

    n_embd: int = 1024
    n_head: int = 16
    n_positions: int = 4096  # of prefix and codes together
    vocab_size: int = 1
    n_q: int = 8  # codebooks, Q
    n_codes: int = 1024  # of each, K
    # further tokens, from number K on, for prompts alone: tasks, units, pitches
    n_signs: int = 0
    conditions: tuple[str, ...] = ("phonemes",)  # vectors by name; a prompt may follow
    condition_dims: tuple[int, ...] = (192,)
    pattern: str = "flat"  # of `PatternLM`: flat, delay or parallel
    codec: str = ""  # the fingerprint of the codec whose codes these are


def positions(S: int, D: int, device: torch.device, first: int = 0) -> Tensor:
    """Sinusoids (S, D) of the positions from `first` on (1706.03762 §3.5).

    Each part of a sequence counts its own, as in VALL-E, so that the padding of one
    moves none of the others.
    """
    place = torch.arange(first, first + S, device=device)[:, None]
    angle = place * 1e4 ** (-torch.arange(D // 2, device=device) * 2 / D)  # (S, D/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class NoPositions(nn.Module):
    """In the place of GPT-2's table of positions: adds nothing."""

    def forward(self, place: Tensor) -> float:
        return 0.0


class CodeEmbedding(nn.Module):
    """A vector for each code of each codebook; those of one frame are summed.

    Chapter 20.
    """

    def __init__(self, config: CodecLMConfig):
        super().__init__()
        self.rows = config.n_codes + config.n_signs  # of each codebook
        self.table = nn.Embedding(config.n_q * self.rows, config.n_embd)

    def each(self, codes: Tensor) -> Tensor:
        """codes (..., Q) -> (..., Q, D), zeros for `NOTHING`."""
        first = self.rows * torch.arange(codes.shape[-1], device=codes.device)
        known = (codes != NOTHING)[..., None]
        return self.table(codes.clamp(min=0) + first) * known

    def forward(self, codes: Tensor) -> Tensor:
        return self.each(codes).sum(dim=-2)  # (..., Q) -> (..., D)


class Prefix(nn.Module):
    """What stands in front of the codes: conditions, projected, then the prompt, if
    any; each has a learned vector that tells it from the others. Chapter 20.
    """

    def __init__(self, config: CodecLMConfig):
        super().__init__()
        self.config, D = config, config.n_embd
        self.projections = nn.ModuleList(nn.Linear(n, D) for n in config.condition_dims)
        self.kinds = nn.Parameter(torch.randn(len(self.projections) + 1, D))

    def forward(
        self, conditions: Conditions, codes: nn.Module, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put conditions and prompt, P vectors, in front of `after` (B, S, D); `codes`
        embeds the prompt's codes -> sequence (B, P + S, D) and mask (B, P + S).
        """
        check_given(self.config, conditions, len(after))
        parts, masks = [], []
        names, layers = [*self.config.conditions, PROMPT], [*self.projections, codes]
        for name, layer, kind in zip(names, layers, self.kinds):
            if name in conditions:
                x, mask = conditions[name]
                place = positions(x.shape[1], after.shape[2], x.device)
                parts.append(layer(x) + kind + place)
                mask = after.new_ones(x.shape[:2]) if mask is None else mask
                masks.append(mask.bool())
        masks.append(after.new_ones(after.shape[:2]).bool())
        return torch.cat([*parts, after], dim=1), torch.cat(masks, dim=1)


def draw(
    logits: Tensor,
    generators: list[torch.Generator],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Draw codes from logits (B, ..., K): (B, ...), item b with generator b alone.

    A temperature below 1 sharpens the distribution, and 0 takes the most probable code;
    `top_k` leaves only the k most probable. Chapter 20b.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    shares = logits.softmax(dim=-1).cpu().view(len(logits), -1, logits.shape[-1])
    rows = [torch.multinomial(p, 1, generator=g) for p, g in zip(shares, generators)]
    return torch.stack(rows).view(logits.shape[:-1]).to(logits.device)


Choose = Callable[[Tensor], Tensor]  # logits (B, ..., K) -> codes (B, ...)


class CodecLM(Model):
    """What the language models of codes have in common.

    A subclass has `logits(codes, conditions)`, (B, M, Q, K) for codes (B, M, Q), and
    `write(M, B, conditions, choose)`, which returns such codes.
    """

    config_class = CodecLMConfig

    @property
    def sizes(self) -> CodecLMConfig:
        """The config that tells Q, K, and which conditions are read."""
        return self.config

    def log_prob(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """The log-probability of each code, in nats, given those of earlier passes.

        Args:
            codes: (B, M, Q) long.
            conditions: by name, of B items; `prompt` is codes (B, P, Q) with a mask,
                and may be missing.
        Returns:
            (B, M, Q); of a NAR model (B, M, Q - 1), without the first codebook.
        Raises:
            ValueError: a shape is wrong, or a code out of range.
        """
        check_codes("codes", codes, self.sizes, self.sizes.n_codes)
        logits = self.logits(codes, conditions)
        return chosen(logits, codes[:, :, -logits.shape[2] :])

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood of a code, in nats.

        The batch holds `codes` (B, M, Q) long, the conditions (`from_batch`), and
        `prompt` (B, P, Q) with its mask `prompt_mask`, if there are prompts.
        """
        return -self.log_prob(batch["codes"], given(self.sizes, batch)).mean()

    @torch.no_grad()
    def generate(
        self, n_frames: int, generators: list[torch.Generator],
        conditions: Conditions | None = None, temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Write codes, pass by pass.

        Args:
            n_frames: M.
            generators: one for each of B items, on the CPU.
            conditions: of B items, as for `log_prob`; None for none.
            temperature, top_k: as for `draw`.
        Returns:
            (B, M, Q) long.
        Raises:
            ValueError: an argument is out of range, or a condition does not fit.
        """
        B = check_drawing(n_frames, generators, temperature, top_k)
        check_given(self.sizes, conditions or {}, B)
        choose = lambda logits: draw(logits, generators, temperature, top_k)
        return self.write(n_frames, B, conditions or {}, choose)


class PatternLM(CodecLM):
    """One transformer that writes codes in any order in which each codebook has at most
    one code in a pass: flat, with a delay (Copet et al., 2306.05284), or parallel.

    Over one codebook it is VALL-E's AR model (2301.02111 Eq. 1). The prefix reads
    itself whole, as in UniAudio; VALL-E masks the future there, too. All clips of a
    batch have M frames: a shorter sound ends in codes of silence, with no end sign.
    Chapter 20.
    """

    def __init__(self, config: CodecLMConfig):
        super().__init__(config)
        check_pattern(config.pattern, ONE_NETWORK)
        self.prefix, self.embedding = Prefix(config), CodeEmbedding(config)
        self.begin = nn.Parameter(torch.randn(config.n_embd))
        self.gpt2 = GPT2(config)
        self.gpt2.wpe = NoPositions()
        self.heads = nn.Linear(config.n_embd, config.n_q * config.n_codes)
        start(self)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., Q, K)."""
        return self.heads(hidden).unflatten(-1, (self.config.n_q, -1))

    def logits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """All at once, from the truth: codes (B, M, Q) -> (B, M, Q, K)."""
        B, M, Q = codes.shape
        step, q = written(self.config.pattern, M, Q), torch.arange(Q)
        S = int(step.max()) + 1
        by_pass = codes.new_full((B, S, Q), NOTHING)
        by_pass[:, step, q] = codes
        past = self.embedding(by_pass[:, :-1])  # (B, S - 1, D)
        past = past + positions(S - 1, past.shape[2], past.device)
        x = torch.cat([self.begin.expand(B, 1, -1), past], dim=1)
        x, mask = self.prefix(conditions, self.embedding, x)  # (B, P + S, D)
        P = x.shape[1] - S
        who = prefix_mask(P + S, P + 1, x.device)
        hidden = self.gpt2(x, mask, pattern=who)[:, P:]  # (B, S, D)
        return self.head(hidden)[:, step, q]

    def write(self, M: int, B: int, conditions: Conditions, choose: Choose) -> Tensor:
        """Pass by pass: (B, M, Q); a cache keeps keys and values."""
        Q = self.config.n_q
        step, q = written(self.config.pattern, M, Q), torch.arange(Q)
        S, begin = int(step.max()) + 1, self.begin.expand(B, 1, -1)
        x, mask = self.prefix(conditions, self.embedding, begin)
        P, cache = x.shape[1] - 1, self.gpt2.empty_cache()
        check_length(self.config, P + S)
        by_pass = torch.full((B, S, Q), NOTHING, device=x.device)
        for s in range(S):
            who = prefix_mask(P + s + 1, P + 1, x.device)
            hidden = self.gpt2(x, mask, cache, who)[:, -1]  # (B, D)
            due = (step == s).any(dim=0)  # (Q,) codebooks that this pass writes
            by_pass[:, s, due] = choose(self.head(hidden)[:, due])
            place = positions(1, x.shape[2], x.device, first=s)
            x = self.embedding(by_pass[:, s : s + 1]) + place
            mask = F.pad(mask, (0, 1), value=True)
        return by_pass[:, step, q]


# ---- VALL-E: the first codebook one by one, then each further one in a pass


@dataclass(frozen=True)
class NARConfig(CodecLMConfig):
    """Sizes of the NAR model."""

    latents: bool = True  # read and write the codec's vectors, not one's own
    code_dim: int = 128  # width of those vectors


class LatentEmbedding(nn.Module):
    """Codes as the codec itself reads them: the sum of their vectors, the partial
    latent, projected; signs have vectors of their own. Chapter 20.
    """

    def __init__(self, config: NARConfig):
        super().__init__()
        shape = config.n_q, config.n_codes, config.code_dim
        self.register_buffer("codebooks", torch.zeros(shape))
        self.projection = nn.Linear(config.code_dim, config.n_embd)
        self.signs = nn.Embedding(config.n_signs + 1, config.n_embd)  # row 0: none

    def size(self) -> Tensor:
        """The root mean square of each codebook's values: (Q,)."""
        return self.codebooks.square().mean(dim=(1, 2)).sqrt().clamp(min=1e-6)

    def forward(self, codes: Tensor) -> Tensor:
        """codes (..., Q) -> (..., D); `NOTHING` and signs add no vector."""
        K = self.codebooks.shape[1]
        q = torch.arange(codes.shape[-1], device=codes.device)
        known = ((codes != NOTHING) & (codes < K))[..., None]
        latent = (self.codebooks[q, codes.clamp(0, K - 1)] * known).sum(dim=-2)
        sign = (codes[..., 0] - K + 1).clamp(min=0)
        return self.projection(latent / self.size()[0]) + self.signs(sign)


class StageNorm(nn.Module):
    """Layer norm whose scale and shift depend on the codebook that is to be written:
    AdaLN (2301.02111). Chapter 20.
    """

    def __init__(self, config: NARConfig):
        super().__init__()
        self.eps = config.layer_norm_epsilon
        self.scale_and_shift = nn.Embedding(config.n_q, 2 * config.n_embd)

    def forward(self, x: Tensor, stage: Tensor) -> Tensor:
        """x (B, S, D), stage (B,) -> (B, S, D)."""
        scale, shift = self.scale_and_shift(stage)[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift


class StageBlock(GPT2Block):
    """GPT-2's block with norms that know the stage. Chapter 20."""

    def __init__(self, config: NARConfig):
        super().__init__(config)
        self.ln_1, self.ln_2 = StageNorm(config), StageNorm(config)

    def forward(self, x: Tensor, keep: Tensor, stage: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x, stage), keep)[0]
        return x + self.mlp(self.ln_2(x, stage))


class BorrowsCodebooks(CodecLM):
    """A model that may read and write a codec's vectors: they are its own copies."""

    def take(self, codebooks: Tensor) -> None:
        """Copy the codec's vectors (Q, K, code_dim), which `latents` needs."""
        wanted = tuple(self.embedding.codebooks.shape)
        if codebooks.shape != wanted:
            shape = tuple(codebooks.shape)
            raise ValueError(f"codebooks must have shape {wanted}, not {shape}")
        self.embedding.codebooks.copy_(codebooks)

    def check_codebooks(self) -> None:
        """Raise ValueError if `latents` is on and no vectors were taken."""
        if self.config.latents and not self.embedding.codebooks.any():
            raise ValueError("the NAR model has no codebooks yet: take a codec's first")


class NAR(BorrowsCodebooks):
    """All codes of one codebook at once, from the codebooks before it, the prompt's and
    the conditions (2301.02111 Eq. 2). A stage is the codebook q, 1 to Q - 1.

    The textbook's form has an embedding and a head of its own for each codebook. With
    `latents` it reads the codec's partial latent, the sum of the vectors so far, and
    writes a latent; the nearer a code's vector is to what is then missing, the more
    probable the code, as in NaturalSpeech 2's CE-RVQ loss (Shen et al., 2304.09116).
    Chapter 20.
    """

    config_class = NARConfig

    def __init__(self, config: NARConfig):
        super().__init__(config)
        D, Q = config.n_embd, config.n_q
        kind = LatentEmbedding if config.latents else CodeEmbedding
        self.prefix, self.embedding = Prefix(config), kind(config)
        self.h = nn.ModuleList(StageBlock(config) for _ in range(config.n_layer))
        self.ln_f = StageNorm(config)
        n_out = config.code_dim if config.latents else Q * config.n_codes
        self.out = nn.Linear(D, n_out)
        if config.latents:  # of the squared distances, at first of variance about 1
            log_scale = torch.full((Q,), -0.5 * math.log(2.0 * config.code_dim))
            self.log_scale = nn.Parameter(log_scale)
        start(self)

    def at(self, stage: Tensor, codes: Tensor, conditions: Conditions) -> Tensor:
        """Logits (B, M, K) of codebook stage (B,), from the codes (B, M, Q) before."""
        self.check_codebooks()
        (B, M, Q), device = codes.shape, codes.device
        later = torch.arange(Q, device=device) >= stage[:, None, None]
        x = self.embedding(codes.masked_fill(later, NOTHING))  # (B, M, D)
        x = x + positions(M, x.shape[2], device)
        x, mask = self.prefix(conditions, self.embedding, x)  # (B, P + M, D)
        for block in self.h:
            x = block(x, mask[:, None, None, :], stage)  # all read all
        out = self.out(self.ln_f(x[:, -M:], stage))
        if self.config.latents:
            return self.nearness(out, stage)
        every = out.unflatten(2, (Q, -1))  # (B, M, Q, K)
        return every[torch.arange(B, device=device), :, stage]

    def nearness(self, missing: Tensor, stage: Tensor) -> Tensor:
        """Minus the scaled squared distance from what is missing of the latent,
        (B, M, code_dim), to each vector of codebook stage (B,): (B, M, K).
        """
        e = self.embedding.codebooks[stage] / self.embedding.size()[stage, None, None]
        scale = self.log_scale[stage].exp()[:, None, None]
        # |r - e|^2 = |r|^2 - 2 r e + |e|^2, in which |r|^2 is the same for all codes
        return scale * (2 * missing @ e.mT - e.square().sum(dim=2)[:, None])

    def logits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Of all stages: codes (B, M, Q) -> (B, M, Q - 1, K)."""
        stage = torch.ones_like(codes[:, 0, 0])  # (B,)
        each = [self.at(q * stage, codes, conditions) for q in range(1, codes.shape[2])]
        return torch.stack(each, dim=2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """As `CodecLM.loss`, over the codebook `stage` (B,), 1 to Q - 1, that the batch
        draws for each item, or over all if it draws none.
        """
        if "stage" not in batch:
            return super().loss(batch)
        codes, stage = batch["codes"], batch["stage"]
        check_codes("codes", codes, self.config, self.config.n_codes)
        truth = codes.gather(2, stage[:, None, None].expand(-1, codes.shape[1], 1))
        logits = self.at(stage, codes, given(self.config, batch))
        return -chosen(logits, truth[:, :, 0]).mean()

    @torch.no_grad()
    def fill(self, first: Tensor, conditions: Conditions) -> Tensor:
        """Write the codebooks after the first, (B, M, 1) -> (B, M, Q): of each code the
        most probable.
        """
        one = replace(self.config, n_q=1)
        check_codes("first", first, one, self.config.n_codes)
        codes = F.pad(first, (0, self.config.n_q - 1), value=NOTHING)
        stage = torch.ones_like(codes[:, 0, 0])
        for q in range(1, self.config.n_q):
            codes[:, :, q] = self.at(q * stage, codes, conditions).argmax(dim=2)
        return codes


@dataclass(frozen=True)
class VALLEConfig:
    """The two models of VALL-E."""

    ar: CodecLMConfig = CodecLMConfig(n_q=1)
    nar: NARConfig = NARConfig()


class VALLE(CodecLM):
    """AR over the first codebook, NAR over the rest (2301.02111): for M frames of Q
    codes, M + Q - 1 passes.

    Both read the prompt in front of the codes, without a transcript; VALL-E's AR model
    continues its prompt, whose words are then part of the text. Chapter 20.
    """

    config_class = VALLEConfig

    def __init__(self, config: VALLEConfig):
        super().__init__(config)
        check_pair(config)
        self.ar, self.nar = PatternLM(config.ar), NAR(config.nar)

    @property
    def sizes(self) -> CodecLMConfig:
        """Those of the NAR model, which knows all codebooks."""
        return self.config.nar

    def logits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """codes (B, M, Q) -> (B, M, Q, K)."""
        first = self.ar.logits(codes[:, :, :1], first_book(conditions))
        return torch.cat([first, self.nar.logits(codes, conditions)], dim=2)

    def write(self, M: int, B: int, conditions: Conditions, choose: Choose) -> Tensor:
        """(B, M, Q); only codes of the first codebook are drawn."""
        self.nar.check_codebooks()
        first = self.ar.write(M, B, first_book(conditions), choose)
        return self.nar.fill(first, conditions)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nats a code of both models, which share no weights; see `NAR.loss`."""
        conditions = first_book(given(self.config.nar, batch))
        ar = -self.ar.log_prob(batch["codes"][:, :, :1], conditions).mean()
        nar = self.nar.loss(batch)
        return {"loss": ar + nar, "ar": ar, "nar": nar}


def first_book(conditions: Conditions) -> Conditions:
    """The same conditions, of the prompt only its first codebook."""
    if PROMPT not in conditions:
        return conditions
    codes, mask = conditions[PROMPT]
    return {**conditions, PROMPT: Context(codes[..., :1], mask)}


# ---- UniAudio: one transformer over frames, one inside the frame


@dataclass(frozen=True)
class MultiScaleConfig(CodecLMConfig):
    """Sizes of the multi-scale transformer; the defaults are UniAudio's.

    Chapter 20b.
    """

    n_embd: int = 1536
    n_layer: int = 24  # over frames
    n_head: int = 12
    n_q: int = 3
    n_local: int = 8  # layers inside the frame


class MultiScaleLM(CodecLM):
    """A global transformer over frames and a local one over the codes of a frame
    (2310.00704): the chain rule of the flat order, at less than its cost.

    The global one reads sums of the codes' vectors, as the paper has it. What it writes
    for a frame is added to every input of the local one, which starts anew with each
    frame. Chapter 20b.
    """

    config_class = MultiScaleConfig

    def __init__(self, config: MultiScaleConfig):
        super().__init__(config)
        D = config.n_embd
        self.prefix, self.embedding = Prefix(config), CodeEmbedding(config)
        self.begin = nn.Parameter(torch.randn(D))
        self.gpt2 = GPT2(config)
        self.gpt2.wpe = NoPositions()
        inside = replace(config, n_layer=config.n_local, n_positions=config.n_q)
        self.local, self.local_begin = GPT2(inside), nn.Parameter(torch.randn(D))
        self.heads = nn.Parameter(torch.empty(config.n_q, D, config.n_codes))
        start(self)
        nn.init.normal_(self.heads, std=D**-0.5)
        nn.init.normal_(self.local.wpe.weight, std=0.5)

    def logits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """All at once, from the truth: codes (B, M, Q) -> (B, M, Q, K)."""
        B, M, _ = codes.shape
        each = self.embedding.each(codes)  # (B, M, Q, D)
        past = each[:, :-1].sum(dim=2)  # (B, M - 1, D)
        past = past + positions(M - 1, past.shape[2], past.device)
        x = torch.cat([self.begin.expand(B, 1, -1), past], dim=1)
        x, mask = self.prefix(conditions, self.embedding, x)  # (B, P + M, D)
        P = x.shape[1] - M
        who = prefix_mask(P + M, P + 1, x.device)
        frames = self.gpt2(x, mask, pattern=who)[:, P:]  # (B, M, D)
        begin = self.local_begin.expand(B, M, 1, -1)
        before = torch.cat([begin, each[:, :, :-1]], dim=2)  # (B, M, Q, D)
        hidden = self.local((before + frames[:, :, None]).flatten(0, 1))
        return torch.einsum("bmqd,qdk->bmqk", hidden.unflatten(0, (B, M)), self.heads)

    def write(self, M: int, B: int, conditions: Conditions, choose: Choose) -> Tensor:
        """Frame by frame: (B, M, Q); one global pass for each, and Q local ones."""
        begin, frames = self.begin.expand(B, 1, -1), []
        x, mask = self.prefix(conditions, self.embedding, begin)
        P, cache = x.shape[1] - 1, self.gpt2.empty_cache()
        check_length(self.config, P + M)
        for m in range(M):
            who = prefix_mask(P + m + 1, P + 1, x.device)
            frame = self.gpt2(x, mask, cache, who)[:, -1:]  # (B, 1, D)
            frames.append(self.inside(frame, choose))
            place = positions(1, x.shape[2], x.device, first=m)
            x = self.embedding(frames[-1]) + place
            mask = F.pad(mask, (0, 1), value=True)
        return torch.cat(frames, dim=1)

    def inside(self, frame: Tensor, choose: Choose) -> Tensor:
        """The codes (B, 1, Q) of a frame of which the global transformer wrote `frame`
        (B, 1, D).
        """
        shape, cache = (len(frame), 1, self.config.n_q), self.local.empty_cache()
        codes = torch.full(shape, NOTHING, device=frame.device)
        x = self.local_begin + frame
        for q in range(self.config.n_q):
            hidden = self.local(x, cache=cache)[:, -1]  # (B, D)
            codes[:, 0, q] = choose(hidden @ self.heads[q])
            x = self.embedding.each(codes)[:, :, q] + frame
        return codes


# ---- Housekeeping


def start(model: CodecLM) -> None:
    """Draw weights: vectors of codes whose sum has variance 1, small first steps of
    deep stacks (as in GPT-2), norms that ignore the stage.
    """
    model.apply(initialise)
    for module in model.modules():  # known by what they hold: a chapter builds its own
        if hasattr(module, "table"):  # `CodeEmbedding`
            nn.init.normal_(module.table.weight, std=model.config.n_q**-0.5)
        if hasattr(module, "signs"):  # `LatentEmbedding`
            nn.init.normal_(module.signs.weight)
            nn.init.zeros_(module.signs.weight[:1])
        if hasattr(module, "scale_and_shift"):  # `StageNorm`
            nn.init.zeros_(module.scale_and_shift.weight)
        if isinstance(module, GPT2Block):
            for branch in (module.attn, module.mlp):
                std = 0.02 / (2 * model.config.n_layer) ** 0.5
                nn.init.normal_(branch.c_proj.weight, std=std)


def chosen(logits: Tensor, codes: Tensor) -> Tensor:
    """The log-probabilities (...) that logits (..., K) give to codes (...)."""
    logs = logits.float().log_softmax(dim=-1)
    return logs.gather(-1, codes[..., None]).squeeze(-1)


def given(config: CodecLMConfig, batch: dict[str, Tensor]) -> Conditions:
    """The conditions of a batch, and its prompt if it has one."""
    names = [*config.conditions, *([PROMPT] if PROMPT in batch else [])]
    return from_batch(batch, names)


def check_pattern(pattern: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless the pattern is one of the known ones."""
    if pattern not in known:
        raise ValueError(f"pattern must be one of {', '.join(known)}, not {pattern!r}")


def check_pair(config: VALLEConfig) -> None:
    """Raise ValueError unless the AR model has one codebook, and otherwise reads and
    writes what the NAR model does.
    """
    if config.ar.n_q != 1:
        raise ValueError(f"the AR model must have n_q 1, not {config.ar.n_q}")
    for name in ("n_codes", "n_signs", "conditions", "condition_dims", "codec"):
        ar, nar = getattr(config.ar, name), getattr(config.nar, name)
        if ar != nar:
            said = f"must have the same {name}, not {ar} and {nar}"
            raise ValueError(f"the AR and the NAR model {said}")


def check_codes(name: str, codes: Tensor, config: CodecLMConfig, n: int) -> None:
    """Raise ValueError unless codes are (B, M, Q), at least one frame, of as many
    codebooks as the model was trained with, and whole numbers from 0 to n - 1.
    """
    shape, Q = tuple(codes.shape), config.n_q
    if codes.ndim != 3 or codes.is_floating_point():
        said = f"whole numbers of shape (B, M, {Q})"
        raise ValueError(f"{name} must be {said}, not {codes.dtype} of shape {shape}")
    if shape[2] != Q:
        said = f"{Q} codebook{'s' * (Q > 1)}, as in training, not {shape[2]}"
        raise ValueError(f"{name} must have {said}")
    if not shape[1]:
        said = "is empty: it must have at least one frame"
        raise ValueError(f"{name} {said}")
    codec.check_codes(name, codes, n)


def check_given(config: CodecLMConfig, conditions: Conditions, B: int) -> None:
    """Raise ValueError unless the conditions are those of the config, and a prompt at
    most, each with the right shape.
    """
    names = dict(zip(config.conditions, config.condition_dims))
    if set(conditions) - {PROMPT} != set(names):
        known = ", ".join([*names, "and a prompt, if any"])
        raise ValueError(
            f"conditions must be {known}, not {', '.join(conditions) or 'none'}"
        )
    for name, (x, mask) in conditions.items():
        if name == PROMPT:
            check_codes("prompt", x, config, config.n_codes + config.n_signs)
        elif x.ndim != 3 or x.shape[2] != names[name]:
            shapes = f"({B}, S, {names[name]}), not {tuple(x.shape)}"
            raise ValueError(f"condition {name} must have shape {shapes}")
        if len(x) != B:
            raise ValueError(f"condition {name} must have {B} items, not {len(x)}")
        if mask is not None and mask.shape != x.shape[:2]:
            shapes = f"{tuple(x.shape[:2])}, not {tuple(mask.shape)}"
            raise ValueError(f"the mask of condition {name} must be {shapes}")


def check_drawing(
    n_frames: int, generators: list[torch.Generator], temperature: float,
    top_k: int | None,
) -> int:  # fmt: skip
    """The number of items; raises a sentence if an argument of `generate` is wrong."""
    check_whole("n_frames", n_frames, 1)
    check_number("temperature", temperature, 0.0)
    if top_k is not None:
        check_whole("top_k", top_k, 1)
    kinds = {type(x) for x in generators} if isinstance(generators, list) else set()
    if kinds != {torch.Generator}:
        raise TypeError("generators must be a list with one torch.Generator an item")
    return len(generators)


def check_length(config: CodecLMConfig, n: int) -> None:
    """Raise ValueError if prefix and codes take more positions than there are."""
    if n > config.n_positions:
        most = f"at most {config.n_positions} positions"
        raise ValueError(f"prefix and codes must take {most}, not {n}")


# ---- Presets

TINY = {"n_embd": 128, "n_head": 4, "n_positions": 512, "n_codes": 64}
TINY |= {"condition_dims": (96,)}
COLAB = {"n_embd": 384, "n_head": 6, "n_positions": 1024, "n_codes": 256}

PatternLM.presets = {
    "tiny": CodecLMConfig(n_layer=4, n_q=4, **TINY),
    "colab": CodecLMConfig(n_layer=6, n_q=4, **COLAB),
    "full": CodecLMConfig(),
}
NAR.presets = {
    "tiny": NARConfig(n_layer=3, n_q=4, code_dim=32, **TINY),
    "colab": NARConfig(n_layer=6, n_q=4, code_dim=64, **COLAB),
    "full": NARConfig(),
}
VALLE.presets = {
    name: VALLEConfig(replace(PatternLM.presets[name], n_q=1), NAR.presets[name])
    for name in NAR.presets
}
MultiScaleLM.presets = {
    "tiny": MultiScaleConfig(n_layer=4, n_local=2, n_q=3, **TINY),
    "colab": MultiScaleConfig(n_layer=6, n_local=3, n_q=3, **COLAB),
    "full": MultiScaleConfig(),
}
