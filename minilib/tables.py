"""Tables of sound files: every form of the Hugging Face audiofolder convention, read
strictly. Every fault is reported, with file and line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# the first of these that exists is read
TABLES = (
    *("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet"),
    "manifest.csv",
)
FILE_COLUMNS = ("file_name", "audio_file_name", "file")
CAPTION_COLUMNS = ("caption", "text")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
# folder names of the audiofolder convention, and the value of `part` each stands for
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "dev", "val"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class Row(dict[str, str]):
    """A row of a table: its columns, and where it was read."""

    def __init__(self, columns: dict[str, str], table: Path, place: str, file: str):
        super().__init__(columns)
        self.table, self.file = table, file
        self.place = place  # "folder/metadata.csv, line 3"
        path = table.parent / file
        # a path written on Windows, unless a file really has this name
        if "\\" in file and not os.path.exists(path):
            path = table.parent / file.replace("\\", "/")
        self.path = path  # path of the sound file


def find(folder: Path) -> list[Path]:
    """The table of a folder, or the tables of the folders directly below it."""
    if not folder.is_dir():
        is_file = f"{str(folder)!r} is a file, not a folder with a table of recordings"
        missing = f"there is no folder {str(folder)!r}"
        raise FileNotFoundError(is_file if folder.is_file() else missing)
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    for folders in ([folder], below):
        tables = [
            next((path / name for name in TABLES if (path / name).is_file()), None)
            for path in folders
        ]
        if any(tables):
            return [table for table in tables if table]
    others = ", ".join(TABLES[1:])
    raise FileNotFoundError(
        f"the folder {str(folder)!r} has no {TABLES[0]} (nor {others}), and neither "
        f"has any folder directly below it"
    )


def read(tables: list[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all tables, each with the columns of all tables, and all faults."""
    rows: list[Row] = []
    faults: list[str] = []
    for table in tables:
        try:
            rows += read_one(table, len(tables) > 1, faults)
        except (ValueError, OSError) as error:
            faults.append(str(error))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for row in rows:
        missing = {column: "" for column in columns if column not in row}
        row.update(missing)
    return rows, faults


def read_one(table: Path, split: bool, faults: list[str]) -> list[Row]:
    """The rows of a table; faults of single rows are added to `faults`."""
    before = len(faults)
    cells = list(READERS[table.suffix](table, faults))
    if not cells and len(faults) == before:
        raise ValueError(f"{table} has no rows")
    columns = list(dict.fromkeys(column for _, row in cells for column in row))
    file = next((column for column in FILE_COLUMNS if column in columns), None)
    if file is None and cells:
        raise ValueError(
            f"{table} has columns {', '.join(columns)}, but no column 'file_name'"
        )
    rows = []
    for place, row in cells:
        texts = {column: _as_text(value) for column, value in row.items()}
        if wrong := _wrong(row, file):
            faults.append(f"{table}, {place}: {wrong}")
            continue
        if split and not texts.get("part"):
            name = table.parent.name
            texts["part"] = PARTS.get(name.lower(), name)
        rows.append(Row(texts, table, f"{table}, {place}", texts[file].strip()))
    return rows


def _wrong(row: dict[str, Any], file: str) -> str | None:
    """What is wrong with the values of a row, or None."""
    for column in (file, *CAPTION_COLUMNS):
        if isinstance(row.get(column), (list, dict, bytes)):
            kind = type(row[column]).__name__
            return f"the {column} must be text, not {kind} {row[column]!r:.40}"
    return None if _as_text(row.get(file)).strip() else f"no {file}"


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)


def _text(table: Path) -> str:
    """The text of a table, in UTF-8 or, with a byte-order mark, UTF-16."""
    marked = table.read_bytes()
    utf16 = marked.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return marked.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = marked.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{table}, line {line}: a table must be text in UTF-8 (or in UTF-16 with a "
            f"byte-order mark): {error}"
        ) from error


def _csv_rows(table: Path, faults: list[str]) -> Iterator[tuple[str, dict]]:
    """Rows of values separated by commas, semicolons or tabs, as in the header line; a
    row that is ambiguous is a fault.
    """
    text = _text(table)
    delimiter, columns = _layout(text)
    twice = [name for name, n in Counter(columns).items() if name and n > 1]
    if twice:
        raise ValueError(f"{table} has two columns named {twice[0]!r}")
    reader, headed = _reader(text, delimiter), False
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            wrong = f"a quote is not closed, or text follows the closing one ({error})"
            faults.append(f"{table}, {place}: {wrong}")
            continue
        if fields is None:
            return
        if not any(map(str.strip, fields)):
            continue
        if headed and (wrong := _misfit(fields, columns, delimiter)):
            faults.append(f"{table}, {place}: {wrong}")
        elif headed:
            yield place, {name: x for name, x in zip(columns, fields) if name}
        headed = True


def layout(table: Path) -> tuple[str, list[str]]:
    """What separates the columns of a table, and their names, from its first line."""
    with table.open(encoding="utf-8-sig") as file:
        return _layout(file.readline())


def _layout(text: str) -> tuple[str, list[str]]:
    delimiter = max(DELIMITERS, key=lambda x: _likely(_header(text, x)))
    return delimiter, _header(text, delimiter)


def _reader(text: str, delimiter: str) -> Iterator[list[str]]:
    how = {"delimiter": delimiter, "strict": True, "skipinitialspace": True}
    return csv.reader(io.StringIO(text, newline=""), **how)


def _header(text: str, delimiter: str) -> list[str]:
    """The columns that the first line names if this delimiter separates them."""
    try:
        rows = _reader(text, delimiter)
        first = next((row for row in rows if any(map(str.strip, row))), [])
    except csv.Error:
        return []
    return [name.strip() for name in first]


def _likely(columns: list[str]) -> tuple[bool, int]:
    return not set(columns).isdisjoint(FILE_COLUMNS), len(columns)


def _misfit(fields: list[str], columns: list[str], delimiter: str) -> str | None:
    """Why the fields do not form a row of these columns, or None."""
    if len(fields) != len(columns):
        given = f"{len(fields)} field{'s' * (len(fields) != 1)}"
        return (
            f"{given} for {len(columns)} columns ({', '.join(columns)}); a field "
            f"that holds a {DELIMITERS[delimiter]} must be quoted"
        )
    for i, (column, value) in enumerate(zip(columns, fields)):
        # the first column may be the row's number, as pandas writes it
        if i > 0 and not column and value.strip():
            return f"{value!r} is in a column without a name"
        if column in (*FILE_COLUMNS, *CAPTION_COLUMNS) and re.search(r"[\r\n]", value):
            return f"the {column} spans several lines; is a closing quote missing?"
    return None


KINDS = {list: "a list", str: "a string", int: "a number", float: "a number"}
KINDS |= {bool: "true or false", type(None): "null"}  # JSON values that are not objects


def _json_rows(table: Path, faults: list[str]) -> Iterator[tuple[str, dict]]:
    """Rows of a table that has one JSON object per line."""
    for i, line in enumerate(_text(table).split("\n")):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
            if not isinstance(row, dict):
                raise ValueError(KINDS[type(row)])
        except (ValueError, RecursionError) as error:
            wrong = f'must be a JSON object, such as {{"file_name": ...}}: {error}'
            faults.append(f"{table}, line {i + 1}: {wrong}")
        else:
            yield f"line {i + 1}", row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    if twice := [name for name, n in counts.items() if n > 1]:
        raise ValueError(f"{twice[0]!r} appears twice")
    return dict(pairs)


def _parquet_rows(table: Path, faults: list[str]) -> Iterable[tuple[str, dict]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(
            f"reading {table} needs pyarrow, which is not installed: pip install "
            f"pyarrow, or save the table as metadata.csv"
        ) from error
    try:
        rows = parquet.read_table(table).to_pylist()
    except Exception as error:  # pyarrow raises kinds of its own
        raise ValueError(f"{table} is not a Parquet table: {error}") from error
    return ((f"row {i + 1}", row) for i, row in enumerate(rows))


READERS = {".csv": _csv_rows, ".tsv": _csv_rows}
READERS |= {".jsonl": _json_rows, ".parquet": _parquet_rows}


def captions(rows: list[Row], needed: bool) -> tuple[list[str], list[str]]:
    """The captions of the rows, and a sentence for each that is missing."""
    known = rows[0] if rows else CAPTION_COLUMNS
    column = next((name for name in CAPTION_COLUMNS if name in known), None)
    captions = [row[column].strip() if column else "" for row in rows]
    if not needed:
        return captions, []
    if column is None:
        columns = ", ".join(rows[0])
        wrong = f"{rows[0].table} has columns {columns}, but no column 'caption'"
        return captions, [f"{wrong} (nor 'text')"]
    return captions, [
        f"{row.place}: no caption for {row.file!r}"
        for row, caption in zip(rows, captions)
        if not caption
    ]


def missing(rows: list[Row]) -> list[str]:
    """A sentence for each row whose file is missing."""
    return [
        f"{row.place}: the file {row.file!r} is missing"
        for row in rows
        if not os.path.isfile(row.path)  # False also for a name that is too long
    ]
