"""Episodes out of the windows that the kernel captured: which part of each, and in what words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from streammaml.config import Config
from streammaml.events import QUERY, SUPPORT_LEAST, Context, Episode, Label
from streammaml.learner.state import UNKNOWN, Captures


def episodes_of(
    config: Config,
    captures: Captures,
    contexts: Sequence[Context],
    partition: int,
    classes: Sequence[Label],
) -> list[Episode]:
    """One for each window, but for those with an example that is not known.

    ``contexts`` [B] of the batch; ``classes`` by slot. What is given shares no memory with
    ``captures``, which the next batch fills again.
    """
    count = int(captures.counts[0])
    episodes = []
    for window, (place, labels, used) in enumerate(captures.marks[:count].tolist()):
        context = contexts[place]
        support = _support(config, context, labels)
        newest = min(labels, captures.y.shape[1])
        part = (window, slice(newest - support - QUERY, newest))
        offsets = captures.offsets[part].copy()
        if (offsets == UNKNOWN).any():
            continue
        episodes.append(
            Episode(
                context=context,
                partition=partition,
                labels=labels,
                support=support,
                x=captures.x[part].copy(),
                y=captures.y[part].copy(),
                offsets=offsets,
                label_offsets=offsets,  # a label comes with its event
                shift=captures.scales[window, :2].copy(),
                inverse=captures.scales[window, 2:].copy(),
                y_scale=captures.y_scale[window].copy(),
                classes=tuple(classes[:used]),
            )
        )
    return episodes


def _support(config: Config, context: Context, labels: int) -> int:
    """Size of the support set, uniform on what there is; the same on every machine."""
    most = min(config.learner.support_size, labels - QUERY)
    text = f"{config.learner.seed}/{labels}/{context}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return SUPPORT_LEAST + drawn % (most - SUPPORT_LEAST + 1)
