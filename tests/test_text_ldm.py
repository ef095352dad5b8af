"""The direct route, and the data that joins sounds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minilib import audio, cli, diffusion, peers
from minilib.classifier import Classifier
from minilib.conditions import Context, to_batch
from minilib.folders import load_part
from minilib.guidance import Sampling
from minilib.metrics import judged
from minilib.peers import text_ldm
from minilib.peers.text_ldm import JoinedClips, TextLDM, TextLDMConfig, TextToAudio
from minilib.soundworld import SoundWorld, describe, held_out_pairs, render
from minilib.soundworld.corpus import to_float
from minilib.training import Recipe, fit
from minilib.training.loop import step_generator

TINY = Path(__file__).parents[1] / "data/weights/tiny"
SMALL = TextLDMConfig(
    in_channels=2, bins=4, context_dim=6, context_length=8, width=16, n_layer=2,
    n_head=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = TextLDM(SMALL).eval()
    for parameter in model.parameters():  # not zero, so that everything counts
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def parts():
    return {x: load_part(TINY, x, torch.float32) for x in ("text", "vae")}


@pytest.fixture(scope="module")
def clips(parts):
    return JoinedClips(parts["text"], parts["vae"], n=40, batch_size=10)


def read(B=2, S=5, seed=1):
    states = torch.randn(B, S, 6, generator=torch.Generator().manual_seed(seed))
    return {"text": Context(states, torch.ones(B, S, dtype=torch.bool))}


def latent(B=2, T=12, seed=2):
    return torch.randn(B, 2, T, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("T", [2, 12, 30])
def test_the_velocity_has_the_shape_of_the_latent_at_any_length(small, T):
    z = latent(T=T)
    assert small(z, torch.tensor([1, 900]), read()).shape == z.shape


def test_padding_of_the_condition_changes_nothing(small):
    told, t = read(), torch.tensor([300, 800])
    states, mask = told["text"]
    noise = 5 * torch.randn(2, 3, 6)
    padded = Context(
        torch.cat([states, noise], dim=1),
        torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    )
    with torch.no_grad():
        a, b = (small(latent(), t, {"text": x}) for x in (told["text"], padded))
    assert torch.allclose(a, b, atol=1e-5)


def test_level_condition_and_the_order_of_its_tokens_all_count(small):
    z, t, told = latent(), torch.tensor([300, 800]), read()
    states, mask = told["text"]
    with torch.no_grad():
        v = small(z, t, told)
        others = [
            small(z, t + 50, told),
            small(z, t, read(seed=9)),
            small(z, t, {"text": Context(states.flip(1), mask)}),
        ]
    assert all((v - other).abs().mean() > 1e-3 for other in others)


def test_frames_are_read_in_their_order(small):
    z, t, told = latent(B=1), torch.tensor([500]), read(B=1)
    swapped = z.unflatten(2, (-1, 2)).flip(2).flatten(2, 3)  # tokens of two steps
    with torch.no_grad():
        a, b = small(z, t, told), small(swapped, t, told)
    back = b.unflatten(2, (-1, 2)).flip(2).flatten(2, 3)
    assert (a - back).abs().mean() > 1e-2


def test_too_long_a_condition_says_so(small):
    with pytest.raises(ValueError, match="'text' must have at most 8 positions, not 9"):
        small(latent(), torch.tensor([1, 2]), read(S=9))


def test_a_single_vector_needs_no_mask(small):
    told = {"text": Context(read(S=1)["text"].sequence)}
    assert small(latent(), torch.tensor([1, 2]), told).isfinite().all()


def test_the_loss_is_that_of_the_velocity(small):
    z0, eps, t = latent(seed=3), latent(seed=4), torch.tensor([100, 900])
    told = read()
    with torch.no_grad():
        found = small.loss({"z0": z0, "eps": eps, "t": t, **to_batch(told)})
        zt = diffusion.q_sample(small.schedule, z0, t, eps)
        v = diffusion.velocity(small.schedule, z0, t, eps)
        expected = (small(zt, t, told) - v).square().mean()
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_it_starts_from_velocity_zero():
    v = TextLDM(SMALL)(latent(), torch.tensor([10, 20]), read())
    assert v.abs().max() == 0


# --------------------------------------------------------------------------------------
# Joined sounds


def test_a_batch_holds_singles_and_pairs_and_is_the_same_again(clips):
    one, two = (clips(step_generator(0, "x", 7)) for _ in range(2))
    assert one["z0"].shape == (10, 4, 64, 16) and clips.n_pairs == 6
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["z0"], clips(step_generator(0, "x", 8))["z0"])


def test_no_pair_that_the_test_split_holds_out_is_joined(clips, monkeypatch):
    joined, real = [], text_ldm.one_after_other

    def noted(first, second):
        joined.append((first.name, second.name))
        return real(first, second)

    monkeypatch.setattr(text_ldm, "one_after_other", noted)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        clips.pair(generator)
    assert len(set(joined)) > 200
    assert not set(joined) & held_out_pairs()
    assert all(a != b for a, b in joined)


def test_the_caption_of_a_pair_tells_its_events_and_its_sound_is_theirs(clips, parts):
    z, told = clips.pair(torch.Generator().manual_seed(3))
    i = next(
        i for i, half in enumerate(clips.halves) if torch.equal(z[0, :, :32], half)
    )
    j = next(
        j for j, half in enumerate(clips.halves) if torch.equal(z[0, :, 32:], half)
    )
    scene = text_ldm.one_after_other(clips.events[i], clips.events[j])
    possible = {describe(scene, np.random.default_rng(k)) for k in range(300)}
    assert told in possible
    # the joined latent is nearly that of the joined sound
    whole = torch.from_numpy(to_float(render(scene)))[None]
    with torch.no_grad():
        true = parts["vae"].encode(audio.log_mel(whole))
    assert (z - true).square().mean() < 0.3 * true.var()


def test_the_second_event_comes_half_a_clip_later(clips):
    first, second = clips.events[:2]
    scene = text_ldm.one_after_other(first, second)
    assert scene.events[1].onset == second.onset + 1.28
    assert scene.events[1].strokes == tuple(x + 1.28 for x in second.strokes)
    assert scene.events[0] == first


def test_more_levels_are_noisy_than_clean(clips):
    t = torch.cat([clips(step_generator(0, "t", k))["t"] for k in range(40)])
    assert 1 <= t.min() and t.max() <= 1000
    assert 560 < t.float().mean() < 620  # 1000 / 1.7


def test_a_step_lowers_the_loss(clips):
    torch.manual_seed(0)
    model = TextLDM.preset("tiny", width=64, n_layer=2)
    fixed = clips(step_generator(0, "fixed", 0))
    curve = fit(model, lambda _: fixed, Recipe(12, 10, 2e-3, warmup=1), progress=False)
    assert curve["loss"][-1] < curve["loss"][0] - 0.01


# --------------------------------------------------------------------------------------
# The folder and the pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("peers") / "text_ldm"
    few = JoinedClips.__init__.__defaults__
    JoinedClips.__init__.__defaults__ = (8, *few[1:])
    try:
        return text_ldm.train(out, steps=1, progress=False, weights=TINY)
    finally:
        JoinedClips.__init__.__defaults__ = few


def test_training_writes_a_folder_that_borrows_the_other_parts(folder):
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["peer"] == "text_ldm"
    assert (folder / told["vae"] / "config.json").is_file()
    assert sorted(x.name for x in folder.iterdir()) == ["pipeline.json", "unet"]


def test_it_sounds_as_the_pipeline_does(folder):
    pipe = TextToAudio.from_pretrained(folder)
    waves = pipe(["a dog barks", "rain falls"], seed=3, steps=2, progress=False)
    alone = pipe("rain falls", seed=4, steps=2, progress=False)
    assert waves.shape == (2, 40960) and waves.abs().max() <= 1
    assert torch.allclose(waves[1], alone[0], atol=1e-4)
    assert pipe("rain falls", seed=4, steps=2, seconds=1.0, progress=False).shape == (
        1,
        16000,
    )


def test_guidance_and_negative_captions_change_the_sound(folder):
    pipe = TextToAudio.from_pretrained(folder)
    pipe.unet.out.weight.data.normal_(std=0.1)
    say = lambda **more: pipe("a dog barks", seed=1, steps=2, progress=False, **more)
    plain = say(guidance=1)
    assert not torch.equal(plain, say(guidance=3))
    assert not torch.equal(say(guidance=3), say(guidance=3, negative="rain falls"))
    assert torch.isfinite(say(sampler="dpm")).all()


@pytest.mark.parametrize(
    "given, says",
    [
        ({"captions": ""}, "a caption is empty"),
        ({"captions": "rain", "seconds": 99.0}, "seconds"),
        ({"captions": "rain", "width": 3}, "width is not a field of sampling"),
    ],
)
def test_wrong_arguments_are_named(folder, given, says):
    with pytest.raises((ValueError, TypeError), match=says):
        TextToAudio.from_pretrained(folder)(given.pop("captions"), **given)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"seed": -1}, "seed"),
        ({"steps": 0}, "steps"),
        ({"weights": "nowhere"}, "nowhere"),
    ],
)
def test_training_refuses_what_it_cannot_do(tmp_path, given, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        text_ldm.train(tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()


def test_the_sampling_is_the_weights_own(folder):
    pipe = TextToAudio.from_pretrained(folder)
    assert pipe.sampling == text_ldm.SAMPLING != Sampling()


def test_the_corpus_of_singles_has_no_pairs(clips):
    world = SoundWorld("train", 0, 2.56, pairs=0.0)
    assert clips.captions[5] == world.caption(5)
    assert all(len(world.scene(i).events) == 1 for i in range(20))


def test_the_weights_that_ship_make_what_the_caption_says():
    folder = TINY.parent / "peers" / "text_ldm"
    assert sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()) < 6e6
    pipe = TextToAudio.from_pretrained(folder)
    judge = Classifier.from_pretrained(TINY.parent / "judges/judge").float()
    said = {
        ("bell", "dog"): "a bell rings, then a dog barks",
        ("dog", "bell"): "a bell rings after a dog barks",
        ("rain", "siren"): "rain falls, then a siren wails",
    }
    waves = pipe(list(said.values()), seed=5, progress=False)
    names = judge.config.classes
    wanted = torch.tensor([[names.index(x) for x in pair] for pair in said])
    assert judged(judge, waves, wanted)["both"].mean() > 0.6


def test_the_command_line_sounds_it_and_names_words_it_cannot_know(
    folder, tmp_path, capsys
):
    out = tmp_path / "x.wav"
    line = ["generate", "a zebra barks", "--weights", str(folder), "-o", str(out)]
    assert cli.main([*line, "--steps", "1", "--seed", "2"]) == 0
    assert out.is_file()
    assert 'these weights don\'t know "zebra"\n' in capsys.readouterr().err
    assert cli.main([*line, "--candidates", "2"]) == 2
    assert "candidates must be 1" in capsys.readouterr().err


def test_a_folder_that_names_an_unknown_peer_is_damaged(tmp_path):
    for name, said in (('"tango9"', "'tango9'"), ('["codec"]', r"\['codec'\]")):
        (tmp_path / "pipeline.json").write_text(f'{{"peer": {name}}}')
        with pytest.raises(ValueError, match=f"is damaged: there is no peer {said}"):
            peers.pipeline(tmp_path)
    assert peers.pipeline(TINY) is None
