"""Whether a rule can train a module of the user's own, found out before a run depends on it."""

from __future__ import annotations

import math

import torch

from streammaml.errors import ConfigError
from streammaml.events import QUERY, Task
from streammaml.initialization import Initialization, Spec
from streammaml.meta.episodes import Episodes
from streammaml.meta.losses import Examples
from streammaml.meta.modules import ModuleNetwork, network_of
from streammaml.meta.outer_loop import OuterSettings, Rule, outer_step, start, task_losses

TASKS = 2
WHY_CHARACTERS = 300


def try_out(initialization: Initialization, rule: Rule, support: int) -> bool:
    """Whether the network runs all tasks of a step at once, or one by one, which takes longer.

    Takes an outer step on made-up episodes with ``support`` examples each; ConfigError, with the
    rules that can, of a module that ``rule`` cannot train.
    """
    spec = initialization.spec
    network = network_of(spec)
    if not isinstance(network, ModuleNetwork):
        return True
    astray = network.astray(_examples(spec, support).inputs[0])
    if astray:
        raise ConfigError(
            f"learner.network: {spec.network} cannot be trained: forward has {', '.join(astray)} "
            "from a list or a name of its own; let it read the module's attributes"
        )
    why = _objection(initialization, rule, support, network)
    if why:
        others = [r for r in Rule if not _objection(initialization, r, support, network)]
        if others:
            cure = f"set outer.rule to {' or '.join(r.value for r in others)}"
        else:
            cure = "torch must know a derivative of all that forward does"
        raise ConfigError(
            f"learner.network: the rule {rule.value} cannot train {spec.network}: {cure}; {why}"
        )
    return network.batches


def _objection(
    initialization: Initialization, rule: Rule, support: int, network: ModuleNetwork
) -> str:
    """Why it cannot train by this rule; empty where it can, if only task by task."""
    settings, spec = OuterSettings(rule=rule), initialization.spec
    episodes = Episodes(_examples(spec, support), _examples(spec, QUERY))
    before, why = network.batches, ""
    for batches in dict.fromkeys((before, False)):
        network.batches = batches
        try:
            outer_step(start(initialization, settings), episodes, settings, 0.0)
            task_losses(initialization, episodes)
        except Exception as error:  # it is the user's code
            first = (str(error).splitlines() or [""])[0]
            why = f"{type(error).__name__}: {first[:WHY_CHARACTERS]}"
        else:
            return ""
    network.batches = before
    return why


def _examples(spec: Spec, size: int) -> Examples:
    shape = TASKS, size, spec.sizes[0]
    inputs = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    targets = torch.arange(TASKS * size).view(TASKS, size) % spec.outputs
    if spec.task is Task.REGRESSION:
        targets = inputs[..., 0]
    return Examples(inputs, targets, torch.ones(TASKS, size))
