"""What the outer loop learns, as one flat vector, and how an initialization becomes it and back.

    vector = [θ | learned rates | learned factors]

Rates and Meta-SGD's factors that a rule does not learn stand beside the vector and stay. Learned
ones are positive, softplus of what stands in the vector, unless their sign is set free.

Rule: pure; a state is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from streammaml.errors import InitializationError
from streammaml.events import Float32s
from streammaml.initialization import Initialization, Spec
from streammaml.meta.losses import Loss
from streammaml.meta.modules import network_of
from streammaml.meta.networks import Parameters, split
from streammaml.meta.optimizer import Descent, begin, packed, unpacked

LEAST_RATE = 1e-6


class Rule(StrEnum):
    """What is learned, and how the outer gradient passes through the inner loop."""

    FOMAML = "fomaml"
    """Rates of each layer and step; first order."""
    MAML = "maml"
    """The same; second order."""
    METASGD = "metasgd"
    """A rate of each parameter, the same in every step; second order."""
    ANIL = "anil"
    """Inner steps on the last layer only, whose rates are learned; second order."""
    REPTILE = "reptile"
    """Towards the fast weights; the rates stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSettings:
    rule: Rule = Rule.FOMAML
    loss: Loss = Loss.DEFAULT
    learning_rate: float = 2e-3
    cosine: bool = False
    """Let the learning rate fall along half a cosine over the run: offline pre-training."""
    inner_clip: float = 5.0
    """inf: no clip."""
    outer_clip: float = 5.0
    init_weight: float = 0.3
    """Weight of the query loss at θ, before adaptation."""
    learn_rates: bool = True
    positive_rates: bool = True
    """False: learned rates may turn negative, as in the papers."""

    @property
    def second_order(self) -> bool:
        """Whether gradients of gradients are taken. A loss without curvature has none to give."""
        return self.rule in (Rule.MAML, Rule.METASGD, Rule.ANIL) and self.loss.curved


class Meta(NamedTuple):
    """What an inner loop starts from."""

    parameters: Parameters
    rates: Tensor  # [steps, J]
    factors: Parameters | None
    """Of each parameter, shaped as they are; None: all 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterState:
    """What one outer step hands to the next."""

    spec: Spec
    descent: Descent
    rates: Tensor  # [steps, J], those that are not learned
    factors: Tensor | None  # [P], where they are not learned
    columns: tuple[int, ...]
    """Of the tensors whose rates are learned."""
    learns_factors: bool
    positive: bool

    @property
    def vector(self) -> Tensor:
        return self.descent.vector

    @property
    def taken(self) -> int:
        return self.descent.taken

    @property
    def skipped(self) -> int:
        return self.descent.skipped


def start(initialization: Initialization, settings: OuterSettings | None = None) -> OuterState:
    """The state before the first step.

    Its rates are those of the initialization, learned positive ones from 1e-6 up. Meta-SGD takes
    the mean over the steps into its factors, and fixes the rates at 1. The other rules keep the
    factors of an initialization that has some.
    """
    settings = settings or OuterSettings()
    spec = initialization.spec
    rates = torch.tensor(initialization.tensors["rates"])
    given = initialization.tensors.get("parameter_rates")
    factors = None if given is None else torch.tensor(given)
    names = list(spec.shapes())
    columns = list(range(len(names))) if settings.learn_rates else []
    if settings.rule is Rule.ANIL:
        last = network_of(spec).last(names)
        stays = [j for j, name in enumerate(names) if name not in last]
        rates[:, stays] = 0
        columns = [j for j in columns if j not in stays]
    elif settings.rule is Rule.METASGD:
        sizes = torch.tensor([math.prod(shape) for shape in spec.shapes().values()])
        spread = torch.repeat_interleave(rates.mean(0), sizes)
        factors = spread if factors is None else spread * factors
        rates, columns = torch.ones_like(rates), []
    elif settings.rule is Rule.REPTILE:
        columns = []
    learns_factors = settings.rule is Rule.METASGD and settings.learn_rates
    parts = [torch.tensor(initialization.theta())]
    if columns:
        parts.append(_raw(rates[:, columns].flatten(), settings.positive_rates))
    if learns_factors and factors is not None:
        parts.append(_raw(factors, settings.positive_rates))
    return OuterState(
        spec=spec,
        descent=begin(torch.cat(parts)),
        rates=rates,
        factors=None if learns_factors else factors,
        columns=tuple(columns),
        learns_factors=learns_factors,
        positive=settings.positive_rates,
    )


def meta_of(state: OuterState, vector: Tensor | None = None) -> Meta:
    """Read the state's vector, or ``vector`` in its place, differentiable."""
    vector = state.vector if vector is None else vector
    spec = state.spec
    theta = sum(math.prod(shape) for shape in spec.shapes().values())
    learned = functional.softplus(vector[theta:]) if state.positive else vector[theta:]
    rates, factors, count = state.rates, state.factors, spec.steps * len(state.columns)
    if state.columns:
        own = learned[:count].view(spec.steps, -1)
        whole = len(state.columns) == rates.shape[1]
        rates = own if whole else rates.index_copy(1, torch.tensor(state.columns), own)
    if state.learns_factors:
        factors = learned[count:]
    return Meta(split(vector, spec), rates, None if factors is None else split(factors, spec))


def finish(state: OuterState, parent: Initialization) -> Initialization:
    """The next version after ``parent``; raises InitializationError if it is not finite."""
    meta = meta_of(state)
    tensors = dict(parent.tensors)
    for name, tensor in {**meta.parameters, "rates": meta.rates}.items():
        tensors[name] = tensor.detach().numpy().copy()
    if meta.factors is not None:
        flat = torch.cat([f.flatten() for f in meta.factors.values()])
        tensors["parameter_rates"] = flat.detach().numpy().copy()
    return replace(parent, tensors=tensors, version=parent.version + 1, parent=parent.version)


def pack(state: OuterState) -> tuple[dict[str, Float32s], dict[str, int]]:
    """Tensors and counts for a checkpoint."""
    tensors = {**packed(state.descent), "rates": state.rates.numpy()}
    if state.factors is not None:
        tensors["factors"] = state.factors.numpy()
    return tensors, {"taken": state.taken, "skipped": state.skipped}


def unpack(
    initialization: Initialization,
    settings: OuterSettings,
    tensors: Mapping[str, Float32s],
    counts: Mapping[str, int],
) -> OuterState:
    """What :func:`pack` gave, to go on to the bit; InitializationError if it does not fit."""
    state = start(initialization, settings)
    beside = {"rates": state.rates, "factors": state.factors}
    found: dict[str, Tensor | None] = {}
    for name, like in beside.items():
        tensor = tensors.get(name)
        shape = None if like is None else tuple(like.shape)
        if (tensor is None) != (shape is None) or (tensor is not None and tensor.shape != shape):
            raise InitializationError(f"checkpoint: {name} is not {shape}")
        found[name] = None if tensor is None else torch.tensor(tensor, dtype=torch.float32)
    descent = unpacked(state.descent, tensors, counts)
    rates = found["rates"]
    return replace(
        state,
        descent=descent,
        rates=state.rates if rates is None else rates,
        factors=found["factors"],
    )


def _raw(values: Tensor, positive: bool) -> Tensor:
    if not positive:
        return values.float()
    values = values.double().clamp_min(LEAST_RATE)
    # softplus⁻¹ in a form that neither overflows nor loses small rates.
    return (values + torch.log(-torch.expm1(-values))).float()
