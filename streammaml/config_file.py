"""Configuration as TOML text: a file to start from, and the effective one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from pydantic import SecretStr

from streammaml.backends.files import propose_schema
from streammaml.config import Config, Feature, LabelConfig

HEADER = """\
# streammaml: one file for worker and outer loop. Flags win over the environment
# (STREAMMAML_KAFKA__GROUP=…), the environment over this file, this file over the defaults.
# `streammaml config show` prints everything, `streammaml config schema` describes it.
"""

DIRECTORY = """\
# A folder for quick restarts: what is not there is read again from the topic.
# directory = "/var/lib/streammaml"
"""
"""In a comment: the default is a matter of who runs the worker."""

EXAMPLE: tuple[Feature, ...] = (
    Feature.model_validate({"name": "temp"}),
    Feature.model_validate({"name": "promo", "type": "boolean"}),
    Feature.model_validate({"name": "weekday", "type": "category", "categories": ["Mon", "Tue"]}),
)


def starter(
    sample: Path | None, label: str, features: str, context: str | None, time: str | None
) -> str:
    """A short file with what a user has to decide; the features come from ``sample`` if given."""
    columns, target = EXAMPLE, LabelConfig()
    if sample is not None:
        columns, target = propose_schema(sample, features, label, context, time)
    defaults = Config()
    table = {
        "kafka": _plain(defaults.kafka.model_dump(include={"bootstrap_servers", "group"})),
        "state": _plain(defaults.state.model_dump(include={"barrier_interval_s"})),
        "label": _plain(target.model_dump(exclude_defaults=True, mode="json")),
        "features": [_plain(f.model_dump(exclude_defaults=True, mode="json")) for f in columns],
    }
    text = tomli_w.dumps(table).replace("[state]\n", "[state]\n" + DIRECTORY, 1)
    return HEADER + "\n" + text


def to_toml(config: Config) -> str:
    """The whole configuration, defaults included, secrets hidden."""
    table = _plain(config.model_dump())
    features = [_plain(f.model_dump(exclude_defaults=True, mode="json")) for f in config.features]
    return tomli_w.dumps({**table, "features": features})


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null and no tuples; a secret shows as stars."""
    plain: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            plain[key] = _plain(value)
        elif isinstance(value, SecretStr):
            plain[key] = str(value)
        elif isinstance(value, tuple | list):
            plain[key] = list(value)
        elif value is not None:
            plain[key] = value
    return plain
