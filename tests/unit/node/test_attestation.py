"""The path to a node's evidence: whom it answers, and how it fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from integration.proxied import serving
from veilrun.attest.bundle import decode_bundle
from veilrun.attest.claims import Kind
from veilrun.attest.live.machine import Attested, AttesterError, Made
from veilrun.node.attestation import _MAX_ASKING, AttestationPath
from veilrun.node.front import Front, ServerLimits
from veilrun.wire.attestation import ATTESTATION_PATH

NONCE = "ab" * 32
QUOTE = bytes.fromhex(
    "ff544347801800000000" + "00" * 16 + "01" + "00" * 8 + "00000001" + "000b03010000" + "0000"
)


class Device:
    def __init__(self, make: Callable[[], None] = lambda: None) -> None:
        self.make = make
        self.asked: list[bytes] = []

    def evidence(self, report_data: bytes) -> Made:
        self.asked.append(report_data)
        self.make()
        return Made(Kind.TPM, QUOTE)


@asynccontextmanager
async def node(device: Device, api_key: str | None = None) -> AsyncIterator[str]:
    app = Front(ServerLimits(), api_key).application()
    AttestationPath(Attested(device, None, b"t" * 32, b"w" * 32)).add_to(app)
    async with serving(app) as port:
        yield f"http://127.0.0.1:{port}{ATTESTATION_PATH}"


async def test_evidence_for_a_nonce():
    device = Device()
    async with node(device) as url, aiohttp.ClientSession() as session:
        answer = await session.get(url, params={"nonce": NONCE})
        bundle = decode_bundle(await answer.read())
    assert answer.status == 200 and answer.content_type == "application/json"
    assert bundle.binding is not None
    assert bundle.binding.nonce.hex() == NONCE
    assert bundle.binding.tls_key_sha256 == b"t" * 32
    assert bundle.binding.weights_root == b"w" * 32
    assert device.asked == [bundle.binding.report_data()]


@pytest.mark.parametrize("nonce", ["", "ab" * 31, "ab" * 33, "AB" * 32, "zz" * 32, "é" * 64])
async def test_other_nonces_are_refused(nonce):
    device = Device()
    async with node(device) as url, aiohttp.ClientSession() as session:
        answer = await session.get(url, params={"nonce": nonce})
        error = (await answer.json())["error"]
    assert (answer.status, error["param"], device.asked) == (400, "nonce", [])


async def test_only_get_and_only_with_the_key():
    device = Device()
    async with node(device, "secret") as url, aiohttp.ClientSession() as session:
        params = {"nonce": NONCE}
        assert (await session.get(url, params=params)).status == 401
        assert (await session.post(url, params=params)).status == 401
        key = {"Authorization": "Bearer secret"}
        assert (await session.post(url, params=params, headers=key)).status == 404
        assert device.asked == []
        assert (await session.get(url, params=params, headers=key)).status == 200


async def test_a_device_that_fails_is_no_traceback():
    def fail() -> None:
        raise AttesterError("tpm2_quote at /dev/tpmrm0: a detail for the operator")

    async with node(Device(fail)) as url, aiohttp.ClientSession() as session:
        answer = await session.get(url, params={"nonce": NONCE})
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (503, "attestation_failed")
    assert "tpm2_quote" not in error["message"]


async def test_one_at_a_time_and_few_may_wait():
    go_on, lock, overlaps = threading.Event(), threading.Lock(), []

    def slow() -> None:
        overlaps.append(not lock.acquire(blocking=False))
        go_on.wait(10)
        lock.release()

    device = Device(slow)
    async with node(device) as url, aiohttp.ClientSession() as session:
        asking = [
            asyncio.create_task(session.get(url, params={"nonce": NONCE}))
            for _ in range(_MAX_ASKING)
        ]
        async with asyncio.timeout(5):
            while not device.asked:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
        refused = await session.get(url, params={"nonce": NONCE})
        assert refused.status == 429 and refused.headers["Retry-After"] == "1"
        asking[0].cancel()  # it leaves, its device goes on
        await asyncio.sleep(0.1)
        assert len(device.asked) == 1
        go_on.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [one.status for one in answers[1:]] == [200] * (_MAX_ASKING - 1)
    assert not any(overlaps)
