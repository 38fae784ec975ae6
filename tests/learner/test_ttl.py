"""The partition's clock, and contexts that were not seen for too long."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from streammaml.events import Batch, Decisions
from streammaml.learner import Learner
from streammaml.learner.snapshot import LIGHT, is_expired, key_of
from tests.learner.build import Arrays, assert_same_bits, make_config, make_initialization, row_of
from tests.learner.shelf import DictShelf
from tests.learner.test_spill import joined, with_state

NAN = math.nan


def make(ttl_s: float, shelf: DictShelf | None = None, detector: str = "PageHinkley") -> Learner:
    config = make_config(warmup=[2], detector={"name": detector})
    config = with_state(config, state={"ttl_s": ttl_s})
    return Learner(config, make_initialization(config), shelf)


def events(names: str, times: list[float], size: int = 0) -> list[Batch]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(len(names), 2)).astype(np.float32)
    y = rng.integers(0, 2, len(names)).astype(float)
    step = size or len(names)
    return [
        Batch(
            contexts=list(names[i : i + step]),
            x=x[i : i + step].copy(),
            y=y[i : i + step].copy(),
            offsets=np.arange(len(names))[i : i + step].copy(),
            times=np.array(times[i : i + step]),
        )
        for i in range(0, len(names), step)
    ]


def step(learner: Learner, batches: list[Batch]) -> tuple[Arrays, int]:
    decisions: list[Decisions] = [learner.step(batch) for batch in batches]
    return joined(list(enumerate(decisions))), sum(d.expired for d in decisions)


def test_the_clock_is_the_largest_time_so_far() -> None:
    learner = make(0.0)
    assert math.isnan(learner.clock_s)
    clocks = []

    for batch in events("aaaaaa", [NAN, 5.0, NAN, 3.0, math.inf, 7.0], size=1):
        learner.step(batch)
        clocks.append(learner.clock_s)

    assert clocks[1:] == [5, 5, 5, 5, 7]
    assert math.isnan(clocks[0])
    assert row_of(learner, "a")["seen"] == 7


def test_a_context_not_seen_for_longer_than_the_limit_begins_anew() -> None:
    # b moves the clock; a comes back after 10 s, then after 10.5 s
    learner = make(10.0)
    step(learner, events("aaab", [1.0, 2.0, 3.0, 13.0]))
    assert row_of(learner, "a")["labels"] == 3

    _, expired = step(learner, events("ac", [13.0, 23.5]))
    assert expired == 0
    assert row_of(learner, "a")["labels"] == 4

    decisions, expired = step(learner, events("a", [NAN]))

    row = row_of(learner, "a")
    assert expired == 1
    assert decisions["loss"][0] == decisions["loss_init"][0]
    assert row["labels"] == row["segment"] == row["ledger"][0] == 1
    assert row["at_init"] == 1
    assert row["seen"] == 23.5


def test_an_event_from_the_past_does_not_expire_its_own_context() -> None:
    learner = make(10.0)

    _, expired = step(learner, events("aab", [100.0, 50.0, 105.0]))

    assert expired == 0
    assert row_of(learner, "a")["labels"] == 2


@pytest.mark.parametrize("times", [[NAN] * 4, [NAN, NAN, 1e9, 2e9]])
def test_what_has_no_time_does_not_expire(times: list[float]) -> None:
    learner = make(10.0)

    step(learner, events("aabb", times))
    step(learner, events("a", [NAN]))

    assert row_of(learner, "a")["labels"] == 3


def test_without_a_limit_nothing_expires() -> None:
    learner = make(0.0)

    _, expired = step(learner, events("aba", [1.0, 1e9, 2e9]))

    assert expired == 0
    assert learner.sweep() == []
    assert len(learner) == 2


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("detector", ["PageHinkley", "ADWIN"])
def test_expiry_does_not_depend_on_slices_or_sweeps(size: int, detector: str) -> None:
    rng = np.random.default_rng(5)
    names = "".join(rng.choice(list("aaaabbcdefg"), 400))
    times = np.cumsum(rng.exponential(1.0, 400)).tolist()
    whole, swept = make(6.0, detector=detector), make(6.0, detector=detector)
    expected, expired = step(whole, events(names, times))
    dropped = 0
    parts = []
    for i, batch in enumerate(events(names, times, size)):
        parts.append((i, swept.step(batch)))
        dropped += len(swept.sweep())

    assert_same_bits(joined(parts), expected)
    assert expired > 50
    assert dropped > (10 if size < 50 else 3)
    for name in swept._rows:
        for part in ("fast", "labels", "ledger", "x_mean", "detector"):
            ours, theirs = row_of(swept, name)[part], row_of(whole, name)[part]
            assert ours.tobytes() == theirs.tobytes()


def test_a_sweep_names_the_keys_of_what_it_dropped() -> None:
    shelf = DictShelf()
    learner = make(10.0, shelf, detector="ADWIN")
    step(learner, events("aaabc", [1.0, 2.0, 3.0, 4.0, 5.0]))
    shelf.barrier(learner.snapshot())
    learner.mark()
    step(learner, events("d", [14.5]))

    keys = learner.sweep()

    assert sorted(keys) == [b"c/a", b"c/b", b"d/a", b"d/b", b"w/a"]
    assert sorted(learner._rows) == ["c", "d"]
    # an event may come before they are deleted
    _, expired = step(learner, events("a", [14.5]))
    assert expired == 1
    assert row_of(learner, "a")["labels"] == 1
    changed = dict(learner.snapshot())
    assert changed[b"w/a"] is None
    assert changed[b"c/a"] is not None
    assert changed[b"d/a"] is not None


def test_a_stored_value_says_whether_it_is_expired() -> None:
    learner = make(10.0)
    step(learner, events("ab", [100.0, NAN]))
    unknown = make(10.0)
    step(unknown, events("a", [NAN]))
    value = dict(learner.snapshot())[key_of(LIGHT, "a")]
    timeless = dict(unknown.snapshot())[key_of(LIGHT, "a")]
    assert value is not None
    assert timeless is not None

    assert [is_expired(value, clock, 10.0) for clock in (100.0, 110.0, 110.5, NAN)] == [
        False,
        False,
        True,
        False,
    ]
    assert not is_expired(value, 1e9, 0.0)
    assert not is_expired(timeless, 1e9, 10.0)
    assert not is_expired(b"", 1e9, 10.0)


def test_the_description_says_when_a_context_was_seen() -> None:
    learner = make(10.0)
    step(learner, events("ab", [NAN, 100.0]))

    described = [learner.describe(name) for name in "ab"]

    json.dumps(described, allow_nan=False)
    assert [d["last_seen_s"] for d in described if d] == [None, 100.0]
