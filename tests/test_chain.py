"""The chain with one link changed at a time: every way is another way, of the same
captions and noise.
"""

import copy
import json
import math

import pytest
import torch

from minilib import chain, cli
from minilib.chain import Way
from minilib.classifier import Classifier
from minilib.metrics import held_out_scenes


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Classifier.preset("tiny").eval()


@pytest.fixture
def scenes(judge, tiny_pipe):
    return held_out_scenes(judge, 3, 0, tiny_pipe.seconds, 1)


@pytest.fixture
def few_ways(monkeypatch):
    monkeypatch.setattr(chain, "STRENGTHS", (1.0, 3.5))
    monkeypatch.setattr(chain, "LENGTHS", (2, 25))


def test_every_way_stands_once_and_the_untuned_parts_only_where_they_were_kept():
    with_untuned, without = chain.ways(True), chain.ways(False)
    assert (
        len({way.name for way in with_untuned})
        == len(with_untuned)
        == 2 * 4 + 7 - 1 + 5 - 1
    )
    assert {way.loa for way in without} == {"true", "joint", "none"} and set(
        without
    ) < set(with_untuned)
    assert Way() in without  # how the pipeline samples
    own = chain.ways(False, guidance=1.7, steps=12)  # of a pipeline that brings its own
    assert (
        Way("true", guidance=1.7, steps=12) in own and Way(guidance=1.7, steps=5) in own
    )
    assert Way(guidance=3.5, steps=12) in own and Way(guidance=1.7, steps=12) in own
    assert Way("true") not in own and Way() not in own


def test_the_way_of_the_pipeline_is_the_pipelines_own(tiny_pipe, scenes):
    way = Way(steps=3)
    noise = torch.randn(
        tiny_pipe.latent_shape(3, scenes.waves.shape[1]),
        generator=torch.Generator().manual_seed(5),
    )
    whole = tiny_pipe(scenes.captions, steps=3, latents=noise, progress=False)
    torch.testing.assert_close(chain.sounds(tiny_pipe, scenes, way, seed=5), whole)


@pytest.mark.parametrize(
    "change",
    [
        {"loa": "true"},
        {"loa": "none"},
        {"text": False},
        {"guidance": 1.0},
        {"steps": 3},
    ],
)
def test_each_link_makes_a_difference(tiny_pipe, scenes, change):
    ways = Way(steps=2), Way(**{"steps": 2} | change)
    usual, changed = (chain.sounds(tiny_pipe, scenes, way, seed=0) for way in ways)
    assert changed.shape == usual.shape and (changed - usual).abs().mean() > 1e-5


@pytest.mark.parametrize(
    "loa, levelled",
    [("joint", True), ("separate", True), ("true", False), ("none", False)],
)
def test_only_what_gpt_2_wrote_says_how_loud(
    tiny_pipe, scenes, monkeypatch, loa, levelled
):
    way = Way(loa, steps=2)
    plain = chain.sounds(tiny_pipe, scenes, way, seed=0)
    monkeypatch.setattr(tiny_pipe, "levelled", lambda waves, loa: waves / 2)
    torch.testing.assert_close(
        chain.sounds(tiny_pipe, scenes, way, seed=0), plain / 2 if levelled else plain
    )


def test_the_parts_before_joint_tuning_are_taken_from_the_run(
    tiny_pipe, scenes, tmp_path
):
    assert chain.untuned(tiny_pipe, tmp_path) is None
    for name in chain.TUNED:
        part = copy.deepcopy(getattr(tiny_pipe, name))
        for parameter in part.parameters():
            parameter.data.mul_(0.5)
        part.save_pretrained(tmp_path / "separate" / name)
    other = chain.untuned(tiny_pipe, tmp_path)
    assert other.vae is tiny_pipe.vae and other.gpt is not tiny_pipe.gpt
    way = Way(steps=2)
    assert not torch.equal(
        chain.sounds(other, scenes, way, 0), chain.sounds(tiny_pipe, scenes, way, 0)
    )


def test_the_table_has_a_row_for_each_way(tiny_pipe, judge, few_ways):
    results = chain.explain(tiny_pipe, judge, n=2, progress=False)
    lines = chain.report(results).splitlines()
    assert lines[2].split() == [
        "class",
        "pitch",
        "count",
        "speed",
        "loudness",
        "first",
        "second",
        "both",
    ]
    assert [line.split(",")[0] for line in lines[3:]] == ["true LOA"] * 2 + [
        "joint LOA"
    ] * 2 + ["none LOA"] * 2 + ["joint LOA"] * 2
    name = Way().name
    assert f"{results[f'{name}.loudness']:.3f}" in next(
        line for line in lines if line.startswith(name)
    )
    assert 0 <= results[f"se.{name}.single.class"] <= 0.5 and "separate" not in str(
        results
    )


def test_links_are_asked_at_the_pipelines_own_guidance_and_steps(
    tiny_pipe, judge, few_ways, monkeypatch
):
    own = {
        "guidance": 2.0,
        "steps": 3,
        "guidance_interval": (300, 1000),
        "temperature": 0.5,
    }
    for name, value in own.items():
        monkeypatch.setattr(tiny_pipe, name, value)
    results = chain.explain(tiny_pipe, judge, n=2, progress=False)
    asked = {
        key.removesuffix(".single.class")
        for key in results
        if key.endswith(".single.class")
    }
    links = {
        Way(loa, text, 2.0, 3)
        for loa in ("true", "joint", "none")
        for text in (True, False)
    }
    strengths = {Way(guidance=w, steps=3) for w in (1.0, 3.5)}
    lengths = {Way(guidance=2.0, steps=k) for k in (2, 25)}
    wanted = {way.name for way in links | strengths | lengths}
    assert {name for name in asked if not name.startswith("se.")} == wanted
    said = "2 held-out scenes of one event, 2 of two; guidance at levels 300 to 1000; temperature 0.5, seed 0"
    assert chain.report(results).startswith(said)


def test_bad_input_is_told_in_a_sentence(tiny_pipe, judge, monkeypatch):
    with pytest.raises(ValueError, match="n must be a whole number, 2 or more, not 1"):
        chain.explain(tiny_pipe, judge, n=1)
    monkeypatch.setattr(tiny_pipe, "audiomae", None)
    with pytest.raises(ValueError, match="pipe must have its audiomae"):
        chain.explain(tiny_pipe, judge, n=2)


def test_the_command_prints_the_table_and_writes_the_numbers(
    tiny_pipe_folder, judge, few_ways, monkeypatch, tmp_path, capsys
):
    judge.save_pretrained(tmp_path / "judge")
    monkeypatch.setattr(cli, "shipped_judge", lambda: tmp_path / "judge")
    line = [
        "chain",
        "--n",
        "2",
        "--weights",
        str(tiny_pipe_folder),
        "--json",
        str(tmp_path / "chain.json"),
    ]
    assert cli.main(line) == 0
    numbers = json.loads((tmp_path / "chain.json").read_text())
    assert capsys.readouterr().out.startswith(
        "2 held-out scenes of one event, 2 of two; temperature 1, seed 0"
    )
    assert numbers["n"] == 2 and any(
        math.isfinite(x) for key, x in numbers.items() if key.endswith("pitch")
    )
