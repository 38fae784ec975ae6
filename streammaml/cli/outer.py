"""``streammaml outer``: the outer loop, once or from time to time, on a topic or a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from streammaml.cli.options import (
    Bootstrap,
    ConfigFile,
    Sets,
    failed,
    load,
    need_features,
    writable,
)
from streammaml.config import Config
from streammaml.flags import layer_of_flags, seconds_of, source_of
from streammaml.initialization import Initialization
from streammaml.process import configure_logging, last_words, stop_on_signals

PERIOD_S = 300.0
FILE_STEPS = 1000


class OuterRule(StrEnum):
    """The rules of ``meta``, which only the command itself imports."""

    FOMAML = "fomaml"
    MAML = "maml"
    METASGD = "metasgd"
    ANIL = "anil"
    REPTILE = "reptile"


class Source(NamedTuple):
    """A version, None for the current one, of a topic, empty for the configured one."""

    version: int | None
    topic: str


def _duration(text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _source(text: str) -> Source:
    try:
        return Source(*source_of(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def outer(
    once: Annotated[bool, typer.Option("--once", help="One run, then end: for cron")] = False,
    every: Annotated[
        float | None,
        typer.Option(metavar="TIME", parser=_duration, help="From run to run [default: 5m]"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Train on a history first, from before the topic's: CSV, Parquet, JSONL"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --from: write a file, without Kafka", callback=writable),
    ] = None,
    from_initialization: Annotated[
        Source | None,
        typer.Option(
            metavar="v12@TOPIC", parser=_source, help="Train from another domain's; or current@…"
        ),
    ] = None,
    rule: Annotated[
        OuterRule | None, typer.Option(help="How the outer gradient is taken [default: fomaml]")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Outer steps of a run, at most")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Training time of a run, at most")
    ] = None,
    label: Annotated[str, typer.Option(help="Of --from: column of the label")] = "label",
    context: Annotated[str | None, typer.Option(help="Of --from: column of the context")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Of --from: columns [default: the features of the configuration]"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Metrics and health; 0: any")] = None,
    metrics_file: Annotated[
        Path | None,
        typer.Option(help="With --once: write its metrics, too", callback=writable),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: the report as JSON")
    ] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
) -> None:
    """Meta-train on the episodes that workers send, and publish what is better."""
    ends = once or (source is not None and every is None)
    of_one_run = {"--json": as_json, "--metrics-file": metrics_file is not None}
    of_runs = {"--seconds": seconds is not None, "--port": port is not None}
    _check_use(ends, every, source, out, of_one_run, of_runs)
    effective = load(
        config,
        sets,
        layer_of_flags(
            {
                "kafka.bootstrap_servers": bootstrap_servers,
                "outer.rule": None if rule is None else rule.value,
                "outer.steps": steps,
                "outer.seconds": seconds,
                "outer.port": port,
            }
        ),
    )
    need_features(effective)
    quiet = ends and (out is not None or sys.stderr.isatty())
    configure_logging(level="warning" if quiet else "info")
    from streammaml.backends.files import Columns
    from streammaml.meta.outer_loop import Rule
    from streammaml.training import episodes_of_file, train_from_file

    chosen = features or ",".join(f.name for f in effective.features)
    columns = Columns(features=chosen, label=label, context=context, time=None)
    begin = None if from_initialization is None else _foreign(effective, from_initialization)
    if out is not None:
        assert source is not None
        by = Rule(effective.outer.rule)
        chosen_steps = "steps" in effective.outer.model_fields_set
        at_most = effective.outer.steps if chosen_steps else FILE_STEPS
        trained, rejected = train_from_file(effective, source, columns, out, at_most, by, begin)
        typer.echo(
            f"wrote {out}: mean loss after adaptation on {trained.validation_episodes} held-out "
            f"episodes {trained.loss_before:.3f} before, {trained.loss_after:.3f} now "
            f"({trained.loss_unadapted:.3f} unadapted); {trained.steps} steps, "
            f"{trained.skipped} skipped, {rejected} rows left out"
        )
        for net, verdict in trained.report["nets"].items():
            if not verdict["passed"]:
                typer.echo(f"the gate would not let {net} pass: {verdict['why']}", err=True)
        return
    from streammaml.outer_serving import run_outer, serve_outer

    past = [] if source is None else episodes_of_file(effective, source, columns)
    with stop_on_signals() as stop:
        if not ends:
            with last_words():
                serve_outer(effective, stop, every or PERIOD_S, begin=begin, past=past)
            return
        run = run_outer(effective, stop, begin=begin, past=past, metrics_file=metrics_file)
    from streammaml.inspection.pages import show
    from streammaml.inspection.runs import run_page, run_values

    if as_json:
        typer.echo(json.dumps(run_values(run), indent=2))
    else:
        show(run_page(run))
    if run.result == "failed":
        raise typer.Exit(1)


def _check_use(
    ends: bool,
    every: float | None,
    source: Path | None,
    out: Path | None,
    of_one_run: Mapping[str, bool],
    of_runs: Mapping[str, bool],
) -> None:
    """Refuse flags that contradict each other, or would do nothing, before any work is done.

    The mappings say of a flag whether it is given.
    """
    if ends and every is not None:
        raise typer.BadParameter("--once and --every exclude each other")
    if out is None:
        if not ends:
            _refuse(of_one_run, "goes with --once")
        return
    if source is None:
        raise typer.BadParameter("--out goes with --from FILE: otherwise the topic is written")
    if not ends:
        raise typer.BadParameter("--out writes a file once: without --every")
    _refuse({**of_one_run, **of_runs}, "does nothing with --out")


def _refuse(given: Mapping[str, bool], why: str) -> None:
    for flag, is_given in given.items():
        if is_given:
            raise typer.BadParameter(f"{flag} {why}")


def _foreign(config: Config, source: Source) -> Initialization:
    """Another domain's initialization, out of its topic."""
    from streammaml.inspection.published import NoVersionError, initialization_of, read_topic

    topics = config.topics
    named = topics.model_copy(update={"initializations": source.topic or topics.initializations})
    there = config.model_copy(update={"topics": named})
    try:
        return initialization_of(read_topic(there, keep=source.version), source.version)
    except NoVersionError as error:
        raise failed(f"--from-initialization: {error}") from error
