"""Moving every item off the staging stores in the background: plan, canary, run, pause, limit, and tell how far it is."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Unpack

from django.db import transaction
from django.db.models import Count, Q, Sum
from django.db.models.functions import Now
from django.template.defaultfilters import pluralize
from django.utils import timezone

from cloudstorage.actors import SYSTEM, Actor, ActorRole
from cloudstorage.audit import Changes, audited, record
from cloudstorage.commands import check_rate
from cloudstorage.errors import Conflict, Invalid, Missing
from cloudstorage.queue import wake
from migration.bottleneck import Bottleneck, bottleneck
from migration.models import Conversion, Drain, DrainSample
from migration.rules import Given, checked, of_drain, rules_from
from migration.states import DRAIN_TRANSITIONS, ENDED_DRAINS, ConversionState, DrainEvent, DrainState
from stores.copier import Control, CopyEngine
from stores.drivers.errors import StoreError
from stores.models import KINDS, ImageStore, Kind, Transfer, TransferBatch
from stores.services import proofs, transfers
from stores.services.counts import by_kind
from stores.services.image_stores import driver_for
from stores.services.inventory import names_of
from stores.services.region import find_store
from stores.services.windows import Hours, hours
from stores.states import LIVE_TRANSFER_STATES, READABLE, RefState, TransferState, allowed_events
from stores.worker import STUCK_SECONDS

log = logging.getLogger(__name__)

_SAMPLE_SECONDS = 5
_ADVANCE_LEASE = timedelta(minutes=2)
_MAX_SAMPLES = 5000
_NAME_LENGTH = 255
_UNSET: Any = object()


def plan(
    *,
    actor: Actor,
    conversion: Conversion,
    name: str = "",
    **given: Unpack[Given],
) -> Drain:
    """Create the drain of a conversion with a transfer for every promise that its rules name; nothing moves before `start`.

    Raises Conflict while another drain of the conversion is live, or when the conversion is not open; Invalid or Missing with the
    rule that is wrong as its field.
    """
    with audited(actor, ActorRole.OPERATOR, "drain.plan", f"conversion:{conversion.uuid}"):
        _refuse_ended(conversion)
        if live := _live_drains(conversion).first():
            raise Conflict(
                f"Drain {live.uuid} of this conversion is {live.state}.", remedy="Go on with it, or cancel it and plan again."
            )
        rules = rules_from(given)
        if len(name) > _NAME_LENGTH:
            message = f"A drain's name has at most {_NAME_LENGTH} characters."
            raise Invalid(message, remedy="Choose a shorter one, or none.", field="name")
        batch = TransferBatch.objects.create(
            name=name or f"drain to {conversion.object_store.name}"[:_NAME_LENGTH],
            only_canary=rules.canary_items > 0,
            **rules.limits(),
        )
        drain = Drain.objects.create(conversion=conversion, batch=batch, actor=actor.name, rules=rules.fixed())
        planned = transfers.plan_batch(batch, conversion.object_store, rules.scope())
        if rules.canary_items > 0:
            _choose_canary(batch, rules.canary_items)
        record(actor, "drain.plan", f"drain:{drain.uuid}", transfers=planned, **rules.as_json())
        return drain


def _refuse_ended(conversion: Conversion) -> None:
    """The row is locked: a roll-back that begins at this moment sees the drain, or is seen here."""
    state = Conversion.objects.select_for_update().values_list("state", flat=True).get(pk=conversion.pk)
    if state not in {ConversionState.CONVERTED, ConversionState.COMMITTED}:
        raise Conflict(f"The conversion is {state}; there is nothing to drain.", remedy="Convert the region first.")


def _live_drains(conversion: Conversion) -> Any:
    return Drain.objects.filter(conversion=conversion).exclude(state__in=ENDED_DRAINS)


def _choose_canary(batch: TransferBatch, items: int) -> int:
    """The smallest few, and the deepest chain as a whole: what is most likely to show a fault soon. Returns how many."""
    rows = Transfer.objects.filter(batch=batch, state__in=[TransferState.QUEUED, TransferState.BLOCKED])
    chosen = set(rows.filter(depth=0).order_by("bytes_total", "id").values_list("pk", flat=True)[:items])
    link = rows.order_by("-depth", "id").first()
    while link is not None:
        chosen.add(link.pk)
        link = link.parent
    return Transfer.objects.filter(batch=batch, pk__in=chosen).update(canary=True)


def start(*, actor: Actor, drain: Drain) -> Drain:
    """Let it run, its canary first."""
    with audited(actor, ActorRole.OPERATOR, "drain.start", f"drain:{drain.uuid}"):
        drain = _advance_state(drain, DrainEvent.START, started_at=timezone.now())
        _open(drain)
        record(actor, "drain.start", f"drain:{drain.uuid}", changes=_state_of(drain))
    return drain


def pause(*, actor: Actor, drain: Drain) -> Drain:
    """Stop claiming; what is under way stops within a part and goes on from there later."""
    with audited(actor, ActorRole.OPERATOR, "drain.pause", f"drain:{drain.uuid}"):
        drain = _advance_state(drain, DrainEvent.PAUSE, note=f"paused by {actor.name}")
        TransferBatch.objects.filter(pk=drain.batch_id).update(open=False)
        record(actor, "drain.pause", f"drain:{drain.uuid}", changes=_state_of(drain))
    return drain


def resume(*, actor: Actor, drain: Drain) -> Drain:
    """Go on; with the canary if that was not read back yet, and its failed items are tried again."""
    with audited(actor, ActorRole.OPERATOR, "drain.resume", f"drain:{drain.uuid}"):
        drain = _advance_state(drain, DrainEvent.RESUME)
        was = drain.was
        failed_canary = Transfer.objects.filter(batch=drain.batch_id, canary=True, state=TransferState.FAILED)
        if drain.canary_proven_at is None and failed_canary.exists():
            transfers.retry(actor=actor, transfers=failed_canary, target=f"drain:{drain.uuid}")
        if drain.canary_proven_at is not None:
            drain = _advance_state(drain, DrainEvent.CANARY_PROVEN)
        _open(drain)
        record(actor, "drain.resume", f"drain:{drain.uuid}", changes={"state": (was, drain.state)})
    return drain


def cancel(*, actor: Actor, drain: Drain) -> Drain:
    """End it; what is proven stays proven, what is not stays readable where it was, and debris is removed. What was asked for at
    once goes on without the drain."""
    with audited(actor, ActorRole.OPERATOR, "drain.cancel", f"drain:{drain.uuid}"):
        drain = _advance_state(drain, DrainEvent.CANCEL, note=f"cancelled by {actor.name}", finished_at=timezone.now())
        TransferBatch.objects.filter(pk=drain.batch_id).update(open=False)
        count = transfers.cancel_batch(drain.batch_id)
        record(actor, "drain.cancel", f"drain:{drain.uuid}", changes=_state_of(drain), cancelled=count)
    return drain


def end_for_rollback(conversion: Conversion) -> int:
    """Cancel what still moves items to the object store, inside the caller's transaction; returns how many drains."""
    ended = list(_live_drains(conversion))
    for drain in ended:
        _advance_state(drain, DrainEvent.CANCEL, note="cancelled by the roll-back", finished_at=timezone.now())
        TransferBatch.objects.filter(pk=drain.batch_id).update(open=False)
        transfers.cancel_live(Transfer.objects.filter(batch=drain.batch_id))
    return len(ended)


def retry_failed(*, actor: Actor, drain: Drain, causes: Collection[str] = ()) -> int:
    """Try what failed again, of these causes or of all, with what failed only behind it; returns how many.

    Where nothing failed of these causes nothing changes. Raises Conflict where the drain's state forbids it.
    """
    with audited(actor, ActorRole.OPERATOR, "drain.retry", f"drain:{drain.uuid}"):
        _refuse_ended(drain.conversion)
        if live := _live_drains(drain.conversion).exclude(pk=drain.pk).first():
            raise Conflict(f"Drain {live.uuid} of this conversion is {live.state}.", remedy="It takes up what failed before.")
        rows = Transfer.objects.filter(batch=drain.batch_id)
        rows = rows.filter(error_cause__in=causes) if causes else rows
        if causes and not rows.filter(state=TransferState.FAILED).exists():
            record(actor, "drain.retry", f"drain:{drain.uuid}", count=0, causes=sorted(causes))
            return 0
        drain = _advance_state(drain, DrainEvent.RETRY, finished_at=None)
        if drain.state == DrainState.RUNNING:
            _open(drain)
        count = transfers.retry(actor=actor, transfers=rows, target=f"drain:{drain.uuid}")
        record(actor, "drain.retry", f"drain:{drain.uuid}", changes=_state_of(drain), count=count, causes=sorted(causes))
        return count


def set_limits(
    *,
    actor: Actor,
    drain: Drain,
    concurrency: int = _UNSET,
    bandwidth: int | None = _UNSET,
    window: str = _UNSET,
    time_zone: str = _UNSET,
    read_limits: Mapping[str, int | None] | None = None,
) -> Drain:
    """Change limits while it runs; they bite within one part. `read_limits` maps a store's uuid or name to bytes per second or
    None. Raises Invalid naming the field."""
    with audited(actor, ActorRole.OPERATOR, "drain.limits", f"drain:{drain.uuid}"):
        given = {"concurrency": concurrency, "bandwidth": bandwidth, "window": window, "time_zone": time_zone}
        limits = checked({name: value for name, value in given.items() if value is not _UNSET})
        changes: dict[str, tuple[object, object]] = {}
        if limits:
            batch = TransferBatch.objects.filter(pk=drain.batch_id)
            changes = {name: (before, limits[name]) for name, before in batch.values(*limits).get().items()}
            batch.update(**limits)
        for store_id, limit in (read_limits or {}).items():
            check_rate(limit, "read_limits")
            try:
                store = find_store(store_id)
            except Missing as error:
                raise Invalid(error.message, remedy=error.remedy, field="read_limits") from error
            rows = ImageStore.objects.filter(pk=store.pk)
            changes[f"read limit of {store.name}"] = (rows.select_for_update().values_list("read_limit", flat=True).get(), limit)
            rows.update(read_limit=limit)
        record(actor, "drain.limits", f"drain:{drain.uuid}", changes=changes)
    drain.refresh_from_db()
    return drain


def _open(drain: Drain) -> None:
    transfers.open_batch(drain.batch_id, only_canary=drain.state == DrainState.CANARY)
    for _ in range(2):
        wake(transfers.PUMP)


def _advance_state(drain: Drain, event: DrainEvent, **changes: Any) -> Drain:
    """Compare-and-set by the table; raises Conflict with what is possible instead."""
    row = Drain.objects.select_for_update().get(pk=drain.pk)
    state = DrainState(row.state)
    target = DRAIN_TRANSITIONS.get((state, event))
    changes.setdefault("note", "")
    if target is None or not Drain.objects.filter(pk=row.pk, state=state).update(state=target, **changes):
        allowed = allowed_events(DRAIN_TRANSITIONS, state)
        raise Conflict(
            f"The drain is {state}, so {event} is not possible.",
            remedy=f"Possible now: {', '.join(allowed) or 'nothing'}.",
            allowed=allowed,
        )
    row.refresh_from_db()
    row.was = state
    return row


def _state_of(row: Drain) -> Changes:
    """What the last event changed, for the audit trail."""
    return {"state": (row.was, row.state)}


# --- the clock -------------------------------------------------------------------------------------------------------------


def advance(drain: Drain) -> None:
    """One turn of the clock: sample, read the canary back, take in new promises, finish. One worker at a time does it."""
    free = Q(advancing_until=None) | Q(advancing_until__lt=Now())
    mine = Drain.objects.filter(free, pk=drain.pk).update(advancing_until=Now() + _ADVANCE_LEASE)
    if not mine:
        return
    try:
        drain.refresh_from_db()
        if drain.state in {DrainState.CANARY, DrainState.RUNNING}:
            _sample(drain)
        if drain.state == DrainState.CANARY:
            _advance_canary(drain)
        elif drain.state == DrainState.RUNNING:
            _advance_running(drain)
    finally:
        Drain.objects.filter(pk=drain.pk).update(advancing_until=None)


def _advance_canary(drain: Drain) -> None:
    canary = Transfer.objects.filter(batch=drain.batch_id, canary=True)
    states = set(canary.values_list("state", flat=True))
    if TransferState.FAILED in states:
        failed = canary.filter(state=TransferState.FAILED).order_by("depth", "id").first()
        reason = f"The canary failed, so the rest was not begun: {failed.error}" if failed else "The canary failed."
        _stop_for(drain, reason)
    elif states == {TransferState.CANCELLED} and _choose_canary(drain.batch, canary.count()):
        wake(transfers.PUMP)  # all were deleted meanwhile: what proves nothing lets nothing pass
    elif states <= {TransferState.PROVEN, TransferState.CANCELLED}:
        if problem := _read_back(canary.filter(state=TransferState.PROVEN).order_by("id")):
            with transaction.atomic():
                _stop_for(drain, problem)
                _withdraw(drain, problem)
            return
        with transaction.atomic():
            moved = _advance_state(drain, DrainEvent.CANARY_PROVEN, canary_proven_at=timezone.now())
            _open(moved)
            record(SYSTEM, "drain.canary-proven", f"drain:{drain.uuid}", changes=_state_of(moved), items=canary.count())


def _stop_for(drain: Drain, reason: str) -> None:
    with transaction.atomic():
        moved = _advance_state(drain, DrainEvent.CANARY_FAILED, note=reason)
        TransferBatch.objects.filter(pk=drain.batch_id).update(open=False)
        record(SYSTEM, "drain.canary-failed", f"drain:{drain.uuid}", changes=_state_of(moved), reason=reason)


def _withdraw(drain: Drain, reason: str) -> None:
    """What such a store says of the canary counts for nothing: all of it is a promise again, and is copied anew on a resume."""
    batch, target = drain.batch, drain.conversion.object_store
    transfers.plan_alone(target.pk)
    proven = Transfer.objects.filter(batch=batch, canary=True, state=TransferState.PROVEN)
    again = {
        kind: proofs.withdraw(kind, list(proven.filter(kind=kind).values_list("target_ref_id", flat=True)), reason)
        for kind in KINDS
    }
    for kind, items in again.items():
        proven.filter(kind=kind, item_id__in=items).update(batch=None, canary=False)
    transfers.plan_batch(batch, target, of_drain(drain).scope())
    for kind, items in again.items():
        Transfer.objects.filter(batch=batch, kind=kind, item_id__in=items).update(canary=True)


def _read_back(canary: Any) -> str:
    """Hash the canary's items as the object store gives them now; the first difference as a sentence, else empty."""
    engine = CopyEngine(lanes=1)
    try:
        for transfer in canary.select_related("target"):
            driver = driver_for(transfer.target)
            for file in KINDS[Kind(transfer.kind)].file.objects.filter(ref=transfer.target_ref_id).order_by("path"):
                try:
                    found, _ = engine.hash_object(driver, file.path, Control())
                except StoreError as error:
                    if error.outage:
                        raise
                    if not _is_readable(transfer):  # deleted meanwhile
                        continue
                    return f"{file.path} could not be read back from {transfer.target.name}: {error} Do not go on."
                if found != file.sha256:
                    return f"{file.path}, read back from {transfer.target.name}, differs from what was proven. Do not go on."
    finally:
        engine.close()
    return ""


def _is_readable(transfer: Transfer) -> bool:
    refs = KINDS[Kind(transfer.kind)].ref.objects
    return bool(refs.filter(pk=transfer.target_ref_id, state__in=READABLE).exists())


def _advance_running(drain: Drain) -> None:
    rows = Transfer.objects.filter(batch=drain.batch_id)
    if rows.filter(state__in=LIVE_TRANSFER_STATES).exists():
        return
    target = drain.conversion.object_store
    with transaction.atomic():
        # Who cancels it was faster, or waits and finds what is planned here: in a closed batch nobody would ever run it.
        if not Drain.objects.select_for_update().filter(pk=drain.pk, state=DrainState.RUNNING).exists():
            return
        planned = _plan_new_promises(drain)
        if planned:
            wake(transfers.PUMP)
            return
        failed = rows.filter(state=TransferState.FAILED).count()
        partial = of_drain(drain).partial
        outside = transfers.outside(drain.batch, target) if partial else 0
        unread = promised(target)["items"] - failed - outside
        note = "Every item in its scope is proven." if partial else "Every item is proven."
        if failed:
            note = f"{failed} item{pluralize(failed)} failed; see the errors, mend the cause, then retry."
        elif unread > 0:
            note = (
                f"No attached store has a readable copy of {unread} promised item{pluralize(unread)}; "
                "scan the exports that should have them."
            )
        if outside:
            note += f" {outside} item{pluralize(outside)} outside of its scope are still on NFS: plan another drain for them."
        moved = _advance_state(drain, DrainEvent.FINISH, note=note, finished_at=timezone.now())
        TransferBatch.objects.filter(pk=moved.batch_id).update(open=False)
        record(SYSTEM, "drain.finish", f"drain:{drain.uuid}", changes=_state_of(moved), failed=failed)
    _sample(moved, force=True)


def _plan_new_promises(drain: Drain) -> int:
    """Promises in its scope that are not under way: made since the plan (work begun before the conversion, foreign writes), or
    asked for on demand and failed; not those that failed in this batch."""
    batch, target, scope = drain.batch, drain.conversion.object_store, of_drain(drain).scope()
    for kind in scope.kinds:
        handled = Transfer.objects.filter(transfers.handled(batch), kind=kind, target=target)
        new = KINDS[kind].ref.objects.filter(store=target, state=RefState.PROMISED).exclude(item_id__in=handled.values("item_id"))
        if new.exists():
            return transfers.plan_batch(batch, target, scope)
    return 0


def promised(target: ImageStore) -> dict[str, int]:
    """Items and bytes that are promised on the object store and not there yet, whichever drain is to move them."""
    rows = {kind: models.ref.objects.filter(store=target, state=RefState.PROMISED) for kind, models in KINDS.items()}
    found = by_kind(rows, items=Count("pk"), bytes=Sum("size")).values()
    return {name: sum(sums[name] for sums in found) for name in ("items", "bytes")}


def _sample(drain: Drain, *, force: bool = False) -> None:
    last = DrainSample.objects.filter(drain=drain).order_by("-id").first()
    now = timezone.now()
    if not force and last is not None and (now - last.at).total_seconds() < _SAMPLE_SECONDS:
        return
    now_at = totals(Transfer.objects.filter(batch=drain.batch_id))
    DrainSample.objects.create(
        drain=drain,
        at=now,
        items_proven=now_at.items.get(TransferState.PROVEN, 0),
        bytes_proven=now_at.bytes_proven,
        bytes_copied=now_at.bytes_copied,
        running=now_at.items.get(TransferState.RUNNING, 0),
    )
    if last is not None and last.pk % 500 == 0:
        _thin_out(drain)


def _thin_out(drain: Drain) -> None:
    """Keep a long drain's history bounded: of the older half, every second sample goes."""
    samples = list(DrainSample.objects.filter(drain=drain).order_by("id").values_list("pk", flat=True))
    if len(samples) > _MAX_SAMPLES:
        DrainSample.objects.filter(pk__in=samples[1 : len(samples) // 2 : 2][:900]).delete()


# --- looking at it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Totals:
    """How far some transfers are."""

    items: dict[str, int]
    bytes_total: int
    bytes_proven: int
    bytes_copied: int


def totals(rows: Any) -> Totals:
    """Items by state and bytes of some transfers, in one query."""
    items: dict[str, int] = {}
    total = proven = copied = 0
    for row in rows.values("state").annotate(n=Count("pk"), total=Sum("bytes_total"), done=Sum("bytes_done")).order_by():
        items[row["state"]] = row["n"]
        if row["state"] == TransferState.CANCELLED:
            continue
        total += row["total"] or 0
        if row["state"] == TransferState.PROVEN:
            proven += row["total"] or 0
        elif row["state"] != TransferState.FAILED:
            copied += row["done"] or 0
    return Totals(items, total, proven, copied)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain is. Bytes proven, copied (on the target, not proven yet) and remaining are kept apart."""

    state: str
    note: str
    allowed: tuple[str, ...]
    items: Mapping[str, int]
    bytes: Mapping[str, int]
    percent: float
    rate: float
    """Bytes per second over the last minute."""
    eta_low: float | None
    eta_high: float | None
    """Seconds; None where nothing moves or nothing is left."""
    bottleneck: Bottleneck | None
    """What holds it up now; None while it does not run."""
    window: Hours | None
    """When it may run, and whether that is now; None where it may always, or has ended."""
    zones: Sequence[Mapping[str, Any]]
    running: Sequence[Mapping[str, Any]]
    errors: Sequence[Mapping[str, Any]]
    limits: Mapping[str, Any]


def progress(drain: Drain) -> Progress:
    """Everything a live page shows, in a fixed number of queries."""
    drain.refresh_from_db(from_queryset=Drain.objects.select_related("batch", "conversion__object_store"))
    rows = Transfer.objects.filter(batch=drain.batch_id)
    found = totals(rows)
    samples = list(DrainSample.objects.filter(drain=drain).order_by("-id")[:120])
    remaining = found.bytes_total - found.bytes_proven - found.bytes_copied
    rate, low, high = _rates(samples)
    running = _running(rows)
    left = found.bytes_total - found.bytes_proven
    moving = drain.state in {DrainState.CANARY, DrainState.RUNNING} and left > 0
    items = {str(state): found.items.get(state, 0) for state in TransferState}
    items["total"] = sum(items.values()) - items[TransferState.CANCELLED]
    return Progress(
        state=drain.state,
        note=drain.note,
        allowed=allowed_events(DRAIN_TRANSITIONS, DrainState(drain.state)),
        items={name.lower(): count for name, count in items.items()},
        bytes={"total": found.bytes_total, "proven": found.bytes_proven, "copied": found.bytes_copied, "remaining": remaining},
        percent=round(100 * found.bytes_proven / found.bytes_total, 1) if found.bytes_total else 100.0,
        rate=rate if moving else 0.0,
        eta_low=left / high if moving and high else None,
        eta_high=left / low if moving and low else None,
        bottleneck=bottleneck(drain, running, rate, items),
        window=hours(drain.batch.window, drain.batch.time_zone) if drain.state not in ENDED_DRAINS else None,
        zones=_zones(rows),
        running=running,
        errors=transfers.errors_by_cause(drain.batch),
        limits={
            "concurrency": drain.batch.concurrency,
            "bandwidth": drain.batch.bandwidth,
            "window": drain.batch.window,
            "time_zone": drain.batch.time_zone,
        },
    )


def _rates(samples: Sequence[DrainSample]) -> tuple[float, float, float]:
    """(rate over the last minute, slowest and fastest minute of the last ten), bytes per second; newest sample first."""
    if len(samples) < 2:
        return 0.0, 0.0, 0.0

    points = [(sample.at, sample.bytes_proven + sample.bytes_copied) for sample in samples]
    step = min(12, len(samples) - 1)
    rates = [_rate(points[at], points[at + step]) for at in range(0, len(samples) - step, step)]
    moving = [value for value in rates if value > 0]
    return rates[0], min(moving, default=0.0), max(moving, default=0.0)


def _rate(newer: tuple[datetime, int], older: tuple[datetime, int]) -> float:
    """Bytes per second between two points; what was copied and then failed is no rate."""
    seconds = (newer[0] - older[0]).total_seconds()
    return max(0.0, (newer[1] - older[1]) / seconds) if seconds > 0 else 0.0


def _running(rows: Any) -> list[dict[str, Any]]:
    listed = []
    live = rows.filter(state=TransferState.RUNNING).select_related("source", "target", "worker").annotate(now=Now())
    live = live.order_by("progress_at")[:50]
    names = names_of(live)
    for row in live:
        silent = (row.now - (row.progress_at or row.now)).total_seconds()
        at = row.source if row.waiting_on == "source" else row.target
        listed.append(
            {
                "transfer": str(row.uuid),
                "kind": row.kind,
                "name": names.get((row.kind, row.item_id), ("", ""))[1],
                "source": row.source.name,
                "bytes_total": row.bytes_total,
                "bytes_done": row.bytes_done,
                "attempt": row.attempts,
                "waiting_on": row.waiting_on,
                "worker": str(row.worker) if row.worker else "",
                "heartbeat": row.worker.heartbeat if row.worker else None,
                "progress": row.progress_at,
                "stuck": f"stuck {silent:.0f} s on {at.name}" if silent > STUCK_SECONDS else "",
            }
        )
    return listed


def _zones(rows: Any) -> list[dict[str, Any]]:
    zones: dict[str, dict[str, Any]] = {}
    grouped = rows.exclude(state=TransferState.CANCELLED).values("source__zone__name", "state")
    for row in grouped.annotate(n=Count("pk"), total=Sum("bytes_total"), done=Sum("bytes_done")).order_by("source__zone__name"):
        name = row["source__zone__name"] or "region"
        counts = (
            "items",
            "items_proven",
            "items_running",
            "items_failed",
            "items_remaining",
            "bytes",
            "proven",
            "copied",
            "remaining",
        )
        zone = zones.setdefault(name, {"zone": name, **dict.fromkeys(counts, 0)})
        zone["items"] += row["n"]
        zone["bytes"] += row["total"] or 0
        if row["state"] == TransferState.PROVEN:
            zone["items_proven"] += row["n"]
            zone["proven"] += row["total"] or 0
        elif row["state"] == TransferState.FAILED:
            zone["items_failed"] += row["n"]
        else:
            zone["items_running"] += row["n"] if row["state"] == TransferState.RUNNING else 0
            zone["copied"] += row["done"] or 0
    for zone in zones.values():
        zone["items_remaining"] = zone["items"] - zone["items_proven"]
        zone["remaining"] = zone["bytes"] - zone["proven"] - zone["copied"]
    return list(zones.values())


def history(drain: Drain, *, points: int = 200) -> list[dict[str, Any]]:
    """At most `points` samples over the whole run, oldest first, for the chart; `rate`: bytes per second since the one before."""
    ids = list(DrainSample.objects.filter(drain=drain).order_by("id").values_list("pk", flat=True))
    step = max(1, -(-len(ids) // points))
    chosen = {*ids[::step], *ids[-1:]}
    fields = ("at", "items_proven", "bytes_proven", "bytes_copied", "running")
    samples = list(DrainSample.objects.filter(pk__in=chosen).order_by("id").values(*fields))
    moved = [(sample["at"], sample["bytes_proven"] + sample["bytes_copied"]) for sample in samples]
    rates = [0.0, *(_rate(newer, older) for older, newer in pairwise(moved))]
    return [{**sample, "rate": rate} for sample, rate in zip(samples, rates, strict=False)]


def live_drains() -> Any:
    """Drains that the clock has to look at."""
    return Drain.objects.filter(state__in=[DrainState.CANARY, DrainState.RUNNING]).select_related(
        "batch", "conversion__object_store"
    )


def expected_end(progress_now: Progress) -> tuple[datetime, datetime] | None:
    """The ETA as a range of points in time, from the opening of its window where that is closed now."""
    if progress_now.eta_low is None or progress_now.eta_high is None:
        return None
    window = progress_now.window
    start = window.opens if window is not None and window.opens is not None else timezone.now()
    return start + timedelta(seconds=progress_now.eta_low), start + timedelta(seconds=progress_now.eta_high)


__all__ = [
    "Progress",
    "advance",
    "cancel",
    "end_for_rollback",
    "expected_end",
    "history",
    "live_drains",
    "pause",
    "plan",
    "progress",
    "promised",
    "resume",
    "retry_failed",
    "set_limits",
    "start",
    "totals",
]
