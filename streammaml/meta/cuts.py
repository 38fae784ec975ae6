"""Up to where contexts were trained on, in a form that outlives the process.

A cut stands on a context's line of labels, whose zero is where the reservoir began to read. What
the next reading finds again is how many labels each partition had counted there: a mark. It is kept
under a hash of the context's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import islice

import numpy as np

from streammaml.events import Context, Ints

MOST = 65_536
"""Contexts whose marks are kept, the latest ones."""
APART_EVERY = 10
"""Of the contexts, by hash, one in so many is set apart."""


Marks = dict[int, int]
"""By partition of one context, how many labels it had counted at the cut; below 0 if it began anew
since."""


def hash_of(context: Context) -> int:
    """64 bits, signed."""
    digest = hashlib.blake2s(context.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def is_apart(context: Context) -> bool:
    return hash_of(context) % 2**64 % APART_EVERY == 0


def newest(marks: Mapping[int, Marks]) -> dict[int, Marks]:
    """Those of the last contexts, as many as are kept."""
    return dict(islice(marks.items(), max(0, len(marks) - MOST), None))


def keep(marks: dict[int, Marks], name: int, own: Marks) -> None:
    """Add those of one context in place, as the latest; over the limit the oldest go."""
    marks.pop(name, None)
    marks[name] = own
    while len(marks) > MOST:
        del marks[next(iter(marks))]


def packed(marks: Mapping[int, Marks]) -> Ints:
    """Hash, partition and labels, a row for each mark [M, 3]."""
    rows = [(name, *mark) for name, own in marks.items() for mark in own.items()]
    return np.array(rows, np.int64).reshape(-1, 3)


def unpacked(rows: Ints) -> dict[int, Marks]:
    """What :func:`packed` gave; ValueError for anything else."""
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(f"its cuts are {rows.dtype} {rows.shape}")
    marks: dict[int, Marks] = {}
    for name, partition, labels in rows.tolist():
        marks.setdefault(name, {})[partition] = labels
    return marks
