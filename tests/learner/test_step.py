"""The whole policy: against the slow reference, and by values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streammaml.config import Config
from streammaml.events import DriftLevel, Floats, Result, Trigger
from streammaml.learner import Learner
from tests.learner.build import (
    Arrays,
    Stream,
    layers_of,
    make_config,
    make_initialization,
    make_learner,
    make_stream,
    play,
    row_of,
    rules_of,
    state_of,
)
from tests.learner.reference import Outcome, Reference

MARGIN = 1e-4
"""No decision of these streams may hang on less: float32 moves a loss by some 1e-6."""
TOLERANCE = 1e-5


def play_both(config: Config, stream: Stream) -> tuple[Arrays, list[Outcome]]:
    initialization = make_initialization(config)
    rates = initialization.tensors["rates"].astype(float)
    reference = Reference(rules_of(config), layers_of(initialization), rates)
    outcomes = [
        reference.step(context, x.astype(float), float(y))
        for context, x, y in zip(stream.contexts, stream.x, stream.y, strict=True)
    ]
    return play(make_learner(config, initialization), stream), outcomes


def column(outcomes: list[Outcome], name: str) -> Floats:
    return np.array([getattr(outcome, name) for outcome in outcomes], float)


def smallest_margin(outcomes: list[Outcome], threshold: float) -> float:
    """How near any decision came to going the other way."""
    statistic = column(outcomes, "statistic")
    to_level = np.minimum(abs(statistic - threshold), abs(statistic - threshold / 2)).min()
    losses = abs(column(outcomes, "before") - column(outcomes, "after"))
    tested = column(outcomes, "support") >= 16
    return float(min(to_level, losses[tested].min(initial=1.0)))


def assert_equal(decisions: Arrays, outcomes: list[Outcome]) -> None:
    assert decisions["levels"].tolist() == [o.level for o in outcomes]
    assert [Trigger(t).name.lower() for t in decisions["triggers"]] == [o.trigger for o in outcomes]
    assert [Result(r).name.lower() for r in decisions["results"]] == [o.result for o in outcomes]
    assert decisions["support"].tolist() == [o.support for o in outcomes]
    predictions = np.array([o.prediction for o in outcomes])
    scale = max(1.0, float(abs(predictions).max()))
    np.testing.assert_allclose(decisions["predictions"], predictions, atol=TOLERANCE * scale)
    theirs = {"loss_baseline": "loss_plain", "loss_before": "before", "loss_after": "after"}
    for name in (
        "loss",
        "loss_init",
        "loss_baseline",
        "loss_before",
        "loss_after",
        "gradient_norm",
        "spread",
    ):
        expected = column(outcomes, theirs.get(name, name))
        np.testing.assert_allclose(
            decisions[name], expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )
    assert not decisions["nonfinite"].any()


@pytest.mark.parametrize("network", ["mlp", "linear"])
@pytest.mark.parametrize(
    ("classes", "open_classes", "seed"),
    [(2, False, 32), (4, False, 32), (4, True, 32), (0, False, 31)],
)
def test_a_drifting_stream_is_decided_as_the_reference_decides_it(
    classes: int, open_classes: bool, seed: int, network: str
) -> None:
    config = make_config(
        classes=classes,
        open_classes=open_classes,
        network=network,
        baseline_rate=0.05,
        detector={"parameters": {"threshold": 3.0}},
    )
    stream = make_stream(seed, 500, classes=classes, missing=0.1, unlabelled=0.1, drift_every=150)

    decisions, outcomes = play_both(config, stream)

    assert smallest_margin(outcomes, 3.0) > MARGIN
    assert {o.trigger for o in outcomes} == {"none", "warmup", "drift", "schedule"}
    assert {o.level for o in outcomes} == {0, 1, 2}
    assert_equal(decisions, outcomes)


@pytest.mark.parametrize("classes", [3, 0])
def test_a_held_out_test_accepts_and_rejects_as_the_reference_does(classes: int) -> None:
    config = make_config(classes=classes, held_out_test=True)
    stream = make_stream(24, 400, classes=classes, drift_every=130)

    decisions, outcomes = play_both(config, stream)

    assert smallest_margin(outcomes, 5.0) > MARGIN
    assert {o.result for o in outcomes} == {"none", "accepted", "rejected"}
    assert_equal(decisions, outcomes)


def test_the_label_scaler_is_refreshed_at_every_500th_label() -> None:
    config = make_config(classes=0, network="linear")
    stream = make_stream(29, 1_100, classes=0, contexts=2)
    stream = replace(stream, y=stream.y + np.linspace(0, 20, 1_100))

    decisions, outcomes = play_both(config, stream)

    assert smallest_margin(outcomes, 5.0) > MARGIN
    assert_equal(decisions, outcomes)


def test_a_policy_other_than_the_default_is_followed() -> None:
    config = make_config(
        classes=2,
        warmup=[1, 3, 5],
        support_size=8,
        after_drift=3,
        refresh_every=5,
        clip_norm=0.2,
        inner_steps=2,
        detector={"parameters": {"threshold": 2.0, "min_instances": 5, "delta": 0.05}},
    )
    stream = make_stream(24, 300, contexts=2, drift_every=60)

    decisions, outcomes = play_both(config, stream)

    assert smallest_margin(outcomes, 2.0) > MARGIN
    assert {o.trigger for o in outcomes} == {"none", "warmup", "drift", "schedule"}
    assert np.nanmax(decisions["gradient_norm"]) > 0.2
    assert_equal(decisions, outcomes)


# --- by hand -----------------------------------------------------------------------------------


def make_tiny(classes: int, **learner: Any) -> tuple[Learner, Config]:
    """One number, a linear network: 2 inputs; weights of ±½ on the first, ¼ in a regression."""
    config = make_config(
        width=1, classes=classes, network="linear", inner_steps=1, inner_rate=0.5, **learner
    )
    initialization = make_initialization(config)
    weight = [[0.5, -0.5], [0.0, 0.0]] if classes else [[0.25], [0.0]]
    tensors = {
        "0.weight": np.array(weight, np.float32),
        "0.bias": np.zeros(classes or 1, np.float32),
        "rates": np.full((1, 2), 0.5, np.float32),
    }
    return make_learner(config, replace(initialization, tensors=tensors)), config


def one_context(x: list[float], y: list[float]) -> Stream:
    return Stream(["only"] * len(x), np.array(x, np.float32)[:, None], np.array(y, float))


def test_first_predictions_and_losses_are_those_computed_by_hand() -> None:
    learner, _ = make_tiny(2, warmup=[3])

    # z = 2 before any label; then the number looks constant, z = 0; then mean 3, deviation 1
    decisions = play(learner, one_context([2, 4, 4], [1, 0, 1]))

    sigmoid = [1 / (1 + math.exp(-2)), 0.5, 1 / (1 + math.exp(-1))]
    np.testing.assert_allclose(decisions["predictions"][:, 0], sigmoid, rtol=1e-6)
    losses = [2.1269280, math.log(2), 1.3132617]
    np.testing.assert_allclose(decisions["loss"], losses, rtol=1e-6)
    np.testing.assert_allclose(decisions["loss_init"], losses, rtol=1e-6)
    assert decisions["triggers"].tolist() == [Trigger.NONE, Trigger.NONE, Trigger.WARMUP]
    assert decisions["support"].tolist() == [0, 0, 3]


def test_fast_weights_after_the_first_warmup_are_those_computed_by_hand() -> None:
    learner, _ = make_tiny(2, warmup=[3])

    decisions = play(learner, one_context([2, 4, 4], [1, 0, 1]))

    # inputs −1, 1, 1 (twice each); p0 = .2689414, .7310586, .7310586 against 0, 1, 0
    by_weight, by_bias = 0.1931757 / 3, 0.7310586 / 3
    expected = np.array(
        [
            [0.5 - by_weight / 2, -0.5 + by_weight / 2],
            [-by_weight / 2, by_weight / 2],
            [-by_bias / 2, by_bias / 2],
        ]
    )
    np.testing.assert_allclose(row_of(learner, "only")["fast"], expected.ravel(), atol=2e-7)
    norm = math.sqrt(4 * by_weight**2 + 2 * by_bias**2)
    np.testing.assert_allclose(decisions["gradient_norm"][2], norm, rtol=1e-6)
    before = (0.3132617 + 0.3132617 + 1.3132617) / 3
    np.testing.assert_allclose(decisions["loss_before"][2], before, rtol=1e-6)
    # logits' difference after: 1 − 4·w/2 − … at input ±1
    margin = 1 - 2 * by_weight
    logits = [-margin - by_bias, margin - by_bias, margin - by_bias]
    after = sum(math.log1p(math.exp(s * z)) for s, z in zip([1, -1, 1], logits, strict=True)) / 3
    np.testing.assert_allclose(decisions["loss_after"][2], after, rtol=1e-6)


def test_a_value_is_unscaled_and_clipped_to_the_labels_seen() -> None:
    learner, _ = make_tiny(0, warmup=[])

    # before any label mean 0, deviation 1: 2/4 is served as it is
    decisions = play(learner, one_context([2, 2, 6, 100], [10, 12, 14, math.nan]))

    # then mean 10, deviation 1 + 10, but only 10 was seen; mean 11, deviation 12, z = 0; at 100
    # z = 4 lifts the prediction to 12 + 13 · 1, beyond the greatest label
    np.testing.assert_allclose(decisions["predictions"][:, 0], [0.5, 10, 11, 14])
    np.testing.assert_allclose(decisions["loss"][:3], [9.5, 2 / 11, 3 / 12])
    np.testing.assert_allclose(decisions["spread"][:3], [0.5, 0.53 * 11, 0.523036363 * 12])


def test_the_scalers_hold_what_three_events_give_by_hand() -> None:
    learner, _ = make_tiny(2)
    stream = Stream(
        ["a", "a", "b"], np.array([[1], [2], [6]], np.float32), np.array([0.0, 1.0, 0.0])
    )

    play(learner, stream)

    state = state_of(learner)
    np.testing.assert_allclose(state["stream.x_shift"], [3.0])
    np.testing.assert_allclose(state["stream.x_variance"], [14 / 3])
    np.testing.assert_allclose(state["stream.x_inverse"], [math.sqrt(3 / 14)])
    assert state["contexts.x_count"].tolist() == [[2.0], [1.0]]
    assert state["contexts.x_mean"].tolist() == [[1.5], [6.0]]
    assert state["contexts.x_m2"].tolist() == [[0.5], [0.0]]
    assert state["stream.counts"].tolist() == [3, 3]


def test_an_unlabelled_event_moves_the_scalers_of_x_and_nothing_else() -> None:
    learner, _ = make_tiny(2)
    play(learner, one_context([1, 2, 6], [0, 1, 0]))
    before = state_of(learner)

    decisions = play(learner, one_context([10], [math.nan]))

    after = state_of(learner)
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    scalers = {f"{owner}.x_{part}" for owner in ("contexts", "stream") for part in SUMS}
    assert moved == {*scalers, "contexts.used", "contexts.ledger", "stream.counts"}
    assert after["stream.counts"].tolist() == [3, 4]
    assert math.isnan(decisions["loss"][0])
    assert decisions["levels"][0] == DriftLevel.STABLE


SUMS = ("count", "mean", "m2")


def test_the_ring_wraps_around_and_holds_the_newest() -> None:
    learner, _ = make_tiny(0, support_size=4, warmup=[])
    values = np.arange(22.0)

    play(learner, one_context(values.tolist(), (values + 10).tolist()))

    row = row_of(learner, "only")
    assert row["support_x"].ravel().tolist() == [20, 21, *range(2, 20)]
    assert row["support_y"].tolist() == [30, 31, *range(12, 30)]
    assert row["support_offsets"].tolist() == [-1] * 20
    assert row["labels"] == 22
    assert row["segment"] == 22


def test_an_adaptation_uses_a_support_set_and_not_the_whole_ring() -> None:
    learner, _ = make_tiny(2, support_size=4, warmup=[4], refresh_every=2)
    values = np.arange(24.0)

    decisions = play(learner, one_context(values.tolist(), (values % 2).tolist()))

    used = decisions["support"]
    assert used[used > 0].tolist() == [4] * 11


def test_a_drift_starts_the_segment_at_four_with_a_new_detector_and_from_theta() -> None:
    learner, config = make_tiny(2, warmup=[2, 4, 8], refresh_every=0)
    rng = np.random.default_rng(3)
    sign = np.where(np.arange(60) < 30, 1, -1)
    x = rng.choice([-1.0, 1.0], 60)
    stream = one_context(x.tolist(), ((x * sign) < 0).astype(float).tolist())
    decisions = play(learner, stream)
    drift = int(np.flatnonzero(decisions["levels"] == DriftLevel.DRIFT)[0])
    learner, config = make_tiny(2, warmup=[2, 4, 8], refresh_every=0)

    until = play(learner, one_context(x[: drift + 1].tolist(), stream.y[: drift + 1].tolist()))

    assert 30 <= drift < 45
    assert until["triggers"][-1] == Trigger.DRIFT
    assert until["support"][-1] == 4
    row = row_of(learner, "only")
    assert row["segment"] == 4
    assert row["detector"].tolist() == [0, 0, 0, np.inf]
    rearmed = np.flatnonzero(decisions["triggers"][drift + 1 :]) + 1
    assert rearmed[0] == 4
    assert decisions["support"][drift + 4] == 8
    assert config.learner.after_drift == 4
