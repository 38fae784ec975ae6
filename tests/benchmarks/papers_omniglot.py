"""Omniglot 5-way 1-shot: train on the background characters for a time, test on the others.

Every training character is four, by rotations of 90°; test characters are not turned. An episode
is 5 characters with 1 support drawing each, and 3 query drawings in training, 15 in a test. The
inner loop moves the last layer only (ANIL), so that the convolutions run once over all drawings.

References:
    Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program
    induction" (Omniglot), 2015. Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017 (the
    strided network). Raghu, Raghu, Bengio, Vinyals, "Rapid learning or feature reuse?" (ANIL),
    2019.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streammaml.custom import make_network, parameters_of
from streammaml.events import Task
from streammaml.initialization import Initialization, Spec
from streammaml.meta.episodes import Episodes
from streammaml.meta.inner_loop import InnerLoop, adapt
from streammaml.meta.losses import Examples
from streammaml.meta.modules import network_of
from streammaml.meta.outer_loop import (
    OuterSettings,
    Rule,
    finish,
    meta_of,
    outer_step,
    start,
)
from tests.benchmarks.paper_scores import Score, cosine, score_of

SIDE = 28
PIXELS = SIDE * SIDE
DRAWINGS = 20
WAYS = 5
QUERY, TEST_QUERY = 3, 15
META_BATCH = 16
TEST_CHUNK = 25
STEPS, RATE = 5, 0.1
FILTERS, GROUPS = (32, 64, 64, 64), 8
"""The first layer, on the largest images, costs most: half of its filters save half of the time."""
NETWORK = f"{__name__}:strided"
SETTINGS = OuterSettings(
    rule=Rule.ANIL, learning_rate=1e-3, inner_clip=math.inf, outer_clip=10.0, init_weight=0.0
)
Images = NDArray[np.uint8]


def strided(inputs: int, outputs: int) -> nn.Module:
    """4 × [3×3 convolution of stride 2, GroupNorm, ReLU], and a linear layer."""
    if inputs != PIXELS:
        raise ValueError(f"{inputs} inputs are not an image of {SIDE} × {SIDE}")
    layers: list[nn.Module] = [nn.Unflatten(1, (1, SIDE, SIDE))]
    channels, side = 1, SIDE
    for filters in FILTERS:
        convolution = nn.Conv2d(channels, filters, 3, stride=2, padding=1)
        layers += [convolution, nn.GroupNorm(GROUPS, filters), nn.ReLU()]
        channels, side = filters, (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, outputs))


class Drawings(NamedTuple):
    """Characters to train on, turned, and to test on: [N, 20, 784], ink high."""

    train: Images
    test: Images


class Trained(NamedTuple):
    initialization: Initialization
    steps: int
    seconds: float


def run(images: Path, seconds: float, seed: int, tasks: int) -> Score:
    """Train for ``seconds`` and judge by the accuracy on ``tasks`` fresh test episodes."""
    drawings = read(images)
    generator = np.random.default_rng(seed)
    trained = train(first_of(seed), drawings.train, seconds, generator)
    found = accuracies(trained.initialization, drawings.test, generator, tasks)
    return score_of(found, trained.steps, trained.seconds)


def read(file: Path) -> Drawings:
    with np.load(file) as given:
        order = np.argsort(given["char"], kind="stable")
        pictures = given["images"][order].reshape(-1, DRAWINGS, SIDE, SIDE)
        background = given["background"][order].reshape(-1, DRAWINGS)[:, 0]
    turned = [np.rot90(pictures[background], turns, axes=(2, 3)) for turns in range(4)]
    return Drawings(
        np.concatenate(turned).reshape(-1, DRAWINGS, PIXELS),
        pictures[~background].reshape(-1, DRAWINGS, PIXELS),
    )


def first_of(seed: int) -> Initialization:
    """As torch draws the layers, but for the last, which is 0: no class is before another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make_network(NETWORK, PIXELS, WAYS)
    tensors = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    for name in list(tensors)[-2:]:
        tensors[name][:] = 0
    spec = Spec(
        task=Task.CLASSIFICATION,
        sizes=(PIXELS, WAYS),
        steps=STEPS,
        schema="omniglot",
        network=NETWORK,
        parameters=parameters_of(NETWORK, PIXELS, WAYS),
    )
    tensors["rates"] = np.full((STEPS, len(spec.parameters)), RATE, np.float32)
    return Initialization(spec=spec, tensors=tensors)


def train(
    first: Initialization, drawings: Images, seconds: float, generator: np.random.Generator
) -> Trained:
    """ANIL until the time is up; the learning rate falls with the time."""
    state, started = start(first, SETTINGS), time.monotonic()
    for share in shares_of(seconds):
        episodes = sample(drawings, META_BATCH, QUERY, generator)
        state, _ = outer_step(state, episodes, SETTINGS, cosine(SETTINGS.learning_rate, share))
    return Trained(finish(state, first), state.taken, time.monotonic() - started)


def shares_of(seconds: float) -> Iterator[float]:
    """How much of the time is spent, until all of it is; at least once."""
    started = time.monotonic()
    yield 0.0
    while (share := (time.monotonic() - started) / seconds) < 1:
        yield share


def sample(drawings: Images, tasks: int, queries: int, generator: np.random.Generator) -> Episodes:
    characters = np.stack(
        [generator.choice(len(drawings), WAYS, replace=False) for _ in range(tasks)]
    )
    drawn = generator.random((tasks, WAYS, DRAWINGS)).argsort(-1)[..., : 1 + queries]
    chosen = torch.from_numpy(drawings[characters[..., None], drawn]).float() / 255
    slots = torch.arange(WAYS).expand(tasks, -1)
    return Episodes(
        Examples(chosen[:, :, 0], slots, torch.ones(tasks, WAYS)),
        Examples(
            chosen[:, :, 1:].flatten(1, 2),
            slots.repeat_interleave(queries, 1),
            torch.ones(tasks, WAYS * queries),
        ),
    )


@torch.no_grad()
def accuracies(
    initialization: Initialization, drawings: Images, generator: np.random.Generator, tasks: int
) -> Tensor:
    """Share of query drawings that each task's adapted network names rightly [tasks]."""
    meta = meta_of(start(initialization, SETTINGS))
    loop = InnerLoop(clip_norm=math.inf, network=network_of(initialization.spec))
    found = []
    for done in range(0, tasks, TEST_CHUNK):
        episodes = sample(drawings, min(TEST_CHUNK, tasks - done), TEST_QUERY, generator)
        fast = adapt(meta.parameters, meta.rates, episodes.support, loop)
        named = loop.network.apply(fast, episodes.query.inputs).argmax(-1)
        found.append((named == episodes.query.targets).float().mean(-1))
    return torch.cat(found)
