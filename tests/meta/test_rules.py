"""Each rule's outer gradient is the textbook's, and moves what the rule says and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from streammaml.errors import InitializationError
from streammaml.events import Task
from streammaml.initialization import Initialization, Spec, draw
from streammaml.meta.inner_loop import InnerLoop, adapt
from streammaml.meta.losses import Loss
from streammaml.meta.networks import Parameters
from streammaml.meta.outer_loop import (
    Meta,
    OuterSettings,
    Rule,
    finish,
    meta_loss,
    meta_of,
    outer_step,
    pack,
    refine,
    start,
    task_losses,
    unpack,
)
from tests.meta import textbook
from tests.meta.build import (
    CLASSES,
    REGRESSION,
    leaves,
    make_episodes,
    make_parameters,
    make_rates,
    make_spec,
    part,
)

LOOSE, ACTIVE = 5.0, 0.3
ERROR = 1e-9
LAST = ("2.weight", "2.bias")


def every(parameters: Parameters, rates: Tensor) -> list[Parameters]:
    """The textbook's lengths: a rate of each tensor and step."""
    return [dict(zip(parameters, row, strict=True)) for row in rates]


def factors_of(spec: Spec, seed: int = 5) -> Parameters:
    drawn = make_parameters(spec, seed, torch.float64)
    return {name: 0.2 * p.abs().requires_grad_() for name, p in drawn.items()}


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=ERROR, rtol=ERROR)


@pytest.mark.parametrize("clip", [LOOSE, ACTIVE, math.inf])
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize(
    ("task", "kind"),
    [(CLASSES, Loss.DEFAULT), (REGRESSION, Loss.DEFAULT), (REGRESSION, Loss.MSE)],
)
def test_maml_and_first_order_have_the_textbooks_gradients(
    task: Task, kind: Loss, second_order: bool, clip: float
) -> None:
    spec = make_spec(task)
    parameters = leaves(make_parameters(spec, dtype=torch.float64))
    rates = make_rates(spec, dtype=torch.float64).requires_grad_()
    episodes, given = make_episodes(spec, dtype=torch.float64), [*parameters.values(), rates]
    rule = Rule.MAML if second_order else Rule.FOMAML
    settings = OuterSettings(rule=rule, loss=kind, inner_clip=clip)

    total = meta_loss(Meta(parameters, rates, None), episodes, settings)

    expected = textbook.meta_loss(
        textbook.mlp,
        parameters,
        every(parameters, rates),
        episodes,
        clip=clip,
        kind=kind,
        second_order=second_order,
    )
    torch.testing.assert_close(total, expected, atol=ERROR, rtol=ERROR)
    assert_same(torch.autograd.grad(total, given), torch.autograd.grad(expected, given))


@pytest.mark.parametrize("clip", [LOOSE, ACTIVE, math.inf])
@pytest.mark.parametrize("steps", [1, 3])
def test_metasgd_has_the_textbooks_gradients_by_a_rate_of_each_parameter(
    steps: int, clip: float
) -> None:
    spec = make_spec(steps=steps)
    parameters = leaves(make_parameters(spec, dtype=torch.float64))
    factors = {n: f.detach().requires_grad_() for n, f in factors_of(spec).items()}
    episodes = make_episodes(spec, dtype=torch.float64)
    rates = torch.ones(steps, 6, dtype=torch.float64)
    settings = OuterSettings(rule=Rule.METASGD, inner_clip=clip)
    given = [*parameters.values(), *factors.values()]

    total = meta_loss(Meta(parameters, rates, factors), episodes, settings)

    expected = textbook.meta_loss(textbook.mlp, parameters, [factors] * steps, episodes, clip=clip)
    assert_same(torch.autograd.grad(total, given), torch.autograd.grad(expected, given))


@pytest.mark.parametrize("clip", [LOOSE, ACTIVE])
def test_the_factors_learn_in_first_order_too(clip: float) -> None:
    spec = make_spec()
    parameters = leaves(make_parameters(spec, dtype=torch.float64))
    factors = {n: f.detach().requires_grad_() for n, f in factors_of(spec).items()}
    rates = make_rates(spec, dtype=torch.float64)
    episodes = make_episodes(spec, dtype=torch.float64)
    given = list(factors.values())

    total = meta_loss(Meta(parameters, rates, factors), episodes, OuterSettings(inner_clip=clip))

    lengths = [
        {n: rate * factors[n] for n, rate in zip(parameters, row, strict=True)} for row in rates
    ]
    expected = textbook.meta_loss(
        textbook.mlp, parameters, lengths, episodes, clip=clip, second_order=False
    )
    assert_same(torch.autograd.grad(total, given), torch.autograd.grad(expected, given))


@pytest.mark.parametrize("clip", [LOOSE, ACTIVE])
def test_anil_has_the_textbooks_gradients_with_steps_on_the_last_layer_only(clip: float) -> None:
    spec = make_spec()
    parameters = leaves(make_parameters(spec, dtype=torch.float64))
    rates = make_rates(spec, dtype=torch.float64)
    rates[:, :4] = 0
    rates.requires_grad_()
    episodes = make_episodes(spec, dtype=torch.float64)
    settings = OuterSettings(rule=Rule.ANIL, inner_clip=clip)
    given = [*parameters.values(), rates]

    total = meta_loss(Meta(parameters, rates, None), episodes, settings)

    lengths = [dict(zip(LAST, row[4:], strict=True)) for row in rates]
    expected = textbook.meta_loss(textbook.mlp, parameters, lengths, episodes, clip=clip)
    assert_same(torch.autograd.grad(total, given), torch.autograd.grad(expected, given))


def test_the_outer_gradient_of_reptile_is_theta_minus_the_mean_of_the_fast_weights() -> None:
    spec = make_spec()
    parameters = leaves(make_parameters(spec, dtype=torch.float64))
    rates = make_rates(spec, dtype=torch.float64)
    episodes = make_episodes(spec, dtype=torch.float64)

    total = meta_loss(Meta(parameters, rates, None), episodes, OuterSettings(rule=Rule.REPTILE))

    fast = [
        textbook.adapted(
            textbook.mlp, parameters, every(parameters, rates), part(episodes.support, t)
        )
        for t in range(5)
    ]
    expected = tuple(
        (p - torch.stack([f[name] for f in fast]).mean(0)).detach()
        for name, p in parameters.items()
    )
    assert_same(torch.autograd.grad(total, list(parameters.values())), expected)
    torch.testing.assert_close(
        total, meta_loss(Meta(parameters, rates, None), episodes, OuterSettings())
    )


def test_the_clip_looks_at_the_tensors_that_move_in_the_step_only() -> None:
    spec = make_spec(steps=2)
    parameters = make_parameters(spec, dtype=torch.float64)
    rates = make_rates(spec, dtype=torch.float64)
    rates[0, 1:] = 0
    rates[1, 2] = 0
    support = make_episodes(spec, dtype=torch.float64).support

    fast = adapt(parameters, rates, support, InnerLoop(clip_norm=0.1))

    lengths = [
        {n: rate for n, rate in zip(parameters, row, strict=True) if rate > 0} for row in rates
    ]
    for t in range(5):
        expected = textbook.adapted(
            textbook.mlp,
            leaves(parameters),
            lengths,
            part(support, t),
            clip=0.1,
            second_order=False,
        )
        for name in parameters:
            of_task = fast[name] if fast[name].dim() == parameters[name].dim() else fast[name][t]
            torch.testing.assert_close(of_task, expected[name].detach(), atol=ERROR, rtol=ERROR)


@pytest.mark.parametrize("rule", [Rule.MAML, Rule.METASGD, Rule.ANIL])
def test_without_curvature_the_second_order_is_the_first(rule: Rule) -> None:
    spec = make_spec()
    drawn, episodes = draw(spec, seed=0), make_episodes(spec)
    hinge = OuterSettings(rule=rule, loss=Loss.HINGE)
    assert OuterSettings(rule=rule).second_order
    assert not hinge.second_order

    state = start(drawn, hinge)
    after, value = outer_step(state, episodes, hinge, 0.01)

    first = replace(hinge, rule=Rule.FOMAML)
    expected, same = outer_step(state, episodes, first, 0.01)
    assert value == same
    assert torch.equal(after.vector, expected.vector)
    assert not refine(drawn, lambda: episodes, 1, hinge)[1].second_order


def test_the_first_order_hinge_has_the_textbooks_gradient() -> None:
    spec = make_spec()
    parameters = leaves(make_parameters(spec, dtype=torch.float64))
    rates = make_rates(spec, dtype=torch.float64).requires_grad_()
    episodes, given = make_episodes(spec, dtype=torch.float64), [*parameters.values(), rates]
    settings = OuterSettings(rule=Rule.MAML, loss=Loss.HINGE)

    total = meta_loss(Meta(parameters, rates, None), episodes, settings)

    expected = textbook.meta_loss(
        textbook.mlp,
        parameters,
        every(parameters, rates),
        episodes,
        kind=Loss.HINGE,
        second_order=False,
    )
    assert_same(torch.autograd.grad(total, given), torch.autograd.grad(expected, given))


def taken(rule: Rule, parent: Initialization, steps: int = 2) -> Initialization:
    settings = OuterSettings(rule=rule)
    state = start(parent, settings)
    for seed in range(steps):
        state, _ = outer_step(state, make_episodes(parent.spec, seed=seed), settings, 0.01)
    return finish(state, parent)


def test_what_each_rule_moves() -> None:
    drawn = draw(make_spec(), seed=0)
    old = drawn.tensors["rates"]

    rates = {rule: taken(rule, drawn).tensors["rates"] for rule in Rule}

    for rule in (Rule.FOMAML, Rule.MAML):
        assert (rates[rule] != old).all()
    assert not rates[Rule.ANIL][:, :4].any()
    assert (rates[Rule.ANIL][:, 4:] != old[:, 4:]).all()
    assert (rates[Rule.METASGD] == 1).all()
    assert (rates[Rule.REPTILE] == old).all()
    for rule in Rule:
        assert not np.array_equal(taken(rule, drawn).theta(), drawn.theta())


def test_metasgd_starts_where_its_parent_stands_and_the_other_rules_keep_its_factors() -> None:
    spec = make_spec()
    drawn, episodes = draw(spec, seed=0), make_episodes(spec)
    same = finish(start(drawn, OuterSettings(rule=Rule.METASGD)), drawn)

    for before, after in zip(
        task_losses(drawn, episodes), task_losses(same, episodes), strict=True
    ):
        torch.testing.assert_close(before, after)

    child = taken(Rule.METASGD, same)
    grandchild = taken(Rule.FOMAML, child)
    assert (child.tensors["parameter_rates"] > 0).all()
    assert len(set(child.tensors["parameter_rates"].tolist())) > 20
    assert np.array_equal(grandchild.tensors["parameter_rates"], child.tensors["parameter_rates"])
    assert (grandchild.tensors["rates"] != 1).all()


def test_fixed_rates_stay_to_the_bit_and_free_ones_may_turn_negative() -> None:
    drawn = draw(make_spec(REGRESSION), seed=0, rate=0.3)
    fixed = OuterSettings(rule=Rule.MAML, learn_rates=False)
    free = OuterSettings(rule=Rule.MAML, positive_rates=False)
    kept, moved = start(drawn, fixed), start(drawn, free)

    for seed in range(3):
        episodes = make_episodes(drawn.spec, seed=seed)
        kept, _ = outer_step(kept, episodes, fixed, 0.1)
        moved, _ = outer_step(moved, episodes, free, 0.4)

    assert np.array_equal(finish(kept, drawn).tensors["rates"], drawn.tensors["rates"])
    assert float(meta_of(moved).rates.min()) < 0


@pytest.mark.parametrize("rule", list(Rule))
def test_a_state_that_was_packed_goes_on_to_the_bit(rule: Rule) -> None:
    drawn, settings = draw(make_spec(), seed=0), OuterSettings(rule=rule)
    state, _ = outer_step(start(drawn, settings), make_episodes(drawn.spec), settings, 0.01)

    again = unpack(drawn, settings, *pack(state))

    for seed in (7, 8):
        episodes = make_episodes(drawn.spec, seed=seed)
        state, value = outer_step(state, episodes, settings, 0.01)
        again, same = outer_step(again, episodes, settings, 0.01)
        assert value == same
    for name, tensor in pack(state)[0].items():
        assert tensor.dtype == np.float32
        assert tensor.tobytes() == pack(again)[0][name].tobytes(), name
    assert pack(again)[1] == {"taken": 3, "skipped": 0}


@pytest.mark.parametrize("other", [Rule.METASGD, Rule.ANIL, Rule.REPTILE])
def test_a_checkpoint_of_another_rule_is_refused(other: Rule) -> None:
    drawn = draw(make_spec(), seed=0)
    packed = pack(start(drawn, OuterSettings()))

    with pytest.raises(InitializationError, match="checkpoint"):
        unpack(drawn, OuterSettings(rule=other), *packed)


def test_the_feature_nets_of_a_parent_stay_in_its_child() -> None:
    drawn = draw(make_spec(), seed=0)
    nets = {
        name: np.ones(shape, np.float32)
        for name, shape in drawn.spec.optional_shapes().items()
        if name.startswith("f/")
    }
    parent = replace(drawn, tensors={**drawn.tensors, **nets})

    child = taken(Rule.FOMAML, parent)

    assert all(np.array_equal(child.tensors[name], nets[name]) for name in nets)
