"""TANGO in small: levels, mixing, its training data and its folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from minilib import audio, peers
from minilib.conditions import Context
from minilib.folders import load_part
from minilib.peers import tango
from minilib.peers.tango import (
    MixedClips,
    a_weighting,
    equal_share,
    joined_caption,
    mix,
    mixture,
    partners,
    pressure_level,
    quiet_about_loudness,
    to_peak,
)
from minilib.soundworld import SoundWorld, held_out_pairs
from minilib.training.loop import step_generator

WEIGHTS = Path(__file__).parents[1] / "data/weights"
TINY = WEIGHTS / "tiny"
LOUDNESS = {"loud", "loudly", "quiet", "quietly", "softly", "light", "heavy"} | {
    "gentle",
    "strong",
}


def tone(hz, amplitude=0.1, n=16_000):
    return amplitude * torch.sin(2 * torch.pi * hz * torch.arange(n) / 16_000)[None]


@pytest.fixture(scope="module")
def world():
    return SoundWorld("train", 0, 2.56, pairs=0.0)


@pytest.fixture(scope="module")
def clips():
    text = load_part(WEIGHTS / "peers/instructed_t5", "text", torch.float32)
    vae = load_part(TINY, "vae", torch.float32)
    return MixedClips(text, vae, n=24, seed=1, batch_size=10)


def test_the_weighting_is_that_of_librosa_down_to_its_floor():
    hz = torch.linspace(1, 8000, 500)
    theirs = torch.from_numpy(librosa.A_weighting(hz.numpy())).float()
    assert (a_weighting(hz) - theirs).abs().max() < 0.02
    assert a_weighting(torch.tensor([1000.0])).abs() < 1e-3
    assert a_weighting(torch.tensor([0.0])) == -80


def test_a_level_rises_by_6_dB_with_double_amplitude_and_falls_in_the_bass():
    level = lambda *of: float(pressure_level(tone(*of)))
    assert level(1000, 0.2) - level(1000, 0.1) == pytest.approx(6.0206, abs=1e-6)
    assert level(100) - level(1000) == pytest.approx(-19.1, abs=0.3)  # IEC 61672


def test_the_level_of_a_tone_is_that_of_its_windowed_sine():
    window = torch.hann_window(2048, periodic=False)
    # a sine of amplitude a has (a/2)^2 times the energy of the window's spectrum
    expected = 10 * torch.log10((0.05**2) * 2048 * window.square().sum())
    assert float(pressure_level(tone(1000))) == pytest.approx(float(expected), abs=0.02)


def test_the_level_is_that_of_the_loudest_moment():
    early = torch.cat([tone(1000, n=8000), torch.zeros(1, 32_000)], dim=1)
    late = early.roll(24_576, dims=1)
    assert pressure_level(early) == pytest.approx(pressure_level(tone(1000)), abs=0.01)
    assert pressure_level(late) == pytest.approx(pressure_level(early), abs=0.01)
    assert pressure_level(torch.zeros(1, 4096)) == -80


@pytest.mark.parametrize("shape", [(4096,), (2, 2047), (1, 1, 4096)])
def test_a_level_of_another_shape_says_what_it_must_be(shape):
    with pytest.raises(ValueError, match=r"\(B, N\) with N at least 2048, not"):
        pressure_level(torch.zeros(shape))


def test_after_sharing_the_parts_differ_by_nothing(world):
    waves = torch.stack([world[i].wave for i in range(16)])
    first, second = waves.split(8)
    p = equal_share(pressure_level(first), pressure_level(second))
    levels = [pressure_level(s[:, None] * x) for s, x in ((p, first), (1 - p, second))]
    assert (levels[0] - levels[1]).abs().max() < 1e-9
    assert (pressure_level(first) - pressure_level(second)).abs().max() > 5
    back = equal_share(pressure_level(second), pressure_level(first))
    assert torch.allclose(p + back, torch.ones_like(p))


def test_a_mixture_of_unlike_sounds_keeps_their_power_for_any_share():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 40_000, generator=g)
    mixed = mix(first, second, torch.tensor([0.0, 0.1, 0.5, 0.8, 1.0]))
    assert torch.allclose(mixed.square().mean(dim=1), torch.ones(5), atol=0.03)
    assert torch.equal(mixed[0], second[0]) and torch.equal(mixed[4], first[4])
    assert (mixed[3] @ first[3]) > 3 * (mixed[3] @ second[3])


def test_the_peak_is_set_and_the_mean_removed_and_silence_stays():
    waves = torch.cat([tone(500) + 0.3, torch.zeros(1, 16_000)])
    made = to_peak(waves)
    assert made[0].abs().max() == pytest.approx(0.5) and made[0].mean().abs() < 1e-4
    assert made[1].abs().max() == 0


def test_captions_are_joined_and_the_second_is_uncapitalised():
    told = joined_caption("A Dog barks", "Rain falls")
    assert told == "A Dog barks and rain falls"


def test_what_is_mixed_differs_in_class_and_is_held_out_in_neither_order(world):
    scenes = [world.scene(i) for i in range(200)]
    found = partners(scenes, 3000, np.random.default_rng(0))
    names = {(scenes[i].events[0].name, scenes[j].events[0].name) for i, j in found}
    seen_by_mixing = {pair for pair in names if {pair, pair[::-1]} & held_out_pairs()}
    assert not seen_by_mixing and all(a != b for a, b in names)
    assert len(found) == 3000 and len(names) > 300


def test_a_mixture_is_the_two_clips_at_equal_level_with_peak_one_half(world):
    (made,) = mixture(world, [(3, 5)])
    first, second = (world[i].wave[None] for i in (3, 5))
    p = equal_share(pressure_level(first), pressure_level(second))
    assert torch.equal(made, to_peak(mix(first, second, p))[0])
    assert made.abs().max() == pytest.approx(0.5)


def test_captions_of_mixtures_do_not_speak_of_loudness(world):
    rng = np.random.default_rng(0)
    told = " ".join(quiet_about_loudness(world.scene(i), rng) for i in range(300))
    assert not LOUDNESS & set(told.split())
    assert LOUDNESS & set(" ".join(world.caption(i) for i in range(300)).split())


def test_mixtures_stand_beside_the_single_sounds_with_their_captions(clips):
    assert len(clips.singles) == len(clips.captions) == 48
    world = SoundWorld("train", 1, 2.56, pairs=0.0)
    with torch.no_grad():
        vae = load_part(TINY, "vae", torch.float32)
        z = vae.encode(audio.log_mel(mixture(world, clips.mixed[20:21])))
    assert torch.allclose(clips.singles[24 + 20], z[0], atol=1e-3)
    assert all(" and " in told for told in clips.captions[24:])
    i, j = clips.mixed[20]
    subjects = [world.scene(k).events[0].name for k in (i, j)]
    rng = np.random.default_rng(0)
    words = [set(quiet_about_loudness(world.scene(k), rng).split()) for k in (i, j)]
    said = clips.captions[24 + 20].split(" and ")
    assert subjects[0] != subjects[1] and len(said) >= 2
    assert words[0] & set(said[0].split()) and words[1] & set(said[-1].split())


def test_a_batch_is_drawn_by_its_generator_alone(clips):
    one, two, other = (clips(step_generator(0, "x", k)) for k in (3, 3, 4))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["z0"], other["z0"]) and one["z0"].shape[0] == 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tango.MixedClips.__init__, "__defaults__", (20, 0, 0.4, 8))
        patch.setattr(tango, "RECIPE", replace(tango.RECIPE, batch_size=8))
        out = tmp_path_factory.mktemp("peers") / "tango"
        return tango.train(out, steps=2, progress=False, weights=TINY)


def test_training_writes_a_pipeline_that_reads_the_instructed_t5(folder):
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["peer"] == "tango" and told["text"].endswith("peers/instructed_t5/text")
    pipe = peers.pipeline(folder)
    own = load_part(WEIGHTS / "peers/instructed_t5", "text", torch.float32)
    a, b = (x.encode(["a dog barks"]).sequence for x in (pipe.text, own))
    assert torch.equal(a, b)
    wave = pipe("a dog barks and rain falls", seed=0, seconds=1.0, progress=False)
    assert wave.shape == (1, 16_000) and wave.isfinite().all()


def test_a_denoiser_reads_a_new_encoder_as_it_read_the_old_one():
    """New states that are an affine map of the old ones are read without a loss."""
    torch.manual_seed(0)
    old = load_part(TINY, "text", torch.float32)
    turn = torch.linalg.qr(torch.randn(128, 128)).Q

    class Turned:
        def encode(self, captions):
            x, mask = old.encode(captions)
            return torch.nn.functional.rms_norm(x, (128,)) @ turn, mask

    start, model = (
        tango.TextLDM.from_pretrained(
            WEIGHTS / "peers/text_ldm/unet", dtype=torch.float32
        )
        for _ in range(2)
    )
    world = SoundWorld("train")
    tango.read_by(model, old, Turned(), [world.caption(i) for i in range(300)])
    z, t = torch.randn(2, 4, 32, 16), torch.tensor([500, 900])
    captions = ["a dog barks, then a bell rings", "rain falls"]
    with torch.no_grad():
        told, turned = ({"text": x.encode(captions)} for x in (old, Turned()))
        turned["text"] = Context(*turned["text"])
        wanted, found, lost = (
            m(z, t, c) for m, c in ((start, told), (model, turned), (start, turned))
        )
    gap = lambda v: float((v - wanted).norm() / wanted.norm())
    assert gap(found) < 0.02 and gap(lost) > 0.1


def test_training_starts_from_text_ldm_and_moves(folder):
    start, new = (
        tango.TextLDM.from_pretrained(path / "unet", dtype=torch.float32)
        for path in (WEIGHTS / "peers/text_ldm", folder)
    )
    start, new = start.state_dict(), new.state_dict()
    moved = {k: float((a - new[k]).norm() / a.norm()) for k, a in start.items()}
    translated = {k for k, by in moved.items() if by > 0.5}
    assert translated == {"projection.weight", "projection.bias"}
    assert 0 < moved["blocks.0.qkv.weight"] < 0.1


def test_a_missing_reader_is_named_before_anything_is_made(tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    with pytest.raises(FileNotFoundError, match="instructed_t5"):
        tango.train(tmp_path / "out", progress=False, weights=tmp_path / "tiny")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [{"steps": 0}, {"seed": -1}])
def test_wrong_arguments_are_named(given, tmp_path):
    with pytest.raises(ValueError, match=next(iter(given))):
        tango.train(tmp_path / "out", progress=False, **given)


def test_it_is_a_peer_with_parts_that_it_borrows():
    assert peers.peer("tango") is tango
    assert set(tango.BORROWED) == {"text", "vae", "vocoder"}
