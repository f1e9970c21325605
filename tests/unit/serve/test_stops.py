"""Stop strings against an oracle that sees the whole text, over all ways to cut it up."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.serve.stops import StopStrings

few_letters = st.text("ab\N{PILE OF POO}", max_size=12)
stop_lists = st.lists(st.text("ab\N{PILE OF POO}", min_size=1, max_size=4), max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first end at which a stop is complete, the longest there."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop_strings = StopStrings(stops)
    shown = ""
    for piece in pieces:
        safe, stopped = stop_strings.feed(piece)
        shown += safe
        if stopped:
            return shown, True
    return shown + stop_strings.flush(), False


@given(text=few_letters, stops=stop_lists, cuts=st.sets(st.integers(0, 12)))
def test_any_cutting_gives_the_oracles_text(text, stops, cuts):
    borders = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(borders)]
    assert run(pieces, stops) == oracle(text, stops)


@pytest.mark.parametrize("stops", [["aba"], ["ab", "bab"], ["aab", "ab", "b"], ["abab", "ba"]])
def test_every_cutting_of_one_text(stops):
    text = "aababa"
    for n_cuts in range(len(text)):
        for cuts in combinations(range(1, len(text)), n_cuts):
            borders = [0, *cuts, len(text)]
            pieces = [text[start:end] for start, end in pairwise(borders)]
            assert run(pieces, stops) == oracle(text, stops), pieces


@given(text=few_letters, stops=stop_lists)
def test_holds_back_only_what_could_begin_a_stop(text, stops):
    stop_strings = StopStrings(stops)
    safe, stopped = stop_strings.feed(text)
    if not stopped:
        held = text[len(safe) :]
        starts = {stop[:size] for stop in stops for size in range(len(stop))}
        assert held in starts | {""}
        longer = (text[start:] for start in range(len(safe)))
        assert not any(ending in starts for ending in longer)


def test_nothing_comes_after_the_stop():
    stop_strings = StopStrings(["."])
    assert stop_strings.feed("One. Two.") == ("One", True)
    assert stop_strings.feed("Three") == ("", True)
    assert stop_strings.flush() == ""
