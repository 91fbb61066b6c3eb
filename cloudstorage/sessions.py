"""What a process asks of its database sessions beyond the settings, which all processes share."""

from __future__ import annotations

from typing import Any

from django.db import InterfaceError, InternalError, OperationalError
from django.db.backends.signals import connection_created

SESSION_LOST = (OperationalError, InterfaceError, InternalError)
"""What a statement raises whose session is gone; an internal error, says PostgreSQL, where it was idle in a transaction."""
_UID = "cloudstorage.sessions"


def end_idle_transactions(seconds: float) -> None:
    """From the next connection on, let PostgreSQL end a session that does nothing in the middle of a transaction for so long.

    A process that was stopped there, or whose host is paused, would else keep its row locks for ever.
    """

    def limit(connection: Any, **_: Any) -> None:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                timeout = f"{max(1, round(seconds * 1000))}ms"
                cursor.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, false)", [timeout])

    connection_created.connect(limit, weak=False, dispatch_uid=_UID)


def let_transactions_idle() -> None:
    """Take it back, for connections that are made from now on."""
    connection_created.disconnect(dispatch_uid=_UID)
