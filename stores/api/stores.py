"""Image stores over REST: list, try out, add, check, scan, change, remove."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.shortcuts import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.rest.views import PagedView, ServiceView, operation
from stores.api.filters import StoreFilter
from stores.api.serializers import (
    PlaceBody,
    ScanBody,
    ScanDetailView,
    ScanView,
    StepsView,
    StoreBody,
    StoreDetailView,
    StorePatch,
    StoreView,
)
from stores.drivers.base import ProbeStep
from stores.models import ImageStore, ScanRun, Zone, heavy
from stores.services import image_stores, region, scan


def store_of(wanted: uuid.UUID) -> ImageStore:
    """The store of an address; removed ones are still shown."""
    return get_object_or_404(ImageStore.objects.select_related("zone"), uuid=wanted)


def _zone(given: uuid.UUID | None) -> Zone | None:
    return region.find_zone(str(given)) if given else None


def _detail(store: ImageStore) -> Any:
    rows = ImageStore.objects.with_usage().select_related("zone").prefetch_related("reach__worker")
    return StoreDetailView(rows.get(pk=store.pk)).data


def _steps(steps: Sequence[ProbeStep]) -> Any:
    return StepsView({"usable": all(step.status != "blocker" for step in steps), "steps": steps}).data


class WithDetails(ServiceView):
    """A view whose body has a driver's options in `details`."""

    def pointer_to(self, field: str) -> str:
        """Options stand inside `details`, everything else beside them."""
        drivers = map(image_stores.driver_class, image_stores.provider_names())
        options = {option.name for driver in drivers for option in driver.options}
        given = self.request.data.get("details") if isinstance(self.request.data, Mapping) else None
        inside = field in options or (isinstance(given, Mapping) and field in given)
        return f"#/details/{field}" if inside else super().pointer_to(field)


class Stores(WithDetails, PagedView):
    """The image stores: secondary storage (role Image) and staging stores (role ImageCache)."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}
    filterset_class = StoreFilter

    @operation("stores_list", answer=StoreView(many=True))
    def get(self, request: Request) -> Response:
        """List the stores that are in the cloud now, with what is on them; `state=Removed` lists the former ones."""
        stores = ImageStore.objects.with_usage().select_related("zone").defer(*heavy())
        if request.query_params.get("state") != "Removed":
            stores = stores.filter(removed=None)
        return self.page(stores, StoreView)

    @operation("stores_create", body=StoreBody, status=201, answer=StoreDetailView)
    def post(self, request: Request) -> Response:
        """Add a store: it is probed first, and a blocker refuses it with every step as finding."""
        given = self.body(StoreBody)
        store = image_stores.add_store(actor=self.actor, **(given | {"zone": _zone(given["zone"])}))
        return Response(_detail(store), status=201, headers={"Location": f"/api/v1/stores/{store.uuid}"})


class StoreTest(WithDetails):
    """Try a place out; nothing is saved."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("stores_test", body=PlaceBody, answer=StepsView)
    def post(self, request: Request) -> Response:
        """Probe a place with these parameters, live."""
        given = self.body(PlaceBody)
        steps = image_stores.test_store(actor=self.actor, **(given | {"zone": _zone(given["zone"])}))
        return Response(_steps(steps))


class Store(WithDetails):
    """One image store."""

    roles = {"PATCH": ActorRole.STORAGE_ADMIN, "DELETE": ActorRole.STORAGE_ADMIN}

    @operation("stores_get", answer=StoreDetailView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show a store with its options (no secrets), its last probe and who reaches it."""
        return Response(_detail(store_of(id)))

    @operation("stores_update", body=StorePatch, answer=StoreDetailView)
    def patch(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Change a store; new options must pass the live probe and lead to the same place."""
        return Response(_detail(image_stores.update_store(actor=self.actor, store=store_of(id), **self.body(StorePatch))))

    @operation("stores_delete", status=204)
    def delete(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Take a store out of the cloud; nothing on it is deleted, and it must hold nothing of ours."""
        image_stores.remove_store(actor=self.actor, store=store_of(id))
        return Response(status=204)


class StoreProbe(ServiceView):
    """Try a store out again."""

    roles = {"POST": ActorRole.OPERATOR}

    @operation("stores_probe", answer=StepsView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Probe a store, live; the steps are kept on it."""
        return Response(_steps(image_stores.probe_store(actor=self.actor, store=store_of(id))))


class StoreScan(ServiceView):
    """Adopt what lies on a store, and report how it differs from the rows."""

    roles = {"POST": ActorRole.OPERATOR}

    @operation("stores_scan", body=ScanBody, status=202, answer=ScanDetailView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Ask for a scan, which a worker takes up. It may be repeated, or cut off, at any time: scans are idempotent."""
        run = scan.request_scan(actor=self.actor, store=store_of(id), catalogue=self.body(ScanBody)["catalogue"])
        headers = {"Location": f"/api/v1/scans/{run.uuid}", "Retry-After": "5"}
        return Response(ScanDetailView(run).data, status=202, headers=headers)


class StoreScanReport(ServiceView):
    """The last scan of a store."""

    @operation("stores_scan_report", answer={"type": "object", "description": "The report; empty before the first scan."})
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show the report of the last scan."""
        return Response(store_of(id).scan_report)


def _scans() -> Any:
    return ScanRun.objects.select_related("store").defer("catalogue", *heavy("store"))


def _scan_of(wanted: uuid.UUID) -> ScanRun:
    run: ScanRun = get_object_or_404(_scans(), uuid=wanted)
    return run


class Scans(PagedView):
    """Scans of stores: those that wait, run and have ended."""

    newest_first = True

    @operation("scans_list", answer=ScanView(many=True))
    def get(self, request: Request) -> Response:
        """List the scans, newest first."""
        return self.page(_scans().defer("report"), ScanView)


class ScanOne(ServiceView):
    """One scan."""

    @operation("scans_get", answer=ScanDetailView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show how far a scan is, and once it has ended its report."""
        return Response(ScanDetailView(_scan_of(id)).data)


class ScanCancel(ServiceView):
    """End a scan."""

    roles = {"POST": ActorRole.OPERATOR}

    @operation("scans_cancel", answer=ScanDetailView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """End it: what it has adopted stays."""
        return Response(ScanDetailView(scan.cancel_scan(actor=self.actor, run=_scan_of(id))).data)
