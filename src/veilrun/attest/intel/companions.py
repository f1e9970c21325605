"""What lies beside a TDX quote, and must say the same: event logs, reports of a paravisor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from veilrun.attest.checks import CheckLog
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.event_logs import EventLog, parse_event_log, verify_registers
from veilrun.attest.hcl import parse_hcl, verify_runtime_data
from veilrun.attest.intel.reports import TD_REPORT_BYTES, TdReport, parse_tdreport
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.errors import DecodeError

_LOG, _PARAVISOR = "event log", "runtime data"
_ALGORITHM: Final = "sha384"


def replay_logs(
    report: TdReport, carried: EventLog | None, endorsements: Endorsements, log: CheckLog
) -> None:
    """The event logs that came with the quote or are at hand give its registers.

    Raises:
        AppraisalError: event-log.
    """
    try:
        logs = [*_carried(carried), *_at_hand(endorsements)]
    except DecodeError as error:
        with log.step(_LOG):
            raise AppraisalError(Reason.EVENT_LOG, _LOG, str(error)) from error
    if not logs:
        log.skip(_LOG, "none at hand")
    for one in logs:
        with log.step(_LOG, f"{len(one.events)} events"):
            verify_registers(one, _ALGORITHM, report.registers(), _LOG)


def compare_paravisors(report: TdReport, endorsements: Endorsements, log: CheckLog) -> None:
    """A paravisor's report at hand is of this domain, and its runtime data what the quote is about.

    Raises:
        AppraisalError: digest.
    """
    for data in endorsements.paravisors:
        with log.step(_PARAVISOR):
            try:
                paravisor = parse_hcl(data)
                inner = parse_tdreport(paravisor.tee_report[:TD_REPORT_BYTES])
            except DecodeError as error:
                raise AppraisalError(Reason.DIGEST, _PARAVISOR, str(error)) from error
            if not report.same_domain(inner):
                raise AppraisalError(
                    Reason.DIGEST, _PARAVISOR, "the paravisor's report is of another domain"
                )
            verify_runtime_data(paravisor, report.report_data, _PARAVISOR)


def _carried(log: EventLog | None) -> Iterator[EventLog]:
    if log is not None:
        yield log


def _at_hand(endorsements: Endorsements) -> Iterator[EventLog]:
    """Logs of TPMs may be at hand as well."""
    for data in endorsements.event_logs:
        log = parse_event_log(data)
        if log.is_of_tee:
            yield log
