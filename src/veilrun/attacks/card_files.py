"""A card in a folder: JSON for programs, Markdown for repositories, a page for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from veilrun import atomic
from veilrun.attacks.card import Card
from veilrun.attacks.card_html import card_html
from veilrun.attacks.card_json import encode_card
from veilrun.attacks.card_markdown import card_markdown


@dataclass(frozen=True, slots=True)
class CardFiles:
    """Where a card lies."""

    json: Path
    markdown: Path
    page: Path


def write_card(card: Card, folder: Path) -> CardFiles:
    """Write all three forms; each appears whole. Raises StorageError if one cannot be."""
    paths = CardFiles(folder / "card.json", folder / "card.md", folder / "card.html")
    atomic.write_file(paths.json, encode_card(card))
    # A name may hold half a character (JSON allows that); UTF-8 cannot.
    atomic.write_file(paths.markdown, card_markdown(card).encode("utf-8", "replace"))
    atomic.write_file(paths.page, card_html(card).encode("utf-8", "replace"))
    return paths
