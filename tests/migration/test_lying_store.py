"""An object store that lies perfectly, but not to its probe: about the bytes it keeps, and about what it holds in its listings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloudstorage.errors import Unreachable
from cloudstorage.models import AuditEvent
from migration import drain, verify
from migration.models import Verification
from migration.states import DecommissionState, DrainState
from stores import tasks
from stores.models import KINDS, ImageStore, Kind, Volume
from stores.services import holds, items, journal
from stores.services.image_stores import driver_for
from stores.services.scan import scan_store
from stores.states import RefState
from tests.fakes.faulty import EVERY, FAULTS, Faults, flip
from tests.migration import retiring
from tests.migration.under_way import UnderWay, begin

pytestmark = [pytest.mark.db, pytest.mark.django_db]

ITEMS = 4


@pytest.fixture
def moving(region, faults, target, admin, operator) -> UnderWay:
    """Its canary is under way."""
    for number in range(ITEMS):
        region.volume(f"disk-{number}", "east")
    return begin(region, admin, operator, canary_items=2, **target)


def keep_other_bytes(faults: Faults) -> None:
    """It says of every object that it has checked and kept it, and flips a bit."""
    faults.on("put", times=EVERY, data=flip)


def findings(moving: UnderWay, mode: str) -> list[str]:
    row = Verification.objects.create(store=moving.store, actor="test", mode=mode)
    verify.run(row)
    row.refresh_from_db()
    assert row.state == "Finished", row.note
    return sorted(finding["problem"] for finding in row.findings)


def test_canary_finds_a_store_that_lies_after_its_probe_and_nothing_stays_ready(moving, faults, operator):
    keep_other_bytes(faults)
    row = moving.run_to_end()
    assert row.state == DrainState.PAUSED
    assert "differs from what was proven. Do not go on." in row.note
    assert moving.ready() == []
    moving.assert_readable()
    assert holds.recount() == []
    told = drain.progress(row)
    assert (told.items["proven"], told.items["total"]) == (0, ITEMS)
    drain.resume(actor=operator, drain=row)
    assert moving.run_to_end().state == DrainState.PAUSED, "it still lies"
    assert moving.ready() == []
    faults.clear()
    drain.resume(actor=operator, drain=row)
    assert moving.run_to_end().note == "Every item is proven."
    moving.assert_whole()
    assert drain.progress(row).items["proven"] == ITEMS


def test_verification_finds_what_a_store_changed_that_lies_only_after_the_canary(moving, faults):
    moving.pump()
    drain.advance(moving.drain)
    keep_other_bytes(faults)
    assert moving.run_to_end().state == DrainState.FINISHED
    assert findings(moving, Verification.CONTENT) == ["content differs"] * (ITEMS - 2)
    assert len(moving.ready()) == 2
    moving.assert_nothing_promised_falsely()
    moving.assert_readable()


def test_nothing_is_missing_nor_foreign_when_the_listing_lags(moving, faults, admin):
    server = driver_for(moving.store)
    doomed = Volume.objects.order_by("pk").last()
    faults.lag_listing(lambda key: key.startswith("volumes/"))
    assert moving.run_to_end().note == "Every item is proven."
    moving.assert_whole()
    tasks.write_journals()
    assert findings(moving, Verification.LISTING) == []
    assert findings(moving, Verification.CONTENT) == []
    faults.clear()
    formerly = [server.stat(info.key) for info in server.list("volumes/")]
    assert len(formerly) == ITEMS
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=doomed)
    while items.finish_deletes():
        pass
    kept = next(ref for ref in moving.ready() if ref.item != doomed).files.get()
    stored = server.put(kept.path, moving.original(kept.ref.item) + b"!", metadata={}, token="t")  # as of another time
    stored = server.put(kept.path, moving.original(kept.ref.item), metadata={}, token="t")
    type(kept).objects.filter(pk=kept.pk).update(etag=stored.etag, version=stored.version)
    stale = [info if info.key != kept.path else replace(info, size=info.size + 1, etag="former") for info in formerly]
    faults.lag_listing(lambda key: False, stale)
    while journal.write(moving.store):
        pass
    former_journal = replace(formerly[0], key=f"{journal.FOLDER}0-merged-away")
    journals = faults.on("list", key=journal.FOLDER, result=lambda infos: iter([former_journal, *infos]))
    with pytest.raises(Unreachable):  # what stood there may stand in an object that is not listed yet
        scan_store(actor=admin, store=moving.store)
    assert journals.seen == 1
    report = scan_store(actor=admin, store=moving.store)
    assert (report.adopted, report.missing.count, report.orphaned.count, report.changed.count) == (0, 0, 0, 0)
    assert findings(moving, Verification.LISTING) == []
    assert findings(moving, Verification.CONTENT) == []
    assert [ref.state for ref in moving.ready()] == [RefState.READY] * (ITEMS - 1)
    moving.assert_nothing_promised_falsely()


def test_listing_that_lags_neither_withdraws_anything_nor_stops_a_retirement(region, faults, memory_store, admin):
    region.volume("kept", "east")
    doomed = region.volume("doomed", "east")
    store = retiring.ready_to_retire(region)
    objects = ImageStore.objects.get(scope="REGION")
    assert objects.url in FAULTS, "its listings are scripted"
    former = list(driver_for(objects).list("volumes/"))
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=doomed)
    while items.finish_deletes():
        pass
    deleted = [info for info in former if info.key not in memory_store.objects]
    assert len(deleted) == 1
    faults.lag_listing(lambda key: key.startswith("volumes/"), deleted)
    assert list(driver_for(objects).list()) == deleted
    for mode in (Verification.LISTING, Verification.CONTENT):
        row = Verification.objects.create(store=objects, actor="test", mode=mode)
        verify.run(row)
        row.refresh_from_db()
        assert (row.state, row.findings) == ("Finished", [])
    retired = retiring.retire(store, admin)
    assert (retired.state, retired.note) == (DecommissionState.RETIRED, "")
    states = KINDS[Kind.VOLUME].ref.objects.filter(store=objects).values_list("item__name", "state")
    assert dict(states) == {"kept": RefState.READY, "doomed": RefState.DESTROYED}
    assert not AuditEvent.objects.filter(action="ref.disprove").exists()
