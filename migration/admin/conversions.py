"""Pages of conversions: the list, and one with the state before it, what it promised, and the way on to its drain."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from django.contrib import messages
from django.db.models import Count
from django.http import Http404, HttpRequest, HttpResponse

from cloudstorage.actors import ActorRole
from cloudstorage.console.forms import Field, ask
from cloudstorage.console.pages import actor_of, page, redirect, show
from migration import drain as drains
from migration.admin import next_step
from migration.admin.rules import as_entered, limit_fields, rules_entered, scope_fields
from migration.admin.wizard import where_to_go_on
from migration.conversion import open_conversion
from migration.drafts import rules_of
from migration.models import Conversion, Drain, Preflight
from migration.rules import of_drain
from migration.states import CONVERSION_TRANSITIONS, ENDED_DRAINS, ConversionState
from stores.models import Transfer, heavy
from stores.services.windows import hours
from stores.states import TransferState, allowed_events


@page("migration/", "migration_list")
def migrations(request: HttpRequest) -> HttpResponse:
    """Conversions, their drains and the last preflights."""
    return show(
        request,
        "console/migrations.html",
        title="Migration",
        conversions=Conversion.objects.select_related("object_store")[:20],
        drains=_listed(Drain.objects.select_related("batch")[:20]),
        preflights=Preflight.objects.defer("report", "sealed")[:5],
        open=open_conversion(),
        draft=where_to_go_on(actor_of(request)),
    )


@page("migration/conversions/<uuid:number>/", "conversion")
def conversion_page(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """What a conversion did and what comes next."""
    row = Conversion.objects.select_related("object_store", "preflight").filter(uuid=number).first()
    if row is None:
        raise Http404
    own = list(Drain.objects.filter(conversion=row).select_related("batch", "conversion__object_store")[:20])
    last = own[0] if own else None
    progress = drains.progress(last) if last is not None else None
    rolled_back = row.state == ConversionState.ROLLED_BACK
    return show(
        request,
        "console/conversion.html",
        title=f"Conversion to {row.object_store.name}",
        row=row,
        stores=list(row.stores.select_related("store__zone").defer(*heavy("store")).order_by("store__name")),
        drain=last,
        progress=progress,
        earlier=_listed(own[1:]),
        can_plan=row.state in {ConversionState.CONVERTED, ConversionState.COMMITTED}
        and all(d.state in ENDED_DRAINS for d in own),
        allowed=allowed_events(CONVERSION_TRANSITIONS, ConversionState(row.state)),
        kept=rules_of(row.preflight).words() if rules_kept(row) and not own else [],
        **({} if rolled_back else next_step.shown(request, row, last, progress)),
    )


def _listed(rows: Collection[Drain]) -> list[dict[str, Any]]:
    """Drains as a list shows them, for one query."""
    failed = Transfer.objects.filter(batch__in=[row.batch_id for row in rows], state=TransferState.FAILED)
    counts = dict(failed.order_by().values_list("batch").annotate(Count("pk")))
    return [
        {
            "drain": row,
            "failed": counts.get(row.batch_id, 0),
            "window": hours(row.batch.window, row.batch.time_zone),
            "ended": row.state in ENDED_DRAINS,
        }
        for row in rows
    ]


def rules_kept(row: Conversion) -> bool:
    """Whether the wizard was told what is to follow the switch."""
    return row.preflight is not None and bool(row.preflight.then)


@page("migration/conversions/<uuid:number>/drain/", "drain_plan", ActorRole.OPERATOR)
def plan(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Choose the rules of a drain; planning moves nothing yet."""
    row = Conversion.objects.select_related("object_store", "preflight").filter(uuid=number).first()
    if row is None:
        raise Http404
    fields = [Field("name", "Name", "Empty: drain to the object store's name."), *scope_fields(), *limit_fields()]
    last = Drain.objects.filter(conversion=row).select_related("batch").first()
    rules = rules_of(row.preflight) if last is None else replace(of_drain(last), zones=(), kinds=())

    def plan_it(data: Any) -> HttpResponse:
        given, name = rules_entered(data), data.get("name", "").strip()[:255]
        drain = drains.plan(actor=actor_of(request), conversion=row, name=name, **given)
        starts = data.get("do") == "start"
        if starts:
            drains.start(actor=actor_of(request), drain=drain)
        messages.success(request, "The drain has started with its canary." if starts else "The drain is planned.")
        return redirect("console:drain", drain.uuid)

    return ask(
        request,
        fields,
        plan_it,
        title=f"Plan the drain to {row.object_store.name}",
        template="console/drain_plan.html",
        present=as_entered(rules),
        conversion=row,
        kept=last is None and bool(rules_kept(row)),
        left=drains.promised(row.object_store),
    )
