"""What a new initialization means for a learner that runs: on the shelf, and in its classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammaml.config import Config, LabelConfig
from streammaml.errors import InitializationError, RejectedError
from streammaml.events import Decisions, Event, Label, Task
from streammaml.initialization import Initialization, encode
from streammaml.learner import Labels, Learner, describe_records
from streammaml.learner.snapshot import INITIALIZATION
from streammaml.sealed import seal
from tests.learner.build import (
    Stream,
    assert_same_bits,
    make_config,
    make_initialization,
    make_stream,
    play,
    row_of,
    state_of,
)
from tests.learner.shelf import DictShelf, Partition, advance, with_times

BY_ROW = [name for name in vars(Decisions) if not name.startswith("_")]


def events_of(names: str, seed: int = 7) -> Stream:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(names), 2)).astype(np.float32)
    return Stream(list(names), x, rng.integers(0, 2, len(names)).astype(float))


def version(config: Config, number: int, classes: tuple[Label, ...] = ()) -> Initialization:
    drawn = make_initialization(config, seed=100 + number)
    return replace(drawn, version=number, parent=number - 1, classes=classes)


# --- contexts at θ -----------------------------------------------------------------------------


def test_a_context_at_theta_moves_and_one_with_weights_of_its_own_stays() -> None:
    config = make_config(warmup=[2], refresh_every=0)
    learner, shelf = Learner(config, version(config, 0)), DictShelf()
    play(learner, events_of("aab"))
    shelf.barrier(learner.snapshot())
    learner.mark()
    adapted = row_of(learner, "a")

    learner.swap(version(config, 1))

    assert row_of(learner, "a")["fast"].tobytes() == adapted["fast"].tobytes()
    assert row_of(learner, "a")["version"] == 0
    row = row_of(learner, "b")
    assert row["fast"].tobytes() == version(config, 1).theta().tobytes()
    assert row["version"] == row["at_init"] == 1
    # what is stored of b says only that it stands at θ
    assert learner.changed_bytes == 0
    assert [key for key, _ in learner.snapshot()] == [b"@init/1", b"@init/0", b"@stream"]
    decisions = play(learner, events_of("ab"))
    assert decisions["versions"].tolist() == [0, 1]
    assert decisions["loss"][1] == decisions["loss_init"][1]


def test_a_context_that_left_at_theta_comes_back_at_the_one_in_use() -> None:
    config = make_config(max_contexts=1, warmup=[2])
    shelf = DictShelf()
    learner = Learner(config, version(config, 0), shelf)
    play(learner, events_of("ab"))

    learner.swap(version(config, 1))
    learner.swap(version(config, 2))
    described = learner.describe("a") or {}
    decisions = play(learner, events_of("a"))

    assert (described["initialization"], described["weights"]["distance"]) == (2, 0)
    assert decisions["versions"].tolist() == [2]
    assert row_of(learner, "a")["labels"] == 2
    assert decisions["loss"][0] == decisions["loss_init"][0]


def test_an_empty_row_is_no_context_that_stands_at_theta() -> None:
    config = make_config(max_contexts=2)
    learner = Learner(config, version(config, 0))
    play(learner, events_of("abc"))

    learner.swap(version(config, 1))

    begun = learner._contexts.version >= 0
    assert begun.sum() == len(learner)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    swaps=st.lists(st.integers(1, 399), min_size=1, max_size=4, unique=True),
    stops=st.lists(st.integers(1, 399), max_size=4, unique=True),
    room=st.sampled_from([1, 4, 100]),
)
def test_across_swaps_a_restored_learner_decides_as_one_that_never_left_memory(
    seed: int, swaps: list[int], stops: list[int], room: int
) -> None:
    config = make_config(classes=3, warmup=[2, 4, 8], baseline_rate=0.1)
    # most contexts have few labels: many stand at θ, in memory and on the shelf
    stream = make_stream(seed, 400, contexts=60, classes=3, unlabelled=0.6, missing=0.1)
    used = {at: version(config, 1 + i) for i, at in enumerate(sorted(swaps))}
    log = with_times(stream, seed, used)
    whole = Learner(config, version(config, 0))
    small = Config.model_validate(
        config.model_dump() | {"learner": config.learner.model_dump() | {"max_contexts": room}}
    )
    partition = Partition(small, version(config, 0), log)

    expected = [d for _, d in advance(whole, log, 0, 400)]
    found = []
    for place in sorted({*swaps, *stops, 400}):
        found += [d for _, d in partition.play(place)]
        if place in stops:
            partition.restart()
        if place in used:  # the worker writes the state where it swaps
            partition.learner.swap(used[place])
            partition.barrier()

    names = [name for name in BY_ROW if name not in ("packed", "evicted", "expired")]
    for name in names:
        ours = np.concatenate([getattr(d, name) for d in found])
        theirs = np.concatenate([getattr(d, name) for d in expected])
        assert ours.tobytes() == theirs.tobytes(), name
    for context in set(stream.contexts):
        ours_, theirs_ = partition.learner.describe(context), whole.describe(context)
        assert ours_ == theirs_


def test_a_partition_that_lives_through_hundreds_of_versions_stores_one() -> None:
    config = make_config(max_contexts=2, warmup=[2])
    shelf = DictShelf()
    learner = Learner(config, version(config, 0), shelf)
    for number in range(1, 301):
        learner.swap(version(config, number))
        if number % 3:
            play(learner, events_of("aabc", seed=number))
            shelf.barrier(learner.snapshot())
            learner.mark()

    assert [k for k in shelf.durable if k.startswith(INITIALIZATION)] == [b"@init/299"]
    again = Learner(config, version(config, 0), shelf)
    again.restore(shelf.durable)
    assert again.version == 299


def test_a_snapshot_that_was_not_marked_is_cleaned_up_too() -> None:
    config = make_config()
    learner = Learner(config, version(config, 0))
    learner.snapshot()  # may be durable: who took it does not know

    learner.swap(version(config, 1))

    items = dict(learner.snapshot())
    assert items[b"@init/0"] is None
    assert items[b"@init/1"] is not None
    learner.swap(version(config, 2))
    learner.mark()
    items = dict(learner.snapshot())
    assert set(items) == {b"@init/2", b"@init/1", b"@stream"}


def test_a_state_with_many_initializations_opens_and_keeps_the_one_in_use() -> None:
    config = make_config(max_contexts=1, warmup=[2])
    shelf = DictShelf()
    learner = Learner(config, version(config, 0), shelf)
    play(learner, events_of("ab"))  # "a" left at θ of version 0
    learner.swap(version(config, 5))
    shelf.barrier(learner.snapshot())
    learner.mark()
    for number in (0, 2):
        key = b"@init/%d" % number
        value = encode(version(config, number))
        shelf.durable[key] = seal(key, learner._form.fingerprint, value)

    again = Learner(config, version(config, 0), shelf)
    again.restore({k: v for k, v in shelf.durable.items() if k[:1] == b"@"})

    assert again.version == 5
    assert dict(again.snapshot()).keys() == {b"@init/0", b"@init/2", b"@stream"}
    shelf.barrier(again.snapshot())
    again.mark()
    assert [k for k in shelf.durable if k.startswith(INITIALIZATION)] == [b"@init/5"]
    assert play(again, events_of("a"))["versions"].tolist() == [5]


def test_what_is_stored_of_a_context_at_theta_is_described_with_the_one_in_use() -> None:
    config = make_config(warmup=[3])
    learner, shelf = Learner(config, version(config, 0)), DictShelf()
    play(learner, events_of("aabbb"))
    shelf.barrier(learner.snapshot())
    learner.mark()
    learner.swap(version(config, 1))
    shelf.barrier(learner.snapshot())

    a, b = (describe_records(config, name, shelf.durable) or {} for name in "ab")

    assert a == learner.describe("a")
    assert (a["initialization"], a["weights"]["distance"]) == (1, 0)
    assert (b["initialization"], b["weights"]["distance"]) == (0, None)


# --- classes in the order in which they appeared ------------------------------------------------


Features = msgspec.defstruct("Features", ["f0", "f1"])


def feed(learner: Learner, context: str, labels: list[Label], seed: int = 1) -> Decisions:
    rng = np.random.default_rng(seed)
    events = [
        Event(context=context, features=Features(*rng.normal(size=2).tolist())) for _ in labels
    ]
    for event, label in zip(events, labels, strict=True):
        event.label = label
    return learner.step(learner.collate(events).batch)


def by_name(learner: Learner, decisions: Decisions, which: str) -> dict[str, Any]:
    columns = getattr(decisions, which).T
    return dict(zip(learner.labels.names, columns, strict=False))


def test_an_initialization_with_its_classes_in_other_slots_means_the_same_here() -> None:
    config = make_config(classes=5, open_classes=True)
    trained = version(config, 4, classes=("z", "q", "x"))
    there = Learner(config, trained)
    here = Learner(config, version(config, 0))
    order: list[Label] = ["x", "y", "z", "q"]
    for learner in (there, here):
        feed(learner, "a", order * 3)
    assert here.labels.names == ["x", "y", "z", "q"]
    assert there.labels.names == ["z", "q", "x", "y"]

    here.swap(trained)

    new: list[Label] = list(np.random.default_rng(3).choice(order, 60).tolist())
    ours, theirs = (feed(learner, "b", new, seed=2) for learner in (here, there))
    for which in ("initial", "predictions"):
        found, expected = by_name(here, ours, which), by_name(there, theirs, which)
        for name in "xyzq":
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    assert (ours.predictions != ours.initial).any()
    np.testing.assert_allclose(ours.loss, theirs.loss, atol=1e-3)


def test_classes_not_seen_yet_take_the_next_slots_and_exist_from_their_first_label_on() -> None:
    config = make_config(classes=4, open_classes=True)
    learner = Learner(config, version(config, 0))
    feed(learner, "a", ["b", "x", "b"])

    learner.swap(version(config, 1, classes=("a", "b", "c", "d")))

    assert learner.labels.names == ["b", "x", "a", "c"]  # no slot is left for d
    decisions = feed(learner, "a", ["b", "c", "b"])
    assert (decisions.predictions[:2, 2:] == 0).all()
    assert (decisions.predictions[2] > 0).tolist() == [True, True, False, True]
    assert learner.labels.encode("c") == 3
    assert learner._stream.known.tolist() == [True, True, False, True]


def test_a_restored_partition_knows_the_initialization_that_it_arranged() -> None:
    config = make_config(classes=4, open_classes=True)
    trained = version(config, 1, classes=("c", "b", "a"))
    shelf = DictShelf()
    learner = Learner(config, version(config, 0), shelf)
    feed(learner, "a", ["a", "x"])
    learner.swap(trained)
    feed(learner, "a", ["b", "a", "x"])
    shelf.barrier(learner.snapshot())
    learner.mark()

    again = Learner(config, trained, shelf)
    again.restore(shelf.durable)

    again.check_version(trained)
    assert again.same_initialization(trained)
    assert not again.same_initialization(replace(trained, classes=("c", "b", "a", "d")))
    assert again.labels.classes == learner.labels.classes == ["a", "x", "c", "b"]
    assert dict(again.snapshot()).keys() == {b"@stream"}
    assert again._meta.theta.tobytes() == learner._meta.theta.tobytes()
    expected = feed(learner, "n", ["a", "b", "c", "x"] * 3)
    found = feed(again, "n", ["a", "b", "c", "x"] * 3)
    assert found.predictions.tobytes() == expected.predictions.tobytes()
    described = describe_records(config, "a", shelf.durable) or {}
    assert described == {**(learner.describe("a") or {}), **described}


@pytest.mark.parametrize("long", [False, True])
def test_an_open_list_foresees_classes_as_far_as_it_may(long: bool) -> None:
    labels = Labels(LabelConfig(max_classes=3), ("a",))

    labels.foresee(["x" * 257 if long else "a", 3, "3", True, "z"])

    assert labels.classes == ["a", 3, True]
    with pytest.raises(RejectedError, match="would be class 4"):
        labels.encode("z")


def test_a_closed_list_and_a_regression_foresee_nothing() -> None:
    for config in (LabelConfig(classes=("p", "q")), LabelConfig(task=Task.REGRESSION)):
        labels = Labels(config)
        labels.foresee(["z"])
        assert labels.classes == list(config.classes)


def test_classes_in_other_slots_are_refused_where_outputs_cannot_be_arranged() -> None:
    labels = Labels(LabelConfig(max_classes=4), ("a", 3))

    for classes in ((), ("a",), ("a", "3", "z")):
        labels.check_order(classes)

    with pytest.raises(InitializationError, match=r"have other places than this partition's"):
        labels.check_order(("b", "a"))


def test_an_initialization_that_is_refused_leaves_no_class() -> None:
    config = make_config(classes=4, open_classes=True)
    learner = Learner(config, version(config, 0))
    before = state_of(learner)

    with pytest.raises(InitializationError, match="as version 0"):
        learner.swap(replace(version(config, 1, classes=("a", "b")), version=0))

    assert learner.labels.classes == []
    assert_same_bits(state_of(learner), before)
