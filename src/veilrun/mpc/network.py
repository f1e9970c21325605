"""The network, once, over the operations: a BERT encoder of post-norm layers, 15 rounds each.

Read with `profile`, which gives the widths. Between layers goes y, the normalised row: a norm's
gain and bias are folded into the matrices that read it, so that no product with them is left.

Rounds of a layer:   1 q, k, v        2 score indexes, v again   3 e, row-sum indexes
                     4 context, 1/S   5 normalised context       6-9 norm
                    10 GELU indexes  11 GELU outputs            12-15 norm

A norm: h; variance index; 1/sigma; y.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from veilrun.mpc.gates.reveal import Revealed
from veilrun.mpc.operations import Operations
from veilrun.mpc.profile import Profile
from veilrun.mpc.shares import Array, Masked, Shared
from veilrun.transport.rounds import Protocol


@dataclass(frozen=True, slots=True)
class Shape:
    """What of the model the network needs.

    anchors: per layer and head, what scores are taken relative to (`operations.ANCHORS`).
    neurons: per layer, how many neurons of the feed-forward part share each GELU table; the
    owner orders them by the window that they need.
    """

    n_heads: int
    anchors: tuple[tuple[str, ...], ...]
    neurons: tuple[tuple[int, ...], ...]


def embed_secretly(ops: Operations, profile: Profile, row: Shared) -> Protocol[Masked]:
    """Shared rows of the embedding table, plus private positions, normalised: y. 4 rounds."""
    h = ops.add(row, ops.constant("position", row.shape, row.bits))
    h = ops.window(h, row.bits, "embedding")
    return (yield from _norm(ops, profile, h, "norm"))


def embed_publicly(ops: Operations, y: Shared) -> Protocol[Masked]:
    """Rows that the client normalised itself: y. 1 round."""
    (x,) = yield from ops.open(y)
    return x


def encode(ops: Operations, profile: Profile, shape: Shape, x: Masked) -> Protocol[Masked]:
    """All layers. x: y of the embedding [n_tokens, hidden]."""
    for number in range(len(shape.neurons)):
        x = yield from _layer(ops, profile, shape, number, x)
    return x


def classify(ops: Operations, profile: Profile, x: Masked) -> Protocol[Revealed]:
    """The head on the first row: logits [1, n_labels], and the counts of the guards. 3 rounds."""
    z = ops.linear((x.moved(lambda rows: rows[:1]), "head_dense"))
    z = ops.window(z, profile.windows.head, "head")
    (index,) = yield from ops.open(ops.index(z, "head"))
    (x,) = yield from ops.open(ops.lookup("head", index))
    logits = ops.linear((x, "head_out"))
    return (yield from ops.reveal(logits, *_flags(ops)))


def pool(ops: Operations, x: Masked) -> Protocol[Revealed]:
    """The sum of all rows [1, hidden], and the counts of the guards. 1 round."""
    total = ops.sum(ops.linear((x, "pool")), axis=0)
    total = ops.window(total, total.bits, "pool")
    return (yield from ops.reveal(total, *_flags(ops)))


def _layer(
    ops: Operations, profile: Profile, shape: Shape, number: int, x: Masked
) -> Protocol[Masked]:
    name = f"layer_{number}"
    context = yield from _attention(ops, profile, shape, number, x)
    h = ops.linear((context, f"{name}.out"), (x, f"{name}.residual_1"))
    x = yield from _norm(ops, profile, h, f"{name}.norm_1")
    z = ops.linear((x, f"{name}.up"))
    hidden = yield from _gelu(ops, profile, shape.neurons[number], name, z)
    h = ops.linear((hidden, f"{name}.down"), (x, f"{name}.residual_2"))
    return (yield from _norm(ops, profile, h, f"{name}.norm_2"))


def _attention(
    ops: Operations, profile: Profile, shape: Shape, number: int, x: Masked
) -> Protocol[Masked]:
    """softmax(q k + c) v for all heads: [n_tokens, hidden]. 5 rounds."""
    name, n_heads, rings = f"layer_{number}", shape.n_heads, profile.rings
    d = x.shape[-1]

    def heads(rows: Array) -> Array:  # [n_tokens, d] -> [n_heads, n_tokens, d / n_heads]
        return rows.reshape(len(rows), n_heads, -1).transpose(1, 0, 2)

    def rows(heads: Array) -> Array:
        return heads.transpose(1, 0, 2).reshape(-1, d)

    # 1: q, k, v
    z = ops.linear((x, f"{name}.qkv"))
    q, k, v = (z.moved(lambda a, i=i: a[:, i * d : (i + 1) * d]) for i in range(3))  # type: ignore[misc]
    by = rings.linear - rings.scores
    q_open, k_open, v_open = yield from ops.open(
        ops.shrink(q, by),
        ops.shrink(k, by),
        ops.lift(ops.shrink(v, profile.values_shift)),
    )
    q_heads, k_heads = q_open.moved(heads), k_open.moved(heads)

    # 2: score indexes; v in the ring of linear layers
    scores = ops.product(q_heads, k_heads.moved(lambda a: a.transpose(0, 2, 1)))
    scores = ops.anchored(scores, shape.anchors[number])
    scores = ops.add(scores, ops.constant(f"{name}.score", (n_heads, 1, 1), rings.scores))
    scores = ops.window(scores, rings.scores, f"{name}.score")
    index, v_open = yield from ops.open(
        ops.index(scores, f"{name}.exp"),
        ops.value(ops.extend(v_open, rings.linear)),
    )

    # 3: e = exp(score); indexes of row sums
    e = ops.lookup(f"{name}.exp", index)
    row_sum = ops.window(
        ops.sum(e, -1), profile.windows.row_sum, f"{name}.row_sum", is_signed=False
    )
    e_open, sum_index = yield from ops.open(e, ops.index(row_sum, "reciprocal"))

    # 4: the context before it is normalised; 1 / row sum
    context = ops.window(ops.product(e_open, v_open.moved(heads)), rings.linear, f"{name}.context")
    c_open, reciprocal = yield from ops.open(
        ops.lift(ops.shrink(context, profile.hidden_shift)),
        ops.lookup("reciprocal", sum_index),
    )

    # 5: the context
    context = ops.times(ops.extend(c_open, rings.wide), reciprocal)
    (context_open,) = yield from ops.open(ops.shrink(context, profile.wide_shift))
    return context_open.moved(rows)


def _gelu(
    ops: Operations, profile: Profile, neurons: tuple[int, ...], name: str, z: Shared
) -> Protocol[Masked]:
    """GELU(z), [n_tokens, intermediate], by the table of each group of neurons. 2 rounds."""
    tables = [f"{name}.gelu_{group}" for group in range(len(neurons))]
    z = ops.window(z, profile.windows.gelu, f"{name}.gelu")
    (index,) = yield from ops.open(ops.index(z, tables[0]))  # of one width in all groups
    ends = itertools.accumulate(neurons)
    outputs = [
        ops.lookup(table, index.moved(lambda a, end=end, n=n: a[:, end - n : end]))  # type: ignore[misc]
        for table, n, end in zip(tables, neurons, ends, strict=True)
    ]
    (hidden,) = yield from ops.open(ops.joined(outputs, axis=-1))
    return hidden


def _norm(ops: Operations, profile: Profile, h: Shared, name: str) -> Protocol[Masked]:
    """y = h / sigma; h has mean 0 by its weights. 4 rounds."""
    (h_open,) = yield from ops.open(ops.lift(ops.shrink(h, profile.hidden_shift)))
    h_wide = ops.extend(h_open, profile.rings.wide)
    window = profile.windows.variance
    variance = ops.window(ops.squares(h_wide), window, f"{name}.variance", is_signed=False)
    (index,) = yield from ops.open(ops.index(variance, name))
    (inverse,) = yield from ops.open(ops.lookup(name, index))
    y = ops.shrink(ops.times(h_wide, inverse), profile.wide_shift)
    (y_open,) = yield from ops.open(y)
    return y_open


def _flags(ops: Operations) -> list[Shared]:
    return [n_flagged for _, n_flagged in ops.machine.flags]
