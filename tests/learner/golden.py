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
from streammaml.events import Float32s
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.learner.state import UNKNOWN, ContextState
from streammaml.sealed import FORMAT
from tests.learner.build import make_config
from tests.learner.shelf import DictShelf

FOLDER = Path(__file__).parent / "golden"
NAMES = ("shop-1", "Zürich/店", "", "Lager")
"""New, at θ; more than a support set, adapted; never labelled, called nothing; a full ring."""

CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": {"classes": 3, "hidden": [3]},
    "open": {"classes": 5, "open_classes": True, "network": "linear"},
    "regression": {"classes": 0, "network": "linear", "width": 1},
    "baseline": {"classes": 2, "network": "linear", "baseline_rate": 0.5},
    "river": {"classes": 2, "network": "linear", "detector": {"name": "ADWIN"}},
    "river-binary": {"classes": 2, "network": "linear", "detector": {"name": "DDM"}},
    "short": {"classes": 2, "network": "linear", "width": 1},
}
WITHOUT_EPISODES = "short"
SUPPORT = 4
NEWER = {"short": 2, "Lager": 2}
"""Cases and contexts that earlier releases wrote nothing of."""


@dataclass(frozen=True)
class Case:
    config: Config
    initialization: Initialization
    learner: Learner
    shelf: DictShelf
    fed: tuple[tuple[float, bool], ...] = ((0.25, False), (1.5, True), (0.125, False))
    """What the second context's river detector was fed."""


def case_of(name: str) -> Case:
    config = make_config(**CONFIGS[name], support_size=SUPPORT, warmup=[2])
    if name == WITHOUT_EPISODES:
        config = Config.build(config.model_dump(), {"episodes": {"enabled": False}})
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
    contexts.version[:4] = 7
    contexts.used[:4] = [11, 12, 9, 8]
    contexts.changed[:4] = [10, 12, 9, 8]
    contexts.at_init[:4] = [1, 0, 1, 1]
    contexts.fast[:4] = learner._meta.theta
    contexts.fast[1] = _ramp((contexts.fast.shape[1],), np.float32, -4)
    contexts.fast[1, :2] = [-0.0, 1e-45]
    contexts.labels[:4] = [1, 6, 0, 23]
    contexts.segment[:4] = [1, 4, 0, 9]
    contexts.ledger[:4] = [[2, 100, -(2**63)], [7, 2**40, 2**63 - 1], [1, -1, 0], [23, 99, 5]]
    contexts.seen[:4] = [1e9, 1e9 + 0.125, np.nan, 1e9]
    contexts.detector[:4] = [0, 0, 0, np.inf]
    contexts.detector[1] = [3, 0.5, -0.25, -1.5]
    if regression:
        contexts.error_scale[:4] = 0.5, 0.001, 0.5, 0.25
    for place, array in enumerate((contexts.x_count, contexts.x_mean, contexts.x_m2)):
        array[:4] = _ramp((4, width), start=place + 1)
    _fill_rings(contexts, _ramp((4, SUPPORT, width), np.float32, -3), regression, slots)
    if contexts.baseline.shape[1]:
        contexts.baseline[:4] = _ramp((4, contexts.baseline.shape[1]), np.float32)
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


def _fill_rings(contexts: ContextState, x: Float32s, regression: bool, slots: int) -> None:
    """Rings whose newest examples are those of format 1, in whose rings example e was e mod 4."""
    x[0, 0, 0] = np.nan
    x[1, 2, -1] = np.nan
    y = np.zeros((4, SUPPORT))
    y[0, 0] = -2.5 if regression else slots - 1
    y[1] = [0.5, -1e12, 1e-300, 3] if regression else [0, 1, 0, slots - 1]
    offsets = {0: [100], 1: [-1, 5, 2**31, 2**33, 2**40 - 1, 2**40], 2: [], 3: range(77, 100)}
    ring = contexts.support_y.shape[1]
    for row, given in offsets.items():
        for e, offset in enumerate(given):
            older = (len(given) - 1 - e) // SUPPORT  # rings of format 1 ago
            contexts.support_x[row, e % ring] = x[row, e % SUPPORT] - older
            contexts.support_y[row, e % ring] = y[row, e % SUPPORT]
            if contexts.support_offsets.shape[1]:
                contexts.support_offsets[row, e % ring] = offset
    if contexts.support_offsets.shape[1]:
        contexts.support_offsets[3, 4:6] = UNKNOWN


def names_of(release: int) -> tuple[str, ...]:
    """The contexts that the files of a format have."""
    return tuple(name for name in NAMES if NEWER.get(name, 1) <= release)


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
