"""River's detectors come back from what they were fed."""

from __future__ import annotations

import numpy as np
import pytest

from streammaml.config import DetectorConfig
from streammaml.errors import DamagedError
from streammaml.events import DriftLevel, Task
from streammaml.learner import detectors
from streammaml.learner.watch import REMEMBERED, Watch
from streammaml.sealed import seal

FINGERPRINT = b"12345678"
NAMES = ["a", "b"]


def make(name: str) -> Watch:
    parameters: detectors.Parameters = {"t_0": 300} if name == "DummyDriftDetector" else {}
    config = DetectorConfig(name=name, parameters=parameters)
    return Watch(detectors.build(config, Task.CLASSIFICATION), FINGERPRINT)


def feed(watch: Watch, row: int, signals: list[float]) -> list[DriftLevel]:
    return [watch.update(row, signal, signal > 1) for signal in signals]


def signals_of(seed: int, count: int, shift_at: int) -> list[float]:
    rng = np.random.default_rng(seed)
    signals: list[float] = rng.exponential(0.5, count).tolist()
    return [s + 1.5 * (i >= shift_at) for i, s in enumerate(signals)]


def moved(watch: Watch, name: str) -> Watch:
    """Another partition's watch, with the first row of this one."""
    (item,) = watch.changes(NAMES, [0])
    assert item[1] is not None
    other = make(name)
    other.restore(1, *item)  # type: ignore[arg-type]  # not None: asserted
    return other


@pytest.mark.parametrize("name", sorted(detectors.names()))
@pytest.mark.parametrize("before", [1, 60, REMEMBERED])
def test_a_detector_comes_back_equal_if_it_saw_no_more_than_is_kept(name: str, before: int) -> None:
    watch = make(name)
    feed(watch, 0, signals_of(1, before, before))
    assert watch.inputs(0), "it has just alarmed: take another seed"

    other = moved(watch, name)

    later = signals_of(2, 300, 100)
    assert feed(other, 1, later) == feed(watch, 0, later)
    assert other.inputs(1) == watch.inputs(0)


def test_beyond_it_has_seen_the_newest_and_still_finds_the_drift() -> None:
    watch = make("ADWIN")
    feed(watch, 0, signals_of(1, 3 * REMEMBERED, 3 * REMEMBERED))
    assert len(watch.inputs(0)) == REMEMBERED

    other = moved(watch, "ADWIN")

    later = signals_of(2, 300, 100)
    ours = feed(watch, 0, later).index(DriftLevel.DRIFT)
    theirs = feed(other, 1, later).index(DriftLevel.DRIFT)
    assert 100 < theirs < 200
    assert abs(ours - theirs) <= 32


def test_what_did_not_change_since_the_mark_is_not_written_and_a_drift_deletes() -> None:
    watch = make("ADWIN")
    feed(watch, 0, [0.1, 0.2])
    assert [key for key, _ in watch.changes(NAMES, [0, 1])] == [b"d/a"]
    watch.taken()
    watch.mark()
    assert list(watch.changes(NAMES, [0, 1])) == []

    feed(watch, 1, [0.1])
    watch.begin(0)

    assert dict(watch.changes(NAMES, [0])) == {b"d/a": None}
    assert [key for key, _ in watch.changes(NAMES, [1])] == [b"d/b"]
    watch.taken()
    feed(watch, 1, [0.3])  # between the snapshot and its mark
    watch.mark()
    assert [key for key, _ in watch.changes(NAMES, [0, 1])] == [b"d/b"]


def test_a_row_that_was_given_to_another_context_is_not_taken_for_the_first() -> None:
    watch = make("ADWIN")
    feed(watch, 0, [0.1])
    watch.taken()
    watch.forget(0)
    feed(watch, 0, [0.2])

    watch.mark()

    assert [key for key, _ in watch.changes(["other"], [0])] == [b"d/other"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("ADWIN", b"1234567"),
        ("ADWIN", np.array([np.nan]).tobytes()),
        ("ADWIN", bytes(8 * (REMEMBERED + 1))),
        ("DDM", b"\x02"),
        ("DDM", bytes(REMEMBERED + 1)),
    ],
)
def test_inputs_that_cannot_be_are_refused(name: str, body: bytes) -> None:
    with pytest.raises(DamagedError):
        make(name).restore(0, b"d/a", seal(b"d/a", FINGERPRINT, body))
