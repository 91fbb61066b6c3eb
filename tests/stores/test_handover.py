"""A seat goes from copy to copy without the database: what was claimed ahead begins while the database thread writes."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.utils import timezone

from migration import drain
from stores import worker
from stores.models import Transfer, TransferBatch
from stores.services import transfers
from stores.states import TransferState
from stores.worker import Pump
from tests import factories
from tests.fakes.memory import server_at
from tests.stores.test_transfers import OBJECTS, Cloud, cloud

__all__ = ["cloud"]

pytestmark = pytest.mark.db

ITEMS, SLOTS = 40, 2


class Copies:
    """Lets the first of each slot pass, and the others when they are released; knows how many are under way at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed, self._gate = threading.Condition(), threading.Semaphore(SLOTS)
        self.begun = self.at_once = self.most = 0
        copy = Pump._copy

        def counted(pump, running):
            with self._changed:
                self.begun += 1
                self.at_once += 1
                self.most = max(self.most, self.at_once)
                self._changed.notify_all()
            self._gate.acquire()
            try:
                return copy(pump, running)
            finally:
                with self._changed:
                    self.at_once -= 1

        monkeypatch.setattr(Pump, "_copy", counted)

    def release(self) -> None:
        self._gate.release(ITEMS)

    def wait_for(self, begun: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.begun >= begun, timeout=30)


@pytest.fixture
def copies(monkeypatch) -> Copies:
    monkeypatch.setattr(worker, "_STEER_SECONDS", 0.05)
    return Copies(monkeypatch)


@pytest.fixture
def batch(cloud: Cloud, admin) -> TransferBatch:
    for _ in range(ITEMS):
        factories.make_volume([cloud.nfs["east"]], size=10)
    factories.make_promises(cloud.objects)
    row = cloud.drain(admin)
    drain.advance(row)
    TransferBatch.objects.filter(pk=row.batch_id).update(concurrency=SLOTS)
    return TransferBatch.objects.get(pk=row.batch_id)


def at_pace(cloud: Cloud) -> Pump:
    """A pump that has ended many in the second before, so that it claims ahead."""
    pump = Pump(cloud.workers[0].pk, slots=SLOTS)
    pump._ended_now = ITEMS
    return pump


def test_copies_go_on_while_a_proof_is_written(cloud, batch, copies, monkeypatch):
    prove, went_on = transfers.prove, []

    def slow(finished, *, heirs):
        if not went_on:
            copies.release()
            went_on.append(copies.wait_for(2 * SLOTS + 1))  # of each slot the first has ended and the second may have begun
        return prove(finished, heirs=heirs)

    monkeypatch.setattr(worker.transfers, "prove", slow)
    assert at_pace(cloud).run() == ITEMS
    assert went_on == [True]
    assert copies.most <= SLOTS
    assert len([key for key in server_at(OBJECTS).objects if key.startswith("volumes/")]) == ITEMS


def test_pump_that_proved_all_it_found_rings_once(cloud, batch, monkeypatch):
    rung: list[str] = []
    monkeypatch.setattr(worker, "wake", rung.append)
    assert Pump(cloud.workers[0].pk, slots=SLOTS).run() == ITEMS
    assert Pump(cloud.workers[0].pk, slots=SLOTS).run() == 0
    assert rung == ["migration.tasks.advance"]


def test_pump_that_copied_a_canary_stays_for_what_follows_it(cloud, batch, monkeypatch):
    """Also when the rest is let go between its last claim and its look at the canary."""
    Transfer.objects.filter(pk=Transfer.objects.filter(batch=batch).order_by("pk").first().pk).update(canary=True)
    TransferBatch.objects.filter(pk=batch.pk).update(only_canary=True)
    claim, looks = transfers.claim, []

    def looking(*args, **options):
        found = claim(*args, **options)
        if pump._awaits_canary and not found:
            looks.append(TransferBatch.objects.filter(pk=batch.pk).update(only_canary=len(looks) < 2))
        return found

    monkeypatch.setattr(worker.transfers, "claim", looking)
    pump = Pump(cloud.workers[0].pk, slots=SLOTS, patience=60)
    assert pump.run() == ITEMS
    assert len(looks) == 3


def test_pump_that_finds_all_seats_taken_stays_for_those_that_it_asked_for(cloud, batch, monkeypatch):
    held = list(Transfer.objects.filter(batch=batch).order_by("pk").values_list("pk", flat=True)[:SLOTS])
    running = {
        "state": TransferState.RUNNING,
        "worker": cloud.workers[1],
        "pump": 1,
        "lease_until": timezone.now() + timedelta(hours=1),
    }
    Transfer.objects.filter(pk__in=held).update(**running)
    claim, looks = transfers.claim, []

    def looking(*args, **options):
        looks.append(None)
        if len(looks) == 3:
            Transfer.objects.filter(pk__in=held).update(state=TransferState.QUEUED, worker=None, pump=None, lease_until=None)
        return claim(*args, **options)

    monkeypatch.setattr(worker.transfers, "claim", looking)
    assert Pump(cloud.workers[0].pk, slots=SLOTS, patience=60).run() == ITEMS


def test_nothing_that_waits_begins_once_its_batch_is_paused(cloud, batch, copies, monkeypatch):
    prove = transfers.prove

    def pause(finished, *, heirs):
        TransferBatch.objects.filter(pk=batch.pk).update(open=False)
        pump._steer()
        copies.release()
        return prove(finished, heirs=heirs)

    monkeypatch.setattr(worker.transfers, "prove", pause)
    pump = at_pace(cloud)
    proven = pump.run()
    assert 0 < proven <= copies.begun <= 2 * SLOTS  # the pause may stop a copy that had begun
    assert Transfer.objects.filter(state=TransferState.QUEUED, worker=None).count() == ITEMS - proven
