"""Understands one item directory from its files' own headers: which items it holds, which files are theirs, what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from stores import layout
from stores.drivers.base import ObjectInfo, Reader, StoreDriver
from stores.drivers.errors import NotFound, StoreError, Unavailable, UnsafeName
from stores.images import (
    FORMAT_OF_SUFFIX,
    MAX_SIZE,
    ImageHeader,
    PropertiesError,
    TemplateProperties,
    chain_of,
    inspect,
    parse_properties,
    resolve_backing,
)
from stores.services.scan.listing import Folder
from stores.states import Kind

_MAX_PROPERTIES = 64 * 1024
_OVF_SUFFIXES = (".ovf", ".mf", ".cert", ".nvram")
"""What lies beside the disks in the directory of a VMware snapshot."""
_UNREADABLE = ImageHeader("unreadable", None)


@dataclass(slots=True)
class FoundFile:
    """One file of an item, as it is on the store and as its header describes it."""

    path: str
    size: int
    version: str
    allocated: int | None = None
    etag: str = ""
    format: str = ""
    virtual_size: int | None = None
    backing: str = ""
    problem: str = ""


@dataclass(slots=True)
class FoundItem:
    """One item as its directory tells of it."""

    kind: Kind
    account_id: int
    owner_id: int
    """Template id, volume id; of a snapshot the id of its volume."""
    install_path: str
    files: list[FoundFile]
    name: str
    format: str = ""
    hypervisor: str = "None"
    size: int | None = None
    """Virtual size in bytes."""
    unique_name: str = ""
    display_text: str = ""
    public: bool = False
    checksum: str = ""
    parent: str = ""
    """Name of the snapshot in the same directory that this one builds on."""
    depth: int = 0
    problem: str = ""
    """What is wrong with the item as a whole."""

    @property
    def path(self) -> str:
        """Last component of the install path: of a snapshot its file or directory name."""
        return self.install_path.rpartition("/")[2]

    @property
    def problems(self) -> list[tuple[str, str]]:
        """(path, text) of everything that is wrong."""
        own = [(self.install_path, self.problem)] if self.problem else []
        return own + [(file.path, file.problem) for file in self.files if file.problem]


@dataclass(slots=True)
class Contents:
    """What a directory holds."""

    items: list[FoundItem] = field(default_factory=list)
    orphans: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    opened: int = 0


def is_image_name(name: str) -> bool:
    """Whether a file of this name may be an image: a known suffix, or none as KVM's snapshots have."""
    suffix = PurePosixPath(name).suffix.lower()
    return not name.startswith(".") and (not suffix or suffix in FORMAT_OF_SUFFIX)


def read_folder(driver: StoreDriver, folder: Folder) -> Contents:
    """Read the headers in a directory and say what it holds.

    Raises Unavailable alone: what is wrong with one file is that file's problem.
    """
    reader = _FolderReader(driver, folder)
    if folder.place.kind is Kind.SNAPSHOT:
        reader.read_snapshots()
    elif folder.place.kind is Kind.TEMPLATE:
        reader.read_template()
    else:
        reader.read_volume()
    return reader.contents


class _FolderReader:
    def __init__(self, driver: StoreDriver, folder: Folder) -> None:
        self.driver = driver
        self.folder = folder
        self.contents = Contents()

    # --- templates and volumes -----------------------------------------------------------------------------------------

    def read_template(self) -> None:
        found, files, properties = self._described(layout.TEMPLATE_PROPERTIES)
        props, problem = TemplateProperties(), ""
        if properties is None:
            found.problem = "template.properties is missing: CloudStack itself does not know this template."
        else:
            try:
                props = TemplateProperties.from_bytes(properties)
                problem = "; ".join(props.problems)
            except PropertiesError as error:
                problem = f"template.properties cannot be read: {error}"
        named = {entry.filename: entry.size for entry in props.formats if entry.filename}
        if props.filename:
            named.setdefault(props.filename, props.size)
        formats = [entry.format.upper() for entry in props.formats]
        if not self._fill(found, files, named, problem):
            return
        found.unique_name = (props.uniquename or PurePosixPath(found.name).stem)[:255]
        found.name = props.description or props.uniquename or found.name
        found.display_text = props.description or ""
        found.public = bool(props.public)
        found.checksum = props.checksum or ""
        if formats and found.format not in formats:
            found.format = formats[0]
        found.size = found.size or props.virtualsize
        found.hypervisor = layout.hypervisor_of(found.format)
        self._take(found)

    def read_volume(self) -> None:
        found, files, properties = self._described(layout.VOLUME_PROPERTIES)
        values: dict[str, str] = {}
        problem = ""
        try:
            values = parse_properties(properties or b"")
        except PropertiesError as error:
            problem = f"volume.properties cannot be read: {error}"
        named: dict[str, int | None] = {}
        for key, value in values.items():
            if (key == "filename" or key.endswith(".filename")) and value:
                size = values.get(f"{key.removesuffix('filename')}size", "")
                named[value] = int(size) if size.isascii() and size.isdigit() and len(size) < 20 else None
        if not self._fill(found, files, named, problem):
            return
        found.name = values.get("uniquename") or found.name
        self._take(found)

    def _described(self, properties_name: str) -> tuple[FoundItem, dict[str, ObjectInfo], bytes | None]:
        """The item to fill, its directory's other files by name, and the content of its properties file."""
        place = self.folder.place
        found = FoundItem(place.kind, place.account_id, place.owner_id, self.folder.path, [], "")
        files = {self.folder.name_of(key): info for key, info in self.folder.entries.items()}
        info = files.pop(properties_name, None)
        if info is None:
            return found, files, None
        data = b""
        try:
            with self._open(info) as reader:
                data = reader.pread(0, _MAX_PROPERTIES + 1)
                found.files.append(_file_of(reader.info, format="properties"))
        except (NotFound, UnsafeName):
            return found, files, None
        except Unavailable:
            raise
        except StoreError as error:
            found.files.append(_file_of(info, format="properties", problem=self._refused(info, error)))
        return found, files, data

    def _fill(self, found: FoundItem, files: Mapping[str, ObjectInfo], named: Mapping[str, int | None], problem: str) -> bool:
        """Give the item its images; false where it has none. The largest image stands for its format and size."""
        problems = [problem] if problem else []
        present = [name for name in named if name in files]
        problems += [f"{name!r}, which the properties name, is not there" for name in named if name not in files]
        chosen = present or [name for name in files if is_image_name(name)]
        headers = self._with_parents(found, files, chosen)
        self._sort_out_rest(found, files, headers, chosen)
        if found.files and problems:
            _blame(found.files[0], "; ".join(problems))
        by_path = {file.path: file for file in found.files}
        for name, told in named.items():
            file = by_path.get(f"{self.folder.path}/{name}")
            if file is not None and told is not None and file.size < told:
                _blame(file, f"cut short: the properties say {told} bytes, the file has {file.size}")
        self._blame_chains(headers, by_path)
        if not headers:
            if not self.contents.unreadable:
                self.contents.orphans.append((f"{self.folder.path}/", "A directory without an image."))
            return False
        found.files.sort(key=lambda file: file.path)
        main = max(headers, key=lambda name: (name in present, files[name].size, name))
        found.name = main
        found.format = _item_format(main, headers[main])
        found.hypervisor = layout.hypervisor_of(found.format)
        found.size = headers[main].virtual_size
        return True

    def _with_parents(self, found: FoundItem, files: Mapping[str, ObjectInfo], chosen: Iterable[str]) -> dict[str, ImageHeader]:
        """Headers of the chosen files and of what they build on: a child's parent belongs to the item too."""
        headers: dict[str, ImageHeader] = {}
        wanted = {name: files[name] for name in chosen}
        while wanted:
            more = self._headers(found, wanted)
            asked = set(headers) | set(wanted)
            headers |= more
            wanted = {name: files[name] for name in _wanted(more.values()) if name in files and name not in asked}
        return headers

    def _sort_out_rest(
        self, found: FoundItem, files: Mapping[str, ObjectInfo], headers: Mapping[str, ImageHeader], chosen: Iterable[str]
    ) -> None:
        """Files that CloudStack unpacks from an OVA beside it are the item's; all others are nobody's."""
        members = {name for header in headers.values() for name, _ in header.members}
        sorted_out = {*headers, *chosen}
        for name, info in files.items():
            if name in sorted_out:
                continue
            if name in members:
                found.files.append(_file_of(info, format=FORMAT_OF_SUFFIX.get(_suffix(name), "")))
            else:
                self.contents.orphans.append((info.key, "No file of the item whose directory it lies in."))

    # --- snapshots -----------------------------------------------------------------------------------------------------

    def read_snapshots(self) -> None:
        place = self.folder.place
        single: dict[str, ObjectInfo] = {}
        folders: dict[str, dict[str, ObjectInfo]] = {}
        for key, info in self.folder.entries.items():
            name, _, inner = self.folder.name_of(key).partition("/")
            if inner:
                folders.setdefault(name, {})[inner] = info
            elif is_image_name(name):
                single[name] = info
            else:
                self.contents.unknown.append((key, "No image by its name, so no snapshot."))
        files = FoundItem(place.kind, place.account_id, place.owner_id, self.folder.path, [], "")
        headers = self._headers(files, single)
        by_path = {file.path: file for file in files.files}
        self._blame_chains(headers, by_path)
        parents, depths = _parents(headers)
        for name, header in headers.items():
            path = f"{self.folder.path}/{name}"
            found = FoundItem(place.kind, place.account_id, place.owner_id, path, [by_path[path]], name)
            found.format = _item_format(name, header)
            found.hypervisor = "KVM" if found.format == "RAW" else layout.hypervisor_of(found.format)
            found.size = header.virtual_size
            found.parent, found.depth = parents[name] or "", depths[name]
            self._take(found)
        for name, inside in folders.items():
            self._read_snapshot_folder(name, inside)

    def _read_snapshot_folder(self, name: str, inside: Mapping[str, ObjectInfo]) -> None:
        """VMware's snapshots are directories of an OVF and its disks, or of one OVA."""
        place = self.folder.place
        path = f"{self.folder.path}/{name}"
        if not any(_suffix(inner) in {".ovf", ".ova", ".vmdk"} for inner in inside):
            self.contents.orphans.append((f"{path}/", "A snapshot's directory without an image."))
            return
        found = FoundItem(place.kind, place.account_id, place.owner_id, path, [], name, format="OVA", hypervisor="VMware")
        images = {inner: info for inner, info in inside.items() if _suffix(inner) in FORMAT_OF_SUFFIX}
        headers = self._headers(found, images)
        self._blame_chains(headers, {file.path: file for file in found.files}, base=path)
        for inner, info in inside.items():
            if inner not in images:
                known = _suffix(inner) in _OVF_SUFFIXES
                found.files.append(_file_of(info, format=_suffix(inner)[1:] if known else ""))
        sizes = [header.virtual_size for header in headers.values() if header.virtual_size is not None]
        found.size = sum(sizes) if sizes and len(sizes) == len(headers) else None
        if found.size is not None and found.size > MAX_SIZE:
            found.problem = f"its disks together say {found.size} bytes, which is impossible"
            found.size = None
        found.files.sort(key=lambda file: file.path)
        self._take(found)

    def _take(self, found: FoundItem) -> None:
        total = sum(file.size for file in found.files)
        if total <= MAX_SIZE:
            self.contents.items.append(found)
        else:  # sparse files may say so, and no row can
            self.contents.unreadable.append((found.install_path, f"Its files together say {total} bytes, which is impossible."))

    # --- headers -------------------------------------------------------------------------------------------------------

    def _open(self, info: ObjectInfo) -> Reader:
        self.contents.opened += 1
        return self.driver.open(info.key)

    def _refused(self, info: ObjectInfo, error: StoreError) -> str:
        self.contents.unreadable.append((info.key, str(error)))
        return f"unreadable: {error}"

    def _headers(self, item: FoundItem, files: Mapping[str, ObjectInfo]) -> dict[str, ImageHeader]:
        """Headers by name; adds each file to the item. What vanished since the listing is left out of both."""
        headers: dict[str, ImageHeader] = {}
        for name, info in files.items():
            try:
                with self._open(info) as reader:
                    header = inspect(reader, expect=FORMAT_OF_SUFFIX.get(_suffix(name)))
                    file = _file_of(reader.info, allocated=info.allocated)
            except (NotFound, UnsafeName):
                continue
            except Unavailable:
                raise
            except StoreError as error:
                headers[name] = _UNREADABLE
                item.files.append(_file_of(info, problem=self._refused(info, error)))
                continue
            file.format = header.format[:16]
            file.virtual_size = header.virtual_size
            file.backing = (header.backing_name or "")[:1024]
            for problem in header.problems:
                _blame(file, problem)
            headers[name] = header
            item.files.append(file)
        return headers

    def _blame_chains(self, headers: Mapping[str, ImageHeader], files: Mapping[str, FoundFile], base: str = "") -> None:
        base = base or self.folder.path
        for name, header in headers.items():
            file = files.get(f"{base}/{name}")
            if file is None:
                continue
            if header.backing is not None and ".." in re.split(r"[/\\]", header.backing):
                _blame(file, f"its link {header.backing!r} leads out of the directory and is not followed")
            if header.has_parent:
                for problem in chain_of(name, headers).problems:
                    _blame(file, problem)
            for other in header.external_data:
                if f"{base}/{other}" not in self.folder.entries:
                    _blame(file, f"its data file {other!r} is not in this directory")


def _file_of(info: ObjectInfo, *, format: str = "", problem: str = "", allocated: int | None = None) -> FoundFile:  # noqa: A002 - the name in the address
    return FoundFile(
        info.key,
        info.size,
        info.version,
        info.allocated if allocated is None else allocated,
        info.etag or "",
        format,
        problem=problem,
    )


def _blame(file: FoundFile, problem: str) -> None:
    if problem not in file.problem:
        file.problem = f"{file.problem}; {problem}" if file.problem else problem


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _wanted(headers: Iterable[ImageHeader]) -> list[str]:
    """Names that images need beside them: parents, and files that hold their data."""
    return [name for header in headers for name in (header.backing_name, *header.external_data) if name]


def _item_format(name: str, header: ImageHeader) -> str:
    """CloudStack's ImageFormat: what the content is, or what the name says where the content is no image format."""
    known = set(FORMAT_OF_SUFFIX.values())
    by_name = FORMAT_OF_SUFFIX.get(_suffix(name), "")
    if header.format not in known or (header.format == "raw" and by_name):
        return (by_name or "raw").upper()
    return header.format.upper()


def _parents(headers: Mapping[str, ImageHeader]) -> tuple[dict[str, str | None], dict[str, int]]:
    """The parent of each image by name, circles cut open, and the number of ancestors."""
    parents = {name: resolve_backing(header, headers) if header.has_parent else None for name, header in headers.items()}
    depths: dict[str, int] = {}
    for name in parents:
        line: dict[str, None] = {}
        at: str | None = name
        while at is not None and at not in depths and at not in line:
            line[at] = None
            at = parents[at]
        if at in line:
            for member in list(line)[list(line).index(at) :]:
                parents[member] = None
                depths[member] = 0
        for member in reversed(line):
            if member not in depths:
                above = parents[member]
                depths[member] = 0 if above is None else depths[above] + 1
    return parents, depths
