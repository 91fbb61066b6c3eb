"""A verification that runs while items come and go tells only of what is really wrong."""

from __future__ import annotations

import pytest

from migration import drain, listing, verify
from migration.conversion import convert
from migration.models import Verification
from stores.models import KINDS, ImageStore, Kind, Worker, WorkerReach
from stores.services.image_stores import driver_for
from stores.states import RefState
from stores.worker import Pump

pytestmark = pytest.mark.db


@pytest.fixture
def store(region, target, admin, operator) -> ImageStore:
    """The object store with one proven volume."""
    region.volume("data", "east")
    conversion = convert(actor=admin, override=["preflight-absent"], **target)
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=found, ok=True) for found in ImageStore.objects.all())
    drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=conversion))
    assert Pump(worker.pk, slots=1).run() == 1
    return conversion.object_store


def problems(store: ImageStore, mode: str = Verification.LISTING) -> list[str]:
    row = Verification.objects.create(store=store, actor="test", mode=mode)
    verify.run(row)
    row.refresh_from_db()
    assert row.findings_count == len(row.findings)
    return [found["problem"] for found in row.findings]


def test_nothing_is_missing_when_a_copy_came_after_its_page_was_listed(store, monkeypatch):
    driver = driver_for(store)
    monkeypatch.setattr(driver, "list", lambda *_, **__: iter(()))
    assert problems(store) == []


def test_a_file_is_missing_when_it_is_neither_listed_nor_there(store):
    file = KINDS[Kind.VOLUME].file.objects.get(ref__store=store)
    driver_for(store).delete(file.path)
    assert problems(store) == ["missing"]


def test_nothing_is_foreign_when_its_row_came_after_its_page_was_asked_for(store, monkeypatch):
    monkeypatch.setattr(listing, "known_paths", lambda _store: iter(()))
    assert problems(store) == []


def test_an_object_is_foreign_when_no_row_knows_it(store):
    driver_for(store).put("volumes/foreign", b"x", metadata={}, token="")
    assert problems(store) == ["foreign"]


def test_no_content_is_missing_when_its_item_is_being_deleted(store, monkeypatch):
    file = KINDS[Kind.VOLUME].file.objects.get(ref__store=store)
    driver = driver_for(store)
    opened = driver.open

    def deleted_just_now(key):
        KINDS[Kind.VOLUME].ref.objects.filter(pk=file.ref_id).update(state=RefState.DESTROYING)
        driver.delete(key)
        return opened(key)

    monkeypatch.setattr(driver, "open", deleted_just_now)
    assert problems(store, Verification.CONTENT) == []
