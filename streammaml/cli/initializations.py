"""``streammaml initializations``: the versions in the topic, and the way back to one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from streammaml.cli.options import Bootstrap, ConfigFile, Sets, failed, load
from streammaml.config import Config
from streammaml.flags import layer_of_flags, version_of
from streammaml.process import configure_logging

initializations_app = typer.Typer(
    help="List, show and roll back what the outer loop published.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json")]


def _version(text: str) -> int:
    try:
        return version_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Version = Annotated[int | None, typer.Argument(metavar="[VERSION]", parser=_version)]


@initializations_app.command("list")
def list_command(
    as_json: AsJson = False,
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
) -> None:
    """List the versions: which one is current, its age, parent, losses before and after."""
    effective = _loaded(config, sets, bootstrap_servers)
    from streammaml.inspection.pages import show
    from streammaml.inspection.published import listing, listing_page, read_topic

    found = listing(read_topic(effective), time.time())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show(listing_page(found, effective.topics.initializations))


@initializations_app.command("show")
def show_command(
    version: Version = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
) -> None:
    """Show a version with the report of its gate, by default the current one."""
    effective = _loaded(config, sets, bootstrap_servers)
    from streammaml.inspection.pages import show
    from streammaml.inspection.published import NoVersionError, details, details_page, read_topic

    found: dict[str, Any] = _found(
        lambda: details(read_topic(effective), version, time.time()), NoVersionError
    )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show(details_page(found))


@initializations_app.command("rollback")
def rollback_command(
    version: Version = None,
    config: ConfigFile = None,
    sets: Sets = None,
    bootstrap_servers: Bootstrap = None,
) -> None:
    """Make a version current again, by default the parent of the current one.

    Workers take it over like any other; an outer loop that runs goes on from it.
    """
    effective = _loaded(config, sets, bootstrap_servers)
    from streammaml.inspection.published import NoVersionError, roll_back

    before, after = _found(lambda: roll_back(effective, version), NoVersionError)
    was = "" if before is None else f", was v{before}"
    typer.echo(f"{effective.topics.initializations}: v{after} is current{was}")


def _loaded(config: Any, sets: Any, bootstrap_servers: str | None) -> Config:
    configure_logging(level="warning")
    return load(config, sets, layer_of_flags({"kafka.bootstrap_servers": bootstrap_servers}))


def _found(ask: Callable[[], Any], missing: type[Exception]) -> Any:
    """What is asked for, or its absence as an exit of 1."""
    try:
        return ask()
    except missing as error:
        raise failed(str(error)) from error
