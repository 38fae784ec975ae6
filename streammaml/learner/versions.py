"""The initializations of a partition by version, and their durable form.

A context may stand at θ of an old version until its next adaptation from θ, in memory or on the
shelf; its weights are then not stored but taken from here. So every version that was ever in use
is kept, and a version number means the same numbers for as long as the partition lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streammaml.errors import DamagedError, InitializationError
from streammaml.events import Float32s
from streammaml.initialization import Initialization, Spec, decode, encode
from streammaml.learner.snapshot import INITIALIZATION, Item, version_of
from streammaml.sealed import seal, unseal


class Versions:
    """Every initialization that was in use."""

    def __init__(self, spec: Spec, fingerprint: bytes) -> None:
        self._spec = spec
        self._fingerprint = fingerprint
        self._known: dict[int, Initialization] = {}
        self._unstored: set[int] = set()
        self._taken: set[int] = set()  # of these, in the latest snapshot
        self.thetas: dict[int, Float32s] = {}
        """θ [P] by version."""

    def __getitem__(self, version: int) -> Initialization:
        return self._known[version]

    def keep(self, initialization: Initialization) -> None:
        """Contexts may stand at its θ from now on; InitializationError if its number is taken."""
        self.check(initialization)
        version = initialization.version
        if version not in self._known:
            self._known[version] = initialization
            self.thetas[version] = initialization.theta()
            self._unstored.add(version)

    def check(self, initialization: Initialization) -> None:
        """InitializationError if its number is another's here."""
        version = initialization.version
        known = self._known.get(version)
        if known is None or is_same(known, initialization):
            return
        cure = (
            "put learner.seed, learner.inner_rate and learner.inner_steps back, or start anew with "
            "another topics.state"
            if version == 0
            else "give this one a version of its own (`streammaml outer --once --out FILE` counts "
            "on from the file that it replaces)"
        )
        raise InitializationError(
            f"the state knows another initialization as version {version}: {cure}"
        )

    def changes(self) -> Iterator[Item]:
        """The ``@init/`` items that are not durable yet."""
        for version in sorted(self._unstored):
            key = INITIALIZATION + b"%d" % version
            yield key, seal(key, self._fingerprint, encode(self._known[version]))

    def taken(self) -> None:
        """A snapshot was taken."""
        self._taken = set(self._unstored)

    def mark(self) -> None:
        """What the latest snapshot held is durable."""
        self._unstored -= self._taken

    def restore(self, values: Mapping[bytes, bytes]) -> None:
        """Know what these records hold, and nothing else; DamagedError or IncompatibleError."""
        self._known.clear()
        self._unstored.clear()
        self.thetas.clear()
        for key, value in values.items():
            if key.startswith(INITIALIZATION):
                self.keep(self._decode(key, value))
        self._unstored.clear()

    def _decode(self, key: bytes, value: bytes) -> Initialization:
        try:
            stored = decode(bytes(unseal(key, self._fingerprint, value)))
        except InitializationError as error:
            raise DamagedError(f"the stored value of {key!r} is damaged: {error}") from error
        ours = self._spec
        found = (stored.spec.task, stored.spec.sizes, stored.spec.schema, stored.version)
        # another number of inner steps is another setting, and no other model
        if found != (ours.task, ours.sizes, ours.schema, version_of(key)):
            raise DamagedError(f"the stored value of {key!r} is damaged: it is of another model")
        return stored


def is_same(one: Initialization, other: Initialization) -> bool:
    """Whether two initializations are equal to the bit in what the learner computes with."""
    if one.spec != other.spec or one.classes != other.classes:
        return False
    return all(one.tensors[name].tobytes() == other.tensors[name].tobytes() for name in one.tensors)
