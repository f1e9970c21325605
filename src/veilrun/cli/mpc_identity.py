"""`veilrun mpc identity`: make this party's certificate, and say where it lies."""

from __future__ import annotations

import json

import typer

from veilrun.cli.mpc_roles import StateOption
from veilrun.cli.options import JsonOption, stdout
from veilrun.transport import tls


def identity(state: StateOption, as_json: JsonOption = False) -> None:
    """Make this party's certificate, once; give it to the others for their network file."""
    own = tls.ensure_identity(state)
    if as_json:
        typer.echo(json.dumps({"certificate": str(own.certificate_path), "pin": own.pin}))
        return
    stdout().print(
        f"certificate  {own.certificate_path}\npin          {own.pin}\n"
        "give the certificate to the other two, and compare the pin over the telephone; "
        "the private key beside it never leaves this machine",
        soft_wrap=True,
        markup=False,
    )
