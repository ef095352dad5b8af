"""Pipelines on disk: what is saved loads again, what is damaged is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import minilib
from minilib import folders
from minilib.audioldm2 import AudioLDM2
from minilib.cli import shipped_weights
from minilib.folders import CLASSES
from minilib.gpt import Loudness, LoudnessConfig
from minilib.guidance import Sampling

CAPTIONS = ["a dog barks", "rain falls, then a bell rings"]
FAST = {"steps": 3, "progress": False}


@pytest.fixture
def copied(tiny_pipe_folder, tmp_path) -> Path:
    """A copy of the folder of weights, to be damaged."""
    return Path(shutil.copytree(tiny_pipe_folder, tmp_path / "weights"))


def test_saved_and_loaded_pipelines_make_the_same_sounds(tiny_pipe, tmp_path):
    tiny_pipe.sampling = Sampling(7, 2.0, (300, 1000), 0.7, "dpm", 0.0, "zeros")
    tiny_pipe.loudness = Loudness(LoudnessConfig(4, 16))
    loa = torch.randn(50, 4, 16, generator=torch.Generator().manual_seed(0))
    tiny_pipe.loudness.fit(loa, loa[:, 0, 0] - 40)
    tiny_pipe.save_pretrained(tmp_path / "again")
    again = minilib.AudioLDM2.from_pretrained(tmp_path / "again", device="cpu")
    assert torch.equal(
        tiny_pipe(CAPTIONS, seed=0, **FAST), again(CAPTIONS, seed=0, **FAST)
    )
    for name in ("vocabulary", "seconds", "sampling"):
        assert getattr(again, name) == getattr(tiny_pipe, name)
    configs = lambda pipe: {name: m.config for name, m in pipe.models.items()}
    assert configs(again) == configs(tiny_pipe) and "loudness" in configs(again)


def test_weights_in_half_precision_load_as_float32_in_evaluation_mode(
    tiny_pipe_folder, tiny_pipe
):
    from safetensors.torch import load_file

    stored = load_file(tiny_pipe_folder / "unet" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for model in tiny_pipe.models.values():
        assert {p.dtype for p in model.parameters()} == {
            torch.float32
        } and not model.training


def test_a_pipeline_brings_its_own_guidance_and_a_call_may_say_another(
    copied, tiny_pipe
):
    description = json.loads((copied / "pipeline.json").read_text())
    (copied / "pipeline.json").write_text(json.dumps({**description, "guidance": 2.0}))
    pipe = AudioLDM2.from_pretrained(copied, device="cpu")
    assert torch.equal(
        pipe(CAPTIONS, seed=0, **FAST),
        tiny_pipe(CAPTIONS, guidance=2.0, seed=0, **FAST),
    )
    assert torch.equal(
        pipe(CAPTIONS, guidance=3.0, seed=0, **FAST),
        tiny_pipe(CAPTIONS, guidance=3.0, seed=0, **FAST),
    )
    pipe.save_pretrained(copied.parent / "again")
    assert folders.read_description(copied.parent / "again")["sampling"].guidance == 2.0
    del description["guidance"]  # as older pipelines have it
    (copied / "pipeline.json").write_text(json.dumps(description))
    assert folders.read_description(copied)["sampling"].guidance == 3.5


def test_a_pipeline_generates_without_the_audiomae_that_only_training_needs(copied):
    shutil.rmtree(copied / "audiomae")
    pipe = AudioLDM2.from_pretrained(copied, device="cpu")
    assert pipe.audiomae is None and pipe(CAPTIONS, seed=0, **FAST).shape[0] == 2


def half_copied(folder: Path) -> None:
    path = folder / "unet" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def pickled(folder: Path) -> None:
    (folder / "unet" / "model.safetensors").unlink()
    torch.save({}, folder / "unet" / "pytorch_model.bin")


def of_another_size(folder: Path) -> None:
    path = folder / "clap" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dim": 24}))


def swapped(folder: Path) -> None:
    shutil.copytree(folder / "clap", folder / "text", dirs_exist_ok=True)


def mixed(folder: Path) -> None:
    """A CLAP that is whole, but of another width than the GPT-2 beside it takes."""
    from minilib.clap import CLAP

    config = CLAP.from_pretrained(folder / "clap").config
    CLAP(replace(config, dim=24)).save_pretrained(folder / "clap")


def of_another_loa(folder: Path) -> None:
    """A U-Net that is whole, but lays out another number of LOA vectors than GPT-2
    writes.
    """
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "loa_grid": [3, 2]}))


DAMAGE = {
    "no pipeline.json": (
        lambda f: (f / "pipeline.json").unlink(),
        "pipeline.json is missing",
    ),
    "empty pipeline.json": (
        lambda f: (f / "pipeline.json").write_text("{}"),
        "it must tell the `seconds`",
    ),
    "strange pipeline.json": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "rescale": 2}'),
        "pipeline.json is damaged: rescale is unknown; sampling has steps",
    ),
    "strange temperature": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "temperature": 0}'),
        "pipeline.json is damaged: temperature must lie above 0, not 0",
    ),
    "strange steps": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "steps": 2.5}'),
        "pipeline.json is damaged: steps must be a whole number from 1 to 1000, not "
        "2.5",
    ),
    "strange guidance": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "guidance": -1}'),
        "pipeline.json is damaged: guidance must be a finite number and be 0 or more",
    ),
    "strange interval of guidance": (
        lambda f: (f / "pipeline.json").write_text(
            '{"seconds": 1, "guidance_interval": [300]}'
        ),
        r"pipeline.json is damaged: guidance_interval must be two noise levels from 0 "
        r"to 1000, the lower first",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "damaged tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json",
    ),
    "damaged vocabulary": (
        lambda f: (f / "vocabulary.json").write_text("["),
        "vocabulary.json is damaged",
    ),
    "a part is missing": (
        lambda f: shutil.rmtree(f / "vae"),
        "vae.config.json is missing: the weights folder",
    ),
    "half-copied": (half_copied, "unet.model.safetensors is damaged or half-copied"),
    "a pickle": (
        pickled,
        "pytorch_model.bin beside it is a pickle, which is never loaded",
    ),
    "another config": (of_another_size, "clap are not those of its config"),
    "another model": (swapped, "text.config.json is not the config of a T5Encoder"),
    "mixed": (mixed, "clap gives width 24, but gpt takes 16"),
    "another LOA": (of_another_loa, "gpt writes 4 LOA vectors, but unet lays out"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_sentence_that_names_the_file(
    copied, damage
):
    harm, said = DAMAGE[damage]
    harm(copied)
    with pytest.raises((FileNotFoundError, ValueError), match=said) as caught:
        AudioLDM2.from_pretrained(copied)
    assert "\n" not in str(caught.value)


def test_every_part_has_its_folder(tiny_pipe_folder):
    found = {path.name for path in tiny_pipe_folder.iterdir() if path.is_dir()}
    assert found == {*CLASSES} - {"loudness"}  # which nobody has fitted


def test_a_pipeline_may_take_a_part_from_another_folder(copied, tiny_pipe):
    other = copied.parent / "other"
    shutil.copytree(copied, other)
    for name in ("vae", "clap"):
        shutil.rmtree(other / name)
    elsewhere = {"vae": "../weights/vae", "clap": "../weights/clap"}
    description = json.loads((other / "pipeline.json").read_text())
    (other / "pipeline.json").write_text(json.dumps({**description, **elsewhere}))
    pipe = AudioLDM2.from_pretrained(other, device="cpu")
    wave = tiny_pipe(CAPTIONS, seed=0, **FAST)
    assert torch.equal(pipe(CAPTIONS, seed=0, **FAST), wave)
    pipe.save_pretrained(copied.parent / "whole")  # which needs no other folder
    shutil.rmtree(copied)
    whole = AudioLDM2.from_pretrained(copied.parent / "whole", device="cpu")
    assert torch.equal(whole(CAPTIONS, seed=0, **FAST), wave)
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        AudioLDM2.from_pretrained(other)
    (other / "pipeline.json").write_text(json.dumps({**description, "text": 3}))
    with pytest.raises(ValueError, match="`text` must name a folder, not 3"):
        AudioLDM2.from_pretrained(other)


def test_the_weights_that_ship_are_in_half_precision():
    paths = sorted(shipped_weights().parent.glob("*/*/model.safetensors"))
    assert {path.parent.name for path in paths} == {*CLASSES, "judge"}
    for path in paths:
        with safe_open(path, "pt") as file:
            names = file.keys()  # it is no dictionary
            kinds = {file.get_slice(name).get_dtype() for name in names}
        assert kinds <= {"F16", "I64"}, path
