"""Pipelines on disk: what is saved loads again, what is damaged is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minilib
from minilib import audio, folders, metrics
from minilib.audioldm2 import AudioLDM2
from minilib.cli import shipped_weights
from minilib.folders import CLASSES
from minilib.gpt import Loudness, LoudnessConfig
from minilib.guidance import Sampling
from minilib.unet import UNet

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


def with_field(part: str) -> Callable[[Path], None]:
    """What adds a field to the config of a part."""

    def spoil(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "new": 1}))

    return spoil


DAMAGE = {
    "no pipeline.json": (
        lambda f: (f / "pipeline.json").unlink(),
        "pipeline.json is missing",
    ),
    "empty pipeline.json": (
        lambda f: (f / "pipeline.json").write_text("{}"),
        "`seconds` of a sound must be above 0",
    ),
    "strange pipeline.json": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "rescale": 2}'),
        "pipeline.json is damaged: rescale is not a field of sampling, which has steps",
    ),
    "strange temperature": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "temperature": 0}'),
        "pipeline.json is damaged: temperature must be above 0, not 0",
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
    **{
        f"unknown field of {part}": (
            with_field(part),
            rf"{part}.config.json: .* does not know the field 'new'$",
        )
        # of the small pipeline, for which nobody has fitted the loudness
        for part in sorted({*CLASSES} - {"bind", "columns", "memory", "loudness"})
    },
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
    "half-copied": (half_copied, "unet.model.safetensors is damaged or incomplete"),
    "a pickle": (
        pickled,
        "pytorch_model.bin beside it is a pickle, which is never loaded",
    ),
    "another config": (of_another_size, "clap do not fit its config"),
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
    # nobody has fitted the loudness, and this pipeline neither sees nor speaks
    assert found == {*CLASSES} - {"loudness", "bind", "columns", "memory"}


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
    paths = sorted(shipped_weights().parent.rglob("model.safetensors"))
    found = {path.parent.name for path in paths}
    peers = {"codec", "icons", "lm", "naturalspeech2", "nextgpt", "units", "valle"}
    assert found == {*CLASSES, "judge", "words", "voices", *peers}
    for path in paths:
        with safe_open(path, "pt") as file:
            names = file.keys()  # it is no dictionary
            kinds = {file.get_slice(name).get_dtype() for name in names}
        exact = {"F32"} if path.parent.name == "units" else set()  # 63 cluster centres
        assert kinds <= {"F16", "I64", *exact}, path


def as_before(folder: Path, pack: int) -> None:
    """Write a folder as this package did before December 2026: the VAE packs, GPT-2
    says how loud, and AudioMAE has the statistics of one lambda.
    """

    def edit(name, change):
        path = folder / name / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return config

    def unpatched(config):
        config["in_channels"] *= config.pop("patch") ** 2
        del config["cross_attention"]

    edit("vae", lambda config: config.update(pack=pack, faint_weight=0.2))
    edit("unet", unpatched)
    edit("gpt", lambda config: config.update(level=True))
    loud = load_file(folder / "loudness" / "model.safetensors")
    gpt = load_file(folder / "gpt" / "model.safetensors")
    gpt |= {f"level_{name}": x for name, x in loud.items()}
    save_file(gpt, folder / "gpt" / "model.safetensors")
    shutil.rmtree(folder / "loudness")
    config = edit("audiomae", lambda config: config)
    row = config["pools"].index(config["pool"])
    edit("audiomae", lambda config: config.pop("pools"))
    mae = load_file(folder / "audiomae" / "model.safetensors")
    mae |= {k: mae[k][row].clone() for k in ("loa_mean", "loa_std")}
    save_file(mae, folder / "audiomae" / "model.safetensors")
    path = folder / "pipeline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale": 0.0}))


@pytest.mark.parametrize("pack", [1, 2])
@torch.no_grad()
def test_a_folder_of_before_is_read_and_sounds_the_same(tiny_pipe, pack, tmp_path):
    config = replace(tiny_pipe.unet.config, patch=pack, loa_patch=8 // pack)
    tiny_pipe.unet = UNet(config).eval()
    tiny_pipe.loudness = Loudness(LoudnessConfig(4, 16))
    loa = torch.randn(50, 4, 16, generator=torch.Generator().manual_seed(0))
    tiny_pipe.loudness.fit(loa, loa[:, 0, 0] - 40)
    tiny_pipe.audiomae.fit_statistics(torch.randn(8, 1, 64, 64) - 7)
    tiny_pipe.save_pretrained(tmp_path)
    tiny_pipe = AudioLDM2.from_pretrained(tmp_path, device="cpu")
    as_before(tmp_path, pack)
    again = AudioLDM2.from_pretrained(tmp_path, device="cpu")
    waves = [pipe(CAPTIONS, seed=0, **FAST) for pipe in (tiny_pipe, again)]
    assert torch.equal(*waves)
    assert again.unet.config == config and again.vae.config == tiny_pipe.vae.config
    pool, mel = tiny_pipe.audiomae.config.pool, torch.randn(2, 1, 64, 64) - 7
    assert again.audiomae.config.pools == (pool,)
    assert torch.equal(again.audiomae.loa(mel), tiny_pipe.audiomae.loa(mel))
    again.save_pretrained(tmp_path)  # which brings it up to date
    assert (tmp_path / "loudness").is_dir()
    unet = folders.load_part(tmp_path, "unet")
    assert unet.config == config


def test_a_folder_of_before_without_a_fitted_level_has_no_loudness(tiny_pipe, tmp_path):
    tiny_pipe.loudness = Loudness(LoudnessConfig(4, 16))
    tiny_pipe.save_pretrained(tmp_path)
    as_before(tmp_path, 1)
    assert AudioLDM2.from_pretrained(tmp_path, device="cpu").loudness is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None])
@torch.no_grad()
def test_sound_enters_weights_of_any_type(dtype):
    """The weights that ship; None keeps their half precision."""
    pipe = AudioLDM2.from_pretrained(shipped_weights(), device="cpu", dtype=dtype)
    assert {model.dtype for model in pipe.models.values() if model.n_parameters()} == {
        dtype or torch.float16
    }
    wave = pipe("a dog barks", seed=0, steps=2, candidates=2, progress=False)
    assert wave.dtype == torch.float32 and wave.isfinite().all() and wave.std() > 1e-3
    mel = audio.log_mel(wave)
    full = AudioLDM2.from_pretrained(shipped_weights(), device="cpu")
    hear = {  # each gets sound in single precision, as it is read from a file
        "latent": lambda pipe: pipe.vae.encode(mel),
        "mel": lambda pipe: pipe.vae(mel),
        "loa": lambda pipe: pipe.audiomae.loa(mel),
        "clap": lambda pipe: pipe.clap.embed_waves(wave),
        "clap of mel": lambda pipe: pipe.clap.embed_audio(mel),
        # phases are another matter
        "wave": lambda pipe: audio.log_mel(pipe.vocoder(mel)),
        "judged": lambda pipe: pipe.clap.embed_waves(pipe.vocoder(mel)),
    }
    for name, step in hear.items():
        half, whole = step(pipe).float(), step(full)
        assert float((half - whole).norm() / whole.norm()) < 0.15, name
    kept = metrics.reconstruction(pipe, wave[0])
    assert kept["wave"].isfinite().all() and 0 < kept["total_db"] < 5


def test_what_a_released_folder_is_asked_for_is_checked_before_it_is_read(
    tiny_pipe_folder, monkeypatch
):
    monkeypatch.setattr(folders, "load", None)  # nothing is read
    read = AudioLDM2.from_diffusers
    with pytest.raises(ValueError, match='unconditional_loa must be "gpt" or "zeros"'):
        read("somewhere", unconditional_loa="none")
    with pytest.raises(
        TypeError, match="n_token is not an option here: somewhere takes"
    ):
        read("somewhere", n_token=8)
    with pytest.raises(TypeError, match="like is not an option here"):
        read("somewhere", like="elsewhere")
    for name, value in (("n_tokens", 0), ("head_width", -1), ("n_tokens", 2.5)):
        with pytest.raises((TypeError, ValueError), match=f"{name} must be a whole nu"):
            read("somewhere", **{name: value})
    with pytest.raises(ValueError, match="takes no head_width, which are for released"):
        read(tiny_pipe_folder, head_width=32)


@pytest.mark.parametrize("key", ["classes", "words", "captions"])
@pytest.mark.parametrize("value", [3, "dog", ["dog", 3], None])
def test_a_vocabulary_that_is_no_list_of_strings_is_refused(copied, key, value):
    (copied / "vocabulary.json").write_text(json.dumps({key: value}))
    said = f"vocabulary.json is damaged: `{key}` must be a list of strings"
    with pytest.raises(ValueError, match=said):
        AudioLDM2.from_pretrained(copied)


def test_a_length_that_no_sound_can_have_is_refused_as_the_folder_is_read(copied):
    path = copied / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1e9}))
    with pytest.raises(ValueError, match="pipeline.json is damaged: .*at most 60"):
        AudioLDM2.from_pretrained(copied)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"folder": None}, TypeError, "folder must be a path: .*, not None"),
        ({"folder": 3}, TypeError, "folder must be a path: .*, not 3"),
        ({"folder": ""}, ValueError, "folder must be a path: .*, not ''"),
        ({"dtype": "float16"}, TypeError, "dtype must be .*, not 'float16'"),
        ({"dtype": torch.int8}, TypeError, "dtype must be .*, not torch.int8"),
        ({"device": "gpu"}, ValueError, "device must be .*, not 'gpu'"),
        ({"device": []}, ValueError, r"device must be .*, not \[\]"),
    ],
)
def test_folders_types_and_devices_that_are_none_are_refused(
    tiny_pipe_folder, given, error, said
):
    with pytest.raises(error, match=said):
        AudioLDM2.from_pretrained(**{"folder": tiny_pipe_folder} | given)


def test_a_folder_that_is_none_is_not_written(tiny_pipe):
    for write in (tiny_pipe.save_pretrained, tiny_pipe.to_diffusers):
        with pytest.raises(TypeError, match="folder must be a path"):
            write(None)
