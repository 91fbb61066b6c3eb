"""The live page of a drain, and its buttons."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse

from cloudstorage.actors import ActorRole
from cloudstorage.commands import bytes_from, exact_bytes
from cloudstorage.console.forms import Field, ask, confirm, filled
from cloudstorage.console.pages import action, actor_of, fragment, page, redirect, show
from migration import drain as drains
from migration import homeward
from migration.admin import next_step
from migration.admin.chart import draw
from migration.admin.rules import as_entered, limit_fields, limits_entered
from migration.models import Drain
from migration.rules import of_drain
from migration.states import ENDED_DRAINS, ConversionState, DrainEvent, DrainState
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
    ended = now.state in ENDED_DRAINS
    last = ended and _is_last(row)
    batch = {"items": now.items["total"] - now.items["proven"], "bytes": now.bytes["total"] - now.bytes["proven"]}
    may = actor_of(request).may(ActorRole.OPERATOR)
    buttons = [BUTTONS[event] for event in now.allowed if event in BUTTONS and (event != DrainEvent.RETRY or now.items["failed"])]
    return {
        **(next_step.shown(request, row.conversion, row, now) if last else {}),
        "here": reverse("console:drain", args=[row.uuid]),
        "drain": row,
        "now": now,
        "running": now.state in LIVE,
        "buttons": buttons if may else [],
        "can_retry": may and DrainEvent.RETRY in now.allowed,
        "on_nfs": drains.promised(row.conversion.object_store) if last or of_drain(row).partial else batch,
        "ended": ended,
        "can_cancel": may and DrainEvent.CANCEL in now.allowed,
        "end": drains.expected_end(now),
        "chart": draw(drains.history(row, points=120), now.bytes["total"]),
        "milestone": int(now.percent // 10 * 10),
    }


@page("migration/drains/<uuid:number>/", "drain")
def drain_page(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Proven, copied, remaining; who works on what; what failed and why."""
    row = drain_of(number)
    context = _live(row, request)
    rules = of_drain(row)
    return show(
        request,
        "console/drain.html",
        title=row.batch.name,
        fields=[*filled(limit_fields(), as_entered(rules)), *_read_fields(row)],
        rules=rules.words(),
        samples=drains.history(row, points=12),
        away=homeward.away(row.conversion) if row.conversion.state == ConversionState.CONVERTED else None,
        **context,
    )


def _is_last(row: Drain) -> bool:
    """Of a conversion that was not rolled back: what follows it is what comes next."""
    later = Drain.objects.filter(conversion=row.conversion_id, pk__gt=row.pk)
    return row.conversion.state != ConversionState.ROLLED_BACK and not later.exists()


def _read_fields(row: Drain) -> list[Field]:
    """The read limit of each store that it copies from."""
    stores = ImageStore.objects.filter(conversion_stores__conversion=row.conversion_id).distinct()
    words = "Bytes per second. Empty: none."
    return [
        Field(f"read-{store.uuid}", f"Read limit of {store.name}", words, value=exact_bytes(store.read_limit))
        for store in stores.only("uuid", "name", "read_limit")[:50]
    ]


@page("migration/drains/<uuid:number>/live/", "drain_live")
def live(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """The part that changes, for polling: of its own page, or with `?small` of the overview."""
    row = drain_of(number)
    if "small" not in request.GET:
        return fragment(request, "console/drain_live.html", **_live(row, request))
    now = drains.progress(row)
    step = next_step.shown(request, row.conversion, row, now) if _is_last(row) else {}
    return fragment(request, "console/drain_small.html", running=now.state in LIVE, drain=row, now=now, **step)


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

    def do() -> HttpResponse:
        drains.cancel(actor=actor_of(request), drain=row)
        messages.success(request, "Cancelled. What is proven stays proven; the rest stays readable where it is.")
        return redirect("console:drain", number)

    return confirm(
        request,
        do,
        title="Cancel this drain?",
        effect="What is proven stays on the object store. All else stays readable on NFS, and half-made copies are removed."
        " To stop for a while, pause it instead. A new drain can be planned at any time.",
        button="Cancel the drain",
        back=("console:drain", number),
    )


@page("migration/drains/<uuid:number>/limits/", "drain_limits", ActorRole.OPERATOR)
def limits(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Change limits while it runs."""
    row = drain_of(number)
    read = _read_fields(row)

    def do(given: Mapping[str, Any]) -> HttpResponse:
        entered = {field.name: given[field.name].strip() for field in read if field.name in given}
        drains.set_limits(
            actor=actor_of(request),
            drain=row,
            **limits_entered(request.POST),
            read_limits={name.removeprefix("read-"): bytes_from(text or "none", name) for name, text in entered.items()},
        )
        messages.success(request, "The limits were changed; they bite within one part.")
        return redirect("console:drain", number)

    return ask(
        request,
        [*limit_fields(), *read],
        do,
        title=f"Limits of {row.batch.name}",
        present=as_entered(of_drain(row)),
        intro="Limits may change while the drain runs; they bite within one part.",
        button="Change the limits",
        back=("console:drain", number),
    )
