"""Stop strings in a text that arrives in pieces. Text in, text out; no I/O.

Invariant: however the text is cut into pieces, what `feed` and `flush` return adds up to the
text before the stop string that is complete first (of those complete at the same character,
the longest), or to the whole text when there is none. Nothing that could still turn out to
be the beginning of a stop string is returned early, and nothing else is held back.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back the longest end of the text that could begin a stop string."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show now, and whether a stop string is complete."""
        if self.stopped:
            return "", True
        if not self._stops:
            return text, False
        text = self._held + text
        cut = self._first_stop(text)
        if cut is not None:
            self._held = ""
            self.stopped = True
            return text[:cut], True
        safe = self._undecided_from(text)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """What is still held back; the text is over, so no stop string can complete any more."""
        text, self._held = self._held, ""
        return text

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string that is complete first begins; None without one."""
        first: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                match = (start + len(stop), start)
                first = match if first is None or match < first else first
        return None if first is None else first[1]

    def _undecided_from(self, text: str) -> int:
        """Where the longest end of `text` that is the beginning of a stop string starts."""
        undecided = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= start < undecided:
                if stop.startswith(text[start:]):
                    undecided = start
                    break
                start = text.find(stop[0], start + 1)
        return undecided
