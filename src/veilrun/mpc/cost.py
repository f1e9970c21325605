"""What an inference costs, before it runs: bytes and rounds exactly, seconds as an estimate.

Bytes and rounds follow from the plan, which follows from the public model and the number of
tokens. They are those of frames; a channel adds 8 bytes and TLS some 30 to each.

    offline     before there is an input: dealer -> party 1, dealer -> party 2
    embedding   only where it is secret: party 1 -> dealer and -> party 2, dealer -> party 1
    online      party 1 <-> party 2

Seconds = latency x rounds + bytes of the busier direction / rate + computing. Computing is counted
as multiplications, hashes of point functions, opened values and rounds, and priced by a short
probe of this machine's kernels (`measure`): good to a factor of about 1.5 online and 2 offline.
Each party computes on a machine like this one, and both at the same time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from veilrun.errors import UsageError
from veilrun.mpc import dpf, elementwise, embedding, inference, ring
from veilrun.mpc.dpf import Domain
from veilrun.mpc.model.architecture import Architecture
from veilrun.mpc.model.public import is_diagonal, matrix_shapes, table_forms
from veilrun.mpc.model.quantise import neuron_groups
from veilrun.mpc.model.quantised import SECRET_EMBEDDING, PublicModel
from veilrun.mpc.operations import NO_ANCHOR
from veilrun.mpc.plan import Keys, Plan, Share
from veilrun.mpc.prg import KEY_BYTES, Stream
from veilrun.mpc.profile import Profile
from veilrun.mpc.shares import Array, dtype_of, wrap
from veilrun.transport.memory import LAN, WAN, Link

NETWORKS: Final[Mapping[str, Link]] = {"lan": LAN, "wan": WAN}
"""1 ms and 3 Gbit/s; 10 ms and 400 Mbit/s: those that published costs are mostly quoted for."""

BERT_BASE: Final = Architecture(
    family="bert",
    n_layers=12,
    n_heads=12,
    hidden=768,
    intermediate=3072,
    n_vocab=30522,
    n_positions=512,
    position_offset=0,
    head_activation="tanh",
    n_labels=2,
    labels=("LABEL_0", "LABEL_1"),
)

_EMBEDDING_ROUNDS: Final = 2
_PROBE_S: Final = 0.05
_PROBE_SHAPE: Final = (2048, 4096)  # more than caches hold, as a model's matrices are
_PROBE_KEYS: Final = 2048
_PROBE_VALUES: Final = 1 << 16
_OPENINGS_PER_ROUND: Final = 6
_DEALINGS_PER_ROUND: Final = 40
"""What the fixed cost of a round's calls comes to, online in openings of a single value, for the
dealer in dealings of one; measured."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed. Of a party, online: n_macs, multiplications with the weights and of
    attention; n_hashes, of point functions; n_values, opened ones. Of the dealer, offline:
    n_dealt_macs, n_keys, n_dealt_values. Of either server of the embedding: n_embedding_macs
    and n_embedding_hashes.
    """

    n_macs: int
    n_hashes: int
    n_values: int
    n_dealt_macs: int
    n_keys: int
    n_dealt_values: int
    n_embedding_macs: int
    n_embedding_hashes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """The cost of one inference of n_tokens.

    setup_bytes: once per model, dealer to party 2: its shares of the weights, and of the
        embedding table where that is secret, at the width of the linear ring.
    to_p1_bytes, to_p2_bytes: offline, from the dealer.
    question_bytes: of the embedding, from party 1 to the dealer, and as many to party 2.
    answer_bytes: of the embedding, from the dealer to party 1.
    p1_to_p2_bytes, p2_to_p1_bytes: online.
    n_embedding_rounds, n_online_rounds: messages that wait for one another.
    """

    n_tokens: int
    setup_bytes: int
    to_p1_bytes: int
    to_p2_bytes: int
    question_bytes: int
    answer_bytes: int
    p1_to_p2_bytes: int
    p2_to_p1_bytes: int
    n_embedding_rounds: int
    n_online_rounds: int
    work: Work

    @property
    def offline_bytes(self) -> int:
        return self.to_p1_bytes + self.to_p2_bytes

    @property
    def embedding_bytes(self) -> int:
        return 2 * self.question_bytes + self.answer_bytes

    @property
    def online_bytes(self) -> int:
        return self.p1_to_p2_bytes + self.p2_to_p1_bytes

    @property
    def total_bytes(self) -> int:
        """Of everything that is needed anew for each inference."""
        return self.offline_bytes + self.embedding_bytes + self.online_bytes

    def to_json(self) -> dict[str, Any]:
        """The bytes and rounds by name, with their sums."""
        body = {name: value for name, value in asdict(self).items() if name != "work"}
        sums = ("offline_bytes", "embedding_bytes", "online_bytes", "total_bytes")
        return body | {name: getattr(self, name) for name in sums}


@dataclass(frozen=True, slots=True)
class Speed:
    """What one machine does in a second: multiplications mod 2^32 or 2^16 with accumulation,
    hashes of point functions, openings of values, rounds with next to no values; and dealt: keys,
    values, and rounds of them.
    """

    macs: float
    hashes: float
    values: float
    rounds: float
    dealt_keys: float
    dealt_values: float
    dealt_rounds: float


@dataclass(frozen=True, slots=True)
class Seconds:
    """Estimated time. offline: before the input is there. embedding and online: what the client
    waits for.
    """

    offline: float
    embedding: float
    online: float

    @property
    def answer(self) -> float:
        """From the text to the answer, once the material is there."""
        return self.embedding + self.online


def predict(public: PublicModel, n_tokens: int) -> Prediction:
    """Bytes, rounds and work of one inference.

    Raises:
        UsageError: more tokens than the model takes, or none.
    """
    a, bits = public.architecture, public.profile.rings.linear
    if not 1 <= n_tokens <= a.max_tokens:
        raise UsageError(f"this model takes 1 to {a.max_tokens} tokens, not {n_tokens}")
    plan = inference.plan(public, n_tokens)
    bill = plan.bill
    is_secret = public.embedding == SECRET_EMBEDDING
    word_bytes = dtype_of(bits).itemsize
    n_shared = sum(math.prod(shape) for shape in matrix_shapes(public).values())
    if is_secret:
        n_shared += a.n_vocab * a.hidden
    return Prediction(
        n_tokens=n_tokens,
        setup_bytes=n_shared * word_bytes,
        to_p1_bytes=bill.to_p1_bytes,
        to_p2_bytes=bill.to_p2_bytes,
        question_bytes=embedding.question_bytes(n_tokens, a.n_vocab, bits) if is_secret else 0,
        answer_bytes=embedding.answer_bytes(n_tokens, a.hidden, bits) if is_secret else 0,
        p1_to_p2_bytes=bill.p1_to_p2_bytes,
        p2_to_p1_bytes=bill.p2_to_p1_bytes,
        n_embedding_rounds=_EMBEDDING_ROUNDS if is_secret else 0,
        n_online_rounds=bill.n_rounds,
        work=_work(public, plan, n_tokens),
    )


def seconds(prediction: Prediction, link: Link, speed: Speed) -> Seconds:
    """The prediction on a network and machines of this speed."""
    p, work = prediction, prediction.work
    dealing = (
        work.n_dealt_macs / speed.macs
        + work.n_keys / speed.dealt_keys
        + work.n_dealt_values / speed.dealt_values
        + p.n_online_rounds / speed.dealt_rounds
    )
    looking_up = work.n_embedding_macs / speed.macs + work.n_embedding_hashes / speed.hashes
    computing = (
        work.n_macs / speed.macs
        + work.n_hashes / speed.hashes
        + work.n_values / speed.values
        + p.n_online_rounds / speed.rounds
    )
    busier = max(p.p1_to_p2_bytes, p.p2_to_p1_bytes)
    return Seconds(
        offline=link.latency_s + p.offline_bytes / link.bytes_per_s + dealing,
        embedding=p.n_embedding_rounds * link.latency_s
        + p.embedding_bytes / link.bytes_per_s
        + looking_up,
        online=p.n_online_rounds * link.latency_s + busier / link.bytes_per_s + computing,
    )


def shape_only(architecture: Architecture, profile: Profile, embedding: str) -> PublicModel:
    """A public model of this shape without content: enough for `predict`, and for nothing else."""
    neurons = (neuron_groups(architecture.intermediate),) * architecture.n_layers
    forms = table_forms(architecture, profile, embedding, neurons)
    return PublicModel(
        architecture,
        profile,
        embedding,
        ((NO_ANCHOR,) * architecture.n_heads,) * architecture.n_layers,
        neurons,
        {name: form.table() for name, form in forms.items()},
        output_scale=1.0,
        max_tokens=architecture.max_tokens,
        n_sentences=1,
    )


def measure(n_tokens: int, profile: Profile, n_threads: int = 1) -> Speed:
    """Probe this machine, a few tenths of a second: products of n_tokens rows, and look-ups."""
    random = np.random.default_rng(0)  # timing only: nothing secret is drawn
    dtype = dtype_of(profile.rings.linear)
    rows = random.integers(0, 256, (n_tokens, _PROBE_SHAPE[0])).astype(dtype)
    matrix = ring.pack(random.integers(0, 256, _PROBE_SHAPE, dtype))
    domain = Domain(profile.functions.gelu.index_bits, 8 * dtype.itemsize, n_payloads=2)
    points = np.zeros(_PROBE_KEYS, np.uint32)
    seeds = random.integers(0, 256, (2, _PROBE_KEYS, 16)).astype(np.uint8)
    payloads = np.ones((domain.n_payloads, _PROBE_KEYS), domain.dtype)
    lines = dpf.unroll(np.zeros((3, domain.size), domain.dtype), domain, (0, 0, 1))
    tweak = bytes(16)

    def deal() -> Array:
        return dpf.generate(points, seeds[0], seeds[1], domain, tweak, payloads)

    corrections = deal()

    def look_up() -> object:
        return dpf.interpolate(
            0, seeds[0], corrections, points, lines, 0, tweak, n_threads=n_threads
        )

    hidden, stream = profile.rings.hidden, Stream(bytes(KEY_BYTES), "probe")
    values = random.integers(0, 1 << hidden, _PROBE_VALUES).astype(dtype_of(hidden))
    one = values[:1]
    n_macs = n_tokens * math.prod(_PROBE_SHAPE)
    return Speed(
        macs=n_macs / _seconds_of(lambda: ring.matmul(rows, matrix, n_threads=n_threads)),
        hashes=_PROBE_KEYS * _hashes(domain) / _seconds_of(look_up),
        values=_PROBE_VALUES / _seconds_of(lambda: _open(values, hidden)),
        rounds=1 / (_OPENINGS_PER_ROUND * _seconds_of(lambda: _open(one, hidden))),
        dealt_keys=_PROBE_KEYS / _seconds_of(deal),
        dealt_values=_PROBE_VALUES / _seconds_of(lambda: _deal(stream, values, hidden)),
        dealt_rounds=1 / (_DEALINGS_PER_ROUND * _seconds_of(lambda: _deal(stream, one, hidden))),
    )


def _open(values: Array, bits: int) -> None:
    """What a party does about one value between two rounds, roughly."""
    opened = ring.add_packed(values, values, ring.pack_sum(values, values, bits), bits)
    elementwise.shrink(opened, 1, bits - 1, True)


def _deal(stream: Stream, values: Array, bits: int) -> None:
    """What the dealer does about one value: it draws one half and packs the other."""
    ring.pack_bits(wrap(values - stream.uniform(values.shape, bits), bits), bits)


def _seconds_of(job: Callable[[], object]) -> float:
    """The best of some runs: what the machine can do when nobody else is on it."""
    job()
    best = math.inf
    end = time.perf_counter() + _PROBE_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        job()
        best = min(best, time.perf_counter() - start)
    return best


def _work(public: PublicModel, plan: Plan, n_tokens: int) -> Work:
    a, bits = public.architecture, public.profile.rings.linear
    dense = sum(
        math.prod(shape) * (1 if name.startswith("head") else n_tokens)
        for name, shape in matrix_shapes(public).items()
        if not is_diagonal(name)
    )
    attention = 2 * a.n_layers * n_tokens**2 * a.hidden  # q k and e v
    keys = [one for one in plan.correlations if isinstance(one, Keys)]
    values = [math.prod(shape) for opening in plan.openings for shape, _ in opening.tensors]
    dealt = [math.prod(one.shape) for one in plan.correlations if isinstance(one, Share)]
    is_secret = public.embedding == SECRET_EMBEDDING
    return Work(
        n_macs=dense + 2 * attention,  # a product of masked values takes two
        n_hashes=sum(one.n_keys * _hashes(one.domain) for one in keys),
        n_values=sum(values),
        n_dealt_macs=dense + attention,
        n_keys=sum(one.n_keys for one in keys),
        n_dealt_values=2 * sum(values) + sum(dealt),  # of masks both halves are drawn
        n_embedding_macs=n_tokens * a.n_vocab * a.hidden if is_secret else 0,
        n_embedding_hashes=n_tokens * _hashes(embedding.domain_of(a.n_vocab, bits))
        if is_secret
        else 0,
    )


def _hashes(domain: Domain) -> int:
    """Of one key's whole expansion: one per inner node, and those of the leaves."""
    n_leaves = 1 << domain.n_levels
    return n_leaves - 1 + n_leaves * domain.n_blocks * domain.n_payloads
