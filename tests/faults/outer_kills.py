"""Kill the outer loop at random times; the topic must never hold a current one that is not whole.

By hand: ``python -m tests.faults.outer_kills --kills 20`` starts a broker of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.integration.outer import OuterRig
from tests.kafka_broker import Broker

MOST_WAIT_S = 2.0
"""A run takes less; the loop is killed at any of its moments, its start aside."""


class Toll(NamedTuple):
    kills: int
    versions: int
    """Published while it was killed again and again."""


def kill_often(rig: OuterRig, kills: int, rng: random.Random) -> Toll:
    """Kill as many loops, each some time after it connected, and check the topic after each."""
    for _ in range(kills):
        loop = rig.loop("1s")
        loop.says('"event": "connected"')
        loop.end_after(rng.uniform(0.0, MOST_WAIT_S))
        rig.current()
    survivor = rig.loop("1s")
    survivor.says('"result": "published"')
    survivor.stop()
    current = rig.current()
    assert current is not None
    return Toll(kills, current.version)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=20261124)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streammaml-kills-") as name:
        folder = Path(name)
        running = os.environ.get("STREAMMAML_TEST_KAFKA")
        broker = None if running else Broker(folder / "kafka")
        if broker is not None:
            broker.start()
        rig = OuterRig(running or (broker.bootstrap if broker else ""), folder)
        try:
            rig.produce()
            toll = kill_often(rig, given.kills, random.Random(given.seed))
            sys.stdout.write(
                f"{toll.kills} kills: {toll.versions} versions, each current one whole, finite and "
                "passed\n"
            )
        finally:
            rig.end_all()
            if broker is not None:
                broker.stop()


if __name__ == "__main__":
    main()
