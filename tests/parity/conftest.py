"""What parity tests share: diffusers' pipelines, each made and written once."""

import logging

import pytest
from peer import peer

from minilib import AudioLDM2


@pytest.fixture(scope="session")
def peers(tmp_path_factory):
    """A function from a variant to diffusers' pipeline and the folder that it wrote."""
    made = {}

    def of(variant):
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            theirs = peer(folder, variant)
            theirs.save_pretrained(folder / "peer")
            made[variant] = theirs, folder / "peer"
        return made[variant]

    return of


@pytest.fixture(scope="module", params=["base", "large", "speech"])
def both(request, peers):
    """diffusers' pipeline, ours from the folder that it wrote, and the folder."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    theirs, folder = peers(request.param)
    n_tokens = 7 if request.param == "speech" else None
    return theirs, AudioLDM2.from_diffusers(folder, "cpu", n_tokens=n_tokens), folder
