"""The ledger: under any faults, the same predictions and the same state as without them.

``python -m tests.faults.ledger --seeds 1000`` runs that many simulations (``simulation.py``) and
holds what each of them wrote against an undisturbed run over the same log:

* each record has exactly one visible prediction or dead letter, equal to the byte;
* the ledger of each context (events applied, last offset, rolling hash) is the same;
* what ``state`` holds in the end is the same to the bit, weights included.

With ``delivery = "at_least_once"`` outputs may repeat and bits may differ; the ledger may not.
Then an error is planted, and must be found.

``--kafka --kills 50 --broker-kills 5`` does the like with processes on real Kafka
(``kafka_ledger.py``), with barriers at every commit and then every 10 s.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import traceback
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import structlog

from streammaml.backends.ports import Message, Partition, Record
from streammaml.learner import Learner
from streammaml.learner.snapshot import LIGHT, context_of, is_expired
from streammaml.partition import EpisodeBudget, PartitionPlayer, RejectionLimit
from streammaml.recovery import BARRIER_KEY, read_barrier
from tests.faults import kafka_ledger
from tests.faults.plants import PLANTS
from tests.faults.simulation import NEVER, Simulation, ViolationError
from tests.learner.shelf import DictShelf, meaning

OUTPUTS = ("predictions", "adaptations", "dead-letters", "episodes")
ONE_EACH = ("predictions", "dead-letters")
Output = tuple[str, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]


@dataclass(frozen=True, slots=True)
class Verdict:
    seed: int
    violations: list[str]
    counts: Counter[str]
    schedule: list[str]


def play(seed: int, plant: str = "") -> Verdict:
    """One seed, judged."""
    shared = Path("/dev/shm")
    root = tempfile.mkdtemp(prefix="ledger-", dir=shared if shared.is_dir() else None)
    simulation = Simulation(seed, Path(root))
    try:
        with ExitStack() as stack:
            if plant:
                stack.enter_context(PLANTS[plant]())
            simulation.run()
        violations = list(judge(simulation))
    except ViolationError as error:
        violations = [str(error)]
    except Exception:
        violations = [traceback.format_exc()]
    finally:
        simulation.bury_all()
        shutil.rmtree(root)
    return Verdict(seed, violations, simulation.counts, simulation.schedule)


def judge(simulation: Simulation) -> Iterator[str]:
    """What is not as in an undisturbed run."""
    exact = simulation.shape.delivery == "exactly_once"
    expected: Counter[Output] = Counter()
    for partition in simulation.partitions:
        learner, messages = undisturbed(simulation, partition)
        expected.update(map(_output, messages))
        yield from _judge_state(simulation, partition, learner, exact)
    found = Counter(
        _output(Message(topic, r.key, r.value, r.headers))
        for topic in OUTPUTS
        for r in simulation.broker.read(topic)
    )
    simulation.counts["events"] += simulation.sent
    if exact:
        yield from _differences(expected, found)
    else:
        # A barrier that was cut may have let a context adapt at another event.
        owed = [output for output in expected if output[0] in ONE_EACH]
        told = {_place(output) for output in found if output[0] in ONE_EACH}
        yield from (f"missing: {o}" for o in owed if _place(o) not in told)


def undisturbed(simulation: Simulation, partition: Partition) -> tuple[Learner, list[Message]]:
    """One learner plays the whole log at once; versions change where they did."""
    config = simulation.config
    swaps = simulation.swaps.get(partition, [])
    learner = Learner(config, simulation.initialization(swaps[0][1] if swaps else 0))
    limit = RejectionLimit(10, 10, 1.0)
    player = PartitionPlayer(partition, config, learner, limit, budget=EpisodeBudget(NEVER))
    messages: list[Message] = []
    edges = [0, *(offset for offset, _ in swaps[1:]), sys.maxsize]
    versions = [0, *(version for _, version in swaps[1:])]
    readable: list[Record] = []
    offset, end = simulation.broker.span(partition)
    while offset < end:
        records, offset = simulation.broker.fetch(partition, offset, sys.maxsize)
        readable += records
        if (span := simulation.broker.unreadable(partition, offset)) is not None:
            messages.append(player.unreadable(span.start, span.stop))
            offset = span.stop
    for i, (first, last) in enumerate(pairwise(edges)):
        if i:
            learner.swap(simulation.initialization(versions[i]))
        low, high = (bisect_left(readable, at, key=lambda r: r.offset) for at in (first, last))
        if low < high:
            messages += player.play(readable[low:high]).messages
    return learner, messages


def _judge_state(
    simulation: Simulation, partition: Partition, expected: Learner, exact: bool
) -> Iterator[str]:
    config, name = simulation.config, f"partition {partition.index}"
    ours: dict[bytes, bytes] = {}
    for record in simulation.broker.read("state"):
        if record.partition == partition.index and record.key is not None:
            if record.value is None:
                ours.pop(record.key, None)
            else:
                ours[record.key] = record.value
    if not expected.events and not ours:
        return
    barrier = read_barrier(ours[BARRIER_KEY])
    committed = simulation.broker.committed("streammaml", partition)
    if exact and (barrier.offset != committed or barrier.version != expected.version):
        yield f"{name}: {barrier} at the end, {committed} is committed, v{expected.version}"
    shelf = DictShelf()
    shelf.durable = ours
    learner = Learner(config, simulation.initialization(barrier.version), shelf)
    learner.restore({k: v for k, v in ours.items() if k.startswith(b"@")})
    theirs = {key: value for key, value in expected.snapshot() if value is not None}
    swept = {
        context_of(key)
        for key, value in theirs.items()
        if key.startswith(LIGHT)
        and key not in ours
        and is_expired(value, expected.clock_s, simulation.shape.ttl_s)
    }
    for key in theirs:
        if key.startswith(LIGHT) and (context := context_of(key)) not in swept:
            one, other = expected.ledger(context), learner.ledger(context)
            if one != other:
                yield f"{name}: the ledger of {context} is {other}, not {one}"
    if exact:
        own = (b"@",)
        theirs = {
            k: v for k, v in theirs.items() if k.startswith(own) or context_of(k) not in swept
        }
        for key in sorted((theirs.keys() | ours.keys()) - {BARRIER_KEY}):
            if key not in ours or key not in theirs:
                yield f"{name}: {key!r} is only in {'ours' if key in ours else 'theirs'}"
            elif meaning(config, key, ours[key]) != meaning(config, key, theirs[key]):
                yield f"{name}: {key!r} differs"


def _output(message: Message) -> Output:
    headers = dict(message.headers)
    if "last_offset" in headers:  # of unreadable ones: they may begin at the hole before them
        headers["offset"] = headers["last_offset"]
    return message.topic, message.key, message.value, tuple(headers.items())


def _differences(expected: Counter[Output], found: Counter[Output]) -> Iterator[str]:
    missing, excess = expected - found, found - expected
    for output in missing:
        yield f"missing: {output}"
    for output, count in excess.items():
        yield f"{'repeated' if output in expected else 'unexpected'} {count} times: {output}"


def _place(output: Output) -> tuple[str, Any]:
    """Which record an output is about."""
    topic, _, value, headers = output
    if topic == "dead-letters":
        return topic, dict(headers)["offset"] + b"-" + dict(headers)["partition"]
    return topic, msgspec.json.decode(value or b"")["id"]


PLANTED = "late-replay"
SEEDS_TO_FIND = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=60, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--plant", choices=sorted(PLANTS), default="", help="an error to find")
    parser.add_argument("--show", type=int, default=3, help="schedules of failing seeds to print")
    parser.add_argument("--any", action="store_true", help="stop at the first violation")
    parser.add_argument("--kafka", action="store_true", help="real processes, on real Kafka")
    parser.add_argument("--kills", type=int, default=50, help="of workers, on real Kafka")
    parser.add_argument("--broker-kills", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.kafka:
        return max(
            kafka_ledger.main(arguments.kills, arguments.broker_kills, barriers)
            for barriers in kafka_ledger.BARRIERS
        )
    started = time.monotonic()
    counts: Counter[str] = Counter()
    failed = []
    for verdict in _verdicts(arguments):
        counts += verdict.counts
        if verdict.violations:
            failed.append(verdict.seed)
            if len(failed) <= arguments.show:
                print("\n".join(verdict.schedule))
            if len(failed) <= max(arguments.show, 20):
                for violation in verdict.violations[:10]:
                    print(f"seed {verdict.seed}: {violation}", flush=True)
            if arguments.any:
                break
    seconds = time.monotonic() - started
    print(f"{arguments.seeds} seeds in {seconds:.0f} s, {arguments.seeds / seconds:.1f} a second")
    print(", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())))
    print(f"seeds with violations: {len(failed)} {failed[:50]}")
    if arguments.plant:
        print(f"planted {arguments.plant}: {'found' if failed else 'NOT found'}")
        return 1 if failed else 0
    found = [play(seed, PLANTED).violations for seed in range(SEEDS_TO_FIND)]
    print(f"planted {PLANTED}: {sum(map(bool, found))} of {SEEDS_TO_FIND} seeds find it, such as")
    print(next((violations[0] for violations in found if violations), "NOT found"))
    return 1 if failed or not any(found) else 0


def _verdicts(arguments: argparse.Namespace) -> Iterator[Verdict]:
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    run = partial(play, plant=arguments.plant)
    quiet()
    if arguments.jobs == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(arguments.jobs, initializer=quiet) as pool:
        yield from pool.map(run, seeds, chunksize=5)


def quiet() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )


if __name__ == "__main__":
    sys.exit(main())
