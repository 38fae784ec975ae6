"""Sinusoid regression as the papers have it: y = A sin(ωx + ψ), K points, mean squared error.

A ~ U[.1, 5], ω ~ U[.8, 1.2], ψ ~ U[0, π], x ~ U[−5, 5], no noise. Every training task is fresh, 16
in a meta-batch with K support and 10 query points; a test task is asked for 100 evenly spaced ones.

References:
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017. Li, Zhou, Chen, Li, "Meta-SGD",
    2017. Antoniou, Edwards, Storkey, "How to train your MAML", 2018. Bertinetto, Henriques, Torr,
    Vedaldi, "Meta-learning with differentiable closed-form solvers" (R2D2), 2019.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streammaml.events import Floats, Task
from streammaml.initialization import Initialization, Spec, draw
from streammaml.meta.episodes import Episodes
from streammaml.meta.feature_nets import ridge
from streammaml.meta.losses import Examples, Loss, Objective
from streammaml.meta.networks import MLP, Parameters, split
from streammaml.meta.optimizer import advance, begin
from streammaml.meta.outer_loop import OuterSettings, Rule, refine, task_losses
from tests.benchmarks.paper_scores import Score, cosine, score_of

META_BATCH = 16
QUERY = 10
TEST_QUERY = 100
TEST_CHUNK = 500
LAST_SCALE = 0.3
"""Of the last layer's weights in ``draw``; the papers have none."""
SETTINGS = OuterSettings(
    loss=Loss.MSE,
    learning_rate=1e-3,
    cosine=True,
    inner_clip=math.inf,
    outer_clip=10.0,
    init_weight=0.0,
    positive_rates=False,
)
TWO, THREE = (40, 40), (40, 40, 40)
ITERATIONS = {TWO: 10_000, THREE: 20_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What one row trains."""

    shots: int
    rule: Rule | None
    """None: a ridge head on the last hidden layer."""
    hidden: tuple[int, ...] = TWO
    steps: int = 1
    rate: float = 0.02
    learn_rates: bool = True


def run(method: Method, seed: int, tasks: int, iterations: int | None = None) -> Score:
    """Train from ``seed`` and judge on ``tasks`` fresh tasks."""
    generator, started = np.random.default_rng(seed), time.monotonic()
    count = ITERATIONS[method.hidden] if iterations is None else iterations
    losses_of = trained(method, first_of(method, seed), generator, count)
    train_s = time.monotonic() - started
    sizes = [min(TEST_CHUNK, tasks - done) for done in range(0, tasks, TEST_CHUNK)]
    judged = [losses_of(sample(generator, size, method.shots, test=True)) for size in sizes]
    return score_of(torch.cat(judged), count, train_s)


def trained(
    method: Method, first: Initialization, generator: np.random.Generator, iterations: int
) -> Callable[[Episodes], Tensor]:
    """What gives the squared error [T] of the trained method on each episode."""
    if method.rule is None:
        vector = train_ridge(first, method.shots, generator, iterations)
        return lambda episodes: ridge_losses(vector, first.spec, episodes)
    settings = replace(SETTINGS, rule=method.rule, learn_rates=method.learn_rates)
    found, _ = refine(
        first, lambda: sample(generator, META_BATCH, method.shots), iterations, settings
    )
    return lambda episodes: task_losses(found, episodes, math.inf, Loss.MSE).adapted


def first_of(method: Method, seed: int) -> Initialization:
    """He-normal weights in every layer, biases 0."""
    spec = Spec(
        task=Task.REGRESSION, sizes=(1, *method.hidden, 1), steps=method.steps, schema="sinusoid"
    )
    drawn = draw(spec, seed, rate=method.rate)
    last = f"{spec.layers - 1}.weight"
    return replace(drawn, tensors={**drawn.tensors, last: drawn.tensors[last] / LAST_SCALE})


def sample(
    generator: np.random.Generator, tasks: int, shots: int, *, test: bool = False
) -> Episodes:
    amplitude, frequency, phase = generator.uniform(
        [[0.1], [0.8], [0.0]], [[5.0], [1.2], [math.pi]], size=(3, tasks)
    )
    queries = TEST_QUERY if test else QUERY
    x = generator.uniform(-5, 5, size=(tasks, shots + queries))
    if test:
        x[:, shots:] = np.linspace(-5, 5, TEST_QUERY)
    y = amplitude[:, None] * np.sin(frequency[:, None] * x + phase[:, None])
    return Episodes(_examples(x[:, :shots], y[:, :shots]), _examples(x[:, shots:], y[:, shots:]))


def train_ridge(
    first: Initialization, shots: int, generator: np.random.Generator, iterations: int
) -> Tensor:
    """Weights and log λ, from λ = 1, so that the head solved on a support set predicts well."""
    descent = begin(torch.cat([torch.from_numpy(first.theta()), torch.zeros(1)]))
    for done in range(iterations):
        vector = descent.vector.detach().requires_grad_()
        total = ridge_losses(vector, first.spec, sample(generator, META_BATCH, shots)).mean()
        (gradient,) = torch.autograd.grad(total, vector)
        descent = advance(
            descent,
            gradient,
            float(total.detach()),
            learning_rate=cosine(SETTINGS.learning_rate, done / iterations),
            clip_norm=SETTINGS.outer_clip,
        )
    return descent.vector


def ridge_losses(vector: Tensor, spec: Spec, episodes: Episodes) -> Tensor:
    """Squared error [T] of a ridge head whose prior is the network's own last layer."""
    parameters, log_ridge = split(vector, spec), vector[-1]
    last = spec.layers - 1
    head = torch.cat([parameters[f"{last}.weight"], parameters[f"{last}.bias"].unsqueeze(0)])
    support, query = episodes
    heads = ridge(
        {"head": head, "log_ridge": log_ridge},
        _features(parameters, support.inputs),
        _features(parameters, query.inputs),
        support,
    )
    return Objective(query, Loss.MSE).loss(heads.adapted)


def _features(parameters: Parameters, inputs: Tensor) -> Tensor:
    """What enters the last layer, and 1."""
    top = MLP.split(parameters, inputs)
    if top is None:
        raise ValueError("a network of one layer has no features")
    return functional.pad(top[1], (0, 1), value=1.0)


def _examples(x: Floats, y: Floats) -> Examples:
    inputs = torch.from_numpy(x.astype(np.float32)).unsqueeze(-1)
    return Examples(inputs, torch.from_numpy(y.astype(np.float32)), torch.ones(*x.shape))
