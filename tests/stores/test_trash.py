"""What is deleted from an export waits in its trash folder, can come back from it, and goes for good only after the grace time."""

from __future__ import annotations

import os
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudstorage.errors import Conflict, Denied, Invalid, Missing
from cloudstorage.models import AuditEvent
from stores import tasks
from stores.drivers import nfs_files
from stores.drivers.errors import AlreadyExists
from stores.models import KINDS, ImageStore, Kind, TemplateZoneRef
from stores.services import holds
from stores.services.image_stores import driver_for
from stores.services.inventory import open_content
from stores.services.items import delete_item, finish_deletes
from stores.services.undelete import undeletable, undelete_item
from stores.services.uploads import register_upload
from stores.states import RefState, Role, StoreState
from tests.factories import (
    MEMORY,
    content,
    make_account,
    make_chain,
    make_ref,
    make_store,
    make_template,
    make_volume,
    make_zone,
)

pytestmark = pytest.mark.db


@pytest.fixture
def export(db, settings, tmp_path) -> ImageStore:
    settings.ALLOW_PLAIN_EXPORTS = True
    return make_store("NFS", zone=make_zone(), folder=tmp_path / "export")


def delete(admin, kind, *items) -> None:
    for item in items:
        delete_item(actor=admin, kind=kind, item=item)
    while finish_deletes():
        pass
    for item in items:
        item.refresh_from_db()
        assert item.removed is not None


def bury(driver, key: str, data: bytes) -> None:
    """Something else was deleted there a day ago."""
    batch = Path(driver.path, ".cs-trash", f"{int(time.time()) - 86400}-0123456789ab")
    (batch / key).parent.mkdir(parents=True)
    (batch / key).write_bytes(data)
    grow_old(driver)


def grow_old(driver) -> None:
    """What was deleted until now was so a day ago, by the file server's clock."""
    for batch in Path(driver.path).glob(".cs-trash/*"):
        os.utime(batch, (time.time() - 86400,) * 2)


def read(admin, kind, item, path=None) -> bytes:
    with open_content(actor=admin, kind=kind, item=item, path=path) as opened:
        return b"".join(opened.chunks())


def test_deleted_file_is_purged_only_after_the_grace_time(db, settings, tmp_path):
    settings.ALLOW_PLAIN_EXPORTS = True
    store = make_store("NFS", zone=make_zone(), folder=tmp_path / "export")
    driver = driver_for(store)
    driver.put("volumes/1/2/disk", b"content", metadata={}, token="t")
    assert driver.delete("volumes/1/2/disk")
    trash = tmp_path / "export" / ".cs-trash"
    tasks.purge_trash()
    assert list(trash.rglob("disk"))
    settings.TRASH_GRACE_SECONDS = 0
    tasks.purge_trash()
    assert not list(trash.rglob("disk"))


def test_deleted_template_comes_back_with_its_name_zones_and_bytes(export, admin, operator):
    template = make_template([export], name="web")
    before = {(found.key, found.size) for found in driver_for(export).list()}
    zones = set(TemplateZoneRef.objects.filter(template=template, removed=None).values_list("zone", flat=True))
    delete(admin, Kind.TEMPLATE, template)
    assert list(driver_for(export).list()) == []
    assert list(undeletable(Kind.TEMPLATE)) == [template]
    with pytest.raises(Denied):
        undelete_item(actor=operator, kind=Kind.TEMPLATE, item=template)
    assert undelete_item(actor=admin, kind=Kind.TEMPLATE, item=template) == [export.name]
    template.refresh_from_db()
    assert template.removed is None
    assert {(found.key, found.size) for found in driver_for(export).list()} == before
    assert set(TemplateZoneRef.objects.filter(template=template, removed=None).values_list("zone", flat=True)) == zones
    assert read(admin, Kind.TEMPLATE, template, f"{template.uuid}.qcow2") == content("web")
    assert list(undeletable(Kind.TEMPLATE)) == []
    assert AuditEvent.objects.get(action="template.undelete", outcome="done").details["name"] == "web"
    with pytest.raises(Conflict, match="not deleted"):
        undelete_item(actor=admin, kind=Kind.TEMPLATE, item=template)


def test_after_a_conversion_it_is_promised_to_the_object_store_again(export, admin, settings):
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | MEMORY
    volume = make_volume([export])
    ImageStore.objects.filter(pk=export.pk).update(role=Role.IMAGE_CACHE)
    objects = make_store("Memory")
    delete(admin, Kind.VOLUME, volume)
    undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    states = KINDS[Kind.VOLUME].ref.objects.filter(item=volume).exclude(state=RefState.DESTROYED)
    assert dict(states.values_list("store", "state")) == {export.pk: "Ready", objects.pk: "Promised"}
    assert holds.recount() == []


def test_snapshot_comes_back_only_behind_what_it_builds_on(export, admin):
    full, delta = make_chain([export], 2)
    delete(admin, Kind.SNAPSHOT, delta, full)
    with pytest.raises(Conflict, match="builds on"):
        undelete_item(actor=admin, kind=Kind.SNAPSHOT, item=delta)
    snapshots = KINDS[Kind.SNAPSHOT].item.objects
    for deleted in (full, delta):
        undelete_item(actor=admin, kind=Kind.SNAPSHOT, item=snapshots.get(pk=deleted.pk))
        assert read(admin, Kind.SNAPSHOT, snapshots.get(pk=deleted.pk)) == content(deleted.name, 3000)


def test_nothing_comes_back_after_the_grace_time(export, admin):
    volume = make_volume([export])
    delete(admin, Kind.VOLUME, volume)
    driver_for(export).purge_trash(older_than=0)
    with pytest.raises(Missing, match="No trash has the bytes"):
        undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    volume.refresh_from_db()
    assert volume.removed is not None
    ImageStore.objects.filter(pk=export.pk).update(state=StoreState.REMOVED)
    with pytest.raises(Missing):
        undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)


def test_half_an_item_does_not_come_back_when_some_of_its_files_are_purged(export, admin):
    template = make_template([export], name="web")
    delete(admin, Kind.TEMPLATE, template)
    (image,) = Path(driver_for(export).path, ".cs-trash").rglob("*.qcow2")
    image.unlink()  # deleted hours before the other file, between which its store was away: so it is purged before it
    with pytest.raises(Missing, match="bytes were still in the trash"):
        undelete_item(actor=admin, kind=Kind.TEMPLATE, item=template)
    template.refresh_from_db()
    assert template.removed is not None
    assert not KINDS[Kind.TEMPLATE].ref.objects.filter(item=template).exclude(state=RefState.DESTROYED).exists()


def test_half_on_one_export_keeps_none_from_coming_back_on_the_other(export, admin, tmp_path):
    other = make_store("NFS", zone=make_zone(), folder=tmp_path / "other")
    template = make_template([export, other], name="web")
    delete(admin, Kind.TEMPLATE, template)
    (image,) = Path(driver_for(export).path, ".cs-trash").rglob("*.qcow2")
    image.unlink()
    assert undelete_item(actor=admin, kind=Kind.TEMPLATE, item=template) == [other.name]
    template.refresh_from_db()
    assert read(admin, Kind.TEMPLATE, template, f"{template.uuid}.qcow2") == content("web")


def test_a_place_that_was_taken_meanwhile_is_never_overwritten(export, admin):
    volume = make_volume([export], name="first")
    file = KINDS[Kind.VOLUME].file.objects.get(ref__item=volume).path
    delete(admin, Kind.VOLUME, volume)
    driver_for(export).put(file, b"of somebody else", metadata={}, token="t")
    with pytest.raises(AlreadyExists):
        driver_for(export).undelete(file.rpartition("/")[0])
    with pytest.raises(Conflict, match="taken by another file"):
        undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    with driver_for(export).open(file) as reader:
        assert reader.pread(0, 100) == b"of somebody else"
    volume.refresh_from_db()
    assert volume.removed is not None


def test_of_two_that_were_deleted_at_one_place_the_later_comes_back(export):
    driver = driver_for(export)
    bury(driver, "volumes/1/2/disk", b"old")
    driver.put("volumes/1/2/disk", b"new", metadata={}, token="t")
    driver.delete("volumes/1/2/disk")
    assert driver.undelete("volumes/1/2") == 1
    with driver.open("volumes/1/2/disk") as reader:
        assert reader.pread(0, 10) == b"new"
    assert driver.undelete("volumes/1/3") == 0


def test_the_later_comes_back_also_when_the_clock_of_the_host_that_deleted_it_is_late(export, monkeypatch):
    driver = driver_for(export)
    for data, host in ((b"old", time.time()), (b"new", time.time() - 60)):
        grow_old(driver)
        driver.put("volumes/1/2/disk", data, metadata={}, token="t")
        monkeypatch.setattr(nfs_files, "time", SimpleNamespace(time=lambda host=host: host))
        driver.delete("volumes/1/2/disk")
    assert driver.undelete("volumes/1/2") == 1
    with driver.open("volumes/1/2/disk") as reader:
        assert reader.pread(0, 10) == b"new"


def test_an_item_never_comes_back_with_the_bytes_of_a_later_one_of_its_name(export, admin):
    def snapshot(data: bytes):
        given = {"name": "daily", "path": "daily", "volume_upstream_id": 7, "account": make_account()}
        item = KINDS[Kind.SNAPSHOT].item.objects.create(**given)
        make_ref(Kind.SNAPSHOT, item, export, "snapshots/2/7/daily", {"snapshots/2/7/daily": data})
        grow_old(driver_for(export))
        delete(admin, Kind.SNAPSHOT, item)
        return item

    monday, tuesday = snapshot(b"of monday"), snapshot(b"of tuesday")
    with pytest.raises(Conflict, match="deleted last") as caught:
        undelete_item(actor=admin, kind=Kind.SNAPSHOT, item=monday)
    assert ".cs-trash" in caught.value.remedy
    assert list(driver_for(export).list()) == []
    assert undelete_item(actor=admin, kind=Kind.SNAPSHOT, item=tuesday) == [export.name]
    tuesday.refresh_from_db()
    assert read(admin, Kind.SNAPSHOT, tuesday) == b"of tuesday"


def test_an_upload_that_was_refused_does_not_come_back_as_an_item(export, admin, operator):
    make_account(2)
    with pytest.raises(Invalid, match="cut short"):
        register_upload(
            actor=operator, kind=Kind.VOLUME, zone=export.zone, account_id=2, name="half", filename="disk.raw",
            stream=BytesIO(b"half of it"), size=20,
        )  # fmt: skip
    assert finish_deletes() == 1
    volume = KINDS[Kind.VOLUME].item.objects.get()
    assert list(undeletable(Kind.VOLUME)) == []
    with pytest.raises(Missing, match="never was whole"):
        undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    volume.refresh_from_db()
    assert volume.removed is not None


@pytest.mark.parametrize("older", [0, 1])
@pytest.mark.parametrize("death", ["after the link", "before the rows"])
def test_whoever_died_in_the_middle_repeats_it(export, admin, monkeypatch, death, older):
    from stores.drivers import nfs_files
    from stores.services import undelete

    volume = make_volume([export], name="first")
    if older:
        bury(driver_for(export), KINDS[Kind.VOLUME].file.objects.get().path, b"of an item that had this path before")
    delete(admin, Kind.VOLUME, volume)
    seam, module = ("nfs.undeleted", nfs_files) if death == "after the link" else ("undelete.before-commit", undelete)

    def die(name):
        if name == seam:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "reach", die)
        with pytest.raises(KeyboardInterrupt):
            undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    assert undelete_item(actor=admin, kind=Kind.VOLUME, item=volume) == [export.name]
    volume.refresh_from_db()
    assert read(admin, Kind.VOLUME, volume) == content("first")
    assert driver_for(export).purge_trash(older_than=0) == older


def test_what_came_back_and_is_gone_again_is_not_taken_for_there(export):
    """By hand, past the trash: then the older one is the last that was deleted."""
    driver = driver_for(export)
    bury(driver, "volumes/1/2/disk", b"older")
    driver.put("volumes/1/2/disk", b"newer", metadata={}, token="t")
    driver.delete("volumes/1/2/disk")
    assert (driver.undelete("volumes/1/2"), driver.undelete("volumes/1/2")) == (1, 0)
    Path(driver.path, "volumes/1/2/disk").unlink()
    assert driver.undelete("volumes/1/2") == 1
    with driver.open("volumes/1/2/disk") as reader:
        assert reader.pread(0, 10) == b"older"


def test_what_is_on_one_export_already_comes_back_on_the_other_too(export, admin, tmp_path):
    other = make_store("NFS", zone=make_zone(), folder=tmp_path / "other")
    volume = make_volume([export, other])
    delete(admin, Kind.VOLUME, volume)
    ImageStore.objects.filter(pk=other.pk).update(state=StoreState.DETACHED)
    assert undelete_item(actor=admin, kind=Kind.VOLUME, item=volume) == [export.name]
    ImageStore.objects.filter(pk=other.pk).update(state=StoreState.ATTACHED)
    volume.refresh_from_db()
    assert undelete_item(actor=admin, kind=Kind.VOLUME, item=volume) == [other.name]
    with pytest.raises(Conflict, match="not deleted"):
        undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)


def test_nothing_comes_back_while_it_is_still_going(export, admin):
    volume = make_volume([export])
    delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    with pytest.raises(Conflict, match="just being deleted"):
        undelete_item(actor=admin, kind=Kind.VOLUME, item=volume)
