"""Episodes: where their windows lie, and how they are scaled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats
from streammaml.meta.episodes import Episodes, History, history, hold_out, sample
from tests.meta.build import CLASSES, REGRESSION, make_history


def draw_episodes(source: History, count: int = 200, seed: int = 0) -> Episodes:
    episodes = sample(source, np.random.default_rng(seed), count)
    assert episodes is not None
    return episodes


def places(stream: dict[str, Floats], episodes: Episodes) -> tuple[list[Floats], list[Floats]]:
    """Where in the stream of ``make_history`` each support set and query set came from."""
    labels = stream["y"][~np.isnan(stream["y"])]
    support = np.rint(episodes.support.targets.double().numpy() * labels.std() + labels.mean())
    query = np.rint(episodes.query.targets.double().numpy() * labels.std() + labels.mean())
    used = episodes.support.weights.numpy() > 0
    return [s[u] for s, u in zip(support, used, strict=True)], list(query)


def plain(codes: list[int], labelled: bool = True) -> History:
    """A history with the given contexts, one number for each event, labels as places."""
    y = np.arange(len(codes), dtype=np.float64) if labelled else np.full(len(codes), np.nan)
    x = np.arange(len(codes), dtype=np.float32)[:, None]
    return history(np.array(codes, np.int64), x, y, REGRESSION)


def test_an_episode_is_a_contiguous_run_of_one_contexts_labels_support_before_query() -> None:
    source, stream = make_history()

    supports, queries = places(stream, draw_episodes(source))

    labelled = ~np.isnan(stream["y"])
    for support, query in zip(supports, queries, strict=True):
        window = np.concatenate([support, query]).astype(int)
        (code,) = set(stream["contexts"][window].tolist())
        own = np.flatnonzero(labelled & (stream["contexts"] == code))
        at = int(np.searchsorted(own, window[0]))
        assert window.tolist() == own[at : at + len(window)].tolist()
        assert 2 <= len(support) <= 32
        assert len(query) == 16


def test_support_sizes_are_uniform_where_the_history_is_long() -> None:
    episodes = draw_episodes(plain([0] * 500), count=4000)

    sizes = episodes.support.weights.sum(1).int()

    counts = torch.bincount(sizes, minlength=33)[2:]
    assert len(counts) == 31
    assert counts.min() > 80  # 129 expected, standard deviation 11
    assert counts.max() < 180


def test_a_context_of_eighteen_labels_has_exactly_one_episode() -> None:
    supports, queries = places({"y": np.arange(18.0)}, draw_episodes(plain([5] * 18), 20))

    assert all(s.tolist() == [0, 1] for s in supports)
    assert all(q.tolist() == list(range(2, 18)) for q in queries)


@pytest.mark.parametrize("source", [plain([5] * 17), plain([]), plain([1] * 50, labelled=False)])
def test_without_a_context_of_eighteen_labels_there_is_no_episode(source: History) -> None:
    assert len(source) == 0
    assert sample(source, np.random.default_rng(0), 4) is None


def test_contexts_are_drawn_by_the_root_of_their_labels() -> None:
    codes = [0] * 900 + [1] * 100 + [2] * 17
    episodes = draw_episodes(plain(codes), count=4000)

    _, queries = places({"y": np.arange(1017.0)}, episodes)

    share = np.mean([q[0] >= 900 for q in queries])
    assert share == pytest.approx(0.25, abs=0.03)
    assert max(q[-1] for q in queries) < 1000


def test_half_of_the_windows_lie_within_the_last_thousand_labels() -> None:
    episodes = draw_episodes(plain([0] * 10_000), count=4000)

    supports, _ = places({"y": np.arange(10_000.0)}, episodes)

    share = np.mean([s[0] >= 9000 for s in supports])
    assert share == pytest.approx(0.5 + 0.5 * 0.1, abs=0.03)


def test_inputs_are_scaled_as_a_plain_loop_in_double_precision_does() -> None:
    source, stream = make_history()
    episodes = draw_episodes(source, count=60)
    supports, queries = places(stream, episodes)

    for t, (support, query) in enumerate(zip(supports, queries, strict=True)):
        window = np.concatenate([support, query]).astype(int)
        expected = _scaled(stream["x"], stream["contexts"], window)
        n = len(support)
        np.testing.assert_allclose(
            np.concatenate([episodes.support.inputs[t, :n], episodes.query.inputs[t]]),
            expected,
            atol=2e-5,
        )


def test_numbers_far_from_zero_keep_their_scale() -> None:
    rng = np.random.default_rng(3)
    x = (1e6 + rng.integers(-8, 9, size=(300, 1))).astype(np.float32)
    codes = np.repeat(np.arange(3), 100)
    source = history(codes, x, np.arange(300.0), REGRESSION)
    episodes = draw_episodes(source, count=30)

    _, queries = places({"y": np.arange(300.0)}, episodes)

    for t, query in enumerate(queries):
        expected = _scaled(x, codes, query.astype(int))
        np.testing.assert_allclose(episodes.query.inputs[t], expected, atol=1e-5)


def test_a_context_that_hardly_varies_is_scaled_by_a_tenth_of_the_streams_deviation() -> None:
    rng = np.random.default_rng(3)
    codes = np.repeat([0, 1], 5000)
    x = np.where(codes == 0, rng.normal(size=10_000) * 1e-3, rng.normal(size=10_000))
    x = x.astype(np.float32)[:, None]
    episodes = draw_episodes(history(codes, x, np.arange(10_000.0), REGRESSION), count=20)

    _, queries = places({"y": np.arange(10_000.0)}, episodes)

    late = [t for t, query in enumerate(queries) if 4000 < query[0] < 5000]
    assert late
    for t in late:
        window = queries[t].astype(int)
        expected = (x[window, 0] - x[: window[-1] + 1].mean()) / (0.1 * x.std())
        np.testing.assert_allclose(episodes.query.inputs[t, :, 1], expected, atol=1e-3)


def test_a_constant_and_an_absent_feature_are_scaled_to_zero() -> None:
    constant = np.arange(40) * 1e-7  # but for noise
    x = np.stack([constant, np.full(40, np.nan), np.arange(40.0)], axis=1)
    source = history(np.zeros(40, np.int64), x.astype(np.float32), np.arange(40.0), REGRESSION)

    inputs = draw_episodes(source).query.inputs

    assert not inputs[..., [0, 1, 3, 4]].any()
    assert inputs[..., [2, 5]].any()
    assert inputs.isfinite().all()


def test_scaled_numbers_stay_within_four() -> None:
    x = np.where(np.arange(200) % 50 == 49, 1e12, 0.0)[:, None].astype(np.float32)
    source = history(np.zeros(200, np.int64), x, np.arange(200.0), REGRESSION)

    assert float(draw_episodes(source).query.inputs.abs().max()) == 4.0


def test_a_label_is_a_class_slot_or_stands_in_deviations_from_the_mean() -> None:
    codes, x = np.zeros(40, np.int64), np.zeros((40, 1), np.float32)
    values = np.where(np.arange(40) % 2, 3.0, 1.0)

    slots = draw_episodes(history(codes, x, values, CLASSES)).query.targets
    scaled = draw_episodes(history(codes, x, values, REGRESSION)).query.targets
    narrow = draw_episodes(history(codes, x, 1e-4 * values, REGRESSION)).query.targets

    assert slots.dtype == torch.int64
    assert set(slots.flatten().tolist()) == {1, 3}
    assert set(scaled.flatten().tolist()) == {-1.0, 1.0}
    assert narrow.abs().flatten().tolist() == pytest.approx([0.1] * narrow.numel())


def test_the_same_generator_gives_the_same_episodes() -> None:
    source, _ = make_history()

    one, other = draw_episodes(source, seed=7), draw_episodes(source, seed=7)

    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths differ: 3, 2 and 3"):
        history(np.zeros(3, np.int64), np.zeros((2, 1), np.float32), np.zeros(3), CLASSES)


def test_no_label_is_both_trained_on_and_held_out() -> None:
    codes = np.repeat(np.arange(30), 200)
    train, judge = hold_out(plain(codes.tolist()))

    used = [_labels_used(part, 6000) for part in (train, judge)]

    assert not used[0] & used[1]
    apart = {int(codes[p]) for p in used[1] if p % 200 < 180}
    assert apart == {9, 19, 29}
    assert not apart & {int(codes[p]) for p in used[0]}
    assert max(p % 200 for p in used[0]) == 179


def test_fewer_than_twenty_contexts_hold_out_their_newest_labels_only() -> None:
    train, judge = hold_out(plain([0] * 1000 + [1] * 100))

    assert len(train) == 2
    assert _labels_used(judge, 1100) == set(range(900, 1000))


def _labels_used(source: History, labels: int) -> set[int]:
    supports, queries = places({"y": np.arange(float(labels))}, draw_episodes(source, 3000))
    return {int(p) for window in [*supports, *queries] for p in window}


def _scaled(x: Float32s | Floats, codes: NDArray[Any], window: NDArray[Any]) -> Floats:
    """u of the events ``window``, as section 2.2 has it: plainly."""
    u = np.zeros((len(window), 2 * x.shape[1]))
    last = int(window[-1])
    own = [i for i in range(last + 1) if codes[i] == codes[last]]
    for d in range(x.shape[1]):
        whole = [float(v) for v in x[:, d] if not math.isnan(v)]
        m = math.fsum(whole) / len(whole)
        v = math.fsum((value - m) ** 2 for value in whole) / len(whole)
        mine = [float(x[i, d]) for i in own if not math.isnan(x[i, d])]
        n, mean = len(mine), math.fsum(mine) / max(len(mine), 1)
        m_c = (20 * m + math.fsum(mine)) / (20 + n)
        m2 = math.fsum((value - mean) ** 2 for value in mine)
        v_c = (20 * (v + (m - m_c) ** 2) + m2 + n * (mean - m_c) ** 2) / (20 + n)
        v_c = max(v_c, 0.01 * v + 1e-9)
        for row, i in enumerate(window):
            value = float(x[int(i), d])
            if not math.isnan(value):
                u[row, d] = min(max((value - m) / math.sqrt(v), -4), 4)
                u[row, x.shape[1] + d] = min(max((value - m_c) / math.sqrt(v_c), -4), 4)
    return u
