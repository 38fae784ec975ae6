"""From the configuration to the kernel's constants."""

from __future__ import annotations

import numpy as np

from streammaml.config import Config
from streammaml.events import Task
from streammaml.learner import detectors
from streammaml.learner.state import Policy


def policy_of(config: Config) -> Policy:
    """The kernel's constants from the configuration."""
    learner = config.learner
    detector = detectors.parameters_of(learner.detector, config.label.task)
    warmup = np.zeros(learner.support_size + 1, np.bool_)
    warmup[list(learner.warmup)] = True
    return Policy(
        regression=config.label.task is Task.REGRESSION,
        warmup=warmup,
        after_drift=learner.after_drift,
        refresh_every=learner.refresh_every,
        held_out_test=learner.held_out_test,
        clip=learner.clip_norm,
        min_instances=float(detector.get("min_instances", 0)),
        delta=float(detector.get("delta", 0)),
        threshold=float(detector.get("threshold", 0)),
        alpha=float(detector.get("alpha", 1 - 0.0001)),
        baseline_rate=learner.baseline_rate,
        ttl_s=config.state.ttl_s,
        every=config.episodes.every if config.episodes.enabled else 0,
    )
