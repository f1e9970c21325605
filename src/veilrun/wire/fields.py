"""Readers for JSON that another machine or program sent: a checked value, or `DecodeError`.

A reader is a function `(value, name) -> value`. `Fields` takes an object apart field by field
and names the ones nobody asked for, so that a misspelt field is an error and not a silent
change of the answer.

Invariant: whatever the bytes, the outcome is a value or a `DecodeError` that names the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, overload

from veilrun.errors import DecodeError

T = TypeVar("T")
_HEX: Final = re.compile(r"[0-9a-f]+")
Reader = Callable[[Any, str], T]

INT64_MAX = 2**63 - 1


class Fields:
    """The fields of one JSON object, taken one by one; `finish` names those nobody took."""

    def __init__(self, body: Mapping[str, Any], name: str) -> None:
        self._rest = dict(body)
        self._name = name

    @overload
    def take(self, name: str, reader: Reader[T]) -> T: ...
    @overload
    def take(self, name: str, reader: Reader[T], default: T) -> T: ...
    def take(self, name: str, reader: Reader[T], default: Any = ...) -> T:
        """The field's checked value or `default`; without one, a missing field is an error."""
        path = self.path(name)
        if name not in self._rest:
            if default is ...:
                raise DecodeError(f"{path} is missing", field=path)
            return default  # type: ignore[no-any-return]
        return reader(self._rest.pop(name), path)

    def path(self, name: str) -> str:
        """How error texts call the field."""
        return f"{self._name}.{name}" if self._name else name

    def finish(self) -> None:
        """Refuse the fields nobody took, by name."""
        if self._rest:
            unknown = sorted(self._rest)
            names = ", ".join(self.path(name[:64]) for name in unknown[:8])
            raise DecodeError(f"unknown field: {names}", field=self.path(unknown[0][:64]))


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`."""
    try:
        return mapping(json.loads(body, object_pairs_hook=_unique), "body")
    except (ValueError, RecursionError) as error:
        raise DecodeError("body is not JSON") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A field given twice means something else to the next reader, so it is refused."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field is given twice")
    return result


def mapping(value: Any, name: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise DecodeError(f"{name} must be an object", field=name)
    return value


def list_of(reader: Reader[T]) -> Reader[list[T]]:
    """A JSON list whose items `reader` accepts."""

    def read(value: Any, name: str) -> list[T]:
        if not isinstance(value, list):
            raise DecodeError(f"{name} must be a list", field=name)
        return [reader(one, f"{name}[{index}]") for index, one in enumerate(value)]

    return read


def at_most(limit: int, reader: Reader[T]) -> Reader[T]:
    """A list or an object of at most `limit` entries that `reader` accepts."""

    def read(value: Any, name: str) -> T:
        if isinstance(value, list | dict) and len(value) > limit:
            raise DecodeError(f"{name} has {len(value)} entries, the limit is {limit}", field=name)
        return reader(value, name)

    return read


def boolean(value: Any, name: str) -> bool:
    """true or false; never a number or a word that looks like one."""
    if not isinstance(value, bool):
        raise DecodeError(f"{name} must be true or false", field=name)
    return value


def short_text(value: Any, name: str) -> str:
    """Text of 1 to 1024 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 1024:
        raise DecodeError(f"{name} must be text of 1 to 1024 characters", field=name)
    return value


def one_of(*words: str) -> Reader[str]:
    """One of the given words."""

    def read(value: Any, name: str) -> str:
        if value not in words:
            raise DecodeError(f"{name} must be one of {', '.join(words)}", field=name)
        return str(value)

    return read


def hex_digits(n_digits: int) -> Reader[str]:
    """Exactly `n_digits` lower-case hex digits."""

    def read(value: Any, name: str) -> str:
        text = short_text(value, name)
        if len(text) != n_digits or not _HEX.fullmatch(text):
            raise DecodeError(f"{name} must be {n_digits} lower-case hex digits", field=name)
        return text

    return read


def natural_numbers(value: Any, name: str) -> tuple[int, ...]:
    """A list of whole numbers from 0 to 2**63 - 1; one pass, because prompts are long."""
    if not isinstance(value, list):
        raise DecodeError(f"{name} must be a list", field=name)
    if not all(type(one) is int and 0 <= one <= INT64_MAX for one in value):
        raise DecodeError(f"{name} must hold non-negative whole numbers only", field=name)
    return tuple(value)


def id_bias(value: Any, name: str) -> dict[int, float]:
    """`{"id": bias}` as JSON writes it: ids are decimal text."""
    number = between(-1e6, 1e6)
    bias = {}
    for key, one in mapping(value, name).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 18 and key == str(int(key))):
            raise DecodeError(f"{name} must map token ids to numbers", field=name)
        bias[int(key)] = number(one, name)
    return bias


def within(low: int, high: int) -> Reader[int]:
    """A whole number from `low` to `high`."""

    def read(value: Any, name: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise DecodeError(f"{name} must be a whole number from {low} to {high}", field=name)
        return value

    return read


def between(low: float, high: float, *, open_low: bool = False) -> Reader[float]:
    """A number from `low` to `high`; NaN never passes."""

    def read(value: Any, name: str) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not (good and (low < value if open_low else low <= value) and value <= high):
            raise DecodeError(f"{name} must be a number from {low} to {high}", field=name)
        try:
            return float(value)
        except OverflowError:  # JSON has whole numbers of any size
            raise DecodeError(f"{name} is beyond all limits", field=name) from None

    return read


def optional(reader: Reader[T]) -> Reader[T | None]:
    """null, or what `reader` accepts."""
    return lambda value, name: None if value is None else reader(value, name)
