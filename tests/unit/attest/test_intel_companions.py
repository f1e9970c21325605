"""What lies beside a TDX quote: event logs, dstack's envelopes, TDREPORTs, Azure's paravisor."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import intel_rig
import pytest
from intel_rig import data, endorsements, examine

from veilrun.attest.claims import Kind
from veilrun.attest.dstack import parse_envelope
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.files import load_evidence, read
from veilrun.attest.intel import evidence
from veilrun.attest.intel.reports import parse_tdreport
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.runtime_events import RUNTIME, make_event, parse_events
from veilrun.errors import DecodeError, UsageError

LIVE, LIVE_LOG = "tdx-v4-quote-b0c06f-live.bin", "tdx-ccel-live.bin"
AZURE, PARAVISOR = "tdx-v4-quote-90c06f-azure-dcesv6.bin", "tdx-hcl-report-azure-dcesv6.bin"
AT = datetime(2026, 4, 15, tzinfo=UTC)


def refusal(content, at_hand=None):
    with pytest.raises(AppraisalError) as caught:
        examine(content, at_hand or Endorsements(), AT)
    return caught.value.reason


def dstack(change):
    """dstack's JSON, with another event log."""
    body = json.loads(data(intel_rig.DSTACK))
    events = json.loads(body["event_log"])
    change(events)
    return json.dumps(body | {"event_log": json.dumps(events)}).encode()


def runtime(events):
    return [one for one in events if one["event_type"] == RUNTIME]


@pytest.mark.parametrize(("content", "n_events"), [(intel_rig.DSTACK, 28), (intel_rig.SCALE, 33)])
def test_logs_that_come_with_the_quote(content, n_events):
    content = data(content)
    _, log = examine(content, Endorsements(), AT)
    passed = {one.name: one.detail for one in log.checks if one.outcome == "passed"}
    assert passed["event log"] == f"{n_events} events"
    assert "stated report data" in passed
    wrapped = json.dumps({"attestation": content.hex()}).encode()
    if content[:2] == b"\0\0":
        assert evidence.recognise(wrapped)
        examine(wrapped, Endorsements(), AT)


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events.pop(),
        lambda events: events.pop(3),
        lambda events: events.reverse(),
        lambda events: events.append(events[-1]),
        lambda events: events[2].update(imr=1),
        lambda events: events[2].update(digest="00" * 48),
        lambda events: runtime(events)[1].update(event_payload="00"),
        lambda events: runtime(events)[1].update(event="app-id2"),
        lambda events: runtime(events)[1].update(version=2),
        lambda events: events.clear(),
    ],
)
def test_an_altered_log(change):
    assert refusal(dstack(change)) is Reason.EVENT_LOG


def test_stated_digests_of_the_guests_events_do_not_count():
    examine(dstack(lambda events: runtime(events)[1].update(digest="00" * 48)), Endorsements(), AT)
    examine(dstack(lambda events: runtime(events)[1].pop("digest")), Endorsements(), AT)


def test_digests_of_the_guests_events():
    tagged = b"\x01\x00\x00\x08:app-id:\xab\xcd"
    event = make_event(3, RUNTIME, b"", b"app-id", b"\xab\xcd")
    assert event.digests == {"sha384": hashlib.sha384(tagged).digest()}
    entry = {"imr": 3, "event_type": RUNTIME, "event": "compose-hash", "event_payload": "abcd"}
    (event,) = parse_events(json.dumps([entry | {"version": 2}])).events
    canonical = b'{"event":"compose-hash","event_type":134217729,"payload":"abcd","version":2}'
    assert event.digests == {"sha384": hashlib.sha384(canonical).digest()}


@pytest.mark.parametrize(
    "change",
    [
        {"imr": 4},
        {"event_type": -1},
        {"digest": "00"},
        {"digest": 3},
        {"event": None},
        {"event": "\ud800"},
        {"event_payload": "0"},
        {"version": 3},
        {"more": 1},
    ],
)
def test_malformed_events(change):
    entry = {"imr": 0, "event_type": 4, "digest": "00" * 48, "event": "", "event_payload": ""}
    parse_events(json.dumps([entry]))
    with pytest.raises(DecodeError):
        parse_events(json.dumps([entry | change]))
    with pytest.raises(DecodeError):
        parse_events("{}")


def test_report_data_that_an_envelope_states():
    body = json.loads(data(intel_rig.DSTACK))
    body["report_data"] = "56" + body["report_data"][2:]
    assert refusal(json.dumps(body).encode()) is Reason.DIGEST


def test_an_envelopes_lists_agree():
    content = data(intel_rig.SCALE)
    at = content.rindex(b"system-ready")
    with pytest.raises(DecodeError, match="lists"):
        parse_envelope(content[:at] + b"System" + content[at + 6 :], Kind.INTEL_TDX)


def test_logs_at_hand():
    _, log = examine(data(LIVE), endorsements(LIVE_LOG), AT)
    assert ("event log", "passed") in [(one.name, one.outcome) for one in log.checks]
    assert refusal(data(LIVE), endorsements("tdx-ccel-other-boot.bin")) is Reason.EVENT_LOG
    both = endorsements(LIVE_LOG, "tdx-ccel-other-boot.bin")
    assert refusal(data(LIVE), both) is Reason.EVENT_LOG
    damaged = Endorsements(event_logs=(data(LIVE_LOG)[:2000],))
    assert refusal(data(LIVE), damaged) is Reason.EVENT_LOG


def test_logs_of_tpms_are_not_for_it():
    content = bytearray(data(LIVE_LOG))
    content[0] = 0  # the first event's register
    _, log = examine(data(LIVE), Endorsements(event_logs=(bytes(content),)), AT)
    assert ("event log", "skipped") in [(one.name, one.outcome) for one in log.checks]


def test_a_paravisors_report_at_hand(tmp_path):
    at_hand = endorsements(PARAVISOR)
    _, log = examine(data(AZURE), at_hand, AT)
    assert ("runtime data", "passed") in [(one.name, one.outcome) for one in log.checks]
    assert refusal(data(LIVE), at_hand) is Reason.DIGEST
    (tmp_path / "hcl").write_bytes(data(PARAVISOR))
    with pytest.raises(UsageError, match="--with"):
        load_evidence([tmp_path / "hcl"])


@pytest.mark.parametrize("where", [200, 600, 760, 1240, 1300])
def test_an_altered_paravisors_report(where):
    content = bytearray(data(PARAVISOR))
    content[where] ^= 1
    assert refusal(data(AZURE), read(bytes(content)).endorsements) is Reason.DIGEST


def test_tdreports():
    content = data("tdx-tdreport-other-boot.bin")
    report = parse_tdreport(content)
    assert report.registers()[3] == content[816:864]
    for where in (0, 40, 100, 300, 530, 800, 1000):
        damaged = bytearray(content)
        damaged[where] ^= 1
        with pytest.raises(DecodeError):
            parse_tdreport(bytes(damaged))
    with pytest.raises(DecodeError):
        parse_tdreport(content + b"\0")
    with pytest.raises(DecodeError):
        read(content)  # nobody can verify it
