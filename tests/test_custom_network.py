"""A torch module of the user's own, from the outer loop to the worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from streammaml.config import Config, spec_of
from streammaml.errors import ConfigError
from streammaml.events import Batch
from streammaml.learner import Labels, Learner
from streammaml.meta.outer_loop import Rule
from streammaml.meta.serving import TorchNetwork
from streammaml.meta_trainer import Past, train
from streammaml.starts import version_zero
from tests.outer_rig import Rig

WIDTH = 6


def settings() -> Config:
    return Config.build(
        {
            "features": [{"name": f"x{i}"} for i in range(WIDTH)],
            "label": {"classes": [0, 1]},
            "learner": {"network": "tests.learner.modules:mlp", "inner_steps": 2},
            "outer": {"feature_nets": False},
        }
    )


def past(config: Config, seed: int, contexts: int = 30, each: int = 60) -> Past:
    """Contexts with one direction in common, and a little of their own."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(contexts), each)
    x = rng.normal(size=(len(codes), WIDTH)).astype(np.float32)
    own = rng.normal(size=(contexts, WIDTH)) * 0.3 + 1.0
    y = (np.einsum("nd,nd->n", x, own[codes]) > 0).astype(float)
    return Past(contexts=codes, x=x, y=y, labels=Labels(config.label))


def mean_loss(config: Config, learner: Learner, stream: Past) -> float:
    batch = Batch(
        contexts=[str(c) for c in stream.contexts.tolist()],
        x=np.ascontiguousarray(stream.x),
        y=stream.y,
    )
    return float(learner.step(batch).loss.mean())


@pytest.mark.parametrize("rule", Rule)
def test_what_a_rule_has_trained_serves_better_than_the_start(rule: Rule) -> None:
    config = settings()
    network = TorchNetwork(spec_of(config), config.learner.seed)
    stream = past(config, seed=2, contexts=10, each=30)

    trained = train(config, past(config, seed=1), steps=60, rule=rule).initialization

    before, after = (
        mean_loss(config, Learner(config, start, network=network), stream)
        for start in (version_zero(config), trained)
    )
    assert after < before - 0.02


def rig_of(tmp_path: Path, name: str, rule: str) -> Rig:
    rig = Rig(tmp_path, steps=2)
    rig.config = Config.build(
        rig.config.model_dump(),
        {"learner": {"network": f"tests.meta.odd_modules:{name}"}, "outer": {"rule": rule}},
    )
    return rig


def test_what_cannot_be_trained_ends_the_outer_loop_before_it_connects(tmp_path: Path) -> None:
    rig, steps = rig_of(tmp_path, "Once", "metasgd"), list[str]()
    rig.outside.step = steps.append

    with pytest.raises(ConfigError, match=r"metasgd cannot train .* set outer\.rule to fomaml"):
        rig.once()

    assert steps == []


def test_the_log_says_once_that_tasks_run_one_by_one(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, "Branching", "fomaml")
    rig.produce()

    with capture_logs() as logs:
        run = rig.once()

    assert run.result == "published"
    assert [line["event"] for line in logs].count("network_task_by_task") == 1
