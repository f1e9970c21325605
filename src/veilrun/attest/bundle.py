"""All evidence of one machine in one JSON document, with what is needed to verify it.

    {"format": "veilrun-evidence", "version": 1,
     "binding": {"nonce": hex, "tls_key_sha256": hex, "weights_root": hex,
                 "gpu_evidence_sha256": hex, empty without GPUs},        optional, see `binding`
     "evidence": [{"kind": "intel-tdx", "data": base64}, ...],
     "endorsements": [base64, ...]}                                      files, see `formats`

A piece of evidence may hold several devices of its kind (NVIDIA's lists).

Invariant: bytes give a value or `DecodeError`; `UsageError` only where a library is missing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from veilrun.attest.binding import Binding, binding_from_json, binding_to_json
from veilrun.attest.claims import Kind
from veilrun.attest.endorsements import Endorsements, joined
from veilrun.attest.formats import read_endorsements
from veilrun.attest.kinds import Evidence, read_evidence
from veilrun.errors import DecodeError
from veilrun.wire.fields import Fields, at_most, json_object, list_of, mapping, one_of, within

_FORMAT: Final = "veilrun-evidence"
_VERSION: Final = 1
MAX_BYTES: Final = 16 << 20
# What one machine can have. Looking for issuers costs signatures: devices times certificates.
_MAX_DEVICES: Final = 32
_MAX_ENDORSEMENTS: Final = 64
_MAX_CERTIFICATES: Final = 128


@dataclass(frozen=True, eq=False)
class Bundle:
    """Evidence, what vendors say, and what the machine states that its evidence is about."""

    evidence: tuple[Evidence, ...] = ()
    endorsements: Endorsements = field(default_factory=Endorsements)
    binding: Binding | None = None

    def __add__(self, other: Bundle) -> Bundle:
        if self.binding is not None and other.binding is not None:
            raise DecodeError("two bundles, each with a binding: they are of two machines")
        return Bundle(
            self.evidence + other.evidence,
            self.endorsements + other.endorsements,
            self.binding or other.binding,
        )


def encode_bundle(
    evidence: Sequence[tuple[Kind, bytes]],
    endorsements: Sequence[bytes] = (),
    binding: Binding | None = None,
) -> bytes:
    """The document; evidence and endorsements as the bytes of their files."""
    body: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    if binding is not None:
        body["binding"] = binding_to_json(binding)
    body["evidence"] = [
        {"kind": str(kind), "data": base64.b64encode(data).decode()} for kind, data in evidence
    ]
    body["endorsements"] = [base64.b64encode(data).decode() for data in endorsements]
    return json.dumps(body).encode()


def is_bundle(data: bytes) -> bool:
    """Whether `data` looks like a bundle."""
    return data.lstrip()[:1] == b"{" and f'"{_FORMAT}"'.encode() in data[:256]


def decode_bundle(data: bytes) -> Bundle:
    """Read what `encode_bundle` writes."""
    if len(data) > MAX_BYTES:
        raise DecodeError(f"bundle of {len(data)} bytes is over {MAX_BYTES}")
    fields = Fields(json_object(data), "bundle")
    fields.take("format", one_of(_FORMAT))
    fields.take("version", within(_VERSION, _VERSION))
    binding = fields.take("binding", binding_from_json, None)
    pieces = fields.take("evidence", at_most(_MAX_DEVICES, list_of(_evidence)))
    parts = fields.take("endorsements", at_most(_MAX_ENDORSEMENTS, list_of(_endorsement)))
    fields.finish()
    evidence, endorsements = tuple(one for piece in pieces for one in piece), joined(parts)
    n_certificates = len(endorsements.certificates) + len(endorsements.revocations)
    if len(evidence) > _MAX_DEVICES or n_certificates > _MAX_CERTIFICATES:
        raise DecodeError(f"bundle of {len(evidence)} devices and {n_certificates} certificates")
    return Bundle(evidence, endorsements, binding)


def _evidence(value: Any, name: str) -> tuple[Evidence, ...]:
    fields = Fields(mapping(value, name), name)
    kind = Kind(fields.take("kind", one_of(*Kind)))
    data = fields.take("data", _base64)
    fields.finish()
    return read_evidence(data, kind)


def _endorsement(value: Any, name: str) -> Endorsements:
    found = read_endorsements(_base64(value, name))
    if found is None:
        raise DecodeError(f"{name} is of no known form", field=name)
    return found


def _base64(value: Any, name: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"{name} is not base64", field=name) from error
