"""What one undisturbed worker makes of a log, bit for bit, and where Kafka holds anything else.

Computed in this process, partition by partition, by the learner and the codec alone: no client, no
transaction, no store, and no context ever leaves memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from streammaml.backends.ports import Message, Partition, Record, Standing
from streammaml.config import Config, spec_of
from streammaml.initialization import draw
from streammaml.learner import Learner
from streammaml.learner.snapshot import LIGHT, Format
from streammaml.partition import PartitionPlayer, RejectionLimit
from streammaml.recovery import BARRIER_KEY, write_barrier
from tests.integration.job import Job

AT_ONCE = 1000
SHOWN = 5
OUTPUTS = ("predictions", "adaptations", "dead_letters")

State = dict[tuple[int, bytes], bytes]
"""Value by partition and key, as after compaction."""
Outputs = dict[str, Counter[tuple[Any, ...]]]
"""By topic: key, value and headers of each message, and how often it is there."""


class Made(NamedTuple):
    outputs: Outputs
    state: State


def undisturbed(config: Config, log: Mapping[int, Sequence[Record]], topic_id: str) -> Made:
    """Outputs and final state; ``log`` has the records of each partition of the events topic."""
    config = Config.build(config.model_dump(), {"learner": {"max_contexts": 10_000_000}})
    topics = config.topics
    names = {getattr(topics, name): name for name in OUTPUTS}
    made = Made({name: Counter() for name in OUTPUTS}, {})
    for index, records in log.items():
        if not records:
            continue
        partition = Partition(topics.events, index)
        learner = Learner(config, draw(spec_of(config), config.learner.seed))
        player = PartitionPlayer(partition, config, learner, RejectionLimit(1000, 1000, 1.0))
        for first in range(0, len(records), AT_ONCE):
            for message in player.play(records[first : first + AT_ONCE]).messages:
                made.outputs[names[message.topic]][_content(message)] += 1
        end = records[-1].offset + 1
        for key, value in learner.snapshot():
            assert value is not None
            made.state[index, key] = value
        made.state[index, BARRIER_KEY] = write_barrier(
            config, end, learner.version, Standing(end, 0, end, topic_id, len(log))
        )
    return made


def found(job: Job) -> Made:
    """What Kafka holds, as read_committed sees it."""
    outputs = {name: Counter(map(_content, job.read(name))) for name in OUTPUTS}
    state: State = {}
    for record in job.read("state"):
        if record.value is None:
            state.pop((record.partition, record.key), None)
        else:
            state[record.partition, record.key] = record.value
    return Made(outputs, state)


def log_of(job: Job) -> dict[int, list[Any]]:
    """The events topic by partition."""
    log: dict[int, list[Any]] = {index: [] for index in range(job.partitions("events"))}
    for record in job.read("events"):
        log[record.partition].append(record)
    return log


def violations(
    job: Job, config: Config, log: Mapping[int, Sequence[Record]] | None = None
) -> list[str]:
    """One line for each way in which Kafka does not hold what an undisturbed worker makes."""
    log = log_of(job) if log is None else log
    return differing(config, undisturbed(config, log, job.topic_id("events")), found(job))


def differing(config: Config, expected: Made, actual: Made) -> list[str]:
    lines: list[str] = []
    for name in OUTPUTS:
        lines += _compared(name, expected.outputs[name], actual.outputs[name])
    return lines + _compared_state(config, expected.state, actual.state)


def _content(message: Message | Any) -> tuple[Any, ...]:
    return message.key or b"", message.value or b"", tuple(message.headers)


def _compared(name: str, expected: Counter[Any], actual: Counter[Any]) -> list[str]:
    repeated = {content: n for content, n in actual.items() if n > expected[content] > 0}
    missing = [content for content in expected if content not in actual]
    wrong = [content for content in actual if content not in expected]
    return [
        *_lines(f"{name}: repeated", repeated),
        *_lines(f"{name}: missing", missing),
        *_lines(f"{name}: not what an undisturbed worker says", wrong),
    ]


def _compared_state(config: Config, expected: State, actual: State) -> list[str]:
    missing = [place for place in expected if place not in actual]
    more = [place for place in actual if place not in expected]
    other = [place for place in expected if place in actual and actual[place] != expected[place]]
    lines = [
        *_lines("state: missing", missing),
        *_lines("state: should not be there", more),
        *_lines("state: other bits", other),
    ]
    form = Format(config)
    for index, key in [place for place in other if place[1].startswith(LIGHT)][:SHOWN]:
        want, have = (
            form.unpack([key], [state[index, key]])["ledger"][0].tolist()
            for state in (expected, actual)
        )
        lines.append(f"state: ledger of {key!r} in {index}: {have}, undisturbed {want}")
    return lines


def _lines(what: str, items: Iterable[Any]) -> list[str]:
    items = list(items)
    if not items:
        return []
    return [f"{what}: {len(items)}", *(f"    {item!r:.300}" for item in items[:SHOWN])]
