"""Speed of the local store: ``python -m tests.benchmarks.store --json FILE``.

A million contexts over six stores, as one worker has them after a restart; sizes in bytes, times
in seconds, rates in records a second. The files were just written, so the system's cache is warm.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streammaml.backends.state import Store
from streammaml.sealed import seal

TOPIC_ID = "bench"
PARTITIONS = 6
BATCH = 2_000
OWNER = bytes(8)


def key_of(index: int) -> bytes:
    return b"c/sensor-%08d" % index


def value_of(key: bytes, size: int, turn: int = 0) -> bytes:
    return seal(key, OWNER, random.Random(turn).randbytes(size))


def records(indices: range | list[int], size: int, turn: int = 0) -> Iterator[tuple[bytes, bytes]]:
    body = random.Random(turn).randbytes(size)
    for index in indices:
        key = key_of(index)
        yield key, seal(key, OWNER, body)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fill(path: Path, count: int, size: int) -> dict[str, float]:
    """Apply rate of a rebuild, in the order in which a compacted topic gives keys: any."""
    order = list(range(count))
    random.Random(1).shuffle(order)
    store = Store.open(path, TOPIC_ID)
    spent, longest, log = 0.0, 0.0, 0
    for start in range(0, count, BATCH):
        batch = list(records(order[start : start + BATCH], size))
        took = seconds(lambda b=batch, s=start: store.apply(b, s + len(b)))  # type: ignore[misc]
        spent, longest = spent + took, max(longest, took)
        log = max(log, path.with_name(path.name + "-wal").stat().st_size)
    closing = seconds(store.close)
    return {
        "apply_per_s": count / spent,
        "apply_mb_per_s": count * (size + 30) / spent / 1e6,
        "apply_longest_s": longest,
        "apply_log_bytes": log,
        "close_s": closing,
        "file_bytes": path.stat().st_size,
    }


def restart(paths: list[Path], count: int) -> dict[str, float]:
    """All partitions opened as one worker does, then a hit and a miss in each."""
    started = time.perf_counter()
    stores = [Store.open(path, TOPIC_ID) for path in paths]
    opened = time.perf_counter() - started
    first = seconds(lambda: stores[0].take([key_of(count // 2)]))
    hits = seconds(lambda: [s.take([key_of(i) for i in range(1000)]) for s in stores])
    miss = seconds(lambda: stores[0].take([b"c/unknown"]))
    for store in stores:
        store.take([b"c/unknown"])
    verified = time.perf_counter() - started
    assert not any(s.healed for s in stores)
    for store in stores:
        store.close()
    return {
        "open_s": opened,
        "first_hit_s": first,
        "six_thousand_hits_s": hits,
        "first_miss_s": miss,
        "verified_s": verified,
    }


def steady(path: Path, count: int, size: int) -> dict[str, float]:
    """One store at work: random hits, spills and a barrier that joins them."""
    store = Store.open(path, TOPIC_ID)
    store.take([b"c/unknown"])
    chosen = random.Random(2)
    keys = [key_of(chosen.randrange(count)) for _ in range(50_000)]
    singles = seconds(lambda: [store.take([key]) for key in keys[:20_000]])
    batches = seconds(lambda: [store.take(keys[i : i + 256]) for i in range(0, len(keys), 256)])
    changed = chosen.sample(range(count), min(count, 100_000))
    items = list(records(changed, size, 1))
    spill = seconds(lambda: store.spill(items))
    join = seconds(lambda: store.barrier([], count + 1))
    items = list(records(changed, size, 2))
    barrier = seconds(lambda: store.barrier(items, count + 2))
    small = []
    for turn in range(20):
        batch = list(records(chosen.sample(range(count), 2_000), size, turn))
        small.append(seconds(lambda b=batch: store.barrier(b, count + 3)))  # type: ignore[misc]
    sizes = {"log_bytes": path.with_name(path.name + "-wal").stat().st_size}
    store.close()
    return {
        "take_one_per_s": 20_000 / singles,
        "take_256_per_s": len(keys) / batches,
        "spill_100k_s": spill,
        "barrier_100k_spilled_s": join,
        "barrier_100k_s": barrier,
        "barrier_2k_median_s": sorted(small)[10],
        "barrier_2k_longest_s": max(small),
        **sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contexts", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"sqlite": sqlite3.sqlite_version, "zlib": zlib.ZLIB_RUNTIME_VERSION}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        count = arguments.contexts // PARTITIONS
        paths = [folder / f"{index}.db" for index in range(PARTITIONS)]
        result["rebuild_1kb"] = [fill(path, count, 1_000) for path in paths][-1]
        result["restart"] = restart(paths, count)
        result["steady_1kb"] = steady(paths[0], count, 1_000)
        big = folder / "big.db"
        result["rebuild_4kb"] = fill(big, count // 4, 4_000)
        result["steady_4kb"] = steady(big, count // 4, 4_000)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
