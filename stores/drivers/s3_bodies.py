"""Sends objects and parts to a bucket, the requests of which there are many, past the layers that the SDK wraps around a call.

How a request is described, signed, connected, repeated and answered is still the SDK's; left out are its rules of endpoints, its
checks of parameters and its events, which take half of the client's CPU for a small object.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from botocore import exceptions as sdk
from botocore.auth import HmacV1Auth, S3SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.credentials import Credentials
from botocore.httpsession import URLLib3Session
from botocore.parsers import create_parser
from botocore.retries.quota import RetryQuota
from botocore.retries.standard import (
    ExponentialBackoff,
    RetryContext,
    RetryEventAdapter,
    RetryQuotaChecker,
    StandardRetryConditions,
    ThrottlingErrorDetector,
)

from stores.drivers.base import PartData, PartSource
from stores.drivers.s3_options import Settings

OPERATIONS: Mapping[str, str] = {"put_object": "PutObject", "upload_part": "UploadPart"}
"""What goes this way, as the SDK's client and its description of S3 call it."""

POOL = 32
"""Connections kept per client; more threads than that share them."""

SMALL_BODY = 1024 * 1024
UNSIGNED = "UNSIGNED-PAYLOAD"


class BodySender:
    """The operations of `OPERATIONS` on our bucket. Safe for threads; raises what the SDK's client would raise."""

    def __init__(self, settings: Settings, client: Any) -> None:
        self._settings = settings
        self._url = _bucket_url(client, settings.bucket)
        self._models = {name: client.meta.service_model.operation_model(model) for name, model in OPERATIONS.items()}
        self._fields = {
            name: {field: shape.serialization for field, shape in model.input_shape.members.items()}
            for name, model in self._models.items()
        }
        self._signer = _signer(settings)
        self._parser = create_parser("rest-xml")
        self._repetition = _Repetition(settings.retries + 1)
        keepalive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] if settings.keepalive else []
        self._session = URLLib3Session(
            verify=settings.ca_bundle or True,
            proxies={"http": settings.proxy, "https": settings.proxy} if settings.proxy else {},
            timeout=(settings.connect_timeout, settings.read_timeout),
            max_pool_connections=POOL,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *keepalive],
        )

    def close(self) -> None:
        self._session.close()

    def send(self, operation: str, *, Key: str, Body: PartData, **params: Any) -> dict[str, Any]:  # noqa: N803 - the SDK's names
        """Put a body at a key, with parameters named and an answer made as the SDK does."""
        body = _SourceBody(Body) if isinstance(Body, PartSource) else Body
        headers, query = self._described(operation, params)
        headers |= {"Content-Length": str(len(body)), "User-Agent": "cloudstorage"}
        path = quote(Key, safe="/~")
        url = f"{self._url}{path}{'?' if query else ''}{urlencode(query, quote_via=quote, safe='~')}"
        attempts = 0
        kept: dict[str, Any] = {}
        while True:
            attempts += 1
            request = AWSRequest("PUT", url, headers, body, auth_path=f"/{self._settings.bucket}/{path}")
            self._signer.add_auth(request)
            if len(body) > SMALL_BODY:
                # Waiting for "100 Continue" costs a round trip; it pays only where a refusal would waste a large body.
                request.headers["Expect"] = b"100-continue"
            response, answer, failure = self._attempt(operation, request.prepare())
            delay = self._repetition.delay(RetryContext(attempts, self._models[operation], answer, response, failure, kept))
            if delay is None:
                break
            time.sleep(delay)
            if isinstance(body, _SourceBody):
                body.seek(0)
        if failure is not None:
            raise failure
        if response is not None and response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            raise sdk.ClientError(answer, OPERATIONS[operation])
        return answer

    def _described(self, operation: str, params: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        """(headers, query): each parameter where the SDK's description of the operation has it."""
        headers: dict[str, str] = {}
        query: dict[str, str] = {}
        for field, value in params.items():
            place = self._fields[operation][field]
            if place["location"] == "headers":
                headers |= {place["name"] + name: text for name, text in value.items()}
            else:
                {"header": headers, "querystring": query}[place["location"]][place["name"]] = str(value)
        return headers, query

    def _attempt(
        self, operation: str, request: AWSPreparedRequest
    ) -> tuple[AWSResponse | None, dict[str, Any], sdk.BotoCoreError | None]:
        """(response, its content, None), or (None, {}, why there is none)."""
        try:
            response = self._session.send(request)
        except sdk.BotoCoreError as error:
            return None, {}, error
        content = {"status_code": response.status_code, "headers": response.headers, "body": response.content, "context": {}}
        answer: dict[str, Any] = self._parser.parse(content, self._models[operation].output_shape)
        return response, answer, None


class _Repetition:
    """Which requests are worth another attempt, and when: the SDK's standard mode, its quota over all requests included."""

    def __init__(self, attempts: int) -> None:
        throttling = ThrottlingErrorDetector(RetryEventAdapter())
        self._conditions = StandardRetryConditions(attempts)
        self._backoff = ExponentialBackoff(throttling_detector=throttling)
        self._quota = RetryQuotaChecker(RetryQuota(), throttling)

    def delay(self, context: RetryContext) -> float | None:
        """Seconds until the next attempt; None if this was the last."""
        if self._conditions.is_retryable(context) and self._quota.acquire_retry_quota(context):
            return float(self._backoff.delay_amount(context))
        self._quota.release_retry_quota(context.request_context, context.http_response)
        return None


def _bucket_url(client: Any, bucket: str) -> str:
    """Where the SDK sends requests about keys of the bucket, up to the key."""
    url = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "key"})
    return str(urlsplit(url)._replace(query="").geturl().removesuffix("key"))


# --- signatures ----------------------------------------------------------------------------------------------------------


def _signer(settings: Settings) -> Any:
    credentials = Credentials(settings.access_key, settings.secret_key)
    if settings.signer == "s3":
        return HmacV1Auth(credentials)
    return _BodyAuth(credentials, settings.region, signs_payload=settings.signs_payload)


class _BodyAuth(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """Signs a body where the settings ask for it, by the SHA-256 that a part brings along if it has one."""

    def __init__(self, credentials: Credentials, region: str, *, signs_payload: bool) -> None:
        super().__init__(credentials, "s3", region)
        self._signs_payload = signs_payload

    def payload(self, request: Any) -> str:
        if not self._signs_payload:
            return UNSIGNED
        return request.data.sha256 if isinstance(request.data, _SourceBody) else hashlib.sha256(request.data).hexdigest()


# --- bodies that are read while they are sent ------------------------------------------------------------------------------


class SourceFailed(BaseException):
    """Carries what went wrong while a body was read past the SDK, which takes every Exception for the network's and repeats."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _SourceBody:
    """A PartSource as the file that is sent, and rewound for another attempt."""

    def __init__(self, source: PartSource) -> None:
        self._source = source
        self.sha256 = source.sha256
        self.seek(0)

    def __len__(self) -> int:
        return len(self._source)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if (offset, whence) != (0, os.SEEK_SET):
            raise io.UnsupportedOperation("A part is only sent from its beginning.")
        self._blocks = self._source.blocks()
        self._left = memoryview(b"")
        self._position = 0
        return 0

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes, or fewer where a block ends; with no size, what is left of a block."""
        try:
            while not self._left:
                self._left = memoryview(next(self._blocks))
        except StopIteration:
            return b""
        except Exception as error:
            raise SourceFailed(error) from error
        size = len(self._left) if size < 0 else size
        piece, self._left = bytes(self._left[:size]), self._left[size:]
        self._position += len(piece)
        return piece
