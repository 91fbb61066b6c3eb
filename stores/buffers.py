"""The memory in which all copies of a process hold what is under way: bounded, used again, and given back with its pool."""

from __future__ import annotations

import mmap
import threading
from typing import Protocol


class Stoppable(Protocol):
    """Whoever waits for memory hears by it that he need not wait any more."""

    def check(self) -> None: ...


class Buffer:
    """So many bytes of the pool, until they are freed; `view` is the memory itself."""

    def __init__(self, pool: Buffers, size: int) -> None:
        self.size = size
        self._pool = pool
        self._block: mmap.mmap | None = None

    @property
    def view(self) -> memoryview:
        """The same memory every time; nobody may look at it after `free`."""
        if self._block is None:
            self._block = self._pool.block(self.size)
        return memoryview(self._block)[: self.size]

    def free(self) -> None:
        self._pool.free(self.size, self._block)
        self._block = None


class Buffers:
    """At most `limit` bytes, in use or kept for the next use; what is larger than all of it passes alone.

    Pages that were written to once cost a fifth of reading a file; malloc would give them back to the system, or keep more and
    more of them for ever.
    """

    def __init__(self, limit: int, largest: int) -> None:
        """No buffer whose `view` is asked for has more than `largest` bytes."""
        self._limit = limit
        self._largest = max(largest, mmap.PAGESIZE)
        self._used = 0
        self._kept: list[tuple[int, mmap.mmap]] = []
        """(bytes from its beginning that take memory, block)."""
        self._freed = threading.Condition()

    @property
    def in_use(self) -> int:
        return self._used

    def take(self, size: int, control: Stoppable) -> Buffer:
        """Wait until so much is free."""
        with self._freed:
            while self._used and self._used + size > self._limit:
                self._freed.wait(0.2)
                control.check()
            self._used += size
            self._make_room()
        return Buffer(self, size)

    def block(self, size: int) -> mmap.mmap:
        """A block for a buffer that was taken: the kept one that is nearest in size."""
        with self._freed:
            if not self._kept:
                return mmap.mmap(-1, self._largest, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            kept = min(self._kept, key=lambda kept: abs(kept[0] - size))
            self._kept.remove(kept)
        in_memory, block = kept
        wanted = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if in_memory > wanted:
            block.madvise(mmap.MADV_DONTNEED, wanted, in_memory - wanted)
        return block

    def free(self, size: int, block: mmap.mmap | None) -> None:
        with self._freed:
            self._used -= size
            if block is not None:
                self._kept.append((size, block))
                self._make_room()
            self._freed.notify_all()

    def close(self) -> None:
        """Keep nothing of what is not in use."""
        with self._freed:
            self._kept.clear()

    def _make_room(self) -> None:
        while self._kept and self._used + sum(size for size, _ in self._kept) > self._limit:
            del self._kept[0]
