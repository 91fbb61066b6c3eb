"""Pages of retiring a staging store: what forbids it, how far it is, what a person must answer for, the report, the files."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, cast

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404

from cloudstorage.actors import ActorRole
from cloudstorage.console.forms import Field, ask, confirm, percentage, whole_number
from cloudstorage.console.pages import action, actor_of, fragment, keyset, page, redirect, show
from cloudstorage.errors import Invalid
from migration import decommission, report
from migration.admin.checklist import Lines, checked
from migration.admin.verifications import FINDINGS_SHOWN
from migration.api.decommissions import respond
from migration.models import Decommission
from migration.states import DecommissionEvent, DecommissionState
from stores.admin.stores import store_of
from stores.models import heavy

RUNNING = (DecommissionState.CHECKING, DecommissionState.DELETING)
CHECKLIST: Lines = (
    (("uncommitted",), "No conversion needs its originals for the way back."),
    (("unproven",), "Every copy on it is proven on a store of record."),
    (("damaged",), "No copy on it is known to be missing, or other than what was proven."),
    (("held",), "Nobody holds a copy on it."),
    (("unfinished", "transfers"), "Nothing is being copied from it or to it, written or deleted."),
    (("scan",), "No scan of it waits or runs."),
    (("last-staging-store",), "Its zone can do without it."),
)
OTHER_STORES: Lines = ((("not-",), "It is a staging store in use."),)
"""Where it is none, nothing else was asked."""


def row_of(number: uuid.UUID) -> Decommission:
    """The retirement that a page is about."""
    rows = Decommission.objects.select_related("store__zone", "verification")
    return get_object_or_404(rows.defer(*heavy("store")), uuid=number)


@page("migration/retirements/", "retirement_list")
def retirements(request: HttpRequest) -> HttpResponse:
    """Newest first."""
    rows = Decommission.objects.select_related("store", "verification").defer("verification__findings", *heavy("store"))
    return show(request, "console/retirements.html", title="Retirements", slice=keyset(request, rows, newest_first=True))


@page("stores/<uuid:number>/retire/", "retire", ActorRole.STORAGE_ADMIN)
def retire(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """What forbids it now; else begin."""
    store = store_of(number)
    fields = [
        Field("typed", "To go on, type the store's name", f"It is {store.name}.", required=True),
        Field(
            "sample_percent",
            "Read again",
            "Percent of the copies and of the originals that were hashed before; 100 for all. Less is your choice, and the"
            " report says so.",
            "integer",
            "100",
        ),
    ]

    def do(given: Mapping[str, Any]) -> HttpResponse:
        if given.get("typed", "").strip() != store.name:
            raise Invalid("That is not the store's name.", remedy=f"Type {store.name}.", field="typed")
        percent = percentage(given.get("sample_percent", ""), "sample_percent")
        row = decommission.begin(actor=actor_of(request), store=store, sample_percent=percent)
        messages.success(request, "Workers read everything on it again. Nothing on it is changed.")
        return redirect("console:retirement", row.uuid)

    blockers = decommission.plan(actor=actor_of(request), store=store)
    title = f"Retire {store.name}?"
    other = any(found.code.startswith("not-") for found in blockers)
    words: dict[str, Any] = {
        "store": store,
        "blockers": blockers,
        "checks": checked(OTHER_STORES if other else [*OTHER_STORES, *CHECKLIST], blockers),
        "back": ("console:store", number),
    }
    return ask(request, fields, do, title=title, template="console/retire.html", **words)


@page("migration/retirements/<uuid:number>/", "retirement")
def retirement(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """How far it is, what it found, and what may be done now."""
    row = row_of(number)
    may = decommission.allowed(row) if actor_of(request).may(ActorRole.STORAGE_ADMIN) else ()
    context = {
        "row": row,
        "check": row.verification,
        "running": row.state in RUNNING,
        "findings": row.verification.findings[:FINDINGS_SHOWN],
        "unknown": list(row.unknown.order_by("pk").values_list("path", "size")[:FINDINGS_SHOWN]) if row.unknown_count else [],
        "may_cancel": DecommissionEvent.CANCEL in may,
        "may_answer": DecommissionEvent.ACKNOWLEDGE in may,
        "may_delete": DecommissionEvent.DELETE_FILES in may,
        "exceptions": report.exceptions(row) if row.state in report.SIGNED else [],
        "forms": [(form, report.name_of(row, form)) for form in report.FORMS] if row.state in report.SIGNED else [],
    }
    if "part" in request.GET:
        return fragment(request, "console/retirement_live.html", **context)
    return show(request, "console/retirement.html", title=f"Retirement of {row.store.name}", **context)


@page("migration/retirements/<uuid:number>/report/<str:form>/", "retirement_report")
def fetch(_: HttpRequest, number: uuid.UUID, form: str) -> HttpResponse:
    """The signed report as a file."""
    return cast("HttpResponse", respond(row_of(number), form))


@action("migration/retirements/<uuid:number>/acknowledge/", "retirement_acknowledge", ActorRole.STORAGE_ADMIN)
def acknowledge(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Accept that files which no ref knows are given up."""
    count = whole_number(request.POST.get("count", ""), "count")
    decommission.acknowledge(actor=actor_of(request), row=row_of(number), count=count, digest=request.POST.get("digest", ""))
    messages.success(request, "Noted with your name. The listing is taken once more; if it is the same, the store is retired.")
    return redirect("console:retirement", number)


@action("migration/retirements/<uuid:number>/look-again/", "retirement_look_again", ActorRole.STORAGE_ADMIN)
def look_again(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Take the listing once more."""
    decommission.look_again(actor=actor_of(request), row=row_of(number))
    messages.success(request, "The listing is taken once more.")
    return redirect("console:retirement", number)


@page("migration/retirements/<uuid:number>/cancel/", "retirement_cancel", ActorRole.STORAGE_ADMIN)
def cancel(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Ask, then give it up."""
    row = row_of(number)

    def do() -> HttpResponse:
        decommission.cancel(actor=actor_of(request), row=row)
        messages.success(request, "Cancelled. The store stays as it was.")
        return redirect("console:retirement", number)

    return confirm(
        request,
        do,
        title=f"Cancel the retirement of {row.store.name}?",
        effect=f"{row.store.name} stays as it was before, with all that is on it. What was read so far counts for nothing:"
        " another retirement reads everything again.",
        button="Cancel the retirement",
        back=("console:retirement", number),
    )


@page("migration/retirements/<uuid:number>/files/", "retirement_files", ActorRole.STORAGE_ADMIN)
def files(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Ask, then let the retired files go to the trash."""
    row = row_of(number)
    fields = [Field("confirm", "To go on, type the store's name", f"It is {row.store.name}.", required=True)]

    def do(given: Mapping[str, Any]) -> HttpResponse:
        decommission.delete_files(actor=actor_of(request), row=row, confirm=given.get("confirm", "").strip())
        messages.success(request, "A worker moves them to the trash folder of the export.")
        return redirect("console:retirement", number)

    return ask(
        request,
        fields,
        do,
        title=f"Delete the files of {row.store.name}?",
        intro=f"{row.totals.get('files', 0)} files that the report lists go to the trash folder of the export and are purged"
        " after the grace time. What no ref knew stays where it is, and so does what was changed since it was read.",
        button="Move them to the trash",
        danger=True,
        back=("console:retirement", row.uuid),
    )
