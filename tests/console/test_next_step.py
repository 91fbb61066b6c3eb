"""The overview names the next step of the job at every point of it, to whom it belongs, and when nothing is left to do."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import resolve
from django.utils.html import strip_tags

from migration import commit, conversion, decommission, drain, verify
from migration.models import Decommission, Drain, Verification
from migration.states import DecommissionState, DrainState, VerificationState
from stores.models import KINDS, ImageStore, Kind, Transfer, TransferBatch, Worker
from stores.services import transfers
from stores.services.scan import request_scan
from stores.states import RefState, StoreState, TransferState
from stores.worker import Pump
from tests.factories import make_worker
from tests.migration.region import Region
from tests.migration.retiring import add_staging, work

pytestmark = pytest.mark.db


class Overview:
    """What somebody reads at its top."""

    def __init__(self, client) -> None:
        self.client = client

    def __call__(self) -> str:
        """`title | text | where it leads`; nothing leads anywhere that is not theirs."""
        with CaptureQueriesContext(connection) as seen:
            page = self.client.get("/").content.decode()
        assert len(seen) <= 30, len(seen)
        found = re.search(r'<h2 id="next">(.*?)</h2>\s*<p>(.*?)</p>\s*</div>\s*(.*?)\s*</div>', page, re.DOTALL)
        if found is None:
            return ""
        title, text, rest = (" ".join(part.split()) for part in found.groups())
        leads = re.search(r'href="([^"?]*)', rest)
        where = resolve(leads[1]).url_name if leads else strip_tags(rest)
        return f"{title.removeprefix('Next: ')} | {strip_tags(text)} | {where}"


@pytest.fixture
def shown(sign_in) -> Overview:
    return Overview(sign_in("storage-admin"))


@pytest.fixture
def filled(region: Region) -> Region:
    """A template in both zones, two volumes in the east, and a snapshot in the west."""
    region.template("web", "east", "west", hypervisor_type="KVM")
    region.volume("data", "east")
    region.volume("more", "east")
    region.snapshot("one", "west")
    return region


@pytest.fixture
def converted(filled, target, admin):
    done = conversion.convert(actor=admin, override=["preflight-absent"], **target)
    make_worker(*ImageStore.objects.all())
    return done


def run(row: Drain) -> Drain:
    """What workers do until it ends."""
    worker = Worker.objects.order_by("pk").last()
    for _ in range(10):
        Pump(worker.pk, slots=4).run()
        drain.advance(row)
        row.refresh_from_db()
        if row.state == DrainState.FINISHED:
            return row
    raise AssertionError(row)


def fail(*kinds: str) -> None:
    Transfer.objects.filter(kind__in=kinds).update(state=TransferState.FAILED, error_cause="full", error="It is full.")


def test_before_the_switch(sign_in, shown, admin, tmp_path, memory_store, settings):
    settings.NFS_MOUNTS = {}
    assert shown().startswith("Add a zone | NFS stores belong to a zone")
    assert shown().endswith("| zone_add")
    assert Overview(sign_in("viewer"))().endswith("| A storage administrator does this.")
    region = Region(admin, tmp_path / "exports")
    region.add_zone("east")
    east = ImageStore.objects.get()
    Worker.objects.update(stopped=None, heartbeat="2020-01-01T00:00Z")
    assert shown().endswith("| worker_list")
    make_worker(east)
    assert shown().startswith("Move to an object store |")
    ImageStore.objects.update(scanned_at=None)
    assert shown().startswith("Scan nfs-east | nfs-east was never scanned")
    request_scan(actor=admin, store=east)
    assert shown().startswith("Follow the scan |")
    assert shown().endswith("| scan")


def test_while_and_after_a_drain(sign_in, shown, converted, operator):
    assert shown().startswith("Plan the drain | The region writes to objects already. Plan the drain")
    assert "is still on NFS only: 4 items, 58 B." in shown()
    row = drain.plan(actor=operator, conversion=converted, zones=["east"], canary_items=0)
    assert shown().startswith("Start the drain |")
    drain.start(actor=operator, drain=row)
    assert shown().startswith("Follow the drain | It goes on by itself")
    drain.pause(actor=operator, drain=row)
    assert shown().startswith("Look at the paused drain |")
    drain.resume(actor=operator, drain=row)
    fail("volume")
    assert shown().startswith("See what failed | 2 items failed while the others go on.")
    run(row)
    assert shown().startswith("Plan the rest | The last drain has ended, and this is still on NFS only: 3 items, ")
    assert "It takes up what failed, too: 2. | drain_plan" in shown()
    assert Overview(sign_in("viewer"))().endswith("| An operator does this.")

    rest = drain.plan(actor=operator, conversion=converted, canary_items=0)
    drain.cancel(actor=operator, drain=rest)
    assert "this is still on NFS only: 3 items, " in shown()
    rest = drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=converted, canary_items=0))
    fail("volume")
    run(rest)
    assert shown().startswith("See what failed | 2 items failed; still on NFS only: 2 items, ")
    assert shown().endswith(". The page says why, and can try again. | drain")
    Transfer.objects.filter(state=TransferState.FAILED).delete()
    assert shown().startswith("Plan the rest | ")
    asked = [transfers.ensure(actor=operator, kind=Kind.VOLUME, item=item) for item in KINDS[Kind.VOLUME].item.objects.all()]
    assert shown().startswith("Follow the copies | Asked for at once, so on the way without a drain: 2 items")
    Transfer.objects.filter(pk__in=[transfer.pk for transfer in asked]).delete()
    KINDS[Kind.VOLUME].ref.objects.filter(state=RefState.READY).delete()
    assert shown().startswith(
        "Find what is missing | No attached store has a readable copy of what objects was promised: 2 items"
    )


def test_from_the_last_item_to_retired_exports(shown, sign_in, filled, converted, admin, settings):
    run(drain.start(actor=admin, drain=drain.plan(actor=admin, conversion=converted)))
    objects = converted.object_store
    assert shown() == "Read objects back | Every item is there. objects has not been read back since the conversion. | verify"
    check = verify.verify(actor=admin, store=objects)
    assert shown().startswith("Follow the verification | ")
    assert shown().endswith("| verification")
    ended = Verification.objects.filter(pk=check.pk)
    ended.update(state=VerificationState.FINISHED, findings_count=2)
    assert shown().startswith("Look at what differs | The last verification of objects found 2 differences.")
    ended.update(findings_count=0)
    assert shown().startswith("Commit the conversion | Every item is proven on objects.")
    commit.commit(actor=admin, conversion=converted)

    assert shown().startswith("The move is done | Everything is on objects, proven and committed; nothing is left to do.")
    assert "nfs-east, nfs-west stay: KVM reads from a staging store of its zone." in shown()
    add_staging(filled, "east")
    ImageStore.objects.update(scanned_at="2026-01-01T00:00Z")
    assert shown().startswith("Retire cache-east | ") is False
    assert shown().startswith("Retire nfs-east | The conversion is committed")
    assert shown().endswith("| retire")
    assert Overview(sign_in("operator"))().endswith("| A storage administrator does this.")
    (filled.folder("east") / "notes.txt").write_bytes(b"of somebody")
    row = decommission.begin(actor=admin, store=filled.stores["east"])
    assert shown().startswith("Follow the retirement | Workers read all on nfs-east")
    work(row)
    assert shown().startswith("Answer for unknown files | nfs-east has files that no item knows.")
    Decommission.objects.update(state=DecommissionState.REFUSED, note="1 difference.")
    assert shown().startswith("Look at what differs | nfs-east was not retired and is as it was. 1 difference.")
    Decommission.objects.update(state=DecommissionState.WAITING)
    row.refresh_from_db()
    decommission.acknowledge(actor=admin, row=row, count=row.unknown_count, digest=row.unknown_digest)
    work(row)
    assert "nfs-west stays: KVM reads from a staging store of its zone." in shown()
    settings.DIRECT_HYPERVISORS = ("KVM",)
    assert shown().startswith("Retire nfs-west | ")
    ImageStore.objects.filter(name="nfs-west").update(state=StoreState.REMOVED)
    assert shown().endswith("The exports of before are retired, and their reports are kept. | conversion")


def test_a_region_without_anything_on_nfs_has_no_next_step_before_its_commit(shown, region, target, admin):
    done = conversion.convert(actor=admin, override=["preflight-absent"], **target)
    make_worker(*ImageStore.objects.all())
    assert not TransferBatch.objects.exists()
    assert shown().startswith(f"Read {done.object_store.name} back | ")
