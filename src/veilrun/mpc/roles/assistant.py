"""P2, the assistant: holds half of everything, computes along, and learns nothing.

It serves one client after the other, on a thread, while the main thread turns others away.

Invariant: whatever the client or the dealer sends or fails to send, the next client is served.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, final

import numpy as np

from veilrun.errors import (
    BusyError,
    DamagedError,
    PeerError,
    RefusedError,
    TransportError,
    VeilrunError,
    VerificationError,
)
from veilrun.mpc import embedding, weight_shares, wire
from veilrun.mpc.roles import links
from veilrun.mpc.roles.joining import join
from veilrun.mpc.roles.links import Seat
from veilrun.mpc.roles.online import Computer, Prepared, given, tweak
from veilrun.mpc.shares import Array, dtype_of
from veilrun.transport.channel import Channel
from veilrun.transport.rounds import Protocol

_GRACE_S: Final = 2.0
"""A client that calls again may be faster than the end of its call before."""

_log = logging.getLogger(__name__)


@final
class Assistant:
    """Serves one run's clients."""

    def __init__(
        self, seat: Seat, *, n_threads: int = 1, patience_s: float = links.DEFAULT_PATIENCE_S
    ) -> None:
        """Meet the dealer, and load this party's shares.

        Raises:
            TransportError: the dealer cannot be reached, and this party has nothing yet.
            PeerError, RefusedError, StorageError: see `joining.join`.
        """
        self._seat = seat
        self.store, setup = join(seat, patience_s)
        self._part = weight_shares.decode_assistant(setup, n_threads)
        self._computer = Computer(self.store, self._part.public, self._part.matrices, n_threads)
        self._serving = threading.Lock()

    def serve(self, on_ready: Callable[[int], None]) -> None:
        """Serve until interrupted. on_ready: told the port.

        Raises:
            TransportError: the address is taken or not ours.
        """
        with links.listen(self._seat, "P1") as listener:
            on_ready(listener.port)
            while True:
                link = listener.accept()
                if self._serving.acquire(timeout=_GRACE_S):
                    work = self._attend
                else:
                    work = self._turn_away
                threading.Thread(target=work, args=(link,), daemon=True).start()

    def _turn_away(self, link: Channel) -> None:
        _log.warning("turned away a second client")
        error = BusyError("P2 serves another client; it serves one at a time, try again later")
        links.refuse(link, error)

    def _attend(self, link: Channel) -> None:
        """One client, to its end."""
        try:
            while True:
                try:
                    frame = link.receive()
                except TransportError as error:
                    _log.debug("%s: %s", link.peer, error)
                    return
                self._answer(link, wire.decode(frame))
        except VeilrunError as error:
            _log.warning("%s: %s", link.peer, error)
            links.refuse(link, error)
        finally:
            link.close()
            self._serving.release()

    def _answer(self, link: Channel, message: wire.Control) -> None:
        if isinstance(message, wire.Collect):
            self._collect(link)
            links.send(link, wire.Confirmed())
        elif isinstance(message, wire.Hello):
            self._infer(link, message)
        else:
            raise PeerError(f"{link.peer} sent {message.kind}, which is not its to send here")

    def _infer(self, link: Channel, hello: wire.Hello) -> None:
        serial, n_tokens = hello.serial, hello.n_tokens
        self._computer.check_hello(hello, serial, n_tokens)
        if serial in self.store.ledger:
            raise RefusedError(f"serial {serial} was used before; none is used twice")
        if not self.store.has(str(serial)):
            self._collect(link, serial)
        try:
            prepared = self._computer.prepare(serial, n_tokens)
        except DamagedError:
            self.store.discard(serial)
            raise
        links.send(link, self._computer.hello(serial, n_tokens))
        links.receive(link, wire.Go)
        self.store.use(serial)
        try:
            ran = self._computer.run(prepared, self._entry(prepared), {link.peer: link})
        finally:
            self.store.discard(serial)
        links.send(link, wire.Done(prepared.n_bytes, ran.online_s, ran.cpu_s))

    def _entry(self, prepared: Prepared) -> Protocol[Array]:
        public, n_tokens = self._part.public, prepared.n_tokens
        bits = public.profile.rings.linear
        if self._part.masked is None:
            return given(np.zeros((n_tokens, public.architecture.hidden), dtype_of(bits)))
        welcome = self.store.welcome
        return embedding.share(
            welcome.key, self._part.masked, n_tokens, bits, prepared.serial,
            tweak(welcome, prepared.serial),
        )  # fmt: skip

    def _collect(self, link: Channel, serial: int | None = None) -> None:
        """Fetch material from the dealer: of one serial, or all that waits."""
        beat = links.beat(link)
        with links.call(self._seat, "P0") as dealer:
            welcome = links.greet(self._seat, dealer)
            if (welcome.digest, welcome.run) != (self.store.welcome.digest, self.store.welcome.run):
                raise VerificationError("the dealer has begun another run: start P2 again")
            if serial is not None:
                self._fetch(dealer, serial, beat)
                return
            waiting = links.ask(dealer, wire.ListDealt(), wire.Dealt)
            for one in waiting.serials.tolist():
                links.fetch(dealer, self.store, str(one), beat)

    def _fetch(self, dealer: Channel, serial: int, beat: Callable[[], None]) -> None:
        try:
            links.fetch(dealer, self.store, str(serial), beat)
        except PeerError as error:
            self.store.discard(serial)
            raise DamagedError(f"serial {serial} cannot be had from the dealer: {error}") from error
