"""Scatter plots as SVG: shares against shares, with names, readable on white and on black.

    text = scatter("title", "agreement", "tokens read", [Point("host", "haar", 1.0, 0.99), ...])

Points of one series have one colour and one shape, so colour alone says nothing; the mode's name
stands once, above its column. Values lie between 0 and 1.

Invariant: the text is well-formed XML, and every point has its series, its name and its values in
its title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from chart import COLOURS, STYLE, text

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 92, 96
_SHAPES: Final = ("circle", "square", "diamond", "triangle", "bar", "cross")


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement. x, y: shares, 0 to 1."""

    series: str
    name: str
    x: float
    y: float


def scatter(title: str, x_name: str, y_name: str, points: Sequence[Point]) -> str:
    """The plot.

    Raises:
        ValueError: no point, or one that is no share.
    """
    if not points or not all(0 <= value <= 1 for one in points for value in (one.x, one.y)):
        raise ValueError("a scatter plot needs points whose values are shares")
    series = list(dict.fromkeys(one.series for one in points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        text(12, 24, title, "title"),
        *_axes(x_name, y_name),
        *_legend(series),
        *_names(points),
    ]
    for one in points:
        at = series.index(one.series)
        parts.append(
            f"<g><title>{escape(one.series)}, {escape(one.name)}: {x_name} {one.x:.1%}, "
            f"{y_name} {one.y:.1%}</title>{_mark(at, _across(one.x), _up(one.y))}</g>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _across(x: float) -> float:
    return _LEFT + 12 + x * (_WIDTH - _LEFT - _RIGHT - 24)


def _up(y: float) -> float:
    return _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)


def _axes(x_name: str, y_name: str) -> list[str]:
    parts = []
    for step in range(5):
        share = step / 4
        x, y = _across(share), _up(share)
        parts += [
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>',
            text(_LEFT - 8, y + 4, f"{share:.0%}", "tick", "end"),
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>',
            text(x, _HEIGHT - _BOTTOM + 16, f"{share:.0%}", "tick", "middle"),
        ]
    parts.append(text(_across(0.5), _HEIGHT - _BOTTOM + 36, x_name, "group", "middle"))
    parts.append(text(12, _TOP - 40, y_name, "group"))
    return parts


def _legend(series: Sequence[str]) -> list[str]:
    parts, x = [], float(_LEFT)
    y = _HEIGHT - 24.0
    for at, name in enumerate(series):
        parts += [_mark(at, x, y - 4), text(x + 12, y, name, "value")]
        x += 34 + 7.2 * len(name)
        if x > _WIDTH - 160:
            x, y = float(_LEFT), y + 18
    return parts


def _names(points: Sequence[Point]) -> list[str]:
    """Modes over their columns; modes at one place share a line."""
    columns: dict[int, list[str]] = {}
    for one in points:
        names = columns.setdefault(round(_across(one.x) / 14), [])
        if one.name not in names:
            names.append(one.name)
    parts = []
    for at, (column, names) in enumerate(sorted(columns.items())):
        anchor = "end" if column * 14 > _WIDTH * 0.8 else "start"
        y = _TOP - 10 - 14 * (at % 2)  # neighbours in two lines
        parts.append(text(column * 14, y, ", ".join(names), "tick", anchor))
    return parts


def _mark(series: int, x: float, y: float) -> str:
    colour, shape = COLOURS[series % len(COLOURS)], _SHAPES[series % len(_SHAPES)]
    match shape:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
        case "square":
            return (
                f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"/>'
            )
        case "diamond":
            path = f"M{x:.1f} {y - 6:.1f} l6 6 l-6 6 l-6 -6 Z"
        case "triangle":
            path = f"M{x:.1f} {y - 6:.1f} l6 11 h-12 Z"
        case "bar":
            return f'<rect x="{x - 7:.1f}" y="{y - 2:.1f}" width="14" height="4" fill="{colour}"/>'
        case _:
            path = f"M{x - 5:.1f} {y - 5:.1f} l10 10 m0 -10 l-10 10"
            return f'<path d="{path}" stroke="{colour}" stroke-width="2.5" fill="none"/>'
    return f'<path d="{path}" fill="{colour}"/>'
