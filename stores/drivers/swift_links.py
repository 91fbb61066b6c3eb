"""Temporary URLs of Swift: which key signs them, and the link itself."""

from __future__ import annotations

import hmac
import secrets
import time
from urllib.parse import quote, unquote, urlsplit

from stores.drivers.errors import AccessDenied
from stores.drivers.swift_http import SwiftSession

DIGESTS = ("sha512", "sha256", "sha1")
"""Strongest first."""


def strongest(offered: object) -> str | None:
    """The strongest digest among those that `/info` offered."""
    return next((name for name in DIGESTS if isinstance(offered, list | tuple) and name in offered), None)


def link(session: SwiftSession, container: str, name: str, *, key: str, digest: str, expires: int, filename: str) -> str:
    """A URL to GET the object with for `expires` seconds from now."""
    storage = urlsplit(session.storage_url)
    path = f"{unquote(storage.path)}/{container}/{name}"
    until = int(time.time()) + expires
    signature = hmac.digest(key.encode(), f"GET\n{until}\n{path}".encode(), digest).hex()
    url = f"{storage.scheme}://{storage.netloc}{quote(path)}?temp_url_sig={signature}&temp_url_expires={until}"
    return f"{url}&filename={quote(filename, safe='', errors='replace')}" if filename else url


def account_key(session: SwiftSession, preferred: str) -> str | None:
    """The account's key: `preferred`, or without it the one that is there; set in an empty place if need be.

    None where that is not allowed, or both places are taken by other keys. Only an account's key opens large objects: one of
    the container does not reach into the container of the segments.
    """
    places = _keys(session, "", "x-account-meta-temp-url-key")
    if places is None:
        return None
    known = [key for key in places if key]
    if preferred in known or (known and not preferred):
        return preferred or known[0]
    if len(known) == len(places):
        return None
    wanted = preferred or secrets.token_hex(32)
    header = "X-Account-Meta-Temp-URL-Key" + ("-2" if places[0] else "")
    try:
        session.request("POST", headers={header: wanted})
    except AccessDenied:
        return None
    return wanted


def container_key(session: SwiftSession, container: str, preferred: str) -> str | None:
    """A key that somebody set on the container: `preferred`, or without it any."""
    known = [key for key in _keys(session, container, "x-container-meta-temp-url-key") or () if key]
    return next((key for key in known if not preferred or key == preferred), None)


def _keys(session: SwiftSession, container: str, header: str) -> tuple[str | None, str | None] | None:
    try:
        headers = session.request("HEAD", container).headers
    except AccessDenied:
        return None
    return headers.get(header), headers.get(f"{header}-2")
