"""What a choice costs once everything is paid for."""

from __future__ import annotations

import numpy as np

from veilrun.tune.scenario import PENALTY, Bools, Floats, Ints, Scale, Scenario


def charged(scenario: Scenario, chosen: Ints, uses_features: bool | Bools) -> Floats:
    """float64 [n]: the loss of one arm a task.

    On `RUNTIME` whoever looks at features pays their cost, and a run that ends beyond the cutoff
    because of it has failed (ASlib's convention; Bischl et al., Artificial Intelligence 237, 2016).
    """
    loss = np.take_along_axis(scenario.loss, chosen[:, None], 1)[:, 0]
    if scenario.feature_cost is None or scenario.scale is not Scale.RUNTIME:
        return loss
    cutoff = scenario.cutoff or 0.0
    total = loss + np.where(uses_features, np.nan_to_num(scenario.feature_cost), 0.0)
    return np.where(total >= cutoff, PENALTY * cutoff, total)
