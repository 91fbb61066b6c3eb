"""Compares an object store's listing with the rows: what is missing, changed, or known to nobody, and notes it at
the files' rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import Q

from stores import layout
from stores.drivers.base import ObjectInfo, StoreDriver
from stores.drivers.errors import NotFound
from stores.models import KINDS, ImageStore, StoreFile
from stores.services.scan.idset import IdSet
from stores.services.scan.lease import Lease
from stores.services.scan.report import ScanReport
from stores.services.scan.rows import CHANGED, MISSING, load
from stores.states import LIVE_REF_STATES, READABLE, Kind

_PAGE = 500
_MISSING = "the object is no longer on the store"
_OWN = (".cloudstorage", ".cs-")
"""How the names of our own marker, journals and probes begin."""


def compare(store: ImageStore, driver: StoreDriver, report: ScanReport, lease: Lease) -> None:
    """Add to `report` how the store's objects differ from the rows. Raises what the driver raises."""
    seen = {kind: IdSet() for kind in Kind}
    for page in _pages(driver.list()):
        _compare_page(store, driver, page, report, seen, lease)
        lease.renew()
    for kind, models in KINDS.items():
        gone: dict[int, str] = {}
        for pk, path in _files(models.file.objects.filter(ref__store=store, ref__state__in=READABLE)):
            lease.beat()
            if (
                pk not in seen[kind]
                and not driver.exists(path)
                and models.file.objects.filter(pk=pk, ref__state__in=READABLE).exists()
            ):
                report.missing.add(path, _MISSING)
                gone[pk] = f"{MISSING}{_MISSING}"
            if len(gone) == _PAGE:
                _note(kind, gone, lease)
                gone = {}
        _note(kind, gone, lease)


def _files(rows: Any) -> Iterator[tuple[int, str]]:
    """(id, path) of files, by pages: under a SELECT that is still being read, SQLite lets nobody write once others have."""
    after = 0
    while page := list(rows.filter(pk__gt=after).order_by("pk").values_list("pk", "path")[: 4 * _PAGE]):
        yield from page
        after = page[-1][0]


def _note(kind: Kind, problems: Mapping[int, str], lease: Lease) -> None:
    """Write what is wrong with files, by id, to them and their refs; an empty text takes back what an earlier scan wrote."""
    if not problems:
        return
    models = KINDS[kind]
    with transaction.atomic():
        lease.renew()
        readable = models.file.objects.select_for_update(of=("self",)).filter(pk__in=problems, ref__state__in=READABLE)
        changed, refs = [], {}
        for row in readable.select_related("ref").order_by("pk"):
            if row.problem != problems[row.pk]:
                row.problem = problems[row.pk]
                changed.append(row)
                refs[row.ref_id] = row.ref
                row.ref.error_str = ""
        models.file.objects.bulk_update(changed, ["problem"], batch_size=_PAGE)
        for row in models.file.objects.filter(ref__in=refs).exclude(problem="").order_by("pk"):
            refs[row.ref_id].error_str = row.problem
        models.ref.objects.bulk_update(list(refs.values()), ["error_str"], batch_size=_PAGE)


def _compare_page(
    store: ImageStore,
    driver: StoreDriver,
    page: Sequence[ObjectInfo],
    report: ScanReport,
    seen: Mapping[Kind, IdSet],
    lease: Lease,
) -> None:
    paths: dict[Kind, set[str]] = defaultdict(set)
    for info in page:
        place = _place(info.key)
        if place is not None:
            paths[place.kind] |= set(layout.install_paths(info.key))
    known = load(store, {kind: sorted(found) for kind, found in paths.items()})
    strangers = []
    problems: dict[Kind, dict[int, str]] = defaultdict(dict)
    for info in page:
        place = _place(info.key)
        if place is None:
            if info.key.startswith(_OWN):
                report.skipped["own"] += 1
            else:
                report.unknown.add(info.key, "Not in CloudStack's layout.")
            continue
        refs = [known[path] for path in layout.install_paths(info.key) if path in known]
        row = next((ref.files[info.key] for ref in refs if info.key in ref.files), None)
        if row is None:
            strangers.append(info)
            continue
        seen[place.kind].add([row.pk])
        report.files += 1
        report.bytes += info.size
        if found := _drift(info, row) and _drift(_as_it_is(driver, info), row):
            report.changed.add(info.key, found)
            problems[place.kind][row.pk] = f"{CHANGED}{found}"
        else:
            report.unchanged += 1
            if row.problem.startswith((MISSING, CHANGED)):
                problems[place.kind][row.pk] = ""
    for kind, found_here in problems.items():
        _note(kind, found_here, lease)
    _judge_strangers(store, driver, strangers, report)


def _drift(info: ObjectInfo, row: StoreFile) -> str:
    """How an object is another than its row says; empty where the listing shows none."""
    if info.size != row.size:
        return f"{row.size} bytes were stored, {info.size} are there now."
    if info.etag and row.etag and info.etag != row.etag:
        return f"Its etag was {row.etag}, and is {info.etag} now."
    return ""


def _as_it_is(driver: StoreDriver, info: ObjectInfo) -> ObjectInfo:
    """The object itself, for listings may lag behind; what is no longer there is looked for at the end."""
    try:
        return driver.stat(info.key)
    except NotFound:
        return info


def _judge_strangers(store: ImageStore, driver: StoreDriver, strangers: Sequence[ObjectInfo], report: ScanReport) -> None:
    """Objects without a row: of an item that is just being brought here, or orphans, if they are there at all."""
    by_kind: dict[Kind, list[ObjectInfo]] = defaultdict(list)
    for info in strangers:
        place = layout.parse(info.key)
        assert place is not None
        by_kind[place.kind].append(info)
    coming = LIVE_REF_STATES - set(READABLE)
    for kind, group in by_kind.items():
        owner = "volume_upstream_id" if kind is Kind.SNAPSHOT else "upstream_id"
        places = [place for info in group if (place := layout.parse(info.key))]
        wanted = Q(item__account_id__in={place.account_id for place in places}) & Q(
            **{f"item__{owner}__in": {place.owner_id for place in places}}
        )
        refs = KINDS[kind].ref.objects.filter(wanted, store=store, state__in=coming)
        busy = set(refs.values_list("item__account_id", f"item__{owner}"))
        for info, place in zip(group, places, strict=True):
            if (place.account_id, place.owner_id) in busy:
                report.in_flight.add(info.key, "Its item is on the way to this store.")
            elif driver.exists(info.key):
                report.orphaned.add(info.key, "No ref knows this object.")


def _place(key: str) -> layout.Place | None:
    """Where an object lies by its key; None where it is no item's, and no row could be asked for such a key."""
    return layout.parse(key) if layout.is_storable(key) else None


def _pages(listing: Iterator[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    page: list[ObjectInfo] = []
    for info in listing:
        page.append(info)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page
