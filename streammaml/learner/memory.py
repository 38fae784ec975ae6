"""Which context stands in which row, and how contexts leave memory and come back.

Rules: a row number never leaves this package. Where there is a shelf, a context that left comes
back to the bit; so what leaves, and when, is a matter of speed alone. Where there is none, what
leaves is forgotten, and depends on the order of the events only, not on how they were cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from streammaml.config import Config
from streammaml.errors import DamagedError
from streammaml.events import Context, Float32s
from streammaml.learner.snapshot import DETECTOR, LIGHT, WEIGHTS, Format, Item, Records, key_of
from streammaml.learner.state import Ints, StreamState, grow, new_contexts
from streammaml.learner.versions import Versions
from streammaml.learner.watch import Watch

FIRST_CAPACITY = 16
EVICTED_SHARE = 16
"""Room is made for one in so many rows at once: finding the oldest reads all of them."""
BARRIER, CHANGED, WEIGHTS_CHANGED = 0, 1, 2
"""Places in ``StreamState.marks``."""
NEVER = np.iinfo(np.int64).max


class Shelf(Protocol):
    """Where contexts stand that are not in memory."""

    def take(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """The values of those keys that are there: as spilled, else as of the last barrier."""
        ...

    def spill(self, items: Iterable[Item]) -> None:
        """Keep values that changed since the last barrier; None: deleted since."""
        ...


class Memory:
    """The contexts of a partition that are in memory."""

    def __init__(
        self,
        config: Config,
        form: Format,
        versions: Versions,
        stream: StreamState,
        watch: Watch,
        shelf: Shelf | None,
    ) -> None:
        learner = config.learner
        self._form = form
        self._versions = versions
        self._watch = watch
        self._shelf = shelf
        self._limit = learner.max_contexts
        self._marks = stream.marks
        first = min(FIRST_CAPACITY, self._limit)
        baseline, width = learner.baseline_rate > 0, len(stream.x_count)
        self.contexts = new_contexts(
            first, form.parameters, form.ring, width, baseline, form.has_offsets
        )
        self.rows: dict[Context, int] = {}
        self.names: list[Context] = [""] * first  # by row
        self._free = list(range(first))[::-1]
        self._stored = np.zeros(first, np.bool_)  # fast weights may stand on the shelf
        self.evicted = 0
        self.admitted: list[Context] = []
        """Since this was last emptied."""

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self._limit

    # --- in ------------------------------------------------------------------------------------

    def admit(self, contexts: Sequence[Context], place: int) -> int:
        """A row for ``contexts[place]``, which is not in memory; there must be room.

        Those after it that are not in memory either are fetched from the shelf with it, as far as
        there is room: each of them is played before anything has to leave again.
        """
        if self._shelf is None:
            return self._occupy(contexts[place])
        room = self._limit - len(self.rows)
        missing = (c for c in islice(contexts, place, None) if c not in self.rows)
        wanted: dict[Context, None] = {}
        for context in missing:
            wanted[context] = None
            if len(wanted) == room:
                break
        found = self._shelf.take([key_of(LIGHT, context) for context in wanted])
        back = [context for context in wanted if key_of(LIGHT, context) in found]
        records, weights, inputs = self._read(self._shelf, back, found)
        rows = np.array([self._occupy(context) for context in wanted], np.int64)
        if back:
            self._restore(np.array([self.rows[c] for c in back]), records, weights, inputs)
        return int(rows[0])

    def _read(
        self, shelf: Shelf, names: Sequence[Context], light: Mapping[bytes, bytes]
    ) -> tuple[Records, Float32s, list[bytes | None]]:
        """Records, fast weights [n, P] and detector inputs of contexts that are on the shelf."""
        keys = [key_of(LIGHT, name) for name in names]
        records = self._form.unpack(keys, [light[key] for key in keys])
        apart = np.flatnonzero(records["at_init"] == 0)
        heavy = [key_of(WEIGHTS, names[i]) for i in apart.tolist()]
        watched = [key_of(DETECTOR, name) for name in names] if self._watch else []
        found = shelf.take(heavy + watched) if heavy or watched else {}
        for key in heavy:
            if key not in found:
                raise DamagedError(f"there is no {key!r:.80}, which its context needs")
        weights = np.empty((len(names), self._form.parameters), np.float32)
        weights[apart] = self._form.unpack_weights(heavy, [found[key] for key in heavy])
        at_init = records["at_init"] == 1  # of the initialization in use, not of when it left
        weights[at_init] = self._versions.theta
        records["version"][at_init] = self._versions.version
        return records, weights, [found.get(key) for key in watched]

    def swapped(self) -> None:
        """Contexts that stand at θ stand at the new one; nothing of them is to be written again."""
        contexts = self.contexts
        at_init = (contexts.at_init == 1) & (contexts.version >= 0)
        contexts.fast[at_init] = self._versions.theta
        contexts.version[at_init] = self._versions.version

    def _restore(
        self, rows: Ints, records: Records, weights: Float32s, inputs: Sequence[bytes | None]
    ) -> None:
        contexts = self.contexts
        self._form.scatter(contexts, rows, records)
        contexts.fast[rows] = weights
        # what the shelf has is not written again
        contexts.used[rows] = contexts.changed[rows] = self._marks[BARRIER]
        self._stored[rows] = records["at_init"] == 0
        for row, value in zip(rows.tolist(), inputs, strict=False):
            if value is not None:
                self._watch.restore(row, key_of(DETECTOR, self.names[row]), value)

    def _occupy(self, context: Context) -> int:
        if not self._free:
            before = len(self.names)
            capacity = min(2 * before, self._limit)
            self.contexts = grow(self.contexts, capacity)
            self.names += [""] * (capacity - before)
            self._free = list(range(before, capacity))[::-1]
            self._stored = np.append(self._stored, np.zeros(capacity - before, np.bool_))
        row = self._free.pop()
        self.rows[context] = row
        self.names[row] = context
        self.admitted.append(context)
        return row

    # --- out -----------------------------------------------------------------------------------

    def make_room(self, contexts: Sequence[Context], place: int) -> None:
        """Let the least recently used contexts leave; all events before ``place`` are played.

        Where they are not forgotten, those that the rest of the batch needs stay, if others can go.
        """
        used = self.contexts.used
        count = max(1, self._limit // EVICTED_SHARE)
        if self._shelf is not None:
            needed = [self.rows[c] for c in islice(contexts, place, None) if c in self.rows]
            others = self._limit - len(set(needed))
            if others:
                used = used.copy()
                used[needed] = NEVER
                count = min(count, others)
        rows = np.argpartition(used, count - 1)[:count]
        rows = rows[np.argsort(used[rows])]
        if self._shelf is not None:
            changed = rows[self.contexts.used[rows] > self._marks[BARRIER]]
            if len(changed):
                self._shelf.spill(self.changes(changed))
        for row in rows.tolist():
            self._release(row)
        self.evicted += count

    def _release(self, row: int) -> None:
        del self.rows[self.names[row]]
        self.names[row] = ""
        self.contexts.version[row] = -1
        self.contexts.used[row] = self.contexts.changed[row] = 0
        self._stored[row] = False
        self._watch.forget(row)
        self._free.append(row)

    def sweep(self, clock_s: float, ttl_s: float) -> list[bytes]:
        """Drop the contexts not seen for longer than ``ttl_s``; the keys to delete."""
        keys = []
        # the same sum as in the kernel: ``seen < clock − ttl`` may round the other way
        expired = self.contexts.seen + ttl_s < clock_s
        for row in np.flatnonzero(expired & (self.contexts.version >= 0)).tolist():
            name = self.names[row]
            keys.append(key_of(LIGHT, name))
            if self._stored[row] or not self.contexts.at_init[row]:  # or in a snapshot just taken
                keys.append(key_of(WEIGHTS, name))
            if self._watch.is_stored(row):
                keys.append(key_of(DETECTOR, name))
            self._release(row)
        return keys

    # --- barriers ------------------------------------------------------------------------------

    def changes(self, rows: Ints | None = None) -> Iterator[Item]:
        """What changed since the mark, of all contexts or of these rows."""
        contexts, mark = self.contexts, self._marks[BARRIER]
        if rows is None:
            rows = np.flatnonzero(contexts.used > mark)
        yield from self._form.pack(contexts, self.names, rows)
        moved = rows[contexts.changed[rows] > mark]
        at_init = contexts.at_init[moved] == 1
        yield from self._form.pack_weights(contexts, self.names, moved[~at_init])
        for row in moved[at_init & self._stored[moved]].tolist():
            yield key_of(WEIGHTS, self.names[row]), None
        yield from self._watch.changes(self.names, rows.tolist())

    def mark(self, taken: int) -> None:
        """What was changed up to the partition's event ``taken`` is durable."""
        contexts, marks = self.contexts, self._marks
        written = (contexts.changed > marks[BARRIER]) & (contexts.changed <= taken)
        self._stored[written] = contexts.at_init[written] == 0
        self._stored[contexts.changed > taken] = True  # perhaps: what was written is not known
        marks[BARRIER] = taken
        marks[CHANGED] = np.count_nonzero(contexts.used > taken)
        marks[WEIGHTS_CHANGED] = np.count_nonzero(
            (contexts.changed > taken) & (contexts.at_init == 0)
        )
        self._watch.mark()

    # --- one context ---------------------------------------------------------------------------

    def last_offset(self, context: Context) -> int:
        row = self.rows.get(context)
        if row is not None:
            return int(self.contexts.ledger[row, 1]) if self.contexts.version[row] >= 0 else -1
        key = key_of(LIGHT, context)
        found = {} if self._shelf is None else self._shelf.take([key])
        return int(self._form.unpack([key], [found[key]])["ledger"][0, 1]) if found else -1

    def find(self, context: Context) -> tuple[Records, Float32s, list[float]] | None:
        """The record [1], fast weights [1, P] and detector inputs of a context, if there is one."""
        row = self.rows.get(context)
        if row is not None and self.contexts.version[row] >= 0:
            at = np.array([row])
            records = self._form.gather(self.contexts, at)
            return records, self.contexts.fast[at], self._watch.inputs(row)
        if self._shelf is None:
            return None
        key = key_of(LIGHT, context)
        found = self._shelf.take([key])
        if key not in found:
            return None
        records, weights, inputs = self._read(self._shelf, [context], found)
        value = inputs[0] if inputs else None
        listed = [] if value is None else self._watch.unpack(key_of(DETECTOR, context), value)
        return records, weights, listed
