"""What reads an export is done on a host that mounts it, whichever worker the queue's message came to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from migration import decommission, preflight, tasks, verify
from stores import tasks as upkeep
from stores.models import KINDS, ImageStore, Kind, Worker, WorkerReach
from stores.services import items
from stores.states import RefState
from tests import factories
from tests.migration import retiring

pytestmark = [pytest.mark.db, pytest.mark.django_db]

On = Callable[[Worker], None]


@pytest.fixture
def handed(monkeypatch) -> list[tuple[str, int, str]]:
    """What was handed on: (task, number, the worker's cluster)."""
    found: list[tuple[str, int, str]] = []
    monkeypatch.setattr(upkeep.queue, "wake", lambda task, number=0, cluster="": found.append((task, number, cluster)))
    return found


@pytest.fixture
def on(monkeypatch) -> On:
    """The queue process belongs to this worker from now on."""
    return lambda worker: monkeypatch.setenv(upkeep.WORKER_ENV, str(worker.pk))


def hosts(region) -> tuple[Worker, Worker]:
    """All that there are: one mounts the eastern export, one the western; both reach what is no export."""
    Worker.objects.all().delete()
    elsewhere = ImageStore.objects.exclude(pk__in=[store.pk for store in region.stores.values()])
    east, west = (factories.make_worker(region.stores[name], *elsewhere) for name in ("east", "west"))
    WorkerReach.objects.create(worker=east, store=region.stores["west"], ok=False, error="not mounted")
    WorkerReach.objects.create(worker=west, store=region.stores["east"], ok=False, error="not mounted")
    return east, west


def test_a_verification_is_handed_to_who_reaches_the_store(region, admin, handed, on):
    east, west = hosts(region)
    row = verify.verify(actor=admin, store=region.stores["east"])
    handed.clear()
    on(west)
    tasks.run_verification(row.pk)
    row.refresh_from_db()
    assert (row.state, row.note) == ("Queued", "")
    assert handed == [(verify.RUN, row.pk, str(east.uuid))]
    on(east)
    tasks.run_verification(row.pk)
    row.refresh_from_db()
    assert row.state == "Finished"


def test_who_does_not_reach_it_either_looks_and_says_why_when_nobody_does(region, admin, handed, on):
    east, west = hosts(region)
    Worker.objects.filter(pk=east.pk).update(stopped="2026-01-01T00:00:00Z")
    region.folder("east").rename(region.root / "away")
    row = verify.verify(actor=admin, store=region.stores["east"])
    on(west)
    tasks.run_verification(row.pk)
    row.refresh_from_db()
    assert row.note.startswith("It waits: ")


def test_files_of_a_retired_store_are_deleted_by_who_reaches_them(region, admin, handed, on):
    region.volume("data", "east")
    store = retiring.ready_to_retire(region)
    row = retiring.retire(store, admin)
    decommission.delete_files(actor=admin, row=row, confirm=store.name)
    east, west = hosts(region)
    handed.clear()
    on(west)
    tasks.delete_retired_files(row.pk)
    assert handed == [(decommission.DELETE, row.pk, str(east.uuid))]
    row.refresh_from_db()
    assert row.files_deleted == 0
    on(east)
    tasks.delete_retired_files(row.pk)
    row.refresh_from_db()
    assert row.files_deleted == 1


def test_upkeep_of_an_export_is_left_to_who_reaches_it(region, admin, on):
    item = region.volume("data", "east")
    east, west = hosts(region)
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=item)
    ref = KINDS[Kind.VOLUME].ref.objects.get(item=item)
    on(west)
    upkeep.clean_up()
    upkeep.reap()
    upkeep.purge_trash()
    seen = KINDS[Kind.VOLUME].ref.objects.get(item=item)
    assert (seen.state, seen.update_count, seen.error_str) == (RefState.DESTROYING, ref.update_count, "")
    on(east)
    upkeep.clean_up()
    ref.refresh_from_db()
    assert ref.state == RefState.DESTROYED


def test_a_preflight_is_done_by_who_reaches_every_export(region, admin, target, handed, on):
    _, west = hosts(region)
    row = preflight.request_preflight(actor=admin, **target)
    both = factories.make_worker(*region.stores.values())
    handed.clear()
    on(west)
    tasks.run_preflight(row.pk)
    row.refresh_from_db()
    assert row.finished is None
    assert handed == [(preflight.TASK, row.pk, str(both.uuid))]
    on(both)
    tasks.run_preflight(row.pk)
    row.refresh_from_db()
    assert row.finished is not None
