"""Speaks HTTP to OpenStack Swift: signs in (auth v1, Keystone v3), and turns every answer into our errors.

The only file that imports python-swiftclient and keystoneauth1. Requests go by `http_pool`, because swiftclient's own way follows
redirects with the token, logs the beginning of tokens, sends whole bodies under the connect timeout and takes no proxy after the
sign-in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from keystoneauth1 import exceptions as keystone_errors
from keystoneauth1.identity import v3
from keystoneauth1.session import Session as KeystoneSession
from swiftclient.client import quote

from stores.drivers import http_pool
from stores.drivers.base import PartData
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
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where and as whom to sign in; timeouts in seconds."""

    url: str
    version: str
    user: str
    key: str = field(repr=False)
    project: str = ""
    user_domain: str = ""
    project_domain: str = ""
    region: str = ""
    cabundle: str = ""
    proxy: str = field(default="", repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0


class Response(http_pool.Answer):
    """An answer, with what Swift tells in its headers."""

    __slots__ = ()

    @property
    def etag(self) -> str:
        """The entity tag without quotes; empty where the server sent none."""
        return self.headers.get("etag", "").strip('"')

    @property
    def size(self) -> int:
        """Bytes of the object; raises Misconfigured when the server does not tell."""
        length = self.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) <= http_pool.MAX_DIGITS):
            raise Misconfigured("The server does not tell how large an object is: it is no Swift.", field="url")
        return int(length)

    @property
    def modified(self) -> datetime:
        """When the object was written; raises Misconfigured when the server does not tell, as every Swift does."""
        with contextlib.suppress(ValueError, OverflowError):
            return datetime.fromtimestamp(float(self.headers.get("x-timestamp", "")), UTC)
        try:
            return parsedate_to_datetime(self.headers.get("last-modified", ""))
        except (ValueError, OverflowError):
            raise Misconfigured("The server does not tell when an object was written: it is no Swift.", field="url") from None


class SwiftSession:
    """A signed-in account for any number of threads of one process; nothing is opened before the first request."""

    page_size = 0
    """Names in a page of a listing; 0 leaves it to the server, which refuses a number above its own."""

    def __init__(self, credentials: Credentials, check_url: Callable[[str], None]) -> None:
        self.credentials = credentials
        self._check_url = check_url
        self._pool = http_pool.HttpPool(
            connect_timeout=credentials.connect_timeout,
            read_timeout=credentials.read_timeout,
            ca_bundle=credentials.cabundle,
            proxy=credentials.proxy,
        )
        self._start_afresh()

    def _start_afresh(self) -> None:
        # Locks and Keystone's connections must not be shared with the process that we were forked from.
        self._pid = os.getpid()
        self._signing_in = threading.Lock()
        self._account: tuple[str, str] | None = None
        """Storage URL and token, once signed in."""
        self._keystone: KeystoneSession | None = None

    # --- requests ------------------------------------------------------------------------------------------------------

    @property
    def storage_url(self) -> str:
        """The account's URL as the sign-in told it, allowed by the outbound policy."""
        return self._sign_in()[0]

    def request(
        self,
        method: str,
        container: str = "",
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: PartData = b"",
        allow: Collection[int] = (),
        repeatable: bool = True,
    ) -> Response:
        """Send a request about the account, a container or an object; raises a StoreError for any failure status not in `allow`.

        A `repeatable` request is sent once more when its connection broke, as kept ones do when the server closes them.
        """
        subject = repr(f"{container}/{name}" if name else container) if container else "the account"
        signed_in_again = False
        while True:
            storage_url, token = self._sign_in()
            parts = [urlsplit(storage_url).path.rstrip("/")]
            parts += [quote(part, safe="/") for part in (container, name) if part]
            path = "/".join(parts)
            if query:
                path += "?" + "&".join(f"{field}={quote(value, safe='')}" for field, value in query.items())
            sent = {**(headers or {}), "X-Auth-Token": token}
            response = self._exchange(storage_url, method, path, sent, body, repeatable=repeatable)
            if response.status == HTTPStatus.UNAUTHORIZED and not signed_in_again:
                self._forget(token)
                signed_in_again = True
                continue
            if response.status >= 300 and response.status not in allow:
                raise error_of(response, f"{method} {subject}")
            return response

    def page(self, container: str, *, prefix: str, marker: str) -> Sequence[dict[str, Any]]:
        """The next names behind `marker`, as many as the server gives; raises Misconfigured when there is no such container."""
        query = {"format": "json", "prefix": prefix, "marker": marker, "limit": str(self.page_size or "")}
        response = self.request("GET", container, query={name: value for name, value in query.items() if value}, allow=(404,))
        if response.status == HTTPStatus.NOT_FOUND:
            raise Misconfigured(f"The container {container!r} is not in this account.", field="container")
        try:
            entries: list[dict[str, Any]] = json.loads(response.body or b"[]")
            last = [str(entry["name"]) for entry in entries][-1:]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Misconfigured(f"What {container!r} lists is not what Swift would answer.", field="url") from None
        if last == [marker]:
            raise Unavailable(f"The listing of {container!r} does not advance, so what it holds cannot be told.")
        return entries

    def info(self) -> Response:
        """The cluster's `/info`, whatever status it has; needs no token."""
        storage = urlsplit(self.storage_url)
        before_version = storage.path.split("/v1", 1)[0]
        return self._exchange(self.storage_url, "GET", f"{before_version}/info", {})

    def close(self) -> None:
        """Close the idle connections; the session opens new ones when it is used again."""
        self._pool.close()

    def _exchange(
        self,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: PartData = b"",
        *,
        repeatable: bool = True,
    ) -> Response:
        to = urlsplit(url)
        origin = f"{to.scheme}://{to.netloc}"
        for last in (not repeatable, True):
            try:
                answer = self._pool.request(origin, method, path, headers, body)
            except http_pool.HttpError as error:
                if last or not isinstance(error, http_pool.BrokenOff):
                    raise _broken(error, to.netloc) from None
            else:
                break
        return Response(answer.status, answer.headers, answer.body)

    # --- signing in ----------------------------------------------------------------------------------------------------

    def _sign_in(self) -> tuple[str, str]:
        if os.getpid() != self._pid:
            self._start_afresh()
        known = self._account
        if known is None:
            with self._signing_in:
                known = self._account
                if known is None:
                    known = self._account = self._new_account()
        return known

    def _new_account(self) -> tuple[str, str]:
        own = self.credentials
        if own.cabundle and not Path(own.cabundle).is_file():
            raise Misconfigured(f"The CA bundle {own.cabundle!r} is not a file here.", field="cabundle")
        self._check_url(own.url)
        if own.proxy:
            proxy = urlsplit(own.proxy)
            self._require_allowed(f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}", "The proxy", "proxy")
        url, token = self._sign_in_v3() if own.version == "3" else self._sign_in_v1()
        if not _is_usable(url) or not token.isprintable():
            raise Misconfigured("The sign-in named no usable storage URL, or no usable token.", field="url")
        self._require_allowed(url, "The storage URL that the sign-in named", "url")
        return url, token

    def _require_allowed(self, url: str, what: str, at_fault: str) -> None:
        try:
            self._check_url(url)
        except Misconfigured as error:
            raise Misconfigured(f"{what} is not allowed: {error}", field=at_fault) from None

    def _forget(self, token: str) -> None:
        with self._signing_in:
            if self._account is not None and self._account[1] == token:
                self._account = None
                if self._keystone is not None:
                    self._keystone.invalidate()

    def _sign_in_v1(self) -> tuple[str, str]:
        own = self.credentials
        wanted = urlsplit(own.url)
        path = wanted.path
        response = self._exchange(own.url, "GET", path, {"X-Auth-User": own.user, "X-Auth-Key": own.key})
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise _wrong_credentials(own.user)
        if response.status in {400, 404, 405} or 300 <= response.status < 400:
            raise Misconfigured(f"{own.url} is not an auth v1 address: it answered {response.status}.", field="url")
        if response.status >= 300:
            raise error_of(response, "the sign-in")
        url = response.headers.get("x-storage-url", "")
        token = response.headers.get("x-auth-token") or response.headers.get("x-storage-token", "")
        if not url or not token:
            raise Misconfigured(f"{own.url} is not an auth v1 address: its answer carries no storage URL.", field="url")
        return url.rstrip("/"), token

    def _sign_in_v3(self) -> tuple[str, str]:
        own = self.credentials
        try:
            session = self._keystone or self._keystone_session()
            token = session.get_token()
            url = session.get_endpoint(
                service_type="object-store", interface="public", region_name=own.region or None, skip_discovery=True
            )
        except (keystone_errors.Unauthorized, keystone_errors.AuthorizationFailure):
            raise _wrong_credentials(own.user) from None
        except keystone_errors.Forbidden:
            raise LockedOut("Keystone does not let this user into the project.", field="project") from None
        except (keystone_errors.CatalogException, keystone_errors.EndpointNotFound):
            url = None
        except (keystone_errors.NotFound, keystone_errors.DiscoveryFailure, keystone_errors.MethodNotAllowed):
            raise Misconfigured(f"{own.url} is not a Keystone v3 address.", field="url") from None
        except keystone_errors.SSLError:
            message = f"The TLS certificate of {urlsplit(own.url).netloc} is not accepted."
            raise Misconfigured(message, field="cabundle") from None
        except keystone_errors.HttpError as error:
            status = int(error.http_status)
            if status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS:
                raise Unavailable(f"Keystone answered {status} to the sign-in.") from None
            raise Misconfigured(f"Keystone answered {status} to the sign-in.", field="url") from None
        except (keystone_errors.ClientException, requests.RequestException, OSError, ValueError) as error:
            message = f"Keystone at {urlsplit(own.url).netloc} did not answer ({type(error).__name__})."
            raise Unavailable(message) from None
        if not url:
            where = f"in region {own.region!r}" if own.region else "for this project"
            raise Misconfigured(f"Keystone's catalogue has no object store {where}.", field="region")
        self._keystone = session
        return str(url).rstrip("/"), str(token)

    def _keystone_session(self) -> KeystoneSession:
        own = self.credentials
        transport = requests.Session()
        transport.trust_env = False
        if own.proxy:
            transport.proxies = {"http": own.proxy, "https": own.proxy}
        auth = v3.Password(
            auth_url=own.url,
            username=own.user,
            password=own.key,
            user_domain_name=own.user_domain,
            project_name=own.project,
            project_domain_name=own.project_domain,
        )
        verify = own.cabundle or True
        timeout = own.connect_timeout + own.read_timeout
        return KeystoneSession(auth=auth, session=transport, verify=verify, timeout=timeout, redirect=False)


def _is_usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0  # it raises for what is no port
    except ValueError:
        return False
    return named and parts.scheme in {"http", "https"} and url.isprintable() and " " not in url


def md5(data: bytes | memoryview) -> str:
    """Swift's own checksum of objects, hex; it protects against accidents, not against forgers."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def listed_time(entry: Mapping[str, Any]) -> datetime:
    """When the object of a listing's entry was written."""
    try:
        return datetime.fromisoformat(str(entry.get("last_modified"))).replace(tzinfo=UTC)
    except ValueError:
        raise Misconfigured("A listing does not tell when an object was written: it is not Swift's.", field="url") from None


def listed_size(entry: Mapping[str, Any]) -> int:
    """Bytes of the object of a listing's entry."""
    size = entry.get("bytes")
    if not isinstance(size, int):
        raise Misconfigured("A listing does not tell how large an object is: it is not Swift's.", field="url")
    return size


def _broken(error: http_pool.HttpError, host: str) -> StoreError:
    match error:
        case http_pool.Untrusted():
            return Misconfigured(f"The TLS certificate of {host} is not accepted.", field="cabundle")
        case http_pool.BadAddress():
            return Misconfigured(f"{host} cannot be asked: the address or the proxy is malformed.", field="url")
        case http_pool.TooLong():
            return Misconfigured(f"{host}, or a proxy before it, ignores ranges and sends all of an object.", field="url")
        case http_pool.ProxyFailed():
            return Unavailable(f"The proxy before {host} does not let us through.", field="proxy")
        case http_pool.TimedOut() | http_pool.ConnectTimedOut():
            return Unavailable(f"{host} did not answer in time.")
    return Unavailable(f"The connection to {host} failed or broke off ({type(error).__name__}).")


def _wrong_credentials(user: str) -> LockedOut:
    return LockedOut(f"The user {user!r} or its key is not accepted.", field="key")


_ERRORS: Mapping[int, tuple[type[StoreError], str, str | None]] = {
    401: (LockedOut, "it does not accept the sign-in", "key"),
    403: (LockedOut, "the user may not do this", "username"),
    404: (NotFound, "it is not there", None),
    408: (Unavailable, "it did not get the request in time", None),
    412: (AlreadyExists, "the name is taken", None),
    413: (Full, "a quota is used up", None),
    422: (Corrupt, "what arrived does not fit its checksum", None),
    429: (Throttled, "it asks for fewer requests", None),
    498: (Throttled, "it asks for fewer requests", None),
    499: (Unavailable, "the connection broke off", None),
    507: (Full, "the cluster has no space left", None),
}


def error_of(response: Response, what: str) -> StoreError:
    """The error for a failure status. Bodies stay out of messages: they may repeat what was sent."""
    status = response.status
    retry_after = _retry_after(response.headers.get("retry-after", ""))
    kind, meaning, field_at_fault = _ERRORS.get(status, (StoreError, "it refused the request", None))
    if status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after is not None:
        kind, meaning = Throttled, "it asks for fewer requests"
    elif status >= 500 and status not in _ERRORS:
        kind, meaning = Unavailable, "it cannot serve this now"
    elif 300 <= status < 400:
        kind, meaning, field_at_fault = Misconfigured, "it redirects elsewhere, which is not followed", "url"
    message = f"Swift answered {status} to {what}: {meaning}."
    if kind is Throttled:
        return Throttled(message, retry_after=retry_after)
    return kind(message, field=field_at_fault)


def _retry_after(value: str) -> float | None:
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
