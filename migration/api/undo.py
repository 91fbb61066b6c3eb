"""The two ways in which a conversion ends, over REST: committed, or rolled back; each with its plan first."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any

from django.http import Http404
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.rest.views import Body, Serializer, ServiceView, operation
from migration import commit, rollback
from migration.api.conversions import conversions
from migration.api.serializers import ConversionView, ErrorView, RetriedView
from migration.models import Conversion, Rollback
from migration.states import ConversionState

Counts = serializers.DictField


class FindingView(Serializer):
    """Something to know before."""

    code = serializers.CharField()
    severity = serializers.ChoiceField(["blocker", "warning", "info"])
    message = serializers.CharField()
    remedy = serializers.CharField(allow_blank=True)
    overridable = serializers.BooleanField(help_text="A blocker that may be accepted by naming its code.")
    zone = serializers.CharField(allow_blank=True)
    store = serializers.CharField(allow_blank=True)
    examples = serializers.ListField(child=serializers.CharField())


class ReleasedView(Serializer):
    """An export whose originals are released."""

    name = serializers.CharField()
    zone = serializers.CharField()
    items = serializers.IntegerField()
    bytes = serializers.IntegerField()


class CommitPlanView(Serializer):
    """What a commit would end."""

    object_store = serializers.CharField()
    ends = serializers.CharField(help_text="What ends, in a sentence.")
    stores = ReleasedView(many=True)
    promised = Counts(child=serializers.IntegerField(), help_text="Items by kind that the object store does not have yet.")
    findings = FindingView(many=True)


class ExportView(Serializer):
    """An export that items come home to."""

    name = serializers.CharField()
    zone = serializers.CharField()
    items = serializers.IntegerField()
    bytes = serializers.IntegerField()
    free = serializers.IntegerField(allow_null=True, help_text="Bytes; null where it did not answer.")
    enough = serializers.BooleanField()


class TimeView(Serializer):
    """How long the copies may take."""

    low_seconds = serializers.FloatField(allow_null=True)
    high_seconds = serializers.FloatField(allow_null=True)
    basis = serializers.CharField()


class StrandedView(Serializer):
    """An item that cannot go home."""

    kind = serializers.CharField()
    id = serializers.UUIDField()
    name = serializers.CharField()
    reason = serializers.CharField()


class RollbackPlanView(Serializer):
    """What a roll-back would do, as everything is now."""

    object_store = serializers.CharField()
    ends = serializers.CharField(help_text="What a roll-back means, in some sentences.")
    home = serializers.DictField(child=Counts(child=serializers.IntegerField()), help_text="kind: {items, bytes} to bring home.")
    exports = ExportView(many=True)
    time = TimeView()
    born = Counts(child=serializers.IntegerField(), help_text="Items by kind made since the conversion.")
    deleted = Counts(child=serializers.IntegerField(), help_text="Items by kind deleted since; they stay deleted.")
    promised = Counts(child=serializers.IntegerField(), help_text="Promises by kind that are taken back.")
    kept = Counts(child=serializers.IntegerField(), help_text="Proven copies by kind that stay on the detached object store.")
    being_written = serializers.IntegerField()
    stranded = StrandedView(many=True, help_text="Examples of what cannot go home.")
    stranded_count = serializers.IntegerField()
    findings = FindingView(many=True)


class CommitBody(Body):
    """A commit."""

    override = serializers.ListField(
        child=serializers.CharField(), required=False, default=list, help_text="Codes of blockers that are accepted."
    )


class RollbackBody(Body):
    """A roll-back to begin."""

    override = serializers.ListField(
        child=serializers.CharField(), required=False, default=list, help_text="Codes of blockers that are accepted."
    )


class RollbackView(Serializer):
    """How far a roll-back is."""

    id = serializers.UUIDField()
    state = serializers.CharField(help_text="RollingBack, RolledBack or Abandoned.")
    note = serializers.CharField(allow_blank=True, help_text="What it waits for, or how it ended.")
    closing = serializers.BooleanField(help_text="The object store takes no new items until the switch.")
    items = Counts(child=serializers.IntegerField(), help_text="Copies home by state, and `total`.")
    bytes = Counts(child=serializers.IntegerField(), help_text="total, proven, copied.")
    errors = ErrorView(many=True)  # type: ignore[assignment]  # the field's name is also an attribute of Serializer


def _conversion(wanted: uuid.UUID) -> Conversion:
    found: Conversion = get_object_or_404(conversions(), uuid=wanted)
    return found


class ConversionCommit(ServiceView):
    """Ending the way back."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("conversions_commit_plan", answer=CommitPlanView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Tell what a commit would end; nothing is changed."""
        return Response(CommitPlanView(asdict(commit.plan_commit(actor=self.actor, conversion=_conversion(id)))).data)

    @operation("conversions_commit", body=CommitBody, answer=ConversionView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """End the way back: the originals on NFS become cache. Nothing is deleted. Cannot be undone."""
        commit.commit(actor=self.actor, conversion=_conversion(id), **self.body(CommitBody))
        return Response(ConversionView(_conversion(id)).data)


class ConversionRollback(ServiceView):
    """Going back to NFS."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("conversions_rollback_get", answer=RollbackView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show how far the newest roll-back of a conversion is."""
        found = Rollback.objects.select_related("batch").filter(conversion=_conversion(id)).first()
        if found is None:
            raise Http404
        return Response(_told(found))

    @operation("conversions_rollback", body=RollbackBody, status=202, answer=RollbackView, more={200: RollbackView})
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Begin to roll back; 200 where nothing had to be copied and it has ended, else 202."""
        row = rollback.start(actor=self.actor, conversion=_conversion(id), **self.body(RollbackBody))
        told = _told(row)
        if told["state"] != ConversionState.ROLLING_BACK:
            return Response(told)
        return Response(told, status=202, headers={"Location": f"/api/v1/conversions/{id}/rollback", "Retry-After": "5"})


def _told(row: Rollback) -> Any:
    return RollbackView(asdict(rollback.progress(row))).data


class RollbackPlanOne(ServiceView):
    """Looking before going back."""

    @operation("conversions_rollback_plan", answer=RollbackPlanView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Tell what a roll-back would do, with the space on each export; nothing is changed."""
        return Response(RollbackPlanView(asdict(rollback.plan_rollback(actor=self.actor, conversion=_conversion(id)))).data)


class RollbackRetry(ServiceView):
    """Trying again."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("conversions_rollback_retry", answer=RetriedView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Queue the copies home that failed again."""
        return Response({"count": rollback.retry(actor=self.actor, conversion=_conversion(id))})


class RollbackAbandon(ServiceView):
    """Staying after all."""

    roles = {"POST": ActorRole.STORAGE_ADMIN}

    @operation("conversions_rollback_abandon", answer=ConversionView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Stay converted; what has come home stays there as a further copy."""
        rollback.abandon(actor=self.actor, conversion=_conversion(id))
        return Response(ConversionView(_conversion(id)).data)
