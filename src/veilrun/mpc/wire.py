"""The control messages of the three parties, each one frame of `wire.tensors`.

    P1, P2 -> P0   greeting                      P0 -> them   welcome: the run, and their key
                   list                                       dealt: serials that wait for them
                   deal (P1)                                  dealt: one serial
                   describe <parcel>                          manifest of it
                   fetch <parcel>, chunks                     the chunks, raw frames
                   confirm <parcel>                           confirmed
                   question (P1)                              listening, then `embedding.answer`
    P1 -> P2       collect                       P2 -> P1     confirmed
                   hello                                      hello
                   go, then the protocol                      the protocol, then done

Instead of an answer may come `working`, any number of times, so that silence means trouble, or
`refusal`, which ends the connection. A *run* is one model at one dealer under one pair of keys;
everything dealt belongs to one.

Invariants. `decode` returns one of these messages or raises `DecodeError`, whatever the bytes.
No message shows a key in its repr.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import numpy.typing as npt

from veilrun.errors import (
    BusyError,
    DecodeError,
    PeerError,
    SpentError,
    TransportError,
    VerificationError,
)
from veilrun.wire import fields, tensors
from veilrun.wire.fields import Fields
from veilrun.wire.tensors import Limits, Message

VERSION: Final = 1
KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
RUN_BYTES: Final = 16
MAX_TOKENS: Final = 1 << 20
CHUNK_BYTES: Final = 1 << 20
MAX_CHUNKS: Final = 1 << 20
REASONS: Final = ("busy", "unreachable", "mismatch", "spent", "other")
SETUP: Final = "setup"
"""The name of the parcel with a party's part of the model."""

_LIMITS: Final = Limits(max_frame_bytes=64 * 2**20, max_tensors=4, max_fields=16)
_MAX_TEXT: Final = 1000
_MAX_SERIAL: Final = fields.INT64_MAX

M = TypeVar("M", bound="Control")


def _of(reader: Callable[[Any, str], Any], *, secret: bool = False) -> Any:
    """A field of a message, and how it is read."""
    return field(repr=not secret, metadata={"read": reader})


def _raw(n_bytes: int) -> fields.Reader[bytes]:
    def read(value: Any, name: str) -> bytes:
        if not isinstance(value, bytes) or len(value) != n_bytes:
            raise DecodeError(f"{name} must be {n_bytes} bytes", field=name)
        return value

    return read


def parcel_name(value: Any, name: str) -> str:
    """A reader: the set-up's name, or a serial number's."""
    text = fields.short_text(value, name)
    if text != SETUP and not (text.isascii() and text.isdigit() and text == str(int(text[:20]))):
        raise DecodeError(f"{name} names no parcel", field=name)
    return text


def _shown(value: Any, name: str) -> str:
    """Text that is safe to show: cut, and without control characters."""
    text = fields.short_text(value, name)
    return "".join(one if one.isprintable() else "?" for one in text)


_SERIAL = fields.within(0, _MAX_SERIAL)
_N_TOKENS = fields.within(1, MAX_TOKENS)
_SECONDS = fields.between(0.0, 1e9)
_N_BYTES = fields.within(0, 1 << 50)
_ROLE = fields.one_of("P0", "P1", "P2")
_VERSION = fields.within(0, 1 << 31)
_NUMBERS = tensors.array_of(np.int64, None)
_HASHES = tensors.array_of(np.uint8, None, 32)


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """Any of the messages."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True, eq=False)
class Greeting(Control):
    """A party presents itself to the dealer."""

    kind: ClassVar[str] = "mpc.greeting"
    version: int = _of(_VERSION)
    role: str = _of(_ROLE)


@dataclass(frozen=True, slots=True, eq=False)
class Welcome(Control):
    """The run, and the party's key."""

    kind: ClassVar[str] = "mpc.welcome"
    version: int = _of(_VERSION)
    digest: bytes = _of(_raw(DIGEST_BYTES))
    run: bytes = _of(_raw(RUN_BYTES))
    key: bytes = _of(_raw(KEY_BYTES), secret=True)


@dataclass(frozen=True, slots=True, eq=False)
class ListDealt(Control):
    """Which serials wait for me?"""

    kind: ClassVar[str] = "mpc.list"


@dataclass(frozen=True, slots=True, eq=False)
class Deal(Control):
    """Deal one inference of this length."""

    kind: ClassVar[str] = "mpc.deal"
    n_tokens: int = _of(_N_TOKENS)


@dataclass(frozen=True, slots=True, eq=False)
class Dealt(Control):
    """Serials that wait, each with its length. seconds, cpu_s: of the dealing just done."""

    kind: ClassVar[str] = "mpc.dealt"
    serials: npt.NDArray[np.int64] = _of(_NUMBERS)  # noqa: RUF009  a field
    lengths: npt.NDArray[np.int64] = _of(_NUMBERS)  # noqa: RUF009  a field
    seconds: float = _of(_SECONDS)
    cpu_s: float = _of(_SECONDS)


@dataclass(frozen=True, slots=True, eq=False)
class Describe(Control):
    """What is in this parcel of mine?"""

    kind: ClassVar[str] = "mpc.describe"
    parcel: str = _of(parcel_name)


@dataclass(frozen=True, slots=True, eq=False)
class Manifest(Control):
    """What a parcel holds; kept beside it. n_tokens: 0 for the set-up.

    chunks: SHA-256 of each CHUNK_BYTES, the last may be shorter: uint8 [n_chunks, 32].
    """

    kind: ClassVar[str] = "mpc.manifest"
    digest: bytes = _of(_raw(DIGEST_BYTES))
    run: bytes = _of(_raw(RUN_BYTES))
    role: str = _of(_ROLE)
    parcel: str = _of(parcel_name)
    n_tokens: int = _of(fields.within(0, MAX_TOKENS))
    n_bytes: int = _of(_N_BYTES)
    chunks: npt.NDArray[np.uint8] = _of(_HASHES)  # noqa: RUF009  a field


@dataclass(frozen=True, slots=True, eq=False)
class Fetch(Control):
    """Send these chunks of it, one frame each."""

    kind: ClassVar[str] = "mpc.fetch"
    parcel: str = _of(parcel_name)
    first: int = _of(fields.within(0, MAX_CHUNKS))
    n_chunks: int = _of(fields.within(1, 64))


@dataclass(frozen=True, slots=True, eq=False)
class Confirm(Control):
    """I have all of it, checked and on disk."""

    kind: ClassVar[str] = "mpc.confirm"
    parcel: str = _of(parcel_name)


@dataclass(frozen=True, slots=True, eq=False)
class Confirmed(Control):
    """Noted."""

    kind: ClassVar[str] = "mpc.confirmed"


@dataclass(frozen=True, slots=True, eq=False)
class Collect(Control):
    """To the assistant: fetch all that waits for you at the dealer."""

    kind: ClassVar[str] = "mpc.collect"


@dataclass(frozen=True, slots=True, eq=False)
class Question(Control):
    """A question about embedding rows follows."""

    kind: ClassVar[str] = "mpc.question"
    serial: int = _of(_SERIAL)
    n_tokens: int = _of(_N_TOKENS)


@dataclass(frozen=True, slots=True, eq=False)
class Listening(Control):
    """Ask."""

    kind: ClassVar[str] = "mpc.listening"


@dataclass(frozen=True, slots=True, eq=False)
class Hello(Control):
    """What a party is about to compute; both must say the same, `role` apart."""

    kind: ClassVar[str] = "mpc.hello"
    version: int = _of(_VERSION)
    role: str = _of(_ROLE)
    digest: bytes = _of(_raw(DIGEST_BYTES))
    run: bytes = _of(_raw(RUN_BYTES))
    profile: str = _of(_shown)
    serial: int = _of(_SERIAL)
    n_tokens: int = _of(_N_TOKENS)


@dataclass(frozen=True, slots=True, eq=False)
class Go(Control):
    """Both hellos agree: now."""

    kind: ClassVar[str] = "mpc.go"


@dataclass(frozen=True, slots=True, eq=False)
class Done(Control):
    """What it cost the assistant."""

    kind: ClassVar[str] = "mpc.done"
    offline_bytes: int = _of(_N_BYTES)
    online_s: float = _of(_SECONDS)
    cpu_s: float = _of(_SECONDS)


@dataclass(frozen=True, slots=True, eq=False)
class Working(Control):
    """Not done yet, not dead either."""

    kind: ClassVar[str] = "mpc.working"


@dataclass(frozen=True, slots=True, eq=False)
class Refusal(Control):
    """No. reason: how the receiver goes on, see `error`; text: for people."""

    kind: ClassVar[str] = "mpc.refusal"
    reason: str = _of(fields.one_of(*REASONS))
    text: str = _of(_shown)

    def error(self, peer: str) -> PeerError | TransportError:
        """As the exception of whoever receives it."""
        kinds: dict[str, type[PeerError | TransportError]] = {
            "busy": BusyError,
            "unreachable": TransportError,
            "mismatch": VerificationError,
            "spent": SpentError,
            "other": PeerError,
        }
        return kinds[self.reason](f"{peer} refuses: {self.text}")


_KINDS: Final[Mapping[str, type[Control]]] = {
    one.kind: one
    for one in (
        Greeting, Welcome, ListDealt, Deal, Dealt, Describe, Manifest, Fetch, Confirm, Confirmed,
        Collect, Question, Listening, Hello, Go, Done, Working, Refusal,
    )
}  # fmt: skip


def encode(message: Control) -> bytes:
    """The frame of a message."""
    values = {one.name: getattr(message, one.name) for one in dataclasses.fields(message)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    scalars = {name: value for name, value in values.items() if name not in arrays}
    return tensors.encode(Message(message.kind, arrays, scalars))


def refusal(reason: str, text: str) -> bytes:
    """The frame of a refusal, its text cut to what a message may hold."""
    return encode(Refusal(reason, text[:_MAX_TEXT] or reason))


def decode(frame: bytes) -> Control:
    """Read a frame.

    Raises:
        DecodeError: it is none of these messages.
    """
    message = tensors.decode(frame, limits=_LIMITS)
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise DecodeError("a message of no kind that parties send", field="kind")
    body = Fields({**message.tensors, **message.fields}, message.kind)
    if set(message.tensors) & set(message.fields):
        raise DecodeError("a name among tensors and fields", field="kind")
    values = {
        one.name: body.take(one.name, one.metadata["read"]) for one in dataclasses.fields(kind)
    }
    body.finish()
    result = kind(**values)
    if isinstance(result, Dealt):
        _check_dealt(result)
    if isinstance(result, Manifest) and len(result.chunks) != -(-result.n_bytes // CHUNK_BYTES):
        raise DecodeError("a manifest whose chunks do not make up its bytes", field="chunks")
    return result


def expect(frame: bytes, kind: type[M], peer: str) -> M:
    """Read a frame that must be of this kind.

    Raises:
        DecodeError: it is another.
        PeerError, TransportError: the peer refuses.
    """
    message = decode(frame)
    if isinstance(message, Refusal):
        raise message.error(peer)
    if not isinstance(message, kind):
        raise DecodeError(f"{peer} sent {message.kind} where {kind.kind} is due")
    return message


def _check_dealt(dealt: Dealt) -> None:
    if dealt.serials.shape != dealt.lengths.shape or len(dealt.serials) > 1 << 16:
        raise DecodeError("a list of serials without as many lengths", field="lengths")
    if len(dealt.serials) and (
        dealt.serials.min() < 0 or dealt.lengths.min() < 1 or dealt.lengths.max() > MAX_TOKENS
    ):
        raise DecodeError("a serial or length that cannot be", field="serials")
