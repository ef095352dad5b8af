"""The costs that `minilib info` prints: the released sizes to a parameter, and
operations as counted elsewhere.
"""

import json
import shutil

import pytest
import torch

from minilib import cli, costs
from minilib.audioldm2 import AudioLDM2

RELEASED = {  # parameters, as the released modules hold them
    "full": {
        "unet": 346_943_496, "vae": 55_376_873, "vocoder": 55_264_897, "gpt.projection": 1_184_256,
        "gpt.gpt2": 124_439_808, "text": 341_231_104,
    },
    "large": {"unet": 718_012_296},
    "speech": {"unet": 261_926_536, "gpt.projection": 604_800, "text": 6_327_744},
}  # fmt: skip


@pytest.mark.parametrize("preset", RELEASED)
def test_released_sizes_hold_the_released_numbers_of_parameters(preset):
    rows = {row.name: row for row in costs.sizes(costs.preset_parts(preset))}
    assert {name: rows[name].parameters for name in RELEASED[preset]} == RELEASED[
        preset
    ]
    assert all(row.disk is None for row in rows.values())
    assert (
        4 * rows["unet"].parameters
        <= rows["unet"].memory
        < 4.01 * rows["unet"].parameters
    )


def test_operations_are_those_that_others_counted():
    flops = costs.operations(costs.preset_parts("full"), seconds=10.24, steps=1)
    # one pass of the U-Net, of two with guidance
    assert flops["sample"] / 2e9 == pytest.approx(170.5, rel=0.02)
    assert flops["decode"] / 1e9 == pytest.approx(670 + 1027, rel=0.02)
    twice = costs.operations(costs.preset_parts("full"), seconds=10.24, steps=2)
    assert twice == {**flops, "sample": 2 * flops["sample"]}
    alone = costs.operations(
        costs.preset_parts("full"), seconds=10.24, steps=1, guided=False
    )
    assert 2 * alone["sample"] == flops["sample"] and alone["decode"] == flops["decode"]


def test_large_and_long_cost_more():
    cases = ("full", 10.24), ("full", 20.48), ("large", 10.24), ("speech", 10.24)
    flops = {
        case: costs.operations(costs.preset_parts(case[0]), case[1], 1)
        for case in cases
    }
    assert flops["large", 10.24]["sample"] / 2e9 == pytest.approx(352, rel=0.02)
    # attention grows with its square
    assert flops["full", 20.48]["sample"] > 2.2 * flops["full", 10.24]["sample"]
    assert flops["speech", 10.24]["loa"] > 10 * flops["full", 10.24]["loa"]


def test_info_prints_parts_stages_and_totals(tiny_pipe_folder, tmp_path, capsys):
    assert (
        cli.main(
            [
                "info",
                str(tiny_pipe_folder),
                "--steps",
                "3",
                "--json",
                str(tmp_path / "info.json"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "info.json").read_text())
    assert [row["name"] for row in numbers["parts"]] == [
        "text", "clap", "gpt.projection", "gpt.gpt2", "unet", "vae", "vocoder", "audiomae",
    ]  # fmt: skip
    files = [file for file in (tiny_pipe_folder / "vae").iterdir()]
    vae = next(row for row in numbers["parts"] if row["name"] == "vae")
    assert vae["disk"] == sum(file.stat().st_size for file in files)
    for row in numbers["parts"]:
        assert f"{row['parameters']:,}" in printed
    assert (
        f"{sum(numbers['flops'].values()) / 1e9:,.1f}" in printed
        and "3 steps" in printed
    )
    assert set(numbers["flops"]) == {"encode", "loa", "sample", "decode"}


@pytest.mark.parametrize(
    ("own", "words", "passes"),
    [
        ({"steps": 4}, "4 steps, guided", 8),
        (
            {"steps": 4, "guidance_interval": [300, 1000]},
            "4 steps, 2 of them guided",
            6,
        ),
        ({"steps": 4, "guidance": 1.0}, "4 steps, not guided", 4),
    ],
)
def test_info_counts_the_steps_that_the_weights_want_and_twice_those_guided(
    tiny_pipe_folder, tmp_path, capsys, own, words, passes
):
    folder = shutil.copytree(tiny_pipe_folder, tmp_path / "pipe")
    path = folder / "pipeline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    assert cli.main(["info", str(folder), "--json", str(tmp_path / "info.json")]) == 0
    assert words in capsys.readouterr().out
    numbers = json.loads((tmp_path / "info.json").read_text())
    parts = costs.pipeline_parts(AudioLDM2.from_pretrained(folder, device="cpu"))
    once = costs.operations(parts, numbers["seconds"], 1, guided=False)["sample"]
    assert numbers["steps"] == 4 and numbers["flops"]["sample"] == passes * once


def test_info_leaves_the_pipeline_as_it_was(tiny_pipe):
    before = tiny_pipe("a dog barks", steps=1, seed=0, progress=False)
    costs.operations(
        {name: part for name, part in costs.pipeline_parts(tiny_pipe).items()}, 0.64
    )
    assert torch.equal(
        tiny_pipe("a dog barks", steps=1, seed=0, progress=False), before
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["info", "nowhere"], "weights folder nowhere does not exist"),
        (
            ["info", "full", "--steps", "0"],
            "steps must be a whole number from 1 to 1000",
        ),
        (["info", "full", "--seconds", "0"], "seconds must lie between 0.1 and 60"),
        (["info", "full", "--json", "numbers.txt"], "the output must end in .json"),
    ],
)
def test_bad_input_of_info_is_named(line, said, capsys):
    assert cli.main(line) == 2
    assert said in capsys.readouterr().err


def test_the_cost_of_many_vectors_follows_from_that_of_three():
    gpt = costs.without_memory(costs.preset_parts("tiny")["gpt"])
    empty = lambda *shape: torch.zeros(shape, device="meta")
    given = [(empty(1, 1, 128), None), (empty(1, 9, 128), None)]
    upto = lambda n: costs.count(lambda: gpt.generate(given, n))
    assert costs.in_all(12, upto) == upto(12)
