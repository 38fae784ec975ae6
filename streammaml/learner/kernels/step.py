"""One event after another: predict, score, detect, learn, adapt. The only place that orders them.

Rule: the cut of a stream into calls changes no bit. So everything here takes one event to its end
before the next begins, and nothing that decides reads a clock or draws a random number.

Arguments everywhere: ``p``, the partition; ``row`` of the event's context; ``i`` its place in the
batch. ``x`` [B, D] float32, NaN where missing; ``y`` [B] float64, NaN where unlabelled;
``offsets`` [B]; ``times`` [B] in seconds, NaN where unknown.
"""

from __future__ import annotations

import numpy as np

from streammaml.events import Float32s, Floats, Packed
from streammaml.learner.kernels import adapt as inner_loop
from streammaml.learner.kernels import baseline, capture, detector, network, scaler, stopwatch
from streammaml.learner.kernels.bundle import Bundle, Parts, parts_of
from streammaml.learner.kernels.compiler import SETTINGS, entry, inline, jit
from streammaml.learner.kernels.vectors import copy, norm
from streammaml.learner.state import Ints

LOSS_FLOOR = 0.002
ERROR_START = 0.5
HELD_OUT_FROM = 16
NONE, WARMUP, BY_DRIFT, SCHEDULE = 0, 1, 2, 3
ACCEPTED, REJECTED, DIVERGED = 1, 2, 3
BARRIER, CHANGED, WEIGHTS, EXPIRED = 0, 1, 2, 3
APPLIED, OFFSET, HASH = 0, 1, 2
MULTIPLIER = 6364136223846793005


@jit
def reset_fast(p: Parts, row: int) -> None:
    """Fall back to θ."""
    copy(p.meta.theta, p.contexts.fast[row])
    p.contexts.version[row] = p.meta.version
    p.contexts.at_init[row] = 1
    p.contexts.changed[row] = p.stream.counts[1] + 1  # of the event in hand


@jit
def begin(p: Parts, row: int) -> None:
    """Set up a context at its first event: it starts at θ and knows nothing."""
    contexts = p.contexts
    reset_fast(p, row)
    if contexts.baseline.shape[1] > 0:
        copy(p.meta.theta, contexts.baseline[row])
    contexts.labels[row] = 0
    contexts.segment[row] = 0
    contexts.error_scale[row] = ERROR_START
    contexts.x_count[row] = 0.0
    contexts.x_mean[row] = 0.0
    contexts.x_m2[row] = 0.0
    contexts.ledger[row] = 0
    detector.reset(contexts.detector[row])


@inline
def serve(p: Parts, parameters: Float32s, out: Float32s) -> bool:
    """Write the prediction [K] of ``parameters`` for the input in scratch; False if not finite.

    A class's probability, or the value, clipped to the range of the labels seen so far.
    """
    scratch, stream = p.scratch, p.stream
    network.forward(parameters, p.meta, scratch.activations, 1, scratch.pad)
    outputs = scratch.activations[p.meta.sizes.shape[0] - 1, 0]
    if not p.policy.regression:
        return network.softmax(outputs, stream.known, out)
    if not np.isfinite(outputs[0]):
        return False
    value = stream.y_scale[0] + stream.y_scale[1] * outputs[0]
    if stream.counts[0] > 0:
        value = min(max(value, stream.y_range[0]), stream.y_range[1])
    out[0] = np.float32(value)
    return True


@jit
def without_prediction(p: Parts, out: Float32s) -> None:
    """What is served when even θ is not finite: every known class alike, or the label's mean."""
    if p.policy.regression:
        out[0] = np.float32(p.stream.y_scale[0])
        return
    known = p.stream.known
    count = 0
    for k in range(out.shape[0]):
        count += known[k]
    for k in range(out.shape[0]):
        out[k] = np.float32(1.0 / count) if known[k] else np.float32(0.0)


@inline
def arrive(p: Parts, row: int, time: float) -> None:
    """Move the clock; a context that is new, or was not seen for too long, begins.

    The clock is the largest time so far, so that time never runs back.
    """
    contexts, clock = p.contexts, p.stream.clock
    if (time > clock[0] or np.isnan(clock[0])) and not np.isinf(time):
        clock[0] = time
    if contexts.version[row] < 0:
        begin(p, row)
    elif p.policy.ttl_s > 0.0 and contexts.seen[row] + p.policy.ttl_s < clock[0]:
        p.stream.marks[EXPIRED] += 1
        begin(p, row)


@inline
def predict(p: Parts, row: int, x: Float32s, i: int) -> None:
    """Predict event ``i`` by the context's fast weights and by θ; leaves its inputs in scratch."""
    contexts, out, scratch = p.contexts, p.out, p.scratch
    scaler.context_scale(contexts, p.stream, row, scratch.mean, scratch.inverse)
    scaler.inputs(x, p.stream, scratch.mean, scratch.inverse, scratch.activations[0, 0])
    out.versions[i] = contexts.version[row]
    if p.policy.regression:
        out.spread[i] = contexts.error_scale[row] * p.stream.y_scale[1]
    if not serve(p, p.meta.theta, out.initial[i]):
        without_prediction(p, out.initial[i])
    if not serve(p, contexts.fast[row], out.predictions[i]):
        out.nonfinite[i] = 1
        copy(out.initial[i], out.predictions[i])
        reset_fast(p, row)


@inline
def loss_of(p: Parts, prediction: Float32s, y: float) -> float:
    """Log-loss with the probability floored at .002; or |error| in standard deviations of y."""
    if p.policy.regression:
        return float(abs(prediction[0] - y) / p.stream.y_scale[1])
    return float(-np.log(max(np.float64(prediction[int(y)]), LOSS_FLOOR)))


@inline
def score(p: Parts, row: int, y: float, i: int) -> None:
    """Charge the stored predictions of event ``i`` with its label; set the detector's signal."""
    contexts, out = p.contexts, p.out
    assert p.policy.regression or 0 <= int(y) < p.stream.known.shape[0]
    out.loss[i] = loss_of(p, out.predictions[i], y)
    out.loss_init[i] = loss_of(p, out.initial[i], y)
    if contexts.baseline.shape[1] > 0:
        prediction = p.scratch.sums[: out.initial.shape[1]]
        if not serve(p, contexts.baseline[row], prediction):
            copy(out.initial[i], prediction)
        out.loss_baseline[i] = loss_of(p, prediction, y)
    if p.policy.regression:
        error = (out.predictions[i, 0] - y) / p.stream.y_scale[1]
        out.signal[i] = detector.error_signal(contexts.error_scale, row, error)
    else:
        out.signal[i] = detector.class_signal(np.float64(out.predictions[i, int(y)]))


@inline
def scaled_target(p: Parts, y: float) -> float:
    return (y - p.stream.y_scale[0]) / p.stream.y_scale[1] if p.policy.regression else y


@inline
def remember(p: Parts, row: int, x: Float32s, y: float, offset: int) -> None:
    """Add an example to the context's ring."""
    contexts = p.contexts
    slot = contexts.labels[row] % contexts.support_y.shape[1]
    copy(x, contexts.support_x[row, slot])
    contexts.support_y[row, slot] = y
    if contexts.support_offsets.shape[1] > 0:
        contexts.support_offsets[row, slot] = offset
    contexts.labels[row] += 1
    contexts.segment[row] += 1


@jit
def load_support(p: Parts, row: int, size: int) -> None:
    """Put the newest ``size`` examples, oldest first, into scratch, scaled by today's scalers."""
    contexts, scratch = p.contexts, p.scratch
    ring = contexts.support_y.shape[1]
    for s in range(size):
        slot = (contexts.labels[row] - size + s) % ring
        x = contexts.support_x[row, slot]
        scaler.inputs(x, p.stream, scratch.mean, scratch.inverse, scratch.activations[0, s])
        scratch.y[s] = scaled_target(p, contexts.support_y[row, slot])


@inline
def due(p: Parts, row: int, level: int) -> int:
    """Which trigger, if any, asks for an adaptation now."""
    if level == detector.DRIFT:
        return BY_DRIFT
    policy, segment = p.policy, p.contexts.segment[row]
    full = policy.warmup.shape[0] - 1
    if segment <= full:
        return WARMUP if policy.warmup[segment] else NONE
    if policy.refresh_every > 0 and (segment - full) % policy.refresh_every == 0:
        return SCHEDULE
    return NONE


@jit
def judge(p: Parts, parameters: Float32s, rows: int) -> float:
    """Mean loss of ``parameters`` on the ``rows`` examples in scratch; NaN if not finite."""
    scratch = p.scratch
    network.forward(parameters, p.meta, scratch.activations, rows, scratch.pad)
    outputs = scratch.activations[p.meta.sizes.shape[0] - 1]
    return network.output_losses(
        outputs, scratch.y, p.stream.known, p.policy.regression, rows, scratch.deltas[0]
    )


@jit
def fit(p: Parts, row: int, newest: int, held_out: int, continued: bool) -> float:
    """Adapt the candidate on the newest examples but the last ``held_out``; as ``adapt`` returns.

    From θ; or from the fast weights, at half the rates, where ``continued``.
    """
    candidate = p.scratch.candidate
    copy(p.contexts.fast[row] if continued else p.meta.theta, candidate)
    load_support(p, row, newest)
    return inner_loop.adapt(
        candidate,
        p.meta,
        0.5 if continued else 1.0,
        p.policy.clip,
        p.scratch.y,
        p.stream.known,
        p.policy.regression,
        newest - held_out,
        p.scratch,
    )


@inline
def replace_fast(p: Parts, row: int, candidate: Float32s) -> None:
    """Let a candidate be the fast weights; counts the rows that must be written again."""
    contexts, marks = p.contexts, p.stream.marks
    if contexts.changed[row] <= marks[BARRIER] or contexts.at_init[row] == 1:
        marks[WEIGHTS] += 1
    copy(candidate, contexts.fast[row])
    contexts.at_init[row] = 0
    contexts.changed[row] = p.stream.counts[1] + 1


@jit
def adapt(p: Parts, row: int, trigger: int, i: int) -> None:
    """Adapt a candidate and let it replace the fast weights, or not; write what was decided."""
    contexts, out, scratch = p.contexts, p.out, p.scratch
    newest = min(contexts.segment[row], scratch.y.shape[0])  # S; the ring may be longer
    continued = trigger == SCHEDULE
    judged = min(min(max(newest // 4, 3), 8), newest)
    tested = p.policy.held_out_test and newest >= HELD_OUT_FROM
    out.triggers[i] = trigger
    out.support[i] = newest

    length = fit(p, row, newest, judged if tested else 0, continued)
    load_support(p, row, judged)
    before = judge(p, contexts.fast[row], judged)
    after = judge(p, scratch.candidate, judged)
    out.loss_before[i] = before
    out.loss_after[i] = after
    if tested and after > before:
        out.results[i] = REJECTED
        return
    if tested and np.isfinite(length):
        length = fit(p, row, newest, 0, continued)
    out.gradient_norm[i] = length
    if np.isfinite(length):
        replace_fast(p, row, scratch.candidate)
        if not continued:
            contexts.version[row] = p.meta.version
        out.results[i] = ACCEPTED
    else:
        out.results[i] = DIVERGED
        if not np.isfinite(norm(contexts.fast[row], scratch.sums)):
            reset_fast(p, row)


@jit
def learn(p: Parts, row: int, x: Float32s, y: float, offset: int, level: int, i: int) -> None:
    """Take the label of event ``i`` in: baseline, support set, adaptation, scalers last.

    A class exists from its first label on.
    """
    contexts, stream = p.contexts, p.stream
    p.out.levels[i] = level
    if not p.policy.regression:
        stream.known[int(y)] = True
    if contexts.baseline.shape[1] > 0:
        weights, target = contexts.baseline[row], scaled_target(p, y)
        baseline.learn(weights, target, p.meta, stream, p.policy, p.scratch)
    remember(p, row, x, y, offset)
    if capture.is_due(p, row):
        capture.take(p, row, i)
    if level == detector.DRIFT:
        detector.reset(contexts.detector[row])
        contexts.segment[row] = min(p.policy.after_drift, contexts.labels[row])
    trigger = due(p, row, level)
    if trigger != NONE:
        began = stopwatch.seconds(p.scratch)
        adapt(p, row, trigger, i)
        p.out.seconds[i] = stopwatch.seconds(p.scratch) - began
    stream.counts[0] += 1
    scaler.learn_x(contexts, stream, row, x)
    scaler.refresh_x(stream, stream.counts[0])
    if p.policy.regression:
        scaler.learn_y(stream, y, stream.counts[0])


def _rolled(rolling: int, offset: int) -> int:
    return rolling * MULTIPLIER + offset + 1


def _rolled_in_python(rolling: int, offset: int) -> int:
    """The same where an int64 does not wrap silently."""
    return (int(rolling) * MULTIPLIER + int(offset) + 1 + 2**63) % 2**64 - 2**63


rolled = _rolled_in_python if SETTINGS["DISABLE_JIT"] else inline(_rolled)


@inline
def finish(p: Parts, row: int, offset: int) -> None:
    """Count the event and enter it into the context's ledger."""
    contexts, stream = p.contexts, p.stream
    stream.counts[1] += 1
    if contexts.used[row] <= stream.marks[BARRIER]:
        stream.marks[CHANGED] += 1
    contexts.used[row] = stream.counts[1]
    contexts.seen[row] = stream.clock[0]
    contexts.ledger[row, APPLIED] += 1
    contexts.ledger[row, OFFSET] = offset
    contexts.ledger[row, HASH] = rolled(contexts.ledger[row, HASH], offset)


@jit
def events(
    p: Parts,
    rows: Ints,
    x: Float32s,
    y: Floats,
    offsets: Ints,
    times: Floats,
    first: int,
    last: int,
) -> None:
    for i in range(first, last):
        row = rows[i]
        arrive(p, row, times[i])
        predict(p, row, x[i], i)
        if np.isnan(y[i]):
            scaler.learn_x(p.contexts, p.stream, row, x[i])
        else:
            score(p, row, y[i], i)
            level = detector.update(p.contexts.detector[row], p.out.signal[i], p.policy)
            learn(p, row, x[i], y[i], offsets[i], level, i)
        finish(p, row, offsets[i])


@jit
def to_signal(p: Parts, rows: Ints, x: Float32s, y: Floats, times: Floats, i: int) -> None:
    arrive(p, rows[i], times[i])
    predict(p, rows[i], x[i], i)
    if not np.isnan(y[i]):
        score(p, rows[i], y[i], i)


@jit
def from_level(
    p: Parts, rows: Ints, x: Float32s, y: Floats, offsets: Ints, i: int, level: int
) -> None:
    if np.isnan(y[i]):
        scaler.learn_x(p.contexts, p.stream, rows[i], x[i])
    else:
        learn(p, rows[i], x[i], y[i], offsets[i], level, i)
    finish(p, rows[i], offsets[i])


@entry
def play(
    b: Bundle,
    rows: Ints,
    x: Float32s,
    y: Floats,
    offsets: Ints,
    times: Floats,
    first: int,
    last: int,
    packed: Packed,
) -> None:
    """Play events first … last−1 of a batch with the compiled detector."""
    events(parts_of(b, packed), rows, x, y, offsets, times, first, last)


@entry
def play_to_signal(
    b: Bundle, rows: Ints, x: Float32s, y: Floats, times: Floats, i: int, packed: Packed
) -> None:
    """The first half of ``play`` for one event: up to what a detector in Python is fed."""
    to_signal(parts_of(b, packed), rows, x, y, times, i)


@entry
def play_from_level(
    b: Bundle,
    rows: Ints,
    x: Float32s,
    y: Floats,
    offsets: Ints,
    i: int,
    level: int,
    packed: Packed,
) -> None:
    """The second half, with the detector's answer; the event must be the last one begun."""
    from_level(parts_of(b, packed), rows, x, y, offsets, i, level)
