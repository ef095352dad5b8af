"""The command line: what each command writes and prints, and that what is wrong is told
in one sentence.
"""

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import tomllib
import torch

from minilib import audio, cli
from minilib.guidance import Sampling

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


COMMANDS = ["generate", "train", "reconstruct", "evaluate", "chain", "vocabulary"]
COMMANDS += ["convert", "push", "info", "data", "doctor", "train-peer"]


def python(*line: str, **environment: str) -> subprocess.CompletedProcess:
    said = {"capture_output": True, "text": True, "env": environment or None}
    return subprocess.run([sys.executable, *line], **said)


def test_help_is_quick_and_names_every_command():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from minilib.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print(set(sys.modules))"
    told = python("-c", code).stdout
    assert all(name in told for name in COMMANDS)
    loaded = set(re.findall(r"'\w+'", told))
    assert "'minilib'" in loaded and not {"'torch'", "'numpy'"} & loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_that_it_understands(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    shown = out.split("examples:")[1]
    examples = re.findall(r"^  minilib (.*?)(?:   .*)?$", shown, re.M)
    assert code == 0 and any(example.startswith(name) for example in examples)
    for example in examples:
        assert callable(cli.build_parser().parse_args(shlex.split(example)).run)
    assert max(map(len, shown.splitlines())) <= 80  # as wide as a terminal


def test_python_m_minilib_is_the_command_line_and_tells_no_traceback(here):
    line = ["-m", "minilib", "generate", "a dog barks", "-o", "x.xyz"]
    done = python(*line, PYTHONPATH=str(ROOT), PATH="")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("minilib: --output must end in .wav")
    assert done.stderr.count("\n") == 1 and list(here.iterdir()) == []


def test_generate_writes_a_sound_and_says_its_seed(capsys, here, weights):
    line = ["generate", "a dog barks", "--steps", "2"]
    code, out, err = run(capsys, *line)
    assert code == 0 and err == ""
    assert audio.load(here / "sound.wav").shape == (10240,)
    seed = out.split()[1]
    assert out == f"seed {seed}\nsound.wav  0.64 s  seed {seed}  a dog barks\n"
    first = (here / "sound.wav").read_bytes()
    run(capsys, *line, "--seed", seed, "-o", "again.wav")
    assert (here / "again.wav").read_bytes() == first
    run(capsys, *line)
    assert (here / "sound.wav").read_bytes() != first  # drawn anew


def test_generate_numbers_the_sounds_and_plots_of_several_captions(
    capsys, here, weights
):
    captions = ["a bell rings", r"rain for $5\q or $6"]
    options = "-o a.b.flac --plot a.png --steps 1 --seed 1 --seconds 0.5".split()
    code, out, _ = run(capsys, "generate", *captions, *options)
    written = sorted(path.name for path in here.iterdir())
    assert code == 0 and written == "a-1.png a-2.png a.b-1.flac a.b-2.flac".split()
    for i in (1, 2):
        assert (here / f"a-{i}.png").read_bytes().startswith(b"\x89PNG")
    assert audio.load(here / "a.b-2.flac").shape == (8000,)
    assert out.splitlines() == [
        "seed 1 to 2",
        "a.b-1.flac  0.50 s  seed 1  a bell rings",
        f"a.b-2.flac  0.50 s  seed 2  {captions[1]}",
    ]
    alone = ["-o", "alone.flac", "--steps", "1", "--seed", "2", "--seconds", "0.5"]
    run(capsys, "generate", captions[1], *alone)
    again = audio.load(here / "alone.flac") - audio.load(here / "a.b-2.flac")
    assert again.abs().max() < 1e-4


def test_where_the_longest_caption_pads_the_others_each_is_made_by_itself(
    tiny_pipe, monkeypatch
):
    from minilib.audioldm2 import AudioLDM2, Profile

    made = []

    def silence(pipe, captions, how, **given):
        made.append((captions, given["seed"]))
        pipe.profile = Profile({"sample": 1.0})
        return torch.zeros(len(captions), 1600)

    monkeypatch.setattr(AudioLDM2, "__call__", silence)
    profile = Profile()
    given = ["a", "b"], Sampling(), [3, 4], profile
    assert cli.sounds_of(tiny_pipe, *given).shape == (2, 1600)
    monkeypatch.setattr(tiny_pipe.text.tokenizer, "pad_to", 0)
    assert cli.sounds_of(tiny_pipe, *given).shape == (2, 1600)
    assert made == [(["a", "b"], [3, 4]), (["a"], [3]), (["b"], [4])]
    assert profile.seconds == {"sample": 3.0}


NAME = 251 * "n" + ".wav"  # as long as a name may be


def test_a_name_as_long_as_the_disk_allows_is_written(capsys, here, weights, recording):
    line = ["generate", "a dog barks", "--steps", "1", "-o", NAME]
    plot = ["--plot", NAME.replace(".wav", ".png")]
    assert run(capsys, *line, *plot)[0] == 0
    assert run(capsys, "reconstruct", recording, "-o", NAME)[0] == 0
    written = sorted(path.name for path in here.iterdir())
    assert written == sorted([NAME, plot[1]])


def test_a_name_that_is_too_long_is_refused_before_anything_is_made(
    capsys, here, weights, recording, monkeypatch
):
    from minilib.audioldm2 import AudioLDM2

    loaded = lambda *args, **kwargs: pytest.fail("weights were loaded")
    monkeypatch.setattr(AudioLDM2, "from_pretrained", loaded)
    for line in (
        ("generate", "a dog barks", "-o", f"n{NAME}"),
        ("generate", "a dog barks", "rain", "-o", NAME),  # -1 and -2 make it longer
        ("generate", "a dog barks", "--plot", f"{'n' * 252}.png"),
        ("reconstruct", recording, "-o", f"n{NAME}"),
        ("evaluate", "--json", f"{'n' * 251}.json"),
        ("convert", weights, "n" * 256),
    ):
        said = refused(capsys, *line)
        assert "can't be written: File name too long" in said or "too long" in said


def test_what_can_not_be_printed_is_replaced_and_the_sound_is_kept(here, weights):
    line = ["-m", "minilib", "generate", "猫が鳴く ☂", "--steps", "1", "--seed", "3"]
    line += ["--weights", str(weights), "-o", "ネコ.wav"]
    for encoding in ("cp1252", "ascii:strict", "latin-1"):
        given = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
        done = python(*line, **given, PATH="", OMP_NUM_THREADS="1")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert done.stdout.startswith("seed 3\n??.wav  0.64 s  seed 3  ????")
        (here / "ネコ.wav").unlink()


def test_the_seed_is_said_before_the_sound_is_made(
    capsys, here, weights, monkeypatch, taken
):
    from minilib.audioldm2 import AudioLDM2

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioLDM2, "__call__", interrupt)
    code, out, err = run(capsys, "generate", "a dog barks", "rain falls", "--seed", "7")
    assert (code, out) == (130, "seed 7 to 8\n")
    assert err == "minilib: stopped; nothing was written"


def test_the_sound_is_made_though_nobody_reads_what_is_said(here, weights):
    line = [sys.executable, "-m", "minilib", "generate", "a dog barks", "--steps", "1"]
    line += ["--weights", str(weights)]
    given = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(line, stdout=writes, stderr=subprocess.PIPE, env=given)
    os.close(writes)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert (here / "sound.wav").is_file()


def an_installed_copy(monkeypatch, note: str | None) -> None:
    """What pip says of where the package comes from."""
    from importlib import metadata

    told = SimpleNamespace(read_text=lambda name: note, files=None)
    monkeypatch.setattr(metadata, "distribution", lambda name: told)


def test_an_installed_copy_takes_the_weights_of_the_checkout_it_was_made_from(
    capsys, here, weights, monkeypatch
):
    checkout = cli.DATA.parent
    monkeypatch.setattr(cli, "DATA", here / "data")
    note = {"url": checkout.as_uri(), "dir_info": {}}
    an_installed_copy(monkeypatch, json.dumps(note))
    assert cli.shipped_weights() == weights
    for other in (
        None,
        "{",
        "{}",
        json.dumps({**note, "dir_info": {"editable": True}}),
        json.dumps({"url": "https://example.org/minilib", "vcs_info": {}}),
    ):
        an_installed_copy(monkeypatch, other)
        assert cli.place_of("tiny") == here / "data" / "weights" / "tiny"


def test_an_installed_copy_takes_the_weights_that_were_installed_with_it(
    here, monkeypatch
):
    from importlib import metadata

    share = here / "venv" / "share" / "minilib"
    (share / "weights" / "tiny").mkdir(parents=True)
    names = ("tiny/vae/config.json", "tiny/pipeline.json")
    files = [metadata.PackagePath("../share/minilib/weights", name) for name in names]
    for file in files:
        file.dist = SimpleNamespace(locate_file=lambda path: here / "venv/lib" / path)
    (here / "venv" / "lib").mkdir()
    told = SimpleNamespace(read_text=lambda name: None, files=files)
    monkeypatch.setattr(metadata, "distribution", lambda name: told)
    monkeypatch.setattr(cli, "DATA", here / "data")
    assert cli.place_of("tiny") == (share / "weights" / "tiny").resolve()
    assert cli.place_of("speech") == here / "data" / "weights" / "speech"


def test_what_is_installed_are_all_parts_of_the_weights():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed, weights = set(), ROOT / "data" / "weights" / "tiny"
    for target, globs in patterns["tool"]["setuptools"]["data-files"].items():
        for path in (path for pattern in globs for path in ROOT.glob(pattern)):
            place = Path(target).relative_to("share/minilib/weights/tiny") / path.name
            assert path == weights / place
            installed.add(path)
    assert installed == {path for path in weights.rglob("*") if path.is_file()}


def test_without_weights_the_sentence_names_a_command_after_which_the_line_works(
    capsys, here, weights, monkeypatch
):
    from minilib.classifier import Classifier

    line = ["generate", "a dog barks", "--steps", "1"]
    monkeypatch.setattr(cli, "DATA", here / "nowhere")
    said = refused(capsys, *line)
    target = re.search(r"minilib train all --out (\S+)", said)[1]
    shutil.copytree(weights, target)  # as that command leaves them
    assert run(capsys, *line)[0] == 0
    for stage in ("judge", "clap"):
        said = refused(capsys, "evaluate", "--n", "2")
        folder = Path(re.search(rf"minilib train {stage} .*--out (\S+)", said)[1])
        (folder / stage).mkdir(parents=True)
        assert cli.place_of(f"judges/{stage}") == folder / stage
        if stage == "judge":
            Classifier.preset("tiny").save_pretrained(folder / stage)
    shutil.rmtree(target)
    shutil.copytree(weights, "runs/tiny")
    own = re.search(r"--weights \S+", refused(capsys, *line))[0]
    assert run(capsys, *line, *own.split())[0] == 0


def test_generate_tries_unknown_words_and_names_what_is_near(capsys, here, weights):
    code, out, err = run(capsys, "generate", "a dragon barks", "--steps", "1")
    assert code == 0 and (here / "sound.wav").is_file()
    assert err.startswith(
        'minilib: these weights don\'t know "dragon"; the nearest they know: "a dog '
        'barks" or '
    )
    assert "\n" not in err


def test_generate_prints_one_line_for_a_caption_of_several(capsys, here, weights):
    code, said, _ = run(capsys, "generate", "a dog\nbarks", "--steps", "1")
    assert code == 0 and said.strip().endswith("a dog barks")


def test_generate_profiles_every_stage(capsys, here, weights):
    options = ["--steps", "1", "--candidates", "2", "--profile"]
    code, out, _ = run(capsys, "generate", "a dog barks", *options)
    heading, *rows = (
        line.rsplit(None, 1) for line in out.split("\n\n")[1].splitlines()
    )
    stages = "imports", "load weights", "encode", "loa", "sample", "decode", "rank"
    assert code == 0 and heading == ["stage", "seconds"]
    assert [stage for stage, _ in rows] == [*stages, "write", "total"]
    seconds = [float(taken) for _, taken in rows]
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.01)
    assert all(0 <= taken < 30 for taken in seconds) and seconds[1] > 0


@pytest.fixture
def taken(monkeypatch) -> dict:
    """What the command gives to the pipeline, which makes silence of it."""
    from minilib.audioldm2 import AudioLDM2

    taken = {}

    def silence(pipe, captions, sampling, **given):
        taken.update(given, captions=captions, sampling=sampling)
        return torch.zeros(len(captions), 1600)

    monkeypatch.setattr(AudioLDM2, "__call__", silence)
    return taken


def test_generate_takes_weights_from_a_folder_and_options_from_the_line(
    capsys, here, weights, monkeypatch, taken
):
    monkeypatch.setattr(cli, "DATA", here)  # no weights ship here
    line = "--steps 7 --sampler dpm --guidance 2 --seconds 1.5 --seed 4 --candidates 3"
    line += " --transcription yes --temperature 0.5 --guidance-interval 300 900"
    options = "--weights", weights, *line.split()
    assert run(capsys, "generate", "a dog barks", *options)[0] == 0
    numbers = {"seconds": 1.5, "seed": [4], "candidates": 3, "transcription": "yes"}
    how = Sampling(7, 2.0, (300, 900), 0.5, "dpm")
    assert taken == {"captions": ["a dog barks"], "sampling": how, **numbers}


def test_generate_samples_as_the_weights_want_where_the_line_says_nothing(
    capsys, here, weights, taken
):
    path = weights / "pipeline.json"
    own = {"steps": 3, "guidance": 1.5, "sampler": "dpm", "temperature": 0.5}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    assert run(capsys, "generate", "a dog barks", "--steps", "9")[0] == 0
    assert taken["sampling"] == Sampling(**{**own, "steps": 9})
    assert taken["seconds"] is None and taken["candidates"] == 1


def test_an_interrupted_command_says_so_and_leaves_nothing(
    capsys, here, weights, monkeypatch
):
    from minilib.audioldm2 import AudioLDM2

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioLDM2, "sample", interrupt)
    code, out, err = run(capsys, "generate", "a dog barks", "--seed", "7")
    assert code == 130 and out == "seed 7\n"
    assert err == "minilib: stopped; nothing was written"
    assert list(here.iterdir()) == []


def test_reconstruct_writes_what_comes_back_and_scores_silence_apart(
    capsys, here, weights, recording
):
    code, out, err = run(capsys, "reconstruct", recording, "-o", "back.wav")
    assert code == 0 and err == ""
    assert audio.load(here / "back.wav").shape == audio.load(recording).shape
    lines = out.splitlines()
    assert lines[0] == f"{recording}  0.75 s"
    assert lines[1] == f"{'log-mel error (dB)':20}   sound   silence"
    rows = [re.fullmatch(r"(.{20}) *\d+\.\d\d *\d+\.\d\d", x) for x in lines[2:5]]
    names = [row[1].strip() for row in rows]
    assert names == ["VAE", "vocoder", "VAE and vocoder"]
    said = r"\d+% of the recording is digital silence, which is scored separately"
    assert re.fullmatch(said, lines[5]) and lines[6:] == ["written: back.wav"]


def test_losses_are_in_decibels_of_sound_and_of_silence():
    keys = "vae_db", "vae_silent_db", "vocoder_db", "vocoder_silent_db"
    keys += "total_db", "total_silent_db", "silent_share"
    found = dict(zip(keys, (1.234, 22.0, 3.0, 4.0, 5.0, 6.0, 0.256), strict=True))
    assert cli.losses(found).splitlines() == [
        "log-mel error (dB)     sound   silence",
        "VAE                     1.23     22.00",
        "vocoder                 3.00      4.00",
        "VAE and vocoder         5.00      6.00",
        "26% of the recording is digital silence, which is scored separately",
    ]
    without = cli.losses({**found, "silent_share": 0.0}).splitlines()
    assert without[:2] == [
        "log-mel error (dB)     sound",
        "VAE                     1.23",
    ]
    assert len(without) == 4


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


@pytest.fixture
def heard(monkeypatch) -> None:
    """What else a caption tells, whatever the sound: the judges in closed form take
    their time.
    """
    from minilib import metrics

    answers = dict.fromkeys(metrics.QUESTIONS, torch.ones(1))
    monkeypatch.setattr(metrics.questions, "attributes", lambda waves, events: answers)
    monkeypatch.setattr(metrics.text, "enough_scenes", lambda n, seed, seconds: n)


def test_evaluate_prints_the_table_and_writes_the_numbers(capsys, here, weights, heard):
    a_judge_and_a_listener(weights)
    line = "--n 2 --steps 1 --seed 3 --guidance 1 --candidates 2 --json numbers.json"
    code, out, _ = run(capsys, "evaluate", *line.split())
    numbers = json.loads((here / "numbers.json").read_text())
    said = "2 times each question of held-out scenes; 1 steps, guidance 1, temperature "
    assert code == 0
    assert out.startswith(f"{said}1, seed 3, the best of 2 candidates each\n")
    assert numbers["candidates"] == 2 and numbers["guidance.high"] == 1000
    assert all(isinstance(value, int | float) for value in numbers.values())
    assert f"{numbers['single.class']:.3f}" in out
    keys = {"n", "pair.both", "pitch", "control.loudness", "frechet"}
    assert {*keys, "ceiling.single.class"} <= set(numbers)


def test_the_tasks_that_evaluate_offers_are_those_that_metrics_knows():
    from minilib import metrics

    assert set(cli.TASKS) == {"sounds", *metrics.TASKS}


def test_evaluate_hands_on_what_the_line_and_the_weights_say(
    capsys, here, weights, monkeypatch
):
    from minilib import metrics

    a_judge_and_a_listener(weights)
    asked = []

    def evaluate(pipe, judge, sampling, **options):
        asked.append((sampling, options))
        return {}

    monkeypatch.setattr(metrics, "evaluate", evaluate)
    monkeypatch.setattr(metrics, "report", lambda results, recorded: str(recorded))
    assert run(capsys, "evaluate") == (0, "False\n", "")
    run(capsys, *"evaluate --sampler dpm --steps 3 --guidance 2 --n 7".split())
    (usual, options), (told, others) = asked
    assert usual == Sampling() and told == Sampling(3, 2.0, sampler="dpm")
    assert (options["n"], others["n"]) == (200, 7)
    assert (options["seed"], options["candidates"]) == (0, 1)
    assert options["listener"].tokenizer is not None
    assert options["listener"].dtype == torch.float32


def test_chain_prints_the_table_and_writes_the_numbers(
    capsys, here, weights, monkeypatch
):
    from minilib import chain

    a_judge_and_a_listener(weights)
    asked = []

    def explain(pipe, judge, untuned, **given):
        asked.append((untuned, given, judge.training, pipe.seconds))
        return {"n": given["n"]}

    monkeypatch.setattr(chain, "explain", explain)
    monkeypatch.setattr(chain, "report", str)
    line = "chain --n 5 --seed 6 --json chain.json".split()
    assert run(capsys, *line) == (0, "{'n': 5}\n", "")
    assert json.loads((here / "chain.json").read_text()) == {"n": 5}
    assert run(capsys, "chain")[0] == 0
    wanted = {"n": 5, "seed": 6}, {"n": 200, "seed": 0}
    assert asked == [(None, given, False, 0.64) for given in wanted]


def test_convert_writes_the_other_layout(capsys, here, weights, monkeypatch):
    from minilib.audioldm2 import AudioLDM2
    from minilib.convert import released

    write = lambda pipe, folder: (folder / "whose").write_text("diffusers'")
    monkeypatch.setattr(AudioLDM2, "to_diffusers", write)
    code, out, _ = run(capsys, "convert", weights, "out")
    assert (code, out) == (0, f"out: a folder of diffusers, from {weights}\n")
    assert (here / "out" / "whose").read_text() == "diffusers'"
    assert "DST must be a new or empty folder, not 'out'" in refused(
        capsys, "convert", weights, "out"
    )
    (here / "file").touch()
    assert "DST must be a new" in refused(capsys, "convert", weights, "file")
    (here / "back").mkdir()  # an empty one will do
    pipe = AudioLDM2.from_pretrained(weights, device="cpu", dtype=None)
    assert pipe.unet.dtype == torch.float16
    monkeypatch.setattr(AudioLDM2, "from_pretrained", lambda *_, **given: pipe)
    monkeypatch.setattr(released, "is_released", lambda folder: True)
    code, out, _ = run(capsys, "convert", weights, "back")
    assert (code, out) == (0, f"back: a folder of minilib, from {weights}\n")
    assert (here / "back" / "pipeline.json").is_file()

    def from_original(path, **given):
        assert (path, given) == ("x.pth", {"device": "cpu", "dtype": None, "like": "y"})
        return pipe

    monkeypatch.setattr(AudioLDM2, "from_original", from_original)
    code, out, _ = run(capsys, "convert", "x.pth", "third", "--like", "y")
    assert (code, out) == (0, "third: a folder of minilib, from x.pth\n")


def test_convert_keeps_the_type_of_the_numbers(capsys, here, weights, monkeypatch):
    from minilib.audioldm2 import AudioLDM2

    types = []
    write = lambda pipe, folder: types.append((pipe.unet.dtype, pipe.device.type))
    monkeypatch.setattr(AudioLDM2, "to_diffusers", write)
    assert run(capsys, "convert", weights, "out")[0] == 0
    assert types == [(torch.float16, "cpu")]


def test_info_takes_a_folder_or_a_preset(capsys, here, weights, monkeypatch):
    from minilib import costs
    from minilib.audioldm2 import AudioLDM2

    asked = []
    parts = AudioLDM2.from_pretrained(weights, device="cpu").models
    monkeypatch.setattr(costs, "preset_parts", lambda name: parts)

    def operations(parts, seconds, how):
        asked.append((list(parts), seconds, how))
        return {"sample": 5 * how.steps}

    monkeypatch.setattr(costs, "operations", operations)
    path = weights / "pipeline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 3}))
    code, out, _ = run(capsys, "info", "--json", "info.json")
    assert code == 0 and "0.64 s of sound, 3 steps, guided" in out and "on disk" in out
    numbers = json.loads((here / "info.json").read_text())
    assert numbers["flops"] == {"sample": 15}
    assert (numbers["seconds"], numbers["steps"]) == (0.64, 3)
    assert [row["name"] for row in numbers["parts"]][:2] == ["text", "clap"]
    for flag in ("--steps", "--seconds"):
        said = refused(capsys, "info", "full", "--train", flag, "5")
        assert f"--train takes no {flag}" in said
    for line in ("info tiny --steps 7", "info full", "info full --seconds 5"):
        code, out, _ = run(capsys, *line.split())
        assert code == 0 and "on disk" not in out
    wanted = (0.64, 3), (2.56, 7), (10.24, 25), (5.0, 25)
    assert [(x, how.steps) for _, x, how in asked] == list(wanted)


def test_doctor_says_what_is_wrong_and_whether_anything_works(
    capsys, here, monkeypatch
):
    from minilib import doctor

    found = [
        ("Python", lambda: doctor.Finding("3.11")),
        ("disk", lambda: doctor.Finding("1 GB", "too little")),
    ]
    examined = []
    examine = lambda folder: examined.append(folder) or found
    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setattr(cli, "DATA", here)
    out = "Python       3.11\ndisk         1 GB\n             warning: too little\n"
    assert run(capsys, "doctor") == (0, out, "")
    found.append(("torch", lambda: doctor.Finding("none", "install it", works=False)))
    out += "torch        none\n             WRONG: install it\n"
    assert run(capsys, "doctor", "--weights", "mine") == (1, out, "")
    assert examined == [here / "weights" / "tiny", Path("mine")]


def test_vocabulary_lists_words_classes_and_captions(capsys, weights, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run(capsys, "vocabulary")
    known = json.loads((weights / "vocabulary.json").read_text())
    assert code == 0 and set(known["words"]) | set(known["classes"]) <= set(out.split())
    assert known["captions"][0] in out and max(map(len, out.splitlines())) <= 40
    assert f"{len(known['classes'])} kinds of sound" in out
    shown = out.split("captions such as:\n")[1].splitlines()
    some = known["captions"][:: len(known["captions"]) // 6]
    assert shown == [f"  {caption}" for caption in some] and 6 <= len(some) < 12
    some = {"words": ["a", "b"], "captions": ["a b"]}
    (weights / "vocabulary.json").write_text(json.dumps(some))
    wanted = "2 words:\n  a  b\n\ncaptions such as:\n  a b\n"
    assert run(capsys, "vocabulary") == (0, wanted, "")


def test_released_weights_are_open_to_any_words(capsys, weights, monkeypatch):
    from minilib.convert import released

    monkeypatch.setattr(released, "is_released", lambda folder: True)
    code, out, _ = run(capsys, "vocabulary")
    assert code == 0 and out.startswith("these weights accept any words: their en")


@pytest.mark.parametrize(
    "words", [[], ["a"], ["a", "bb", "ccc", "d", "e"], ["x" * 200, "y"]]
)
def test_columns_hold_every_word_once(words):
    assert sorted(cli.in_columns(words).split()) == sorted(words)


def test_columns_are_read_downwards_and_as_wide_as_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "14")  # room for three columns of four letters
    found = cli.in_columns(["aa", "b", "c", "d", "e", "f", "g"])
    assert found == "  aa  d   g\n  b   e\n  c   f"
    monkeypatch.setenv("COLUMNS", "300")  # wider than anyone reads
    assert len(cli.in_columns(["abcd"] * 60).splitlines()[0]) <= 100


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
        "features": None,
        "log_with": None,
        "sound_every": None,
    }
    assert run(capsys, "train", "all") == (0, "trained: runs/tiny\n", "")
    line = "vae vocoder --preset colab --data D --steps 3 --out O --resume --seed 5"
    line += " --log-with wandb --sound-every 7 --features shards"
    assert run(capsys, "train", *line.split())[0] == 0
    given = {
        "preset": "colab",
        "out": Path("O"),
        "data": Path("D"),
        "steps": 3,
        "resume": True,
        "seed": 5,
        "features": "shards",
        "log_with": "wandb",
        "sound_every": 7,
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
    go_on = "minilib train vae gpt --out runs/tiny --preset tiny --data 'my sounds' "
    go_on += "--steps 9 --seed 0 --resume"
    assert err == f"minilib: stopped; to continue, run: {go_on}"


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
        (["zq" * 200], "tokens, but at most 64 can be read"),
        (
            ["a dog barks", "--steps", "0"],
            "steps must be a whole number from 1 to 1000, not 0",
        ),
        (
            ["a dog barks", "--steps", "1.5"],
            "argument --steps: must be a whole number, not '1.5'",
        ),
        (
            ["a dog barks", "--guidance", "much"],
            "argument --guidance: must be a number, not 'much'",
        ),
        (
            ["a dog barks", "--weights", ""],
            "argument --weights: must name a file or a folder, not ''",
        ),
        (
            ["a dog barks", "-o", " "],
            "argument -o/--output: must name a file or a folder, not ' '",
        ),
        (
            ["a dog barks", "--guidance", "nan"],
            "guidance must be a finite number and be 0 or more, not nan",
        ),
        (
            ["a dog barks", "--guidance", "-1"],
            "guidance must be a finite number and be 0 or more, not -1",
        ),
        (
            ["a dog barks", "--temperature", "2"],
            "temperature must be a finite number and lie between 0 and 1, not 2",
        ),
        (
            ["a dog barks", "--guidance-interval", "5", "4"],
            "guidance_interval must be two noise levels from 0 to",
        ),
        (
            ["a dog barks", "--seconds", "0"],
            "seconds must be a finite number and lie between 0.1 and 60, not 0",
        ),
        (
            ["a dog barks", "--seconds", "10000"],
            "seconds must be a finite number and lie between 0.1 and 60, not 10000",
        ),
        (
            ["a dog barks", "--seconds", "inf"],
            "seconds must be a finite number and lie between 0.1 and 60, not inf",
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
            ["a dog barks", "--seed", "9" * 5000],
            "argument --seed: must be a whole number from 0 to",
        ),
        (
            ["a dog barks", "-o", "sound.xyz"],
            "--output must end in .wav or .flac or .ogg or .mp3, not 'sound.xyz'",
        ),
        (["a dog barks", "-o", "sound"], "--output must end in"),
        (["a dog barks", "-o", "nowhere/sound.wav"], "there is no folder 'nowhere'"),
        (
            ["a dog barks", "--plot", "picture.gif"],
            "--plot must end in .png, not 'picture.gif'",
        ),
        (
            ["a dog barks", "--plot", "nowhere/picture.png"],
            "there is no folder 'nowhere'",
        ),
        (["a dog barks", "--colour", "red"], "unrecognized arguments: --colour red"),
        ([], "there is no CAPTION: describe a sound, or name a recording of a voice"),
    ],
)
def test_generate_refuses(capsys, here, weights, line, said):
    assert said in refused(capsys, "generate", *line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate x --steps 0", "steps must be"),
        ("generate x --guidance -1", "guidance must be"),
        ("generate x --temperature 0", "temperature must be above 0"),
        ("generate x --guidance-interval 900 300", "guidance_interval must be"),
        ("generate x --candidates 65", "candidates must be"),
        ("generate x --seconds 61", "seconds must be"),
        ("generate x --transcription ''", "a transcription is empty"),
        ("generate ''", "a caption is empty"),
        ("evaluate --n 1", "n must be"),
        ("evaluate --steps 0", "steps must be"),
        ("evaluate --candidates 0", "candidates must be"),
        ("chain --n 1", "n must be"),
        ("info --steps 1001", "steps must be"),
        ("info --seconds 0", "seconds must be"),
    ],
)
def test_bad_values_are_refused_before_any_weights_are_loaded(
    capsys, here, weights, monkeypatch, line, said
):
    from minilib import folders, model

    loaded = lambda *args, **kwargs: pytest.fail("weights were loaded")
    monkeypatch.setattr(folders, "load", loaded)
    monkeypatch.setattr(model.Model, "from_pretrained", loaded)
    assert said in refused(capsys, *shlex.split(line))


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

    monkeypatch.setattr(cli.tempfile, "TemporaryDirectory", read_only)
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
    assert "--output must not be the recording" in said
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
    "half-copied part": (half_copied, "is damaged or incomplete"),
    "half-copied folder": (
        lambda folder: shutil.rmtree(folder / "unet"),
        "the weights folder is incomplete",
    ),
    "of another config": (of_another_config, "do not fit its config"),
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
            "name a folder with --weights, or train weights with: minilib train all"
            in said
        )
    assert "minilib train judge --out data/weights/judges" in refused(
        capsys, "evaluate"
    )


def test_evaluate_and_vocabulary_refuse(capsys, here, weights, tmp_path):
    assert "vocabulary.json is missing" in refused(
        capsys, "vocabulary", "--weights", here
    )
    (tmp_path / "pipeline.json").write_text('{"peer": "text_ldm"}')
    said = refused(capsys, "vocabulary", "--weights", tmp_path)
    assert said.endswith("holds the peer text_ldm, which lists no words")
    assert "--json must end in .json" in refused(
        capsys, "evaluate", "--json", "numbers.txt"
    )
    from minilib.classifier import Classifier

    Classifier.preset("tiny").save_pretrained(cli.DATA / "weights/judges/judge")
    assert "minilib train clap --seed 1 --out data/weights/judges" in refused(
        capsys, "evaluate"
    )


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
    assert "stage all must stand alone" in refused(capsys, "train", "vae", "all")
    assert "preset must be one of tiny, colab" in refused(
        capsys, "train", "vae", "--preset", "huge"
    )
    assert "steps must be a whole number, 1 or more, not 0" in refused(
        capsys, "train", "vae", "--steps", "0"
    )
    assert "stage vae is named more than once" in refused(
        capsys, "train", "vae", "clap", "vae"
    )


@pytest.mark.parametrize("out", ["file", "file/below", "/dev/null/below"])
def test_train_refuses_an_out_that_can_not_be_written_before_any_clip_is_made(
    capsys, here, monkeypatch, out
):
    from minilib.training import runs

    made = lambda *args, **kwargs: pytest.fail("clips were made")
    monkeypatch.setattr(runs, "prepare_data", made)
    (here / "file").touch()
    said = refused(capsys, "train", "vae", "--out", out)
    assert f"out must be a writable folder, not {out!r}" in said


def test_an_empty_folder_name_is_refused_and_not_the_current_folder_taken(capsys, here):
    for line in (
        ["train", "vae", "--out", ""],
        ["train", "vae", "--data", ""],
        ["evaluate", "--weights", ""],
        ["info", ""],
        ["convert", "", "folder"],
        ["convert", "folder", ""],
        ["data", "check", ""],
        ["reconstruct", ""],
        ["doctor", "--weights", ""],
    ):
        assert "must name a file or a folder, not ''" in refused(capsys, *line)


def test_info_names_the_presets_where_there_is_no_such_folder(capsys, here):
    said = refused(capsys, "info", "nowhere")
    assert "nowhere does not exist; nor is it one of the presets tiny, colab" in said


def test_convert_names_a_checkpoint_that_is_not_there(capsys, here):
    assert "there is no file 'no.pth'" in refused(capsys, "convert", "no.pth", "new")


def test_data_check_lists_captions_that_training_would_refuse(capsys, here):
    table = f"file_name,caption\na.wav,{'dog ' * 80}\nb.wav,rain\n"
    folder = a_data_folder(here / "own", table, "a.wav", "b.wav")
    assert cli.main(["data", "check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "1 fault:" in said and "line 2: the caption 'dog dog" in said
    assert "tokens, but at most 64 can be read" in said


def test_train_refuses_a_stage_whose_parts_are_not_there(capsys, here):
    said = refused(capsys, "train", "gpt")
    assert (
        "stage gpt needs audiomae, which is not in runs/tiny: train stage audiomae "
        "there first" in said
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file_name,title\na.wav,A\n", "no column 'caption'"),
        ("file_name,caption\na.wav,\n", "line 2: no caption for 'a.wav'"),
        (
            "file_name,caption\na.wav,x\nb.wav,y\nc.wav,z\n",
            "line 3: the file 'b.wav' is missing",
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
