"""Episodes: the windows a plain list for each context would hold, whatever befalls the learner."""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from streammaml.config import Config
from streammaml.events import Batch, Episode, Event, Float32s, Floats
from streammaml.learner import Learner
from streammaml.learner.kernels import scaler
from streammaml.learner.state import CAPTURES, UNKNOWN
from tests.learner.build import (
    assert_same_bits,
    make_config,
    make_initialization,
    make_learner,
    make_stream,
)
from tests.learner.shelf import DictShelf, Log, Partition, with_times
from tests.learner.test_spill import joined, learn_classes

EVENTS = 900
KINDS: list[dict[str, Any]] = [
    {"classes": 3},
    {"classes": 4, "open_classes": True, "network": "linear", "support_size": 4, "warmup": [4]},
    {"classes": 0, "support_size": 50},
    {"classes": 2, "network": "linear", "detector": {"name": "ADWIN"}},
]


def with_episodes(config: Config, **episodes: Any) -> Config:
    return Config.build(config.model_dump(), {"episodes": episodes})


def make_log(seed: int, classes: int, events: int = EVENTS, contexts: int = 7) -> Log:
    stream = make_stream(
        seed, events, contexts=contexts, classes=classes, missing=0.1, unlabelled=0.2
    )
    rng = np.random.default_rng(seed)
    often = np.minimum(rng.geometric(0.3, events), contexts)
    return with_times(replace(stream, contexts=[f"店-{c}" for c in often]), seed)


class Example(NamedTuple):
    x: Float32s
    y: float
    offset: int


class Windows:
    """What a plain list of its labelled events tells of each context."""

    def __init__(self, log: Log, every: int) -> None:
        self.log = log
        self.every = every
        self.kept: dict[str, list[Example]] = defaultdict(list)

    def take(self, place: int) -> list[Example] | None:
        """The examples up to this event, if it completes a window."""
        stream, context = self.log.stream, self.log.stream.contexts[place]
        if np.isnan(stream.y[place]):
            return None
        kept = self.kept[context]
        kept.append(Example(stream.x[place], stream.y[place], int(self.log.offsets[place])))
        due = len(kept) >= 18 and (len(kept) - 18) % self.every == 0
        return kept if due else None


def assert_is_window(episode: Episode, kept: Sequence[Example], support_size: int) -> None:
    assert episode.labels == len(kept)
    assert 2 <= episode.support <= min(support_size, len(kept) - 16)
    window = kept[-episode.support - 16 :]
    assert episode.x.tobytes() == np.array([e.x for e in window]).tobytes()
    assert episode.y.tolist() == [e.y for e in window]
    assert episode.offsets.tolist() == episode.label_offsets.tolist() == [e.offset for e in window]


def assert_same_episodes(actual: Sequence[Episode], expected: Sequence[Episode]) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        for field in fields(Episode):
            one, other = getattr(ours, field.name), getattr(theirs, field.name)
            if isinstance(one, np.ndarray):
                assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes()), field.name
            else:
                assert one == other, field.name


def learner_of(config: Config, classes: int, shelf: DictShelf | None = None) -> Learner:
    learner = Learner(config, make_initialization(config), shelf)
    learn_classes(learner, classes)
    return learner


def play(learner: Learner, log: Log, edges: Sequence[int]) -> list[Episode]:
    found: list[Episode] = []
    for first, last in pairwise(edges):
        learner.step(log.batch(first, last))
        episodes, dropped = learner.episodes(3)
        assert dropped == 0
        found += episodes
    return found


# --- what is captured --------------------------------------------------------------------------


@pytest.mark.parametrize("every", [16, 21])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))
def test_a_window_is_the_newest_labels_of_its_context_with_the_scales_of_that_moment(
    kind: dict[str, Any], every: int
) -> None:
    config = with_episodes(make_config(**kind), every=every)
    log = make_log(1, kind["classes"])
    learner, windows = learner_of(config, kind["classes"]), Windows(log, every)
    seen, count = set[int](), 0
    for place in range(EVENTS):
        scales = scales_of(learner, log.stream.contexts[place])
        label = log.stream.y[place]
        seen |= set() if np.isnan(label) else {int(label)}

        episodes = play(learner, log, [place, place + 1])

        kept = windows.take(place)
        assert len(episodes) == (kept is not None)
        if kept is None:
            continue
        count += 1
        (episode,) = episodes
        assert_is_window(episode, kept, config.learner.support_size)
        assert (episode.context, episode.partition) == (log.stream.contexts[place], 3)
        for name, scale in zip(("shift", "inverse", "y_scale"), scales, strict=True):
            assert getattr(episode, name).tobytes() == scale.tobytes(), name
        known = len(config.label.classes) or (max(seen) + 1 if kind["classes"] else 0)
        assert episode.classes == tuple(f"c{k}" for k in range(known))
    assert count > 25


def scales_of(learner: Learner, context: str) -> tuple[Floats, Floats, Floats]:
    """Shifts [2, D], inverses [2, D] and label scale [2] that the context's next event meets."""
    stream = learner._stream
    mean, inverse = np.zeros((2, learner.width))
    if context in learner:
        scaler.context_scale(learner._contexts, stream, learner._rows[context], mean, inverse)
    scales = np.array([stream.x_shift, mean, stream.x_inverse, inverse])
    return scales[:2], scales[2:], stream.y_scale.copy()


def test_the_size_of_a_support_set_is_drawn_uniformly_and_alike_on_every_machine() -> None:
    config = make_config(width=1, network="linear", warmup=[], refresh_every=0)
    log = with_times(make_stream(5, 50_000, contexts=12, width=1), 5)

    episodes = play(make_learner(config), log, range(0, 50_001, 500))

    sizes = [e.support for e in episodes if e.labels >= 48]
    counts = np.bincount(sizes, minlength=33)[2:]
    assert len(sizes) > 3000
    assert counts.min() > 0.7 * len(sizes) / 31
    assert counts.max() < 1.3 * len(sizes) / 31
    first = [e.support for e in episodes if e.context == "context-3"][:8]
    assert first == [2, 14, 31, 3, 30, 4, 9, 15]
    other = Config.build(config.model_dump(), {"learner": {"seed": 1}})
    again = play(make_learner(other), log, range(0, 5_001, 500))
    assert [e.support for e in again] != [e.support for e in episodes[: len(again)]]


def test_beyond_the_room_for_a_batch_windows_are_dropped_and_counted() -> None:
    config = make_config(network="linear")
    log = make_log(3, 2, events=3_000)
    expected = play(make_learner(config), log, range(0, 3_001, 100))
    learner = make_learner(config)
    assert learner.episodes(3) == ([], 0)

    learner.step(log.batch(0, 3_000))
    episodes, dropped = learner.episodes(3)

    assert len(episodes) == CAPTURES
    assert dropped == len(expected) - CAPTURES > 0
    assert_same_episodes(episodes, expected[:CAPTURES])
    assert learner.episodes(3) == ([], 0)
    learner.step(log.batch(0, 3_000))
    learner.step(log.batch(0, 1))
    assert learner.episodes(3) == ([], 0)  # those of a batch go with it


def test_what_was_given_is_not_written_again() -> None:
    log = make_log(4, 2)
    learner = make_learner(make_config(network="linear"))
    first = play(learner, log, range(0, 301, 100))
    before = deepcopy(first)

    play(learner, log, range(300, 901, 100))

    assert_same_episodes(first, before)


def test_without_episodes_nothing_is_kept_for_them_and_decisions_are_the_same() -> None:
    config = make_config(classes=3)
    quiet = with_episodes(config, enabled=False)
    log = make_log(5, 3)
    with_ring, without = learner_of(config, 3), learner_of(quiet, 3)

    expected = joined([(0, with_ring.step(log.batch(0, EVENTS)))])
    decisions = joined([(0, without.step(log.batch(0, EVENTS)))])

    assert_same_bits(decisions, expected)
    assert with_ring.episodes(0)[0]
    assert without.episodes(0) == ([], 0)
    kept = without._contexts
    assert kept.support_y.shape[1] == 32
    assert kept.support_offsets.size == without._captures.x.size == 0
    assert without.buffer_bytes < with_ring.buffer_bytes - 48 * CAPTURES


# --- whatever befalls it -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))
def test_the_cut_of_a_stream_its_spills_and_restarts_change_no_bit_of_an_episode(
    kind: dict[str, Any],
) -> None:
    config = make_config(**kind)
    classes = kind["classes"]
    log = make_log(6, classes)
    expected = play(learner_of(config, classes), log, range(EVENTS + 1))
    assert len(expected) > 25
    for size in (16, 300, EVENTS):
        sliced = play(learner_of(config, classes), log, [*range(0, EVENTS, size), EVENTS])
        assert_same_episodes(sliced, expected)

    rng = np.random.default_rng(6)
    for rows in (1, 3, 100):
        small = Config.build(config.model_dump(), {"learner": {"max_contexts": rows}})
        partition = Partition(small, make_initialization(small), log)
        learn_classes(partition.learner, classes)
        found: list[Episode] = []
        while partition.place < EVENTS:
            partition.play(min(EVENTS, partition.place + int(rng.integers(1, 60))))
            found += partition.learner.episodes(3)[0]
            what = rng.random()
            if what < 0.3:
                partition.barrier()
            elif what < 0.5:
                partition.restart(rng.integers(0, EVENTS, 50).tolist())
                learn_classes(partition.learner, classes)
        assert_same_episodes(found, expected)


def test_a_context_that_expired_begins_a_new_history() -> None:
    config = make_config(network="linear")
    config = Config.build(config.model_dump(), {"state": {"ttl_s": 10.0}})
    log = make_log(7, 2, contexts=1)
    times = np.arange(float(EVENTS))
    times[500:] += 100

    episodes = play(make_learner(config), replace(log, times=times), range(0, EVENTS + 1, 50))

    labelled = np.flatnonzero(~np.isnan(log.stream.y))
    before = int((labelled < 500).sum())
    labels = [*range(18, before + 1, 16), *range(18, len(labelled) - before + 1, 16)]
    assert [e.labels for e in episodes] == labels
    assert episodes[labels.index(18, 1)].offsets[0] >= log.offsets[500]


def test_the_classes_of_an_episode_do_not_depend_on_what_was_collated_with_it() -> None:
    config = make_config(classes=6, open_classes=True, network="linear")
    features = msgspec.defstruct("Features", ["f0", "f1"])
    rng = np.random.default_rng(8)
    events = [
        Event(context="a", features=features(*rng.normal(size=2).tolist()), label=f"l{i // 20}")
        for i in range(100)
    ]
    found = []
    for size in (1, 7, 100):
        learner, episodes = make_learner(config), []
        for first in range(0, 100, size):
            batch: Batch = learner.collate(events[first : first + size]).batch
            learner.step(batch)
            episodes += learner.episodes(0)[0]
        found.append(episodes)

    assert [e.classes for e in found[0]] == [
        tuple(f"l{k}" for k in range((e.labels - 1) // 20 + 1)) for e in found[0]
    ]
    assert_same_episodes(found[1], found[0])
    assert_same_episodes(found[2], found[0])


# --- states without offsets --------------------------------------------------------------------


def as_format_1(values: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The same bodies, sealed as the earlier release did."""
    sealed = {key: value[:2] + struct.pack("<H", 1) + value[4:-4] for key, value in values.items()}
    return {
        key: value + struct.pack("<I", zlib.crc32(value, zlib.crc32(key)))
        for key, value in sealed.items()
    }


@pytest.mark.parametrize("first_format", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))
def test_a_state_without_offsets_gives_episodes_of_what_came_since(
    kind: dict[str, Any], first_format: bool
) -> None:
    config = make_config(**kind)
    quiet = with_episodes(config, enabled=False)
    log = make_log(9, kind["classes"])
    half = EVENTS // 2
    before = Partition(quiet, make_initialization(quiet), log)
    learn_classes(before.learner, kind["classes"])
    before.play(half)
    stored = before.everything()
    expected = joined(before.play(EVENTS, range(0, EVENTS, 50)))

    after = Partition(config, make_initialization(config), log)
    after.shelf.durable = as_format_1(stored) if first_format else stored
    after.barrier_at = after.place = half
    after.restart()
    windows = Windows(log, 16)
    for place in range(half):
        windows.take(place)
    known = {context: len(kept) for context, kept in windows.kept.items()}
    parts, count, skipped = [], 0, 0
    for place in range(half, EVENTS):
        parts += after.play(place + 1)
        episodes, _ = after.learner.episodes(0)
        kept = windows.take(place)
        skipped += kept is not None and not episodes
        if place % 40 == 0:
            after.barrier()
            after.restart()
        for episode in episodes:
            count += 1
            assert kept is not None
            assert_is_window(episode, kept, config.learner.support_size)
            first = episode.labels - episode.support - 16
            assert first >= known.get(episode.context, 0)

    assert min(count, skipped) > 1
    assert_same_bits(joined(parts), expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))
def test_episodes_can_be_turned_off_and_on_between_any_two_runs(kind: dict[str, Any]) -> None:
    configs = [make_config(**kind), with_episodes(make_config(**kind), enabled=False)]
    log = make_log(10, kind["classes"])
    partition = Partition(configs[0], make_initialization(configs[0]), log)
    learn_classes(partition.learner, kind["classes"])
    undisturbed = Partition(configs[1], make_initialization(configs[1]), log)
    learn_classes(undisturbed.learner, kind["classes"])
    rng = np.random.default_rng(10)
    parts = []
    while partition.place < EVENTS:
        parts += partition.play(min(EVENTS, partition.place + int(rng.integers(1, 80))))
        partition.barrier()
        partition.config = configs[int(rng.integers(2))]
        partition.restart()

    assert_same_bits(joined(parts), joined(undisturbed.play(EVENTS)))
    for context in set(log.stream.contexts):
        ours, theirs = (one.learner.describe(context) for one in (partition, undisturbed))
        assert ours is not None
        assert theirs is not None
        assert ours | {"stored_bytes": 0} == theirs | {"stored_bytes": 0}


def test_what_is_not_known_of_a_longer_ring_is_marked_and_described_by_nobody() -> None:
    config = make_config(support_size=4, warmup=[4])
    quiet = with_episodes(config, enabled=False)
    log = make_log(11, 2, events=60, contexts=1)
    shelf = DictShelf()
    before = learner_of(quiet, 2, shelf)
    before.step(log.batch(0, 60))
    shelf.barrier(before.snapshot())
    described = before.describe("店-1")

    after = Learner(config, make_initialization(config), shelf)
    after.restore(shelf.durable)
    after._memory.admit(["店-1"], 0)

    assert after._contexts.support_offsets[0].tolist() == [UNKNOWN] * 20
    again = after.describe("店-1")
    assert described is not None
    assert again is not None
    assert len(described["support"]) == 4
    assert described.pop("stored_bytes") != again.pop("stored_bytes")
    assert again == described
