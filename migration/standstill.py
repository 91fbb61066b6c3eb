"""How a switch of the whole region has all refs to itself for a moment: one switch at a time, and nobody waits for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from django.db import OperationalError, connection, transaction

from cloudstorage.models import Installation
from stores.models import KINDS, ImageStore
from stores.states import StoreState

LOCK_SECONDS = 20
"""How long a switch tries to get what it locks before it gives up, with nothing changed."""
LOCK_ATTEMPT = "500ms"
"""Below PostgreSQL's `deadlock_timeout` of 1 s."""
LOCK_PAUSE = 0.1
LOCK_NOT_AVAILABLE = "55P03"
WORK_MEMORY = "128MB"
"""For grouping a million refs without files on disk."""

T = TypeVar("T")


def let_one_in() -> None:
    """One switch at a time: the second waits here until the first has committed."""
    # The planner knows nothing of the rows that we are about to insert, and would compare them one by one with all others.
    _settings(lock_timeout=f"{LOCK_SECONDS}s", work_mem=WORK_MEMORY, enable_nestloop="off")
    Installation.objects.select_for_update().get(pk=Installation.get().pk)


def hold_still(lock: Callable[[], T]) -> T:
    """Run `lock`, which locks all that the switch needs, until it gets it; what it locked stays so until the transaction ends.

    SQLite has one writer anyhow. On PostgreSQL the rows of the stores come first, as in `begin_item` and `finish_item`; then
    the tables of refs, from which others may read meanwhile; then what else changes. All are taken together or given back
    together: we never wait while holding as long as a deadlock takes to be found, so that no one else is its victim.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # the new rows' foreign keys now, not while all others wait
    _settings(lock_timeout=LOCK_ATTEMPT)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with transaction.atomic():
                return lock()
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", "") != LOCK_NOT_AVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(LOCK_PAUSE)


def _settings(**values: str) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for name, value in values.items():
                cursor.execute("SELECT set_config(%s, %s, true)", [name, value])


def lock_stores(*, but: ImageStore | None = None) -> list[tuple[int, str, str]]:
    """Lock the rows of all stores that were not removed; (id, role, state) of each."""
    stores = ImageStore.objects.exclude(state=StoreState.REMOVED)
    if but is not None:
        stores = stores.exclude(pk=but.pk)
    rows = stores.select_for_update(no_key=True).order_by("pk")
    return list(rows.values_list("pk", "role", "state"))


def lock_refs() -> None:
    """Let nobody else change a ref; reading goes on."""
    if connection.vendor == "postgresql":
        tables = [connection.ops.quote_name(models.ref._meta.db_table) for models in KINDS.values()]  # noqa: SLF001 - documented
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {', '.join(tables)} IN EXCLUSIVE MODE")
