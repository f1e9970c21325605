"""`veilrun attest`: is that machine what it should be?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from veilrun import __version__
from veilrun.cli.options import JsonOption, stdout
from veilrun.errors import UsageError

if TYPE_CHECKING:  # --help needs none of it
    from veilrun.attest.verdict import Verdict

_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}
_STATUS_COLOURS = {
    "affirming": "green",
    "warning": "yellow",
    "none": "red",
    "contraindicated": "red",
}


def attest(
    evidence: Annotated[
        list[Path],
        typer.Argument(
            help="Evidence of one machine: quotes, reports, bundles.", metavar="EVIDENCE..."
        ),
    ],
    policy: Annotated[Path, typer.Option(help="What you accept: a TOML file.")],
    endorsements: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            help="What vendors say: certificates, revocation lists, collateral, manifests, event "
            "logs. Files, or folders of them; repeatable.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Verify as of this time, like 2025-06-20T10:56:11Z; now if not said."),
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(help="The challenge that it must answer, hex.", metavar="HEX")
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(help="SHA-256 of the TLS public key it must be about.", metavar="HEX"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Merkle root of the weights it must be about.", metavar="HEX"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify evidence of a machine offline; exit code 1 if your policy refuses it."""
    from veilrun.attest.bundle import Bundle
    from veilrun.attest.ear import encode_ear
    from veilrun.attest.files import load_endorsements, load_evidence, load_policy
    from veilrun.attest.policy import Demands
    from veilrun.attest.verdict import appraise

    rules = load_policy(policy)
    demands = Demands(
        _hex(nonce, "--nonce"), _hex(tls_key, "--tls-key"), _hex(weights, "--weights")
    )
    at_hand = Bundle(endorsements=load_endorsements(endorsements or []))
    verdict = appraise(load_evidence(evidence) + at_hand, rules, demands, _time(at))
    if as_json:
        stdout().print_json(encode_ear(verdict, f"veilrun {__version__}").decode())
    else:
        _show(verdict)
    if not verdict.accepted:
        raise typer.Exit(1)


def _hex(text: str | None, option: str) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError as error:
        raise UsageError(f"{option} must be hex") from error


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--at {text} is no time like 2025-06-20T10:56:11Z") from error


def _show(verdict: Verdict) -> None:
    table = Table(title=f"as of {verdict.at.isoformat()}", title_justify="left")
    for heading in ("evidence", "check", "outcome", "why"):
        table.add_column(heading, no_wrap=heading == "check")
    for one in verdict.appraisals:
        for check in one.checks:
            colour = _COLOURS[check.outcome]
            outcome = check.reason or check.outcome
            table.add_row(
                escape(one.label),
                escape(check.name),
                f"[{colour}]{escape(outcome)}[/]",
                escape(check.detail),
            )
        table.add_section()
    stdout().print(table)
    word = "accepted" if verdict.accepted else "refused"
    colour = _STATUS_COLOURS[verdict.status]
    stdout().print(f"[bold {colour}]{word}[/] ({verdict.status})")
    for check in verdict.checks:
        if check.outcome == "failed":
            why = f"{check.about}, {check.name}: {check.detail} ({check.reason})"
            stdout().print(escape(why), soft_wrap=True)
