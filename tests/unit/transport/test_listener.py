"""How channels come about: who is there, who is not, and who is turned away."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
from meeting import HOST, calling, listening, together

from veilrun.errors import (
    PeerError,
    RefusedError,
    TransportError,
    UsageError,
    VerificationError,
)
from veilrun.transport import channel
from veilrun.transport.channel import Channel
from veilrun.transport.connection import DEFAULT_BOUNDS, Bounds
from veilrun.transport.tls import (
    client_context,
    ensure_identity,
    peer_client_context,
    peer_server_context,
    server_context,
)

HASTY = Bounds(connect_timeout_s=0.3)
BRISK = Bounds(connect_timeout_s=1.5)


# --- the one who calls ---------------------------------------------------------------------


def test_another_certificate_is_refused(identity, tmp_path, caplog):
    with listening(ensure_identity(tmp_path)) as listener:

        def call() -> None:
            with pytest.raises(VerificationError, match=r"right at 127\.0\.0\.1:\d+: self"):
                calling(identity, listener.port, patience_s=60)

        together(call, lambda: nobody_comes(listener, 1.0))
    assert "alert unknown ca" in caplog.text.lower().replace("_", " ")  # it learnt why
    assert caplog.text.count("turned away 127.0.0.1:") == 1  # patience is not for impostors


def test_a_context_that_checks_nothing_is_refused(identity):
    context = client_context(identity.certificate_pem)
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(RefusedError, match="checks no certificate"):
        channel.connect(HOST, 1, peer="P2", context=context)


@contextlib.contextmanager
def plain_server(answer: bytes | None) -> Iterator[int]:
    """A server that answers the TLS greeting so and hangs up; None: it says nothing."""
    done = threading.Event()

    def handle() -> None:
        plain, _ = server.accept()
        with plain:
            plain.recv(2**16)
            if answer is None:
                done.wait()
            else:
                plain.sendall(answer)

    with socket.create_server((HOST, 0)) as server:
        thread = threading.Thread(target=handle)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "error", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", PeerError, r"right at .*: no TLS"),
        (None, TransportError, r"did not answer within 0\.3 s"),
        (b"", TransportError, r"right at .* hung up while agreeing on keys"),
    ],
)
def test_what_answers_without_tls_has_its_error(identity, answer, error, complaint):
    with plain_server(answer) as port, pytest.raises(error, match=complaint) as caught:
        calling(identity, port, HASTY if answer is None else DEFAULT_BOUNDS)
    assert type(caught.value) is error


def test_nobody_there_is_the_networks_fault(identity):
    with listening(identity) as listener:
        with pytest.raises(TransportError, match="cannot listen"):
            listening(identity, port=listener.port)
    for patience_s in (0.0, 0.2):
        begin_s = time.monotonic()
        with pytest.raises(TransportError, match=r"cannot reach right at 127\.0\.0\.1"):
            calling(identity, listener.port, patience_s=patience_s)
        assert patience_s / 2 <= time.monotonic() - begin_s < patience_s + 2


def test_parties_start_in_any_order(identity):
    with listening(identity) as probe:
        port = probe.port

    def listen_late() -> None:
        time.sleep(0.3)
        with listening(identity, port=port) as listener:
            time.sleep(0.6)  # it is there and does not answer: the first call is given up
            with listener.accept(10) as server:
                server.send(b"here")

    with together(lambda: calling(identity, port, HASTY, patience_s=30), listen_late)[0] as client:
        assert client.receive() == b"here"


# --- the one who is called -----------------------------------------------------------------


def test_parties_know_each_other_by_their_certificates(identity, tmp_path, caplog):
    one, two, stranger = (ensure_identity(tmp_path / name) for name in ("one", "two", "stranger"))
    der_of = {who.pin: ssl.PEM_cert_to_DER_cert(who.certificate_pem.decode()) for who in (one, two)}
    known = {der_of[one.pin]: "P1", der_of[two.pin]: "P2"}

    def name_of(certificate: bytes | None, address: str) -> str:
        if certificate not in known:
            raise VerificationError("a party that takes no part")
        return known[certificate]

    accepting = peer_server_context(identity, [one.certificate_pem, two.certificate_pem])
    with (
        channel.listen(HOST, 0, context=accepting, name_of=name_of) as listener,
        contextlib.ExitStack() as stack,
    ):

        def call(who) -> Channel:
            context = peer_client_context(who, identity.certificate_pem)
            end = channel.connect(HOST, listener.port, peer="P0", context=context)
            return stack.enter_context(end)

        def accept() -> Channel:
            return stack.enter_context(listener.accept(30))

        def call_all() -> list[Channel]:
            nameless = stack.enter_context(calling(identity, listener.port))
            return [nameless, *map(call, (stranger, one, two))]

        (nameless, unknown, first, second), accepted = together(
            call_all, lambda: [accept(), accept()]
        )
        assert {end.certificate: end.peer for end in accepted} == known
        assert first.certificate == ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())
        for end in accepted:
            end.send(end.peer.encode())
        assert (first.receive(), second.receive()) == (b"P1", b"P2")
        del known[der_of[one.pin]]
        (removed, _), _ = together(lambda: (call(one), call(two)), accept)
        for turned_away in (unknown, nameless, removed):
            with pytest.raises(TransportError):
                turned_away.receive()
    assert caplog.text.count("turned away 127.0.0.1:") == 3
    assert caplog.text.count("a party that takes no part") == 1


def nobody_comes(listener: channel.Listener, timeout_s: float) -> None:
    with pytest.raises(TransportError, match=f"nobody connected within {timeout_s:g} s"):
        listener.accept(timeout_s)


def test_who_says_nothing_keeps_nobody_waiting(identity, caplog):
    with listening(identity, BRISK) as listener, contextlib.ExitStack() as stack:
        mute = [
            stack.enter_context(socket.create_connection((HOST, listener.port))) for _ in range(5)
        ]
        noisy = stack.enter_context(socket.create_connection((HOST, listener.port)))
        noisy.sendall(bytes(1000))
        client, server = together(
            lambda: calling(identity, listener.port), lambda: listener.accept(10)
        )
        assert caplog.text.count("turned away") == 1  # the mute are still being waited for
        with client, server:
            client.send(b"hello")
            assert server.receive() == b"hello"
        nobody_comes(listener, 2.0)
        assert caplog.text.count("it agreed on no keys within 1.5 s") == len(mute)
        for one in mute:
            assert one.recv(1) == b""


def test_a_crowd_that_says_nothing_is_outwaited(identity, monkeypatch):
    monkeypatch.setattr(channel, "_MAX_WAITING", 2)
    with listening(identity, BRISK) as listener, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection((HOST, listener.port)))
        begin_s = time.monotonic()
        client, server = together(
            lambda: calling(identity, listener.port), lambda: listener.accept(10)
        )
        assert time.monotonic() - begin_s > 1.4
        client.close()
        server.close()


def test_a_mistake_in_naming_is_not_hidden(identity):
    def name_of(certificate: bytes | None, address: str) -> str:
        raise KeyError(address)

    context = server_context(identity)
    with channel.listen(HOST, 0, context=context, name_of=name_of) as listener:

        def accept() -> None:
            with pytest.raises(KeyError):
                listener.accept(10)

        client, _ = together(lambda: calling(identity, listener.port), accept)
        with client, pytest.raises(TransportError):
            client.receive()


def test_a_closed_listener_lets_nobody_in(identity):
    with listening(identity) as listener:
        with socket.create_connection((HOST, listener.port)) as waiting:
            with pytest.raises(TransportError, match="nobody connected within 0 s"):
                listener.accept(0)
            listener.close()
            assert waiting.recv(1) == b""
    with pytest.raises(UsageError, match="does not listen any more"):
        listener.accept()
