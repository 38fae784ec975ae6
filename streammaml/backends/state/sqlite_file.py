"""The SQLite file below a store: how it is connected, what proves it whole, where damaged ones go.

Raises BackendError's kinds only: DamagedError for bytes that are not what was written, StoreError
for a disk that refuses.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path

from streammaml.errors import BackendError, DamagedError, IncompatibleError, StoreError
from streammaml.sealed import FINGERPRINT_BYTES, is_whole, seal, unseal

FORMAT = 1
APPLICATION_ID = 0x534D_0000 + FORMAT
PAGE_BYTES = 8192
CACHE_KIB = 8_192
BUSY_S = 5.0
DAMAGED_KEPT = 3
SCHEMA = (
    "CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE meta (sealed BLOB NOT NULL)",
)
OWN = b"@"
"""Keys with this prefix are the worker's own, and few."""

_HEADER_BYTES = 100
_META_KEY = b"meta"
_NOBODY = bytes(FINGERPRINT_BYTES)
_DISK = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
    *(sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_INTERRUPT),
}
_CURES = {
    sqlite3.SQLITE_FULL: "free some space on that disk",
    sqlite3.SQLITE_BUSY: "another process uses it: give each worker its own --instance",
    sqlite3.SQLITE_LOCKED: "another process uses it: give each worker its own --instance",
}
_CURE = "check the disk, its permissions and its quota, or set state.directory to another one"


SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite raises; the second where its message would quote text that is damaged."""


class OtherTopicError(Exception):
    """The file mirrors another topic: not damaged, but of no use."""


@dataclass(slots=True)
class Meta:
    """What the file says of itself."""

    topic_id: str
    position: int = 0
    transaction: int = 0
    digest: int = 0
    """The sum of the checksums of all records."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records by the kind of their keys."""
    own: list[str] = field(default_factory=list)
    """The keys with the prefix ``@``, so that one that is not there needs no verification."""

    def sealed(self) -> bytes:
        return seal(_META_KEY, _NOBODY, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path, connection: sqlite3.Connection) -> Meta:
        """DamagedError if it is not there or not whole."""
        rows = connection.execute("SELECT sealed FROM meta").fetchall()
        if len(rows) != 1 or not isinstance(rows[0][0], bytes):
            raise DamagedError(f"{path}: what it says of itself is missing")
        try:
            body = unseal(_META_KEY, _NOBODY, rows[0][0])
        except DamagedError as error:
            raise DamagedError(f"{path}: what it says of itself is damaged") from error
        except IncompatibleError as error:
            raise DamagedError(f"{path}: it was made by another release") from error
        return cls(**json.loads(bytes(body)))


def kind_of(key: bytes) -> str:
    """``c/``, ``w/`` and so on; ``@`` for the worker's own."""
    return (OWN if key.startswith(OWN) else key[:2]).decode("latin-1")


def checksum_of(sealed: bytes) -> int:
    """Of a sealed value, or of its last four bytes."""
    return int.from_bytes(sealed[-4:], "little")


def sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def explained(path: Path, error: Exception) -> BackendError:
    """What an exception of SQLite or of the system means for the store at ``path``."""
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = _CURES[sqlite3.SQLITE_FULL] if full else _CURE
        return StoreError(f"{path}: {error.strerror or error}: {cure}")
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    # What ends too early, or fails a checksum of the file system, is damaged.
    lost = (sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
    if code & 0xFF in _DISK and code not in lost:
        return StoreError(f"{path}: {error}: {_CURES.get(code & 0xFF, _CURE)}")
    return DamagedError(f"{path}: {error}")


def connect(path: Path) -> sqlite3.Connection:
    """Open or make the file, in autocommit mode; checkpoints are left to the caller."""
    connection = sqlite3.connect(
        path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = bytes  # damage can turn a blob into a text
    try:
        _configure(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != b"wal":
        raise StoreError("SQLite cannot keep a log here: state.directory must be on a local disk")
    for pragma in (
        "synchronous = NORMAL",
        "wal_autocheckpoint = 0",
        "journal_size_limit = 0",
        f"cache_size = -{CACHE_KIB}",
        "cell_size_check = ON",
        "secure_delete = OFF",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def create(connection: sqlite3.Connection, meta: Meta) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA:
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES (?)", (meta.sealed(),))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("COMMIT")
    # From here on the file's own header says what it is.
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def check_header(path: Path) -> int:
    """The number of the last transaction that a checkpoint has begun to write to the file.

    DamagedError if its header is not a store's, or its size is not what the header says.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:16] != b"SQLite format 3\0":
        raise DamagedError(f"{path}: it is not a SQLite file")
    page_bytes, write, read, pages, transaction, application = struct.unpack(
        ">16xHBB8xI28xI4xI28x", header
    )
    if (application, write, read) != (APPLICATION_ID, 2, 2):
        raise DamagedError(f"{path}: it was made by another program or release")
    log = sibling(path, "-wal")
    # A checkpoint that was broken off leaves a short file, and its log.
    if not (log.exists() and log.stat().st_size):
        size = path.stat().st_size
        if size != pages * (page_bytes if page_bytes > 1 else 65536):
            raise DamagedError(f"{path}: it has {size} bytes, not what its header says")
    return int(transaction)


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    found = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql > ''")]
    if found != [statement.encode() for statement in SCHEMA]:
        raise DamagedError(f"{path}: its tables are not a store's")


def is_sound(key: object, value: object) -> bool:
    """Whether both are bytes, as damage may have changed, and the checksum is theirs."""
    return isinstance(key, bytes) and isinstance(value, bytes) and is_whole(key, value)


def set_aside(path: Path) -> None:
    """Move the file and its log to ``damaged/``, where the latest few are kept."""
    folder = path.parent / "damaged"
    folder.mkdir(exist_ok=True)
    numbers = sorted({int(p.name.partition("-")[0]) for p in folder.glob("[0-9]*-*")})
    number = numbers[-1] + 1 if numbers else 1
    for suffix in ("", "-wal"):
        source = sibling(path, suffix)
        if source.exists():
            source.replace(folder / f"{number}-{source.name}")
    remove(path)
    for old in numbers[: max(0, len(numbers) - DAMAGED_KEPT + 1)]:
        for file in folder.glob(f"{old}-*"):
            file.unlink()


def remove(path: Path) -> None:
    """Delete the file with all that belongs to it."""
    for suffix in ("", "-wal", "-shm", "-scratch", "-checkpoint", "-condemned"):
        sibling(path, suffix).unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free


def sizes(path: Path) -> int:
    total = 0
    for suffix in ("", "-wal"):
        try:
            total += os.stat(sibling(path, suffix)).st_size
        except FileNotFoundError:
            continue
    return total
