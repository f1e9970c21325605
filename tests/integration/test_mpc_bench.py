"""`veilrun mpc bench`, measuring: three processes, and what they took beside what was said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mpc_parties
import pytest

from veilrun import cli
from veilrun.mpc import bench, cost
from veilrun.mpc.model import files
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
from veilrun.mpc.profile import W1A4, W16A8

SHAPE = ("--layers", 1, "--hidden", 48, "--heads", 4, "--intermediate", 96, "--vocabulary", 60)
TINY = replace(
    cost.BERT_BASE, n_layers=1, hidden=48, n_heads=4, intermediate=96, n_vocab=60
)  # fmt: skip
GOOD, DIFFERS, USAGE = 0, 1, 2


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["veilrun", "mpc", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("options", "profile", "kind"),
    [
        ((), W16A8, SECRET_EMBEDDING),
        (("--public-embedding", "--profile", "w1a4"), W1A4, CLIENT_EMBEDDING),
    ],
)
def test_a_shape_takes_what_is_predicted(monkeypatch, capsys, options, profile, kind) -> None:
    arguments = (*SHAPE, *options, "--tokens", 4, "--repeats", 2, "--json")
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == GOOD, err
    facts = json.loads(out)
    said = cost.predict(cost.shape_only(TINY, profile, kind), 4)
    assert facts["is_as_predicted"] is True and facts["n_tokens"] == 4
    assert facts["predicted"] == {
        "offline_bytes": said.offline_bytes,
        "embedding_bytes": said.embedding_bytes,
        "online_bytes": said.online_bytes,
        "n_rounds": said.n_online_rounds,
    }
    assert len(facts["runs"]) == 2
    for one in facts["runs"]:
        assert {name: one[name] for name in facts["predicted"]} == facts["predicted"]
        assert 0 < one["online_s"] <= one["answer_s"]
        assert 0 < one["deal_cpu_s"]


def test_a_model_for_people(monkeypatch, capsys, tmp_path: Path) -> None:
    folder = mpc_parties.save(mpc_parties.model(CLIENT_EMBEDDING), tmp_path / "model")
    code, out, err = run(monkeypatch, capsys, "--model", folder, "--tokens", 5, "--repeats", 1)
    assert code == GOOD, err
    said = cost.predict(files.load_public(folder), 5)
    row = next(line for line in out.splitlines() if "offline bytes" in line)
    assert row.count(f"{said.offline_bytes:,}") == 2  # measured, predicted
    assert "exactly those predicted" in out and "CPU of party 2" in out


def test_a_difference_is_an_exit_code(monkeypatch, capsys) -> None:
    real = bench.measure

    def one_byte_more(*arguments, **options):
        return [
            replace(one, online_bytes=one.online_bytes + 1) for one in real(*arguments, **options)
        ]

    monkeypatch.setattr(bench, "measure", one_byte_more)
    code, out, _ = run(monkeypatch, capsys, *SHAPE, "--tokens", 2, "--repeats", 1)
    assert code == DIFFERS and "not those predicted" in out


def test_more_tokens_than_the_model_reads(monkeypatch, capsys) -> None:
    code, _, err = run(monkeypatch, capsys, *SHAPE, "--tokens", 513)
    assert code == USAGE and "1 to 512 tokens" in err
