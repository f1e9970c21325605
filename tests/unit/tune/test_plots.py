"""Pictures: well-formed, true to their numbers, and nothing told by colour alone or cut off."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilrun.errors import UsageError
from veilrun.tune import plots
from veilrun.tune.plots import heat_map, regret_curves

SVG = "{http://www.w3.org/2000/svg}"
NAN = math.nan
RATIOS = {
    "ours": [1.0] * 90 + [1.3] * 10,
    "single <best>": [1.0] * 40 + [1.5] * 40 + [2.0] * 20,
    "random & lost": [1.0] * 10 + [1.9] * 50 + [8.0] * 40,
}


def drawn(text: str, kind: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(SVG + kind))


def lines(text: str) -> dict[str, ElementTree.Element]:
    """Name -> its group: title, curve, what leads to the name, name."""
    return {group.findtext(SVG + "text") or "": group for group in drawn(text, "g")}


def height_at(group: ElementTree.Element, ratio: float, end: float) -> float:
    """The share of tasks that a curve shows at a ratio, read off its path."""
    path = next(group.iter(SVG + "path")).get("d") or ""
    start, *steps = re.findall(r"[MHV][^MHV]*", path)
    y = float(start.split()[1])
    x = plots._across(ratio, end)
    for across, up in itertools.pairwise(steps):
        if across[0] == "H" and up[0] == "V" and float(across[1:]) <= x:
            y = float(up[1:])
    return 1 - (y - plots._TOP) / plots._HEIGHT


def inside(text: str) -> None:
    """Every word starts and ends within the picture, if letters are as wide as taken."""
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    assert root.get("width") == f"{width:.0f}" and root.get("height") == f"{height:.0f}"
    for one in root.iter(SVG + "text"):
        x, y, words = float(one.get("x", -1)), float(one.get("y", -1)), one.text or ""
        letter = 6.5 if one.get("class") == "tick" else 7.8
        long = letter * len(words)
        left = {"start": x, "middle": x - long / 2, "end": x - long}[one.get("text-anchor", "")]
        assert left >= 0 and left + long <= width, words
        assert 10 < y <= height, words


def test_every_selector_has_a_line_a_name_and_a_title():
    text = regret_curves("regret <&>", RATIOS, ours="ours")
    found = lines(text)
    assert found.keys() == RATIOS.keys()
    for name, group in found.items():
        assert (group.findtext(SVG + "title") or "").startswith(f"{name}: ")
    assert "90% within 1.05x, 90% within 1.2x, 100% within 1.5x" in (
        found["ours"].findtext(SVG + "title") or ""
    )
    assert ElementTree.fromstring(text).findtext(SVG + "title") == "regret <&>"
    assert "prefers-color-scheme: dark" in (
        ElementTree.fromstring(text).findtext(SVG + "style") or ""
    )
    inside(text)


def test_curves_are_as_high_as_the_share_of_tasks():
    text = regret_curves("", RATIOS)
    found, end = lines(text), 8.0
    for name, ratios in RATIOS.items():
        for ratio in (1.0, 1.2, 1.4, 1.95, 3.0, 7.9, 8.0):
            share = np.mean(np.array(ratios) <= ratio)
            assert height_at(found[name], ratio, end) == pytest.approx(share, abs=0.001), (
                name,
                ratio,
            )


def test_the_scale_ends_at_the_99th_percentile_and_at_2_at_least():
    for ratios, end in (([1.0, 1.01], 2.0), ([1.0] * 990 + [5.0] * 10 + [900.0], 5.0)):
        text = regret_curves("", {"a": ratios})
        labels = [one.text for one in drawn(text, "text") if (one.text or "").endswith("x")]
        assert labels[0] == "1x" and labels[-1] == f"{end:g}x"
    assert plots._across(2.0, 4.0) == plots._LEFT + plots._WIDTH / 2  # logarithmic


def test_lines_differ_without_colour_and_ours_is_heavier():
    many = {f"selector {i}": [1.0, 1.0 + i] for i in range(9)}
    found = lines(regret_curves("", many, ours="selector 4"))
    dashes = {}
    for name, group in found.items():
        curve, lead = group.iter(SVG + "path")
        assert curve.get("stroke-dasharray") == lead.get("stroke-dasharray")
        assert curve.get("class") == lead.get("class")
        kinds = (curve.get("class") or "").split()
        assert ("ours" in kinds) == (name == "selector 4")
        dashes[name] = (curve.get("stroke-dasharray"), "ours" in kinds)
    assert len(set(dashes.values())) == len(many)
    looks = {next(group.iter(SVG + "path")).get("class") for group in found.values()}
    assert len(looks) > 6


@given(st.lists(st.lists(st.floats(1, 1e7), min_size=1, max_size=5), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_names_never_lie_on_each_other_or_outside(ratios: list[list[float]]):
    text = regret_curves("title", {f"s{i:02d}": one for i, one in enumerate(ratios)})
    inside(text)
    places = sorted(float(group.find(SVG + "text").get("y")) for group in lines(text).values())
    assert all(after - before >= 16 for before, after in itertools.pairwise(places))
    ticks = [one for one in drawn(text, "text") if (one.text or "").endswith("x")]
    assert ticks[0].text == "1x"
    for one, other in itertools.pairwise(ticks):
        reach = 3.3 * (len(one.text or "") + len(other.text or ""))
        assert float(other.get("x", 0)) - float(one.get("x", 0)) > reach


def test_names_stand_beside_the_ends_of_their_lines():
    found = lines(regret_curves("", RATIOS))
    ends = {name: height_at(group, 8.0, 8.0) for name, group in found.items()}
    order = sorted(found, key=lambda name: float(found[name].find(SVG + "text").get("y")))
    assert [ends[name] for name in order] == sorted(ends.values(), reverse=True)
    assert order[0] == "ours"  # of lines that end alike, the one that is higher before


@pytest.mark.parametrize(
    ("ratios", "ours"),
    [
        ({}, None),
        ({"a": []}, None),
        ({"a": [0.9, 1.0]}, None),
        ({"a": [1.0, NAN]}, None),
        ({"a": [1.0, math.inf]}, None),
        ({"a": [1.0]}, "b"),
    ],
)
def test_what_has_no_curve_is_refused(ratios, ours):
    with pytest.raises(UsageError):
        regret_curves("", ratios, ours=ours)


ROWS, COLUMNS = ("single", "prefix <&>", "lookup"), ("chat", "edit", "summary & more", "none")
VALUES = np.array([[1.0, 0.5, 0.043, NAN], [1.84, 2.0, 24.2, NAN], [NAN, 0.25, 3.0, NAN]])


def cells(text: str) -> list[list[ElementTree.Element]]:
    groups = drawn(text, "g")
    return [groups[i : i + len(COLUMNS)] for i in range(0, len(groups), len(COLUMNS))]


def test_every_cell_holds_its_number():
    text = heat_map("arms <&> work", ROWS, COLUMNS, VALUES)
    written = [[cell.findtext(SVG + "text") for cell in row] for row in cells(text)]
    nothing = "\N{EN DASH}"
    assert written == [
        ["1.0x", "0.5x", "0.043x", nothing],
        ["1.8x", "2.0x", "24x", nothing],
        [nothing, "0.25x", "3.0x", nothing],
    ]
    for i, j in itertools.product(range(3), range(4)):
        said = cells(text)[i][j].findtext(SVG + "title") or ""
        assert said.startswith(f"{ROWS[i]}, {COLUMNS[j]}: {written[i][j]}")
    words = [one.text for one in drawn(text, "text")]
    assert {*ROWS, *COLUMNS, "arms <&> work"} <= set(words)
    inside(text)


def test_the_best_of_a_column_is_outlined_bold_and_said_so():
    for i, row in enumerate(cells(heat_map("", ROWS, COLUMNS, VALUES))):
        for j, cell in enumerate(row):
            is_best = i == 1 and j < 3
            outlined = any(one.get("class") == "outline" for one in cell.iter(SVG + "rect"))
            bold = cell.find(SVG + "text").get("class") == "strong"
            said = (cell.findtext(SVG + "title") or "").endswith("the best")
            assert outlined == bold == said == is_best, (i, j)


def test_colour_follows_the_logarithm_both_ways():
    values = np.array([[0.1, 1 / 3, 0.5, 1.0, 2.0, 3.0, 10.0, NAN]])
    row = drawn(heat_map("", ["arm"], "abcdefgh", values), "g")
    boxes = [next(cell.iter(SVG + "rect")) for cell in row]
    fills = [(box.get("class"), float(box.get("fill-opacity", 0))) for box in boxes]
    assert [kind for kind, _ in fills[:3]] == ["slower"] * 3
    assert [kind for kind, _ in fills[4:7]] == ["faster"] * 3
    depths = [depth for _, depth in fills]
    assert depths[3] == 0 and fills[7] == ("edge", 0)
    assert depths[:3] == depths[6:3:-1]  # half as fast is as far from 1 as twice as fast
    assert 0 < depths[4] < depths[5] == depths[6] == plots._FULL


def test_cells_do_not_overlap_and_names_stand_over_them():
    text = heat_map("", ROWS, COLUMNS, VALUES)
    heads = {one.text: float(one.get("x", 0)) for one in drawn(text, "text")}
    for row in cells(text):
        boxes = [next(cell.iter(SVG + "rect")) for cell in row]
        for name, box in zip(COLUMNS, boxes, strict=True):
            x, width = float(box.get("x", 0)), float(box.get("width", 0))
            assert x + width / 2 == pytest.approx(heads[name], abs=0.2)
            assert width >= 7.8 * len(name)
        for box, other in itertools.pairwise(boxes):
            assert float(box.get("x", 0)) + float(box.get("width", 0)) < float(other.get("x", 0))


@pytest.mark.parametrize(
    "values",
    [
        np.ones((3, 3)),
        np.ones((4, 3)),
        np.ones(12),
        np.where(np.isnan(VALUES), 0.0, VALUES),
        -VALUES,
        np.where(np.isnan(VALUES), np.inf, VALUES),
    ],
)
def test_what_is_no_table_of_gains_is_refused(values):
    with pytest.raises(UsageError):
        heat_map("", ROWS, COLUMNS, values)


def test_an_empty_heat_map_is_refused():
    with pytest.raises(UsageError):
        heat_map("", [], [], np.ones((0, 0)))
