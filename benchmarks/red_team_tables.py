"""The red team's numbers in README and SECURITY, from the cards in `docs/red-team`.

    python benchmarks/red_team_tables.py          # writes both files anew between their marks
    python benchmarks/red_team_tables.py --check  # exit code 1 if a number has drifted

A table stands between `<!-- red-team: NAME -->` and `<!-- end -->`. Nothing in it is written by
hand; a test runs the check.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from veilrun.attacks.card import Card
from veilrun.attacks.card_json import decode_card
from veilrun.attacks.catalogue import ATTACKS
from veilrun.attacks.levels import Level
from veilrun.attacks.verdict import verdict
from veilrun.attacks.wording import duration, interval, percent

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs" / "red-team"
FILES: Final = (ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "docs" / "red-team.md")
COLUMNS: Final = {
    Level.WIRE: "who reads ids",
    Level.HOST: "host",
    Level.BASE: "host + base",
    Level.PAIRS: "host + base + pairs",
    Level.TWO_HOSTS: "two hosts + base",
    Level.FINE_TUNE: "host + base of a fine-tune",
}
_MARK: Final = re.compile(r"(<!-- red-team: (\w+) -->\n).*?(<!-- end -->)", re.S)


def load(folder: Path = DOCS) -> tuple[dict[str, Card], dict[str, Any]]:
    """Cards and lines of the frontier, by mode, in the frontier's order."""
    lines = {one["mode"]: one for one in json.loads((folder / "frontier.json").read_text())}
    cards = {mode: decode_card((folder / f"{mode}.json").read_bytes()) for mode in lines}
    return cards, lines


def summary(cards: dict[str, Card], lines: dict[str, Any]) -> str:
    """A row for each mode: what it costs, and what each attacker reads."""
    rows = [
        "| mode | same top token | " + " | ".join(COLUMNS.values()) + " |",
        "| --- | --- |" + " --- |" * len(COLUMNS),
    ]
    for mode, card in cards.items():
        cells = [_cell(card, level) for level in COLUMNS]
        same = percent(lines[mode]["agreement"])
        rows.append(f"| `{mode}` | {same} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _cell(card: Card, level: Level) -> str:
    best = card.strongest(level) if level in card.levels else None
    return percent(best.rate.share) if best is not None and best.rate is not None else ""


def strongest(cards: dict[str, Card], lines: dict[str, Any]) -> str:
    """For each mode and attacker the attack that reads most."""
    rows = [
        "| mode | attacker | reads | 95 % interval | by | took |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for mode, card in cards.items():
        for level, name in COLUMNS.items():
            best = card.strongest(level) if level in card.levels else None
            if best is None or best.rate is None:
                continue
            rows.append(
                f"| `{mode}` | {name} | {percent(best.rate.share)} | {interval(best.rate)} "
                f"| {card.facts(best.attack).title} | {duration(best.elapsed_s)} |"
            )
    return "\n".join(rows) + "\n"


def attacks(cards: dict[str, Card], lines: dict[str, Any]) -> str:
    """Every attack: who can make it, what it uses and what it must break."""
    rows = [
        "| attack | from level | uses | must break | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in ATTACKS:
        rows.append(
            f"| {one.title} | `{one.levels[0]}` | {one.knows} | {one.breaks} | {one.source} |"
        )
    return "\n".join(rows) + "\n"


def verdicts(cards: dict[str, Card], lines: dict[str, Any]) -> str:
    """What each card says."""
    return "".join(f"* `{mode}`: {verdict(card).headline}\n" for mode, card in cards.items())


def rivals(cards: dict[str, Card], lines: dict[str, Any]) -> str:
    """Published transforms on real tables: the share of ids that each attack reads."""
    measured = json.loads((DOCS / "rivals.json").read_text())
    models = list(dict.fromkeys(one["model"] for one in measured))
    rows = [
        "| transform | attack | " + " | ".join(models) + " |",
        "| --- |" + " --- |" * (len(models) + 1),
    ]
    pairs = dict.fromkeys((one["transform"], one["attack"]) for one in measured)
    shares = {
        (one["transform"], one["attack"], one["model"]): percent(one["vocabulary"])
        for one in measured
    }
    for transform, attack in pairs:
        cells = [shares.get((transform, attack, model), "") for model in models]
        rows.append(f"| `{transform}` | {attack} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


TABLES: Final[dict[str, Callable[[dict[str, Card], dict[str, Any]], str]]] = {
    "summary": summary,
    "strongest": strongest,
    "verdicts": verdicts,
    "attacks": attacks,
    "rivals": rivals,
}


def filled(text: str, cards: dict[str, Card], lines: dict[str, Any]) -> str:
    """`text` with every table as the cards have it. Raises KeyError for an unknown one."""
    return _MARK.sub(lambda m: m[1] + TABLES[m[2]](cards, lines) + m[3], text)


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 if something drifted"
    )
    chosen = parser.parse_args()
    cards, lines = load()
    drifted = False
    for file in FILES:
        text = file.read_text()
        fresh = filled(text, cards, lines)
        drifted |= fresh != text
        if not chosen.check:
            file.write_text(fresh)
    return int(chosen.check and drifted)


if __name__ == "__main__":
    raise SystemExit(main())
