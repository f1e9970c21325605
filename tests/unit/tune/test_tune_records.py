"""Records: the journal survives crashes, the table follows its rules, Parquet gives all back."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.errors import DecodeError, StorageError, UsageError
from veilrun.tune import records
from veilrun.tune.records import Journal, Record, check_machine, to_scenario
from veilrun.tune.scenario import Scale, Status

DEFAULT, OTHER, THIRD = "continuous-16", "single", "static-16"


def record(task: str = "t", arm: str = DEFAULT, latency_s: float | None = 1.0, **changed: Any):
    """A run that took `latency_s`; None: it timed out."""
    fields: dict[str, Any] = {
        "model": {"name": "m", "n_layers": 4.0},
        "machine": {"name": "box", "log_gflops": 5.0},
        "workload": {"kind": "chat", "text": "chats", "share": 0.5},
        "outcome": {} if latency_s is None else {"latency_s": latency_s, "exact": 1.0},
        "status": Status.TIMEOUT if latency_s is None else Status.OK,
    }
    return Record(task, arm, **(fields | changed))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": 7}, f"{DEFAULT} on t: recorded by version 7"),
        ({"status": Status.MISSING}, "nobody made"),
        ({"model": {"n_layers": 4.0}}, "model has no word name"),
        ({"machine": {"name": 3.0}}, "machine has no word name"),
        ({"workload": {"name": "chat"}}, "workload has no word kind"),
        ({"model": {"name": "m", "x": math.nan}}, "x is neither"),
        ({"model": {"name": "m", "x": True}}, "x is neither"),
        ({"model": {"name": "m", "x": None}}, "x is neither"),
        ({"outcome": {}}, "without latency_s"),
        ({"outcome": {"latency_s": 0.0}}, "without latency_s"),
        ({"outcome": {"latency_s": math.inf}}, "latency_s is neither"),
        ({"outcome": {"latency_s": 1.0, "exact": "yes"}}, "a word among"),
    ],
)
def test_a_record_that_cannot_be_is_refused(changed: dict, why: str):
    with pytest.raises(UsageError, match=why):
        record(**changed)


# --- the journal


def test_a_journal_gives_back_what_was_appended(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    assert journal.read() == () and not path.exists()
    made = (record(), record(arm=OTHER, latency_s=None), record("é\n\u2028", latency_s=0.1))
    for one in made:
        journal.append(one)
    for same in (journal, Journal(path)):
        assert same.read() == made
        assert same.has("t", OTHER) and not same.has("t", THIRD)
    assert path.read_bytes().count(b"\n") == 3


def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append(record("a"))
    first = path.read_bytes()
    Journal(path).append(record("b", latency_s=None))
    whole = path.read_bytes()
    for end in range(len(first), len(whole)):
        path.write_bytes(whole[:end])
        journal = Journal(path)
        assert [one.task for one in journal.read()] == ["a"] and not journal.has("b", DEFAULT)
    journal.append(record("c"))
    assert [one.task for one in Journal(path).read()] == ["a", "c"]
    path.write_bytes(first[:-1])
    assert Journal(path).read() == ()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "line 1 is not JSON"),
        (b"\xff", "line 1 is not JSON"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b"{}", "line 1 is no record"),
        (b"[1]", "line 1 is no record"),
    ],
)
def test_damage_elsewhere_is_named(tmp_path: Path, line: bytes, why: str):
    path = tmp_path / "journal.jsonl"
    Journal(path).append(record())
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(DecodeError, match=why):
        Journal(path)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("task", 3, "task, arm or status"),
        ("status", "fine", "task, arm or status"),
        ("status", "missing", "nobody made"),
        ("model", [], "names and values"),
        ("model", {"name": "m", "x": []}, "x is neither"),
        ("model", {"name": "m", "x": 10**400}, "x is neither"),
        ("outcome", {"latency_s": None}, "latency_s is neither"),
        ("version", "1", "version is no number"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, name: str, value: Any, why: str):
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(records.to_fields(record()) | {name: value}) + "\n")
    with pytest.raises(DecodeError, match=f"line 1: .*{why}"):
        Journal(path)


def test_a_journal_of_another_version_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(records.to_fields(record()) | {"version": 1}) + "\n")
    with pytest.raises(UsageError, match=f"line 1: {DEFAULT} on t: recorded by version 1"):
        Journal(path)


def test_two_writers_do_not_overwrite_each_other(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    one, other = Journal(path), Journal(path)
    one.append(record("a"))
    with pytest.raises(StorageError, match="another process"):
        other.append(record("b"))
    one.append(record("c"))
    assert [each.task for each in Journal(path).read()] == ["a", "c"]


def test_what_cannot_be_kept_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(StorageError, match="cannot write"):
        Journal(tmp_path / "none" / "journal.jsonl").append(record())
    with pytest.raises(StorageError, match="cannot read"):
        Journal(tmp_path)
    journal = Journal(tmp_path / "journal.jsonl")

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StorageError, match="No space left"):
        journal.append(record())
    assert not journal.has("t", DEFAULT) and journal.read() == ()


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(deadline=None)
def test_any_damaged_byte_is_found_or_harmless(tmp_path_factory, at: int, byte: int):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    for task in "abc":
        Journal(path).append(record(task))
    content = bytearray(path.read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content)
    try:
        Journal(path)
    except (DecodeError, UsageError):  # a damaged version is another version
        pass


# --- the table


def test_the_table_of_some_records():
    slow = {"name": "slow", "log_gflops": 2.0}
    made = [
        record("a", latency_s=2.0),
        record("a", OTHER, latency_s=None),
        record("b", OTHER, latency_s=3.0, machine=slow),
        record("b", latency_s=4.0, machine=slow),
        record("b", THIRD, machine=slow, status=Status.NOT_APPLICABLE, outcome={}),
        record("a", latency_s=1.0),  # measured again: the later counts
    ]
    gathered = to_scenario(made, "tried", None, DEFAULT)
    table = gathered.scenario
    assert gathered.left_out == ()
    assert (table.name, table.scale, table.default) == ("tried", Scale.LATENCY, DEFAULT)
    assert table.tasks == ("a", "b") and table.arms == (DEFAULT, OTHER, THIRD)
    np.testing.assert_array_equal(table.results, [[1, np.nan, np.nan], [4, 3, np.nan]])
    assert table.status.tolist() == [
        [Status.OK, Status.TIMEOUT, Status.MISSING],
        [Status.OK, Status.OK, Status.NOT_APPLICABLE],
    ]
    assert table.feature_names == ("machine.log_gflops", "model.n_layers", "workload.share")
    np.testing.assert_array_equal(table.features, [[5, 4, 0.5], [2, 4, 0.5]])
    assert table.groups == {
        "model": ("m", "m"),
        "machine": ("box", "slow"),
        "workload": ("chat", "chat"),
    }
    assert table.task_texts == ("m; box; chats", "m; slow; chats")
    assert len(table.arm_texts) == 3 and "static batching" in table.arm_texts[2]


def test_chosen_arms_come_in_their_order_and_others_are_not_looked_at():
    made = [record(), record(arm=OTHER), record(arm=THIRD, model={"name": "elsewhere"})]
    table = to_scenario(made, "x", (OTHER, "static-16-int8", DEFAULT), DEFAULT).scenario
    assert table.arms == (OTHER, "static-16-int8", DEFAULT)
    assert table.status.tolist() == [[Status.OK, Status.MISSING, Status.OK]]


def test_a_task_without_the_default_arm_is_left_out_by_name():
    made = [record("a"), record("b", OTHER), record("c", latency_s=None), record("c", OTHER)]
    gathered = to_scenario(made, "x", None, DEFAULT)
    assert gathered.scenario.tasks == ("a",)
    assert gathered.left_out == tuple(
        f"{task}: no run of the default arm {DEFAULT} that was ok" for task in "bc"
    )


def test_a_task_with_other_features_is_left_out_by_name():
    odd = record("b", model={"name": "m", "n_heads": 4.0})
    gathered = to_scenario([odd, record("a"), record("c")], "x", None, DEFAULT)
    assert gathered.scenario.tasks == ("a", "c")
    (reason,) = gathered.left_out
    assert reason.startswith("b: ") and "model.n_heads" in reason and "model.n_layers" in reason


def test_records_that_contradict_each_other_are_refused():
    for part in ("model", "machine", "workload"):
        changed = {**getattr(record(), part), "more": 1.0}
        for arm in (DEFAULT, OTHER):
            with pytest.raises(UsageError, match="two records of t differ"):
                to_scenario([record(), record(arm=arm, **{part: changed})], "x", None, DEFAULT)


def test_what_gives_no_table_is_refused():
    with pytest.raises(UsageError, match="default arm"):
        to_scenario([record(arm=OTHER)], "x", None, DEFAULT)
    with pytest.raises(UsageError, match="no task is left"):
        to_scenario([], "x", (DEFAULT,), DEFAULT)
    with pytest.raises(UsageError, match=r"no task is left\. t: no run of the default"):
        to_scenario([record(latency_s=None)], "x", None, DEFAULT)


def test_a_machine_unlike_those_measured_is_remarked_on():
    def of(task: str, log_gflops: float, flag: float) -> Record:
        about = {"name": task, "log_gflops": log_gflops, "avx": flag}
        return record(task, machine=about)

    table = to_scenario([of("a", 4.0, 0.0), of("b", 6.0, 0.0)], "x", None, DEFAULT).scenario
    assert check_machine(table, {"machine.log_gflops": 7.0, "machine.avx": 0.0}) == []
    assert check_machine(table, {"machine.log_gflops": 3.0, "machine.avx": 1.0}) == [
        "avx 1 is outside 0..0"
    ]
    assert check_machine(table, {"machine.log_gflops": 7.1, "machine.avx": 0.0}) == [
        "gflops 137 is outside 16..64"
    ]
    assert check_machine(table, {"machine.log_gflops": 2.9}) == [
        "avx is not known of this machine",
        "gflops 7.46 is outside 16..64",
    ]


# --- Parquet


def several() -> list[Record]:
    return [
        record("a", machine={"name": "box", "log_gflops": 5, "isa": "avx2"}),
        record("b", OTHER, latency_s=None),
        record("é", THIRD, latency_s=1e-300, model={"name": "m", "a.b": -0.0}),
    ]


@pytest.mark.parametrize("n_records", [0, 1, 3])
def test_parquet_gives_back_what_was_written(tmp_path: Path, n_records: int):
    parquet = pytest.importorskip("veilrun.tune.parquet", exc_type=ImportError)
    path = tmp_path / "records.parquet"
    parquet.write(path, several()[:n_records])
    assert parquet.read(path) == tuple(several()[:n_records])
    assert [one.name for one in tmp_path.iterdir()] == ["records.parquet"]


def test_parquet_is_flat_and_compressed(tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    from veilrun.tune import parquet

    parquet.write(tmp_path / "r.parquet", several())
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.column_names[:4] == ["task", "arm", "status", "version"]
    assert table.column("machine.isa").to_pylist() == ["avx2", None, None]
    assert table.column("outcome.latency_s").to_pylist() == [1.0, None, 1e-300]
    assert (
        pq.ParquetFile(tmp_path / "r.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    )


def test_parquet_refuses_what_is_not_ours(tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from veilrun.tune import parquet

    path = tmp_path / "r.parquet"
    parquet.write(path, several())
    good = pq.read_table(path)
    at = good.column_names.index("version")
    bad = {
        "no column version": good.drop_columns(["version"]),
        "no column version of int64": good.set_column(at, "version", pa.array([1.0] * 3)),
        "none of ours": good.append_column("extra", pa.array([1.0] * 3)),
        "model.x of int64 is none": good.append_column("model.x", pa.array([1, 2, 3])),
        "outcome.x of string is none": good.append_column("outcome.x", pa.array(["a"] * 3)),
        "row 1: task, arm or status": good.set_column(0, "task", pa.nulls(3, pa.string())),
        "row 1: version is no": good.set_column(at, "version", pa.nulls(3, pa.int64())),
        "row 1: a: model has no word name": good.drop_columns(["model.name"]),
    }
    for why, table in bad.items():
        pq.write_table(table, path, store_schema=False)
        with pytest.raises(DecodeError, match=why):
            parquet.read(path)
    pq.write_table(good.set_column(at, "version", pa.array([1, 1, 1])), path)
    with pytest.raises(UsageError, match=r"row 1: .* on a: recorded by version 1"):
        parquet.read(path)
    with pytest.raises(UsageError, match="cannot read"):
        parquet.read(tmp_path / "none.parquet")
    mixed = [record("a"), replace(record("b"), model={"name": "m", "n_layers": "four"})]
    with pytest.raises(UsageError, match="a number in one record"):
        parquet.write(path, mixed)


def test_damaged_parquet_is_a_decode_error_and_nothing_else(tmp_path: Path):
    parquet = pytest.importorskip("veilrun.tune.parquet", exc_type=ImportError)
    path = tmp_path / "r.parquet"
    made = tuple(several())
    parquet.write(path, made)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    n_found = 0
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
        try:
            assert parquet.read(path) == made or at >= footer  # names have no checksum
        except DecodeError:
            n_found += 1
    assert n_found > len(content) / 9
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(DecodeError):
            parquet.read(path)
