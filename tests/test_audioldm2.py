"""The pipeline, at a size that says nothing sensible: its stages, its seeds, its
folders (chapters 16 and 17).
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import minilib
from minilib import audio
from minilib.arguments import check_seeds
from minilib.audioldm2 import Profile
from minilib.conditions import Context
from minilib.diffusion import eps_from_velocity
from minilib.gpt import Loudness, LoudnessConfig
from minilib.guidance import Sampling, guide
from minilib.vocoder import vocode

CAPTIONS = ["a dog barks", "rain falls, then a bell rings"]
FAST = {"steps": 3, "progress": False}


@pytest.fixture
def copied(tiny_pipe_folder, tmp_path) -> Path:
    """A copy of the folder of weights, to be damaged."""
    return Path(shutil.copytree(tiny_pipe_folder, tmp_path / "weights"))


def test_sounds_are_float32_waves_in_range_one_for_each_caption(tiny_pipe):
    waves = tiny_pipe(CAPTIONS, seed=0, **FAST)
    assert waves.shape == (2, round(0.64 * 16000)) and waves.dtype == torch.float32
    assert waves.device.type == "cpu" and not waves.requires_grad
    assert waves.isfinite().all() and waves.abs().max() <= 1 and waves.std() > 0
    assert tiny_pipe("a dog barks", seed=0, **FAST).shape == (1, waves.shape[1])


def test_same_seed_same_bytes_another_seed_another_sound(tiny_pipe):
    first = tiny_pipe(CAPTIONS, seed=3, **FAST)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(first, tiny_pipe(CAPTIONS, seed=3, **FAST))
    assert not torch.equal(first, tiny_pipe(CAPTIONS, seed=4, **FAST))
    # no seed: drawn anew
    assert not torch.equal(tiny_pipe(CAPTIONS, **FAST), tiny_pipe(CAPTIONS, **FAST))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


LONG = "a dog barks and " * 4 + "rain falls"  # of more tokens than all are padded to


@pytest.mark.parametrize("how", [{}, {"eta": 1.0}, {"candidates": 2}, {"seconds": 1.0}])
@pytest.mark.parametrize("first", ["a dog barks", LONG], ids=["short", "long"])
def test_each_sound_of_a_batch_can_be_made_alone_with_its_own_seed(
    tiny_pipe, monkeypatch, first, how
):
    noise, drawn = tiny_pipe.noise, []
    monkeypatch.setattr(
        tiny_pipe, "noise", lambda *args: drawn.append(noise(*args)) or drawn[-1]
    )
    both = tiny_pipe([first, "a bell rings"], seed=7, **how, **FAST)
    alone = [
        tiny_pipe([caption], seed=seed, **how, **FAST)
        for caption, seed in ((first, 7), ("a bell rings", 8))
    ]
    listed = tiny_pipe([first, "a bell rings"], seed=[7, 8], **how, **FAST)
    assert torch.equal(drawn[0], torch.cat(drawn[1:3]))
    assert torch.equal(both, listed)
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=0)
    assert len(tiny_pipe.text.tokenizer.encode([LONG])[0][0]) > 24


def test_a_seed_draws_what_it_always_drew_and_a_list_what_each_of_its_seeds_draws(
    tiny_pipe,
):
    shape = tiny_pipe.latent_shape(1, 10240)
    draw = lambda seed: torch.randn(shape, generator=generators(seed)[0])
    wanted = tiny_pipe(CAPTIONS[0], latents=draw(7), **FAST)
    assert torch.equal(tiny_pipe(CAPTIONS[0], seed=7, **FAST), wanted)
    swapped = tiny_pipe.noise(4, 10240, None, generators(9, 7))
    assert torch.equal(swapped[[0, 2]], torch.cat([draw(9), draw(7)]))
    assert not torch.equal(swapped[0], swapped[1])
    with pytest.raises(ValueError, match="a number that divides 4, not 3"):
        tiny_pipe.noise(4, 10240, None, generators(1, 2, 3))


def test_seeds_follow_each_other_or_are_listed_or_drawn():
    assert check_seeds(7, 3) == [7, 8, 9]
    for listed in ([5, 3], (5, 3), np.array([5, 3]), torch.tensor([5, 3])):
        assert check_seeds(listed, 2) == [5, 3]
    for one in (np.int64(7), np.array(7), torch.tensor(7), [7], range(7, 8)):
        assert check_seeds(one, 1) == [7]
        assert type(check_seeds(one, 1)[0]) is int
    drawn = [check_seeds(None, 2) for _ in range(3)]
    assert all(b == a + 1 for a, b in drawn) and len({a for a, _ in drawn}) == 3
    assert check_seeds(2**32 - 2, 2) == [2**32 - 2, 2**32 - 1]


NUMPY = {
    "captions": np.array(["a dog barks", "rain falls"]),
    "negative": np.array(["rain", ""]),
    "steps": np.int64(3),
    "guidance": np.float32(2),
    "eta": np.float64(0.5),
    "temperature": torch.tensor(0.5),
    "guidance_interval": np.array([0, 900]),
    "candidates": np.int64(2),
    "seconds": np.float32(0.5),
    "seed": np.int64(7),
}


@pytest.mark.parametrize("name", NUMPY)
def test_arguments_of_numpy_are_what_they_say(tiny_pipe, name):
    plain = NUMPY[name].tolist() if name != "temperature" else 0.5
    usual = {"captions": ["a dog barks", "rain falls"], "seed": 7, **FAST}
    wanted = tiny_pipe(**{**usual, name: plain})
    assert torch.equal(tiny_pipe(**{**usual, name: NUMPY[name]}), wanted)


def test_latents_of_numpy_are_taken_too(tiny_pipe):
    latents = tiny_pipe.noise(1, 10240, None, generators(7))
    wanted = tiny_pipe("a dog barks", latents=latents, **FAST)
    for given in (latents.numpy(), latents.double()):
        assert torch.equal(tiny_pipe("a dog barks", latents=given, **FAST), wanted)


@torch.no_grad()
def test_what_a_caption_gives_does_not_hang_on_the_others_in_the_batch(tiny_pipe):
    # of different lengths: GPT-2 counts padding as positions
    captions = ["a dog barks", "the sound of rain"]
    assert not tiny_pipe.text.tokenizer.encode(captions)[1].all()
    latents = torch.randn(tiny_pipe.latent_shape(2, tiny_pipe.n_samples(None)))

    def z0(captions, latents):
        conditions = tiny_pipe.encode(captions)
        how = tiny_pipe.sampling.changed(steps=3)
        return tiny_pipe.sample(
            tiny_pipe.loa(conditions), conditions, how, latents=latents
        )

    alone = [z0([caption], latents[i : i + 1]) for i, caption in enumerate(captions)]
    torch.testing.assert_close(
        z0(captions, latents), torch.cat(alone), atol=1e-4, rtol=1e-3
    )
    assert (z0(["a bell rings"], latents[:1]) - alone[0]).abs().max() > 1e-2


def test_the_stages_chained_equal_the_call(tiny_pipe):
    with torch.no_grad():
        conditions = tiny_pipe.encode(CAPTIONS)
        loa = tiny_pipe.loa(conditions)
        how = Sampling(steps=3, guidance=2.0)
        z0 = tiny_pipe.sample(loa, conditions, how, generator=generators(5, 6))
        waves = tiny_pipe.decode(z0, tiny_pipe.n_samples(None))
    assert list(conditions) == ["clap", "text"]
    assert conditions["clap"].sequence.shape == (2, 1, 16)
    assert conditions["text"].sequence.shape[0] == 2
    assert loa.shape == (2, 4, 16) and z0.shape == tiny_pipe.latent_shape(
        2, waves.shape[1]
    )
    assert torch.equal(waves, tiny_pipe(CAPTIONS, guidance=2.0, seed=5, **FAST))
    assert torch.equal(waves, tiny_pipe(CAPTIONS, how, seed=5, progress=False))


def loudness_that_says(decibels) -> Loudness:
    """A part that reads these decibels from any LOA, item by item."""
    part = Loudness(LoudnessConfig(4, 16))
    part.forward = lambda loa: decibels(loa)
    return part


def test_a_sound_is_as_loud_as_its_loa_says_but_not_past_full_scale(tiny_pipe):
    wave = torch.randn(1, 10240, generator=torch.Generator().manual_seed(0)) * 0.01
    loa = torch.randn(3, 4, 16)
    heard = lambda waves: audio.loudness(audio.log_mel(waves))[:, 0]
    assert tiny_pipe.loudness is None  # nobody has fitted it
    assert torch.equal(tiny_pipe.as_loud_as_told(wave, loa), wave)
    offsets, given = torch.tensor([-12.0, 6.0, 90.0]), []
    tiny_pipe.loudness = loudness_that_says(
        lambda x: given.append(x) or heard(wave) + offsets[: len(x)]
    )
    told = tiny_pipe.as_loud_as_told(wave.expand(3, -1), loa)
    assert given[0] is loa
    change, wanted = heard(told) - heard(wave), torch.tensor([-12.0, 6.0, 20.0])
    torch.testing.assert_close(change, wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(told[0], 10 ** (-12 / 20) * wave[0])
    loud = tiny_pipe.as_loud_as_told(30 * wave.expand(3, -1), loa)[2]
    assert loud.abs().max() == 1.0


def test_the_call_makes_every_candidate_as_loud_as_gpt_2_says(tiny_pipe):
    plain = tiny_pipe(CAPTIONS, seed=0, **FAST)
    heard = lambda waves: audio.loudness(audio.log_mel(waves))[:, 0]
    wanted = heard(plain) - torch.tensor([3.0, 6.0])
    each = lambda loa: wanted.repeat_interleave(len(loa) // 2)
    tiny_pipe.loudness = loudness_that_says(each)
    for candidates in (1, 2):
        waves = tiny_pipe(CAPTIONS, seed=0, candidates=candidates, **FAST)
        torch.testing.assert_close(heard(waves), wanted, atol=0.05, rtol=0)


def test_given_latents_are_where_sampling_starts(tiny_pipe):
    latents = tiny_pipe.noise(2, tiny_pipe.n_samples(None), None, generators(7, 8))
    assert torch.equal(
        tiny_pipe(CAPTIONS, latents=latents, **FAST),
        tiny_pipe(CAPTIONS, seed=7, **FAST),
    )
    with pytest.raises(
        ValueError,
        match=r"latents must have shape \(2, 4, 16, 16\), not \(1, 4, 16, 16\)",
    ):
        tiny_pipe(CAPTIONS, latents=latents[:1], **FAST)


def test_temperature_scales_the_noise_that_sampling_starts_from(tiny_pipe, monkeypatch):
    latents = tiny_pipe.noise(2, tiny_pipe.n_samples(None), None, generators(7, 8))
    cooler = tiny_pipe(CAPTIONS, latents=0.5 * latents, **FAST)
    assert torch.equal(tiny_pipe(CAPTIONS, seed=7, temperature=0.5, **FAST), cooler)
    tiny_pipe.sampling = Sampling(temperature=0.5)  # its own
    assert torch.equal(tiny_pipe(CAPTIONS, seed=7, **FAST), cooler)
    assert not torch.equal(tiny_pipe(CAPTIONS, seed=7, temperature=1.0, **FAST), cooler)


def test_sampling_takes_as_many_steps_as_the_pipeline_wants_if_a_call_does_not_say(
    tiny_pipe, monkeypatch
):
    sound = lambda **how: tiny_pipe(CAPTIONS, seed=7, progress=False, **how)
    tiny_pipe.sampling = Sampling(steps=3)
    assert torch.equal(sound(), sound(steps=3)) and not torch.equal(
        sound(), sound(steps=4)
    )
    conditions = tiny_pipe.encode(CAPTIONS)
    loa = tiny_pipe.loa(conditions)
    latents = torch.randn(tiny_pipe.latent_shape(2, tiny_pipe.n_samples(None)))
    own, three = (
        tiny_pipe.sample(loa, conditions, how, latents=latents)
        for how in (None, Sampling(steps=3))
    )
    assert torch.equal(own, three)


def test_guidance_works_within_its_interval_of_noise_levels(tiny_pipe, monkeypatch):
    sound = lambda **how: tiny_pipe(CAPTIONS, seed=7, guidance=3.0, **how, **FAST)
    intervals = ((0, 1000), (500, 1000), (0, 500), (999, 1000))
    throughout, upper, lower, nowhere = (
        sound(guidance_interval=interval) for interval in intervals
    )
    assert torch.equal(sound(), throughout)  # where the weights do not say
    assert torch.equal(nowhere, tiny_pipe(CAPTIONS, seed=7, guidance=1.0, **FAST))
    for one, other in ((upper, throughout), (lower, throughout), (upper, lower)):
        assert not torch.equal(one, other)
    tiny_pipe.sampling = Sampling(guidance_interval=(500, 1000))  # its own
    assert torch.equal(sound(), upper) and torch.equal(
        sound(guidance_interval=[0, 500]), lower
    )


def test_guidance_1_ignores_the_negative_and_others_do_not(tiny_pipe):
    without = tiny_pipe(CAPTIONS, guidance=1.0, seed=0, **FAST)
    assert torch.equal(
        without,
        tiny_pipe(CAPTIONS, guidance=1.0, negative="rain falls", seed=0, **FAST),
    )
    guided = tiny_pipe(CAPTIONS, guidance=4.0, seed=0, **FAST)
    assert not torch.equal(
        guided, tiny_pipe(CAPTIONS, guidance=4.0, negative="rain falls", seed=0, **FAST)
    )
    assert torch.equal(
        guided, tiny_pipe(CAPTIONS, guidance=4.0, negative=["", ""], seed=0, **FAST)
    )
    # guided away from itself: what is added is nothing
    same = tiny_pipe(CAPTIONS, guidance=4.0, negative=CAPTIONS, seed=0, **FAST)
    torch.testing.assert_close(same, without, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("away_from", ["gpt", "zeros"])
def test_the_sampler_gets_the_guided_noise(
    tiny_pipe, monkeypatch, prediction, away_from
):
    """`noise_predictor` against the formulas: guide what the network predicts, then
    turn it to noise.
    """
    unet = tiny_pipe.unet
    monkeypatch.setattr(unet, "config", replace(unet.config, prediction=prediction))
    zt = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t, how = torch.tensor([700]), Sampling(guidance=3.0, unconditional_loa=away_from)
    with torch.no_grad():
        wanted, empty = tiny_pipe.encode(["a dog barks"]), tiny_pipe.encode([""])
        loa, loa_of_empty = tiny_pipe.loa(wanted), tiny_pipe.loa(empty)
        eps = tiny_pipe.noise_predictor(loa, wanted, how)(zt, t)
        if away_from == "zeros":
            loa_of_empty = torch.zeros_like(loa)
        cond = unet(zt, t, {**wanted, "loa": Context(loa)})
        uncond = unet(zt, t, {**empty, "loa": Context(loa_of_empty)})
    out = guide(uncond, cond, 3.0)
    if prediction == "v":
        out = eps_from_velocity(unet.schedule, zt, t, out)
    torch.testing.assert_close(eps, out, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seconds", [0.1, 0.333, 0.64, 1.24, 1.5])
def test_other_lengths_come_to_the_sample(tiny_pipe, seconds):
    waves = tiny_pipe("a dog barks", seconds=seconds, seed=0, **FAST)
    assert waves.shape == (1, round(seconds * 16000)) and waves.isfinite().all()


def test_latents_are_as_many_as_hold_all_samples_and_fill_patches(
    tiny_pipe, monkeypatch
):
    frames = lambda seconds: tiny_pipe.latent_shape(3, round(seconds * 16000))
    lengths = {10: 250, 10.24: 256, 3: 75, 1.24: 31, 0.1: 3, 3.004: 76, 0.29: 8}
    for seconds, T in lengths.items():
        assert frames(seconds) == (3, 4, T, 16)
    unet = tiny_pipe.unet
    monkeypatch.setattr(unet, "config", replace(unet.config, patch=2))
    for seconds, T in {10: 250, 3: 76, 1.24: 32, 0.1: 4}.items():
        assert frames(seconds) == (3, 4, T, 16)


def test_candidates_are_ranked_within_their_own_prompt(tiny_pipe, monkeypatch):
    kept = {}
    decode = tiny_pipe.decode

    def keep(z0, n_samples):
        kept["waves"] = decode(z0, n_samples)
        return kept["waves"]

    monkeypatch.setattr(tiny_pipe, "decode", keep)
    # Sound k points along axis k of a space in which both captions like the sounds of
    # the *second* best.
    liking = torch.tensor([0.1, 0.3, 0.2, 0.7, 0.9, 0.8])
    axis = torch.eye(16)[:1]
    told = lambda ids, mask: axis.repeat(len(ids), 1)
    monkeypatch.setattr(tiny_pipe.clap, "embed_text", told)
    heard = lambda waves: liking[:, None] * axis
    monkeypatch.setattr(tiny_pipe.clap, "embed_waves", heard)
    best = tiny_pipe(CAPTIONS, candidates=3, seed=0, **FAST)
    assert kept["waves"].shape[0] == 6
    # not 3, 4, 5, which are the best of all
    assert torch.equal(best, kept["waves"][[1, 4]])


def test_candidates_of_a_caption_differ_and_clap_picks_the_likest(tiny_pipe):
    shape = tiny_pipe.latent_shape(4, tiny_pipe.n_samples(None))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    repeated = [caption for caption in CAPTIONS for _ in range(2)]
    each = tiny_pipe(repeated, latents=latents, **FAST)  # (4, N)
    with torch.no_grad():
        told = tiny_pipe.encode(repeated)["clap"].sequence[:, 0]
        cosine = (tiny_pipe.clap.embed_waves(each) * told).sum(dim=1)
    wanted = each.view(2, 2, -1)[torch.arange(2), cosine.view(2, 2).argmax(dim=1)]
    assert not torch.equal(each[0], each[1])
    torch.testing.assert_close(
        tiny_pipe(CAPTIONS, candidates=2, latents=latents, **FAST), wanted
    )


def test_the_profile_names_the_stages_in_order(tiny_pipe):
    tiny_pipe(CAPTIONS, **FAST)
    assert list(tiny_pipe.profile.seconds) == ["encode", "loa", "sample", "decode"]
    tiny_pipe(CAPTIONS, candidates=2, **FAST)
    assert list(tiny_pipe.profile.seconds) == [
        "encode",
        "loa",
        "sample",
        "decode",
        "rank",
    ]
    profile = Profile({"a": 1.0})
    with profile.measure("a"):
        pass
    assert profile.seconds["a"] > 1.0


def test_reconstruct_takes_mels_of_any_length(tiny_pipe):
    for T in (1, 7, 64, 101):
        assert tiny_pipe.reconstruct(torch.full((1, 1, T, 64), -7.0)).shape == (
            1,
            1,
            T,
            64,
        )


def test_unknown_words_are_found_whatever_their_case_and_marks(tiny_pipe):
    assert tiny_pipe.unknown_words('A Dog barks, "Rain" FALLS!') == []
    assert tiny_pipe.unknown_words("a purple dog sneezes. Purple!") == [
        "purple",
        "sneezes",
    ]
    tiny_pipe.vocabulary = {}
    # nothing is known of what is known
    assert tiny_pipe.unknown_words("whatever") == []


# --------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"captions": []}, ValueError, "captions is empty"),
        ({"captions": "  "}, ValueError, "a caption is empty"),
        ({"captions": ["a dog barks", ""]}, ValueError, "a caption is empty"),
        (
            {"captions": ["a dog barks", 3]},
            TypeError,
            "captions must hold strings, not int",
        ),
        ({"captions": "zq" * 200}, ValueError, "tokens, but at most 64 can be read"),
        ({"negative": "zq" * 200}, ValueError, "tokens, but at most 64 can be read"),
        (
            {"negative": ["a", "b"]},
            ValueError,
            "negative must be one for all or one for each of 1, not 2",
        ),
        (
            {"steps": 0},
            ValueError,
            "steps must be a whole number from 1 to 1000, not 0",
        ),
        ({"steps": 2.0}, TypeError, "steps must be a whole number"),
        ({"steps": 1001}, ValueError, "steps must be a whole number"),
        (
            {"guidance": float("nan")},
            ValueError,
            "guidance must be a finite number and be 0 or more, not nan",
        ),
        ({"guidance": float("inf")}, ValueError, "guidance must be a finite number"),
        ({"guidance": -1.0}, ValueError, "guidance must be a finite number"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0, not 0"),
        (
            {"temperature": float("nan")},
            ValueError,
            "temperature must be a finite number and lie between 0 and 1, not nan",
        ),
        (
            {"guidance_interval": (700, 300)},
            ValueError,
            "guidance_interval must be two noise levels from 0 to 1000, the lower "
            "first, not \\(700, 300\\)",
        ),
        (
            {"guidance_interval": (0, 1001)},
            ValueError,
            "guidance_interval must be two noise levels",
        ),
        (
            {"guidance_interval": (0.5, 1000)},
            ValueError,
            "guidance_interval must be two noise levels",
        ),
        (
            {"guidance_interval": 300},
            ValueError,
            "guidance_interval must be two noise levels",
        ),
        (
            {"guidance_interval": ()},
            ValueError,
            "guidance_interval must be two noise levels",
        ),
        (
            {"seconds": 0},
            ValueError,
            "seconds must be a finite number and lie between 0.1 and 60, not 0",
        ),
        (
            {"seconds": 10000},
            ValueError,
            "seconds must be a finite number and lie between 0.1 and 60, not 10000",
        ),
        ({"seconds": float("nan")}, ValueError, "seconds must be a finite number"),
        (
            {"stepps": 3},
            TypeError,
            "stepps is not a field of sampling, which has steps, guidance",
        ),
        (
            {"negative": ["rain", None]},
            TypeError,
            "negative must hold strings, not None",
        ),
        ({"negative": []}, ValueError, "negative must be one for all or one for each"),
        ({"negative": 3}, TypeError, "negative must be a string or a list of strings"),
        ({"captions": None}, TypeError, "captions must be a string or a list of"),
        ({"captions": {"a", "b"}}, TypeError, "captions must be a string or a list"),
        ({"captions": {"a": 1}}, TypeError, "captions must be a string or a list"),
        ({"captions": b"rain"}, TypeError, "captions must hold strings, not bytes"),
        ({"captions": "r\udce9"}, ValueError, "captions must be text in UTF-8, not"),
        ({"negative": "r\udce9"}, ValueError, "negative must be text in UTF-8, not"),
        ({"transcription": 3}, ValueError, "these weights do not speak"),
        ({"steps": True}, TypeError, "steps must be a whole number"),
        ({"steps": "2"}, TypeError, "steps must be a whole number"),
        ({"steps": np.float64(2)}, TypeError, "steps must be a whole number"),
        ({"guidance": True}, TypeError, "guidance must be a number, not True"),
        ({"guidance": [2.0, 3.0]}, TypeError, "guidance must be a number"),
        ({"guidance": np.ones(3)}, TypeError, "guidance must be a number"),
        ({"guidance": torch.ones(3)}, TypeError, "guidance must be a number"),
        ({"eta": "1"}, TypeError, "eta must be a number, not '1'"),
        ({"guidance": 10**400}, ValueError, "guidance must be a finite number"),
        ({"sampler": np.ones(2)}, ValueError, 'sampler must be "ddim" or "dpm"'),
        ({"sampling": 50}, TypeError, "sampling must be a Sampling or None, not 50"),
        ({"candidates": 2.0}, TypeError, "candidates must be a whole number"),
        ({"candidates": "2"}, TypeError, "candidates must be a whole number"),
        ({"seconds": None, "seed": 1.5}, TypeError, "seed must be a whole number"),
        ({"seed": "7"}, TypeError, "seed must be a whole number from 0 to 4294967295"),
        ({"seed": True}, TypeError, "seed must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be a whole number from 0"),
        ({"seed": 2**32}, ValueError, "seed must be a whole number from 0"),
        ({"seed": {7}}, TypeError, "seed must be a whole number"),
        (
            {"seed": [1, 2]},
            ValueError,
            "seed must be one number or a list of 1, not a list of 2",
        ),
        (
            {"seed": []},
            ValueError,
            "seed must be one number or a list of 1, not a list of 0",
        ),
        ({"seed": [1.5]}, TypeError, "seed must be a whole number"),
        (
            {"captions": ["a", "b"], "seed": 2**32 - 1},
            ValueError,
            "seed must be a whole number from 0 to 4294967294",
        ),
        ({"latents": "noise"}, TypeError, "latents must be a tensor of shape"),
        (
            {"latents": torch.full((1, 4, 16, 16), float("nan"))},
            ValueError,
            "latents must hold finite real numbers",
        ),
        ({"guidance": "2"}, TypeError, "guidance must be a number, not '2'"),
        ({"seconds": "3"}, TypeError, "seconds must be a number, not '3'"),
        ({"transcription": "hi"}, ValueError, "these weights do not speak"),
        (
            {"candidates": 0},
            ValueError,
            "candidates must be a whole number from 1 to 64, not 0",
        ),
    ],
)
def test_bad_arguments_are_named_in_one_sentence(tiny_pipe, arguments, error, said):
    with pytest.raises(error, match=said) as caught:
        tiny_pipe(**{"captions": "a dog barks", **FAST, **arguments})
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------
# Recordings that are edited


def recording(n=1, n_samples=10240, seed=0):
    """Noise (n, N) at a tenth of full scale."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(n, n_samples, generator=generator).clamp(-3, 3)


def test_an_edit_without_strength_is_a_round_trip_through_vae_and_vocoder(tiny_pipe):
    wave = recording()
    kept = tiny_pipe.edit(wave[0], "a dog barks", 0.0, seed=0, **FAST)
    with torch.no_grad():
        mel = tiny_pipe.reconstruct(audio.log_mel(wave))
        wanted = vocode(tiny_pipe.vocoder, mel)[:, : wave.shape[1]]
    torch.testing.assert_close(kept, wanted, atol=1e-4, rtol=0)


def test_an_edit_starts_from_the_recording_and_follows_the_caption(tiny_pipe):
    edited = lambda wave, caption, strength: tiny_pipe.edit(
        wave, caption, strength, seed=3, guidance=3.0, **FAST
    )
    first = edited(recording(), "a dog barks", 0.7)
    assert first.shape == (1, 10240) and first.isfinite().all()
    assert torch.equal(first, edited(recording()[0], "a dog barks", 0.7))
    assert not torch.equal(first, edited(recording(seed=1), "a dog barks", 0.7))
    assert not torch.equal(first, edited(recording(), "rain falls", 0.7))
    assert not torch.equal(first, edited(recording(), "a dog barks", 1.0))


@pytest.mark.parametrize("name", ["edit", "inpaint", "extend"])
def test_each_recording_of_a_batch_can_be_edited_alone_with_its_own_seed(
    tiny_pipe, name
):
    wave, captions = recording(2), ["a dog barks", "a bell rings"]
    where = {"edit": (0.7,), "inpaint": (0.2, 0.4), "extend": (0.32,)}[name]
    edit = lambda *given, seed: getattr(tiny_pipe, name)(
        *given, *where, seed=seed, **FAST
    )
    both = edit(wave, captions, seed=7)
    alone = [edit(wave[i], captions[i], seed=7 + i) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=0)


def test_inpainting_changes_the_gap_alone_and_reads_nothing_in_it(tiny_pipe):
    wave, other = recording(), recording()
    begin, end, slope = 3200, 6400, 160
    other[:, begin:end] = 0.3
    fill = lambda wave: tiny_pipe.inpaint(wave, "rain", 0.2, 0.4, seed=1, **FAST)
    made = fill(wave)
    outside = torch.ones(10240, dtype=torch.bool)
    outside[begin - slope : end + slope] = False
    assert torch.equal(made[:, outside], wave[:, outside])
    gap = slice(begin, end)
    assert (made[:, gap] - wave[:, gap]).abs().mean() > 1e-3
    assert torch.equal(made[:, gap], fill(other)[:, gap])
    elsewhere = wave.clone()
    elsewhere[:, :begin] *= 0.1
    assert not torch.equal(made[:, gap], fill(elsewhere)[:, gap])


def test_a_recording_is_extended_by_the_seconds_asked_for(tiny_pipe):
    wave = recording()
    longer = tiny_pipe.extend(wave, "a dog barks", 0.5, seed=0, **FAST)
    assert longer.shape == (1, 10240 + 8000)
    assert torch.equal(longer[:, : 10240 - 160], wave[:, : 10240 - 160])
    assert longer[:, 10240:].std() > 0


WAVE = recording()[0]


@pytest.mark.parametrize(
    ("name", "changes", "error", "said"),
    [
        ("edit", {"wave": WAVE[:100]}, ValueError, r"wave must have shape \(N,\) or"),
        ("edit", {"wave": WAVE[None, None]}, ValueError, "not \\(1, 1, 10240\\)"),
        ("edit", {"wave": 20 * WAVE}, ValueError, "wave must hold finite real numbers"),
        ("edit", {"wave": WAVE * math.nan}, ValueError, "wave must hold finite real"),
        ("edit", {"wave": WAVE > 0}, ValueError, "wave must hold finite real numbers"),
        ("edit", {"wave": "dog.wav"}, TypeError, "wave must be a waveform, a tensor"),
        ("edit", {"caption": " "}, ValueError, "caption is empty"),
        ("edit", {"caption": ["a", "b"]}, ValueError, "caption must be one for all or"),
        ("edit", {"strength": 2}, ValueError, "strength must be a finite number and"),
        ("edit", {"sampler": "dpm"}, ValueError, 'needs the sampler "ddim", not "dpm"'),
        ("edit", {"stepps": 3}, TypeError, "stepps is not a field of sampling"),
        ("inpaint", {"start": 0.5}, ValueError, "end must be after start, 0.5 s, not"),
        ("inpaint", {"end": 9.0}, ValueError, "end must be a finite number and lie be"),
        ("inpaint", {"resample": 0}, ValueError, "resample must be a whole number, 1"),
        ("extend", {"seconds": 0}, ValueError, "seconds must be a finite number"),
        ("extend", {"seconds": 60}, ValueError, "wave must have shape"),
    ],
)
def test_bad_arguments_of_edits_are_named_in_one_sentence(
    tiny_pipe, name, changes, error, said
):
    given = {
        "edit": {},
        "inpaint": {"start": 0.2, "end": 0.4},
        "extend": {"seconds": 0.3},
    }[name]
    options = {"wave": WAVE, "caption": "a dog barks", **given, **FAST, **changes}
    with pytest.raises(error, match=said) as caught:
        getattr(tiny_pipe, name)(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("of_pipe", "read"), [("speaks", "transcriptions"), ("sees", "pictures")]
)
def test_weights_that_read_no_captions_refuse_to_edit(
    tiny_pipe, monkeypatch, of_pipe, read
):
    monkeypatch.setattr(type(tiny_pipe), of_pipe, True)
    with pytest.raises(
        ValueError, match=f"follows captions: these weights read {read}"
    ):
        tiny_pipe.edit(WAVE, "a dog barks", **FAST)


def test_the_folder_of_a_peer_is_named_as_such():
    peer = Path(__file__).parents[1] / "data" / "weights" / "peers" / "text_ldm"
    with pytest.raises(ValueError, match="holds the peer text_ldm, not AudioLDM 2"):
        minilib.AudioLDM2.from_pretrained(peer)
