"""Who must not do the same thing at the same moment takes turns, by a lock of the database that no row stands for."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

from django.db import connection


class Turn(IntEnum):
    """What is done by one at a time."""

    PLANNING = 1
    """Planning copies to a store, by its id."""


def wait_for_turn(what: Turn, numbers: Collection[int]) -> None:
    """Until the caller's transaction ends, nobody else does this for these numbers. To be called before any row is locked.

    SQLite has one writer anyhow.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for number in sorted(set(numbers)):
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [what << 48 | number])
