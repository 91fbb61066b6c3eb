"""The drain, with real rows, real files on an export, and an object store in memory."""

from __future__ import annotations

import hashlib

import pytest

from cloudstorage.errors import Conflict, Denied, Invalid
from migration import drain
from migration.conversion import convert
from migration.models import Drain
from migration.states import DrainState
from stores.copier import CopyEngine
from stores.drivers.errors import AccessDenied
from stores.models import KINDS, ImageStore, Kind, Transfer, Worker, WorkerReach
from stores.services import holds, transfers
from stores.services.inventory import open_content
from stores.states import RefState, TransferState
from stores.worker import Pump, open_batches

pytestmark = pytest.mark.db

BYPASS = ["preflight-absent"]


@pytest.fixture
def converted(region, target, admin):
    """A template in both zones, a volume, and a chain of four snapshots; converted, nothing moved."""
    region.template("web", "east", "west")
    region.volume("data", "east")
    parent = None
    for name in ("one", "two", "three", "four"):
        parent = region.snapshot(name, "west", parent=parent)
    return convert(actor=admin, override=BYPASS, **target)


@pytest.fixture
def worker(converted) -> Worker:
    row = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=row, store=store, ok=True) for store in ImageStore.objects.all())
    return row


def pump(worker: Worker) -> int:
    return Pump(worker.pk, slots=4).run()


def run_to_end(row: Drain, worker: Worker) -> Drain:
    for _ in range(20):
        pump(worker)
        drain.advance(row)
        row.refresh_from_db()
        if row.state in {DrainState.FINISHED, DrainState.PAUSED}:
            return row
    raise AssertionError(f"the drain is still {row.state}: {drain.progress(row)}")


def test_every_item_is_proven_and_equals_its_original(region, converted, worker, admin, operator, viewer):
    row = drain.plan(actor=operator, conversion=converted)
    assert drain.progress(row).items["total"] == 6
    drain.start(actor=operator, drain=row)
    row = run_to_end(row, worker)
    assert row.state == DrainState.FINISHED, row.note
    assert row.canary_proven_at is not None
    told = drain.progress(row)
    assert told.bytes["proven"] == told.bytes["total"] > 0
    assert told.bytes["remaining"] == told.bytes["copied"] == 0
    assert told.items["proven"] == 6
    for kind, models in KINDS.items():
        for ref in models.ref.objects.filter(store=converted.object_store).select_related("item"):
            assert ref.state == RefState.READY
            with open_content(actor=viewer, kind=kind, item=ref.item) as content:
                assert content.store == converted.object_store
                body = content.reader.pread(0, content.reader.size)
            assert (
                hashlib.sha256(body).hexdigest()
                == ref.sha256
                == hashlib.sha256(f"content of {ref.item.name}".encode()).hexdigest()
            )
    assert holds.recount() == []


def test_a_child_is_ready_only_where_its_parent_is(converted, worker, operator):
    row = drain.plan(actor=operator, conversion=converted, canary_items=0)
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    for _ in range(10):
        transfers_before = Transfer.objects.filter(state=TransferState.PROVEN).count()
        for job in transfers.claim(worker.pk, limit=1, open_batches=open_batches()):
            transfers.release([job])
            parent = getattr(job.item, "parent_id", None)
            assert parent is None or ready_on(converted.object_store, parent), (
                f"{job.item} was claimed before its parent was there"
            )
        pump(worker)
        if Transfer.objects.filter(state=TransferState.PROVEN).count() == transfers_before:
            break
    assert Transfer.objects.filter(state=TransferState.PROVEN).count() == 6
    proven_at = dict(KINDS[Kind.SNAPSHOT].ref.objects.filter(store=converted.object_store).values_list("item_id", "proven_at"))
    for snapshot in KINDS[Kind.SNAPSHOT].item.objects.exclude(parent=None):
        assert proven_at[snapshot.parent_id] < proven_at[snapshot.pk]


def ready_on(store: ImageStore, snapshot_id: int) -> bool:
    return KINDS[Kind.SNAPSHOT].ref.objects.filter(store=store, item_id=snapshot_id, state=RefState.READY).exists()


def test_nothing_is_claimed_while_paused_and_it_goes_on_after_resume(converted, worker, operator):
    row = drain.plan(actor=operator, conversion=converted)
    assert pump(worker) == 0
    drain.start(actor=operator, drain=row)
    drain.pause(actor=operator, drain=row)
    assert pump(worker) == 0
    drain.resume(actor=operator, drain=row)
    assert run_to_end(row, worker).state == DrainState.FINISHED


def test_cancel_leaves_every_item_readable_and_nothing_half_done(converted, worker, operator, viewer, memory_store):
    row = drain.plan(actor=operator, conversion=converted)
    drain.start(actor=operator, drain=row)
    drain.cancel(actor=operator, drain=row)
    assert pump(worker) == 0
    assert not Transfer.objects.exclude(state=TransferState.CANCELLED).exists()
    for kind, models in KINDS.items():
        for item in models.item.objects.all():
            with open_content(actor=viewer, kind=kind, item=item) as content:
                assert content.reader.size > 0
    again = drain.plan(actor=operator, conversion=converted)
    drain.start(actor=operator, drain=again)
    assert run_to_end(again, worker).state == DrainState.FINISHED


def test_a_failed_canary_keeps_the_rest_from_beginning(region, converted, worker, operator):
    for path in region.folder("west").rglob("four"):
        path.unlink()
    row = drain.plan(actor=operator, conversion=converted, canary_items=1)
    drain.start(actor=operator, drain=row)
    row = run_to_end(row, worker)
    assert row.state == DrainState.PAUSED
    assert "four" in row.note
    assert Transfer.objects.filter(canary=False).exclude(state=TransferState.QUEUED).count() == 0
    causes = {error["cause"] for error in drain.progress(row).errors}
    assert causes == {"not-found"}


def test_a_canary_that_was_cancelled_as_a_whole_proves_nothing_and_another_is_chosen(region, converted, worker, operator):
    row = drain.plan(actor=operator, conversion=converted, canary_items=1)
    Transfer.objects.filter(canary=True).update(state=TransferState.CANCELLED)  # their items were deleted, say
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    row.refresh_from_db()
    assert row.state == DrainState.CANARY
    assert run_to_end(row, worker).state == DrainState.FINISHED
    assert Transfer.objects.filter(canary=True, state=TransferState.PROVEN).exists()


def test_children_of_a_failed_parent_fail_with_it_and_come_back_with_it(region, converted, worker, operator):
    lost = next(region.folder("west").rglob("two"))
    content = lost.read_bytes()
    lost.unlink()
    row = drain.plan(actor=operator, conversion=converted, canary_items=0)
    drain.start(actor=operator, drain=row)
    row = run_to_end(row, worker)
    assert row.state == DrainState.FINISHED
    assert drain.progress(row).items["failed"] == 3
    lost.write_bytes(content)
    KINDS[Kind.SNAPSHOT].file.objects.update(version="")
    assert drain.retry_failed(actor=operator, drain=row) == 3
    row = run_to_end(row, worker)
    assert drain.progress(row).items["proven"] == 6, drain.progress(row)


def test_limits_change_while_it_runs_and_bad_ones_change_nothing(converted, operator):
    row = drain.plan(actor=operator, conversion=converted)
    source = ImageStore.objects.get(name="nfs-east")
    drain.set_limits(
        actor=operator, drain=row, concurrency=3, bandwidth=10**6, window="22:00-06:00", read_limits={str(source.uuid): 5}
    )
    row.batch.refresh_from_db()
    source.refresh_from_db()
    assert (row.batch.concurrency, row.batch.bandwidth, row.batch.window, source.read_limit) == (3, 10**6, "22:00-06:00", 5)
    for wrong, field in [({"concurrency": 0}, "concurrency"), ({"bandwidth": -1}, "bandwidth"), ({"window": "late"}, "window")]:
        with pytest.raises(Invalid) as refusal:
            drain.set_limits(actor=operator, drain=row, **wrong)
        assert refusal.value.field == field
    row.batch.refresh_from_db()
    assert row.batch.concurrency == 3


def test_limits_hold_from_the_first_byte_on(converted, worker, operator, monkeypatch):
    row = drain.plan(actor=operator, conversion=converted, canary_items=0, bandwidth=10**7)
    ImageStore.objects.filter(scope="ZONE").update(read_limit=10**6)
    seen = []
    copy_item = CopyEngine.copy_item

    def look(engine, *arguments, control, **options):
        seen.append([throttle.rate for throttle in control.throttles])
        return copy_item(engine, *arguments, control=control, **options)

    monkeypatch.setattr(CopyEngine, "copy_item", look)
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    pump(worker)
    assert len(seen) == 6
    for rates in seen:
        assert len(rates) == 2
        assert all(rate is not None and 0 < rate <= 10**7 for rate in rates)


def test_a_viewer_may_look_and_not_touch(converted, operator, viewer):
    row = drain.plan(actor=operator, conversion=converted)
    for act in (drain.start, drain.pause, drain.resume, drain.cancel, drain.retry_failed):
        with pytest.raises(Denied):
            act(actor=viewer, drain=row)
    row.refresh_from_db()
    assert row.state == DrainState.PLANNED
    assert drain.progress(row).allowed == ("Start", "Cancel")


def test_events_that_the_table_forbids_are_conflicts_that_say_what_is_possible(converted, operator):
    row = drain.plan(actor=operator, conversion=converted)
    with pytest.raises(Conflict) as refusal:
        drain.pause(actor=operator, drain=row)
    assert refusal.value.allowed == ("Start", "Cancel")
    with pytest.raises(Conflict):
        drain.plan(actor=operator, conversion=converted)


def test_an_item_that_is_asked_for_goes_ahead_of_a_paused_drain_with_its_chain(converted, worker, operator):
    row = drain.plan(actor=operator, conversion=converted)
    child = KINDS[Kind.SNAPSHOT].item.objects.get(name="three")
    asked = transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=child)
    assert asked.priority == transfers.ON_DEMAND
    assert pump(worker) == 3
    assert transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=child) is None
    assert drain.progress(row).items["proven"] == 3
    assert drain.progress(row).items["total"] == 6
    drain.start(actor=operator, drain=row)
    assert run_to_end(row, worker).state == DrainState.FINISHED


def test_an_item_that_a_zone_lacks_comes_to_the_object_store_and_is_staged_from_there(
    region, converted, worker, operator, viewer
):
    west = region.stores["west"]
    volume = KINDS[Kind.VOLUME].item.objects.get()
    staged = transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=ImageStore.objects.get(pk=west.pk))
    assert (staged.state, staged.source) == (TransferState.BLOCKED, converted.object_store)
    assert pump(worker) == 2
    refs = KINDS[Kind.VOLUME].ref.objects.filter(item=volume)
    assert set(refs.values_list("store__name", "state")) == {("nfs-east", "Ready"), ("nfs-west", "Ready"), ("objects", "Ready")}
    copies = {path.read_bytes() for zone in ("east", "west") for path in region.folder(zone).rglob(f"{volume.uuid}.qcow2")}
    assert copies == {b"content of data"}
    assert holds.recount() == []


def test_a_failed_item_that_is_asked_for_again_counts_once(region, converted, worker, operator):
    lost = next(region.folder("west").rglob("two"))
    content = lost.read_bytes()
    lost.unlink()
    row = drain.plan(actor=operator, conversion=converted, canary_items=0)
    drain.start(actor=operator, drain=row)
    run_to_end(row, worker)
    lost.write_bytes(content)
    KINDS[Kind.SNAPSHOT].file.objects.update(version="")
    transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=KINDS[Kind.SNAPSHOT].item.objects.get(name="four"))
    assert pump(worker) == 3
    told = drain.progress(row)
    assert (told.items["total"], told.items["proven"], told.items["failed"]) == (6, 6, 0)


def test_an_item_that_failed_when_somebody_asked_for_it_is_moved_by_the_drain_all_the_same(converted, worker, operator):
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=KINDS[Kind.VOLUME].item.objects.get())
    row = drain.plan(actor=operator, conversion=converted, canary_items=0)
    (job,) = transfers.claim(worker.pk, limit=1)
    transfers.fail(job, AccessDenied("no"))
    drain.start(actor=operator, drain=row)
    row = run_to_end(row, worker)
    assert (row.state, row.note) == (DrainState.FINISHED, "Every item is proven.")


def test_nothing_is_planned_any_more_when_it_is_cancelled_in_that_moment(converted, worker, operator, monkeypatch):
    row = drain.plan(actor=operator, conversion=converted, canary_items=0)
    Transfer.objects.filter(kind=Kind.VOLUME).delete()  # its promise was made after the plan
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    assert pump(worker) == 5
    monkeypatch.setattr(drain, "_sample", lambda row: drain.cancel(actor=operator, drain=row))
    drain.advance(row)
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.PROVEN}
    monkeypatch.undo()
    again = drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=converted, canary_items=0))
    assert run_to_end(again, worker).note == "Every item is proven."
