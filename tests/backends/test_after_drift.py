"""The recovery curve: what follows a drift, of the right context, in bounded memory."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from streammaml.backends.after_drift import SMOOTH, AfterDrift
from streammaml.events import Decisions, DriftLevel
from tests import wire

NAN = math.nan


def batch(losses: list[float], drifts: tuple[int, ...] = ()) -> Decisions:
    """Losses of the adapted model; those of init are twice them, and there is no online model."""
    levels = np.zeros(len(losses), np.uint8)
    levels[list(drifts)] = DriftLevel.DRIFT
    values = np.array(losses)
    return wire.decisions(
        len(losses),
        loss=values,
        loss_init=2 * values,
        loss_baseline=np.full(len(losses), NAN),
        levels=levels,
    )


def raw(found: AfterDrift, model: int = 1) -> list[list[float]]:
    """The losses kept, by drift, without those that are to come."""
    return [[x for x in row if not math.isnan(x)] for row in found._losses[model].tolist()]


def test_a_drift_is_followed_from_the_label_after_its_alarm() -> None:
    found = AfterDrift(max_drifts=2, horizon=4)

    found.observe(["a", "a", "b", "a"], batch([9.0, 8.0, 7.0, 1.0], drifts=(1,)))
    found.observe(["b", "a", "a"], batch([6.0, 2.0, 3.0]))

    assert raw(found) == [[1.0, 2.0, 3.0], []]
    assert raw(found, model=0) == [[2.0, 4.0, 6.0], []]


def test_a_drift_is_followed_over_its_horizon_and_no_further() -> None:
    found = AfterDrift(max_drifts=2, horizon=3)

    found.observe(["a"] * 6, batch([9.0, 1.0, 2.0, 3.0, 4.0, 5.0], drifts=(0,)))
    found.observe(["a"], batch([6.0]))

    assert raw(found) == [[1.0, 2.0, 3.0], []]
    assert found._slots == {}


def test_a_context_that_drifts_again_begins_anew() -> None:
    found = AfterDrift(max_drifts=3, horizon=9)

    found.observe(["a"] * 5, batch([9.0, 1.0, 2.0, 9.0, 4.0], drifts=(0, 3)))

    assert raw(found) == [[1.0, 2.0], [4.0], []]


def test_the_oldest_drift_makes_room_and_its_context_is_followed_no_more() -> None:
    found = AfterDrift(max_drifts=2, horizon=5)

    found.observe(["a", "b", "c"], batch([9.0] * 3, drifts=(0, 1, 2)))
    found.observe(["a", "b", "c"], batch([1.0, 2.0, 3.0]))

    assert raw(found) == [[3.0], [2.0]]
    assert found._slots == {"b": 1, "c": 0}


def test_what_has_no_label_is_no_step_of_a_recovery() -> None:
    found = AfterDrift(max_drifts=1, horizon=3)

    found.observe(["a"] * 4, batch([9.0, NAN, 1.0, NAN], drifts=(0,)))
    found.observe(["a"] * 2, batch([NAN, 2.0]))

    assert raw(found) == [[1.0, 2.0]]


def test_batches_however_cut_give_the_same() -> None:
    rng = np.random.default_rng(0)
    contexts = [f"c{i}" for i in rng.integers(0, 5, 400)]
    losses = rng.exponential(size=400)
    drifts = np.flatnonzero(rng.random(400) < 0.05)
    whole, parts = AfterDrift(8, 12), AfterDrift(8, 12)

    whole.observe(contexts, batch(losses.tolist(), tuple(drifts)))
    for begin in range(0, 400, 37):
        inside = drifts[(drifts >= begin) & (drifts < begin + 37)] - begin
        part = slice(begin, begin + 37)
        parts.observe(contexts[part], batch(losses[part].tolist(), tuple(inside)))

    np.testing.assert_array_equal(whole._losses, parts._losses)
    assert whole.curves() == parts.curves()


def test_the_curves_are_means_over_drifts_and_a_few_labels() -> None:
    found = AfterDrift(max_drifts=4, horizon=9)
    for context in ("a", "b"):
        found.observe([context] * 9, batch([9.0, *range(1, 9)], drifts=(0,)))

    curves = found.curves()

    assert SMOOTH == 5
    assert curves["labels"] == list(range(1, 10))
    assert curves["losses"]["adapted"] == [2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 6.5, 7.0, None]
    assert curves["losses"]["init"][0] == 4.0
    assert set(curves["losses"]) == {"init", "adapted"}
    assert (curves["counts"], curves["drifts"]) == ([2] * 8 + [0], 2)
    json.dumps(curves, allow_nan=False)


def test_without_a_drift_there_is_nothing() -> None:
    found = AfterDrift(max_drifts=4, horizon=3)

    found.observe(["a"] * 3, batch([1.0, 2.0, 3.0]))

    assert found.curves() == {
        "labels": [1, 2, 3],
        "losses": {},
        "counts": [0, 0, 0],
        "drifts": 0,
        "window": SMOOTH,
    }


@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_may_be_empty_or_all_drift(size: int) -> None:
    found = AfterDrift(max_drifts=2, horizon=2)

    found.observe(["a"] * size, batch([1.0] * size, drifts=tuple(range(size))))

    assert found.curves()["drifts"] == size
