"""The page of a staging store's copies: which must stay and why, who holds them, and what a cleanup could take."""

from __future__ import annotations

import uuid
from typing import Any

from django.http import HttpRequest, HttpResponse

from cloudstorage.console.pages import keyset, page, show
from migration.conversion import pinned_by
from stores.admin.stores import store_of
from stores.models import Kind
from stores.services.inventory import names_of
from stores.services.staging import Keeper, Share, holds_on, kept

WORDS = {
    Keeper.PROMISE: ("Promised", "The object store does not have their bytes yet: these are what it would be read from."),
    Keeper.HOLD: ("Held", "Somebody reads them just now; a hold ends by itself when its owner is gone."),
    Keeper.ONLY: ("Not proven elsewhere", "No store of record has a proven copy of them."),
    Keeper.UNREAD: (
        "Never read by us",
        "Proven elsewhere, but nobody has hashed these very files. A retirement does.",
    ),
    Keeper.DIFFERS: (
        "Other content",
        "Read by us, and not what is proven on the store of record: zones' copies can differ, and a person decides.",
    ),
    Keeper.NOTHING: ("Could go", "The same bytes are proven on a store of record, and nobody holds these."),
}


@page("stores/<uuid:number>/staging/", "staging")
def staging(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Every copy on the store is in one line of the table."""
    store = store_of(number)
    shares = kept(store)
    found = keyset(request, holds_on(store), newest_first=True)
    names = names_of(found.rows, by="ref_id")
    return show(
        request,
        "console/staging.html",
        title=f"What keeps the copies on {store.name}",
        store=store,
        kinds=list(Kind),
        rows=[(*WORDS[keeper], [shares[keeper].get(kind) for kind in Kind], _sum(shares[keeper].values())) for keeper in Keeper],
        free=_sum(shares[Keeper.NOTHING].values()),
        conversion=pinned_by(store),
        slice=found,
        holds=[(hold, names.get((hold.kind, hold.ref_id))) for hold in found.rows],
    )


def _sum(shares: Any) -> Share:
    return Share(sum(share.items for share in shares), sum(share.bytes for share in shares))
