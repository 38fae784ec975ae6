"""Every fenced block of the README is run here; one that nothing here runs is a failure."""

from __future__ import annotations

import json
import random
import re
import secrets
import shlex
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from streammaml.backends.codec import EventDecoder, Prediction
from streammaml.backends.memory import MemoryRecord
from streammaml.cli import app
from streammaml.config import Config
from streammaml.learner import Labels, Schema
from tests.worker_process import clean_environment, kafka_environment, predictions, running

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_S = 400.0
EVENTS = 3_000
STORES = 20
MOST_LOG_LINES = 30
SECRET = "hunter2-swordfish"


class Block(NamedTuple):
    line: int
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


BLOCKS = [
    Block(README.count("\n", 0, found.start()) + 1, found.group(1), found.group(2))
    for found in FENCE.finditer(README)
]


def kind_of(block: Block) -> str:
    """Which test runs it."""
    if block.language == "bash":
        programs = {line.split()[0] for line in block.lines}
        return {"make": "target", "streammaml": "command", "docker": "composition"}.get(
            "+".join(programs), ""
        )
    if block.language == "json":
        return "prediction" if "probabilities" in json.loads(block.text) else "event"
    return {"toml": "configuration", "text": "table"}.get(block.language, "")


def blocks(kind: str) -> list[Any]:
    found = [pytest.param(b, id=f"line{b.line}") for b in BLOCKS if kind_of(b) == kind]
    assert found, f"no {kind} in the README"
    return found


def configuration() -> Config:
    """The README's own."""
    (block,) = (block for block in BLOCKS if kind_of(block) == "configuration")
    return Config.build(tomllib.loads(block.text))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{block.line}")
def test_every_block_is_run_by_a_test(block: Block) -> None:
    assert kind_of(block), f"line {block.line}: no test here runs a block of {block.language!r}"


def test_every_fence_is_a_block() -> None:
    assert len(re.findall(r"^\s*(```|~~~)", README, re.MULTILINE)) == 2 * len(BLOCKS)


def test_the_configuration_loads_and_fits_the_text_around_it() -> None:
    config = configuration()

    assert [feature.name for feature in config.features] == ["f_temp", "f_promo", "f_weekday"]
    assert config.label.classes == ("no", "yes")


@pytest.mark.parametrize("block", blocks("event"))
def test_an_event_is_one_under_the_configuration(block: Block) -> None:
    config = configuration()
    decode = EventDecoder(config.features, "json", config.worker.max_record_bytes)
    (line,) = block.lines

    event = decode(MemoryRecord("events", 0, 0, 0, None, line.encode(), []))
    collated = Schema(config.features).collate([event], Labels(config.label))

    assert collated.rejected == []
    assert collated.unknown_categories == 0
    assert event.id == json.loads(line)["id"]
    assert set(json.loads(line)["features"]) == {feature.name for feature in config.features}


@pytest.mark.parametrize("block", blocks("prediction"))
def test_a_prediction_is_one_that_a_worker_writes(block: Block) -> None:
    (line,) = block.lines
    prediction = msgspec.json.decode(line, type=Prediction)

    assert json.loads(msgspec.json.encode(prediction)) == json.loads(line)
    assert prediction.id == f"{prediction.topic}-{prediction.partition}-{prediction.offset}"
    probabilities = prediction.probabilities or {}
    assert sum(probabilities.values()) == pytest.approx(1)
    assert prediction.predicted == max(probabilities, key=probabilities.__getitem__)
    assert tuple(probabilities) == configuration().label.classes


CALLS = {
    "demo": "streammaml demo",
    "test": "-m pytest",
    "check": "mypy",
    "bench": "-m tests.benchmarks.speed",
}


@pytest.mark.parametrize("block", blocks("target"))
def test_a_target_of_make_is_there_and_calls_what_it_should(block: Block) -> None:
    """Run whole, they would contain this suite: make says what it would do."""
    for line in block.lines:
        program, target = shlex.split(line)

        done = subprocess.run(
            [program, "-n", target],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            cwd=ROOT,
            env=clean_environment(),
        )

        assert done.returncode == 0, done.stderr
        assert CALLS[target] in done.stdout


@pytest.mark.parametrize("block", blocks("composition"))
def test_compose_has_the_file_the_services_and_the_flags_that_are_named(block: Block) -> None:
    """Run whole, it would need a container engine."""
    for line in block.lines:
        program, plugin, *words = shlex.split(line)
        assert (program, plugin, words[0]) == ("docker", "compose", "-f")
        file, command, rest = words[1], words[2], words[3:]

        services = compose("-f", file, "config", "--services").split()
        usage = compose(command, "--help")

        for word in rest:
            assert (word in usage) if word.startswith("--") else (word in services), word


def compose(*arguments: str) -> str:
    done = subprocess.run(
        ["docker-compose", *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("table"))
@pytest.mark.timeout(240)
def test_the_demo_ends_with_the_table_but_for_the_numbers(block: Block, tmp_path: Path) -> None:
    command = shlex.split("streammaml demo --events 2000 --headless")

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env=clean_environment(COLUMNS="80"),
    )

    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == without_numbers(block.text)


def without_numbers(text: str) -> list[str]:
    """Lines without the blanks that centre and align numbers of another width."""
    return [re.sub(r"\d[\d.,]*", "#", " ".join(line.split())) for line in text.splitlines()]


class Reader:
    """Someone who types the commands, one after another."""

    def __init__(self, servers: str, folder: Path) -> None:
        self.folder = folder
        self._servers = servers
        self._settings = kafka_environment(servers) | {"STREAMMAML_KAFKA__SASL_PASSWORD": SECRET}
        self._group: dict[str, str] = {}
        self._predicted = 0
        self.fed = 0
        self.served = 0
        self.looked = 0

    def types(self, line: str) -> None:
        # The one thing a test has to change: a flag wins over the environment.
        words = shlex.split(line.replace("localhost:9092", self._servers))
        if words[1] == "run":
            self._serves(words)
        elif words[1] in ("contexts", "inspect"):
            self._looks(words)
        else:
            self._does(words)

    def _does(self, words: list[str], **more: str) -> str:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            cwd=self.folder,
            env=clean_environment(**self._settings | more),
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        assert SECRET not in done.stdout + done.stderr
        if words[1] == "feed":
            assert f"sent {EVENTS:,} events, 0 of them damaged" in done.stdout
            self.fed += 1
        return done.stdout

    def _looks(self, words: list[str]) -> None:
        """At what the worker that ran last has stored."""
        page = self._does(words, **self._group)
        assert f"{STORES} contexts in {self._group['STREAMMAML_TOPICS__STATE']}" in page or (
            "as of the last barrier, offset" in page
        )
        assert "store-" in page
        self.looked += 1

    def _serves(self, words: list[str]) -> None:
        """A group of its own, with its own state, reads all that was fed; then SIGTERM."""
        folder = self.folder
        if "--features" in words:  # "without a configuration file"
            folder = self.folder / "empty"
            folder.mkdir()
        name = f"readme-{secrets.token_hex(4)}"
        group = {"STREAMMAML_KAFKA__GROUP": name, "STREAMMAML_TOPICS__STATE": f"{name}-state"}
        self._does(["streammaml", "topics"], **group)
        self._group = group
        topic = self._settings["STREAMMAML_TOPICS__PREDICTIONS"]
        with running(words, folder, clean_environment(**self._settings | group)) as worker:
            found = predictions(self._servers, topic, self._predicted + EVENTS, worker)
            worker.stop()
        self._predicted += EVENTS
        self.served += 1
        assert len(found) == self._predicted
        assert len({p["id"] for p in found}) == EVENTS
        assert {p["event"] for p in found} == {f"events-{i}" for i in range(EVENTS)}
        check_log(worker.err.read_text())


def check_log(text: str) -> None:
    lines = [json.loads(line) for line in text.splitlines()]
    assert SECRET not in text
    assert len(lines) < MOST_LOG_LINES, "a line for each event?"
    address = next(line["address"] for line in lines if line["event"] == "web_ready")
    assert address.startswith("http://127.0.0.1:")


@pytest.fixture
def reader(kafka_servers: str, tmp_path: Path) -> Reader:
    write_events(tmp_path / "events.csv")
    write_events(tmp_path / "history.csv", seed=1)
    return Reader(kafka_servers, tmp_path)


def write_events(path: Path, seed: int = 0) -> None:
    """What the README's stream looks like: a store's customers like it warm, or the opposite."""
    rng = random.Random(seed)
    begin = datetime(2026, 11, 22, tzinfo=UTC)
    rows = ["store,time,f_temp,f_promo,f_weekday,label"]
    for i in range(EVENTS):
        store, promo, day = i % STORES, rng.random() < 0.5, rng.choice(["Mon", "Tue", "Wed"])
        temp = rng.gauss(15, 8)
        label = "yes" if (temp > 15) != (promo and store % 2 == 0) else "no"
        shown = "" if i % 50 == 7 else f"{temp:.1f}"
        time = (begin + timedelta(minutes=i)).isoformat()
        rows.append(f"store-{store:02d},{time},{shown},{str(promo).lower()},{day},{label}")
    path.write_text("\n".join(rows) + "\n")


@pytest.mark.kafka
@pytest.mark.timeout(1500)
def test_the_commands_work_one_after_another_as_they_stand(reader: Reader) -> None:
    commands = [line for block in BLOCKS if kind_of(block) == "command" for line in block.lines]

    for line in commands:
        reader.types(line)

    served = sum(line.startswith("streammaml run") for line in commands)
    assert (reader.fed, reader.served, reader.looked) == (1, served, 2)
    proposed = Config.build(tomllib.loads((reader.folder / "streammaml.toml").read_text()))
    assert proposed == configuration()
    assert (reader.folder / "start.safetensors").exists()


def test_every_command_is_in_the_table_and_every_name_is_a_command() -> None:
    table = README.split("## Commands")[1].split("##")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    groups = [group.typer_instance for group in app.registered_groups if group.typer_instance]

    named: set[str] = set()
    for code in re.findall(r"`([^`]+)`", " ".join(row.split("|")[1] for row in rows)):
        named.update(word for word in code.partition(" --")[0].split() if word.islower())

    commands = [c for of in (app, *groups) for c in of.registered_commands]
    names = {c.name or (c.callback.__name__ if c.callback else "") for c in commands}
    assert named == names | {"streammaml", "config", "initializations"}
