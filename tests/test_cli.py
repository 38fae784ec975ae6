"""The command line: exit codes, layers, light commands, errors that name the cure."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
import tomllib
import traceback
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]  # no stubs; as below
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]
import pytest
from prometheus_client import CollectorRegistry

from streammaml.backends.board import Board
from streammaml.backends.web import Sources, WebServer
from streammaml.config import Config, WebConfig, keys, spec_of
from streammaml.errors import ConfigError
from streammaml.initialization import check_fits, decode
from streammaml.observers import watched
from tests.command_line import Call
from tests.kafka_broker import free_port
from tests.worker_process import clean_environment, kafka_environment, predictions, running

HEAVY = {"torch", "numba", "river", "kafka"}
SECRET = "hunter2-swordfish"
QUICK_S = 20.0
ROWS = 600


@pytest.fixture
def nowhere() -> str:
    """An address where nobody answers."""
    return f"127.0.0.1:{free_port()}"


def write_csv(path: Path, rows: int = ROWS, contexts: int = 20) -> Path:
    """Rows of two classes that can be learned."""
    lines = ["shop,a,b,label"]
    for i in range(rows):
        a, b = (i * 37 % 100) / 50 - 1, (i * 71 % 100) / 50 - 1
        lines.append(f"s{i % contexts},{a},{b},{'yes' if a + b > 0 else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


MODEL = ("--features", "a,b", "--classes", "no,yes")
OUTER = ("outer", "--once", "--context", "shop", "--steps", "3")
MODEL_SET = ("--set", 'features=[{name="a"},{name="b"}]', "--set", 'label.classes=["no","yes"]')


# Light commands


MODULES = """
import json, sys
from streammaml.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print(json.dumps([ended.code or 0, sorted(sys.modules)]))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["outer", "--help"], 0),
        (["initializations", "--help"], 0),
        (["health"], 1),
        (["contexts"], 1),
        (["inspect", "shop-1"], 1),
        (["config", "show"], 0),
        (["config", "schema"], 0),
        (["run"], 78),
    ],
)
def test_a_light_command_imports_no_heavy_library(
    arguments: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = clean_environment(STREAMMAML_WEB__PORT=str(free_port()))
    begun = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", MODULES, *arguments],
        capture_output=True,
        text=True,
        timeout=QUICK_S,
        cwd=tmp_path,
        env=environment,
    )

    ended, modules = json.loads(done.stdout.splitlines()[-1])
    assert ended == code, done.stderr
    assert not {name.split(".")[0] for name in modules} & HEAVY
    with capsys.disabled():
        sys.stdout.write(f" [{' '.join(arguments)}: {time.monotonic() - begun:.2f} s] ")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("streammaml.serving", {"numba", "river", "kafka"}),
        ("streammaml.doctor", {"numba", "river", "kafka"}),
        ("streammaml.inspection.stored", {"numba", "river", "kafka"}),
        ("streammaml.jobs", {"kafka"}),
        ("streammaml.inspection.published", {"kafka"}),
        ("streammaml.inspection.pages", set[str]()),
        ("streammaml.inspection.remote", set[str]()),
        ("streammaml.config_file", set[str]()),
    ],
)
def test_only_what_trains_imports_torch(module: str, allowed: set[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert {name.split(".")[0] for name in json.loads(done.stdout)} & HEAVY == allowed


def test_the_installed_command_and_the_module_are_one(tmp_path: Path) -> None:
    for command in (["streammaml"], [sys.executable, "-m", "streammaml"]):
        done = subprocess.run(
            [*command, "config", "show", "--set", "kafka.gruop=x"],
            capture_output=True,
            text=True,
            timeout=QUICK_S,
            cwd=tmp_path,
            env=clean_environment(),
        )

        assert done.returncode == 78
        assert done.stderr == "error: unknown setting kafka.gruop; did you mean kafka.group?\n"


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "learner.inner_step=3"], "did you mean learner.inner_steps?"),
        (["run", *MODEL, "--set", "kafka.gruop=x"], "did you mean kafka.group?"),
        (["run"], "no features: .*`streammaml config init --from-sample FILE`"),
        (["outer", "--once", "--from", "x.csv"], "no features: "),
        (["outer", "--every", "5m"], "no features: "),
        (["run", "--features", "a:colour"], "features.0.type: .*'category'"),
        (["run", "--features", "a,b,a"], "feature 'a' is listed twice"),
        (["run", "--port", "70000"], "web.port"),
        (["run", "--set", "kafka.group"], "--set wants KEY=VALUE"),
        (["run", "--config", "none.toml"], "cannot read none.toml: No such file"),
        (["run", "--config", "."], r"cannot read \.: Is a directory"),
        (["run", "--config", "latin.toml"], "latin.toml is not TOML"),
        (["run", "--config", "broken.toml"], "broken.toml is not TOML: .*line 1"),
        (["run", *MODEL, "--initialization", "none"], "cannot read none: .*streammaml outer"),
        (["run", *MODEL, "--initialization", "latin.toml"], "not an initialization"),
        (["run", *MODEL, "--set", "learner.detector.name=Foo"], "river has no .*PageHinkley"),
        (["run", *MODEL, "--bootstrap-servers", "kafka"], "'kafka' is not host:port"),
    ],
)
def test_a_wrong_configuration_ends_with_78_and_names_the_mistake(
    call: Call, arguments: list[str], message: str
) -> None:
    Path("latin.toml").write_bytes(b'[kafka]\ngroup = "caf\xe9"\n')
    Path("broken.toml").write_text("kafka: x\n")

    ended = call(*arguments)

    assert ended.code == 78
    assert re.search(message, ended.words), ended.err
    assert "Traceback" not in ended.err


def test_a_misspelt_variable_ends_with_78_and_the_nearest_name(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMMAML_KAFKA__GRUOP", "x")

    ended = call("run", *MODEL)

    assert ended.code == 78
    assert "STREAMMAML_KAFKA__GRUOP; did you mean STREAMMAML_KAFKA__GROUP?" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run", "--frobnicate"], "No such option: --frobnicate"),
        (["demo", "--events", "5"], "greater than or equal to 1000"),
        (["demo", "--json", "none/demo.json"], "there is no folder none"),
        (["outer", "--once", "--every", "5m"], "--once and --every exclude each other"),
        (["outer", "--every", "soon"], "'soon' is no duration: 20s, 5m and 1h are"),
        (["outer", "--every", "0s"], "'0s' is no duration"),
        (["outer", "--once", "--out", "x"], "--out goes with --from FILE"),
        (["outer", "--from", "x.csv", "--every", "1h", "--out", "x"], "without --every"),
        (["outer", "--from-initialization", "twelve"], "v12@topic, current@topic and v12 are"),
        (["initializations", "rollback", "twelve"], "'twelve' is no version: v12 is one"),
        (["outer", "--json"], "--json goes with --once"),
        ([*OUTER, "--from", "x.csv", "--out", "x", "--seconds", "9"], "--seconds does nothing wi"),
        ([*OUTER, "--from", "x.csv", "--rule", "sgd"], "'sgd' is not one of .*'maml'.*'reptile'"),
        ([*OUTER, "--from", "x.csv", "--out", "none/x"], "there is no folder none"),
        ([*OUTER, "--from", "x.csv", "--out", "."], "is a folder"),
        (["config", "init", "--out", "none/x.toml"], "there is no folder none"),
        (["config", "init", "--from-sample", "event.csv"], "no file event.csv; .*'events.csv'"),
        (["config", "init", "--from-sample", "events.csv", "--label", "lable"], "mean 'label'"),
        (["feed", "events.csv", "--context", "store"], "no column 'store' among shop, a, b"),
        (["feed", "events.csv", "--rate", "0"], "--rate"),
        (["feed", "events.csv", "--corrupt", "2"], "--corrupt"),
    ],
)
def test_a_wrong_use_ends_with_2_before_any_work(
    call: Call, arguments: list[str], message: str
) -> None:
    write_csv(Path("events.csv"))

    ended = call(*arguments)

    assert ended.code == 2
    assert re.search(message, ended.words), ended.err
    assert os.listdir() == ["events.csv"]


@pytest.mark.parametrize("command", ["topics", "feed", "run", "outer", "initializations"])
def test_no_broker_ends_with_69_and_the_address(call: Call, command: str, nowhere: str) -> None:
    write_csv(Path("events.csv"))
    arguments = {
        "topics": ["topics"],
        "feed": ["feed", "events.csv", "--label", "label"],
        "run": ["run", *MODEL, "--set", "kafka.unavailable_limit_s=0.3"],
        "outer": ["outer", "--once", *MODEL_SET, "--set", "kafka.unavailable_limit_s=0.3"],
        "initializations": ["initializations", "list"],
    }
    begun = time.monotonic()

    ended = call(*arguments[command], "--bootstrap-servers", nowhere)

    assert ended.code == 69
    assert f"no Kafka broker at {nowhere}" in ended.err
    assert time.monotonic() - begun < QUICK_S


def test_the_log_of_a_worker_is_json_lines_to_the_end(call: Call, nowhere: str) -> None:
    limit = ("--set", "kafka.unavailable_limit_s=0.3")

    ended = call("run", *MODEL, *limit, "--bootstrap-servers", nowhere)

    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert {"event", "level", "timestamp"} <= set.intersection(*map(set, lines))
    assert [line["event"] for line in lines][-1] == "failed"
    assert lines[-1]["exit_code"] == 69
    assert nowhere in lines[-1]["error"]
    assert {"broker_failed", "web_ready"} <= {line["event"] for line in lines}


def test_what_a_library_logs_is_a_json_line_too(call: Call, nowhere: str) -> None:
    logging.root.handlers.clear()  # pytest's: a process has none
    call("topics", "--bootstrap-servers", nowhere)
    call("run", *MODEL, "--set", "learner.detector.name=Foo")

    handler = logging.root.handlers[-1]
    line = handler.format(logging.LogRecord("kafka", logging.ERROR, "f", 1, "no %s", ("x",), None))

    assert (
        json.loads(line).items() >= {"event": "no x", "logger": "kafka", "level": "error"}.items()
    )


# Layers


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["group", "instance", "start", "compression"]
    Path("streammaml.toml").write_text(
        '[kafka]\ngroup = "file"\ninstance = "file"\nstart = "latest"\n'
    )
    monkeypatch.setenv("STREAMMAML_KAFKA__GROUP", "environment")
    monkeypatch.setenv("STREAMMAML_KAFKA__INSTANCE", "environment")

    shown = tomllib.loads(call("config", "show", "--set", "kafka.group=flag").out)

    assert [shown["kafka"][name] for name in names] == ["flag", "environment", "latest", "lz4"]


def test_a_flag_of_its_own_wins_over_the_environment(
    call: Call, monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    monkeypatch.setenv("STREAMMAML_KAFKA__BOOTSTRAP_SERVERS", "elsewhere:9092")

    assert nowhere in call("topics", "--bootstrap-servers", nowhere).err


def test_the_file_may_be_named_by_flag_or_environment(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("streammaml", "flag", "environment"):
        Path(f"{name}.toml").write_text(f'[kafka]\ngroup = "{name}"\n')

    def group(*arguments: str) -> Any:
        return tomllib.loads(call("config", "show", *arguments).out)["kafka"]["group"]

    assert group() == "streammaml"
    monkeypatch.setenv("STREAMMAML_CONFIG", "environment.toml")
    assert group() == "environment"
    assert group("--config", "flag.toml") == "flag"


def test_a_text_may_look_like_a_number(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMMAML_KAFKA__INSTANCE", "0")
    monkeypatch.setenv("STREAMMAML_KAFKA__SASL_PASSWORD", "12345")

    kafka = tomllib.loads(call("config", "show", "--set", "kafka.group=2026-11-22").out)["kafka"]

    assert (kafka["instance"], kafka["group"]) == ("0", "2026-11-22")
    assert set(kafka["sasl_password"]) == {"*"}


def test_the_instance_is_the_host_unless_named(call: Call) -> None:
    assert tomllib.loads(call("config", "show").out)["kafka"]["instance"] == os.uname().nodename


# config init, show, schema


def sample(kind: str) -> Path:
    path = write_csv(Path("events.csv"))
    if kind == "csv":
        return path
    rows = [line.split(",") for line in path.read_text().split()[1:]]
    table = [{"shop": s, "a": float(a), "b": float(b), "label": y} for s, a, b, y in rows]
    path = path.with_suffix(f".{kind}")
    if kind == "parquet":
        pa_parquet.write_table(pa.Table.from_pylist(table), path)
    else:
        path.write_bytes(b"\n".join(msgspec.json.encode(row) for row in table))
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_configuration_is_proposed_from_a_sample(call: Call, kind: str) -> None:
    file = sample(kind)

    ended = call("config", "init", "--from-sample", str(file), "--context", "shop")

    assert (ended.code, ended.out) == (0, "wrote streammaml.toml\n")
    config = Config.build(tomllib.loads(Path("streammaml.toml").read_text()))
    assert [feature.name for feature in config.features] == ["a", "b"]
    assert config.label.classes == ("no", "yes")


def test_a_configuration_without_a_sample_is_an_example_that_loads(call: Call) -> None:
    printed = call("config", "init", "--out", "-").out
    call("config", "init")

    assert Path("streammaml.toml").read_text() == printed
    assert len(Config.build(tomllib.loads(printed)).features) == 3
    assert "state" in tomllib.loads(printed)
    assert '\n# directory = "' in printed
    assert call("config", "show").code == 0


def test_a_configuration_is_not_overwritten_unless_asked(call: Call) -> None:
    file = Path("streammaml.toml")
    file.write_text("mine")

    refused = call("config", "init")

    assert refused.code == 78
    assert "streammaml.toml exists; --force overwrites it" in refused.err
    assert file.read_text() == "mine"
    assert call("config", "init", "--force").code == 0
    assert file.read_text() != "mine"


ELABORATE = """
[[features]]
name = "temp"
range = [-40, 60.5]
[[features]]
name = "open.air"
type = "boolean"
[[features]]
name = "day"
type = "category"
categories = ["Mon", "Dienstag „ä“", 'with "quotes"']
[label]
classes = [1, 2, 3]
[learner]
hidden = []
clip_norm = 2
[learner.detector]
name = "ADWIN"
parameters = { delta = 0.01, clock = 16 }
[kafka]
instance = "one"
ssl_cafile = 'C:\\ca.pem'
[web]
port = 0
"""


def test_the_shown_configuration_is_the_same_configuration(call: Call) -> None:
    Path("elaborate.toml").write_text(ELABORATE)

    shown = call("config", "show", "--config", "elaborate.toml").out

    here = {"state": {"directory": str(Path.home() / ".local" / "state" / "streammaml")}}
    assert Config.build(tomllib.loads(shown)) == Config.build(here, tomllib.loads(ELABORATE))
    sections = {key: value for key, value in tomllib.loads(shown).items() if key != "features"}
    listed = {name.split(".")[0] for name in keys(Config)} - {"features"}
    assert set(sections) == listed


def test_a_password_is_shown_nowhere(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMMAML_KAFKA__SASL_PASSWORD", SECRET)

    shown = call("config", "show")
    others = [
        call("config", "show", "--set", "kafka.gruop=x"),
        call("config", "show", "--set", f"kafka.sasl_pasword={SECRET}"),
        call("config", "show", "--set", f"kafka.sasl_password:{SECRET}"),
        call("run", *MODEL, "--bootstrap-servers", "kafka"),
    ]

    assert 'sasl_password = "*' in shown.out
    assert [ended.code for ended in others] == [78] * 4
    assert all(SECRET not in ended.out + ended.err for ended in [shown, *others])


@pytest.mark.parametrize(
    "kafka",
    [
        {"sasl_pasword": SECRET},
        {"sasl_password": [SECRET]},
        {"sasl_password": SECRET, "group": 3},
        {"sasl_password": SECRET, "session_timeout_ms": 1},
    ],
)
def test_a_password_is_in_no_traceback(kafka: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.build({"kafka": kafka})

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_schema_describes_every_setting(call: Call) -> None:
    schema = json.loads(call("config", "schema").out)

    for name in keys(Config):
        found = schema
        for part in name.split("."):
            found = resolved(schema, found)["properties"][part]
        assert {"type", "enum", "anyOf", "$ref", "const"} & set(resolved(schema, found)), name
    assert resolved(schema, schema["properties"]["kafka"])["additionalProperties"] is False


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, which must lead somewhere."""
    if "$ref" not in part:
        return part
    found: dict[str, Any] = schema["$defs"][part["$ref"].removeprefix("#/$defs/")]
    return found


# health


def test_health_asks_the_worker_and_passes_its_answer_on(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # as a pod may have it
    _, server = watched(Config.build({"web": {"port": 0}}))

    with server:
        ended = call("health", "--url", server.address)

    assert ended.code == 0
    assert json.loads(ended.out)["status"] == "ok"


def test_health_of_a_stuck_worker_is_1(call: Call) -> None:
    sources = Sources(
        registry=CollectorRegistry(),
        board=Board(),
        loop_age_s=lambda: 3600.0,
        ready=lambda: True,
    )

    with WebServer(WebConfig(port=0), sources) as server:
        ended = call("health", "--url", server.address)

    assert ended.code == 1
    assert json.loads(ended.err)["loop_age_s"] == 3600


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "http://127.0.0.1:"), ("::", "http://[::1]:"), ("127.0.0.1", "http://127.0.0.1:")],
)
def test_health_without_a_worker_is_1_and_names_where_it_asked(
    call: Call, host: str, address: str
) -> None:
    port = free_port()

    ended = call("health", "--set", f"web.host={host}", "--set", f"web.port={port}")

    assert ended.code == 1
    assert f"no worker answers at {address}{port}" in ended.err


def test_health_at_no_address_is_1_without_a_traceback(call: Call) -> None:
    assert call("health", "--url", "nonsense").code == 1


# outer


def test_an_initialization_is_trained_from_a_file_and_fits_the_worker(call: Call) -> None:
    history = write_csv(Path("events.csv"))

    ended = call(*OUTER, *MODEL_SET, "--from", str(history), "--out", "start.safetensors")

    assert ended.code == 0, ended.err
    assert re.search(r"wrote start.safetensors: .*3 steps, 0 skipped, 0 rows left out", ended.out)
    config = Config.build(
        {"features": [{"name": "a"}, {"name": "b"}], "label": {"classes": ["no", "yes"]}}
    )
    trained = decode(Path("start.safetensors").read_bytes())
    check_fits(trained, spec_of(config))
    assert trained.notes["rule"] == "fomaml"


def test_a_worker_refuses_an_initialization_of_another_model(call: Call, nowhere: str) -> None:
    history = write_csv(Path("events.csv"))
    call(*OUTER, *MODEL_SET, "--from", str(history), "--out", "start.safetensors")
    run = ("run", "--initialization", "start.safetensors", "--bootstrap-servers", nowhere)

    fits = call(*run, *MODEL, "--set", "kafka.unavailable_limit_s=0.1")
    other_features = call(*run, "--features", "a,c", "--classes", "no,yes")
    other_network = call(*run, *MODEL, "--set", "learner.hidden=[8]")

    assert (fits.code, other_features.code, other_network.code) == (69, 78, 78)
    assert "its features or classes differ" in other_features.err
    assert "its network is (4, 64, 64, 2), not (4, 8, 2)" in other_network.err
    assert "`streammaml outer --from FILE --out FILE`" in other_network.err


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (20, [], "no context has the .* labels .* give a longer history"),
        (ROWS, ["--label", "lable"], "did you mean 'label'"),
        (ROWS, ["--set", 'label.classes=["maybe","perhaps"]'], "600 of 600 rows .* features and"),
    ],
)
def test_a_history_that_cannot_be_trained_on_ends_with_2(
    call: Call, rows: int, more: list[str], message: str
) -> None:
    history = write_csv(Path("events.csv"), rows)

    ended = call(*OUTER, *MODEL_SET, *more, "--from", str(history))

    assert ended.code == 2
    assert re.search(message, ended.words), ended.err
    assert os.listdir() == ["events.csv"]


# With a broker


@pytest.fixture
def broker(kafka_servers: str, monkeypatch: pytest.MonkeyPatch, call: Call) -> dict[str, str]:
    """Topics of this test's own, in the environment."""
    environment = kafka_environment(kafka_servers)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.mark.kafka
def test_topics_are_created_once_and_checked_after(call: Call, broker: dict[str, str]) -> None:
    first, second = call("topics"), call("topics")

    assert (first.code, second.code) == (0, 0)
    assert first.out.count(": created\n") == second.out.count(": exists\n") == 7


@pytest.mark.kafka
def test_a_topic_with_a_wrong_count_of_partitions_ends_with_1_and_the_cure(
    call: Call, broker: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMMAML_TOPICS__EVENTS", "another-" + broker["STREAMMAML_KAFKA__GROUP"])
    call("topics", "--set", "topics.partitions=3")
    monkeypatch.setenv("STREAMMAML_TOPICS__EVENTS", broker["STREAMMAML_TOPICS__EVENTS"])

    ended = call("topics")

    assert ended.code == 1
    (line,) = [line for line in ended.out.splitlines() if "has 3 partitions, needs 2" in line]
    assert line.startswith(broker["STREAMMAML_TOPICS__STATE"])
    assert "delete it and run `streammaml topics` again" in line


@pytest.mark.kafka
def test_without_topics_a_worker_and_a_feed_say_how_to_create_them(
    call: Call, broker: dict[str, str]
) -> None:
    write_csv(Path("events.csv"))

    for ended in (call("feed", "events.csv"), call("run", *MODEL)):
        assert ended.code == 78
        assert "create the topics with `streammaml topics`" in ended.err


@pytest.mark.kafka
def test_doctor_finds_missing_topics_and_then_nothing(call: Call, broker: dict[str, str]) -> None:
    before = call("doctor", *MODEL_SET)
    call("topics")
    after = call("doctor", *MODEL_SET, "--json")

    assert before.code == 1
    failed = [line for line in before.out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert "`streammaml topics`" in failed[0]
    assert after.code == 0, after.out
    found = {finding["check"]: finding for finding in json.loads(after.out)}
    assert all(finding["ok"] for finding in found.values())
    assert {"features", "initialization", "kafka", "topics", "transactions"} <= set(found)


@pytest.mark.kafka
def test_feed_and_run_need_no_file(
    call: Call, broker: dict[str, str], tmp_path: Path, kafka_servers: str
) -> None:
    write_csv(Path("events.csv"))
    call("topics")
    model = {
        "STREAMMAML_FEATURES": '[{name = "a"}, {name = "b"}]',
        "STREAMMAML_LABEL__CLASSES": '["no", "yes"]',
    }

    fed = call("feed", "events.csv", "--label", "label", "--context", "shop", "--features", "a,b")
    with running(["streammaml", "run"], tmp_path, clean_environment(**broker, **model)) as worker:
        topic = broker["STREAMMAML_TOPICS__PREDICTIONS"]
        found = predictions(kafka_servers, topic, ROWS, worker)
        worker.stop()

    assert f"sent {ROWS} events, 0 of them damaged" in fed.out
    assert {p["event"] for p in found} == {f"events-{i}" for i in range(ROWS)}
    assert len(found) == ROWS
