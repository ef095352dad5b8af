"""Words to vectors: the T5 encoder whose states the U-Net
and GPT-2 attend to.

T5 (Raffel et al., 1910.10683) in its version 1.1, which FLAN-T5 and so AudioLDM 2
(2308.05734) use: RMS norm before each layer, no biases, relative positions, gated GELU.
Names and layout are those of transformers, so that weights carry over key by key. The
decoder is there to train the encoder by span corruption; the encoder alone ships.
Nothing drops out, as in the pre-training of version 1.1. Chapter 11 builds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.model import Model
from minilib.tokenizer import N_SENTINELS, PAD, SENTINEL


@dataclass(frozen=True)
class T5Config:
    """Sizes of T5, named as in transformers; the defaults are FLAN-T5-large's.

    Chapter 11.
    """

    vocab_size: int = 32128
    d_model: int = 1024  # width of the states
    d_kv: int = 64  # width of a head; heads * d_kv need not be d_model
    d_ff: int = 2816  # width inside the feed-forward layer
    num_layers: int = 24  # of the encoder
    num_decoder_layers: int = 24  # used in pre-training only
    num_heads: int = 16
    relative_attention_num_buckets: int = 32  # distances are told apart this finely ...
    relative_attention_max_distance: int = 128  # ... and not at all beyond this
    layer_norm_epsilon: float = 1e-6


PRESETS = {
    "tiny": T5Config(
        vocab_size=1000,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=4,
        num_decoder_layers=2,
        num_heads=4,
    ),
    "colab": T5Config(
        vocab_size=4000,
        d_model=256,
        d_kv=32,
        d_ff=704,
        num_layers=6,
        num_decoder_layers=3,
        num_heads=8,
    ),
    "full": T5Config(),
}


def relative_bucket(
    distance: Tensor, n_buckets: int, max_distance: int, bidirectional: bool = True
) -> Tensor:
    """Sort distances between tokens into buckets: small ones one by one, larger ones by
    their logarithm.

    Raffel et al. (1910.10683 §2.1). Half of the buckets are for keys to the right of
    the query; a decoder, which sees none, uses all of them for the left.

    Args:
        distance: key position minus query position, any shape, long.
        n_buckets, max_distance: from there on all distances share the last bucket.

    Returns:
        Bucket numbers 0 ... n_buckets - 1, of the same shape. Chapter 11.
    """
    if bidirectional:
        n_buckets //= 2
        first = (distance > 0).long() * n_buckets
        distance = distance.abs()
    else:
        first = torch.zeros_like(distance)
        distance = (-distance).clamp(min=0)
    n_exact = n_buckets // 2
    octaves = torch.log(distance.clamp(min=1).float() / n_exact) / math.log(
        max_distance / n_exact
    )
    large = n_exact + (octaves * (n_buckets - n_exact)).long()
    return first + torch.where(
        distance < n_exact, distance, large.clamp(max=n_buckets - 1)
    )


class T5Attention(nn.Module):
    """Multi-head attention without biases and without the 1/sqrt(d), which the initial
    weights make up for.

    Raffel et al. (1910.10683 §2.1). In the first block it holds the table of relative
    positions, one number per bucket and head, that all blocks add to their scores.
    Chapter 11.
    """

    def __init__(self, config: T5Config, has_positions: bool = False):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_positions:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )

    def forward(self, x: Tensor, bias: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, S, d_model), context (B, K, d_model) or None for x, bias to (B, heads,
        S, K) -> (B, S, d_model).
        """
        context = x if context is None else context
        q, k, v = (
            # (B, heads, positions, d_kv)
            h.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for h in (self.q(x), self.k(context), self.v(context))
        )
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(h.transpose(1, 2).flatten(2))  # (B, S, d_model)


class T5GatedFeedForward(nn.Module):
    """A linear layer gated by the GELU of another, then back (Shazeer, 2002.05202 Eq.
    6).

    Chapter 11.
    """

    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, d_model) -> (B, S, d_model)."""
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class T5Layer(nn.Module):
    """One layer beside its skip connection, normalised before: x + layer(norm(x)).
    Chapter 11.

    The layer is kept under the `name` it has in transformers, so that its weights are
    found there.
    """

    def __init__(self, name: str, layer: nn.Module, config: T5Config):
        super().__init__()
        self.name = name
        self.add_module(name, layer)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """x (B, S, d_model) and what else the layer takes -> (B, S, d_model)."""
        return x + getattr(self, self.name)(self.layer_norm(x), *args)


class T5Block(nn.Module):
    """Self-attention, in the decoder attention to the encoder, and the feed-forward
    network.

    Chapter 11.
    """

    def __init__(self, config: T5Config, is_decoder: bool, is_first: bool):
        super().__init__()
        layers = [
            T5Layer(
                "SelfAttention", T5Attention(config, has_positions=is_first), config
            )
        ]
        if is_decoder:
            layers.append(T5Layer("EncDecAttention", T5Attention(config), config))
        layers.append(T5Layer("DenseReluDense", T5GatedFeedForward(config), config))
        self.layer = nn.ModuleList(layers)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        context: Tensor | None,
        context_bias: Tensor | None,
    ) -> Tensor:
        """x (B, S, d_model), each attention's bias, the encoder's states as context ->
        (B, S, d_model).
        """
        x = self.layer[0](x, bias)
        if context is not None:
            x = self.layer[1](x, context_bias, context)
        return self.layer[-1](x)


class T5Stack(nn.Module):
    """The blocks of the encoder, or of the decoder, and the norm that ends them.

    Chapter 11.
    """

    def __init__(self, config: T5Config, is_decoder: bool = False):
        super().__init__()
        self.config, self.is_decoder = config, is_decoder
        n_layers = config.num_decoder_layers if is_decoder else config.num_layers
        self.block = nn.ModuleList(
            T5Block(config, is_decoder, is_first=i == 0) for i in range(n_layers)
        )
        self.final_layer_norm = nn.RMSNorm(
            config.d_model, eps=config.layer_norm_epsilon
        )

    def position_bias(self, S: int) -> Tensor:
        """What each head adds to its scores for each pair of positions: (1, heads, S,
        S).
        """
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        position = torch.arange(S, device=table.weight.device)
        bucket = relative_bucket(
            position[None, :] - position[:, None],
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
            bidirectional=not self.is_decoder,
        )
        return table(bucket).permute(2, 0, 1)[None]

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, S, d_model), mask (B, S); context and its mask: the encoder's states ->
        (B, S, d_model).
        """
        S = x.shape[1]
        keep = mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        if self.is_decoder:
            # (B, 1, S, S)
            keep = keep & torch.ones(S, S, dtype=torch.bool, device=x.device).tril()
        bias = self.position_bias(S)
        bias = bias.masked_fill(~keep, torch.finfo(bias.dtype).min)  # (B, heads, S, S)
        context_bias = (
            None if context is None else context_mask.bool()[:, None, None, :]
        )
        for block in self.block:
            x = block(x, bias, context, context_bias)
        return self.final_layer_norm(x)


class T5Encoder(Model):
    """Tokens to states: the half of T5 that AudioLDM 2 keeps, frozen (2308.05734 §3.2).

    The same weights, key by key, as transformers' T5EncoderModel. Chapter 11.
    """

    config_class = T5Config

    def __init__(self, config: T5Config):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)
        self.apply(initialise)

    @property
    def dim(self) -> int:
        """Width of the states."""
        return self.config.d_model

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode tokens: ids (B, S) long, mask (B, S), True for tokens (None: all) ->
        states (B, S, d_model).

        What stands under the padding changes no state of a token.

        Raises:
            ValueError: ids are not (B, S), the mask has another shape, or an id is not
                in the vocabulary.
        """
        mask = check_ids(ids, mask, self.config.vocab_size)
        return self.encoder(self.shared(ids), mask)


class T5(Model):
    """Encoder and decoder, to train the encoder by filling in missing words (1910.10683
    §3.1.4).

    The same weights, key by key, as transformers' T5ForConditionalGeneration,
    embeddings tied. Chapter 11.
    """

    config_class = T5Config

    def __init__(self, config: T5Config):
        super().__init__(config)
        # of both halves, and of the output
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)
        self.decoder = T5Stack(config, is_decoder=True)
        self.apply(initialise)

    def forward(self, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Predict each target token from the input and the targets before it: teacher
        forcing.

        Args:
            ids, mask: (B, S), what the encoder reads.
            targets: (B, L) long, padded with <pad>.

        Returns:
            Logits (B, L, vocab_size).
        """
        mask = check_ids(ids, mask, self.config.vocab_size)
        context = self.encoder(self.shared(ids), mask)  # (B, S, d_model)
        # <pad> starts the decoder, as in T5
        previous = F.pad(targets[:, :-1], (1, 0), value=PAD)
        x = self.decoder(
            self.shared(previous), torch.ones_like(previous), context, mask
        )
        # (B, L, vocab_size)
        return F.linear(x * self.config.d_model**-0.5, self.shared.weight)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy, in nats per token, of the spans that `batch["noise"]` hides
        (1910.10683 §3.1.4).

        The batch holds `ids`, `mask` and `noise` (from `noise_spans`), each (B, S).
        Where it is a share of a larger one, `n_targets` (B,) tells how many tokens the
        targets of a sentence have in the mean of the larger: then the mean loss of
        equal shares is that of the whole, and its every token counts the same.
        """
        ids, targets = span_corrupt(batch["ids"], batch["mask"], batch["noise"])
        logits = self(ids, ids != PAD, targets)
        nats = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum"
        )
        return nats / (
            batch["n_targets"].sum() if "n_targets" in batch else (targets != PAD).sum()
        )

    def text_encoder(self) -> T5Encoder:
        """Return the encoder as a model of its own that shares these weights: what
        ships.
        """
        model = T5Encoder(self.config)
        model.shared, model.encoder = self.shared, self.encoder
        return model.train(self.training)


T5Encoder.presets = T5.presets = PRESETS


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draw weights at T5's own scales, which make up for the missing 1/sqrt(d).

    Chapter 11.
    """
    if isinstance(module, T5Attention):
        d_model, inner = module.q.in_features, module.q.out_features
        module.q.weight.normal_(std=(d_model * inner / module.num_heads) ** -0.5)
        module.k.weight.normal_(std=d_model**-0.5)
        module.v.weight.normal_(std=d_model**-0.5)
        module.o.weight.normal_(std=inner**-0.5)
        if hasattr(module, "relative_attention_bias"):
            module.relative_attention_bias.weight.normal_(std=d_model**-0.5)
    elif isinstance(module, T5GatedFeedForward):
        for linear in (module.wi_0, module.wi_1, module.wo):
            linear.weight.normal_(std=linear.in_features**-0.5)


def check_ids(ids: Tensor, mask: Tensor | None, vocab_size: int) -> Tensor:
    """Return the mask (all True for None); raise a sentence where ids or mask do not
    fit.

    Chapter 11.
    """
    if ids.ndim != 2 or ids.is_floating_point() or ids.shape[1] == 0:
        raise ValueError(
            f"ids must be long of shape (B, S), not {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"mask must have the shape of ids, {tuple(ids.shape)}, not "
            f"{tuple(mask.shape)}"
        )
    # a GPU would have to wait
    if ids.device.type == "cpu" and not 0 <= ids.min() <= ids.max() < vocab_size:
        span = f"{int(ids.min())} ... {int(ids.max())}"
        raise ValueError(
            f"ids must lie in 0 ... {vocab_size - 1}, the model's vocabulary, not in "
            f"{span}"
        )
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def random_parts(
    total: int, n_parts: int, generator: torch.Generator | None
) -> list[int]:
    """Cut `total` into `n_parts` positive whole parts, every way equally likely.

    Chapter 11.
    """
    cuts = (
        (torch.randperm(total - 1, generator=generator)[: n_parts - 1] + 1)
        .sort()
        .values.tolist()
    )
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def noise_spans(
    mask: Tensor,
    generator: torch.Generator | None = None,
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> Tensor:
    """Choose the spans of tokens to hide: `rate` of the tokens, `mean_span` at a time
    (1910.10683 §3.1.4).

    Kept and hidden spans alternate, and their lengths are random. At least one token of
    a caption is hidden, and </s>, the last one, never. This is all the randomness of
    `T5.loss`, drawn here so that the batch can carry it.

    Args:
        mask: (B, S), True for tokens.
        generator: on the CPU; None for torch's own.

    Returns:
        noise (B, S) bool, True for hidden tokens, on the CPU.

    Raises:
        ValueError: `rate` is not between 0 and 1, or `mean_span` is below 1. Chapter
            11.
    """
    if not 0 < rate < 1 or not mean_span >= 1:
        raise ValueError(
            f"rate must lie between 0 and 1 and mean_span be 1 or more, not {rate} "
            f"and {mean_span}"
        )
    noise = torch.zeros(mask.shape, dtype=torch.bool)
    for row, n_tokens in zip(
        noise, (mask.bool().sum(1) - 1).clamp(min=0).tolist(), strict=True
    ):
        n_noise = min(max(round(n_tokens * rate), 1), n_tokens - 1)
        n_spans = min(
            max(round(n_noise / mean_span), 1),
            n_noise,
            n_tokens - n_noise,
            N_SENTINELS - 1,
        )
        if n_spans < 1:  # no caption, or one word: it is all there is to hide
            row[:n_tokens] = True
            continue
        kept, hidden = (
            random_parts(n, n_spans, generator) for n in (n_tokens - n_noise, n_noise)
        )
        lengths = [n for pair in zip(kept, hidden, strict=True) for n in pair]
        row[:n_tokens] = torch.tensor([False, True] * n_spans).repeat_interleave(
            torch.tensor(lengths)
        )
    return noise


def span_corrupt(ids: Tensor, mask: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Make the task "fill in what is missing" of a sentence (1910.10683 §3.1.4 and Fig.
    2).

    Each hidden span becomes one sentinel; the target lists sentinel and span in turn,
    and one more sentinel ends it: "thank you <0> me to your party <1> week </s>" and
    "<0> for inviting <1> last <2>".

    Args:
        ids, mask: (B, S) from the tokenizer.
        noise: (B, S) bool from `noise_spans`.

    Returns:
        inputs (B, S') and targets (B, L), long, padded with <pad>.

    Raises:
        ValueError: a sentence has more hidden spans than there are sentinels to name
            them. Chapter 11.
    """
    mask, noise = mask.bool(), noise.to(ids.device) & mask.bool()
    first = noise & ~F.pad(noise[:, :-1], (1, 0))  # where a span begins
    n_spans = first.sum(1, keepdim=True)  # (B, 1)
    if int(n_spans.max()) >= N_SENTINELS:
        raise ValueError(
            f"noise must hide at most {N_SENTINELS - 1} spans of a sentence, not "
            f"{int(n_spans.max())}"
        )
    sentinel = SENTINEL + first.cumsum(1) - 1  # (B, S)
    inputs = left_align(torch.where(first, sentinel, ids), mask & (~noise | first))
    # (B, 2S): before each token its sentinel
    targets = torch.stack([sentinel, ids], dim=2).flatten(1)
    targets = torch.cat([targets, SENTINEL + n_spans], dim=1)
    keep = F.pad(torch.stack([first, noise], dim=2).flatten(1), (0, 1), value=True)
    return inputs, left_align(targets, keep)


def left_align(ids: Tensor, keep: Tensor) -> Tensor:
    """Drop the tokens of each row that are not kept, close the gaps, pad the rest with
    <pad>.

    Chapter 11.
    """
    length = keep.sum(1, keepdim=True)  # (B, 1)
    order = keep.int().argsort(dim=1, descending=True, stable=True)[
        :, : int(length.max())
    ]
    is_token = torch.arange(order.shape[1], device=ids.device) < length
    return ids.gather(1, order).masked_fill(~is_token, PAD)
