"""The trainer: runs over an incumbent, what comes of them, and how it goes on after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streammaml.config import Config
from streammaml.errors import MisfitError
from streammaml.initialization import NETWORK, Initialization, decode, encode
from streammaml.meta import nets
from streammaml.meta.nets import part_of
from streammaml.meta.outer_loop import Rule, evaluate
from streammaml.meta.reservoir import Reservoir
from streammaml.meta_trainer import Outcome, Result, Trainer
from streammaml.starts import version_zero
from tests.meta.episode_maker import fill, make_config, make_episode

QUICK: dict[str, Any] = {"meta_batch": 16, "learning_rate": 5e-3}
STEPS = 100


@pytest.fixture(scope="module", name="config")
def make_the_config() -> Config:
    return make_config(**QUICK)


@pytest.fixture(scope="module", name="reservoir")
def make_reservoir(config: Config) -> Reservoir:
    return fill(config, contexts=60, events=200)


def make_trainer(config: Config, reservoir: Reservoir, **given: Any) -> Trainer:
    return Trainer(config, version_zero(config), reservoir, **given)


def published(outcome: Outcome) -> Initialization:
    assert outcome.result is Result.PUBLISHED, outcome.why
    assert outcome.candidate is not None
    return outcome.candidate


def same(one: Initialization, other: Initialization) -> bool:
    return encode(one) == encode(other)


def other_start(config: Config, seed: int = 9) -> Initialization:
    """Somebody else's version 4."""
    changed = Config.build(config.model_dump(), {"learner": {"seed": seed}})
    return replace(version_zero(changed), version=4, parent=3)


def test_a_run_gives_a_better_initialization_with_its_evidence(
    config: Config, reservoir: Reservoir
) -> None:
    trainer = make_trainer(config, reservoir)
    told: list[tuple[int, int, float]] = []

    outcome = trainer.run(STEPS, on_progress=lambda *step: told.append(step))

    candidate = published(outcome)
    held = reservoir.held_out(512)
    assert held is not None
    _, before = evaluate(trainer.incumbent, held.episodes)
    _, after = evaluate(candidate, held.episodes)
    assert after < before - 0.02
    assert (candidate.version, candidate.parent) == (1, 0)
    assert candidate.notes == {"rule": "fomaml", "steps": "100", "seed": "0"}
    assert (outcome.steps, outcome.skipped, outcome.tasks) == (100, 0, 1600)
    assert outcome.why == ""
    assert {len(losses) for losses in outcome.losses.values()} == {100}
    assert len(outcome.norms) == 100
    assert min(outcome.norms) > 0
    assert [step[:2] for step in told] == [(i + 1, 100) for i in range(100)]
    assert [step[2] for step in told] == list(outcome.losses[NETWORK])
    report = json.loads(json.dumps(outcome.report, allow_nan=False))
    assert set(report["nets"]) == {NETWORK, "f", "g"}
    assert all(net["passed"] for net in report["nets"].values())
    assert (report["rule"], report["seed"], report["steps"]) == ("fomaml", 0, 100)
    assert report["skipped"] == {NETWORK: 0, "f": 0, "g": 0}
    assert same(decode(encode(candidate)), candidate)


def test_a_candidate_that_is_adopted_is_trained_on(config: Config, reservoir: Reservoir) -> None:
    trainer = make_trainer(config, reservoir)
    first = published(trainer.run(STEPS))

    trainer.adopt(replace(first, notes={"any": "other"}))
    second = published(trainer.run(STEPS))

    assert same(trainer.incumbent, replace(first, notes={"any": "other"}))
    assert (second.version, second.parent) == (2, 1)
    held = reservoir.held_out(512)
    assert held is not None
    assert evaluate(second, held.episodes)[1] < evaluate(first, held.episodes)[1]


def test_the_next_number_is_above_every_number_seen(config: Config, reservoir: Reservoir) -> None:
    trainer = make_trainer(config, reservoir)
    trainer.saw(7)
    trainer.saw(3)

    candidate = published(trainer.run(STEPS))

    assert (candidate.version, candidate.parent) == (8, 0)


def test_what_was_not_adopted_leaves_no_trace(config: Config, reservoir: Reservoir) -> None:
    trainer = make_trainer(config, reservoir)
    before = nets.pack_states(trainer._states)

    trainer.run(5)

    assert trainer.incumbent.version == 0
    assert states_equal(nets.pack_states(trainer._states), before)


def test_the_next_run_over_the_same_incumbent_draws_other_episodes(
    config: Config, reservoir: Reservoir
) -> None:
    trainer = make_trainer(config, reservoir)

    first, second = trainer.run(1), trainer.run(1)

    assert first.losses[NETWORK] != second.losses[NETWORK]


def states_equal(one: dict[str, nets.Packed], other: dict[str, nets.Packed]) -> bool:
    assert one.keys() == other.keys()
    return all(
        counts == other[net][1]
        and all(np.array_equal(tensor, other[net][0][name]) for name, tensor in tensors.items())
        for net, (tensors, counts) in one.items()
    )


def test_a_run_that_made_it_worse_is_rejected_with_its_reasons(reservoir: Reservoir) -> None:
    wild = make_config(**QUICK | {"learning_rate": 3.0})
    trainer = make_trainer(wild, reservoir)
    before = nets.pack_states(trainer._states)

    outcome = trainer.run(20)

    assert outcome.result is Result.REJECTED
    assert outcome.candidate is None
    assert outcome.why.startswith("network: ")
    assert "; f: " in outcome.why
    assert not any(net["passed"] for net in outcome.report["nets"].values())
    assert states_equal(nets.pack_states(trainer._states), before)


def test_numbers_beyond_all_bounds_are_rejected_too(reservoir: Reservoir) -> None:
    trainer = make_trainer(make_config(**QUICK | {"learning_rate": 1e34}), reservoir)

    outcome = trainer.run(3)

    assert outcome.result is Result.REJECTED
    assert outcome.skipped > 0
    assert "not finite" in outcome.why


def test_a_net_that_fails_stays_with_its_optimizer_beside_those_that_pass(
    config: Config, reservoir: Reservoir
) -> None:
    first = published(make_trainer(config, reservoir).run(STEPS))
    earlier = replace(first, tensors=part_of(first.tensors, NETWORK))
    trainer = Trainer(make_config(**QUICK | {"learning_rate": 0.1}), earlier, reservoir)
    before = nets.pack_states(trainer._states)

    outcome = trainer.run(20)
    candidate = published(outcome)
    trainer.adopt(candidate)

    assert outcome.why.startswith("network: its loss may be ")
    assert {net: found["passed"] for net, found in outcome.report["nets"].items()} == {
        NETWORK: False,
        "f": True,
        "g": True,
    }
    assert np.array_equal(candidate.theta(), earlier.theta())
    assert candidate.tensors.keys() == first.tensors.keys()
    after = nets.pack_states(trainer._states)
    assert states_equal({NETWORK: after[NETWORK]}, {NETWORK: before[NETWORK]})
    assert [after[net][1]["taken"] for net in ("f", "g")] == [20, 20]


@pytest.mark.parametrize("rule", list(Rule))
def test_every_rule_trains(rule: Rule) -> None:
    config = make_config(**QUICK, rule=rule.value, feature_nets=False)
    trainer = make_trainer(config, fill(config, events=100, shared=True))

    outcome = trainer.run(STEPS)

    candidate = published(outcome)
    assert outcome.report["rule"] == rule.value
    assert set(outcome.report["nets"]) == {NETWORK}
    assert ("parameter_rates" in candidate.tensors) == (rule is Rule.METASGD)
    assert part_of(candidate.tensors, "f") == {}


def test_without_an_episode_to_train_on_or_to_judge_by_the_run_is_skipped() -> None:
    config = make_config(width=2)
    reservoir = Reservoir(config)
    trainer = make_trainer(config, reservoir)

    empty = trainer.run(5)
    reservoir.add(make_episode(labels=20))
    single = trainer.run(5)
    reservoir.add(make_episode(labels=30))
    overlapping = trainer.run(5)
    reservoir.add(make_episode(labels=300))
    enough = trainer.run(5)

    skipped = [empty, single, overlapping]
    assert {outcome.result for outcome in skipped} == {Result.SKIPPED}
    assert empty.why == "there are no episodes"
    assert single.why.startswith("there is no held-out episode")
    assert {outcome.steps for outcome in skipped} == {0}
    assert enough.result is not Result.SKIPPED


def test_a_run_ends_when_its_time_has_expired(config: Config, reservoir: Reservoir) -> None:
    trainer = make_trainer(config, reservoir)
    asked = iter([False, False, False, True])

    short = trainer.run(STEPS, expired=lambda: next(asked))
    none = trainer.run(STEPS, expired=lambda: True)

    assert short.steps == 3
    assert (none.result, none.why) == (Result.SKIPPED, "there was no time for a step")


def test_a_stop_while_it_judges_ends_the_run_without_a_candidate(
    config: Config, reservoir: Reservoir
) -> None:
    trainer = make_trainer(config, reservoir)
    asked = iter([False] * 4 + [True])

    outcome = trainer.run(STEPS, stopped=lambda: next(asked))

    assert (outcome.result, outcome.why, outcome.steps) == (Result.SKIPPED, "stopped", STEPS)
    assert next(asked, None) is None
    assert published(trainer.run(STEPS)).version == 1


def test_a_restored_trainer_goes_on_to_the_bit(config: Config, reservoir: Reservoir) -> None:
    trainer = make_trainer(config, reservoir)
    first = published(trainer.run(STEPS))
    trainer.adopt(first)
    trainer.run(5)
    kept = trainer.checkpoint()
    whole = trainer.run(STEPS)

    restarted = Trainer(config, decode(encode(first)), fill(config, contexts=60, events=200))
    assert restarted.restore(kept) == ""
    resumed = restarted.run(STEPS)

    assert resumed.losses == whole.losses
    assert same(published(resumed), published(whole))
    anew = Trainer(config, first, reservoir).run(STEPS)
    assert not same(published(anew), published(whole))


def test_the_same_run_twice_gives_the_same_bits(config: Config, reservoir: Reservoir) -> None:
    one, other = (make_trainer(config, reservoir).run(STEPS) for _ in range(2))

    assert same(published(one), published(other))
    assert one.report == other.report


def cut(payload: bytes) -> bytes:
    return payload[:-9]


def flipped(payload: bytes) -> bytes:
    at = len(payload) // 2
    return payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda _: b"", lambda _: b"no checkpoint at all"])
def test_a_damaged_checkpoint_is_left_aside(
    config: Config, reservoir: Reservoir, damage: Callable[[bytes], bytes]
) -> None:
    trainer = make_trainer(config, reservoir)
    before = trainer.checkpoint()

    assert "damaged" in trainer.restore(damage(before))

    assert trainer.checkpoint() == before


def test_a_checkpoint_of_something_else_is_left_aside(config: Config, reservoir: Reservoir) -> None:
    kept = make_trainer(config, reservoir).checkpoint()
    another = Trainer(config, other_start(config), reservoir)
    by_rule = make_trainer(make_config(**QUICK, rule="metasgd"), reservoir)
    by_nets = make_trainer(make_config(**QUICK, feature_nets=False), reservoir)
    wide = make_config(width=12, **QUICK)
    model = make_trainer(wide, Reservoir(wide))

    assert another.restore(kept) == "it belongs to another initialization"
    assert by_rule.restore(kept) == "it was trained by the rule fomaml"
    assert by_nets.restore(kept) == "it holds the nets ['f', 'g', 'network']"
    assert "another model" in model.restore(kept)
    assert make_trainer(config, reservoir).restore(kept) == ""


def test_somebody_elses_version_begins_with_a_fresh_optimizer(
    config: Config, reservoir: Reservoir
) -> None:
    trainer = make_trainer(config, reservoir)
    trainer.adopt(published(trainer.run(STEPS)))
    theirs = other_start(config)

    trainer.adopt(theirs)

    fresh = Trainer(config, theirs, reservoir)
    assert states_equal(nets.pack_states(trainer._states), nets.pack_states(fresh._states))
    candidate = trainer.run(STEPS).candidate
    assert candidate is not None
    assert (candidate.version, candidate.parent) == (5, 4)


def test_the_same_initialization_again_keeps_the_optimizer(
    config: Config, reservoir: Reservoir
) -> None:
    trainer = make_trainer(config, reservoir)
    trainer.adopt(published(trainer.run(STEPS)))
    before = trainer.checkpoint()

    trainer.adopt(replace(trainer.incumbent, version=6, parent=5))

    assert trainer.checkpoint() == before
    assert trainer.incumbent.version == 6


def test_whatever_becomes_the_incumbent_ends_what_began_elsewhere_and_what_waits(
    config: Config, reservoir: Reservoir
) -> None:
    source = other_start(config)
    trainer = make_trainer(config, reservoir, start_from=source)
    late = published(trainer.run(STEPS))

    trainer.adopt(replace(trainer.incumbent, version=6, parent=5))
    plain = nets.pack_states(make_trainer(config, reservoir)._states)
    fresh = states_equal(nets.pack_states(trainer._states), plain)
    trainer.adopt(late)

    begun = nets.pack_states(Trainer(config, late, reservoir)._states)
    assert fresh
    assert states_equal(nets.pack_states(trainer._states), begun)


def test_training_may_begin_with_another_domain_until_the_gate_says_no(
    config: Config, reservoir: Reservoir
) -> None:
    elsewhere = published(make_trainer(config, reservoir).run(200))
    spec = replace(elsewhere.spec, schema="another domain's")
    source = Initialization(spec=spec, tensors=elsewhere.tensors, version=12, classes=("x", "y"))
    trainer = make_trainer(config, reservoir, start_from=source)

    candidate = published(trainer.run(1))

    assert candidate.spec == trainer.incumbent.spec
    assert (candidate.version, candidate.parent, candidate.classes) == (1, 0, ())
    assert np.abs(candidate.theta() - elsewhere.theta()).max() < 0.02
    wild = make_trainer(make_config(**QUICK | {"learning_rate": 3.0}), reservoir, start_from=source)
    assert wild.run(20).result is Result.REJECTED
    plain = make_trainer(config, reservoir)
    assert states_equal(nets.pack_states(wild._states), nets.pack_states(plain._states))


def test_another_domain_of_other_sizes_is_no_start(config: Config, reservoir: Reservoir) -> None:
    source = version_zero(make_config(width=12))

    with pytest.raises(MisfitError, match=r"sizes \(24, 16, 16, 2\) there, \(20, 16, 16, 2\) here"):
        make_trainer(config, reservoir, start_from=source)
