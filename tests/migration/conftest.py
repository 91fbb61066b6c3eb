"""A region to convert, and the object store in memory that it is converted to."""

from __future__ import annotations

import pytest

from tests.fakes import memory
from tests.fakes.faulty import FAULTS, Faults, faults_at
from tests.migration.region import Region


@pytest.fixture
def memory_store(settings):
    """The provider Memory, with an empty server at `memory://objects`."""
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | {"Memory": "tests.fakes.memory.MemoryDriver"}
    settings.ALLOW_PLAIN_EXPORTS = True
    memory.SERVERS.pop("memory://objects", None)
    yield memory.server_at("memory://objects")
    memory.SERVERS.pop("memory://objects", None)


@pytest.fixture
def region(db, admin, settings, tmp_path, memory_store) -> Region:
    """Zones east and west with an empty export each."""
    settings.NFS_MOUNTS = {}
    found = Region(admin, tmp_path / "exports")
    found.add_zone("east")
    found.add_zone("west")
    return found


@pytest.fixture
def target() -> dict[str, object]:
    """The parameters of the object store."""
    return {"name": "objects", "provider": "Memory", "url": "memory://objects", "details": {}}


@pytest.fixture
def faults(settings, memory_store, target) -> Faults:
    """The script of the object store, which behaves until told otherwise."""
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | {"Memory": "tests.fakes.faulty.FaultyMemoryDriver"}
    yield faults_at(target["url"])
    FAULTS.clear()
