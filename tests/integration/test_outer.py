"""The outer loop as a user runs it, on a real broker."""

from __future__ import annotations

import json
import random
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from streammaml.backends.ports import Message
from streammaml.evaluation.streams import hyper
from tests.faults.outer_kills import kill_often
from tests.integration.outer import OuterRig
from tests.integration.rig import WorkerProcess
from tests.kafka_broker import Broker, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def rig(kafka_servers: str, tmp_path: Path) -> Iterator[OuterRig]:
    rig = OuterRig(kafka_servers, tmp_path)
    yield rig
    rig.end_all()


def test_once_publishes_and_the_versions_are_listed_shown_and_rolled_back(rig: OuterRig) -> None:
    sent = rig.produce([Message("", b"shop", b"no episode")])
    file = rig.folder / "outer.prom"

    first = rig.value("outer", "--once", "--metrics-file", str(file))
    table = rig.ask("outer", "--once")

    assert (first["result"], first["version"], first["steps"]) == ("published", 1, 4)
    assert "v2 is current, was v1" in table
    assert re.search(r"network +0\.\d+ +0\.\d+ +yes", table)
    metrics = file.read_text()
    assert 'streammaml_outer_runs_total{result="published"} 1.0' in metrics
    assert f'streammaml_outer_episodes_total{{result="accepted"}} {sent:.1f}' in metrics
    assert 'streammaml_outer_episodes_total{result="rejected"} 1.0' in metrics
    assert 'streammaml_init_version{role="outer"} 1.0' in metrics
    assert "streammaml_outer_period_seconds" not in metrics

    listed = rig.value("initializations", "list")
    assert [line["version"] for line in listed["versions"]] == [2, 1, 0]
    assert [line["current"] for line in listed["versions"]] == [True, False, False]
    assert [line["by"] for line in listed["versions"]] == ["outer", "outer", "start"]
    assert listed["current"]["matches"] is True
    shown = rig.value("initializations", "show", "v1")
    assert shown["report"]["nets"]["network"]["passed"] is True
    assert "current" in rig.ask("initializations", "list")
    assert '"nets"' in rig.ask("initializations", "show")

    assert "there are: v0, v1, v2" in rig.ask("initializations", "rollback", "v7", expect=1)
    assert "v1 is current, was v2" in rig.ask("initializations", "rollback")
    current = rig.current()
    assert current is not None
    assert (current.version, current.by) == (1, "rollback")
    assert rig.value("outer", "--once")["version"] == 3


def test_a_loop_publishes_again_and_again_and_says_so(rig: OuterRig) -> None:
    rig.produce()
    loop = rig.loop("1s")
    loop.says('"result": "published"', times=2)

    found = re.search(r'"address": "([^"]+)"', loop.log())
    assert found is not None
    address = found.group(1)

    assert get(f"{address}/readyz") == '{"ready": true}'
    assert '"status": "ok"' in get(f"{address}/healthz")
    assert "outer.js" in get(address)
    shown = json.loads(get(f"{address}/api/summary"))
    assert shown["results"]["published"] >= 2
    assert shown["published"][0]["report"]["nets"]["network"]["passed"] is True
    metrics = get(f"{address}/metrics")
    assert "streammaml_outer_period_seconds 1.0" in metrics
    assert "streammaml_build_info{" in metrics
    assert "worker_state" not in metrics
    loop.stop()
    assert rig.current() is not None


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def test_a_rollback_is_taken_over_by_the_loop_that_runs(rig: OuterRig) -> None:
    rig.produce()
    loop = rig.loop("1s")
    loop.says('"result": "published"', times=2)

    other = {"learner.hidden": "[9]"}
    refusal = rig.ask("initializations", "rollback", "1", expect=78, sets=other)
    published = loop.log().count('"result": "published"')
    loop.says('"result": "published"', times=published + 2)  # nothing has fenced it
    rig.ask("initializations", "rollback", "1")

    def goes_on_from_it() -> bool:
        entries = rig.catalogue().entries.values()
        return any(entry.version > 2 and entry.parent == 1 for entry in entries)

    loop.until(goes_on_from_it, "a version whose parent is what was rolled back to")
    loop.stop()
    assert "does not fit the configuration" in refusal


def test_of_two_loops_one_ends_and_names_the_cure(rig: OuterRig) -> None:
    rig.produce()
    loops = [rig.loop("1s"), rig.loop("1s")]

    wait_until(lambda: sum(loop.is_running() for loop in loops) == 1, 60, "one of them ends")

    loser, winner = sorted(loops, key=WorkerProcess.is_running)
    assert loser.end(0) == 1
    assert "outer.group" in loser.log()
    winner.stop()
    assert rig.current() is not None


def test_a_stop_in_the_middle_of_a_run_ends_it_well(kafka_servers: str, tmp_path: Path) -> None:
    rig = OuterRig(kafka_servers, tmp_path, steps=1_000_000, seconds=600.0)
    rig.produce()
    loop = rig.loop("10m")
    loop.says('"event": "outer_run_begins"')
    loop.stop()

    assert '"why": "stopped"' in loop.log()
    assert rig.catalogue().entries == {}


def test_killed_at_random_times_it_never_leaves_a_current_one_that_is_not_whole(
    rig: OuterRig,
) -> None:
    rig.produce()

    toll = kill_often(rig, 3, random.Random(20261124))

    assert toll.versions >= 1


def test_without_its_topics_it_ends_with_78_and_without_a_broker_with_69(
    kafka_servers: str, tmp_path: Path
) -> None:
    rig = OuterRig(kafka_servers, tmp_path)
    nowhere = {"kafka.bootstrap_servers": "127.0.0.1:1", "kafka.unavailable_limit_s": 0.5}

    elsewhere = rig.ask("outer", "--once", expect=78, sets={"topics.episodes": "none"})
    away = rig.ask("outer", "--once", expect=69, sets=nowhere)

    assert "streammaml topics" in elsewhere
    assert "gave up after 0.5 s" in away


def test_a_history_and_another_domain_are_starts_that_pass_the_same_gate(
    kafka_servers: str, tmp_path: Path
) -> None:
    rig = OuterRig(kafka_servers, tmp_path)
    history = write_history(tmp_path / "history.csv")

    published = rig.value("outer", "--from", str(history), "--context", "context")
    again = rig.value("outer", "--from", str(history), "--context", "context", "--rule", "anil")
    sets = {"topics.initializations": rig.config.topics.adaptations}
    source = f"v1@{rig.config.topics.initializations}"
    elsewhere = rig.ask("outer", "--once", "--from-initialization", source, sets=sets)
    missing = f"v9@{rig.config.topics.initializations}"
    refused = rig.ask("outer", "--once", "--from-initialization", missing, expect=1, sets=sets)

    assert (published["result"], published["version"]) == ("published", 1)
    assert again["report"]["rule"] == "anil"
    assert again["parent"] == 1
    assert elsewhere.startswith("skipped")
    assert "v9 is not in the topic; there are: v0, v1, v2" in refused


def write_history(path: Path) -> Path:
    """A stream of the generated family, as a table."""
    stream = hyper(24, 100, 1)
    rows = [",".join(["context", *(f"x{i}" for i in range(stream.x.shape[1])), "label"])]
    for context, x, y in zip(stream.contexts, stream.x.tolist(), stream.y, strict=True):
        label = ("no", "yes")[int(y)]
        rows.append(",".join([f"s{context}", *(f"{value:.4f}" for value in x), label]))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_broker_that_dies_and_comes_back_is_published_to_again(
    own_broker: Broker, tmp_path: Path
) -> None:
    rig = OuterRig(own_broker.bootstrap, tmp_path)
    rig.produce()
    loop = rig.loop("1s")
    loop.says('"result": "published"')

    own_broker.kill()
    own_broker.start()
    before = rig.catalogue().highest
    loop.until(lambda: rig.catalogue().highest > before, "another version")
    loop.stop()

    assert rig.current() is not None
