"""Brings items into being and takes them out again: begin and finish; delete everywhere, the bytes last."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Exists, F, Max, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage import audit
from cloudstorage.actors import Actor, ActorRole
from cloudstorage.checkpoints import reach
from cloudstorage.errors import Conflict, Invalid, Missing
from cloudstorage.queue import wake
from stores import layout
from stores.drivers.base import StoreDriver
from stores.drivers.errors import NotFound, StoreError, Unavailable
from stores.manifest import manifest_sha256
from stores.models import (
    KINDS,
    Account,
    Hold,
    ImageStore,
    Item,
    Kind,
    Snapshot,
    StoreRef,
    TemplateZoneRef,
    Transfer,
    Zone,
)
from stores.services import holds
from stores.services.image_stores import driver_for
from stores.services.inventory import relative_name, transition
from stores.services.transfers import PUMP, cancel_live, install_path_on
from stores.states import (
    LIVE_TRANSFER_STATES,
    READABLE,
    REF_TRANSITIONS,
    Proof,
    RefEvent,
    RefState,
    TransferState,
    next_state,
    sources,
)

log = logging.getLogger(__name__)

WRITE_HOLD_SECONDS = 600
"""How long an unfinished item is known to be under way after its writer was last heard of."""
UNFINISHED_SECONDS = 24 * 3600
"""After how long without a word an unfinished item is given up."""
RETRY_DELETE_SECONDS = 60
_STALE_SECONDS = 1.0
_NOWHERE = (RefState.PROMISED, RefState.DESTROYING, RefState.DESTROYED)
BEING_WRITTEN = "being written"
"""`problem` of a file that was announced but not finished."""

_PROOF_ORDER = (Proof.ADOPTED, Proof.VERIFIED, Proof.ATTESTED, Proof.READ_BACK)


# --- coming into being -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written and proven. `path` is its key on the store; sizes in bytes, `sha256` in hex."""

    path: str
    size: int
    sha256: str
    proof: Proof
    version: str = ""
    etag: str = ""
    format: str = ""
    virtual_size: int | None = None
    backing: str = ""


def begin_item(
    *,
    actor: Actor,
    kind: Kind,
    zone: Zone | None,
    account: Account,
    name: str,
    image_format: str = "",
    hypervisor_type: str = "",
    unique_name: str = "",
    display_text: str = "",
    public: bool = False,
    volume_upstream_id: int | None = None,
    path: str = "",
    parent: Snapshot | None = None,
) -> StoreRef:
    """Make a new item and its ref, Creating, on the store of record of `zone`; `ref.install_path` says where to write.

    Snapshots take `volume_upstream_id`, `path` (their file or directory name) and `parent`: they go to their parent's store,
    and become full (`ref.item.parent` is None) where it cannot be read there. Raises Conflict when no store takes new items.
    """
    with audit.audited(actor, ActorRole.OPERATOR, f"{kind}.begin", name):
        store = _store_of_record(zone, parent)
        if parent is not None:
            _lock_items(Kind.SNAPSHOT, [parent.pk])  # who deletes it sees the child, or is seen here
            parent = parent if _readable_on(parent, store) else None
        common = {"name": name, "account": account, "format": image_format, "hypervisor_type": hypervisor_type}
        if kind is Kind.SNAPSHOT:
            _refuse_late_copy(store, account, volume_upstream_id, path)
            item = _new_snapshot(common, zone, volume_upstream_id, path, parent)
            where = _place(kind, account.pk, item.volume_upstream_id or 0, path)
        else:
            extra: dict[str, Any] = {"zone": zone}
            if kind is Kind.TEMPLATE:
                extra = {"unique_name": unique_name or name, "display_text": display_text, "public": public}
            item = _numbered(KINDS[kind].item, common | extra)
            where = _place(kind, account.pk, item.upstream_id or 0, "")
        if kind is Kind.TEMPLATE:
            zones = [zone] if zone is not None else list(Zone.objects.all())
            TemplateZoneRef.objects.bulk_create(TemplateZoneRef(zone=shown, template_id=item.pk) for shown in zones)
        state = next_state(REF_TRANSITIONS, RefState.ALLOCATED, RefEvent.CREATE_ONLY_REQUESTED)
        install_path = install_path_on(item, where, store)
        ref: StoreRef = KINDS[kind].ref.objects.create(store=store, item=item, state=state, install_path=install_path)
        still_writing(kind, ref)
        audit.record(actor, f"{kind}.begin", f"{kind}:{item.uuid}", name=name, store=str(store.uuid), account=account.pk)
    reach("item.begun")
    return ref


def still_writing(kind: Kind, ref: StoreRef) -> None:
    """A writer's sign of life; without one an unfinished item is given up after a day."""
    holds.take_hold(kind, ref.pk, "write", f"ref {ref.pk}", WRITE_HOLD_SECONDS, states=(RefState.CREATING,))


def announce_file(kind: Kind, ref: StoreRef, path: str) -> None:
    """Note a file before its first byte is written, so that a dead writer's bytes are found and removed."""
    values = {"size": 0, "proof": Proof.ADOPTED, "problem": BEING_WRITTEN}
    KINDS[kind].file.objects.get_or_create(ref_id=ref.pk, path=path, defaults=values)


def retract_file(kind: Kind, ref: StoreRef, path: str) -> None:
    """Take an announcement back: what lies at the path is not ours."""
    KINDS[kind].file.objects.filter(ref_id=ref.pk, path=path, problem=BEING_WRITTEN).delete()


def finish_item(*, actor: Actor, kind: Kind, ref: StoreRef, files: Sequence[WrittenFile]) -> StoreRef:
    """Make a begun item Ready with its files and their proof, in one transaction.

    Where its store became a staging store meanwhile, the promise of the object store and its count are added in the same
    transaction: the store's row is locked, so a conversion either sees the item Ready or is seen here.
    """
    if not files or any(not file.sha256 for file in files):
        raise Invalid(
            "An item is finished with at least one file, each with its SHA-256.", remedy="Write it first.", field="files"
        )
    with audit.audited(actor, ActorRole.OPERATOR, f"{kind}.finish", f"{kind}:{ref.item.uuid}"):
        store = ImageStore.objects.select_for_update(no_key=True).get(pk=ref.store_id)
        _lock_items(kind, [ref.item_id])
        size = sum(file.size for file in files)
        transition(
            ref,
            RefEvent.OPERATION_SUCCEEDED,
            size=size,
            physical_size=size,
            proof=min((file.proof for file in files), key=_PROOF_ORDER.index),
            sha256=manifest_sha256((relative_name(ref.install_path, file.path), file.sha256) for file in files),
            proven_at=timezone.now(),
            error_str="",
        )
        model = KINDS[kind].file
        model.objects.filter(ref_id=ref.pk).delete()
        model.objects.bulk_create(
            model(
                ref_id=ref.pk,
                path=file.path,
                size=file.size,
                version=file.version,
                sha256=file.sha256,
                etag=file.etag,
                proof=file.proof,
                format=file.format,
                virtual_size=file.virtual_size,
                backing=file.backing,
            )
            for file in files
        )
        _tell_size(kind, ref.item_id, files)
        holds.release_hold(kind, ref.pk, "write", f"ref {ref.pk}")
        promised = holds.make_promises(kind, store.pk, [ref])
        audit.record(
            actor, f"{kind}.finish", f"{kind}:{ref.item.uuid}", name=ref.item.name, store=str(store.uuid), promised_on=promised
        )
        reach("item.before-commit")
    reach("item.finished")
    wake(PUMP)
    return ref


def _tell_size(kind: Kind, item_id: int, files: Sequence[WrittenFile]) -> None:
    sizes = [file.virtual_size for file in files if file.virtual_size is not None]
    if sizes:
        KINDS[kind].item.objects.filter(pk=item_id, size=None).update(size=max(sizes))


def _store_of_record(zone: Zone | None, parent: Snapshot | None) -> ImageStore:
    """The store that takes a new item, its row locked: the parent's if it may, else the one with the most free space.

    A conversion that commits meanwhile is waited for, and then the object store is found.
    """
    while True:
        candidates = list(ImageStore.objects.of_record().of_zone(zone).order_by("pk"))
        if not candidates:
            where = f"zone {zone.name}" if zone is not None else "the region"
            message = f"No store of record of {where} takes new items."
            raise Conflict(message, remedy="Add an image store there, or make one writable again.", field="zone")
        near = _stores_with(parent) if parent is not None else set()
        best = min(candidates, key=lambda store: (store.pk not in near, -_free(store), store.pk))
        # Only conditions on the row itself: PostgreSQL asks them again of a row that it had to wait for.
        store = ImageStore.objects.of_record().select_for_update(no_key=True).filter(pk=best.pk).first()
        if store is not None:
            return store


def _free(store: ImageStore) -> float:
    """Free bytes as the last probe saw them; object stores tell none and count as endless."""
    if store.total_size is None or store.used_bytes is None:
        return float("inf")
    return store.total_size - store.used_bytes


def _stores_with(item: Item) -> set[int]:
    ready = KINDS[item.kind].ref.objects.filter(item_id=item.pk, state=RefState.READY)
    return set(ready.values_list("store_id", flat=True))


def _readable_on(item: Item, store: ImageStore) -> bool:
    return store.pk in _stores_with(item)


def _place(kind: Kind, account_id: int, owner_id: int, name: str) -> str:
    try:
        return layout.install_path(kind, account_id, owner_id, name=name)
    except ValueError as error:
        raise Invalid(str(error), remedy="Choose a plain file name.", field="path") from error


def _refuse_late_copy(store: ImageStore, account: Account, volume: int | None, path: str) -> None:
    """A cancelled copy of a deleted snapshot of that name may still publish, over the new one, until the store is swept of it."""
    former = Snapshot.objects.filter(account=account, volume_upstream_id=volume, path=path, removed__isnull=False)
    coming = Transfer.objects.filter(kind=Kind.SNAPSHOT, target=store, swept=False, item_id__in=former.values("pk"))
    if coming.exists():
        message = f"A copy of the deleted snapshot {path!r} of that volume may still be on its way to {store.name}."
        raise Conflict(message, remedy="Try again in some minutes, or choose another name.", field="path")


def _new_snapshot(common: dict[str, Any], zone: Zone | None, volume: int | None, path: str, parent: Snapshot | None) -> Snapshot:
    if volume is None:
        raise Invalid("A snapshot belongs to a volume.", remedy="Give the volume's id.", field="volume_upstream_id")
    depth = 0 if parent is None else parent.depth + 1
    try:
        with transaction.atomic():
            return Snapshot.objects.create(**common, zone=zone, volume_upstream_id=volume, path=path, parent=parent, depth=depth)
    except IntegrityError as error:
        message = f"The volume {volume} of that account already has a snapshot {path!r}."
        raise Conflict(message, remedy="Choose another name.", field="path") from error


def _numbered(model: type[Item], values: dict[str, Any]) -> Any:
    """A new item with the next free id, which stands in its path; ids of removed items are not used again."""
    rows: Any = model._default_manager  # noqa: SLF001 - Django's public name for it
    for _ in range(10):
        highest = rows.aggregate(highest=Max("upstream_id"))["highest"] or 0
        with suppress(IntegrityError), transaction.atomic():  # somebody took the same number at the same moment
            return rows.create(**values, upstream_id=highest + 1)
    raise Conflict("Too many items are made at this moment.", remedy="Try again.")


# --- going -----------------------------------------------------------------------------------------------------------------


def delete_item(*, actor: Actor, kind: Kind, item: Item) -> None:
    """Delete an item everywhere: from now on nobody reads it; `finish_deletes` removes the bytes.

    A snapshot that living snapshots build on is only hidden, and goes with the last of them (CloudStack's rule). Transfers of
    what goes are cancelled. Raises Missing when it is gone already, Conflict when it cannot be hidden yet.
    """
    with audit.audited(actor, ActorRole.STORAGE_ADMIN, f"{kind}.delete", f"{kind}:{item.uuid}"):
        _lock(kind, [item.pk, *_hidden_parents(kind, item)])
        going: list[int] = []
        hidden = False
        if _is_going(kind, item.pk):
            raise Missing(f"The {kind} {item.name} is deleted already.", remedy="Nothing to do.")
        if kind is Kind.SNAPSHOT and _has_children(item.pk):
            hidden = True
            _hide(item)
        else:
            going = _destroy_with_parents(kind, item)
        cancelled = cancel_live(Transfer.objects.filter(kind=kind, item_id__in=going))
        audit.record(
            actor, f"{kind}.delete", f"{kind}:{item.uuid}", name=item.name, hidden=hidden, items=len(going), cancelled=cancelled
        )
        reach("delete.before-commit")
        wake(PUMP)
    reach("delete.requested")


def _lock(kind: Kind, item_ids: Collection[int]) -> None:
    """Let one at a time decide on these items. Against deadlocks: items before transfers, as in `ensure`, and these before refs,
    as when a worker proves a copy."""
    _lock_items(kind, item_ids)
    transfers = Transfer.objects.filter(kind=kind, item_id__in=item_ids, state__in=LIVE_TRANSFER_STATES)
    list(transfers.select_for_update().order_by("pk").values_list("pk"))


def _lock_items(kind: Kind, item_ids: Collection[int]) -> None:
    rows = KINDS[kind].item.objects.select_for_update(no_key=True).filter(pk__in=item_ids)
    list(rows.order_by("pk").values_list("pk"))


def _hidden_parents(kind: Kind, item: Item) -> list[int]:
    """The parent, its parent and so on as long as they were deleted and are kept for their children only."""
    found: list[int] = []
    parent_id = getattr(item, "parent_id", None)
    while parent_id is not None and KINDS[kind].ref.objects.filter(item_id=parent_id, state=RefState.HIDDEN).exists():
        found.append(parent_id)
        parent_id = Snapshot.objects.values_list("parent_id", flat=True).get(pk=parent_id)
    return found


def _is_going(kind: Kind, item_id: int) -> bool:
    states = set(KINDS[kind].ref.objects.filter(item_id=item_id).values_list("state", flat=True))
    return RefState.HIDDEN in states or states <= {RefState.DESTROYING, RefState.DESTROYED}


def _living(refs: Any) -> Any:
    return refs.exclude(state__in=[RefState.DESTROYING, RefState.DESTROYED])


def _has_children(snapshot_id: int) -> bool:
    """Whether a snapshot builds on this one that is not on its way out; a hidden one counts, for it has children itself."""
    refs = _living(KINDS[Kind.SNAPSHOT].ref.objects.filter(item_id=OuterRef("pk")))
    return Snapshot.objects.filter(Exists(refs), parent_id=snapshot_id).exists()


def _hide(item: Item) -> None:
    refs = KINDS[Kind.SNAPSHOT].ref.objects.filter(item_id=item.pk)
    # A copy that is just being proven is waited for: it becomes Ready before, or is hidden by `keep_hidden` after.
    list(refs.select_for_update(no_key=True).order_by("pk").values_list("pk"))
    hiding = {
        "state": next_state(REF_TRANSITIONS, RefState.READY, RefEvent.HIDE_REQUESTED),
        "updated": Now(),
        "update_count": F("update_count") + 1,
        "journalled": False,
    }
    if refs.filter(state=RefState.READY).update(**hiding):
        return
    # Of a damaged copy no proof is left but that it lies there; what is known of it is kept, so no copy of it is ever proven.
    damaged = refs.filter(state=RefState.FAILED).exclude(install_path="")
    if damaged.update(proof=Proof.ADOPTED, **hiding):
        holds.keep_promises(Kind.SNAPSHOT, [item.pk])
        return
    message = f"The snapshot {item.name} has children that build on it, and none of its own copies is complete."
    raise Conflict(message, remedy="Wait until one is, then delete it; or delete its children first.")


def _destroy_with_parents(kind: Kind, item: Item) -> list[int]:
    """Destroy an item's refs, and those of each hidden parent that nothing builds on any more; returns the items."""
    going = [item.pk]
    _destroy(kind, item.pk)
    for parent_id in _hidden_parents(kind, item):
        if _has_children(parent_id):
            break
        _destroy(kind, parent_id)
        going.append(parent_id)
    return going


def _destroy(kind: Kind, item_id: int) -> None:
    refs = KINDS[kind].ref.objects
    destroyable = [state for state in sources(REF_TRANSITIONS, RefEvent.DESTROY_REQUESTED) if state != RefState.DESTROYING]
    # Again until nothing is left: a conversion that this waited for has added a promise that the statement did not see.
    while refs.filter(item_id=item_id, state__in=destroyable).update(
        state=RefState.DESTROYING, updated=Now(), update_count=F("update_count") + 1, error_str=""
    ):
        pass
    holds.keep_promises(kind, [item_id])


def finish_deletes(limit: int = 100, *, avoid_stores: Collection[int] = ()) -> int:
    """Remove the bytes of up to `limit` refs that are Destroying and that nobody reads; returns how many are Destroyed.

    Repeatable at any point. A store that does not answer keeps its refs Destroying with the reason, and is asked again later.
    """
    done = 0
    dark = set(avoid_stores)
    for kind, models in KINDS.items():
        held = Hold.objects.filter(kind=kind, ref_id=OuterRef("pk")).exclude(expires__lt=Now())
        recent = Now() - timedelta(seconds=RETRY_DELETE_SECONDS)
        refs = (
            models.ref.objects.filter(~Exists(held), state=RefState.DESTROYING)
            .filter(Q(error_str="") | Q(updated__lt=recent))
            .exclude(store_id__in=dark)
            .select_related("store")
            .prefetch_related("files")
            .order_by("updated", "pk")[: limit - done]
        )
        going = _Going(kind)
        by_store: dict[int, list[Any]] = defaultdict(list)
        for ref in refs:
            by_store[ref.store_id].append(ref)
        for group in by_store.values():
            gone = _delete_bytes(kind, group, going)
            reach("delete.bytes-gone")
            _write_off(kind, gone)
            done += len(gone)
        if done >= limit:
            break
    return done


def _delete_bytes(kind: Kind, refs: Sequence[Any], going: _Going) -> list[Any]:
    """Delete the files of refs of one store; returns those of which nothing is left. The others say why."""
    gone = [ref for ref in refs if not ref.files.all()]
    full = [ref for ref in refs if ref.files.all()]
    try:
        if full:
            driver = driver_for(full[0].store)
            driver.check()
    except Exception as error:  # noqa: BLE001 - it is told at the refs
        _note_failure(kind, full, error)
        return gone
    for position, ref in enumerate(full):
        try:
            if _delete_files(driver, kind, ref, going):
                gone.append(ref)
        except Unavailable as error:
            _note_failure(kind, full[position:], error)
            break
        except Exception as error:  # noqa: BLE001 - it is told at the ref
            _note_failure(kind, [ref], error)
    return gone


class _Going:
    """Whether refs are still to go, asked again where the answer is old: while this or another store hung, another host may have
    finished this, and a new snapshot taken the same path. To be made before the refs are read."""

    def __init__(self, kind: Kind) -> None:
        self._refs = KINDS[kind].ref.objects.filter(state=RefState.DESTROYING)
        self._read = time.monotonic()
        self._asked: dict[int, float] = {}

    def is_to_go(self, ref: Any) -> bool:
        if time.monotonic() - self._asked.get(ref.pk, self._read) <= _STALE_SECONDS:
            return True
        self._asked[ref.pk] = time.monotonic()
        return bool(self._refs.filter(pk=ref.pk).exists())


def _delete_files(driver: StoreDriver, kind: Kind, ref: Any, going: _Going) -> bool:
    """Whether nothing is left of it; false as soon as somebody else has finished it."""
    for file in ref.files.all():
        if not going.is_to_go(ref):
            return False
        with suppress(NotFound):
            driver.delete(file.path)
        reach("delete.file")
    if any(file.problem == BEING_WRITTEN for file in ref.files.all()):
        for pending in driver.pending_uploads():
            if pending.token == upload_token(kind, ref):
                driver.abort_upload(driver.as_upload(pending))
    return True


def upload_token(kind: Kind, ref: StoreRef) -> str:
    """What marks the uploads of an item that is being written."""
    return f"{kind}-ref-{ref.pk}"


def is_being_written(store: ImageStore, path: str) -> bool:
    """Whether somebody announced that file and has not ended: what a reaper must not take for debris. Stores that tell no token
    of an unfinished upload still tell its key."""
    announced = {"ref__store": store, "ref__state": RefState.CREATING, "path": path, "problem": BEING_WRITTEN}
    return any(models.file.objects.filter(**announced).exists() for models in KINDS.values())


def _note_failure(kind: Kind, refs: Sequence[Any], error: Exception) -> None:
    """Whatever it is, it is noted at these refs: what other stores are to be rid of is not kept waiting by it."""
    if isinstance(error, DatabaseError):
        raise error
    remedy = error.remedy if isinstance(error, StoreError) else "Look into the worker's log."
    if not isinstance(error, StoreError):
        log.error("bytes of %s refs could not be deleted", kind, exc_info=error)
    KINDS[kind].ref.objects.filter(pk__in=[ref.pk for ref in refs], state=RefState.DESTROYING).update(
        state=next_state(REF_TRANSITIONS, RefState.DESTROYING, RefEvent.OPERATION_FAILED),
        updated=Now(),
        update_count=F("update_count") + 1,
        error_str=f"{error} {remedy}"[:255],
    )


def write_off_vanished(kind: Kind, refs: Sequence[Any]) -> list[Any]:
    """Write off readable refs whose bytes the store itself says are not there; returns those that still were readable.

    An item that is nowhere any more is removed with them: of a promise, nothing can be kept.
    """
    models = KINDS[kind]
    with transaction.atomic():
        _lock(kind, sorted({ref.item_id for ref in refs}))
        readable = models.ref.objects.select_for_update(of=("self",)).filter(pk__in=[ref.pk for ref in refs], state__in=READABLE)
        gone = list(readable.select_related("item").order_by("pk"))
        models.ref.objects.filter(pk__in=[ref.pk for ref in gone]).update(
            state=next_state(REF_TRANSITIONS, RefState.READY, RefEvent.DESTROY_REQUESTED), updated=Now(), error_str=""
        )
        _write_off(kind, gone)
        others = models.ref.objects.filter(item_id=OuterRef("item_id")).exclude(state__in=_NOWHERE)
        hopeless = models.ref.objects.filter(
            ~Exists(others), item_id__in=[ref.item_id for ref in gone], state=RefState.PROMISED
        ).select_for_update(of=("self",))
        broken = list(hopeless.order_by("pk"))
        models.ref.objects.filter(pk__in=[ref.pk for ref in broken]).update(
            state=next_state(REF_TRANSITIONS, RefState.PROMISED, RefEvent.DESTROY_REQUESTED), updated=Now()
        )
        cancel_live(Transfer.objects.filter(kind=kind, item_id__in=[ref.item_id for ref in broken]))
        _write_off(kind, broken)
        holds.keep_promises(kind, [ref.item_id for ref in gone])
    return gone


def _write_off(kind: Kind, refs: Sequence[Any]) -> None:
    """Bytes are gone: the refs become Destroyed, and an item without any ref is removed."""
    if not refs:
        return
    models = KINDS[kind]
    ids, item_ids = [ref.pk for ref in refs], sorted({ref.item_id for ref in refs})
    with transaction.atomic():
        _lock_items(kind, item_ids)
        models.ref.objects.filter(pk__in=ids, state=RefState.DESTROYING).update(
            state=next_state(REF_TRANSITIONS, RefState.DESTROYING, RefEvent.OPERATION_SUCCEEDED),
            updated=timezone.now(),
            update_count=F("update_count") + 1,
            error_str="",
            ref_cnt=0,
        )
        Hold.objects.filter(kind=kind, ref_id__in=ids).delete()
        models.file.objects.filter(ref_id__in=ids).delete()
        left = models.ref.objects.filter(item_id=OuterRef("pk")).exclude(state=RefState.DESTROYED)
        gone = models.item.objects.filter(~Exists(left), pk__in=item_ids, removed=None)
        removed = list(gone.values_list("pk", flat=True))
        models.item.objects.filter(pk__in=removed).update(removed=timezone.now())
        if kind is Kind.TEMPLATE:
            TemplateZoneRef.objects.filter(template_id__in=removed, removed=None).update(removed=timezone.now())
        reach("delete.written-off")


def give_up(kind: Kind, ref: StoreRef) -> None:
    """A begun item will not be finished: its ref is destroyed with what was written of it, now that nobody writes any more. One
    that was finished stays: its writer may have been stopped just after."""
    with transaction.atomic():
        ref.refresh_from_db()  # the writer's own may be of a commit that failed
        with suppress(Conflict):  # somebody deleted it while it was written
            if ref.state == RefState.CREATING:
                transition(ref, RefEvent.DESTROY_REQUESTED)
        holds.release_hold(kind, ref.pk, "write", f"ref {ref.pk}")
        wake(PUMP)


def give_up_unfinished() -> int:
    """Destroy refs that were begun and never finished, whose writer has been silent for a day; returns how many."""
    count = 0
    silent = Now() - timedelta(seconds=UNFINISHED_SECONDS)
    for kind, models in KINDS.items():
        held = Hold.objects.filter(kind=kind, ref_id=OuterRef("pk"), expires__gte=Now())
        waiting = Transfer.objects.filter(
            kind=kind, target_ref_id=OuterRef("pk"), state__in=[*LIVE_TRANSFER_STATES, TransferState.FAILED]
        )
        silent_refs = models.ref.objects.filter(~Exists(held), ~Exists(waiting), state=RefState.CREATING, updated__lt=silent)
        count += silent_refs.update(
            state=next_state(REF_TRANSITIONS, RefState.CREATING, RefEvent.DESTROY_REQUESTED),
            updated=Now(),
            update_count=F("update_count") + 1,
        )
    return count
