"""The ground of all crash tests: prepared once, put back to a remembered state by each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.ground import Ground


@pytest.fixture(scope="session")
def converted(server_directory, swift_server, migrated) -> Iterator[Ground]:
    """States `empty`, `added`, `scanned` and `converted`, and the checkpoints reached on the way."""
    folder = server_directory / "crash"
    folder.mkdir()
    with Ground(folder, swift_server) as ground:
        migrated.sqlite(ground.data / "db.sqlite3")
        ground.must("migrate")
        ground.save("empty")
        ground.reached["store_add"] = ground.trace("store_add")
        ground.save("added")
        ground.reached["scan"] = ground.trace("scan")
        ground.must("preflight")
        ground.save("scanned")
        ground.reached["convert"] = ground.trace("convert")
        ground.save("converted")
        yield ground
