"""The tuner from the command line: collect, evaluate, train, recommend, and a node that uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from veilrun import bundled
from veilrun.equivariant.compile import encrypt
from veilrun.keys import MasterKey
from veilrun.tune import dataset
from veilrun.tune.records import Journal
from veilrun.tune.tuner import Tuner

VEILRUN = (sys.executable, "-m", "veilrun.cli")


def veilrun(*arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*VEILRUN, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode == 0) is ok, done.stderr
    return done


def told(*arguments: str | Path) -> Any:
    return json.loads(veilrun(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, encrypted."""
    work = tmp_path_factory.mktemp("encrypted")
    encrypt(str(bundled.prompter()), work / "out", MasterKey(bytes(32)), kits=work / "kits")
    return work / "out"


def test_collecting_goes_on_where_it_ended(tmp_path: Path):
    model = ("--model", "llama-2x128", "--requests", "1", "2")
    report = told("tune", "collect", tmp_path / "runs", *model, "--tasks", "1")
    assert (report["n_tasks"], report["n_models"]) == (1, 1)
    assert report["n_by_status"]["ok"] > 10
    report = told("tune", "collect", tmp_path / "runs", *model, "--tasks", "2")
    assert report["n_tasks"] == 2
    scenario = dataset.read(tmp_path / "runs")
    assert scenario.default == "continuous-16"


def test_the_data_that_comes_along_is_large_and_teaches_its_tuner():
    scenario = dataset.read(bundled.runs())
    tuner = Tuner.load(bundled.runs())
    assert tuner.scenario.tasks == scenario.tasks
    measured = [one for one in dataset.records(bundled.runs()) if one.outcome]
    assert len(measured) >= 2000
    assert len(set(scenario.groups["model"])) >= 12
    assert not tuner.fitted.describe().startswith("always")


def test_evaluate_prints_and_draws(tmp_path: Path):
    quick = ("--only", "forest", "--only", "k-NN (ARGOSMART)", "--hold-out", "workload")
    shown = veilrun("tune", "evaluate", bundled.runs(), *quick, "--plots", tmp_path).stdout
    for name in ("single best", "oracle", "random", "default", "forest"):
        assert name in shown
    for picture in ("arms.svg", "regret-workload.svg"):
        ElementTree.parse(tmp_path / picture)
    [result] = told("tune", "evaluate", bundled.runs(), *quick)
    assert {one["name"] for one in result["scores"]} > {"oracle", "forest"}
    assert (
        "veilrun" in veilrun("tune", "evaluate", bundled.runs(), "--only", "magic", ok=False).stderr
    )


def test_train_then_recommend(tmp_path: Path, out: Path):
    report = told("tune", "train", bundled.runs(), tmp_path / "tuner")
    assert report["tasks"] > 100
    advice = told(
        "tune", "recommend", out, "--workload", "retrieval", "--tuner", tmp_path / "tuner"
    )
    assert advice["arm"] in {one["arm"] for one in advice["options"]}
    assert "static-16-int8" in advice["refused"]
    again = veilrun("tune", "train", bundled.runs(), tmp_path / "tuner", ok=False)
    assert "exists" in again.stderr


def test_recommend_keeps_to_a_budget_and_shows_leaks(out: Path):
    shown = veilrun("tune", "recommend", out, "--workload", "bulk", "--price-per-hour", "0.5")
    assert "cost of 1,000" in shown.stdout
    assert "it leaks:" in shown.stdout
    poor = veilrun(
        "tune", "recommend", out, "--price-per-hour", "1000", "--budget", "0.000001", ok=False
    )
    assert poor.returncode == 3
    assert "the cheapest" in poor.stderr


def test_a_workload_may_be_a_file(tmp_path: Path, out: Path):
    described = {
        "kind": "mine",
        "n_requests": 4,
        "concurrency": 2,
        "prompt_tokens": 64,
        "answer_tokens": 8,
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(described))
    assert told("tune", "recommend", out, "--workload", path)["workload"]["kind"] == "mine"
    path.write_text(json.dumps({**described, "surprise": 1}))
    assert "surprise" in veilrun("tune", "recommend", out, "--workload", path, ok=False).stderr
    assert (
        "neither a kind"
        in veilrun("tune", "recommend", out, "--workload", "poetry", ok=False).stderr
    )


def test_arms_are_listed_with_what_they_leak():
    listed = {one["arm"]: one for one in told("tune", "arms", "--exact")}
    assert listed["static-16-int8"]["objections"]
    assert any("salt" in leak for leak in listed["single-prefix"]["leaks"])
    assert "vllm-16-prefix" in listed


class Node:
    """A node process, from its announcement to its end."""

    def __init__(self, *arguments: str | Path) -> None:
        self._process = subprocess.Popen(
            [*VEILRUN, "node", *map(str, arguments), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CONFIG_HOME": str(arguments[0]) + "-config"},
        )

    def __enter__(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(self._process.stderr.read())
        return json.loads(line)

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        _, self.said = self._process.communicate(timeout=60)


def test_a_node_tunes_itself_and_its_runs_become_data(tmp_path: Path, out: Path):
    node = Node(
        out, "--tune", "auto", "--workload", "edit", "--tune-records", tmp_path, "--identity",
        tmp_path / "identity",
    )  # fmt: skip
    with node as announced:
        assert announced["url"].startswith("https://")
    assert "tuned to" in node.said
    journal = Journal(tmp_path / dataset.JOURNAL).read()
    assert 2 <= len(journal) <= 3
    assert "continuous-16" in {one.arm for one in journal}
    assert journal[0].workload["kind"] == "edit"
    grown = dataset.read(bundled.runs(), tmp_path)
    assert len(grown.tasks) == len(dataset.read(bundled.runs()).tasks) + 1


def test_a_node_runs_the_arm_it_is_told_to(tmp_path: Path, out: Path):
    identity = ("--identity", tmp_path / "identity")
    with Node(out, "--tune", "single-prefix-lookup-int8", "--allow-approximate-weights", *identity):
        pass
    refused = veilrun("node", out, "--tune", "static-16-int8", *identity, ok=False)
    assert refused.returncode == 3
    assert "--allow-approximate-weights" in refused.stderr
    for wrong in (
        ("--workload", "chat"),
        ("--tune", "single", "--no-trial"),
        ("--draft", out),
        ("--tune", "auto", "--no-trial", "--tune-records", tmp_path),
        ("--tune", "magic"),
        ("--tune", "auto", "--cache-gib", "1"),
    ):
        assert veilrun("node", out, *wrong, *identity, ok=False).returncode == 2
