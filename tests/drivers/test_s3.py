"""S3 beyond the contract: what it claims on servers that verify and on one that does not, and what it makes of every failure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.drivers.base import MARKER_KEY, MiB
from stores.drivers.errors import (
    AccessDenied,
    AlreadyExists,
    Corrupt,
    Foreign,
    Full,
    Misconfigured,
    NotFound,
    SourceChanged,
    StoreError,
    Throttled,
    Unavailable,
    UnsafeName,
    UploadGone,
    WrongClock,
)
from stores.drivers.probe import facts_of
from stores.drivers.s3 import S3Driver
from stores.drivers.s3_names import escape, escaped_prefix, is_safe, unescape
from stores.drivers.s3_options import Settings
from stores.states import Proof
from tests.drivers.conftest import Streamed
from tests.drivers.s3_cases import Place, config_of, error, moto_place, swift_place  # noqa: F401 fixtures
from tests.servers.proxy import Answer, Cut, LoggingHttpProxy, TcpProxy

NO_SERVER = {"bucket": "images", "endpoint": "s3.example.org", "accesskey": "ak", "secretkey": "sk"}
PART = 5 * MiB


# --- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("url", "details", "shown"),
    [
        ("", {}, "https://s3.example.org/images"),
        ("", {"usehttps": "false", "prefix": "/a/b/"}, "http://s3.example.org/images/a/b"),
        ("", {"endpoint": "http://s3.example.org:9000/"}, "http://s3.example.org:9000/images"),
        ("http://s3.example.org:9000/other/pre/fix/", {"endpoint": "", "bucket": ""}, "http://s3.example.org:9000/other/pre/fix"),
        ("https://s3.example.org/images", {}, "https://s3.example.org/images"),
        ("", {"endpoint": "", "region": "eu-central-1"}, "https://s3.eu-central-1.amazonaws.com/images"),
        ("", {"endpoint": "[fd00::1]:9000"}, "https://[fd00::1]:9000/images"),
    ],
)
def test_place_is_the_same_however_it_is_written(url: str, details: dict[str, str], shown: str) -> None:
    url, clean = S3Driver.clean(url, NO_SERVER | details)
    assert url == ""
    assert S3Driver.clean(url, clean) == (url, clean)
    driver = S3Driver(config_of(clean))
    assert driver.display_url == shown
    assert driver.protocol == shown.partition(":")[0]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("url", "details", "field"),
    [
        ("", {"accesskey": ""}, "accesskey"),
        ("", {"secretkey": ""}, "secretkey"),
        ("", {"bucket": ""}, "bucket"),
        ("", {"bucket": "../x"}, "bucket"),
        ("", {"endpoint": "s3.example.org/path"}, "endpoint"),
        ("", {"endpoint": "user@s3.example.org"}, "endpoint"),
        ("", {"endpoint": "ftp://s3.example.org"}, "endpoint"),
        ("", {"endpoint": "http://s3.example.org", "usehttps": "true"}, "endpoint"),
        ("", {"usehttps": "yes"}, "usehttps"),
        ("", {"sockettimeout": "soon"}, "sockettimeout"),
        ("", {"connectiontimeout": "0"}, "connectiontimeout"),
        ("", {"s3signer": "V5"}, "s3signer"),
        ("", {"addressing": "odd"}, "addressing"),
        ("", {"sse": "rot13"}, "sse"),
        ("", {"ssekmskeyid": "key"}, "ssekmskeyid"),
        ("", {"prefix": "a/../b"}, "prefix"),
        ("", {"proxy": "socks5://x"}, "proxy"),
        ("", {"colour": "red"}, "colour"),
        ("https://other.example.org/images", {}, "url"),
        ("https://s3.example.org/other", {}, "url"),
        ("https://s3.example.org", {}, "url"),
        ("ftp://s3.example.org/images", {}, "url"),
        ("https://ak:sk@s3.example.org/images", {}, "url"),
    ],
)
def test_mistake_is_named_by_its_field_when_configured_wrongly(url: str, details: dict[str, str], field: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        S3Driver.clean(url, NO_SERVER | details)
    assert raised.value.field == field


@pytest.mark.unit
def test_details_mean_what_they_mean_in_cloudstack() -> None:
    details = {"connectiontimeout": "1500", "sockettimeout": "2500", "connectionttl": "60000", "usetcpkeepalive": "false"}
    _, clean = S3Driver.clean("", NO_SERVER | details | {"maxerrorretry": "5", "s3signer": "S3SignerType"})
    settings = Settings.parse(clean)
    assert (settings.connect_timeout, settings.read_timeout, settings.connection_ttl) == (1.5, 2.5, 60)
    assert (settings.keepalive, settings.retries, settings.signer) == (False, 5, "s3")
    assert {option.name for option in S3Driver.options if option.secret} == {"secretkey"}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("details", "signed"),
    [
        ({}, False),
        ({"usehttps": "false"}, True),
        ({"usehttps": "false", "endpoint": "127.0.0.1:9000"}, False),
        ({"usehttps": "false", "endpoint": "[::1]:9000"}, False),
        ({"usehttps": "false", "endpoint": "127.0.0.1.example.org"}, True),
    ],
)
def test_payload_is_signed_when_others_could_change_it_on_the_way(details: dict[str, str], signed: bool) -> None:
    assert S3Driver(config_of(NO_SERVER | details)).settings.signs_payload is signed


@pytest.mark.unit
@pytest.mark.parametrize(
    ("details", "url"),
    [
        ({"addressing": "virtual"}, "https://images.s3.example.org"),
        ({"addressing": "path"}, "https://s3.example.org"),
        ({}, "https://s3.example.org"),
        ({"endpoint": ""}, "https://images.s3.us-east-1.amazonaws.com"),
        ({"proxy": "http://proxy.lan:3128"}, "http://proxy.lan:3128"),
    ],
)
def test_nothing_is_connected_to_when_the_policy_forbids_the_address(details: dict[str, str], url: str) -> None:
    asked: list[str] = []

    def forbid(where: str) -> None:
        asked.append(where)
        raise Misconfigured("forbidden address", field="endpoint")

    driver = S3Driver(config_of(NO_SERVER | details, check_url=forbid))
    with pytest.raises(Misconfigured, match="forbidden address"):
        driver.stat("x")
    steps = list(driver.probe())
    assert (steps[0].name, steps[0].status, steps[0].field) == ("reach", "blocker", "endpoint")
    assert set(asked) == {url}


@pytest.mark.unit
def test_request_goes_to_the_buckets_own_host_when_addressed_virtually() -> None:
    driver = S3Driver(config_of(NO_SERVER | {"addressing": "virtual", "prefix": "p"}))
    url = driver.presign("a b/c", expires=60, filename='näme "1".iso')
    assert url is not None
    assert url.startswith("https://images.s3.example.org/p/a%20b/c?")
    assert "X-Amz-Expires=60" in url
    assert "filename%2A%3DUTF-8%27%27n%25C3%25A4me" in url


# --- names -------------------------------------------------------------------------------------------------------------

NAMES = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("%25C3a/\x01\x7f\udc80\udcff")), max_size=30)


@pytest.mark.unit
@given(NAMES)
def test_every_name_comes_back_as_it_was(name: str) -> None:
    escaped = escape(name)
    assert unescape(escaped) == name
    assert not any(ord(char) < 0x20 or char == "\x7f" for char in escaped)
    escaped.encode()


@pytest.mark.unit
@given(NAMES, NAMES)
def test_prefix_of_a_name_stays_a_prefix_when_escaped(start: str, rest: str) -> None:
    assert escape(start + rest).startswith(escaped_prefix(start))


@pytest.mark.unit
@pytest.mark.parametrize("name", ["100%", "a%20b", "%zz", "%2F", "x%25", "日本", "plain"])
def test_foreign_names_are_left_alone_when_they_only_look_escaped(name: str) -> None:
    assert escape(name) == unescape(name) == name


@pytest.mark.unit
def test_key_is_refused_when_s3_has_no_room_for_it() -> None:
    driver = S3Driver(config_of(NO_SERVER | {"prefix": "p" * 100}))
    assert driver.full_key("k" * 923)
    for key in ("k" * 924, "ö" * 462, "\udcff" * 308 + "/x", "a/../b", "/a", "a//b", "x\0y", "\ud800"):
        with pytest.raises(UnsafeName):
            driver.full_key(key)
    assert not is_safe("..")


# --- failures in our words ---------------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize(
    ("status", "code", "kind", "field"),
    [
        (403, "InvalidAccessKeyId", AccessDenied, "accesskey"),
        (403, "SignatureDoesNotMatch", AccessDenied, "secretkey"),
        (403, "AccessDenied", AccessDenied, "accesskey"),
        (401, "Whatever", AccessDenied, "accesskey"),
        (404, "NoSuchBucket", Misconfigured, "bucket"),
        (404, "NoSuchUpload", UploadGone, None),
        (404, "NoSuchKey", NotFound, None),
        (400, "BadDigest", Corrupt, None),
        (400, "InvalidDigest", Corrupt, None),
        (400, "XAmzContentChecksumMismatch", Corrupt, None),
        (412, "PreconditionFailed", AlreadyExists, None),
        (400, "AuthorizationHeaderMalformed", Misconfigured, "region"),
        (403, "RequestTimeTooSkewed", WrongClock, None),
        (403, "QuotaExceeded", Full, None),
        (507, "InsufficientStorage", Full, None),
        (500, "InternalError", Unavailable, None),
        (502, "", Unavailable, None),
        (400, "EntityTooSmall", Misconfigured, None),
        (400, "Odd", StoreError, None),
    ],
)
def test_answer_becomes_the_error_that_says_what_to_do(moto: Place, status: int, code: str, kind: Any, field: str | None) -> None:
    secret = "moto-secret"
    moto.proxy.add_rule(lambda sent: sent.method == "PUT", error(status, code, f"Long {secret} story " * 100))
    with pytest.raises(kind) as raised:
        moto.driver().put("x", b"x", metadata={}, token="t")
    assert type(raised.value).__mro__[0] in {kind, *kind.__subclasses__()}
    assert raised.value.field == field
    assert secret not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.live
@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (503, "ServiceUnavailable"), (429, "TooManyRequests"), (400, "SlowDown")]
)
def test_store_that_asks_for_less_is_throttling(moto: Place, status: int, code: str) -> None:
    answer = error(status, code)
    answer.headers["Retry-After"] = "7"
    moto.proxy.add_rule(lambda sent: True, answer)
    with pytest.raises(Throttled) as raised:
        moto.driver().stat("x") if status == 429 else moto.driver().put("x", b"x", metadata={}, token="t")
    assert raised.value.retry_after == 7
    assert raised.value.retryable


@pytest.mark.live
def test_error_inside_a_success_is_an_error_when_completing(moto: Place) -> None:
    driver = moto.driver()
    upload = driver.begin_upload("x", size=None, part_size=PART, metadata={}, token="t")
    parts = [driver.put_part(upload, 1, 0, b"x")]
    moto.proxy.add_rule(lambda sent: sent.method == "POST", replace(error(500, "InternalError"), status=200))
    with pytest.raises(Unavailable):
        driver.complete_upload(upload, parts)
    assert not driver.exists("x")
    driver.abort_upload(upload)
    assert list(driver.pending_uploads()) == []


@pytest.mark.live
@pytest.mark.parametrize("page", [b"<html><body>It works!</body></html>", b"<html>It works!", b"", b"{}"])
def test_garbage_is_not_taken_for_an_empty_listing(moto: Place, page: bytes) -> None:
    moto.proxy.add_rule(lambda sent: True, Answer(200, {"Content-Type": "text/html"}, page))
    with pytest.raises((Misconfigured, Unavailable)):
        list(moto.driver().list())
    with pytest.raises((Misconfigured, Unavailable)):
        list(moto.driver().pending_uploads())


@pytest.mark.live
def test_redirect_is_not_followed_when_it_leads_elsewhere(moto: Place, http_proxy: Callable[[str], LoggingHttpProxy]) -> None:
    elsewhere = http_proxy(moto.server.s3_url)
    for status, code in ((301, "PermanentRedirect"), (307, "TemporaryRedirect"), (302, "Found")):
        answer = error(status, code)
        answer.headers.update({"Location": f"{elsewhere.url}/x", "x-amz-bucket-region": "eu-west-1"})
        moto.proxy.clear_rules()
        moto.proxy.add_rule(lambda sent: True, answer)
        with pytest.raises(Misconfigured):
            moto.driver().put("x", b"x", metadata={}, token="t")
    assert elsewhere.records == []


@pytest.mark.live
@pytest.mark.parametrize("detail", ["cabundle", "tls"])
def test_certificate_and_bundle_are_named_when_tls_fails(moto: Place, detail: str) -> None:
    driver = (
        moto.driver(cabundle="/nowhere/ca.pem") if detail == "cabundle" else moto.driver(usehttps="true", connectiontimeout="500")
    )
    for use in (lambda: driver.stat("x"), lambda: driver.put("x", b"x", metadata={}, token="t")):
        with pytest.raises((Misconfigured, Unavailable)) as raised:
            use()
        assert raised.value.field in {"cabundle", "endpoint"}


# --- lost answers and other bad luck -----------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize("retries", ["0", "2"])
def test_completion_is_found_done_when_only_its_answer_was_lost(moto: Place, retries: str) -> None:
    driver = moto.driver(maxerrorretry=retries)
    upload = driver.begin_upload("x", size=1, part_size=PART, metadata={}, token="attempt-1")
    parts = [driver.put_part(upload, 1, 0, b"x")]
    moto.proxy.add_rule(lambda sent: sent.method == "POST", Cut("response"), times=1)
    if retries == "0":
        with pytest.raises(Unavailable):
            driver.complete_upload(upload, parts)
    # moto answers 500 to a completion that it has seen; S3 says NoSuchUpload.
    moto.proxy.add_rule(lambda sent: sent.method == "POST", error(404, "NoSuchUpload"))
    stored = driver.complete_upload(upload, parts)
    assert (stored.size, stored.proof) == (1, Proof.ATTESTED)


@pytest.mark.live
def test_upload_is_completed_once_when_the_server_would_do_it_again(swift: Place) -> None:
    """Swift's s3api answers 200 to a repeated completion and writes the object anew."""
    facts = facts_of(swift.driver().probe())
    driver = swift.driver(facts=facts)
    upload = driver.begin_upload("x", size=PART + 1, part_size=PART, metadata={}, token="mine")
    parts = [driver.put_part(upload, 1, 0, bytes(PART)), driver.put_part(upload, 2, PART, b"x")]
    swift.proxy.clear_records()
    first = driver.complete_upload(upload, parts)
    assert swift.driver(facts=facts).complete_upload(upload, parts) == first
    assert first.proof is Proof.VERIFIED
    assert [record.method for record in swift.proxy.records if "uploadId=" in record.target] == ["POST"]


@pytest.mark.live
def test_upload_is_completed_when_the_same_token_had_left_other_bytes_there(swift: Place) -> None:
    driver = swift.driver(facts=facts_of(swift.driver().probe()))
    for body in (b"first", b"other"):
        upload = driver.begin_upload("x", size=len(body), part_size=PART, metadata={}, token="mine")
        driver.complete_upload(upload, [driver.put_part(upload, 1, 0, body)])
        assert driver.open("x").pread(0, 9) == body


@pytest.mark.live
def test_upload_is_gone_when_what_lies_there_is_anothers(swift: Place) -> None:
    driver = swift.driver()
    upload = driver.begin_upload("x", size=None, part_size=PART, metadata={}, token="mine")
    parts = [driver.put_part(upload, 1, 0, b"x")]
    driver.abort_upload(upload)
    driver.put("x", b"x", metadata={}, token="another")
    with pytest.raises(UploadGone):
        driver.complete_upload(upload, parts)


@pytest.mark.live
def test_conditional_write_succeeds_when_only_its_answer_was_lost(swift: Place) -> None:
    facts: dict[str, object] = {"conditional_put": True, "verifies": ["put:crc32c"]}
    driver = swift.driver(facts=facts, maxerrorretry="2")
    swift.proxy.add_rule(lambda sent: sent.method == "PUT", Cut("response"), times=1)
    assert driver.put("x", b"x", metadata={}, token="mine", if_absent=True).size == 1
    with pytest.raises(AlreadyExists):
        driver.put("x", b"x", metadata={}, token="another", if_absent=True)


@pytest.mark.live
@pytest.mark.parametrize(("retries", "written"), [("1", False), ("2", True)])
def test_write_is_repeated_as_often_as_configured(moto: Place, retries: str, written: bool) -> None:
    moto.proxy.add_rule(lambda sent: sent.method == "PUT", error(500, "InternalError"), times=2)
    driver = moto.driver(maxerrorretry=retries)
    with contextlib.nullcontext() if written else pytest.raises(Unavailable):
        driver.put("x", b"x", metadata={}, token="t")
    assert driver.exists("x") is written
    assert [record.method for record in moto.proxy.records].count("PUT") == int(retries) + 1


@pytest.mark.live
def test_write_fails_by_name_when_the_server_says_nothing_for_too_long(moto: Place, tcp_proxy: Callable[[str], TcpProxy]) -> None:
    gate = tcp_proxy(moto.server.s3_url)
    gate.stall()
    with pytest.raises(Unavailable, match="in time"):
        moto.driver(endpoint=gate.url.removeprefix("http://"), sockettimeout="100").put("x", b"x", metadata={}, token="t")


@pytest.mark.live
def test_write_is_not_believed_when_what_answers_is_not_s3(moto: Place) -> None:
    moto.proxy.add_rule(lambda sent: sent.method == "PUT", Answer(200, {"Content-Type": "text/html"}, b"<html>It works!"))
    with pytest.raises(Misconfigured, match="not S3"):
        moto.driver(facts={"verifies": ["put:crc32c"]}).put("x", b"x", metadata={}, token="t")


@pytest.mark.live
def test_condition_is_not_sent_when_the_server_was_not_seen_to_honour_it(moto: Place) -> None:
    seen = moto.sees("if-none-match")
    moto.driver().put("x", b"x", metadata={}, token="t", if_absent=True)
    moto.driver(facts={"conditional_put": True}).put("y", b"y", metadata={}, token="t", if_absent=True)
    assert seen == [None, "*"]


@pytest.mark.live
def test_part_is_sent_again_whole_when_the_connection_broke_in_its_middle(swift: Place) -> None:
    driver = swift.driver(facts={"verifies": ["part:crc32c"]}, maxerrorretry="2")
    data = os.urandom(2 * MiB)
    upload = driver.begin_upload("x", size=len(data), part_size=PART, metadata={}, token="t")
    swift.proxy.add_rule(lambda sent: sent.method == "PUT", Cut("body", after_bytes=MiB), times=1)
    part = driver.put_part(upload, 1, 0, memoryview(data))
    assert driver.complete_upload(upload, [part]).proof is Proof.VERIFIED
    assert driver.open("x").pread(0, len(data)) == data


@pytest.mark.live
@pytest.mark.parametrize("signed", [False, True])
def test_part_is_read_anew_when_the_connection_broke_while_it_was_sent(
    swift: Place, monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    monkeypatch.setattr(Settings, "signs_payload", property(lambda settings: signed))
    driver = swift.driver(facts={"verifies": ["part:crc32c"]}, maxerrorretry="2")
    data = os.urandom(2 * MiB)
    upload = driver.begin_upload("x", size=len(data), part_size=PART, metadata={}, token="t")
    swift.proxy.add_rule(lambda sent: sent.method == "PUT", Cut("body", after_bytes=MiB), times=1)
    hashes = swift.sees("x-amz-content-sha256")
    source = Streamed(driver, data)
    part = driver.put_part(upload, 1, 0, source)
    assert hashes[0] == (hashlib.sha256(data).hexdigest() if signed else "UNSIGNED-PAYLOAD")
    assert source.readings == 2, "signing takes no reading of its own"
    assert driver.complete_upload(upload, [part]).proof is Proof.VERIFIED
    assert driver.open("x").pread(0, len(data)) == data


@pytest.mark.live
def test_read_goes_on_when_the_connection_breaks_in_the_middle(moto: Place, tcp_proxy: Callable[[str], TcpProxy]) -> None:
    data = os.urandom(3 * MiB)
    gate = tcp_proxy(moto.server.s3_url)
    moto.driver().put("x", data, metadata={}, token="t")
    with moto.driver(endpoint=gate.url.removeprefix("http://")).open("x") as reader:
        gate.reset_after(1_000_000, "down", times=2)
        assert reader.pread(10, len(data)) == data[10:]
        gate.reset_after(1_000_000, "down")
        with pytest.raises(Unavailable):
            reader.pread(0, len(data))


@pytest.mark.live
@pytest.mark.parametrize("name", ["moto", "swift"])
def test_source_is_changed_when_it_is_replaced_while_read(request: pytest.FixtureRequest, name: str) -> None:
    driver = request.getfixturevalue(name).driver()
    driver.put("x", b"first", metadata={}, token="t")
    with driver.open("x") as reader:
        assert reader.pread(0, 2) == b"fi"
        driver.put("x", b"other", metadata={}, token="t")
        with pytest.raises(SourceChanged):
            reader.pread(2, 3)
        assert reader.current_version() != reader.info.version


@pytest.mark.live
def test_wrong_bytes_are_never_returned_when_the_server_ignores_ranges(moto: Place) -> None:
    driver = moto.driver()
    etag = driver.put("x", b"0123456789", metadata={}, token="t").etag
    with driver.open("x") as reader:
        moto.proxy.add_rule(lambda sent: sent.method == "GET", Answer(200, {"ETag": f'"{etag}"'}, b"0123456789"))
        with pytest.raises(Misconfigured):
            reader.pread(3, 3)


@pytest.mark.live
def test_listing_is_not_believed_when_it_does_not_advance(moto: Place) -> None:
    body = b"""<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken>
    <Contents><Key>x</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>"""
    moto.proxy.add_rule(lambda sent: sent.method == "GET", Answer(200, {}, body))
    with pytest.raises(Unavailable):
        list(moto.driver().list())


@pytest.mark.live
def test_entries_that_are_no_files_are_told_by_their_kind(moto: Place) -> None:
    for key in ("ok/file", "ok/", "ok//double"):
        moto.admin.put_object(Bucket=moto.bucket, Key=key, Body=b"")
    assert {info.key: info.kind for info in moto.driver().list()} == {
        "ok/": "special",
        "ok//double": "unreadable",
        "ok/file": "file",
    }


@pytest.mark.live
def test_uploads_of_others_are_not_ours_when_they_lie_outside_our_prefix(moto: Place) -> None:
    theirs = moto.driver(prefix="clouds/theirs").begin_upload("x", size=None, part_size=PART, metadata={}, token="t")
    ours = moto.driver(prefix="clouds/ours").begin_upload("x", size=None, part_size=PART, metadata={}, token="t")
    driver = moto.driver(prefix="clouds/ours")
    driver.page_size = 1
    assert [(pending.key, pending.upload_id) for pending in driver.pending_uploads()] == [("x", ours.upload_id)]
    assert theirs.upload_id != ours.upload_id


# --- the marker --------------------------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize("content", [b"not json", b"[1]", b'{"cloud": "another", "store": "s"}'])
def test_marker_of_another_is_never_overwritten(moto: Place, content: bytes) -> None:
    moto.admin.put_object(Bucket=moto.bucket, Key=MARKER_KEY, Body=content)
    driver = moto.driver()
    for use in (driver.claim, driver.check, lambda: driver.write_marker({"cloud": "our-cloud", "store": "our-store"})):
        with pytest.raises(Foreign):
            use()
    assert moto.admin.get_object(Bucket=moto.bucket, Key=MARKER_KEY)["Body"].read() == content


@pytest.mark.live
def test_nothing_is_done_without_the_marker(moto: Place) -> None:
    driver = moto.driver()
    with pytest.raises(Unavailable):
        driver.check()
    driver.claim()
    driver.check()
    assert json.loads(moto.admin.get_object(Bucket=moto.bucket, Key=MARKER_KEY)["Body"].read()) == {
        "cloud": "our-cloud",
        "store": "our-store",
    }


# --- surroundings ------------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_environment_has_no_say(swift: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "config").write_text(
        "[default]\nregion = mars\nendpoint_url = http://127.0.0.1:1\ns3 =\n  addressing_style = virtual\n"
    )
    leaks = {
        "AWS_ACCESS_KEY_ID": "leak",
        "AWS_SECRET_ACCESS_KEY": "leak",
        "AWS_SESSION_TOKEN": "leak",
        "AWS_PROFILE": "nobody",
        "AWS_DEFAULT_REGION": "mars-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_CA_BUNDLE": "/nowhere",
        "REQUESTS_CA_BUNDLE": "/nowhere",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_MAX_ATTEMPTS": "99",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
    }
    for name, value in leaks.items():
        monkeypatch.setenv(name, value)
    checksums, trailers = swift.sees("x-amz-checksum-crc32"), swift.sees("x-amz-trailer")
    driver = swift.driver()
    driver.put("x", b"x", metadata={}, token="t")
    with driver.open("x") as reader:
        assert reader.pread(0, 1) == b"x"
    assert checksums == trailers == [None]


@pytest.mark.live
def test_proxy_is_used_when_configured(moto: Place, http_proxy: Callable[[str], LoggingHttpProxy]) -> None:
    # The rule answers as a forward proxy would be asked: with the whole url.
    via = http_proxy(moto.server.s3_url)
    asked: list[str] = []
    via.add_rule(lambda sent: bool(asked.append(sent.target)) or True, error(404, "NoSuchBucket"))
    driver = moto.driver(endpoint="store.example.org", proxy=via.url)
    for use in (lambda: driver.open("x"), lambda: driver.put("x", b"x", metadata={}, token="t")):
        asked.clear()
        with pytest.raises(Misconfigured):
            use()
        assert asked[0] == f"http://store.example.org/{moto.bucket}/x"


@pytest.mark.live
@pytest.mark.parametrize("signer", ["AWSS3V4SignerType", "S3SignerType"])
def test_bucket_is_reached_by_its_own_host_when_addressed_virtually(
    swift: Place, monkeypatch: pytest.MonkeyPatch, signer: str
) -> None:
    # Not every resolver knows the names below localhost.
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real("127.0.0.1" if host.endswith("localhost") else host, *rest, **more),
    )
    driver = swift.driver(addressing="virtual", endpoint=f"localhost:{swift.proxy.port}", s3signer=signer)
    driver.put("a/b ü~", b"x", metadata={"name": "ü"}, token="t")
    assert swift.proxy.records[0].target == "/a/b%20%C3%BC~"
    upload = driver.begin_upload("c", size=1, part_size=PART, metadata={}, token="t")
    driver.complete_upload(upload, [driver.put_part(upload, 1, 0, b"y")])
    assert [info.key for info in swift.driver().list()] == ["a/b ü~", "c"]


@pytest.mark.live
def test_client_is_made_anew_when_the_process_forked(swift: Place) -> None:
    driver = swift.driver(direct=True)
    driver.put("x", b"x", metadata={}, token="t")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if driver.stat("x").size == 1 and driver.put("y", b"yy", metadata={}, token="t").size == 2 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert driver.stat("y").size == 2


@pytest.mark.live
def test_connections_are_renewed_when_their_lifetime_is_over(moto: Place) -> None:
    driver = moto.driver(connectionttl="1")
    first = driver.wire.client
    driver.wire._made = driver.wire._made._replace(born=driver.wire._made.born - 1)  # type: ignore[union-attr]
    assert driver.wire.client is not first
    lasting = moto.driver()
    assert lasting.wire.client is lasting.wire.client


@pytest.mark.live
def test_sixteen_threads_share_a_driver(swift: Place) -> None:
    driver = swift.driver(facts={"verifies": ["put:crc32c", "part:crc32c"]}, direct=True)
    names = [f"t/{number}" for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        proofs = list(pool.map(lambda name: driver.put(name, name.encode(), metadata={}, token=name).proof, names))
        assert set(proofs) == {Proof.VERIFIED}
        bodies = list(pool.map(lambda name: driver.open(name).pread(0, 99), names))
    assert bodies == [name.encode() for name in names]
    assert sorted(info.key for info in driver.list()) == sorted(names)


@pytest.mark.live
def test_server_is_asked_first_only_when_the_body_is_large(swift: Place) -> None:
    driver, seen = swift.driver(), swift.sees("expect")
    for size in (10, MiB, MiB + 1):
        driver.put("x", bytes(size), metadata={}, token="t")
    assert seen == [None, None, "100-continue"]


@pytest.mark.live
@pytest.mark.parametrize("signer", ["AWSS3V4SignerType", "S3SignerType"])
def test_link_lets_its_bearer_read_and_names_the_file(swift: Place, signer: str) -> None:
    driver = swift.driver(s3signer=signer, direct=True)
    driver.put("a b/ü", b"content", metadata={}, token="t")
    url = driver.presign("a b/ü", expires=60, filename='Größe "1".iso')
    assert url is not None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url) as answer:
        assert answer.read() == b"content"
        assert answer.headers["Content-Disposition"].startswith(
            "attachment; filename=\"Gr__e _1_.iso\"; filename*=UTF-8''Gr%C3%B6"
        )
    assert swift.server.secret_key not in url


@pytest.mark.live
def test_object_is_whole_when_signed_over_plain_http(swift: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "signs_payload", property(lambda settings: True))
    hashes = swift.sees("x-amz-content-sha256")
    swift.driver().put("x", memoryview(b"xyz")[:2], metadata={}, token="t")
    assert hashes == [hashlib.sha256(b"xy").hexdigest()]


@pytest.mark.live
def test_empty_object_is_made_when_an_upload_without_parts_completes(swift: Place) -> None:
    driver = swift.driver(facts=facts_of(swift.driver().probe()))
    upload = driver.begin_upload("x", size=None, part_size=PART, metadata={}, token="t")
    assert driver.complete_upload(upload, []).size == 0
    assert driver.stat("x").size == 0


@pytest.mark.live
def test_resumed_upload_knows_the_digests_that_the_server_tells(swift: Place) -> None:
    driver = swift.driver(facts={"etag_md5_part": True})
    upload = driver.begin_upload("x", size=None, part_size=PART, metadata={}, token="t")
    sent = driver.put_part(upload, 1, 0, b"x")
    (listed,) = driver.list_parts(upload)
    assert (listed.digest, listed.verified) == (sent.digest, False)
