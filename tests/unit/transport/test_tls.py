"""The pinned TLS identity: real handshakes over loopback, right pins and wrong ones."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from veilrun.errors import RefusedError, UsageError
from veilrun.transport import tls


@asynccontextmanager
async def echo_server(identity: tls.Identity) -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls.server_context(identity))
    async with server:
        yield server.sockets[0].getsockname()[1]


async def say(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"hello")
        return await reader.read(100)
    finally:
        writer.close()


def test_identity_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    first = tls.ensure_identity(tmp_path / "node")
    assert tls.ensure_identity(tmp_path / "node") == first
    assert stat.S_IMODE(first.private_key_path.stat().st_mode) == 0o600
    assert b"PRIVATE" not in first.certificate_pem
    assert tls.ensure_identity(tmp_path / "other").pin != first.pin


def test_pin_is_the_hash_of_the_der_certificate(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())
    assert identity.pin == "sha256:" + hashlib.sha256(der).hexdigest()
    assert tls.parse_pin(identity.pin) == hashlib.sha256(der).digest()


def test_identity_names_loopback_and_the_given_hosts(tmp_path: Path) -> None:
    from cryptography import x509

    identity = tls.ensure_identity(tmp_path, ["node.example", "10.1.2.3"])
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "node.example"]
    addresses = [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "10.1.2.3"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "md5:" + "0" * 64,
        "sha256:" + "g" * 64,
    ],
)
def test_malformed_pins_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="a pin is sha256"):
        tls.parse_pin(text)


async def test_client_that_trusts_the_certificate_gets_an_answer(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path)
    async with echo_server(identity) as port:
        assert await say(port, tls.client_context(identity.certificate_pem)) == b"hello"


async def test_client_that_trusts_another_certificate_sends_nothing(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path / "node")
    impostor = tls.ensure_identity(tmp_path / "impostor")
    async with echo_server(impostor) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await say(port, tls.client_context(identity.certificate_pem))


async def test_tls_1_2_is_refused(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with echo_server(identity) as port:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await say(port, old)
        old.maximum_version = ssl.TLSVersion.TLSv1_3  # the same client, allowed the new version
        assert await say(port, old) == b"hello"


async def test_aiohttp_fingerprint_accepts_the_pin_and_refuses_another(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path)

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server_context(identity))
    await site.start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        async with aiohttp.ClientSession() as session:
            right = aiohttp.Fingerprint(tls.parse_pin(identity.pin))
            async with session.get(url, ssl=right) as answer:
                assert await answer.text() == "hello"
        async with aiohttp.ClientSession() as session:
            wrong = aiohttp.Fingerprint(bytes(32))
            with pytest.raises(aiohttp.ServerFingerprintMismatch):
                await session.get(url, ssl=wrong)
    finally:
        await runner.cleanup()


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path)
    identity.private_key_path.chmod(0o644)
    with pytest.raises(RefusedError, match="chmod 600"):
        tls.ensure_identity(tmp_path)


def test_half_an_identity_is_never_completed_silently(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path)
    identity.private_key_path.unlink()
    with pytest.raises(UsageError, match="half an identity"):
        tls.ensure_identity(tmp_path)


def test_key_of_another_certificate_is_a_usage_error(tmp_path: Path) -> None:
    identity = tls.ensure_identity(tmp_path / "a")
    other = tls.ensure_identity(tmp_path / "b")
    identity.private_key_path.write_bytes(other.private_key_path.read_bytes())
    with pytest.raises(UsageError, match="does not fit"):
        tls.ensure_identity(tmp_path / "a")


def test_context_from_garbage_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="PEM"):
        tls.client_context(b"not a certificate")


@pytest.mark.parametrize("trusted", [b"", b"no certificate", "é".encode()])
def test_parties_trust_certificates_and_nothing_else(tmp_path: Path, trusted: bytes) -> None:
    identity = tls.ensure_identity(tmp_path)
    for make in (
        lambda: tls.peer_client_context(identity, trusted),
        lambda: tls.peer_server_context(identity, [trusted]),
        lambda: tls.peer_server_context(identity, []),
    ):
        with pytest.raises(UsageError, match="not in PEM form"):
            make()
    for context in (
        tls.peer_client_context(identity, identity.certificate_pem),
        tls.peer_server_context(identity, [identity.certificate_pem]),
    ):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.cert_store_stats()["x509"] == 1
