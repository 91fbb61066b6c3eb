"""The drivers of the state machine: they misbehave by script, and cut small objects into many parts."""

from __future__ import annotations

from stores.drivers.nfs import NFSDriver
from tests.fakes.faulty import faulty
from tests.fakes.memory import MemoryDriver

PART = 16

FaultyNfs = faulty(NFSDriver)


class FaultyTarget(faulty(MemoryDriver)):  # type: ignore[misc]
    """An object store whose parts are so small that every item has several."""

    def part_size_for(self, size: int) -> int:
        return PART
