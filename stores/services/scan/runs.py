"""Starts scans and keeps account of them: asked for, taken up or run at once, cancelled, freed when their process died."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.errors import Busy, Conflict
from stores.models import ImageStore, ScanRun
from stores.services.scan.catalogue import Catalogue
from stores.services.scan.lease import lease_end
from stores.services.scan.report import ScanReport
from stores.services.scan.run import perform
from stores.states import (
    LIVE_SCAN_STATES,
    SCAN_TRANSITIONS,
    ScanEvent,
    ScanState,
    StoreState,
    allowed_events,
    next_state,
    sources,
)

MAX_ATTEMPTS = 3
"""A scan whose process died so often is not taken up again by itself."""

_DIED = "The process that ran it died, or was silent for too long."
_FREE = {"token": None, "lease_until": None}


def request_scan(*, actor: Actor, store: ImageStore, catalogue: Mapping[str, Any] | None = None) -> ScanRun:
    """Ask for a scan, which the next worker that reaches the store takes up.

    `catalogue` names items as `scan.catalogue` describes. Raises Busy while another scan of the store waits or runs, Conflict for
    a store that is not attached, Invalid for the catalogue.
    """
    with audited(actor, ActorRole.OPERATOR, "store.scan", store.name):
        return _begin(actor, store, catalogue)


def scan_store(*, actor: Actor, store: ImageStore, catalogue: Mapping[str, Any] | None = None) -> ScanReport:
    """Scan a store here and now. May be killed at any point and run again.

    The report is also kept in the run and in `store.scan_report`. Raises what `request_scan` and `perform` raise.
    """
    with audited(actor, ActorRole.OPERATOR, "store.scan", store.name):
        run = _begin(actor, store, catalogue)
        _start(run)
    return perform(run)


def cancel_scan(*, actor: Actor, run: ScanRun) -> ScanRun:
    """End a scan: what it has adopted stays. Raises Conflict when it has ended already."""
    with audited(actor, ActorRole.OPERATOR, "store.scan.cancel", run.store.name):
        live = ScanRun.objects.filter(pk=run.pk, state__in=sources(SCAN_TRANSITIONS, ScanEvent.CANCEL))
        was = live.select_for_update().values_list("state", flat=True).first()
        cancelled = live.update(state=ScanState.CANCELLED, finished_at=Now(), catalogue=None, **_FREE)
        run.refresh_from_db()
        if not cancelled:
            message = f"This scan of {run.store.name} is {run.state}, so it cannot be cancelled."
            allowed = allowed_events(SCAN_TRANSITIONS, ScanState(run.state))
            raise Conflict(message, remedy="Nothing is to be done.", allowed=allowed)
        record(actor, "store.scan.cancel", run.store.name, changes={"state": (was, run.state)}, run=str(run.uuid))
    return run


def live_scan(store: ImageStore) -> ScanRun | None:
    """The scan of the store that waits or runs."""
    return ScanRun.objects.filter(store=store, state__in=LIVE_SCAN_STATES).first()


def take_waiting(worker_id: int, *, limit: int) -> list[ScanRun]:
    """Start up to `limit` scans that wait and whose stores this worker reaches; the caller must `perform` each."""
    if limit <= 0:
        return []
    reached = ImageStore.objects.attached().filter(reach__worker_id=worker_id, reach__ok=True)
    waiting = ScanRun.objects.filter(state=ScanState.QUEUED, store__in=reached.values("pk"))
    return [run for run in waiting.select_related("store").order_by("pk")[:limit] if _start(run)]


def free_abandoned() -> None:
    """Let scans whose process died be taken up again, a few times; and end those whose store is not there to be scanned."""
    lapsed = _lapsed()
    lapsed.filter(attempts__gte=MAX_ATTEMPTS).update(
        **_failed(f"{_DIED} That happened {MAX_ATTEMPTS} times.", "Look at the worker's log, then scan again.")
    )
    lapsed.update(state=next_state(SCAN_TRANSITIONS, ScanState.RUNNING, ScanEvent.RELEASE), **_FREE)
    gone = ScanRun.objects.filter(state=ScanState.QUEUED).exclude(store__state=StoreState.ATTACHED)
    gone.update(**_failed("The store was detached or removed before the scan began.", "Attach the store, then scan again."))


def _begin(actor: Actor, store: ImageStore, catalogue: Mapping[str, Any] | None) -> ScanRun:
    # Its row is locked: who removes the store was before us, or finds the scan.
    state = ImageStore.objects.select_for_update(no_key=True).values_list("state", flat=True).get(pk=store.pk)
    if state != StoreState.ATTACHED:
        raise Conflict(f"{store.name} is {state}, so it is not scanned.", remedy="Attach the store first.")
    if catalogue is not None:
        Catalogue.parse(catalogue)
    _lapsed().filter(store=store).update(**_failed(_DIED, "The scan that was started after it goes on from there."))
    try:
        with transaction.atomic():
            run = ScanRun.objects.create(store=store, actor=actor.name, catalogue=catalogue)
    except IntegrityError:
        raise _busy(store) from None
    record(actor, "store.scan", store.name, run=str(run.uuid))
    return run


def _busy(store: ImageStore) -> Busy:
    if ScanRun.objects.filter(store=store, state=ScanState.QUEUED).exists():
        return Busy(
            f"Another scan of {store.name} waits for a worker.",
            remedy="See that a worker runs and reaches the store (manage.py worker), or cancel that scan.",
        )
    return Busy(
        f"Another scan of {store.name} is running.",
        remedy="Wait for it to end, or cancel it; if its process died, the next scan can start within two minutes.",
    )


def _start(run: ScanRun) -> bool:
    """Become the one that runs it; False where somebody else was faster."""
    token = uuid.uuid4()
    started = ScanRun.objects.filter(pk=run.pk, state=ScanState.QUEUED).update(
        state=next_state(SCAN_TRANSITIONS, ScanState.QUEUED, ScanEvent.START),
        token=token,
        lease_until=lease_end(),
        started_at=timezone.now(),
        attempts=F("attempts") + 1,
        files=0,
    )
    run.token = token
    return bool(started)


def _lapsed() -> Any:
    return ScanRun.objects.filter(Q(lease_until=None) | Q(lease_until__lt=Now()), state=ScanState.RUNNING)


def _failed(error: str, remedy: str) -> dict[str, Any]:
    return {"state": ScanState.FAILED, "finished_at": Now(), "error": error, "remedy": remedy, "catalogue": None, **_FREE}
