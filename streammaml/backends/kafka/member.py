"""A place in the group: what a transaction carries, and commits without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from streammaml.backends.kafka.clients import Deadline, native, translate
from streammaml.backends.kafka.library import (
    HeartbeatRequest,
    OffsetCommitRequest,
    errors,
)
from streammaml.backends.ports import Offsets
from streammaml.errors import BackendError, UnavailableError

_EVICTED = "this worker was evicted from its group: max_poll_interval_ms?"
_RETRY_S = 0.05
_OTHER_COORDINATOR = (errors.NotCoordinatorError, errors.CoordinatorNotAvailableError)


class KafkaMember:
    """The consumer's place in its group as it was when the source was asked for it.

    It commits by requests of its own. The client's ``commit`` refuses while a rebalance is under
    way, which only the next poll can end, though the broker accepts: under the cooperative
    protocol no one else gets a partition that this member has not given up. Safe on any thread
    but the client's IO thread.
    """

    def __init__(self, consumer: Any) -> None:
        self._coordinator = consumer._coordinator
        self.metadata = consumer.group_metadata()

    def require_generation(self) -> None:
        """BackendError if evicted: the broker would not fence a client without a group."""
        if self.metadata.generation_id < 0:
            raise BackendError(_EVICTED)

    def verify(self, deadline: Deadline) -> None:
        """Ask the broker: FencedError or BackendError if the place is another's."""

        def request(place: Any) -> Any:
            return HeartbeatRequest(
                group_id=place.group_id,
                generation_id=place.generation_id,
                member_id=place.member_id,
                group_instance_id=place.group_instance_id,
            )

        def codes(response: Any) -> Iterator[int]:
            # A rebalance under way is told only to those that still belong.
            if response.error_code != errors.RebalanceInProgressError.errno:
                yield response.error_code

        self._carry_out(request, codes, deadline)

    def commit(self, offsets: Offsets, deadline: Deadline) -> None:
        """FencedError or BackendError, and nothing committed, if the place is another's."""
        topics: dict[str, list[Any]] = {}
        for partition, offset in offsets.items():
            tp = native(partition)
            item = OffsetCommitRequest.OffsetCommitRequestTopic.OffsetCommitRequestPartition(
                partition_index=tp.partition,
                committed_offset=offset,
                committed_leader_epoch=-1,
                committed_metadata="",
            )
            topics.setdefault(tp.topic, []).append(item)

        def request(place: Any) -> Any:
            return OffsetCommitRequest(
                max_version=8,  # later ones name topics by id
                group_id=place.group_id,
                generation_id_or_member_epoch=place.generation_id,
                member_id=place.member_id,
                group_instance_id=place.group_instance_id,
                topics=[
                    OffsetCommitRequest.OffsetCommitRequestTopic(name=name, partitions=items)
                    for name, items in topics.items()
                ],
            )

        def codes(response: Any) -> Iterator[int]:
            for topic in response.topics:
                yield from (partition.error_code for partition in topic.partitions)

        self._carry_out(request, codes, deadline)

    def _carry_out(
        self,
        request: Callable[[Any], Any],
        codes: Callable[[Any], Iterator[int]],
        deadline: Deadline,
    ) -> None:
        """Send until the broker says yes, no, or nothing for too long."""
        while True:
            place = self._coordinator.group_metadata()
            if place.generation_id < 0 or place.member_id != self.metadata.member_id:
                raise BackendError(_EVICTED)
            error = self._send(request(place), codes, deadline)
            if error is None:
                return
            if isinstance(error, _OTHER_COORDINATOR):
                self._coordinator.coordinator_dead(error)
            if not self._may_pass(error, place) or deadline.left_s() <= 0:
                raise translate(error)
            time.sleep(min(_RETRY_S, deadline.slice_s()))

    def _may_pass(self, error: Exception, place: Any) -> bool:
        if isinstance(error, errors.IllegalGenerationError):  # the next one is on its way, or here
            moved: bool = self._coordinator.group_metadata().generation_id != place.generation_id
            return moved or bool(self._coordinator.rebalance_in_progress())
        return isinstance(error, errors.RetriableError | errors.RebalanceInProgressError)

    def _send(
        self, request: Any, codes: Callable[[Any], Iterator[int]], deadline: Deadline
    ) -> Exception | None:
        coordinator = self._coordinator

        async def exchange() -> Any:
            await coordinator.ensure_coordinator_ready_async(timeout_ms=deadline.left_s() * 1000)
            node = coordinator.coordinator()
            if node is None:
                raise errors.CoordinatorNotAvailableError
            # A broker answers a connection's requests one by one, and the coordinator's may have
            # a JoinGroup on it that waits for other members: ask on one of our own.
            brokers = coordinator._cluster._coordinator_brokers
            own = f"commits-{node}"
            at = brokers[node]
            brokers[own] = type(at)(own, at.host, at.port, None)
            return await coordinator._manager.send(request, node_id=own)

        done = threading.Event()
        answer = coordinator._manager.call_soon(exchange)
        answer.add_both(lambda _: done.set())
        while not done.wait(deadline.slice_s()):
            if deadline.left_s() <= 0:
                raise UnavailableError("Kafka does not answer: the group's offsets may not stand")
        if answer.exception is not None:
            return answer.exception  # type: ignore[no-any-return]  # the client has no types
        bad = next((code for code in codes(answer.value) if code), 0)
        return errors.for_code(bad)() if bad else None
