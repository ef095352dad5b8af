"""The chain with one link changed at a time: every way is another way, of the same
captions and noise.
"""

import copy
import json
import math
import shutil

import pytest
import torch

from minilib import chain, cli, folders, metrics
from minilib.chain import LENGTHS, STRENGTHS, Way
from minilib.classifier import Classifier, ClassifierConfig
from minilib.gpt import Loudness, LoudnessConfig
from minilib.guidance import Sampling
from minilib.metrics import held_out_scenes

QUICK = Sampling(steps=2)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    classes = Classifier.presets["tiny"].classes
    return Classifier(ClassifierConfig(classes, channels=(4, 8))).eval()


@pytest.fixture(scope="module")
def scenes(judge):
    return held_out_scenes(judge, 3, 0, 0.64, 1)


@pytest.fixture
def few_ways(monkeypatch):
    monkeypatch.setattr(chain, "STRENGTHS", (1.0, 3.5))
    monkeypatch.setattr(chain, "LENGTHS", (1, 2))


def test_every_way_stands_once_and_the_untuned_parts_only_where_they_were_kept():
    with_untuned, without = chain.ways(True, Sampling()), chain.ways(False, Sampling())
    names = {way.name for way in with_untuned}
    assert len(names) == len(with_untuned) == 2 * 4 + 7 - 1 + 5 - 1
    assert {way.loa for way in without} == {"true", "joint", "none"}
    assert set(without) < set(with_untuned)
    assert Way() in without  # how the pipeline samples


def test_every_way_is_the_pipelines_own_but_for_one_thing():
    own = Sampling(guidance=1.7, steps=12, temperature=0.5, sampler="dpm")
    ways = chain.ways(False, own)
    links = [
        Way(loa, text, own)
        for loa in ("true", "joint", "none")
        for text in (True, False)
    ]
    strengths = sorted([*STRENGTHS, 1.7])
    lengths = sorted([*LENGTHS, 12])
    changes = [own.changed(guidance=w) for w in strengths if w != 1.7]
    changes += [own.changed(steps=k) for k in lengths if k != 12]
    assert ways == [*links, *(Way(sampling=how) for how in changes)]


def test_a_way_is_named_by_all_that_may_change():
    assert Way().name == "joint LOA, with text, w 3.5, 25 steps"
    way = Way("none", False, Sampling(guidance=2.0, steps=7))
    assert way.name == "none LOA, no text, w 2, 7 steps"


def test_the_way_of_the_pipeline_is_the_pipelines_own(tiny_pipe, scenes, monkeypatch):
    monkeypatch.setattr(chain, "BATCH", 2)
    noise, n_samples = torch.Generator().manual_seed(5), scenes.waves.shape[1]
    how = Sampling(steps=2, guidance=2.0, temperature=0.7)
    made = chain.sounds(tiny_pipe, scenes, Way(sampling=how), seed=5)
    for some in (slice(0, 2), slice(2, 3)):
        captions = scenes.captions[some]
        latents = tiny_pipe.noise(len(captions), n_samples, generator=noise)
        wanted = tiny_pipe(captions, how, latents=latents, progress=False)
        torch.testing.assert_close(made[some], wanted)
    assert len(made) == 3 and not made.requires_grad


@pytest.fixture(scope="module")
def usual(tiny_pipe_folder, scenes):
    pipe = chain.AudioLDM2.from_pretrained(tiny_pipe_folder, device="cpu")
    return chain.sounds(pipe, scenes, Way(sampling=QUICK), seed=0)


CHANGES = {
    "true": Way("true", sampling=QUICK),
    "none": Way("none", sampling=QUICK),
    "no text": Way(text=False, sampling=QUICK),
    "not guided": Way(sampling=QUICK.changed(guidance=1.0)),
    "longer": Way(sampling=QUICK.changed(steps=3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_link_makes_a_difference(tiny_pipe, scenes, usual, change):
    changed = chain.sounds(tiny_pipe, scenes, CHANGES[change], seed=0)
    assert changed.shape == usual.shape and (changed - usual).abs().mean() > 1e-5


def asked_of_the_unet(pipe, monkeypatch, scenes, way) -> dict:
    """What a way gives to `sample`, by name."""
    taken = {}

    def sample(loa, conditions, sampling, empty, latents):
        taken.update(loa=loa, conditions=conditions, sampling=sampling, empty=empty)
        return latents

    monkeypatch.setattr(pipe, "sample", sample)
    chain.sounds(pipe, scenes, way, seed=0)
    return taken


def test_each_way_gives_the_unet_what_its_name_says(tiny_pipe, scenes, monkeypatch):
    ask = lambda way: asked_of_the_unet(tiny_pipe, monkeypatch, scenes, way)
    own, true = ask(Way(sampling=QUICK)), ask(Way("true", sampling=QUICK))
    none, mute = ask(Way("none", sampling=QUICK)), ask(Way(text=False, sampling=QUICK))
    conditions = tiny_pipe.encode(scenes.captions)
    empty = tiny_pipe.encode([""] * 3, like=conditions)
    torch.testing.assert_close(own["loa"], tiny_pipe.loa(conditions))
    mel = chain.audio.log_mel(scenes.waves)
    torch.testing.assert_close(true["loa"], tiny_pipe.audiomae.loa(mel))
    torch.testing.assert_close(none["loa"], tiny_pipe.loa(empty))
    text = lambda asked: asked["conditions"]["text"].sequence
    torch.testing.assert_close(text(mute), empty["text"].sequence)
    for asked in (own, true, none):
        torch.testing.assert_close(text(asked), conditions["text"].sequence)
        assert asked["sampling"] == QUICK
        torch.testing.assert_close(asked["empty"]["loa"].sequence, none["loa"])
        assert asked["empty"]["text"].sequence.equal(empty["text"].sequence)


@pytest.mark.parametrize(
    ("loa", "told"),
    [("joint", True), ("separate", True), ("true", False), ("none", False)],
)
def test_only_what_gpt_2_wrote_says_how_loud(tiny_pipe, scenes, monkeypatch, loa, told):
    way = Way(loa, sampling=Sampling(steps=1))
    plain = chain.sounds(tiny_pipe, scenes, way, seed=0)
    monkeypatch.setattr(tiny_pipe, "as_loud_as_told", lambda waves, loa: waves / 2)
    again = chain.sounds(tiny_pipe, scenes, way, seed=0)
    torch.testing.assert_close(again, plain / 2 if told else plain)


def test_the_parts_before_joint_tuning_are_taken_from_the_run(
    tiny_pipe, scenes, tmp_path, usual
):
    assert chain.untuned(tiny_pipe, tmp_path) is None
    loudness = Loudness(LoudnessConfig(4, 16))
    tiny_pipe.loudness = copy.deepcopy(loudness)
    for name in ("gpt", "unet"):
        part = copy.deepcopy(getattr(tiny_pipe, name))
        for parameter in part.parameters():
            parameter.data.mul_(0.5)
        part.save_pretrained(tmp_path / folders.SEPARATE / name)
    other = chain.untuned(tiny_pipe, tmp_path)
    # another GPT-2's LOA says nothing to the one map that is there
    assert other.loudness is None and tiny_pipe.loudness is not None
    loudness.bias += 1
    loudness.save_pretrained(tmp_path / folders.SEPARATE / "loudness")
    other = chain.untuned(tiny_pipe, tmp_path)
    assert other.loudness.bias == 1
    other.loudness = None
    assert other.vae is tiny_pipe.vae and other.gpt is not tiny_pipe.gpt
    assert chain.sounds(other, scenes, Way(sampling=QUICK), 0).ne(usual).any()


def test_the_table_has_a_row_for_each_way(tiny_pipe, judge, few_ways):
    how = Sampling(steps=1)
    results = chain.explain(tiny_pipe, judge, sampling=how, n=2, progress=False)
    lines = chain.report(results).splitlines()
    columns = "class pitch count speed loudness first second both"
    assert lines[2].split() == columns.split() and lines[1] == ""
    loas = [line.split(",")[0].removesuffix(" LOA") for line in lines[3:]]
    assert loas == ["true"] * 2 + ["joint"] * 2 + ["none"] * 2 + ["joint"] * 2
    name = Way(sampling=how).name
    row = next(line for line in lines if line.startswith(name))
    keys = "single.class", "pitch", "count", "speed", "loudness"
    keys += tuple(f"pair.{x}" for x in ("first", "second", "both"))
    assert row == name.ljust(len(lines[2]) - 88) + "".join(
        f"{results[f'{name}.{key}']:11.3f}" for key in keys
    )
    assert 0 <= results[f"se.{name}.single.class"] <= 0.5
    assert "separate" not in str(results)


def test_each_way_is_scored_by_the_pipeline_that_goes_it(
    tiny_pipe, judge, few_ways, monkeypatch
):
    asked = []

    def sounds(pipe, scenes, way, seed):
        asked.append((pipe, way, seed, len(scenes.captions), scenes.labels.shape[1]))
        return scenes.waves

    monkeypatch.setattr(chain, "sounds", sounds)
    monkeypatch.setattr(
        metrics.questions, "attributes", lambda *_: {"tempo": torch.ones(2)}
    )
    tiny_pipe.vocabulary = {"classes": ["piano"]}
    before = copy.copy(tiny_pipe)
    given = tiny_pipe, judge, before, QUICK
    results = chain.explain(*given, n=2, seed=3, progress=False)
    assert [x[1] for x in asked[::3]] == chain.ways(True, QUICK)
    for pipe, way, *others in asked:
        assert pipe is (before if way.loa == "separate" else tiny_pipe)
        assert others[:2] == [3, 2]
    assert [n_events for *_, n_events in asked[:3]] == [1, 2, 1]
    said = "2 held-out scenes of one event, 2 of two and 2 tunes; temperature 1, seed 3"
    means = [x for key, x in results.items() if key.startswith("se.")]
    said += f"; standard errors up to {max(means):.3f}"
    assert chain.report(results).splitlines()[0] == said
    assert results[f"{Way('separate', sampling=QUICK).name}.music.tempo"] == 1.0
    own = {"n": 2, "seed": 3, "temperature": 1.0}
    own |= {"guidance.low": 0, "guidance.high": 1000}
    assert {key: x for key, x in results.items() if "LOA" not in key} == own


def test_links_are_asked_as_the_pipeline_samples(
    tiny_pipe, judge, few_ways, monkeypatch
):
    monkeypatch.setattr(chain, "sounds", lambda pipe, scenes, *_: scenes.waves)
    monkeypatch.setattr(metrics.questions, "attributes", lambda *_: {})
    own = Sampling(
        guidance=2.0, steps=3, guidance_interval=(300, 1000), temperature=0.5
    )
    tiny_pipe.sampling = own
    results = chain.explain(tiny_pipe, judge, n=2, progress=False)
    last = ".single.class"
    asked = {key.removesuffix(last) for key in results if key.endswith(last)}
    wanted = {way.name for way in chain.ways(False, own)}
    assert {name for name in asked if not name.startswith("se.")} == wanted
    said = "2 held-out scenes of one event, 2 of two; guidance at levels 300 to 1000; "
    assert chain.report(results).startswith(f"{said}temperature 0.5, seed 0")


def test_bad_input_is_told_in_a_sentence(tiny_pipe, judge, monkeypatch):
    with pytest.raises(ValueError, match="n must be a whole number, 2 or more, not 1"):
        chain.explain(tiny_pipe, judge, n=1)
    monkeypatch.setattr(type(tiny_pipe), "speaks", True)
    with pytest.raises(ValueError, match="pipe must follow captions"):
        chain.explain(tiny_pipe, judge, n=2)
    monkeypatch.undo()
    tiny_pipe.audiomae = None
    with pytest.raises(ValueError, match="pipe must have its audiomae"):
        chain.explain(tiny_pipe, judge, n=2)


def test_the_command_prints_the_table_and_writes_the_numbers(
    tiny_pipe_folder, judge, few_ways, monkeypatch, tmp_path, capsys
):
    judge.save_pretrained(tmp_path / "judge")
    monkeypatch.setattr(cli, "shipped_judge", lambda: tmp_path / "judge")
    monkeypatch.setattr(metrics.questions, "attributes", lambda *_: {})
    weights = shutil.copytree(tiny_pipe_folder, tmp_path / "weights")
    for name in ("gpt", "unet"):
        shutil.copytree(weights / name, weights / folders.SEPARATE / name)
    description = json.loads((weights / "pipeline.json").read_text())
    (weights / "pipeline.json").write_text(json.dumps({**description, "steps": 1}))
    output = tmp_path / "chain.json"
    line = ["chain", "--n", "2", "--seed", "4", "--weights", weights, "--json", output]
    assert cli.main(list(map(str, line))) == 0
    numbers = json.loads(output.read_text())
    said = "2 held-out scenes of one event, 2 of two; temperature 1, seed 4"
    assert capsys.readouterr().out.startswith(said)
    assert numbers["n"] == 2 and all(math.isfinite(x) for x in numbers.values())
    assert "separate LOA, no text, w 3.5, 1 steps.pair.both" in numbers
