"""The process around a command: its log, its signals, its last words."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
import typer
from structlog import processors, stdlib
from structlog.typing import Processor

from streammaml.errors import StreamMAMLError


def configure_logging(level: str = "info") -> None:
    """Readable lines on a terminal, JSON elsewhere; always to standard error."""
    named: list[Processor] = [processors.add_log_level, processors.TimeStamper(fmt="iso", utc=True)]
    rendered: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if sys.stderr.isatty()
        else [processors.format_exc_info, processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*named, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(
        stdlib.ProcessorFormatter(
            foreign_pre_chain=[stdlib.add_logger_name, *named],
            processors=[stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[libraries], level=logging.ERROR)


@contextmanager
def last_words() -> Iterator[None]:
    """Where the log is JSON, the error that ends the worker is a line of it too."""
    try:
        yield
    except StreamMAMLError as error:
        if sys.stderr.isatty():
            raise
        structlog.get_logger().error("failed", error=str(error), exit_code=error.exit_code)
        raise typer.Exit(error.exit_code) from error


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """The first SIGTERM or SIGINT asks for an orderly end, a second one ends at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
