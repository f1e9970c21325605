"""`veilrun mpc party`: P2, the assistant, who computes along and learns nothing."""

from __future__ import annotations

from veilrun.cli.mpc_roles import (
    LifelineOption,
    NetworkOption,
    PatienceOption,
    StateOption,
    ThreadsOption,
    announce,
    end_on_signals,
    threads_or_cores,
)
from veilrun.cli.options import JsonOption, log_to_stderr


def party(
    network: NetworkOption,
    state: StateOption,
    threads: ThreadsOption = None,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
    lifeline: LifelineOption = False,
) -> None:
    """P2, the assistant: compute along with the client, on shares."""
    from veilrun.mpc import network_file
    from veilrun.mpc.roles.assistant import Assistant
    from veilrun.mpc.roles.links import seated

    end_on_signals(lifeline=lifeline)
    log_to_stderr()
    with seated("P2", network_file.load(network), state) as seat:
        assistant = Assistant(seat, n_threads=threads_or_cores(threads), patience_s=patience)

        def on_ready(port: int) -> None:
            welcome = assistant.store.welcome
            model, run = welcome.digest.hex(), welcome.run.hex()[:16]
            facts = {"role": "P2", "port": port, "model": model, "run": run}
            text = f"P2 assists at port {port}: model {model[:16]}, run {run}"
            announce(facts, text, as_json=as_json)

        assistant.serve(on_ready)
