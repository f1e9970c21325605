"""Every mode of equivariant encryption against every attack, on one real model; and the frontier.

    python benchmarks/red_team.py ../shared/models/stories260K [--only MODE] [--work FOLDER]

For each mode: encrypt, measure the agreement with the plain model, audit. Cards go to
`docs/red-team/MODE.json`; `frontier.json` has a line a mode; `frontier.svg` shows what each
attacker reads against what the mode costs in agreement. A mode whose card is there by the same
code is not measured again (the audit resumes). `red_team_tables.py` puts the numbers into README
and SECURITY. Prints one JSON line per mode, then a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scatter import Point, scatter

from veilrun import atomic
from veilrun.attacks.audit import audit, planned
from veilrun.attacks.building import build
from veilrun.attacks.card_json import decode_card, encode_card
from veilrun.attacks.catalogue import ATTACKS
from veilrun.attacks.wording import percent
from veilrun.equivariant import agreement
from veilrun.equivariant.client import find_client_kit, kits_folder
from veilrun.equivariant.compile import encrypt
from veilrun.equivariant.covariant import Noise
from veilrun.keys import MasterKey

POSITIONS: Final = 2048
KEY: Final = MasterKey(bytes(range(32)))
"""Not secret: whoever repeats the benchmark gets the same copies."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to protect. fine_tuned: the model is a fine-tune, and attackers have its base."""

    name: str
    strength: str | None = None
    noise: float | None = None
    ends: str = "node"
    fine_tuned: bool = False


MODES: Final = (
    Mode("permutation", strength="permutation"),
    Mode("structured", strength="structured"),
    Mode("haar", strength="haar"),
    Mode("noise-0.5", noise=0.5),
    Mode("noise-1", noise=1.0),
    Mode("noise-2", noise=2.0),
    Mode("noise-4", noise=4.0),
    Mode("ends-client", ends="client"),
    Mode("fine-tune", strength="structured", fine_tuned=True),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One mode. recovered: the strongest attack's share of the tokens, by attacker."""

    mode: str
    agreement: float
    kl_mean: float
    recovered: dict[str, float]
    by: dict[str, str]


def measure(mode: Mode, model: Path, work: Path, docs: Path, console: Console) -> Result:
    """Encrypt, compare, attack; write the card."""
    plain = fine_tune(model, work) if mode.fine_tuned else model
    out, key_file = work / mode.name, work / "key"
    if not out.exists():
        noise = None if mode.noise is None else Noise.of(mode.noise)
        encrypt(
            plain,
            out,
            KEY,
            kits=kits_folder(key_file),
            strength=mode.strength,
            noise=noise,
            ends=mode.ends,
        )
    same = compare(plain, out, key_file)
    subject = build(out, key_file, KEY, model)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(mode.name, total=sum(planned(subject, ATTACKS).values()))
        card = audit(
            subject,
            ATTACKS,
            work / f"{mode.name}.audit",
            on_task=lambda attack, level, outcome: progress.update(
                bar,
                advance=outcome is not None,
                description=f"{mode.name}: {attack.title} ({level})",
            ),
        )
    docs.mkdir(parents=True, exist_ok=True)
    atomic.write_file(docs / f"{mode.name}.json", encode_card(card))
    best = {level: card.strongest(level) for level in card.levels}
    rates = {level: one.rate.share for level, one in best.items() if one and one.rate}
    by = {level: one.attack for level, one in best.items() if one and one.rate}
    return Result(mode.name, same.top_token_share, same.kl_mean, rates, by)


def compare(plain: Path, out: Path, key_file: Path) -> agreement.Agreement:
    """Top tokens of plain and encrypted model, on the plain model's own kind of text."""
    from veilrun.checkpoint.folder import read_manifest

    kit = find_client_kit(key_file, KEY, read_manifest(out).fingerprint)
    windows = agreement.windows(plain, agreement.SAMPLE_TEXT, POSITIONS, 256)
    return agreement.measure(plain, out, kit.codec, windows, "float32", ends_file=kit.ends_file)


def fine_tune(model: Path, work: Path) -> Path:
    """A fine-tune of the model, by the script in `training`."""
    out = work / "fine-tuned"
    if not out.exists():
        root = Path(__file__).resolve().parents[1]
        text = root.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
        script = root / "training" / "finetune_stories.py"
        subprocess.run([sys.executable, script, model, out, "--text", text], check=True)
    return out


def plot(results: list[Result], docs: Path) -> str:
    """Recovery against agreement: of each mode, the best attack that each attacker adds."""
    points = []
    for one in results:
        card = decode_card((docs / f"{one.mode}.json").read_bytes())
        for level in card.levels:
            shares = [
                made.rate.share for made in card.outcomes if made.level == level and made.rate
            ]
            if shares:
                points.append(Point(level, one.mode, one.agreement, max(shares)))
    return scatter(
        "what each attacker's own attacks read, and what the mode costs",
        "positions with the plain model's top token",
        "tokens of secret text read",
        points,
    )


def table(results: list[Result]) -> Table:
    """For people."""
    shown = Table(title="the strongest attack of each attacker")
    shown.add_column("mode")
    shown.add_column("agreement", justify="right")
    shown.add_column("attacker")
    shown.add_column("reads", justify="right")
    shown.add_column("by")
    for one in results:
        for level, share in one.recovered.items():
            shown.add_row(one.mode, f"{one.agreement:.1%}", level, percent(share), one.by[level])
    return shown


def main() -> None:
    """Read the arguments, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="folder of the plain model")
    parser.add_argument("--only", action="append", choices=[one.name for one in MODES])
    parser.add_argument("--work", type=Path, help="kept, and used again; a new one if none")
    parser.add_argument("--docs", type=Path, default=Path("docs/red-team"))
    chosen = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    modes = [one for one in MODES if chosen.only is None or one.name in chosen.only]
    with tempfile.TemporaryDirectory(prefix="veilrun-red-team-") as scratch:
        work = chosen.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        results: list[Result] = []
        for mode in modes:
            results.append(measure(mode, chosen.model, work, chosen.docs, console))
            sys.stdout.write(json.dumps(asdict(results[-1])) + "\n")
            sys.stdout.flush()
    write_frontier(results, chosen.docs)
    console.print(table(results))


def write_frontier(results: list[Result], docs: Path) -> None:
    """Merge with what was measured before, in the order of the modes; draw."""
    path = docs / "frontier.json"
    known: dict[str, Any] = {}
    if path.exists():
        known = {one["mode"]: one for one in json.loads(path.read_text())}
    known |= {one.mode: asdict(one) for one in results}
    ordered = [known[mode.name] for mode in MODES if mode.name in known]
    atomic.write_file(path, (json.dumps(ordered, indent=1) + "\n").encode())
    atomic.write_file(
        docs / "frontier.svg", plot([Result(**one) for one in ordered], docs).encode()
    )


if __name__ == "__main__":
    main()
