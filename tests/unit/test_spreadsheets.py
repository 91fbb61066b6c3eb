"""Names that somebody else chose are text in a spreadsheet, whatever they begin with."""

from __future__ import annotations

import pytest

from cloudstorage.spreadsheets import harmless

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@sum(a1)", "\t=1", "\n=1", "\r=1", " =1", "\u00a0=1"])
def test_what_may_be_taken_for_a_formula_is_marked_as_text(value: str) -> None:
    assert harmless(value) == f"'{value}"


@pytest.mark.parametrize("value", ["", "a=1", " a", "'=1", "1-1"])
def test_all_else_is_left_alone(value: str) -> None:
    assert harmless(value) == value
