"""Amounts as people read and enter them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudstorage.commands import bytes_from, exact_bytes
from cloudstorage.templatetags.console import breakable, duration


@given(st.integers(0, (1 << 63) - 1) | st.integers(0, 1 << 10).map(lambda count: count << 30))
def test_an_amount_that_a_form_shows_is_the_same_when_it_is_sent_back(count):
    assert bytes_from(exact_bytes(count), "bandwidth") == count


def test_an_amount_is_shown_in_the_unit_in_which_it_is_short():
    assert [exact_bytes(count) for count in (1 << 20, 100_000_000, 1234, 0)] == ["1MiB", "100M", "1234", "0"]


def test_a_range_whose_ends_read_the_same_is_one_time():
    assert (duration(0.2, 0.9), duration(4, 61), duration(None, 3)) == ("0 s", "4 s to 1 min 01 s", "\u2013")


def test_a_long_name_breaks_at_its_underscores_and_nowhere_else():
    assert breakable("A_<b>") == "A_<wbr>&lt;b&gt;"
