"""The card: JSON there and back, three forms that say the same, and a verdict from numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from card_rig import card, outcome, rate

from veilrun.attacks.card import Card
from veilrun.attacks.card_files import write_card
from veilrun.attacks.card_html import card_html
from veilrun.attacks.card_json import decode_card, decode_outcome, encode_card, encode_outcome
from veilrun.attacks.card_markdown import card_markdown
from veilrun.attacks.levels import Level
from veilrun.attacks.verdict import verdict
from veilrun.attacks.wording import duration, megabytes, percent
from veilrun.errors import DecodeError

HOSTILE = '<script>alert(1)</script>"><img src=http://evil/x> | a `b` [c](http://evil) \n# d & é'


class Reader(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_json_there_and_back():
    made = card()
    body = encode_card(made)
    assert body.endswith(b"}\n") and body.count(b"\n") == 1
    assert decode_card(body) == made
    assert encode_card(decode_card(body)) == body
    hostile = card(model=HOSTILE + "\ud800")
    assert decode_card(encode_card(hostile)) == hostile
    for one in made.outcomes:
        assert decode_outcome(encode_outcome(one)) == one


def branches(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all objects in a JSON value."""
    if isinstance(value, list):
        return [one for at, item in enumerate(value) for one in branches(item, (*place, at))]
    if isinstance(value, dict):
        inner = [one for name in value for one in branches(value[name], (*place, name))]
        return [place, *inner]
    return []


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        value = value[step]
    return value


def test_strict_reading_refuses_unknown_and_missing_fields():
    body = json.loads(encode_card(card()))
    free = ("notes", "corpora", "software")  # names are free here
    places = [one for one in branches(body) if not set(one) & set(free)]
    assert len(places) > 30
    for place in places:
        unknown = json.loads(json.dumps(body))
        at(unknown, place)["unheard_of"] = 1
        with pytest.raises(DecodeError, match="unheard_of"):
            decode_card(json.dumps(unknown).encode())
        for name in at(body, place):
            missing = json.loads(json.dumps(body))
            del at(missing, place)[name]
            with pytest.raises(DecodeError, match=name):
                decode_card(json.dumps(missing).encode())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("version",), 2),
        (("format",), "something"),
        (("levels", 0), "root"),
        (("outcomes", 0, "level"), "everybody"),
        (("outcomes", 0, "score", "tokens", "share"), 1.5),
        (("outcomes", 0, "score", "tokens", "share"), True),
        (("outcomes", 0, "score", "tokens", "n"), -1),
        (("outcomes", 0, "score"), None),
        (("outcomes", 0, "failed"), "and a score"),
        (("outcomes", 0, "attack"), "stranger"),
        (("outcomes", 0, "elapsed_s"), "1.0"),
        (("outcomes", 0, "notes", "rounds"), []),
        (("untried", 0, "reason"), ""),
        (("attacks", 1, "name"), "frequency"),
        (("basis", "commonest"), float("nan")),
    ],
)
def test_strict_reading_refuses_wrong_values(place: tuple[Any, ...], value: Any):
    body = json.loads(encode_card(card()))
    at(body, place[:-1])[place[-1]] = value
    with pytest.raises(DecodeError):
        decode_card(json.dumps(body).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null", b'{"version":1}'])
def test_what_is_no_card_is_refused(body: bytes):
    with pytest.raises(DecodeError):
        decode_card(body)


def test_every_form_has_every_attack_and_its_numbers():
    made = card()
    page = Reader(card_html(made)).text.replace("\xa0", " ")
    text = card_markdown(made).replace("\\", "")
    for form in (page, text):
        for one in made.attacks:
            assert form.count(one.title) >= 2 and one.stops in form and one.source in form
        assert "there is one copy only" in form and "failed: LinAlgError: singular" in form
        assert "12 %" in form and "100 %" in form and "3.0 %" in form and "70 %" in form
        assert "99.8 % on invertible" in form and "failed on permutation" in form
        assert "descent shows (3.25 of the threshold)" in form
        assert "200 texts, 25,000 tokens" in form and "same 25,000" in form
        assert verdict(made).headline in form and verdict(made).line in form
        for level in made.levels:
            assert level.holds in form


def test_markdown_tables_keep_their_shape():
    for made in (card(), card(model=HOSTILE, mode=HOSTILE, attacks=_hostile_facts())):
        lines = card_markdown(made).splitlines()
        assert sum(line.startswith("#") for line in lines) == 6
        tables = [line for line in lines if line.startswith("|")]
        sizes = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
        assert len(tables) == 2 + 4 + 2 + 6 and sizes == {7, 12}


def _hostile_facts() -> tuple[Any, ...]:
    return tuple(
        replace(one, title=HOSTILE, stops=HOSTILE, source=HOSTILE, recovers=HOSTILE, knows=HOSTILE)
        for one in card().attacks
    )


def test_hostile_names_stay_text():
    made = card(
        outcome("eigen", Level.BASE, None, failed=HOSTILE),
        model=HOSTILE,
        mode=HOSTILE,
    )
    made = replace(made, attacks=tuple(replace(one, title=HOSTILE) for one in made.attacks))
    read = Reader(card_html(made))
    assert not {"script", "img", "a", "link", "iframe", "object", "form"} & set(read.tags)
    assert "alert(1)" in read.text and "<img src=http://evil/x>" in read.text
    plain = card_markdown(made)
    for live in ("<script", "<img", "[c](http", "`b`"):
        assert not re.search(r"(?<!\\)" + re.escape(live), plain)


def test_the_page_is_whole_and_asks_for_nothing():
    page = card_html(card())
    read = Reader(page)
    assert not read.open
    assert not {"script", "link", "img", "iframe"} & set(read.tags)
    assert not {"src", "href", "onclick", "onload", "style", "srcset"} & set(read.attributes)
    assert "url(" not in page and "@import" not in page and "http://" not in page
    assert any("default-src 'none'" in one for one in read.attributes["content"])
    assert "width=device-width, initial-scale=1" in read.attributes["content"]
    assert "prefers-color-scheme: dark" in page


def test_files_appear_together(tmp_path: Path):
    made = card(model="half \ud800")
    files = write_card(made, tmp_path)
    assert decode_card(files.json.read_bytes()) == made
    assert files.markdown.read_text().startswith("# Security card: half ?")
    assert "<h1>half ?</h1>" in files.page.read_text()


def judged(**shares: float | None) -> tuple[str, str, str]:
    """The verdict on a card on which each level's own attack reads so much."""
    made = [
        outcome(level.name.lower(), level, shares[level.name])
        for level in Level
        if level.name in shares
    ]
    levels = tuple(level for level in Level if level.name in shares)
    found = verdict(card(*made, levels=levels))
    return found.tone, found.headline, found.line


def test_nobody_is_stopped():
    tone, headline, line = judged(WIRE=0.12, HOST=0.03, BASE=1.0, PAIRS=0.9)
    assert (tone, headline) == ("open", "No attacker with the public base is stopped.")
    assert line == (
        "A host with the public base reads 100 % of the tokens (base attack, 1.2 s); "
        # what a host without it can do best is to look at the wire
        "a host without the base 12 % (wire attack, 1.2 s)."
    )


def test_each_attacker_that_does_better_is_named():
    _, _, line = judged(WIRE=0.12, HOST=0.2, BASE=0.4, PAIRS=0.7, TWO_HOSTS=0.6)
    assert line == (
        "A host with the public base reads 40 % of the tokens (base attack, 1.2 s); "
        "a host with the base and 64 known pairs 70 % (pairs attack, 1.2 s); "
        "two colluding hosts with the base 60 % (two_hosts attack, 1.2 s); "
        "a host without the base 20 % (host attack, 1.2 s); "
        "who watches ids 12 % (wire attack, 1.2 s)."
    )


@pytest.mark.parametrize(
    ("shares", "tone", "headline"),
    [
        ({"BASE": 0.51}, "open", "No attacker with the public base is stopped."),
        ({"BASE": 0.04, "PAIRS": 0.9}, "open", "Not every attacker"),
        ({"BASE": 0.3, "PAIRS": 0.4}, "partial", "read part of the text"),
        ({"BASE": 0.04, "PAIRS": 0.05}, "held", "no more than guessing does"),
        ({"WIRE": 0.9, "HOST": 0.1, "BASE": None}, "open", "not even one who sees nothing but ids"),
        ({"WIRE": 0.2, "HOST": 0.9, "BASE": None}, "open", "No attacker with the public base"),
        ({"FINE_TUNE": 0.95}, "open", "No attacker with the public base is stopped."),
        ({"BASE": None}, "unknown", "No attack with the public base gave a result"),
    ],
)
def test_verdicts(shares: dict[str, float | None], tone: str, headline: str):
    found = judged(**shares)
    assert found[0] == tone and headline in found[1]


def test_a_share_of_nothing_is_no_result():
    empty = outcome("base", Level.BASE, 0.0)
    empty = replace(empty, score=replace(empty.score, tokens=rate(0.0, 0)))
    made: Card = card(empty, levels=(Level.BASE,))
    assert made.strongest(Level.BASE) is None and verdict(made).tone == "unknown"


def test_numbers_for_people():
    shares = (0.0, 0.0004, 0.03, 0.126, 0.5, 0.994, 0.99999, 1.0)
    said = ["0 %", "< 0.1 %", "3.0 %", "13 %", "50 %", "99.4 %", "99.9 %", "100 %"]
    assert [percent(one) for one in shares] == said
    assert [duration(one) for one in (0.0, 1.25, 12.4, 1234.0)] == [
        "< 0.1 s",
        "1.2 s",
        "12 s",
        "1,234 s",
    ]
    assert [megabytes(one) for one in (0, 2_400_000, 1_234_000_000)] == [
        "< 1 MB",
        "2 MB",
        "1,234 MB",
    ]
