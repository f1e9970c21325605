"""The three parties for tests: quantised folders of small random models, running servers, and
the twin's answer to a serial that was run.

The client is the test's own process, so that a test can stop it half-way.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mpc_model_rig as rig
import pytest

from veilrun.mpc import Client, embedding, network_file, wire
from veilrun.mpc.local import Place, servers
from veilrun.mpc.model import files
from veilrun.mpc.model.quantised import QuantisedModel
from veilrun.mpc.replay import Replay, Replayed, overheard
from veilrun.mpc.roles import links
from veilrun.mpc.roles.outbox import Outbox
from veilrun.transport import tls

WORDS = ("a", "fine", "film", "dull", "plot", "is", "not", "the", "and", "so")


def tokenizer_json() -> bytes:
    import tokenizers

    vocabulary = {word: number for number, word in enumerate(("[UNK]", *WORDS))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def model(kind: str, *, is_encoder: bool = False, seed: int = 0) -> QuantisedModel:
    shape = rig.architecture(is_encoder=is_encoder, hidden=64, intermediate=128)
    return rig.quantised(rig.float_model(shape, seed), kind=kind)


def save(quantised: QuantisedModel, folder: Path) -> Path:
    files.save(quantised, tokenizer_json(), folder)
    return folder


def text(n_tokens: int) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(n_tokens))


IDS = [1, 2, 3, 4, 5]
BOUNDS = replace(links.BOUNDS, connect_timeout_s=5.0, receive_timeout_s=20.0)


@dataclass
class Running:
    """A model, its servers, and what is needed to be their client."""

    kind: str
    model: QuantisedModel
    folder: Path
    place: Place

    def client(self, state: Path | None = None, network: Path | None = None) -> Client:
        return Client(
            network or self.place.network,
            state or self.place.state("P1"),
            n_threads=1,
            patience_s=2.0,
            bounds=BOUNDS,
        )

    def raw(self, role: str, own: str = "P1") -> contextlib.AbstractContextManager[links.Channel]:
        """A connection with a party's certificate, for one that behaves badly."""
        network = network_file.load(self.place.network)
        state = self.place.state(own)
        seat = links.Seat(own, state, network, tls.ensure_identity(state), BOUNDS)
        return links.call(seat, role)

    def store_of(self, role: str) -> Path:
        (folder,) = (self.place.state(role) / "runs").iterdir()
        return folder

    def outbox(self) -> Outbox:
        """The dealer's, read from its files while it runs."""
        return Outbox(self.place.state("P0"), files.digest(self.folder))


@contextlib.contextmanager
def started(kind: str, work: Path, *, is_encoder: bool = False) -> Iterator[Running]:
    made = model(kind, is_encoder=is_encoder)
    folder = save(made, work / "model")
    place = Place(work / "place")
    with servers(place, folder):
        yield Running(kind, made, folder, place)


@contextlib.contextmanager
def listening() -> Iterator[list[bytes]]:
    """The questions about embedding rows that clients of this process ask meanwhile."""
    questions: list[bytes] = []
    real = embedding.ask
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedding, "ask", lambda *args: overheard(real(*args), questions))
        yield questions


def twin(
    running: Running, ids: list[int], serial: int, questions: Sequence[bytes] = ()
) -> Replayed:
    """The same serial once more in this process, and what the twin says to it."""
    again = Replay.of(running.folder, running.place.state("P0"))
    return again.run(ids, serial, *questions)


def spoil(path: Path, harm: str) -> None:
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 16
    else:
        del content[-3:]
    path.write_bytes(content)


def hello(running: Running, serial: int, n_tokens: int) -> wire.Hello:
    outbox, public = running.outbox(), running.model.public
    return wire.Hello(
        wire.VERSION, "P1", outbox.digest, outbox.run, public.profile.name, serial, n_tokens
    )


def veilrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "veilrun.cli", "mpc", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done
