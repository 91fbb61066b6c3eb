"""A scan adopts what really lies on an export and takes nothing strange for an item."""

from __future__ import annotations

import uuid

import pytest

from cloudstorage.errors import Busy, Denied, Unreachable
from cloudstorage.models import AuditEvent
from stores.drivers.base import MARKER_KEY
from stores.models import KINDS, Account, ScanRun, Snapshot, Template, Volume
from stores.services.scan import ScanReport, run, scan_store
from stores.states import Proof, RefState, ScanState
from tests.demo import damage
from tests.stores.scan.helpers import paths, ref_of, rows, stable_rows

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


# --- adopting ---


def test_every_item_is_adopted_when_an_export_is_scanned_for_the_first_time(operator, region, zone1, zone2):
    for store, zone in ((zone1, "zone1"), (zone2, "zone2")):
        report = scan_store(actor=operator, store=store)
        items = region.of(zone)
        assert report.complete
        assert report.adopted == len(items)
        assert dict(report.found) == {
            kind: len(region.of(zone, kind)) for kind in ("template", "iso", "snapshot", "volume") if region.of(zone, kind)
        }
        assert report.conflicts.count == report.corrupt.count == report.missing.count == 0, report.as_json()
        for item in items:
            ref = ref_of(store, item)
            assert (ref.state, ref.proof, ref.sha256, ref.error_str) == (RefState.READY, Proof.ADOPTED, "", "")
            assert ref.size == item.size
            assert {(file.path, file.size) for file in ref.files.all()} == {(file.path, file.size) for file in item.files}
            assert all(file.proof == Proof.ADOPTED and file.version and not file.sha256 for file in ref.files.all())
            assert ref.item.format == item.format.upper()
            assert ref.physical_size <= ref.size + 8192 * len(item.files)
            if item.kind == "snapshot":
                assert (ref.item.parent.path if ref.item.parent else None) == (item.parent.split("/")[1] if item.parent else None)
                assert ref.item.depth == (ref.item.parent.depth + 1 if ref.item.parent else 0)
            assert ref.item.size > 0
    both = Template.objects.get(upstream_id=201)
    assert both.refs.count() == 2
    assert both.zone_refs.count() == 2
    assert both.unique_name == region.item("zone1", "201").name
    assert both.name == "Debian 12 (KVM)"
    assert Template.objects.get(upstream_id=3).type == "SYSTEM"


def test_what_is_no_item_is_named_or_skipped_by_rule_when_scanned(operator, region, zone1):
    report = scan_store(actor=operator, store=zone1)
    assert paths(report.unknown) == [path.removeprefix("zone1/") for path in region.foreign]
    assert dict(report.skipped) == {".snapshot": 1, "lost+found": 1, ".nfs*": 1}


def test_nothing_is_written_when_nothing_changed_since_the_last_scan(operator, region, zone1, zone2, monkeypatch):
    for store in (zone1, zone2):
        scan_store(actor=operator, store=store)
    before = rows()
    for store, zone in ((zone1, "zone1"), (zone2, "zone2")):
        report = scan_store(actor=operator, store=store)
        assert (report.adopted, report.opened, report.unchanged) == (0, 0, len(region.of(zone)))
        assert sum(report.found.values()) == len(region.of(zone))
    assert rows() == before


def test_report_is_kept_with_an_audit_row_when_a_scan_ends(operator, zone1):
    report = scan_store(actor=operator, store=zone1)
    zone1.refresh_from_db()
    assert zone1.scan_report == report.as_json()
    assert zone1.scanned_at == report.started
    kept = ScanRun.objects.get()
    assert (kept.state, kept.files, kept.report) == (ScanState.FINISHED, report.files, report.as_json())
    assert AuditEvent.objects.get(action="store.scan").details == {"run": str(kept.uuid)}
    event = AuditEvent.objects.get(action="store.scan.finish")
    assert (event.actor, event.target, event.details["adopted"]) == (operator.name, zone1.name, report.adopted)
    assert isinstance(report, ScanReport)
    assert uuid.UUID(zone1.scan_report["store"]) == zone1.uuid


# --- refusals ---


def test_scan_is_refused_when_the_role_is_missing(viewer, zone1):
    with pytest.raises(Denied):
        scan_store(actor=viewer, store=zone1)
    assert AuditEvent.objects.get(action="store.scan").outcome == "refused"


def test_second_scan_is_refused_when_one_is_running(operator, zone1, monkeypatch):
    answers = []

    def try_another(name: str) -> None:
        if not answers:
            with pytest.raises(Busy) as refused:
                scan_store(actor=operator, store=zone1)
            answers.append(refused.value.message)

    monkeypatch.setattr(run, "reach", try_another)
    report = scan_store(actor=operator, store=zone1)
    assert report.complete
    assert answers == [f"Another scan of {zone1.name} is running."]


def test_scan_writes_nothing_more_when_another_took_over(operator, zone1, monkeypatch):
    monkeypatch.setattr(run, "BATCH_FILES", 1)

    def steal(name: str) -> None:
        ScanRun.objects.update(token=uuid.uuid4())

    monkeypatch.setattr(run, "reach", steal)
    with pytest.raises(Busy, match="taken over"):
        scan_store(actor=operator, store=zone1)
    assert Template.objects.count() == Snapshot.objects.count() == 0
    zone1.refresh_from_db()
    assert zone1.scan_report == {}
    assert ScanRun.objects.get().state == ScanState.RUNNING


def test_nothing_is_said_to_be_missing_when_the_store_goes_away_half_way(operator, region, zone1, monkeypatch):
    last = scan_store(actor=operator, store=zone1)
    damage.remove_parent(region, region.chain("zone1", 21)[3])
    damage.change_content(region, region.item("zone1", "204"))
    monkeypatch.setattr(run, "BATCH_FILES", 1)
    marker = region.zones["zone1"] / MARKER_KEY
    monkeypatch.setattr(run, "reach", lambda name: marker.exists() and marker.rename(marker.with_name("gone")))
    before = rows()
    with pytest.raises(Unreachable):
        scan_store(actor=operator, store=zone1)
    assert rows() == before
    failed = zone1.scan_report.pop("failed")
    assert "marker" in failed["error"]
    assert zone1.scan_report == last.as_json()
    zone1.refresh_from_db()
    assert zone1.scan_report["failed"] == failed
    ended = ScanRun.objects.latest("pk")
    assert (ended.state, ended.error, ended.remedy) == (ScanState.FAILED, failed["error"], failed["remedy"])
    assert AuditEvent.objects.get(action="store.scan.finish", outcome="refused").details["reason"] == failed["error"]


@pytest.mark.parametrize("batch", [1, 4])
def test_rows_equal_a_clean_run_when_a_scan_is_killed_between_batches(operator, region, zone1, monkeypatch, batch):
    monkeypatch.setattr(run, "BATCH_FILES", batch)
    left = 1
    died = 0
    while True:
        countdown = iter(range(left))

        def die(name: str, countdown=countdown) -> None:
            if next(countdown, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(run, "reach", die)
        try:
            scan_store(actor=operator, store=zone1)
            break
        except KeyboardInterrupt:
            died += 1
            left += 3
    assert died > 2
    interrupted = stable_rows()
    for model in (*[kind.ref for kind in KINDS.values()], Snapshot, Template, Volume, Account):
        if model is Snapshot:
            Snapshot.objects.update(parent=None)
        model.objects.all().delete()
    monkeypatch.setattr(run, "reach", lambda name: None)
    scan_store(actor=operator, store=zone1)
    assert stable_rows() == interrupted
