"""The command of the paper tables, hardly trained: what matters is that all of it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from streammaml.events import Floats
from streammaml.meta.networks import split
from streammaml.meta.outer_loop import Rule
from tests.benchmarks import papers_omniglot, papers_sinusoid
from tests.benchmarks.paper_scores import score_of
from tests.benchmarks.papers import OMNIGLOT, PAPERS, Paper, main
from tests.benchmarks.papers_sinusoid import THREE, Method

QUICK = ["--iterations", "3", "--tasks", "20", "--minutes", "0.001", "--threads", "1"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets torch's own: give them back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise in the form of the real file: 12 characters, half of them background."""
    rng = np.random.default_rng(0)
    characters = rng.permutation(np.repeat(np.arange(12, dtype=np.int16), 20))
    file = tmp_path / "omniglot.npz"
    np.savez(
        file,
        images=rng.integers(0, 256, (240, 28, 28)).astype(np.uint8),
        char=characters,
        background=characters < 6,
    )
    return file


def test_every_row_runs_and_is_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "papers.json"

    main([*QUICK, "--json", str(file), "--omniglot", str(images)])

    rows = json.loads(file.read_text())
    assert list(rows) == list(PAPERS)
    for row in rows.values():
        assert math.isfinite(row["mean"])
        assert row["ci95"] > 0
        assert (row["tasks"], row["seed"]) == (20, 1)
        assert row["steps"] > 0
    assert rows["sinusoid_5_metasgd_1"]["target"] == [0.75, 0.95]
    assert rows["sinusoid_5_mamlpp_3_deep"]["target"] == 0.34
    assert rows[OMNIGLOT]["target"] == 0.93
    out = capsys.readouterr().out
    assert all(name in out for name in PAPERS)
    assert "1.13 ± .18 (Li 2017)" in out


def test_without_the_images_omniglot_is_skipped_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "omniglot28.npz"

    main([*QUICK, "--only", OMNIGLOT, "sinusoid_5_ridge", "--omniglot", str(missing)])

    captured = capsys.readouterr()
    assert f"{missing} is not there" in captured.err
    assert "sinusoid_5_ridge" in captured.out
    assert OMNIGLOT not in captured.out


def test_a_seed_gives_the_same_score_twice() -> None:
    method = Method(shots=5, rule=Rule.MAML, steps=3)

    scores = [papers_sinusoid.run(method, 1, 20, 3) for _ in range(2)]

    assert scores[0][:4] == scores[1][:4]


def test_a_score_is_the_mean_and_half_of_the_interval() -> None:
    score = score_of(torch.tensor([1.0, 3.0, 1.0, 3.0]), 10, 0.5)

    assert (score.mean, score.tasks, score.steps, score.train_s) == (2.0, 4, 10, 0.5)
    assert score.ci95 == pytest.approx(1.96 * 1.0 / 2)


@pytest.mark.parametrize(
    ("paper", "good", "bad"),
    [
        (Paper(most=0.34), [0.34, 0.1], [0.35, math.nan]),
        (Paper(least=0.93), [0.93, 0.99], [0.92, math.nan]),
        (Paper(least=0.75, most=0.95), [0.75, 0.95], [0.74, 0.96, math.nan]),
    ],
)
def test_a_target_is_reached_or_not(paper: Paper, good: list[float], bad: list[float]) -> None:
    assert [paper.verdict(x) for x in good] == ["reached"] * len(good)
    assert [paper.verdict(x) for x in bad] == ["NOT reached"] * len(bad)


def test_test_tasks_are_sines_asked_for_evenly_spaced_points() -> None:
    support, query = papers_sinusoid.sample(np.random.default_rng(0), 50, 5, test=True)

    assert support.inputs.shape == (50, 5, 1)
    assert float(support.inputs.abs().max()) <= 5
    assert query.inputs[7, :, 0].numpy() == pytest.approx(np.linspace(-5, 5, 100))
    # y″ = −ω² y, with one ω from .8 to 1.2 for the whole task.
    y, gap = query.targets.double().numpy(), 10 / 99
    curvature = (y[:, 2:] - 2 * y[:, 1:-1] + y[:, :-2]) / gap**2
    squares = -(curvature * y[:, 1:-1]).sum(1) / np.square(y[:, 1:-1]).sum(1)
    assert np.all((squares > 0.63) & (squares < 1.45))
    assert float(query.targets.abs().max()) <= 5


def test_the_ridge_head_is_the_textbook_solution() -> None:
    first = papers_sinusoid.first_of(Method(shots=5, rule=None, hidden=THREE), 3)
    episodes = papers_sinusoid.sample(np.random.default_rng(1), 4, 5, test=True)
    vector = torch.cat([torch.from_numpy(first.theta()), torch.tensor([0.7])])

    found = papers_sinusoid.ridge_losses(vector, first.spec, episodes)

    tensors = {n: t.double().numpy() for n, t in split(vector, first.spec).items()}
    prior = np.append(tensors["3.weight"], tensors["3.bias"])
    for task in range(4):
        phi, asked = (_features(tensors, part.inputs[task].double().numpy()) for part in episodes)
        y, wanted = (part.targets[task].double().numpy() for part in episodes)
        # (ΦᵀΦ + λI) (W − W0) = Φᵀ(y − ΦW0): the other form of the library's.
        system = phi.T @ phi + math.exp(0.7) * np.eye(41)
        head = prior + np.linalg.solve(system, phi.T @ (y - phi @ prior))
        assert float(found[task]) == pytest.approx(np.square(asked @ head - wanted).mean(), 1e-4)


def test_the_first_network_is_he_normal_in_every_layer() -> None:
    first = papers_sinusoid.first_of(Method(shots=5, rule=Rule.MAML, hidden=THREE), 1)

    for layer, fan_in in enumerate((1, 40, 40, 40)):
        weights = first.tensors[f"{layer}.weight"]
        assert np.std(weights) == pytest.approx(math.sqrt(2 / fan_in), rel=0.3)
        assert not first.tensors[f"{layer}.bias"].any()


def test_characters_to_train_on_are_turned_and_none_is_in_the_test(images: Path) -> None:
    drawings = papers_omniglot.read(images)

    with np.load(images) as given:
        background = given["images"][given["char"] == 2]
        other = given["images"][given["char"] == 9]
    assert drawings.train.shape == (24, 20, 784)
    assert drawings.test.shape == (6, 20, 784)
    for turns in range(4):
        expected = np.rot90(background, turns, axes=(1, 2)).reshape(20, 784)
        assert np.array_equal(drawings.train[6 * turns + 2], expected)
    assert np.array_equal(drawings.test[3], other.reshape(20, 784))


def test_an_omniglot_episode_never_asks_for_its_own_support_drawing(images: Path) -> None:
    drawings = papers_omniglot.read(images).test

    support, query = papers_omniglot.sample(drawings, 8, 15, np.random.default_rng(0))

    assert support.inputs.shape == (8, 5, 784)
    assert query.inputs.shape == (8, 75, 784)
    for task in range(8):
        rows = torch.cat([support.inputs[task], query.inputs[task]])
        assert len(torch.unique(rows, dim=0)) == 80
        for slot in range(5):
            own = query.inputs[task][query.targets[task] == slot]
            characters = {_character(drawings, row) for row in (*own, support.inputs[task, slot])}
            assert len(own) == 15
            assert len(characters) == 1


def _features(tensors: Mapping[str, Floats], x: Floats) -> Floats:
    for layer in range(3):
        x = np.maximum(x @ tensors[f"{layer}.weight"] + tensors[f"{layer}.bias"], 0)
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _character(drawings: papers_omniglot.Images, row: torch.Tensor) -> int:
    same = (drawings == (row.numpy() * 255).round().astype(np.uint8)).all(-1)
    (found,) = np.argwhere(same)
    return int(found[0])
