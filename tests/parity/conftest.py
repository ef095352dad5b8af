"""What parity tests share: diffusers' pipelines, each made and written once."""

import pytest
from peer import peer


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
