"""What every disk image reader shares: bounded reads, the header it reports, and names without paths."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

MAX_HEADER_BYTES = 8 * 1024 * 1024
"""No header of any format needs more; a file that asks for more is lying."""
MAX_SIZE = 2**63 - 1
"""Bytes that an image can have at all, and that a row can hold."""

_PROTOCOL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")


class ImageError(Exception):
    """Base of everything this package raises on purpose."""


class Truncated(ImageError):
    """A structure reaches past the end of the file (turned into a problem before a caller sees it)."""


class Reader(Protocol):
    """Random access to one file of any store. `pread` may return fewer bytes at the end of the file."""

    @property
    def size(self) -> int: ...

    def pread(self, offset: int, length: int) -> bytes: ...


class FileReader:
    """A `Reader` of an open file descriptor or of a path (symbolic links refused); use as context manager."""

    def __init__(self, file: str | bytes | os.PathLike[str] | int) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.fd = os.dup(file) if isinstance(file, int) else os.open(file, flags)
        self.size = os.fstat(self.fd).st_size

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)


class Budget:
    """How many bytes may still be read, by all that share it."""

    def __init__(self, left: int = MAX_HEADER_BYTES) -> None:
        self.left = left

    def halve(self) -> Budget:
        """Give half of it away."""
        self.left //= 2
        return Budget(self.left)


class Source:
    """A window of a reader that never asks outside the file and never for more than a header's worth."""

    def __init__(
        self,
        reader: Reader,
        start: int = 0,
        size: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._reader = reader
        self._start = start
        self.size = reader.size if size is None else size
        self.budget = budget or Budget()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, else `Truncated`."""
        data = self.read_some(offset, length)
        if len(data) != length:
            raise Truncated(f"{length} bytes wanted at offset {offset} of {self.size}")
        return data

    def read_some(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes: fewer at the end of the file, none outside it."""
        if offset < 0 or length <= 0 or offset >= self.size:
            return b""
        length = min(length, self.size - offset)
        if length > self.budget.left:
            raise Truncated("the header asks for more bytes than any honest one")
        self.budget.left -= length
        data = bytearray()
        while len(data) < length:
            chunk = self._reader.pread(self._start + offset + len(data), length - len(data))
            if not chunk:
                break
            data += chunk
        return bytes(data[:length])

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack(layout, self.read(offset, struct.calcsize(layout)))

    def window(self, start: int, size: int, budget: Budget) -> Source:
        """A part of this source (a member of an archive) as a source of its own."""
        return Source(self._reader, self._start + start, max(0, min(size, self.size - start)), budget)


@dataclass(frozen=True)
class ImageHeader:
    """What a file's own header says. Sizes are bytes.

    `backing` is the link to the parent exactly as written (an untrusted path: never open it);
    `backing_name` its last component, None when the link is no plain file name.
    """

    format: str
    """qcow2, qcow, raw, vhd, vhdx, vmdk, vdi, ova, tar, iso, gzip, bzip2, xz, zip, zstd"""
    virtual_size: int | None
    kind: str = ""
    """VHD and VDI: fixed, dynamic, differencing; VMDK: its createType; else empty"""
    backing: str | None = None
    backing_name: str | None = None
    backing_format: str | None = None
    unique_id: str | None = None
    """VHD and VDI: UUID; VMDK: content id (CID)"""
    parent_unique_id: str | None = None
    timestamp: int | None = None
    """VHD: seconds since 2000-01-01 UTC, as written"""
    parent_timestamp: int | None = None
    locators: tuple[tuple[str, str], ...] = ()
    """VHD and VHDX: every link to the parent as (platform code or key, text)"""
    encrypted: bool = False
    external_data: tuple[str, ...] = ()
    """names of other files that hold this image's own data, as written"""
    members: tuple[tuple[str, int], ...] = ()
    """OVA and tar: (name, size) of each member"""
    problems: tuple[str, ...] = ()

    @property
    def has_parent(self) -> bool:
        """True when this file alone is not the whole disk."""
        return self.backing is not None or self.kind == "differencing"


def base_name(link: str) -> str | None:
    """The last component of a link written by any system, or None when it names no plain file.

    Links with a protocol (`nbd://`, `json:`) name no file beside the image; only `file:` does.
    """
    if link[:5].lower() == "file:":
        link = link[5:]
    elif _PROTOCOL.match(link):
        return None
    name = re.split(r"[/\\]", link)[-1]
    return name if is_plain_name(name) else None


def is_plain_name(name: str) -> bool:
    """True for a name that stays in its own directory on any system."""
    return name not in ("", ".", "..") and len(name) <= 255 and not any(c in "/\\" or ord(c) < 32 or ord(c) == 127 for c in name)


def text_of(data: bytes, encoding: str = "utf-8") -> str:
    """Text up to the first NUL; undecodable bytes are kept visible, never raised."""
    return data.decode(encoding, "replace").split("\0", 1)[0]
