"""Effects are measured as claimed, stored, and printed by chapters as stored."""

import json
import math
from dataclasses import replace

import effects
import notebooks
import pytest

from minilib import results

EFFECT = results.Effect(
    claim="more is better", unit="dB", arms={"much": [3.0, 5.0], "little": [1.0, 1.0]},
    control="little", chance=0.5, ceiling=None, holds=True, seeds=[0, 1],
    command="python book/tools/effects.py 99 more", minutes=0.1,
)  # fmt: skip
CLAIM = effects.Claim(
    "more", "more is better", "dB", lambda m: m["much"] > m["little"], control="little"
)


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """An empty folder in place of data/results."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def test_mean_and_standard_error_are_over_the_seeds():
    assert EFFECT.mean("much") == 4.0 and EFFECT.error("much") == 1.0
    assert EFFECT.error("little") == 0.0
    assert math.isnan(replace(EFFECT, arms={"much": [3.0]}).error("much"))


def test_a_table_names_unit_seeds_chance_and_control():
    assert EFFECT.table() == (
        "dB, 2 seeds, chance 0.5:\nmuch           4 ± 1\nlittle         1 ± 0 (control)"
    )


def test_what_is_stored_comes_back_and_leaves_other_effects_alone(folder):
    results.store("99", {"more": EFFECT})
    other = replace(EFFECT, claim="other")
    results.store("99", {"other": other})
    assert results.load("99") == {"more": EFFECT, "other": other}
    assert list(results.load("99")["more"].arms) == ["much", "little"]
    assert [path.name for path in folder.iterdir()] == ["99.json"]


def test_effects_that_nobody_measured_are_asked_for_with_the_command(folder):
    with pytest.raises(FileNotFoundError, match=r"python book/tools/effects.py 99$"):
        results.load("99")


def test_an_experiment_is_run_for_every_seed_and_its_claim_judged_by_the_means():
    def measure(seed):
        return {"more": {"much": 2.0 * seed, "little": 1.0}}

    made = effects.Experiment(measure, (CLAIM,))
    effect = effects.run(made, [0, 1, 2], "command")["more"]
    assert effect.arms == {"much": [0.0, 2.0, 4.0], "little": [1.0, 1.0, 1.0]}
    assert effect.holds and effect.seeds == [0, 1, 2]
    assert not effects.run(made, [0], "command")["more"].holds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"less": {"much": 1.0, "little": 1.0}}, "claimed"),
        ({"more": {"much": math.nan, "little": 1.0}}, "much is nan"),
        ({"more": {"much": 1.0}}, "control 'little' is not measured"),
    ],
)
def test_what_is_not_measured_as_claimed_is_refused(values, message):
    made = effects.Experiment(lambda seed: values, (CLAIM,))
    with pytest.raises(ValueError, match=message):
        effects.run(made, [0], "command")


def test_a_chapter_without_experiments_is_refused_by_name():
    with pytest.raises(SystemExit, match="chapter 99 has no experiments"):
        effects.experiments("99")


STORED = sorted(results.FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_effects_are_those_that_the_experiments_claim(path):
    stored = results.load(path.stem)
    claims = {c.name: c for e in effects.experiments(path.stem) for c in e.claims}
    assert set(stored) == set(claims)
    for name, effect in stored.items():
        means = {arm: effect.mean(arm) for arm in effect.arms}
        assert effect.claim == claims[name].says and effect.unit == claims[name].unit
        assert effect.holds == bool(claims[name].holds(means))
        assert len(effect.seeds) >= len(effects.SEEDS)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_chapter_prints_its_stored_effects_as_they_are_stored(path):
    (chapter,) = notebooks.chapters([path.stem])
    printed = "".join(
        output.text
        for cell in notebooks.code_cells(notebooks.read(chapter))
        for output in cell.outputs
        if output.output_type == "stream"
    )
    for name, effect in results.load(path.stem).items():
        assert effect.table() in printed, f"{chapter.name} does not print {name}"


def test_every_result_is_json_that_any_tool_reads():
    for path in STORED:
        assert "NaN" not in path.read_text(encoding="utf-8")
        json.loads(path.read_text(encoding="utf-8"))
