"""Retiring staging stores over REST: plan, begin, acknowledge, cancel, fetch the signed report, let the files go."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from django.http import StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.errors import plain
from cloudstorage.rest.views import Body, PagedView, Serializer, ServiceView, operation
from migration import decommission, report
from migration.models import Decommission
from migration.states import DecommissionState
from stores.api.serializers import Named
from stores.api.stores import store_of
from stores.models import heavy

MEDIA_TYPES = {"json": "application/json", "csv": "text/csv; charset=utf-8", "sha256sums": "text/plain; charset=utf-8"}
_FORM = OpenApiParameter("form", str, enum=list(report.FORMS), description="Of the report; json if left out.")


class DecommissionBody(Body):
    """What to read again; `dry_run` only tells what it would be refused for."""

    sample_percent = serializers.FloatField(required=False, default=100, help_text="Above 0; below 100 the report says so.")
    dry_run = serializers.BooleanField(required=False, default=False)


class AcknowledgeBody(Body):
    """Which unknown files are meant."""

    count = serializers.IntegerField(min_value=1)
    digest = serializers.CharField(min_length=12, max_length=64, help_text="At least the first twelve letters of it.")


class DeleteFilesBody(Body):
    """The name of the store, so that nobody deletes another's files."""

    confirm = serializers.CharField(max_length=255)


class DecommissionView(Serializer):
    """The retirement of a staging store."""

    id = serializers.UUIDField(source="uuid")
    store = Named()
    state = serializers.ChoiceField([state.value for state in DecommissionState])
    allowed = serializers.SerializerMethodField(help_text="Events possible now.")
    note = serializers.CharField(allow_blank=True, help_text="Why it is in this state.")
    actor = serializers.CharField()
    created = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    sample_percent = serializers.FloatField(source="verification.sample_percent")
    items_checked = serializers.IntegerField(source="verification.items_checked")
    bytes_checked = serializers.IntegerField(source="verification.bytes_checked")
    differences = serializers.IntegerField(source="verification.findings_count")
    unknown_count = serializers.IntegerField(help_text="Files on the store that no ref knows.")
    unknown_bytes = serializers.IntegerField()
    unknown_digest = serializers.CharField(allow_blank=True, help_text="SHA-256 over their lines `<size>  <path>`.")
    acknowledged_by = serializers.CharField(allow_blank=True)
    acknowledged_at = serializers.DateTimeField(allow_null=True)
    totals = serializers.DictField(help_text="Of the signed report: items, files, bytes, not_read_again.")
    sums_sha256 = serializers.CharField(allow_blank=True, help_text="SHA-256 of the report's SHA256SUMS.")
    deletion_by = serializers.CharField(allow_blank=True)
    deletion_at = serializers.DateTimeField(allow_null=True)
    in_trash_at = serializers.DateTimeField(allow_null=True)
    files_deleted = serializers.IntegerField()
    files_left = serializers.IntegerField(help_text="Changed since they were read, so left alone.")

    def get_allowed(self, row: Decommission) -> list[str]:
        return list(decommission.allowed(row))


class DecommissionDetailView(DecommissionView):
    """A retirement with what differs and the first of the files that no ref knows."""

    findings = serializers.ListField(
        child=serializers.DictField(), source="verification.findings", help_text="The first thousand."
    )
    unknown = serializers.SerializerMethodField(help_text="The first hundred; all of them are in the report.")

    def get_unknown(self, row: Decommission) -> list[str]:
        return list(row.unknown.order_by("pk").values_list("path", flat=True)[:100])


def _rows() -> Any:
    return Decommission.objects.select_related("store__zone", "verification").defer(*heavy("store"))


def _row_of(wanted: uuid.UUID) -> Decommission:
    found: Decommission = get_object_or_404(_rows(), uuid=wanted)
    return found


def _detail(row: Decommission) -> Any:
    return DecommissionDetailView(_rows().get(pk=row.pk)).data


class StoreDecommission(ServiceView):
    """Retire a staging store."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation(
        "stores_decommission",
        body=DecommissionBody,
        status=202,
        answer=DecommissionDetailView,
        more={200: {"type": "object", "description": "With `dry_run`: the blockers; none if the list is empty."}},
    )
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Begin to retire a staging store, or with `dry_run` tell what forbids it."""
        given = self.body(DecommissionBody)
        if given.pop("dry_run"):
            found = decommission.plan(actor=self.actor, store=store_of(id))
            return Response({"blockers": [plain(blocker) for blocker in found]})
        row = decommission.begin(actor=self.actor, store=store_of(id), **given)
        headers = {"Location": f"/api/v1/decommissions/{row.uuid}", "Retry-After": "5"}
        return Response(_detail(row), status=202, headers=headers)


class Decommissions(PagedView):
    """Retirements of staging stores."""

    newest_first = True

    @operation("decommissions_list", answer=DecommissionView(many=True))
    def get(self, request: Request) -> Response:
        """List the retirements, newest first."""
        return self.page(_rows().defer("verification__findings"), DecommissionView)


class DecommissionOne(ServiceView):
    """One retirement."""

    @operation("decommissions_get", answer=DecommissionDetailView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show a retirement with what it found."""
        return Response(_detail(_row_of(id)))


class DecommissionAcknowledge(ServiceView):
    """Accept what no ref knows."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("decommissions_acknowledge", body=AcknowledgeBody, answer=DecommissionDetailView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Accept that the files which no ref knows are given up; the report names who did."""
        return Response(_detail(decommission.acknowledge(actor=self.actor, row=_row_of(id), **self.body(AcknowledgeBody))))


class DecommissionLookAgain(ServiceView):
    """Take the listing again."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("decommissions_look_again", answer=DecommissionDetailView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Take the listing once more, after unknown files were taken away or adopted."""
        return Response(_detail(decommission.look_again(actor=self.actor, row=_row_of(id))))


class DecommissionCancel(ServiceView):
    """Give a retirement up."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("decommissions_cancel", answer=DecommissionDetailView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Give it up; the store stays as it was."""
        return Response(_detail(decommission.cancel(actor=self.actor, row=_row_of(id))))


class DecommissionDeleteFiles(ServiceView):
    """Let the retired files go."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("decommissions_delete_files", body=DeleteFilesBody, status=202, answer=DecommissionDetailView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Move the files that the report lists to the export's trash, from where they are purged after the grace time."""
        row = decommission.delete_files(actor=self.actor, row=_row_of(id), **self.body(DeleteFilesBody))
        return Response(_detail(row), status=202, headers={"Location": f"/api/v1/decommissions/{row.uuid}", "Retry-After": "5"})


class DecommissionReport(ServiceView):
    """The signed report."""

    query = {"GET": ("form",)}

    @operation(
        "decommissions_report",
        answer=OpenApiTypes.OBJECT,
        parameters=[_FORM],
        more={(200, "text/csv"): OpenApiTypes.STR, (200, "text/plain"): OpenApiTypes.STR},
    )
    def get(self, request: Request, id: uuid.UUID) -> StreamingHttpResponse:  # noqa: A002 - the name in the address
        """Fetch the report as JSON, CSV or SHA256SUMS; `migration_verify --report` and `sha256sum -c` check it."""
        return respond(_row_of(id), request.query_params.get("form", "json"))


def respond(row: Decommission, form: str) -> StreamingHttpResponse:
    """The report as a file that is sent while it is read."""
    lines: Iterator[str] = report.stream(row, form)
    disposition = content_disposition_header(True, report.name_of(row, form)) or "attachment"
    return StreamingHttpResponse(lines, content_type=MEDIA_TYPES[form], headers={"Content-Disposition": disposition})
