"""Whether a new initialization is clearly worse than the served one, on what a worker has seen.

The last line of defence: who published it has judged it on episodes, and may have erred. Contexts
in memory play their latest segment again from θ, once with each (``kernels.trial``); the losses
are compared in pairs. Norms are compared too, which needs no data.

Rule: a doubt is no refusal. With few contexts only a large difference counts, and one as good as
the served one is refused by chance once in 20 to 500 times, by 4 to 64 contexts. That is so of one
look at the losses: who looks again until one is worse refuses many times as often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streammaml.events import Floats, Task
from streammaml.initialization import Initialization, norms
from streammaml.learner.online import Learner

LEAST_LABELS = 10
"""Since a context's segment began: fewer say little."""
LEAST_CONTEXTS = 4
"""For a test; with fewer a standard error means nothing."""
MARGIN, LARGE_MARGIN = 0.1, 0.5
"""Of the served one's loss; the large one where there are fewer contexts."""
ONE_SIDED = 1.645
"""Standard errors: 5 % of a normal distribution lie above."""
GROWTH = 10.0
"""Of a norm."""
WORST = {Task.CLASSIFICATION: -math.log(0.002), Task.REGRESSION: 3.5}
"""A context's loss at most, and where it diverged: of a probability of .002; of 4 deviations."""


class Trial(NamedTuple):
    """What was found."""

    contexts: int
    served: float
    """Mean loss over contexts; NaN without any."""
    candidate: float
    worse: bool
    reason: str
    """Why it is worse; empty where it is not."""
    grown: bool
    """Whether a norm alone says so, so that no further window will change it."""


def try_out(learners: Sequence[Learner], candidate: Initialization, limit: int = 64) -> Trial:
    """Compare ``candidate`` with the initialization in use; about ``limit`` contexts together.

    ``learners`` of one configuration, all at rest, each held against what it has in use; the
    contexts that were used last are taken. Changes nothing of them. A quarter of a millisecond
    for a context of the default network. InitializationError where ``swap`` would raise it for
    another model or order of classes.
    """
    share = -(-limit // max(1, len(learners)))
    found = [learner.losses_of_segments(candidate, share, LEAST_LABELS) for learner in learners]
    losses = np.concatenate([np.zeros((2, 0)), *found], axis=1)
    worst = WORST[candidate.spec.task]
    losses = np.where(losses < worst, losses, worst)  # false for NaN
    grown = next(filter(None, (_grown(one.initialization, candidate) for one in learners)), "")
    reason = grown or _verdict(losses[0], losses[1])
    contexts = losses.shape[1]
    served, other = losses.mean(1).tolist() if contexts else (math.nan, math.nan)
    return Trial(contexts, served, other, reason != "", reason, grown != "")


def _grown(served: Initialization, candidate: Initialization) -> str:
    """Which group of tensors, if any, has become suspiciously large."""
    before = norms(served)
    for group, norm in norms(candidate).items():
        if norm > GROWTH * before.get(group, math.inf) > 0:
            return f"the norm of {group} is {norm:.3g}, {before[group]:.3g} in use"
    return ""


def _verdict(served: Floats, candidate: Floats) -> str:
    """What the losses [n] of n contexts say against the candidate."""
    contexts = len(served)
    if contexts == 0:
        return ""
    difference = candidate - served
    if contexts >= LEAST_CONTEXTS:
        error = difference.std(ddof=1) / math.sqrt(contexts)
        worse = difference.mean() - ONE_SIDED * error > MARGIN * served.mean()
    else:
        worse = difference.min() > 0 and difference.mean() > LARGE_MARGIN * served.mean()
    if not worse:
        return ""
    means = f"{candidate.mean():.3f}, {served.mean():.3f} in use"
    return f"its loss over {contexts} contexts is {means}"
