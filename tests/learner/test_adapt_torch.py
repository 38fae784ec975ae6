"""The kernel's inner loop against torch's differentiable one: each is the oracle of the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streammaml.events import Float32s
from streammaml.initialization import Initialization
from streammaml.learner.kernels import adapt as inner_loop
from streammaml.learner.state import meta_of, new_scratch
from streammaml.meta.inner_loop import InnerLoop, adapt
from streammaml.meta.losses import Examples
from tests.learner.build import make_config, make_initialization

SIZES = (2, 9, 32)
"""Support sets of three tasks; torch pads the shorter ones."""


def in_torch(
    initialization: Initialization, u: list[Float32s], y: list[Float32s], clip: float, factor: float
) -> Float32s:
    """Fast weights [T, P] of all tasks in one stacked call."""
    longest = max(SIZES)
    inputs, targets = np.zeros((3, longest, u[0].shape[1]), np.float32), np.zeros((3, longest))
    weights = np.zeros((3, longest), np.float32)
    for t, size in enumerate(SIZES):
        inputs[t, :size], targets[t, :size], weights[t, :size] = u[t], y[t], 1
    kind = np.float32 if initialization.spec.task == "regression" else np.int64
    fast = adapt(
        {k: torch.from_numpy(v) for k, v in initialization.tensors.items() if k != "rates"},
        torch.from_numpy(initialization.tensors["rates"]) * factor,
        Examples(
            torch.from_numpy(inputs),
            torch.from_numpy(targets.astype(kind)),
            torch.from_numpy(weights),
        ),
        InnerLoop(clip_norm=clip),
    )
    return np.concatenate([fast[name].numpy().reshape(3, -1) for name in fast], axis=1)


@pytest.mark.parametrize("hidden", [[], [8], [64, 64]])
@pytest.mark.parametrize("classes", [0, 2, 5])
@pytest.mark.parametrize(("clip", "factor"), [(5.0, 1.0), (0.3, 1.0), (5.0, 0.5)])
def test_the_kernels_adapt_equals_torchs(
    hidden: list[int], classes: int, clip: float, factor: float
) -> None:
    network = "mlp" if hidden else "linear"
    config = make_config(width=4, classes=classes, network=network, hidden=hidden or [1])
    initialization = make_initialization(config, seed=3)
    meta = meta_of(initialization)
    scratch = new_scratch(meta, 32, 4)
    rng = np.random.default_rng(4)
    u = [rng.normal(size=(n, 8)).astype(np.float32) for n in SIZES]
    y = [
        (rng.integers(0, classes, n) if classes else rng.normal(size=n) * 2).astype(np.float32)
        for n in SIZES
    ]

    ours = []
    for inputs, target in zip(u, y, strict=True):
        fast, rows = meta.theta.copy(), len(target)
        scratch.activations[0, :rows, :8] = inputs
        known = np.ones(max(classes, 1), bool)
        scratch.y[:rows] = target
        inner_loop.adapt(fast, meta, factor, clip, scratch.y, known, not classes, rows, scratch)
        ours.append(fast)

    theirs = in_torch(initialization, u, y, clip, factor)
    np.testing.assert_allclose(np.array(ours), theirs, rtol=1e-5, atol=1e-5)
    assert abs(theirs - meta.theta).max() > 0.01
