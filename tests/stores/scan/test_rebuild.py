"""What an object store says of itself is checked before it is believed, and never brings back what was deleted."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from django.utils import timezone

from cloudstorage.errors import Conflict, Invalid, Missing
from cloudstorage.models import Installation
from stores.models import KINDS, ImageStore, Kind, Snapshot, Template, Transfer, Volume
from stores.services import holds, inventory, journal
from stores.services.image_stores import driver_for
from stores.services.inventory import identity_of
from stores.services.region import add_zone
from stores.services.scan import scan_store
from stores.services.takeover import take_over
from stores.states import Proof, RefState, Role, TransferState
from tests import factories
from tests.fakes import memory
from tests.stores.scan.helpers import paths

pytestmark = [pytest.mark.db, pytest.mark.django_db]

VOLUME = KINDS[Kind.VOLUME]


@pytest.fixture
def store() -> ImageStore:
    return factories.make_store("Memory", name="objects")


def told(store: ImageStore) -> Volume:
    """A proven volume that the journal knows, and no row any more."""
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    journal.write(store)
    forget(volume)
    return volume


def forget(*items) -> None:
    for item in items:
        type(item).objects.filter(pk=item.pk).delete()


def path_of(volume: Volume) -> str:
    return f"volumes/2/{volume.upstream_id}/{volume.uuid}.raw"


def test_an_object_of_another_size_comes_back_as_failed_and_is_not_served(operator, viewer, store):
    volume = told(store)
    driver_for(store).put(path_of(volume), b"cut", metadata={}, token="")
    report = scan_store(actor=operator, store=store)
    assert paths(report.corrupt) == [path_of(volume)]
    ref = VOLUME.ref.objects.get(item__uuid=volume.uuid)
    assert (ref.state, ref.files.get().problem) == (RefState.FAILED, "changed: 5000 bytes were stored, 3 are there now")
    with pytest.raises(Missing):
        inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=ref.item)


def test_a_damaged_snapshot_that_was_deleted_stays_so_and_is_kept_for_what_builds_on_it(operator, store):
    snapshots = KINDS[Kind.SNAPSHOT]
    parent, child = factories.make_chain([store], 2, proof=Proof.VERIFIED)
    snapshots.ref.objects.filter(item=parent).update(state=RefState.HIDDEN)
    journal.write(store)
    path = snapshots.ref.objects.get(item=parent).install_path
    forget(child, parent)
    driver_for(store).put(path, b"cut", metadata={}, token="")
    assert paths(scan_store(actor=operator, store=store).corrupt) == [path]
    ref = snapshots.ref.objects.get(item__uuid=parent.uuid)
    assert (ref.state, ref.files.get().problem) == (RefState.HIDDEN, "changed: 3000 bytes were stored, 3 are there now.")
    assert snapshots.ref.objects.get(item__uuid=child.uuid).item.parent == ref.item


@pytest.mark.parametrize(("content", "state"), [("same", RefState.READY), ("other", RefState.FAILED)])
def test_an_object_of_another_etag_is_read_before_it_is_believed(operator, store, content, state):
    volume = told(store)
    server = memory.server_at(store.url)
    data = factories.content(volume.name if content == "same" else "other")
    server.store(path_of(volume), data, "of-another-upload", {}, if_absent=False)
    scan_store(actor=operator, store=store)
    ref = VOLUME.ref.objects.get(item__uuid=volume.uuid)
    assert (ref.state, ref.proof) == (state, Proof.ADOPTED)
    assert ref.files.get().etag == "of-another-upload"


def test_what_was_deleted_stays_deleted_when_its_object_is_still_there(operator, store):
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    journal.write(store)
    VOLUME.ref.objects.filter(item=volume).update(state=RefState.DESTROYED)
    Volume.objects.filter(pk=volume.pk).update(removed=timezone.now())
    report = scan_store(actor=operator, store=store)
    assert report.adopted == 0
    assert paths(report.orphaned) == [path_of(volume)]


def test_a_promise_is_kept_by_a_copy_when_one_can_be_read_and_by_what_is_there_when_none_can(operator, store, tmp_path):
    nfs = factories.make_store("NFS", zone=factories.make_zone(), folder=tmp_path / "export")
    both = [factories.make_volume([nfs]) for _ in range(2)]
    factories.make_promises(store)
    for volume in both:
        ref = VOLUME.ref.objects.get(item=volume, store=nfs)
        key, data = ref.files.get().path, factories.content(volume.name)
        driver_for(store).put(key, data, metadata=identity_of(volume, Installation.get().uuid), token="1-1")
    gone = VOLUME.ref.objects.get(item=both[1], store=nfs)
    gone.error_str = "missing: the file is no longer on the store"
    gone.save()
    report = scan_store(actor=operator, store=store)
    states = dict(VOLUME.ref.objects.filter(store=store).values_list("item", "state"))
    assert states == {both[0].pk: RefState.PROMISED, both[1].pk: RefState.READY}
    assert report.in_flight.count >= 1
    assert VOLUME.ref.objects.get(item=both[0], store=nfs).ref_cnt == 1
    assert holds.recount() == []


def test_half_an_item_is_not_adopted_when_no_line_tells_how_much_there_should_be(operator, store):
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    told_of_two = identity_of(volume, Installation.get().uuid, files=2)
    driver_for(store).put(path_of(volume), b"one of two", metadata=told_of_two, token="")
    forget(volume)
    report = scan_store(actor=operator, store=store)
    assert (report.adopted, paths(report.orphaned)) == (0, [path_of(volume)])


def test_a_key_that_no_row_can_hold_is_named_and_keeps_nothing_else_from_coming_back(operator, store):
    volume = told(store)
    strange = [f"volumes/2/{volume.upstream_id}/\udcff", f"volumes/2/9/{'x' * 200}/{'y' * 200}/{'z' * 200}" + "/w" * 250]
    for key in strange:
        driver_for(store).put(key, b"somebody else's", metadata={}, token="")
    report = scan_store(actor=operator, store=store)
    assert (report.adopted, report.unknown.count) == (1, 2)
    assert VOLUME.ref.objects.get(item__uuid=volume.uuid).state == RefState.READY


def test_objects_of_another_cloud_are_not_adopted(operator, store):
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    driver_for(store).put(path_of(volume), b"theirs", metadata=identity_of(volume, uuid.uuid4()), token="")
    forget(volume)
    assert scan_store(actor=operator, store=store).adopted == 0


def test_a_chain_without_a_line_is_linked_by_what_its_objects_say(operator, store):
    """Three snapshots of which only the full one was told; a line that nobody can read harms no other."""
    chain = factories.make_chain([store], 3, proof=Proof.VERIFIED)
    journal.write(store)
    driver_for(store).put(f"{journal.FOLDER}0.jsonl", b'{"kind": "volume"}\nnot JSON\n', metadata={}, token="")
    forget(*reversed(chain))
    report = scan_store(actor=operator, store=store)
    assert report.corrupt.count == 2
    found = list(Snapshot.objects.order_by("depth").values_list("uuid", "depth", "parent__uuid"))
    uuids = [snapshot.uuid for snapshot in chain]
    assert found == [(uuids[0], 0, None), (uuids[1], 1, uuids[0]), (uuids[2], 2, uuids[1])]


def test_a_lost_parent_is_told_when_only_the_child_is_left(operator, store):
    parent, child = factories.make_chain([store], 2, proof=Proof.VERIFIED)
    journal.write(store)
    driver_for(store).delete(KINDS[Kind.SNAPSHOT].file.objects.get(ref__item=parent).path)
    forget(child, parent)
    assert scan_store(actor=operator, store=store).corrupt.count == 1
    assert "not on the store" in KINDS[Kind.SNAPSHOT].ref.objects.get(item__uuid=child.uuid).error_str


def test_what_an_export_named_gets_its_name_back_when_the_store_knows_it(operator, store, tmp_path):
    nfs = factories.make_store("NFS", zone=factories.make_zone(), folder=tmp_path / "export")
    template = factories.make_template([store], name="the true name", proof=Proof.VERIFIED)
    journal.write(store)
    forget(template)
    found = factories.make_template([nfs], name="as the export names it")
    Template.objects.filter(pk=found.pk).update(upstream_id=template.upstream_id, unique_name=template.unique_name)
    report = scan_store(actor=operator, store=store)
    assert (report.adopted, report.conflicts.count) == (1, 0)
    found.refresh_from_db()
    assert (found.uuid, found.name) == (template.uuid, "the true name")
    assert set(found.refs.values_list("store", flat=True)) == {nfs.pk, store.pk}


def test_another_item_of_the_same_ids_is_a_conflict_when_it_was_proven(operator, store):
    template = factories.make_template([store], proof=Proof.VERIFIED)
    journal.write(store)
    forget(template)
    other = factories.make_template([factories.make_store("Memory", name="second")], proof=Proof.VERIFIED)
    Template.objects.filter(pk=other.pk).update(upstream_id=template.upstream_id)
    report = scan_store(actor=operator, store=store)
    assert (report.adopted, report.conflicts.count) == (0, 1)
    assert not Template.objects.filter(uuid=template.uuid).exists()


def lines(store: ImageStore) -> list[dict]:
    return [line for _, line in journal.lines(driver_for(store)) if line]


def test_what_changed_is_told_again(operator, store):
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    assert journal.write(store) == 1
    assert journal.write(store) == 0
    entry = {"account_id": 2, "id": volume.upstream_id, "name": "named later"}
    scan_store(actor=operator, store=store, catalogue={"accounts": [{"id": 2, "name": "owners"}], "volumes": [entry]})
    assert journal.write(store) == 1
    assert (lines(store)[-1]["name"], lines(store)[-1]["account_name"]) == ("named later", "owners")


def test_a_change_while_it_is_told_is_told_again(store, monkeypatch):
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    put = journal._put

    def change(*args, **more):
        put(*args, **more)
        Volume.objects.filter(pk=volume.pk).update(name="later")
        VOLUME.ref.objects.filter(item=volume).update(update_count=7)

    monkeypatch.setattr(journal, "_put", change)
    journal.write(store, batches=1)
    monkeypatch.undo()
    assert journal.write(store) == 1
    assert lines(store)[-1]["name"] == "later"


def test_the_last_line_is_what_was_read_last_however_late_another_is_written(store, monkeypatch):
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    put, late = journal._put, []
    monkeypatch.setattr(journal, "_put", lambda *args, **more: late.append((args, more)))
    journal.write(store, batches=1)
    monkeypatch.undo()
    monkeypatch.setattr(timezone, "now", lambda: datetime(2020, 1, 1, tzinfo=UTC))
    Volume.objects.filter(pk=volume.pk).update(name="later")
    VOLUME.ref.objects.filter(item=volume).update(journalled=False)
    journal.write(store)
    [(args, more)] = late
    put(*args, **more)
    assert [line["name"] for line in lines(store)] == [volume.name, "later"]


def test_small_journals_are_merged_without_changing_what_they_say(operator, store):
    volumes = []
    for _ in range(5):
        volumes.append(factories.make_volume([store], proof=Proof.VERIFIED))
        journal.write(store)
    Volume.objects.filter(pk=volumes[0].pk).update(name="renamed")
    VOLUME.ref.objects.filter(item=volumes[0]).update(journalled=False)
    journal.write(store)
    before = lines(store)
    assert journal.compact(store) == 5
    assert lines(store) == before
    assert len(list(driver_for(store).list(journal.FOLDER))) == 2
    assert journal.compact(store) == 0
    forget(*volumes)
    assert scan_store(actor=operator, store=store).adopted == 5
    assert Volume.objects.get(uuid=volumes[0].uuid).name == "renamed"


# --- taking over -------------------------------------------------------------------------------------------------------------


def test_nothing_is_taken_over_by_a_database_that_has_stores(admin, store):
    server = memory.server_at("memory://theirs")
    theirs = str(uuid.uuid4())
    server.marker = {"cloud": theirs, "store": str(uuid.uuid4())}
    place = {"provider": "Memory", "url": "memory://theirs", "details": {}}
    ours = Installation.get().uuid
    with pytest.raises(Conflict, match="stores of its own"):
        take_over(actor=admin, cloud=theirs, **place)
    with pytest.raises(Invalid, match="no uuid") as refused:
        take_over(actor=admin, cloud="mine", **place)
    assert refused.value.field == "take_over"
    with pytest.raises(Conflict, match="no marker"):
        take_over(actor=admin, cloud=theirs, provider="Memory", url="memory://empty", details={})
    assert Installation.get().uuid == ours


def test_a_new_life_fences_everybody_of_the_former_one(store):
    from stores.services import life

    volume = factories.make_volume([store])
    ref = VOLUME.ref.objects.get(item=volume)
    where = {"kind": Kind.VOLUME, "source": store, "target": store, "source_ref_id": ref.pk, "target_ref_id": ref.pk}
    running = Transfer.objects.create(**where, item_id=volume.pk, state=TransferState.RUNNING, epoch=3)
    life.begin()
    running.refresh_from_db()
    assert (running.state, running.epoch > 1000) == (TransferState.QUEUED, True)
    assert Transfer.objects.create(**where, item_id=volume.pk, state=TransferState.PROVEN, proof=Proof.VERIFIED).pk > 10**12


def test_nobody_but_recovery_changes_anything_while_it_is_read_only(admin, operator, viewer, store):
    Installation.objects.update(read_only="It was restored.")
    with pytest.raises(Conflict, match=r"Nothing can be changed now\. It was restored") as refused:
        add_zone(actor=admin, name="z")
    assert "--reconcile" in refused.value.remedy
    with pytest.raises(Conflict):
        scan_store(actor=operator, store=store)
    assert ImageStore.objects.filter(role=Role.IMAGE).count() == 1
