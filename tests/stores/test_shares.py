"""Concurrency below what the workers could take: nobody starves, and nothing lies idle that somebody could use."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from stores.models import Claimer, ImageStore, Transfer, TransferBatch, Worker, WorkerReach
from stores.services import transfers
from stores.services.transfers import Job, shares
from stores.services.transfers.shares import Claimant, share_out
from stores.states import TransferState
from stores.worker import open_batches
from tests import factories
from tests.stores.test_transfers import copied

HOLDERS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=6)


@given(free=st.integers(-2, 12), rows=HOLDERS)
def test_seats_are_given_out_as_long_as_anybody_wants_one_and_to_whoever_has_fewest(free, rows):
    everybody = [Claimant(worker, pump, held, wants) for pump, (worker, held, wants) in enumerate(rows)]
    seats = [share_out(free, everybody, asking).seats for asking in everybody]
    for given_out, asking in zip(seats, everybody, strict=True):
        assert 0 <= given_out <= min(asking.wants, max(free, 0))
    if sum(one.wants for one in everybody) <= max(free, 0):
        assert seats == [one.wants for one in everybody]
    assert any(seats) == (free > 0 and any(one.wants for one in everybody))


@given(free=st.integers(0, 12), rows=HOLDERS)
def test_one_after_the_other_they_share_all_seats_and_end_alike(free, rows):
    """Each takes what it is given, in any order, until nobody is given anything: then all that still want have as many."""
    everybody = [Claimant(number, 0, held, wants) for number, (_, held, wants) in enumerate(rows)]
    left, before = free, [one.held for one in everybody]
    while any(share_out(left, everybody, one).seats for one in everybody):
        one = next(one for one in everybody if share_out(left, everybody, one).seats)
        given_out = share_out(left, everybody, one).seats
        one.held, one.wants, left = one.held + given_out, one.wants - given_out, left - given_out
    assert left == 0 or not any(one.wants for one in everybody)
    for one, other in itertools.permutations(range(len(everybody)), 2):
        if everybody[one].wants and everybody[other].held > before[other]:
            assert everybody[other].held <= everybody[one].held + 1


def test_the_pumps_of_a_worker_have_its_share_together():
    many, alone = [Claimant(1, number, wants=8) for number in range(3)], Claimant(2, 0, wants=8)
    assert share_out(6, [*many, alone], alone).seats == 3
    assert [share_out(6, [*many, alone], pump).seats for pump in many] == [1, 1, 1]


# --- with rows -------------------------------------------------------------------------------------------------------------


class Cloud:
    """Twenty volumes of an export, promised to an object store; three workers that reach both."""

    def __init__(self, folder) -> None:
        self.nfs = factories.make_store("NFS", zone=factories.make_zone(), folder=folder)
        self.objects = factories.make_store("Memory", name="objects")
        for _ in range(20):
            factories.make_volume([self.nfs], size=1)
        factories.make_promises(self.objects)
        self.workers = [Worker.objects.create(hostname=name, pid=1) for name in ("one", "two", "three")]
        for row, store in itertools.product(self.workers, ImageStore.objects.all()):
            WorkerReach.objects.create(worker=row, store=store, ok=True)

    def batch(self, concurrency: int) -> TransferBatch:
        row = TransferBatch.objects.create(name="batch", concurrency=concurrency)
        transfers.plan_batch(row, self.objects)
        transfers.open_batch(row.pk)
        return row

    def claim(self, who: int, limit: int = 4, **more: int) -> list[Job]:
        return transfers.claim(self.workers[who].pk, limit=limit, open_batches=open_batches(), **more)

    def fill(self, who: int) -> int:
        """A worker of four slots asks; how many it holds then."""
        held = self.held(who)
        self.claim(who, 4 - held)
        return self.held(who)

    def held(self, who: int) -> int:
        return Transfer.objects.filter(state=TransferState.RUNNING, worker=self.workers[who], pump__isnull=False).count()


@pytest.fixture
def cloud(db, tmp_path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.db
def test_none_of_three_workers_starves_when_a_batch_has_room_for_four(cloud):
    cloud.batch(concurrency=4)
    assert [cloud.fill(who) for who in (0, 1, 2)] == [2, 1, 1]
    assert [cloud.fill(who) for who in (2, 1, 0)] == [1, 1, 2]


@pytest.mark.db
def test_single_worker_gets_all(cloud):
    Worker.objects.exclude(pk=cloud.workers[0].pk).delete()
    cloud.batch(concurrency=4)
    assert cloud.fill(0) == 4


@pytest.mark.db
@pytest.mark.parametrize("gone", [{"stopped": timezone.now()}, {"heartbeat": timezone.now() - timedelta(minutes=5)}])
def test_share_of_a_worker_that_is_gone_is_given_to_the_others(cloud, gone):
    cloud.batch(concurrency=4)
    assert cloud.fill(2) == 2
    transfers.release(jobs_of(cloud, 2))
    Worker.objects.filter(pk=cloud.workers[2].pk).update(**gone)
    assert [cloud.fill(who) for who in (0, 1)] == [2, 2]


@pytest.mark.db
def test_share_of_a_worker_that_reaches_nothing_is_given_to_the_others(cloud):
    WorkerReach.objects.filter(worker=cloud.workers[2], store=cloud.objects).update(ok=False)
    cloud.batch(concurrency=4)
    assert [cloud.fill(who) for who in (0, 1, 2)] == [2, 2, 0]


@pytest.mark.db
def test_share_of_a_worker_that_never_comes_is_not_kept_for_long(cloud):
    batch = cloud.batch(concurrency=4)
    assert cloud.fill(0) == 2
    TransferBatch.objects.filter(pk=batch.pk).update(opened=timezone.now() - timedelta(seconds=10))
    assert cloud.fill(0) == 4


@pytest.mark.db
def test_pump_that_waits_for_work_gets_its_share_of_a_batch_that_is_opened(cloud):
    Worker.objects.exclude(pk=cloud.workers[0].pk).delete()
    for pump in (1, 2):
        transfers.enlist(cloud.workers[0].pk, pump, limit=2)
    cloud.batch(concurrency=4)
    assert [len(cloud.claim(0, pump=pump)) for pump in (1, 2)] == [2, 2]


@pytest.mark.db
def test_worker_above_its_share_takes_no_more_while_another_asks_and_gives_nothing_up(cloud):
    batch = cloud.batch(concurrency=4)
    TransferBatch.objects.filter(pk=batch.pk).update(opened=None)
    assert [cloud.fill(who) for who in (0, 1)] == [4, 0]
    transfers.release(jobs_of(cloud, 0)[:1])
    assert [cloud.fill(who) for who in (0, 1)] == [3, 1]
    transfers.release(jobs_of(cloud, 0)[:1])
    assert [cloud.fill(who) for who in (0, 1, 0)] == [2, 2, 2]
    silent = timezone.now() - timedelta(seconds=2 * shares.ASK_SECONDS)
    Claimer.objects.filter(worker=cloud.workers[1]).update(seen=silent)
    transfers.release(jobs_of(cloud, 1))
    assert cloud.fill(0) == 4


@pytest.mark.db
def test_nothing_is_claimed_ahead_while_another_worker_has_less_than_its_share(cloud):
    batch = cloud.batch(concurrency=4)
    TransferBatch.objects.filter(pk=batch.pk).update(opened=None)
    assert len(cloud.claim(0, ahead=3)) == 7
    assert cloud.held(0) == 4
    assert cloud.fill(1) == 0
    assert cloud.claim(0, 0, ahead=3) == []


@pytest.mark.db
def test_seat_of_what_is_proven_passes_to_what_was_claimed_ahead(cloud):
    cloud.batch(concurrency=2)
    Worker.objects.exclude(pk=cloud.workers[0].pk).delete()
    jobs = cloud.claim(0, ahead=2)
    seated = [job for job in jobs if job.transfer.pump is not None]
    heirs = [job for job in jobs if job.transfer.pump is None]
    assert (len(seated), len(heirs)) == (2, 2)
    assert len(transfers.prove([(seated[0], copied(seated[0]))], heirs=heirs)) == 1
    assert [job.transfer.pump is not None for job in heirs] == [True, False]
    assert cloud.held(0) == 2
    assert cloud.claim(0) == []


@pytest.mark.db
def test_claim_costs_as_many_statements_for_many_workers_as_for_one(cloud):
    batch = cloud.batch(concurrency=4)
    TransferBatch.objects.filter(pk=batch.pk).update(opened=None)
    costs = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as told:
            assert len(cloud.claim(0, 1)) == 1
        costs.append(len(told))
        for number in range(8):
            Claimer.objects.update_or_create(worker=cloud.workers[1], number=number, defaults={"asks": {}})
    assert costs[0] == costs[1]


@pytest.mark.db
def test_no_more_pumps_than_a_worker_may_have_are_at_work(cloud):
    worker = cloud.workers[0].pk
    assert [transfers.enlist(worker, number, limit=2) for number in (1, 2, 3, 2)] == [True, True, False, True]
    assert transfers.enlist(cloud.workers[1].pk, 3, limit=2)
    Claimer.objects.filter(worker=worker, number=1).update(seen=timezone.now() - timedelta(seconds=shares.ASK_SECONDS + 1))
    assert transfers.enlist(worker, 3, limit=2)
    assert not transfers.enlist(0, 1, limit=2)


def jobs_of(cloud: Cloud, who: int) -> list[Job]:
    rows = Transfer.objects.filter(state=TransferState.RUNNING, worker=cloud.workers[who]).select_related("target", "batch")
    return [Job(row, None, "", "", (), row.epoch) for row in rows.order_by("pk")]  # type: ignore[arg-type]
