"""Policies from TOML: strict where nothing is said, errors that name what is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from veilrun.attest import policy_file
from veilrun.attest.claims import Kind
from veilrun.attest.files import load_policy
from veilrun.attest.machine_rules import BoundTogether, BoundToTls, BoundToWeights, Required
from veilrun.attest.policy_file import parse_policy
from veilrun.attest.rules import (
    STRICT_TCB,
    AcceptedTcb,
    AttestationKeys,
    Freshness,
    Measurements,
    MinimumVersion,
    NoDebug,
)
from veilrun.errors import UsageError

STRICT = (AcceptedTcb(), NoDebug(), Freshness(), AttestationKeys(), BoundTogether())


def test_an_empty_policy_is_strict():
    assert parse_policy("").rules == STRICT
    everything = "\n".join(f"[{name}]" for name in policy_file._SECTIONS)
    assert parse_policy(everything).rules == STRICT


def test_the_documented_policy():
    text = "\n".join(line[4:] for line in (policy_file.__doc__ or "").split("\n\n")[1].split("\n"))
    rules = parse_policy(text.replace("91eb...", "91eb").replace("7348...", "73").replace(
        "ab12...", "AB" * 32
    )).rules  # fmt: skip
    assert rules == (
        Required({Kind.INTEL_TDX: 1, Kind.NVIDIA_GPU: 8}),
        AcceptedTcb(STRICT_TCB),
        NoDebug(),
        Freshness(True, 300),
        Measurements(Kind.INTEL_TDX, {"mrtd": frozenset({"91eb", "73"})}),
        MinimumVersion(Kind.NVIDIA_GPU, "driver", "570.86.10"),
        MinimumVersion(Kind.NVIDIA_GPU, "vbios", "96.00.A5.00.01"),
        AttestationKeys(frozenset({"ab" * 32})),
        BoundToTls(),
        BoundToWeights(),
        BoundTogether(),
    )


def test_less_than_strict_has_to_be_said():
    rules = parse_policy(
        "[debug]\nallowed=true\n[freshness]\nnonce=false\n[bindings]\ngpu=false\n"
        '[tcb]\nintel-tdx="OutOfDate"'
    ).rules
    tcb = AcceptedTcb({**STRICT_TCB, Kind.INTEL_TDX: frozenset({"OutOfDate"})})
    assert rules == (tcb, Freshness(needs_nonce=False), AttestationKeys())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tbc]", ("tbc", "known: required, tcb")),
        ("tcb = 1", ("tcb must be a table",)),
        ("[debug]\nallow = true", ("allow", "known: allowed")),
        ("[debug]\nallowed = 1", ("debug.allowed", "true or false")),
        ("[freshness]\nmax_age = 3", ("max_age", "max_age_s")),
        ("[freshness]\nmax_age_s = 0", ("max_age_s", "positive")),
        ("[freshness]\nmax_age_s = nan", ("max_age_s",)),
        ("[freshness]\nmax_age_s = inf", ("max_age_s",)),
        ("[freshness]\nmax_age_s = true", ("max_age_s",)),
        ("[required]\nintel-tdx = 0", ("required.intel-tdx",)),
        ("[required]\nintel-tdx = true", ("required.intel-tdx",)),
        ("[required]\ntdx = 1", ("tdx", "intel-tdx")),
        ("[tcb]\nintel-tdx = []", ("tcb.intel-tdx", "nothing")),
        ("[tcb]\nintel-tdx = 3", ("tcb.intel-tdx",)),
        ("[measurements]\nmrtd = 'aa'", ("mrtd",)),
        ("[measurements.intel-tdx]", ("names no measurement",)),
        ("[measurements.intel-tdx]\nmrtd = []", ("accepts nothing",)),
        ("[measurements.intel-tdx]\nmrtd = 'abc'", ("must be hex",)),
        ("[versions.nvidia-gpu]\ndriver = 570.86", ("versions.nvidia-gpu.driver",)),
        ("[versions.nvidia-gpu]\ndriver = '5a.1'", ("versions.nvidia-gpu.driver",)),
        ("[bindings]\ncpu = true", ("cpu", "tls")),
        ("[tpm]\nattestation_keys = ['ab']", ("SHA-256",)),
        ("[tpm", ("TOML",)),
    ],
)
def test_what_is_no_policy(text: str, words: tuple[str, ...]):
    with pytest.raises(UsageError) as refusal:
        parse_policy(text)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_a_file_that_is_no_policy_is_named(tmp_path: Path):
    path = tmp_path / "mine.toml"
    for content in (b"\xff", b"[tbc]"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"mine\.toml"):
            load_policy(path)
    with pytest.raises(UsageError, match="cannot read"):
        load_policy(tmp_path / "none.toml")
    path.write_text("[debug]\nallowed = false")
    assert load_policy(path).rules == STRICT
