"""What the paper tables share: a score with its interval, and a learning rate that falls."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from streammaml.meta.outer_loop import COSINE_END

NORMAL_95 = 1.96


class Score(NamedTuple):
    """Of one row."""

    mean: float
    ci95: float
    """Half of the mean's 95 % interval over the fresh test tasks."""
    tasks: int
    steps: int
    """Outer steps of the training."""
    train_s: float


def score_of(values: Tensor, steps: int, train_s: float) -> Score:
    """From one number for each task; not finite where one of them is not."""
    each = values.detach().numpy().astype(np.float64)
    half = NORMAL_95 * float(each.std()) / math.sqrt(len(each))
    return Score(float(each.mean()), half, len(each), steps, train_s)


def cosine(learning_rate: float, share: float) -> float:
    """Half a cosine from ``learning_rate``, at ``share`` of the run."""
    falling = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return learning_rate * (COSINE_END + (1 - COSINE_END) * falling)
