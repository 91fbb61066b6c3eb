"""Reads a source as a copy needs it: paced, holes unread and not held, a part that is too large anew whenever it is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

from stores.drivers.base import Digest, MiB, PartSource, Reader
from stores.drivers.errors import SourceChanged
from stores.timing import SOURCE, spending

BLOCK = MiB
"""Read granularity of a window, and of all else while a limit is set, so that it and a pause bite within a part."""

SMALL_HOLE = 64 * 1024
"""A smaller hole is held like data: it takes little, and a part is not sent in crumbs."""
_ZEROS = memoryview(bytes(BLOCK))


class Pace(Protocol):
    """What steers the reading: waits for the limits, raises for a stop, and hears that something was read."""

    @property
    def limited(self) -> bool: ...

    def pace(self, size: int) -> None: ...

    def check(self) -> None: ...

    def alive(self) -> None: ...


class Source:
    """One open object, read under the control of one copy; safe for several threads at once."""

    def __init__(self, reader: Reader, control: Pace) -> None:
        self._reader = reader
        self._control = control

    @property
    def key(self) -> str:
        return self._reader.info.key

    @property
    def size(self) -> int:
        return self._reader.size

    def read(self, view: memoryview, offset: int) -> memoryview:
        """Fill `view` with the bytes from `offset` on; it comes back to be read only."""
        position = 0
        for start, size in self._reader.extents(offset, offset + len(view)):
            self._clear(view[position : start - offset])
            position = start - offset + size
            self._fill(view[start - offset : position], start)
        self._clear(view[position:])
        return view.toreadonly()

    def data(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, length) of what has to be held of the bytes at [offset, offset+length): all but holes worth mentioning."""
        found: list[tuple[int, int]] = []
        end = offset
        for start, size in self._reader.extents(offset, offset + length):
            begin = start
            if start - end < SMALL_HOLE:
                begin = found.pop()[0] if found else offset
            end = start + size
            found.append((begin, end - begin))
        return found

    def part(
        self, view: memoryview, data: Sequence[tuple[int, int]], offset: int, length: int, digest: Callable[[], Digest]
    ) -> memoryview | Scattered:
        """The bytes at [offset, offset+length), of which `view` takes only `data`."""
        if data == [(offset, length)]:
            return self.read(view, offset)
        pieces: list[memoryview] = []
        position = offset
        for start, size in data:
            pieces += self._hole(start - position)
            pieces.append(self.read(view[:size], start))
            view = view[size:]
            position = start + size
        pieces += self._hole(offset + length - position)
        return Scattered(pieces, digest)

    def _fill(self, view: memoryview, offset: int) -> None:
        step = BLOCK if self._control.limited else len(view)
        for start in range(0, len(view), step or 1):
            piece = view[start : start + step]
            self._control.pace(len(piece))
            with spending(SOURCE, len(piece)):
                self._reader.read_into(piece, offset + start)
            self._control.alive()

    def _clear(self, view: memoryview) -> None:
        position = 0
        for zeros in self._hole(len(view)):
            view[position : position + len(zeros)] = zeros
            position += len(zeros)

    def _hole(self, length: int) -> Iterator[memoryview]:
        while length:
            self._control.check()
            self._control.alive()
            yield _ZEROS[: min(length, BLOCK)]
            length -= min(length, BLOCK)

    def window(self, offset: int, length: int, whole: Digest, own: Digest) -> Window:
        """Read the bytes once, into `whole` and `own`, and promise them for later: `own` becomes the window's `digest`."""
        sha256 = hashlib.sha256()
        for block in self.blocks(offset, length):
            for digest in (whole, sha256, own):
                digest.update(block)
        return Window(self, offset, length, sha256.hexdigest(), own.hexdigest())

    def blocks(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """The bytes at [offset, offset+length) in pieces of at most `BLOCK`; holes are zeros that nobody reads."""
        end = offset + length
        position = offset
        for start, size in self._reader.extents(offset, end):
            yield from self._hole(start - position)
            position = start
            while position < start + size:
                size_here = min(start + size - position, BLOCK)
                self._control.pace(size_here)
                with spending(SOURCE, size_here):
                    piece = self._reader.pread(position, size_here)
                self._control.alive()
                yield piece
                position += size_here
        yield from self._hole(end - position)


class Scattered(PartSource):
    """A part whose data is held in memory, and whose holes are one block of zeros over and over."""

    def __init__(self, pieces: Sequence[memoryview], digest: Callable[[], Digest]) -> None:
        self._pieces = pieces
        self._digest = digest

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def blocks(self) -> Iterator[memoryview]:
        yield from self._pieces

    @cached_property
    def sha256(self) -> str:  # type: ignore[override]
        return self._hashed(hashlib.sha256())

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        return self._hashed(self._digest())

    def _hashed(self, digest: Digest) -> str:
        for piece in self._pieces:
            digest.update(piece)
        return digest.hexdigest()


class Window(PartSource):
    """A part of a source that was read once to compute its checksums, and is read again whenever it is sent."""

    def __init__(self, source: Source, offset: int, length: int, sha256: str, digest: str) -> None:
        self.sha256 = sha256
        self.digest = digest
        self._source = source
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def blocks(self) -> Iterator[bytes | memoryview]:
        found = hashlib.sha256()
        left = self._length
        for block in self._source.blocks(self._offset, self._length):
            found.update(block)
            left -= len(block)
            if not left and found.hexdigest() != self.sha256:
                raise SourceChanged(f"{self._source.key} gave other bytes when it was read again to be sent.")
            yield block
