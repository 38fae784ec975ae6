"""``python -m streammaml.backends.dashboard [--check]`` writes, or compares, what Grafana reads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from streammaml.backends.dashboard.grafana import as_json

FILE = Path(__file__).parents[3] / "docker" / "grafana" / "dashboards" / "streammaml.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m streammaml.backends.dashboard")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    built = as_json()
    if not parser.parse_args().check:
        FILE.write_text(built, encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != built:
        sys.exit(f"{FILE} is not what the panels say: python -m streammaml.backends.dashboard")


if __name__ == "__main__":
    main()
