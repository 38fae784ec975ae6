"""Many contexts at a glance: one line each, the first ones by some number.

A glance is what stands in front of every light part. Rule: what needs the live arrays is a copy or
a look-up of some rows, since the worker waits meanwhile; matching and sorting names is left to
whoever asks.
"""

from __future__ import annotations

import fnmatch
import heapq
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streammaml.config import Config
from streammaml.events import Context, Floats
from streammaml.learner import detectors
from streammaml.learner.snapshot import FRONT, Records
from streammaml.learner.state import ContextState, Ints
from streammaml.query import Query, Sort

GLANCE = np.dtype([*FRONT, ("detector", "<f8", (4,))])
"""The beginning of ``Format.light``."""
COUNT, MEAN, SUM, LOWEST = 0, 1, 2, 3


class Column(NamedTuple):
    """What contexts are sorted by; names and values are aligned."""

    names: Sequence[Context]
    values: Floats
    """NaN where it is not known, and where the place has no context; such names are ""."""
    present: NDArray[np.bool_]


class Glances(NamedTuple):
    """What a listing tells of contexts [n]."""

    names: Sequence[Context]
    records: Records
    """Of ``GLANCE``."""
    stored_bytes: Ints


class Top(NamedTuple):
    names: list[Context]
    matched: int


def column(contexts: ContextState, names: Sequence[Context], sort: Sort) -> Column:
    """A copy of one number of each context, by row."""
    present = contexts.version >= 0
    ledger, detector = contexts.ledger, contexts.detector
    return Column(list(names), _values(sort, contexts.labels, ledger, detector), present)


def column_of(records: Records, names: Sequence[Context], sort: Sort) -> Column:
    """The same of glances [n]."""
    values = _values(sort, records["labels"], records["ledger"], records["detector"])
    return Column(names, values, np.ones(len(names), np.bool_))


def _values(sort: Sort, labels: Ints, ledger: Ints, detector: Floats) -> Floats:
    match sort:
        case Sort.LABELS:
            return labels.astype(np.float64)
        case Sort.APPLIED:
            return ledger[:, 0].astype(np.float64)
        case Sort.LAST_OFFSET:
            return ledger[:, 1].astype(np.float64)
        case Sort.LOSS:
            return np.where(detector[:, COUNT] > 0, detector[:, MEAN], np.nan)
        case Sort.NAME:
            return np.zeros(len(labels))


def top(listed: Column, query: Query) -> Top:
    """The first ``limit`` of those whose name matches; unknown values come last."""
    places = np.flatnonzero(listed.present)
    names = listed.names
    if query.pattern != "*":
        matches = re.compile(fnmatch.translate(query.pattern)).match
        places = np.array([i for i in places.tolist() if matches(names[i])], np.int64)
    matched, limit = len(places), query.limit
    costs = -listed.values[places]
    costs[np.isnan(costs)] = np.inf
    if matched > limit:
        last = np.partition(costs, limit - 1)[limit - 1]
        before = places[costs < last].tolist()
        equal = (names[i] for i in places[costs == last].tolist())
        chosen = [names[i] for i in before] + heapq.nsmallest(limit - len(before), equal)
    else:
        chosen = [names[i] for i in places.tolist()]
    return Top(chosen, matched)


def glances(contexts: ContextState, rows: Ints) -> Records:
    """Copy the glances of ``rows`` [n]."""
    records = np.empty(len(rows), GLANCE)
    for name in GLANCE.names or ():
        records[name] = getattr(contexts, name)[rows]
    return records


def describe_glances(config: Config, found: Glances) -> list[dict[str, Any]]:
    """One line for each, as JSON values; None where a number is not known."""
    compiled = detectors.is_compiled(config.learner.detector, config.label.task)
    parameters = detectors.parameters_of(config.learner.detector, config.label.task)
    threshold = float(parameters.get("threshold", 0)) if compiled else np.inf
    least = float(parameters.get("min_instances", 0)) if compiled else 0.0
    lines = []
    for name, record, size in zip(*found[:2], found.stored_bytes.tolist(), strict=True):
        count, mean, total, lowest = record["detector"].tolist()
        fed = compiled and count > 0
        statistic = total - lowest if fed else None
        warns = fed and count >= least and total - lowest > threshold / 2
        applied, last_offset, _ = record["ledger"].tolist()
        lines.append(
            {
                "context": name,
                "labels": int(record["labels"]),
                "labels_in_segment": int(record["segment"]),
                "events": applied,
                "last_offset": last_offset,
                "loss": mean if fed else None,
                "statistic": statistic,
                "level": ("warning" if warns else "stable") if fed else None,
                "initialization": int(record["version"]),
                "adapted": not record["at_init"],
                "stored_bytes": size,
            }
        )
    return lines


def sort_key(sort: Sort, line: dict[str, Any]) -> tuple[float, Context]:
    """The place of a line in a listing."""
    number = {
        Sort.LOSS: line["loss"],
        Sort.LABELS: line["labels"],
        Sort.APPLIED: line["events"],
        Sort.LAST_OFFSET: line["last_offset"],
        Sort.NAME: 0.0,
    }[sort]
    return (np.inf if number is None else -number, line["context"])
