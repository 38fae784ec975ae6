"""A file that is whole or not there: the outer loop's optimizer state between two starts.

Rule: it saves time and is never needed. What cannot be read or written is logged.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import structlog

FILE = "optimizer.safetensors"

log = structlog.get_logger(__name__)


class Checkpoint:
    """The file of one group of outer loops, in a folder that no group's name can lead out of."""

    def __init__(self, directory: str, group: str) -> None:
        """Without a directory nothing is kept."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", group)[:80]
        if readable != group:
            readable += f"-{sha256(group.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        self.path = Path(directory) / f"outer-{readable}" / FILE if directory else None

    def write(self, state: bytes) -> None:
        """Replace the file in one step, once the bytes are on the disk."""
        if self.path is None:
            return
        part = self.path.with_name(f"{FILE}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
            _sync(self.path.parent)
        except OSError as error:
            log.warning("checkpoint_not_written", path=str(self.path), error=str(error))
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def read(self) -> bytes | None:
        """What was written last; None if there is nothing."""
        if self.path is None:
            return None
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("checkpoint_not_read", path=str(self.path), error=str(error))
            return None


def _sync(folder: Path) -> None:
    """So that the new name outlives a power cut, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
