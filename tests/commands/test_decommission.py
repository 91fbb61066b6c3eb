"""Retiring a store from the command line, and checking its report without the product and with it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import uuid

import pytest

from migration import decommission
from migration.models import Decommission, RetiredFile, Verification
from stores.models import KINDS, ImageStore
from stores.states import StoreState
from tests.fakes.memory import server_at
from tests.migration.retiring import move_all, ready_to_retire

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def filled(region):
    region.template("web", "east", "west", hypervisor_type="KVM")
    full = region.snapshot("full", "east")
    region.snapshot("delta", "east", parent=full)
    region.volume("data", "east")
    return region


def fetch(folder) -> None:
    """The bucket's content, as any client would fetch it."""
    for key, (_, data) in server_at("memory://objects").objects.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_refused_with_the_list_and_exit_code_4(run, filled):
    move_all(filled)
    for arguments in (["--dry-run"], ["--yes"]):
        ended = run("store_decommission", "nfs-east", *arguments)
        assert ended.code == 4
        assert "the originals on nfs-east are the way back" in ended.err
        assert "store_add --role ImageCache" in ended.err
    planned = run("store_decommission", "nfs-east", "--dry-run", "--json")
    assert [found["code"] for found in planned.json()["blockers"]] == ["uncommitted", "last-staging-store"]
    assert not Decommission.objects.exists()
    assert run("store_decommission", "nfs-nowhere").code == 3
    assert run("store_decommission", "nfs-east", "--status").code == 3


def test_asks_before_it_begins(run, filled, monkeypatch):
    ready_to_retire(filled)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    ended = run("store_decommission", "nfs-east")
    assert (ended.code, "--yes" in ended.err) == (2, True)
    assert "nothing stands against" in run("store_decommission", "nfs-east", "--dry-run").out
    assert not Decommission.objects.exists()


def test_from_the_request_to_the_last_file(run, filled, tmp_path):
    store = ready_to_retire(filled)
    (filled.folder("east") / "notes.txt").write_bytes(b"of somebody")
    waiting = run("store_decommission", "nfs-east", "--yes", "--wait")
    assert waiting.code == 4
    assert "notes.txt" in waiting.out
    spelled = waiting.out.partition("--acknowledge ")[2].split()[0]
    assert run("store_decommission", "nfs-east", "--report", str(tmp_path)).code == 3, "nothing is signed yet"
    assert run("store_decommission", "nfs-east", "--acknowledge", "many").code == 2
    assert run("store_decommission", "nfs-east", "--acknowledge", f"2:{spelled.partition(':')[2]}").code == 4
    done = run("store_decommission", "nfs-east", "--acknowledge", spelled, "--wait", "--json")
    assert (done.code, done.json()["state"], done.json()["totals"]["files"]) == (0, "Retired", 4)
    assert ImageStore.objects.get(pk=store.pk).state == StoreState.REMOVED

    written = run("store_decommission", str(store.uuid), "--report", str(tmp_path / "report"), "--json").json()["files"]
    found = json.loads((tmp_path / "report" / "retired-nfs-east.json").read_text())
    rows = list(csv.DictReader((tmp_path / "report" / "retired-nfs-east.csv").read_text().splitlines()))
    assert len(written) == 3
    assert len(found["items"]) == len(rows) - 1 == found["end"]["files"] == 4
    assert (rows[-1]["original"], rows[-1]["accepted_by"] != "") == ("notes.txt", True)
    assert {(row["store_url"], row["accepted_by"]) for row in rows[:-1]} == {("memory://objects", "")}
    for item, row in zip(found["items"], rows[:-1], strict=True):
        assert (row["sha256"], row["key"], row["proof"]) == (item["sha256"], item["key"], "verified")
        assert None not in item.values()
    assert {key: found["retired"][key] for key in ("name", "zone", "provider")} == {
        "name": "nfs-east",
        "zone": "east",
        "provider": "NFS",
    }

    left = run("store_decommission", "nfs-east", "--delete-files", "--yes", "--wait", "--json").json()
    assert (left["state"], left["files_deleted"], left["files_left"]) == ("InTrash", 4, 0)


def test_report_is_checked_by_sha256sum_and_by_us_from_the_file_alone(run, filled, tmp_path):
    ready_to_retire(filled)
    assert run("store_decommission", "nfs-east", "--yes", "--wait").code == 0
    run("store_decommission", "nfs-east", "--report", str(tmp_path / "report"))
    sums, as_json = tmp_path / "report" / "SHA256SUMS", tmp_path / "report" / "retired-nfs-east.json"
    fetch(tmp_path / "fetched")
    checked = subprocess.run(
        ["sha256sum", "-c", str(sums)], cwd=tmp_path / "fetched", capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout.count(": OK")) == (0, 4), checked.stderr

    for models in KINDS.values():  # no row is needed but the store's own
        models.ref.objects.all().delete()
    RetiredFile.objects.all().delete()
    Decommission.objects.all().delete()
    Verification.objects.all().delete()
    for path in (sums, as_json):
        ended = run("migration_verify", "--report", str(path), "--json")
        assert (ended.code, ended.json()["files"], ended.json()["findings_count"]) == (0, 4, 0)
    assert not Verification.objects.exists()

    server = server_at("memory://objects")
    key = json.loads(as_json.read_text())["items"][2]["key"]
    info, data = server.objects[key]
    server.objects[key] = (info, bytes([data[0] ^ 1]) + data[1:])
    for path in (sums, as_json):
        ended = run("migration_verify", "--report", str(path))
        assert ended.code == 10
        assert f"content differs: {key}" in ended.out
    shutil.rmtree(tmp_path / "fetched")
    fetch(tmp_path / "fetched")
    checked = subprocess.run(
        ["sha256sum", "-c", str(sums)], cwd=tmp_path / "fetched", capture_output=True, text=True, check=False
    )
    assert (checked.returncode, f"{key}: FAILED" in checked.stdout) == (1, True)


def test_report_says_nothing_of_a_store_that_it_does_not_name(run, filled, tmp_path):
    ready_to_retire(filled)
    run("store_decommission", "nfs-east", "--yes", "--wait")
    run("store_decommission", "nfs-east", "--report", str(tmp_path))
    path, objects = tmp_path / "retired-nfs-east.json", ImageStore.objects.get(scope="REGION")
    path.write_text(path.read_text().replace(str(objects.uuid), str(uuid.uuid4())))  # the database was rebuilt since
    assert run("migration_verify", "--report", str(path), "--json").json()["files"] == 4

    first, rest = path.read_text().split("\n", 1)
    header = json.loads(first.removesuffix(', "items": [') + "}")
    header["stores"].append({"name": "second", "id": str(uuid.uuid4()), "provider": "Memory", "url": "memory://second"})
    path.write_text(json.dumps(header)[:-1] + ', "items": [\n' + rest)
    ended = run("migration_verify", "--report", str(path))
    assert (ended.code, "second (memory://second), which is no store of this cloud" in ended.err) == (3, True)
    ended = run("migration_verify", "--report", str(path), "--store", "cache-east")
    assert (ended.code, "none of its files that it is on cache-east" in ended.err) == (2, True)
    assert run("migration_verify", "--report", str(path), "--store", "objects", "--json").json()["files"] == 4


def test_report_that_is_cut_off_or_none_at_all_is_refused(run, filled, tmp_path):
    ready_to_retire(filled)
    run("store_decommission", "nfs-east", "--yes", "--wait")
    run("store_decommission", "nfs-east", "--report", str(tmp_path))
    whole = (tmp_path / "retired-nfs-east.json").read_text().splitlines(keepends=True)
    broken = {
        "cut": "".join(whole[:3]),
        "without a line": "".join([whole[0], *whole[2:]]),
        "another file": '{"format": "something"}\n',
        "no sums": "hello\n",
        "no JSON": "".join([whole[0], "{]\n", *whole[2:]]),
    }
    for name, text in broken.items():
        path = tmp_path / name
        path.write_text(text)
        ended = run("migration_verify", "--report", str(path))
        assert (ended.code, "is not the report of a retired store" in ended.err) == (2, True), name
    assert run("migration_verify", "--report", str(tmp_path / "none")).code == 2

    lines = [line.removesuffix(",\n") for line in whole[1:4]]
    edited = [{**json.loads(lines[0]), "size": None}, {}, {"key": json.loads(lines[2])["key"]}]
    (tmp_path / "edited").write_text("".join([whole[0], *(json.dumps(line) + ",\n" for line in edited), *whole[4:]]))
    ended = run("migration_verify", "--report", str(tmp_path / "edited"))
    assert ended.code == 10
    assert [f"not a line of a report: line {n} of the report" in ended.out for n in range(1, 6)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_difference_ends_it_with_exit_code_10_and_its_name(run, filled):
    store = ready_to_retire(filled)
    file = KINDS["volume"].file.objects.get(ref__store=store)
    os.truncate(filled.folder("east") / file.path, 3)
    ended = run("store_decommission", "nfs-east", "--yes", "--wait")
    assert ended.code == 10
    assert f"content differs: {file.path}" in ended.out
    assert run("store_decommission", "nfs-east", "--status").code == 10


def test_cancel_and_look_again(run, filled):
    store = ready_to_retire(filled)
    (filled.folder("east") / "notes.txt").write_bytes(b"x")
    assert run("store_decommission", "nfs-east", "--yes", "--wait").code == 4
    (filled.folder("east") / "notes.txt").unlink()
    assert run("store_decommission", "nfs-east", "--cancel", "--json").json()["state"] == "Cancelled"
    assert run("store_decommission", "nfs-east", "--look-again").code == 4
    assert decommission.plan(actor=filled.admin, store=ImageStore.objects.get(pk=store.pk)) == []
    assert run("store_decommission", "nfs-east", "--yes", "--wait").code == 0


def test_report_spells_odd_names_as_sha256sum_does(run, filled, tmp_path):
    filled.snapshot("back\\slash", "east")
    filled.snapshot("=HYPERLINK(1)", "east")
    ready_to_retire(filled)
    assert run("store_decommission", "nfs-east", "--yes", "--wait").code == 0
    run("store_decommission", "nfs-east", "--report", str(tmp_path / "report"))
    sums = tmp_path / "report" / "SHA256SUMS"
    fetch(tmp_path / "fetched")
    subprocess.run(["sha256sum", "--quiet", "-c", str(sums)], cwd=tmp_path / "fetched", check=True)
    assert "back\\\\slash" in sums.read_text()
    table = (tmp_path / "report" / "retired-nfs-east.csv").read_text()
    assert ",'=HYPERLINK(1)," in table, "no spreadsheet takes a name for a formula"
    items = json.loads((tmp_path / "report" / "retired-nfs-east.json").read_text())["items"]
    assert "=HYPERLINK(1)" in {item["name"] for item in items}
    assert run("migration_verify", "--report", str(sums), "--json").json()["findings_count"] == 0
