"""Two processes train as one, whether each holds the whole model or they share it: same
weights, same files, and an end together when one fails or is killed.

The file is also the script that a launcher starts twice: `python
tests/test_two_processes.py LAUNCH FOLDER`. Both processes meet on the CPU (gloo), or on
two GPUs if accelerate finds as many. Equality is that of float64: in float32 Adam turns
gradients that are zero but for rounding (biases before a norm) into whole steps, so
that one process in float32 is no nearer to itself in float64.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import small_world
import torch
from safetensors.torch import load_file
from small_world import weights

from minilib import cli, training
from minilib.training import (
    STAGES,
    Loop,
    TrainingData,
    fit,
    processes,
    sharding,
    shards,
    stages,
    train,
)

ROOT = Path(__file__).parents[1]
# The stages that a whole run in float32 compares. Adversarial is compared in float64
# alone: discriminators that begin anew have gradients near zero, and Adam makes steps
# of their rounding.
ROUNDED = [name for name in STAGES if name != "adversarial"]
# in float64, but for the float32 in Vocos: the weights move by more than 1e-3
EXACT = 1e-6
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": str(ROOT),
}
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
    "2",
]  # fmt: skip
CONFIGS = ROOT / "data" / "accelerate"
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0",
    "--num_processes", "2", "--config_file",
]  # fmt: skip
if torch.cuda.device_count() == 1:  # not enough for two
    ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""


class Launch(NamedTuple):
    """How two processes are started, and what they do."""

    line: list[str]
    how: str  # they are to fail when all else is done
    exact: list[str]  # stages in float64
    bf16: list[str]
    whole: list[str]  # stages of a run by the command line


EVERY = list(small_world.KINDS), ["clap", "ldm"], ROUNDED
SOME = ["sharp", "adversarial", "audiomae", "clap", "text", "gpt", "ldm"]
LAUNCHES = {
    "torchrun": Launch(TORCHRUN, "one", *EVERY),
    "ddp": Launch([*ACCELERATE, str(CONFIGS / "ddp.yaml")], "all", *EVERY),
    "fsdp": Launch(
        [*ACCELERATE, str(CONFIGS / "fsdp.yaml")], "killed", SOME, ["ldm"], ["audiomae"]
    ),
}


Make = Callable[..., training.Stage]


def maker(data: TrainingData) -> Make:
    """Stages of the small preset by name, in float64 if not told otherwise."""
    parts = small_world.made_parts(data)

    def make(name: str, double: bool = True, **changes) -> training.Stage:
        return small_world.make(name, data, parts, double, **changes)

    return make


def fitted(stage: training.Stage) -> torch.Tensor:
    """The weights that a stage ends with."""
    fit(stage.model, stage.batch, stage.recipe, stage.seed, stage.name, progress=False)
    return weights(stage.model)


def resumed(stage: training.Stage, out: Path) -> torch.Tensor:
    """The same, where it goes on from a checkpoint."""
    assert (out / "checkpoints" / f"{stage.name}.pt").is_file()
    return weights(train(stage, out, resume=True, progress=False))


def interrupt(stage: training.Stage, step: int) -> None:
    """Let a stage stop where the batch of `step`, counted from 0, would be drawn."""
    draw, drawn = stage.batch, []

    def batch(generator: torch.Generator) -> dict[str, torch.Tensor]:
        drawn.append(generator)
        if len(drawn) > step:
            raise KeyboardInterrupt
        return draw(generator)

    stage.batch = batch


def break_off(stage: training.Stage, out: Path) -> None:
    """Train two of three steps, and leave the checkpoint."""
    interrupt(stage, 2)
    with pytest.raises(KeyboardInterrupt):
        train(stage, out, progress=False)


def share(stage: training.Stage) -> float:
    """The share of weights, optimizer's state and average that this process keeps."""
    loop = Loop(stage.model, stage.batch, stage.recipe, stage.seed, stage.name)
    loop.step()
    states = [x for state in loop.optimizer.state.values() for x in state.values()]
    held = [*loop.trained.parameters(), *loop.average.values(), *states]
    held = [x for x in held if x.dim() > 0]  # AdamW's counts are everywhere
    own = sum(getattr(x, "to_local", lambda x=x: x)().numel() for x in held)
    return own / sum(x.numel() for x in held)


def command(out: Path, *names: str) -> int:
    """The exit status of a run by the command line."""
    return cli.main(["train", *names, "--preset", "small", "--out", str(out)])


# --------------------------------------------------------------------------------------
# What each of two processes does


def train_everything(folder: Path, make: Make, launch: Launch) -> None:
    """Stages in float64, some in bfloat16, broken runs, and a whole run by the command
    line.
    """
    ends = {name: fitted(make(name)) for name in launch.exact}
    ends["accumulated"] = fitted(make("text", accumulate=2))
    for name in launch.bf16:
        ends[f"{name} bf16"] = fitted(make(name, double=False, precision="bf16"))
    ends["resumed"] = resumed(make("gpt"), folder / "one")
    break_off(make("gpt"), folder / "two")
    (folder / f"share{os.environ['RANK']}").write_text(str(share(make("gpt"))))
    assert command(folder / "run", *launch.whole) == 0
    if launch == LAUNCHES["torchrun"]:
        train_on_shards(folder)
    torch.save(ends, folder / f"{os.environ['RANK']}.pt")


def train_on_shards(folder: Path) -> None:
    """Some stages again, with features in shards of eight clips; each process notes
    which shards it writes.
    """
    if processes.is_main():
        shutil.copytree(folder / "run", folder / "kept")
    processes.meet().wait_for_everyone()
    shards.SHARD, write, wrote = 8, shards.Shards.write, []
    noted = lambda self, k: (wrote.append((self.folder.name, k)), write(self, k))
    shards.Shards.write = noted
    again = "gpt", "ldm", "joint", "--features", "shards"
    with redirect_stdout(None):  # a test reads what the other run says
        assert command(folder / "kept", *again) == 0
    (folder / f"wrote-{os.environ['RANK']}.json").write_text(json.dumps(wrote))


def fail_in_one(folder: Path) -> int:
    """A run in which one process fails while the other waits for its gradient."""
    draw = stages.AudioMAEStage.batch

    def batch(
        self: training.Stage, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        if os.environ["RANK"] == "1":
            raise ValueError("the second process is out of luck")
        return draw(self, generator)

    stages.AudioMAEStage.batch = batch
    return command(folder / "failed", "audiomae")


def kill_one(folder: Path) -> int:
    """A run in which one process is killed at its last step."""
    draw, drawn = stages.AudioMAEStage.batch, []

    def batch(
        self: training.Stage, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        drawn.append(generator)
        if os.environ["RANK"] == "1" and len(drawn) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, generator)

    stages.AudioMAEStage.batch = batch
    return command(folder / "killed", "audiomae")


def fail_in_all(folder: Path) -> int:
    """A run that no process can begin."""
    return command(folder / "failed", "vaee")


def main(name: str, folder: str) -> None:
    with small_world.small_world() as data:
        train_everything(Path(folder), maker(data), LAUNCHES[name])
        processes.meet().wait_for_everyone()  # the first has drawn the curves
        ends = {"one": fail_in_one, "all": fail_in_all, "killed": kill_one}
        sys.exit(ends[LAUNCHES[name].how](Path(folder)))


# --------------------------------------------------------------------------------------
# What must hold


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    with small_world.small_world() as data:
        yield maker(data)


@pytest.fixture(scope="module")
def alone(make) -> Callable[[str], torch.Tensor]:
    """The weights that one process ends with, by stage."""
    return cache(lambda name: fitted(make(name)))


@pytest.fixture(scope="module", params=LAUNCHES)
def folder(request, make, tmp_path_factory) -> Path:
    """What two processes have left, and have told before they failed."""
    folder = tmp_path_factory.mktemp(request.param)
    break_off(make("gpt"), folder / "one")
    line = [*LAUNCHES[request.param].line, __file__, request.param, str(folder)]
    told = {"capture_output": True, "text": True, "timeout": 300}
    ran = subprocess.run(line, env=ENVIRONMENT, **told)
    assert (folder / "0.pt").is_file() and (folder / "1.pt").is_file(), ran.stderr
    assert ran.returncode != 0
    (folder / "stdout").write_text(ran.stdout)
    (folder / "stderr").write_text(ran.stderr)
    return folder


def launch(folder: Path) -> Launch:
    """How what lies in a folder was made."""
    return LAUNCHES[folder.name.rstrip("0123456789")]


@pytest.fixture(scope="module")
def ends(folder) -> list[dict[str, torch.Tensor]]:
    """Final weights by what was trained, of each process."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_end_with_the_weights_of_one(folder, make, alone, ends):
    for name in launch(folder).exact:
        before, one = weights(make(name).model), alone(name)
        assert (one - before).abs().max() > 1e-3, name
        assert (ends[0][name] - one).abs().max() < EXACT, name


def test_both_processes_end_with_the_same_weights(ends):
    first, second = ends
    assert len(first) > len(SOME)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_micro_batches_of_two_processes_weigh_every_hidden_token_alike(ends):
    assert (ends[0]["accumulated"] - ends[0]["text"]).abs().max() < EXACT


def test_bfloat16_comes_near_to_exact_weights(folder, make, ends):
    for name in launch(folder).bf16:
        before, exact = weights(make(name).model), ends[0][name]
        moved, rounded = exact - before, ends[0][f"{name} bf16"] - exact
        assert rounded.norm() < 0.5 * moved.norm(), name


def test_a_run_goes_on_with_another_number_of_processes(make, folder, ends):
    begun_by_two, begun_by_one = (
        resumed(make("gpt"), folder / "two"),
        ends[0]["resumed"],
    )
    for end in (begun_by_two, begun_by_one):
        assert (end - ends[0]["gpt"]).abs().max() < EXACT


def files(folder: Path) -> dict[str, Path]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path for path in paths}


@pytest.fixture(scope="module")
def run_of_one(folder, make, tmp_path_factory) -> Path:
    """What one process has left, by the same command line."""
    out = tmp_path_factory.mktemp("one")
    assert command(out, *launch(folder).whole) == 0
    return out


def test_two_processes_write_the_folder_of_one(folder, run_of_one):
    ones, twos = files(run_of_one), files(folder / "run")
    assert list(ones) == list(twos) and len(ones) > len(launch(folder).whole) + 5
    for name, path in ones.items():
        if path.suffix == ".safetensors":
            one, two = (
                torch.cat([x.float().flatten() for x in load_file(p).values()])
                for p in (path, twos[name])
            )
            assert (one - two).norm() < 0.01 * one.norm(), name
        elif path.parent.name == "finished":
            both = (json.loads(p.read_text()) for p in (path, twos[name]))
            one, two = (told | {"seconds": 0} for told in both)
            assert one == two
        elif path.name != "train.log":
            assert path.read_bytes() == twos[name].read_bytes(), name


@pytest.mark.parametrize("folder", ["torchrun"], indirect=True)
def test_two_processes_share_in_computing_shards(folder):
    for rank in (0, 1):
        wrote = json.loads((folder / f"wrote-{rank}.json").read_text())
        # the captions fill more than a shard, the sixteen clips two
        assert {name for name, _ in wrote} == {"audiomae-2", "vae-0", "clap", "text"}
        assert [k for name, k in wrote if name == "vae-0"] == [rank]
    for part in ("gpt", "unet", "loudness"):
        one, two = (
            torch.cat([x.float().flatten() for x in load_file(path).values()])
            for path in (
                folder / x / part / "model.safetensors" for x in ("run", "kept")
            )
        )
        assert (one - two).norm() < 1e-3 * one.norm(), part


def losses(log: list[str]) -> list[float]:
    """Every loss in the lines of a log, in their order."""
    return [float(number) for line in log for number in re.findall(r"\d+\.\d{4}", line)]


def test_two_processes_write_one_log_with_the_losses_of_the_whole_batch(
    folder, run_of_one
):
    logs = (path / "train.log" for path in (run_of_one, folder / "run"))
    one, two = (log.read_text().splitlines() for log in logs)
    assert "1 threads" in one[0] and "2 processes of 1 threads" in two[0]
    told = [line.split()[0] for line in two[1:]]
    names = launch(folder).whole
    assert told == [name for name in names for _ in range(3)]
    assert len(losses(two)) >= 2 * len(names)
    assert losses(two) == pytest.approx(losses(one), abs=2e-3)


def test_only_one_of_two_processes_says_that_there_are_no_recordings(folder):
    said = (folder / "stdout").read_text()
    run, failed = said.split("trained: ")
    assert run.count("MINILIB_REALAUDIO is not set") == 1
    assert failed.count("MINILIB_REALAUDIO is not set") <= 1


@pytest.mark.parametrize("folder", ["torchrun"], indirect=True)
def test_when_one_process_fails_both_end_and_only_its_sentence_is_told(folder):
    said = (folder / "stderr").read_text()
    told = "minilib: the second process is out of luck"
    assert re.findall(r"minilib: .*", said) == [told]
    assert "gloo" not in said.lower()
    assert not (folder / "failed" / "finished").exists()


@pytest.mark.parametrize("folder", ["ddp"], indirect=True)
def test_when_all_processes_fail_alike_the_sentence_is_told_once(folder):
    assert not (folder / "failed").exists()
    (told,) = re.findall(r"minilib: .*", (folder / "stderr").read_text())
    assert told.startswith("minilib: stage must be all or one of vae")


@pytest.mark.parametrize("folder", ["fsdp"], indirect=True)
def test_when_one_process_is_killed_the_other_says_so_and_nothing_is_lost(make, folder):
    (told,) = re.findall(r"minilib: .*", (folder / "stderr").read_text())
    assert told == f"minilib: {processes.LOST}"
    out = folder / "killed"
    kept = torch.load(out / "checkpoints" / "audiomae.pt", weights_only=True)
    assert kept["step"] == 2
    assert command(out, "audiomae", "--resume") == 0
    unbroken = load_file(folder / "run" / "audiomae" / "model.safetensors")
    again = load_file(out / "audiomae" / "model.safetensors")
    for name, x in unbroken.items():
        assert (again[name] - x).abs().max() < 1e-3, name


def test_weights_are_sharded_only_where_several_processes_ask_for_it(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not sharding.asks_for_shards()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharding.asks_for_shards()
    with pytest.raises(ValueError, match="sound_every must be None: no process holds"):
        training.watching.check_watched("tensorboard", 1, ["ldm"])
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ValueError, match="fsdp_offload_params must be false"):
        sharding.asks_for_shards()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert not sharding.asks_for_shards()


def test_of_two_processes_that_share_each_keeps_half_of_what_is_trained(folder):
    kept = [float((folder / f"share{rank}").read_text()) for rank in range(2)]
    if folder.name.startswith("fsdp"):
        assert max(kept) < 0.6 and sum(kept) == pytest.approx(1.0)
    else:
        assert kept == [1.0, 1.0]


def test_a_batch_that_processes_cannot_share_equally_is_refused_before_all_else(
    make, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = r"batch_size of stage vae must be a multiple of .*\(3 x 1\), not 8"
    with pytest.raises(ValueError, match=shares):
        training.train_stages("vae", "small", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_micro_batches_must_be_equal_in_one_process_too(make, tmp_path):
    shares = r"batch_size of stage vae must be a multiple of .*\(1 x 3\), not 8"
    with pytest.raises(ValueError, match=shares):
        train(make("vae", accumulate=3), tmp_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
