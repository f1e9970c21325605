"""The security card as JSON, and back.

One form: keys sorted, no spaces, ASCII, one line; numbers as Python writes them, never NaN.

Invariant: `decode_card` and `decode_outcome` return a value or raise `DecodeError`, nothing
else; unknown and missing fields are errors. What is decoded and encoded again is the same card.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from typing import Any, Final, TypeVar

from veilrun.attacks.card import Basis, Card, Control, Facts, Outcome, Untried
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Rate, Score
from veilrun.errors import DecodeError
from veilrun.wire import fields
from veilrun.wire.fields import Fields, Reader

T = TypeVar("T")

FORMAT: Final = "veilrun-security-card"
VERSION: Final = 1

_count = fields.within(0, fields.INT64_MAX)
_share = fields.between(0.0, 1.0)
_length_s = fields.between(0.0, 1e9)
_figure = fields.optional(fields.between(-1e300, 1e300))
_FACTS: Final = tuple(one.name for one in dataclasses.fields(Facts))
_reason = fields.optional(fields.short_text)


def encode_card(card: Card) -> bytes:
    """The card as one line of JSON."""
    return _encode({"format": FORMAT, "version": VERSION, **asdict(card)}) + b"\n"


def encode_outcome(outcome: Outcome) -> bytes:
    """One outcome alone, as `decode_outcome` reads it."""
    return _encode(asdict(outcome))


def decode_card(body: bytes) -> Card:
    """Read a card."""
    top = Fields(fields.json_object(body), "")
    top.take("format", fields.one_of(FORMAT))
    top.take("version", fields.within(VERSION, VERSION))
    card = Card(
        model=top.take("model", fields.short_text),
        mode=top.take("mode", fields.short_text),
        levels=tuple(top.take("levels", fields.list_of(_level))),
        attacks=tuple(top.take("attacks", fields.list_of(_facts))),
        outcomes=tuple(top.take("outcomes", fields.list_of(_outcome))),
        untried=tuple(top.take("untried", fields.list_of(_untried))),
        basis=top.take("basis", _basis),
    )
    top.finish()
    known = {one.name for one in card.attacks}
    if len(known) != len(card.attacks):
        raise DecodeError("an attack is described twice", field="attacks")
    named = {one.attack for one in card.outcomes} | {one.attack for one in card.untried}
    strangers = sorted(named - known)
    if strangers:
        raise DecodeError(f"attacks without a description: {', '.join(strangers)}", field="attacks")
    return card


def decode_outcome(body: bytes) -> Outcome:
    """Read one outcome."""
    return _outcome(fields.json_object(body), "outcome")


def _encode(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _outcome(value: Any, name: str) -> Outcome:
    body = Fields(fields.mapping(value, name), name)
    outcome = Outcome(
        attack=body.take("attack", fields.short_text),
        level=body.take("level", _level),
        score=body.take("score", fields.optional(_score)),
        failed=body.take("failed", _reason),
        notes=body.take("notes", _mapping_of(_figure)),
        elapsed_s=body.take("elapsed_s", _length_s),
        cpu_s=body.take("cpu_s", _length_s),
        extra_bytes=body.take("extra_bytes", _count),
        control=body.take("control", fields.optional(_control)),
    )
    body.finish()
    _check_one_of(outcome, name)
    return outcome


def _control(value: Any, name: str) -> Control:
    body = Fields(fields.mapping(value, name), name)
    control = Control(
        rival=body.take("rival", fields.short_text),
        score=body.take("score", fields.optional(_score)),
        failed=body.take("failed", _reason),
    )
    body.finish()
    _check_one_of(control, name)
    return control


def _check_one_of(tried: Outcome | Control, name: str) -> None:
    if (tried.score is None) == (tried.failed is None):
        raise DecodeError(f"{name} must have either a score or a reason", field=name)


def _score(value: Any, name: str) -> Score:
    body = Fields(fields.mapping(value, name), name)
    rate = fields.optional(_rate)
    share = fields.optional(_share)
    score = Score(
        tokens=body.take("tokens", rate),
        top_10=body.take("top_10", rate),
        top_100=body.take("top_100", rate),
        vocabulary=body.take("vocabulary", rate),
        bleu=body.take("bleu", share),
        names=body.take("names", share),
        kinship=body.take("kinship", _figure),
    )
    body.finish()
    return score


def _rate(value: Any, name: str) -> Rate:
    body = Fields(fields.mapping(value, name), name)
    rate = Rate(
        share=body.take("share", _share),
        low=body.take("low", _share),
        high=body.take("high", _share),
        n=body.take("n", _count),
    )
    body.finish()
    return rate


def _facts(value: Any, name: str) -> Facts:
    body = Fields(fields.mapping(value, name), name)
    facts = Facts(**{part: body.take(part, fields.short_text) for part in _FACTS})
    body.finish()
    return facts


def _untried(value: Any, name: str) -> Untried:
    body = Fields(fields.mapping(value, name), name)
    untried = Untried(
        attack=body.take("attack", fields.short_text),
        reason=body.take("reason", fields.short_text),
    )
    body.finish()
    return untried


def _basis(value: Any, name: str) -> Basis:
    body = Fields(fields.mapping(value, name), name)
    basis = Basis(
        vocab_size=body.take("vocab_size", _count),
        hidden=body.take("hidden", _count),
        n_layers=body.take("n_layers", _count),
        n_texts=body.take("n_texts", _count),
        n_tokens=body.take("n_tokens", _count),
        commonest=body.take("commonest", _share),
        n_pairs=body.take("n_pairs", _count),
        corpora=body.take("corpora", _mapping_of(_count)),
        software=body.take("software", _mapping_of(fields.short_text)),
    )
    body.finish()
    return basis


def _level(value: Any, name: str) -> Level:
    return Level(fields.one_of(*Level)(value, name))


def _mapping_of(reader: Reader[T]) -> Reader[dict[str, T]]:
    def read(value: Any, name: str) -> dict[str, T]:
        body = fields.mapping(value, name)
        return {key: reader(one, f"{name}.{key[:64]}") for key, one in body.items()}

    return read
