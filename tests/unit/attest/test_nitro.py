"""Nitro documents: every recorded case, what is refused under which name, and damage."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import attest_rig
import cbor2
import pytest
from attest_rig import data
from damage import REFUSED, examples, flipped, with_damage
from hypothesis import given, settings
from hypothesis import strategies as st
from nitro_rig import AT, MadeModule, judge

from veilrun.attest.checks import CheckLog
from veilrun.attest.claims import Claims, Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.nitro import authenticate, document
from veilrun.attest.nitro.cbor import read_cbor
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.signatures import is_signed_by
from veilrun.errors import DecodeError

CASES = {case["id"]: case for case in attest_rig.vectors("nitro")}
RECORDED, RECORDED_AT = (
    "nitro/nitro-2025-12-25-1315.bin",
    datetime(2025, 12, 25, 14, tzinfo=UTC),
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_recorded_case(case):
    if case["expect"] == "reject" and case["reason"] != "debug":
        with pytest.raises(AppraisalError) as refusal:
            judge(case)
        assert refusal.value.reason == case["reason"]
        return
    claims, facts = judge(case), case.get("facts", {})
    assert claims.debug is (case["id"] in ("nitro-debug", "nitro-debug-allowed"))
    if facts:
        assert claims.identity == {"module_id": facts["module_id"]}
        assert claims.made_at == datetime.fromtimestamp(0, UTC) + timedelta(
            milliseconds=facts["timestamp_ms"]
        )
        for index in range(3):
            assert claims.measurements[f"pcr{index}"] == facts[f"pcr{index}"]
        assert (claims.report_data or b"").hex() == facts["user_data"]
        assert (claims.nonce or b"").hex() == facts["nonce"]


def test_cases_are_there():
    attest_rig.path("vectors.json")
    assert len(CASES) == 5


def test_the_document_begins_where_the_vectors_say():
    case = CASES.get("nitro-1315") or pytest.skip(attest_rig.ABSENT)
    content, facts = data(case["evidence"]), case["facts"]
    start = facts["cose_offset"]
    bare = content[start : start + facts["cose_length"]]
    for form in (bare, b"\xd2" + bare):
        assert document.recognise(form)
        parsed = document.parse(form)
        assert parsed.stated is None
        claims = authenticate.authenticate(parsed, Endorsements(), RECORDED_AT, CheckLog("nitro"))
        assert claims == judge(case)
    for form in (bare + b"\0", b"\0" + bare, b"\xd2\xd2" + bare, content + b"\0", content[1:]):
        with pytest.raises(DecodeError):
            document.parse(form)


def test_the_steps_by_name():
    log = CheckLog("nitro")
    judge(CASES["nitro-1315"], log) if CASES else pytest.skip(attest_rig.ABSENT)
    assert [(one.name, one.outcome) for one in log.checks] == [
        ("module certificate", "passed"),
        ("document signature", "passed"),
        ("stated report data", "passed"),
    ]


def test_an_envelope_has_one_form():
    content = data(RECORDED)
    no_events = 4 + 4527
    assert content[no_events] == 0
    for count in (b"\1\0", b"\2\0\0\0"):  # zero, in more bytes than it needs
        with pytest.raises(DecodeError, match="shortest"):
            document.parse(content[:no_events] + count + content[no_events + 1 :])


def test_an_envelope_that_states_something_else():
    parsed = replace(document.parse(data(RECORDED)), stated=bytes(63) + b"\1")
    with pytest.raises(AppraisalError) as refusal:
        authenticate.authenticate(parsed, Endorsements(), RECORDED_AT, CheckLog("nitro"))
    assert refusal.value.reason is Reason.DIGEST


MODULE = MadeModule()


def made(monkeypatch: pytest.MonkeyPatch, content: bytes) -> Claims:
    monkeypatch.setattr(authenticate, "AWS_NITRO", MODULE.pins)
    parsed = document.parse(content)
    return authenticate.authenticate(parsed, Endorsements(), AT, CheckLog("nitro"))


def test_what_an_enclave_says(monkeypatch):
    content = MODULE.content(nonce=b"challenge", user_data=b"mine", public_key=b"key")
    claims = made(monkeypatch, MODULE.document(content, tag=b"\xd2"))
    assert claims.kind is Kind.AWS_NITRO
    assert (claims.nonce, claims.report_data, claims.made_at) == (b"challenge", b"mine", AT)
    assert claims.debug is False
    assert claims.identity["public_key_sha256"].startswith("2c70e12b7a0646f9")
    assert len(claims.measurements) == 16


def test_empty_and_absent_fields(monkeypatch):
    claims = made(monkeypatch, MODULE.document(MODULE.content(nonce=b"", public_key=...)))
    assert (claims.nonce, claims.report_data) == (None, None)
    assert list(claims.identity) == ["module_id"]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_zero_register_is_debug_mode(monkeypatch, index):
    pcrs = MODULE.content()["pcrs"] | {index: bytes(48)}
    assert made(monkeypatch, MODULE.document(MODULE.content(pcrs=pcrs))).debug is True


def test_another_modules_signature(monkeypatch):
    with pytest.raises(AppraisalError) as refusal:
        made(monkeypatch, MadeModule().document(MODULE.content()))
    assert refusal.value.reason is Reason.SIGNATURE


def test_another_root():
    with pytest.raises(AppraisalError) as refusal:
        parsed = document.parse(MODULE.document())
        authenticate.authenticate(parsed, Endorsements(), AT, CheckLog("nitro"))
    assert refusal.value.reason is Reason.CHAIN


WRONG_FIELDS: dict[str, Any] = {
    "digest": ["SHA256", b"SHA384", ...],
    "module_id": ["", b"i-1", 5, "x" * 2000, ...],
    "timestamp": [-1, True, 1.5, "now", 1 << 63, ...],
    "pcrs": [
        {},
        [],
        {0: bytes(48), 1: bytes(48)},
        {index: bytes(32) for index in range(3)},
        {index: bytes(48) for index in range(33)},
        {False: bytes(48), True: bytes(48), 2: bytes(48)},
        {0: bytes(48), 1: bytes(48), 2: "zero"},
        {"0": bytes(48), 0: bytes(48), 1: bytes(48), 2: bytes(48)},
        ...,
    ],
    "certificate": [b"", b"no certificate", None, bytes(2000), ...],
    "cabundle": [[], None, [b"none"], [None], b"", ...],
    "public_key": ["text", 5, bytes(2000)],
    "user_data": ["text", [b""], bytes(2000)],
    "nonce": ["text", {}, bytes(2000)],
    "surprise": [1],
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_wrong_fields(name):
    for value in WRONG_FIELDS[name]:
        with pytest.raises(DecodeError):
            document.parse(MODULE.document(MODULE.content(**{name: value})))


def test_headers_that_are_not_plain_es384():
    for protected in (b"", b"\xa0", bytes.fromhex("a10126"), b"\xa1\x01\x38\x22\x00"):
        with pytest.raises(DecodeError):
            document.parse(MODULE.document(protected=protected))
    with pytest.raises(DecodeError):
        document.parse(MODULE.document(unprotected={4: b"key"}))


def test_oddities_of_cbor():
    good = MODULE.document()
    parts = cbor2.loads(good)
    body = cbor2.dumps(MODULE.content())[1:]
    assert document.parse(MODULE.document(b"\xbf" + body + b"\xff")).module_id
    payloads = [
        b"\xbf" + body,
        b"\xb9\x00\x09" + body,
        b"\xbf" + body + b"\x65nonce\xf6\xff",
        b"\xaa" + body + b"\x65nonce\xf6",
        b"\xa9" + body + b"\0",
        b"\xd8\x18" + cbor2.dumps(MODULE.content()),
        b"\xc5\x82\x1b\x00\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x81" * 5000 + b"\0",
        b"\xbb\x00\x00\x00\x00\xff\xff\xff\xff",
        b"",
    ]
    for payload in payloads:
        with pytest.raises(DecodeError):
            document.parse(MODULE.document(payload))
    for content in (
        b"\x9f" + good[1:] + b"\xff",
        b"\xd3" + good,
        cbor2.dumps(parts[:3]),
        cbor2.dumps([*parts, None]),
        cbor2.dumps([parts[0], parts[1], parts[2], parts[3][1:]]),
        cbor2.dumps([parts[0], None, parts[2], parts[3]]),
        b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        good + bytes(1 << 16),
        b"",
    ):
        with pytest.raises(DecodeError):
            document.parse(content)


@pytest.mark.parametrize(
    "content",
    [
        "c249010000000000000000",
        "d81e820103",
        "818181818100",
        "a200010002",
        "a200010001",
        "5f4100ff",
    ],
)
def test_what_no_cbor_of_ours_has(content):
    """A big number, a fraction, five levels, keys twice, a string in parts."""
    with pytest.raises(DecodeError):
        read_cbor(bytes.fromhex(content), "test")


@settings(max_examples=1000, derandomize=True, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_as_cbor(content):
    try:
        read_cbor(content, "test")
    except DecodeError:
        pass


def test_flipped_documents_are_refused():
    draw = random.Random(1)
    good = data(RECORDED)[4 : 4 + 4527]
    leaf = document.parse(good).certificate
    n_parsed = 0
    for _ in range(2500):
        try:
            parsed = document.parse(flipped(good, draw.randrange(len(good)), draw.randrange(8)))
        except DecodeError:
            continue
        n_parsed += 1
        assert not is_signed_by(leaf, *parsed.signature, parsed.signed)
    assert n_parsed > 1000


def test_flips_are_refused_as_the_command_does_it():
    draw, good = random.Random(2), data(RECORDED)
    genuine = examine(good)
    for _ in range(300):
        at = draw.randrange(len(good))
        try:
            claims = examine(flipped(good, at, draw.randrange(8)))
        except REFUSED:
            continue
        assert at >= 4 + 4527
        assert claims == genuine


def examine(content: bytes) -> Claims:
    document.recognise(content)
    parsed = document.parse(content)
    return authenticate.authenticate(parsed, Endorsements(), RECORDED_AT, CheckLog("nitro"))


@cache
def recorded() -> bytes:
    return data(RECORDED)


@examples(300)
@given(source=st.data())
def test_damage_gives_only_our_errors(source):
    content = with_damage(source, recorded() if source.draw(st.booleans()) else recorded()[4:4531])
    try:
        examine(content)
    except REFUSED:
        pass
