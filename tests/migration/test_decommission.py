"""A staging store is retired only when nothing on it is needed, everything was read again, and a person answers for the rest."""

from __future__ import annotations

import csv
import json
import os
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.errors import Blocked, Conflict, Denied, Invalid
from cloudstorage.models import AuditEvent, Installation
from migration import decommission, evidence, report, tasks, verify
from migration.models import Decommission, RetiredFile, UnknownFile, Verification
from migration.states import DecommissionState, VerificationState
from stores.copier import Throttle
from stores.drivers.errors import AccessDenied, Foreign
from stores.models import KINDS, Hold, ImageStore, Kind, ScanRun, Transfer
from stores.services import holds, proofs
from stores.services.image_stores import driver_for
from stores.services.items import delete_item
from stores.states import RefState, StoreState
from tests.migration.region import changed, dump
from tests.migration.retiring import add_staging, commit, move_all, ready_to_retire, retire, work

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def filled(region):
    region.template("web", "east", "west", hypervisor_type="KVM")
    full = region.snapshot("full", "east")
    region.snapshot("delta", "east", parent=full)
    region.volume("data", "east")
    return region


@pytest.fixture
def store(filled) -> ImageStore:
    return ready_to_retire(filled)


def refusal(store: ImageStore, actor) -> dict[str, decommission.Blocker]:
    """Code -> blocker of a refusal that changed nothing."""
    before = dump()
    with pytest.raises(Blocked) as refused:
        decommission.begin(actor=actor, store=store)
    assert changed(before, dump()) == set()
    assert AuditEvent.objects.latest("id").outcome == "refused"
    assert decommission.plan(actor=actor, store=store) == list(refused.value.findings)
    return {found.code: found for found in refused.value.findings}


def a_file(store: ImageStore, kind: Kind = Kind.VOLUME):
    return KINDS[kind].file.objects.filter(ref__store=store).order_by("path").first()


# --- what forbids it -------------------------------------------------------------------------------------------------------


def test_refused_before_the_commit(filled, admin):
    conversion = move_all(filled)
    store = ImageStore.objects.get(pk=filled.stores["east"].pk)
    add_staging(filled, "east")
    assert set(refusal(store, admin)) == {"uncommitted"}
    commit(conversion)
    assert decommission.plan(actor=admin, store=store) == []


def test_refused_while_items_are_not_proven_elsewhere_each_named(store, admin):
    KINDS[Kind.SNAPSHOT].ref.objects.filter(store__scope="REGION").update(proof="adopted")
    found = refusal(store, admin)
    assert set(found) == {"unproven-snapshots"}
    assert found["unproven-snapshots"].count == 2
    assert [example.partition(" ")[0] for example in found["unproven-snapshots"].examples] == ["full", "delta"]


def test_a_copy_on_another_staging_store_is_no_proof(store, admin):
    KINDS[Kind.VOLUME].ref.objects.filter(store__scope="REGION").update(store=ImageStore.objects.get(name="cache-east"))
    assert set(refusal(store, admin)) == {"unproven-volumes"}


def test_refused_with_full_counts_and_limited_examples(filled, store, admin):
    for number in range(decommission.EXAMPLES + 5):
        filled.volume(f"new-{number}", "east")
    found = refusal(store, admin)["unproven-volumes"]
    assert (found.count, len(found.examples)) == (25, 20)


def test_refused_while_anything_is_held(store, admin):
    ref = KINDS[Kind.VOLUME].ref.objects.get(store=store)
    holds.take_hold(Kind.VOLUME, ref.pk, "read", "somebody", 600)
    assert set(refusal(store, admin)) == {"held-volumes"}


def test_refused_while_something_is_under_way(store, admin):
    KINDS[Kind.VOLUME].ref.objects.filter(store=store).update(state=RefState.DESTROYING)
    assert set(refusal(store, admin)) == {"unfinished-volumes"}
    KINDS[Kind.VOLUME].ref.objects.filter(store=store).update(state=RefState.READY)
    transfer = Transfer.objects.filter(source=store).first()
    Transfer.objects.filter(pk=transfer.pk).update(state="Queued")
    assert set(refusal(store, admin)) == {"transfers"}
    Transfer.objects.filter(pk=transfer.pk).update(state="Proven")
    ScanRun.objects.create(store=store, actor="test")
    assert set(refusal(store, admin)) == {"scan"}


def test_refused_as_last_staging_store_of_a_zone_whose_hypervisor_reads_from_one(store, admin, settings):
    other = ImageStore.objects.get(name="cache-east")
    ImageStore.objects.filter(pk=other.pk).update(readonly=True)
    assert refusal(store, admin)["last-staging-store"].examples == ("KVM",)
    settings.DIRECT_HYPERVISORS = ["KVM"]
    assert decommission.plan(actor=admin, store=store) == []
    settings.DIRECT_HYPERVISORS = []
    ImageStore.objects.filter(pk=other.pk).update(readonly=False)
    decommission.begin(actor=admin, store=other)
    assert set(refusal(store, admin)) == {"last-staging-store"}, "of two staging stores not each is retired because of the other"


def test_refused_for_a_store_of_record_and_one_that_is_not_in_use(filled, store, admin):
    assert set(refusal(ImageStore.objects.get(scope="REGION"), admin)) == {"not-staging"}
    ImageStore.objects.filter(pk=store.pk).update(state=StoreState.DETACHED)
    store.refresh_from_db()
    assert set(refusal(store, admin)) == {"not-attached"}


def test_refused_twice_at_once_to_others_and_for_a_sample_of_nothing(store, admin, operator):
    with pytest.raises(Denied):
        decommission.begin(actor=operator, store=store)
    with pytest.raises(Invalid, match="percentage"):
        decommission.begin(actor=admin, store=store, sample_percent=0)
    decommission.begin(actor=admin, store=store)
    with pytest.raises(Conflict, match="already"):
        decommission.begin(actor=admin, store=store)


def test_questions_do_not_grow_with_the_rows(filled, store, admin):
    assert store.zone is not None
    for number in range(25):
        filled.volume(f"new-{number}", "east")
    with CaptureQueriesContext(connection) as few:
        decommission.plan(actor=admin, store=store)
    for number in range(25):
        filled.volume(f"newer-{number}", "east")
    with CaptureQueriesContext(connection) as many:
        decommission.plan(actor=admin, store=store)
    assert len(few) == len(many) < 40


# --- reading again ---------------------------------------------------------------------------------------------------------


def test_store_leaves_with_its_refs_and_the_report_stays(store, admin, memory_store):
    files = [(found.key, found.version) for found in driver_for(store).list()]
    row = retire(store, admin)
    assert (row.state, row.note) == (DecommissionState.RETIRED, "")
    store.refresh_from_db()
    assert store.state == StoreState.REMOVED
    assert not any(models.ref.objects.filter(store=store).exclude(state=RefState.DESTROYED).exists() for models in KINDS.values())
    assert holds.recount() == []
    assert [(found.key, found.version) for found in driver_for(store).list()] == files, "nothing on the export changed"
    assert row.totals == {"items": 4, "files": 4, "bytes": sum(file.size for file in row.files.all()), "not_read_again": 0}
    assert all(file.original_read_at and file.copy_read_at for file in row.files.all())
    event = AuditEvent.objects.get(action="store.decommission.retire")
    assert (event.actor, event.details["sha256sums"], event.details["exceptions"]) == (admin.name, report.sums_digest(row), [])


@pytest.mark.parametrize("where", ["original", "object"])
def test_flipped_byte_blocks_the_retirement_and_is_named(filled, store, admin, memory_store, where):
    file = a_file(store)
    copy = a_file(ImageStore.objects.get(scope="REGION"))
    if where == "original":
        path = filled.folder("east") / file.path
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        named = file.path
    else:
        info, data = memory_store.objects[copy.path]
        memory_store.objects[copy.path] = (info, bytes([data[0] ^ 1]) + data[1:])
        named = f"objects: {copy.path}"
    row = retire(store, admin)
    assert row.state == DecommissionState.REFUSED
    assert [(found["path"], found["problem"]) for found in row.verification.findings] == [(named, "content differs")]
    assert named in row.note
    store.refresh_from_db()
    assert (store.state, store.readonly) == (StoreState.ATTACHED, False)
    states = dict(KINDS[Kind.VOLUME].ref.objects.values_list("store__name", "state"))
    assert states == (
        {"nfs-east": RefState.FAILED, "objects": RefState.READY}
        if where == "original"
        else {"nfs-east": RefState.READY, "objects": RefState.PROMISED}
    )
    assert {found.code for found in decommission.plan(actor=admin, store=store)} == (
        {"damaged-volumes"} if where == "original" else {"unproven-volumes", "held-volumes"}
    )
    assert holds.recount() == []
    with pytest.raises(Conflict):
        "".join(report.as_json(row)) and decommission.delete_files(actor=admin, row=row, confirm=store.name)


def test_missing_original_and_one_with_more_files_than_its_copy_are_differences(store, admin, filled):
    os.unlink(filled.folder("east") / a_file(store, Kind.TEMPLATE).path)
    ref = KINDS[Kind.VOLUME].ref.objects.get(store=store)
    (filled.folder("east") / ref.install_path / "second.qcow2").write_bytes(b"x")
    KINDS[Kind.VOLUME].file.objects.create(ref=ref, path=f"{ref.install_path}/second.qcow2", size=1, proof="adopted")
    row = retire(store, admin)
    assert row.state == DecommissionState.REFUSED
    assert sorted(found["problem"] for found in row.verification.findings) == ["missing", "not proven elsewhere"]


def test_only_a_sample_is_read_by_choice_and_the_report_says_so(store, admin):
    row = retire(store, admin, sample_percent=0.01)
    assert row.state == DecommissionState.RETIRED
    assert row.totals["not_read_again"] == 4
    (exception,) = json.loads("".join(report.as_json(row)))["exceptions"]
    assert ("0.01 %" in exception["what"], exception["files"], exception["accepted_by"]) == (True, 4, admin.name)
    lines = list(csv.DictReader("".join(report.as_csv(row)).splitlines()))
    told = {(bool(line["original_read_at"]), line["copy_read_at"], line["accepted_by"], line["store_url"]) for line in lines}
    assert told == {(True, "", admin.name, "memory://objects")}


def test_an_original_that_nobody_hashed_is_read_whatever_the_sample(store, admin, filled):
    """The copy was made of the other zone's original of the same name and size, and this one is another."""
    path = filled.folder("east") / a_file(store).path
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    row = retire(store, admin, sample_percent=0.01)
    assert (row.state, row.verification.findings[0]["problem"]) == (DecommissionState.REFUSED, "content differs")


def test_an_original_that_was_hashed_before_rests_on_its_proof_outside_of_the_sample(store, admin):
    hash_originals(store)
    row = retire(store, admin, sample_percent=0.01)
    assert (row.state, row.verification.bytes_checked) == (DecommissionState.RETIRED, 0)


def test_a_copy_that_a_scan_found_amiss_is_read_whatever_the_sample(store, admin):
    hash_originals(store)
    (copy,) = KINDS[Kind.VOLUME].file.objects.filter(ref__store__scope="REGION", path=a_file(store).path)
    KINDS[Kind.VOLUME].file.objects.filter(pk=copy.pk).update(problem="changed: it was written to behind our back")
    row = retire(store, admin, sample_percent=0.01)
    assert (row.state, row.verification.bytes_checked) == (DecommissionState.RETIRED, 2 * copy.size)


def hash_originals(store: ImageStore) -> None:
    """As if each had been hashed when it came to the store."""
    for models in KINDS.values():
        for file in models.file.objects.filter(ref__store=store).select_related("ref"):
            copy = models.file.objects.get(ref__item_id=file.ref.item_id, ref__store__scope="REGION", path=file.path)
            models.file.objects.filter(pk=file.pk).update(sha256=copy.sha256)


def test_size_of_an_original_outside_of_the_sample_is_still_compared(store, admin, filled):
    hash_originals(store)
    with (filled.folder("east") / a_file(store).path).open("ab") as out:
        out.write(b"more")
    row = retire(store, admin, sample_percent=0.01)
    assert (row.state, row.verification.findings[0]["problem"]) == (DecommissionState.REFUSED, "content differs")


@pytest.mark.parametrize("error", [AccessDenied("The key is not valid."), Foreign("Another cloud's marker is there.")])
def test_says_what_it_waits_for_while_a_store_refuses_it(store, admin, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(driver_for(store)), "check", refuse)
    row = retire(store, admin)
    assert (row.state, row.verification.state) == (DecommissionState.CHECKING, VerificationState.RUNNING)
    assert str(error) in row.note
    assert error.remedy in row.note
    assert row.verification.note == row.note
    monkeypatch.undo()
    Verification.objects.update(lease_until=None)
    work(row)
    row.verification.refresh_from_db()
    assert (row.state, row.note, row.verification.note) == (DecommissionState.RETIRED, "", "")


def test_goes_on_where_a_dead_worker_stopped(store, admin, monkeypatch):
    monkeypatch.setattr(evidence, "_LOST_AT_MOST", 1)  # as of large files
    row = decommission.begin(actor=admin, store=store)
    driver = driver_for(store)
    opened, reads = driver.open, []

    def dies_at_the_third(key):
        reads.append(key)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return opened(key)

    monkeypatch.setattr(driver, "open", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        tasks.run_verification(row.verification_id)
    work(row)
    assert row.state == DecommissionState.CHECKING, "its lease has not lapsed"
    assert RetiredFile.objects.filter(decommission=row).count() == 2
    Verification.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    work(row)
    assert row.state == DecommissionState.RETIRED
    assert sorted(reads) == sorted([*set(reads), reads[2]]), "each original once, but the one during which it died"


def test_cancelled_in_the_middle_it_stops_and_leaves_the_store_as_it_was(store, admin, monkeypatch):
    row = decommission.begin(actor=admin, store=store)
    assert ImageStore.objects.get(pk=store.pk).readonly
    driver = driver_for(store)
    opened = driver.open

    def cancelled_meanwhile(key):
        if Verification.objects.get(pk=row.verification_id).state == VerificationState.RUNNING:
            decommission.cancel(actor=admin, row=row)
        return opened(key)

    monkeypatch.setattr(driver, "open", cancelled_meanwhile)
    work(row)
    assert (row.state, row.verification.state) == (DecommissionState.CANCELLED, VerificationState.CANCELLED)
    assert not ImageStore.objects.get(pk=store.pk).readonly
    assert not RetiredFile.objects.exists()


def test_reading_keeps_to_the_limit_of_the_store_as_it_is_now(store, admin, settings, monkeypatch):
    settings.HEARTBEAT_SECONDS = 0
    ImageStore.objects.filter(pk=store.pk).update(read_limit=10**9)
    rates = []
    monkeypatch.setattr(Throttle, "set_rate", lambda _self, rate: rates.append(rate))
    retire(store, admin)
    assert 10**9 in rates


def test_silent_store_is_waited_for(store, admin, memory_store):
    memory_store.available = False
    row = retire(store, admin)
    assert (row.state, row.verification.findings_count) == (DecommissionState.CHECKING, 0)
    memory_store.available = True
    Verification.objects.update(lease_until=None)
    work(row)
    assert row.state == DecommissionState.RETIRED


# --- what comes and goes meanwhile ------------------------------------------------------------------------------------------


def read_all(row: Decommission) -> None:
    """Read everything, without ending it."""
    from migration import verify

    verify.run(row.verification)


def test_reader_who_comes_at_the_end_is_waited_for(store, admin):
    row = decommission.begin(actor=admin, store=store)
    ref = KINDS[Kind.VOLUME].ref.objects.get(store=store)
    read_all(row)
    holds.take_hold(Kind.VOLUME, ref.pk, "read", "somebody", 600)
    work(row)
    assert row.state == DecommissionState.CHECKING
    assert "held by a reader" in row.note
    assert KINDS[Kind.VOLUME].ref.objects.get(store=store).state == RefState.READY
    holds.release_hold(Kind.VOLUME, ref.pk, "read", "somebody")
    Decommission.objects.update(lease_until=None)
    work(row)
    assert row.state == DecommissionState.RETIRED


def test_hold_taken_behind_the_back_of_the_gate_stops_the_removal(store, admin, monkeypatch):
    row = decommission.begin(actor=admin, store=store)
    read_all(row)
    ref = KINDS[Kind.VOLUME].ref.objects.get(store=store)
    monkeypatch.setattr(decommission, "_insist", lambda _store: holds.take_hold(Kind.VOLUME, ref.pk, "read", "x", 600))
    work(row)
    assert row.state == DecommissionState.CHECKING
    assert not Hold.objects.exists(), "it was rolled back with everything else"
    assert set(KINDS[Kind.SNAPSHOT].ref.objects.filter(store=store).values_list("state", flat=True)) == {"Ready"}


def test_items_that_come_and_go_while_it_is_read_are_read_too_or_no_part_of_the_report(filled, store, admin, memory_store):
    row = decommission.begin(actor=admin, store=store)
    read_all(row)
    volume = KINDS[Kind.VOLUME].item.objects.get(name="data")
    delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    from stores.services.items import finish_deletes

    finish_deletes()
    late = filled.volume("late", "east")
    source = KINDS[Kind.VOLUME].ref.objects.get(item=late)
    file = source.files.get()
    driver = driver_for(ImageStore.objects.get(scope="REGION"))
    data = (filled.folder("east") / file.path).read_bytes()
    import hashlib

    sha256 = hashlib.sha256(data).hexdigest()
    driver.put(file.path, data, metadata={}, token="t")
    copy = KINDS[Kind.VOLUME].ref.objects.create(
        item=late, store=ImageStore.objects.get(scope="REGION"), state="Ready", install_path=source.install_path,
        size=len(data), proof="verified", sha256=sha256, proven_at=timezone.now(),
    )  # fmt: skip
    KINDS[Kind.VOLUME].file.objects.create(ref=copy, path=file.path, size=len(data), sha256=sha256, proof="verified")
    work(row)
    assert row.state == DecommissionState.RETIRED
    assert sorted(row.files.values_list("item_name", flat=True)) == ["delta", "full", "late", "web"]


# --- what no ref knows ------------------------------------------------------------------------------------------------------


def test_unknown_files_are_acknowledged_by_count_and_digest(filled, store, admin, operator):
    (filled.folder("east") / "notes.txt").write_bytes(b"of somebody")
    (filled.folder("east") / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    row = retire(store, admin)
    assert (row.state, row.unknown_count, row.unknown_bytes) == (DecommissionState.WAITING, 2, 11)
    assert ImageStore.objects.get(pk=store.pk).state == StoreState.ATTACHED
    with pytest.raises(Denied):
        decommission.acknowledge(actor=operator, row=row, count=2, digest=row.unknown_digest)
    for count, digest in ((1, row.unknown_digest), (2, "0" * 64), (2, row.unknown_digest[:5])):
        with pytest.raises(Conflict, match="not these"):
            decommission.acknowledge(actor=admin, row=row, count=count, digest=digest)
    decommission.acknowledge(actor=admin, row=row, count=2, digest=row.unknown_digest[:12])
    work(row)
    assert row.state == DecommissionState.RETIRED
    found = json.loads("".join(report.as_json(row)))
    (exception,) = found["exceptions"]
    assert (exception["accepted_by"], exception["files"], exception["digest"]) == (admin.name, 2, row.unknown_digest)
    assert found["unknown"] == [{"path": "caf\\udce9", "size": 0}, {"path": "notes.txt", "size": 11}]


def test_another_file_after_the_acknowledgement_is_asked_for_again(filled, store, admin):
    (filled.folder("east") / "notes.txt").write_bytes(b"of somebody")
    row = retire(store, admin)
    decommission.acknowledge(actor=admin, row=row, count=1, digest=row.unknown_digest)
    (filled.folder("east") / "more.txt").write_bytes(b"x")
    work(row)
    assert (row.state, row.unknown_count, row.acknowledged_by) == (DecommissionState.WAITING, 2, "")
    assert "others than those that were acknowledged" in row.note
    (filled.folder("east") / "more.txt").unlink()
    (filled.folder("east") / "notes.txt").unlink()
    decommission.look_again(actor=admin, row=row)
    work(row)
    assert (row.state, row.unknown_count, UnknownFile.objects.count()) == (DecommissionState.RETIRED, 0, 0)


# --- its files --------------------------------------------------------------------------------------------------------------


def test_files_go_through_the_trash_only_when_asked_for_by_name(filled, store, admin, settings):
    (filled.folder("east") / "notes.txt").write_bytes(b"of somebody")
    row = retire(store, admin)
    decommission.acknowledge(actor=admin, row=row, count=1, digest=row.unknown_digest)
    work(row)
    changed_since = filled.folder("east") / row.files.get(kind="volume").path
    changed_since.write_bytes(b"somebody wrote")
    with pytest.raises(Invalid, match="not confirmed"):
        decommission.delete_files(actor=admin, row=row, confirm="yes")
    decommission.delete_files(actor=admin, row=row, confirm="nfs-east")
    tasks.delete_retired_files(row.pk)
    row.refresh_from_db()
    assert (row.state, row.files_deleted, row.files_left) == (DecommissionState.IN_TRASH, 3, 1)
    export = filled.folder("east")
    left = sorted(str(path.relative_to(export)) for path in export.rglob("*") if path.is_file() and ".cs-" not in str(path))
    assert left == [".cloudstorage.json", "notes.txt", str(changed_since.relative_to(export))]
    assert len([path for path in (export / ".cs-trash").rglob("*") if path.is_file()]) == 3
    tasks.purge_retired_stores()
    assert len([path for path in (export / ".cs-trash").rglob("*") if path.is_file()]) == 3, "the grace time has not passed"
    settings.TRASH_GRACE_SECONDS = 0
    Decommission.objects.update(in_trash_at=timezone.now() - timedelta(seconds=1))
    tasks.purge_retired_stores()
    row.refresh_from_db()
    assert row.state == DecommissionState.DELETED
    assert not [path for path in (export / ".cs-trash").rglob("*") if path.is_file()]


def test_files_stay_while_an_item_is_proven_nowhere_any_more(filled, store, admin, settings):
    row = retire(store, admin)
    trash = filled.folder("east") / ".cs-trash"
    decommission.delete_files(actor=admin, row=row, confirm="nfs-east")
    refs = KINDS[Kind.VOLUME].ref.objects.select_related("item").filter(store__scope="REGION")

    def damage() -> None:
        copy = refs.get()
        with transaction.atomic():
            found = {copy.files.get().path: "damaged: by the bucket"}
            assert proofs.disprove(Kind.VOLUME, copy, found, {}) == proofs.Fate.ONLY_COPY

    def mend() -> None:
        verify.verify(actor=admin, store=refs.get().store)
        verify.run(Verification.objects.latest("id"))
        assert refs.get().state == RefState.READY

    damage()
    tasks.delete_retired_files(row.pk)
    row.refresh_from_db()
    assert (row.state, row.files_deleted, trash.exists()) == (DecommissionState.DELETING, 0, False)
    assert "last good bytes. Mend its copy" in row.note
    mend()
    Decommission.objects.update(lease_until=None)
    tasks.delete_retired_files(row.pk)
    damage()
    settings.TRASH_GRACE_SECONDS = 0
    Decommission.objects.update(in_trash_at=timezone.now() - timedelta(seconds=1))
    tasks.purge_retired_stores()
    row.refresh_from_db()
    assert (row.state, len([path for path in trash.rglob("*") if path.is_file()])) == (DecommissionState.IN_TRASH, 4)
    assert "last good bytes" in row.note
    delete_item(actor=admin, kind=Kind.VOLUME, item=refs.get().item)
    tasks.purge_retired_stores()
    row.refresh_from_db()
    assert (row.state, row.note) == (DecommissionState.DELETED, "")


def test_files_of_a_store_that_was_added_again_are_not_deleted(filled, store, admin):
    row = retire(store, admin)
    decommission.delete_files(actor=admin, row=row, confirm="nfs-east")
    ImageStore.objects.filter(pk=store.pk).update(state=StoreState.ATTACHED, removed=None)
    tasks.delete_retired_files(row.pk)
    row.refresh_from_db()
    assert (row.state, row.files_deleted) == (DecommissionState.DELETING, 0)
    assert "added to the cloud again" in row.note
    ImageStore.objects.filter(pk=store.pk).update(state=StoreState.REMOVED, removed=timezone.now())
    Decommission.objects.update(lease_until=None)
    tasks.delete_retired_files(row.pk)
    row.refresh_from_db()
    assert (row.state, row.files_deleted) == (DecommissionState.IN_TRASH, 4)


def test_not_one_more_file_goes_once_the_store_was_added_again(filled, store, admin, monkeypatch):
    row = retire(store, admin)
    decommission.delete_files(actor=admin, row=row, confirm="nfs-east")

    def add_again(seam: str) -> None:
        if seam == "retire.file-in-trash":
            ImageStore.objects.filter(pk=store.pk).update(state=StoreState.ATTACHED, removed=None)

    monkeypatch.setattr(decommission, "reach", add_again)
    tasks.delete_retired_files(row.pk)
    row.refresh_from_db()
    assert "added to the cloud again" in row.note
    assert len([path for path in (filled.folder("east") / ".cs-trash").rglob("*") if path.is_file()]) == 1


def test_clock_wakes_what_waits_for_nobody(store, admin, monkeypatch):
    woken = []
    monkeypatch.setattr(decommission, "wake", lambda task, number: woken.append((task, number)))
    row = decommission.begin(actor=admin, store=store)
    woken.clear()
    decommission.tend()
    assert woken == []
    read_all(row)
    decommission.tend()
    assert woken == [(decommission.RUN, row.verification_id)]
    work(row)
    decommission.delete_files(actor=admin, row=row, confirm=store.name)
    woken.clear()
    decommission.tend()
    assert woken == [(decommission.DELETE, row.pk)]


def test_a_restored_backup_neither_retires_nor_deletes_before_it_was_compared(filled, store, admin):
    row = decommission.begin(actor=admin, store=store)
    read_all(row)
    Installation.objects.update(read_only="restored")
    work(row)
    assert row.state == DecommissionState.CHECKING
    Installation.objects.update(read_only="")
    work(row)
    assert row.state == DecommissionState.RETIRED
    decommission.delete_files(actor=admin, row=row, confirm=store.name)
    Installation.objects.update(read_only="restored")
    tasks.delete_retired_files(row.pk)
    tasks.purge_retired_stores()
    row.refresh_from_db()
    assert (row.state, row.files_deleted) == (DecommissionState.DELETING, 0)


def test_statements_of_a_retirement_are_those_of_its_pages(region, admin):
    few, many = 2, 36
    for zone, count in (("east", few), ("west", many)):
        for number in range(count):
            region.volume(f"{zone}-{number}", zone)
    commit(move_all(region))
    reading, ending = [], []
    for zone, count in (("east", few), ("west", many)):
        add_staging(region, zone)
        row = decommission.begin(actor=admin, store=ImageStore.objects.get(pk=region.stores[zone].pk))
        with CaptureQueriesContext(connection) as told:
            verify.run(row.verification)
        reading.append(len(told))
        with CaptureQueriesContext(connection) as told:
            decommission.settle(row)
        ending.append(len(told))
        assert (row.state, row.files.count()) == (DecommissionState.RETIRED, count), row.note
    assert ending[1] == ending[0]
    assert reading[1] - reading[0] <= reading[0], "of two pages, not of 36 files"
