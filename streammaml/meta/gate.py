"""The gate: what was trained replaces what is in use only where that cannot be much worse.

Each of the three nets (the network, ``f``, ``g``) is judged on its own: d = its query loss after
adaptation on a held-out episode, minus that of the incumbent's, averaged per context. It passes if
it is finite, no group of its tensors is longer than ten times the incumbent's, and

    mean(d) + 1.645 · se(d) ≤ margin · |incumbent's loss|         over contexts, one-sided

With fewer than 64 episodes or 8 contexts that says nothing: then it may only replace a start that
nobody trained, and only if mean(d) ≤ 0. A net that the incumbent lacks has such a start of its own.

Rule: a few episodes at a time, so that their number costs neither memory nor the time to a stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streammaml.events import Floats, Ints
from streammaml.initialization import NETWORK, Initialization, effective_rates
from streammaml.meta.episodes import Held
from streammaml.meta.feature_nets import query_losses
from streammaml.meta.nets import FEATURE_NETS, Tensors, part_of, with_net
from streammaml.meta.outer_loop import task_losses

QUANTILE = 1.645
"""Of the normal distribution, at 95 %."""
EPISODES_LEAST = 64
CONTEXTS_LEAST = 8
NORM_GROWTH = 10.0
NOT_FINITE = "its loss on held-out episodes is not finite"
CHUNK = 32
"""Episodes that are judged in one stack."""
FLOOR = 0.1
"""Root mean square that a group of tensors counts with at least: a head starts at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetVerdict:
    """What came of one net; losses are means over contexts, NaN where it was not finite."""

    passed: bool
    why: str
    loss_incumbent: float = math.nan
    loss_candidate: float = math.nan
    loss_unadapted: float = math.nan
    """Of the candidate at θ, or of its prior head."""
    mean_difference: float = math.nan
    standard_error: float = math.nan
    norm_ratio: float = math.nan
    """The largest of its groups of tensors; the incumbent's norm is 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    nets: Mapping[str, NetVerdict]
    """Those that were trained."""
    episodes: int
    contexts: int
    merged: Initialization
    """The incumbent, with the tensors of each net that passed. Its version is the incumbent's."""

    @property
    def passed(self) -> bool:
        return any(net.passed for net in self.nets.values())

    @property
    def why(self) -> str:
        """Each net that did not pass, and what kept it."""
        return "; ".join(f"{name}: {net.why}" for name, net in self.nets.items() if not net.passed)

    def report(self) -> dict[str, Any]:
        """As JSON has it: what is not finite is null."""
        return {
            "episodes": self.episodes,
            "contexts": self.contexts,
            "parent": self.merged.version,
            "schema": self.merged.spec.schema,
            "fingerprint": self.merged.spec.fingerprint,
            "nets": {name: _plain(asdict(net)) for name, net in self.nets.items()},
        }


class Limits(NamedTuple):
    margin: float
    """By how much of its loss a candidate may be worse than the incumbent, at most."""
    clip_norm: float
    """Of an inner step."""
    stopped: Callable[[], bool] = lambda: False
    """Asked before each stack of episodes; once it says so, the gate ends by StoppedError."""


class StoppedError(Exception):
    """The gate was told to stop before it came to a verdict."""


def judge(
    trained: Mapping[str, Tensors],
    incumbent: Initialization,
    starts: Mapping[str, Tensors],
    held: Held,
    limits: Limits,
) -> Verdict:
    """Hold each trained net against the incumbent's.

    Args:
        trained: the tensors of each net that was trained, by the names of an initialization.
        starts: of each feature net that the incumbent lacks, what its training began with.
    """
    nets: dict[str, NetVerdict] = {}
    merged = incumbent
    for net, own in trained.items():
        over = part_of(incumbent.tensors, net) or starts[net]
        reference = with_net(incumbent, net, over)
        untrained = incumbent.version == 0 or net in starts
        nets[net] = _judge_net(net, own, reference, held, limits, untrained)
        if nets[net].passed:
            merged = with_net(merged, net, own)
    return Verdict(
        nets=nets,
        episodes=len(held.contexts),
        contexts=len(np.unique(held.contexts)),
        merged=merged,
    )


def objection(
    fresh: Initialization, incumbent: Initialization, held: Held | None, limits: Limits
) -> str:
    """What speaks against another's initialization in the incumbent's place; empty: nothing.

    It need not be better, only be one: no net of both is much longer, and the network's loss is
    finite on the episodes on which the incumbent's is.
    """
    for net in (NETWORK, *FEATURE_NETS):
        if part_of(fresh.tensors, net) and part_of(incumbent.tensors, net):
            ratio = _norm_ratio(net, fresh, incumbent)
            if ratio > NORM_GROWTH:
                return f"{net}: {_too_long(ratio)}"
    if held is None:
        return ""
    before, _ = _losses(NETWORK, incumbent, held, limits)
    after, _ = _losses(NETWORK, fresh, held, limits)
    return "" if np.isfinite(after[np.isfinite(before)]).all() else f"{NETWORK}: {NOT_FINITE}"


def _judge_net(
    net: str,
    own: Tensors,
    reference: Initialization,
    held: Held,
    limits: Limits,
    untrained: bool,
) -> NetVerdict:
    if not all(np.isfinite(tensor).all() for tensor in own.values()):
        return NetVerdict(passed=False, why="it holds a value that is not finite")
    candidate = with_net(reference, net, own)
    before, _ = _losses(net, reference, held, limits)
    after, unadapted = _losses(net, candidate, held, limits)
    # An episode on which what is in use diverges says nothing against any candidate.
    usable = np.isfinite(before)
    loss = _by_context(before[usable], held.contexts[usable])
    found = NetVerdict(
        passed=False,
        why=NOT_FINITE,
        loss_incumbent=float(loss.mean()) if len(loss) else math.nan,
        norm_ratio=_norm_ratio(net, candidate, reference),
    )
    if not np.isfinite(after).all():
        return found
    before[~usable] = after[~usable]
    difference = _by_context(after - before, held.contexts)
    error = float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
    found = replace(
        found,
        loss_candidate=float(_by_context(after, held.contexts).mean()),
        loss_unadapted=float(_by_context(unadapted, held.contexts).mean()),
        mean_difference=float(difference.mean()),
        standard_error=error / math.sqrt(len(difference)),
    )
    enough = len(held.contexts) >= EPISODES_LEAST and len(difference) >= CONTEXTS_LEAST
    why = _objection(found, limits.margin, enough, untrained)
    return replace(found, passed=not why, why=why)


def _objection(found: NetVerdict, margin: float, enough: bool, untrained: bool) -> str:
    """What speaks against a net; empty: nothing."""
    if found.norm_ratio > NORM_GROWTH:
        return _too_long(found.norm_ratio)
    mean, error = found.mean_difference, found.standard_error
    if not enough:
        least = f"{EPISODES_LEAST} held-out episodes of {CONTEXTS_LEAST} contexts"
        if not untrained:
            return f"it takes {least} to replace what was trained"
        return "" if mean <= 0 else f"its loss is {mean:.4g} higher, and there are not {least}"
    loss = found.loss_incumbent
    allowed = margin * abs(loss) if math.isfinite(loss) else 0.0
    if mean + QUANTILE * error <= allowed:
        return ""
    return f"its loss may be {mean + QUANTILE * error:.4g} higher, at most {allowed:.4g}"


def _too_long(ratio: float) -> str:
    return f"its tensors are {ratio:.1f} times as long, at most {NORM_GROWTH:g}"


@torch.no_grad()
def _losses(
    net: str, initialization: Initialization, held: Held, limits: Limits
) -> tuple[Floats, Floats]:
    """Query loss [T] after adaptation, and before it: at θ, or of the prior head."""
    own = part_of(initialization.tensors, net)
    given = {name.partition("/")[2]: torch.from_numpy(t) for name, t in own.items()}
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(held.contexts), CHUNK):
        if limits.stopped():
            raise StoppedError
        episodes = held.episodes.part(slice(first, first + CHUNK))
        if net == NETWORK:
            found.append(task_losses(initialization, episodes, limits.clip_norm))
        else:
            found.append(query_losses(given, net, episodes))
    before, after = (torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))
    return after, before


def _by_context(values: Floats, contexts: Ints) -> Floats:
    """Mean of each context's values."""
    _, place = np.unique(contexts, return_inverse=True)
    means: Floats = np.bincount(place, weights=values) / np.bincount(place)
    return means


def _norm_ratio(net: str, candidate: Initialization, reference: Initialization) -> float:
    """The most by which a group of tensors is longer than the reference's, or than the floor."""
    ratios = []
    for own, theirs in zip(_groups(net, candidate), _groups(net, reference), strict=True):
        least = FLOOR * math.sqrt(own.size)
        ratios.append(_norm(own) / max(_norm(theirs), least))
    return max(ratios)


def _groups(net: str, initialization: Initialization) -> Iterator[Floats]:
    """What is measured together, each as a vector."""
    if net == NETWORK:
        yield initialization.theta().astype(np.float64)
        yield effective_rates(initialization).ravel()
        return
    own = part_of(initialization.tensors, net)
    scalars = [name for name in own if own[name].ndim == 0]
    body = [name for name in own if name not in scalars and name != f"{net}/head"]
    for names in (body, [f"{net}/head"], scalars):
        yield np.concatenate([own[name].ravel() for name in names]).astype(np.float64)


def _norm(vector: Floats) -> float:
    return float(np.linalg.norm(vector))


def _plain(numbers: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in numbers.items()
    }
