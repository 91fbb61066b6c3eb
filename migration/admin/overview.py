"""The first page: what is there, what is under way, what went wrong last, and which step comes next."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from cloudstorage.console.pages import is_overview, show
from migration import drain as drains
from migration.conversion import open_conversion
from migration.models import Conversion, Drain
from migration.states import ConversionState, DrainState
from stores.admin.work import names_of, workers
from stores.models import KINDS, ImageStore, Transfer, Zone
from stores.states import RefState, Role, TransferState

STATES = (RefState.READY, RefState.PROMISED, RefState.CREATING, RefState.HIDDEN, RefState.DESTROYING, RefState.FAILED)


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
        step=_next_step(shown, conversion, drain, alive=any(found["health"] == "alive" for found in found_workers)),
        version=settings.VERSION,
    )


def _refs_by_state() -> list[tuple[str, list[tuple[str, int]]]]:
    found: list[tuple[str, list[tuple[str, int]]]] = []
    for kind, models in KINDS.items():
        counts = dict(models.ref.objects.order_by().values_list("state").annotate(Count("pk")))
        found.append((kind.value, [(state.value, counts.get(state, 0)) for state in STATES]))
    return found


def _next_step(
    stores: list[ImageStore], conversion: Conversion | None, drain: Drain | None, *, alive: bool
) -> dict[str, Any] | None:
    """The one thing to do next, as text and the page where it is done: the first of these that is not done yet."""
    unscanned = next((store for store in stores if store.scanned_at is None and store.scope == "ZONE"), None)
    on_nfs = any(store.role == Role.IMAGE and store.scope == "ZONE" for store in stores)
    steps = (
        (not Zone.objects.exists(), _first_zone),
        (not stores, _first_store),
        (not alive, _worker),
        (unscanned is not None, lambda: _scan(unscanned)),
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


def _way_home(conversion: Any) -> dict[str, Any]:
    text = "The region is on its way back to NFS. Every item stays readable; the page says how far it is and what it waits for."
    return _step("Follow the roll-back", text, "rollback", conversion.uuid)


def _plan(conversion: Any) -> dict[str, Any]:
    text = "The region writes to the object store already. Plan the drain that moves what is still on NFS."
    return _step("Plan the drain", text, "conversion", conversion.uuid)


def _start(drain: Any) -> dict[str, Any]:
    return _step("Start the drain", "It is planned; nothing moves before it is started.", "drain", drain.uuid)


def _step(title: str, text: str, target: str, *arguments: Any) -> dict[str, Any]:
    return {"title": title, "text": text, "url": reverse(f"console:{target}", args=arguments)}
