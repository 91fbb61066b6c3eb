"""Wiring: which URL leads to which face."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView

from cloudstorage import health
from cloudstorage.rest.problems import no_such_resource
from migration.api.metrics import Metrics

_api: list[Any] = [
    path("schema/", SpectacularAPIView.as_view()),
    path("", include("cloudstorage.rest.platform")),
    path("", include("stores.api.urls")),
    path("", include("migration.api.urls")),
    re_path(r"^.*$", no_such_resource),
]

urlpatterns = [
    path("api/v1/", include(_api)),
    path("healthz", health.alive, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("metrics", Metrics.as_view(), name="metrics"),
    path("", admin.site.urls),
]

handler400 = "cloudstorage.console.failures.bad_request"
handler403 = "cloudstorage.console.failures.forbidden"
handler404 = "cloudstorage.console.failures.not_found"
handler500 = "cloudstorage.console.failures.server_error"
