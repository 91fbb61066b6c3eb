"""What S3 claims on servers that verify and on one that does not, and what its probe says of a bucket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from stores.drivers.base import MiB, ProbeStep
from stores.drivers.errors import (
    AccessDenied,
    Corrupt,
    LockedOut,
    Misconfigured,
    StoreError,
)
from stores.drivers.probe import facts_of, worst
from stores.states import Proof
from tests.drivers.s3_cases import Place, error, moto_place, swift_place  # noqa: F401 fixtures
from tests.servers.proxy import Answer

PART = 5 * MiB


def by_name(steps: list[ProbeStep]) -> dict[str, ProbeStep]:
    return {step.name: step for step in steps}


# --- servers that verify, and one that does not ------------------------------------------------------------------------


@pytest.mark.live
def test_probe_finds_that_swift_verifies_everything(swift: Place) -> None:
    steps = list(swift.driver().probe())
    found = by_name(steps)
    facts = facts_of(steps)
    assert set(facts["verifies"]) == {
        f"{where}:{name}" for where in ("put", "part") for name in ("crc32c", "md5", "crc32", "sha256")
    }  # type: ignore[call-overload]
    assert (facts["max_parts"], facts["conditional_put"], facts["conditional_complete"]) == (1000, True, True)
    assert facts["etag_md5"] is facts["etag_md5_part"] is facts["etag_md5_multipart"] is facts["declares_checksum"] is True
    assert abs(facts["clock_skew"]) < 60  # type: ignore[arg-type]
    assert found["lifecycle rules"].status == "unknown"
    assert found["lifecycle rules"].remedy
    assert worst(steps) == "unknown"
    assert swift.admin.list_objects_v2(Bucket=swift.bucket).get("Contents", []) == []
    assert swift.admin.list_multipart_uploads(Bucket=swift.bucket).get("Uploads", []) == []


@pytest.mark.live
def test_writes_are_verified_when_the_probe_saw_wrong_ones_refused(swift: Place) -> None:
    driver = swift.driver(facts=facts_of(swift.driver().probe()))
    assert driver.capabilities.verifies_writes
    assert driver.capabilities.max_parts == 1000
    checksums, md5s = swift.sees("x-amz-checksum-crc32c"), swift.sees("content-md5")
    stored = driver.put("small", b"x", metadata={}, token="t")
    upload = driver.begin_upload("large", size=None, part_size=PART, metadata={}, token="t")
    parts = [driver.put_part(upload, 1, 0, bytes(PART)), driver.put_part(upload, 2, PART, b"end")]
    assert [part.verified for part in parts] == [True, True]
    assert (stored.proof, driver.complete_upload(upload, parts).proof) == (Proof.VERIFIED, Proof.VERIFIED)
    assert [bool(checksum) for checksum in checksums] == [True, False, True, True, False]
    assert set(md5s) == {None}


@pytest.mark.live
def test_md5_is_sent_when_only_that_is_verified(swift: Place) -> None:
    driver = swift.driver(facts={"verifies": ["put:md5", "part:md5"]})
    md5s, checksums = swift.sees("content-md5"), swift.sees("x-amz-checksum-crc32c")
    assert driver.put("small", b"x", metadata={}, token="t").proof is Proof.VERIFIED
    assert (bool(md5s[0]), checksums[0]) == (True, None)


@pytest.mark.live
def test_nothing_is_verified_when_the_server_accepts_wrong_checksums(moto: Place) -> None:
    steps = list(moto.driver().probe())
    facts = facts_of(steps)
    assert facts["verifies"] == []
    assert by_name(steps)["checksums"].status == "warning"
    for known in ({}, facts):
        driver = moto.driver(facts=known)
        assert not driver.capabilities.verifies_writes
        checksums = moto.sees("content-md5")
        stored = driver.put("small", b"x", metadata={}, token="t")
        upload = driver.begin_upload("large", size=None, part_size=PART, metadata={}, token="t")
        parts = [driver.put_part(upload, 1, 0, bytes(PART)), driver.put_part(upload, 2, PART, b"end")]
        assert [part.verified for part in parts] == [False, False]
        assert (stored.proof, driver.complete_upload(upload, parts).proof) == (Proof.ATTESTED, Proof.ATTESTED)
        assert set(checksums) == {None}
        moto.proxy.clear_rules()


@pytest.mark.live
def test_nothing_is_proven_when_the_etag_tells_nothing(moto: Place) -> None:
    moto.proxy.add_rule(lambda sent: sent.method == "PUT", Answer(200, {"ETag": '"opaque"'}), times=1)
    assert moto.driver().put("x", b"x", metadata={}, token="t").proof is None
    kms = moto.driver(sse="aws:kms")
    assert kms.put("y", b"y", metadata={}, token="t").proof is None


@pytest.mark.live
def test_other_etag_is_corruption_when_the_server_is_known_to_answer_md5(moto: Place) -> None:
    driver = moto.driver(facts={"etag_md5": True, "etag_md5_part": True})
    upload = driver.begin_upload("y", size=None, part_size=PART, metadata={}, token="t")
    moto.proxy.add_rule(lambda sent: sent.method == "PUT", Answer(200, {"ETag": '"' + "0" * 32 + '"'}))
    with pytest.raises(Corrupt):
        driver.put("x", b"x", metadata={}, token="t")
    with pytest.raises(Corrupt):
        driver.put_part(upload, 1, 0, b"y")


@pytest.mark.live
def test_encryption_is_asked_for_when_configured(moto: Place) -> None:
    driver = moto.driver(sse="AES256")
    driver.put("x", b"x", metadata={}, token="t")
    upload = driver.begin_upload("y", size=None, part_size=PART, metadata={}, token="t")
    driver.complete_upload(upload, [driver.put_part(upload, 1, 0, b"y")])
    for key in ("x", "y"):
        assert moto.admin.head_object(Bucket=moto.bucket, Key=key)["ServerSideEncryption"] == "AES256"


@pytest.mark.live
def test_identity_is_on_the_object_from_its_first_byte(swift: Place) -> None:
    driver = swift.driver(prefix="p")
    driver.put("a", b"a", metadata={"cs-id": "7", "cs-name": "Größe %"}, token="tok")
    raw = swift.admin.head_object(Bucket=swift.bucket, Key="p/a")["Metadata"]
    assert raw == {"cs-id": "7", "cs-name": "Gr%C3%B6%C3%9Fe%20%25", "cs-token": "tok"}


# --- what the probe says of a bucket -----------------------------------------------------------------------------------


@pytest.mark.live
def test_write_is_the_blocker_when_the_credentials_may_only_read(swift: Place) -> None:
    reader = {"accesskey": swift.server.reader_access_key, "secretkey": swift.server.reader_secret_key}
    steps = list(swift.driver(**reader).probe())
    blockers = [step for step in steps if step.status == "blocker"]
    assert [step.name for step in blockers] == ["write"]
    assert blockers[0].remedy == LockedOut.remedy
    assert "multipart" not in by_name(steps)


@pytest.mark.live
@pytest.mark.parametrize(
    ("details", "field", "kind"),
    [
        ({"secretkey": "wrong-secret"}, "secretkey", AccessDenied),
        ({"bucket": "there-is-none"}, "bucket", Misconfigured),
    ],
)
def test_reach_is_the_blocker_and_names_the_field(
    swift: Place, details: dict[str, str], field: str, kind: type[StoreError]
) -> None:
    driver = swift.driver(**details)
    steps = list(driver.probe())
    assert [(step.name, step.status, step.field) for step in steps if step.status != "ok"] == [("reach", "blocker", field)]
    with pytest.raises(kind) as raised:
        driver.check()
    assert raised.value.field == field
    assert "wrong-secret" not in str(raised.value)


@pytest.mark.live
def test_missing_bucket_is_never_read_as_a_missing_object(swift: Place) -> None:
    driver = swift.driver(bucket="there-is-none")
    for use in (lambda: driver.stat("x"), lambda: driver.exists("x"), lambda: driver.delete("x"), driver.read_marker):
        with pytest.raises(Misconfigured):
            use()
    with pytest.raises(Misconfigured):
        list(driver.list())


@pytest.mark.live
def test_foreign_content_is_a_blocker_when_no_marker_says_whose_it_is(moto: Place) -> None:
    moto.admin.put_object(Bucket=moto.bucket, Key="clouds/theirs/x", Body=b"x")
    steps = by_name(list(moto.driver().probe()))
    assert steps["foreign content"].status == "blocker"
    assert "clouds/theirs/x" in steps["foreign content"].message
    assert by_name(list(moto.driver(prefix="clouds/ours").probe()))["foreign content"].status == "ok"
    assert moto.admin.get_object(Bucket=moto.bucket, Key="clouds/theirs/x")["Body"].read() == b"x"


RULES = {
    "expiry": ({"Expiration": {"Days": 30}}, "blocker"),
    "expiry by date": ({"Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}}, "blocker"),
    "cold": ({"Transitions": [{"Days": 30, "StorageClass": "GLACIER"}]}, "blocker"),
    "cooler": ({"Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}]}, "warning"),
    "uploads": ({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3}}, "warning"),
    "old versions": ({"NoncurrentVersionExpiration": {"NoncurrentDays": 3}}, "ok"),
}


def set_rule(place: Place, rule: dict[str, Any], chosen: dict[str, Any], status: str = "Enabled") -> None:
    rules = [{"ID": "the-rule", "Status": status, "Filter": chosen, **rule}]
    place.admin.put_bucket_lifecycle_configuration(Bucket=place.bucket, LifecycleConfiguration={"Rules": rules})


@pytest.mark.live
@pytest.mark.parametrize("name", RULES)
def test_lifecycle_rule_is_judged_by_what_it_would_do_to_images(moto: Place, name: str) -> None:
    rule, status = RULES[name]
    set_rule(moto, rule, {"Prefix": ""})
    step = by_name(list(moto.driver().probe()))["lifecycle rules"]
    assert step.status == status
    assert status == "ok" or ("the-rule" in step.message and step.remedy)


@pytest.mark.live
@pytest.mark.parametrize(
    ("chosen", "status", "judged"),
    [
        ({"Prefix": "logs/"}, "Enabled", "ok"),
        ({"Prefix": "clouds/ours/template/"}, "Enabled", "blocker"),
        ({"Prefix": "clouds/"}, "Enabled", "blocker"),
        ({"Prefix": "clouds/ours"}, "Enabled", "blocker"),
        ({"Prefix": "clouds/"}, "Disabled", "ok"),
        ({"Tag": {"Key": "a", "Value": "b"}}, "Enabled", "ok"),
    ],
)
def test_lifecycle_rule_counts_only_when_it_covers_our_prefix(
    moto: Place, chosen: dict[str, Any], status: str, judged: str
) -> None:
    set_rule(moto, {"Expiration": {"Days": 30}}, chosen, status)
    assert by_name(list(moto.driver(prefix="clouds/ours").probe()))["lifecycle rules"].status == judged


@pytest.mark.live
@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (error(403, "AccessDenied"), "unknown", "Not allowed to find out"),
        (error(501, "NotImplemented"), "info", "no such feature"),
        (error(405, "MethodNotAllowed"), "info", "no such feature"),
        (error(500, "InternalError"), "unknown", "Could not find out"),
    ],
)
def test_rules_are_never_called_absent_when_the_server_does_not_tell(
    moto: Place, answer: Answer, status: str, words: str
) -> None:
    queries = ("lifecycle", "versioning", "object-lock", "encryption", "acl")
    moto.proxy.add_rule(lambda sent: sent.method == "GET" and sent.target.rpartition("?")[2].rstrip("=") in queries, answer)
    steps = by_name(list(moto.driver().probe()))
    for name in ("lifecycle rules", "versioning", "object lock", "default encryption", "public access"):
        assert steps[name].status == status, steps[name]
        assert words in steps[name].message


@pytest.mark.live
def test_no_version_stays_when_the_bucket_keeps_versions(moto: Place) -> None:
    moto.admin.put_bucket_versioning(Bucket=moto.bucket, VersioningConfiguration={"Status": "Enabled"})
    steps = by_name(list(moto.driver().probe()))
    assert steps["versioning"].status == "warning"
    page = moto.admin.list_object_versions(Bucket=moto.bucket)
    assert page.get("Versions", []) + page.get("DeleteMarkers", []) == []


@pytest.mark.live
def test_public_and_encrypted_buckets_are_told(moto: Place) -> None:
    moto.admin.put_bucket_acl(Bucket=moto.bucket, ACL="public-read")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}
    moto.admin.put_bucket_encryption(Bucket=moto.bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    steps = by_name(list(moto.driver().probe()))
    assert steps["public access"].status == "warning"
    assert steps["default encryption"].status == "info"
    assert "KMS" in steps["default encryption"].message


@pytest.mark.live
def test_object_lock_is_told_when_the_bucket_retains(moto: Place) -> None:
    name = f"{moto.bucket}-locked"
    moto.admin.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    assert by_name(list(moto.driver(bucket=name).probe()))["object lock"].status == "info"
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    lock = {"ObjectLockEnabled": "Enabled", "Rule": rule}
    moto.admin.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=lock)
    assert by_name(list(moto.driver(bucket=name).probe()))["object lock"].status == "warning"


@pytest.mark.live
def test_clock_is_named_when_it_differs(moto: Place) -> None:
    late = format_datetime(datetime.now(UTC) - timedelta(minutes=11), usegmt=True)
    moto.proxy.add_rule(lambda sent: (sent.method, sent.target) == ("HEAD", f"/{moto.bucket}"), Answer(200, {"Date": late}))
    assert by_name(list(moto.driver().probe()))["clock"].status == "warning"
    moto.proxy.clear_rules()
    moto.proxy.add_rule(lambda sent: True, error(403, "RequestTimeTooSkewed"))
    reach = next(iter(moto.driver().probe()))
    assert (reach.name, reach.status) == ("reach", "blocker")
    assert "clocks" in reach.message
    assert "NTP" in reach.remedy
