"""What the tests of ``meta`` are made of: random tasks, and MAML as the textbook has it.

The textbook knows one task at a time, plain matrix products and ``torch.func.grad``; it shares no
formula with the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional

from streammaml.events import Floats, Task
from streammaml.initialization import Spec
from streammaml.meta.episodes import Episodes, History, history
from streammaml.meta.losses import Examples, Objective
from streammaml.meta.networks import MLP, Parameters

CLASSES, REGRESSION = Task.CLASSIFICATION, Task.REGRESSION


def make_spec(task: Task = CLASSES, sizes: tuple[int, ...] = (4, 8, 6, 3), steps: int = 3) -> Spec:
    outputs = sizes[-1] if task is CLASSES else 1
    return Spec(task=task, sizes=(*sizes[:-1], outputs), steps=steps, schema="tests")


def make_parameters(spec: Spec, seed: int = 0, dtype: torch.dtype = torch.float32) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype) / math.sqrt(shape[0])
        for name, shape in spec.shapes().items()
    }


def make_rates(spec: Spec, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (spec.steps, 2 * spec.layers)
    return 0.05 + 0.3 * torch.rand(shape, generator=generator, dtype=dtype)


def make_examples(
    spec: Spec, seed: int, tasks: int = 5, size: int = 7, dtype: torch.dtype = torch.float32
) -> Examples:
    """Weights differ and about a quarter of them are 0, the first never."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tasks, size, spec.sizes[0], generator=generator, dtype=dtype)
    weights = torch.rand(tasks, size, generator=generator, dtype=dtype)
    weights[:, 1:] *= torch.rand(tasks, size - 1, generator=generator) < 0.75
    if spec.task is CLASSES:
        targets = torch.randint(spec.sizes[-1], (tasks, size), generator=generator)
    else:
        targets = 2 * torch.randn(tasks, size, generator=generator, dtype=dtype)
    return Examples(inputs, targets, weights)


def make_episodes(spec: Spec, seed: int = 2, dtype: torch.dtype = torch.float32) -> Episodes:
    support = make_examples(spec, seed, dtype=dtype)
    return Episodes(support, make_examples(spec, seed + 100, size=4, dtype=dtype))


def gradient_of(stacked: Parameters, examples: Examples) -> Parameters:
    """The package's gradient by all parameters of the built-in network."""
    return MLP.gradient(stacked, examples.inputs, Objective(examples), list(stacked))


def part(examples: Examples, task: int) -> tuple[Tensor, Tensor, Tensor]:
    return examples.inputs[task], examples.targets[task], examples.weights[task]


def textbook_loss(parameters: Parameters, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    hidden = x
    last = len(parameters) // 2 - 1
    for i in range(last + 1):
        hidden = hidden @ parameters[f"{i}.weight"] + parameters[f"{i}.bias"]
        hidden = hidden if i == last else torch.relu(hidden)
    if y.is_floating_point():
        each = functional.smooth_l1_loss(hidden[:, 0], y, reduction="none")
    else:
        each = functional.cross_entropy(hidden, y, reduction="none")
    return (weights * each).sum() / weights.sum()


def textbook_adapt(
    parameters: Parameters,
    rates: Tensor,
    task: tuple[Tensor, Tensor, Tensor],
    clip_norm: float,
) -> Parameters:
    for step in range(len(rates)):
        gradients = grad(textbook_loss)(parameters, *task)
        norm = torch.sqrt(sum((g * g).sum() for g in gradients.values()) + torch.zeros(()))
        shrink = clip_norm / norm if norm > clip_norm else torch.ones(())
        parameters = {
            name: parameters[name] - rates[step, j] * shrink * gradients[name]
            for j, name in enumerate(parameters)
        }
    return parameters


def textbook_meta_loss(
    parameters: Parameters, rates: Tensor, episodes: Episodes, clip_norm: float
) -> Tensor:
    losses = []
    for t in range(len(episodes.support.inputs)):
        query = part(episodes.query, t)
        fast = textbook_adapt(parameters, rates, part(episodes.support, t), clip_norm)
        losses.append(textbook_loss(fast, *query) + 0.3 * textbook_loss(parameters, *query))
    return torch.stack(losses).mean()


def largest_norm(parameters: Parameters, examples: Examples) -> float:
    """Of the tasks' first gradients."""
    norms = []
    for t in range(len(examples.inputs)):
        gradients = grad(textbook_loss)(parameters, *part(examples, t))
        norms.append(math.sqrt(sum(float((g * g).sum()) for g in gradients.values())))
    return max(norms)


def leaves(parameters: Mapping[str, Tensor]) -> Parameters:
    return {name: p.clone().requires_grad_() for name, p in parameters.items()}


def make_history(
    seed: int = 0,
    contexts: int = 6,
    events: int = 400,
    width: int = 3,
    missing: float = 0.1,
    unlabelled: float = 0.2,
) -> tuple[History, dict[str, Floats]]:
    """A regression whose first number and whose label both are the event's place in the stream.

    So an episode tells where it came from. Contexts differ in offset and in spread.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, contexts, events) * 7 - 3
    x = rng.normal(size=(events, width)) * (1 + np.abs(codes[:, None])) + 5 * codes[:, None]
    x[rng.random(x.shape) < missing] = np.nan
    x[:, 0] = np.arange(events)
    y = np.arange(events, dtype=np.float64)
    y[rng.random(events) < unlabelled] = np.nan
    stream = {"contexts": codes, "x": x.astype(np.float32), "y": y}
    return history(codes, stream["x"], y, REGRESSION), stream


def make_family(seed: int, contexts: int, events: int) -> History:
    """Concepts that are directions in one fixed nonlinear feature space (ALGORITHM.md 5.3)."""
    rng = np.random.default_rng(seed)
    first, bias = rng.normal(size=(10, 24)) * 1.8 / math.sqrt(10), rng.normal(size=24) * 0.7
    second = rng.normal(size=(24, 6)) * 2 / math.sqrt(24)
    x = rng.normal(size=(contexts, events, 10)).astype(np.float32)
    features = np.tanh(np.tanh(x @ first + bias) @ second)  # [contexts, events, 6]
    concepts = rng.normal(size=(contexts, 6, 1))
    y = ((features @ concepts)[..., 0] > 0).astype(np.float64)
    codes = np.repeat(np.arange(contexts), events)
    return history(codes, x.reshape(-1, 10), y.ravel(), CLASSES)
