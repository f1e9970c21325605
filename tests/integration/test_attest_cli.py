"""`veilrun attest` as a process, on real evidence: every kind of refusal by its own name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import attest_rig
import pytest
from attest_rig import AT, data

from veilrun.attest.bundle import encode_bundle
from veilrun.attest.claims import Kind

GOOD, REFUSED, USAGE, PEER = 0, 1, 2, 4
GPU, GPU_CHAIN = "nvidia/hopper-535-86-09-report.txt", "nvidia/hopper-535-86-09-chain.pem"
GPU_NONCE = "27a328247bf7935c993341cf587be6f05986ccce4fe7ba2c54100bd616a58f66"
VBIOS = "nvidia/rim-vbios-1010-0200-882-96005e0001.xml"
EIGHT = "nvidia/hopper-evidence-590-12-eight-gpus.json"
EIGHT_NONCE = "4760e30534a0621357d458b1a7936551b5dc4cd1e69718adf7ed9fb0252a537e"
LENIENT = '[tcb]\nnvidia-gpu = ["success", "not-run"]\n'
VALID = "2024-06-01T00:00:00Z"
OTHER = "11" * 32


def veilrun(*arguments: object, program: tuple[str, ...] = ("-m", "veilrun.cli")):
    done = subprocess.run(
        [sys.executable, *program, "attest", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def lenient(tmp_path: Path) -> Path:
    (tmp_path / "lenient.toml").write_text(LENIENT)
    return tmp_path / "lenient.toml"


def gpu(policy: Path, *more: object, at: str = VALID, nonce: str = GPU_NONCE):
    known = ("--with", attest_rig.path(GPU_CHAIN), "--policy", policy)
    return veilrun(attest_rig.path(GPU), *known, "--at", at, "--nonce", nonce, *more)


def test_a_good_gpu(lenient: Path):
    done = gpu(lenient, "--with", attest_rig.path(VBIOS))
    assert done.returncode == GOOD, done.stdout + done.stderr
    for word in ("nvidia-gpu", "report signature", "vbios reference measurements", "accepted"):
        assert word in done.stdout


def test_eight_gpus_as_json(tmp_path: Path):
    policy = tmp_path / "mine.toml"
    policy.write_text(LENIENT + "[required]\nnvidia-gpu = 8\n[versions.nvidia-gpu]\ndriver='590'")
    evidence = attest_rig.path(EIGHT)
    done = veilrun(
        evidence, "--policy", policy, "--at", VALID, "--nonce", EIGHT_NONCE, "--json"
    )  # fmt: skip
    assert done.returncode == GOOD, done.stderr
    body = json.loads(done.stdout)
    assert body["ear_status"] == "warning" and len(body["submods"]) == 9


@pytest.mark.parametrize(
    ("policy", "arguments", "reason"),
    [
        ("", {}, "nvidia-gpu, tcb: not-run; the policy accepts success (tcb-level)"),
        (LENIENT, {"nonce": OTHER}, "nvidia-gpu, nonce: "),
        (LENIENT, {"at": "2015-01-01T00:00:00Z"}, "(not-yet-valid)"),
        (LENIENT, {"more": ["--tls-key", OTHER]}, "(binding-tls)"),
        (LENIENT, {"more": ["--weights", OTHER]}, "(binding-weights)"),
        (LENIENT + "[required]\nnvidia-gpu=2", {}, "machine, required nvidia-gpu: 1 of 2"),
        (LENIENT + "[required]\nintel-tdx=1", {}, "(missing)"),
        (LENIENT + "[measurements.nvidia-gpu]\nblock02='aa'", {}, "measurement block02: "),
        (LENIENT + "[versions.nvidia-gpu]\nvbios='96.00.5F.00.00'", {}, "(version)"),
        (LENIENT + "[freshness]\nmax_age_s=5", {"nonce": OTHER}, "(nonce)"),
    ],
)
def test_refused_by_name(tmp_path: Path, policy: str, arguments: dict, reason: str):
    (tmp_path / "mine.toml").write_text(policy)
    more = arguments.pop("more", [])
    done = gpu(tmp_path / "mine.toml", *more, **arguments)
    assert done.returncode == REFUSED, done.stderr
    assert "refused (contraindicated)" in done.stdout and reason in done.stdout


def test_an_expired_manifest_and_one_of_other_values(lenient: Path):
    done = gpu(lenient, "--with", attest_rig.path(VBIOS), at="2025-12-01T00:00:00Z")
    assert done.returncode == REFUSED and "(expired)" in done.stdout
    test_values = attest_rig.path(VBIOS.replace(".xml", "-test.xml"))
    done = gpu(lenient, "--with", test_values)
    assert done.returncode == REFUSED and "(measurement)" in done.stdout


def test_a_revoked_certificate(tmp_path: Path, lenient: Path):
    made, folder = attest_rig.make_gpu(AT), tmp_path / "known"
    (tmp_path / "report").write_bytes(made.report)
    folder.mkdir()
    (folder / "chain").write_bytes(made.chain)
    program = (
        "from veilrun.attest.nvidia import authenticate\n"
        "from veilrun.attest.pins import Pin\n"
        f"authenticate.NVIDIA_DEVICE = (Pin('test', '{made.root_sha256}', 'test'),)\n"
        "from veilrun.cli import main\n"
        "main()"
    )
    arguments = (tmp_path / "report", "--with", folder, "--policy", lenient)
    arguments = (*arguments, "--at", AT.isoformat(), "--nonce", GPU_NONCE)
    done = veilrun(*arguments, program=("-c", program))
    assert done.returncode == GOOD, done.stdout + done.stderr
    (folder / "revocations").write_bytes(made.revocations)
    done = veilrun(*arguments, program=("-c", program))
    assert done.returncode == REFUSED and "GSP BROM" in done.stdout and "(revoked)" in done.stdout
    done = veilrun(*arguments)  # and without our root
    assert done.returncode == REFUSED and "(chain)" in done.stdout


def test_a_bundle(tmp_path: Path, lenient: Path):
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(encode_bundle([(Kind.NVIDIA_GPU, data(GPU))], [data(GPU_CHAIN)]))
    done = veilrun(bundle, "--policy", lenient, "--at", VALID, "--nonce", GPU_NONCE)
    assert done.returncode == GOOD, done.stdout
    bundle.write_bytes(bundle.read_bytes().replace(b"nvidia-gpu", b"nvidia-switch"))
    done = veilrun(bundle, "--policy", lenient)
    assert done.returncode == PEER and "bundle.json" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--at", "yesterday"], USAGE, "--at yesterday"),
        (["--at", "2024-06-01T00:00:00"], USAGE, "time zone"),
        (["--nonce", "xyz"], USAGE, "--nonce must be hex"),
        (["--nonce", "00"], USAGE, "8 to 64 bytes"),
        (["--with", "/nowhere"], USAGE, "cannot read /nowhere"),
        (["--with", sys.executable], PEER, "neither evidence nor"),
    ],
)
def test_wrong_calls(lenient: Path, arguments: list[str], code: int, word: str):
    done = veilrun(attest_rig.path(GPU), "--policy", lenient, *arguments)
    assert done.returncode == code and word in " ".join(done.stderr.split()), done.stderr


def test_a_policy_that_is_none(tmp_path: Path):
    (tmp_path / "mine.toml").write_text("[debug]\nallow = true")
    done = veilrun(attest_rig.path(GPU), "--policy", tmp_path / "mine.toml")
    assert done.returncode == USAGE and "known: allowed" in done.stderr


def test_help_needs_no_library():
    program = "import sys, veilrun.cli; sys.exit('veilrun.attest' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
