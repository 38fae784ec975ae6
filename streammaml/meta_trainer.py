"""The outer-loop job, offline: a history in, a validated initialization out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from streammaml.config import Config, spec_of
from streammaml.errors import InputError
from streammaml.events import Event, Float32s, Floats
from streammaml.initialization import Initialization, draw
from streammaml.learner import Labels, Schema
from streammaml.meta import episodes
from streammaml.meta.outer_loop import OuterSettings, Rule, evaluate, refine

META_BATCH = 32
VALIDATION_EPISODES = 512

Progress = Callable[[int, int, float], None]


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
    on_progress: Progress | None = None,
) -> Trained:
    """Meta-train from the configured seed's initialization on the past.

    Validated on held-out contexts and each other context's newest tenth, which are never trained
    on. Raises InputError where no context has enough labels for an episode.
    """
    torch.set_num_threads(1)
    learner = config.learner
    # The names of an open list of classes belong to the initialization: its outputs mean them.
    classes = () if config.label.classes else tuple(past.labels.classes)
    begin = draw(spec_of(config), learner.seed, learner.inner_rate, classes)
    whole = episodes.history(past.contexts, past.x, past.y, config.label.task, len(classes))
    training, held_out = episodes.hold_out(whole)
    rng = np.random.default_rng(learner.seed)
    judged = episodes.sample(held_out, rng, VALIDATION_EPISODES)
    if len(training) == 0 or judged is None:
        raise InputError(
            f"no context has the {episodes.LABELS_LEAST} labels that an episode takes, both to "
            "train on and to validate: it takes 20 contexts, or one with about 180 labels; give a "
            "longer history, or check the context column"
        )
    settings = OuterSettings(rule=rule, cosine=True, inner_clip=learner.clip_norm)
    trained, report = refine(
        begin,
        lambda: episodes.sample(training, rng, META_BATCH),
        steps,
        settings,
        on_progress,
    )
    before = evaluate(begin, judged, learner.clip_norm)
    unadapted, after = evaluate(trained, judged, learner.clip_norm)
    notes = {
        "rule": rule.value,
        "steps": str(report.taken),
        "seed": str(learner.seed),
        "validation_loss": f"{after:.6f}",
        "validation_loss_before": f"{before[1]:.6f}",
    }
    return Trained(
        initialization=replace(trained, notes=notes),
        steps=report.taken,
        skipped=report.skipped,
        validation_episodes=VALIDATION_EPISODES,
        loss_before=before[1],
        loss_after=after,
        loss_unadapted=unadapted,
    )
