"""Pages of the work under way: transfers by key, and the workers with the stores that they reach."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db.models import Case, F, OuterRef, Q, Subquery, When
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from cloudstorage.actors import ActorRole
from cloudstorage.console.exports import exported, wanted_form
from cloudstorage.console.filters import listing
from cloudstorage.console.pages import action, actor_of, keyset, page, show
from cloudstorage.errors import Invalid
from stores.models import KINDS, Transfer, Worker, heavy
from stores.services import transfers
from stores.services.inventory import names_of
from stores.states import TransferState

AT_ONCE = 200
"""Transfers that one press of a button takes."""
REACH_SHOWN = 6
"""Of a worker's stores, those that it does not reach first."""

LIST = listing("transfer_list", "state", "cause", "batch")
COLUMNS = {
    # column of an export -> where it comes from
    "id": "uuid",
    "kind": "kind",
    "item": "item_uuid",
    "name": "item_name",
    "source": "source__name",
    "target": "target__name",
    "state": "state",
    "attempts": "attempts",
    "bytes": "bytes_total",
    "bytes_done": "bytes_done",
    "proof": "proof",
    "cause": "error_cause",
    "error": "error",
    "remedy": "remedy",
    "started": "started_at",
    "finished": "finished_at",
}


@page("transfers/", "transfer_list")
def transfer_list(request: HttpRequest) -> HttpResponseBase:
    """Transfers, newest first; the filters stand in the URL. `?format=csv` or `json`: all that match."""
    narrowed = LIST.narrowed(request)
    state, cause, batch = narrowed.values.values()
    rows = Transfer.objects.all()
    rows = rows.filter(state=state) if state else rows
    rows = rows.filter(error_cause=cause) if cause else rows
    if batch:
        rows = rows.filter(batch_id=int(batch)) if batch.isdecimal() and len(batch) < 19 else rows.none()
    if form := wanted_form(request):
        named = rows.annotate(item_uuid=_of_item("uuid"), item_name=_of_item("name")).order_by("-pk")
        return exported(form, "transfers", tuple(COLUMNS), named.values_list(*COLUMNS.values()).iterator(chunk_size=1000))
    rows = rows.select_related("source", "target", "worker", "copied_by", "batch")
    rows = rows.defer(*heavy("source", "target"))
    found = keyset(request, rows, newest_first=True)
    names = names_of(found.rows)
    return show(
        request,
        "console/transfers.html",
        title="Transfers",
        rows=[(row, names.get((row.kind, row.item_id))) for row in found.rows],
        slice=found,
        states=[each.value for each in TransferState],
        narrowed=narrowed,
        pick="Retry" if actor_of(request).may(ActorRole.OPERATOR) and _any_failed(found.rows) else "",
    )


def _any_failed(rows: Sequence[Transfer]) -> bool:
    return any(row.state == TransferState.FAILED for row in rows)


def _of_item(column: str) -> Case:
    """A column of a transfer's item, whatever its kind."""
    items = {kind: models.item.objects.filter(pk=OuterRef("item_id")).values(column) for kind, models in KINDS.items()}
    return Case(*(When(kind=kind, then=Subquery(rows)) for kind, rows in items.items()))


@action("transfers/retry/", "transfer_retry")
def transfer_retry(request: HttpRequest) -> HttpResponse:
    """Try the chosen transfers again, and say of each what came of it."""
    chosen = [text for text in request.POST.getlist("transfer") if text.isdecimal() and len(text) < 19][:AT_ONCE]
    if not chosen:
        raise Invalid("No transfer was chosen.", remedy="Tick the failed transfers that are to be tried again.")
    rows = Transfer.objects.filter(pk__in=chosen)
    before = dict(rows.values_list("pk", "state"))
    transfers.retry(actor=actor_of(request), transfers=rows, target="transfers")
    after = list(rows.select_related("batch").order_by("pk"))
    names = names_of(after)
    return show(
        request,
        "console/results.html",
        title="Tried again",
        what="Transfers",
        back=("Transfers", reverse("console:transfer_list")),
        rows=[(names.get((row.kind, row.item_id), ("", str(row)))[1], *_came_of(before[row.pk], row)) for row in after],
    )


def _came_of(before: str, row: Transfer) -> tuple[str, str]:
    """(badge, words) of a transfer after the button was pressed."""
    if before != TransferState.FAILED:
        return "waiting", f"It was {before}; only a failed one is tried again."
    if row.state == TransferState.CANCELLED:
        return "done", "Not needed any more: its item was deleted, or came by another transfer."
    if row.batch is not None and not row.batch.open:
        return "paused", f"Waits for {row.batch.name}, which is not running: resume it, or retry what failed, on its page."
    words = "Waits for its parent in the chain." if row.state == TransferState.BLOCKED else "It is in the queue again."
    return "done", words


def workers() -> list[dict[str, Any]]:
    """Workers that have said good-bye within a day, or were heard of within a week and have not, with their health in a word."""
    recent: Any = Worker.objects.exclude(stopped__lt=Now() - timedelta(days=1)).with_reach()
    recent = recent.filter(heartbeat__gt=Now() - timedelta(days=7))
    living = Q(pk__in=Worker.objects.living().values("pk"))
    found = []
    for worker in recent.annotate(lives=living).order_by(F("stopped").asc(nulls_first=True), "-heartbeat")[:100]:
        health = "stopped" if worker.stopped else "alive" if worker.lives else "silent"
        reach = sorted(worker.reach.all(), key=lambda seen: (seen.ok, seen.store.name))
        reached, more = (sum(seen.ok for seen in some) for some in (reach, reach[REACH_SHOWN:]))
        counts = {"reached": reached, "reached_more": more, "unreached_more": len(reach[REACH_SHOWN:]) - more}
        found.append({"worker": worker, "health": health, "reach": reach, **counts})
    return found


@page("workers/", "worker_list")
def worker_list(request: HttpRequest) -> HttpResponse:
    """Who copies, when it was heard of last, and what it reaches."""
    return show(request, "console/workers.html", title="Workers", workers=workers())
