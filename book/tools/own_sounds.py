"""Write the page "Your own sounds": how to train on recordings, and what came of one
such run.

    python book/tools/own_sounds.py RUN FOLDER --minutes M --memory GIB

RUN holds a pipeline that `minilib train all --data FOLDER` has made, and its judge; M
and GIB are how long that took and how much memory at most. Neither weights nor
recordings are kept in this repository, only the page.

On it each class that the judge knows is heard with the first caption of its test
recordings, if all of its recordings may be used under OPEN_LICENCES: nothing is chosen
by ear.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minilib import audio, metrics, show
from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier
from minilib.data import OPEN_LICENCES, AudioFolder, Corpus, of_part
from minilib.model import read_json
from minilib.training import ALL_STAGES
from minilib.training.clips import FEWEST

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "book" / "your_own_sounds.md"
N = 200  # captions that are asked for
TEXT = """\
# Your own sounds

`minilib` learns from any folder of recordings with captions. Here is how, and what came
of it once: {recordings} recordings in {captions} different captions, two cores, {total}
minutes.

In the course's folder `minilib` is `.venv/bin/minilib`, unless you have activated the
environment (`source .venv/bin/activate`). The presets `tiny`, `colab`, `full` and
`large` learn from recordings; speech, pictures and the systems of `minilib train-peer`
learn from SoundWorld alone.

## What a folder holds

Sound files, and beside them a table, `metadata.csv`. It needs two columns, `file_name`
and `caption`:

```text
file_name,caption,class,part
dogs/rex_01.wav,a dog barks twice,dog,train
dogs/rex_02.wav,a dog barks in the distance,dog,train
rain/roof.flac,rain on a tin roof,rain,train
dogs/rex_17.wav,a dog barks twice,dog,test
```

The table may use semicolons or tabs instead of commas. It may also be a
`metadata.jsonl`, or a `metadata.parquet` where pyarrow is installed. Text that contains
a comma must be quoted, as in `storm.wav,"rain, then wind"`: a line with too many or too
few fields is refused. Instead of a column `part` there may be two folders, `train` and
`test`, each with its own table. Before you train,

```bash
minilib data check recordings
```

says what the folder holds and lists everything that is wrong with it: lines of the
table that cannot be read, missing captions, and files that are missing, broken or
silent.

- The files may be of any sample rate, length and format that
  [libsndfile](https://libsndfile.github.io/libsndfile/formats.html) reads. They are
  mixed to mono (if the channels cancel each other out, the loudest is taken), resampled
  to 16 kHz and cut into pieces of 2.56 s, each with the caption of its recording. The
  last piece is padded with silence, or left out where less than a tenth of it would be
  recording. Silent pieces are left out. Whatever is changed or left out is named.
- `part` keeps recordings marked `test` out of training. Without that column, all of
  them are used.
- `class` is for measuring: a judge learns to tell apart the classes that have at least
  {fewest} recordings.
- A column `licence` costs nothing now, and records what your weights have heard.

## Train

```bash
minilib train all --preset tiny --data recordings --out runs/own
```

takes as long as with SoundWorld, because it makes as many steps. Ctrl-C loses nothing:
the same line with `--resume` goes on. `runs/own/train.log` holds the loss and the time
of each stage. With a GPU use `--preset colab`. Then

```bash
minilib generate "a dog barks twice" --weights runs/own -o bark.wav
minilib train judge --data recordings --out runs/own
minilib evaluate --data recordings --weights runs/own
```

make a sound, train a judge on the recordings, and measure how often the judge hears in
a generated sound what its caption, from the `test` part, asks for. The text encoders
know the words of your captions and no others; `minilib generate` warns about unknown
words.

## Large data sets

A folder with more than 10,000 rows, or Arrow, Parquet or WebDataset files, is read from
disk clip by clip. By default, VAE, AudioMAE and the text encoders then work again for
every batch of `gpt`, `ldm` and `joint`. To let them work once,

```bash
minilib train all --preset colab --data recordings --out runs/own --features shards
```

keeps what they make in `runs/own/features`, in files of 256 clips or captions. It costs
room: with `colab`, a clip of 10.24 s takes 131 kB as a latent and 25 kB as an LOA; its
16-bit sound takes 328 kB. Where the disk has too little room, the run says so before it
writes a file.

- The numbers are stored as they were computed, in 32 bits: a run on clips in memory
  ends with the same weights as without the option. Nothing random is stored: the latent
  is the posterior's mean, and noise and empty captions are drawn for every batch.
- Read from disk, a clip may begin anywhere in its recording. In shards there are as
  many pieces of each recording as cover one of average length, spread evenly: one if
  recordings are hardly longer than the clips. The three stages then draw from these
  pieces, and their batches read no sound; VAE, AudioMAE and CLAP still train on all
  places. (Only `ldm` of the presets `full` and `large` goes on hearing its clips, since
  it draws another length of LOA at every step.)
- Each file is written whole or not at all, and a run that stopped goes on with the
  missing ones. Several processes share the work. A file made with other weights or
  other clips, or cut short, is computed again, which a line says.
- The folder may be removed at any time between runs.

## One such run

It was trained on the `train` part of a collection of freely licensed recordings: ESC-10
(dogs, rain, a chainsaw), digits spoken by five people, keywords, single notes of
instruments, percussion, and sound effects, mostly one or two of a kind. (The data card,
`data/README.md`, names the sources of all but the digits and keywords, which are the
Free Spoken Digit Dataset and Picovoice's wake word recordings.) It took {total} minutes
and at most {memory} GiB of memory:

| stage | steps | minutes |
|---|--:|--:|
{stages}

The judge knows the {n_classes} classes that have at least {fewest} recordings. It was
asked about {n} of the {asked} recordings of the `test` part, each class being equally
likely:

```text
{report}
```

So **{value} of the generated sounds are heard as what was asked for**. Guessing gives
{chance}; of the recordings themselves {ceiling} are recognised, and {back} after VAE
and vocoder. Class by class, from the most often right to the least:

| class | asked | generated | round trip | recorded |
|---|--:|--:|--:|--:|
{classes}

With so few sounds of each class, a share is accurate to about 0.2. These are right less
often than the recordings, by 0.3 or more: {worst}. Where many different recordings
share a caption, such as "a clock ticking", GPT-2 answers with the mean of their LOAs,
because it is trained with a squared error, and the sound comes out smeared.

**Does it make sounds, or give back those it has heard?** The log-mel of a generated
sound, down to 60 dB below its loudest spot, is {near} dB (median of the mean
difference) from the nearest piece that was used in training. For a recording that was
held out, that distance is {near_held_out} dB; for a training piece that has gone
through VAE and vocoder, {near_itself} dB. So generated sounds are not copies, as a
rule, but they are closer to the training set than new recordings of the same things
are. From a small collection, much comes back almost unchanged: do not train on
recordings that you may not give away.

## What it sounds like

These are the classes whose recordings are all CC0, public domain or CC BY, each with
the first caption of its test part; sound number *i* has seed *i*. Nothing was chosen by
ear.

<div class="gallery">
{cards}
</div>

The page is written by `python book/tools/own_sounds.py runs/own recordings --minutes
{total} --memory {memory}`. Neither the recordings nor these weights are part of the
repository.
"""


def open_classes(folder: Path) -> set[str]:
    """The classes of which every recording, of all parts, is under one of
    OPEN_LICENCES.
    """
    every, free = (
        AudioFolder(folder, licences=which).by("class")
        for which in (None, OPEN_LICENCES)
    )
    return {name for name in free if len(free[name]) == len(every[name])}


def stages(run: Path) -> Iterator[tuple[str, int, float]]:
    """Each stage of a finished run, its steps and the minutes that it took."""
    for name in ALL_STAGES:
        record = read_json(run / "finished" / f"{name}.json")
        yield name, record["steps"], record["seconds"] / 60


def by_class(
    judge: Classifier, scenes: metrics.Scenes, *sounds: Tensor
) -> list[tuple[str, int, list[float]]]:
    """Of each class how often it was asked for, and which share of each of the `sounds`
    (n, N) is heard as it.
    """
    right = [metrics.judged(judge, waves, scenes.labels)["class"] for waves in sounds]
    rows = []
    for label in scenes.labels[:, 0].unique().tolist():
        asked = scenes.labels[:, 0] == label
        rows.append(
            (
                judge.config.classes[label],
                int(asked.sum()),
                [float(x[asked].mean()) for x in right],
            )
        )
    return sorted(rows, key=lambda row: -row[2][0])


def heard(
    pipe: AudioLDM2, judge: Classifier, folder: AudioFolder, names: list[str]
) -> Iterator[str]:
    """A card for each class: its first caption, the sound of it, and what the judge
    hears in that.
    """
    kinds = folder.by("class")
    for number, name in enumerate(names):
        caption = kinds[name].captions[0]
        wave = pipe(caption, seed=number, progress=False)[0]
        found = judge.config.classes[int(judge.hear(wave[None]))]
        mark = "right" if found == name else "wrong"
        said = (
            f"Heard as {spoken(found)}."
            if found == name
            else f"<strong>Heard as {spoken(found)}.</strong>"
        )
        yield (
            f'<div class="sound-card" '
            f'data-verdict="{mark}">{show.sound(wave, caption).html}'
            f"<p>{said} <small>Seed {number}.</small></p></div>"
        )


def nearest(waves: Tensor, pieces: Tensor) -> float:
    """How far log-mels of `waves` (n, N) are from the nearest of `pieces` (m, N): the
    median, in decibels of mean L1.

    Each is measured from its own loudest spot, and silence begins 60 dB below.
    """
    shapes = []
    for sounds in (waves, pieces):
        # (n, T, F)
        mel = torch.cat([audio.log_mel(some)[:, 0] for some in sounds.split(64)])
        shapes.append(
            audio.decibels(mel - mel.amax(dim=(1, 2), keepdim=True)).clamp_min(-60.0)
        )
    own, others = shapes
    return float(
        torch.stack([(others - x).abs().mean(dim=(1, 2)).min() for x in own]).median()
    )


def spoken(name: str) -> str:
    """A class as a reader would write it."""
    return html.escape(name.replace("_", " "))


@torch.no_grad()
def page(
    run: Path,
    folder: Path,
    minutes: float,
    memory: float,
    n: int = N,
    steps: int | None = None,
) -> str:
    """Generate, judge and lay out.

    Args:
        run: a pipeline and its judge; folder: what they were trained on, with columns
            `class` and `part`.
        minutes, memory: that the run took, in all, and in GiB at most.
        n: how many captions are asked; steps: of the sampler, None for the run's own.
    """
    learned, held_out = of_part(folder, "train"), AudioFolder(folder, part="test")
    pipe = AudioLDM2.from_pretrained(run)
    judge = Classifier.from_pretrained(run / "judge", dtype=torch.float32)
    how = pipe.sampling.changed(steps=steps)
    scenes = metrics.recorded_scenes(judge, held_out, n, 0, pipe.seconds)
    with tqdm(total=n, desc="own sounds", unit="sound") as bar:
        sounds = metrics.sounds_of(pipe, scenes, how, 0, 1, bar)
    made, back = sounds[""], sounds["roundtrip."]
    found = metrics.settings(n, 0, how)
    found |= metrics.compared(judge, pipe.clap, n, scenes, sounds)
    rows = by_class(judge, scenes, made, back, scenes.waves)
    corpus = Corpus.from_folder(learned, pipe.seconds, progress=False)
    pieces = corpus.wave(range(len(corpus)))
    some = pieces[
        torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:n]
    ]
    names = sorted(
        open_classes(folder).intersection(judge.config.classes, held_out.by("class"))
    )
    return TEXT.format(
        recordings=len(learned),
        captions=len(set(learned.captions)),
        asked=len(held_out),
        n=n,
        fewest=FEWEST,
        n_classes=len(judge.config.classes),
        memory=memory,
        total=round(minutes),
        stages="\n".join(
            f"| `{name}` | {n_steps} | {x:.0f} |" for name, n_steps, x in stages(run)
        ),
        report=metrics.report(found, recorded=True),
        classes="\n".join(
            f"| {spoken(name)} | {k} | " + " | ".join(f"{x:.2f}" for x in shares) + " |"
            for name, k, shares in rows
        ),
        value=f"{found['single.class']:.3f}",
        chance=f"{found['chance.single.class']:.3f}",
        ceiling=f"{found['ceiling.single.class']:.3f}",
        back=f"{found['roundtrip.single.class']:.3f}",
        cards="\n".join(heard(pipe, judge, held_out, names)),
        worst=", ".join(
            spoken(name)
            for name, _, (generated, _, real) in rows
            if real - generated > 0.295
        ),
        near=f"{nearest(made, pieces):.1f}",
        near_held_out=f"{nearest(scenes.waves, pieces):.1f}",
        near_itself=f"{nearest(metrics.round_trip(pipe, some), pieces):.1f}",
    )


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True, metavar="M")
    parser.add_argument("--memory", type=float, required=True, metavar="GIB")
    args = parser.parse_args()
    PAGE.write_text(
        page(args.run, args.folder, args.minutes, args.memory), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
