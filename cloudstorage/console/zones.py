"""Shows every time of the console in the reader's own zone: the one that they chose, else the browser's, else the server's."""

from __future__ import annotations

from collections.abc import Callable
from zoneinfo import ZoneInfo

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from cloudstorage import preferences

COOKIE = "time-zone"
"""In which scripts tell the browser's zone."""
FOR_PROGRAMS = ("/api/", "/healthz", "/readyz", "/metrics")
"""What programs read, some of it while there is no database."""


class OwnTimeZone:
    """Makes the reader's zone the present one while a page is made. What programs read, exports too, stays in UTC."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if settings.SESSION_COOKIE_NAME not in request.COOKIES or request.path_info.startswith(FOR_PROGRAMS):
            return self.get_response(request)
        with timezone.override(_zone_of(request)):
            return self.get_response(request)


def _zone_of(request: HttpRequest) -> ZoneInfo | None:
    chosen = preferences.time_zone_of(request.user) if request.user.is_authenticated else ""
    return preferences.known_zone(chosen) or preferences.known_zone(request.COOKIES.get(COOKIE, ""))
