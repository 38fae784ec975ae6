"""Records that are no events: what is said of them, and when there are too many."""

from __future__ import annotations

import structlog

from streammaml.config import Config
from streammaml.partition import Played, RejectionLimit

log = structlog.get_logger(__name__)


def new_limit(config: Config) -> RejectionLimit:
    worker = config.worker
    return RejectionLimit(worker.rejected_window, worker.rejected_minimum, worker.rejected_share)


def log_rejected(played: Played) -> None:
    """One line for each batch that had some, with the first as its example."""
    first = played.rejected[0]
    log.warning(
        "records_rejected",
        topic=played.partition.topic,
        partition=played.partition.index,
        count=len(played.rejected),
        before_offset=played.next_offset,
        reason=first.reason.value,
        example=first.message,
    )


def too_many(played: Played, config: Config) -> str:
    """Why the worker ends, with the cure."""
    worker, last = config.worker, played.rejected[-1]
    return (
        f"more than {worker.rejected_share:.0%} of the last {worker.rejected_window} records "
        f"of {played.partition.topic!r} are not events of this schema; the last one: "
        f"{last.message}. They are in {config.topics.dead_letters!r}; the group stands "
        f"at offset {played.next_offset} of partition {played.partition.index}. Check the "
        "producer, and `features` and `label` in the configuration"
    )
