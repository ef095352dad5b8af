"""A course's assignments over nbgrader: list and release them, grade a folder of
submissions, and write feedback.

nbgrader keeps the gradebook, in the folder where grades go; its form grader opens that
folder, for answers that a person has to grade. Where nbgrader would run a submission,
`checker` does. Nothing of a submission is trusted: each is rebuilt from the released
notebook, with the student's answers put in.
"""

from __future__ import annotations

import copy
import csv
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

from minilib.assign.checker import HIDDEN, Checker, defined

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from nbgrader.apps import NbGraderAPI

ASSIGNMENTS = Path(__file__).resolve().parents[2] / "chapters/assignments"
# tags of a cell for the eyes only, such as a figure, and of the set-up on Colab
NOT_GRADED = {"demo", "remove-cell"}
MAX_BYTES = 50_000_000  # of a notebook that is handed in
COLUMNS = 96  # of what tests say, on a page
SEEN = ("image/png", "image/jpeg", "text/plain")  # outputs that are kept for a person
SCRIPT = re.compile(r"<script\b.*?</script>", re.S | re.I)  # of pages: they need none
# tells a browser to run no script on a page and to load nothing
ALLOWED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
QUIET = f'<meta http-equiv="Content-Security-Policy" content="{ALLOWED}" />'
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
        return float(sum(mark(cell, "points", 0) for cell in self.notebook.cells))

    @property
    def given(self) -> list[str]:
        """The source of each code cell that is given to answers and tests alike."""
        return [c.source for c in self.notebook.cells if kind(c) == "given"]

    @property
    def functions(self) -> list[str]:
        """The functions and classes that answers define."""
        answers = (c for c in self.notebook.cells if kind(c) == "answer")
        return [name for cell in answers for name in defined(cell.source)]

    @property
    def tests(self) -> dict[str, str]:
        """The source of each test cell, by its name."""
        cells = (c for c in self.notebook.cells if kind(c) == "test")
        return {mark(cell, "grade_id"): cell.source for cell in cells}

    def checker(self, *hidden: Path) -> Checker:
        """What runs the tests; the folders stay out of sight of answers."""
        return Checker(self.given, self.functions, [ASSIGNMENTS, *hidden])


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
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except Exception as error:
        raise ValueError(f"{path.name} is not a notebook that can be read") from error


def assignments() -> list[str]:
    """The names of all assignments, those of early chapters first."""
    paths = ASSIGNMENTS.glob("source/*/*.ipynb")
    found = [path for path in paths if path.stem == path.parent.name]
    order = {path.stem: about(read(path)).get("chapters", []) for path in found}
    return sorted(order, key=lambda name: (order[name], name))


def about(notebook: NotebookNode) -> dict[str, Any]:
    """What a notebook's metadata say of its assignment."""
    return notebook.metadata.get(ABOUT, {})


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
    facts = about(notebook)
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
        need = 'assignments need nbgrader: install it with pip install "minilib[teach]"'
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


def release(name: str, out: Path) -> Path:
    """Write the students' notebook of an assignment, without solutions and hidden
    tests, into the folder `out`; return its path.
    """
    import nbformat

    assignment(name)
    with tempfile.TemporaryDirectory() as folder:
        notebook = released(name, Path(folder).resolve())
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.ipynb"
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return path


# ---- submissions


def submissions(folder: Path, out: Path) -> list[tuple[str, str, Path]]:
    """(student, assignment, path) of each submission in a folder: a folder for each
    student, ada/forward_process.ipynb, or one file each, ada_forward_process.ipynb.
    What lies in the folder `out`, of grades, is none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    names = sorted(assignments(), key=len, reverse=True)
    form = re.compile(rf"(?:(.+)[ _-])?({'|'.join(names)})(?: ?\(\d+\))?")
    found, strange = [], []
    for path in sorted(folder.rglob("*.ipynb")):
        parts = path.relative_to(folder).parts
        fits = form.fullmatch(path.stem)
        student = parts[0] if len(parts) > 1 else fits and fits[1]
        graded = path.resolve().is_relative_to(out.resolve())
        if graded or ".ipynb_checkpoints" in parts:
            continue
        if fits and student:
            found.append((re.sub(r"[^\w .@-]", "_", student), fits[2], path))
        else:
            strange.append(str(path.relative_to(folder)))
    if strange:
        wanted = "STUDENT/NAME.ipynb or STUDENT_NAME.ipynb, with an assignment's NAME"
        raise ValueError(f"{', '.join(strange):.200}: name submissions {wanted}")
    if not found:
        raise ValueError(f"there is no submission in {str(folder)!r}")
    twice = [x[:2] for i, x in enumerate(found) if x[:2] in [y[:2] for y in found[:i]]]
    if twice:
        raise ValueError(f"{twice[0][0]} has handed in {twice[0][1]} more than once")
    return found


def located(
    release: NotebookNode, submission: NotebookNode
) -> tuple[dict[int, int], list[str]]:
    """Where the released cells are in a submission: by their marks, or if a service has
    dropped the marks by their ids, or by position if as many cells of the same types
    came back.

    Returns:
        position in the submission -> position in the release, and the names of the
        answers whose marks were lost.
    Raises:
        ValueError: an answer is not found in any of these ways; it names it.
    """
    cells = submission.cells
    marked = {str(mark(cell, "grade_id", "")): i for i, cell in enumerate(cells)}
    ids = {cell.get("id"): i for i, cell in enumerate(cells)}
    types = [[c.cell_type for c in book.cells] for book in (submission, release)]
    same_form = set(marked) == {""} and types[0] == types[1]
    places, restored, lost = {}, [], []
    for i, cell in enumerate(release.cells):
        name = mark(cell, "grade_id")
        found = marked.get(name) if name else None
        was_marked = found is not None
        if not was_marked:
            found = ids.get(cell.id, i if same_form else None)
        if found is not None and cells[found].cell_type != cell.cell_type:
            found = None
        if found is not None:
            places[found] = i
        if kind(cell) in ("answer", "written"):
            lost += [name] * (found is None)
            restored += [name] * (found is not None and not was_marked)
    if lost:
        what = "by their marks, their ids or their positions"
        raise ValueError(f"the cells {', '.join(lost)} are not found {what}")
    return places, restored


def rebuilt(
    release: NotebookNode, submission: NotebookNode
) -> tuple[NotebookNode, list[str]]:
    """The released notebook with a student's answers and further code cells in it, and
    the names of the answers whose marks were lost; see `located`.
    """
    places, restored = located(release, submission)
    result = copy.deepcopy(release)
    given, result.cells = result.cells, []
    done_to = 0  # so many of the given cells are in the result
    for i, cell in enumerate(submission.cells):
        if i in places:
            answered = given[places[i]]
            if kind(answered) in ("answer", "written"):
                is_code = answered.cell_type == "code"
                answered.source = cell.source if is_code else harmless(cell.source)
            if kind(answered) in ("answer", "written", "demo"):
                keep_outputs(answered, cell)
            # cells before it that the student has deleted come back
            result.cells += given[done_to : places[i] + 1]
            done_to = max(done_to, places[i] + 1)
        elif cell.cell_type == "code":
            result.cells.append(own_cell(cell))
    result.cells += given[done_to:]
    return result, restored


def harmless(text: str) -> str:
    """A student's Markdown without HTML, which would be run in the browser of whoever
    grades it.
    """
    text = re.sub(r"&(?=[#\w])", "&amp;", text)
    text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)
    return re.sub(r"(java|vb)script\s*:", "", text, flags=re.I)


def own_cell(cell: NotebookNode) -> NotebookNode:
    """A student's own code cell, without marks."""
    import nbformat

    own = nbformat.v4.new_code_cell(cell.source)
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
        assignment -> a row for each of its submissions.
    """
    found = submissions(folder, out)
    root = out.resolve()
    root.mkdir(parents=True, exist_ok=True)
    graders: dict[str, Grader] = {}
    rows: dict[str, list[Row]] = {}
    for student, name, path in bar(found):
        if name not in graders:
            graders[name] = Grader(assignment(name), root)
        rows.setdefault(name, []).append(graders[name].grade(student, path))
    for name, of_one in rows.items():
        write_table(root / f"{name}.csv", of_one)
    return rows


class Grader:
    """Grades the submissions of one assignment in a course folder."""

    def __init__(self, task: Assignment, root: Path) -> None:
        self.task, self.root = task, root
        self.release = released(task.name, root)
        self.checker = task.checker(root)
        self.faults: dict[str, str] = {}  # of the cells of the last submission
        self.api = nbgrader_api(
            root,
            Autograde__sanitize_preprocessors=sanitizers(),
            Autograde__autograde_preprocessors=[run_tests(self), *savers()],
        )

    def grade(self, student: str, path: Path) -> Row:
        """Grade one submission; whatever is wrong with it becomes its row's note."""
        import nbformat

        began, name = time.perf_counter(), self.task.name
        row = Row(student, name, points=self.task.points)
        notes, self.faults = [], {}
        try:
            notebook, restored = rebuilt(self.release, read(path))
            target = self.root / "submitted" / student / name / f"{name}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(nbformat.writes(notebook), encoding="utf-8")
            with warnings.catch_warnings():  # of nbgrader's use of its database
                warnings.simplefilter("ignore")
                done(self.api.autograde(name, student, force=True, create=True))
            row.scores = scores(self.api, self.task, student)
            if restored:
                notes.append(f"lost marks restored: {', '.join(restored)}")
            notes += [f"cell {cell}: {fault}" for cell, fault in self.faults.items()]
        except Exception as error:  # whatever came in, the others are graded
            notes.append(f"not graded: {error or type(error).__name__}")
        row.note = " | ".join(" ".join(note.split()) for note in notes)
        row.seconds = time.perf_counter() - began
        return row

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
        verdicts, self.faults = self.checker.check(cells, self.task.tests)
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
    graded = [mark(c, "grade_id") for c in task.notebook.cells if mark(c, "grade")]
    return {name: found[name] for name in graded}


def write_table(path: Path, rows: list[Row]) -> None:
    """Write the scores as CSV; a cell that a person has still to grade is empty."""
    cells = list(dict.fromkeys(name for row in rows for name in row.scores))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["student", *cells, "score", "points", "seconds", "note"])
        for row in rows:
            given = [row.scores.get(name) for name in cells]
            score = row.score if row.scores else None
            about_row = [score, row.points, f"{row.seconds:.1f}", row.note]
            table.writerow([row.student, *given, *about_row])


# ---- feedback


def read_table(path: Path, task: Assignment, api: NbGraderAPI) -> list[Row]:
    """The rows that `write_table` wrote, with the points that a person has given since
    then.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            row = Row(line["student"], task.name, points=float(line["points"]))
            row.seconds, row.note = float(line["seconds"]), line["note"]
            if line["score"]:  # otherwise it was not graded
                row.scores = scores(api, task, row.student)
            rows.append(row)
    return rows


def feedback(name: str, root: Path) -> list[Path]:
    """Write a page for each graded student: the answers, the points, what the tests
    said, a person's comments. It needs no network, and shows no hidden test. The table
    gets the points that a person has given.

    Args:
        name: the assignment; root: the folder that `grade` wrote.
    """
    task = assignment(name)
    if not list(root.glob(f"autograded/*/{name}")):
        missing = "no submission of it was graded there: run minilib assign grade"
        raise FileNotFoundError(f"{str(root)!r} has no grades for {name}: {missing}")
    api = nbgrader_api(root.resolve(), GenerateFeedback__preprocessors=for_pages())
    done(api.generate_feedback(name, force=True))
    table = root / f"{name}.csv"
    write_table(table, read_table(table, task, api))
    pages = sorted(root.glob(f"feedback/*/{name}/{name}.html"))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if "HIDDEN TESTS" in text:
            page.unlink()
            raise ValueError(f"the page {page} would have shown a hidden test")
        text = SCRIPT.sub("", text).replace("<head>", f"<head>\n{QUIET}", 1)
        page.write_text(text, encoding="utf-8")
    return pages


def for_pages() -> list[type]:
    """nbgrader's steps of feedback, after hidden tests are taken out."""
    from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
    from nbgrader.preprocessors import ClearHiddenTests, GetGrades

    return [ClearHiddenTests, GetGrades, CSSHTMLHeaderPreprocessor]
