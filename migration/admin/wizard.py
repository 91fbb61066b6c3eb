"""The way to a conversion in four pages: object store and its test, scope and rules, the preflight's report, review and word."""

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

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.console.forms import Field, ask, filled, misplaced
from cloudstorage.console.pages import action, actor_of, complain, fragment, keyset, page, redirect, show
from cloudstorage.errors import Blocked, Invalid, Missing, ServiceError, plain
from migration import conversion as conversions
from migration import drafts
from migration import drain as drains
from migration.admin.rules import as_entered, limit_fields, rules_entered, scope_fields
from migration.findings import nfs_stores
from migration.models import Conversion, Draft, Preflight
from migration.preflight import request_preflight, sealed_details
from migration.rules import Rules, rules_from
from stores.admin.stores import about, detail_words, details_from, entered, option_fields, step_as_json, with_kept
from stores.drivers.base import StoreDriver
from stores.services import image_stores

THEN = {
    Preflight.PLAN: "The drain is planned at once and waits for somebody to start it.",
    Preflight.START: "The drain is planned and started at once, its canary first.",
    "": "Nothing: the drain is planned by hand, whenever you like.",
}


def where_to_go_on(actor: Actor) -> tuple[Draft, str] | None:
    """The actor's draft, and the address of the step at which they were; None where there is nothing to go on with."""
    draft = drafts.draft_of(actor)
    if draft is None:
        return None
    if draft.preflight is None or draft.step == drafts.STORE:
        return draft, f"{reverse('console:wizard')}?provider={draft.provider}"
    name = {drafts.RULES: "rules", drafts.REVIEW: "review"}.get(draft.step, "preflight")
    return draft, reverse(f"console:{name}", args=[draft.preflight.uuid])


@page("migration/new/", "wizard", ActorRole.STORAGE_ADMIN)
def object_store(request: HttpRequest) -> HttpResponse:
    """Step 1: which object store, and does it do what is needed?"""
    drivers = [image_stores.driver_class(name) for name in image_stores.provider_names()]
    drivers = [driver for driver in drivers if driver.scope == "REGION"]
    kept = drafts.draft_of(actor_of(request))
    provider = request.POST.get("provider") or request.GET.get("provider") or (kept.provider if kept else "")
    opened = conversions.open_conversion()
    if not provider or opened:
        choices = [about(driver) for driver in drivers]
        title = "Move to an object store"
        return show(request, "console/wizard_choose.html", title=title, drivers=choices, open=opened, step=drafts.STORE)
    driver = image_stores.driver_class(provider)
    fields = [
        Field(
            "name", "Name", "How people will call the object store. You will type it once more before the switch.", required=True
        ),
        Field("url", "URL", driver.url_help),
        *option_fields(driver),
    ]
    draft = drafts.entries(kept if kept and kept.provider == provider else None)
    error: ServiceError | None = None
    if request.method == "POST":
        draft = {**draft, **entered(request, fields, draft)}
        try:
            return _test(request, driver, draft) if request.POST.get("do") == "test" else _preflight(request, driver, draft)
        except ServiceError as refused:
            error = refused
            if isinstance(refused, Blocked):
                draft["steps"] = [plain(step) for step in refused.findings]
            kept = drafts.keep(actor=actor_of(request), provider=driver.name, entered=draft)
    return show(
        request,
        "console/wizard_store.html",
        title="Move to an object store",
        status=error.status if error else 200,
        step=drafts.STORE,
        driver=about(driver),
        fields=with_kept(filled(fields, draft, error), draft),
        error=misplaced(fields, error),
        steps=draft.get("steps", []),
        nfs=nfs_stores(),
        draft=kept,
    )


def _test(request: HttpRequest, driver: type[StoreDriver], draft: dict[str, Any]) -> HttpResponse:
    details = details_from(driver, draft)
    steps = image_stores.test_store(actor=actor_of(request), provider=driver.name, url=draft["url"], details=details)
    told = [step_as_json(step) for step in steps]
    drafts.keep(actor=actor_of(request), provider=driver.name, entered={**draft, "steps": told})
    return redirect(f"{reverse('console:wizard')}?provider={driver.name}#test")


def _preflight(request: HttpRequest, driver: type[StoreDriver], draft: dict[str, Any]) -> HttpResponse:
    if not draft["name"].strip():
        raise Invalid("The object store needs a name.", remedy="Give it one.", field="name")
    actor = actor_of(request)
    drafts.keep(actor=actor, provider=driver.name, entered=draft)
    details = details_from(driver, draft)
    row = request_preflight(actor=actor, name=draft["name"].strip(), url=draft["url"], provider=driver.name, details=details)
    drafts.go_on(actor=actor, preflight=row)
    return redirect("console:rules", row.uuid)


@action("migration/new/discard/", "wizard_discard", ActorRole.STORAGE_ADMIN)
def discard(request: HttpRequest) -> HttpResponse:
    """Forget what was entered."""
    there = drafts.discard(actor=actor_of(request))
    messages.success(request, "The draft is discarded, its secrets with it." if there else "There was no draft.")
    return redirect("console:migration_list")


# --- step 2: scope and rules -----------------------------------------------------------------------------------------------


def _preflight_of(number: uuid.UUID) -> Preflight:
    row = Preflight.objects.filter(uuid=number).first()
    if row is None:
        raise Http404
    return row


@page("migration/preflights/<uuid:number>/rules/", "rules", ActorRole.STORAGE_ADMIN)
def scope_and_rules(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Step 2: what the drain after the switch moves and how, chosen while the preflight looks at everything."""
    row = _preflight_of(number)
    if not row.sealed:
        raise Missing(f"The preflight {row.uuid} no longer knows the object store's secrets.", remedy="Run it again.")
    then = Field("then", "After the switch", "", "choice", choices=[(then or "nothing", words) for then, words in THEN.items()])

    def keep(data: Any) -> HttpResponse:
        rules, wanted = rules_from(rules_entered(data)), data.get("then", "").replace("nothing", "")
        if wanted not in THEN:
            raise Invalid(f"{wanted!r} is none of the choices.", remedy="Choose one.", field="then")
        drafts.keep_rules(actor=actor_of(request), preflight=row, rules=rules, then=wanted)
        return redirect("console:preflight", row.uuid)

    return ask(
        request,
        [*scope_fields(), *limit_fields(), then],
        keep,
        title="Scope and rules",
        template="console/wizard_rules.html",
        present=as_entered(drafts.rules_of(row)) | {"then": row.then or "nothing"},
        row=row,
        step=drafts.RULES,
    )


# --- step 3: the report ----------------------------------------------------------------------------------------------------


@page("migration/preflights/", "preflight_list")
def preflights(request: HttpRequest) -> HttpResponse:
    """Reports that were kept, newest first."""
    found = keyset(request, Preflight.objects.defer("report", "sealed"), newest_first=True)
    return show(request, "console/preflights.html", title="Preflight reports", slice=found)


@page("migration/preflights/<uuid:number>/", "preflight")
def preflight(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Step 3: what the conversion would meet, blockers first."""
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
        "then": THEN[row.then],
        "rules": drafts.rules_of(row).words() if row.rules else [],
        "hard": [found for found in findings if found["severity"] == "blocker" and not found["overridable"]],
        "max_hours": settings.PREFLIGHT_MAX_AGE_SECONDS // 3600,
    }
    if "part" in request.GET:
        return fragment(request, "console/preflight_wait.html", **context)
    title = f"Preflight of {row.name or row.url}"
    return show(request, "console/preflight.html", title=title, step=drafts.REPORT, **context)


# --- step 4: review and go -------------------------------------------------------------------------------------------------


@page("migration/preflights/<uuid:number>/review/", "review", ActorRole.STORAGE_ADMIN)
def review(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Step 4: exactly what will change; typing the store's name makes it so."""
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
    if request.POST.get("do") == "back":
        return redirect("console:preflight", number)
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
    drafts.reach(actor_of(request), row, drafts.REVIEW)
    blocked = [plain(found) for found in error.findings] if isinstance(error, Blocked) else []
    rules = drafts.rules_of(row)
    return show(
        request,
        "console/review.html",
        title=f"Review: switch the region to {row.name}",
        status=error.status if error else 200,
        step=drafts.REVIEW,
        row=row,
        plan=plan,
        error=error,
        blocked=blocked,
        overridable=sorted({found["code"] for found in blocked if found.get("overridable")}),
        all_overridable=bool(blocked) and all(found.get("overridable") for found in blocked),
        override=override,
        then=THEN[row.then],
        rules=rules.words() if row.then else [],
        command="\n".join(_commands(row, rules, details, override)),
        curl="\n".join(_curl(request, row, rules, override)),
    )


def _go(request: HttpRequest, row: Preflight, common: Mapping[str, Any]) -> HttpResponse:
    if request.POST.get("typed", "").strip() != row.name:
        message = "The name typed is not the object store's. Nothing was changed."
        raise Invalid(message, remedy=f"Type exactly: {row.name}", field="typed")
    done = conversions.convert(**common)
    assert isinstance(done, Conversion)
    if not row.then:
        messages.success(request, f"The region uses {row.name} now. Plan the drain to move what is still on NFS.")
        return redirect("console:conversion", done.uuid)
    try:  # on its own: the switch stands whatever comes of it, and the conversion's page offers the plan with the same rules
        drain = drains.plan(actor=common["actor"], conversion=done, **drafts.rules_of(row).given())
        if row.then == Preflight.START:
            drains.start(actor=common["actor"], drain=drain)
    except ServiceError as refused:
        messages.success(request, f"The region uses {row.name} now.")
        complain(request, refused)
        return redirect("console:conversion", done.uuid)
    messages.success(request, f"The region uses {row.name} now. {_planned(started=row.then == Preflight.START)}")
    return redirect("console:drain", drain.uuid)


def _planned(*, started: bool) -> str:
    return "The drain has started with its canary." if started else "The drain is planned: nothing moves before it is started."


def _commands(row: Preflight, rules: Rules, details: Mapping[str, str], override: list[str]) -> list[str]:
    driver = image_stores.driver_class(row.provider)
    words = ["--name", shlex.quote(row.name), "--provider", row.provider]
    words += ["--url", shlex.quote(row.url)] if row.url else []
    words += [*detail_words(driver, details), *(f"--override {code}" for code in override)]
    lines = ["manage.py use_object_store " + " ".join(words)]
    if row.then:
        lines.append(shlex.join(["manage.py", "migration_plan", *rules.arguments()]))
    if row.then == Preflight.START:
        lines.append("manage.py migration_start")
    return lines


def _curl(request: HttpRequest, row: Preflight, rules: Rules, override: list[str]) -> list[str]:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("conversions", {"preflight": str(row.uuid)} | ({"override": override} if override else {}))
    ]
    if row.then:
        calls.append(("drains", rules.changed() | ({"start": True} if row.then == Preflight.START else {})))
    header = '-H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json"'
    return [
        f"curl -X POST {header} \\\n  -d {shlex.quote(json.dumps(body))} {request.build_absolute_uri(f'/api/v1/{where}')}"
        for where, body in calls
    ]
