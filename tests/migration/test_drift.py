"""What somebody changed behind our back is found: by the daily checks and by migration_verify, on every kind of store."""

from __future__ import annotations

import io
import json
import os
import random
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.errors import Conflict
from migration import listing, rereading, verify
from migration.models import Decommission, Verification
from stores.models import KINDS, ImageStore, Kind, Snapshot, Worker, WorkerReach
from stores.services import image_stores, transfers
from stores.services.image_stores import driver_for
from stores.states import Proof, RefState, Role, StoreState
from stores.worker import Pump
from tests import factories
from tests.drivers.s3_cases import details_of, new_bucket
from tests.fakes import memory
from tests.migration import retiring

pytestmark = [pytest.mark.db, pytest.mark.django_db]

FLIPPED = "content differs"


@pytest.fixture(autouse=True)
def _providers(settings):
    settings.STORE_DRIVERS = settings.STORE_DRIVERS | factories.MEMORY
    settings.ALLOW_PLAIN_EXPORTS = settings.OUTBOUND_ALLOW_LOOPBACK = True
    yield
    memory.SERVERS.clear()


def daily() -> dict[tuple[str, str], list[dict]]:
    """What a day's checks find, by store and mode."""
    make_stores_older()
    verify.schedule_drift_checks()
    found = {}
    for row in Verification.objects.filter(state="Queued").order_by("pk"):
        verify.run(row)
        row.refresh_from_db()
        assert row.state == "Finished"
        found[row.store.name, row.mode] = row.findings
    return found


def make_stores_older() -> None:
    ImageStore.objects.update(created=timezone.now() - timedelta(days=1))


def by_command(store: ImageStore, *options: str) -> list[str]:
    """The problems that `migration_verify` tells."""
    out = io.StringIO()
    with suppress(SystemExit):
        call_command("migration_verify", "--store", store.name, "--wait", "--json", *options, stdout=out)
    return [finding["problem"] for finding in json.loads(out.getvalue())["findings"]]


def flip(path: Path) -> None:
    """One bit of a file, with its modification time put back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def in_nfs(request, admin, tmp_path):
    """An original that we never hashed; its proven copy tells what it must be."""
    store = factories.make_store("NFS", name="drifting", zone=factories.make_zone(), folder=tmp_path / "export")
    ImageStore.objects.filter(pk=store.pk).update(scanned_at=timezone.now())
    volume = factories.make_volume([store])
    copy = KINDS[Kind.VOLUME].ref.objects.get(item=volume)
    path = copy.files.get().path
    objects = factories.make_store("Memory", name="objects")
    content = factories.content(volume.name)
    factories.make_ref(Kind.VOLUME, volume, objects, copy.install_path, {path: content}, proof=Proof.VERIFIED)
    return store, lambda: flip(tmp_path / "export" / path)


def in_s3(request, admin, tmp_path):
    server = request.getfixturevalue("moto_server")
    store = image_stores.add_store(
        actor=admin, name="drifting", provider="S3", url="", details=details_of(server, new_bucket(server))
    )
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    path = KINDS[Kind.VOLUME].file.objects.get(ref__item=volume).path
    content = bytearray(factories.content(volume.name))
    content[2500] ^= 1
    return store, lambda: driver_for(store).put(path, bytes(content), metadata={}, token="")


def in_swift(request, admin, tmp_path):
    """On the disk below Swift: its listing cannot know."""
    server = request.getfixturevalue("swift_server")
    details = {"username": server.username, "key": server.key, "container": f"images-{uuid.uuid4()}"}
    store = image_stores.add_store(actor=admin, name="drifting", provider="Swift", url=server.auth_url, details=details)
    export = factories.make_store("NFS", name="export", zone=factories.make_zone(), folder=tmp_path, role=Role.IMAGE_CACHE)
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    path = KINDS[Kind.VOLUME].file.objects.get(ref__item=volume).path
    factories.make_ref(Kind.VOLUME, volume, export, path.rpartition("/")[0], {path: factories.content(volume.name)})
    content = factories.content(volume.name)

    def damage() -> None:
        (path,) = (found for found in (server.directory / "devices").rglob("*.data") if found.read_bytes() == content)
        flip(path)

    return store, damage


@pytest.mark.live
@pytest.mark.parametrize(
    ("place", "listed", "outcome", "state"),
    [
        (in_nfs, [FLIPPED], "set aside", RefState.FAILED),
        (in_s3, [FLIPPED], "only copy", RefState.FAILED),
        (in_swift, [], "promised", RefState.PROMISED),
    ],
)
def test_a_bit_flipped_behind_our_back_is_found_on_every_kind_of_store(
    request, admin, operator, tmp_path, place, listed, outcome, state
):
    store, damage = place(request, admin, tmp_path)
    found = daily()
    assert found["drifting", "listing"] == found["drifting", "content"] == []
    assert by_command(store) == []
    Verification.objects.update(created=timezone.now() - timedelta(days=2))
    damage()
    found = daily()
    assert [finding["problem"] for finding in found["drifting", "listing"]] == listed
    told = found["drifting", "listing"] or found["drifting", "content"]
    assert [(finding["problem"], finding["outcome"]) for finding in told] == [(FLIPPED, outcome)]
    assert told[0]["remedy"]
    ref = KINDS[Kind.VOLUME].ref.objects.get(store=store)
    assert ref.state == state
    assert by_command(store, "--listing") == []
    if state == RefState.PROMISED:
        copy_anew(ref, operator)
        assert by_command(store) == []
    else:
        assert by_command(store) == [FLIPPED], "it is said again until it is mended"


def copy_anew(ref, operator) -> None:
    """By a worker, from the export, over what the server has put aside."""
    worker = Worker.objects.create(hostname="here", pid=1)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=ref.item)
    assert Pump(worker.pk, slots=1).run() == 1
    ref.refresh_from_db()
    assert ref.state == RefState.READY


def test_checks_are_scheduled_once_a_day_within_the_budget(settings, tmp_path):
    store = factories.make_store("Memory", name="objects")
    for _ in range(3):
        factories.make_volume([store], size=5000, proof=Proof.VERIFIED)
    unscanned = factories.make_store("NFS", zone=factories.make_zone(), folder=tmp_path / "export", role=Role.IMAGE_CACHE)
    settings.REHASH_BYTES_PER_DAY = 1500
    verify.schedule_drift_checks()
    assert not Verification.objects.exists()
    make_stores_older()
    verify.schedule_drift_checks()
    verify.schedule_drift_checks()
    rows = Verification.objects.order_by("pk").values_list("store__name", "mode", "sample_percent")
    assert list(rows) == [("objects", "listing", 100), ("objects", "content", 10)]
    assert not unscanned.verifications.exists()
    settings.REHASH_BYTES_PER_DAY = 0
    Verification.objects.update(created=timezone.now() - timedelta(days=2), state="Finished")
    verify.schedule_drift_checks()
    assert [row.mode for row in Verification.objects.order_by("pk")[2:]] == ["listing"]


def test_a_sample_is_taken_of_a_store_however_small_the_budget_is_beside_it(settings):
    store = factories.make_store("Memory", name="objects")
    factories.make_volume([store], size=50_000, proof=Proof.VERIFIED)
    settings.REHASH_BYTES_PER_DAY = 1
    make_stores_older()
    verify.schedule_drift_checks()
    row = Verification.objects.get(mode=Verification.CONTENT)
    assert row.sample_percent == pytest.approx(0.002)
    row.uuid = uuid.UUID(int=1)
    identities = random.Random(7)
    chosen = sum(rereading.sampled(identities.randbytes(16), row) for _ in range(200_000))
    assert 1 <= chosen <= 10


def test_what_was_touched_all_over_is_read_again_as_far_as_the_budget_goes(settings, tmp_path):
    store = factories.make_store("NFS", name="export", zone=factories.make_zone(), folder=tmp_path / "export")
    objects = factories.make_store("Memory", name="objects")
    for _ in range(3):
        volume = factories.make_volume([store])
        (file,) = KINDS[Kind.VOLUME].ref.objects.get(item=volume).files.all()
        content = factories.content(volume.name)
        factories.make_ref(Kind.VOLUME, volume, objects, file.ref.install_path, {file.path: content}, proof=Proof.VERIFIED)
        os.utime(tmp_path / "export" / file.path)
    settings.REHASH_BYTES_PER_DAY = 1
    row = Verification.objects.create(store=store, actor="test", mode=Verification.LISTING)
    verify.run(row)
    row.refresh_from_db()
    assert [finding["problem"] for finding in row.findings] == ["changed"] * 3
    assert row.bytes_checked == len(content)


def test_the_same_check_is_not_begun_twice_and_not_beside_one_of_yesterday(operator):
    store = factories.make_store("Memory", name="objects")
    factories.make_volume([store], size=50_000, proof=Proof.VERIFIED)
    first = verify.verify(actor=operator, store=store)
    assert verify.verify(actor=operator, store=store) == first
    assert verify.verify(actor=operator, store=store, mode=Verification.LISTING).mode == Verification.LISTING
    make_stores_older()
    Verification.objects.update(created=timezone.now() - timedelta(days=2))
    verify.schedule_drift_checks()
    assert Verification.objects.count() == 2
    Verification.objects.update(state="Finished")
    verify.schedule_drift_checks()
    assert Verification.objects.count() == 4


def test_a_store_that_was_removed_is_verified_no_more(operator):
    store = factories.make_store("Memory", name="objects")
    row = verify.verify(actor=operator, store=store)
    ImageStore.objects.filter(pk=store.pk).update(state=StoreState.REMOVED, removed=timezone.now())
    store.refresh_from_db()
    with pytest.raises(Conflict, match="was removed"):
        verify.verify(actor=operator, store=store)
    verify.run(row)
    row.refresh_from_db()
    assert (row.state, row.note) == ("Cancelled", "The store was removed before it was read.")


def test_files_in_folders_and_beside_them_are_met_in_the_order_of_a_listing(tmp_path, monkeypatch):
    """`a-b` is listed before `a/disk`, and the item `a` is known before the item `a-b`."""
    store = factories.make_store("NFS", zone=factories.make_zone(), folder=tmp_path / "export", role=Role.IMAGE)
    account, keys = factories.make_account(), []
    for name, files in {"a": ["a/disk", "a/more"], "a-b": ["a-b"], "a.vhd": ["a.vhd"], "b": ["b"], "ä": ["ä"]}.items():
        item = Snapshot.objects.create(name=name, account=account, volume_upstream_id=5, path=name)
        own = {f"snapshots/2/5/{file}": file.encode() for file in files}
        factories.make_ref(Kind.SNAPSHOT, item, store, f"snapshots/2/5/{name}", own)
        keys += own
    monkeypatch.setattr(listing, "PAGE", 2)
    assert [path for path, _ in listing.known_paths(store)] == sorted(keys, key=str.encode)
    row = Verification.objects.create(store=store, actor="test", mode=Verification.LISTING)
    verify.run(row)
    row.refresh_from_db()
    assert (row.state, row.items_checked, row.findings) == ("Finished", len(keys), [])


@pytest.mark.sqlite  # which tells of a sort in so many words; PostgreSQL plans otherwise for a few rows
@pytest.mark.parametrize("mode", [Verification.CONTENT, Verification.LISTING, Verification.RETIRE])
def test_no_page_sorts_all_that_is_left_of_a_store(admin, region, mode):
    store = retiring.ready_to_retire(region) if mode == Verification.RETIRE else factories.make_store("Memory", name="objects")
    factories.make_volume([store], proof=Proof.VERIFIED)
    row = Verification.objects.create(store=store, actor="test", mode=mode)
    if mode == Verification.RETIRE:
        Decommission.objects.create(store=store, verification=row, actor="test", former_readonly=False)
    with CaptureQueriesContext(connection) as asked:
        verify.run(row)
    limits = (f"LIMIT {rereading._REFS}", f"LIMIT {listing.PAGE}")
    pages = [query["sql"] for query in asked if query["sql"].endswith(limits) and "_store_ref" in query["sql"]]
    assert len(pages) >= len(KINDS)
    with connection.cursor() as cursor:
        for page in pages:
            cursor.execute(f"EXPLAIN QUERY PLAN {page}")
            assert "TEMP B-TREE" not in str(cursor.fetchall()), page


def test_a_check_begins_once_where_the_clocks_of_two_workers_coincide(settings, monkeypatch):
    store = factories.make_store("Memory", name="objects")
    factories.make_volume([store], size=5000, proof=Proof.VERIFIED)
    make_stores_older()
    begin = verify._begin_daily

    def behind_a_rival(*given: object) -> None:
        begin(*given)
        begin(*given)

    monkeypatch.setattr(verify, "_begin_daily", behind_a_rival)
    verify.schedule_drift_checks()
    assert sorted(Verification.objects.values_list("mode", flat=True)) == ["content", "listing"]


def test_all_is_read_once_when_a_rebuild_has_adopted_something(settings):
    settings.REHASH_BYTES_PER_DAY = 0
    store = factories.make_store("Memory", name="objects")
    volume = factories.make_volume([store], proof=Proof.VERIFIED)
    ref = KINDS[Kind.VOLUME].ref.objects.get(item=volume)
    ref.files.update(proof=Proof.ADOPTED)
    KINDS[Kind.VOLUME].ref.objects.update(proof=Proof.ADOPTED)
    factories.make_volume([store])
    verify.schedule_drift_checks()
    assert [row.mode for row in Verification.objects.all()] == ["content"]  # also when the store is new
    assert daily()["objects", "content"] == []
    ref.refresh_from_db()
    assert (ref.proof, ref.files.get().proof) == (Proof.READ_BACK, Proof.READ_BACK)
    nobody_knew = KINDS[Kind.VOLUME].ref.objects.exclude(pk=ref.pk).get()
    assert (nobody_knew.proof, len(nobody_knew.sha256)) == (Proof.ADOPTED, 64)
    Verification.objects.update(created=timezone.now() - timedelta(days=1))
    KINDS[Kind.VOLUME].ref.objects.update(updated=timezone.now() - timedelta(days=2))
    assert ("objects", "content") not in daily()


def test_who_writes_to_an_export_decides_what_an_unknown_file_is(tmp_path):
    store = factories.make_store("NFS", name="export", zone=factories.make_zone(), folder=tmp_path / "export")
    ImageStore.objects.filter(pk=store.pk).update(scanned_at=timezone.now())
    folder = tmp_path / "export" / "volumes" / "2" / "9"
    folder.mkdir(parents=True)
    for name in ("new.raw", ".nfs0001", "dnld1tmp_"):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (1, 1))
    assert [(finding["path"], finding["problem"]) for finding in daily()["export", "listing"]] == [
        ("volumes/2/9/new.raw", "not adopted")
    ]
    Verification.objects.update(created=timezone.now() - timedelta(days=2))
    ImageStore.objects.filter(pk=store.pk).update(role=Role.IMAGE_CACHE)
    (finding,) = daily()["export", "listing"]
    assert finding["problem"] == "foreign write"
    assert "Scan the store" in finding["remedy"]
