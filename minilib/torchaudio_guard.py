"""Let torchaudio be imported beside a torch that has no CUDA.

The Linux wheels of torchaudio on PyPI are linked against CUDA. Beside a CPU-only torch
their compiled extension can't be loaded, ``import torchaudio`` raises OSError, and with
it fails every library that imports torchaudio where it is installed (transformers does,
so diffusers does). What this course needs of torchaudio is pure Python and works
without the extension. torchaudio knows how to live without it, but only where the file
is missing, not where it can't be loaded: the guard makes the second case look like the
first.

It costs nothing until torchaudio is imported, imports nothing itself, and leaves a CUDA
torch alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# the module whose _load_lib finds and loads the compiled extension
LOOK_UP = "torchaudio._extension.utils"


class ExtensionFinder:
    """A finder on `sys.meta_path` that mends torchaudio's look-up of its extension, and
    finds nothing else.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find torchaudio's look-up module where everyone finds it, and mend it once it
        has run.
        """
        if name != LOOK_UP or not _torch_lacks_cuda():
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        exec_module = spec.loader.exec_module

        def exec_and_mend(module: ModuleType) -> None:
            exec_module(module)
            _mend(module)

        spec.loader.exec_module = exec_and_mend
        return spec


def install() -> None:
    """Put the guard in place; a second call changes nothing.

    To be called before torchaudio is imported.
    """
    if ExtensionFinder not in sys.meta_path:
        sys.meta_path.insert(0, ExtensionFinder)
    # an import of torchaudio failed earlier and left this behind
    if LOOK_UP in sys.modules and _torch_lacks_cuda():
        _mend(sys.modules[LOOK_UP])


def _torch_lacks_cuda() -> bool:
    """Whether the imported torch was built without CUDA (torchaudio imports torch
    before its own extension).
    """
    torch = sys.modules.get("torch")
    return torch is not None and torch.version.cuda is None


def _mend(look_up: ModuleType) -> None:
    """Make `_load_lib` answer False, its word for "there is no such file", where the
    file can't be loaded.
    """
    load_lib = getattr(look_up, "_load_lib", None)
    if load_lib is None or hasattr(load_lib, "__wrapped__"):
        return

    @functools.wraps(load_lib)
    def load_lib_if_it_loads(lib: str) -> bool:
        try:
            return load_lib(lib)
        except OSError:
            return False

    look_up._load_lib = load_lib_if_it_loads
