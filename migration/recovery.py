"""Brings a restored database back to work: read-only at first, compared with every store, then opened."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet

from cloudstorage import audit, backup
from cloudstorage.actors import RECOVERY, Actor, ActorRole
from cloudstorage.checkpoints import reach
from cloudstorage.errors import Conflict, ServiceError
from cloudstorage.models import Installation
from migration import decommission
from migration.models import Decommission, Verification
from migration.rereading import proven_copies
from stores.models import KINDS, ImageStore, Kind
from stores.services import holds, image_stores, items, life
from stores.services.image_stores import driver_for, store_errors
from stores.services.scan import scan_store
from stores.services.scan.rows import MISSING
from stores.states import READABLE, Role, StoreState

MANY_ITEMS, MANY_PERCENT = 20, 10
"""Above both, what vanished from a store is no ordinary deletion: a person decides."""
_PAGE = 500


@dataclass(slots=True)
class Reconciled:
    """What a restored database and its stores had to tell each other."""

    opened: bool = False
    stores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: appeared, vanished, promised again, findings; or why it could not be looked at."""
    undecided: list[str] = field(default_factory=list)
    """Stores from which so much vanished that somebody must accept it."""
    unreachable: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Stores that do not answer and need not, as the operator says."""


def write_backup(*, actor: Actor, path: Path, passphrase: str) -> backup.Manifest:
    """Write database and key ring to one archive, of one moment, while everything goes on."""
    with audit.refusals_noted(_while_read_only(actor), ActorRole.STORAGE_ADMIN, "backup.write", path.name):
        manifest = backup.write(path, passphrase=passphrase)
        audit.record(actor, "backup.write", path.name, rows=manifest.rows, key_ring=manifest.has_key_ring)
    return manifest


def restore(*, actor: Actor, path: Path, passphrase: str) -> backup.Manifest:
    """Load an archive into an empty database; from its first moment on it is read-only and nobody's old work counts there."""
    actor.require(ActorRole.STORAGE_ADMIN)

    return backup.restore(path, passphrase=passphrase, inside=lambda: _begin_life(actor, path.name))


def _begin_life(actor: Actor, name: str) -> None:
    life.begin()
    Verification.objects.update(epoch=F("epoch") + life.EPOCHS, lease_until=None)
    audit.record(actor, "backup.restore", name)


def reconcile(*, actor: Actor, accept_vanished: Collection[str] = (), gone: Collection[str] = ()) -> Reconciled:
    """Compare a restored database with every store: take in what appeared since the backup, write off what vanished, and open.

    It stays read-only while a store does not answer, or while so much is gone from one that only the operator can say whether
    that is right (`accept_vanished` names it). `gone` names stores that will not come back, as an export that was retired since:
    of one that does not answer, what is proven elsewhere is written off, the rest is kept, and it leaves the cloud where nothing
    is left. Repeatable. Raises Conflict where nothing was restored.
    """
    with audit.refusals_noted(_while_read_only(actor), ActorRole.STORAGE_ADMIN, "backup.reconcile", "database"):
        if not Installation.why_read_only():
            raise Conflict("This database is open: there is nothing to reconcile.", remedy="To look for drift, scan the stores.")
        backup.begin_anew(lambda: _begin_life(_while_read_only(actor), "database"))
        found = Reconciled()
        # Staging stores first: whether another copy can be read decides what becomes of an object that appeared.
        stores = ImageStore.objects.filter(state=StoreState.ATTACHED).order_by("-scope", "pk")
        for store in stores:
            try:
                with store_errors():
                    driver_for(store).check()  # an emptied place without our marker says nothing about what vanished
                report = scan_store(actor=RECOVERY, store=store)
            except ServiceError as error:
                (found.gone if _is_named(store, gone) else found.unreachable).append(store.name)
                found.stores[store.name] = {"error": error.message, "remedy": error.remedy}
                continue
            told = {name: getattr(report, name).count for name in ("missing", "changed", "corrupt", "orphaned", "foreign_writes")}
            found.stores[store.name] = {"appeared": report.adopted, "vanished": 0, **told}
        for store in stores:
            if not found.unreachable and store.name not in found.gone:  # what one has lost may lie on one that does not answer
                _write_off(actor, store, found, accepted=_is_named(store, accept_vanished))
        if not found.unreachable and not found.undecided:
            for store in stores:
                if store.name in found.gone:
                    _give_up(actor, store, found)
        if not found.unreachable and not found.undecided:
            with transaction.atomic():
                Installation.objects.update(read_only="")
                audit.record(actor, "backup.open", "database", stores=found.stores)
                reach("restore.before-open")
            found.opened = True
    return found


def _is_named(store: ImageStore, names: Collection[str]) -> bool:
    return store.name in names or str(store.uuid) in names


def _while_read_only(actor: Actor) -> Actor:
    return Actor(actor.name, actor.roles, recovers=True)


def _write_off(actor: Actor, store: ImageStore, found: Reconciled, *, accepted: bool) -> None:
    """What the scan noted as missing, whole items only: a damaged one stays, with its problem."""
    told = found.stores[store.name]
    total = sum(models.ref.objects.filter(store=store, state__in=READABLE).count() for models in KINDS.values())
    gone = sum(_vanished(kind, store).count() for kind in KINDS)
    told["vanished"] = gone
    if gone > MANY_ITEMS and gone * 100 > total * MANY_PERCENT and not accepted:
        found.undecided.append(store.name)
        return
    for kind in KINDS:
        _write_off_pages(actor, kind, store, _vanished(kind, store), told)


def _write_off_pages(actor: Actor, kind: Kind, store: ImageStore, rows: QuerySet[Any], told: dict[str, Any]) -> None:
    while page := list(rows.select_related("item").order_by("pk")[:_PAGE]):
        with transaction.atomic():
            refs = items.write_off_vanished(kind, page)
            told["promised again"] = told.get("promised again", 0) + _promise_again(kind, store, refs)
            names = [f"{kind}:{ref.item.uuid}" for ref in refs]
            audit.record(actor, "backup.write-off", store.name, items=names)


def _give_up(actor: Actor, store: ImageStore, found: Reconciled) -> None:
    """A store that will not come back: forget there what another proves, keep what only it may have."""
    told = found.stores[store.name]
    for row in Decommission.objects.filter(store=store, state__in=decommission.LIVE):
        decommission.cancel(actor=_while_read_only(actor), row=row)
    for kind, models in KINDS.items():
        elsewhere = proven_copies(kind).filter(item_id=OuterRef("item_id")).exclude(store=store)
        _write_off_pages(actor, kind, store, models.ref.objects.filter(Exists(elsewhere), store=store, state__in=READABLE), told)
    told["kept"] = sum(models.ref.objects.filter(store=store, state__in=READABLE).count() for models in KINDS.values())
    if not any(image_stores.forbids_removal(store)):
        image_stores.remove_store(actor=_while_read_only(actor), store=store)


def _vanished(kind: Kind, store: ImageStore) -> QuerySet[Any]:
    models = KINDS[kind]
    files = models.file.objects.filter(ref_id=OuterRef("pk"))
    missing = files.filter(problem__startswith=MISSING)
    rows: QuerySet[Any] = models.ref.objects.filter(Exists(missing), store=store, state__in=READABLE)
    return rows.exclude(Exists(files.exclude(problem__startswith=MISSING)))


def _promise_again(kind: Kind, store: ImageStore, refs: Collection[Any]) -> int:
    """What is gone from the store of record and still lies on a staging store is promised there again."""
    if store.role != Role.IMAGE or store.scope != "REGION":
        return 0
    models = KINDS[kind]
    copies = models.ref.objects.filter(
        item__in=[ref.item_id for ref in refs], state__in=READABLE, store__role=Role.IMAGE_CACHE, store__state=StoreState.ATTACHED
    ).exclude(error_str__startswith=MISSING)
    by_store: dict[int, list[Any]] = {}
    for copy in copies.order_by("pk"):
        by_store.setdefault(copy.store_id, []).append(copy)
    for store_id, group in by_store.items():
        holds.make_promises(kind, store_id, group)
    return len({copy.item_id for group in by_store.values() for copy in group})
