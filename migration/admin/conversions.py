"""Pages of conversions: the list, and one with the state before it, what it promised, and the way on to its drain."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse

from cloudstorage.actors import ActorRole
from cloudstorage.commands import bytes_from
from cloudstorage.console.forms import Field, filled, misplaced
from cloudstorage.console.pages import actor_of, page, redirect, show
from cloudstorage.errors import Invalid, ServiceError
from migration import drain as drains
from migration.conversion import open_conversion
from migration.models import Conversion, Drain, Preflight
from migration.states import CONVERSION_TRANSITIONS, ConversionState, DrainState
from stores.states import allowed_events

ENDED = (DrainState.CANCELLED, DrainState.FINISHED)


@page("migration/", "migration_list")
def migrations(request: HttpRequest) -> HttpResponse:
    """Conversions, their drains and the last preflights."""
    return show(
        request,
        "console/migrations.html",
        title="Migration",
        conversions=Conversion.objects.select_related("object_store")[:20],
        drains=Drain.objects.select_related("conversion__object_store", "batch")[:20],
        preflights=Preflight.objects.defer("report", "sealed")[:5],
        open=open_conversion(),
    )


@page("migration/conversions/<uuid:number>/", "conversion")
def conversion_page(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """What a conversion did and what comes next."""
    row = Conversion.objects.select_related("object_store", "preflight").filter(uuid=number).first()
    if row is None:
        raise Http404
    own = list(Drain.objects.filter(conversion=row).select_related("batch", "conversion__object_store")[:20])
    return show(
        request,
        "console/conversion.html",
        title=f"Conversion to {row.object_store.name}",
        row=row,
        stores=row.stores.select_related("store__zone"),
        drains=[(drain, drains.progress(drain)) for drain in own[:3]],
        can_plan=row.state in {ConversionState.CONVERTED, ConversionState.COMMITTED} and all(d.state in ENDED for d in own),
        allowed=allowed_events(CONVERSION_TRANSITIONS, ConversionState(row.state)),
    )


def limit_fields() -> list[Field]:
    """What both the plan and a running drain let one set."""
    return [
        Field("concurrency", "Items at once", "Over all workers, 1 to 256.", "integer", "8", required=True),
        Field("bandwidth", "Bandwidth", "Per second over all workers, like 100M or 1.5GiB. Empty: no limit."),
        Field("window", "Time window", "HH:MM-HH:MM, may cross midnight, like 22:00-06:00. Empty: always."),
    ]


def whole_number(text: str, field: str) -> int:
    """An entry as a number; raises Invalid naming the field."""
    if not (text.isascii() and text.strip().isdigit() and len(text) < 10):
        raise Invalid(f"{text!r} is not a whole number.", remedy="Write it in digits.", field=field)
    return int(text)


@page("migration/conversions/<uuid:number>/drain/", "drain_plan", ActorRole.OPERATOR)
def plan(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Choose the limits of a drain; planning moves nothing yet."""
    row = Conversion.objects.select_related("object_store").filter(uuid=number).first()
    if row is None:
        raise Http404
    canary = Field(
        "canary", "Canary items", "Copied first and read back before the rest; 0 for none.", "integer", "5", required=True
    )
    fields = [Field("name", "Name", "Empty: drain to the object store's name."), *limit_fields(), canary]
    error: ServiceError | None = None
    if request.method == "POST":
        try:
            drain = drains.plan(
                actor=actor_of(request),
                conversion=row,
                name=request.POST.get("name", "").strip()[:255],
                concurrency=whole_number(request.POST.get("concurrency", ""), "concurrency"),
                bandwidth=bytes_from(request.POST.get("bandwidth", "").strip() or "none", "bandwidth"),
                window=request.POST.get("window", "").strip(),
                canary_items=whole_number(request.POST.get("canary", ""), "canary"),
            )
            if request.POST.get("do") == "start":
                drains.start(actor=actor_of(request), drain=drain)
        except ServiceError as refused:
            error = refused
        else:
            messages.success(
                request, "The drain has started with its canary." if "do" in request.POST else "The drain is planned."
            )
            return redirect("console:drain", drain.uuid)
    return show(
        request,
        "console/drain_plan.html",
        title=f"Plan the drain to {row.object_store.name}",
        status=error.status if error else 200,
        conversion=row,
        fields=filled(fields, request.POST, error),
        error=misplaced(fields, error),
    )
