"""Measures of generated sounds: a separately trained judge, spectral errors in
decibels, and tables that show chance < value < ceiling.

A number alone means little. Each one is shown beside the score of guessing (chance),
the same judge's score for clean renders of the same scenes (ceiling), and its score
when the captions are shuffled (control). Chapter 17 builds the questions and the
comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from minilib import audio, judges
from minilib.arguments import MAX_CANDIDATES, MAX_SEED, check_whole
from minilib.audioldm2 import AudioLDM2
from minilib.clap import CLAP
from minilib.classifier import Classifier
from minilib.convert.released import ReleasedCLAP
from minilib.data import AudioFolder
from minilib.frechet import frechet_distance
from minilib.guidance import MAX_STEPS, Sampling, check_sampling
from minilib.phonemes import PhonemeTokenizer
from minilib.recogniser import QUIET, Recogniser
from minilib.soundworld import (
    HELD_OUT_WORDS,
    INSTRUMENTS,
    VOICES,
    WORDS,
    Event,
    SoundWorld,
    describe,
    render,
)
from minilib.soundworld.corpus import to_float
from minilib.soundworld.speech import voices
from minilib.tokenizer import split_words
from minilib.training.clips import uttered

BATCH = 16  # sounds that are made or scored together
# frames (30.72 s): longer recordings are reconstructed in pieces of this length ...
CHUNK = 3072
# ... with this many more frames on either side; a multiple of every VAE's reduction
CONTEXT = 128
SHORTEST = 8  # frames: shorter recordings are padded, as the STFT needs 513 samples
# questions about one event that are answered in closed form
QUESTIONS = ("pitch", "count", "speed", "loudness")
FAINT = 8.0  # nepers below the loudest band: there no difference counts
SAID = 2.56  # seconds in which every voice can say every word of SoundWorld
Listener = CLAP | ReleasedCLAP  # compares sounds with captions

# --------------------------------------------------------------------------------------
# Spectral errors


def spectral_error(
    mel_a: Tensor, mel_b: Tensor, wave: Tensor | None = None
) -> dict[str, float]:
    """Mean |difference| of two log-mels in decibels, with digital silence scored apart.

    Where every sample under a frame is exactly 0, the log-mel is at its floor of -100
    dB, which no model reaches and no ear hears: such frames say nothing about how well
    a sound is preserved.

    Args:
        mel_a, mel_b: (B, 1, T, F) as from `audio.log_mel`.
        wave: (B, N), whose log-mel one of them is; None counts no frame as silent.
    Returns:
        `db` over all other frames, `silent_db` over the silent ones (each 0 if there
        are none), and `silent_share`, the share of silent frames, 0 to 1.
    Raises:
        ValueError: the shapes differ, or `wave` is too short for the frames.

    Chapter 17.
    """
    if mel_a.shape != mel_b.shape or mel_a.ndim != 4:
        given = f"given {tuple(mel_a.shape)} and {tuple(mel_b.shape)}"
        raise ValueError(f"mel_a and mel_b must both be (B, 1, T, F); {given}")
    error = audio.decibels((mel_a - mel_b).abs()).mean(dim=(1, 3))  # (B, T)
    silent = torch.zeros_like(error, dtype=torch.bool)
    if wave is not None:
        silent = silent_frames(wave, error.shape[1])
    return {
        "db": float(error[~silent].mean()) if not silent.all() else 0.0,
        "silent_db": float(error[silent].mean()) if silent.any() else 0.0,
        "silent_share": float(silent.float().mean()),
    }


def silent_frames(wave: Tensor, T: int) -> Tensor:
    """Which of the first T frames of the STFT cover only zeros: wave (B, N)
    -> (B, T) bool.
    """
    if wave.ndim != 2 or wave.shape[1] // audio.HOP < T:
        wanted = f"(B, N) with N at least {T * audio.HOP} samples"
        raise ValueError(f"wave must be {wanted}; given {tuple(wave.shape)}")
    sounding = (wave != 0).float()  # (B, N)
    # (B, N // HOP + 1)
    heard = F.max_pool1d(sounding, audio.N_FFT, audio.HOP, padding=audio.N_FFT // 2)
    return heard[:, :T] == 0


@torch.no_grad()
def reconstruction(
    pipe: AudioLDM2, wave: Tensor, progress: bool = False
) -> dict[str, Any]:
    """Send a recording through VAE and vocoder, and measure what each step loses.

    Recordings above 30 s are processed in pieces, each with 1.28 s of context on either
    side. This saves memory but changes the result a little, since the VAE attends to
    all of its input.

    Args:
        pipe: the pipeline whose VAE and vocoder are measured.
        wave: (N,) or (1, N) at 16 kHz, N at least 1.
        progress: show a bar over the pieces of a long recording.
    Returns:
        `wave` (N,), the reconstruction; the L1 distance in decibels from the
        recording's log-mel after the VAE (`vae_db`), after the vocoder on the true
        log-mel (`vocoder_db`) and after both (`total_db`); the same for digital silence
        in the recording (`vae_silent_db`, …); and `silent_share`.
    Raises:
        ValueError: `wave` is not one waveform.
    """
    if wave.numel() == 0 or wave.ndim > 2 or wave.shape[:-1].numel() != 1:
        wanted = "(N,) or (1, N) with at least one sample"
        raise ValueError(f"wave must be {wanted}; given {tuple(wave.shape)}")
    n_samples, n_scored = wave.shape[-1], -(-wave.shape[-1] // audio.HOP)
    n_padded = max(SHORTEST, n_scored) * audio.HOP
    padded = F.pad(wave.reshape(1, -1), (0, n_padded - n_samples))  # (1, T * HOP)
    framed = lambda x: x.unflatten(1, (-1, audio.HOP))  # (1, T * HOP) -> (1, T, HOP)
    step = partial(in_chunks, device=pipe.device, progress=progress)
    hear = lambda frames: audio.log_mel(frames.flatten(1))[:, 0]  # -> (1, T, F)
    keep = lambda mel: pipe.reconstruct(mel[:, None])[:, 0]  # -> (1, T, F)
    N = lambda mel: mel.shape[1] * audio.HOP
    speak = lambda mel: framed(pipe.vocoder(mel[:, None])[:, : N(mel)])
    mel = step(hear, framed(padded))
    kept = step(keep, mel)
    result = step(speak, kept)  # (1, T, HOP)
    after = {"vae": kept, "vocoder": step(hear, step(speak, mel))}
    after["total"] = step(hear, result)
    found: dict[str, Any] = {"wave": result.flatten()[:n_samples]}
    for name, other in after.items():
        pair = (x[:, None, :n_scored] for x in (mel, other))
        error = spectral_error(*pair, padded)
        found |= {f"{name}_db": error["db"], f"{name}_silent_db": error["silent_db"]}
        found["silent_share"] = error["silent_share"]
    return found


def in_chunks(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    device: torch.device,
    progress: bool = False,
) -> Tensor:
    """Apply a function of frames, (1, T, C) -> (1, T, C'), to pieces of a recording
    with context on either side.

    Args:
        function: returns one frame for each; x: (1, T, C); device: where it runs;
            progress: show a bar.
    """
    T, pieces, starts = x.shape[1], [], range(0, x.shape[1], CHUNK)
    quiet = not progress or len(starts) == 1
    for start in tqdm(starts, unit="piece", leave=False, disable=quiet):
        before = min(start, CONTEXT)
        y = function(x[:, start - before : start + CHUNK + CONTEXT].to(device)).cpu()
        pieces.append(y[:, before : before + min(CHUNK, T - start)])
    return torch.cat(pieces, dim=1)


# --------------------------------------------------------------------------------------
# The questions: scenes that were held out from training


@dataclass(frozen=True)
class Scenes:
    """Scenes to generate and judge: captions (n), clean renders (n, N), classes
    (n, 1 or 2).
    """

    captions: list[str]
    waves: Tensor
    labels: Tensor
    # for scenes with one event: the event, which their captions describe
    events: list[Event] = field(default_factory=list)

    def shuffled(self, seed: int) -> Scenes:
        """The same scenes in an order that leaves none in its place."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.captions), generator=generator)
        other = torch.empty_like(order)
        # a cycle through all scenes: each is replaced by another
        other[order] = order.roll(1)
        events = [self.events[i] for i in other] if self.events else []
        captions = [self.captions[i] for i in other]
        return Scenes(captions, self.waves[other], self.labels[other], events)


def held_out_scenes(
    judge: Classifier,
    n: int,
    seed: int,
    seconds: float,
    n_events: int,
    music: bool = False,
) -> Scenes:
    """Draw scenes that were held out from training: combinations of attributes, or
    ordered pairs of classes.
    """
    shares = {"pairs": float(n_events - 1), "music": float(music)}
    world = SoundWorld("test", seed=seed, seconds=seconds, **shares)
    clips = [world[i] for i in range(n)]
    names = [[event.name for event in clip.scene.events] for clip in clips]
    number = {name: i for i, name in enumerate(judge.config.classes)}
    if unknown := {name for some in names for name in some} - set(number):
        said = f"judge does not know {', '.join(sorted(unknown))}"
        raise ValueError(f"{said}: train it on the same SoundWorld")
    labels = torch.tensor([[number[name] for name in some] for some in names])
    events = [clip.scene.events[0] for clip in clips] if n_events == 1 else []
    waves = torch.stack([clip.wave for clip in clips])
    return Scenes([clip.caption for clip in clips], waves, labels, events)


def recorded_scenes(
    judge: Classifier, folder: AudioFolder, n: int, seed: int, seconds: float
) -> Scenes:
    """Draw n recordings from a folder, with all classes that the judge knows equally
    likely.

    The table must have a column `class`; of each recording the first `seconds` are
    kept.
    """
    known, kinds = judge.config.classes, folder.by("class")
    kinds = {name: kind for name, kind in kinds.items() if name in known}
    if len(kinds) < 2:
        said = "holds too few of the classes that the judge knows"
        raise ValueError(f"{folder.folder} {said}: {', '.join(known)}")
    rng = np.random.default_rng(seed)
    names = rng.choice(list(kinds), size=n)
    drawn = [(kinds[name], int(rng.integers(len(kinds[name])))) for name in names]
    n_samples = round(seconds * audio.SAMPLE_RATE)
    waves = [kind.wave(i)[:n_samples] for kind, i in drawn]
    waves = torch.stack([F.pad(wave, (0, n_samples - len(wave))) for wave in waves])
    labels = torch.tensor([[known.index(name)] for name in names])
    return Scenes([kind.captions[i] for kind, i in drawn], waves, labels)


def enough_scenes(n: int, seed: int, seconds: float) -> int:
    """The number of held-out scenes of one event that ask each question of
    `judges.answers` at least n times.
    """
    world = SoundWorld("test", seed=seed, seconds=seconds, pairs=0.0)
    asked = dict.fromkeys(QUESTIONS, 0)
    for i in count():
        if min(asked.values()) >= n:
            return i
        for question in judges.chance(world.scene(i).events[0]):
            asked[question] += 1


# --------------------------------------------------------------------------------------
# The answers


def judged(judge: Classifier, waves: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Whether sounds have the wanted classes: for each question a tensor (n,) of 0 and
    1.

    One event: the whole clip has the right `class`. Two events: the `first` half has
    the first class, the `second` half the second, `both` have theirs; `any` also
    accepts the reverse order.

    Args:
        waves: (n, N); labels: (n, 1) or (n, 2), the indices of the classes in the order
            of the events.

    Chapter 17.
    """
    if labels.shape[1] == 1:
        return {"class": (judge.hear(waves) == labels[:, 0]).float()}
    half = waves.shape[1] // 2
    halves = waves[:, :half], waves[:, half : 2 * half]
    heard = torch.stack([judge.hear(x) for x in halves], dim=1)  # (n, 2)
    right, swapped = heard == labels, heard.flip(1) == labels
    both = right.all(dim=1)
    answers = {"first": right[:, 0], "second": right[:, 1], "both": both}
    answers["any"] = both | swapped.all(dim=1)
    return {name: answer.float() for name, answer in answers.items()}


def chance(n_classes: int) -> dict[str, float]:
    """The score of guessing each class at random, for each question.

    Chapter 17.
    """
    one = 1 / n_classes
    guesses = dict.fromkeys(("class", "first", "second"), one)
    return {**guesses, "both": one**2, "any": 2 * one**2}


def attributes(waves: Tensor, events: list[Event]) -> dict[str, Tensor]:
    """Whether sounds (n, N) have the attributes that their captions mention, in closed
    form.

    Returns a tensor (n,) of 0 and 1 for each question, NaN for events that it does not
    apply to. Chapter 17.
    """
    pairs = zip(waves, events, strict=True)
    found = [judges.answers(wave, event) for wave, event in pairs]
    asked = sorted({question for answer in found for question in answer} - {"cents"})
    column = lambda q: torch.tensor([answer.get(q, math.nan) for answer in found])
    return {question: column(question) for question in asked}


@torch.no_grad()
def embeddings(listener: Listener, waves: Tensor) -> Tensor:
    """CLAP's embeddings (n, D) of sounds (n, N), of unit length."""
    device = next(listener.parameters()).device
    batches = (batch.to(device) for batch in waves.split(BATCH))
    return torch.cat([listener.embed_waves(batch).cpu() for batch in batches])


@torch.no_grad()
def cosines(listener: Listener, waves: Tensor, captions: list[str]) -> Tensor:
    """CLAP's cosine of each sound (n, N) and its caption: (n,), -1 to 1.

    Chapter 17.
    """
    told = listener.encode(captions).sequence[:, 0].cpu()  # (n, D)
    return (embeddings(listener, waves) * told).sum(dim=1)


def scores(
    judge: Classifier, listener: Listener, n: int, waves: Tensor, scenes: Scenes
) -> dict[str, Tensor]:
    """The answers to all questions about sounds (m, N) that should match these scenes.

    Class and CLAP are asked about the first n sounds, the other attributes in the
    captions about all. Chapter 17.
    """
    return {
        **judged(judge, waves[:n], scenes.labels[:n]),
        "clap": cosines(listener, waves[:n], scenes.captions[:n]),
        **(attributes(waves, scenes.events) if scenes.events else {}),
    }


def compared(
    judge: Classifier,
    listener: Listener,
    n: int,
    scenes: Scenes,
    sounds: dict[str, Tensor],
    kind: str = "single",
    seed: int = 0,
) -> dict[str, float]:
    """The answers for one kind of scenes, with chance, control, round trip and ceiling,
    named as in `evaluate`.

    Args:
        judge, listener, n: as for `scores`.
        sounds: `sounds_of` these scenes, each (m, N).
        kind: of scenes: `single`, `pair` or `music`; seed: of the shuffled captions.

    Chapter 17.
    """
    ask = partial(scores, judge, listener, n)
    rounds = {prefix: ask(waves, scenes) for prefix, waves in sounds.items()}
    rounds["control."] = ask(sounds[""], scenes.shuffled(seed))
    guesses = chance(len(judge.config.classes))
    asked = [judges.chance(event) for event in scenes.events]
    for question in {question for guess in asked for question in guess}:
        guesses[question] = fmean(g[question] for g in asked if question in g)
    found = {}
    for question, own in rounds[""].items():
        name = question_name(kind, question)
        answers = {prefix: rounds[prefix][question] for prefix in rounds}
        found |= {f"{k}{name}": float(x.nanmean()) for k, x in answers.items()}
        found[f"se.{name}"] = standard_error(own)
        if question in guesses:
            found[f"chance.{name}"] = guesses[question]
    return found


def standard_error(x: Tensor) -> float:
    """Standard error of the mean of answers (n,), without NaN; for a share p it is
    binomial, sqrt(p (1 - p) / n). Chapter 17.
    """
    x = x[~x.isnan()]
    return float(x.std(correction=0)) / len(x) ** 0.5


# --------------------------------------------------------------------------------------
# Do the sounds follow the captions?


def evaluate(
    pipe: AudioLDM2,
    judge: Classifier,
    sampling: Sampling | None = None,
    n: int = 200,
    seed: int = 0,
    candidates: int = 1,
    listener: Listener | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Generate held-out scenes of one event, of two events, and tunes, and judge
    whether the sounds follow the captions.

    Args:
        pipe, judge: the pipeline to measure, and the classifier that judges it.
        sampling: the pipeline's settings for sampling; None for its weights' own.
        n: how often each question is asked, 2 or more; seed: of the scenes and the
            noise.
        candidates: as for the pipeline; the paper's results use 3.
        listener: the CLAP whose cosine of sound and caption is measured; None for the
            pipeline's own. A separately trained one is fairer, since the pipeline's
            GPT-2 did not learn from it what captions mean.
        progress: show a bar over the sounds.
    Returns:
        a flat dictionary: for every question the mean over the scenes, and under the
            same name after a prefix `chance.` (guessing), `control.` (the same sounds,
            captions shuffled), `roundtrip.` (clean renders through VAE and vocoder),
            `ceiling.` (clean renders) and `se.` (standard error of the mean). For one
            event: `single.class`, `single.clap`, and in closed form `pitch`, `count`,
            `speed`, `loudness`; for two: `pair.first`, `pair.second`, `pair.both`,
            `pair.any`, `pair.clap`; for tunes, if the weights know any:
            `music.instrument`, `music.tempo`, `music.loudness`, `music.clap`. `frechet`
            is the distance of the generated sounds of one event from as many other
            renders in the judge's features, `ceiling.frechet` that of clean renders,
            and `frechet.clap` the same in the listener's embeddings.
    Raises:
        ValueError, TypeError: `n`, `seed`, `candidates` or `sampling` is not as
            described.
    """
    n, seed, candidates = check_asked(n, candidates, seed)
    how, listener = check_sampling(sampling, pipe.sampling), listener or pipe.clap
    draw = partial(held_out_scenes, judge, seed=seed, seconds=pipe.seconds)
    enough = enough_scenes(n, seed, pipe.seconds)
    kinds = {"single": draw(enough, n_events=1), "pair": draw(n, n_events=2)}
    if plays(pipe):
        kinds["music"] = draw(n, n_events=1, music=True)
    results = settings(n, seed, how, candidates)
    total = sum(len(scenes.captions) for scenes in kinds.values())
    with tqdm(total=total, desc="evaluate", unit="sound", disable=not progress) as bar:
        for kind, scenes in kinds.items():
            sounds = sounds_of(pipe, scenes, how, seed, candidates, bar)
            results |= compared(judge, listener, n, scenes, sounds, kind, seed)
            if kind == "single":
                sounds = {prefix: waves[:n] for prefix, waves in sounds.items()}
                others = held_out_scenes(judge, n, seed + 1, pipe.seconds, 1).waves
                results |= distances("frechet", sounds, others, judge.embed)
                embed = partial(embeddings, listener)
                results |= distances("frechet.clap", sounds, others, embed)
    return results


def evaluate_recordings(
    pipe: AudioLDM2,
    judge: Classifier,
    folder: AudioFolder,
    sampling: Sampling | None = None,
    n: int = 200,
    seed: int = 0,
    candidates: int = 1,
    progress: bool = True,
) -> dict[str, float]:
    """Generate sounds from the captions of recordings that were held out from training,
    and judge their classes.

    Args:
        pipe, judge: the pipeline to measure, and a judge trained on other recordings.
        folder: recordings with captions and a column `class`; n: how many are drawn,
            all classes equally likely.
        sampling, seed, candidates, progress: as for `evaluate`.
    Returns:
        as `evaluate`, for the questions `single.class` and `single.clap` (by the
        pipeline's own CLAP); the ceiling is the score of the recordings.
    Raises:
        ValueError, TypeError: numbers are not as described, or the judge knows fewer
            than two of the classes.
    """
    n, seed, candidates = check_asked(n, candidates, seed)
    how = check_sampling(sampling, pipe.sampling)
    scenes = recorded_scenes(judge, folder, n, seed, pipe.seconds)
    with tqdm(total=n, desc="evaluate", unit="sound", disable=not progress) as bar:
        sounds = sounds_of(pipe, scenes, how, seed, candidates, bar)
    found = compared(judge, pipe.clap, n, scenes, sounds, seed=seed)
    return {**settings(n, seed, how, candidates), **found}


def check_asked(n: int, candidates: int = 1, seed: int = 0) -> tuple[int, int, int]:
    """Number of scenes, seed and candidates as plain numbers; impossible ones raise a
    sentence.
    """
    return (
        check_whole("n", n, 2),
        check_whole("seed", seed, 0, MAX_SEED),
        check_whole("candidates", candidates, 1, MAX_CANDIDATES),
    )


def settings(n: int, seed: int, how: Sampling, candidates: int = 1) -> dict[str, float]:
    """The settings of an evaluation, with which its results begin."""
    numbers = {"n": n, "seed": seed, "candidates": candidates}
    numbers |= {x: getattr(how, x) for x in ("steps", "guidance", "temperature")}
    low, high = how.guidance_interval
    return {**numbers, "guidance.low": low, "guidance.high": high}


def guided_where(results: dict[str, float]) -> str:
    """The noise levels of guidance in words, from `settings`; "" if all are guided."""
    low, high = results["guidance.low"], results["guidance.high"]
    return "" if (low, high) == (0, MAX_STEPS) else f" at levels {low} to {high}"


def plays(pipe: AudioLDM2) -> bool:
    """Whether the pipeline was trained on tunes."""
    return not set(INSTRUMENTS).isdisjoint(pipe.vocabulary.get("classes", ()))


def question_name(kind: str, question: str) -> str:
    """The name in `evaluate` of the answer to a question about scenes of a kind."""
    if kind == "single" and question in QUESTIONS:
        return question
    asked = "instrument" if (kind, question) == ("music", "class") else question
    return f"{kind}.{asked}"


def distances(
    name: str,
    sounds: dict[str, Tensor],
    renders: Tensor,
    embed: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """The Fréchet distances between sets of sounds (n, N) and as many renders (n, N),
    by prefix and name.
    """
    other = embed(renders)
    distance = lambda waves: frechet_distance(embed(waves), other)
    return {f"{prefix}{name}": distance(waves) for prefix, waves in sounds.items()}


def sounds_of(
    pipe: AudioLDM2, scenes: Scenes, how: Sampling, seed: int, candidates: int, bar: Any
) -> dict[str, Tensor]:
    """Sounds (n, N) that should match these scenes, by the prefix of their results:
    generated sounds, and renders with and without VAE and vocoder.
    """
    made = generate(pipe, scenes.captions, how, seed, candidates, bar)
    back = round_trip(pipe, scenes.waves)
    return {"": made, "roundtrip.": back, "ceiling.": scenes.waves}


def generate(
    pipe: AudioLDM2,
    captions: list[str],
    how: Sampling,
    seed: int,
    candidates: int,
    bar: Any,
) -> Tensor:
    """Generate one sound for each caption, batch by batch: (n, N)."""
    generator, waves = torch.Generator().manual_seed(seed), []
    options = {"candidates": candidates, "progress": False}
    other = torch.Generator().manual_seed(seed)  # for the noise that eta adds
    seeds = torch.randint(MAX_SEED, (len(captions),), generator=other)
    for start in range(0, len(captions), BATCH):
        some = captions[start : start + BATCH]
        n = len(some) * candidates
        latents = pipe.noise(n, pipe.n_samples(), generator=generator)
        own = seeds[start : start + BATCH]
        waves.append(pipe(some, how, latents=latents, seed=own, **options))
        bar.update(len(some))
    return torch.cat(waves)


@torch.no_grad()
def round_trip(pipe: AudioLDM2, waves: Tensor) -> Tensor:
    """Sounds (n, N) after VAE and vocoder: the best that any latent could give."""
    mels = (audio.log_mel(batch.to(pipe.device)) for batch in waves.split(BATCH))
    back = (pipe.vocoder(pipe.reconstruct(mel)) for mel in mels)
    return torch.cat([x[:, : waves.shape[1]].cpu() for x in back])


def report(results: dict[str, float], recorded: bool = False) -> str:
    """The results of `evaluate` or `evaluate_recordings` as a table: chance < value <
    ceiling.
    """
    held_out = "times each question of held-out scenes"
    about = told_settings(results, "recordings held out" if recorded else held_out)
    wanted = "recordings" if recorded else "renders"
    legend = f"""\
chance: guessing. control: the same sounds, captions shuffled. value: the sounds, \
± standard error.
round trip: clean {wanted} through VAE and vocoder. ceiling: clean {wanted}. \
clap: cosine of sound and caption."""
    if not recorded:
        legend += "\nfrechet: distance from other renders, lower is better; "
        legend += "its ceiling is that of clean renders."
    return "\n".join([about, "", *rows_of(results), "", legend])


def told_settings(results: dict[str, float], what: str) -> str:
    """The settings of an evaluation, of so many times what, as a line."""
    about = "{n} " + what
    about += "; {steps} steps, guidance {guidance:g}" + guided_where(results)
    about += ", temperature {temperature:g}, seed {seed}"
    if results["candidates"] > 1:
        about += ", the best of {candidates} candidates each"
    return about.format(**results)


def rows_of(results: dict[str, float]) -> list[str]:
    """The table of an evaluation: a row for each question."""
    shown = lambda key: f"{results[key]:.3f}" if key in results else "-"
    row = "{:17}{:>9}{:>10}{:>17}{:>13}{:>10}".format
    beside = "chance", "control", "value", "round trip", "ceiling"
    rows = [row("", *beside)]
    asked = (k for k in results if k.startswith("ceiling."))
    for question in (key.removeprefix("ceiling.") for key in asked):
        keys = (
            f"{x}.{question}" for x in ("chance", "control", "roundtrip", "ceiling")
        )
        chance, control, back, ceiling = map(shown, keys)
        value, error = shown(question), shown(f"se.{question}")
        value += f" ± {error}" if error != "-" else ""
        rows.append(row(question, chance, control, value, back, ceiling))
    return rows


def speech_report(results: dict[str, float]) -> str:
    """The results of `evaluate_speech` as a table: chance < value < ceiling."""
    about = told_settings(results, "words that training knows, and held-out ones")
    legend = """\
word: heard by a recogniser that was not trained here; its control: phonemes shuffled.
voice: nearest to the clean ones in spectrum and duration; its control: voices shuffled.
round trip: clean speech through VAE and vocoder. ceiling: clean speech."""
    return "\n".join([about, "", *rows_of(results), "", legend])


# --------------------------------------------------------------------------------------
# Speech


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


def voice_features(wave: Tensor) -> tuple[Tensor, float]:
    """What tells apart voices that say the same word (N,): the mean of the audible
    frames of the log-mel (F,), whatever the level, and the logarithm of the duration.
    """
    mel = audio.log_mel(wave[None])[0, 0]  # (T, F)
    power = mel.exp().square().sum(dim=1)
    loud = (power > power.max() * 10 ** (-QUIET / 10)).nonzero()[:, 0]
    faint = mel.max() - FAINT
    colour = mel[loud].clamp_min(faint).mean(dim=0)
    return colour - colour.mean(), math.log(int(loud[-1] - loud[0]) + 1)


def heard_voice(wave: Tensor, word: str) -> str:
    """The voice of SoundWorld whose clean rendering of a word is most like a wave (N,)
    in spectrum and duration.
    """
    colour, duration = voice_features(wave)

    def unlike(voice: str) -> float:
        other, lasts = said_features(word, voice)
        return float((colour - other).abs().mean()) + abs(duration - lasts)

    return min(VOICES, key=unlike)


@cache
def said_features(word: str, voice: str) -> tuple[Tensor, float]:
    """The `voice_features` of a word in a voice, clean."""
    return voice_features(clean(word, voice, SAID))


def clean(word: str, voice: str, seconds: float) -> Tensor:
    """A word in a voice, rendered: (N,)."""
    scene = uttered(word, voice, seconds)
    return torch.from_numpy(to_float(render(scene)))


def evaluate_speech(
    pipe: AudioLDM2,
    recogniser: Recogniser,
    sampling: Sampling | None = None,
    n: int = 200,
    seed: int = 0,
    prompted: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Let voices say words of SoundWorld, n that training knows and n held-out ones,
    and judge whether the words are understood and the voices right.

    Args:
        pipe: a pipeline that speaks; recogniser: of all words of SoundWorld.
        sampling: the pipeline's settings for sampling; None for its weights' own.
        n: how often each question is asked, 2 or more; seed: of words, voices, noise.
        prompted: tell the voice by a recording of another word, not by a caption.
        progress: show a bar over the sounds.
    Returns:
        a flat dictionary, named as in `evaluate`, for the questions `seen.word`,
            `seen.voice`, `held_out.word` and `held_out.voice`; the control of the words
            is speech from shuffled phonemes, that of the voices the same sounds, asked
            for other voices.
    Raises:
        ValueError, TypeError: an argument is not as described, or the pipeline does not
            speak.
    """
    n, _, seed = check_asked(n, seed=seed)
    how = check_sampling(sampling, pipe.sampling)
    if not pipe.speaks:
        raise ValueError("pipe must speak: its weights read no transcription")
    results = settings(n, seed, how)
    known = tuple(word for word in WORDS if word not in HELD_OUT_WORDS)
    tasks = {"seen": known, "held_out": HELD_OUT_WORDS}
    with tqdm(total=4 * n, desc="evaluate", unit="sound", disable=not progress) as bar:
        for number, (kind, words) in enumerate(tasks.items()):
            rng = np.random.default_rng([seed, number])
            every = [(w, v) for w in words for v in voices("train")]
            order = [int(i) for i in rng.permutation(len(every))]
            said = [every[order[i % len(order)]] for i in range(n)]
            speak = partial(spoken_by, pipe, said, how, prompted, rng, bar)
            sounds = {"": speak(), "control.": speak(shuffled=True)}
            real = torch.stack([clean(*pair, pipe.seconds) for pair in said])
            sounds |= {"roundtrip.": round_trip(pipe, real), "ceiling.": real}
            results |= judged_speech(kind, recogniser, said, sounds)
    return results


def judged_speech(
    kind: str,
    recogniser: Recogniser,
    said: list[tuple[str, str]],
    sounds: dict[str, Tensor],
) -> dict[str, float]:
    """The answers about sounds (n, N), by prefix, that should say these words in these
    voices.
    """
    found = {f"chance.{kind}.word": 1 / len(recogniser.words)}
    found[f"chance.{kind}.voice"] = 1 / len(VOICES)
    for prefix, waves in sounds.items():
        pairs = list(zip(waves, said, strict=True))
        word = torch.tensor([float(recogniser(x) == w) for x, (w, _) in pairs])
        found[f"{prefix}{kind}.word"] = float(word.mean())
        turned = said[1:] + said[:1] if prefix == "control." else said
        own = sounds[""] if prefix == "control." else waves
        asked = zip(own, said, turned, strict=True)
        voice = [float(heard_voice(x, w) == v) for x, (w, _), (_, v) in asked]
        found[f"{prefix}{kind}.voice"] = sum(voice) / len(voice)
        if not prefix:
            found[f"se.{kind}.word"] = standard_error(word)
            found[f"se.{kind}.voice"] = standard_error(torch.tensor(voice))
    return found


def spoken_by(
    pipe: AudioLDM2,
    said: list[tuple[str, str]],
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
            other = [known[rng.integers(len(known))] for _ in words]
            pairs = zip(other, voiced)
            prompts = torch.stack([clean(*pair, pipe.seconds) for pair in pairs])
            options = {"voice": prompts} if prompted else {}
            seeds = [int(x) for x in rng.integers(MAX_SEED, size=len(words))]
            options |= {"transcription": list(words), "seed": seeds, "progress": False}
            waves.append(pipe(captions[some], how, **options))
            bar.update(len(words))
    finally:
        pipe.text.tokenizer = own
    return torch.cat(waves)


# --------------------------------------------------------------------------------------
# The captions nearest to a given one


@torch.no_grad()
def nearest_captions(pipe: AudioLDM2, caption: str, n: int = 3) -> list[str]:
    """The n known captions most like this one: first by the share of words in common,
    then by CLAP's cosine.

    Args:
        pipe: its known captions are `pipe.vocabulary["captions"]`; without them the
            result is empty.
        caption: any sentence that the encoders can read.
    """
    # each caption once
    known = list(dict.fromkeys(pipe.vocabulary.get("captions", ())))
    if not known:
        return []
    spoken, *others = (set(split_words(text)) for text in (caption, *known))
    shared = [len(spoken & other) / len(spoken | other) for other in others]  # Jaccard
    embedded = pipe.clap.encode([caption, *known]).sequence[:, 0].cpu()  # (1 + K, D)
    cosine = embedded[1:] @ embedded[0]
    order = sorted(range(len(known)), key=lambda i: (-shared[i], -float(cosine[i])))
    return [known[i] for i in order[:n]]
