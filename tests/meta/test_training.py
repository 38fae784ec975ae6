"""Episodes and outer loop together: adaptation gets better on contexts never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from streammaml.initialization import Initialization, draw
from streammaml.meta.episodes import hold_out, sample
from streammaml.meta.outer_loop import OuterSettings, Rule, evaluate, refine
from tests.meta.build import CLASSES, make_family, make_spec


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("rule", list(Rule))
def test_training_makes_adaptation_better_on_contexts_never_trained_on(
    rule: Rule, seed: int
) -> None:
    train, judge = hold_out(make_family(seed, contexts=200, events=80), newest=0)
    held_out = sample(judge, np.random.default_rng(seed), 300)
    assert held_out is not None
    drawn = draw(make_spec(CLASSES, (20, 32, 32, 2), steps=3), seed)
    rng = np.random.default_rng(seed)

    trained, report = refine(
        drawn, lambda: sample(train, rng, 16), 400, OuterSettings(rule=rule, cosine=True)
    )

    _, before = evaluate(drawn, held_out)
    unadapted, after = evaluate(trained, held_out)
    least = 0.02 if rule is Rule.REPTILE else 0.05  # the weakest of them, in the papers too
    assert after < before - least
    assert after < unadapted - least
    assert report.skipped == 0


def test_the_same_seed_gives_the_same_bits() -> None:
    family = make_family(seed=1, contexts=10, events=40)
    spec = make_spec(CLASSES, (20, 8, 2))

    def train() -> Initialization:
        rng = np.random.default_rng(4)
        return refine(draw(spec, seed=0), lambda: sample(family, rng, 8), 20)[0]

    one, other = train(), train()

    for name, tensor in one.tensors.items():
        assert tensor.tobytes() == other.tensors[name].tobytes(), name
