"""Joins images to their parents by name within one directory, and says whether they belong together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from stores.images.header import ImageHeader

MAX_DEPTH = 1000
"""Longer than any hypervisor writes; a bound against a hostile directory."""


_PARENT_FORMATS = {"qcow2": ("qcow2", "raw"), "vhd": ("vhd",), "vmdk": ("vmdk",)}
_LINKED_BY_ID = ("vhd", "vmdk")


@dataclass(frozen=True)
class Chain:
    """`members` from the image itself up to its root, as far as it could be followed."""

    members: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def depth(self) -> int:
        return len(self.members)

    @property
    def whole(self) -> bool:
        return not self.problems


def resolve_backing(header: ImageHeader, siblings: Collection[str]) -> str | None:
    """The parent's name among the files of the same directory, or None (no parent, or not there)."""
    name = header.backing_name
    return name if name is not None and name in siblings else None


def verify_link(child: ImageHeader, parent: ImageHeader) -> tuple[str, ...]:
    """Why `parent` cannot be what `child` was written over; empty when nothing speaks against it."""
    problems = []
    if parent.format not in _PARENT_FORMATS.get(child.format, ()):
        problems.append(f"a {child.format} cannot have a {parent.format} as its parent")
    elif child.format in _LINKED_BY_ID and child.parent_unique_id != parent.unique_id:
        ids = f"{child.parent_unique_id}, the file of that name has id {parent.unique_id}"
        problems.append(f"the child was written over id {ids}")
    elif child.backing_format not in (None, parent.format):
        problems.append(f"the child expects a {child.backing_format} parent, the file is {parent.format}")
    if child.virtual_size is not None and parent.virtual_size is not None and child.virtual_size < parent.virtual_size:
        problems.append(f"the child ({child.virtual_size} bytes) is smaller than its parent ({parent.virtual_size} bytes)")
    return tuple(problems)


def chain_of(name: str, headers: Mapping[str, ImageHeader]) -> Chain:
    """Follows `name` to its root among the headers of one directory; never outside it, never in a circle."""
    members = [name]
    seen = {name}
    problems: list[str] = []
    while headers[members[-1]].has_parent:
        child = headers[members[-1]]
        parent = resolve_backing(child, headers)
        if parent is None:
            problems.append(f"{members[-1]}: its parent {child.backing!r} is not in this directory")
            break
        if parent in seen:
            problems.append(f"{members[-1]}: its parent {parent} is also its child")
            break
        if len(members) == MAX_DEPTH:
            problems.append(f"the chain is longer than {MAX_DEPTH} files")
            break
        problems += [f"{members[-1]}: {text}" for text in verify_link(child, headers[parent])]
        members.append(parent)
        seen.add(parent)
    return Chain(tuple(members), tuple(problems))
