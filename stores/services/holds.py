"""Who keeps a ref from being evicted or deleted, and the one place that knows `ref_cnt`.

`ref_cnt` of a ref = its Hold rows + 1 while it is the readable copy of a promise: a readable ref on a staging store whose item
has a Promised ref. Whoever changes one of the three locks the ref's row first, so that the count is always exact.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Case, Count, Exists, F, IntegerField, OuterRef, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce, Now

from cloudstorage.errors import Conflict
from stores.models import KINDS, Hold, ImageStore, Kind
from stores.services.once import Once
from stores.states import READABLE, REF_TRANSITIONS, RefEvent, RefState, Role, next_state

CHUNK = 500


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A ref whose count is not what its holds and promises say."""

    kind: Kind
    ref_id: int
    ref_cnt: int
    expected: int


def take_hold(
    kind: Kind,
    ref_id: int,
    reason: str,
    owner: str,
    seconds: float | None = None,
    *,
    states: Collection[RefState] = READABLE,
) -> None:
    """Forbid eviction and byte deletion of a ref for `seconds` (None: until released). Taken again, it is only prolonged.

    Raises Conflict when the ref is in none of `states`: then it is being deleted, or was never readable.
    """
    # By the database's clock, which `expire_holds` goes by too: a host whose own is late would protect nothing.
    expires = None if seconds is None else Now() + timedelta(seconds=seconds)
    refs = KINDS[kind].ref.objects
    with transaction.atomic():
        locked = refs.select_for_update(no_key=True).filter(pk=ref_id, state__in=[*states])
        if not list(locked.values_list("pk")):
            raise Conflict("That copy is just being deleted or was never complete.", remedy="Use another copy of the item.")
        _, created = Hold.objects.update_or_create(
            kind=kind, ref_id=ref_id, reason=reason, owner=owner, defaults={"expires": expires}
        )
        more = {"ref_cnt": F("ref_cnt") + 1} if created else {}
        refs.filter(pk=ref_id).update(last_used=Now(), **more)


def release_hold(kind: Kind, ref_id: int, reason: str, owner: str) -> bool:
    """Take a hold back; false if it had expired or was released before."""
    with transaction.atomic():
        _lock(KINDS[kind].ref.objects.filter(pk=ref_id))
        released, _ = Hold.objects.filter(kind=kind, ref_id=ref_id, reason=reason, owner=owner).delete()
        if released:
            KINDS[kind].ref.objects.filter(pk=ref_id, ref_cnt__gt=0).update(ref_cnt=F("ref_cnt") - 1)
    return bool(released)


def expire_holds(limit: int = 1000) -> int:
    """Remove holds whose time has passed (their owner died); returns how many."""
    expired = 0
    for kind in KINDS:
        due = Hold.objects.filter(kind=kind, expires__lt=Now())
        ref_ids = set(due.order_by("expires").values_list("ref_id", flat=True)[:limit])
        if not ref_ids:
            continue
        with transaction.atomic():
            rows = KINDS[kind].ref.objects.filter(pk__in=ref_ids).order_by("pk")
            # What somebody else works on just now is left for the next time, so this never stands in anybody's way.
            free = list(rows.select_for_update(no_key=True, skip_locked=True).values_list("pk", flat=True))
            removed, _ = due.filter(ref_id__in=free).delete()
            _settle(kind, KINDS[kind].ref.objects.filter(pk__in=free))
        expired += removed
    return expired


def make_promises(kind: Kind, store_id: int, refs: Collection[Any]) -> str:
    """Promise on the region's object store the items of refs that became Ready on `store_id`, if that store is only staging
    now; their counts follow. Returns the uuid of the object store, empty where nothing was converted.

    The caller owns the transaction and holds the lock of the store's row, so that a conversion sees the refs or is seen here.
    """
    converted = ImageStore.objects.filter(pk=store_id, role=Role.IMAGE_CACHE).exists()
    target = ImageStore.objects.attached().filter(role=Role.IMAGE, scope="REGION").order_by("pk").first()
    if not converted or target is None:
        return ""
    model = KINDS[kind].ref
    for chunk in _chunks(refs):
        known = model.objects.filter(store=target, item_id__in=[ref.item_id for ref in chunk]).exclude(state=RefState.DESTROYED)
        there = set(known.values_list("item_id", flat=True))
        missing = [ref for ref in chunk if ref.item_id not in there]
        promised = [model(store=target, item_id=ref.item_id, state=RefState.PROMISED, size=ref.size) for ref in missing]
        model.objects.bulk_create(promised)
        promise_damaged(known)
    keep_promises(kind, [ref.item_id for ref in refs])
    return str(target.uuid)


def promise_damaged(refs: QuerySet[Any]) -> int:
    """What was found damaged on the object store, and was the only copy then, can be copied again; returns how many."""
    return refs.filter(state=RefState.FAILED).update(
        state=next_state(REF_TRANSITIONS, RefState.FAILED, RefEvent.PROOF_WITHDRAWN),
        install_path="",
        proof="",
        updated=Now(),
        update_count=F("update_count") + 1,
    )


def keep_promises(kind: Kind, item_ids: Collection[int]) -> None:
    """Bring the counts of all refs of these items in line after a promise was made, kept or dropped, or a copy became readable.

    Set-based and repeatable; the caller owns the transaction and has made the change before.
    """
    for chunk in _chunks(sorted(set(item_ids))):
        _LOCK.rows(chunk, kind=kind)
        _SETTLE.update(chunk, kind=kind)


def lock_copies(kind: Kind, item_ids: Iterable[int]) -> None:
    """Let nobody else change a copy of these items before the caller's transaction ends."""
    for chunk in _chunks(sorted(set(item_ids))):
        _LOCK.rows(chunk, kind=kind)


def settle_all(kind: Kind) -> None:
    """Bring every count of a kind in line after many promises ended, for a caller that lets nobody else change a ref."""
    _settle(kind, KINDS[kind].ref.objects.filter(ref_cnt__gt=0))


def recount(*, repair: bool = False) -> list[Mismatch]:
    """Compare every kept count with holds and promises (I10); with `repair`, mend what differs."""
    found: list[Mismatch] = []
    for kind, models in KINDS.items():
        wrong = models.ref.objects.annotate(expected=_expected(kind))
        wrong = wrong.exclude(ref_cnt=F("expected")).order_by("pk")
        rows = list(wrong.values_list("pk", "ref_cnt", "expected"))
        found += [Mismatch(kind, *row) for row in rows]
        if repair:
            for chunk in _chunks([pk for pk, _, _ in rows]):
                with transaction.atomic():
                    refs = models.ref.objects.filter(pk__in=chunk)
                    _lock(refs)
                    _settle(kind, refs)
    return found


def _lock(refs: QuerySet[Any]) -> None:
    """Wait for whoever changes these counts; what is asked afterwards sees what they did. In key order, against deadlocks."""
    list(_locked(refs))


def _locked(refs: QuerySet[Any]) -> QuerySet[Any, Any]:
    return refs.select_for_update(no_key=True, of=("self",)).order_by("pk").values_list("pk")


def _settle(kind: Kind, refs: QuerySet[Any]) -> None:
    refs.update(ref_cnt=_expected(kind))


def _refs_of(kind: Kind, item_ids: Collection[int]) -> QuerySet[Any]:
    refs: QuerySet[Any] = KINDS[kind].ref.objects.filter(item_id__in=item_ids).exclude(state=RefState.DESTROYED)
    return refs


_LOCK = Once(lambda item_ids, *, kind: _locked(_refs_of(kind, item_ids)))
_SETTLE = Once(lambda item_ids, *, kind: (_refs_of(kind, item_ids), {"ref_cnt": _expected(kind)}))


def _expected(kind: Kind) -> Any:
    """What `ref_cnt` of each row is to be, as an expression over the ref."""
    ref = KINDS[kind].ref
    holds = Hold.objects.filter(kind=kind, ref_id=OuterRef("pk")).order_by().values("ref_id")
    held = Coalesce(Subquery(holds.annotate(n=Count("pk")).values("n"), output_field=IntegerField()), 0)
    staged = Exists(ref.objects.filter(pk=OuterRef("pk"), state__in=READABLE, store__role=Role.IMAGE_CACHE))
    promised = Exists(ref.objects.filter(item_id=OuterRef("item_id"), state=RefState.PROMISED))
    return held + Case(When(staged & promised, then=Value(1)), default=Value(0), output_field=IntegerField())


def _chunks(ids: Collection[Any]) -> Iterable[list[Any]]:
    ordered = list(ids)
    return (ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK))
