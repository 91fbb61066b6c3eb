"""The signature made here is the SDK's own, and what fails is told and repeated as the SDK's client would."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from botocore import exceptions as sdk
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from stores.drivers.http_pool import (
    Answer,
    BrokenOff,
    ConnectFailed,
    ConnectTimedOut,
    NotHttp,
    ProxyFailed,
    TimedOut,
    Untrusted,
    host_of,
)
from stores.drivers.s3 import S3Driver
from stores.drivers.s3_bodies import UNSIGNED, BodySender, Signer
from stores.drivers.s3_wire import Wire
from tests.drivers.s3_cases import config_of

pytestmark = pytest.mark.unit

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
DETAILS = {"accesskey": "AKID", "secretkey": "hush/+", "bucket": "images", "endpoint": "store.example", "maxerrorretry": "2"}


class _AsGiven(S3SigV4Auth):  # type: ignore[misc]
    """The SDK's signer, told what the payload's hash is."""

    payload_hash = ""

    def payload(self, request: Any) -> str:
        return self.payload_hash


@given(
    origin=st.sampled_from(
        ["http://h", "https://H.Example:443", "http://127.0.0.1:8080", "https://b.s3:80", "http://[::1]:8080"]
    ),
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    query=st.dictionaries(
        st.sampled_from(["partNumber", "uploadId", "partnumber", "x-id"]), st.text(st.characters(exclude_categories=["Cs"]))
    ),
    metadata=st.dictionaries(st.text("abcxyz-", min_size=1, max_size=5).map(lambda name: f"x-amz-meta-{name}"), PRINTABLE),
    more=st.dictionaries(st.sampled_from(["Content-MD5", "If-None-Match", "x-amz-checksum-crc32c", "Content-Type"]), PRINTABLE),
    payload=st.one_of(st.just(UNSIGNED), st.text("0123456789abcdef", min_size=64, max_size=64)),
    at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),
)
def test_signature_is_that_of_the_sdk(
    origin: str,
    key: str,
    query: dict[str, str],
    metadata: dict[str, str],
    more: dict[str, str],
    payload: str,
    at: datetime,
) -> None:
    at = at.replace(microsecond=0, tzinfo=UTC)
    path = f"/images/{quote(key, safe='/~')}"
    encoded = "&".join(sorted(f"{name}={quote(value, safe='')}" for name, value in query.items()))
    headers = metadata | more
    ours = Signer("AKID", "hush/+", "eu-west-1").signed(
        "PUT", host_of(origin), path, encoded, headers, payload, at=at.timestamp()
    )
    request = AWSRequest("PUT", f"{origin}{path}{'?' if encoded else ''}{encoded}", headers, b"")
    theirs = _AsGiven(Credentials("AKID", "hush/+"), "s3", "eu-west-1")
    theirs.payload_hash = payload
    with patch("botocore.auth.get_current_datetime", lambda: at):
        theirs.add_auth(request)
    assert ours["Authorization"] == request.headers["Authorization"]
    assert {name.lower(): value for name, value in ours.items()} == {
        name.lower(): value for name, value in request.headers.items()
    }


def test_key_of_the_signature_changes_with_the_day() -> None:
    signer = Signer("AKID", "hush", "r")

    def at(moment: float, by: Signer) -> str:
        return by.signed("PUT", "h", "/k", "", {}, UNSIGNED, at=moment)["Authorization"]

    for moment in (0.0, 86_399.0, 86_400.0, 0.0):
        assert at(moment, signer) == at(moment, Signer("AKID", "hush", "r"))


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> BodySender:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    wire: Wire = S3Driver(config_of(DETAILS)).wire
    return wire._current().sender


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Untrusted, sdk.SSLError),
        (ProxyFailed, sdk.ProxyConnectionError),
        (ConnectTimedOut, sdk.ConnectTimeoutError),
        (ConnectFailed, sdk.EndpointConnectionError),
        (TimedOut, sdk.ReadTimeoutError),
        (BrokenOff, sdk.ConnectionClosedError),
        (NotHttp, sdk.HTTPClientError),
    ],
)
def test_failure_is_repeated_and_then_told_as_the_sdk_does(
    sender: BodySender, monkeypatch: pytest.MonkeyPatch, failure: type[Exception], told: type[Exception]
) -> None:
    attempts: list[str] = []

    def fails(origin: str, method: str, *rest: Any, **options: Any) -> Any:
        attempts.append(method)
        raise failure("as told")

    monkeypatch.setattr(sender._pool, "request", fails)
    with pytest.raises(told) as raised:
        sender.send("put_object", Key="k", Body=b"x")
    assert type(raised.value) is told
    assert attempts == ["PUT"] * 3


def test_answer_is_named_as_the_sdk_names_it(sender: BodySender, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"etag": '"e"', "x-amz-checksum-crc32c": "AAAAAA==", "x-amz-server-side-encryption": "aws:kms", "server": "s"}
    monkeypatch.setattr(sender._pool, "request", lambda *rest, **options: Answer(200, headers, b""))
    expected = {"ETag": '"e"', "ChecksumCRC32C": "AAAAAA==", "ServerSideEncryption": "aws:kms"}
    assert sender.send("put_object", Key="k", Body=b"x") == expected
    assert sender.send("upload_part", Key="k", Body=b"x", UploadId="u", PartNumber=1) == expected


def test_request_is_written_as_the_sdk_describes_it(sender: BodySender, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sender._pool, "request", lambda *sent, **options: seen.append(sent) or Answer(200, {}, b""))
    sender.send("upload_part", Key="a b/ü~+", Body=b"x", UploadId="u/ +", PartNumber=7, ContentMD5="m==")
    sender.send("put_object", Key="k", Body=b"x", Metadata={"cs-token": "t"}, IfNoneMatch="*")
    (origin, method, target, part, _), (_, _, whole_target, whole, _) = seen
    assert (origin, method) == ("https://store.example", "PUT")
    assert target == "/images/a%20b/%C3%BC~%2B?partNumber=7&uploadId=u%2F%20%2B"
    assert part["Content-MD5"] == "m=="
    assert (whole_target, whole["x-amz-meta-cs-token"], whole["If-None-Match"]) == ("/images/k", "t", "*")
    assert all(sent["X-Amz-Content-SHA256"] == UNSIGNED for sent in (part, whole))
