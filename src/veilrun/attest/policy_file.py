"""A policy from TOML. What is not said is strict; a name that is not known is an error.

    [tcb]                          # accepted grades of a kind, in the vendor's words, or "unknown"
    intel-tdx = ["UpToDate"]       #   (no collateral at hand); the strict default for Intel
    nvidia-gpu = ["success"]       #   and for NVIDIA, where "not-run" is: no manifests at hand
    [debug]
    allowed = false
    [freshness]
    nonce = true                   # the caller must demand a nonce
    max_age_s = 300                # no limit if not said
    [required]                     # so many different devices
    intel-tdx = 1
    nvidia-gpu = 8
    [measurements.intel-tdx]       # accepted values, hex
    mrtd = ["91eb...", "7348..."]
    [versions.nvidia-gpu]          # at least
    driver = "570.86.10"
    vbios = "96.00.A5.00.01"
    [bindings]
    tls = true                     # the caller must name the connection's key; false if not said
    weights = true                 # and the weights
    gpu = true                     # GPUs belong to the CPU or TPM they are shown with
    [tpm]
    attestation_keys = ["ab12..."] # SHA-256 of accepted keys; any that is vouched for if not said

`nonce = false` does not stop a nonce that the caller demands from being checked; so for `tls` and
`weights`. Kinds are those of `claims.Kind`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final

from veilrun.attest.claims import Kind
from veilrun.attest.machine_rules import BoundTogether, BoundToTls, BoundToWeights, Required
from veilrun.attest.policy import AllOf, Rule
from veilrun.attest.rules import (
    STRICT_TCB,
    AcceptedTcb,
    AttestationKeys,
    Freshness,
    Measurements,
    MinimumVersion,
    NoDebug,
    is_version,
)
from veilrun.errors import UsageError

_HEX: Final = re.compile(r"([0-9a-f]{2})+")
_SHA256_CHARACTERS: Final = 64

Table = Mapping[str, Any]


def parse_policy(text: str) -> AllOf:
    """The policy in `text`, see above. Raises UsageError."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"the policy is not TOML: {error}") from error
    _known(tables, _SECTIONS, "section")
    rules: list[Rule] = []
    for name, section in _SECTIONS.items():
        rules.extend(section(_table(tables.get(name, {}), name)))
    return AllOf(tuple(rules))


def _tcb(table: Table) -> list[Rule]:
    accepted = dict(STRICT_TCB)
    for kind, value in _kinds(table, "tcb").items():
        accepted[kind] = frozenset(_texts(value, f"tcb.{kind}"))
    return [AcceptedTcb(accepted)]


def _debug(table: Table) -> list[Rule]:
    _known(table, ("allowed",), "debug")
    return [] if _flag(table, "allowed", "debug", default=False) else [NoDebug()]


def _freshness(table: Table) -> list[Rule]:
    _known(table, ("nonce", "max_age_s"), "freshness")
    limit = table.get("max_age_s")
    if limit is not None and (type(limit) not in (int, float) or not 0 < limit < float("inf")):
        raise UsageError("freshness.max_age_s must be a positive number of seconds")
    return [Freshness(_flag(table, "nonce", "freshness", default=True), limit)]


def _required(table: Table) -> list[Rule]:
    counts = _kinds(table, "required")
    for kind, count in counts.items():
        if type(count) is not int or count < 1:
            raise UsageError(f"required.{kind} must be a whole number from 1")
    return [Required(counts)] if counts else []


def _measurements(table: Table) -> list[Rule]:
    rules: list[Rule] = []
    for kind, values in _kinds(table, "measurements").items():
        name = f"measurements.{kind}"
        accepted = {
            key: frozenset(_hexes(value, f"{name}.{key}"))
            for key, value in _table(values, name).items()
        }
        if not accepted:
            raise UsageError(f"{name} names no measurement")
        rules.append(Measurements(kind, accepted))
    return rules


def _versions(table: Table) -> list[Rule]:
    rules: list[Rule] = []
    for kind, values in _kinds(table, "versions").items():
        for name, value in _table(values, f"versions.{kind}").items():
            if not isinstance(value, str) or not is_version(value, name):
                raise UsageError(f'versions.{kind}.{name} must be text like "570.86.10"')
            rules.append(MinimumVersion(kind, name, value))
    return rules


def _bindings(table: Table) -> list[Rule]:
    _known(table, ("tls", "weights", "gpu"), "bindings")
    chosen: list[tuple[bool, Rule]] = [
        (_flag(table, "tls", "bindings", default=False), BoundToTls()),
        (_flag(table, "weights", "bindings", default=False), BoundToWeights()),
        (_flag(table, "gpu", "bindings", default=True), BoundTogether()),
    ]
    return [rule for wanted, rule in chosen if wanted]


def _tpm(table: Table) -> list[Rule]:
    _known(table, ("attestation_keys",), "tpm")
    keys = _hexes(table.get("attestation_keys", []), "tpm.attestation_keys", may_be_empty=True)
    if any(len(key) != _SHA256_CHARACTERS for key in keys):
        raise UsageError("tpm.attestation_keys must be SHA-256 digests")
    return [AttestationKeys(frozenset(keys))]


_SECTIONS: Final[Mapping[str, Callable[[Table], list[Rule]]]] = {
    "required": _required,
    "tcb": _tcb,
    "debug": _debug,
    "freshness": _freshness,
    "measurements": _measurements,
    "versions": _versions,
    "tpm": _tpm,
    "bindings": _bindings,
}


def _known(table: Table, names: Mapping[str, Any] | tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in names:
            raise UsageError(
                f"the policy's {where} has an unknown name {name!r}; known: {', '.join(names)}"
            )


def _table(value: Any, name: str) -> Table:
    if not isinstance(value, dict):
        raise UsageError(f"{name} must be a table")
    return value


def _kinds(table: Table, where: str) -> dict[Kind, Any]:
    _known(table, tuple(Kind), where)
    return {Kind(name): value for name, value in table.items()}


def _flag(table: Table, name: str, where: str, *, default: bool) -> bool:
    value = table.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{where}.{name} must be true or false")
    return value


def _texts(value: Any, name: str, *, may_be_empty: bool = False) -> list[str]:
    """One text or a list of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise UsageError(f"{name} must be text or a list of texts")
    if not values and not may_be_empty:
        raise UsageError(f"{name} accepts nothing")
    return values


def _hexes(value: Any, name: str, *, may_be_empty: bool = False) -> list[str]:
    values = [one.lower() for one in _texts(value, name, may_be_empty=may_be_empty)]
    if not all(_HEX.fullmatch(one) for one in values):
        raise UsageError(f"{name} must be hex")
    return values
