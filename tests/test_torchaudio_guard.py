"""The guard of `minilib.torchaudio_guard`, with the installed torch and with fakes of
torch and torchaudio.

Each case runs in a Python of its own, because an import can't be undone.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
NO_TORCHAUDIO = importlib.util.find_spec("torchaudio") is None


def run(code: str, *first_on_path: Path) -> subprocess.CompletedProcess:
    """Run `code` in a fresh Python that sees this checkout."""
    path = os.pathsep.join(str(folder) for folder in (*first_on_path, ROOT))
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT
    )


@pytest.fixture
def fakes(tmp_path):
    """A function that writes a torch of a given CUDA version and a torchaudio whose
    extension can't be loaded.
    """

    def write(cuda: str | None) -> Path:
        files = {
            "torch/__init__.py": "from . import version",
            "torch/version.py": f"cuda = {cuda!r}",
            "torchaudio/__init__.py": "import torch\nfrom . import _extension",
            "torchaudio/_extension/__init__.py": "from .utils import "
            "_load_lib\nAVAILABLE = "
            "_load_lib('x')",
            "torchaudio/_extension/utils.py": "def _load_lib(lib):\n    raise "
            "OSError('libc10_cuda is missing')",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def test_importing_minilib_imports_neither_torch_nor_torchaudio():
    done = run(
        "import sys, minilib; print({'torch', 'torchaudio', 'numpy'} & "
        "set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.skipif(NO_TORCHAUDIO, reason="torchaudio is not installed")
@pytest.mark.skipif(
    torch.version.cuda is not None, reason="torch has CUDA: the guard does nothing here"
)
def test_torchaudio_and_what_imports_it_work_beside_a_cpu_only_torch():
    done = run(
        "import minilib, torch, torchaudio\n"
        "wave = torch.randn(1, 16000)\n"
        "mel = torchaudio.transforms.MelSpectrogram(16000, 1024, hop_length=160, "
        "n_mels=64)\n"
        "print(tuple(mel(wave).shape))\n"
        "print(tuple(torchaudio.transforms.Resample(16000, 8000)(wave).shape))\n"
        "print(tuple(torchaudio.compliance.kaldi.fbank(wave, "
        "num_mel_bins=128).shape))\n"
        "from transformers import Speech2TextFeatureExtractor\n"  # imports torchaudio
        "print(Speech2TextFeatureExtractor.__name__)\n"
    )
    assert done.stdout.split("\n")[:4] == [
        "(1, 64, 101)",
        "(1, 8000)",
        "(98, 128)",
        "Speech2TextFeatureExtractor",
    ], done.stderr


def test_beside_a_cpu_only_torch_an_extension_that_cannot_be_loaded_counts_as_absent(
    fakes,
):
    done = run(
        "import minilib, torchaudio; print(torchaudio._extension.AVAILABLE)",
        fakes(cuda=None),
    )
    assert done.stdout.strip() == "False", done.stderr


def test_beside_a_cuda_torch_nothing_is_touched(fakes):
    code = (
        "import minilib, sys\n"
        "try:\n"
        "    import torchaudio\n"
        "except OSError as error:\n"
        "    print(error, "
        "hasattr(sys.modules['torchaudio._extension.utils']._load_lib, "
        "'__wrapped__'))\n"
    )
    done = run(code, fakes(cuda="12.6"))
    assert done.stdout.strip() == "libc10_cuda is missing False", done.stderr


def test_torchaudio_can_be_imported_after_it_failed_without_minilib(fakes):
    code = (
        "try:\n"
        "    import torchaudio\n"
        "except OSError:\n"
        "    import minilib, torchaudio\n"
        "    print(torchaudio._extension.AVAILABLE)\n"
    )
    done = run(code, fakes(cuda=None))
    assert done.stdout.strip() == "False", done.stderr


def test_where_torchaudio_is_not_installed_the_guard_says_nothing_else():
    code = (
        "import minilib, sys\n"
        "from minilib.torchaudio_guard import ExtensionFinder\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "try:\n"
        "    import torchaudio\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    assert run(code).stdout.strip() == "No module named 'torchaudio'"


def test_installing_twice_leaves_one_finder():
    code = (
        "import minilib, sys\n"
        "from minilib import torchaudio_guard\n"
        "torchaudio_guard.install()\n"
        "print(sys.meta_path.count(torchaudio_guard.ExtensionFinder))\n"
    )
    assert run(code).stdout.strip() == "1"
