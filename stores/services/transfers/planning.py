"""Which transfers there are: asked for at once, planned for every promise, tried again; chains behind their parents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from django.db import IntegrityError, transaction
from django.db.models import Case, CharField, Exists, F, FilteredRelation, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.expressions import OrderBy
from django.db.models.functions import Now

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.errors import Conflict, Missing
from cloudstorage.inserting import NewUUID, Ordered, insert_ordered
from cloudstorage.queue import wake
from cloudstorage.turns import Turn, wait_for_turn
from stores.models import KINDS, ImageStore, Item, Kind, Transfer, TransferBatch
from stores.services.counts import total
from stores.services.inventory import readable_copies
from stores.services.transfers.endings import (
    PARENT_FAILED,
    cancel_live,
    fail_behind_parent,
    fail_descendants,
    fail_without_source,
    update_in_order,
)
from stores.services.transfers.jobs import BACKGROUND, GOING, ON_DEMAND, PUMP, slices
from stores.states import (
    LIVE_TRANSFER_STATES,
    READABLE,
    TRANSFER_TRANSITIONS,
    RefState,
    Role,
    StoreState,
    TransferEvent,
    TransferState,
    next_state,
    sources,
)


def ensure(*, actor: Actor, kind: Kind, item: Item, store: ImageStore | None = None) -> Transfer | None:
    """Ask for an item on `store` (default: the object store of the region) at once, its chain's parents first.

    What a staging store lacks is brought to the object store first, then staged from there. Returns the item's transfer, or
    None where it is Ready there already. A transfer that is already planned, or failed, goes ahead of the background, even of a
    paused one. Raises Missing when nothing readable is left of it, Conflict when the store cannot take it.
    """
    with audited(actor, ActorRole.OPERATOR, "transfer.ensure", f"{kind}:{item.uuid}"):
        store = store or _region_store()
        if store.state != StoreState.ATTACHED:
            message = f"{store.name} is {store.state}: nothing is copied to it."
            raise Conflict(message, remedy="Name a store that is in use, or none for the object store.", field="store")
        chain = _chain_of(kind, item)
        via = _attached_region_store() if store.role == Role.IMAGE_CACHE else None
        plan_alone(store.pk, *([] if via is None else [via.pk]))
        before: Transfer | None = None
        if via is not None and not _readable_on(kind, chain, store):
            for link in chain:
                before = _ensure_one(kind, link, via, before) or before
        last: Transfer | None = None
        for link in chain:
            last = _ensure_one(kind, link, store, before, via)
            before = last or before
        record(actor, "transfer.ensure", f"{kind}:{item.uuid}", store=str(store.uuid), chain=len(chain))
        wake(PUMP)
        return last


def plan_alone(*targets: int) -> None:
    """Let nobody else plan copies to these stores before the caller's transaction ends. A batch inserts its transfers in an order
    of its own, a chain is asked for parents first, and who does the same in different orders would wait for each other.

    Not a lock of the stores' rows, for those are taken by who finishes an item or probes, too, and a plan may take long.
    """
    wait_for_turn(Turn.PLANNING, targets)


def _attached_region_store() -> ImageStore | None:
    return ImageStore.objects.filter(role=Role.IMAGE, scope="REGION", state=StoreState.ATTACHED).order_by("id").first()


def _readable_on(kind: Kind, chain: Sequence[Item], store: ImageStore) -> bool:
    ids = [link.pk for link in chain]
    return bool(KINDS[kind].ref.objects.filter(store=store, item_id__in=ids, state__in=READABLE).count() == len(ids))


def _region_store() -> ImageStore:
    store = _attached_region_store()
    if store is None:
        raise Conflict("The region has no object store.", remedy="Convert the region, or add an object store, first.")
    return store


def _chain_of(kind: Kind, item: Item) -> list[Item]:
    chain = [item]
    if kind == Kind.SNAPSHOT:
        while (parent := chain[0].parent) is not None:  # type: ignore[attr-defined]  # only snapshots come here
            chain.insert(0, parent)
    return chain


def _ensure_one(
    kind: Kind, item: Item, store: ImageStore, parent: Transfer | None, via: ImageStore | None = None
) -> Transfer | None:
    models = KINDS[kind]
    if not models.item.objects.select_for_update(no_key=True).filter(pk=item.pk, removed=None).exists():
        raise Missing(f"{item.name} was deleted.", remedy="Nothing to do.")
    ref = models.ref.objects.filter(store=store, item_id=item.pk).exclude(state=RefState.DESTROYED).first()
    if ref is not None and ref.state in READABLE:
        return None
    if (known := _hurry(kind, item, store, parent)) is not None:
        return known
    if ref is not None and ref.state not in {RefState.PROMISED, RefState.ALLOCATED, RefState.FAILED}:
        raise Conflict(f"{item.name} is {ref.state} on {store.name}.", remedy="Wait until that has ended, then ask again.")
    copies = readable_copies(kind, [item.pk])[item.pk]
    copies = [copy for copy in copies if copy.store.pk != store.pk]
    if not copies:
        raise Missing(f"No readable copy of {item.name} is left on any store.", remedy="Scan the stores that should have it.")
    if ref is None:
        ref = models.ref.objects.create(store=store, item_id=item.pk, state=RefState.CREATING)
    elif ref.state != RefState.PROMISED:
        models.ref.objects.filter(pk=ref.pk).update(state=RefState.CREATING, updated=Now())
    size = models.ref.objects.values_list("size", flat=True).get(pk=copies[0].ref_id)
    if via is None:
        source = models.ref.objects.get(pk=copies[0].ref_id)
    else:
        source = models.ref.objects.get(store=via, item_id=item.pk, state__in=[RefState.PROMISED, RefState.CREATING, *READABLE])
    asked = Transfer(
        kind=kind,
        item_id=item.pk,
        source_id=source.store_id,
        target=store,
        source_ref_id=source.pk,
        target_ref_id=ref.pk,
        parent=parent,
        depth=getattr(item, "depth", 0),
        priority=ON_DEMAND,
        state=TransferState.QUEUED if parent is None else TransferState.BLOCKED,
        bytes_total=size,
    )
    try:
        with transaction.atomic():
            asked.save(force_insert=True)
    except IntegrityError:  # a drain was planned at the same moment: its transfer is there now
        return _hurry(kind, item, store, parent)
    return asked


def _hurry(kind: Kind, item: Item, store: ImageStore, parent: Transfer | None) -> Transfer | None:
    """Put the item's live transfer ahead, or take up its failed one again; None where it has neither."""
    there = Transfer.objects.select_for_update().filter(kind=kind, item_id=item.pk, target=store)
    live = there.filter(state__in=LIVE_TRANSFER_STATES).first()
    if live is not None:
        Transfer.objects.filter(pk=live.pk).update(priority=ON_DEMAND)
        live.priority = ON_DEMAND
        return live
    failed = there.filter(state=TransferState.FAILED).order_by("-id").first()
    if failed is None:
        return None
    event = TransferEvent.RETRY if parent is None else TransferEvent.RETRY_BEHIND_PARENT
    failed.state = next_state(TRANSFER_TRANSITIONS, TransferState.FAILED, event)
    failed.parent, failed.priority, failed.finished_at = parent, ON_DEMAND, None
    failed.attempts = failed.faults = failed.lost = 0
    failed.next_attempt_at = Now()
    failed.error = failed.error_cause = failed.remedy = ""
    failed.save()
    failed.refresh_from_db(fields=["next_attempt_at"])
    _begin_again(kind, [failed.target_ref_id])
    return failed


def _begin_again(kind: Kind, ref_ids: Collection[int]) -> None:
    """Refs that a failed transfer had given back are being created again; promises stay promises."""
    given_back = KINDS[kind].ref.objects.filter(pk__in=ref_ids, state__in=[RefState.ALLOCATED, RefState.FAILED])
    given_back.update(state=RefState.CREATING, updated=Now())


def handled(batch: TransferBatch) -> Q:
    """Transfers of which a batch plans no second one: those under way, and those of its own that wait for a retry."""
    return Q(state__in=LIVE_TRANSFER_STATES) | Q(state=TransferState.FAILED, batch=batch)


class Order(StrEnum):
    """In which order transfers are planned, and so claimed, but for parents, which come before their children."""

    PLANNED = "planned"
    SMALLEST = "smallest"
    LARGEST = "largest"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which promises a batch is to keep, in which order, and whether each copy is read back."""

    kinds: tuple[Kind, ...] = tuple(KINDS)
    zones: tuple[int, ...] | None = None
    """Only what has a copy in one of these, and the snapshots that it builds on; None = wherever it is."""
    order: Order = Order.PLANNED
    read_back: bool = False


EVERYTHING = Scope()
_RANKS: dict[Order, tuple[OrderBy, ...]] = {
    Order.PLANNED: (),
    Order.SMALLEST: (F("size").asc(),),
    Order.LARGEST: (F("size").desc(),),
    Order.NEWEST: (F("item__created").desc(),),
}
"""By what the items of all kinds together are ordered, before their kind and the promise's id."""


def plan_batch(batch: TransferBatch, target: ImageStore, scope: Scope = EVERYTHING) -> int:
    """Create a transfer for every promise on `target` in the scope that has none under way; returns how many.

    Set-based, no row in Python; a chain's members are Blocked behind their parent's transfer. What somebody asks for at the same
    moment is left to that one. The caller owns the transaction.
    """
    plan_alone(target.pk)
    planned = insert_ordered(Transfer, [_missing(batch, target, kind, scope) for kind in scope.kinds], or_nothing=True)
    if scope.zones is not None and Kind.SNAPSHOT in scope.kinds:
        planned += _plan_ancestors(batch, target, replace(scope, zones=None))
    _link_parents(target)
    return planned


def _plan_ancestors(batch: TransferBatch, target: ImageStore, everywhere: Scope) -> int:
    """What planned snapshots build on and only other zones have: without it they would be of no use. One generation at a time."""
    planned = 0
    mine = Transfer.objects.filter(batch=batch, kind=Kind.SNAPSHOT, state=TransferState.BLOCKED, parent=None)
    children = KINDS[Kind.SNAPSHOT].item.objects.filter(parent=OuterRef("item_id"), pk__in=mine.values("item_id"))
    missing = _missing(batch, target, Kind.SNAPSHOT, everywhere)
    missing = replace(missing, rows=missing.rows.filter(Exists(children)))
    while more := insert_ordered(Transfer, [missing], or_nothing=True):
        planned += more
    return planned


def outside(batch: TransferBatch, target: ImageStore) -> int:
    """How many promises on `target` can be kept from a readable copy, and are neither under way nor failed in this batch."""
    return total({kind: _missing(batch, target, kind, EVERYTHING).rows for kind in KINDS})


def _missing(batch: TransferBatch, target: ImageStore, kind: Kind, scope: Scope) -> Ordered:
    """The copies from which promises are to be kept that nobody keeps yet, one for each, and the transfers' values."""
    copies = KINDS[kind].ref.objects.filter(state__in=READABLE, store__state=StoreState.ATTACHED).exclude(store=target)
    if scope.zones is not None:
        copies = copies.filter(store__zone__in=scope.zones)
    older = copies.filter(item=OuterRef("item"), pk__lt=OuterRef("pk"))
    here = Q(item__refs__store=target, item__refs__state=RefState.PROMISED)
    going = Transfer.objects.filter(handled(batch), kind=kind, target=target, item_id=OuterRef("item_id"))
    missing = copies.alias(promise=FilteredRelation("item__refs", condition=here)).filter(
        ~Exists(older), ~Exists(going), promise__isnull=False
    )
    values: dict[str, object] = {
        "uuid": NewUUID(),
        "kind": kind,
        "item_id": F("item_id"),
        "source": F("store_id"),
        "target": target.pk,
        "source_ref_id": F("pk"),
        "target_ref_id": F("promise__id"),
        "batch": batch.pk,
        "priority": BACKGROUND,
        "read_back": scope.read_back,
        "state": TransferState.QUEUED,
        "next_attempt_at": Now(),
        "created": Now(),
        "bytes_total": F("size"),
    }
    if kind == Kind.SNAPSHOT:
        behind = Value(TransferState.BLOCKED, output_field=CharField())
        free = Value(TransferState.QUEUED, output_field=CharField())
        values |= {"depth": F("item__depth"), "state": Case(When(item__depth__gt=0, then=behind), default=free)}
    ranks = (*_RANKS[scope.order], Value(list(Kind).index(kind)).asc(), F("promise__id").asc())
    return Ordered(missing, values, ranks)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A copy that somebody wants: of the item's ref `source_ref_id`, on the store `target_id`."""

    kind: Kind
    item_id: int
    source_id: int
    source_ref_id: int
    target_id: int
    size: int
    depth: int


def plan_copies(batch: TransferBatch, wanted: Sequence[Wanted]) -> int:
    """Create a transfer for each wanted copy that is not there and not under way; returns how many. What failed in this batch
    waits for its retry. A chain's members are Blocked behind their parent's transfer to the same store, which is planned before.
    """
    planned = 0
    groups: dict[tuple[Kind, int], list[Wanted]] = defaultdict(list)
    for copy in wanted:
        groups[copy.kind, copy.target_id].append(copy)
    with transaction.atomic():
        plan_alone(*{target_id for _, target_id in groups})
        for (kind, target_id), group in groups.items():
            planned += _plan_group(batch, kind, target_id, group)
    if planned:
        wake(PUMP)
    return planned


def _plan_group(batch: TransferBatch, kind: Kind, target_id: int, group: Sequence[Wanted]) -> int:
    models = KINDS[kind]
    ids = [copy.item_id for copy in group]
    # Whoever deletes one of these items comes before, and it is left out, or after, and finds what is made here.
    locked = models.item.objects.select_for_update(no_key=True).filter(pk__in=ids, removed=None).order_by("pk")
    living = set(locked.values_list("pk", flat=True))
    readable = models.ref.objects.filter(pk__in=[copy.source_ref_id for copy in group], state__in=READABLE)
    sources_left = set(readable.values_list("pk", flat=True))
    there = Transfer.objects.filter(handled(batch), kind=kind, target=target_id, item_id__in=ids)
    busy = set(there.values_list("item_id", flat=True))
    refs = models.ref.objects.filter(store=target_id, item_id__in=ids).exclude(state=RefState.DESTROYED)
    known = {item_id: (pk, state) for item_id, pk, state in refs.values_list("item_id", "pk", "state")}
    begin = {RefState.ALLOCATED, RefState.FAILED, RefState.CREATING}
    chosen = [
        copy
        for copy in group
        if copy.item_id in living
        and copy.source_ref_id in sources_left
        and copy.item_id not in busy
        and (copy.item_id not in known or known[copy.item_id][1] in begin)
    ]
    again = [known[copy.item_id][0] for copy in chosen if copy.item_id in known]
    models.ref.objects.filter(pk__in=again).update(state=RefState.CREATING, updated=Now())
    new = [copy for copy in chosen if copy.item_id not in known]
    made = models.ref.objects.bulk_create(
        models.ref(store_id=target_id, item_id=copy.item_id, state=RefState.CREATING) for copy in new
    )
    ref_ids = {item_id: pk for item_id, (pk, _) in known.items()} | {ref.item_id: ref.pk for ref in made}
    Transfer.objects.bulk_create(
        Transfer(
            kind=kind,
            item_id=copy.item_id,
            source_id=copy.source_id,
            target_id=target_id,
            source_ref_id=copy.source_ref_id,
            target_ref_id=ref_ids[copy.item_id],
            batch=batch,
            depth=copy.depth,
            priority=BACKGROUND,
            state=TransferState.BLOCKED if copy.depth else TransferState.QUEUED,
            bytes_total=copy.size,
        )
        for copy in chosen
    )
    if kind == Kind.SNAPSHOT:
        _link_parents(ImageStore.objects.get(pk=target_id))
    return len(chosen)


def _link_parents(target: ImageStore) -> None:
    """Point each Blocked transfer to its parent's; free those whose parent is on the target already."""
    snapshots, refs = KINDS[Kind.SNAPSHOT].item.objects, KINDS[Kind.SNAPSHOT].ref.objects
    blocked = Transfer.objects.filter(kind=Kind.SNAPSHOT, target=target, state=TransferState.BLOCKED, parent=None)
    there = refs.filter(pk=OuterRef("target_ref_id"), state__in=READABLE)
    coming = Transfer.objects.filter(~Exists(there), kind=Kind.SNAPSHOT, target=target, state__in=LIVE_TRANSFER_STATES)
    parent = snapshots.filter(pk=OuterRef(OuterRef("item_id"))).values("parent_id")
    blocked.update(parent=Subquery(coming.filter(item_id=Subquery(parent)).values("pk")[:1]))
    present = refs.filter(item=OuterRef("parent"), store=target, state__in=READABLE)
    absent_parent = snapshots.filter(~Exists(present), pk=OuterRef("item_id"), parent__isnull=False)
    _queue_with_source(Kind.SNAPSHOT, blocked.filter(~Exists(absent_parent)))
    fail_behind_parent(blocked)


def _queue_with_source(kind: Kind, blocked: QuerySet[Transfer]) -> None:
    """Queue what waits for no parent and whose source can be read; behind the copy that brings the source; or fail it."""
    readable = KINDS[kind].ref.objects.filter(pk=OuterRef("source_ref_id"), state__in=READABLE)
    free = next_state(TRANSFER_TRANSITIONS, TransferState.BLOCKED, TransferEvent.UNBLOCK)
    blocked.filter(Exists(readable)).update(state=free)
    coming = Transfer.objects.filter(kind=kind, target_ref_id=OuterRef("source_ref_id"), state__in=LIVE_TRANSFER_STATES)
    blocked.filter(Exists(coming)).update(parent=Subquery(coming.values("pk")[:1]))
    fail_without_source(blocked)


def unblock_ready() -> int:
    """Free what is Blocked behind a parent that is proven: the net below `prove`, which does it at once. What waits for a
    transfer that ended otherwise finds another of the parent, or fails with it."""
    freed = update_in_order(
        Transfer.objects.filter(parent__state=TransferState.PROVEN),
        [TransferState.BLOCKED],
        state=next_state(TRANSFER_TRANSITIONS, TransferState.BLOCKED, TransferEvent.UNBLOCK),
    )
    _unblock_orphans()
    failed = Transfer.objects.filter(state=TransferState.FAILED, children__state=TransferState.BLOCKED)
    fail_descendants(list(failed.values_list("pk", flat=True)))
    return freed


def _unblock_orphans() -> None:
    orphans = Transfer.objects.filter(state=TransferState.BLOCKED)
    orphans = orphans.filter(Q(parent=None) | Q(parent__state=TransferState.CANCELLED))
    for target in ImageStore.objects.filter(pk__in=orphans.values("target")):
        with transaction.atomic():
            orphans.filter(target=target).exclude(parent=None).update(parent=None)
            _link_parents(target)
            for kind in set(KINDS) - {Kind.SNAPSHOT}:
                _queue_with_source(kind, orphans.filter(kind=kind, target=target, parent=None))


def retry(*, actor: Actor, transfers: QuerySet[Transfer], target: str) -> int:
    """Queue Failed transfers again, and what failed only behind them; children wait for their parents. Returns how many.
    Raises Denied.

    Those whose item came to the target by another transfer, is coming by one, or was deleted are Cancelled instead.
    """
    with audited(actor, ActorRole.OPERATOR, "transfer.retry", target):
        failed = transfers.filter(state__in=sources(TRANSFER_TRANSITIONS, TransferEvent.RETRY))
        cancel_live(failed.filter(_superseded()))
        ids = _with_failed_behind(failed.values_list("pk", flat=True))
        roots = Q(parent=None, depth=0) | Q(parent__state=TransferState.PROVEN)
        common = {"attempts": 0, "faults": 0, "lost": 0, "next_attempt_at": Now(), "finished_at": None}
        common |= {"error": "", "error_cause": "", "remedy": ""}
        for chunk in slices(ids, 500):
            rows = Transfer.objects.filter(pk__in=chunk, state=TransferState.FAILED)
            queued = list(rows.filter(roots).values_list("pk", flat=True))
            behind = next_state(TRANSFER_TRANSITIONS, TransferState.FAILED, TransferEvent.RETRY_BEHIND_PARENT)
            rows.exclude(pk__in=queued).update(state=behind, **common)
            again = next_state(TRANSFER_TRANSITIONS, TransferState.FAILED, TransferEvent.RETRY)
            rows.filter(pk__in=queued).update(state=again, **common)
            choose_other_sources(chunk)
            for kind in KINDS:
                again_here = Transfer.objects.filter(pk__in=chunk, kind=kind, state__in=LIVE_TRANSFER_STATES)
                _begin_again(kind, list(again_here.values_list("target_ref_id", flat=True)))
        _unblock_orphans()
        record(actor, "transfer.retry", target, count=len(ids))
        wake(PUMP)
        return len(ids)


def _with_failed_behind(ids: Iterable[int]) -> list[int]:
    """These transfers and, after them, those that failed for no other reason than that one of these did."""
    found = dict.fromkeys(ids)
    level = list(found)
    while level:
        behind: list[int] = []
        for chunk in slices(level, 500):
            children = Transfer.objects.filter(parent__in=chunk, state=TransferState.FAILED, error_cause=PARENT_FAILED)
            cancel_live(children.filter(_superseded()))
            behind += children.values_list("pk", flat=True)
        level = [pk for pk in behind if pk not in found]
        found |= dict.fromkeys(level)
    return list(found)


def choose_other_sources(ids: Sequence[int]) -> None:
    """Where another copy can be read, these transfers take that one: the first may be what failed, or is not what it was."""
    for kind, models in KINDS.items():
        rows = list(Transfer.objects.filter(pk__in=ids, kind=kind, state__in=LIVE_TRANSFER_STATES))
        copies = (
            models.ref.objects.filter(item_id__in=[row.item_id for row in rows], state__in=READABLE)
            .filter(store__state=StoreState.ATTACHED)
            .order_by("pk")
            .values_list("item_id", "store_id", "pk")
        )
        others: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for item_id, store_id, ref_id in copies:
            others[item_id].append((store_id, ref_id))
        changed = []
        for row in rows:
            usable = [copy for copy in others[row.item_id] if copy[0] not in {row.source_id, row.target_id}]
            if usable:
                row.source_id, row.source_ref_id = usable[0]
                changed.append(row)
        Transfer.objects.bulk_update(changed, ["source", "source_ref_id"], batch_size=500)


def cancel_overtaken() -> int:
    """Cancel what failed to bring an item to where another transfer has brought it since: nobody need look at it any more."""
    failed = Transfer.objects.filter(state=TransferState.FAILED)
    if not failed.exists():
        return 0
    overtaken = Q(pk__in=[])
    for kind, models in KINDS.items():
        overtaken |= Q(Exists(models.ref.objects.filter(pk=OuterRef("target_ref_id"), state__in=READABLE)), kind=kind)
    return cancel_live(failed.filter(overtaken))


def cancel_batch(batch_id: int) -> int:
    """Cancel what a batch has not ended; returns how many. What was asked for at once, and what that waits for, leaves the batch
    and goes on."""
    live = Transfer.objects.filter(state__in=LIVE_TRANSFER_STATES)
    waited_for = live.filter(pk__in=live.filter(priority=ON_DEMAND).values("parent_id")).exclude(priority=ON_DEMAND)
    while waited_for.update(priority=ON_DEMAND):  # one link of a chain each time
        pass
    own = Transfer.objects.filter(batch=batch_id)
    cancelled = cancel_live(own.exclude(state__in=LIVE_TRANSFER_STATES, priority=ON_DEMAND))
    live.filter(batch=batch_id).update(batch=None, canary=False)
    return cancelled


def _superseded() -> Q:
    same = {"kind": OuterRef("kind"), "item_id": OuterRef("item_id"), "target": OuterRef("target")}
    query = Q(Exists(Transfer.objects.filter(state__in=LIVE_TRANSFER_STATES, **same)))
    later = Transfer.objects.filter(state=TransferState.FAILED, pk__gt=OuterRef("pk"), batch=OuterRef("batch"), **same)
    query |= Q(Exists(later))
    for kind, models in KINDS.items():
        there = models.ref.objects.filter(pk=OuterRef("target_ref_id"), state__in=[*READABLE, *GOING])
        query |= Q(Exists(there), kind=kind)
    return query
