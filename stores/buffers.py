"""The memory in which all copies of a process hold what is under way: bounded, used again, and given back with its pool."""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol


class Holder(Protocol):
    """A copy that wants memory: raises as soon as it need not wait any more, and tells how long nothing of it has gone on."""

    def check(self) -> None: ...

    @property
    def silent(self) -> float:
        """Seconds."""


class Buffer:
    """So many bytes of the pool, until they are freed; `view` is the memory itself."""

    def __init__(self, pool: Buffers, size: int, holder: Holder, whose: Hashable) -> None:
        self.size = size
        self._pool = pool
        self._holder = holder
        self._whose = whose
        self._block: mmap.mmap | None = None

    @property
    def view(self) -> memoryview:
        """The same memory every time; nobody may look at it after `free`."""
        if self._block is None:
            self._block = self._pool.block(self.size)
        return memoryview(self._block)[: self.size]

    def free(self) -> None:
        self._pool.free(self.size, self._block, self._holder, self._whose)
        self._block = None


@dataclass(slots=True)
class _Share:
    """What one owner has."""

    size: int = 0
    holders: Counter[Holder] = field(default_factory=Counter)
    """Copy -> buffers it holds."""

    def hangs(self, patience: float) -> bool:
        return all(holder.silent > patience for holder in self.holders)


class Buffers:
    """At most `limit` bytes, in use or kept for the next use; what is larger than all of it passes alone.

    An owner whose copies are all silent for more than `patience` seconds hangs: what it has counts for itself alone, so that
    others go on. So each that hangs costs at most another `limit`.

    Pages that were written to once cost a fifth of reading a file; malloc would give them back to the system, or keep more and
    more of them for ever.
    """

    def __init__(self, limit: int, largest: int, *, patience: float = 30.0) -> None:
        """No buffer whose `view` is asked for has more than `largest` bytes."""
        self._limit = limit
        self._largest = max(largest, mmap.PAGESIZE)
        self._patience = patience
        self._used = 0
        self._shares: dict[Hashable, _Share] = {}
        self._kept: list[tuple[int, mmap.mmap]] = []
        """(bytes from its beginning that take memory, block)."""
        self._freed = threading.Condition()

    @property
    def in_use(self) -> int:
        return self._used

    def take(self, size: int, holder: Holder, whose: Hashable = None) -> Buffer:
        """Wait until so much is free for a copy of that owner."""
        with self._freed:
            while not self._fits(size, whose):
                self._freed.wait(0.2)
                holder.check()
            self._used += size
            share = self._shares.setdefault(whose, _Share())
            share.size += size
            share.holders[holder] += 1
            self._make_room()
        return Buffer(self, size, holder, whose)

    def _fits(self, size: int, whose: Hashable) -> bool:
        counted = sum(share.size for owner, share in self._shares.items() if owner == whose or not share.hangs(self._patience))
        return not counted or counted + size <= self._limit

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

    def free(self, size: int, block: mmap.mmap | None, holder: Holder, whose: Hashable) -> None:
        with self._freed:
            self._used -= size
            share = self._shares[whose]
            share.size -= size
            share.holders[holder] -= 1
            if not share.holders[holder]:
                del share.holders[holder]
            if not share.holders:
                del self._shares[whose]
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
