"""The outer loop: move the initialization to where the inner loop adapts best.

    loss = mean over tasks of the query loss after adaptation + .3 × the same at θ

The inner rates are learned with θ and stay positive: α = softplus(raw). One flat vector holds θ and
the raw rates, so that Adam and the norm are a handful of operations whatever the depth.

Rule: :func:`start` and :func:`outer_step` are pure, a state is never changed. A loss or a gradient
that is not finite is a value: the step is skipped and counted, nothing moves. How many threads
torch uses is the caller's choice; one is fastest at the default size.

References:
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017. Antoniou, Edwards, Storkey,
    "How to train your MAML", 2018. Kingma, Ba, "Adam", 2015.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from streammaml.initialization import Initialization, Spec
from streammaml.meta import networks
from streammaml.meta.episodes import Episodes
from streammaml.meta.inner_loop import adapt
from streammaml.meta.losses import loss
from streammaml.meta.networks import Parameters

BETAS = (0.9, 0.999)
EPSILON = 1e-8
COSINE_END = 0.01
"""The learning rate that a cosine ends at, as a share of the one it starts from."""
LEAST_RATE = 1e-6
TAIL = 100
"""Losses of the latest steps that a report keeps."""


class Rule(StrEnum):
    """How the outer gradient passes through the inner loop."""

    FOMAML = "fomaml"
    MAML = "maml"


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSettings:
    rule: Rule = Rule.FOMAML
    learning_rate: float = 2e-3
    cosine: bool = False
    """Let the learning rate fall along half a cosine over the run: offline pre-training."""
    inner_clip: float = 5.0
    outer_clip: float = 5.0
    init_weight: float = 0.3
    """Weight of the query loss at θ, before adaptation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterState:
    """What one outer step hands to the next; R = steps × 2L raw rates."""

    spec: Spec
    vector: Tensor  # [P + R], θ, then the raw rates
    mean: Tensor  # [P + R], Adam's first moment
    square: Tensor  # [P + R], Adam's second moment
    taken: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a run of outer steps."""

    taken: int
    skipped: int
    losses: tuple[float, ...]
    """Training loss of the latest steps that were taken, at most 100, oldest first."""


class Losses(NamedTuple):
    """Mean query loss of each task [T], by θ as it is and after adaptation."""

    init: Tensor
    adapted: Tensor


def meta_loss(
    parameters: Mapping[str, Tensor], rates: Tensor, episodes: Episodes, settings: OuterSettings
) -> Tensor:
    """Loss [] of unstacked ``parameters`` and ``rates`` [steps, 2L], differentiable in both."""
    fast = adapt(
        parameters,
        rates,
        episodes.support,
        clip_norm=settings.inner_clip,
        first_order=settings.rule is Rule.FOMAML,
        differentiable=True,
    )
    adapted, init = _query_loss(fast, episodes), _init_loss(parameters, episodes)
    return adapted.mean() + settings.init_weight * init.mean()


def start(initialization: Initialization) -> OuterState:
    """The state before the first step; its rates are those of the initialization, from 1e-6 up."""
    theta = torch.from_numpy(initialization.theta())
    rates = torch.tensor(initialization.tensors["rates"], dtype=torch.float64)
    rates = rates.flatten().clamp_min(LEAST_RATE)
    # softplus⁻¹(r) in a form that neither overflows nor loses small rates.
    raw = rates + torch.log(-torch.expm1(-rates))
    vector = torch.cat([theta, raw.float()])
    zeros = torch.zeros_like(vector)
    return OuterState(spec=initialization.spec, vector=vector, mean=zeros, square=zeros)


def outer_step(
    state: OuterState, episodes: Episodes, settings: OuterSettings, learning_rate: float
) -> tuple[OuterState, float]:
    """One Adam step on one meta-batch; the new state, and the loss before the step."""
    vector = state.vector.detach().requires_grad_()
    with torch.enable_grad():
        parameters, rates = _unpack(vector, state.spec)
        total = meta_loss(parameters, rates, episodes, settings)
    (gradient,) = torch.autograd.grad(total, vector)
    norm = float(torch.linalg.vector_norm(gradient))
    value = float(total.detach())
    if not (math.isfinite(norm) and math.isfinite(value)):
        return replace(state, skipped=state.skipped + 1), value
    gradient = gradient * min(1.0, settings.outer_clip / max(norm, EPSILON))
    return _adam(state, gradient, learning_rate), value


def finish(state: OuterState, parent: Initialization) -> Initialization:
    """The next version after ``parent``; raises InitializationError if it is not finite."""
    parameters, rates = _unpack(state.vector, state.spec)
    tensors = {n: t.detach().numpy().copy() for n, t in {**parameters, "rates": rates}.items()}
    return replace(parent, tensors=tensors, version=parent.version + 1, parent=parent.version)


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
    state, losses = start(initialization), deque[float](maxlen=TAIL)
    for done in range(steps):
        episodes = sample_episodes()
        if episodes is None:
            break
        before = state
        state, value = outer_step(before, episodes, settings, _scheduled(settings, done, steps))
        if state.taken > before.taken:
            losses.append(value)
        if on_progress is not None:
            on_progress(done + 1, steps, value)
    report = Report(taken=state.taken, skipped=state.skipped, losses=tuple(losses))
    return (finish(state, initialization) if state.taken else initialization), report


@torch.no_grad()
def task_losses(
    initialization: Initialization, episodes: Episodes, clip_norm: float = 5.0
) -> Losses:
    """Query loss of each episode, before and after adaptation; NaN where it diverged."""
    parameters = networks.split(torch.from_numpy(initialization.theta()), initialization.spec)
    rates = torch.tensor(initialization.tensors["rates"])
    fast = adapt(parameters, rates, episodes.support, clip_norm=clip_norm)
    return Losses(_init_loss(parameters, episodes), _query_loss(fast, episodes))


def evaluate(
    initialization: Initialization, episodes: Episodes, clip_norm: float = 5.0
) -> tuple[float, float]:
    """Mean query loss over the episodes by θ as it is, and after adaptation."""
    losses = task_losses(initialization, episodes, clip_norm)
    return float(losses.init.mean()), float(losses.adapted.mean())


def _query_loss(fast: Parameters, episodes: Episodes) -> Tensor:
    return loss(networks.apply(fast, episodes.query.inputs), episodes.query)


def _init_loss(parameters: Mapping[str, Tensor], episodes: Episodes) -> Tensor:
    """Query loss [T] at θ: one network for all tasks, so they are rows of one task."""
    inputs = episodes.query.inputs
    outputs = networks.apply(networks.stack(parameters, 1), inputs.flatten(0, 1).unsqueeze(0))
    return loss(outputs.view(*inputs.shape[:2], -1), episodes.query)


def _unpack(vector: Tensor, spec: Spec) -> tuple[Parameters, Tensor]:
    """Parameters and positive rates [steps, 2L] of a state's vector."""
    raw = vector[-spec.steps * 2 * spec.layers :]
    return networks.split(vector, spec), functional.softplus(raw).view(spec.steps, -1)


def _adam(state: OuterState, gradient: Tensor, learning_rate: float) -> OuterState:
    # By hand: torch.optim imports the compiler, 1.6 s that a short run does not have.
    taken = state.taken + 1
    mean = state.mean.lerp(gradient, 1 - BETAS[0])
    square = (BETAS[1] * state.square).addcmul_(gradient, gradient, value=1 - BETAS[1])
    length = learning_rate / (1 - BETAS[0] ** taken)
    scale = (square / (1 - BETAS[1] ** taken)).sqrt_().add_(EPSILON)
    vector = state.vector.addcdiv(mean, scale, value=-length)
    return replace(state, vector=vector, mean=mean, square=square, taken=taken)


def _scheduled(settings: OuterSettings, done: int, steps: int) -> float:
    if not settings.cosine:
        return settings.learning_rate
    share = 0.5 * (1 + math.cos(math.pi * done / steps))
    return settings.learning_rate * (COSINE_END + (1 - COSINE_END) * share)
