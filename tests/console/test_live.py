"""The part of a page that is live: it is sent when it differs, and no longer asked for when nothing can change."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from cloudstorage.models import AuditEvent
from migration import drain
from migration.models import Conversion, Drain
from migration.states import ConversionState, DrainState
from stores.models import KINDS, ImageStore, Kind, Transfer, TransferBatch, Worker
from stores.states import TransferState
from tests.factories import make_worker

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


def test_the_overviews_live_part_carries_the_next_step(cloud, sign_in):
    Drain.objects.update(state=DrainState.RUNNING)
    client, part = sign_in("viewer"), reverse("console:drain_live", args=[cloud.drain.uuid]) + "?small=1"

    def told() -> list[list[str]]:
        return [re.findall(r'<h2 id="next">(.*?)</h2>', client.get(where).content.decode()) for where in ("/", part)]

    assert told() == [["Next: See what failed"]] * 2
    Worker.objects.update(heartbeat="2020-01-01T00:00Z")
    assert told() == [["Next: Start a worker"]] * 2
    make_worker(*ImageStore.objects.all())
    Transfer.objects.update(state=TransferState.QUEUED)
    assert told() == [["Next: Follow the drain"]] * 2
    assert "Open the live page" in text(client.get(part))
    drain.cancel(actor=cloud.admin, drain=cloud.drain)
    assert (client.get(part).status_code, told()) == (286, [["Next: Plan the rest"]] * 2)
    drain.plan(actor=cloud.admin, conversion=cloud.conversion)
    assert told() == [["Next: Start the drain"], []], "the part of a drain that is not the last tells nothing of what follows"


def test_a_closed_window_is_told_with_its_zone_and_when_it_opens_for_the_reader(cloud, sign_in):
    another_day = (timezone.now() + timedelta(days=3)).strftime("%a")
    TransferBatch.objects.update(window=f"{another_day} 00:00-24:00", time_zone="Asia/Kathmandu")
    client = sign_in("viewer")
    client.cookies["time-zone"] = "Asia/Tokyo"
    told = f"Closed now by its time window {another_day} 00:00-24:00 (Asia/Kathmandu); it opens {another_day} "
    for state in (DrainState.PLANNED, DrainState.RUNNING):
        Drain.objects.update(state=state)
        for where in ("/", reverse("console:drain", args=[cloud.drain.uuid])):
            page = text(client.get(where))
            assert told in page, (state, where)
            assert "03:15 JST" in page
        assert f"{another_day} 00:00-24:00 (Asia/Kathmandu)" in text(client.get("/migration/"))
    assert "closed now opens" in text(client.get("/migration/"))
    TransferBatch.objects.update(open=True)
    item = text(client.get(reverse("console:item", args=["snapshot", cloud.chain[0].uuid])))
    assert f"waits for the time window {another_day} 00:00-24:00 (Asia/Kathmandu), which opens {another_day} " in item
    now = replace(drain.progress(cloud.drain), eta_low=60.0, eta_high=120.0)
    assert drain.expected_end(now)[0] == now.window.opens + timedelta(minutes=1)
    Drain.objects.update(state=DrainState.FINISHED)
    assert "Closed now" not in text(client.get("/"))
    assert "closed now" not in text(client.get("/migration/"))


@pytest.mark.parametrize("rules", [{}, {"zones": ["east"]}])
def test_a_drain_that_was_cancelled_still_tells_what_is_only_on_nfs_and_what_comes_next(cloud, sign_in, rules):
    drain.cancel(actor=cloud.admin, drain=cloud.drain)
    again = drain.plan(actor=cloud.admin, conversion=cloud.conversion, **rules)
    drain.cancel(actor=cloud.admin, drain=again)
    client = sign_in("operator")
    for address in ("drain", "drain_live"):
        page = text(client.get(reverse(f"console:{address}", args=[again.uuid])))
        assert "Only copy still on NFS: 3 items" in page
        assert "Next: Plan the rest" in page
    earlier = text(client.get(reverse("console:drain", args=[cloud.drain.uuid])))
    assert "Next:" not in earlier


def test_zones_tell_items_and_bytes_apart(cloud):
    rows = Transfer.objects.filter(batch=cloud.drain.batch)
    rows.update(bytes_total=100)
    rows.filter(kind="snapshot", parent=None).update(state=TransferState.RUNNING, bytes_done=40)
    zones = {zone["zone"]: zone for zone in drain.progress(cloud.drain).zones}
    assert sum(zone["items_failed"] for zone in zones.values()) == 1
    east = zones["east"]
    assert (east["items_running"], east["copied"], east["remaining"]) == (1, 40, east["bytes"] - 40)
    assert east["items_remaining"] == east["items"] - east["items_proven"]


def test_failures_of_one_cause_are_tried_again_without_the_others(cloud, sign_in):
    Drain.objects.update(state=DrainState.RUNNING)
    child = Transfer.objects.filter(kind="snapshot", parent=None)
    child.update(state=TransferState.FAILED, error_cause="slow-down", error="503", remedy="Wait.")
    client = sign_in("operator")
    page = client.get(reverse("console:drain_live", args=[cloud.drain.uuid]))
    assert "Retry 1 of this cause" in text(page)
    form = re.search(
        r'<form method="post" action="([^"]+)">(?:(?!</form>).)*value="access-denied"', page.content.decode(), re.DOTALL
    )
    answer = client.post(form[1], {"cause": "access-denied"}, follow=True)
    assert "1 failed item tried again (access-denied)." in text(answer)
    states = set(Transfer.objects.filter(state=TransferState.FAILED).values_list("error_cause", flat=True))
    assert states == {"slow-down"}
    assert AuditEvent.objects.filter(action="drain.retry").first().details == {"count": 1, "causes": ["access-denied"]}
