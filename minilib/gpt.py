"""A GPT-2 that writes vectors instead of words: it regresses the Language of Audio from
the conditions, one vector after another.

AudioLDM 2 (Liu et al., 2308.05734) uses GPT-2 without its vocabulary: the last hidden
state *is* the next vector. Names are those of transformers' GPT2Model and diffusers'
AudioLDM2ProjectionModel, which hold the released weights. Chapter 13 builds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.conditions import Conditions, from_batch
from minilib.model import Model
from minilib.transformer import GPT2, TransformerConfig

RIDGE = 2e-3  # penalty per clip in `Loudness.fit`, for an LOA of variance 1


@dataclass(frozen=True)
class GPTConfig(TransformerConfig):
    """Sizes of the LOA regressor; the defaults are the released model's. Chapter 13."""

    conditions: tuple[str, ...] = ("clap", "text")  # names, in the order of reading
    condition_dims: tuple[int, ...] = (512, 1024)
    n_tokens: int = 8  # LOA vectors to generate
    # positions added to the last condition before its projection; 310 for speech
    learned_positions: int = 0


class Projection(nn.Module):
    """Project every condition to GPT-2's width, between learned start and end vectors.

    2308.05734 §3.2: [sos, P(clap), eos, sos_1, P_1(text), eos_1]. Chapter 13.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.names, dims = config.conditions, config.condition_dims
        if len(self.names) != len(dims):
            raise ValueError(f"conditions {self.names} need one width each, not {dims}")
        for i, dim in enumerate(dims):
            suffix = f"_{i}" if i else ""  # as in the released names
            setattr(self, f"projection{suffix}", nn.Linear(dim, config.n_embd))
            for end in ("sos_embed", "eos_embed"):
                vector = nn.Parameter(torch.randn(config.n_embd))
                setattr(self, end + suffix, vector)
        self.n_positions = config.learned_positions
        if self.n_positions:
            positions = torch.zeros(1, dims[-1], self.n_positions)  # as released
            self.learnable_positional_embedding = nn.Parameter(positions)

    def of(self, kind: str, i: int) -> nn.Module | Tensor:
        """The layer or vector of this kind for condition i."""
        return getattr(self, f"{kind}_{i}" if i else kind)

    def initialise(self) -> None:
        """Draw weights that give every condition about unit variance, like the LOA's:
        CLAP's vector has length 1.
        """
        for i, name in enumerate(self.names):
            weight = self.of("projection", i).weight
            std = 1.0 if name == "clap" else weight.shape[1] ** -0.5
            nn.init.normal_(weight, std=std)

    def forward(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Conditions by name -> sequence (B, S, n_embd) and mask (B, S) bool."""
        check_conditions(self, conditions)
        sequences, masks = [], []
        for i, name in enumerate(self.names):
            x, mask = conditions[name]
            if self.n_positions and i == len(self.names) - 1:
                learned = self.learnable_positional_embedding[:, :, : x.shape[1]]
                x = x + learned.transpose(1, 2)
            ends = (self.of(end, i) for end in ("sos_embed", "eos_embed"))
            sos, eos = (end.expand(len(x), 1, -1) for end in ends)
            sequences += [sos, self.of("projection", i)(x), eos]  # (B, S_i, n_embd)
            mask = x.new_ones(x.shape[:2]) if mask is None else mask
            masks += [F.pad(mask.bool(), (1, 1), value=True)]
        return torch.cat(sequences, dim=1), torch.cat(masks, dim=1)


def check_conditions(projection: Projection, conditions: Conditions) -> None:
    """Raise ValueError if a condition is missing or has the wrong shape."""
    names, most = projection.names, projection.n_positions
    if set(conditions) != set(names):
        given = ", ".join(conditions) or "none"
        raise ValueError(f"conditions must be {', '.join(names)}, not {given}")
    B = len(conditions[names[0]].sequence)
    for i, name in enumerate(names):
        x, mask = conditions[name]
        dim = projection.of("projection", i).in_features
        if x.ndim != 3 or x.shape[0] != B or x.shape[2] != dim:
            shapes = f"({B}, S, {dim}), not {tuple(x.shape)}"
            raise ValueError(f"condition {name} must have shape {shapes}")
        if mask is not None and mask.shape != x.shape[:2]:
            shapes = f"{tuple(x.shape[:2])}, not {tuple(mask.shape)}"
            raise ValueError(f"the mask of condition {name} must be {shapes}")
    if 0 < most < x.shape[1]:  # x is the last condition
        span = f"at most {most} positions, not {x.shape[1]}"
        raise ValueError(f"condition {name} must have {span}")


class LOARegressor(Model):
    """M: C -> Y', the first half of AudioLDM 2: conditions to the Language of Audio
    (2308.05734 §3.2).

    Padding inside a condition is never read, but its positions count, as in the
    released model: if the same caption is padded to another length, its LOA changes.
    Chapter 13.
    """

    config_class = GPTConfig

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.projection = Projection(config)
        self.gpt2 = GPT2(config)
        self.apply(initialise)
        self.projection.initialise()
        # beside vectors of unit variance, GPT-2's 0.02 would vanish
        nn.init.normal_(self.gpt2.wpe.weight, std=0.5)
        for block in self.gpt2.h:  # as in GPT-2: deeper stacks start with smaller steps
            for branch in (block.attn, block.mlp):
                std = 0.02 / (2 * config.n_layer) ** 0.5
                nn.init.normal_(branch.c_proj.weight, std=std)

    def forward(self, conditions: Conditions, loa: Tensor) -> Tensor:
        """Predict every LOA vector from the conditions and the *true* vectors before
        it (teacher forcing).

        The prediction of vector l is read at the position before it; the first is read
        at the last condition.

        Args:
            conditions: by name, each a sequence (B, S, D) and its mask (B, S) or None.
            loa: (B, L, n_embd), the truth.

        Returns:
            predictions (B, L, n_embd).

        Raises:
            ValueError: conditions or loa have wrong names or shapes.
        """
        x, mask = self.projection(conditions)  # (B, S, n_embd)
        (B, S, D), shape = x.shape, tuple(loa.shape)
        if loa.ndim != 3 or shape[0] != B or shape[2] != D:
            raise ValueError(f"loa must have shape ({B}, L, {D}), not {shape}")
        mask = F.pad(mask, (0, shape[1] - 1), value=True)
        hidden = self.gpt2(torch.cat([x, loa[:, :-1]], dim=1), mask)
        return hidden[:, S - 1 :]  # (B, L, n_embd)

    def generate(self, conditions: Conditions, n_tokens: int | None = None) -> Tensor:
        """Write the LOA: append the last hidden state to the input, again and again
        (2308.05734 §3.2).

        A cache keeps keys and values, so each step computes one position. Gradients
        flow through all steps if they are enabled.

        Args:
            conditions: as in `forward`.
            n_tokens: number of vectors; None for the config's.

        Returns:
            (B, n_tokens, n_embd).

        Raises:
            ValueError: `n_tokens` is below 1, or there are too few positions for it.
        """
        n_tokens = self.config.n_tokens if n_tokens is None else n_tokens
        x, mask = self.projection(conditions)
        S, most = mask.shape[1], self.config.n_positions - mask.shape[1] + 1
        if not 1 <= n_tokens <= most:
            span = f"at least 1, and at most {most} after {S} positions"
            raise ValueError(f"n_tokens must be {span}, not {n_tokens}")
        cache, loa = self.gpt2.empty_cache(), []
        for _ in range(n_tokens):
            x = self.gpt2(x, mask, cache)[:, -1:]  # (B, 1, n_embd)
            mask = F.pad(mask, (0, 1), value=True)
            loa.append(x)
        return torch.cat(loa, dim=1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of each predicted vector (2308.05734 §3.2; the released
        code takes L1).

        Neighbouring LOA vectors are alike. So with the true ones as input the model
        learns to copy instead of reading the caption, and fails when it must continue
        from its own. Where `keep` (B, L), if it is in the batch, is false, the input is
        the model's own output, as in scheduled sampling (Bengio et al., 1506.03099) and
        DAgger (Ross et al., 1011.0686): then only the caption can help. No gradient
        flows through that output.

        The batch holds `loa` (B, L, n_embd) and the conditions (`from_batch`).
        """
        conditions, teacher = from_batch(batch, self.config.conditions), batch["loa"]
        if "keep" in batch:
            with torch.no_grad():
                own = self.generate(conditions, teacher.shape[1]).to(teacher.dtype)
            teacher = torch.where(batch["keep"][:, :, None], teacher, own)
        return F.mse_loss(self(conditions, teacher), batch["loa"])


def initialise(module: nn.Module) -> None:
    """Draw weights that preserve variance, where GPT-2 takes 0.02 at any width; set
    biases to zero.

    With weights as small as GPT-2's, attention at first ignores its inputs, and a few
    minutes of training do not change that. Chapter 13.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


LOARegressor.presets = {
    "tiny": GPTConfig(
        condition_dims=(128, 128), n_embd=192, n_layer=3, n_head=6, n_positions=256,
        n_tokens=16, vocab_size=1,
    ),
    "colab": GPTConfig(
        condition_dims=(256, 256), n_embd=384, n_layer=6, n_head=6, n_positions=512,
        n_tokens=16, vocab_size=1,
    ),
    "full": GPTConfig(),
    "speech": GPTConfig(condition_dims=(512, 192), n_tokens=512, learned_positions=310),
}  # fmt: skip


@dataclass(frozen=True)
class LoudnessConfig:
    """The shape of the LOA that `Loudness` reads."""

    n_tokens: int
    n_embd: int


class Loudness(Model):
    """A linear map from the LOA that GPT-2 wrote for a sound to the loudness the sound
    should have; not in the paper.

    Loudness is a small part of what an LOA encodes, and the sound that diffusion, VAE
    and vocoder make from it is off by several decibels. The map reads the intended
    loudness, so that the level can be corrected at the end: gain and shape are treated
    separately, as in speech coders (Sabin and Gray, IEEE Trans. ASSP 32, 1984). There
    are no parameters to train: `fit` finds the map in closed form.
    """

    config_class = LoudnessConfig

    def __init__(self, config: LoudnessConfig):
        super().__init__(config)
        shape = config.n_tokens, config.n_embd
        self.register_buffer("weight", torch.zeros(shape))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("range", torch.zeros(2))  # range of the training clips

    def forward(self, loa: Tensor) -> Tensor:
        """LOA (B, n_tokens, n_embd) -> the intended loudness (B,) in decibels."""
        decibels = (loa.float() * self.weight.float()).sum(dim=(1, 2))
        return (decibels + self.bias.float()).clamp(*self.range.float())

    @torch.no_grad()
    def fit(self, loa: Tensor, decibels: Tensor) -> None:
        """Fit the map by ridge regression (Hoerl and Kennard, Technometrics 12, 1970).

        Args:
            loa: (N, n_tokens, n_embd), written by `LOARegressor.generate` from the
                captions of N clips. True ones will not do: they hold details that no
                caption mentions.
            decibels: (N,), the loudness of these clips.
        """
        x, y = loa.flatten(1).cpu().double(), decibels.cpu().double()
        centre, mean = x.mean(dim=0), y.mean()
        x = x - centre  # not in place: in float64 x is the caller's own tensor
        gram = x.T @ x
        gram.diagonal().add_(RIDGE * len(x))
        weight = torch.linalg.solve(gram, x.T @ (y - mean))
        self.weight.copy_(weight.view_as(self.weight))
        self.bias.copy_(mean - centre @ weight)
        self.range.copy_(torch.stack([y.min(), y.max()]))
