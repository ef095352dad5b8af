"""A page of feedback for one student: answers, points, what the tests said, comments.

It is one HTML file that needs no network and runs no script. Formulas become MathML
through docutils; where that is missing they stay as they were typed.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minilib.assign.checker import HIDDEN

# tells a browser to run no script on a page and to load nothing
ALLOWED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TAGS = (
    "p br em strong code pre ul ol li h1 h2 h3 h4 blockquote table thead tbody tr th td"
)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)((?:\\.|[^$\\])+?)(?<!\s)\$", re.S)
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
ACCENT = re.compile(r"\\(bar|hat|tilde|vec|dot)\s*(\\[a-zA-Z]+|[a-zA-Z])")
PLACE = "FORMULA{}PLACE"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 48rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; font-size: 14px; }
pre.said { white-space: pre-wrap; }
.passed, .failed, .waits, .comment { border-left: 5px solid; padding: .3rem .7rem;
  margin: .6rem 0; }
.passed { border-color: #1a7f37; background: #e9f7ec; }
.failed { border-color: #b3261e; background: #fdecea; }
.waits { border-color: #9a6700; background: #fff6dd; }
.comment { border-color: #0550ae; background: #eaf2fd; }
table { border-collapse: collapse; }
td, th { border: 1px solid #ccc; padding: .2rem .6rem; }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; color: #555; }
"""


@dataclass(frozen=True)
class Grade:
    """The points of one graded cell."""

    score: float | None  # None: a person has still to give them
    points: float  # the most
    comment: str = ""


def page(
    title: str, student: str, cells: Sequence[Any], kinds: Sequence[str], grades: dict
) -> str:
    """The page of one student.

    Args:
        title: of the assignment.
        cells: of the graded notebook; kinds: what each is for (`course.kind`).
        grades: name of a graded cell -> `Grade`, in order.
    """
    total = sum(grade.score or 0 for grade in grades.values())
    most = sum(grade.points for grade in grades.values())
    waiting = [name for name, grade in grades.items() if grade.score is None]
    so_far = " so far" if waiting else ""
    head = f"{html.escape(title)}: {html.escape(student)}"
    rows = [
        f"<tr><td>{link(name)}</td><td>{scored(grade)}</td></tr>"
        for name, grade in grades.items()
    ]
    parts = [f"<h1>{head}</h1>", f"<p><strong>{total:g} of {most:g} points{so_far}"]
    parts += ["</strong></p><table>", *rows, "</table>"]
    for cell, kind in list(zip(cells, kinds))[1:]:  # the page has its own title
        parts.append(shown(cell, kind, grades))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8" />
<meta http-equiv="Content-Security-Policy" content="{ALLOWED}" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>{head}</title><style>{STYLE}</style></head>
<body>
{chr(10).join(parts)}
</body></html>
"""


def scored(grade: Grade) -> str:
    """The points of a cell in words."""
    if grade.score is None:
        return f"waiting for the instructor (up to {grade.points:g})"
    return f"{grade.score:g} of {grade.points:g}"


def link(name: str) -> str:
    """The name of a graded cell, which leads to its place on the page."""
    plain = html.escape(name)
    return f'<a href="#{plain}">{plain.removeprefix("test_")}</a>'


def shown(cell: Any, kind: str, grades: dict[str, Grade]) -> str:
    """One cell of the page."""
    marks = cell.metadata.get("nbgrader") or {}
    name = marks.get("grade_id", "")
    if kind in ("given", "demo") and not marks.get("solution"):
        outputs = pictures(cell)
        source = HIDDEN.sub("", cell.source)
        code = f"<details><summary>given code</summary>{listing(source)}</details>"
        return (code if kind == "given" else "") + outputs
    if kind == "test":
        return tested(cell, name, grades[name])
    if cell.cell_type == "code":
        return listing(cell.source) + pictures(cell)
    text = markdown(cell.source, cell.get("attachments", {}))
    if kind != "written":
        return text
    grade = grades[name]
    style = "waits" if grade.score is None else "comment"
    said = f'<div class="{style}">{html.escape(name)}: {scored(grade)}</div>'
    return f'<section id="{html.escape(name)}">{text}{said}{comment(grade)}</section>'


def tested(cell: Any, name: str, grade: Grade) -> str:
    """What the tests said of one function."""
    function = html.escape(name.removeprefix("test_"))
    said = "".join(
        "\n".join(x.traceback) if x.output_type == "error" else ""
        for x in cell.get("outputs", [])
    )
    printed = "".join(x.text for x in cell.get("outputs", []) if "text" in x)
    failed = any(x.output_type == "error" for x in cell.get("outputs", []))
    verdict = f"Not passed: {html.escape(said)}" if failed else "Passed."
    style = "failed" if failed else "passed"
    box = f'<div class="{style}"><strong>{function}, {scored(grade)}.</strong> '
    box += f"{verdict}</div>"
    if failed and printed.strip():
        box += f'<pre class="said">{html.escape(printed)}</pre>'
    source = HIDDEN.sub("", cell.source).strip()
    code = f"<details><summary>the checks shown</summary>{listing(source)}</details>"
    return f'<section id="{html.escape(name)}">{box}{comment(grade)}{code}</section>'


def comment(grade: Grade) -> str:
    """What a person has written about an answer."""
    if not grade.comment:
        return ""
    return f'<div class="comment">Comment: {html.escape(grade.comment)}</div>'


def listing(source: str) -> str:
    """Code, as it is."""
    return f"<pre><code>{html.escape(source)}</code></pre>"


def pictures(cell: Any) -> str:
    """The pictures and texts that a cell put out."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        kinds = [x for x in ("image/png", "image/jpeg") if x in data]
        if kinds:
            parts.append(picture(kinds[0], data[kinds[0]], "output of the cell"))
        elif "text" in output:
            parts.append(f'<pre class="said">{html.escape(output.text)}</pre>')
    return "".join(parts)


def picture(kind: str, data: Any, about: str) -> str:
    """A picture inside the page."""
    code = re.sub(r"[^\w+/=]", "", "".join(data))
    return f'<img alt="{html.escape(about)}" src="data:{kind};base64,{code}" />'


def markdown(text: str, attachments: dict[str, dict]) -> str:
    """Markdown as HTML, with formulas as MathML; without links and foreign pictures."""
    import bleach
    from nbconvert.filters import markdown2html

    formulas: list[str] = []

    def keep(found: re.Match) -> str:
        formulas.append(formula(found[1] or found[2], found[1] is not None))
        return PLACE.format(len(formulas) - 1)

    parts = CODE.split(text)  # what stands between backticks is no formula
    parts[::2] = [FORMULA.sub(keep, part) for part in parts[::2]]
    result = markdown2html("".join(parts)).replace("&#182;", "")
    result = bleach.clean(result, tags=TAGS.split(), attributes={}, strip=True)
    for i, x in enumerate(formulas):
        result = result.replace(PLACE.format(i), x)
    for name, bundle in attachments.items():
        kind = next(iter(bundle), "")
        if kind in ("image/png", "image/jpeg"):
            result += picture(kind, bundle[kind], name)
    return result


@functools.lru_cache(maxsize=2000)
def formula(tex: str, block: bool = False) -> str:
    """A formula as MathML, or as it was typed where that can't be made."""
    try:
        from docutils.utils.math.latex2mathml import tex2mathml

        # what docutils does not know, or sets in another way than TeX
        plain = re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])", "", tex)
        plain = re.sub(r"\\dots(?![a-zA-Z])", r"\\ldots ", plain)
        plain = ACCENT.sub(r"{\\\1{\2}{}}", plain)
        result = tex2mathml(plain.strip(), as_block=block)
        return result.replace(">\u02c9</mo>", ">_</mo>")  # a bar clear of its letter
    except Exception:  # docutils is missing, or a student's formula is none
        return f"<code>{html.escape(tex)}</code>"
