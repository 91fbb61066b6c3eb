"""Backup of a busy installation, and the way back: read-only, reconciled with the stores, then open."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cloudstorage import backup
from cloudstorage.errors import Conflict, Denied, Invalid
from cloudstorage.models import Installation
from migration import doctor, recovery, rereading, verify
from migration.models import Decommission, Verification
from stores.copier import Stopped
from stores.models import Volume, VolumeStoreRef
from stores.services import holds
from stores.services.image_stores import driver_for
from stores.states import Proof, Role, StoreState
from tests import factories
from tests.fakes import memory
from tests.servers.process import REPOSITORY

pytestmark = pytest.mark.db


@pytest.fixture
def archive(db, tmp_path, settings) -> Path:
    settings.SECRET_KEYS_FILE = str(tmp_path / "keys")
    Path(settings.SECRET_KEYS_FILE).write_bytes(b"KEY-OF-THE-RING\n")
    path = tmp_path / "cloud.backup"
    backup.write(path, passphrase="secret")
    return path


def test_the_key_ring_is_in_the_archive_only_under_the_passphrase(archive, tmp_path):
    assert archive.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(archive) as opened:
        content = b"".join(opened.read(name) for name in opened.namelist())
    assert b"KEY-OF-THE-RING" not in content
    assert backup.verify(archive, passphrase="secret").has_key_ring
    with pytest.raises(Invalid, match="does not open") as refused:
        backup.verify(archive, passphrase="guess")
    assert refused.value.field == "passphrase"
    bare = tmp_path / "bare.backup"
    assert not backup.write(bare, passphrase="").has_key_ring
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_backup_that_was_killed_leaves_nothing_that_could_be_taken_for_one(tmp_path, migrated):
    environment = {"DATABASE_URL": migrated.sqlite(tmp_path / "cloud.sqlite3"), "CLOUDSTORAGE_DATA_DIR": str(tmp_path)}
    path = tmp_path / "cloud.backup"

    def command(*words: str, **more: str) -> int:
        line = [sys.executable, "manage.py", *words]
        return subprocess.run(
            line, cwd=REPOSITORY, env=os.environ | environment | more, check=False, capture_output=True
        ).returncode

    assert command("backup", str(path), "--without-key-ring", CLOUDSTORAGE_CRASH_AT="backup.written") == -9
    assert not path.exists()
    assert command("backup", str(path), "--without-key-ring") == 0
    assert [found.name for found in tmp_path.glob(".*backup*")] == []
    assert command("restore", str(path), "--check") == 0
    assert command("restore", str(path)) == 4, "that database is not empty: it has an audit trail"


def test_a_disk_that_is_full_ends_a_backup_in_words_and_leaves_nothing(db, tmp_path, monkeypatch):
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Invalid, match=r"cannot be written: No space left on device\. No backup was made") as refused:
        backup.write(tmp_path / "cloud.backup", passphrase="")
    assert "room" in refused.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_backup_is_never_overwritten(archive):
    before = archive.read_bytes()
    with pytest.raises(Conflict, match="not overwritten"):
        backup.write(archive, passphrase="secret")
    assert archive.read_bytes() == before


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def change_a_row(path: Path) -> None:
    """Rewrites the archive with one row less: its own checksums fit, the manifest's do not."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name, content = next((name, content) for name, content in members.items() if name.startswith("tables/") and content)
    members[name] = b"".join(content.splitlines(keepends=True)[1:])
    with zipfile.ZipFile(path, "w") as new:
        for member, written in members.items():
            new.writestr(member, written)


def flip_a_byte(path: Path) -> None:
    with zipfile.ZipFile(path) as opened:
        info = max(opened.infolist(), key=lambda member: member.compress_size)
    with path.open("r+b") as file:
        file.seek(info.header_offset + 200)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.parametrize("damage", [cut_off, change_a_row, flip_a_byte])
def test_a_damaged_backup_is_refused_before_anything_is_changed(archive, damage):
    damage(archive)
    with pytest.raises(Invalid, match="damaged"):
        backup.restore(archive, passphrase="secret", inside=lambda: pytest.fail("it was loaded"))


def test_a_database_in_use_is_never_restored_over(archive, django_user_model):
    django_user_model.objects.create_user("somebody")
    with pytest.raises(Conflict, match="not empty"):
        backup.restore(archive, passphrase="secret", inside=lambda: pytest.fail("it was loaded"))


def test_another_key_ring_is_never_replaced(archive, settings):
    Path(settings.SECRET_KEYS_FILE).write_bytes(b"ANOTHER\n")
    with pytest.raises(Conflict, match="another key ring"):
        backup.restore(archive, passphrase="secret", inside=lambda: pytest.fail("it was loaded"))
    assert Path(settings.SECRET_KEYS_FILE).read_bytes() == b"ANOTHER\n"


# --- reconciling -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def restored(db, settings):
    """A database that was just restored, and its object store with thirty items; `lose` takes some from the store."""
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | factories.MEMORY
    memory.SERVERS.clear()
    store = factories.make_store("Memory", name="objects")
    volumes = [factories.make_volume([store], size=50, proof=Proof.VERIFIED) for _ in range(30)]
    Installation.objects.update(read_only=backup.RESTORED)

    def lose(count: int) -> None:
        for volume in volumes[:count]:
            driver_for(store).delete(f"volumes/2/{volume.upstream_id}/{volume.uuid}.raw")

    yield store, lose
    memory.SERVERS.clear()


def living() -> int:
    return Volume.objects.filter(removed=None).count()


def test_what_vanished_since_the_backup_is_written_off_and_the_database_opens(restored, admin):
    _, lose = restored
    lose(3)
    found = recovery.reconcile(actor=admin)
    assert (found.opened, found.stores["objects"]["vanished"], living()) == (True, 3, 27)
    assert Installation.why_read_only() == ""
    with pytest.raises(Conflict, match="nothing to reconcile"):
        recovery.reconcile(actor=admin)


def test_a_restore_that_died_before_it_fenced_the_former_life_is_fenced_before_anything_opens(restored, admin):
    Installation.objects.update(read_only=backup.LOADED)
    late = factories.make_worker()
    found = recovery.reconcile(actor=admin)
    late.refresh_from_db()
    assert (found.opened, late.stopped is not None) == (True, True)
    Installation.objects.update(read_only=backup.RESTORED)
    present = factories.make_worker()
    recovery.reconcile(actor=admin)
    present.refresh_from_db()
    assert present.stopped is None


def test_a_verification_of_the_former_life_writes_nothing_into_the_new_one(restored, admin):
    store, _ = restored
    Installation.objects.update(read_only=backup.LOADED)
    late = Verification.objects.create(store=store, actor="test", state="Running", epoch=3, lease_until="2100-01-01T00:00:00Z")
    recovery.reconcile(actor=admin)
    with pytest.raises(Stopped):
        rereading.save(late, [{"path": "a", "problem": "missing", "expected": "", "found": ""}])
    for _ in range(3):  # as often as it may have been taken up in the former life
        Verification.objects.filter(pk=late.pk).update(lease_until=None, state="Running")
        verify.run(Verification.objects.get(pk=late.pk))
        assert not rereading.ours(late).exists()
    late.refresh_from_db()
    assert (late.state, late.findings) == ("Finished", [])


def test_so_much_that_it_may_be_an_accident_is_written_off_only_when_somebody_says_so(restored, admin):
    _, lose = restored
    lose(25)
    found = recovery.reconcile(actor=admin)
    assert (found.opened, found.undecided, living()) == (False, ["objects"], 30)
    assert [check.remedy for check in doctor.examine(actor=admin) if check.name == "read-only"] == [
        "manage.py restore --reconcile"
    ]
    found = recovery.reconcile(actor=admin, accept_vanished=["objects"])
    assert (found.opened, living()) == (True, 5)


def test_nothing_is_written_off_while_a_store_does_not_answer(restored, admin):
    store, lose = restored
    lose(3)
    factories.make_store("Memory", name="silent")
    memory.server_at("memory://silent").marker = None
    found = recovery.reconcile(actor=admin)
    assert (found.opened, found.unreachable, living()) == (False, ["silent"], 30)
    assert store.name not in found.unreachable


def test_an_export_that_was_retired_since_the_backup_does_not_keep_the_database_closed(restored, admin, settings, tmp_path):
    settings.ALLOW_PLAIN_EXPORTS = True
    folder = tmp_path / "export"
    export = factories.make_store("NFS", name="retired", zone=factories.make_zone(), folder=folder, role=Role.IMAGE_CACHE)
    objects, _ = restored
    proven = factories.make_volume([export, objects], proof=Proof.VERIFIED)
    only = factories.make_volume([export])
    reading = Verification.objects.create(store=export, actor="ada", mode=Verification.RETIRE, state="Running")
    Decommission.objects.create(store=export, verification=reading, actor="ada", former_readonly=False)
    shutil.rmtree(folder)
    found = recovery.reconcile(actor=admin)
    assert (found.opened, found.unreachable, living()) == (False, ["retired"], 32)

    found = recovery.reconcile(actor=admin, gone=["retired"])
    assert (found.opened, found.gone, found.stores["retired"]["kept"], living()) == (True, ["retired"], 1, 32)
    assert [ref.store.name for ref in VolumeStoreRef.objects.filter(item=proven, state="Ready")] == ["objects"]
    assert [ref.store.name for ref in VolumeStoreRef.objects.filter(item=only, state="Ready")] == ["retired"]
    assert holds.recount() == []
    assert Decommission.objects.get().state == "Cancelled", "what was under way in the backup"

    Installation.objects.update(read_only=backup.RESTORED)
    VolumeStoreRef.objects.filter(item=only).update(state="Destroyed")
    assert recovery.reconcile(actor=admin, gone=[str(export.uuid)]).opened
    export.refresh_from_db()
    assert export.state == StoreState.REMOVED


def test_a_store_that_answers_is_compared_whoever_calls_it_gone(restored, admin):
    store, lose = restored
    lose(3)
    found = recovery.reconcile(actor=admin, gone=[store.name])
    assert (found.gone, found.stores["objects"]["vanished"], living()) == ([], 3, 27)


def test_only_an_administrator_restores(restored, operator):
    with pytest.raises(Denied):
        recovery.reconcile(actor=operator)
