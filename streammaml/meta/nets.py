"""The three nets of one initialization, trained side by side on the same meta-batches.

The network with its rates (``network``), and the feature nets ``f`` and ``g``. Each has its own
optimizer, so that each can be trained, kept or dropped on its own.

Rule: pure; a state is never changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from streammaml.errors import MisfitError, NonFiniteError
from streammaml.events import Float32s
from streammaml.initialization import FEATURE_WIDTHS, NETWORK, Initialization, group_of
from streammaml.meta.episodes import Episodes
from streammaml.meta.feature_nets import (
    NetState,
    draw_net,
    finish_net,
    net_step,
    pack_net,
    start_net,
    unpack_net,
)
from streammaml.meta.outer_loop import (
    TAIL,
    OuterSettings,
    OuterState,
    finish,
    outer_step,
    pack,
    scheduled,
    start,
    unpack,
)

FEATURE_NETS = tuple(FEATURE_WIDTHS)

Tensors = Mapping[str, Float32s]
States = Mapping[str, OuterState | NetState]
Packed = tuple[dict[str, Float32s], dict[str, int]]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Where a run of outer steps led."""

    states: States
    steps: int
    """Meta-batches drawn; a net took a step on each, or skipped it."""
    tasks: int
    losses: Mapping[str, tuple[float, ...]]
    """Of each net before each of its latest steps, at most 100, oldest first."""
    norms: tuple[float, ...]
    """Of the network's gradient at each of its steps, before it was clipped."""
    taken: Mapping[str, int]
    skipped: Mapping[str, int]


def net_of(tensor: str) -> str:
    """The net that a tensor of an initialization belongs to."""
    group = group_of(tensor)
    return group if group in FEATURE_NETS else NETWORK


def part_of(tensors: Tensors, net: str) -> dict[str, Float32s]:
    """The tensors of one net; empty where it is not there."""
    return {name: tensor for name, tensor in tensors.items() if net_of(name) == net}


def with_net(initialization: Initialization, net: str, own: Tensors) -> Initialization:
    """An initialization with the tensors of one net in place of those that it has."""
    others = {n: t for n, t in initialization.tensors.items() if net_of(n) != net}
    return replace(initialization, tensors={**others, **own})


def carried_over(target: Initialization, source: Initialization) -> Initialization:
    """Another domain's tensors under the target's meaning: its schema, version and classes.

    MisfitError where they have other sizes.
    """
    own, theirs = target.spec, source.spec
    for what, ours, found in (
        ("task", own.task.value, theirs.task.value),
        ("network", own.network or "built in", theirs.network or "built in"),
        ("sizes", own.sizes, theirs.sizes),
        ("inner steps", own.steps, theirs.steps),
        ("parameters", own.shapes(), theirs.shapes()),
    ):
        if ours != found:
            raise MisfitError(
                f"cannot start from another domain's initialization (v{source.version}): {what} "
                f"{found} there, {ours} here; the network, its inputs and its outputs must be as "
                "many, whatever they mean"
            )
    return replace(target, tensors=source.tensors)


def begin(
    initialization: Initialization, settings: OuterSettings, feature_nets: bool, seed: int
) -> States:
    """States before the first step; a feature net that is not there yet is drawn."""
    states: dict[str, OuterState | NetState] = {NETWORK: start(initialization, settings)}
    for net in FEATURE_NETS if feature_nets else ():
        own = part_of(initialization.tensors, net)
        states[net] = start_net(initialization.spec, net, own or seed)
    return states


def drawn_nets(initialization: Initialization, seed: int) -> dict[str, Tensors]:
    """What the feature nets that an initialization lacks begin with."""
    spec = initialization.spec
    lacking = [net for net in FEATURE_NETS if not part_of(initialization.tensors, net)]
    return {net: draw_net(spec, net, seed) for net in lacking}


def descend(
    states: States,
    draw: Callable[[], Episodes | None],
    steps: int,
    settings: OuterSettings,
    expired: Callable[[], bool] = lambda: False,
    on_progress: Progress | None = None,
) -> Descent:
    """Take up to ``steps`` outer steps with every net, until ``expired``.

    Args:
        draw: a meta-batch; None ends the run early.
        on_progress: called after each step with the steps done, ``steps``, and the network's loss.
    """
    first, done, tasks = states, 0, 0
    losses = {net: deque[float](maxlen=TAIL) for net in states}
    norms: list[float] = []
    while done < steps and not expired() and (episodes := draw()) is not None:
        rate = scheduled(settings, done, steps)
        moved = {net: _step(state, episodes, settings, rate) for net, state in states.items()}
        for net, (state, value) in moved.items():
            if state.taken > states[net].taken:
                losses[net].append(value)
                if net == NETWORK:
                    norms.append(state.descent.norm)
        states = {net: state for net, (state, _) in moved.items()}
        done += 1
        tasks += len(episodes.support.inputs)
        if on_progress is not None:
            on_progress(done, steps, moved[NETWORK][1])
    return Descent(
        states=states,
        steps=done,
        tasks=tasks,
        losses={net: tuple(values) for net, values in losses.items()},
        norms=tuple(norms),
        taken={net: state.taken - first[net].taken for net, state in states.items()},
        skipped={net: state.skipped - first[net].skipped for net, state in states.items()},
    )


def tensors_of(state: OuterState | NetState, parent: Initialization) -> Tensors:
    """A net's tensors by their names in an initialization, whether they are finite or not."""
    if isinstance(state, NetState):
        return finish_net(state)
    try:
        return part_of(finish(state, parent).tensors, NETWORK)
    except NonFiniteError:
        return pack(state)[0]  # the names are others, and so is the number that is not finite


def pack_states(states: States) -> dict[str, Packed]:
    """Tensors and counts of each net, for a checkpoint."""
    return {
        net: pack_net(state) if isinstance(state, NetState) else pack(state)
        for net, state in states.items()
    }


def unpack_states(
    initialization: Initialization, settings: OuterSettings, found: Mapping[str, Packed]
) -> States:
    """What :func:`pack_states` gave; InitializationError where it does not fit."""
    spec = initialization.spec
    return {
        net: unpack(initialization, settings, *own)
        if net == NETWORK
        else unpack_net(spec, net, *own)
        for net, own in found.items()
    }


def _step(
    state: OuterState | NetState, episodes: Episodes, settings: OuterSettings, rate: float
) -> tuple[OuterState | NetState, float]:
    if isinstance(state, NetState):
        return net_step(state, episodes, settings, rate)
    return outer_step(state, episodes, settings, rate)
