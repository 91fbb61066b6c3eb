"""Pages of the work under way: transfers by key, and the workers with the stores that they reach."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from cloudstorage.console.pages import keyset, page, show
from stores.models import KINDS, Transfer, Worker
from stores.states import TransferState

SILENT_AFTER = 4
"""Heartbeats that a worker may miss before it counts as silent."""


@page("transfers/", "transfer_list")
def transfer_list(request: HttpRequest) -> HttpResponse:
    """Transfers, newest first."""
    state = request.GET.get("state", "")
    cause = request.GET.get("cause", "")
    rows = Transfer.objects.select_related("source", "target", "worker", "batch")
    for side in ("source", "target"):
        rows = rows.defer(f"{side}__probe_steps", f"{side}__facts", f"{side}__scan_report")
    rows = rows.filter(state=state) if state else rows
    rows = rows.filter(error_cause=cause) if cause else rows
    if batch := request.GET.get("batch", ""):
        rows = rows.filter(batch_id=int(batch)) if batch.isdigit() else rows.none()
    found = keyset(request, rows, newest_first=True)
    names = names_of(found.rows)
    return show(
        request,
        "console/transfers.html",
        title="Transfers",
        rows=[(row, names.get((row.kind, row.item_id))) for row in found.rows],
        slice=found,
        states=[each.value for each in TransferState],
        filters={"state": state, "cause": cause, "batch": batch},
        filtered=bool(state or cause or batch),
    )


def names_of(rows: Any) -> dict[tuple[str, int], tuple[str, str]]:
    """(uuid, name) of the items of transfers, by kind and id; a query per kind."""
    names = {}
    for kind, models in KINDS.items():
        ids = [row.item_id for row in rows if row.kind == kind]
        if ids:
            for pk, number, name in models.item.objects.filter(pk__in=ids).values_list("pk", "uuid", "name"):
                names[kind.value, pk] = (str(number), name)
    return names


def workers() -> list[dict[str, Any]]:
    """Workers that have not said good-bye, and those that did within a day, with their health in a word."""
    now = timezone.now()
    limit = timedelta(seconds=settings.HEARTBEAT_SECONDS * SILENT_AFTER)
    recent = Worker.objects.exclude(stopped__lt=now - timedelta(days=1)).prefetch_related("reach__store")
    found = []
    for worker in recent.order_by("stopped", "-heartbeat")[:100]:
        health = "stopped" if worker.stopped else "alive" if now - worker.heartbeat < limit else "silent"
        found.append({"worker": worker, "health": health, "reach": list(worker.reach.all())})
    return found


@page("workers/", "worker_list")
def worker_list(request: HttpRequest) -> HttpResponse:
    """Who copies, when it was heard of last, and what it reaches."""
    return show(request, "console/workers.html", title="Workers", workers=workers())
