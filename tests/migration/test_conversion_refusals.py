"""A conversion is refused, and nothing is changed, when a real object store is not fit to take the region."""

from __future__ import annotations

import json

import pytest

from cloudstorage.errors import Blocked, ServiceError
from migration.conversion import convert
from migration.preflight import preflight
from stores.drivers.base import MARKER_KEY
from tests.drivers.s3_cases import administer, details_of, new_bucket
from tests.migration.region import changed, dump
from tests.servers.proxy import Answer

pytestmark = [pytest.mark.live, pytest.mark.django_db]

TOO_SKEWED = b"<?xml version='1.0'?><Error><Code>RequestTimeTooSkewed</Code><Message>too skewed</Message></Error>"


@pytest.fixture
def bucket(swift_server) -> str:
    return new_bucket(swift_server)


@pytest.fixture
def good(swift_server, bucket, settings) -> dict[str, str]:
    """Details of a bucket on a real Swift's s3api, which checks credentials."""
    settings.OUTBOUND_ALLOW_LOOPBACK = True
    return details_of(swift_server, bucket)


def wrong_credentials(details, server, bucket, request):
    return details | {"secretkey": "wrong"}


def missing_bucket(details, server, bucket, request):
    return details | {"bucket": f"{bucket}-missing"}


def read_only_bucket(details, server, bucket, request):
    return details | {"accesskey": server.reader_access_key, "secretkey": server.reader_secret_key}


def foreign_bucket(details, server, bucket, request):
    marker = json.dumps({"cloud": "another", "store": "another"}).encode()
    administer(server).put_object(Bucket=bucket, Key=MARKER_KEY, Body=marker)
    return details


def clock_skew(details, server, bucket, request):
    proxy = request.getfixturevalue("http_proxy")(server.s3_url)
    proxy.add_rule(lambda sent: True, Answer(403, {"Content-Type": "application/xml"}, TOO_SKEWED))
    return details | {"endpoint": f"127.0.0.1:{proxy.port}"}


def server_away(details, server, bucket, request):
    proxy = request.getfixturevalue("tcp_proxy")(server.s3_url)
    proxy.stop()
    return details | {"endpoint": f"127.0.0.1:{proxy.port}"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (wrong_credentials, "credential|secret|signature|key"),
        (missing_bucket, "bucket"),
        (read_only_bucket, "writ|right|refus|denied|allowed"),
        (foreign_bucket, "another cloud"),
        (clock_skew, "clock"),
        (server_away, "answer|connect|reach"),
    ],
)
def test_conversion_is_refused_with_nothing_changed_when_the_object_store_is_unfit(
    region, admin, swift_server, bucket, good, request, spoil, says
):
    region.template("image", "east")
    details = spoil(good, swift_server, bucket, request)
    target = {"name": "objects", "provider": "S3", "url": "", "details": details}
    report = preflight(actor=admin, **target).report
    assert [found["code"] for found in report["findings"] if found["severity"] == "blocker"] == ["object-store"]

    before = dump()
    with pytest.raises(ServiceError) as told:
        convert(actor=admin, override=["preflight-absent", "object-store"], **target)
    assert changed(before, dump()) == set()
    assert isinstance(told.value, Blocked)
    assert told.value.remedy
    assert told.value.field
    text = " ".join(found.message for found in told.value.findings) + told.value.message
    assert any(word in text.lower() for word in says.split("|")), text


def test_region_is_converted_when_the_object_store_is_fit(region, admin, good):
    region.template("image", "east")
    target = {"name": "objects", "provider": "S3", "url": "", "details": good}
    found = preflight(actor=admin, **target)
    assert found.blockers == 0, found.report["findings"]
    assert found.report["time"]["low_seconds"] <= found.report["time"]["high_seconds"]
    conversion = convert(actor=admin, preflight=found, **target)
    assert conversion.counts["promised"]["template"] == 1
    kept = conversion.object_store.details.get(name="secretkey")
    assert kept.secret
    assert good["secretkey"] not in kept.value
