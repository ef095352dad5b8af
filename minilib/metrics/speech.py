"""Are words understood, and voices the right ones? The evaluation of speech
(chapter 11b).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from minilib import audio
from minilib.arguments import MAX_SEED
from minilib.audioldm2 import AudioLDM2
from minilib.guidance import Sampling, check_sampling
from minilib.metrics.evaluation import (
    check_asked,
    round_trip,
    rows_of,
    settings,
    told_settings,
)
from minilib.metrics.hearing import Pair, SpeechJudges, answers, clean, clustered_error
from minilib.metrics.questions import BATCH
from minilib.phonemes import PhonemeTokenizer
from minilib.soundworld import HELD_OUT_WORDS, WORDS, describe
from minilib.soundworld.speech import voices
from minilib.speakers import ABSENT
from minilib.training.clips import uttered

KINDS = ("seen", "held_out")  # of words: in training or not


class ShuffledPhonemes(PhonemeTokenizer):
    """A tokenizer whose phonemes stand in a random order, another one than theirs: the
    control of speech.
    """

    def encode(self, texts: list[str], pad_to: int = 0) -> tuple[Tensor, Tensor]:
        ids, mask = super().encode(texts, pad_to)
        generator = torch.Generator().manual_seed(len(texts))
        for row, n in zip(ids, mask.sum(dim=1).tolist()):
            said = row[: n - 1].clone()  # without the end sign
            while len(said.unique()) > 1 and torch.equal(row[: n - 1], said):
                row[: n - 1] = said[torch.randperm(n - 1, generator=generator)]
        return ids, mask


def evaluate_speech(
    pipe: AudioLDM2,
    judges: SpeechJudges,
    sampling: Sampling | None = None,
    n: int = 200,
    seed: int = 0,
    prompted: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Let voices say words of SoundWorld, n that training knows and n held-out ones,
    and judge whether the words are understood and the voices right.

    Args:
        pipe: a pipeline that speaks, with its AudioMAE; judges: of words and voices.
        sampling: the pipeline's settings for sampling; None for its weights' own.
        n: how often each question is asked, 2 or more; seed: of words, voices, noise.
        prompted: tell the voice by a recording of another word, not by a caption.
        progress: show a bar over the sounds.
    Returns:
        a flat dictionary, named as in `evaluate`, for the questions of
            `hearing.answers` about words that are `seen` in training and words
            that are `held_out`: `seen.word`, … The control of the words is speech from
            shuffled phonemes, that of voices and speakers the same sounds, asked for
            other voices. Under the prefix `true_loa.` stand the answers for sounds from
            the LOA of clean speech: what they lack is not GPT-2's fault. Standard
            errors are clustered by word.
    Raises:
        ValueError, TypeError: an argument is not as described, or the pipeline does not
            speak.
    """
    n, seed, _ = check_asked(n, seed=seed)
    how = check_sampling(sampling, pipe.sampling)
    if not pipe.speaks:
        raise ValueError("pipe must speak: its weights read no transcription")
    if pipe.audiomae is None or pipe.columns is None:
        raise ValueError("pipe must have its audiomae and columns, for the true LOA")
    results = settings(n, seed, how)
    known = tuple(word for word in WORDS if word not in HELD_OUT_WORDS)
    with tqdm(total=6 * n, desc="evaluate", unit="sound", disable=not progress) as bar:
        for number, kind in enumerate(KINDS):
            words = known if kind == "seen" else HELD_OUT_WORDS
            rng = np.random.default_rng([seed, number])
            said, sounds = spoken(pipe, words, how, n, rng, prompted, bar)
            found = judged_speech(judges, said, sounds)
            results |= {key.format(f"{kind}."): x for key, x in found.items()}
    return results


def spoken(
    pipe: AudioLDM2,
    words: Sequence[str],
    how: Sampling,
    n: int,
    rng: np.random.Generator,
    prompted: bool,
    bar: Any,
) -> tuple[list[Pair], dict[str, Tensor]]:
    """Draw n pairs of word and voice, each once before any comes again, and say them:
    the sounds (n, N) by the prefix of their results.
    """
    every = [(w, v) for w in words for v in voices("train")]
    order = [int(i) for i in rng.permutation(len(every))]
    said = [every[order[i % len(order)]] for i in range(n)]
    speak = partial(spoken_by, pipe, said, how, prompted, rng, bar)
    sounds = {"": speak(), "control.": speak(shuffled=True)}
    real = torch.stack([clean(*pair, pipe.seconds) for pair in said])
    sounds["true_loa."] = resounded(pipe, real, how, rng, bar)
    return said, sounds | {"roundtrip.": round_trip(pipe, real), "ceiling.": real}


def judged_speech(
    judges: SpeechJudges, said: Sequence[Pair], sounds: dict[str, Tensor]
) -> dict[str, float]:
    """The answers about sounds (n, N), by prefix, that should say these words in these
    voices; the keys, such as "chance.{}word", leave room for the kind of words.
    """
    found = {f"chance.{{}}{asked}": x for asked, x in judges.chance().items()}
    heard = {prefix: judges.heard(waves) for prefix, waves in sounds.items()}
    right = {prefix: answers(x, said) for prefix, x in heard.items()}
    # the words of sounds from shuffled phonemes, the voices of the others
    turned = [(w, v) for (w, _), (_, v) in zip(said, [*said[1:], said[0]])]
    others = answers(heard[""], turned).items()
    right["control."] |= {q: x for q, x in others if not q.startswith("word")}
    for prefix, each in right.items():
        found |= {f"{prefix}{{}}{asked}": float(x.mean()) for asked, x in each.items()}
    words = [word for word, _ in said]
    errors = {asked: clustered_error(x, words) for asked, x in right[""].items()}
    return found | {f"se.{{}}{asked}": x for asked, x in errors.items()}


def spoken_by(
    pipe: AudioLDM2,
    said: list[Pair],
    how: Sampling,
    prompted: bool,
    rng: np.random.Generator,
    bar: Any,
    shuffled: bool = False,
) -> Tensor:
    """The sounds (n, N) of words in voices, as `evaluate_speech` says."""
    scenes = [uttered(*pair, pipe.seconds) for pair in said]
    captions = [describe(x, np.random.default_rng([x.seed, 2])) for x in scenes]
    known = [word for word in WORDS if word not in HELD_OUT_WORDS]
    own, waves = pipe.text.tokenizer, []
    if shuffled:
        pipe.text.tokenizer = ShuffledPhonemes(own.max_tokens)
    try:
        for start in range(0, len(said), BATCH):
            some = slice(start, start + BATCH)
            words, voiced = zip(*said[some])
            drawn = [int(rng.integers(len(known))) for _ in words]
            options: dict[str, Any] = {}
            if prompted:  # by another word, the one before it if it is the same
                other = [known[i - (known[i] == w)] for i, w in zip(drawn, words)]
                pairs = zip(other, voiced)
                prompts = [clean(*pair, pipe.seconds) for pair in pairs]
                options["voice"] = torch.stack(prompts)
            seeds = [int(x) for x in rng.integers(MAX_SEED, size=len(words))]
            options |= {"transcription": list(words), "seed": seeds, "progress": False}
            waves.append(pipe(captions[some], how, **options))
            bar.update(len(words))
    finally:
        pipe.text.tokenizer = own
    return torch.cat(waves)


@torch.no_grad()
def resounded(
    pipe: AudioLDM2, waves: Tensor, how: Sampling, rng: np.random.Generator, bar: Any
) -> Tensor:
    """Sounds (n, N) that diffusion makes from the true LOA of these, (n, N)."""
    made, generator = [], torch.Generator().manual_seed(int(rng.integers(MAX_SEED)))
    for some in waves.split(BATCH):
        mel = audio.log_mel(some.to(pipe.device))
        loa = pipe.columns.loa(pipe.audiomae, mel)
        empty = pipe.encode([""] * len(some))  # nothing but the LOA is read
        told = {**empty, "loa": pipe.loa_of_negative(empty, how)}
        latents = pipe.noise(len(some), some.shape[1], generator=generator)
        z0 = pipe.sample(loa, empty, how, told, latents, generator)
        made.append(pipe.decode(z0, some.shape[1]).float().cpu())
        bar.update(len(some))
    return torch.cat(made)


def speech_report(results: dict[str, float]) -> str:
    """The results of `evaluate_speech` as a table: chance < value < ceiling."""
    about = told_settings(results, "words that training knows, and as many held out")
    legend = """\
word: heard by a recogniser that was not trained here. word.class, voice: heard by
classifiers that were trained apart. control: phonemes shuffled; for voices, the same
sounds asked for others. true LOA: diffusion from the LOA of clean speech. round trip:
clean speech through VAE and vocoder. ceiling: clean speech. ±: clustered by word."""
    if any(key.endswith(".speaker") for key in results):
        legend += "\nspeaker: name and pitch, by an encoder that was not trained here."
    else:
        legend += f"\n{ABSENT}"
    return "\n".join([about, "", *rows_of(results), "", legend])
