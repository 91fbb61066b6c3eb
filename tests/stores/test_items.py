"""Items begin, finish and go; a conversion in between loses none, and nothing is deleted that somebody needs or reads."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.errors import Conflict, Denied, Invalid, Missing
from cloudstorage.models import AuditEvent
from stores.models import (
    KINDS,
    Hold,
    ImageStore,
    Kind,
    Snapshot,
    SnapshotStoreRef,
    TemplateStoreRef,
    TemplateZoneRef,
    Transfer,
    VolumeStoreRef,
)
from stores.services import holds, inventory, items
from stores.services.image_stores import driver_for
from stores.services.items import WrittenFile
from stores.states import Proof, RefState, Role, TransferState
from tests import factories
from tests.fakes.memory import server_at

pytestmark = [pytest.mark.db, pytest.mark.django_db]

HASH = "a" * 64


@pytest.fixture
def zone():
    return factories.make_zone("z1")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "export"


@pytest.fixture
def export(zone, folder):
    return factories.make_store("NFS", name="nfs1", zone=zone, folder=folder)


@pytest.fixture
def objects():
    return factories.make_store(name="objects")


def begin(actor, zone, **changes):
    given = {"kind": Kind.VOLUME, "account": factories.make_account(), "name": "new"} | changes
    return items.begin_item(actor=actor, zone=zone, **given)


def finish(actor, ref, kind=Kind.VOLUME, proof=Proof.READ_BACK):
    files = [WrittenFile(f"{ref.install_path}/disk.raw", 10, HASH, proof, version="1", virtual_size=99)]
    return items.finish_item(actor=actor, kind=kind, ref=ref, files=files)


def states(kind=Kind.VOLUME):
    return {ref.store.name: str(ref.state) for ref in KINDS[kind].ref.objects.select_related("store")}


def files_below(folder):
    return {path.name for path in folder.rglob("*") if path.is_file() and ".cs-trash" not in path.parts}


# --- coming into being -----------------------------------------------------------------------------------------------


def test_item_is_ready_with_its_proof_when_it_is_finished(operator, zone, export):
    ref = begin(operator, zone)
    assert (ref.state, ref.store, ref.ref_cnt) == (RefState.CREATING, export, 0)
    assert ref.install_path == f"volumes/2/{ref.item.upstream_id}"
    finish(operator, ref)
    ref = VolumeStoreRef.objects.get()
    assert (ref.state, ref.proof, ref.sha256, ref.size, ref.ref_cnt) == (RefState.READY, Proof.READ_BACK, HASH, 10, 0)
    assert ref.proven_at
    assert ref.item.size == 99
    assert [file.path for file in ref.files.all()] == [f"{ref.install_path}/disk.raw"]
    assert not Hold.objects.exists()
    assert [event.action for event in AuditEvent.objects.order_by("id")] == ["volume.begin", "volume.finish"]


def test_weakest_proof_and_manifest_count_when_an_item_has_several_files(operator, zone, export):
    ref = begin(operator, zone, kind=Kind.TEMPLATE)
    files = [
        WrittenFile(f"{ref.install_path}/b", 1, "b" * 64, Proof.VERIFIED),
        WrittenFile(f"{ref.install_path}/a", 2, "a" * 64, Proof.ATTESTED),
    ]
    items.finish_item(actor=operator, kind=Kind.TEMPLATE, ref=ref, files=files)
    assert (ref.proof, ref.size) == (Proof.VERIFIED, 3)
    assert ref.sha256 == inventory_manifest([("a", "a" * 64), ("b", "b" * 64)])
    assert TemplateZoneRef.objects.get().zone == zone


def inventory_manifest(files):
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in files).encode()).hexdigest()


def test_item_is_not_finished_twice_or_without_hashes(operator, zone, export):
    ref = begin(operator, zone)
    with pytest.raises(Invalid):
        items.finish_item(actor=operator, kind=Kind.VOLUME, ref=ref, files=[])
    finish(operator, ref)
    with pytest.raises(Conflict) as caught:
        finish(operator, VolumeStoreRef.objects.get())
    assert "DestroyRequested" in caught.value.allowed


def test_begin_is_a_conflict_naming_the_zone_when_no_store_takes_it(operator, zone, export):
    ImageStore.objects.update(readonly=True)
    with pytest.raises(Conflict) as caught:
        begin(operator, zone)
    assert caught.value.field == "zone"
    assert caught.value.remedy
    assert not VolumeStoreRef.objects.exists()
    with pytest.raises(Conflict):
        begin(operator, factories.make_zone())


def test_store_with_most_free_space_is_chosen_when_there_are_several(operator, zone, export, tmp_path):
    roomy = factories.make_store("NFS", zone=zone, folder=tmp_path / "roomy")
    ImageStore.objects.filter(pk=export.pk).update(total_size=100, used_bytes=90)
    ImageStore.objects.filter(pk=roomy.pk).update(total_size=100, used_bytes=10)
    assert begin(operator, zone).store == roomy


def test_ids_are_never_used_again_when_items_are_removed(operator, zone, export):
    first = begin(operator, zone).item
    type(first).objects.filter(pk=first.pk).update(removed=timezone.now())
    assert begin(operator, zone).item.upstream_id == first.upstream_id + 1


def test_new_items_go_to_the_object_store_when_the_region_was_converted(operator, zone, export, objects):
    factories.make_promises(objects)
    ref = begin(operator, zone, kind=Kind.TEMPLATE, unique_name="2-x-y")
    assert ref.store == objects
    assert ref.install_path.endswith("/2-x-y")


def test_promise_and_count_are_added_when_the_region_was_converted_meanwhile(operator, zone, export, objects):
    ImageStore.objects.filter(pk=objects.pk).update(role=Role.IMAGE_CACHE)
    ref = begin(operator, zone)
    ImageStore.objects.filter(pk=objects.pk).update(role=Role.IMAGE)
    factories.make_promises(objects)
    assert states() == {"nfs1": "Creating"}
    finish(operator, ref)
    assert states() == {"nfs1": "Ready", "objects": "Promised"}
    assert VolumeStoreRef.objects.get(store=export).ref_cnt == 1
    assert holds.recount() == []


def test_snapshot_continues_its_chain_when_the_parent_is_readable_there(operator, zone, export, tmp_path):
    factories.make_store("NFS", name="roomy", zone=zone, folder=tmp_path / "roomy")
    parent = factories.make_chain([export], 2)[-1]
    given = {"kind": Kind.SNAPSHOT, "volume_upstream_id": 7, "parent": parent}
    ref = begin(operator, zone, path="a", **given)
    assert (ref.store, ref.item.parent, ref.item.depth) == (export, parent, 2)
    SnapshotStoreRef.objects.filter(item=parent).update(state=RefState.HIDDEN)
    ref = begin(operator, zone, path="b", **given)
    assert (ref.item.parent, ref.item.depth) == (None, 0)


def test_snapshot_is_full_when_the_region_was_converted(operator, zone, export, objects):
    parent = factories.make_chain([export], 1)[0]
    factories.make_promises(objects)
    ref = begin(operator, zone, kind=Kind.SNAPSHOT, volume_upstream_id=7, path="a", parent=parent)
    assert (ref.store, ref.item.parent) == (objects, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"path": "x"}, "volume_upstream_id"),
        ({"volume_upstream_id": 1, "path": "../x"}, "path"),
        ({"volume_upstream_id": 1}, "path"),
    ],
)
def test_snapshot_is_refused_when_its_place_is_no_place(operator, zone, export, changes, field):
    with pytest.raises(Invalid) as caught:
        begin(operator, zone, kind=Kind.SNAPSHOT, **changes)
    assert caught.value.field == field
    assert not Snapshot.objects.exists()


def test_snapshot_is_a_conflict_when_the_volume_has_one_of_that_name(operator, zone, export):
    given = {"kind": Kind.SNAPSHOT, "volume_upstream_id": 7, "path": "a"}
    begin(operator, zone, **given)
    with pytest.raises(Conflict):
        begin(operator, zone, **given)


def test_snapshot_waits_while_a_cancelled_copy_of_its_namesake_may_still_publish(operator, admin, zone, export, objects):
    given = {"kind": Kind.SNAPSHOT, "volume_upstream_id": 7, "path": "a"}
    former = finish(operator, begin(operator, zone, **given), Kind.SNAPSHOT)
    factories.make_promises(objects)
    promise = SnapshotStoreRef.objects.get(store=objects)
    refs = {"source": export, "source_ref_id": former.pk, "target": objects, "target_ref_id": promise.pk}
    copy = Transfer.objects.create(kind=Kind.SNAPSHOT, item_id=former.item_id, state=TransferState.RUNNING, swept=False, **refs)
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=former.item)
    assert items.finish_deletes() == 2
    with pytest.raises(Conflict, match="still be on its way") as caught:
        begin(operator, zone, **given)
    assert caught.value.field == "path"
    assert begin(operator, zone, **given | {"path": "b"}).store == objects
    Transfer.objects.filter(pk=copy.pk).update(swept=True)
    assert begin(operator, zone, **given).store == objects


# --- going -----------------------------------------------------------------------------------------------------------


def test_item_goes_everywhere_with_its_bytes_when_it_is_deleted(admin, viewer, export, folder, objects):
    template = factories.make_template([export, objects])
    other = factories.make_template([export, objects])
    items.delete_item(actor=admin, kind=Kind.TEMPLATE, item=template)
    with pytest.raises(Missing):
        inventory.open_content(actor=viewer, kind=Kind.TEMPLATE, item=template)
    assert f"{template.uuid}.qcow2" in files_below(folder)
    assert items.finish_deletes() == 2
    template.refresh_from_db()
    assert template.removed
    assert set(template.refs.values_list("state", flat=True)) == {RefState.DESTROYED}
    assert files_below(folder) == {f"{other.uuid}.qcow2", "template.properties", ".cloudstorage.json"}
    assert [key for key in server_at(objects.url).objects if str(template.uuid) in key] == []
    assert not TemplateZoneRef.objects.filter(template=template, removed=None).exists()
    other.refresh_from_db()
    assert other.removed is None
    assert items.finish_deletes() == 0
    with pytest.raises(Missing):
        items.delete_item(actor=admin, kind=Kind.TEMPLATE, item=template)


def test_promise_and_transfer_go_too_when_an_item_is_deleted_before_it_was_copied(admin, export, objects):
    volume = factories.make_volume([export])
    factories.make_promises(objects)
    source, target = VolumeStoreRef.objects.order_by("pk")
    common = {"kind": Kind.VOLUME, "item_id": volume.pk, "source": export, "source_ref_id": source.pk}
    live = Transfer.objects.create(**common, target=objects, target_ref_id=target.pk, state=TransferState.RUNNING)
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    live.refresh_from_db()
    assert live.state == TransferState.CANCELLED
    assert states() == {"nfs1": "Destroying", "objects": "Destroying"}
    assert holds.recount() == []
    items.finish_deletes()
    assert states() == {"nfs1": "Destroyed", "objects": "Destroyed"}


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_deletion_is_denied_when_the_role_is_missing(request, role, export):
    volume = factories.make_volume([export])
    with pytest.raises(Denied):
        items.delete_item(actor=request.getfixturevalue(role), kind=Kind.VOLUME, item=volume)
    assert states() == {"nfs1": "Ready"}


def test_parents_are_hidden_and_go_with_the_last_child_when_snapshots_are_deleted(admin, viewer, export, folder):
    full, middle, leaf = factories.make_chain([export], 3)
    for snapshot in (full, middle):
        items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=snapshot)
        with pytest.raises(Missing, match="was deleted"):
            inventory.open_content(actor=viewer, kind=Kind.SNAPSHOT, item=snapshot)
    assert [ref.state for ref in SnapshotStoreRef.objects.order_by("pk")] == [RefState.HIDDEN, RefState.HIDDEN, RefState.READY]
    assert items.finish_deletes() == 0
    with pytest.raises(Missing, match="already"):
        items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=full)
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=leaf)
    assert items.finish_deletes() == 3
    assert files_below(folder) == {".cloudstorage.json"}
    assert not Snapshot.objects.filter(removed=None).exists()


def test_parent_stays_when_it_was_not_deleted_or_another_child_lives(admin, export):
    full, middle, leaf = factories.make_chain([export], 3)
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=leaf)
    assert SnapshotStoreRef.objects.get(item=middle).state == RefState.READY
    sibling = Snapshot.objects.create(name="s", path="s", account=full.account, parent=full, depth=1, volume_upstream_id=1)
    factories.make_ref(Kind.SNAPSHOT, sibling, export, "snapshots/2/1/s", {"snapshots/2/1/s": b"s"})
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=full)
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=middle)
    assert SnapshotStoreRef.objects.get(item=full).state == RefState.HIDDEN
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=sibling)
    assert SnapshotStoreRef.objects.get(item=full).state == RefState.DESTROYING


def test_snapshot_with_children_whose_copy_is_not_complete_is_refused_with_the_reason(admin, export):
    full, _ = factories.make_chain([export], 2)
    SnapshotStoreRef.objects.filter(item=full).update(state=RefState.FAILED, install_path="", proof="")
    with pytest.raises(Conflict, match="none of its own copies is complete") as caught:
        items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=full)
    assert "children first" in caught.value.remedy


def test_kept_promise_is_hidden_too_when_its_snapshot_was_deleted(admin, export, objects):
    full, _ = factories.make_chain([export], 2)
    factories.make_promises(objects)
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=full)
    there = SnapshotStoreRef.objects.filter(item=full, store=objects)
    assert there.get().state == RefState.PROMISED
    there.update(state=RefState.READY, install_path="x", proof=Proof.VERIFIED)
    assert inventory.keep_hidden(Kind.SNAPSHOT, [full.pk]) == 1
    assert there.get().state == RefState.HIDDEN


def test_bytes_stay_until_the_reader_is_done_when_an_item_is_deleted(admin, viewer, objects):
    volume = factories.make_volume([objects], name="v")
    content = inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume)
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    assert items.finish_deletes() == 0
    assert b"".join(content.chunks()) == factories.content("v")
    content.close()
    assert items.finish_deletes() == 1
    assert not server_at(objects.url).objects


def test_bytes_go_when_the_readers_hold_has_expired(admin, objects):
    volume = factories.make_volume([objects])
    holds.take_hold(Kind.VOLUME, VolumeStoreRef.objects.get().pk, "read", "dead", -1)
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    assert items.finish_deletes() == 1
    assert not Hold.objects.exists()
    assert VolumeStoreRef.objects.get().ref_cnt == 0


def test_ref_stays_destroying_with_the_reason_when_its_store_is_away(admin, objects, export, folder):
    volume = factories.make_volume([objects, export])
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    server_at(objects.url).available = False
    (folder / ".cloudstorage.json").rename(folder / "gone")
    assert items.finish_deletes() == 0
    for ref in VolumeStoreRef.objects.all():
        assert ref.state == RefState.DESTROYING
        assert ref.error_str
    volume.refresh_from_db()
    assert volume.removed is None
    server_at(objects.url).available = True
    assert items.finish_deletes() == 0, "it is not asked again at once"
    VolumeStoreRef.objects.update(updated=timezone.now() - timedelta(seconds=items.RETRY_DELETE_SECONDS + 1))
    assert items.finish_deletes() == 1
    (folder / "gone").rename(folder / ".cloudstorage.json")
    VolumeStoreRef.objects.update(updated=timezone.now() - timedelta(seconds=items.RETRY_DELETE_SECONDS + 1))
    assert items.finish_deletes() == 1
    volume.refresh_from_db()
    assert volume.removed


def test_a_new_file_stays_when_another_host_has_finished_the_deletion_that_hung(admin, export, monkeypatch):
    template = factories.make_template([export])
    items.delete_item(actor=admin, kind=Kind.TEMPLATE, item=template)
    driver = driver_for(export)
    first, second = (file.path for file in TemplateStoreRef.objects.get().files.order_by("pk"))
    really = type(driver).delete

    def hang(self, key: str) -> None:
        really(self, key)
        monkeypatch.setattr(type(driver), "delete", really)
        TemplateStoreRef.objects.update(state=RefState.DESTROYED)
        really(self, second)
        self.put(second, b"of a new item", metadata={}, token="new")

    monkeypatch.setattr(items, "_STALE_SECONDS", -1)
    monkeypatch.setattr(type(driver), "delete", hang)
    items.finish_deletes()
    assert not driver.exists(first)
    assert driver.stat(second).size == 13


def test_a_new_object_stays_when_another_host_has_finished_its_deletion_while_another_store_hung(
    admin, export, objects, monkeypatch
):
    slow, gone = factories.make_volume([export]), factories.make_volume([objects])
    for volume in (slow, gone):
        items.delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    path = VolumeStoreRef.objects.get(item=gone).files.get().path
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    really = type(driver_for(export)).delete

    def hang(self, key: str) -> bool:
        clock.now += 60
        VolumeStoreRef.objects.filter(item=gone).update(state=RefState.DESTROYED)
        driver_for(objects).put(path, b"of a new item", metadata={}, token="new")
        return really(self, key)

    monkeypatch.setattr(items, "time", clock)
    monkeypatch.setattr(type(driver_for(export)), "delete", hang)
    assert items.finish_deletes() == 1
    assert driver_for(objects).stat(path).size == 13


def test_deletion_ends_well_when_the_bytes_are_gone_already(admin, objects, export, folder):
    volume = factories.make_volume([objects, export])
    server_at(objects.url).objects.clear()
    next(folder.rglob("*.raw")).unlink()
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    assert items.finish_deletes() == 2


def test_limit_is_kept_when_much_is_to_be_deleted(admin, objects):
    for _ in range(3):
        items.delete_item(actor=admin, kind=Kind.VOLUME, item=factories.make_volume([objects]))
    assert [items.finish_deletes(2), items.finish_deletes(2), items.finish_deletes(2)] == [2, 1, 0]


def test_queries_stay_the_same_when_much_is_to_be_deleted(admin, objects):
    counts = []
    for many in (1, 20):
        for _ in range(many):
            items.delete_item(actor=admin, kind=Kind.VOLUME, item=factories.make_volume([objects]))
        with CaptureQueriesContext(connection) as queries:
            assert items.finish_deletes() == many
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_unfinished_item_is_given_up_when_its_writer_was_silent_for_a_day(operator, zone, export):
    begin(operator, zone)
    begin(operator, zone, name="alive")
    assert items.give_up_unfinished() == 0
    Hold.objects.all().update(expires=timezone.now() - timedelta(seconds=1))
    assert items.give_up_unfinished() == 0
    VolumeStoreRef.objects.update(updated=timezone.now() - timedelta(days=2))
    alive = VolumeStoreRef.objects.get(item__name="alive")
    items.still_writing(Kind.VOLUME, alive)
    assert items.give_up_unfinished() == 1
    holds.expire_holds()
    assert items.finish_deletes() == 1
    assert VolumeStoreRef.objects.get(pk=alive.pk).state == RefState.CREATING
