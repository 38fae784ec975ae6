"""Tables become wire events: every row, every type, and errors that name the cure."""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # no stubs; the tests write Parquet
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]
import pytest

from streammaml.backends.codec import EventDecoder, encoder
from streammaml.backends.files import Columns, propose_schema, read_events
from streammaml.backends.memory import MemoryRecord
from streammaml.backends.tables import INFINITE
from streammaml.config import Config, Feature, FeatureType, LabelConfig
from streammaml.errors import InputError, RejectedError
from streammaml.events import Reason, Task
from streammaml.learner.schema import Labels, Schema

WEATHER = """\
store,at,f_temp,f_rain,promo,day,sold
s-1,2026-11-22T10:00:00Z,21.5,0,true,Mon,3
s-2,2026-11-22 11:30:00,,1,false,Tue,
s-1,2026-11-22T10:00:00+02:00,-3,2,true,,5
"""


def text_file(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def parquet(directory: Path, columns: Mapping[str, Any]) -> Path:
    path = directory / "sample.parquet"
    pa_parquet.write_table(pa.table(dict(columns)), path)
    return path


def rows(path: Path, **columns: str) -> list[dict[str, Any]]:
    events = []
    for event in read_events(path, Columns(**columns)):
        assert isinstance(event, dict)
        events.append(event)
    return events


def feature(path: Path, name: str = "x", **columns: str) -> list[Any]:
    return [event["features"][name] for event in rows(path, features=name, **columns)]


def test_a_csv_row_becomes_an_event(tmp_path: Path) -> None:
    path = text_file(tmp_path, "weather.csv", WEATHER)

    events = rows(path, features="day,f_*,promo", label="sold", context="store", time="at")

    assert events == [
        {
            "context": "s-1",
            "timestamp": "2026-11-22T10:00:00Z",
            "features": {"f_temp": 21.5, "f_rain": 0, "promo": True, "day": "Mon"},
            "label": 3,
        },
        {
            "context": "s-2",
            "timestamp": "2026-11-22T11:30:00Z",
            "features": {"f_temp": None, "f_rain": 1, "promo": False, "day": "Tue"},
            "label": None,
        },
        {
            "context": "s-1",
            "timestamp": "2026-11-22T08:00:00Z",
            "features": {"f_temp": -3.0, "f_rain": 2, "promo": True, "day": None},
            "label": 5,
        },
    ]


def test_features_are_all_other_columns_unless_named(tmp_path: Path) -> None:
    path = text_file(tmp_path, "weather.csv", WEATHER)

    named = rows(path, label="sold", context="store", time="at")[0]["features"]

    assert list(named) == ["f_temp", "f_rain", "promo", "day"]


def test_without_context_and_time_the_file_is_the_context(tmp_path: Path) -> None:
    path = text_file(tmp_path, "shop.v2.csv", "x\n1\n")

    assert rows(path) == [{"context": "shop", "features": {"x": 1}}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n2\n", [1, 2]),
        ("1\n2.5\n", [1.0, 2.5]),
        ("0.1\n1e-3\n", [0.1, 0.001]),
        ("1\nNA\nnan\nnull\n", [1, None, None, None]),
        ("1.5\ninf\n-inf\n1e999\n", [1.5, INFINITE, -INFINITE, INFINITE]),
        ("true\nFalse\n", [True, False]),
        ('a\nNA\n"b,c"\n', ["a", "NA", "b,c"]),
        ("2026-01-02\n2026-01-03\n", ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]),
        ("9007199254740993\n", [9007199254740993]),
    ],
)
def test_a_csv_column_has_the_type_of_its_cells(
    tmp_path: Path, text: str, expected: list[Any]
) -> None:
    found = feature(text_file(tmp_path, "a.csv", "x,y\n" + text.replace("\n", ",1\n")))

    assert found == expected
    assert [type(v) for v in found] == [type(v) for v in expected]


def test_a_late_cell_of_another_type_does_not_stop_the_file(tmp_path: Path) -> None:
    filler = "1," + "z" * 1000 + "\n"
    many = 3000  # three megabytes: types are guessed from the first one
    text = "x,pad\n" + filler * many + "2.5,z\n007,z\n1_000,z\nbroken,z\n,z\n"

    found = feature(text_file(tmp_path, "late.csv", text))

    assert found[:many] == [1] * many
    assert found[many:] == [2.5, 7, "1_000", "broken", None]


def test_a_context_stays_as_it_is_written(tmp_path: Path) -> None:
    path = text_file(tmp_path, "a.csv", "shop,x\n007,1\nNA,2\n1.50,3\n,4\n")

    assert [e["context"] for e in rows(path, context="shop")] == ["007", "NA", "1.50", None]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_of_the_header(tmp_path: Path, delimiter: str) -> None:
    text = "a,b\n1,x\n".replace(",", delimiter)

    assert rows(text_file(tmp_path, "a.csv", text))[0]["features"] == {"a": 1, "b": "x"}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert feature(text_file(tmp_path, "a.csv", "\ufeffx\n1\n")) == [1]


def test_compressed_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"x;y\n1;2\n"))

    assert rows(path) == [{"context": "a", "features": {"x": 1, "y": 2}}]


def test_a_quoted_cell_may_hold_a_line_break(tmp_path: Path) -> None:
    assert feature(text_file(tmp_path, "a.csv", 'x,y\n"a\nb",1\n')) == ["a\nb"]


def test_a_header_alone_has_no_events(tmp_path: Path) -> None:
    assert rows(text_file(tmp_path, "a.csv", "x,y\n")) == []


def test_a_float32_travels_as_the_double_it_is(tmp_path: Path) -> None:
    values = np.array([0.1, 1 / 3, 16777217.0], np.float32)

    found = feature(parquet(tmp_path, {"x": values}))

    assert found == [0.10000000149011612, 0.3333333432674408, 16777216.0]
    assert json.loads(encoder("json")(found)) == found


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None], pa.int8()), [1, None]),
        (pa.array([2**63], pa.uint64()), [2**63]),
        (pa.array([1.5, None, math.nan], pa.float64()), [1.5, None, None]),
        (pa.array([math.inf, -math.inf], pa.float32()), [INFINITE, -INFINITE]),
        (pa.array([Decimal("1.25")]), [1.25]),
        (pa.array([True, None]), [True, None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.array([date(2026, 1, 2)]), ["2026-01-02T00:00:00Z"]),
        (pa.array([1_500_000_001], pa.timestamp("ns")), ["1970-01-01T00:00:01.500000Z"]),
        (
            pa.array(
                [datetime(2026, 7, 1, 10, tzinfo=UTC), None], pa.timestamp("ms", "Asia/Tokyo")
            ),
            ["2026-07-01T10:00:00Z", None],
        ),
        (pa.nulls(2), [None, None]),
    ],
)
def test_a_parquet_column_keeps_its_type(tmp_path: Path, column: Any, expected: list[Any]) -> None:
    found = feature(parquet(tmp_path, {"x": column}))

    assert found == expected
    assert [type(v) for v in found] == [type(v) for v in expected]


def test_a_context_that_gaps_made_a_float_is_whole_again(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"shop": [17.0, math.nan], "x": [1, 2]})

    assert [e["context"] for e in rows(path, context="shop")] == ["17", None]


def test_a_number_as_time_is_seconds(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"at": [1_800_000_000.5], "x": [1]})

    assert rows(path, time="at")[0]["timestamp"] == 1_800_000_000.5


def rejected_reason(event: Mapping[str, Any], settings: Config) -> Reason | None:
    """What a worker would say of it."""
    record = MemoryRecord("events", 0, 0, 0, None, encoder("json")(event), ())
    try:
        decoded = EventDecoder(settings.features, "json", 1_000_000)(record)
    except RejectedError as error:
        return error.reason
    found = Schema(settings.features).collate([decoded], Labels(settings.label)).rejected
    return found[0].reason if found else None


@pytest.mark.parametrize("task", list(Task))
def test_infinity_reaches_the_worker_as_bad_input_and_a_gap_does_not(
    tmp_path: Path, task: Task
) -> None:
    path = parquet(tmp_path, {"x": [1.0, math.inf, math.nan, 1.0], "y": [1.0, 1.0, 1.0, -math.inf]})
    settings = Config.build({"features": [{"name": "x"}], "label": {"task": task}})

    reasons = [rejected_reason(e, settings) for e in rows(path, features="x", label="y")]

    assert reasons == [None, Reason.NONFINITE, None, Reason.SCHEMA]


def test_flat_json_lines_are_a_table(tmp_path: Path) -> None:
    lines = '{"x": 1, "shop": 7, "y": "no"}\n\n{"x": null, "z": true, "shop": "b", "y": "yes"}\n'
    path = text_file(tmp_path, "a.jsonl", lines)

    events = rows(path, label="y", context="shop")

    assert events == [
        {"context": "7", "features": {"x": 1, "z": None}, "label": "no"},
        {"context": "b", "features": {"x": None, "z": True}, "label": "yes"},
    ]


def test_events_in_the_wire_format_pass_through_even_broken_ones(tmp_path: Path) -> None:
    first = '{"id": "e-1", "context": "s", "features": {"a": 0.1}, "label": null}'
    path = text_file(tmp_path, "events.ndjson", first + '\nnot json\n{}\n{"id": 2, "label": 1}\n')

    events = list(read_events(path, Columns(label="label")))

    assert events == [json.loads(first), b"not json", {}, {"id": 2, "label": 1}]


def test_events_in_the_wire_format_have_no_columns_to_choose(tmp_path: Path) -> None:
    path = text_file(tmp_path, "events.jsonl", '{"features": {"a": 1}}\n')

    with pytest.raises(InputError, match=r"wire format.*leave out 'a'"):
        read_events(path, Columns(features="a"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "solt"}, r"no column 'solt' among store, at, .*; did you mean 'sold'\?"),
        ({"features": "g_*"}, r"no column 'g_\*'"),
        ({"context": "shop"}, "no column 'shop'"),
        ({"features": "sold", "label": "sold"}, "no feature columns left beside sold"),
    ],
)
def test_a_missing_column_is_named_with_its_nearest(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    path = text_file(tmp_path, "weather.csv", WEATHER)

    with pytest.raises(InputError, match=message):
        read_events(path, Columns(**columns))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.xlsx", b"PK", r"suffix must say what it is: \.csv"),
        ("data", b"x\n1\n", "suffix must say what it is"),
        ("data.csv", b"", "cannot be read: Empty CSV file"),
        ("data.parquet", b"x,y\n", r"cannot be read: .*Parquet"),
        ("data.csv", b"x,x\n1,2\n", "more than one column is called 'x'"),
        ("data.csv.gz", b"x,y\n1,2\n", "cannot be read"),
        ("data.jsonl", b'{"x": 1}\n[2]\n', "data.jsonl, line 2: not a JSON object"),
    ],
)
def test_what_is_no_table_is_an_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(InputError, match=message):
        read_events(path, Columns())


def test_a_missing_file_is_named_with_its_nearest(tmp_path: Path) -> None:
    text_file(tmp_path, "weather.csv", WEATHER)

    with pytest.raises(InputError, match=r"no file .*wether.csv; did you mean 'weather.csv'\?"):
        read_events(tmp_path / "wether.csv", Columns())


def test_a_row_of_another_width_is_an_error_where_it_comes(tmp_path: Path) -> None:
    path = text_file(tmp_path, "a.csv", "x,y\n1,2\n3\n")

    with pytest.raises(InputError, match=r"Expected 2 columns, got 1"):
        rows(path)


def test_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("x,y\nB\u00e4r,1\n".encode("latin-1"))

    with pytest.raises(InputError, match="UTF-8"):
        rows(path)


def test_a_column_of_lists_is_no_feature(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"x": [[1, 2]], "y": [1]})

    with pytest.raises(InputError, match=r"column 'x' is list<.*Choose other columns"):
        rows(path)
    assert rows(path, features="y")[0]["features"] == {"y": 1}


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    count, pad = 60_000, "p" * 200
    if kind == "parquet":
        path = tmp_path / "big.parquet"
        table = pa.table({"x": np.arange(count), "pad": [pad] * count})
        pa_parquet.write_table(table, path, row_group_size=5000)
        del table
    elif kind == "csv":
        path = text_file(tmp_path, "big.csv", "x,pad\n" + f"1,{pad}\n" * count)
    else:
        path = text_file(tmp_path, "big.jsonl", f'{{"x": 1, "pad": "{pad}"}}\n' * count)
    pool = pa.default_memory_pool()
    base, seen, arrow_most = pool.bytes_allocated(), 0, 0
    tracemalloc.start()

    for seen, _ in enumerate(read_events(path, Columns()), start=1):
        if seen % 1000 == 0:
            arrow_most = max(arrow_most, pool.bytes_allocated() - base)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert seen == count
    assert most < 6_000_000  # the file has 12 million characters
    assert arrow_most < 40_000_000  # it reads some blocks ahead, whatever the size


def proposed(path: Path, features: str = "*", label: str = "y") -> tuple[Any, LabelConfig]:
    found, target = propose_schema(path, features, label, None)
    return {f.name: f for f in found}, target


def test_a_schema_is_proposed_from_a_sample(tmp_path: Path) -> None:
    path = text_file(tmp_path, "weather.csv", WEATHER)

    features, label = propose_schema(path, "*", "sold", "store", "at")

    assert features == (
        Feature(name="f_temp"),
        Feature(name="f_rain"),
        Feature(name="promo", type=FeatureType.BOOLEAN),
        Feature(name="day", type=FeatureType.CATEGORY, categories=("Mon", "Tue")),
    )
    assert label == LabelConfig(classes=(3, 5))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 1, None], LabelConfig(classes=(0, 1, 2))),
        (["no", "yes", "no"], LabelConfig(classes=("no", "yes"))),
        ([True, False], LabelConfig(classes=(False, True))),
        (["only"], LabelConfig()),
        (list(range(50)), LabelConfig(classes=tuple(range(50)))),
        (list(range(51)), LabelConfig(task=Task.REGRESSION)),
        ([0.5, 1.5], LabelConfig(task=Task.REGRESSION)),
        ([0.0, 1.0], LabelConfig(task=Task.REGRESSION)),
    ],
)
def test_the_task_follows_from_the_labels(
    tmp_path: Path, labels: Sequence[Any], expected: LabelConfig
) -> None:
    path = parquet(tmp_path, {"x": list(range(len(labels))), "y": list(labels)})

    target = proposed(path)[1]

    assert target == expected
    assert [type(c) for c in target.classes] == [type(c) for c in expected.classes]


def test_a_column_of_many_texts_is_left_out_unless_it_is_named(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        {
            "few": [f"c{i % 50:02d}" for i in range(51)],
            "many": [f"c{i}" for i in range(51)],
            "empty": pa.nulls(51),
            "y": [i % 2 for i in range(51)],
        },
    )

    features, _ = proposed(path)

    assert list(features) == ["few", "empty"]
    assert len(features["few"].categories) == 50
    assert features["empty"].type is FeatureType.NUMBER
    with pytest.raises(InputError, match=r"column 'many' has texts of more than 50 values"):
        proposed(path, features="few,many")


def test_a_label_of_many_texts_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"x": list(range(51)), "y": [f"c{i}" for i in range(51)]})

    with pytest.raises(InputError, match=r"label column 'y'.*neither a number nor a class"):
        proposed(path)


def test_a_sample_without_rows_has_no_schema(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column can be a feature"):
        proposed(text_file(tmp_path, "a.csv", "x,y\n"))


def test_a_schema_is_proposed_from_events_too(tmp_path: Path) -> None:
    lines = [{"context": "s", "features": {"a": i / 2, "b": "u"}, "label": i} for i in range(3)]
    path = text_file(tmp_path, "events.jsonl", "\n".join(map(json.dumps, lines)))

    features, target = proposed(path, label="label")

    assert [f.type for f in features.values()] == [FeatureType.NUMBER, FeatureType.CATEGORY]
    assert target.classes == (0, 1, 2)


def test_what_is_proposed_accepts_the_sample(tmp_path: Path) -> None:
    path = text_file(tmp_path, "weather.csv", WEATHER)
    features, label = propose_schema(path, "*", "sold", "store", "at")
    settings = Config(features=features, label=label)

    events = rows(path, label="sold", context="store", time="at")

    assert [rejected_reason(event, settings) for event in events] == [None, None, None]
