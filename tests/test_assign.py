"""Assignments and their graders: form, release, grades, feedback, and answers that
attack.
"""

import ast
import copy
import csv
import json
import os
import re
import sys
from pathlib import Path

import colab_cell
import nbformat
import pytest
import torch
import yaml

from minilib import cli
from minilib.assign import checker as checking
from minilib.assign import confine, course, graders, pages, sandbox, tables
from minilib.assign.checker import HIDDEN, Checker
from minilib.assign.course import assignment, kind, mark

ROOT = Path(__file__).parents[1]
NAMES = course.assignments()
NAME = "forward_process"  # the assignment that is handed in here

SOLUTION = re.compile(r"### BEGIN SOLUTION.*?### END SOLUTION", re.S)

each_assignment = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def closed() -> None:
    """Skips a test where answers can't be closed in; with `MINILIB_REQUIRE=sandbox`
    that is a failure.
    """
    guard = sandbox.missing_guard()
    if guard and "sandbox" in os.environ.get("MINILIB_REQUIRE", "").split(","):
        pytest.fail(guard)
    if guard:
        pytest.skip(guard)


# ---- the instructors' notebooks


@each_assignment
def test_an_assignment_has_the_form_that_graders_and_readers_rely_on(name):
    task = assignment(name)
    cells = task.notebook.cells
    ids = [mark(cell, "grade_id") for cell in cells if mark(cell, "grade_id")]
    assert len(set(ids)) == len(ids)
    assert not [c for c in cells if c.cell_type == "code" and c.outputs]
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code[0].source == colab_cell.text() and kind(code[0]) == "demo"
    assert 4 <= len(task.functions) <= 8 and len(task.functions) == len(
        [cell for cell in cells if kind(cell) == "answer"]
    )
    assert list(task.tests) == [f"test_{function}" for function in task.functions]
    for cell in cells:
        if kind(cell) == "answer":
            assert "### BEGIN SOLUTION" in cell.source, mark(cell, "grade_id")
        if kind(cell) == "test":
            visible = HIDDEN.sub("", cell.source)
            assert "assert " in visible and visible != cell.source
            assert all(node.msg for node in asserts(cell.source)), "a hint is missing"
    written = [cell for cell in cells if kind(cell) == "written"]
    assert written and all("| rubric | points |" in cell.source for cell in written)
    assert 60 <= task.minutes <= 120 and task.chapters and task.title


def asserts(source: str) -> list[ast.Assert]:
    """The assertions of a cell."""
    return [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Assert)]


@pytest.fixture(scope="module")
def shared_course(tmp_path_factory) -> Path:
    """A course folder; nbgrader takes seconds to make one."""
    return tmp_path_factory.mktemp("shared")


@each_assignment
def test_a_release_holds_no_solution_and_no_hidden_test(name, shared_course):
    release = nbformat.writes(course.released(name, shared_course))
    assert "HIDDEN" not in release and "SOLUTION" not in release
    checked = 0
    for cell in assignment(name).notebook.cells:
        secrets = HIDDEN.findall(cell.source) + SOLUTION.findall(cell.source)
        open_part = SOLUTION.sub("", HIDDEN.sub("", cell.source))
        if kind(cell) == "written":
            secrets, open_part = [cell.source], ""
        for line in "\n".join(secrets).splitlines():
            line = line.strip()
            if len(line) > 24 and line not in open_part:
                assert json.dumps(line, ensure_ascii=False)[1:-1] not in release, line
                checked += 1
    assert checked > 20


@each_assignment
def test_feedback_can_show_every_formula_of_an_assignment(name):
    for cell in assignment(name).notebook.cells:
        if cell.cell_type == "markdown":
            text = pages.CODE.sub("", cell.source)
            shown = [pages.formula(a or b) for a, b in pages.FORMULA.findall(text)]
            assert all(x.startswith("<math") for x in shown), shown


@each_assignment
def test_graders_keep_the_reference_and_take_the_points_of_two_wrong_answers(name):
    trials = graders.try_all(name, n_wrong=2, right=False)
    unjust = [(x.variant.function, x.variant.label) for x in trials if not x.just]
    assert not unjust
    functions = assignment(name).functions
    assert len(trials) == 3 * len(functions)


@each_assignment
def test_every_function_has_wrong_answers_and_right_ones_in_other_styles(name):
    _, variants = graders.variants(name)
    for function in assignment(name).functions:
        own = [x for x in variants if x.function == function]
        assert sum(not x.right for x in own) >= graders.MIN_WRONG, function
        assert sum(x.right for x in own) >= graders.MIN_RIGHT, function
    assert {x.function for x in variants} <= set(assignment(name).functions)


def test_the_book_holds_no_assignment_and_pytest_does_not_run_their_notebooks():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^norecursedirs = \[.*"assignments"\]', project, re.M)
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["only_build_toc_files"] is True
    assert "assignments" not in (ROOT / "_toc.yml").read_text(encoding="utf-8")
    built = ROOT / "_build/html"
    assert not [x for x in built.rglob("*") if x.stem in NAMES]


def test_a_deleted_test_comes_back_and_the_students_own_cells_keep_their_place():
    new = nbformat.v4
    cells = [new.new_markdown_cell("a"), new.new_code_cell("f"), new.new_code_cell("t")]
    marks = [{}, {"solution": True}, {"grade": True, "locked": True, "points": 1}]
    for cell, name, marked in zip(cells, "aft", marks):
        cell.metadata["nbgrader"] = {"grade_id": name, **marked}
    release = new.new_notebook(cells=cells)
    own, answer = new.new_code_cell("own"), copy.deepcopy(cells[1])
    answer.source = "g"
    submission = new.new_notebook(cells=[cells[0], own, answer])
    found, notes = course.rebuilt(release, submission)
    assert [cell.source for cell in found.cells] == ["a", "own", "g", "t"]
    assert notes == [] and [c.source for c in release.cells] == ["a", "f", "t"]
    assert "nbgrader" not in found.cells[1].metadata
    answer.cell_type = "raw"
    with pytest.raises(ValueError, match="none of the functions asked for"):
        course.rebuilt(release, submission)


def asked(*sources: str, lost: bool = True) -> nbformat.NotebookNode:
    """A notebook of an assignment with the functions f and g and a question w, or one
    that came back with other sources, without marks and with other ids.
    """
    names = ("q", "f", "test_f", "g", "test_g", "question", "w")
    kinds = ("markdown", "code", "code", "code", "code", "markdown", "markdown")
    solution = {"solution": True, "locked": False}
    test = {"grade": True, "locked": True, "points": 1, "solution": False}
    marks = ({}, solution, test, solution, test, {}, {**test, **solution})
    cells = []
    for i, source in enumerate(sources):
        cell = getattr(nbformat.v4, f"new_{kinds[i]}_cell")(source)
        if not lost:
            cell.metadata["nbgrader"] = {"grade_id": names[i], **marks[i]}
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells)


RELEASED = ("q", "def f(): 0", "t", "def g(): 0", "u", "why?", "YOUR ANSWER HERE")


def test_functions_are_found_by_name_if_marks_and_ids_are_lost_and_cells_are_missing():
    release = asked(*RELEASED, lost=False)
    came = asked("q", "def f(): 1", "t", "def g(): 2", "u", "why?", "because")
    came.cells.insert(1, nbformat.v4.new_code_cell("own"))
    found, notes = course.rebuilt(release, came)
    sources = [cell.source for cell in found.cells]
    assert "def f(): 1" in sources and "def g(): 2" in sources and "own" in sources
    assert sources.count("t") == sources.count("u") == 1
    assert sources[-1].endswith("because")  # it was a cell without a mark
    del came.cells[1:3]
    found, notes = course.rebuilt(release, came)
    assert "def g(): 2" in [cell.source for cell in found.cells]
    assert "not found in the notebook, 0 points: f" in notes


def test_an_answer_in_another_cell_is_shown_where_it_was_asked_for():
    release = asked(*RELEASED, lost=False)
    for place in (5, 6, 7):
        came = copy.deepcopy(release)
        came.cells.insert(place, nbformat.v4.new_markdown_cell("because <b>"))
        found, (note,) = course.rebuilt(release, came)
        assert found.cells[-1].source.endswith("because &lt;b>")
        assert note.startswith("w was answered in another cell")
    came = copy.deepcopy(release)
    came.cells[5].source = "why?\nbecause"
    found, (note,) = course.rebuilt(release, came)
    assert found.cells[-1].source.endswith("because")
    came.cells[6].source = "so"
    found, notes = course.rebuilt(release, came)
    assert found.cells[-1].source == "so" and notes == []


def test_what_a_person_types_into_a_table_is_read_or_kept_beside_it(tmp_path):
    path, head = tmp_path / "a.csv", ["student", "figure", "score"]
    assert tables.write(path, head, [["ada", None, 18.0], ["bo", 2.0, 3.0]]) == ""
    assert tables.changes(path) == {}
    path.write_text("student;figure;score\nada;1,5;18,00\nbo;2;20\n", "utf-8")
    assert tables.changes(path) == {("ada", "figure"): "1,5", ("bo", "score"): "20"}
    said = tables.write(path, head, [["ada", 1.5, 19.5], ["bo", 2.0, 3.0]])
    assert "(bo, score: 20): your version is kept as a_typed.csv" in said
    assert "bo;2;20" in (tmp_path / "a_typed.csv").read_text(encoding="utf-8")
    assert tables.read(path)["ada"]["figure"] == "1.5" and tables.changes(path) == {}


def test_a_formula_on_a_page_is_mathml_and_code_stays_as_it_is():
    page = pages.markdown("a $\\bar\\alpha_t$ of `$x$` [x](https://a.b)", {})
    assert "<math" in page and "\\bar" not in page and "<code>$x$</code>" in page
    assert "href" not in page
    assert "<msub>" in page  # the index stands beside the letter, not under it
    assert pages.markdown("$\\nonsense{$", {}).count("nonsense") == 1


@pytest.mark.parametrize(
    "text", ["<script>", "<img src=x>", "&lt;script&gt;", "[x](javascript:a())"]
)
def test_a_written_answer_holds_no_html(text):
    found = course.harmless(f"1 < 2 & 3, {text}")
    assert not re.search(r"<\w|&(?!amp;|lt;| )|script:", found)
    assert found.startswith("1 < 2 & 3, ")


# ---- hand in, grade, read the feedback


def solved(release: nbformat.NotebookNode, **changed: str) -> nbformat.NotebookNode:
    """A submission with the instructor's answers, but for those that are given."""
    task, notebook = assignment(NAME), copy.deepcopy(release)
    answers = {mark(c, "grade_id"): c.source for c in task.notebook.cells}
    for cell in notebook.cells:
        if kind(cell) in ("answer", "written"):
            name = mark(cell, "grade_id")
            answer = re.sub(r".*(BEGIN|END) SOLUTION\n?", "", answers[name])
            cell.source = changed.get(name, answer)
    return notebook


def hand_in(folder: Path, student: str, notebook: nbformat.NotebookNode) -> None:
    """Write a submission."""
    path = folder / student / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


BROKEN = {  # each in another way
    "constant_beta": "def constant_beta(T left)",
    "level_std": "while True: pass",
    "walk": "def walk(beta, x0, eps):\n    while True: pass",
    "merged_noise": "def merged_noise(beta, eps):\n    kept = []\n    while True:\n"
    "        kept.append(torch.empty(2**27))",  # meets the limit, fills no memory
    "first_below": "def first_below(*a):\n    raise ValueError('\\ud800\\x1b')",
}
ATTACK = """
import builtins, os, sys
import torch
def constant_beta(T, left):
    return Always(0.1)
class Always(float):
    __eq__ = __lt__ = __gt__ = __le__ = lambda self, other: True
    __sub__ = __rsub__ = __abs__ = lambda self, *other: self
torch.allclose = torch.equal = torch.Tensor.__eq__ = lambda *a, **k: True
torch.Tensor.all = lambda *a, **k: True
builtins.AssertionError = type("Nothing", (BaseException,), {})
close = lambda *a, **k: True
"""


@pytest.fixture(scope="module")
def batch(tmp_path_factory, closed) -> Path:
    """A folder of submissions, honest, broken and hostile ones, graded."""
    folder = tmp_path_factory.mktemp("course")
    release = nbformat.read(course.release(NAME, folder / "release"), 4)
    inbox = folder / "inbox"
    hand_in(inbox, "ada", solved(release))
    hand_in(inbox, "blank", copy.deepcopy(release))
    unmarked = solved(release)
    for cell in unmarked.cells:
        cell.metadata = {}
    hand_in(inbox, "by_id", unmarked)
    without_ids = copy.deepcopy(unmarked)
    for i, cell in enumerate(without_ids.cells):
        cell.id = f"new-{i}"
    hand_in(inbox, "by_position", without_ids)
    lost = copy.deepcopy(without_ids)
    for cell in lost.cells:
        cell.source = cell.source.replace("def ", "def my_")
    del lost.cells[3]
    hand_in(inbox, "lost", lost)
    by_walk = "def merged_noise(beta, eps):\n    last = walk(beta, 0 * eps[0], eps)[-1]"
    by_walk += "\n    return last / (1 - (1 - beta).prod()).sqrt()"
    hand_in(inbox, "by_walk", solved(release, walk="def walk(", merged_noise=by_walk))
    (inbox / "hand").mkdir()
    nbformat.write(solved(release), inbox / "hand/another name.ipynb")
    (inbox / "homework.ipynb").write_text("{}", encoding="utf-8")
    (inbox / "torn").mkdir()
    (inbox / "torn" / f"{NAME}.ipynb").write_text("{", encoding="utf-8")
    broken = solved(release, **BROKEN)
    broken.cells[0].metadata["nbgrader"] = "text"
    broken.cells[3].metadata["nbgrader"] = {"grade_id": ["a"]}
    hand_in(inbox, "broken", broken)
    hand_in(inbox, "attack", solved(release, constant_beta=ATTACK))
    cheat = solved(release, constant_beta="def constant_beta(T, left):\n    return 0.5")
    for cell in cheat.cells:  # rewrites tests and points
        if kind(cell) == "test":
            cell.source, cell.metadata.nbgrader.points = "pass", 1000
    script = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    cheat.cells[-1].source += script
    hand_in(inbox, "cheat", cheat)
    own = solved(release)
    helper = nbformat.v4.new_code_cell("%matplotlib inline\nroot = lambda x: x**0.5")
    own.cells.insert(4, helper)
    walk = "def walk(beta, x0, eps):\n    x = [x0]\n    for b, e in zip(beta, eps):\n"
    walk += "        x.append(root(1 - b) * x[-1] + root(b) * e)\n"
    walk += "    return torch.stack(x)"
    for cell in own.cells:
        cell.source = walk if mark(cell, "grade_id") == "walk" else cell.source
    hand_in(inbox, "own_cells", own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "CELL_SECONDS", 1)
        patch.setattr(checking, "TEST_SECONDS", 4)
        course.grade(inbox, folder / "graded")
    return folder / "graded"


@pytest.fixture(scope="module")
def rows(batch) -> dict[str, dict[str, str]]:
    """The table of grades: student -> column -> text."""
    with (batch / f"{NAME}.csv").open(encoding="utf-8") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def points(row: dict[str, str]) -> float:
    """A row's score; -1 if it has none."""
    return float(row["score"] or -1)


def test_right_answers_get_all_points_that_need_no_person(rows):
    task = assignment(NAME)
    written = [c for c in task.notebook.cells if kind(c) == "written"]
    automatic = task.points - sum(mark(cell, "points") for cell in written)
    for student in ("ada", "by_id", "by_position", "own_cells", "hand"):
        assert points(rows[student]) == automatic, rows[student]
        assert rows[student]["read_figure"] == ""  # a person has to read it
    assert float(rows["ada"]["seconds_to_grade"]) > 0
    assert "the file is another name.ipynb" in rows["hand"]["note"]


def test_a_wrong_answer_does_not_cost_the_points_of_one_that_calls_it(rows):
    assert rows["by_walk"]["test_walk"] == "0.0"
    assert rows["by_walk"]["test_merged_noise"] == rows["ada"]["test_merged_noise"]
    assert "merged_noise passed with the course's walk" in rows["by_walk"]["note"]


def test_an_empty_submission_gets_nothing(rows):
    assert points(rows["blank"]) == 0 and rows["blank"]["read_figure"] == "0.0"


def test_lost_marks_are_restored_or_the_submission_is_refused_by_name(rows):
    restored = "cells found though the file had lost nbgrader's metadata: constant_beta"
    assert restored in rows["by_id"]["note"]
    assert restored in rows["by_position"]["note"]
    assert points(rows["lost"]) == -1
    assert "not graded: none of the functions" in rows["lost"]["note"]
    assert "not a notebook" in rows["torn"]["note"] and rows["torn"]["score"] == ""


@pytest.mark.parametrize(
    ("student", "functions"),
    [
        ("broken", list(BROKEN)),
        ("attack", ["constant_beta"]),
        ("cheat", ["constant_beta"]),
    ],
)
def test_a_bad_answer_loses_its_own_points_only(rows, student, functions):
    row, right = rows[student], rows["ada"]
    bad = [f"test_{function}" for function in functions]
    assert all(row[name] == "0.0" for name in bad), row
    others = [x for x in row if x.startswith("test_") and x not in bad]
    assert others and all(row[name] == right[name] for name in others), row
    assert row["of"] == right["of"]


def test_a_row_says_which_cells_could_not_be_run(rows):
    note = rows["broken"]["note"]
    assert "cell constant_beta: SyntaxError" in note
    assert "cell level_std: TimeoutError: it ran for too long" in note
    assert "walk did not answer: it took too long" in note


def test_feedback_reads_offline_and_shows_no_hidden_test_and_no_script(batch):
    written = course.feedback(NAME, batch)
    assert {*written.without} == {"lost", "torn"} and written.waiting["read_figure"] > 5
    found = {page.parts[-3]: page for page in written.pages}
    assert {"ada", "cheat", "broken", "attack"} <= set(found)
    texts = {name: page.read_text(encoding="utf-8") for name, page in found.items()}
    assert "waiting for the instructor (up to 2)" in texts["ada"]
    assert "ada</h1>" in texts["ada"] and "Not passed" not in texts["ada"]
    assert "walk, 0 of 2.</strong> Not passed: walk did not" in texts["broken"]
    secrets = [
        line.strip()
        for test in assignment(NAME).tests.values()
        for line in HIDDEN.findall(test)[0].splitlines()[1:-1]
        if "=" in line and len(line.strip()) > 30
    ]
    assert len(secrets) > 10
    for name, text in texts.items():
        plain = re.sub(r"<[^>]*>", "", text)
        plain = plain.replace("&gt;", ">").replace("&lt;", "<").replace("&quot;", '"')
        shown = [x for x in secrets if x in plain and not x.startswith(('f"', '"'))]
        assert not shown, (name, shown)
        assert "<script" not in text and "<img src=x" not in text
        assert "default-src 'none'" in text  # a browser loads and runs nothing
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    said = re.sub(r"\s+", " ", texts["broken"])
    for fault in (
        "constant_beta is missing (cell constant_beta: SyntaxError",
        "<math",
        "walk did not answer: it took too long",
        "merged_noise needed too much memory",
        "first_below raised ValueError: ??",
    ):
        assert fault in said, fault


def test_points_that_a_person_gives_enter_the_table_with_the_feedback(batch, rows):
    api = course.nbgrader_api(batch)
    with api.gradebook as gradebook:
        grade = gradebook.find_grade("read_figure", NAME, NAME, "ada")
        grade.manual_score, grade.needs_manual_grade = 1.5, False
        gradebook.db.commit()
    course.feedback(NAME, batch)
    with (batch / f"{NAME}.csv").open(encoding="utf-8") as file:
        now = {row["student"]: row for row in csv.DictReader(file)}
    assert now["ada"]["read_figure"] == "1.5"
    assert points(now["ada"]) == points(rows["ada"]) + 1.5
    others = set(rows) - {"ada"}
    assert len(now) == len(rows) and all(now[x] == rows[x] for x in others)


def test_grading_again_gives_the_same_scores(batch, rows, tmp_path):
    inbox = batch.parent / "again"
    release = nbformat.read(batch / "release" / NAME / f"{NAME}.ipynb", 4)
    hand_in(inbox, "ada", solved(release, walk="walk = 3"))
    (again,) = course.grade(inbox, batch)[NAME]
    assert again.scores["test_walk"] == 0
    written = again.scores["read_figure"] or 0
    assert again.score - written == points(rows["ada"]) - 2
    # the points that a person gave stay, as the answer is the same
    now = tables.read(batch / f"{NAME}.csv")
    assert written == 1.5 and now["ada"]["read_figure"] == "1.5"
    assert set(now) == set(rows)  # those who did not hand in again are kept
    changed = solved(release, read_figure="something else")
    nbformat.write(changed, inbox / "ada" / f"{NAME}.ipynb")
    (again,) = course.grade(inbox, batch)[NAME]
    assert again.scores["read_figure"] is None and "grade it again" in again.note
    table = (batch / f"{NAME}.csv").read_text(encoding="utf-8")
    typed = re.sub(r"^(ada(?:,[\d.]*){6},)", r"\g<1>2", table, flags=re.M)
    (batch / f"{NAME}.csv").write_text(typed, encoding="utf-8")
    course.feedback(NAME, batch)
    assert tables.read(batch / f"{NAME}.csv")["ada"]["read_figure"] == "2.0"


# ---- answers that attack the closed process


HOSTILE = """
import os, socket, subprocess, sys, threading
import torch

def plain(x): return 2 * x
def look(tops, places):
    found = [p for p in places if os.path.exists(p)]
    for top in ("/tmp", "/root", "/home", "/proc/1", "/dev", os.getcwd(), *tops):
        for folder, _, files in os.walk(top):
            if "/site-packages" in folder or "/python3" in folder or "/proc" in folder:
                continue
            for file in files:
                if file.endswith((".ipynb", ".db")):
                    found.append(os.path.join(folder, file))
    for d in os.listdir("/proc"):
        if d.isdigit() and int(d) != os.getpid():
            found.append("/proc/" + d)
    return found
def write(place):
    with open(place, "w") as f: f.write("100")
def touch(place):  # changes nothing, should it succeed
    with open(place, "a"): pass
def environment(): return dict(os.environ)
def fork(): return os.fork()
def run(): return subprocess.run(["/bin/true"]).returncode
def connect(): socket.create_connection(("1.1.1.1", 53), timeout=1)
def leave(): os.setsid()
def thread():
    done = []
    t = threading.Thread(target=lambda: done.append(1)); t.start(); t.join()
    return len(done)
def fill_memory():
    kept = []
    while True: kept.append(bytearray(2**26))
def fill_disk():
    for i in range(40):
        with open(f"/tmp/fill-{i}", "wb") as f: f.write(b"x" * 2**22)
def quit(): sys.exit(0)
def die(): os._exit(0)
def huge(): return torch.zeros(2**25)
def deep():
    x = []
    for _ in range(100_000): x = [x]
    return x
def liar():
    class Always:
        def __eq__(self, other): return True
    return Always()
def tensor_liar():
    class Always(torch.Tensor):
        def __eq__(self, other): return torch.ones(3, dtype=torch.bool)
        def tolist(self): return [1, 2, 3]
    return torch.zeros(3).as_subclass(Always)
def forge():
    import json, struct
    import safetensors.torch
    text = json.dumps({"reply": True, "value": "forged", "tracked": []}).encode()
    data = safetensors.torch.save({})
    for n in range(3, 20):
        try: os.write(n, struct.pack(">QQ", len(text), len(data)) + text + data)
        except OSError: pass
    return "true"
def garbage():
    for n in range(3, 20):
        try: os.write(n, b"\\xff" * 64)
        except OSError: pass
    return 1
def wrong_call():
    for n in range(3, 20):
        try: os.write(n, b"\\x00" * 16)
        except OSError: pass
    return 1
"""
FUNCTIONS = re.findall(r"^def (\w+)", HOSTILE, re.M)


@pytest.fixture(scope="module")
def attacked(closed) -> Checker:
    """A checker of hostile answers."""
    return Checker(["import torch"], FUNCTIONS, [course.ASSIGNMENTS])


def verdicts(attacked: Checker, **tests: str) -> dict[str, str]:
    """What is found by tests on the hostile answers; empty where they pass."""
    found, _ = attacked.check([("cell", HOSTILE)], tests)
    return {name: verdict.fault for name, verdict in found.items()}


def test_answers_see_no_course_no_gradebook_and_no_other_process(
    attacked, tmp_path, monkeypatch
):
    monkeypatch.setenv("SECRET_OF_THE_INSTRUCTOR", "1")
    book = tmp_path / "gradebook.db"
    book.write_text("3", encoding="utf-8")
    source = course.ASSIGNMENTS / "source" / NAME / f"{NAME}.ipynb"
    places = [str(x) for x in (course.ASSIGNMENTS, source, book, ROOT / "tests")]
    assert source.exists()
    found = verdicts(
        attacked,
        look=f"found = look({[str(ROOT.parent)]}, {places})\nassert found == [], found",
        write=f"write({str(book)!r})",
        library=f"touch({str(ROOT / 'minilib/diffusion.py')!r})",
        environment="assert 'SECRET_OF_THE_INSTRUCTOR' not in environment()",
    )
    assert found["look"] == found["environment"] == ""
    assert "No such file" in found["write"] and "Read-only" in found["library"]
    assert book.read_text(encoding="utf-8") == "3"


def test_answers_start_no_process_and_open_no_socket_but_may_use_threads(attacked):
    calls = {name: f"{name}()" for name in ("fork", "run", "connect", "leave")}
    found = verdicts(attacked, **calls, thread="assert thread() == 1, 'none'")
    assert all("not permitted" in found[name] for name in calls), found
    assert found["thread"] == ""


def test_answers_that_fill_end_or_flood_lose_that_test_and_no_other(attacked):
    calls = ("fill_memory", "fill_disk", "quit", "die", "huge", "deep", "garbage")
    tests = {}
    for name in (*calls, "wrong_call"):
        tests[name] = f"{name}()"
        tests[f"after_{name}"] = (
            "assert torch.equal(plain(torch.ones(2)), 2 * torch.ones(2))"
        )
    found = verdicts(attacked, **tests)
    for name in (*calls, "wrong_call"):
        assert found[name], name
        assert found[f"after_{name}"] == "", (name, found[f"after_{name}"])
    assert "too much memory" in found["fill_memory"]


def test_an_answer_that_lies_about_equality_or_forges_a_message_gains_nothing(attacked):
    found = verdicts(
        attacked,
        liar="assert liar() == 3, 'not equal'",
        tensor_liar="assert torch.equal(tensor_liar(), torch.arange(3.0)), 'not equal'",
        forge="assert forge() == 'right', 'it is a text that it sent'",
        forge_again="assert plain(2) == 4, 'no'",
    )
    assert "can't be compared" in found["liar"]
    assert found["tensor_liar"] == "not equal"
    assert found["forge"] == "it is a text that it sent"


def test_without_bubblewrap_one_sentence_says_what_is_missing(monkeypatch, closed):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    guard = sandbox.missing_guard.__wrapped__()
    assert guard.startswith("bubblewrap is missing") and guard.count(".") == 0
    monkeypatch.setattr(sandbox, "missing_guard", lambda: guard)
    open_checker = Checker(["import torch"], FUNCTIONS)
    tests = {
        "fork": "fork()",
        "socket": "connect()",
        "plain": "assert plain(1) == 2, '2'",
    }
    found = verdicts(open_checker, **tests)
    assert "not permitted" in found["fork"] and "not permitted" in found["socket"]
    assert found["plain"] == ""


def test_every_jump_of_the_filter_of_system_calls_stays_inside_it():
    for machine in confine.REFUSED:
        code = confine.program(machine)
        assert len(code) % 8 == 0
        for i in range(0, len(code), 8):
            op, yes, no = code[i], code[i + 2], code[i + 3]
            if op & 7 == 5:  # a jump
                assert i // 8 + 1 + max(yes, no) < len(code) // 8


# ---- what crosses the wire


CALLED = """
import numpy as np
import torch
def same(x): return x
def kinds(x): return type(x).__name__
def squares(x): return (x**2).sum(), x.argmax()
def fit(model, x): return ((model(x) - 1) ** 2).mean()
def steps(model, x):
    with torch.no_grad():
        for t in range(4): x = x - 0.1 * model(x, t)
    return x
def make(n):
    torch.manual_seed(n)
    return torch.nn.Linear(n, 1)
def refuse(x): raise ValueError(f"{x} is no number")
def draw(generator): return torch.randn(3, generator=generator)
def apply_back(function, x): return function(x) + 1
"""


def on_the_wire(**tests: str) -> dict[str, str]:
    """The verdicts of tests on `CALLED`."""
    names = re.findall(r"^def (\w+)", CALLED, re.M)
    checker = Checker(["import torch", "import numpy as np"], names)
    found, _ = checker.check([("cell", CALLED)], tests)
    return {name: verdict.fault for name, verdict in found.items()}


def test_values_functions_and_gradients_cross_the_wire():
    found = on_the_wire(
        values="""
nested = 1, [2, {"a": (3,)}], {1: 2}
for x in (None, True, 3, 2.5, float("inf"), "text", 1 + 2j, nested):
    assert same(x) == x and type(same(x)) is type(x), f"{x!r} came back as {same(x)!r}"
for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64,
              torch.complex128):
    x = torch.ones(2, 3).to(dtype).T
    y = same(x)
    assert y.dtype == dtype and torch.equal(x, y), f"{dtype}"
assert same(torch.zeros(0, 3)).shape == (0, 3), "no numbers"
assert same(torch.tensor(2.0)).shape == (), "one number"
array = np.arange(3)
assert isinstance(same(array), np.ndarray) and kinds(array) == "ndarray", "array"
assert same(torch.float16) is torch.float16, "dtype"
state = torch.Generator().manual_seed(3)
assert torch.equal(draw(state), torch.randn(3, generator=state)), "generator"
""",
        gradients="""
x = torch.arange(3.0, requires_grad=True)
total, where = squares(x)
assert total.requires_grad and not where.requires_grad and int(where) == 2, "flags"
(2 * total).backward()
assert torch.equal(x.grad, 4 * torch.arange(3.0)), f"{x.grad}"
with torch.no_grad():
    assert not squares(x)[0].requires_grad, "no gradient was asked for"
""",
        callbacks="""
torch.manual_seed(0)
model, x = torch.nn.Linear(3, 2), torch.randn(5, 3)
fit(model, x).backward()
found = model.weight.grad.clone()
model.zero_grad()
((model(x) - 1) ** 2).mean().backward()
assert torch.allclose(found, model.weight.grad), "weights behind a callback"
y = x
for t in range(4):
    y = y - 0.1 * y * t
assert torch.allclose(steps(lambda x, t: x * t, x), y), "a loop over a callback"
assert torch.equal(apply_back(same, x), x + 1), "a function of theirs, sent back"
torch.manual_seed(4)
assert torch.allclose(make(4)(torch.ones(4)), torch.nn.Linear(4, 1)(torch.ones(4))), "m"
""",
        errors="""
try:
    refuse(3)
except ValueError as error:
    assert str(error) == "3 is no number", f"{error}"
else:
    raise AssertionError("no error")
try:
    fit(lambda x: x @ torch.ones(7), torch.ones(2, 3))
except RuntimeError:
    pass
else:
    raise AssertionError("no error")
""",
    )
    assert found == dict.fromkeys(found, "")


def test_faults_name_the_function_and_tell_nothing_of_a_hidden_test():
    hidden = "same(1)\n### BEGIN HIDDEN TESTS\n{}\n### END HIDDEN TESTS"
    found = on_the_wire(
        hint=hidden.format("assert same(2) == 3, 'think of 3'"),
        crash=hidden.format("secret = refuse('x')"),
        seen="assert same(2) == 3, 'seen'",
        unanswered="missing_one(2)",
    )
    assert found["hint"] == "A hidden test: think of 3"
    assert found["crash"] == "A hidden test: refuse raised ValueError: x is no number"
    assert found["seen"] == "seen"
    assert "missing_one" in found["unanswered"]


# ---- the command line


def run(capsys, *words: str) -> tuple[int, str]:
    """The exit code of a command, and what it printed."""
    code = cli.main(["assign", *words])
    out, err = capsys.readouterr()
    return code, out + err


def test_list_names_every_assignment(capsys):
    code, text = run(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == NAMES


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("release",), "takes a name or a folder"),
        (("list", "all"), "takes no name"),
        (("list", "--out", "x"), "takes no --out"),
        (("release", "no_such"), "there is no assignment 'no_such'; there are:"),
        (("release", "../x"), "there is no assignment '../x'"),
        (("grade", "nowhere"), "there is no folder 'nowhere'"),
        (("feedback", NAME, "--out", "empty"), "has no grades for forward_process"),
    ],
)
def test_wrong_words_get_one_sentence(capsys, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = run(capsys, *words)
    assert code == 2 and said in text and text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_files_that_name_no_assignment_or_no_student_are_named_and_the_rest_is_graded(
    tmp_path,
):
    for path in ("homework.ipynb", f"{NAME}.ipynb", "ada.zip"):
        (tmp_path / path).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="homework.ipynb: not graded"):
        course.submissions(tmp_path, tmp_path / "graded")
    for path in (f"ada_{NAME}.ipynb", f"bo b-{NAME} (1).ipynb"):
        (tmp_path / path).write_text("{}", encoding="utf-8")
    graded = tmp_path / "graded/submitted/ada" / f"{NAME}.ipynb"
    graded.parent.mkdir(parents=True)
    graded.write_text("{}", encoding="utf-8")
    found, refused = course.submissions(tmp_path, tmp_path / "graded")
    assert [(x.student, x.assignment) for x in found] == [("ada", NAME), ("bo b", NAME)]
    assert [row.student for row in refused] == [
        "ada.zip",
        f"{NAME}.ipynb",
        "homework.ipynb",
    ]
    assert "unpack it first" in refused[0].note
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / f"{NAME}.ipynb").write_text("{}", encoding="utf-8")
    found, refused = course.submissions(tmp_path, tmp_path / "graded")
    assert [x.student for x in found] == ["bo b"]
    assert refused[-1].student == "ada" and f"ada/{NAME}.ipynb" in refused[-1].note


def test_a_students_name_leads_to_no_folder_but_its_own(tmp_path):
    for student in ("..", "ada", "b[o]"):
        (tmp_path / f"{student}_{NAME}.ipynb").write_text("{}", encoding="utf-8")
    found, _ = course.submissions(tmp_path, tmp_path / "graded")
    given = {x.student: x.note for x in found}
    assert given == {"_": "handed in as ..", "ada": "", "b_o_": "handed in as b[o]"}


def test_a_release_that_was_changed_is_not_overwritten(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = nbformat.v4.new_notebook()
    monkeypatch.setattr(course, "released", lambda name, root: made)  # takes seconds
    assert run(capsys, "release", NAME)[0] == run(capsys, "release", NAME)[0] == 0
    path = tmp_path / "release" / f"{NAME}.ipynb"
    path.write_text("mine", encoding="utf-8")
    code, text = run(capsys, "release", NAME)
    assert code == 2 and "is there already, and has been changed" in text
    assert path.read_text(encoding="utf-8") == "mine"


def test_without_nbgrader_a_sentence_says_what_to_install(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "nbgrader.apps", None)
    code, text = run(capsys, "release", NAME)
    assert code == 2 and 'pip install "minilib[teach]"' in text
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_fixed_so_that_a_score_is_the_same_every_time():
    checker = Checker(["import torch"], ["same"])
    print_draw = {"a": "print(torch.rand(1))", "b": "print(torch.rand(1))"}
    found, _ = checker.check([("cell", CALLED)], print_draw)
    assert found["a"].printed == found["b"].printed
    torch.manual_seed(5)
    again, _ = checker.check([("cell", CALLED)], print_draw)
    assert again["a"].printed == found["a"].printed
