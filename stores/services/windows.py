"""When a batch may run: windows of the week by a named time zone's clock, such as `Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import timezone

from cloudstorage.errors import Invalid

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MAX_LENGTH = 255

_SPAN = re.compile(r"(?:(?P<days>[A-Za-z, -]+) )?(\d\d):(\d\d) ?- ?(\d\d):(\d\d)")
_DAY_MINUTES = 24 * 60
_HELP = "Write them as 22:00-06:00, or as Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00."


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of the day, from `start` up to `end`, on days that it begins on; with its end at or before its start it ends on the
    next day."""

    days: tuple[int, ...]
    start: int
    end: int

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else f"{','.join(_day_ranges(self.days))} "
        return f"{days}{_clock(self.start)}-{_clock(self.end)}"

    def has(self, weekday: int, minute: int) -> bool:
        """Whether it is open at this minute of that day of the week, 0 = Monday."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or ((weekday - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Windows in their time zone. They go by what the clock on the wall shows: an hour that it skips in spring opens nothing, one
    that it shows twice in autumn is open twice."""

    spans: tuple[Span, ...]
    zone: ZoneInfo

    def is_open(self, at: datetime) -> bool:
        """Whether a batch may run then."""
        shown = at.astimezone(self.zone)
        return any(span.has(shown.weekday(), shown.hour * 60 + shown.minute) for span in self.spans)

    def opens_after(self, at: datetime) -> datetime:
        """The next moment that is in a window: `at` itself where it is open."""
        if self.is_open(at):
            return at
        return min(moment for moment in self._may_open(at) if moment > at and self.is_open(moment))

    def _may_open(self, at: datetime) -> Iterator[datetime]:
        today = at.astimezone(self.zone).date()
        for days in range(15):  # the one window of a week may fall into the hour that is skipped
            midnight = self._midnight(today + timedelta(days=days))
            minutes = int((self._midnight(today + timedelta(days=days + 1)) - midnight) / timedelta(minutes=1))
            changed = minutes != _DAY_MINUTES  # the clock may be put into a window, so every minute counts
            yield from (
                midnight + timedelta(minutes=minute)
                for minute in (range(minutes) if changed else sorted(span.start for span in self.spans))
            )

    def _midnight(self, day: date) -> datetime:
        return datetime.combine(day, time(), self.zone).astimezone(UTC)

    def __str__(self) -> str:
        return f"{'; '.join(map(str, self.spans))} ({self.zone.key})"


@dataclass(frozen=True, slots=True)
class Hours:
    """Windows as a face tells them: whether they are open now, and else when they open."""

    words: str
    """With their time zone."""
    opens: datetime | None
    """None while they are open."""
    when: str
    """The same by the windows' own clock, and by the reader's where that shows another time; empty while they are open."""


@lru_cache(maxsize=256)
def parse(windows: str) -> tuple[Span, ...]:
    """The windows that a text names, at least one; raises Invalid(field="window")."""
    spans = tuple(_span(text) for text in windows.split(";") if text.strip())
    if not spans:
        raise Invalid(f"{windows!r} is not a time window.", remedy=_HELP, field="window")
    if len("; ".join(map(str, spans))) > MAX_LENGTH:
        raise Invalid("These are more windows than can be kept.", remedy="Join days that have the same hours.", field="window")
    return spans


def canonical(windows: str) -> str:
    """The text in the one form in which it is kept; empty for always. Raises Invalid(field="window")."""
    return "; ".join(map(str, parse(windows))) if windows.strip() else ""


@lru_cache(maxsize=64)
def zone_of(name: str) -> ZoneInfo:
    """The time zone of this IANA name; raises Invalid(field="time_zone")."""
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        remedy = "Name one of the IANA database, as Europe/Berlin, America/New_York or UTC."
        raise Invalid(f"{name!r} is no time zone that this host knows.", remedy=remedy, field="time_zone") from error


def schedule(windows: str, time_zone: str = "") -> Schedule:
    """Windows in a time zone, by default that of CLOUDSTORAGE_TIME_ZONE; raises Invalid."""
    return Schedule(parse(windows), zone_of(time_zone or settings.TIME_ZONE))


def is_open(windows: str, time_zone: str = "", now: datetime | None = None) -> bool:
    """Whether `now` lies in one of the windows; where there is none, it is always open."""
    return not windows or schedule(windows, time_zone).is_open(now or timezone.now())


def hours(windows: str, time_zone: str = "", now: datetime | None = None) -> Hours | None:
    """How the windows stand; None where there are none, which is always open."""
    if not windows:
        return None
    table, at = schedule(windows, time_zone), now or timezone.now()
    if table.is_open(at):
        return Hours(str(table), None, "")
    opens = table.opens_after(at)
    there, here = opens.astimezone(table.zone), timezone.localtime(opens)
    when = f"{there:%a %Y-%m-%d %H:%M} ({table.zone.key})"
    if here.utcoffset() != there.utcoffset():
        when += f", which is {here:%a %Y-%m-%d %H:%M %Z}"
    return Hours(str(table), opens, when)


def _span(text: str) -> Span:
    match = _SPAN.fullmatch(text.strip())
    hours = tuple(int(group) for group in match.groups()[1:]) if match else ()
    if match is None or not (hours[0] < 24 and hours[2] <= 24 and hours[1] < 60 and hours[3] < 60):
        raise Invalid(f"{text.strip()!r} is not a time window.", remedy=_HELP, field="window")
    start, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
    if end > _DAY_MINUTES:
        raise Invalid(f"{text.strip()!r} ends after the day does.", remedy="A day ends at 24:00.", field="window")
    return Span(_days(match["days"] or "Mon-Sun"), start, end)


def _days(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        begin, end = _day(first, text), _day(last if dash else first, text)
        found |= {day % 7 for day in range(begin, end + 1 if end >= begin else end + 8)}
    return tuple(sorted(found))


def _day(name: str, text: str) -> int:
    try:
        return DAYS.index(name.capitalize())
    except ValueError:
        message = f"{name or text!r} is no day of the week."
        raise Invalid(message, remedy=f"Days are {', '.join(DAYS)}, and ranges such as Mon-Fri.", field="window") from None


def _day_ranges(days: tuple[int, ...]) -> Iterator[str]:
    start = 0
    for end in range(1, len(days) + 1):
        if end == len(days) or days[end] != days[end - 1] + 1:
            run = days[start:end]
            yield f"{DAYS[run[0]]}-{DAYS[run[-1]]}" if len(run) > 2 else ",".join(DAYS[day] for day in run)
            start = end


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
