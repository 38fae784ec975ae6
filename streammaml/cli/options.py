"""Options that commands share, and the configuration that they add up to."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from streammaml import config as settings
from streammaml.config import Config
from streammaml.errors import ConfigError
from streammaml.flags import layer_of_sets

DEFAULT_FILE = Path("streammaml.toml")
STDOUT = Path("-")


def writable(path: Path | None) -> Path | None:
    """Refuse, before any work is done, a file that cannot be written."""
    if path in (None, STDOUT):
        return path
    assert path is not None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"{path} cannot be written")
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML file [default: ./streammaml.toml if there is one]"),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any setting, such as kafka.group=shop"),
]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap-servers", "-b", help="Kafka, as host:port[,host:port]")
]
Features = Annotated[
    str | None,
    typer.Option(help="name[:type],…; types: number, boolean, category=a|b|c"),
]
TaskName = Annotated[str | None, typer.Option(help="classification or regression")]
Classes = Annotated[str | None, typer.Option(help="The closed list of classes: a,b,c")]
Initialization = Annotated[
    Path | None, typer.Option(help="A file that `streammaml outer --from FILE --out FILE` wrote")
]


def load(file: Path | None, sets: list[str] | None, flags: dict[str, Any]) -> Config:
    """Layer file, environment and flags, and name this host's instance."""
    named = os.environ.get("STREAMMAML_CONFIG")
    path = file or (Path(named) if named else DEFAULT_FILE)
    layers: list[dict[str, Any]] = [
        {"kafka": {"instance": socket.gethostname()}, "state": {"directory": str(_state_home())}}
    ]
    if file or named or path.exists():
        try:
            layers.append(settings.from_toml(path.read_text("utf-8"), str(path)))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    layers += [settings.from_environment(os.environ), flags, layer_of_sets(sets)]
    return Config.build(*layers)


def failed(message: str) -> typer.Exit:
    """Say why, and end with 1."""
    typer.echo(message, err=True)
    return typer.Exit(1)


def _state_home() -> Path:
    """Where programs keep state by the XDG convention; here, where there is no home."""
    try:
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        return Path("streammaml-state")
    return Path(home) / "streammaml"


def need_features(config: Config) -> None:
    if not config.features:
        raise ConfigError(
            "no features: list them in the configuration file (`streammaml config init "
            "--from-sample FILE` proposes them) or with --features a,b:boolean,c:category=x|y"
        )
