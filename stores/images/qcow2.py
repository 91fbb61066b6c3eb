"""Reads qcow and qcow2 headers: size, backing link and what makes an image depend on other files.

Layout from QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct

from stores.images.header import ImageHeader, Source, base_name, text_of

MAGIC = b"QFI\xfb"
_MAX_LINK = 1023
_END, _BACKING_FORMAT, _DATA_FILE = 0, 0xE2792ACA, 0x44415441
_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION | _EXTENDED_L2
_MAX_EXTENSIONS = 64
_MAX_REFCOUNT_TABLE = 2 << 20
_MAX_REFCOUNT_ORDER = 6


def parse(src: Source) -> ImageHeader:
    """Header of a file that begins with the qcow magic, of any version."""
    (version,) = src.unpack(">I", 4)
    if version == 1:
        return _version_1(src)
    problems: list[str] = []
    fields = src.unpack(">QIIQIIQQII", 8)
    link_at, link_size, cluster_bits, size, crypt, l1_size, l1_at, refs_at, refs_size, _ = fields
    if version not in (2, 3):
        problem = f"qcow2 version {version} is unknown: only versions 2 and 3 can be read"
        return ImageHeader("qcow2", None, problems=(problem,))
    if not 9 <= cluster_bits <= 21:
        problem = f"cluster size of 2^{cluster_bits} bytes is outside what qcow2 allows"
        return ImageHeader("qcow2", size, encrypted=crypt != 0, problems=(problem,))
    cluster = 1 << cluster_bits
    features, order, header_size = 0, 4, 72
    if version == 3:
        features, _compatible, _autoclear, order, header_size = src.unpack(">QQQII", 72)
        if header_size < 104 or header_size > cluster or header_size % 8:
            problems.append(f"header length {header_size} is impossible")
            header_size = 104
    problems += _feature_problems(features)
    l2_entries = cluster // (16 if features & _EXTENDED_L2 else 8)
    if l1_size < -(-size // (cluster * l2_entries)):
        problems.append("the L1 table is too short for the virtual size")
    tables = (("L1 table", l1_at, l1_size * 8), ("refcount table", refs_at, refs_size * cluster))
    problems += [text for table in tables if (text := _table_problem(src, cluster, *table))]
    if not problems and not features & _DIRTY and _is_cut(src, cluster, order, refs_at, refs_size * cluster):
        problems.append("the file is cut short: its last clusters lie past its end")
    backing, link_problem = _backing_link(src, link_at, link_size, cluster)
    problems += link_problem
    extensions_end = link_at if header_size < link_at < cluster else cluster
    extensions = _extensions(src, header_size, extensions_end, problems)
    external: tuple[str, ...] = ()
    if features & _EXTERNAL_DATA or _DATA_FILE in extensions:
        external = (text_of(extensions.get(_DATA_FILE, b"")),)
        problems.append(
            f"its data is in another file ({external[0]!r}): such images are not moved; convert it to a plain qcow2 first"
        )
    backing_format = extensions.get(_BACKING_FORMAT)
    return ImageHeader(
        "qcow2",
        size,
        backing=backing,
        backing_name=base_name(backing) if backing else None,
        backing_format=text_of(backing_format) if backing_format else None,
        encrypted=crypt != 0,
        external_data=external,
        problems=tuple(problems),
    )


def _version_1(src: Source) -> ImageHeader:
    link_at, link_size, _mtime, size, _bits, _l2, _pad, crypt = src.unpack(">QIIQBBHI", 8)
    backing, problems = _backing_link(src, link_at, link_size, src.size)
    problems.append("qcow version 1 is not supported: convert it to qcow2")
    return ImageHeader(
        "qcow",
        size,
        backing=backing,
        backing_name=base_name(backing) if backing else None,
        encrypted=crypt != 0,
        problems=tuple(problems),
    )


def _table_problem(src: Source, cluster: int, name: str, offset: int, length: int) -> str | None:
    if offset % cluster or (length and offset == 0):
        return f"the {name} is at an impossible offset"
    if offset + length > src.size:
        return f"the file is cut short: its {name} lies past its end"
    return None


def _is_cut(src: Source, cluster: int, order: int, table_at: int, table_size: int) -> bool:
    """Whether the highest cluster that has a reference count begins past the end of the file.

    Two reads: the refcount table and the last block it names. The last cluster may be partly written.
    """
    if table_size > _MAX_REFCOUNT_TABLE or order > _MAX_REFCOUNT_ORDER:
        return False
    table = src.read_some(table_at, table_size)
    number = (len(table.rstrip(b"\0")) + 7) // 8 - 1
    if number < 0:
        return False
    (block_at,) = struct.unpack_from(">Q", table, number * 8)
    if block_at >= src.size:
        return True
    used = len(src.read_some(block_at, cluster).rstrip(b"\0"))
    counts_per_block = cluster * 8 >> order
    last = number * counts_per_block + ((used - 1) * 8 >> order)
    return used > 0 and last * cluster >= src.size


def _feature_problems(features: int) -> list[str]:
    problems = []
    if features & _CORRUPT:
        problems.append("the image is marked corrupt: repair it with qemu-img check -r")
    if features & ~_KNOWN:
        problems.append(f"unknown incompatible features {features & ~_KNOWN:#x}: cannot be read")
    return problems


def _backing_link(src: Source, at: int, size: int, limit: int) -> tuple[str | None, list[str]]:
    """The backing link; an impossible one gives "" so that the image is never taken as complete."""
    if at == 0:
        return None, []
    if not 0 < size <= _MAX_LINK or at + size > min(limit, src.size):
        return "", ["the backing file name lies outside the header: the parent is unknown"]
    text = text_of(src.read(at, size))
    if base_name(text) is None:
        return text, [f"the backing link {text!r} names no file beside the image"]
    return text, []


def _extensions(src: Source, at: int, end: int, problems: list[str]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for _ in range(_MAX_EXTENSIONS):
        if at + 8 > end:
            return found
        head = src.read_some(at, 8)
        if len(head) < 8:
            return found
        kind, length = struct.unpack(">II", head)
        if kind == _END:
            return found
        if length > end - at - 8:
            problems.append("a header extension reaches outside the header")
            return found
        if kind in (_BACKING_FORMAT, _DATA_FILE):
            found[kind] = src.read_some(at + 8, min(length, 4096))
        at += 8 + (length + 7) // 8 * 8
    problems.append("the header has too many extensions")
    return found
