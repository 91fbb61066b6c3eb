"""Real servers are added, refused with field and remedy, written to, read from and left clean."""

from __future__ import annotations

import io
import uuid

import pytest

from cloudstorage.errors import Blocked, Conflict, Invalid, Unreachable
from stores.drivers.base import MARKER_KEY
from stores.models import ImageStore, ImageStoreDetail, Kind
from stores.services import image_stores, inventory, items, uploads
from stores.states import PROVEN
from tests import factories
from tests.drivers.s3_cases import administer, details_of, new_bucket

pytestmark = [pytest.mark.live, pytest.mark.db, pytest.mark.django_db]

DATA = factories.content("live", 17 * 1024 * 1024)
"""Two parts."""


@pytest.fixture(autouse=True)
def _loopback(settings):
    settings.OUTBOUND_ALLOW_LOOPBACK = True
    factories.make_account(2)


def s3(server, bucket=None, **more):
    return {"provider": "S3", "url": "", "details": details_of(server, bucket or new_bucket(server), **more)}


def swift(server):
    details = {"username": server.username, "key": server.key, "container": f"images-{uuid.uuid4()}"}
    return {"provider": "Swift", "url": server.auth_url, "details": details}


def keys_in(server, bucket):
    client = administer(server)
    found = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    client.close()
    return found


def whole_life(admin, viewer, given):
    """Add, register, read back, delete; returns the store."""
    store = image_stores.add_store(actor=admin, name="objects", **given)
    secret = list(ImageStoreDetail.objects.filter(secret=True).values_list("value", flat=True))
    assert secret
    assert all(value.startswith("fernet:") for value in secret)
    ref = uploads.register_upload(
        actor=admin,
        kind=Kind.TEMPLATE,
        zone=None,
        account_id=2,
        name="t",
        filename="disk.raw",
        stream=io.BytesIO(DATA),
        size=len(DATA),
    )
    assert ref.proof in PROVEN
    with inventory.open_content(actor=viewer, kind=Kind.TEMPLATE, item=ref.item) as content:
        assert b"".join(content.chunks()) == DATA
        assert content.pread(16_777_210, 20) == DATA[16_777_210:16_777_230]
    items.delete_item(actor=admin, kind=Kind.TEMPLATE, item=ref.item)
    assert items.finish_deletes() == 1
    return store


@pytest.mark.parametrize("name", ["moto_server", "swift_server"])
def test_item_lives_and_leaves_nothing_when_the_store_speaks_s3(request, admin, viewer, name):
    server = request.getfixturevalue(name)
    given = s3(server)
    store = whole_life(admin, viewer, given)
    assert (store.scope, store.protocol) == ("REGION", "http")
    assert keys_in(server, given["details"]["bucket"]) == [MARKER_KEY]


def test_item_lives_and_leaves_nothing_when_the_store_is_swift(admin, viewer, swift_server):
    store = whole_life(admin, viewer, swift(swift_server))
    assert [info.key for info in image_stores.driver_for(store).list("template/")] == []
    assert list(image_stores.driver_for(store).pending_uploads()) == []


def refused(admin, given, error=Blocked):
    with pytest.raises(error) as caught:
        image_stores.add_store(actor=admin, name="objects", **given)
    assert not ImageStore.objects.exists()
    assert caught.value.message
    assert caught.value.remedy
    return caught.value


def test_bucket_is_named_when_it_does_not_exist(admin, swift_server):
    found = refused(admin, s3(swift_server, "no-such-bucket"))
    assert found.field == "bucket"
    assert "blocker" in [step.status for step in found.findings]


def test_credentials_are_named_when_they_are_wrong(admin, swift_server):
    bucket = new_bucket(swift_server)
    assert refused(admin, s3(swift_server, bucket, secretkey="wrong")).field in {"secretkey", "accesskey"}
    assert keys_in(swift_server, bucket) == []


def test_bucket_of_another_cloud_is_refused_and_untouched(admin, moto_server):
    bucket = new_bucket(moto_server)
    client = administer(moto_server)
    client.put_object(Bucket=bucket, Key=MARKER_KEY, Body=b'{"cloud": "other", "store": "theirs"}')
    client.close()
    assert "another cloud" in refused(admin, s3(moto_server, bucket)).message
    assert keys_in(moto_server, bucket) == [MARKER_KEY]


def test_same_bucket_is_a_conflict_when_it_is_added_twice(admin, moto_server):
    given = s3(moto_server)
    image_stores.add_store(actor=admin, name="first", **given)
    with pytest.raises(Conflict, match="'first'"):
        image_stores.add_store(actor=admin, name="second", **given)


def test_address_is_refused_when_the_outbound_policy_forbids_it(admin, moto_server, settings):
    given = s3(moto_server)
    settings.OUTBOUND_ALLOW_LOOPBACK = False
    found = refused(admin, given)
    assert "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK" in found.message + found.remedy


def test_store_is_refused_when_nobody_answers(admin, moto_server, tcp_proxy):
    gate = tcp_proxy(moto_server.s3_url)
    given = s3(moto_server, endpoint=gate.url.removeprefix("http://"))
    gate.refuse()
    refused(admin, given)


def test_export_is_refused_when_it_is_not_mounted(admin, settings):
    settings.ALLOW_PLAIN_EXPORTS = False
    given = {"provider": "NFS", "url": "nfs://filer/export", "details": {}, "zone": factories.make_zone()}
    assert "not mounted" in refused(admin, given).message


def test_export_is_used_when_it_is_mapped_to_a_mount(admin, bind_mount, settings, tmp_path):
    settings.ALLOW_PLAIN_EXPORTS = False
    settings.NFS_MOUNTS = {"filer:/export": str(tmp_path / "mount")}
    given = {"provider": "NFS", "url": "nfs://filer/export", "details": {}, "zone": factories.make_zone()}
    store = image_stores.add_store(actor=admin, name="nfs", **given)
    assert (tmp_path / "source" / MARKER_KEY).exists()
    image_stores.driver_for(store).check()


def test_other_details_stay_when_one_is_changed(admin, moto_server):
    given = s3(moto_server)
    store = image_stores.add_store(actor=admin, name="objects", **given)
    image_stores.update_store(actor=admin, store=store, details={"sockettimeout": "20000", "secretkey": ""})
    kept = ImageStore.objects.get()
    details = image_stores.details_of(kept, reveal=True)
    assert (details["sockettimeout"], details["secretkey"]) == ("20000", moto_server.secret_key)
    assert details["bucket"] == given["details"]["bucket"]
    image_stores.driver_for(kept).check()


def test_store_is_not_led_elsewhere_when_its_details_are_changed(admin, moto_server):
    store = image_stores.add_store(actor=admin, name="objects", **s3(moto_server))
    with pytest.raises((Invalid, Unreachable)) as caught:
        image_stores.update_store(actor=admin, store=store, details={"bucket": new_bucket(moto_server)})
    assert "marker" in caught.value.message
    image_stores.driver_for(ImageStore.objects.get()).check()
