"""A preflight tells what a conversion would meet, changes nothing, and stays small whatever the region's size."""

from __future__ import annotations

import json
from datetime import timedelta
from threading import Event

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.errors import Blocked, Conflict, Denied, Invalid, Missing
from migration import findings, sampling
from migration.conversion import convert
from migration.models import Preflight
from migration.preflight import preflight, request_preflight, run_preflight, sealed_details, wake_forgotten
from stores.drivers.errors import Unavailable
from stores.drivers.nfs import NFSDriver
from stores.models import ImageStore, Kind, SnapshotStoreRef, TemplateStoreRef, Worker, WorkerReach
from stores.services import items
from stores.services.scan import scan_store
from stores.services.scan.report import ScanReport
from stores.states import RefState, Role
from tests.migration.region import changed, dump

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def look(admin, target):
    """Runs a preflight; its report."""
    return lambda: preflight(actor=admin, **target).report


def codes(report, severity=None):
    return sorted(found["code"] for found in report["findings"] if severity in {None, found["severity"]})


def finding(report, code):
    (found,) = [found for found in report["findings"] if found["code"] == code]
    return found


def test_report_counts_items_bytes_and_chains_by_zone(region, look):
    region.template("both", "east", "west")
    full = region.snapshot("full", "west")
    region.snapshot("delta", "west", parent=full)
    TemplateStoreRef.objects.filter(store__name="nfs-east").update(physical_size=4096)

    report = look()
    east, west = report["zones"]
    assert (east["zone"], west["zone"]) == ("east", "west")
    assert east["items"] == {"template": {"count": 1, "apparent": len("content of both"), "allocated": 4096}}
    assert west["items"]["snapshot"]["count"] == 2
    assert west["chain_depths"] == {"0": 1, "1": 1}
    assert [entry["name"] for entry in west["largest"]] == ["delta", "both", "full"]
    assert east["stores"][0]["files"] == east["stores"][0]["files_opened"] == 1
    assert east["stores"][0]["choice"] == "every file"
    assert codes(report) == []


def test_largest_twenty_are_named_by_size(region, look):
    for number in range(25):
        region.template(f"t{number}", "east")
        TemplateStoreRef.objects.filter(item__name=f"t{number}").update(size=1000 + number)
    largest = look()["zones"][0]["largest"]
    assert [entry["size"] for entry in largest] == list(range(1024, 1004, -1))


def test_requests_and_time_are_estimated_with_their_basis(region, look):
    ref = region.template("big", "east", "west")
    region.template("small", "east")
    part = 64 * 1024
    for zone in ("east", "west"):
        stored = TemplateStoreRef.objects.get(item=ref, store=region.stores[zone])
        stored.files.update(size=10 * part + 1)
    report = look()
    needed = report["requests"]
    assert (needed["items"], needed["objects"], needed["puts"], needed["uploads"], needed["parts"]) == (2, 2, 1, 1, 11)
    assert needed["requests"] == 1 + 2 + 11
    assert needed["bytes"] == 10 * part + 1 + len("content of small")
    assert 0 < report["time"]["low_seconds"] <= report["time"]["high_seconds"]
    assert "Measured" in report["time"]["basis"]


def test_nothing_is_changed_and_nothing_left_behind_when_it_has_run(region, look, memory_store):
    region.template("image", "east")
    before = dump()
    files = {str(path) for path in region.root.rglob("*") if path.is_file()}
    look()
    assert changed(before, dump()) == {"migration.Preflight"}
    assert {str(path) for path in region.root.rglob("*") if path.is_file()} == files
    assert memory_store.objects == {}
    assert memory_store.marker is None


def test_unreadable_files_are_a_blocker_with_examples(region, look):
    region.template("image", "east")
    next(region.folder("east").rglob("*.qcow2")).unlink()
    found = finding(look(), "unreadable-files")
    assert (found["severity"], found["overridable"], found["zone"], found["store"]) == ("blocker", True, "east", "nfs-east")
    assert "qcow2" in found["examples"][0]
    assert found["remedy"]


def test_sample_is_bounded_and_said_when_a_store_has_many_files(region, look, monkeypatch):
    monkeypatch.setattr(sampling, "OPEN_AT_MOST", 5)
    for number in range(12):
        region.template(f"t{number}", "east")
    report = look()
    store = report["zones"][0]["stores"][0]
    assert store["choice"] == "one file in 3"
    assert store["files_opened"] == 4
    assert "nfs-east: 8 of 12 files were not opened." in report["not_checked"]


def test_export_that_is_not_there_is_a_blocker_that_cannot_be_overridden(region, look):
    region.folder("east").rename(region.folder("gone"))
    report = look()
    found = finding(report, "export-unreachable")
    assert not found["overridable"]
    assert report["zones"] == [] or not report["zones"][0]["stores"][0]["reached"]


def test_export_that_hangs_is_a_blocker_and_holds_nobody_up(region, look, admin, target, monkeypatch):
    region.template("image", "east")
    preflight(actor=admin, **target)
    released = Event()
    monkeypatch.setattr(findings, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(findings, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(NFSDriver, "check", lambda driver: released.wait())
    monkeypatch.setattr(NFSDriver, "probe", lambda driver: iter([released.wait()]))
    try:
        with pytest.raises(Blocked, match="hangs"):
            convert(actor=admin, **target)
        assert codes(look(), "blocker") == ["export-unreachable"] * 2
    finally:
        released.set()


def test_worker_that_does_not_reach_an_export_is_a_blocker(region, look, settings):
    Worker.objects.update(heartbeat=timezone.now() - timedelta(seconds=settings.LEASE_SECONDS + 60))
    assert codes(look(), "blocker") == ["export-unreachable-by-workers"] * 2
    Worker.objects.update(heartbeat=timezone.now())
    WorkerReach.objects.filter(store__name="nfs-west").update(ok=False)
    assert finding(look(), "export-unreachable-by-workers")["store"] == "nfs-west"


def test_worker_is_judged_by_the_clock_that_wrote_its_heartbeat(region, look, monkeypatch):
    late = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr("django.utils.timezone.now", lambda: late)
    assert "export-unreachable-by-workers" not in codes(look())


def test_store_that_was_never_scanned_is_a_blocker_and_an_old_scan_a_warning(region, look, settings):
    ImageStore.objects.filter(name="nfs-east").update(scanned_at=None)
    long_ago = timezone.now() - timedelta(seconds=settings.PREFLIGHT_MAX_AGE_SECONDS + 3600)
    ImageStore.objects.filter(name="nfs-west").update(scanned_at=long_ago)
    report = look()
    assert finding(report, "never-scanned")["store"] == "nfs-east"
    assert finding(report, "never-scanned")["severity"] == "blocker"
    assert finding(report, "scan-old")["severity"] == "warning"


def test_snapshot_whose_parent_has_no_readable_copy_is_a_broken_chain(region, look):
    full = region.snapshot("full", "west")
    region.snapshot("delta", "west", parent=full)
    SnapshotStoreRef.objects.filter(item=full).update(state=RefState.DESTROYING)
    found = finding(look(), "chain-broken")
    assert (found["severity"], found["overridable"], found["examples"]) == ("blocker", False, ["delta"])


def test_copies_of_different_size_or_content_are_a_blocker(region, look):
    item = region.template("sizes", "east")
    region.put(item, "west", "template/tmpl/2/901", content=b"longer than the other copy")
    same = region.template("bytes", "east")
    region.put(same, "west", "template/tmpl/2/902", content=b"CONTENT OF bytes")
    region.template("alike", "east", "west")
    found = [found for found in look()["findings"] if found["code"] == "differing-copies"]
    assert [entry["examples"] for entry in found] == [["sizes"], ["template bytes on nfs-east, nfs-west"]]


def test_comparison_stays_in_its_budget_and_says_what_it_left_out(region, look, monkeypatch):
    monkeypatch.setattr(sampling, "COMPARE_AT_MOST", 40)
    region.template("one", "east", "west")
    region.template("more than one", "east", "west")
    said = look()["not_checked"]
    assert "1 items with copies in several zones were compared by size only, not by content." in said


def test_items_in_flight_are_told(region, look, admin):
    region.template("image", "east")
    items.begin_item(actor=admin, kind=Kind.TEMPLATE, zone=region.zones["east"], account=region.account, name="late")
    report = look()
    assert finding(report, "in-flight")["message"].startswith("1 items are being written to nfs-east")
    assert codes(report, "blocker") == []


def test_what_a_scan_found_is_told(region, look, admin):
    (region.folder("east") / "README").write_text("who put this here?")
    scan_store(actor=admin, store=region.stores["east"])
    told = ScanReport()
    told.conflicts.add("template/tmpl/2/7", "Another store has the same template.")
    told.orphaned.add("template/tmpl/2/9/junk", "No image.")
    ImageStore.objects.filter(name="nfs-west").update(scan_report=told.as_json())
    report = look()
    assert finding(report, "orphans")["examples"] == ["template/tmpl/2/9/junk: No image."]
    assert finding(report, "unknown-entries")["severity"] == "warning"
    assert finding(report, "scan-conflicts")["store"] == "nfs-west"
    assert codes(report, "blocker") == ["scan-conflicts"]


def test_object_store_that_fails_its_probe_is_a_blocker_and_the_rest_is_told_all_the_same(region, look, memory_store):
    region.template("image", "east")
    memory_store.available = False
    report = look()
    assert not finding(report, "object-store")["overridable"]
    assert report["zones"][0]["items"]["template"]["count"] == 1
    assert report["time"]["low_seconds"] is None
    assert any("speed of the object store" in line for line in report["not_checked"])


def test_speed_that_could_not_be_measured_is_not_blamed_on_the_probe(region, look, monkeypatch):
    region.template("image", "east")

    def away(_work: object) -> float:
        raise Unavailable("It went away.")

    monkeypatch.setattr(sampling, "_timed", away)
    report = look()
    assert "object-store" not in codes(report)
    assert [line for line in report["not_checked"] if "speed" in line] == [
        "The speed of the object store, because it failed while it was measured, though its probe found no blocker."
    ]


def test_queries_do_not_grow_with_the_rows(region, look):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            look()
        return len(captured)

    for number in range(3):
        region.template(f"t{number}", "east")
        region.snapshot(f"s{number}", "west")
    queries()  # what is kept per process is loaded by the first
    few = queries()
    for number in range(40):
        region.template(f"more{number}", "east")
        region.snapshot(f"more{number}", "west")
    assert queries() == few


def test_secrets_are_sealed_until_the_conversion_and_never_in_the_report(region, target, admin, memory_store):
    memory_store.password = "hunter2hunter2"
    target |= {"details": {"password": "hunter2hunter2"}}
    first = preflight(actor=admin, **target)
    found = preflight(actor=admin, **target)
    assert "hunter2" not in json.dumps(found.report)
    assert "hunter2" not in found.sealed
    assert sealed_details(found)["password"] == "hunter2hunter2"
    first.refresh_from_db()
    with pytest.raises(Missing):
        sealed_details(first)
    convert(actor=admin, preflight=found, **(target | {"details": sealed_details(found)}))
    found.refresh_from_db()
    assert found.sealed == ""


def test_report_is_of_the_same_store_when_only_a_secret_changed(region, target, admin, memory_store):
    memory_store.password = "first"
    before = preflight(actor=admin, **(target | {"details": {"password": "first"}}))
    memory_store.password = "second"
    conversion = convert(actor=admin, **(target | {"details": {"password": "second"}}))
    assert conversion.preflight == before


def test_queue_runs_what_was_requested_once(region, target, admin):
    wanted = request_preflight(actor=admin, **target)
    assert wanted.finished is None
    found = run_preflight(wanted.pk)
    assert found.finished is not None
    assert run_preflight(wanted.pk).finished == found.finished


def test_queue_is_asked_again_when_it_forgot(region, target, admin, monkeypatch):
    wanted = request_preflight(actor=admin, **target)
    rung = []
    monkeypatch.setattr("migration.preflight.queue.wake", lambda task, number: rung.append((task, number)))
    assert wake_forgotten() == 0
    Preflight.objects.update(woken=timezone.now() - timedelta(hours=1))
    assert wake_forgotten() == 1
    assert wake_forgotten() == 0
    assert rung == [("migration.tasks.run_preflight", wanted.pk)]


def test_failure_is_kept_for_people_when_it_cannot_end(region, target, admin, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(sampling, "look_at", fails)
    with pytest.raises(RuntimeError):
        preflight(actor=admin, **target)
    kept = Preflight.objects.get()
    assert (kept.error, kept.report) == ("RuntimeError: no more", {})
    with pytest.raises(Conflict, match="no report"):
        convert(actor=admin, preflight=kept, **target)


def test_preflight_is_refused_when_parameters_or_role_do_not_fit(region, target, admin, viewer):
    with pytest.raises(Invalid) as told:
        preflight(actor=admin, **(target | {"provider": "Floppy"}))
    assert told.value.field == "provider"
    with pytest.raises(Denied):
        preflight(actor=viewer, **target)
    ImageStore.objects.filter(name="nfs-east").update(image_provider_name="Swift", role=Role.IMAGE)
    with pytest.raises(Invalid):
        preflight(actor=admin, **target)
    assert not Preflight.objects.exists()
