"""Transfers over REST: look at them, try a failed one again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.errors import Conflict
from cloudstorage.rest.views import PagedView, ServiceView, operation
from stores.api.filters import TransferFilter
from stores.api.serializers import TransferView
from stores.models import Transfer, heavy
from stores.services import transfers
from stores.services.inventory import names_of
from stores.states import TRANSFER_TRANSITIONS, TransferState, allowed_events


def _rows() -> QuerySet[Transfer]:
    rows = Transfer.objects.select_related("source", "target", "batch", "parent", "worker")
    return rows.defer(*heavy("source", "target"))


def _items(rows: Sequence[Transfer]) -> dict[str, Any]:
    """Id and name of the rows' items, for a serializer's context: one query per kind."""
    return {"items": {key: {"id": item, "name": name} for key, (item, name) in names_of(rows).items()}}


def transfer_view(wanted: uuid.UUID) -> Any:
    """One transfer as the API shows it."""
    found = get_object_or_404(_rows(), uuid=wanted)
    return TransferView(found, context=_items([found])).data


class Transfers(PagedView):
    """The copying of items, planned, under way and ended."""

    newest_first = True
    filterset_class = TransferFilter

    @operation("transfers_list", answer=TransferView(many=True))
    def get(self, request: Request) -> Response:
        """List transfers, newest first."""
        return self.page(_rows(), TransferView, _items)


class TransferOne(ServiceView):
    """One transfer."""

    @operation("transfers_get", answer=TransferView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show a transfer."""
        return Response(transfer_view(id))


class TransferRetry(ServiceView):
    """Try a failed transfer again."""

    roles = {"POST": ActorRole.OPERATOR}

    @operation("transfers_retry", status=202, answer=TransferView, more={200: TransferView})
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Queue a failed transfer again; a child waits for its parent. 200: its item came by another transfer or was deleted, and
        it is cancelled."""
        rows = Transfer.objects.filter(uuid=id)
        row = get_object_or_404(rows)
        before = row.state
        if not transfers.retry(actor=self.actor, transfers=rows, target=f"transfer:{id}"):
            row.refresh_from_db()
            if (before, row.state) == (TransferState.FAILED, TransferState.CANCELLED):
                return Response(transfer_view(id))
            allowed = allowed_events(TRANSFER_TRANSITIONS, TransferState(row.state))
            message = f"The transfer is {row.state}; only a failed one is tried again."
            raise Conflict(message, remedy="Look at its state.", allowed=allowed)
        return Response(transfer_view(id), status=202)
