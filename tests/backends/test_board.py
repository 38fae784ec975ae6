"""The page's data: means by hand, bounded history, nothing lost when intervals merge."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest

from streammaml.backends.board import Board, total
from streammaml.events import DriftLevel, Result, Trigger
from tests import wire


def test_an_interval_holds_the_mean_of_its_losses() -> None:
    board = Board(width=2)

    board.update(events=1, losses={"adapted": (1.0, 1), "init": (3.0, 1)})
    board.update(events=1, losses={"adapted": (2.0, 1), "init": (5.0, 1)}, drifts=1)
    board.update(events=2, losses={"adapted": (0.5, 2)})

    curve = board.summary()["curve"]
    assert curve["events"] == [2, 4]
    assert curve["losses"] == {"init": [4.0, None], "adapted": [1.5, 0.25]}
    assert curve["drifts"] == [1, 0]


def test_totals_are_of_everything() -> None:
    board = Board()

    board.update(events=3, losses={"adapted": (1.5, 3)}, drifts=1, adaptations=2, accepted=1)
    board.update(events=1, losses={"adapted": (0.5, 1)}, rejected=4)
    board.state("ready")
    board.lag(17)
    board.contexts(5)

    summary = board.summary()
    assert summary["models"]["adapted"] == {"mean": 0.5, "latest": None, "losses": 4}
    assert (summary["events"], summary["drifts"], summary["rejected"]) == (4, 1, 4)
    assert (summary["adaptations"], summary["accepted"]) == (2, 1)
    assert (summary["state"], summary["lag"], summary["contexts"]) == ("ready", 17, 5)


def test_of_a_worker_that_starts_again_neither_lag_nor_contexts_are_known() -> None:
    board = Board()
    board.state("ready")
    board.lag(17)
    board.contexts(5)
    board.initialization(3)

    board.state("starting")

    summary = board.summary()
    assert (summary["lag"], summary["contexts"], summary["initialization"]) == (None, None, 3)


def test_a_board_that_saw_nothing_shows_nothing() -> None:
    summary = Board().summary()

    assert summary["models"] == {}
    assert summary["curve"] == {"events": [], "losses": {}, "drifts": [], "window": 0}
    assert summary["lag"] is None


def test_history_stays_bounded_and_keeps_every_loss_and_drift() -> None:
    board = Board(max_points=16, width=1)
    events = 1000

    for i in range(events):
        board.update(events=1, losses={"adapted": (float(i), 1)}, drifts=int(i % 100 == 0))
        assert len(board.summary()["curve"]["events"]) <= 16

    curve = board.summary()["curve"]
    steps = {b - a for a, b in zip(curve["events"], curve["events"][1:], strict=False)}
    assert steps == {64}
    assert curve["events"][0] == 64
    assert curve["losses"]["adapted"][0] == sum(range(64)) / 64
    assert sum(curve["drifts"]) == 10
    assert curve["losses"]["adapted"][-1] == sum(range(896, 960)) / 64


def test_an_odd_number_of_intervals_merges_without_a_loss() -> None:
    board = Board(max_points=4, width=1)

    for i in range(6):
        board.update(events=1, losses={"adapted": (float(i), 1)})

    curve = board.summary()["curve"]
    assert curve["events"] == [2, 4, 6]
    assert curve["losses"]["adapted"] == [0.5, 2.5, 4.5]


def test_the_curve_is_a_moving_mean_that_weighs_every_loss_alike() -> None:
    board = Board(width=1)

    for i in range(60):
        count = 3 if i == 59 else 1
        board.update(events=1, losses={"adapted": (i * count, count)})

    curve = board.summary()["curve"]
    assert curve["losses"]["adapted"][0] == 0
    assert curve["losses"]["adapted"][1] == 0.5
    assert curve["losses"]["adapted"][58] == 57.5
    assert curve["losses"]["adapted"][59] == (58 + 3 * 59) / 4
    assert curve["window"] == 2
    assert board.summary()["models"]["adapted"]["latest"] == 58.75


def test_decisions_become_sums() -> None:
    board = Board(width=1)
    nan = math.nan

    board.observe(
        ["a", "b", "c"],
        wire.decisions(
            3,
            loss=[0.5, nan, 1.5],
            loss_init=[2.0, nan, math.inf],
            levels=[DriftLevel.DRIFT, DriftLevel.WARNING, 0],
            triggers=[Trigger.DRIFT, 0, Trigger.WARMUP],
            results=[Result.ACCEPTED, 0, Result.DIVERGED],
        ),
        rejected=2,
    )

    summary = board.summary()
    assert summary["curve"]["losses"] == {"init": [2.0], "adapted": [1.0]}
    assert (summary["events"], summary["drifts"], summary["rejected"]) == (3, 1, 2)
    assert (summary["adaptations"], summary["accepted"]) == (2, 1)


def test_a_sum_leaves_out_what_is_not_finite() -> None:
    assert total(np.array([1.0, math.nan, math.inf, 2.0])) == (3.0, 2)
    assert total(np.array([math.nan])) == (0.0, 0)


def test_a_model_of_another_name_is_shown_too() -> None:
    board = Board(width=1)

    board.update(events=1, losses={"river": (1.0, 1), "init": (2.0, 1)})

    assert list(board.summary()["models"]) == ["init", "river"]


def test_events_a_second_are_of_the_latest_seconds() -> None:
    now_s = 100.0
    board = Board(clock=lambda: now_s)

    assert board.summary()["events_per_s"] == 0
    for _ in range(200):
        now_s += 0.1
        board.update(events=20)
    busy = board.summary()["events_per_s"]
    now_s += 2.5
    slower = board.summary()["events_per_s"]
    now_s += 60.0
    idle = board.summary()["events_per_s"]

    assert busy == pytest.approx(200, rel=0.02)
    assert 90 <= slower <= 110
    assert idle == 0


def test_a_swap_of_the_initialization_is_marked_and_the_first_one_is_no_swap() -> None:
    board = Board()

    board.initialization(3)
    board.update(events=20)
    board.initialization(3)
    board.initialization(4)
    board.update(events=5)
    board.initialization(2)

    summary = board.summary()
    assert summary["initialization"] == 2
    assert summary["swaps"] == [{"events": 20, "version": 4}, {"events": 25, "version": 2}]


def test_the_summary_names_its_process_and_its_note() -> None:
    first, second = Board(role="demo"), Board()

    first.note("in a moment")

    assert (first.summary()["role"], first.summary()["note"]) == ("demo", "in a moment")
    assert first.summary()["process"] == first.summary()["process"] != second.summary()["process"]


def test_recovery_follows_the_drifts_of_a_context() -> None:
    board = Board()
    levels = [DriftLevel.DRIFT, 0, 0]

    board.observe(["a"] * 3, wire.decisions(3, loss=[9.0, 1.0, 2.0], levels=levels))

    recovery = board.summary()["recovery"]
    assert recovery["drifts"] == 1
    assert recovery["losses"]["adapted"][:3] == [1.5, 1.5, None]


def test_readers_see_whole_summaries_while_a_thread_adds() -> None:
    board = Board(max_points=8, width=1)
    done = threading.Event()

    def add() -> None:
        for _ in range(3000):
            board.update(events=1, losses={"adapted": (1.0, 1)})
        done.set()

    thread = threading.Thread(target=add)
    thread.start()
    while not done.is_set():
        curve = json.loads(json.dumps(board.summary(), allow_nan=False))["curve"]
        assert set(curve["losses"].get("adapted", [])) <= {1.0}
        assert curve["events"] == sorted(curve["events"])
    thread.join()

    assert board.summary()["events"] == 3000


def test_one_huge_loss_spoils_no_point_beyond_its_window() -> None:
    board = Board(max_points=100, width=1)
    for i in range(90):
        board.update(events=1, losses={"adapted": (1e300 if i == 40 else 0.5, 1)})
    board.update(events=1, losses={"adapted": (1e308, 1)})
    board.update(events=1, losses={"adapted": (1e308, 1)})

    curve = board.summary()["curve"]["losses"]["adapted"]

    assert curve[:40] == [0.5] * 40
    assert curve[50:88] == [0.5] * 38
    assert all(value is None or math.isfinite(value) for value in curve)
