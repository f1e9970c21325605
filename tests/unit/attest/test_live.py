"""Where evidence comes from: the kernel's interface, NVML, TPM programs; and the bundle."""

from __future__ import annotations

import base64
import json
import stat
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attest_rig
import pytest
import tpm_rig

from veilrun.attest.binding import Binding, gpu_digest
from veilrun.attest.bundle import decode_bundle
from veilrun.attest.claims import Kind
from veilrun.attest.live import tpm as live_tpm
from veilrun.attest.live.machine import Attested, AttesterError, Made, evidence_of
from veilrun.attest.live.nvidia import NvidiaAttester
from veilrun.attest.live.tpm import TpmAttester
from veilrun.attest.live.tsm import TsmAttester, certificates_of
from veilrun.attest.nvidia import evidence as nvidia
from veilrun.errors import DecodeError, UsageError

REPORT_DATA = bytes(range(64))


# --- the kernel's interface -------------------------------------------------------------------


def kernel(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> list[bytes]:
    """Make `folder` behave as configfs-tsm: what is in `files` appears in every new folder, and a
    write to `inblob` counts. Gives what was written."""
    written: list[bytes] = []
    mkdir, rmdir, write_bytes = Path.mkdir, Path.rmdir, Path.write_bytes

    def make(path: Path, *arguments: Any, **named: Any) -> None:
        mkdir(path, *arguments, **named)
        if path.parent == folder:
            for name, content in ({"generation": b"0\n"} | files).items():
                write_bytes(path / name, content)

    def write(path: Path, data: bytes) -> int:
        if path.name == "inblob":
            written.append(data)
            number = int((path.parent / "generation").read_text())
            write_bytes(path.parent / "generation", b"%d\n" % (number + 1))
        return write_bytes(path, data)

    def remove(path: Path) -> None:
        if path.parent == folder:
            for one in path.iterdir():
                one.unlink()
        rmdir(path)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr(Path, "rmdir", remove)
    return written


def test_a_tdx_quote_from_the_kernel(tmp_path, monkeypatch):
    quote = attest_rig.data("sgx-tdx/tdx-v4-quote-b0c06f-uptodate.bin")
    written = kernel(tmp_path, monkeypatch, {"provider": b"tdx_guest\n", "outblob": quote})
    made = TsmAttester(Kind.INTEL_TDX, tmp_path).evidence(REPORT_DATA)
    assert made == Made(Kind.INTEL_TDX, quote)
    assert written == [REPORT_DATA]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def table(*certificates: bytes) -> bytes:
    start, body, entries = 24 * (len(certificates) + 1), b"", b""
    for number, one in enumerate(certificates):
        place = start + len(body)
        entries += bytes([number + 1]) * 16 + place.to_bytes(4, "little")
        entries += len(one).to_bytes(4, "little")
        body += one
    return entries + bytes(24) + body


def test_an_snp_report_and_its_certificates_from_the_kernel(tmp_path, monkeypatch):
    report = attest_rig.data("sev-snp/snp-milan-v2-report.bin")
    files = [
        attest_rig.data(f"sev-snp/{one}.der")
        for one in ("snp-milan-v2-vcek", "amd-milan-ask", "amd-milan-ark")
    ]
    content = {"provider": b"sev_guest\n", "outblob": report, "auxblob": table(*files)}
    kernel(tmp_path, monkeypatch, content)
    made = TsmAttester(Kind.AMD_SEV_SNP, tmp_path).evidence(REPORT_DATA)
    assert made == Made(Kind.AMD_SEV_SNP, report, tuple(files))


def test_an_snp_host_without_certificates(tmp_path, monkeypatch):
    kernel(tmp_path, monkeypatch, {"provider": b"sev_guest\n", "outblob": b"report"})
    made = TsmAttester(Kind.AMD_SEV_SNP, tmp_path).evidence(REPORT_DATA)
    assert made.endorsements == ()


@pytest.mark.parametrize(
    "files",
    [
        {"provider": b"sev_guest\n", "outblob": b"x"},
        {"provider": b"tdx_guest\n"},
        {"provider": b"tdx_guest\n", "outblob": b"x", "generation": b"?"},
        {},
    ],
    ids=["another driver", "no report", "no number", "nothing"],
)
def test_a_kernel_that_gives_none(files, tmp_path, monkeypatch):
    kernel(tmp_path, monkeypatch, files)
    with pytest.raises(AttesterError):
        TsmAttester(Kind.INTEL_TDX, tmp_path).evidence(REPORT_DATA)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_somebody_else_wrote_to(tmp_path, monkeypatch):
    kernel(tmp_path, monkeypatch, {"provider": b"tdx_guest\n", "outblob": b"x"})
    ours = Path.write_bytes

    def twice(path: Path, data: bytes) -> int:
        if path.name == "inblob":
            ours(path, b"theirs")
        return ours(path, data)

    monkeypatch.setattr(Path, "write_bytes", twice)
    with pytest.raises(AttesterError, match="another program"):
        TsmAttester(Kind.INTEL_TDX, tmp_path).evidence(REPORT_DATA)


def test_a_machine_without_the_interface(tmp_path):
    with pytest.raises(AttesterError):
        TsmAttester(Kind.INTEL_TDX, tmp_path / "absent").evidence(REPORT_DATA)


def test_tables_of_certificates():
    assert certificates_of(b"") == ()
    assert certificates_of(table(b"one", b"two")) == (b"one", b"two")
    good = table(b"one")
    bad = [
        good[:20],
        b"\1" * 24,
        b"\1" * 16 + bytes(8) + bytes(24),
        table(*[b"x"] * 17),
        good[:-1],
        b"\1" * 16,
    ]
    for one in bad:
        with pytest.raises(DecodeError):
            certificates_of(one)


# --- NVML -------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


@dataclass
class Nvml:
    """What `pynvml` has, over recorded GPUs."""

    devices: list[Any]
    fails: bool = False
    nonces: list[bytes] = field(default_factory=list)
    is_open: bool = False
    NVMLError: type[Exception] = NVMLError

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self.devices[index]

    def nvmlDeviceGetArchitecture(self, _: Any) -> int:
        return 9

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: Any, nonce: bytes) -> Any:
        if self.fails:
            raise NVMLError("Not Supported")
        self.nonces.append(nonce)
        report = base64.b64decode(handle["evidence"])
        padded = list(report.ljust(0x2000, b"\0"))
        return SimpleNamespace(attestationReport=padded, attestationReportSize=len(report))

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: Any) -> Any:
        chain = base64.b64decode(handle["certificate"])
        padded = list(chain.ljust(0x1000 * 5, b"\0"))
        return SimpleNamespace(attestationCertChain=padded, attestationCertChainSize=len(chain))


def recorded_gpus() -> list[Any]:
    name = "nvidia/hopper-evidence-590-12-eight-gpus.json"
    gpus: list[Any] = json.loads(attest_rig.data(name))
    return gpus


def test_reports_of_all_gpus():
    gpus = recorded_gpus()
    nvml, nonce = Nvml(gpus), bytes.fromhex(gpus[0]["nonce"])
    made = NvidiaAttester(nvml).evidence(nonce)
    parts = nvidia.split(made.data)
    assert len(parts) == 8 and nvml.nonces == [nonce] * 8 and not nvml.is_open
    for part, gpu in zip(parts, gpus, strict=True):
        device = nvidia.parse(part)
        assert device.report == nvidia.parse(json.dumps([gpu]).encode()).report
        assert device.nonce == nonce and device.certificates


def test_gpus_that_give_none():
    for nvml in (Nvml([]), Nvml([{}], fails=True)):
        with pytest.raises(AttesterError):
            NvidiaAttester(nvml).evidence(bytes(32))
        assert not nvml.is_open


# --- TPM programs -----------------------------------------------------------------------------


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Stand-ins for tpm2-tools."""
    for name in live_tpm._PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def test_a_tpm_that_is_not_there(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, "echo 'no such device' >&2; exit 1")
    with pytest.raises(AttesterError, match="no such device"):
        TpmAttester("device:/dev/absent").evidence(REPORT_DATA)


def test_programs_that_write_nothing(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, "exit 0")
    with pytest.raises(AttesterError, match="left no"):
        TpmAttester().key_fingerprint()


def test_programs_that_hang(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr(live_tpm, "_TIMEOUT_S", 0.2)
    with pytest.raises(AttesterError, match="timed out"):
        TpmAttester().evidence(REPORT_DATA)


def test_programs_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="tpm2-tools"):
        TpmAttester()


# --- the bundle -------------------------------------------------------------------------------


class Recorder:
    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def evidence(self, report_data: bytes) -> Made:
        self.asked.append(report_data)
        certificate = attest_rig.data("tpm/azure-vtpm-root-2023.pem")
        return Made(
            Kind.TPM, tpm_rig.quote_bytes(report_data[:32], [bytes(32)] * 24), (certificate,)
        )


def test_a_bundle_with_gpus():
    tpm, gpus = Recorder(), recorded_gpus()[:2]
    nonce = bytes.fromhex(gpus[0]["nonce"])
    node = Attested(tpm, NvidiaAttester(Nvml(gpus)), b"t" * 32, b"w" * 32)
    bundle = decode_bundle(evidence_of(node, nonce))
    assert [one.kind for one in bundle.evidence] == [Kind.TPM, Kind.NVIDIA_GPU, Kind.NVIDIA_GPU]
    digest = gpu_digest(one.source for one in bundle.evidence[1:])
    assert bundle.binding == Binding(nonce, b"t" * 32, b"w" * 32, digest)
    assert tpm.asked == [bundle.binding.report_data()]
    assert len(bundle.endorsements.certificates) == 1


def test_a_bundle_without_gpus():
    tpm = Recorder()
    bundle = decode_bundle(evidence_of(Attested(tpm, None, b"t" * 32, b"w" * 32), b"n" * 32))
    assert bundle.binding == Binding(b"n" * 32, b"t" * 32, b"w" * 32)
