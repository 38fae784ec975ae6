"""Plain online gradient descent: one clipped step an event, and back to θ where it breaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streammaml.learner.kernels import baseline
from streammaml.learner.policy import policy_of
from streammaml.learner.state import meta_of, new_scratch, new_stream
from tests.learner import reference
from tests.learner.build import layers_of, make_config, make_initialization, make_learner
from tests.learner.test_network import flat


@pytest.mark.parametrize(("classes", "target"), [(3, 1.0), (0, 40.0)])
@pytest.mark.parametrize("clip", [0.2, 5.0])
def test_one_step_equals_the_reference(classes: int, target: float, clip: float) -> None:
    config = make_config(classes=classes, baseline_rate=0.3, clip_norm=clip)
    initialization = make_initialization(config)
    meta = meta_of(initialization)
    scratch = new_scratch(meta, 32, 2)
    u = np.random.default_rng(8).normal(size=4).astype(np.float32)
    scratch.activations[0, 0, :4] = u
    weights = meta.theta.copy()
    stream = new_stream(2, max(classes, 1), classes)

    baseline.learn(weights, target, meta, stream, policy_of(config), scratch)

    rates = np.full((1, 6), 0.3)
    seen = stream.known if classes else None
    expected, norm = reference.adapt(
        layers_of(initialization), rates, u[None].astype(float), np.array([target]), seen, clip
    )
    assert norm > 0.2
    np.testing.assert_allclose(weights, flat(expected), rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_go_back_to_theta() -> None:
    config = make_config(baseline_rate=0.3)
    meta = meta_of(make_initialization(config))
    weights = np.full_like(meta.theta, np.inf)

    baseline.learn(
        weights, 0.0, meta, new_stream(2, 2, 2), policy_of(config), new_scratch(meta, 32, 2)
    )

    assert weights.tobytes() == meta.theta.tobytes()


def test_it_holds_no_weights_where_it_is_off() -> None:
    config = make_config()

    off = make_learner(config)
    on = make_learner(make_config(baseline_rate=0.1))

    assert off._contexts.baseline.shape[1] == 0
    assert on._contexts.baseline.shape[1] == replace(make_initialization(config)).theta().size
