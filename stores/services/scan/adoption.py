"""Makes rows of what a store says of itself: the writing half of a rebuild, a batch in one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from stores.drivers.base import ObjectInfo
from stores.manifest import manifest_sha256
from stores.models import KINDS, Account, ImageStore, TemplateZoneRef, Zone
from stores.services import holds, journal
from stores.services.inventory import keep_hidden, relative_name
from stores.services.scan.report import ScanReport
from stores.services.scan.rows import MISSING
from stores.states import READABLE, Kind, Proof, RefState

Line = Mapping[str, Any]
_GONE = (RefState.DESTROYING, RefState.DESTROYED)


@dataclass(slots=True)
class Unit:
    """The objects that lie at one install path, with the line that describes them."""

    line: Line
    objects: dict[str, ObjectInfo] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """By path of a file that is not what the line says."""

    @property
    def path(self) -> str:
        return str(self.line["install_path"])

    @property
    def kind(self) -> Kind:
        return Kind(self.line["kind"])

    @property
    def uuid(self) -> uuid.UUID:
        return uuid.UUID(self.line["uuid"])

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the item in the layout (design.md, section 4)."""
        line = self.line
        if self.kind is Kind.SNAPSHOT:
            return line["account"], line["volume"], line["path"]
        return line["account"], line.get("upstream_id"), ""


class Adoption:
    """The rows of one kind; what a row knows already, or an item that was deleted, is left alone."""

    def __init__(self, store: ImageStore, kind: Kind, zones: dict[str, Zone]) -> None:
        """`zones`: those of the lines so far, by the uuid that they give them; added to."""
        self.store, self.kind, self.models = store, kind, KINDS[kind]
        self.zones = zones
        self.here: dict[int, Any] = {}

    def run(self, units: Sequence[Unit], delta: ScanReport) -> None:
        """Make the rows inside the caller's transaction."""
        if not units:
            return
        _make_accounts(units)
        items = self.models.item.objects.select_for_update(no_key=True, of=("self",)).order_by("pk")
        by_uuid = {item.uuid: item for item in items.filter(uuid__in=[unit.uuid for unit in units])}
        by_key = self._by_key(items, units)
        self._look_around([item.pk for item in [*by_uuid.values(), *by_key.values()]])
        taken: list[tuple[Unit, Any]] = []
        renamed: list[Any] = []
        fresh: dict[tuple[Any, ...], Any] = {}
        for unit in units:
            item = by_uuid.get(unit.uuid) or by_key.get(unit.key)
            if item is None and (unit.key in fresh or unit.uuid in {other.uuid for other in fresh.values()}):
                delta.conflicts.add(unit.path, "The same item lies at two places of the store; the first one was taken.")
            elif item is None:
                item = fresh[unit.key] = self.models.item(**self._columns(unit.line))
                taken.append((unit, item))
            elif self._may_take(unit, item, delta):
                if item.uuid != unit.uuid:
                    for name, value in self._columns(unit.line).items():
                        setattr(item, name, value)
                    renamed.append(item)
                taken.append((unit, item))
        if renamed:
            names = [name for name in self._columns(units[0].line) if name != "account_id"]
            self.models.item.objects.bulk_update(renamed, names, batch_size=500)
        self.models.item.objects.bulk_create(fresh.values())
        self._write_refs(taken, delta)
        if self.kind is Kind.TEMPLATE:
            self._show(taken)

    def _look_around(self, item_ids: Sequence[int]) -> None:
        """What the items' refs say: the one on this store, and what lies elsewhere."""
        refs = self.models.ref.objects.filter(item__in=item_ids)
        rows = refs.filter(store=self.store).exclude(state=RefState.DESTROYED).select_for_update().order_by("pk")
        self.here = {ref.item_id: ref for ref in rows}
        whole = refs.filter(state__in=READABLE).exclude(error_str__startswith=MISSING)
        self.readable = set(whole.values_list("item_id", flat=True))
        proven = refs.filter(state__in=READABLE).exclude(proof=Proof.ADOPTED)
        self.proven = set(proven.values_list("item_id", flat=True))
        self.living = set(refs.exclude(state__in=_GONE).values_list("item_id", flat=True))

    def _may_take(self, unit: Unit, item: Any, delta: ScanReport) -> bool:
        if item.removed is not None or item.pk not in self.living:
            return False  # deleted: what lies there is debris
        ref = self.here.get(item.pk)
        if ref is not None:
            if ref.state != RefState.PROMISED or unit.problems:
                return False
            if item.pk in self.readable:
                delta.in_flight.add(unit.path, "Promised: it is copied and proven again, since another copy can be read.")
                return False
        if item.uuid != unit.uuid and (difference := self._difference(item, unit.line)):
            delta.conflicts.add(unit.path, difference)
            return False
        return True

    def _difference(self, item: Any, line: Line) -> str:
        """What speaks against the line being of this item, which was adopted under another uuid (design.md, section 4)."""
        if item.pk in self.proven:
            return f"Another {self.kind} of the same ids was proven, and has the uuid {item.uuid}."
        if self.kind is Kind.TEMPLATE and item.unique_name != line.get("unique_name"):
            return f"A {self.kind} of the same ids has another unique name ({item.unique_name})."
        if item.format != (line.get("format") or ""):
            return f"A {self.kind} of the same ids has another format ({item.format})."
        if item.size is not None and line.get("virtual_size") is not None and item.size != line["virtual_size"]:
            return f"A {self.kind} of the same ids has another size ({item.size} bytes)."
        return ""

    def _by_key(self, items: Any, units: Sequence[Unit]) -> dict[tuple[Any, ...], Any]:
        """Items that carry the same ids in their paths, such as those that an export's scan adopted before."""
        owner = "volume_upstream_id" if self.kind is Kind.SNAPSHOT else "upstream_id"
        keys = {unit.key for unit in units}
        alike = {"account_id__in": {key[0] for key in keys}, f"{owner}__in": {key[1] for key in keys}}
        rows = items.filter(Q(removed=None), **alike)
        found = {(row.account_id, getattr(row, owner), row.path if self.kind is Kind.SNAPSHOT else ""): row for row in rows}
        return {key: row for key, row in found.items() if key in keys}

    def _columns(self, line: Line) -> dict[str, Any]:
        columns: dict[str, Any] = {
            "uuid": uuid.UUID(line["uuid"]),
            "name": line["name"][:255],
            "account_id": line["account"],
            "upstream_id": line.get("upstream_id"),
            "format": line.get("format") or "",
            "hypervisor_type": line.get("hypervisor") or "",
            "size": line.get("virtual_size"),
            "created": parse_datetime(line.get("created") or "") or timezone.now(),
        }
        if self.kind is Kind.TEMPLATE:
            return columns | {name: line[name] for name in journal.TEMPLATE_FIELDS if name in line}
        columns["zone"] = next(iter(self._zones(line)), None)
        if self.kind is Kind.SNAPSHOT:
            columns |= {"volume_upstream_id": line["volume"], "path": line["path"]}
        return columns

    def _write_refs(self, taken: Sequence[tuple[Unit, Any]], delta: ScanReport) -> None:
        refs: list[Any] = []
        for unit, item in taken:
            ref = self.here.get(item.pk) or self.models.ref(store=self.store, item=item)
            for name, value in _ref_columns(unit).items():
                setattr(ref, name, value)
            ref.update_count += 1
            refs.append(ref)
        kept = [ref for ref in refs if ref.pk is not None]
        self.models.file.objects.filter(ref__in=kept).delete()  # those of a promise tell what was found damaged
        self.models.ref.objects.bulk_create([ref for ref in refs if ref.pk is None])
        self.models.ref.objects.bulk_update(kept, [*_REF_COLUMNS, "update_count"], batch_size=500)
        files = []
        for ref, (unit, _) in zip(refs, taken, strict=True):
            files += [self.models.file(ref=ref, **_file_columns(unit, file)) for file in unit.line["files"]]
            for path, problem in unit.problems.items():
                delta.corrupt.add(path, problem)
            iso = self.kind is Kind.TEMPLATE and unit.line.get("format") == "ISO"
            delta.found["iso" if iso else str(self.kind)] += 1
        self.models.file.objects.bulk_create(files)
        delta.adopted += len(refs)
        item_ids = [item.pk for _, item in taken]
        keep_hidden(self.kind, item_ids)
        holds.keep_promises(self.kind, item_ids)

    def _zones(self, line: Line) -> list[Zone]:
        """The line's zones; one that is not there is made, and one of the same name is the same."""
        found = []
        for told in line.get("zones") or []:
            if told["uuid"] not in self.zones:
                zone = Zone.objects.filter(uuid=told["uuid"]).first() or Zone.objects.filter(name=told["name"]).first()
                self.zones[told["uuid"]] = zone or Zone.objects.create(uuid=told["uuid"], name=told["name"])
            found.append(self.zones[told["uuid"]])
        return found

    def _show(self, taken: Sequence[tuple[Unit, Any]]) -> None:
        """Show the templates in the zones that their lines name."""
        shown = TemplateZoneRef.objects.filter(template__in=[item.pk for _, item in taken], removed=None)
        there = set(shown.values_list("template_id", "zone_id"))
        rows = [
            TemplateZoneRef(template=item, zone=zone)
            for unit, item in taken
            for zone in self._zones(unit.line)
            if (item.pk, zone.pk) not in there
        ]
        TemplateZoneRef.objects.bulk_create(rows)


_REF_COLUMNS = ("state", "install_path", "size", "physical_size", "proof", "sha256", "error_str", "updated")


def _ref_columns(unit: Unit) -> dict[str, Any]:
    """A ref as it comes back: Ready as a scan adopts it, or Failed where its objects are not what was proven. Hidden in either
    case, where it was deleted and is kept for what builds on it."""
    line = unit.line
    size = sum(file["size"] for file in line["files"])
    state = RefState.FAILED if unit.problems else RefState.READY
    named = [(relative_name(unit.path, file["path"]), file["sha256"]) for file in line["files"]]
    error = next(iter(unit.problems.values()), "")
    return {
        "state": RefState.HIDDEN if line.get("state") == RefState.HIDDEN else state,
        "install_path": unit.path,
        "size": size,
        "physical_size": line.get("physical_size") or size,
        "proof": Proof.ADOPTED,
        "sha256": line.get("sha256") or manifest_sha256(named),
        "error_str": error[:255],
        "updated": timezone.now(),
    }


def _file_columns(unit: Unit, file: Mapping[str, Any]) -> dict[str, Any]:
    info = unit.objects.get(file["path"])
    return {
        "path": file["path"],
        "size": file["size"],
        "version": info.version if info else "",
        "sha256": file["sha256"],
        "etag": (info.etag if info else "") or file["etag"],
        "proof": Proof.ADOPTED,
        "format": file.get("format") or "",
        "virtual_size": file.get("virtual_size"),
        "backing": file.get("backing") or "",
        "problem": unit.problems.get(file["path"], file.get("problem") or "")[:255],
    }


def _make_accounts(units: Sequence[Unit]) -> None:
    lines = {unit.line["account"]: unit.line for unit in units}
    there = Account.objects.in_bulk(lines)
    fresh, named = [], []
    for pk, line in lines.items():
        nameless = f"account {pk}"
        account = there.get(pk)
        if account is None:
            account = Account(pk=pk, account_name=line.get("account_name") or nameless)
            fresh.append(account)
        elif account.account_name == nameless and line.get("account_uuid"):  # a scan made it up
            account.account_name = line["account_name"]
            named.append(account)
        else:
            continue
        if line.get("account_uuid"):
            account.uuid = uuid.UUID(line["account_uuid"])
    Account.objects.bulk_create(fresh)
    Account.objects.bulk_update(named, ["account_name", "uuid"])
