"""Tells what a file is by its own bytes and hands it to the reader of its format."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from stores.images import qcow2, vhd, vhdx, vmdk
from stores.images.header import MAX_SIZE, ImageHeader, Reader, Source, Truncated, text_of

FORMAT_OF_SUFFIX = {
    ".qcow2": "qcow2",
    ".raw": "raw",
    ".img": "raw",
    ".vhd": "vhd",
    ".vhdx": "vhdx",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".ova": "ova",
    ".tar": "tar",
    ".iso": "iso",
}
"""CloudStack's file suffixes (its Storage.ImageFormat) and the format each stands for."""

_HEAD = 4096
_SECTOR = 512
_MAX_MEMBERS = 1000
_MAX_MEMBER_NAME = 4096
_VDI_KINDS = {1: "dynamic", 2: "fixed", 4: "differencing"}
_VOLUME_DESCRIPTOR = 32768


def expected_format(name: str) -> str | None:
    """The format that a file's suffix promises (`FORMAT_OF_SUFFIX`), None for other names."""
    return next((fmt for suffix, fmt in FORMAT_OF_SUFFIX.items() if name.lower().endswith(suffix)), None)


def inspect(reader: Reader, *, expect: str | None = None) -> ImageHeader:
    """What the file says it is, in a handful of small reads; nothing in it makes this raise.

    Only the reader's own I/O errors pass through. `expect` is the format that name or properties
    promise: another one found is a problem (a fixed VHD that lost its footer reads as raw), and "raw"
    is not probed, for a guest writes a raw disk's first bytes and could pretend to be anything.
    """
    if expect == "raw":
        return _raw(Source(reader))
    header = _probe(Source(reader))
    if expect is not None and header.format != expect:
        problem = f"expected to be {expect}, but reads as {header.format}: damaged, cut short or misnamed"
        return replace(header, problems=(*header.problems, problem))
    return header


def _probe(src: Source) -> ImageHeader:
    head = src.read_some(0, _HEAD)
    name, parse = _recognise(src, head)
    try:
        header = parse(src)
    except Truncated as error:
        return ImageHeader(name, None, problems=(f"the header is damaged or cut short: {error}",))
    if header.virtual_size is not None and header.virtual_size > MAX_SIZE:
        problem = f"a virtual size of {header.virtual_size} bytes is impossible"
        return replace(header, virtual_size=None, problems=(*header.problems, problem))
    return header


def _recognise(src: Source, head: bytes) -> tuple[str, _Parser]:
    for offset, magic, name, parse in _MAGICS:
        if head.startswith(magic, offset):
            return name, parse
    if src.read_some(src.size - _SECTOR, 8) == vhd.COOKIE:
        return "vhd", vhd.parse
    if src.read_some(_VOLUME_DESCRIPTOR + 1, 5) in (b"CD001", b"BEA01"):
        return "iso", _iso
    if _is_tar_header(head[:_SECTOR]):
        return "tar", _tar
    return "raw", _raw


def _compressed(name: str, _: Source) -> ImageHeader:
    return ImageHeader(name, None)


def _raw(src: Source) -> ImageHeader:
    problems = ("the file is empty",) if src.size == 0 else ()
    luks = src.read_some(0, 6) == b"LUKS\xba\xbe"
    return ImageHeader("raw", src.size, encrypted=luks, problems=problems)


def _vdi(src: Source) -> ImageHeader:
    """VirtualBox's header 1.1; a differencing one names its parent by UUID only."""
    version, _header_size, kind_number = src.unpack("<III", 68)
    size, block_size, _extra, blocks = src.unpack("<QIII", 368)
    own, _last_snapshot, parent = src.unpack("<16s16s16s", 392)
    kind = _VDI_KINDS.get(kind_number, f"type {kind_number}")
    problems = []
    if version != 0x00010001:
        problems.append(f"VDI version {version >> 16}.{version & 0xFFFF} is unknown")
    if blocks * block_size < size:
        problems.append("the block table is too short for the virtual size")
    if kind not in _VDI_KINDS.values():
        problems.append(f"unknown VDI {kind}")
    data_at, allocated = src.unpack("<I", 344)[0], src.unpack("<I", 388)[0]
    if data_at + allocated * block_size > src.size:
        problems.append("the file is cut short: its last blocks lie past its end")
    differencing = kind == "differencing"
    if differencing:
        problems.append("differencing VDI files are not supported: merge the chain first")
    return ImageHeader(
        "vdi",
        size,
        kind=kind,
        backing="" if differencing else None,
        unique_id=str(uuid.UUID(bytes_le=own)),
        parent_unique_id=str(uuid.UUID(bytes_le=parent)) if differencing else None,
        problems=tuple(problems),
    )


def _iso(src: Source) -> ImageHeader:
    """ISO 9660 (ECMA-119 8.4) or bare UDF; its size is the file's, as CloudStack counts it."""
    problems: tuple[str, ...] = ()
    if src.read(_VOLUME_DESCRIPTOR, 6) == b"\x01CD001":
        (blocks,) = src.unpack("<I", _VOLUME_DESCRIPTOR + 80)
        (block_size,) = src.unpack("<H", _VOLUME_DESCRIPTOR + 128)
        if blocks * block_size > src.size:
            problems = (f"cut short: the ISO says {blocks * block_size} bytes, has {src.size}",)
    return ImageHeader("iso", src.size, problems=problems)


def _tar(src: Source) -> ImageHeader:
    """Member list of an OVA or tar; the virtual size is the sum of the disks inside (one level, never deeper), where they all
    together do not ask for more than one honest header."""
    members: list[tuple[str, int]] = []
    problems: list[str] = []
    disks: list[int | None] = []
    of_disks = src.budget.halve()
    for name, data_at, size in _tar_members(src, problems):
        if len(members) == _MAX_MEMBERS:
            problems.append(f"more than {_MAX_MEMBERS} members: the rest is not listed")
            break
        members.append((name, size))
        if name.lower().endswith(".vmdk"):
            disks.append(_disk_size(src.window(data_at, size, of_disks)))
    is_ova = any(name.lower().endswith(".ovf") for name, _ in members)
    known = [size for size in disks if size is not None]
    return ImageHeader(
        "ova" if is_ova else "tar",
        sum(known) if known and len(known) == len(disks) else None,
        members=tuple(members),
        problems=tuple(problems),
    )


def _tar_members(src: Source, problems: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset of its data, size) of each regular file; ends where the archive stops making sense."""
    long_name: str | None = None
    at = 0
    while len(header := src.read_some(at, _SECTOR)) == _SECTOR:
        if not header.strip(b"\0"):
            return
        size = _tar_number(header[124:136])
        if not _is_tar_header(header) or size is None:
            problems.append(f"the archive is damaged at byte {at}")
            return
        kind, data_at = header[156:157], at + _SECTOR
        at = data_at + -(-size // _SECTOR) * _SECTOR
        if data_at + size > src.size:
            problems.append("the archive is cut short: its last member is not complete")
        if kind == b"L":
            long_name = text_of(src.read_some(data_at, min(size, _MAX_MEMBER_NAME)))
        elif kind == b"x":
            long_name = _pax_path(src.read_some(data_at, min(size, _MAX_MEMBER_NAME)))
        else:
            if kind in (b"0", b"\0"):
                yield long_name or _tar_name(header), data_at, size
            long_name = None
    problems.append("the archive is cut short: it has no end mark")


def _disk_size(src: Source) -> int | None:
    try:
        return vmdk.parse_sparse(src).virtual_size if src.read_some(0, 4) == vmdk.MAGIC else None
    except Truncated:
        return None


def _is_tar_header(header: bytes) -> bool:
    if len(header) < _SECTOR or header[257:262] != b"ustar":
        return False
    stored = _tar_number(header[148:156])
    return stored == sum(header[:148]) + sum(header[156:]) + 8 * 32


def _tar_number(field: bytes) -> int | None:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if any(digit not in b"01234567" for digit in digits):
        return None
    return int(digits or b"0", 8)


def _tar_name(header: bytes) -> str:
    name = text_of(header[:100])
    prefix = text_of(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_path(data: bytes) -> str | None:
    for record in data.split(b"\n"):
        _length, _, assignment = record.partition(b" ")
        key, _, value = assignment.partition(b"=")
        if key == b"path":
            return text_of(value)
    return None


_Parser = Callable[[Source], ImageHeader]

_MAGICS: tuple[tuple[int, bytes, str, _Parser], ...] = (
    (0, qcow2.MAGIC, "qcow2", qcow2.parse),
    (0, vhdx.MAGIC, "vhdx", vhdx.parse),
    (0, vmdk.MAGIC, "vmdk", vmdk.parse_sparse),
    (0, vmdk.OLD_MAGIC, "vmdk", vmdk.parse_old),
    (0, vmdk.TEXT, "vmdk", vmdk.parse_text),
    (64, b"\x7f\x10\xda\xbe", "vdi", _vdi),
    (0, vhd.COOKIE, "vhd", vhd.parse),
    *(
        (0, magic, name, partial(_compressed, name))
        for magic, name in (
            (b"\x1f\x8b\x08", "gzip"),
            (b"BZh", "bzip2"),
            (b"\xfd7zXZ\0", "xz"),
            (b"PK\x03\x04", "zip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
        )
    ),
)
