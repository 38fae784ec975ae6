"""What became of a run of the outer loop, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from streammaml.catalogue import loss_of
from streammaml.initialization import NETWORK
from streammaml.meta_trainer import Outcome

RunResult = Literal["published", "rejected", "skipped", "failed"]
Tell = Callable[[int, str], None]
Progress = Callable[[int], AbstractContextManager[Tell]]
"""Shows the steps of one run, of at most so many."""
LOSSES = ("train_loss", "validation_loss", "incumbent_loss")
TOLD = ("result", "why", "version", "parent", "steps", "nonfinite", *LOSSES)
"""Of a run, in its line of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What became of one run."""

    result: RunResult
    why: str
    version: int
    """The current one after it."""
    parent: int
    """The one that it began with."""
    seconds: float = 0.0
    steps: int = 0
    nonfinite: int = 0
    tasks: int = 0
    train_loss: float | None = None
    validation_loss: float | None = None
    incumbent_loss: float | None = None
    norms: Sequence[float] = ()
    """Of the network's gradient at each step, before it was clipped."""
    report: Mapping[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """Who wants to know what the job does."""

    def episodes(self, accepted: int, rejected: int, duplicate: int) -> None: ...
    def reservoir(self, episodes: int, contexts: int) -> None: ...
    def serving(self, version: int) -> None: ...
    def ran(self, run: Run, now_s: float) -> None: ...


def run_of(result: RunResult, why: str, version: int, outcome: Outcome | None = None) -> Run:
    """A run over the incumbent ``version``, with what the trainer says of it."""
    run = Run(result=result, why=why, version=version, parent=version)
    if outcome is None:
        return run
    return replace(
        run,
        steps=outcome.steps,
        nonfinite=outcome.skipped,
        tasks=outcome.tasks,
        train_loss=_mean(outcome.losses.get(NETWORK, ())),
        validation_loss=loss_of(outcome.report, "loss_candidate"),
        incumbent_loss=loss_of(outcome.report, "loss_incumbent"),
        norms=outcome.norms,
        report=outcome.report,
    )


def _mean(losses: Sequence[float]) -> float | None:
    return sum(losses) / len(losses) if losses else None
