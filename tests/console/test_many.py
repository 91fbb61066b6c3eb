"""However much there is, a page stays below 100 kB and 30 queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.models import ApiToken, AuditEvent
from migration import conversion, homeward
from migration.models import ConversionStore, Preflight, Verification
from migration.preflight import preflight
from stores.models import KINDS, ImageStore, Kind, Template, TemplateZoneRef, Transfer, Worker, WorkerReach, Zone
from stores.states import TransferState
from tests.console.access import LOOK, address
from tests.console.conftest import CANARY

pytestmark = pytest.mark.db

MANY = 300
WORDS = "The object store refused it: the bucket's policy allows no writing for this key at this time of the day."
DOWNLOADS = {"retirement_report"}


@pytest.fixture
def crowd(cloud):
    """The tests' cloud, with hundreds of everything that may be many."""
    account, east, objects = cloud.template.account, cloud.nfs, cloud.conversion.object_store
    items = Template.objects.bulk_create(
        Template(name=f"template-with-a-rather-long-name-{number}", account=account, upstream_id=9000 + number, format="QCOW2")
        for number in range(MANY)
    )
    TemplateZoneRef.objects.bulk_create(TemplateZoneRef(zone=east.zone, template=item) for item in items)
    ref = KINDS[Kind.TEMPLATE].ref
    there = {"state": "Ready", "proof": "adopted", "size": 5000}
    refs = ref.objects.bulk_create(
        ref(item=item, store=east, install_path=f"template/tmpl/2/{item.pk}", **there) for item in items
    )
    promised = ref.objects.bulk_create(ref(item=item, store=objects, state="Promised") for item in items)
    file = KINDS[Kind.TEMPLATE].file
    own = ref.objects.get(item=cloud.template, store=east)
    file.objects.bulk_create(
        file(ref=own, path=f"{own.install_path}/{'x' * 60}{number}", size=1, proof="adopted", sha256="0" * 64)
        for number in range(MANY)
    )
    pairs = zip(items, refs, promised, strict=True)
    Transfer.objects.bulk_create(
        Transfer(
            kind="template", item_id=item.pk, source=east, target=objects, source_ref_id=here.pk, target_ref_id=wanted.pk,
            batch=cloud.drain.batch, state=TransferState.FAILED, error=WORDS, remedy=WORDS, error_cause=f"cause-{number % 40}",
            finished_at=timezone.now(),
        )
        for number, (item, here, wanted) in enumerate(pairs)
    )  # fmt: skip
    details = {"name": "x" * 300, "why": WORDS * 3}
    AuditEvent.objects.bulk_create(
        AuditEvent(actor="ada", action="template.delete", target=f"template:{cloud.template.uuid}", details=details)
        for _ in range(MANY)
    )
    finding = {"path": "template/" + "x" * 80, "problem": "missing", "expected": "0" * 64, "found": "", "remedy": WORDS}
    Verification.objects.update(findings=[finding] * 1000, findings_count=1000)
    ApiToken.objects.bulk_create(
        ApiToken(user=cloud.token.user, name="x" * 200, prefix=f"cs_{number:09}", digest=f"{number:063}1", role="viewer")
        for number in range(MANY)
    )
    return cloud


def exports_of_zones() -> list[ImageStore]:
    """Hundreds of zones with a staging store each, and dozens of workers that reach all of these or none."""
    zones = Zone.objects.bulk_create(Zone(name=f"zone-with-a-rather-long-name-{number}") for number in range(MANY))
    stores = ImageStore.objects.bulk_create(
        ImageStore(
            name=f"export-with-a-rather-long-name-{number}", image_provider_name="NFS", protocol="nfs", zone=zone, scope="ZONE",
            url=f"nfs://filer-{number}.storage.example.org/export/secondary", role="ImageCache", scanned_at=timezone.now(),
            total_size=2**40, used_bytes=2**39,
        )
        for number, zone in enumerate(zones)
    )  # fmt: skip
    workers = Worker.objects.bulk_create(Worker(hostname=f"worker-{number}.example.org", pid=number) for number in range(40))
    WorkerReach.objects.bulk_create(
        (WorkerReach(worker=worker, store=store, ok=bool(worker.pid % 2), error=WORDS) for worker in workers for store in stores),
        batch_size=2000,
    )
    return stores


@pytest.fixture
def wide(cloud, monkeypatch):
    """The tests' cloud, with hundreds of zones, all of which the conversion concerned and where the template is, too."""
    monkeypatch.setattr(homeward, "_measure", lambda homes, drivers: None)
    stores = exports_of_zones()
    ConversionStore.objects.bulk_create(
        ConversionStore(conversion=cloud.conversion, store=store, former_role="Image", former_readonly=False) for store in stores
    )
    ref = KINDS[Kind.TEMPLATE].ref
    refs = ref.objects.bulk_create(
        ref(item=cloud.template, store=store, install_path="template/tmpl/2/9/", state="Ready", proof="adopted", size=5000)
        for store in stores
    )
    objects = cloud.conversion.object_store
    Transfer.objects.bulk_create(
        Transfer(
            kind="template", item_id=cloud.template.pk, source=here.store, target=objects, source_ref_id=here.pk,
            target_ref_id=here.pk, batch=cloud.drain.batch, state=TransferState.PROVEN, proof="verified",
            bytes_total=5000, bytes_done=5000,
        )
        for here in refs
    )  # fmt: skip
    report = Preflight.objects.get(pk=cloud.report.pk)
    zone = report.report["zones"][0]
    report.report["zones"] = [{**zone, "zone": f"zone-with-a-rather-long-name-{number}"} for number in range(MANY)]
    report.save()
    return cloud


def looks(client, cloud) -> dict[str, tuple[int, int]]:
    """By page that is too large or too dear: its size and the number of its queries."""
    found = {}
    for name in LOOK.keys() - DOWNLOADS:
        with CaptureQueriesContext(connection) as seen:
            answer = client.get(address(cloud, name))
        if len(answer.content) >= 100_000 or len(seen) > 30:
            found[name] = len(answer.content), len(seen)
    return found


def test_no_page_grows_with_its_rows(crowd, sign_in):
    assert looks(sign_in("storage-admin", "auditor"), crowd) == {}


def test_no_page_grows_with_zones_stores_and_workers(wide, sign_in):
    assert looks(sign_in("storage-admin", "auditor"), wide) == {}


def test_the_wizard_does_not_grow_with_zones(before, admin, target, sign_in, monkeypatch):
    report = preflight(actor=admin, **target | {"details": {"password": CANARY}})

    convert = conversion.convert

    def of_many_zones(**given):
        plan = convert(**given)
        return replace(
            plan, zones=[{**plan.zones[0], "zone": f"zone-with-a-rather-long-name-{number}"} for number in range(MANY)]
        )

    monkeypatch.setattr(conversion, "convert", of_many_zones)
    client, here = sign_in("storage-admin"), f"/migration/preflights/{report.uuid}"
    answer = client.get(f"{here}/review/")
    assert b"Exact changes" in answer.content
    assert len(answer.content) < 100_000
    Zone.objects.bulk_create(Zone(name=f"zone-with-a-rather-long-name-{number}") for number in range(MANY))
    for page in (f"{here}/rules/", "/migration/new/?provider=S3", "/stores/add/?provider=NFS"):
        with CaptureQueriesContext(connection) as seen:
            answer = client.get(page)
        assert (len(answer.content) < 100_000, len(seen) <= 30) == (True, True), (page, len(answer.content), len(seen))
