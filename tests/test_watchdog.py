"""The watchdog ends a process that hangs, and shows where."""

from __future__ import annotations

import subprocess
import sys

HANGS = """
import ctypes, sys
from streammaml.watchdog import Watchdog

def stuck():
    ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock

with Watchdog(0.5) as watchdog:
    watchdog.beat()
    stuck()
"""

TURNS = """
import time
from streammaml.watchdog import Watchdog

with Watchdog(0.5) as watchdog:
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        watchdog.beat()
        time.sleep(0.01)
"""


def run(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=False
    )


def test_a_loop_stuck_in_a_library_ends_with_its_stack() -> None:
    ended = run(HANGS)

    assert ended.returncode == 1
    assert "in stuck" in ended.stderr


def test_a_loop_that_turns_lives() -> None:
    ended = run(TURNS)

    assert (ended.returncode, ended.stderr) == (0, "")
