"""The learner of a partition: slices, eviction, growth, swaps, and contexts that diverge."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from river.drift import ADWIN

from streammaml.config import Config
from streammaml.errors import InitializationError
from streammaml.events import Batch, DriftLevel, Event, Result, Trigger
from streammaml.learner import Learner
from tests.learner.build import (
    Stream,
    assert_same_bits,
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
from tests.learner.reference import Reference

# --- slices ------------------------------------------------------------------------------------

LENGTH = 600


def cuts_of(size: int) -> list[int]:
    """Edges of slices of ``size``; of random lengths, some of them empty, for 0."""
    if size:
        return list(range(size, LENGTH, size))
    return sorted(np.random.default_rng(17).integers(0, LENGTH, 40).tolist())


@pytest.mark.parametrize("size", [1, 16, 256, 0])
@pytest.mark.parametrize(
    "settings_",
    [
        {"classes": 3},
        {"classes": 0, "baseline_rate": 0.05, "held_out_test": True},
        {"classes": 4, "open_classes": True, "max_contexts": 3},
        {"classes": 2, "max_contexts": 1},
        {"classes": 0, "detector": {"name": "ADWIN", "parameters": {"clock": 1, "delta": 0.05}}},
        {"classes": 2, "max_contexts": 3, "detector": {"name": "DDM"}},
    ],
    ids=lambda s: "-".join(map(str, s)),
)
def test_any_slicing_gives_the_same_bits(settings_: dict[str, Any], size: int) -> None:
    config = make_config(**settings_)
    stream = make_stream(
        41,
        LENGTH,
        contexts=5,
        classes=settings_["classes"],
        missing=0.1,
        unlabelled=0.2,
        drift_every=100,
    )
    whole, sliced = make_learner(config), make_learner(config)

    decisions, in_slices = play(whole, stream), play(sliced, stream, cuts_of(size))

    assert_same_bits(in_slices, decisions)
    assert_same_bits(state_of(sliced), state_of(whole))
    assert sliced._rows == whole._rows


def test_the_streams_that_are_sliced_drift_adapt_and_evict() -> None:
    stream = make_stream(41, LENGTH, contexts=5, missing=0.1, unlabelled=0.2, drift_every=100)

    ddm = play(make_learner(make_config(max_contexts=3, detector={"name": "DDM"})), stream)
    own = play(make_learner(make_config(detector={"parameters": {"threshold": 3}})), stream)

    assert ddm["evicted"] > 50
    assert {0, 1, 3} <= set(own["triggers"].tolist()) | set(ddm["triggers"].tolist())
    assert DriftLevel.DRIFT in own["levels"]


# --- detectors from river ----------------------------------------------------------------------


def test_an_external_detector_is_fed_the_signal_and_renewed_after_each_drift() -> None:
    given_ = {"clock": 1, "delta": 0.2, "grace_period": 5}
    config = make_config(detector={"name": "ADWIN", "parameters": given_})
    stream = make_stream(42, 900, contexts=2, drift_every=300)

    decisions = play(make_learner(config), stream)

    expected = []
    detectors = {name: ADWIN(**given_) for name in set(stream.contexts)}  # type: ignore[no-untyped-call]  # river's is not typed
    for name, p, y in zip(stream.contexts, decisions["predictions"], stream.y, strict=True):
        probability = max(float(p[int(y)]), 0.02)
        detectors[name].update(-math.log(probability))  # type: ignore[no-untyped-call]  # river's is not typed
        expected.append(DriftLevel.DRIFT if detectors[name].drift_detected else 0)
        if expected[-1]:
            detectors[name] = ADWIN(**given_)  # type: ignore[no-untyped-call]  # river's is not typed
    assert decisions["levels"].tolist() == expected
    assert sum(expected) >= 4
    assert (decisions["triggers"] == Trigger.DRIFT).tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize("classes", [3, 0])
def test_the_way_through_a_detector_in_python_is_the_compiled_way_to_the_bit(classes: int) -> None:
    common: dict[str, Any] = {"classes": classes, "baseline_rate": 0.05, "max_contexts": 3}
    deaf = make_config(**common, detector={"parameters": {"threshold": 1e9}})
    none = make_config(**common, detector={"name": "NoDrift"})
    stream = make_stream(48, 400, classes=classes, contexts=5, missing=0.1, unlabelled=0.3)
    compiled, external = make_learner(deaf), make_learner(none)

    expected, decisions = play(compiled, stream), play(external, stream)

    assert_same_bits(decisions, expected)
    ours, theirs = state_of(external), state_of(compiled)
    del ours["contexts.detector"], theirs["contexts.detector"]
    assert_same_bits(ours, theirs)


def test_a_detector_after_a_drift_is_a_new_one_and_not_the_old_one_reset() -> None:
    # this one alarms after 9, 5, 6, … events if it goes on; a new one always after 9
    chance = {"trigger_method": "random", "t_0": 10, "w": 5, "seed": 1}
    config = make_config(detector={"name": "DummyDriftDetector", "parameters": chance})

    decisions = play(make_learner(config), make_stream(42, 40, contexts=1))

    assert np.flatnonzero(decisions["levels"]).tolist() == [8, 17, 26, 35]


def test_page_hinkley_of_another_mode_is_rivers_own_and_agrees_until_its_first_alarm() -> None:
    stream = make_stream(43, 500, contexts=2, drift_every=150)
    up = make_learner(make_config(detector={"parameters": {"threshold": 3.0}}))
    both = make_learner(make_config(detector={"parameters": {"threshold": 3.0, "mode": "both"}}))

    compiled, external = play(up, stream), play(both, stream)

    assert up._prototype is None
    assert both._prototype is not None
    alarm = int(np.flatnonzero(external["levels"] == DriftLevel.DRIFT)[0])
    assert 10 < alarm <= np.flatnonzero(compiled["levels"] == DriftLevel.DRIFT)[0]
    until = slice(0, alarm + 1)
    assert external["predictions"][until].tobytes() == compiled["predictions"][until].tobytes()


def test_a_binary_detector_is_fed_whether_the_class_was_wrong() -> None:
    stream = make_stream(44, 600, contexts=1, drift_every=200)
    config = make_config(detector={"name": "DDM"}, warmup=[], refresh_every=0)

    learner = make_learner(config)
    decisions = play(learner, stream)

    wrong = decisions["predictions"].argmax(1) != stream.y
    detector = learner._prototype
    assert detector is not None
    detector = detector.clone()
    expected = []
    for error in wrong:
        detector.update(bool(error))
        level = 2 if detector.drift_detected else int(getattr(detector, "warning_detected", False))
        expected.append(level)
        if level == 2:
            detector = detector.clone()
    assert decisions["levels"].tolist() == expected
    assert {0, 1, 2} == set(expected)


# --- rows: growth and eviction -----------------------------------------------------------------


def test_growth_keeps_the_state_of_every_context() -> None:
    config = make_config()
    stream = make_stream(45, 900, contexts=40)
    order = np.argsort(stream.contexts, kind="stable")
    learner = make_learner(config)
    half = stream.of(np.flatnonzero(np.array(stream.contexts) < "context-20").tolist())
    play(learner, half)
    kept = {name: row_of(learner, name) for name in set(half.contexts)}
    capacity = learner._contexts.labels.shape[0]

    rest = stream.of([i for i in order if stream.contexts[i] >= "context-20"])
    decisions = play(learner, rest)

    assert learner._contexts.labels.shape[0] > capacity
    for name, row in kept.items():
        assert_same_bits(row_of(learner, name), row)
    firsts = [rest.contexts.index(name) for name in set(rest.contexts)]
    np.testing.assert_array_equal(decisions["loss"][firsts], decisions["loss_init"][firsts])
    assert learner.buffer_bytes > len(learner) * config.learner.support_size * 2 * 4


def events_of(names: str) -> Stream:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(len(names), 2)).astype(np.float32)
    return Stream(list(names), x, rng.integers(0, 2, len(names)).astype(float))


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("detector", ["PageHinkley", "ADWIN"])
def test_the_least_recently_used_context_is_the_one_that_leaves(detector: str, size: int) -> None:
    learner = make_learner(make_config(max_contexts=3, detector={"name": detector}))
    stream = events_of("abcabcacdac")

    decisions = play(learner, stream, list(range(size, len(stream), size)))

    assert decisions["evicted"] == 1
    assert sorted(learner._rows) == ["a", "c", "d"]
    assert len(learner) == 3


def test_an_evicted_context_begins_anew() -> None:
    learner = make_learner(make_config(max_contexts=2, warmup=[2], baseline_rate=0.1))
    play(learner, events_of("aaaaaaaab"))
    assert row_of(learner, "a")["labels"] == 8
    play(learner, events_of("c"))
    assert "a" not in learner._rows

    decisions = play(learner, events_of("a"))

    row = row_of(learner, "a")
    theta = make_initialization(make_config()).theta()
    assert decisions["evicted"] == 1
    assert decisions["loss"][0] == decisions["loss_init"][0] == decisions["loss_baseline"][0]
    assert row["fast"].tobytes() == theta.tobytes()
    assert row["labels"] == row["segment"] == 1
    assert row["x_count"].tolist() == [1, 1]
    assert row["detector"][0] == 1


def test_an_evicted_contexts_typical_error_begins_anew() -> None:
    learner = make_learner(make_config(classes=0, max_contexts=1))
    play(learner, events_of("aaaaa"))
    assert row_of(learner, "a")["error_scale"] != 0.5

    decisions = play(learner, Stream(["b"], np.ones((1, 2), np.float32), np.array([np.nan])))

    assert row_of(learner, "b")["error_scale"] == 0.5
    assert decisions["spread"][0] == 0.5 * state_of(learner)["stream.y_scale"][1]


def test_an_evicted_contexts_river_detector_leaves_with_it() -> None:
    learner = make_learner(make_config(max_contexts=1, detector={"name": "ADWIN"}))
    play(learner, events_of("aaaaa"))

    play(learner, events_of("b"))

    (detector,) = learner._detectors.values()
    assert isinstance(detector, ADWIN)
    assert detector.width == 1


# --- swap --------------------------------------------------------------------------------------


def test_a_new_initialization_is_used_from_the_next_adaptation_from_theta_on() -> None:
    config = make_config(warmup=[2, 4], refresh_every=0)
    old = make_initialization(config, seed=5)
    new = replace(make_initialization(config, seed=6), version=7)
    stream = events_of("aaaa")
    learner = make_learner(config, old)
    play(learner, stream.of([0, 1]))
    fast = row_of(learner, "a")["fast"]

    learner.swap(new)
    third = play(learner, stream.of([2]))

    assert learner.version == 7
    assert row_of(learner, "a")["fast"].tobytes() == fast.tobytes()
    assert third["versions"].tolist() == [0]
    assert third["loss"][0] != third["loss_init"][0]

    fourth = play(learner, stream.of([3]))
    fifth = play(learner, stream.of([0]))

    assert (fourth["versions"][0], fifth["versions"][0]) == (0, 7)
    reference = Reference(rules_of(config), layers_of(new), new.tensors["rates"].astype(float))
    for x, y in zip(stream.x, stream.y, strict=True):
        reference.step("a", x.astype(float), float(y))
    expected = np.concatenate([p.ravel() for layer in reference.rows["a"].layers for p in layer])
    np.testing.assert_allclose(row_of(learner, "a")["fast"], expected, atol=2e-6)


def test_a_refresh_from_the_fast_weights_does_not_change_the_version_behind_them() -> None:
    config = make_config(warmup=[2], support_size=4, after_drift=2, refresh_every=2)
    learner = make_learner(config)
    stream = events_of("aaaaaaa")
    play(learner, stream.of([0, 1, 2, 3, 4]))

    learner.swap(replace(make_initialization(config, seed=6), version=7))
    decisions = play(learner, stream.of([5, 6]))

    assert decisions["triggers"].tolist() == [Trigger.SCHEDULE, Trigger.NONE]
    assert decisions["results"].tolist() == [Result.ACCEPTED, Result.NONE]
    assert decisions["versions"].tolist() == [0, 0]


def test_a_context_that_begins_after_a_swap_begins_at_the_new_theta() -> None:
    config = make_config()
    learner = make_learner(config)
    new = replace(make_initialization(config, seed=6), version=7)
    learner.swap(new)

    decisions = play(learner, events_of("z"))

    assert decisions["versions"].tolist() == [7]
    assert row_of(learner, "z")["fast"].tobytes() == new.theta().tobytes()


def test_an_initialization_of_another_shape_is_refused_and_changes_nothing() -> None:
    learner = make_learner(make_config())
    other = make_initialization(make_config(hidden=[4]))

    with pytest.raises(InitializationError, match=r"its network is \(4, 4, 2\)"):
        learner.swap(other)

    assert learner.version == 0
    with pytest.raises(InitializationError):
        Learner(make_config(), other)


# --- a candidate that is worse -----------------------------------------------------------------


def test_with_the_held_out_test_a_worse_candidate_is_rejected_and_the_weights_stay() -> None:
    config = make_config(network="linear", held_out_test=True, warmup=[4, 16], refresh_every=0)
    rng = np.random.default_rng(9)
    x = rng.choice([-1.0, 1.0], (16, 2)).astype(np.float32)
    sign = np.where(np.arange(16) < 12, -1, 1)  # the newest four contradict the twelve before
    y = (x[:, 0] * sign > 0).astype(float)
    stream = Stream(["a"] * 16, x, y)
    learner = make_learner(config)
    play(learner, stream.of(range(15)))
    # the incumbent is right about the newest
    fast = learner._contexts.fast[learner._rows["a"]]
    fast[:] = 0
    fast[:2] = [-2, 2]
    before = fast.copy()

    decisions = play(learner, stream.of([15]))

    assert decisions["results"].tolist() == [Result.REJECTED]
    assert decisions["loss_after"][0] > decisions["loss_before"][0]
    assert row_of(learner, "a")["fast"].tobytes() == before.tobytes()


# --- divergence --------------------------------------------------------------------------------


def poison(learner: Learner, context: str, value: float) -> None:
    learner._contexts.fast[learner._rows[context]] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("classes", [3, 0])
def test_a_context_that_diverges_harms_no_other(value: float, classes: int) -> None:
    config = make_config(classes=classes, baseline_rate=0.05)
    stream = make_stream(46, 600, classes=classes, contexts=4, drift_every=150, unlabelled=0.1)
    sound, harmed = make_learner(config), make_learner(config)
    edges = list(range(0, 600, 20))
    others = [i for i, name in enumerate(stream.contexts) if name != "context-2"]

    expected, actual = [], []
    for first in edges:
        part = Stream(
            stream.contexts[first : first + 20],
            stream.x[first : first + 20],
            stream.y[first : first + 20],
        )
        expected.append(play(sound, part))
        if first:
            poison(harmed, "context-2", value)
        actual.append(play(harmed, part))

    for name in expected[0]:
        if name == "evicted":
            continue
        ours = np.concatenate([p[name] for p in actual])
        theirs = np.concatenate([p[name] for p in expected])
        assert ours[others].tobytes() == theirs[others].tobytes(), name
    for name in set(stream.contexts) - {"context-2"}:
        assert_same_bits(row_of(harmed, name), row_of(sound, name))
    flagged = np.concatenate([p["nonfinite"] for p in actual])
    assert flagged.sum() >= 20
    assert set(np.array(stream.contexts)[flagged == 1]) == {"context-2"}
    assert np.isfinite(row_of(harmed, "context-2")["fast"]).all()


def test_the_others_are_as_in_a_run_without_the_context_that_diverges() -> None:
    # what is stream-wide cannot differ: the bad context's numbers are all missing, and x is
    # refreshed at each of fewer than 200 labels in both runs
    config = make_config(classes=3)
    good = make_stream(47, 120, classes=3, contexts=3, drift_every=40)
    contexts: list[str] = []
    places = []
    x, y = [], []
    for i, name in enumerate(good.contexts):
        places.append(len(contexts))
        contexts += [name, "bad"] if i % 2 else [name]
        x += [good.x[i], np.full(2, np.nan, np.float32)] if i % 2 else [good.x[i]]
        y += [good.y[i], 1.0] if i % 2 else [good.y[i]]
    mixed = Stream(contexts, np.array(x), np.array(y))
    alone, beside = make_learner(config), make_learner(config)

    expected = play(alone, good)
    parts = []
    for i in range(0, len(mixed), 9):
        if "bad" in beside._rows:
            poison(beside, "bad", 3e38)
        parts.append(play(beside, mixed.of(list(range(i, min(i + 9, len(mixed)))))))

    for name, array in expected.items():
        if name != "evicted":
            ours = np.concatenate([p[name] for p in parts])[places]
            assert ours.tobytes() == array.tobytes(), name
    for name in set(good.contexts):
        row, without = row_of(beside, name), row_of(alone, name)
        for place in ("used", "changed"):  # they count the others' events too
            del row[place], without[place]
        assert_same_bits(row, without)
    assert sum(p["nonfinite"].sum() for p in parts) >= 10


@pytest.mark.parametrize("classes", [2, 0])
def test_a_prediction_that_is_not_finite_falls_back_to_theta_and_is_flagged(classes: int) -> None:
    config = make_config(classes=classes, warmup=[])
    learner = make_learner(config)
    stream = events_of("aaaa")
    play(learner, stream.of([0, 1]))
    poison(learner, "a", np.nan)

    decisions = play(learner, stream.of([2, 3]))

    theta = make_initialization(config).theta()
    assert decisions["nonfinite"].tolist() == [1, 0]
    np.testing.assert_array_equal(decisions["loss"], decisions["loss_init"])
    assert row_of(learner, "a")["fast"].tobytes() == theta.tobytes()


@pytest.mark.parametrize("classes", [2, 0])
def test_plain_descent_that_gives_no_finite_prediction_is_charged_as_theta(classes: int) -> None:
    learner = make_learner(make_config(classes=classes, warmup=[], baseline_rate=0.1))
    stream = events_of("aaaa")
    play(learner, stream.of([0, 1, 2]))
    learner._contexts.baseline[learner._rows["a"]] = 3e38

    decisions = play(learner, stream.of([3]))

    assert decisions["loss_baseline"][0] == decisions["loss_init"][0]
    assert not decisions["nonfinite"][0]


@pytest.mark.parametrize("classes", [2, 0])
def test_a_candidate_that_is_not_finite_is_dropped_as_diverged(classes: int) -> None:
    config = make_config(classes=classes, warmup=[4], refresh_every=0, inner_steps=3)
    absurd = make_initialization(config)
    absurd.tensors["rates"][:] = 1e38
    learner = make_learner(config, absurd)
    stream = events_of("aaaa")
    play(learner, stream.of([0, 1, 2]))
    learner._contexts.fast[learner._rows["a"]] += np.float32(0.25)
    before = row_of(learner, "a")["fast"]

    decisions = play(learner, stream.of([3]))

    assert decisions["results"].tolist() == [Result.DIVERGED]
    assert decisions["triggers"].tolist() == [Trigger.WARMUP]
    assert np.isnan(decisions["gradient_norm"][0])
    assert row_of(learner, "a")["fast"].tobytes() == before.tobytes()


def test_where_theta_itself_fails_every_known_class_is_alike_and_a_value_is_the_labels_mean() -> (
    None
):
    for classes, expected in ((4, [0.5, 0.5, 0, 0]), (0, [20.0])):
        config = make_config(classes=classes, open_classes=bool(classes))
        huge = make_initialization(config, scale=1e30)
        stream = events_of("aaa")
        stream = replace(stream, y=np.array([0.0, 1.0, 0.0] if classes else [10.0, 30.0, 20.0]))

        decisions = play(make_learner(config, huge), stream)

        np.testing.assert_array_equal(decisions["predictions"][2], expected)
        assert decisions["nonfinite"].any()


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 1e12, -1e12, 1.0, 3.5]),
    st.floats(-999999995904.0, 999999995904.0, width=32),
    st.just(float("nan")),
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_number_makes_a_parameter_or_a_prediction_that_is_not_finite(
    data: st.DataObject,
) -> None:
    classes = data.draw(st.sampled_from([0, 3]))
    config = make_config(
        classes=classes,
        hidden=[4],
        warmup=[1, 2, 3],
        support_size=4,
        refresh_every=2,
        held_out_test=data.draw(st.booleans()),
        baseline_rate=data.draw(st.sampled_from([0.0, 0.1, 1e30])),
    )
    initialization = make_initialization(
        config,
        data.draw(st.integers(0, 99)),
        scale=data.draw(st.sampled_from([0.0, 1.0, 1e4, 1e19, 1e30])),
        rate=data.draw(st.sampled_from([0.0, 0.1, 1e3, 1e30, 1e38])),
    )
    events = data.draw(st.integers(1, 25))
    x = [[data.draw(NUMBERS), data.draw(NUMBERS)] for _ in range(events)]
    labels = st.sampled_from([0.0, 1.0, 2.0]) if classes else st.floats(-1e12, 1e12)
    y = [data.draw(st.one_of(labels, st.just(float("nan")))) for _ in range(events)]
    names = [data.draw(st.sampled_from("ab")) for _ in range(events)]
    learner = make_learner(config, initialization)

    decisions = play(learner, Stream(names, np.array(x, np.float32), np.array(y)))

    state = state_of(learner)
    for name in ("fast", "baseline", "detector", "error_scale", "x_mean", "x_m2"):
        finite = np.isfinite(state[f"contexts.{name}"])
        assert finite.all() or (name == "detector" and (finite[:, :3]).all()), name
    for name in ("x_shift", "x_inverse", "y_scale"):
        assert np.isfinite(state[f"stream.{name}"]).all(), name
    assert np.isfinite(decisions["predictions"]).all()
    if classes:
        np.testing.assert_allclose(decisions["predictions"].sum(1), 1, rtol=1e-5)
    labelled = ~np.isnan(y)
    for name in ("loss", "loss_init"):
        assert np.isfinite(decisions[name][labelled]).all()
        assert np.isnan(decisions[name][~labelled]).all()


# --- borders -----------------------------------------------------------------------------------


def bad_batches() -> list[Batch]:
    x, y = np.zeros((2, 2), np.float32), np.zeros(2)
    return [
        Batch(contexts=["a", "b"], x=x[:, :1].copy(), y=y),
        Batch(contexts=["a"], x=x, y=y),
        Batch(contexts=["a", "b"], x=x.astype(np.float64), y=y),
        Batch(contexts=["a", "b"], x=np.asfortranarray(x), y=y),
        Batch(contexts=["a", "b"], x=x, y=y[:1]),
        Batch(contexts=["a", "b"], x=x, y=np.array([0.0, 2.0])),
        Batch(contexts=["a", "b"], x=x, y=np.array([0.0, -1.0])),
    ]


@pytest.mark.parametrize("batch", bad_batches())
def test_a_batch_that_would_write_outside_the_arrays_is_a_bug(batch: Batch) -> None:
    learner = make_learner(make_config())

    with pytest.raises((AssertionError, TypeError)):
        learner.step(batch)


def test_an_empty_batch_decides_nothing() -> None:
    learner = make_learner(make_config())
    empty = Batch(contexts=[], x=np.zeros((0, 2), np.float32), y=np.zeros(0))

    decisions = learner.step(empty)

    assert decisions.predictions.shape == (0, 2)
    assert len(learner) == 0


# --- events, categories included, from the schema to the decisions ------------------------------


def make_mixed() -> tuple[Config, list[Event], NDArray[np.float64], NDArray[np.float64]]:
    """Events of a number, a boolean and a category, their one-hot x and class slots."""
    config = Config.build(
        {
            "features": [
                {"name": "heat"},
                {"name": "promo", "type": "boolean"},
                {"name": "day", "type": "category", "categories": ["mon", "tue", "wed"]},
            ],
            "label": {"max_classes": 3},
            "learner": {"hidden": [8]},
        }
    )
    kind = msgspec.defstruct("Features", ["heat", "promo", "day"])
    rng = np.random.default_rng(50)
    events, x, y = [], [], []
    names = ["no", "yes", "maybe"]
    for _ in range(200):
        heat, promo, day = float(rng.normal()), bool(rng.integers(2)), int(rng.integers(5))
        slot = int(heat > 0) if day != 2 else 2
        text = ["mon", "tue", "wed", "sun", None][day]
        known = [float(day == k) if day < 4 else np.nan for k in range(3)]
        x.append([heat, float(promo), *known])
        labelled = rng.random() < 0.9
        label = names[slot] if labelled else None
        events.append(Event(context=int(rng.integers(3)), features=kind(heat, promo, text)))
        events[-1].label = label
        y.append(slot if labelled else np.nan)
    return config, events, np.array(x), np.array(y)


def test_events_with_categories_are_learned_as_the_reference_learns_their_numbers() -> None:
    config, events, x, slots = make_mixed()
    initialization = make_initialization(config)
    learner = make_learner(config, initialization)

    collated = learner.collate(events)
    decisions = learner.step(collated.batch)

    order = [str(label) for label in learner.labels.classes]
    place = [order.index(name) for name in ("no", "yes", "maybe")]
    y = np.array([place[int(s)] if s == s else np.nan for s in slots])
    np.testing.assert_array_equal(collated.batch.y, y)
    np.testing.assert_array_equal(collated.batch.x, x.astype(np.float32))
    rules = replace(rules_of(config), width=5, known=0)
    reference = Reference(
        rules, layers_of(initialization), initialization.tensors["rates"].astype(float)
    )
    outcomes = [
        reference.step(str(e.context), row, float(label))
        for e, row, label in zip(events, x.astype(np.float32).astype(float), y, strict=True)
    ]
    np.testing.assert_allclose(
        decisions.predictions, np.array([o.prediction for o in outcomes]), atol=1e-5
    )
    np.testing.assert_allclose(decisions.loss, [o.loss for o in outcomes], atol=1e-4)
    assert decisions.levels.tolist() == [o.level for o in outcomes]
