"""The online learner of one partition: test, detect, then train, for one batch of events.

It does no I/O, reads no clock and logs nothing. Give it a batch, act on its decisions. Splitting
a stream into batches differently changes no bit of any decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from river import base

from streammaml.config import Config, spec_of
from streammaml.events import Batch, Context, Decisions, DriftLevel, Event, Packed, Task
from streammaml.initialization import Initialization, check_fits
from streammaml.learner import detectors
from streammaml.learner.kernels import step as kernel
from streammaml.learner.kernels.bundle import Bundle, bundle
from streammaml.learner.schema import Collated, Labels, Schema
from streammaml.learner.state import (
    Ints,
    Policy,
    grow,
    meta_of,
    new_contexts,
    new_packed,
    new_scratch,
    new_stream,
)

FIRST_CAPACITY = 16
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Learner:
    """MAML over the contexts of one partition: profile ``maml``.

    Contexts beyond ``learner.max_contexts`` are forgotten, least recently used first.

    References:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation", 2017.
    """

    def __init__(self, config: Config, initialization: Initialization) -> None:
        learner = config.learner
        self._regression = config.label.task is Task.REGRESSION
        self._spec = spec_of(config)
        check_fits(initialization, self._spec)
        prototype = detectors.build(learner.detector, config.label.task)
        self._policy = policy_of(config)
        self._schema = Schema(config.features)
        self.labels = Labels(config.label, initialization.classes)
        self._meta = meta_of(initialization)
        self._limit = learner.max_contexts
        self._rows: dict[Context, int] = {}
        self._names: list[Context] = []  # by row
        self._contexts = new_contexts(
            min(FIRST_CAPACITY, self._limit),
            self._meta,
            learner.support_size,
            self._schema.width,
            learner.baseline_rate > 0,
        )
        known = 0 if self._regression else len(self.labels.classes)
        self._stream = new_stream(self._schema.width, config.label.slots, known)
        self._scratch = new_scratch(self._meta, learner.support_size, self._schema.width)
        self._bundle = self._new_bundle()
        compiled = detectors.is_compiled(learner.detector, config.label.task)
        self._prototype = None if compiled else prototype
        self._detectors: dict[int, detectors.Detector] = {}
        self._evicted = 0

    def __len__(self) -> int:
        """Contexts in memory."""
        return len(self._rows)

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
        """Bytes of all else that is kept for the contexts: support sets, scalers, detectors."""
        return sum(array.nbytes for array in self._contexts) - self.parameter_bytes

    @property
    def version(self) -> int:
        """Version of the initialization in use."""
        return self._meta.version

    def swap(self, initialization: Initialization) -> None:
        """Use a new initialization; fast weights stay until their next adaptation from θ.

        InitializationError if it was made for another model or another order of classes.
        """
        check_fits(initialization, self._spec)
        self.labels.check_order(initialization.classes)
        self._meta = meta_of(initialization)
        self._bundle = self._new_bundle()

    def collate(self, events: Sequence[Event]) -> Collated:
        """Stack events for :meth:`step`; learns the classes of an open label as they appear."""
        return self._schema.collate(events, self.labels)

    def step(self, batch: Batch) -> Decisions:
        """Predict and score every event with what was known before it, then learn from it."""
        size = len(batch.contexts)
        self._check(batch)
        packed = new_packed(size, self._stream.known.shape[0])
        rows = np.empty(size, np.int64)
        self._evicted = 0
        first = 0
        find = self._rows.get
        for i, context in enumerate(batch.contexts):
            row = find(context)
            if row is None:
                if len(self._rows) == self._limit:
                    self._play(batch, rows, first, i, packed)
                    first = i
                row = self._new_row(context)
            rows[i] = row
        self._play(batch, rows, first, size, packed)
        return Decisions(packed, self._evicted)

    def _new_bundle(self) -> Bundle:
        """Again whenever an array was replaced."""
        return bundle(self._contexts, self._stream, self._meta, self._policy, self._scratch)

    def _check(self, batch: Batch) -> None:
        """The kernel checks no bounds: refuse what would reach outside its arrays."""
        assert batch.x.shape == (len(batch.contexts), self._schema.width)
        assert batch.x.flags.c_contiguous
        assert batch.x.dtype == FLOAT32  # another type is seconds of compiling
        assert batch.y.dtype == FLOAT64
        assert batch.y.shape == batch.x.shape[:1]

    def _new_row(self, context: Context) -> int:
        row = len(self._rows)
        if row == self._limit:
            row = self._evict()
        elif row == self._contexts.labels.shape[0]:
            self._contexts = grow(self._contexts, min(2 * row, self._limit))
            self._bundle = self._new_bundle()
        self._rows[context] = row
        self._names[row : row + 1] = [context]
        return row

    def _evict(self) -> int:
        """Forget the least recently used context; return its row."""
        row = int(self._contexts.used.argmin())
        del self._rows[self._names[row]]
        self._detectors.pop(row, None)
        self._contexts.version[row] = -1
        self._evicted += 1
        return row

    def _play(self, batch: Batch, rows: Ints, first: int, last: int, packed: Packed) -> None:
        if self._prototype is None:
            kernel.play(self._bundle, rows, batch.x, batch.y, first, last, packed)
            return
        decisions = Decisions(packed)
        for i in range(first, last):
            kernel.play_to_signal(self._bundle, rows, batch.x, batch.y, i, packed)
            level = DriftLevel.STABLE
            if not np.isnan(batch.y[i]):
                level = self._detect(int(rows[i]), batch, decisions, i)
            kernel.play_from_level(self._bundle, rows, batch.x, batch.y, i, int(level), packed)

    def _detect(self, row: int, batch: Batch, decisions: Decisions, i: int) -> DriftLevel:
        """Ask the context's river detector, a new one after each drift."""
        detector = self._detectors.get(row)
        if detector is None:
            assert self._prototype is not None
            detector = self._detectors[row] = self._prototype.clone()
        if isinstance(detector, base.BinaryDriftDetector):
            detector.update(bool(decisions.predictions[i].argmax() != batch.y[i]))
        else:
            detector.update(float(decisions.signal[i]))
        level = detectors.level_of(detector)
        if level is DriftLevel.DRIFT:
            del self._detectors[row]
        return level


def policy_of(config: Config) -> Policy:
    """The kernel's constants from the configuration."""
    learner = config.learner
    detector = detectors.parameters_of(learner.detector, config.label.task)
    warmup = np.zeros(learner.support_size + 1, np.bool_)
    warmup[list(learner.warmup)] = True
    return Policy(
        regression=config.label.task is Task.REGRESSION,
        warmup=warmup,
        after_drift=learner.after_drift,
        refresh_every=learner.refresh_every,
        held_out_test=learner.held_out_test,
        clip=learner.clip_norm,
        min_instances=float(detector.get("min_instances", 0)),
        delta=float(detector.get("delta", 0)),
        threshold=float(detector.get("threshold", 0)),
        alpha=float(detector.get("alpha", 1 - 0.0001)),
        baseline_rate=learner.baseline_rate,
    )


def warm_up(config: Config, initialization: Initialization) -> None:
    """Compile the kernels, or load them from the cache, by playing one event."""
    learner = Learner(config, initialization)
    x = np.zeros((1, learner.width), np.float32)
    learner.step(Batch(contexts=[""], x=x, y=np.zeros(1)))
