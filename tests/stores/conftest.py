"""What the tests of stores share: the memory driver as a provider, plain folders as exports, and clean servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import memory


@pytest.fixture(autouse=True)
def _providers(settings) -> Iterator[None]:
    settings.STORE_DRIVERS = {**settings.STORE_DRIVERS, "Memory": "tests.fakes.memory.MemoryDriver"}
    settings.ALLOW_PLAIN_EXPORTS = True
    yield
    memory.SERVERS.clear()
