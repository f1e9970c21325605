"""A trained tuner: the table it learnt from, and how it learns. No fitted model is stored.

    FOLDER/aslib/       the table, see `aslib`
    FOLDER/tuner.json   {"version": 1, "settings", "verdict", "table"}: see `selector`; `table` is
                        the SHA-256 of the table's files

Fitting again takes a second or two and needs no format for trees, and nothing in such a folder can
run code.

Invariant: a tuner that loads has the table it was trained on, to the byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from veilrun import atomic
from veilrun.errors import DecodeError, RefusedError, UsageError
from veilrun.tune import aslib
from veilrun.tune.advice import Advice, Option
from veilrun.tune.arms import Arm, Situation, by_name
from veilrun.tune.dataset import ASLIB
from veilrun.tune.records import check_machine
from veilrun.tune.scenario import Bools, Floats, Scenario
from veilrun.tune.selector import FittedMeta, MetaSelector, trial_from_json, trial_to_json
from veilrun.tune.selectors.base import Estimator, FittedEstimator, pick
from veilrun.tune.selectors.folds import by_word
from veilrun.tune.selectors.forest import Forest
from veilrun.tune.selectors.law import Law, tells_work
from veilrun.tune.selectors.trees import Trees

_FILE: Final = "tuner.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Tuner:
    """scenario: the table. fitted: the selector, which chooses.

    expected: what times are expected of every arm; a selector's own estimates only serve to choose.
    """

    scenario: Scenario
    settings: MetaSelector
    fitted: FittedMeta
    expected: FittedEstimator

    @classmethod
    def train(cls, scenario: Scenario, settings: MetaSelector, hold_out: str = "model") -> Tuner:
        """Learn from all rows. hold_out: the group that validation holds out, if there is one."""
        groups = scenario.groups.get(hold_out)
        rows = replace(scenario, folds=None if groups is None else by_word(groups))
        return cls(scenario, settings, settings.fit(rows), _estimator(scenario).fit(scenario))

    def save(self, folder: Path) -> None:
        """Write the tuner, whole or not at all.

        Raises:
            UsageError: the folder exists already.
        """
        with atomic.new_folder(folder) as new:
            aslib.write(new / ASLIB, self.scenario)
            content = {
                "version": _VERSION,
                "settings": self.settings.to_json(),
                "verdict": trial_to_json(self.fitted.verdict),
                "table": _digest(new / ASLIB),
            }
            text = json.dumps(content, indent=2) + "\n"
            (new / _FILE).write_text(text, "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tuner:
        """Read a tuner and fit it again.

        Raises:
            UsageError: there is no tuner, or its table has changed since it was trained.
            DecodeError: a file is not what it should be.
        """
        try:
            content = json.loads((folder / _FILE).read_text("utf-8"))
        except OSError as error:
            raise UsageError(f"{folder} holds no tuner: `veilrun tune train` makes one") from error
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"{folder / _FILE} is not JSON") from error
        wanted = {"version", "settings", "verdict", "table"}
        if not isinstance(content, dict) or set(content) != wanted:
            raise DecodeError(f"{folder / _FILE} does not hold {', '.join(sorted(wanted))}")
        if content["version"] != _VERSION or content["table"] != _digest(folder / ASLIB):
            raise UsageError(
                f"{folder}: the table is not the one this tuner was trained on; train it again"
            )
        settings = MetaSelector.from_json(content["settings"])
        scenario = aslib.read(folder / ASLIB)
        fitted = settings.refit(scenario, trial_from_json(content["verdict"]))
        return cls(scenario, settings, fitted, _estimator(scenario).fit(scenario))

    def advise(self, features: Mapping[str, float], text: str, situation: Situation) -> Advice:
        """An arm for this model, machine and workload, and what speaks for and against the others.

        features: by their names in the table. text: the task in a sentence.

        Raises:
            UsageError: a feature that the table has is not given, or one that it does not have is.
            RefusedError: no arm of the table may run here.
        """
        row = self._row(features)
        arms = [by_name(name) for name in self.scenario.arms]
        refused = {arm.name: situation.objections(arm) for arm in arms}
        applicable = np.array([[not refused[arm.name] for arm in arms]])
        if not applicable.any():
            raise RefusedError("no arm that the tuner knows may run here; see `veilrun tune arms`")
        chosen = int(self.fitted.choose(row, applicable, [text])[0])
        estimate = self.expected.estimate(row)
        latency = self._default_latency(row)
        expected, doubt = np.nan_to_num(estimate.mean[0]), np.nan_to_num(estimate.sd[0])
        default = list(self.scenario.arms).index(self.scenario.default or self.scenario.arms[0])
        ranked = sorted(np.flatnonzero(applicable[0]), key=lambda i: (i != chosen, expected[i]))
        options = tuple(
            _option(arms[i], expected[i] - expected[default], doubt[i], latency) for i in ranked
        )
        remarks = check_machine(self.scenario, features)
        return Advice(
            options,
            {name: reasons for name, reasons in refused.items() if reasons},
            is_guarded=self._is_guarded(row, applicable, chosen),
            remarks=tuple(remarks),
        )

    def _is_guarded(self, row: Floats, applicable: Bools, chosen: int) -> bool:
        """Whether the selector's own estimate would have said otherwise."""
        own = self.fitted.estimate(row).mean
        return int(pick(own, applicable, self.fitted.order)[0]) != chosen

    def _row(self, features: Mapping[str, float]) -> Floats:
        names = self.scenario.feature_names
        missing, unknown = set(names) - set(features), set(features) - set(names)
        if missing or unknown:
            raise UsageError(
                "the tuner was trained on other features: it lacks "
                f"{sorted(unknown) or 'none'}, and asks for {sorted(missing) or 'none'}; train it "
                "on data of this version"
            )
        return np.array([[features[name] for name in names]], dtype=np.float64)

    def _default_latency(self, row: Floats) -> float:
        """Seconds that the default arm should take, by a forest over the table's runs of it."""
        at = list(self.scenario.arms).index(self.scenario.default or self.scenario.arms[0])
        column = self.scenario.results[:, at : at + 1]
        known = np.isfinite(column[:, 0])
        forest = _TREES.grow(self.scenario.features[known], np.log(column[known, 0]))
        return float(np.exp(forest.predict(row.astype(np.float32))[0]))


_TREES: Final = Trees(100)


def _estimator(scenario: Scenario) -> Estimator:
    """Whose numbers are shown."""
    return Law(_TREES) if tells_work(scenario) else Forest(_TREES)


def _option(arm: Arm, loss: float, doubt: float, default_latency_s: float) -> Option:
    """loss: expected logarithm of this arm's latency over the default arm's."""
    gain = float(np.exp(-loss))
    return Option(arm, gain, float(np.exp(doubt)), default_latency_s / gain)


def _digest(folder: Path) -> str:
    """SHA-256 over names and contents of a table's files, in order of their names."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode())
            digest.update(content)
    except OSError as error:
        raise UsageError(f"{folder} holds no table: {error.strerror}") from error
    return digest.hexdigest()
