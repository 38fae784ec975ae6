"""A context's state as JSON can carry it, from memory or from stored records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streammaml.config import Config, Feature, FeatureType
from streammaml.errors import DamagedError
from streammaml.events import Context, Float32s, Label, Task
from streammaml.initialization import arranged, decode
from streammaml.learner import detectors
from streammaml.learner.snapshot import (
    DETECTOR,
    INITIALIZATION,
    LIGHT,
    STREAM,
    WEIGHTS,
    Format,
    Records,
    key_of,
)
from streammaml.learner.state import new_stream
from streammaml.learner.watch import Watch
from streammaml.sealed import unseal


def describe(
    config: Config,
    context: Context,
    record: Records,
    weights: Float32s | None,
    theta: Float32s | None,
    inputs: Sequence[float],
    classes: Sequence[Label],
    stored_bytes: Mapping[str, int],
) -> dict[str, Any]:
    """The whole state of a context; ``record`` is one of ``Format.light``.

    ``weights`` and ``theta`` [P] are its fast weights and the initialization behind them. What is
    not known, or infinite, is None. The support set is in the order it was learned, in the
    schema's features and the user's classes.
    """
    applied, last_offset, rolling = record["ledger"].tolist()
    described = {
        "context": context,
        "events": applied,
        "last_offset": last_offset,
        "rolling_hash": rolling,
        "last_seen_s": _number(record["seen"]),
        "labels": int(record["labels"]),
        "labels_in_segment": int(record["segment"]),
        "initialization": int(record["version"]),
        "adapted": not record["at_init"],
        "weights": None if weights is None else _weights(weights, theta),
        "detector": _detector(config, record, inputs),
        "features": _scales(config, record),
        "support": _support(config, record, classes),
        "stored_bytes": dict(stored_bytes),
    }
    names = record.dtype.names or ()
    if "error_scale" in names:
        described["typical_error"] = _number(record["error_scale"])  # in deviations of the label
    if "baseline" in names:
        described["baseline_weights"] = _weights(record["baseline"], theta)
    return described


def describe_records(
    config: Config, context: Context, values: Mapping[bytes, bytes]
) -> dict[str, Any] | None:
    """The same from what the topic ``state`` holds: the context's records and those with ``@``.

    None where there is no ``c/`` record. DamagedError, or IncompatibleError of another model.
    """
    form = Format(config)
    keys = {kind: key_of(kind, context) for kind in (LIGHT, WEIGHTS, DETECTOR)}
    found = {kind: values[key] for kind, key in keys.items() if key in values}
    if LIGHT not in found:
        return None
    record = form.unpack([keys[LIGHT]], [found[LIGHT]])[0]
    classes: Sequence[Label] = config.label.classes
    theta = None
    if STREAM in values:
        stream = new_stream(len(record["x_count"]), config.label.slots, 0)
        version, classes = form.unpack_stream(values[STREAM], stream)
        if record["at_init"]:
            record["version"] = version
        if record["version"] == version:
            theta = _theta(form, values, version, classes)
    if record["at_init"]:
        weights = theta
    elif WEIGHTS in found:
        weights = form.unpack_weights([keys[WEIGHTS]], [found[WEIGHTS]])[0]
    else:
        raise DamagedError(f"there is no {keys[WEIGHTS]!r:.80}, which its context needs")
    inputs: list[float] = []
    if DETECTOR in found:
        watch = Watch(detectors.build(config.learner.detector, config.label.task), form.fingerprint)
        inputs = watch.unpack(keys[DETECTOR], found[DETECTOR])
    names = {LIGHT: "light", WEIGHTS: "weights", DETECTOR: "detector"}
    sizes = {name: len(found.get(kind, b"")) for kind, name in names.items()}
    return describe(config, context, record, weights, theta, inputs, classes, sizes)


def _theta(
    form: Format, values: Mapping[bytes, bytes], version: int, classes: Sequence[Label]
) -> Float32s | None:
    """θ in use, if it is there, with its classes in the partition's slots."""
    key = INITIALIZATION + b"%d" % version
    if key not in values:
        return None
    stored = decode(bytes(unseal(key, form.fingerprint, values[key])))
    return (stored if stored.spec.network else arranged(stored, classes)).theta()


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _weights(weights: Float32s, theta: Float32s | None) -> dict[str, Any]:
    distance = None if theta is None else _norm(weights.astype(np.float64) - theta)
    return {"count": len(weights), "norm": _norm(weights), "distance": distance}


def _norm(values: NDArray[Any]) -> float | None:
    wide = values.astype(np.float64)
    return _number(np.sqrt(wide @ wide))


def _detector(config: Config, record: Records, inputs: Sequence[float]) -> dict[str, Any]:
    name = config.learner.detector.name
    if not detectors.is_compiled(config.learner.detector, config.label.task):
        mean = float(np.mean(inputs)) if inputs else None
        return {"name": name, "inputs_kept": len(inputs), "mean": mean}
    count, mean, total, lowest = record["detector"].tolist()
    statistic = total - lowest if count else 0.0
    return {"name": name, "count": int(count), "mean": mean, "statistic": _number(statistic)}


def _scales(config: Config, record: Records) -> dict[str, Any]:
    """Count, mean and standard deviation of each number of x, in this context."""
    names = [name for feature in config.features for name in _columns(feature)]
    counts, means, squares = (record[name].tolist() for name in ("x_count", "x_mean", "x_m2"))
    return {
        name: {"count": int(n), "mean": mean, "deviation": math.sqrt(m2 / n) if n else None}
        for name, n, mean, m2 in zip(names, counts, means, squares, strict=True)
    }


def _columns(feature: Feature) -> list[str]:
    if feature.type is FeatureType.CATEGORY:
        return [f"{feature.name}={category}" for category in feature.categories]
    return [feature.name]


def _support(config: Config, record: Records, classes: Sequence[Label]) -> list[dict[str, Any]]:
    """The newest examples of the ring, those that an adaptation can use; oldest first."""
    labels, ring = int(record["labels"]), len(record["support"])
    examples = []
    for place in range(max(0, labels - config.learner.support_size), labels):
        slot = record["support"][place % ring]
        label: Label = float(slot["y"])
        if config.label.task is Task.CLASSIFICATION:
            k = int(slot["y"])
            label = classes[k] if k < len(classes) else f"class {k}"
        examples.append({"features": _features(config, slot["x"]), "label": label})
    return examples


def _features(config: Config, x: Float32s) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first = 0
    for feature in config.features:
        width = len(_columns(feature))
        part = x[first : first + width]
        first += width
        if np.isnan(part).any():
            values[feature.name] = None
        elif feature.type is FeatureType.CATEGORY:
            names = [n for n, one in zip(feature.categories, part, strict=True) if one == 1]
            values[feature.name] = names[0] if names else "(unknown)"
        elif feature.type is FeatureType.BOOLEAN:
            values[feature.name] = bool(part[0])
        else:
            values[feature.name] = float(part[0])
    return values
