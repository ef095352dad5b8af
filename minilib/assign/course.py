"""A course's assignments over nbgrader: list and release them, grade a folder of
submissions, and write feedback.

nbgrader keeps the gradebook, in the folder where grades go; its form grader opens that
folder, for answers that a person has to grade. Where nbgrader would run a submission,
`checker` does. Nothing of a submission is trusted: each is rebuilt from the released
notebook, with the student's answers put in.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilib.assign import tables
from minilib.assign.checker import HIDDEN, Checker, defined

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from nbgrader.apps import NbGraderAPI

ASSIGNMENTS = Path(__file__).resolve().parents[2] / "chapters/assignments"
# tags of a cell for the eyes only, such as a figure, and of the set-up on Colab
NOT_GRADED = {"demo", "remove-cell"}
NOT_HANDED_IN = {".ipynb_checkpoints", "__MACOSX"}  # what systems put beside files
WANTED = "name it STUDENT/NAME.ipynb or STUDENT_NAME.ipynb"
MOVED = "*(Found in a cell of the student's own.)*"
MAX_BYTES = 50_000_000  # of a notebook that is handed in
COLUMNS = 96  # of what tests say, in a notebook
ABOUT_ROW = ["score", "of", "seconds_to_grade", "note"]  # the last columns of a table
SEEN = ("image/png", "image/jpeg", "text/plain")  # outputs that are kept for a person
DEFINED = re.compile(r"^(?:def|class)\s+(\w+)", re.M)
ABOUT = "minilib"  # metadata of a notebook: its chapters and minutes


@dataclass(frozen=True)
class Assignment:
    """One assignment, as the instructor's notebook has it."""

    name: str
    title: str
    chapters: list[str]  # that a student has read
    minutes: int  # that a student needs
    notebook: NotebookNode  # with solutions and hidden tests

    @property
    def points(self) -> float:
        """The most points that a student can get."""
        return sum(self.most.values())

    @property
    def given(self) -> list[str]:
        """The source of each code cell that is given to answers and tests alike."""
        return [c.source for c in self.notebook.cells if kind(c) == "given"]

    @property
    def most(self) -> dict[str, float]:
        """The most points of each graded cell, in order."""
        cells = (c for c in self.notebook.cells if mark(c, "grade"))
        return {mark(cell, "grade_id"): float(mark(cell, "points")) for cell in cells}

    @property
    def functions(self) -> list[str]:
        """The functions and classes that answers define."""
        answers = (c for c in self.notebook.cells if kind(c) == "answer")
        return [name for cell in answers for name in defined(cell.source)]

    @property
    def reference(self) -> list[str]:
        """The source of each cell of the instructor's answers."""
        return [c.source for c in self.notebook.cells if kind(c) == "answer"]

    @property
    def written(self) -> list[str]:
        """The questions that a person grades."""
        cells = (c for c in self.notebook.cells if kind(c) == "written")
        return [mark(cell, "grade_id") for cell in cells]

    @property
    def tests(self) -> dict[str, str]:
        """The source of each test cell, by its name."""
        cells = (c for c in self.notebook.cells if kind(c) == "test")
        return {mark(cell, "grade_id"): cell.source for cell in cells}

    def checker(self, *hidden: Path) -> Checker:
        """What runs the tests; the folders stay out of sight of answers."""
        folders = [ASSIGNMENTS, *hidden]
        return Checker(self.given, self.functions, folders, self.reference)


@dataclass
class Row:
    """What became of one submission."""

    student: str
    assignment: str
    scores: dict[str, float | None] = field(default_factory=dict)  # None: not yet
    points: float = 0.0  # the most it could get
    seconds: float = 0.0
    note: str = ""  # what a person should know

    @property
    def score(self) -> float:
        """The points so far."""
        return sum(x for x in self.scores.values() if x is not None)


# ---- notebooks


def mark(cell: NotebookNode, name: str, default: Any = None) -> Any:
    """One of nbgrader's marks on a cell."""
    marks = cell.metadata.get("nbgrader")
    return marks.get(name, default) if isinstance(marks, dict) else default


def kind(cell: NotebookNode) -> str:
    """What a cell is for: answer, test, given, written (graded by a person), demo, or
    other.
    """
    if cell.cell_type != "code":
        return "written" if mark(cell, "solution") else "other"
    if mark(cell, "solution"):
        return "written" if mark(cell, "grade") else "answer"
    if mark(cell, "grade"):
        return "test"
    if mark(cell, "locked"):
        return "given"
    return "demo" if NOT_GRADED & {*cell.metadata.get("tags", [])} else "other"


def read(path: Path) -> NotebookNode:
    """The notebook at a path; what is not one raises a sentence."""
    import nbformat

    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES // 10**6} MB")
    try:
        with warnings.catch_warnings():  # of a copied cell's id
            warnings.simplefilter("ignore")
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
        return notebook
    except Exception as error:
        raise ValueError(f"{path.name} is not a notebook that can be read") from error


def assignments() -> list[str]:
    """The names of all assignments, those of early chapters first."""
    paths = ASSIGNMENTS.glob("source/*/*.ipynb")
    found = [path for path in paths if path.stem == path.parent.name]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in found}
    facts = {name: json.loads(text)["metadata"] for name, text in texts.items()}
    order = {name: x.get(ABOUT, {}).get("chapters", []) for name, x in facts.items()}
    return sorted(order, key=lambda name: (order[name], name))


def recognised(notebook: NotebookNode) -> str:
    """The assignment of which a notebook has at least half of the functions, or
    nothing.
    """
    own = {str(mark(cell, "grade_id")) for cell in notebook.cells}
    own.update(x for cell in notebook.cells for x in DEFINED.findall(cell.source))
    share = {}
    for name in assignments():
        wanted = assignment(name).functions
        share[name] = len(own.intersection(wanted)) / len(wanted)
    best = max(share, key=share.get, default="")
    return best if share.get(best, 0) >= 0.5 else ""


@functools.cache
def assignment(name: str) -> Assignment:
    """The assignment of that name."""
    path = ASSIGNMENTS / "source" / name / f"{name}.ipynb"
    if not re.fullmatch(r"\w+", name) or not path.is_file():
        known = ", ".join(assignments())
        if not known:
            where = f"there is no folder {str(ASSIGNMENTS)!r}"
            raise FileNotFoundError(f"{where}: run this in a copy of the course")
        raise ValueError(f"there is no assignment {name!r}; there are: {known}")
    notebook = read(path)
    title = re.search(r"^# (.+)", notebook.cells[0].source, re.M)[1]
    facts = notebook.metadata[ABOUT]
    return Assignment(name, title, facts["chapters"], facts["minutes"], notebook)


# ---- release


def nbgrader_api(root: Path, **options: Any) -> NbGraderAPI:
    """nbgrader for the course in the folder `root`; where it is missing, a sentence
    says what to install.
    """
    try:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config import Config
    except ModuleNotFoundError as error:
        need = "assignments need nbgrader, which is not installed: pip install nbgrader"
        raise ModuleNotFoundError(need) from error
    # nbgrader starts alembic, which lies beside Python, perhaps not on the path
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    config = Config()
    config.CourseDirectory.root = str(root)
    config.NbGraderAPI.log_level = "ERROR"
    config.HTMLExporter.sanitize_html = True  # of a student's texts
    for name, value in options.items():
        part, _, field_name = name.partition("__")
        config[part][field_name] = value
    return NbGraderAPI(config=config)


def done(result: dict[str, Any]) -> None:
    """Raise a sentence if nbgrader reports that it failed."""
    if not result["success"]:
        lines = f"{result.get('error', '')}\n{result.get('log', '')}".split("\n")
        errors = [line.strip() for line in lines if re.match(r" *\w+Error\b", line)]
        raise ValueError(f"nbgrader failed: {[*lines, *errors][-1]:.300}")


def released(name: str, root: Path) -> NotebookNode:
    """The students' notebook, made by nbgrader in the course folder `root`, and entered
    in its gradebook.
    """
    source = ASSIGNMENTS / "source" / name / f"{name}.ipynb"
    target = root / "source" / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    api = nbgrader_api(root)
    done(api.generate_assignment(name, force=True, create=True))
    path = root / "release" / name / f"{name}.ipynb"
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells)
    if HIDDEN.search(text) or "BEGIN SOLUTION" in text:
        raise ValueError(f"a solution or a hidden test of {name} would be released")
    return notebook


def check_out(out: Path) -> None:
    """Raise a sentence if there is a file where the folder `out` should be."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out must be a folder; {str(out)!r} is a file")


def release(name: str, out: Path) -> Path:
    """Write the students' notebook of an assignment, without solutions and hidden
    tests, into the folder `out`; return its path.
    """
    import nbformat

    assignment(name)
    check_out(out)
    with tempfile.TemporaryDirectory() as folder:
        notebook = released(name, Path(folder).resolve())
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / f"{name}.ipynb", nbformat.writes(notebook) + "\n"
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        move = "move it away, or name another folder with --out"
        raise FileExistsError(f"{path} is there already, and has been changed: {move}")
    path.write_text(text, encoding="utf-8")
    return path


# ---- submissions


@dataclass(frozen=True)
class Submission:
    """A notebook that was handed in."""

    student: str
    assignment: str
    path: Path
    note: str = ""  # what a person should know


def submissions(folder: Path, out: Path) -> tuple[list[Submission], list[Row]]:
    """The submissions in a folder, and a row for each file that is none.

    There is a folder for each student, ada/forward_process.ipynb, or one file each,
    ada_forward_process.ipynb. A notebook with another name, in a student's folder, is
    known by its functions. What lies in the folder `out`, of grades, is none.
    """
    if not folder.is_dir():
        is_file = f"{str(folder)!r} is a file: name the folder that it lies in"
        missing = f"there is no folder {str(folder)!r}"
        raise FileNotFoundError(is_file if folder.is_file() else missing)
    names = sorted(assignments(), key=len, reverse=True)
    form = re.compile(rf"(?:(.+)[ _-])?({'|'.join(names)})(?: ?\(\d+\))?")
    found, refused = [], []
    for path in sorted(x for x in folder.rglob("*") if x.suffix in (".ipynb", ".zip")):
        place = path.relative_to(folder)
        is_graded = path.resolve().is_relative_to(out.resolve())
        if is_graded or NOT_HANDED_IN & {*place.parts} or path.name.startswith("._"):
            continue
        fits = form.fullmatch(path.stem)
        given = place.parts[0] if len(place.parts) > 1 else fits and fits[1]
        student = given and re.sub(r"[^\w .@-]|^\.+$", "_", given)
        note = "" if student == given else f"handed in as {given}"
        if path.suffix == ".zip":
            why = "not graded: unpack it first"
        elif not student:
            why = f"not graded: no student's name; {WANTED}"
        elif fits:
            found.append(Submission(student, fits[2], path, note))
            continue
        else:
            name, why = other_name(path), f"not graded: no assignment's name; {WANTED}"
            if name:
                note = " | ".join(filter(None, [note, f"the file is {path.name}"]))
                found.append(Submission(student, name, path, note))
                continue
        refused.append(Row(str(place), "", note=why))
    for who in {(x.student, x.assignment): 0 for x in found}:
        same = [x for x in found if (x.student, x.assignment) == who]
        if len(same) > 1:
            found = [x for x in found if x not in same]
            paths = ", ".join(str(x.path.relative_to(folder)) for x in same)
            why = f"not graded: handed in more than once ({paths}): keep one"
            refused.append(Row(*who, note=why))
    if not found:
        why = "".join(f"; {row.student}: {row.note}" for row in refused)
        raise ValueError(f"there is no submission in {str(folder)!r}{why:.500}")
    return found, refused


def other_name(path: Path) -> str:
    """The assignment of a notebook whose file has another name, or nothing."""
    try:
        return recognised(read(path))
    except ValueError:
        return ""


def located(
    release: NotebookNode, submission: NotebookNode
) -> tuple[dict[int, int], list[str], list[str]]:
    """Where the released cells are in a submission: by their marks, or if a service has
    dropped the marks by their ids, by the function that they define, or by position if
    as many cells of the same types came back.

    Returns:
        position in the submission -> position in the release; the names of the answers
        whose marks were lost; the names of the answers that are not found.
    Raises:
        ValueError: no answer is found.
    """
    cells = submission.cells
    marked = {str(mark(cell, "grade_id", "")): i for i, cell in enumerate(cells)}
    ids = {cell.get("id"): i for i, cell in enumerate(cells)}
    defines = {x: i for i, c in enumerate(cells) for x in DEFINED.findall(c.source)}
    types = [[c.cell_type for c in book.cells] for book in (submission, release)]
    same_form = set(marked) == {""} and types[0] == types[1]
    places, restored, lost = {}, [], []
    for i, cell in enumerate(release.cells):
        name = mark(cell, "grade_id")
        found = marked.get(name) if name else None
        was_marked = found is not None
        if not was_marked:
            found = ids.get(cell.id, i if same_form else None)
        if found is None and kind(cell) == "answer":
            own = (defines.get(function) for function in defined(cell.source))
            found = next((x for x in own if x is not None and x not in places), None)
        if found is not None and cells[found].cell_type != cell.cell_type:
            found = None
        if found is not None:
            places[found] = i
        if kind(cell) in ("answer", "written"):
            lost += [name] * (found is None)
            restored += [name] * (found is not None and not was_marked)
    answers = [cell for cell in release.cells if kind(cell) == "answer"]
    if len({*lost} & {mark(cell, "grade_id") for cell in answers}) == len(answers):
        other = recognised(submission)
        what = f": it is {other}" if other else ""
        raise ValueError(f"none of the functions asked for is in it{what}")
    return places, restored, lost


def rebuilt(
    release: NotebookNode, submission: NotebookNode
) -> tuple[NotebookNode, list[str]]:
    """The released notebook with a student's answers and further cells in it, and what
    a person should know of how they were found; see `located`.
    """
    places, restored, lost = located(release, submission)
    result = copy.deepcopy(release)
    given, result.cells = result.cells, []
    answers = [i for i, cell in enumerate(given) if kind(cell) == "answer"]
    texts = "\n".join(x.source for x in given if x.cell_type == "markdown")
    sources = {x.source for x in given if x.cell_type == "code"}
    done_to = 0  # so many of the given cells are in the result
    elsewhere, changed = [], []  # texts after the last answer; test cells
    for i, cell in enumerate(submission.cells):
        if i in places:
            answered = given[places[i]]
            if kind(answered) in ("answer", "written"):
                is_code = answered.cell_type == "code"
                answered.source = cell.source if is_code else harmless(cell.source)
            elif (
                kind(answered) == "test"
                and cell.source.split() != answered.source.split()
            ):
                changed.append(mark(answered, "grade_id"))
            elif answered.cell_type == "markdown" and places[i] > max(answers):
                elsewhere.append(added(texts, cell.source))
            if kind(answered) in ("answer", "written", "demo"):
                keep_outputs(answered, cell)
            # cells before it that the student has deleted come back
            result.cells += given[done_to : places[i] + 1]
            done_to = max(done_to, places[i] + 1)
        elif cell.cell_type == "markdown" and added(texts, cell.source).strip():
            result.cells.append(own_cell(cell))
            if done_to > max(answers):
                elsewhere.append(added(texts, cell.source))
        elif cell.cell_type == "code" and cell.source not in sources:
            result.cells.append(own_cell(cell))
    result.cells += given[done_to:]
    notes = []
    if restored:
        found_by = "found though the file had lost nbgrader's metadata"
        notes.append(f"cells {found_by}: {', '.join(restored)}")
    text = "\n\n".join(filter(None, (x.strip() for x in elsewhere)))
    for cell, asked in zip(given, release.cells):
        if kind(cell) == "written" and text and unanswered(cell, asked):
            cell.source, text = f"{MOVED}\n\n{harmless(text)}", ""
            name = mark(cell, "grade_id")
            notes.append(f"{name} was answered in another cell: it is shown as if here")
            lost = [x for x in lost if x != name]
    if lost:
        notes.append(f"not found in the notebook, 0 points: {', '.join(lost)}")
    if changed:
        own = "test cells were changed, and the course's own were run"
        notes.append(f"{own}: {', '.join(changed)}")
    return result, notes


def unanswered(cell: NotebookNode, asked: NotebookNode) -> bool:
    """Whether a question to be answered in words has been left as it was."""
    return cell.source.strip() in ("", asked.source.strip(), harmless(asked.source))


def added(before: str, after: str) -> str:
    """The lines that a student has added to a given text."""
    given = {line.strip() for line in before.splitlines()}
    return "\n".join(x for x in after.splitlines() if x.strip() not in given)


def harmless(text: str) -> str:
    """A student's Markdown without HTML, which would be run in the browser of whoever
    grades it.
    """
    text = re.sub(r"&(?=[#\w])", "&amp;", text)
    text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)
    return re.sub(r"(java|vb)script\s*:", "", text, flags=re.I)


def own_cell(cell: NotebookNode) -> NotebookNode:
    """A student's own cell, without marks."""
    import nbformat

    if cell.cell_type == "code":
        own = nbformat.v4.new_code_cell(cell.source)
    else:
        own = nbformat.v4.new_markdown_cell(harmless(cell.source))
    keep_outputs(own, cell)
    return own


def keep_outputs(target: NotebookNode, source: NotebookNode) -> None:
    """Give a cell the outputs that a person has to see: pictures and texts, which do
    nothing when they are shown.
    """
    import nbformat

    if target.cell_type != "code":
        pictures = source.get("attachments", {}).items()
        images = ("image/png", "image/jpeg")
        safe = {name: x for name, x in pictures if set(x) <= set(images)}
        target.pop("attachments", None)
        if safe:
            target["attachments"] = safe
        return
    target.outputs = []
    for output in source.get("outputs", []):
        data = {key: x for key, x in output.get("data", {}).items() if key in SEEN}
        if output.output_type == "stream":
            new = nbformat.v4.new_output("stream", name="stdout", text=output.text)
        elif data:
            new = nbformat.v4.new_output("display_data", data=data)
        else:
            continue
        target.outputs.append(new)


# ---- grades


def grade(
    folder: Path, out: Path, bar: Callable[[list], Iterator] = iter
) -> dict[str, list[Row]]:
    """Grade all submissions in a folder.

    Args:
        folder: the submissions (`submissions`); out: the folder of the gradebook, of
            autograded notebooks, and of a table NAME.csv for each assignment.
        bar: wraps the list of submissions, to show how far it is.
    Returns:
        assignment -> a row for each of its submissions; "" -> one for each file that
        is none.
    """
    check_out(out)
    found, refused = submissions(folder, out)
    root = out.resolve()
    root.mkdir(parents=True, exist_ok=True)
    graders: dict[str, Grader] = {}
    earlier: dict[str, list[Row]] = {}
    rows: dict[str, list[Row]] = {}
    for given in bar(found):
        name = given.assignment
        if name not in graders:
            table, api = root / f"{name}.csv", nbgrader_api(root)
            # with points typed into the table, which the gradebook gets first
            earlier[name] = read_rows(table, assignment(name), api)
            graders[name] = Grader(assignment(name), root)
        rows.setdefault(name, []).append(graders[name].grade(given))
    for row in refused:
        row.points = assignment(row.assignment).points if row.assignment else 0
        rows.setdefault(row.assignment, []).append(row)
    for name, of_one in rows.items():
        if name:
            table, task = root / f"{name}.csv", assignment(name)
            known = earlier.get(name) or read_rows(table, task, nbgrader_api(root))
            new = {row.student for row in of_one}
            of_one = [*of_one, *(x for x in known if x.student not in new)]
            warn(write_table(table, sorted(of_one, key=lambda row: row.student)))
            write_by_hand(root, task)
    return rows


def warn(sentence: str) -> None:
    """Print a sentence, if there is one, where errors go."""
    if sentence:
        print(f"minilib: {sentence}", file=sys.stderr)


class Grader:
    """Grades the submissions of one assignment in a course folder."""

    def __init__(self, task: Assignment, root: Path) -> None:
        self.task, self.root = task, root
        self.release = released(task.name, root)
        self.checker = task.checker(root)
        self.remarks: list[str] = []  # on the last submission
        self.api = nbgrader_api(
            root,
            Autograde__sanitize_preprocessors=sanitizers(),
            Autograde__autograde_preprocessors=[run_tests(self), *savers()],
        )

    def grade(self, given: Submission) -> Row:
        """Grade one submission; whatever is wrong with it becomes its row's note."""
        import nbformat

        began, name, student = time.perf_counter(), self.task.name, given.student
        row = Row(student, name, points=self.task.points)
        self.remarks = [given.note] if given.note else []
        try:
            notebook, notes = rebuilt(self.release, read(given.path))
            self.remarks += notes
            target = self.root / "submitted" / student / name / f"{name}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            before = answers_in(read(target)) if target.is_file() else {}
            target.write_text(nbformat.writes(notebook), encoding="utf-8")
            with warnings.catch_warnings():  # of nbgrader's use of its database
                warnings.simplefilter("ignore")
                by_hand = points_by_hand(self.api, self.task, student)
                done(self.api.autograde(name, student, force=True, create=True))
                self.keep_points(student, by_hand, before, answers_in(notebook))
            row.scores = scores(self.api, self.task, student)
        except Exception as error:  # whatever came in, the others are graded
            self.remarks.append(f"not graded: {error or type(error).__name__}")
        row.note = " | ".join(" ".join(note.split()) for note in self.remarks)
        row.seconds = time.perf_counter() - began
        return row

    def keep_points(
        self,
        student: str,
        points: dict[str, float],
        before: dict[str, str],
        now: dict[str, str],
    ) -> None:
        """Points that a person gave stay while the answer is the same; where it has
        changed, a person has to look again.
        """
        with self.api.gradebook as gradebook:
            for cell, given in points.items():
                name = self.task.name
                grade = gradebook.find_grade(cell, name, name, student)
                answer = cell.removeprefix("test_")
                is_same = before.get(answer) == now.get(answer)
                grade.needs_manual_grade = not is_same
                if not is_same:
                    grade.manual_score = None
                    had = f"{cell} had {given:g} points, and has changed since"
                    self.remarks.append(f"{had}: grade it again")
            gradebook.db.commit()

    def run(self, notebook: NotebookNode) -> None:
        """Run the tests of a notebook on the answers in it, and write into each test
        cell what became of it.
        """
        import nbformat

        cells = [
            (mark(cell, "grade_id") or f"{i + 1}", cell.source)
            for i, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and kind(cell) not in ("test", "demo")
        ]
        verdicts, faults = self.checker.check(cells, self.task.tests)
        self.remarks += [f"cell {cell}: {fault}" for cell, fault in faults.items()]
        self.remarks += [x.fault for x in verdicts.values() if x.ended]
        for test, verdict in verdicts.items():
            if verdict.lent:
                function, lent = test.removeprefix("test_"), " and ".join(verdict.lent)
                verdict_of = f"{function} passed with the course's {lent}"
                self.remarks.append(f"{verdict_of}, since the student's did not pass")
        for cell in notebook.cells:
            if kind(cell) != "test":
                continue
            verdict, cell.outputs = verdicts[mark(cell, "grade_id")], []
            if verdict.printed:
                text = {"name": "stdout", "text": verdict.printed}
                cell.outputs.append(nbformat.v4.new_output("stream", **text))
            if not verdict.passed:
                fault = {"ename": "Not passed", "evalue": verdict.fault}
                fault["traceback"] = textwrap.wrap(verdict.fault, COLUMNS)
                cell.outputs.append(nbformat.v4.new_output("error", **fault))


def run_tests(grader: Grader) -> type:
    """The step of nbgrader's that runs a submission, done by a grader of ours."""
    from nbgrader.preprocessors import NbGraderPreprocessor

    class RunTests(NbGraderPreprocessor):
        """Runs the tests on answers in a closed process."""

        def preprocess(self, notebook: Any, resources: Any) -> tuple[Any, Any]:
            grader.run(notebook)
            return notebook, resources

    return RunTests


def sanitizers() -> list[type]:
    """nbgrader's steps before a submission is run: they restore marks and tests."""
    from nbgrader import preprocessors as steps

    return [steps.OverwriteKernelspec, steps.OverwriteCells, steps.CheckCellMetadata]


def savers() -> list[type]:
    """nbgrader's steps after a submission was run: they save the scores."""
    from nbgrader import preprocessors as steps

    return [steps.LimitOutput, steps.SaveAutoGrades, steps.CheckCellMetadata]


def scores(api: NbGraderAPI, task: Assignment, student: str) -> dict[str, float | None]:
    """The points of each graded cell, in order; None where a person has still to give
    them.
    """
    with api.gradebook as gradebook:
        (notebook,) = gradebook.find_submission(task.name, student).notebooks
        found = {
            grade.name: None if grade.needs_manual_grade else grade.score
            for grade in notebook.grades
        }
    return {name: found[name] for name in task.most}


def answers_in(notebook: NotebookNode) -> dict[str, str]:
    """The source of each answer, by its name."""
    cells = (c for c in notebook.cells if kind(c) in ("answer", "written"))
    return {mark(cell, "grade_id"): cell.source for cell in cells}


def points_by_hand(
    api: NbGraderAPI, task: Assignment, student: str
) -> dict[str, float]:
    """The points that a person gave to cells of a student, by the cells' names."""
    from nbgrader.api import MissingEntry

    with api.gradebook as gradebook:
        try:
            (notebook,) = gradebook.find_submission(task.name, student).notebooks
        except MissingEntry:
            return {}
        return {
            grade.name: grade.manual_score
            for grade in notebook.grades
            if grade.manual_score is not None and not grade.needs_manual_grade
        }


def write_table(path: Path, rows: list[Row]) -> str:
    """Write the scores as CSV; a cell that a person has still to grade is empty.
    Returns a sentence if something typed there was not read (`tables.write`).
    """
    cells = list(dict.fromkeys(name for row in rows for name in row.scores))
    lines = []
    for row in rows:
        given = [row.scores.get(name) for name in cells]
        score = row.score if row.scores else None
        about_row = [score, row.points, f"{row.seconds:.1f}", row.note]
        lines.append([row.student, *given, *about_row])
    return tables.write(path, ["student", *cells, *ABOUT_ROW], lines)


def read_rows(path: Path, task: Assignment, api: NbGraderAPI) -> list[Row]:
    """The rows of a table, with the points that a person has given since then: in the
    gradebook, or typed into the table.
    """
    for (student, column), text in tables.changes(path).items():
        given, most = tables.number(text), task.most.get(column, -1)
        if column in task.written and given is not None and given <= most:
            enter(api, task.name, student, column, given)
    rows = []
    known = tables.read(tables.kept(path)) or tables.read(path)
    for student, line in known.items():
        row = Row(student, task.name, points=task.points, note=line.get("note") or "")
        row.seconds = float(line.get("seconds_to_grade") or 0)
        if line.get("score"):  # otherwise it was not graded
            row.scores = scores(api, task, student)
        rows.append(row)
    return rows


def enter(api: NbGraderAPI, name: str, student: str, cell: str, points: float) -> None:
    """Give points to a cell of a student in the gradebook, as a person would."""
    from nbgrader.api import MissingEntry

    with api.gradebook as gradebook:
        try:
            grade = gradebook.find_grade(cell, name, name, student)
        except MissingEntry:
            return
        grade.manual_score, grade.needs_manual_grade = points, False
        gradebook.db.commit()


def by_hand_path(root: Path, name: str) -> Path:
    """Where the answers that a person has to grade are, with a model answer."""
    return root / f"{name}_by_hand.md"


def write_by_hand(root: Path, task: Assignment) -> None:
    """Write the model answer with its table of points, and below it each student's."""
    lines = [f"# {task.title}: to be graded by hand (not for students)"]
    papers = {
        path.parts[-3]: answers_in(read(path))
        for path in sorted(root.glob(f"submitted/*/{task.name}/{task.name}.ipynb"))
    }
    for cell in task.notebook.cells:
        if kind(cell) != "written":
            continue
        name = mark(cell, "grade_id")
        lines += [
            f"## {name}: model answer, {mark(cell, 'points')} points",
            cell.source,
        ]
        for student, answers in papers.items():
            lines += [f"### {name}: {student}", answers.get(name, "")]
    text = "\n\n".join(lines) + "\n"
    by_hand_path(root, task.name).write_text(text, encoding="utf-8")


# ---- feedback


@dataclass(frozen=True)
class Feedback:
    """What `feedback` has written, and what is left."""

    pages: list[Path]
    without: list[str]  # students without a page, since their notebook was not graded
    waiting: dict[str, int]  # question -> answers that a person has still to grade


def feedback(name: str, root: Path) -> Feedback:
    """Write a page for each graded student: the answers, the points, what the tests
    said, a person's comments. It needs no network, and shows no hidden test. The table
    gets the points that a person has given.

    Args:
        name: the assignment; root: the folder that `grade` wrote.
    """
    task, table = assignment(name), root / f"{name}.csv"
    if not list(root.glob(f"autograded/*/{name}")):
        missing = f"{str(root)!r} has no grades for {name}"
        how = f"run minilib assign grade FOLDER --out {root}"
        raise FileNotFoundError(f"{missing}: {how}")
    api = nbgrader_api(root.resolve())
    rows = read_rows(table, task, api)
    warn(write_table(table, rows))
    pages, without, waiting = [], [], {}
    for row in rows:
        graded = root / "autograded" / row.student / name / f"{name}.ipynb"
        if not row.scores:
            without.append(row.student)
            continue
        for cell, score in row.scores.items():
            waiting[cell] = waiting.get(cell, 0) + (score is None)
        page = root / "feedback" / row.student / name / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(page_of(task, row.student, read(graded), api), encoding="utf-8")
        pages.append(page)
    return Feedback(pages, without, {k: n for k, n in waiting.items() if n})


def page_of(
    task: Assignment, student: str, notebook: NotebookNode, api: NbGraderAPI
) -> str:
    """A student's page of feedback."""
    from minilib.assign import pages

    with api.gradebook as gradebook:
        (paper,) = gradebook.find_submission(task.name, student).notebooks
        said = {x.name: x.comment or "" for x in paper.comments}
        found = {
            x.name: pages.Grade(
                None if x.needs_manual_grade else x.score,
                x.max_score,
                said.get(x.name, ""),
            )
            for x in paper.grades
        }
    cells = [
        cell
        for cell in notebook.cells
        if "remove-cell" not in cell.metadata.get("tags", [])
    ]
    grades = {name: found[name] for name in task.most}
    kinds = [kind(cell) for cell in cells]
    page = pages.page(task.title, student, cells, kinds, grades)
    if "HIDDEN TESTS" in page:
        raise ValueError(f"the page of {student} would have shown a hidden test")
    return page
