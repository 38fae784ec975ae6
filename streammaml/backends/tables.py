"""CSV, Parquet and JSON lines as columns of wire values; the typed seam to pyarrow.

Rules: bounded memory; a number is exact (a float32 travels as the double it is); a missing one is
None; an infinite one becomes ``INFINITE``, which JSON can carry and every worker rejects. A cell
that is not what its column's first rows are goes out as it stands: the worker is the judge.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]  # no stubs; as below
import pyarrow.csv as pa_csv  # type: ignore[import-untyped]
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]

from streammaml.errors import InputError

INFINITE = sys.float_info.max
"""Stands for infinity: finite, so that it is JSON, and far beyond what a feature may be."""
HEAD_ROWS = 1000
"""Rows of JSON lines whose keys make the columns."""
BATCH_ROWS = 4096
BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
DELIMITERS = ",;\t|"
MISSING = frozenset(
    ["", "na", "n/a", "#n/a", "#na", "nan", "-nan", "null", "none", "1.#ind", "1.#qnan"]
)
"""Words for a missing number; in text only the empty one is."""
BOOLEANS = {"true": True, "false": False}

Columns = list[list[Any]]


class Table(Protocol):
    @property
    def names(self) -> list[str]: ...
    def batches(self, wanted: Sequence[str], texts: Sequence[str]) -> Iterator[Columns]: ...


def _open_stream(path: Path) -> Any:
    """A file to read bytes from; compressed ones by their suffix."""
    return pa.input_stream(str(path), compression="detect")


class CsvTable:
    """Types are guessed from the first megabyte, but cells are converted one column at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with explained(path), _open_stream(path) as stream:
            head = stream.read(HEAD_BYTES).splitlines()
        line = head[0].decode(errors="replace") if head else ""
        self._parse = pa_csv.ParseOptions(
            delimiter=max(DELIMITERS, key=line.count), newlines_in_values=True
        )
        with explained(path), self._open() as reader:
            self._types = {field.name: field.type for field in reader.schema}
            self.names: list[str] = reader.schema.names

    def batches(self, wanted: Sequence[str], texts: Sequence[str]) -> Iterator[Columns]:
        """Columns in the order of ``wanted``, some rows at a time; ``texts`` stay as written."""
        options = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(self.names, pa.string()),
            include_columns=list(wanted),
            strings_can_be_null=True,
            null_values=[""],
        )
        convert = [_plain if name in texts else self._converter(name) for name in wanted]
        with explained(self._path), self._open(options) as reader:
            for batch in reader:
                yield [to(column) for to, column in zip(convert, batch.columns, strict=True)]

    def _open(self, convert: Any = None) -> Any:
        return pa_csv.open_csv(
            str(self._path),
            read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=self._parse,
            convert_options=convert,
        )

    def _converter(self, name: str) -> Callable[[Any], list[Any]]:
        kind = self._types[name]
        if pa.types.is_integer(kind):
            return lambda column: _parsed(column, pa.int64())
        if pa.types.is_floating(kind) or pa.types.is_null(kind):
            return lambda column: _parsed(column, pa.float64())
        if pa.types.is_boolean(kind):
            return lambda column: [_boolean(text) for text in column.to_pylist()]
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return lambda column: [rfc3339(text) for text in column.to_pylist()]
        return _plain


class ParquetTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        with explained(path), pa_parquet.ParquetFile(path) as file:
            self._types: Mapping[str, Any] = {f.name: f.type for f in file.schema_arrow}
            self.names: list[str] = file.schema_arrow.names

    def batches(self, wanted: Sequence[str], texts: Sequence[str]) -> Iterator[Columns]:
        """Columns in the order of ``wanted``, some rows at a time; typed, so ``texts`` is moot."""
        for name in wanted:
            _check_type(self._path, name, self._types[name])
        with explained(self._path), pa_parquet.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(wanted)):
                yield [_typed(batch.column(name)) for name in wanted]


class JsonTable:
    """One flat object on each line; the keys of the first lines are the columns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = islice(self._rows(), HEAD_ROWS)
        self.names: list[str] = list(dict.fromkeys(chain.from_iterable(rows)))

    def batches(self, wanted: Sequence[str], texts: Sequence[str]) -> Iterator[Columns]:
        """One row at a time; ``texts`` are what JSON says they are."""
        for row in self._rows():
            yield [[row.get(name)] for name in wanted]

    def _rows(self) -> Iterator[dict[str, Any]]:
        for place, line in enumerate(lines_of(self._path), start=1):
            row = decoded(line)
            if row is None:
                raise InputError(f"{self._path}, line {place}: not a JSON object")
            yield row


def lines_of(path: Path) -> Iterator[bytes]:
    with explained(path), io.BufferedReader(_open_stream(path)) as stream:
        yield from (text for line in stream if (text := line.strip()))


def decoded(line: bytes) -> dict[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return row if isinstance(row, dict) else None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What reading a file may raise, as an InputError that says what to do."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}. It must be CSV in UTF-8 with a header line, "
            "Parquet, or JSON lines, as its suffix says"
        ) from error


def _check_type(path: Path, name: str, kind: Any) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    simple = (
        *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_null),
        *(pa.types.is_timestamp, pa.types.is_date),
    )
    if not any(fits(kind) for fits in simple):
        raise InputError(
            f"{path}: column {name!r} is {kind}; a feature, label or context is a number, text, "
            "boolean or time. Choose other columns with --features"
        )


def _typed(column: Any) -> list[Any]:
    """Wire values of an Arrow column of any type that ``_check_type`` lets in."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _typed(column.dictionary_decode())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _floats(column.cast(pa.float64()))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # without its zone in the end, as a small image has no time zones, not even UTC
        utc = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.timestamp("us"))
        return [None if t is None else _zulu(t.replace(tzinfo=UTC)) for t in utc.to_pylist()]
    return _plain(column)


def _plain(column: Any) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def _floats(column: Any) -> list[float | None]:
    values: list[float | None] = column.to_pylist()
    return [v if v is None or math.isfinite(v) else finite(v) for v in values]


def _parsed(column: Any, kind: Any) -> list[Any]:
    """Texts as numbers: all at once if they are what they seem, else cell by cell."""
    try:
        parsed = column.cast(kind)
    except pa.ArrowInvalid:
        return [number(text) for text in column.to_pylist()]
    return _floats(parsed) if pa.types.is_floating(kind) else _plain(parsed)


def number(text: str | None) -> int | float | str | None:
    """The number a text stands for, None where it says there is none; else the text itself."""
    if text is None or text.strip().lower() in MISSING:
        return None
    if "_" in text:  # which Python would take for digits
        return text
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if isinstance(value, int) else finite(value)
    return text


def finite(value: float) -> float | None:
    if math.isnan(value):
        return None
    return math.copysign(INFINITE, value) if math.isinf(value) else value


def _boolean(text: str | None) -> bool | str | None:
    if text is None or text.strip().lower() in MISSING:
        return None
    return BOOLEANS.get(text.strip().lower(), text)


def rfc3339(text: str | None) -> str | None:
    """An ISO time in UTC, as the wire wants it; one without a zone is UTC. Else the text."""
    if text is None or text.strip().lower() in MISSING:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return text
    return _zulu(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _zulu(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
