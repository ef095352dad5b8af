"""minilib: AudioLDM 2 (arXiv 2308.05734) in small, the library that the book *The
Language of Audio* builds.

    import minilib

    pipe = minilib.AudioLDM2.from_pretrained("data/weights/tiny")
    wave = pipe(["a bell rings"], seed=0)  # (1, N), 16 kHz

Every module is imported when it is first asked for, so ``import minilib`` itself costs
nothing.
"""

from importlib import import_module
from importlib.util import find_spec

from minilib import torchaudio_guard

__version__ = "0.1.0"

torchaudio_guard.install()  # before anything can import torchaudio


def __getattr__(name: str):
    """Import ``minilib.<name>`` (a module, or the pipeline ``AudioLDM2``) when it is
    first used.
    """
    if name == "AudioLDM2":
        return import_module("minilib.audioldm2").AudioLDM2
    if not name.startswith("_") and find_spec(f"minilib.{name}"):
        return import_module(f"minilib.{name}")
    raise AttributeError(f"module 'minilib' has no attribute {name!r}")
