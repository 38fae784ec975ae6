"""The outer loop's optimizer state on disk, in one file that is whole or not there.

Rule: it belongs to one initialization, by the digest of its bytes, and to no other. It saves time,
it is never needed: what cannot be read or written is logged, and training begins anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import structlog
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from streammaml.events import Float32s

FILE = "optimizer.safetensors"
OWNER = "initialization"

log = structlog.get_logger(__name__)


class Checkpoint:
    """The file of one group of outer loops, in a folder that no group's name can lead out of."""

    def __init__(self, directory: str, group: str) -> None:
        """Without a directory nothing is kept."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", group)[:80]
        if readable != group:
            readable += f"-{sha256(group.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        self.path = Path(directory) / f"outer-{readable}" / FILE if directory else None

    def write(self, tensors: Mapping[str, Float32s], digest: str) -> None:
        """Replace the file in one step, once the bytes are on the disk."""
        if self.path is None:
            return
        part = self.path.with_name(f"{FILE}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(save(dict(tensors), metadata={OWNER: digest}))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
            _sync(self.path.parent)
        except OSError as error:
            log.warning("checkpoint_not_written", path=str(self.path), error=str(error))
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def read(self, digest: str) -> dict[str, Float32s] | None:
        """The state that belongs to the initialization of this digest; None if there is none."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), framework="np") as file:
                if (file.metadata() or {}).get(OWNER) != digest:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            log.warning("checkpoint_damaged", path=str(self.path), error=str(error))
            return None


def _sync(folder: Path) -> None:
    """So that the new name outlives a power cut, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
