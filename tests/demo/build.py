"""Builds a small cloud's secondary storage: two NFS exports in CloudStack's layout, filled with real images.

What was built is listed from the disk, with its hashes, by code that shares nothing with the product.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import struct
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.demo.vhd import write_vhd

Scale = Literal["tiny", "demo"]
Kind = Literal["template", "iso", "snapshot", "volume"]
VERSION = 1
STAMP, UNFINISHED = "region.json", "region.unfinished"
UNIT = {"tiny": 16 << 10, "demo": 1 << 20}
"""bytes that one unit of content has; all sizes below are in units"""

TEMPLATE_IN_BOTH_ZONES = "201"
_MOUNT = "/mnt/SecStorage/6b7f5d58-0a3e-3ad0-93c5-1a4bb0d9f7c3"


@dataclass(frozen=True)
class BuiltFile:
    path: str
    """relative to its zone's export, / between parts"""
    size: int
    sha256: str


@dataclass(frozen=True)
class BuiltItem:
    zone: str
    kind: Kind
    format: str
    account_id: int
    upstream_id: str
    """template or volume id; of a snapshot `<volume id>/<file name>`"""
    files: tuple[BuiltFile, ...]
    name: str
    """unique name of a template or ISO; else the name of the file or directory"""
    volume_id: int | None = None
    """snapshots only"""
    parent: str | None = None
    """upstream id of the snapshot that this one needs, in the same directory"""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class BuiltRegion:
    root: Path
    items: tuple[BuiltItem, ...]
    skipped: tuple[str, ...]
    """paths, zone first, that a scan passes over by its named rules"""
    foreign: tuple[str, ...]
    """paths, zone first, that a scan must list by name because it cannot know them"""

    @property
    def zones(self) -> dict[str, Path]:
        """zone name -> root of its export"""
        return {name: self.root / name for name in ("zone1", "zone2")}

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    def of(self, zone: str, kind: str | None = None) -> list[BuiltItem]:
        return [item for item in self.items if item.zone == zone and kind in (None, item.kind)]

    def item(self, zone: str, upstream_id: str) -> BuiltItem:
        (found,) = [item for item in self.items if (item.zone, item.upstream_id) == (zone, upstream_id)]
        return found

    def chain(self, zone: str, volume_id: int) -> list[BuiltItem]:
        """Snapshots of one volume, parents before their children."""
        return [item for item in self.of(zone, "snapshot") if item.volume_id == volume_id]

    def image(self, item: BuiltItem) -> Path:
        """The item's largest file: the image itself."""
        return self.zones[item.zone] / max(item.files, key=lambda file: file.size).path


def build_region(root: Path, *, seed: int = 1, scale: Scale) -> BuiltRegion:
    """The region below `root` (`zone1/`, `zone2/`), built now or reused when an earlier build is still intact.

    `root/region.json` lists all items and their hashes for programs that import nothing of ours.
    Refuses (`FileExistsError`) a root that holds zones which this function did not build.
    """
    wanted = {"version": VERSION, "seed": seed, "scale": scale}
    stamp, unfinished = root / STAMP, root / UNFINISHED
    if stamp.exists():
        told = json.loads(stamp.read_text())
        region = _region_of(root, told)
        if told["made"] == wanted and _intact(region):
            return region
    elif not unfinished.exists() and any((root / zone).exists() for zone in ("zone1", "zone2")):
        raise FileExistsError(f"{root} holds zones that were not built here: choose an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    stamp.unlink(missing_ok=True)
    for zone in ("zone1", "zone2"):
        shutil.rmtree(root / zone, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=root) as scratch:
        builder = _Builder(root, Path(scratch), random.Random(seed), scale)
        builder.build()
    region = BuiltRegion(root, tuple(builder.items), tuple(builder.skipped), tuple(builder.foreign))
    told = {"made": wanted, "skipped": region.skipped, "foreign": region.foreign, "items": [asdict(i) for i in region.items]}
    stamp.write_text(json.dumps(told, indent=1))
    unfinished.unlink()
    return region


def copy_region(region: BuiltRegion, root: Path) -> BuiltRegion:
    """The same region in another, empty folder, to be damaged or drained without touching the first."""
    root.mkdir(parents=True, exist_ok=True)
    for zone, path in region.zones.items():
        subprocess.run(["cp", "-a", "--sparse=always", str(path), str(root / zone)], check=True)
    shutil.copy(region.root / STAMP, root / STAMP)
    return replace(region, root=root)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _region_of(root: Path, told: dict[str, Any]) -> BuiltRegion:
    items = [BuiltItem(**{**item, "files": tuple(BuiltFile(**file) for file in item["files"])}) for item in told["items"]]
    return BuiltRegion(root, tuple(items), tuple(told["skipped"]), tuple(told["foreign"]))


def _intact(region: BuiltRegion) -> bool:
    try:
        return all(
            (path := region.zones[item.zone] / file.path).stat().st_size == file.size and hash_file(path) == file.sha256
            for item in region.items
            for file in item.files
        )
    except OSError:
        return False


class _Builder:
    def __init__(self, root: Path, scratch: Path, rng: random.Random, scale: Scale) -> None:
        self.root, self.scratch, self.rng, self.unit = root, scratch, rng, UNIT[scale]
        self.tiny = scale == "tiny"
        self.qcow2_options = "cluster_size=4k" if self.tiny else "cluster_size=64k"
        self.items: list[BuiltItem] = []
        self.skipped: list[str] = []
        self.foreign: list[str] = []

    def build(self) -> None:
        self.system_template()
        self.kvm_template()
        self.vhd_template()
        self.raw_template()
        self.iso()
        self.ova()
        self.volumes()
        self.kvm_chain("zone1", account=2, volume=11, depth=6, base=12)
        self.kvm_chain("zone2", account=5, volume=51, depth=5, base=8, mounted_at=_MOUNT)
        self.kvm_full("zone1", account=2, volume=12)
        self.xen_chain("zone1", account=3, volume=21, depth=4)
        self.vmware("zone1", account=4, volume=31)
        self.what_is_no_item()

    # --- content --------------------------------------------------------------------------------

    def content(self, units: float) -> Iterator[tuple[int, bytes]]:
        """Pieces (offset, data) of a disk twice as large: mostly incompressible, some text, holes between."""
        piece = max(self.unit, 16 << 10)
        for number in range(max(1, round(units * self.unit / piece))):
            data = bytearray(self.rng.randbytes(piece))
            text = b"Nov 21 01:15:27 host kernel: clocksource: Switched to clocksource\n" * (piece // 1024)
            data[: len(text)] = text
            yield number * piece * 2, bytes(data)

    def raw(self, path: Path, units: float) -> Path:
        """A sparse raw disk with content in every second piece."""
        with path.open("wb") as file:
            end = 0
            for offset, data in self.content(units):
                file.seek(offset)
                file.write(data)
                end = offset + 2 * len(data)
            file.truncate(end)
        return path

    def converted(self, path: Path, fmt: str, units: float, *options: str) -> None:
        source = self.raw(self.scratch / "disk.raw", units)
        arguments = [part for option in options for part in ("-o", option)]
        _run("qemu-img", "convert", "-f", "raw", "-O", fmt, *arguments, source, path)

    def new_id(self) -> str:
        return str(uuid.UUID(bytes=self.rng.randbytes(16), version=4))

    # --- templates and ISOs ---------------------------------------------------------------------

    def template_folder(self, zone: str, account: int, number: int) -> Path:
        folder = self.root / zone / "template" / "tmpl" / str(account) / str(number)
        folder.mkdir(parents=True)
        return folder

    def add_template(
        self, path: Path, unique_name: str, virtual_size: int, description: str, kind: Kind = "template"
    ) -> BuiltItem:
        """Writes template.properties as CloudStack's storage VM does and notes the item."""
        account, number = int(path.parts[-3]), int(path.parts[-2])
        fmt, size = path.suffix[1:], path.stat().st_size
        values = {
            "filename": path.name,
            "description": description,
            "checksum": hashlib.md5(path.read_bytes()).hexdigest(),
            "hvm": "true",
            "size": size,
            "id": number,
            "public": str(account == 1).lower(),
            fmt: "true",
            "uniquename": unique_name,
            f"{fmt}.virtualsize": virtual_size,
            "virtualsize": virtual_size,
            f"{fmt}.size": size,
            f"{fmt}.filename": path.name,
        }
        lines = ["#Sat Nov 14 09:12:44 UTC 2026", *(f"{key}={value}" for key, value in values.items())]
        (path.parent / "template.properties").write_text("\n".join(lines) + "\n")
        return self.add(path.parent, kind, fmt, account, str(number), unique_name)

    def system_template(self) -> None:
        """The system VM template, which each zone has its own copy of."""
        self.in_both_zones(1, 3, 12, "routing-3", "SystemVM Template (KVM)")

    def kvm_template(self) -> None:
        self.in_both_zones(2, int(TEMPLATE_IN_BOTH_ZONES), 24, f"{TEMPLATE_IN_BOTH_ZONES}-2-{self.new_id()}", "Debian 12 (KVM)")

    def in_both_zones(self, account: int, number: int, units: float, unique_name: str, description: str) -> None:
        first = self.template_folder("zone1", account, number) / f"{self.new_id()}.qcow2"
        self.converted(first, "qcow2", units, self.qcow2_options)
        second = self.template_folder("zone2", account, number) / first.name
        shutil.copy2(first, second)
        for path in (first, second):
            self.add_template(path, unique_name, _disk_size(path, "qcow2"), description)

    def vhd_template(self) -> None:
        path = self.template_folder("zone1", 3, 202) / f"{self.new_id()}.vhd"
        # a dynamic VHD's smallest block is 2 MiB: too much for tiny
        self.converted(path, "vpc", 14, "force_size=on", f"subformat={'fixed' if self.tiny else 'dynamic'}")
        self.add_template(path, f"202-3-{self.new_id()}", _disk_size(path, "vpc"), "CentOS 6 (XenServer)")

    def raw_template(self) -> None:
        path = self.raw(self.template_folder("zone1", 2, 203) / f"{self.new_id()}.raw", 7)
        self.add_template(path, f"203-2-{self.new_id()}", path.stat().st_size, "Oracle Linux (OVM)")

    def iso(self) -> None:
        tree = self.scratch / "iso"
        tree.mkdir()
        (tree / "install.img").write_bytes(b"".join(data for _, data in self.content(15)))
        (tree / "README").write_text("Installation medium of the demo region.\n")
        unique_name = f"204-2-{self.new_id()}"
        path = self.template_folder("zone1", 2, 204) / f"{unique_name}.iso"
        _run("xorriso", "-as", "mkisofs", "-quiet", "-no-pad", "-V", "DEMO", "-o", path, tree)
        self.add_template(path, unique_name, path.stat().st_size, "Installer ISO", kind="iso")

    def ova(self) -> None:
        path = self.template_folder("zone1", 4, 205) / f"{self.new_id()}.ova"
        disk, ovf = self.vmware_disk(self.scratch, "machine", 11)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(ovf, ovf.name)
            archive.add(disk, disk.name)
        self.add_template(path, f"205-4-{self.new_id()}", _disk_size(disk, "vmdk"), "Windows (VMware)")

    def vmware_disk(self, folder: Path, name: str, units: float) -> tuple[Path, Path]:
        disk, ovf = folder / f"{name}-disk1.vmdk", folder / f"{name}.ovf"
        self.converted(disk, "vmdk", units, "subformat=streamOptimized")
        ovf.write_text(
            '<?xml version="1.0" encoding="UTF-8"?>\n<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" '
            'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">\n'
            f'  <References><File ovf:href="{disk.name}" ovf:id="file1" ovf:size="{disk.stat().st_size}"/></References>\n'
            f'  <DiskSection><Disk ovf:capacity="{_disk_size(disk, "vmdk")}" ovf:capacityAllocationUnits="byte" '
            'ovf:diskId="vmdisk1" ovf:fileRef="file1"/></DiskSection>\n</Envelope>\n'
        )
        return disk, ovf

    # --- volumes --------------------------------------------------------------------------------

    def volumes(self) -> None:
        self.volume("zone1", 2, 301, "qcow2", "qcow2", 14, self.qcow2_options)
        self.volume("zone1", 3, 302, "vhd", "vpc", 8, "force_size=on", f"subformat={'fixed' if self.tiny else 'dynamic'}")
        self.volume("zone2", 5, 304, "qcow2", "qcow2", 12, self.qcow2_options)
        holes = self.volume_folder("zone1", 2, 303) / f"{self.new_id()}.raw"
        with holes.open("wb") as file:
            for offset, data in self.content(3):
                file.seek(offset * 4)
                file.write(data)
            file.truncate(24 * self.unit)
        self.add_volume(holes, 24 * self.unit)

    def volume_folder(self, zone: str, account: int, number: int) -> Path:
        folder = self.root / zone / "volumes" / str(account) / str(number)
        folder.mkdir(parents=True)
        return folder

    def volume(self, zone: str, account: int, number: int, suffix: str, fmt: str, units: float, *options: str) -> None:
        path = self.volume_folder(zone, account, number) / f"{self.new_id()}.{suffix}"
        self.converted(path, fmt, units, *options)
        self.add_volume(path, _disk_size(path, fmt))

    def add_volume(self, path: Path, virtual_size: int) -> None:
        account, number, fmt = int(path.parts[-3]), int(path.parts[-2]), path.suffix[1:]
        lines = [f"uniquename={number}-{path.stem}", f"filename={path.name}", f"size={path.stat().st_size}"]
        lines += [f"virtualsize={virtual_size}", f"{fmt}=true", f"id={number}"]
        (path.parent / "volume.properties").write_text("\n".join(lines) + "\n")
        self.add(path.parent, "volume", fmt, account, str(number), path.name)

    # --- snapshots ------------------------------------------------------------------------------

    def snapshot_folder(self, zone: str, account: int, volume: int) -> Path:
        folder = self.root / zone / "snapshots" / str(account) / str(volume)
        folder.mkdir(parents=True)
        return folder

    def kvm_chain(self, zone: str, *, account: int, volume: int, depth: int, base: int, mounted_at: str = "") -> None:
        """qcow2 files without suffix, each over the one before; `mounted_at`: linked by absolute path as on a storage VM."""
        folder = self.snapshot_folder(zone, account, volume)
        names = [self.new_id() for _ in range(depth)]
        self.converted(folder / names[0], "qcow2", base, self.qcow2_options)
        size = _disk_size(folder / names[0], "qcow2")
        piece = self.scratch / "piece"
        for above, name in itertools.pairwise(names):
            create = ("-o", self.qcow2_options, "-b", above, "-F", "qcow2", name)
            _run("qemu-img", "create", "-q", "-f", "qcow2", *create, cwd=folder)
            piece.write_bytes(self.rng.randbytes(self.unit))
            places = self.rng.sample(range(size // self.unit), 2)
            writes = [part for place in places for part in ("-c", f"write -s {piece} {place * self.unit} {self.unit}")]
            _run("qemu-io", "-f", "qcow2", *writes, name, cwd=folder)
        for number, name in enumerate(names):
            parent = names[number - 1] if number else None
            if parent and mounted_at:
                link = f"{mounted_at}/snapshots/{account}/{volume}/{parent}"
                _run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", link, name, cwd=folder)
            self.add_snapshot(folder / name, "qcow2", parent)

    def kvm_full(self, zone: str, *, account: int, volume: int) -> None:
        folder = self.snapshot_folder(zone, account, volume)
        for units in (6, 5):
            path = folder / self.new_id()
            self.converted(path, "qcow2", units, self.qcow2_options)
            self.add_snapshot(path, "qcow2", None)

    def xen_chain(self, zone: str, *, account: int, volume: int, depth: int) -> None:
        folder = self.snapshot_folder(zone, account, volume)
        size = 16 * self.unit
        block = 64 << 10 if self.tiny else 2 << 20
        parent: Path | None = None
        for number in range(depth):
            path = folder / f"{self.new_id()}.vhd"
            count = 6 if number == 0 else 2
            places = self.rng.sample(range(16), count)
            writes = [(place * self.unit, self.rng.randbytes(self.unit)) for place in places]
            write_vhd(path, size, writes, parent=parent, block_size=block, unique_id=uuid.UUID(self.new_id()))
            self.add_snapshot(path, "vhd", parent.name if parent else None)
            parent = path

    def vmware(self, zone: str, *, account: int, volume: int) -> None:
        name = self.new_id()
        folder = self.snapshot_folder(zone, account, volume) / name
        folder.mkdir()
        self.vmware_disk(folder, name, 8)
        self.add_snapshot(folder, "ova", None)

    def add_snapshot(self, path: Path, fmt: str, parent: str | None) -> None:
        account, volume = int(path.parts[-3]), int(path.parts[-2])
        above = f"{volume}/{parent}" if parent else None
        self.add(path, "snapshot", fmt, account, f"{volume}/{path.name}", path.name, volume, above)

    # --- the rest -------------------------------------------------------------------------------

    def what_is_no_item(self) -> None:
        """What real exports also hold: a filer's own folders, files still open somewhere, and an admin's note."""
        zone = self.root / "zone1"
        folder = next(iter((zone / "volumes" / "2" / "301").glob("*.qcow2"))).parent
        for path in (
            zone / ".snapshot" / "hourly.0" / "volumes" / "2" / "301" / "old.qcow2",
            zone / "lost+found" / "#12345",
            folder / ".nfs000000000123456700000001",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.rng.randbytes(1000))
            self.skipped.append(str(path.relative_to(self.root)))
        (zone / "snapshots" / "2" / "99").mkdir()
        note = zone / "notes-from-admin.txt"
        note.write_text("Ask before deleting anything here.\n")
        self.foreign.append(str(note.relative_to(self.root)))

    def add(
        self,
        where: Path,
        kind: Kind,
        fmt: str,
        account: int,
        upstream_id: str,
        name: str,
        volume: int | None = None,
        parent: str | None = None,
    ) -> BuiltItem:
        """Lists the files of one item (a file, or all in a folder) as they now are on disk."""
        zone = where.relative_to(self.root).parts[0]
        paths = [where] if where.is_file() else sorted(path for path in where.rglob("*") if path.is_file())
        files = tuple(BuiltFile(str(p.relative_to(self.root / zone)), p.stat().st_size, hash_file(p)) for p in paths)
        item = BuiltItem(zone, kind, fmt, account, upstream_id, files, name, volume, parent)
        self.items.append(item)
        return item


def _disk_size(path: Path, fmt: str) -> int:
    """Virtual size in bytes from the header that qemu-img wrote."""
    at, layout, unit = {"qcow2": (24, ">Q", 1), "vmdk": (12, "<Q", 512), "vpc": (-512 + 48, ">Q", 1)}[fmt]
    with path.open("rb") as file:
        file.seek(at, 0 if at >= 0 else 2)
        (count,) = struct.unpack(layout, file.read(8))
    return int(count) * unit


def _run(*argv: object, cwd: Path | None = None) -> None:
    done = subprocess.run([str(part) for part in argv], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()}")
