"""Image stores are added, checked, changed and removed by the gate, the probe, the marker and the state table."""

from __future__ import annotations

import uuid

import pytest

from cloudstorage.errors import Blocked, Conflict, Denied, Invalid, Unreachable
from cloudstorage.models import AuditEvent, Installation
from stores.models import ImageStore, ImageStoreDetail, Zone
from stores.services import image_stores
from stores.services.scan import cancel_scan, request_scan
from stores.states import Role, StoreState
from tests.fakes.memory import server_at

pytestmark = [pytest.mark.db, pytest.mark.django_db]

URL = "memory://bucket"


def add(actor, **changes):
    given = {"name": "objects", "provider": "Memory", "url": URL, "details": {}} | changes
    return image_stores.add_store(actor=actor, **given)


@pytest.fixture
def zone():
    return Zone.objects.create(name="z1")


# --- adding ----------------------------------------------------------------------------------------------------------


def test_store_is_added_with_marker_probe_and_audit_row_when_all_is_well(admin):
    server_at(URL).password = "hunter2"
    store = add(admin, details={"password": "hunter2"})
    store.refresh_from_db()
    assert (store.scope, store.role, store.state, store.protocol) == ("REGION", Role.IMAGE, StoreState.ATTACHED, "http")
    assert server_at(URL).marker == {"cloud": str(Installation.get().uuid), "store": str(store.uuid)}
    assert {step["name"] for step in store.probe_steps} >= {"reach", "write", "multipart", "delete"}
    assert server_at(URL).objects == {}
    event = AuditEvent.objects.get(action="store.add")
    assert (event.outcome, event.target) == ("done", "objects")
    assert "hunter2" not in str(event.details)
    kept = ImageStoreDetail.objects.get(store=store)
    assert kept.secret
    assert "hunter2" not in kept.value
    assert image_stores.details_of(store) == {"password": ""}
    assert image_stores.details_of(store, reveal=True) == {"password": "hunter2"}


def test_nfs_store_is_added_when_the_folder_is_there(admin, zone, tmp_path):
    store = add(admin, name="", provider="NFS", url=f"nfs://localhost{tmp_path}", zone=zone)
    assert (store.scope, store.zone, store.name) == ("ZONE", zone, f"nfs://localhost{tmp_path}")
    assert store.total_size > store.used_bytes > 0
    image_stores.driver_for(store).check()


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"provider": "Ceph"}, Invalid, "provider"),
        ({"provider": ""}, Invalid, "provider"),
        ({"provider": "NFS", "url": "nfs://localhost/x"}, Invalid, "zone"),
        ({"provider": "NFS", "url": "http://localhost/x", "zone": "z1"}, Invalid, "url"),
        ({"zone": "z1"}, Invalid, "zone"),
        ({"url": "bucket"}, Invalid, "url"),
        ({"details": {"colour": "red"}}, Invalid, "colour"),
        ({"provider": "S3", "url": "", "details": {"accesskey": "a", "bucket": "bbb"}}, Invalid, "secretkey"),
        ({"role": Role.IMAGE_CACHE}, Invalid, "provider"),
        ({"name": "x" * 256}, Invalid, "name"),
        ({"name": "taken"}, Conflict, "name"),
        ({"url": "memory://taken"}, Conflict, "url"),
        ({"provider": "NFS", "url": "nfs://localhost/x", "zone": "z1", "name": "n"}, Invalid, "provider"),
    ],
)
def test_field_and_remedy_are_named_and_nothing_is_changed_when_a_parameter_is_wrong(admin, zone, changes, error, field):
    if "taken" in str(changes) or changes.get("name") == "n":
        add(admin, name="taken", url="memory://taken")
    before = list(ImageStore.objects.values())
    if changes.get("zone") == "z1":
        changes = changes | {"zone": zone}
    with pytest.raises(error) as caught:
        add(admin, **changes)
    assert caught.value.field == field
    assert caught.value.message
    assert caught.value.remedy
    assert list(ImageStore.objects.values()) == before
    assert server_at(URL).marker is None
    assert AuditEvent.objects.filter(action="store.add", outcome="refused").count() == 1


@pytest.mark.parametrize("actor", ["viewer", "operator"])
def test_addition_is_denied_and_noted_when_the_role_is_missing(request, actor):
    with pytest.raises(Denied):
        add(request.getfixturevalue(actor))
    assert not ImageStore.objects.exists()
    assert AuditEvent.objects.get().outcome == "refused"


def test_addition_is_blocked_with_every_step_when_the_credentials_are_wrong(admin):
    server_at(URL).password = "right"
    with pytest.raises(Blocked) as caught:
        add(admin, details={"password": "wrong"})
    assert [step.status for step in caught.value.findings if step.name == "reach"] == ["blocker"]
    assert "password" in caught.value.message
    assert not ImageStore.objects.exists()
    assert server_at(URL).marker is None


def test_addition_is_blocked_when_the_store_belongs_to_another_cloud(admin):
    server_at(URL).marker = {"cloud": str(uuid.uuid4()), "store": str(uuid.uuid4())}
    with pytest.raises(Blocked, match="another cloud"):
        add(admin)
    assert not ImageStore.objects.exists()


def test_addition_goes_on_when_an_earlier_one_died_between_marker_and_row(admin, monkeypatch):
    def die(prepared):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_stores, "save_store", die)
        with pytest.raises(KeyboardInterrupt):
            add(admin)
    marker = server_at(URL).marker
    assert marker is not None
    assert not ImageStore.objects.exists()
    store = add(admin, name="second try")
    assert str(store.uuid) == marker["store"]


def test_place_is_the_same_store_when_it_is_removed_and_added_again(admin):
    first = add(admin)
    image_stores.remove_store(actor=admin, store=first)
    again = add(admin, name="again")
    again.refresh_from_db()
    assert (again.pk, again.uuid, again.state, again.removed, again.name) == (
        first.pk,
        first.uuid,
        StoreState.ATTACHED,
        None,
        "again",
    )
    image_stores.driver_for(again).check()


def test_second_addition_is_a_conflict_when_two_of_one_place_or_name_are_saved(admin):
    given = {"provider": "Memory", "details": {}, "zone": None, "role": Role.IMAGE}
    same_place = [image_stores.prepare_store(name=name, url=URL, **given) for name in ("a", "b")]
    same_name = image_stores.prepare_store(name="a", url="memory://other", **given)
    image_stores.save_store(same_place[0])
    for late in (same_place[1], same_name):
        with pytest.raises(Conflict) as caught:
            image_stores.save_store(late)
        assert caught.value.remedy
    assert [store.name for store in ImageStore.objects.all()] == ["a"]


def test_nothing_is_kept_when_a_store_is_only_tested(admin):
    steps = image_stores.test_store(actor=admin, provider="Memory", url=URL, details={}, zone=None)
    assert {step.status for step in steps} <= {"ok", "info"}
    assert not ImageStore.objects.exists()
    assert server_at(URL).marker is None
    assert server_at(URL).objects == {}


# --- the gate of a conversion ----------------------------------------------------------------------------------------


def test_object_store_passes_the_gate_when_the_region_is_on_nfs_and_is_converted(admin, zone, tmp_path):
    add(admin, name="nfs", provider="NFS", url=f"nfs://localhost{tmp_path}", zone=zone)
    given = {"name": "", "provider": "Memory", "url": URL, "details": {}, "zone": None}
    assert image_stores.check_new_store(**given, converting=True) == (URL, {"password": ""})
    with pytest.raises(Invalid, match="cannot be mixed"):
        image_stores.check_new_store(**given)


def test_conversion_is_refused_when_the_region_is_not_on_nfs(admin):
    add(admin)
    with pytest.raises(Invalid, match="not on NFS") as caught:
        image_stores.check_new_store(
            name="", provider="Memory", url="memory://two", details={}, zone=None, role=Role.IMAGE, converting=True
        )
    assert caught.value.field == "provider"


def test_conversion_is_refused_when_the_target_is_no_object_store(zone):
    with pytest.raises(Invalid, match="no object store"):
        image_stores.check_new_store(
            name="", provider="NFS", url="nfs://localhost/x", details={}, zone=zone, role=Role.IMAGE, converting=True
        )


# --- drivers ---------------------------------------------------------------------------------------------------------


def test_driver_is_kept_until_a_secret_changes(admin):
    server_at(URL).password = "old"
    store = add(admin, details={"password": "old"})
    driver = image_stores.driver_for(store)
    assert image_stores.driver_for(ImageStore.objects.get(pk=store.pk)) is driver
    server_at(URL).password = "new"
    image_stores.update_store(actor=admin, store=store, details={"password": "new"})
    renewed = image_stores.driver_for(ImageStore.objects.get(pk=store.pk))
    assert renewed is not driver
    renewed.check()


# --- afterwards ------------------------------------------------------------------------------------------------------


def test_facts_stay_when_a_later_probe_finds_the_store_gone(operator, admin):
    store = add(admin)
    ImageStore.objects.filter(pk=store.pk).update(facts={"max_parts": 1000})
    store.refresh_from_db()
    server_at(URL).available = False
    steps = image_stores.probe_store(actor=operator, store=store)
    store.refresh_from_db()
    assert steps[0].status == "blocker"
    assert store.facts == {"max_parts": 1000}
    assert store.probe_steps[0]["status"] == "blocker"


def test_nothing_changes_when_new_details_do_not_work(admin):
    store = add(admin)
    with pytest.raises(Invalid, match="refused"):
        image_stores.update_store(actor=admin, store=store, name="renamed", details={"password": "wrong"})
    kept = ImageStore.objects.get()
    assert kept.name == "objects"
    assert image_stores.details_of(kept) == {}
    server_at(URL).available = False
    with pytest.raises(Unreachable):
        image_stores.update_store(actor=admin, store=kept, details={"password": "x"})


def test_secret_stays_when_an_update_leaves_it_empty(admin):
    server_at(URL).password = "pw"
    store = add(admin, details={"password": "pw"})
    image_stores.update_store(actor=admin, store=store, details={"password": ""}, readonly=True, read_limit=1000)
    kept = ImageStore.objects.get()
    assert (kept.readonly, kept.read_limit) == (True, 1000)
    assert image_stores.details_of(kept, reveal=True) == {"password": "pw"}
    image_stores.update_store(actor=admin, store=kept, read_limit=None)
    assert ImageStore.objects.get().read_limit is None


def test_rename_is_a_conflict_when_the_name_is_taken(admin):
    add(admin)
    other = add(admin, name="other", url="memory://other")
    with pytest.raises(Conflict) as caught:
        image_stores.update_store(actor=admin, store=other, name="objects")
    assert caught.value.field == "name"


def test_store_is_not_removed_under_a_scan_nor_scanned_once_it_is_removed(admin):
    store = add(admin, details={})
    run = request_scan(actor=admin, store=store)
    with pytest.raises(Conflict, match="adopts what it finds"):
        image_stores.remove_store(actor=admin, store=store)
    cancel_scan(actor=admin, run=run)
    seen_before = ImageStore.objects.get(pk=store.pk)
    image_stores.remove_store(actor=admin, store=store)
    with pytest.raises(Conflict, match="is Removed"):
        request_scan(actor=admin, store=seen_before)


def test_removed_store_is_refused_when_it_is_probed_changed_or_removed_again(admin):
    store = add(admin, details={})
    image_stores.remove_store(actor=admin, store=store)
    for act in (
        lambda: image_stores.probe_store(actor=admin, store=store),
        lambda: image_stores.update_store(actor=admin, store=store, readonly=True),
        lambda: image_stores.remove_store(actor=admin, store=store),
    ):
        with pytest.raises(Conflict):
            act()
