"""A scan that was asked for is taken up once, tells how far it is, and is never left running by the death of its process."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db.models.functions import Now

from cloudstorage.errors import Busy, Conflict, Denied, Invalid
from cloudstorage.models import AuditEvent
from stores import tasks
from stores.models import KINDS, ImageStore, ScanRun, WorkerReach
from stores.services import scan
from stores.services.image_stores import remove_store
from stores.services.scan import run as running
from stores.services.scan.runs import MAX_ATTEMPTS
from stores.states import ScanState, StoreState
from tests.factories import make_worker
from tests.stores.scan.helpers import add_export, rows

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def export(admin, tmp_path):
    """A store with three volumes."""
    for number in (7, 8, 9):
        folder = tmp_path / f"export/volumes/2/{number}"
        folder.mkdir(parents=True)
        (folder / "disk.raw").write_bytes(bytes([number]) * 512)
    return add_export(admin, "east", tmp_path / "export")


def lapse() -> None:
    """What the database sees when the process has not been heard of for longer than its lease."""
    ScanRun.objects.filter(state=ScanState.RUNNING).update(lease_until=Now() - timedelta(seconds=1))


def take(worker) -> list[ScanRun]:
    scan.free_abandoned()
    return scan.take_waiting(worker.pk, limit=8)


def test_scan_is_taken_up_by_a_worker_that_reaches_the_store_and_by_no_other(operator, export, monkeypatch):
    far, near = make_worker(), make_worker(export)
    WorkerReach.objects.create(worker=far, store=export, ok=False, error="no such mount")
    asked = scan.request_scan(actor=operator, store=export)
    assert take(far) == []
    monkeypatch.setenv(tasks.WORKER_ENV, str(near.pk))
    tasks.run_scans()
    for thread in threading.enumerate():
        if thread.name == f"scan-{asked.pk}":
            thread.join(30)
    asked.refresh_from_db()
    assert (asked.state, asked.files, asked.actor) == (ScanState.FINISHED, 3, operator.name)
    assert asked.report["adopted"] == 3
    assert scan.take_waiting(near.pk, limit=8) == []


def test_progress_is_told_batch_by_batch(operator, export, monkeypatch):
    monkeypatch.setattr(running, "BATCH_FILES", 1)
    told = []
    monkeypatch.setattr(running, "reach", lambda name: told.append(ScanRun.objects.get().files))
    scan.scan_store(actor=operator, store=export)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 2)
    assert ScanRun.objects.get().files == 3


def test_one_scan_of_a_store_at_a_time_waits_or_runs(operator, export):
    scan.request_scan(actor=operator, store=export)
    with pytest.raises(Busy, match="waits for a worker"):
        scan.request_scan(actor=operator, store=export)
    (run,) = take(make_worker(export))
    for ask in (scan.request_scan, scan.scan_store):
        with pytest.raises(Busy, match="is running"):
            ask(actor=operator, store=export)
    scan.perform(run)
    assert scan.scan_store(actor=operator, store=export).unchanged == 3


def test_what_cannot_be_scanned_is_refused_before_a_run_is_made(admin, operator, viewer, export):
    with pytest.raises(Denied):
        scan.request_scan(actor=viewer, store=export)
    with pytest.raises(Invalid):
        scan.request_scan(actor=operator, store=export, catalogue={"colour": "red"})
    remove_store(actor=admin, store=export)
    with pytest.raises(Conflict):
        scan.request_scan(actor=operator, store=export)
    assert not ScanRun.objects.exists()
    assert AuditEvent.objects.filter(action="store.scan", outcome="refused").count() == 3


def test_catalogue_waits_with_the_scan_and_is_forgotten_with_its_end(operator, export):
    catalogue = {"volumes": [{"account_id": 2, "id": 7, "name": "root disk"}]}
    asked = scan.request_scan(actor=operator, store=export, catalogue=catalogue)
    (run,) = take(make_worker(export))
    assert scan.perform(run).catalogue == {"matched": 1, "updated": 1, "unmatched": 0}
    asked.refresh_from_db()
    assert asked.catalogue is None
    assert KINDS["volume"].item.objects.filter(name="root disk").exists()


# --- cancelled ---


def test_cancelled_scan_writes_nothing_more(operator, export, monkeypatch):
    monkeypatch.setattr(running, "BATCH_FILES", 1)
    seen = []

    def cancel(name: str) -> None:
        if name == "scan.committed" and not seen:
            seen.append(rows())
            scan.cancel_scan(actor=operator, run=ScanRun.objects.get())

    monkeypatch.setattr(running, "reach", cancel)
    with pytest.raises(Conflict, match="was cancelled"):
        scan.scan_store(actor=operator, store=export)
    assert rows() == seen[0]
    run = ScanRun.objects.get()
    assert (run.state, run.token, run.error) == (ScanState.CANCELLED, None, "")
    export.refresh_from_db()
    assert (export.scanned_at, export.scan_report) == (None, {})
    with pytest.raises(Conflict):
        scan.cancel_scan(actor=operator, run=run)
    assert AuditEvent.objects.filter(action="store.scan.cancel", outcome="done").count() == 1


def test_scan_that_waits_is_cancelled_and_never_begins(operator, export):
    run = scan.request_scan(actor=operator, store=export)
    assert scan.cancel_scan(actor=operator, run=run).state == ScanState.CANCELLED
    assert take(make_worker(export)) == []


# --- dead processes ---


def test_scan_is_taken_up_again_when_its_process_died_and_the_dead_one_writes_no_more(operator, export):
    worker = make_worker(export)
    scan.request_scan(actor=operator, store=export)
    (dead,) = take(worker)
    assert take(worker) == []
    lapse()
    (heir,) = take(worker)
    assert heir.pk == dead.pk
    with pytest.raises(Busy, match="taken over"):
        scan.perform(dead)
    assert not KINDS["volume"].item.objects.exists()
    assert scan.perform(heir).adopted == 3
    assert ScanRun.objects.get().state == ScanState.FINISHED


def test_scan_whose_process_dies_again_and_again_fails_and_says_so(operator, export):
    worker = make_worker(export)
    asked = scan.request_scan(actor=operator, store=export)
    for _ in range(MAX_ATTEMPTS):
        assert len(take(worker)) == 1
        lapse()
    assert take(worker) == []
    asked.refresh_from_db()
    assert (asked.state, asked.attempts, asked.token) == (ScanState.FAILED, MAX_ATTEMPTS, None)
    assert "died" in asked.error
    assert asked.remedy
    assert asked.finished_at


def test_next_scan_follows_a_dead_one_whose_lease_ran_out(operator, export):
    scan.request_scan(actor=operator, store=export)
    take(make_worker(export))
    lapse()
    assert scan.scan_store(actor=operator, store=export).adopted == 3
    assert list(ScanRun.objects.order_by("pk").values_list("state", flat=True)) == [ScanState.FAILED, ScanState.FINISHED]


def test_scan_waiting_for_a_store_that_was_detached_ends(operator, export):
    asked = scan.request_scan(actor=operator, store=export)
    ImageStore.objects.filter(pk=export.pk).update(state=StoreState.DETACHED)  # as a roll-back does
    assert take(make_worker(export)) == []
    asked.refresh_from_db()
    assert asked.state == ScanState.FAILED
    assert "detached" in asked.error


def test_interrupted_and_broken_scans_say_what_happened(operator, export, monkeypatch):
    for error in (KeyboardInterrupt(), ZeroDivisionError("by nothing")):

        def fail(name: str, error=error) -> None:
            raise error

        monkeypatch.setattr(running, "reach", fail)
        with pytest.raises(type(error)):
            scan.scan_store(actor=operator, store=export)
    errors = list(ScanRun.objects.filter(state=ScanState.FAILED).order_by("pk").values_list("error", flat=True))
    assert ["interrupted" in errors[0], "by nothing" in errors[1]] == [True, True]
