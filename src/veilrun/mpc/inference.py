"""One inference, from end to end, for each machine: what `roles` drive and tests simulate.

    plan      what it needs, from the public model and the number of tokens
    deal      the dealer's part, offline
    run       a party's part, online
    predict   the twin's

The entry, [n_tokens, hidden] in the linear ring, is shares of embedding rows where the embedding
is secret; where it is public, it is normalised rows of which party 1, the client, holds all.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from veilrun.mpc import network
from veilrun.mpc.gates.reveal import Revealed
from veilrun.mpc.machines.dealer import Dealer, Write
from veilrun.mpc.machines.party import Party
from veilrun.mpc.machines.tracer import Tracer
from veilrun.mpc.machines.twin import LowBits, Overflow, Twin
from veilrun.mpc.model.quantised import SECRET_EMBEDDING, PublicModel, QuantisedModel
from veilrun.mpc.native import Kernel
from veilrun.mpc.operations import Operations
from veilrun.mpc.plan import Plan
from veilrun.mpc.prg import Stream
from veilrun.mpc.shares import Array, Shared, dtype_of
from veilrun.mpc.tape.recorder import Recorder
from veilrun.mpc.tape.tape import Loaded, Tape
from veilrun.mpc.weights import Matrix
from veilrun.transport.rounds import Protocol


@final
@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the client learns.

    output: float64 [n_labels] logits, or [hidden] mean of the hidden states over the tokens.
    integers: the same as the protocol gives it.
    flagged: table -> how many values came near the end of its window, over all its uses; empty is
        as it should be.
    """

    output: npt.NDArray[np.float64]
    integers: npt.NDArray[np.int64]
    flagged: dict[str, int]


def program(ops: Operations, public: PublicModel, entry: Shared) -> Protocol[Revealed]:
    """The whole network on an entry."""
    a = public.architecture
    if public.embedding == SECRET_EMBEDDING:
        x = yield from network.embed_secretly(ops, public.profile, entry)
    else:
        x = yield from network.embed_publicly(ops, entry)
    shape = network.Shape(a.n_heads, public.anchors, public.neurons)
    x = yield from network.encode(ops, public.profile, shape, x)
    if a.head_activation is None:
        return (yield from network.pool(ops, x))
    return (yield from network.classify(ops, public.profile, x))


def plan(public: PublicModel, n_tokens: int) -> Plan:
    """What one inference of this length needs; the same for everybody."""
    tracer = Tracer(public.outputs, public.tables)
    finish(program(Operations(tracer), public, tracer.shared(*_entry(public, n_tokens))))
    return tracer.plan


def deal(
    model: DealerModel,
    n_tokens: int,
    streams: tuple[Stream, Stream],
    writes: tuple[Write, Write],
    tweak: bytes,
) -> None:
    """Write both parties' material, as `plan` lists it."""
    dealer = Dealer(model.matrices, model.constants, model.public.tables, streams, writes, tweak)
    entry = dealer.unknown(*_entry(model.public, n_tokens))
    finish(program(Operations(dealer), model.public, entry))


def run(public: PublicModel, party: Party, entry: Array) -> Protocol[Answer | None]:
    """A party's part. entry: its share. Party 1 gets the answer."""
    n_tokens = len(entry)
    revealed = yield from program(
        Operations(party), public, Shared(entry, public.profile.rings.linear)
    )
    flags = [(name, flag.bits) for name, flag in party.flags]
    return answer(public, revealed, flags, n_tokens)


def record(
    public: PublicModel,
    plan: Plan,
    index: int,
    matrices: Mapping[str, Matrix],
    n_tokens: int,
    kernel: Kernel,
    n_threads: int = 1,
) -> Tape:
    """A party's part at the plan's length, for any number of runs. kernel: with AES."""
    recorder = Recorder(kernel, plan, [_entry(public, n_tokens)], n_threads)
    party = Party(
        index, matrices, public.tables, recorder.correlations, bytes(16), arithmetic=recorder
    )
    (cells,) = recorder.entries
    entry = Shared(cells, public.profile.rings.linear)
    return recorder.tape(party, program(Operations(party), public, entry))


def play(public: PublicModel, tape: Tape, loaded: Loaded, entry: Array) -> Protocol[Answer | None]:
    """`run`, from a tape."""
    revealed = yield from loaded.run(entry)
    return answer(public, revealed, tape.flags, len(entry))


def predict(model: TwinModel, entry: Array, low_bits: LowBits) -> tuple[Answer, list[Overflow]]:
    """The twin's answer to a whole entry (int64), and what left its range on the way."""
    public = model.public
    twin = Twin(model.matrices, model.constants, public.tables, low_bits)
    start = Shared(entry, public.profile.rings.linear)
    revealed = finish(program(Operations(twin), public, start))
    flags = [(name, flag.bits) for name, flag in twin.flags]
    result = answer(public, revealed, flags, len(entry))
    if result is None:
        raise AssertionError("the twin reveals to itself")
    return result, twin.overflows


@final
class DealerModel:
    """A quantised model in the dealer's rings, made once and used for every inference."""

    def __init__(self, model: QuantisedModel, n_threads: int = 1) -> None:
        bits = model.public.profile.rings.linear
        self.public = model.public
        self.matrices: dict[str, Matrix] = {
            name: matrix.in_ring(bits, n_threads) for name, matrix in model.private.matrices.items()
        }
        self.constants = {
            name: constant.astype(dtype_of(bits))
            for name, constant in model.private.constants.items()
        }


@final
class TwinModel:
    """A quantised model over the integers, made once and used for every inference."""

    def __init__(self, model: QuantisedModel) -> None:
        self.public = model.public
        self.matrices: dict[str, Matrix] = {
            name: matrix.exact() for name, matrix in model.private.matrices.items()
        }
        self.constants = model.private.constants


def tweak_of(digest: bytes, serial: int) -> bytes:
    """The public 16 bytes that make the point functions' hash this inference's own."""
    return hashlib.sha256(b"veilrun mpc tweak" + digest + struct.pack("<Q", serial)).digest()[:16]


def answer(
    public: PublicModel, revealed: Revealed, flags: Sequence[tuple[str, int]], n_tokens: int
) -> Answer | None:
    """What the revealed integers say: the output's, then one count for each of `flags`."""
    if revealed is None:
        return None
    integers = revealed[0].reshape(-1)
    scale = public.output_scale
    if public.architecture.head_activation is None:
        scale *= n_tokens
    flagged: Counter[str] = Counter()
    for (name, bits), count in zip(flags, revealed[1:], strict=True):
        flagged[name] += int(count) % (1 << bits)  # a count has no sign
    return Answer(integers / scale, integers, {name: n for name, n in flagged.items() if n})


def finish(protocol: Protocol[Any]) -> Any:
    """Run a machine that has no peer to its end."""
    try:
        next(protocol)
    except StopIteration as end:
        return end.value
    raise AssertionError("only parties wait for a peer")


def _entry(public: PublicModel, n_tokens: int) -> tuple[tuple[int, int], int]:
    return (n_tokens, public.architecture.hidden), public.profile.rings.linear
