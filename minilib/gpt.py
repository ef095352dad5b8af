"""GPT-2 that writes no words: from the conditions it regresses the Language of Audio,
vector by vector.

AudioLDM 2 (Liu et al., 2308.05734) keeps GPT-2 (Radford et al., 2019) without its
vocabulary: the last hidden state *is* the next vector. Names are those of transformers'
GPT2Model and diffusers' AudioLDM2ProjectionModel, which hold the released weights
(GPT-2's are stored transposed there). Nothing drops out. Chapter 13 builds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.model import Model

# sequence (B, S, D) and mask (B, S), True: to be read; None: all of it
Condition = tuple[Tensor, Tensor | None]
Conditions = Mapping[str, Condition] | Sequence[Condition]
# keys and values (B, n_head, positions, d) of each block
Cache = list[tuple[Tensor, Tensor] | None]

# penalty of `LOARegressor.fit_level` for each clip, where LOA dimensions have variance
# 1
RIDGE = 2e-3


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the LOA regressor; the defaults are the released model's. Chapter 13."""

    # names, in the order in which they are read
    conditions: tuple[str, ...] = ("clap", "text")
    condition_dims: tuple[int, ...] = (512, 1024)
    n_embd: int = 768  # width of GPT-2 and of the LOA
    n_layer: int = 12
    n_head: int = 12
    n_positions: int = 1024  # conditions, their four marks and LOA together
    n_tokens: int = 8  # LOA vectors that are generated
    # of the last condition, added before its projection; 310 phonemes for speech
    learned_positions: int = 0
    vocab_size: int = 50257  # of a table that the released file holds and nothing reads
    layer_norm_epsilon: float = 1e-5
    # whether it also says how loud the sound is to be; the released model doesn't
    level: bool = False


class Projection(nn.Module):
    """Bring every condition to GPT-2's width, between a learned start and end vector
    (2308.05734 §3.2).

    The result reads [sos, P(clap), eos, sos_1, P_1(text), eos_1]. Chapter 13.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        if len(config.conditions) != len(config.condition_dims):
            raise ValueError(
                f"conditions {config.conditions} and condition_dims "
                f"{config.condition_dims} must pair up"
            )
        self.names, self.n_positions = config.conditions, config.learned_positions
        for i, dim in enumerate(config.condition_dims):
            suffix = f"_{i}" if i else ""  # the released names: the first has none
            self.add_module(f"projection{suffix}", nn.Linear(dim, config.n_embd))
            self.register_parameter(
                f"sos_embed{suffix}", nn.Parameter(torch.randn(config.n_embd))
            )
            self.register_parameter(
                f"eos_embed{suffix}", nn.Parameter(torch.randn(config.n_embd))
            )
        if config.learned_positions:
            positions = torch.zeros(
                1, config.condition_dims[-1], config.learned_positions
            )
            # (1, D, S), as released
            self.learnable_positional_embedding = nn.Parameter(positions)

    def initialise(self) -> None:
        """Let every condition arrive with about unit variance, as the LOA does: CLAP's
        vector has length 1.
        """
        for i, name in enumerate(self.names):
            projection = getattr(self, f"projection_{i}" if i else "projection")
            nn.init.normal_(
                projection.weight,
                std=1.0 if name == "clap" else projection.in_features**-0.5,
            )

    def forward(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Conditions, by name or in order -> sequence (B, S, n_embd) and mask (B, S)
        bool.

        Chapter 13.
        """
        sequences, masks = [], []
        for i, (x, mask) in enumerate(self.in_order(conditions)):
            suffix = f"_{i}" if i else ""
            if self.n_positions and i == len(self.names) - 1:
                x = x + self.learnable_positional_embedding[
                    :, :, : x.shape[1]
                ].transpose(1, 2)
            # (B, S_i, D_i) -> (B, S_i, n_embd)
            projected = getattr(self, f"projection{suffix}")(x)
            sos, eos = (
                getattr(self, f"{end}_embed{suffix}").expand(len(x), 1, -1)
                for end in ("sos", "eos")
            )
            mask = (
                torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
                if mask is None
                else mask.bool()
            )
            sequences += [sos, projected, eos]
            masks += [F.pad(mask, (1, 1), value=True)]
        return torch.cat(sequences, dim=1), torch.cat(masks, dim=1)

    def in_order(self, conditions: Conditions) -> list[Condition]:
        """List the conditions in the config's order; raise a sentence if one is missing
        or too wide.
        """
        if isinstance(conditions, Mapping):
            if set(conditions) != set(self.names):
                raise ValueError(
                    f"conditions must be {', '.join(self.names)}, not "
                    f"{', '.join(conditions) or 'none'}"
                )
            conditions = [conditions[name] for name in self.names]
        if len(conditions) != len(self.names):
            raise ValueError(
                f"conditions must be {len(self.names)} ({', '.join(self.names)}), not "
                f"{len(conditions)}"
            )
        B = len(conditions[0][0])
        for i, (name, (x, mask)) in enumerate(zip(self.names, conditions, strict=True)):
            dim = getattr(self, f"projection_{i}" if i else "projection").in_features
            if x.ndim != 3 or x.shape[0] != B or x.shape[2] != dim:
                raise ValueError(
                    f"condition {name} must have shape ({B}, S, {dim}), not "
                    f"{tuple(x.shape)}"
                )
            if mask is not None and mask.shape != x.shape[:2]:
                raise ValueError(
                    f"the mask of condition {name} must be {tuple(x.shape[:2])}, not "
                    f"{tuple(mask.shape)}"
                )
        if self.n_positions and conditions[-1][0].shape[1] > self.n_positions:
            raise ValueError(
                f"condition {self.names[-1]} must have at most {self.n_positions} "
                f"positions, "
                f"not {conditions[-1][0].shape[1]}"
            )
        return list(conditions)


def causal(position: Tensor, mask: Tensor | None) -> Tensor:
    """Tell what each position reads: those up to itself, less the padding.

    position (S,) counts from 0; mask (B, S), True for positions to be read, None for
    all -> (B or 1, 1, S, S) bool, for attention scores (B, n_head, S, S). Chapter 13.
    """
    keep = position <= position[:, None]  # (S, S)
    return keep[None, None] if mask is None else keep & mask.bool()[:, None, None, :]


class GPT2Attention(nn.Module):
    """Multi-head self-attention to the past, which a cache can remember (Radford et al.
    2019).

    Chapter 13.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, x: Tensor, keep: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple]:
        """x (B, S, D), keep (B, 1, S, P + S), P cached positions -> (B, S, D) and all
        keys and values.
        """
        q, k, v = (
            h.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, n_head, S, d)
            for h in self.c_attn(x).chunk(3, dim=-1)
        )
        if past is not None:
            # (B, n_head, P + S, d)
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.c_proj(h.transpose(1, 2).flatten(2)), (k, v)


class GPT2MLP(nn.Module):
    """Position-wise network, four times as wide inside. Chapter 13."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, n_embd) -> (B, S, n_embd)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPT2Block(nn.Module):
    """Attention and network, each normalised before and beside a skip connection.

    Chapter 13.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(
        self, x: Tensor, keep: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple]:
        """x (B, S, n_embd), what `GPT2Attention.forward` takes -> (B, S, n_embd) and
        all keys and values.
        """
        h, present = self.attn(self.ln_1(x), keep, past)
        x = x + h
        return x + self.mlp(self.ln_2(x)), present


class GPT2(nn.Module):
    """GPT-2 (Radford et al., 2019) from vectors to vectors, without words at either
    end.

    The same weights, key by key, as transformers' GPT2Model, whose linear layers are
    transposed. Chapter 13.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # kept, never read
        self.wte = nn.Embedding(config.vocab_size, config.n_embd).requires_grad_(False)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def empty_cache(self) -> Cache:
        """A cache with nothing in it; `forward` fills it, out of place, so that
        gradients flow through it.
        """
        return [None] * self.config.n_layer

    def forward(
        self,
        inputs_embeds: Tensor,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Map vectors to vectors, each seeing those before it.

        Positions are counted one by one, padding included, as in the released model.

        Args:
            inputs_embeds: (B, S, n_embd), the positions that the cache does not hold
                yet.
            mask: (B, P + S), True for positions to be read, the P cached ones included;
                None: all.
            cache: from `empty_cache` and earlier calls; this call's keys and values are
                added to it.

        Returns:
            The last hidden states (B, S, n_embd).

        Raises:
            ValueError: more positions than `n_positions`, or a mask of another length.
        """
        B, S, _ = inputs_embeds.shape
        P = cache[0][0].shape[2] if cache and cache[0] is not None else 0
        if P + S > self.config.n_positions:
            raise ValueError(
                f"the sequence must have at most {self.config.n_positions} positions, "
                f"not {P + S}"
            )
        if mask is not None and mask.shape != (B, P + S):
            raise ValueError(
                f"mask must have shape {(B, P + S)}, not {tuple(mask.shape)}"
            )
        position = torch.arange(P + S, device=inputs_embeds.device)
        keep = causal(position, mask)[:, :, P:]  # (B or 1, 1, S, P + S)
        x = inputs_embeds + self.wpe(position[P:])
        for i, block in enumerate(self.h):
            x, present = block(x, keep, cache[i] if cache else None)
            if cache:
                cache[i] = present
        return self.ln_f(x)


class LOARegressor(Model):
    """M: C -> Y', the first half of AudioLDM 2: conditions to the Language of Audio
    (2308.05734 §3.2).

    Padding inside a condition is never read, but it is counted as positions, as in the
    released model: pad the same caption to another length and its LOA changes a little.
    Chapter 13.
    """

    config_class = GPTConfig

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.projection = Projection(config)
        self.gpt2 = GPT2(config)
        self.apply(initialise)
        self.projection.initialise()
        # beside vectors of unit variance GPT-2's 0.02 is lost
        nn.init.normal_(self.gpt2.wpe.weight, std=0.5)
        # the sum of 2 * n_layer branches starts at the scale of one
        for block in self.gpt2.h:
            for branch in (block.attn, block.mlp):
                nn.init.normal_(
                    branch.c_proj.weight, std=0.02 / (2 * config.n_layer) ** 0.5
                )
        if config.level:  # no parameters: `fit_level` knows them in closed form
            self.register_buffer(
                "level_weight", torch.zeros(config.n_tokens, config.n_embd)
            )
            self.register_buffer("level_bias", torch.zeros(()))
            self.register_buffer("level_range", torch.zeros(2))

    def forward(self, conditions: Conditions, loa: Tensor) -> Tensor:
        """Predict every LOA vector from the conditions and the *true* vectors before
        it: teacher forcing.

        The prediction of vector l is read at the position before it: the first one at
        the last condition.

        Args:
            conditions: by name, or in the config's order: (sequence (B, S, D), mask (B,
                S)).
            loa: (B, L, n_embd), the truth.

        Returns:
            Predictions (B, L, n_embd).

        Raises:
            ValueError: conditions or loa of other names or shapes.
        """
        x, mask = self.projection(conditions)  # (B, S, n_embd)
        if loa.ndim != 3 or loa.shape[0] != len(x) or loa.shape[2] != x.shape[2]:
            raise ValueError(
                f"loa must have shape ({len(x)}, L, {x.shape[2]}), not "
                f"{tuple(loa.shape)}"
            )
        S, L = x.shape[1], loa.shape[1]
        hidden = self.gpt2(
            torch.cat([x, loa[:, :-1]], dim=1), F.pad(mask, (0, L - 1), value=True)
        )
        return hidden[:, S - 1 :]  # (B, L, n_embd)

    def generate(self, conditions: Conditions, n_tokens: int | None = None) -> Tensor:
        """Write the LOA: append the last hidden state to the input, again and again
        (2308.05734 §3.2).

        A cache keeps keys and values, so each step computes one position. Gradients
        flow through all steps where they are enabled: joint fine-tuning needs that.

        Args:
            conditions: as in `forward`.
            n_tokens: how many vectors; None for the config's.

        Returns:
            (B, n_tokens, n_embd).

        Raises:
            ValueError: `n_tokens` below 1, or more than there are positions for.
        """
        n_tokens = self.config.n_tokens if n_tokens is None else n_tokens
        if n_tokens < 1:
            raise ValueError(f"n_tokens must be at least 1, not {n_tokens}")
        x, mask = self.projection(conditions)
        if mask.shape[1] + n_tokens - 1 > self.config.n_positions:
            most = self.config.n_positions - mask.shape[1] + 1
            raise ValueError(
                f"n_tokens must be at most {most} after {mask.shape[1]} positions, "
                f"not {n_tokens}"
            )
        cache, loa = self.gpt2.empty_cache(), []
        for _ in range(n_tokens):
            x = self.gpt2(x, mask, cache)[:, -1:]  # (B, 1, n_embd)
            mask = F.pad(mask, (0, 1), value=True)
            loa.append(x)
        return torch.cat(loa, dim=1)

    def level(self, loa: Tensor) -> Tensor | None:
        """How loud the sound is to be that a written LOA (B, n_tokens, n_embd) stands
        for: (B,) decibels.

        GPT-2 puts the level where it is small beside all else that an LOA says, and
        what is made of it by diffusion, VAE and vocoder is off by several decibels.
        Read by one linear map it can be set right in the end: gain and shape apart, as
        speech coders have it (Sabin and Gray, IEEE Trans. ASSP 32, 1984). Not in the
        paper.

        Returns:
            the level that `audio.level` will find, within what the training clips had;
            None if it was never fitted.
        """
        if not self.config.level or self.level_range[0] >= self.level_range[1]:
            return None
        decibels = (loa.float() * self.level_weight.float()).sum(
            dim=(1, 2)
        ) + self.level_bias.float()
        return decibels.clamp(*self.level_range.float())

    @torch.no_grad()
    def fit_level(self, loa: Tensor, decibels: Tensor) -> None:
        """Fit `level` by ridge regression (Hoerl and Kennard, Technometrics 12, 1970).

        Args:
            loa: (N, n_tokens, n_embd), as `generate` writes them from the captions of N
                clips. True ones won't do: they hold what no caption tells.
            decibels: (N,), the levels of these clips.
        """
        x, y = loa.flatten(1).cpu().double(), decibels.cpu().double()
        centre, mean = x.mean(dim=0), y.mean()
        x -= centre
        gram = x.T @ x
        gram.diagonal().add_(RIDGE * len(x))
        weight = torch.linalg.solve(gram, x.T @ (y - mean))
        self.level_weight.copy_(weight.view_as(self.level_weight))
        self.level_bias.copy_(mean - centre @ weight)
        self.level_range.copy_(torch.stack([y.min(), y.max()]))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of each predicted vector (2308.05734 §3.2; the released
        code takes L1).

        Neighbours of the LOA are alike, so with the truth before its eyes the
        regression copies instead of reading, and is lost when it has to go on from its
        own vectors. Where `keep` says so the input is what the regression writes by
        itself, as in scheduled sampling (Bengio et al., 1506.03099) and DAgger (Ross et
        al., 1011.0686): then only the caption can tell it more. No gradient goes
        through the writing.

        The batch holds `loa` (B, L, n_embd) and for each condition its sequence under
        its name and its mask under `NAME_mask`, e.g. `text` (B, S, D) and `text_mask`
        (B, S); without a mask all of it is read. `keep` (B, L), if it is there, is
        False where the input is the model's own vector instead of the true one.
        """
        conditions = {
            name: (batch[name], batch.get(f"{name}_mask"))
            for name in self.config.conditions
        }
        teacher = batch["loa"]
        if "keep" in batch:
            with torch.no_grad():
                own = self.generate(conditions, teacher.shape[1]).to(teacher.dtype)
            teacher = torch.where(batch["keep"][:, :, None], teacher, own)
        return F.mse_loss(self(conditions, teacher), batch["loa"])


LOARegressor.presets = {
    "tiny": GPTConfig(
        condition_dims=(128, 128),
        n_embd=192,
        n_layer=3,
        n_head=6,
        n_positions=256,
        n_tokens=16,
        vocab_size=1,
        level=True,
    ),
    "colab": GPTConfig(
        condition_dims=(256, 256),
        n_embd=384,
        n_layer=6,
        n_head=6,
        n_positions=512,
        n_tokens=16,
        vocab_size=1,
        level=True,
    ),
    "full": GPTConfig(),
    "speech": GPTConfig(condition_dims=(512, 192), n_tokens=512, learned_positions=310),
}


def initialise(module: nn.Module) -> None:
    """Draw weights so that variance is kept, where GPT-2 takes 0.02 at any width;
    biases zero. Chapter 13.

    With weights as small as GPT-2's, attention begins blind to what it reads, and
    minutes are not enough to open its eyes.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
