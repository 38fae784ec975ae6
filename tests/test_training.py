"""Training from a file: what is written, where it begins, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streammaml.backends.files import Columns
from streammaml.config import Config
from streammaml.errors import MisfitError
from streammaml.initialization import Initialization, decode, encode
from streammaml.meta.outer_loop import Rule
from streammaml.meta_trainer import Trained
from streammaml.starts import version_zero
from streammaml.training import train_from_file

CONFIG = Config.build(
    {
        "features": [{"name": "a"}, {"name": "b"}],
        "label": {"classes": ["no", "yes"]},
        "learner": {"hidden": [4]},
    }
)


@pytest.fixture(name="history")
def make_history(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    rows = [
        f"{a:.3f},{b:.3f},shop-{c},{'yes' if a > b else 'no'}"
        for (a, b), c in zip(rng.normal(size=(600, 2)), rng.integers(0, 2, 600), strict=True)
    ]
    path = tmp_path / "events.csv"
    path.write_text("\n".join(["a,b,shop,label", *rows]))
    return path


def train(history: Path, out: Path, steps: int = 2, **given: Any) -> Initialization:
    return trained_from(history, out, steps, **given).initialization


def trained_from(
    history: Path,
    out: Path,
    steps: int,
    config: Config = CONFIG,
    rule: Rule = Rule.FOMAML,
    start_from: Initialization | None = None,
) -> Trained:
    columns = Columns(features="a,b", label="label", context="shop")
    trained, _ = train_from_file(config, history, columns, out, steps, rule, start_from)
    assert encode(decode(out.read_bytes())) == encode(trained.initialization)
    return trained


def test_the_first_initialization_is_version_1_and_what_replaces_it_counts_on(
    history: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "start.safetensors", tmp_path / "other.safetensors"

    versions = [train(history, out).version, train(history, out, steps=3).version]
    versions += [train(history, other).version, train(history, out, steps=0).version]

    assert versions == [1, 2, 1, 3]


def test_what_cannot_be_read_is_replaced_and_counts_for_nothing(
    history: Path, tmp_path: Path
) -> None:
    out = tmp_path / "start.safetensors"
    out.write_bytes(b"no initialization")

    assert train(history, out).version == 1


def test_all_three_nets_are_trained_and_judged_against_where_they_began(
    history: Path, tmp_path: Path
) -> None:
    trained = trained_from(history, tmp_path / "start.safetensors", steps=60)

    report = json.loads(json.dumps(trained.report, allow_nan=False))
    assert set(report["nets"]) == {"network", "f", "g"}
    for found in report["nets"].values():
        assert found["loss_candidate"] < found["loss_incumbent"]
    assert (report["parent"], report["contexts"], report["episodes"]) == (0, 2, 512)
    assert {"f/head", "g/head"} < set(trained.initialization.tensors)
    assert trained.loss_after < trained.loss_before
    assert trained.initialization.notes["validation_loss"] == f"{trained.loss_after:.6f}"


@pytest.mark.parametrize("rule", list(Rule))
def test_every_rule_trains_the_network_alone_where_the_others_are_off(
    history: Path, tmp_path: Path, rule: Rule
) -> None:
    config = Config.build(CONFIG.model_dump(), {"outer": {"feature_nets": False}})

    trained = trained_from(history, tmp_path / "start.safetensors", 60, config, rule)

    assert set(trained.report["nets"]) == {"network"}
    assert "f/head" not in trained.initialization.tensors
    assert trained.initialization.notes["rule"] == trained.report["rule"] == rule.value
    assert trained.loss_after < trained.loss_before


def test_another_domains_initialization_is_where_training_begins(
    history: Path, tmp_path: Path
) -> None:
    other = Config.build(
        CONFIG.model_dump(),
        {"features": [{"name": "u"}, {"name": "v"}], "learner": {"seed": 5}},
    )
    source = version_zero(other)

    begun = train(history, tmp_path / "begun.safetensors", steps=0, start_from=source)
    trained = train(history, tmp_path / "trained.safetensors", steps=1, start_from=source)

    assert np.array_equal(begun.theta(), source.theta())
    assert begun.spec == version_zero(CONFIG).spec
    assert 0 < np.abs(trained.theta() - source.theta()).max() < 0.01


def test_one_of_other_sizes_is_refused(history: Path, tmp_path: Path) -> None:
    wide = Config.build(CONFIG.model_dump(), {"learner": {"hidden": [8]}})

    with pytest.raises(MisfitError, match=r"sizes \(4, 8, 2\) there, \(4, 4, 2\) here"):
        train(history, tmp_path / "start.safetensors", start_from=version_zero(wide))
