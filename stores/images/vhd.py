"""Reads VHD files, differencing ones included, because qemu-img ignores a VHD's parent without a word.

Layout from Microsoft's "Virtual Hard Disk Image Format Specification" (2006); numbers are big-endian.
"""

from __future__ import annotations

import itertools
import struct
import uuid
from dataclasses import dataclass, replace

from stores.images.header import Budget, ImageHeader, Reader, Source, base_name, text_of

COOKIE = b"conectix"
SECTOR = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
KINDS = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}
_LOCATOR_ENCODINGS = {"W2ru": "utf-16-le", "W2ku": "utf-16-le", "MacX": "utf-8"}
_LOCATOR_PREFERENCE = ("W2ru", "W2ku", "MacX", "name")
_MAX_LOCATOR = 4096
_UNUSED_BLOCK = 0xFFFFFFFF
_MAX_TABLE_ENTRIES = 4 * 1024 * 1024
_NO_ID = uuid.UUID(int=0)


@dataclass(frozen=True)
class _Footer:
    data_offset: int
    timestamp: int
    size: int
    disk_type: int
    unique_id: uuid.UUID


def parse(src: Source) -> ImageHeader:
    """Header of a file with a VHD footer at its end, or the copy of one at its start."""
    problems: list[str] = []
    last, first = _footer(src, src.size - SECTOR), _footer(src, 0)
    footer = last or first
    if footer is None:
        problem = "neither VHD footer has a good checksum: the file is damaged or cut short"
        return ImageHeader("vhd", None, problems=(problem,))
    header = ImageHeader(
        "vhd",
        footer.size,
        kind=KINDS.get(footer.disk_type, f"type {footer.disk_type}"),
        # "" until the link is read: a differencing disk must never read as complete
        backing="" if footer.disk_type == DIFFERENCING else None,
        unique_id=str(footer.unique_id),
        timestamp=footer.timestamp,
    )
    if last is None:
        problems.append("the footer at the end is missing or damaged: the file is cut short")
    if footer.disk_type == FIXED:
        if last and footer.size != src.size - SECTOR:
            problems.append(f"the footer says {footer.size} bytes, the file holds {src.size - SECTOR}")
    elif footer.disk_type in KINDS:
        if first is None:
            problems.append("the copy of the footer at the start is missing or damaged")
        elif last is not None and first != last:
            problems.append("the two footers of the file disagree")
        header = _with_sparse_header(src, footer, header, problems)
    else:
        problems.append(f"VHD disk {header.kind} is unknown")
    return replace(header, problems=tuple(problems))


def _with_sparse_header(src: Source, footer: _Footer, header: ImageHeader, problems: list[str]) -> ImageHeader:
    sparse = src.read_some(footer.data_offset, 1024)
    if len(sparse) < 1024 or sparse[:8] != b"cxsparse" or not _sums_up(sparse, 36):
        problems.append("the dynamic disk header is missing or damaged")
        return header
    problems += _table_problems(src, sparse, footer)
    if footer.disk_type != DIFFERENCING:
        return header
    locators = _locators(src, sparse, problems)
    backing = _preferred(locators, problems)
    parent_id = uuid.UUID(bytes=sparse[40:56])
    if parent_id == _NO_ID:
        problems.append("the parent has no unique id, so the chain cannot be checked")
    return replace(
        header,
        backing=backing,
        backing_name=base_name(backing),
        parent_unique_id=None if parent_id == _NO_ID else str(parent_id),
        parent_timestamp=struct.unpack_from(">I", sparse, 56)[0],
        locators=locators,
    )


def checksum(data: bytes, at: int) -> int:
    """One's complement of the byte sum of a footer or header, its own field (4 bytes at `at`) left out."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def check_vhd(reader: Reader) -> list[str]:
    """Reads the block table of a dynamic or differencing VHD and says which blocks cannot be there.

    qemu-img must not be asked about a differencing VHD, so this is what proves its structure.
    """
    src = Source(reader, budget=Budget(_MAX_TABLE_ENTRIES * 4 + 4096))
    footer = _footer(src, src.size - SECTOR) or _footer(src, 0)
    if footer is None or footer.disk_type not in (DYNAMIC, DIFFERENCING):
        return []
    sparse = src.read_some(footer.data_offset, 1024)
    if len(sparse) < 1024:
        return ["the dynamic disk header is missing"]
    table_at, _version, entries, block_size = struct.unpack_from(">QIII", sparse, 16)
    if _table_problems(src, sparse, footer):
        return ["the block table is damaged"]
    step = block_size + -(-block_size // SECTOR // 8 // SECTOR) * SECTOR
    starts: list[int] = []
    for done in range(0, entries, 1 << 16):
        count = min(1 << 16, entries - done)
        table = src.read_some(table_at + done * 4, count * 4)
        starts += [s for (s,) in struct.iter_unpack(">I", table) if s != _UNUSED_BLOCK]
    starts.sort()
    problems = []
    if starts and (starts[-1] * SECTOR + step > src.size - SECTOR):
        problems.append("a block lies past the end of the file: it is cut short")
    if starts and starts[0] * SECTOR < SECTOR + 1024:
        problems.append("a block lies inside the header")
    if any((after - before) * SECTOR < step for before, after in itertools.pairwise(starts)):
        problems.append("two blocks share the same bytes")
    return problems


def _footer(src: Source, at: int) -> _Footer | None:
    data = src.read_some(at, SECTOR)
    if len(data) < SECTOR or data[:8] != COOKIE or not _sums_up(data, 64):
        return None
    data_offset, timestamp = struct.unpack_from(">QI", data, 16)
    (size,) = struct.unpack_from(">Q", data, 48)
    (disk_type,) = struct.unpack_from(">I", data, 60)
    return _Footer(data_offset, timestamp, size, disk_type, uuid.UUID(bytes=data[68:84]))


def _sums_up(data: bytes, at: int) -> bool:
    return bool(struct.unpack_from(">I", data, at)[0] == checksum(data, at))


def _table_problems(src: Source, sparse: bytes, footer: _Footer) -> list[str]:
    table_at, _version, entries, block_size = struct.unpack_from(">QIII", sparse, 16)
    if block_size < SECTOR or block_size & (block_size - 1):
        return [f"block size {block_size} is impossible"]
    if entries > _MAX_TABLE_ENTRIES or entries < -(-footer.size // block_size):
        return [f"a block table of {entries} entries does not fit the virtual size"]
    if table_at + entries * 4 > src.size:
        return ["the file is cut short: its block table lies past its end"]
    return []


def _locators(src: Source, sparse: bytes, problems: list[str]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for at in range(576, 768, 24):
        code, _space, length, _reserved, offset = struct.unpack_from(">4sIIIQ", sparse, at)
        if code == b"\0\0\0\0":
            continue
        platform = text_of(code, "latin-1")
        encoding = _LOCATOR_ENCODINGS.get(platform)
        if encoding is None:
            continue
        data = src.read_some(offset, min(length, _MAX_LOCATOR))
        if length > _MAX_LOCATOR or len(data) < length:
            problems.append(f"the parent locator {platform} lies outside the file or is too long")
        elif text := text_of(data, encoding):
            found.append((platform, text))
    if name := text_of(sparse[64:576], "utf-16-be"):
        found.append(("name", name))
    return tuple(found)


def _preferred(locators: tuple[tuple[str, str], ...], problems: list[str]) -> str:
    """The link to follow: relative ones first. "" when there is none, so it never reads as complete."""
    ranked = sorted(locators, key=lambda found: _LOCATOR_PREFERENCE.index(found[0]))
    if not ranked:
        problems.append("a differencing VHD that does not name its parent")
        return ""
    link = ranked[0][1]
    if base_name(link) is None:
        problems.append(f"the parent link {link!r} names no file beside the image")
    elif len({base_name(text) for _, text in ranked}) > 1:
        names = ", ".join(f"{code}={text!r}" for code, text in ranked)
        problems.append(f"the parent links disagree: {names}")
    return link
