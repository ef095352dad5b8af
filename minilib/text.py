"""Words to vectors: the T5 encoder whose states the U-Net and GPT-2 attend to.

This is T5 (Raffel et al., 1910.10683) in version 1.1, which FLAN-T5 and so AudioLDM 2
(2308.05734) use: RMS norm before each layer, no biases, relative positions, gated GELU.
Names and layout are those of transformers, so that weights carry over key by key. The
decoder serves to train the encoder, by span corruption and then with instructions; only
the encoder ships. There is no dropout, as in the pre-training of version 1.1.
Chapter 11 builds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers import attention
from minilib.model import Model
from minilib.tokenizer import EOS, N_SENTINELS, PAD, SENTINEL, Reader, check_ids


@dataclass(frozen=True)
class T5Config:
    """Sizes of T5, by transformers' names; defaults: FLAN-T5-large's. Chapter 11."""

    vocab_size: int = 32128
    d_model: int = 1024  # width of the states
    d_kv: int = 64  # width of a head; heads * d_kv need not equal d_model
    d_ff: int = 2816  # width inside the feed-forward layer
    num_layers: int = 24  # of the encoder
    num_decoder_layers: int = 24  # used in pre-training only
    num_heads: int = 16
    relative_attention_num_buckets: int = 32  # classes of distance between tokens
    relative_attention_max_distance: int = 128  # from here on all share one class
    layer_norm_epsilon: float = 1e-6


PRESETS = {
    "tiny": T5Config(
        vocab_size=1000, d_model=128, d_kv=32, d_ff=256, num_layers=4,
        num_decoder_layers=2, num_heads=4,
    ),
    "colab": T5Config(
        vocab_size=4000, d_model=256, d_kv=32, d_ff=704, num_layers=6,
        num_decoder_layers=3, num_heads=8,
    ),
    "full": T5Config(),
}  # fmt: skip


def relative_bucket(
    distance: Tensor, n_buckets: int, max_distance: int, bidirectional: bool = True
) -> Tensor:
    """Sort distances between tokens (key minus query position) into buckets: one for
    each small distance, logarithmic ones for larger distances (1910.10683 §2.1).

    From `max_distance` on, all share the last bucket. Half of the n buckets are for
    keys to the right; a decoder sees none and uses all for the left. Chapter 11.
    """
    first = 0
    if bidirectional:
        n_buckets //= 2
        first = (distance > 0) * n_buckets
    distance = distance.abs() if bidirectional else (-distance).clamp(min=0)
    n_exact = n_buckets // 2
    ratio = distance.clamp(min=1).float() / n_exact
    share = torch.log(ratio) / math.log(max_distance / n_exact)
    far = (n_exact + (share * (n_buckets - n_exact)).long()).clamp(max=n_buckets - 1)
    return first + torch.where(distance < n_exact, distance, far)


def linear(n_in: int, n_out: int, std: float | None = None) -> nn.Linear:
    """A layer without biases whose weights have deviation `std`; None for n_in^-1/2."""
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.normal_(layer.weight, std=n_in**-0.5 if std is None else std)
    return layer


class T5Attention(nn.Module):
    """Multi-head attention without biases or the factor 1/sqrt(d), as in T5's code.

    In the first block it also holds the table of relative positions, one number per
    bucket and head, which all blocks add to their scores. Chapter 11.
    """

    def __init__(self, config: T5Config, has_positions: bool = False):
        super().__init__()
        D, inner = config.d_model, config.num_heads * config.d_kv
        self.n_head = config.num_heads
        # smaller queries in place of 1/sqrt(d)
        self.q = linear(D, inner, std=(D * config.d_kv) ** -0.5)
        self.k, self.v, self.o = linear(D, inner), linear(D, inner), linear(inner, D)
        if has_positions:
            n_buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(n_buckets, self.n_head)
            nn.init.normal_(self.relative_attention_bias.weight, std=D**-0.5)

    def forward(self, x: Tensor, bias: Tensor, context: Tensor | None = None) -> Tensor:
        # x (B, S, d_model), context (B, K, d_model) or x itself, bias (B, heads, S, K)
        context = x if context is None else context
        q, k, v = self.q(x), self.k(context), self.v(context)
        return self.o(attention(q, k, v, self.n_head, bias, scale=1.0))


class T5GatedFeedForward(nn.Module):
    """A layer gated by the GELU of another (Shazeer, 2002.05202 Eq. 6). Chapter 11."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = linear(config.d_model, config.d_ff)
        self.wi_1 = linear(config.d_model, config.d_ff)
        self.wo = linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.wi_0(x), approximate="tanh")  # (B, S, d_ff)
        return self.wo(gate * self.wi_1(x))  # (B, S, d_model)


class T5Layer(nn.Module):
    """x + layer(norm(x)); `name` is the layer's in transformers. Chapter 11."""

    def __init__(self, name: str, layer: nn.Module, config: T5Config):
        super().__init__()
        self.name = name
        self.add_module(name, layer)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        return x + getattr(self, self.name)(self.layer_norm(x), *args)


class T5Block(nn.Module):
    """Self-attention, in a decoder also cross-attention, and an MLP. Chapter 11."""

    def __init__(self, config: T5Config, is_decoder: bool, is_first: bool):
        super().__init__()
        layers = {"SelfAttention": T5Attention(config, has_positions=is_first)}
        if is_decoder:
            layers["EncDecAttention"] = T5Attention(config)
        layers["DenseReluDense"] = T5GatedFeedForward(config)
        self.layer = nn.ModuleList(T5Layer(*named, config) for named in layers.items())

    def forward(self, x: Tensor, bias: Tensor, *context: Tensor) -> Tensor:
        x = self.layer[0](x, bias)  # (B, S, d_model)
        if context:  # bias and states of the encoder
            x = self.layer[1](x, *context)
        return self.layer[-1](x)


class T5Stack(nn.Module):
    """The blocks of the encoder or decoder, and a final norm. Chapter 11."""

    def __init__(self, config: T5Config, is_decoder: bool = False):
        super().__init__()
        self.config, self.is_decoder = config, is_decoder
        n_layers = config.num_decoder_layers if is_decoder else config.num_layers
        blocks = (T5Block(config, is_decoder, is_first=i == 0) for i in range(n_layers))
        self.block = nn.ModuleList(blocks)
        eps = config.layer_norm_epsilon
        self.final_layer_norm = nn.RMSNorm(config.d_model, eps=eps)

    def bias(self, mask: Tensor) -> Tensor:
        """The bias added to the scores: the lowest number where a key is not read."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        position = torch.arange(mask.shape[1], device=mask.device)
        distance = position - position[:, None]  # (S, S): rows are queries
        n_buckets = self.config.relative_attention_num_buckets
        most = self.config.relative_attention_max_distance
        bucket = relative_bucket(distance, n_buckets, most, not self.is_decoder)
        keep = mask[:, None, None]  # (B, 1, 1, S)
        if self.is_decoder:
            keep = keep & (distance <= 0)  # (B, 1, S, S)
        bias = table(bucket).permute(2, 0, 1)  # (heads, S, S)
        return bias.masked_fill(~keep, torch.finfo(bias.dtype).min)  # (B, heads, S, S)

    def forward(self, x: Tensor, mask: Tensor, *context: Tensor) -> Tensor:
        bias = self.bias(mask)  # of x (B, S, d_model) and mask (B, S) bool
        if context:  # mask (B, K) and states (B, K, d_model) of the encoder
            context = context[0][:, None, None], context[1]
        for block in self.block:
            x = block(x, bias, *context)
        return self.final_layer_norm(x)


class T5Encoder(Reader, Model):
    """The half of T5 that AudioLDM 2 keeps, frozen: tokens to states (2308.05734 §3.2).

    The same weights, key by key, as transformers' T5EncoderModel. Chapter 11.
    """

    config_class = T5Config

    def __init__(self, config: T5Config):
        super().__init__(config)
        self.dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, self.dim)
        self.encoder = T5Stack(config)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, S), mask (B, S), True for tokens (None: all) -> (B, S, d_model)."""
        mask = check_ids(ids, mask, self.config.vocab_size)
        return self.encoder(self.shared(ids), mask)


class T5(Model):
    """The encoder, and a decoder to train it by filling in words (1910.10683 §3.1.4).

    The weights of transformers' T5ForConditionalGeneration, key by key. Chapter 11.
    """

    config_class = T5Config

    def __init__(self, config: T5Config):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)  # output, too
        self.encoder, self.decoder = T5Stack(config), T5Stack(config, is_decoder=True)

    def forward(self, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Predict each target (B, L) from ids and mask (B, S) and the targets before it
        (teacher forcing): logits (B, L, vocab_size).
        """
        mask = check_ids(ids, mask, self.config.vocab_size)
        return self.decode(self.encoder(self.shared(ids), mask), mask, targets)

    def decode(self, states: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """`forward` from the encoder's states (B, S, d_model) and their mask (B, S)."""
        previous = F.pad(targets[:, :-1], (1, 0), value=PAD)  # <pad> first, as in T5
        everywhere = torch.ones_like(previous, dtype=torch.bool)
        x = self.decoder(self.shared(previous), everywhere, mask, states)
        return F.linear(x * self.config.d_model**-0.5, self.shared.weight)

    @torch.no_grad()
    def generate(self, ids: Tensor, mask: Tensor, most: int = 24) -> Tensor:
        """Answer ids and mask (B, S) by the likeliest token, up to </s>: (B, L)."""
        mask = check_ids(ids, mask, self.config.vocab_size)
        states, answer = self.encoder(self.shared(ids), mask), ids[:, :0]
        ended = torch.zeros_like(ids[:, :1], dtype=torch.bool)  # (B, 1)
        while answer.shape[1] < most and not ended.all():
            answer = F.pad(answer, (0, 1), value=PAD)  # one more place
            token = self.decode(states, mask, answer)[:, -1:].argmax(dim=-1)
            answer[:, -1:] = token.masked_fill(ended, PAD)
            ended |= token == EOS
        return answer

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy, in nats per token, of the answers `targets` (B, L) to `ids`
        and `mask` (B, S), or of the spans that `noise` (B, S) hides.

        A share of a larger batch also holds `n_targets` (B,), the mean number of target
        tokens per sentence there, so that every token has the same weight.
        """
        ids, targets = batch["ids"], batch.get("targets")
        if targets is None:
            ids, targets = span_corrupt(ids, batch["mask"], batch["noise"])
        logits = self(ids, ids != PAD, targets).flatten(0, 1)
        targets = targets.flatten()
        nats = F.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum")
        return nats / batch.get("n_targets", targets != PAD).sum()

    def text_encoder(self) -> T5Encoder:
        """The encoder as a model of its own, which ships; it shares these weights."""
        model = T5Encoder(self.config)
        model.shared, model.encoder = self.shared, self.encoder
        return model.train(self.training)


T5Encoder.presets = T5.presets = PRESETS


def random_parts(
    total: int, n_parts: int, generator: torch.Generator | None
) -> list[int]:
    """Split `total` into `n_parts` positive integers, all splits equally likely."""
    cuts = torch.randperm(total - 1, generator=generator)[: n_parts - 1] + 1
    cuts = cuts.sort().values.tolist()
    return [b - a for a, b in zip([0, *cuts], [*cuts, total])]


def noise_spans(
    mask: Tensor,
    generator: torch.Generator | None = None,
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> Tensor:
    """Choose the tokens to hide, True in noise (B, S): a share `rate` of those in mask
    (B, S), in spans of mean length `mean_span` (1910.10683 §3.1.4).

    Kept and hidden spans of random lengths alternate. At least one token is hidden, but
    never </s>, the last. It is drawn on the CPU: the batch holds it. Chapter 11.
    """
    if not 0 < rate < 1 or not mean_span >= 1:
        said = f"between 0 and 1 and mean_span be 1 or more, not {rate} and {mean_span}"
        raise ValueError(f"rate must be {said}")
    noise = torch.zeros(mask.shape, dtype=torch.bool)
    for row, length in zip(noise, mask.bool().sum(1).tolist()):
        n_tokens = max(length - 1, 0)
        n_noise = min(max(round(n_tokens * rate), 1), n_tokens - 1)
        n_spans = max(round(n_noise / mean_span), 1)
        n_spans = min(n_spans, n_noise, n_tokens - n_noise, N_SENTINELS - 1)
        if n_spans < 1:  # an empty caption, or a single token that can be hidden
            row[:n_tokens] = True
            continue
        kept = random_parts(n_tokens - n_noise, n_spans, generator)
        hidden = random_parts(n_noise, n_spans, generator)
        lengths = torch.tensor([kept, hidden]).T.flatten()  # in turn
        which = torch.tensor([False, True] * n_spans)
        row[:n_tokens] = which.repeat_interleave(lengths)
    return noise


def span_corrupt(ids: Tensor, mask: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Make a gap-filling task: inputs (B, S') and targets (B, L) (1910.10683 Fig. 2).

    One sentinel replaces each hidden span; the target lists each sentinel and its span,
    and ends with one more sentinel: "thank you <0> me to your party <1> week </s>" and
    "<0> for inviting <1> last <2>". ids, mask, noise: (B, S). Chapter 11.
    """
    mask, noise = mask.bool(), noise.to(ids.device) & mask.bool()
    first = noise & ~F.pad(noise[:, :-1], (1, 0))  # where a span begins
    n_spans = first.sum(1, keepdim=True)  # (B, 1)
    if (n := int(n_spans.max())) >= N_SENTINELS:
        most = f"at most {N_SENTINELS - 1} spans"
        raise ValueError(f"noise must hide {most} per sentence, not {n}")
    sentinel = SENTINEL + first.cumsum(1) - 1  # (B, S)
    inputs = left_align(torch.where(first, sentinel, ids), mask & (~noise | first))
    # (B, 2S): each token after its sentinel
    targets = torch.stack([sentinel, ids], dim=2).flatten(1)
    targets = torch.cat([targets, SENTINEL + n_spans], dim=1)
    keep = F.pad(torch.stack([first, noise], dim=2).flatten(1), (0, 1), value=True)
    return inputs, left_align(targets, keep)


def left_align(ids: Tensor, keep: Tensor) -> Tensor:
    """Drop the tokens in each row that are not kept, close the gaps, and fill the rest
    with <pad>.
    """
    length = keep.sum(1, keepdim=True)  # (B, 1)
    order = keep.int().argsort(dim=1, descending=True, stable=True)
    order = order[:, : int(length.max())]
    is_token = torch.arange(order.shape[1], device=ids.device) < length
    return ids.gather(1, order).masked_fill(~is_token, PAD)
