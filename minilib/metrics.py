"""Measuring what was generated: a judge trained apart, spectral errors in decibels, and
tables that say chance < value < ceiling.

A number means little alone. Beside each stands what guessing would score (chance), what
the same judge says of clean renders of the same scenes (ceiling), and what it says when
the captions are shuffled (control). Chapter 17 builds this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from minilib import audio, judges
from minilib.audioldm2 import (
    EVERYWHERE,
    AnyTokenizer,
    AudioLDM2,
    check_numbers,
    clap_condition,
    load_part,
)
from minilib.clap import CLAP
from minilib.classifier import Classifier
from minilib.convert.released import ReleasedCLAP
from minilib.data import AudioFolder
from minilib.frechet import frechet_distance
from minilib.soundworld import INSTRUMENTS, Event, SoundWorld
from minilib.tokenizer import Tokenizer, split_words

BATCH = 16  # sounds that are made or scored together
# frames, 30.72 s: longer recordings are reconstructed in pieces of this length ...
CHUNK = 3072
# ... that see this many frames more on either side; a multiple of every VAE's reduction
CONTEXT = 128
SHORTEST = 8  # frames: shorter recordings are padded, the STFT needs 513 samples
# of one event, answered in closed form
QUESTIONS = ("pitch", "count", "speed", "loudness")


@dataclass(frozen=True)
class Listener:
    """A CLAP that compares sounds with captions.

    One that was trained apart from the pipeline has not taught its GPT-2 what a caption
    means, and so flatters nobody.
    """

    clap: CLAP | ReleasedCLAP
    tokenizer: AnyTokenizer

    @classmethod
    def of(cls, pipe: AudioLDM2) -> Listener:
        """The pipeline's own CLAP."""
        return cls(pipe.clap, pipe.clap_tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Listener:
        """Load `clap` and `tokenizer.json` from a folder; errors as of
        `AudioLDM2.from_pretrained`.
        """
        folder = Path(folder)
        return cls(
            load_part(folder, "clap", torch.float32),
            Tokenizer.load(folder / "tokenizer.json"),
        )

    @torch.no_grad()
    def embed(self, waves: Tensor) -> Tensor:
        """Embeddings (n, D), of unit length, of sounds (n, N)."""
        device = next(self.clap.parameters()).device
        return torch.cat(
            [
                self.clap.embed_waves(batch.to(device)).cpu()
                for batch in waves.split(BATCH)
            ]
        )

    @torch.no_grad()
    def scores(self, waves: Tensor, captions: list[str]) -> Tensor:
        """Cosine (n,) of each sound (n, N) with its caption."""
        told = clap_condition(captions, self.tokenizer, self.clap)[0][:, 0]
        return (self.embed(waves) * told.cpu()).sum(dim=1)


# --------------------------------------------------------------------------------------
# Spectral errors


def spectral_error(
    mel_a: Tensor, mel_b: Tensor, wave: Tensor | None = None
) -> dict[str, float]:
    """Mean |difference| of two log-mels in decibels, digital silence scored apart.

    Where every sample under a frame is exactly 0, the log-mel is at its floor of -100
    dB, which no model reaches and no ear hears: such frames say nothing of how well a
    sound is kept.

    Args:
        mel_a, mel_b: (B, 1, T, F) as from `audio.log_mel`.
        wave: (B, N) of which one of them is the log-mel; None counts no frame as
            silent.
    Returns:
        `db` of all other frames, `silent_db` of the silent ones (each 0 where there are
        none), and `silent_share`, how many frames are silent, 0 to 1.
    Raises:
        ValueError: the shapes differ, or `wave` is too short for the frames.
    """
    if mel_a.shape != mel_b.shape or mel_a.ndim != 4:
        raise ValueError(
            f"mel_a and mel_b must both be (B, 1, T, F); given {tuple(mel_a.shape)} "
            f"and {tuple(mel_b.shape)}"
        )
    error = audio.decibels((mel_a - mel_b).abs()).mean(dim=(1, 3))  # (B, T)
    nowhere = torch.zeros_like(error, dtype=torch.bool)
    silent = nowhere if wave is None else silent_frames(wave, error.shape[1])
    return {
        "db": float(error[~silent].mean()) if not silent.all() else 0.0,
        "silent_db": float(error[silent].mean()) if silent.any() else 0.0,
        "silent_share": float(silent.float().mean()),
    }


def silent_frames(wave: Tensor, T: int) -> Tensor:
    """Which of the first T frames of the STFT see nothing but zeros: wave (B, N) -> (B,
    T) bool.
    """
    if wave.ndim != 2 or wave.shape[1] // audio.HOP < T:
        raise ValueError(
            f"wave must be (B, N) with N >= {T * audio.HOP} samples; given "
            f"{tuple(wave.shape)}"
        )
    sounding = (wave != 0).float()  # (B, N)
    # (B, N // HOP + 1)
    heard = F.max_pool1d(sounding, audio.N_FFT, audio.HOP, padding=audio.N_FFT // 2)
    return heard[:, :T] == 0


@torch.no_grad()
def reconstruction(
    pipe: AudioLDM2, wave: Tensor, progress: bool = False
) -> dict[str, Any]:
    """Send a recording through VAE and vocoder and back, and measure what each step
    loses.

    Recordings above 30 s go in pieces, each with 1.28 s of its surroundings: the memory
    stays small, and the result differs a little from that of one pass, for the VAE
    attends to the whole of what it is given.

    Args:
        pipe: whose VAE and vocoder are measured.
        wave: (N,) or (1, N) at 16 kHz, N from 1 sample on.
        progress: show a bar over the pieces of a long recording.
    Returns:
        `wave` (N,), the reconstruction; the L1 distance from the recording's log-mel in
        decibels after the VAE (`vae_db`), after the vocoder on the true log-mel
        (`vocoder_db`), after both (`total_db`), the same where the recording is digital
        silence (`vae_silent_db`, …), and `silent_share`.
    Raises:
        ValueError: `wave` is not one waveform.
    """
    if wave.numel() == 0 or wave.ndim > 2 or wave.shape[:-1].numel() != 1:
        raise ValueError(
            f"wave must be (N,) or (1, N) with at least one sample; given "
            f"{tuple(wave.shape)}"
        )
    n_samples, n_scored = wave.shape[-1], -(-wave.shape[-1] // audio.HOP)
    n_padded = max(SHORTEST, n_scored) * audio.HOP
    frames = F.pad(wave.reshape(1, -1), (0, n_padded - n_samples)).unflatten(
        1, (-1, audio.HOP)
    )
    step = partial(in_chunks, device=pipe.device, progress=progress)
    # (1, T, HOP) -> (1, T, F)
    hear = lambda frames: audio.log_mel(frames.flatten(1))[:, 0]

    def speak(mel: Tensor) -> Tensor:  # (1, T, F) -> (1, T, HOP)
        return pipe.vocoder(mel[:, None])[:, : mel.shape[1] * audio.HOP].unflatten(
            1, (-1, audio.HOP)
        )

    mel = step(hear, frames)
    vae_mel = step(lambda mel: pipe.reconstruct(mel[:, None])[:, 0], mel)
    result = step(speak, vae_mel)
    mels = {
        "vae": vae_mel,
        "vocoder": step(hear, step(speak, mel)),
        "total": step(hear, result),
    }
    found: dict[str, Any] = {"wave": result.flatten()[:n_samples]}
    for name, other in mels.items():
        error = spectral_error(
            mel[:, None, :n_scored], other[:, None, :n_scored], frames.flatten(1)
        )
        found |= {f"{name}_db": error["db"], f"{name}_silent_db": error["silent_db"]}
        found["silent_share"] = error["silent_share"]
    return found


def in_chunks(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    device: torch.device,
    progress: bool = False,
) -> Tensor:
    """Apply a function of frames, (1, T, C) -> (1, T, C'), to pieces of a recording and
    their surroundings.

    Args:
        function: gives one frame for each; x: (1, T, C); device: where it runs;
            progress: show a bar.
    """
    T, pieces = x.shape[1], []
    starts = range(0, T, CHUNK)
    for start in tqdm(
        starts, unit="piece", leave=False, disable=not progress or len(starts) == 1
    ):
        before = min(start, CONTEXT)
        y = function(x[:, start - before : start + CHUNK + CONTEXT].to(device)).cpu()
        pieces.append(y[:, before : before + min(CHUNK, T - start)])
    return torch.cat(pieces, dim=1)


# --------------------------------------------------------------------------------------
# Are captions followed?


@dataclass(frozen=True)
class Scenes:
    """Scenes to be generated and judged: captions (n), clean renders (n, N), classes
    (n, 1 or 2).
    """

    captions: list[str]
    waves: Tensor
    labels: Tensor
    # of scenes with one: what their captions tell of it
    events: list[Event] = field(default_factory=list)

    def shuffled(self, seed: int) -> Scenes:
        """The same scenes in an order that leaves none at its place."""
        order = torch.randperm(
            len(self.captions), generator=torch.Generator().manual_seed(seed)
        )
        other = torch.empty_like(order)
        # a ring through all scenes: each is followed by another one
        other[order] = order.roll(1)
        events = [self.events[i] for i in other] if self.events else []
        return Scenes(
            [self.captions[i] for i in other],
            self.waves[other],
            self.labels[other],
            events,
        )


def held_out_scenes(
    judge: Classifier,
    n: int,
    seed: int,
    seconds: float,
    n_events: int,
    music: bool = False,
) -> Scenes:
    """Draw scenes that training never had: combinations of attributes, or ordered pairs
    of classes.
    """
    world = SoundWorld(
        "test",
        seed=seed,
        seconds=seconds,
        pairs=float(n_events - 1),
        music=float(music),
    )
    clips = [world[i] for i in range(n)]
    number = {name: i for i, name in enumerate(judge.config.classes)}
    unknown = {event.name for clip in clips for event in clip.scene.events} - set(
        number
    )
    if unknown:
        raise ValueError(
            f"judge does not know {', '.join(sorted(unknown))}: train it on the same "
            f"SoundWorld"
        )
    labels = torch.tensor(
        [[number[event.name] for event in clip.scene.events] for clip in clips]
    )
    events = [clip.scene.events[0] for clip in clips] if n_events == 1 else []
    waves = torch.stack([clip.wave for clip in clips])
    return Scenes([clip.caption for clip in clips], waves, labels, events)


def recorded_scenes(
    judge: Classifier, folder: AudioFolder, n: int, seed: int, seconds: float
) -> Scenes:
    """Draw n recordings of a folder, of the classes that the judge knows, all as
    likely.

    The table has a column `class`; of each recording the first `seconds` are kept.
    """
    kinds = {
        name: kind
        for name, kind in folder.by("class").items()
        if name in judge.config.classes
    }
    if len(kinds) < 2:
        known = ", ".join(judge.config.classes)
        raise ValueError(
            f"{folder.folder} holds too few of the classes that the judge knows: "
            f"{known}"
        )
    rng = np.random.default_rng(seed)
    names, n_samples = (
        rng.choice(list(kinds), size=n),
        round(seconds * audio.SAMPLE_RATE),
    )
    places = [int(rng.integers(len(kinds[name]))) for name in names]
    waves = [
        kinds[name].wave(i)[:n_samples] for name, i in zip(names, places, strict=True)
    ]
    waves = torch.stack([F.pad(wave, (0, n_samples - len(wave))) for wave in waves])
    captions = [kinds[name].captions[i] for name, i in zip(names, places, strict=True)]
    return Scenes(
        captions,
        waves,
        torch.tensor([[judge.config.classes.index(name)] for name in names]),
    )


def enough_scenes(n: int, seed: int, seconds: float) -> int:
    """How many held-out scenes of one event ask each question of `judges.answers` at
    least n times.
    """
    world = SoundWorld("test", seed=seed, seconds=seconds, pairs=0.0)
    asked = dict.fromkeys(QUESTIONS, 0)
    for i in count():
        if min(asked.values()) >= n:
            return i
        for question in judges.chance(world.scene(i).events[0]):
            asked[question] += 1


def judged(judge: Classifier, waves: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Which sounds are of the wanted classes: for each question a (n,) tensor of 0 and
    1.

    One event: `class` is right in the whole clip. Two: the `first` half is of the first
    class, the `second` of the second, `both` of them are; `any` also takes them the
    other way round.

    Args:
        waves: (n, N); labels: (n, 1) or (n, 2), numbers of classes in the order of the
            events.
    """
    if labels.shape[1] == 1:
        return {"class": (judge.hear(waves) == labels[:, 0]).float()}
    half = waves.shape[1] // 2
    # (n, 2)
    heard = torch.stack(
        [judge.hear(waves[:, :half]), judge.hear(waves[:, half : 2 * half])], dim=1
    )
    right, swapped = heard == labels, heard.flip(1) == labels
    answers = {
        "first": right[:, 0],
        "second": right[:, 1],
        "both": right.all(dim=1),
        "any": right.all(dim=1) | swapped.all(dim=1),
    }
    return {name: answer.float() for name, answer in answers.items()}


def chance(n_classes: int) -> dict[str, float]:
    """What guessing each class at random would score, question by question."""
    one = 1 / n_classes
    return {
        "class": one,
        "first": one,
        "second": one,
        "both": one**2,
        "any": 2 * one**2,
    }


def attributes(waves: Tensor, events: list[Event]) -> dict[str, Tensor]:
    """Whether sounds (n, N) have what the captions tell of their events, in closed
    form.

    For each question a tensor (n,) of 0 and 1, NaN for the events that it is not asked
    of.
    """
    found = [
        judges.answers(wave, event) for wave, event in zip(waves, events, strict=True)
    ]
    asked = sorted({question for answer in found for question in answer} - {"cents"})
    return {
        q: torch.tensor([answer.get(q, math.nan) for answer in found]) for q in asked
    }


@torch.no_grad()
def scores(
    listener: Listener, judge: Classifier, waves: Tensor, scenes: Scenes, n: int
) -> dict[str, Tensor]:
    """All that is asked of sounds (m, N) that should be these scenes, question by
    question.

    Class and CLAP are asked of the first n; what else the captions tell, of all.
    """
    return {
        **judged(judge, waves[:n], scenes.labels[:n]),
        "clap": listener.scores(waves[:n], scenes.captions[:n]),
        **(attributes(waves, scenes.events) if scenes.events else {}),
    }


def evaluate(
    pipe: AudioLDM2,
    judge: Classifier,
    n: int = 200,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    progress: bool = True,
    sampler: str = "ddim",
    candidates: int = 1,
    listener: Listener | None = None,
) -> dict[str, float]:
    """Generate held-out scenes of one and of two events, and tunes, and judge whether
    captions are followed.

    Args:
        pipe, judge: what is measured, and who measures.
        n: how often each question is asked, 2 or more; seed: of the scenes and of the
            noise.
        steps, guidance, sampler, candidates: as for the pipeline; the paper's results
            are of 3 candidates.
        progress: show a bar over the sounds.
        listener: whose cosine of sound and caption is asked for; the pipeline's own
            CLAP if None.
    Returns:
        a flat dictionary: for every question its mean over the scenes, and under the
            same name after a prefix `chance.` (guessing), `control.` (the same sounds,
            captions shuffled), `roundtrip.` (clean renders through VAE and vocoder),
            `ceiling.` (clean renders) and `se.` (standard error of the mean). Of one
            event: `single.class`, `single.clap`, and in closed form `pitch`, `count`,
            `speed`, `loudness`; of two: `pair.first`, `pair.second`, `pair.both`,
            `pair.any`, `pair.clap`; of tunes, where the weights know any:
            `music.instrument`, `music.tempo`, `music.loudness`, `music.clap`. `frechet`
            is the distance of the generated sounds of one event from as many other
            renders in the judge's features, `ceiling.frechet` that of renders, and
            `frechet.clap` the same in the listener's embeddings.
    Raises:
        ValueError: `n` is below 2, or another number is not as the pipeline takes it.
    """
    how = sampling(pipe, n, steps, guidance, sampler, candidates)
    listener = listener or Listener.of(pipe)
    draw = partial(held_out_scenes, judge, seed=seed, seconds=pipe.seconds)
    kinds = {
        "single": draw(enough_scenes(n, seed, pipe.seconds), n_events=1),
        "pair": draw(n, n_events=2),
    }
    if plays(pipe):
        kinds["music"] = draw(n, n_events=1, music=True)
    results = settings(n, seed, how)
    total = sum(len(scenes.captions) for scenes in kinds.values())
    with tqdm(total=total, desc="evaluate", unit="sound", disable=not progress) as bar:
        for kind, scenes in kinds.items():
            generated = generate(pipe, scenes.captions, seed, bar, **how)
            back = round_trip(pipe, scenes.waves)
            results |= compared(
                listener, judge, kind, n, scenes, scenes.shuffled(seed), generated, back
            )
            if kind == "single":
                others = held_out_scenes(judge, n, seed + 1, pipe.seconds, 1).waves
                sounds = {"": generated, "roundtrip.": back, "ceiling.": scenes.waves}
                sounds = {prefix: x[:n] for prefix, x in sounds.items()}
                results |= distances("frechet", sounds, others, judge.embed)
                results |= distances("frechet.clap", sounds, others, listener.embed)
    return results


def evaluate_recordings(
    pipe: AudioLDM2,
    judge: Classifier,
    folder: AudioFolder,
    n: int = 200,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    progress: bool = True,
    sampler: str = "ddim",
    candidates: int = 1,
) -> dict[str, float]:
    """Generate from the captions of recordings that training never heard, and ask for
    their classes.

    Args:
        pipe, judge: what is measured, and who measures, trained on other recordings.
        folder: recordings with captions and a column `class`; n: how many are drawn, of
            all classes as likely.
        seed, steps, guidance, progress, sampler, candidates: as for `evaluate`.
    Returns:
        as `evaluate`, of the questions `single.class` and `single.clap` (by the
        pipeline's own CLAP); the ceiling is that of the recordings.
    Raises:
        ValueError: numbers are not as described, or the judge knows less than two of
            the classes.
    """
    how = sampling(pipe, n, steps, guidance, sampler, candidates)
    scenes = recorded_scenes(judge, folder, n, seed, pipe.seconds)
    with tqdm(total=n, desc="evaluate", unit="sound", disable=not progress) as bar:
        generated = generate(pipe, scenes.captions, seed, bar, **how)
    back = round_trip(pipe, scenes.waves)
    found = compared(
        Listener.of(pipe),
        judge,
        "single",
        n,
        scenes,
        scenes.shuffled(seed),
        generated,
        back,
    )
    return {**settings(n, seed, how), **found}


def sampling(
    pipe: AudioLDM2,
    n: int,
    steps: int | None,
    guidance: float | None,
    sampler: str,
    candidates: int,
) -> dict[str, Any]:
    """How the pipeline is to sample; ValueError for numbers that no evaluation can use."""
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be a whole number, 2 or more, not {n}")
    steps = pipe.steps if steps is None else steps
    guidance = pipe.guidance if guidance is None else guidance
    check_numbers(steps, guidance, candidates)
    own = {name: getattr(pipe, name) for name in ("guidance_interval", "temperature")}
    return {
        "steps": steps,
        "guidance": guidance,
        **own,
        "sampler": sampler,
        "candidates": candidates,
    }


def settings(n: int, seed: int, how: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation that its results begin with."""
    numbers = {
        name: x
        for name, x in how.items()
        if name not in ("sampler", "guidance_interval")
    }
    low, high = how["guidance_interval"]
    return {"n": n, "seed": seed, **numbers, "guidance.low": low, "guidance.high": high}


def guided_where(results: dict[str, float]) -> str:
    """The noise levels of guidance in words, by `settings`; nothing where it is all of
    them.
    """
    low, high = results["guidance.low"], results["guidance.high"]
    return "" if (low, high) == EVERYWHERE else f" at levels {low} to {high}"


def compared(
    listener: Listener,
    judge: Classifier,
    kind: str,
    n: int,
    scenes: Scenes,
    shuffled: Scenes,
    generated: Tensor,
    back: Tensor,
) -> dict[str, float]:
    """The answers for one kind of scenes, and what stands beside them, as `evaluate`
    names them.
    """
    rounds = {
        "": scores(listener, judge, generated, scenes, n),
        "control.": scores(listener, judge, generated, shuffled, n),
        "roundtrip.": scores(listener, judge, back, scenes, n),
        "ceiling.": scores(listener, judge, scenes.waves, scenes, n),
    }
    name = partial(question_name, kind)
    found = {
        f"{k}{name(q)}": float(x.nanmean())
        for k, answers in rounds.items()
        for q, x in answers.items()
    }
    guesses = chance(len(judge.config.classes))
    asked = [judges.chance(event) for event in scenes.events]
    guesses |= {
        q: fmean(g[q] for g in asked if q in g) for q in {q for g in asked for q in g}
    }
    found |= {f"chance.{name(q)}": guesses[q] for q in rounds[""] if q in guesses}
    return found | {f"se.{name(q)}": standard_error(x) for q, x in rounds[""].items()}


def standard_error(x: Tensor) -> float:
    """Of the mean of answers (n,), NaN aside; of a share p the binomial one, sqrt(p (1
    - p) / n).
    """
    x = x[~x.isnan()]
    return float(x.std(correction=0)) / len(x) ** 0.5


def plays(pipe: AudioLDM2) -> bool:
    """Whether the pipeline has been trained on tunes."""
    return not set(INSTRUMENTS).isdisjoint(pipe.vocabulary.get("classes", ()))


def question_name(kind: str, question: str) -> str:
    """What `evaluate` calls the answer to a question about scenes of a kind."""
    if kind == "single" and question in QUESTIONS:
        return question
    return f"{kind}.{'instrument' if kind == 'music' and question == 'class' else question}"


def distances(
    name: str,
    sounds: dict[str, Tensor],
    renders: Tensor,
    embed: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """The Fréchet distance of sets of sounds (n, N) from as many renders (n, N), by
    prefix and name.
    """
    other = embed(renders)
    return {
        f"{prefix}{name}": frechet_distance(embed(x), other)
        for prefix, x in sounds.items()
    }


def generate(
    pipe: AudioLDM2,
    captions: list[str],
    seed: int,
    bar: Any,
    candidates: int = 1,
    **how: Any,
) -> Tensor:
    """Generate one sound for each caption, batch by batch: (n, N)."""
    generator, waves = torch.Generator().manual_seed(seed), []
    for start in range(0, len(captions), BATCH):
        some = captions[start : start + BATCH]
        shape = pipe.latent_shape(len(some) * candidates, pipe.n_samples(None))
        latents = torch.randn(shape, generator=generator)
        waves.append(
            pipe(some, latents=latents, candidates=candidates, progress=False, **how)
        )
        bar.update(len(some))
    return torch.cat(waves)


@torch.no_grad()
def round_trip(pipe: AudioLDM2, waves: Tensor) -> Tensor:
    """Sounds (n, N) through VAE and vocoder and back: the best that any latent could
    give.
    """
    mels = (audio.log_mel(batch.to(pipe.device)) for batch in waves.split(BATCH))
    return torch.cat(
        [pipe.vocoder(pipe.reconstruct(mel))[:, : waves.shape[1]].cpu() for mel in mels]
    )


def report(results: dict[str, float], recorded: bool = False) -> str:
    """What `evaluate` or `evaluate_recordings` found, as a table to read: chance <
    value < ceiling.
    """
    asked = (
        "{n} recordings held out"
        if recorded
        else "{n} times each question of held-out scenes"
    )
    about = asked + "; {steps} steps, guidance {guidance:g}" + guided_where(results)
    about += ", temperature {temperature:g}, seed {seed}"
    if results["candidates"] > 1:
        about += ", the best of {candidates} candidates each"
    wanted = "recordings" if recorded else "renders"
    table = f"{'':17}{'chance':>9}{'control':>10}{'value':>17}{'round trip':>13}{'ceiling':>10}\n"
    shown = lambda key: f"{results[key]:.3f}" if key in results else "-"
    for question in (
        key.removeprefix("ceiling.") for key in results if key.startswith("ceiling.")
    ):
        chance, control, error, back, ceiling = (
            shown(f"{prefix}.{question}")
            for prefix in ("chance", "control", "se", "roundtrip", "ceiling")
        )
        value = shown(question) + (f" ± {error}" if error != "-" else "")
        table += (
            f"{question:17}{chance:>9}{control:>10}{value:>17}{back:>13}{ceiling:>10}\n"
        )
    legend = f"""chance: guessing. control: the same sounds, captions shuffled. value: the sounds, ± standard error.
round trip: clean {wanted} through VAE and vocoder. ceiling: clean {wanted}. clap: cosine of sound and caption."""
    if not recorded:
        legend += "\nfrechet: distance from other renders, the less the better; its ceiling is that of clean renders."
    return f"{about.format(**results)}\n\n{table}\n{legend}"


# --------------------------------------------------------------------------------------
# Captions near to one


@torch.no_grad()
def nearest_captions(pipe: AudioLDM2, caption: str, n: int = 3) -> list[str]:
    """The n known captions most like this one: by their share of common words, then by
    CLAP's cosine.

    Args:
        pipe: `pipe.vocabulary["captions"]` holds what it knows; without it the result
            is empty.
        caption: any sentence that the encoders read.
    """
    # each of them once
    known = list(dict.fromkeys(pipe.vocabulary.get("captions", ())))
    if not known:
        return []
    spoken, others = (
        set(split_words(caption)),
        [set(split_words(other)) for other in known],
    )
    # Jaccard index
    shared = [len(spoken & other) / len(spoken | other) for other in others]
    embedded = pipe.encode([caption, *known]).clap[0][:, 0].cpu()  # (1 + n_known, D)
    cosine = embedded[1:] @ embedded[0]
    order = sorted(range(len(known)), key=lambda i: (-shared[i], -float(cosine[i])))
    return [known[i] for i in order[:n]]
