"""ARFF, Weka's text format for tables, as far as ASlib uses it.

    % a comment takes a whole line
    @relation 'any name'
    @attribute instance_id STRING
    @attribute runtime NUMERIC              REAL and INTEGER are the same
    @attribute runstatus {ok, timeout}      nominal: one of these words
    @data
    'a name, quoted',1.5,ok
    "another",?,timeout

Keywords in any case. `?` without quotes is a missing value. Quotes are ' or "; inside them a
backslash takes away the meaning of the next character, or writes a line end (\\n, \\r) or a tab.

Not read: sparse rows, dates, relational attributes. They are refused, like any other fault, with
the file and the line.

Source: the Weka manual's chapter on ARFF; Bischl et al., ASlib, arXiv 1506.02465.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from veilrun import atomic
from veilrun.errors import DecodeError, UsageError

Kind = Literal["numeric", "string"] | tuple[str, ...]
"""Of a column; a tuple holds the words that a nominal one may have."""

Value = float | str | None
"""float in a numeric column, str in others, None where the value is missing."""


@dataclass(frozen=True, slots=True)
class Table:
    """names, kinds [n columns]; rows [n rows][n columns].

    lines [n rows]: where in its file each row stood, for messages; empty if it came from none.
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    rows: tuple[tuple[Value, ...], ...]
    lines: tuple[int, ...] = ()


def read(path: Path) -> Table:
    """The table in a file.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        DecodeError: it is not ARFF, or a part of ARFF that is not read.
    """
    try:
        return parse(path.read_bytes().decode("utf-8-sig"), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DecodeError(f"{path} is not UTF-8: byte {error.start}") from error


def parse(text: str, name: str) -> Table:
    """The table in `text`; `name` is what messages call it."""
    columns: list[tuple[str, Kind]] = []
    rows: list[tuple[Value, ...]] = []
    lines: list[int] = []
    in_data = False
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("%"):
            continue
        try:
            if in_data:
                rows.append(_row(line, columns))
                lines.append(number)
            else:
                in_data = _take_header(line, columns)
        except ValueError as error:
            raise DecodeError(f"{name}, line {number}: {error}") from error
    if not in_data:
        raise DecodeError(f"{name} has no @data")
    names, kinds = tuple(name for name, _ in columns), tuple(kind for _, kind in columns)
    return Table(names, kinds, tuple(rows), tuple(lines))


def write(path: Path, relation: str, table: Table) -> None:
    """Write a table, whole or not at all.

    Raises:
        UsageError: two columns have one name.
        StorageError: the disk did not take it.
    """
    if len(set(table.names)) < len(table.names):
        raise UsageError(f"{path.name}: two columns have one name: {', '.join(table.names)}")
    lines = [f"@RELATION {_quoted(relation)}", ""]
    for name, kind in zip(table.names, table.kinds, strict=True):
        shown = kind.upper() if isinstance(kind, str) else f"{{{','.join(map(_quoted, kind))}}}"
        lines.append(f"@ATTRIBUTE {_quoted(name)} {shown}")
    lines += ["", "@DATA", *(",".join(map(_shown, row)) for row in table.rows), ""]
    atomic.write_file(path, "\n".join(lines).encode())


def _take_header(line: str, columns: list[tuple[str, Kind]]) -> bool:
    """Add what the line declares to `columns`; True if it is the @data line."""
    keyword, rest = (*line.split(maxsplit=1), "")[:2]
    keyword = keyword.lower().rstrip(",")  # CPMP-2015 has "@DATA,"
    if keyword == "@attribute":
        found = _ATTRIBUTE.fullmatch(rest)
        if found is None:
            raise ValueError("an attribute needs a name and a type")
        name = _unescaped(found["quoted"][1:-1]) if found["quoted"] else found["bare"]
        if any(name == other for other, _ in columns):
            raise ValueError(f"a second attribute named {name}")
        columns.append((name, _kind(found["kind"].strip())))
    elif keyword not in ("@relation", "@data"):
        raise ValueError(f"neither @relation, @attribute nor @data: {line[:_SHOWN]}")
    return keyword == "@data"


def _kind(text: str) -> Kind:
    if text.lower() in ("numeric", "real", "integer"):
        return "numeric"
    if text.lower() == "string":
        return "string"
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError(f"attributes of type {text[:_SHOWN]} are not read")
    words = _cells(text[1:-1])
    return tuple("?" if word is None else word for word in words)


def _row(line: str, columns: Sequence[tuple[str, Kind]]) -> tuple[Value, ...]:
    if line.startswith("{"):
        raise ValueError("sparse rows are not read")
    cells = _cells(line)
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} values for {len(columns)} attributes")
    return tuple(
        None if cell is None else _value(cell, name, kind)
        for cell, (name, kind) in zip(cells, columns, strict=True)
    )


def _value(cell: str, name: str, kind: Kind) -> Value:
    if kind == "numeric":
        if not _NUMBER.fullmatch(cell):
            raise ValueError(f"{name} is no number: {cell[:_SHOWN]}")
        return float(cell)
    if kind != "string" and cell not in kind:
        raise ValueError(f"{name} is none of {', '.join(kind)}: {cell[:_SHOWN]}")
    return cell


def _cells(line: str) -> list[str | None]:
    """What stands between the commas, without quotes; None for a missing value."""
    if "'" not in line and '"' not in line:
        return [_bare(cell) for cell in line.split(",")]
    cells: list[str | None] = []
    at, is_last = 0, False
    while not is_last:
        found = _CELL.match(line, at)
        if found is None:
            raise ValueError(f"an empty value or a quote out of place at: {line[at:][:_SHOWN]}")
        quoted = found["quoted"]
        cells.append(_unescaped(quoted[1:-1]) if quoted else _bare(found["bare"]))
        at, is_last = found.end(), not found["comma"]
    return cells


def _bare(cell: str) -> str | None:
    cell = cell.strip()
    if not cell:
        raise ValueError("an empty value; a missing one is written ?")
    return None if cell == "?" else cell


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), text)


def _shown(value: Value) -> str:
    if value is None:
        return "?"
    if isinstance(value, str):
        return _quoted(value)
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)


def _quoted(text: str) -> str:
    """`text`, in quotes if anyone could misread it without."""
    if _PLAIN.fullmatch(text):
        return text
    for character, escape in (("\\", "\\\\"), ("'", "\\'"), *_LINE_ENDS):
        text = text.replace(character, escape)
    return f"'{text}'"


_QUOTED: Final = r"""(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ATTRIBUTE: Final = re.compile(rf"(?:{_QUOTED}|(?P<bare>[^\s'\"{{}},]\S*))\s+(?P<kind>\S.*)")
_CELL: Final = re.compile(rf"\s*(?:{_QUOTED}|(?P<bare>[^\s'\",][^,]*))\s*(?:(?P<comma>,)|\Z)")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|nan|inf)", re.I)
_PLAIN: Final = re.compile(r"[\w./:*+=-]+", re.ASCII)
_ESCAPE: Final = re.compile(r"\\(.)")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}
_LINE_ENDS: Final = (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))

_EXACT: Final = 2.0**53
"""Whole numbers below it are written without a point."""

_SHOWN: Final = 60
"""Characters of a bad line that a message repeats."""
