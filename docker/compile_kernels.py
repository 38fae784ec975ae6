"""Compile every kernel of streammaml into its folder, when the image is built.

Any features, classes and sizes of a network use the same code; a detector of river's has some more.
"""

from __future__ import annotations

import sys
import time

from streammaml.config import Config, spec_of
from streammaml.initialization import draw
from streammaml.learner import warm_up
from streammaml.learner.kernels.compiler import FOLDER, is_cached


def main() -> None:
    started = time.monotonic()
    for detector in ("PageHinkley", "ADWIN"):
        config = Config.build(
            {"features": [{"name": "x"}], "learner": {"detector": {"name": detector}}}
        )
        warm_up(config, draw(spec_of(config), 0))
    if not is_cached():
        sys.exit(f"nothing was kept in {FOLDER}")
    sys.stdout.write(f"compiled into {FOLDER} in {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
