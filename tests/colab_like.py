"""Run chapters from course.zip as Colab would, in an environment with Colab's versions:
the first cell unpacks the zip and installs what is missing, and the rest must run.

    .venv/bin/python tests/colab_like.py make FOLDER [PYTHON]
    .venv/bin/python tests/colab_like.py run FOLDER [CHAPTER ...]

`make` writes the zips and an environment into a new folder: 6 GB, as torch comes with
CUDA. PYTHON is Colab's 3.13 if it can be had. `run` takes chapters by number, all
without any; each gets a copy of the zip of its own, and prints its time. pytest does
not collect this file; the exit status is 1 where a chapter failed, or where pip changed
a package that was there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "book" / "tools")]

import course_zip  # noqa: E402
import notebooks  # noqa: E402
from jupyter_client.kernelspec import KernelSpec  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402
from nbclient import NotebookClient  # noqa: E402
from nbclient.exceptions import CellExecutionError  # noqa: E402

# googlecolab/backend-info of 19 August 2026, there with Python 3.13.15
COLAB = """
    torch==2.11.0 torchaudio==2.11.0 torchcodec==0.11.0 transformers==5.15.0
    diffusers==0.39.0 accelerate==1.14.0 huggingface_hub==1.27.0 tokenizers==0.22.2
    safetensors==0.8.0 datasets==4.0.0 numpy==2.1.3 scipy==1.16.3 librosa==0.11.0
    soundfile==0.14.0 matplotlib==3.10.0 ipywidgets==7.7.1 ipython==7.34.0
    ipykernel==6.17.1 tqdm==4.67.3 pooch==1.9.0 typer==0.27.1
""".split()
# what a runtime of Colab has imported before the first cell
STARTED = """
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

for name in ("google", "google.colab", "google.colab.files"):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
"""
SECONDS = 600  # for one cell


def make(folder: Path, python: str) -> None:
    """The zips, and an environment with Colab's versions."""
    folder.mkdir(parents=True)
    for name, patterns in course_zip.ZIPS.items():
        course_zip.write_zip(folder / name, ROOT, patterns)
    subprocess.run([python, "-m", "venv", folder / "env"], check=True)
    pip(folder, "install", "--quiet", *COLAB)


def pip(folder: Path, *given: str) -> str:
    """What pip prints in that environment."""
    line = [folder / "env" / "bin" / "python", "-m", "pip", *given]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def packages(folder: Path) -> dict[str, str]:
    """The versions of all packages, by name."""
    lines = pip(folder, "list", "--format", "freeze").splitlines()
    return dict(line.split("==") for line in lines)


def run(folder: Path, path: Path) -> str:
    """What went wrong when a chapter ran from the zip alone; "" for nothing."""
    content, started = folder / "content", folder / "started"
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    started.mkdir(exist_ok=True)
    (started / "sitecustomize.py").write_text(STARTED)
    for name in course_zip.ZIPS:
        os.link(folder / name, content / name)
    notebook = notebooks.read(path)
    first = notebooks.code_cells(notebook)[0]
    first.source = first.source.replace("/content", str(content))
    manager = AsyncKernelManager()
    python = str(folder / "env" / "bin" / "python")
    line = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=line, display_name="Colab")
    away = {"PYTHONPATH": str(started), "PATH": f"{Path(python).parent}:/usr/bin:/bin"}
    environment = {**os.environ, **away, "MINILIB_DEVICE": "cpu"}
    environment.pop("MINILIB_REALAUDIO", None)
    client = NotebookClient(notebook, timeout=SECONDS, km=manager)
    try:
        client.execute(cwd=str(content), env=environment)
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    return ""


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The packages that were there before and are no longer the same."""
    return [
        f"{name} {version} became {after.get(name)}"
        for name, version in before.items()
        if after.get(name) != version
    ]


def main(how: str, folder: str, *given: str) -> int:
    place = Path(folder).absolute()
    if how == "make":
        make(place, *(given or ("python3.13",)))
        return 0
    failed, before = 0, packages(place)
    for path in notebooks.chapters():
        if given and notebooks.number(path) not in given:
            continue
        began = time.monotonic()
        wrong = run(place, path)
        seconds = time.monotonic() - began
        print(f"{path.name:36} {seconds:4.0f} s  {wrong or 'ran'}", flush=True)
        failed += wrong != ""
    after = packages(place)
    for line in (other := changed(before, after)):
        print(f"pip: {line}")
    new = [f"{name} {after[name]}" for name in after if name not in before]
    print(f"pip added: {', '.join(new) or 'nothing'}; {len(other)} changed")
    return int(failed > 0 or other != [])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
