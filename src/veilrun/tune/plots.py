"""Two pictures of an evaluation as SVG, readable on white and on black. No dependency.

* `regret_curves`: for each selector the share of tasks that it serves within x times the oracle's
  time. The higher and the further to the left a line runs, the better.
* `heat_map`: what each arm gains over the default arm, by kind of workload.

Nothing is told by colour alone: lines differ by their dashes and carry their names, cells hold
their numbers. A title inside each line and cell says the same to screen readers.

Invariant: the text is well-formed XML, and no name is cut off or lies on another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np

from veilrun.errors import UsageError
from veilrun.tune.scenario import Floats

_LETTER: Final = 8.2
"""Pixels that a letter of a name takes at most, on average over a word, at 13 pixels of height."""

_COLOURS: Final = 7
"""How many colours lines have: .c0 to .c6."""

_STYLE: Final = """
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-size: 15px; font-weight: 600 }
    .strong { font-weight: 700 }
    .tick { font-size: 11px; fill: #57606a }
    .scale, .edge { fill: none; stroke: #8b949e; stroke-opacity: 0.35 }
    .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round }
    .ours { stroke-width: 3.6 }
    .outline { fill: none; stroke: #24292f; stroke-width: 2 }
    .faster { fill: #0969da } .slower { fill: #bc4c00 }
    .c0 { stroke: #0969da } .c1 { stroke: #bc4c00 } .c2 { stroke: #1a7f37 }
    .c3 { stroke: #8250df } .c4 { stroke: #bf3989 } .c5 { stroke: #7d4e00 } .c6 { stroke: #57606a }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .tick { fill: #9198a1 }
      .outline { stroke: #e6edf3 }
      .faster { fill: #2f81f7 } .slower { fill: #e5701a }
      .c0 { stroke: #58a6ff } .c1 { stroke: #f0883e } .c2 { stroke: #3fb950 }
      .c3 { stroke: #bc8cff } .c4 { stroke: #ff7bcf } .c5 { stroke: #d29922 }
      .c6 { stroke: #9198a1 }
    }
"""


def _picture(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    width = max(width, 24 + 1.25 * _LETTER * len(title))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            _text(12, 24, title, "title"),
            *parts,
            "</svg>",
            "",
        ]
    )


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """Words at a place; anchor: which end of them."""
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


# --- regret curves ------------------------------------------------------------------------------

_LEFT, _TOP, _WIDTH, _HEIGHT = 64, 84, 500, 340
_LINE: Final = 17  # pixels from name to name
_SAMPLE: Final = 34  # pixels of a line's dashes before its name
_DASHES: Final = (
    "",
    "7 4",
    "2 3",
    "11 4 2 4",
    "5 3 1 3 1 3",
    "16 5",
    "4 8",
    "9 3 3 3 3 3",
    "2 2 6 2",
)
_LEAST_END: Final = 2.0
_SHOWN_SHARE: Final = 0.99
_READ_OUT: Final = (1.05, 1.2, 1.5, 2.0)
"""Where a line's title says how high it is."""

_STEPS: Final = (
    (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 7),
    (1, 1.2, 1.5, 2, 3, 5),
    (1, 2, 5),
)
"""Numbers on the scale from one power of ten to the next, the densest first."""

_SLACK: Final = 1e-9
"""A ratio that rounding put below 1 still counts as 1."""


@dataclass(frozen=True, slots=True)
class _Curve:
    """heights [_WIDTH + 1]: share of tasks at each pixel of the scale, from left to right."""

    name: str
    is_ours: bool
    look: str
    heights: Floats
    said: str


def regret_curves(
    title: str, ratios: Mapping[str, Sequence[float] | Floats], *, ours: str | None = None
) -> str:
    """The share of tasks (upwards) that each selector serves within x times the oracle's time.

    The scale of x is logarithmic, from 1 to the 99th percentile of all ratios, at least 2.

    ratios: selector -> time over the oracle's, one for each task, at least 1.
    ours: the selector whose line is heavier.

    Raises:
        UsageError: no selector, ours is none of them, no task, a ratio below 1 or without end.
    """
    tasks = {name: np.asarray(of, dtype=np.float64) for name, of in ratios.items()}
    for name, of in tasks.items():
        if not len(of) or not (np.isfinite(of) & (of >= 1 - _SLACK)).all():
            raise UsageError(f"{name}: a curve needs tasks, and finite ratios of at least 1")
    if not tasks or ours not in {None, *tasks}:
        raise UsageError(
            f"regret curves of {', '.join(tasks) or 'nobody'}, {ours or 'one'} missing"
        )
    end = max(_LEAST_END, float(np.quantile(np.concatenate(list(tasks.values())), _SHOWN_SHARE)))
    curves = [
        _curve(at, name, of, end, name == ours) for at, (name, of) in enumerate(tasks.items())
    ]
    curves.sort(key=lambda one: (-one.heights[-1], -one.heights.mean()))
    places = _apart([_up(one.heights[-1]) for one in curves])
    by_weight = sorted(zip(curves, places, strict=True), key=lambda of: of[0].is_ours)
    lines = [part for one, y in by_weight for part in _drawn(one, y)]  # ours over the others
    longest = max(map(len, tasks))
    bottom = max(_TOP + _HEIGHT, *places)
    width = _LEFT + _WIDTH + 20 + _SAMPLE + _LETTER * longest + 20
    return _picture(title, width, bottom + 60, [*_axes(end), *lines])


def _curve(at: int, name: str, ratios: Floats, end: float, is_ours: bool) -> _Curve:
    ordered = np.sort(ratios)
    scale = end ** (np.arange(_WIDTH + 1) / _WIDTH)
    heights = np.searchsorted(ordered, scale + _SLACK, side="right") / len(ordered)
    within = (
        f"{np.mean(ratios <= bound + _SLACK):.0%} within {bound:g}x"
        for bound in _READ_OUT
        if bound <= end
    )
    dashes = "" if is_ours else _DASHES[at % len(_DASHES)]
    look = f'class="curve c{at % _COLOURS}{" ours" if is_ours else ""}"'
    look += f' stroke-dasharray="{dashes}"' if dashes else ""
    said = f"{name}: of all tasks {', '.join(within)} of the oracle's time"
    return _Curve(name, is_ours, look, heights, said)


def _drawn(one: _Curve, y_name: float) -> Iterator[str]:
    """The line, then a piece of it that leads to its name."""
    path = [f"M{_LEFT} {_up(one.heights[0]):.1f}"]
    for at in np.flatnonzero(np.diff(one.heights)) + 1:
        path.append(f"H{_LEFT + at}V{_up(one.heights[at]):.1f}")
    path.append(f"H{_LEFT + _WIDTH}")
    edge = _LEFT + _WIDTH
    lead = f"M{edge} {_up(one.heights[-1]):.1f}L{edge + 16} {y_name:.1f}h{_SAMPLE}"
    yield "<g>"
    yield f"<title>{escape(one.said)}</title>"
    yield f'<path d="{"".join(path)}" {one.look}/>'
    yield f'<path d="{lead}" {one.look}/>'
    kind = "strong" if one.is_ours else "name"
    yield _text(edge + 20 + _SAMPLE, y_name + 4, one.name, kind)
    yield "</g>"


def _apart(wanted: Sequence[float]) -> list[float]:
    """Places for names, from top to bottom: where they are wanted, or as far below as they must."""
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + _LINE) if places else y)
    return places


def _axes(end: float) -> Iterator[str]:
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _up(share)
        yield f'<line class="scale" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 8, y + 4, f"{share:.0%}", "tick", "end")
    for value, label in _ticks(end):
        x = _across(value, end)
        yield f'<line class="scale" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>'
        yield _text(x, bottom + 16, label, "tick", "middle")
    yield _text(
        (_LEFT + right) / 2, bottom + 38, "time, as a multiple of the oracle's", "strong", "middle"
    )
    yield _text(12, _TOP - 20, "tasks served within that time", "strong")


def _ticks(end: float) -> list[tuple[float, str]]:
    """The densest numbers whose labels do not touch."""
    powers = [10.0**at for at in range(math.floor(math.log10(end)) + 1)]
    dense = ([step * power for power in powers for step in steps] for steps in _STEPS)
    sparse = (powers[::every] for every in range(1, len(powers) + 1))
    ticks: list[tuple[float, str]] = []
    for values in itertools.chain(dense, sparse):
        ticks = [(value, f"{value:,.10g}x") for value in values if value <= end * (1 + _SLACK)]
        if all(
            _across(b, end) - _across(a, end) > _LETTER * (len(of_a) + len(of_b)) / 2
            for (a, of_a), (b, of_b) in itertools.pairwise(ticks)
        ):
            break
    return ticks


def _across(ratio: float, end: float) -> float:
    return _LEFT + _WIDTH * math.log(ratio) / math.log(end)


def _up(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


# --- heat map -----------------------------------------------------------------------------------

_CELL: Final = 30  # pixels from row to row
_NOTE: Final = (
    "how many times as fast as the default arm (blue: faster, orange: slower); "
    "outlined: the best of its column"
)
_STRONGEST: Final = 3.0
"""A gain or loss of this factor has the full colour; more has no more."""

_FULL: Final = 0.6
"""Opacity of the full colour: letters on it stay readable on white and on black."""

_NOTHING: Final = "\N{EN DASH}"


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], values: Floats) -> str:
    """Arms (rows) by kinds of workload (columns).

    Blue is faster than the default arm, orange slower, by the logarithm; without colour: neither.

    values: float64 [n rows, n columns], speed-ups over the default arm; nan: not known.

    Raises:
        UsageError: no cell, another shape, or a speed-up that is not above 0.
    """
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise UsageError(f"a heat map of {len(rows)} x {len(columns)} got values {values.shape}")
    known = ~np.isnan(values)
    if not (np.isfinite(values[known]) & (values[known] > 0)).all():
        raise UsageError("a heat map holds speed-ups above 0, and nan where there is none")
    left = 24 + _LETTER * max(map(len, rows))
    wide = max(62.0, 14 + _LETTER * max(map(len, columns)))
    top = 72.0
    best = np.where(known, values, 0.0).argmax(0)
    parts = [
        _text(left + wide * (at + 0.5), top - 12, name, "strong", "middle")
        for at, name in enumerate(columns)
    ]
    for i, row in enumerate(rows):
        y = top + _CELL * i
        parts.append(_text(left - 10, y + _CELL / 2 + 5, row, "name", "end"))
        for j, column in enumerate(columns):
            is_best = bool(known[i, j] and best[j] == i)
            parts += _cell(f"{row}, {column}", values[i, j], left + wide * j, y, wide, is_best)
    bottom = top + _CELL * len(rows)
    parts.append(_text(12, bottom + 24, _NOTE, "tick"))
    width = max(left + wide * len(columns) + 14, 24 + _LETTER * len(_NOTE))
    return _picture(title, width, bottom + 36, parts)


def _cell(
    name: str, value: float, x: float, y: float, width: float, is_best: bool
) -> Iterator[str]:
    number = _number(value)
    box = f'x="{x + 2:.1f}" y="{y + 2:.1f}" width="{width - 4:.1f}" height="{_CELL - 4}" rx="3"'
    yield "<g>"
    yield f"<title>{escape(name)}: {number}{', the best' if is_best else ''}</title>"
    if not math.isnan(value):
        depth = min(1.0, abs(math.log(value)) / math.log(_STRONGEST))
        kind = "faster" if value > 1 else "slower"
        yield f'<rect {box} class="{kind}" fill-opacity="{_FULL * depth:.3f}"/>'
    yield f'<rect {box} class="{"outline" if is_best else "edge"}"/>'
    place = (x + width / 2, y + _CELL / 2 + 5)
    yield _text(*place, number, "strong" if is_best else "value", "middle")
    yield "</g>"


def _number(value: float) -> str:
    """Two digits where they fit: 0.85x, 1.8x, 24x."""
    if math.isnan(value):
        return _NOTHING
    digits = ".2g" if value < 0.995 else ".1f" if value < 9.95 else ".0f"
    return f"{value:{digits}}x"
