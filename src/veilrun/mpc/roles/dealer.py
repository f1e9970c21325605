"""P0, the dealer and owner of the model: serves the two parties, each on a thread of its own.

It deals ahead of time, and answers questions about rows of a secret embedding, one per serial.
It sees how long the texts are and when they come, and nothing else of them.

Invariant: whatever a party sends or fails to send, the others are served on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import numpy as np

from veilrun.errors import (
    BusyError,
    PeerError,
    TransportError,
    VeilrunError,
)
from veilrun.mpc import embedding, inference, parcels, ring, weight_shares, wire
from veilrun.mpc.machines.dealer import Write
from veilrun.mpc.model.quantised import QuantisedModel
from veilrun.mpc.roles import links, online
from veilrun.mpc.roles.links import Seat
from veilrun.mpc.roles.outbox import PARTIES, Outbox
from veilrun.mpc.wire import SETUP
from veilrun.transport import channel
from veilrun.transport.channel import Channel

_GRACE_S: Final = 2.0
"""A party that calls again may be faster than the end of its call before."""

_log = logging.getLogger(__name__)


@final
class Dealer:
    """Serves one model. outbox: what it keeps of it."""

    def __init__(
        self, seat: Seat, model: QuantisedModel, tokenizer_json: bytes, digest: bytes,
        *, n_threads: int = 1, new_run: bool = False,
    ) -> None:  # fmt: skip
        """Make keys and set-up parcels where there are none.

        Raises:
            StorageError: the state cannot be written, or is damaged.
        """
        self.outbox = Outbox(seat.state, digest, new_run=new_run)
        self._seat = seat
        self._public = model.public
        self._model = inference.DealerModel(model, n_threads)
        self._dealing = threading.Lock()
        self._served = {role: threading.Lock() for role in PARTIES}
        table = weight_shares.masked_table(self.outbox.keys[0], model)
        self._masked = None if table is None else ring.pack(table)
        if not all(self.outbox.has(SETUP, role) for role in PARTIES):
            with self.outbox.writers(SETUP) as writers:
                writers[0].write(weight_shares.encode_client(model, tokenizer_json))
                key_1 = self.outbox.keys[0]
                writers[1].write(weight_shares.encode_assistant(model, key_1, table))
                self.outbox.finish(writers, SETUP, 0)

    def deal(self, n_tokens: int, beat: Callable[[], None] = lambda: None) -> wire.Dealt:
        """Deal one inference; both parties can fetch it then. beat: called often meanwhile.

        Raises:
            StorageError: no room.
        """
        while not self._dealing.acquire(timeout=links.BEAT_S / 4):
            beat()
        try:
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            serial = self.outbox.next_serial()
            key_1, key_2 = self.outbox.keys
            with self.outbox.writers(str(serial)) as writers:
                inference.deal(
                    self._model,
                    n_tokens,
                    (
                        online.stream_of(key_1, serial, n_tokens),
                        online.stream_of(key_2, serial, n_tokens),
                    ),
                    (_beating(writers[0].write, beat), _beating(writers[1].write, beat)),
                    online.tweak(self.outbox.welcomes["P1"], serial),
                )
                self.outbox.finish(writers, str(serial), n_tokens)
        finally:
            self._dealing.release()
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        return _dealt({serial: n_tokens}, seconds, cpu_s)

    def deal_stock(self, stock: Sequence[tuple[int, int]]) -> None:
        """Deal until so many of each length wait. stock: (n_tokens, count)."""
        lengths = list(self.outbox.waiting("P1").values())
        for n_tokens, count in stock:
            for _ in range(count - lengths.count(n_tokens)):
                self.deal(n_tokens)
            _log.info("%d inferences of %d tokens wait", count, n_tokens)

    def serve(self, on_ready: Callable[[int], None], stock: Sequence[tuple[int, int]] = ()) -> None:
        """Serve until interrupted. on_ready: told the port. stock: to deal meanwhile.

        Raises:
            TransportError: the address is taken or not ours.
        """
        with links.listen(self._seat, *PARTIES) as listener:
            on_ready(listener.port)
            if stock:
                threading.Thread(target=self._stock, args=(stock,), daemon=True).start()
            while True:
                link = listener.accept()
                threading.Thread(target=self._attend, args=(link,), daemon=True).start()

    def _stock(self, stock: Sequence[tuple[int, int]]) -> None:
        try:
            self.deal_stock(stock)
        except VeilrunError as error:
            _log.warning("dealing ahead: %s", error)

    def _attend(self, link: Channel) -> None:
        """One connection, to its end."""
        served = self._served[link.peer]
        if not served.acquire(timeout=_GRACE_S):
            _log.warning("turned away a second %s", link.peer)
            links.refuse(link, BusyError(f"{link.peer} is connected already, as another process"))
            return
        try:
            self._converse(link)
        except VeilrunError as error:
            _log.warning("%s: %s", link.peer, error)
            links.refuse(link, error)
        finally:
            link.close()
            served.release()

    def _converse(self, link: Channel) -> None:
        greeting = links.receive(link, wire.Greeting)
        links.check_version(greeting.version, link.peer)
        if greeting.role != link.peer:
            raise PeerError(f"{link.peer}, by its certificate, says that it is {greeting.role}")
        links.send(link, self.outbox.welcomes[link.peer])
        while True:
            try:
                frame = link.receive()
            except TransportError as error:
                _log.debug("%s: %s", link.peer, error)
                return
            self._answer(link, wire.decode(frame))

    def _answer(self, link: Channel, message: wire.Control) -> None:
        role = link.peer
        if isinstance(message, wire.ListDealt):
            links.send(link, _dealt(self.outbox.waiting(role)))
        elif isinstance(message, wire.Describe):
            links.send(link, self.outbox.manifest(message.parcel, role))
        elif isinstance(message, wire.Fetch):
            self._send_chunks(link, message)
        elif isinstance(message, wire.Confirm):
            self.outbox.confirmed(message.parcel, role)
            links.send(link, wire.Confirmed())
        elif isinstance(message, wire.Deal) and role == "P1":
            self._check_length(message.n_tokens)
            links.send(link, self.deal(message.n_tokens, links.beat(link)))
        elif isinstance(message, wire.Question) and role == "P1":
            self._answer_question(link, message)
        else:
            raise PeerError(f"{role} sent {message.kind}, which is not its to send here")

    def _send_chunks(self, link: Channel, wanted: wire.Fetch) -> None:
        manifest = self.outbox.manifest(wanted.parcel, link.peer)
        end = wanted.first + wanted.n_chunks
        if end > len(manifest.chunks):
            raise PeerError(f"parcel {wanted.parcel} has no chunk {end - 1}")
        stem = self.outbox.stem(wanted.parcel, link.peer)
        for index in range(wanted.first, end):
            link.send(parcels.read_chunk(stem, index))

    def _answer_question(self, link: Channel, question: wire.Question) -> None:
        if self._masked is None:
            raise PeerError("this model's embedding is public: there is nothing to ask")
        self._check_length(question.n_tokens)
        self.outbox.answered.mark(question.serial)
        links.send(link, wire.Listening())
        protocol = embedding.answer(
            self.outbox.keys[1],
            self._masked,
            question.n_tokens,
            self._public.profile.rings.linear,
            question.serial,
            online.tweak(self.outbox.welcomes["P1"], question.serial),
        )
        channel.run(protocol, {"P1": link})

    def _check_length(self, n_tokens: int) -> None:
        longest = self._public.architecture.max_tokens
        if n_tokens > longest:
            raise PeerError(f"{n_tokens} tokens, and this model reads {longest}")


def _beating(write: Callable[[bytes | memoryview], None], beat: Callable[[], None]) -> Write:
    def both(content: bytes | memoryview) -> None:
        write(content)
        beat()

    return both


def _dealt(lengths: Mapping[int, int], seconds: float = 0.0, cpu_s: float = 0.0) -> wire.Dealt:
    return wire.Dealt(
        np.array(list(lengths), np.int64),
        np.array(list(lengths.values()), np.int64),
        float(seconds),
        float(cpu_s),
    )
