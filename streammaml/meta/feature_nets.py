"""The feature nets f and g, meta-learned so that a ridge head on few examples predicts well.

    f(u) = [¼·relu(relu(u F1 + b1) F2 + b2), 1]      g(u) = [tanh(relu(u G1 + c1) G2 + c2), 1]
    W = W0 + Φᵀ(ΦΦᵀ + λI)⁻¹(τ − ΦW0)                 Φ [S, H] the features of the support set
    loss = mean query loss of W + .3 × the same of the prior head W0

Targets τ are ±1 for each class, or scaled values within ±6. The query loss of classes is the
cross-entropy of κWᵀf, of values Huber(1); g, whose belief needs a likelihood, has in a regression
½e²/(sν) + ½log(sν), at most 12, with s the predictive variance over the noise ν. The net, W0,
λ = exp(log_ridge), κ = exp(log_scale) and ν = exp(log_noise) all learn.

Rule: pure, one net at a time, and padding counts for nothing: its rows are multiplied by the root
of weight 0. A system that cannot be factorised gives NaN, and the step is skipped.

    T  tasks    S  support    Q  query    H  features, with the constant    K  outputs

References:
    Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers"
    (R2D2), 2019. Harrison, Sharma, Pavone, "Meta-learning priors for efficient online Bayesian
    regression" (ALPaCA), 2018.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streammaml.events import Float32s
from streammaml.initialization import FEATURE_WIDTHS, Spec, group_of
from streammaml.meta.episodes import Episodes
from streammaml.meta.losses import Examples, loss, shares
from streammaml.meta.networks import Parameters
from streammaml.meta.optimizer import Descent, advance, begin, packed, unpacked
from streammaml.meta.outer_state import OuterSettings

NETS = tuple(FEATURE_WIDTHS)
"""f and g."""
LOG_RIDGE = {"f": 2.0, "g": 0.0}
LOG_SCALE = 1.0
LOG_NOISE = -1.0
F_SCALE = 0.25
TARGET_LIMIT = 6.0
WORST_NLL = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetState:
    """What one step of a net hands to the next: the vector holds its tensors."""

    spec: Spec
    net: str
    descent: Descent

    @property
    def taken(self) -> int:
        return self.descent.taken

    @property
    def skipped(self) -> int:
        return self.descent.skipped


class Heads(NamedTuple):
    """What the prior head and the adapted one say of the query sets."""

    prior: Tensor  # [T, Q, K]
    adapted: Tensor  # [T, Q, K]
    prior_variance: Tensor  # [T, Q], over the noise's; at least 1
    variance: Tensor  # [T, Q]


def start_net(spec: Spec, net: str, begin_with: int | Mapping[str, Float32s]) -> NetState:
    """The state before the first step: drawn from a seed, or the tensors of an initialization."""
    if isinstance(begin_with, int):
        tensors = draw_net(spec, net, begin_with)
    else:
        tensors = {name: begin_with[name] for name in _shapes(spec, net)}
    flat = np.concatenate([tensor.ravel() for tensor in tensors.values()])
    return NetState(spec=spec, net=net, descent=begin(torch.from_numpy(flat)))


def draw_net(spec: Spec, net: str, seed: int) -> dict[str, Float32s]:
    """He-normal weights, biases and W0 all 0; independent of θ's draw from the same seed."""
    rng = np.random.default_rng([seed, 1 + NETS.index(net)])
    filled = {"log_ridge": LOG_RIDGE[net], "log_scale": LOG_SCALE, "log_noise": LOG_NOISE}
    tensors: dict[str, Float32s] = {}
    for name, shape in _shapes(spec, net).items():
        part = name.partition("/")[2]
        if part.endswith("weight"):
            drawn = math.sqrt(2 / shape[0]) * rng.standard_normal(shape)
            tensors[name] = drawn.astype(np.float32)
        else:
            tensors[name] = np.full(shape, filled.get(part, 0.0), np.float32)
    return tensors


def net_step(
    state: NetState, episodes: Episodes, settings: OuterSettings, learning_rate: float
) -> tuple[NetState, float]:
    """One Adam step on one meta-batch; the new state, and the loss before the step."""
    vector = state.descent.vector.detach().requires_grad_()
    with torch.enable_grad():
        prior, adapted = query_losses(_split(vector, state), state.net, episodes)
        total = adapted.mean() + settings.init_weight * prior.mean()
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


def finish_net(state: NetState) -> dict[str, Float32s]:
    """The net's tensors as an initialization names them."""
    tensors = _split(state.descent.vector, state)
    return {f"{state.net}/{name}": t.numpy().copy() for name, t in tensors.items()}


def pack_net(state: NetState) -> tuple[dict[str, Float32s], dict[str, int]]:
    """Tensors and counts for a checkpoint."""
    return packed(state.descent), {"taken": state.taken, "skipped": state.skipped}


def unpack_net(
    spec: Spec, net: str, tensors: Mapping[str, Float32s], counts: Mapping[str, int]
) -> NetState:
    """What :func:`pack_net` gave, to go on to the bit; InitializationError if it does not fit."""
    like = start_net(spec, net, 0)
    return replace(like, descent=unpacked(like.descent, tensors, counts))


def query_losses(
    tensors: Mapping[str, Tensor], net: str, episodes: Episodes
) -> tuple[Tensor, Tensor]:
    """Query loss [T] of the prior head and of the adapted one, by a net's own tensor names."""
    support, query = episodes
    size = support.inputs.shape[1]
    features = features_of(tensors, net, torch.cat([support.inputs, query.inputs], 1))
    heads = ridge(tensors, features[:, :size], features[:, size:], support)
    if net == "g" and query.targets.is_floating_point():
        noise = tensors["log_noise"]
        return (
            _negative_log_likelihood(heads.prior, heads.prior_variance, noise, query),
            _negative_log_likelihood(heads.adapted, heads.variance, noise, query),
        )
    if query.targets.is_floating_point():
        clipped = query._replace(targets=query.targets.clamp(-TARGET_LIMIT, TARGET_LIMIT))
        return loss(heads.prior, clipped), loss(heads.adapted, clipped)
    scale = tensors["log_scale"].exp()
    return loss(scale * heads.prior, query), loss(scale * heads.adapted, query)


def features_of(tensors: Mapping[str, Tensor], net: str, inputs: Tensor) -> Tensor:
    """Features [T, N, H] of inputs [T, N, F], the last one 1."""
    hidden = (inputs @ tensors["0.weight"] + tensors["0.bias"]).relu()
    hidden = hidden @ tensors["1.weight"] + tensors["1.bias"]
    hidden = F_SCALE * hidden.relu() if net == "f" else hidden.tanh()
    return functional.pad(hidden, (0, 1), value=1.0)


def ridge(
    tensors: Mapping[str, Tensor], features: Tensor, asked: Tensor, support: Examples
) -> Heads:
    """Solve the head on support features [T, S, H] and ask it for query features [T, Q, H]."""
    head, lam = tensors["head"], tensors["log_ridge"].double().exp()
    roots = support.weights.sqrt().unsqueeze(-1)
    rows = (features * roots).double()  # [T, S, H]
    residuals = ((targets_of(support, head.shape[1]) - features @ head) * roots).double()
    gram = rows @ rows.mT + lam * torch.eye(rows.shape[1], dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(gram)
    factor = torch.where((failed != 0)[:, None, None], torch.nan, factor)
    cross = torch.linalg.solve_triangular(  # L⁻¹ of [residuals, Φ f(query)]
        factor, torch.cat([residuals, rows @ asked.double().mT], -1), upper=False
    )
    z, v = torch.split(cross, [head.shape[1], asked.shape[1]], -1)
    prior = asked @ head
    alone = 1 + asked.double().square().sum(-1) / lam  # [T, Q]
    variance = (alone - v.square().sum(1) / lam).clamp_min(1)
    return Heads(
        prior, prior + (v.mT @ z).to(prior.dtype), alone.to(prior.dtype), variance.to(prior.dtype)
    )


def targets_of(examples: Examples, outputs: int) -> Tensor:
    """τ [T, S, K]: +1 at the class and −1 elsewhere, or values within ±6."""
    targets = torch.where(examples.weights > 0, examples.targets, 0)
    if targets.is_floating_point():
        return targets.clamp(-TARGET_LIMIT, TARGET_LIMIT).unsqueeze(-1)
    coded: Tensor = 2 * functional.one_hot(targets, outputs).to(examples.weights.dtype) - 1
    return coded


def _negative_log_likelihood(
    outputs: Tensor, variance: Tensor, log_noise: Tensor, query: Examples
) -> Tensor:
    """Weighted mean [T] of ½e²/(sν) + ½log(sν), each at most 12."""
    errors = outputs - targets_of(query, 1)
    spread = variance * log_noise.exp()
    each = 0.5 * errors.squeeze(-1).square() / spread + 0.5 * spread.log()
    return (each.clamp_max(WORST_NLL) * shares(query)).sum(-1)


def _shapes(spec: Spec, net: str) -> dict[str, tuple[int, ...]]:
    return {n: s for n, s in spec.optional_shapes().items() if group_of(n) == net}


def _split(vector: Tensor, state: NetState) -> Parameters:
    """A net's vector as tensors by their names in it."""
    shapes = _shapes(state.spec, state.net)
    parts = torch.split(vector, [math.prod(shape) for shape in shapes.values()])
    return {
        name.partition("/")[2]: part.view(shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
