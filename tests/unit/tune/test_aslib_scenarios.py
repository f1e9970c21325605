"""The selectors on real tables from the research on algorithm selection, with those tables' own
folds.

Where fewer trees than by default do, there are fewer, and of the largest table every third task, so
that it ends in a minute or two.
"""

from __future__ import annotations

import numpy as np
import pytest

from veilrun.tune import aslib
from veilrun.tune.evaluation import evaluate
from veilrun.tune.selector import MetaSelector

OURS, FEWER, FEWEST = (MetaSelector(n_trees=n) for n in (90, 40, 24))


@pytest.fixture(scope="module")
def folders(shared):
    folder = shared / "data" / "aslib"
    if not folder.is_dir():
        pytest.skip("needs the ASlib scenarios (../shared/data/aslib), which are not here")
    return folder


def test_cpmp_closes_more_of_the_gap_than_a_generic_forest(folders):
    result = evaluate(aslib.read(folders / "CPMP-2015"), {"ours": FEWER}, "folds")
    # PAR10 in seconds as other programs find it: reader, folds and charges are right
    assert result.of("oracle").mean_loss == pytest.approx(227.6, abs=0.1)
    assert result.of("single best").mean_loss == pytest.approx(7002.9, abs=0.1)
    assert result.of("ours").closed_gap >= 0.28
    assert sum(fold.is_worse for fold in result.of("ours").folds) <= 1


def test_weka_is_left_alone_where_nothing_sure_is_learnt(folders):
    result = evaluate(aslib.read(folders / "OPENML-WEKA-2017"), {"ours": OURS}, "folds")
    assert result.of("ours").closed_gap >= 0
    assert not any(fold.is_worse for fold in result.of("ours").folds)


def test_bnsl_pays_for_its_features_and_gains_all_the_same(folders):
    scenario = aslib.read(folders / "BNSL-2016")
    assert scenario.feature_cost is not None and scenario.feature_cost.max() > 0
    part = scenario.rows(np.arange(0, len(scenario.tasks), 3))
    result = evaluate(part, {"ours": FEWEST}, "folds")
    assert result.of("ours").closed_gap > 0.6
    assert not any(fold.is_worse for fold in result.of("ours").folds)
