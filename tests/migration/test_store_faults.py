"""A drain to real servers that refuse, fill up, throttle, stall, forget and flip bits: nothing is promised falsely, all is kept in the end."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.utils import timezone

from cloudstorage.errors import Blocked
from migration import drain
from migration.states import DrainState
from stores import tasks
from stores.drivers.base import MiB
from stores.models import Kind, Transfer, Volume
from stores.services import items, transfers
from stores.states import TransferState
from stores.worker import Pump
from tests.drivers.s3_cases import administer, details_of, error, new_bucket
from tests.migration.under_way import UnderWay, begin
from tests.servers.http_messages import HttpRequest
from tests.servers.proxy import Action, Corrupt, Hold, LoggingHttpProxy, TcpProxy

pytestmark = [pytest.mark.db, pytest.mark.live]

ITEMS = 3
LARGE = 33 * MiB
"""Three parts."""


@dataclass
class Way:
    """The way to a server: through a gate that stalls and resets, and a proxy that answers in its place or changes bytes."""

    server: Any
    proxy: LoggingHttpProxy
    gate: TcpProxy
    target: dict[str, Any]
    uploads: Callable[[], list[str]]
    """Multipart uploads that the server knows and that are not complete."""
    forget_uploads: Callable[[], None]
    """Another actor, or a rule of the bucket, removes what was not completed."""
    objects: Callable[[], int] = lambda: 0
    """How many objects of items the server has."""
    set_quota: Callable[[str], None] = lambda quota: None
    """Of bytes, on a real Swift's container; empty: none."""


def way(request: pytest.FixtureRequest, server: Any, url: str) -> tuple[LoggingHttpProxy, TcpProxy]:
    proxy = request.getfixturevalue("http_proxy")(url)
    return proxy, request.getfixturevalue("tcp_proxy")(proxy.url)


def to_s3(request: pytest.FixtureRequest, server: Any) -> Way:
    proxy, gate = way(request, server, server.s3_url)
    bucket, admin = new_bucket(server), administer(server)
    request.addfinalizer(admin.close)
    details = details_of(server, bucket, endpoint=gate.url.removeprefix("http://"), sockettimeout="2000")

    def uploads() -> list[dict[str, str]]:
        found = admin.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return [{"Key": upload["Key"], "UploadId": upload["UploadId"]} for upload in found]

    def objects() -> int:
        return int(admin.list_objects_v2(Bucket=bucket, Prefix="volumes/")["KeyCount"])

    def forget() -> None:
        for upload in uploads():
            admin.abort_multipart_upload(Bucket=bucket, **upload)

    target = {"provider": "S3", "url": "", "details": details}
    return Way(
        server, proxy, gate, target, lambda: [upload["Key"] for upload in uploads()], forget, objects, quota_of(server, bucket)
    )


def quota_of(server: Any, container: str) -> Callable[[str], None]:
    def set_quota(quota: str) -> None:
        assert server.request("POST", f"/{container}", headers={"X-Container-Meta-Quota-Bytes": quota}).status == 204

    return set_quota


def to_moto(request: pytest.FixtureRequest) -> Way:
    """It checks nothing; what it has stored its ETag tells."""
    return to_s3(request, request.getfixturevalue("moto_server"))


def to_s3api(request: pytest.FixtureRequest) -> Way:
    return to_s3(request, request.getfixturevalue("swift_server"))


def to_swift(request: pytest.FixtureRequest) -> Way:
    server = request.getfixturevalue("swift_server")
    proxy, gate = way(request, server, server.url)
    container = f"c-{uuid.uuid4().hex[:8]}"
    details = {"username": server.username, "key": server.key, "container": container, "sockettimeout": "2000"}
    segments = f"/{container}_segments"

    def uploads() -> list[str]:
        answer = server.request("GET", segments)
        return [] if answer.status == 404 else answer.body.decode().split()

    def forget() -> None:
        for name in uploads():
            assert server.request("DELETE", f"{segments}/{name}").status == 204

    target = {"provider": "Swift", "url": gate.url + urlsplit(server.auth_url).path, "details": details}
    return Way(server, proxy, gate, target, uploads, forget, set_quota=quota_of(server, container))


@pytest.fixture
def served(request, settings) -> Way:
    """By moto, which is quick, unless a test names the servers that it needs."""
    settings.OUTBOUND_ALLOW_LOOPBACK = True
    return getattr(request, "param", to_moto)(request)


ON_REAL_SERVERS = pytest.mark.parametrize("served", [to_s3api, to_swift], indirect=True, ids=["s3api", "swift"])
BY_S3 = pytest.mark.parametrize("served", [to_moto, to_s3api], indirect=True, ids=["moto", "s3api"])


@pytest.fixture
def moving(region, served, admin, operator) -> UnderWay:
    """Small volumes, their drain begun."""
    for number in range(ITEMS):
        region.volume(f"disk-{number}", "east")
    return begin(region, admin, operator, name="objects", **served.target)


@pytest.fixture
def large(region, served, admin, operator) -> UnderWay:
    """One volume of three parts, its drain begun."""
    item = Volume.objects.create(name="large", account=region._account(), upstream_id=9, zone=region.zones["east"])
    region.put(item, "east", "volumes/2/9", content=random.Random(9).randbytes(LARGE))
    return begin(region, admin, operator, name="objects", **served.target)


def writes_item(request: HttpRequest) -> bool:
    return request.method == "PUT" and "/volumes/" in request.target


def writes_second_part(request: HttpRequest) -> bool:
    return request.method == "PUT" and ("partNumber=2" in request.target or "_segments/volumes/" in request.target)


def completes(request: HttpRequest) -> bool:
    by_s3 = request.method == "POST" and "uploadId=" in request.target
    return by_s3 or (request.method == "PUT" and "multipart-manifest=put" in request.target)


# --- refused, full, throttled ----------------------------------------------------------------------------------------------


def test_a_right_that_is_lost_for_writing_alone_blames_no_item(moving, served):
    served.proxy.add_rule(writes_item, error(403, "AccessDenied"))
    for _ in range(transfers.MAX_ATTEMPTS + 1):
        assert moving.look(), "it still lets us look"
        moving.pump()
    assert moving.states() == [TransferState.QUEUED] * ITEMS
    assert moving.causes() == {"locked-out"}
    moving.assert_readable()
    served.proxy.clear_rules()
    assert moving.look()
    assert moving.run_to_end().note == "Every item is proven."
    moving.assert_whole()


@pytest.mark.parametrize(("status", "code"), [(507, "InsufficientStorage"), (403, "QuotaExceeded")])
def test_what_finds_no_room_waits_for_a_person_and_stays_readable(moving, served, operator, status, code):
    rule = served.proxy.add_rule(writes_item, error(status, code))
    moving.pump()
    assert rule.hits >= 1
    assert moving.states() == [TransferState.FAILED] * ITEMS
    assert moving.causes() == {"full"}
    moving.assert_readable()
    served.proxy.clear_rules()
    drain.retry_failed(actor=operator, drain=moving.drain)
    moving.pump()
    moving.assert_whole()


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests")])
def test_throttling_uses_up_no_attempt_and_is_waited_out_as_long_as_it_says(moving, served, status, code):
    throttled = error(status, code)
    throttled.headers["Retry-After"] = "500"
    rule = served.proxy.add_rule(writes_item, throttled)
    for _ in range(transfers.MAX_ATTEMPTS + 1):
        moving.pump(slots=ITEMS)
    assert rule.hits > ITEMS * transfers.MAX_ATTEMPTS
    assert moving.states() == [TransferState.QUEUED] * ITEMS
    assert not Transfer.objects.filter(next_attempt_at__lt=timezone.now() + timedelta(seconds=400)).exists()
    assert moving.pump_as_planned() == 0
    moving.assert_readable()
    served.proxy.clear_rules()
    moving.pump()
    moving.assert_whole()


@pytest.mark.parametrize("served", [to_swift, to_s3api], indirect=True, ids=["swift", "s3api"])
def test_a_real_quota_that_is_reached_fails_what_does_not_fit_and_a_retry_follows_its_raising(moving, served, operator):
    served.set_quota("1")
    moving.pump()
    assert moving.states() == [TransferState.FAILED] * ITEMS
    assert moving.causes() == {"full"}
    assert moving.ready() == []
    moving.assert_readable()
    served.set_quota("")
    drain.retry_failed(actor=operator, drain=moving.drain)
    moving.pump()
    moving.assert_whole()


# --- the network -----------------------------------------------------------------------------------------------------------


def silent(gate: TcpProxy) -> None:
    gate.stall()


def broken(gate: TcpProxy) -> None:
    gate.reset_after(2 * MiB)


def gone(gate: TcpProxy) -> None:
    gate.refuse()


@pytest.mark.parametrize("fault", [silent, broken, gone])
def test_a_large_copy_goes_on_where_it_was_when_the_way_to_the_store_is_good_again(large, served, fault):
    arrived = Hold()
    served.proxy.add_rule(writes_second_part, arrived, times=1)

    def strike() -> None:
        assert arrived.arrived.wait(60)
        fault(served.gate)
        arrived.release.set()

    striking = threading.Thread(target=strike)
    striking.start()
    large.pump()
    striking.join()
    assert large.states() == [TransferState.QUEUED]
    assert large.causes() == {"unavailable"}
    assert large.ready() == []
    large.assert_readable()
    served.gate.pass_through()
    large.pump()
    large.assert_whole()
    assert served.uploads() == []
    assert Transfer.objects.get().faults == 0


# --- multipart uploads -----------------------------------------------------------------------------------------------------


@BY_S3
def test_an_upload_whose_completion_fails_within_a_success_is_not_believed(large, served):
    rule = served.proxy.add_rule(completes, error(200, "InternalError"), times=1)
    large.pump()
    assert rule.hits == 1
    assert large.states() == [TransferState.QUEUED]
    assert large.ready() == []
    large.assert_readable()
    large.pump()
    large.assert_whole()
    assert served.uploads() == []


@ON_REAL_SERVERS
@pytest.mark.parametrize("moment", [writes_second_part, completes])
def test_an_upload_that_another_aborts_begins_anew(large, served, moment):
    hold = Hold()
    served.proxy.add_rule(moment, hold, times=1)

    def abort() -> None:
        assert hold.arrived.wait(60)
        served.forget_uploads()
        hold.release.set()

    aborting = threading.Thread(target=abort)
    aborting.start()
    large.pump()
    aborting.join()
    assert large.states() == [TransferState.QUEUED]
    assert large.ready() == []
    large.assert_readable()
    assert large.run_to_end().note == "Every item is proven."
    large.assert_whole()


# --- the source ------------------------------------------------------------------------------------------------------------


def rewritten(large: UnderWay, path: Path) -> None:
    path.write_bytes(random.Random(10).randbytes(LARGE))


def unlinked(large: UnderWay, path: Path) -> None:
    path.unlink()


def deleted(large: UnderWay, path: Path) -> None:
    items.delete_item(actor=large.admin, kind=Kind.VOLUME, item=Volume.objects.get())


@BY_S3
@pytest.mark.parametrize(
    ("change", "state", "cause"),
    [
        (rewritten, TransferState.QUEUED, {"source-changed"}),
        (unlinked, TransferState.QUEUED, {"source-changed"}),
        (deleted, TransferState.CANCELLED, set()),
    ],
)
def test_nothing_is_promised_nor_left_over_of_an_item_that_changes_or_goes_during_its_copy(large, served, change, state, cause):
    hold = Hold()
    served.proxy.add_rule(writes_second_part, hold, times=1)
    (path,) = large.region.folder("east").rglob("*.qcow2")

    def strike() -> bool:
        """In the pump's own thread, which asks once a second whether it is to stop."""
        if hold.arrived.is_set() and not hold.release.is_set():
            change(large, path)
            hold.release.set()
        return False

    Pump(large.worker.pk, slots=1, stop=strike).run()
    assert large.states() == [state]
    assert large.causes() == cause
    assert large.ready() == []
    if change is rewritten:
        large.pump()
        large.assert_whole()
    Transfer.objects.filter(state=TransferState.CANCELLED).update(finished_at="2026-01-01T00:00:00Z")
    tasks.clean_up()
    assert served.uploads() == []
    assert served.objects() == (1 if change is rewritten else 0)


# --- other bytes -----------------------------------------------------------------------------------------------------------


def flips(request: HttpRequest) -> bool:
    return request.method == "PUT" and int(request.headers.get("content-length", "0")) > 8


FLIP: Action = Corrupt("request", offset=8)


@pytest.mark.parametrize("served", [to_moto, to_s3api, to_swift], indirect=True, ids=["moto", "s3api", "swift"])
def test_a_server_that_flips_bits_from_the_start_is_not_converted_to(region, served, admin, operator):
    region.volume("disk", "east")
    served.proxy.add_rule(flips, FLIP)
    with pytest.raises(Blocked):
        begin(region, admin, operator, name="objects", **served.target)
    assert not Transfer.objects.exists()


@pytest.mark.parametrize("served", [to_moto, to_s3api, to_swift], indirect=True, ids=["moto", "s3api", "swift"])
def test_a_drain_stops_at_its_canary_when_the_server_flips_bits_after_its_probe(region, served, admin, operator):
    for number in range(ITEMS):
        region.volume(f"disk-{number}", "east")
    moving = begin(region, admin, operator, name="objects", canary_items=1, **served.target)
    served.proxy.add_rule(lambda sent: writes_item(sent) and flips(sent), FLIP)
    row = moving.run_to_end()
    assert row.state == DrainState.PAUSED
    assert "canary failed" in row.note
    assert moving.causes() == {"corrupt"}
    assert moving.ready() == []
    moving.assert_readable()
    served.proxy.clear_rules()
    drain.resume(actor=operator, drain=row)
    assert moving.run_to_end().note == "Every item is proven."
    moving.assert_whole()
