"""Counts what a region holds for the preflight, in a number of queries that does not grow with the rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db.models import Count, F, IntegerField, Min, Q, Sum, Value
from django.db.models.functions import Least
from django.template.defaultfilters import pluralize
from django.utils import timezone

from migration.findings import Finding, amount
from stores.drivers.base import MiB, StoreDriver
from stores.models import KINDS, ImageStore, SnapshotStoreRef, Transfer, WorkerReach
from stores.states import LIVE_TRANSFER_STATES, READABLE, RefState

if TYPE_CHECKING:
    from migration.sampling import Sample

LARGEST = 20
DEFAULT_PART = 16 * MiB
DEFAULT_PARTS = 10_000


def zones(stores: Sequence[ImageStore], samples: Mapping[int, Sample]) -> list[dict[str, Any]]:
    """Per zone: its stores, distinct items and bytes by kind, the largest items, and how deep the chains go."""
    by_zone: dict[int, list[ImageStore]] = defaultdict(list)
    for store in stores:
        assert store.zone_id is not None  # the table's constraint: an NFS store has a zone
        by_zone[store.zone_id].append(store)
    items = _items(stores)
    depths = _chain_depths(stores)
    found = []
    for zone_id, members in by_zone.items():
        zone = members[0].zone
        assert zone is not None
        found.append(
            {
                "zone": zone.name,
                "stores": [_store(store, samples.get(store.pk)) for store in members],
                "items": items[zone_id],
                "largest": _largest(members),
                "chain_depths": depths[zone_id],
            }
        )
    return found


def _store(store: ImageStore, sample: Sample | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": store.name,
        "uuid": str(store.uuid),
        "url": store.url,
        "scanned_at": store.scanned_at.isoformat() if store.scanned_at else None,
        "reached": sample is not None,
    }
    if sample is not None:
        entry |= {"files": sample.files, "files_opened": sample.opened, "unreadable": sample.unreadable, "choice": sample.choice}
    return entry


def _items(stores: Sequence[ImageStore]) -> dict[int, dict[str, dict[str, int]]]:
    """Zone -> kind -> count of distinct items, apparent and allocated bytes of all copies in the zone."""
    found: dict[int, dict[str, dict[str, int]]] = defaultdict(dict)
    for kind, models in KINDS.items():
        rows = (
            models.ref.objects.filter(store__in=stores, state__in=READABLE)
            .order_by()
            .values_list("store__zone")
            .annotate(Count("item_id", distinct=True), Sum("size"), Sum("physical_size"))
        )
        for zone_id, count, apparent, allocated in rows:
            found[zone_id][kind] = {"count": count, "apparent": apparent, "allocated": allocated}
    return found


def _largest(stores: Sequence[ImageStore]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for kind, models in KINDS.items():
        rows = models.ref.objects.filter(store__in=stores, state__in=READABLE).order_by("-size", "id")
        for name, item, size, path in rows.values_list("item__name", "item__uuid", "size", "install_path")[:LARGEST]:
            found.append({"kind": kind, "item": str(item), "name": name, "size": size, "path": path})
    return sorted(found, key=lambda entry: -int(entry["size"]))[:LARGEST]


def _chain_depths(stores: Sequence[ImageStore]) -> dict[int, dict[str, int]]:
    """Zone -> depth (as text, for JSON) -> snapshots of that depth."""
    rows = (
        SnapshotStoreRef.objects.filter(store__in=stores, state__in=READABLE)
        .order_by("store__zone", "item__depth")
        .values_list("store__zone", "item__depth")
        .annotate(Count("item_id", distinct=True))
    )
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for zone_id, depth, count in rows:
        found[zone_id][str(depth)] = count
    return found


# --- what a person should know of it -------------------------------------------------------------------------------------


def findings(stores: Sequence[ImageStore]) -> list[Finding]:
    """Findings from rows that normal traffic changes: they are reported, and do not make a report stale."""
    reach = _workers(stores)
    flying = _in_flight(stores)
    found: list[Finding] = []
    for store in stores:
        found += _scan_findings(store)
        if not reach.get(store.pk):
            message = f"No running worker reaches {store.name}: nothing on it could be moved."
            remedy = "Mount it where a worker runs, or start one there. Without, a conversion is safe, but nothing can drain."
            found.append(Finding("export-unreachable-by-workers", "blocker", message, remedy, True).at(store))
        if count := flying.get(store.pk):
            message = f"{count} items are being written to {store.name}; they finish there and are promised when they do."
            found.append(Finding("in-flight", "info", message, "Nothing to do.").at(store))
    under_way = Transfer.objects.filter(Q(source__in=stores) | Q(target__in=stores), state__in=LIVE_TRANSFER_STATES).count()
    if under_way:
        message = f"{under_way} copies from or to these stores are under way or waiting; they go on after the conversion."
        found.append(Finding("copies-under-way", "info", message, "Nothing to do."))
    return found


def _workers(stores: Sequence[ImageStore]) -> dict[int, int]:
    """How many live workers reach each store."""
    rows = WorkerReach.objects.of_living_workers().filter(store__in=stores, ok=True)
    return dict(rows.order_by().values_list("store").annotate(Count("worker", distinct=True)))


def _in_flight(stores: Sequence[ImageStore]) -> dict[int, int]:
    found: dict[int, int] = defaultdict(int)
    for models in KINDS.values():
        rows = models.ref.objects.filter(store__in=stores, state__in=[RefState.ALLOCATED, RefState.CREATING])
        for store_id, count in rows.order_by().values_list("store").annotate(Count("id")):
            found[store_id] += count
    return found


SCAN_FINDINGS = {
    "orphaned": ("orphans", "of no item that is understood, so that they stay where they are and are not moved"),
    "unknown": ("unknown-entries", "outside CloudStack's layout, so that they stay where they are and are not moved"),
    "missing": ("missing-files", "recorded, but gone"),
    "changed": ("changed-files", "other than recorded"),
    "corrupt": ("corrupt-files", "damaged"),
    "unreadable": ("unreadable-entries", "not to be read"),
    "foreign_writes": ("foreign-writes", "written by others while the store was only for staging"),
}


def _scan_findings(store: ImageStore) -> Iterable[Finding]:
    if store.scanned_at is None:
        return
    age = timezone.now() - store.scanned_at
    if age.total_seconds() > settings.PREFLIGHT_MAX_AGE_SECONDS:
        message = f"{store.name} was last scanned {age.total_seconds() / 3600:.0f} hours ago; what changed since is not known."
        yield Finding("scan-old", "warning", message, "Scan the store again, then run the preflight again.").at(store)
    for key, (code, meaning) in SCAN_FINDINGS.items():
        found = store.scan_report.get(key)
        if count := amount(found):
            examples = tuple(f"{entry['path']}: {entry['message']}".rstrip(": ") for entry in found["examples"][:5])
            message = f"The last scan of {store.name} found {count} file{pluralize(count)} {meaning}."
            remedy = "Look at the scan report of the store and decide before converting."
            yield Finding(code, "warning", message, remedy, examples=examples).at(store)


# --- what it will cost ---------------------------------------------------------------------------------------------------


def requests(stores: Sequence[ImageStore], driver: StoreDriver | None) -> dict[str, int]:
    """What a drain of everything will send: items, objects, bytes and write requests, each item counted once.

    Part sizes are those that the copier will use (`part_size_for`), as the driver's probed limits have them.
    """
    part = driver.part_size_for(0) if driver else DEFAULT_PART
    parts_at_most = driver.capabilities.max_parts if driver else DEFAULT_PARTS
    total = {"items": 0, "objects": 0, "bytes": 0, "puts": 0, "uploads": 0, "parts": 0, "part_size": part}
    for models in KINDS.values():
        sources = models.ref.objects.filter(store__in=stores, state__in=READABLE).order_by().values("item_id")
        total["items"] += sources.distinct().count()
        files = models.file.objects.filter(ref__in=sources.annotate(first=Min("id")).values("first"))
        needed = Least((F("size") + Value(part - 1)) / Value(part), Value(parts_at_most), output_field=IntegerField())
        large = Q(size__gt=part)
        row = files.aggregate(
            objects=Count("id"), bytes=Sum("size"), uploads=Count("id", filter=large), parts=Sum(needed, filter=large)
        )
        total["objects"] += row["objects"]
        total["bytes"] += row["bytes"] or 0
        total["puts"] += row["objects"] - row["uploads"]
        total["uploads"] += row["uploads"]
        total["parts"] += row["parts"] or 0
    total["requests"] = total["puts"] + 2 * total["uploads"] + total["parts"]
    return total
