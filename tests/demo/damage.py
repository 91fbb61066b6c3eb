"""Breaks a built region in the ways real exports are broken, to show that a scan and a preflight notice."""

from __future__ import annotations

import os
from pathlib import Path

from tests.demo.build import BuiltItem, BuiltRegion


def truncate_header(region: BuiltRegion, item: BuiltItem, size: int = 40) -> Path:
    """Cuts the item's image inside its header."""
    path = region.image(item)
    os.truncate(path, size)
    return path


def cut_tail(region: BuiltRegion, item: BuiltItem) -> Path:
    """Takes the last quarter of the item's image away."""
    path = region.image(item)
    os.truncate(path, path.stat().st_size * 3 // 4)
    return path


def remove_parent(region: BuiltRegion, item: BuiltItem) -> Path:
    """Deletes the file that the item was written over."""
    assert item.parent
    path = region.image(region.item(item.zone, item.parent))
    path.unlink()
    return path


def swap_parent(region: BuiltRegion, item: BuiltItem) -> Path:
    """Puts another disk of the same volume's size under the parent's name: the link resolves, the content is wrong.

    For VHD chains, whose links carry the parent's unique id; a qcow2 link does not.
    """
    assert item.parent
    path = region.image(region.item(item.zone, item.parent))
    data = bytearray(path.read_bytes())
    # another unique id in both footers, checksums kept right
    for at in (0, len(data) - 512):
        data[at + 68 : at + 84] = bytes(15) + b"\x01"
        data[at + 64 : at + 68] = bytes(4)
        data[at + 64 : at + 68] = (~sum(data[at : at + 512]) & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def corrupt_properties(region: BuiltRegion, item: BuiltItem, *, keep: tuple[str, ...] = ("filename", "uniquename")) -> Path:
    """Leaves a template.properties that lists its format without a size: corrupt by CloudStack's rule."""
    path = region.image(item).parent / "template.properties"
    lines = [line for line in path.read_text().splitlines() if line.split("=")[0] in keep or line.endswith("=true")]
    path.write_text("\n".join(lines) + "\n")
    return path


def point_properties_outside(region: BuiltRegion, item: BuiltItem, name: str = "../../../../../etc/passwd") -> Path:
    """Makes template.properties name a file outside its folder."""
    image = region.image(item)
    path = image.parent / "template.properties"
    path.write_text(path.read_text().replace(image.name, name))
    return path


def remove_properties(region: BuiltRegion, item: BuiltItem) -> Path:
    path = region.image(item).parent / "template.properties"
    path.unlink()
    return path


def change_content(region: BuiltRegion, item: BuiltItem) -> Path:
    """Changes one byte in the middle; size stays, the modification time moves on."""
    path = region.image(item)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    return path


def escaping_symlink(region: BuiltRegion, zone: str = "zone1", target: str = "/etc/passwd") -> Path:
    """A snapshot that is a symbolic link out of the export."""
    path = region.zones[zone] / "snapshots" / "9" / "91" / "0f0e0d0c-0000-4000-8000-000000000091"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def escaping_folder(region: BuiltRegion, outside: Path, zone: str = "zone1") -> Path:
    """A volume's snapshot folder that is a symbolic link to a folder outside the export."""
    path = region.zones[zone] / "snapshots" / "9" / "92"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside, target_is_directory=True)
    return path


def fifo(region: BuiltRegion, zone: str = "zone1") -> Path:
    """A named pipe where a snapshot should be: opening it carelessly waits for ever."""
    path = region.zones[zone] / "snapshots" / "9" / "93" / "0f0e0d0c-0000-4000-8000-000000000093"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def non_utf8_name(region: BuiltRegion, zone: str = "zone1") -> Path:
    """A snapshot whose name is no UTF-8 (as from a Latin-1 system)."""
    path = region.zones[zone] / "snapshots" / "9" / "94" / os.fsdecode(b"snap-\xe9t\xe9")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content of a snapshot with a strange name")
    return path


def make_unreadable(region: BuiltRegion, item: BuiltItem) -> Path:
    """Takes all rights from the image. Root still reads it: run the reader as another user to be refused."""
    path = region.image(item)
    path.chmod(0)
    return path
