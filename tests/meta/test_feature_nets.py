"""The ridge head is the closed form, its loss the one written down, and training betters it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from streammaml.errors import InitializationError
from streammaml.events import Float32s, Task
from streammaml.initialization import Initialization, Spec, draw, group_of
from streammaml.meta.episodes import Episodes, hold_out, sample
from streammaml.meta.feature_nets import (
    NETS,
    NetState,
    draw_net,
    features_of,
    finish_net,
    net_step,
    pack_net,
    query_losses,
    ridge,
    start_net,
    targets_of,
    unpack_net,
)
from streammaml.meta.losses import Examples
from streammaml.meta.networks import Parameters
from streammaml.meta.outer_state import OuterSettings
from tests.meta.build import (
    CLASSES,
    REGRESSION,
    make_episodes,
    make_family,
    make_spec,
    part,
)

TASKS = [CLASSES, REGRESSION]
SETTINGS = OuterSettings()


def step(state: NetState, episodes: Episodes) -> tuple[NetState, float]:
    return net_step(state, episodes, SETTINGS, SETTINGS.learning_rate)


@torch.no_grad()
def adapted_losses(tensors: Mapping[str, Float32s], episodes: Episodes) -> Tensor:
    """Query loss [T] of one net's adapted head, from the tensors of an initialization."""
    (net,) = {group_of(name) for name in tensors}
    given = {name.partition("/")[2]: torch.from_numpy(t) for name, t in tensors.items()}
    return query_losses(given, net, episodes)[1]


def tensors_of(spec: Spec, net: str, seed: int = 0) -> Parameters:
    """A drawn net in float64, its head not 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, drawn in draw_net(spec, net, seed).items():
        tensor = torch.tensor(drawn, dtype=torch.float64)
        if name.endswith(("head", "bias")):
            tensor = 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensors[name.partition("/")[2]] = tensor
    return tensors


def features(tensors: Parameters, net: str, x: Tensor) -> Tensor:
    hidden = functional.relu(functional.linear(x, tensors["0.weight"].t(), tensors["0.bias"]))
    hidden = functional.linear(hidden, tensors["1.weight"].t(), tensors["1.bias"])
    hidden = functional.relu(hidden) / 4 if net == "f" else torch.tanh(hidden)
    return torch.cat([hidden, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def coded(y: Tensor, outputs: int) -> Tensor:
    if y.is_floating_point():
        return y.clamp(-6, 6)[:, None]
    return torch.tensor(
        [[1.0 if k == slot else -1.0 for k in range(outputs)] for slot in y.tolist()],
        dtype=torch.float64,
    )


def primal(
    tensors: Parameters, net: str, task: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """W = W0 + (ΦᵀDΦ + λI)⁻¹ΦᵀD(τ − ΦW0), and that inverse times λ."""
    x, y, weights = task
    phi = features(tensors, net, x)
    lam, head = tensors["log_ridge"].exp(), tensors["head"]
    system = phi.t() @ (weights[:, None] * phi) + lam * torch.eye(phi.shape[1]).double()
    residual = coded(y, head.shape[1]) - phi @ head
    return (
        head + torch.linalg.solve(system, phi.t() @ (weights[:, None] * residual)),
        lam * torch.linalg.inv(system),
    )


def textbook_losses(tensors: Parameters, net: str, episodes: Episodes, t: int) -> list[Tensor]:
    """Query loss of the prior head and of the solved one for one task."""
    x, y, weights = part(episodes.query, t)
    phi = features(tensors, net, x)
    solved, covariance = primal(tensors, net, part(episodes.support, t))
    identity = torch.eye(phi.shape[1], dtype=torch.float64)
    losses = []
    for head, inverse in ((tensors["head"], identity), (solved, covariance)):
        outputs = phi @ head
        if not y.is_floating_point():
            each = functional.cross_entropy(math.e * outputs, y, reduction="none")
        elif net == "f":
            each = functional.smooth_l1_loss(outputs[:, 0], y.clamp(-6, 6), reduction="none")
        else:
            lam, noise = tensors["log_ridge"].exp(), tensors["log_noise"].exp()
            spread = noise * (1 + (phi @ inverse * phi).sum(1) / lam)
            error = outputs[:, 0] - y.clamp(-6, 6)
            each = (0.5 * error**2 / spread + 0.5 * spread.log()).clamp(max=12)
        losses.append((weights * each).sum() / weights.sum())
    return losses


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("task", TASKS)
def test_the_ridge_head_is_the_closed_primal_solution(task: Task, net: str) -> None:
    spec = make_spec(task)
    tensors, episodes = tensors_of(spec, net), make_episodes(spec, dtype=torch.float64)
    support, query = (features_of(tensors, net, e.inputs) for e in episodes)

    heads = ridge(tensors, support, query, episodes.support)

    lam = tensors["log_ridge"].exp()
    for t in range(5):
        head, covariance = primal(tensors, net, part(episodes.support, t))
        phi = features(tensors, net, episodes.query.inputs[t])
        variance = 1 + (phi @ covariance * phi).sum(1) / lam
        for found, expected in (
            (heads.adapted[t], phi @ head),
            (heads.prior[t], phi @ tensors["head"]),
            (heads.variance[t], variance),
            (heads.prior_variance[t], 1 + phi.square().sum(1) / lam),
        ):
            torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("task", TASKS)
def test_the_losses_and_their_gradients_are_those_of_one_task_at_a_time(
    task: Task, net: str
) -> None:
    spec = make_spec(task)
    tensors = {n: t.requires_grad_() for n, t in tensors_of(spec, net).items()}
    episodes = make_episodes(spec, dtype=torch.float64)
    episodes.query.targets[0, 0] *= 9 if task is REGRESSION else 1

    found = query_losses(tensors, net, episodes)

    expected = [textbook_losses(tensors, net, episodes, t) for t in range(5)]
    for i in range(2):
        torch.testing.assert_close(found[i], torch.stack([e[i] for e in expected]))
    given = list(tensors.values())
    pairs = zip(
        torch.autograd.grad(found[1].sum(), given, materialize_grads=True),
        torch.autograd.grad(sum(e[1] for e in expected), given, materialize_grads=True),  # type: ignore[arg-type]
        strict=True,
    )
    for name, (by, wanted) in zip(tensors, pairs, strict=True):
        if name != "log_scale":  # the textbook takes κ = e
            torch.testing.assert_close(by, wanted, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("task", TASKS)
def test_padding_has_no_effect_whatever_stands_there(task: Task, net: str) -> None:
    spec = make_spec(task)
    tensors = finish_net(start_net(spec, net, 4))
    support, query = make_episodes(spec)
    noisy = []
    for examples in (support, query):
        padding = examples.weights == 0
        assert padding.any()
        x = torch.where(padding[..., None], 1e4, examples.inputs)
        noisy.append(
            Examples(x, torch.where(padding, 1_000_000, examples.targets), examples.weights)
        )

    torch.testing.assert_close(
        adapted_losses(tensors, Episodes(*noisy)), adapted_losses(tensors, Episodes(support, query))
    )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("task", TASKS)
def test_a_support_of_two_equal_points_has_a_finite_gradient(task: Task, net: str) -> None:
    spec = make_spec(task)
    support, query = make_episodes(spec)
    support.inputs[:] = support.inputs[:, :1]
    support.targets[:] = support.targets[:, :1]
    support.weights[:] = 0
    support.weights[:, :2] = 1
    state = start_net(spec, net, 0)

    after, value = step(state, Episodes(support, query))

    assert math.isfinite(value)
    assert (after.taken, after.skipped) == (1, 0)
    assert not torch.equal(after.descent.vector, state.descent.vector)


@pytest.mark.parametrize("net", NETS)
def test_classes_that_are_not_in_use_have_no_share(net: str) -> None:
    spec = make_spec(sizes=(4, 5))
    support, query = make_episodes(make_spec(sizes=(4, 2)))
    tensors = draw_net(spec, net, 0)
    open_list = Episodes(support._replace(classes=2), query._replace(classes=2))

    two = {n: t[:, :2] if n.endswith("head") else t for n, t in tensors.items()}

    torch.testing.assert_close(
        adapted_losses(tensors, open_list), adapted_losses(two, Episodes(support, query))
    )


def test_targets_are_signs_or_values_within_six() -> None:
    ones = torch.ones(1, 2)
    classes = Examples(torch.zeros(1, 2, 1), torch.tensor([[2, 0]]), ones)
    values = Examples(torch.zeros(1, 2, 1), torch.tensor([[-50.0, 1.5]]), ones)

    assert targets_of(classes, 3).tolist() == [[[-1, -1, 1], [1, -1, -1]]]
    assert targets_of(values, 1).tolist() == [[[-6.0], [1.5]]]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_batch_that_is_not_finite_is_skipped_and_moves_nothing(value: float) -> None:
    spec = make_spec(REGRESSION)
    state = start_net(spec, "g", 0)
    broken = make_episodes(spec)
    broken.support.inputs[2, 0] = value

    after, loss = step(state, broken)

    assert not math.isfinite(loss)
    assert (after.taken, after.skipped) == (0, 1)
    assert torch.equal(after.descent.vector, state.descent.vector)


@pytest.mark.parametrize("net", NETS)
def test_a_net_starts_as_written_down_and_is_a_part_of_an_initialization(net: str) -> None:
    spec = make_spec(REGRESSION, (400, 8, 1))
    drawn = draw(spec, seed=3)

    tensors = draw_net(spec, net, 3)

    whole = Initialization(spec=spec, tensors={**drawn.tensors, **tensors})
    assert tensors[f"{net}/log_ridge"] == (2.0 if net == "f" else 0.0)
    assert tensors[f"{net}/log_scale"] == 1.0
    assert not tensors[f"{net}/head"].any()
    assert np.std(tensors[f"{net}/0.weight"]) == pytest.approx(math.sqrt(2 / 400), rel=0.05)
    assert np.corrcoef(
        tensors[f"{net}/0.weight"][:, :8].ravel(), whole.tensors["0.weight"].ravel()
    )[0, 1] == pytest.approx(0, abs=0.1)
    if net == "g":
        assert tensors["g/log_noise"] == -1.0
    same = finish_net(start_net(spec, net, whole.tensors))
    assert all(np.array_equal(same[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("task", TASKS)
def test_a_packed_state_goes_on_to_the_bit(task: Task, net: str) -> None:
    spec = make_spec(task)
    state, _ = step(start_net(spec, net, 0), make_episodes(spec))

    again = unpack_net(spec, net, *pack_net(state))

    for seed in (3, 4):
        state, value = step(state, make_episodes(spec, seed))
        again, same = step(again, make_episodes(spec, seed))
        assert value == same
    assert all(t.tobytes() == finish_net(again)[n].tobytes() for n, t in finish_net(state).items())
    assert (again.taken, again.skipped) == (3, 0)
    with pytest.raises(InitializationError, match="vector is not float32"):
        unpack_net(make_spec(task, (5, 3)), net, *pack_net(state))


@pytest.mark.parametrize("net", NETS)
def test_training_makes_the_head_better_on_contexts_never_trained_on(net: str) -> None:
    train, judge = hold_out(make_family(1, contexts=200, events=80), newest=0)
    held_out = sample(judge, np.random.default_rng(1), 300)
    assert held_out is not None
    state, rng = start_net(make_spec(CLASSES, (20, 2)), net, 1), np.random.default_rng(1)
    before = float(adapted_losses(finish_net(state), held_out).mean())

    for _ in range(150):
        batch = sample(train, rng, 24)
        assert batch is not None
        state, _ = step(state, batch)

    after = float(adapted_losses(finish_net(state), held_out).mean())
    assert after < before - 0.1
    assert after < 0.6
    assert state.skipped == 0
