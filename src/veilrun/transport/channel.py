"""Connections for code that waits: the synchronous twin of `streams` and of `rounds.drive`.

A party that only computes and exchanges frames in step needs no event loop, and without one a
round costs a fraction. The format is that of `streams`, so a channel and a stream understand
each other; per frame: b"VRF", the version, 1 byte: 1; length u32 little-endian; the frame.

Invariants. A `Channel` that failed or was interrupted half-way through a frame is dead: each
later call raises `TransportError`. An `exchange` that fails ends every channel it used, so all
its peers learn of it. Whatever a peer sends, a call returns or raises `PeerError` or
`TransportError` within its `Bounds`. A peer that announces much and sends little costs no
memory; the buffer grows with what has arrived.

Not covered: sizes and times of frames show through TLS. The look-up of a host's name has no
bound of ours. A channel or listener serves one thread at a time.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Final, Self, TypeVar, final

from veilrun.errors import (
    RefusedError,
    TransportError,
    UsageError,
    VeilrunError,
)
from veilrun.transport.connection import (
    DEFAULT_BOUNDS,
    FRAME_HEADER,
    Bounds,
    Traffic,
    announced_bytes,
    frame_header,
)
from veilrun.transport.rounds import Inbox, Protocol, Round, check_known
from veilrun.transport.sockets import Caller, Job, Steps, TlsSocket, call, carry, open_port, wait
from veilrun.transport.streams import NameOf, address_as_name

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MAX_WAITING: Final = 16
"""Clients that agree on keys at the same time; one more waits to be let in."""
_RETRY_S: Final = 0.05


@final
class Channel:
    """Frames to and from one peer. `connect` and `Listener.accept` make it.

    peer: the other side's name, as this side calls it.
    certificate: the other side's, in DER; None: it showed none.
    """

    def __init__(self, peer: str, link: TlsSocket, bounds: Bounds) -> None:
        self.peer = peer
        self.certificate = link.certificate
        self._link = link
        self._bounds = bounds
        self._limit = min(bounds.max_frame_bytes, 2**32 - 1)
        self._n_sent_frames = self._sent_bytes = self._n_received_frames = self._received_bytes = 0
        self._late_to_take = f"{peer} took no frame within {bounds.send_timeout_s:g} s"
        self._late_to_send = f"{peer} sent no frame within {bounds.receive_timeout_s:g} s"
        self._is_closed = False  # by this side
        self._end: str | None = None  # why nothing passes any more

    @property
    def traffic(self) -> Traffic:
        """What passed so far."""
        return Traffic(
            self._n_sent_frames, self._sent_bytes, self._n_received_frames, self._received_bytes
        )

    def send(self, frame: bytes) -> None:
        """Hand one frame to the network; the peer may not have it yet.

        Raises:
            UsageError: the frame is larger than both sides agreed, or we closed before.
            TransportError: the connection is lost, or takes nothing for `send_timeout_s`.
        """
        exchange({self.peer: self}, Round({self.peer: frame}, awaited=frozenset()))

    def receive(self) -> bytes:
        """The peer's next frame.

        Raises:
            PeerError: what came is no frame, or a larger one than both sides agreed.
            TransportError: the connection is lost, or silent for `receive_timeout_s`.
            UsageError: we closed before.
        """
        return exchange({self.peer: self}, Round({}, awaited={self.peer}))[self.peer]

    def close(self) -> None:
        """Deliver what `send` accepted, then part. Never fails; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._end is None:
                self._link.part(self._bounds.connect_timeout_s)
        except (OSError, TransportError) as error:  # lost: there is no more to part from
            _log.debug("parting from %s: %s", self.peer, error)
        finally:
            self._link.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What `exchange` does with each channel.

    def _check(self, frame: bytes) -> None:
        if self._is_closed:
            raise UsageError(f"this side has closed the connection to {self.peer}")
        if self._end is not None:
            raise TransportError(f"the connection to {self.peer} has ended: {self._end}")
        if len(frame) > self._limit:
            size = f"{len(frame)} bytes to {self.peer}, the limit is {self._limit}"
            raise UsageError(f"frame of {size}")

    def _fail(self, error: BaseException) -> None:
        self._end = str(error) or type(error).__name__
        self._link.socket.close()

    def _swap(self, frame: bytes) -> bytes:
        """`exchange` with this peer alone: what nearly all rounds are, and so in few steps."""
        self._check(frame)
        now_s = time.monotonic()
        try:
            sending = self._send(frame, now_s)
            if sending is None:
                return self._fetch(now_s + self._bounds.receive_timeout_s)
            carry([sending, receiving := self._receiving(now_s)])
            return receiving.result
        except BaseException as error:
            self._fail(error)
            raise

    def _send(self, frame: bytes, now_s: float) -> Job[None] | None:
        """Send what can be sent at once; the job sends the rest, if there is any."""
        try:
            rest = self._link.begin(frame_header(frame), frame)
        except OSError as error:
            raise TransportError(f"lost {self.peer}: {error}") from error
        if rest is not None:
            end_s = now_s + self._bounds.send_timeout_s
            return Job(self._link, self._send_rest(rest, len(frame)), end_s, self._late_to_take)
        self._n_sent_frames += 1
        self._sent_bytes += len(frame)
        return None

    def _send_rest(self, rest: memoryview, n_bytes: int) -> Steps[None]:
        try:
            yield from self._link.finish(rest)
        except OSError as error:
            raise TransportError(f"lost {self.peer}: {error}") from error
        self._n_sent_frames += 1
        self._sent_bytes += n_bytes

    def _receiving(self, now_s: float) -> Job[bytes]:
        deadline_s = now_s + self._bounds.receive_timeout_s
        return Job(self._link, self._receive(), deadline_s, self._late_to_send)

    def _receive(self) -> Steps[bytes]:
        try:
            n_bytes = self._announced((yield from self._link.read(FRAME_HEADER.size)))
            return self._received((yield from self._link.read(n_bytes)))
        except OSError as error:
            raise TransportError(f"lost {self.peer}: {error}") from error

    def _fetch(self, deadline_s: float) -> bytes:
        """What `_receive` gives, waited for here."""
        link, late = self._link, self._late_to_send
        try:
            n_bytes = self._announced(link.fetch(FRAME_HEADER.size, deadline_s, late))
            return self._received(link.fetch(n_bytes, deadline_s, late))
        except OSError as error:
            raise TransportError(f"lost {self.peer}: {error}") from error

    def _announced(self, header: bytes | None) -> int:
        if header is None:
            raise TransportError(f"{self.peer} closed the connection before a frame")
        return announced_bytes(header, self.peer, self._bounds)

    def _received(self, frame: bytes | None) -> bytes:
        if frame is None:
            raise TransportError(f"{self.peer} closed the connection within a frame")
        self._n_received_frames += 1
        self._received_bytes += len(frame)
        return frame


# --- rounds --------------------------------------------------------------------------------


def exchange(channels: Mapping[str, Channel], round_: Round) -> Inbox:
    """Send all that goes out and receive all that is awaited, everything at once.

    Raises:
        UsageError: there is no such channel, we closed it, or a frame is larger than agreed.
            Nothing was sent then.
        PeerError, TransportError: as `Channel.send` and `Channel.receive` say.
    """
    if round_.awaited is None and len(round_.outgoing) == 1:
        for peer, frame in round_.outgoing.items():
            if peer in channels:
                return {peer: channels[peer]._swap(frame)}
    senders = round_.senders
    used = {*round_.outgoing, *senders}
    check_known(used, channels)
    for peer in used:
        channels[peer]._check(round_.outgoing.get(peer, b""))
    now_s = time.monotonic()
    try:
        # Both directions at once: two parties that each first send more than the network's
        # buffers hold would wait for one another for ever.
        sending = [channels[peer]._send(one, now_s) for peer, one in round_.outgoing.items()]
        receiving = [channels[peer]._receiving(now_s) for peer in senders]
        carry([*(job for job in sending if job is not None), *receiving])
    except BaseException as error:
        for peer in used:
            channels[peer]._fail(error)
        raise
    return {peer: job.result for peer, job in zip(senders, receiving, strict=True)}


def run(protocol: Protocol[T], channels: Mapping[str, Channel]) -> T:
    """Run one party; `channels` go by the names the protocol calls its peers.

    The caller owns the channels and closes them; after a failure they are of no more use.

    Raises:
        UsageError: the protocol names a peer that there is no channel to.
        PeerError, TransportError: from a channel; whatever the protocol itself raises.
    """
    try:
        round_ = next(protocol)
        while True:
            round_ = protocol.send(exchange(channels, round_))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        protocol.close()


# --- who is there --------------------------------------------------------------------------


def connect(
    host: str,
    port: int,
    *,
    peer: str,
    context: ssl.SSLContext,
    bounds: Bounds = DEFAULT_BOUNDS,
    patience_s: float = 0.0,
) -> Channel:
    """Connect to `peer` at host:port.

    patience_s: for how long to call again while nobody answers; parties start in any order.

    Raises:
        RefusedError: `context` checks no certificate.
        VerificationError: the certificate is not the expected one.
        PeerError: whoever answers does not speak TLS as we do.
        TransportError: nobody answers, or not within `connect_timeout_s`.
    """
    if context.verify_mode != ssl.CERT_REQUIRED:
        raise RefusedError(f"the TLS context for {peer} checks no certificate")
    last_call_s = time.monotonic() + patience_s - _RETRY_S
    while True:
        try:
            return Channel(peer, call(host, port, peer, context, bounds.connect_timeout_s), bounds)
        except TransportError:
            if time.monotonic() > last_call_s:
                raise
        time.sleep(_RETRY_S)


def listen(
    host: str,
    port: int,
    *,
    context: ssl.SSLContext,
    name_of: NameOf = address_as_name,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> Listener:
    """Listen until the listener is closed; port 0 takes a free one.

    Raises:
        TransportError: the address is taken or not ours.
    """
    return Listener(open_port(host, port), context, name_of, bounds)


@final
class Listener:
    """Clients that come, one at a time. Closes at the end of a `with` block; the channels that
    were accepted stay. port: where it listens.

    Clients agree on keys while `accept` runs, several at once, so one that says nothing does
    not keep the others waiting.
    """

    def __init__(
        self, plain: socket.socket, context: ssl.SSLContext, name_of: NameOf, bounds: Bounds
    ) -> None:
        self.port: int = plain.getsockname()[1]
        plain.setblocking(False)
        self._plain = plain
        self._context = context
        self._name_of = name_of
        self._bounds = bounds
        self._callers: list[Caller] = []
        self._is_closed = False

    def accept(self, timeout_s: float | None = None) -> Channel:
        """The next client; without `timeout_s`, however long it takes.

        Raises:
            TransportError: nobody came within `timeout_s`, or the system lets nobody in.
            UsageError: we closed before.
        """
        if self._is_closed:
            raise UsageError("this side does not listen any more")
        until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._let_in()
            for caller in list(self._callers):
                channel = self._welcome(caller)
                if channel is not None:
                    return channel
            if time.monotonic() >= until_s:
                raise TransportError(f"nobody connected within {timeout_s:g} s")
            listening = self._plain if len(self._callers) < _MAX_WAITING else None
            wait([caller.job for caller in self._callers], listening, until_s)

    def close(self) -> None:
        """Listen no more and turn away who was not accepted; a second call does nothing."""
        self._is_closed = True
        self._plain.close()
        for caller in self._callers:
            caller.link.socket.close()
        self._callers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _let_in(self) -> None:
        timeout_s = self._bounds.connect_timeout_s
        while len(self._callers) < _MAX_WAITING:
            try:
                plain, address = self._plain.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone again
                continue
            except OSError as error:
                raise TransportError(f"cannot let clients in: {error}") from error
            self._callers.append(Caller(plain, address, self._context, timeout_s))

    def _welcome(self, caller: Caller) -> Channel | None:
        """The channel to a caller that agreed on keys and has a name. Others are turned away."""
        is_kept = False
        try:
            caller.job.advance()
            if caller.job.is_done:
                name = self._name_of(caller.link.certificate, caller.address)
                is_kept = True
                self._callers.remove(caller)
                return Channel(name, caller.link, self._bounds)
            caller.job.check_time(time.monotonic())
            is_kept = True
        except (VeilrunError, OSError, EOFError) as error:
            _log.warning("turned away %s: %s", caller.address, str(error) or "it hung up")
        finally:
            if not is_kept:
                self._callers.remove(caller)
                caller.link.socket.close()
        return None
