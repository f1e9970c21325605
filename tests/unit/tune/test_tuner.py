"""A tuner learns from a data set, is stored without code, and advises only what may run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tune_runs import LAYERS, known, runs
from tune_tables import decided

from veilrun.errors import DecodeError, RefusedError, UsageError
from veilrun.tune import dataset
from veilrun.tune.advice import Advice, Option
from veilrun.tune.arms import Situation, by_name
from veilrun.tune.dataset import JOURNAL
from veilrun.tune.records import Journal
from veilrun.tune.selector import MetaSelector
from veilrun.tune.tuner import Tuner
from veilrun.tune.workload import Workload

SMALL = MetaSelector(n_trees=30)
HERE = Situation(n_cores=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    journal = Journal(folder / JOURNAL)
    for record in runs():
        journal.append(record)
    dataset.write(folder)
    return folder


@pytest.fixture(scope="module")
def tuner(data: Path) -> Tuner:
    return Tuner.train(dataset.read(data), SMALL)


@pytest.fixture(scope="module")
def stored(tuner: Tuner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "tuner"
    tuner.save(folder)
    return folder


def advice(
    tuner: Tuner, n_layers: int, kind: str, seed: int = 99, here: Situation = HERE
) -> Advice:
    task = known(n_layers, kind, seed)
    return tuner.advise(task.features(), task.describe(), here)


def test_a_tables_own_folds_are_no_groups():
    plain = decided(60)
    folded = decided(60, folds=np.arange(60) // 30)
    one, other = (Tuner.train(table, MetaSelector(n_trees=10)) for table in (plain, folded))
    assert one.fitted.verdict == other.fitted.verdict


def test_a_report_tells_what_a_data_set_holds(data: Path):
    report = dataset.write(data)
    assert report.n_records == 5 * report.n_tasks == 5 * 4 * 21
    assert report.n_by_status["crash"] == 3
    assert report.n_models == len(LAYERS)
    assert str(report.n_records) in report.describe()


def test_a_data_set_without_its_journal_still_teaches(data: Path, tmp_path: Path):
    for name in (dataset.PARQUET, dataset.ASLIB):
        (tmp_path / name).symlink_to(data / name)
    together = dataset.read(tmp_path, tmp_path)
    assert len(together.tasks) == len(dataset.read(tmp_path).tasks)


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="holds no data set"):
        dataset.read(tmp_path)
    with pytest.raises(UsageError, match="holds no records"):
        dataset.read(tmp_path, tmp_path)


def test_it_advises_what_suits_the_workload(tuner: Tuner):
    exact = Situation(2, exact=True)
    assert advice(tuner, 4, "edit", here=exact).chosen.arm.name == "single-lookup"
    shared = advice(tuner, 4, "retrieval", here=exact)
    quickest = max(shared.options, key=lambda one: one.speed_up)
    assert quickest.arm.name == "single-prefix"
    assert shared.is_guarded is (shared.chosen != quickest)
    assert advice(tuner, 4, "summary").chosen.arm.name == "static-16-int8"


def test_expected_times_are_near_the_formula(tuner: Tuner):
    told = advice(tuner, 4, "summary").chosen
    assert 1.1 < told.speed_up < 1.6
    task = known(4, "summary", 99).workload
    default_s = 0.04 * task.answer_tokens + 0.002 * task.prompt_tokens
    assert default_s / 3 < told.latency_s * told.speed_up < 3 * default_s


def test_what_may_not_run_is_named_with_its_reason(tuner: Tuner):
    told = advice(tuner, 4, "chat", here=Situation(2, exact=True, one_salt_per_user=False))
    assert set(told.refused) == {"static-16-int8", "single-prefix"}
    assert "salt" in told.refused["single-prefix"][0]
    assert not set(told.refused) & {one.arm.name for one in told.options}


def test_nothing_that_may_run_is_an_error(tuner: Tuner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Situation, "objections", lambda self, arm: ("not today",))
    with pytest.raises(RefusedError, match="no arm"):
        advice(tuner, 4, "chat")


def test_on_vllm_only_arms_that_it_has_are_advised(tuner: Tuner):
    told = advice(tuner, 4, "edit", here=Situation(2, engine="vllm"))
    assert [one.arm.name for one in told.options] == ["continuous-16"]


def test_other_features_are_refused_not_padded(tuner: Tuner):
    features = known(4, "chat", 0).features()
    with pytest.raises(UsageError, match=r"model\.log_hidden"):
        tuner.advise(
            {name: value for name, value in features.items() if name != "model.log_hidden"},
            "",
            HERE,
        )
    with pytest.raises(UsageError, match=r"machine\.moon_phase"):
        tuner.advise({**features, "machine.moon_phase": 1.0}, "", HERE)


def test_another_machine_is_remarked_on(tuner: Tuner):
    features = known(4, "chat", 0).features()
    assert tuner.advise(features, "", HERE).remarks == ()
    faster = tuner.advise({**features, "machine.log_gflops": 12.0}, "", HERE)
    assert any("gflops 4.1e+03 is outside 60..60" in remark for remark in faster.remarks)


def test_a_stored_tuner_advises_the_same(tuner: Tuner, stored: Path):
    again = Tuner.load(stored)
    for kind in ("chat", "edit", "bulk"):
        assert advice(again, 6, kind).to_json() == advice(tuner, 6, kind).to_json()
    assert {path.suffix for path in stored.rglob("*") if path.is_file()} <= {
        ".json",
        ".arff",
        ".txt",
    }


def test_a_changed_table_is_refused(stored: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tuner.json").write_bytes((stored / "tuner.json").read_bytes())
    (copy / "aslib").mkdir()
    for path in (stored / "aslib").iterdir():
        (copy / "aslib" / path.name).write_bytes(path.read_bytes())
    Tuner.load(copy)
    runs_file = copy / "aslib" / "algorithm_runs.arff"
    runs_file.write_text(runs_file.read_text().replace("0.", "1.", 1))
    with pytest.raises(UsageError, match="train it again"):
        Tuner.load(copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', "\x00"])
def test_a_damaged_tuner_is_refused(tmp_path: Path, content: str):
    (tmp_path / "tuner.json").write_text(content)
    with pytest.raises(DecodeError):
        Tuner.load(tmp_path)


def test_damaged_settings_are_refused(stored: Path, tmp_path: Path):
    content = json.loads((stored / "tuner.json").read_text())
    (tmp_path / "aslib").symlink_to(stored / "aslib")
    for part in ("settings", "verdict"):
        broken = {
            **content,
            part: {**content[part], "members" if part == "verdict" else "seed": "?"},
        }
        (tmp_path / "tuner.json").write_text(json.dumps(broken))
        with pytest.raises(DecodeError):
            Tuner.load(tmp_path)


def test_no_tuner_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="holds no tuner"):
        Tuner.load(tmp_path)


def option(name: str, latency_s: float) -> Option:
    return Option(by_name(name), 1.0, 1.1, latency_s)


def test_a_budget_refuses_what_costs_more():
    told = Advice((option("single", 0.3), option("static-16-int8", 0.1)), {}, False, ())
    work = Workload("chat", 8, 2, 10, 10)
    # 1,000 requests, two at a time: 150 s and 50 s of a machine at 3.6 an hour
    assert told.options[0].cost(work, 3.6) == pytest.approx(0.15)
    cheap = told.within(0.1, work, 3.6)
    assert [one.arm.name for one in cheap.options] == ["static-16-int8"]
    assert "0.15" in cheap.refused["single"][0]
    with pytest.raises(RefusedError, match=r"static-16-int8, is expected to cost 0\.05"):
        told.within(0.01, work, 3.6)
