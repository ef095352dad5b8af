"""The costs that `minilib info` prints: the released sizes to a parameter, and
operations as counted elsewhere.
"""

import json
import shutil
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from minilib import cli, costs
from minilib.audioldm2 import AudioLDM2
from minilib.conditions import Context
from minilib.costs import PartCost
from minilib.guidance import Sampling
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN

RELEASED = {  # parameters, as the released modules hold them
    "full": {
        "unet": 346_943_496, "vae": 55_376_873, "vocoder": 55_264_897,
        "gpt.projection": 1_184_256, "gpt.gpt2": 124_439_808, "text": 341_231_104,
    },
    "large": {"unet": 718_012_296},
    "speech": {"unet": 261_926_536, "gpt.projection": 604_800, "text": 6_327_744},
}  # fmt: skip


@lru_cache
def parts_of(preset: str) -> dict[str, nn.Module]:
    """All parts of a preset, made once."""
    return costs.preset_parts(preset)


@lru_cache
def shallow(preset: str) -> dict[str, nn.Module]:
    """A preset whose encoders and GPT-2 have one layer: quick to count where the U-Net
    is asked about.
    """
    parts, one = dict(parts_of(preset)), {}
    for name, field in ("text", "num_layers"), ("clap", "n_layer"), ("gpt", "n_layer"):
        one[name] = replace(parts[name].config, **{field: 1})
    with torch.device("meta"):
        return parts | {name: type(parts[name])(config) for name, config in one.items()}


@pytest.mark.parametrize("preset", RELEASED)
def test_released_sizes_hold_the_released_numbers_of_parameters(preset):
    rows = {row.name: row for row in costs.sizes(parts_of(preset))}
    found = {name: rows[name].parameters for name in RELEASED[preset]}
    assert found == RELEASED[preset]
    assert all(row.disk is None for row in rows.values())
    four_each = 4 * rows["unet"].parameters
    assert four_each <= rows["unet"].memory < 1.01 * four_each
    assert list(rows) == [
        *("text", "clap", "gpt.projection", "gpt.gpt2", "unet", "vae", "vocoder"),
        "audiomae",
    ]


def test_a_preset_that_there_is_none_of_is_named():
    with pytest.raises(ValueError, match="preset must be one of tiny, .*, not 'huge'"):
        costs.preset_parts("huge")


def test_memory_holds_buffers_and_counts_bytes():
    model = nn.Linear(3, 2, dtype=torch.float16)
    model.register_buffer("seen", torch.zeros(5, dtype=torch.float64))
    row = costs.size("x", model)
    assert row == PartCost("x", "Linear", parameters=8, memory=8 * 2 + 40, disk=None)


def empty(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


def test_operations_are_those_that_others_counted():
    once = Sampling(steps=1, guidance=1.0)
    flops = costs.operations(shallow("full"), 10.24, once)
    assert flops["sample"] / 1e9 == pytest.approx(170.5, rel=0.02)
    assert flops["decode"] / 1e9 == pytest.approx(670 + 1027, rel=0.02)
    unet, given = parts_of("large")["unet"], {"text": Context(empty(1, 16, 1024))}
    given["loa"] = Context(empty(1, 8, 768))
    large = costs.count(lambda: unet(empty(1, 8, 256, 16), empty(1), given))
    assert large / 1e9 == pytest.approx(352, rel=0.02)


def test_operations_of_known_layers_are_products_and_sums():
    with torch.device("meta"):
        linear, conv = nn.Linear(5, 7), nn.Conv1d(3, 4, 5, padding=2)
        x, y = torch.zeros(2, 5), torch.zeros(2, 3, 10)
    assert costs.count(lambda: linear(x)) == 2 * 2 * 5 * 7
    assert costs.count(lambda: conv(y)) == 2 * 2 * 10 * 3 * 4 * 5


@pytest.fixture(scope="module")
def small(tiny_pipe_folder) -> dict[str, nn.Module]:
    """The parts of the small pipeline, without memory."""
    pipe = AudioLDM2.from_pretrained(tiny_pipe_folder, device="cpu")
    return {name: costs.without_memory(part) for name, part in pipe.models.items()}


def test_each_stage_is_counted_with_what_it_reads(small):
    found = costs.operations(small, 1.28, Sampling(steps=1, guidance=1.0))
    ids = torch.zeros(1, costs.WORDS, dtype=torch.long, device="meta")
    everywhere, count = torch.ones_like(ids, dtype=torch.bool), costs.count
    text, clap = small["text"], small["clap"]
    read = count(lambda: (text(ids, everywhere), clap.embed_text(ids, everywhere)))
    assert found["encode"] == read > 0
    words = {"text": Context(empty(1, costs.WORDS, 16), everywhere)}
    given = {"clap": Context(empty(1, 1, 16)), **words}
    assert found["loa"] == count(lambda: small["gpt"].generate(given))
    given["loa"] = Context(empty(1, 4, 16))
    z = empty(1, 4, 32, 16)  # 1.28 s are 128 frames of 64 bands; the VAE makes a fourth
    assert found["sample"] == count(lambda: small["unet"](z, empty(1), given))
    decode = lambda: small["vocoder"].spectrum(small["vae"].decode(z))
    assert found["decode"] == count(decode)


@pytest.fixture
def uncounted(monkeypatch):
    """Every call counts as 1 operation."""
    monkeypatch.setattr(costs, "count", lambda function: (function(), 1)[1])


@pytest.mark.parametrize(
    ("how", "words", "sample", "read"),
    [
        (Sampling(steps=4), "4 steps, guided", 8, 2),
        (Sampling(4, guidance_interval=(300, 1000)), "4 steps, 2 of them guided", 6, 2),
        (Sampling(steps=4, guidance=1.0), "4 steps, not guided", 4, 1),
    ],
)
def test_guided_steps_ask_the_unet_twice(small, uncounted, how, words, sample, read):
    flops = costs.operations(small, 2.56, how)
    # GPT-2's four vectors follow from three counts, of which each is the same here
    assert flops == {"encode": read, "loa": read, "sample": sample, "decode": 1}
    told = costs.report([], flops, 2.56, how).splitlines()
    assert told[3] == f"2.56 s of sound, {words}".ljust(40) + f"{'GFLOP':>14}"


def test_a_pipeline_samples_as_usual_where_nothing_else_is_said(small, uncounted):
    assert costs.operations(small, 2.56)["sample"] == 2 * Sampling().steps


def test_long_sounds_cost_more(small):
    once = Sampling(steps=1)
    short, long = (costs.operations(small, s, once) for s in (5.12, 20.48))
    # attention grows with its square
    assert 4 * short["sample"] < long["sample"] < 16 * short["sample"]
    assert long["decode"] > 4 * short["decode"]
    assert all(long[stage] == short[stage] for stage in ("encode", "loa"))


def test_speech_reads_and_writes_far_more(monkeypatch):
    monkeypatch.setattr(UNet, "forward", lambda *given: None)
    monkeypatch.setattr(VAE, "decode", lambda *given: None)
    monkeypatch.setattr(HiFiGAN, "forward", lambda *given: None)
    speech, full = (
        costs.operations(shallow(preset), 10.24) for preset in ("speech", "full")
    )
    assert speech["loa"] > 10 * full["loa"]
    text, clap = (shallow("speech")[name] for name in ("text", "clap"))
    ids = lambda n: torch.zeros(1, n, dtype=torch.long, device="meta")
    read = costs.count(lambda: (text(ids(310)), clap.embed_text(ids(costs.WORDS))))
    assert speech["encode"] == 2 * read  # 310 phonemes


def test_the_report_has_a_row_for_each_part_and_each_stage():
    rows = [
        PartCost("a", "A", 1_234, 5_000_000, 2_500_000),
        PartCost("b", "B", 6, 0, 0),
    ]
    flops = {"encode": 2_000_000_000, "sample": 500_000_000}
    with_disk = costs.report(rows, flops, 2.5, Sampling(steps=3)).splitlines()
    assert with_disk == [
        f"{'part':18}{'class':22}{'parameters':>14}{'in memory':>12}{'on disk':>12}",
        f"{'a':18}{'A':22}{'1,234':>14}{'5.0 MB':>12}{'2.5 MB':>12}",
        f"{'b':18}{'B':22}{'6':>14}{'0.0 MB':>12}{'0.0 MB':>12}",
        f"{'total':40}{'1,240':>14}{'5.0 MB':>12}{'2.5 MB':>12}",
        "",
        f"{'2.5 s of sound, 3 steps, guided':40}{'GFLOP':>14}",
        f"{'encode':40}{'2.0':>14}",
        f"{'sample':40}{'0.5':>14}",
        f"{'total':40}{'2.5':>14}",
    ]
    preset = [replace(row, disk=None) for row in rows]
    without = costs.report(preset, flops, 2.5, Sampling(steps=3)).splitlines()
    assert without == [line[:66] for line in with_disk]


def test_info_prints_parts_stages_and_totals(tiny_pipe_folder, tmp_path, capsys):
    folder = shutil.copytree(tiny_pipe_folder, tmp_path / "pipe")
    shutil.move(folder / "vae", tmp_path / "other")
    path = folder / "pipeline.json"
    own = {"vae": "../other", "guidance_interval": [300, 1000]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    output = tmp_path / "info.json"
    line = ["info", str(folder), "--steps", "4", "--json", str(output)]
    assert cli.main(line) == 0
    printed, numbers = capsys.readouterr().out, json.loads(output.read_text())
    assert [row["name"] for row in numbers["parts"]] == [
        *("text", "clap", "gpt.projection", "gpt.gpt2", "unet", "vae", "vocoder"),
        "audiomae",
    ]
    on_disk = {row["name"]: row["disk"] for row in numbers["parts"]}
    size = lambda place: sum(file.stat().st_size for file in place.iterdir())
    assert on_disk["vae"] == size(tmp_path / "other")
    assert on_disk["gpt.gpt2"] == size(folder / "gpt")
    assert on_disk["gpt.projection"] is None  # both are in one file
    for row in numbers["parts"]:
        assert f"{row['parameters']:,}" in printed
    total = sum(numbers["flops"].values())
    assert f"{total / 1e9:,.1f}" in printed
    assert "0.64 s of sound, 4 steps, 2 of them guided" in printed
    assert (numbers["seconds"], numbers["steps"]) == (0.64, 4)
    assert set(numbers["flops"]) == {"encode", "loa", "sample", "decode"}


def test_info_takes_the_steps_that_the_weights_want(
    tiny_pipe_folder, tmp_path, capsys, monkeypatch, uncounted, small
):
    folder = shutil.copytree(tiny_pipe_folder, tmp_path / "pipe")
    path = folder / "pipeline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 4}))
    assert cli.main(["info", str(folder), "--seconds", "1.5"]) == 0
    assert "1.5 s of sound, 4 steps, guided" in capsys.readouterr().out
    monkeypatch.setattr(costs, "preset_parts", lambda name: small)
    assert cli.main(["info", "tiny"]) == 0
    assert "2.56 s of sound, 25 steps, guided" in capsys.readouterr().out


def test_released_parts_lie_in_several_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(costs.released, "is_released", lambda folder: True)
    for name, n in ("projection_model", 3), ("language_model", 5), ("unet", 7):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"x" * n)
    assert costs.bytes_on_disk("gpt", tmp_path) == 8
    assert costs.bytes_on_disk("unet", tmp_path) == 7
    assert costs.bytes_on_disk("audiomae", tmp_path) == 0


def test_counting_leaves_the_pipeline_as_it_was(tiny_pipe, uncounted):
    before = tiny_pipe("a dog barks", steps=1, seed=0, progress=False)
    costs.operations(tiny_pipe.models, 0.64)
    after = tiny_pipe("a dog barks", steps=1, seed=0, progress=False)
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nowhere", "weights folder nowhere does not exist"),
        ("full --steps 0", "steps must be a whole number from 1 to 1000"),
        ("full --seconds 0", "seconds must be a finite number and lie between 0.1 and"),
        ("full --json numbers.txt", "--json must end in .json"),
    ],
)
def test_bad_input_of_info_is_named(line, said, capsys, monkeypatch):
    monkeypatch.setattr(costs, "preset_parts", lambda name: pytest.fail("was made"))
    assert cli.main(["info", *line.split()]) == 2
    assert said in capsys.readouterr().err


def test_the_cost_of_many_vectors_follows_from_that_of_three(small):
    given = {"clap": Context(empty(1, 1, 16)), "text": Context(empty(1, 9, 16))}
    upto = lambda n: costs.count(lambda: small["gpt"].generate(given, n))
    assert costs.in_all(9, upto) == upto(9)
    for n in (1, 2, 3):
        assert costs.in_all(n, lambda n: n**5) == n**5  # nothing to be derived
    assert costs.in_all(50, lambda n: 7 * n**2 - n + 2) == 7 * 2500 - 48


def test_a_copy_without_memory_has_shapes_only():
    model = nn.Linear(3, 2, dtype=torch.float16)
    model.register_buffer("seen", torch.zeros(5, dtype=torch.long))
    model.tied = model.weight
    bare = costs.without_memory(model)
    assert {x.device.type for x in (*bare.parameters(), bare.seen)} == {"meta"}
    assert bare.weight.dtype == torch.float32 and bare.seen.dtype == torch.long
    assert bare.weight.shape == (2, 3) and bare.tied is bare.weight
    assert not bare.weight.requires_grad and model.weight.device.type == "cpu"
