"""Transfers that are asked for again, swept, or cannot be written down: nothing is lost, nothing waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migration import drain
from migration.conversion import convert
from migration.states import DrainState
from stores import tasks
from stores import worker as stores_worker
from stores.copier import Control, Stopped
from stores.debris import sweep
from stores.drivers.errors import AccessDenied
from stores.models import KINDS, ImageStore, Kind, Transfer, Worker, WorkerReach
from stores.services import items, transfers
from stores.services.image_stores import driver_for
from stores.services.transfers import endings
from stores.states import RefState, TransferState
from stores.worker import Pump, open_batches

pytestmark = pytest.mark.db


@pytest.fixture
def converted(region, target, admin):
    region.volume("data", "east")
    parent = region.snapshot("one", "west")
    region.snapshot("two", "west", parent=parent)
    return convert(actor=admin, override=["preflight-absent"], **target)


@pytest.fixture
def worker(converted) -> Worker:
    row = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=row, store=store, ok=True) for store in ImageStore.objects.all())
    return row


@pytest.fixture
def running(converted, operator):
    row = drain.plan(actor=operator, conversion=converted, canary_items=0)
    return past_canary(operator, row)


def past_canary(operator, row: drain.Drain) -> drain.Drain:
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    return row


def pump(worker: Worker) -> int:
    return Pump(worker.pk, slots=4).run()


def of(kind: Kind) -> Transfer:
    return Transfer.objects.filter(kind=kind).latest("pk")


def fail_one(worker: Worker, kind: Kind) -> Transfer:
    """The transfer of that kind, claimed and Failed; the others are given back."""
    for job in transfers.claim(worker.pk, limit=10, open_batches=open_batches()):
        if job.transfer.kind == kind:
            transfers.fail(job, AccessDenied("no"))
        else:
            transfers.release([job])
    return of(kind)


def lease_passed() -> None:
    """Whoever ran what was cancelled has been silent for a lease."""
    Transfer.objects.filter(state=TransferState.CANCELLED).update(finished_at="2026-01-01T00:00:00Z")


def target_ref(transfer: Transfer):
    return KINDS[Kind(transfer.kind)].ref.objects.get(pk=transfer.target_ref_id)


def assert_bytes_are_there(transfer: Transfer) -> None:
    ref = target_ref(transfer)
    assert ref.state == RefState.READY
    driver = driver_for(ref.store)
    assert [driver.stat(file.path).size for file in ref.files.all()] == [file.size for file in ref.files.all()] != []


def test_a_copy_proven_meanwhile_is_not_swept_when_its_transfer_is_retried(running, worker, operator, monkeypatch):
    failed = fail_one(worker, Kind.VOLUME)
    assert not failed.swept
    asked = transfers.target_paths

    def retried_after(transfer):
        answer = asked(transfer)
        transfers.retry(actor=operator, transfers=Transfer.objects.filter(pk=failed.pk), target="drain")
        pump(worker)
        return answer

    monkeypatch.setattr(stores_worker.transfers, "target_paths", retried_after)
    sweep()
    monkeypatch.undo()
    pump(worker)
    failed.refresh_from_db()
    assert failed.state == TransferState.PROVEN
    assert_bytes_are_there(failed)


def test_the_bytes_of_a_namesake_are_kept_when_a_deleted_snapshots_debris_is_swept(running, worker, region):
    fail_one(worker, Kind.SNAPSHOT)
    transfer = Transfer.objects.get(kind=Kind.SNAPSHOT, depth=0)
    old = KINDS[Kind.SNAPSHOT].item.objects.get(pk=transfer.item_id)
    Transfer.objects.filter(pk=transfer.pk).update(state=TransferState.CANCELLED)
    lease_passed()
    path, kept = transfers.target_paths(transfer)
    assert not kept
    driver = driver_for(transfer.target)
    driver.put(path, b"of the namesake", metadata={}, token="1-1")
    KINDS[Kind.SNAPSHOT].item.objects.filter(pk=old.pk).update(removed="2026-01-01T00:00:00Z")
    KINDS[Kind.SNAPSHOT].ref.objects.filter(item_id=old.pk).update(state=RefState.DESTROYED)
    KINDS[Kind.SNAPSHOT].item.objects.create(
        name="again", account=old.account, volume_upstream_id=old.volume_upstream_id, path=old.path, zone=old.zone
    )
    assert sweep() == 1
    assert driver.stat(path).size == 15


def test_a_failed_transfer_is_dropped_when_its_item_came_by_another(running, worker, operator):
    failed = fail_one(worker, Kind.VOLUME)
    other = Transfer.objects.get(pk=failed.pk)
    other.pk, other.uuid, other.state, other.batch = None, "00000000-0000-4000-8000-000000000001", TransferState.QUEUED, None
    other.save(force_insert=True)
    assert transfers.retry(actor=operator, transfers=Transfer.objects.filter(pk=failed.pk), target="drain") == 0
    failed.refresh_from_db()
    assert failed.state == TransferState.CANCELLED
    pump(worker)
    other.refresh_from_db()
    assert other.state == TransferState.PROVEN
    assert_bytes_are_there(other)


def test_a_copy_to_a_store_that_promised_nothing_is_proven_when_it_is_retried(running, worker, operator):
    failed = fail_one(worker, Kind.VOLUME)
    models = KINDS[Kind.VOLUME]
    models.ref.objects.filter(pk=failed.target_ref_id).update(state=RefState.ALLOCATED)
    transfers.retry(actor=operator, transfers=Transfer.objects.filter(pk=failed.pk), target="drain")
    pump(worker)
    failed.refresh_from_db()
    assert failed.state == TransferState.PROVEN
    assert_bytes_are_there(failed)


def test_a_transfer_ends_when_its_ref_went_another_way(running, worker):
    volume = of(Kind.VOLUME)
    KINDS[Kind.VOLUME].ref.objects.filter(pk=volume.target_ref_id).update(state=RefState.DESTROYING)
    pump(worker)
    volume.refresh_from_db()
    assert volume.state == TransferState.CANCELLED
    lease_passed()
    assert sweep() == 1
    assert not list(driver_for(volume.target).list("volumes/"))


def test_a_child_fails_with_a_reason_when_its_parent_has_no_readable_copy(converted, worker, operator):
    snapshots = KINDS[Kind.SNAPSHOT]
    parent = snapshots.item.objects.get(depth=0)
    snapshots.ref.objects.filter(item=parent, state=RefState.READY).update(state=RefState.DESTROYING)
    row = drain.plan(actor=operator, conversion=converted, canary_items=0)
    past_canary(operator, row)
    transfers.unblock_ready()
    pump(worker)
    child = of(Kind.SNAPSHOT)
    assert child.depth == 1
    assert (child.state, child.error_cause) == (TransferState.FAILED, "parent-failed")
    assert transfers.retry(actor=operator, transfers=Transfer.objects.filter(pk=child.pk), target="drain") == 1
    pump(worker)
    child.refresh_from_db()
    assert child.state == TransferState.FAILED


def test_a_child_follows_the_parents_new_transfer_when_the_former_was_cancelled(running, worker, operator):
    child = Transfer.objects.get(kind=Kind.SNAPSHOT, depth=1)
    transfers.cancel_live(Transfer.objects.filter(pk=child.parent_id))
    parent = KINDS[Kind.SNAPSHOT].item.objects.get(depth=0)
    transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=parent)
    transfers.unblock_ready()
    pump(worker)
    child.refresh_from_db()
    assert child.state == TransferState.PROVEN


def staging(region, zone: str) -> ImageStore:
    """The zone's export, as the conversion has left it."""
    return ImageStore.objects.get(pk=region.stores[zone].pk)


def test_what_was_asked_for_goes_on_when_the_drain_that_had_planned_it_is_cancelled(running, worker, operator, region):
    child = KINDS[Kind.SNAPSHOT].item.objects.get(depth=1)
    staged = transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=child, store=staging(region, "east"))
    Transfer.objects.filter(target__scope="REGION", depth=0).update(priority=transfers.BACKGROUND)  # as one planned since
    drain.cancel(actor=operator, drain=running)
    assert of(Kind.VOLUME).state == TransferState.CANCELLED
    for _ in range(4):
        pump(worker)
    staged.refresh_from_db()
    assert_bytes_are_there(staged)
    running.refresh_from_db()
    assert {state: number for state, number in drain.progress(running).items.items() if number} == {"cancelled": 1}


def test_what_waits_for_a_source_says_so_when_that_was_cancelled(running, worker, operator, region):
    volume = KINDS[Kind.VOLUME].item.objects.get()
    staged = transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=staging(region, "west"))
    transfers.cancel_live(Transfer.objects.filter(pk=staged.parent_id))
    tasks.keep_house()
    staged.refresh_from_db()
    assert (staged.state, staged.error_cause) == (TransferState.FAILED, "source-cancelled")
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=staging(region, "west"))
    for _ in range(2):
        pump(worker)
    staged.refresh_from_db()
    assert_bytes_are_there(staged)


def test_what_waits_for_a_source_waits_for_its_new_copy_when_the_former_was_cancelled(running, worker, operator, region):
    volume = KINDS[Kind.VOLUME].item.objects.get()
    staged = transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=staging(region, "west"))
    transfers.cancel_live(Transfer.objects.filter(pk=staged.parent_id))
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=staging(region, "west"))
    tasks.keep_house()
    for _ in range(2):
        pump(worker)
    staged.refresh_from_db()
    assert_bytes_are_there(staged)


def test_an_item_without_files_fails_alone_when_others_are_copied(running, worker):
    volume = of(Kind.VOLUME)
    KINDS[Kind.VOLUME].file.objects.filter(ref=volume.source_ref_id).delete()
    assert pump(worker) == 2
    volume.refresh_from_db()
    assert volume.state == TransferState.FAILED


def test_others_are_proven_when_one_copy_cannot_be_written_down(running, worker, monkeypatch):
    bad = of(Kind.VOLUME)
    written = endings._target_files

    def refused(job, copied, ref_id):
        if job.transfer.pk == bad.pk:
            raise ValueError("such a row cannot be")
        return written(job, copied, ref_id)

    monkeypatch.setattr(endings, "_target_files", refused)
    assert pump(worker) == 2
    bad.refresh_from_db()
    assert (bad.state, bad.error_cause) == (TransferState.QUEUED, "unexpected")


def test_the_drain_stops_with_the_reason_when_a_proven_canary_is_not_there(converted, worker, operator):
    row = drain.plan(actor=operator, conversion=converted)
    drain.start(actor=operator, drain=row)
    pump(worker)
    proven = Transfer.objects.filter(canary=True, state=TransferState.PROVEN).first()
    lost = target_ref(proven).files.get()
    driver_for(proven.target).delete(lost.path)
    drain.advance(row)
    row.refresh_from_db()
    assert row.state == DrainState.PAUSED
    assert lost.path in row.note


def test_a_failure_is_written_down_when_its_words_are_no_text(running, worker):
    (job, *others) = transfers.claim(worker.pk, limit=10, open_batches=open_batches())
    transfers.release(others)
    transfers.fail(job, AccessDenied("the file \udcff and \0 are odd"))
    job.transfer.refresh_from_db()
    assert job.transfer.state == TransferState.FAILED
    assert "are odd" in job.transfer.error


def test_upkeep_goes_on_elsewhere_when_no_worker_reaches_a_store(converted, worker, region, admin, monkeypatch):
    dark = region.stores["east"]
    WorkerReach.objects.filter(store=dark).update(ok=False)
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=KINDS[Kind.VOLUME].item.objects.get())
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=KINDS[Kind.SNAPSHOT].item.objects.get(depth=1))
    tasks.clean_up()
    assert KINDS[Kind.VOLUME].ref.objects.get(store=dark).state == RefState.DESTROYING
    snapshots = KINDS[Kind.SNAPSHOT].ref.objects.filter(item__depth=1)
    assert set(snapshots.values_list("state", flat=True)) == {RefState.DESTROYED}


def test_other_deletions_go_on_when_a_store_cannot_even_be_asked(converted, region, admin, monkeypatch):
    broken = region.stores["east"]
    made = items.driver_for

    def refusing(store):
        if store.pk == broken.pk:
            raise RuntimeError("its secret cannot be decrypted")
        return made(store)

    monkeypatch.setattr(items, "driver_for", refusing)
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=KINDS[Kind.VOLUME].item.objects.get())
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=KINDS[Kind.SNAPSHOT].item.objects.get(depth=1))
    items.finish_deletes()
    kept = KINDS[Kind.VOLUME].ref.objects.get(store=broken)
    assert (kept.state, "decrypted" in kept.error_str) == (RefState.DESTROYING, True)
    snapshots = KINDS[Kind.SNAPSHOT].ref.objects.filter(item__depth=1)
    assert set(snapshots.values_list("state", flat=True)) == {RefState.DESTROYED}


def test_a_copy_stops_by_its_own_clock_when_nobody_prolongs_it():
    control = Control()
    control.valid_until = 0.0
    with pytest.raises(Stopped):
        control.check()


def test_a_proven_copy_is_still_a_source_when_the_same_bytes_were_written_anew(running, worker, operator, region):
    pump(worker)
    proven = of(Kind.VOLUME)
    assert target_ref(proven).files.update(version="another time") == 1
    item = KINDS[Kind.VOLUME].item.objects.get()
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=item, store=region.stores["west"])
    pump(worker)
    staged = of(Kind.VOLUME)
    assert (staged.state, staged.error) == (TransferState.PROVEN, "")


def left_out(region) -> Path:
    """A file on west's export that no row knows, where the volume would be staged."""
    (known,) = KINDS[Kind.VOLUME].file.objects.filter(ref__store=region.stores["east"]).values_list("path", flat=True)
    path = region.folder("west") / known
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"somebody's only copy")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


def test_a_file_that_no_row_knows_is_neither_written_over_nor_swept_away(region, converted, worker, operator):
    path = left_out(region)
    volume = KINDS[Kind.VOLUME].item.objects.get()
    staged = transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=region.stores["west"])
    pump(worker)
    staged.refresh_from_db()
    assert (staged.state, staged.error_cause) == (TransferState.FAILED, "occupied")
    assert str(path.relative_to(region.folder("west"))) in staged.error
    assert sweep() == 1
    assert path.read_bytes() == b"somebody's only copy"
    path.unlink()
    transfers.retry(actor=operator, transfers=Transfer.objects.filter(pk=staged.pk), target="test")
    assert pump(worker) == 1
    assert path.read_bytes() == b"content of data"
