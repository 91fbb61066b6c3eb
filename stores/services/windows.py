"""Time windows of the form `HH:MM-HH:MM` during which a batch may run."""

from __future__ import annotations

import re
from datetime import datetime, time

from django.utils import timezone

from cloudstorage.errors import Invalid

_FORM = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def parse(window: str) -> tuple[time, time]:
    """(start, end) in CLOUDSTORAGE_TIME_ZONE; raises Invalid(field="window")."""
    match = _FORM.fullmatch(window)
    if match is None:
        raise Invalid(
            f"{window!r} is not a time window.", remedy="Write it as HH:MM-HH:MM, for example 22:00-06:00.", field="window"
        )
    first, second, third, fourth = (int(group) for group in match.groups())
    return time(first, second), time(third, fourth)


def is_open(window: str, now: datetime | None = None) -> bool:
    """Whether `now` lies in the window, which may cross midnight; empty, or with its end at its start, it is always open."""
    if not window:
        return True
    start, end = parse(window)
    at = timezone.localtime(now).time()
    if start < end:
        return start <= at < end
    return at >= start or at < end
