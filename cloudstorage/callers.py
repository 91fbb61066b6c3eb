"""Tells from which address somebody asks, also where a proxy stands in between."""

from __future__ import annotations

from ipaddress import ip_address

from django.conf import settings
from django.http import HttpRequest


def address_of(request: HttpRequest) -> str | None:
    """The caller's address; the settings name this function for counting failed sign-ins.

    Behind TLS it is what the proxy saw, the last entry of its header; nobody else's is believed, for anybody can send one.
    """
    seen = request.META.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip() if settings.SECURE_PROXY_SSL_HEADER else ""
    try:
        return str(ip_address(seen))
    except ValueError:
        return request.META.get("REMOTE_ADDR")
