"""The file of the optimizer's state: whole, or not there, and never needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from streammaml.checkpoint import Checkpoint


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    first, again = (Checkpoint(str(tmp_path), "shop") for _ in range(2))

    first.write(b"one")
    first.write(b"two")

    assert again.read() == b"two"
    assert [path.name for path in (tmp_path / "outer-shop").iterdir()] == ["optimizer.safetensors"]


def test_there_is_none_before_the_first_and_none_without_a_folder(tmp_path: Path) -> None:
    nowhere = Checkpoint("", "shop")
    nowhere.write(b"state")

    assert Checkpoint(str(tmp_path), "shop").read() is None
    assert nowhere.read() is None


@pytest.mark.parametrize("group", ["../../etc", "a/b", "", "ä" * 300, "shop.1"])
def test_no_name_of_a_group_leads_out_of_the_folder(tmp_path: Path, group: str) -> None:
    checkpoint = Checkpoint(str(tmp_path), group)
    checkpoint.write(b"state")

    assert checkpoint.path is not None
    assert checkpoint.path.resolve().is_relative_to(tmp_path)
    assert checkpoint.path.parent.parent == tmp_path
    assert Checkpoint(str(tmp_path), group).read() == b"state"


def test_groups_with_alike_names_have_files_of_their_own(tmp_path: Path) -> None:
    Checkpoint(str(tmp_path), "a/b").write(b"state")

    assert Checkpoint(str(tmp_path), "a.b").read() is None
    assert Checkpoint(str(tmp_path), "a_b").read() is None


def test_what_cannot_be_written_or_read_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "outer-shop").write_text("a file, not a folder")
    checkpoint = Checkpoint(str(tmp_path), "shop")

    with capture_logs() as logs:
        checkpoint.write(b"state")
        found = checkpoint.read()

    assert found is None
    assert [line["event"] for line in logs] == ["checkpoint_not_written", "checkpoint_not_read"]
