"""Drift detectors by river's names.

``PageHinkley(mode="up")`` is compiled (``kernels/detector.py``); any other is river's own object,
one for each context, called event by event from Python. Detectors of the loss get the signal of
``kernels/detector.py``; those of ``river.drift.binary`` get whether the class was wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache

from river import base

from streammaml.config import DetectorConfig
from streammaml.errors import ConfigError
from streammaml.events import DriftLevel, Task

DEFAULTS: Mapping[Task, Mapping[str, float | int | str]] = {
    Task.CLASSIFICATION: {"min_instances": 10, "delta": 0.1, "threshold": 5.0, "mode": "up"},
    Task.REGRESSION: {"min_instances": 10, "delta": 0.5, "threshold": 5.0, "mode": "up"},
}

Parameters = dict[str, float | int | str | bool]
Detector = base.DriftDetector | base.BinaryDriftDetector


@cache
def names() -> Mapping[str, type[Detector]]:
    """River's detectors. Importing them takes half of a worker's start: only where one is used."""
    from river import drift
    from river.drift import binary

    found: dict[str, type[Detector]] = {}
    for module in (drift, binary):
        for name in module.__all__:
            kind = getattr(module, name, None)  # __all__ has names that do not exist
            if inspect.isclass(kind) and issubclass(kind, Detector):
                found[name] = kind
    return found


def parameters_of(config: DetectorConfig, task: Task) -> Parameters:
    """The detector's parameters: those given, over the task's defaults for PageHinkley.

    A detector that draws numbers has a seed, so that a replay draws the same.
    """
    if config.name == "PageHinkley":
        return {**DEFAULTS[task], **config.parameters}
    kind = names().get(config.name)
    seeded = kind is not None and "seed" in inspect.signature(kind).parameters
    return {**({"seed": 0} if seeded else {}), **config.parameters}


def is_compiled(config: DetectorConfig, task: Task) -> bool:
    return config.name == "PageHinkley" and parameters_of(config, task)["mode"] == "up"


def is_binary(config: DetectorConfig) -> bool:
    return issubclass(names()[config.name], base.BinaryDriftDetector)


def prototype(config: DetectorConfig, task: Task) -> Detector | None:
    """None where the compiled one is used, whose parameters are checked all the same."""
    compiled = is_compiled(config, task)
    if compiled and not config.parameters:
        return None
    built = build(config, task)
    return None if compiled else built


def build(config: DetectorConfig, task: Task) -> Detector:
    """Make one river detector; ConfigError names the right names and parameters."""
    kind = names().get(config.name)
    if kind is None:
        raise ConfigError(
            f"learner.detector.name: river has no drift detector {config.name!r}; "
            f"it has {', '.join(sorted(names()))}"
        )
    if task is Task.REGRESSION and is_binary(config):
        raise ConfigError(
            f"learner.detector.name: {config.name} watches right and wrong; "
            "a regression needs one of the loss, such as PageHinkley or ADWIN"
        )
    for name, value in parameters_of(config, task).items():
        if config.name == "PageHinkley" and isinstance(value, str) and name != "mode":
            raise ConfigError(f"learner.detector.parameters.{name}: {value!r} is not a number")
    try:
        return kind(**parameters_of(config, task))
    except (TypeError, ValueError) as error:
        valid = ", ".join(inspect.signature(kind).parameters)
        raise ConfigError(
            f"learner.detector.parameters: {error}; {config.name} has: {valid}"
        ) from error


def level_of(detector: Detector) -> DriftLevel:
    if detector.drift_detected:
        return DriftLevel.DRIFT
    if getattr(detector, "warning_detected", False):
        return DriftLevel.WARNING
    return DriftLevel.STABLE
