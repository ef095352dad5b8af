"""The pipeline, at a size that says nothing sensible: its stages, its seeds, its
folders (chapters 16 and 17).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import minilib
from minilib import audio
from minilib.audioldm2 import PARTS, AudioLDM2, Profile
from minilib.cli import shipped_weights
from minilib.diffusion import eps_from_velocity
from minilib.guidance import guide, rescale_guided

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


@torch.no_grad()
def test_what_a_caption_gives_does_not_hang_on_the_others_in_the_batch(tiny_pipe):
    # of different lengths: GPT-2 counts padding as positions
    captions = ["a dog barks", "the sound of rain"]
    assert not tiny_pipe.tokenizer.encode(captions)[1].all()
    latents = torch.randn(tiny_pipe.latent_shape(2, tiny_pipe.n_samples(None)))

    def z0(captions, latents):
        conditions = tiny_pipe.encode(captions)
        return tiny_pipe.sample(
            tiny_pipe.loa(conditions), conditions, steps=3, latents=latents
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
        generator = torch.Generator().manual_seed(5)
        z0 = tiny_pipe.sample(
            loa, conditions, steps=3, guidance=2.0, generator=generator
        )
        waves = tiny_pipe.decode(z0, tiny_pipe.n_samples(None))
    assert conditions.clap[0].shape == (2, 1, 16) and conditions.text[0].shape[0] == 2
    assert loa.shape == (2, 4, 16) and z0.shape == tiny_pipe.latent_shape(
        2, waves.shape[1]
    )
    assert torch.equal(waves, tiny_pipe(CAPTIONS, guidance=2.0, seed=5, **FAST))


def test_a_sound_is_as_loud_as_its_loa_says_but_not_past_full_scale(
    tiny_pipe, monkeypatch
):
    wave = torch.randn(1, 10240, generator=torch.Generator().manual_seed(0)) * 0.01
    loa = torch.randn(3, 4, 16)
    heard = lambda waves: audio.loudness(audio.log_mel(waves))[:, 0]
    assert torch.equal(tiny_pipe.levelled(wave, loa), wave)  # nobody has fitted it
    offsets = torch.tensor([-12.0, 6.0, 90.0])
    given = []
    monkeypatch.setattr(
        tiny_pipe.gpt,
        "level",
        lambda x: given.append(x) or heard(wave) + offsets[: len(x)],
    )
    levelled = tiny_pipe.levelled(wave.expand(3, -1), loa)
    assert given[0] is loa
    torch.testing.assert_close(
        heard(levelled) - heard(wave),
        torch.tensor([-12.0, 6.0, 20.0]),
        atol=0.05,
        rtol=0,
    )
    torch.testing.assert_close(levelled[0], 10 ** (-12 / 20) * wave[0])
    loud = tiny_pipe.levelled(30 * wave.expand(3, -1), loa)[2]
    assert loud.abs().max() == 1.0


def test_the_call_sets_the_level_that_gpt_2_says_for_every_candidate(
    tiny_pipe, monkeypatch
):
    plain = tiny_pipe(CAPTIONS, seed=0, **FAST)
    heard = lambda waves: audio.loudness(audio.log_mel(waves))[:, 0]
    wanted = heard(plain) - torch.tensor([3.0, 6.0])
    monkeypatch.setattr(
        tiny_pipe.gpt, "level", lambda loa: wanted.repeat_interleave(len(loa) // 2)
    )
    torch.testing.assert_close(
        heard(tiny_pipe(CAPTIONS, seed=0, **FAST)), wanted, atol=0.05, rtol=0
    )
    several = tiny_pipe(CAPTIONS, seed=0, candidates=2, **FAST)
    torch.testing.assert_close(heard(several), wanted, atol=0.05, rtol=0)


def test_given_latents_are_where_sampling_starts(tiny_pipe):
    shape = tiny_pipe.latent_shape(2, tiny_pipe.n_samples(None))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    assert torch.equal(
        tiny_pipe(CAPTIONS, latents=latents, **FAST),
        tiny_pipe(CAPTIONS, seed=7, **FAST),
    )
    with pytest.raises(
        ValueError,
        match=r"latents must be of shape \(2, 4, 16, 16\), not \(1, 4, 16, 16\)",
    ):
        tiny_pipe(CAPTIONS, latents=latents[:1], **FAST)


def test_temperature_scales_the_noise_that_sampling_starts_from(tiny_pipe, monkeypatch):
    shape = tiny_pipe.latent_shape(2, tiny_pipe.n_samples(None))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    cooler = tiny_pipe(CAPTIONS, latents=0.5 * latents, **FAST)
    assert torch.equal(tiny_pipe(CAPTIONS, seed=7, temperature=0.5, **FAST), cooler)
    monkeypatch.setattr(tiny_pipe, "temperature", 0.5)  # its own
    assert torch.equal(tiny_pipe(CAPTIONS, seed=7, **FAST), cooler)
    assert not torch.equal(tiny_pipe(CAPTIONS, seed=7, temperature=1.0, **FAST), cooler)


def test_sampling_takes_as_many_steps_as_the_pipeline_wants_if_a_call_does_not_say(
    tiny_pipe, monkeypatch
):
    sound = lambda **how: tiny_pipe(CAPTIONS, seed=7, progress=False, **how)
    monkeypatch.setattr(tiny_pipe, "steps", 3)
    assert torch.equal(sound(), sound(steps=3)) and not torch.equal(
        sound(), sound(steps=4)
    )
    conditions = tiny_pipe.encode(CAPTIONS)
    loa = tiny_pipe.loa(conditions)
    latents = torch.randn(tiny_pipe.latent_shape(2, tiny_pipe.n_samples(None)))
    own, three = (
        tiny_pipe.sample(loa, conditions, k, latents=latents) for k in (None, 3)
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
    monkeypatch.setattr(tiny_pipe, "guidance_interval", (500, 1000))  # its own
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
def test_the_sampler_gets_the_guided_noise_at_the_spread_that_the_weights_ask_for(
    tiny_pipe, monkeypatch, prediction
):
    """`noise_predictor` against the formulas: guide and rescale what the network
    predicts, then turn it to noise.
    """
    monkeypatch.setattr(
        tiny_pipe.unet, "config", replace(tiny_pipe.unet.config, prediction=prediction)
    )
    zt, t = (
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
        torch.tensor([700]),
    )
    with torch.no_grad():
        wanted, empty = tiny_pipe.encode(["a dog barks"]), tiny_pipe.encode([""])
        eps = tiny_pipe.noise_predictor(tiny_pipe.loa(wanted), wanted, guidance=3.0)(
            zt, t
        )
        cond, uncond = (
            tiny_pipe.unet(zt, t, (tiny_pipe.loa(c), None), c.text)
            for c in (wanted, empty)
        )
    out = rescale_guided(guide(uncond, cond, 3.0), cond, 0.6)
    schedule = tiny_pipe.unet.schedule
    torch.testing.assert_close(
        eps,
        out if prediction == "eps" else eps_from_velocity(schedule, zt, t, out),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("seconds", [0.1, 0.333, 0.64, 1.5])
def test_other_lengths_come_to_the_sample(tiny_pipe, seconds):
    waves = tiny_pipe("a dog barks", seconds=seconds, seed=0, **FAST)
    assert waves.shape == (1, round(seconds * 16000)) and waves.isfinite().all()


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
    monkeypatch.setattr(
        tiny_pipe.clap,
        "embed_text",
        lambda ids, mask: torch.eye(16)[:1].repeat(len(ids), 1),
    )
    monkeypatch.setattr(
        tiny_pipe, "embed_waves", lambda waves: liking[:, None] * torch.eye(16)[:1]
    )
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
        cosine = (
            tiny_pipe.embed_waves(each) * tiny_pipe.encode(repeated).clap[0][:, 0]
        ).sum(dim=1)
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
            "captions must be strings, not int",
        ),
        ({"captions": "zq" * 200}, ValueError, "tokens, but at most 64 are read"),
        ({"negative": "zq" * 200}, ValueError, "tokens, but at most 64 are read"),
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
        ({"steps": 2.0}, ValueError, "steps must be a whole number"),
        ({"steps": 1001}, ValueError, "steps must be a whole number"),
        (
            {"guidance": float("nan")},
            ValueError,
            "guidance must be a finite number, 0 or more, not nan",
        ),
        ({"guidance": float("inf")}, ValueError, "guidance must be a finite number"),
        ({"guidance": -1.0}, ValueError, "guidance must be a finite number"),
        (
            {"temperature": 0.0},
            ValueError,
            "temperature must lie above 0, and be at most 1, not 0",
        ),
        (
            {"temperature": float("nan")},
            ValueError,
            "temperature must lie above 0, and be at most 1, not nan",
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
        ({"seconds": 0}, ValueError, "seconds must lie between 0.1 and 60, not 0"),
        (
            {"seconds": 10000},
            ValueError,
            "seconds must lie between 0.1 and 60, not 10000",
        ),
        ({"seconds": float("nan")}, ValueError, "seconds must lie between"),
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
# Folders


def test_saved_and_loaded_pipelines_make_the_same_sounds(
    tiny_pipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiny_pipe, "guidance_interval", (300, 1000))
    monkeypatch.setattr(tiny_pipe, "steps", 7)
    tiny_pipe.save_pretrained(tmp_path / "again")
    again = minilib.AudioLDM2.from_pretrained(tmp_path / "again", device="cpu")
    assert torch.equal(
        tiny_pipe(CAPTIONS, seed=0, **FAST), again(CAPTIONS, seed=0, **FAST)
    )
    for name in (
        "vocabulary",
        "seconds",
        "rescale",
        "guidance",
        "guidance_interval",
        "temperature",
        "steps",
    ):
        assert getattr(again, name) == getattr(tiny_pipe, name)
    assert [m.config for m in again.models()] == [m.config for m in tiny_pipe.models()]


def test_weights_in_half_precision_load_as_float32_in_evaluation_mode(
    tiny_pipe_folder, tiny_pipe
):
    from safetensors.torch import load_file

    stored = load_file(tiny_pipe_folder / "unet" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for model in tiny_pipe.models():
        assert {p.dtype for p in model.parameters()} == {
            torch.float32
        } and not model.training


def test_a_pipeline_brings_its_own_guidance_and_a_call_may_say_another(
    copied, tiny_pipe
):
    description = json.loads((copied / "pipeline.json").read_text())
    (copied / "pipeline.json").write_text(json.dumps({**description, "guidance": 2.0}))
    pipe = AudioLDM2.from_pretrained(copied, device="cpu")
    assert torch.equal(
        pipe(CAPTIONS, seed=0, **FAST),
        tiny_pipe(CAPTIONS, guidance=2.0, seed=0, **FAST),
    )
    assert torch.equal(
        pipe(CAPTIONS, guidance=3.0, seed=0, **FAST),
        tiny_pipe(CAPTIONS, guidance=3.0, seed=0, **FAST),
    )
    pipe.save_pretrained(copied.parent / "again")
    assert (
        AudioLDM2.from_pretrained(copied.parent / "again", device="cpu").guidance == 2.0
    )
    del description["guidance"]  # as older pipelines have it
    (copied / "pipeline.json").write_text(json.dumps(description))
    assert AudioLDM2.from_pretrained(copied, device="cpu").guidance == 3.5


def test_a_pipeline_generates_without_the_audiomae_that_only_training_needs(copied):
    shutil.rmtree(copied / "audiomae")
    pipe = AudioLDM2.from_pretrained(copied, device="cpu")
    assert pipe.audiomae is None and pipe(CAPTIONS, seed=0, **FAST).shape[0] == 2


def half_copied(folder: Path) -> None:
    path = folder / "unet" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def pickled(folder: Path) -> None:
    (folder / "unet" / "model.safetensors").unlink()
    torch.save({}, folder / "unet" / "pytorch_model.bin")


def of_another_size(folder: Path) -> None:
    path = folder / "clap" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dim": 24}))


def swapped(folder: Path) -> None:
    shutil.copytree(folder / "clap", folder / "text", dirs_exist_ok=True)


def mixed(folder: Path) -> None:
    """A CLAP that is whole, but of another width than the GPT-2 beside it takes."""
    from dataclasses import replace

    from minilib.clap import CLAP

    config = CLAP.from_pretrained(folder / "clap").config
    CLAP(replace(config, dim=24)).save_pretrained(folder / "clap")


def of_another_loa(folder: Path) -> None:
    """A U-Net that is whole, but lays out another number of LOA vectors than GPT-2
    writes.
    """
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "loa_grid": [3, 2]}))


DAMAGE = {
    "no pipeline.json": (
        lambda f: (f / "pipeline.json").unlink(),
        "pipeline.json is missing",
    ),
    "empty pipeline.json": (
        lambda f: (f / "pipeline.json").write_text("{}"),
        "it must tell the `seconds`",
    ),
    "strange pipeline.json": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "rescale": 2}'),
        "pipeline.json is damaged: `rescale` must lie between 0 and 1, not 2",
    ),
    "strange temperature": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "temperature": 0}'),
        "pipeline.json is damaged: `temperature` must lie above 0, at most 1, not 0",
    ),
    "strange steps": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "steps": 2.5}'),
        "pipeline.json is damaged: `steps` must be a whole number from 1 to 1000, not "
        "2.5",
    ),
    "strange guidance": (
        lambda f: (f / "pipeline.json").write_text('{"seconds": 1, "guidance": -1}'),
        "pipeline.json is damaged: `guidance` must be a number, 0 or more, not -1",
    ),
    "strange interval of guidance": (
        lambda f: (f / "pipeline.json").write_text(
            '{"seconds": 1, "guidance_interval": [300]}'
        ),
        r"pipeline.json is damaged: guidance_interval must be two noise levels from 0 "
        r"to 1000, the lower first",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "damaged tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json",
    ),
    "damaged vocabulary": (
        lambda f: (f / "vocabulary.json").write_text("["),
        "vocabulary.json is damaged",
    ),
    "a part is missing": (
        lambda f: shutil.rmtree(f / "vae"),
        "vae.config.json is missing: the weights folder",
    ),
    "half-copied": (half_copied, "unet.model.safetensors is damaged or half-copied"),
    "a pickle": (
        pickled,
        "pytorch_model.bin beside it is a pickle, which is never loaded",
    ),
    "another config": (of_another_size, "clap are not those of its config"),
    "another model": (swapped, "text.config.json is not the config of a T5Encoder"),
    "mixed": (mixed, "clap gives width 24, but gpt takes 16"),
    "another LOA": (of_another_loa, "gpt writes 4 LOA vectors, but unet lays out"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_sentence_that_names_the_file(
    copied, damage
):
    harm, said = DAMAGE[damage]
    harm(copied)
    with pytest.raises((FileNotFoundError, ValueError), match=said) as caught:
        AudioLDM2.from_pretrained(copied)
    assert "\n" not in str(caught.value)


def test_every_part_has_its_folder(tiny_pipe_folder):
    assert {path.name for path in tiny_pipe_folder.iterdir() if path.is_dir()} == set(
        PARTS
    )


def test_the_weights_that_ship_are_in_half_precision():
    paths = sorted(shipped_weights().parent.glob("*/*/model.safetensors"))
    assert {path.parent.name for path in paths} == {*PARTS, "judge"}
    for path in paths:
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no dictionary)
        assert kinds <= {"F16", "I64"}, path
