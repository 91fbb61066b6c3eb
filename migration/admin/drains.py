"""The live page of a drain, and its buttons."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse

from cloudstorage.actors import ActorRole
from cloudstorage.commands import bytes_from, exact_bytes
from cloudstorage.console.forms import Field, filled, misplaced
from cloudstorage.console.pages import action, actor_of, fragment, page, redirect, show
from cloudstorage.errors import ServiceError
from migration import drain as drains
from migration import homeward
from migration.admin.chart import draw
from migration.admin.rules import as_entered, limit_fields, limits_entered
from migration.models import Drain
from migration.rules import of_drain
from migration.states import ConversionState, DrainEvent, DrainState
from stores.models import ImageStore

LIVE = (DrainState.CANARY, DrainState.RUNNING)

BUTTONS: dict[str, tuple[str, str, str]] = {
    # event of the table -> (url name, label, look)
    DrainEvent.START: ("start", "Start", "primary"),
    DrainEvent.RESUME: ("resume", "Resume", "primary"),
    DrainEvent.PAUSE: ("pause", "Pause", ""),
    DrainEvent.RETRY: ("retry", "Retry what failed", ""),
}


def drain_of(number: uuid.UUID) -> Drain:
    """The drain that a page is about."""
    row = Drain.objects.select_related("batch", "conversion__object_store").filter(uuid=number).first()
    if row is None:
        raise Http404
    return row


def _live(row: Drain, request: HttpRequest) -> dict[str, Any]:
    now = drains.progress(row)
    batch = {"items": now.items["total"] - now.items["proven"], "bytes": now.bytes["total"] - now.bytes["proven"]}
    may = actor_of(request).may(ActorRole.OPERATOR)
    buttons = [BUTTONS[event] for event in now.allowed if event in BUTTONS and (event != DrainEvent.RETRY or now.items["failed"])]
    return {
        "drain": row,
        "now": now,
        "running": now.state in LIVE,
        "buttons": buttons if may else [],
        "can_retry": may and DrainEvent.RETRY in now.allowed,
        "on_nfs": drains.promised(row.conversion.object_store) if of_drain(row).partial else batch,
        "can_cancel": may and DrainEvent.CANCEL in now.allowed,
        "end": drains.expected_end(now),
        "chart": draw(drains.history(row, points=120), now.bytes["total"]),
        "failed_rows": sum(int(error["count"]) for error in now.errors if error["failed"]),
        "milestone": int(now.percent // 10 * 10),
    }


@page("migration/drains/<uuid:number>/", "drain")
def drain_page(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Proven, copied, remaining; who works on what; what failed and why."""
    row = drain_of(number)
    context = _live(row, request)
    rules = of_drain(row)
    sources = ImageStore.objects.filter(conversion_stores__conversion=row.conversion_id).distinct()[:50]
    read = [_read_field(store) for store in sources.only("uuid", "name", "read_limit")]
    return show(
        request,
        "console/drain.html",
        title=row.batch.name,
        fields=[*filled(limit_fields(), as_entered(rules)), *read],
        rules=rules.words(),
        samples=drains.history(row, points=12),
        away=homeward.away(row.conversion) if row.conversion.state == ConversionState.CONVERTED else None,
        **context,
    )


def _read_field(store: ImageStore) -> Field:
    return Field(
        f"read-{store.uuid}", f"Read limit of {store.name}", "Bytes per second. Empty: none.", value=exact_bytes(store.read_limit)
    )


@page("migration/drains/<uuid:number>/live/", "drain_live")
def live(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """The part that changes, for polling."""
    context = _live(drain_of(number), request)
    template = "console/drain_small.html" if "small" in request.GET else "console/drain_live.html"
    return fragment(request, template, **context)


@action("migration/drains/<uuid:number>/start/", "drain_start")
def start(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Let it run, its canary first."""
    drains.start(actor=actor_of(request), drain=drain_of(number))
    messages.success(request, "Started. The canary's items are copied and read back before the rest begins.")
    return redirect("console:drain", number)


@action("migration/drains/<uuid:number>/pause/", "drain_pause")
def pause(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Stop within a part."""
    drains.pause(actor=actor_of(request), drain=drain_of(number))
    messages.success(request, "Paused. What is under way stops within a part and goes on from there later.")
    return redirect("console:drain", number)


@action("migration/drains/<uuid:number>/resume/", "drain_resume")
def resume(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Go on."""
    drains.resume(actor=actor_of(request), drain=drain_of(number))
    messages.success(request, "Resumed.")
    return redirect("console:drain", number)


@action("migration/drains/<uuid:number>/retry/", "drain_retry")
def retry(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Try what failed again, of one cause or of all."""
    cause = request.POST.get("cause", "")
    count = drains.retry_failed(actor=actor_of(request), drain=drain_of(number), causes=[cause] if cause else [])
    messages.success(request, f"{count} failed item{'' if count == 1 else 's'} tried again{f' ({cause})' if cause else ''}.")
    return redirect("console:drain", number)


@page("migration/drains/<uuid:number>/cancel/", "drain_cancel", ActorRole.OPERATOR)
def cancel(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Ask, then end it."""
    row = drain_of(number)
    error: ServiceError | None = None
    if request.method == "POST":
        try:
            drains.cancel(actor=actor_of(request), drain=row)
        except ServiceError as refused:
            error = refused
        else:
            messages.success(request, "Cancelled. What is proven stays proven; the rest stays readable where it is.")
            return redirect("console:drain", number)
    return show(
        request,
        "console/confirm.html",
        title="Cancel this drain?",
        status=error.status if error else 200,
        effect="What is proven stays on the object store. All else stays readable on NFS, and half-made copies are removed."
        " To stop for a while, pause it instead. A new drain can be planned at any time.",
        button="Cancel the drain",
        back=("console:drain", number),
        error=error,
    )


@page("migration/drains/<uuid:number>/limits/", "drain_limits", ActorRole.OPERATOR)
def limits(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Change limits while it runs."""
    row = drain_of(number)
    sources = ImageStore.objects.filter(conversion_stores__conversion=row.conversion_id).distinct()[:50]
    fields = [*limit_fields(), *(_read_field(store) for store in sources.only("uuid", "name", "read_limit"))]
    present = as_entered(of_drain(row))
    error: ServiceError | None = None
    if request.method == "POST":
        try:
            given = request.POST
            drains.set_limits(
                actor=actor_of(request),
                drain=row,
                **limits_entered(given),
                read_limits={
                    field.name.removeprefix("read-"): bytes_from(given[field.name].strip() or "none", field.name)
                    for field in fields
                    if field.name.startswith("read-") and field.name in given
                },
            )
        except ServiceError as refused:
            error = refused
        else:
            messages.success(request, "The limits were changed; they bite within one part.")
            return redirect("console:drain", number)
    return show(
        request,
        "console/form.html",
        title=f"Limits of {row.batch.name}",
        status=error.status if error else 200,
        fields=filled(fields, given if error else present, error),
        error=misplaced(fields, error),
        intro="Limits may change while the drain runs; they bite within one part.",
        button="Change the limits",
        back=("console:drain", number),
    )
