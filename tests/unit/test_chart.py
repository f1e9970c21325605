"""The benchmarks' charts: well-formed, every bar with its name and its value."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "chart.py"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def chart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_chart", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def drawn(text: str, kind: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(SVG + kind))


def test_every_bar_is_labelled(chart: ModuleType):
    groups = [
        chart.Group("8 tokens", [chart.Bar("ours", 0.14, "0.14 s"), chart.Bar("a<b", 28, '"28"')]),
        chart.Group("32 & more", [chart.Bar("ours", 0.5, "0.5 s")]),
    ]
    text = chart.bars("seconds <&>", groups)
    labelled = []
    for group in drawn(text, "g"):
        (rect,) = group.iter(SVG + "rect")
        name, value = (one.text for one in group.iter(SVG + "text"))
        labelled.append((name, value, rect.get("fill"), float(rect.get("width", 0))))
        assert group.findtext(SVG + "title") == f"{name}: {value}"
    assert [one[:2] for one in labelled] == [("ours", "0.14 s"), ("a<b", '"28"'), ("ours", "0.5 s")]
    ours, other, longer = labelled
    assert ours[2] == longer[2] != other[2]  # a colour for each name
    assert 0 < ours[3] < longer[3] < other[3]
    assert len(drawn(text, "rect")) == 3
    words = [one.text for one in drawn(text, "text")]
    assert {"seconds <&>", "8 tokens", "32 & more"} <= set(words)
    assert {"0.1", "1", "10", "100"} <= set(words)  # the scale, over all values


def test_the_scale_is_logarithmic(chart: ModuleType):
    values = (1.0, 10.0, 100.0, 1000.0)
    text = chart.bars("", [chart.Group("", [chart.Bar(str(v), v, "") for v in values])])
    widths = [float(one.get("width", 0)) for one in drawn(text, "rect")]
    steps = [after - before for before, after in itertools.pairwise(widths[1:])]
    assert widths[0] == 2  # on the scale's beginning, but to be seen
    assert steps == pytest.approx([steps[0]] * len(steps), abs=0.11)
    dark = ElementTree.fromstring(text).findtext(SVG + "style") or ""
    assert "prefers-color-scheme: dark" in dark


@pytest.mark.parametrize("values", [(), (1.0, 0.0), (-1.0,), (float("inf"),), (float("nan"),)])
def test_what_has_no_place_on_the_scale_is_refused(chart: ModuleType, values):
    with pytest.raises(ValueError, match="greater than 0"):
        chart.bars("", [chart.Group("", [chart.Bar("a", value, "") for value in values])])
