"""TLS over sockets that never block, and what waits for them.

What takes time is written as *steps*: generators that do what is possible at once and then
yield what they need to go on. `carry` brings any number of them to their ends together, so
sending does not wait for receiving, nor one peer for another.

Steps cost time: after other work has emptied the processor's caches, a Python function more is
microseconds more. So what a party does in nearly each round has a straight way beside them:
`TlsSocket.begin` sends what it can at once, and `TlsSocket.fetch` waits for one peer alone.

Invariants. `carry` ends within the deadlines of its jobs, and `fetch` within its own. They sleep
only when all that is left to do needs what the network must bring or take: nothing that arrived
lies forgotten in a buffer. What has arrived and nobody reads yet is bounded, however much the
other side sends.
"""

from __future__ import annotations

import contextlib
import io
import math
import socket
import ssl
import time
from collections.abc import Generator, Iterable, Sequence
from select import POLLIN, POLLOUT, poll
from typing import Any, Final, Generic, TypeVar, final

from veilrun.errors import PeerError, TransportError, VeilrunError, VerificationError

T = TypeVar("T")

Steps = Generator[int, None, T]
"""Yields what it needs to go on: POLLIN, POLLOUT or both; 0: only that others have a turn."""

_RECORD_BYTES: Final = 2**14
"""TLS encrypts and decrypts no more at once."""
_PIECE_BYTES: Final = 2**18
"""Encrypted before they are sent; received before they are decrypted."""
_READ_AHEAD_BYTES: Final = 2**20
_AWAKE_S: Final = 1e-4
"""Parties in step are seldom later than this, and to be woken takes about as long."""
_LONGEST_SLEEP_S: Final = 3600.0
_ON_THE_WAY: Final = (4, 9, 11)
"""TCP's FIN_WAIT1, LAST_ACK and CLOSING: we ended, and they have not confirmed it."""


@final
class Job(Generic[T]):
    """Steps on one socket that must end by `deadline_s`; `complaint` says that they did not."""

    __slots__ = ("complaint", "deadline_s", "is_done", "result", "socket", "steps", "wants")

    def __init__(self, link: TlsSocket, steps: Steps[T], deadline_s: float, complaint: str) -> None:
        self.socket = link.socket
        self.steps = steps
        self.deadline_s = deadline_s
        self.complaint = complaint
        self.wants = 0
        self.is_done = False
        self.result: T

    def advance(self) -> None:
        """Go as far as is possible without waiting."""
        try:
            self.wants = next(self.steps)
        except StopIteration as end:
            self.result, self.is_done = end.value, True

    def check_time(self, now_s: float) -> None:
        """Raises TransportError if it is too late."""
        if now_s >= self.deadline_s:
            raise TransportError(self.complaint)


def carry(jobs: Sequence[Job[Any]]) -> None:
    """Bring all jobs to their ends; the first failure is raised and leaves the others half done."""
    while True:
        for job in jobs:
            job.advance()
        jobs = [job for job in jobs if not job.is_done]
        if not jobs:
            return
        now_s = time.monotonic()
        for job in jobs:
            job.check_time(now_s)
        wait(jobs)


def wait(
    jobs: Iterable[Job[Any]], listening: socket.socket | None = None, until_s: float = math.inf
) -> None:
    """Sleep until a job can go on or is too late, until somebody calls, or until `until_s`.

    May end earlier.
    """
    wants = {} if listening is None else {listening.fileno(): POLLIN}
    for job in jobs:
        if not job.wants:
            return
        number = job.socket.fileno()
        wants[number] = wants.get(number, 0) | job.wants
        until_s = min(until_s, job.deadline_s)
    sockets = poll()
    for number, mask in wants.items():
        sockets.register(number, mask)
    sockets.poll(_pause_ms(until_s - time.monotonic()))


def _pause_ms(rest_s: float) -> int:
    return max(0, math.ceil(1000 * min(rest_s, _LONGEST_SLEEP_S)))


@final
class TlsSocket:
    """One TCP connection under TLS.

    What is encrypted passes through buffers in memory, so one call of the network moves many
    TLS records, and `poll` on the socket tells all there is to know.

    host: whom we called, as our context knows them; None: they called us.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str | None) -> None:
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=host is None, server_hostname=host
        )
        self._scratch = memoryview(bytearray(_PIECE_BYTES))
        self._unsent = memoryview(b"")  # encrypted, and the network took it not yet
        self._arrivals = poll()  # tells that something arrived, if only the end
        self._arrivals.register(plain.fileno(), POLLIN)
        self._is_at_end = False  # nothing will arrive any more

    @property
    def certificate(self) -> bytes | None:
        """The other side's, in DER; None: it showed none."""
        return self._tls.getpeercert(binary_form=True)

    def shake_hands(self) -> Steps[None]:
        """Agree on keys; EOFError: they hung up. Other failures are OSErrors."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield from self._flush()
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # they learn why, if they still listen
                    self.socket.send(self._outgoing.read())
                raise
            while not self._take_in():
                yield POLLIN
            if self._is_at_end:
                raise EOFError
            yield 0
        yield from self._flush()

    def begin(self, header: bytes, content: bytes) -> memoryview | None:
        """Hand the network what it takes at once; `finish` needs what is returned, None: nothing.

        Failures are OSErrors.
        """
        n_first = _RECORD_BYTES - len(header)  # a short message is one record
        self._tls.write(header + content[:n_first])
        rest = memoryview(content)[n_first:]
        if rest:
            self._encrypt(rest[:_PIECE_BYTES])
            rest = rest[_PIECE_BYTES:]
        encrypted = self._outgoing.read()
        try:
            n_sent = self.socket.send(encrypted)
        except BlockingIOError:
            n_sent = 0
        if n_sent == len(encrypted) and not rest:
            return None
        self._unsent = memoryview(encrypted)[n_sent:]
        return rest

    def finish(self, rest: memoryview) -> Steps[None]:
        """Hand over what `begin` left; failures are OSErrors."""
        while True:
            yield from self._flush()
            if not rest:
                return
            self._encrypt(rest[:_PIECE_BYTES])
            rest = rest[_PIECE_BYTES:]

    def fetch(self, n_bytes: int, deadline_s: float, complaint: str) -> bytes | None:
        """What `read` gives, waited for here and in few steps. TransportError: it is too late."""
        if n_bytes > _PIECE_BYTES:
            job = Job(self, self.read(n_bytes), deadline_s, complaint)
            carry([job])
            return job.result
        parts = []
        n_left = n_bytes
        tls, incoming = self._tls, self._incoming
        while n_left:
            if incoming.pending or tls.pending():
                try:
                    part = tls.read(min(n_left, _RECORD_BYTES))
                except ssl.SSLWantReadError:  # a part of a record
                    pass
                else:
                    if not part:
                        return None
                    if len(part) == n_bytes:
                        return part
                    parts.append(part)
                    n_left -= len(part)
                    continue
            if self._is_at_end:
                return None
            rest_s = deadline_s - time.monotonic()
            if rest_s <= 0:
                raise TransportError(complaint)
            if not self._take_in_soon() and self._arrivals.poll(_pause_ms(rest_s)):
                self._take_in()
        return b"".join(parts)

    def read(self, n_bytes: int) -> Steps[bytes | None]:
        """So many bytes; None: they ended the connection before. Failures are OSErrors."""
        gathered: io.BytesIO | None = None
        n_left = n_bytes
        tls, incoming = self._tls, self._incoming
        while n_left:
            part: bytes | None = None
            if incoming.pending or tls.pending():  # else asking for more would cost an exception
                try:
                    part = tls.read(min(n_left, _RECORD_BYTES))
                except ssl.SSLWantReadError:  # a part of a record
                    part = None
            if part is None:
                if self._is_at_end:
                    return None
                yield POLLIN
                self._take_in()
                continue
            if not part:
                return None
            if len(part) == n_bytes:
                return part
            gathered = gathered or io.BytesIO()
            n_left -= gathered.write(part)
        return gathered.getvalue() if gathered else b""  # this copies nothing, however large

    def part(self, timeout_s: float) -> None:
        """Say that no more follows, and wait until their machine has all we sent.

        To close at once would not do: whatever of theirs arrives after that, be it TLS's own,
        makes this machine throw away what it has not delivered.
        """
        end_s = time.monotonic() + timeout_s
        with contextlib.suppress(ssl.SSLError):  # raised when they have not parted from us yet
            self._tls.unwrap()
        carry([Job(self, self._flush(), end_s, "the rest of what was sent is not taken")])
        self.socket.shutdown(socket.SHUT_WR)
        pause_s = 1e-4
        while not self._is_at_end and not _is_confirmed(self.socket) and time.monotonic() < end_s:
            self._incoming.read()
            if not self._take_in():
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.01)

    def _encrypt(self, content: memoryview) -> None:
        while content:
            content = content[self._tls.write(content) :]

    def _take_in(self) -> bool:
        """Whether something has arrived, if only the end. It waits to be decrypted."""
        try:
            n_bytes = self.socket.recv_into(self._scratch)
        except BlockingIOError:
            return False
        self._is_at_end = n_bytes == 0
        self._incoming.write(self._scratch[:n_bytes])
        return True

    def _take_in_soon(self) -> bool:
        """Look for a moment whether something arrives, as whoever sleeps is woken late."""
        end_s = time.monotonic() + _AWAKE_S
        while time.monotonic() < end_s:
            if self._take_in():
                return True
        return False

    def _flush(self) -> Steps[None]:
        self._unsent = self._unsent or memoryview(self._outgoing.read())
        while self._unsent:
            try:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
            except BlockingIOError:
                # They may first want to send what we read only later: let them, if it fits.
                has_room = not self._is_at_end and self._incoming.pending < _READ_AHEAD_BYTES
                yield POLLOUT | (POLLIN if has_room else 0)
                if has_room and self._take_in():
                    yield 0


def _is_confirmed(ended: socket.socket) -> bool:
    """Whether the other machine confirmed all, the end included. Only Linux can tell."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return False
    return ended.getsockopt(socket.IPPROTO_TCP, option, 1)[0] not in _ON_THE_WAY


# --- how they come about -------------------------------------------------------------------


def call(host: str, port: int, peer: str, context: ssl.SSLContext, timeout_s: float) -> TlsSocket:
    """Connect to `peer` and agree on keys; errors as `channel.connect` documents them."""
    deadline_s = time.monotonic() + timeout_s
    whom = f"{peer} at {host}:{port}"
    late = f"{whom} did not answer within {timeout_s:g} s"
    try:
        plain = socket.create_connection((host, port), timeout_s)
    except TimeoutError as error:
        raise TransportError(late) from error
    except OSError as error:
        raise TransportError(f"cannot reach {whom}: {error}") from error
    try:
        if plain.getsockname() == plain.getpeername():  # asked often enough, TCP does that
            raise TransportError(f"cannot reach {whom}: nobody listens there")
        link = TlsSocket(plain, context, host)
        carry([Job(link, link.shake_hands(), deadline_s, late)])
        return link
    except BaseException as error:
        plain.close()
        if isinstance(error, OSError | EOFError):
            raise _blame(error, whom) from error
        raise


@final
class Caller:
    """A client that is agreeing on keys with us, from `address`, at the latest in `timeout_s`."""

    def __init__(
        self,
        plain: socket.socket,
        address: tuple[str, int],
        context: ssl.SSLContext,
        timeout_s: float,
    ) -> None:
        self.address = "{}:{}".format(*address[:2])
        self.link = TlsSocket(plain, context, None)
        late = f"it agreed on no keys within {timeout_s:g} s"
        self.job = Job(self.link, self.link.shake_hands(), time.monotonic() + timeout_s, late)


def _blame(error: OSError | EOFError, whom: str) -> VeilrunError:
    """Whose fault it is that there is no connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return VerificationError(f"{whom}: {error.verify_message}")
    if isinstance(error, EOFError | ConnectionError | ssl.SSLZeroReturnError):
        return TransportError(f"{whom} hung up while agreeing on keys")
    if isinstance(error, ssl.SSLError):
        return PeerError(f"{whom}: no TLS: {error.reason}")
    return TransportError(f"cannot reach {whom}: {error}")


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens; TransportError: the address is taken or not ours."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise TransportError(f"cannot listen at {host}:{port}: {error}") from error
