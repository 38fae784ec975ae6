"""The local copy of the ``state`` topic: one store a partition."""

from streammaml.backends.state.store import Store, store_path

__all__ = ["Store", "store_path"]
