"""Pages of image stores: lists, one store, adding and changing one with the live test, zones."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse

from cloudstorage.actors import ActorRole
from cloudstorage.commands import bytes_from, exact_bytes
from cloudstorage.console.forms import Field, ask, confirm, filled, misplaced
from cloudstorage.console.pages import action, actor_of, draft_of, drop_draft, keep_draft, keyset, page, redirect, show
from cloudstorage.errors import Blocked, ServiceError, plain
from stores.admin.scans import findings_of
from stores.drivers.base import StoreDriver
from stores.models import KINDS, ImageStore, WorkerReach, Zone, heavy
from stores.services import image_stores, region
from stores.services.scan import live_scan, request_scan
from stores.states import LIVE_REF_STATES, Role, StoreState


def store_of(number: uuid.UUID) -> ImageStore:
    """The store that a page is about."""
    return get_object_or_404(ImageStore.objects.select_related("zone"), uuid=number)


# --- lists -----------------------------------------------------------------------------------------------------------------


@page("stores/", "store_list")
def store_list(request: HttpRequest) -> HttpResponse:
    """Secondary Storage: the stores of record."""
    return _list(request, Role.IMAGE)


@page("staging/", "staging_list")
def staging_list(request: HttpRequest) -> HttpResponse:
    """Staging Store: the caches of the zones."""
    return _list(request, Role.IMAGE_CACHE)


def _list(request: HttpRequest, role: Role) -> HttpResponse:
    title = "Secondary Storage" if role == Role.IMAGE else "Staging Store"
    stores = ImageStore.objects.with_usage().filter(role=role, removed=None).select_related("zone")
    found = keyset(request, stores.defer(*heavy()))
    rows = sorted(found.rows, key=lambda store: store.name)
    return show(request, "console/stores.html", title=title, stores=rows, slice=found, staging=role == Role.IMAGE_CACHE)


# --- one store -------------------------------------------------------------------------------------------------------------


@page("stores/<uuid:number>/", "store")
def store_page(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Everything known of a store."""
    store = store_of(number)
    driver = image_stores.driver_class(store.image_provider_name)
    details = image_stores.details_of(store)
    labels = {option.name: option for option in driver.options}
    counts = {kind: dict(_by_state(models.ref, store)) for kind, models in KINDS.items()}
    live = sum(count for found in counts.values() for state, count in found.items() if state in LIVE_REF_STATES)
    report = store.scan_report or {}
    return show(
        request,
        "console/store.html",
        title=store.name,
        store=store,
        driver=about(driver),
        details=[(labels.get(name), name, value, name in labels and labels[name].secret) for name, value in details.items()],
        counts=counts,
        live_refs=live,
        blocks=list(image_stores.forbids_removal(store)),
        findings=findings_of(report),
        report=report,
        reach=WorkerReach.objects.filter(store=store, worker__stopped=None).select_related("worker")[:50],
        can_scan=store.state == StoreState.ATTACHED,
        scan=live_scan(store),
    )


def _by_state(ref: Any, store: ImageStore) -> list[tuple[str, int]]:
    rows = ref.objects.filter(store=store).order_by().values_list("state").annotate(Count("pk"))
    return list(rows)


@action("stores/<uuid:number>/test/", "store_test")
def test(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Try the store out again."""
    steps = image_stores.probe_store(actor=actor_of(request), store=store_of(number))
    bad = [step for step in steps if step.status == "blocker"]
    if bad:
        messages.error(request, f"The test found {len(bad)} blockers; see below.")
    else:
        messages.success(request, f"Tested: {len(steps)} steps, no blocker.")
    return redirect("console:store", number)


@action("stores/<uuid:number>/scan/", "store_scan")
def scan(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Ask for a reading of what lies on it."""
    return redirect("console:scan", request_scan(actor=actor_of(request), store=store_of(number)).uuid)


@action("stores/<uuid:number>/readonly/", "store_readonly", ActorRole.STORAGE_ADMIN)
def readonly(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Switch it to read-only, or back."""
    wanted = request.POST.get("readonly") == "true"
    store = image_stores.update_store(actor=actor_of(request), store=store_of(number), readonly=wanted)
    messages.success(request, f"{store.name} is {'read-only' if store.readonly else 'writable'} now.")
    return redirect("console:store", number)


@page("stores/<uuid:number>/remove/", "store_remove", ActorRole.STORAGE_ADMIN)
def remove(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Ask, then take the store out of the cloud."""
    store = store_of(number)

    def do() -> HttpResponse:
        image_stores.remove_store(actor=actor_of(request), store=store)
        messages.success(request, f"{store.name} was removed. Nothing on it was deleted.")
        return redirect("console:store_list")

    return confirm(
        request,
        do,
        title=f"Remove {store.name}?",
        effect=f"{store.name} ({store.url}) is taken out of the cloud. Nothing on it is deleted; it can be added again.",
        button="Remove the store",
        back=("console:store", number),
    )


# --- adding ----------------------------------------------------------------------------------------------------------------


@page("stores/add/", "store_add", ActorRole.STORAGE_ADMIN)
def add(request: HttpRequest) -> HttpResponse:
    """Choose a provider, fill in what its driver asks for, test it live, save it."""
    names = image_stores.provider_names()
    provider = request.POST.get("provider") or request.GET.get("provider", "")
    if not provider:
        drivers = [about(image_stores.driver_class(name)) for name in names]
        return show(request, "console/store_choose.html", title="Add a store", drivers=drivers)
    driver = image_stores.driver_class(provider)
    fields = _new_store_fields(driver)
    draft = draft_of(request, "store")
    if draft.get("provider") != provider:
        draft = {}
    error: ServiceError | None = None
    if request.method == "POST":
        draft = {**draft, **entered(request, fields, draft), "provider": provider}
        try:
            return _try(request, driver, draft) if request.POST.get("do") == "test" else _save(request, driver, draft)
        except ServiceError as refused:
            error = refused
            if isinstance(refused, Blocked):
                draft["steps"] = [plain(step) for step in refused.findings]
            keep_draft(request, "store", draft)
    return show(
        request,
        "console/store_add.html",
        title=f"Add a store: {driver.label}",
        status=error.status if error else 200,
        driver=about(driver),
        fields=with_kept(filled(fields, draft, error), draft),
        error=misplaced(fields, error),
        refused=error,
        steps=draft.get("steps", []),
        equivalent=_command(driver, draft),
    )


def about(driver: type[StoreDriver]) -> dict[str, str]:
    """What a page says of a driver; the class itself would be called by a template."""
    return {"name": driver.name, "label": driver.label, "scope": driver.scope, "url_help": driver.url_help}


def _new_store_fields(driver: type[StoreDriver]) -> list[Field]:
    fields = [Field("name", "Name", "How people will call it. Empty: its address."), Field("url", "URL", driver.url_help)]
    if driver.scope == "ZONE":
        zones = [(str(zone.uuid), zone.name) for zone in Zone.objects.all()[:500]]
        roles = (("Image", "Secondary storage: items are kept here"), ("ImageCache", "Staging store: a cache of its zone"))
        fields.append(Field("zone", "Zone", "The zone that the export serves.", "choice", required=True, choices=zones))
        fields.append(Field("role", "Use as", "", "choice", "Image", choices=roles))
    return [*fields, *option_fields(driver)]


def option_fields(driver: type[StoreDriver]) -> list[Field]:
    """The fields of a driver's options."""
    return [
        Field(
            option.name,
            option.label,
            option.help,
            "secret" if option.secret else option.kind,
            option.default,
            required=option.required,
            choices=tuple((choice, choice) for choice in option.choices),
        )
        for option in driver.options
    ]


def entered(request: HttpRequest, fields: list[Field], draft: Mapping[str, Any]) -> dict[str, str]:
    """What the form sent; a secret left empty is the one that is kept already, an unticked box is false."""
    found = {}
    for field in fields:
        value = request.POST.get(field.name, "")
        if field.kind == "boolean":
            value = "true" if value else "false"
        elif field.kind == "secret" and not value:
            value = str(draft.get(field.name, ""))
        found[field.name] = value
    return found


def with_kept(fields: list[Field], draft: Mapping[str, Any]) -> list[Field]:
    """Mark the secrets that need not be entered again."""
    return [replace(field, kept=field.kind == "secret" and bool(draft.get(field.name))) for field in fields]


def details_from(driver: type[StoreDriver], draft: Mapping[str, Any]) -> dict[str, str]:
    """The driver's options out of a draft."""
    return {option.name: draft[option.name] for option in driver.options if draft.get(option.name)}


def _zone(draft: Mapping[str, Any]) -> Zone | None:
    return region.find_zone(draft["zone"]) if draft.get("zone") else None


def _try(request: HttpRequest, driver: type[StoreDriver], draft: dict[str, Any]) -> HttpResponse:
    details = details_from(driver, draft)
    steps = image_stores.test_store(
        actor=actor_of(request), provider=driver.name, url=draft["url"], details=details, zone=_zone(draft)
    )
    keep_draft(request, "store", {**draft, "steps": [step_as_json(step) for step in steps]})
    return redirect(f"{reverse('console:store_add')}?provider={driver.name}#test")


def step_as_json(step: Any) -> dict[str, Any]:
    """A probe's step without its facts."""
    return {key: value for key, value in asdict(step).items() if key in {"name", "status", "message", "remedy", "seconds"}}


def _save(request: HttpRequest, driver: type[StoreDriver], draft: dict[str, Any]) -> HttpResponse:
    store = image_stores.add_store(
        actor=actor_of(request),
        name=draft["name"],
        provider=driver.name,
        url=draft["url"],
        details=details_from(driver, draft),
        zone=_zone(draft),
        role=draft.get("role") or Role.IMAGE,
    )
    drop_draft(request, "store")
    advice = "Scan it now, so that what lies on it is known." if driver.scope == "ZONE" else ""
    messages.success(request, f"{store.name} was added. {advice}".strip())
    return redirect("console:store", store.uuid)


def _command(driver: type[StoreDriver], draft: Mapping[str, Any]) -> str:
    words = ["manage.py store_add", "--provider", driver.name]
    words += ["--name", _quote(draft.get("name") or "NAME"), "--url", _quote(draft.get("url") or "URL")]
    if driver.scope == "ZONE":
        words += ["--zone", draft.get("zone") or "ZONE"]
    return " ".join([*words, *detail_words(driver, draft)])


def detail_words(driver: type[StoreDriver], draft: Mapping[str, Any]) -> list[str]:
    """A command's arguments for the options that differ from their defaults; secrets come from files."""
    words = []
    for option in driver.options:
        if option.secret:
            words += ["--secret-file", f"{option.name}=FILE"]
        elif (value := draft.get(option.name)) and value != option.default:
            words += ["--detail", _quote(f"{option.name}={value}")]
    return words


def _quote(text: str) -> str:
    return shlex.quote(text)


# --- changing --------------------------------------------------------------------------------------------------------------


@page("stores/<uuid:number>/edit/", "store_edit", ActorRole.STORAGE_ADMIN)
def edit(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """Change name, read limit and options; new options must pass the live test."""
    store = store_of(number)
    driver = image_stores.driver_class(store.image_provider_name)
    options = option_fields(driver)
    fields = [
        Field("name", "Name", required=True),
        Field(
            "read_limit", "Read limit", "Bytes per second that all transfers together may read from it, like 100M. Empty: none."
        ),
        *options,
    ]
    present: dict[str, Any] = image_stores.details_of(store)
    secret = {detail.name for detail in store.details.all() if detail.secret}
    present |= {"name": store.name, "read_limit": exact_bytes(store.read_limit)}
    error: ServiceError | None = None
    if request.method == "POST":
        given = entered(request, fields, {})
        try:
            names = {option.name for option in options}
            changed = {name: value for name, value in given.items() if name in names and value != present.get(name, "")}
            image_stores.update_store(
                actor=actor_of(request),
                store=store,
                name=given["name"],
                details=changed or None,
                read_limit=bytes_from(given["read_limit"] or "none", "read_limit"),
            )
        except ServiceError as refused:
            error, present = refused, given
        else:
            messages.success(request, f"{store.name} was changed.")
            return redirect("console:store", number)
    steps = [plain(step) for step in error.findings] if isinstance(error, Blocked) else []
    kept = dict.fromkeys(secret, "kept")
    return show(
        request,
        "console/store_edit.html",
        title=f"Change {store.name}",
        status=error.status if error else 200,
        store=store,
        fields=with_kept(filled(fields, present, error), kept),
        error=misplaced(fields, error),
        steps=steps,
    )


@page("zones/add/", "zone_add", ActorRole.STORAGE_ADMIN)
def zone_add(request: HttpRequest) -> HttpResponse:
    """Name a new zone."""
    fields = [Field("name", "Name", "As the cloud calls it.", required=True)]

    def do(given: Mapping[str, Any]) -> HttpResponse:
        zone = region.add_zone(actor=actor_of(request), name=given.get("name", ""))
        messages.success(request, f"The zone {zone.name} was added. Add its NFS store next.")
        return redirect("console:store_list")

    return ask(
        request,
        fields,
        do,
        title="Add a zone",
        intro="A zone is a failure and locality domain of the cloud. NFS stores belong to one; object stores serve all.",
        button="Add the zone",
        back=("console:store_list",),
    )
