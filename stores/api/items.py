"""Templates, snapshots and volumes over REST: list, show, bring to a store, delete. One set of views for the three kinds."""

from __future__ import annotations

import uuid
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from rest_framework.exceptions import APIException, UnsupportedMediaType
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.errors import Invalid, Missing
from cloudstorage.rest.views import PagedView, ServiceView, operation
from stores.api import serializers as shown
from stores.api.filters import FILTERS, listed, with_refs
from stores.api.stores import store_of
from stores.api.transfers import transfer_view
from stores.models import KINDS, Account, Kind
from stores.services import history, items, region, transfers
from stores.services.undelete import undeletable, undelete_item
from stores.services.uploads import register_upload

VIEWS: dict[Kind, tuple[Any, Any]] = {
    Kind.TEMPLATE: (shown.TemplateView, shown.TemplateDetailView),
    Kind.SNAPSHOT: (shown.SnapshotView, shown.SnapshotDetailView),
    Kind.VOLUME: (shown.VolumeView, shown.VolumeDetailView),
}


OCTETS = "application/octet-stream"


class LengthRequired(APIException):
    """An upload must say how long it is, so that one that was cut off is noticed."""

    status_code = 411
    default_detail = "An upload needs the header Content-Length."
    default_code = "length_required"


def item_of(kind: Kind, id: uuid.UUID) -> Any:  # noqa: A002 - the name in the address
    """The item of an address."""
    return get_object_or_404(listed(kind), uuid=id)


def _upload(request: Request) -> dict[str, Any]:
    """What `register_upload` takes, of a request whose body is an image. The body is not read here."""
    if (request.content_type or "").partition(";")[0] != OCTETS:
        raise UnsupportedMediaType(request.content_type or "none", f"Send the image itself, as {OCTETS}.")
    length = request.META.get("CONTENT_LENGTH") or ""
    if not (length.isascii() and length.isdigit()):
        raise LengthRequired
    checked = shown.UploadQuery(data=request.query_params.dict())
    checked.is_valid(raise_exception=True)
    given: dict[str, Any] = {**checked.validated_data, "stream": request._request, "size": int(length)}  # noqa: SLF001 - unparsed
    given["zone"] = region.find_zone(str(given["zone"])) if given["zone"] else None
    account = Account.objects.filter(uuid=given.pop("account")).first()
    if account is None:
        raise Invalid("There is no such account.", remedy="Look at /accounts.", field="account")
    given["account_id"] = account.pk
    if given["parent"] is not None:
        parent = listed(Kind.SNAPSHOT).filter(uuid=given["parent"]).first()
        if parent is None:
            raise Missing(f"There is no snapshot {given['parent']}.", remedy="Look at /snapshots.", field="parent")
        given["parent"] = parent
    return given


def item_views(kind: Kind) -> tuple[Any, Any, Any]:
    """The views of a kind: list, one, ensure."""
    listing, detail = VIEWS[kind]
    words = f"{kind}s"

    class Items(PagedView):
        filterset_class = FILTERS[kind]
        roles = {"POST": ActorRole.OPERATOR}
        query = {"POST": shown.UploadQuery().fields}

        @operation(f"{words}_list", answer=listing(many=True))
        def get(self, request: Request) -> Response:
            """List the items, each with the stores that it is on or promised on."""
            return self.page(with_refs(listed(kind), kind), listing)

        @operation(
            f"{words}_upload",
            body={OCTETS: OpenApiTypes.BINARY},
            parameters=[shown.UploadQuery],
            status=201,
            answer=detail,
        )
        def post(self, request: Request) -> Response:
            """Register a new item: the body is its image, read once, proven on the store of record, looked into, then Ready."""
            ref = register_upload(actor=self.actor, kind=kind, **_upload(request))
            found = with_refs(listed(kind), kind, files=True).get(pk=ref.item_id)
            return Response(detail(found).data, status=201, headers={"Location": f"/api/v1/{words}/{found.uuid}"})

    class Item(ServiceView):
        roles = {"DELETE": ActorRole.STORAGE_ADMIN}

        @operation(f"{words}_get", answer=detail)
        def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
            """Show an item with its copies on every store, their files and proofs."""
            found = get_object_or_404(with_refs(listed(kind), kind, files=True), uuid=id)
            return Response(detail(found).data)

        @operation(f"{words}_delete", status=204)
        def delete(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
            """Delete an item everywhere. A snapshot that others build on is hidden, and goes with the last of them."""
            items.delete_item(actor=self.actor, kind=kind, item=item_of(kind, id))
            return Response(status=204)

    class Ensure(ServiceView):
        roles = {"POST": ActorRole.OPERATOR}

        @operation(f"{words}_ensure", body=shown.EnsureBody, status=202, answer=shown.TransferView, more={204: None})
        def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
            """Ask for the item on a store at once, its chain's parents first. 204: it is there already."""
            wanted = self.body(shown.EnsureBody)["store"]
            store = store_of(wanted) if wanted else None
            transfer = transfers.ensure(actor=self.actor, kind=kind, item=item_of(kind, id), store=store)
            if transfer is None:
                return Response(status=204)
            headers = {"Location": f"/api/v1/transfers/{transfer.uuid}", "Retry-After": "2"}
            return Response(transfer_view(transfer.uuid), status=202, headers=headers)

    title = kind.capitalize()
    Items.__name__, Item.__name__, Ensure.__name__ = f"{title}s", title, f"{title}Ensure"
    return Items, Item, Ensure


def history_view(kind: Kind) -> Any:
    """The view of what happened to an item of a kind."""

    class History(ServiceView):
        pagination_class = None  # type: ignore[assignment] # by time: an item has no rows of one kind that could be paged by key
        query = {"GET": shown.HistoryQuery().fields}

        @operation(f"{kind}s_history", parameters=[shown.HistoryQuery], answer=shown.HistoryView)
        def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
            """Show what happened to an item, newest first, and to auditors what people did with it; of deleted ones, too."""
            item = get_object_or_404(KINDS[kind].item, uuid=id)
            asked = shown.HistoryQuery(data=request.query_params.dict())
            asked.is_valid(raise_exception=True)
            before, size = asked.validated_data["before"], asked.validated_data["limit"]
            found = history.timeline(kind, item, audit=self.actor.may(ActorRole.AUDITOR), before=before, size=size)
            return Response(shown.HistoryView({"results": found.happenings, "before": found.before}).data)

    History.__name__ = f"{kind.capitalize()}History"
    return History


def trash_views(kind: Kind) -> tuple[Any, Any]:
    """The views of what was deleted of a kind: list, undelete."""
    detail, words = VIEWS[kind][1], f"{kind}s"

    class Deleted(PagedView):
        @operation(f"{words}_deleted", answer=shown.DeletedView(many=True))
        def get(self, request: Request) -> Response:
            """List what was deleted and waits in the trash of an export."""
            return self.page(undeletable(kind).select_related("account"), shown.DeletedView)

    class Undelete(ServiceView):
        roles = {"POST": ActorRole.STORAGE_ADMIN}

        @operation(f"{words}_undelete", answer=detail)
        def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
            """Bring a deleted item back on every export whose trash still has it; its copies there are adopted, not proven."""
            item = get_object_or_404(KINDS[kind].item, uuid=id)
            undelete_item(actor=self.actor, kind=kind, item=item)
            return Response(detail(with_refs(listed(kind), kind, files=True).get(uuid=id)).data)

    Deleted.__name__, Undelete.__name__ = f"{kind.capitalize()}sDeleted", f"{kind.capitalize()}Undelete"
    return Deleted, Undelete
