"""ARFF: what is written comes back, and what is not ARFF is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.errors import DecodeError, UsageError
from veilrun.tune import arff
from veilrun.tune.arff import Table

HEAD = (
    "@relation r\n@attribute id STRING\n@attribute x NUMERIC\n@attribute s {ok, 'not ok'}\n@data\n"
)


def test_the_forms_that_aslib_folders_use():
    table = arff.parse(
        "% made by hand\n@RELATION 'a b'\r\n\n"
        "@Attribute instance_id string\n@attribute 'the x' real\n@ATTRIBUTE n INTEGER\n"
        "@attribute A*_probing { ok , timeout, 'mem out' }\n@DATA,\n"
        "a,1.5,2,ok\n  % indented comment\n"
        "'it\\'s, b',?,-3e2,'mem out'\n\"c\\\\d\" , NaN,.5,?\n'?',1,1,timeout\n% \n",
        "hand",
    )
    assert table.names == ("instance_id", "the x", "n", "A*_probing")
    assert table.kinds == ("string", "numeric", "numeric", ("ok", "timeout", "mem out"))
    assert table.rows[0] == ("a", 1.5, 2.0, "ok")
    assert table.rows[1] == ("it's, b", None, -300.0, "mem out")
    assert table.rows[2][0] == "c\\d" and table.rows[2][1] != table.rows[2][1]
    assert table.rows[3][0] == "?"
    assert table.lines == (9, 11, 12, 13)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (HEAD + "a,1,ok\nb,1\n", 7, "2 values for 3"),
        (HEAD + "a,one,ok\n", 6, "x is no number"),
        (HEAD + "a,1_0,ok\n", 6, "x is no number"),
        (HEAD + "a,1,fine\n", 6, "s is none of ok, not ok"),
        (HEAD + "a,,ok\n", 6, "empty value"),
        (HEAD + "'a,1,ok\n", 6, "quote"),
        (HEAD + "'a'b,1,ok\n", 6, "quote"),
        (HEAD + "'a',,ok\n", 6, "empty value"),
        (HEAD + "'a',1,ok,\n", 6, "empty value"),
        (HEAD + "{0 a, 1 2}\n", 6, "sparse"),
        ("@relation r\n@attribute d DATE\n@data\n", 2, "DATE"),
        ("@relation r\n@attribute x\n@data\n", 2, "name and a type"),
        ("@relation r\n@attribute\n@data\n", 2, "name and a type"),
        ("@relation r\n@attribute x REAL\n@attribute x REAL\n@data\n", 3, "second attribute"),
        ("@relation r\nid,x\n", 2, "neither"),
    ],
)
def test_what_is_not_arff_is_refused_with_its_line(text: str, line: int, why: str):
    with pytest.raises(DecodeError, match=f"hand, line {line}: .*{why}"):
        arff.parse(text, "hand")


def test_other_faults(tmp_path: Path):
    with pytest.raises(DecodeError, match="no @data"):
        arff.parse("@relation r\n", "hand")
    with pytest.raises(UsageError, match="cannot read"):
        arff.read(tmp_path / "none.arff")
    (tmp_path / "latin.arff").write_bytes(b"@relation r\xe9\n@data\n")
    with pytest.raises(DecodeError, match="not UTF-8"):
        arff.read(tmp_path / "latin.arff")
    with pytest.raises(UsageError, match="one name"):
        arff.write(tmp_path / "t.arff", "r", Table(("a", "a"), ("numeric", "numeric"), ()))


names = st.text(min_size=1, max_size=8)
words = st.one_of(
    st.none(), st.sampled_from(["?", "", "%", "a b", "é\u2028", "\\n'\n\r\t\""]), names
)
numbers = st.one_of(st.none(), st.floats(allow_nan=False))


@given(
    columns=st.lists(names, min_size=3, max_size=3, unique=True),
    kinds=st.lists(names, min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_what_is_written_comes_back(tmp_path_factory, columns, kinds, data):
    row = st.tuples(words, numbers, st.one_of(st.none(), st.sampled_from(kinds)))
    rows = data.draw(st.lists(row, max_size=4))
    table = Table(tuple(columns), ("string", "numeric", tuple(kinds)), tuple(rows))
    path = tmp_path_factory.mktemp("arff") / "t.arff"
    arff.write(path, "any name", table)
    back = arff.read(path)
    assert (back.names, back.kinds, back.rows) == (table.names, table.kinds, table.rows)


@given(cut=st.integers(0, 80), byte=st.integers(0, 255))
def test_damage_is_a_decode_error_and_nothing_else(cut: int, byte: int):
    content = (HEAD + "'a b',1.5,ok\nc,?,'not ok'\n").encode()
    damaged = content[:cut] + bytes([byte]) + content[cut + 1 :]
    try:
        arff.parse(damaged.decode("utf-8", errors="replace"), "hand")
    except DecodeError:
        pass
