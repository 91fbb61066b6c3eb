"""Pages of items: one list per kind with a chip per store, one page per item with every copy, and what may be done with it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.db.models import Exists, FilteredRelation, OuterRef, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.console.exports import exported, wanted_form
from cloudstorage.console.filters import listing
from cloudstorage.console.forms import confirm
from cloudstorage.console.pages import Slice, action, actor_of, keyset, page, redirect, show
from cloudstorage.errors import Invalid, ServiceError
from stores.admin.chain import family
from stores.models import KINDS, ImageStore, Kind, Zone, heavy
from stores.services import history, inventory, items, transfers
from stores.services.reasons import reasons
from stores.services.undelete import undeletable, undelete_item
from stores.states import LIVE_REF_STATES, PROVEN, READABLE, RefState, Role

FILES_SHOWN = 100
COPIES_SHOWN = 20
AT_ONCE = 200
"""Items that one press of a button takes."""
LIST = listing("item_list", "q", "store", "state", "zone")
COLUMNS = {
    # column of an export -> where it comes from
    "id": "uuid",
    "name": "name",
    "account": "account__account_name",
    "format": "format",
    "virtual_size": "size",
    "known_since": "created",
    "store": "copy__store__name",
    "zone": "copy__store__zone__name",
    "state": "copy__state",
    "bytes": "copy__size",
    "bytes_occupied": "copy__physical_size",
    "proof": "copy__proof",
    "proven_at": "copy__proven_at",
    "sha256": "copy__sha256",
    "holds": "copy__ref_cnt",
    "path": "copy__install_path",
}


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise Http404 from None


def item_of(kind: Kind, number: uuid.UUID) -> Any:
    """The item that a page is about."""
    return get_object_or_404(KINDS[kind].item.objects.select_related("account"), uuid=number)


@page("items/<slug:kind>/", "item_list")
def item_list(request: HttpRequest, kind: str) -> HttpResponseBase:
    """Items of a kind, by key; the filters stand in the URL. `?format=csv` or `json`: every copy of all that match."""
    of = _kind(kind)
    narrowed = LIST.narrowed(request, of.value)
    rows = _filtered(of, **narrowed.values)
    if form := wanted_form(request):
        return exported(form, f"{of}s", tuple(COLUMNS), _copies(rows))
    found = keyset(request, rows.select_related("account"))
    actor = actor_of(request)
    brings = actor.may(ActorRole.OPERATOR) and ImageStore.objects.attached().filter(scope="REGION", role=Role.IMAGE).exists()
    chips = chips_of(of, [item.pk for item in found.rows])
    return show(
        request,
        "console/items.html",
        title=f"{of.capitalize()}s",
        kind=of,
        rows=[(item, chips[item.pk]) for item in found.rows],
        slice=found,
        narrowed=narrowed,
        stores=ImageStore.objects.filter(removed=None).values_list("name", flat=True)[:200],
        zones=Zone.objects.values_list("name", flat=True)[:200],
        states=[each.value for each in RefState if each in LIVE_REF_STATES],
        brings=brings,
        pick="Choose" if brings or actor.may(ActorRole.STORAGE_ADMIN) else "",
    )


def _filtered(kind: Kind, *, q: str, store: str, state: str, zone: str) -> Any:
    """Items that are not deleted: of a name, and with a copy of which all the rest holds."""
    rows = KINDS[kind].item.objects.filter(removed=None)
    if q:
        rows = rows.filter(name__icontains=q)
    if store or state or zone:
        refs = KINDS[kind].ref.objects.filter(item_id=OuterRef("pk"), state__in=LIVE_REF_STATES)
        refs = refs.filter(store__name=store) if store else refs
        refs = refs.filter(state=state) if state else refs
        refs = refs.filter(store__zone__name=zone) if zone else refs
        rows = rows.filter(Exists(refs))
    return rows


def _copies(items: Any) -> Iterator[Any]:
    """A row for each live copy of each item, and one for an item that is nowhere; one query, read as it is sent."""
    live = FilteredRelation("refs", condition=Q(refs__state__in=LIVE_REF_STATES))
    rows = items.annotate(copy=live).order_by("pk", "copy__pk").values_list(*COLUMNS.values())
    return iter(rows.iterator(chunk_size=1000))


def chips_of(kind: Kind, ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """Per item, its copies in words; a promise names where the bytes are now. One query."""
    refs = KINDS[kind].ref.objects.filter(item_id__in=ids, state__in=LIVE_REF_STATES).select_related("store")
    refs = refs.defer(*heavy("store")).order_by("store__scope", "store__name", "pk")
    found: dict[int, list[Any]] = {pk: [] for pk in ids}
    for ref in refs:
        found[ref.item_id].append(ref)
    return {pk: [_chip(ref, copies) for ref in copies] for pk, copies in found.items()}


def _chip(ref: Any, copies: Sequence[Any]) -> dict[str, Any]:
    words = ref.state
    if ref.state == RefState.PROMISED:
        there = [copy.store.name for copy in copies if copy.state in READABLE]
        words = f"on NFS {', '.join(there)}, pending" if there else "promised, but no readable copy is left"
    elif ref.state == RefState.FAILED and ref.install_path:
        readable = any(copy.state in READABLE for copy in copies)
        words = "damaged, not used" if readable else "only copy, damaged"
    elif ref.state == RefState.READY and ref.proof not in PROVEN:
        words = f"{ref.state}, {ref.proof}{', with a problem' if ref.error_str else ''}"
    return {"store": ref.store, "state": ref.state, "words": words, "ref": ref}


@action("items/<slug:kind>/chosen/ensure/", "items_ensure")
def ensure_chosen(request: HttpRequest, kind: str) -> HttpResponse:
    """Bring the chosen items to the object store, and say of each what came of it."""
    return _results(request, _kind(kind), "Asked for", _bring_one)


@action("items/<slug:kind>/chosen/delete/", "items_delete", ActorRole.STORAGE_ADMIN)
def delete_chosen(request: HttpRequest, kind: str) -> HttpResponse:
    """Ask, then delete the chosen items, and say of each what came of it."""
    of = _kind(kind)
    if "sure" in request.POST:
        return _results(request, of, "Deleted", _delete_one)
    rows = _chosen(request, of)
    return show(request, "console/chosen.html", title=f"Delete {len(rows)} {of}s?", rows=rows, kind=of)


def _results(request: HttpRequest, kind: Kind, title: str, one: Callable[[Actor, Kind, Any], str]) -> HttpResponse:
    actor = actor_of(request)
    results = [(item.name, *_tried(one, actor, kind, item)) for item in _chosen(request, kind)]
    back = (f"{kind.capitalize()}s", reverse("console:item_list", args=[kind]))
    return show(request, "console/results.html", title=title, rows=results, what=kind.capitalize(), back=back)


def _chosen(request: HttpRequest, kind: Kind) -> list[Any]:
    numbers = [found for found in map(_number, request.POST.getlist("item")) if found is not None][:AT_ONCE]
    rows = list(KINDS[kind].item.objects.filter(uuid__in=numbers, removed=None).order_by("pk"))
    if not rows:
        raise Invalid(f"No {kind} was chosen.", remedy="Tick those that are meant.")
    return rows


def _number(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _tried(one: Callable[[Actor, Kind, Any], str], actor: Actor, kind: Kind, item: Any) -> tuple[str, str]:
    """(badge, words): a refusal of one keeps no other from being done."""
    try:
        return "done", one(actor, kind, item)
    except ServiceError as error:
        return "refused", f"{error.message} {error.remedy}".strip()


def _delete_one(actor: Actor, kind: Kind, item: Any) -> str:
    items.delete_item(actor=actor, kind=kind, item=item)
    return "It is deleted; a worker removes its bytes."


def _bring_one(actor: Actor, kind: Kind, item: Any) -> str:
    started = transfers.ensure(actor=actor, kind=kind, item=item)
    return "It is on its way, ahead of the background." if started else "It is on the object store already."


@page("items/<slug:kind>/<uuid:number>/", "item")
def item_page(request: HttpRequest, kind: str, number: uuid.UUID) -> HttpResponse:
    """Where an item is, how we know, what it builds on, and what happened to it."""
    of = _kind(kind)
    item = item_of(of, number)
    chips = chips_of(of, [item.pk])[item.pk]
    files: dict[int, list[Any]] = {}
    for file in KINDS[of].file.objects.filter(ref_id__in=[chip["ref"].pk for chip in chips]).order_by("path")[:FILES_SHOWN]:
        files.setdefault(file.ref_id, []).append(file)
    names = sorted(
        {inventory.relative_name(chip["ref"].install_path, file.path) for chip in chips for file in files.get(chip["ref"].pk, [])}
    )
    links = family(item) if of == Kind.SNAPSHOT else []
    places = chips_of(of, [link.item.pk for link in links if link.item is not None])
    before = _moment(request.GET.get("before", ""))
    auditor = actor_of(request).may(ActorRole.AUDITOR)
    happened = history.timeline(of, item, audit=auditor, before=before)
    return show(
        request,
        "console/item.html",
        title=item.name,
        kind=of,
        item=item,
        copies=[(chip, files.get(chip["ref"].pk, [])) for chip in chips[:COPIES_SHOWN]],
        copies_count=len(chips),
        names=names,
        chain=[(link, places.get(link.item.pk, []) if link.item else []) for link in links],
        reasons=[] if item.removed else reasons(of, item),
        happened=happened.happenings,
        auditor=auditor,
        slice=Slice(
            happened.happenings,
            f"?{urlencode({'before': happened.before.isoformat()})}#history" if happened.before else "",
            "?#history" if before else "",
        ),
        pending=any(chip["state"] == RefState.PROMISED for chip in chips),
        readable=any(chip["state"] == RefState.READY for chip in chips),
    )


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else None
    except (ValueError, OverflowError):
        return None


@page("items/<slug:kind>/deleted/", "item_deleted")
def item_deleted(request: HttpRequest, kind: str) -> HttpResponse:
    """What was deleted and waits in the trash of an export, and until when."""
    of = _kind(kind)
    found = keyset(request, undeletable(of).select_related("account"))
    grace = timedelta(seconds=settings.TRASH_GRACE_SECONDS)
    rows = [(item, item.removed + grace) for item in found.rows]
    undo = "Undo" if actor_of(request).may(ActorRole.STORAGE_ADMIN) else ""
    context: dict[str, Any] = {"kind": of, "kinds": list(Kind), "rows": rows, "slice": found, "undo": undo}
    return show(request, "console/deleted.html", title=f"Deleted {of}s", **context)


@action("items/<slug:kind>/<uuid:number>/undelete/", "item_undelete", ActorRole.STORAGE_ADMIN)
def undelete(request: HttpRequest, kind: str, number: uuid.UUID) -> HttpResponse:
    """Bring it back from the trash."""
    of = _kind(kind)
    item = item_of(of, number)
    stores = undelete_item(actor=actor_of(request), kind=of, item=item)
    messages.success(request, f"{item.name} is back on {', '.join(stores)}.")
    return redirect("console:item", of.value, number)


@action("items/<slug:kind>/<uuid:number>/ensure/", "item_ensure")
def ensure(request: HttpRequest, kind: str, number: uuid.UUID) -> HttpResponse:
    """Bring it to the object store ahead of everything else."""
    of = _kind(kind)
    messages.success(request, _bring_one(actor_of(request), of, item_of(of, number)))
    return redirect("console:item", of.value, number)


@page("items/<slug:kind>/<uuid:number>/delete/", "item_delete", ActorRole.STORAGE_ADMIN)
def delete(request: HttpRequest, kind: str, number: uuid.UUID) -> HttpResponse:
    """Ask, then delete the item everywhere."""
    of = _kind(kind)
    item = item_of(of, number)

    def do() -> HttpResponse:
        items.delete_item(actor=actor_of(request), kind=of, item=item)
        messages.success(request, f"{item.name} was deleted; a worker removes its bytes.")
        return redirect("console:item_list", of.value)

    places = ", ".join(chip["store"].name for chip in chips_of(of, [item.pk])[item.pk][:COPIES_SHOWN]) or "no store"
    built_on = " Where others build on it, it is kept, hidden, until those are gone." if of == Kind.SNAPSHOT else ""
    return confirm(
        request,
        do,
        title=f"Delete {item.name}?",
        effect=f"The {of} {item.name} is deleted everywhere it is: {places}. On NFS its files wait in a trash folder first;"
        f" on an object store they are gone.{built_on}",
        button=f"Delete the {of}",
        back=("console:item", of.value, number),
    )
