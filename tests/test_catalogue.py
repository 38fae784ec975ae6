"""What the topic of initializations holds, out of its records, and how it is listed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from streammaml.backends.memory import MemoryRecord
from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import initialization_messages, tombstone
from streammaml.catalogue import Catalogue, Refused, loss_of
from streammaml.config import Config
from streammaml.initialization import Initialization
from streammaml.inspection.pages import show
from streammaml.inspection.published import (
    NoVersionError,
    details,
    details_page,
    initialization_of,
    listing,
    listing_page,
    target_of,
)
from streammaml.starts import version_zero

CONFIG = Config.build(
    {
        "features": [{"name": "a"}, {"name": "b"}],
        "label": {"classes": ["no", "yes"]},
        "learner": {"hidden": [4]},
    }
)
REPORT = {"nets": {"network": {"loss_incumbent": 0.75, "loss_candidate": 0.5, "passed": True}}}


def version(number: int, parent: int) -> Initialization:
    return replace(version_zero(CONFIG), version=number, parent=parent)


def records(*groups: list[Message]) -> list[MemoryRecord]:
    """At one second from the other."""
    whole = [message for group in groups for message in group]
    return [
        MemoryRecord("initializations", 0, i, 1000 * i, m.key, m.value, list(m.headers))
        for i, m in enumerate(whole)
    ]


def history() -> list[MemoryRecord]:
    """Versions 1 to 3, the first one gone, and the second current again."""
    three = [initialization_messages(version(n, n - 1), REPORT) for n in (1, 2, 3)]
    back = initialization_messages(version(2, 1), REPORT, by="rollback")[1:]
    return records(*three, back, [tombstone(1)])


def test_the_latest_record_of_each_key_counts() -> None:
    catalogue = Catalogue(keep=3)

    assert catalogue.read(history()) == []

    assert sorted(catalogue.entries) == [2, 3]
    assert catalogue.highest == 3
    assert catalogue.current is not None
    assert (catalogue.current.version, catalogue.current.by) == (2, "rollback")
    assert (catalogue.current_offset, catalogue.current_s) == (6, 6.0)
    assert catalogue.newest is not None
    assert catalogue.kept is catalogue.newest
    assert catalogue.kept.version == 3


def test_it_does_not_matter_in_how_many_pieces_the_records_come() -> None:
    whole, pieces = Catalogue(), Catalogue()

    whole.read(history())
    for record in history():
        pieces.read([record])

    assert pieces.entries == whole.entries
    assert pieces.current_offset == whole.current_offset


def test_what_cannot_be_used_changes_nothing_but_the_numbers_that_are_taken() -> None:
    catalogue = Catalogue()
    catalogue.read(history())
    bad = [
        Message("", b"current", b"nonsense"),
        Message("", b"v9", b"nonsense"),
        Message("", b"other", b""),
    ]

    refused = catalogue.read(records(bad))

    assert [r.key for r in refused] == ["current", "9", "b'other'"]
    assert all(isinstance(r, Refused) and r.error for r in refused)
    assert catalogue.current is not None
    assert catalogue.current.version == 2
    assert catalogue.highest == 9
    assert catalogue.entries[9].error
    assert catalogue.newest is not None


def test_a_deleted_number_is_still_taken() -> None:
    catalogue = Catalogue()

    catalogue.read(records(initialization_messages(version(5, 4), {}), [tombstone(5)]))

    assert (catalogue.entries, catalogue.highest, catalogue.newest) == ({}, 5, None)


@pytest.mark.parametrize("value", [b"nonsense", None])
def test_a_number_that_leaves_no_room_is_not_counted(value: bytes | None) -> None:
    catalogue = Catalogue()
    catalogue.read(history())

    catalogue.read(records([Message("", b"v%d" % (2**63 - 1), value)]))

    assert catalogue.highest == 3


def test_the_listing_has_the_newest_first_with_losses_and_marks() -> None:
    catalogue = Catalogue()
    catalogue.read(history())

    found = json.loads(json.dumps(listing(catalogue, 10.0)))

    assert found["current"] | {"digest": "", "fingerprint": ""} == {
        "version": 2,
        "parent": 1,
        "by": "rollback",
        "age_s": 4.0,
        "fingerprint": "",
        "digest": "",
        "matches": True,
    }
    assert [(v["version"], v["current"], v["parent"]) for v in found["versions"]] == [
        (3, False, 2),
        (2, True, 1),
    ]
    assert {v["loss_candidate"] for v in found["versions"]} == {0.5}
    assert [v["age_s"] for v in found["versions"]] == [6.0, 8.0]


def test_a_current_one_that_is_no_version_is_said_to_be_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    catalogue = Catalogue()
    catalogue.read(records(initialization_messages(version(1, 0), REPORT)))
    catalogue.read(records(initialization_messages(version(7, 1), {}, by="\x1b[2J")[1:]))

    show(listing_page(listing(catalogue, 10.0), "initializations"))
    show(details_page(details(catalogue, None, 10.0)))

    out = capsys.readouterr().out
    assert "0.7500  0.5000" in out
    assert "not equal to v7 of the topic" in out
    assert "\x1b" not in out


def test_an_empty_topic_has_an_empty_listing(capsys: pytest.CaptureFixture[str]) -> None:
    show(listing_page(listing(Catalogue(), 0.0), "initializations"))

    assert "no version is in 'initializations'" in capsys.readouterr().out


def test_the_way_back_is_to_the_parent_or_to_what_is_there() -> None:
    catalogue = Catalogue()
    catalogue.read(history())

    assert target_of(catalogue, 3) == 3
    with pytest.raises(NoVersionError, match="v1 is not in the topic; there are: v2, v3"):
        target_of(catalogue, None)
    with pytest.raises(NoVersionError, match="there are: v2, v3"):
        details(catalogue, 12, 0.0)
    with pytest.raises(NoVersionError, match="no version is current"):
        target_of(Catalogue(), None)
    assert initialization_of(catalogue, None).version == 2


def test_a_current_one_without_a_parent_has_no_way_back() -> None:
    catalogue = Catalogue()
    catalogue.read(records(initialization_messages(version(0, -1), REPORT)))

    with pytest.raises(NoVersionError, match="v0 has no parent: name a version"):
        target_of(catalogue, None)


@pytest.mark.parametrize("report", [{}, {"nets": 1}, {"nets": {"network": []}}])
def test_a_report_that_anyone_wrote_has_no_loss_where_it_has_none(
    report: dict[str, object],
) -> None:
    assert loss_of(report, "loss_candidate") is None
    assert loss_of(REPORT, "loss_candidate") == 0.5
