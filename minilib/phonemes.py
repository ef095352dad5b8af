"""Words to phonemes to vectors, from which GPT-2 reads what is to be spoken.

espeak-ng turns text into phonemes, and a fixed table of symbols turns those into ids.
The encoder is the text encoder of VITS (Kim et al., 2106.06103 §2.5) as AudioLDM 2
uses it (2308.05734 §3.2), without the rest of VITS: no durations, no flow. Its
attention depends on the distance between neighbours (Shaw et al., 1803.02155). Names
and layout are those of transformers' VitsTextEncoder, which holds the released weights.
There is no dropout. Chapter 11b builds it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.arguments import as_list, check_whole
from minilib.conditions import Context
from minilib.files import replacing
from minilib.model import Model
from minilib.soundworld.espeak import ipa
from minilib.tokenizer import PAD, Reader, check_ids

# The symbols of VITS in its own order, so that ids agree: padding, punctuation, letters
# (IPA shares many), and the letters and signs of IPA alone.
SIGNS = ';:,.!?¡¿—…"«»“” '
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
IPA = (
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍ"
    "χʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'\u0329'ᵻ"
)
SYMBOLS = "_" + SIGNS + LETTERS + IPA
END = 182  # id of the end sign, the last of the released model; 178 to 181 are not used
# marks at the end of a clause, but not the point in "3.14"
CLAUSE = re.compile(r"\s*([;:,.!?…—]+)(?=\s|$)\s*")
# the point of a title or an initial before another word, where espeak-ng makes no pause
ABBREVIATION = re.compile(r"(?<![.\w])((?i:Dr|Mrs?|Prof|Rev|St)|[A-HJ-Z])\.(?=\s+\w)")


def phonemize(text: str) -> str:
    """Text to phonemes in IPA, as VITS reads it (2106.06103): "Seven rivers." ->
    "sˈɛvən ɹˈɪvɚz."

    espeak-ng's rules pronounce words and numbers. Stress is marked before its vowel.
    The marks that end a clause are kept; other punctuation is not, nor the point of a
    title or an initial ("Dr. Smith"). Other abbreviations are taken for the end of a
    clause, so "e.g. this" is spelled out. Empty text has no phonemes.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError: the text holds a character that can't be read as English.

    Chapter 11b.
    """
    pieces = CLAUSE.split(ABBREVIATION.sub(r"\1", text))
    words, marks = pieces[::2], pieces[1::2]
    clauses = [ipa(some) + mark for some, mark in zip(words, [*marks, ""])]
    return " ".join(filter(None, clauses))


class PhonemeFile:
    """The symbols of a `PhonemeTokenizer`, its lengths and its file."""

    vocab_size = END + 1
    ids = {symbol: i for i, symbol in enumerate(SYMBOLS)}

    def __init__(self, max_tokens: int = 310):
        self.max_tokens = check_whole("max_tokens", max_tokens, 1)
        # GPT-2 has a learned position for each, and padding counts
        self.pad_to = self.max_tokens

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, whole or not at all."""
        content = {"max_tokens": self.max_tokens, "symbols": SYMBOLS, "end": END}
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> PhonemeFile:
        """Read a tokenizer that `save` wrote.

        Raises:
            FileNotFoundError: there is no file at `path`.
            ValueError: the file is damaged, or its symbols are others.
        """
        if not (path := Path(path)).is_file():
            raise FileNotFoundError(f"tokenizer file {path} does not exist")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content["symbols"], content["end"]
            tokenizer = cls(content["max_tokens"])
        except (ValueError, KeyError, TypeError) as error:
            said = "no phoneme tokenizer can be read from it"
            raise ValueError(f"tokenizer file {path} is damaged: {said}") from error
        if found != (SYMBOLS, END):
            said = "its symbols are not those of this version"
            raise ValueError(f"tokenizer file {path} is not minilib's: {said}")
        return tokenizer


class PhonemeTokenizer(PhonemeFile):
    """Transcriptions to ids: one for each symbol of their phonemes, then an end sign,
    and padding up to `max_tokens` (2308.05734 §3.2; 310 in the released model).

    Chapter 11b.
    """

    def encode(self, texts: Iterable[str], pad_to: int = 0) -> tuple[Tensor, Tensor]:
        """B transcriptions -> ids (B, S) long and mask (B, S), True for phonemes and
        the end sign, padded to the longest and at least to `pad_to`.

        Raises:
            ModuleNotFoundError: espeak-ng is not installed.
            ValueError: a text can't be read as English, or has more than `max_tokens`
                symbols, the end sign included.
        """
        rows = []
        for text in as_list("transcriptions", texts):
            row = [self.ids[symbol] for symbol in phonemize(text)] + [END]
            if len(row) > self.max_tokens:
                short = text if len(text) <= 40 else text[:37] + "..."
                said = f"has {len(row)} phonemes and signs, but at most"
                most = f"{self.max_tokens} can be read"
                raise ValueError(f"the transcription {short!r} {said} {most}")
            rows.append(row)
        if not rows:
            raise ValueError("transcriptions is empty: at least one is needed")
        S = max(pad_to, *map(len, rows))
        ids = torch.tensor([row + [PAD] * (S - len(row)) for row in rows])  # (B, S)
        return ids, ids != PAD

    def decode(self, ids: Tensor) -> list[str]:
        """Ids (B, S) -> B strings of phonemes, without padding and end sign."""
        rows = ([i for i in row if i not in (PAD, END)] for row in ids.tolist())
        return ["".join(SYMBOLS[i] for i in row) for row in rows]


@dataclass(frozen=True)
class PhonemeConfig:
    """Sizes of the phoneme encoder; the defaults are the released speech model's.

    Chapter 11b.
    """

    vocab_size: int = END + 1  # symbols of IPA, punctuation, and the end sign
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 2
    ffn_dim: int = 768
    ffn_kernel_size: int = 3
    window_size: int = 4  # positions on either side within which distance counts
    flow_size: int = 192  # size of a projection in the released file, never read
    layer_norm_eps: float = 1e-5


class RelativeAttention(nn.Module):
    """Self-attention with a key and a value for each distance up to `window_size`
    (1803.02155 Eqs. 3 and 4).

    Beyond the window no distance counts, as in VITS; Shaw et al. let the outermost
    ones stand for all that lie beyond. Chapter 11b.
    """

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        D, d = config.hidden_size, config.hidden_size // config.num_heads
        self.n_head, self.window = config.num_heads, config.window_size
        self.k_proj, self.v_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.q_proj, self.out_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.emb_rel_k = nn.Parameter(torch.randn(1, 2 * self.window + 1, d) * d**-0.5)
        self.emb_rel_v = nn.Parameter(torch.randn(1, 2 * self.window + 1, d) * d**-0.5)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """x (B, S, D) and keep (B, 1, 1, S), True for positions to read
        -> (B, S, D).
        """
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads = (h.unflatten(-1, (self.n_head, -1)) for h in projected)
        q, k, v = (h.transpose(1, 2) for h in heads)  # (B, n_head, S, d)
        q = q * q.shape[-1] ** -0.5
        # a row for each distance, and one of zeros beyond the window: (2 window + 2, d)
        near_k, near_v = (
            F.pad(table[0], (0, 0, 0, 1)) for table in (self.emb_rel_k, self.emb_rel_v)
        )
        # (B, n_head, S, S): the row of each pair of positions
        row = self.rows(x.shape[1], x.device).expand(*q.shape[:3], -1)
        scores = q @ k.transpose(2, 3) + (q @ near_k.T).gather(3, row)
        scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=3)  # (B, n_head, S, S)
        by_row = weights.new_zeros(*q.shape[:3], len(near_v))
        h = weights @ v + by_row.scatter_add(3, row, weights) @ near_v
        return self.out_proj(h.transpose(1, 2).flatten(2))

    def rows(self, S: int, device: torch.device) -> Tensor:
        """The row of the tables for the distance from i to j: (S, S)."""
        position = torch.arange(S, device=device)
        distance, w = position - position[:, None], self.window
        return torch.where(distance.abs() <= w, distance + w, 2 * w + 1)


class PhonemeFeedForward(nn.Module):
    """Two convolutions along the phonemes; padding is zeroed before and after each.

    Chapter 11b.
    """

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        kernel = config.ffn_kernel_size
        self.conv_1 = nn.Conv1d(config.hidden_size, config.ffn_dim, kernel)
        self.conv_2 = nn.Conv1d(config.ffn_dim, config.hidden_size, kernel)
        self.around = ((kernel - 1) // 2, kernel // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, D) and mask (B, S, 1) -> (B, S, D)."""
        mask = mask.transpose(1, 2)  # (B, 1, S)
        h = self.conv_1(F.pad(x.transpose(1, 2) * mask, self.around)).relu()
        return (self.conv_2(F.pad(h * mask, self.around)) * mask).transpose(1, 2)


class PhonemeLayer(nn.Module):
    """Attention and convolutions, each normalised after its skip connection.

    Chapter 11b.
    """

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        D, eps = config.hidden_size, config.layer_norm_eps
        self.attention = RelativeAttention(config)
        self.layer_norm = nn.LayerNorm(D, eps)
        self.feed_forward = PhonemeFeedForward(config)
        self.final_layer_norm = nn.LayerNorm(D, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, D) and mask (B, S, 1), True for phonemes -> (B, S, D)."""
        x = self.layer_norm(x + self.attention(x, mask[:, None, None, :, 0]))
        return self.final_layer_norm(x + self.feed_forward(x, mask))


class PhonemeEncoder(Reader, Model):
    """Phonemes to states that GPT-2 can read (2106.06103 §2.5; 2308.05734 §3.2).

    Chapter 11b.
    """

    config_class = PhonemeConfig
    reads = "transcription"

    def __init__(self, config: PhonemeConfig):
        super().__init__(config)
        self.dim = D = config.hidden_size
        if D % config.num_heads:
            said = f"a multiple of num_heads, not {D} of {config.num_heads}"
            raise ValueError(f"hidden_size must be {said}")
        # id 0 is padding: it stands behind the end sign, and gets no gradient
        self.embed_tokens = nn.Embedding(config.vocab_size, D, PAD)
        # as in VITS: about unit variance once `forward` has scaled it
        nn.init.normal_(self.embed_tokens.weight, std=D**-0.5)
        layers = nn.ModuleList(PhonemeLayer(config) for _ in range(config.num_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.project = nn.Conv1d(D, 2 * config.flow_size, 1)  # kept, never read

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode phonemes: ids (B, S) long, mask (B, S), True for phonemes (None: all)
        -> states (B, S, D), zero at padding.
        """
        mask = check_ids(ids, mask, self.config.vocab_size)[:, :, None]  # (B, S, 1)
        x = self.embed_tokens(ids) * math.sqrt(self.dim) * mask  # (B, S, D)
        for layer in self.encoder["layers"]:
            x = layer(x, mask)
        return x * mask

    def empty(self, n: int, pad_to: int = 0) -> Context:
        """The empty condition for n items: nothing is spoken, nothing is read."""
        S = pad_to or self.padded_to()
        states = self.embed_tokens.weight.new_zeros(n, S, self.dim)
        return Context(states, states.new_zeros(n, S, dtype=torch.bool))


PhonemeEncoder.presets = {
    "tiny": PhonemeConfig(hidden_size=96, num_layers=3, ffn_dim=192, flow_size=1),
    "colab": PhonemeConfig(flow_size=1),
    "full": PhonemeConfig(),
}
