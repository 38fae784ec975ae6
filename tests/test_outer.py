"""The outer loop's job on a memory broker: what it publishes, and what takes its place."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from streammaml.backends.memory import MemoryPublisher
from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import initialization_messages
from streammaml.errors import BackendError, FencedError, MisfitError, UnavailableError
from streammaml.initialization import Initialization
from streammaml.outer_run import Run
from streammaml.starts import version_zero
from streammaml.succession import digest_of
from tests.outer_rig import Rig


@pytest.fixture(name="rig")
def make_rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_run_publishes_the_next_version_as_the_current_one(rig: Rig) -> None:
    sent = rig.produce()

    run = rig.once()

    assert (run.result, run.version, run.parent, run.steps) == ("published", 1, 0, 10)
    catalogue = rig.catalogue()
    assert catalogue.current is not None
    assert catalogue.current.by == "outer"
    assert catalogue.entries[1].digest == catalogue.current.digest
    assert catalogue.current.report["group"] == rig.config.kafka.group
    assert run.validation_loss == catalogue.current.report["nets"]["network"]["loss_candidate"]
    assert rig.seen.counts == [sent, 0, 0]
    assert rig.seen.versions == [0, 1]


def test_the_next_start_goes_on_from_what_is_current(rig: Rig) -> None:
    rig.produce()

    runs = [rig.once() for _ in range(3)]

    assert [(run.version, run.parent) for run in runs] == [(1, 0), (2, 1), (3, 2)]


def test_all_nets_are_one_version_whose_optimizers_are_resumed_to_the_bit(tmp_path: Path) -> None:
    restarted, whole = (Rig(tmp_path / name, feature_nets=True) for name in "ab")
    for rig in (restarted, whole):
        rig.produce()

    for _ in range(2):
        restarted.once()
    whole.run(lambda run: run.version == 2)

    assert digest_of(restarted.current) == digest_of(whole.current)
    assert {"0.weight", "f/head", "g/head"} < set(whole.current.tensors)


def test_without_episodes_a_run_is_skipped_and_nothing_published(rig: Rig) -> None:
    run = rig.once()

    assert run.result == "skipped"
    assert "episode" in run.why
    assert rig.catalogue().entries == {}


def test_what_the_gate_refuses_is_not_published(tmp_path: Path) -> None:
    rig = Rig(tmp_path, margin=0.0, learning_rate=10.0)
    rig.produce()

    run = rig.once()

    assert (run.result, run.version) == ("rejected", 0)
    assert run.why
    assert run.report["nets"]["network"]["passed"] is False
    assert rig.catalogue().current is None


def test_bad_records_are_counted_and_the_others_used(rig: Rig) -> None:
    bad = [Message(rig.config.topics.episodes, b"shop", value) for value in (b"", b"\xc1", None)]
    rig.broker.append(bad)
    sent = rig.produce()

    rig.once()

    assert rig.seen.counts == [sent, 3, 0]


def test_a_second_reading_finds_duplicates_only(rig: Rig) -> None:
    sent = rig.produce()
    failures = iter([True])

    def fail_once(name: str) -> None:
        if name == "publish" and next(failures, False):
            raise BackendError("the broker went away")

    rig.broker.step = fail_once
    run = rig.once()

    assert run.result == "published"
    assert [run.result for run in rig.seen.runs] == ["failed", "published"]
    assert rig.seen.counts == [sent, 0, sent]


def test_only_the_newest_versions_are_kept(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_versions=2, steps=2)
    rig.produce()

    for _ in range(4):
        rig.once()

    assert sorted(rig.catalogue().entries) == [3, 4]


def test_a_number_is_never_given_twice(rig: Rig) -> None:
    rig.produce()
    rig.once()
    rig.once()
    rig.roll_back(1)

    run = rig.once()

    assert (run.version, run.parent) == (3, 1)


def test_another_model_in_the_topic_is_refused_with_the_cure(rig: Rig) -> None:
    learner = rig.config.learner.model_copy(update={"hidden": (8,)})
    other = version_zero(rig.config.model_copy(update={"learner": learner}))
    publish(rig, other)

    with pytest.raises(MisfitError, match=r"topics\.initializations"):
        rig.once()

    assert rig.current.spec == other.spec


def test_a_current_one_that_cannot_be_read_is_passed_over(rig: Rig) -> None:
    rig.produce()
    rig.once()
    rig.broker.append([Message(rig.config.topics.initializations, b"current", b"nonsense")])

    run = rig.once()

    assert (run.result, run.version, run.parent) == ("published", 2, 1)


@pytest.mark.parametrize("moment", ["publish", "ran"])
def test_a_second_loop_ends_the_first_with_the_cure(rig: Rig, moment: str) -> None:
    rig.produce()
    others: list[Run] = []

    def second_loop() -> None:
        if not others:
            rig.produce(events=440)  # to judge by what nobody can have trained on
            others.append(Run(result="skipped", why="", version=0, parent=0))
            others[0] = rig.other().once()

    if moment == "publish":
        rig.outside.step = lambda name: second_loop() if name == moment else None
    else:
        rig.seen.on_run = lambda run: second_loop()
    with pytest.raises(FencedError, match=r"outer\.group"):
        rig.run(lambda run: run.version > 5)

    assert [run.result for run in others] == ["published"]
    current = rig.catalogue().current
    assert current is not None
    assert current.version == others[0].version


@pytest.mark.parametrize("moment", ["trains", "publishes"])
def test_a_rollback_during_a_run_is_taken_over(rig: Rig, moment: str) -> None:
    rig.produce()
    rig.once()
    rig.once()
    turns = iter(range(10**9))
    rolled: list[int] = []

    def roll_back() -> None:
        if not rolled:
            rolled.append(1)
            rig.roll_back(1)

    if moment == "publishes":
        rig.outside.step = lambda name: roll_back() if name == "publish" else None
        rig.run(lambda run: run.version == 3)
    else:
        rig.run(
            lambda run: run.version == 3,
            beat=lambda: roll_back() if next(turns) > 6 else None,
        )

    assert [(run.result, run.version) for run in rig.seen.runs[2:]] == [
        ("skipped", 1 if moment == "trains" else 2),
        ("published", 3),
    ]
    assert rig.current.parent == 1


def test_a_rollback_between_two_runs_is_taken_over(rig: Rig) -> None:
    rig.produce()
    rig.once()
    rig.once()
    rig.seen.on_run = lambda run: rig.roll_back(1) if run.version == 3 else None

    rig.run(lambda run: run.version == 4)

    assert rig.seen.runs[-1].parent == 1
    assert rig.seen.versions[-3:] == [3, 1, 4]


def test_a_crash_between_publication_and_checkpoint_costs_only_optimizer_state(
    rig: Rig, tmp_path: Path
) -> None:
    rig.produce()
    rig.once()
    (state,) = tmp_path.glob("outer-*/*")
    before = state.read_bytes()
    rig.once()
    state.write_bytes(before)

    run = rig.once()

    assert (run.result, run.version, run.parent) == ("published", 3, 2)


@pytest.mark.parametrize("damage", [b"", b"nonsense"])
def test_a_damaged_checkpoint_is_not_used(rig: Rig, tmp_path: Path, damage: bytes) -> None:
    rig.produce()
    rig.once()
    (state,) = tmp_path.glob("outer-*/*")
    state.write_bytes(damage + state.read_bytes()[: -len(damage) - 7])

    doubted = rig.once()
    rig.produce(events=440)

    assert (doubted.result, doubted.version) == ("skipped", 1)
    assert "newer ones than were trained on" in doubted.why
    assert rig.once().version == 2


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    rig = Rig(blocked)
    rig.produce()

    assert rig.once().result == "published"


def test_another_domain_is_a_start_that_has_to_pass_the_gate(rig: Rig) -> None:
    rig.produce()
    drawn = version_zero(rig.config)
    tensors = {name: tensor + np.float32(0.01) for name, tensor in drawn.tensors.items()}
    begin = Initialization(spec=drawn.spec, tensors=tensors, version=12)

    run = rig.once(begin=begin)

    assert (run.result, run.version, run.parent) == ("published", 1, 0)
    assert digest_of(rig.current) != digest_of(drawn)


def test_a_stop_in_the_middle_of_a_run_ends_it_soon_and_publishes_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, steps=1_000_000, seconds=600.0)
    rig.produce()
    stop = threading.Event()
    turns = iter(range(10**9))

    rig.job(beat=lambda: stop.set() if next(turns) == 30 else None).run(stop, 300.0)

    (run,) = rig.seen.runs
    assert (run.result, run.why) == ("skipped", "stopped")
    assert 0 < run.steps < 40
    assert rig.catalogue().entries == {}


def test_a_run_trains_no_longer_than_it_may(tmp_path: Path) -> None:
    rig = Rig(tmp_path, steps=1_000_000, seconds=5.0)
    rig.produce()
    ticks = iter(range(10**9))

    run = rig.once(clock=lambda: 0.1 * next(ticks))

    assert run.result == "published"
    assert run.steps < 60


def test_of_a_period_a_tenth_is_for_training(tmp_path: Path) -> None:
    rig = Rig(tmp_path, steps=1_000_000, seconds=600.0)
    rig.produce()
    stop, ticks = threading.Event(), iter(range(10**9))
    rig.seen.on_run = lambda run: stop.set()

    rig.job(clock=lambda: 0.1 * next(ticks)).run(stop, 50.0)

    assert 20 < rig.seen.runs[0].steps < 60


def test_a_broker_that_stays_away_ends_it_with_69(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    ticks = iter(range(10**9))

    def away(name: str) -> None:
        raise BackendError("nobody answers")

    rig.outside.step = away
    stop = threading.Event()
    with pytest.raises(UnavailableError, match=r"gave up after 300 s .*nobody answers") as caught:
        rig.job(clock=lambda: 200.0 * next(ticks)).run(stop, 1.0)

    assert caught.value.exit_code == 69


def test_a_broker_that_comes_back_is_used_again(rig: Rig) -> None:
    rig.produce()
    failed: list[str] = []

    def fail_once(name: str) -> None:
        if name == "poll_tail" and rig.seen.runs and not failed:
            failed.append(name)
            raise BackendError("the broker went away")

    rig.broker.step = fail_once
    rig.run(lambda run: run.version == 2)

    assert failed
    assert [run.version for run in rig.seen.runs] == [1, 2]


def publish(rig: Rig, initialization: Initialization) -> None:
    messages = initialization_messages(initialization, {})
    MemoryPublisher(rig.broker, rig.config).publish(messages)
