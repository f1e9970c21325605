"""Damaged TPM evidence: every byte counts, and nothing but refusals comes of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime

import attest_rig
import pytest
import tpm_rig
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.attest.claims import Kind
from veilrun.attest.hcl import parse_hcl
from veilrun.attest.kinds import FAMILIES
from veilrun.attest.tpm.evidence import parse
from veilrun.attest.tpm.keys import azure_key
from veilrun.attest.tpm.quote import parse_quote, parse_signature
from veilrun.errors import DecodeError, VerificationError

AT = datetime(2025, 1, 1, tzinfo=UTC)
KEY = ec.derive_private_key(0xA5, ec.SECP256R1())
VALUES = [hashlib.sha256(bytes([number])).digest() for number in range(24)]
OURS = tpm_rig.make_quote(b"nonce", VALUES, KEY)


def flips(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def refused(data: bytes) -> None:
    with pytest.raises((DecodeError, VerificationError)):
        tpm_rig.verify(parse(data), at=AT)


@pytest.mark.parametrize("part", ["message", "signature", "pcrs"])
def test_every_byte_of_a_quote_of_ours_counts(part):
    body = json.loads(OURS)
    tpm_rig.verify(parse(OURS), at=AT)
    if part == "pcrs":
        for damaged in flips(b"".join(VALUES)):
            values = [damaged[at : at + 32].hex() for at in range(0, len(damaged), 32)]
            refused(json.dumps(body | {"pcrs": values}).encode())
        return
    for damaged in flips(bytes.fromhex(body[part])):
        refused(json.dumps(body | {part: damaged.hex()}).encode())


def test_every_byte_of_a_recorded_quote_counts():
    key = azure_key(parse_hcl(attest_rig.data("tpm/azure-tdx-hcl-report.bin")).runtime_data)
    data = attest_rig.data("tpm/azure-tdx-quote-v1.bincode")

    def verify(damaged: bytes) -> None:
        evidence = parse(damaged)
        object.__setattr__(evidence, "key", key)
        tpm_rig.verify(evidence, at=AT)

    verify(data)
    for damaged in flips(data):
        with pytest.raises((DecodeError, VerificationError)):
            verify(damaged)


def test_every_byte_of_a_paravisors_data_counts():
    if not any(Kind.INTEL_TDX in one.kinds for one in FAMILIES):
        pytest.skip("needs a verifier of TDX evidence")
    body = json.loads(attest_rig.data("tpm/azure-tdx-evidence-v1.json"))
    hcl = base64.urlsafe_b64decode(body["evidence"]["hcl_report"])
    roots = tpm_rig.endorsements("sgx-tdx/intel-sgx-root-ca.der")
    start = hcl.index(b'{"keys"')
    end = start + len(parse_hcl(hcl).runtime_data)
    for damaged in flips(hcl[start:end]):
        report = base64.urlsafe_b64encode(hcl[:start] + damaged + hcl[end:]).decode()
        body["evidence"]["hcl_report"] = report
        with pytest.raises((DecodeError, VerificationError)):
            tpm_rig.verify(parse(json.dumps(body).encode()), roots, AT)


def test_cuts_and_extra_bytes():
    message = tpm_rig.quote_bytes(b"nonce", VALUES)
    signature = bytes.fromhex(json.loads(OURS)["signature"])
    for parser, data in ((parse_quote, message), (parse_signature, signature)):
        for end in range(len(data)):
            with pytest.raises(DecodeError):
                parser(data[:end])
        with pytest.raises(DecodeError):
            parser(data + b"\0")
    for selection in (range(0), range(0, 1)):
        message = tpm_rig.quote_bytes(b"", VALUES, selection)
        with contextlib.suppress(DecodeError):
            assert parse_quote(message).selected == tuple(selection) != ()


@pytest.mark.parametrize(
    "change",
    [
        {"pcrs": ["00" * 32] * 23},
        {"pcrs": ["00" * 31] * 24},
        {"pcrs": ["00" * 32] * 25},
        {"pcrs": 5},
        {"message": 5},
        {"message": "zz"},
        {"attestation_key": "no key"},
        {"attestation_key": None},
        {"attestation_key": OURS.decode()},
        {"unknown": 1},
        {"platform": "az-other"},
        {"signature": "00" * 2000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_malformed_files(change):
    with pytest.raises(DecodeError):
        parse(json.dumps(json.loads(OURS) | change).encode())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2), st.sampled_from(["flip", "cut", "insert"]))
def test_fuzz(seed, which, how):
    names = ("azure-tdx-evidence-v1.json", "azure-tdx-quote-v1.json", "azure-snp-quote-v1.bincode")
    data = bytearray(attest_rig.data(f"tpm/{names[which]}"))
    noise = random.Random(seed)
    for _ in range(noise.randrange(1, 4)):
        at = noise.randrange(len(data))
        if how == "flip":
            data[at] ^= noise.randrange(1, 256)
        elif how == "cut":
            del data[at : at + noise.randrange(1, 200)]
        else:
            data[at:at] = noise.randbytes(noise.randrange(1, 50))
    with contextlib.suppress(DecodeError, VerificationError):
        tpm_rig.verify(parse(bytes(data)), at=AT)
