"""Training from a file: the version of what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streammaml.backends.files import Columns
from streammaml.config import Config
from streammaml.initialization import Initialization, decode
from streammaml.meta.outer_loop import Rule
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


def train(history: Path, out: Path, steps: int = 2) -> Initialization:
    columns = Columns(features="a,b", label="label", context="shop")
    trained, _ = train_from_file(CONFIG, history, columns, out, steps, Rule.FOMAML)
    written = decode(out.read_bytes())
    assert written.version == trained.initialization.version
    return written


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
