"""The preset `picture`: sound in training, a picture at inference (chapter 12)."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_world
import torch
import torch.nn.functional as F
from PIL import Image

from minilib import audio, cli, costs, folders, metrics, pictures
from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier
from minilib.conditions import Context
from minilib.folders import load_part
from minilib.memory import Memory, MemoryConfig
from minilib.soundworld import SENSES, SoundWorld
from minilib.training import RUNS, STAGES, step_generator, train_stages
from minilib.training.stages import SEEING

FAST = {"steps": 2, "progress": False}
BORROWED = ("text", "clap", "unet", "vae", "vocoder", "audiomae")
SHIPPED = Path(__file__).parents[1] / "data" / "weights" / "picture"


@pytest.fixture(scope="module")
def small_picture(tiny_pipe_folder):
    """The preset "picture" with few clips, small models and few steps; the folder of
    the pipeline that it borrows from.
    """
    with pytest.MonkeyPatch.context() as patch:
        small_world.add_small(patch)
        run = RUNS["picture"]
        few = {"steps": 2, "batch_size": 4}
        recipes = {name: replace(x, **few) for name, x in run.recipes.items()}
        sizes = {"recipes": recipes, "sizes": "small", "n_clips": 16}
        patch.setitem(RUNS, "picture", replace(run, seconds=0.64, **sizes))
        yield tiny_pipe_folder


@pytest.fixture(scope="module")
def folder(small_picture, tmp_path_factory) -> Path:
    """A small pipeline that has been trained to make sounds from pictures, badly."""
    out = tmp_path_factory.mktemp("runs") / "picture"
    given = {"shipped": small_picture, "progress": False}
    return train_stages("all", "picture", out, **given)


@pytest.fixture
def pipe(folder) -> AudioLDM2:
    """The pipeline of `folder`."""
    return AudioLDM2.from_pretrained(folder, device="cpu")


@pytest.fixture
def seen() -> torch.Tensor:
    """Three pictures of SoundWorld."""
    world = SoundWorld("valid", seconds=0.64, pairs=0.0)
    return torch.stack([SENSES["image"](world.scene(i)) for i in range(3)])


@pytest.fixture
def stage(small_picture, folder):
    """The stage that learns to write the LOA from what ImageBind hears."""
    data, kind = small_world.small_data(), SEEING["depict"]
    parts = {name: load_part(folder, name, torch.float32) for name in kind.needs}
    data.tokenizer = parts["bind"].tokenizer
    return kind("small", RUNS["picture"].recipes["depict"], data, parts)


# --------------------------------------------------------------------------------------
# The stage


def test_gpt_2_hears_the_clips_blurred_and_sees_no_picture(stage, monkeypatch):
    sounds = stage.data.corpus.wave(range(16))
    with torch.no_grad():
        heard = stage.parts["bind"].embed("audio", audio.log_mel(sounds))
    monkeypatch.setattr(type(stage.parts["bind"]), "embed", None)  # not asked again
    batches = [stage.batch(step_generator(0, "depict", k)) for k in range(60)]
    told = torch.cat([x["bind"] for x in batches])
    assert set(batches[0]) == {"loa", "keep", "bind"}
    assert told.shape == (240, 1, 16)
    empty = ~told.any(dim=2)[:, 0]
    assert 0.03 < empty.float().mean() < 0.2
    told = told[~empty, 0]
    torch.testing.assert_close(told.norm(dim=1), torch.ones(len(told)))
    near = torch.cdist(told, heard).amin(dim=1)
    assert 0 < near.min() and 0.1 < near.mean() < 0.6


def test_without_blur_gpt_2_hears_the_clips_as_they_are(stage):
    heard = stage.data.heard("bind", stage.parts["bind"])
    stage.blur = 0.0
    told = stage.batch(step_generator(0, "depict", 0))["bind"]
    told = told[told.any(dim=2)[:, 0], 0]
    assert torch.cdist(told, heard).amin(dim=1).max() < 1e-3


def test_a_step_lowers_the_loss_and_leaves_imagebind_alone(stage):
    before = small_world.weights(stage.parts["bind"])
    batch = stage.batch(step_generator(0, "depict", 0))
    optimizer = torch.optim.SGD(stage.model.parameters(), lr=0.1)
    first = stage.model.loss(batch)
    first.backward()
    optimizer.step()
    assert stage.model.loss(batch) < first
    assert torch.equal(small_world.weights(stage.parts["bind"]), before)
    assert all(x.grad is None for x in stage.parts["bind"].parameters())
    made = stage.finish()
    assert set(made) == {"gpt", "loudness", "memory"}
    heard = stage.data.heard("bind", stage.parts["bind"])
    assert torch.equal(made["memory"].sounds, heard)


def test_a_run_makes_a_pipeline_that_borrows_all_but_its_gpt_2(
    small_picture, folder, pipe
):
    description = json.loads((folder / "pipeline.json").read_text())
    for part in BORROWED:
        assert not (folder / part).exists()
        assert (folder / description[part]).samefile(small_picture / part)
    own = sorted(x.parent.name for x in folder.glob("*/config.json"))
    assert own == ["bind", "gpt", "loudness", "memory"]
    assert pipe.sees and not pipe.speaks
    assert list(pipe.encoders) == ["bind", "text"]  # the U-Net alone reads text
    assert pipe.gpt.config.conditions == ("bind",)


def test_depict_alone_trains_beside_an_imagebind_that_is_there(
    small_picture, folder, tmp_path
):
    out, given = tmp_path / "out", {"shipped": small_picture, "progress": False}
    with pytest.raises(
        FileNotFoundError, match="depict needs bind.* train stage sight"
    ):
        train_stages("depict", "picture", out, **given)
    kept = load_part(folder, "bind", None)
    kept.save_pretrained(out / "bind")
    kept.tokenizer.save(out / "tokenizer.json")
    words = (out / "tokenizer.json").read_bytes()
    files = [x for x in small_picture.rglob("*") if x.is_file()]
    before = [x.read_bytes() for x in files]
    train_stages("depict", "picture", out, **given)
    assert (out / "tokenizer.json").read_bytes() == words
    assert [x.read_bytes() for x in files] == before  # what is borrowed is frozen
    assert AudioLDM2.from_pretrained(out).sees


def test_the_command_has_a_recipe_for_each_stage():
    run = RUNS["picture"]
    assert run.stages == tuple(run.recipes) == ("sight", "bind", "depict")
    assert set(SEEING).isdisjoint(STAGES)


# --------------------------------------------------------------------------------------
# The pipeline


def test_a_picture_makes_a_sound_alone_as_among_others(pipe, seen):
    waves = pipe(picture=seen, seed=3, **FAST)
    assert waves.shape == (3, 10240) and waves.isfinite().all()
    alone = pipe(picture=seen[1], seed=4, **FAST)
    torch.testing.assert_close(alone, waves[1:2], atol=1e-4, rtol=0)
    assert torch.equal(pipe(picture=seen[1], seed=4, **FAST), alone)
    other = pipe(picture=1 - seen[1], seed=4, **FAST)
    assert (other - alone).abs().max() > 1e-4


def test_a_picture_is_embedded_and_nothing_is_read_beside_it(pipe, seen):
    with torch.no_grad():
        conditions = pipe.encode([""] * 3, pictures=seen)
        bare = pipe.encode([""] * 3, like=conditions)
        embedded = Context(pipe.bind.embed("image", seen)[:, None])
        placed = pipe.memory(embedded)
        pipe.memory = None
        raw = pipe.encode([""] * 3, pictures=seen)["bind"].sequence
    torch.testing.assert_close(conditions["bind"].sequence, placed.sequence)
    torch.testing.assert_close(raw, embedded.sequence)
    assert not bare["bind"].sequence.any()
    assert torch.equal(conditions["text"].sequence, pipe.text.empty(3).sequence)


def test_a_memory_brings_what_is_seen_back_among_the_sounds():
    torch.manual_seed(0)
    sounds = F.normalize(torch.randn(50, 16), dim=1)
    gap = F.normalize(torch.randn(16), dim=0)
    seen = F.normalize(sounds[:9] + gap, dim=1)[:, None]
    cold = Memory(MemoryConfig(50, 16, temperature=0.001))
    warm = Memory(MemoryConfig(50, 16, temperature=0.5))
    for memory in (cold, warm):
        memory.fit(sounds)
    near = cold(Context(seen)).sequence
    nearest = sounds[(seen[:, 0] @ sounds.T).argmax(dim=1)]
    torch.testing.assert_close(near[:, 0], nearest)
    weights = (seen @ sounds.T / 0.5).exp()
    mean = (weights / weights.sum(dim=2, keepdim=True)) @ sounds
    placed = warm(Context(seen)).sequence
    torch.testing.assert_close(placed, mean / mean.norm(dim=2, keepdim=True))
    assert not list(cold.parameters())


def test_a_picture_of_another_size_is_scaled(pipe, seen):
    large = F.interpolate(seen, (96, 96), mode="nearest")
    small = pictures.check_pictures(large, (32, 32))
    torch.testing.assert_close(small, seen, atol=0.2, rtol=0)
    assert (small - seen).abs().mean() < 0.02
    assert pictures.check_pictures(seen[0], (32, 32)).equal(seen[:1])
    waves = pipe(picture=torch.rand(3, 40, 60), seed=0, **FAST)
    assert waves.shape == (1, 10240)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({}, ValueError, r"picture must have shape \(3, H, W\) or \(B, 3, H, W\)"),
        ({"picture": "a.png"}, TypeError, "picture must be a tensor"),
        ({"picture": torch.zeros(1, 32, 32)}, ValueError, "picture must have shape"),
        ({"picture": torch.zeros(0, 3, 32, 32)}, ValueError, "picture must have shape"),
        ({"picture": torch.zeros(3, 32, 7)}, ValueError, "from 8 to 4096 .* not 7 by"),
        ({"picture": torch.full((3, 32, 32), 2.0)}, ValueError, "numbers from 0 to 1"),
        (
            {"picture": torch.full((3, 32, 32), torch.nan)},
            ValueError,
            "picture must hold floating-point numbers",
        ),
        (
            {"picture": torch.zeros(3, 32, 32, dtype=torch.uint8)},
            ValueError,
            "picture must hold floating-point numbers",
        ),
        ({"captions": "a dog"}, ValueError, "read pictures alone: captions must be"),
        ({"transcription": "zero"}, ValueError, "alone: transcription must be None"),
        ({"negative": "rain"}, ValueError, "pictures alone: negative must be None"),
        ({"candidates": 2}, ValueError, "candidates must be 1 with a picture"),
    ],
)
def test_a_picture_that_cannot_be_read_is_refused(pipe, given, error, said):
    if given and "picture" not in given:
        given = {"picture": torch.zeros(3, 32, 32), **given}
    if not given:
        given, error = {"picture": None}, (TypeError, ValueError)
        said = "picture must be"
    with pytest.raises(error, match=said):
        pipe(**given, **FAST)


def test_weights_that_see_nothing_take_no_picture(tiny_pipe, seen):
    with pytest.raises(ValueError, match="see no pictures: picture must be None"):
        tiny_pipe(picture=seen, **FAST)
    with pytest.raises(TypeError, match="captions must be a string or a list"):
        tiny_pipe(**FAST)


def test_a_pipeline_that_sees_is_saved_whole_and_not_for_diffusers(
    pipe, seen, tmp_path
):
    pipe.save_pretrained(tmp_path / "whole")
    whole = AudioLDM2.from_pretrained(tmp_path / "whole", device="cpu")
    waves = (x(picture=seen, seed=1, **FAST) for x in (whole, pipe))
    torch.testing.assert_close(*waves, atol=1e-4, rtol=0)
    with pytest.raises(ValueError):
        pipe.to_diffusers(tmp_path / "diffusers")
    assert not (tmp_path / "diffusers").exists()


def test_the_cost_of_a_sound_counts_the_picture(pipe):
    found = costs.operations(pipe.models, 0.64, pipe.sampling)
    assert all(n > 0 for n in found.values())


# --------------------------------------------------------------------------------------
# Files


def written(path: Path, image: Image.Image, **how) -> Path:
    """The path of a picture that was written there."""
    image.save(path, **how)
    return path


def test_a_file_is_read_as_it_looks(tmp_path):
    drawn = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    image = Image.fromarray(drawn.permute(1, 2, 0).numpy())
    read = pictures.load(written(tmp_path / "a.png", image))
    assert torch.equal(read, drawn.float() / 255)
    grey = pictures.load(written(tmp_path / "grey.png", image.convert("L")))
    assert grey.shape == (3, 20, 30) and torch.equal(grey[0], grey[2])
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (pictures.load(written(tmp_path / "clear.png", clear)) == 1).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned = pictures.load(written(tmp_path / "b.jpg", image, exif=exif))
    assert turned.shape == (3, 30, 20)


@pytest.mark.filterwarnings("error")
def test_broken_exif_data_neither_warns_nor_crashes(tmp_path):
    image, exif = Image.new("RGB", (20, 30), "red"), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hello"
    whole = exif.tobytes()
    cut = pictures.load(written(tmp_path / "cut.jpg", image, exif=whole[:-12]))
    assert cut.shape == (3, 30, 20)  # not turned
    for kind in (3, 26):  # a text that says it holds numbers
        exif = whole[:17] + bytes([kind]) + whole[18:]
        with pytest.raises(ValueError, match="exif.png' is damaged"):
            pictures.load(written(tmp_path / "exif.png", image, exif=exif))


def test_a_bad_file_is_named_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no picture .*no.png"):
        pictures.load(tmp_path / "no.png")
    with pytest.raises(TypeError, match="picture must be a path"):
        pictures.load(3)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match="text.png' is not a PNG or JPEG picture"):
        pictures.load(tmp_path / "text.png")
    held = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(held, "PNG")
    for cut in (60, 100):
        (tmp_path / "cut.png").write_bytes(held.getvalue()[:cut])
        with pytest.raises(ValueError, match="cut.png' is (damaged|not a PNG)"):
            pictures.load(tmp_path / "cut.png")
    tiny = written(tmp_path / "tiny.png", Image.new("RGB", (4, 40)))
    with pytest.raises(ValueError, match="from 8 to 4096 pixels .*, not 4 by 40"):
        pictures.load(tiny)
    deep = written(tmp_path / "deep.png", Image.new("I;16", (20, 20)))
    with pytest.raises(ValueError, match="deep.png' has 16 bits"):
        pictures.load(deep)


# --------------------------------------------------------------------------------------
# How it is judged


def test_pictures_are_those_of_the_scenes_that_are_judged(small_picture):
    for music in (False, True):
        seen = metrics.pictures_of(2, 5, 2.56, music)
        judge = Classifier.preset("small")
        given = {"n_events": 1, "music": music}
        scenes = metrics.held_out_scenes(judge, 2, 5, 2.56, **given)
        world = SoundWorld("test", 5, 2.56, pairs=0.0, music=float(music))
        assert [world.scene(i).events[0] for i in range(2)] == scenes.events
        assert torch.equal(seen[1], SENSES["image"](world.scene(1)))


def test_pictures_are_judged_between_chance_and_ceiling(pipe, tiny_pipe, monkeypatch):
    monkeypatch.setattr(metrics.picture, "enough_scenes", lambda n, *_: 3 * n)
    judges = Classifier.preset("small").eval(), tiny_pipe.clap
    how = pipe.sampling.changed(steps=2)
    given = {"n": 2, "progress": False}
    found = metrics.evaluate_pictures(pipe, judges, how, **given)
    for question in ("single.class", "music.instrument", "pitch", "count"):
        for prefix in ("", "chance.", "control.", "roundtrip.", "ceiling.", "se."):
            assert 0 <= found[f"{prefix}{question}"] <= 1
    assert found["ceiling.pitch"] > 0.4
    assert metrics.evaluate_pictures(pipe, judges, how, **given) == pytest.approx(
        found, nan_ok=True
    )
    other = metrics.evaluate_pictures(pipe, judges, how, seed=4, **given)
    assert (found["seed"], other["seed"]) == (0, 4)
    assert other["single.clap"] != found["single.clap"]
    table = metrics.picture_report(found)
    assert "music.instrument" in table and "pictures shuffled" in table
    with pytest.raises(ValueError, match="pipe must see"):
        metrics.evaluate_pictures(tiny_pipe, judges, **given)


def test_the_seed_draws_the_noise_of_the_sounds_of_pictures(pipe, seen):
    how = pipe.sampling.changed(steps=2, eta=1.0)  # eta adds noise in every step
    bar = SimpleNamespace(update=lambda n: None)
    first, again, other = (
        metrics.picture.drawn_from(pipe, seen, how, seed, bar) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not (first == other).all(dim=1).any()


def test_text_and_music_ask_about_their_own_scenes(tiny_pipe, monkeypatch):
    assert list(metrics.TASKS) == ["text", "music", "speech", "prompted", "picture"]
    asked = {}
    monkeypatch.setattr(metrics.text, "evaluate", lambda *_, **x: asked.update(x) or {})
    judge = torch.nn.Identity()
    for task, kinds in (("text", ("single", "pair")), ("music", ("music",))):
        metrics.TASKS[task].evaluate(tiny_pipe, (judge, "a CLAP"), None, n=3, seed=4)
        assert asked == {"n": 3, "seed": 4, "kinds": kinds, "listener": "a CLAP"}


# --------------------------------------------------------------------------------------
# The command line


@pytest.fixture
def shipped(folder, monkeypatch, tmp_path) -> Path:
    """A place where the small weights that see are those that ship."""
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "weights" / "picture").symlink_to(folder)
    monkeypatch.setattr(cli, "DATA", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    drawn = (255 * SENSES["image"](SoundWorld(pairs=0.0).scene(0))).byte()
    Image.fromarray(drawn.permute(1, 2, 0).numpy()).save("dog.png")
    Path("text.png").write_text("not a picture")
    return tmp_path


def test_a_picture_chooses_the_weights_that_see(shipped, capsys):
    line = "generate --picture dog.png --steps 2 --seed 1 -o seen.wav --plot seen.png"
    assert cli.main(line.split()) == 0
    out, err = capsys.readouterr()
    assert "seen.wav  0.64 s  seed 1  the picture dog.png" in out
    assert "minilib:" not in err
    assert len(audio.load("seen.wav")) == 10240
    assert Path("seen.png").is_file()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--picture no.png", "there is no picture 'no.png'"),
        ("--picture text.png", "'text.png' is not a PNG or JPEG picture"),
        ("bark --picture dog.png", "--picture and CAPTION do not go together"),
        (
            "--picture dog.png --transcription zero",
            "--picture and --transcription do not go together: leave out one",
        ),
        ("--picture dog.png --voice me.wav", "--picture and --voice do not go"),
        ("--picture dog.png --candidates 2", "--picture and --candidates do not go"),
    ],
)
def test_a_picture_is_refused_in_a_sentence(shipped, capsys, line, said):
    assert cli.main(["generate", *line.split()]) == 2
    assert said in capsys.readouterr().err
    assert not Path("sound.wav").exists()


def test_weights_that_neither_see_nor_speak_refuse_at_once(
    shipped, tiny_pipe_folder, capsys
):
    audio.save("me.wav", torch.zeros(16000))
    for given in ("--picture dog.png", "--voice me.wav --transcription zero"):
        line = f"generate {given} --weights {tiny_pipe_folder}"
        assert cli.main(line.split()) == 2
        out, err = capsys.readouterr()
        assert not out  # no seed yet
        assert f"these weights take no {given.split()[0]}: name others" in err


def test_the_command_evaluate_judges_pictures(shipped, capsys, monkeypatch):
    def evaluated(pipe, judges, how, n, seed):
        assert pipe.sees and judges == "judges"
        return metrics.settings(n, seed, how) | {"single.class": 0.5, "ceiling.x": 1.0}

    task = metrics.TASKS["picture"]
    task = replace(task, evaluate=evaluated, judges=lambda folder: folder.name)
    monkeypatch.setitem(metrics.TASKS, "picture", task)
    line = "evaluate --task picture --n 7 --json found.json"
    assert cli.main(line.split()) == 0
    assert "7 times each question of pictures" in capsys.readouterr().out
    assert json.loads(Path("found.json").read_text())["single.class"] == 0.5


# --------------------------------------------------------------------------------------
# What ships


def test_the_weights_that_ship_make_the_sound_of_a_picture():
    pipe = AudioLDM2.from_pretrained(SHIPPED, device="cpu")
    judges = SHIPPED.parent / "judges" / "judge"
    judge = Classifier.from_pretrained(judges, dtype=torch.float32)
    known = judge.config.classes
    seen = metrics.pictures_of(12, 1, 2.56)
    scenes = metrics.held_out_scenes(judge, 12, 1, 2.56, n_events=1)
    waves = pipe(picture=seen, seed=0, progress=False)
    right = metrics.judged(judge, waves, scenes.labels)["class"].mean()
    assert right >= 0.6 > 10 / len(known)
    turned = metrics.judged(judge, waves, scenes.labels.roll(1, 0))["class"].mean()
    assert turned < 0.4


def test_the_parts_that_ship_are_small_and_the_others_are_those_of_tiny():
    size = sum(x.stat().st_size for x in SHIPPED.rglob("*") if x.is_file())
    assert size < 8e6
    for part in BORROWED:
        assert folders.part_folder(SHIPPED, part).samefile(
            SHIPPED.parent / "tiny" / part
        )
    assert not (SHIPPED / "cache").exists()
