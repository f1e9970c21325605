"""Private inference of BERT among three parties of which no two collude.

The owner of a model deals material ahead of time, the client and an assistant compute on shares.
The text stays with the client and the weights with the owner; no machine sees both. All on one
machine, to try it:

    from pathlib import Path
    from veilrun.mpc import local

    with local(Path("sst2-quantised")) as client:      # from `veilrun mpc quantise`
        print(client.classify("a fine film"))

On three machines the owner runs `veilrun mpc deal`, the assistant `veilrun mpc party`, and the
client this, with the network file that all three have:

    with Client(Path("mpc.toml"), Path("state")) as client: ...

* `network`, `operations`, `gates`, `machines`: the protocol, written once for all parties.
* `plan`, `material`, `inference`: what it costs, what is dealt, and one inference end to end.
* `model`: from a checkpoint to integers.  `profile`: how wide they are.
* `wire`, `parcels`, `stock`, `ledger`, `roles`: the parties as processes.
"""

from __future__ import annotations

from veilrun.mpc.local import local
from veilrun.mpc.roles.client import Classification, Client, Cost, Embedding

__all__ = ["Classification", "Client", "Cost", "Embedding", "local"]
