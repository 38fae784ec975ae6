"""Questions of other threads to a loop that alone may touch what they are about."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

SERVE_S = 0.005
"""So long at most the questions that wait keep the loop, the last one aside."""

_T = TypeVar("_T")


class Mailbox:
    """``ask`` from any thread, ``serve`` once in each turn of the loop."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._is_closed = False

    def ask(self, question: Callable[[], _T], timeout_s: float) -> _T:
        """The answer, or the exception, of ``question``, which the loop calls; else TimeoutError.

        A question that nobody waits for any more is not called. Once closed nobody need wait.
        """
        answer: Future[_T] = Future()
        self._waiting.put((question, answer))
        if self._is_closed:  # looked at last, so that none slips in behind the closing
            self.refuse()
        try:
            return answer.result(timeout_s)
        except CancelledError as error:
            raise TimeoutError("the worker has just let go of its partitions") from error
        except TimeoutError as error:
            if not answer.cancel() and answer.done():
                return answer.result()  # it came at the last moment, or is the question's own
            raise TimeoutError(f"the worker was busy for {timeout_s:g} s") from error

    def serve(self) -> None:
        """Answer those that wait, as far as there is time."""
        deadline = time.monotonic() + SERVE_S
        while (item := self._next()) is not None:
            question, answer = item
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(question())
                except Exception as error:  # whoever asked must learn of it, and not the loop
                    answer.set_exception(error)
            if time.monotonic() >= deadline:
                break

    def refuse(self) -> None:
        """Let all that wait know that there will be no answer."""
        while (item := self._next()) is not None:
            item[1].cancel()

    def close(self) -> None:
        """There is no loop any more: refuse all that come, too."""
        self._is_closed = True
        self.refuse()

    def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        try:
            return self._waiting.get_nowait()
        except Empty:
            return None
