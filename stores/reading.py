"""Reads a source as a copy needs it: paced, holes unread, a part in one piece or, if too large, anew whenever it is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from stores.drivers.base import Digest, MiB, PartSource, Reader
from stores.drivers.errors import SourceChanged

BLOCK = MiB
"""Read granularity of a window, and of all else while a limit is set, so that it and a pause bite within a part."""


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

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at [offset, offset+length) in one piece."""
        pieces = list(self.blocks(offset, length, BLOCK if self._control.limited else length))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def window(self, offset: int, length: int, whole: Digest, own: Digest) -> Window:
        """Read the bytes once, into `whole` and `own`, and promise them for later: `own` becomes the window's `digest`."""
        sha256 = hashlib.sha256()
        for block in self.blocks(offset, length, BLOCK):
            for digest in (whole, sha256, own):
                digest.update(block)
        return Window(self, offset, length, sha256.hexdigest(), own.hexdigest())

    def blocks(self, offset: int, length: int, step: int) -> Iterator[bytes]:
        """The bytes at [offset, offset+length) in pieces of at most `step`; holes are zeros that nobody reads."""
        end = offset + length
        position = offset
        for start, size in self._reader.extents(offset, end):
            yield from self._zeros(start - position, step)
            position = start
            while position < start + size:
                size_here = min(start + size - position, step)
                self._control.pace(size_here)
                piece = self._reader.pread(position, size_here)
                self._control.alive()
                yield piece
                position += size_here
        yield from self._zeros(end - position, step)

    def _zeros(self, length: int, step: int) -> Iterator[bytes]:
        zeros = bytes(min(length, step))
        while length:
            self._control.check()
            self._control.alive()
            yield zeros[:length]
            length -= min(length, step)


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

    def blocks(self) -> Iterator[bytes]:
        found = hashlib.sha256()
        left = self._length
        for block in self._source.blocks(self._offset, self._length, BLOCK):
            found.update(block)
            left -= len(block)
            if not left and found.hexdigest() != self.sha256:
                raise SourceChanged(f"{self._source.key} gave other bytes when it was read again to be sent.")
            yield block
