"""Reports of this machine's NVIDIA GPUs, by NVML (`nvidia-ml-py`), in the vendor's JSON list.

Needs GPUs in confidential computing mode; others give no report.

Not covered: NVSwitches, which have an interface of their own.
"""

from __future__ import annotations

import base64
import importlib
import json
from typing import Any, Final

from veilrun.attest.claims import Kind
from veilrun.attest.live.machine import AttesterError, Made
from veilrun.errors import UsageError

_NONCE_BYTES: Final = 32
_ARCHITECTURES: Final = {9: "HOPPER", 10: "BLACKWELL"}


class NvidiaAttester:
    """All GPUs that NVML sees. nvml: the module `pynvml`, or one like it."""

    def __init__(self, nvml: Any = None) -> None:
        """Raises UsageError where the library is missing."""
        try:
            self._nvml = nvml or importlib.import_module("pynvml")
        except ModuleNotFoundError as error:
            raise UsageError("evidence of GPUs needs pip install nvidia-ml-py") from error

    def evidence(self, nonce: bytes) -> Made:
        """See `GpuAttester`."""
        if len(nonce) != _NONCE_BYTES:
            raise ValueError(f"a GPU's nonce has {_NONCE_BYTES} bytes, not {len(nonce)}")
        try:
            self._nvml.nvmlInit()
            try:
                n_devices = self._nvml.nvmlDeviceGetCount()
                devices = [self._device(index, nonce) for index in range(n_devices)]
            finally:
                self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            raise AttesterError(f"NVML gives no report: {error}") from error
        if not devices:
            raise AttesterError("NVML sees no GPU")
        return Made(Kind.NVIDIA_GPU, json.dumps(devices).encode())

    def _device(self, index: int, nonce: bytes) -> dict[str, str]:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
        chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
        return {
            "arch": _ARCHITECTURES.get(nvml.nvmlDeviceGetArchitecture(handle), "UNKNOWN"),
            "certificate": _encoded(chain.attestationCertChain, chain.attestationCertChainSize),
            "evidence": _encoded(report.attestationReport, report.attestationReportSize),
            "nonce": nonce.hex(),
        }


def _encoded(array: Any, n_bytes: int) -> str:
    """The filled part of one of NVML's arrays."""
    return base64.b64encode(bytes(array)[:n_bytes]).decode()
