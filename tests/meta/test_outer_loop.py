"""The meta-gradient equals the textbook's, and the steps along it torch's Adam."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional

from streammaml.events import Task
from streammaml.initialization import Spec, draw
from streammaml.meta.episodes import Episodes
from streammaml.meta.networks import Parameters, split
from streammaml.meta.outer_loop import (
    Meta,
    OuterSettings,
    OuterState,
    Rule,
    evaluate,
    finish,
    meta_loss,
    outer_step,
    refine,
    start,
    task_losses,
)
from tests.meta.build import (
    CLASSES,
    REGRESSION,
    largest_norm,
    leaves,
    make_episodes,
    make_parameters,
    make_rates,
    make_spec,
    part,
    textbook_adapt,
    textbook_loss,
    textbook_meta_loss,
)

LOOSE, ACTIVE = 5.0, 0.3


def gradients(
    spec: Spec, episodes: Episodes, rule: Rule, clip: float, dtype: torch.dtype = torch.float32
) -> tuple[Parameters, Tensor]:
    """Gradient of the package's meta-loss by the parameters and by the rates."""
    parameters = leaves(make_parameters(spec, dtype=dtype))
    rates = make_rates(spec, dtype=dtype).requires_grad_()
    total = meta_loss(
        Meta(parameters, rates, None), episodes, OuterSettings(rule=rule, inner_clip=clip)
    )
    *by_parameters, by_rates = torch.autograd.grad(total, [*parameters.values(), rates])
    return dict(zip(parameters, by_parameters, strict=True)), by_rates


def descent_tensors(state: OuterState) -> list[Tensor]:
    return [state.descent.vector, state.descent.mean, state.descent.square]


@pytest.mark.parametrize("clip", [LOOSE, ACTIVE])
@pytest.mark.parametrize("task", [CLASSES, REGRESSION])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_meta_gradient_equals_the_second_order_one_of_the_textbook(
    dtype: torch.dtype, error: float, task: Task, clip: float
) -> None:
    spec = make_spec(task)
    parameters, rates = make_parameters(spec, dtype=dtype), make_rates(spec, dtype=dtype)
    episodes = make_episodes(spec, dtype=dtype)
    assert (largest_norm(parameters, episodes.support) > clip) == (clip == ACTIVE)
    expected, expected_rates = grad(textbook_meta_loss, argnums=(0, 1))(
        parameters, rates, episodes, clip
    )

    actual, actual_rates = gradients(spec, episodes, Rule.MAML, clip, dtype)

    for name in parameters:
        torch.testing.assert_close(actual[name], expected[name], atol=error, rtol=error)
    torch.testing.assert_close(actual_rates, expected_rates, atol=error, rtol=error)


def test_first_order_is_the_gradient_at_the_fast_weights_and_second_order_is_not() -> None:
    spec = make_spec()
    parameters, rates, episodes = make_parameters(spec), make_rates(spec), make_episodes(spec)
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for t in range(5):
        query = part(episodes.query, t)
        fast = textbook_adapt(parameters, rates, part(episodes.support, t), LOOSE)
        adapted, init = (grad(textbook_loss)(p, *query) for p in (fast, parameters))
        for name in expected:
            expected[name] += (adapted[name] + 0.3 * init[name]) / 5

    first, _ = gradients(spec, episodes, Rule.FOMAML, LOOSE)
    second, _ = gradients(spec, episodes, Rule.MAML, LOOSE)

    for name in expected:
        torch.testing.assert_close(first[name], expected[name], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(second["0.weight"], expected["0.weight"], rtol=1e-2)


def test_the_rates_start_as_those_of_the_initialization() -> None:
    spec = make_spec(sizes=(4, 3))
    rates = np.array([[1e-4, 0.1], [1.0, 30.0], [5.0, 0.02]], np.float32)
    drawn = draw(spec, seed=0)
    initialization = replace(drawn, tensors={**drawn.tensors, "rates": rates})

    same = finish(start(initialization), initialization)

    np.testing.assert_allclose(same.tensors["rates"], rates, rtol=2e-6)
    assert np.array_equal(same.theta(), initialization.theta())


def test_outer_steps_are_those_of_torchs_adam_behind_its_clip_of_the_norm() -> None:
    spec = make_spec()
    state = start(draw(spec, seed=0))
    theta, raw = (t.clone().requires_grad_() for t in (state.vector[:-18], state.vector[-18:]))
    adam = torch.optim.Adam([theta, raw], lr=0.01)
    settings = OuterSettings(outer_clip=0.2)
    clipped = []

    for step in range(6):
        episodes = make_episodes(spec, seed=step)
        rates = functional.softplus(raw).view(3, 6)
        adam.zero_grad()
        total = meta_loss(Meta(split(theta, spec), rates, None), episodes, settings)
        torch.autograd.backward(total)
        clipped.append(float(torch.nn.utils.clip_grad_norm_([theta, raw], 0.2)) > 0.2)
        adam.step()
        state, _ = outer_step(state, episodes, settings, learning_rate=0.01)

    assert any(clipped)
    torch.testing.assert_close(state.vector, torch.cat([theta, raw]), atol=1e-5, rtol=1e-4)
    assert (state.taken, state.skipped) == (6, 0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_meta_batch_that_is_not_finite_is_skipped_counted_and_moves_nothing(value: float) -> None:
    spec = make_spec(REGRESSION)
    state, _ = outer_step(start(draw(spec, seed=0)), make_episodes(spec), OuterSettings(), 0.01)
    before = [t.clone() for t in descent_tensors(state)]
    broken = make_episodes(spec)
    broken.support.inputs[2, 0] = value

    after, loss = outer_step(state, broken, OuterSettings(), 0.01)

    assert not math.isfinite(loss)
    assert (after.taken, after.skipped) == (1, 1)
    for moved, kept in zip(descent_tensors(after), before, strict=True):
        assert torch.equal(moved, kept)


def test_a_run_goes_on_after_a_skipped_step_and_reports_it() -> None:
    spec = make_spec(REGRESSION)
    broken = make_episodes(spec)
    broken.query.targets[0, 0] = math.nan
    batches = iter([make_episodes(spec, 1), broken, make_episodes(spec, 3)])
    calls: list[tuple[int, int, float]] = []

    _, report = refine(
        draw(spec, seed=0),
        lambda: next(batches),
        steps=3,
        on_progress=lambda done, steps, loss: calls.append((done, steps, loss)),
    )

    assert (report.taken, report.skipped) == (2, 1)
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert [math.isnan(call[2]) for call in calls] == [False, True, False]
    assert report.losses == (calls[0][2], calls[2][2])


def test_a_trained_initialization_is_the_next_version() -> None:
    spec = make_spec()
    parent = replace(draw(spec, seed=0, classes=("a", "b", "c")), version=7, parent=6)

    child, _ = refine(parent, lambda: make_episodes(spec), steps=1)

    assert (child.version, child.parent, child.classes) == (8, 7, ("a", "b", "c"))
    assert not np.array_equal(child.theta(), parent.theta())
    assert (child.tensors["rates"] > 0).all()


def test_without_episodes_the_initialization_stays_what_it_was() -> None:
    parent = draw(make_spec(), seed=0)

    same, report = refine(parent, lambda: None, steps=5)

    assert same is parent
    assert (report.taken, report.skipped, report.losses) == (0, 0, ())


def test_a_cosine_lets_the_learning_rate_fall_to_a_hundredth() -> None:
    spec = make_spec()
    episodes = make_episodes(spec)
    moves = {}
    for cosine in (False, True):
        vectors = [start(draw(spec, seed=0)).vector]
        settings = OuterSettings(cosine=cosine, learning_rate=1e-4)
        for steps in (1, 50):
            trained, _ = refine(draw(spec, seed=0), lambda: episodes, steps, settings)
            vectors.append(start(trained).vector)
        moves[cosine] = [float((b - vectors[0]).norm()) for b in vectors[1:]]

    assert moves[True][0] == pytest.approx(moves[False][0], rel=1e-3)
    assert moves[True][1] == pytest.approx(moves[False][1] / 2, rel=0.15)


def test_evaluate_is_the_mean_query_loss_of_the_textbook_before_and_after() -> None:
    spec = make_spec()
    initialization, episodes = draw(spec, seed=3), make_episodes(spec)
    parameters = {n: torch.tensor(initialization.tensors[n]) for n in spec.shapes()}
    rates = torch.tensor(initialization.tensors["rates"])
    before, after = [], []
    for t in range(5):
        fast = textbook_adapt(parameters, rates, part(episodes.support, t), LOOSE)
        before.append(float(textbook_loss(parameters, *part(episodes.query, t))))
        after.append(float(textbook_loss(fast, *part(episodes.query, t))))

    losses = task_losses(initialization, episodes)

    assert losses.init.tolist() == pytest.approx(before, rel=1e-5)
    assert losses.adapted.tolist() == pytest.approx(after, rel=1e-5)
    assert evaluate(initialization, episodes) == pytest.approx(
        (np.mean(before), np.mean(after)), rel=1e-5
    )
