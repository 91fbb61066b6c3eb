"""What people open in a spreadsheet must stay text there, whoever chose the names in it."""

from __future__ import annotations


def harmless(value: str) -> str:
    """A spreadsheet takes a cell that begins so for a formula, some after leading blanks as well."""
    return f"'{value}" if value[:1] in {"\t", "\r", "\n"} or value.lstrip()[:1] in {"=", "+", "-", "@"} else value
