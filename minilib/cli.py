"""The command line: generate, train, reconstruct, evaluate, chain, vocabulary, convert,
info, doctor.

Each command is a function that takes the parsed arguments; what is wrong with them is
told in one sentence, with exit code 2, before anything is written. Libraries that take
a second to import are imported inside.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

    from minilib.audioldm2 import AudioLDM2, Profile
    from minilib.classifier import Classifier

SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3")
# of training, as --help names them
STAGES = (
    "vae",
    "vocoder",
    "audiomae",
    "clap",
    "text",
    "gpt",
    "ldm",
    "joint",
    "adversarial",
)
# of the checkout that this module stands in
DATA = Path(__file__).resolve().parents[1] / "data"

# --------------------------------------------------------------------------------------
# What the commands understand


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, where argparse repeats the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def command(
    commands: Any, function: Any, about: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command of the function's name, with its description and examples."""
    parser = commands.add_parser(
        function.__name__,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=function)
    return parser


def seed_number(text: str) -> int:
    """A seed: a whole number that every generator of random numbers takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 0 to {2**32 - 1}, not {text!r}"
        )
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="minilib",
        description="AudioLDM 2 in small: sounds from sentences, on two CPU cores.",
        epilog="minilib COMMAND --help tells what a command takes, with examples.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_generate(commands)
    add_train(commands)
    add_reconstruct(commands)
    add_evaluate(commands)
    add_chain(commands)
    add_vocabulary(commands)
    add_convert(commands)
    add_info(commands)
    add_doctor(commands)
    return parser


def add_weights(add: Any) -> None:
    """Add --weights, which most commands take."""
    add(
        "--weights",
        metavar="DIR",
        help="folder of trained weights (default: those that ship)",
    )


def add_output(add: Any, default: str, more: str = "") -> None:
    """Add --output, for a sound."""
    about = f"WAV, FLAC, OGG or MP3 (default: {default}){more}"
    add("-o", "--output", type=Path, default=Path(default), metavar="FILE", help=about)


def add_sampler(add: Any) -> None:
    """Add --steps and --guidance."""
    about = "of the sampler; more is finer and slower (default: what the weights want)"
    add("--steps", type=int, metavar="N", help=about)
    about = "ddim, or dpm (DPM-Solver++), which needs fewer steps (default: ddim)"
    add("--sampler", choices=("ddim", "dpm"), default="ddim", help=about)
    about = "how strictly captions are followed; 1 switches guidance off (default: what the weights want)"
    add("--guidance", type=float, metavar="W", help=about)


def add_candidates(add: Any) -> None:
    """Add --candidates."""
    about = "make N sounds for each caption, keep the one that CLAP finds most like it (default: 1)"
    add("--candidates", type=int, default=1, metavar="N", help=about)


def add_generate(commands: Any) -> None:
    """Add the command `generate`."""
    examples = """
        minilib generate "a dog barks twice"
        minilib generate "a bell rings, then rain falls" -o bell.flac --seed 7 --plot bell.png
        minilib generate "an owl hoots" "the sound of a siren" -o sound.wav    (sound-1.wav and sound-2.wav)
        minilib generate "a loud drum beat" --candidates 4 --profile
    """
    add = command(
        commands, generate, "make a sound from each caption", examples
    ).add_argument
    add("captions", nargs="+", metavar="CAPTION", help="what is to be heard, in quotes")
    add_output(add, "sound.wav", "; several captions get -1, -2, ... before the suffix")
    add_sampler(add)
    about = "of the noise at the start, up to 1; less is cleaner and varies less (default: what the weights want)"
    add("--temperature", type=float, metavar="T", help=about)
    about = "noise levels of 0 to 1000 above LOW, up to HIGH, at which guidance works (default: what the weights want)"
    add("--guidance-interval", type=int, nargs=2, metavar=("LOW", "HIGH"), help=about)
    add(
        "--seconds",
        type=float,
        help="length of the sound (default: that of the training clips)",
    )
    about = "what is spoken; speech models need it, others have no use for it"
    add("--transcription", metavar="WORDS", help=about)
    add(
        "--seed",
        type=seed_number,
        help="the same seed makes the same sound (default: drawn anew)",
    )
    add_candidates(add)
    add_weights(add)
    add(
        "--plot",
        type=Path,
        metavar="PNG",
        help="draw the mel spectrogram into this file",
    )
    add("--profile", action="store_true", help="print the seconds that each stage took")


def add_convert(commands: Any) -> None:
    """Add the command `convert`."""
    examples = """
        minilib convert cvssp/audioldm2 weights/audioldm2    (from diffusers, here or on the hub, to this package)
        minilib convert weights/audioldm2 out                (and back)
        minilib convert audioldm2-full.pth weights/full      (from the file that the authors published)
    """
    add = command(
        commands,
        convert,
        "bring the released weights in, or trained ones out",
        examples,
    ).add_argument
    add(
        "source",
        metavar="SRC",
        help="a folder of either kind, a hub id, or a .pth of the authors",
    )
    add(
        "target",
        type=Path,
        metavar="DST",
        help="the folder to be written, of the other kind",
    )
    about = "for a .pth: the same model in diffusers' form, for its configs and tokenizers (default: cvssp/audioldm2)"
    add("--like", default="cvssp/audioldm2", metavar="FOLDER", help=about)


def add_info(commands: Any) -> None:
    """Add the command `info`."""
    examples = """
        minilib info                    (the weights that ship)
        minilib info full               (the sizes of the released model; also large, speech, colab, tiny)
        minilib info cvssp/audioldm2 --seconds 10.24 --steps 200
    """
    add = command(
        commands, info, "say what a pipeline holds and what a sound takes", examples
    ).add_argument
    add(
        "pipeline",
        nargs="?",
        metavar="FOLDER_OR_PRESET",
        help="default: the weights that ship",
    )
    add(
        "--seconds",
        type=float,
        help="length of the sound (default: that of the training clips)",
    )
    about = "of the sampler (default: what the weights want, 25 for a preset)"
    add("--steps", type=int, metavar="N", help=about)
    add("--json", type=Path, metavar="FILE", help="write the numbers into this file")


def add_doctor(commands: Any) -> None:
    """Add the command `doctor`."""
    examples = """
        minilib doctor
        minilib doctor --weights runs/tiny
    """
    add = command(
        commands,
        doctor,
        "check what minilib needs, and say how to mend what is wrong",
        examples,
    )
    add_weights(add.add_argument)


def add_train(commands: Any) -> None:
    """Add the command `train`."""
    examples = """
        minilib train all                       (the whole small pipeline, into runs/tiny)
        minilib train all --resume              (go on where it was stopped)
        minilib train vae --data recordings     (recordings/metadata.csv: file_name, caption)
        minilib train judge --out data/weights/judges

        minilib generate "a bell rings" --weights runs/tiny
    """
    add = command(
        commands, train, "train the pipeline, or single stages of it", examples
    ).add_argument
    about = f"all, or some of {', '.join(STAGES)} (the last four build on the others); "
    about += "or judge, the classifier that scores sounds"
    add("stages", nargs="+", metavar="STAGE", help=about)
    add(
        "--preset",
        default="tiny",
        help="tiny: two CPU cores; colab: one GPU (default: tiny)",
    )
    about = (
        "captioned recordings to learn from (default: SoundWorld, the built-in corpus)"
    )
    add("--data", type=Path, metavar="FOLDER", help=about)
    add("--steps", type=int, metavar="N", help="of every stage (default: the preset's)")
    about = "for weights, log and checkpoints (default: runs/PRESET)"
    add("--out", type=Path, metavar="DIR", help=about)
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add(
        "--seed",
        type=seed_number,
        default=0,
        help="of weights and batches (default: 0)",
    )


def add_reconstruct(commands: Any) -> None:
    """Add the command `reconstruct`."""
    about = "send a recording through autoencoder and vocoder, and say what each loses"
    example = "minilib reconstruct my_recording.wav -o back.wav"
    add = command(commands, reconstruct, about, example).add_argument
    add("file", type=Path, metavar="FILE", help="a recording of any rate and length")
    add_output(add, "reconstruction.wav")
    add_weights(add)


def add_evaluate(commands: Any) -> None:
    """Add the command `evaluate`."""
    examples = """
        minilib evaluate
        minilib evaluate --n 50 --weights runs/tiny --json results.json
        minilib evaluate --candidates 3    (as the paper does)

        minilib train judge --data recordings --out runs/own    (learns the column class of recordings/metadata.csv)
        minilib evaluate --data recordings --weights runs/own
    """
    about = "measure how well captions of held-out scenes are followed"
    add = command(commands, evaluate, about, examples).add_argument
    add(
        "--n",
        type=int,
        default=200,
        help="how often each question is asked (default: 200)",
    )
    add("--seed", type=seed_number, default=0, help="of scenes and noise (default: 0)")
    about = "captioned recordings to compare with: those whose column part says test (default: SoundWorld)"
    add("--data", type=Path, metavar="FOLDER", help=about)
    add_sampler(add)
    add_candidates(add)
    add_weights(add)
    add("--json", type=Path, metavar="FILE", help="write all numbers into this file")


def add_chain(commands: Any) -> None:
    """Add the command `chain`."""
    examples = """
        minilib chain
        minilib chain --n 50 --weights runs/tiny --json chain.json    (with the parts before joint fine-tuning)
    """
    about = "find out where captions get lost: one link of the chain changed at a time (half an hour on a CPU)"
    add = command(commands, chain, about, examples).add_argument
    add(
        "--n",
        type=int,
        default=200,
        help="scenes of one event, and as many of two (default: 200)",
    )
    add("--seed", type=seed_number, default=0, help="of scenes and noise (default: 0)")
    add_weights(add)
    add("--json", type=Path, metavar="FILE", help="write all numbers into this file")


def add_vocabulary(commands: Any) -> None:
    """Add the command `vocabulary`."""
    about = "list the words and the kinds of sound that the weights know"
    add_weights(command(commands, vocabulary, about, "minilib vocabulary").add_argument)


# --------------------------------------------------------------------------------------
# The commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run `minilib`; return 0 (`doctor`: or 1), or 2 after one sentence on what was
    wrong, or 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    # whoever read the output has gone, as in `minilib vocabulary | head -3`
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        go_on = (
            f"; {args.stopped}" if is_full(error) and hasattr(args, "stopped") else ""
        )
        print(f"minilib: {sentence(error)}{go_on}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nminilib: {getattr(args, 'stopped', 'stopped; nothing was written')}",
            file=sys.stderr,
        )
        return 130


def sentence(error: Exception) -> str:
    """What an error says, on one line; the system's errors without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        )
    return " ".join(str(error).split()) or type(error).__name__


def is_full(error: Exception) -> bool:
    """Whether a disk is full: what was written so far is kept, and can be gone on from."""
    from minilib.files import FULL

    return isinstance(error, OSError) and error.errno in FULL


def generate(args: argparse.Namespace) -> None:
    """Make a sound from each caption, write it, and say with which seed."""
    sounds = output_files(args.output, len(args.captions), SOUND_FILES)
    plots = output_files(args.plot, len(args.captions), (".png",)) if args.plot else []
    began = time.perf_counter()
    from minilib import audio
    from minilib.audioldm2 import AudioLDM2, Profile, check_captions, check_numbers

    profile = Profile({"imports": time.perf_counter() - began})
    check_captions(args.captions, None)
    names = ("steps", "guidance", "candidates", "temperature", "guidance_interval")
    numbers = {name: getattr(args, name) for name in names}
    check_numbers(**numbers)
    with profile.measure("load weights"):
        pipe = AudioLDM2.from_pretrained(args.weights or shipped_weights())
    seed = random.randrange(2**32) if args.seed is None else args.seed
    for caption in args.captions:
        warn_of_unknown_words(pipe, caption)
    others = {
        name: getattr(args, name) for name in ("sampler", "seconds", "transcription")
    }
    waves = pipe(args.captions, seed=seed, **numbers, **others)
    profile.seconds.update(pipe.profile.seconds)
    with profile.measure("write"):
        for path, wave in zip(sounds, waves):
            audio.save(path, wave)
        for path, wave, caption in zip(plots, waves, args.captions):
            plot(path, wave, caption)
    for path, caption in zip(sounds, args.captions):
        print(f"{path}  {waves.shape[1] / audio.SAMPLE_RATE:.2f} s  {caption}")
    print(f"seed {seed}")
    if args.profile:
        print(f"\n{table(profile)}")


def train(args: argparse.Namespace) -> None:
    """Train stages of the pipeline into a folder."""
    out = args.out or Path("runs") / args.preset
    options = {key: getattr(args, key) for key in ("preset", "data", "steps", "seed")}
    line = ["minilib", "train", *args.stages, "--out", str(out)]
    line += [
        word
        for key, value in options.items()
        if value is not None
        for word in (f"--{key}", str(value))
    ]
    args.stopped = f"stopped; go on with: {shlex.join(line)} --resume"
    from minilib.training import train_stages
    from minilib.training.processes import is_main

    stages = "all" if args.stages == ["all"] else args.stages
    train_stages(stages, out=out, resume=args.resume, **options)
    if is_main():
        print(f"trained: {out}")


def reconstruct(args: argparse.Namespace) -> None:
    """Send a recording through VAE and vocoder, write what comes back, and print what
    was lost where.
    """
    (output,) = output_files(args.output, 1, SOUND_FILES)
    if output.exists() and args.file.exists() and output.samefile(args.file):
        raise ValueError(
            f"--output must be another file than the recording, not {str(output)!r}"
        )
    from minilib import audio
    from minilib.audioldm2 import AudioLDM2
    from minilib.metrics import reconstruction

    wave = audio.load(args.file)
    pipe = AudioLDM2.from_pretrained(args.weights or shipped_weights())
    result = reconstruction(pipe, wave, progress=True)
    audio.save(output, result["wave"])
    print(f"{args.file}  {len(wave) / audio.SAMPLE_RATE:.2f} s")
    print(
        f"{'log-mel error (dB)':20}{'sound':>8}"
        + f"{'silence':>10}" * (result["silent_share"] > 0)
    )
    for name, key in (
        ("VAE", "vae"),
        ("vocoder", "vocoder"),
        ("VAE and vocoder", "total"),
    ):
        silent = (
            f"{result[f'{key}_silent_db']:10.2f}" if result["silent_share"] > 0 else ""
        )
        print(f"{name:20}{result[f'{key}_db']:8.2f}{silent}")
    if result["silent_share"] > 0:
        print(
            f"{result['silent_share']:.0%} of the recording is digital silence, "
            f"scored apart"
        )
    print(f"written: {output}")


def evaluate(args: argparse.Namespace) -> None:
    """Print how well captions are followed: chance < value < ceiling."""
    output = output_files(args.json, 1, (".json",))[0] if args.json else None
    from minilib import metrics

    options = {
        key: getattr(args, key)
        for key in ("n", "seed", "steps", "guidance", "sampler", "candidates")
    }
    if args.data:
        from minilib.data import AudioFolder

        folder = AudioFolder(args.data, part="test")
        pipe, judge, _ = pipeline_and_judge(args, own_judge(args))
        results = metrics.evaluate_recordings(pipe, judge, folder, **options)
    else:
        pipe, judge, _ = pipeline_and_judge(args, shipped_judge())
        listener = metrics.Listener.from_pretrained(shipped_listener())
        results = metrics.evaluate(pipe, judge, listener=listener, **options)
    print(metrics.report(results, recorded=bool(args.data)))
    write_numbers(output, results)


def chain(args: argparse.Namespace) -> None:
    """Print what each link of the chain is worth."""
    output = output_files(args.json, 1, (".json",))[0] if args.json else None
    from minilib import chain

    pipe, judge, folder = pipeline_and_judge(args, shipped_judge())
    results = chain.explain(pipe, judge, chain.untuned(pipe, folder), args.n, args.seed)
    print(chain.report(results))
    write_numbers(output, results)


def own_judge(args: argparse.Namespace) -> Path:
    """The folder of the judge that has been trained beside the weights, on recordings
    of one's own.
    """
    if not args.weights:
        raise ValueError(
            f"--data needs --weights: the folder of a pipeline that was trained on "
            f"{args.data}"
        )
    path = Path(args.weights) / "judge"
    if not (path / "config.json").is_file():
        how = f"minilib train judge --data {args.data} --out {path.parent}"
        raise FileNotFoundError(f"{path} holds no judge: train one with: {how}")
    return path


def pipeline_and_judge(
    args: argparse.Namespace, judge: Path
) -> tuple[AudioLDM2, Classifier, Path]:
    """The weights that are asked for, a judge, and where the weights are."""
    import torch

    from minilib.audioldm2 import AudioLDM2
    from minilib.classifier import Classifier
    from minilib.convert import released

    model = Classifier.from_pretrained(judge, dtype=torch.float32)
    folder = released.fetch(args.weights or shipped_weights())
    pipe = AudioLDM2.from_pretrained(folder)
    return pipe, model.to(pipe.device), folder


def write_numbers(path: Path | None, numbers: dict[str, Any]) -> None:
    """Write numbers as JSON, whole or not at all, if a file is asked for."""
    from minilib.files import replacing

    if path:
        with replacing(path) as part:
            part.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def vocabulary(args: argparse.Namespace) -> None:
    """Print the words and classes that the weights know, and a few captions."""
    from minilib.convert import released
    from minilib.model import read_json

    folder = released.fetch(args.weights or shipped_weights())
    if released.is_released(folder):
        print(
            "these weights are open to any words: their encoders were trained on far "
            "more than captions"
        )
        return
    known = read_json(folder / "vocabulary.json")
    classes, words, captions = (
        known.get(key, []) for key in ("classes", "words", "captions")
    )
    if classes:
        print(f"{len(classes)} kinds of sound:\n{in_columns(classes)}\n")
    print(f"{len(words)} words:\n{in_columns(words)}\n")
    some = captions[:: max(1, len(captions) // 6)]
    print("captions such as:\n" + "\n".join(f"  {caption}" for caption in some))


def convert(args: argparse.Namespace) -> None:
    """Read a pipeline and write it in the other layout: diffusers' or this package's."""
    from minilib.audioldm2 import AudioLDM2
    from minilib.convert import released
    from minilib.files import replacing_folder

    if args.target.exists() and (
        not args.target.is_dir() or any(args.target.iterdir())
    ):
        raise ValueError(
            f"DST must be a new or an empty folder, not {str(args.target)!r}"
        )
    own = False  # whether the source is laid out as this package does
    if args.source.endswith(".pth"):
        pipe = AudioLDM2.from_original(args.source, args.like, device="cpu", dtype=None)
    else:
        source = released.fetch(args.source)
        own = not released.is_released(source)
        pipe = AudioLDM2.from_pretrained(source, device="cpu", dtype=None)
    with replacing_folder(args.target) as new:
        if own:
            pipe.to_diffusers(new)
        else:
            pipe.save_pretrained(new)
    print(
        f"{args.target}: a folder of {'diffusers' if own else 'minilib'}, from "
        f"{args.source}"
    )


def info(args: argparse.Namespace) -> None:
    """Print what the parts of a pipeline hold, and the operations that a sound takes."""
    output = output_files(args.json, 1, (".json",))[0] if args.json else None
    from dataclasses import asdict

    from minilib import costs
    from minilib.audioldm2 import (
        EVERYWHERE,
        MAX_STEPS,
        STEPS,
        AudioLDM2,
        check_numbers,
        check_seconds,
    )
    from minilib.convert import released
    from minilib.diffusion import time_steps
    from minilib.unet import UNet

    check_numbers(args.steps, 1.0, 1)
    if args.pipeline in UNet.presets:
        folder, parts, steps, interval = (
            None,
            costs.preset_parts(args.pipeline),
            STEPS,
            EVERYWHERE,
        )
        seconds = 2.56 if args.pipeline == "tiny" else 10.24
    else:
        folder = released.fetch(args.pipeline or shipped_weights())
        pipe = AudioLDM2.from_pretrained(folder, device="cpu", dtype=None)
        parts, seconds, steps = costs.pipeline_parts(pipe), pipe.seconds, pipe.steps
        interval = pipe.guidance_interval if pipe.guidance != 1.0 else (0, 0)
    seconds = check_seconds(seconds if args.seconds is None else args.seconds)
    steps = steps if args.steps is None else args.steps
    rows = costs.sizes(parts, folder)
    guided = sum(interval[0] < t <= interval[1] for t in time_steps(MAX_STEPS, steps))
    flops = costs.operations(parts, seconds, guided, guided=guided > 0)
    if guided < steps:
        flops["sample"] += costs.operations(
            parts, seconds, steps - guided, guided=False
        )["sample"]
    print(costs.report(rows, flops, seconds, steps, guided))
    if output:
        numbers = {
            "parts": [asdict(row) for row in rows],
            "flops": flops,
            "seconds": seconds,
            "steps": steps,
        }
        write_numbers(output, numbers)


def doctor(args: argparse.Namespace) -> int:
    """Print one line for each thing that minilib needs, and how to mend what is wrong;
    1 if it can't work.
    """
    from minilib.doctor import examine

    sound = True
    for name, check in examine(
        Path(args.weights) if args.weights else DATA / "weights" / "tiny"
    ):
        # the name before the check: a broken library may end the process as it is
        # imported
        print(f"{name:13}", end="", flush=True)
        found = check()
        print(found.found)
        if found.wrong:
            print(f"{'':13}{'warning' if found.works else 'WRONG'}: {found.wrong}")
        sound = sound and found.works
    return 0 if sound else 1


# --------------------------------------------------------------------------------------
# What they share


def shipped_weights() -> Path:
    """The folder of the weights that come with the repository."""
    return shipped(
        "tiny", "give a folder with --weights, or train some with: minilib train all"
    )


def shipped_listener() -> Path:
    """The folder of the CLAP that was trained apart, and of its tokenizer."""
    how = "train one with: minilib train clap --seed 1 --out data/weights/judges"
    return shipped("judges/clap", how).parent


def shipped_judge() -> Path:
    """The folder of the judge that comes with the repository."""
    return shipped(
        "judges/judge", "train one with: minilib train judge --out data/weights/judges"
    )


def shipped(name: str, remedy: str) -> Path:
    """A folder of data/weights, or a sentence on what to do without it."""
    folder = DATA / "weights" / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the weights that ship are not here ({folder} is missing): {remedy}"
        )
    return folder


def output_files(path: Path, n: int, suffixes: Sequence[str]) -> list[Path]:
    """The n files to be written, `name-1.wav`, `name-2.wav`, ... where there are
    several; checked beforehand.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"the output must end in {' or '.join(suffixes)}, not {str(path)!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"the output {str(path)!r} can't be written: there is no folder "
            f"{str(path.parent)!r}"
        )
    paths = (
        [path.with_stem(f"{path.stem}-{i + 1}") for i in range(n)] if n > 1 else [path]
    )
    for file in paths:
        if file.is_dir():
            raise ValueError(
                f"the output {str(file)!r} can't be written: it is a folder"
            )
    try:
        # asks the disk itself: permissions say too little
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"the output {str(path)!r} can't be written: {error.strerror}"
        ) from error
    return paths


def warn_of_unknown_words(pipe: AudioLDM2, caption: str) -> None:
    """Say which words of a caption the weights don't know, and what is near that they
    do.
    """
    from minilib.metrics import nearest_captions

    unknown = pipe.unknown_words(caption)
    if unknown:
        near = " or ".join(f'"{other}"' for other in nearest_captions(pipe, caption))
        words = ", ".join(f'"{word}"' for word in unknown)
        print(
            f"minilib: these weights don't know {words}; near that they know: {near}",
            file=sys.stderr,
        )


def plot(path: Path, wave: Tensor, caption: str) -> None:
    """Draw the mel spectrogram of a wave (N,) into a PNG, whole or not at all."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from minilib import show
    from minilib.files import replacing

    with rc_context(show.look()):
        figure = Figure()
        axes = figure.add_subplot()
        show.mel(wave, ax=axes)
        axes.set_title(textwrap.fill(caption, 80), parse_math=False)
        png = io.BytesIO()
        figure.savefig(png, format="png")
    with replacing(path) as temporary:
        temporary.write_bytes(png.getvalue())


def table(profile: Profile) -> str:
    """Seconds of each stage, and their sum."""
    rows = [*profile.seconds.items(), ("total", sum(profile.seconds.values()))]
    return "\n".join(
        [
            "stage             seconds",
            *(f"{stage:14}{seconds:11.3f}" for stage, seconds in rows),
        ]
    )


def in_columns(words: Sequence[str]) -> str:
    """Words in columns, read downwards, as wide as the terminal."""
    width = 2 + max(map(len, words), default=0)
    n_columns = max(1, (min(shutil.get_terminal_size().columns, 100) - 2) // width)
    n_rows = -(-len(words) // n_columns)
    rows = (
        "".join(f"{word:{width}}" for word in words[row::n_rows])
        for row in range(n_rows)
    )
    return "\n".join(f"  {row.rstrip()}" for row in rows)
