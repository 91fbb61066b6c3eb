"""What a roll-back has to bring home: which items, to which exports, how much and how long, and what cannot go."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any

from django.db.models import Count, Exists, Min, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Now

from cloudstorage.commands import human_bytes
from migration.findings import EXAMPLES, Finding, unreachable
from migration.models import Conversion, Drain
from migration.states import ENDED_DRAINS
from stores.drivers.base import StoreDriver
from stores.drivers.errors import StoreError
from stores.models import KINDS, Hold, ImageStore, Kind, TemplateZoneRef, Transfer, Volume
from stores.services.counts import by_kind, total
from stores.services.image_stores import drivers_of
from stores.services.probing import within
from stores.services.scan.rows import CHANGED, MISSING
from stores.services.transfers import Wanted
from stores.states import READABLE, Proof, RefState, StoreState, TransferState

CHUNK = 2000
STREAMS = 8
CHECK_SECONDS = 30.0
RATE_SAMPLE = 200
"""Finished copies whose speed an estimate is made from."""


@dataclass(frozen=True, slots=True)
class Stranded:
    """An item whose bytes cannot be brought home, and why."""

    kind: str
    id: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What a roll-back would do, as the rows and the exports are now."""

    object_store: str
    ends: str
    """What a roll-back means, in some sentences."""
    home: dict[str, dict[str, int]]
    """kind -> items, bytes: copies that have to be brought home."""
    exports: Sequence[dict[str, Any]]
    """name, zone, items, bytes, free (None: not known), enough."""
    time: dict[str, Any]
    """low_seconds, high_seconds (None: nothing to base them on), basis."""
    born: dict[str, int]
    """kind -> items made since the conversion."""
    deleted: dict[str, int]
    """kind -> items deleted since the conversion; they stay deleted."""
    promised: dict[str, int]
    """kind -> promises that are taken back: these items never left NFS."""
    kept: dict[str, int]
    """kind -> proven copies that stay on the detached object store, to be used again by a later conversion."""
    being_written: int
    """Items that are being written to the object store now; the switch waits for them."""
    stranded: Sequence[Stranded]
    """Examples of what cannot go home."""
    stranded_count: int
    findings: Sequence[Finding]


@dataclass(slots=True)
class _Export:
    store: ImageStore
    free: int | None
    error: StoreError | None = None
    """Why it could not be asked."""
    items: int = 0
    bytes: int = 0

    @property
    def left(self) -> float:
        return float("inf") if self.free is None else self.free - self.bytes


@dataclass(slots=True)
class Homes:
    """The exports that a conversion made staging stores, and how much each is to take."""

    conversion: Conversion
    exports: dict[int, _Export]
    zones: dict[int, list[_Export]] = field(default_factory=lambda: defaultdict(list))
    going: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Snapshots with children that also go home -> the stores that they go to."""

    def best(self, zone_id: int, size: int) -> _Export:
        """Of a zone's exports one that may be written to, with the most space left."""
        chosen = max(self.zones[zone_id], key=lambda export: (not export.store.readonly, export.left, -export.store.pk))
        return self.put(chosen, size)

    @staticmethod
    def put(export: _Export, size: int) -> _Export:
        export.items += 1
        export.bytes += size
        return export


def homes_of(conversion: Conversion) -> Homes:
    """The exports that are still there, with the space that they had when they were last asked."""
    stores = ImageStore.objects.filter(conversion_stores__conversion=conversion, state=StoreState.ATTACHED)
    homes = Homes(conversion, {})
    for store in stores.select_related("zone").order_by("pk"):
        export = homes.exports[store.pk] = _Export(store, _known_free(store))
        homes.zones[store.zone_id or 0].append(export)
    return homes


def _measure(homes: Homes, drivers: Mapping[int, Callable[[], StoreDriver]]) -> None:
    """Ask each export how much space it has."""
    for pk, export in homes.exports.items():
        try:
            export.free = within(CHECK_SECONDS, export.store.name, drivers[pk]().free_bytes)
        except StoreError as error:
            export.free, export.error = None, error


def _known_free(store: ImageStore) -> int | None:
    if store.total_size is None or store.used_bytes is None:
        return None
    return store.total_size - store.used_bytes


# --- which items, and where to ---------------------------------------------------------------------------------------------


def returning(homes: Homes) -> Iterator[tuple[Kind, int, list[Wanted], list[Stranded]]]:
    """What has to come home, some at a time, parents before children: so many items of a kind, their copies, and what cannot.

    An item that an export has from before, or by a scan, is at home. Any other goes to its zone: that of its origin, else its
    volume's; a template to every zone that lists it; what tells no zone, to all.
    """
    for kind in KINDS:
        for refs in _in_order(kind, homes):
            zones = _zones(kind, refs, homes)
            parents = [ref.item.parent_id for ref in refs if getattr(ref.item, "parent_id", None) is not None]
            there = _present(kind, [*(ref.item_id for ref in refs), *parents], homes)
            # A chunk ends with its generation, for children look for where their parents go.
            for _, alike in groupby(refs, key=_depth):
                chunk = list(alike)
                yield kind, len(chunk), *_place(kind, chunk, zones, there, homes)


def _in_order(kind: Kind, homes: Homes) -> Iterator[list[Any]]:
    """What is away, parents before children. The order is read to its end first, in eight bytes for each: under a SELECT that is
    still being read, SQLite lets nobody write once others have."""
    rows = _away(kind, homes)
    order = ["item__depth", "pk"] if kind == Kind.SNAPSHOT else ["pk"]
    ids = array("q", rows.order_by(*order).values_list("pk", flat=True).iterator(chunk_size=CHUNK))
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK].tolist()
        found = rows.select_related("item").in_bulk(some)
        yield [found[pk] for pk in some if pk in found]


def _depth(ref: Any) -> int:
    return int(getattr(ref.item, "depth", 0))


def _away(kind: Kind, homes: Homes) -> QuerySet[Any]:
    """Refs on the object store of items that no export has from before."""
    refs = KINDS[kind].ref.objects
    before = Q(created__lte=homes.conversion.converted_at) | Q(proof=Proof.ADOPTED)
    original = refs.filter(before, item=OuterRef("item"), store__in=list(homes.exports), state__in=READABLE)
    away: QuerySet[Any] = refs.filter(~Exists(original), store=homes.conversion.object_store, state__in=READABLE)
    return away


def away(conversion: Conversion) -> tuple[int, int]:
    """(items, bytes) that a roll-back would bring home, as the rows are now; no store is asked."""
    homes = homes_of(conversion)
    found = by_kind({kind: _away(kind, homes) for kind in KINDS}, items=Count("pk"), bytes=Sum("size")).values()
    return sum(kind["items"] for kind in found), sum(kind["bytes"] for kind in found)


def homeless(homes: Homes) -> bool:
    """Whether the object store has anything that no export has: what may never be so when it is detached."""
    for models in KINDS.values():
        at_home = models.ref.objects.filter(item=OuterRef("item"), store__in=list(homes.exports), state__in=READABLE)
        there = models.ref.objects.filter(store=homes.conversion.object_store, state__in=READABLE)
        if there.filter(~Exists(at_home)).exists():
            return True
    return False


def being_written(conversion: Conversion) -> int:
    """Items on their way to the object store whose writers live."""
    rows = {}
    for kind, models in KINDS.items():
        held = Hold.objects.filter(kind=kind, ref_id=OuterRef("pk"), reason="write").exclude(expires__lt=Now())
        rows[kind] = models.ref.objects.filter(Exists(held), store=conversion.object_store, state=RefState.CREATING)
    return total(rows)


def _place(
    kind: Kind, refs: Sequence[Any], zones: Mapping[int, list[int]], stores: Mapping[int, list[int]], homes: Homes
) -> tuple[list[Wanted], list[Stranded]]:
    """`zones` to which items belong, `stores` that have them, or their parents, now."""
    wanted: list[Wanted] = []
    stranded: list[Stranded] = []
    for ref in refs:
        parent_id = getattr(ref.item, "parent_id", None)
        own = [zone for zone in zones[ref.item_id] or list(homes.zones) if zone in homes.zones]
        if parent_id is not None:
            targets, reason = _beside(homes.going.get(parent_id) or stores[parent_id], own, homes)
        else:
            taken = stores[ref.item_id]
            missing = [zone for zone in own if not any(export.store.pk in taken for export in homes.zones[zone])]
            targets = [homes.best(zone, ref.size).store.pk for zone in missing]
            reason = "" if own else "None of its zones has an export to go back to."
        if reason:
            stranded.append(Stranded(str(kind), str(ref.item.uuid), ref.item.name, reason))
            continue
        new = [target for target in targets if target not in stores[ref.item_id]]
        if parent_id is not None:
            for target in new:
                homes.put(homes.exports[target], ref.size)
        if kind == Kind.SNAPSHOT:
            homes.going[ref.item_id] = (*stores[ref.item_id], *new)
        wanted += [Wanted(kind, ref.item_id, ref.store_id, ref.pk, target, ref.size, _depth(ref)) for target in new]
    return wanted, stranded


def _beside(parent: Sequence[int], own: Sequence[int], homes: Homes) -> tuple[list[int], str]:
    """A child goes where its parent is: in its own zone if it is there, else to one other."""
    if not parent:
        return [], "The snapshot that it builds on cannot be read on any export."
    near = [store_id for store_id in parent if homes.exports[store_id].store.zone_id in own]
    return (near or list(parent))[:1], ""


def _zones(kind: Kind, refs: Sequence[Any], homes: Homes) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = {ref.item_id: [] for ref in refs}
    if kind == Kind.TEMPLATE:
        listed = TemplateZoneRef.objects.filter(template__in=found, removed=None).order_by("zone_id")
        own = listed.filter(Q(added_by=None) | ~Q(added_by=homes.conversion.uuid))
        for template_id, zone_id in own.values_list("template_id", "zone_id"):
            found[template_id].append(zone_id)
        return found
    for ref in refs:
        if ref.item.zone_id is not None:
            found[ref.item_id].append(ref.item.zone_id)
    unknown = [ref.item for ref in refs if kind == Kind.SNAPSHOT and ref.item.zone_id is None]
    if unknown:
        volumes = Volume.objects.filter(removed=None, upstream_id__in=[item.volume_upstream_id for item in unknown])
        rows = volumes.exclude(zone=None).values_list("account_id", "upstream_id", "zone_id")
        of_volume = {(account, number): (zone_id,) for account, number, zone_id in rows}
        for item in unknown:
            found[item.pk] += of_volume.get((item.account_id, item.volume_upstream_id), ())
    return found


def _present(kind: Kind, item_ids: Sequence[int], homes: Homes) -> Mapping[int, list[int]]:
    """Item -> the exports that have it (staged, or brought home before)."""
    found: dict[int, list[int]] = {item_id: [] for item_id in item_ids}
    refs = KINDS[kind].ref.objects.filter(item_id__in=item_ids, store__in=list(homes.exports), state__in=READABLE)
    for item_id, store_id in refs.order_by("pk").values_list("item_id", "store_id"):
        found[item_id].append(store_id)
    return found


# --- the plan --------------------------------------------------------------------------------------------------------------


def survey(conversion: Conversion) -> RollbackPlan:
    """The whole plan; asks the exports for their space, and writes nothing."""
    homes = homes_of(conversion)
    target = conversion.object_store
    drivers = drivers_of([target, *(export.store for export in homes.exports.values())])
    _measure(homes, drivers)
    home = {str(kind): {"items": 0, "bytes": 0} for kind in KINDS}
    born = {str(kind): 0 for kind in KINDS}
    examples: list[Stranded] = []
    stranded = 0
    for kind, count, wanted, left in returning(homes):
        born[str(kind)] += count
        for copy in wanted:
            home[copy.kind]["items"] += 1
            home[copy.kind]["bytes"] += copy.size
        stranded += len(left)
        examples += left[: max(0, 20 - len(examples))]
    there = _on(target)
    size = sum(entry["bytes"] for entry in home.values())
    writing = being_written(conversion)
    since = {kind: models.item.objects.filter(removed__gt=conversion.converted_at) for kind, models in KINDS.items()}
    deleted = by_kind(since)
    findings = [*_findings(conversion, homes, stranded, examples, writing)]
    if size and (found := _object_store(target, drivers[target.pk])):
        findings.append(found)
    return RollbackPlan(
        object_store=target.name,
        ends=f"The region goes back to NFS: what is only on {target.name} is copied home and proven, then the exports are its"
        f" secondary storage again. {target.name} stays as it is, detached; nothing on it is deleted, and what is proven there"
        " can be used again by a later conversion. What was deleted since the conversion stays deleted. While the last items"
        " come home, new ones are refused for that short time.",
        home=home,
        exports=[_export_row(export) for export in homes.exports.values()],
        time=_time(target, size, sum(entry["items"] for entry in home.values())),
        born=born,
        deleted={kind: found["items"] for kind, found in deleted.items()},
        promised={kind: found["promised"] for kind, found in there.items()},
        kept={kind: found["kept"] for kind, found in there.items()},
        being_written=writing,
        stranded=examples,
        stranded_count=stranded,
        findings=findings,
    )


def _on(store: ImageStore) -> dict[str, dict[str, int]]:
    """How many promises and how many proven copies it has, by kind."""
    promised, kept = (Count("pk", filter=Q(state__in=states)) for states in ((RefState.PROMISED,), READABLE))
    return by_kind({kind: models.ref.objects.filter(store=store) for kind, models in KINDS.items()}, promised=promised, kept=kept)


def _export_row(export: _Export) -> dict[str, Any]:
    store = export.store
    zone = store.zone.name if store.zone else ""
    row = {"name": store.name, "zone": zone, "items": export.items, "bytes": export.bytes, "free": export.free}
    return row | {"enough": export.left >= 0}


def _time(target: ImageStore, size: int, items: int) -> dict[str, Any]:
    """From the copies to and from the object store that ended last."""
    if not items:
        return {"low_seconds": 0.0, "high_seconds": 0.0, "basis": "Nothing has to be copied; the switch itself takes seconds."}
    done = Transfer.objects.filter(Q(target=target) | Q(source=target), state=TransferState.PROVEN, bytes_total__gt=0)
    sample = list(done.order_by("-finished_at").only("bytes_total", "started_at", "finished_at")[:RATE_SAMPLE])
    seconds = sum(max(0.001, _seconds(row)) for row in sample)
    if not sample:
        basis = "Nothing was copied to or from the object store yet, so there is nothing to base an estimate on."
        return {"low_seconds": None, "high_seconds": None, "basis": basis}
    high = size * seconds / sum(row.bytes_total for row in sample)
    basis = f"The speed of the last {len(sample)} copies; low: {STREAMS} at once, high: one after the other."
    return {"low_seconds": round(high / STREAMS, 1), "high_seconds": round(high, 1), "basis": basis}


def _seconds(row: Transfer) -> float:
    return (row.finished_at - row.started_at).total_seconds() if row.finished_at and row.started_at else 0.0


def _findings(
    conversion: Conversion, homes: Homes, stranded: int, examples: Sequence[Stranded], writing: int
) -> Iterable[Finding]:
    target = conversion.object_store
    if not homes.exports:
        message = "None of the exports from before the conversion is attached any more: there is nothing to go back to."
        yield Finding("no-exports", "blocker", message, "Commit the conversion instead.")
    for export in homes.exports.values():
        if export.error is not None:
            yield unreachable(export.store, export.error)
        elif export.left < 0:
            room, size_home = human_bytes(export.free or 0), human_bytes(export.bytes)
            message = f"{export.store.name} has {room} free, and {size_home} would have to come home to it."
            remedy = "Add space to the export, or delete what need not come home, then try again."
            yield Finding("target-full", "blocker", message, remedy).at(export.store)
        elif export.items and export.store.readonly:
            message = f"{export.store.name} is read-only; {export.items} items would be copied to it all the same."
            yield Finding("read-only", "warning", message, "Make sure that this is what you want.").at(export.store)
    if stranded:
        message = f"{stranded} items cannot go home, and nobody could read them once {target.name} is detached."
        remedy = "Delete them, or show the template in a zone that has an export, then try again."
        named = tuple(f"{found.kind} {found.name}: {found.reason}" for found in examples[:EXAMPLES])
        yield Finding("cannot-go-home", "blocker", message, remedy, examples=named)
    yield from damaged(homes)
    if writing:
        message = f"{writing} items are being written to {target.name} now; the switch waits for them."
        yield Finding("being-written", "info", message)
    live = Drain.objects.filter(conversion=conversion).exclude(state__in=ENDED_DRAINS)
    if drain := live.first():
        message = f"The drain {drain.uuid} is {drain.state}; it is cancelled when the roll-back begins."
        yield Finding("drain-live", "info", message)


def _object_store(target: ImageStore, driver: Callable[[], StoreDriver]) -> Finding | None:
    try:
        within(CHECK_SECONDS, target.name, driver().check)
    except StoreError as error:
        message = f"{target.name} does not answer, and some items are only there: {error}"
        return Finding("object-store-unreachable", "blocker", message, error.remedy)
    return None


def damaged(homes: Homes) -> Iterable[Finding]:
    """Items whose only copy is damaged, and originals that scans found missing or changed, of which there is a proven copy."""
    yield from _only_copies(homes)
    bad = Q(problem__startswith=MISSING) | Q(problem__startswith=CHANGED)
    counts: dict[int, int] = defaultdict(int)
    examples: dict[int, list[str]] = defaultdict(list)
    by_store = []
    for models in KINDS.values():
        proven = models.ref.objects.filter(store=homes.conversion.object_store, item=OuterRef("ref__item"), state__in=READABLE)
        files = models.file.objects.filter(bad, Exists(proven), ref__store__in=list(homes.exports), ref__state__in=READABLE)
        by_store.append(files.order_by().values_list("ref__store").annotate(Count("ref", distinct=True), Min("path")))
    for store_id, count, path in by_store[0].union(*by_store[1:], all=True):
        counts[store_id] += count
        examples[store_id].append(path)
    for store_id, count in counts.items():
        store = homes.exports[store_id].store
        message = (
            f"{count} originals on {store.name} are missing or changed; after the roll-back they are what counts, though the"
            " object store has proven copies."
        )
        remedy = "Restore the named files and scan the export again, or commit the conversion instead."
        found = Finding("damaged-originals", "blocker", message, remedy, overridable=True, examples=tuple(examples[store_id]))
        yield found.at(store)


def _only_copies(homes: Homes) -> Iterable[Finding]:
    """What a verification found damaged on the object store, with no other copy: it cannot come home."""
    store = homes.conversion.object_store
    lost = {}
    for kind, models in KINDS.items():
        readable = models.ref.objects.filter(item=OuterRef("item"), state__in=READABLE, store__state=StoreState.ATTACHED)
        lost[kind] = models.ref.objects.filter(~Exists(readable), store=store, state=RefState.FAILED).exclude(install_path="")
    count = total(lost)
    if count:
        message = f"{count} items have only a damaged copy, on {store.name}: it stays there, kept and not readable."
        remedy = "Put the right content back and verify the store first; or delete the items."
        named = (rows.order_by("pk").values_list("item__name", flat=True)[:EXAMPLES] for rows in lost.values())
        examples = tuple(islice(chain.from_iterable(named), EXAMPLES))
        yield Finding("damaged-only-copies", "blocker", message, remedy, overridable=True, examples=examples).at(store)
