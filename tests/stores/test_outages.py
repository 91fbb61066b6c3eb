"""What an outage, a deadly item and a second zone's copy mean for transfers that fail."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from migration import drain
from migration.conversion import convert
from stores.drivers.errors import Unavailable
from stores.models import ImageStore, Transfer, Worker, WorkerReach
from stores.services import transfers
from stores.states import TransferState
from stores.worker import Pump, open_batches
from tests.migration.conftest import memory_store, region, target  # noqa: F401 - fixtures

pytestmark = pytest.mark.db


@pytest.fixture
def running(region, target, admin, operator):  # noqa: F811
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


def test_an_item_that_takes_every_worker_along_fails_in_the_end(running):
    _, worker = running
    for _ in range(transfers.MAX_ATTEMPTS):
        claim_one(worker)
        Transfer.objects.update(lease_until=timezone.now() - timedelta(seconds=5))
        assert transfers.expire_leases() == 1
    row = Transfer.objects.get()
    assert (row.state, row.error_cause) == (TransferState.FAILED, "worker-lost")


def test_a_retry_takes_another_zones_copy(running, region, operator):  # noqa: F811
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
