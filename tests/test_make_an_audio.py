"""Pseudo captions and pairs that are joined anew."""

import json
import math
from pathlib import Path

import pytest
import torch

from minilib import peers
from minilib.conditions import Context
from minilib.folders import load_part
from minilib.peers import make_an_audio
from minilib.peers.make_an_audio import (
    TEMPLATES,
    Expert,
    Reprogrammed,
    Sounds,
    caption_of,
    chosen,
    distil,
)
from minilib.soundworld import SoundWorld, held_out_pairs, plain
from minilib.training.loop import step_generator

TINY = Path(__file__).parents[1] / "data/weights/tiny"
# of the first three two pairs are held out
KINDS = ("owl", "cricket", "glass", "bell", "dog")


class Reads:
    """A text encoder that writes the lengths of captions."""

    def encode(self, captions):
        states = torch.tensor([[[float(len(x))]] for x in captions])
        return Context(states, torch.ones(len(captions), 1, dtype=torch.bool))


class Listener:
    """A CLAP of three directions: dogs, rain and bells."""

    def encode(self, captions):
        words = ("dog", "rain", "bell")
        found = [[float(word in caption) for word in words] for caption in captions]
        return Context(torch.tensor(found)[:, None])

    def embed_waves(self, waves):
        return waves  # the "waves" of these tests are embeddings


def numbered(n=20, T=4):
    """Sounds whose latents hold their own number."""
    z0 = torch.arange(n).float()[:, None, None, None].expand(n, 2, T, 3)
    return Sounds(z0.clone(), tuple(KINDS[i % len(KINDS)] for i in range(n)))


def source(**changes):
    return Reprogrammed(Reads(), numbered(T=8), numbered(), batch_size=10, **changes)


@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
def test_an_expert_is_wrong_as_often_as_it_is_set_to(error):
    names = [KINDS[i % 5] for i in range(4000)]
    found = Expert(error, KINDS)(names, torch.Generator().manual_seed(1))
    wrong = sum(a != b for a, b in zip(found, names, strict=True)) / len(names)
    assert abs(wrong - error) <= 3 * math.sqrt(error * (1 - error) / len(names))
    assert set(found) <= set(KINDS)


def test_a_wrong_class_is_any_of_the_others():
    found = Expert(1.0, KINDS)(["dog"] * 4000, torch.Generator().manual_seed(2))
    shares = {name: found.count(name) / len(found) for name in KINDS}
    assert shares.pop("dog") == 0
    assert all(abs(x - 0.25) < 0.03 for x in shares.values())


def test_the_caption_nearest_to_the_sound_is_chosen():
    sounds = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    captions = [["rain falls", "a dog barks"], ["a bell rings", "rain falls"]]
    assert chosen(Listener(), sounds, captions) == [1, 0]
    assert chosen(Listener(), sounds.flip(0), captions) == [0, 1]


def test_a_right_caption_is_found_whenever_an_expert_has_it():
    sounds = torch.eye(3)[[0, 1, 2] * 400]
    names = ["dog", "rain", "bell"] * 400
    experts = [Expert(e, ("dog", "rain", "bell")) for e in (0.4, 0.5)]
    found = distil(Listener(), sounds, names, experts, torch.Generator().manual_seed(0))
    right = sum(a == b for a, b in zip(found, names)) / len(names)
    assert abs(right - (1 - 0.4 * 0.5)) < 3 * math.sqrt(0.2 * 0.8 / 1200)


def test_each_template_names_the_first_event_as_a():
    told = [caption_of(("dog", "bell"), form) for form in TEMPLATES]
    assert len(set(told)) == len(TEMPLATES)
    assert told[-1] == "a bell rings after a dog barks"
    assert told[0] == "a dog barks, then a bell rings"


def test_joined_sounds_are_those_that_the_caption_names():
    clips, generator = source(), torch.Generator().manual_seed(3)
    for _ in range(50):
        z, told = clips.pair(generator)
        i, j = int(z[0, 0, 0, 0]), int(z[0, 0, -1, 0])
        assert z.shape == (1, 2, 8, 3) and (z[:, :, :4] == i).all()
        pair = KINDS[i % 5], KINDS[j % 5]
        assert told in {caption_of(pair, form) for form in TEMPLATES}


def test_held_out_pairs_and_pairs_of_one_class_are_never_joined():
    clips, generator = source(), torch.Generator().manual_seed(4)
    for _ in range(600):
        clips.pair(generator)
    every = {(a, b) for a in KINDS for b in KINDS if a != b}
    assert every & held_out_pairs() and clips.made == every - held_out_pairs()


def test_fixed_pairs_stay_the_same_and_new_ones_do_not():
    def captions(clips):
        draws = (clips.pair(torch.Generator().manual_seed(k)) for k in range(200))
        return {(told, int(z[0, 0, 0, 0]), int(z[0, 0, -1, 0])) for z, told in draws}

    assert len(captions(source(fixed=7))) == 7
    assert len(captions(source())) > 100
    assert captions(source(fixed=7, seed=1)) != captions(source(fixed=7, seed=2))


def test_a_batch_holds_the_share_of_pairs_that_was_asked_for():
    for joined, pairs in ((0.0, 0), (0.6, 6), (1.0, 10)):
        z0 = source(joined=joined)(step_generator(0, "x", 1))["z0"]
        assert z0.shape == (10, 2, 8, 3)
        two = z0[:, 0, 0, 0] != z0[:, 0, -1, 0]
        assert int(two[: 10 - pairs].sum()) == 0 and int(two.sum()) >= pairs - 1


def test_equal_generators_give_equal_batches():
    one, two = (source()(step_generator(0, "x", 5)) for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_clap_as_it_ships_is_right_more_often_than_any_expert():
    clap = load_part(TINY, "clap", torch.float32)
    world = SoundWorld("test", 5, 1.28, pairs=0.0)
    names = [world.scene(i).events[0].name for i in range(60)]
    waves = torch.stack([world[i].wave for i in range(60)])
    experts = [Expert(0.5, tuple(sorted(set(names)))) for _ in range(3)]
    found = distil(clap, waves, names, experts, torch.Generator().manual_seed(0))
    assert sum(a == b for a, b in zip(found, names)) / 60 > 0.7


def test_training_writes_a_folder_that_sounds(tmp_path, monkeypatch):
    monkeypatch.setattr(make_an_audio, "N_SOUNDS", 20)
    made = make_an_audio.train(tmp_path / "x", steps=1, progress=False, weights=TINY)
    told = json.loads((made / "pipeline.json").read_text())
    assert told["peer"] == "make_an_audio"
    assert sorted(x.name for x in made.iterdir()) == ["pipeline.json", "unet"]
    pipe = peers.pipeline(made)
    wave = pipe(plain("dog"), seed=1, steps=1, seconds=1.28, progress=False)
    assert wave.shape == (1, 20480) and wave.isfinite().all()


@pytest.mark.parametrize(
    "given, says",
    [({"seed": -1}, "seed"), ({"steps": 0}, "steps"), ({"weights": "no"}, "no")],
)
def test_training_refuses_what_it_cannot_do(tmp_path, given, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        make_an_audio.train(tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()
