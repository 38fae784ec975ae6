"""Stored bytes of every format are read, and those of today's are written, to the bit."""

from __future__ import annotations

import pytest

from streammaml.initialization import decode
from streammaml.learner import Learner
from streammaml.learner.snapshot import INITIALIZATION
from streammaml.learner.state import UNKNOWN
from streammaml.sealed import FORMAT, unseal
from tests.learner.build import Arrays, row_of
from tests.learner.golden import (
    CONFIGS,
    FOLDER,
    NEWER,
    SUPPORT,
    case_of,
    folder_of,
    names_of,
    read,
    values_of,
)
from tests.learner.shelf import DictShelf

WRITTEN = [
    (release, name)
    for release in range(1, FORMAT + 1)
    for name in CONFIGS
    if NEWER.get(name, 1) <= release
]
"""Format and case of all files."""


def test_every_case_has_files_in_todays_format() -> None:
    assert {p.name for p in (FOLDER / f"v{FORMAT}").iterdir()} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_todays_release_writes_the_same_bytes(name: str) -> None:
    case = case_of(name)
    stored = read(folder_of(FORMAT, name))

    values = values_of(case)

    assert values.keys() == stored.keys()
    kinds = {key[:2] for key in stored}
    assert kinds == {b"c/", b"w/", b"@s", b"@i"} | ({b"d/"} if name.startswith("river") else set())
    for key, value in values.items():
        if not key.startswith(INITIALIZATION):  # how a library lays it out is its own affair
            assert value == stored[key], key


@pytest.mark.parametrize(("release", "name"), WRITTEN)
def test_what_a_release_wrote_is_read_as_what_it_was(name: str, release: int) -> None:
    case = case_of(name)
    shelf = DictShelf()
    shelf.durable = read(folder_of(release, name))
    learner = Learner(case.config, case.initialization, shelf)

    learner.restore(shelf.durable)
    names = names_of(release)
    learner._memory.admit(names, 0)

    for context in names:
        ours, theirs = row_of(learner, context), row_of(case.learner, context)
        for part, array in theirs.items():
            if part in ("used", "changed"):
                assert ours[part] == 12  # the shelf has it: nothing changed since
            elif not part.startswith("support"):
                assert ours[part].tobytes() == array.tobytes(), (context, part)
        assert_same_examples(ours, theirs, release)
    for part, array in case.learner._stream._asdict().items():
        if part != "marks":
            assert getattr(learner._stream, part).tobytes() == array.tobytes(), part
    assert learner._stream.marks.tolist() == [12, 0, 0, 0]
    assert learner.labels.classes == case.learner.labels.classes
    assert learner.version == 7
    assert learner.same_initialization(case.initialization)
    assert learner.snapshot()[:-1] == []
    if name.startswith("river"):
        fed = [wrong if name == "river-binary" else signal for signal, wrong in case.fed]
        assert learner._watch.inputs(1) == fed


def assert_same_examples(ours: Arrays, theirs: Arrays, release: int) -> None:
    """Of format 1 the support set, without offsets."""
    ring, labels = len(theirs["support_y"]), int(theirs["labels"])
    filled = range(max(0, labels - ring), labels)
    read = filled[-SUPPORT:] if release == 1 else filled
    places = [e % ring for e in read]
    for part in ("support_x", "support_y"):
        assert ours[part][places].tobytes() == theirs[part][places].tobytes()
    if theirs["support_offsets"].size:
        expected = theirs["support_offsets"][: len(filled)].tolist()
        expected = [UNKNOWN] * len(filled) if release == 1 else expected
        assert ours["support_offsets"][: len(filled)].tolist() == expected


@pytest.mark.parametrize(("release", "name"), WRITTEN)
def test_an_initialization_of_every_release_is_read_with_its_notes(name: str, release: int) -> None:
    case = case_of(name)
    key = b"@init/7"
    value = read(folder_of(release, name))[key]

    stored = decode(bytes(unseal(key, case.learner._form.fingerprint, value)))

    assert (stored.spec, stored.parent, stored.notes) == (
        case.initialization.spec,
        3,
        {"made": "by hand"},
    )
