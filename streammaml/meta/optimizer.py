"""Adam on one flat vector, behind a clip of the norm; a step that is not finite is not taken.

Rule: a descent is never changed. By hand, because ``torch.optim`` imports the compiler, 1.6 s that
a short run does not have.

References:
    Kingma, Ba, "Adam", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streammaml.errors import InitializationError
from streammaml.events import Float32s

BETAS = (0.9, 0.999)
EPSILON = 1e-8
TENSORS = ("vector", "mean", "square")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """A vector on its way down, and how often it moved."""

    vector: Tensor  # [N]
    mean: Tensor  # [N], Adam's first moment
    square: Tensor  # [N], Adam's second moment
    taken: int = 0
    skipped: int = 0
    norm: float = math.nan
    """Of the gradient of the latest step taken, before it was clipped."""


def begin(vector: Tensor) -> Descent:
    zeros = torch.zeros_like(vector)
    return Descent(vector=vector, mean=zeros, square=zeros)


def advance(
    descent: Descent, gradient: Tensor, value: float, *, learning_rate: float, clip_norm: float
) -> Descent:
    """One step against ``gradient`` [N] of a loss ``value``; skipped if either is not finite."""
    norm = float(torch.linalg.vector_norm(gradient))
    if not (math.isfinite(norm) and math.isfinite(value)):
        return replace(descent, skipped=descent.skipped + 1)
    if norm > clip_norm:
        gradient = gradient * (clip_norm / norm)
    taken = descent.taken + 1
    mean = descent.mean.lerp(gradient, 1 - BETAS[0])
    square = (BETAS[1] * descent.square).addcmul_(gradient, gradient, value=1 - BETAS[1])
    length = learning_rate / (1 - BETAS[0] ** taken)
    scale = (square / (1 - BETAS[1] ** taken)).sqrt_().add_(EPSILON)
    vector = descent.vector.addcdiv(mean, scale, value=-length)
    return replace(descent, vector=vector, mean=mean, square=square, taken=taken, norm=norm)


def packed(descent: Descent) -> dict[str, Float32s]:
    """Its tensors by name, for a checkpoint."""
    return {name: getattr(descent, name).numpy() for name in TENSORS}


def unpacked(like: Descent, tensors: Mapping[str, Float32s], counts: Mapping[str, int]) -> Descent:
    """What :func:`packed` gave; InitializationError unless it fits ``like``."""
    shape = tuple(like.vector.shape)
    for name in TENSORS:
        found = tensors.get(name)
        if found is None or found.shape != shape or found.dtype != np.float32:
            raise InitializationError(f"checkpoint: {name} is not float32 {shape}")
        if not np.isfinite(found).all():
            raise InitializationError(f"checkpoint: {name} holds a value that is not finite")
    vector, mean, square = (torch.from_numpy(tensors[name].copy()) for name in TENSORS)
    return Descent(
        vector=vector,
        mean=mean,
        square=square,
        taken=counts["taken"],
        skipped=counts["skipped"],
    )
