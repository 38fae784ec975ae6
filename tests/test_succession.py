"""What others put into the topic of initializations, and what the outer loop makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streammaml.backends.memory import MemoryPublisher
from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import (
    initialization_messages,
    read_published,
    rollback_message,
)
from streammaml.errors import MisfitError
from streammaml.initialization import Initialization
from streammaml.starts import version_zero
from tests.outer_rig import Rig


@pytest.fixture(name="rig")
def make_rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def put(rig: Rig, messages: list[Message]) -> None:
    """As somebody else's producer would, who fences nobody."""
    topic = rig.config.topics.initializations
    rig.broker.append([message._replace(topic=topic) for message in messages])


def misfit(rig: Rig, version: int = 9) -> Initialization:
    learner = rig.config.learner.model_copy(update={"hidden": (8,)})
    other = version_zero(rig.config.model_copy(update={"learner": learner}))
    return replace(other, version=version)


def scaled(rig: Rig, factor: float, version: int = 9) -> Initialization:
    """Version 0, with longer weights."""
    drawn = version_zero(rig.config)
    tensors = {
        name: tensor if name == "rates" else tensor * np.float32(factor)
        for name, tensor in drawn.tensors.items()
    }
    return replace(drawn, version=version, tensors=tensors)


def foreign(initialization: Initialization) -> list[Message]:
    return initialization_messages(initialization, {"group": "another"}, by="them")


def results(rig: Rig) -> list[tuple[str, int, int]]:
    return [(run.result, run.version, run.parent) for run in rig.seen.runs]


def put_after_the_first_run(rig: Rig, messages: list[Message]) -> None:
    rig.seen.on_run = lambda run: put(rig, messages) if len(rig.seen.runs) == 1 else None


@pytest.mark.parametrize("value", [b"nonsense", None])
def test_a_key_without_a_number_after_it_leaves_room_for_the_next_version(
    rig: Rig, value: bytes | None
) -> None:
    rig.produce()
    put(rig, [Message("", b"v%d" % (2**63 - 1), value)])

    assert [rig.once().version for _ in range(2)] == [1, 2]


def test_records_under_higher_numbers_do_not_crowd_out_what_is_published(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_versions=2)
    rig.produce()
    high = [Message("", b"v%d" % (2**62 + n), b"nonsense") for n in range(3)]
    put(rig, high)

    rig.once()

    keys = {record.key for record in rig.broker.read(rig.config.topics.initializations)}
    gone = [r for r in rig.broker.read(rig.config.topics.initializations) if r.value is None]
    assert {b"v0", b"v1", b"current"} <= keys
    assert gone == []


def test_the_start_is_brought_along_once_and_goes_with_its_time(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_versions=2)
    rig.produce()

    rig.run(lambda run: [run.result for run in rig.seen.runs].count("published") > 3)

    topic = rig.broker.read(rig.config.topics.initializations)
    of_start = [record.value is None for record in topic if record.key == b"v0"]
    assert of_start == [False, True]


@pytest.mark.parametrize("by_operator", [False, True])
def test_another_model_that_comes_while_the_loop_runs_is_passed_over(
    rig: Rig, by_operator: bool
) -> None:
    rig.produce()

    def interfere() -> None:
        put(rig, foreign(misfit(rig)))
        if by_operator:
            (record,) = (
                r for r in rig.broker.read(rig.config.topics.initializations) if r.key == b"v9"
            )
            MemoryPublisher(rig.broker, rig.config).publish(
                [rollback_message(read_published(record))]
            )

    rig.seen.on_run = lambda run: interfere() if len(rig.seen.runs) == 1 else None
    rig.run(lambda run: len(rig.seen.runs) > 1 and run.result == "published")

    assert (results(rig)[0], results(rig)[-1]) == (("published", 1, 0), ("published", 10, 1))
    assert rig.current.version == 10


def test_another_model_that_is_current_at_the_start_ends_it(rig: Rig) -> None:
    put(rig, foreign(misfit(rig)))

    with pytest.raises(MisfitError):
        rig.once()


def test_the_initialization_of_another_group_is_taken_over(rig: Rig) -> None:
    rig.produce()
    put_after_the_first_run(rig, foreign(scaled(rig, 1.5)))

    rig.run(lambda run: run.version == 10)

    assert results(rig)[-1] == ("published", 10, 9)
    assert 9 in rig.seen.versions


@pytest.mark.parametrize("factor", [30.0, 1e15, 1e30])
def test_one_of_another_group_that_is_much_longer_is_passed_over(rig: Rig, factor: float) -> None:
    rig.produce()
    put_after_the_first_run(rig, foreign(scaled(rig, factor)))

    rig.run(lambda run: run.version == 10)

    assert results(rig)[-1] == ("published", 10, 1)
    assert 9 not in rig.seen.versions


def test_an_operator_may_roll_back_to_anything(rig: Rig) -> None:
    rig.produce()
    put_after_the_first_run(rig, initialization_messages(scaled(rig, 30.0), {}, by="rollback"))

    rig.run(lambda run: len(rig.seen.runs) > 2)

    assert 9 in rig.seen.versions


def test_a_run_whose_losses_are_never_finite_has_failed(rig: Rig) -> None:
    rig.produce()
    put(rig, foreign(scaled(rig, 1e30)))

    run = rig.once()

    assert (run.result, run.why) == ("failed", "no loss of the network was finite")
    assert (run.steps, run.nonfinite) == (10, 10)


def test_what_cannot_be_published_is_a_run_that_failed_and_the_loop_goes_on(rig: Rig) -> None:
    rig.produce()
    put(rig, foreign(scaled(rig, 1.5, version=2**63 - 1)))

    rig.run(lambda run: len(rig.seen.runs) == 2)

    assert {run.result for run in rig.seen.runs} == {"failed"}
    assert all("is no version" in run.why for run in rig.seen.runs)


def test_another_domain_is_begun_with_once_though_each_start_names_it(rig: Rig) -> None:
    rig.produce()
    begin = scaled(rig, 1.5)
    first = rig.once(begin=begin)

    whole = [rig.once(begin=begin) for _ in range(2)]

    plain = Rig(Path(rig.config.state.directory) / "plain")
    plain.produce()
    plain.once(begin=begin)
    expected = [plain.once() for _ in range(2)]
    assert first.version == 1
    assert [run.train_loss for run in whole] == [run.train_loss for run in expected]
    assert rig.current.theta().tobytes() == plain.current.theta().tobytes()
