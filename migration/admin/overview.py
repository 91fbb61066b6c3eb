"""The first page: what is there, what is under way, what went wrong last, and which step comes next."""

from __future__ import annotations

import platform
import sqlite3
from typing import Any

from django import get_version
from django.conf import settings
from django.db import connection
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from cloudstorage.console.pages import is_overview, show
from migration import drain as drains
from migration.admin import next_step
from migration.models import Conversion, Decommission, Drain, Preflight, Verification
from migration.states import LIVE_VERIFICATION_STATES, ConversionState, DecommissionState, DrainState
from stores.admin.work import workers
from stores.models import KINDS, ImageStore, ScanRun, Transfer
from stores.services.counts import by_kind
from stores.services.inventory import names_of
from stores.states import LIVE_SCAN_STATES, RefState, TransferState

STATES = (RefState.READY, RefState.PROMISED, RefState.CREATING, RefState.HIDDEN, RefState.DESTROYING, RefState.FAILED)
UNFINISHED = (DecommissionState.CHECKING, DecommissionState.WAITING, DecommissionState.DELETING)
STORES_SHOWN = 24
WORK_SHOWN = 5
"""Of each kind; their lists show all."""


@is_overview
def overview(request: HttpRequest) -> HttpResponse:
    """Everything at a glance; a fixed number of queries."""
    stores = ImageStore.objects.with_usage().filter(removed=None).select_related("zone").order_by("role", "name")
    shown = list(stores.defer("probe_steps", "facts")[: STORES_SHOWN + 1])
    conversion = Conversion.objects.select_related("object_store").exclude(state=ConversionState.ROLLED_BACK).first()
    drain = None
    if conversion is not None:
        drain = Drain.objects.filter(conversion=conversion).select_related("batch", "conversion__object_store").first()
    failures = list(Transfer.objects.filter(state=TransferState.FAILED).order_by("-pk").select_related("target")[:5])
    names = names_of(failures)
    found_workers = workers()
    alive = sum(found["health"] == "alive" for found in found_workers)
    progress = drains.progress(drain) if drain is not None else None
    return show(
        request,
        "console/overview.html",
        title="Overview",
        stores=shown[:STORES_SHOWN],
        more_stores=len(shown) > STORES_SHOWN,
        conversion=conversion,
        drain=drain,
        progress=progress,
        live=drain is not None and drain.state in {DrainState.CANARY, DrainState.RUNNING},
        refs=_refs_by_state(),
        states=STATES,
        failures=[(row, names.get((row.kind, row.item_id))) for row in failures],
        workers=found_workers,
        alive=alive,
        silent=sum(found["health"] == "silent" for found in found_workers),
        **next_step.shown(request, conversion, drain, progress),
        work=_under_way(),
        versions=_versions(found_workers),
    )


def _under_way() -> list[dict[str, Any]]:
    """What runs, or waits for a worker or a person, beside a drain; a query for each kind of work."""
    found: list[dict[str, Any]] = []
    for what, target, rows in (
        ("Scan", "scan", ScanRun.objects.filter(state__in=LIVE_SCAN_STATES)),
        (
            "Verification",
            "verification",
            Verification.objects.filter(state__in=LIVE_VERIFICATION_STATES).exclude(mode=Verification.RETIRE),
        ),
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
    counts = {state.value: Count("pk", filter=Q(state=state)) for state in STATES}
    found = by_kind({kind: models.ref.objects.all() for kind, models in KINDS.items()}, **counts)
    return [(kind, list(states.items())) for kind, states in found.items()]


def _url(target: str, *arguments: Any) -> str:
    return reverse(f"console:{target}", args=arguments)
