"""The course on Colab: its two zips, and the first cell of a chapter, which unpacks
them.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import colab_cell
import course_zip
import notebooks
import pytest
import torch

ROOT = notebooks.ROOT


@pytest.fixture(scope="module")
def zips(tmp_path_factory) -> Path:
    """A folder with both zips, of the course as it is."""
    folder = tmp_path_factory.mktemp("zips")
    for name, patterns in course_zip.ZIPS.items():
        course_zip.write_zip(folder / name, ROOT, patterns)
    return folder


def names(path: Path) -> set[str]:
    return set(zipfile.ZipFile(path).namelist())


# ---- the zips


def test_the_zips_hold_what_the_chapters_need_and_are_light(zips):
    held = names(zips / "course.zip")
    assert all(path.stat().st_size <= course_zip.MAX_BYTES for path in zips.iterdir())
    for path in notebooks.chapters():
        assert f"course/chapters/{path.name}" in held
    for path in (ROOT / "minilib").rglob("*.py"):
        assert f"course/{path.relative_to(ROOT).as_posix()}" in held
    for name in ("tiny", "speech", "picture", "judges"):
        for path in (ROOT / "data/weights" / name).rglob("*.safetensors"):
            assert f"course/{path.relative_to(ROOT).as_posix()}" in held
    # no solutions, no hidden files, nothing that was built
    assert not [x for x in held if re.search(r"/\.|assignments/|__pycache__|_build", x)]
    assert {x.split("/")[3] for x in names(zips / "course-peers.zip")} == {"peers"}


def test_the_peers_that_the_chapters_of_audioldm_2_read_are_in_the_first_zip(zips):
    held = names(zips / "course.zip")
    for path in notebooks.chapters():
        if notebooks.number(path) < "19":
            told = path.read_text(encoding="utf-8")
            for peer in set(re.findall(r"weights/peers/(\w+)", told)):
                inside = f"course/data/weights/peers/{peer}/"
                assert any(x.startswith(inside) for x in held), f"{path.name}: {peer}"


def test_the_course_from_its_zip_makes_a_sound(zips, tmp_path):
    zipfile.ZipFile(zips / "course.zip").extractall(tmp_path)
    line = ["-m", "minilib", "generate", "a dog barks", "--steps", "2", "-o", "x.wav"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "course")}
    (tmp_path / "here").mkdir()
    where = {"cwd": tmp_path / "here", "env": environment}
    done = subprocess.run([sys.executable, *line], capture_output=True, **where)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "x.wav").stat().st_size > 10_000


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small course."""
    root = tmp_path / "tree"
    for name in ("a.txt", "b/c.txt", "b/d.txt", "b/.git/e.txt", "b/__pycache__/f.pyc"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_the_same_files_give_the_same_bytes(tree, tmp_path):
    for i, path in enumerate(("one.zip", "two.zip")):
        for file in tree.rglob("*.txt"):
            os.utime(file, (10**9 + 100 * i, 10**9 + 100 * i))
            file.chmod(0o600 if i else 0o644)
        course_zip.write_zip(tmp_path / path, tree, ["a.txt", "b"])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert names(tmp_path / "one.zip") == {
        "course/a.txt",
        "course/b/c.txt",
        "course/b/d.txt",
    }
    (tree / "a.txt").write_text("other")
    course_zip.write_zip(tmp_path / "two.zip", tree, ["a.txt", "b"])
    assert (tmp_path / "one.zip").read_bytes() != (tmp_path / "two.zip").read_bytes()


def test_a_zip_that_is_too_large_or_lacks_something_is_not_written(
    tree, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(course_zip, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"one\.zip has 0 MB, but may have at most"):
        course_zip.write_zip(tmp_path / "one.zip", tree, ["a.txt"])
    monkeypatch.setattr(notebooks, "ROOT", tree)
    assert course_zip.main() == 2
    said = capsys.readouterr().err
    assert (
        "pyproject.toml is missing: the zip needs it" in said and said.count("\n") == 1
    )
    assert list(tmp_path.rglob("*.zip")) == []


# ---- the first cell


class Colab:
    """A runtime of Colab under a folder: runs the cell, and keeps what it ran."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.ran, self.asked, self.given = folder, [], 0, []
        colab, files = ModuleType("google.colab"), ModuleType("google.colab.files")
        files.upload, colab.files = self.upload, files
        for module in (ModuleType("google"), colab, files):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        run = lambda command, check: self.ran.append(" ".join(command))
        monkeypatch.setattr("subprocess.run", run)
        monkeypatch.setattr("sys.path", list(sys.path))
        monkeypatch.chdir(folder)

    def upload(self) -> dict[str, bytes]:
        self.asked += 1
        for path in self.given:
            Path(path.name).write_bytes(path.read_bytes())
        return {path.name: path.read_bytes() for path in self.given}

    def run(self) -> None:
        os.chdir(self.folder)
        text = colab_cell.text().replace("/content", str(self.folder))
        exec(text, {"__name__": "__main__"})


@pytest.fixture
def colab(tmp_path, monkeypatch) -> Colab:
    monkeypatch.setattr(colab_cell, "address", lambda: "")
    (tmp_path / "content").mkdir()
    return Colab(tmp_path / "content", monkeypatch)


@pytest.fixture
def small_zips(tmp_path) -> list[Path]:
    """Zips of hardly anything, by their names."""
    root = tmp_path / "small"
    for name in ("chapters/01.ipynb", "peers/x.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    paths = [tmp_path / name for name in course_zip.ZIPS]
    for path, pattern in zip(paths, ("chapters", "peers")):
        course_zip.write_zip(path, root, [pattern])
    return paths


@pytest.mark.parametrize("place", ["", "drive/MyDrive"])
def test_without_an_address_the_cell_takes_the_zips_that_are_there(
    colab, small_zips, place
):
    (colab.folder / place).mkdir(parents=True, exist_ok=True)
    for path in small_zips:
        (colab.folder / place / path.name).write_bytes(path.read_bytes())
    colab.run()
    course = colab.folder / "course"
    assert colab.asked == 0 and (course / "peers" / "x.txt").is_file()
    assert Path.cwd() == course / "chapters" and str(course) in sys.path
    assert [f"--editable {course}[peers,speech]" in line for line in colab.ran] == [
        True
    ]
    assert "--upgrade" not in colab.ran[0]
    (course / "peers" / "x.txt").write_text("mine")  # run again, it unpacks nothing
    colab.run()
    assert (course / "peers" / "x.txt").read_text() == "mine"


@pytest.mark.parametrize("n", [1, 2])
def test_without_an_address_and_a_zip_the_cell_asks_for_it(
    colab, small_zips, n, capsys
):
    colab.given = small_zips[:n]
    colab.run()
    assert colab.asked == 1 and Path.cwd() == colab.folder / "course" / "chapters"
    assert (colab.folder / "course" / "peers").is_dir() == (n == 2)
    assert "Choose course.zip" in capsys.readouterr().out


def test_beside_the_zip_of_the_peers_alone_the_cell_asks_for_the_course(
    colab, small_zips
):
    course, peers = small_zips
    (colab.folder / peers.name).write_bytes(peers.read_bytes())
    colab.given = [course]
    colab.run()
    made = colab.folder / "course"
    assert colab.asked == 1 and (made / "chapters").is_dir()
    assert (made / "peers").is_dir()


def test_where_no_zip_is_given_the_cell_says_what_to_do(colab):
    with pytest.raises(FileNotFoundError, match="course.zip was not given: upload it"):
        colab.run()
    assert colab.ran == []


def test_with_an_address_the_cell_clones_and_asks_for_no_zip(
    colab, small_zips, monkeypatch
):
    monkeypatch.setattr(colab_cell, "address", lambda: "https://example.org/course")
    (colab.folder / small_zips[0].name).write_bytes(small_zips[0].read_bytes())
    made = colab.folder / "course" / "chapters"
    run = lambda command, check: (
        made.mkdir(parents=True, exist_ok=True) or (colab.ran.append(command[:2]))
    )
    monkeypatch.setattr("subprocess.run", run)
    colab.run()
    assert colab.ran[0] == ["git", "clone"] and colab.asked == 0
    assert list(made.iterdir()) == []  # the zip was left alone


@pytest.mark.parametrize("gpu", [False, True])
def test_the_cell_says_whether_there_is_a_gpu(
    colab, small_zips, gpu, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    colab.given = small_zips
    colab.run()
    said = " ".join(capsys.readouterr().out.split())
    if gpu:
        assert "has a GPU, Tesla T4: cells that train take more steps" in said
    else:
        assert "has no GPU, and no chapter needs one" in said
