"""What the paper tables share: a score with its interval, and a learning rate that falls."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from streammaml.meta.outer_loop import COSINE_END

NORMAL_95 = 1.96


class Score(NamedTuple):
    """Of one row: the mean over fresh test tasks, half of its 95 % interval, and their number."""

    mean: float
    ci95: float
    tasks: int


def score_of(values: Tensor) -> Score:
    """From one number for each task; not finite where one of them is not."""
    each = values.numpy().astype(np.float64)
    return Score(
        float(each.mean()), NORMAL_95 * float(each.std()) / math.sqrt(len(each)), len(each)
    )


def cosine(learning_rate: float, share: float) -> float:
    """Half a cosine from ``learning_rate``, at ``share`` of the run."""
    falling = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return learning_rate * (COSINE_END + (1 - COSINE_END) * falling)
