"""Made-up tables for the tuner's tests."""

from __future__ import annotations

import numpy as np

from veilrun.tune.scenario import Scale, Scenario, Status


def table(results, features=None, *, scale=Scale.LATENCY, status=None, **more) -> Scenario:
    """A scenario around [n, k] results; nan means missing."""
    results = np.asarray(results, np.float64)
    n, k = results.shape
    features = np.zeros((n, 1)) if features is None else np.asarray(features, np.float64)
    if status is None:
        status = np.where(np.isnan(results), Status.MISSING, Status.OK)
    if scale is Scale.RUNTIME:
        more = {"cutoff": 100.0} | more
    return Scenario(
        name="made up",
        scale=scale,
        tasks=tuple(f"task {i}" for i in range(n)),
        arms=tuple("abcdefgh"[:k]),
        results=results,
        status=status.astype(np.object_),
        feature_names=tuple(f"f{i}" for i in range(features.shape[1])),
        features=features,
        **more,
    )


def decided(n=160, *, told=True, seed=0, **more) -> Scenario:
    """Three arms; one takes a third of the others' time, and features tell which, or not."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n, p=(0.5, 0.3, 0.2))
    seconds = np.exp(rng.normal(0, 0.05, (n, 3)) + rng.normal(0, 2, (n, 1)))
    seconds[np.arange(n), kind] /= 3
    features = rng.normal(0, 1, (n, 3))
    if told:
        features[:, 0] += 6 * kind
    names = ("short", "long", "shared")
    more = {
        "task_texts": tuple(f"requests that are {names[one if told else 0]}" for one in kind),
        "arm_texts": ("one by one", "all together", "with a cache"),
        "groups": {"kind": tuple(names[one] for one in kind)},
    } | more
    return table(seconds, features, **more)
