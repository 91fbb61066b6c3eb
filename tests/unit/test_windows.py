"""When a batch may run, minute by minute: days of the week, midnight, and the two nights on which the clock is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cloudstorage.errors import Invalid
from stores.services.windows import DAYS, Hours, canonical, hours, is_open, parse, schedule, zone_of

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")
CHANGES = (datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 4, 5, tzinfo=UTC))

times = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
days = st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True).map(",".join)
spans = st.builds(lambda day, start, end: f"{day} {start}-{end}", days, times, times)
windows = st.lists(spans, min_size=1, max_size=3).map("; ".join)
moments = st.builds(
    lambda base, minutes: base + timedelta(minutes=minutes), st.sampled_from(CHANGES), st.integers(-3 * 24 * 60, 3 * 24 * 60)
)


def open_minutes(window: str, zone: str, day: datetime) -> int:
    """How many minutes of these 24 hours from local midnight are in the window."""
    start = day.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return sum(is_open(window, zone, start + timedelta(minutes=minute)) for minute in range(24 * 60))


@pytest.mark.parametrize(
    ("window", "at", "expected"),
    [
        ("", "2026-11-21 12:00", True),
        ("22:00-06:00", "2026-11-21 21:59", False),
        ("22:00-06:00", "2026-11-21 22:00", True),
        ("22:00-06:00", "2026-11-22 05:59", True),
        ("22:00-06:00", "2026-11-22 06:00", False),
        ("Fri 22:00-06:00", "2026-11-21 05:59", True),  # Saturday morning: the night of Friday
        ("Fri 22:00-06:00", "2026-11-20 05:59", False),  # Friday morning: the night of Thursday
        ("Sun 22:00-06:00", "2026-11-23 03:00", True),
        ("Sat,Sun 00:00-24:00", "2026-11-22 23:59", True),
        ("Sat,Sun 00:00-24:00", "2026-11-23 00:00", False),
        ("Fri-Mon 08:00-09:00", "2026-11-23 08:30", True),
        ("Fri-Mon 08:00-09:00", "2026-11-24 08:30", False),
        ("Tue 10:00-10:00", "2026-11-25 09:59", True),  # around the clock from its start on
        ("Tue 10:00-10:00", "2026-11-25 10:00", False),
        ("Mon-Fri 22:00-06:00; Sat 12:00-13:00", "2026-11-21 12:30", True),
    ],
)
def test_a_window_is_open_by_day_and_hour(window: str, at: str, expected: bool):
    assert is_open(window, "Europe/Berlin", datetime.fromisoformat(at).replace(tzinfo=BERLIN)) is expected


def test_the_hour_that_is_skipped_opens_nothing_and_the_one_that_comes_twice_is_open_twice():
    spring, autumn, other = datetime(2026, 3, 29), datetime(2026, 10, 25), datetime(2026, 7, 1)
    found = [open_minutes("02:00-03:00", "Europe/Berlin", day) for day in (spring, autumn, other)]
    assert found == [0, 120, 60]
    assert open_minutes("02:30-03:30", "Europe/Berlin", spring) == 30


@pytest.mark.parametrize(
    ("window", "at", "opens"),
    [
        ("02:00-03:00", "2026-03-28 12:00", "2026-03-30 00:00"),  # the night between has no such hour
        ("Sun 02:30-03:30", "2026-03-29 00:00", "2026-03-29 01:00"),  # at once when the clock is put forward, into it
        ("01:00-02:30", "2026-10-25 00:45", "2026-10-25 01:00"),  # again when it is put back, into it
        ("Sun 02:10-02:20", "2026-03-23 00:00", "2026-04-05 00:10"),
        ("22:00-06:00", "2026-11-21 21:30", "2026-11-21 21:30"),
    ],
)
def test_it_tells_when_it_opens_next(window: str, at: str, opens: str):
    moment, expected = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (at, opens))
    assert schedule(window, "Europe/Berlin").opens_after(moment) == expected


@pytest.mark.parametrize(
    ("reader", "when"),
    [
        ("Europe/Rome", "Sat 2026-11-21 22:00 (Europe/Berlin)"),
        ("America/New_York", "Sat 2026-11-21 22:00 (Europe/Berlin), which is Sat 2026-11-21 16:00 EST"),
    ],
)
def test_it_is_told_by_the_windows_clock_and_by_a_reader_of_another(reader: str, when: str):
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    with timezone.override(ZoneInfo(reader)):
        found = hours("22:00-06:00", "Europe/Berlin", noon)
        assert found == Hours("22:00-06:00 (Europe/Berlin)", datetime(2026, 11, 21, 21, tzinfo=UTC), when)
        assert hours("22:00-06:00", "Europe/Berlin", noon + timedelta(hours=10)) == Hours("22:00-06:00 (Europe/Berlin)", None, "")
    assert hours("", "Europe/Berlin") is None


@given(windows, st.sampled_from(ZONES), moments)
@example("Sun 02:00-03:00", "Europe/Berlin", CHANGES[0])
@settings(max_examples=150, deadline=None)
def test_it_is_open_where_the_wall_clock_shows_an_hour_of_it(window: str, zone: str, at: datetime):
    shown = at.astimezone(ZoneInfo(zone))
    clock, today, before = f"{shown:%H:%M}", DAYS[shown.weekday()], DAYS[shown.weekday() - 1]
    expected = False
    for span in window.split("; "):
        listed, _, hours = span.rpartition(" ")
        start, end = hours.split("-")
        if start < end:
            expected |= today in listed and start <= clock < end
        else:
            expected |= (today in listed and clock >= start) or (before in listed and clock < end)
    assert is_open(window, zone, at) is expected
    assert is_open(canonical(window), zone, at) is expected


@given(windows, st.sampled_from(ZONES), moments)
@settings(max_examples=60, deadline=None)
def test_the_next_opening_is_the_first_open_minute(window: str, zone: str, at: datetime):
    table = schedule(window, zone)
    found = table.opens_after(at)
    assert table.is_open(found)
    assert found >= at
    assume(found - at < timedelta(hours=30))
    minutes = int((found - at) / timedelta(minutes=1))
    assert not any(table.is_open(at + timedelta(minutes=minute)) for minute in range(minutes))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("  22:00-06:00 ", "22:00-06:00"),
        ("mon-fri 22:00-06:00;sat, sun 00:00-24:00", "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00"),
        ("Mon,Tue,Wed 01:00 - 02:00", "Mon-Wed 01:00-02:00"),
        ("Sat-Mon 01:00-02:00", "Mon,Sat,Sun 01:00-02:00"),
        ("Mon-Sun 01:00-02:00", "01:00-02:00"),
    ],
)
def test_windows_are_kept_in_one_form(text: str, kept: str):
    assert canonical(text) == kept


@pytest.mark.parametrize(
    "text",
    ["late", "22-06", "24:00-06:00", "22:60-06:00", "22:00-24:01", "Man 22:00-06:00", "Mon- 22:00-06:00", ";", "Mon 1:00-2:00",
     "; ".join(["Mon,Wed,Fri 01:00-02:00"] * 20), "22:00-06:00, 07:00-08:00"],
)  # fmt: skip
def test_what_is_no_window_is_refused_with_the_right_form(text: str):
    with pytest.raises(Invalid) as refusal:
        parse(text)
    assert (refusal.value.field, bool(refusal.value.remedy)) == ("window", True)


@pytest.mark.parametrize("name", ["Berlin", "Europe/", "../../etc/passwd", "/etc/localtime", "Europe/Berlin\0"])
def test_what_is_no_time_zone_is_refused(name: str):
    with pytest.raises(Invalid) as refusal:
        zone_of(name)
    assert refusal.value.field == "time_zone"


def test_without_a_name_the_installation_s_time_zone_counts(settings):
    settings.TIME_ZONE = "Asia/Kathmandu"
    at = datetime(2026, 11, 21, 16, 20, tzinfo=UTC)  # 22:05 there
    assert is_open("22:00-22:10", "", at)
    assert not is_open("22:00-22:10", "UTC", at)
