"""Two processes train as one: same weights, same files, and an end together when one
fails.

The file is also the script that a launcher starts twice: `python
tests/test_two_processes.py WHAT FOLDER`. Both processes meet on the CPU (gloo), or on
two GPUs if accelerate finds as many. Equality is that of float64: in float32 Adam turns
gradients that are zero but for rounding (biases before a norm) into whole steps, so
that one process in float32 is no nearer to itself in float64.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SECONDS, small_parts
from safetensors.torch import load_file

from minilib import audioldm2, cli, training
from minilib.classifier import ClassifierConfig
from minilib.data import Corpus
from minilib.discriminators import Discriminators, DiscriminatorsConfig
from minilib.soundworld import CLASSES, INSTRUMENTS, SoundWorld
from minilib.text import T5
from minilib.tokenizer import Tokenizer
from minilib.training import RUNS, STAGES, Recipe, TrainingData, stages, train
from minilib.vocoder import Vocos

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
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
]
# without a GPU, accelerate starts several processes on the CPU if they are asked for by
# --multi_gpu alone
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
if torch.cuda.device_count() == 1:  # not enough for two
    ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""


def small_world(patch: pytest.MonkeyPatch) -> None:
    """Add the preset "small": a few thousand parameters a model, clips of 0.64 s."""
    models = {**small_parts(), "judge": stages.seeded(stages.Classifier, "tiny", 0)}
    configs = {name: model.config for name, model in models.items()}
    configs["judge"] = ClassifierConfig(
        classes=(*CLASSES, *INSTRUMENTS), channels=(4, 8)
    )
    for name in ("text", "clap"):
        configs[name] = replace(configs[name], vocab_size=1000)
    for name, model in models.items():
        patch.setitem(type(model).presets, "small", configs[name])
    patch.setitem(audioldm2.VOCODERS, "small", Vocos)
    small = DiscriminatorsConfig(
        (2, 3), (2, 2, 4, 4, 4), 1, (4, 4, 4, 8, 8, 8, 8), (1, 2, 2, 2, 2, 2, 1)
    )
    patch.setitem(Discriminators.presets, "small", small)
    recipe = Recipe(
        steps=3,
        batch_size=8,
        lr=3e-3,
        warmup=1,
        crop=48,
        ema=0.9,
        levels=2,
        checkpoint_every=2,
    )
    recipes = {
        name: replace(recipe, muon=RUNS["tiny"].recipes[name].muon) for name in STAGES
    }
    patch.setitem(RUNS, "small", training.Run(16, SECONDS, recipes))
    patch.setattr(os, "cpu_count", lambda: 1)
    patch.delenv("MINILIB_REALAUDIO", raising=False)


def small_data() -> TrainingData:
    corpus = Corpus.from_soundworld(
        SoundWorld("train", seed=5, seconds=SECONDS), 16, progress=False
    )
    return TrainingData(corpus, Tokenizer.train(corpus.captions))


def make(
    name: str, data: TrainingData, double: bool = True, **changes
) -> training.Stage:
    """A stage of the small preset, in float64 if `double`."""
    classes = {
        "vae": stages.VAE, "vocoder": Vocos, "audiomae": stages.AudioMAE, "clap": stages.CLAP,
        "gpt": stages.LOARegressor, "unet": stages.UNet, "text": T5,
    }  # fmt: skip
    parts = {
        part: stages.seeded(classes[part], "small", 1).eval()
        for part in STAGES[name].needs
    }
    if "text" in parts:
        parts["text"] = parts["text"].text_encoder()
    stage = STAGES[name](
        "small", replace(RUNS["small"].recipes[name], **changes), data, parts
    )
    if double:
        stage.model.double()
        draw = stage.batch
        stage.batch = lambda generator: {
            key: x.double() if x.is_floating_point() else x
            for key, x in draw(generator).items()
        }
    return stage


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [x.detach().double().flatten().cpu() for x in model.state_dict().values()]
    )


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


# --------------------------------------------------------------------------------------
# What each of two processes does


def train_everything(folder: Path) -> None:
    """Every stage in float64, some in bfloat16, broken runs, and a whole run by the
    command line.
    """
    data, ends = small_data(), {}
    for name in STAGES:
        ends[name] = weights(train(make(name, data), folder / "exact", progress=False))
    ends["accumulated"] = weights(
        train(make("text", data, accumulate=2), folder / "accumulated", progress=False)
    )
    for name in ("clap", "ldm"):
        stage = make(name, data, double=False, precision="bf16")
        ends[f"{name} bf16"] = weights(train(stage, folder / "bf16", progress=False))
    ends["resumed"] = weights(
        train(make("clap", data), folder / "one", resume=True, progress=False)
    )
    break_off(make("clap", data), folder / "two")
    torch.save(ends, folder / f"{os.environ['RANK']}.pt")
    assert (
        cli.main(["train", *ROUNDED, "--preset", "small", "--out", str(folder / "run")])
        == 0
    )


def fail_in_one(folder: Path) -> None:
    """A whole run in which one process fails while the other waits for its gradient."""
    draw = stages.AudioMAEStage.batch

    def batch(
        self: training.Stage, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        if os.environ["RANK"] == "1":
            raise ValueError("the second process is out of luck")
        return draw(self, generator)

    stages.AudioMAEStage.batch = batch
    sys.exit(
        cli.main(
            ["train", "audiomae", "--preset", "small", "--out", str(folder / "run")]
        )
    )


def main(what: str, folder: str) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        small_world(patch)
        {"everything": train_everything, "failing": fail_in_one}[what](Path(folder))


# --------------------------------------------------------------------------------------
# What must hold


def launch(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def small() -> Iterator[TrainingData]:
    n_threads = torch.get_num_threads()
    # as in each of the two; and with more, a run would train the VAE beside the rest
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        small_world(patch)
        yield small_data()
    torch.set_num_threads(n_threads)


@pytest.fixture(
    scope="module", params=[TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"]
)
def folder(request, small, tmp_path_factory) -> Path:
    """What two processes have left."""
    folder = tmp_path_factory.mktemp("two")
    break_off(make("clap", small), folder / "one")
    ran = launch(*request.param, Path(__file__), "everything", folder)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (folder / "stdout").write_text(ran.stdout)
    return folder


@pytest.fixture(scope="module")
def ends(folder) -> list[dict[str, torch.Tensor]]:
    """Final weights by what was trained, of each process."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_end_with_the_weights_of_one(name, small, ends, tmp_path):
    stage = make(name, small)
    before = weights(stage.model)
    one = weights(train(stage, tmp_path, progress=False))
    assert (one - before).abs().max() > 1e-3
    assert (ends[0][name] - one).abs().max() < EXACT


def test_both_processes_end_with_the_same_weights(ends):
    first, second = ends
    assert len(first) > len(STAGES) and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_micro_batches_of_two_processes_weigh_every_hidden_token_alike(ends):
    assert (ends[0]["accumulated"] - ends[0]["text"]).abs().max() < EXACT


@pytest.mark.parametrize("name", ["clap", "ldm"])
def test_bfloat16_comes_near_to_exact_weights(name, small, ends):
    before = weights(make(name, small).model)
    moved, rounded = ends[0][name] - before, ends[0][f"{name} bf16"] - ends[0][name]
    assert rounded.norm() < 0.5 * moved.norm()


def test_a_run_goes_on_with_another_number_of_processes(small, folder, ends):
    resumed = weights(
        train(make("clap", small), folder / "two", resume=True, progress=False)
    )
    assert (resumed - ends[0]["clap"]).abs().max() < EXACT  # begun by two, ended by one
    # begun by one, ended by two
    assert (ends[0]["resumed"] - ends[0]["clap"]).abs().max() < EXACT


def files(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run_of_one(small, tmp_path_factory) -> Path:
    """What one process has left, by the same command line."""
    out = tmp_path_factory.mktemp("one")
    assert cli.main(["train", *ROUNDED, "--preset", "small", "--out", str(out)]) == 0
    return out


def test_two_processes_write_the_folder_of_one(folder, run_of_one):
    ones, twos = files(run_of_one), files(folder / "run")
    assert list(ones) == list(twos) and len(ones) > 20
    for name, path in ones.items():
        if path.suffix == ".safetensors":
            one, two = (
                torch.cat([x.float().flatten() for x in load_file(p).values()])
                for p in (path, twos[name])
            )
            assert (one - two).norm() < 0.01 * one.norm(), name
        elif path.parent.name == "finished":
            one, two = (
                json.loads(p.read_text()) | {"seconds": 0} for p in (path, twos[name])
            )
            assert one == two
        elif path.name != "train.log":
            assert path.read_bytes() == twos[name].read_bytes(), name


def losses(log: list[str]) -> list[float]:
    """Every loss in the lines of a log, in their order."""
    return [float(number) for line in log for number in re.findall(r"\d+\.\d{4}", line)]


def test_two_processes_write_one_log_with_the_losses_of_the_whole_batch(
    folder, run_of_one
):
    one, two = (
        (path / "train.log").read_text().splitlines()
        for path in (run_of_one, folder / "run")
    )
    assert "1 threads" in one[0] and "2 processes of 1 threads" in two[0]
    assert [line.split()[0] for line in two[1:]] == [
        name for name in ROUNDED for _ in range(3)
    ]
    assert len(losses(two)) > 2 * len(ROUNDED)
    assert losses(two) == pytest.approx(losses(one), abs=2e-3)


def test_only_one_of_two_processes_says_that_there_are_no_recordings(folder):
    assert (folder / "stdout").read_text().count("MINILIB_REALAUDIO is not set") == 1


def test_when_one_process_fails_both_end_and_only_its_sentence_is_told(tmp_path):
    ran = launch(*TORCHRUN, Path(__file__), "failing", tmp_path)
    assert ran.returncode != 0
    assert re.findall(r"minilib: .*", ran.stderr) == [
        "minilib: the second process is out of luck"
    ]
    assert "gloo" not in ran.stderr.lower()
    assert not (tmp_path / "run" / "finished").exists()


def test_when_all_processes_fail_alike_the_sentence_is_told_once(tmp_path):
    ran = launch(
        *ACCELERATE, "-m", "minilib", "train", "vaee", "--out", tmp_path / "run"
    )
    assert ran.returncode != 0 and not (tmp_path / "run").exists()
    (told,) = re.findall(r"minilib: .*", ran.stderr)
    assert told.startswith("minilib: stage must be all or one of vae")


def test_a_batch_that_two_processes_cannot_share_equally_is_refused_before_anything_is_written(
    small, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ValueError,
        match="batch_size of stage vae must be a multiple of .*, 3 x 1, not 8",
    ):
        training.train_stages("vae", "small", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_micro_batches_must_be_equal_in_one_process_too(small, tmp_path):
    with pytest.raises(
        ValueError,
        match="batch_size of stage vae must be a multiple of .*, 1 x 3, not 8",
    ):
        train(make("vae", small, accumulate=3), tmp_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
