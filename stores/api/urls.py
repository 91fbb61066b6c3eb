"""Addresses of stores and items below /api/v1/."""

from __future__ import annotations

from django.urls import path

from stores.api import region, stores, transfers
from stores.api.content import content_view
from stores.api.items import history_view, item_views, trash_views
from stores.models import Kind

urlpatterns = [
    path("zones", region.Zones.as_view()),
    path("accounts", region.Accounts.as_view()),
    path("providers", region.Providers.as_view()),
    path("workers", region.Workers.as_view()),
    path("stores", stores.Stores.as_view()),
    path("stores/test", stores.StoreTest.as_view()),
    path("stores/<uuid:id>", stores.Store.as_view()),
    path("stores/<uuid:id>/probe", stores.StoreProbe.as_view()),
    path("stores/<uuid:id>/scan", stores.StoreScan.as_view()),
    path("stores/<uuid:id>/scan-report", stores.StoreScanReport.as_view()),
    path("scans", stores.Scans.as_view()),
    path("scans/<uuid:id>", stores.ScanOne.as_view()),
    path("scans/<uuid:id>/cancel", stores.ScanCancel.as_view()),
    path("transfers", transfers.Transfers.as_view()),
    path("transfers/<uuid:id>", transfers.TransferOne.as_view()),
    path("transfers/<uuid:id>/retry", transfers.TransferRetry.as_view()),
]
for _kind in Kind:
    _listing, _one, _ensure = item_views(_kind)
    _deleted, _undelete = trash_views(_kind)
    urlpatterns += [
        path(f"{_kind}s", _listing.as_view()),
        path(f"{_kind}s/deleted", _deleted.as_view()),
        path(f"{_kind}s/<uuid:id>", _one.as_view()),
        path(f"{_kind}s/<uuid:id>/ensure", _ensure.as_view()),
        path(f"{_kind}s/<uuid:id>/history", history_view(_kind).as_view()),
        path(f"{_kind}s/<uuid:id>/undelete", _undelete.as_view()),
        path(f"{_kind}s/<uuid:id>/content", content_view(_kind).as_view()),
    ]
