"""The trainer with labels of other kinds: an open list of classes, and a regression."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from streammaml.meta.reservoir import Reservoir
from streammaml.meta_trainer import Result, Trainer
from streammaml.starts import version_zero
from tests.meta.episode_maker import make_config, make_episode


def test_a_candidate_names_the_classes_of_an_open_list() -> None:
    config = make_config(width=2, label={"max_classes": 3}, meta_batch=4, feature_nets=False)
    reservoir = Reservoir(config)
    incumbent = replace(version_zero(config), classes=("yes",))
    trainer = Trainer(config, incumbent, reservoir)
    rng = np.random.default_rng(2)
    for context in range(12):
        for labels in range(100, 1100, 100):
            x = rng.normal(size=(20, 2)).astype(np.float32)
            y = (x[:, 0] > 0).astype(np.float64)
            reservoir.add(make_episode(f"c{context}", labels, x=x, y=y))

    candidate = trainer.run(20).candidate

    assert candidate is not None
    assert candidate.classes == ("yes", "no")


def test_a_regression_trains_all_three_nets() -> None:
    config = make_config(width=2, label={"task": "regression"}, meta_batch=8, learning_rate=5e-3)
    reservoir = Reservoir(config)
    rng = np.random.default_rng(3)
    for context in range(20):
        slope = rng.normal(size=2)
        for labels in range(100, 1100, 100):
            x = rng.normal(size=(20, 2)).astype(np.float32)
            y = 4 + 2 * (x @ slope)
            scale = np.array([4.0, 2.0])
            reservoir.add(make_episode(f"c{context}", labels, x=x, y=y, y_scale=scale, classes=()))
    trainer = Trainer(config, version_zero(config), reservoir)

    outcome = trainer.run(60)

    assert outcome.result is Result.PUBLISHED, outcome.why
    for net in outcome.report["nets"].values():
        assert net["passed"], net["why"]
        assert math.isfinite(net["loss_candidate"])
