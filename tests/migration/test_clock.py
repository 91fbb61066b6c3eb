"""The worker's clock goes on, whatever one drain does."""

from __future__ import annotations

import pytest
from django.utils.module_loading import import_string

from cloudstorage.errors import Conflict
from migration import drain, tasks
from migration.conversion import convert
from migration.states import DrainState
from stores.models import ImageStore, Worker, WorkerReach
from stores.worker import Pump

pytestmark = pytest.mark.db


@pytest.mark.parametrize("failure", [Conflict("paused meanwhile"), RuntimeError("a store lied")])
def test_upkeep_goes_on_when_one_drain_cannot_be_advanced(region, target, admin, operator, monkeypatch, failure):
    region.volume("data", "east")
    conversion = convert(actor=admin, override=["preflight-absent"], **target)
    drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=conversion))

    def refuse(row):
        raise failure

    resumed = []
    monkeypatch.setattr(drain, "advance", refuse)
    monkeypatch.setattr(tasks.verify, "resume_abandoned", lambda: resumed.append(True))
    tasks.advance_drains()
    assert resumed == [True]


def test_drain_goes_on_when_the_pump_that_proved_its_canary_rings(region, target, admin, operator, settings):
    region.volume("data", "east")
    conversion = convert(actor=admin, override=["preflight-absent"], **target)
    row = drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=conversion))
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    assert Pump(worker.pk, slots=2).run() == 1
    ring = import_string(settings.WORKER_WHEN_DONE)
    for state in (DrainState.RUNNING, DrainState.FINISHED):
        ring(0)
        row.refresh_from_db()
        assert row.state == state
