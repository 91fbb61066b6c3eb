"""Sends objects and parts to a bucket, the requests of which there are many, past the layers that the SDK wraps around a call.

How a request is described, repeated, refused and its failure named is still the SDK's; connections are those of `http_pool`, and
the signature is made here, in a tenth of the steps.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from botocore import exceptions as sdk
from botocore.auth import HmacV1Auth
from botocore.awsrequest import AWSRequest, AWSResponse, HeadersDict
from botocore.credentials import Credentials
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

from stores.drivers import http_pool
from stores.drivers.base import PartData, PartSource
from stores.drivers.s3_options import Settings

OPERATIONS: Mapping[str, str] = {"put_object": "PutObject", "upload_part": "UploadPart"}
"""What goes this way, as the SDK's client and its description of S3 call it."""

POOL = 32
"""Idle connections kept per client."""

SMALL_BODY = 1024 * 1024
UNSIGNED = "UNSIGNED-PAYLOAD"


class BodySender:
    """The operations of `OPERATIONS` on our bucket. Safe for threads; raises what the SDK's client would raise."""

    def __init__(self, settings: Settings, client: Any) -> None:
        url = urlsplit(_bucket_url(client, settings.bucket))
        self._origin = f"{url.scheme}://{url.netloc}"
        self._root = url.path
        self._bucket = settings.bucket
        self._models = {name: client.meta.service_model.operation_model(model) for name, model in OPERATIONS.items()}
        self._fields = {
            name: {field: shape.serialization for field, shape in model.input_shape.members.items()}
            for name, model in self._models.items()
        }
        self._told = {name: _told_in_headers(model.output_shape) for name, model in self._models.items()}
        self._credentials = Credentials(settings.access_key, settings.secret_key)
        self._signs_payload = settings.signs_payload
        self._signer = None if settings.signer == "s3" else Signer(settings.access_key, settings.secret_key, settings.region)
        self._parser = create_parser("rest-xml")
        self._repetition = _Repetition(settings.retries + 1)
        self._pool = http_pool.HttpPool(
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            ca_bundle=settings.ca_bundle,
            proxy=settings.proxy,
            keepalive=settings.keepalive,
            size=POOL,
        )

    def close(self) -> None:
        self._pool.close()

    def send(self, operation: str, *, Key: str, Body: PartData, **params: Any) -> dict[str, Any]:  # noqa: N803 - the SDK's names
        """Put a body at a key, with parameters named and an answer made as the SDK does."""
        headers, query = self._described(operation, params)
        key = quote(Key, safe="/~")
        attempts = 0
        kept: dict[str, Any] = {}
        while True:
            attempts += 1
            response, failure = None, None
            content: dict[str, Any] = {}
            try:
                answer = self._attempt(key, query, headers, Body)
            except http_pool.HttpError as error:
                failure = _as_the_sdk_says(error, self._origin)
            else:
                if answer.status < HTTPStatus.MULTIPLE_CHOICES and not answer.body:
                    self._repetition.succeeded(kept)
                    told = self._told[operation]
                    return {told[name]: value for name, value in answer.headers.items() if name in told}
                response = AWSResponse(self._origin, answer.status, HeadersDict(answer.headers), None)
                content = self._parsed(operation, answer)
            delay = self._repetition.delay(RetryContext(attempts, self._models[operation], content, response, failure, kept))
            if delay is None:
                break
            time.sleep(delay)
        if failure is not None:
            raise failure
        if response is not None and response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            raise sdk.ClientError(content, OPERATIONS[operation])
        return content

    def _described(self, operation: str, params: Mapping[str, Any]) -> tuple[dict[str, str], str]:
        """(headers, query): each parameter where the SDK's description of the operation has it."""
        headers: dict[str, str] = {}
        query: list[str] = []
        for field, value in params.items():
            place = self._fields[operation][field]
            if place["location"] == "headers":
                headers |= {place["name"] + name: text for name, text in value.items()}
            elif place["location"] == "querystring":
                query.append(f"{quote(place['name'], safe='')}={quote(str(value), safe='')}")
            else:
                headers[place["name"]] = str(value)
        return headers, "&".join(sorted(query))

    def _attempt(self, key: str, query: str, headers: Mapping[str, str], body: PartData) -> http_pool.Answer:
        path = self._root + key
        target = f"{path}?{query}" if query else path
        if self._signer is None:
            signed = self._signed_v2(key, target, headers)
        else:
            signed = self._signer.signed("PUT", http_pool.host_of(self._origin), path, query, headers, self._payload(body))
        # Waiting for "100 Continue" costs a round trip; it pays only where a refusal would waste a large body.
        return self._pool.request(self._origin, "PUT", target, signed, body, ask_first=len(body) > SMALL_BODY)

    def _payload(self, body: PartData) -> str:
        if not self._signs_payload:
            return UNSIGNED
        return body.sha256 if isinstance(body, PartSource) else hashlib.sha256(body).hexdigest()

    def _signed_v2(self, key: str, target: str, headers: Mapping[str, str]) -> dict[str, str]:
        request = AWSRequest("PUT", self._origin + target, headers, auth_path=f"/{self._bucket}/{key}")
        HmacV1Auth(self._credentials).add_auth(request)
        return dict(request.headers.items())

    def _parsed(self, operation: str, answer: http_pool.Answer) -> dict[str, Any]:
        headers = HeadersDict(answer.headers)
        content = {"status_code": answer.status, "headers": headers, "body": answer.body, "context": {}}
        parsed: dict[str, Any] = self._parser.parse(content, self._models[operation].output_shape)
        return parsed


class _Repetition:
    """Which requests are worth another attempt, and when: the SDK's standard mode, its quota over all requests included."""

    _SUCCESS = AWSResponse("", HTTPStatus.OK, {}, None)

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

    def succeeded(self, kept: dict[str, Any]) -> None:
        """Give back what the attempts took of the quota."""
        self._quota.release_retry_quota(kept, self._SUCCESS)


def _bucket_url(client: Any, bucket: str) -> str:
    """Where the SDK sends requests about keys of the bucket, up to the key."""
    url = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "key"})
    return str(urlsplit(url)._replace(query="").geturl().removesuffix("key"))


def _told_in_headers(output: Any) -> dict[str, str]:
    """Header, in lower case, to the field of the SDK's answer that is its text."""
    return {
        shape.serialization["name"].lower(): field
        for field, shape in output.members.items()
        if shape.serialization.get("location") == "header" and shape.type_name == "string"
    }


def _as_the_sdk_says(error: http_pool.HttpError, origin: str) -> sdk.BotoCoreError:
    made: sdk.BotoCoreError
    match error:
        case http_pool.Untrusted():
            made = sdk.SSLError(endpoint_url=origin, error=error)
        case http_pool.ProxyFailed():
            made = sdk.ProxyConnectionError(proxy_url="the proxy", error=error)
        case http_pool.ConnectTimedOut():
            made = sdk.ConnectTimeoutError(endpoint_url=origin, error=error)
        case http_pool.ConnectFailed():
            made = sdk.EndpointConnectionError(endpoint_url=origin, error=error)
        case http_pool.TimedOut():
            made = sdk.ReadTimeoutError(endpoint_url=origin, error=error)
        case http_pool.BrokenOff():
            made = sdk.ConnectionClosedError(endpoint_url=origin, error=error, request=None)
        case _:
            made = sdk.HTTPClientError(error=error)
    return made


# --- signatures ----------------------------------------------------------------------------------------------------------


class Signer:
    """AWS Signature Version 4 of requests to S3, in their headers."""

    def __init__(self, access_key: str, secret_key: str, region: str) -> None:
        self._access_key = access_key
        self._secret = f"AWS4{secret_key}".encode()
        self._region = region
        self._day = ("", b"")
        """A date and its key: four digests less for each request."""

    def signed(
        self, method: str, host: str, path: str, query: str, headers: Mapping[str, str], payload: str, *, at: float | None = None
    ) -> dict[str, str]:
        """The headers with a signature over them all. `path` and `query` are encoded, the query's fields in order of their names.

        `payload` is the body's SHA-256 in hex, or what S3 takes in its place; `at`: the time, if not now.
        """
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
        scope = f"{moment[:8]}/{self._region}/s3/aws4_request"
        sent = {**headers, "X-Amz-Date": moment, "X-Amz-Content-SHA256": payload}
        fields = sorted([(name.lower(), " ".join(value.split())) for name, value in sent.items()] + [("host", host)])
        names = ";".join([name for name, _ in fields])
        lines = [method, path, query, *[f"{name}:{value}" for name, value in fields], "", names, payload]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
        signature = hmac.digest(self._key_of(moment[:8]), text.encode(), "sha256").hex()
        credential = f"Credential={self._access_key}/{scope}"
        sent["Authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
        return sent

    def _key_of(self, date: str) -> bytes:
        known, key = self._day
        if known != date:
            key = self._secret
            for word in (date, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, word.encode(), "sha256")
            self._day = (date, key)
        return key
