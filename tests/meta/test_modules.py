"""Any torch module has the textbook's outer gradients, and none of its own numbers changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from streammaml.errors import ConfigError
from streammaml.initialization import Initialization, Spec
from streammaml.meta.episodes import Episodes
from streammaml.meta.losses import Examples, Loss
from streammaml.meta.modules import ModuleNetwork, network_of
from streammaml.meta.networks import MLP, Parameters
from streammaml.meta.outer_loop import (
    Meta,
    OuterSettings,
    Rule,
    finish,
    meta_loss,
    outer_step,
    start,
    task_losses,
)
from tests.meta import textbook
from tests.meta.build import CLASSES, leaves, make_episodes, make_parameters, make_rates, make_spec

ERROR = 1e-9
PATH = "tests.meta.test_modules"


def plain(inputs: int, outputs: int) -> nn.Module:
    """What the built-in network with 8 and 6 hidden numbers computes."""
    return nn.Sequential(
        nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, outputs)
    )


class Images(nn.Module):
    """Reshapes its inputs to 4 × 4, and normalises without a look at other examples."""

    shift: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(0.25))
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.view(-1, 1, 4, 4) + self.shift)).tanh()
        outputs: Tensor = self.head(functional.avg_pool2d(x, 2).flatten(1))
        return outputs


class Scaled(Images):
    """Something comes after the last layer, so that it does not stand alone."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def images(inputs: int, outputs: int) -> nn.Module:
    assert inputs == 16
    return Images(outputs)


def scaled(inputs: int, outputs: int) -> nn.Module:
    assert inputs == 16
    return Scaled(outputs)


def normalised(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))


def spec_of(factory: str, steps: int = 2) -> Spec:
    path = f"{PATH}:{factory}"
    module = globals()[factory](16, 3)
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    return Spec(
        task=CLASSES, sizes=(16, 3), steps=steps, schema="t", network=path, parameters=shapes
    )


def forward_images(parameters: Parameters, x: Tensor, scale: float = 1.0) -> Tensor:
    """The same as ``Images``, written out."""
    x = x.view(-1, 1, 4, 4) + 0.25
    x = functional.conv2d(x, parameters["conv.weight"], parameters["conv.bias"], padding=1)
    x = functional.group_norm(x, 2, parameters["norm.weight"], parameters["norm.bias"]).tanh()
    x = functional.avg_pool2d(x, 2).flatten(1)
    return scale * functional.linear(x, parameters["head.weight"], parameters["head.bias"])


def drawn(spec: Spec) -> Parameters:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for name, shape in spec.shapes().items()
    }


def sixteen(seed: int = 2, dtype: torch.dtype = torch.float64) -> Episodes:
    return make_episodes(make_spec(sizes=(16, 3)), seed, dtype)


def of_torch(parameters: Parameters) -> Parameters:
    """The built-in network's parameters under the names and layout of ``plain``."""
    return {
        f"{2 * int(name[0])}{name[1:]}": (p.mT if p.dim() == 2 else p)
        for name, p in parameters.items()
    }


@pytest.mark.parametrize("kind", [Loss.DEFAULT, Loss.HINGE])
@pytest.mark.parametrize("rule", list(Rule))
def test_a_module_equal_to_the_built_in_network_has_its_outer_gradients(
    rule: Rule, kind: Loss
) -> None:
    spec = make_spec()
    parameters = leaves(make_parameters(spec, dtype=torch.float64))
    rates = make_rates(spec, dtype=torch.float64)
    if rule is Rule.ANIL:
        rates[:, :4] = 0
    rates.requires_grad_(rule is not Rule.REPTILE)
    episodes, settings = (
        make_episodes(spec, dtype=torch.float64),
        OuterSettings(rule=rule, loss=kind),
    )
    given = [*parameters.values(), *([rates] if rates.requires_grad else [])]

    network = ModuleNetwork(plain(4, 3))
    total = meta_loss(Meta(of_torch(parameters), rates, None), episodes, settings, network)

    expected = meta_loss(Meta(parameters, rates, None), episodes, settings, MLP)
    torch.testing.assert_close(total, expected, atol=ERROR, rtol=ERROR)
    found, wanted = (torch.autograd.grad(t, given) for t in (total, expected))
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, atol=ERROR, rtol=ERROR)


@pytest.mark.parametrize("rule", [Rule.FOMAML, Rule.MAML, Rule.ANIL])
@pytest.mark.parametrize(("factory", "scale"), [("images", 1.0), ("scaled", 2.0)])
def test_a_convolution_has_the_textbooks_outer_gradients(
    factory: str, scale: float, rule: Rule
) -> None:
    spec = spec_of(factory)
    parameters, episodes = drawn(spec), sixteen()
    rates = torch.full((2, 6), 0.3, dtype=torch.float64)
    if rule is Rule.ANIL:
        rates[:, :4] = 0
    rates.requires_grad_()
    given = [*parameters.values(), rates]

    total = meta_loss(
        Meta(parameters, rates, None), episodes, OuterSettings(rule=rule), network_of(spec)
    )

    lengths = [
        {n: rate for n, rate in zip(parameters, row, strict=True) if rate != 0} for row in rates
    ]
    expected = textbook.meta_loss(
        lambda p, x: forward_images(p, x, scale),
        parameters,
        lengths,
        episodes,
        second_order=rule is not Rule.FOMAML,
    )
    torch.testing.assert_close(total, expected, atol=ERROR, rtol=ERROR)
    found, wanted = (torch.autograd.grad(t, given) for t in (total, expected))
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, atol=ERROR, rtol=ERROR)


@pytest.mark.parametrize("factory", ["images", "scaled"])
@pytest.mark.parametrize("rule", list(Rule))
def test_task_by_task_gives_what_all_at_once_give(rule: Rule, factory: str) -> None:
    parameters, episodes = drawn(spec_of(factory)), sixteen()
    rates = torch.full((2, 6), 0.3, dtype=torch.float64)
    if rule is Rule.ANIL:
        rates[:, :4] = 0
    factors = None
    if rule is Rule.METASGD:
        factors = {n: (1 + p.detach().abs()).requires_grad_() for n, p in parameters.items()}
    rates.requires_grad_(rule is not Rule.REPTILE)
    given = [*parameters.values(), *([rates] if rates.requires_grad else [])]
    given += list((factors or {}).values())

    totals, found = [], []
    for batches in (True, False):
        network = ModuleNetwork(globals()[factory](16, 3))
        network.batches = batches
        meta = Meta(parameters, rates, factors)
        totals.append(meta_loss(meta, episodes, OuterSettings(rule=rule), network))
        found.append(torch.autograd.grad(totals[-1], given))
        assert network.batches == batches

    torch.testing.assert_close(totals[0], totals[1], atol=ERROR, rtol=ERROR)
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e, atol=ERROR, rtol=ERROR)


def test_the_body_runs_once_where_only_the_last_layer_moves() -> None:
    calls: list[torch.Size] = []
    module = Images(3)
    module.conv.register_forward_hook(lambda _, given, __: calls.append(given[0].shape))
    parameters = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    rates = torch.tensor([[0, 0, 0, 0, 0.1, 0.1]] * 5)
    episodes = sixteen(dtype=torch.float32)

    total = meta_loss(
        Meta(parameters, rates, None),
        episodes,
        OuterSettings(rule=Rule.ANIL),
        ModuleNetwork(module),
    )

    assert calls == [torch.Size([5 * (7 + 4), 1, 4, 4])]
    assert total.isfinite()


def test_outer_steps_leave_the_module_alone_and_lessen_the_loss() -> None:
    spec = spec_of("images")
    module = images(16, 3)
    tensors = {n: p.detach().numpy().copy() for n, p in module.named_parameters()}
    rates = torch.full((2, 6), 0.1).numpy()
    begin = Initialization(spec=spec, tensors={**tensors, "rates": rates})
    network, settings = network_of(spec), OuterSettings()
    assert network is network_of(spec)
    episodes = sixteen(dtype=torch.float32)

    state = start(begin, settings)
    before = copy.deepcopy(state)
    for _ in range(15):
        state, _ = outer_step(state, episodes, settings, 0.01)
    trained = finish(state, begin)

    old, new = (task_losses(i, episodes).adapted.mean() for i in (begin, trained))
    assert new < old - 0.1
    assert state.taken == 15
    assert torch.equal(start(begin, settings).vector, before.vector)


def test_batch_normalisation_is_refused_with_its_cure() -> None:
    with pytest.raises(ConfigError, match=r"1 is a BatchNorm1d.*use GroupNorm or LayerNorm"):
        ModuleNetwork(normalised(4, 2))


class Counting(nn.Module):
    """Adds how often it was called before, by a buffer that it changes in place."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x) + self.calls
        self.calls += 1
        return outputs


def test_buffers_stay_what_they_were() -> None:
    module = Counting()
    shared = {n: p.detach() for n, p in module.named_parameters()}
    stacked = {n: p.expand(3, *p.shape) for n, p in shared.items()}
    inputs = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    network = ModuleNetwork(module)

    outputs = [network.apply(p, inputs) for p in (shared, stacked, shared)]

    torch.testing.assert_close(outputs[1], outputs[0])
    assert torch.equal(outputs[2], outputs[0])
    assert module.calls == 0


def test_dropout_is_off() -> None:
    module = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 2))
    parameters = dict(module.named_parameters())
    inputs = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))

    network = ModuleNetwork(module)

    expected = functional.linear(inputs, parameters["1.weight"], parameters["1.bias"])
    torch.testing.assert_close(network.apply(parameters, inputs), expected)


def test_padding_of_a_module_has_no_effect() -> None:
    spec = spec_of("images")
    parameters, episodes = drawn(spec), sixteen()
    support = episodes.support
    padding = support.weights == 0
    noisy = Examples(
        torch.where(padding[..., None], 1e3, support.inputs),
        torch.where(padding, 1_000_000, support.targets),
        support.weights,
    )
    rates = torch.full((2, 6), 0.3, dtype=torch.float64)

    totals = [
        meta_loss(
            Meta(parameters, rates, None),
            episodes._replace(support=s),
            OuterSettings(inner_clip=math.inf),
            network_of(spec),
        )
        for s in (support, noisy)
    ]

    torch.testing.assert_close(totals[0], totals[1], atol=ERROR, rtol=ERROR)
