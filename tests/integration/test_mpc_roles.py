"""The three parties as processes: right answers, what they keep, and how they come and go."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpc_model_rig as rig
import mpc_parties
import numpy as np
import pytest
from mpc_parties import IDS, Running, hello, listening, started, twin, veilrun

from veilrun.cli import mpc_classify
from veilrun.errors import PeerError, RefusedError, SpentError, TransportError, UsageError
from veilrun.mpc import Client, bench, embedding, inference, wire
from veilrun.mpc.local import Place, child, local
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
from veilrun.mpc.roles import client as roles_client
from veilrun.mpc.roles import links
from veilrun.mpc.roles.online import Computer
from veilrun.transport import tls


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(CLIENT_EMBEDDING, tmp_path_factory.mktemp("public")) as running:
        yield running


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(SECRET_EMBEDDING, tmp_path_factory.mktemp("secret")) as running:
        yield running


@pytest.fixture(params=[CLIENT_EMBEDDING, SECRET_EMBEDDING])
def running(request: pytest.FixtureRequest) -> Running:
    name = "public" if request.param == CLIENT_EMBEDDING else "secret"
    result: Running = request.getfixturevalue(name)
    return result


def test_the_answer_is_the_twins(running: Running) -> None:
    for ids in (IDS, IDS[:2], [0] * 12):
        with running.client() as client, listening() as questions:
            result = client.classify_ids(ids)
        assert len(questions) == (running.kind == SECRET_EMBEDDING)
        ran = twin(running, ids, result.serial, questions)
        assert result.integers.tolist() == ran.answer.integers.tolist()
        assert result.integers.tolist() == ran.twin.integers.tolist()
        assert result.flagged == ran.twin.flagged
        if questions:
            with pytest.raises(UsageError, match="the question that was asked is needed"):
                twin(running, ids, result.serial)
        logits = result.logits
        assert np.array_equal(logits, ran.twin.output)
        assert result.label == running.model.public.architecture.labels[logits.argmax()]
        assert sum(result.probabilities.values()) == pytest.approx(1.0, abs=1e-12)


def test_the_cost_is_the_bill(running: Running) -> None:
    with running.client() as client:
        cost = client.classify_ids(IDS).cost
    public = running.model.public
    bill = inference.plan(public, len(IDS)).bill
    assert cost.n_tokens == len(IDS)
    assert cost.online_bytes == bill.online_bytes
    assert cost.offline_bytes == bill.offline_bytes
    assert cost.n_rounds == bill.n_rounds
    asked = 0
    if running.kind == SECRET_EMBEDDING:
        a, bits = public.architecture, public.profile.rings.linear
        asked = 2 * embedding.question_bytes(len(IDS), a.n_vocab, bits)
        asked += embedding.answer_bytes(len(IDS), a.hidden, bits)
    assert cost.embedding_bytes == asked
    for seconds in (cost.deal_s, cost.fetch_s, cost.prepare_s, cost.online_s, cost.cpu_s):
        assert 0 < seconds < 60


def test_material_is_dealt_ahead_and_used_once(public: Running) -> None:
    with public.client() as client:
        assert len(client.stock(6, 3)) == 3
        assert client.stock(6, 3) == {}
        serials = [serial for serial, n_tokens in client.in_stock().items() if n_tokens == 6]
        used = [client.classify_ids([*IDS, 6]) for _ in serials]
        assert [one.serial for one in used] == serials
        assert all(one.cost.deal_cpu_s > 0 for one in used)
        assert 6 not in client.in_stock().values()
    for role in ("P1", "P2"):
        left = {path.stem for path in (public.store_of(role) / "stock").iterdir()}
        assert not left & {str(serial) for serial in serials}
    assert not set(public.outbox().waiting("P1")) & set(serials)
    assert not set(public.outbox().waiting("P2")) & set(serials)


def test_a_connection_that_was_idle_is_opened_again(public: Running, monkeypatch) -> None:
    monkeypatch.setattr(roles_client, "_IDLE_S", 0.0)
    with public.client() as client:
        first = client.classify_ids(IDS)
        assert client.classify_ids(IDS).serial > first.serial


def test_an_encoder_gives_the_mean_hidden_state(tmp_path: Path) -> None:
    model = mpc_parties.model(CLIENT_EMBEDDING, is_encoder=True)
    folder = mpc_parties.save(model, tmp_path / "model")
    with local(folder, folder=tmp_path / "place") as client:
        result = client.embed(mpc_parties.text(4))
        ids = client.ids(mpc_parties.text(4))
        with pytest.raises(UsageError, match="no labels"):
            client.classify("a film")
    running = Running(CLIENT_EMBEDDING, model, folder, Place(tmp_path / "place"))
    ran = twin(running, ids, result.serial)
    assert np.array_equal(result.integers, ran.twin.integers)
    assert result.vector.shape == (64,)


def test_secrets_are_for_the_owner_only(running: Running) -> None:
    with running.client() as client:
        client.stock(3, 1)
    for role in ("P0", "P1", "P2"):
        for path in running.place.state(role).rglob("*"):
            if path.is_file() and path.name not in ("node-certificate.pem",):
                assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_start_fetches_nothing(public: Running, monkeypatch) -> None:
    with public.client() as client:
        client.stock(3, 1)
    monkeypatch.setattr(links, "fetch", None)  # calling it would be an error
    with public.client() as client:
        assert client.classify_ids(IDS[:3]).cost.fetch_s < 1


def test_a_client_that_dies_burns_the_serial(running: Running) -> None:
    with running.client() as client:
        client.stock(5, 1)
        serial = min(s for s, n in client.in_stock().items() if n == 5)
    with running.raw("P2") as link:
        links.ask(link, hello(running, serial, 5), wire.Hello)
        links.send(link, wire.Go())
    with running.raw("P2") as link:
        with pytest.raises(SpentError, match=f"serial {serial} was used before"):
            links.ask(link, hello(running, serial, 5), wire.Hello)
    with running.client() as client:
        with pytest.raises(PeerError, match="was used before"):
            client.classify_ids(IDS)
        assert client.classify_ids(IDS).serial > serial


def test_the_ledger_is_written_before_the_first_opening(public: Running) -> None:
    """At the assistant: what it sends first comes after the line on its disk."""
    with public.client() as client:
        client.stock(5, 1)
        serial = min(s for s, n in client.in_stock().items() if n == 5)
    with public.raw("P2") as link:
        links.ask(link, hello(public, serial, 5), wire.Hello)
        assert serial not in ledger(public, "P2")
        links.send(link, wire.Go())
        link.receive()
        assert serial in ledger(public, "P2")
    with public.client() as client, pytest.raises(PeerError, match="was used before"):
        client.classify_ids(IDS)


def test_the_clients_ledger_is_written_first(running: Running, monkeypatch) -> None:
    real = links.send
    seen: list[str] = []

    def watch(link: links.Channel, message: wire.Control) -> None:
        if isinstance(message, wire.Question | wire.Go):
            seen.append(message.kind)
            assert len(ledger(running, "P1")) == n_used + 1
        real(link, message)

    with running.client() as client:
        n_used = len(ledger(running, "P1"))
        monkeypatch.setattr(links, "send", watch)
        client.classify_ids(IDS)
    question = [] if running.kind == CLIENT_EMBEDDING else [wire.Question.kind]
    assert seen == [*question, wire.Go.kind]


def ledger(running: Running, role: str) -> set[int]:
    """The serials that a party has written down on its disk."""
    lines = (running.store_of(role) / "ledger").read_text().splitlines()
    return {int(line.split()[0]) for line in lines}


def test_a_question_is_answered_once(secret: Running) -> None:
    with secret.client() as client:
        serial = client.classify_ids(IDS).serial
    with secret.raw("P0") as link:
        links.ask(link, wire.Greeting(wire.VERSION, "P1"), wire.Welcome)
        with pytest.raises(SpentError, match=f"serial {serial} was used before"):
            links.ask(link, wire.Question(serial, 5), wire.Listening)


def test_parties_in_any_order_and_their_deaths(tmp_path: Path, monkeypatch) -> None:
    model = mpc_parties.model(CLIENT_EMBEDDING)
    folder = mpc_parties.save(model, tmp_path / "model")
    place = Place(tmp_path / "place")
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        place.lay_out((a.getsockname()[1], b.getsockname()[1]))
    running = Running(CLIENT_EMBEDDING, model, folder, place)
    start_s = time.monotonic()
    with pytest.raises(TransportError, match="cannot reach P0"):
        running.client()
    assert time.monotonic() - start_s < 10

    party = ["party", "--network", str(place.network), "--state", str(place.state("P2"))]
    deal = ["deal", str(folder), "--network", str(place.network), "--state", str(place.state("P0"))]
    outcome: list[object] = []

    def late() -> None:  # the assistant waits for the dealer, the client for the assistant
        with Client(place.network, place.state("P1"), n_threads=1, patience_s=60) as client:
            outcome.append(client.classify_ids(IDS))

    with contextlib.ExitStack() as assistant, contextlib.ExitStack() as dealer:
        client_thread = threading.Thread(target=late)
        client_thread.start()
        time.sleep(0.5)
        dealer.enter_context(child([*deal, "--stock", "5x2,3x1"]))
        assistant.enter_context(child(party))
        client_thread.join(60)
        assert len(outcome) == 1

        with running.client() as client:
            client.stock(5, 2)
            serial = min(s for s, n in client.in_stock().items() if n == 5)
            real = Computer.run

            def kill_first(self, prepared, entry, channels):
                assistant.close()  # the process is gone before the first opening
                return real(self, prepared, entry, channels)

            with monkeypatch.context() as patched:
                patched.setattr(Computer, "run", kill_first)
                with pytest.raises(TransportError, match="P2"):
                    client.classify_ids(IDS)
            assert serial not in client.in_stock()
            dealer.close()  # material in stock needs no dealer
        assistant.enter_context(child(party))
        with running.client() as client:
            assert client.classify_ids(IDS).serial > serial
            with pytest.raises(TransportError, match="cannot reach P0"):
                client.classify_ids(IDS[:1])


def test_two_assistants_with_one_state(public: Running) -> None:
    at = ["--network", str(public.place.network), "--state", str(public.place.state("P2"))]
    done = veilrun("party", *at)
    assert done.returncode == RefusedError.exit_code
    assert "another process works with" in done.stderr


def test_a_port_that_is_taken(public: Running, tmp_path: Path) -> None:
    shutil.copytree(public.place.state("P2"), tmp_path / "P2")
    done = veilrun("party", "--network", str(public.place.network), "--state", str(tmp_path / "P2"))
    assert done.returncode == TransportError.exit_code
    assert "cannot listen" in done.stderr


def test_classify_as_a_client(public: Running, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a fine film\n\nso dull\n")
    at = ["--network", str(public.place.network), "--state", str(public.place.state("P1"))]
    done = veilrun("classify", "the plot is not fine", "--file", str(texts), *at, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in io.StringIO(done.stdout)]
    assert [line["text"] for line in lines] == ["the plot is not fine", "a fine film", "so dull"]
    for line in lines:
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
        assert line["mode"] == "mpc"
        assert line["cost"]["n_tokens"] == len(line["text"].split())


def test_classify_on_one_machine(public: Running) -> None:
    done = veilrun("classify", str(public.folder), "a fine film")
    assert done.returncode == 0, done.stderr
    assert "MB online in" in done.stdout and "stands against" in done.stdout
    assert any(label in done.stdout for label in public.model.public.architecture.labels)


def test_classify_embeds_with_an_encoder(tmp_path: Path) -> None:
    model = mpc_parties.model(CLIENT_EMBEDDING, is_encoder=True)
    folder = mpc_parties.save(model, tmp_path / "model")
    done = veilrun("classify", str(folder), "a fine film", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["embedding"]) == model.public.architecture.hidden
    assert veilrun("classify", str(folder), "a fine film", "--embed").returncode == 2


def test_a_flagged_answer_warns(public: Running, monkeypatch, capsys) -> None:
    with public.client() as client:
        result = client.classify_ids(IDS)
    mpc_classify._warn(replace(result, flagged={"layer_3.gelu_0": 2, "layer_3.gelu_1": 1}))
    words = "3 values of layer 3's gelu came near the end of their window: the answer may be wrong"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give MODEL"),
        ({"arguments": ["nowhere"]}, "no text"),
        ({"arguments": ["nowhere"], "file": Path("gone.txt")}, "cannot read the texts"),
        ({"arguments": ["nowhere", "a text"]}, "nowhere is not a folder"),
        ({"arguments": ["a text"], "network": Path("mpc.toml")}, "go together"),
        (
            {"arguments": ["a text"], "network": Path("gone.toml"), "state": Path("state")},
            "cannot read the network file",
        ),
    ],
)
def test_wrong_calls(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        mpc_classify.classify(**arguments)


def test_a_wrong_call_is_an_exit_code() -> None:
    done = veilrun("classify", "nowhere", "a text")
    assert (done.returncode, done.stdout) == (UsageError.exit_code, "")
    assert "nowhere is not a folder" in done.stderr


def test_identity(tmp_path: Path) -> None:
    said = [
        json.loads(veilrun("identity", "--state", str(tmp_path), "--json").stdout) for _ in "12"
    ]
    assert said[0] == said[1]
    assert Path(said[0]["certificate"]).read_bytes().startswith(b"-----BEGIN CERTIFICATE")
    assert said[0]["pin"] == tls.ensure_identity(tmp_path).pin


def test_servers_end_quietly(tmp_path: Path) -> None:
    model = mpc_parties.model(CLIENT_EMBEDDING)
    folder = mpc_parties.save(model, tmp_path / "model")
    place = Place(tmp_path / "place")
    place.lay_out()
    command = [sys.executable, "-m", "veilrun.cli", "mpc", "deal", str(folder), "--json"]
    command += ["--network", str(place.network), "--state", str(place.state("P0"))]
    for end in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["role"] == "P0"
        process.send_signal(end)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, b"")


def test_bench_measures_what_the_bill_says() -> None:
    shape = rig.architecture(n_layers=1)
    first, second = bench.measure(shape, 4, 2)
    public = rig.quantised(rig.float_model(shape)).public
    bill = inference.plan(public, 4).bill
    for one in (first, second):
        assert (one.n_tokens, one.n_rounds) == (4, bill.n_rounds)
        assert (one.offline_bytes, one.online_bytes) == (bill.offline_bytes, bill.online_bytes)
        assert 0 < one.online_s <= one.answer_s
        assert min(one.deal_s, one.deal_cpu_s, one.p1_cpu_s, one.p2_cpu_s, one.prepare_s) > 0
