"""The tuner's numbers in README and docs, from the results in `docs/tuning`.

    python benchmarks/tuning_tables.py          # writes the files anew between their marks
    python benchmarks/tuning_tables.py --check  # exit code 1 if a number has drifted

`docs/tuning` holds what commands printed: `evaluation.json` (veilrun tune evaluate --json, without
its lists of tasks), `exact.json` (the same with --exact), `aslib.json` (the same of ASlib's
scenarios) and `live.jsonl` (benchmarks/tuning.py). A table stands between `<!-- tuning: NAME -->`
and `<!-- end -->`; a test runs the check.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from veilrun import bundled
from veilrun.tune import dataset
from veilrun.tune.portfolio import OURS

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "docs" / "tuning"
FILES: Final = (ROOT / "README.md", ROOT / "docs" / "tuning.md")
_MARK: Final = re.compile(r"(<!-- tuning: (\w+) -->\n).*?(<!-- end -->)", re.S)


def data() -> str:
    """What the shipped data set holds."""
    records = dataset.records(bundled.runs())
    scenario = dataset.read(bundled.runs())
    ended = Counter(one.status.value for one in records)
    kinds = sorted(set(scenario.groups["workload"]))
    rows = [
        ("records of runs", f"{sum(n for how, n in ended.items() if how != 'not_applicable'):,}"),
        ("how they ended", ", ".join(f"{n:,} {how}" for how, n in ended.most_common())),
        ("tasks", f"{len(scenario.tasks)}"),
        ("models", f"{len(set(scenario.groups['model']))}"),
        ("arms", f"{len(scenario.arms)}"),
        ("kinds of work", ", ".join(kinds)),
        ("machine", str(records[0].machine["text"])),
    ]
    return _table(("what", "how much"), rows)


def evaluation() -> str:
    """Every selector, with whole models, kinds of work and tasks held out."""
    return _evaluations("evaluation")


def exact() -> str:
    """The same among arms whose answers stay exact."""
    return _evaluations("exact")


def _evaluations(name: str) -> str:
    return "\n".join(
        f"**Held out: {_WHAT[one['hold_out']]}**\n\n{_scores(one)}" for one in _json(name)
    )


_WHAT: Final = {
    "tasks": "tasks, in ten folds",
    "model": "whole models",
    "workload": "whole kinds of work",
}


def _scores(one: Any) -> str:
    relative = one["scale"] == "latency"
    rows = []
    for score in one["scores"]:
        regrets = [score["mean_regret"], *score["mean_regret_interval"], score["max_regret"]]
        mean, least, most, worst = (_regret(value, relative=relative) for value in regrets)
        n_worse = sum(fold["is_worse"] for fold in score["folds"])
        name = f"**{score['name']}**" if score["name"] == OURS else score["name"]
        rows.append(
            (
                name,
                _gap(score),
                f"{mean} ({least} to {most})",
                worst,
                "" if score["speed_up"] is None else f"{score['speed_up']:.2f}",
                "" if score["accuracy"] is None else f"{score['accuracy']:.2f}",
                "" if score["f1"] is None else f"{score['f1']:.2f}",
                f"{n_worse} of {len(score['folds'])}",
            )
        )
    head = "selector", "closed gap", "mean regret", "worst", "speed-up", "accuracy", "F1"
    return _table((*head, "folds worse"), rows)


def _regret(value: float, *, relative: bool) -> str:
    return f"{value:.1%}".replace("%", " %") if relative else f"{value:,.4g}"


def aslib() -> str:
    """ASlib's scenarios on their own folds: closed gap, and folds where a selector is worse."""
    rows = [
        (
            one["scenario"],
            f"**{score['name']}**" if score["name"] == OURS else score["name"],
            _gap(score),
            f"{sum(fold['is_worse'] for fold in score['folds'])} of {len(score['folds'])}",
        )
        for one in _json("aslib")
        for score in one["scores"]
        if score["name"] not in ("single best", "oracle")
    ]
    return _table(("scenario", "selector", "closed gap", "folds worse"), rows)


def _gap(score: Any) -> str:
    low, high = score["closed_gap_interval"]
    return f"{score['closed_gap']:.2f} ({low:.2f} to {high:.2f})"


def live() -> str:
    """Speed-ups over the default arm: of the arm the node took, and of the best one."""
    lines = [json.loads(line) for line in (RESULTS / "live.jsonl").read_text().splitlines()]
    rows = [
        (
            one["workload"]["kind"],
            one["arms"],
            f"`{one['chosen']}`",
            f"{one['speed_up']:.2f}",
            f"`{one['oracle']}`",
            f"{one['oracle_speed_up']:.2f}",
            f"{one['share']:.2f}",
        )
        for one in lines
    ]
    return _table(("workload", "arms", "taken", "speed-up", "best", "its speed-up", "share"), rows)


def summary() -> str:
    """The README's few lines."""
    by_what = {one["hold_out"]: one for one in _json("evaluation")}
    rows = []
    for what in ("model", "workload", "tasks"):
        ours = next(one for one in by_what[what]["scores"] if one["name"] == OURS)
        rows.append(
            (
                _WHAT[what],
                f"{ours['closed_gap']:.2f}",
                _regret(ours["mean_regret"], relative=True),
                f"{ours['speed_up']:.2f}",
            )
        )
    return _table(("held out", "closed gap", "mean regret", "speed-up over the default"), rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "data": data,
    "evaluation": evaluation,
    "exact": exact,
    "aslib": aslib,
    "live": live,
    "summary": summary,
}


def filled(text: str) -> str:
    """The text with every table made anew."""
    return _MARK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def _json(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    drifted = [file for file in FILES if filled(file.read_text()) != file.read_text()]
    for file in drifted:
        if check:
            print(f"{file.name} has drifted")
        else:
            file.write_text(filled(file.read_text()))
    return 1 if check and drifted else 0


if __name__ == "__main__":
    raise SystemExit(main())
