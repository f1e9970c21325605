"""ASlib folders: the real ones, ones with every oddity, our own, and ones that contradict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.errors import DecodeError, UsageError
from veilrun.tune import arff, aslib
from veilrun.tune.scenario import Scale, Scenario, Status

DESCRIPTION = """
scenario_id: BY-HAND
performance_measures: PAR10
maximize: false
performance_type: runtime
algorithm_cutoff_time: 100
algorithms_deterministic:
  - 010
  - never
algorithms_stochastic:
feature_steps:
  basic: {provides: [f]}
  deep: {requires: basic, provides: [g, h]}
"""
RUNS = """@RELATION runs
@ATTRIBUTE instance_id STRING
@ATTRIBUTE repetition NUMERIC
@ATTRIBUTE algorithm STRING
@ATTRIBUTE par10 NUMERIC
@ATTRIBUTE runstatus {ok, timeout, memout, not_applicable, crash, other}
@DATA
one,1,010,10,ok
one,2,010,20,ok
one,3,010,7777,timeout
one,1,late,?,memout
two,1,010,30,ok
two,1,late,1,crash
"""
VALUES = """@RELATION v
@ATTRIBUTE instance_id STRING
@ATTRIBUTE repetition NUMERIC
@ATTRIBUTE f NUMERIC
@ATTRIBUTE g NUMERIC
@ATTRIBUTE h NUMERIC
@DATA
one,1,1,2,3
one,2,2,4,?
unrun,1,9,9,9
two,1,5,6,7
"""
STATUSES = """@RELATION s
@ATTRIBUTE instance_id STRING
@ATTRIBUTE repetition NUMERIC
@ATTRIBUTE basic {ok, timeout}
@ATTRIBUTE deep {ok, presolved, timeout}
@DATA
one,1,ok,presolved
one,2,ok,timeout
two,1,timeout,ok
"""
COSTS = """@RELATION c
@ATTRIBUTE instance_id STRING
@ATTRIBUTE repetition NUMERIC
@ATTRIBUTE basic NUMERIC
@ATTRIBUTE deep NUMERIC
@DATA
two,1,1,0.5
one,1,1,?
one,2,2,5
"""
CV = """@RELATION cv
@ATTRIBUTE instance_id STRING
@ATTRIBUTE repetition NUMERIC
@ATTRIBUTE fold NUMERIC
@DATA
two,2,9
two,1,1
one,1,2
one,2,9
"""
FILES = {
    "description.txt": DESCRIPTION,
    "algorithm_runs.arff": RUNS,
    "feature_values.arff": VALUES,
    "feature_runstatus.arff": STATUSES,
    "feature_costs.arff": COSTS,
    "cv.arff": CV,
}


def folder(at: Path, **changed: str | None) -> Path:
    """The folder above; `runs="..."` and so on replace a file or (None) leave it out."""
    keys = {"description": "description.txt", "runs": "algorithm_runs.arff"}
    keys |= {"values": "feature_values.arff", "statuses": "feature_runstatus.arff"}
    keys |= {"costs": "feature_costs.arff", "cv": "cv.arff"}
    files = FILES | {keys[key]: text for key, text in changed.items()}
    for name, text in files.items():
        if text is not None:
            (at / name).write_text(text)
    return at


def test_every_oddity_of_a_folder(tmp_path: Path):
    table = aslib.read(folder(tmp_path))
    assert (table.name, table.scale, table.cutoff) == ("BY-HAND", Scale.RUNTIME, 100.0)
    assert table.tasks == ("one", "two")  # nobody ran "unrun"
    assert table.arms == ("010", "never", "late")
    np.testing.assert_array_equal(table.results, [[15, np.nan, np.nan], [30, np.nan, np.nan]])
    assert table.status.tolist() == [
        [Status.OK, Status.MISSING, Status.MEMOUT],
        [Status.OK, Status.MISSING, Status.CRASH],
    ]
    assert all(isinstance(one, Status) for one in table.status.flat)
    # the deep step timed out in repetition 2 of "one", the basic one on "two"
    np.testing.assert_array_equal(table.features, [[1.5, 2, 3], [np.nan, 6, 7]])
    assert table.feature_cost is not None and table.feature_cost.tolist() == [4.0, 1.5]
    assert table.folds is not None and table.folds.tolist() == [2, 1]
    np.testing.assert_array_equal(table.loss[:, [0, 2]], [[15, 1000], [30, 1000]])


def test_only_three_files_are_needed(tmp_path: Path):
    table = aslib.read(folder(tmp_path, statuses=None, costs=None, cv=None))
    assert table.folds is None and table.feature_cost is None
    np.testing.assert_array_equal(table.features, [[1.5, 3, 3], [5, 6, 7]])


@pytest.mark.parametrize("name", ["description.txt", "algorithm_runs.arff", "feature_values.arff"])
def test_those_three_are_needed(tmp_path: Path, name: str):
    (folder(tmp_path) / name).unlink()
    with pytest.raises(UsageError, match=f"cannot read .*{name}"):
        aslib.read(tmp_path)


@pytest.mark.parametrize(("maximise", "kept"), [("true", [15.0, 30.0]), ("false", [-15.0, -30.0])])
def test_a_quality_to_be_made_small_changes_its_sign(tmp_path: Path, maximise: str, kept: list):
    text = DESCRIPTION.replace("type: runtime", "type: [solution_quality, runtime]")
    text = text.replace("maximize: false", f"maximize: [{maximise}, false]")
    text = text.replace("time: 100", "time: '?'").replace("measures: PAR10", "measures: [Par10, b]")
    table = aslib.read(folder(tmp_path, description=text))
    assert (table.scale, table.cutoff) == (Scale.QUALITY, None)
    assert table.results[:, 0].tolist() == kept


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"runs": RUNS + "three,1,010,1,ok\n"}, "algorithm_runs.arff, line 14: three is not in"),
        ({"runs": RUNS + "two,1,010,31,ok\n"}, "line 14: another run of 010 on two"),
        ({"runs": RUNS + "two,1,010,30,timeout\n"}, "line 14: another run of 010 on two"),
        ({"runs": RUNS + "two,2,010,?,ok\n"}, "line 14: a run that is ok has PAR10 None"),
        ({"runs": RUNS + "two,2,010,-1,ok\n"}, "line 14: a run that is ok has PAR10 -1"),
        ({"runs": RUNS + "two,2,010,1,?\n"}, "line 14: runstatus is None"),
        ({"runs": RUNS + "two,?,010,1,ok\n"}, "line 14: instance and algorithm are names"),
        ({"runs": RUNS[: RUNS.index("one,1")]}, "no instance has both"),
        ({"runs": RUNS.replace("par10", "time")}, "no column par10"),
        ({"runs": RUNS.replace("algorithm", "algo")}, "does not begin with"),
        ({"values": VALUES + "two,1,5,6,8\n"}, "feature_values.arff, line 12: two differs"),
        ({"values": VALUES.replace("h NUMERIC", "h STRING")}, "one has a value that is no number"),
        ({"statuses": STATUSES.replace("deep", "deeper")}, "has no step deeper"),
        ({"costs": COSTS.replace("two,1", "unrun,1")}, "feature_costs.arff has no row for two"),
        ({"cv": CV.replace("two,1", "two,3")}, "cv.arff has no row for two"),
        ({"cv": CV + "one,1,3\n"}, "cv.arff, line 10: one differs"),
        ({"cv": CV.replace("one,1,2", "one,1,2.5")}, "not a whole number"),
        (
            {"description": DESCRIPTION.replace("time: 100", "time: 0")},
            "algorithm_cutoff_time is 0",
        ),
        ({"description": DESCRIPTION.replace("time: 100", "time: ?")}, "YAML|cutoff_time"),
        ({"description": DESCRIPTION.replace("maximize: false", "maximize: true")}, "for runtimes"),
        ({"description": DESCRIPTION.replace("PAR10", "'?'")}, "names no performance_measures"),
        (
            {"description": DESCRIPTION.replace("type: runtime", "type: fun")},
            "performance_type is fun",
        ),
        ({"description": DESCRIPTION.replace("{provides: [f]}", "[f]")}, "basic does not hold"),
        ({"description": "- a list\n"}, "does not hold names"),
        ({"description": "a: [b\n"}, "is not YAML"),
        ({"description": "[" * 1500}, "is not YAML"),
    ],
)
def test_contradictions_are_refused_with_their_place(tmp_path: Path, changed: dict, why: str):
    with pytest.raises(DecodeError, match=why):
        aslib.read(folder(tmp_path, **changed))


def test_a_line_that_says_the_same_again_is_harmless(tmp_path: Path):
    twice = aslib.read(
        folder(tmp_path, runs=RUNS + "two,1,010,30,ok\n", values=VALUES + "one,2,2,4,?\n")
    )
    assert twice.results[1, 0] == 30


@pytest.mark.parametrize(
    ("name", "shape", "n_features", "n_ok"),
    [
        ("BNSL-2016", (1179, 8), 86, 6786),
        ("CPMP-2015", (527, 4), 22, 1526),
        ("OPENML-WEKA-2017", (105, 30), 103, 3150),
    ],
)
def test_real_folders(shared: Path, name: str, shape: tuple, n_features: int, n_ok: int):
    at = shared / "data" / "aslib" / name
    if not at.is_dir():
        pytest.skip(f"needs {name} in the folder of real models and data")
    table = aslib.read(at)
    assert table.name == name
    assert table.results.shape == shape and table.features.shape == (shape[0], n_features)
    assert (table.status == Status.OK).sum() == n_ok and table.applicable.all()
    assert table.folds is not None and set(table.folds.tolist()) == set(range(1, 11))
    assert np.isfinite(table.loss).all()


words = st.text(min_size=1, max_size=6)
reals = st.floats(-1e9, 1e9)


@st.composite
def tables(draw: st.DrawFn) -> Scenario:
    """Any table whose numbers of runs that were not ok are nan."""
    tasks = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    arms = draw(st.lists(words, min_size=1, max_size=3, unique=True))
    names = draw(st.lists(words.map("f.{}".format), max_size=3, unique=True))
    n, k, d = len(tasks), len(arms), len(names)
    scale = draw(st.sampled_from(Scale))

    def array(of: st.SearchStrategy, *shape: int, kind: type = float) -> np.ndarray:
        size = int(np.prod(shape))
        flat = np.empty(size, kind)
        flat[:] = draw(st.lists(of, min_size=size, max_size=size))
        return flat.reshape(shape)

    def texts(n_texts: int) -> tuple[str, ...]:
        return tuple(draw(st.lists(st.text(max_size=9), min_size=n_texts, max_size=n_texts)))

    status = array(st.sampled_from(Status), n, k, kind=np.object_)
    results = array(reals if scale is Scale.QUALITY else st.floats(0, 1e9), n, k)
    return Scenario(
        name=draw(words),
        scale=scale,
        tasks=tuple(tasks),
        arms=tuple(arms),
        results=np.where(status == Status.OK, results, np.nan),
        status=status,
        feature_names=tuple(names),
        features=array(st.one_of(reals, st.just(np.nan)), n, d),
        cutoff=draw(st.floats(1e-9, 1e9)) if scale is Scale.RUNTIME else None,
        feature_cost=draw(st.one_of(st.none(), st.just(array(st.floats(0, 1e9), n)))),
        groups={
            name: texts(n)
            for name in draw(st.lists(words.map("g.{}".format), unique=True, max_size=2))
        },
        folds=draw(st.one_of(st.none(), st.just(array(st.integers(0, 99), n, kind=np.int64)))),
        task_texts=draw(st.one_of(st.just(()), st.just(texts(n)))),
        arm_texts=draw(st.one_of(st.just(()), st.just(texts(k)))),
        default=draw(st.one_of(st.none(), st.sampled_from(arms))),
    )


def assert_same(one: Scenario, other: Scenario) -> None:
    for field in Scenario.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
        assert type(getattr(one, field)) is type(getattr(other, field)), field


@given(table=tables())
@settings(max_examples=60, deadline=None)
def test_what_is_written_comes_back(tmp_path_factory, table: Scenario):
    at = tmp_path_factory.mktemp("aslib") / "folder"
    aslib.write(at, table)
    assert_same(table, aslib.read(at))


def test_real_folders_survive_writing(shared: Path, tmp_path: Path):
    at = shared / "data" / "aslib" / "BNSL-2016"
    if not at.is_dir():
        pytest.skip("needs BNSL-2016 in the folder of real models and data")
    table = aslib.read(at)
    aslib.write(tmp_path / "copy", table)
    assert_same(table, aslib.read(tmp_path / "copy"))


def small() -> Scenario:
    return Scenario(
        "s", Scale.LATENCY, ("t",), ("a",), np.array([[1.5]]),
        np.array([[Status.OK]], np.object_), ("instance_id",), np.array([[1.0]]),
    )  # fmt: skip


def test_writing_is_whole_or_not_at_all(tmp_path: Path):
    with pytest.raises(UsageError, match="one name"):
        aslib.write(tmp_path / "new", small())  # a feature by the name of ASlib's own column
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        aslib.write(tmp_path / "new", small())
    with pytest.raises(UsageError, match="nothing to write"):
        aslib.write(tmp_path / "none", small().rows(np.array([], np.int64)))


@pytest.mark.parametrize(("scale", "instead"), [(Scale.LATENCY, 3.0), (Scale.QUALITY, 0.5)])
def test_other_readers_find_a_number_in_every_cell(tmp_path: Path, scale: Scale, instead: float):
    results = np.array([[1.5, np.nan, np.nan, 0.5]])
    ends = np.array([[Status.OK, Status.CRASH, Status.MISSING, Status.OK]], np.object_)
    nothing = np.empty((1, 0))
    table = Scenario("s", scale, ("t",), tuple("abcd"), results, ends, (), nothing)
    aslib.write(tmp_path / "new", table)
    written = arff.read(tmp_path / "new" / "algorithm_runs.arff")
    assert [row[3] for row in written.rows] == [1.5, instead, instead, 0.5]
    assert [row[4] for row in written.rows] == ["ok", "crash", "missing", "ok"]
