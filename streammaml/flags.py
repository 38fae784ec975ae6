"""Flags as a layer of the configuration."""

from __future__ import annotations

import math
import re
from typing import Any

from streammaml import config as settings
from streammaml.errors import ConfigError


def layer_of_sets(pairs: list[str] | None) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            # Not the pair itself: it may be a password behind a colon.
            raise ConfigError("--set wants KEY=VALUE, such as kafka.group=shop: there is no =")
        key = key.strip()
        settings.assign(layer, key, settings.read_value(key, value))
    return layer


def layer_of_flags(given: dict[str, Any]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for key, value in given.items():
        if value is not None:
            settings.assign(layer, key, value)
    return layer


def values_of(text: str | None) -> list[Any] | None:
    return None if text is None else [settings.parse_value(v.strip()) for v in text.split(",")]


def features_of(text: str | None) -> list[dict[str, Any]] | None:
    """``a,b:boolean,c:category=x|y`` as feature tables."""
    if text is None:
        return None
    tables = []
    for part in text.split(","):
        name, _, kind = part.strip().partition(":")
        kind, _, categories = kind.partition("=")
        table: dict[str, Any] = {"name": name, "type": kind or "number"}
        if categories:
            table["categories"] = categories.split("|")
        tables.append(table)
    return tables


UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def seconds_of(text: str) -> float:
    """``20s``, ``5m``, ``1h``, ``1d``, or plain seconds; ValueError for what is none."""
    found = DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * UNITS_S[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is no duration: 20s, 5m and 1h are")
    return seconds


def source_of(text: str) -> tuple[int | None, str]:
    """``v12@topic``, ``current@topic``, ``v12`` or ``current``: version (None: the current one)
    and topic (empty: the configured one); ValueError for what is none.
    """
    name, _, topic = text.partition("@")
    if name == "current":
        return None, topic
    if VERSION.fullmatch(name):
        return version_of(name), topic
    raise ValueError(f"{text!r} is no initialization: v12@topic, current@topic and v12 are")


VERSION = re.compile(r"v?(\d{1,18})")


def version_of(text: str) -> int:
    """``v12`` or ``12``; ValueError for what is none."""
    found = VERSION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no version: v12 is one")
    return int(found[1])
