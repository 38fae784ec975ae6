"""What was trained on is known after a restart, however the episodes are read again."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammaml.config import Config
from streammaml.events import QUERY, Episode
from streammaml.meta import cuts
from streammaml.meta.cuts import hash_of
from streammaml.meta.episodes import Episodes
from streammaml.meta.reservoir import Reservoir
from tests.meta.episode_maker import make_config, make_episode

SUPPORT = 4
SIZE = SUPPORT + QUERY
APART = 4
"""A context whose hash sets it apart."""


def config_of(**outer: Any) -> Config:
    return make_config(width=2, **outer)


class Writer:
    """Windows whose inputs say the context, the partition and a serial number of each label.

    No label is counted twice, and the serial numbers never begin anew.
    """

    def __init__(self) -> None:
        self.serial: dict[tuple[int, int], int] = defaultdict(int)
        self.counted: dict[tuple[int, int], int] = defaultdict(int)
        self.offset = 0

    def window(self, context: int, ahead: int, partition: int = 0, anew: bool = False) -> Episode:
        """The next one, ``ahead`` labels further on; ``anew``: its worker had lost the count."""
        if anew:
            self.counted[context, partition] = 0
        first = self.counted[context, partition] == 0
        step = max(SIZE, ahead) if first else ahead
        self.serial[context, partition] += step
        self.counted[context, partition] += step
        self.offset += 100
        last = self.serial[context, partition]
        places = np.arange(last - SIZE + 1, last + 1)
        named = np.full(SIZE, context + partition / 4)
        x = np.stack([named / 100, places / 10_000], axis=1).astype(np.float32)
        offsets = self.offset + np.arange(SIZE, dtype=np.int64)
        return make_episode(
            f"c{context}",
            self.counted[context, partition],
            SUPPORT,
            partition,
            x=x,
            offsets=offsets,
            label_offsets=offsets,
        )


def labels_of(episodes: Episodes | None) -> set[tuple[float, int]]:
    """Context, with the partition as a fraction, and serial number of each label."""
    found = set()
    for part in episodes or ():
        for context, place in part.inputs[part.weights > 0][:, :2].tolist():
            found.add((round(context * 400) / 4, round(place * 10_000)))
    return found


def looked(reservoir: Reservoir) -> tuple[set[tuple[float, int]], set[tuple[float, int]]]:
    """All that trains, and all that judges."""
    index = reservoir._indexed()
    trains = reservoir._stack(index.train) if index.train else None
    held = reservoir.held_out(10_000)
    return labels_of(trains), labels_of(held and held.episodes)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, APART, 5]),
            st.integers(1, 60),
            st.integers(0, 1),  # partition
            st.integers(0, 9),  # 0: the count of labels begins anew
            st.sampled_from(["", "", "look", "restart", "crash", "topic", "again"]),
            st.integers(0, 4),  # how much more of the log is gone at a restart
        ),
        max_size=40,
    ),
    st.sampled_from([0.0021, 0.0031, 0.005, 1.0]),
)
def test_nothing_judges_that_was_trained_on_before_a_restart(
    steps: list[tuple[int, int, int, int, str, int]], megabytes: float
) -> None:
    config, writer = config_of(reservoir_mb=megabytes), Writer()
    log: list[Episode] = []
    reservoir, kept = Reservoir(config), Reservoir(config).cuts()
    trained: set[tuple[float, int]] = set()
    start = 0
    for context, ahead, partition, anew, then, gone in steps:
        if then == "topic":  # of the events: it is made anew, and the labels go on
            writer.offset = 0
        log.append(writer.window(context, ahead, partition, anew == 0))
        reservoir.add(log[-1])
        if then == "again":
            for episode in log[start:]:
                reservoir.add(episode)
        if then in ("look", "restart"):
            trains, judges = looked(reservoir)
            trained |= trains
            assert not judges & trained
            kept = reservoir.cuts()
        if then in ("restart", "crash"):
            reservoir = Reservoir(config)
            reservoir.remember(kept, False)
            start += gone
            for episode in log[start:]:
                reservoir.add(episode)
            _, judges = looked(reservoir)
            assert not judges & trained


def test_a_context_set_apart_after_a_restart_is_not_judged_by_what_it_was_trained_on() -> None:
    config, writer = config_of(), Writer()
    few = [writer.window(context, 100) for _ in range(4) for context in (APART, 1, 2)]
    more = [writer.window(context, 100) for context in range(20, 40)]
    before, after = Reservoir(config), Reservoir(config)
    for episode in few:
        before.add(episode)
    trained, _ = looked(before)

    after.remember(before.cuts(), before.sets_apart)
    for episode in [*few, *more, writer.window(APART, 100)]:
        after.add(episode)
    _, judges = looked(after)

    assert {context for context, _ in trained} >= {APART}
    assert not judges & trained
    assert {place for context, place in judges if context == APART} > {500}


def test_contexts_stay_apart_after_a_restart_with_fewer_of_them() -> None:
    config, writer = config_of(), Writer()
    before, after = Reservoir(config), Reservoir(config)
    for context in range(20):
        before.add(writer.window(context, 100))
    looked(before)

    after.remember(before.cuts(), before.sets_apart)
    for _ in range(3):
        after.add(writer.window(APART, 100))
    trains, judges = looked(after)

    assert trains == set()
    assert {context for context, _ in judges} == {APART}


def test_what_is_doubted_trains_and_only_what_comes_later_judges() -> None:
    reservoir, writer = Reservoir(config_of()), Writer()
    reservoir.add(writer.window(1, 100))
    reservoir.doubt()
    reservoir.add(writer.window(1, 100), trained=True)
    doubted, none = looked(reservoir)

    for _ in range(2):
        reservoir.add(writer.window(1, 100))
    _, judges = looked(reservoir)

    assert len(doubted) == 2 * SIZE
    assert none == set()
    assert len(judges) == SIZE
    assert not judges & doubted


def test_a_history_that_is_read_before_the_checkpoint_is_remembered_too() -> None:
    config, writer = config_of(), Writer()
    past = [writer.window(1, 100, partition=-1) for _ in range(3)]
    live = [writer.window(1, 100) for _ in range(3)]
    before, after = Reservoir(config), Reservoir(config)
    for episode in (*past, *live):
        before.add(episode)
    trained, held = looked(before)
    for episode in past:
        after.add(episode)

    after.remember(before.cuts(), before.sets_apart)
    _, none = looked(after)
    for episode in live:
        after.add(episode)

    assert none == set()
    assert looked(after) == (trained, held)


def test_only_so_many_marks_are_kept_the_latest_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "MOST", 2)

    kept = cuts.newest({1: {0: 5}, 2: {0: 6, 1: 9}, 3: {1: -7}})

    assert cuts.unpacked(cuts.packed(kept)) == {2: {0: 6, 1: 9}, 3: {1: -7}}
    assert -(2**63) <= hash_of("x") < 2**63


def test_a_context_that_is_dropped_adds_its_mark_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of 65,536 is not copied for it: after a restart 20,000 may be dropped at once."""
    monkeypatch.setattr(cuts, "MOST", 3)
    reservoir = Reservoir(config_of(reservoir_context=8, reservoir_total=64))
    reservoir.remember(cuts.packed({1: {0: 5}, 2: {0: 6}, hash_of("c7"): {0: 7}}), False)
    table, writer = reservoir._marks, Writer()
    for context in range(64):
        reservoir.add(writer.window(context, 100))
    looked(reservoir)

    for context in range(64, 69):
        reservoir.add(writer.window(context, 100))

    dropped = [hash_of(f"c{i}") for i in range(69) if f"c{i}" not in reservoir._contexts]
    assert reservoir._marks is table
    assert len(dropped) == 5
    assert len(table) == 3
    assert set(table) < set(dropped)


@pytest.mark.parametrize(
    "rows", [np.zeros(3, np.int64), np.zeros((2, 2), np.int64), np.zeros((2, 3), np.float32)]
)
def test_what_are_no_cuts_moves_nothing(rows: np.ndarray) -> None:
    reservoir = Reservoir(config_of())

    with pytest.raises(ValueError, match="its cuts are"):
        reservoir.remember(rows, True)

    assert not reservoir.remembers
    assert not reservoir.sets_apart
