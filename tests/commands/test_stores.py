"""The commands about zones and stores: one service call each, with exit codes that a script can act upon."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.db import DataError

from cloudstorage import secrets
from stores.models import ImageStore, Volume, Zone
from stores.services import image_stores, scan
from tests.factories import content, make_store, make_volume, make_zone

pytestmark = [pytest.mark.db, pytest.mark.django_db]

SECRET = "hunter2-Zq7"


@contextmanager
def ring_of(settings: Any, path: Path) -> Iterator[None]:
    """The process as it is when it was started with this key ring."""
    settings.SECRET_KEYS_FILE = str(path)
    secrets._ring.cache_clear()
    image_stores._forget_drivers()
    try:
        yield
    finally:
        secrets._ring.cache_clear()


def objects(*more: str) -> list[str]:
    return ["store_add", "--provider", "Memory", "--url", "memory://objects", "--name", "objects", *more]


def test_zone_is_added_once(run):
    assert run("zone_add", "east", "--json").json() == {"id": str(Zone.objects.get().uuid), "name": "east"}
    again = run("zone_add", "east")
    assert again.code == 4
    assert "already a zone" in again.err
    assert "-> Choose another name." in again.err
    assert run("zone_add", " ").code == 2


def test_what_a_database_cannot_keep_is_a_usage_error(run, monkeypatch):
    def fail(**_: object) -> None:
        raise DataError("value too long for type character varying(255)")

    monkeypatch.setattr("stores.management.commands.zone_add.add_zone", fail)
    ended = run("zone_add", "east")
    assert (ended.code, "cannot be kept" in ended.err, "varying" in ended.err) == (2, True, False)


def test_store_is_added_with_its_secret_from_a_file(run, memory_store, tmp_path):
    memory_store.password = SECRET
    (tmp_path / "secret").write_text(SECRET + "\n")
    ended = run(*objects("--secret-file", f"password={tmp_path / 'secret'}", "--json"))
    assert ended.code == 0, ended.err
    store = ImageStore.objects.get()
    assert ended.json()["id"] == str(store.uuid)
    assert image_stores.details_of(store, reveal=True) == {"password": SECRET}
    assert SECRET not in ended.out + ended.err


def test_store_is_added_with_its_secret_from_the_environment_or_standard_input(run, memory_store, monkeypatch):
    memory_store.password = SECRET
    monkeypatch.setenv("STORE_PASSWORD", SECRET)
    assert run(*objects("--secret-env", "password=STORE_PASSWORD", "--dry-run")).code == 0
    assert not ImageStore.objects.exists()
    monkeypatch.setattr("sys.stdin", io.StringIO(SECRET + "\n"))
    ended = run(*objects("--secret-file", "password=-"))
    assert ended.code == 0, ended.err
    assert "multipart" in ended.out
    assert ImageStore.objects.count() == 1


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (["--detail", f"password={SECRET}"], "password"),
        (["--detail", "password"], "detail"),
        (["--secret-file", "password=/does/not/exist"], "password"),
        (["--secret-env", "password=NOT_SET_ANYWHERE"], "password"),
        (["--detail", "colour=red"], "colour"),
    ],
)
def test_secret_on_the_command_line_or_out_of_reach_is_refused_and_nothing_saved(run, memory_store, more, field):
    ended = run(*objects(*more))
    assert ended.code == 2
    assert f"[{field}]" in ended.err
    assert SECRET not in ended.err
    assert not ImageStore.objects.exists()


def test_secret_file_that_is_no_text_is_refused(run, memory_store, tmp_path):
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    ended = run(*objects("--secret-file", f"password={tmp_path / 'key'}"))
    assert (ended.code, "is not text" in ended.err, ImageStore.objects.exists()) == (2, True, False)


def test_steps_are_told_and_the_exit_code_is_4_when_the_probe_finds_a_blocker(run, memory_store):
    memory_store.password = SECRET
    ended = run(*objects())
    assert ended.code == 4
    assert "blocker" in ended.err
    told = run(*objects("--json"))
    assert json.loads(told.err)["error"] == "blocked"
    assert [step["name"] for step in json.loads(told.err)["findings"] if step["status"] == "blocker"] == ["reach"]
    assert run(*objects("--dry-run")).code == 4
    assert not ImageStore.objects.exists()


@pytest.mark.parametrize(
    ("args", "code", "field"),
    [
        (["--provider", "Ceph", "--url", "x"], 2, "provider"),
        (["--provider", "NFS", "--url", "nfs://localhost/x"], 2, "zone"),
        (["--provider", "NFS", "--url", "nfs://localhost/x", "--zone", "nowhere"], 3, "zone"),
        (["--provider", "Memory", "--url", "memory://x", "--zone", "east"], 2, "zone"),
        (["--provider", "Memory", "--url", "x"], 2, "url"),
        (["--provider", "Memory", "--url", "memory://x", "--name", "taken"], 4, "name"),
    ],
)
def test_exit_code_and_field_tell_what_is_wrong(run, memory_store, args, code, field):
    make_zone("east")
    make_store(name="taken")
    ended = run("store_add", *args)
    assert (ended.code, f"[{field}]" in ended.err, "->" in ended.err) == (code, True, True)
    assert ImageStore.objects.count() == 1


def test_missing_argument_is_a_usage_error(run):
    assert run("store_add").code == 2
    assert run("store_add", "--provider", "NFS", "--role", "King").code == 2


def test_stores_are_listed_with_what_is_on_them(run, memory_store):
    store = make_store(name="objects")
    make_volume([store], size=2048)
    listed = run("store_list").out
    assert "objects" in listed
    assert "2.0 KiB" in listed
    found = run("store_list", "--json").json()
    assert (found[0]["name"], found[0]["volumes"], found[0]["bytes"], found[0]["zone"]) == ("objects", 1, 2048, None)


def test_store_is_checked_by_name_or_uuid(run, memory_store):
    store = make_store(name="objects")
    assert run("store_check", "objects").code == 0
    assert run("store_check", str(store.uuid), "--json").json()["name"] == "objects"
    memory_store.available = False
    ended = run("store_check", "objects")
    assert (ended.code, "blocker" in ended.out) == (4, True)
    missing = run("store_check", "other")
    assert (missing.code, "objects" in missing.err) == (3, True)


def test_export_is_scanned_and_its_drift_reported_by_name(run, memory_store, tmp_path):
    make_store("NFS", name="nfs", zone=make_zone("east"), folder=tmp_path / "export")
    where = tmp_path / "export/volumes/2/7"
    where.mkdir(parents=True)
    (where / "disk.raw").write_bytes(content("disk", 4096))
    (tmp_path / "export/strange.txt").write_text("?")
    told = run("store_scan", "nfs")
    assert told.code == 0, told.err
    assert "found 1 volume: 1 files, 4.0 KiB" in told.out
    assert "strange.txt" in told.out
    report = run("store_scan", "nfs", "--json").json()
    assert (report["adopted"], report["unchanged"], report["unknown"]["count"]) == (0, 1, 1)
    assert Volume.objects.count() == 1


def test_scan_that_waits_is_cancelled_and_keeps_the_next_one_no_longer(run, memory_store, operator):
    store = make_store(name="objects")
    assert run("store_scan", "objects", "--cancel").code == 4
    asked = scan.request_scan(actor=operator, store=store)
    assert run("store_scan", "objects").code == 5
    assert run("store_scan", "objects", "--cancel", "--json").json() == {"id": str(asked.uuid), "state": "Cancelled"}
    assert run("store_scan", "objects").code == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"colour": "red"}', None])
def test_catalogue_that_cannot_be_used_is_refused(run, memory_store, tmp_path, text):
    make_store("NFS", name="nfs", zone=make_zone("east"), folder=tmp_path / "export")
    file = tmp_path / "catalogue.json"
    if text is not None:
        file.write_text(text)
    ended = run("store_scan", "nfs", "--catalogue", str(file))
    assert ended.code == 2
    assert "catalogue" in ended.err


def test_scan_of_a_store_that_is_away_may_be_tried_again_later(run, memory_store):
    make_store(name="objects")
    memory_store.available = False
    assert run("store_scan", "objects").code == 5


def test_deleted_volume_is_listed_and_brought_back(run, admin, settings, tmp_path):
    from stores.services.items import delete_item, finish_deletes

    settings.ALLOW_PLAIN_EXPORTS = True
    export = make_store("NFS", name="nfs", zone=make_zone(), folder=tmp_path / "export")
    volume = make_volume([export], name="data")
    delete_item(actor=admin, kind=volume.kind, item=volume)
    finish_deletes()
    assert [item["name"] for item in run("undelete", "volume", "--json").json()["items"]] == ["data"]
    assert str(volume.uuid) in run("undelete", "volume").out
    assert run("undelete", "volume", str(volume.uuid), "--json").json()["stores"] == ["nfs"]
    assert run("undelete", "volume", str(volume.uuid)).code == 4
    assert run("undelete", "template", str(volume.uuid)).code == 3
    assert run("undelete", "volume", "data").code == 2


def test_store_is_changed_and_its_new_secret_is_tried_first(run, memory_store, tmp_path):
    memory_store.password = SECRET
    (tmp_path / "secret").write_text(SECRET)
    assert run(*objects("--secret-file", f"password={tmp_path / 'secret'}")).code == 0
    memory_store.password = "the next one"
    (tmp_path / "wrong").write_text("not this one")
    refused = run("store_update", "objects", "--secret-file", f"password={tmp_path / 'wrong'}")
    assert refused.code in {2, 4}
    assert image_stores.details_of(ImageStore.objects.get(), reveal=True) == {"password": SECRET}
    (tmp_path / "next").write_text("the next one")
    changed = run(
        *("store_update", "objects", "--secret-file", f"password={tmp_path / 'next'}"),
        *("--read-limit", "10M", "--readonly", "--name", "archive", "--json"),
    )
    assert changed.code == 0, changed.err
    store = ImageStore.objects.get()
    assert (store.name, store.readonly, store.read_limit) == ("archive", True, 10_000_000)
    assert image_stores.details_of(store, reveal=True) == {"password": "the next one"}
    assert run("store_update", "archive", "--no-readonly", "--read-limit", "none").code == 0
    store.refresh_from_db()
    assert (store.readonly, store.read_limit) == (False, None)


def test_change_of_nothing_is_refused(run, memory_store):
    assert run(*objects()).code == 0
    refused = run("store_update", "objects")
    assert refused.code == 2
    assert "Nothing was given to change." in refused.err


def test_lost_key_ring_is_mended_by_a_new_one_and_the_secret_entered_again(run, memory_store, tmp_path, settings):
    memory_store.password = SECRET
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "first").write_bytes(Fernet.generate_key())
    (tmp_path / "second").write_bytes(Fernet.generate_key())
    for ring in ("first", "second"):
        (tmp_path / ring).chmod(0o600)
    entered = ("--secret-file", f"password={tmp_path / 'secret'}")
    with ring_of(settings, tmp_path / "first"):
        assert run(*objects(*entered)).code == 0
    with ring_of(settings, tmp_path / "second"):
        refused = run("store_check", "objects")
        assert (refused.code, "Restore the key ring" in refused.err) == (4, True)
        assert run("store_update", "objects", *entered).code == 0
        assert run("store_check", "objects").code == 0


@pytest.mark.parametrize("content", [b"", b"not a key\n"])
def test_damaged_key_ring_is_told_as_such(run, memory_store, tmp_path, settings, content):
    memory_store.password = SECRET
    (tmp_path / "ring").write_bytes(content)
    (tmp_path / "ring").chmod(0o600)
    (tmp_path / "secret").write_text(SECRET)
    with ring_of(settings, tmp_path / "ring"):
        refused = run(*objects("--secret-file", f"password={tmp_path / 'secret'}"))
    assert (refused.code, "is damaged" in refused.err) == (4, True)
