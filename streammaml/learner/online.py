"""The online learner of one partition: test, detect, then train, for one batch of events.

It does no I/O, reads no clock and logs nothing. Give it a batch, act on its decisions. Splitting
a stream into batches differently changes no bit of any decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streammaml.config import Config, spec_of
from streammaml.events import (
    Batch,
    Context,
    Decisions,
    DriftLevel,
    Episode,
    Event,
    Floats,
    Packed,
)
from streammaml.initialization import Initialization, check_fits
from streammaml.learner import detectors
from streammaml.learner.describe import describe
from streammaml.learner.episodes import episodes_of
from streammaml.learner.kernels import step as kernel
from streammaml.learner.kernels import trial
from streammaml.learner.kernels.bundle import Bundle, bundle
from streammaml.learner.kernels.callbacks import Network, callbacks_of
from streammaml.learner.listing import Column, Glances, column, describe_glances, glances
from streammaml.learner.memory import Memory, Shelf
from streammaml.learner.policy import policy_of
from streammaml.learner.schema import Collated, Labels, Schema
from streammaml.learner.snapshot import STREAM, Format, Item
from streammaml.learner.state import (
    CAPTURES,
    ContextState,
    Ints,
    Meta,
    meta_of,
    new_captures,
    new_packed,
    new_scratch,
    new_stream,
)
from streammaml.learner.versions import Versions
from streammaml.learner.watch import Watch
from streammaml.query import Sort
from streammaml.sealed import OVERHEAD_BYTES

FLOAT32, FLOAT64, INT64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
EVENTS, BARRIER, EXPIRED, DROPPED = 1, 0, 3, 1
"""Places in ``StreamState.counts`` and ``marks``, and in ``Captures.counts``."""


class Learner:
    """MAML over the contexts of one partition: profile ``maml``.

    At most ``learner.max_contexts`` contexts are in memory. Beyond, the least recently used leave
    for the ``shelf`` and come back at their next event; without one they are forgotten.

    What is durable: :meth:`snapshot` gives what changed since the last :meth:`mark`;
    :meth:`restore` takes the stream-wide part back, and contexts come from the shelf.

    References:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation", 2017.
    """

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        shelf: Shelf | None = None,
        network: Network | None = None,
        clock: tuple[int, int] = (0, 0),
    ) -> None:
        """``clock``: address and number of a C clock, by which adaptations are timed."""
        learner = config.learner
        self._config = config
        self._spec = spec_of(config)
        check_fits(initialization, self._spec)
        self._prototype = detectors.prototype(learner.detector, config.label.task)
        self._policy = policy_of(config)
        self._schema = Schema(config.features)
        self.labels = Labels(config.label, initialization.classes)
        self._callbacks = callbacks_of(self._spec, network)
        known = 0 if self._policy.regression else len(self.labels.classes)
        self._stream = new_stream(self._schema.width, config.label.slots, known)
        self._form = Format(config)
        self._versions = Versions(self._spec, self._form.fingerprint)
        self._versions.use(initialization, self.labels.classes)
        self._watch = Watch(self._prototype, self._form.fingerprint)
        self._memory = Memory(config, self._form, self._versions, self._stream, self._watch, shelf)
        self._rows = self._memory.rows
        self._detectors = self._watch.detectors
        self._meta = self._meta_of(self._versions.current)
        width = self._schema.width
        self._scratch = new_scratch(self._meta, learner.support_size, width, clock)
        windows = CAPTURES if config.episodes.enabled else 0
        self._captures = new_captures(windows, self._form.ring, self._schema.width)
        self._played: Sequence[Context] = ()
        self._taken_at = self._expired = 0
        self._new_bundle()

    def __len__(self) -> int:
        """Contexts in memory."""
        return len(self._rows)

    def __contains__(self, context: Context) -> bool:
        """Whether a context is in memory."""
        return context in self._rows

    def admitted(self) -> list[Context]:
        """Contexts that came into memory since this was last asked."""
        names, self._memory.admitted = self._memory.admitted, []
        return names

    @property
    def _contexts(self) -> ContextState:
        return self._memory.contexts

    @property
    def width(self) -> int:
        """D."""
        return self._schema.width

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the contexts' weights, room for new contexts included."""
        return self._contexts.fast.nbytes + self._contexts.baseline.nbytes

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all else that is kept for the contexts: examples, scalers, detectors."""
        kept = sum(array.nbytes for part in (self._contexts, self._captures) for array in part)
        return kept - self.parameter_bytes

    @property
    def version(self) -> int:
        """Version of the initialization in use."""
        return self._meta.version

    @property
    def events(self) -> int:
        """Events played since the partition began."""
        return int(self._stream.counts[EVENTS])

    @property
    def clock_s(self) -> float:
        """The largest event time; NaN where no event had one."""
        return float(self._stream.clock[0])

    @property
    def changed_bytes(self) -> int:
        """About the bytes that changed since the last mark; more than those, if anything."""
        _, contexts, weights, _ = self._stream.marks.tolist()
        heavy = 4 * self._form.parameters + OVERHEAD_BYTES
        return int(contexts * self._form.largest + weights * heavy)

    # --- the initialization --------------------------------------------------------------------

    def swap(self, initialization: Initialization) -> None:
        """Use a new initialization, from now on for every context that stands at θ.

        Fast weights of their own stay until the next adaptation from θ. Its outputs take the slots
        that their classes have here; classes not seen yet take the next ones, while there are any.
        InitializationError if it was made for another model, if it is another one under the number
        in use, or, of a custom network, if its classes have another order.
        """
        self._check_fits(initialization)
        self._versions.check(initialization)
        self._use(initialization)

    @property
    def initialization(self) -> Initialization:
        """The one in use, as it was published."""
        return self._versions.published

    def check_version(self, initialization: Initialization) -> None:
        """InitializationError if its version number is another's here: ``swap`` would refuse it."""
        self._versions.check(initialization)

    def same_initialization(self, initialization: Initialization) -> bool:
        """Whether this version with these numbers is in use."""
        return self._versions.is_same(initialization)

    def losses_of_segments(self, candidate: Initialization, limit: int, labels: int) -> Floats:
        """Losses [2, n] of the initialization in use, and of one that :meth:`swap` could use.

        Of n contexts, at most ``limit``: those in memory that were used last, with so many
        ``labels`` or more since their segment began. ``kernels.trial`` says which loss; NaN where
        it is not finite. Changes nothing.
        """
        self._check_fits(candidate)
        contexts = self._contexts
        rows = np.flatnonzero((contexts.version >= 0) & (contexts.segment >= labels))
        rows = rows[np.argsort(-contexts.used[rows])][:limit]
        other = self._meta_of(self._versions.arranged(candidate, self.labels.classes))
        packed = new_packed(0, self._stream.known.shape[0])
        losses = np.empty((2, len(rows)))
        trial.losses_of_segments(self._bundle, packed, rows, losses[0])
        trial.losses_of_segments(self._bundle_of(other), packed, rows, losses[1])
        if self._callbacks is not None:
            self._callbacks.check()
        return losses

    def _check_fits(self, initialization: Initialization) -> None:
        check_fits(initialization, self._spec)
        if self._spec.network:
            self.labels.check_order(initialization.classes)

    def _use(self, initialization: Initialization) -> None:
        self.labels.foresee(initialization.classes)
        self._versions.use(initialization, self.labels.classes)
        self._meta = self._meta_of(self._versions.current)
        self._memory.swapped()
        self._new_bundle()

    def _meta_of(self, initialization: Initialization) -> Meta:
        outside = self._callbacks
        return meta_of(initialization, None if outside is None else outside.addresses)

    # --- events --------------------------------------------------------------------------------

    def collate(self, events: Sequence[Event]) -> Collated:
        """Stack events for :meth:`step`; learns the classes of an open label as they appear."""
        return self._schema.collate(events, self.labels)

    def step(self, batch: Batch) -> Decisions:
        """Predict and score every event with what was known before it, then learn from it.

        DamagedError and IncompatibleError where the shelf holds what is no state of this model.
        What a network of the user's own raises comes out as it is; the learner is of no use then.
        """
        size = len(batch.contexts)
        self._check(batch)
        packed = new_packed(size, self._stream.known.shape[0])
        self._captures.counts.fill(0)
        self._played = batch.contexts
        rows = np.empty(size, np.int64)
        memory = self._memory
        evicted = memory.evicted
        first = 0
        find = self._rows.get
        for i, context in enumerate(batch.contexts):
            row = find(context)
            if row is None:
                if memory.is_full:
                    self._play(batch, rows, first, i, packed)
                    first = i
                    memory.make_room(batch.contexts, i)
                row = memory.admit(batch.contexts, i)
                if memory.contexts is not self._bundled:  # they grew
                    self._new_bundle()
            rows[i] = row
        self._play(batch, rows, first, size, packed)
        expired = self._newly_expired() if self._policy.ttl_s > 0 else 0
        return Decisions(packed, memory.evicted - evicted, expired)

    def _newly_expired(self) -> int:
        """Contexts that began anew since this was last asked."""
        before, self._expired = self._expired, int(self._stream.marks[EXPIRED])
        return self._expired - before

    def _new_bundle(self) -> None:
        """Again whenever an array was replaced."""
        self._bundled = self._contexts
        self._bundle = self._bundle_of(self._meta)

    def _bundle_of(self, meta: Meta) -> Bundle:
        return bundle(
            self._contexts, self._stream, meta, self._policy, self._scratch, self._captures
        )

    def _check(self, batch: Batch) -> None:
        """The kernel checks no bounds: refuse what would reach outside its arrays."""
        x, y = batch.x, batch.y
        assert x.shape == (len(batch.contexts), self._schema.width)
        assert x.flags.c_contiguous
        assert x.dtype == FLOAT32  # another type is seconds of compiling
        assert y.dtype == batch.times.dtype == FLOAT64
        assert batch.offsets.dtype == INT64
        assert y.shape == x.shape[:1]
        assert len(batch.times) == len(batch.offsets) == len(x)

    def _play(self, batch: Batch, rows: Ints, first: int, last: int, packed: Packed) -> None:
        if self._prototype is None:
            x, y, offsets, times = batch.x, batch.y, batch.offsets, batch.times
            kernel.play(self._bundle, rows, x, y, offsets, times, first, last, packed)
        else:
            self._play_watched(batch, rows, first, last, packed)
        if self._callbacks is not None:
            self._callbacks.check()

    def _play_watched(
        self, batch: Batch, rows: Ints, first: int, last: int, packed: Packed
    ) -> None:
        """The same with a detector in Python."""
        x, y, offsets, times = batch.x, batch.y, batch.offsets, batch.times
        decisions = Decisions(packed)
        for i in range(first, last):
            row = int(rows[i])
            kernel.play_to_signal(self._bundle, rows, x, y, times, i, packed)
            if self._contexts.ledger[row, 0] == 0:
                self._watch.begin(row)
            level = DriftLevel.STABLE
            if not np.isnan(y[i]):
                wrong = bool(decisions.predictions[i].argmax() != y[i])
                level = self._watch.update(row, float(decisions.signal[i]), wrong)
            kernel.play_from_level(self._bundle, rows, x, y, offsets, i, int(level), packed)

    def episodes(self, partition: int) -> tuple[list[Episode], int]:
        """The windows that the latest batch completed, and for how many more there was no room.

        They are given once; the next batch drops what nobody asked for.
        """
        found = episodes_of(
            self._config, self._captures, self._played, partition, self.labels.classes
        )
        dropped = int(self._captures.counts[DROPPED])
        self._captures.counts.fill(0)
        return found, dropped

    # --- durable state -------------------------------------------------------------------------

    def snapshot(self) -> list[Item]:
        """Keys and values of all in memory that changed since the last mark; None: to delete.

        Together with what was spilled since, and over it, the state of the partition.
        """
        items: list[Item] = list(self._memory.changes())
        items += self._versions.changes()
        value = self._form.pack_stream(self._stream, self.version, self.labels.classes)
        items.append((STREAM, value))
        self._taken_at = self.events
        self._versions.taken()
        self._watch.taken()
        return items

    def mark(self) -> None:
        """The latest snapshot, and what was spilled before it, is durable."""
        self._memory.mark(self._taken_at)
        self._versions.mark()

    def restore(self, values: Mapping[bytes, bytes]) -> None:
        """Take the stream-wide state of a snapshot back, into a learner that played nothing.

        ``values``: the records whose keys begin with ``@``; without ``@stream`` there is nothing to
        take. The initialization in use is then the one that was; :meth:`swap` to the configured
        one if :meth:`same_initialization` says no. DamagedError, or IncompatibleError of another
        model.
        """
        assert self.events == 0
        if STREAM not in values:
            return
        version, classes = self._form.unpack_stream(values[STREAM], self._stream)
        stored = self._versions.read(values, version)
        self.labels = Labels(self._config.label, classes)
        self._stream.marks[:] = 0
        self._stream.marks[BARRIER] = self._taken_at = self.events
        self._use(stored)

    def sweep(self) -> list[bytes]:
        """Drop the contexts that were not seen for longer than ``state.ttl_s``; keys to delete.

        Frees room and changes no decision: such a context begins anew at its next event anyway. It
        may do so before its keys are deleted: what a snapshot gives for a key goes over that.
        """
        if self._policy.ttl_s <= 0:
            return []
        return self._memory.sweep(self.clock_s, self._policy.ttl_s)

    def last_offset(self, context: Context) -> int:
        """Offset of the last event that a context has learnt; -1 where it is not known."""
        return self._memory.last_offset(context)

    def ledger(self, context: Context) -> tuple[int, int, int] | None:
        """Events applied, offset of the latest, rolling hash of a context; None: not known."""
        found = self._memory.find(context)
        if found is None:
            return None
        applied, last, rolling = found[0]["ledger"][0].tolist()
        return applied, last, rolling

    def describe(self, context: Context) -> dict[str, Any] | None:
        """All that is known of a context, as JSON values (``describe.describe``); None: nothing."""
        found = self._memory.find(context)
        if found is None:
            return None
        records, weights, inputs = found
        record, classes = records[0], self.labels.classes
        same = int(record["version"]) == self.version
        theta = self._versions.theta if same else None
        sizes = self._form.sizes(record) | {"detector": self._watch.size(inputs)}
        return describe(self._config, context, record, weights[0], theta, inputs, classes, sizes)

    def column(self, sort: Sort) -> Column:
        """One number of each context in memory, to choose by (``listing.top``)."""
        return column(self._contexts, self._memory.names, sort)

    def glances(self, names: Sequence[Context]) -> Glances:
        """What a line of a listing needs, of those contexts that are in memory."""
        present = [name for name in names if name in self._rows]
        rows = np.array([self._rows[name] for name in present], np.int64)
        records = glances(self._contexts, rows)
        sizes = self._form.stored_sizes(records["labels"], records["at_init"])
        if self._watch:
            sizes += [self._watch.size(self._watch.inputs(row)) for row in rows.tolist()]
        return Glances(present, records, sizes)

    def lines(self, found: Glances) -> list[dict[str, Any]]:
        """These, as JSON values. From any thread."""
        return describe_glances(self._config, found)


def warm_up(config: Config, initialization: Initialization, network: Network | None = None) -> None:
    """Compile the kernels, or load them from the cache, by playing one event."""
    learner = Learner(config, initialization, network=network)
    x = np.zeros((1, learner.width), np.float32)
    learner.step(Batch(contexts=[""], x=x, y=np.zeros(1)))
    learner.losses_of_segments(initialization, limit=1, labels=4)
