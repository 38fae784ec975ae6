"""The outer loop: move the initialization to where the inner loop adapts best.

    loss = mean over tasks of the query loss after adaptation + .3 × the same at θ

Rule: :func:`start` and :func:`outer_step` are pure, a state is never changed. A loss or a gradient
that is not finite is a value: the step is skipped and counted, nothing moves. How many threads
torch uses is the caller's choice; one is fastest at the default size.

References:
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017. Li, Zhou, Chen, Li, "Meta-SGD",
    2017. Antoniou, Edwards, Storkey, "How to train your MAML", 2018. Nichol, Achiam, Schulman,
    "On first-order meta-learning algorithms" (Reptile), 2018. Raghu, Raghu, Bengio, Vinyals,
    "Rapid learning or feature reuse?" (ANIL), 2019.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from streammaml.initialization import Initialization
from streammaml.meta.episodes import Episodes
from streammaml.meta.inner_loop import InnerLoop, adapt
from streammaml.meta.losses import Loss, Objective
from streammaml.meta.modules import network_of
from streammaml.meta.networks import MLP, Network, Parameters
from streammaml.meta.optimizer import advance
from streammaml.meta.outer_state import (
    Meta,
    OuterSettings,
    OuterState,
    Rule,
    finish,
    meta_of,
    pack,
    start,
    unpack,
)

__all__ = [
    "Losses",
    "Meta",
    "OuterSettings",
    "OuterState",
    "Report",
    "Rule",
    "evaluate",
    "finish",
    "meta_loss",
    "meta_of",
    "outer_step",
    "pack",
    "refine",
    "scheduled",
    "start",
    "task_losses",
    "unpack",
]

COSINE_END = 0.01
"""The learning rate that a cosine ends at, as a share of the one it starts from."""
TAIL = 100
"""Losses of the latest steps that a report keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a run of outer steps."""

    taken: int
    skipped: int
    losses: tuple[float, ...]
    """Training loss of the latest steps that were taken, at most 100, oldest first."""
    second_order: bool
    """Not where the rule asks for it but the loss has no curvature."""


class Losses(NamedTuple):
    """Mean query loss of each task [T], by θ as it is and after adaptation."""

    init: Tensor
    adapted: Tensor


def meta_loss(
    meta: Meta, episodes: Episodes, settings: OuterSettings, network: Network = MLP
) -> Tensor:
    """Loss [] of an unstacked ``meta``, differentiable in it.

    Its gradient is the rule's outer gradient: for Reptile θ − φ, whatever the loss.
    """
    loop = InnerLoop(
        clip_norm=settings.inner_clip,
        loss=settings.loss,
        network=network,
        first_order=not settings.second_order,
    )
    if settings.rule is Rule.REPTILE:
        return _towards_fast_weights(meta, episodes, loop, settings)
    init, adapted = _losses(meta, episodes, loop, differentiable=True)
    return adapted.mean() + settings.init_weight * init.mean()


def outer_step(
    state: OuterState, episodes: Episodes, settings: OuterSettings, learning_rate: float
) -> tuple[OuterState, float]:
    """One Adam step on one meta-batch; the new state, and the loss before the step."""
    vector = state.vector.detach().requires_grad_()
    with torch.enable_grad():
        total = meta_loss(meta_of(state, vector), episodes, settings, network_of(state.spec))
    (gradient,) = torch.autograd.grad(total, vector)
    value = float(total.detach())
    descent = advance(
        state.descent,
        gradient,
        value,
        learning_rate=learning_rate,
        clip_norm=settings.outer_clip,
    )
    return replace(state, descent=descent), value


def refine(
    initialization: Initialization,
    sample_episodes: Callable[[], Episodes | None],
    steps: int,
    settings: OuterSettings | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Initialization, Report]:
    """Train for up to ``steps`` outer steps, each on its own meta-batch.

    Args:
        sample_episodes: draws a meta-batch; None ends the run early.
        on_progress: called after each step with the steps done, ``steps``, and the loss.

    Returns:
        The next version, or the given initialization itself if no step was taken; and a report.
    """
    settings = settings or OuterSettings()
    state, losses = start(initialization, settings), deque[float](maxlen=TAIL)
    for done in range(steps):
        episodes = sample_episodes()
        if episodes is None:
            break
        before = state
        state, value = outer_step(before, episodes, settings, scheduled(settings, done, steps))
        if state.taken > before.taken:
            losses.append(value)
        if on_progress is not None:
            on_progress(done + 1, steps, value)
    report = Report(
        taken=state.taken,
        skipped=state.skipped,
        losses=tuple(losses),
        second_order=settings.second_order,
    )
    return (finish(state, initialization) if state.taken else initialization), report


@torch.no_grad()
def task_losses(
    initialization: Initialization,
    episodes: Episodes,
    clip_norm: float = 5.0,
    kind: Loss = Loss.DEFAULT,
) -> Losses:
    """Query loss of each episode, before and after adaptation; NaN where it diverged."""
    still = OuterSettings(learn_rates=False)
    meta = meta_of(start(initialization, still))
    network = network_of(initialization.spec)
    loop = InnerLoop(clip_norm=clip_norm, loss=kind, network=network)
    return _losses(meta, episodes, loop, differentiable=False)


def evaluate(
    initialization: Initialization,
    episodes: Episodes,
    clip_norm: float = 5.0,
    kind: Loss = Loss.DEFAULT,
) -> tuple[float, float]:
    """Mean query loss over the episodes by θ as it is, and after adaptation."""
    losses = task_losses(initialization, episodes, clip_norm, kind)
    return float(losses.init.mean()), float(losses.adapted.mean())


def _losses(meta: Meta, episodes: Episodes, loop: InnerLoop, differentiable: bool) -> Losses:
    """At θ and after adaptation, by the last layer alone where no other moves."""
    meta, episodes, loop = _without_body(meta, episodes, loop)
    fast = adapt(
        meta.parameters,
        meta.rates,
        episodes.support,
        loop,
        factors=meta.factors,
        differentiable=differentiable,
    )
    return Losses(_query_loss(meta.parameters, episodes, loop), _query_loss(fast, episodes, loop))


def _without_body(
    meta: Meta, episodes: Episodes, loop: InnerLoop
) -> tuple[Meta, Episodes, InnerLoop]:
    """Where only the last layer moves, it alone on what enters it: the body runs but once."""
    names = list(meta.parameters)
    last = loop.network.last(names)
    moved = (meta.rates.detach() != 0).any(0).tolist()
    if len(last) == len(names) or any(
        moves and name not in last for name, moves in zip(names, moved, strict=True)
    ):
        return meta, episodes, loop
    support, query = episodes
    size = support.inputs.shape[1]
    top = loop.network.split(meta.parameters, torch.cat([support.inputs, query.inputs], 1))
    if top is None:
        return meta, episodes, loop
    network, entered = top
    columns = [j for j, name in enumerate(names) if name in last]
    own = Meta(
        {name: meta.parameters[name] for name in last},
        meta.rates[:, columns],
        meta.factors and {name: meta.factors[name] for name in last},
    )
    inner = Episodes(
        support._replace(inputs=entered[:, :size]), query._replace(inputs=entered[:, size:])
    )
    return own, inner, replace(loop, network=network)


def _query_loss(parameters: Parameters, episodes: Episodes, loop: InnerLoop) -> Tensor:
    """Loss [T] on the query sets; unstacked parameters are one network for all tasks."""
    outputs = loop.network.apply(parameters, episodes.query.inputs)
    return Objective(episodes.query, loop.loss).loss(outputs)


def _towards_fast_weights(
    meta: Meta, episodes: Episodes, loop: InnerLoop, settings: OuterSettings
) -> Tensor:
    """A loss with the value of the other rules' and the gradient θ − φ, the mean over tasks."""
    detached = Meta({n: p.detach() for n, p in meta.parameters.items()}, *meta[1:])
    fast = adapt(detached.parameters, meta.rates, episodes.support, loop, factors=meta.factors)
    with torch.no_grad():
        adapted = _query_loss(fast, episodes, loop)
        init = _query_loss(detached.parameters, episodes, loop)
        value = adapted.mean() + settings.init_weight * init.mean()
    pulls = []
    for name, p in meta.parameters.items():
        means = fast[name].mean(0) if fast[name].dim() > p.dim() else p.detach()
        pulls.append(((p.detach() - means) * p).sum())
    pull = torch.stack(pulls).sum()
    return value + (pull - pull.detach())


def scheduled(settings: OuterSettings, done: int, steps: int) -> float:
    """The learning rate of the step after ``done`` of ``steps``."""
    if not settings.cosine:
        return settings.learning_rate
    share = 0.5 * (1 + math.cos(math.pi * done / steps))
    return settings.learning_rate * (COSINE_END + (1 - COSINE_END) * share)
