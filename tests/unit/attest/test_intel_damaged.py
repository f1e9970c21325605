"""Quotes and collateral, damaged: refused or the same, and only our own errors come out."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from functools import cache

import intel_rig
import pytest
from damage import REFUSED, examples, flipped, with_damage
from hypothesis import given
from hypothesis import strategies as st
from intel_rig import data, endorsements, examine

from veilrun.attest.endorsements import Endorsements
from veilrun.attest.files import read
from veilrun.attest.intel import evidence
from veilrun.attest.intel.reports import parse_tdreport

AT = datetime(2026, 3, 17, 23, tzinfo=UTC)
V5 = "tdx-v5-quote-90c06f-uptodate.bin"
PARAVISOR = "tdx-hcl-report-azure-dcesv6.bin"


@pytest.mark.parametrize(("name", "step"), [(intel_rig.SGX, 1), (intel_rig.TDX, 3), (V5, 1)])
def test_every_byte_of_a_quote_counts(name, step):
    """But for white space and hyphens of PEM, where a flip may leave the same certificates."""
    draw = random.Random(1)
    genuine = evidence.parse(data(name)).quote
    start, n_same = genuine.data.index(b"-----BEGIN"), 0
    for at in range(0, len(genuine.data), step):
        damaged = flipped(genuine.data, at, draw.randrange(8))
        try:
            examine(damaged, Endorsements(), AT)
        except REFUSED:
            continue
        n_same += 1
        assert at > start
        assert evidence.parse(damaged).quote.certificates == genuine.certificates
    assert n_same < 120


@pytest.mark.parametrize(
    "names", [(intel_rig.TDX, intel_rig.TDX_COLLATERAL), (intel_rig.SGX, intel_rig.SGX_COLLATERAL)]
)
def test_flipped_collateral_never_grades_otherwise(names):
    quote, good = (data(one) for one in names)
    genuine, draw = examine(quote, endorsements(names[1]))[0].tcb, random.Random(2)
    n_refused = 0
    for _ in range(1000):
        damaged = flipped(good, draw.randrange(len(good)), draw.randrange(8))
        try:
            claims, _ = examine(quote, Endorsements(collateral=(damaged,)))
        except REFUSED:
            n_refused += 1
            continue
        assert claims.tcb in (genuine, None)
    assert n_refused > 800  # certificates are there several times


def test_every_byte_of_dstacks_json_that_is_hashed():
    good, draw = json.loads(data(intel_rig.DSTACK)), random.Random(3)
    events = json.loads(good["event_log"])
    for at, event in enumerate(events):
        for name in ("event", "event_payload") if event["event"] else ("digest",):
            for where in range(len(event[name])):
                text = event[name]
                other = "0" if text[where] != "0" else "1"
                changed = [*events]
                changed[at] = event | {name: text[:where] + other + text[where + 1 :]}
                if draw.random() < 0.8:
                    continue
                body = good | {"event_log": json.dumps(changed)}
                with pytest.raises(REFUSED):
                    examine(json.dumps(body).encode(), Endorsements(), AT)


@cache
def subjects() -> dict[str, bytes]:
    return {
        "quote": data(intel_rig.TDX)[:4936],
        "hex": data("tdx-v4-quote-b0c06f-tcb-too-old.hex"),
        "json": data(intel_rig.DSTACK),
        "envelope": data(intel_rig.SCALE),
        "collateral": data(intel_rig.TDX_COLLATERAL),
        "tcb info": data("pcs-2026-03-tcbinfo-tdx-90c06f000000.json"),
        "list": data("pcs-2026-03-pck-crl-platform.der"),
        "log": data("tdx-ccel-live.bin")[:12000],
        "paravisor": data(PARAVISOR),
        "tdreport": data("tdx-tdreport-other-boot.bin"),
    }


def try_all(kind: str, content: bytes) -> None:
    """What the command does with a file of this kind."""
    if kind == "tdreport":
        parse_tdreport(content)
        return
    found = read(content)
    if kind in ("quote", "hex", "json", "envelope"):
        evidence.recognise(content)
        examine(content, endorsements(intel_rig.TDX_COLLATERAL), AT)
    elif kind == "tcb info":
        rest = ("td-qe-identity.json", "pck-crl-platform.der", "root-ca-crl.der")
        names = (*rest, "tcb-signing-chain.pem")
        known = endorsements(*(f"pcs-2026-03-{one}" for one in names))
        examine(data(V5), found.endorsements + known, AT)
    else:
        quote = {"log": "tdx-v4-quote-b0c06f-live.bin", "paravisor": V5}.get(kind, intel_rig.TDX)
        examine(data(quote), found.endorsements, intel_rig.AT if kind == "collateral" else AT)


@pytest.mark.parametrize(
    "kind",
    [
        "quote",
        "hex",
        "json",
        "envelope",
        "collateral",
        "tcb info",
        "list",
        "log",
        "paravisor",
        "tdreport",
    ],
)
@examples(120)
@given(source=st.data())
def test_damage_gives_only_our_errors(kind, source):
    content = with_damage(source, subjects()[kind])
    try:
        try_all(kind, content)
    except REFUSED:
        pass


def test_damage_inside_the_encodings_gives_only_our_errors():
    """Where documents still parse as JSON, and certificates as PEM."""
    draw, good = random.Random(4), json.loads(data(intel_rig.TDX_COLLATERAL))
    letters = "ABCDabcd0123{}[]\"':,-\\ "
    for _ in range(800):
        name = draw.choice(list(good))
        text = good[name]
        at = draw.randrange(len(text))
        body = good | {name: text[:at] + draw.choice(letters) + text[at + 1 :]}
        try:
            examine(data(intel_rig.TDX), Endorsements(collateral=(json.dumps(body).encode(),)))
        except REFUSED:
            pass


@pytest.mark.parametrize("value", [None, 1, "", [], {}, "\ud800", "x" * 2000])
def test_other_values_in_collateral(value):
    good = json.loads(data(intel_rig.TDX_COLLATERAL))
    for name in good:
        with pytest.raises(REFUSED):
            content = json.dumps(good | {name: value}).encode()
            examine(data(intel_rig.TDX), Endorsements(collateral=(content,)))
    for document in ("tcb_info", "qe_identity"):
        body = json.loads(good[document])
        for name in body:
            changed = good | {document: json.dumps(body | {name: value})}
            content = json.dumps(changed).encode()
            try:
                claims, _ = examine(data(intel_rig.TDX), Endorsements(collateral=(content,)))
            except REFUSED:
                continue
            assert claims.tcb is None
