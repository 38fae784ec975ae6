"""A command run here, and how it ended."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
import structlog

from streammaml.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard error without the frames and line breaks that a terminal's width makes."""
        return re.sub(r"[│╭╮╰╯─\s]+", " ", self.err)


class Call(Protocol):
    def __call__(self, *arguments: str) -> Ended: ...


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Run a command here, in an empty folder and without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("STREAMMAML_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STREAMMAML_WEB__PORT", "0")
    handlers, level = logging.root.handlers[:], logging.root.level

    def call(*arguments: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Ended(code, *capsys.readouterr())

    yield call
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
