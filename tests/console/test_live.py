"""The part of a page that is live: it is sent when it differs, and no longer asked for when nothing can change."""

from __future__ import annotations

import html
import re

import pytest
from django.urls import reverse

from cloudstorage.models import AuditEvent
from migration import drain
from migration.models import Conversion, Drain
from migration.states import ConversionState, DrainState
from stores.models import KINDS, Kind, Transfer
from stores.states import TransferState

pytestmark = pytest.mark.db


def known(answer) -> str:
    """What the part itself tells the browser to send with its next question."""
    found = re.search(r"""hx-headers='{"If-None-Match":"\\"([^"\\]+)\\""}'""", answer.content.decode())
    assert found, answer.content.decode()[:400]
    return f'"{found[1]}"'


@pytest.mark.parametrize("part", ["", "?small=1"])
def test_a_live_part_is_sent_again_only_when_it_differs(cloud, sign_in, part):
    Drain.objects.update(state=DrainState.RUNNING)
    client = sign_in("operator")
    address = reverse("console:drain_live", args=[cloud.drain.uuid]) + part
    first = client.get(address)
    assert first.headers["ETag"] == known(first)
    same = client.get(address, headers={"If-None-Match": known(first)})
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", known(first))
    cloud.drain.batch.transfers.update(bytes_done=1, bytes_total=4)
    other = client.get(address, headers={"If-None-Match": known(first)})
    assert (other.status_code, known(other) != known(first)) == (200, True)
    assert client.get(address, headers={"If-None-Match": known(other)}).status_code == 304


def test_a_part_that_ended_is_sent_whole_and_asks_no_more(cloud, sign_in):
    Drain.objects.update(state=DrainState.RUNNING)
    client = sign_in("operator")
    address = reverse("console:drain_live", args=[cloud.drain.uuid])
    before = known(client.get(address))
    Drain.objects.update(state=DrainState.FINISHED)
    ended = client.get(address, headers={"If-None-Match": before})
    assert ended.status_code == 286
    assert "hx-get" not in ended.content.decode()


def text(answer) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())).split())


def test_the_live_page_tells_what_is_only_on_nfs_and_what_the_way_back_costs(cloud, sign_in):
    address = reverse("console:drain", args=[cloud.drain.uuid])
    rows = Transfer.objects.filter(batch=cloud.drain.batch)
    rows.filter(kind="snapshot", parent=None).update(state=TransferState.RUNNING, bytes_total=4096, bytes_done=1024)
    client = sign_in("viewer")
    page = text(client.get(address))
    left = rows.count()
    assert f"Only copy still on NFS: {left} items" in page
    assert "It would copy nothing: all that is on the object store is on NFS too." in page
    born = cloud.region.volume("born", "east")
    refs = KINDS[Kind.VOLUME].ref.objects.filter(item=born)
    refs.update(store=cloud.conversion.object_store, size=3 * 2**20, proof="attested")
    assert "It would bring home 1 item, 3.0 MiB," in text(client.get(address))
    Conversion.objects.update(state=ConversionState.COMMITTED)
    assert "There is none from here: the conversion is Committed" in text(client.get(address))


def test_zones_tell_items_and_bytes_apart(cloud):
    rows = Transfer.objects.filter(batch=cloud.drain.batch)
    rows.update(bytes_total=100)
    rows.filter(kind="snapshot", parent=None).update(state=TransferState.RUNNING, bytes_done=40)
    zones = {zone["zone"]: zone for zone in drain.progress(cloud.drain).zones}
    assert sum(zone["items_failed"] for zone in zones.values()) == 1
    east = zones["east"]
    assert (east["items_running"], east["copied"], east["remaining"]) == (1, 40, east["bytes"] - 40)


def test_failures_of_one_cause_are_tried_again_without_the_others(cloud, sign_in):
    Drain.objects.update(state=DrainState.RUNNING)
    child = Transfer.objects.filter(kind="snapshot", parent=None)
    child.update(state=TransferState.FAILED, error_cause="slow-down", error="503", remedy="Wait.")
    client = sign_in("operator")
    page = client.get(reverse("console:drain_live", args=[cloud.drain.uuid]))
    assert "Retry 1 of this cause" in text(page)
    answer = client.post(reverse("console:drain_retry", args=[cloud.drain.uuid]), {"cause": "access-denied"}, follow=True)
    assert "1 failed item tried again (access-denied)." in text(answer)
    states = set(Transfer.objects.filter(state=TransferState.FAILED).values_list("error_cause", flat=True))
    assert states == {"slow-down"}
    assert AuditEvent.objects.filter(action="drain.retry").first().details == {"count": 1, "causes": ["access-denied"]}
