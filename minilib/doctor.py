"""Checks of everything minilib needs from its machine: a finding for each thing, and
how to fix what is wrong.

`minilib doctor` prints them. Each check examines the machine by itself and relies on no
other check, so that one broken thing does not hide the next. Libraries are imported
inside the checks, since any of them may be broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minilib.files import refusal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# the checkout's, for a minilib that isn't installed
PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
MEMINFO = Path("/proc/meminfo")
MEMORY_LIMITS = (  # a container's limits: control groups version 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
MAKES_A_SOUND = 0.5e9  # bytes of memory; 0.43 GB was measured
# bytes of memory; 2.9 GB was measured over 500 clips, and a run keeps the LOA and
# latents of 8000
TRAINS = 3.5e9
PIP = f"{sys.executable} -m pip"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    found: str
    wrong: str = ""  # a sentence: what is wrong, and how to fix it
    works: bool = True  # False if minilib can make no sound until it is fixed


def examine(weights: Path) -> list[tuple[str, Callable[[], Finding]]]:
    """The checks by name, functions to call in this order; `weights` is the folder of a
    pipeline.
    """
    checks = {
        "Python": python,
        "torch": torch_itself,
        "device": device,
        "torchaudio": torchaudio,
        "libraries": libraries,
        "disk": disk,
        "temp folder": temporary_folder,
        "memory": memory,
        "weights": partial(pipeline, weights),
        "recordings": recordings,
    }
    return [(name, partial(finished, check)) for name, check in checks.items()]


def finished(check: Callable[[], Finding]) -> Finding:
    """The check's finding, even if the check itself fails on a broken library."""
    try:
        return check()
    except Exception as error:  # an import may fail in any way
        reason = f"this could not be checked ({in_short(error)})"
        mend = "fix the other problems first"
        return Finding("not checked", f"{reason}: {mend}", works=False)


def in_short(error: Exception) -> str:
    """The type and text of an error, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def gigabytes(n: float) -> str:
    """Bytes as gigabytes of a billion bytes each."""
    return f"{n / 1e9:.1f} GB"


# --------------------------------------------------------------------------------------
# Python and the libraries


def declared() -> tuple[str, list[Requirement]]:
    """The Python versions and libraries that minilib requires, without extras, from the
    installed package or from pyproject.
    """
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata("minilib")
        versions = metadata["Requires-Python"]
        lines = metadata.get_all("Requires-Dist") or []
    except importlib.metadata.PackageNotFoundError:
        toml = importlib.import_module(
            "tomllib" if sys.version_info >= (3, 11) else "tomli"
        )
        project = toml.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        versions, lines = project["requires-python"], project["dependencies"]
    needed = [Requirement(line) for line in lines]
    return versions, [
        r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})
    ]


def python() -> Finding:
    """Whether minilib supports this version of Python."""
    from packaging.specifiers import SpecifierSet

    version, (versions, _) = platform.python_version(), declared()
    if SpecifierSet(versions).contains(version, prereleases=True):
        return Finding(f"{version}, {sys.executable}")
    mend = "set up a new environment with one of these, e.g. make PYTHON=python3.12"
    return Finding(version, f"minilib runs on Python {versions}: {mend}", works=False)


def misfit(requirement: Requirement) -> str:
    """What is wrong with a library (it is missing, has the wrong version, or is
    broken), or "" if nothing is.
    """
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, not {requirement.specifier}"
    try:
        importlib.import_module(requirement.name.replace("-", "_"))
    # any error: a missing system library, files from two versions, ...
    except Exception as error:
        return f"{requirement.name} {version} can't be imported ({in_short(error)})"
    return ""


def libraries() -> Finding:
    """Whether all libraries except torch are installed in fitting versions and can be
    imported.
    """
    needed = [
        requirement for requirement in declared()[1] if requirement.name != "torch"
    ]
    wrong = {
        requirement: problem
        for requirement in needed
        if (problem := misfit(requirement))
    }
    found = f"{len(needed) - len(wrong)} of {len(needed)} are as they should be"
    if not wrong:
        return Finding(found)
    names, wanted = (
        " ".join(words) for words in zip(*((r.name, f'"{r}"') for r in wrong))
    )
    mend = f"{PIP} uninstall -y {names} && {PIP} install {wanted}"
    return Finding(
        found, f"{'; '.join(wrong.values())}; fix it with: {mend}", works=False
    )


def torch_itself() -> Finding:
    """Whether torch is installed in a fitting version, can be imported, and multiplies
    correctly on the CPU.
    """
    (requirement,) = (
        requirement for requirement in declared()[1] if requirement.name == "torch"
    )
    if problem := misfit(requirement):
        mend = f'{PIP} install "{requirement}" --index-url {CPU_WHEELS}'
        return Finding(
            "unusable",
            f"{problem}; to reinstall it for the CPU, run: {mend}",
            works=False,
        )
    import torch

    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if not multiplies("cpu"):
        mend = "reinstall torch, or try another version"
        return Finding(
            found, f"torch multiplies matrices wrongly on this CPU: {mend}", works=False
        )
    return Finding(found)


def multiplies(device: str) -> bool:
    """Whether a product of float32 matrices is exact. Their entries are whole numbers,
    which float32 and TF32 hold exactly.
    """
    import torch

    whole = torch.arange(128 * 128).reshape(128, 128) % 7 - 3
    product = whole.float().to(device) @ whole.float().to(device)
    return torch.equal(product.cpu(), (whole @ whole).float())


def device() -> Finding:
    """Which device computes: a GPU that multiplies correctly, or the CPU; a warning if
    a GPU is left unused.
    """
    import torch

    if torch.cuda.is_available():
        return gpu()
    if torch.backends.mps.is_available():
        return Finding("Apple GPU (MPS) for training; the CPU for everything else")
    found = "the CPU; torch finds no GPU that it can use"
    if shutil.which("nvidia-smi") is None:
        return Finding(found)
    cuda = torch.version.cuda
    reason = (
        f"is built for CUDA {cuda}, for which the driver is too old"
        if cuda
        else "is built for the CPU only"
    )
    builds = "https://pytorch.org/get-started/locally"
    mend = f"choose a build for the CUDA version that nvidia-smi shows, from {builds}"
    return Finding(
        found,
        f"there is an NVIDIA driver, but torch {torch.__version__} {reason}: {mend}",
    )


def gpu() -> Finding:
    """The first CUDA GPU, and whether it multiplies correctly, since minilib always
    uses it if there is one.
    """
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory
    found = f"{torch.cuda.get_device_name()}, {gigabytes(memory)}"
    try:
        problem = "" if multiplies("cuda") else "it multiplies matrices wrongly"
    except Exception as error:  # no kernels for this GPU, no memory left, ...
        problem = in_short(error)
    if not problem:
        return Finding(found)
    alone = "hide it with: export CUDA_VISIBLE_DEVICES="
    mend = f"install a torch that is built for it, or {alone}"
    return Finding(found, f"the GPU does not work ({problem}): {mend}", works=False)


def torchaudio() -> Finding:
    """Whether torchaudio can be imported, if it is installed; `torchaudio_guard` has
    already fixed what it can.
    """
    if importlib.util.find_spec("torchaudio") is None:
        return Finding("not installed; minilib does not need it")
    try:
        return Finding(importlib.import_module("torchaudio").__version__)
    except Exception as error:
        mend = "pip uninstall torchaudio, or install the one that matches your torch"
        who = "transformers and diffusers, which the released models need,"
        reason = f"{who} fail because of it ({in_short(error)})"
        return Finding("can't be imported beside this torch", f"{reason}: {mend}")


# --------------------------------------------------------------------------------------
# Room


def room_for_a_run() -> int:
    """The most bytes that `minilib train all --preset tiny` writes: clips, weights, and
    two checkpoints at a time.

    A checkpoint holds the weights, their average and at most AdamW's two moments, in
    float32, and is deleted only after its successor is written. No stage trains more
    than all the parts.
    """
    from minilib.audio import SAMPLE_RATE
    from minilib.folders import CLASSES
    from minilib.training.runs import RUNS

    run = RUNS["tiny"]
    clips = 2 * run.n_clips * round(run.seconds * SAMPLE_RATE)  # int16
    first = [classes[0] for classes in CLASSES.values()]
    models = [model.preset("tiny") for model in first if "tiny" in model.presets]
    n_parameters = sum(model.n_parameters() for model in models)
    # weights are kept in float16
    return clips + 2 * n_parameters + 2 * (4 * 4 * n_parameters)


def disk() -> Finding:
    """Whether the working folder is writable and has room for a training run."""
    folder, needed = Path.cwd(), room_for_a_run()
    free = shutil.disk_usage(folder).free
    found = f"{gigabytes(free)} free in {folder}"
    if reason := refusal(folder):
        mend = "delete files that you don't need, or work in another folder"
        return Finding(
            found,
            f"not even a megabyte can be written here ({reason.strerror}): {mend}",
            works=False,
        )
    if free < needed:
        mend = "make room, or name a folder on another disk with --out"
        return Finding(
            found, f"`minilib train all` writes up to {gigabytes(needed)}: {mend}"
        )
    return Finding(found)


def temporary_folder() -> Finding:
    """Whether the system's folder for temporary files is writable; minilib itself
    writes none there, but libraries may.
    """
    mend = "make room there, or set the environment variable TMPDIR to another folder"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return Finding(
            "none", f"no temporary files can be written ({error.strerror}): {mend}"
        )
    found = f"{gigabytes(shutil.disk_usage(folder).free)} free in {folder}"
    if reason := refusal(folder):
        return Finding(
            found,
            f"not even a megabyte can be written there ({reason.strerror}): {mend}",
        )
    return Finding(found)


def memory() -> Finding:
    """Whether there is enough memory to make a sound, and to train."""
    available = available_memory()
    if available is None:
        return Finding("not checked: this system does not report it")
    found = f"{gigabytes(available)} available"
    if available < MAKES_A_SOUND:
        mend = "close other programs, or give the machine or container more memory"
        return Finding(
            found, f"a sound needs {gigabytes(MAKES_A_SOUND)}: {mend}", works=False
        )
    if available < TRAINS:
        mend = "close other programs, or train on a machine with more memory"
        return Finding(
            found, f"`minilib train all` needs about {gigabytes(TRAINS)}: {mend}"
        )
    return Finding(found)


def available_memory() -> int | None:
    """Bytes of memory still available, within the container's limit, or the total where
    the system reports only that.

    None on systems that report neither, such as Windows.
    """
    if MEMINFO.is_file():
        kilobytes = {
            words[0]: int(words[1])
            for words in map(str.split, MEMINFO.read_text().splitlines())
        }
        available = 1024 * kilobytes["MemAvailable:"]
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return None
    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    # "max": no limit
    return min([available, *(int(limit) for limit in limits if limit.isdecimal())])


# --------------------------------------------------------------------------------------
# Weights and recordings


def pipeline(folder: Path) -> Finding:
    """Whether every part of a pipeline loads, and all fit together."""
    if not folder.is_dir():
        train = f"minilib train all --out {folder}"
        mend = f"name a folder with --weights, or train weights with: {train}"
        return Finding("none", f"there are no weights in {folder}: {mend}", works=False)
    from minilib.audioldm2 import AudioLDM2
    from minilib.convert import released
    from minilib.folders import CLASSES, OPTIONAL, load_part
    from minilib.peers import peer_of

    if refused(peer_of, folder) == "" and (peer := peer_of(folder)):
        return weights_of_peer(folder, peer)
    names = [n for n in CLASSES if n not in OPTIONAL or (folder / n).is_dir()]
    names = [] if released.is_released(folder) else names
    problems = [refused(load_part, folder, name) for name in names]
    if not any(problems):
        problems = [refused(AudioLDM2.from_pretrained, folder, "cpu")]
    problems = list(dict.fromkeys(filter(None, problems)))
    if problems:
        return damaged(folder, problems, "minilib train all")
    return Finding(f"{', '.join(names) or 'a released pipeline'} in {folder}")


def weights_of_peer(folder: Path, peer: str) -> Finding:
    """Whether a peer's parts load, and those that it borrows."""
    from minilib import peers

    load = peers.coder if peer == "codec" else peers.pipeline
    problem = refused(load, folder)
    if problem:
        return damaged(folder, [problem], f"minilib train-peer {peer}")
    return Finding(f"the peer {peer} in {folder}")


def damaged(folder: Path, problems: list[str], train: str) -> Finding:
    """Weights that do not load, and how to come by others."""
    anew = "restore them (in a checkout: git checkout data/weights)"
    mend = f"{'; '.join(problems)}: {anew} or train them ({train})"
    return Finding(f"damaged, in {folder}", mend, works=False)


def refused(load: Callable, *arguments: object) -> str:
    """The sentence with which a loading function refuses its arguments, or ""."""
    try:
        load(*arguments)
    except (ValueError, TypeError, OSError) as error:
        return " ".join(str(error).split())
    return ""


def recordings() -> Finding:
    """Whether MINILIB_REALAUDIO, if it is set, names a folder of recordings to train
    on.
    """
    folder = os.environ.get("MINILIB_REALAUDIO")
    if not folder:
        return Finding("MINILIB_REALAUDIO is not set: training uses SoundWorld only")
    from minilib.data import OPEN_LICENCES, AudioFolder

    try:
        n = len(
            AudioFolder(folder, part="train", licences=OPEN_LICENCES, captions=False)
        )
    except (ValueError, OSError) as error:
        named = "set it to a folder of recordings with a manifest.csv"
        reason = f"training can't read it ({error})"
        mend = f"{reason}: {named}, or: unset MINILIB_REALAUDIO"
        return Finding(f"MINILIB_REALAUDIO is {folder}", mend)
    return Finding(f"{n} to train on in {folder}")
