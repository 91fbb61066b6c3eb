"""Bytes that two looks have shown not to be what was proven are served to nobody: promised again, set aside, or kept as they are."""

from __future__ import annotations

import hashlib
import itertools
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from cloudstorage.errors import Missing
from cloudstorage.models import AuditEvent
from migration import decommission, doctor, drain, homeward, verify
from migration.models import Verification
from migration.states import DecommissionState, DrainState
from stores.drivers.errors import NotFound, Unavailable
from stores.drivers.nfs import NFSDriver
from stores.models import KINDS, ImageStore, Kind, StoreRef, Transfer, Volume
from stores.services import holds, inventory, items, proofs, transfers
from stores.services.image_stores import driver_for
from stores.services.reasons import reasons
from stores.services.scan import scan_store
from stores.states import Proof, RefState, StoreState, TransferState
from tests import factories
from tests.fakes.faulty import EVERY, cut, flip
from tests.migration.retiring import ready_to_retire, work
from tests.migration.under_way import UnderWay, begin

pytestmark = [pytest.mark.db, pytest.mark.django_db]

FLIPPED = "content differs"


@pytest.fixture
def moving(region, faults, target, admin, operator) -> UnderWay:
    """Two volumes, drained."""
    for number in range(2):
        region.volume(f"disk-{number}", "east")
    under_way = begin(region, admin, operator, **target)
    assert under_way.run_to_end().state == DrainState.FINISHED
    return under_way


@pytest.fixture
def server(memory_store) -> Any:
    return memory_store


def ref_on(store: ImageStore, kind: Kind = Kind.VOLUME) -> StoreRef:
    return KINDS[kind].ref.objects.filter(store=store).order_by("pk").first()


def harm(server: Any, ref: StoreRef, how: str = "flip") -> None:
    """On the server's disks: neither its etag nor its time tell."""
    path = ref.files.get().path
    info, data = server.objects[path]
    if how == "gone":
        del server.objects[path]
    else:
        server.objects[path] = (info, flip(data))


def check(store: ImageStore, mode: str = Verification.CONTENT) -> Verification:
    row = Verification.objects.create(store=store, actor="test", mode=mode)
    verify.run(row)
    row.refresh_from_db()
    return row


def problems(row: Verification) -> list[tuple[str, str]]:
    assert row.state == "Finished", row.note
    return [(found["problem"], found.get("outcome", "")) for found in row.findings]


def read(item: Any, actor: Any) -> bytes:
    with inventory.open_content(actor=actor, kind=item.kind, item=item) as content:
        return b"".join(content.chunks())


# --- another copy is there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "mode", "problem"),
    [("flip", "content", FLIPPED), ("gone", "content", "missing"), ("gone", "listing", "missing")],
)
def test_what_is_disproven_is_promised_again_and_copied_anew(moving, server, operator, how, mode, problem):
    ref = ref_on(moving.store)
    harm(server, ref, how)
    row = check(moving.store, mode)
    assert problems(row) == [(problem, "promised")]
    assert "promise again" in row.findings[0]["remedy"]
    ref.refresh_from_db()
    assert (ref.state, ref.proof, ref.install_path) == (RefState.PROMISED, "", "")
    original = KINDS[Kind.VOLUME].ref.objects.get(item=ref.item, store__scope="ZONE")
    assert (original.state, original.ref_cnt) == (RefState.READY, 1)
    assert holds.recount() == []
    event = AuditEvent.objects.get(action="ref.disprove")
    assert (event.target, event.details["outcome"]) == (f"volume:{ref.item.uuid}", "promised")
    moving.assert_readable()
    assert problems(check(moving.store, mode)) == [], "what is withdrawn is neither foreign nor found twice"
    again = drain.plan(actor=operator, conversion=moving.drain.conversion, canary_items=0)
    drain.start(actor=operator, drain=again)
    moving.drain = again
    drain.advance(again)
    assert moving.run_to_end().note == "Every item is proven."
    moving.assert_whole()
    assert problems(check(moving.store)) == []


def test_running_drain_takes_it_up_by_itself(region, faults, target, admin, operator, server):
    for number in range(2):
        region.volume(f"disk-{number}", "east")
    moving = begin(region, admin, operator, **target)
    moving.pump(slots=2)
    ref = KINDS[Kind.VOLUME].ref.objects.filter(store=moving.store, state=RefState.READY).first()
    harm(server, ref)
    assert problems(check(moving.store)) == [(FLIPPED, "promised")]
    assert moving.run_to_end().note == "Every item is proven."
    moving.assert_whole()


def test_copy_that_failed_once_does_not_take_the_damaged_object_for_an_earlier_attempts(
    moving, faults, server, operator, monkeypatch
):
    """Its etag is what it was, and its bytes are not."""
    from tests.fakes.memory import MemoryDriver

    inner = MemoryDriver.capabilities.fget
    monkeypatch.setattr(MemoryDriver, "capabilities", property(lambda self: replace(inner(self), etag_is_md5=True)))
    harm(server, ref_on(moving.store))
    assert problems(check(moving.store)) == [(FLIPPED, "promised")]
    faults.on("put", raises=Unavailable("down"))
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=Volume.objects.order_by("pk").first())
    for _ in range(2):
        moving.pump()
    moving.assert_whole()


def test_next_copy_must_be_what_was_proven_before(moving, server, operator, admin):
    """The original has rotted too: of two contents no machine can tell which is the item's, until a person says so."""
    ref = ref_on(moving.store)
    harm(server, ref)
    original = KINDS[Kind.VOLUME].ref.objects.get(item=ref.item, store__scope="ZONE")
    file = moving.region.folder("east") / original.files.get().path
    check(moving.store)
    file.write_bytes(flip(file.read_bytes()))
    scan_version = driver_for(original.store).stat(original.files.get().path).version
    original.files.update(version=scan_version)  # as silent rot leaves it
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=ref.item)
    moving.pump()
    failed = Transfer.objects.get(target_ref_id=ref.pk, state=TransferState.FAILED)
    assert failed.error_cause == "other-content"
    ref.refresh_from_db()
    assert ref.state == RefState.PROMISED
    file.write_bytes(b"what a person says is right")
    scan_store(actor=admin, store=original.store)
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=ref.item)
    moving.pump()
    ref.refresh_from_db()
    assert (ref.state, ref.sha256) == (RefState.READY, hashlib.sha256(file.read_bytes()).hexdigest())


def test_deleting_what_was_withdrawn_leaves_nothing_behind(moving, server, admin):
    ref = ref_on(moving.store)
    harm(server, ref)
    check(moving.store)
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=ref.item)
    while items.finish_deletes():
        pass
    assert len([key for key in server.objects if key.startswith("volumes/")]) == 1


def test_killed_between_the_finding_and_the_withdrawal_does_both_or_neither(moving, server, monkeypatch):
    ref = ref_on(moving.store)
    harm(server, ref)
    save, row = verify.save, Verification.objects.create(store=moving.store, actor="test")

    def die(*given: Any) -> None:
        if given[1]:
            raise KeyboardInterrupt
        save(*given)

    monkeypatch.setattr(verify, "save", die)
    with pytest.raises(KeyboardInterrupt):
        verify.run(row)
    ref.refresh_from_db()
    assert ref.state == RefState.READY
    assert not AuditEvent.objects.filter(action="ref.disprove").exists()
    monkeypatch.setattr(verify, "save", save)
    Verification.objects.update(lease_until=None)
    verify.run(row)
    row.refresh_from_db()
    assert problems(row) == [(FLIPPED, "promised")]


def test_second_verification_and_a_copy_under_way_are_not_disturbed(moving, server, monkeypatch):
    ref = ref_on(moving.store)
    harm(server, ref)
    disprove = proofs.disprove

    def behind_a_rival(*given: Any) -> Any:
        monkeypatch.setattr(proofs, "disprove", disprove)
        assert problems(check(moving.store)) == [(FLIPPED, "promised")]
        return disprove(*given)

    monkeypatch.setattr(proofs, "disprove", behind_a_rival)
    row = check(moving.store)
    assert problems(row) == [(FLIPPED, "left")]
    assert AuditEvent.objects.filter(action="ref.disprove").count() == 1
    other = KINDS[Kind.VOLUME].ref.objects.filter(store=moving.store).latest("pk")
    Transfer.objects.filter(target_ref_id=other.pk).update(state=TransferState.RUNNING)
    harm(server, other)
    assert problems(check(moving.store)) == [(FLIPPED, "left")], "whoever writes it now proves it anew, or fails"
    assert holds.recount() == []


# --- false alarms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fault", "found"),
    [
        ("pread", {"data": None, "result": flip}, [("read differently twice", "")]),
        ("open", {"raises": NotFound("a gateway that lost its way")}, []),
        ("pread", {"result": cut, "times": EVERY}, None),
        ("pread", {"raises": Unavailable("reset"), "times": EVERY}, None),
        ("check", {"nth": 2, "raises": Unavailable("the marker is gone")}, None),
    ],
)
def test_one_bad_answer_or_a_silent_store_withdraws_nothing(moving, faults, server, method, fault, found):
    if method == "check":
        harm(server, ref_on(moving.store), "gone")
    faults.on(method, **fault)
    row = check(moving.store)
    if found is None:
        assert (row.state, row.findings) == ("Running", [])
        assert row.note.startswith("It waits: ")
    else:
        assert problems(row) == found
    assert [ref.state for ref in moving.ready()] == [RefState.READY] * 2
    assert not AuditEvent.objects.filter(action="ref.disprove").exists()


@pytest.mark.parametrize("how", ["rotated", "key ring"])
def test_secret_that_is_not_the_stores_any_more_withdraws_nothing(moving, server, how):
    harm(server, ref_on(moving.store), "gone")
    if how == "rotated":
        server.password = "another"
    else:
        moving.store.details.create(name="password", value="gAAAA-of-another-ring", secret=True)
    with pytest.raises(ImproperlyConfigured) if how == "key ring" else nullcontext():
        check(moving.store)
    row = Verification.objects.get()
    assert (row.state, row.findings) == ("Running", [])
    assert [ref.state for ref in moving.ready()] == [RefState.READY] * 2


# --- the only copy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flip", "gone"])
def test_only_copy_is_kept_and_served_to_nobody_until_the_right_content_is_back(region, target, admin, operator, server, how):
    moving = begin(region, admin, operator, **target)
    item = factories.make_volume([moving.store], size=40, proof=Proof.VERIFIED)
    ref = ref_on(moving.store)
    path = ref.files.get().path
    info, content = server.objects[path]
    assert read(item, admin) == content
    harm(server, ref, how)
    row = check(moving.store)
    assert problems(row) == [(FLIPPED if how == "flip" else "missing", "only copy")]
    assert "only copy" in row.findings[0]["remedy"]
    ref.refresh_from_db()
    assert (ref.state, ref.proof, ref.install_path != "") == (RefState.FAILED, "", True)
    assert (path in server.objects) == (how == "flip"), "nothing is deleted"
    with pytest.raises(Exception, match="No readable copy"):
        read(item, admin)
    assert problems(check(moving.store, Verification.LISTING)) == []
    (words,) = [reason.words for reason in reasons(Kind.VOLUME, item) if reason.store == moving.store]
    assert "only copy" in words
    assert "copies are damaged" in " ".join(found.message for found in doctor.examine(actor=admin))
    assert [found.code for found in homeward.damaged(homeward.homes_of(moving.drain.conversion))] == ["damaged-only-copies"]
    server.objects[path] = (replace(info, version="restored", etag="restored"), content)
    assert problems(check(moving.store)) == []
    ref.refresh_from_db()
    assert (ref.state, ref.proof, ref.error_str) == (RefState.READY, Proof.READ_BACK, "")
    assert read(item, admin) == content


def test_damaged_only_copy_is_promised_again_when_another_turns_up(moving, server, operator):
    """After the commit the original was away; somebody brings it back from a tape."""
    ref = ref_on(moving.store)
    original = KINDS[Kind.VOLUME].ref.objects.get(item=ref.item, store__scope="ZONE")
    file = moving.region.folder("east") / original.files.get().path
    content = file.read_bytes()
    file.unlink()
    original.files.all().delete()
    original.delete()
    harm(server, ref)
    assert problems(check(moving.store)) == [(FLIPPED, "only copy")]
    again = moving.region.put(ref.item, "east", original.install_path, content=content)  # as a scan adopts it
    holds.make_promises(Kind.VOLUME, original.store_id, [again])
    ref.refresh_from_db()
    assert ref.state == RefState.PROMISED
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=ref.item)
    moving.pump()
    moving.assert_whole()
    assert holds.recount() == []


def test_damaged_snapshot_that_others_build_on_can_be_deleted_and_goes_with_the_last_of_them(
    region, target, admin, operator, server
):
    """Its bytes stay as they are until then, and count for nothing."""
    moving = begin(region, admin, operator, **target)
    parent, child = factories.make_chain([moving.store], 2, proof=Proof.VERIFIED)
    ref = ref_on(moving.store, Kind.SNAPSHOT)
    info, content = server.objects[ref.install_path]
    harm(server, ref)
    assert problems(check(moving.store)) == [(FLIPPED, "only copy")]
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=parent)
    ref.refresh_from_db()
    assert (ref.state, ref.proof) == (RefState.HIDDEN, Proof.ADOPTED)
    assert "only copy" in ref.error_str
    (words,) = [reason.words for reason in reasons(Kind.SNAPSHOT, parent) if reason.store == moving.store]
    assert words.startswith("What lies there is not what was proven of it, damaged: two readings")
    assert ref.install_path in server.objects
    with pytest.raises(Missing, match="deleted already"):
        items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=parent)
    staging = region.stores["east"]
    Transfer.objects.create(
        kind=Kind.SNAPSHOT, item_id=parent.pk, source=moving.store, target=staging, source_ref_id=ref.pk,
        target_ref_id=KINDS[Kind.SNAPSHOT].ref.objects.create(store=staging, item=parent, state=RefState.CREATING).pk,
        state=TransferState.QUEUED, bytes_total=ref.size,
    )  # fmt: skip
    moving.pump()
    assert "no longer has the SHA-256" in Transfer.objects.get().error, "no copy of it is proven"
    server.objects[ref.install_path] = (info, content)
    assert problems(check(moving.store)) == []
    ref.refresh_from_db()
    assert (ref.state, ref.proof, ref.error_str) == (RefState.HIDDEN, Proof.READ_BACK, "")
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=child)
    while items.finish_deletes():
        pass
    assert not [key for key in server.objects if key.startswith("snapshots/")]
    assert holds.recount() == []


# --- a store that is not in use --------------------------------------------------------------------------------------------


def test_what_is_damaged_on_a_detached_store_is_proven_no_more(region, target, admin, operator, server):
    """Else the next conversion to it would take the proof over."""
    moving = begin(region, admin, operator, **target)
    store = moving.store
    lost = factories.make_volume([store], proof=Proof.VERIFIED)
    home = factories.make_volume([store, region.stores["east"]], proof=Proof.VERIFIED)
    ImageStore.objects.filter(pk=store.pk).update(state=StoreState.DETACHED)
    refs = [KINDS[Kind.VOLUME].ref.objects.get(item=item, store=store) for item in (lost, home)]
    before = [server.objects[ref.files.get().path] for ref in refs]
    for ref in refs:
        harm(server, ref)
    row = check(ImageStore.objects.get(pk=store.pk))
    assert problems(row) == [(FLIPPED, "only copy"), (FLIPPED, "set aside")]
    assert all("The store is detached" in found["remedy"] for found in row.findings)
    for ref, (info, content) in zip(refs, before, strict=True):
        ref.refresh_from_db()
        assert (ref.state, ref.proof, ref.install_path != "") == (RefState.FAILED, "", True)
        server.objects[ref.install_path + "/" + ref.files.get().path.rpartition("/")[2]] = (info, content)
    assert holds.recount() == []
    assert problems(check(ImageStore.objects.get(pk=store.pk))) == []
    assert {ref.state for ref in KINDS[Kind.VOLUME].ref.objects.filter(store=store)} == {RefState.READY}


# --- originals -------------------------------------------------------------------------------------------------------------


def test_original_that_is_not_what_was_proven_is_set_aside_and_used_again_when_it_is_right(moving, admin):
    original = KINDS[Kind.VOLUME].ref.objects.filter(store__scope="ZONE").first()
    file = moving.region.folder("east") / original.files.get().path
    content = file.read_bytes()
    file.write_bytes(flip(content))
    assert problems(check(original.store)) == [(FLIPPED, "set aside")]
    original.refresh_from_db()
    assert original.state == RefState.FAILED
    assert read(original.item, admin) == content
    assert file.exists()
    file.write_bytes(content)
    assert problems(check(original.store)) == []
    original.refresh_from_db()
    assert (original.state, original.proof) == (RefState.READY, Proof.READ_BACK)
    assert holds.recount() == []


def test_original_is_used_again_though_its_file_system_settles_what_it_occupies(moving, monkeypatch):
    original = KINDS[Kind.VOLUME].ref.objects.filter(store__scope="ZONE").first()
    file = moving.region.folder("east") / original.files.get().path
    content = file.read_bytes()
    file.write_bytes(flip(content))
    check(original.store)
    file.write_bytes(content)
    stat, blocks = NFSDriver.stat, itertools.count()
    monkeypatch.setattr(NFSDriver, "stat", lambda self, key: replace(stat(self, key), allocated=4096 * next(blocks)))
    check(original.store)
    original.refresh_from_db()
    assert original.state == RefState.READY


def test_original_that_is_written_to_while_it_is_read_is_not_used_again(moving, monkeypatch):
    original = KINDS[Kind.VOLUME].ref.objects.filter(store__scope="ZONE").first()
    path = original.files.get().path
    file = moving.region.folder("east") / path
    content = file.read_bytes()
    file.write_bytes(flip(content))
    check(original.store)
    file.write_bytes(content)
    difference = verify.difference

    def and_write(*given: Any) -> Any:
        found = difference(*given)
        if path in given:
            file.write_bytes(flip(content))
        return found

    monkeypatch.setattr(verify, "difference", and_write)
    check(original.store)
    original.refresh_from_db()
    assert original.state == RefState.FAILED


@pytest.mark.parametrize("mode", [Verification.CONTENT, Verification.LISTING])
def test_original_that_nobody_hashed_is_said_to_be_missing_until_it_is_back(region, admin, mode):
    volume = region.volume("disk", "east")
    ref = KINDS[Kind.VOLUME].ref.objects.get(item=volume)
    file = region.folder("east") / ref.files.get().path
    content = file.read_bytes()
    file.unlink()
    assert problems(check(ref.store, mode)) == [("missing", "noted")]
    ref.refresh_from_db()
    assert (ref.state, ref.error_str.partition(":")[0]) == (RefState.READY, "missing")
    file.write_bytes(content)
    scan_store(actor=admin, store=ref.store)
    ref.refresh_from_db()
    assert not ref.error_str.startswith("missing")


# --- a retirement under way ------------------------------------------------------------------------------------------------


def test_retirement_does_not_end_on_a_copy_that_was_disproven_since_it_was_read(region, admin, memory_store, operator):
    region.volume("data", "east")
    store = ready_to_retire(region)
    objects = ImageStore.objects.get(scope="REGION")
    row = decommission.begin(actor=admin, store=store)
    verify.run(row.verification)
    ref = ref_on(objects)
    original_info = memory_store.objects[ref.files.get().path]
    harm(memory_store, ref)
    assert problems(check(objects)) == [(FLIPPED, "promised")]
    work(row)
    assert row.state == DecommissionState.CHECKING
    assert "not proven" in row.note or "held" in row.note
    memory_store.objects[ref.files.get().path] = original_info
    before = timezone.now()
    _prove_again(ref, objects)
    type(row).objects.update(lease_until=None)
    for _ in range(4):
        work(row)
        type(row).objects.update(lease_until=None)
    assert row.state == DecommissionState.RETIRED, row.note
    assert row.files.get().copy_read_at > before, "the copy that the report names was read"


def _prove_again(ref: Any, objects: ImageStore) -> None:
    from tests.migration.retiring import prove

    original = KINDS[Kind.VOLUME].ref.objects.get(item=ref.item, store__scope="ZONE")
    ref.files.all().delete()
    ref.delete()
    prove(Kind.VOLUME, original, objects)
    holds.keep_promises(Kind.VOLUME, [original.item_id])
