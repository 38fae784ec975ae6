"""The ledger, at a few seeds; and that it finds the errors planted for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

import pytest
import structlog

from tests.faults.ledger import play, quiet
from tests.faults.plants import PLANTS

SEEDS_EACH = 10
SEEDS_TO_FIND = 60


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    before = structlog.get_config()
    quiet()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("first", range(0, 60, SEEDS_EACH))
def test_no_fault_shows_in_outputs_or_state(first: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_EACH):
        verdict = play(seed)
        counts += verdict.counts
        assert not verdict.violations, "\n".join([*verdict.schedule, *verdict.violations[:10]])

    assert counts["kills"] > 0
    assert counts["barriers"] > 0
    assert counts["replayed events"] > 0


def test_a_seed_repeats_its_schedule() -> None:
    first, second = play(9), play(9)

    assert first.schedule == second.schedule
    assert first.counts == second.counts


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_error_is_found(plant: str) -> None:
    found = next(seed for seed in count() if seed == SEEDS_TO_FIND or play(seed, plant).violations)

    assert found < SEEDS_TO_FIND
