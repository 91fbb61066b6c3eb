"""What a conversion depends on, asked in a few set-based queries: the preflight reports it, the convert gate insists on it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Window
from django.db.models.functions import RowNumber

from stores.drivers.base import ProbeStep
from stores.drivers.errors import StoreError
from stores.models import KINDS, ImageStore, ImageStoreDetail, Snapshot, SnapshotStoreRef, Zone
from stores.services.counts import kinds_with_any
from stores.services.image_stores import driver_class, driver_for, drivers_of
from stores.services.probing import within
from stores.services.scan.rows import CHANGED, MISSING
from stores.states import READABLE, Role, StoreState

NFS = "NFS"
"""The one provider that a conversion turns into staging stores, as upstream's `migrateToObjectStore` has it."""

EXAMPLES = 5

CHECK_SECONDS = 30.0
PROBE_SECONDS = 120.0
"""How long an export may take to say that it is there, and to be probed."""

Severity = Literal["blocker", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something the operator should know before the conversion. `zone` and `store` are names, empty where it concerns all."""

    code: str
    severity: Severity
    message: str
    remedy: str = ""
    overridable: bool = False
    """Whether a blocker may be accepted by naming its code at convert time."""
    zone: str = ""
    store: str = ""
    examples: tuple[str, ...] = ()

    def at(self, store: ImageStore) -> Finding:
        """The same finding, of this store."""
        return replace(self, store=store.name, zone=store.zone.name if store.zone else "")


def nfs_stores() -> list[ImageStore]:
    """The attached NFS stores of record: those that a conversion turns into staging stores."""
    stores = ImageStore.objects.filter(image_provider_name=NFS, role=Role.IMAGE, state=StoreState.ATTACHED)
    return list(stores.select_related("zone").order_by("id"))


def details_digest(provider: str, url: str, details: Mapping[str, str]) -> str:
    """SHA-256 that tells one object store from another.

    Secrets are left out: a rotated key does not make another store, and a digest must not help to guess one.
    """
    secret = {option.name for option in driver_class(provider).options if option.secret}
    open_details = {name: value for name, value in details.items() if name not in secret and value}
    return _digest([provider, url, open_details])


def fingerprint(stores: Sequence[ImageStore], known: Sequence[Finding]) -> str:
    """SHA-256 over what the answers of a preflight hang on: zones, the stores with their configuration, and which of the
    blockers that the database knows (`known_findings`) there are, by store.

    Single refs and their number are left out on purpose: a busy cloud registers and deletes all the time, and none of that
    makes a report wrong. A store that was added or changed does, and so does a first broken chain.
    """
    blockers = {(found.code, found.store) for found in known if found.severity == "blocker"}
    details: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for store_id, *detail in ImageStoreDetail.objects.filter(store__in=stores, secret=False).values_list(
        "store", "name", "value"
    ):
        details[store_id].append((detail[0], detail[1]))
    return _digest(
        {
            "zones": sorted(str(found) for found in Zone.objects.values_list("uuid", flat=True)),
            "stores": [
                [
                    str(store.uuid),
                    store.url,
                    store.zone_id,
                    sorted(details[store.pk]),
                ]
                for store in stores
            ],
            "blockers": sorted(blockers),
        }
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def known_findings(stores: Sequence[ImageStore]) -> list[Finding]:
    """Every finding that the database can tell without touching a store; the number of queries does not grow with the rows."""
    found: list[Finding] = []
    for store in stores:
        if store.scanned_at is None:
            found.append(_never_scanned(store))
        elif conflicts := amount(store.scan_report.get("conflicts")):
            found.append(_conflicts(store, conflicts))
    found += _broken_files(stores)
    found += _orphaned_children(stores)
    return found


def amount(found: object) -> int:
    """How many a scan report's `{count, examples}` stands for; 0 where the report lacks it."""
    return int(found["count"]) if isinstance(found, dict) else 0


def _never_scanned(store: ImageStore) -> Finding:
    message = f"The export {store.name} was never scanned: nobody knows what lies on it, and only known items are promised."
    return Finding("never-scanned", "blocker", message, "Scan the store, then run the preflight again.", True).at(store)


def _conflicts(store: ImageStore, conflicts: int) -> Finding:
    message = (
        f"The last scan of {store.name} found {conflicts} items whose identity contradicts another export's;"
        " they are not adopted and would stay behind."
    )
    remedy = "Look at the scan report, decide which copy is right, scan again."
    return Finding("scan-conflicts", "blocker", message, remedy, True).at(store)


def _broken_files(stores: Sequence[ImageStore]) -> Iterable[Finding]:
    """Files that a scan found broken: members of a chain that cannot be put together, and others."""
    problems = {kind: models.file.objects.filter(problem__gt="") for kind, models in KINDS.items()}
    for kind in kinds_with_any(problems):  # joined to their refs, SQLite would look up those of each file
        bad = problems[kind].filter(ref__store__in=stores, ref__state__in=READABLE)
        away = Q(problem__startswith=MISSING) | Q(problem__startswith=CHANGED)
        chained = ~away & Q(backing__gt="")
        rows = (
            bad.order_by()
            .values_list("ref__store")
            .annotate(broken=Count("id", filter=chained), damaged=Count("id", filter=~chained))
        )
        counts = {store_id: (broken, damaged) for store_id, broken, damaged in rows}
        chains, others = _problems(bad.filter(chained)), _problems(bad.exclude(chained))
        for store in stores:
            broken, damaged = counts.get(store.pk, (0, 0))
            if broken:
                message = f"{broken} {kind} files on {store.name} belong to broken chains: no copy of them could be used."
                remedy = "Restore the named files or their parents and scan again, or delete the items."
                examples = chains[store.pk]
                yield Finding("chain-broken", "blocker", message, remedy, overridable=False, examples=examples).at(store)
            if damaged:
                message = (
                    f"{damaged} {kind} files on {store.name} are missing, changed or damaged; they would be moved as they are."
                )
                remedy = "Restore the named files and scan again, or delete the items."
                examples = others[store.pk]
                yield Finding("damaged-files", "blocker", message, remedy, overridable=True, examples=examples).at(store)


def _problems(files: QuerySet[Any]) -> Mapping[int, tuple[str, ...]]:
    """The first of each store."""
    first = _first_of_each(files, "ref__store").values_list("ref__store", "path", "problem")
    return _by_store((store_id, f"{path}: {problem}") for store_id, path, problem in first)


def _first_of_each(rows: QuerySet[Any], store: str) -> QuerySet[Any]:
    numbered: QuerySet[Any] = rows.annotate(number=Window(RowNumber(), partition_by=F(store), order_by="id"))
    return numbered.filter(number__lte=EXAMPLES).order_by("id")


def _by_store(pairs: Iterable[tuple[int, str]]) -> Mapping[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = defaultdict(tuple)
    for store_id, text in pairs:
        found[store_id] += (text,)
    return found


def _orphaned_children(stores: Sequence[ImageStore]) -> Iterable[Finding]:
    """Snapshots that build on one of which no readable copy is left."""
    readable = SnapshotStoreRef.objects.filter(state__in=READABLE)
    orphans = Snapshot.objects.filter(~Exists(readable.filter(item=OuterRef("parent"))), parent__isnull=False)
    # By the snapshots' index of parents: joined to the refs, every row of both would be read.
    broken = readable.filter(store__in=stores, item__in=orphans.values("pk"))
    counts = dict(broken.order_by().values_list("store").annotate(Count("id")))
    if not counts:
        return
    examples = _by_store(_first_of_each(broken, "store").values_list("store", "item__path"))
    for store in stores:
        if count := counts.get(store.pk):
            message = f"{count} snapshots on {store.name} build on a snapshot that has no readable copy."
            remedy = "Restore the parents' files and scan again, or delete the snapshots."
            yield Finding("chain-broken", "blocker", message, remedy, False, examples=examples[store.pk]).at(store)


# --- speaking to an export that may hang ---------------------------------------------------------------------------------


def unreached(stores: Sequence[ImageStore]) -> Iterator[Finding]:
    """A blocker for each export that this process does not reach; it is the one who will answer reads."""
    drivers = drivers_of(stores)
    for store in stores:
        try:
            within(CHECK_SECONDS, store.name, drivers[store.pk]().check)
        except StoreError as error:
            yield unreachable(store, error)


def unreachable(store: ImageStore, error: StoreError) -> Finding:
    """The blocker that an export which does not answer is."""
    message = f"The export {store.name} ({store.url}) is not reachable: {error}"
    return Finding("export-unreachable", "blocker", message, error.remedy, overridable=False).at(store)


def probe_export(store: ImageStore) -> list[ProbeStep]:
    """Every step of the export's probe; a single blocker when it hangs."""
    driver = driver_for(store)
    try:
        return within(PROBE_SECONDS, store.name, lambda: list(driver.probe()))
    except StoreError as error:
        return [ProbeStep("reach", "blocker", str(error), error.remedy)]
