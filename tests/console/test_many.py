"""However much there is, a page stays below 100 kB and 30 queries."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.models import ApiToken, AuditEvent
from migration.models import Verification
from stores.models import KINDS, Kind, Template, TemplateZoneRef, Transfer
from stores.states import TransferState
from tests.console.access import LOOK, address

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


def test_no_page_grows_with_its_rows(crowd, sign_in):
    client = sign_in("storage-admin", "auditor")
    sizes, costs = {}, {}
    for name in LOOK.keys() - DOWNLOADS:
        url = address(crowd, name)
        with CaptureQueriesContext(connection) as seen:
            answer = client.get(url)
        sizes[name], costs[name] = len(answer.content), len(seen)
    assert {name: size for name, size in sizes.items() if size >= 100_000} == {}
    assert {name: cost for name, cost in costs.items() if cost > 30} == {}
