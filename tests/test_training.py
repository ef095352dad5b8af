"""The one loop and the stages: deterministic, resumable, unbreakable, and true to the
paper's numbers.
"""

import copy
import io
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from small_world import RECIPE, made_parts, make, small_world, weights

from minilib import audio, cli, training
from minilib.audioldm2 import AudioLDM2
from minilib.conditions import from_batch
from minilib.data import AudioFolder, Corpus
from minilib.gpt import LOARegressor, Loudness
from minilib.phonemes import PhonemeConfig, PhonemeEncoder
from minilib.soundworld import SoundWorld
from minilib.training import (
    ALL_STAGES,
    RUNS,
    STAGES,
    Recipe,
    TrainingData,
    checkpoints,
    clips,
    fit,
    loop,
    origins,
    runs,
    stages,
    train,
    train_stages,
)
from minilib.unet import UNetBlock

BRIEF = {"steps": 4, "batch_size": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def small() -> Iterator[TrainingData]:
    with small_world() as data:
        yield data


@pytest.fixture(scope="module")
def parts(small) -> dict[str, torch.nn.Module]:
    return made_parts(small)


def at(step: int, name: str = "joint") -> torch.Generator:
    return training.step_generator(0, name, step)


def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    losses = model.loss(batch)
    return losses["loss"] if isinstance(losses, dict) else losses


# --------------------------------------------------------------------------------------
# fit


class Line(torch.nn.Module):
    """y = w x + b, as simple as a model with a loss can be."""

    def __init__(self, names: bool = True):
        super().__init__()
        self.w, self.names = torch.nn.Parameter(torch.zeros(3, 2)), names
        self.b = torch.nn.Parameter(torch.zeros(2))
        self.fixed = torch.nn.Parameter(torch.ones(2), requires_grad=False)

    def loss(self, batch):
        error = batch["x"] @ self.w + self.b - batch["y"]
        squared = error.square().mean()
        if not self.names:
            return squared
        return {"loss": squared, "error": error.detach().abs().mean()}


def points(generator: torch.Generator, n: int = 16) -> dict[str, torch.Tensor]:
    x = torch.randn(n, 3, generator=generator)
    return {"x": x, "y": x[:, :2] - 2 * x[:, 1:] + 0.5}


SHORT = Recipe(steps=30, batch_size=16, lr=0.2, warmup=5)


def test_fit_returns_a_curve_for_each_loss_and_they_fall():
    curves = fit(Line(), points, SHORT, progress=False)
    assert set(curves) == {"loss", "error"}
    assert all(curve.shape == (30,) for curve in curves.values())
    assert curves["loss"][-5:].mean() < 0.05 * curves["loss"][:3].mean()
    alone = fit(Line(names=False), points, SHORT, progress=False)
    assert list(alone) == ["loss"] and torch.equal(alone["loss"], curves["loss"])


def test_the_first_point_of_a_curve_is_the_loss_before_any_step():
    batch = points(training.step_generator(3, "line", 0))
    curves = fit(Line(), points, replace(SHORT, steps=1), seed=3, name="line")
    assert curves["loss"].tolist() == [pytest.approx(loss(Line(), batch).item())]


def test_fit_is_told_by_seed_and_name_alone():
    ends = {}
    for seed, name in ((0, "a"), (0, "b"), (1, "a")):
        torch.manual_seed(hash((seed, name)))
        model = Line()
        curve = fit(model, points, SHORT, seed, name, progress=False)["loss"]
        ends[seed, name] = curve, weights(model)
    again = Line()
    curve = fit(again, points, SHORT, 0, "a", progress=False)["loss"]
    assert torch.equal(curve, ends[0, "a"][0])
    assert torch.equal(weights(again), ends[0, "a"][1])
    for other in ((0, "b"), (1, "a")):
        assert not torch.equal(curve, ends[other][0])


def test_fit_trains_as_train_does_but_without_files(
    small, parts, tmp_path, monkeypatch
):
    stage = make("clap", small, parts)
    trained = weights(train(stage, tmp_path / "train", progress=False))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr(torch, "save", None)
    fresh = make("clap", small, parts)
    curves = fit(fresh.model, fresh.batch, fresh.recipe, fresh.seed, "clap")
    assert torch.equal(weights(fresh.model), trained)
    assert len(curves["loss"]) == fresh.recipe.steps
    assert not list((tmp_path / "empty").iterdir())


def test_a_fitted_model_is_in_evaluation_mode_and_what_is_frozen_stays():
    model = Line().eval()
    model.dropout = torch.nn.Dropout(0.5)
    seen = []
    real, model.loss = (
        model.loss,
        lambda batch: seen.append(model.training) or real(batch),
    )
    fit(model, points, replace(SHORT, steps=2), progress=False)
    assert seen == [True, True] and not model.training and not model.dropout.training
    assert torch.equal(model.fixed, torch.ones(2)) and model.w.abs().min() > 0


def test_a_fitted_model_holds_the_average_of_its_weights():
    model, passed = Line(), []

    def watched(generator):
        passed.append(model.w.detach().clone())
        return points(generator)

    fit(model, watched, replace(SHORT, steps=20), progress=False)
    passed.append(model.w.detach().clone())  # without an average: the last weights
    average = passed[0]
    for i, w in enumerate(passed[1:]):  # the decay rises from 1/10 to what is asked for
        decay = min(0.6, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * w
    averaged = Line()
    fit(averaged, points, replace(SHORT, steps=20, ema=0.6), progress=False)
    torch.testing.assert_close(averaged.w.detach(), average)
    assert (average - passed[-1]).abs().max() > 1e-3


def gradient(recipe: Recipe) -> torch.Tensor:
    """What the optimizer is given in a first step, in float64."""
    draw = lambda generator: {k: x.double() for k, x in points(generator).items()}
    taken, found = training.Loop(Line().double(), draw, recipe, 0, "fit"), []
    real = taken.optimizer.step

    def noted():
        found.extend(p.grad.flatten().clone() for p in taken.learned.values())
        real()

    taken.optimizer.step = noted
    taken.step()
    return torch.cat(found)


def test_micro_batches_give_gradient_and_losses_of_the_whole():
    unclipped = replace(SHORT, clip=1e9)
    whole, parts_of_it = (gradient(replace(unclipped, accumulate=n)) for n in (1, 4))
    torch.testing.assert_close(whole, parts_of_it)
    ends, curves = [], []
    for n in (1, 4):
        model = Line().double()
        draw = lambda g: {k: x.double() for k, x in points(g).items()}
        recipe = replace(SHORT, accumulate=n, steps=5)
        curves.append(fit(model, draw, recipe, progress=False))
        ends.append(weights(model))
    assert torch.allclose(*ends, atol=1e-9)
    for name in ("loss", "error"):
        torch.testing.assert_close(curves[0][name], curves[1][name])


def test_gradients_are_clipped_to_their_norm():
    whole = gradient(replace(SHORT, clip=1e9))
    clipped = gradient(replace(SHORT, clip=1e-3))
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-3) and whole.norm() > 1
    torch.testing.assert_close(clipped / clipped.norm(), whole / whole.norm())


def test_the_learning_rate_of_each_step_is_the_recipes():
    taken = training.Loop(Line(), points, SHORT, 0, "fit")
    for step in range(4):
        taken.step()
        rates = {group["lr"] for group in taken.optimizer.param_groups}
        assert rates == {training.learning_rate(SHORT, step)}
    assert taken.done == 4


def test_the_bar_shows_name_losses_and_steps(capsys):
    fit(Line(), points, replace(SHORT, steps=3), name="a line")
    shown = capsys.readouterr().err
    assert "a line" in shown and "3/3" in shown and "  error 1." in shown
    fit(Line(), points, replace(SHORT, steps=3), progress=False)
    assert capsys.readouterr().err == ""


def test_running_means_follow_some_twenty_steps():
    taken = training.Loop(Line(), points, SHORT, 0, "fit")
    mean = None
    for at_step in loop.all_steps(taken, progress=False):
        mean = at_step["loss"] if mean is None else 0.95 * mean + 0.05 * at_step["loss"]
        assert taken.losses["loss"] == pytest.approx(mean)
    assert loop.sentence({"loss": 0.5, "l1": 2}) == "loss 0.5000  l1 2.0000"


def test_a_batch_of_other_rows_than_the_recipes_is_refused():
    draw = lambda generator: {**points(generator), "y": torch.zeros(8, 2)}
    with pytest.raises(
        ValueError, match="16 rows, the recipe's batch_size, not 8 of y"
    ):
        fit(Line(), draw, SHORT, progress=False)


def test_a_recipes_numbers_are_whole_of_whatever_library():
    taken = replace(SHORT, steps=np.int64(3), batch_size=np.int32(4))
    assert (type(taken.steps), taken.steps, taken.batch_size) == (int, 3, 4)
    with pytest.raises(
        TypeError, match="steps must be a whole number, 1 or more, not 2.5"
    ):
        replace(SHORT, steps=2.5)


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate"])
def test_a_recipe_without_steps_or_clips_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be .*1 or more, not 0"):
        replace(SHORT, **{name: 0})


def test_a_loss_that_is_not_finite_stops_with_a_sentence():
    draws = itertools.count()
    turn = lambda x: x if next(draws) < 6 else x * float("nan")  # two a batch
    bad = lambda generator: {k: turn(x) for k, x in points(generator).items()}
    with pytest.raises(FloatingPointError, match="nan at step 3; lower the learning"):
        fit(Line(), bad, SHORT, progress=False)


def test_a_loss_that_is_not_finite_in_the_first_micro_batch_alone_is_seen():
    def half_bad(generator):
        batch = points(generator)
        batch["x"][:8] = float("nan")
        return batch

    with pytest.raises(FloatingPointError, match="fit: the loss is nan at step 0"):
        fit(Line(), half_bad, replace(SHORT, accumulate=2), progress=False)


class Cliff(Line):
    """A line whose loss stays finite, while its gradient may not be."""

    def __init__(self):
        super().__init__(names=False)
        self.register_buffer("calls", torch.zeros(()))
        self.bad = ()  # calls, counted from 0, whose gradient is not finite

    def loss(self, batch):
        found = super().loss(batch)
        if int(self.calls) in self.bad:  # the square root's slope is infinite at 0
            found = found + (self.b * 0.0).sqrt().sum()
        self.calls += 1
        return found


class Alone:
    """A stage of no data: a name, a model, a recipe, a seed, and batches."""

    name, seed = "alone", 0

    def __init__(self, model: torch.nn.Module, **changes):
        self.model, self.recipe = model, replace(SHORT, **changes)

    def batch(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return points(generator)


@pytest.mark.parametrize("muon", [(), ("linear",)])
def test_a_gradient_that_is_not_finite_stops_before_the_step(muon, tmp_path):
    model = Cliff()
    model.bad = (5,)
    stage = Alone(model, checkpoint_every=3, muon=muon)
    with pytest.raises(
        FloatingPointError, match="alone: the norm of the gradient is nan at step 5; "
    ):
        train(stage, tmp_path, progress=False)
    assert weights(model).isfinite().all() and model.w.abs().min() > 0
    held = torch.load(tmp_path / "checkpoints" / "alone.pt", weights_only=True)
    assert held["step"] == 3 and held["model"]["w"].isfinite().all()
    well = train(Alone(Cliff(), muon=muon), tmp_path, resume=True, progress=False)
    unbroken = train(Alone(Cliff(), muon=muon), tmp_path / "b", progress=False)
    assert torch.equal(weights(well), weights(unbroken))


@pytest.mark.parametrize("where", ["model", "optimizer", "ema"])
def test_what_is_not_finite_is_never_written(where, tmp_path, monkeypatch):
    stage = Alone(Line(), checkpoint_every=2, ema=0.5)
    real, infinite = loop.Loop.step, float("inf")

    def spoiling(self):
        losses = real(self)
        if self.done == 4:
            averages = [state["exp_avg_sq"] for state in self.optimizer.state.values()]
            spoiled = {"model": [self.model.fixed], "optimizer": averages}
            spoiled["ema"] = list(self.average.values())
            spoiled[where][0].data[0] = infinite
        return losses

    monkeypatch.setattr(loop.Loop, "step", spoiling)
    said = rf"alone: {where}\.\S+ is not finite after step 3; "
    with pytest.raises(FloatingPointError, match=said):
        train(stage, tmp_path, progress=False)
    held = torch.load(tmp_path / "checkpoints" / "alone.pt", weights_only=True)
    assert held["step"] == 2


def test_a_part_that_float16_can_not_hold_is_not_written(small, tmp_path):
    part = stages.seeded(stages.VAE, "small", 0)
    other = stages.seeded(stages.VAE, "small", 0)
    part.decoder.conv_out.bias.data[0] = 1e5
    said = r"vae: decoder.conv_out.bias of second is not finite in float16"
    with pytest.raises(FloatingPointError, match=said):
        runs.save_parts(tmp_path, "vae", {"first": other, "second": part})
    assert not list(tmp_path.iterdir())
    runs.save_parts(tmp_path, "vae", {"first": other})
    assert (tmp_path / "first" / "model.safetensors").is_file()


def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fp16 and its scaler work on the CPU."""
    real = loop.make_accelerator

    def with_scaler(recipe):
        made, scaler = real(recipe), torch.amp.GradScaler("cpu", init_scale=16.0)
        made.scaler, made.native_amp = scaler, True
        monkeypatch.setitem(made.state._shared_state, "_mixed_precision", "fp16")
        made.autocast_handler = None
        return made

    monkeypatch.setattr(loop, "make_accelerator", with_scaler)


@pytest.mark.parametrize("muon", [(), ("linear",)])
def test_in_fp16_the_scaler_skips_a_gradient_that_overflows(muon, monkeypatch):
    scaled(monkeypatch)
    model = Cliff()
    model.bad = (2,)
    taken = training.Loop(model, points, replace(SHORT, muon=muon), 0, "fit")
    seen = []
    for _ in range(4):
        taken.step()
        seen.append((model.w.detach().clone(), taken.accelerator.scaler.get_scale()))
    (one, whole), (two, _), (three, half), (four, _) = seen
    assert torch.equal(two, three) and half == whole / 2
    assert not torch.equal(one, two) and not torch.equal(three, four)
    model.bad = range(100)
    with pytest.raises(FloatingPointError, match="norm of the gradient is nan at step"):
        for _ in range(60):
            taken.step()
    assert torch.equal(model.w.detach(), four)


def test_a_resumed_run_in_fp16_goes_on_at_its_scale(tmp_path, monkeypatch):
    scaled(monkeypatch)
    ends = []
    for out, bad in (("unbroken", ()), ("broken", (3,))):
        model = Cliff()
        model.bad = (1,)
        stage = Alone(model, steps=6, checkpoint_every=2)
        real, drawn = stage.batch, itertools.count()

        def batch(generator, real=real, drawn=drawn, bad=bad):
            if next(drawn) in bad:
                raise KeyboardInterrupt
            return real(generator)

        stage.batch = batch
        if bad:
            with pytest.raises(KeyboardInterrupt):
                train(stage, tmp_path / out, progress=False)
        train(stage, tmp_path / out, resume=bool(bad), progress=False)
        path = tmp_path / out / "checkpoints" / "alone.pt"
        held = torch.load(path, weights_only=True)
        ends.append((held["scaler"], weights(model)))
    assert ends[0][0] == ends[1][0] and ends[0][0]["scale"] == 8.0
    assert torch.equal(ends[0][1], ends[1][1])


def test_learning_rate_rises_and_falls_within_its_bounds():
    recipe = Recipe(steps=100, batch_size=1, lr=1.0, warmup=10, final_lr=0.02)
    rates = [training.learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) < 1.0 and rates[-1] < 0.022
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[50] == pytest.approx(0.51)
    constant = replace(recipe, final_lr=1.0)
    assert {training.learning_rate(constant, step) for step in range(10, 100)} == {1.0}


def test_vectors_do_not_decay_and_matrices_do():
    model = Line()
    groups = loop.make_optimizer(model, replace(SHORT, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {id(model.w): 0.3, id(model.b): 0.0}
    assert {group["betas"] for group in groups} == {SHORT.betas}


def test_budget_takes_the_cpu_number_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training.budget(cpu=3, gpu=7) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.budget(cpu=3, gpu=7) == 7


# --------------------------------------------------------------------------------------
# Every stage


@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    name, small, parts, tmp_path, monkeypatch
):
    unbroken = weights(
        train(make(name, small, parts, **BRIEF), tmp_path / "unbroken", progress=False)
    )
    real, calls = loop.Loop.step, []

    def stop_in_the_fourth_step(self):
        calls.append(self)
        # one step after the checkpoint is lost, and must be made again
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(loop.Loop, "step", stop_in_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        train(make(name, small, parts, **BRIEF), tmp_path / "broken", progress=False)
    resumed = train(
        make(name, small, parts, **BRIEF), tmp_path / "broken", True, progress=False
    )
    assert len(calls) == 4 + 2 and torch.equal(weights(resumed), unbroken)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_trains_in_the_half_precision_that_a_gpu_has(
    name, small, parts, monkeypatch
):
    stage = make(name, small, parts, **{**BRIEF, "steps": 1}, precision="bf16")
    before = weights(stage.model)
    monkeypatch.setattr(loop, "has_bf16", lambda: True)
    fit(stage.model, stage.batch, stage.recipe, progress=False)
    after = weights(stage.model)
    assert after.isfinite().all() and not torch.equal(after, before)


@pytest.mark.parametrize("name", STAGES)
def test_training_on_one_batch_lowers_its_loss(name, small, parts):
    stage = make(name, small, parts, batch_size=2, steps=8, ema=0.0, lr=1e-3)
    batch = stage.batch(at(0, name))
    before = loss(stage.model, batch).item()
    fit(stage.model, lambda generator: batch, stage.recipe, progress=False)
    stage.model.train()
    assert loss(stage.model, batch).item() < before


def test_a_batch_depends_on_its_step_and_seed_alone(small, parts):
    stage = make("joint", small, parts)
    a, b, c = (stage.batch(at(step)) for step in (7, 7, 8))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["eps"], c["eps"])


def test_frozen_parts_stay_as_they_are(small, parts):
    stage = make("joint", small, parts)
    before = {name: weights(part) for name, part in stage.parts.items()}
    fit(stage.model, stage.batch, stage.recipe, progress=False)
    after = {name: weights(part) for name, part in stage.parts.items()}
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"gpt", "unet"}
    frozen = [p for n in ("vae", "clap", "text") for p in stage.parts[n].parameters()]
    assert frozen and not any(p.requires_grad for p in frozen)


def test_the_text_stages_loss_is_the_mean_over_all_tokens_that_it_hides(small, parts):
    stage = make("text", small, parts)
    batch = stage.batch(at(0, "text"))
    alone = {name: x for name, x in batch.items() if name != "n_targets"}
    torch.testing.assert_close(stage.model.loss(batch), stage.model.loss(alone))


def test_an_unknown_option_of_a_stage_is_refused(small):
    with pytest.raises(TypeError, match="stage vae has no option levels"):
        STAGES["vae"]("small", RECIPE, small, {}, levels=2)


def test_stages_draw_their_weights_from_their_seed(small):
    made = [STAGES["text"]("small", RECIPE, small, {}, seed) for seed in (0, 0, 1)]
    first, same, other = (weights(stage.model) for stage in made)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_the_same_seed_draws_other_weights_only_of_other_models(small):
    state = torch.random.get_rng_state()
    stages.seeded(stages.VAE, "small", 0)
    assert torch.equal(torch.random.get_rng_state(), state)


# --------------------------------------------------------------------------------------
# Sounds


def test_a_share_of_the_clips_are_recordings_where_there_are_any(small):
    loud = Corpus((torch.ones(8, 10240) * 32000).short().numpy(), [""] * 8)
    data = replace(small, recordings=[loud])
    waves = data.waves(8, 0.75, at(0))
    flat = waves.std(dim=1) < 1e-6
    assert waves.shape == (8, 10240) and flat.tolist() == [False] * 2 + [True] * 6
    gains = torch.cat([data.waves(8, 1.0, at(step))[:, 0] for step in range(50)])
    assert waves.abs().max() <= 1 and gains.max() == 1
    decibels = 20 * (gains / (32000 / 32768)).log10()
    assert -9 <= decibels.min() < -8.5 and decibels.median() == pytest.approx(
        -3, abs=0.7
    )
    assert small.waves(8, 0.75, at(0)).shape == (8, 10240)


def test_a_crop_is_the_loudest_of_three_pieces():
    waves = torch.zeros(64, 1000)
    waves[:, 500:] = 1.0
    pieces = clips.crop(waves, 100, at(0))
    assert pieces.shape == (64, 100)
    # all three of them lie in the silent half in (400 / 901)^3 of the cases
    silent = (pieces.sum(dim=1) == 0).float().mean()
    assert 0.02 < silent < 0.2
    whole = torch.randn(2, 50, generator=at(1))
    assert torch.equal(clips.crop(whole, 50, at(2)), whole)


def test_stages_hear_crops_of_the_length_that_they_are_told(small, parts):
    for name, frames in (("vae", 48), ("vocoder", 48)):
        batch = make(name, small, parts).batch(at(0))
        assert batch["mel"].shape == (8, 1, frames, 64)
    assert make("audiomae", small, parts).batch(at(0))["mel"].shape == (8, 1, 64, 64)


def test_draws_from_the_latent_have_variance_one_and_an_emptied_channel_stays_small(
    small, parts
):
    stage = make("vae", small, parts, **BRIEF)
    fit(stage.model, stage.batch, stage.recipe, progress=False)
    # as the KL term empties a channel: no mean, the variance of the prior
    quant = stage.model.quant_conv
    with torch.no_grad():
        for row in (1, 1 + stage.model.config.latent_channels):
            quant.weight[row] = 0.0
            quant.bias[row] = 0.0
        vae = stage.finish()["vae"]
        mean, log_variance = vae.moments(audio.log_mel(small.corpus.wave(range(16))))
    variance = mean.var(dim=(0, 2, 3)) + log_variance.exp().mean(dim=(0, 2, 3))
    assert mean.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (variance - 1).abs().max() < 1e-3
    assert mean[:, 1].abs().max() < 1e-3 < mean[:, 0].std()


def test_the_loa_of_the_clips_has_variance_one_at_every_lambda(small, parts):
    stage = make("audiomae", small, parts)
    audiomae = stage.finish()["audiomae"]
    with torch.no_grad():
        for pool in audiomae.config.pools:
            loa = audiomae.loa(small.mels(16), pool).flatten(0, 1)
            torch.testing.assert_close(
                loa.mean(dim=0), torch.zeros(16), atol=1e-3, rtol=0
            )
            torch.testing.assert_close(
                loa.std(dim=0), torch.ones(16), atol=1e-3, rtol=0
            )


# --------------------------------------------------------------------------------------
# What is computed once


def test_captions_are_encoded_once_and_as_the_encoder_does(small, parts, monkeypatch):
    data, calls = replace(small, encoded={}), []
    encoders = {name: parts[name] for name in ("clap", "text")}
    for encoder in encoders.values():
        real = encoder.encode
        noted = lambda texts, *pad, real=real: calls.append(texts) or real(texts, *pad)
        monkeypatch.setattr(encoder, "encode", noted)
    for indices in (torch.arange(5), torch.tensor([7, 3])):
        texts = [data.corpus.captions[i] for i in indices]
        told = data.told(encoders, indices, torch.zeros(len(indices), dtype=torch.bool))
        assert set(told) == {"clap", "text", "text_mask"}
        with torch.no_grad():
            clap, (text, mask) = (type(x).encode(x, texts) for x in encoders.values())
        torch.testing.assert_close(told["clap"], clap.sequence)
        assert torch.equal(told["text_mask"], mask) and told["text"].shape == text.shape
        torch.testing.assert_close(told["text"][mask], text[mask])
    read = sorted(set(data.corpus.captions))
    assert [sorted(call) for call in calls if call != [""]] == [read, read]


def test_conditions_that_are_dropped_are_the_encoders_empty_ones(small, parts):
    encoders = {name: parts[name] for name in ("clap", "text")}
    dropped = torch.tensor([False, True, False])
    told = small.told(encoders, torch.arange(3), dropped)
    with torch.no_grad():
        for name, encoder in encoders.items():
            x, mask = encoder.empty(1)
            mask = mask if mask is not None else torch.ones(1, 1, dtype=torch.bool)
            torch.testing.assert_close(told[name][1][mask[0]], x[mask])
    assert told["text_mask"].sum(dim=1)[1] == 1 < told["text_mask"].sum(dim=1)[0]


def test_what_is_computed_of_all_clips_is_put_in_place_piece_by_piece(small):
    waves = small.corpus.waves[[*range(16), *range(13)]]  # 4 batches, the last of 5
    corpus = Corpus(waves, ["a sound"] * len(waves))
    data, pieces = replace(small, corpus=corpus, features={}), []

    def noted(mel):
        alive = [piece for piece in pieces[:-1] if piece() is not None]
        assert not alive, "a piece is kept, and memory scattered"
        found = audio.loudness(mel)
        pieces.append(weakref.ref(found))
        return found

    found = data.over_clips(("loudness", 0), noted)
    assert len(pieces) == 4
    torch.testing.assert_close(found, audio.loudness(data.mels(29)))
    assert data.over_clips(("loudness", 0), noted) is found and len(pieces) == 4


def test_the_loa_is_kept_for_each_lambda_that_some_gpt_2_writes(small, parts):
    data, audiomae = replace(small, features={}), parts["audiomae"]
    for n, pool in ((4, 2), (16, 1), (1, 4)):
        loa = data.loa(audiomae, n)
        with torch.no_grad():
            wanted = audiomae.loa(data.mels(16), pool)
        torch.testing.assert_close(loa, wanted)
        assert data.loa(audiomae, n) is loa and loa.shape[1] == n
    assert set(data.features) == {("audiomae", 2), ("audiomae", 1), ("audiomae", 4)}
    with pytest.raises(ValueError, match="a clip has 16, 4, 1 LOA vectors, never 5"):
        data.loa(audiomae, 5)


def test_what_a_part_made_is_forgotten_once_it_has_been_trained_anew(small, parts):
    data = replace(small, features={}, encoded={})
    data.loa(parts["audiomae"], 4), data.loa(parts["audiomae"], 1)
    data.latents(parts["vae"])
    everything = torch.zeros(2, dtype=torch.bool)
    data.told({"text": parts["text"]}, torch.arange(2), everything)
    data.forget("audiomae")
    assert set(data.features) == {("vae", 0)} and set(data.encoded) == {"text"}
    data.forget("text"), data.forget("vae"), data.forget("clap")
    assert not data.features and not data.encoded


# --------------------------------------------------------------------------------------
# GPT-2, latent diffusion, both


def test_gpts_teacher_shows_a_quarter_of_the_clips_and_of_these_any_share(small, parts):
    stage = make("gpt", small, parts, batch_size=16)
    stage.loa = torch.zeros(16, 16, 2)  # of 16 vectors each
    batches = [stage.batch(at(step, "gpt")) for step in range(120)]
    assert batches[0]["keep"].shape == batches[0]["loa"].shape[:2]
    shares = torch.cat([batch["keep"].float().mean(dim=1) for batch in batches])
    # but for those that are shown less than one vector of 16
    taught = shares[shares > 0]
    assert abs(len(taught) / len(shares) - 0.25 * 16 / 17) < 0.03
    assert abs(taught.mean() - 0.5 * 17 / 16) < 0.04
    # uniform, and then the draws
    assert taught.max() == 1 and 1 / 12 - 0.03 < taught.var() < 0.13


def test_gpt_2_reads_the_captions_of_the_clips_whose_loa_it_learns(small, parts):
    stage = make("gpt", small, parts)
    batch = stage.batch(at(0, "gpt"))
    indices, captions = small.pairs(8, at(0, "gpt"))
    with torch.no_grad():
        loa, told = (
            parts["audiomae"].loa(small.mels(16)),
            parts["clap"].encode(captions),
        )
    torch.testing.assert_close(batch["loa"], loa[indices])
    alike = (batch["clap"] - told.sequence).abs().amax(dim=(1, 2)) < 1e-5
    assert alike.sum() >= 6  # a tenth is emptied


@pytest.mark.parametrize("name", ["gpt", "joint"])
def test_gpt_2_learns_how_loud_the_clips_are_as_it_then_writes_them(name, small, parts):
    stage = make(name, small, parts)
    made = stage.finish()
    captions, gpt = small.corpus.captions, made["gpt"]
    with torch.no_grad():
        told = {key: parts[key].encode(captions) for key in gpt.config.conditions}
        loa = gpt.generate(told)
    wanted = audio.loudness(small.mels(16))[:, 0]
    fitted = Loudness(made["loudness"].config)
    fitted.fit(loa, wanted)
    torch.testing.assert_close(made["loudness"](loa), fitted(loa))
    error = (fitted(loa) - wanted).abs().mean()
    assert wanted.std() > 2 and error < 0.9 * (wanted - wanted.mean()).abs().mean()


def test_a_pipeline_that_never_told_how_loud_is_not_taught_it_by_joint(small, parts):
    without = {name: part for name, part in parts.items() if name != "loudness"}
    stage = STAGES["joint"]("small", RECIPE, small, without)
    assert set(stage.finish()) == {"gpt", "unet"}


class Letters:
    """A tokenizer of phonemes, one a letter."""

    pad_to = 12

    def encode(self, texts, pad_to=0):
        S = max(pad_to, *map(len, texts))
        rows = [[1 + ord(x) % 30 for x in text] for text in texts]
        ids = torch.tensor([row + [0] * (S - len(row)) for row in rows])
        return ids, ids != 0


@pytest.fixture()
def speaking(small, parts, monkeypatch) -> stages.GPTStage:
    """GPT-2 that reads CLAP and phonemes, whose encoder learns with it."""
    encoder = PhonemeEncoder(
        PhonemeConfig(32, 8, num_layers=1, num_heads=2, ffn_dim=16, flow_size=1)
    )
    encoder.tokenizer = Letters()
    config = replace(LOARegressor.presets["small"], condition_dims=(16, 8))
    monkeypatch.setitem(LOARegressor.presets, "small", config)

    class SpeakingStage(stages.GPTStage):
        makes = ("gpt", "text", "loudness")

    said = [f"word {caption[-6:]}" for caption in small.corpus.captions]
    data = replace(small, transcriptions=said, encoded={})
    recipe = replace(RECIPE, steps=8, lr=1e-2, ema=0.0)
    return SpeakingStage("small", recipe, data, {**parts, "text": encoder})


def test_an_encoder_that_learns_with_gpt_2_encodes_inside_the_loss(speaking):
    encoder, batch = speaking.parts["text"], speaking.batch(at(0, "gpt"))
    assert {"text_ids", "text_ids_mask", "dropped", "clap"} <= set(batch)
    assert "text" not in batch and "text" not in speaking.data.encoded
    before, found = weights(encoder), loss(speaking.model, batch).item()
    speaking.model.loss(batch).backward()
    learned = [
        p.grad for name, p in encoder.named_parameters() if "project" not in name
    ]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in learned[1:])
    speaking.model.zero_grad()
    fit(speaking.model, lambda generator: batch, speaking.recipe, progress=False)
    assert loss(speaking.model, batch).item() < found
    assert not torch.equal(weights(encoder), before)


def test_what_learns_with_gpt_2_is_read_as_gpt_2_alone_would_be_told(speaking):
    batch = speaking.batch(at(3, "gpt"))
    batch["dropped"] = torch.tensor([True] + [False] * 7)
    encoder, (ids, mask) = (
        speaking.parts["text"],
        (batch["text_ids"], batch["text_ids_mask"]),
    )
    with torch.no_grad():
        states = encoder(ids, mask)
        states[0], mask = 0.0, mask & ~batch["dropped"][:, None]
        told = {**batch, "text": states, "text_mask": mask}
        torch.testing.assert_close(speaking.model.loss(batch), speaking.gpt.loss(told))


def test_what_learned_with_gpt_2_is_made_by_its_stage(speaking):
    made = speaking.finish()
    assert set(made) == {"gpt", "text", "loudness"}
    assert made["text"] is speaking.parts["text"] and made["gpt"] is speaking.gpt


def test_words_that_clips_do_not_have_are_asked_for_in_a_sentence(small, speaking):
    with pytest.raises(ValueError, match="have no transcription, which PhonemeEncoder"):
        small.texts(speaking.parts["text"])


def test_ldm_training_reads_no_caption(small, parts):
    stage = make("ldm", small, parts)
    texts = [stage.batch(at(step, "ldm"))["text"] for step in range(3)]
    with torch.no_grad():
        empty = parts["text"].empty(1).sequence
    assert all(torch.equal(text, empty.expand_as(text)) for text in texts)


def test_a_tenth_of_the_loa_of_ldm_is_what_gpt_2_writes_from_nothing(small, parts):
    stage = make("ldm", small, parts, batch_size=16)
    with torch.no_grad():
        empty = {name: parts[name].empty(1) for name in ("clap", "text")}
        nothing = parts["gpt"].generate(empty)
        true = parts["audiomae"].loa(small.mels(16))
        z0 = parts["vae"].encode(small.mels(16))
    emptied = []
    for step in range(60):
        batch = stage.batch(at(step, "ldm"))
        indices, _ = small.pairs(16, at(step, "ldm"))
        gone = (batch["loa"] - nothing).abs().amax(dim=(1, 2)) < 1e-5
        torch.testing.assert_close(batch["loa"][~gone], true[indices[~gone]])
        emptied.append(gone)
    torch.testing.assert_close(batch["z0"], z0[indices])
    assert abs(torch.cat(emptied).float().mean() - 0.1) < 0.03


@pytest.mark.parametrize("name", ("ldm", "joint"))
def test_the_recipe_says_whether_activations_are_computed_anew(name, small, parts):
    ends = []
    for recompute in (True, False):
        stage = make(name, small, parts, recompute=recompute)
        unet = stage.model.unet if name == "joint" else stage.model
        blocks = [module for module in unet.modules() if isinstance(module, UNetBlock)]
        assert {block.recompute for block in blocks} == {recompute}
        ends.append(loss(stage.model, stage.batch(at(0, name))).item())
    assert ends[0] == pytest.approx(ends[1])


def test_the_noise_levels_of_a_batch_are_spread_evenly_and_each_is_as_likely():
    z0, drawn = torch.zeros(16, 2, 4, 4), []
    for step in range(400):
        batch = stages.noised(z0, 1000, at(step, "ldm"))
        t = batch["t"]
        assert t.min() >= 1 and t.max() <= 1000 and batch["eps"].shape == z0.shape
        # one in each sixteenth
        assert (t.sort().values.diff() - 1000 / 16).abs().max() <= 1
        drawn.append(t)
    assert batch["z0"] is z0 and 0.9 < batch["eps"].std() < 1.1
    # the level of one place in the batch, over many batches
    first = torch.stack(drawn)[:, 0].float()
    assert abs(first.mean() - 500) < 50 and first.min() < 20 and first.max() > 980


def test_joint_training_sends_the_noise_loss_into_gpt(small, parts):
    stage = make("joint", small, parts)
    batch = stage.batch(at(0))
    batch["true_loa"] = torch.zeros_like(batch["true_loa"])
    # where the regression has nothing to learn, only the noise loss is left to teach it
    gpt = stage.model.gpt
    with torch.no_grad():
        batch["loa"] = gpt.generate(from_batch(batch, gpt.config.conditions))
    losses = stage.model.loss(batch)
    losses["loss"].backward()
    assert losses["loa"] < 1e-9
    assert gpt.gpt2.h[0].attn.c_attn.weight.grad.abs().sum() > 1e-6


def test_joint_shows_each_clip_at_several_levels_and_beside_its_own_loa(small, parts):
    stage = make("joint", small, parts, batch_size=4)
    batch = stage.batch(at(0))
    assert batch["t"].shape == batch["true_loa"].shape == (4, 2)
    assert batch["z0"].shape == batch["eps"].shape == (4, 2, 4, 16, 16)
    assert torch.equal(batch["z0"][:, 0], batch["z0"][:, 1])
    assert not torch.equal(batch["eps"][:, 0], batch["eps"][:, 1])
    assert ((batch["t"][:, 0] - batch["t"][:, 1]).abs() - 500).abs().max() <= 1
    indices, _ = small.pairs(4, at(0))
    with torch.no_grad():
        z0 = parts["vae"].encode(small.mels(16))[indices]
    torch.testing.assert_close(batch["z0"][:, 0], z0)
    batch["true_loa"] = torch.tensor([[True, False]] * 4)
    given = {}
    stage.model.unet.loss = lambda shown: given.update(shown) or torch.zeros(())
    stage.model.loss(batch)
    with torch.no_grad():
        conditions = from_batch(batch, ("clap", "text"))
        written = stage.model.gpt.generate(conditions)
    for i in range(4):
        assert torch.equal(given["z0"][2 * i], batch["z0"][i, 0])
        assert torch.equal(given["eps"][2 * i + 1], batch["eps"][i, 1])
        assert given["t"][2 * i] == batch["t"][i, 0]
        assert torch.equal(given["loa"][2 * i], batch["loa"][i])
        torch.testing.assert_close(given["loa"][2 * i + 1], written[i])
        assert torch.equal(given["text"][2 * i + 1], batch["text"][i])
        assert torch.equal(given["text_mask"][2 * i], batch["text_mask"][i])


def test_the_joint_loss_is_the_noises_and_the_regressions(small, parts):
    stage = make("joint", small, parts)
    losses = stage.model.loss(stage.batch(at(0)))
    torch.testing.assert_close(losses["loss"].detach(), losses["noise"] + losses["loa"])
    assert losses["noise"] > 0 and losses["loa"] > 0


def test_the_joint_regression_is_scored_without_a_teacher(small, parts):
    stage = make("joint", small, parts)
    batch = stage.batch(at(0))
    with torch.no_grad():
        written = stage.model.gpt.generate(from_batch(batch, ("clap", "text")))
        scored = stage.model.loss(batch)["loa"]
        torch.testing.assert_close(scored, F.mse_loss(written, batch["loa"]))


def test_shares_of_true_loa_and_of_empty_captions_are_the_papers(small, parts):
    stage = make("joint", small, parts, batch_size=16)
    true, unread = [], []
    with torch.no_grad():
        empty = parts["clap"].empty(1).sequence
    for step in range(60):
        batch = stage.batch(at(step))
        no_caption = (batch["clap"] - empty).abs().amax(dim=(1, 2)) < 1e-6
        unread.append(no_caption)
        true.append(batch["true_loa"][~no_caption])
        # where nothing is read, the LOA is always GPT-2's own
        assert not batch["true_loa"][no_caption].any()
    assert abs(torch.cat(unread).float().mean() - 0.1) < 0.03
    assert abs(torch.cat(true).float().mean() - 0.25) < 0.05


# --------------------------------------------------------------------------------------
# Files


def test_a_checkpoint_holds_what_a_run_needs_to_go_on(small, parts, tmp_path):
    stage = make("text", small, parts)
    train(stage, tmp_path, progress=False)
    held = torch.load(tmp_path / "checkpoints" / "text.pt", weights_only=True)
    kept = {"model", "optimizer", "ema", "step", "seconds", "losses"}
    assert set(held) == {*kept, "scaler", "origin"} and held["scaler"] == {}
    assert held["step"] == 3 and set(held["losses"]) == {"loss"}
    assert set(held["model"]) == set(stage.model.state_dict())
    assert not torch.equal(held["ema"]["shared.weight"], held["model"]["shared.weight"])


def test_the_log_tells_losses_and_seconds_over_all_that_was_resumed(
    small, parts, tmp_path
):
    stage = make("text", small, parts, **{**BRIEF, "steps": 2})
    train(stage, tmp_path, progress=False)
    path = tmp_path / "checkpoints" / "text.pt"
    held = torch.load(path, weights_only=True)
    torch.save({**held, "seconds": 1000.0}, path)
    train(make("text", small, parts, **BRIEF), tmp_path, resume=True, progress=False)
    log = (tmp_path / "train.log").read_text()
    told = re.findall(r"^text      step     (\d)  ([ \d]{6}) s  loss \d", log, re.M)
    (first, before), (last, after) = told
    assert (first, last) == ("2", "4") and int(before) < 1000 <= int(after)


def test_a_failed_write_leaves_the_last_checkpoint(small, parts, tmp_path, monkeypatch):
    train(make("text", small, parts), tmp_path, progress=False)
    path = tmp_path / "checkpoints" / "text.pt"
    before = path.read_bytes()

    def full_disk(checkpoint, file):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        train(make("text", small, parts), tmp_path, progress=False)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["text.pt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stages": "vaee"}, "stage must be all or one of vae"),
        ({"stages": "vae", "preset": "huge"}, "preset must be one of tiny"),
        (
            {"stages": "vae", "steps": 0},
            "steps must be a whole number, 1 or more, not 0",
        ),
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


def test_every_preset_has_a_recipe_for_every_stage_and_options_that_they_know():
    for preset in ("tiny", "colab"):
        run = RUNS[preset]
        assert set(run.recipes) == set(STAGES) and set(run.options) <= set(STAGES)
        for name, options in run.options.items():
            assert all(hasattr(STAGES[name], option) for option in options)
            heard = round(100 * run.seconds)
            assert options.get("crop", 0) <= heard


def test_a_run_hears_as_many_tunes_as_its_preset_says(small, tmp_path):
    for music in (0.0, 1.0):  # each from its own cache
        run = replace(RUNS["small"], n_clips=4, music=music)
        heard = runs.cached_soundworld(run, tmp_path, seed=0)
        world = SoundWorld("train", 0, run.seconds, run.pairs, music)
        assert heard.captions == [world.caption(i) for i in range(4)]
    assert {"piano", "plays"} <= set(runs.vocabulary(music=True))
    assert RUNS["tiny"].music > 0


def test_all_stages_make_a_pipeline_that_generates(
    small, tmp_path, capsys, monkeypatch
):
    run = replace(RUNS["small"], sampling=RUNS["tiny"].sampling)
    monkeypatch.setitem(RUNS, "small", run)
    train_stages("all", "small", tmp_path, steps=1, progress=False)
    pipe = AudioLDM2.from_pretrained(tmp_path, device="cpu")
    assert pipe("a dog barks", steps=1, seed=0, progress=False).shape == (1, 10240)
    assert pipe.sampling == RUNS["tiny"].sampling and pipe.loudness is not None
    assert "barks" in pipe.vocabulary["words"]
    assert pipe.unknown_words("a zebra barks") == ["zebra"]
    log = (tmp_path / "train.log").read_text()
    assert all(f"{name:9s} finished: 1 steps" in log for name in ALL_STAGES)
    assert not list((tmp_path / "checkpoints").iterdir())
    told = runs.finished(tmp_path, "vae")
    assert told["recipe"]["crop"] == 48 and told["recipe"]["steps"] == 1
    assert capsys.readouterr() == ("", "")
    train_stages("all", "small", tmp_path, steps=1, resume=True)
    assert capsys.readouterr().out.count("already finished, 1 steps\n") == 9
    assert len(ALL_STAGES) == 9


@pytest.fixture(scope="module")
def encoders_folder(small, tmp_path_factory) -> Path:
    """A folder in which audiomae, clap and text have been trained."""
    out = tmp_path_factory.mktemp("encoders") / "run"
    train_stages(["audiomae", "clap", "text"], "small", out, steps=1, progress=False)
    return out


def test_captions_are_encoded_anew_once_an_encoder_has_changed(
    small, encoders_folder, tmp_path
):
    kept = replace(small, encoded={"clap": None, "text": None}, features={})
    given = kept, "small", tmp_path
    runs.run_stage("vocoder", replace(RECIPE, steps=1), {}, *given, progress=False)
    assert set(kept.encoded) == {"clap", "text"}
    for name in ("clap", "text"):
        runs.run_stage(name, replace(RECIPE, steps=1), {}, *given, progress=False)
        assert name not in kept.encoded


# --------------------------------------------------------------------------------------
# What a run goes on from


@contextmanager
def broken_off(step: int) -> Iterator[None]:
    """Break off the first training whose step this would be, counted from 0."""
    real = loop.Loop.step

    def stop(self):
        if self.done == step:
            raise KeyboardInterrupt
        return real(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Loop, "step", stop)
        yield


def tones(folder: Path, hertz: float, n: int = 4, **columns: str) -> Path:
    """A folder of tones, each with a caption of its own."""
    folder.mkdir(parents=True)
    lines = [",".join(["file_name", "caption", *columns])]
    for i in range(n):
        t = np.arange(10240) / audio.SAMPLE_RATE
        wave = 0.3 * np.sin(2 * np.pi * (hertz + 50 * i) * t)
        soundfile.write(folder / f"{i}.wav", wave, audio.SAMPLE_RATE)
        caption = f"a tone of {hertz:.0f} hertz and number {i} sounds"
        lines.append(",".join([f"{i}.wav", caption, *columns.values()]))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return tones(tmp_path_factory.mktemp("sounds") / "own", 300)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return tones(tmp_path_factory.mktemp("sounds") / "other", 900)


QUIET = {"preset": "small", "progress": False}


@pytest.fixture(scope="module")
def text_begun(small, own, tmp_path_factory) -> Path:
    """A folder in which the text stage was broken off after two of three steps."""
    out = tmp_path_factory.mktemp("begun") / "run"
    with broken_off(2):
        train_stages("text", out=out, data=own, **QUIET)
    assert (out / "checkpoints" / "text.pt").is_file()
    return out


@pytest.fixture(scope="module")
def text_done(small, own, tmp_path_factory) -> Path:
    """A folder in which the text stage was finished."""
    out = tmp_path_factory.mktemp("done") / "run"
    return train_stages("text", out=out, data=own, **QUIET)


@pytest.fixture()
def begun(text_begun, tmp_path) -> Path:
    return Path(shutil.copytree(text_begun, tmp_path / "run"))


@pytest.fixture()
def done(text_done, tmp_path) -> Path:
    return Path(shutil.copytree(text_done, tmp_path / "run"))


def last_line(capsys) -> str:
    """What was said below the bars."""
    return capsys.readouterr().err.splitlines()[-1]


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def with_run(name: str, options: dict | None = None, **changes) -> training.Run:
    """The small run, with a stage's recipe or options changed."""
    run = RUNS["small"]
    recipes = {**run.recipes, name: replace(run.recipes[name], **changes)}
    return replace(run, recipes=recipes, options={**run.options, name: options or {}})


OTHERS = {
    "data": ({"data": "other"}, "was made with other clips or captions: "),
    "source": ({"data": None}, "was made with source recordings, not SoundWorld: "),
    "seed": ({"seed": 1}, "was made with seed 0, not 1: "),
    "preset": ({"preset": "tiny"}, "was made with preset small, not tiny; "),
    "recipe": ({"run": {"lr": 0.5}}, "was made with lr 0.003, not 0.5: "),
    "options": ({"run": {"options": {"recorded": 0.5}}}, "recorded 0.0, not 0.5: "),
    "tokenizer": (
        {"words": ["some", "other words"]},
        "was made with another tokenizer: ",
    ),
}


@pytest.mark.parametrize("folder", ["begun", "done"])
@pytest.mark.parametrize("what", OTHERS)
def test_a_run_is_not_resumed_from_something_else(
    what, folder, own, other, monkeypatch, request
):
    out, (changed, said) = request.getfixturevalue(folder), OTHERS[what]
    given = {"data": own, **QUIET, **changed}
    if "run" in given:
        monkeypatch.setitem(RUNS, "small", with_run("text", **given.pop("run")))
    if words := given.pop("words", None):
        training.runs.Tokenizer.train(words).save(out / "tokenizer.json")
    if given["data"] == "other":
        given["data"] = other
    before = files(out)
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        train_stages("text", out=out, resume=True, **given)
    named = "checkpoints/text.pt" if folder == "begun" else "finished/text.json"
    assert str(raised.value).startswith(f"{out / named} ")
    assert str(raised.value).endswith("or leave out --resume to start text anew")
    assert files(out) == before


def test_a_run_that_was_refused_goes_on_from_what_it_comes_from(
    begun, text_done, own, other, capsys
):
    line = ["train", "text", "--preset", "small", "--out", str(begun), "--resume"]
    assert cli.main([*line, "--data", str(other)]) == 2
    said = last_line(capsys)
    assert said.startswith(f"minilib: {begun}/checkpoints/text.pt was made with other")
    assert cli.main([*line, "--data", str(own)]) == 0
    ends = (files(path)["text/model.safetensors"] for path in (begun, text_done))
    assert len(set(ends)) == 1


def test_what_a_run_may_have_otherwise_when_it_goes_on(begun, own, monkeypatch):
    monkeypatch.setitem(RUNS, "small", with_run("text", checkpoint_every=1))
    moved = Path(shutil.move(shutil.copytree(own, begun / "a"), begun / "b"))
    train_stages("text", out=begun, data=moved, steps=5, resume=True, **QUIET)
    assert runs.finished(begun, "text")["steps"] == 5


def test_a_stage_is_not_resumed_with_parts_that_were_trained_anew(
    encoders_folder, tmp_path
):
    out = Path(shutil.copytree(encoders_folder, tmp_path / "run"))
    with broken_off(2):
        train_stages("gpt", out=out, **QUIET)
    part = out / "clap" / "model.safetensors"
    before = part.read_bytes()
    train_stages("clap", out=out, steps=2, **QUIET)
    said = "gpt.pt was made with another clap, which has been trained again since: "
    with pytest.raises(ValueError, match=said):
        train_stages("gpt", out=out, resume=True, **QUIET)
    part.write_bytes(before)
    train_stages("gpt", out=out, resume=True, **QUIET)


def test_a_tuned_part_does_not_keep_its_own_stage_from_being_resumed(
    small, parts, tmp_path
):
    # killed when joint had written GPT-2, but not yet that it was finished
    trained = train(make("joint", small, parts), tmp_path, progress=False)
    tuned = {**parts, "gpt": copy.deepcopy(trained.gpt)}
    again = train(make("joint", small, tuned), tmp_path, resume=True, progress=False)
    assert torch.equal(weights(again), weights(trained))


@pytest.mark.parametrize("stage", ["vae", "clap"])
def test_the_tokenizer_stays_while_an_encoder_learns_with_it(stage, begun, own, other):
    before = files(begun)
    train_stages(stage, out=begun, data=other, steps=1, **QUIET)
    after = files(begun)
    for name in ("tokenizer.json", "checkpoints/text.pt"):
        assert after[name] == before[name]
    train_stages("text", out=begun, data=own, resume=True, **QUIET)


@pytest.mark.parametrize("resume", [True, False])
def test_prepare_data_keeps_a_tokenizer_that_a_checkpoint_needs(
    resume, begun, other, small
):
    before = (begun / "tokenizer.json").read_bytes()
    given = RUNS["small"], begun, other, 0, ["vae"] if resume else ["vae", "text"]
    prepared = runs.prepare_data(*given, resume=resume, progress=False)
    after = (begun / "tokenizer.json").read_bytes()
    assert (after == before) == resume
    assert prepared.tokenizer.backend.to_str().encode() == after


def test_what_starts_anew_forgets_what_was_there_before(done, own):
    train_stages("vae", out=done, data=own, steps=1, **QUIET)
    with broken_off(1):
        train_stages(["text", "vae"], out=done, data=own, steps=2, **QUIET)
    assert not list((done / "finished").iterdir())
    train_stages(["text", "vae"], out=done, data=own, steps=2, resume=True, **QUIET)
    for name in ("text", "vae"):
        assert runs.finished(done, name)["steps"] == 2


def test_a_finished_stage_of_fewer_steps_is_not_skipped_in_silence(done, own, capsys):
    line = ["train", "text", "--preset", "small", "--out", str(done), "--resume"]
    line += ["--data", str(own)]
    assert cli.main([*line, "--steps", "8"]) == 2
    said = "text was finished with 3 steps; to train it for 8, leave out --resume"
    assert capsys.readouterr().err == f"minilib: {said}\n"
    assert cli.main([*line, "--steps", "2"]) == 0
    assert capsys.readouterr().out.startswith("text: already finished, 3 steps\n")
    line.remove("--resume")
    assert cli.main([*line, "--steps", "8"]) == 0
    assert runs.finished(done, "text")["steps"] == 8


def test_a_checkpoint_that_is_further_than_was_asked_is_told(begun, own):
    with pytest.raises(
        ValueError, match="steps must be 2 or more to continue.*, not 1"
    ):
        train_stages("text", out=begun, data=own, steps=1, resume=True, **QUIET)


def older(out: Path) -> None:
    """Make a folder as it was before checkpoints knew what they come from."""
    path, note = out / "checkpoints" / "text.pt", out / "finished" / "text.json"
    if path.is_file():
        held = torch.load(path, weights_only=True)
        younger = {"origin", "scaler"}
        torch.save({k: x for k, x in held.items() if k not in younger}, path)
    else:
        told = json.loads(note.read_text())
        kept = {k: told[k] for k in ("steps", "seconds", "recipe")}
        note.write_text(json.dumps(kept))


@pytest.mark.parametrize("folder", ["begun", "done"])
def test_an_older_run_that_knows_no_origin_is_resumed_with_a_sentence(
    folder, own, text_done, capsys, request
):
    out = request.getfixturevalue(folder)
    older(out)
    train_stages("text", "small", out, own, resume=True)
    assert f"{checkpoints.OLDER}\n" in capsys.readouterr().out
    ends = (files(path)["text/model.safetensors"] for path in (out, text_done))
    assert len(set(ends)) == 1


def test_no_average_is_kept_where_none_is_asked_for(tmp_path):
    assert training.Loop(Line(), points, SHORT, 0, "fit").average == {}
    with broken_off(4):
        train(Alone(Line(), checkpoint_every=2), tmp_path, progress=False)
    path = tmp_path / "checkpoints" / "alone.pt"
    held = torch.load(path, weights_only=True)
    # as they were
    torch.save({**held, "ema": {k: held["model"][k] for k in ("w", "b")}}, path)
    resumed = train(Alone(Line()), tmp_path, resume=True, progress=False)
    unbroken = train(Alone(Line()), tmp_path / "b", progress=False)
    assert torch.equal(weights(resumed), weights(unbroken))


def flipped(content: bytes) -> bytes:
    """With one bit of a weight the other way round: pickle and zip don't notice."""
    with zipfile.ZipFile(io.BytesIO(content)) as records:
        largest = max(records.infolist(), key=lambda record: record.file_size)
    name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)
    i = largest.header_offset + 30 + name + extra + largest.file_size // 2
    return content[:i] + bytes([content[i] ^ 64]) + content[i + 1 :]


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def spoiled(content: bytes, **changes) -> bytes:
    held = torch.load(io.BytesIO(content), weights_only=True)
    return saved({**held, **changes})


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "cut at its end": lambda content: content[:-100],
    "empty": lambda content: b"",
    "random": lambda content: bytes(np.random.default_rng(0).bytes(5000)),
    "one bit": flipped,
    "a text": lambda content: b"weights\n" * 200,
    "a list": lambda content: saved([1, 2, 3]),
    "a tensor": lambda content: saved(torch.zeros(3)),
    "weights": lambda content: saved({"w": torch.zeros(3)}),
    "a pickle": lambda content: saved(Path("runs")),
    "no step": lambda content: spoiled(content, step="two"),
    "no optimizer": lambda content: spoiled(content, optimizer={}),
    "another model": lambda content: spoiled(content, model={"w": torch.zeros(3)}),
    "nan": lambda content: spoiled(content, ema={"a": torch.tensor(float("nan"))}),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_told_in_one_sentence(how, begun, own, capsys):
    path = begun / "checkpoints" / "text.pt"
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    before = files(begun)
    line = ["train", "text", "--preset", "small", "--out", str(begun), "--resume"]
    assert cli.main([*line, "--data", str(own)]) == 2
    said = last_line(capsys)
    assert said.startswith(f"minilib: {path} ")
    assert "leave out --resume, to start text from the beginning" in said
    assert {**files(begun), "train.log": 0} == {**before, "train.log": 0}
    assert cli.main([*line[:-1], "--data", str(own)]) == 0


@pytest.mark.parametrize("note", ["", "{", "[]", "{}", '{"steps": "4"}'])
def test_a_damaged_note_is_told_in_one_sentence(note, done, own):
    path = done / "finished" / "text.json"
    path.write_text(note)
    with pytest.raises(ValueError, match="text.json is damaged"):
        train_stages("text", out=done, data=own, resume=True, **QUIET)


def test_what_a_killed_process_was_writing_is_swept_away(begun, own):
    folder = begun / "checkpoints"
    (folder / ".text.pt.123-456.part").write_bytes(b"half")
    (folder / ".vae.pt.123-456.part").write_bytes(b"of another run")
    train_stages("text", out=begun, data=own, resume=True, **QUIET)
    assert [path.name for path in folder.iterdir()] == [".vae.pt.123-456.part"]


def test_fingerprints_tell_clips_captions_and_classes_apart(small):
    waves, captions = small.corpus.waves, small.corpus.captions
    seen = lambda kind, data, **given: origins.of_data(STAGES[kind], data, given)
    of = lambda waves, captions: replace(small, corpus=Corpus(waves, captions))
    known = seen("vae", small)
    assert seen("vae", of(waves.copy(), list(captions))) == known
    other = waves.copy()
    other[3, 100] += 1
    assert seen("vae", of(other, captions)) != known
    assert seen("vae", of(waves, [*captions[1:], captions[0]])) != known
    assert seen("vae", of(waves[:-1], captions[:-1])) != known
    assert seen("clap", replace(small, transcriptions=captions)) != known
    heard = replace(small, recordings=[small.corpus])
    assert seen("vae", heard) == known != seen("vae", heard, recorded=0.5)
    # beyond READ_WHOLE the middle of each clip is read
    many = np.zeros((1000, 10240), dtype=np.int16)
    before = seen("vae", of(many, ["a sound"] * 1000))
    many[517, 5120] = 1
    assert seen("vae", of(many, ["a sound"] * 1000)) != before


def test_a_judge_is_not_resumed_with_other_classes(tmp_path, small):
    first, second = (
        AudioFolder(tones(tmp_path / name, 300, **{"class": name}))
        for name in ("dog", "cat")
    )
    given = [replace(small, folder=folder) for folder in (first, second)]
    judge, vae = (
        [origins.of_data(STAGES[name], data)["data"] for data in given]
        for name in ("judge", "vae")
    )
    assert judge[0] != judge[1] and vae[0] == vae[1]


# --------------------------------------------------------------------------------------
# What is looked at before anything trains


def test_all_files_and_captions_are_looked_at_first_and_all_faults_told(
    small, tmp_path
):
    folder = tones(tmp_path / "own", 300, n=6)
    (folder / "1.wav").write_bytes(b"no sound")
    (folder / "4.wav").unlink()
    table = (folder / "metadata.csv").read_text().splitlines()
    table[3] = "2.wav," + "zyx " * 121
    table[6] = "5.wav," + "qwv " * 121
    (folder / "metadata.csv").write_text("\n".join(table) + "\n")
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="has 4 faults") as raised:
        train_stages("all", out=out, data=folder, **QUIET)
    said = str(raised.value)
    for told in ("1.wav", "4.wav", "line 4: the caption 'zyx", "line 7: the caption"):
        assert told in said
    assert said.count("at most 64 can be read") == 2
    assert not out.exists()


def test_captions_are_measured_only_where_they_are_read(small, tmp_path):
    folder = tones(tmp_path / "own", 300)
    table = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(table.replace("a tone", "zyx " * 121, 1))
    train_stages("vae", out=tmp_path / "vae", data=folder, steps=1, **QUIET)
    for stage in ("clap", "text"):
        with pytest.raises(ValueError, match="line 2: the caption 'zyx"):
            train_stages(["vae", stage], out=tmp_path / "run", data=folder, **QUIET)
    assert not (tmp_path / "run").exists()


def test_classes_that_no_judge_can_learn_are_told_before_anything_trains(
    own, small, tmp_path
):
    with pytest.raises(ValueError, match="has no column 'class', from which a judge"):
        train_stages(["vae", "judge"], out=tmp_path / "run", data=own, **QUIET)
    assert not (tmp_path / "run").exists()


def test_quiet_is_quiet(small, own, tmp_path, capfd):
    train_stages(["audiomae", "judge"], out=tmp_path, steps=1, **QUIET)
    train_stages("audiomae", out=tmp_path, steps=1, resume=True, **QUIET)
    train_stages("vae", out=tmp_path / "own", data=own, steps=1, **QUIET)
    assert capfd.readouterr() == ("", "")
    train_stages("vae", "small", tmp_path, steps=1)
    said = capfd.readouterr()
    assert "MINILIB_REALAUDIO is not set" in said.out and "vae" in said.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 1.5}, "steps must be a whole number, 1 or more, not 1.5"),
        ({"steps": "3"}, "steps must be a whole number, 1 or more, not '3'"),
        ({"seed": 0.5}, "seed must be a whole number from 0 to 4294967295, not 0.5"),
    ],
)
def test_numbers_of_a_run_must_be_whole(given, said, tmp_path):
    with pytest.raises(TypeError, match=said):
        train_stages("vae", out=tmp_path / "out", **given)
    with pytest.raises(ValueError, match="stages is empty: name at least one, or all"):
        train_stages([], out=tmp_path / "out")


# --------------------------------------------------------------------------------------
# Killed


SCRIPT = """
import sys
import pytest
import torch
import small_world
from minilib import training
torch.set_num_threads(1)
with pytest.MonkeyPatch.context() as patch:
    small_world.add_small(patch)
    how = {"steps": 10**5, "resume": True, "progress": False}
    training.train_stages("gpt", "small", sys.argv[1], **how)
"""


def test_kill_9_loses_no_checkpoint_and_the_run_goes_on(
    small, encoders_folder, tmp_path
):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    process = subprocess.Popen(
        [sys.executable, script, encoders_folder], env=environment
    )
    path = encoders_folder / "checkpoints" / "gpt.pt"
    while not path.is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(path, weights_only=True)["step"]
    assert step >= 1
    goes_on = {"steps": step + 1, "resume": True, "progress": False}
    train_stages("gpt", "small", encoders_folder, **goes_on)
    assert (encoders_folder / "gpt" / "model.safetensors").is_file()
    log = (encoders_folder / "train.log").read_text()
    assert f"gpt       finished: {step + 1} steps" in log
