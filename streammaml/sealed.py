"""How a value is sealed before it leaves the process: who it is for in front, a checksum behind.

A sealed value is ``SM``, the format version (uint16), the fingerprint of the model it belongs to
(8 bytes), the body, and the CRC-32 (uint32) of its key and all that stands before; little-endian.
Nothing that arrives is used before :func:`unseal` has looked at it.
"""

from __future__ import annotations

import struct
import zlib

from streammaml.errors import DamagedError, IncompatibleError

FORMAT = 2
READ = (1, 2)
"""The formats that are read: where a value's form changed, its reader tells them apart."""
FINGERPRINT_BYTES = 8
OVERHEAD_BYTES = 16
_HEAD = struct.Struct("<2sH8s")
_CRC = struct.Struct("<I")
_MAGIC = b"SM"


def seal(key: bytes, fingerprint: bytes, body: bytes) -> bytes:
    """Wrap ``body``, stored under ``key``, for the model of ``fingerprint``."""
    sealed = _HEAD.pack(_MAGIC, FORMAT, fingerprint) + body
    return sealed + _CRC.pack(zlib.crc32(sealed, zlib.crc32(key)))


def is_whole(key: bytes, sealed: bytes) -> bool:
    """Whether the checksum is that of this key and value."""
    if len(sealed) < OVERHEAD_BYTES or sealed[:2] != _MAGIC:
        return False
    (expected,) = _CRC.unpack_from(sealed, len(sealed) - _CRC.size)
    crc = zlib.crc32(memoryview(sealed)[: -_CRC.size], zlib.crc32(key))
    return bool(crc == expected)


def unseal_any(key: bytes, sealed: bytes) -> tuple[bytes, memoryview]:
    """Whose it is, and the body. DamagedError if its bytes changed, IncompatibleError if another
    release's format.
    """
    if not is_whole(key, sealed):
        raise DamagedError(f"the stored value of {key!r:.80} is damaged")
    _, version, owner = _HEAD.unpack_from(sealed)
    if version not in READ:
        raise IncompatibleError(
            f"the stored state has format {version}, this release reads formats {READ[0]} to "
            f"{READ[-1]}: run the release that wrote it, or start anew with another topic "
            "(--set topics.state=…)"
        )
    return owner, memoryview(sealed)[_HEAD.size : -_CRC.size]


def unseal(key: bytes, fingerprint: bytes, sealed: bytes) -> memoryview:
    """The body. As :func:`unseal_any`, and IncompatibleError if it is another model's."""
    owner, body = unseal_any(key, sealed)
    if owner != fingerprint:
        raise IncompatibleError(
            f"the stored value of {key!r:.80} belongs to another model than the configuration's"
        )
    return body
