"""What an outage, a deadly item and a second zone's copy mean for transfers that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from migration import drain
from migration.conversion import convert
from stores.drivers.errors import Unavailable
from stores.management.commands import worker as worker_command
from stores.models import ImageStore, Transfer, Worker, WorkerReach
from stores.services import transfers
from stores.states import TransferState
from stores.worker import Pump, open_batches
from tests.factories import make_store
from tests.migration.conftest import memory_store, region, target  # noqa: F401 - fixtures

pytestmark = pytest.mark.db


@pytest.fixture
def running(region, target, admin, operator):  # noqa: F811 - the fixture of that name
    """One template in two zones, converted, its drain begun; and a worker that reaches everything."""
    region.template("web", "east", "west")
    conversion = convert(actor=admin, override=["preflight-absent"], **target)
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    row = drain.plan(actor=operator, conversion=conversion, canary_items=0)
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    return row, worker


def claim_one(worker: Worker) -> transfers.Job:
    Transfer.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=5))
    (job,) = transfers.claim(worker.pk, limit=1, open_batches=open_batches())
    return job


def test_an_outage_never_uses_up_the_attempts(running):
    _, worker = running
    for _ in range(2 * transfers.MAX_ATTEMPTS):
        transfers.fail(claim_one(worker), Unavailable("the filer is rebooting"))
    assert Transfer.objects.get().state == TransferState.QUEUED


def test_nothing_waits_for_long_when_a_long_outage_is_over(running):
    _, worker = running
    for _ in range(20):
        transfers.fail(claim_one(worker), Unavailable("the filer is rebooting"))
        assert Transfer.objects.get().next_attempt_at <= timezone.now() + timedelta(seconds=61)


def test_an_item_that_takes_every_worker_along_fails_in_the_end(running):
    _, worker = running
    for _ in range(transfers.MAX_ATTEMPTS):
        claim_one(worker)
        Transfer.objects.update(lease_until=timezone.now() - timedelta(seconds=5))
        assert transfers.expire_leases() == 1
    row = Transfer.objects.get()
    assert (row.state, row.error_cause) == (TransferState.FAILED, "worker-lost")


def test_a_retry_takes_another_zones_copy(running, region, operator):  # noqa: F811 - the fixture of that name
    _row, worker = running
    first = Transfer.objects.get().source
    for path in region.folder(first.name.removeprefix("nfs-")).rglob("*.qcow2"):
        path.unlink()
    Pump(worker.pk, slots=1).run()
    assert Transfer.objects.get().state == TransferState.FAILED
    assert transfers.retry(actor=operator, transfers=Transfer.objects.all(), target="test") == 1
    assert Transfer.objects.get().source != first
    Pump(worker.pk, slots=1).run()
    assert Transfer.objects.get().state == TransferState.PROVEN


def fill_disk() -> Callable[[], None]:
    """The database may not grow any more, and has not a page left; returns what makes room."""
    with connection.cursor() as cursor:
        (pages,) = cursor.execute("PRAGMA page_count").fetchone()
        (bound,) = cursor.execute("PRAGMA max_page_count").fetchone()
        cursor.execute("CREATE TABLE filling (content BLOB)")
        cursor.execute(f"PRAGMA max_page_count = {pages + 2}")
        with suppress(OperationalError):
            for _ in range(10_000):
                cursor.execute("INSERT INTO filling VALUES (zeroblob(3000))")

    def make_room() -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA max_page_count = {bound}")
            cursor.execute("DROP TABLE IF EXISTS filling")

    return make_room


@pytest.fixture
def many(region):  # noqa: F811 - the fixture of that name
    """So many items that what is written of them needs pages of its own."""
    for number in range(40):
        region.volume(f"disk-{number}", "east")


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_the_drain_goes_on_when_the_disk_under_the_database_was_full(many, running, monkeypatch, caplog):
    _, worker = running
    make_room = fill_disk()
    pauses, sleep = [], time.sleep

    def pause(seconds: float) -> None:
        """The pump's own; those of its copies pass."""
        if threading.current_thread() is not threading.main_thread():
            sleep(seconds)
            return
        pauses.append(seconds)
        make_room()

    try:
        with monkeypatch.context() as patched:
            patched.setattr("stores.worker.time.sleep", pause)
            Pump(worker.pk, slots=4).run()
    finally:
        make_room()
    assert pauses
    assert "database or disk is full" in caplog.text
    assert set(Transfer.objects.values_list("state", "attempts")) == {(TransferState.PROVEN, 1)}


@pytest.mark.django_db
def test_a_store_that_fails_without_a_word_is_not_reached(monkeypatch):
    def silent(store: ImageStore) -> None:
        raise TimeoutError

    monkeypatch.setattr(worker_command, "driver_for", silent)
    monkeypatch.setattr(worker_command, "connections", SimpleNamespace(close_all=lambda: None))
    store = make_store(name="objects")
    worker_command._Reach(Worker.objects.create(hostname="here", pid=7))._check(store)
    assert WorkerReach.objects.values_list("ok", "error").get() == (False, "TimeoutError")
