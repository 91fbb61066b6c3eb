"""Drains and verifications over REST: plan, start, pause, resume, cancel, retry, limit, watch; check what a store has."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.shortcuts import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from cloudstorage.actors import ActorRole
from cloudstorage.errors import Conflict, Missing
from cloudstorage.rest.views import PagedView, ServiceView, operation
from migration import conversion, drain, verify
from migration.api.serializers import (
    DrainBody,
    DrainDetailView,
    DrainView,
    ErrorView,
    LimitsBody,
    RetriedView,
    RetryBody,
    SampleView,
    VerificationDetailView,
    VerificationView,
    VerifyBody,
    progress_of,
)
from migration.models import Conversion, Drain, Verification
from stores.api.stores import store_of
from stores.models import heavy
from stores.services import transfers


def _drains() -> Any:
    return Drain.objects.select_related("batch", "conversion__object_store").defer(*heavy("conversion__object_store"))


def _drain_of(wanted: uuid.UUID) -> Drain:
    found: Drain = get_object_or_404(_drains(), uuid=wanted)
    return found


def _detail(row: Drain) -> Any:
    found = _drains().get(pk=row.pk)
    found.progress = progress_of(drain.progress(found))
    return DrainDetailView(found).data


class Drains(PagedView):
    """Moving every item off the staging stores."""

    roles = {"POST": ActorRole.OPERATOR}
    newest_first = True

    @operation("drains_list", answer=DrainView(many=True))
    def get(self, request: Request) -> Response:
        """List the drains, newest first."""
        return self.page(_drains(), DrainView)

    @operation("drains_create", body=DrainBody, status=201, answer=DrainDetailView)
    def post(self, request: Request) -> Response:
        """Plan a drain: a transfer for every promise in its scope. Nothing moves before it is started."""
        given = self.body(DrainBody)
        begin = given.pop("start")
        row = drain.plan(actor=self.actor, **(given | {"conversion": _conversion(given["conversion"])}))
        if begin:
            row = drain.start(actor=self.actor, drain=row)
        return Response(_detail(row), status=201, headers={"Location": f"/api/v1/drains/{row.uuid}"})


def _conversion(wanted: uuid.UUID | None) -> Conversion:
    found = Conversion.objects.filter(uuid=wanted).first() if wanted else conversion.open_conversion()
    if found is None and wanted:
        raise Missing(f"There is no conversion {wanted}.", remedy="Look at /conversions.", field="conversion")
    if found is None:
        raise Conflict("The region is not converted, so nothing is to be drained.", remedy="Convert it first: POST /conversions.")
    return found


class DrainOne(ServiceView):
    """One drain."""

    @operation("drains_get", answer=DrainDetailView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show a drain with its progress and what may be done with it now."""
        return Response(_detail(_drain_of(id)))


def drain_action(name: str, act: Callable[..., Drain], text: str) -> Any:
    """The view of an action that a drain's state table knows."""

    class Action(ServiceView):
        roles = {"POST": ActorRole.OPERATOR}

        @operation(f"drains_{name}", answer=DrainDetailView)
        def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
            return Response(_detail(act(actor=self.actor, drain=_drain_of(id))))

        post.__doc__ = text

    Action.__name__ = f"Drain{name.capitalize()}"
    return Action


DrainStart = drain_action("start", drain.start, "Start it: the canary first, the rest once that was read back.")
DrainPause = drain_action("pause", drain.pause, "Pause it: what is under way stops within a part and goes on from there later.")
DrainResume = drain_action("resume", drain.resume, "Go on.")
DrainCancel = drain_action("cancel", drain.cancel, "End it: what is proven stays, everything else stays readable where it is.")


class DrainRetry(ServiceView):
    """Try what failed again."""

    roles = {"POST": ActorRole.OPERATOR}

    @operation("drains_retry", body=RetryBody, answer=RetriedView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Queue failed items of the drain again, all or those of some causes, and what failed only behind them."""
        return Response({"count": drain.retry_failed(actor=self.actor, drain=_drain_of(id), **self.body(RetryBody))})


class DrainLimits(ServiceView):
    """The limits of a drain."""

    roles = {"PATCH": ActorRole.OPERATOR}

    @operation("drains_limits", body=LimitsBody, answer=DrainDetailView)
    def patch(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Change limits while it runs."""
        return Response(_detail(drain.set_limits(actor=self.actor, drain=_drain_of(id), **self.body(LimitsBody))))


class DrainHistory(ServiceView):
    """A drain over time."""

    pagination_class = None  # type: ignore[assignment] # at most 200 points

    @operation("drains_history", answer=SampleView(many=True))
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show how far it was when: at most 200 points over the whole run, oldest first."""
        return Response(SampleView(drain.history(_drain_of(id)), many=True).data)


class DrainErrors(ServiceView):
    """What went wrong."""

    pagination_class = None  # type: ignore[assignment] # one for each cause

    @operation("drains_errors", answer=ErrorView(many=True))
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Group failures and pending retries by cause, each with an example and what to do."""
        return Response(ErrorView(transfers.errors_by_cause(_drain_of(id).batch), many=True).data)


def _verifications() -> Any:
    return Verification.objects.select_related("store").defer(*heavy("store"))


class Verifications(PagedView):
    """Checks of what stores really have."""

    newest_first = True

    @operation("verifications_list", answer=VerificationView(many=True))
    def get(self, request: Request) -> Response:
        """List the verifications, newest first."""
        return self.page(_verifications().defer("findings"), VerificationView)


class VerificationOne(ServiceView):
    """One verification."""

    @operation("verifications_get", answer=VerificationDetailView)
    def get(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Show a verification with what it found."""
        return Response(VerificationDetailView(get_object_or_404(_verifications(), uuid=id)).data)


class StoreVerify(ServiceView):
    """Check what a store really has."""

    roles = {"POST": ActorRole.OPERATOR}

    @operation("stores_verify", body=VerifyBody, status=202, answer=VerificationDetailView)
    def post(self, request: Request, id: uuid.UUID) -> Response:  # noqa: A002 - the name in the address
        """Read and hash all or a sample of a store's content again, or compare its listing with the refs."""
        row = verify.verify(actor=self.actor, store=store_of(id), **self.body(VerifyBody))
        headers = {"Location": f"/api/v1/verifications/{row.uuid}", "Retry-After": "5"}
        return Response(VerificationDetailView(row).data, status=202, headers=headers)
