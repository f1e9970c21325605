"""Bar charts as SVG, on a logarithmic scale, readable on white and on black. No dependency.

    text = bars("seconds", [Group("8 tokens", [Bar("ours", 0.14, "0.14 s"), ...]), ...])

One bar per row, in groups under a heading; the name stands left of a bar and its value in words
right of it, so nothing has to be read off a scale or told by colour alone. Bars of one name have
one colour. The scale begins at the power of ten below the smallest value.

Invariant: the text is well-formed XML, and every bar has its name, its value and a title.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 760
_LEFT, _RIGHT = 170, 150  # room for names, and for values
_ROW, _BAR, _HEADING, _TOP, _BOTTOM = 24, 16, 30, 44, 30
COLOURS: Final = ("#2f81f7", "#d29922", "#a371f7", "#3fb950", "#f85149")  # on white and on black
STYLE: Final = """
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-size: 15px; font-weight: 600 }
    .group { font-weight: 600 }
    .tick { font-size: 11px; fill: #57606a }
    line { stroke: #8b949e; stroke-opacity: 0.35 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .tick { fill: #9198a1 }
    }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """value: greater than 0. words: the value for people, with its unit and remarks."""

    name: str
    value: float
    words: str


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under one heading."""

    heading: str
    bars: Sequence[Bar]


def bars(title: str, groups: Sequence[Group]) -> str:
    """The chart.

    Raises:
        ValueError: no bar, or one that a logarithmic scale has no place for.
    """
    values = [bar.value for group in groups for bar in group.bars]
    if not values or not all(0 < value < math.inf for value in values):
        raise ValueError("a logarithmic chart needs bars, and all of them greater than 0")
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    names = list(dict.fromkeys(bar.name for group in groups for bar in group.bars))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    bottom = _TOP + sum(_HEADING + _ROW * len(group.bars) for group in groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" '
        f'width="{_WIDTH}" height="{bottom + _BOTTOM}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        text(12, 24, title, "title"),
        *_scale(low, high, bottom),
    ]
    y = _TOP
    for group in groups:
        parts.append(text(12, y + 20, group.heading, "group"))
        y += _HEADING
        for bar in group.bars:
            end = max(_place(bar.value, low, high), _LEFT + 2.0)  # the least can still be seen
            parts.append(_bar(bar, y, end, colours[bar.name]))
            y += _ROW
    return "\n".join([*parts, "</svg>", ""])


def _bar(bar: Bar, y: int, end: float, colour: str) -> str:
    middle = y + _BAR - 3
    return "\n".join(
        [
            "<g>",
            f"<title>{escape(bar.name)}: {escape(bar.words)}</title>",
            text(_LEFT - 8, middle, bar.name, "name", "end"),
            f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{_BAR}" rx="2" '
            f'fill="{colour}"/>',
            text(end + 6, middle, bar.words, "value"),
            "</g>",
        ]
    )


def _scale(low: int, high: int, bottom: int) -> list[str]:
    """A line and a number at every power of ten."""
    parts = []
    for power in range(low, high + 1):
        x = _place(10.0**power, low, high)
        number = f"{10.0**power:,.{max(-power, 0)}f}"
        parts += [
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>',
            text(x, bottom + 16, number, "tick", "middle"),
        ]
    return parts


def _place(value: float, low: int, high: int) -> float:
    share = (math.log10(value) - low) / (high - low)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """Words at a place; anchor: which end of them."""
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'
