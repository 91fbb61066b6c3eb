"""Preflights and conversions over REST; the conversion is CloudStack's updateCloudToUseObjectStore."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any

from django.shortcuts import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.errors import Invalid, Missing
from cloudstorage.rest.views import PagedView, ServiceView, operation
from migration import conversion, preflight
from migration.api.serializers import ConversionBody, ConversionView, PreflightBody, PreflightDetailView, PreflightView
from migration.models import Conversion, Preflight
from stores.api.stores import WithDetails
from stores.models import heavy


class Preflights(WithDetails, PagedView):
    """Reports of what a conversion would meet."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}
    newest_first = True

    @operation("preflights_list", answer=PreflightView(many=True))
    def get(self, request: Request) -> Response:
        """List the preflights, newest first."""
        return self.page(Preflight.objects.defer("report"), PreflightView)

    @operation("preflights_create", body=PreflightBody, status=202, answer=PreflightDetailView, more={201: PreflightDetailView})
    def post(self, request: Request) -> Response:
        """Look at everything that a conversion to this object store would meet; nothing is changed."""
        given = self.body(PreflightBody)
        wait = given.pop("wait")
        ask = preflight.preflight if wait else preflight.request_preflight
        found = ask(actor=self.actor, **given)
        headers = {"Location": f"/api/v1/preflights/{found.uuid}"} | ({} if wait else {"Retry-After": "5"})
        return Response(PreflightDetailView(found).data, status=201 if wait else 202, headers=headers)


class PreflightOne(ServiceView):
    """One preflight."""

    @operation("preflights_get", answer=PreflightDetailView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show a preflight with its report."""
        found = get_object_or_404(Preflight, uuid=id)
        return Response(PreflightDetailView(found).data)


def conversions() -> Any:
    """Every conversion with what is shown of it, without what is heavy."""
    rows = Conversion.objects.select_related("object_store", "preflight").prefetch_related("stores__store")
    return rows.defer("preflight__report", *heavy("object_store"))


class Conversions(WithDetails, PagedView):
    """The switches of the region to an object store; at most one is open."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}
    newest_first = True

    @operation("conversions_list", answer=ConversionView(many=True))
    def get(self, request: Request) -> Response:
        """List the conversions, newest first."""
        return self.page(conversions(), ConversionView)

    @operation(
        "conversions_create",
        body=ConversionBody,
        status=201,
        answer=ConversionView,
        more={200: {"type": "object", "description": "With `dry_run`: what would be changed, exactly."}},
    )
    def post(self, request: Request) -> Response:
        """Convert the region (updateCloudToUseObjectStore), or with `dry_run` tell what that would change."""
        found = conversion.update_cloud_to_use_object_store(actor=self.actor, **self._parameters())
        if isinstance(found, conversion.ConvertPlan):
            return Response(asdict(found))
        headers = {"Location": f"/api/v1/conversions/{found.uuid}"}
        return Response(ConversionView(conversions().get(pk=found.pk)).data, status=201, headers=headers)

    def _parameters(self) -> dict[str, Any]:
        given = self.body(ConversionBody)
        wanted = given["preflight"]
        if wanted is None:
            return given
        row = Preflight.objects.filter(uuid=wanted).first()
        if row is None:
            raise Missing(f"There is no preflight {wanted}.", remedy="Run one: POST /preflights.", field="preflight")
        given["preflight"] = row
        if not given["provider"]:
            self.actor.require(ActorRole.STORAGE_ADMIN)
            if more := [name for name in ("url", "details") if given[name]]:
                message = "With a preflight alone, everything is as that was given it; what is sent beside it would be lost."
                raise Invalid(message, remedy=f"Leave out {' and '.join(more)}, or name the provider too.", field=more[0])
            named = given["name"] or row.name
            given |= {"provider": row.provider, "url": row.url, "name": named, "details": preflight.sealed_details(row)}
        return given


class ConversionOne(ServiceView):
    """One conversion."""

    @operation("conversions_get", answer=ConversionView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show a conversion."""
        found = get_object_or_404(conversions(), uuid=id)
        return Response(ConversionView(found).data)
