"""Pages of scans: those that wait, run and have ended, and one with its progress and its report."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404

from cloudstorage.actors import ActorRole
from cloudstorage.console.pages import action, actor_of, fragment, keyset, page, redirect, show
from stores.models import ScanRun, WorkerReach
from stores.services import scan as scans
from stores.states import LIVE_SCAN_STATES, ScanState

FINDINGS = (
    ("missing", "Missing", "files of an item that are gone"),
    ("changed", "Changed", "files that differ from what was known"),
    ("corrupt", "Corrupt", "damaged files and broken chains"),
    ("unreadable", "Unreadable", "files that could not be opened"),
    ("foreign_writes", "Foreign writes", "what somebody else wrote after the conversion"),
    ("conflicts", "Conflicts", "the same identity as on another store, other content: left out until a person decides"),
    ("orphaned", "Orphaned", "files in an item's folder that belong to no item"),
    ("in_flight", "In flight", "being written or deleted just then; the next scan looks again"),
    ("unknown", "Not understood", "listed, never touched"),
)
_LOOKS = {
    ScanState.QUEUED: ("Waiting for a worker", "live"),
    ScanState.RUNNING: ("Reading the store", "live"),
    ScanState.FINISHED: ("Scanned", "good"),
    ScanState.FAILED: ("It did not come to its end", "bad"),
    ScanState.CANCELLED: ("Cancelled", "warn"),
}


def findings_of(report: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """What a report found amiss: heading, meaning, count and examples."""
    return [(label, text, report[name]) for name, label, text in FINDINGS if report.get(name, {}).get("count")]


def _rows() -> Any:
    return ScanRun.objects.select_related("store").defer("catalogue", "store__probe_steps", "store__facts")


def _scan_of(number: uuid.UUID) -> ScanRun:
    row: ScanRun = get_object_or_404(_rows(), uuid=number)
    return row


@page("scans/", "scan_list")
def scan_list(request: HttpRequest) -> HttpResponse:
    """Newest first."""
    rows = _rows().defer("report", "store__scan_report")
    return show(request, "console/scans.html", title="Scans", slice=keyset(request, rows, newest_first=True))


@page("scans/<uuid:number>/", "scan")
def scan(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """How far it is and what it found."""
    row = _scan_of(number)
    heading, tone = _LOOKS[ScanState(row.state)]
    context = {
        "row": row,
        "running": row.state in LIVE_SCAN_STATES,
        "may_cancel": actor_of(request).may(ActorRole.OPERATOR),
        "heading": heading,
        "tone": tone,
        "before": (row.store.scan_report or {}).get("files"),
        "reached": WorkerReach.objects.of_living_workers().filter(store=row.store, ok=True).exists(),
        "report": row.report,
        "findings": findings_of(row.report),
    }
    if "part" in request.GET:
        return fragment(request, "console/scan_live.html", **context)
    return show(request, "console/scan.html", title=f"Scan of {row.store.name}", **context)


@action("scans/<uuid:number>/cancel/", "scan_cancel")
def cancel(request: HttpRequest, number: uuid.UUID) -> HttpResponse:
    """End it; what it has adopted stays."""
    row = scans.cancel_scan(actor=actor_of(request), run=_scan_of(number))
    messages.success(request, f"The scan of {row.store.name} was cancelled.")
    return redirect("console:scan", number)
