"""The public API as a program uses it: mypy checks this file, ``test_api.py`` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import streammaml
from streammaml import BackendError, Config, ConfigError, StreamMAMLError


def configuration() -> Config:
    """Layers of plain tables, the later ones winning."""
    file = {
        "features": [{"name": "temp"}, {"name": "promo", "type": "boolean"}],
        "label": {"classes": ["no", "yes"]},
    }
    config = Config.build(file, {"kafka": {"group": "shop"}})
    assert_type(config.kafka.group, str)
    assert_type(config.learner.hidden, tuple[int, ...])
    return config


def mistake(layer: Mapping[str, Any]) -> str:
    try:
        Config.build(layer)
    except ConfigError as error:
        assert_type(error.exit_code, int)
        return str(error)
    return ""


def exit_code_of(error: StreamMAMLError) -> int:
    retry: bool = isinstance(error, BackendError)
    assert_type(streammaml.__version__, str)
    return error.exit_code if retry else 1
