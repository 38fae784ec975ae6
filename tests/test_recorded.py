"""A history as episodes: windows, scalers, order."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from streammaml.config import Config
from streammaml.events import Episode, Event
from streammaml.meta.episodes import PSEUDO_EVENTS, QUERY
from streammaml.meta.reservoir import Reservoir
from streammaml.recorded import STRIDE, Recorded, collate, episodes_of

EVENTS = 300


def make_config(**label: object) -> Config:
    return Config.build(
        {
            "features": [{"name": "a"}, {"name": "b"}],
            "label": label or {"classes": ["no", "yes"]},
        }
    )


def make_history(seed: int = 0) -> Recorded:
    """Two contexts; the first number of an event is its place in the stream."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (EVENTS, 2)).astype(np.float32)
    x[:, 0] = np.arange(EVENTS)
    y = rng.integers(0, 2, EVENTS).astype(np.float64)
    y[rng.random(EVENTS) < 0.2] = np.nan
    return Recorded([f"shop-{c}" for c in rng.integers(0, 2, EVENTS)], x, y, ("no", "yes"), 0)


def places(episode: Episode) -> list[int]:
    return [int(place) for place in episode.x[:, 0]]


def test_a_window_is_contiguous_labels_of_one_context_and_counts_them() -> None:
    history = make_history()

    found = list(episodes_of(make_config(), history))

    labelled = defaultdict(list)
    for place, (context, y) in enumerate(zip(history.contexts, history.y, strict=True)):
        if not np.isnan(y):
            labelled[context].append(place)
    assert len(found) > 20
    for episode in found:
        size = episode.support + QUERY
        assert places(episode) == labelled[episode.context][episode.labels - size : episode.labels]
        assert episode.y.tolist() == history.y[places(episode)].tolist()
        assert 2 <= episode.support <= 32


def test_windows_come_in_the_order_of_the_stream_and_a_reservoir_takes_them_all() -> None:
    config = make_config()
    reservoir = Reservoir(config)

    found = list(episodes_of(config, make_history()))

    ends = [places(episode)[-1] for episode in found]
    assert ends == sorted(ends)
    assert [reservoir.add(episode) for episode in found] == [None] * len(found)
    of_one = [e.labels for e in found if e.context == "shop-0"]
    assert set(np.diff(of_one)) == {STRIDE}


def test_scalers_are_the_streams_and_the_contexts_up_to_the_end_of_the_window() -> None:
    history = make_history()
    *_, episode = episodes_of(make_config(), history)

    own = history.x[[c == episode.context for c in history.contexts]].astype(np.float64)
    own = own[own[:, 0] <= places(episode)[-1]]
    mean, variance = history.x.mean(0, np.float64), history.x.var(0, np.float64)
    total = PSEUDO_EVENTS + len(own)
    shift = (PSEUDO_EVENTS * mean + own.sum(0)) / total
    square = (PSEUDO_EVENTS * (variance + mean**2) + np.square(own).sum(0)) / total

    np.testing.assert_allclose(episode.shift, [mean, shift], rtol=1e-5)
    inverse = 1 / np.sqrt([variance, square - shift**2])
    np.testing.assert_allclose(episode.inverse, inverse, rtol=1e-4)
    assert episode.y_scale.tolist() == [0, 1]


def test_labels_of_a_regression_are_scaled_by_those_of_the_whole_history() -> None:
    history = make_history()._replace(classes=())

    *_, episode = episodes_of(make_config(task="regression"), history)

    known = history.y[~np.isnan(history.y)]
    np.testing.assert_allclose(episode.y_scale, [known.mean(), known.std()])


@pytest.mark.parametrize("labels", [0, 17])
def test_a_history_without_enough_labels_has_no_episode(labels: int) -> None:
    history = make_history()
    y = np.where(np.arange(EVENTS) < labels, 1.0, np.nan)

    assert list(episodes_of(make_config(), history._replace(y=y))) == []


def test_events_that_are_none_are_counted() -> None:
    recorded = collate(make_config(), [[Event()], [Event()]])

    assert (recorded.rejected, recorded.contexts, recorded.x.shape) == (2, [], (0, 2))
