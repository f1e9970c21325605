"""The selectors that an evaluation sets side by side, by the names that tables show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from veilrun.errors import UsageError
from veilrun.tune.scenario import Scenario
from veilrun.tune.selector import MetaSelector
from veilrun.tune.selectors.base import Selector
from veilrun.tune.selectors.boosting import Boosting
from veilrun.tune.selectors.clusters import Clusters
from veilrun.tune.selectors.factors import Factors
from veilrun.tune.selectors.forest import Forest
from veilrun.tune.selectors.knn import Neighbours
from veilrun.tune.selectors.law import Law, tells_work
from veilrun.tune.selectors.pairwise import Pairwise
from veilrun.tune.selectors.texts import Texts
from veilrun.tune.sentences import embedder

OURS: Final = "veilrun"


def selectors(
    scenario: Scenario, encoder: Path | None = None, only: Sequence[str] | None = None
) -> dict[str, Selector]:
    """Ours, and those it is compared with; the one that reads only where there are sentences.

    encoder: see `sentences`; without one, letters stand in for meaning.

    Raises:
        UsageError: `only` names one that there is not.
    """
    every: dict[str, Selector] = {
        OURS: MetaSelector(),
        **({"law": Law()} if tells_work(scenario) else {}),
        "forest": Forest(),
        "pairwise forest": Pairwise(),
        "boosting": Boosting(),
        "k-NN (ARGOSMART)": Neighbours(),
        "clusters (ISAC)": Clusters(),
        "factors (ALORS)": Factors(),
    }
    if scenario.task_texts and scenario.arm_texts:
        reader = Texts() if encoder is None else Texts(embedder(encoder))
        every["text embedding (MetaInf)"] = reader
    if not only:
        return every
    unknown = set(only) - set(every)
    if unknown:
        raise UsageError(f"no selector is called {sorted(unknown)[0]!r}; {', '.join(every)} are")
    return {name: one for name, one in every.items() if name in only}
