"""Finds where on this machine an NFS export is mounted, because the operator mounts it and we only use it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stores.drivers.base import DriverEnvironment
from stores.drivers.errors import Unavailable

NFS_TYPES = frozenset({"nfs", "nfs4"})
MOUNT_TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the kernel's mount table (proc_pid_mountinfo(5))."""

    ident: int
    point: str
    fstype: str
    source: str
    root: str
    """The folder of the file system that is visible at `point`; other than `/` for a bind mount."""
    options: frozenset[str]
    """Options of the mount and of its file system, such as `ro`, `soft`, `vers=4.2`."""

    @property
    def read_only(self) -> bool:
        return "ro" in self.options

    def option(self, name: str) -> str:
        """The value of `name=value`, empty where the mount has no such option."""
        return next((text.partition("=")[2] for text in self.options if text.startswith(f"{name}=")), "")


@dataclass(frozen=True, slots=True)
class Location:
    """Where an export lies: the components `below` the folder `base`, which must be the mount `mount` if there is one."""

    base: str
    below: tuple[str, ...]
    mount: Mount | None


def mount_table() -> Sequence[Mount]:
    """Every mount this process sees, in the kernel's order: of two at the same point the later hides the earlier."""
    return _parse(kernel_says(MOUNT_TABLE))


@lru_cache(maxsize=1)
def _visible(table: bytes) -> Mapping[str, Mount]:
    # Read anew for every call, it is nearly always the one before; parsing it was half of what opening a file cost.
    return {mount.point: mount for mount in _parse(table)}


def _parse(table: bytes) -> tuple[Mount, ...]:
    return tuple(map(_parse_line, table.decode(errors="surrogateescape").splitlines()))


def kernel_says(path: str | Path) -> bytes:
    """A file of /proc as it is now; in two thirds of the time that reading a Path takes, for each file that is opened."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(handle, 64 * 1024):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(handle)


def locate(host: str, path: str, environment: DriverEnvironment) -> Location:
    """Find the export `host:path`: in the configured mapping, else in the mount table, else (where plain exports are allowed)
    as a folder of this machine. Raises Unavailable when it is nowhere."""
    visible = _visible(kernel_says(MOUNT_TABLE))
    mapped = _mapped(host, path, environment)
    if mapped is not None:
        folder, below = mapped
        mount = visible.get(os.path.realpath(folder))
        if mount is None and not environment.allow_plain_exports:
            message = f"{host}:{path} should be mounted at {folder}, but nothing is mounted there. Mount the export."
            raise Unavailable(message)
        return Location(folder, below, mount)
    found = _mounted(host, path, visible.values())
    if found is not None:
        return found
    if environment.allow_plain_exports and host == "localhost" and path != "/":
        return Location(path, (), None)
    message = f"{host}:{path} is not mounted on this machine. Mount the export, or map it to its mount point in the settings."
    raise Unavailable(message)


def _mapped(host: str, path: str, environment: DriverEnvironment) -> tuple[str, tuple[str, ...]] | None:
    found: list[tuple[str, tuple[str, ...]]] = []
    for export, folder in environment.mounts.items():
        name, base = _split(export)
        below = _below(path, base)
        if name == host and below is not None:
            found.append((folder, below))
    return min(found, key=lambda pair: len(pair[1]), default=None)


def _mounted(host: str, path: str, mounts: Iterable[Mount]) -> Location | None:
    found: list[Location] = []
    for mount in mounts:
        if mount.fstype not in NFS_TYPES:
            continue
        name, base = _split(mount.source)
        below = _below(path, f"{base.rstrip('/')}/{mount.root.strip('/')}")
        if below is not None and host in {name, mount.option("addr").lower()}:
            found.append(Location(mount.point, below, mount))
    return min(found, key=lambda place: (len(place.below), place.mount is not None and place.mount.read_only), default=None)


def _split(export: str) -> tuple[str, str]:
    """`host:/path` or `[v6]:/path` as (host in lower case, path)."""
    host, _, path = export.partition(":/")
    return host.strip("[]").lower(), f"/{path}"


def _below(path: str, base: str) -> tuple[str, ...] | None:
    """The components of `path` below `base`, None where it lies elsewhere."""
    base = base.rstrip("/")
    if path != base and not path.startswith(f"{base}/"):
        return None
    return tuple(name for name in path[len(base) :].split("/") if name)


def _parse_line(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    ident, _parent, _device, root, point, options = left.split(" ")[:6]
    fstype, source, super_options = [*right.split(" "), "", ""][:3]
    every = frozenset(options.split(",")) | frozenset(super_options.split(","))
    # A file system that is writable may be mounted read-only and the other way round: `ro` on either side decides.
    return Mount(int(ident), _unescape(point), fstype, _unescape(source), _unescape(root), every)


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
