"""The two ways in which a conversion ends: a page for the commit, and one for the way back; each says first what ends there."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404

from cloudstorage.actors import ActorRole
from cloudstorage.console.forms import confirm
from cloudstorage.console.pages import action, actor_of, fragment, page, redirect, show
from cloudstorage.errors import Blocked, Conflict, Invalid, ServiceError, plain
from migration import commit as commits
from migration import rollback as rollbacks
from migration.admin import next_step
from migration.admin.checklist import Lines, checked
from migration.models import Conversion, Rollback
from migration.states import ConversionState

CHECKLIST = (
    # codes of findings that stand against it, what is so where there is none
    (("not-proven",), "Every item is proven on the object store."),
    (("failed-copies",), "No copy waits for a person."),
    (("drain-paused",), "No drain is paused."),
    (("reused-not-checked", "reused-differs"), "What is reused of an earlier conversion is where it was."),
    (("not-verified", "differences"), "The object store was read back since the conversion, without a difference."),
)
WAY_BACK: Lines = (
    (("no-exports", "export-unreachable"), "The exports of before are there and answer."),
    (("target-full", "read-only"), "They have room for what comes home, and take it."),
    (("object-store-unreachable",), "What has to be read from the object store can be."),
    (("cannot-go-home",), "All that was made since has an export to go to."),
    (("damaged",), "No original, and no only copy, is known to be damaged or missing."),
)


def _conversion(number: uuid.UUID) -> Conversion:
    return get_object_or_404(Conversion.objects.select_related("object_store"), uuid=number)


def _insist_on_name(request: HttpRequest, row: Conversion) -> None:
    name = row.object_store.name
    if request.POST.get("typed", "").strip() != name:
        message = "The name typed is not the object store's. Nothing was changed."
        raise Invalid(message, remedy=f"Type exactly: {name}", field="typed")


# --- commit ----------------------------------------------------------------------------------------------------------------


@page("migration/conversions/<uuid:number>/commit/", "commit", form=ActorRole.STORAGE_ADMIN)
def commit(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """What ends, a checklist, and the name to type."""
    row = _conversion(number)
    error: ServiceError | None = None
    if request.method == "POST" and request.POST.get("do") != "commit":
        return redirect("console:conversion", number)
    if request.method == "POST":
        try:
            _insist_on_name(request, row)
            commits.commit(actor=actor_of(request), conversion=row, override=request.POST.getlist("override"))
        except (Invalid, Blocked) as refused:
            error = refused
        else:
            messages.success(request, "Committed. The originals on NFS are cache now; nothing was deleted.")
            return redirect("console:conversion", number)
    plan = None
    try:
        plan = commits.plan_commit(actor=actor_of(request), conversion=row)
    except Conflict as late:
        error = late
    actor = actor_of(request)
    found = {finding.code: finding for finding in plan.findings} if plan else {}
    checks = []
    for codes, words in CHECKLIST:
        finding = next((found[code] for code in codes if code in found), None)
        step = next_step.against_commit(row, finding) if finding is not None else None
        checks.append((finding, words, step if step is not None and actor.may(step.who) else None))
    return show(
        request,
        "console/commit.html",
        title=f"Commit the conversion to {row.object_store.name}",
        status=error.status if error else 200,
        row=row,
        plan=plan,
        checks=checks,
        override=request.POST.getlist("override"),
        error=error,
    )


# --- the way back ----------------------------------------------------------------------------------------------------------


def _going(row: Rollback, request: HttpRequest) -> dict[str, Any]:
    now = rollbacks.progress(row)
    moving = any(now.items[state] for state in ("queued", "blocked", "running"))
    return {
        "rollback": row,
        "now": now,
        "remaining": now.bytes["total"] - now.bytes["proven"] - now.bytes["copied"],
        "running": now.state == ConversionState.ROLLING_BACK,
        "can_retry": bool(now.items["failed"]) and not moving,
        "admin": actor_of(request).may(ActorRole.STORAGE_ADMIN),
    }


@page("migration/conversions/<uuid:number>/rollback/", "rollback", form=ActorRole.STORAGE_ADMIN)
def rollback(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """The plan and the name to type; once it has begun, how far it is."""
    row = _conversion(number)
    newest = Rollback.objects.select_related("batch", "conversion").filter(conversion=row).first()
    if "part" in request.GET and newest is not None:
        return fragment(request, "console/rollback_live.html", row=row, **_going(newest, request))
    error: ServiceError | None = None
    if request.method == "POST" and request.POST.get("do") != "rollback":
        return redirect("console:conversion", number)
    if request.method == "POST":
        try:
            _insist_on_name(request, row)
            override = request.POST.getlist("override")
            begun = rollbacks.start(actor=actor_of(request), conversion=row, override=override)
        except (Invalid, Conflict) as refused:
            error = refused
        else:
            ended = begun.ended_at is not None
            messages.success(
                request, "The region is on NFS again." if ended else "The way back has begun; copies are on their way."
            )
            return redirect("console:rollback", number)
    context: dict[str, Any] = {"running": False, "now": None}
    if newest is not None and (newest.ended_at is None or row.state == ConversionState.ROLLED_BACK):
        context = _going(newest, request)
    elif error is None or isinstance(error, (Invalid, Blocked)):
        try:
            context["plan"] = rollbacks.plan_rollback(actor=actor_of(request), conversion=row)
        except Conflict as late:
            error = late
    return show(
        request,
        "console/rollback.html",
        title=f"Roll back the conversion to {row.object_store.name}",
        status=error.status if error else 200,
        row=row,
        error=error,
        override=request.POST.getlist("override"),
        **_blockers(context.get("plan")),
        **context,
    )


def _blockers(plan: Any) -> dict[str, Any]:
    found = [plain(finding) for finding in plan.findings] if plan is not None else []
    blockers = [finding for finding in found if finding["severity"] == "blocker"]
    return {
        "checks": checked(WAY_BACK, plan.findings) if plan is not None else [],
        "hard": [finding for finding in blockers if not finding["overridable"]],
        "soft": [finding for finding in blockers if finding["overridable"]],
        "notes": [finding for finding in found if finding["severity"] == "info"],
        "bytes_home": sum(entry["bytes"] for entry in plan.home.values()) if plan is not None else 0,
        "items_home": sum(entry["items"] for entry in plan.home.values()) if plan is not None else 0,
        "figures": [(kind, plan.home[kind], plan.born[kind], plan.deleted[kind], plan.promised[kind], plan.kept[kind])
                    for kind in plan.home] if plan is not None else [],
    }  # fmt: skip


@action("migration/conversions/<uuid:number>/rollback/retry/", "rollback_retry", ActorRole.STORAGE_ADMIN)
def retry(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Try what failed again."""
    count = rollbacks.retry(actor=actor_of(request), conversion=_conversion(number))
    messages.success(request, f"{count} failed copies home are tried again.")
    return redirect("console:rollback", number)


@page("migration/conversions/<uuid:number>/rollback/abandon/", "rollback_abandon", ActorRole.STORAGE_ADMIN)
def abandon(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Ask, then stay converted."""
    row = _conversion(number)

    def do() -> HttpResponse:
        rollbacks.abandon(actor=actor_of(request), conversion=row)
        messages.success(request, f"Abandoned: the region goes on with {row.object_store.name}. Plan a drain to move on.")
        return redirect("console:conversion", number)

    return confirm(
        request,
        do,
        title="Abandon the roll-back?",
        effect=f"The region stays on {row.object_store.name}, which takes new items again. What has come home stays on NFS as a"
        " further copy. The drain was cancelled when the roll-back began; plan another one to move on. A new roll-back can begin"
        " at any time until the commit.",
        button="Abandon the roll-back",
        back=("console:rollback", number),
    )
