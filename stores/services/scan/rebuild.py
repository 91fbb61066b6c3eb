"""Brings back from an object store alone what the database does not know: items, owners, zones, chains, refs and their hashes.

The journal says what an object is and the object's own metadata says it where the journal ends; neither is believed before the
listing agrees. What comes back is *adopted*, whatever was proven before: sizes and etags were compared, no byte was read.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import F, OuterRef, Subquery

from cloudstorage.checkpoints import reach
from cloudstorage.models import Installation
from stores import images, layout
from stores.copier import Control, CopyEngine
from stores.drivers.base import ObjectInfo, StoreDriver
from stores.drivers.errors import NotFound, Unavailable
from stores.models import KINDS, ImageStore, Snapshot, Zone
from stores.services import journal
from stores.services.scan.adoption import Adoption, Line, Unit
from stores.services.scan.index import LineIndex
from stores.services.scan.lease import Lease
from stores.services.scan.report import ScanReport
from stores.services.scan.rows import MISSING, load
from stores.states import Kind, RefState

_BATCH = 500
_MAX_DEPTH = 1000
_OWN = (".cloudstorage", ".cs-")


def rebuild(store: ImageStore, driver: StoreDriver, report: ScanReport, lease: Lease) -> None:
    """Adopt what the store describes and no row knows. Repeatable, and harmless where nothing was lost: what a row knows, or an
    item that was deleted, is left alone. Raises what the driver raises.
    """
    with LineIndex() as index:
        for key, line in journal.lines(driver):
            lease.beat()
            if line is None or not _is_sound(line):
                report.corrupt.add(key, "A line of the journal cannot be read; its item is known by its objects only.")
            else:
                index.add(line)
        run = _Rebuild(store, driver, report, lease, index)
        run.take_units()
        run.link_parents()


class _Rebuild:
    def __init__(self, store: ImageStore, driver: StoreDriver, report: ScanReport, lease: Lease, index: LineIndex) -> None:
        self.store, self.driver, self.report, self.lease, self.index = store, driver, report, lease, index
        self.cloud = str(Installation.get().uuid)
        self.zones: dict[str, Zone] = {}

    # --- what lies there -----------------------------------------------------------------------------------------------

    def take_units(self) -> None:
        """Walk the listing once, item by item."""
        batch: list[Unit] = []
        size = 0
        for unit in self._units():
            self.lease.beat()
            batch.append(unit)
            size += len(unit.objects)
            if size >= _BATCH:
                self._take(batch)
                batch, size = [], 0
        self._take(batch)

    def _units(self) -> Iterator[Unit]:
        """Objects by install path: they lie side by side in the listing. What no line describes comes as it describes itself."""
        unit: Unit | None = None
        strange: list[ObjectInfo] = []
        for page in _pages(self._listed()):
            lines = self.index.find(path for info in page for path in layout.install_paths(info.key))
            for info in page:
                line = next((lines[path] for path in layout.install_paths(info.key) if path in lines), None)
                if unit is not None and (line is None or line["install_path"] != unit.path):
                    yield unit
                    unit = None
                if strange and (line is not None or _own_place(strange[0].key) != _own_place(info.key)):
                    yield from self._self_described(strange)
                    strange = []
                if line is not None:
                    unit = unit or Unit(line)
                    unit.objects[info.key] = info
                elif layout.parse(info.key) is not None:
                    strange.append(info)
        if unit is not None:
            yield unit
        if strange:
            yield from self._self_described(strange)

    def _listed(self) -> Iterator[ObjectInfo]:
        """What may be an item's; a key that no row can hold is somebody else's."""
        listed = self.driver.list(prune=_is_own)
        return (info for info in listed if layout.is_storable(info.key) and not _is_own(info.key))

    # --- objects without a line ------------------------------------------------------------------------------------------

    def _self_described(self, objects: Sequence[ObjectInfo]) -> Iterator[Unit]:
        """An item that was complete before its line was written: its objects say what they are. Half of one is left alone, and so
        is what the rows know anyway.
        """
        path = _own_place(objects[0].key)
        place = layout.parse(objects[0].key)
        assert place is not None
        if load(self.store, {place.kind: [path]}):
            return
        try:
            told = [self.driver.stat(info.key).metadata for info in objects]
        except NotFound:
            return
        first = told[0]
        alike = all((one.get("cs-uuid"), one.get("cs-cloud")) == (first.get("cs-uuid"), self.cloud) for one in told)
        if not alike or first.get("cs-kind") != place.kind or first.get("cs-files") != str(len(objects)):
            return
        line = self._line_from(first, objects, path)
        if _is_sound(line):
            self.index.add(line)
            yield Unit(line, {info.key: info for info in objects})

    def _line_from(self, told: Mapping[str, str], objects: Sequence[ObjectInfo], path: str) -> dict[str, Any]:
        place = layout.parse(objects[0].key)
        assert place is not None
        files = [
            {"path": info.key, "size": info.size, "sha256": "", "etag": info.etag or "", "proof": "", "format": "", "backing": ""}
            for info in objects
        ]
        line: dict[str, Any] = {
            "kind": str(place.kind), "uuid": told.get("cs-uuid"), "name": told.get("cs-name") or path.rpartition("/")[2],
            "account": place.account_id, "upstream_id": _number(told.get("cs-upstream-id")), "format": told.get("cs-format", ""),
            "hypervisor": layout.hypervisor_of(told.get("cs-format", "")), "state": str(RefState.READY), "install_path": path,
            "files": files, "zones": [],
        }  # fmt: skip
        if place.kind is Kind.TEMPLATE:
            line["unique_name"] = path.rpartition("/")[2]
        if place.kind is Kind.SNAPSHOT:
            line |= {"volume": place.owner_id, "path": path.rpartition("/")[2], "parent": None, "depth": 0}
            self._look_for_parent(line, path)
        return line

    def _look_for_parent(self, line: dict[str, Any], path: str) -> None:
        """A snapshot in one file names its parent in its header; the parent's object says which item that is."""
        folder, _, name = path.rpartition("/")
        if line["files"][0]["path"] != path:
            return
        try:
            with self.driver.open(path) as reader:
                header = images.inspect(reader, expect=images.expected_format(name))
            if header.backing_name:
                line["files"][0]["backing"] = header.backing_name
                line["depth"] = 1
                line["parent"] = self.driver.stat(f"{folder}/{header.backing_name}").metadata.get("cs-uuid")
        except Unavailable:
            raise
        except (NotFound, images.ImageError):
            return

    # --- into the rows -------------------------------------------------------------------------------------------------

    def _take(self, units: Sequence[Unit]) -> None:
        by_kind: dict[Kind, list[Unit]] = defaultdict(list)
        for unit in units:
            by_kind[unit.kind].append(unit)
        for kind, group in by_kind.items():
            known = load(self.store, {kind: [unit.path for unit in group]})
            wanted = [unit for unit in group if unit.path not in known]
            for unit in wanted:
                self._compare(unit)
            reach("rebuild.read")
            delta = ScanReport()
            with transaction.atomic():
                self.lease.renew()
                Adoption(self.store, kind, self.zones).run(wanted, delta)
            self.report.merge(delta)
            reach("rebuild.committed")

    def _compare(self, unit: Unit) -> None:
        """What the line says against what the listing says. The etag of another upload of the same bytes differs: then they are
        read, which tells."""
        for file in unit.line["files"]:
            info = unit.objects.get(file["path"])
            if info is None:
                unit.problems[file["path"]] = f"{MISSING}the object is not on the store"
            elif info.size != file["size"]:
                unit.problems[file["path"]] = f"changed: {file['size']} bytes were stored, {info.size} are there now"
            elif info.etag and file["etag"] and info.etag != file["etag"] and self._hash(info.key) != file["sha256"]:
                unit.problems[file["path"]] = "changed: its content is not what was proven"

    def _hash(self, key: str) -> str:
        engine = CopyEngine(lanes=1)
        try:
            return engine.hash_object(self.driver, key, Control())[0]
        finally:
            engine.close()

    # --- chains --------------------------------------------------------------------------------------------------------

    def link_parents(self) -> None:
        """Once all are there, from the full snapshots down: those that a rebuild before this one, which was killed, left too."""
        for lines in self.index.chains(_BATCH):
            self.lease.beat()
            wanted = {line[name] for line in lines for name in ("uuid", "parent") if line.get(name)}
            with transaction.atomic():
                self.lease.renew()
                items = {str(item.uuid): item for item in Snapshot.objects.filter(uuid__in=wanted, removed=None)}
                changed = []
                for line in lines:
                    child, parent = items.get(line["uuid"]), items.get(line.get("parent") or "")
                    if child is None or child.parent_id is not None:
                        continue
                    if parent is None:
                        self.report.corrupt.add(line["install_path"], "Its parent is not on the store: it is of no use without.")
                        refs = KINDS[Kind.SNAPSHOT].ref.objects.filter(item=child, store=self.store)
                        refs.update(error_str="The snapshot that it builds on is not on the store.")
                    else:
                        child.parent_id, child.depth = parent.pk, parent.depth + 1
                        changed.append(child)
                Snapshot.objects.bulk_update(changed, ["parent", "depth"], batch_size=_BATCH)
        for _ in range(_MAX_DEPTH):  # a line that its object told knows no depth
            wrong = Snapshot.objects.filter(parent__isnull=False).exclude(depth=F("parent__depth") + 1)
            own = Snapshot.objects.filter(pk=OuterRef("parent_id")).values("depth")
            ids = list(wrong.values_list("pk", flat=True)[:_BATCH])
            if not Snapshot.objects.filter(pk__in=ids).update(depth=Subquery(own) + 1):
                break


def _is_sound(line: Line) -> bool:
    """Whether a line is of a known kind and agrees with the path that it names."""
    try:
        place = layout.parse(line["install_path"])
        uuid.UUID(line["uuid"])
        kind, path, files = Kind(line["kind"]), line["install_path"], line["files"]
        below = all(
            isinstance(file["size"], int)
            and isinstance(file["sha256"], str)
            and isinstance(file["etag"], str)
            and (file["path"] == path or file["path"].startswith(f"{path}/"))
            for file in files
        )
        named = isinstance(line["name"], str) and (kind is not Kind.SNAPSHOT or isinstance(line["path"], str))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    if place is None or not files or not below or not named:
        return False
    owner = line.get("volume") if kind is Kind.SNAPSHOT else line.get("upstream_id")
    return (place.kind, place.account_id, place.owner_id) == (kind, line["account"], owner)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _own_place(key: str) -> str:
    """The install path that an object without a line would be of (`layout.install_path`)."""
    place = layout.parse(key)
    if place is None or not place.rest:
        return key
    if place.kind is Kind.SNAPSHOT or (place.kind is Kind.TEMPLATE and len(place.rest) > 1):
        return f"{place.folder}/{place.rest[0]}"
    return place.folder


def _is_own(key: str) -> bool:
    return key.startswith(_OWN)


def _pages(listing: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    page: list[ObjectInfo] = []
    for info in listing:
        page.append(info)
        if len(page) == _BATCH:
            yield page
            page = []
    if page:
        yield page
