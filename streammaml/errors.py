"""Every exception streammaml raises, by who has to act.

* :exc:`StreamMAMLError`
    * :exc:`ConfigError`             the operator: the process refuses to start (exit 78)
    * :exc:`InitializationError`     the operator: it cannot be read (exit 78)
        * :exc:`MisfitError`         the operator: it was made for another model
        * :exc:`NonFiniteError`      the operator: it holds a number that is not finite
    * :exc:`InputError`              the operator: a file named in a command is no table (exit 2)
    * :exc:`RejectedError`           the producer: the record goes to the dead-letter topic
    * :exc:`TooManyRejectedError`    the operator: the topic is not what the schema says (exit 1)
    * :exc:`GapError`                the operator: the broker lost the next offset (exit 1)
    * :exc:`IncompatibleError`       the operator: stored state of another model (exit 78)
    * :exc:`BackendError`            nobody yet: the worker rebuilds its clients with back-off
        * :exc:`FencedError`         the operator: a second process has the same instance (exit 1)
        * :exc:`UnavailableError`    the operator, once the limit has passed (exit 69)
        * :exc:`StoreError`          the operator, once the limit has passed (exit 74)
        * :exc:`DamagedError`        nobody: the local store is moved aside and rebuilt
        * :exc:`UnreadableError`     nobody: after some tries the offset is passed over
"""

from __future__ import annotations

from streammaml.events import Reason


class StreamMAMLError(Exception):
    """Base class; its docstring is the message when none is given."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class ConfigError(StreamMAMLError):
    """The configuration is invalid."""

    exit_code = 78


class InitializationError(StreamMAMLError):
    """The initialization cannot be read or was made for another model."""

    exit_code = 78


class MisfitError(InitializationError):
    """The initialization was made for another model."""


class NonFiniteError(InitializationError):
    """The initialization holds a number that is not finite."""


class InputError(StreamMAMLError):
    """The file cannot be read as a table of events."""

    exit_code = 2


class RejectedError(StreamMAMLError):
    """The record is not a valid event."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TooManyRejectedError(StreamMAMLError):
    """Too many of the latest records are not valid events."""


class GapError(StreamMAMLError):
    """The broker no longer holds the offset at which this group goes on."""


class IncompatibleError(StreamMAMLError):
    """The stored state was written for another model."""

    exit_code = 78


class BackendError(StreamMAMLError):
    """The broker did not answer as it should; trying again may help."""


class FencedError(BackendError):
    """Another process took over this worker's instance name."""


class UnavailableError(BackendError):
    """The broker cannot be reached."""

    exit_code = 69


class StoreError(BackendError):
    """The local store cannot be read or written."""

    exit_code = 74


class DamagedError(BackendError):
    """Stored bytes are not what was written."""

    exit_code = 74


class UnreadableError(BackendError):
    """The client cannot decode what the broker holds at an offset."""

    def __init__(self, message: str, topic: str, partition: int, offset: int) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.offset = offset
