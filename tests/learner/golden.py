"""Stored state as earlier releases wrote it, and how today's release writes the same.

A case is a configuration with a state filled by hand, so that no kernel and no processor has a
part in its bits. ``python -m tests.learner.golden`` writes the files of the current format; those
of an earlier one are never written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from streammaml.config import Config, spec_of
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.sealed import FORMAT
from tests.learner.build import make_config
from tests.learner.shelf import DictShelf

FOLDER = Path(__file__).parent / "golden"
NAMES = ("shop-1", "Zürich/店", "")
"""New, at θ; full ring, adapted; never labelled, and called nothing."""

CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": {"classes": 3, "hidden": [3]},
    "open": {"classes": 5, "open_classes": True, "network": "linear"},
    "regression": {"classes": 0, "network": "linear", "width": 1},
    "baseline": {"classes": 2, "network": "linear", "baseline_rate": 0.5},
    "river": {"classes": 2, "network": "linear", "detector": {"name": "ADWIN"}},
    "river-binary": {"classes": 2, "network": "linear", "detector": {"name": "DDM"}},
}


@dataclass(frozen=True)
class Case:
    config: Config
    initialization: Initialization
    learner: Learner
    shelf: DictShelf
    fed: tuple[tuple[float, bool], ...] = ((0.25, False), (1.5, True), (0.125, False))
    """What the second context's river detector was fed."""


def case_of(name: str) -> Case:
    config = make_config(**CONFIGS[name], support_size=4, warmup=[2])
    initialization = initialization_of(config)
    shelf = DictShelf()
    case = Case(config, initialization, Learner(config, initialization, shelf), shelf)
    _fill(case)
    return case


def initialization_of(config: Config) -> Initialization:
    spec = spec_of(config)
    shapes = {**spec.shapes(), "rates": (spec.steps, 2 * spec.layers)}
    return Initialization(
        spec=spec,
        tensors={name: _ramp(shape, np.float32) for name, shape in shapes.items()},
        version=7,
        parent=3,
        notes={"made": "by hand"},
    )


def _ramp(shape: tuple[int, ...], kind: Any = np.float64, start: int = 1) -> NDArray[Any]:
    """start/8, (start+1)/8, …: exact in float32."""
    return ((np.arange(np.prod(shape, dtype=int)) + start) / 8).astype(kind).reshape(shape)


def _fill(case: Case) -> None:
    learner = case.learner
    for row, name in enumerate(NAMES):
        assert learner._memory.admit([name], 0) == row
    contexts, stream = learner._contexts, learner._stream
    width, slots = learner.width, case.config.label.slots
    regression = case.config.label.task == "regression"
    contexts.version[:3] = 7
    contexts.used[:3] = [11, 12, 9]
    contexts.changed[:3] = [10, 12, 9]
    contexts.at_init[:3] = [1, 0, 1]
    contexts.fast[:3] = learner._meta.theta
    contexts.fast[1] = _ramp((contexts.fast.shape[1],), np.float32, -4)
    contexts.fast[1, :2] = [-0.0, 1e-45]
    contexts.labels[:3] = [1, 6, 0]
    contexts.segment[:3] = [1, 4, 0]
    contexts.ledger[:3] = [[2, 100, -(2**63)], [7, 2**40, 2**63 - 1], [1, -1, 0]]
    contexts.seen[:3] = [1e9, 1e9 + 0.125, np.nan]
    contexts.detector[:3] = [[0, 0, 0, np.inf], [3, 0.5, -0.25, -1.5], [0, 0, 0, np.inf]]
    if regression:
        contexts.error_scale[:3] = 0.5, 0.001, 0.5
    for place, array in enumerate((contexts.x_count, contexts.x_mean, contexts.x_m2)):
        array[:3] = _ramp((3, width), start=place + 1)
    contexts.support_x[:3] = _ramp((3, 4, width), np.float32, -3)
    contexts.support_x[0, 0, 0] = np.nan
    contexts.support_x[1, 2, -1] = np.nan
    contexts.support_y[:3] = 0
    contexts.support_y[0, 0] = -2.5 if regression else slots - 1
    contexts.support_y[1] = [0.5, -1e12, 1e-300, 3] if regression else [0, 1, 0, slots - 1]
    if contexts.baseline.shape[1]:
        contexts.baseline[:3] = _ramp((3, contexts.baseline.shape[1]), np.float32)
    for place, name in enumerate(("x_count", "x_mean", "x_m2", "x_shift", "x_variance")):
        getattr(stream, name)[:] = _ramp((width,), start=place + 1)
    stream.x_inverse[:] = 0.0, *[2.0] * (width - 1)
    stream.y_moments[:] = stream.y_scale[:] = 1.5, 2.25
    stream.y_range[:] = -2.5, 1e12
    stream.counts[:] = 8, 12
    stream.known[:] = not regression
    stream.clock[:] = 1e9 + 0.125
    if case.config.label.classes == () and not regression:
        for label in ("ja", 2, "né", False, 1.5):
            learner.labels.encode(label)
    if learner._watch:
        for signal, wrong in case.fed:
            learner._watch.update(1, signal, wrong)


def values_of(case: Case) -> dict[bytes, bytes]:
    return {key: value for key, value in case.learner.snapshot() if value is not None}


def folder_of(release: int, name: str) -> Path:
    return FOLDER / f"v{release}" / name


def write(values: Mapping[bytes, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for key, value in values.items():
        (folder / quote(key, safe="@")).write_bytes(value)


def read(folder: Path) -> dict[bytes, bytes]:
    return {unquote(p.name).encode(): p.read_bytes() for p in sorted(folder.iterdir())}


if __name__ == "__main__":
    for each in CONFIGS:
        write(values_of(case_of(each)), folder_of(FORMAT, each))
