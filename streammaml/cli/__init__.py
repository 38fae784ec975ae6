"""The command line: flags, environment, signals, wiring. The only place that reads the environment.

Rule: a command imports what it needs when it runs, so that ``health`` and ``--help`` stay light.
Exit codes: 0, 1 failure, 2 usage, 69 broker unavailable, 74 state I/O,
78 configuration.
"""

from __future__ import annotations

import json
import os
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import typer

from streammaml.cli.initializations import initializations_app
from streammaml.cli.options import (
    DEFAULT_FILE,
    STDOUT,
    Bootstrap,
    Classes,
    ConfigFile,
    Features,
    Initialization,
    Sets,
    TaskName,
    failed,
    load,
    need_features,
    writable,
)
from streammaml.cli.outer import outer
from streammaml.config import Config
from streammaml.errors import ConfigError, StreamMAMLError
from streammaml.flags import features_of, layer_of_flags, values_of
from streammaml.process import configure_logging, last_words, stop_on_signals
from streammaml.query import LONGEST_PATTERN, MOST_ROWS, Query, Sort

app = typer.Typer(
    help="Online adaptation for many contexts on Kafka.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Write, show and describe the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(initializations_app, name="initializations")
app.command()(outer)

Url = Annotated[str | None, typer.Option(help="[default: this configuration's worker]")]
FromTopic = Annotated[
    bool, typer.Option("--from-topic", help="Read the state topic, as of the last barriers")
]
OTHER_WAYS = (
    "--url names another worker (each knows its own partitions), --from-topic reads what all of "
    "them have stored"
)


@app.command()
def run(
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
    group: Annotated[str | None, typer.Option(help="Consumer group")] = None,
    instance: Annotated[
        str | None, typer.Option(help="Name of this worker in its group [default: host name]")
    ] = None,
    features: Features = None,
    task: TaskName = None,
    classes: Classes = None,
    initialization: Initialization = None,
    port: Annotated[int | None, typer.Option(help="Metrics, health and live page; 0: any")] = None,
) -> None:
    """Run the worker: read events, predict, adapt, publish."""
    flags = layer_of_flags(
        {
            "kafka.bootstrap_servers": bootstrap_servers,
            "kafka.group": group,
            "kafka.instance": instance,
            "features": features_of(features),
            "label.task": task,
            "label.classes": values_of(classes),
            "learner.initialization": None if initialization is None else str(initialization),
            "web.port": port,
        }
    )
    effective = load(config, sets, flags)
    need_features(effective)
    from streammaml.serving import serve

    configure_logging()
    with stop_on_signals() as stop, last_words():
        finished = serve(effective, stop)
    if not finished:
        os._exit(0)  # an orderly end would wait for the compiler, and nothing is open


@app.command()
def demo(
    events: Annotated[int, typer.Option(min=1000, help="Events to score")] = 20_000,
    headless: Annotated[bool, typer.Option(help="No page; as fast as it goes")] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the summary as JSON", callback=writable),
    ] = None,
    rate: Annotated[float, typer.Option(min=1, help="Events a second, with the page")] = 500.0,
    port: Annotated[int, typer.Option(help="The page; 0: any free port")] = 9108,
    browser: Annotated[bool, typer.Option(help="Open the page where there is a browser")] = True,
    seed: int = 0,
) -> None:
    """Meta-train on a generated past, then adapt to the drifting present; compare."""
    from streammaml.demo import DemoOptions, run_demo

    configure_logging(level="warning")
    options = DemoOptions(
        events=events,
        rate=None if headless else rate,
        port=None if headless else port,
        browser=browser and _has_display(),
        seed=seed,
    )
    with stop_on_signals() as stop:
        summary = run_demo(options, stop)
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")


@app.command()
def feed(
    file: Annotated[Path, typer.Argument(help="CSV, Parquet or JSON lines")],
    label: Annotated[str | None, typer.Option(help="Column of the label")] = None,
    features: Annotated[
        str | None, typer.Option(help="Columns: names and globs, 'f_*,temp'")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Column of the context [default: all one context]")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of the event time")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many events")] = None,
    every: Annotated[int, typer.Option(min=1, help="Only every K-th row")] = 1,
    corrupt: Annotated[
        float, typer.Option(min=0, max=1, help="Damage this share of the events, for drills")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the damage")] = 0,
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
    topic: Annotated[str | None, typer.Option(help="[default: events]")] = None,
) -> None:
    """Replay a file into the events topic, with progress."""
    flags = layer_of_flags({"kafka.bootstrap_servers": bootstrap_servers, "topics.events": topic})
    effective = load(config, sets, flags)
    from streammaml.backends.files import Columns
    from streammaml.feed import FeedPlan
    from streammaml.jobs import feed_file

    configure_logging(level="warning")
    columns = Columns(features=features, label=label, context=context, time=time)
    plan = FeedPlan(
        name=file.name.partition(".")[0],
        rate=rate,
        limit=limit,
        every=every,
        corrupt=corrupt,
        seed=seed,
    )
    with stop_on_signals() as stop:
        fed = feed_file(effective, file, columns, plan, stop)
    typer.echo(
        f"sent {fed.sent:,} events, {fed.corrupted:,} of them damaged, "
        f"to {effective.topics.events} at {fed.rate:,.0f} events/s"
    )


@app.command()
def topics(
    config: ConfigFile = None, sets: Sets = None, bootstrap_servers: Bootstrap = None
) -> None:
    """Create the topics, or check those that exist."""
    effective = load(config, sets, layer_of_flags({"kafka.bootstrap_servers": bootstrap_servers}))
    from streammaml.backends.kafka import TopicAdmin

    with TopicAdmin(effective) as admin:
        reports = admin.ensure()
    for report in reports:
        typer.echo(f"{report.topic}: {report.outcome}")
    if any(report.outcome not in ("created", "exists") for report in reports):
        raise typer.Exit(1)


@app.command()
def doctor(
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Check configuration, libraries, broker and topics; say how to mend what is wrong."""
    effective = load(config, sets, layer_of_flags({"kafka.bootstrap_servers": bootstrap_servers}))
    from streammaml.doctor import examine

    findings = examine(effective)
    if as_json:
        typer.echo(json.dumps([f._asdict() for f in findings], indent=2))
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else "FAIL"
            typer.echo(f"{mark} {finding.check}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def health(
    url: Url = None,
    config: ConfigFile = None,
    sets: Sets = None,
    timeout_s: Annotated[float, typer.Option(min=0.1)] = 3.0,
) -> None:
    """Ask a running worker whether it is well; for container probes. Exit 0 or 1."""
    from streammaml.inspection.remote import NoWorkerError, get

    try:
        reply = get(url or _address(load(config, sets, {})), "/healthz", timeout_s)
    except NoWorkerError as error:
        raise failed(str(error)) from error
    if reply.status != HTTPStatus.OK:
        raise failed(reply.text)
    typer.echo(reply.text)


@app.command()
def contexts(
    sort: Annotated[Sort, typer.Option(help="The greatest first; a name: from A on")] = Sort.LOSS,
    pattern: Annotated[
        str, typer.Option("--filter", metavar="GLOB", help="Names, such as 'store-*'")
    ] = "*",
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS)] = 50,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    url: Url = None,
    from_topic: FromTopic = False,
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
    timeout_s: Annotated[float, typer.Option(min=0.1)] = 10.0,
) -> None:
    """List the contexts that a worker has in memory, or that the topic holds."""
    if len(pattern) > LONGEST_PATTERN:
        raise typer.BadParameter(f"--filter has more than {LONGEST_PATTERN} characters")
    effective = load(config, sets, layer_of_flags({"kafka.bootstrap_servers": bootstrap_servers}))
    from streammaml.inspection.pages import listing_page, show

    query = Query(sort, limit, pattern)
    if from_topic:
        need_features(effective)
        from streammaml.inspection.stored import list_topic

        configure_logging(level="warning")
        found = list_topic(effective, query)
    else:
        from streammaml.inspection.remote import listing_path

        found = _ask(url or _address(effective), listing_path(query), timeout_s)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show(listing_page(found, effective.topics.state))


@app.command()
def inspect(
    context: Annotated[str, typer.Argument(help="Its name, as in the events")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
    url: Url = None,
    from_topic: FromTopic = False,
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
    timeout_s: Annotated[float, typer.Option(min=0.1)] = 10.0,
) -> None:
    """Show all that is known of one context: counters, scalers, detector, weights, examples."""
    effective = load(config, sets, layer_of_flags({"kafka.bootstrap_servers": bootstrap_servers}))
    from streammaml.inspection.pages import context_page, printable, show

    found: dict[str, Any] | None
    if from_topic:
        need_features(effective)
        from streammaml.inspection.stored import find_in_topic

        configure_logging(level="warning")
        found = find_in_topic(effective, context)
        if found is None:
            raise failed(
                f"no context {printable(context)!r} in {effective.topics.state!r}. `streammaml "
                "contexts --from-topic --sort name` lists them; one that is younger than the last "
                "barrier is only in its worker (without --from-topic)"
            )
    else:
        from streammaml.inspection.remote import context_path

        found = _ask(url or _address(effective), context_path(context), timeout_s)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show(context_page(found))


@config_app.command("init")
def config_init(
    from_sample: Annotated[
        Path | None, typer.Option(help="Propose the features from this file")
    ] = None,
    label: Annotated[str, typer.Option(help="Column of the label")] = "label",
    features: Annotated[str, typer.Option(help="Columns: names and globs")] = "*",
    context: Annotated[str | None, typer.Option(help="Column of the context")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the event time")] = None,
    out: Annotated[
        Path, typer.Option(help="- for standard output", callback=writable)
    ] = DEFAULT_FILE,
    force: Annotated[bool, typer.Option(help="Overwrite")] = False,
) -> None:
    """Write a configuration file to start from."""
    from streammaml.config_file import starter

    text = starter(from_sample, label, features, context, time)
    if out == STDOUT:
        typer.echo(text, nl=False)
        return
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; --force overwrites it, --out names another")
    out.write_text(text)
    typer.echo(f"wrote {out}")


@config_app.command("show")
def config_show(config: ConfigFile = None, sets: Sets = None) -> None:
    """Print the effective configuration as TOML, secrets hidden."""
    from streammaml.config_file import to_toml

    typer.echo(to_toml(load(config, sets, {})), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Entry point: our errors become one line and their exit code."""
    try:
        app(args=arguments)
    except StreamMAMLError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _ask(url: str, path: str, timeout_s: float) -> dict[str, Any]:
    """What a running worker says; if it says no, or nothing, its reason and the other ways."""
    from streammaml.inspection.remote import NoWorkerError, get

    try:
        reply = get(url, path, timeout_s)
    except NoWorkerError as error:
        raise failed(f"{error}. {OTHER_WAYS}") from error
    value = reply.value
    if value is None:
        raise failed(f"what answers at {url} is no worker of this release ({reply.status})")
    if reply.status != HTTPStatus.OK:
        raise failed(f"the worker at {url} says: {value.get('error')}. {OTHER_WAYS}")
    return value


def _address(config: Config) -> str:
    """Where this configuration's worker serves, as seen from its own machine."""
    loopback = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
    host = loopback.get(config.web.host, config.web.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.web.port}"


def _has_display() -> bool:
    """Without one, a browser in the terminal would take the demo's place."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
