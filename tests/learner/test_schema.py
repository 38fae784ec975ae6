"""Events to numbers and slots: what is missing, what is bad, and that the bad leaves no trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from streammaml.config import Config, LabelConfig
from streammaml.errors import RejectedError
from streammaml.events import Event, Label, Reason, Task, canonical
from streammaml.learner.schema import Collated, Labels, Schema

FEATURES = [
    {"name": "heat", "range": [-10, 50]},
    {"name": "promo", "type": "boolean"},
    {"name": "day", "type": "category", "categories": ["mon", "tue", "3"]},
    {"name": "wind"},
]
Features = msgspec.defstruct("Features", ["heat", "promo", "day", "wind"])
NUMBERS = Config.build({"features": [{"name": "a"}, {"name": "b"}]}).features
Pair = msgspec.defstruct("Pair", ["a", "b"])


def event(*values: Any, label: Label | None = None, context: str | int | None = "c") -> Event:
    return Event(context=context, features=Features(*values), label=label)


def pair(a: Any, b: Any = 0.0, label: Label | None = None) -> Event:
    return Event(context="c", features=Pair(a, b), label=label)


def open_labels(most: int = 3) -> Labels:
    return Labels(LabelConfig(max_classes=most))


def collate(events: Sequence[Event], labels: Labels | None = None) -> Collated:
    schema = Schema(Config.build({"features": FEATURES}).features)
    return schema.collate(events, labels or open_labels())


def collate_pairs(events: Sequence[Event], labels: Labels | None = None) -> Collated:
    return Schema(NUMBERS).collate(events, labels or open_labels())


# --- features ----------------------------------------------------------------------------------


def test_numbers_stay_booleans_are_0_and_1_and_categories_one_hot() -> None:
    collated = collate([event(21.5, True, "tue", -3), event(0, False, "mon", 1e12)])

    assert collated.batch.x.tolist() == [
        [21.5, 1, 0, 1, 0, -3],
        [0, 0, 1, 0, 0, float(np.float32(1e12))],
    ]
    assert collated.batch.x.dtype == np.float32
    assert collated.batch.x.flags.c_contiguous
    assert collated.kept == [0, 1]
    assert collated.rejected == []


def test_null_is_missing_in_every_slot_of_its_feature() -> None:
    collated = collate([event(None, None, None, None), event(1, True, "mon", None)])

    assert np.isnan(collated.batch.x).tolist() == [[True] * 6, [False] * 5 + [True]]
    assert collated.rejected == []
    assert collated.unknown_categories == 0


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), float("-inf"), 1.1e12, -1.1e12, 10**13]
)
def test_a_number_that_is_not_finite_or_too_large_is_not_missing_but_bad(
    bad: float, place: int
) -> None:
    values = [1.0, 1.0]
    values[place] = bad

    collated = collate_pairs([pair(1, 2), pair(*values), pair(3, 4)])

    assert collated.kept == [0, 2]
    assert collated.batch.x.tolist() == [[1, 2], [3, 4]]
    (rejected,) = collated.rejected
    assert (rejected.place, rejected.reason) == (1, Reason.NONFINITE)
    assert repr("ab"[place]) in rejected.message
    assert "null" in rejected.message


def test_a_number_at_the_limit_is_kept() -> None:
    collated = collate_pairs([pair(1e12, -1e12), pair(-0.0, 1e-320)])

    assert collated.kept == [0, 1]
    assert np.isfinite(collated.batch.x).all()


def test_an_unknown_category_is_all_zero_and_counted() -> None:
    collated = collate(
        [event(1, True, "sun", 1), event(1, True, None, 1), event(1, True, "mon", 1)]
    )

    assert collated.batch.x[0, 2:5].tolist() == [0, 0, 0]
    assert collated.unknown_categories == 1
    assert collated.rejected == []


@pytest.mark.parametrize("value", ["3", 3, 3.0])
def test_a_category_is_the_same_however_json_wrote_it(value: Any) -> None:
    collated = collate([event(1, True, value, 1)])

    assert collated.batch.x[0, 2:5].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("heat", "kept"), [(-10, True), (50, True), (50.1, False), (-11, False)])
def test_a_number_outside_its_range_is_rejected_with_the_range(heat: float, kept: bool) -> None:
    collated = collate([event(heat, True, "mon", 1)])

    assert bool(collated.kept) is kept
    if not kept:
        assert collated.rejected[0].reason is Reason.SCHEMA
        assert collated.rejected[0].message == f"feature 'heat' is {heat:g}, outside [-10, 50]"


def test_a_missing_number_is_in_every_range() -> None:
    assert collate([event(None, True, "mon", 1)]).kept == [0]


# --- whole events ------------------------------------------------------------------------------


def test_an_event_without_context_label_or_features_says_what_it_lacks() -> None:
    events = [
        event(1, True, "mon", 1, context=None),
        event(1, True, "mon", 1, context=""),
        Event(context="c"),
        Event(context="c", label=1),
        Event(),
    ]

    rejected = collate(events).rejected

    assert [r.reason for r in rejected] == [
        Reason.CONTEXT,
        Reason.CONTEXT,
        Reason.SCHEMA,
        Reason.LATE,
        Reason.CONTEXT,
    ]
    assert [r.place for r in rejected] == [0, 1, 2, 3, 4]


def test_a_context_may_be_a_number_zero_included() -> None:
    events = [event(1, True, "mon", 1, context=c) for c in (0, 3, "3")]

    assert collate(events).batch.contexts == ["0", "3", "3"]


def test_kept_and_rejected_stand_in_the_order_in_which_they_came() -> None:
    events = [
        pair(0, label="x"),
        pair(float("nan")),
        Event(context="c", label="x"),
        pair(3, label="y"),
        pair(4, label="z"),
        pair(float("inf"), label="x"),
        pair(6),
    ]

    collated = collate_pairs(events, open_labels(2))

    assert collated.kept == [0, 3, 6]
    assert collated.batch.x[:, 0].tolist() == [0, 3, 6]
    np.testing.assert_array_equal(collated.batch.y, [0, 1, np.nan])
    assert [(r.place, r.reason) for r in collated.rejected] == [
        (1, Reason.NONFINITE),
        (2, Reason.LATE),
        (4, Reason.LABEL),
        (5, Reason.NONFINITE),
    ]


def test_a_rejected_event_leaves_no_class_behind() -> None:
    labels = open_labels()
    events = [
        pair(float("nan"), label="bad number"),
        Event(context="c", label="alone"),
        Event(features=Pair(1, 2), label="no context"),
        pair(1, label="good"),
    ]

    collated = collate_pairs(events, labels)

    assert collated.kept == [3]
    assert labels.classes == ["good"]
    assert labels.names == ["good"]


def test_nothing_at_all_is_a_batch_of_nothing() -> None:
    for collated in (collate([]), collate_pairs([]), collate([Event()])):
        assert collated.batch.x.shape[0] == 0
        assert collated.batch.y.shape == (0,)
        assert collated.batch.contexts == []
        assert collated.kept == []


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), ("3", "3"), (2.5, "2.5"), (-0.0, "0"), (True, "true"), (False, "false")],
)
def test_a_class_has_one_text(value: Label, text: str) -> None:
    assert canonical(value) == text


def test_three_as_number_and_as_text_are_one_class() -> None:
    labels = open_labels()

    slots = [labels.encode(label) for label in (3, "a", 3.0, "3", True, "true")]

    assert slots == [0, 1, 0, 0, 2, 2]
    assert labels.classes == [3, "a", True]


def test_a_class_over_the_cap_is_rejected_and_changes_nothing() -> None:
    labels = open_labels(2)
    labels.encode("a")
    labels.encode("b")

    with pytest.raises(RejectedError, match=r"'c' would be class 3; label.max_classes is 2") as e:
        labels.encode("c")

    assert e.value.reason is Reason.LABEL
    assert labels.classes == ["a", "b"]
    assert labels.encode("b") == 1


def test_a_class_outside_the_list_is_rejected() -> None:
    labels = Labels(LabelConfig(classes=("no", "yes", 3)))

    with pytest.raises(RejectedError, match=r"'maybe' is not in label.classes") as e:
        labels.encode("maybe")

    assert e.value.reason is Reason.LABEL
    assert [labels.encode(label) for label in ("yes", "no", "3")] == [1, 0, 2]


def test_an_open_list_goes_on_from_the_classes_of_the_initialization() -> None:
    labels = Labels(LabelConfig(max_classes=3), ("b", "a"))

    assert [labels.encode(label) for label in ("a", "new", "b")] == [1, 2, 0]


def test_a_closed_list_is_not_replaced_by_the_initializations() -> None:
    labels = Labels(LabelConfig(classes=("x", "y")), ("b", "a"))

    assert labels.classes == ["x", "y"]


@pytest.mark.parametrize("wide", [2**63, -(2**63) - 1, 2**65])
def test_a_class_that_is_a_number_beyond_64_bits_is_rejected(wide: int) -> None:
    labels = open_labels()

    with pytest.raises(RejectedError, match="more than 64 bits") as e:
        labels.encode(wide)
    labels.foresee([wide])

    assert e.value.reason is Reason.LABEL
    assert labels.classes == []
    assert [labels.encode(label) for label in (2**63 - 1, -(2**63), str(wide))] == [0, 1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_class_that_is_not_finite_is_rejected(bad: float) -> None:
    with pytest.raises(RejectedError) as e:
        open_labels().encode(bad)

    assert e.value.reason is Reason.NONFINITE


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("3", Reason.LABEL),
        (True, Reason.LABEL),
        (float("nan"), Reason.NONFINITE),
        (float("-inf"), Reason.NONFINITE),
        (1.1e12, Reason.NONFINITE),
        (10**400, Reason.NONFINITE),
    ],
)
def test_the_label_of_a_regression_is_a_finite_number(label: Label, reason: Reason) -> None:
    labels = Labels(LabelConfig(task=Task.REGRESSION))

    with pytest.raises(RejectedError) as e:
        labels.encode(label)

    assert e.value.reason is reason
    assert [labels.encode(y) for y in (3, -2.5, 1e12)] == [3, -2.5, 1e12]


def test_a_long_label_does_not_flood_the_message() -> None:
    labels = Labels(LabelConfig(classes=("a", "b")))

    with pytest.raises(RejectedError) as e:
        labels.encode("x" * 100_000)

    assert len(str(e.value)) < 200
