"""Nothing of a test that failed goes on beside the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backends.conformance.worlds import Reader


@pytest.fixture(autouse=True)
def closed_readers() -> Iterator[None]:
    yield
    for reader in tuple(Reader.open):
        reader.close()
