"""Counters of a node in Prometheus' text form.

Covered: load and outcomes, in totals. Not here on purpose: histograms of prompt or answer
lengths, cache hits, and anything per client. Whoever could scrape those between two requests
would read one stranger's prompt length off the difference; the totals of tokens still allow that
on an idle node, so the path wants the API key like every other.

Invariant: label values come from `OUTCOMES`, never from a request.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, Literal, get_args

Outcome = Literal["answered", "aborted", "disconnected", "invalid", "busy", "unavailable", "failed"]
OUTCOMES: Final = get_args(Outcome)
_BOUNDS_S: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """What has happened since the node started."""

    def __init__(self) -> None:
        self._n_requests: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self._n_tokens_in = 0
        self._n_tokens_out = 0
        self._n_within = [0] * (len(_BOUNDS_S) + 1)
        self._total_s = 0.0

    def note(self, outcome: Outcome, *, seconds: float, n_in: int = 0, n_out: int = 0) -> None:
        """Count one request; `n_in` and `n_out` are tokens the engine was given and gave."""
        self._n_requests[outcome] += 1
        self._n_tokens_in += n_in
        self._n_tokens_out += n_out
        self._n_within[bisect_left(_BOUNDS_S, seconds)] += 1
        self._total_s += seconds

    def render(self, *, n_running: int, n_queued: int, ready: bool) -> str:
        """The page `GET /metrics` answers with."""
        lines = [
            *_head("requests_total", "counter", "Requests by how they ended."),
            *(f'veilrun_node_requests_total{{outcome="{k}"}} {v}' for k, v in self._count()),
            *_single("tokens_in_total", "counter", "Prompt tokens read.", self._n_tokens_in),
            *_single("tokens_out_total", "counter", "Tokens generated.", self._n_tokens_out),
            *_single("answers_running", "gauge", "Answers being generated.", n_running),
            *_single("requests_queued", "gauge", "Requests waiting for room.", n_queued),
            *_single("engine_ready", "gauge", "1 if the engine can answer.", int(ready)),
            *_head("request_seconds", "histogram", "Seconds from request to last byte."),
        ]
        n_sofar = 0
        for bound, n in zip((*map(str, _BOUNDS_S), "+Inf"), self._n_within, strict=True):
            n_sofar += n
            lines.append(f'veilrun_node_request_seconds_bucket{{le="{bound}"}} {n_sofar}')
        lines.append(f"veilrun_node_request_seconds_sum {self._total_s:.6f}")
        lines.append(f"veilrun_node_request_seconds_count {n_sofar}")
        return "\n".join(lines) + "\n"

    def _count(self) -> list[tuple[str, int]]:
        return list(self._n_requests.items())


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP veilrun_node_{name} {text}", f"# TYPE veilrun_node_{name} {kind}"]


def _single(name: str, kind: str, text: str, value: int) -> list[str]:
    return [*_head(name, kind, text), f"veilrun_node_{name} {value}"]
