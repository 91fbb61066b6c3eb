"""Speaks S3 for the S3 driver: settings, a client that inherits nothing from its surroundings, and errors in our words.

The only module that imports boto3 and awscrt; what has a body goes by `s3_bodies`. Clients are made on first use in each process:
they do not survive a fork.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import botocore.session
from awscrt import checksums
from botocore import exceptions as sdk
from botocore.client import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConfigValueStore, ConstantProvider
from botocore.parsers import ResponseParserError

from stores.drivers.base import Digest
from stores.drivers.errors import (
    AlreadyExists,
    Corrupt,
    Full,
    LockedOut,
    Misconfigured,
    NotFound,
    StoreError,
    Throttled,
    Unavailable,
    UploadGone,
    WrongClock,
)
from stores.drivers.s3_bodies import OPERATIONS, POOL, BodySender
from stores.drivers.s3_options import Settings

SDK_ERRORS = (sdk.BotoCoreError, sdk.ClientError, ResponseParserError)
_UNREADABLE = (ValueError, OverflowError, RuntimeError)
"""What the SDK lets out over an answer's numbers and times that are none."""

_MD5 = re.compile("[0-9a-f]{32}")


class Unsupported(Misconfigured):
    """The server has no such feature (501 or 405)."""


class Interrupted(Unavailable):
    """An answer broke off; asking again at once is worth while."""


class _Made(NamedTuple):
    """What speaks to the server in one process, for a time."""

    pid: int
    born: float
    client: Any
    sender: BodySender


class Wire:
    """Calls of one bucket. Safe for threads; every error it raises is a StoreError."""

    def __init__(self, settings: Settings, check_url: Callable[[str], None]) -> None:
        self.settings = settings
        self._check_url = check_url
        self._lock = threading.Lock()
        self._made: _Made | None = None

    @property
    def client(self) -> Any:
        """The SDK's client of this process, renewed after `connectionttl`."""
        return self._current().client

    def _current(self) -> _Made:
        with self._lock:
            now = time.monotonic()
            made = self._made
            ttl = self.settings.connection_ttl
            if made is None or made.pid != os.getpid() or (ttl and now - made.born > ttl):
                made = self._made = _Made(os.getpid(), now, *self._make())
            return made

    def close(self) -> None:
        with self._lock:
            if self._made is not None and self._made.pid == os.getpid():
                self._made.client.close()
                self._made.sender.close()
            self._made = None

    def _make(self) -> tuple[Any, BodySender]:
        settings = self.settings
        for url in settings.urls:
            self._check_url(url)
        if settings.ca_bundle and not Path(settings.ca_bundle).is_file():
            raise Misconfigured(f"The CA bundle {settings.ca_bundle} is not a file here.", field="cabundle")
        config = Config(
            signature_version=settings.signer,
            s3={"addressing_style": "virtual" if settings.virtual else "path", "payload_signing_enabled": settings.signs_payload},
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            retries={"mode": "standard", "total_max_attempts": settings.retries + 1},
            max_pool_connections=POOL,
            tcp_keepalive=settings.keepalive,
            proxies={"http": settings.proxy, "https": settings.proxy} if settings.proxy else {},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            with _making:
                client = _isolated_session().client(
                    "s3",
                    region_name=settings.region,
                    endpoint_url=settings.endpoint,
                    aws_access_key_id=settings.access_key,
                    aws_secret_access_key=settings.secret_key,
                    verify=settings.ca_bundle or True,
                    config=config,
                )
            client.meta.events.register("before-call.s3", _stay_at_this_endpoint)
            return client, BodySender(settings, client)
        except (sdk.BotoCoreError, ValueError) as error:
            raise self.explain(error, "connect") from None

    def call(self, operation: str, /, *, doing: str, **params: Any) -> dict[str, Any]:
        """Call an operation on our bucket; `doing` completes "Could not ..." in an error's message."""
        made = self._current()
        if operation in OPERATIONS:
            return self._send(made.sender, operation, doing, params)
        try:
            answer: dict[str, Any] = getattr(made.client, operation)(Bucket=self.settings.bucket, **params)
        except SDK_ERRORS as error:
            raise self.explain(error, doing) from error
        except _UNREADABLE as error:
            raise self.explain(ResponseParserError(str(error)), doing) from error
        return answer

    def _send(self, sender: BodySender, operation: str, doing: str, params: dict[str, Any]) -> dict[str, Any]:
        # Apart, for whatever the source of a body raises comes out as it is.
        try:
            return sender.send(operation, **params)
        except SDK_ERRORS as error:
            raise self.explain(error, doing) from error

    def explain(self, error: Exception, doing: str) -> StoreError:
        """The StoreError for whatever the SDK raised."""
        if isinstance(error, sdk.ClientError):
            return _client_error(error, doing, self.settings)
        return _connection_error(error, doing, self.settings)


_making = threading.Lock()  # sessions are not made for threads; clients are


@cache
def _isolated_session() -> Any:
    """A session in which no environment variable, configuration file, profile or metadata service has a say.

    One for all clients, because it keeps the parsed description of S3, most of the cost of a client.
    """
    session = botocore.session.Session()
    constants = {name: ConstantProvider(value[2]) for name, value in BOTOCORE_DEFAUT_SESSION_VARIABLES.items()}
    for name in ("config_file", "credentials_file"):
        constants[name] = ConstantProvider(os.devnull)
    session.register_component("config_store", ConfigValueStore(mapping=constants))
    return boto3.Session(botocore_session=session)


def load_descriptions() -> None:
    """Have the SDK read what it needs for its first client, which takes it a quarter of a second."""
    with _making:
        client = _isolated_session().client(
            "s3",
            region_name="us-east-1",
            endpoint_url="http://localhost",
            aws_access_key_id="none",
            aws_secret_access_key="none",  # noqa: S106 - nothing is ever sent
        )
    client.close()


def _stay_at_this_endpoint(params: dict[str, Any], **_: Any) -> None:
    # The SDK follows a bucket to the region that a server names in its error; a request signed by our key goes nowhere else.
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


# --- checksums -----------------------------------------------------------------------------------------------------------


class _Crc32c:
    """CRC32C in the manner of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = checksums.crc32c(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def new_digest(kind: str) -> Digest:
    """The beginning of a `crc32c`; of an MD5, which servers make ETags of, for everything else."""
    return _Crc32c() if kind == "crc32c" else hashlib.md5(usedforsecurity=False)


def md5(data: bytes | memoryview) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def crc32c(data: bytes | memoryview) -> bytes:
    return int(checksums.crc32c(data)).to_bytes(4, "big")


def joined_md5(digests: Sequence[str]) -> str:
    """What most servers answer as the ETag of a multipart object; empty if not all digests of its parts are MD5."""
    if not digests or any(not _MD5.fullmatch(digest) for digest in digests):
        return ""
    return f"{md5(b''.join(bytes.fromhex(digest) for digest in digests)).hex()}-{len(digests)}"


def from_base64(value: str) -> bytes:
    """A checksum as S3 writes it; composite ones end in `-N`."""
    return b64decode(value.partition("-")[0])


def etag_of(answer: Mapping[str, Any]) -> str | None:
    """The ETag of an answer, bare; None where the server gave none."""
    etag = answer.get("ETag")
    return str(etag).removeprefix("W/").strip('"') if etag else None


# --- errors --------------------------------------------------------------------------------------------------------------

_CREDENTIALS = {
    "InvalidAccessKeyId": ("accesskey", "the server does not know the access key"),
    "SignatureDoesNotMatch": ("secretkey", "the secret key does not fit the access key"),
    "AccountProblem": ("accesskey", "the account is suspended"),
    "ExpiredToken": ("accesskey", "the credentials have expired"),
    "InvalidToken": ("accesskey", "the credentials are not valid"),
    "UnauthorizedAccess": ("accesskey", "the credentials are not valid"),
    "AllAccessDisabled": ("bucket", "all access to the bucket is switched off"),
}
_REGION = "the bucket is not in region {settings.region!r}, or is served elsewhere"
_SETTINGS = {
    "NoSuchBucket": ("bucket", "there is no bucket {settings.bucket!r}"),
    "InvalidBucketName": ("bucket", "{settings.bucket!r} is no valid bucket name"),
    "AuthorizationHeaderMalformed": ("region", _REGION),
    "PermanentRedirect": ("region", _REGION),
    "TemporaryRedirect": ("region", _REGION),
    "IllegalLocationConstraintException": ("region", _REGION),
}
_OTHER_BYTES = (Corrupt, "the server received other bytes than were sent")
_OTHER_PARTS = (Corrupt, "the parts that the server has are not those that were sent")
_NO_SPACE = (Full, "no space or quota is left")
_NO_FEATURE = (Unsupported, "the server has no such feature")
_MEANINGS: Mapping[str, tuple[type[StoreError], str]] = {
    "NoSuchUpload": (UploadGone, "the server does not know the upload any more"),
    "NoSuchKey": (NotFound, "no such object"),
    "BadDigest": _OTHER_BYTES,
    "InvalidDigest": _OTHER_BYTES,
    "XAmzContentChecksumMismatch": _OTHER_BYTES,
    "XAmzContentSHA256Mismatch": _OTHER_BYTES,
    "IncompleteBody": _OTHER_BYTES,
    "InvalidPart": _OTHER_PARTS,
    "InvalidPartOrder": _OTHER_PARTS,
    "QuotaExceeded": _NO_SPACE,
    "InsufficientStorage": _NO_SPACE,
    "InsufficientCapacity": _NO_SPACE,
    "NotImplemented": _NO_FEATURE,
    "MethodNotAllowed": _NO_FEATURE,
    "EntityTooSmall": (Misconfigured, "the server refuses parts of this size as too small"),
    "EntityTooLarge": (Full, "a quota is used up (so Swift says it), or the server takes no body of this size"),
    "RequestTimeout": (Unavailable, "the server did not receive the request in time"),
}
_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}


def _client_error(error: sdk.ClientError, doing: str, settings: Settings) -> StoreError:
    said = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode") or 0)
    code = str(said.get("Code") or status)
    what = f"Could not {doing}: "
    where = f"{settings.endpoint} answered {status} {code}" if code != str(status) else f"{settings.endpoint} answered {status}"
    if code in _THROTTLED:
        status = 429
    return (
        _known_code(code, what, where, settings)
        or _known_status(status, what, where, meta.get("HTTPHeaders", {}))
        or StoreError(f"{what}{where}{_shortened(said.get('Message'), settings)}.")
    )


def _known_code(code: str, what: str, where: str, settings: Settings) -> StoreError | None:
    if code in _CREDENTIALS:
        field, meaning = _CREDENTIALS[code]
        return LockedOut(f"{what}{meaning} ({where}).", field=field)
    if code in {"RequestTimeTooSkewed", "RequestExpired"}:
        return WrongClock(f"{what}the clocks of this machine and of {settings.host} differ too much ({where}).")
    if code in _SETTINGS:
        option, meaning = _SETTINGS[code]
        return Misconfigured(f"{what}{meaning.format(settings=settings)} ({where}).", field=option)
    if code in _MEANINGS:
        kind, meaning = _MEANINGS[code]
        return kind(f"{what}{meaning} ({where}).")
    return None


def _known_status(status: int, what: str, where: str, headers: Mapping[str, str]) -> StoreError | None:
    if status in {429, 503}:
        return Throttled(f"{what}the store asks for less ({where}).", retry_after=_seconds(headers.get("retry-after")))
    if status in {401, 403}:
        return LockedOut(f"{what}the credentials lack the right to do it ({where}).", field="accesskey")
    if status in {301, 302, 307, 308}:
        return Misconfigured(f"{what}the bucket is served elsewhere ({where}); redirects are not followed.", field="endpoint")
    plain: dict[int, type[StoreError]] = {404: NotFound, 412: AlreadyExists, 405: Unsupported, 501: Unsupported, 507: Full}
    if status in plain:
        return plain[status](f"{what}{where}.")
    if status in {408, 409} or status >= 500:
        return Unavailable(f"{what}{where}.")
    return None


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdigit() else None


def _shortened(message: object, settings: Settings) -> str:
    text = "".join(char for char in str(message or "") if char.isprintable())[:160].rstrip(". ")
    for secret in (settings.secret_key, settings.access_key):
        text = text.replace(secret, "***") if secret else text
    return f" ({text})" if text else ""


def _connection_error(error: Exception, doing: str, settings: Settings) -> StoreError:
    what = f"Could not {doing}: "
    if isinstance(error, sdk.SSLError):
        return Misconfigured(f"{what}the certificate of {settings.host} is not trusted; give its CA bundle.", field="cabundle")
    if isinstance(error, sdk.ProxyConnectionError):
        return Unavailable(f"{what}the proxy does not answer.", field="proxy")
    if isinstance(error, (sdk.ConnectTimeoutError, sdk.ReadTimeoutError)):
        return Unavailable(f"{what}{settings.host} did not answer in time.", field="endpoint")
    if isinstance(error, ResponseParserError):
        return Misconfigured(f"{what}what {settings.host} answered is not S3.", field="endpoint")
    if isinstance(error, sdk.HTTPClientError | sdk.EndpointConnectionError | sdk.IncompleteReadError):
        return Unavailable(f"{what}the connection to {settings.host} failed ({type(error).__name__}).", field="endpoint")
    return Misconfigured(f"{what}the S3 library refused ({type(error).__name__}).", field="endpoint")
