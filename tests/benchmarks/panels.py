"""What the dashboard shows of a real run: ``python -m tests.benchmarks.panels --prometheus URL``.

Asks a Prometheus that scrapes workers and an outer loop for every panel of the committed dashboard,
and for everything that annotations, alerts and recording rules select; lists what has no number.
Exit 1 where that has no known reason.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.observed import dashboard, filled, name_of, panels, rules, uses

TIMEOUT_S = 30.0

REASONS = {
    "Adapted loss, one day ago": "needs a day of history",
    "Contexts with the worst loss": "exported where the worker is told to",
}


class Question(NamedTuple):
    """What is asked, and what it is called in the list."""

    place: str
    name: str
    expression: str


def questions() -> Iterator[Question]:
    """A panel's expressions; of an alert, which is silent when all is well, the selectors."""
    for panel in panels():
        for target in panel["targets"]:
            legend = target.get("legendFormat", "__auto")
            told_apart = len(panel["targets"]) > 1
            name = f"{panel['title']}, {legend}" if told_apart else panel["title"]
            yield Question("panel", name, target["expr"])
    for mark in dashboard()["annotations"]["list"]:
        yield from selectors("annotation", mark["name"], mark["expr"])
    for rule in rules():
        if "record" in rule:
            yield Question("record", rule["record"], rule["record"])
        yield from selectors("rule", name_of(rule), rule["expr"])


def selectors(place: str, name: str, expression: str) -> Iterator[Question]:
    for use in uses(expression):
        now = re.sub(r" offset \S+", "", use.selector)
        yield Question(place, f"{name}, {now}", now)


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    """The samples now; the body of a refusal says what is wrong with the expression."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=TIMEOUT_S) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{expression}\n{error.read().decode()}") from error
    samples: list[dict[str, Any]] = body["data"]["result"]
    return samples


def numbers(samples: list[dict[str, Any]]) -> int:
    """How many are numbers: a ratio of nothing to nothing is none."""
    return sum(math.isfinite(float(sample["value"][1])) for sample in samples)


def examine(url: str, window: str, reach: str) -> int:
    """Print what has no number; how many of them have no known reason."""
    asked = unknown = 0
    for question in questions():
        expression = filled(question.expression, window, reach)
        asked += 1
        if not numbers(ask(url, expression)):
            reason = REASONS.get(question.name, "")
            unknown += not reason
            print(f"no number: {question.place} {question.name}: {reason or 'UNKNOWN'}")
            if not reason:
                print(f"    {expression}")
    for rule in rules():
        ask(url, rule["expr"])
    print(f"{asked} asked, {unknown} without a number and without a reason")
    return unknown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.panels")
    parser.add_argument("--prometheus", required=True, help="its address: http://host:port")
    parser.add_argument("--window", default="5m", help="for $__rate_interval")
    parser.add_argument("--reach", default="1h", help="for $__range")
    given = parser.parse_args()
    sys.exit(1 if examine(given.prometheus.rstrip("/"), given.window, given.reach) else 0)


if __name__ == "__main__":
    main()
