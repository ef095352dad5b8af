"""What `minilib info full --train` prints: memory, operations and days of training."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from minilib import cli
from minilib.layers import ResBlock
from minilib.training import RUNS, Run, costs
from minilib.training.costs import StageCost

ROW = StageCost(
    name="x", parameters=10, frozen=5, batch_size=8, steps=1000, flops=10**12,
    state=200, clip=50, recomputed=20,
)  # fmt: skip


def test_memory_and_days_are_sums_and_quotients():
    assert ROW.memory(0) == 200 + 4 * 5
    assert ROW.memory(3) == 220 + 150 and ROW.memory(3, recompute=True) == 220 + 60
    assert ROW.days(1e12) == pytest.approx(1000 / 86_400)
    assert costs.most_clips(ROW, 220 + 125) == "x 2 (+ 6)"
    assert costs.most_clips(ROW, 10_000) == "x 8" and costs.most_clips(ROW, 3) == "x 0"


class Blocks(nn.Module):
    """Two blocks and a layer beside them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (ResBlock(4, 4, 2) for _ in range(2))
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.last(self.second(self.first(x)).sigmoid())

    def loss(self, batch):
        return self(batch["x"]).square().mean()


@pytest.fixture()
def counted(monkeypatch) -> StageCost:
    """The cost of one step of `Blocks` on four clips of 4 x 8 x 8 numbers."""
    example = lambda run, sizes: (Blocks(), {"x": torch.randn(1, 4, 8, 8)}, 7)
    monkeypatch.setitem(costs.EXAMPLES, "x", example)
    recipe = replace(RUNS["full"].recipes["ldm"], batch_size=4, steps=9, ema=0.0)
    run = Run(0, 1.0, {"x": recipe})
    return costs.cost("x", run, "full")


def test_a_step_of_known_layers_is_counted_exactly(counted):
    conv = 2 * 64 * 4 * 4 * 9  # one 3x3 convolution
    forward = 4 * conv + 2 * 64 * 4
    assert counted.flops == 4 * 3 * forward
    parameters = 4 * (4 * 4 * 9 + 4) + 4 * (4 + 4) + 5
    assert counted.parameters == parameters and counted.frozen == 7
    assert counted.state == 4 * 4 * parameters  # without an average


def test_activations_are_the_tensors_that_the_backward_pass_needs(counted):
    model, x = Blocks(), torch.randn(1, 4, 8, 8)
    seen = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: alive.append(x) or keep(x), lambda x: x
    ):
        model.loss({"x": x})
    assert counted.clip == sum(seen.values())
    assert counted.recomputed < 0.75 * counted.clip


@pytest.fixture(scope="module")
def full() -> dict[str, StageCost]:
    """The costs of the preset full."""
    return {row.name: row for row in costs.training("full")}


def test_the_released_sizes_take_what_others_counted(full):
    assert list(full) == list(RUNS["full"].stages)
    assert full["ldm"].parameters == 346_943_496
    vocabulary = 50257 * 768  # of GPT-2, which writes no words
    gpt = 1_184_256 + 124_439_808 - vocabulary
    assert full["gpt"].parameters == gpt
    assert full["joint"].parameters == 346_943_496 + gpt
    # a forward pass is 170.5 GFLOP with 8 vectors of LOA; here there are 512
    forward = full["ldm"].flops / 3 / full["ldm"].batch_size / 1e9
    assert 170.5 < forward < 1.1 * 170.5
    assert full["ldm"].state == 5 * 4 * 346_943_496
    t5, clap, audiomae, vae = 341_231_104, 193_913_882, 110_999_808, 55_376_873
    assert full["joint"].frozen == t5 + clap + audiomae + vae + vocabulary
    for row in full.values():
        assert row.recomputed <= row.clip
    assert full["ldm"].recomputed < 0.3 * full["ldm"].clip


def test_the_report_has_a_row_for_each_stage_and_the_days_of_every_chip(full):
    text = costs.report(list(full.values())).splitlines()
    assert [line.split()[0] for line in text[1:8]] == list(full)
    days = [row.days(costs.SHARE * costs.CHIPS["A100"][1]) for row in full.values()]
    assert f"{sum(days):,.1f}" in text[8] and text[8].startswith("total")
    assert all(len(line) <= 130 for line in text)
    assert any("T4 65, A100 312, H100 989" in line for line in text)


def test_info_prints_and_writes_what_training_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(costs, "training", lambda preset: [ROW])
    output = tmp_path / "costs.json"
    line = ["info", "full", "--train", "--json", str(output)]
    assert cli.main(line) == 0
    assert "\nx       " in capsys.readouterr().out
    assert json.loads(output.read_text())["stages"][0]["flops"] == 10**12


@pytest.mark.parametrize("given", ["tiny", "somewhere"])
def test_other_presets_are_refused_in_a_sentence(given, capsys):
    assert cli.main(["info", given, "--train"]) == 2
    said = f"preset must be one of full, large for --train, not '{given}'"
    assert said in capsys.readouterr().err
