"""What the tests of the learner are made of: configurations, streams, and a learner played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streammaml.config import Config, spec_of
from streammaml.events import Batch, Decisions, Float32s, Floats
from streammaml.initialization import Initialization, draw
from streammaml.learner import Learner
from streammaml.learner.state import ContextState, StreamState
from tests.learner.reference import Layers, Rules

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Stream:
    contexts: list[str]
    x: Float32s  # [B, D]
    y: Floats  # [B]

    def __len__(self) -> int:
        return len(self.contexts)

    def batch(self, first: int = 0, last: int | None = None) -> Batch:
        part = slice(first, last)
        return Batch(contexts=self.contexts[part], x=self.x[part].copy(), y=self.y[part].copy())

    def of(self, places: Sequence[int]) -> Stream:
        return Stream([self.contexts[i] for i in places], self.x[places], self.y[places])


def make_config(
    *, width: int = 2, classes: int = 2, open_classes: bool = False, **learner: Any
) -> Config:
    """``classes`` 0 is a regression; otherwise as many listed classes, or slots of an open list."""
    label: dict[str, Any] = {"task": "classification" if classes else "regression"}
    if open_classes:
        label["max_classes"] = classes
    elif classes:
        label["classes"] = [f"c{k}" for k in range(classes)]
    return Config.build(
        {
            "features": [{"name": f"f{d}"} for d in range(width)],
            "label": label,
            "learner": {"hidden": [8, 8], **learner},
        }
    )


def make_stream(
    seed: int,
    events: int,
    *,
    contexts: int = 3,
    width: int = 2,
    classes: int = 2,
    missing: float = 0.0,
    unlabelled: float = 0.0,
    drift_every: int = 0,
) -> Stream:
    """Linear concepts, one for each context, flipped at the drifts; a shifted, stretched x."""
    rng = np.random.default_rng(seed)
    names = [f"context-{c}" for c in rng.integers(0, contexts, events)]
    raw = rng.normal(size=(events, width))
    x = (raw * (1 + np.arange(width)) + 3 * np.arange(width)).astype(np.float32)
    concepts = rng.normal(size=(contexts, width, max(classes, 1)))
    y = np.empty(events)
    for i, name in enumerate(names):
        concept = concepts[int(name.rpartition("-")[2])]
        if drift_every and (i // drift_every) % 2:
            concept = -concept
        score = raw[i] @ concept
        y[i] = int(np.argmax(score)) if classes else 10 + 3 * score[0] + rng.normal() * 0.3
    x[rng.random(x.shape) < missing] = np.nan
    y[rng.random(events) < unlabelled] = np.nan
    return Stream(names, x, y)


def make_learner(config: Config, initialization: Initialization | None = None) -> Learner:
    return Learner(config, initialization or make_initialization(config))


def make_initialization(
    config: Config, seed: int = 5, scale: float = 1.0, rate: float = 0.1
) -> Initialization:
    """A drawn initialization with biases and a last layer that are not small, rates that differ."""
    drawn = draw(spec_of(config), seed)
    rng = np.random.default_rng(seed)
    tensors = {
        name: (scale * (tensor + 0.1 * rng.standard_normal(tensor.shape))).astype(np.float32)
        for name, tensor in drawn.tensors.items()
    }
    rates = rate * (0.5 + rng.random(drawn.tensors["rates"].shape))
    return replace(drawn, tensors={**tensors, "rates": rates.astype(np.float32)})


def layers_of(initialization: Initialization) -> Layers:
    tensors = initialization.tensors
    return [
        (tensors[f"{i}.weight"].astype(float), tensors[f"{i}.bias"].astype(float))
        for i in range(initialization.spec.layers)
    ]


def rules_of(config: Config) -> Rules:
    learner, label = config.learner, config.label
    return Rules(
        classes=label.task == "classification",
        width=len(config.features),
        outputs=label.slots,
        known=len(label.classes),
        warmup=learner.warmup,
        after_drift=learner.after_drift,
        refresh_every=learner.refresh_every,
        support=learner.support_size,
        clip=learner.clip_norm,
        held_out=learner.held_out_test,
        baseline_rate=learner.baseline_rate,
        detector=dict(learner.detector.parameters),
    )


PARTS = ("packed", "evicted", "expired")


def play(learner: Learner, stream: Stream, cuts: Sequence[int] = ()) -> Arrays:
    """Step the stream in the slices that ``cuts`` gives; every field of the decisions, joined."""
    edges = [0, *cuts, len(stream)]
    parts = [learner.step(stream.batch(a, b)) for a, b in pairwise(edges)]
    joined: Arrays = {}
    rows = [name for name in vars(Decisions) if not name.startswith("_") and name not in PARTS]
    for name in rows:
        joined[name] = np.concatenate([getattr(part, name) for part in parts])
    joined["evicted"] = np.array(sum(part.evicted for part in parts))
    return joined


def state_of(learner: Learner) -> Arrays:
    """A copy of every array of the learner, its rows in the order of their contexts' names."""
    order = [learner._rows[name] for name in sorted(learner._rows)]
    contexts: ContextState = learner._contexts
    stream: StreamState = learner._stream
    arrays = {f"contexts.{name}": a[order].copy() for name, a in contexts._asdict().items()}
    arrays |= {f"stream.{name}": a.copy() for name, a in stream._asdict().items()}
    return arrays


def row_of(learner: Learner, context: str) -> Arrays:
    """A copy of the state of one context."""
    row = learner._rows[context]
    return {name: a[row].copy() for name, a in learner._contexts._asdict().items()}


def assert_same_bits(actual: Arrays, expected: Arrays) -> None:
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        assert array.dtype == expected[name].dtype, name
        assert array.tobytes() == expected[name].tobytes(), name
