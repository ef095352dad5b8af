"""Watching a run: its losses, and the sounds of a fixed set of captions, sent to
TensorBoard or to Weights & Biases by accelerate's trackers.

Watching changes nothing: a run that is watched ends with the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from minilib import audio, folders
from minilib.arguments import check_whole, check_word
from minilib.audioldm2 import AudioLDM2
from minilib.training.loop import Loop, learning_rate
from minilib.training.processes import is_main, meet
from minilib.training.sharding import asks_for_shards
from minilib.training.stages import Stage

TRACKERS = ("tensorboard", "wandb")
EVERY = 10  # steps from one point of a curve to the next
N_SOUNDS = 4  # captions that are sounded
# The stages during which captions can sound, and the parts that their model holds.
# Before them there is no pipeline yet; `depict` learns from pictures, not captions.
SOUNDED: dict[str, Callable[[Any], dict[str, nn.Module]]] = {
    "ldm": lambda unet: {"unet": unet},
    "utter": lambda unet: {"unet": unet},
    "joint": lambda both: {"gpt": both.gpt, "unet": both.unet},
    "adversarial": lambda model: {"vocoder": model.vocoder},
}


def check_watched(
    log_with: str | None, sound_every: int | None, names: list[str]
) -> None:
    """Raise a sentence if a run of these stages can't be watched like this.

    Raises:
        ValueError: an argument is not as `train_stages` describes it.
        ModuleNotFoundError: the tracker is not installed.
    """
    if sound_every is not None:
        check_whole("sound_every", sound_every, 1)
        if log_with is None:
            said = "log_with must say where the sounds go"
            raise ValueError(f"{said}, {' or '.join(TRACKERS)}, for sound_every")
        if not set(SOUNDED).intersection(names):
            known = f"captions can sound during {', '.join(SOUNDED)}"
            raise ValueError(f"sound_every must be None: {known}, not {names[0]}")
        if asks_for_shards():
            said = "no process holds the whole model while weights are sharded"
            raise ValueError(f"sound_every must be None: {said}")
    if log_with is None:
        return
    check_word("log_with", log_with, TRACKERS)
    found = find_spec(log_with)
    if found is None or found.origin is None:  # at most a folder of that name
        how = f"pip install {log_with}"
        raise ModuleNotFoundError(f"{log_with} is not installed: {how}")


class Watch:
    """What a run tells a tracker; nothing without one, and only the main process.

    Args:
        out: folder of the run; TensorBoard's files go to `out`/tensorboard.
        log_with: "tensorboard", "wandb", or None.
        sound_every: steps between sounds; None for silence.
        settings: of the run, by name, for the tracker to show.
    """

    def __init__(
        self,
        out: Path,
        log_with: str | None = None,
        sound_every: int | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self.out, self.log_with, self.sound_every = out, log_with, sound_every
        self.accelerator: Any = None
        self.settings = settings or {}
        # the parts of the pipeline that the present stage doesn't train
        self.frozen: dict[str, nn.Module] = {}

    def open(self, stage: Stage) -> None:
        """Get ready for a stage.

        Raises:
            FileNotFoundError: captions shall sound, but a part of the pipeline is
                missing.
        """
        self.frozen = {}
        if self.log_with is None or not is_main():
            return
        # stages may draw from the global random state, in dropout
        with torch.random.fork_rng():
            if self.accelerator is None:
                self.start()
            if self.sound_every and stage.name in SOUNDED:
                self.load(set(folders.CLASSES) - set(SOUNDED[stage.name](stage.model)))

    def load(self, names: set[str]) -> None:
        """Load these parts of the pipeline; of the optional ones, those that exist."""
        for name in sorted(names):
            path = folders.part_folder(self.out, name)
            if name not in folders.OPTIONAL or (path / "config.json").is_file():
                self.frozen[name] = folders.load_part(self.out, name, torch.float32)

    def start(self) -> None:
        """Begin to write.

        Raises:
            OSError: the tracker refuses, as wandb does where nobody is logged in.
        """
        from accelerate import Accelerator

        cpu = meet().device.type == "cpu"
        given = {"log_with": self.log_with, "project_dir": self.out}
        self.accelerator = Accelerator(cpu=cpu, **given)
        kind = self.log_with
        project = {"tensorboard": "tensorboard", "wandb": "minilib"}[kind]
        own = {"wandb": {"dir": str(self.out), "config": self.settings}}
        try:
            self.accelerator.init_trackers(project, init_kwargs=own)
        # trackers raise many kinds of error
        except Exception as error:
            raise OSError(f"{kind} could not begin: {error}") from error
        if not self.accelerator.trackers:
            raise ValueError(f"log_with {kind!r} is not known to this accelerate")
        if kind == "tensorboard":
            told = ", ".join(f"{key} {value}" for key, value in self.settings.items())
            self.accelerator.log({"settings": told}, step=0)

    def step(self, stage: Stage, loop: Loop) -> None:
        """Tell the tracker of a step that was taken, if it is time to."""
        if self.accelerator is None:
            return
        done, last = loop.done, loop.done == loop.recipe.steps
        if done % EVERY == 0 or last:
            rate = learning_rate(loop.recipe, done - 1)
            self.tell(stage.name, {**loop.losses, "learning rate": rate}, done)
        if self.frozen and (done % self.sound_every == 0 or last):
            self.sound(stage, loop)

    def tell(self, name: str, values: dict[str, Any], step: int) -> None:
        """Send numbers of a stage."""
        values = {f"{name}/{key}": value for key, value in values.items()}
        if self.log_with == "wandb":
            # its own steps may never go back, and every stage begins at 0
            self.accelerator.log({**values, f"{name}/step": step})
        else:
            self.accelerator.log(values, step=step)

    def sound(self, stage: Stage, loop: Loop) -> None:
        """Send the sounds of the fixed captions, as the pipeline makes them now."""
        captions, waves = sounds(stage, loop, self.frozen, self.out)
        tracker = self.accelerator.get_tracker(self.log_with, unwrap=True)
        for i, (caption, wave) in enumerate(zip(captions, waves)):
            tag = f"{stage.name}/sound {i + 1}: {caption}"
            if self.log_with == "tensorboard":
                tracker.add_audio(tag, wave[None], loop.done, audio.SAMPLE_RATE)
                continue
            import wandb

            heard = wandb.Audio(wave.numpy(), audio.SAMPLE_RATE, caption=caption)
            self.tell(stage.name, {f"sound {i + 1}": heard}, loop.done)
        if self.log_with == "tensorboard":
            tracker.flush()

    def close(self) -> None:
        """Write what is left, and end."""
        # `Accelerator.end_training` would also end the group of processes
        for tracker in self.accelerator.trackers if self.accelerator else ():
            tracker.finish()
        self.accelerator = None


@torch.no_grad()
def sounds(
    stage: Stage, loop: Loop, frozen: dict[str, nn.Module], out: Path
) -> tuple[list[str], torch.Tensor]:
    """A few captions of the stage's clips, always the same, and their sounds (n, N) by
    the pipeline as it is now, with averaged weights if the stage averages them.

    The model in training is copied, and the global random state is put back.
    """
    corpus = stage.data.corpus
    clips = np.linspace(0, len(corpus) - 1, min(N_SOUNDS, len(corpus)))
    clips = [round(i) for i in clips]
    captions = [corpus.captions[i] for i in clips]
    with torch.random.fork_rng():
        model = copy.deepcopy(loop.model)
        learned = dict(model.named_parameters())
        for name, average in loop.average.items():
            learned[name].copy_(average)
        parts = {**frozen, **SOUNDED[stage.name](model.eval())}
        about = folders.read_description(out)
        pipe = AudioLDM2(folders.Parts(**parts, **about)).to(loop.accelerator.device)
        said = {}
        if pipe.speaks:
            said["transcription"] = [stage.data.transcriptions[i] for i in clips]
        seeds = list(range(len(clips)))
        return captions, pipe(captions, seed=seeds, progress=False, **said)
