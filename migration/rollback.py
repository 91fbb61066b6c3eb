"""Takes a converted region back to NFS: what is on the object store only comes home, then one transaction turns all back."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import OperationalError, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage import audit, checkpoints
from cloudstorage.actors import SYSTEM, Actor, ActorRole
from cloudstorage.errors import Conflict
from migration import drain, homeward, standstill
from migration.conversion import advance_state, insist
from migration.homeward import Homes, RollbackPlan, Stranded, homes_of, survey
from migration.models import Conversion, Rollback
from migration.states import ConversionEvent, ConversionState
from stores.models import KINDS, Hold, ImageStore, Template, TemplateZoneRef, Transfer, TransferBatch
from stores.services import holds, transfers
from stores.states import (
    LIVE_TRANSFER_STATES,
    REF_TRANSITIONS,
    STORE_TRANSITIONS,
    RefEvent,
    RefState,
    StoreEvent,
    StoreState,
    TransferState,
    next_state,
    sources,
)

log = logging.getLogger(__name__)

ACTION = "conversion.rollback"


_LAST_ROUND = 100
"""So few new copies, or no fewer than half of all before, and nothing further is let in: a busy cloud would never be home."""


class _TooEarly(Exception):
    """The switch found that something is not at home; it changed nothing."""


def plan_rollback(*, actor: Actor, conversion: Conversion) -> RollbackPlan:
    """What a roll-back would do, as everything is now; changes nothing. Raises Conflict where it is too late."""
    actor.require(ActorRole.VIEWER)
    row = advance_state(conversion, ConversionEvent.START_ROLLBACK, dry_run=True)
    return survey(row)


def start(*, actor: Actor, conversion: Conversion, override: Sequence[str] = ()) -> Rollback:
    """Begin the way back; where nothing has to be copied it has ended when this returns, else the workers' clock ends it.

    Raises Conflict when it is too late, Blocked with the findings when a target is full or something cannot go home; in every one
    of these nothing was changed. May be killed anywhere: what has begun goes on by itself, or is abandoned.
    """
    accepted = list(dict.fromkeys(override))
    with audit.refusals_noted(actor, ActorRole.STORAGE_ADMIN, ACTION, f"conversion {conversion.uuid}"):
        plan = plan_rollback(actor=actor, conversion=conversion)
        insist(plan.findings, accepted)
        with transaction.atomic():
            row = _begin(actor, conversion, accepted, plan)
            checkpoints.reach("rollback.before-start")
    checkpoints.reach("rollback.started")
    if sum(entry["items"] for entry in plan.home.values()) <= homeward.CHUNK:  # else it takes its time, which nobody waits for
        try:
            advance(row)
        except (Conflict, OperationalError):
            log.exception("roll-back %s has begun; its next turn comes by itself", row.uuid)
    row.refresh_from_db()
    return row


def _begin(actor: Actor, conversion: Conversion, accepted: list[str], plan: RollbackPlan) -> Rollback:
    row = advance_state(conversion, ConversionEvent.START_ROLLBACK)
    ended = drain.end_for_rollback(row)
    store = row.object_store
    batch = TransferBatch.objects.create(name=f"roll-back from {store.name}"[:255])
    transfers.open_batch(batch.pk, only_canary=False)
    rollback = Rollback.objects.create(
        conversion=row, batch=batch, actor=actor.name, overrides=accepted, former_readonly=store.readonly
    )
    audit.record(
        actor,
        ACTION,
        f"conversion {row.uuid}",
        changes={"state": (row.was, row.state)},
        rollback=str(rollback.uuid),
        object_store=str(store.uuid),
        home=plan.home,
        drains_cancelled=ended,
        overrides=accepted,
    )
    return rollback


def retry(*, actor: Actor, conversion: Conversion) -> int:
    """Try the copies home that failed again; returns how many."""
    row = live(conversion)
    with audit.audited(actor, ActorRole.STORAGE_ADMIN, f"{ACTION}.retry", f"conversion {conversion.uuid}"):
        count = transfers.retry(actor=actor, transfers=Transfer.objects.filter(batch=row.batch_id), target=f"rollback:{row.uuid}")
        Rollback.objects.filter(pk=row.pk).update(note="")
        audit.record(actor, f"{ACTION}.retry", f"conversion {conversion.uuid}", count=count)
    return count


def abandon(*, actor: Actor, conversion: Conversion) -> Conversion:
    """Stay converted after all. What has come home stays there as a further copy; a new drain moves on."""
    with audit.audited(actor, ActorRole.STORAGE_ADMIN, f"{ACTION}.abandon", f"conversion {conversion.uuid}"):
        row = advance_state(conversion, ConversionEvent.ABANDON_ROLLBACK)
        rollback = Rollback.objects.select_for_update(of=("self",)).get(pk=live(row).pk)
        own = Transfer.objects.filter(batch=rollback.batch_id)
        _give_up(own.filter(state__in=[*LIVE_TRANSFER_STATES, TransferState.FAILED]))
        cancelled = transfers.cancel_live(own)
        ImageStore.objects.filter(pk=row.object_store_id).update(readonly=rollback.former_readonly)
        _end(rollback, f"abandoned by {actor.name}")
        audit.record(
            actor, f"{ACTION}.abandon", f"conversion {row.uuid}", changes={"state": (row.was, row.state)}, cancelled=cancelled
        )
        checkpoints.reach("rollback.before-abandon")
    checkpoints.reach("rollback.abandoned")
    return row


def live(conversion: Conversion) -> Rollback:
    """The roll-back of a conversion that has not ended; raises Conflict where there is none."""
    found = Rollback.objects.select_related("batch", "conversion__object_store").filter(conversion=conversion, ended_at=None)
    row = found.first()
    if row is None:
        state = Conversion.objects.values_list("state", flat=True).get(pk=conversion.pk)
        raise Conflict(f"The conversion is {state}; it is not being rolled back.", remedy="Look at its page.")
    return row


def live_rollbacks() -> Any:
    """Roll-backs that the clock has to look at."""
    return Rollback.objects.filter(ended_at=None).select_related("batch", "conversion__object_store")


# --- the clock -------------------------------------------------------------------------------------------------------------


def advance(row: Rollback) -> None:
    """One turn: bring home what is not, then switch. One worker at a time does it, and any may go on after another's death."""
    free = Q(advancing_until=None) | Q(advancing_until__lt=Now())
    if not Rollback.objects.filter(free, pk=row.pk, ended_at=None).update(advancing_until=_lease_end()):
        return
    try:
        row.refresh_from_db()
        _advance(row)
    finally:
        Rollback.objects.filter(pk=row.pk).update(advancing_until=None)


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


def _advance(row: Rollback) -> None:
    own = Transfer.objects.filter(batch=row.batch_id)
    if own.filter(state__in=LIVE_TRANSFER_STATES).exists():
        _note(row, "Copies are on their way home.")
        return
    homes = homes_of(row.conversion)
    before = own.count()
    planned, stranded = _bring_home(row, homes)
    checkpoints.reach("rollback.planned")
    if planned:
        if before and not row.closing and (planned <= _LAST_ROUND or 2 * planned > before):
            _close(row)
        _note(row, "Copies are on their way home.")
    elif failed := own.filter(state=TransferState.FAILED).count():
        _note(row, f"{failed} copies home failed; see the errors, mend their causes, then retry, or abandon the roll-back.")
    elif stranded:
        named = ", ".join(f"{found.kind} {found.name}" for found in stranded[:5])
        _note(row, f"Some items cannot go home ({named}): {stranded[0].reason} Delete them, or abandon the roll-back.")
    elif under_way := _coming_otherwise(homes):
        _note(row, f"{under_way} items come home by copies that somebody else asked for.")
    elif lost := [found for found in homeward.damaged(homes) if found.code not in row.overrides]:  # since it began
        _note(row, f"{lost[0].message} {lost[0].remedy} Or abandon the roll-back.")
    else:
        _finish(row, homes)


def _bring_home(row: Rollback, homes: Homes) -> tuple[int, list[Stranded]]:
    """Plan a copy of everything that is not at home and not on its way; killed in the middle, the next turn goes on."""
    planned = 0
    stranded: list[Stranded] = []
    for _, _, wanted, left in homeward.returning(homes):
        with transaction.atomic():
            _keep_lease(row)
            planned += transfers.plan_copies(row.batch, wanted)
        stranded += left[: max(0, 20 - len(stranded))]
    return planned, stranded


def _keep_lease(row: Rollback) -> None:
    """Its row stays locked until the transaction ends: whoever abandons it was faster, and is seen here, or finds all that was
    planned. Raises Conflict."""
    if not Rollback.objects.filter(pk=row.pk, ended_at=None).update(advancing_until=_lease_end()):
        raise Conflict("The roll-back has ended meanwhile.", remedy="Look at the conversion's page.")


def _coming_otherwise(homes: Homes) -> int:
    moving = Transfer.objects.filter(target__in=list(homes.exports), state__in=LIVE_TRANSFER_STATES)
    return moving.filter(source=homes.conversion.object_store).count() if homeward.homeless(homes) else 0


def _note(row: Rollback, note: str) -> None:
    Rollback.objects.filter(pk=row.pk, ended_at=None).update(note=note)


def _finish(row: Rollback, homes: Homes) -> None:
    """Switch; or, when something new is on its way to the object store, first let nothing more follow it."""
    try:
        _switch(row, homes)
    except _TooEarly as early:
        if not row.closing:
            _close(row)
        _note(row, str(early))
    except OperationalError as error:
        first = str(error).partition("\n")[0]
        _note(row, f"The database did not let the switch have its rows ({first}); it is tried again.")
        log.warning("roll-back %s: the switch is tried again: %s", row.uuid, first)


def _close(row: Rollback) -> None:
    with transaction.atomic():
        advance_state(row.conversion, ConversionEvent.FINISH_ROLLBACK, dry_run=True)
        ImageStore.objects.filter(pk=row.conversion.object_store_id).update(readonly=True)
        Rollback.objects.filter(pk=row.pk, ended_at=None).update(closing=True)
        audit.record(SYSTEM, f"{ACTION}.closing", f"conversion {row.conversion.uuid}", rollback=str(row.uuid))
    checkpoints.reach("rollback.closing")


def _switch(row: Rollback, homes: Homes) -> None:
    """Turn everything back, on the rows as they are now; no input or output but to the database, no row in Python."""
    started = time.monotonic()
    with transaction.atomic():
        standstill.let_one_in()
        conversion = advance_state(row.conversion, ConversionEvent.FINISH_ROLLBACK, ended_at=timezone.now())
        _keep_lease(row)
        ours = Q(source=conversion.object_store) | Q(target=conversion.object_store)
        standstill.hold_still(lambda: _lock(ours))
        if homeward.homeless(homes):
            raise _TooEarly("The newest items come home; until then no further ones are taken.")
        if writing := homeward.being_written(conversion):
            where = conversion.object_store.name
            raise _TooEarly(f"{writing} items are still being written to {where}; until then no further ones are taken.")
        counts = _turn_back(conversion, ours)
        _detach(conversion, row)
        seconds = round(time.monotonic() - started, 3)
        _end(row, "The region is on NFS again.")
        audit.record(
            SYSTEM,
            f"{ACTION}.finish",
            f"conversion {conversion.uuid}",
            changes={"state": (conversion.was, conversion.state)},
            rollback=str(row.uuid),
            asked_for_by=row.actor,
            object_store=str(conversion.object_store.uuid),
            stores=[str(uuid) for uuid in conversion.stores.values_list("store__uuid", flat=True)],
            seconds=seconds,
            **counts,
        )
        checkpoints.reach("rollback.before-switch")
    checkpoints.reach("rollback.switched")
    log.info("conversion %s was rolled back in %.2f s", conversion.uuid, seconds)


def _lock(ours: Q) -> None:
    """Stores, then transfers, then refs: the order in which others take them."""
    standstill.lock_stores()
    ended = [TransferState.PROVEN, TransferState.CANCELLED]
    list(Transfer.objects.select_for_update(of=("self",)).filter(ours).exclude(state__in=ended).order_by("pk").values_list("pk"))
    standstill.lock_refs()


def _turn_back(conversion: Conversion, ours: Q) -> dict[str, Any]:
    store = conversion.object_store
    unfinished = Transfer.objects.filter(ours).exclude(state__in=[TransferState.PROVEN, TransferState.CANCELLED])
    _give_up(unfinished)
    cancelled = transfers.cancel_live(unfinished)
    promised = {}
    for kind, models in KINDS.items():
        promises = models.ref.objects.filter(store=store, state=RefState.PROMISED)
        # Of some a damaged copy was withdrawn, which still lies there.
        withdrawn = promises.filter(Exists(models.file.objects.filter(ref_id=OuterRef("pk")))).update(
            state=next_state(REF_TRANSITIONS, RefState.PROMISED, RefEvent.DESTROY_REQUESTED),
            updated=Now(),
            update_count=F("update_count") + 1,
            error_str="",
        )
        promised[str(kind)] = withdrawn + promises.update(
            state=_destroyed(RefState.PROMISED), updated=Now(), update_count=F("update_count") + 1
        )
        silent = [RefState.ALLOCATED, RefState.CREATING]
        models.ref.objects.filter(store=store, state__in=silent).update(
            state=next_state(REF_TRANSITIONS, RefState.CREATING, RefEvent.DESTROY_REQUESTED),
            updated=Now(),
            update_count=F("update_count") + 1,
        )
    for entry in conversion.stores.exclude(store__state=StoreState.REMOVED):
        ImageStore.objects.filter(pk=entry.store_id).update(role=entry.former_role)
    for kind in KINDS:
        holds.settle_all(kind)
    templates = Template.objects.filter(cross_zones_by=conversion.uuid).update(cross_zones=False, cross_zones_by=None)
    shown = TemplateZoneRef.objects.filter(added_by=conversion.uuid, removed=None).update(removed=timezone.now())
    return {"promises_taken_back": promised, "transfers_cancelled": cancelled, "templates": templates, "zone_refs": shown}


def _destroyed(state: RefState) -> RefState:
    """Where a ref without bytes ends when it is to go."""
    going = next_state(REF_TRANSITIONS, state, RefEvent.DESTROY_REQUESTED)
    return next_state(REF_TRANSITIONS, going, RefEvent.OPERATION_SUCCEEDED)


def _give_up(unfinished: Any) -> None:
    """The refs that these transfers were to fill: nothing is there but what the reaper removes."""
    for kind, models in KINDS.items():
        waiting = unfinished.filter(kind=kind, target_ref_id=OuterRef("pk"))
        held = Hold.objects.filter(kind=kind, ref_id=OuterRef("pk"))
        begun = models.ref.objects.filter(Exists(waiting), ~Exists(held), state__in=[RefState.CREATING, RefState.ALLOCATED])
        begun.update(state=_destroyed(RefState.CREATING), updated=Now(), update_count=F("update_count") + 1)


def _detach(conversion: Conversion, row: Rollback) -> None:
    detachable = sources(STORE_TRANSITIONS, StoreEvent.DETACH)
    ImageStore.objects.filter(pk=conversion.object_store_id, state__in=detachable).update(
        state=next_state(STORE_TRANSITIONS, StoreState.ATTACHED, StoreEvent.DETACH), readonly=row.former_readonly
    )


def _end(row: Rollback, note: str) -> None:
    TransferBatch.objects.filter(pk=row.batch_id).update(open=False)
    Rollback.objects.filter(pk=row.pk).update(ended_at=Now(), note=note)


# --- looking at it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RollbackProgress:
    """How far the way back is."""

    id: str
    state: str
    note: str
    closing: bool
    items: Mapping[str, int]
    """Copies home by state, and `total`."""
    bytes: Mapping[str, int]
    """total, proven, copied."""
    errors: Sequence[Mapping[str, Any]]


def progress(row: Rollback) -> RollbackProgress:
    """Everything that a page shows of it, in a fixed number of queries."""
    row.refresh_from_db()
    totals = drain.totals(Transfer.objects.filter(batch=row.batch_id))
    items = {state.lower(): totals.items.get(state, 0) for state in TransferState}
    state = Conversion.objects.values_list("state", flat=True).get(pk=row.conversion_id)
    return RollbackProgress(
        id=str(row.uuid),
        state=state if row.ended_at is None or state == ConversionState.ROLLED_BACK else "Abandoned",
        note=row.note,
        closing=row.closing and row.ended_at is None,
        items=items | {"total": sum(items.values()) - items["cancelled"]},
        bytes={"total": totals.bytes_total, "proven": totals.bytes_proven, "copied": totals.bytes_copied},
        errors=transfers.errors_by_cause(row.batch),
    )


__all__ = [
    "RollbackProgress",
    "abandon",
    "advance",
    "live",
    "live_rollbacks",
    "plan_rollback",
    "progress",
    "retry",
    "start",
]
