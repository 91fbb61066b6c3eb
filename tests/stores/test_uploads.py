"""A stream of bytes becomes a proven item, or leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import subprocess
from dataclasses import replace
from functools import partial

import pytest
from django.db import OperationalError

from cloudstorage.errors import Conflict, Denied, Invalid, Unreachable
from stores import debris
from stores.images import TemplateProperties
from stores.models import KINDS, Kind, Snapshot, Template, TemplateStoreRef, VolumeStoreRef
from stores.services import holds, inventory, items, uploads
from stores.states import Proof, RefState
from tests import factories
from tests.fakes.memory import MemoryDriver, server_at

pytestmark = [pytest.mark.db, pytest.mark.django_db]

RAW = factories.content("raw", 200_000)


class Trickle(io.RawIOBase):
    """A stream that gives little at a time, as a network does."""

    def __init__(self, data: bytes, *, fail_at: int | None = None) -> None:
        self.rest = data
        self.fail_at = fail_at

    def read(self, size: int = -1) -> bytes:
        if self.fail_at is not None and len(self.rest) <= self.fail_at:
            raise ConnectionResetError("the client went away")
        block, self.rest = self.rest[: min(size, 7777)], self.rest[min(size, 7777) :]
        return block


@pytest.fixture
def zone():
    factories.make_account(2)
    return factories.make_zone("z1")


@pytest.fixture
def export(zone, tmp_path):
    return factories.make_store("NFS", name="nfs1", zone=zone, folder=tmp_path / "export")


@pytest.fixture
def objects(zone):
    return factories.make_store(name="objects")


@pytest.fixture
def small_parts(monkeypatch):
    """Uploads in parts of 64 KiB, so that small tests are multipart."""
    monkeypatch.setattr(uploads, "UNKNOWN_PART_SIZE", 64 * 1024)


def qcow2(folder, name, *, backing=None):
    options = ["-F", "qcow2", "-b", backing] if backing else []
    size = [] if backing else ["1M"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, name, *size], cwd=folder, check=True)
    return (folder / name).read_bytes()


def register(actor, zone, data, **changes):
    stream = data if hasattr(data, "read") else Trickle(data)
    given = {"kind": Kind.VOLUME, "account_id": 2, "name": "up", "filename": "disk.raw", "stream": stream} | changes
    return uploads.register_upload(actor=actor, zone=zone, **given)


def read(actor, kind, item):
    with inventory.open_content(actor=actor, kind=kind, item=item) as content:
        return b"".join(content.chunks())


def nothing_left(kind, store):
    """Nothing readable, nothing held, and after the worker's tick nothing on the store."""
    assert not KINDS[kind].ref.objects.exclude(state=RefState.DESTROYING).exists()
    items.finish_deletes()
    assert not KINDS[kind].item.objects.filter(removed=None).exists()
    assert holds.recount() == []
    server = server_at(store.url)
    assert (server.objects, server.uploads) == ({}, {})


# --- what goes well --------------------------------------------------------------------------------------------------


def test_template_lies_in_upstreams_layout_with_its_properties_when_it_is_uploaded_to_nfs(
    operator, viewer, zone, export, tmp_path
):
    data = qcow2(tmp_path, "debian.qcow2")
    digest = hashlib.sha256(data).hexdigest()
    ref = register(operator, zone, data, kind=Kind.TEMPLATE, filename="debian.qcow2", unique_name="2-1-x", sha256=digest.upper())
    template = Template.objects.get()
    assert (template.format, template.hypervisor_type, template.size) == ("QCOW2", "KVM", 1024 * 1024)
    assert (ref.state, ref.proof, ref.install_path) == (
        RefState.READY,
        Proof.READ_BACK,
        f"template/tmpl/2/{template.upstream_id}",
    )
    folder = tmp_path / "export" / ref.install_path
    assert (folder / "debian.qcow2").read_bytes() == data
    properties = TemplateProperties.from_bytes((folder / "template.properties").read_bytes())
    assert not properties.corrupt
    assert (properties.uniquename, properties.filename, properties.virtualsize) == ("2-1-x", "debian.qcow2", 1024 * 1024)
    assert properties.id == template.upstream_id
    assert {file.proof for file in TemplateStoreRef.objects.get().files.all()} == {Proof.READ_BACK}
    assert read(viewer, Kind.TEMPLATE, template) == data


def test_key_carries_the_unique_name_when_a_template_goes_to_an_object_store(operator, viewer, zone, objects):
    ref = register(operator, zone, RAW, kind=Kind.TEMPLATE, unique_name="2-1-x")
    where = f"template/tmpl/2/{ref.item.upstream_id}/2-1-x"
    assert sorted(server_at(objects.url).objects) == [f"{where}/disk.raw", f"{where}/template.properties"]
    assert (ref.install_path, ref.proof) == (where, Proof.VERIFIED)
    assert ref.files.get(path=f"{where}/disk.raw").sha256 == hashlib.sha256(RAW).hexdigest()
    assert read(viewer, Kind.TEMPLATE, ref.item) == RAW
    metadata = server_at(objects.url).objects[f"{where}/disk.raw"][0].metadata
    assert metadata["cs-uuid"] == str(ref.item.uuid)


@pytest.mark.parametrize("size", [1, 64 * 1024, 64 * 1024 + 1, 128 * 1024, 200_000])
def test_bytes_are_whole_when_an_upload_of_unknown_length_goes_in_parts(operator, viewer, zone, objects, small_parts, size):
    ref = register(operator, zone, RAW[:size])
    assert ref.size == size
    assert read(viewer, Kind.VOLUME, ref.item) == RAW[:size]
    assert not server_at(objects.url).uploads


@pytest.mark.parametrize("size", [1, 64 * 1024, 128 * 1024, 200_000])
def test_parts_too_large_to_be_held_wait_in_a_file(operator, viewer, zone, objects, small_parts, monkeypatch, size):
    monkeypatch.setattr(uploads, "HELD", 1000)
    monkeypatch.setattr(uploads, "BLOCK", 1000)
    monkeypatch.setattr("tests.fakes.memory.MemoryDriver.put", None)
    ref = register(operator, zone, RAW[:size], size=None)
    assert (ref.size, ref.proof, ref.sha256) == (size, Proof.VERIFIED, hashlib.sha256(RAW[:size]).hexdigest())
    assert read(viewer, Kind.VOLUME, ref.item) == RAW[:size]
    assert not server_at(objects.url).uploads


def test_bytes_are_read_back_when_the_export_proves_nothing(operator, viewer, zone, export, small_parts):
    ref = register(operator, zone, RAW)
    assert ref.proof == Proof.READ_BACK
    assert read(viewer, Kind.VOLUME, ref.item) == RAW


def test_snapshot_builds_on_its_parent_when_the_header_names_it(operator, zone, export, tmp_path):
    full = qcow2(tmp_path, "full.qcow2")
    child = qcow2(tmp_path, "child.qcow2", backing="full.qcow2")
    given = {"kind": Kind.SNAPSHOT, "volume_upstream_id": 9}
    parent = register(operator, zone, full, filename="full.qcow2", **given).item
    ref = register(operator, zone, child, filename="child.qcow2", parent=parent, **given)
    assert ref.install_path == "snapshots/2/9/child.qcow2"
    assert (ref.item.parent, ref.item.depth) == (parent, 1)
    assert ref.files.get().backing == "full.qcow2"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"filename": "../disk.raw"}, "filename"),
        ({"filename": "template.properties"}, "filename"),
        ({"filename": ".hidden"}, "filename"),
        ({"filename": ""}, "filename"),
        ({"filename": "x" * 201}, "filename"),
        ({"account_id": 99}, "account"),
        ({"sha256": "xyz"}, "sha256"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"size": 5}, "size"),
        ({"size": 300_000}, "size"),
        ({"filename": "disk.qcow2"}, "filename"),
    ],
)
def test_nothing_is_left_when_an_upload_is_refused(operator, zone, objects, changes, field):
    with pytest.raises(Invalid) as caught:
        register(operator, zone, RAW, **changes)
    assert caught.value.field == field
    assert caught.value.remedy
    nothing_left(Kind.VOLUME, objects)


def test_upload_is_refused_when_the_image_builds_on_another(operator, zone, objects, tmp_path):
    qcow2(tmp_path, "full.qcow2")
    child = qcow2(tmp_path, "child.qcow2", backing="full.qcow2")
    with pytest.raises(Invalid, match="builds on") as caught:
        register(operator, zone, child, filename="child.qcow2")
    assert caught.value.field == "parent"
    nothing_left(Kind.VOLUME, objects)


def test_full_one_is_asked_for_when_the_parent_is_not_where_snapshots_go(operator, zone, export, objects):
    parent = factories.make_chain([export], 1)[0]
    factories.make_promises(objects)
    with pytest.raises(Conflict, match="parent") as caught:
        register(operator, zone, RAW, kind=Kind.SNAPSHOT, volume_upstream_id=1, parent=parent)
    assert "full" in caught.value.remedy
    items.finish_deletes()
    assert Snapshot.objects.filter(removed=None).get() == parent


def test_upload_is_denied_to_a_viewer(viewer, zone, objects):
    with pytest.raises(Denied):
        register(viewer, zone, RAW)
    nothing_left(Kind.VOLUME, objects)


def test_foreign_file_is_not_touched_when_it_lies_where_the_upload_would_go(operator, zone, export, tmp_path):
    folder = tmp_path / "export" / "volumes" / "2" / "1"
    folder.mkdir(parents=True)
    (folder / "disk.raw").write_bytes(b"foreign")
    with pytest.raises(Conflict, match="lies at"):
        register(operator, zone, RAW)
    items.finish_deletes()
    assert (folder / "disk.raw").read_bytes() == b"foreign"


def test_properties_of_another_template_stay_when_its_id_was_taken_for_free(operator, zone, export, tmp_path, monkeypatch):
    folder = tmp_path / "export" / "template" / "tmpl" / "2" / "1"
    folder.mkdir(parents=True)
    (folder / "template.properties").write_bytes(b"foreign")
    data = qcow2(tmp_path, "debian.qcow2")
    given = {"kind": Kind.TEMPLATE, "filename": "debian.qcow2"}
    with pytest.raises(Conflict, match="lies at"):
        register(operator, zone, data, **given)
    items.finish_deletes()
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("template.properties", b"foreign")]
    (folder / "template.properties").rename(tmp_path / "foreign")
    announce = items.announce_file

    def written_meanwhile(kind, ref, path):
        announce(kind, ref, path)
        if path.endswith(".properties"):
            (tmp_path / "export" / path).write_bytes(b"foreign")

    monkeypatch.setattr(items, "announce_file", written_meanwhile)
    with pytest.raises(Conflict, match="lies at"):
        register(operator, zone, data, **given)
    items.finish_deletes()
    left = [path for path in (tmp_path / "export" / "template" / "tmpl" / "2").rglob("*") if path.is_file()]
    assert [(path.name, path.read_bytes()) for path in left] == [("template.properties", b"foreign")]


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_at", [190_000, 10_000])
def test_nothing_is_left_when_the_client_goes_away(operator, zone, objects, small_parts, fail_at):
    with pytest.raises(ConnectionResetError):
        register(operator, zone, Trickle(RAW, fail_at=fail_at))
    nothing_left(Kind.VOLUME, objects)


def test_upload_says_where_room_is_missing_when_a_part_cannot_wait_there(operator, zone, objects, small_parts, monkeypatch):
    monkeypatch.setattr(uploads, "HELD", 1000)
    monkeypatch.setattr("tempfile.TemporaryFile", partial(open, "/dev/full", "r+b", buffering=0))
    with pytest.raises(Conflict, match="No space left") as refusal:
        register(operator, zone, RAW)
    assert "TMPDIR" in refusal.value.remedy
    nothing_left(Kind.VOLUME, objects)


@pytest.mark.parametrize("fail_at", [190_000, 10_000])
def test_nothing_is_left_when_the_client_goes_away_from_an_upload_that_waits_in_files(
    operator, zone, objects, small_parts, monkeypatch, fail_at
):
    monkeypatch.setattr(uploads, "HELD", 1000)
    with pytest.raises(ConnectionResetError):
        register(operator, zone, Trickle(RAW, fail_at=fail_at))
    nothing_left(Kind.VOLUME, objects)


def test_nothing_is_left_when_the_store_receives_other_bytes(operator, zone, objects):
    server_at(objects.url).corrupt = lambda data: data[:-1] + b"?"
    with pytest.raises(Unreachable, match="other bytes"):
        register(operator, zone, RAW)
    server_at(objects.url).corrupt = None
    nothing_left(Kind.VOLUME, objects)


def test_debris_of_a_dead_writer_is_removed_when_it_is_given_up(operator, zone, objects, small_parts, monkeypatch):
    monkeypatch.setattr(items, "give_up", lambda kind, ref: None)
    monkeypatch.setattr("tests.fakes.memory.MemoryDriver.abort_upload", lambda self, upload: None)
    with pytest.raises(ConnectionResetError):
        register(operator, zone, Trickle(RAW, fail_at=10_000))
    monkeypatch.undo()
    assert server_at(objects.url).uploads
    assert VolumeStoreRef.objects.get().state == RefState.CREATING
    items.give_up(Kind.VOLUME, VolumeStoreRef.objects.get())
    nothing_left(Kind.VOLUME, objects)


@pytest.mark.parametrize("tells_tokens", [True, False])
def test_long_upload_goes_on_when_the_reaper_passes_by(
    tells_tokens, operator, viewer, zone, objects, small_parts, settings, monkeypatch
):
    settings.LEASE_SECONDS = 0  # so that every upload is old
    if not tells_tokens:
        told = MemoryDriver.pending_uploads
        monkeypatch.setattr(MemoryDriver, "pending_uploads", lambda self: (replace(pending, token="") for pending in told(self)))

    class Reaping(Trickle):
        def read(self, size: int = -1) -> bytes:
            debris.reap_uploads(objects)
            return super().read(size)

    assert read(viewer, Kind.VOLUME, register(operator, zone, Reaping(RAW)).item) == RAW


def stop_at(monkeypatch, checkpoint: str, error: BaseException) -> None:
    def reach(name: str) -> None:
        if name == checkpoint:
            raise error

    monkeypatch.setattr(items, "reach", reach)


def test_item_stays_when_its_writer_is_told_to_exit_just_after_it_was_finished(operator, viewer, zone, objects, monkeypatch):
    stop_at(monkeypatch, "item.finished", SystemExit())
    with pytest.raises(SystemExit):
        register(operator, zone, RAW)
    monkeypatch.undo()
    items.finish_deletes()
    assert read(viewer, Kind.VOLUME, VolumeStoreRef.objects.get().item) == RAW


def test_nothing_is_left_when_the_database_refuses_to_finish_the_item(operator, zone, objects, monkeypatch):
    stop_at(monkeypatch, "item.before-commit", OperationalError("the connection was lost"))
    with pytest.raises(OperationalError):
        register(operator, zone, RAW)
    monkeypatch.undo()
    nothing_left(Kind.VOLUME, objects)


def test_upload_ends_quietly_when_the_item_is_deleted_while_it_is_written(operator, admin, zone, objects):
    class Deleting(Trickle):
        def read(self, size: int = -1) -> bytes:
            if len(self.rest) == len(RAW):
                items.delete_item(actor=admin, kind=Kind.VOLUME, item=VolumeStoreRef.objects.get().item)
            return super().read(size)

    with pytest.raises(Conflict, match="somebody else changed"):
        register(operator, zone, Deleting(RAW))
    nothing_left(Kind.VOLUME, objects)
