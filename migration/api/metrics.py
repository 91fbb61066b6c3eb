"""`/metrics`: the figures of an installation in the text format of Prometheus, for whoever may look at it."""

from __future__ import annotations

from typing import Any

from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.rest.views import ServiceView
from migration.measures import as_text, measures


class PrometheusText(BaseRenderer):
    """Text as it is."""

    media_type = "text/plain; version=0.0.4"
    format = "txt"
    charset = "utf-8"

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> bytes:
        """The answer's body."""
        return str(data).encode()


class Metrics(ServiceView):
    """Everything that can be measured, in a fixed number of queries."""

    renderer_classes = [PrometheusText]
    schema = None

    def get(self, request: Request) -> Response:
        """All figures."""
        return Response(as_text(measures()))
