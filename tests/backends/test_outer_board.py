"""What the outer loop's page is made of: every run counted, the latest ones kept."""

from __future__ import annotations

import json
from typing import Any

from streammaml.backends.outer_board import OuterBoard

REPORT = {"episodes": 70, "contexts": 9, "nets": {"network": {"passed": True, "why": ""}}}


def run(result: str, version: int = 1, **more: Any) -> dict[str, Any]:
    return {"result": result, "why": "", "version": version, "report": REPORT} | more


def test_a_board_that_saw_nothing_says_what_it_is() -> None:
    summary = OuterBoard(4096, 300.0).summary()

    assert (summary["role"], summary["state"], summary["period_s"]) == (
        *("outer loop", "starting", 300.0),
    )
    assert summary["initialization"] is None
    assert summary["results"] == {"published": 0, "rejected": 0, "skipped": 0, "failed": 0}
    assert summary["reservoir"] == {"episodes": 0, "contexts": 0, "capacity": 4096}
    json.dumps(summary, allow_nan=False)


def test_runs_are_counted_by_result_and_numbered() -> None:
    board = OuterBoard(1, 1.0)

    for result in ("skipped", "published", "rejected", "published"):
        board.ran(run(result))

    summary = board.summary()
    assert summary["results"] == {"published": 2, "rejected": 1, "skipped": 1, "failed": 0}
    assert [r["number"] for r in summary["runs"]] == [1, 2, 3, 4]
    assert [r["result"] for r in summary["runs"]][1:3] == ["published", "rejected"]


def test_history_is_bounded_and_published_versions_outlive_other_runs() -> None:
    board = OuterBoard(1, 1.0, max_runs=5, max_published=2)
    for version in (1, 2, 3):
        board.ran(run("published", version))
    for _ in range(100):
        board.ran(run("skipped", 3))

    summary = board.summary()

    assert [r["number"] for r in summary["runs"]] == [99, 100, 101, 102, 103]
    assert [r["version"] for r in summary["published"]] == [2, 3]
    assert summary["published"][0]["report"] == REPORT
    assert all("report" not in r for r in summary["runs"])


def test_the_state_follows_the_job() -> None:
    board = OuterBoard(1, 1.0)
    states = []

    board.serving(4)
    states.append(board.summary()["state"])
    board.training(3, 50)
    states.append(board.summary()["state"])
    training = board.summary()["training"]
    board.ran(run("rejected", 4))
    states.append(board.summary()["state"])

    assert states == ["waiting", "training", "waiting"]
    assert training == {"step": 3, "steps": 50}
    assert board.summary()["initialization"] == 4


def test_what_is_read_adds_up_and_what_is_kept_is_the_latest() -> None:
    board = OuterBoard(10, 1.0)

    board.episodes(5, 1, 0)
    board.episodes(2, 0, 3)
    board.reservoir(7, 2)

    summary = board.summary()
    assert summary["episodes"] == {"accepted": 7, "rejected": 1, "duplicate": 3}
    assert summary["reservoir"] == {"episodes": 7, "contexts": 2, "capacity": 10}
