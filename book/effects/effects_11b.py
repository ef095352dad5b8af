"""The effects of chapter 11b: phonemes.

A small network learns to find a word's recording among others: a phoneme encoder reads
the word, a stack of convolutions hears the recording, and both end in one space. What
changes is what the encoder reads: phonemes, letters, or a number for each word. A seed
draws the words that are held out, the weights and the batches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from effects import Claim, experiment
from torch import Tensor, nn

from minilib import audio
from minilib.clap import contrastive_loss
from minilib.phonemes import (
    END,
    SYMBOLS,
    PhonemeConfig,
    PhonemeEncoder,
    PhonemeFeedForward,
    phonemize,
)
from minilib.soundworld import HELD_OUT_VOICE, VOICES, WORDS, espeak
from minilib.soundworld.speech import OTHERS
from minilib.training import Recipe, fit

N_TEST = 100  # words held out
SAMPLES = 20480  # of a recording: 1.28 s
STEPS, BATCH, LR = 200, 64, 3e-3
# words whose spelling misleads; training never has them
MISLEADING = (
    "though tough cough bough thorough knight gnome yacht choir queue island aisle "
    "debt receipt ghost sword castle muscle salmon calm tongue league vague women busy "
    "bury friend heart blood wolf laugh rough eye shoe love steak bear key ocean guard"
).split()
SMALL = PhonemeConfig(
    hidden_size=64, num_layers=2, num_heads=2, ffn_dim=128, flow_size=1
)
FOUND = {
    "unit": f"share of {N_TEST} held-out words whose recording comes first",
    "chance": 1 / N_TEST,
    "ceiling": 1.0,
}


@dataclass
class Lexicon:
    """Words, what can be read of each, and their recordings."""

    words: list[str]
    phonemes: list[str]
    mels: Tensor  # (voices, words, 64, 64): 20 ms by mel band

    def ids(self, kind: str) -> Tensor:
        """What the encoder reads of each word: ids (words, S)."""
        if kind == "word identity":
            return torch.arange(1, len(self.words) + 1)[:, None]
        texts = self.words if kind == "letters" else self.phonemes
        rows = [[SYMBOLS.index(c) for c in text] + [END] for text in texts]
        S = max(map(len, rows))
        return torch.tensor([row + [0] * (S - len(row)) for row in rows])


def recordings(words: list[str], voice: str) -> Tensor:
    """Log-mels of words in a voice, averaged over pairs of frames and scaled:
    (words, 64, 64).
    """
    how, waves = VOICES[voice], []
    for word in words:
        wave = espeak.speak(word, how.variant, how.height, how.rate)[:SAMPLES]
        waves.append(F.pad(torch.from_numpy(wave), (0, SAMPLES - len(wave))))
    few = [torch.stack(waves[i : i + 32]) for i in range(0, len(waves), 32)]
    mels = torch.cat([F.avg_pool2d(audio.log_mel(x), (2, 1)) for x in few])
    return (mels[:, 0] + 8) / 4


def sounds(phonemes: str) -> str:
    """Phonemes without their stress marks."""
    return phonemes.replace("ˈ", "").replace("ˌ", "")


@functools.cache
def lexicon() -> Lexicon:
    """SoundWorld's words, and those whose spelling misleads: one of each
    pronunciation, in all voices but the held-out one.
    """
    spoken = {}
    for word in (*MISLEADING, *WORDS, *OTHERS):
        spoken.setdefault(sounds(phonemize(word)), word)
    words = list(spoken.values())
    voices = [voice for voice in VOICES if voice != HELD_OUT_VOICE]
    mels = torch.stack([recordings(words, voice) for voice in voices])
    return Lexicon(words, [phonemize(word) for word in words], mels)


class Ear(nn.Module):
    """Convolutions along time over the log-mel, and one linear layer."""

    def __init__(self, dim: int):
        super().__init__()
        widths = (64, 128, 128, 64)
        self.convs = nn.ModuleList(
            nn.Conv1d(n, m, 5, stride=2, padding=2)
            for n, m in zip(widths, widths[1:], strict=False)
        )
        self.out = nn.Linear(8 * widths[-1], dim)

    def forward(self, mels: Tensor) -> Tensor:
        """mels (B, 64, 64) -> (B, dim) of unit length."""
        x = mels.transpose(1, 2)  # (B, bands, frames)
        for conv in self.convs:
            x = conv(x).relu()
        return F.normalize(self.out(x.flatten(1)), dim=-1)


class Finder(nn.Module):
    """Words and recordings in one space."""

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        self.encoder = PhonemeEncoder(config)
        self.project = nn.Linear(config.hidden_size, config.hidden_size)
        self.ear = Ear(config.hidden_size)
        self.log_scale = nn.Parameter(torch.tensor(2.6))  # log of 1 / temperature

    def read(self, ids: Tensor) -> Tensor:
        """ids (B, S) -> (B, dim) of unit length: the mean of the states."""
        mask = ids > 0
        mean = self.encoder(ids, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return F.normalize(self.project(mean), dim=-1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        words, heard = self.read(batch["ids"]), self.ear(batch["mels"])
        return contrastive_loss(words, heard, self.log_scale.exp())


def split(seed: int) -> tuple[Tensor, Tensor]:
    """Words to train with and words held out, by their number in the lexicon; the held-
    out ones are made of phonemes that training has.
    """
    lex = lexicon()
    free = [i for i, word in enumerate(lex.words) if word not in MISLEADING]
    order = torch.tensor(free)[
        torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))
    ]
    train = set("".join(lex.phonemes[i] for i in order[N_TEST:]))
    held_out = [i for i in order[:N_TEST].tolist() if set(lex.phonemes[i]) <= train]
    spare = [i for i in order[N_TEST:].tolist()]
    while len(held_out) < N_TEST:  # a word with a rare phoneme: another in its place
        held_out.append(spare.pop(0))
    return torch.tensor(spare), torch.tensor(held_out)


def orderless(finder: Finder, arm: str) -> None:
    """Take away the convolutions' neighbours, the distances, or both."""
    for layer in finder.encoder.encoder["layers"]:
        if arm in ("distances alone", "neither"):
            narrow = replace(finder.encoder.config, ffn_kernel_size=1)
            layer.feed_forward = PhonemeFeedForward(narrow)
        if arm in ("convolutions alone", "neither"):
            for table in (layer.attention.emb_rel_k, layer.attention.emb_rel_v):
                nn.init.zeros_(table).requires_grad_(False)


def train(
    seed: int, kind: str, n_words: int | None = None, steps: int = STEPS,
    shuffled: bool = False, arm: str = "both",
) -> Finder:  # fmt: skip
    """A Finder, trained on the words that are not held out."""
    lex, ids = lexicon(), lexicon().ids(kind)
    known = split(seed)[0][:n_words]
    vocab_size = len(lex.words) + 1 if kind == "word identity" else END + 1
    torch.manual_seed(seed)
    finder = Finder(replace(SMALL, vocab_size=vocab_size))
    orderless(finder, arm)

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        i = known[torch.randperm(len(known), generator=generator)[:BATCH]]
        voice = torch.randint(0, len(lex.mels), (len(i),), generator=generator)
        mels = lex.mels[voice, i]
        return {"ids": ids[i], "mels": mels.roll(1, dims=0) if shuffled else mels}

    recipe = Recipe(steps=steps, batch_size=BATCH, lr=LR, warmup=20)
    fit(finder, draw, recipe, seed=seed, progress=False)
    return finder.eval()


@torch.no_grad()
def recall(finder: Finder, ids: Tensor, which: Tensor) -> float:
    """How often a word's own recording is the nearest of those of all these words in
    the same voice.
    """
    text = finder.read(ids[which])  # (n, dim)
    scores = [text @ finder.ear(mels[which]).T for mels in lexicon().mels]
    best = torch.stack([score.argmax(dim=1) for score in scores])
    return float((best == torch.arange(len(which))).float().mean())


def permuted(ids: Tensor, how: str, seed: int = 0) -> Tensor:
    """The same ids in another order: backwards, or at random; end sign and padding
    stay.
    """
    generator, made = torch.Generator().manual_seed(seed), ids.clone()
    for row in made:
        n = int((row > 0).sum()) - 1
        order = torch.arange(n).flip(0)
        if how == "at random":
            order = torch.randperm(n, generator=generator)
        row[:n] = row[:n][order]
    return made


@torch.no_grad()
def forwards(finder: Finder, which: Tensor) -> float:
    """How often a recording fits its phonemes better than the same ones backwards;
    where both fit equally well, that counts half.
    """
    ids = lexicon().ids("phonemes")
    right, wrong = finder.read(ids[which]), finder.read(permuted(ids[which], "back"))
    gaps = [
        ((right - wrong) * finder.ear(mels[which])).sum(dim=1)
        for mels in lexicon().mels
    ]
    gap = torch.cat(gaps)
    return float(((gap > 1e-5).float() + 0.5 * (gap.abs() <= 1e-5)).mean())


@experiment(
    Claim(
        "heldout",
        "words that training never had are found by their phonemes, less well by "
        "their letters, and not at all by a number for each word",
        holds=lambda m: (
            m["phonemes"] > m["letters"] + 0.05
            and m["letters"] > 10 / N_TEST
            and m["word identity"] < 4 / N_TEST
            and m["phonemes, trained on shuffled pairs"] < 4 / N_TEST
        ),
        control="phonemes, trained on shuffled pairs",
        **FOUND,
    ),
    Claim(
        "seen",
        "words that training had are found as well by a number for each, after four "
        "times as many steps",
        f"share of {N_TEST} words of training whose recording comes first",
        lambda m: abs(m["word identity, 800 steps"] - m["phonemes"]) < 0.05,
        chance=1 / N_TEST,
        ceiling=1.0,
    ),
    Claim(
        "misleading",
        "where the spelling misleads, phonemes find many more words than letters",
        f"share of {len(MISLEADING)} words with misleading spelling whose recording "
        "comes first",
        lambda m: m["phonemes"] > m["letters"] + 0.2,
        control="phonemes, trained on shuffled pairs",
        chance=1 / len(MISLEADING),
        ceiling=1.0,
    ),
    Claim(
        "shuffled",
        "the same phonemes in another order find fewer words",
        holds=lambda m: m["in another order"] < m["in their order"] - 0.3,
        control="in another order",
        **FOUND,
    ),
)
def heldout(seed: int) -> dict[str, dict[str, float]]:
    """What is found by phonemes, letters and numbers."""
    known, new = split(seed)
    by = {kind: lexicon().ids(kind) for kind in ("phonemes", "letters")}
    by["word identity"] = lexicon().ids("word identity")
    finders = {kind: train(seed, kind) for kind in by}
    longer = train(seed, "word identity", steps=800)
    broken = train(seed, "phonemes", shuffled=True)
    found = {kind: recall(finders[kind], by[kind], new) for kind in by}
    odd = torch.tensor([lexicon().words.index(word) for word in MISLEADING])
    control = "phonemes, trained on shuffled pairs"
    mixed = permuted(by["phonemes"], "at random", seed)
    return {
        "heldout": {**found, control: recall(broken, by["phonemes"], new)},
        "seen": {
            **{kind: recall(finders[kind], by[kind], known[:N_TEST]) for kind in by},
            "word identity, 800 steps": recall(
                longer, by["word identity"], known[:N_TEST]
            ),
        },
        "misleading": {
            "phonemes": recall(finders["phonemes"], by["phonemes"], odd),
            "letters": recall(finders["letters"], by["letters"], odd),
            control: recall(broken, by["phonemes"], odd),
        },
        "shuffled": {
            "in their order": found["phonemes"],
            "in another order": recall(finders["phonemes"], mixed, new),
        },
    }


@experiment(
    Claim(
        "words",
        "with half as many words of training, phonemes find as many as letters, or "
        "more",
        holds=lambda m: (
            m["phonemes, 75 words"] > m["letters, 150 words"]
            and m["phonemes, 150 words"] > m["letters, 300 words"]
        ),
        **FOUND,
    )
)
def words(seed: int) -> dict[str, dict[str, float]]:
    """How many words are found after training on few."""
    new = split(seed)[1]
    return {
        "words": {
            f"{kind}, {n} words": recall(
                train(seed, kind, n_words=n), lexicon().ids(kind), new
            )
            for n in (75, 150, 300)
            for kind in ("phonemes", "letters")
        }
    }


@experiment(
    Claim(
        "order",
        "without distances and convolutions no word differs from itself backwards; "
        "either of them is enough to tell",
        "share of recordings that fit the phonemes better than the same backwards",
        lambda m: (
            abs(m["neither"] - 0.5) < 0.02
            and min(m["distances alone"], m["convolutions alone"]) > 0.7
            and m["both"] > 0.9
        ),
        control="neither",
        chance=0.5,
        ceiling=1.0,
    ),
    Claim(
        "parts",
        "order helps to find held-out words, and the convolutions bring most of it",
        holds=lambda m: (
            m["both"] > m["neither"] + 0.1
            and m["convolutions alone"] > m["distances alone"]
        ),
        control="neither",
        **FOUND,
    ),
)
def order(seed: int) -> dict[str, dict[str, float]]:
    """What tells the encoder the order of phonemes."""
    new, ids = split(seed)[1], lexicon().ids("phonemes")
    arms = ("both", "convolutions alone", "distances alone", "neither")
    finders = {arm: train(seed, "phonemes", arm=arm) for arm in arms}
    return {
        "order": {arm: forwards(finder, new) for arm, finder in finders.items()},
        "parts": {arm: recall(finder, ids, new) for arm, finder in finders.items()},
    }
