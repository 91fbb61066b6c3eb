"""The one list of what happened to an item: from its rows, from what is noted only here, and from the audit trail."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet

from cloudstorage.commands import human_age, human_bytes, human_seconds
from cloudstorage.models import AuditEvent
from stores.models import KINDS, Hold, Item, ItemEvent, Kind, Transfer, heavy
from stores.states import Proof, RefState, TransferState

if TYPE_CHECKING:
    from stores.services.transfers.jobs import Job

ROWS = 200
"""Of each source, the newest so many before the page's end are looked at."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened, or was done."""

    at: datetime
    what: str
    words: str = ""
    store: str = ""
    worker: str = ""
    actor: str = ""
    """Who did it; empty where nobody asked for it by itself."""
    outcome: str = "done"
    """done, failed or refused"""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Some of what happened, newest first, and where it goes on."""

    happenings: Sequence[Happening]
    before: datetime | None
    """Older ones are before this; None where there are none."""


def note_withdrawn(kind: Kind, ref_ids: Collection[int], reason: str) -> None:
    """What was said of the bytes of these refs is taken back. The caller owns the transaction."""
    rows = KINDS[kind].ref.objects.filter(pk__in=ref_ids).values_list("item_id", "store_id")
    ItemEvent.objects.bulk_create(
        [ItemEvent(kind=kind, item_id=item, what="proof withdrawn", store_id=store, words=reason) for item, store in rows],
        batch_size=500,
    )


def note_attempt(job: Job, what: str, words: str, remedy: str) -> None:
    """An attempt at a copy that did not end well; one that does is on its transfer."""
    row = job.transfer
    ItemEvent.objects.create(
        kind=row.kind, item_id=row.item_id, what=f"{what} (attempt {row.attempts})", store_id=row.target_id,
        worker=str(row.worker or ""), words=words, remedy=remedy,
    )  # fmt: skip


def note_lost_workers(lapsed: QuerySet[Transfer]) -> None:
    """These transfers' leases have run out: whoever ran them has not answered since."""
    rows = lapsed.select_related("worker").only("kind", "item_id", "target_id", "attempts", "worker__hostname", "worker__pid")
    ItemEvent.objects.bulk_create(
        [
            ItemEvent(
                kind=row.kind, item_id=row.item_id, what=f"worker lost (attempt {row.attempts})", store_id=row.target_id,
                worker=str(row.worker or ""), words="It stopped answering while it copied. Another goes on from where it was.",
            )
            for row in rows
        ],
        batch_size=500,
    )  # fmt: skip


def timeline(kind: Kind, item: Item, *, audit: bool, before: datetime | None = None, size: int = 30) -> Timeline:
    """What happened to an item, newest first; `audit`: with what people did, for those who may read it.

    A fixed number of queries. What happened at one instant stays on one page.
    """
    found = [*_of_item(item), *_of_refs(kind, item, before), *_of_transfers(kind, item, before), *_noted(kind, item, before)]
    found += _held(kind, item)
    if audit:
        found += _audited(kind, item, before)
    found = [one for one in found if before is None or one.at < before]
    found.sort(key=lambda one: one.at, reverse=True)
    if len(found) <= size:
        return Timeline(found, None)
    last = found[size - 1].at
    shown = [one for one in found if one.at >= last]
    return Timeline(shown, last if len(shown) < len(found) else None)


def _earlier(rows: QuerySet[Any], column: str, before: datetime | None) -> QuerySet[Any]:
    rows = rows.filter(**{f"{column}__lt": before}) if before is not None else rows
    return rows.order_by(f"-{column}", "-pk")[:ROWS]


def _of_item(item: Any) -> Iterator[Happening]:
    yield Happening(item.created, "known", "Found by a scan, or begun by a client.")
    if item.removed is not None:
        yield Happening(item.removed, "deleted", "Its bytes are removed; on an export they wait in the trash for the grace time.")


def _of_refs(kind: Kind, item: Item, before: datetime | None) -> Iterator[Happening]:
    rows = KINDS[kind].ref.objects.filter(item_id=item.pk).select_related("store")
    fields = ("state", "proof", "proven_at", "error_str", "created", "updated", "sha256", "store__name", "store__scope")
    for ref in _earlier(rows.only(*fields), "created", before):
        store = ref.store.name
        if ref.proof == Proof.ADOPTED:
            yield Happening(ref.created, "found", "A scan found it there; nobody has hashed it yet.", store)
        else:
            what = "promised or begun" if ref.store.scope == "REGION" else "found or begun"
            yield Happening(ref.created, what, "From then on it was there, or was to be.", store)
        if ref.proven_at and ref.proof != Proof.ADOPTED:
            yield Happening(ref.proven_at, f"proven: {ref.proof}", f"SHA-256 {ref.sha256}" if ref.sha256 else "", store)
        if ref.state == RefState.DESTROYED:
            yield Happening(ref.updated, "removed", "It is not there any more.", store)
        elif ref.state in {RefState.FAILED, RefState.HIDDEN}:
            yield Happening(ref.updated, ref.state.lower(), ref.error_str, store, outcome="failed" if ref.error_str else "done")


def _of_transfers(kind: Kind, item: Item, before: datetime | None) -> Iterator[Happening]:
    rows = Transfer.objects.filter(kind=kind, item_id=item.pk)
    rows = rows.select_related("source", "target", "worker", "copied_by")
    for row in _earlier(rows.defer(*heavy("source", "target")), "created", before):
        where = f"{row.source.name} → {row.target.name}"
        yield Happening(row.created, "copy planned", "As one of the canary." if row.canary else "", where)
        if row.state == TransferState.RUNNING and row.started_at:
            done = f"{human_bytes(row.bytes_done)} of {human_bytes(row.bytes_total)}."
            yield Happening(row.started_at, f"copying (attempt {row.attempts})", done, where, str(row.worker or ""))
        if row.finished_at is None:
            continue
        if row.state == TransferState.PROVEN:
            worker = str(row.copied_by or "")
            took = f"It took {human_seconds((row.finished_at - row.started_at).total_seconds())}." if row.started_at else ""
            yield Happening(row.finished_at, f"copied and proven: {row.proof}", took, where, worker)
        elif row.state == TransferState.CANCELLED:
            yield Happening(row.finished_at, "copy cancelled", row.error, where)
        elif row.state == TransferState.FAILED:
            words, remedy = f"{row.error_cause}: {row.error}", row.remedy
            yield Happening(row.finished_at, "copy failed", words, where, outcome="failed", remedy=remedy)


def _noted(kind: Kind, item: Item, before: datetime | None) -> Iterator[Happening]:
    rows = ItemEvent.objects.filter(kind=kind, item_id=item.pk).select_related("store")
    columns = ("at", "what", "worker", "words", "remedy", "store__name")
    for row in _earlier(rows.only(*columns), "at", before):
        store = row.store.name if row.store else ""
        yield Happening(row.at, row.what, row.words, store, row.worker, outcome="failed", remedy=row.remedy)


def _held(kind: Kind, item: Item) -> Iterator[Happening]:
    refs = dict(KINDS[kind].ref.objects.filter(item_id=item.pk).values_list("pk", "store__name")[:ROWS])
    for hold in Hold.objects.filter(kind=kind, ref_id__in=refs).order_by("-pk")[:ROWS]:
        span = f", for {human_age((hold.expires - hold.created).total_seconds())} at most" if hold.expires else ""
        yield Happening(hold.created, f"held: {hold.reason}", f"By {hold.owner}{span}.", refs[hold.ref_id])


def _audited(kind: Kind, item: Item, before: datetime | None) -> Iterator[Happening]:
    for event in _earlier(AuditEvent.objects.filter(target=f"{kind}:{item.uuid}"), "at", before):
        words = event.details.get("reason", "") if event.outcome == "refused" else ""
        yield Happening(event.at, event.action, str(words), actor=event.actor, outcome=event.outcome)


__all__ = ["Happening", "Timeline", "note_attempt", "note_lost_workers", "note_withdrawn", "timeline"]
