"""A torch module made for the worker: its passes, its version 0, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call, vjp

from streammaml.config import spec_of
from streammaml.errors import ConfigError, InitializationError, NonFiniteError
from streammaml.events import Float32s
from streammaml.initialization import Spec, draw
from streammaml.meta.serving import ModulePasses, TorchNetwork
from tests.learner import modules
from tests.learner.build import make_config


def spec_for(factory: str, classes: int = 3) -> Spec:
    return spec_of(make_config(classes=classes, network=modules.PATH + factory))


def arrays(rows: int, seed: int = 0) -> tuple[Float32s, Float32s]:
    """Inputs [rows, 4] and slopes [rows, 3], as rows of wider arrays."""
    rng = np.random.default_rng(seed)
    x, slope = rng.normal(size=(2, rows, 9)).astype(np.float32)
    return x[:, :4], slope[:, :3]


def both(
    passes: ModulePasses, parameters: Float32s, x: Float32s, slope: Float32s
) -> tuple[Float32s, Float32s]:
    outputs, gradient = np.zeros((len(x), 5), np.float32)[:, :3], np.zeros_like(parameters)
    passes.forward(parameters, x, outputs, keep=True)
    passes.backward(slope, gradient)
    return outputs.copy(), gradient


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_the_passes_are_those_of_a_functional_call(rows: int) -> None:
    network = TorchNetwork(spec_for("mlp"), seed=3)
    parameters = network.initial(0.1).theta() + np.float32(0.1)
    x, slope = arrays(rows)

    outputs, gradient = both(network.passes(), parameters, x, slope)

    named, first = {}, 0
    for name, shape in network.spec.shapes().items():
        size = int(np.prod(shape))
        named[name] = torch.tensor(parameters[first : first + size]).view(shape)
        first += size
    module = modules.mlp(4, 3)
    expected, back = vjp(lambda p: functional_call(module, p, torch.tensor(x)), named)[:2]
    (found,) = back(torch.tensor(slope))
    np.testing.assert_allclose(outputs, expected.numpy(), rtol=1e-5, atol=1e-6)
    flat = np.concatenate([found[name].numpy().ravel() for name in named])
    np.testing.assert_allclose(gradient, flat, rtol=1e-4, atol=1e-6)
    assert abs(flat).max() > 0.1


def test_passes_share_nothing_remember_nothing_and_leave_buffers_as_they_were() -> None:
    network = TorchNetwork(spec_for("rich"), seed=3)
    parameters, (x, slope) = network.initial(0.1).theta(), arrays(5)
    given = x.copy()
    one, other = network.passes(), network.passes()
    first = both(one, parameters, x, slope)

    both(one, parameters * 2, x[:2], slope[:2])
    both(other, parameters * 3, x, slope)
    again = both(one, parameters, x, slope)

    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]
    assert x.tobytes() == given.tobytes()
    names = list(network.spec.shapes())
    assert names == ["idle", "body.0.weight", "body.0.bias", *names[3:]]
    assert not first[1][:3].any()  # of ``idle``, which the outputs do not need
    assert first[1][3:].any()


def test_version_zero_is_what_the_factory_draws_from_the_seed() -> None:
    spec = spec_for("mlp")
    torch.manual_seed(5)
    expected = [p.detach().numpy() for p in modules.mlp(4, 3).parameters()]
    before = torch.get_rng_state()

    one, same, other = (TorchNetwork(spec, seed).initial(0.2) for seed in (5, 5, 6))

    assert torch.equal(torch.get_rng_state(), before)
    assert one.theta().tobytes() == np.concatenate([p.ravel() for p in expected]).tobytes()
    assert one.theta().tobytes() == same.theta().tobytes() != other.theta().tobytes()
    assert (one.version, one.parent, one.spec) == (0, -1, spec)
    assert one.tensors["rates"].shape == (5, 6)
    assert (one.tensors["rates"] == np.float32(0.2)).all()


def test_one_thread_computes() -> None:
    TorchNetwork(spec_for("mlp"), seed=0)

    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("factory", "cure"),
    [
        ("batch_normed", r"0\.1 is a BatchNorm1d: use GroupNorm or LayerNorm"),
        ("odd_rates", "the name rates is taken"),
        ("odd_parameter_rates", "the name parameter_rates is taken"),
        ("odd_frozen", "bias does not require a gradient: register it as a buffer"),
        ("odd_whole", "count does not require a gradient"),
        ("odd_drawn_elsewhere", "bias is another each time it is made: draw by torch's"),
        ("odd_drawn_buffer", "the buffer noise is drawn by torch's default generator"),
        ("odd_narrow", r"inputs \[1, 4\] give outputs \[1, 2\], not \[1, 3\]"),
        ("odd_one_row", r"inputs \[3, 4\] give outputs \[1, 3\], not \[3, 3\]"),
        ("odd_draws", "its outputs differ from call to call"),
        ("odd_raises", "ZeroDivisionError: by design"),
        ("odd_no_way_back", "does not require grad"),
        ("odd_tuple", "'tuple' object has no attribute"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_cure(factory: str, cure: str) -> None:
    spec = spec_for(factory)

    with pytest.raises(ConfigError, match=cure) as refused:
        TorchNetwork(spec, seed=0)

    assert f"learner.network: tests.learner.modules:{factory} cannot be served" in str(
        refused.value
    )


def test_lazy_parts_are_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match="lazy parts: name their sizes"):
        spec_for("lazy")


def test_parameters_of_another_width_become_float32() -> None:
    network = TorchNetwork(spec_for("odd_half"), seed=0)

    assert network.initial(0.1).theta().dtype == np.float32


def test_a_start_that_is_not_finite_is_no_initialization() -> None:
    with pytest.raises(NonFiniteError, match="bias"):
        TorchNetwork(spec_for("odd_nan"), seed=0)


def test_nothing_else_draws_a_custom_network() -> None:
    with pytest.raises(InitializationError, match="draws its version 0 itself"):
        draw(spec_for("mlp"), seed=0)
