"""How the parties reach one another: mutually pinned TLS, questions, answers, parcels.

Invariants. Who is at the other end is what its certificate says, never what it writes. Every
wait has an end: a peer that works says `working` at least every few seconds, and one that is
silent for longer than the channel's bounds is a `TransportError`.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, final

from veilrun.errors import (
    BusyError,
    DamagedError,
    PeerError,
    RefusedError,
    TransportError,
    UsageError,
    VeilrunError,
    VerificationError,
)
from veilrun.mpc import parcels, stock, wire
from veilrun.mpc.network_file import Network
from veilrun.mpc.parcels import Arrival
from veilrun.mpc.stock import Store
from veilrun.mpc.wire import CHUNK_BYTES, Control, Manifest
from veilrun.transport import channel, tls
from veilrun.transport.channel import Channel, Listener
from veilrun.transport.connection import Bounds
from veilrun.transport.tls import Identity

M = TypeVar("M", bound=Control)

BOUNDS: Final = Bounds(
    max_frame_bytes=256 * 2**20,
    connect_timeout_s=10.0,
    send_timeout_s=60.0,
    receive_timeout_s=60.0,
)
DEFAULT_PATIENCE_S: Final = 60.0
"""For how long a party that starts calls one that has not started yet."""
BEAT_S: Final = 5.0

_MAX_CHUNKS_AT_ONCE: Final = 32
_MAX_TRIES: Final = 3

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class Seat:
    """A party at its state: who it is, and who the others are."""

    role: str
    state: Path
    network: Network
    identity: Identity
    bounds: Bounds = BOUNDS


@contextlib.contextmanager
def seated(role: str, network: Network, state: Path, bounds: Bounds = BOUNDS) -> Iterator[Seat]:
    """Take a role's place: hold its state, and check that its certificate is the network's.

    Raises:
        RefusedError: another process holds the state, or others can read its private key.
        UsageError: the certificate is not the one that the network file gives this role.
    """
    with stock.locked(state):
        identity = tls.ensure_identity(state)
        seat = Seat(role, state, network, identity, bounds)
        if _der_of(identity) != network.members[role].certificate_der:
            raise UsageError(
                f"the network file gives {role} another certificate than {state} holds "
                f"(pin {identity.pin}): exchange certificates again, see `veilrun mpc identity`"
            )
        yield seat


def call(seat: Seat, role: str, patience_s: float = 0.0) -> Channel:
    """Connect to a party.

    Raises:
        VerificationError: whoever answers has not that party's certificate.
        TransportError: nobody answers.
    """
    member = seat.network.members[role]
    context = tls.peer_client_context(seat.identity, member.certificate_pem)
    try:
        return channel.connect(
            member.host, member.port, peer=role, context=context, bounds=seat.bounds,
            patience_s=patience_s,
        )  # fmt: skip
    except VerificationError as error:
        raise VerificationError(
            f"{error}: who answers there does not hold the certificate that the network file "
            f"gives {role}"
        ) from error


def listen(seat: Seat, *callers: str) -> Listener:
    """Listen where the network file says, for these roles only."""
    member = seat.network.members[seat.role]
    trusted = [seat.network.members[role].certificate_pem for role in callers]
    return channel.listen(
        member.host,
        member.port,
        context=tls.peer_server_context(seat.identity, trusted),
        name_of=seat.network.name_of(*callers),
        bounds=seat.bounds,
    )


def send(link: Channel, message: Control) -> None:
    """Send a message."""
    with _first_contact(link):
        link.send(wire.encode(message))


def receive(link: Channel, kind: type[M]) -> M:
    """The next message, of this kind, however long the peer says that it works on it.

    Raises:
        PeerError, TransportError: another message, a refusal, silence.
    """
    while True:
        with _first_contact(link):
            frame = link.receive()
        if not isinstance(wire.decode(frame), wire.Working):
            return wire.expect(frame, kind, link.peer)


@contextlib.contextmanager
def _first_contact(link: Channel) -> Iterator[None]:
    """Whether a server takes our certificate shows only in that it does not go on."""
    try:
        yield
    except TransportError as error:
        if link.traffic.n_received_frames:
            raise
        raise TransportError(
            f"{error}; if this goes on, the network file at {link.peer} may hold another "
            "certificate for this party: compare pins, see `veilrun mpc identity`"
        ) from error


def ask(link: Channel, message: Control, kind: type[M]) -> M:
    """Send a message and wait for the answer."""
    send(link, message)
    return receive(link, kind)


def refuse(link: Channel, error: VeilrunError) -> None:
    """Tell a peer why not, if it still listens, and end the connection."""
    with contextlib.suppress(VeilrunError):
        link.send(wire.refusal(_reason(error), str(error)))
    link.close()


def _reason(error: VeilrunError) -> str:
    """How whoever waits for us shall take it, see `wire.Refusal`."""
    reasons: dict[type[VeilrunError], str] = {
        BusyError: "busy",
        TransportError: "unreachable",
        VerificationError: "mismatch",
        RefusedError: "spent",
        DamagedError: "spent",
    }
    return next((text for kind, text in reasons.items() if isinstance(error, kind)), "other")


def beat(link: Channel) -> Callable[[], None]:
    """To be called often while a peer waits: says `working` every BEAT_S."""
    last_s = time.monotonic()

    def maybe() -> None:
        nonlocal last_s
        if time.monotonic() - last_s > BEAT_S:
            send(link, wire.Working())
            last_s = time.monotonic()

    return maybe


def greet(seat: Seat, link: Channel) -> wire.Welcome:
    """Present ourselves to the dealer.

    Raises:
        VerificationError: it speaks another version of the protocol.
        PeerError, TransportError: it refuses, or does not answer.
    """
    welcome = ask(link, wire.Greeting(wire.VERSION, seat.role), wire.Welcome)
    check_version(welcome.version, link.peer)
    return welcome


def check_version(version: int, peer: str) -> None:
    """Raise VerificationError unless a peer speaks our version."""
    if version != wire.VERSION:
        raise VerificationError(
            f"{peer} speaks version {version} of the protocol, this is version {wire.VERSION}; "
            "install the same veilrun on all machines"
        )


def fetch(link: Channel, store: Store, parcel: str, beats: Callable[[], None] | None = None) -> int:
    """Fetch a parcel from the dealer, from where an earlier attempt ended, and confirm it.

    Returns how many bytes passed.

    Raises:
        VerificationError: what the dealer sends is not what its manifest says, or not ours.
        PeerError, TransportError: the dealer refuses, or is lost; what came is kept.
        StorageError: no room.
    """
    if store.has(parcel) or store.is_spent(parcel):
        ask(link, wire.Confirm(parcel), wire.Confirmed)
        return 0
    manifest = ask(link, wire.Describe(parcel), Manifest)
    wrong = store.check(manifest, parcel)
    if wrong is not None:
        raise VerificationError(f"{link.peer} sent something else: {wrong}")
    n_bytes = 0
    with Arrival(store.stem(parcel), manifest) as arrival:
        left = arrival.missing()
        for attempt in range(_MAX_TRIES):
            n_passed, left = _fetch_chunks(link, arrival, manifest, left, beats)
            n_bytes += n_passed
            if not left:
                break
            _log.warning("attempt %d: %d damaged chunks of %s", attempt + 1, len(left), parcel)
        if left:
            raise VerificationError(
                f"chunk {left[0]} of {len(manifest.chunks)} of parcel {parcel}, as {link.peer} "
                "sends it, is not what its own manifest says; its copy is damaged"
            )
        arrival.finish()
    ask(link, wire.Confirm(parcel), wire.Confirmed)
    return n_bytes


def _fetch_chunks(
    link: Channel, arrival: Arrival, manifest: Manifest, wanted: list[int],
    beats: Callable[[], None] | None,
) -> tuple[int, list[int]]:  # fmt: skip
    """Fetch these chunks; the bytes that passed, and the chunks that were damaged."""
    n_bytes = 0
    damaged = []
    for first, n_chunks in _runs(wanted):
        send(link, wire.Fetch(manifest.parcel, first, n_chunks))
        for index in range(first, first + n_chunks):
            chunk = link.receive()
            n_bytes += len(chunk)
            if parcels.matches(manifest, index, chunk):
                arrival.put(index, chunk)
                continue
            if _is_refusal(chunk, manifest, index):
                wire.expect(chunk, Manifest, link.peer)  # raises
            damaged.append(index)
        if beats is not None:
            beats()
    return n_bytes, damaged


def _is_refusal(chunk: bytes, manifest: Manifest, index: int) -> bool:
    due = min(CHUNK_BYTES, manifest.n_bytes - index * CHUNK_BYTES)
    if len(chunk) == due:
        return False
    with contextlib.suppress(PeerError):
        return isinstance(wire.decode(chunk), wire.Refusal)
    return False


def _runs(indexes: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending indexes as (first, how many), each run short enough to be asked for at once."""
    begin = 0
    for end in range(1, len(indexes) + 1):
        is_last = end == len(indexes)
        if is_last or indexes[end] != indexes[end - 1] + 1 or end - begin == _MAX_CHUNKS_AT_ONCE:
            yield indexes[begin], end - begin
            begin = end


def _der_of(identity: Identity) -> bytes:
    return ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode("ascii"))
