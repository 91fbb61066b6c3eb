"""Zones, accounts, providers and workers over REST."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.rest.views import PagedView, ServiceView, operation
from stores.api.serializers import AccountView, ProviderView, WorkerView, ZoneBody, ZoneView
from stores.models import Account, Worker, Zone
from stores.services import image_stores, region


class Zones(PagedView):
    """The zones of the region."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("zones_list", answer=ZoneView(many=True))
    def get(self, request: Request) -> Response:
        """List the zones."""
        return self.page(Zone.objects.all(), ZoneView)

    @operation("zones_create", body=ZoneBody, status=201, answer=ZoneView)
    def post(self, request: Request) -> Response:
        """Add a zone."""
        return Response(ZoneView(region.add_zone(actor=self.actor, **self.body(ZoneBody))).data, status=201)


class Accounts(PagedView):
    """The owners of items, as scans and catalogues found them."""

    @operation("accounts_list", answer=AccountView(many=True))
    def get(self, request: Request) -> Response:
        """List the accounts."""
        return self.page(Account.objects.all(), AccountView)


class Providers(ServiceView):
    """The kinds of store that this installation knows."""

    @operation("providers_list", answer=ProviderView(many=True))
    def get(self, request: Request) -> Response:
        """List the providers with their options."""
        return Response([_provider(name) for name in image_stores.provider_names()])

    pagination_class = None  # type: ignore[assignment] # a handful that the settings name


def _provider(name: str) -> Any:
    driver = image_stores.driver_class(name)
    found = {"name": name, "label": driver.label, "scope": driver.scope, "url_help": driver.url_help, "options": driver.options}
    return ProviderView(found).data


class Workers(PagedView):
    """The worker processes, those that have ended among them, and what each reaches."""

    newest_first = True

    @operation("workers_list", answer=WorkerView(many=True))
    def get(self, request: Request) -> Response:
        """List the workers, newest first."""
        return self.page(Worker.objects.with_reach(), WorkerView)
