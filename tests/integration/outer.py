"""Outer loops as processes on a real broker, and what they leave in the topic."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streammaml.backends.kafka import KafkaFeed, TopicAdmin
from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import Published, read_published
from streammaml.catalogue import Catalogue
from streammaml.config import Config, spec_of
from streammaml.config_file import to_toml
from streammaml.initialization import check_fits
from tests.integration.job import DEADLINE_S, Job
from tests.integration.rig import WorkerProcess
from tests.meta.episode_maker import make_config
from tests.outer_rig import QUICK, messages

TOPICS = ("events", "predictions", "adaptations", "dead_letters", "episodes", "initializations")


class OuterRig(Job):
    """Topics and one configuration; loops of one group on them."""

    def __init__(self, servers: str, folder: Path, **outer: Any) -> None:
        super().__init__(servers, folder)
        topics = {name: self.topic(name) for name in (*TOPICS, "state")}
        self.config = Config.build(
            make_config(**{**QUICK, "steps": 4, **outer}).model_dump(),
            {
                "topics": {**topics, "partitions": 4},
                "kafka": {"bootstrap_servers": servers, "group": self.name},
                "state": {"directory": str(folder / "state")},
            },
        )
        self.file.write_text(to_toml(self.config))
        self._loops: list[WorkerProcess] = []
        with TopicAdmin(self.config) as admin:
            admin.ensure()

    def produce(self, extra: list[Message] | None = None) -> int:
        """Send the episodes of a stream, and what else there is; how many episodes."""
        feed = KafkaFeed(self.config)
        topic = self.config.topics.episodes
        sent = messages(contexts=40, events=220, seed=1)
        feed.send([m._replace(topic=topic) for m in [*sent, *(extra or [])]])
        feed.flush()
        feed.close()
        return len(sent)

    def ask(
        self, *arguments: str, expect: int = 0, sets: Mapping[str, object] | None = None
    ) -> str:
        """Run a command to its end; its standard output, or its errors where it has to fail."""
        done = subprocess.run(
            self.command(*arguments, sets=sets),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stderr}"
        return done.stderr if expect else done.stdout

    def value(self, *arguments: str) -> dict[str, Any]:
        """What a command prints as JSON."""
        found: dict[str, Any] = json.loads(self.ask(*arguments, "--json"))
        return found

    def loop(self, every: str, sets: Mapping[str, object] | None = None) -> WorkerProcess:
        """Start one that runs from time to time."""
        command = self.command("outer", "--every", every, "--port", "0", sets=sets)
        loop = WorkerProcess(command, self.folder / f"outer-{len(self._loops)}.log")
        self._loops.append(loop)
        return loop

    def catalogue(self) -> Catalogue:
        """All that the topic holds, none of which may be unusable."""
        catalogue = Catalogue()
        refused = catalogue.read(self.read("initializations"))
        assert refused == []
        return catalogue

    def current(self) -> Published | None:
        """The latest current one, checked: it decodes, fits, passed its gate, and is a version."""
        found = None
        versions: dict[int, str] = {}
        for record in self.read("initializations"):
            if record.value is None:
                continue
            published = read_published(record)  # refuses what is damaged, or not finite
            if record.key != b"current":
                versions[published.version] = published.digest
                continue
            assert versions[published.version] == published.digest
            check_fits(published.initialization, spec_of(self.config))
            assert any(net["passed"] for net in published.report["nets"].values())
            found = published
        return found

    def end_all(self) -> None:
        for loop in self._loops:
            loop.kill()
