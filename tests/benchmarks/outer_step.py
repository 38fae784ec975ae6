"""One outer step against the textbook's: ``python -m tests.benchmarks.outer_step --json FILE``.

The textbook takes one task at a time, a graph of its inner steps by ``torch.autograd``, the layers
by ``nn.functional``, and Adam by ``torch.optim``. Both sides do the whole step of 32 tasks, 5 inner
steps, 32 examples of support and 32 of query, a network of 16-64-64-2, in float32 with one thread.
CPU time, in turn, round after round; a ratio is the median of the rounds' ratios.

    second_order    ``maml`` against the textbook of second order
    first_order     ``fomaml`` against the same textbook
    gradients_…     the largest difference from the textbook's gradients, in float64

It exits with 1 where a gradient differs, not where a ratio is below its target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from streammaml.events import Task
from streammaml.initialization import Initialization, Spec, draw
from streammaml.meta.episodes import Episodes
from streammaml.meta.losses import Examples
from streammaml.meta.outer_loop import Meta, OuterSettings, Rule, meta_loss, outer_step, start
from tests.benchmarks.rows import Rows, rounded, row, text_of

TASKS, SUPPORT, QUERY, STEPS = 32, 32, 32, 5
SIZES = (16, 64, 64, 2)
CLIP, RATE, LEARNING_RATE, INIT_WEIGHT = 5.0, 0.1, 2e-3, 0.3
TARGETS = {Rule.MAML: 6.0, Rule.FOMAML: 15.0}
NAMES = {Rule.MAML: "second_order", Rule.FOMAML: "first_order"}
MOST_DIFFERENCE = 1e-6
SPEC = Spec(task=Task.CLASSIFICATION, sizes=SIZES, steps=STEPS, schema="benchmark")


def make_episodes(seed: int, dtype: torch.dtype = torch.float32) -> Episodes:
    """Each task asks on which side of a plane of its own a point lies."""
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(TASKS, SIZES[0], 1, generator=generator, dtype=dtype)

    def examples(size: int) -> Examples:
        x = torch.randn(TASKS, size, SIZES[0], generator=generator, dtype=dtype)
        return Examples(x, ((x @ planes)[..., 0] > 0).long(), torch.ones(TASKS, size, dtype=dtype))

    return Episodes(examples(SUPPORT), examples(QUERY))


def network(weights: list[Tensor], x: Tensor) -> Tensor:
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = functional.relu(functional.linear(x, weight.t(), bias))
    return functional.linear(x, weights[-2].t(), weights[-1])


def adapt(
    weights: list[Tensor], rates: Tensor, x: Tensor, y: Tensor, second_order: bool
) -> list[Tensor]:
    for k in range(STEPS):
        inner = functional.cross_entropy(network(weights, x), y)
        gradients = torch.autograd.grad(inner, weights, create_graph=second_order)
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
        shrink = torch.clamp(CLIP / norm, max=1.0)
        pairs = zip(weights, gradients, rates[k], strict=True)
        weights = [w - rate * shrink * g for w, g, rate in pairs]
    return weights


def textbook_gradients(
    theta: list[Tensor], raw: Tensor, episodes: Episodes, second_order: bool = True
) -> list[Tensor]:
    """By θ and by the raw rates, task after task."""
    totals = [torch.zeros_like(t) for t in (*theta, raw)]
    support, query = episodes
    for t in range(TASKS):
        rates = functional.softplus(raw)
        fast = adapt(theta, rates, support.inputs[t], support.targets[t], second_order)
        adapted = functional.cross_entropy(network(fast, query.inputs[t]), query.targets[t])
        init = functional.cross_entropy(network(theta, query.inputs[t]), query.targets[t])
        total = (adapted + INIT_WEIGHT * init) / TASKS
        for sum_, gradient in zip(totals, torch.autograd.grad(total, [*theta, raw]), strict=True):
            sum_ += gradient
    return totals


def leaves(initialization: Initialization, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """θ and the raw rates, as the textbook holds them."""
    theta = [torch.tensor(initialization.tensors[n], dtype=dtype) for n in SPEC.shapes()]
    raw = torch.log(torch.expm1(torch.tensor(initialization.tensors["rates"], dtype=dtype)))
    return [t.requires_grad_() for t in theta], raw.requires_grad_()


def textbook_step(initialization: Initialization) -> Callable[[Episodes], None]:
    theta, raw = leaves(initialization, torch.float32)
    leaf = [*theta, raw]
    adam = torch.optim.Adam(leaf, lr=LEARNING_RATE)

    def step(episodes: Episodes) -> None:
        for tensor, gradient in zip(leaf, textbook_gradients(theta, raw, episodes), strict=True):
            tensor.grad = gradient
        torch.nn.utils.clip_grad_norm_(leaf, CLIP)
        adam.step()

    return step


def our_step(initialization: Initialization, rule: Rule) -> Callable[[Episodes], None]:
    settings = OuterSettings(rule=rule)
    state = start(initialization, settings)

    def step(episodes: Episodes) -> None:
        nonlocal state
        state, _ = outer_step(state, episodes, settings, LEARNING_RATE)

    return step


def difference(initialization: Initialization, rule: Rule) -> float:
    """The largest one between our gradients and the textbook's of the same order, in float64."""
    episodes = make_episodes(1, torch.float64)
    theta, raw = leaves(initialization, torch.float64)
    expected = textbook_gradients(theta, raw, episodes, second_order=rule is Rule.MAML)
    own, own_raw = leaves(initialization, torch.float64)
    meta = Meta(dict(zip(SPEC.shapes(), own, strict=True)), functional.softplus(own_raw), None)
    total = meta_loss(meta, episodes, OuterSettings(rule=rule))
    actual = torch.autograd.grad(total, [*own, own_raw])
    return max(float((a - e).abs().max()) for a, e in zip(actual, expected, strict=True))


def cpu_ms(step: Callable[[Episodes], None], batches: list[Episodes]) -> float:
    started = time.process_time()
    for episodes in batches:
        step(episodes)
    return (time.process_time() - started) / len(batches) * 1e3


def measure(initialization: Initialization, rounds: int) -> Rows:
    textbook = textbook_step(initialization)
    ours = {rule: our_step(initialization, rule) for rule in TARGETS}
    found: dict[Rule, list[float]] = {rule: [] for rule in TARGETS}
    ratios: dict[Rule, list[float]] = {rule: [] for rule in TARGETS}
    peers = []
    for number in range(rounds + 1):
        batches = [make_episodes(10 * number + i) for i in range(10)]
        peer = cpu_ms(textbook, batches[:2])
        for rule, step in ours.items():
            own = cpu_ms(step, batches)
            if number > 0:  # the first warms up
                found[rule].append(own)
                ratios[rule].append(peer / own)
        peers.append(peer)
    rows: Rows = {}
    for rule, target in TARGETS.items():
        rows[NAMES[rule]] = row(
            statistics.median(ratios[rule]),
            "x the textbook's speed",
            target,
            least=True,
            ms=round(statistics.median(found[rule]), 2),
            textbook_ms=round(statistics.median(peers[1:]), 2),
            rounds=rounded(ratios[rule]),
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    initialization = draw(SPEC, 0, RATE)
    rows = measure(initialization, given.rounds)
    differences = {f"gradients_{NAMES[rule]}": difference(initialization, rule) for rule in TARGETS}
    for name, value in differences.items():
        rows[name] = {"value": value, "target": MOST_DIFFERENCE, "unit": "largest difference"}
    for name, found in rows.items():
        print(text_of(name, found))
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    if not all(value <= MOST_DIFFERENCE for value in differences.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
