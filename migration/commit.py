"""Ends the way back: the originals that a conversion pinned on NFS are released and become cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Sum
from django.template.defaultfilters import pluralize
from django.utils import timezone

from cloudstorage import audit, checkpoints
from cloudstorage.actors import Actor, ActorRole
from migration.conversion import advance_state, insist
from migration.findings import Finding
from migration.models import Conversion, Drain, Verification
from migration.states import ENDED_DRAINS, ConversionEvent, DrainState, VerificationState
from stores.models import KINDS, Transfer
from stores.states import READABLE, RefState, TransferState

ACTION = "conversion.commit"


@dataclass(frozen=True, slots=True)
class CommitPlan:
    """What a commit would end, and what should be known before."""

    object_store: str
    ends: str
    """One sentence."""
    stores: Sequence[dict[str, Any]]
    """name, zone, items, bytes: the originals that are released."""
    promised: dict[str, int]
    """By kind: items that the object store does not have yet. Their originals stay held by the promise, pinned or not."""
    findings: Sequence[Finding]


def plan_commit(*, actor: Actor, conversion: Conversion) -> CommitPlan:
    """What `commit` would end, as the rows are now; changes nothing. Raises Conflict where it is not possible (any more)."""
    actor.require(ActorRole.VIEWER)
    advance_state(conversion, ConversionEvent.COMMIT, dry_run=True)
    target = conversion.object_store
    promised = {
        str(kind): models.ref.objects.filter(store=target, state=RefState.PROMISED).count() for kind, models in KINDS.items()
    }
    stores = _originals(conversion)
    names = ", ".join(row["name"] for row in stores) or "the exports"
    return CommitPlan(
        object_store=target.name,
        ends=f"The way back to NFS ends: the conversion to {target.name} can no longer be rolled back, and the originals on"
        f" {names} become cache, which may be evicted once it is proven elsewhere.",
        stores=stores,
        promised=promised,
        findings=list(findings(conversion, promised=sum(promised.values()))),
    )


def commit(*, actor: Actor, conversion: Conversion, override: Sequence[str] = ()) -> Conversion:
    """End the way back. Nothing is deleted by this: originals are no longer pinned, and those that are not proven on the object
    store stay held by their promise. Raises Conflict when the conversion is not open or is being rolled back, Blocked while
    nobody knows that what was reused is still there; `override` names codes of blockers that are accepted.
    """
    with audit.audited(actor, ActorRole.STORAGE_ADMIN, ACTION, f"conversion {conversion.uuid}"):
        accepted = list(dict.fromkeys(override))
        row = advance_state(conversion, ConversionEvent.COMMIT, ended_at=timezone.now())
        insist(list(_reused(row)), accepted)
        released = [str(uuid) for uuid in row.stores.values_list("store__uuid", flat=True)]
        audit.record(
            actor,
            ACTION,
            f"conversion {row.uuid}",
            changes={"state": (row.was, row.state)},
            object_store=str(row.object_store.uuid),
            released=released,
            overrides=accepted,
        )
        checkpoints.reach("commit.before-commit")
    checkpoints.reach("commit.committed")
    return row


def _originals(conversion: Conversion) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for entry in conversion.stores.select_related("store__zone").order_by("store__name"):
        zone = entry.store.zone.name if entry.store.zone else ""
        found[entry.store_id] = {"name": entry.store.name, "zone": zone, "items": 0, "bytes": 0}
    for models in KINDS.values():
        rows = models.ref.objects.filter(store__in=found, state__in=READABLE).order_by()
        for store_id, items, size in rows.values_list("store").annotate(Count("pk"), Sum("size")):
            found[store_id]["items"] += items
            found[store_id]["bytes"] += size
    return list(found.values())


def findings(conversion: Conversion, *, promised: int) -> Iterable[Finding]:
    """What stands against a commit; `promised` is the number of items that the object store does not have yet."""
    target = conversion.object_store
    drain = Drain.objects.filter(conversion=conversion).first()
    if promised:
        state = f"the drain is {drain.state}" if drain is not None else "no drain was planned"
        message = (
            f"The only copy of {promised} item{pluralize(promised)} is still on NFS ({state}); "
            "after the commit there is no going back for these either."
        )
        held = "Each stays held until its copy on the object store is proven."
        yield Finding("not-proven", "warning", message, f"{_to_prove_them(drain)} {held}")
    if failed := Transfer.objects.filter(target=target, state=TransferState.FAILED).count():
        message = f"Copies to {target.name} that failed and wait for a person: {failed}."
        yield Finding("failed-copies", "warning", message, "See migration_status, mend the causes, then migration_retry.")
    if drain is not None and drain.state == DrainState.PAUSED:
        yield Finding("drain-paused", "warning", f"The drain is paused: {drain.note}", "Read why, then resume or cancel it.")
    yield from _reused(conversion)
    yield from _verification(conversion)


def _to_prove_them(drain: Drain | None) -> str:
    if drain is None:
        return "Plan a drain first, and let it finish."
    if drain.state in ENDED_DRAINS:
        return "Mend and retry what failed, or plan another drain, first."
    return "Let the drain finish first."


def _reused(conversion: Conversion) -> Iterable[Finding]:
    """Items that were Ready before the object store was detached: nobody looked after them until it was attached again."""
    count = sum(conversion.counts.get("reused", {}).values())
    if not count:
        return
    target = conversion.object_store
    listings = Verification.objects.filter(store=target, mode=Verification.LISTING, state=VerificationState.FINISHED)
    last = listings.filter(created__gte=conversion.converted_at).first()
    if last is None:
        message = (
            f"On {target.name} from before it was detached, and nobody has looked since whether it still is: "
            f"{count} item{pluralize(count)}."
        )
        remedy = "Let a worker finish the comparison of its listing, or run migration_verify --listing --wait."
        yield Finding("reused-not-checked", "blocker", message, remedy, overridable=True)
    elif last.findings_count:
        message = f"{target.name} was detached, and {last.findings_count} objects there are not what is known of them."
        remedy = (
            "Look at its verification; scan the store, copy again what is missing, and run migration_verify --listing --wait."
        )
        yield Finding("reused-differs", "blocker", message, remedy, overridable=True)


def _verification(conversion: Conversion) -> Iterable[Finding]:
    target = conversion.object_store
    ended = Verification.objects.filter(store=target, mode=Verification.CONTENT, state=VerificationState.FINISHED)
    last = ended.filter(created__gt=conversion.converted_at).first()
    if last is None:
        message = f"{target.name} has not been read back since the conversion."
        yield Finding("not-verified", "warning", message, "Run migration_verify --wait, and commit when it finds no difference.")
    elif last.findings_count:
        message = f"The last verification of {target.name} found {last.findings_count} differences."
        remedy = "Look at them: as long as the conversion is open, the originals can still be gone back to."
        yield Finding("differences", "warning", message, remedy)
