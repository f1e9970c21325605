"""The 64 bytes that tie evidence to a connection, a model and its GPUs."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.attest.binding import (
    Binding,
    binding_from_json,
    binding_to_json,
    gpu_digest,
    report_data,
)
from veilrun.attest.claims import Claims, Kind
from veilrun.errors import DecodeError

NONCE, TLS, WEIGHTS, GPU = b"n" * 32, b"t" * 32, b"w" * 32, b"g" * 32
BINDING = Binding(NONCE, TLS, WEIGHTS, GPU)


def test_the_bytes_are_those_of_the_documentation():
    fields = [b"veilrun-attestation/1", NONCE, TLS, WEIGHTS, GPU]
    text = b"".join(len(one).to_bytes(4, "big") + one for one in fields)
    assert report_data(NONCE, TLS, WEIGHTS, GPU) == hashlib.sha512(text).digest()
    assert BINDING.report_data() == hashlib.sha512(text).digest()


@pytest.mark.parametrize("name", ["nonce", "tls_key_sha256", "weights_root", "gpu_evidence_sha256"])
def test_every_value_counts(name: str):
    other = replace(BINDING, **{name: b"x" * 32})
    assert other.report_data() != BINDING.report_data()


@given(st.binary(max_size=80), st.integers(0, 80))
def test_bytes_do_not_move_from_one_field_to_the_next(total: bytes, at: int):
    split = report_data(total[:at], total[at:], WEIGHTS)
    assert (split == report_data(total, b"", WEIGHTS)) == (at >= len(total))


def test_a_tpm_has_room_for_half_of_it():
    expected = BINDING.report_data()
    assert BINDING.is_in(Claims(Kind.TPM, nonce=expected[:32]))
    assert BINDING.is_in(Claims(Kind.INTEL_TDX, report_data=expected))
    assert not BINDING.is_in(Claims(Kind.TPM, nonce=expected[:31]))
    assert not BINDING.is_in(Claims(Kind.TPM, report_data=expected))
    assert not BINDING.is_in(Claims(Kind.INTEL_TDX, nonce=expected[:32]))
    assert not BINDING.is_in(Claims(Kind.INTEL_TDX, report_data=expected[:32] + bytes(32)))
    assert not BINDING.is_in(Claims(Kind.NVIDIA_GPU, nonce=expected[:32]))


def test_gpu_evidence_counts_in_its_order_and_once():
    assert gpu_digest([]) == b""
    assert gpu_digest([b"one", b"two"]) != gpu_digest([b"two", b"one"])
    assert gpu_digest([b"one", b"one", b"two"]) == gpu_digest([b"one", b"two"])
    assert gpu_digest([b"onetwo"]) != gpu_digest([b"one", b"two"])


@pytest.mark.parametrize("gpu", [b"", GPU])
def test_json_and_back(gpu: bytes):
    binding = replace(BINDING, gpu_evidence_sha256=gpu)
    assert binding_from_json(binding_to_json(binding), "binding") == binding


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonce", "00" * 7),
        ("nonce", "00" * 65),
        ("nonce", "zz" * 32),
        ("nonce", 7),
        ("tls_key_sha256", ""),
        ("weights_root", "AA" * 32),
        ("weights_root", " " + "aa" * 32),
        ("gpu_evidence_sha256", "00" * 31),
        ("other", "00"),
    ],
)
def test_what_is_no_binding(name: str, value: object):
    with pytest.raises(DecodeError):
        binding_from_json({**binding_to_json(BINDING), name: value}, "binding")
