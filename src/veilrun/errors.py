"""Every exception this package raises: the type says whose fault it is and what to do.

VeilrunError
├─ UsageError            you called us wrongly; fix the call
│  └─ CheckpointError    the checkpoint's files are damaged or are not what they say
├─ RefusedError          we will not run this: it would be unsafe
│  └─ UnsupportedModel   a parameter or module has no private form (all of them are named)
├─ KeyFileError          wrong passphrase, damaged or foreign key
├─ StorageError          this machine could not keep the result (disk full, no permission)
│  └─ DamagedError       a file of this machine is not what it was when it was written
├─ PeerError             the other machine misbehaved; do not retry with it
│  ├─ DecodeError        its bytes do not parse
│  ├─ VerificationError  its answer, proof, receipt or evidence does not verify
│  └─ SpentError         it cannot use this inference's material, now or ever
└─ TransportError        the network failed; retrying may help
   ├─ BusyError          the other machine's queue is full; retry later
   └─ StallError         the other machine was reached but kept silent for too long

A part that needs a finer leaf defines it beside its code, under one of these
(`node.measuring.BrokenRunError`; `serve.openai_errors.RequestFault` and
`node.middle_server.SessionLost`, under `UsageError`; `serve.node_answers.NodeRefusal`, under
`PeerError`; `attest.reasons.AppraisalError`, under `VerificationError`).

Invariant: bytes from a peer can only cause a `PeerError` or a `TransportError`.
Messages hold the measured and the expected value, never a secret.
"""

from __future__ import annotations


class VeilrunError(Exception):
    """Base of every error raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(VeilrunError):
    """You called us wrongly; fix the call."""

    exit_code = 2


class CheckpointError(UsageError):
    """The checkpoint's files are damaged, incomplete, or are not what they say."""


class RefusedError(VeilrunError):
    """We will not run this: it would be unsafe."""

    exit_code = 3


class UnsupportedModel(RefusedError):
    """A parameter or module has no private form; the message names all of them."""


class KeyFileError(VeilrunError):
    """Wrong passphrase, damaged key file, or the key of another model."""

    exit_code = 3


class StorageError(VeilrunError):
    """This machine could not keep the result: disk full, no permission."""


class DamagedError(StorageError):
    """A file of this machine is not what it was when it was written."""


class PeerError(VeilrunError):
    """The other machine misbehaved; do not retry with it."""

    exit_code = 4


class DecodeError(PeerError):
    """The other machine's bytes do not parse; `field` names the part at fault, where one is."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class VerificationError(PeerError):
    """The other machine's answer, proof, receipt or evidence does not verify."""


class SpentError(PeerError):
    """The other machine cannot use this inference's material, now or ever; take another."""


class TransportError(VeilrunError):
    """The network failed; retrying may help."""

    exit_code = 5


class StallError(TransportError):
    """The other machine was reached but kept silent for too long."""


class BusyError(TransportError):
    """The other machine's queue is full; retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
