"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`.

Invariant: every `VeilrunError` has a reply, and no reply holds an answer or a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from veilrun.attest.reasons import AppraisalError
from veilrun.errors import (
    BusyError,
    PeerError,
    StallError,
    TransportError,
    UsageError,
    VeilrunError,
)
from veilrun.serve.node_answers import NodeRefusal


class RequestFault(UsageError):
    """The application's request cannot be served; `param` is the field at fault."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An HTTP status, the error object and headers."""

    status: int
    message: str
    kind: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The JSON of the reply, and of an error event in a stream."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": error}).encode()


def reply_to(error: VeilrunError) -> ErrorReply:
    """What the application is told. The order matters: leaves come before what they are."""
    text = str(error)
    if isinstance(error, RequestFault):
        return ErrorReply(error.status, text, "invalid_request_error", error.param, error.code)
    if isinstance(error, UsageError | NodeRefusal):
        return ErrorReply(400, text, "invalid_request_error")
    if isinstance(error, AppraisalError):
        return ErrorReply(
            503,
            f"the node's machine is not what the policy asks for, so nothing was sent: {text}",
            "server_error",
            code="attestation_failed",
            headers={"x-should-retry": "false"},
        )
    if isinstance(error, PeerError):
        # Clients retry a 5xx by themselves; a node that misbehaves is not to be asked again.
        return ErrorReply(
            502, text, "server_error", code="peer_error", headers={"x-should-retry": "false"}
        )
    if isinstance(error, BusyError):
        wait = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        return ErrorReply(429, text, "rate_limit_error", code="rate_limit_exceeded", headers=wait)
    if isinstance(error, StallError):
        return ErrorReply(504, text, "server_error", code="node_timeout")
    if isinstance(error, TransportError):
        return ErrorReply(503, text, "server_error", code="node_unreachable")
    return ErrorReply(500, text, "server_error", code=type(error).__name__)
