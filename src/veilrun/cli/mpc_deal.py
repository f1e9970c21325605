"""`veilrun mpc deal MODEL`: P0, the model's owner, who deals material to the other two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilrun.cli.mpc_roles import (
    LifelineOption,
    NetworkOption,
    StateOption,
    ThreadsOption,
    announce,
    end_on_signals,
    parse_stock,
    threads_or_cores,
)
from veilrun.cli.options import JsonOption, log_to_stderr

Model = Annotated[
    Path, typer.Argument(help="Folder that `veilrun mpc quantise` wrote.", metavar="MODEL")
]
Stock = Annotated[
    str | None,
    typer.Option(
        "--stock", help="Deal ahead: TOKENSxCOUNT, like 16x4,32x2.", metavar="TOKENSxCOUNT,..."
    ),
]
NewRun = Annotated[
    bool,
    typer.Option(
        "--new-run", help="New keys; all material dealt before is void. Start the others again."
    ),
]


def deal(
    model: Model,
    network: NetworkOption,
    state: StateOption,
    stock: Stock = None,
    threads: ThreadsOption = None,
    new_run: NewRun = False,
    as_json: JsonOption = False,
    lifeline: LifelineOption = False,
) -> None:
    """P0, the model's owner: deal material to the client and the assistant."""
    from veilrun.mpc import network_file
    from veilrun.mpc.model import files
    from veilrun.mpc.roles.dealer import Dealer
    from veilrun.mpc.roles.links import seated

    end_on_signals(lifeline=lifeline)
    wanted = parse_stock(stock)
    log_to_stderr()
    with seated("P0", network_file.load(network), state) as seat:
        digest = files.digest(model)
        dealer = Dealer(
            seat,
            files.load(model),
            files.load_tokenizer_json(model),
            digest,
            n_threads=threads_or_cores(threads),
            new_run=new_run,
        )

        def on_ready(port: int) -> None:
            run = dealer.outbox.run.hex()[:16]
            facts = {"role": "P0", "port": port, "model": digest.hex(), "run": run}
            text = f"P0 deals at port {port}: model {digest.hex()[:16]}, run {run}"
            announce(facts, text, as_json=as_json)

        dealer.serve(on_ready, wanted)
