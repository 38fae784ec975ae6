"""The arrays of a partition: everything the learner knows, as plain NumPy arrays.

Rule: a context is a row; a row's state is that row of every array of :class:`ContextState`, and
nothing else. What is stream-wide is :class:`StreamState`, one for each partition. ``Scratch`` and
``Outputs`` hold nothing that outlives a call, :class:`Captures` nothing that outlives a batch.

    R  examples in a context's ring: S + QUERY where episodes are sent, else S
    W  windows of a batch that there is room for
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streammaml.events import Codes, Float32s, Floats, Packed
from streammaml.events import Ints as Ints
from streammaml.initialization import Initialization

SUPPORT_LEAST, QUERY = 2, 16
"""Of an episode: the fewest examples of a support set, and how many a query set has."""
NO_LOG, UNKNOWN = -1, -2
"""Instead of an example's offset: it came from no log; what it was is not known."""
CAPTURES = 64
"""W."""


class ContextState(NamedTuple):
    """One row for each context."""

    fast: Float32s  # [C, P] fast weights
    support_x: Float32s  # [C, R, D] ring of raw examples, NaN where missing
    support_y: Floats  # [C, R] class slot or value
    support_offsets: Ints  # [C, R] of their events, or NO_LOG, UNKNOWN; [C, 0] without episodes
    labels: Ints  # [C] labels learned; 0 to 2^63
    segment: Ints  # [C] labels since the current segment began
    detector: Floats  # [C, 4] Page-Hinkley
    error_scale: Floats  # [C] running mean of |error|, regression
    x_count: Floats  # [C, D] Welford: count, mean, sum of squared deviations
    x_mean: Floats  # [C, D]
    x_m2: Floats  # [C, D]
    baseline: Float32s  # [C, P], or [C, 0] where it is off
    version: Ints  # [C] initialization behind the fast weights; -1: row not begun
    used: Ints  # [C] the partition's event count at the context's latest event
    changed: Ints  # [C] the same at the latest change of the fast weights
    at_init: Codes  # [C] 1: the fast weights are θ of ``version``
    ledger: Ints  # [C, 3] events applied, offset of the latest, rolling hash of all offsets
    seen: Floats  # [C] the partition's clock at the context's latest event


class StreamState(NamedTuple):
    """One for each partition."""

    x_count: Floats  # [D] Welford over the stream
    x_mean: Floats  # [D]
    x_m2: Floats  # [D]
    x_shift: Floats  # [D] mean, variance and 1/√variance as served
    x_variance: Floats  # [D]
    x_inverse: Floats  # [D] 0 where constant
    y_moments: Floats  # [2] mean, sum of squared deviations
    y_scale: Floats  # [2] mean and standard deviation as served
    y_range: Floats  # [2] least and greatest label
    counts: Ints  # [2] labels learned, events seen
    known: NDArray[np.bool_]  # [K] classes that exist
    clock: Floats  # [1] the largest event time, in seconds; NaN: none had a time
    marks: Ints  # [4] event count at the barrier; contexts and weights changed since; expired


class Meta(NamedTuple):
    """The initialization in use."""

    theta: Float32s  # [P]
    rates: Float32s  # [steps, J]
    parameter_rates: Float32s  # [P], or [0] where there are none
    lengths: Ints  # [J] numbers in each tensor, in flat order
    sizes: Ints  # [L+1]
    callbacks: Ints  # [2] addresses of a forward and a backward pass; 0: compiled
    version: int


class Policy(NamedTuple):
    """When to adapt and when to call it drift; see ALGORITHM 2.3 and the configuration."""

    regression: bool
    warmup: NDArray[np.bool_]  # [S+1] adapt when the segment has so many labels
    after_drift: int
    refresh_every: int
    held_out_test: bool
    clip: float
    min_instances: float
    delta: float
    threshold: float
    alpha: float
    baseline_rate: float
    ttl_s: float  # a context not seen for longer begins anew; 0: never
    every: int  # labels of a context from one captured window to the next; 0: none is


class Scratch(NamedTuple):
    """Room for one event's work; belongs to one partition, so that partitions run in threads."""

    activations: Float32s  # [L+1, S, W]
    deltas: Float32s  # [2, S, W]
    turned: Float32s  # [W·W] a transposed weight; [0] where the network is not compiled
    pad: Float32s  # [W + max(W, S) + 1, 16] for widths below 16
    zeros: Float32s  # [W]
    ones: Float32s  # [1, S]
    gradient: Float32s  # [P]
    candidate: Float32s  # [P]
    sums: Float32s  # [max(256, K)]
    y: Floats  # [S]
    mean: Floats  # [D] the context's scale for this event
    inverse: Floats  # [D]
    clock: Ints  # [2] address of clock_gettime, 0: none; which clock
    moment: Ints  # [2] what it said: seconds, nanoseconds
    unit_rates: Float32s  # [J] ones


class Captures(NamedTuple):
    """Windows of the batch in hand: the newest examples of a context, oldest first."""

    x: Float32s  # [W, R, D]
    y: Floats  # [W, R]
    offsets: Ints  # [W, R]
    scales: Floats  # [W, 4, D] shift of the stream and of the context, then their inverses
    y_scale: Floats  # [W, 2] mean and standard deviation of the labels
    marks: Ints  # [W, 3] place in the batch, labels of the context, class slots in use
    counts: Ints  # [2] windows captured; windows for which there was no room


class Outputs(NamedTuple):
    """The rows of ``events.Packed`` for compiled code, as ``events.Decisions`` for all other."""

    predictions: Float32s  # [B, K]
    initial: Float32s  # [B, K] of the unadapted initialization
    loss: Floats  # [B]
    loss_init: Floats
    loss_baseline: Floats
    signal: Floats  # what the detector was fed
    loss_before: Floats
    loss_after: Floats
    spread: Floats  # regression: the context's running mean |error|
    gradient_norm: Floats
    seconds: Floats  # that the adaptation took
    support: Ints
    versions: Ints
    levels: Codes
    triggers: Codes
    results: Codes
    nonfinite: Codes


def new_contexts(
    capacity: int, parameters: int, ring: int, width: int, baseline: bool, offsets: bool = False
) -> ContextState:
    """Arrays for ``capacity`` contexts, none begun."""
    return ContextState(
        fast=np.zeros((capacity, parameters), np.float32),
        support_x=np.zeros((capacity, ring, width), np.float32),
        support_y=np.zeros((capacity, ring)),
        support_offsets=np.zeros((capacity, ring if offsets else 0), np.int64),
        labels=np.zeros(capacity, np.int64),
        segment=np.zeros(capacity, np.int64),
        detector=np.zeros((capacity, 4)),
        error_scale=np.zeros(capacity),
        x_count=np.zeros((capacity, width)),
        x_mean=np.zeros((capacity, width)),
        x_m2=np.zeros((capacity, width)),
        baseline=np.zeros((capacity, parameters if baseline else 0), np.float32),
        version=np.full(capacity, -1, np.int64),
        used=np.zeros(capacity, np.int64),
        changed=np.zeros(capacity, np.int64),
        at_init=np.zeros(capacity, np.uint8),
        ledger=np.zeros((capacity, 3), np.int64),
        seen=np.full(capacity, np.nan),
    )


def grow(contexts: ContextState, capacity: int) -> ContextState:
    """The same contexts in larger arrays; the new rows are not begun."""
    more = capacity - contexts.labels.shape[0]
    grown = ContextState(
        *(np.concatenate([a, np.zeros((more, *a.shape[1:]), a.dtype)]) for a in contexts)
    )
    grown.version[-more:] = -1
    return grown


def new_stream(width: int, slots: int, known: int) -> StreamState:
    """A partition that has seen nothing; the first ``known`` classes exist."""
    return StreamState(
        x_count=np.zeros(width),
        x_mean=np.zeros(width),
        x_m2=np.zeros(width),
        x_shift=np.zeros(width),
        x_variance=np.ones(width),
        x_inverse=np.ones(width),
        y_moments=np.zeros(2),
        y_scale=np.array([0.0, 1.0]),
        y_range=np.array([np.inf, -np.inf]),
        counts=np.zeros(2, np.int64),
        known=np.arange(slots) < known,
        clock=np.array([np.nan]),
        marks=np.zeros(4, np.int64),
    )


def new_scratch(meta: Meta, support: int, width: int, clock: tuple[int, int] = (0, 0)) -> Scratch:
    widest = int(meta.sizes.max())
    turned = 0 if meta.callbacks.any() else widest * widest
    parameters = meta.theta.shape[0]
    return Scratch(
        activations=np.zeros((len(meta.sizes), support, widest), np.float32),
        deltas=np.zeros((2, support, widest), np.float32),
        turned=np.zeros(turned, np.float32),
        pad=np.zeros((widest + max(widest, support) + 1, 16), np.float32),
        zeros=np.zeros(widest, np.float32),
        ones=np.ones((1, support), np.float32),
        gradient=np.zeros(parameters, np.float32),
        candidate=np.zeros(parameters, np.float32),
        sums=np.zeros(max(256, int(meta.sizes[-1])), np.float32),
        y=np.zeros(support),
        mean=np.zeros(width),
        inverse=np.zeros(width),
        clock=np.array(clock, np.int64),
        moment=np.zeros(2, np.int64),
        unit_rates=np.ones(len(meta.lengths), np.float32),
    )


def new_captures(windows: int, ring: int, width: int) -> Captures:
    return Captures(
        x=np.zeros((windows, ring, width), np.float32),
        y=np.zeros((windows, ring)),
        offsets=np.zeros((windows, ring), np.int64),
        scales=np.zeros((windows, 4, width)),
        y_scale=np.zeros((windows, 2)),
        marks=np.zeros((windows, 3), np.int64),
        counts=np.zeros(2, np.int64),
    )


def new_packed(events: int, slots: int) -> Packed:
    """Room for a batch's decisions: numbers NaN, codes 0."""
    return Packed(
        probabilities=np.zeros((2, events, slots), np.float32),
        numbers=np.full((9, events), np.nan),
        counts=np.zeros((2, events), np.int64),
        codes=np.zeros((4, events), np.uint8),
    )


def meta_of(initialization: Initialization, callbacks: Ints | None = None) -> Meta:
    """``callbacks`` [2] of a network that is not compiled."""
    spec, tensors = initialization.spec, initialization.tensors
    factors = tensors.get("parameter_rates", np.zeros(0, np.float32))
    return Meta(
        theta=initialization.theta(),
        rates=np.ascontiguousarray(tensors["rates"]).copy(),
        parameter_rates=np.ascontiguousarray(factors).copy(),
        lengths=np.array([math.prod(shape) for shape in spec.shapes().values()], np.int64),
        sizes=np.array(spec.sizes, np.int64),
        callbacks=np.zeros(2, np.int64) if callbacks is None else callbacks,
        version=initialization.version,
    )
