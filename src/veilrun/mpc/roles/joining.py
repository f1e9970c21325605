"""How a party comes to its part of the model: once over the network, later from its own disk."""

from __future__ import annotations

import contextlib
import logging

from veilrun.errors import BusyError, DamagedError, TransportError
from veilrun.mpc import parcels
from veilrun.mpc.roles import links
from veilrun.mpc.roles.links import Seat
from veilrun.mpc.stock import Store
from veilrun.mpc.wire import SETUP

_log = logging.getLogger(__name__)


def join(seat: Seat, patience_s: float) -> tuple[Store, bytes]:
    """The store of the dealer's run, and the set-up parcel, checked.

    The dealer is asked which run it serves. If it cannot be reached, the run met last goes on,
    where it is complete: material in stock needs no dealer.

    Raises:
        TransportError: the dealer cannot be reached, and this party has nothing yet.
        PeerError: it refuses, or sends something else than it says.
        RefusedError, StorageError: this party's store is broken.
    """
    known = Store.latest(seat.state, seat.role)
    is_complete = known is not None and known.has(SETUP)
    try:
        with links.call(seat, "P0", 0.0 if is_complete else patience_s) as link:
            store = Store.meet(seat.state, seat.role, links.greet(seat, link))
            with contextlib.suppress(DamagedError):  # a missing one is damaged, too
                return store, store.read(SETUP)
            if store.has(SETUP):
                _log.warning("the set-up is damaged on this machine; fetching it again")
                parcels.remove(store.stem(SETUP))
            links.fetch(link, store, SETUP)
            return store, store.read(SETUP)
    except TransportError as error:
        if known is None or not known.has(SETUP) or isinstance(error, BusyError):
            raise
        _log.warning("going on without the dealer: %s", error)
        return known, known.read(SETUP)
