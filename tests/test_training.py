"""The one loop and the stages: deterministic, resumable, unbreakable, and true to the
paper's numbers.
"""

import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minilib import audio, training
from minilib.audioldm2 import AudioLDM2
from minilib.data import Corpus
from minilib.soundworld import SoundWorld
from minilib.tokenizer import Tokenizer
from minilib.training import (
    ALL_STAGES,
    RUNS,
    STAGES,
    Recipe,
    TrainingData,
    clips,
    loop,
    runs,
    stages,
    train,
    train_stages,
)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    corpus = Corpus.from_soundworld(SoundWorld("train", seed=5), 16, progress=False)
    return TrainingData(corpus, Tokenizer.train(corpus.captions))


@pytest.fixture(scope="module")
def parts() -> dict:
    classes = {
        "vae": stages.VAE, "vocoder": stages.VOCODERS["tiny"], "audiomae": stages.AudioMAE, "clap": stages.CLAP,
        "gpt": stages.LOARegressor, "unet": stages.UNet,
    }  # fmt: skip
    parts = {
        name: stages.seeded(model, "tiny", 1).eval() for name, model in classes.items()
    }
    return parts | {"text": stages.seeded(stages.T5, "tiny", 1).text_encoder().eval()}


def small(name: str) -> Recipe:
    return replace(
        RUNS["tiny"].recipes[name], steps=4, batch_size=2, warmup=1, checkpoint_every=2
    )


def make(
    name: str, data: TrainingData, parts: dict, recipe: Recipe | None = None
) -> training.Stage:
    import copy

    needed = {part: copy.deepcopy(parts[part]) for part in STAGES[name].needs}
    return STAGES[name]("tiny", recipe or small(name), data, needed)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    name, data, parts, tmp_path, monkeypatch
):
    unbroken = weights(
        train(make(name, data, parts), tmp_path / "unbroken", progress=False)
    )
    real, calls = loop.training_step, []

    def stop_in_the_third_step(*args):
        calls.append(args)
        # one step after the checkpoint is lost, and must be made again
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(loop, "training_step", stop_in_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        train(make(name, data, parts), tmp_path / "broken", progress=False)
    monkeypatch.setattr(loop, "training_step", real)
    resumed = train(
        make(name, data, parts), tmp_path / "broken", resume=True, progress=False
    )
    assert torch.equal(weights(resumed), unbroken)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_trains_in_the_half_precision_that_a_gpu_has(
    name, data, parts, tmp_path
):
    recipe = replace(small(name), steps=1, precision="bf16")
    stage = make(name, data, parts, recipe)
    before = weights(stage.model).clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "has_bf16", lambda: True)
        trained = train(stage, tmp_path, progress=False)
    assert weights(trained).isfinite().all() and not torch.equal(
        weights(trained), before
    )


@pytest.mark.parametrize("name", STAGES)
def test_training_on_one_batch_lowers_its_loss(name, data, parts, tmp_path):
    stage = make(name, data, parts, replace(small(name), steps=8, ema=0.0, lr=3e-4))
    batch = stage.batch(training.step_generator(0, name, 0))
    stage.batch = lambda generator: batch

    def loss() -> float:
        losses = stage.model.loss(batch)
        return float((losses["loss"] if isinstance(losses, dict) else losses).detach())

    before = loss()
    train(stage, tmp_path, progress=False)
    stage.model.train()
    assert loss() < before


def test_a_batch_depends_on_its_step_and_seed_alone(data, parts):
    stage = make("joint", data, parts)
    a, b, c = (
        stage.batch(training.step_generator(*key))
        for key in ((0, "joint", 7), (0, "joint", 7), (0, "joint", 8))
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["eps"], c["eps"])


def test_frozen_parts_stay_as_they_are(data, parts, tmp_path):
    stage = make("joint", data, parts)
    before = {name: weights(part).clone() for name, part in stage.parts.items()}
    train(stage, tmp_path, progress=False)
    changed = {
        name
        for name, part in stage.parts.items()
        if not torch.equal(weights(part), before[name])
    }
    assert changed == {"gpt", "unet"}


def test_joint_training_sends_the_noise_loss_into_gpt(data, parts):
    stage = make("joint", data, parts)
    batch = stage.batch(training.step_generator(0, "joint", 0))
    batch["true_loa"] = torch.zeros_like(batch["true_loa"])
    # where the regression has nothing to learn, only the noise loss is left to teach it
    with torch.no_grad():
        batch["loa"] = stage.model.gpt.generate(stages.named(batch))
    losses = stage.model.loss(batch)
    losses["loss"].backward()
    assert losses["loa"] < 1e-9
    assert stage.model.gpt.gpt2.h[0].attn.c_attn.weight.grad.abs().sum() > 1e-6


def test_joint_shows_each_clip_at_several_levels_and_beside_its_own_loa(data, parts):
    recipe = replace(small("joint"), batch_size=4, levels=2, level_power=1.0)
    stage = make("joint", data, parts, recipe)
    batch = stage.batch(training.step_generator(0, "joint", 0))
    assert batch["t"].shape == batch["true_loa"].shape == (4, 2) and batch["z0"].shape[
        :2
    ] == (4, 2)
    assert torch.equal(batch["z0"][:, 0], batch["z0"][:, 1])
    assert not torch.equal(batch["eps"][:, 0], batch["eps"][:, 1])
    assert ((batch["t"][:, 0] - batch["t"][:, 1]).abs() - 500).abs().max() <= 1
    batch["true_loa"] = torch.tensor([[True, False]] * 4)
    given = {}
    stage.model.unet.loss = lambda shown: given.update(shown) or torch.zeros(())
    stage.model.loss(batch)
    with torch.no_grad():
        written = stage.model.gpt.generate(stages.named(batch))
    for i in range(4):
        assert (
            torch.equal(given["z0"][2 * i], batch["z0"][i, 0])
            and given["t"][2 * i] == batch["t"][i, 0]
        )
        assert torch.equal(given["loa"][2 * i], batch["loa"][i])
        torch.testing.assert_close(given["loa"][2 * i + 1], written[i])
        assert torch.equal(given["text"][2 * i + 1], batch["text"][i])


def test_shares_of_true_loa_and_of_empty_captions_are_the_papers(data, parts):
    stage = make("joint", data, parts, replace(small("joint"), batch_size=16))
    true, unread = [], []
    empty_text = stage.encode([""])["text"][0, 0]
    for step in range(60):
        batch = stage.batch(training.step_generator(0, "joint", step))
        no_caption = (batch["text"][:, 0] - empty_text).abs().amax(dim=1) < 1e-4
        unread.append(no_caption)
        true.append(batch["true_loa"][~no_caption])
        # where nothing is read, the LOA is always GPT-2's own
        assert not batch["true_loa"][no_caption].any()
    assert abs(torch.cat(unread).float().mean() - 0.1) < 0.03
    assert abs(torch.cat(true).float().mean() - 0.25) < 0.05


def test_captions_are_encoded_once_and_as_the_pipeline_does(data, parts, monkeypatch):
    fresh = replace(data, conditions={})
    stage = make("gpt", fresh, parts)
    calls, read = [], stages.encode_captions
    monkeypatch.setattr(
        stages, "encode_captions", lambda *given: calls.append(given) or read(*given)
    )
    for captions in (data.corpus.captions[:5], ["", data.corpus.captions[7]]):
        with torch.no_grad():
            (clap, clap_mask), (text, mask) = read(
                captions, data.tokenizer, data.tokenizer, parts["clap"], parts["text"]
            )
        ours = stage.encode(captions)
        assert torch.equal(ours["text_mask"], mask) and torch.equal(
            ours["clap_mask"], clap_mask
        )
        torch.testing.assert_close(ours["clap"], clap)
        torch.testing.assert_close(ours["text"][mask], text[mask])
        assert ours["text"].shape == text.shape and not ours["text"][~mask].any()
    assert len(calls) == 1  # all captions of the corpus together


def test_what_is_computed_of_all_clips_is_put_in_place_piece_by_piece(data):
    waves = data.corpus.waves[[*range(16), *range(13)]]  # 4 batches of 8, the last of 5
    corpus = Corpus(waves, ["a sound"] * len(waves))
    pieces = []

    def noted(mel):
        assert not any(piece() is not None for piece in pieces[:-1]), (
            "a piece is kept, and memory scattered"
        )
        levels = audio.loudness(mel)
        pieces.append(weakref.ref(levels))
        return levels

    levels = stages.over_clips(
        "level", noted, replace(data, corpus=corpus, features={})
    )
    assert len(pieces) == 4
    torch.testing.assert_close(
        levels, audio.loudness(audio.log_mel(corpus.wave(range(len(corpus)))))
    )


def test_gpts_teacher_shows_a_quarter_of_the_clips_and_of_these_any_share(data, parts):
    stage = make("gpt", data, parts, replace(small("gpt"), batch_size=16))
    batches = [
        stage.batch(training.step_generator(0, "gpt", step)) for step in range(120)
    ]
    assert batches[0]["keep"].shape == batches[0]["loa"].shape[:2]
    shares = torch.cat([batch["keep"].float().mean(dim=1) for batch in batches])
    # but for those that are shown less than one vector of 16
    taught = shares[shares > 0]
    assert abs(len(taught) / len(shares) - 0.25 * 16 / 17) < 0.03
    assert abs(taught.mean() - 0.5 * 17 / 16) < 0.04
    # uniform, and then the draws
    assert taught.max() == 1 and 1 / 12 - 0.03 < taught.var() < 0.13


def test_the_joint_regression_is_scored_without_a_teacher(data, parts):
    stage = make("joint", data, parts)
    batch = stage.batch(training.step_generator(0, "joint", 0))
    with torch.no_grad():
        written = stage.model.gpt.generate(stages.named(batch))
        torch.testing.assert_close(
            stage.model.loss(batch)["loa"], F.mse_loss(written, batch["loa"])
        )


@pytest.mark.parametrize("name", ["gpt", "joint"])
def test_gpt_2_learns_how_loud_the_clips_are_as_it_then_writes_them(name, data, parts):
    stage = make(name, data, parts)
    assert (stage.model if name == "gpt" else stage.model.gpt).level(
        torch.zeros(1, 16, 192)
    ) is None
    gpt = stage.finish()["gpt"]
    with torch.no_grad():
        told = gpt.level(gpt.generate(stages.named(stage.encode(data.corpus.captions))))
    levels = audio.loudness(audio.log_mel(data.corpus.wave(range(16))))[:, 0]
    assert levels.std() > 4 and (told - levels).abs().mean() < 0.2 * levels.std()


def test_a_released_gpt_2_stays_as_it_is(data, parts):
    stage = make("joint", data, parts)
    stage.parts["gpt"] = stages.LOARegressor.preset("tiny", level=False)
    stages.fit_level(stage, stage.parts["gpt"])
    assert not [key for key in stage.parts["gpt"].state_dict() if "level" in key]


def test_ldm_training_reads_no_caption(data, parts):
    stage = make("ldm", data, parts)
    texts = [
        stage.batch(training.step_generator(0, "ldm", step))["text"]
        for step in range(3)
    ]
    assert all(
        torch.equal(text[i], texts[0][0]) for text in texts for i in range(len(text))
    )


def test_draws_from_the_latent_have_variance_one_and_an_emptied_channel_stays_small(
    data, parts, tmp_path
):
    stage = make("vae", data, parts)
    train(stage, tmp_path, progress=False)
    # as the KL term empties a channel: no mean, the variance of the prior
    quant = stage.model.quant_conv
    with torch.no_grad():
        for row in (1, 1 + stage.model.config.latent_channels):
            quant.weight[row] = 0.0
            quant.bias[row] = 0.0
    vae, pack = stage.finish()["vae"], stage.model.config.pack
    with torch.no_grad():
        moments = vae.moments(audio.log_mel(data.corpus.wave(range(16))))
    mean, log_variance = (torch.nn.functional.pixel_shuffle(x, pack) for x in moments)
    variance = mean.var(dim=(0, 2, 3)) + log_variance.exp().mean(dim=(0, 2, 3))
    assert (
        mean.mean(dim=(0, 2, 3)).abs().max() < 1e-3
        and (variance - 1).abs().max() < 1e-3
    )
    assert mean[:, 1].abs().max() < 1e-3 < mean[:, 0].std()


def test_the_noise_levels_of_a_batch_are_spread_evenly_and_each_is_as_likely():
    z0, drawn = torch.zeros(16, 2, 4, 4), []
    for step in range(400):
        batch = stages.noised(z0, 1000, training.step_generator(0, "ldm", step))
        t = batch["t"]
        assert t.min() >= 1 and t.max() <= 1000 and batch["eps"].shape == z0.shape
        # one in each sixteenth
        assert (t.sort().values.diff() - 1000 / 16).abs().max() <= 1
        drawn.append(t)
    # the level of one place in the batch, over many batches
    first = torch.stack(drawn)[:, 0].float()
    assert abs(first.mean() - 500) < 50 and first.min() < 20 and first.max() > 980


def test_a_power_below_one_draws_the_high_noise_levels_more_often():
    z0 = torch.zeros(16, 2, 4, 4)
    steps = [training.step_generator(0, "ldm", step) for step in range(400)]
    t = torch.cat(
        [stages.noised(z0, 1000, generator, power=0.5)["t"] for generator in steps]
    ).float()
    assert t.min() >= 1 and t.max() <= 1000
    for share in (0.25, 0.5, 0.75):  # P(T sqrt(u) < t) = (t / T)^2
        assert abs((t < 1000 * share).float().mean() - share**2) < 0.01


@pytest.mark.parametrize("name", ("ldm", "joint"))
def test_the_recipe_says_how_often_high_noise_levels_are_drawn(name, data, parts):
    means = []
    for power in (1.0, 0.3):
        stage = make(
            name, data, parts, replace(small(name), batch_size=16, level_power=power)
        )
        means.append(
            stage.batch(training.step_generator(0, name, 0))["t"].float().mean()
        )
    assert abs(means[0] - 500) < 50 and abs(means[1] - 1000 / 1.3) < 50


def test_a_narrow_band_holds_nothing_above_it_and_the_rest_as_it_was():
    n = torch.arange(16000, dtype=torch.float64) / audio.SAMPLE_RATE
    low, high = (
        torch.sin(2 * torch.pi * 500 * n)[None],
        torch.sin(2 * torch.pi * 6000 * n)[None],
    )
    torch.testing.assert_close(clips.low_passed(low + high, 3000.0), low)


def test_recordings_are_narrowed_only_where_the_recipe_says_so(data):
    noise = torch.randn(8, 40960, generator=torch.Generator().manual_seed(0)).clamp(
        -1, 1
    )
    recorded = TrainingData(
        data.corpus, data.tokenizer, [Corpus((noise * 32767).short().numpy(), [""] * 8)]
    )
    for narrow, expected in ((0.0, 0), (1.0, 6)):
        recipe = Recipe(steps=1, batch_size=8, lr=1.0, recorded=0.75, narrow=narrow)
        waves = recorded.waves(recipe, training.step_generator(0, "vae", 0))
        # the recordings come after two clips of the corpus
        spectrum = torch.fft.rfft(waves[2:]).abs()
        above = spectrum[:, -5000:].mean(dim=1) / spectrum.mean(dim=1)  # from 6 kHz on
        assert waves.shape == (8, 40960) and int((above < 0.05).sum()) == expected


def test_accumulated_micro_batches_give_the_gradient_of_the_whole(
    data, parts, tmp_path
):
    ends = []
    for accumulate in (1, 2):
        recipe = replace(
            small("vae"),
            steps=1,
            batch_size=4,
            accumulate=accumulate,
            clip=1e9,
            ema=0.0,
        )
        stage = make("vae", data, parts, recipe)
        stage.model.double()
        real = stage.batch
        stage.batch = lambda generator, real=real: {
            k: v.double() for k, v in real(generator).items()
        }
        ends.append(weights(train(stage, tmp_path / str(accumulate), progress=False)))
    assert torch.allclose(*ends, atol=1e-7)


def test_a_failed_write_leaves_the_last_checkpoint(data, parts, tmp_path, monkeypatch):
    stage = make("gpt", data, parts)
    train(stage, tmp_path, progress=False)
    path = tmp_path / "checkpoints" / "gpt.pt"
    before = path.read_bytes()

    def full_disk(checkpoint, file):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        train(make("gpt", data, parts), tmp_path, progress=False)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["gpt.pt"]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(data, parts, tmp_path):
    stage = make("gpt", data, parts)
    stage.model.projection.projection.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(stage, tmp_path, progress=False)


def test_learning_rate_rises_and_falls_within_its_bounds():
    recipe = Recipe(steps=100, batch_size=1, lr=1.0, warmup=10, final_lr=0.02)
    rates = [training.learning_rate(recipe, step) for step in range(100)]
    assert (
        rates[0] == pytest.approx(0.1, rel=0.01)
        and max(rates) < 1.0
        and rates[-1] < 0.022
    )
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(
        rates[10:], reverse=True
    )
    constant = replace(recipe, final_lr=1.0)
    assert {training.learning_rate(constant, step) for step in range(10, 100)} == {1.0}


def test_budget_takes_the_cpu_number_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training.budget(cpu=3, gpu=7) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.budget(cpu=3, gpu=7) == 7


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stages": "vaee"}, "stage must be all or one of vae"),
        ({"stages": "vae", "preset": "huge"}, "preset must be one of tiny"),
        ({"stages": "vae", "steps": 0}, "steps must be 1 or more, not 0"),
    ],
)
def test_bad_arguments_are_named_in_a_sentence(arguments, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        train_stages(out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_stage_without_what_it_needs_says_which_stage_to_train(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="stage gpt needs audiomae.*train stage audiomae"
    ):
        train_stages("gpt", out=tmp_path / "out")


@pytest.fixture()
def short_run(monkeypatch) -> None:
    recipes = {
        name: replace(recipe, batch_size=2)
        for name, recipe in RUNS["tiny"].recipes.items()
    }
    monkeypatch.setitem(RUNS, "tiny", replace(RUNS["tiny"], n_clips=8, recipes=recipes))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.delenv("MINILIB_REALAUDIO", raising=False)


def test_a_run_hears_as_many_tunes_as_its_preset_says(short_run, tmp_path):
    for music in (0.0, 1.0):  # each from its own cache
        run = replace(RUNS["tiny"], n_clips=4, music=music)
        heard = runs.cached_soundworld(run, tmp_path, seed=0)
        world = SoundWorld("train", 0, run.seconds, run.pairs, music)
        assert heard.captions == [world.caption(i) for i in range(4)]
    assert {"piano", "plays"} <= set(runs.vocabulary(music=True)) and RUNS[
        "tiny"
    ].music > 0


def test_all_stages_make_a_pipeline_that_generates(short_run, tmp_path, capsys):
    train_stages("all", out=tmp_path, steps=1, progress=False)
    pipe = AudioLDM2.from_pretrained(tmp_path, device="cpu")
    assert pipe("a dog barks", steps=1, seed=0, progress=False).shape == (1, 40960)
    assert {name: getattr(pipe, name) for name in RUNS["tiny"].sampling} == RUNS[
        "tiny"
    ].sampling
    assert "barks" in pipe.vocabulary["words"] and pipe.unknown_words(
        "a zebra barks"
    ) == ["zebra"]
    log = (tmp_path / "train.log").read_text()
    assert all(f"{name:9s} finished: 1 steps" in log for name in ALL_STAGES)
    train_stages("all", out=tmp_path, steps=1, progress=False, resume=True)
    assert capsys.readouterr().out.count("finished before") == len(ALL_STAGES)


def test_captions_are_encoded_anew_once_an_encoder_has_changed(
    short_run, data, tmp_path
):
    order = {
        "preset": "tiny",
        "out": tmp_path,
        "seed": 0,
        "resume": False,
        "progress": False,
    }
    kept = replace(
        data, conditions={"a dog barks": (torch.zeros(1, 4), torch.zeros(2, 4))}
    )
    recipe = replace(small("vocoder"), steps=1)
    runs.run_stage("vocoder", recipe, kept, **order)
    assert kept.conditions
    for name in ("clap", "text"):
        kept.conditions["a dog barks"] = torch.zeros(1, 4), torch.zeros(2, 4)
        runs.run_stage(name, replace(small(name), steps=1), kept, **order)
        assert not kept.conditions


SCRIPT = """
import sys
from dataclasses import replace
import os
from minilib import training
recipes = {name: replace(r, batch_size=2, checkpoint_every=1) for name, r in training.RUNS["tiny"].recipes.items()}
training.RUNS["tiny"] = replace(training.RUNS["tiny"], n_clips=8, recipes=recipes)
os.cpu_count = lambda: 1
if __name__ == "__main__":
    training.train_stages("gpt", out=sys.argv[1], steps=int(sys.argv[2]), resume=True, progress=False)
"""


def test_kill_9_loses_no_checkpoint_and_the_run_goes_on(short_run, tmp_path):
    train_stages(["audiomae", "clap", "text"], out=tmp_path, steps=1, progress=False)
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(training.__file__).parents[2]),
    }
    environment.pop("MINILIB_REALAUDIO", None)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path, "100000"], env=environment
    )
    path = tmp_path / "checkpoints" / "gpt.pt"
    while not path.is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(path, weights_only=True)["step"]
    assert step >= 1
    train_stages("gpt", out=tmp_path, steps=step + 1, resume=True, progress=False)
    assert (tmp_path / "gpt" / "model.safetensors").is_file()
    assert (
        f"gpt       finished: {step + 1} steps" in (tmp_path / "train.log").read_text()
    )
