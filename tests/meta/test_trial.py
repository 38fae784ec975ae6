"""Modules that take some care train by the textbook's gradients; what cannot be is said at once."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from streammaml.config import Config
from streammaml.errors import ConfigError
from streammaml.initialization import Initialization, Spec
from streammaml.meta.modules import ModuleNetwork, network_of
from streammaml.meta.outer_loop import Meta, OuterSettings, Rule, meta_loss
from streammaml.meta.trial import try_out
from streammaml.starts import version_zero
from tests.meta import odd_modules, textbook
from tests.meta.build import CLASSES, make_episodes, make_spec
from tests.meta.odd_modules import PATH

ERROR = 1e-9
INPUTS, OUTPUTS, STEPS = 8, 3, 2
AT_ONCE = ["attentive", "Scaled", "Shifted"]
ONE_BY_ONE = ["gru", "lstm", "Branching", "Writing"]


def made(name: str) -> nn.Module:
    module: nn.Module = getattr(odd_modules, name)(INPUTS, OUTPUTS)
    return module


def begin(name: str) -> Initialization:
    module = made(name)
    tensors = {n: p.detach().numpy().copy() for n, p in module.named_parameters()}
    spec = Spec(
        task=CLASSES,
        sizes=(INPUTS, OUTPUTS),
        steps=STEPS,
        schema="t",
        network=f"{PATH}:{name}",
        parameters=tuple((n, t.shape) for n, t in tensors.items()),
    )
    rates = torch.full((STEPS, len(tensors)), 0.1).numpy()
    return Initialization(spec=spec, tensors={**tensors, "rates": rates})


@pytest.mark.parametrize("rule", [Rule.FOMAML, Rule.MAML, Rule.ANIL])
@pytest.mark.parametrize("name", AT_ONCE + ONE_BY_ONE)
def test_its_outer_gradients_are_the_textbooks(name: str, rule: Rule) -> None:
    module = made(name).double()
    generator = torch.Generator().manual_seed(3)
    parameters = {
        n: (0.4 * torch.randn(p.shape, generator=generator, dtype=p.dtype)).requires_grad_()
        for n, p in module.named_parameters()
    }
    rates = torch.full((STEPS, len(parameters)), 0.3, dtype=torch.float64)
    if rule is Rule.ANIL:
        rates[:, :-2] = 0
    rates.requires_grad_()
    episodes = make_episodes(make_spec(sizes=(INPUTS, OUTPUTS)), dtype=torch.float64)
    given = [*parameters.values(), rates]

    network = ModuleNetwork(made(name).double())
    total = meta_loss(Meta(parameters, rates, None), episodes, OuterSettings(rule=rule), network)
    found = torch.autograd.grad(total, given)

    lengths = [
        {n: rate for n, rate in zip(parameters, row, strict=True) if rate != 0} for row in rates
    ]
    with sdpa_kernel(SDPBackend.MATH):
        expected = textbook.meta_loss(
            lambda p, x: functional_call(module.train(), p, (x,)),
            parameters,
            lengths,
            episodes,
            second_order=rule is not Rule.FOMAML,
        )
    wanted = torch.autograd.grad(expected, given)
    torch.testing.assert_close(total, expected, atol=ERROR, rtol=ERROR)
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, atol=ERROR, rtol=ERROR)
    assert any(bool(a.any()) for a in found)


@cache
def at_once(name: str) -> bool:
    return try_out(begin(name), Rule.MAML, 32)


@pytest.mark.parametrize("name", [*AT_ONCE, *ONE_BY_ONE, "Layers"])
def test_a_trial_says_whether_all_tasks_run_at_once(name: str) -> None:
    assert at_once(name) == (name not in ONE_BY_ONE)
    network = network_of(begin(name).spec)
    assert isinstance(network, ModuleNetwork)
    assert network.batches == at_once(name)


def test_the_built_in_network_needs_no_trial() -> None:
    config = Config.build({"features": [{"name": "a"}], "label": {"task": "regression"}})

    assert try_out(version_zero(config), Rule.MAML, 32)


def test_a_module_without_a_second_derivative_is_refused_with_the_rules_that_do_without() -> None:
    assert not try_out(begin("Once"), Rule.FOMAML, 32)

    with pytest.raises(ConfigError) as refused:
        try_out(begin("Once"), Rule.MAML, 32)

    assert str(refused.value) == (
        f"learner.network: the rule maml cannot train {PATH}:Once: set outer.rule to fomaml or "
        "anil or reptile; NotImplementedError: no second derivative"
    )


def test_a_module_that_hides_a_parameter_is_refused_with_the_cure() -> None:
    cure = r"forward has body.weight from a list .*; let it read the module's attributes"
    with pytest.raises(ConfigError, match=cure):
        try_out(begin("Hidden"), Rule.REPTILE, 32)


class Adding(nn.Linear):
    """Changes its inputs in place."""

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return super().forward(x)


@pytest.mark.parametrize("batches", [True, False])
def test_inputs_stay_what_they_were(batches: bool) -> None:
    network = ModuleNetwork(Adding(4, 2))
    network.batches = batches
    shared = {n: p.detach() for n, p in network._module.named_parameters()}
    stacked = {n: p.expand(3, *p.shape) for n, p in shared.items()}
    inputs = torch.zeros(3, 5, 4)

    outputs = [network.apply(parameters, inputs) for parameters in (shared, stacked)]

    assert not inputs.any()
    torch.testing.assert_close(outputs[1], outputs[0])
    assert network.batches == batches
