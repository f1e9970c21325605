"""The protocol of a node that serves the middle of a model: rows in, states out. Frames, no I/O.

A session is one text. The client adds the embedding's rows of its next tokens (under the residual
key); the node keeps keys and values of all rows so far, and answers with the last rows' final
states, which the client's head turns into scores. The node sees no id.

    rows     session, position, n_states; tensor rows [n, hidden] f32      POST /inference/v1/middle
    states   tensor states [n_states, hidden] f32                          its answer
    end      session                                                      POST, answered empty

position: how many rows the session has before these; 0 begins it. A node that forgot the session
or counts otherwise says `SESSION_LOST`, and the client sends all rows again under a new name.

Invariant: the `decode_*` functions return a value or raise `DecodeError`, nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilrun.errors import DecodeError
from veilrun.wire import fields
from veilrun.wire.fields import Fields
from veilrun.wire.tensors import Limits, Message, array_of, decode, encode

MIDDLE_PATH: Final = "/inference/v1/middle"
FRAME_TYPE: Final = "application/octet-stream"
SESSION_LOST: Final = 409
"""The status that says: this session is not here, or not that long."""

MAX_POSITION: Final = 2**31
_SESSION: Final = re.compile(r"[0-9a-f]{32}")
_FEW: Final = {"max_tensors": 1, "max_fields": 4}

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Extend:
    """The next rows [n, hidden] of a session, and how many of their states are wanted.

    session: 32 hex digits that nobody can guess: whoever knows them can add to the text.
    """

    session: str
    position: int
    rows: Rows
    n_states: int


@dataclass(frozen=True, slots=True)
class End:
    """The session may be forgotten."""

    session: str


def encode_request(request: Extend | End) -> bytes:
    """The body of one request."""
    if isinstance(request, End):
        return encode(Message("end", fields={"session": request.session}))
    counts = {"position": request.position, "n_states": request.n_states}
    return encode(Message("rows", {"rows": request.rows}, {"session": request.session, **counts}))


def decode_request(body: bytes, *, hidden: int, max_bytes: int) -> Extend | End:
    """Read a request to a model of `hidden` entries a row."""
    message = decode(body, limits=Limits(max_frame_bytes=max_bytes, **_FEW))
    given, tensors = Fields(message.fields, ""), Fields(message.tensors, "")
    kind = fields.one_of("rows", "end")(message.kind, "kind")
    session = given.take("session", _session)
    request: Extend | End = End(session)
    if kind == "rows":
        rows: Rows = tensors.take("rows", array_of(np.float32, None, hidden))
        if not len(rows):
            raise DecodeError("rows is empty", field="rows")
        request = Extend(
            session,
            given.take("position", fields.within(0, MAX_POSITION)),
            rows,
            given.take("n_states", fields.within(0, len(rows))),
        )
    given.finish()
    tensors.finish()
    return request


def encode_states(states: Rows) -> bytes:
    """The body of the answer to `rows`."""
    return encode(Message("states", {"states": states}))


def decode_states(body: bytes, *, n_states: int, hidden: int) -> Rows:
    """Read the answer: exactly the states that were asked for, all of them finite."""
    limit_bytes = states_bytes(n_states, hidden)
    message = decode(body, limits=Limits(max_frame_bytes=limit_bytes, **_FEW))
    fields.one_of("states")(message.kind, "kind")
    Fields(message.fields, "").finish()
    tensors = Fields(message.tensors, "")
    states: Rows = tensors.take("states", array_of(np.float32, n_states, hidden))
    tensors.finish()
    if not np.isfinite(states).all():
        raise DecodeError("states that are not finite", field="states")
    return states


def states_bytes(n_states: int, hidden: int) -> int:
    """The most that an answer can need."""
    return 256 + 4 * n_states * hidden


def _session(value: Any, name: str) -> str:
    text = fields.short_text(value, name)
    if not _SESSION.fullmatch(text):
        raise DecodeError(f"{name} must be 32 lower-case hex digits", field=name)
    return text
