"""Writes what a batch of directories holds into the rows: adopts what is new, notes what changed, never overwrites a proof."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from django.db.models import Q
from django.utils import timezone

from stores import layout
from stores.drivers.base import ObjectInfo
from stores.models import KINDS, Account, ImageStore, Item, Snapshot, StoreFile, StoreRef, TemplateZoneRef
from stores.services import holds, journal
from stores.services.scan.reading import FoundFile, FoundItem
from stores.services.scan.report import ScanReport, printable
from stores.states import PROVEN, READABLE, Kind, Proof, RefState, Role

MISSING, CHANGED = "missing: ", "changed: "
"""How the problem of a file begins that a later scan takes back when the file is there, or as it was, again."""

_CHUNK = 500
_TEXT = 255
_FILE_FIELDS = ["size", "version", "etag", "format", "virtual_size", "backing", "problem", "sha256", "proof"]


@dataclass(slots=True)
class Known:
    """A ref at an install path, with its files by path."""

    ref: StoreRef
    files: dict[str, StoreFile] = field(default_factory=dict)


class Verdict(Enum):
    UNCHANGED = "unchanged"
    READ = "read"
    IN_FLIGHT = "in flight"


@dataclass(slots=True)
class Outcome:
    """What a commit did, to be added to the report once it is durable."""

    report: ScanReport = field(default_factory=ScanReport)
    seen: dict[Kind, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Ids of the file rows that are accounted for."""


def load(store: ImageStore, paths: Mapping[Kind, Sequence[str]], *, lock: bool = False) -> dict[str, Known]:
    """Refs that are not destroyed, by install path; two queries per kind and 500 paths. `lock` needs a transaction."""
    known: dict[str, Known] = {}
    for kind, wanted in paths.items():
        models = KINDS[kind]
        for chunk in _chunks(wanted):
            refs = models.ref.objects.filter(store=store, install_path__in=chunk).exclude(state=RefState.DESTROYED)
            refs = refs.select_related("item").order_by("pk")
            if lock:
                refs = refs.select_for_update(of=("self",))
            by_id = {ref.pk: known.setdefault(ref.install_path, Known(ref)) for ref in refs}
            for file in models.file.objects.filter(ref_id__in=list(by_id)):
                by_id[file.ref_id].files[file.path] = file
    return known


def judge(known: Known, entries: Sequence[ObjectInfo], names: Collection[str]) -> Verdict:
    """Whether the files at an install path are as their rows say; `names` are those in the same directory.

    Equal versions are believed: an unchanged file is not opened again.
    """
    if known.ref.state not in READABLE:
        return Verdict.IN_FLIGHT
    for info in entries:
        row = known.files.get(info.key)
        if row is None:
            if info.key.endswith((layout.TEMPLATE_PROPERTIES, layout.VOLUME_PROPERTIES)):
                return Verdict.READ
        else:
            lost_parent = row.backing and row.backing not in names and not row.problem
            if lost_parent or row.version != info.version or row.problem.startswith((MISSING, CHANGED)):
                return Verdict.READ
    return Verdict.UNCHANGED


def apply(store: ImageStore, started: datetime, found: Sequence[FoundItem], before: Mapping[str, Known]) -> Outcome:
    """Adopt or update items inside the caller's transaction; a fixed number of queries per kind, whatever their number.

    `before` is what was loaded before the files were read: a ref that is another since then is left to the next scan.
    """
    outcome = Outcome()
    by_kind: dict[Kind, list[FoundItem]] = defaultdict(list)
    for item in found:
        by_kind[item.kind].append(item)
    now = load(store, {kind: [item.install_path for item in group] for kind, group in by_kind.items()}, lock=True)
    for kind, group in by_kind.items():
        fresh: list[FoundItem] = []
        again: list[tuple[FoundItem, Known]] = []
        for item in group:
            known, former = now.get(item.install_path), before.get(item.install_path)
            if _stamp(known) != _stamp(former) or (known is not None and known.ref.state not in READABLE):
                outcome.report.in_flight.add(item.install_path, "Written or deleted while it was scanned.")
            elif known is None:
                fresh.append(item)
            else:
                again.append((item, known))
        _Kind(store, kind, started, outcome).write(fresh, again)
    return outcome


def _stamp(known: Known | None) -> tuple[int, int] | None:
    return None if known is None else (known.ref.pk, known.ref.update_count)


class _Kind:
    """The writing of one kind's share of a batch."""

    def __init__(self, store: ImageStore, kind: Kind, started: datetime, outcome: Outcome) -> None:
        self.store, self.kind, self.started = store, kind, started
        self.models = KINDS[kind]
        self.outcome = outcome
        self.report = outcome.report

    def write(self, fresh: Sequence[FoundItem], again: Sequence[tuple[FoundItem, Known]]) -> None:
        taken = [item for item, _ in again]
        self._update(again)
        if fresh:
            taken += self._adopt(fresh)
        if self.kind is Kind.SNAPSHOT and taken:
            self._link_parents(taken)

    # --- new -----------------------------------------------------------------------------------------------------------

    def _adopt(self, fresh: Sequence[FoundItem]) -> list[FoundItem]:
        """Make items, refs and files; returns what was adopted."""
        _make_accounts({item.account_id for item in fresh})
        items = self._items_by_key(fresh)
        held = self._held([item.pk for item in items.values()])
        deleted = self._just_deleted([item.install_path for item in fresh])
        names = self._file_names([item.pk for item in items.values()]) if self.kind is Kind.VOLUME else {}
        left_out: set[str] = set()
        taken: list[tuple[FoundItem, Item]] = []
        for found in sorted(fresh, key=lambda item: (item.depth, item.install_path)):
            item = items.get(_key(found))
            above = f"{found.install_path.rpartition('/')[0]}/{found.parent}" if found.parent else ""
            if found.install_path in deleted or (item is not None and item.pk in held):
                left_out.add(found.install_path)
                self.report.in_flight.add(found.install_path, "Written or deleted while it was scanned.")
            elif above in left_out:
                left_out.add(found.install_path)
                self.report.conflicts.add(found.install_path, f"Its parent {found.parent} was left out.")
            elif item is not None and (difference := _difference(item, found, names.get(item.pk))):
                left_out.add(found.install_path)
                self.report.conflicts.add(
                    found.install_path, f"Another store has the same {self.kind} with another {difference}."
                )
            else:
                taken.append((found, item or self._new_item(found)))
        self.models.item.objects.bulk_create([item for _, item in taken if item.pk is None])
        self._make_refs(taken)
        if self.kind is Kind.TEMPLATE and self.store.zone_id is not None:
            _show_in_zone(self.store.zone_id, [item.pk for _, item in taken])
            journal.outdated(self.kind, Q(pk__in=[item.pk for _, item in taken]))
        return [found for found, _ in taken]

    def _held(self, item_ids: Sequence[int]) -> set[int]:
        """Items that have a ref on this store already, wherever it lies."""
        refs = self.models.ref.objects.filter(store=self.store).exclude(state=RefState.DESTROYED)
        return {pk for chunk in _chunks(item_ids) for pk in refs.filter(item_id__in=chunk).values_list("item_id", flat=True)}

    def _just_deleted(self, paths: Sequence[str]) -> set[str]:
        """Install paths that were deleted since the scan began: what was listed there is gone."""
        refs = self.models.ref.objects.filter(store=self.store, state=RefState.DESTROYED, updated__gte=self.started)
        found = (refs.filter(install_path__in=chunk).values_list("install_path", flat=True) for chunk in _chunks(paths))
        return {path for chunk in found for path in chunk}

    def _make_refs(self, taken: Sequence[tuple[FoundItem, Item]]) -> None:
        now = timezone.now()
        refs = [
            self.models.ref(
                store=self.store,
                item=item,
                state=RefState.READY,
                install_path=found.install_path,
                proof=Proof.ADOPTED,
                error_str=_summary(found),
                created=now,
                updated=now,
                **_sizes(found),
            )
            for found, item in taken
        ]
        self.models.ref.objects.bulk_create(refs)
        foreign = holds.make_promises(self.kind, self.store.pk, refs)
        files = [
            self.models.file(ref=ref, path=file.path, **_columns(file))
            for ref, (found, _) in zip(refs, taken, strict=True)
            for file in found.files
        ]
        self.models.file.objects.bulk_create(files)
        self.outcome.seen[self.kind] += [file.pk for file in files]
        self.report.adopted += len(refs)
        for found, _ in taken:
            self._tell_problems(found)
            if foreign:
                self.report.foreign_writes.add(
                    found.install_path, "Written by somebody else after the conversion; adopted and promised."
                )

    def _items_by_key(self, found: Iterable[FoundItem]) -> dict[tuple[Any, ...], Any]:
        """Items that have the keys of `found`, whatever store they are on."""
        owner = "volume_upstream_id" if self.kind is Kind.SNAPSHOT else "upstream_id"
        accounts, owners = {item.account_id for item in found}, sorted({item.owner_id for item in found})
        items: dict[tuple[Any, ...], Any] = {}
        for chunk in _chunks(owners):
            rows = self.models.item.objects.filter(removed=None, account_id__in=accounts, **{f"{owner}__in": chunk})
            for item in rows.select_related("parent") if self.kind is Kind.SNAPSHOT else rows:
                path = item.path if self.kind is Kind.SNAPSHOT else ""
                items[item.account_id, getattr(item, owner), path] = item
        keys = {_key(item) for item in found}
        return {key: item for key, item in items.items() if key in keys}

    def _new_item(self, found: FoundItem) -> Any:
        item = self.models.item(
            account_id=found.account_id,
            name=found.name[:_TEXT],
            format=found.format,
            hypervisor_type=found.hypervisor,
            size=found.size,
        )
        if self.kind is Kind.SNAPSHOT:
            item.volume_upstream_id, item.path, item.depth = found.owner_id, found.path, found.depth
        else:
            item.upstream_id = found.owner_id
        if self.kind is Kind.TEMPLATE:
            item.unique_name = found.unique_name
            item.display_text, item.checksum = found.display_text[:4096], found.checksum[:_TEXT]
            item.public = found.public
            item.type = _template_type(found)
        else:
            item.zone = self.store.zone
        return item

    def _file_names(self, item_ids: Sequence[int]) -> dict[int, set[str]]:
        """Names of the images that each item has on other stores: what tells volumes of one id apart."""
        names: dict[int, set[str]] = defaultdict(set)
        files = self.models.file.objects.filter(ref__state__in=READABLE).exclude(ref__store=self.store)
        for chunk in _chunks(item_ids):
            for item_id, path in files.filter(ref__item_id__in=chunk).values_list("ref__item_id", "path"):
                names[item_id].add(path.rpartition("/")[2])
        return names

    def _link_parents(self, taken: Sequence[FoundItem]) -> None:
        items = self._items_in_folders(taken)
        changed = []
        for found in taken:
            item = items.get(_key(found))
            if item is None:
                continue
            parent = items.get((found.account_id, found.owner_id, found.parent)) if found.parent else None
            parent_id, depth = (parent.pk if parent else None), found.depth
            if (item.parent_id, item.depth) != (parent_id, depth):
                item.parent_id, item.depth = parent_id, depth
                changed.append(item)
        Snapshot.objects.bulk_update(changed, ["parent", "depth"], batch_size=_CHUNK)

    def _items_in_folders(self, taken: Sequence[FoundItem]) -> dict[tuple[int, int, str], Any]:
        accounts = {item.account_id for item in taken}
        items: dict[tuple[int, int, str], Any] = {}
        for chunk in _chunks(sorted({item.owner_id for item in taken})):
            rows = Snapshot.objects.filter(removed=None, account_id__in=accounts, volume_upstream_id__in=chunk)
            for item in rows.only("account_id", "volume_upstream_id", "path", "parent_id", "depth"):
                assert item.volume_upstream_id is not None
                items[item.account_id, item.volume_upstream_id, item.path] = item
        return items

    # --- known ---------------------------------------------------------------------------------------------------------

    def _update(self, again: Sequence[tuple[FoundItem, Known]]) -> None:
        """Bring rows up to date with files that differ, but leave every row that carries a proof as it is."""
        elsewhere = self._proofs_elsewhere([known.ref.item_id for found, known in again if _differing(found, known)])
        files: list[StoreFile] = []
        refs: list[StoreRef] = []
        items: list[Item] = []
        new: list[StoreFile] = []
        taken_over: list[int] = []
        for found, known in again:
            ref = known.ref
            self.outcome.seen[self.kind] += [known.files[file.path].pk for file in found.files if file.path in known.files]
            differing = _differing(found, known)
            copies_proofs = elsewhere[ref.item_id]
            if not differing:
                self.report.unchanged += 1
            elif _is_proven(known) or copies_proofs & PROVEN:
                _keep_proof(found, known)
            else:
                new += self._take_over(found, known, others=bool(copies_proofs), items=items)
                taken_over.append(ref.item_id)
                refs.append(ref)
            for path, message in differing.items():
                self.report.changed.add(path, message)
                if self.store.role == Role.IMAGE_CACHE:
                    self.report.foreign_writes.add(path, message)
            files += [row for file in found.files if (row := known.files.get(file.path)) and _sync(row, file, differing)]
            summary = _summary(found)
            if ref.error_str != summary and not (
                not summary and ref.error_str.startswith(MISSING) and len(found.files) < len(known.files)
            ):
                ref.error_str = summary
                refs.append(ref)
            self._tell_problems(found)
        for chunk in _chunks(taken_over):  # what a promise had to be, of which a damaged copy was withdrawn, binds it no more
            self.models.ref.objects.filter(item_id__in=chunk, state=RefState.PROMISED).exclude(sha256="").update(sha256="")
        self.models.file.objects.bulk_update(files, _FILE_FIELDS, batch_size=_CHUNK)
        self.models.file.objects.bulk_create(new)
        self.outcome.seen[self.kind] += [row.pk for row in new]
        now = timezone.now()
        changed = list({ref.pk: ref for ref in refs}.values())
        for ref in changed:
            ref.updated, ref.update_count = now, ref.update_count + 1
        fields = ["size", "physical_size", "error_str", "updated", "update_count"]
        self.models.ref.objects.bulk_update(changed, fields, batch_size=_CHUNK)
        self.models.item.objects.bulk_update(items, ["size", "format", "hypervisor_type"], batch_size=_CHUNK)

    def _proofs_elsewhere(self, item_ids: Sequence[int]) -> dict[int, set[str]]:
        """The proofs of each item's readable copies on other stores."""
        proofs: dict[int, set[str]] = defaultdict(set)
        copies = self.models.ref.objects.filter(state__in=READABLE).exclude(store=self.store)
        for chunk in _chunks(item_ids):
            for item_id, proof in copies.filter(item_id__in=chunk).values_list("item_id", "proof"):
                proofs[item_id].add(proof)
        return proofs

    def _take_over(self, found: FoundItem, known: Known, *, others: bool, items: list[Item]) -> list[StoreFile]:
        """An adopted copy that nobody proved: what is there now is what the row says; returns the new file rows."""
        ref, item = known.ref, known.ref.item
        for name, value in _sizes(found).items():
            setattr(ref, name, value)
        if (item.size, item.format) != (found.size, found.format):
            if others:
                found.problem = "differs from the item's copies on other stores"
                self.report.conflicts.add(found.install_path, f"It {found.problem} since it was changed here.")
            else:
                item.size, item.format, item.hypervisor_type = found.size, found.format, found.hypervisor
                items.append(item)
        return [
            self.models.file(ref=ref, path=file.path, **_columns(file)) for file in found.files if file.path not in known.files
        ]

    def _tell_problems(self, found: FoundItem) -> None:
        for path, message in found.problems:
            if not message.startswith(CHANGED):
                self.report.corrupt.add(path, message)


def _differing(found: FoundItem, known: Known) -> dict[str, str]:
    """Path -> what differs, of files that are others than their rows say, or that no row knows."""
    differing: dict[str, str] = {}
    for file in found.files:
        row = known.files.get(file.path)
        if row is None:
            differing[file.path] = "New beside the files that were known."
        elif row.version != file.version:
            size = f"{row.size} bytes then, {file.size} now" if row.size != file.size else f"still {file.size} bytes"
            differing[file.path] = f"Written since it was known: {size}."
    return differing


def _is_proven(known: Known) -> bool:
    """Whether we ever read or wrote these bytes ourselves."""
    return (
        known.ref.proof in PROVEN
        or bool(known.ref.sha256)
        or any(row.sha256 or row.proof in PROVEN for row in known.files.values())
    )


def _keep_proof(found: FoundItem, known: Known) -> None:
    """The proven content is no longer what lies here: say so on the file, and keep what was proven."""
    for file in found.files:
        row = known.files.get(file.path)
        if row is not None and row.version != file.version:
            file.problem = f"{CHANGED}{row.size} bytes were proven, {file.size} other ones are here now"


def _sync(row: StoreFile, file: FoundFile, differing: Collection[str]) -> bool:
    """Make the row say what the file is; false where it did already."""
    if file.path in differing and not file.problem.startswith(CHANGED):
        for name, value in _columns(file).items():
            setattr(row, name, value)
        row.sha256 = ""
        return True
    problem = printable(file.problem)[:_TEXT]
    if row.problem == problem:
        return False
    row.problem = problem
    return True


def _columns(file: FoundFile) -> dict[str, Any]:
    return {
        "size": file.size,
        "version": file.version,
        "etag": file.etag,
        "proof": Proof.ADOPTED,
        "format": file.format,
        "virtual_size": file.virtual_size,
        "backing": file.backing,
        "problem": printable(file.problem)[:_TEXT],
    }


def _sizes(found: FoundItem) -> dict[str, int]:
    allocated = sum(file.size if file.allocated is None else file.allocated for file in found.files)
    return {"size": sum(file.size for file in found.files), "physical_size": allocated}


def _summary(found: FoundItem) -> str:
    return printable(found.problems[0][1])[:_TEXT] if found.problems else ""


def _key(found: FoundItem) -> tuple[int, int, str]:
    return found.account_id, found.owner_id, found.path if found.kind is Kind.SNAPSHOT else ""


def _difference(item: Any, found: FoundItem, names: set[str] | None) -> str:
    """What speaks against `found` being a copy of `item` (design.md, section 4); empty when nothing does."""
    if found.kind is Kind.TEMPLATE and item.unique_name != found.unique_name:
        return f"unique name ({printable(item.unique_name)})"
    if names and names != {file.path.rpartition("/")[2] for file in found.files}:
        return f"file name ({printable(', '.join(sorted(names)))})"
    if item.format != found.format:
        return f"format ({item.format})"
    if item.size is not None and found.size is not None and item.size != found.size:
        return f"size ({item.size} bytes)"
    if found.kind is Kind.SNAPSHOT and (item.parent.path if item.parent else "") != found.parent:
        return f"parent ({printable(item.parent.path) if item.parent else 'none'})"
    return ""


def _template_type(found: FoundItem) -> str:
    """Account 1 is CloudStack's system account: the system VM templates (`routing-*`) and the built-in ones."""
    if found.account_id != 1:
        return "USER"
    return "SYSTEM" if found.unique_name.startswith(("routing-", "systemvm")) else "BUILTIN"


def _make_accounts(ids: set[int]) -> None:
    missing = ids - set(Account.objects.filter(pk__in=ids).values_list("pk", flat=True))
    rows = [Account(pk=pk, account_name=f"account {pk}") for pk in sorted(missing)]
    Account.objects.bulk_create(rows, ignore_conflicts=True)


def _chunks(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    for at in range(0, len(values), _CHUNK):
        yield values[at : at + _CHUNK]


def _show_in_zone(zone_id: int, item_ids: Sequence[int]) -> None:
    for chunk in _chunks(item_ids):
        rows = TemplateZoneRef.objects.filter(zone_id=zone_id, template_id__in=chunk, removed=None)
        there = set(rows.values_list("template_id", flat=True))
        TemplateZoneRef.objects.bulk_create([TemplateZoneRef(zone_id=zone_id, template_id=pk) for pk in chunk if pk not in there])
