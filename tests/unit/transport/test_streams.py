"""What a hostile or absent peer can do to a TLS connection, and whose fault that is."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from veilrun.errors import (
    DecodeError,
    PeerError,
    RefusedError,
    TransportError,
    VerificationError,
)
from veilrun.transport import streams
from veilrun.transport.connection import Bounds, Connection, Traffic
from veilrun.transport.tls import client_context, ensure_identity, server_context

HOST = "127.0.0.1"
PATIENT = Bounds(max_frame_bytes=64 * 2**20)
HASTY = Bounds(max_frame_bytes=64 * 2**20, send_timeout_s=0.3, receive_timeout_s=0.3)

# --- what a peer may send ------------------------------------------------------------------


@contextlib.asynccontextmanager
async def raw_client(
    identity, bounds: Bounds = PATIENT
) -> AsyncIterator[tuple[asyncio.StreamWriter, Connection]]:
    """A client that writes what it likes, and the connection that has to bear it."""
    async with streams.listen(
        HOST, 0, context=server_context(identity), name_of=lambda *_: "rogue", bounds=bounds
    ) as listener:
        _, writer = await asyncio.open_connection(
            HOST, listener.port, ssl=client_context(identity.certificate_pem)
        )
        try:
            async with await listener.accept(timeout_s=10) as server:
                yield writer, server
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)


def header(n_bytes: int) -> bytes:
    """The start of a frame, by the format's text."""
    return b"VRF\x01" + struct.pack("<I", n_bytes)


@pytest.mark.parametrize(
    ("sent", "error", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", DecodeError, "rogue does not send frames of version 1"),
        (b"VRF\x02" + bytes(4), DecodeError, "version 1"),
        (header(2**32 - 1), PeerError, "rogue sends a frame of 4294967295 bytes, the limit is"),
        (header(PATIENT.max_frame_bytes + 1), PeerError, "67108865 bytes, the limit is 67108864"),
        (b"VRF\x01\x00", TransportError, "closed the connection before a frame"),
        (header(100), TransportError, "closed the connection within a frame"),
        (header(100) + bytes(99), TransportError, "closed the connection within a frame"),
        (b"", TransportError, "closed the connection before a frame"),
    ],
)
async def test_what_is_no_frame_has_its_error(identity, sent, error, complaint):
    async with raw_client(identity) as (writer, server):
        writer.write(sent)
        writer.close()
        with pytest.raises(error, match=complaint) as caught:
            await server.receive()
        assert type(caught.value) is error
        with pytest.raises(TransportError, match="has ended"):
            await server.receive()
        assert server.traffic == Traffic()


async def test_a_frame_that_stalls_is_the_networks_fault(identity):
    async with raw_client(identity, HASTY) as (writer, server):
        writer.write(header(100) + bytes(50))
        with pytest.raises(TransportError, match=r"rogue sent no frame within 0\.3 s"):
            await server.receive()


async def test_a_peer_that_announces_much_costs_no_memory(identity):
    async with raw_client(identity, HASTY) as (writer, server):
        writer.write(header(HASTY.max_frame_bytes) + bytes(1000))
        tracemalloc.start()
        try:
            with pytest.raises(TransportError, match="sent no frame"):
                await server.receive()
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 2**20 < HASTY.max_frame_bytes


async def test_a_peer_that_takes_nothing_is_the_networks_fault(identity):
    async with raw_client(identity, HASTY) as (_, server):
        with pytest.raises(TransportError, match=r"rogue took no frame within 0\.3 s"):
            await server.send(bytes(48 * 2**20))


# --- who is there --------------------------------------------------------------------------


async def test_another_certificate_is_refused(identity, tmp_path):
    stranger = ensure_identity(tmp_path)
    async with streams.listen(HOST, 0, context=server_context(stranger)) as listener:
        with pytest.raises(VerificationError, match=r"P2 at 127\.0\.0\.1:"):
            await streams.connect(
                HOST, listener.port, peer="P2", context=client_context(identity.certificate_pem)
            )


async def test_a_context_that_checks_nothing_is_refused(identity):
    context = client_context(identity.certificate_pem)
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(RefusedError, match="checks no certificate"):
        await streams.connect(HOST, 1, peer="P2", context=context)


async def connect_to_plain_server(identity, answer: bytes | None) -> None:
    """Connects to a server that answers the TLS greeting so; None: not at all."""
    done = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if answer is None:
            await done.wait()
        else:
            writer.write(answer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, HOST, 0)
    try:
        await streams.connect(
            HOST,
            server.sockets[0].getsockname()[1],
            peer="P2",
            context=client_context(identity.certificate_pem),
            bounds=Bounds(connect_timeout_s=0.3 if answer is None else 10),
        )
    finally:
        done.set()
        server.close()
        await asyncio.sleep(0.01)


async def test_a_server_without_tls_is_the_peers_fault(identity):
    with pytest.raises(PeerError, match=r"P2 at .*: no TLS"):
        await connect_to_plain_server(identity, b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def test_a_server_that_says_nothing_is_the_networks_fault(identity):
    with pytest.raises(TransportError, match=r"did not answer within 0\.3 s"):
        await connect_to_plain_server(identity, None)


async def test_a_server_that_hangs_up_is_the_networks_fault(identity):
    with pytest.raises(TransportError):
        await connect_to_plain_server(identity, b"")


async def test_nobody_there_is_the_networks_fault(identity):
    async with streams.listen(HOST, 0, context=server_context(identity)) as listener:
        with pytest.raises(TransportError, match="cannot listen"):
            async with streams.listen(HOST, listener.port, context=server_context(identity)):
                pass
    with pytest.raises(TransportError, match=r"cannot reach P2 at 127\.0\.0\.1"):
        await streams.connect(
            HOST, listener.port, peer="P2", context=client_context(identity.certificate_pem)
        )


async def test_nobody_comes(identity):
    async with streams.listen(HOST, 0, context=server_context(identity)) as listener:
        with pytest.raises(TransportError, match=r"nobody connected within 0\.05 s"):
            await listener.accept(timeout_s=0.05)


async def test_noise_on_the_port_does_not_disturb_the_listener(identity):
    async with streams.listen(HOST, 0, context=server_context(identity)) as listener:
        _, noise = await asyncio.open_connection(HOST, listener.port)
        noise.write(b"\x00" * 1000)
        client = await streams.connect(
            HOST, listener.port, peer="P2", context=client_context(identity.certificate_pem)
        )
        server = await listener.accept(timeout_s=10)
        assert server.peer.startswith(f"{HOST}:")
        async with client, server:
            await client.send(b"hello")
            assert await server.receive() == b"hello"
        noise.transport.abort()
        await asyncio.sleep(0)


async def test_clients_that_nobody_accepts_are_turned_away(identity, monkeypatch, caplog):
    monkeypatch.setattr(streams, "_MAX_WAITING", 1)
    context = client_context(identity.certificate_pem)
    async with streams.listen(HOST, 0, context=server_context(identity)) as listener:
        waits = await streams.connect(HOST, listener.port, peer="P2", context=context)
        late = await streams.connect(HOST, listener.port, peer="P2", context=context)
        with pytest.raises(TransportError, match="P2 closed the connection"):
            await late.receive()
        assert "too many wait already" in caplog.text
    with pytest.raises(TransportError, match="P2 closed the connection"):
        await waits.receive()
    await waits.close()
    await late.close()


def make_client_certificate(folder: Path) -> tuple[Path, bytes]:
    """A throw-away certificate with its key in one PEM file; and the certificate's PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "P1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    path = folder / "client.pem"
    path.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path, pem


async def test_with_mutual_tls_each_side_knows_the_other(identity, tmp_path, caplog):
    path, pem = make_client_certificate(tmp_path)
    known = {x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER): "P1"}
    accepting = server_context(identity)
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    accepting.load_verify_locations(cadata=pem.decode())

    def name_of(certificate: bytes | None, address: str) -> str:
        if certificate not in known:
            raise VerificationError("a client that nobody introduced")
        return known[certificate]

    nameless = client_context(identity.certificate_pem)
    introduced = client_context(identity.certificate_pem)
    introduced.load_cert_chain(path)
    async with streams.listen(HOST, 0, context=accepting, name_of=name_of) as listener:
        stranger = await streams.connect(HOST, listener.port, peer="P2", context=nameless)
        with pytest.raises(TransportError):
            await stranger.receive()
        await stranger.close()
        async with await streams.connect(
            HOST, listener.port, peer="P2", context=introduced
        ) as client:
            async with await listener.accept(timeout_s=10) as server:
                assert (client.peer, server.peer) == ("P2", "P1")
                await server.send(b"welcome")
                assert await client.receive() == b"welcome"
        known.clear()
        removed = await streams.connect(HOST, listener.port, peer="P2", context=introduced)
        with pytest.raises(TransportError, match="P2 closed the connection"):
            await removed.receive()
        await removed.close()
        assert "a client that nobody introduced" in caplog.text
