"""Configuration: layers, checks with the value in the message, and names that were nearly right."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from streammaml.config import (
    Config,
    Feature,
    FeatureType,
    LabelConfig,
    assign,
    from_environment,
    from_toml,
    keys,
    parse_value,
)
from streammaml.errors import ConfigError
from streammaml.events import Task


def test_the_defaults_are_valid_and_those_of_the_specification() -> None:
    learner = Config.build().learner

    assert learner.hidden == (64, 64)
    assert (learner.inner_steps, learner.inner_rate, learner.clip_norm) == (5, 0.1, 5.0)
    assert learner.warmup == (2, 4, 8, 12, 16, 24, 32)
    assert (learner.support_size, learner.after_drift, learner.refresh_every) == (32, 4, 32)
    assert not learner.held_out_test


def test_a_configuration_cannot_be_changed() -> None:
    config = Config.build()

    with pytest.raises(ValidationError):
        config.learner.inner_steps = 7


def test_later_layers_win_part_by_part() -> None:
    file = {"kafka": {"group": "file", "instance": "i"}, "features": [{"name": "a"}]}
    environment = {"kafka": {"group": "environment"}}
    flags = {"features": [{"name": "b"}]}

    config = Config.build(file, environment, flags)

    assert (config.kafka.group, config.kafka.instance) == ("environment", "i")
    assert [f.name for f in config.features] == ["b"]
    assert file["kafka"] == {"group": "file", "instance": "i"}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"lerner": {}}, "unknown setting lerner; did you mean learner"),
        ({"learner": {"inner_step": 1}}, "did you mean learner.inner_steps"),
        ({"learner": {"inner_steps": 0}}, "learner.inner_steps: .*greater than or equal to 1"),
        ({"learner": {"warmup": [4, 2]}}, r"ascending label counts from 1, got \(4, 2\)"),
        ({"learner": {"warmup": [2, 2]}}, "ascending"),
        ({"learner": {"warmup": [0, 2]}}, "ascending"),
        ({"learner": {"warmup": [33]}}, "last warmup count, 33, is beyond support_size, 32"),
        ({"learner": {"after_drift": 33}}, "after_drift must not be beyond support_size"),
        ({"learner": {"hidden": [0]}}, "learner.hidden.0"),
        ({"learner": {"network": "cnn"}}, "learner.network"),
        ({"features": [{"name": "a"}, {"name": "a"}]}, "feature 'a' is listed twice"),
        ({"features": [{"name": ""}]}, "features.0.name"),
        ({"features": [{"name": "a", "type": "category"}]}, "lists its categories"),
        ({"features": [{"name": "a", "categories": ["x"]}]}, "other types list none"),
        (
            {"features": [{"name": "a", "type": "category", "categories": ["x", "x"]}]},
            "a category is listed twice",
        ),
        ({"features": [{"name": "a", "range": [3, 3]}]}, r"the range must be \(low, high\)"),
        ({"features": [{"name": "a", "type": "boolean", "range": [0, 1]}]}, "only a number has"),
        ({"label": {"task": "regression", "classes": ["a", "b"]}}, "a regression has no classes"),
        ({"label": {"classes": ["a"]}}, "at least two classes"),
        ({"web": {"port": 70_000}}, "web.port"),
    ],
)
def test_a_mistake_is_named_with_its_place(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.build(layer)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Config.build({"web": {"port": -1}, "learner": {"inner_steps": 0}, "kafka": {"gruop": "x"}})

    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("label", "slots"),
    [
        (LabelConfig(), 16),
        (LabelConfig(max_classes=3), 3),
        (LabelConfig(classes=("a", "b", "c")), 3),
        (LabelConfig(task=Task.REGRESSION), 1),
    ],
)
def test_the_outputs_of_the_network_follow_from_the_label(label: LabelConfig, slots: int) -> None:
    assert label.slots == slots


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("[2, 4]", [2, 4]),
        ('"3"', "3"),
        ("host:9092", "host:9092"),
        ("", ""),
        ("{a = 1}", {"a": 1}),
    ],
)
def test_a_value_is_read_as_toml_or_else_as_text(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_a_value_with_a_line_of_its_own_is_text_and_sets_nothing_else() -> None:
    assert parse_value("1\nother = 2") in (1, "1\nother = 2")


def test_the_environment_sets_any_setting() -> None:
    environ = {
        "STREAMMAML_KAFKA__GROUP": "g",
        "STREAMMAML_LEARNER__WARMUP": "[2, 4]",
        "STREAMMAML_CONFIG": "file.toml",
        "STREAMMAML_TEST_KAFKA": "localhost:1",
        "STREAMMAML_REQUIRE_CHROMIUM": "1",
        "STREAMMAML_ARTIFACTS": "artifacts",
        "STREAMMAML_LONG_TESTS": "1",
        "HOME": "/root",
    }

    layer = from_environment(environ)

    assert layer == {"kafka": {"group": "g"}, "learner": {"warmup": [2, 4]}}
    assert Config.build(layer).learner.warmup == (2, 4)


def test_a_misspelt_variable_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean STREAMMAML_KAFKA__GROUP"):
        from_environment({"STREAMMAML_KAFKA__GRUOP": "g"})


def test_a_file_that_is_not_toml_is_named() -> None:
    with pytest.raises(ConfigError, match=r"worker\.toml is not TOML"):
        from_toml("a = ", "worker.toml")

    assert from_toml("[web]\nport = 1", "worker.toml") == {"web": {"port": 1}}


def test_a_dotted_name_reaches_into_its_part() -> None:
    layer: dict[str, Any] = {"web": {"port": 1}}

    assign(layer, "web.host", "h")
    assign(layer, "kafka.group", "g")

    assert layer == {"web": {"port": 1, "host": "h"}, "kafka": {"group": "g"}}


def test_every_setting_is_listed_by_its_dotted_name() -> None:
    names = list(keys(Config))

    assert {"features", "learner.detector.name", "kafka.group", "worker.format"} <= set(names)
    assert len(names) == len(set(names))


def test_a_feature_is_a_number_unless_it_says_otherwise() -> None:
    assert Feature(name="a").type is FeatureType.NUMBER


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_setting() -> None:
    injected = {
        "STREAMMAML_PORT": "tcp://10.0.0.1:9108",
        "STREAMMAML_PORT_9108_TCP_ADDR": "10.0.0.1",
        "STREAMMAML_SERVICE_HOST": "10.0.0.1",
        "STREAMMAML_SERVICE_PORT": "9108",
    }

    assert from_environment(injected) == {}
