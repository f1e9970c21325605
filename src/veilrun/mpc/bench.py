"""What inferences take, measured: three processes on this machine, over TLS, as `local` runs them.

Material is dealt and fetched before, so the online phase is what a client with a stock waits for.
The first inference is not counted: it pages code and tables in.

Not covered: a network. Bytes and rounds are exact, and `cost` says what they take on one.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from veilrun.mpc.local import local
from veilrun.mpc.model import files
from veilrun.mpc.model.architecture import Architecture, random_model
from veilrun.mpc.model.calibration import calibrate
from veilrun.mpc.model.quantise import quantise
from veilrun.mpc.model.quantised import SECRET_EMBEDDING
from veilrun.mpc.profile import W16A8, Profile
from veilrun.mpc.roles.client import Client, Cost

_N_CALIBRATION: Final = 4
_NO_TOKENIZER: Final = b"{}"
"""A random model has no words; it is asked by ids."""

Progress = Callable[[str], None]
"""Told what begins now, for people."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One inference. Seconds are wall time, `cpu` those of the processor; bytes both ways.

    deal: at P0, for this inference. online: the slower party's, first to last frame, the
    embedding question included. answer_s: all that the client waited, from ids to the answer.
    """

    n_tokens: int
    n_rounds: int
    offline_bytes: int
    embedding_bytes: int
    online_bytes: int
    deal_s: float
    deal_cpu_s: float
    prepare_s: float
    online_s: float
    p1_cpu_s: float
    p2_cpu_s: float
    answer_s: float


def measure(
    model: Path | Architecture,
    n_tokens: int,
    repeats: int,
    *,
    n_threads: int = 1,
    profile: Profile = W16A8,
    embedding: str = SECRET_EMBEDDING,
    progress: Progress = lambda step: None,
) -> list[Measurement]:
    """Run `repeats` inferences of random ids and say what each took.

    model: a quantised folder, or a shape, of which a random model is made with `profile` and
    `embedding`; those mean nothing for a folder.

    Raises:
        TransportError: a process did not start.
        UsageError: more tokens than the model reads.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(model, Path):
            progress("making a random model")
        folder = stack.enter_context(_folder(model, n_tokens, profile, embedding))
        progress("starting dealer and assistant")
        client = stack.enter_context(local(folder, n_threads=n_threads))
        progress(f"dealing {repeats + 1} inferences")
        dealt = client.stock(n_tokens, repeats + 1)
        times = {serial: (one.seconds, one.cpu_s) for serial, one in dealt.items()}
        random = np.random.default_rng(0)
        n_vocab = client.public.architecture.n_vocab
        found = []
        for number in range(repeats + 1):
            progress(f"inference {number} of {repeats}" if number else "one that does not count")
            ids = random.integers(0, n_vocab, n_tokens).tolist()
            found.append(_one(client, ids, times))
        return found[1:]


def _one(client: Client, ids: list[int], dealt: dict[int, tuple[float, float]]) -> Measurement:
    ask = client.classify_ids if client.public.architecture.labels else client.embed_ids
    start_s = time.perf_counter()
    result = ask(ids, allow_longer=True)
    answer_s = time.perf_counter() - start_s
    cost: Cost = result.cost
    deal_s, deal_cpu_s = dealt[result.serial]
    return Measurement(
        n_tokens=cost.n_tokens,
        n_rounds=cost.n_rounds,
        offline_bytes=cost.offline_bytes,
        embedding_bytes=cost.embedding_bytes,
        online_bytes=cost.online_bytes,
        deal_s=deal_s,
        deal_cpu_s=deal_cpu_s,
        prepare_s=cost.prepare_s,
        online_s=cost.online_s,
        p1_cpu_s=cost.cpu_s,
        p2_cpu_s=cost.assistant_cpu_s,
        answer_s=answer_s,
    )


@contextlib.contextmanager
def _folder(
    model: Path | Architecture, n_tokens: int, profile: Profile, embedding: str
) -> Iterator[Path]:
    if isinstance(model, Path):
        yield model
        return
    random = np.random.default_rng(0)
    texts = random.integers(0, model.n_vocab, (_N_CALIBRATION, n_tokens)).tolist()
    whole = random_model(model, seed=0)
    integers = quantise(whole, calibrate(whole, texts), profile, embedding=embedding)
    with tempfile.TemporaryDirectory(prefix="veilrun-mpc-") as folder:
        files.save(integers, _NO_TOKENIZER, Path(folder) / "model")
        yield Path(folder) / "model"
