"""The three parties as processes: a clear end for all that can go wrong between them.

What a test breaks it puts right again, because all share one pair of servers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mpc_parties import BOUNDS, IDS, Running, hello, spoil, started

from veilrun.errors import (
    BusyError,
    DamagedError,
    PeerError,
    RefusedError,
    SpentError,
    TransportError,
    UsageError,
    VerificationError,
)
from veilrun.mpc import network_file, parcels, wire
from veilrun.mpc.local import Place
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING
from veilrun.mpc.parcels import Arrival
from veilrun.mpc.roles import links
from veilrun.transport import tls


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(CLIENT_EMBEDDING, tmp_path_factory.mktemp("public")) as running:
        yield running


def test_a_copy_of_used_material_is_of_no_use(public: Running, tmp_path: Path) -> None:
    with public.client() as client:
        client.stock(5, 1)
        serial = min(s for s, n in client.in_stock().items() if n == 5)
        for role in ("P1", "P2"):
            shutil.copytree(public.store_of(role) / "stock", tmp_path / role)
        assert client.classify_ids(IDS).serial == serial
    for role in ("P1", "P2"):
        for suffix in (parcels.PARCEL, parcels.MANIFEST):
            name = f"{serial}{suffix}"
            shutil.copy(tmp_path / role / name, public.store_of(role) / "stock" / name)
    with public.raw("P2") as link:  # a client that would use it twice
        with pytest.raises(SpentError, match=f"serial {serial} was used before"):
            links.ask(link, hello(public, serial, 5), wire.Hello)
    with public.client() as client:
        assert serial not in client.in_stock()
        with pytest.raises(RefusedError, match=f"serial {serial} was used before"):
            client._computer.prepare(serial, 5)
        assert client.classify_ids(IDS).serial != serial


def test_a_broken_ledger_stops_a_party(public: Running, tmp_path: Path) -> None:
    with public.client() as client:
        client.classify_ids(IDS)
    state = tmp_path / "state"
    shutil.copytree(public.place.state("P1"), state)
    (run,) = (state / "runs").iterdir()
    (run / "ledger").unlink()
    with pytest.raises(RefusedError, match="ledger"):
        public.client(state)


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_damaged_material_is_named_and_thrown_away(public: Running, harm: str) -> None:
    with public.client() as client:
        client.stock(5, 1)
        serial = min(s for s, n in client.in_stock().items() if n == 5)
        spoil(public.store_of("P1") / "stock" / f"{serial}.parcel", harm)
        with pytest.raises(DamagedError, match=rf"{serial}\.parcel"):
            client.classify_ids(IDS)
        assert client.classify_ids(IDS).serial > serial


def test_damage_at_the_assistant_is_named_too(public: Running) -> None:
    with public.client() as client:
        client.stock(5, 1)
        serial = min(s for s, n in client.in_stock().items() if n == 5)
        spoil(public.store_of("P2") / "stock" / f"{serial}.parcel", "flip")
        with pytest.raises(PeerError, match=rf"P2 refuses: .*{serial}\.parcel is damaged in chunk"):
            client.classify_ids(IDS)
        assert client.classify_ids(IDS).serial > serial


def test_damage_at_the_dealer_is_named_too(public: Running) -> None:
    with public.raw("P0") as link:
        links.ask(link, wire.Greeting(wire.VERSION, "P1"), wire.Welcome)
        dealt = links.ask(link, wire.Deal(7), wire.Dealt)
    serial = int(dealt.serials[0])
    box = public.place.state("P0") / "models"
    (path,) = box.rglob(f"{serial}.P1.parcel")
    spoil(path, "flip")
    with public.client() as client:
        with pytest.raises(VerificationError, match=f"chunk 0 of 1 of parcel {serial}, as P0"):
            client.classify_ids([*IDS, 6, 7])
        assert client.classify_ids([*IDS, 6, 7]).serial > serial


def test_an_interrupted_fetch_goes_on_where_it_was(public: Running, monkeypatch) -> None:
    ids = [1] * 26  # two chunks
    real = Arrival.put
    put: list[int] = []

    def once(self: Arrival, index: int, chunk: bytes) -> None:
        put.append(index)
        if len(put) == 2:
            raise TransportError("the network is gone")
        real(self, index, chunk)

    with public.client() as client, monkeypatch.context() as patched:
        patched.setattr(Arrival, "put", once)
        with pytest.raises(TransportError, match="the network is gone"):
            client.classify_ids(ids, allow_longer=True)
        (waiting,) = [s for s, n in public.outbox().waiting("P1").items() if n == 26]
        result = client.classify_ids(ids, allow_longer=True)
    assert put == [0, 1, 1]
    assert result.serial == waiting


def last_bit(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


OTHERS: dict[str, Callable[[wire.Hello], wire.Hello]] = {
    "version": lambda one: replace(one, version=2),
    "role": lambda one: replace(one, role="P2" if one.role == "P1" else "P1"),
    "model": lambda one: replace(one, digest=last_bit(one.digest)),
    "run": lambda one: replace(one, run=last_bit(one.run)),
    "profile": lambda one: replace(one, profile="w1a4"),
}
MORE_OTHERS: dict[str, Callable[[wire.Hello], wire.Hello]] = {
    **OTHERS,
    "serial": lambda one: replace(one, serial=one.serial + 1),
    "number of tokens": lambda one: replace(one, n_tokens=4),
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_assistant_refuses_another_computation(public: Running, what: str) -> None:
    with public.client() as client:
        client.stock(5, 1)
        serial = min(s for s, n in client.in_stock().items() if n == 5)
    with public.raw("P2") as link:
        with pytest.raises(VerificationError, match=f"P2 refuses: .*{what}"):
            links.ask(link, OTHERS[what](hello(public, serial, 5)), wire.Hello)
        with pytest.raises(TransportError):
            link.receive()
    with public.client() as client:
        assert client.classify_ids(IDS).serial == serial, "nothing was used up"


@pytest.mark.parametrize("what", MORE_OTHERS)
def test_the_client_refuses_another_computation(public: Running, what: str, tmp_path: Path) -> None:
    """An assistant of this test answers the hello with something else."""
    place = Place(tmp_path)
    shutil.copytree(public.place.state("P1"), place.state("P1"))
    identity = tls.ensure_identity(place.state("P2"))
    real = network_file.load(public.place.network)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    p0 = public.place.state("P0") / tls.CERTIFICATE_FILE
    network_file.write(
        place.network,
        {
            "P0": (f"127.0.0.1:{real.members['P0'].port}", str(p0)),
            "P1": (None, str(place.state("P1") / tls.CERTIFICATE_FILE)),
            "P2": (f"127.0.0.1:{port}", str(identity.certificate_path)),
        },
    )
    seat = links.Seat("P2", place.state("P2"), network_file.load(place.network), identity, BOUNDS)
    received: list[wire.Control] = []

    def assist() -> None:
        with links.listen(seat, "P1") as listener, listener.accept(20) as link:
            theirs = links.receive(link, wire.Hello)
            links.send(link, MORE_OTHERS[what](replace(theirs, role="P2")))
            with contextlib.suppress(TransportError):
                while True:
                    received.append(wire.decode(link.receive()))

    thread = threading.Thread(target=assist)
    thread.start()
    try:
        with public.client(place.state("P1"), place.network) as client:
            before = len(client._store.ledger)
            with pytest.raises(VerificationError, match=f"P2 is about to .*{what}"):
                client.classify_ids(IDS)
            assert len(client._store.ledger) == before
    finally:
        thread.join(30)
    assert received == [], "nothing may be sent after a hello that does not fit"


def test_a_second_client_is_turned_away(public: Running, tmp_path: Path) -> None:
    shutil.copytree(public.place.state("P1"), tmp_path / "copy")
    with public.client() as client:
        client.classify_ids(IDS)  # it stays connected
        with pytest.raises(RefusedError, match="another process works with"):
            public.client()
        with public.raw("P2") as link, pytest.raises(BusyError, match="serves another client"):
            links.ask(link, hello(public, 1, 5), wire.Hello)
        with pytest.raises(BusyError, match="P1 is connected already"):
            public.client(tmp_path / "copy")
        client.classify_ids(IDS)


def test_strangers_are_told_apart(public: Running, tmp_path: Path) -> None:
    members = network_file.load(public.place.network).members
    place = Place(tmp_path)
    place.lay_out((members["P0"].port, members["P2"].port))  # three new certificates
    with pytest.raises(VerificationError, match=r"P0 at .*certificate"):
        public.client(place.state("P1"), place.network)
    text = place.network.read_text()
    for role in ("P0", "P2"):
        new, old = (one.state(role) / tls.CERTIFICATE_FILE for one in (place, public.place))
        text = text.replace(str(new), str(old))
    place.network.write_text(text)
    with pytest.raises(TransportError, match="P0 may hold another certificate"):
        public.client(place.state("P1"), place.network)
    with pytest.raises(UsageError, match="gives P1 another certificate"):
        public.client(tmp_path / "new", place.network)
    with public.client() as client:
        client.classify_ids(IDS)


@pytest.mark.parametrize("role", ["P0", "P2"])
def test_noise_ends_a_connection_and_nothing_else(public: Running, role: str) -> None:
    frames = [b"", b"VRT\x01", os.urandom(200), wire.encode(wire.Go()), wire.encode(wire.Deal(5))]
    for frame in frames:
        with public.raw(role) as link:
            link.send(frame)
            with pytest.raises(PeerError, match=f"{role} refuses"):
                links.receive(link, wire.Listening)
    with public.client() as client:
        client.classify_ids(IDS)


def test_requests_that_make_no_sense(public: Running) -> None:
    requests = {
        "is not .or no longer. here": wire.Describe("99999"),
        "no longer. here": wire.Fetch("99999", 0, 1),
        "has no chunk": wire.Fetch("setup", 999, 1),
        "this model reads 26": wire.Deal(27),
        "embedding is public": wire.Question(1, 5),
    }
    for words, request in requests.items():
        with public.raw("P0") as link:
            links.ask(link, wire.Greeting(wire.VERSION, "P1"), wire.Welcome)
            with pytest.raises(PeerError, match=words):
                links.ask(link, request, wire.Listening)


@pytest.mark.parametrize("request_", [wire.Deal(5), wire.Question(1, 5), wire.Go()])
def test_the_assistant_may_not_ask_for_what_is_the_clients(
    public: Running, request_: wire.Control
) -> None:
    with public.raw("P0", "P2") as link:
        links.ask(link, wire.Greeting(wire.VERSION, "P2"), wire.Welcome)
        with pytest.raises(PeerError, match="not its to send here"):
            links.ask(link, request_, wire.Dealt)


def test_a_party_gets_its_own_key_whatever_it_says(public: Running) -> None:
    with public.raw("P0", "P2") as link:
        with pytest.raises(PeerError, match="P2, by its certificate, says that it is P1"):
            links.ask(link, wire.Greeting(wire.VERSION, "P1"), wire.Welcome)
    with public.raw("P0") as link:
        with pytest.raises(VerificationError, match="version 2 of the protocol"):
            links.ask(link, wire.Greeting(2, "P1"), wire.Welcome)
    with pytest.raises(TransportError, match="P2"), public.raw("P2", "P0") as link:
        links.ask(link, hello(public, 1, 5), wire.Hello)  # the assistant knows the client alone
