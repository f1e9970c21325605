"""Records as one flat Parquet file: what a data set is published as. Needs pyarrow.

A row per record, in order. Columns:

    task, arm, status                           texts
    version                                     int64, of the collecting code
    model.x, machine.x, workload.x              float64 or text
    outcome.x                                   float64

A name that a record does not have is null in its row. Compressed with zstd. Every page carries a
checksum, so that damaged values are found rather than read; the format has none for the footer,
where the columns' names are.

Source: Apache Parquet format 2.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from veilrun import atomic
from veilrun.errors import DecodeError, UsageError
from veilrun.tune.records import LABELS, Record, from_fields, to_fields


def write(path: Path, records: Sequence[Record]) -> None:
    """Write records, whole or not at all.

    Raises:
        UsageError: a name is a number in one record and a word in another.
        StorageError: the disk did not take it.
    """
    rows = [_flat(record) for record in records]
    names = dict.fromkeys(_HEAD)  # these come first, and are there in an empty file too
    names |= dict.fromkeys(sorted({name for row in rows for name in row if name not in _HEAD}))
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    content = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        content,
        compression="zstd",
        write_page_checksum=True,
        store_schema=False,
    )
    atomic.write_file(path, content.getvalue())


def read(path: Path) -> tuple[Record, ...]:
    """The records in a file.

    Raises:
        UsageError: there is no such file, or its records are of another version, which is named.
        DecodeError: it is not Parquet, is damaged, or has other columns.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        table.validate(full=True)
        _demand_columns(path, table.schema)
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DecodeError(f"{path} is no Parquet file, or damaged: {error}") from error
    return tuple(
        from_fields(_nested(row), f"{path}, row {number}") for number, row in enumerate(rows, 1)
    )


def _flat(record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in to_fields(record).items():
        if name in _PARTS:
            flat |= {f"{name}.{entry}": one for entry, one in value.items()}
        else:
            flat[name] = value
    return flat


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {name: row[name] for name in _HEAD} | {part: {} for part in _PARTS}
    for name, value in row.items():
        part, dot, entry = name.partition(".")
        if dot and value is not None:
            nested[part][entry] = value
    return nested


def _column(name: str, values: Sequence[Any]) -> Any:
    kind = _HEAD.get(name) or (
        pa.string() if any(isinstance(value, str) for value in values) else pa.float64()
    )
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(f"{name} is a number in one record and a word in another") from error


def _demand_columns(path: Path, schema: Any) -> None:
    for name, kind in _HEAD.items():
        if name not in schema.names or schema.field(name).type != kind:
            raise DecodeError(f"{path} has no column {name} of {kind}")
    for field in schema:
        part, dot, _ = field.name.partition(".")
        kinds = [pa.float64()] if part == "outcome" else [pa.float64(), pa.string()]
        if field.name not in _HEAD and not (dot and part in _PARTS and field.type in kinds):
            raise DecodeError(f"{path}: a column {field.name} of {field.type} is none of ours")
    if len(set(schema.names)) < len(schema.names):
        raise DecodeError(f"{path}: two columns have one name")


_HEAD: Final = {
    "task": pa.string(),
    "arm": pa.string(),
    "status": pa.string(),
    "version": pa.int64(),
}
_PARTS: Final = (*LABELS, "outcome")
