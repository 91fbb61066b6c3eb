"""Writes dynamic and differencing VHDs and reads a chain back to raw content, to build and prove test images.

Independent of `stores.images` on purpose: reader and writer under test must not share their mistakes.
Layout from Microsoft's "Virtual Hard Disk Image Format Specification".
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from pathlib import Path

SECTOR = 512
DYNAMIC, DIFFERENCING = 3, 4
UNUSED = 0xFFFFFFFF


def write_vhd(
    path: Path,
    size: int,
    writes: Iterable[tuple[int, bytes]],
    *,
    parent: Path | None = None,
    unique_id: uuid.UUID | None = None,
    block_size: int = 2 << 20,
    timestamp: int = 800_000_000,
    parent_unique_id: uuid.UUID | None = None,
    parent_link: str | None = None,
) -> None:
    """A VHD of `size` bytes holding `writes` (byte offset, data), both in whole sectors.

    With `parent` it is a differencing disk whose other sectors are the parent's. `parent_unique_id`
    and `parent_link` replace what is taken from the parent, to make broken chains.
    """
    assert size % SECTOR == 0
    blocks = _blocks(size, block_size, writes)
    entries = -(-size // block_size)
    table_at = SECTOR + 1024
    table_size = _round(entries * 4)
    links = _locators(parent_link or parent.name) if parent else []
    links_at = table_at + table_size
    data_at = links_at + sum(_round(len(data)) for _, data in links)
    footer = _footer(size, DIFFERENCING if parent else DYNAMIC, unique_id or uuid.uuid4(), timestamp)
    header = bytearray(1024)
    struct.pack_into(">8sQQIII", header, 0, b"cxsparse", 2**64 - 1, table_at, 0x00010000, entries, block_size)
    if parent:
        parent_id = parent_unique_id or uuid.UUID(bytes=parent.read_bytes()[68:84])
        header[40:56] = parent_id.bytes
        struct.pack_into(">I", header, 56, timestamp)
        header[64:576] = (parent_link or parent.name).encode("utf-16-be").ljust(512, b"\0")
        at = links_at
        for number, (code, data) in enumerate(links):
            place = 576 + number * 24
            struct.pack_into(">4sIIIQ", header, place, code, _round(len(data)), len(data), 0, at)
            at += _round(len(data))
    struct.pack_into(">I", header, 36, checksum(header))
    table = [UNUSED] * (table_size // 4)
    at = data_at
    for number in sorted(blocks):
        table[number] = at // SECTOR
        at += len(blocks[number][0]) + block_size
    with path.open("wb") as out:
        out.write(footer + header + struct.pack(f">{len(table)}I", *table))
        for _, data in links:
            out.write(data.ljust(_round(len(data)), b"\0"))
        assert out.tell() == data_at
        for number in sorted(blocks):
            bitmap, content = blocks[number]
            out.write(bitmap + content)
        out.write(footer)


def write_fixed(path: Path, content: bytes, *, unique_id: uuid.UUID | None = None) -> None:
    """A fixed VHD: the content and a footer."""
    footer = _footer(len(content), 2, unique_id or uuid.uuid4(), 800_000_000)
    path.write_bytes(content + footer)


def read_chain(path: Path) -> bytes:
    """The raw content of a VHD with its parents, each found by its relative W2ru link beside the child."""
    chain = [path]
    while link := _parent_link(chain[-1]):
        chain.append(chain[-1].parent / link)
    size = struct.unpack_from(">Q", path.read_bytes(), 48)[0]
    content = bytearray(size)
    for image in reversed(chain):
        data = image.read_bytes()
        table_at, _version, entries, block_size = struct.unpack_from(">QIII", data, SECTOR + 16)
        for number, start in enumerate(struct.unpack_from(f">{entries}I", data, table_at)):
            if start == UNUSED:
                continue
            bitmap_at, data_at = start * SECTOR, start * SECTOR + _bitmap_size(block_size)
            for sector in range(min(block_size, size - number * block_size) // SECTOR):
                if data[bitmap_at + sector // 8] & (0x80 >> sector % 8):
                    to, at = number * block_size + sector * SECTOR, data_at + sector * SECTOR
                    content[to : to + SECTOR] = data[at : at + SECTOR]
    return bytes(content)


def checksum(data: bytes | bytearray) -> int:
    """One's complement of the sum of all bytes, the checksum field still being zero."""
    return ~sum(data) & 0xFFFFFFFF


def _parent_link(path: Path) -> str | None:
    data = path.read_bytes()
    if struct.unpack_from(">I", data, 60)[0] != DIFFERENCING:
        return None
    for number in range(8):
        code, _space, length, _, at = struct.unpack_from(">4sIIIQ", data, SECTOR + 576 + number * 24)
        if code == b"W2ru":
            return data[at : at + length].decode("utf-16-le").removeprefix(".\\")
    raise AssertionError(f"{path} names no parent")


def _blocks(size: int, block_size: int, writes: Iterable[tuple[int, bytes]]) -> dict[int, tuple[bytearray, bytearray]]:
    """Bitmap and data of each block that a write touches."""
    blocks: dict[int, tuple[bytearray, bytearray]] = {}
    for offset, data in writes:
        assert offset % SECTOR == 0
        assert len(data) % SECTOR == 0
        assert offset + len(data) <= size
        done = 0
        while done < len(data):
            number, inside = divmod(offset + done, block_size)
            part = data[done : done + block_size - inside]
            bitmap, content = blocks.setdefault(number, (bytearray(_bitmap_size(block_size)), bytearray(block_size)))
            content[inside : inside + len(part)] = part
            for sector in range(inside // SECTOR, (inside + len(part)) // SECTOR):
                bitmap[sector // 8] |= 0x80 >> sector % 8
            done += len(part)
    return blocks


def _footer(size: int, disk_type: int, unique_id: uuid.UUID, timestamp: int) -> bytes:
    footer = bytearray(SECTOR)
    data_offset = 2**64 - 1 if disk_type == 2 else SECTOR
    # "tap" is what XenServer signs with; qemu then takes the size from the footer, not from the geometry
    struct.pack_into(
        ">8sIIQI4sI4s", footer, 0, b"conectix", 2, 0x00010000, data_offset, timestamp, b"tap\0", 0x00010003, b"\0\0\0\0"
    )
    struct.pack_into(">QQ", footer, 40, size, size)
    cylinders = min(65535, size // SECTOR // (16 * 63))
    struct.pack_into(">HBBI", footer, 56, cylinders, 16, 63, disk_type)
    footer[68:84] = unique_id.bytes
    struct.pack_into(">I", footer, 64, checksum(footer))
    return bytes(footer)


def _locators(link: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"MacX", f"file://./{link}".encode()),
        (b"W2ku", link.encode("utf-16-le")),
        (b"W2ru", f".\\{link}".encode("utf-16-le")),
    ]


def _bitmap_size(block_size: int) -> int:
    return _round(-(-block_size // SECTOR // 8))


def _round(length: int) -> int:
    return -(-length // SECTOR) * SECTOR
