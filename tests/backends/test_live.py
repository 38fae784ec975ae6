"""What is pushed: one frame for all, at its time, until the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

from streammaml.backends.live import MOST_CLIENTS, Live

WAIT_S = 30.0


class Counted:
    """A summary that tells how often it was made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, Any]:
        self.made += 1
        return {"made": self.made}


def data(frame: bytes) -> Any:
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    return json.loads(frame.removeprefix(b"data: "))


def after_greeting(live: Live) -> Iterator[bytes]:
    frames = live.frames()
    assert next(frames).startswith(b"retry: ")
    return frames


def test_a_client_gets_the_present_at_once_and_then_each_new_frame() -> None:
    frames = after_greeting(Live(Counted(), every_s=0.01))

    assert [data(frame) for frame in islice(frames, 3)] == [{"made": n} for n in (1, 2, 3)]


def test_a_frame_is_made_once_for_all_who_look() -> None:
    counted = Counted()
    live = Live(counted, every_s=WAIT_S)

    first = [next(after_greeting(live)) for _ in range(MOST_CLIENTS)]

    assert {data(frame)["made"] for frame in first} == {1}
    assert counted.made == 1


def test_nobody_looking_costs_nothing() -> None:
    counted = Counted()

    Live(counted, every_s=0.0)

    assert counted.made == 0


def test_places_are_bounded_and_given_back() -> None:
    live = Live(Counted(), most_clients=2)

    taken = [live.enter() for _ in range(3)]
    live.leave()

    assert taken == [True, True, False]
    assert live.enter()


def test_closing_ends_who_waits_at_once() -> None:
    live = Live(Counted(), every_s=1e6)
    frames = after_greeting(live)
    next(frames)
    left: list[bytes] = []
    waiting = threading.Thread(target=lambda: left.extend(frames))
    waiting.start()

    live.close()
    waiting.join(WAIT_S)

    assert not waiting.is_alive()
    assert left == []
    assert len(list(live.frames())) == 1  # the greeting: it was closed before
