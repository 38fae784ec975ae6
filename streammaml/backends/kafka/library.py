"""kafka-python, imported once.

It has no types (Any stays in this package), and on Python 3.11 and 3.12 importing it warns of its
own use of importlib.resources, which would end a process run with -W error.
"""

from __future__ import annotations

import warnings

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
