"""The outer-loop job without its shell: episodes in, a candidate that passed the gate out.

:class:`Trainer` trains on a reservoir, run after run; :func:`train` on a recorded history, once.

Rule: no file, no clock, no log. When a run ends is for ``expired`` to say, what became of it is a
value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streammaml.config import Config
from streammaml.errors import InputError
from streammaml.events import Event, Float32s, Floats
from streammaml.initialization import NETWORK, Initialization, encode
from streammaml.learner import Labels, Schema
from streammaml.meta import episodes, nets
from streammaml.meta.gate import EPISODES_LEAST, Limits, StoppedError, Verdict, judge, objection
from streammaml.meta.nets import Descent, Progress, States, Tensors
from streammaml.meta.outer_loop import OuterSettings, Rule, evaluate
from streammaml.meta.reservoir import Reservoir
from streammaml.meta.trainer_state import BAD, TrainerState, decode_state, encode_state
from streammaml.meta.trial import try_out
from streammaml.starts import version_zero

VALIDATION_EPISODES = 512


class Result(StrEnum):
    """What became of a run; a candidate is for the caller to publish."""

    PUBLISHED = "published"
    REJECTED = "rejected"
    SKIPPED = "skipped"
    FAILED = "failed"
    """The network took no step, as no loss was finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    result: Result
    why: str = ""
    """Why no version came of it; of a candidate, which nets stayed as they were."""
    candidate: Initialization | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    """As JSON has it; empty where nothing was trained."""
    steps: int = 0
    skipped: int = 0
    """Steps of any net that were not taken: loss or gradient were not finite."""
    tasks: int = 0
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of each net before each of its latest steps, at most 100, oldest first."""
    norms: tuple[float, ...] = ()
    """Of the network's gradient at each of its steps, before it was clipped."""


class Trainer:
    """The optimizer state over one incumbent, and the runs that try to replace it."""

    def __init__(
        self,
        config: Config,
        incumbent: Initialization,
        reservoir: Reservoir,
        start_from: Initialization | None = None,
    ) -> None:
        """``start_from``: where training begins, another domain's, until the gate says no to it."""
        self._config = config
        self._reservoir = reservoir
        self._settings = _settings(config, Rule(config.outer.rule))
        self._incumbent, self._digest = incumbent, _digest(incumbent)
        begin = None if start_from is None else nets.carried_over(incumbent, start_from)
        self._begins_elsewhere = begin is not None
        self._states = self._fresh(begin or incumbent)
        self._pending: tuple[str, States] | None = None  # of the latest candidate, by its digest
        self._newest, self._runs = incumbent.version, 0
        reservoir.follow(incumbent.classes)

    @property
    def incumbent(self) -> Initialization:
        return self._incumbent

    def saw(self, version: int) -> None:
        """This number is taken: that of the next candidate is higher."""
        self._newest = max(self._newest, version)

    def run(
        self,
        steps: int,
        expired: Callable[[], bool] = lambda: False,
        on_progress: Progress | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Train for up to ``steps`` outer steps or until ``expired``, and judge what came of it.

        What it learned is kept only if the candidate is adopted. ``stopped`` is asked time and
        again while it judges: then nothing comes of the run.
        """
        torch.set_num_threads(self._config.outer.threads)
        outer, reservoir = self._config.outer, self._reservoir
        self._pending = None
        held = reservoir.held_out(outer.validation)
        if reservoir.trainable == 0 or held is None:
            return Outcome(result=Result.SKIPPED, why=_lacking(reservoir))
        rng = np.random.default_rng([outer.seed, self._incumbent.version, self._runs])
        run = nets.descend(
            self._states,
            lambda: reservoir.train(rng, outer.meta_batch),
            steps,
            self._settings,
            expired,
            on_progress,
        )
        self._runs += 1
        outcome = Outcome(
            result=Result.SKIPPED,
            steps=run.steps,
            skipped=sum(run.skipped.values()),
            tasks=run.tasks,
            losses=run.losses,
            norms=run.norms,
        )
        if run.steps == 0:
            return replace(outcome, why="there was no time for a step")
        if run.taken[NETWORK] == 0:
            return replace(outcome, result=Result.FAILED, why="no loss of the network was finite")
        try:
            return self._judged(run, held, outcome, stopped)
        except StoppedError:
            return replace(outcome, why="stopped")

    def adopt(self, initialization: Initialization) -> None:
        """Let it be the incumbent. The optimizer goes on if it is the latest run's candidate.

        Of the incumbent's own numbers, under whatever version, nothing moves but where training
        began elsewhere: that was for the incumbent before.
        """
        digest = _digest(initialization)
        if self._pending is not None and digest == self._pending[0]:
            self._states = self._pending[1]
        elif digest != self._digest or self._begins_elsewhere:
            self._states = self._fresh(initialization)
        self._incumbent, self._digest = initialization, digest
        self._pending, self._begins_elsewhere = None, False
        self.saw(initialization.version)
        self._reservoir.follow(initialization.classes)

    def objection(self, fresh: Initialization, stopped: Callable[[], bool]) -> str:
        """What speaks against another's initialization as the incumbent; empty: nothing."""
        limits = Limits(self._config.outer.margin, self._config.learner.clip_norm, stopped)
        held = self._reservoir.held_out(EPISODES_LEAST)
        try:
            return objection(fresh, self._incumbent, held, limits)
        except StoppedError:
            return "stopped"

    def checkpoint(self) -> bytes:
        """For :meth:`restore`: the optimizer state, and which episodes were trained on."""
        state = TrainerState(
            incumbent=self._digest,
            rule=self._settings.rule.value,
            runs=self._runs,
            nets=nets.pack_states(self._states),
            cuts=self._reservoir.cuts(),
            apart=self._reservoir.sets_apart,
        )
        return encode_state(state, self._incumbent.spec)

    def restore(self, payload: bytes) -> str:
        """Go on from a checkpoint. Gives the reason where its optimizer state cannot be used.

        Which episodes were trained on is known of any one of this model, whatever the incumbent.
        """
        try:
            state = decode_state(payload, self._incumbent.spec)
            if state.cuts is not None:
                self._reservoir.remember(state.cuts, state.apart)
            if state.incumbent != self._digest:
                return "it belongs to another initialization"
            if state.rule != self._settings.rule.value:
                return f"it was trained by the rule {state.rule}"
            if set(state.nets) != set(self._states):
                return f"it holds the nets {sorted(state.nets)}"
            self._states = nets.unpack_states(self._incumbent, self._settings, state.nets)
            self._runs, self._begins_elsewhere = state.runs, False
        except BAD as error:
            return str(error)
        return ""

    def _judged(
        self, run: Descent, held: episodes.Held, outcome: Outcome, stopped: Callable[[], bool]
    ) -> Outcome:
        incumbent = self._incumbent
        seed = self._config.learner.seed
        verdict = _verdict(self._config, run, incumbent, held, stopped)
        report = _report(verdict, run, self._settings.rule, self._config.outer.seed)
        outcome = replace(outcome, report=report, why=verdict.why)
        kept = self._fresh(incumbent) if self._begins_elsewhere else self._states
        if not verdict.passed:
            self._states, self._begins_elsewhere = kept, False
            return replace(outcome, result=Result.REJECTED)
        candidate = replace(
            verdict.merged,
            version=max(self._newest, incumbent.version) + 1,
            parent=incumbent.version,
            classes=self._reservoir.classes,
            notes=_notes(self._settings.rule, run.taken, seed),
        )
        passed = {net: run.states[net] for net, found in verdict.nets.items() if found.passed}
        self._pending = (_digest(candidate), {**kept, **passed})
        return replace(outcome, result=Result.PUBLISHED, candidate=candidate)

    def _fresh(self, initialization: Initialization) -> States:
        wanted, seed = self._config.outer.feature_nets, self._config.learner.seed
        return nets.begin(initialization, self._settings, wanted, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A recorded stream as arrays."""

    contexts: NDArray[np.int64]  # N
    x: Float32s  # [N, D]
    y: Floats  # [N]
    labels: Labels
    rejected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An initialization with the evidence for it: mean query losses on held-out episodes."""

    initialization: Initialization
    steps: int
    skipped: int
    validation_episodes: int
    loss_before: float
    """After adaptation from the initialization that training began with."""
    loss_after: float
    loss_unadapted: float
    report: Mapping[str, Any]
    """What the gate says of each net against what training began with."""


def past_of(config: Config, batches: Iterable[list[Event]]) -> Past:
    """Collate a history as a worker would; bad events are left out and counted."""
    schema, labels = Schema(config.features), Labels(config.label)
    codes: dict[str, int] = {}
    contexts: list[int] = []
    xs, ys = [np.zeros((0, schema.width), np.float32)], [np.zeros(0)]
    rejected = 0
    for events in batches:
        collated = schema.collate(events, labels)
        contexts += [codes.setdefault(c, len(codes)) for c in collated.batch.contexts]
        xs.append(collated.batch.x)
        ys.append(collated.batch.y)
        rejected += len(collated.rejected)
    return Past(
        contexts=np.array(contexts, np.int64),
        x=np.concatenate(xs),
        y=np.concatenate(ys),
        labels=labels,
        rejected=rejected,
    )


def train(
    config: Config,
    past: Past,
    *,
    steps: int,
    rule: Rule = Rule.FOMAML,
    start_from: Initialization | None = None,
    on_progress: Progress | None = None,
) -> Trained:
    """Meta-train on the past, from the configured seed's initialization or another domain's.

    Validated on held-out contexts and each other context's newest tenth, which are never trained
    on. What the gate says goes into the report, it keeps nothing back. Raises InputError where no
    context has enough labels for an episode.
    """
    torch.set_num_threads(config.outer.threads)
    learner = config.learner
    # The names of an open list of classes belong to the initialization: its outputs mean them.
    classes = () if config.label.classes else tuple(past.labels.classes)
    begin = replace(version_zero(config), classes=classes)
    if start_from is not None:
        begin = nets.carried_over(begin, start_from)
    try_out(begin, rule, learner.support_size)
    whole = episodes.history(past.contexts, past.x, past.y, config.label.task, len(classes))
    training, held_out = episodes.hold_out(whole)
    rng = np.random.default_rng([learner.seed, config.outer.seed])
    judged = episodes.sample_to_judge(held_out, rng, VALIDATION_EPISODES)
    if len(training) == 0 or judged is None:
        raise InputError(
            f"no context has the {episodes.LABELS_LEAST} labels that an episode takes, both to "
            "train on and to validate: it takes 20 contexts, or one with about 180 labels; give a "
            "longer history, or check the context column"
        )
    settings = replace(_settings(config, rule), cosine=True)
    run = nets.descend(
        nets.begin(begin, settings, config.outer.feature_nets, learner.seed),
        lambda: episodes.sample(training, rng, config.outer.meta_batch),
        steps,
        settings,
        on_progress=on_progress,
    )
    trained = begin
    for net, own in _trained(run, begin).items():
        trained = nets.with_net(trained, net, own)
    before = evaluate(begin, judged.episodes, learner.clip_norm)
    unadapted, after = evaluate(trained, judged.episodes, learner.clip_norm)
    notes = _notes(rule, run.taken, learner.seed)
    losses = {"validation_loss": f"{after:.6f}", "validation_loss_before": f"{before[1]:.6f}"}
    if run.steps:
        trained = replace(trained, version=begin.version + 1, parent=begin.version)
    verdict = _verdict(config, run, begin, judged)
    return Trained(
        initialization=replace(trained, notes={**notes, **losses}),
        steps=run.taken[NETWORK],
        skipped=run.skipped[NETWORK],
        validation_episodes=VALIDATION_EPISODES,
        loss_before=before[1],
        loss_after=after,
        loss_unadapted=unadapted,
        report=_report(verdict, run, rule, learner.seed),
    )


def _settings(config: Config, rule: Rule) -> OuterSettings:
    outer = config.outer
    return OuterSettings(
        rule=rule,
        learning_rate=outer.learning_rate,
        inner_clip=config.learner.clip_norm,
        outer_clip=outer.clip_norm,
    )


def _trained(run: Descent, begin: Initialization) -> dict[str, Tensors]:
    """The tensors of each net that took a step."""
    return {n: nets.tensors_of(s, begin) for n, s in run.states.items() if run.taken[n] > 0}


def _verdict(
    config: Config,
    run: Descent,
    incumbent: Initialization,
    held: episodes.Held,
    stopped: Callable[[], bool] = lambda: False,
) -> Verdict:
    return judge(
        _trained(run, incumbent),
        incumbent,
        nets.drawn_nets(incumbent, config.learner.seed),
        held,
        Limits(config.outer.margin, config.learner.clip_norm, stopped),
    )


def _report(verdict: Verdict, run: Descent, rule: Rule, seed: int) -> dict[str, Any]:
    return {
        **verdict.report(),
        "rule": rule.value,
        "seed": seed,
        "steps": run.steps,
        "skipped": dict(run.skipped),
    }


def _notes(rule: Rule, taken: Mapping[str, int], seed: int) -> dict[str, str]:
    return {"rule": rule.value, "steps": str(taken[NETWORK]), "seed": str(seed)}


def _lacking(reservoir: Reservoir) -> str:
    if len(reservoir) == 0:
        return "there are no episodes"
    if reservoir.trainable == 0:
        return "there is no episode to train on: all are held out, or overlap one that is"
    return (
        "there is no held-out episode: it takes two of a context, or 20 contexts, and newer ones "
        "than were trained on"
    )


def _digest(initialization: Initialization) -> str:
    """Of what the numbers are and mean, whatever their version is called."""
    plain = replace(initialization, version=0, parent=-1, notes={})
    return hashlib.sha256(encode(plain)).hexdigest()[:32]
