"""The canary: what it lets pass, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from streammaml.config import Config, spec_of
from streammaml.errors import InitializationError, MisfitError
from streammaml.events import Batch, Float32s
from streammaml.initialization import Initialization, draw
from streammaml.learner import Labels, Learner
from streammaml.learner.canary import try_out
from streammaml.meta.outer_state import OuterSettings, Rule, finish
from streammaml.meta.outer_state import start as begin
from streammaml.meta_trainer import Past, train
from tests.learner.build import (
    Stream,
    assert_same_bits,
    make_config,
    make_initialization,
    make_stream,
    play,
    state_of,
)

WIDTH = 6


def config_of(**label: Any) -> Config:
    return Config.build(
        {
            "features": [{"name": f"f{d}"} for d in range(WIDTH)],
            "label": label or {"classes": ["no", "yes"]},
            # deaf, so that every segment is as long as its context
            "learner": {"hidden": [24, 24], "detector": {"parameters": {"threshold": 1e9}}},
        }
    )


CLASSES, REGRESSION = config_of(), config_of(task="regression")


def make_tasks(seed: int, contexts: int, events: int, regression: bool = False) -> Stream:
    """Linear concepts that lean to one direction: so labels the other way round are another task.

    Round robin over the contexts.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(events, contexts, WIDTH)).astype(np.float32)
    concepts = rng.normal(size=(contexts, WIDTH)) + np.arange(1, WIDTH + 1) / 3
    score = (x * concepts).sum(2)
    y = score + rng.normal(size=score.shape) if regression else (score > 0).astype(float)
    if not regression:
        noise = rng.random(y.shape) < 0.05
        y[noise] = rng.integers(0, 2, int(noise.sum()))
    names = [f"context-{c}" for c in range(contexts)] * events
    return Stream(names, x.reshape(-1, WIDTH), y.ravel())


@cache
def trained(steps: int, regression: bool = False) -> Initialization:
    config = REGRESSION if regression else CLASSES
    past = make_tasks(1, 60, 60, regression)
    codes = np.array([int(name.rpartition("-")[2]) for name in past.contexts], np.int64)
    history = Past(contexts=codes, x=past.x, y=past.y, labels=Labels(config.label))
    made = train(config, history, steps=steps)
    return replace(made.initialization, version=steps)


def start(config: Config) -> Initialization:
    return draw(spec_of(config), 0)


def served_to(
    contexts: int, initialization: Initialization, regression: bool = False, seed: int = 2
) -> Learner:
    learner = Learner(REGRESSION if regression else CLASSES, initialization)
    play(learner, make_tasks(seed, contexts, 40, regression))
    return learner


def changed(initialization: Initialization, **by: Float32s | float) -> Initialization:
    """Multiply tensors, or replace them."""
    tensors = {
        name: (tensor * factor).astype(np.float32)
        if isinstance(factor := by.get(name, by.get("all", 1.0)), float)
        else factor
        for name, tensor in initialization.tensors.items()
    }
    return replace(initialization, tensors=tensors, version=initialization.version + 1000)


def flipped(initialization: Initialization) -> Initialization:
    """What it says of one class it says of the other: as if trained on labels the wrong way."""
    columns = {
        name: np.ascontiguousarray(initialization.tensors[name][..., ::-1])
        for name in ("2.weight", "2.bias")
    }
    return changed(initialization, **columns)


# --- what passes -------------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [1, 3, 4, 8, 40])
@pytest.mark.parametrize("regression", [False, True])
def test_a_better_initialization_passes(regression: bool, contexts: int) -> None:
    config = REGRESSION if regression else CLASSES
    learner = served_to(contexts, start(config), regression)

    trial = try_out([learner], trained(200, regression))

    assert trial.contexts == contexts
    assert not trial.worse
    assert trial.reason == ""
    if contexts >= 4:
        assert trial.candidate < trial.served


@pytest.mark.parametrize("contexts", [1, 8, 40])
def test_an_equal_one_and_one_that_was_trained_a_little_more_pass(contexts: int) -> None:
    learner = served_to(contexts, trained(200))

    equal, more = try_out([learner], trained(200)), try_out([learner], trained(250))

    assert equal.candidate == equal.served
    assert not equal.worse
    assert not more.worse


def test_of_those_that_are_alike_hardly_one_is_refused_by_chance() -> None:
    refused = 0
    for seed in range(100):
        learner = served_to(4, start(CLASSES), seed=seed)
        refused += try_out([learner], draw(spec_of(CLASSES), 1 + seed)).worse

    assert refused <= 10


def test_with_no_context_to_ask_only_norms_speak() -> None:
    learner = Learner(CLASSES, trained(200))

    trial = try_out([learner], flipped(trained(200)))

    assert (trial.contexts, trial.worse) == (0, False)
    assert math.isnan(trial.served)
    assert math.isnan(trial.candidate)
    assert not try_out([], trained(200)).worse


def test_meta_sgd_may_begin_with_small_rates() -> None:
    """It writes 1 to ``rates`` and the rate itself to its factors: the steps stay as they were."""
    served = draw(spec_of(CLASSES), 0, rate=0.02)
    begun = finish(begin(served, OuterSettings(rule=Rule.METASGD)), served)
    wild = changed(begun, parameter_rates=100.0)

    assert "parameter_rates" in begun.tensors
    assert not try_out([Learner(CLASSES, served)], begun).worse
    assert try_out([Learner(CLASSES, served)], wild).reason.startswith("the norm of rates is ")


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [8, 12, 40])
@pytest.mark.parametrize("seed", range(5))
def test_an_initialization_trained_on_flipped_labels_is_refused(contexts: int, seed: int) -> None:
    for served in (trained(200), start(CLASSES)):
        learner = served_to(contexts, served, seed=seed)

        trial = try_out([learner], flipped(trained(200)))

        assert trial.worse
        assert f"over {contexts} contexts" in trial.reason


@pytest.mark.parametrize("contexts", [1, 2, 3])
def test_with_few_contexts_a_large_difference_is_enough(contexts: int) -> None:
    learner = served_to(contexts, trained(200))

    assert try_out([learner], changed(trained(200), all=5.0)).worse
    assert try_out([learner], flipped(trained(200))).worse


@pytest.mark.parametrize("contexts", [0, 1, 8])
@pytest.mark.parametrize(
    ("by", "group"), [({"all": 100.0}, "network"), ({"rates": 100.0}, "rates")]
)
def test_an_initialization_that_has_grown_hundredfold_is_refused_without_data(
    by: dict[str, float], group: str, contexts: int
) -> None:
    learner = served_to(contexts, trained(200)) if contexts else Learner(CLASSES, trained(200))

    trial = try_out([learner], changed(trained(200), **by))

    assert trial.worse
    assert trial.reason.startswith(f"the norm of {group} is ")


@pytest.mark.parametrize("regression", [False, True])
def test_one_that_diverges_is_refused(regression: bool) -> None:
    learner = served_to(8, trained(200, regression), regression)
    huge = changed(trained(200, regression), all=3e18)
    large = changed(trained(200, regression), all=9.0)

    trial = try_out([learner], huge)

    assert trial.worse
    assert trial.candidate == pytest.approx(3.5 if regression else -math.log(0.002))
    assert "over 8 contexts" in try_out([learner], large).reason
    with pytest.raises(InitializationError, match="not finite"):
        changed(trained(200), all=math.nan)


def test_one_of_another_model_is_an_error() -> None:
    learner = served_to(1, trained(200))

    with pytest.raises(MisfitError):
        try_out([learner], start(REGRESSION))


# --- how it looks ------------------------------------------------------------------------------


def test_several_partitions_decide_together() -> None:
    three = [served_to(3, trained(200), seed=seed) for seed in range(3)]

    together = try_out(three, flipped(trained(200)))
    least = try_out(three, flipped(trained(200)), limit=4)

    assert together.contexts == 9
    assert together.worse
    assert least.contexts == 6  # two of each: the most recent
    alone = [try_out([learner], flipped(trained(200))) for learner in three]
    assert together.candidate == pytest.approx(np.mean([trial.candidate for trial in alone]))


def test_contexts_with_few_labels_are_not_asked_and_the_latest_are_asked_first() -> None:
    learner = Learner(CLASSES, trained(200))
    tasks = make_tasks(3, 20, 12)
    play(learner, tasks.of(range(20 * 9)))
    assert try_out([learner], trained(250)).contexts == 0
    play(learner, tasks.of(range(20 * 9, 20 * 11)))
    play(learner, tasks.of(range(20 * 11, 20 * 12 - 10)))

    assert try_out([learner], trained(250)).contexts == 20
    few = learner.losses_of_segments(trained(250), 10, 10)
    every = learner.losses_of_segments(trained(250), 20, 10)
    assert few.shape == (2, 10)
    assert few.tobytes() == np.ascontiguousarray(every[:, :10]).tobytes()
    assert every[0, 0] == learner.losses_of_segments(trained(200), 1, 10)[1, 0]


@pytest.mark.parametrize(
    "settings",
    [{"classes": 3, "baseline_rate": 0.1}, {"classes": 0}, {"detector": {"name": "DDM"}}],
)
def test_a_trial_leaves_no_trace(settings: dict[str, Any]) -> None:
    config = make_config(**settings, warmup=[2, 4, 8])
    stream = make_stream(5, 400, contexts=6, classes=settings.get("classes", 2), missing=0.1)
    tried, other = (Learner(config, make_initialization(config)) for _ in range(2))
    candidate = replace(make_initialization(config, seed=6), version=3)
    for learner in (tried, other):
        play(learner, stream.of(range(200)))
        learner.snapshot()
        learner.mark()
        play(learner, stream.of(range(200, 300)))

    trial = try_out([tried], candidate)

    assert trial.contexts >= 4
    assert_same_bits(state_of(tried), state_of(other))
    assert (tried.version, tried.changed_bytes) == (0, other.changed_bytes)
    ours, theirs = (play(learner, stream.of(range(300, 400))) for learner in (tried, other))
    assert_same_bits(ours, theirs)
    assert tried.snapshot() == other.snapshot()


def test_a_candidate_with_its_classes_in_other_slots_is_arranged_for_its_trial() -> None:
    config = config_of(max_classes=4)
    learner = Learner(config, draw(spec_of(config), 1, classes=("no", "yes")))
    play(learner, make_tasks(2, 8, 40))
    classes = draw(spec_of(config), 2).tensors
    one = Initialization(
        spec=spec_of(config), tensors=classes, version=2, classes=("no", "yes", "perhaps")
    )
    turned = {
        name: np.ascontiguousarray(tensor[..., [2, 1, 0, 3]])
        if name in ("2.weight", "2.bias")
        else tensor
        for name, tensor in classes.items()
    }
    same = replace(one, tensors=turned, classes=("perhaps", "yes", "no"))

    found = try_out([learner], one), try_out([learner], same)

    assert found[0] == found[1]
    assert learner.labels.classes == ["no", "yes"]


def test_a_loss_is_that_of_the_segment_played_again() -> None:
    """Against the learner itself, which warms up after the same labels and never else."""
    config = make_config(warmup=[4, 8, 16], refresh_every=0, detector={"name": "NoDrift"})
    initialization = make_initialization(config)
    learner = Learner(config, initialization)
    rng = np.random.default_rng(8)
    x = rng.normal(size=(32, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(float)
    learner.step(Batch(contexts=["a"] * 32, x=x, y=y))
    scales = {name: a.copy() for name, a in learner._stream._asdict().items() if name != "known"}
    means = {n: getattr(learner._contexts, n)[0].copy() for n in ("x_count", "x_mean", "x_m2")}

    ((found, _),) = learner.losses_of_segments(initialization, 1, 10).T

    again = Learner(config, initialization)
    total = 0.0
    for i in range(32):  # with the scalers of now at every event, as the trial has them
        for name, array in scales.items():
            getattr(again._stream, name)[:] = array
        again._stream.known[:] = True
        if i:
            for name, array in means.items():
                getattr(again._contexts, name)[0] = array
        else:
            again.step(Batch(contexts=["a"], x=x[:1], y=np.array([np.nan])))
            for name, array in means.items():
                getattr(again._contexts, name)[0] = array
        decisions = again.step(Batch(contexts=["a"], x=x[i : i + 1], y=y[i : i + 1]))
        total += float(decisions.loss[0])
    assert found == pytest.approx(total / 32, rel=1e-4)
