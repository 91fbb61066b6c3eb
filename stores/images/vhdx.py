"""Reads VHDX headers: size and, because chains of VHDX are not supported, whether there is a parent.

Layout from Microsoft's [MS-VHDX]; numbers are little-endian.
"""

from __future__ import annotations

import struct
import uuid

from stores.images.header import ImageHeader, Source, base_name, text_of

MAGIC = b"vhdxfile"
_REGION_TABLES = (192 * 1024, 256 * 1024)
_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_VIRTUAL_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_MAX_ENTRIES = 2047
_MAX_LOCATORS = 64
_LEAVE_ALLOCATED, _HAS_PARENT = 1, 2
_LINK_KEYS = ("relative_path", "absolute_win32_path", "volume_path")


def parse(src: Source) -> ImageHeader:
    """Header of a file that begins with the VHDX signature."""
    problems: list[str] = []
    metadata = _metadata(src)
    if metadata is None:
        problem = "the region table or the metadata of the VHDX is missing or damaged"
        return ImageHeader("vhdx", None, problems=(problem,))
    size = flags = None
    if at := metadata.get(_VIRTUAL_SIZE):
        (size,) = src.unpack("<Q", at)
    if at := metadata.get(_FILE_PARAMETERS):
        (flags,) = src.unpack("<4xI", at)
    if size is None or flags is None:
        problems.append("the metadata of the VHDX lacks its size or its parameters")
    if not (flags or 0) & _HAS_PARENT:
        kind = "fixed" if (flags or 0) & _LEAVE_ALLOCATED else "dynamic"
        return ImageHeader("vhdx", size, kind=kind, problems=tuple(problems))
    locators = _locators(src, metadata.get(_PARENT_LOCATOR))
    texts = dict(locators)
    backing = next((texts[key] for key in _LINK_KEYS if key in texts), "")
    problems.append("differencing VHDX files are not supported: merge the chain first")
    return ImageHeader(
        "vhdx",
        size,
        kind="differencing",
        backing=backing,
        backing_name=base_name(backing),
        parent_unique_id=texts.get("parent_linkage", "").strip("{}").lower() or None,
        locators=locators,
        problems=tuple(problems),
    )


def _metadata(src: Source) -> dict[uuid.UUID, int] | None:
    """Offset in the file of each metadata item."""
    for table_at in _REGION_TABLES:
        if src.read_some(table_at, 4) != b"regi":
            continue
        (count,) = src.unpack("<I", table_at + 8)
        for number in range(min(count, _MAX_ENTRIES)):
            region, offset, _length = src.unpack("<16sQI", table_at + 16 + number * 32)
            if uuid.UUID(bytes_le=region) == _METADATA_REGION:
                if src.read_some(offset, 8) == b"metadata":
                    return _items(src, offset)
                break
    return None


def _items(src: Source, region_at: int) -> dict[uuid.UUID, int]:
    (count,) = src.unpack("<H", region_at + 10)
    items = {}
    for number in range(min(count, _MAX_ENTRIES)):
        item, offset = src.unpack("<16sI", region_at + 32 + number * 32)
        items[uuid.UUID(bytes_le=item)] = region_at + offset
    return items


def _locators(src: Source, at: int | None) -> tuple[tuple[str, str], ...]:
    if at is None:
        return ()
    found = []
    (count,) = src.unpack("<H", at + 18)
    for number in range(min(count, _MAX_LOCATORS)):
        entry = src.read(at + 20 + number * 12, 12)
        key_at, value_at, key_size, value_size = struct.unpack("<IIHH", entry)
        key = text_of(src.read_some(at + key_at, key_size), "utf-16-le")
        value = text_of(src.read_some(at + value_at, value_size), "utf-16-le")
        found.append((key, value))
    return tuple(found)
