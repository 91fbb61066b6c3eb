"""Where an item can be read now, and that a reader gets its bytes, or a plain answer, whatever fails."""

from __future__ import annotations

import hashlib

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.actors import Actor
from cloudstorage.errors import Conflict, Denied, Invalid, Missing, Unreachable
from stores.models import KINDS, Hold, ImageStore, Kind, TemplateStoreRef, VolumeStoreRef, Worker, WorkerReach
from stores.services import holds, inventory
from stores.states import Proof, RefEvent, RefState, Role, StoreState
from tests import factories
from tests.fakes.memory import server_at

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def zone():
    return factories.make_zone("z1")


@pytest.fixture
def export(zone, tmp_path):
    return factories.make_store("NFS", name="nfs1", zone=zone, folder=tmp_path / "export")


@pytest.fixture
def objects():
    return factories.make_store(name="objects")


# --- transitions -----------------------------------------------------------------------------------------------------


def test_ref_changes_row_and_object_when_the_table_allows_it(export):
    factories.make_volume([export])
    ref = VolumeStoreRef.objects.get()
    inventory.transition(ref, RefEvent.DESTROY_REQUESTED, error_str="x")
    fresh = VolumeStoreRef.objects.get()
    assert (ref.state, ref.update_count, ref.error_str) == (RefState.DESTROYING, 1, "x")
    assert (fresh.state, fresh.update_count, fresh.error_str) == (RefState.DESTROYING, 1, "x")


def test_transition_is_a_conflict_with_what_is_allowed_when_the_table_has_none(export):
    factories.make_volume([export])
    ref = VolumeStoreRef.objects.get()
    with pytest.raises(Conflict) as caught:
        inventory.transition(ref, RefEvent.PROMISE_KEPT)
    assert caught.value.allowed == ("ProofWithdrawn", "DamageFound", "HideRequested", "DestroyRequested")


def test_transition_is_a_conflict_when_somebody_was_faster(export):
    factories.make_volume([export])
    ref, other = VolumeStoreRef.objects.get(), VolumeStoreRef.objects.get()
    inventory.transition(other, RefEvent.DESTROY_REQUESTED)
    with pytest.raises(Conflict, match="Destroying") as caught:
        inventory.transition(ref, RefEvent.HIDE_REQUESTED)
    assert "DestroyRequested" in caught.value.allowed
    assert ref.state == RefState.READY


# --- where can I read this now? --------------------------------------------------------------------------------------


def test_best_copy_comes_first_when_there_are_several(export, objects, zone, tmp_path):
    other = factories.make_store("NFS", zone=factories.make_zone(), folder=tmp_path / "other")
    volume = factories.make_volume([other, export, objects])
    order = lambda **given: [copy.store.name for copy in inventory.readable_copies(Kind.VOLUME, [volume.pk], **given)[volume.pk]]  # noqa: E731
    assert order()[0] == "objects"
    assert order(zone=zone)[0] == "nfs1"
    VolumeStoreRef.objects.filter(store=other).update(proof=Proof.VERIFIED)
    assert order(zone=zone) == [other.name, "nfs1", "objects"]
    worker = Worker.objects.create(hostname="w", pid=1)
    WorkerReach.objects.create(worker=worker, store=other, ok=False)
    assert order(zone=zone)[-1] == other.name
    second = Worker.objects.create(hostname="w2", pid=1)
    WorkerReach.objects.create(worker=second, store=other, ok=True)
    assert order(zone=zone)[0] == other.name


def test_copy_is_left_out_when_it_is_not_readable_or_its_store_is_detached(export, objects):
    volume, unknown = factories.make_volume([export, objects]), 12345
    VolumeStoreRef.objects.filter(store=export).update(state=RefState.DESTROYING)
    ImageStore.objects.filter(pk=objects.pk).update(state=StoreState.DETACHED)
    assert inventory.readable_copies(Kind.VOLUME, [volume.pk, unknown]) == {volume.pk: [], unknown: []}


def test_queries_stay_the_same_when_items_are_many(export):
    one = [factories.make_volume([export]).pk]
    many = one + [factories.make_volume([export]).pk for _ in range(20)]
    counts = []
    for ids in (one, many):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert len(inventory.readable_copies(Kind.VOLUME, ids)) == len(ids)
        counts.append(len(queries))
    assert counts == [1, 1]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_content_is_the_bytes_and_its_range_when_it_is_read(viewer, export):
    template = factories.make_template([export], name="t", size=3_000_000)
    expected = factories.content("t", 3_000_000)
    with inventory.open_content(actor=viewer, kind=Kind.TEMPLATE, item=template) as content:
        assert content.filename == f"{template.uuid}.qcow2"
        assert content.size == 3_000_000
        assert b"".join(content.chunks()) == expected
        assert b"".join(content.chunks(100, 2_000_000, block=999_999)) == expected[100:2_000_100]
        assert b"".join(content.chunks(2_999_990, 100)) == expected[-10:]
        assert content.pread(5, 5) == expected[5:10]
        assert content.etag
        assert TemplateStoreRef.objects.get().ref_cnt == 1
        assert Hold.objects.get().expires > timezone.now()
    content.close()
    assert TemplateStoreRef.objects.get().ref_cnt == 0
    assert not Hold.objects.exists()


def test_named_file_is_opened_when_a_path_is_given(viewer, export):
    template = factories.make_template([export])
    with inventory.open_content(actor=viewer, kind=Kind.TEMPLATE, item=template, path="template.properties") as content:
        assert content.pread(0, 11) == b"uniquename="
    with pytest.raises(Missing) as caught:
        inventory.open_content(actor=viewer, kind=Kind.TEMPLATE, item=template, path="../template.properties")
    assert caught.value.field == "path"
    assert not Hold.objects.exists()


def test_etag_is_the_hash_when_the_file_was_hashed(viewer, objects):
    volume = factories.make_volume([objects], name="v", proof=Proof.VERIFIED)
    with inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume) as content:
        assert content.etag == content.sha256 == hashlib.sha256(factories.content("v")).hexdigest()


def test_path_is_asked_for_when_an_item_has_several_images(viewer, objects):
    snapshot = factories.make_chain([factories.make_store()], 1)[0]
    ImageStore.objects.exclude(pk=objects.pk).update(state=StoreState.DETACHED)
    factories.make_ref(Kind.SNAPSHOT, snapshot, objects, "s/d", {"s/d/a.vmdk": b"a", "s/d/b.vmdk": b"b"})
    with pytest.raises(Invalid, match="2 files") as caught:
        inventory.open_content(actor=viewer, kind=Kind.SNAPSHOT, item=snapshot)
    assert "a.vmdk" in caught.value.remedy
    with inventory.open_content(actor=viewer, kind=Kind.SNAPSHOT, item=snapshot, path="b.vmdk") as content:
        assert b"".join(content.chunks()) == b"b"
        assert content.store == objects


def test_next_copy_is_read_when_the_best_is_away(viewer, export, objects):
    volume = factories.make_volume([export, objects], name="v")
    server_at(objects.url).available = False
    with inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume) as content:
        assert content.store == export
        assert b"".join(content.chunks()) == factories.content("v")
    assert not Hold.objects.exists()


def test_next_copy_is_read_when_the_best_was_changed_or_lost(viewer, export, objects):
    volume = factories.make_volume([objects, export], name="v")
    key = KINDS[Kind.VOLUME].file.objects.filter(ref__store=objects).get().path
    server_at(objects.url).objects.pop(key)
    with inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume) as content:
        assert content.store == export
    VolumeStoreRef.objects.filter(store=export).delete()
    with pytest.raises(Missing, match="not there any more"):
        inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume)


def test_reading_is_a_conflict_when_the_only_copy_has_another_size(viewer, objects):
    volume = factories.make_volume([objects])
    KINDS[Kind.VOLUME].file.objects.update(size=1)
    with pytest.raises(Conflict, match="somebody changed it"):
        inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume)


def test_answer_is_to_try_later_when_a_store_that_may_have_it_is_away(viewer, export, objects, tmp_path):
    volume = factories.make_volume([objects, export])
    server_at(objects.url).available = False
    (tmp_path / "export" / ".cloudstorage.json").unlink()
    with pytest.raises(Unreachable):
        inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume)
    assert not Hold.objects.exists()


def test_reading_is_missing_when_nothing_is_left(viewer, objects):
    volume = factories.make_volume([objects])
    VolumeStoreRef.objects.update(state=RefState.DESTROYING)
    with pytest.raises(Missing):
        inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume)


def test_reading_is_denied_without_a_role(objects):
    volume = factories.make_volume([objects])
    with pytest.raises(Denied):
        inventory.open_content(actor=Actor("nobody", frozenset()), kind=Kind.VOLUME, item=volume)


def test_hold_is_prolonged_when_a_long_read_goes_on(viewer, objects, monkeypatch):
    volume = factories.make_volume([objects])
    monkeypatch.setattr(inventory, "READ_HOLD_SECONDS", 0)
    with inventory.open_content(actor=viewer, kind=Kind.VOLUME, item=volume) as content:
        first = Hold.objects.get().expires
        VolumeStoreRef.objects.update(state=RefState.DESTROYING)
        content.pread(0, 1)
        assert Hold.objects.get().expires > first
        assert VolumeStoreRef.objects.get().ref_cnt == 1


# --- usage of stores -------------------------------------------------------------------------------------------------


def test_usage_is_counted_in_one_query_when_stores_are_listed(export, objects):
    factories.make_template([export], size=1000)
    factories.make_chain([export], 3, size=10)
    factories.make_volume([export], size=5)
    factories.make_promises(objects)
    with CaptureQueriesContext(connection) as queries:
        nfs, target = ImageStore.objects.with_usage().order_by("pk")
    assert len(queries) == 1
    assert (nfs.templates, nfs.snapshots, nfs.volumes, nfs.pending) == (1, 3, 1, 0)
    assert nfs.bytes > 1035
    assert (target.templates, target.snapshots, target.volumes, target.pending, target.bytes) == (0, 0, 0, 5, 0)
    assert set(ImageStore.objects.of_zone(nfs.zone)) == {nfs, target}
    assert set(ImageStore.objects.of_record()) == {target}


# --- holds -----------------------------------------------------------------------------------------------------------


def test_count_follows_when_holds_are_taken_twice_released_twice_and_expire(objects):
    factories.make_volume([objects])
    ref = VolumeStoreRef.objects.get()
    count = lambda: VolumeStoreRef.objects.get().ref_cnt  # noqa: E731
    holds.take_hold(Kind.VOLUME, ref.pk, "read", "a")
    holds.take_hold(Kind.VOLUME, ref.pk, "read", "a", 60)
    holds.take_hold(Kind.VOLUME, ref.pk, "read", "b", -1)
    assert count() == 2
    assert holds.expire_holds() == 1
    assert count() == 1
    assert holds.release_hold(Kind.VOLUME, ref.pk, "read", "a") is True
    assert holds.release_hold(Kind.VOLUME, ref.pk, "read", "a") is False
    assert count() == 0
    assert holds.recount() == []


def test_hold_is_refused_when_the_copy_is_being_deleted(objects):
    factories.make_volume([objects])
    VolumeStoreRef.objects.update(state=RefState.DESTROYING)
    with pytest.raises(Conflict):
        holds.take_hold(Kind.VOLUME, VolumeStoreRef.objects.get().pk, "read", "a")
    assert not Hold.objects.exists()


def test_every_zones_copy_is_counted_until_the_promise_is_kept(export, objects, tmp_path):
    other = factories.make_store("NFS", zone=factories.make_zone(), folder=tmp_path / "other")
    volume = factories.make_volume([export, other])
    factories.make_promises(objects)
    counts = lambda: list(VolumeStoreRef.objects.order_by("pk").values_list("ref_cnt", flat=True))  # noqa: E731
    assert counts() == [1, 1, 0]
    assert holds.recount() == []
    VolumeStoreRef.objects.filter(store=objects).update(state=RefState.READY, install_path="x", proof=Proof.VERIFIED)
    holds.keep_promises(Kind.VOLUME, [volume.pk])
    holds.keep_promises(Kind.VOLUME, [volume.pk])
    assert counts() == [0, 0, 0]


def test_wrong_count_is_found_and_mended_when_counts_are_compared(export, objects):
    factories.make_volume([export])
    factories.make_promises(objects)
    ref = VolumeStoreRef.objects.get(store=export)
    VolumeStoreRef.objects.filter(pk=ref.pk).update(ref_cnt=7)
    expected = [holds.Mismatch(Kind.VOLUME, ref.pk, 7, 1)]
    assert holds.recount() == expected
    assert holds.recount(repair=True) == expected
    assert holds.recount() == []
    assert VolumeStoreRef.objects.get(pk=ref.pk).ref_cnt == 1
    assert export.role == Role.IMAGE
