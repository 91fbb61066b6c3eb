"""Compares an object store's listing with the rows: what is missing, changed, or known to nobody. It changes no row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from django.db.models import Q

from stores import layout
from stores.drivers.base import ObjectInfo, StoreDriver
from stores.models import KINDS, ImageStore
from stores.services.scan.idset import IdSet
from stores.services.scan.lease import Lease
from stores.services.scan.report import ScanReport
from stores.services.scan.rows import READABLE, load
from stores.states import LIVE_REF_STATES, Kind

_PAGE = 500
_OWN = (".cloudstorage", ".cs-")
"""How the names of our own marker, journals and probes begin."""


def compare(store: ImageStore, driver: StoreDriver, report: ScanReport, lease: Lease) -> None:
    """Add to `report` how the store's objects differ from the rows. Raises what the driver raises."""
    seen = {kind: IdSet() for kind in Kind}
    for page in _pages(driver.list()):
        _compare_page(store, page, report, seen)
        lease.renew()
    for kind, models in KINDS.items():
        files = models.file.objects.filter(ref__store=store, ref__state__in=READABLE).order_by("pk")
        for pk, path in files.values_list("pk", "path").iterator(chunk_size=2000):
            lease.beat()
            if (
                pk not in seen[kind]
                and not driver.exists(path)
                and models.file.objects.filter(pk=pk, ref__state__in=READABLE).exists()
            ):
                report.missing.add(path, "the object is no longer on the store")


def _compare_page(store: ImageStore, page: Sequence[ObjectInfo], report: ScanReport, seen: Mapping[Kind, IdSet]) -> None:
    paths: dict[Kind, set[str]] = defaultdict(set)
    for info in page:
        place = layout.parse(info.key)
        if place is not None:
            paths[place.kind] |= set(_candidates(info.key, place.folder))
    known = load(store, {kind: sorted(found) for kind, found in paths.items()})
    strangers = []
    for info in page:
        place = layout.parse(info.key)
        if place is None:
            if info.key.startswith(_OWN):
                report.skipped["own"] += 1
            else:
                report.unknown.add(info.key, "Not in CloudStack's layout.")
            continue
        refs = [known[path] for path in _candidates(info.key, place.folder) if path in known]
        row = next((ref.files[info.key] for ref in refs if info.key in ref.files), None)
        if row is None:
            strangers.append(info)
            continue
        seen[place.kind].add([row.pk])
        report.files += 1
        report.bytes += info.size
        if info.size != row.size:
            report.changed.add(info.key, f"{row.size} bytes were stored, {info.size} are there now.")
        elif info.etag and row.etag and info.etag != row.etag:
            report.changed.add(info.key, f"Its etag was {row.etag}, and is {info.etag} now.")
        else:
            report.unchanged += 1
    _judge_strangers(store, strangers, report)


def _judge_strangers(store: ImageStore, strangers: Sequence[ObjectInfo], report: ScanReport) -> None:
    """Objects without a row: of an item that is just being brought here, or orphans."""
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
            else:
                report.orphaned.add(info.key, "No ref knows this object.")


def _candidates(key: str, folder: str) -> list[str]:
    """Install paths that an object may lie below: its own key and every folder down to that of the item."""
    paths = [key]
    while len(paths[-1]) > len(folder):
        paths.append(paths[-1].rpartition("/")[0])
    return paths


def _pages(listing: Iterator[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    page: list[ObjectInfo] = []
    for info in listing:
        page.append(info)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page
