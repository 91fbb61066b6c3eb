"""What a load balancer or an orchestrator asks: is this process alive, and may requests be sent to it?"""

from __future__ import annotations

import logging

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from cloudstorage.models import Installation

log = logging.getLogger(__name__)

_migrated: list[bool] = []
"""Filled once all schema migrations were seen applied; looking them up reads every file of theirs."""


@never_cache
@require_safe
def alive(request: HttpRequest) -> JsonResponse:  # noqa: ARG001 - Django's name
    """200 while the process answers at all; a restart would mend nothing else."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:  # noqa: ARG001 - Django's name
    """503 while the database is not usable. Says no more than that, for nobody needs to sign in for it."""
    checks = {"database": "ok", "schema": "ok"}
    try:
        read_only = bool(Installation.why_read_only()) if _is_migrated() else False
        if not _migrated:
            checks["schema"] = "migrations are not applied; run: manage.py migrate"
        elif read_only:
            checks["writes"] = "refused until a restored database was compared with its stores"
    except DatabaseError:
        log.exception("not ready: the database does not answer")
        checks |= {"database": "does not answer", "schema": "unknown"}
    broken = checks["database"] != "ok" or checks["schema"] != "ok"
    return JsonResponse({"status": "not ready" if broken else "ok", "checks": checks}, status=503 if broken else 200)


def _is_migrated() -> bool:
    connection.ensure_connection()
    if not _migrated:
        executor = MigrationExecutor(connection)
        if not executor.migration_plan(executor.loader.graph.leaf_nodes()):
            _migrated.append(True)
    return bool(_migrated)
