"""The paper's way: sentences about task and arm, embedded, then one regressor over both.

MetaInf (arXiv 2410.21340) embeds model, hardware and data set with a language model and predicts an
arm's performance; no code is public, so the form is that of the same authors' MetaOOD (arXiv
2410.03074, code read at github.com/yqin43/metaood): a row for each task and arm that ran, holding
both embeddings; boosting with 100 rounds and 21 leaves; the best prediction wins. Two of its leaks
are not copied: no early stopping on test rows, nothing scaled on them. The target is the loss
relative to the task's level.

`ngrams` stands in for a language model where none is at hand: it knows which sentences share
letters, not what they mean.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from veilrun.errors import UsageError
from veilrun.tune.scenario import Floats, Scenario
from veilrun.tune.selectors.base import ByScore, Lesson

Embedder = Callable[[Sequence[str]], Floats]
"""n sentences -> float64 [n, width]."""

_WIDTH: Final = 128
_GRAMS: Final = (3, 4, 5)


def ngrams(sentences: Sequence[str]) -> Floats:
    """Counts of 3 to 5 letters in a row, hashed into 128 signed buckets, each sentence of length
    1.
    """
    table = np.zeros((len(sentences), _WIDTH))
    for row, sentence in zip(table, sentences, strict=True):
        padded = f" {sentence.lower()} "
        for n in _GRAMS:
            for i in range(len(padded) - n + 1):
                number = zlib.crc32(padded[i : i + n].encode())
                row[number % _WIDTH] += 1.0 if number >> 31 else -1.0
    norm = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(norm > 0, norm, 1.0)


@dataclass(frozen=True, slots=True)
class Texts:
    """embed: sentences to vectors."""

    embed: Embedder = ngrams
    seed: int = 0

    def fit(self, train: Scenario) -> ByScore:
        if not train.task_texts or not train.arm_texts:
            raise UsageError(f"{train.name}: tasks and arms need a sentence each")
        train = train.rows(np.flatnonzero(train.applicable.any(1)))
        lesson = Lesson.of(train)
        tasks, arms = self.embed(train.task_texts), self.embed(train.arm_texts)
        row, arm = np.nonzero(np.isfinite(lesson.relative))
        boost = HistGradientBoostingRegressor(
            max_iter=100, max_leaf_nodes=21, early_stopping=False, random_state=self.seed
        )
        boost.fit(np.hstack([tasks[row], arms[arm]]), lesson.relative[row, arm])

        def score(features: Floats, texts: Sequence[str]) -> Floats:
            if len(texts) != len(features):
                raise UsageError(f"{len(features)} tasks came with {len(texts)} sentences")
            m, k = len(texts), len(arms)
            pairs = np.hstack([np.repeat(self.embed(texts), k, 0), np.tile(arms, (m, 1))])
            never = np.isnan(lesson.relative).all(0)
            return np.where(never, np.nan, boost.predict(pairs).reshape(m, k))

        return ByScore(score, lesson.order)
