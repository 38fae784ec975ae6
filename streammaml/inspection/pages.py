"""Contexts as a person reads them: a table of many, a page of one. Names come from the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

SHOWN_FEATURES = 8
"""Columns of the support set; the others are in the JSON."""
DASH = "-"


def printable(text: str) -> str:
    """The text with all that a terminal could obey, or not show, as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def show(page: RenderableType) -> None:
    """To standard output; as wide as it needs to be where that is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    console.print(page)


def listing_page(found: Mapping[str, Any], where: str) -> RenderableType:
    """The table, and below it how many there are; ``where`` names the topic."""
    names = ("context", "partition", "labels", "applied", "last offset", "segment")
    numbers = ("loss", "statistic", "level", "initialization", "bytes")
    table = Table(box=None, pad_edge=False)
    for name in (*names, *numbers):
        table.add_column(name, justify="left" if name in ("context", "level") else "right")
    for line in found["contexts"]:
        initialization = f"v{line['initialization']}"
        table.add_row(
            _text(line["context"]),
            str(line["partition"]),
            *(f"{line[k]:,}" for k in ("labels", "events")),
            str(line["last_offset"]),
            f"{line['labels_in_segment']:,}",
            *(_number(line[k]) for k in ("loss", "statistic")),
            line["level"] or DASH,
            initialization if line["adapted"] else f"{initialization}, as it is",
            f"{line['stored_bytes']:,}",
        )
    return Group(table, Text(_footer(found, where)))


def _footer(found: Mapping[str, Any], where: str) -> str:
    shown = f"{len(found['contexts']):,} of {found['matched']:,}"
    if found["filter"] != "*":
        shown += f" that match {printable(found['filter'])!r}"
    if found["source"] == "topic":
        return (
            f"{shown}; {found['in_topic']:,} contexts in {where}, as of the last barriers: "
            f"{_offsets(found['offsets'])}"
        )
    text = f"{shown}; {found['in_memory']:,} in memory, {found['on_disk']:,} on disk"
    if found["restoring"]:
        text += f"; being restored: partitions {', '.join(map(str, found['restoring']))}"
    return text


def _offsets(offsets: Mapping[str, int]) -> str:
    told = [f"offset {offset} of partition {index}" for index, offset in offsets.items()]
    return ", ".join(told) or "there is none"


def context_page(found: Mapping[str, Any]) -> RenderableType:
    """All that is known of one context."""
    state = found["state"]
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column()
    for name, value in _facts(found, state):
        facts.add_row(name, Text(value))
    parts: list[RenderableType] = [facts]
    parts += [Text(), Text("features in this context", "bold"), _scalers(state["features"])]
    parts += [Text(), *_support(state["support"])]
    return Group(*parts)


def _facts(found: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "context", printable(state["context"])
    yield "partition", str(found["partition"])
    for index in found["also_in"]:
        yield "", f"another context of this name is in partition {index}"
    yield "state", _as_of(found)
    yield "events", f"{state['events']:,} applied, the last one at offset {state['last_offset']}"
    yield "ledger", f"rolling hash {state['rolling_hash'] & 0xFFFF_FFFF_FFFF_FFFF:016x}"
    if state["last_seen_s"] is not None:
        seen = datetime.fromtimestamp(state["last_seen_s"], UTC)
        yield "last seen", f"{seen:%Y-%m-%d %H:%M:%S} UTC, by event time"
    yield "labels", f"{state['labels']:,}, {state['labels_in_segment']:,} in this segment"
    version = f"version {state['initialization']}"
    yield "initialization", version if state["adapted"] else f"{version}, not adapted from it"
    yield "weights", _weights(state["weights"])
    if "baseline_weights" in state:
        yield "baseline", _weights(state["baseline_weights"])
    yield "detector", _detector(state["detector"])
    if "typical_error" in state:
        yield "typical error", f"{_number(state['typical_error'])} deviations of the label"
    sizes = state["stored_bytes"]
    told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    yield "bytes stored", f"{sum(sizes.values()):,}: {told}"


def _as_of(found: Mapping[str, Any]) -> str:
    offset = found["offset"]
    if found["source"] == "topic":
        return f"as of the last barrier, offset {DASH if offset is None else offset}"
    place = "in memory" if found["tier"] == "memory" else "on disk"
    return f"as of now, offset {offset}; {place}"


def _weights(weights: Mapping[str, Any] | None) -> str:
    if weights is None:
        return "its initialization is not stored"
    norm, distance = _number(weights["norm"]), _number(weights["distance"])
    return f"{weights['count']:,}, norm {norm}, distance to the initialization {distance}"


def _detector(detector: Mapping[str, Any]) -> str:
    told = [f"{k.replace('_', ' ')} {_number(v)}" for k, v in detector.items() if k != "name"]
    return ", ".join([detector["name"], *told])


def _scalers(features: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("feature")
    for name in ("count", "mean", "deviation"):
        table.add_column(name, justify="right")
    for name, scale in features.items():
        numbers = (_number(scale["mean"]), _number(scale["deviation"]))
        table.add_row(_text(name), f"{scale['count']:,}", *numbers)
    return table


def _support(examples: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    yield Text(f"support set: {len(examples)} examples, the oldest first", "bold")
    if not examples:
        return
    names = list(examples[0]["features"])
    table = Table(box=None, pad_edge=False)
    table.add_column("label")
    for name in names[:SHOWN_FEATURES]:
        table.add_column(_text(name), justify="right")
    for example in examples:
        values = [example["features"][name] for name in names[:SHOWN_FEATURES]]
        table.add_row(_value(example["label"]), *map(_value, values))
    yield table
    if len(names) > SHOWN_FEATURES:
        yield Text(f"and {len(names) - SHOWN_FEATURES} features more: --json shows them")


def _value(value: Any) -> Text:
    if value is None:
        return Text("missing")
    if isinstance(value, bool):
        return Text("true" if value else "false")
    return Text(_number(value)) if isinstance(value, float) else _text(str(value))


def _text(text: str) -> Text:
    return Text(printable(text))


def _number(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
