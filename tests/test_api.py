"""The package's front door: what it names, and that opening it costs little."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

import streammaml
from streammaml import errors
from tests import api_usage

HEAVY = {"torch", "numba", "river", "kafka", "pyarrow", "prometheus_client", "typer", "rich"}


def test_it_names_the_configuration_the_version_and_every_error() -> None:
    own = {n for n, kind in vars(errors).items() if is_ours(kind)}
    public = {name for name in vars(streammaml) if not name.startswith("_")}

    assert {"Config", *own} == public - loaded_submodules()


def is_ours(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.StreamMAMLError)


def loaded_submodules() -> set[str]:
    """What other tests have imported by now."""
    return {n.split(".")[1] for n in sys.modules if n.startswith("streammaml.")}


def test_the_version_is_that_of_the_installed_package() -> None:
    assert streammaml.__version__ == metadata.version("streammaml")


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import json, sys, streammaml; print(json.dumps(sorted(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert not {name.split(".")[0] for name in json.loads(done.stdout)} & HEAVY


def test_the_usage_that_mypy_has_checked_also_runs() -> None:
    config = api_usage.configuration()

    assert [feature.name for feature in config.features] == ["temp", "promo"]
    assert config.label.slots == 2
    assert "did you mean kafka.group" in api_usage.mistake({"kafka": {"gruop": "shop"}})
    assert api_usage.exit_code_of(streammaml.UnavailableError()) == 69


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (streammaml.StreamMAMLError, 1),
        (streammaml.TooManyRejectedError, 1),
        (streammaml.GapError, 1),
        (streammaml.FencedError, 1),
        (streammaml.InputError, 2),
        (streammaml.UnavailableError, 69),
        (streammaml.ConfigError, 78),
        (streammaml.InitializationError, 78),
    ],
)
def test_an_error_says_who_has_to_act(kind: type[streammaml.StreamMAMLError], code: int) -> None:
    error = kind()

    assert error.exit_code == code
    assert str(error) == kind.__doc__
