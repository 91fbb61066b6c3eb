"""Transfers as rows: who may claim what and when, that a worker which lost its lease changes nothing, and what it all costs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import DataError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.errors import Conflict
from migration import drain
from migration.models import Conversion
from migration.states import DrainState
from stores import debris, tasks, worker
from stores.copier import CopiedFile
from stores.drivers.errors import AccessDenied, Corrupt, Throttled, Unavailable, UploadGone
from stores.models import (
    KINDS,
    ImageStore,
    Kind,
    Transfer,
    TransferBatch,
    TransferPart,
    TransferUpload,
    Volume,
    Worker,
    WorkerReach,
)
from stores.services import holds, items, transfers
from stores.services.image_stores import driver_for
from stores.services.transfers import Job, Lease, planning
from stores.states import Proof, RefState, StoreState, TransferState
from stores.worker import Pump, open_batches
from tests import factories
from tests.fakes.faulty import FAULTS, faults_at
from tests.fakes.memory import SERVERS, server_at

pytestmark = pytest.mark.db

OBJECTS = "memory://objects"


class Cloud:
    """Two zones of two items each and a chain of three, promised to an object store; two workers that reach everything."""

    def __init__(self, folder) -> None:
        self.nfs = {
            name: factories.make_store("NFS", name=f"nfs-{name}", zone=factories.make_zone(name), folder=folder / name)
            for name in ("east", "west")
        }
        self.objects = factories.make_store("Memory", name="objects")
        self.workers = [Worker.objects.create(hostname=name, pid=1) for name in ("one", "two")]
        for row in self.workers:
            self.reach(row)

    def reach(self, row: Worker, **ok: bool) -> None:
        for store in ImageStore.objects.all():
            WorkerReach.objects.update_or_create(
                worker=row, store=store, defaults={"ok": ok.get(store.name.replace("-", "_"), True)}
            )

    def fill(self) -> None:
        self.volumes = [factories.make_volume([self.nfs[zone]]) for zone in ("east", "west")]
        self.template = factories.make_template([self.nfs["east"], self.nfs["west"]])
        self.chain = factories.make_chain([self.nfs["west"]], 3)
        factories.make_promises(self.objects)

    def batch(self, **limits: object) -> TransferBatch:
        row = TransferBatch.objects.create(name="batch", open=True, **limits)
        transfers.plan_batch(row, self.objects)
        return row

    def claim(self, who: int = 0, limit: int = 100) -> list[Job]:
        return transfers.claim(self.workers[who].pk, limit=limit, open_batches=open_batches())

    def drain(self, admin) -> object:
        conversion = Conversion.objects.filter(object_store=self.objects).first()
        conversion = conversion or Conversion.objects.create(object_store=self.objects, actor="test")
        return drain.start(actor=admin, drain=drain.plan(actor=admin, conversion=conversion, canary_items=0))


@pytest.fixture
def cloud(db, tmp_path, settings) -> Iterator[Cloud]:
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | {"Memory": "tests.invariants.drivers.FaultyTarget"}
    settings.NFS_MOUNTS = {}
    SERVERS.clear()
    FAULTS.clear()
    yield Cloud(tmp_path)
    FAULTS.clear()


def pump(cloud: Cloud, who: int = 0) -> int:
    return Pump(cloud.workers[who].pk, slots=4).run()


def at_once() -> None:
    """The pause before the next attempt has passed."""
    Transfer.objects.filter(state=TransferState.QUEUED).update(next_attempt_at=timezone.now() - timedelta(seconds=1))


def lapse() -> None:
    Transfer.objects.filter(state=TransferState.RUNNING).update(lease_until=timezone.now() - timedelta(seconds=1))
    transfers.expire_leases()


def lease_passed(job: Job) -> None:
    """Whoever ran it when it was cancelled has been silent for a lease."""
    ended = timezone.now() - timedelta(seconds=2 * settings.LEASE_SECONDS)
    Transfer.objects.filter(pk=job.transfer.pk).update(finished_at=ended)


def copied(job: Job) -> list[CopiedFile]:
    """What a copy of the job would tell, with the bytes really there."""
    files = []
    for file in job.files:
        with driver_for(job.transfer.source).open(file.path) as reader:
            body = reader.pread(0, reader.size)
        key = job.target_key(file.path)
        stored = driver_for(job.transfer.target).put(key, body, metadata={}, token=job.token)
        digest = hashlib.sha256(body).hexdigest()
        files.append(CopiedFile(file.path, key, len(body), digest, stored.etag, stored.version, file.version, Proof.VERIFIED))
    return files


def rows() -> list[object]:
    models = [Transfer, TransferUpload, *(model for kind in KINDS.values() for model in (kind.ref, kind.file))]
    return [list(model.objects.order_by("pk").values()) for model in models]


# --- claiming --------------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_is_claimed_before_the_background(cloud, operator):
    cloud.fill()
    cloud.batch()
    wanted = cloud.volumes[1]
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=wanted)
    (job,) = cloud.claim(limit=1)
    assert (job.transfer.kind, job.item.pk) == (Kind.VOLUME, wanted.pk)


def test_parents_are_claimed_before_their_children_and_children_only_after_the_proof(cloud):
    cloud.fill()
    cloud.batch()
    seen = []
    while jobs := cloud.claim():
        seen.append([job.item.pk for job in jobs if job.transfer.kind == Kind.SNAPSHOT])
        assert transfers.prove([(job, copied(job)) for job in jobs]) == {job.transfer.pk for job in jobs}
    assert seen == [[snapshot.pk] for snapshot in cloud.chain]


def test_asking_for_a_child_brings_its_chain_first(cloud, operator):
    cloud.fill()
    cloud.batch()
    transfer = transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=cloud.chain[2])
    assert transfer.item_id == cloud.chain[2].pk
    chain = Transfer.objects.filter(kind=Kind.SNAPSHOT).order_by("depth")
    assert [row.priority for row in chain] == [transfers.ON_DEMAND] * 3
    assert [row.state for row in chain] == [TransferState.QUEUED, TransferState.BLOCKED, TransferState.BLOCKED]
    assert [row.parent_id for row in chain] == [None, chain[0].pk, chain[1].pk]
    (job,) = cloud.claim(limit=1)
    assert job.item == cloud.chain[0]
    assert pump(cloud, 1) >= 0
    lapse()
    pump(cloud)
    assert transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=cloud.chain[2]) is None


def test_no_more_items_of_a_batch_are_under_way_than_it_allows_over_all_workers(cloud):
    cloud.fill()
    batch = cloud.batch(concurrency=3)
    first, second = cloud.claim(0, limit=2), cloud.claim(1, limit=10)
    assert (len(first), len(second)) == (2, 1)
    assert cloud.claim(0) == cloud.claim(1) == []
    transfers.release(first[:1])
    assert len(cloud.claim(1)) == 1
    TransferBatch.objects.filter(pk=batch.pk).update(concurrency=4)
    assert len(cloud.claim(0)) == 1


def test_worker_claims_nothing_between_stores_that_it_does_not_reach(cloud):
    cloud.fill()
    cloud.batch()
    cloud.reach(cloud.workers[0], nfs_east=False)
    claimed = cloud.claim(0)
    assert claimed
    assert {job.transfer.source.name for job in claimed} == {"nfs-west"}
    cloud.reach(cloud.workers[1], objects=False)
    assert cloud.claim(1) == []
    stranger = Worker.objects.create(hostname="three", pid=1)
    assert transfers.claim(stranger.pk, limit=9, open_batches=open_batches()) == []


def test_stores_to_avoid_are_not_claimed_for(cloud):
    cloud.fill()
    cloud.batch()
    jobs = transfers.claim(cloud.workers[0].pk, limit=9, avoid_stores=[cloud.nfs["west"].pk], open_batches=open_batches())
    assert {job.transfer.source.name for job in jobs} == {"nfs-east"}


def test_only_the_canary_is_claimed_while_the_batch_says_so(cloud):
    cloud.fill()
    batch = cloud.batch(only_canary=True)
    assert cloud.claim() == []
    chosen = Transfer.objects.filter(kind=Kind.VOLUME).first()
    Transfer.objects.filter(pk=chosen.pk).update(canary=True)
    assert [job.transfer.pk for job in cloud.claim()] == [chosen.pk]
    TransferBatch.objects.filter(pk=batch.pk).update(only_canary=False)
    assert len(cloud.claim()) == 3


def test_nothing_is_claimed_when_the_batch_is_closed_or_outside_its_window(cloud):
    cloud.fill()
    batch = cloud.batch()
    now = timezone.localtime()
    closed = f"{(now + timedelta(hours=2)):%H:%M}-{(now + timedelta(hours=3)):%H:%M}"
    for limits in ({"open": False}, {"open": True, "window": closed}):
        TransferBatch.objects.filter(pk=batch.pk).update(**limits)
        assert cloud.claim() == []
        assert not transfers.waits_for(cloud.workers[0].pk, open_batches=open_batches())
    around = f"{(now - timedelta(hours=1)):%H:%M}-{(now + timedelta(hours=1)):%H:%M}"
    TransferBatch.objects.filter(pk=batch.pk).update(window=around)
    assert transfers.waits_for(cloud.workers[0].pk, open_batches=open_batches())
    assert len(cloud.claim()) == 4


def test_failed_transfer_is_not_claimed_before_its_pause_is_over(cloud):
    cloud.fill()
    cloud.batch()
    jobs = cloud.claim()
    for job in jobs:
        transfers.fail(job, Unavailable("down"))
    assert cloud.claim() == []
    at_once()
    assert {job.transfer.pk for job in cloud.claim()} == {job.transfer.pk for job in jobs}


@pytest.mark.parametrize("asked", ["7", "9" * 12, "9" * 400])
def test_pause_that_a_store_asks_for_is_kept_within_reason(cloud, asked):
    cloud.fill()
    cloud.batch()
    for job in cloud.claim():
        transfers.fail(job, Throttled("slow down", retry_after=float(asked)))
        pause = Transfer.objects.get(pk=job.transfer.pk).next_attempt_at - timezone.now()
        assert timedelta(seconds=4) < pause <= timedelta(seconds=600)


# --- the lease -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken_over", [False, True])
def test_worker_that_lost_its_lease_changes_no_row(cloud, taken_over):
    cloud.fill()
    cloud.batch()
    jobs = cloud.claim()
    files = {job.transfer.pk: copied(job) for job in jobs}
    lapse()
    if taken_over:
        assert len(cloud.claim(1)) == len(jobs)
    before = rows()
    leases = [Lease(job.transfer.pk, job.epoch, 5, True, "target") for job in jobs]
    assert transfers.renew(leases) == set()
    assert transfers.prove([(job, files[job.transfer.pk]) for job in jobs]) == set()
    transfers.release(jobs)
    for job in jobs:
        transfers.fail(job, AccessDenied("no"))
        transfers.fail(job, Unavailable("down"))
    assert rows() == before


def test_lapsed_leases_alone_are_queued_again(cloud):
    cloud.fill()
    cloud.batch()
    first, *others = cloud.claim()
    Transfer.objects.filter(pk=first.transfer.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert transfers.expire_leases() == 1
    assert transfers.expire_leases() == 0
    assert transfers.renew([Lease(job.transfer.pk, job.epoch, 1, True, "source") for job in [first, *others]]) == {
        job.transfer.pk for job in others
    }
    (again,) = cloud.claim(1)
    assert (again.transfer.pk, again.epoch) == (first.transfer.pk, first.epoch + 1)


def test_proof_that_is_delivered_twice_changes_nothing_the_second_time(cloud):
    cloud.fill()
    cloud.batch()
    finished = [(job, copied(job)) for job in cloud.claim()]
    assert len(transfers.prove(finished)) == 4
    before = rows()
    assert transfers.prove(finished) == set()
    assert rows() == before
    assert holds.recount() == []


# --- what fails, and comes back --------------------------------------------------------------------------------------------


def test_upload_that_was_begun_as_its_lease_was_lost_is_recorded_by_nobody_and_reaped(cloud, monkeypatch):
    cloud.fill()
    cloud.batch()
    while_ours = worker._PumpJournal._while_ours

    def too_late(journal, write):
        monkeypatch.setattr(worker._PumpJournal, "_while_ours", while_ours)
        lapse()
        while_ours(journal, write)

    monkeypatch.setattr(worker._PumpJournal, "_while_ours", too_late)
    pump(cloud)
    at_once()
    pump(cloud)
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.PROVEN}
    objects = dict(server_at(OBJECTS).objects)
    begun = server_at(OBJECTS).uploads
    assert not TransferUpload.objects.exists()
    left = next(iter(begun.values()))
    left.started = timezone.now()
    tasks.reap()
    assert list(begun.values()) == [left], "whoever began it may be alive"
    left.started -= timedelta(seconds=2 * settings.LEASE_SECONDS + 1)
    tasks.reap()
    assert begun == {}
    assert server_at(OBJECTS).objects == objects


def test_upload_that_was_begun_while_the_reaper_stood_still_is_left(cloud, monkeypatch):
    """It has become old since the reaper began to look, and is recorded."""
    cloud.fill()
    cloud.batch()
    driver = driver_for(cloud.objects)
    listed = driver.pending_uploads

    def slow() -> Iterator[object]:
        faults_at(OBJECTS).on("complete_upload", times=99, raises=Unavailable("down"))
        pump(cloud)
        for pending in server_at(OBJECTS).uploads.values():
            pending.started -= timedelta(hours=1)
        yield from listed()

    monkeypatch.setattr(driver, "pending_uploads", slow)
    tasks.reap()
    assert TransferUpload.objects.exists()
    assert set(TransferUpload.objects.values_list("upload_id", flat=True)) <= set(server_at(OBJECTS).uploads)


def test_upload_that_the_store_aborted_with_all_its_parts_is_begun_anew(cloud):
    """A lifecycle rule took it just before it was completed; the next attempt must not find it in the rows again."""
    cloud.fill()
    cloud.batch()
    faults_at(OBJECTS).on("complete_upload", times=99, raises=Unavailable("down"))
    pump(cloud)
    assert TransferUpload.objects.exists()
    server_at(OBJECTS).uploads.clear()
    faults_at(OBJECTS).clear()
    for _ in range(8):
        at_once()
        pump(cloud)
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.PROVEN}
    assert not TransferUpload.objects.exists()


@pytest.mark.parametrize(("model", "method"), [(TransferUpload, "create"), (TransferPart, "bulk_create")])
def test_item_whose_rows_can_never_be_written_fails_and_the_others_go_on(cloud, monkeypatch, model, method):
    cloud.fill()
    cloud.batch()
    really, refused = getattr(model.objects, method), []

    def write(*args: object, **values: object) -> object:
        row = args[0][0].upload.transfer_id if args else values["transfer_id"]
        refused.append(row)
        if row == refused[0]:
            raise DataError("a value that no row takes")
        return really(*args, **values)

    monkeypatch.setattr(model.objects, method, write)
    pump(cloud)
    bad = Transfer.objects.get(pk=refused[0])
    assert (bad.state, bad.attempts, bad.error_cause) == (TransferState.QUEUED, 1, "unexpected")
    assert "no row takes" in bad.error
    others = Transfer.objects.exclude(pk=bad.pk).exclude(parent=bad.pk).exclude(parent__parent=bad.pk)
    assert set(others.values_list("state", flat=True)) == {TransferState.PROVEN}


def test_what_is_planned_while_somebody_asks_for_it_goes_ahead(cloud, operator, monkeypatch):
    """A plan may commit between the question whether the item is under way and the row for it."""
    cloud.fill()
    looked = planning.readable_copies

    def planned_meanwhile(*args: object):
        monkeypatch.setattr(planning, "readable_copies", looked)
        cloud.batch()
        return looked(*args)

    monkeypatch.setattr(planning, "readable_copies", planned_meanwhile)
    wanted = cloud.volumes[0]
    asked = transfers.ensure(actor=operator, kind=Kind.VOLUME, item=wanted)
    live = Transfer.objects.get(kind=Kind.VOLUME, item_id=wanted.pk)
    assert (live.pk, live.priority, live.batch_id is None) == (asked.pk, transfers.ON_DEMAND, False)


def test_child_waits_for_the_parent_that_was_asked_for_after_both_had_failed(cloud, operator):
    cloud.fill()
    batch = cloud.batch()
    for job in cloud.claim():
        transfers.fail(job, AccessDenied("no"))
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.FAILED}
    transfers.ensure(actor=operator, kind=Kind.SNAPSHOT, item=cloud.chain[0])
    transfers.retry(actor=operator, transfers=Transfer.objects.filter(batch=batch), target="test")
    for _ in range(4):
        pump(cloud)
    assert KINDS[Kind.SNAPSHOT].ref.objects.filter(store=cloud.objects, state=RefState.READY).count() == 3
    assert not Transfer.objects.exclude(state__in=[TransferState.PROVEN, TransferState.CANCELLED]).exists()


def test_retry_leaves_out_what_another_transfer_brings_or_has_brought(cloud, operator):
    """Two transfers of one item can have failed, one of each batch; only one may live."""
    cloud.fill()
    old = cloud.batch()
    for job in cloud.claim():
        transfers.fail(job, AccessDenied("no"))
    new = cloud.batch()
    assert Transfer.objects.filter(batch=new).count() == 6
    retried = transfers.retry(actor=operator, transfers=Transfer.objects.filter(batch=old), target="test")
    assert retried == 0
    for _ in range(4):
        pump(cloud)
    assert Transfer.objects.filter(batch=new, state=TransferState.PROVEN).count() == 6
    assert transfers.retry(actor=operator, transfers=Transfer.objects.filter(batch=old), target="test") == 0
    assert cloud.claim() == []


def test_copy_of_what_was_deleted_while_it_was_planned_is_cancelled(cloud, admin, monkeypatch):
    cloud.fill()
    insert = planning.insert_ordered

    def deleted_between_reading_and_writing(*args: object, **kwargs: object) -> int:
        count = insert(*args, **kwargs)
        late = list(Transfer.objects.filter(kind=Kind.VOLUME))
        Transfer.objects.filter(kind=Kind.VOLUME).delete()
        for volume in Volume.objects.filter(removed=None) if late else ():
            items.delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
        items.finish_deletes()
        Transfer.objects.bulk_create(late)
        return count

    monkeypatch.setattr(planning, "insert_ordered", deleted_between_reading_and_writing)
    cloud.batch()
    pump(cloud)
    assert set(Transfer.objects.filter(kind=Kind.VOLUME).values_list("state", flat=True)) == {TransferState.CANCELLED}
    assert not Transfer.objects.filter(state=TransferState.FAILED).exists()


def test_retry_gives_up_what_was_deleted(cloud, operator):
    cloud.fill()
    cloud.batch()
    for job in cloud.claim():
        transfers.fail(job, AccessDenied("no"))
    KINDS[Kind.VOLUME].ref.objects.filter(store=cloud.objects).update(state=RefState.DESTROYED)
    assert transfers.retry(actor=operator, transfers=Transfer.objects.all(), target="test") == 4
    assert set(Transfer.objects.filter(kind=Kind.VOLUME).values_list("state", flat=True)) == {TransferState.CANCELLED}


def test_nothing_is_asked_of_a_store_that_is_away(cloud, operator):
    cloud.fill()
    for state in (StoreState.DETACHED, StoreState.REMOVED):
        ImageStore.objects.filter(pk=cloud.nfs["west"].pk).update(state=state)
        store = ImageStore.objects.get(pk=cloud.nfs["west"].pk)
        with pytest.raises(Conflict, match=f"nfs-west is {state}") as refused:
            transfers.ensure(actor=operator, kind=Kind.VOLUME, item=cloud.volumes[0], store=store)
        assert refused.value.field == "store"
    assert not Transfer.objects.exists()


def test_what_failed_is_over_once_another_transfer_has_brought_the_item(cloud, operator):
    cloud.fill()
    cloud.batch()
    for job in cloud.claim():
        transfers.fail(job, AccessDenied("no"))
    failed = Transfer.objects.get(kind=Kind.VOLUME, item_id=cloud.volumes[0].pk)
    Transfer.objects.filter(kind=Kind.VOLUME).exclude(pk=failed.pk).delete()
    again = cloud.batch()
    Transfer.objects.exclude(batch=again).filter(kind=Kind.VOLUME).update(priority=transfers.ON_DEMAND)
    pump(cloud)
    tasks.keep_house()
    failed.refresh_from_db()
    assert failed.state == TransferState.CANCELLED
    others = Transfer.objects.filter(kind=Kind.VOLUME).exclude(pk=failed.pk)
    assert set(others.values_list("state", flat=True)) == {TransferState.PROVEN}


def test_staging_copy_that_failed_can_be_retried_to_its_end(cloud, operator):
    cloud.fill()
    volume = factories.make_volume([cloud.nfs["east"]])
    target = factories.make_store("Memory", name="second")
    for row in cloud.workers:
        cloud.reach(row)
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=target)
    (job,) = cloud.claim()
    transfers.fail(job, AccessDenied("no"))
    assert transfers.retry(actor=operator, transfers=Transfer.objects.all(), target="test") == 1
    assert pump(cloud) == 1
    assert KINDS[Kind.VOLUME].ref.objects.get(store=target, item=volume).state == RefState.READY
    assert not Transfer.objects.exclude(state=TransferState.PROVEN).exists()


def test_new_promise_does_not_bring_what_failed_into_the_same_batch_twice(cloud, admin):
    cloud.fill()
    row = cloud.drain(admin)
    drain.advance(row)
    for job in cloud.claim():
        transfers.fail(job, AccessDenied("no"))
    factories.make_volume([cloud.nfs["east"]])
    ref = KINDS[Kind.VOLUME].ref.objects.filter(store=cloud.nfs["east"]).order_by("-pk").first()
    holds.make_promises(Kind.VOLUME, cloud.nfs["east"].pk, [ref])
    drain.advance(row)
    assert Transfer.objects.filter(batch=row.batch_id).count() == 7
    pump(cloud)
    drain.advance(row)
    row.refresh_from_db()
    assert row.state == DrainState.FINISHED
    assert row.note.startswith("6 items failed")
    assert drain.retry_failed(actor=admin, drain=row) == 6


def test_finished_drain_is_not_taken_up_again_beside_a_newer_one(cloud, admin):
    cloud.fill()
    old = cloud.drain(admin)
    drain.advance(old)
    for job in cloud.claim():
        transfers.fail(job, AccessDenied("no"))
    drain.advance(old)
    new = cloud.drain(admin)
    with pytest.raises(Conflict) as refusal:
        drain.retry_failed(actor=admin, drain=old)
    assert str(new.uuid) in refusal.value.message


def test_canary_that_vanished_from_the_store_stops_the_drain(cloud, admin):
    cloud.fill()
    conversion = Conversion.objects.create(object_store=cloud.objects, actor="test")
    row = drain.start(actor=admin, drain=drain.plan(actor=admin, conversion=conversion, canary_items=5))
    for _ in range(3):
        pump(cloud)
    for key in [key for key in server_at(OBJECTS).objects if not key.startswith(".cs-")]:
        del server_at(OBJECTS).objects[key]
    drain.advance(row)
    row.refresh_from_db()
    assert row.state == DrainState.PAUSED
    assert "Do not go on" in row.note


def test_sweeping_a_cancelled_copy_spares_an_object_that_another_item_has(cloud, admin):
    """A snapshot was deleted while it was copied, and another of the same name was made on the object store since."""
    cloud.fill()
    cloud.batch()
    first = cloud.chain[0]
    job = next(job for job in cloud.claim() if job.item == first)
    for snapshot in reversed(cloud.chain):
        items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=snapshot)
    items.finish_deletes()
    items.finish_deletes()
    key = job.target_path
    again = KINDS[Kind.SNAPSHOT].item.objects.create(
        name="again", account=first.account, volume_upstream_id=first.volume_upstream_id, path=first.path
    )
    factories.make_ref(Kind.SNAPSHOT, again, cloud.objects, key, {key: b"another"}, proof=Proof.VERIFIED)
    transfers.mark_unswept([job])
    lease_passed(job)
    debris.sweep()
    assert server_at(OBJECTS).objects[key][1] == b"another"
    assert not Transfer.objects.filter(pk=job.transfer.pk, swept=False).exists()


def meanwhile(monkeypatch, cloud: Cloud, happens: Callable[[], object]) -> None:
    """Let this happen between the sweep's look at the store and its first removal."""
    driver = driver_for(cloud.objects)
    listed = driver.list

    def slow(*args: object) -> Iterator[object]:
        monkeypatch.setattr(driver, "list", listed)
        yield from list(listed(*args))
        happens()

    monkeypatch.setattr(driver, "list", slow)


def debris_of(cloud: Cloud, kind: Kind) -> Job:
    """A cancelled copy that had published already."""
    cloud.fill()
    cloud.batch()
    job = next(job for job in cloud.claim() if job.transfer.kind == kind)
    transfers.cancel_live(Transfer.objects.all())
    copied(job)
    Transfer.objects.exclude(pk=job.transfer.pk).update(swept=True)
    return job


def test_sweep_that_was_held_up_leaves_what_was_copied_and_proven_meanwhile(cloud, monkeypatch):
    """The process, or its host, stood still for longer than the lease: by its own clock no time has passed."""
    job = debris_of(cloud, Kind.VOLUME)

    def copy_again() -> None:
        Transfer.objects.filter(pk=job.transfer.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
        cloud.batch()
        again = next(again for again in cloud.claim() if again.item == job.item)
        assert transfers.prove([(again, copied(again))])

    meanwhile(monkeypatch, cloud, copy_again)
    debris.sweep()
    assert job.target_key(job.files[0].path) in server_at(OBJECTS).objects


def test_sweep_leaves_a_new_item_of_the_same_path(cloud, admin, monkeypatch):
    job = debris_of(cloud, Kind.SNAPSHOT)
    for snapshot in reversed(cloud.chain):
        items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=snapshot)
    items.finish_deletes()
    items.finish_deletes()

    def make_another() -> None:
        of_volume = {"account": job.item.account, "volume_upstream_id": job.item.volume_upstream_id, "path": job.item.path}
        another = KINDS[Kind.SNAPSHOT].item.objects.create(name="again", **of_volume)
        factories.make_ref(Kind.SNAPSHOT, another, cloud.objects, job.target_path, {job.target_path: b"another"})

    meanwhile(monkeypatch, cloud, make_another)
    debris.sweep()
    assert server_at(OBJECTS).objects[job.target_path][1] == b"another"


def test_sweep_that_was_held_up_does_not_give_back_the_lease_of_the_next_one(cloud):
    job = debris_of(cloud, Kind.VOLUME)
    first, second = (Transfer.objects.get(pk=job.transfer.pk) for _ in range(2))
    assert transfers.lease_for_sweep(first)
    assert not transfers.lease_for_sweep(second)
    Transfer.objects.filter(pk=job.transfer.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert not transfers.keep_sweeping(first)
    assert transfers.lease_for_sweep(second)
    assert not transfers.end_sweep(first, clean=True)
    assert transfers.keep_sweeping(second)
    cloud.batch()
    assert job.item not in [again.item for again in cloud.claim()]


def test_what_a_cancelled_copy_published_before_its_worker_was_killed_is_swept(cloud, admin):
    """Its put was under way when the debris was swept for the first time; the worker died before it could say that it landed."""
    cloud.fill()
    row = cloud.drain(admin)
    drain.advance(row)
    job = next(job for job in cloud.claim() if job.transfer.kind == Kind.VOLUME)
    drain.cancel(actor=admin, drain=row)
    debris.sweep()
    copied(job)
    debris.sweep()
    assert not any(key.startswith("volumes/") for key in server_at(OBJECTS).objects)
    copied(job)
    lease_passed(job)
    assert debris.sweep() == 1
    assert not any(key.startswith("volumes/") for key in server_at(OBJECTS).objects)
    assert debris.sweep() == 0


def test_failure_that_may_pass_is_tried_a_few_times_and_then_waits_for_a_person(cloud):
    cloud.fill()
    cloud.batch()
    Transfer.objects.exclude(kind=Kind.VOLUME).delete()
    for attempt in range(1, transfers.MAX_ATTEMPTS + 1):
        at_once()
        jobs = cloud.claim()
        assert len(jobs) == 2
        for job in jobs:
            assert job.transfer.attempts == attempt
            transfers.fail(job, Corrupt("other bytes") if attempt % 2 else UploadGone("gone"))
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.FAILED}


def after_an_outage(cloud: Cloud) -> None:
    """Two volumes that could not be copied many times, for a store did not answer."""
    cloud.fill()
    cloud.batch()
    Transfer.objects.exclude(kind=Kind.VOLUME).delete()
    for _ in range(2 * transfers.MAX_ATTEMPTS):
        at_once()
        for job in cloud.claim():
            transfers.fail(job, Unavailable("down"))
    at_once()


def test_outage_does_not_make_the_next_error_final(cloud):
    after_an_outage(cloud)
    for attempt in range(1, transfers.MAX_ATTEMPTS + 1):
        assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.QUEUED}
        at_once()
        for job in cloud.claim():
            transfers.fail(job, Corrupt(f"other bytes {attempt}"))
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.FAILED}


def test_only_workers_that_are_lost_in_a_row_make_a_transfer_fail(cloud, operator):
    after_an_outage(cloud)
    for _ in range(2):
        for _ in range(transfers.MAX_ATTEMPTS - 1):
            assert len(cloud.claim()) == 2
            lapse()
        transfers.release(cloud.claim())
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.QUEUED}
    for _ in range(transfers.MAX_ATTEMPTS):
        cloud.claim()
        lapse()
    assert set(Transfer.objects.values_list("state", "error_cause")) == {(TransferState.FAILED, "worker-lost")}
    transfers.retry(actor=operator, transfers=Transfer.objects.all(), target="test")
    cloud.claim()
    lapse()
    assert set(Transfer.objects.values_list("state", flat=True)) == {TransferState.QUEUED}


# --- what it costs ---------------------------------------------------------------------------------------------------------


def drained(cloud: Cloud, admin, count: int) -> float:
    """SQL statements per item of draining so many volumes, without those of the clock."""
    for _ in range(count):
        factories.make_volume([cloud.nfs["east"]], size=10)
    factories.make_promises(cloud.objects)
    row = cloud.drain(admin)
    drain.advance(row)
    TransferBatch.objects.filter(pk=row.batch_id).update(concurrency=64)
    with CaptureQueriesContext(connection) as told:
        proven = Pump(cloud.workers[0].pk, slots=8).run()
    assert proven == count
    return len(told) / count


@pytest.mark.parametrize(("count", "bar"), [(20, 10), (200, 4)])
def test_item_costs_few_statements_and_fewer_when_there_are_many(cloud, admin, capsys, count, bar):
    per_item = drained(cloud, admin, count)
    with capsys.disabled():
        print(f"\n  {per_item:.1f} statements per item of {count}")
    assert per_item <= bar


def test_house_is_kept_without_changing_anything_when_nothing_is_due(cloud):
    cloud.fill()
    cloud.batch()
    cloud.claim()
    before = rows()
    for _ in range(2):
        tasks.keep_house()
        tasks.clean_up()
    assert rows() == before
