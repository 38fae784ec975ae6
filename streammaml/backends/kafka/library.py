"""kafka-python, imported once, with one fault of it mended.

It has no types (Any stays in this package), and on Python 3.11 and 3.12 importing it warns of its
own use of importlib.resources, which would end a process run with -W error.
"""

from __future__ import annotations

import functools
import socket
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka  # type: ignore[import-untyped]  # see above
    from kafka import errors
    from kafka.consumer.fetcher import Fetcher  # type: ignore[import-untyped]
    from kafka.coordinator.assignors.cooperative_sticky import (  # type: ignore[import-untyped]
        CooperativeStickyAssignor,
    )
    from kafka.future import Future  # type: ignore[import-untyped]
    from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]
    from kafka.net.inet import KafkaNetSocket  # type: ignore[import-untyped]
    from kafka.protocol.consumer import (  # type: ignore[import-untyped]
        HeartbeatRequest,
        OffsetCommitRequest,
    )

__all__ = [
    "CooperativeStickyAssignor",
    "Fetcher",
    "Future",
    "HeartbeatRequest",
    "KafkaNetClient",
    "OffsetCommitRequest",
    "errors",
    "kafka",
]


def _close_what_fails_to_connect() -> None:
    """kafka-python 3.0 leaves the socket of a failed connection to the garbage collector, in a
    cycle: through an outage a client takes a file descriptor a second until that comes along."""
    connect = KafkaNetSocket.sock_connect

    @functools.wraps(connect)
    async def sock_connect(
        self: Any, net: Any, sock: socket.socket, *args: Any, **options: Any
    ) -> socket.socket:
        try:
            connected: socket.socket = await connect(self, net, sock, *args, **options)
        except BaseException:  # an attempt that is given up (GeneratorExit), too
            sock.close()
            raise
        return connected

    KafkaNetSocket.sock_connect = sock_connect


_close_what_fails_to_connect()
