"""The versions in the topic ``initializations``: listed, shown, and rolled back to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streammaml.backends.kafka import KafkaPublisher, KafkaTail, TopicAdmin
from streammaml.backends.ports import Publisher
from streammaml.backends.wire_initializations import Published, rollback_message
from streammaml.catalogue import Catalogue, Entry, loss_of, read_all
from streammaml.config import Config, spec_of
from streammaml.initialization import Initialization, check_fits
from streammaml.inspection.pages import DASH, printable


class NoVersionError(Exception):
    """The version is not in the topic, or cannot be used."""


class Rolled(NamedTuple):
    """What was current, and what is now."""

    before: int | None
    after: int


def read_topic(config: Config, keep: int | None = None) -> Catalogue:
    """What the topic holds now, with the tensors of the version ``keep``."""
    topic = config.topics.initializations
    with TopicAdmin(config) as admin:
        admin.require([topic])
    tail = KafkaTail(config, config.kafka.instance, topic)
    catalogue = Catalogue(keep)
    try:
        read_all(tail, catalogue.read, threading.Event())
    finally:
        tail.close()
    return catalogue


def roll_back(config: Config, version: int | None) -> Rolled:
    """Make a version current again, by default the parent of the one that is.

    An outer loop that runs goes on from it. NoVersionError where it is not there.
    """
    target = target_of(read_topic(config), version)
    require_usable(config, read_topic(config, keep=target), target)
    publisher = KafkaPublisher(config)  # fences the loop that runs: from here nothing else is new
    try:
        target = target_of(read_topic(config), version)
        return publish_again(config, read_topic(config, keep=target), target, publisher)
    finally:
        publisher.close()


def target_of(catalogue: Catalogue, version: int | None) -> int:
    """The version to go back to; NoVersionError where it is not there."""
    if version is None:
        if catalogue.current is None:
            raise NoVersionError("no version is current, so it has no parent: name one")
        version = catalogue.current.parent
        if version < 0:
            raise NoVersionError(f"v{catalogue.current.version} has no parent: name a version")
    entry = find(catalogue, version)
    if entry.error:
        raise NoVersionError(f"v{version} cannot be used: {entry.error}")
    return version


def find(catalogue: Catalogue, version: int) -> Entry:
    """NoVersionError, which says what is there, where it is not."""
    entry = catalogue.entries.get(version)
    if entry is None:
        there = ", ".join(f"v{v}" for v, e in sorted(catalogue.entries.items()) if not e.error)
        raise NoVersionError(f"v{version} is not in the topic; there are: {there or 'none'}")
    return entry


def initialization_of(catalogue: Catalogue, version: int | None) -> Initialization:
    """The tensors of the version that was kept, or of the current one; NoVersionError if none."""
    if version is None:
        if catalogue.current is None:
            raise NoVersionError("no version is current: name one")
        return catalogue.current.initialization
    entry = find(catalogue, version)
    if catalogue.kept is None:
        raise NoVersionError(f"v{version} cannot be used: {entry.error}")
    return catalogue.kept.initialization


def require_usable(config: Config, catalogue: Catalogue, target: int) -> Published:
    """The kept version; NoVersionError where it is gone.

    MisfitError where the configuration has features that it does not fit.
    """
    kept = catalogue.kept
    if kept is None:
        raise NoVersionError(f"v{target} is no longer in the topic")
    if config.features:
        check_fits(kept.initialization, spec_of(config))
    return kept


def publish_again(
    config: Config, catalogue: Catalogue, target: int, publisher: Publisher
) -> Rolled:
    """Let the kept version be current."""
    kept = require_usable(config, catalogue, target)
    publisher.publish([rollback_message(kept, topic=config.topics.initializations)])
    before = None if catalogue.current is None else catalogue.current.version
    return Rolled(before, target)


def listing(catalogue: Catalogue, now_s: float) -> dict[str, Any]:
    """All versions, the newest first, in JSON values."""
    current = catalogue.current
    return {
        "current": None if current is None else _current(catalogue, current, now_s),
        "versions": [_line(catalogue, entry, now_s) for entry in _sorted(catalogue)],
    }


def details(catalogue: Catalogue, version: int | None, now_s: float) -> dict[str, Any]:
    """One version with its gate report, by default the current one; in JSON values."""
    current = catalogue.current
    if version is None:
        if current is None:
            raise NoVersionError("no version is current: `initializations list` shows all")
        found = _current(catalogue, current, now_s)
        return found | {"current": True, "report": dict(current.report)}
    entry = find(catalogue, version)
    return _line(catalogue, entry, now_s) | {"report": entry.report}


def listing_page(found: Mapping[str, Any], topic: str) -> RenderableType:
    """The table, and below it what it does not say."""
    table = Table(box=None, pad_edge=False)
    for name in ("version", "age", "parent", "by", "loss before", "loss", "bytes", ""):
        table.add_column(name, justify="left" if name in ("by", "") else "right")
    for line in found["versions"]:
        table.add_row(
            f"v{line['version']}",
            _age(line["age_s"]),
            DASH if line["parent"] < 0 else f"v{line['parent']}",
            Text(printable(line["by"])),
            *(_loss(line[key]) for key in ("loss_incumbent", "loss_candidate")),
            f"{line['bytes']:,}",
            Text(printable(line["error"]) or ("current" if line["current"] else "")),
        )
    return Group(table, *_footer(found, topic))


def details_page(found: Mapping[str, Any]) -> RenderableType:
    """What is known of one version, and its report as JSON."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_row("version", f"v{found['version']}{', current' if found['current'] else ''}")
    facts.add_row("age", _age(found["age_s"]))
    facts.add_row("parent", DASH if found["parent"] < 0 else f"v{found['parent']}")
    facts.add_row("by", Text(printable(found["by"])))
    if found.get("error"):
        facts.add_row("error", Text(printable(found["error"])))
    return Group(facts, Text(json.dumps(found["report"], indent=2)))


def _footer(found: Mapping[str, Any], topic: str) -> Iterator[Text]:
    current = found["current"]
    if not found["versions"]:
        yield Text(f"no version is in {topic!r}: `streammaml outer` publishes them")
    if current is not None:
        by = printable(current["by"]) or "nobody says whom"
        yield Text(f"current: v{current['version']}, for {_age(current['age_s'])}, by {by}")
        if not current["matches"]:
            yield Text(
                f"the current one is not equal to v{current['version']} of the topic: "
                "`streammaml initializations rollback VERSION` puts a published one in its place"
            )


def _sorted(catalogue: Catalogue) -> list[Entry]:
    return [entry for _, entry in sorted(catalogue.entries.items(), reverse=True)]


def _current(catalogue: Catalogue, current: Published, now_s: float) -> dict[str, Any]:
    entry = catalogue.entries.get(current.version)
    return {
        "version": current.version,
        "parent": current.parent,
        "by": current.by,
        "age_s": round(max(0.0, now_s - catalogue.current_s), 1),
        "fingerprint": current.fingerprint,
        "digest": current.digest,
        "matches": entry is not None and entry.digest == current.digest,
    }


def _line(catalogue: Catalogue, entry: Entry, now_s: float) -> dict[str, Any]:
    current = catalogue.current
    return {
        "version": entry.version,
        "current": current is not None and current.version == entry.version,
        "age_s": round(max(0.0, now_s - entry.published_s), 1),
        "parent": entry.parent,
        "by": entry.by,
        **{key: loss_of(entry.report, key) for key in ("loss_incumbent", "loss_candidate")},
        "bytes": entry.size,
        "digest": entry.digest,
        "error": entry.error,
    }


def _loss(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
