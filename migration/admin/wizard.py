"""The way to a conversion in three pages: the object store and its test, the preflight's report, the review and the word."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse

from cloudstorage.actors import ActorRole
from cloudstorage.console.forms import Field, filled, misplaced
from cloudstorage.console.pages import actor_of, draft_of, drop_draft, fragment, keep_draft, keyset, page, redirect, show
from cloudstorage.errors import Blocked, Invalid, ServiceError, plain
from migration import conversion as conversions
from migration.findings import nfs_stores
from migration.models import Conversion, Preflight
from migration.preflight import request_preflight, sealed_details
from stores.admin.stores import about, detail_words, details_from, entered, option_fields, step_as_json, with_kept
from stores.drivers.base import StoreDriver
from stores.services import image_stores


@page("migration/new/", "wizard", ActorRole.STORAGE_ADMIN)
def object_store(request: HttpRequest) -> HttpResponse:
    """Step 1: which object store, and does it do what is needed?"""
    drivers = [image_stores.driver_class(name) for name in image_stores.provider_names()]
    drivers = [driver for driver in drivers if driver.scope == "REGION"]
    draft = draft_of(request, "wizard")
    provider = request.POST.get("provider") or request.GET.get("provider") or draft.get("provider", "")
    opened = conversions.open_conversion()
    if not provider or opened:
        choices = [about(driver) for driver in drivers]
        return show(request, "console/wizard_choose.html", title="Move to an object store", drivers=choices, open=opened, step=1)
    driver = image_stores.driver_class(provider)
    fields = [
        Field(
            "name", "Name", "How people will call the object store. You will type it once more before the switch.", required=True
        ),
        Field("url", "URL", driver.url_help),
        *option_fields(driver),
    ]
    if draft.get("provider") != provider:
        draft = {}
    error: ServiceError | None = None
    if request.method == "POST":
        draft = {**draft, **entered(request, fields, draft), "provider": provider}
        try:
            return _test(request, driver, draft) if request.POST.get("do") == "test" else _preflight(request, driver, draft)
        except ServiceError as refused:
            error = refused
            if isinstance(refused, Blocked):
                draft["steps"] = [plain(step) for step in refused.findings]
            keep_draft(request, "wizard", draft)
    return show(
        request,
        "console/wizard_store.html",
        title="Move to an object store",
        status=error.status if error else 200,
        step=1,
        driver=about(driver),
        fields=with_kept(filled(fields, draft, error), draft),
        error=misplaced(fields, error),
        steps=draft.get("steps", []),
        nfs=nfs_stores(),
    )


def _test(request: HttpRequest, driver: type[StoreDriver], draft: dict[str, Any]) -> HttpResponse:
    details = details_from(driver, draft)
    steps = image_stores.test_store(actor=actor_of(request), provider=driver.name, url=draft["url"], details=details)
    keep_draft(request, "wizard", {**draft, "steps": [step_as_json(step) for step in steps]})
    return redirect(f"{reverse('console:wizard')}?provider={driver.name}#test")


def _preflight(request: HttpRequest, driver: type[StoreDriver], draft: dict[str, Any]) -> HttpResponse:
    if not draft["name"].strip():
        raise Invalid("The object store needs a name.", remedy="Give it one.", field="name")
    details = details_from(driver, draft)
    row = request_preflight(
        actor=actor_of(request), name=draft["name"].strip(), url=draft["url"], provider=driver.name, details=details
    )
    drop_draft(request, "wizard")  # the preflight keeps it, encrypted
    return redirect("console:preflight", row.uuid)


# --- step 2: the report ----------------------------------------------------------------------------------------------------


def _preflight_of(number: uuid.UUID) -> Preflight:
    row = Preflight.objects.filter(uuid=number).first()
    if row is None:
        raise Http404
    return row


@page("migration/preflights/", "preflight_list")
def preflights(request: HttpRequest) -> HttpResponse:
    """Reports that were kept, newest first."""
    found = keyset(request, Preflight.objects.defer("report", "sealed"), newest_first=True)
    return show(request, "console/preflights.html", title="Preflight reports", slice=found)


@page("migration/preflights/<uuid:number>/", "preflight")
def preflight(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Step 2: what the conversion would meet, blockers first."""
    row = _preflight_of(number)
    findings = row.report.get("findings", []) if row.report else []
    grouped = [
        (severity, words, found)
        for severity, words in (("blocker", "Blockers"), ("warning", "Warnings"), ("info", "Good to know"))
        if (found := [finding for finding in findings if finding["severity"] == severity])
    ]
    context = {
        "row": row,
        "report": row.report,
        "groups": grouped,
        "running": row.finished is None,
        "hard": [found for found in findings if found["severity"] == "blocker" and not found["overridable"]],
        "max_hours": settings.PREFLIGHT_MAX_AGE_SECONDS // 3600,
    }
    if "part" in request.GET:
        return fragment(request, "console/preflight_wait.html", **context)
    return show(request, "console/preflight.html", title=f"Preflight of {row.name or row.url}", step=2, **context)


# --- step 3: review and go -------------------------------------------------------------------------------------------------


@page("migration/preflights/<uuid:number>/review/", "review", ActorRole.STORAGE_ADMIN)
def review(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Step 3: exactly what will change; typing the store's name makes it so."""
    row = _preflight_of(number)
    details = sealed_details(row)
    override = (request.POST if request.method == "POST" else request.GET).getlist("override")
    common: dict[str, Any] = {
        "actor": actor_of(request),
        "name": row.name,
        "url": row.url,
        "provider": row.provider,
        "details": details,
        "preflight": row,
        "override": override,
    }
    error: ServiceError | None = None
    if request.method == "POST":
        try:
            return _go(request, row, common)
        except ServiceError as refused:
            error = refused
    plan: Any = None
    if error is None or isinstance(error, Invalid):
        try:
            plan = conversions.convert(**common, dry_run=True)
        except ServiceError as refused:
            error = refused
    blocked = [plain(found) for found in error.findings] if isinstance(error, Blocked) else []
    return show(
        request,
        "console/review.html",
        title=f"Review: switch the region to {row.name}",
        status=error.status if error else 200,
        step=3,
        row=row,
        plan=plan,
        error=error,
        blocked=blocked,
        overridable=sorted({found["code"] for found in blocked if found.get("overridable")}),
        all_overridable=bool(blocked) and all(found.get("overridable") for found in blocked),
        override=override,
        command=_command(row, details, override),
        curl=_curl(request, row, override),
    )


def _go(request: HttpRequest, row: Preflight, common: Mapping[str, Any]) -> HttpResponse:
    if request.POST.get("typed", "").strip() != row.name:
        message = "The name typed is not the object store's. Nothing was changed."
        raise Invalid(message, remedy=f"Type exactly: {row.name}", field="typed")
    done = conversions.convert(**common)
    assert isinstance(done, Conversion)
    messages.success(request, f"The region uses {row.name} now. Plan the drain to move what is still on NFS.")
    return redirect("console:conversion", done.uuid)


def _command(row: Preflight, details: Mapping[str, str], override: list[str]) -> str:
    driver = image_stores.driver_class(row.provider)
    words = ["manage.py use_object_store", "--name", shlex.quote(row.name), "--provider", row.provider]
    words += ["--url", shlex.quote(row.url)] if row.url else []
    words += detail_words(driver, details)
    return " ".join(words + [f"--override {code}" for code in override])


def _curl(request: HttpRequest, row: Preflight, override: list[str]) -> str:
    body: dict[str, Any] = {"preflight": str(row.uuid)} | ({"override": override} if override else {})
    url = request.build_absolute_uri("/api/v1/conversions")
    header = '-H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json"'
    return f"curl -X POST {header} \\\n  -d '{json.dumps(body)}' {url}"
