"""The command line: generate, train, train-peer, reconstruct, evaluate, chain,
vocabulary, convert, push, info, data, doctor, assign.

Each command is a function that takes the parsed arguments. Wrong arguments end it with
one sentence and exit code 2 before anything is written. Libraries that take a second to
import are imported inside the functions.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

    from minilib.audioldm2 import AudioLDM2, Profile
    from minilib.classifier import Classifier
    from minilib.guidance import Sampling

SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3")
STAGES = (  # the stages of training, as --help names them
    *("vae", "vocoder", "audiomae", "clap", "text", "gpt", "ldm", "joint"),
    "adversarial",
)
# of `evaluate`; sounds are text and music
TASKS = ("sounds", "text", "music", "speech", "prompted", "picture")
# fields of `Sampling` that commands have flags for
SAMPLING = ("steps", "guidance", "sampler", "temperature", "guidance_interval")
# the data folder of the checkout that contains this module
DATA = Path(__file__).resolve().parents[1] / "data"
WANTED = "(default: set by the weights)"

# --------------------------------------------------------------------------------------
# The commands and their arguments


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one sentence instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def command(commands: Any, function: Any, about: str, examples: str) -> Any:
    """Add a command named after the function, with its description and examples, and
    return the method that adds arguments to it.
    """
    examples = textwrap.indent(textwrap.dedent(examples).strip(), "  ")
    parser = commands.add_parser(
        function.__name__.replace("_", "-"),
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=function)
    return parser.add_argument


def seed_number(text: str) -> int:
    """A seed: a whole number that every generator of random numbers takes."""
    # count the digits first: Python converts at most 4300 digits to an int
    if not text.isdecimal() or len(text) > 10 or int(text) >= 2**32:
        wanted = f"must be a whole number from 0 to {2**32 - 1}, not {text!r:.60}"
        raise argparse.ArgumentTypeError(wanted)
    return int(text)


def whole_number(text: str) -> int:
    """A whole number; the command checks its range."""
    return read_as(int, "a whole number", text)


def number(text: str) -> float:
    """A number; the command checks its range."""
    return read_as(float, "a number", text)


def read_as(kind: Callable[[str], Any], name: str, text: str) -> Any:
    """A number of that kind from its text."""
    try:
        return kind(text)
    except ValueError:
        wanted = f"must be {name}, not {text!r:.60}"
        raise argparse.ArgumentTypeError(wanted) from None


def named(text: str) -> str:
    """The name of a file or a folder. It must not be empty: a shell expands an unset
    variable to an empty string, and the default would silently take its place.
    """
    if not text.strip():
        wanted = f"must name a file or a folder, not {text!r}"
        raise argparse.ArgumentTypeError(wanted)
    return text


def path_name(text: str) -> Path:
    """The path of a file or a folder, not empty."""
    return Path(named(text))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="minilib",
        description="A small AudioLDM 2: sounds from sentences, on two CPU cores.",
        epilog="minilib COMMAND --help lists a command's arguments, with examples.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add_command in (
        *(add_generate, add_train, add_train_peer, add_reconstruct, add_evaluate),
        *(add_chain, add_vocabulary, add_convert, add_push, add_info, add_doctor),
        *(add_data, add_assign),
    ):
        add_command(commands)
    return parser


def add_weights(add: Any) -> None:
    """Add --weights, which most commands take."""
    about = "folder of trained weights (default: the weights that ship)"
    add("--weights", type=named, metavar="DIR", help=about)


def add_output(add: Any, default: str, more: str = "") -> None:
    """Add --output, for a sound."""
    about = f"a WAV, FLAC, OGG or MP3 file (default: {default}){more}"
    add(
        "-o",
        "--output",
        type=path_name,
        default=Path(default),
        metavar="FILE",
        help=about,
    )


def add_json(add: Any) -> None:
    """Add --json, for numbers."""
    add("--json", type=path_name, metavar="FILE", help="write all numbers to this file")


def add_seed(add: Any, about: str, default: int | None = 0) -> None:
    """Add --seed."""
    add("--seed", type=seed_number, default=default, help=about)


def add_sampler(add: Any) -> None:
    """Add --steps, --sampler and --guidance."""
    about = f"steps of the sampler; more steps are finer and slower {WANTED}"
    add("--steps", type=whole_number, metavar="N", help=about)
    about = f"ddim, or dpm (DPM-Solver++), which takes fewer steps {WANTED}"
    add("--sampler", choices=("ddim", "dpm"), help=about)
    about = "how strictly to follow the caption; 1 switches guidance off"
    add("--guidance", type=number, metavar="W", help=f"{about} {WANTED}")


def add_candidates(add: Any) -> None:
    """Add --candidates."""
    about = "make N sounds for each caption and keep the one that CLAP finds most like"
    about += " it (default: 1)"
    add("--candidates", type=whole_number, default=1, metavar="N", help=about)


def add_generate(commands: Any) -> None:
    """Add the command `generate`."""
    examples = """
        minilib generate "a dog barks twice"
        minilib generate "a bell rings" -o bell.flac --seed 7 --plot bell.png
        minilib generate "a loud drum beat" --candidates 4 --profile

        minilib generate "an owl hoots" "a siren"    (sound-1.wav and sound-2.wav)

        minilib generate "a man speaks slowly in a low voice" --transcription window
        minilib generate --voice me.wav --transcription window    (in another's voice)

        minilib generate --picture dog.png    (what a picture shows)

        minilib generate --weights data/weights/peers/valle --voice me.wav
            --transcription window    (by VALL-E instead)
        minilib generate --weights data/weights/peers/uniaudio "a dog barks"
            (by UniAudio; it takes --voice and --transcription, too)
    """
    add = command(commands, generate, "make a sound from each caption", examples)
    about = "a description, in quotes; --voice and --picture need none"
    add("captions", nargs="*", metavar="CAPTION", help=about)
    more = "; with several captions, -1, -2, ... is added before the suffix"
    add_output(add, "sound.wav", more)
    add_sampler(add)
    about = "deviation of the noise at the start, above 0 and at most 1; less noise"
    about += " gives cleaner sounds that vary less"
    add("--temperature", type=number, metavar="T", help=f"{about} {WANTED}")
    about = "guide only at noise levels above LOW and up to HIGH, each from 0 to 1000"
    ends = {"nargs": 2, "metavar": ("LOW", "HIGH")}
    add("--guidance-interval", type=whole_number, **ends, help=f"{about} {WANTED}")
    about = "length of the sound (default: that of the training clips)"
    add("--seconds", type=number, help=about)
    about = "the words to be spoken, by the weights of speech; captions then describe"
    add("--transcription", metavar="WORDS", help=f"{about} the voice")
    about = "a recording of a voice that shall speak, instead of its caption"
    add("--voice", type=path_name, metavar="FILE", help=about)
    about = "a PNG or JPEG of what shall sound, instead of a caption; by the weights of"
    add("--picture", type=path_name, metavar="FILE", help=f"{about} pictures")
    about = "the same seed makes the same sound; each further caption takes the next"
    add_seed(add, f"{about} seed (default: a random one)", None)
    add_candidates(add)
    add_weights(add)
    about = "draw the mel spectrogram in this file"
    add("--plot", type=path_name, metavar="PNG", help=about)
    add("--profile", action="store_true", help="print how long each stage took")


def add_convert(commands: Any) -> None:
    """Add the command `convert`."""
    examples = """
        minilib convert cvssp/audioldm2 weights/full    (from diffusers or the hub)
        minilib convert weights/full out                (and back)
        minilib convert audioldm2.pth weights/full      (from the authors' own file)
    """
    about = "convert released weights to this package's layout, or trained ones back"
    add = command(commands, convert, about, examples)
    about = "a folder in either layout, a hub id, or a .pth file of the authors"
    add("source", type=named, metavar="SRC", help=about)
    about = "the folder to write, in the other layout"
    add("target", type=path_name, metavar="DST", help=about)
    about = "for a .pth file: the same model in diffusers' layout, which supplies"
    about += " configs and tokenizers (default: cvssp/audioldm2)"
    like = {"default": "cvssp/audioldm2", "metavar": "FOLDER"}
    add("--like", type=named, **like, help=about)


def add_push(commands: Any) -> None:
    """Add the command `push`."""
    examples = """
        minilib push runs/tiny ada/sounds --licence cc-by-4.0
        minilib push runs/tiny ada/sounds --licence cc-by-4.0 --card-only

        minilib generate "a bell rings" --weights ada/sounds
    """
    about = "send a pipeline to the Hugging Face hub, with a card written from its run"
    add = command(commands, push, about, examples)
    about = "folder of the pipeline; a README.md in it is the card, and train.log, "
    about += "loss.png and scores.json (from evaluate --json) are sent with it"
    add("folder", type=path_name, metavar="FOLDER", help=about)
    add("name", type=named, metavar="OWNER/NAME", help="the repository on the hub")
    about = "of the weights, as the hub names it, such as cc-by-4.0; for the card"
    add("--licence", type=named, metavar="ID", help=about)
    add("--private", action="store_true", help="make a repository that only you see")
    about = "send nothing: write the card, FOLDER/README.md, for you to read and change"
    add("--card-only", action="store_true", help=about)


def add_info(commands: Any) -> None:
    """Add the command `info`."""
    examples = """
        minilib info         (the weights that ship)
        minilib info full    (the released sizes; also large and speech, the released
            model that speaks; or colab, tiny)
        minilib info cvssp/audioldm2 --seconds 10.24 --steps 200
        minilib info full --train    (what training takes: memory, operations, days)
    """
    about = "show what a pipeline holds and what making a sound costs"
    add = command(commands, info, about, examples)
    about = "a folder, a hub id or a preset (default: the weights that ship)"
    add("pipeline", nargs="?", type=named, metavar="FOLDER_OR_PRESET", help=about)
    about = "length of the sound (default: that of the training clips)"
    add("--seconds", type=number, help=about)
    about = "steps of the sampler (default: set by the weights, 25 for a preset)"
    add("--steps", type=whole_number, metavar="N", help=about)
    about = (
        "what training takes instead, stage by stage: for the presets full and large"
    )
    add("--train", action="store_true", help=about)
    add_json(add)


def add_doctor(commands: Any) -> None:
    """Add the command `doctor`."""
    examples = """
        minilib doctor
        minilib doctor --weights runs/tiny
    """
    about = "check everything that minilib needs, and say how to fix what is wrong"
    add_weights(command(commands, doctor, about, examples))


def add_data(commands: Any) -> None:
    """Add the command `data`."""
    about = "check all recordings before you train on them; get real data sets by name"
    examples = """
        minilib data check recordings
        minilib data check shards.parquet    (or .arrow, .tar)
        minilib data check user/name         (of the hub)
        minilib data list
        minilib data get ljspeech --out recordings/ljspeech
    """
    add = command(commands, data, about, examples)
    about = "check: print what the folder holds and everything that is wrong with it; "
    about += "list: print the data sets that have a name here; get: download one"
    add("action", choices=("check", "list", "get"), help=about)
    about = (
        "a folder with recordings and their table (metadata.csv: file_name, caption), "
        "or another source that train --data takes; for get, the name of a data set"
    )
    add("folder", nargs="?", type=path_name, metavar="FOLDER_OR_NAME", help=about)
    about = "for get: a new folder (default: recordings/NAME)"
    add("--out", type=path_name, metavar="DIR", help=about)


def add_assign(commands: Any) -> None:
    """Add the command `assign`."""
    examples = """
        minilib assign list
        minilib assign release forward_process    (without solutions, into release)
        minilib assign grade submitted            (submitted/ada/forward_process.ipynb)
        minilib assign feedback forward_process   (a page for each student)
    """
    about = "for instructors: hand out assignments, and grade what comes back"
    add = command(commands, assign, about, examples)
    choices = ("list", "release", "grade", "feedback")
    add("action", choices=choices, help="what to do with assignments")
    about = "the assignment to release or to give feedback on; the folder to grade"
    add("name", nargs="?", type=named, metavar="NAME_OR_FOLDER", help=about)
    about = "folder for notebooks (default: release) or for grades and feedback"
    add("--out", type=path_name, metavar="DIR", help=f"{about} (default: graded)")


def add_train(commands: Any) -> None:
    """Add the command `train`."""
    examples = """
        minilib train all                       (the small pipeline, into runs/tiny)
        minilib train all --resume              (continue where it stopped)
        minilib train all --log-with tensorboard --sound-every 500
        minilib train vae --data recordings     (metadata.csv: file_name, caption)
        minilib train vae --data user/name      (of the hub)
        minilib train gpt ldm joint --data user/name --features shards
        minilib train judge --out data/weights/judges
        minilib train all --preset picture --out data/weights/picture
        minilib train all --preset speech --out data/weights/speech
        minilib train all --preset full --data recordings --encoders cvssp/audioldm2

        minilib generate "a bell rings" --weights runs/tiny
    """
    about = "train the pipeline, or single stages"
    add = command(commands, train, about, examples)
    about = f"all, or any of {', '.join(STAGES)} (the last four build on the others); "
    about += "or judge, the classifier that scores sounds; or sight and then bind, "
    about += "ImageBind; preset speech has the stages clap, speak and utter, "
    about += "and words and voices, the judges of what is said; preset picture has "
    about += "sight, bind and depict"
    add("stages", nargs="+", metavar="STAGE", help=about)
    about = "tiny, for two CPU cores, colab, for one GPU, or speech, which speaks, or "
    about += "picture, which sees; both borrow parts of tiny; full and large have the "
    about += "released sizes, for many GPUs (default: tiny)"
    add("--preset", default="tiny", help=about)
    about = "captioned recordings to train on: a folder, Arrow, Parquet or WebDataset "
    about += "files or a folder of them, or the name of a data set of the hub; more "
    about += "than 10,000 rows, and all that is no folder with a table, are read from "
    about += "disk clip by clip (default: SoundWorld, the built-in corpus)"
    add("--data", type=path_name, metavar="FOLDER", help=about)
    add(
        "--steps",
        type=whole_number,
        metavar="N",
        help="training steps of each stage (default: the preset's)",
    )
    about = "for full and large: frozen encoders, from a released pipeline, or a T5 "
    about += "and a CLAP of transformers; folders or hub ids"
    add("--encoders", nargs="+", type=named, metavar="FOLDER", help=about)
    about = "folder for weights, log and checkpoints (default: runs/PRESET)"
    add("--out", type=path_name, metavar="DIR", help=about)
    about = "where what frozen parts (VAE, AudioMAE, encoders) make of all clips and "
    about += "captions is kept: memory; shards, files in OUT/features, which all "
    about += "processes compute once, even over several runs, and read row by row; or "
    about += "fly, nowhere, and computed for every batch (default: memory for clips in "
    about += "memory, fly for clips that are read from disk)"
    add("--features", metavar="WHERE", help=about)
    about = "skip finished stages and continue from the last checkpoint, with the same "
    about += "data, preset and seed; without this flag, stages start from the beginning"
    add("--resume", action="store_true", help=about)
    add_seed(add, "seed of weights and batches (default: 0)")
    about = "tensorboard, which reads OUT/tensorboard, or wandb: told of all losses "
    about += "(default: neither; train.log and loss.png are written in any case)"
    add("--log-with", metavar="TRACKER", help=about)
    about = "tell the tracker every N steps how a few captions sound (default: never)"
    add("--sound-every", type=whole_number, metavar="N", help=about)


def add_train_peer(commands: Any) -> None:
    """Add the command `train-peer`."""
    from minilib.peers import PEERS

    examples = """
        minilib train-peer instructed_t5
        minilib train-peer text_ldm --out data/weights/peers/text_ldm
    """
    about = "train a system that the book compares with AudioLDM 2"
    add = command(commands, train_peer, about, examples)
    known = "; ".join(f"{name}, {what}" for name, what in PEERS.items())
    add("name", type=named, metavar="NAME", help=f"one of: {known}")
    about = "training steps of each part of the training (default: the peer's own)"
    add("--steps", type=whole_number, metavar="N", help=about)
    about = "folder for the weights (default: runs/peers/NAME)"
    add("--out", type=path_name, metavar="DIR", help=about)
    add_seed(add, "seed of weights and batches (default: 0)")


def add_reconstruct(commands: Any) -> None:
    """Add the command `reconstruct`."""
    about = "send a recording through autoencoder and vocoder, and show what each loses"
    examples = """
        minilib reconstruct my_recording.wav -o back.wav
        minilib reconstruct in.wav --weights data/weights/peers/codec --codebooks 4
    """
    add = command(commands, reconstruct, about, examples)
    add(
        "file",
        type=path_name,
        metavar="FILE",
        help="a recording of any sample rate and length",
    )
    add_output(add, "reconstruction.wav")
    add_weights(add)
    about = "with the weights of a codec: use its first N codebooks (default: all)"
    add("--codebooks", type=whole_number, metavar="N", help=about)


def add_evaluate(commands: Any) -> None:
    """Add the command `evaluate`."""
    examples = """
        minilib evaluate
        minilib evaluate --n 50 --weights runs/tiny --json results.json
        minilib evaluate --candidates 3    (as the paper does)
        minilib evaluate --task speech      (are words understood, voices right?)
        minilib evaluate --task prompted    (voices told by a recording)
        minilib evaluate --task picture     (sounds of what pictures show)

        minilib train judge --data recordings --out runs/own    (learns column class)
        minilib evaluate --data recordings --weights runs/own
    """
    about = "measure how well the sounds follow captions of held-out scenes"
    add = command(commands, evaluate, about, examples)
    about = "number of sounds that each question is asked about (default: 200)"
    add("--n", type=whole_number, default=200, help=about)
    about = "sounds, which are text (effects) and music, or one of these; or speech, or"
    about += " prompted, in the voice of a recording; or picture (default: sounds)"
    add("--task", choices=TASKS, default="sounds", help=about)
    add_seed(add, "seed of scenes and noise (default: 0)")
    about = "captioned recordings to compare with; only rows whose part is test are"
    about += " used (default: SoundWorld)"
    add("--data", type=path_name, metavar="FOLDER", help=about)
    add_sampler(add)
    add_candidates(add)
    add_weights(add)
    add_json(add)


def add_chain(commands: Any) -> None:
    """Add the command `chain`."""
    examples = """
        minilib chain
        minilib chain --n 50 --json chain.json
        minilib chain --weights runs/tiny    (also the parts before joint fine-tuning)
    """
    about = "find out where captions get lost, by changing one link of the chain at a"
    about += " time (half an hour on a CPU)"
    add = command(commands, chain, about, examples)
    about = "number of scenes with one event, and as many with two (default: 200)"
    add("--n", type=whole_number, default=200, help=about)
    add_seed(add, "seed of scenes and noise (default: 0)")
    add_weights(add)
    add_json(add)


def add_vocabulary(commands: Any) -> None:
    """Add the command `vocabulary`."""
    about = "list the words and kinds of sound that the weights know"
    add_weights(command(commands, vocabulary, about, "minilib vocabulary"))


# --------------------------------------------------------------------------------------
# The commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run `minilib`; return 0, 2 after one sentence on what was wrong, or 130 after
    Ctrl-C. `doctor` and `data` return 1 when they find a fault.
    """
    if hasattr(sys.stdout, "reconfigure"):  # replace what it can't print
        sys.stdout.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    stopped = lambda: getattr(args, "stopped", "stopped; nothing was written")
    warnings.showwarning = in_one_line
    try:
        code = args.run(args) or 0
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
        return code
    # the reader of the output has closed it, as in `minilib vocabulary | head -3`
    except BrokenPipeError:
        print_no_more()
        return 0
    # ModuleNotFoundError: of an extra, such as speech
    except (
        *(ValueError, TypeError, OSError, FloatingPointError),
        ModuleNotFoundError,
    ) as error:
        kept = is_full(error) and hasattr(args, "stopped")
        go_on = f"; {stopped()}" if kept else ""
        print(f"minilib: {sentence(error)}{go_on}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nminilib: {stopped()}", file=sys.stderr)
        return 130


def in_one_line(message: Warning | str, *about: Any, **more: Any) -> None:
    """Print a warning as errors are printed: its text, without a line of code."""
    print(f"minilib: {message}", file=sys.stderr)


def print_no_more() -> None:
    """Discard all output from here on, and output that is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """Print a line at once; a closed output does not stop the work."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        print_no_more()


def sentence(error: Exception) -> str:
    """The text of an error, on one line; system errors come without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: " * bool(error.filename) + error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def is_full(error: Exception) -> bool:
    """Whether a disk is full. Everything written so far is kept, and training can
    continue from it.
    """
    from minilib.files import FULL

    return isinstance(error, OSError) and error.errno in FULL


def assign(args: argparse.Namespace) -> None:
    """List assignments, release one, grade submissions, or write feedback."""
    if (args.action == "list") != (args.name is None):
        wanted = "no name" if args.action == "list" else "a name or a folder after it"
        raise ValueError(f"assign {args.action} takes {wanted}")
    if args.action == "list" and args.out is not None:
        raise ValueError("assign list takes no --out: it writes nothing")
    from minilib.assign import commands

    getattr(commands, f"{args.action}_")(args.name, args.out)


def generate(args: argparse.Namespace) -> None:
    """Make a sound from each caption, or from a picture, write it, and print its
    seed.
    """
    preset = preset_of(args)
    args.captions = args.captions or shown_as(args)
    n = len(args.captions)
    sounds = output_files("--output", args.output, n, SOUND_FILES)
    plots = output_files("--plot", args.plot, n, (".png",)) if args.plot else []
    began = time.perf_counter()
    from minilib import audio, pictures
    from minilib.arguments import check_asked, check_seeds
    from minilib.audioldm2 import AudioLDM2, Profile
    from minilib.peers import pipeline

    profile = Profile({"imports": time.perf_counter() - began})
    options = {x: getattr(args, x) for x in ("transcription", "candidates")}
    check_asked(args.captions, None, speaks=args.transcription is not None, **options)
    options["seconds"] = checked_seconds(args)
    if args.voice is not None:
        if args.transcription is None:
            raise ValueError("--voice needs --transcription: the words to be spoken")
        options["voice"] = audio.load(args.voice)
    if args.picture is not None:
        options["picture"] = pictures.load(args.picture)
    seeds, changes = check_seeds(args.seed, n), sampling_changes(args)
    with profile.measure("load weights"):
        folder = args.weights or shipped_for(preset)
        pipe = pipeline(folder) or AudioLDM2.from_pretrained(folder)
    for name, senses in (("voice", "speaks"), ("picture", "sees")):
        if name in options and not getattr(pipe, senses, False):  # as no peer does
            raise ValueError(f"these weights take no --{name}: name others")
    read = args.voice is None and args.picture is None
    for caption in args.captions if read else ():
        warn_of_unknown_words(pipe, caption)
    warn_of_many_words(pipe, args.transcription)
    how = pipe.sampling.changed(**changes)
    say(f"seed {seeds[0]}" + f" to {seeds[-1]}" * (n > 1))  # before anything fails
    waves = sounds_of(pipe, args.captions, how, seeds, profile, **options)
    with profile.measure("write"):
        for path, wave in zip(sounds, waves):
            audio.save(path, wave)
        for path, wave, caption in zip(plots, waves, args.captions):
            plot(path, wave, caption)
    length = f"{waves.shape[1] / audio.SAMPLE_RATE:.2f} s"
    for path, seed, caption in zip(sounds, seeds, args.captions):
        # one line each, even for captions with line breaks
        print(f"{path}  {length}  seed {seed}  {' '.join(caption.split())}")
    if args.profile:
        print(f"\n{table(profile)}")


def preset_of(args: argparse.Namespace) -> str:
    """The preset whose weights make the sound; a picture beside what it replaces, or
    candidates of which no caption picks one, raise a sentence.
    """
    if args.picture is None:
        return "tiny" if args.transcription is None else "speech"
    beside = {"CAPTION": args.captions, "--transcription": args.transcription}
    beside |= {"--voice": args.voice, "--candidates": args.candidates != 1}
    for name, given in beside.items():
        if given:
            raise ValueError(f"--picture and {name} do not go together: leave out one")
    return "picture"


def shown_as(args: argparse.Namespace) -> list[str]:
    """A caption, which is not read, for the sound of a picture, or one whose voice is
    told by a recording.
    """
    if args.picture is not None:
        return [f"the picture {args.picture.name}"]
    if args.voice is None:
        said = "describe a sound, or name a recording of a voice with --voice"
        raise ValueError(f"there is no CAPTION: {said}, or a picture with --picture")
    return [f"the voice of {args.voice.name}"]


def sounds_of(
    pipe: AudioLDM2,
    captions: list[str],
    how: Sampling,
    seeds: list[int],
    profile: Profile,
    **options: Any,
) -> Tensor:
    """The sounds (n, N) of the captions, each the same as if it were made alone. They
    are made together, or one by one where the encoders would pad captions to the
    longest.
    """
    import torch

    n, together = len(captions), getattr(pipe.text.tokenizer, "pad_to", 0) > 0
    waves, step = [], n if together else 1
    for i in range(0, n, step):
        told = None if "picture" in options else captions[i : i + step]
        some = told, how
        waves.append(pipe(*some, seed=seeds[i : i + step], **options))
        for stage, seconds in pipe.profile.seconds.items():
            so_far = profile.seconds.get(stage, 0.0)
            profile.seconds[stage] = so_far + seconds
    return torch.cat(waves)


def checked_seconds(args: argparse.Namespace) -> float | None:
    """The length that --seconds gives, or None; an impossible length raises a
    sentence.
    """
    from minilib.arguments import check_seconds

    return None if args.seconds is None else check_seconds(args.seconds)


def sampling_changes(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Sampling` that flags set, None for the others. Impossible values
    raise a sentence before any weights are loaded.
    """
    from minilib.guidance import Sampling

    changes = {name: getattr(args, name, None) for name in SAMPLING}
    Sampling().changed(**changes)
    return changes


def train(args: argparse.Namespace) -> None:
    """Train stages of the pipeline into a folder."""
    out = args.out or Path("runs") / args.preset
    keys = "preset", "data", "steps", "seed", "features", "log_with", "sound_every"
    options = {key: getattr(args, key) for key in keys}
    line = ["minilib", "train", *args.stages, "--out", str(out)]
    for key, value in options.items():
        line += [] if value is None else [flag(key), str(value)]
    line += ["--encoders", *map(str, args.encoders)] if args.encoders else []
    args.stopped = f"stopped; to continue, run: {shlex.join(line)} --resume"
    from minilib.training import RUNS, runs, train_stages
    from minilib.training.processes import is_main

    stages = "all" if args.stages == ["all"] else args.stages
    known = args.preset in RUNS
    if args.encoders and not (known and RUNS[args.preset].encodes):
        raise ValueError(f"--encoders is for full and large, not for {args.preset}")
    if args.encoders:
        names = runs.stage_names(stages, args.preset)
        runs.check_run(names, args.preset, args.steps, args.seed)
        options["shipped"] = gathered_encoders(args.encoders, out)
    elif known and RUNS[args.preset].borrows and not RUNS[args.preset].encodes:
        options["shipped"] = shipped_weights()
    train_stages(stages, out=out, resume=args.resume, **options)
    if is_main():
        print(f"trained: {out}")


def gathered_encoders(sources: list[str], out: Path) -> Path:
    """The folder of the encoders, gathered once by the first process."""
    from minilib.training import encoders
    from minilib.training.processes import meet

    with meet().main_process_first():
        return encoders.gathered(sources, out / "encoders")


def flag(name: str) -> str:
    """The flag for a field of the arguments."""
    return f"--{name.replace('_', '-')}"


def train_peer(args: argparse.Namespace) -> None:
    """Train a peer and write its weights into a folder, whole or not at all."""
    from minilib.peers import check_out, peer

    module = peer(args.name)
    out = args.out or Path("runs", "peers", args.name)
    check_out(out, args.name)
    try_name(out)
    borrows = hasattr(module, "BORROWED")
    parts = {"weights": shipped_weights()} if borrows else {}
    module.train(out, seed=args.seed, steps=args.steps, **parts)
    print(f"trained: {out}")


def reconstruct(args: argparse.Namespace) -> None:
    """Send a recording through VAE, or codec, and vocoder, write the result, and print
    what each of them loses.
    """
    (output,) = output_files("--output", args.output, 1, SOUND_FILES)
    if output.exists() and args.file.exists() and output.samefile(args.file):
        other = f"must not be the recording itself, {str(output)!r}"
        raise ValueError(f"--output {other}")
    from minilib import audio
    from minilib.audioldm2 import AudioLDM2
    from minilib.metrics import reconstruction
    from minilib.peers import coder

    wave = audio.load(args.file)
    folder = args.weights or shipped_weights()
    coded = coder(folder, args.codebooks)
    pipe = coded or AudioLDM2.from_pretrained(folder)
    result = reconstruction(pipe, wave, progress=True)
    audio.save(output, result["wave"])
    print(f"{args.file}  {len(wave) / audio.SAMPLE_RATE:.2f} s")
    if coded:
        print(f"{coded.codebooks} codebooks  {coded.kbit_per_second:.2f} kbit/s")
    print(losses(result, "codec" if coded else "VAE"))
    print(f"written: {output}")


def losses(result: dict[str, Any], first: str = "VAE") -> str:
    """The table of the errors that `metrics.reconstruction` measured; `first` is what
    stands before the vocoder.
    """
    share, rows = result["silent_share"], [("log-mel error (dB)", "sound", "silence")]
    names = {"vae": first, "vocoder": "vocoder", "total": f"{first} and vocoder"}
    for key, name in names.items():
        decibels = result[f"{key}_db"], result[f"{key}_silent_db"]
        rows.append((name, *(f"{x:.2f}" for x in decibels)))
    silence = lambda said: f"{said:>10}" if share > 0 else ""
    lines = [f"{name:20}{sound:>8}{silence(said)}" for name, sound, said in rows]
    if share > 0:
        said = "of the recording is digital silence, which is scored separately"
        lines.append(f"{share:.0%} {said}")
    return "\n".join(lines)


def evaluate(args: argparse.Namespace) -> None:
    """Print how well the sounds follow captions: chance < value < ceiling."""
    output = json_file(args)
    import torch

    from minilib import metrics
    from minilib.data import AudioFolder
    from minilib.folders import load_part

    changes = sampling_changes(args)
    options = {key: getattr(args, key) for key in ("n", "seed", "candidates")}
    metrics.check_asked(args.n, args.seed, args.candidates)
    if args.task != "sounds":
        results = task_results(args, changes)
        write_numbers(output, results)
        print(metrics.TASKS[args.task].report(results))
        return
    if args.data:
        folder = AudioFolder(args.data, part="test")
        pipe, judge, _ = pipeline_and_judge(args, own_judge(args))
        ask = metrics.evaluate_recordings
        given = pipe, judge, folder
    else:
        pipe, judge, _ = pipeline_and_judge(args, shipped_judge())
        options["listener"] = load_part(shipped_listener(), "clap", torch.float32)
        ask, given = metrics.evaluate, (pipe, judge)
    results = ask(*given, pipe.sampling.changed(**changes), **options)
    write_numbers(output, results)
    print(metrics.report(results, recorded=bool(args.data)))


def task_results(args: argparse.Namespace, changes: dict[str, Any]) -> dict[str, float]:
    """What the task of these arguments, one of `metrics.TASKS`, finds."""
    from minilib import metrics
    from minilib.audioldm2 import AudioLDM2

    for name, given in (("data", args.data), ("candidates", args.candidates != 1)):
        if given:
            raise ValueError(f"--task {args.task} takes no --{name}")
    task = metrics.TASKS[args.task]
    judges = task.judges(place_of("judges"))
    pipe = AudioLDM2.from_pretrained(args.weights or shipped_for(task.weights))
    how = pipe.sampling.changed(**changes)
    return task.evaluate(pipe, judges, how, n=args.n, seed=args.seed)


def chain(args: argparse.Namespace) -> None:
    """Print what each link of the chain is worth."""
    output = json_file(args)
    from minilib import chain, metrics

    metrics.check_asked(args.n)
    pipe, judge, folder = pipeline_and_judge(args, shipped_judge())
    untuned = chain.untuned(pipe, folder)
    results = chain.explain(pipe, judge, untuned, n=args.n, seed=args.seed)
    write_numbers(output, results)
    print(chain.report(results))


def own_judge(args: argparse.Namespace) -> Path:
    """The folder of the judge that was trained beside the weights on the user's own
    recordings.
    """
    if not args.weights:
        what = f"the folder of a pipeline that was trained on {args.data}"
        raise ValueError(f"--data needs --weights: {what}")
    path = Path(args.weights) / "judge"
    if not (path / "config.json").is_file():
        how = f"minilib train judge --data {args.data} --out {path.parent}"
        raise FileNotFoundError(f"{path} holds no judge; train one with: {how}")
    return path


def pipeline_and_judge(
    args: argparse.Namespace, judge: Path
) -> tuple[AudioLDM2, Classifier, Path]:
    """The pipeline asked for, a judge, and the folder of the weights."""
    import torch

    from minilib.audioldm2 import AudioLDM2
    from minilib.classifier import Classifier
    from minilib.convert import released

    model = Classifier.from_pretrained(judge, dtype=torch.float32)
    folder = released.fetch(args.weights or shipped_weights())
    pipe = AudioLDM2.from_pretrained(folder)
    return pipe, model.to(pipe.device), folder


def vocabulary(args: argparse.Namespace) -> None:
    """Print the words and classes that the weights know, and a few captions."""
    from minilib.convert import released
    from minilib.folders import read_vocabulary
    from minilib.peers import peer_of

    folder = released.fetch(args.weights or shipped_weights())
    if name := peer_of(folder):
        raise ValueError(f"{folder} holds the peer {name}, which lists no words")
    if released.is_released(folder):
        print("these weights accept any words: ", end="")
        print("their encoders were trained on far more than captions")
        return
    known = read_vocabulary(folder / "vocabulary.json")
    keys = "classes", "words", "captions"
    classes, words, captions = (known.get(key, []) for key in keys)
    if classes:
        print(f"{len(classes)} kinds of sound:\n{in_columns(classes)}\n")
    print(f"{len(words)} words:\n{in_columns(words)}\n")
    some = captions[:: max(1, len(captions) // 6)]
    print("captions such as:\n" + "\n".join(f"  {caption}" for caption in some))


def convert(args: argparse.Namespace) -> None:
    """Read a pipeline and write it in the other layout: diffusers' or minilib's."""
    from minilib.audioldm2 import AudioLDM2
    from minilib.convert import released
    from minilib.files import replacing_folder

    target = args.target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"DST must be a new or empty folder, not {str(target)!r}")
    try_name(target)
    own = False  # whether the source has this package's own layout
    as_stored = {"device": "cpu", "dtype": None}
    if args.source.endswith(".pth"):
        pipe = AudioLDM2.from_original(args.source, like=args.like, **as_stored)
    else:
        source = released.fetch(args.source)
        own = not released.is_released(source)
        pipe = AudioLDM2.from_pretrained(source, **as_stored)
    with replacing_folder(target) as new:
        write = pipe.to_diffusers if own else pipe.save_pretrained
        write(new)
    kind = "diffusers" if own else "minilib"
    print(f"{target}: a folder of {kind}, from {args.source}")


def push(args: argparse.Namespace) -> None:
    """Send a pipeline to the hub, or only write its card."""
    from minilib import hub

    given = args.folder, args.name, args.licence
    if args.card_only:
        print(f"written: {hub.write_card(*given)}")
        return
    print(f"pushed: {hub.push(*given, private=args.private)}")


def info(args: argparse.Namespace) -> None:
    """Print what the parts of a pipeline hold, and what making a sound costs."""
    output = json_file(args)
    from dataclasses import asdict

    from minilib import costs
    from minilib.audioldm2 import AudioLDM2
    from minilib.guidance import Sampling
    from minilib.unet import UNet

    if args.train:
        for name in ("seconds", "steps"):
            if getattr(args, name) is not None:
                raise ValueError(f"--train takes no --{name}: a preset has its own")
        info_of_training(args.pipeline, output)
        return
    changes, asked = sampling_changes(args), checked_seconds(args)
    if args.pipeline in UNet.presets:
        folder, how, parts = None, Sampling(), costs.preset_parts(args.pipeline)
        seconds = 2.56 if args.pipeline == "tiny" else 10.24
    else:
        folder = folder_beside_presets(args.pipeline, tuple(UNet.presets))
        pipe = AudioLDM2.from_pretrained(folder, device="cpu", dtype=None)
        how, parts, seconds = pipe.sampling, pipe.models, pipe.seconds
    how, seconds = how.changed(**changes), asked or seconds
    rows = costs.sizes(parts, folder)
    flops = costs.operations(parts, seconds, how)
    numbers = {"parts": [asdict(row) for row in rows], "flops": flops}
    write_numbers(output, {**numbers, "seconds": seconds, "steps": how.steps})
    print(costs.report(rows, flops, seconds, how))


def info_of_training(preset: str | None, output: Path | None) -> None:
    """Print what training a preset takes."""
    from dataclasses import asdict

    from minilib.training import costs

    rows = costs.training(preset)
    write_numbers(output, {"stages": [asdict(row) for row in rows]})
    print(costs.report(rows))


def folder_beside_presets(given: str | None, presets: tuple[str, ...]) -> Path:
    """The folder of weights that `info` is asked about; the error for a missing one
    also names the presets.
    """
    from minilib.convert import released

    try:
        return released.fetch(given or shipped_weights())
    except FileNotFoundError as error:
        if given is None:
            raise
        known = f"nor is it one of the presets {', '.join(presets)}"
        raise FileNotFoundError(f"{error}; {known}") from error


def doctor(args: argparse.Namespace) -> int:
    """Print one line for each thing that minilib needs, and how to fix what is wrong;
    return 1 if minilib can't work.
    """
    from minilib.doctor import examine

    sound, weights = True, Path(args.weights or place_of("tiny"))
    for name, check in examine(weights):
        # print the name before the check: importing a broken library may end the
        # process
        print(f"{name:13}", end="", flush=True)
        found = check()
        print(found.found)
        if found.wrong:
            print(f"{'':13}{'warning' if found.works else 'WRONG'}: {found.wrong}")
        sound = sound and found.works
    return 0 if sound else 1


def data(args: argparse.Namespace) -> int:
    """Print what a folder of recordings holds, and every fault in it; return 1 if
    there are any. Or list real data sets, or get one.
    """
    from minilib import sets, streams
    from minilib.data import AudioFolder
    from minilib.training.runs import long_captions

    if args.action != "get" and args.out is not None:
        raise ValueError(f"{args.action} takes no --out: it writes nothing")
    if args.action == "list":
        if args.folder is not None:
            raise ValueError(f"list takes no name: leave out {str(args.folder)!r}")
        print(sets.listing())
        return 0
    if args.folder is None:
        what = {"check": "the folder to check", "get": "the name of a data set"}
        raise ValueError(f"{args.action} needs {what[args.action]}")
    if args.action == "get":
        name = str(args.folder)
        if name in sets.SETS:
            print(f"{name}: licence {sets.SETS[name].licence}", flush=True)
        out = sets.get(name, args.out, sys.stderr.isatty())
        print(f"{out}: train on it with: minilib train all --data {out}")
        return 0
    if streams.is_stream(args.folder):
        shown = sys.stderr.isatty()
        stream = streams.open_stream(args.folder, 1.0, progress=shown, workers=0)
        told = stream.faults(progress=shown)
        print(told.report(stream))
        return 1 if told.faults else 0
    folder = AudioFolder(args.folder, strict=False)
    found = folder.examine(progress=sys.stderr.isatty())
    found.faults += long_captions(folder)
    print(found.report())
    return 1 if found.faults else 0


# --------------------------------------------------------------------------------------
# Shared functions


def shipped_weights() -> Path:
    """The folder of the weights that come with the repository."""
    how = "name a folder with --weights, or train weights with: minilib train all"
    if Path("runs", "tiny", "pipeline.json").is_file():
        return shipped("tiny", "use the ones you trained: --weights runs/tiny")
    return shipped("tiny", f"{how} --out data/weights/tiny")


def shipped_for(preset: str) -> Path:
    """The folder of the weights that ship for a preset: tiny, speech or picture."""
    if preset == "tiny":
        return shipped_weights()
    own = f"name the course's data/weights/{preset}, or another folder, with --weights"
    how = f"{own}, or train weights with: minilib train all"
    return shipped(preset, f"{how} --preset {preset} --out data/weights/{preset}")


def shipped_listener() -> Path:
    """The folder of the separately trained CLAP and its tokenizer."""
    how = "train one with: minilib train clap --seed 1 --out data/weights/judges"
    return shipped("judges/clap", how).parent


def shipped_judge() -> Path:
    """The folder of the judge that comes with the repository."""
    how = "train one with: minilib train judge --out data/weights/judges"
    return shipped("judges/judge", how)


def shipped(name: str, remedy: str) -> Path:
    """A folder in data/weights; a missing one raises a sentence on what to do."""
    folder = place_of(name)
    if not folder.is_dir():
        missing = f"the weights that ship are not here ({folder} is missing)"
        raise FileNotFoundError(f"{missing}: {remedy}")
    return folder


def place_of(name: str) -> Path:
    """Where a folder of data/weights is: in the checkout that contains this module,
    beside an installed copy, in the checkout from which that was installed, or where
    the command runs, since `train` may have put it there.
    """
    places = [DATA, *beside(), *origin(), Path("data")]
    folders = [data / "weights" / name for data in places]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def beside() -> list[Path]:
    """The folder of the weights that pip installed with a copy of this package."""
    from importlib import metadata

    try:
        files = metadata.distribution("minilib").files or []
    except metadata.PackageNotFoundError:
        return []
    wanted = "share/minilib/weights/*/pipeline.json"
    found = [Path(file.locate()).resolve() for file in files if file.match(wanted)]
    return [path.parents[2] for path in found[:1]]


def origin() -> list[Path]:
    """The `data` folder of the checkout from which a copy of this package was
    installed, if pip recorded one.
    """
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        note = metadata.distribution("minilib").read_text("direct_url.json")
        found = json.loads(note or "{}")
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return []
    address = urlsplit(found.get("url", ""))
    own = found.get("dir_info", {}).get("editable")  # not a copy: DATA is there
    is_folder = address.scheme == "file" and not own
    return [Path(url2pathname(address.path)) / "data"] if is_folder else []


def json_file(args: argparse.Namespace) -> Path | None:
    """The file that --json names, checked; None if it names none."""
    numbers = args.json and output_files("--json", args.json, 1, (".json",))
    return numbers[0] if numbers else None


def write_numbers(path: Path | None, numbers: dict[str, Any]) -> None:
    """Write numbers as JSON, whole or not at all, if a file was asked for."""
    from minilib.files import replacing

    if path:
        with replacing(path) as part:
            part.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def output_files(flag: str, path: Path, n: int, suffixes: Sequence[str]) -> list[Path]:
    """The n files that a flag names: `name-1.wav`, `name-2.wav`, ... if there are
    several. They are checked before anything is made.
    """
    if path.suffix.lower() not in suffixes:
        known = " or ".join(suffixes)
        raise ValueError(f"{flag} must end in {known}, not {str(path)!r}")
    if not path.parent.is_dir():
        missing = f"there is no folder {str(path.parent)!r}"
        raise FileNotFoundError(f"the output {str(path)!r} can't be written: {missing}")
    numbered = [path.with_stem(f"{path.stem}-{i + 1}") for i in range(n)]
    paths = numbered if n > 1 else [path]
    for file in paths:
        try_name(file)
        if file.is_dir():
            taken = f"the output {str(file)!r} can't be written: it is a folder"
            raise ValueError(taken)
    return paths


def try_name(path: Path) -> None:
    """Raise a sentence if the disk refuses a file or folder of this name. It tries the
    disk itself, since permissions say too little.
    """
    try:
        beside = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryDirectory(prefix=".", dir=beside) as folder:
            (Path(folder) / path.name).touch()
    except OSError as error:
        refused = f"the output {str(path)!r} can't be written"
        raise ValueError(f"{refused}: {error.strerror}") from error


def warn_of_unknown_words(pipe: AudioLDM2, caption: str) -> None:
    """Say which words of a caption the weights don't know, and which captions near it
    they do know.
    """
    unknown = pipe.unknown_words(caption)
    if not unknown:
        return
    said = f"these weights don't know {', '.join(map(quoted, unknown))}"
    if hasattr(pipe, "clap"):  # which compares captions
        from minilib.metrics import nearest_captions  # this import takes a second

        near = " or ".join(map(quoted, nearest_captions(pipe, caption)))
        said = f"{said}; the nearest they know: {near}"
    print(f"minilib: {said}", file=sys.stderr)


def warn_of_many_words(pipe: AudioLDM2, transcription: str | None) -> None:
    """Say so if more words are to be spoken than in any clip of the training."""
    n = len((transcription or "").split())
    most = getattr(pipe, "vocabulary", {}).get("spoken")  # which no peer has
    if most and n > most:
        words = f"{most} word{'s' * (most > 1)}"
        learned = f"these weights learned to say {words} at a time"
        said = f"of {quoted(transcription)} not all words will be heard"
        print(f"minilib: {learned}; {said}", file=sys.stderr)


def quoted(text: str) -> str:
    """A text in quotation marks."""
    return f'"{text}"'


def plot(path: Path, wave: Tensor, caption: str) -> None:
    """Draw the mel spectrogram of a wave (N,) as a PNG, whole or not at all."""
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
    """The seconds of each stage, and their sum."""
    rows = [*profile.seconds.items(), ("total", sum(profile.seconds.values()))]
    lines = [f"{stage:14}{seconds:11.3f}" for stage, seconds in rows]
    return "\n".join(["stage             seconds", *lines])


def in_columns(words: Sequence[str]) -> str:
    """Words in columns, read downwards, as wide as the terminal."""
    width = 2 + max(map(len, words), default=0)
    n_columns = max(1, (min(shutil.get_terminal_size().columns, 100) - 2) // width)
    n_rows = -(-len(words) // n_columns)
    rows = (words[row::n_rows] for row in range(n_rows))
    lines = ("".join(f"{word:{width}}" for word in row) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)
