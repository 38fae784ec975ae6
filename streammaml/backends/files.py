"""A file of a table, row by row as wire events, in bounded memory.

CSV (``.csv``, ``.tsv``), Parquet (``.parquet``) and JSON lines (``.jsonl``, ``.ndjson``), the
text ones also compressed (``.gz``, ``.bz2``, ``.zst``). JSON lines that are wire events already
pass through.

Rules: no row is skipped. A missing number is null. JSON has no infinity, so ±Inf goes out as the
largest double, and as a list where it is a label: the worker turns both down, as bad input.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from streammaml.backends.tables import (
    INFINITE,
    CsvTable,
    JsonTable,
    ParquetTable,
    Table,
    decoded,
    lines_of,
    rfc3339,
)
from streammaml.config import Feature, FeatureType, LabelConfig
from streammaml.errors import InputError
from streammaml.events import Task

WireEvent = dict[str, Any]
SAMPLE_ROWS = 10_000
MOST_CATEGORIES = 50
COMPRESSED = (".gz", ".bz2", ".zst")
SHOWN_COLUMNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column is what. ``features`` are names and globs, ``f_*,temp``; None: all others.

    Without ``context`` every event belongs to one, called like the file.
    """

    features: str | None = None
    label: str | None = None
    context: str | None = None
    time: str | None = None


def read_events(path: Path, columns: Columns) -> Iterator[WireEvent | bytes]:
    """Yield each row as an event, without id; a line of no JSON in a file of events as bytes.

    InputError, at the call, for a file or column that is not there, a format nobody knows, or
    columns that cannot be features; later for a file that breaks off.
    """
    kind = _kind(path)
    if kind == "json" and _is_wire(path):
        _refuse_columns(path, columns)
        return (line if (e := decoded(line)) is None else e for line in lines_of(path))
    table = _open(path, kind)
    features = _features(path, table.names, columns)
    return _events(path, table, columns, features)


def propose_schema(
    path: Path, features: str, label: str, context: str | None, time: str | None = None
) -> tuple[tuple[Feature, ...], LabelConfig]:
    """Guess features and label from the first 10,000 rows.

    Texts of at most 50 values are categories, and a label of so many integers, texts or booleans
    is a class. A column of other texts is left out if a glob chose it, an InputError if named.
    """
    columns = Columns(features=features, label=label, context=context, time=time)
    seen: dict[str, dict[Any, None]] = {}
    labels: dict[Any, None] = {}
    for event in islice(read_events(path, columns), SAMPLE_ROWS):
        if isinstance(event, bytes):
            continue
        for name, value in (event.get("features") or {}).items():
            seen.setdefault(name, {})[_hashable(value)] = None
        labels[_hashable(event.get("label"))] = None
    named = {name.strip() for name in features.split(",")}
    proposed = [_feature(path, name, [*values], name in named) for name, values in seen.items()]
    found = tuple(feature for feature in proposed if feature is not None)
    if not found:
        raise InputError(f"{path}: no column can be a feature: all are texts, or it has no rows")
    return found, _label_config(path, label, [*labels])


def _kind(path: Path) -> str:
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"no file {path}{_nearest(path.name, near)}")
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in COMPRESSED]
    kinds = {
        **dict.fromkeys((".csv", ".tsv", ".txt"), "csv"),
        **dict.fromkeys((".parquet", ".pq"), "parquet"),
        **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    }
    kind = kinds.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise InputError(
            f"{path}: the suffix must say what it is: .csv, .tsv, .parquet, .jsonl or .ndjson; "
            "the text ones may end in .gz, .bz2 or .zst"
        )
    return kind


def _open(path: Path, kind: str) -> Table:
    kinds: dict[str, type[CsvTable] | type[ParquetTable] | type[JsonTable]] = {
        "csv": CsvTable,
        "parquet": ParquetTable,
        "json": JsonTable,
    }
    table = kinds[kind](path)
    twice = {name for name in table.names if table.names.count(name) > 1}
    if twice:
        raise InputError(f"{path}: more than one column is called {min(twice)!r}: rename one")
    return table


def _is_wire(path: Path) -> bool:
    first = decoded(next(lines_of(path), b"")) or {}
    return isinstance(first.get("features"), dict)


def _refuse_columns(path: Path, columns: Columns) -> None:
    """Events name their parts already: what is asked for must be just that."""
    asked = (columns.features, columns.label, columns.context, columns.time)
    own = ("*", "label", "context", "timestamp")
    for name, only in zip(asked, own, strict=True):
        if name not in (None, only):
            raise InputError(
                f"{path} holds events in the wire format, which have no columns: leave out {name!r}"
            )


def _features(path: Path, names: Sequence[str], columns: Columns) -> list[str]:
    """The feature columns, in the order of the file."""
    special = [c for c in (columns.label, columns.context, columns.time) if c is not None]
    for name in special:
        if name not in names:
            raise _missing(path, name, names)
    chosen: set[str] = set()
    for pattern in (columns.features or "*").split(","):
        fitting = {name for name in names if fnmatchcase(name, pattern.strip())}
        if not fitting:
            raise _missing(path, pattern.strip(), names)
        chosen |= fitting
    features = [name for name in names if name in chosen and name not in special]
    if not features:
        raise InputError(f"{path}: no feature columns left beside {', '.join(special)}")
    return features


def _missing(path: Path, name: str, names: Sequence[str]) -> InputError:
    shown = ", ".join(names[:SHOWN_COLUMNS])
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return InputError(f"{path}: no column {name!r} among {shown}{more}{_nearest(name, names)}")


def _nearest(wrong: str, right: Sequence[str]) -> str:
    match = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def _events(
    path: Path, table: Table, columns: Columns, features: Sequence[str]
) -> Iterator[WireEvent]:
    special = [c for c in (columns.context, columns.time, columns.label) if c is not None]
    wanted = [*features, *(c for c in dict.fromkeys(special) if c not in features)]
    place = {name: i for i, name in enumerate(wanted)}
    width, default = len(features), path.name.partition(".")[0]
    for batch in table.batches(wanted, [columns.context] if columns.context else []):
        for row in zip(*batch, strict=True):
            event: WireEvent = {"context": default}
            if columns.context is not None:
                event["context"] = _context(row[place[columns.context]])
            if columns.time is not None:
                event["timestamp"] = _time(row[place[columns.time]])
            event["features"] = dict(zip(features, row[:width], strict=True))
            if columns.label is not None:
                event["label"] = _label(row[place[columns.label]])
            yield event


def _context(value: Any) -> str | None:
    """One text for one context: a table with gaps makes 17.0 of 17."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if value is None or isinstance(value, str) else str(value)


def _time(value: Any) -> Any:
    """Numbers are seconds since 1970; times in text become RFC 3339 in UTC."""
    return rfc3339(value) if isinstance(value, str) else value


def _label(value: Any) -> Any:
    infinite = isinstance(value, float) and abs(value) == INFINITE
    return ["infinite"] if infinite else value


def _hashable(value: Any) -> Any:
    """A value for a set of them: with its type, or 1 and True would be one."""
    return (type(value), value if isinstance(value, str | int | float) else None)


def _feature(path: Path, name: str, seen: list[Any], named: bool) -> Feature | None:
    values = [value for kind, value in seen if kind is not type(None)]
    kinds = {kind for kind, _ in seen if kind is not type(None)}
    if kinds <= {int, float}:
        return Feature(name=name)
    if kinds == {bool}:
        return Feature(name=name, type=FeatureType.BOOLEAN)
    if kinds == {str} and len(values) <= MOST_CATEGORIES:
        return Feature(name=name, type=FeatureType.CATEGORY, categories=tuple(sorted(values)))
    if named:
        raise InputError(
            f"{path}: column {name!r} has texts of more than {MOST_CATEGORIES} values, or values "
            "of several types: it cannot be a feature. Leave it out of --features"
        )
    return None


def _label_config(path: Path, name: str, seen: list[Any]) -> LabelConfig:
    values = [value for kind, value in seen if kind is not type(None)]
    kinds = {kind for kind, _ in seen if kind is not type(None)}
    if len(kinds) == 1 and kinds <= {int, str, bool} and len(values) <= MOST_CATEGORIES:
        return LabelConfig(classes=tuple(sorted(values)) if len(values) > 1 else ())
    if kinds <= {int, float}:
        return LabelConfig(task=Task.REGRESSION)
    raise InputError(
        f"{path}: label column {name!r} has texts of more than {MOST_CATEGORIES} values, or "
        "values of several types: it is neither a number nor a class"
    )
