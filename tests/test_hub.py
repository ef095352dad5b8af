"""The hub: what `push` sends, what is loaded by a repository's name, and the card."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN, FakeHub
from huggingface_hub import ModelCard
from matplotlib.image import imread

from minilib import cli, hub
from minilib.audioldm2 import AudioLDM2
from minilib.training import curves

ROOT = Path(__file__).parents[1]
LOG = """\
preset tiny, seed 0, torch 2.13.0, 2 threads, 16 clips
vae       step   100      16 s  loss 1.1237  l1 1.5154  kl 0.5429
vae       step   200      31 s  loss 0.8088  l1 1.0927  kl 0.5573
joint     step   100      22 s  loss 0.4166  noise 0.2039  loa 0.2128
vae       finished: 200 steps in 32 s, caches included
"""


@pytest.fixture
def there() -> Iterator[FakeHub]:
    """A hub on this machine."""
    server = FakeHub()
    yield server
    server.close()


@pytest.fixture
def folder(tiny_pipe_folder, tmp_path) -> Path:
    """A small pipeline that borrows its VAE, with a log and what a run leaves."""
    folder = Path(shutil.copytree(tiny_pipe_folder, tmp_path / "run"))
    shutil.move(folder / "vae", tmp_path / "other" / "vae")
    description = json.loads((folder / "pipeline.json").read_text())
    description["vae"] = "../other/vae"
    (folder / "pipeline.json").write_text(json.dumps(description))
    shutil.copytree(folder / "gpt", folder / "separate" / "gpt")
    (folder / "finished").mkdir()
    (folder / "finished" / "gpt.json").write_text(
        '{"steps": 2, "source": "SoundWorld"}'
    )
    (folder / "train.log").write_text(LOG)
    return folder


def python(there: FakeHub, home: Path, *line: str, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a Python whose hub is this one."""
    own = {"HF_ENDPOINT": there.address, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    kept = {k: x for k, x in os.environ.items() if not k.startswith("HF_")}
    run = {"capture_output": True, "text": True, "env": {**kept, **own, **more}}
    done = subprocess.run([sys.executable, *line], **run)
    return done.returncode, done.stdout, done.stderr


# --------------------------------------------------------------------------------------
# Sending and loading


def test_what_is_pushed_is_loaded_by_its_name(folder, there, tmp_path):
    older = {"loudness/config.json": b"{}", "notes.md": b"mine", "gpt/old.txt": b""}
    there.repos["ada/sounds"] = dict(older)
    home = tmp_path / "home"
    line = ["-m", "minilib", "push", str(folder), "ada/sounds"]
    line += ["--licence", "cc-by-4.0"]
    code, out, err = python(there, home, *line, HF_TOKEN=TOKEN)
    assert (code, out) == (0, f"pushed: {there.address}/ada/sounds\n"), err
    files = there.repos["ada/sounds"]
    # borrowed parts too; nothing of the run besides, nothing of the older pipeline
    assert {"vae/model.safetensors", "README.md", "train.log", "notes.md"} <= set(files)
    assert not {x for x in files if x.startswith(("separate", "finished"))}
    assert not {"loudness/config.json", "gpt/old.txt"} & set(files)
    assert "vae" not in json.loads(files["pipeline.json"])
    there.asked.clear()
    script = """
from minilib.audioldm2 import AudioLDM2
pipe = AudioLDM2.from_pretrained("ada/sounds", device="cpu", dtype=None)
pipe.save_pretrained("loaded")
"""
    script = script.replace('"loaded"', repr(str(tmp_path / "loaded")))
    code, _, err = python(there, home, "-c", script)
    assert code == 0, err
    mine = AudioLDM2.from_pretrained(folder, device="cpu")
    loaded = AudioLDM2.from_pretrained(tmp_path / "loaded", device="cpu")
    assert set(loaded.models) == set(mine.models)
    for name, model in mine.models.items():
        for key, x in model.state_dict().items():
            assert torch.equal(x, loaded.models[name].state_dict()[key]), (name, key)
    assert loaded.vocabulary == mine.vocabulary and loaded.sampling == mine.sampling
    fetched = {x.split("/", 5)[5] for x in there.asked if x.startswith("GET /ada/")}
    assert fetched == {x for x in files if x.endswith((".json", ".safetensors"))}


def test_a_run_in_a_repository_is_loaded_without_what_it_left(folder, there, tmp_path):
    """As when somebody uploaded the whole folder of a run by hand."""
    shutil.copytree(tmp_path / "other" / "vae", folder / "vae")
    description = json.loads((folder / "pipeline.json").read_text())
    del description["vae"]
    (folder / "pipeline.json").write_text(json.dumps(description))
    there.repos["ada/run"] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    line = ["-m", "minilib", "vocabulary", "--weights", "ada/run"]
    code, out, err = python(there, tmp_path / "home", *line)
    assert code == 0 and "words" in out, err
    got = [x for x in there.asked if x.startswith("GET /ada/")]
    assert any(x.endswith("unet/model.safetensors") for x in got)
    assert not [x for x in got if "separate" in x or "finished" in x]
    assert not [x for x in got if x.endswith((".log", ".md"))]


def test_what_the_hub_refuses_is_one_sentence(folder, there, tmp_path):
    script = """
import sys
from minilib import cli
for line in sys.argv[2:]:
    print(cli.main(line.split("|")), file=sys.stderr)
"""
    generate = "generate|a dog barks|--weights|ada/nothing"
    push = f"push|{folder}|ada/sounds|--licence|mit"
    home = tmp_path / "home"
    _, _, err = python(there, home, "-c", script, "", generate, push)
    unknown, two, unnamed, again = err.strip().splitlines()
    assert two == again == "2" and there.repos == {}
    assert "there is no such repository, or it is private" in unknown
    assert unnamed.endswith(
        "ada/sounds was not pushed: log in as somebody who may write there, with: "
        "hf auth login"
    )
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN}
    _, _, err = python(there, home, "-c", script, "", generate, push, **nowhere)
    unknown, two, unsent, again = err.strip().splitlines()
    assert two == again == "2"
    assert unknown.endswith("the Hugging Face hub: the hub can't be reached")
    assert unsent == "minilib: ada/sounds was not pushed: the hub can't be reached"


# --------------------------------------------------------------------------------------
# The card


def the_card(folder: Path) -> str:
    return hub.card(hub.load(folder), folder, "ada/sounds", "cc-by-4.0")


def test_the_hub_reads_licence_library_and_task_from_the_card(folder):
    told = ModelCard(the_card(folder)).data.to_dict()
    assert told["license"] == "cc-by-4.0" and told["library_name"] == "minilib"
    assert told["pipeline_tag"] == "text-to-audio" and told["tags"] == ["audioldm2"]


def test_the_card_says_how_to_load_in_lines_that_work(folder, monkeypatch):
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    caption = '"no", he says, for $5, and it\'s loud'
    vocabulary["captions"].insert(0, caption)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    text = the_card(folder)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    real, asked, names = AudioLDM2.from_pretrained, [], {}
    monkeypatch.setattr(
        AudioLDM2, "from_pretrained", lambda name: asked.append(name) or real(folder)
    )
    exec(code, names)
    assert asked == ["ada/sounds"] and names["wave"].shape[0] == 1
    (line,) = re.findall(r"```bash\nminilib (.*?)\n```", text, re.S)
    parsed = cli.build_parser().parse_args(shlex.split(line))
    assert parsed.weights == "ada/sounds" and parsed.captions == [caption]


def test_the_card_tells_the_run_by_its_log_and_notes(folder):
    text = the_card(folder)
    assert "On SoundWorld." in text and "`preset tiny, seed 0, torch 2.13.0" in text
    assert "Trained in another run: vae." in text
    assert "| vae | 200 | 31 | loss 0.8088, l1 1.0927, kl 0.5573 |" in text
    assert "| joint | 100 | 22 | loss 0.4166, noise 0.2039, loa 0.2128 |" in text
    n = sum(p.numel() for p in hub.load(folder).unet.parameters())
    assert f"| unet | UNet | {n:,} |" in text
    assert "loss.png" not in text
    curves.draw(folder)
    assert "](loss.png)" in the_card(folder)
    (folder / "train.log").unlink()
    assert "There is no log of the training." in the_card(folder)


def test_the_card_shows_the_scores_that_evaluate_stored(folder):
    assert "None were stored" in the_card(folder)
    numbers = {
        "n": 50, "steps": 10, "guidance": 1.5, "guidance.low": 0, "temperature": 0.7,
        "guidance.high": 1000, "seed": 0, "candidates": 1, "class": 0.94,
        "se.class": 0.012, "chance.class": 0.03, "control.class": 0.02,
        "roundtrip.class": 0.99, "ceiling.class": 1.0,
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(numbers))
    text = the_card(folder)
    (row,) = [line for line in text.splitlines() if line.startswith("class ")]
    assert row.split() == "class 0.030 0.020 0.940 ± 0.012 0.990 1.000".split()
    assert "50 times each question; 10 steps, guidance 1.5" in text
    del numbers["steps"]
    (folder / "scores.json").write_text(json.dumps(numbers))
    with pytest.raises(ValueError, match=r"scores\.json must hold what minilib evalua"):
        the_card(folder)


@pytest.mark.parametrize("name", ["speech", "picture"])
def test_the_card_of_weights_that_ship_says_what_they_read(name):
    folder = ROOT / "data" / "weights" / name
    text = the_card(folder)
    wanted = {
        "speech": 'transcription=["seven"], seed=0)',
        "picture": "# picture: (3, 32, 32) in [0, 1]\nwave = pipe(picture=picture",
    }
    assert wanted[name] in text


def test_card_only_writes_the_card_and_push_sends_it_as_it_is(
    folder, monkeypatch, capsys
):
    line = ["push", str(folder), "ada/sounds"]
    assert cli.main([*line, "--licence", "mit", "--card-only"]) == 0
    path = folder / "README.md"
    assert capsys.readouterr().out == f"written: {path}\n"
    path.write_text(path.read_text() + "\nMine.\n")
    sent = {}

    class Api:
        def __init__(self, **given):
            pass

        def create_repo(self, **given):
            sent.update(given)
            return "https://hub/ada/sounds"

        def upload_folder(self, folder_path, **given):
            sent["card"] = (Path(folder_path) / "README.md").read_text()

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert cli.main([*line, "--private"]) == 0
    assert sent["card"] == path.read_text() and sent["private"] is True


# --------------------------------------------------------------------------------------
# Bad input: one sentence, nothing written, nothing sent


def refused(capsys, *argv) -> str:
    assert cli.main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minilib: ") and err.count("\n") == 1
    return err


def test_what_can_not_be_pushed_is_one_sentence(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", None)  # nothing is sent
    names = lambda: sorted(tmp_path.rglob("*"))
    before = names()
    licence = ["--licence", "mit"]
    for given, said in (
        ([folder, "sounds", *licence], "name must be that of a repository, owner/name"),
        ([folder, "a/b/c", *licence], "name must be that of a repository, owner/name"),
        (
            [folder, "ada/sounds"],
            "licence of the weights must be named as the hub does",
        ),
        (
            [folder, "ada/sounds", "--licence", "My own"],
            "as in cc-by-4.0, not 'My own'",
        ),
        ([tmp_path / "no", "ada/x", *licence], "must hold a pipeline: there is no "),
        ([tmp_path, "ada/x", *licence], "pipeline.json is missing: "),
        (
            [ROOT / "data/weights/peers/text_ldm", "ada/x", *licence],
            "the peer text_ldm",
        ),
    ):
        for flags in ([], ["--card-only"]):
            assert said in refused(capsys, "push", *given, *flags)
    assert names() == before
    (folder / "README.md").write_text("mine")
    push = ["push", folder, "ada/sounds", *licence]
    assert "README.md is the card, and names it, not 'mit'" in refused(capsys, *push)
    assert "README.md is there already" in refused(capsys, *push, "--card-only")
    shutil.rmtree(folder / "unet")
    (folder / "README.md").unlink()
    assert "unet" in refused(capsys, *push)  # not whole


# --------------------------------------------------------------------------------------
# Loss curves


def test_a_stage_that_began_again_replaces_what_it_had_logged(tmp_path):
    assert curves.read_log(tmp_path) == {} and curves.draw(tmp_path) is None
    (tmp_path / "train.log").write_text(LOG)
    assert [point.step for point in curves.read_log(tmp_path)["vae"]] == [100, 200]
    (tmp_path / "train.log").write_text(
        LOG + "vae       step   100      15 s  loss 0.9000  l1 1.0000  kl 0.5000\n"
    )
    assert curves.read_log(tmp_path)["vae"] == [
        curves.Point(100, 15, {"loss": 0.9, "l1": 1.0, "kl": 0.5})
    ]


def test_the_curves_of_a_run_are_drawn_one_panel_a_stage(tmp_path):
    (tmp_path / "train.log").write_text(LOG)
    path = curves.draw(tmp_path)
    assert path == tmp_path / "loss.png" and path.read_bytes()[:4] == b"\x89PNG"
    first = path.read_bytes()
    (tmp_path / "train.log").write_text(LOG.replace("0.8088", "0.9088"))
    assert curves.draw(tmp_path).read_bytes() != first
    assert sorted(x.name for x in tmp_path.iterdir()) == ["loss.png", "train.log"]


def test_places_without_a_stage_stay_empty(tmp_path):
    line = "stage{}  step   100      16 s  loss 1.1237\n"
    (tmp_path / "train.log").write_text("".join(map(line.format, range(4))))
    picture = imread(curves.draw(tmp_path))  # two rows of three panels
    height, width = picture.shape[:2]
    empty = picture[height // 2 :, int(0.36 * width) :]
    assert empty.min() == 1 and picture[height // 2 :].min() < 1
