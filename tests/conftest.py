"""What several test files share: folder and pipeline of `small_pipe`, and a judge."""

import os
from pathlib import Path

import pytest
import torch
from small_pipe import SECONDS, VOCABULARY, small_parts

from minilib import folders
from minilib.audioldm2 import AudioLDM2
from minilib.folders import Parts
from minilib.recogniser import Recogniser
from minilib.soundworld import CLASSES, WORDS, plain
from minilib.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny_pipe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small random weights, as training writes it.

    Shared: tests that change it copy it first.
    """
    folder = tmp_path_factory.mktemp("weights") / "small"
    captions = [plain(name) for name in CLASSES]
    words = sorted({word for caption in captions for word in caption.split()})
    vocabulary = {"words": words, "classes": sorted(CLASSES), "captions": captions}
    parts = Parts(**small_parts(), seconds=SECONDS, vocabulary=vocabulary)
    parts.text.tokenizer = Tokenizer.train(captions, VOCABULARY)
    parts.clap.tokenizer = parts.text.tokenizer
    folders.save(parts, folder, torch.float16)
    return folder


@pytest.fixture()
def tiny_pipe(tiny_pipe_folder: Path) -> AudioLDM2:
    """The pipeline of `tiny_pipe_folder`, loaded anew."""
    return AudioLDM2.from_pretrained(tiny_pipe_folder, device="cpu")


@pytest.fixture(scope="session")
def recogniser() -> Recogniser:
    """The recogniser of the words of SoundWorld.

    Without pocketsphinx its tests are skipped; with `MINILIB_REQUIRE=judges` that is a
    failure.
    """
    try:
        return Recogniser(WORDS)
    except ModuleNotFoundError as error:
        if "judges" in os.environ.get("MINILIB_REQUIRE", "").split(","):
            pytest.fail(str(error))
        pytest.skip(str(error))
