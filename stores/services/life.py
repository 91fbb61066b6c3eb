"""Begins a new life of the database after it was lost or put back: whoever still works for the former one changes nothing."""

from __future__ import annotations

import time

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from stores.models import KINDS, ScanRun, Transfer, Worker, WorkerReach
from stores.states import (
    SCAN_TRANSITIONS,
    TRANSFER_TRANSITIONS,
    ScanEvent,
    ScanState,
    TransferEvent,
    TransferState,
    next_state,
)

EPOCHS = 100_000
"""More than a row is ever claimed."""


def begin() -> None:
    """Advance every epoch, end every lease and every worker, and number new rows where no former life has; the caller owns the
    transaction.

    A late worker's changes carry an epoch that no row has any more, and its uploads a number that no row gets again.
    """
    Transfer.objects.update(epoch=F("epoch") + EPOCHS)
    Transfer.objects.filter(state=TransferState.RUNNING).update(
        state=next_state(TRANSFER_TRANSITIONS, TransferState.RUNNING, TransferEvent.RELEASE),
        worker=None,
        lease_until=None,
        next_attempt_at=Now(),
    )
    ScanRun.objects.filter(state=ScanState.RUNNING).update(
        state=next_state(SCAN_TRANSITIONS, ScanState.RUNNING, ScanEvent.RELEASE), token=None, lease_until=None
    )
    WorkerReach.objects.all().delete()
    Worker.objects.filter(stopped=None).update(stopped=timezone.now())
    for model in (Transfer, Worker, *(models.ref for models in KINDS.values())):
        _number_from(model._meta.db_table, int(time.time() * 1000))  # noqa: SLF001 - Django's public name for it


def _number_from(table: str, first: int) -> None:
    """Ids of new rows are larger than `first`: a moment that no former life had reached."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("UPDATE sqlite_sequence SET seq = max(seq, %s) WHERE name = %s", [first, table])
            if not cursor.rowcount:
                cursor.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (%s, %s)", [table, first])
        else:
            cursor.execute(
                "SELECT setval(sequence::regclass, greatest(%s, nextval(sequence::regclass)))"
                " FROM (SELECT pg_get_serial_sequence(%s, 'id') AS sequence) AS of_table",
                [first, table],
            )
