"""Stopped, restarted, spilled, swapped: the same bits as an undisturbed learner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streammaml.config import Config
from streammaml.events import Decisions
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.learner.snapshot import LIGHT, context_of, is_expired
from tests.learner.build import (
    PARTS,
    Arrays,
    assert_same_bits,
    make_config,
    make_initialization,
    make_stream,
)
from tests.learner.shelf import DictShelf, Log, Partition, advance, meaning, with_times

EVENTS = 700
CONTEXTS = 40
ROWS = [name for name in vars(Decisions) if not name.startswith("_") and name not in PARTS]

KINDS: list[dict[str, Any]] = [
    {"classes": 3},
    {"classes": 3, "network": "linear"},
    {"classes": 4, "open_classes": True},
    {"classes": 0},
    {"classes": 0, "network": "linear", "baseline_rate": 0.05},
    {"classes": 2, "baseline_rate": 0.05, "held_out_test": True},
    {"classes": 2, "detector": {"name": "ADWIN", "parameters": {"clock": 1, "delta": 0.1}}},
    {"classes": 2, "detector": {"name": "DDM"}},
]


def with_state(config: Config, **changes: Any) -> Config:
    sections = {"state": changes.pop("state", {}), "learner": changes}
    return Config.build(config.model_dump(), sections)


def make_log(config: Config, seed: int, classes: int, swap: bool) -> Log:
    stream = make_stream(
        seed,
        EVENTS,
        contexts=CONTEXTS,
        classes=classes,
        missing=0.1,
        unlabelled=0.2,
        drift_every=150,
    )
    # some contexts come often, most seldom
    rng = np.random.default_rng(seed)
    names = [f"ctx-{int(c)}" for c in np.minimum(rng.geometric(0.12, EVENTS), CONTEXTS)]
    swaps: dict[int, Initialization] = {}
    if swap:
        for place, version in ((200, 3), (450, 4)):
            fresh = make_initialization(config, seed=10 + version)
            swaps[place] = replace(fresh, version=version)
    return with_times(replace(stream, contexts=names), seed, swaps)


def learn_classes(learner: Learner, classes: int) -> None:
    """As collating would: these tests give slots."""
    for k in range(classes):
        learner.labels.encode(f"c{k}")


def joined(parts: list[tuple[int, Decisions]]) -> Arrays:
    parts = sorted(parts, key=lambda part: part[0])
    return {name: np.concatenate([getattr(d, name) for _, d in parts]) for name in ROWS}


def undisturbed(config: Config, log: Log, classes: int) -> tuple[Arrays, dict[bytes, bytes]]:
    partition = Partition(config, make_initialization(config), log)
    learn_classes(partition.learner, classes)
    decisions = joined(partition.play(EVENTS))
    return decisions, partition.everything()


@pytest.mark.parametrize("ttl_s", [0.0, 30.0])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))
def test_whatever_befalls_a_learner_its_bits_are_those_of_an_undisturbed_one(
    kind: dict[str, Any], swap: bool, ttl_s: float
) -> None:
    base = with_state(make_config(**kind), state={"ttl_s": ttl_s})
    classes = kind["classes"]
    for seed in (1, 2):
        log = make_log(base, 100 + seed, classes, swap)
        expected, final = undisturbed(base, log, classes)
        rng = np.random.default_rng(seed)
        config = with_state(base, max_contexts=int(rng.choice([1, 3, 17, 100])))
        partition = Partition(config, make_initialization(config), log)
        learn_classes(partition.learner, classes)
        parts = []
        while partition.place < EVENTS:
            last = min(EVENTS, partition.place + int(rng.integers(1, 60)))
            cuts = rng.integers(0, EVENTS, 200).tolist()
            parts += partition.play(last, cuts)
            what = rng.random()
            if what < 0.3:
                partition.barrier()
            elif what < 0.5:
                partition.restart(rng.integers(0, EVENTS, 50).tolist())
                learn_classes(partition.learner, classes)
            elif what < 0.7:
                partition.sweep()

        assert_same_bits(joined(parts), expected)
        ours = partition.everything()
        clock_s = partition.learner.clock_s
        swept = {k for k in final if k[:2] == LIGHT and k not in ours}
        assert all(is_expired(final[key], clock_s, ttl_s) for key in swept)
        gone = {context_of(key) for key in swept}
        left = {k: v for k, v in final.items() if k[:1] == b"@" or context_of(k) not in gone}
        assert ours.keys() == left.keys()
        for key, value in ours.items():
            assert meaning(config, key, value) == meaning(config, key, left[key]), key


def test_without_a_shelf_what_leaves_is_forgotten_alike_in_any_slices() -> None:
    config = make_config(max_contexts=33)
    log = make_log(config, 7, 2, swap=False)
    log = replace(log, stream=make_stream(9, EVENTS, contexts=60))
    whole, sliced = Learner(config, make_initialization(config)), None
    sliced = Learner(config, make_initialization(config))

    expected = advance(whole, log, 0, EVENTS)
    actual = advance(sliced, log, 0, EVENTS, list(range(0, EVENTS, 7)))

    assert_same_bits(joined(actual), joined(expected))
    assert sum(d.evicted for _, d in actual) == expected[0][1].evicted > 20
    assert sliced._rows == whole._rows


def test_the_missing_contexts_of_a_batch_are_fetched_at_once() -> None:
    config = make_config(max_contexts=100)
    log = make_log(config, 7, 2, swap=False)
    shelf = DictShelf()
    learner = Learner(config, make_initialization(config), shelf)
    advance(learner, log, 0, 350)
    shelf.barrier(learner.snapshot())
    learner.mark()
    again = Learner(config, make_initialization(config), shelf)
    again.restore(shelf.durable)
    shelf.takes.clear()

    advance(again, log, 350, EVENTS)

    assert len(shelf.takes) == 2  # light parts, then weights
    assert shelf.takes[0] == len(again)
