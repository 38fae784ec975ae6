"""``streammaml contexts`` and ``inspect``: what they print, and how they end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from streammaml.backends.kafka import KafkaFeed
from streammaml.backends.ports import Message
from streammaml.config import Config, from_environment
from streammaml.inspection.pages import printable
from tests import wire
from tests.command_line import Call
from tests.kafka_broker import free_port
from tests.test_contexts import CONTEXTS, EVENTS, Scene, settings
from tests.worker_process import clean_environment, kafka_environment, predictions, running

MODEL = {
    "STREAMMAML_FEATURES": '[{name = "a"}, {name = "b"}, {name = "c"}]',
    "STREAMMAML_LABEL__CLASSES": '["no", "yes"]',
    "STREAMMAML_LEARNER__HIDDEN": "[8]",
}
BOTH = [["contexts"], ["inspect", "shop-1"]]


def test_a_listing_is_a_table_with_the_counts_below(call: Call) -> None:
    scene = Scene(settings(), wire.stream(EVENTS, CONTEXTS))
    with scene.running():
        url = ("--url", scene.server.address)
        page = call("contexts", *url, "--sort", "name", "--limit", "3", "--filter", "shop-1*")
        values = call("contexts", *url, "--sort", "name", "--limit", "3", "--json")
        listed = json.loads(values.out)

    assert page.code == values.code == 0
    lines = page.out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip())[:3] == ["context", "partition", "labels"]
    assert [line.split()[0] for line in lines[1:4]] == ["shop-1", "shop-10", "shop-11"]
    assert lines[4] == "3 of 3 that match 'shop-1*'; 12 in memory, 12 on disk"
    assert [line["context"] for line in listed["contexts"]] == ["shop-0", "shop-1", "shop-10"]


def test_a_context_is_shown_with_names_and_classes_of_the_user(call: Call) -> None:
    scene = Scene(settings(), wire.stream(EVENTS, CONTEXTS))
    with scene.running():
        state = scene.context("shop-1")["state"]
        ended = call("inspect", "shop-1", "--url", scene.server.address)

    assert ended.code == 0
    page = ended.out
    assert f"{state['events']} applied, the last one at offset {state['last_offset']}" in page
    assert "as of now, offset" in page
    assert re.search(r"weights +\d+, norm [\d.]+, distance to the initialization [\d.]+", page)
    assert re.search(r"detector +PageHinkley, count \d+, mean [\d.]+", page)
    assert re.search(r"bytes stored +[\d,]+: light [\d,]+, weights [\d,]+", page)
    support = page.partition("support set: ")[2].splitlines()
    assert support[0] == "32 examples, the oldest first"
    assert support[1].split() == ["label", "a", "b", "c"]
    assert [line.split()[0] for line in support[2:]] == [e["label"] for e in state["support"]]


def test_a_name_from_the_wire_moves_no_terminal(call: Call) -> None:
    name = "[bold]x\x1b[2J\u202e"
    event = wire.event(0, name)
    scene = Scene(settings(), [Message("events", b"k", event)])
    with scene.running():
        url = ("--url", scene.server.address)
        pages = [call("contexts", *url), call("inspect", name, *url)]

    assert printable(name) == "[bold]x\\x1b[2J\\u202e"
    assert all(printable(name) in page.out and "\x1b" not in page.out for page in pages)


def test_a_context_that_is_not_there_ends_with_1_and_the_other_ways(call: Call) -> None:
    scene = Scene(settings(), wire.stream(10))
    with scene.running():
        ended = call("inspect", "shop-99", "--url", scene.server.address)

    assert ended.code == 1
    assert "no context of this name in the partitions of this worker" in ended.err
    assert "--url names another worker" in ended.err
    assert "--from-topic" in ended.err


@pytest.mark.parametrize("arguments", BOTH)
def test_without_a_worker_it_ends_with_1_and_names_both_ways(
    call: Call, arguments: list[str]
) -> None:
    port = free_port()

    ended = call(*arguments, "--set", f"web.port={port}")

    assert ended.code == 1
    assert f"no worker answers at http://127.0.0.1:{port}" in ended.err
    assert "--url names another worker" in ended.err
    assert "--from-topic reads" in ended.err


def test_an_address_where_something_else_answers_ends_with_1(call: Call) -> None:
    scene = Scene(settings(), [])
    with scene.running():
        ended = call("contexts", "--url", f"{scene.server.address}/metrics?")

    assert ended.code == 1
    assert "is no worker of this release" in ended.err


@pytest.mark.parametrize("arguments", BOTH)
def test_the_topic_needs_a_model_and_a_broker(call: Call, arguments: list[str]) -> None:
    model = ("--set", "features=[{name='a'}]", "--bootstrap-servers", f"127.0.0.1:{free_port()}")

    assert call(*arguments, "--from-topic").code == 78
    assert call(*arguments, "--from-topic", *model).code == 69


@pytest.mark.parametrize("limit", ["0", "1001"])
def test_a_limit_out_of_range_is_a_wrong_use(call: Call, limit: str) -> None:
    assert call("contexts", "--limit", limit).code == 2
    assert call("contexts", "--filter", "x" * 2000).code == 2


@pytest.mark.kafka
def test_the_topic_of_a_stopped_worker_shows_what_the_worker_showed(
    call: Call, kafka_servers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_port())
    environment = kafka_environment(kafka_servers) | MODEL
    environment |= {"STREAMMAML_WEB__PORT": port}
    environment |= {"STREAMMAML_STATE__DIRECTORY": str(tmp_path / "state")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = Config.build(from_environment(environment))
    assert call("topics").code == 0
    empty = call("contexts", "--from-topic")
    feed(config)
    names = [f"shop-{i}" for i in range(CONTEXTS)]

    def states(*more: str) -> dict[str, Any]:
        shown = {name: call("inspect", name, "--json", *more) for name in names}
        return {name: json.loads(ended.out)["state"] for name, ended in shown.items()}

    with running(["streammaml", "run"], tmp_path, clean_environment(**environment)) as worker:
        predictions(kafka_servers, config.topics.predictions, EVENTS, worker)
        before = states()
        listed = json.loads(call("contexts", "--sort", "labels", "--json").out)
        worker.stop()
    after = states("--from-topic")
    stored = json.loads(call("contexts", "--sort", "labels", "--json", "--from-topic").out)
    page = call("inspect", "shop-1", "--from-topic")
    missing = call("inspect", "shop-99", "--from-topic")
    other = [call(*words, "--from-topic", "--set", "learner.hidden=[16]") for words in BOTH]

    assert after == before
    assert (stored["contexts"], stored["offsets"]) == (listed["contexts"], listed["offsets"])
    assert sum(line["events"] for line in stored["contexts"]) == EVENTS
    offset = stored["offsets"][str(partition_of(stored, "shop-1"))]
    assert f"as of the last barrier, offset {offset}" in page.out
    assert page.err == ""
    assert missing.code == 1
    assert f"no context 'shop-99' in '{config.topics.state}'" in missing.err
    assert [ended.code for ended in other] == [78, 78]
    assert all("network: [6, 8, 2] there, [6, 16, 2] here" in ended.err for ended in other)
    assert empty.code == 0
    assert f"0 of 0; 0 contexts in {config.topics.state}" in empty.out


def partition_of(listed: dict[str, Any], name: str) -> int:
    (line,) = (line for line in listed["contexts"] if line["context"] == name)
    partition: int = line["partition"]
    return partition


def feed(config: Config) -> None:
    outlet = KafkaFeed(config)
    try:
        outlet.send([m._replace(topic=config.topics.events) for m in wire.stream(EVENTS, CONTEXTS)])
        outlet.flush()
    finally:
        outlet.close()
