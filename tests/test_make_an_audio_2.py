"""The parser, the 1-D VAE and the transformer that reads two encoders."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from minilib import audio, cli, diffusion, peers
from minilib.conditions import Context, to_batch
from minilib.folders import load_part
from minilib.peers import make_an_audio_2
from minilib.peers.make_an_audio_2 import (
    VAE1D,
    ConvBlock,
    DualEncoder,
    Parser,
    StructuredClips,
    StructuredLDM,
    StructuredLDMConfig,
    TokenConv,
    VAE1DConfig,
    parse,
    start_from,
    structured,
)
from minilib.peers.text_ldm import JoinedClips
from minilib.soundworld import SoundWorld, describe
from minilib.soundworld.captions import PAIRS
from minilib.training import Recipe, fit
from minilib.training.loop import step_generator

TINY = Path(__file__).parents[1] / "data/weights/tiny"
SMALL = StructuredLDMConfig(
    in_channels=3, bins=1, patch=2, width=16, n_layer=2, n_head=2, context_dim=16
)
FEW = VAE1DConfig(latent_channels=4, block_out_channels=(8, 16))


@pytest.fixture(scope="module")
def text():
    return load_part(TINY, "text", torch.float32)


@pytest.fixture
def small(text):
    torch.manual_seed(0)
    model = StructuredLDM(SMALL)
    for parameter in model.parameters():  # not zero, so that everything counts
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    start_from(model, text)
    return model


def mel(B=2, T=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return -6 + 2 * torch.randn(B, 1, T, 64, generator=generator)


# --------------------------------------------------------------------------------------
# The parser


@pytest.mark.parametrize(
    "caption, events",
    [
        ("rain falls", [("rain falls", "all")]),
        ("a dog barks, then rain falls", "dog rain"),
        ("First a dog barks and then rain falls.", "dog rain"),
        ("rain falls after a dog barks", "dog rain"),
        ("after a dog barks, rain falls", "dog rain"),
        ("before rain falls, a dog barks", "dog rain"),
        ("a dog barks before rain falls", "dog rain"),
        ("the sound of a dog bark followed by rain", "dog rain"),
        ("the sound of wind", [("wind", "all")]),
    ],
)
def test_the_first_event_starts_and_the_second_ends(caption, events):
    found = parse(caption)
    if isinstance(events, str):
        assert [order for _, order in found] == ["start", "end"]
        assert all(word in said for word, (said, _) in zip(events.split(), found))
    else:
        assert found == events


def test_every_caption_of_the_corpus_is_parsed_as_its_scene_was_made():
    world = SoundWorld("train", 7, pairs=1.0)
    for i in range(40):
        scene = world.scene(i)
        for k in range(12):
            told = describe(scene, np.random.default_rng(k))
            alone = [
                {describe(type(scene)((event,), 2.56, 0), np.random.default_rng(j))
                 for j in range(200)}
                for event in scene.events
            ]  # fmt: skip
            (first, start), (second, end) = parse(told)
            assert (start, end) == ("start", "end")
            assert first in alone[0] and second in alone[1]
            if k == 1 and i > 3:
                break
    assert len(PAIRS) == 12


def test_the_structured_caption_has_no_articles():
    events = [("a dog barks", "start"), ("an owl hoots", "end")]
    assert structured(events) == "<dog barks& start>@<owl hoots& end>"
    assert structured([("rain falls", "all")]) == "<rain falls& all>"


@pytest.mark.parametrize("error", [0.0, 0.25, 1.0])
def test_the_parser_errs_as_often_as_it_is_set_to(error):
    said, generator = "a dog barks, then rain falls", torch.Generator().manual_seed(0)
    found = [Parser(error)(said, generator) for _ in range(2000)]
    right = structured(parse(said))
    wrong = "<rain falls& start>@<dog barks& end>"
    assert set(found) <= {right, wrong}
    share = found.count(wrong) / len(found)
    assert abs(share - error) <= 3 * math.sqrt(error * (1 - error) / len(found))
    assert Parser(1.0)("rain falls") == "<rain falls& all>"


# --------------------------------------------------------------------------------------
# The VAE


@pytest.mark.parametrize("T", [16, 64, 70])
def test_the_latent_has_time_and_no_frequency(T):
    vae = VAE1D(FEW)
    z = vae.encode(mel(T=T))
    assert z.shape == (2, 4, T // 2, 1)
    assert vae.decode(z).shape == (2, 1, T, 64)


def test_the_posterior_is_drawn_from_with_its_own_deviation():
    vae = VAE1D(FEW)
    mean, log_variance = vae.moments(mel())
    z = vae.encode(mel(), torch.ones_like(mean))
    assert torch.allclose(z, mean + (0.5 * log_variance).exp(), atol=1e-6)


def test_the_vae_learns():
    torch.manual_seed(0)
    vae, fixed = VAE1D(FEW), {"mel": mel(8), "eps": torch.randn(8, 4, 32, 1)}
    curve = fit(vae, lambda _: fixed, Recipe(30, 8, 1e-2, warmup=1), progress=False)
    assert curve["loss"][-1] < 0.9 * curve["loss"][0]


def test_the_vae_that_ships_keeps_what_is_heard():
    folder = TINY.parent / "peers/make_an_audio_2/vae"
    vae = VAE1D.from_pretrained(folder, dtype=torch.float32)
    world = SoundWorld("valid", 9, 1.28)
    mels = audio.log_mel(torch.stack([world[i].wave for i in range(8)]))
    with torch.no_grad():
        z = vae.encode(mels)
        lost = (vae(mels) - mels).abs().mean()
    assert lost < 0.45 and abs(float(z.mean())) < 0.3 and 0.5 < z.std() < 1.3


# --------------------------------------------------------------------------------------
# The transformer and its second encoder


def test_a_convolution_over_tokens_reads_neighbours():
    conv = TokenConv(3, 5, 3, padding=1)
    x = torch.randn(1, 6, 3)
    y = x.clone()
    y[0, 2] += 1
    moved = (conv(x) - conv(y)).abs().sum(dim=2)[0] > 1e-6
    assert moved.tolist() == [False, True, True, True, False, False]
    assert isinstance(StructuredLDM(SMALL).blocks[0], ConvBlock)


def test_it_starts_from_velocity_zero_and_ends_with_the_latents_shape(text):
    model = StructuredLDM(SMALL)
    start_from(model, text)
    told = DualEncoder(text, model).encode(["rain falls", "a dog barks"])
    v = model(torch.randn(2, 3, 12, 1), torch.tensor([5, 900]), {"text": told})
    assert v.shape == (2, 3, 12, 1) and v.abs().max() == 0


def test_both_encoders_count(small, text):
    encoder = DualEncoder(text, small)
    given = encoder.given(["rain falls after a dog barks"])
    other = encoder.given(["a dog barks after rain falls"])
    z, t = torch.randn(1, 3, 12, 1), torch.tensor([500])
    say = lambda **parts: small(z, t, {"text": small.read({**given, **parts})})
    with torch.no_grad():
        assert (say() - say(text=other["text"])).abs().mean() > 1e-4
        assert (say() - say(structure=other["structure"])).abs().mean() > 1e-4


def test_padding_of_either_stream_changes_nothing(small, text):
    given = DualEncoder(text, small).given(["a dog barks"])
    noisy = {}
    for name, (states, mask) in given.items():
        junk = torch.where(mask[..., None], states, states.roll(1, dims=1) * 0 + 7)
        noisy[name] = Context(junk.to(states.dtype), mask)
    with torch.no_grad():
        a, b = (small.read(x) for x in (given, noisy))
    assert torch.equal(a.mask, b.mask)
    kept = a.mask[..., None]
    assert torch.allclose(a.sequence * kept, b.sequence * kept, atol=1e-5)


def test_the_loss_is_that_of_the_velocity_and_teaches_the_second_encoder(small, text):
    given = DualEncoder(text, small).given(["rain falls", "a dog barks"])
    z0, eps = torch.randn(2, 3, 12, 1), torch.randn(2, 3, 12, 1)
    t = torch.tensor([100, 900])
    loss = small.loss({"z0": z0, "eps": eps, "t": t, **to_batch(given)})
    zt = diffusion.q_sample(small.schedule, z0, t, eps)
    v = diffusion.velocity(small.schedule, z0, t, eps)
    expected = (small(zt, t, {"text": small.read(given)}) - v).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert small.structure.shared.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in text.parameters())


def test_the_second_encoder_begins_as_the_lower_layers_of_the_first(small, text):
    mine = small.structure.state_dict()
    theirs = text.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in mine.items())
    assert len(mine) < len(theirs)


def test_one_stream_alone_can_be_read(text):
    model = StructuredLDM(StructuredLDMConfig(width=16, context_dim=16, n_head=2,
                                              streams=("text",)))  # fmt: skip
    told = DualEncoder(text, model).encode(["rain falls"])
    assert told.sequence.shape == (1, 24, 16)


def test_batches_hold_both_readings_and_drop_both(small, text):
    vae = VAE1D(VAE1DConfig(latent_channels=3, block_out_channels=(8, 16)))
    clips = JoinedClips(text, vae, n=6, batch_size=40)
    batches = StructuredClips(clips, DualEncoder(text, small))
    batch = batches(step_generator(0, "x", 0))
    assert {"text", "text_mask", "structure", "structure_mask"} <= set(batch)
    told = text.tokenizer.decode(batch["structure"][..., 0])
    empty = [x == "" for x in told]
    assert 0 < sum(empty) < 15 and all(x[0] == "<" for x in told if x)
    # the caption of a dropped item is empty, too: only </s> is read
    assert (batch["text_mask"].sum(dim=1)[torch.tensor(empty)] == 1).all()
    one, two = (batches(step_generator(0, "x", 3)) for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert small.loss(batch).isfinite()


# --------------------------------------------------------------------------------------
# The folder and the pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(make_an_audio_2, "N_SOUNDS", 8)
    patch.setattr(make_an_audio_2, "N_CROPPED", 20)
    out = tmp_path_factory.mktemp("peers") / "make_an_audio_2"
    yield make_an_audio_2.train(out, steps=2, progress=False, weights=TINY)
    patch.undo()


def test_training_writes_a_folder_that_borrows_encoder_and_vocoder(folder):
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["peer"] == "make_an_audio_2"
    assert sorted(x.name for x in folder.iterdir()) == ["pipeline.json", "unet", "vae"]


def test_draws_of_its_latent_have_mean_0_and_variance_1(folder):
    vae = VAE1D.from_pretrained(folder / "vae", dtype=torch.float32)
    world = SoundWorld("train", 0, 2.56)
    mels = audio.log_mel(torch.stack([world[i].wave for i in range(20)]))
    with torch.no_grad():
        mean, log_variance = vae.moments(mels)
    z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape)
    assert (z.mean(dim=(0, 2, 3)).abs() < 0.3).all()
    assert ((z.std(dim=(0, 2, 3)) - 1).abs() < 0.25).all()


def test_it_sounds_as_the_pipeline_does(folder):
    pipe = peers.pipeline(folder)
    pipe.unet.out.weight.data.normal_(std=0.1)
    say = lambda *captions: pipe(captions, seed=3, steps=2, progress=False)
    waves = say("a dog barks", "rain falls")
    assert waves.shape == (2, 40960) and waves.abs().max() <= 1
    # words and time swapped, but the same parse for the second encoder
    assert not torch.equal(say("a dog barks"), say("rain falls"))
    short = pipe("rain falls", seed=4, steps=2, seconds=1.0, progress=False)
    assert short.shape == (1, 16000)


def test_the_command_line_sounds_it(folder, tmp_path):
    out = tmp_path / "x.wav"
    line = ["generate", "rain falls after a dog barks", "--weights", str(folder)]
    assert cli.main([*line, "-o", str(out), "--steps", "1", "--seed", "2"]) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    "given, says",
    [({"seed": -1}, "seed"), ({"steps": 0}, "steps"), ({"weights": "no"}, "no")],
)
def test_training_refuses_what_it_cannot_do(tmp_path, given, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        make_an_audio_2.train(tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()
