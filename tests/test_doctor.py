"""`minilib doctor`: each check sees its part of the world break, and tells how to mend
it.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.specifiers import SpecifierSet
from test_files import LIMIT, files_of_at_most

from minilib import audio, cli, doctor
from minilib.data import Corpus
from minilib.soundworld import SoundWorld
from minilib.tokenizer import Tokenizer
from minilib.training import RUNS, STAGES, Recipe, TrainingData, train

NAMES = [
    "Python", "torch", "device", "torchaudio", "libraries", "disk", "temp folder",
    "memory", "weights", "recordings",
]  # fmt: skip


@pytest.fixture
def weights(tiny_pipe_folder, tmp_path, monkeypatch) -> Path:
    """A copy of the small pipeline in the place of the weights that ship."""
    monkeypatch.setattr(cli, "DATA", tmp_path / "data")
    return Path(
        shutil.copytree(tiny_pipe_folder, tmp_path / "data" / "weights" / "tiny")
    )


def prevents(finding: doctor.Finding) -> str:
    """What is wrong, where minilib can't work with it."""
    assert finding.wrong and not finding.works
    return finding.wrong


def warns(finding: doctor.Finding) -> str:
    """What is wrong, where minilib works all the same."""
    assert finding.wrong and finding.works
    return finding.wrong


# --------------------------------------------------------------------------------------
# The command


def test_where_all_is_well_each_check_has_one_line(capsys, weights, monkeypatch):
    monkeypatch.delenv("MINILIB_REALAUDIO", raising=False)
    monkeypatch.setattr(doctor, "TRAINS", 0)  # a small machine gets a warning
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=9e9))
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13].strip() for line in lines] == NAMES and all(
        len(line) > 13 for line in lines
    )
    assert lines[1].endswith(f"{torch.__version__}, {torch.get_num_threads()} threads")
    assert lines[8].endswith(
        f"text, clap, gpt, unet, vae, vocoder, audiomae in {weights}"
    )


def test_what_prevents_work_ends_with_1_and_a_warning_does_not(
    capsys, weights, monkeypatch
):
    monkeypatch.setenv("MINILIB_REALAUDIO", "nowhere")
    assert cli.main(["doctor", "--weights", str(weights)]) == 0
    assert (
        "\n             warning: training can't read it (there is no folder 'nowhere')"
        in capsys.readouterr().out
    )
    (weights / "vae" / "config.json").unlink()
    assert cli.main(["doctor", "--weights", str(weights)]) == 1
    assert re.search(r"\n {13}WRONG: .*config.json is missing", capsys.readouterr().out)


def test_a_broken_library_hides_no_other_check(weights, monkeypatch):
    monkeypatch.delitem(sys.modules, "minilib.audioldm2")
    monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
    findings = {name: check() for name, check in doctor.examine(weights)}
    assert list(findings) == NAMES
    assert "reinstall it" in prevents(findings["torch"])
    assert "fix the other problems first" in prevents(findings["weights"])
    assert findings["Python"].works and findings["memory"].works


# --------------------------------------------------------------------------------------
# Python and the libraries


VERSIONS = {"3.9.18": False, "3.10.0": True, "3.13.5": True, "3.14.0": False}


@pytest.mark.parametrize(("version", "fits"), VERSIONS.items())
def test_python_must_be_one_that_pyproject_names(monkeypatch, version, fits):
    monkeypatch.setattr(platform, "python_version", lambda: version)
    finding = doctor.python()
    assert finding.works is fits
    assert (
        fits
        or "minilib runs on Python" in prevents(finding)
        and ">=3.10" in finding.wrong
    )


def test_the_bounds_are_those_of_pyproject_installed_or_not(tmp_path, monkeypatch):
    python, installed = doctor.declared()
    text = doctor.PYPROJECT.read_text(encoding="utf-8")
    assert {r.name for r in installed} >= {
        "torch",
        "numpy",
        "tqdm",
    } and "pytest" not in {r.name for r in installed}

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    declared = doctor.declared()
    assert SpecifierSet(declared[0]) == SpecifierSet(python)
    assert {str(r) for r in declared[1]} == {str(r) for r in installed}
    monkeypatch.setattr(doctor, "PYPROJECT", tmp_path / "pyproject.toml")
    doctor.PYPROJECT.write_text(
        text.replace("numpy>=2.0", "numpy>=99"), encoding="utf-8"
    )
    said = prevents(doctor.libraries())
    assert "numpy is" in said and "not >=99" in said and "tqdm" not in said
    assert (
        said.endswith('-m pip install "numpy>=99"')
        and "pip uninstall -y numpy &&" in said
    )


def test_libraries_that_are_missing_or_broken_are_named_with_one_command_for_all(
    monkeypatch,
):
    version = importlib.metadata.version

    def without_librosa(name):
        if name == "librosa":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    assert doctor.libraries().wrong == ""
    monkeypatch.setattr(importlib.metadata, "version", without_librosa)
    monkeypatch.setitem(sys.modules, "soundfile", None)  # an import fails
    said = prevents(doctor.libraries())
    assert (
        "librosa is missing; soundfile" in said
        and "can't be imported (ModuleNotFoundError" in said
    )
    assert "uninstall -y librosa soundfile && " in said and re.search(
        'install "librosa>=.*" "soundfile>=.*"$', said
    )


def test_torch_must_fit_and_multiply_correctly(monkeypatch):
    assert doctor.torch_itself().wrong == ""
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: matmul(a, b) + 1e-3 * a.is_floating_point(),
    )
    assert "multiplies matrices wrongly on this CPU" in prevents(doctor.torch_itself())
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "1.13.1" if name == "torch" else version(name),
    )
    assert "torch is 1.13.1, not >=" in prevents(doctor.torch_itself())


@pytest.mark.skipif(os.name == "nt", reason="a program of Windows has another name")
@pytest.mark.parametrize(
    ("cuda", "said"),
    [(None, "built for the CPU only"), ("13.0", "built for CUDA 13.0")],
)
def test_a_gpu_that_lies_idle_is_told(tmp_path, monkeypatch, cuda, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.device() == doctor.Finding(
        "the CPU; torch finds no GPU that it can use"
    )
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert said in warns(doctor.device())


def test_a_gpu_must_multiply(monkeypatch):
    to = torch.Tensor.to
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: SimpleNamespace(total_memory=16e9),
    )
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device: to(x, "cpu"))
    assert doctor.device() == doctor.Finding("A GPU, 16.0 GB")
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device: to(x, "cpu") * 1.01)
    assert "it multiplies matrices wrongly" in prevents(doctor.device())

    def no_kernel(x, device):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the "
            "device\nCompile with ..."
        )

    monkeypatch.setattr(torch.Tensor, "to", no_kernel)
    said = prevents(doctor.device())
    assert (
        "no kernel image" in said
        and "export CUDA_VISIBLE_DEVICES=" in said
        and "\n" not in said
    )


def test_an_apple_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert doctor.device() == doctor.Finding(
        "Apple GPU (MPS) for training; the CPU for everything else"
    )


def test_torchaudio_may_be_absent_and_is_only_a_warning_where_it_is_broken(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    assert doctor.torchaudio() == doctor.Finding(
        "not installed; minilib does not need it"
    )
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(
        "raise OSError('undefined symbol')"
    )
    monkeypatch.delitem(sys.modules, "torchaudio")
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        "OSError: undefined symbol" in warns(doctor.torchaudio())
        and "pip uninstall" in doctor.torchaudio().wrong
    )
    (tmp_path / "torchaudio" / "__init__.py").write_text("__version__ = '2.99'")
    importlib.invalidate_caches()
    assert doctor.torchaudio() == doctor.Finding("2.99")


# --------------------------------------------------------------------------------------
# Room


def test_the_room_for_a_run_is_what_its_files_take(tmp_path, monkeypatch):
    from minilib import folders

    recipe = Recipe(steps=1, batch_size=2, lr=1e-3, ema=0.9)
    monkeypatch.setitem(RUNS, "tiny", replace(RUNS["tiny"], n_clips=50))
    monkeypatch.setattr(folders, "CLASSES", {"vae": folders.CLASSES["vae"]})
    corpus = Corpus.from_soundworld(
        SoundWorld(seconds=RUNS["tiny"].seconds), 50, progress=False
    )
    corpus.save(tmp_path / "corpus")
    data = TrainingData(corpus, Tokenizer.train(corpus.captions))
    stage = STAGES["vae"]("tiny", recipe, data, {}, crop=64)
    model = train(stage, tmp_path / "out", progress=False)
    model.save_pretrained(tmp_path / "vae", dtype=torch.float16)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    # its successor beside it
    written += (tmp_path / "out" / "checkpoints" / "vae.pt").stat().st_size
    assert doctor.room_for_a_run() == pytest.approx(written, rel=0.03)


@pytest.mark.skipif(
    os.name == "nt", reason="Windows sets no limit on the size of files"
)
def test_a_folder_that_takes_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert doctor.disk().works and not doctor.temporary_folder().wrong
    with files_of_at_most(LIMIT):
        assert "not even a megabyte can be written here (File too large)" in prevents(
            doctor.disk()
        )
        assert "not even a megabyte can be written there (File too large)" in warns(
            doctor.temporary_folder()
        )
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_for_training_is_a_warning(monkeypatch):
    free = doctor.room_for_a_run()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert doctor.disk() == doctor.Finding(f"{free / 1e9:.1f} GB free in {Path.cwd()}")
    free -= 1
    assert "`minilib train all` writes up to" in warns(doctor.disk())


def test_a_system_without_temporary_folder_is_told(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert "No usable temporary directory" in warns(doctor.temporary_folder())


def test_memory_is_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(doctor, "MEMORY_LIMITS", [tmp_path / "limit"])
    doctor.MEMINFO.write_text(
        "MemTotal: 9000000 kB\nMemFree: 10 kB\nMemAvailable: 8000000 "
        "kB\nHugePages_Total: 0\n"
    )
    assert doctor.memory() == doctor.Finding("8.2 GB available")
    for limit, judge in (("max", None), ("3000000000", warns), ("400000000", prevents)):
        (tmp_path / "limit").write_text(f"{limit}\n")
        finding = doctor.memory()
        assert finding.wrong == "" if judge is None else "needs" in judge(finding)


def test_memory_without_proc_is_all_there_is_or_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(doctor, "MEMORY_LIMITS", [])
    monkeypatch.setattr(
        os, "sysconf_names", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2}, raising=False
    )
    monkeypatch.setattr(
        os, "sysconf", {"SC_PHYS_PAGES": 10**6, "SC_PAGE_SIZE": 4096}.get, raising=False
    )
    assert doctor.memory() == doctor.Finding("4.1 GB available")
    monkeypatch.setattr(os, "sysconf_names", {})
    assert doctor.memory() == doctor.Finding(
        "not checked: this system does not report it"
    )


# --------------------------------------------------------------------------------------
# Weights and recordings


def test_every_damaged_part_is_named(weights):
    for name in ("clap", "vocoder"):
        file = weights / name / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    said = prevents(doctor.pipeline(weights))
    assert all(
        f"{weights / name}/model.safetensors is damaged" in said
        for name in ("clap", "vocoder")
    )
    assert "unet" not in said and said.endswith("or train them (minilib train all)")


@pytest.mark.parametrize("name", ["pipeline.json", "tokenizer.json", "vocabulary.json"])
def test_what_stands_beside_the_parts_is_looked_at(weights, name):
    (weights / name).write_text("{")
    assert f"{weights / name}" in prevents(doctor.pipeline(weights))


def test_weights_without_audiomae_do_and_missing_ones_do_not(weights):
    shutil.rmtree(weights / "audiomae")
    assert doctor.pipeline(weights) == doctor.Finding(
        f"text, clap, gpt, unet, vae, vocoder in {weights}"
    )
    assert f"there are no weights in {weights / 'none'}" in prevents(
        doctor.pipeline(weights / "none")
    )


def test_a_peer_is_loaded_as_one(tmp_path):
    for name in ("text_ldm", "codec"):
        folder = cli.place_of(f"peers/{name}")
        assert doctor.pipeline(folder) == doctor.Finding(f"the peer {name} in {folder}")
    broken = tmp_path / "codec"
    shutil.copytree(folder, broken)
    (broken / "codec" / "model.safetensors").unlink()
    said = prevents(doctor.pipeline(broken))
    assert "model.safetensors is missing" in said
    assert said.endswith("or train them (minilib train-peer codec)")


def test_a_released_pipeline_is_loaded_as_one(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "AudioLDM2Pipeline"}')
    said = prevents(doctor.pipeline(tmp_path))
    # a part of this package's own layout
    assert str(tmp_path) in said and "text/config.json" not in said


def test_recordings_are_counted_as_training_hears_them(tmp_path, monkeypatch):
    audio.save(tmp_path / "a.wav", torch.zeros(100))
    rows = "train,CC0 1.0", "test,CC0 1.0", "train,CC BY-NC 4.0"
    table = "file,part,licence\n" + "".join(f"a.wav,{row}\n" for row in rows)
    (tmp_path / "manifest.csv").write_text(table)
    monkeypatch.setenv("MINILIB_REALAUDIO", str(tmp_path))
    assert doctor.recordings() == doctor.Finding(f"1 to train on in {tmp_path}")
    (tmp_path / "a.wav").unlink()
    assert "the file 'a.wav' is missing" in warns(doctor.recordings())
    (tmp_path / "manifest.csv").unlink()
    assert "has no metadata.csv (nor " in warns(doctor.recordings())
