"""description.txt of an ASlib folder: YAML that says what the tables beside it hold.

    scenario_id: CPMP-2015
    performance_measures: [runtime]     several are allowed: the first counts
    performance_type: [runtime]         or solution_quality
    maximize: [false]
    algorithm_cutoff_time: 3600         seconds; of runtimes only
    metainfo_algorithms: {astar: {configuration: '', deterministic: true}}
    feature_steps: {orig: {provides: [stacks, tiers]}}
    veilrun:                            ours alone: what ASlib has no word for
      scale: latency                    one of `Scale`
      default: astar
      arm_texts: [an arm in a sentence]

Where a list is expected, a plain value will do, as older folders have it; these also list arms
under algorithms_deterministic and algorithms_stochastic. `?` and null mean that nothing is said.

Source: Bischl et al., ASlib, arXiv 1506.02465.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from veilrun import atomic
from veilrun.errors import DecodeError, UsageError
from veilrun.tune.scenario import Scale, Scenario, Status

STEP: Final = "all"
"""The one feature step of the folders that we write."""

MEASURES: Final = {Scale.RUNTIME: "runtime", Scale.LATENCY: "latency_s", Scale.QUALITY: "quality"}
"""What the column of results is called in the folders that we write."""

_OWN: Final = "veilrun"


@dataclass(frozen=True, slots=True)
class Description:
    """sign: -1 for a quality to be made small. steps: the features that each feature step gives."""

    name: str
    scale: Scale
    measure: str
    sign: float
    cutoff: float | None
    arms: tuple[str, ...]
    steps: Mapping[str, tuple[str, ...]]
    default: str | None
    arm_texts: tuple[str, ...]


def read(path: Path) -> Description:
    """What the file says.

    Raises:
        UsageError: there is no such file.
        DecodeError: it is not YAML, or contradicts itself.
    """
    fields = _yaml(path)
    own = _mapping(fields, _OWN, path)
    kind = _one_of(fields, "performance_type", ("runtime", "solution_quality"), path)
    is_high_good = _one_of(fields, "maximize", ("true", "false"), path) == "true"
    is_time = kind == "runtime"
    if is_time and is_high_good:
        raise DecodeError(f"{path}: maximize is true for runtimes")
    scale = Scale.RUNTIME if is_time else Scale.QUALITY
    if own:
        scale = Scale(_one_of(own, "scale", tuple(one.value for one in Scale), path))
    steps = _mapping(fields, "feature_steps", path)
    measures = _names(fields, "performance_measures", path)
    if not measures:
        raise DecodeError(f"{path} names no performance_measures")
    return Description(
        name=str(fields.get("scenario_id") or path.parent.name),
        scale=scale,
        measure=measures[0],
        sign=1.0 if is_time or is_high_good else -1.0,
        cutoff=_cutoff(fields, path) if scale is Scale.RUNTIME else None,
        arms=tuple(_mapping(fields, "metainfo_algorithms", path))
        or (
            *_names(fields, "algorithms_deterministic", path),
            *_names(fields, "algorithms_stochastic", path),
        ),
        steps={step: _names(_mapping(steps, step, path), "provides", path) for step in steps},
        default=str(own["default"]) if "default" in own else None,
        arm_texts=_names(own, "arm_texts", path),
    )


def write(path: Path, scenario: Scenario) -> float:
    """Describe a table; gives the cutoff that is written, in seconds.

    A table without a cutoff gets twice its slowest run that was ok: ASlib has no runtimes without.
    """
    slowest = float(scenario.results[scenario.status == Status.OK].max(initial=0.0))
    cutoff = float(scenario.cutoff or 2 * slowest or 1.0)
    is_time = scenario.scale is not Scale.QUALITY
    own: dict[str, Any] = {"scale": scenario.scale.value}
    if scenario.default is not None:
        own["default"] = scenario.default
    if scenario.arm_texts:
        own["arm_texts"] = list(scenario.arm_texts)
    names = list(scenario.feature_names)
    fields = {
        "scenario_id": scenario.name,
        "performance_measures": [MEASURES[scenario.scale]],
        "performance_type": ["runtime" if is_time else "solution_quality"],
        "maximize": [not is_time],
        "algorithm_cutoff_time": cutoff if is_time else "?",
        "algorithm_cutoff_memory": "?",
        "features_cutoff_time": "?",
        "features_cutoff_memory": "?",
        "features_deterministic": names,
        "features_stochastic": [],
        "metainfo_algorithms": {
            arm: {"configuration": "", "deterministic": True} for arm in scenario.arms
        },
        "number_of_feature_steps": 1,
        "feature_steps": {STEP: {"provides": list(names)}},
        "default_steps": [STEP],
        _OWN: own,
    }
    atomic.write_file(path, yaml.safe_dump(fields, sort_keys=False, width=math.inf).encode())
    return cutoff


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        # This loader makes texts, lists and mappings only: an arm called 010 keeps its name.
        fields = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)  # noqa: S506
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return _mapping({path.name: fields}, path.name, path)


def _mapping(fields: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value):
        raise DecodeError(f"{path}: {name} does not hold names and values")
    return value


def _names(fields: Mapping[str, Any], name: str, path: Path) -> tuple[str, ...]:
    value = fields.get(name, [])
    if value in ("", "?", "null", "~"):
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise DecodeError(f"{path}: {name} is not a list of names")
    return tuple(values)


def _one_of(fields: Mapping[str, Any], name: str, allowed: tuple[str, ...], path: Path) -> str:
    """The first of the words under `name`."""
    word = (*_names(fields, name, path), "?")[0].lower()
    if word not in allowed:
        raise DecodeError(f"{path}: {name} is {word[:40]}, not one of {', '.join(allowed)}")
    return word


def _cutoff(fields: Mapping[str, Any], path: Path) -> float:
    text = str(fields.get("algorithm_cutoff_time", "?"))
    try:
        cutoff = float(text)
    except ValueError:
        cutoff = math.nan
    if not 0 < cutoff < math.inf:
        raise DecodeError(f"{path}: algorithm_cutoff_time is {text[:40]}, not a time above 0")
    return cutoff
