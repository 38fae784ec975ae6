"""The initialization of a partition that is in use, and its durable form.

A context without fast weights of its own stands at θ of the initialization in use, whatever
version it began with: in memory its row is moved at a swap, and what is stored of it says only
that it stands at θ. So one initialization is stored, as it was published, and the records of
those before it are deleted by the next snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from streammaml.errors import DamagedError, InitializationError
from streammaml.events import Float32s, Label
from streammaml.initialization import Initialization, Spec, arranged, decode, encode
from streammaml.learner.snapshot import INITIALIZATION, Item
from streammaml.sealed import seal, unseal


class Versions:
    """The initialization in use, and which ones are stored."""

    def __init__(self, spec: Spec, fingerprint: bytes) -> None:
        self._spec = spec
        self._fingerprint = fingerprint
        self.published: Initialization
        """The initialization in use."""
        self.current: Initialization
        """The same, its classes in the partition's slots."""
        self.theta: Float32s
        """Its θ [P]."""
        self._stored: set[bytes] = set()  # keys that may have a value
        self._durable = self._taken = b""  # of the one that has; in the latest snapshot

    @property
    def version(self) -> int:
        return self.published.version

    def use(self, initialization: Initialization, classes: Sequence[Label]) -> None:
        """From now on this one; ``classes`` of the partition by slot."""
        self.published = initialization
        self.current = self.arranged(initialization, classes)
        self.theta = self.current.theta()

    def arranged(self, initialization: Initialization, classes: Sequence[Label]) -> Initialization:
        """With its classes in these slots; not of a custom network, whose outputs nobody knows."""
        return initialization if self._spec.network else arranged(initialization, classes)

    def is_same(self, initialization: Initialization) -> bool:
        """Whether it is the one in use, to the bit in what the learner computes with."""
        ours = self.published
        if initialization is ours:
            return True
        return (
            (ours.version, ours.spec, ours.classes)
            == (initialization.version, initialization.spec, initialization.classes)
            and ours.tensors.keys() == initialization.tensors.keys()
            and all(
                ours.tensors[name].tobytes() == tensor.tobytes()
                for name, tensor in initialization.tensors.items()
            )
        )

    def check(self, initialization: Initialization) -> None:
        """InitializationError if it is another one under the number that is in use."""
        version = initialization.version
        if version != self.version or self.is_same(initialization):
            return
        cure = (
            "put learner.seed, learner.inner_rate and learner.inner_steps back, or start anew with "
            "another topics.state"
            if version == 0
            else "give this one a version of its own (`streammaml outer --from FILE --out FILE` "
            "counts on from the file that it replaces)"
        )
        raise InitializationError(
            f"the state knows another initialization as version {version}: {cure}"
        )

    def changes(self) -> Iterator[Item]:
        """The ``@init/`` item in use if it is not durable yet; None for those before it."""
        own = self._key
        if self._durable != own:
            yield own, seal(own, self._fingerprint, encode(self.published))
        for key in sorted(self._stored - {own}):
            yield key, None

    def taken(self) -> None:
        """A snapshot was taken."""
        self._taken = self._key
        self._stored.add(self._taken)

    def mark(self) -> None:
        """What the latest snapshot held is durable."""
        self._durable = self._taken
        self._stored = {self._taken}

    def read(self, values: Mapping[bytes, bytes], version: int) -> Initialization:
        """Take what is stored, and of it the initialization that is in use.

        DamagedError or IncompatibleError.
        """
        key = INITIALIZATION + b"%d" % version
        if key not in values:
            raise DamagedError(f"initialization version {version} is in use, and is not stored")
        stored = self._decode(key, values[key])
        if stored.version != version:
            raise DamagedError(f"the stored value of {key!r} is damaged: it is of another version")
        self._stored = {other for other in values if other.startswith(INITIALIZATION)}
        self._durable = self._taken = key
        return stored

    @property
    def _key(self) -> bytes:
        return INITIALIZATION + b"%d" % self.version

    def _decode(self, key: bytes, value: bytes) -> Initialization:
        try:
            stored = decode(bytes(unseal(key, self._fingerprint, value)))
        except InitializationError as error:
            raise DamagedError(f"the stored value of {key!r} is damaged: {error}") from error
        # another number of inner steps is another setting, and no other model
        if replace(stored.spec, steps=self._spec.steps) != self._spec:
            raise DamagedError(f"the stored value of {key!r} is damaged: it is of another model")
        return stored
