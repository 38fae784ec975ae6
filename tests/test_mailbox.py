"""Questions of other threads to a loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from streammaml.mailbox import Mailbox

TIMEOUT_S = 20.0


@contextmanager
def turning(mailbox: Mailbox) -> Iterator[threading.Thread]:
    """A loop that serves it."""
    stop = threading.Event()

    def turn() -> None:
        while not stop.wait(0.001):
            mailbox.serve()

    loop = threading.Thread(target=turn)
    loop.start()
    try:
        yield loop
    finally:
        stop.set()
        loop.join()


def fails() -> int:
    raise ValueError("planted")


def late() -> int:
    raise TimeoutError("planted")


def test_the_loops_thread_answers() -> None:
    mailbox = Mailbox()
    with turning(mailbox) as loop:
        assert mailbox.ask(threading.current_thread, TIMEOUT_S) is loop


@pytest.mark.parametrize("question", [fails, late])
def test_what_a_question_raises_is_the_askers_and_the_loop_goes_on(
    question: Callable[[], int],
) -> None:
    mailbox = Mailbox()
    with turning(mailbox):
        with pytest.raises((ValueError, TimeoutError), match="planted"):
            mailbox.ask(question, TIMEOUT_S)
        assert mailbox.ask(lambda: 1, TIMEOUT_S) == 1


def test_a_question_nobody_waits_for_is_not_called() -> None:
    mailbox, called = Mailbox(), []

    with pytest.raises(TimeoutError, match="busy"):
        mailbox.ask(lambda: called.append(1), 0.01)
    mailbox.serve()

    assert called == []


def test_who_waits_hears_of_a_refusal_at_once() -> None:
    mailbox, heard = Mailbox(), threading.Event()
    ended: list[str] = []

    def ask() -> None:
        try:
            mailbox.ask(lambda: 1, TIMEOUT_S)
        except TimeoutError as error:
            ended.append(str(error))
        heard.set()

    asker = threading.Thread(target=ask)
    asker.start()
    while not heard.wait(0.001):
        mailbox.refuse()
    asker.join()

    assert ended == ["the worker has just let go of its partitions"]


def test_many_ask_and_each_has_its_own_answer() -> None:
    mailbox = Mailbox()
    answers: dict[int, int] = {}

    def ask(number: int) -> None:
        answers[number] = mailbox.ask(lambda: number, TIMEOUT_S)

    with turning(mailbox):
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert answers == {n: n for n in range(50)}


def test_once_closed_nobody_waits() -> None:
    mailbox = Mailbox()
    mailbox.close()

    with pytest.raises(TimeoutError, match="let go"):  # not that it was busy for so long
        mailbox.ask(lambda: 1, TIMEOUT_S)
