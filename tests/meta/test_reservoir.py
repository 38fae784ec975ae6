"""The reservoir: what it keeps, what it draws, and what it never trains on."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streammaml.config import Config
from streammaml.events import QUERY, Episode
from streammaml.meta.episodes import Episodes, Held
from streammaml.meta.reservoir import Refused, Reservoir
from tests.meta.episode_maker import make_config, make_episode

APART = {4, 11}
"""Of contexts c0 to c19, those whose hash is a multiple of ten."""


def config_of(label: dict[str, Any] | None = None, **outer: Any) -> Config:
    return make_config(width=2, label=label, **outer)


def marked(context: int, labels: int, support: int = 4, **changed: Any) -> Episode:
    """Its inputs say which context it is of, and which labels it covers."""
    size = support + QUERY
    places = np.arange(labels - size + 1, labels + 1)
    x = np.stack([np.full(size, context / 100), places / 10_000], axis=1).astype(np.float32)
    return make_episode(f"c{context}", labels, support, x=x, **changed)


def windows(episodes: Episodes) -> list[tuple[int, frozenset[int]]]:
    """Context and labels of each of the episodes that :func:`marked` made."""
    found = []
    for t in range(len(episodes.support.inputs)):
        marks = torch.cat([part.inputs[t][part.weights[t] > 0] for part in episodes])
        labels = frozenset(int(v) for v in torch.round(marks[:, 1] * 10_000))
        found.append((round(float(marks[0, 0]) * 100), labels))
    return found


def draws(reservoir: Reservoir, count: int = 400, seed: int = 0) -> Episodes:
    episodes = reservoir.train(np.random.default_rng(seed), count)
    assert episodes is not None
    return episodes


def held(reservoir: Reservoir, limit: int = 10_000) -> Held:
    found = reservoir.held_out(limit)
    assert found is not None
    return found


def test_an_episode_comes_back_scaled_by_its_own_scalers_and_padded() -> None:
    x = np.zeros((18, 2), np.float32)
    x[0], x[17] = (3.0, math.nan), (100.0, -2.0)
    y = np.arange(18.0) % 2
    reservoir = Reservoir(config_of())
    shift, inverse = np.array([[1.0, 0.5], [2.0, -1.0]]), np.array([[0.5, 1.0], [1.0, 0.0]])

    reservoir.add(make_episode(support=2, x=x, y=y, shift=shift, inverse=inverse))

    support, query = draws(reservoir, 1)
    assert support.inputs.shape == (1, 32, 4)
    assert query.inputs.shape == (1, 16, 4)
    assert support.inputs[0, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert support.inputs[0, 1].tolist() == [-0.5, -0.5, -2.0, 0.0]
    assert query.inputs[0, -1].tolist() == [4.0, -2.5, 4.0, 0.0]
    assert support.weights[0].tolist() == [1.0] * 2 + [0.0] * 30
    assert query.weights[0].tolist() == [1.0] * 16
    assert support.targets[0, :2].tolist() == [0, 1]
    assert query.targets[0].tolist() == [0, 1] * 8
    assert (support.classes, query.classes) == (0, 0)


def test_the_targets_of_a_regression_are_scaled_as_the_episode_says() -> None:
    reservoir = Reservoir(config_of(label={"task": "regression"}))

    reservoir.add(make_episode(y=np.arange(20.0), y_scale=np.array([10.0, 4.0]), classes=()))

    support, query = draws(reservoir, 1)
    assert support.targets[0, :4].tolist() == [-2.5, -2.25, -2.0, -1.75]
    assert query.targets.dtype == torch.float32


def test_a_support_label_that_came_after_the_first_query_is_not_used() -> None:
    episode = make_episode(support=4)
    late, later = episode.label_offsets.copy(), episode.label_offsets.copy()
    late[[0, 2]] = episode.offsets[4] + 5
    later[:3] = episode.offsets[4] + 5
    reservoir = Reservoir(config_of())

    taken = reservoir.add(make_episode("a", support=4, label_offsets=late))
    refused = reservoir.add(make_episode("b", support=4, label_offsets=later))

    assert (taken, refused) == (None, Refused.LATE)
    support = draws(reservoir, 1).support
    assert int(support.weights.sum()) == 2
    assert support.targets[0, :2].tolist() == episode.y[[1, 3]].tolist()


def test_offsets_that_are_unknown_leave_the_support_as_it_is() -> None:
    unknown = np.full(20, -1)
    reservoir = Reservoir(config_of())

    reservoir.add(make_episode(support=4, offsets=unknown, label_offsets=unknown))

    assert int(draws(reservoir, 1).support.weights.sum()) == 4


@pytest.mark.parametrize(
    "change", [{"y_scale": np.array([0.0, 0.0])}, {"inverse": np.full((2, 2), math.nan)}]
)
def test_numbers_that_are_not_finite_are_refused(change: dict[str, Any]) -> None:
    reservoir = Reservoir(config_of(label={"task": "regression"}))

    assert reservoir.add(make_episode(classes=(), **change)) is Refused.NONFINITE

    assert len(reservoir) == reservoir.nbytes == reservoir.contexts == 0
    assert reservoir.refused[Refused.NONFINITE] == 1


def test_what_is_read_again_is_dropped_and_counted_also_after_it_was_thinned() -> None:
    reservoir = Reservoir(config_of(reservoir_context=8))
    for labels in range(20, 420, 20):
        assert reservoir.add(make_episode(labels=labels)) is None

    again = [reservoir.add(make_episode(labels=labels)) for labels in range(20, 420, 20)]

    assert set(again) == {Refused.DUPLICATE}
    assert len(reservoir) == 8
    assert reservoir.refused[Refused.DUPLICATE] == 20


def test_a_context_that_counts_its_labels_anew_goes_on_with_newer_episodes() -> None:
    reservoir = Reservoir(config_of())
    for labels in (100, 200, 300, 400):
        reservoir.add(marked(0, labels))
    before = {labels for _, labels in windows(held(reservoir).episodes)}
    anew = np.arange(9000, 9020)

    added = reservoir.add(marked(0, 20, offsets=anew, label_offsets=anew))

    assert added is None
    assert before == {frozenset(range(381, 401))}
    assert windows(held(reservoir).episodes) == [(0, frozenset(range(1, 21)))]
    assert max(max(labels) for _, labels in windows(draws(reservoir))) == 400


def at(context: int, labels: int, offset: int) -> Episode:
    """An episode whose newest event stands at that offset."""
    offsets = np.arange(offset - 19, offset + 1)
    return marked(context, labels, offsets=offsets, label_offsets=offsets)


def test_episodes_of_a_topic_made_anew_are_taken_in_and_nothing_is_taken_in_again() -> None:
    reservoir = Reservoir(config_of())
    first = [at(0, 100 * k, 90_000 + 100 * k) for k in range(1, 5)]
    anew = [at(0, 400 + 100 * k, 100 * k) for k in range(1, 5)]
    for episode in first:
        reservoir.add(episode)
    before = {max(labels) for _, labels in windows(draws(reservoir))}

    added = [reservoir.add(episode) for episode in anew]
    again = [reservoir.add(episode) for episode in [*first, *anew]]

    assert before == {100, 200, 300}
    assert added == [None] * 4
    assert again == [Refused.DUPLICATE] * 8
    assert windows(held(reservoir).episodes) == [(0, frozenset(range(781, 801)))]
    assert {max(labels) for _, labels in windows(draws(reservoir))} == set(range(100, 800, 100))


def test_what_was_there_before_the_labels_were_counted_anew_is_not_taken_in_again() -> None:
    reservoir = Reservoir(config_of())
    lost = [at(0, 100, 1000), at(0, 200, 1100), at(0, 20, 1200), at(0, 40, 1300)]

    added = [reservoir.add(episode) for episode in lost]
    again = [reservoir.add(episode) for episode in lost]

    assert added == [None] * 4
    assert again == [Refused.DUPLICATE] * 4


def everything(reservoir: Reservoir) -> list[tuple[int, frozenset[int]]]:
    """All that is kept, by a look behind the door: a draw does not show what straddles a cut."""
    items = [item for kept in reservoir._contexts.values() for item in kept.items]
    return windows(reservoir._stack(items))


def test_over_a_bound_the_context_with_the_most_gives_up_one_of_its_older_half() -> None:
    reservoir = Reservoir(config_of(reservoir_total=64))
    for labels in range(20, 1220, 20):
        reservoir.add(marked(0, labels))
    for context in range(1, 15):
        reservoir.add(marked(context, 20))

    sizes = Counter(context for context, _ in everything(reservoir))

    assert len(reservoir) == 64
    assert sizes.pop(0) == 50
    assert set(sizes.values()) == {1}
    kept = {max(labels) for context, labels in everything(reservoir) if context == 0}
    assert kept >= set(range(1220 - 25 * 20, 1220, 20))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(0, 250),
    st.integers(1, 30),
    st.integers(8, 20),
    st.integers(64, 90),
    st.floats(0.02, 0.2),
)
def test_the_bounds_hold_and_the_newest_stay(
    seed: int, added: int, contexts: int, context_limit: int, total: int, megabytes: float
) -> None:
    reservoir = Reservoir(
        config_of(reservoir_context=context_limit, reservoir_total=total, reservoir_mb=megabytes)
    )
    rng = np.random.default_rng(seed)
    counts: Counter[int] = Counter()

    for context in (contexts * rng.random(added) ** 2).astype(int).tolist():  # some have more
        counts[context] += 50
        reservoir.add(marked(context, counts[context], int(rng.integers(2, 33))))

    items = [item for kept in reservoir._contexts.values() for item in kept.items]
    assert len(items) == len(reservoir) <= total
    assert sum(item.nbytes for item in items) == reservoir.nbytes <= megabytes * 1e6
    assert all(0 < len(k.items) <= context_limit for k in reservoir._contexts.values())
    assert reservoir.contexts == len(reservoir._contexts)
    for kept in reservoir._contexts.values():
        assert kept.end == max(item.end for item in kept.items)


def test_an_episode_larger_than_the_whole_reservoir_is_refused() -> None:
    reservoir = Reservoir(config_of(reservoir_mb=0.0005))

    assert reservoir.add(make_episode()) is Refused.OVERSIZE


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(16, 60), st.integers(2, 32), st.booleans()),
        min_size=1,
        max_size=200,
    ),
    st.integers(8, 12),
)
def test_nothing_that_judges_was_ever_trained_on(
    added: list[tuple[int, int, int, bool]], context_limit: int
) -> None:
    reservoir = Reservoir(config_of(reservoir_context=context_limit, reservoir_total=100))
    counts: Counter[int] = Counter()
    trained: set[tuple[int, int]] = set()

    for context, ahead, support, look in added:
        counts[context] += ahead + (QUERY + 32 if counts[context] == 0 else 0)
        reservoir.add(marked(context, counts[context], support))
        if not look:
            continue
        drawn = reservoir.train(np.random.default_rng(1), 200)
        judge = reservoir.held_out(1000)
        if drawn is not None:
            trained |= {(c, label) for c, own in windows(drawn) for label in own}
        if judge is not None:
            judged = {(c, label) for c, own in windows(judge.episodes) for label in own}
            assert not judged & trained


def test_from_twenty_contexts_on_every_tenth_by_hash_is_never_trained_on() -> None:
    reservoir = Reservoir(config_of())
    for context in range(20):
        for labels in (100, 200, 300, 400):
            reservoir.add(marked(context, labels))

    trained = {context for context, _ in windows(draws(reservoir, 2000))}
    judged = Counter(context for context, _ in windows(held(reservoir).episodes))

    apart = {context for context in range(20) if judged[context] == 4}
    assert apart == APART
    assert trained == set(range(20)) - apart
    assert all(judged[context] == 1 for context in trained)


def test_contexts_that_are_set_apart_stay_so_when_few_are_left() -> None:
    reservoir = Reservoir(config_of(reservoir_mb=0.03))
    for context in range(24):
        reservoir.add(marked(context, 100, support=2))
    draws(reservoir)

    for context in range(24, 54):
        reservoir.add(marked(context, 100, support=32))

    assert reservoir.contexts == 18
    assert {context for context, _ in everything(reservoir)} >= {36, 40, 42, 46, 52}
    assert not {context for context, _ in windows(draws(reservoir))} & {36, 40, 42, 46, 52}


def test_a_context_set_apart_late_is_judged_only_by_what_came_after_it_was_trained_on() -> None:
    reservoir = Reservoir(config_of())
    for labels in (100, 200, 300):
        reservoir.add(marked(4, labels))
    trained = {max(labels) for _, labels in windows(draws(reservoir))}

    for context in range(20, 40):
        reservoir.add(marked(context, 100))
    reservoir.add(marked(4, 400))

    assert trained == {100, 200}
    assert 4 not in {context for context, _ in windows(draws(reservoir))}
    judged = {max(labels) for context, labels in windows(held(reservoir).episodes) if context == 4}
    assert judged == {300, 400}


def test_the_newest_tenth_of_a_context_judges_and_what_overlaps_it_does_neither() -> None:
    reservoir = Reservoir(config_of())
    for labels in range(40, 40 + 16 * 30, 16):
        reservoir.add(marked(0, labels, support=16))

    trained = {max(labels) for _, labels in windows(draws(reservoir, 3000))}
    judged = {max(labels) for _, labels in windows(held(reservoir).episodes)}

    last = 40 + 16 * 29
    assert judged == {last, last - 16, last - 32}
    assert max(trained) == last - 64  # the cut is 32 labels, the length of a window, further back
    assert len(trained) == 26


def test_the_newest_held_out_episodes_judge_with_a_number_for_each_context() -> None:
    reservoir = Reservoir(config_of())
    for labels in (100, 200):
        for context in (5, 6, 7):
            reservoir.add(marked(context, labels))

    found = held(reservoir, limit=2)

    newest = frozenset(range(181, 201))
    assert windows(found.episodes) == [(7, newest), (6, newest)]
    assert len(set(found.contexts.tolist())) == 2
    assert len(held(reservoir).contexts) == 3


def test_contexts_are_drawn_by_the_root_of_their_episodes_and_half_among_the_newest() -> None:
    reservoir = Reservoir(config_of())
    for labels in range(50, 5050, 50):  # 100 episodes, the newest 10 judge
        reservoir.add(marked(0, labels))
    for labels in range(50, 600, 50):  # 11, the newest one judges
        reservoir.add(marked(3, labels))

    found = windows(draws(reservoir, 4000))

    shares = Counter(context for context, _ in found)
    newest = sum(max(labels) > 4500 - 1000 for context, labels in found if context == 0)
    assert shares[0] / 4000 == pytest.approx(3 / (3 + 1), abs=0.03)  # √90 to √10
    assert newest / shares[0] == pytest.approx(0.5 + 0.5 * 20 / 90, abs=0.04)


def test_nothing_to_train_on_and_nothing_to_judge_by_is_said() -> None:
    reservoir = Reservoir(config_of())

    assert reservoir.train(np.random.default_rng(0), 4) is None
    assert reservoir.held_out(4) is None
    reservoir.add(make_episode())
    assert reservoir.train(np.random.default_rng(0), 4) is not None
    assert reservoir.held_out(4) is None


def test_the_same_episodes_and_the_same_seed_give_the_same_bits() -> None:
    def play(seed: int) -> list[bytes]:
        reservoir = Reservoir(config_of(reservoir_context=8, seed=seed))
        for labels in range(20, 1020, 20):
            reservoir.add(marked(0, labels))
        drawn = draws(reservoir, 50, seed=3)
        return [part.inputs.numpy().tobytes() for part in drawn]

    assert play(1) == play(1)
    assert play(1) != play(2)


def slots(reservoir: Reservoir, context: str) -> list[int]:
    (item,) = reservoir._contexts[context].items
    return [int(slot) for slot in item.targets]


def test_classes_of_an_open_list_get_slots_of_the_reservoir_across_partitions() -> None:
    reservoir = Reservoir(config_of(label={"max_classes": 4}))
    reservoir.follow(("cat", "dog"))
    y = np.arange(20.0) % 2

    reservoir.add(make_episode("a", y=y, classes=("dog", 7)))
    reservoir.add(make_episode("b", y=y, classes=("7", "cow"), partition=1))
    refused = reservoir.add(make_episode("c", y=y, classes=("cow", "hen"), partition=2))
    taken = reservoir.add(make_episode("d", y=np.zeros(20), classes=("cow", "hen")))

    assert reservoir.classes == ("cat", "dog", 7, "cow")
    assert slots(reservoir, "a") == [1, 2] * 10
    assert slots(reservoir, "b") == [2, 3] * 10
    assert (refused, taken) == (Refused.CLASSES, None)
    assert slots(reservoir, "d") == [3] * 20
    assert draws(reservoir, 1).support.classes == 4


def test_a_new_incumbent_moves_the_slots_and_drops_what_has_none_left() -> None:
    reservoir = Reservoir(config_of(label={"max_classes": 3}))
    y = np.arange(20.0) % 2
    reservoir.add(make_episode("a", y=y, classes=("dog", "cat")))
    reservoir.add(make_episode("b", y=y, classes=("cat", "cow")))

    reservoir.follow(("owl", "cat"))

    assert reservoir.classes == ("owl", "cat", "dog")
    assert slots(reservoir, "a") == [2, 1] * 10
    assert (len(reservoir), reservoir.contexts) == (1, 1)


def test_a_closed_list_stays_as_it_is() -> None:
    reservoir = Reservoir(config_of())
    y = np.arange(20.0) % 2

    reservoir.follow(("yes", "no"))
    reservoir.add(make_episode(y=y, classes=("yes", "no")))

    assert reservoir.classes == ()
    assert slots(reservoir, "a") == [1, 0] * 10
    assert reservoir.add(make_episode("b", y=y, classes=("no", "may"))) is Refused.CLASSES
