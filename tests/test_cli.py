"""The command line: what each command writes and prints, and that what is wrong is told
in one sentence.
"""

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from minilib import audio, cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder in which the commands are run."""
    (folder := tmp_path / "here").mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def weights(tiny_pipe_folder, tmp_path, monkeypatch) -> Path:
    """A copy of the small pipeline in the place of the weights that ship."""
    monkeypatch.setattr(cli, "DATA", tmp_path / "data")
    return Path(
        shutil.copytree(tiny_pipe_folder, tmp_path / "data" / "weights" / "tiny")
    )


@pytest.fixture
def recording(tmp_path) -> Path:
    wave = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    audio.save(tmp_path / "recording.wav", torch.cat([wave, torch.zeros(4000)]))
    return tmp_path / "recording.wav"


def run(capsys, *argv) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command; the bars left out."""
    try:
        code = cli.main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    said = [
        line
        for line in re.split(r"[\r\n]+", err)
        if line.strip() and not re.search(r"\d%\|", line)
    ]
    return code, out, "\n".join(said)


def refused(capsys, *argv) -> str:
    """The one sentence with which a command is refused; asserts that there is no other,
    and that nothing is written.
    """
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = run(capsys, *argv)
    assert code == 2 and out == "", (code, out, err)
    assert err.startswith("minilib") and "\n" not in err and "Traceback" not in err
    assert sorted(Path.cwd().rglob("*")) == before
    return err


# --------------------------------------------------------------------------------------
# What the commands do


def test_help_is_quick_and_names_every_command():
    code = "import sys; from minilib.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert all(
        name in done.stdout
        for name in (
            "generate",
            "train",
            "reconstruct",
            "evaluate",
            "chain",
            "vocabulary",
            "doctor",
        )
    )
    assert "'minilib'" in done.stdout and not {"'torch'", "'numpy'"} & set(
        re.findall(r"'\w+'", done.stdout)
    )


@pytest.mark.parametrize(
    "name",
    ["generate", "train", "reconstruct", "evaluate", "chain", "vocabulary", "doctor"],
)
def test_the_help_of_a_command_has_examples_that_it_understands(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    examples = re.findall(
        r"^  minilib (.*?)(?:   .*)?$", out.split("examples:")[1], re.M
    )
    assert (
        code == 0 and examples and any(example.startswith(name) for example in examples)
    )
    for example in examples:
        assert callable(cli.build_parser().parse_args(shlex.split(example)).run)


def test_python_m_minilib_is_the_command_line_and_tells_no_traceback(here):
    done = subprocess.run(
        [sys.executable, "-m", "minilib", "generate", " ", "-o", "x.wav"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert (
        done.returncode == 2
        and done.stderr
        == "minilib: a caption is empty: describe the sound in a few words\n"
    )
    assert list(here.iterdir()) == []


def test_generate_writes_a_sound_and_says_its_seed(capsys, here, weights):
    code, out, err = run(capsys, "generate", "a dog barks", "--steps", "2")
    assert code == 0 and err == ""
    assert audio.load(here / "sound.wav").shape == (10240,)
    assert out.startswith("sound.wav  0.64 s  a dog barks\nseed ")
    seed = out.split()[-1]
    first = (here / "sound.wav").read_bytes()
    run(
        capsys,
        "generate",
        "a dog barks",
        "--steps",
        "2",
        "--seed",
        seed,
        "-o",
        "again.wav",
    )
    assert (here / "again.wav").read_bytes() == first
    run(capsys, "generate", "a dog barks", "--steps", "2")
    assert (here / "sound.wav").read_bytes() != first  # drawn anew


def test_generate_numbers_the_sounds_and_plots_of_several_captions(
    capsys, here, weights
):
    captions = ["a bell rings", r"rain for $5\q or $6"]
    options = [
        "-o",
        "a.b.flac",
        "--plot",
        "a.png",
        "--steps",
        "1",
        "--seed",
        "1",
        "--seconds",
        "0.5",
    ]
    code, out, _ = run(capsys, "generate", *captions, *options)
    assert code == 0
    assert sorted(path.name for path in here.iterdir()) == [
        "a-1.png",
        "a-2.png",
        "a.b-1.flac",
        "a.b-2.flac",
    ]
    assert all(
        (here / f"a-{i}.png").read_bytes().startswith(b"\x89PNG") for i in (1, 2)
    )
    assert audio.load(here / "a.b-2.flac").shape == (8000,)
    assert "a.b-1.flac  0.50 s  a bell rings" in out and out.endswith("seed 1\n")


def test_generate_tries_unknown_words_and_names_what_is_near(capsys, here, weights):
    code, out, err = run(capsys, "generate", "a dragon barks", "--steps", "1")
    assert code == 0 and (here / "sound.wav").is_file()
    assert err.startswith(
        'minilib: these weights don\'t know "dragon"; near that they know: "a dog '
        'barks" or '
    )
    assert "\n" not in err


def test_generate_profiles_every_stage(capsys, here, weights):
    options = ["--steps", "1", "--candidates", "2", "--profile"]
    code, out, _ = run(capsys, "generate", "a dog barks", *options)
    rows = [line.split() for line in out.split("\n\n")[1].splitlines()]
    stages = [
        "imports",
        "load weights",
        "encode",
        "loa",
        "sample",
        "decode",
        "rank",
        "write",
        "total",
    ]
    assert code == 0 and [" ".join(row[:-1]) for row in rows[1:]] == stages
    seconds = [float(row[-1]) for row in rows[1:]]
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.01)


def test_generate_takes_weights_from_a_folder_and_options_from_the_line(
    capsys, here, weights, monkeypatch
):
    from minilib.audioldm2 import AudioLDM2

    taken = {}
    monkeypatch.setattr(cli, "DATA", here)  # no weights ship here
    monkeypatch.setattr(
        AudioLDM2,
        "__call__",
        lambda self, captions, **given: taken.update(given) or torch.zeros(1, 1600),
    )
    line = "--steps 7 --sampler dpm --guidance 2 --seconds 1.5 --seed 4 --candidates 3 --transcription yes"
    line += " --temperature 0.5 --guidance-interval 300 900"
    assert (
        run(capsys, "generate", "a dog barks", "--weights", weights, *line.split())[0]
        == 0
    )
    numbers = {
        "steps": 7,
        "guidance": 2.0,
        "temperature": 0.5,
        "seconds": 1.5,
        "seed": 4,
        "candidates": 3,
    }
    words = {"sampler": "dpm", "transcription": "yes"}
    assert taken == {**numbers, **words, "guidance_interval": [300, 900]}


def test_an_interrupted_command_says_so_and_leaves_nothing(
    capsys, here, weights, monkeypatch
):
    from minilib.audioldm2 import AudioLDM2

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioLDM2, "sample", interrupt)
    code, out, err = run(capsys, "generate", "a dog barks")
    assert code == 130 and out == "" and err == "minilib: stopped; nothing was written"
    assert list(here.iterdir()) == []


def test_reconstruct_writes_what_comes_back_and_scores_silence_apart(
    capsys, here, weights, recording
):
    code, out, err = run(capsys, "reconstruct", recording, "-o", "back.wav")
    assert code == 0 and err == ""
    assert audio.load(here / "back.wav").shape == audio.load(recording).shape
    lines = out.splitlines()
    assert lines[0] == f"{recording}  0.75 s" and lines[1].split()[-2:] == [
        "sound",
        "silence",
    ]
    assert [line.rsplit(None, 2)[0] for line in lines[2:5]] == [
        "VAE",
        "vocoder",
        "VAE and vocoder",
    ]
    assert re.fullmatch(
        r"\d+% of the recording is digital silence, scored apart", lines[5]
    )


def test_reconstruct_takes_what_soundfile_reads(capsys, here, weights):
    soundfile.write(here / "stereo.ogg", 0.1 * torch.randn(4410, 2).numpy(), 44100)
    code, out, _ = run(capsys, "reconstruct", "stereo.ogg", "-o", "back.ogg")
    assert code == 0 and "silence" not in out
    assert audio.load(here / "back.ogg").shape == (1600,)


def a_judge_and_a_listener(weights: Path) -> None:
    """Ship an untrained judge, and the CLAP of these weights in place of one trained
    apart.
    """
    from minilib.classifier import Classifier

    judges = cli.DATA / "weights" / "judges"
    Classifier.preset("tiny").save_pretrained(judges / "judge", dtype=torch.float16)
    shutil.copytree(weights / "clap", judges / "clap")
    shutil.copy(weights / "tokenizer.json", judges)


def test_evaluate_prints_the_table_and_writes_the_numbers(capsys, here, weights):
    a_judge_and_a_listener(weights)
    line = "--n 2 --steps 1 --seed 3 --guidance 1 --candidates 2"
    code, out, _ = run(capsys, "evaluate", *line.split(), "--json", "numbers.json")
    numbers = json.loads((here / "numbers.json").read_text())
    said = "2 times each question of held-out scenes; 1 steps, guidance 1, temperature 1, seed 3"
    assert code == 0 and out.startswith(said + ", the best of 2 candidates each\n")
    assert numbers["candidates"] == 2 and numbers["guidance.high"] == 1000
    assert all(isinstance(value, int | float) for value in numbers.values())
    assert f"{numbers['single.class']:.3f}" in out
    assert {
        "n",
        "pair.both",
        "pitch",
        "control.loudness",
        "frechet",
        "ceiling.single.class",
    } <= set(numbers)


def test_vocabulary_lists_words_classes_and_captions(capsys, weights, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run(capsys, "vocabulary")
    known = json.loads((weights / "vocabulary.json").read_text())
    assert code == 0 and set(known["words"]) | set(known["classes"]) <= set(out.split())
    assert known["captions"][0] in out and max(map(len, out.splitlines())) <= 40
    assert f"{len(known['classes'])} kinds of sound" in out


@pytest.mark.parametrize(
    "words", [[], ["a"], ["a", "bb", "ccc", "d", "e"], ["x" * 200, "y"]]
)
def test_columns_hold_every_word_once(words):
    assert sorted(cli.in_columns(words).split()) == sorted(words)


def test_train_hands_on_what_is_asked(capsys, here, monkeypatch):
    from minilib import training

    taken = []
    monkeypatch.setattr(
        training,
        "train_stages",
        lambda stages, **given: taken.append((stages, given)) or given["out"],
    )
    default = {
        "preset": "tiny",
        "out": Path("runs/tiny"),
        "data": None,
        "steps": None,
        "resume": False,
        "seed": 0,
    }
    assert run(capsys, "train", "all") == (0, "trained: runs/tiny\n", "")
    line = "vae vocoder --preset colab --data D --steps 3 --out O --resume --seed 5"
    assert run(capsys, "train", *line.split())[0] == 0
    given = {
        "preset": "colab",
        "out": Path("O"),
        "data": Path("D"),
        "steps": 3,
        "resume": True,
        "seed": 5,
    }
    assert taken == [("all", default), (["vae", "vocoder"], given)]


def test_an_interrupted_training_says_how_to_go_on(capsys, here, monkeypatch):
    from minilib import training

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_stages", interrupt)
    code, _, err = run(
        capsys, "train", "vae", "gpt", "--data", "my sounds", "--steps", "9"
    )
    assert code == 130
    go_on = "minilib train vae gpt --out runs/tiny --preset tiny --data 'my sounds' --steps 9 --seed 0 --resume"
    assert err == f"minilib: stopped; go on with: {go_on}"


def test_the_help_of_train_names_the_stages_that_there_are(capsys):
    from minilib.training import ALL_STAGES, STAGES
    from minilib.training.stages import APART

    assert cli.STAGES == ALL_STAGES and set(STAGES) == {*cli.STAGES, *APART}
    help_text = " ".join(run(capsys, "train", "--help")[1].split())
    assert all(name in help_text for name in STAGES)


# --------------------------------------------------------------------------------------
# Bad input: one sentence, exit code 2, nothing written


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([""], "a caption is empty"),
        (["a dog barks", "  "], "a caption is empty"),
        (["zq" * 200], "tokens, but at most 64 are read"),
        (
            ["a dog barks", "--steps", "0"],
            "steps must be a whole number from 1 to 1000, not 0",
        ),
        (
            ["a dog barks", "--steps", "1.5"],
            "argument --steps: invalid int value: '1.5'",
        ),
        (
            ["a dog barks", "--guidance", "nan"],
            "guidance must be a finite number, 0 or more, not nan",
        ),
        (
            ["a dog barks", "--guidance", "-1"],
            "guidance must be a finite number, 0 or more, not -1",
        ),
        (
            ["a dog barks", "--temperature", "2"],
            "temperature must lie above 0, and be at most 1, not 2",
        ),
        (
            ["a dog barks", "--guidance-interval", "5", "4"],
            "guidance_interval must be two noise levels from 0 to",
        ),
        (
            ["a dog barks", "--seconds", "0"],
            "seconds must lie between 0.1 and 60, not 0",
        ),
        (
            ["a dog barks", "--seconds", "10000"],
            "seconds must lie between 0.1 and 60, not 10000",
        ),
        (
            ["a dog barks", "--seconds", "inf"],
            "seconds must lie between 0.1 and 60, not inf",
        ),
        (
            ["a dog barks", "--candidates", "0"],
            "candidates must be a whole number from 1 to 64, not 0",
        ),
        (
            ["a dog barks", "--seed", "-1"],
            "argument --seed: must be a whole number from 0 to",
        ),
        (
            ["a dog barks", "--seed", "9" * 30],
            "argument --seed: must be a whole number from 0 to",
        ),
        (
            ["a dog barks", "-o", "sound.xyz"],
            "the output must end in .wav or .flac or .ogg or .mp3, not 'sound.xyz'",
        ),
        (["a dog barks", "-o", "sound"], "the output must end in"),
        (["a dog barks", "-o", "nowhere/sound.wav"], "there is no folder 'nowhere'"),
        (
            ["a dog barks", "--plot", "picture.gif"],
            "the output must end in .png, not 'picture.gif'",
        ),
        (
            ["a dog barks", "--plot", "nowhere/picture.png"],
            "there is no folder 'nowhere'",
        ),
        (["a dog barks", "--colour", "red"], "unrecognized arguments: --colour red"),
        ([], "the following arguments are required: CAPTION"),
    ],
)
def test_generate_refuses(capsys, here, weights, line, said):
    assert said in refused(capsys, "generate", *line)


def test_an_output_that_can_not_be_written_is_refused_before_anything_is_generated(
    capsys, here, weights, monkeypatch
):
    from minilib.audioldm2 import AudioLDM2

    monkeypatch.setattr(
        AudioLDM2, "from_pretrained", lambda *args: pytest.fail("weights were loaded")
    )
    (here / "folder.wav").mkdir()
    (here / "file").touch()
    for output, said in (
        ("folder.wav", "it is a folder"),
        ("file/sound.wav", "there is no folder 'file'"),
    ):
        assert said in refused(capsys, "generate", "a dog barks", "-o", output)
        assert said in refused(capsys, "reconstruct", "whatever.wav", "-o", output)

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", read_only)
    assert "'sound.wav' can't be written: Read-only file system" in refused(
        capsys, "generate", "a dog barks"
    )


def test_every_suffix_that_the_command_line_takes_can_be_saved(tmp_path):
    for suffix in cli.SOUND_FILES:
        audio.save(tmp_path / f"sound{suffix}", torch.zeros(1600))
    with pytest.raises(ValueError, match=re.escape(", ".join(cli.SOUND_FILES[:-1]))):
        audio.save(tmp_path / "sound.aiff", torch.zeros(1600))


def write_float_wav(path: Path, samples: list[float]) -> None:
    soundfile.write(path, torch.tensor(samples).numpy(), 16000, subtype="FLOAT")


def truncated(path: Path) -> None:
    audio.save(path, 0.1 * torch.randn(8000))
    path.write_bytes(path.read_bytes()[:4000])


def without_samples(path: Path) -> None:
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        16000,
        32000,
        2,
        16,
        b"data",
        0,
    )
    path.write_bytes(header)


BAD_RECORDINGS = {
    "missing": (lambda path: None, "there is no"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.touch(), "is empty (0 bytes)"),
    "truncated": (truncated, "is cut off"),
    "non-audio": (
        lambda path: path.write_text("not a sound " * 50),
        "is not audio, or damaged",
    ),
    "NaN": (
        lambda path: write_float_wav(path, [0.0, float("nan"), 0.1]),
        "holds NaN or infinity",
    ),
    "0 samples": (without_samples, "holds 0 samples"),
}


@pytest.mark.parametrize("kind", BAD_RECORDINGS)
def test_reconstruct_refuses_a_bad_recording(capsys, here, weights, tmp_path, kind):
    make, said = BAD_RECORDINGS[kind]
    make(tmp_path / "bad.wav")
    assert said in refused(
        capsys, "reconstruct", tmp_path / "bad.wav", "-o", "back.wav"
    )


def test_reconstruct_does_not_write_over_the_recording(
    capsys, here, weights, recording
):
    shutil.copy(recording, here / "mine.wav")
    before = (here / "mine.wav").read_bytes()
    said = refused(capsys, "reconstruct", "mine.wav", "-o", here / "mine.wav")
    assert "must be another file than the recording" in said
    assert (here / "mine.wav").read_bytes() == before


def half_copied(weights: Path) -> None:
    path = weights / "vae" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def of_another_config(weights: Path) -> None:
    path = weights / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 8}))


def pickled(weights: Path) -> None:
    (weights / "vae" / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, weights / "vae" / "pytorch_model.bin")


BAD_WEIGHTS = {
    "missing": (lambda folder: shutil.rmtree(folder), "does not exist"),
    "empty": (
        lambda folder: [shutil.rmtree(folder), folder.mkdir()],
        "pipeline.json is missing",
    ),
    "half-copied part": (half_copied, "is damaged or half-copied"),
    "half-copied folder": (
        lambda folder: shutil.rmtree(folder / "unet"),
        "the weights folder is not complete",
    ),
    "of another config": (of_another_config, "are not those of its config"),
    "a pickle": (pickled, "is a pickle, which is never loaded"),
    "a file": (
        lambda folder: [shutil.rmtree(folder), folder.touch()],
        "is a file, not a folder",
    ),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_refused(capsys, here, weights, recording, kind):
    harm, said = BAD_WEIGHTS[kind]
    harm(weights)
    assert said in refused(capsys, "generate", "a dog barks", "--weights", weights)
    assert said in refused(capsys, "reconstruct", recording, "--weights", weights)


def test_weights_that_do_not_ship_are_refused_with_what_to_do(
    capsys, here, recording, monkeypatch
):
    monkeypatch.setattr(cli, "DATA", here / "data")
    for line in (
        ["generate", "a dog barks"],
        ["reconstruct", recording],
        ["vocabulary"],
    ):
        said = refused(capsys, *line)
        assert (
            "give a folder with --weights, or train some with: minilib train all"
            in said
        )
    assert "minilib train judge --out data/weights/judges" in refused(
        capsys, "evaluate"
    )


def test_evaluate_and_vocabulary_refuse(capsys, here, weights, tmp_path):
    assert "vocabulary.json is missing" in refused(
        capsys, "vocabulary", "--weights", here
    )
    assert "the output must end in .json" in refused(
        capsys, "evaluate", "--json", "numbers.txt"
    )
    from minilib.classifier import Classifier

    Classifier.preset("tiny").save_pretrained(cli.DATA / "weights/judges/judge")
    assert "minilib train clap --seed 1 --out data/weights/judges" in refused(
        capsys, "evaluate"
    )
    shutil.rmtree(cli.DATA / "weights/judges")
    a_judge_and_a_listener(weights)
    for line, said in (
        (["--n", "1"], "n must be a whole number, 2 or more"),
        (["--steps", "0"], "steps must be"),
    ):
        assert said in refused(capsys, "evaluate", *line)


def a_data_folder(folder: Path, table: str, *sounds: str) -> Path:
    folder.mkdir()
    (folder / "metadata.csv").write_text(table)
    for name in sounds:
        audio.save(folder / name, 0.1 * torch.ones(16000).cumsum(0).sin())
    return folder


def test_train_refuses_unknown_stages_presets_and_numbers(capsys, here):
    said = refused(capsys, "train", "vea")
    assert (
        "stage must be all or one of vae, vocoder, audiomae, clap, text, gpt, ldm, "
        "joint, adversarial"
        in said
        and "'vea'" in said
    )
    assert "stage must be all" in refused(capsys, "train", "vae", "all")
    assert "preset must be one of tiny, colab" in refused(
        capsys, "train", "vae", "--preset", "huge"
    )
    assert "steps must be 1 or more, not 0" in refused(
        capsys, "train", "vae", "--steps", "0"
    )


def test_train_refuses_a_stage_whose_parts_are_not_there(capsys, here):
    said = refused(capsys, "train", "gpt")
    assert (
        "stage gpt needs audiomae, which is not in runs/tiny: train stage audiomae "
        "there first" in said
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file_name,title\na.wav,A\n", "has no column 'caption'"),
        (
            "file_name,caption\na.wav,\n",
            "has 1 rows without a caption, the first for 'a.wav'",
        ),
        (
            "file_name,caption\na.wav,x\nb.wav,y\nc.wav,z\n",
            "2 of 3 rows name files that are missing, the first 'b.wav'",
        ),
        ("file_name,caption\n", "has no rows"),
    ],
)
def test_train_refuses_data_without_captions_or_files(
    capsys, here, tmp_path, table, said
):
    folder = a_data_folder(tmp_path / "recordings", table, "a.wav")
    assert said in refused(capsys, "train", "vae", "--data", folder, "--out", "new")


def test_train_refuses_a_data_folder_that_is_none(capsys, here, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no metadata.csv" in refused(
        capsys, "train", "vae", "--data", tmp_path / "empty"
    )
    assert "there is no folder" in refused(
        capsys, "train", "vae", "--data", tmp_path / "nowhere"
    )


def test_the_systems_own_errors_are_told_without_their_numbers():
    assert (
        cli.sentence(OSError(13, "Permission denied", "runs"))
        == "runs: Permission denied"
    )
    assert (
        cli.sentence(OSError(28, "No space left on device"))
        == "No space left on device"
    )
    assert cli.sentence(ValueError("two\n  lines")) == "two lines"
    assert cli.sentence(ValueError()) == "ValueError"
