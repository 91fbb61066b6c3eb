"""The first page: what is there, what is under way, what went wrong last, and which step comes next."""

from __future__ import annotations

import platform
import sqlite3
from typing import Any

from django import get_version
from django.conf import settings
from django.db import connection
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from cloudstorage.console.pages import actor_of, is_overview, show
from migration import drain as drains
from migration.admin.verifications import LIVE
from migration.admin.wizard import where_to_go_on
from migration.conversion import open_conversion
from migration.models import Conversion, Decommission, Drain, Preflight, Verification
from migration.states import ConversionState, DecommissionState, DrainState
from stores.admin.work import workers
from stores.models import KINDS, ImageStore, ScanRun, Transfer, Zone
from stores.services.inventory import names_of
from stores.states import LIVE_SCAN_STATES, RefState, Role, TransferState

STATES = (RefState.READY, RefState.PROMISED, RefState.CREATING, RefState.HIDDEN, RefState.DESTROYING, RefState.FAILED)
UNFINISHED = (DecommissionState.CHECKING, DecommissionState.WAITING, DecommissionState.DELETING)
WORK_SHOWN = 5
"""Of each kind; their lists show all."""


@is_overview
def overview(request: HttpRequest) -> HttpResponse:
    """Everything at a glance; a fixed number of queries."""
    stores = ImageStore.objects.with_usage().filter(removed=None).select_related("zone").order_by("role", "name")
    shown = list(stores.defer("probe_steps", "facts")[:24])
    known = Conversion.objects.select_related("object_store").exclude(state=ConversionState.ROLLED_BACK)
    conversion = open_conversion() or known.first()
    drain = None
    if conversion is not None:
        drain = Drain.objects.filter(conversion=conversion).select_related("batch", "conversion__object_store").first()
    failures = list(Transfer.objects.filter(state=TransferState.FAILED).order_by("-pk").select_related("target")[:5])
    names = names_of(failures)
    found_workers = workers()
    return show(
        request,
        "console/overview.html",
        title="Overview",
        stores=shown,
        conversion=conversion,
        drain=drain,
        progress=drains.progress(drain) if drain is not None else None,
        live=drain is not None and drain.state in {DrainState.CANARY, DrainState.RUNNING},
        refs=_refs_by_state(),
        states=STATES,
        failures=[(row, names.get((row.kind, row.item_id))) for row in failures],
        workers=found_workers,
        alive=sum(found["health"] == "alive" for found in found_workers),
        silent=sum(found["health"] == "silent" for found in found_workers),
        step=_next_step(
            shown,
            conversion,
            drain,
            where_to_go_on(actor_of(request)),
            alive=any(found["health"] == "alive" for found in found_workers),
        ),
        work=_under_way(),
        versions=_versions(found_workers),
    )


def _under_way() -> list[dict[str, Any]]:
    """What runs, or waits for a worker or a person, beside a drain; a query for each kind of work."""
    found: list[dict[str, Any]] = []
    for what, target, rows in (
        ("Scan", "scan", ScanRun.objects.filter(state__in=LIVE_SCAN_STATES)),
        ("Verification", "verification", Verification.objects.filter(state__in=LIVE).exclude(mode=Verification.RETIRE)),
        ("Retirement", "retirement", Decommission.objects.filter(state__in=UNFINISHED)),
    ):
        named = rows.order_by("-pk").values_list("uuid", "store__name", "state", "created")[:WORK_SHOWN]
        found += [{"what": what, "url": _url(target, number), "of": name, "state": state, "since": since}
                  for number, name, state, since in named]  # fmt: skip
    reports = Preflight.objects.filter(finished=None).order_by("-pk").values_list("uuid", "name", "url", "created")[:WORK_SHOWN]
    found += [{"what": "Preflight", "url": _url("preflight", number), "of": name or url, "state": "Running", "since": since}
              for number, name, url, since in reports]  # fmt: skip
    return found


def _versions(found_workers: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(what, version, what is wrong with it)."""
    running = sorted({found["worker"].version for found in found_workers if found["health"] == "alive"})
    other = "Workers of another version are at work: restart them." if set(running) - {settings.VERSION} else ""
    sqlite = connection.vendor == "sqlite"
    server = sqlite3.sqlite_version if sqlite else ".".join(map(str, divmod(connection.pg_version, 10000)))  # type: ignore[attr-defined]  # PostgreSQL's own
    return [
        ("cloudstorage", settings.VERSION, ""),
        ("Workers", ", ".join(running), other),
        ("Database", f"{connection.display_name} {server}", ""),
        ("Python", platform.python_version(), ""),
        ("Django", get_version(), ""),
    ]


def _refs_by_state() -> list[tuple[str, list[tuple[str, int]]]]:
    found: list[tuple[str, list[tuple[str, int]]]] = []
    for kind, models in KINDS.items():
        counts = dict(models.ref.objects.order_by().values_list("state").annotate(Count("pk")))
        found.append((kind.value, [(state.value, counts.get(state, 0)) for state in STATES]))
    return found


def _next_step(
    stores: list[ImageStore], conversion: Conversion | None, drain: Drain | None, draft: Any, *, alive: bool
) -> dict[str, Any] | None:
    """The one thing to do next, as text and the page where it is done: the first of these that is not done yet."""
    unscanned = next((store for store in stores if store.scanned_at is None and store.scope == "ZONE"), None)
    on_nfs = any(store.role == Role.IMAGE and store.scope == "ZONE" for store in stores)
    steps = (
        (not Zone.objects.exists(), _first_zone),
        (not stores, _first_store),
        (not alive, _worker),
        (unscanned is not None, lambda: _scan(unscanned)),
        (draft is not None, lambda: _go_on(draft)),
        (conversion is None and on_nfs, _convert),
        (conversion is not None and conversion.state == ConversionState.ROLLING_BACK, lambda: _way_home(conversion)),
        (conversion is not None and drain is None, lambda: _plan(conversion)),
        (drain is not None and drain.state == DrainState.PLANNED, lambda: _start(drain)),
    )
    return next((step() for wanted, step in steps if wanted), None)


def _first_zone() -> dict[str, Any]:
    return _step("Add a zone", "NFS stores belong to a zone of the cloud, so the first thing it needs is a zone.", "zone_add")


def _first_store() -> dict[str, Any]:
    text = "Add the NFS export that the cloud uses today. It is tested before anything is saved, and nothing on it is changed."
    return _step("Add the NFS store", text, "store_add")


def _scan(store: Any) -> dict[str, Any]:
    text = f"{store.name} was never scanned: cloudstorage does not know yet what lies on it."
    return _step(f"Scan {store.name}", text, "store", store.uuid)


def _worker() -> dict[str, Any]:
    text = "Nothing is scanned, copied or verified without one. On a host that mounts the exports, run: manage.py worker"
    return _step("Start a worker", text, "worker_list")


def _convert() -> dict[str, Any]:
    text = "Choose an object store, read the preflight's report, then switch the region in seconds. Every item stays readable."
    return _step("Move to an object store", text, "wizard")


def _go_on(draft: Any) -> dict[str, Any]:
    text = "What you entered on the way to an object store is kept. Nothing was changed yet."
    return {"title": "Go on with your draft", "text": text, "url": draft[1]}


def _way_home(conversion: Any) -> dict[str, Any]:
    text = "The region is on its way back to NFS. Every item stays readable; the page says how far it is and what it waits for."
    return _step("Follow the roll-back", text, "rollback", conversion.uuid)


def _plan(conversion: Any) -> dict[str, Any]:
    text = "The region writes to the object store already. Plan the drain that moves what is still on NFS."
    return _step("Plan the drain", text, "conversion", conversion.uuid)


def _start(drain: Any) -> dict[str, Any]:
    return _step("Start the drain", "It is planned; nothing moves before it is started.", "drain", drain.uuid)


def _step(title: str, text: str, target: str, *arguments: Any) -> dict[str, Any]:
    return {"title": title, "text": text, "url": _url(target, *arguments)}


def _url(target: str, *arguments: Any) -> str:
    return reverse(f"console:{target}", args=arguments)
