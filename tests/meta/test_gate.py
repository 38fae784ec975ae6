"""The gate: what it lets through, what it keeps out, and what it says of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streammaml.config import Config, spec_of
from streammaml.errors import ConfigError
from streammaml.initialization import NETWORK, Initialization, draw
from streammaml.meta import nets
from streammaml.meta.episodes import Episodes, Held
from streammaml.meta.gate import (
    CHUNK,
    EPISODES_LEAST,
    Limits,
    NetVerdict,
    StoppedError,
    Verdict,
    judge,
)
from streammaml.meta.losses import Examples
from streammaml.meta.nets import Tensors, part_of
from streammaml.meta.outer_loop import OuterSettings, task_losses
from streammaml.meta.reservoir import Reservoir
from streammaml.starts import version_zero
from tests.meta.build import REGRESSION, make_spec
from tests.meta.episode_maker import fill, make_config

LIMITS = Limits(margin=0.02, clip_norm=5.0)


@pytest.fixture(scope="module", name="config")
def make_the_config() -> Config:
    return make_config()


@pytest.fixture(scope="module", name="reservoir")
def make_reservoir(config: Config) -> Reservoir:
    return fill(config, contexts=60, events=200)


@pytest.fixture(scope="module", name="held")
def make_held(reservoir: Reservoir) -> Held:
    held = reservoir.held_out(512)
    assert held is not None
    return held


@pytest.fixture(scope="module", name="drawn")
def make_drawn(config: Config) -> Initialization:
    return version_zero(config)


@pytest.fixture(scope="module", name="trained")
def make_trained(reservoir: Reservoir, drawn: Initialization) -> Initialization:
    """A version of all three nets after a few outer steps."""
    rng = np.random.default_rng(0)
    settings = OuterSettings(learning_rate=5e-3)
    run = nets.descend(
        nets.begin(drawn, settings, True, 0), lambda: reservoir.train(rng, 24), 150, settings
    )
    trained = drawn
    for net, state in run.states.items():
        trained = nets.with_net(trained, net, nets.tensors_of(state, drawn))
    return replace(trained, version=3, parent=0)


def judged(
    candidate: Tensors,
    incumbent: Initialization,
    held: Held,
    limits: Limits = LIMITS,
    net: str = NETWORK,
) -> tuple[NetVerdict, Verdict]:
    starts = nets.drawn_nets(incumbent, 0)
    verdict = judge({net: candidate}, incumbent, starts, held, limits)
    return verdict.nets[net], verdict


def network(initialization: Initialization, **changed: NDArray[np.float32]) -> dict[str, Any]:
    return part_of(initialization.tensors, NETWORK) | changed


def few(held: Held, episodes: int, contexts: int) -> Held:
    """The first episodes, as if of so many contexts."""
    support, query = (
        Examples(part.inputs[:episodes], part.targets[:episodes], part.weights[:episodes])
        for part in held.episodes
    )
    return Held(Episodes(support, query), np.arange(episodes) % contexts)


def test_a_candidate_that_adapts_better_passes_with_all_its_nets(
    drawn: Initialization, trained: Initialization, held: Held
) -> None:
    parts = {net: part_of(trained.tensors, net) for net in (NETWORK, "f", "g")}

    verdict = judge(parts, drawn, nets.drawn_nets(drawn, 0), held, LIMITS)

    assert verdict.passed
    assert verdict.why == ""
    for net in verdict.nets.values():
        assert net.passed
        assert net.loss_candidate < net.loss_incumbent - 0.02
        assert net.loss_candidate < net.loss_unadapted
    assert set(verdict.merged.tensors) == set(trained.tensors)
    assert verdict.merged.version == 0
    for name, tensor in trained.tensors.items():
        assert np.array_equal(verdict.merged.tensors[name], tensor)


def test_one_that_is_equal_passes_without_a_margin(trained: Initialization, held: Held) -> None:
    found, _ = judged(network(trained), trained, held, LIMITS._replace(margin=0.0))

    assert found.passed
    assert (found.mean_difference, found.standard_error) == (0.0, 0.0)
    assert found.norm_ratio == pytest.approx(1.0)


def test_one_that_means_the_other_label_is_rejected(config: Config, drawn: Initialization) -> None:
    reservoir = fill(config, contexts=60, events=200, shared=True)
    rng = np.random.default_rng(0)
    settings = OuterSettings(learning_rate=5e-3)
    states = nets.begin(drawn, settings, False, 0)
    run = nets.descend(states, lambda: reservoir.train(rng, 24), 100, settings)
    good = {**nets.tensors_of(run.states[NETWORK], drawn)}
    flipped = good | {name: good[name][..., ::-1].copy() for name in ("2.weight", "2.bias")}
    incumbent = nets.with_net(replace(drawn, version=1), NETWORK, good)
    held = reservoir.held_out(512)
    assert held is not None

    found, verdict = judged(flipped, incumbent, held)

    assert not found.passed
    assert found.mean_difference > 0.2
    assert "higher, at most" in found.why
    assert not verdict.passed
    assert verdict.merged.tensors == incumbent.tensors


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("net", "tensor"), [(NETWORK, "1.weight"), (NETWORK, "rates"), ("g", "g/head")]
)
def test_one_that_is_not_finite_is_rejected(
    trained: Initialization, held: Held, net: str, tensor: str, value: float
) -> None:
    own = part_of(trained.tensors, net)
    own[tensor] = own[tensor].copy()
    own[tensor].flat[3] = value

    found, verdict = judged(own, trained, held, net=net)

    assert found == NetVerdict(passed=False, why="it holds a value that is not finite")
    assert verdict.merged.tensors == trained.tensors


def test_one_that_diverges_on_an_episode_is_rejected(trained: Initialization, held: Held) -> None:
    wild = {"2.bias": np.array([3e38, -3e38], np.float32)}

    found, _ = judged(network(trained, **wild), trained, held)

    assert not found.passed
    assert found.why == "its loss on held-out episodes is not finite"


@pytest.mark.parametrize(
    ("net", "group"), [(NETWORK, "rates"), (NETWORK, "0.weight"), ("f", "f/head")]
)
def test_tensors_that_have_grown_tenfold_are_rejected_whatever_they_score(
    trained: Initialization, held: Held, net: str, group: str
) -> None:
    own = part_of(trained.tensors, net)
    own[group] = own[group] * 25

    found, _ = judged(own, trained, held, Limits(margin=1e9, clip_norm=5.0), net)

    assert not found.passed
    assert found.norm_ratio > 10
    assert "times as long" in found.why


def test_what_starts_at_nothing_may_become_something(drawn: Initialization, held: Held) -> None:
    small = {"2.bias": np.full(2, 0.4, np.float32)}
    head = part_of(nets.drawn_nets(drawn, 0)["f"], "f")
    head["f/head"] = np.full_like(head["f/head"], 0.5)

    biased, _ = judged(network(drawn, **small), drawn, held, Limits(1e9, 5.0))
    headed, _ = judged(head, drawn, held, Limits(1e9, 5.0), "f")

    assert biased.passed
    assert headed.passed
    assert headed.norm_ratio == pytest.approx(5.0)


def test_a_rate_for_each_parameter_counts_by_the_steps_that_it_makes(
    drawn: Initialization, held: Held
) -> None:
    count = len(drawn.theta())
    own = network(drawn)
    own["rates"] = np.ones_like(own["rates"])
    own["parameter_rates"] = np.full(count, 0.1, np.float32)

    found, verdict = judged(own, drawn, held)

    assert found.passed
    assert found.norm_ratio == pytest.approx(1.0, rel=1e-5)
    assert "parameter_rates" in verdict.merged.tensors


def test_the_bound_is_the_mean_and_its_error_over_contexts_against_a_share_of_the_loss(
    trained: Initialization, held: Held
) -> None:
    rng = np.random.default_rng(5)
    moved = {"2.weight": trained.tensors["2.weight"] + rng.normal(0, 0.05, (16, 2))}
    own = network(trained, **{n: t.astype(np.float32) for n, t in moved.items()})
    before, after = (
        task_losses(nets.with_net(trained, NETWORK, part), held.episodes).adapted.numpy()
        for part in (network(trained), own)
    )
    of = [held.contexts == c for c in sorted(set(held.contexts.tolist()))]
    differences = [float((after - before)[own_].mean()) for own_ in of]
    loss = float(np.mean([before[own_].mean() for own_ in of]))
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(of))
    bound = float(np.mean(differences)) + 1.645 * error
    assert bound > 0

    passed, _ = judged(own, trained, held, Limits(bound / loss * 1.001, 5.0))
    rejected, _ = judged(own, trained, held, Limits(bound / loss * 0.999, 5.0))

    assert (passed.passed, rejected.passed) == (True, False)
    assert passed.mean_difference == pytest.approx(np.mean(differences), rel=1e-4)
    assert passed.loss_incumbent == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("episodes", "contexts"), [(63, 20), (100, 7)])
def test_with_little_evidence_only_what_nobody_trained_may_go(
    drawn: Initialization, trained: Initialization, held: Held, episodes: int, contexts: int
) -> None:
    little = few(held, episodes, contexts)

    better, _ = judged(network(trained), drawn, little)
    worse, _ = judged(network(drawn), replace(trained, version=0), little)
    later, _ = judged(network(trained), replace(drawn, version=1), little)
    enough, _ = judged(network(trained), replace(drawn, version=1), few(held, 64, 8))

    assert better.passed
    assert not worse.passed
    assert "higher, and there are not" in worse.why
    assert not later.passed
    assert "it takes 64 held-out episodes of 8 contexts" in later.why
    assert enough.passed


def test_nobody_can_ask_for_too_few_episodes_to_replace_anything() -> None:
    assert make_config(validation=EPISODES_LEAST).outer.validation == EPISODES_LEAST
    with pytest.raises(ConfigError, match=f"greater than or equal to {EPISODES_LEAST}"):
        make_config(validation=EPISODES_LEAST - 1)


def test_a_net_that_the_incumbent_lacks_is_held_against_its_own_start(
    drawn: Initialization, trained: Initialization, held: Held
) -> None:
    earlier = replace(drawn, version=5)
    little = few(held, 20, 4)

    found, verdict = judged(part_of(trained.tensors, "g"), earlier, little, net="g")

    assert found.passed
    assert set(part_of(verdict.merged.tensors, "g")) == set(part_of(trained.tensors, "g"))
    assert part_of(verdict.merged.tensors, "f") == {}
    start, _ = judged(nets.drawn_nets(drawn, 0)["g"], earlier, little, net="g")
    assert start.mean_difference == 0.0
    assert start.loss_candidate == pytest.approx(found.loss_incumbent)


def test_the_net_that_fails_stays_as_it_was_beside_the_one_that_passes(
    drawn: Initialization, trained: Initialization, held: Held
) -> None:
    broken = {name: tensor * np.nan for name, tensor in part_of(trained.tensors, "f").items()}
    parts = {NETWORK: part_of(trained.tensors, NETWORK), "f": broken}

    verdict = judge(parts, drawn, nets.drawn_nets(drawn, 0), held, LIMITS)

    assert verdict.passed
    assert verdict.why == "f: it holds a value that is not finite"
    assert part_of(verdict.merged.tensors, "f") == {}
    assert np.array_equal(verdict.merged.theta(), trained.theta())


def test_an_incumbent_that_diverges_does_not_stand_in_the_way(
    trained: Initialization, held: Held
) -> None:
    wild = network(trained, **{"2.bias": np.array([3e38, -3e38], np.float32)})
    broken = nets.with_net(trained, NETWORK, wild)

    found, verdict = judged(network(trained), broken, held)

    assert found.passed
    assert verdict.report()["nets"][NETWORK]["loss_incumbent"] is None


def test_a_loss_below_zero_has_a_margin_all_the_same(held: Held) -> None:
    spec = make_spec(REGRESSION, sizes=(20, 8, 1))
    drawn = draw(spec, 0)
    support, query = (part._replace(targets=0.01 * part.inputs[..., 0]) for part in held.episodes)
    quiet = Held(Episodes(support, query), held.contexts)
    start = nets.drawn_nets(drawn, 0)["g"]
    known = {**start, "g/log_noise": np.array(-6.0, np.float32)}
    incumbent = nets.with_net(replace(drawn, version=1), "g", known)
    worse = {**known, "g/log_noise": np.array(-5.99, np.float32)}

    found, _ = judged(worse, incumbent, quiet, net="g")

    assert found.loss_incumbent < -1
    assert found.mean_difference > 0
    assert found.passed


def test_the_report_is_json_and_says_whose_child_it_is(
    config: Config, trained: Initialization, held: Held
) -> None:
    own = network(trained, rates=trained.tensors["rates"] * np.nan)

    _, verdict = judged(own, trained, held)

    report = json.loads(json.dumps(verdict.report(), allow_nan=False))
    assert report["parent"] == 3
    assert report["schema"] == spec_of(config).schema
    assert report["fingerprint"] == spec_of(config).fingerprint
    assert report["episodes"] == len(held.contexts)
    assert report["contexts"] == len(set(held.contexts.tolist()))
    assert report["nets"][NETWORK] == {
        "passed": False,
        "why": "it holds a value that is not finite",
        "loss_incumbent": None,
        "loss_candidate": None,
        "loss_unadapted": None,
        "mean_difference": None,
        "standard_error": None,
        "norm_ratio": None,
    }


def test_many_episodes_are_judged_in_small_stacks_with_the_losses_of_one(
    drawn: Initialization, trained: Initialization, held: Held
) -> None:
    asked = iter(range(10**6))
    limits = LIMITS._replace(stopped=lambda: next(asked) < 0)
    parts = {net: part_of(trained.tensors, net) for net in (NETWORK, "f", "g")}

    verdict = judge(parts, drawn, nets.drawn_nets(drawn, 0), held, limits)

    stacks = math.ceil(len(held.contexts) / CHUNK)
    assert stacks > 3
    assert next(asked) == len(parts) * 2 * stacks
    whole = task_losses(trained, held.episodes).adapted.double().numpy()
    places = np.unique(held.contexts, return_inverse=True)[1]
    means = np.bincount(places, whole) / np.bincount(places)
    assert verdict.nets[NETWORK].loss_candidate == pytest.approx(float(means.mean()), rel=1e-5)


def test_the_gate_ends_before_the_next_stack_when_it_is_told_to(
    drawn: Initialization, trained: Initialization, held: Held
) -> None:
    asked = iter([False, False, True])
    limits = LIMITS._replace(stopped=lambda: next(asked))

    with pytest.raises(StoppedError):
        judged(network(trained), drawn, held, limits)
