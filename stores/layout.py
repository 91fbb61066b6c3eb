"""CloudStack's path grammar, both ways: where an item lies on a store, and which item a path belongs to.

Facts: the physical layout that CloudStack's storage VM writes (reference, section 7). Plain Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stores.drivers.base import MARKER_KEY
from stores.states import Kind

TEMPLATE_PROPERTIES = "template.properties"
VOLUME_PROPERTIES = "volume.properties"
MAX_ID = 2**63 - 1
_MAX_PATH = 1024
"""What `*_store_file.path` holds."""

_ROOTS: dict[Kind, tuple[str, ...]] = {
    Kind.TEMPLATE: ("template", "tmpl"),
    Kind.SNAPSHOT: ("snapshots",),
    Kind.VOLUME: ("volumes",),
}
_ID = re.compile(r"0|[1-9][0-9]{0,18}")
_OWN = frozenset({".cs-tmp", ".cs-trash", ".cs-probe"})
_UNFINISHED = re.compile(r"dnld.*tmp_?.*")

HYPERVISOR_OF_FORMAT = {"VHD": "XenServer", "OVA": "VMware", "QCOW2": "KVM", "RAW": "Ovm", "VHDX": "Hyperv"}
"""CloudStack's ApiDBUtils table; every other format has the hypervisor `None`."""


def hypervisor_of(image_format: str) -> str:
    """Hypervisor type of an ImageFormat, in CloudStack's words (`None` is one of them)."""
    return HYPERVISOR_OF_FORMAT.get(image_format, "None")


@dataclass(frozen=True, slots=True)
class Place:
    """An item directory (of a template or volume), or a volume's directory of snapshots, and what lies below it."""

    kind: Kind
    account_id: int
    owner_id: int
    """Template id, volume id; of snapshots the id of their volume."""
    rest: tuple[str, ...] = ()
    """Names below the directory: empty for the directory itself."""

    @property
    def folder(self) -> str:
        """The directory, without a trailing `/`."""
        return "/".join([*_ROOTS[self.kind], str(self.account_id), str(self.owner_id)])


def parse(path: str) -> Place | None:
    """The place of a file or folder (with or without a trailing `/`); None where the grammar knows no such path.

    Ids are canonical decimals up to 2^63-1: `007` is not 7, so two folders can never be one item.
    """
    names = path.removesuffix("/").split("/")
    for kind, root in _ROOTS.items():
        if tuple(names[: len(root)]) != root:
            continue
        ids, rest = names[len(root) : len(root) + 2], tuple(names[len(root) + 2 :])
        if len(ids) == 2 and all(_ID.fullmatch(number) and int(number) <= MAX_ID for number in ids) and all(rest):
            return Place(kind, int(ids[0]), int(ids[1]), rest)
    return None


def is_storable(path: str) -> bool:
    """Whether a row can hold the path: text, not too long, without the null character that PostgreSQL refuses."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return len(path) <= _MAX_PATH and "\0" not in path


def install_paths(key: str) -> list[str]:
    """Install paths that a file may lie below: its own path, and every folder down to that of the item; none outside of items."""
    place = parse(key)
    if place is None:
        return []
    paths = [key]
    while len(paths[-1]) > len(place.folder):
        paths.append(paths[-1].rpartition("/")[0])
    return paths


def is_system_iso(path: str) -> bool:
    """The ISO of VMware's system VMs: CloudStack copies it anew to every store, so it is never migrated."""
    names = path.split("/")
    return len(names) == 2 and names[0] == "systemvm" and names[1].endswith(".iso")


def is_unfinished(name: str) -> bool:
    """A download that CloudStack has not finished, by the temporary name that it gives it."""
    return bool(_UNFINISHED.fullmatch(name))


def skip_rule(path: str) -> str | None:
    """The named rule by which a scan passes over a file or folder (trailing `/`), or None: then it must be accounted for."""
    names = path.removesuffix("/").split("/")
    if names[-1] == ".snapshot" and path.endswith("/"):
        return ".snapshot"
    if names[-1].startswith(".nfs"):
        return ".nfs*"
    if len(names) == 1:
        if names[0] == "lost+found":
            return "lost+found"
        if names[0] in _OWN:
            return names[0]
        if names[0] == MARKER_KEY:
            return "marker"
    return None


def install_path(kind: Kind, account_id: int, owner_id: int, *, name: str = "", unique_name: str = "") -> str:
    """Where an item belongs, relative to the root of a store.

    Templates and volumes: their directory; snapshots: file or directory `name` in that of their volume (`owner_id`).
    `unique_name` is for templates on object stores, whose keys carry it (CloudStack's S3 plug-in reads it back from there).
    Raises ValueError for ids or names that cannot be part of a path.
    """
    last = name if kind is Kind.SNAPSHOT else unique_name if kind is Kind.TEMPLATE else ""
    if not (0 <= account_id <= MAX_ID and 0 <= owner_id <= MAX_ID):
        message = f"{account_id}/{owner_id} are no ids of an item."
        raise ValueError(message)
    if kind is Kind.SNAPSHOT and not name:
        message = "A snapshot has the name of a file or directory."
        raise ValueError(message)
    if last in {".", ".."} or "/" in last or "\0" in last:
        message = f"{last!r} cannot be a name in a path."
        raise ValueError(message)
    folder = Place(kind, account_id, owner_id).folder
    return f"{folder}/{last}" if last else folder
