"""One event after another: predict, score, detect, learn, adapt. The only place that orders them.

Rule: the cut of a stream into calls changes no bit. So everything here takes one event to its end
before the next begins, and nothing reads a clock or draws a random number.

Arguments everywhere: the arrays of ``learner.state``; ``row`` of the event's context; ``i`` its
place in the batch. ``x`` [B, D] float32, NaN if missing; ``y`` [B] float64, NaN if unlabelled.
"""

from __future__ import annotations

import numpy as np

from streammaml.events import Float32s, Floats
from streammaml.learner.kernels import adapt as inner_loop
from streammaml.learner.kernels import baseline, detector, network, scaler
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.state import (
    ContextState,
    Ints,
    Meta,
    Outputs,
    Policy,
    Scratch,
    StreamState,
)

LOSS_FLOOR = 0.002
ERROR_START = 0.5
HELD_OUT_FROM = 16
NONE, WARMUP, BY_DRIFT, SCHEDULE = 0, 1, 2, 3
ACCEPTED, REJECTED, DIVERGED = 1, 2, 3


@jit
def begin(contexts: ContextState, row: int, meta: Meta) -> None:
    """Set up a context at its first event: it starts at θ and knows nothing."""
    contexts.fast[row] = meta.theta
    if contexts.baseline.shape[1] > 0:
        contexts.baseline[row] = meta.theta
    contexts.labels[row] = 0
    contexts.segment[row] = 0
    contexts.error_scale[row] = ERROR_START
    contexts.x_count[row] = 0.0
    contexts.x_mean[row] = 0.0
    contexts.x_m2[row] = 0.0
    contexts.version[row] = meta.version
    detector.reset(contexts.detector[row])


@jit
def serve(
    parameters: Float32s,
    meta: Meta,
    stream: StreamState,
    policy: Policy,
    scratch: Scratch,
    out: Float32s,
) -> bool:
    """Write the prediction [K] of ``parameters`` for the input in scratch; False if not finite.

    A class's probability, or the value, clipped to the range of the labels seen so far.
    """
    network.forward(parameters, meta.sizes, scratch.activations, 1, scratch.pad)
    outputs = scratch.activations[meta.sizes.shape[0] - 1, 0]
    if not policy.regression:
        return network.softmax(outputs, stream.known, out)
    if not np.isfinite(outputs[0]):
        return False
    value = stream.y_scale[0] + stream.y_scale[1] * outputs[0]
    if stream.counts[0] > 0:
        value = min(max(value, stream.y_range[0]), stream.y_range[1])
    out[0] = np.float32(value)
    return True


@jit
def without_prediction(stream: StreamState, policy: Policy, out: Float32s) -> None:
    """What is served when even θ is not finite: every known class alike, or the label's mean."""
    if policy.regression:
        out[0] = np.float32(stream.y_scale[0])
        return
    known = 0
    for k in range(out.shape[0]):
        known += stream.known[k]
    for k in range(out.shape[0]):
        out[k] = np.float32(1.0 / known) if stream.known[k] else np.float32(0.0)


@jit
def predict(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    row: int,
    x: Float32s,
    i: int,
    out: Outputs,
) -> None:
    """Predict event ``i`` by the context's fast weights and by θ; leaves its inputs in scratch."""
    if contexts.version[row] < 0:
        begin(contexts, row, meta)
    scaler.context_scale(contexts, stream, row, scratch.mean, scratch.inverse)
    scaler.inputs(x, stream, scratch.mean, scratch.inverse, scratch.activations[0, 0])
    out.versions[i] = contexts.version[row]
    if policy.regression:
        out.spread[i] = contexts.error_scale[row] * stream.y_scale[1]
    if not serve(meta.theta, meta, stream, policy, scratch, out.initial[i]):
        without_prediction(stream, policy, out.initial[i])
    if not serve(contexts.fast[row], meta, stream, policy, scratch, out.predictions[i]):
        out.nonfinite[i] = 1
        out.predictions[i] = out.initial[i]
        contexts.fast[row] = meta.theta
        contexts.version[row] = meta.version


@jit
def loss_of(prediction: Float32s, y: float, stream: StreamState, policy: Policy) -> float:
    """Log-loss with the probability floored at .002; or |error| in standard deviations of y."""
    if policy.regression:
        return float(abs(prediction[0] - y) / stream.y_scale[1])
    return float(-np.log(max(np.float64(prediction[int(y)]), LOSS_FLOOR)))


@jit
def score(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    row: int,
    y: float,
    i: int,
    out: Outputs,
) -> None:
    """Charge the stored predictions of event ``i`` with its label; set the detector's signal."""
    assert policy.regression or 0 <= int(y) < stream.known.shape[0]
    out.loss[i] = loss_of(out.predictions[i], y, stream, policy)
    out.loss_init[i] = loss_of(out.initial[i], y, stream, policy)
    if contexts.baseline.shape[1] > 0:
        prediction = scratch.lanes[: out.initial.shape[1]]
        if not serve(contexts.baseline[row], meta, stream, policy, scratch, prediction):
            prediction[:] = out.initial[i]
        out.loss_baseline[i] = loss_of(prediction, y, stream, policy)
    if policy.regression:
        error = (out.predictions[i, 0] - y) / stream.y_scale[1]
        out.signal[i] = detector.error_signal(contexts.error_scale, row, error)
    else:
        out.signal[i] = detector.class_signal(np.float64(out.predictions[i, int(y)]))


@jit
def scaled_target(y: float, stream: StreamState, policy: Policy) -> float:
    return (y - stream.y_scale[0]) / stream.y_scale[1] if policy.regression else y


@jit
def remember(contexts: ContextState, row: int, x: Float32s, y: float) -> None:
    """Add an example to the context's support ring."""
    slot = contexts.labels[row] % contexts.support_y.shape[1]
    contexts.support_x[row, slot] = x
    contexts.support_y[row, slot] = y
    contexts.labels[row] += 1
    contexts.segment[row] += 1


@jit
def load_support(
    contexts: ContextState,
    stream: StreamState,
    policy: Policy,
    scratch: Scratch,
    row: int,
    size: int,
) -> None:
    """Put the newest ``size`` examples, oldest first, into scratch, scaled by today's scalers."""
    ring = contexts.support_y.shape[1]
    for s in range(size):
        slot = (contexts.labels[row] - size + s) % ring
        x = contexts.support_x[row, slot]
        scaler.inputs(x, stream, scratch.mean, scratch.inverse, scratch.activations[0, s])
        scratch.y[s] = scaled_target(contexts.support_y[row, slot], stream, policy)


@jit
def due(contexts: ContextState, policy: Policy, row: int, level: int) -> int:
    """Which trigger, if any, asks for an adaptation now."""
    if level == detector.DRIFT:
        return BY_DRIFT
    segment = contexts.segment[row]
    full = policy.warmup.shape[0] - 1
    if segment <= full:
        return WARMUP if policy.warmup[segment] else NONE
    if policy.refresh_every > 0 and (segment - full) % policy.refresh_every == 0:
        return SCHEDULE
    return NONE


@jit
def judge(
    parameters: Float32s,
    meta: Meta,
    stream: StreamState,
    policy: Policy,
    scratch: Scratch,
    rows: int,
) -> float:
    """Mean loss of ``parameters`` on the ``rows`` examples in scratch; NaN if not finite."""
    network.forward(parameters, meta.sizes, scratch.activations, rows, scratch.pad)
    outputs = scratch.activations[meta.sizes.shape[0] - 1]
    return network.output_losses(
        outputs, scratch.y, stream.known, policy.regression, rows, scratch.deltas[0]
    )


@jit
def fit(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    row: int,
    newest: int,
    held_out: int,
    continued: bool,
) -> float:
    """Adapt the candidate on the newest examples but the last ``held_out``; as ``adapt`` returns.

    From θ; or from the fast weights, at half the rates, where ``continued``.
    """
    scratch.candidate[:] = contexts.fast[row] if continued else meta.theta
    load_support(contexts, stream, policy, scratch, row, newest)
    return inner_loop.adapt(
        scratch.candidate,
        meta.sizes,
        meta.rates,
        0.5 if continued else 1.0,
        policy.clip,
        scratch.y,
        stream.known,
        policy.regression,
        newest - held_out,
        scratch,
    )


@jit
def adapt(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    row: int,
    trigger: int,
    i: int,
    out: Outputs,
) -> None:
    """Adapt a candidate and let it replace the fast weights, or not; write what was decided."""
    ring = contexts.support_y.shape[1]
    newest = min(contexts.segment[row], ring)
    continued = trigger == SCHEDULE
    judged = min(min(max(newest // 4, 3), 8), newest)
    tested = policy.held_out_test and newest >= HELD_OUT_FROM
    out.triggers[i] = trigger
    out.support[i] = newest

    length = fit(
        contexts, stream, meta, policy, scratch, row, newest, judged if tested else 0, continued
    )
    load_support(contexts, stream, policy, scratch, row, judged)
    before = judge(contexts.fast[row], meta, stream, policy, scratch, judged)
    after = judge(scratch.candidate, meta, stream, policy, scratch, judged)
    out.loss_before[i] = before
    out.loss_after[i] = after
    if tested and after > before:
        out.results[i] = REJECTED
        return
    if tested and np.isfinite(length):
        length = fit(contexts, stream, meta, policy, scratch, row, newest, 0, continued)
    out.gradient_norm[i] = length
    if np.isfinite(length):
        contexts.fast[row] = scratch.candidate
        if not continued:
            contexts.version[row] = meta.version
        out.results[i] = ACCEPTED
    else:
        out.results[i] = DIVERGED
        if not np.isfinite(inner_loop.norm(contexts.fast[row], scratch.lanes)):
            contexts.fast[row] = meta.theta
            contexts.version[row] = meta.version


@jit
def learn(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    row: int,
    x: Float32s,
    y: float,
    level: int,
    i: int,
    out: Outputs,
) -> None:
    """Take the label of event ``i`` in: baseline, support set, adaptation, scalers last.

    A class exists from its first label on.
    """
    out.levels[i] = level
    if not policy.regression:
        stream.known[int(y)] = True
    if contexts.baseline.shape[1] > 0:
        target = scaled_target(y, stream, policy)
        baseline.learn(contexts.baseline[row], target, meta, stream, policy, scratch)
    remember(contexts, row, x, y)
    if level == detector.DRIFT:
        detector.reset(contexts.detector[row])
        contexts.segment[row] = min(policy.after_drift, contexts.labels[row])
    trigger = due(contexts, policy, row, level)
    if trigger != NONE:
        adapt(contexts, stream, meta, policy, scratch, row, trigger, i, out)
    stream.counts[0] += 1
    scaler.learn_x(contexts, stream, row, x)
    scaler.refresh_x(stream, stream.counts[0])
    if policy.regression:
        scaler.learn_y(stream, y, stream.counts[0])


@jit
def finish(contexts: ContextState, stream: StreamState, row: int) -> None:
    """Count the event."""
    stream.counts[1] += 1
    contexts.used[row] = stream.counts[1]


@jit
def play(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    rows: Ints,
    x: Float32s,
    y: Floats,
    first: int,
    last: int,
    out: Outputs,
) -> None:
    """Play events first … last−1 of a batch with the compiled detector."""
    for i in range(first, last):
        row = rows[i]
        predict(contexts, stream, meta, policy, scratch, row, x[i], i, out)
        if np.isnan(y[i]):
            scaler.learn_x(contexts, stream, row, x[i])
        else:
            score(contexts, stream, meta, policy, scratch, row, y[i], i, out)
            level = detector.update(contexts.detector[row], out.signal[i], policy)
            learn(contexts, stream, meta, policy, scratch, row, x[i], y[i], level, i, out)
        finish(contexts, stream, row)


@jit
def play_to_signal(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    rows: Ints,
    x: Float32s,
    y: Floats,
    i: int,
    out: Outputs,
) -> None:
    """The first half of ``play`` for one event: up to what a detector in Python is fed."""
    predict(contexts, stream, meta, policy, scratch, rows[i], x[i], i, out)
    if not np.isnan(y[i]):
        score(contexts, stream, meta, policy, scratch, rows[i], y[i], i, out)


@jit
def play_from_level(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    rows: Ints,
    x: Float32s,
    y: Floats,
    i: int,
    level: int,
    out: Outputs,
) -> None:
    """The second half, with the detector's answer; the event must be the last one begun."""
    if np.isnan(y[i]):
        scaler.learn_x(contexts, stream, rows[i], x[i])
    else:
        learn(contexts, stream, meta, policy, scratch, rows[i], x[i], y[i], level, i, out)
    finish(contexts, stream, rows[i])
