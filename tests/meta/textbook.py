"""The rules as the textbook has them: one task at a time, ``torch.autograd``, ``nn.functional``.

``lengths`` holds, for each inner step, how far each tensor that moves goes along its gradient: a
number, or one for each of its numbers. It shares no formula with the package.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from streammaml.meta.episodes import Episodes
from streammaml.meta.losses import Loss
from streammaml.meta.networks import Parameters
from tests.meta.build import part

Forward = Callable[[Parameters, Tensor], Tensor]
Task = tuple[Tensor, Tensor, Tensor]


def mlp(parameters: Parameters, x: Tensor) -> Tensor:
    layers = len(parameters) // 2
    for i in range(layers):
        x = functional.linear(x, parameters[f"{i}.weight"].t(), parameters[f"{i}.bias"])
        x = functional.relu(x) if i < layers - 1 else x
    return x


def task_loss(outputs: Tensor, y: Tensor, weights: Tensor, kind: Loss = Loss.DEFAULT) -> Tensor:
    if kind is Loss.MSE:
        each = functional.mse_loss(outputs[:, 0], y, reduction="none")
    elif kind is Loss.HINGE:
        signs = 2 * functional.one_hot(y, outputs.shape[1]) - 1
        each = functional.relu(1 - signs * outputs).sum(1)
    elif y.is_floating_point():
        each = functional.smooth_l1_loss(outputs[:, 0], y, reduction="none")
    else:
        each = functional.cross_entropy(outputs, y, reduction="none")
    return (each * weights).sum() / weights.sum()


def adapted(
    forward: Forward,
    parameters: Parameters,
    lengths: list[Parameters],
    task: Task,
    *,
    clip: float = 5.0,
    kind: Loss = Loss.DEFAULT,
    second_order: bool = True,
) -> Parameters:
    x, y, weights = task
    for step in lengths:
        inner = task_loss(forward(parameters, x), y, weights, kind)
        moving = [parameters[name] for name in step]
        gradients = torch.autograd.grad(inner, moving, create_graph=second_order)
        norm = torch.sqrt(sum((g.pow(2).sum() for g in gradients), torch.zeros(())))
        shrink = clip / norm if norm > clip else torch.ones(())
        moved = {
            name: parameters[name] - length * shrink * gradient
            for (name, length), gradient in zip(step.items(), gradients, strict=True)
        }
        parameters = {**parameters, **moved}
    return parameters


def meta_loss(
    forward: Forward,
    parameters: Parameters,
    lengths: list[Parameters],
    episodes: Episodes,
    *,
    clip: float = 5.0,
    kind: Loss = Loss.DEFAULT,
    second_order: bool = True,
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    tasks = len(episodes.support.inputs)
    for t in range(tasks):
        fast = adapted(
            forward,
            parameters,
            lengths,
            part(episodes.support, t),
            clip=clip,
            kind=kind,
            second_order=second_order,
        )
        x, y, weights = part(episodes.query, t)
        total = total + task_loss(forward(fast, x), y, weights, kind)
        total = total + 0.3 * task_loss(forward(parameters, x), y, weights, kind)
    return total / tasks
