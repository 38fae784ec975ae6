"""Who is current: what the outer loop knows of ``initializations``, and what it adds to it.

Rule: only what this loop published, or adopted, is its incumbent. Another current one is an
operator's, a loop's of another group, or, if it is one of this group, the sign that this loop was
fenced. Once there is an incumbent, what cannot follow it is logged and passed over: that of another
model, and, unless an operator or this group put it there, what the job objects to.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import structlog

from streammaml.backends.ports import Headers, Message, Record, Tail
from streammaml.backends.wire_initializations import (
    DIGEST_CHARACTERS,
    ROLLBACK,
    TWIN,
    Published,
    initialization_messages,
    tombstone,
)
from streammaml.catalogue import SLICE_S, Catalogue, read_all
from streammaml.config import Config, spec_of
from streammaml.errors import FencedError, MisfitError
from streammaml.initialization import Initialization, check_fits, encode
from streammaml.starts import load_start

START = "start"
GRACE_S = 5.0
"""How long after it was fenced a loop waits to see an operator's rollback."""

log = structlog.get_logger(__name__)


class Standing(Enum):
    """What came of looking at the topic again."""

    SAME = "same"
    CHANGED = "changed"
    """Another initialization is current."""
    ROLLED_BACK = "rolled back"
    """The same, by an operator, who has fenced this loop's publisher."""


class Succession:
    """The line of current initializations, as read since a publisher was made."""

    def __init__(
        self, config: Config, objection: Callable[[Initialization], str] = lambda fresh: ""
    ) -> None:
        """``objection``: why it cannot take the incumbent's place; empty: nothing speaks against.

        It is asked about other groups' only.
        """
        self._config = config
        self._objection = objection
        self._catalogue = Catalogue()
        self._read_to = -1  # offset of the current one when the publisher was new
        self._own: set[str] = set()
        self._refused = ("", "")  # digest of the current one that was passed over, and whose it was
        self._start: Initialization | None = None  # the incumbent, where the topic has none
        self.digest = ""
        """Of the incumbent."""

    def begin(
        self, tail: Tail, stop: threading.Event, turn: Callable[[], None]
    ) -> Initialization | None:
        """Read the topic from its beginning; the incumbent if it is another one than before.

        MisfitError if the first one was made for another model.
        """
        self._catalogue = Catalogue()
        read_all(tail, self._note, stop, turn)
        self._read_to = self._catalogue.current_offset
        return None if stop.is_set() else self._adopt()

    def follow(self, tail: Tail, settle_s: float) -> tuple[Standing, Initialization | None]:
        """Read on until nothing has come for ``settle_s``; what holds now, and a new incumbent.

        FencedError if a loop of this group has published.
        """
        while records := tail.poll(settle_s):
            self._note(records)
        current = self._catalogue.current
        if current is None or current.digest == self.digest:
            return Standing.SAME, None
        if (current.digest, current.by) == self._refused:
            return Standing.SAME, None
        by_operator = current.by == ROLLBACK
        if not by_operator and current.digest in self._own:
            return Standing.SAME, None  # what went before the incumbent comes back late
        if not by_operator and current.report.get("group") == group_of(self._config):
            raise FencedError(TWIN)
        incumbent = self._adopt()
        if by_operator:
            return Standing.ROLLED_BACK, incumbent
        return (Standing.SAME if incumbent is None else Standing.CHANGED), incumbent

    @property
    def highest(self) -> int:
        """The largest number that a version ever had."""
        return self._catalogue.highest

    @property
    def has_published(self) -> bool:
        """Whether the topic holds a version of this group."""
        entries = self._catalogue.entries.values()
        return any(entry.report.get("group") == group_of(self._config) for entry in entries)

    @property
    def published_s(self) -> float:
        """When the topic got its latest version, or its current one."""
        entries = self._catalogue.entries.values()
        return max([self._catalogue.current_s, *(entry.published_s for entry in entries)])

    def messages(self, fresh: Initialization, report: Mapping[str, Any]) -> list[Message]:
        """A new version, as the current one too; what is too old goes.

        The first one brings the start along, for a rollback to return to.
        """
        first = []
        if self._start is not None and self._start.version not in self._catalogue.entries:
            first = initialization_messages(self._start, {}, by=START)[:1]
        # What stands under a higher number is none of this line, and must not crowd it out.
        older = {version for version in self._catalogue.entries if version < fresh.version}
        there = sorted({*older, fresh.version})
        kept = there[-self._config.outer.keep_versions :]
        gone = [tombstone(version) for version in there if version < kept[0]]
        return [*first, *initialization_messages(fresh, report), *gone]

    def published(self, fresh: Initialization, messages: Sequence[Message]) -> None:
        """They are in the topic, and it is the incumbent now."""
        now_ms = time.time_ns() // 1_000_000
        self._note([_Sent(m.key, m.value, m.headers, now_ms) for m in messages])
        self._start = None  # it is there, and goes with its time as all do
        self.digest = digest_of(fresh)
        self._own.add(self.digest)

    def was_rolled_back(self, tail: Tail, stop: threading.Event, turn: Callable[[], None]) -> bool:
        """Whether an operator's rollback is what fenced this loop; it may show a moment later."""
        catalogue = Catalogue()
        read_all(tail, catalogue.read, stop, turn)
        deadline = time.monotonic() + GRACE_S
        while not stop.is_set():
            current = catalogue.current
            is_new = catalogue.current_offset > self._read_to
            if current is not None and is_new:
                if current.by == ROLLBACK:
                    return True
                if current.digest not in self._own:
                    return False
            if time.monotonic() > deadline:
                return False
            turn()
            catalogue.read(tail.poll(SLICE_S))
        return False

    def _note(self, records: Sequence[Record]) -> None:
        for refused in self._catalogue.read(records):
            log.warning("initialization_refused", **refused._asdict())

    def _adopt(self) -> Initialization | None:
        """The topic's, or what the configuration names where it has none; None: it is known."""
        published = self._catalogue.current or self._catalogue.newest
        if published is None:
            incumbent = self._start = load_start(self._config)
            digest = digest_of(incumbent)
        else:
            incumbent, digest = published.initialization, published.digest
        if digest == self.digest:
            return None
        try:
            check_fits(incumbent, spec_of(self._config))
        except MisfitError as error:
            if self.digest and published is not None:
                self._pass_over(published, str(error))
                return None
            raise MisfitError(
                f"v{incumbent.version} in {self._config.topics.initializations!r}: {error}; or "
                "name a topic of its own with --set topics.initializations=NAME"
            ) from error
        if self.digest and published is not None and self._is_foreign(published):
            why = self._objection(incumbent)
            if why:
                self._pass_over(published, why)
                return None
        if self.digest and published is not None:
            log.info("superseded", version=published.version, by=published.by)
        self.digest = digest
        return incumbent

    def _is_foreign(self, published: Published) -> bool:
        return published.by != ROLLBACK and published.report.get("group") != group_of(self._config)

    def _pass_over(self, published: Published, why: str) -> None:
        """The incumbent stays, and what this loop publishes next takes the place of this one."""
        self._refused = published.digest, published.by
        log.warning("current_refused", version=published.version, by=published.by, error=why)


class _Sent(NamedTuple):
    """A message as the record that it has become, at an offset that nobody told."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int
    offset: int = -1


def group_of(config: Config) -> str:
    """Loops of one group fence each other."""
    return config.outer.group or config.kafka.group


def digest_of(initialization: Initialization) -> str:
    """As of its bytes in the topic."""
    return hashlib.sha256(encode(initialization)).hexdigest()[:DIGEST_CHARACTERS]
