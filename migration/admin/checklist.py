"""A checklist before something ends: every line says what is so, or what stands against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Lines = Sequence[tuple[tuple[str, ...], str]]
"""Beginnings of codes of findings that stand against a line, and what is so where there is none."""


def checked(lines: Lines, findings: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """(what is so, what stands against it)."""
    return [(words, [found for found in findings if found.code.startswith(codes)]) for codes, words in lines]
