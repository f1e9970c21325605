"""Features as a learner can take them: no holes, no constants, nothing learnt from test rows.

1. What is not finite is a hole; finite values are cut at +-1e30, which a float32 still holds.
2. A hole becomes the column's median over the training rows; a column that had holes in training
   gets a second column that says where they are.
3. Columns that are constant over the training rows are dropped, and so are those that the caller
   names: parts of the work (`tune.works`) are for the learner that adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from veilrun.tune.scenario import Bools, Floats

_LARGEST: Final = 1e30


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """median [d]; marked [d]: columns with holes in training; kept [d + marked]; mean, scale of
    those.
    """

    median: Floats
    marked: Bools
    kept: Bools
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, features: Floats, without: Bools | None = None) -> Preparation:
        """Learn medians, holes and spreads from these rows, [n, d]. without: [d], to be dropped."""
        holes = ~np.isfinite(features)
        dropped = np.zeros(features.shape[1], np.bool_) if without is None else without
        median = np.zeros(features.shape[1])
        for j in np.flatnonzero(~holes.all(0)):
            median[j] = np.median(np.clip(features[~holes[:, j], j], -_LARGEST, _LARGEST))
        marked: Bools = np.asarray(holes.any(0) & ~dropped)
        filled = _fill(features, median, marked)
        kept: Bools = np.asarray((filled != filled[:1]).any(0))
        kept[: len(dropped)] &= ~dropped
        scale = filled[:, kept].std(0)
        return cls(median, marked, kept, filled[:, kept].mean(0), np.where(scale > 0, scale, 1.0))

    def apply(self, features: Floats) -> Floats:
        """[m, d] -> [m, d']; one column of zeros where none is left."""
        filled = _fill(features, self.median, self.marked)[:, self.kept]
        return filled if filled.shape[1] else np.zeros((len(features), 1))

    def standardise(self, features: Floats) -> Floats:
        """As `apply`, each column with mean 0 and standard deviation 1 over the training rows."""
        if not self.kept.any():
            return np.zeros((len(features), 1))
        return (self.apply(features) - self.mean) / self.scale


def _fill(features: Floats, median: Floats, marked: Bools) -> Floats:
    holes = ~np.isfinite(features)
    values = np.clip(np.where(holes, median, features), -_LARGEST, _LARGEST)
    return np.hstack([values, holes[:, marked].astype(np.float64)])
