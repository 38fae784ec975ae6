"""One typed, frozen configuration, checked when it is built.

Layers (later ones win): defaults, a TOML file, the environment (``STREAMMAML_KAFKA__GROUP``),
flags. This module gets them as plain mappings; only ``cli.py`` reads files and the environment.
An unknown key is an error that names the nearest right one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from streammaml.custom import parameters_of
from streammaml.errors import ConfigError
from streammaml.events import Label, Task, canonical
from streammaml.initialization import Spec

ENVIRONMENT_PREFIX = "STREAMMAML_"
LEAST_WATCHDOG_S = 30.0
NUMBER_LIMIT = 1e12
"""A number beyond it is bad input: DESIGN of the wire format."""


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,  # a password under a misspelt key must reach no traceback
    )


BUILT_IN = ("mlp", "linear")
CUSTOM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class FeatureType(StrEnum):
    NUMBER = "number"
    CATEGORY = "category"
    BOOLEAN = "boolean"


class Feature(_Part):
    """One feature of the schema. A number may have a ``range``: outside it is a dead letter."""

    name: str = Field(min_length=1)
    type: FeatureType = FeatureType.NUMBER
    categories: tuple[str, ...] = ()
    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.type is FeatureType.CATEGORY) != bool(self.categories):
            raise ValueError(
                f"feature {self.name!r}: a category lists its categories, other types list none"
            )
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"feature {self.name!r}: a category is listed twice")
        if self.range is not None:
            if self.type is not FeatureType.NUMBER:
                raise ValueError(f"feature {self.name!r}: only a number has a range")
            if not self.range[0] < self.range[1]:
                raise ValueError(f"feature {self.name!r}: the range must be (low, high)")
        return self


class LabelConfig(_Part):
    """What is predicted. Without ``classes`` a classification learns them as they appear."""

    task: Task = Task.CLASSIFICATION
    classes: tuple[Label, ...] = ()
    max_classes: int = Field(default=16, ge=2, le=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.classes and self.task is Task.REGRESSION:
            raise ValueError("a regression has no classes: remove label.classes")
        names = [canonical(label) for label in self.classes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"label.classes: {name!r} is listed twice (3, 3.0 and '3' are one)"
                )
        if len(self.classes) == 1:
            raise ValueError("label.classes needs at least two classes, or none to learn them")
        return self

    @property
    def slots(self) -> int:
        """K: outputs of the network."""
        if self.task is Task.REGRESSION:
            return 1
        return len(self.classes) or self.max_classes


class DetectorConfig(_Part):
    """A river drift detector by name; unset parameters take the defaults of the task.

    ``PageHinkley`` is compiled; any other runs in Python, about 10 us an event.
    """

    name: str = "PageHinkley"
    parameters: dict[str, float | int | str | bool] = Field(default_factory=dict)


class LearnerConfig(_Part):
    """The profile ``maml``: one gradient-adapted network for each context."""

    profile: Literal["maml"] = "maml"
    network: str = "mlp"
    """``mlp``, ``linear``, or where to import a factory of torch modules: ``package.module:name``.

    The factory is called with the numbers of inputs and of outputs.
    """
    hidden: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (64, 64)
    inner_steps: int = Field(default=5, ge=1, le=50)
    inner_rate: float = Field(default=0.1, gt=0, le=10)
    clip_norm: float = Field(default=5.0, gt=0)
    support_size: int = Field(default=32, ge=4, le=1024)
    warmup: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 32)
    after_drift: int = Field(default=4, ge=1)
    refresh_every: int = Field(default=32, ge=0)
    held_out_test: bool = False
    baseline_rate: float = Field(default=0.0, ge=0)
    max_contexts: int = Field(default=100_000, ge=1)
    seed: int = Field(default=0, ge=0)
    initialization: str = ""
    follow: bool = True
    """Take over what the outer loop publishes."""
    detector: DetectorConfig = DetectorConfig()

    @field_validator("network")
    @classmethod
    def _named(cls, value: str) -> str:
        if value not in BUILT_IN and not CUSTOM.fullmatch(value):
            raise ValueError(
                f"learner.network must be mlp, linear or package.module:factory, got {value!r}"
            )
        return value

    @field_validator("warmup")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or (value and value[0] < 1):
            raise ValueError(f"warmup must be ascending label counts from 1, got {value}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup and self.warmup[-1] > self.support_size:
            raise ValueError(
                f"the last warmup count, {self.warmup[-1]}, is beyond support_size, "
                f"{self.support_size}"
            )
        if self.after_drift > self.support_size:
            raise ValueError("after_drift must not be beyond support_size")
        return self


class KafkaConfig(_Part):
    bootstrap_servers: str = "localhost:9092"
    group: str = "streammaml"
    instance: str = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    start: Literal["earliest", "latest"] = "earliest"
    on_gap: Literal["stop", "accept"] = "stop"
    on_partition_change: Literal["stop", "accept"] = "stop"
    session_timeout_ms: int = Field(default=45_000, ge=1000)
    max_poll_interval_ms: int = Field(default=300_000, ge=1000)
    transaction_timeout_ms: int = Field(default=15_000, ge=1000)
    unavailable_limit_s: float = Field(default=300.0, gt=0)
    compression: Literal["none", "lz4", "snappy", "zstd", "gzip"] = "lz4"


class TopicsConfig(_Part):
    """Names of the topics, and how ``streammaml topics`` creates them."""

    events: str = "events"
    predictions: str = "predictions"
    adaptations: str = "adaptations"
    dead_letters: str = "dead-letters"
    episodes: str = "episodes"
    initializations: str = "initializations"
    state: str = "state"
    partitions: int = Field(default=6, ge=1)
    replication: int = Field(default=1, ge=1)


class WorkerConfig(_Part):
    format: Literal["json", "msgpack"] = "json"
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    commit_interval_ms: int = Field(default=500, ge=1)
    commit_events: int = Field(default=10_000, ge=1)
    max_poll_records: int = Field(default=2_000, ge=1)
    max_record_bytes: int = Field(default=1_000_000, ge=100)
    rejected_window: int = Field(default=1_000, ge=1)
    rejected_minimum: int = Field(default=100, ge=1)
    rejected_share: float = Field(default=0.5, gt=0, le=1)
    watchdog_s: float = Field(default=120.0, ge=0)
    """0: off. Less than a back-off and a commit can last would end a healthy worker."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rejected_minimum > self.rejected_window:
            raise ValueError(
                f"rejected_minimum, {self.rejected_minimum}, must not be above rejected_window, "
                f"{self.rejected_window}: the worker would never stop on bad records"
            )
        if 0 < self.watchdog_s < LEAST_WATCHDOG_S:
            raise ValueError(f"watchdog_s must be 0 (off) or at least {LEAST_WATCHDOG_S:g}")
        return self


class StateConfig(_Part):
    """Where the contexts' state lives, and when a partition's is written to ``topics.state``.

    A barrier is due when any of its three limits is reached; 0 means at every commit.
    """

    enabled: bool = True
    directory: str = ""
    barrier_interval_s: float = Field(default=30.0, ge=0)
    barrier_events: int = Field(default=50_000, ge=0)
    barrier_mb: float = Field(default=64.0, ge=0)
    ttl_s: float = Field(default=0.0, ge=0)
    clock_horizon_s: float = Field(default=3600.0, ge=0)
    min_free_mb: float = Field(default=256.0, ge=0)


class EpisodesConfig(_Part):
    """What the worker sends to the outer loop: windows of labelled events, for it to train on."""

    enabled: bool = True
    every: int = Field(default=16, ge=16)
    """At most one episode in so many labels of a context."""
    per_second: float = Field(default=100.0, gt=0)
    """At most so many of one worker; the others are dropped and counted."""


class OuterConfig(_Part):
    """The outer loop: how it trains, and what it keeps to train on."""

    rule: Literal["fomaml", "maml", "metasgd", "anil", "reptile"] = "fomaml"
    group: str = ""
    """Loops of one group fence each other [default: kafka.group]."""
    steps: int = Field(default=400, ge=1)
    """At most so many outer steps in a run."""
    seconds: float = Field(default=60.0, gt=0)
    """At most so long a run trains."""
    meta_batch: int = Field(default=24, ge=1, le=4096)
    learning_rate: float = Field(default=2e-3, gt=0)
    clip_norm: float = Field(default=5.0, gt=0)
    feature_nets: bool = True
    reservoir_context: int = Field(default=512, ge=8)
    """Episodes kept of one context."""
    reservoir_total: int = Field(default=20_000, ge=64)
    reservoir_mb: float = Field(default=512.0, gt=0)
    validation: int = Field(default=512, ge=64)
    """Held-out episodes that a candidate is judged by, the newest ones; the gate asks for 64."""
    margin: float = Field(default=0.02, ge=0)
    """By how much of its loss a candidate may be worse than the incumbent, at most."""
    keep_versions: int = Field(default=100, ge=2)
    threads: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    port: int = Field(default=9109, ge=0, le=65535)


class WebConfig(_Part):
    host: str = "127.0.0.1"
    port: int = Field(default=9108, ge=0, le=65535)
    top_contexts: int = Field(default=0, ge=0, le=10)
    """Export the names of so many contexts with the highest losses; 0: of none."""


class Config(_Part):
    features: tuple[Feature, ...] = ()
    label: LabelConfig = LabelConfig()
    learner: LearnerConfig = LearnerConfig()
    kafka: KafkaConfig = KafkaConfig()
    topics: TopicsConfig = TopicsConfig()
    worker: WorkerConfig = WorkerConfig()
    state: StateConfig = StateConfig()
    episodes: EpisodesConfig = EpisodesConfig()
    outer: OuterConfig = OuterConfig()
    web: WebConfig = WebConfig()

    @field_validator("features")
    @classmethod
    def _unique(cls, value: tuple[Feature, ...]) -> tuple[Feature, ...]:
        names = [f.name for f in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"feature {name!r} is listed twice")
        return value

    @classmethod
    def build(cls, *layers: Mapping[str, Any]) -> Config:
        """Merge the layers, later ones winning, and check the result."""
        merged: dict[str, Any] = {}
        for layer in layers:
            _merge(merged, layer)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(error, cls))) from error


def from_toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not TOML: {error}") from error


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read ``STREAMMAML_SECTION__KEY`` variables; a misspelt one is an error."""
    known = {name.upper(): name for name in keys(Config)}
    layer: dict[str, Any] = {}
    for variable, value in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or NO_SETTING.fullmatch(variable):
            continue
        wanted = variable.removeprefix(ENVIRONMENT_PREFIX).replace("__", ".")
        if wanted not in known:
            right = [ENVIRONMENT_PREFIX + k.replace(".", "__") for k in known]
            raise ConfigError(f"unknown environment variable {variable}{_nearest(variable, right)}")
        assign(layer, known[wanted], read_value(known[wanted], value))
    return layer


NO_SETTING = re.compile(
    ENVIRONMENT_PREFIX
    + r"(CONFIG|ARTIFACTS|LONG_TESTS|TEST_KAFKA|REQUIRE_[A-Z]+"
    + r"|(SERVICE|PORT)(?!__)(_\w+)?)"
)
"""Variables with the prefix that are not settings; Kubernetes sets the last ones for a Service."""


def parse_value(text: str) -> Any:
    """Read a value as TOML would; what is not TOML is a plain string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def read_value(name: str, text: str) -> Any:
    """Read the value of one setting: a secret as it stands, a text also where it looks like a
    number (a group called 7), anything else as TOML would.
    """
    kind = dict(_settings(Config)).get(name)
    if kind is SecretStr:
        return text
    value = parse_value(text)
    return text if kind is str and not isinstance(value, str) else value


def assign(layer: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        layer = layer.setdefault(parent, {})
        if not isinstance(layer, dict):
            raise ConfigError(f"{parent} in {dotted} was given a value of its own: it is a section")
    layer[last] = value


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Yield every setting as ``section.key``."""
    yield from (name for name, _ in _settings(model))


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its type."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            yield f"unknown setting {where}{_nearest(where, list(keys(model)))}"
        else:
            yield f"{where or 'configuration'}: {problem['msg'].removeprefix('Value error, ')}"


def _nearest(wrong: str, right: list[str]) -> str:
    match = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""


def schema_fingerprint(config: Config) -> str:
    """Hash what the network's inputs and outputs mean: features in order, task, classes."""
    features = [[f.name, f.type.value, list(f.categories)] for f in config.features]
    label = [config.label.task.value, list(config.label.classes), config.label.slots]
    return hashlib.sha256(json.dumps([features, label]).encode()).hexdigest()[:16]


def spec_of(config: Config) -> Spec:
    """The model that this configuration describes; inputs are scaled twice, so 2D of them."""
    width = sum(len(f.categories) or 1 for f in config.features)
    network, outputs = config.learner.network, config.label.slots
    custom = network not in BUILT_IN
    hidden = config.learner.hidden if network == "mlp" else ()
    return Spec(
        task=config.label.task,
        sizes=(2 * width, *hidden, outputs),
        steps=config.learner.inner_steps,
        schema=schema_fingerprint(config),
        network=network if custom else "",
        parameters=parameters_of(network, 2 * width, outputs) if custom else (),
    )
