"""Pages of verifications: start one, watch it, read what it found."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404

from cloudstorage.actors import ActorRole
from cloudstorage.console.forms import Field, ask, percentage
from cloudstorage.console.pages import actor_of, fragment, keyset, page, redirect, show
from cloudstorage.errors import Invalid
from migration import verify
from migration.models import Verification
from migration.states import LIVE_VERIFICATION_STATES
from stores.models import ImageStore, heavy
from stores.services import region
from stores.states import StoreState

FINDINGS_SHOWN = 60
"""Of a thousand that are kept; a page is no place for all of them."""


@page("migration/verifications/", "verification_list")
def verifications(request: HttpRequest) -> HttpResponse:
    """Newest first."""
    rows = Verification.objects.select_related("store").defer("findings", *heavy("store"))
    return show(request, "console/verifications.html", title="Verifications", slice=keyset(request, rows, newest_first=True))


@page("migration/verifications/new/", "verify", ActorRole.OPERATOR)
def new(request: HttpRequest) -> HttpResponse:
    """Choose a store, and how much of it to read again."""
    stores = [
        (str(store.uuid), store.name) for store in ImageStore.objects.filter(state=StoreState.ATTACHED).only("uuid", "name")[:200]
    ]
    modes = (
        (Verification.CONTENT, "Content: read every byte again and hash it"),
        (Verification.LISTING, "Listing: compare names and sizes with what is known"),
    )
    fields = [
        Field("store", "Store", "", "choice", request.GET.get("store", ""), required=True, choices=stores),
        Field("mode", "What to check", "", "choice", Verification.CONTENT, choices=modes),
        Field(
            "sample_percent",
            "Sample",
            "Percent of the items to read again; 100 for all. A listing is always whole.",
            "integer",
            "100",
        ),
    ]

    def do(given: Mapping[str, Any]) -> HttpResponse:
        row = verify.verify(
            actor=actor_of(request),
            store=region.find_store(given.get("store", "")),
            mode=_mode(given.get("mode", "")),
            sample_percent=percentage(given.get("sample_percent", ""), "sample_percent"),
        )
        messages.success(request, "A worker takes it up as soon as it can.")
        return redirect("console:verification", row.uuid)

    return ask(
        request,
        fields,
        do,
        title="Verify a store",
        intro="Proves again what is proven. Nothing is changed; what differs is reported.",
        button="Start",
        back=("console:verification_list",),
    )


def _mode(text: str) -> str:
    if text not in {Verification.CONTENT, Verification.LISTING}:
        raise Invalid("Choose what to check.", remedy="Content or listing.", field="mode")
    return text


@page("migration/verifications/<uuid:number>/", "verification")
def verification(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """How far it is and what it found."""
    row = get_object_or_404(Verification.objects.select_related("store"), uuid=number)
    context = {"row": row, "running": row.state in LIVE_VERIFICATION_STATES, "findings": row.findings[:FINDINGS_SHOWN]}
    if "part" in request.GET:
        return fragment(request, "console/verification_live.html", **context)
    return show(request, "console/verification.html", title=f"Verification of {row.store.name}", **context)
