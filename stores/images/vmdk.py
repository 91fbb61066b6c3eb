"""Reads VMDK files: sparse extents with their embedded descriptor, and plain text descriptors.

Layout from VMware's "Virtual Disk Format 5.0"; numbers are little-endian.
"""

from __future__ import annotations

import re
import struct

from stores.images.header import ImageHeader, Source, base_name, is_plain_name, text_of

MAGIC = b"KDMV"
OLD_MAGIC = b"COWD"
TEXT = b"# Disk DescriptorFile"
_SECTOR = 512
_MAX_DESCRIPTOR = 64 * 1024
_MAX_EXTENTS = 1024
_MAX_GRAIN_TABLE = 64 * 1024
_MAX_GRAIN_DIRECTORY = 1024 * 1024
_DIRECTORY_AT_END = 2**64 - 1
_NO_PARENT = "ffffffff"
_EXTENT = re.compile(r"^\s*(RW|RDONLY|NOACCESS)\s+(\d{1,19})\s+([A-Z0-9]+)(?:\s+\"(.*?)\")?", re.IGNORECASE)


def parse_sparse(src: Source) -> ImageHeader:
    """Header of a hosted sparse extent (`KDMV`), stream-optimised ones included."""
    _version, _flags, capacity, grain, text_at, text_size = src.unpack("<IIQQQQ", 4)
    problems: list[str] = []
    if grain < 1 or grain & (grain - 1):
        problems.append(f"grain size of {grain} sectors is impossible")
    elif _is_cut(src, capacity, grain):
        problems.append("the file is cut short: its last grains lie past its end")
    if text_size * _SECTOR > _MAX_DESCRIPTOR:
        problems.append("the descriptor is longer than any real one: only its beginning is read")
    data = src.read_some(text_at * _SECTOR, min(text_size * _SECTOR, _MAX_DESCRIPTOR))
    if text_at and text_size and not data:
        problems.append("the file is cut short: its descriptor lies past its end")
    elif not text_at or not data.strip(b"\0"):
        problems.append("an extent without its own descriptor: the disk is described elsewhere")
        return ImageHeader("vmdk", capacity * _SECTOR, kind="extent", problems=tuple(problems))
    # with a capacity of 0 readers (qemu too) take the data from the extents the text names
    return _described(data, capacity * _SECTOR if capacity else None, problems)


def _is_cut(src: Source, capacity: int, grain: int) -> bool:
    """Whether data lies past the end, as far as the last grain table tells.

    That is exact for disks written from start to end (exports, stream-optimised ones); for others it
    is a sample, and only `qemu_img_check` is exact.
    """
    per_table, _backup_at, directory_at = src.unpack("<IQQ", 44)
    if directory_at == _DIRECTORY_AT_END:
        # streamed by VMware: the directory's place is in a footer, the last but one sector
        return src.read_some(src.size - 2 * _SECTOR, 4) != MAGIC
    if not 0 < per_table <= _MAX_GRAIN_TABLE:
        return False
    tables = -(-capacity // (grain * per_table))
    if tables == 0 or tables > _MAX_GRAIN_DIRECTORY:
        return False
    directory = src.read_some(directory_at * _SECTOR, tables * 4)
    if len(directory) < tables * 4:
        return True
    used = [entry for (entry,) in struct.iter_unpack("<I", directory) if entry]
    if not used:
        return False
    table = src.read_some(used[-1] * _SECTOR, per_table * 4)
    grains: list[int] = [entry for (entry,) in struct.iter_unpack("<I", table[: len(table) // 4 * 4])]
    return len(table) < per_table * 4 or max(grains) * _SECTOR >= src.size


def parse_old(src: Source) -> ImageHeader:
    """Header of an ESX `COWD` extent; its descriptor is another file."""
    (sectors,) = src.unpack("<I", 12)
    problem = "an ESX COWD extent, whose descriptor is another file: it cannot stand alone"
    return ImageHeader("vmdk", sectors * _SECTOR, kind="extent", problems=(problem,))


def parse_text(src: Source) -> ImageHeader:
    """A descriptor in a file of its own; the data is in the extents it names."""
    if src.size > _MAX_DESCRIPTOR:
        problem = f"a VMDK descriptor of {src.size} bytes is longer than any real one"
        return ImageHeader("vmdk", None, problems=(problem,))
    return _described(src.read_some(0, _MAX_DESCRIPTOR), None, [])


def _described(data: bytes, capacity: int | None, problems: list[str]) -> ImageHeader:
    """`capacity` None means that the data is in the extents, not in the file itself."""
    values, extents, sectors = _read_text(data, problems)
    external = tuple(extents) if capacity is None else ()
    problems += [f"the extent {name!r} is not a file beside the descriptor" for name in external if not is_plain_name(name)]
    backing = values.get("parentfilenamehint") or None
    parent: str | None = values.get("parentcid", _NO_PARENT).lower()
    if parent == _NO_PARENT and backing is None:
        parent = None
    else:
        backing = backing or ""
        if base_name(backing) is None:
            problems.append(f"the parent link {backing!r} names no file beside the image")
    if not values:
        problems.append("the descriptor is empty or damaged")
    return ImageHeader(
        "vmdk",
        sectors * _SECTOR if capacity is None else capacity,
        kind=values.get("createtype", ""),
        backing=backing,
        backing_name=base_name(backing) if backing else None,
        unique_id=values.get("cid", "").lower() or None,
        parent_unique_id=parent,
        external_data=external,
        problems=tuple(problems),
    )


def _read_text(data: bytes, problems: list[str]) -> tuple[dict[str, str], list[str], int]:
    """Assignments (keys in lower case), names of extents and their sectors altogether."""
    values: dict[str, str] = {}
    extents: list[str] = []
    sectors = 0
    for line in text_of(data).splitlines():
        if match := _EXTENT.match(line):
            if len(extents) == _MAX_EXTENTS:
                problems.append(f"more than {_MAX_EXTENTS} extents")
                break
            sectors += int(match[2])
            if match[4]:
                extents.append(match[4])
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key.strip().lower(), value.strip().strip('"'))
    return values, extents, sectors
