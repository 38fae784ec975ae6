"""Flags as a layer of the configuration."""

from __future__ import annotations

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
