"""The main job on real input and real Kafka: every event predicted once, whatever happens."""

from __future__ import annotations

import random
import re
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.integration.job import DEADLINE_S, Job, need
from tests.kafka_broker import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

CHEST_EVENTS = 36_860
WIND_EVENTS = 27_864


@pytest.fixture
def job(kafka_servers: str, tmp_path: Path) -> Job:
    return Job(kafka_servers, tmp_path)


def run_to_the_end(job: Job, file: Path, *more: str) -> tuple[int, int, str]:
    """Feed a file, work it off; events sent, damaged, and the metrics at the end."""
    job.configure(file)
    job.call("topics")
    sent, damaged = job.feed(file, *more)
    with job.worker() as process:
        job.wait_for_all(sent, process)
        wait_until(lambda: job.metric("streammaml_consumer_lag_records") == 0, DEADLINE_S, "lag 0")
        return sent, damaged, job.metrics()


def sample(metrics: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))


def mean_loss(metrics: str, model: str) -> float:
    name = "streammaml_prequential_loss"
    labels = f'{{model="{model}"}}'
    return sample(metrics, f"{name}_sum{labels}") / sample(metrics, f"{name}_count{labels}")


def test_chest_har_is_predicted_event_by_event(job: Job) -> None:
    sent, damaged, metrics = run_to_the_end(job, need("chest_har.parquet"))

    assert (sent, damaged) == (CHEST_EVENTS, 0)
    predictions = job.predictions()
    assert len(predictions) == CHEST_EVENTS
    assert len({p["event"] for p in predictions}) == CHEST_EVENTS
    assert len({p["context"] for p in predictions}) == 15
    assert {p["class"] for p in predictions} == set(range(1, 8))
    assert job.read("dead_letters") == []
    assert sample(metrics, 'streammaml_prequential_loss_count{model="adapted"}') == CHEST_EVENTS
    assert mean_loss(metrics, "adapted") < mean_loss(metrics, "init")
    assert len(job.read("adaptations")) > 0


def test_damaged_events_become_dead_letters_and_all_others_predictions(job: Job) -> None:
    sent, damaged, _ = run_to_the_end(job, need("chest_har.parquet"), "--corrupt", "0.01")

    assert sent == CHEST_EVENTS
    assert 250 < damaged < 500
    letters = job.read("dead_letters")
    assert len(letters) == damaged
    assert all(
        {"topic", "partition", "offset", "error", "message"} == set(dict(letter.headers))
        for letter in letters
    )
    predictions = Counter(p["id"] for p in job.predictions())
    assert len(predictions) == CHEST_EVENTS - damaged
    assert set(predictions.values()) == {1}


def test_gefcom_wind_is_predicted_as_a_regression(job: Job) -> None:
    sent, _, metrics = run_to_the_end(job, need("gefcom_wind.parquet"))

    assert sent == WIND_EVENTS
    predictions = job.predictions()
    assert len({p["id"] for p in predictions}) == len(predictions) == WIND_EVENTS
    outside = [p for p in predictions if not 0 <= p["value"] <= 1]
    assert len(outside) <= 4, "only a partition's first event has no range of labels to clip to"
    assert job.read("dead_letters") == []
    assert mean_loss(metrics, "adapted") < mean_loss(metrics, "init")


def test_ten_kills_at_random_times_leave_one_prediction_for_each_event(job: Job) -> None:
    file = need("chest_har.parquet")
    rng = random.Random(20261124)
    job.configure(file)
    job.call("topics")
    sent, _ = job.feed(file)
    slow = {"worker.max_poll_records": 50, "worker.commit_interval_ms": 100}

    kills = 0
    while kills < 10:
        mark = job.ends("predictions") + rng.randint(200, CHEST_EVENTS // 12)
        process = job.start(slow)
        wait_until(partial(past, job, mark, process), DEADLINE_S, f"kill {kills}")
        process.kill()
        process.wait()
        kills += 1
    with job.worker() as process:
        job.wait_for_all(sent, process)

    predictions = Counter(p["id"] for p in job.predictions())
    assert len(predictions) == CHEST_EVENTS
    assert set(predictions.values()) == {1}


def past(job: Job, mark: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, job.log()
    return job.ends("predictions") >= mark
