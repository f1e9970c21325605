"""Inversion decoder: a decoder trained on the public model's states reads those of the sealed one.

No tables and no known pairs are used. An orthogonal key turns the cloud of recorded states and
keeps its shape; the attacker's own text makes a cloud of the same shape, and the two are laid on
each other.

1. Run the public model on public text: states that enter layer `depth`, each with its token.
2. Train a decoder from state to token: two layers, softmax. Score it on own text kept back.
3. Lay the recorded states on the own ones. Two starts: as they are; and principal axis on
   principal axis, each in the direction in which the values along it are spread alike. Then
   repeat: the nearest own state of each recorded one, and the rotation that fits them best.
   The start that ends nearest is kept.
4. Decode the recorded states under that rotation.

It names only tokens that its own text has: on a split by vocabulary it scores 0. The note `unseen`
is what a linear decoder onto the base's embedding does there, on plain states.
Fails where a key is not orthogonal, where traffic is little, or unlike the public text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from veilrun.attacks.attack import Attack
from veilrun.attacks.holdings import NOBODY, Holdings, Reading
from veilrun.attacks.levels import Level
from veilrun.attacks.matching import nearest, nearest_by_cosine
from veilrun.attacks.ridge import ridge_map
from veilrun.attacks.weights import Ids, Table

N_OWN: Final = 24_000
"""States of own text that the decoder learns from."""

N_CLOUD: Final = 6_000
"""Of either side, to lay them on each other."""

ROUNDS: Final = 30
_EPOCHS: Final = 8
_BATCH: Final = 128
_WIDTH: Final = 256

Decoder = Callable[[Table], Ids]


def run(have: Holdings, depth: int = 1) -> Reading:
    """Read all recorded texts from the states that enter layer `depth` (1 is the second)."""
    sealed, base = have.running
    recorded = sealed.states(have.traffic, depth)
    seen = np.concatenate(recorded).astype(np.float64)
    own = np.concatenate(base.states(have.public_text, depth))[:N_OWN].astype(np.float64)
    tokens = np.concatenate(have.public_text)[:N_OWN]
    n = len(own) * 9 // 10
    decode = _trained(own[:n], tokens[:n], have.vocab_size)
    turn, distance = _laid_on(_some(seen), _some(own))
    ends = np.cumsum([len(text) for text in have.traffic])
    texts = np.split(decode(seen @ turn), ends[:-1])
    kept_back = own[n:], tokens[n:]
    unseen = _linear_on_unseen(own[:n], tokens[:n], kept_back, have.tables[1].embedding)
    notes = {
        "depth": depth,
        "distance": distance,
        "own text": float((decode(own[n:]) == tokens[n:]).mean()),
        "unseen": unseen,
    }
    return Reading(texts, [np.ones(len(text), bool) for text in texts], notes)


def _some(states: Table) -> Table:
    """N_CLOUD of them at most."""
    chosen: Table = states[np.random.default_rng(0).permutation(len(states))[:N_CLOUD]]
    return chosen


def _laid_on(seen: Table, own: Table) -> tuple[Table, float]:
    """The turn that takes `seen` to `own`, and how far apart they are under it."""
    starts = [_axis_on_axis(seen, own)]
    if seen.shape[1] == own.shape[1]:
        starts.append(np.eye(own.shape[1]))
    return min((_settled(seen, own, start) for start in starts), key=lambda end: end[1])


def _axis_on_axis(seen: Table, own: Table) -> Table:
    """Principal axes on principal axes, in order of their size."""
    there, here = _axes(seen), _axes(own)
    n = min(there.shape[1], here.shape[1])
    there, here = there[:, :n], here[:, :n]
    shares = np.linspace(0.01, 0.99, 99)
    along, wanted = (np.quantile(one, shares, axis=0) for one in (seen @ there, own @ here))
    # The quantiles of -x are those of x, negated and backwards.
    same, opposite = (np.abs(one - wanted).sum(0) for one in (along, -along[::-1]))
    turn: Table = there * np.where(same <= opposite, 1.0, -1.0) @ here.T
    return turn


def _axes(states: Table) -> Table:
    _, vectors = np.linalg.eigh(states.T @ states)
    largest_first: Table = vectors[:, ::-1]
    return largest_first


def _settled(seen: Table, own: Table, turn: Table) -> tuple[Table, float]:
    """Nearest points, best rotation, and again; with the mean distance, as a share of lengths."""
    found = np.full(len(seen), NOBODY)
    for _ in range(ROUNDS):
        before = found
        near, _ = nearest(seen @ turn, own)
        found = near[:, 0]
        if (found == before).all():
            break
        left, _, right = np.linalg.svd(seen.T @ own[found], full_matrices=False)
        turn = left @ right
    gaps = np.linalg.norm(seen @ turn - own[found], axis=1)
    return turn, float(gaps.sum() / np.linalg.norm(seen, axis=1).sum())


def _trained(states: Table, tokens: Ids, vocab_size: int) -> Decoder:
    """A decoder from state to token."""
    middle, spread = states.mean(0), states.std(0) + 1e-9

    def ready(rows: Table) -> torch.Tensor:
        return torch.from_numpy((rows - middle) / spread).float()

    given, wanted = ready(states), torch.from_numpy(tokens)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(states.shape[1], _WIDTH),
            torch.nn.ReLU(),
            torch.nn.Linear(_WIDTH, vocab_size),
        )
        optimizer = torch.optim.AdamW(net.parameters())
        n_steps = _EPOCHS * -(-len(given) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=n_steps)
        for _ in range(_EPOCHS):
            for batch in torch.split(torch.randperm(len(given)), _BATCH):
                loss = torch.nn.functional.cross_entropy(net(given[batch]), wanted[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()

    def decode(rows: Table) -> Ids:
        with torch.inference_mode():
            found = [net(part).argmax(1) for part in torch.split(ready(rows), _BATCH)]
        return torch.cat(found).numpy()

    return decode


def _linear_on_unseen(
    states: Table, tokens: Ids, kept_back: tuple[Table, Ids], embedding: Table
) -> float:
    """On tokens never trained on, the share that a linear decoder onto the embedding names."""
    unseen = np.random.default_rng(0).permutation(len(embedding))[: len(embedding) // 2]
    train, test = ~np.isin(tokens, unseen), np.isin(kept_back[1], unseen)
    if not train.any() or not test.any():
        return 0.0
    decoder = ridge_map(states[train], embedding[tokens[train]], 1e-4)
    found, _ = nearest_by_cosine(kept_back[0][test] @ decoder, embedding)
    return float((found[:, 0] == kept_back[1][test]).mean())


ATTACK: Final = Attack(
    name="inversion-decoder",
    title="trained decoder of states",
    levels=(Level.BASE,),
    material=("runs", "traffic"),
    knows="states of the secret texts inside the sealed model; the public model; text like theirs",
    recovers="the texts",
    breaks="states without a key, and under permutations and orthogonal keys",
    stops="a key that is not orthogonal, little traffic, traffic unlike any public text",
    source=(
        "inversion of split activations (folklore); laying clouds of states on each other is own, "
        "after unsupervised word translation"
    ),
    cost="training on 24,000 states; 6,000^2 d for each of up to 60 rounds",
    run=run,
)
