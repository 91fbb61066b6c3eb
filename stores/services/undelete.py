"""Brings a deleted item back while its bytes wait in the trash of an export: the same item, on the exports that still have it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.audit import record, refusals_noted
from cloudstorage.checkpoints import reach
from cloudstorage.errors import Conflict, Missing, ServiceError
from cloudstorage.queue import wake
from stores.drivers.base import ObjectInfo
from stores.drivers.errors import StoreError
from stores.models import KINDS, ImageStore, Item, Kind, Snapshot, StoreRef, TemplateZoneRef
from stores.services import holds
from stores.services.image_stores import driver_for, refusal
from stores.services.transfers import PUMP
from stores.states import LIVE_REF_STATES, Proof, RefState, StoreState


def undeletable(kind: Kind) -> QuerySet[Any]:
    """Items whose bytes went to the trash of an export in use, within its grace time."""
    models = KINDS[kind]
    since = timezone.now() - timedelta(seconds=settings.TRASH_GRACE_SECONDS)
    copies = _were_whole(models.ref.objects.filter(item=OuterRef("pk")))
    gone = copies.filter(store__scope="ZONE", store__state=StoreState.ATTACHED)
    found: QuerySet[Any] = models.item.objects.filter(Exists(gone), removed__gt=since)
    return found


def _were_whole(refs: QuerySet[Any]) -> QuerySet[Any]:
    """Deleted copies that were Ready until then: no upload that was refused or never ended, and nothing found damaged."""
    return refs.filter(state=RefState.DESTROYED, proof__gt="").exclude(install_path="")


def undelete_item(*, actor: Actor, kind: Kind, item: Item) -> list[str]:
    """Bring the item back on every export whose trash still has it; returns their names.

    Its copies there are Ready with proof *adopted*, since nobody has read them; on a converted region they are promised to the
    object store again. Raises Conflict (it is not deleted, still going, its place is taken, or what it builds on is gone),
    Missing (the grace time is over, if only for some of its files) and Unreachable. May be repeated after a crash.
    """
    with refusals_noted(actor, ActorRole.STORAGE_ADMIN, f"{kind}.undelete", f"{kind}:{item.uuid}"):
        _refuse(kind, item)
        restored: list[str] = []
        failed: ServiceError | None = None
        for ref in _former_copies(kind, item):
            try:
                files = _bring_back(ref)
            except StoreError as error:
                failed = refusal(error)
                continue
            if files and sum(file.size for file in files) < ref.size:
                failed = _half(ref, files)
            elif files:
                _write(actor, kind, ref, files)
                restored.append(ref.store.name)
        if not restored and item.removed is None:
            raise failed or Conflict(f"The {kind} {item.name} is not deleted.", remedy="Nothing to do.")
        if not restored:
            gone = f"No trash has the bytes of {item.name} any more, or it never was whole on an export."
            raise failed or Missing(gone, remedy="Restore it from a backup, and scan the store.")
    return restored


def _refuse(kind: Kind, item: Item) -> None:
    if KINDS[kind].ref.objects.filter(item_id=item.pk, state=RefState.DESTROYING).exists():
        message = f"The {kind} {item.name} is just being deleted."
        raise Conflict(message, remedy="Wait until it is gone from every store, then undelete it.")
    if isinstance(item, Snapshot) and item.parent is not None and item.parent.removed is not None:
        message = f"{item.name} builds on the snapshot {item.parent.name}, which is deleted too."
        raise Conflict(message, remedy=f"Undelete that one first: {item.parent.uuid}.")


def _former_copies(kind: Kind, item: Item) -> list[Any]:
    """The last copy on each store that has none now: where somebody died before, some exports may be done already."""
    refs = KINDS[kind].ref.objects.filter(item_id=item.pk, store__state=StoreState.ATTACHED)
    there = set(refs.filter(state__in=LIVE_REF_STATES).values_list("store", flat=True))
    gone = _were_whole(refs).exclude(store__in=there)
    return list({ref.store_id: ref for ref in gone.select_related("store__zone", "item").order_by("pk")}.values())


def _bring_back(ref: Any) -> list[ObjectInfo]:
    """The files that are in their place again. They may be there already, when somebody died before the rows were written."""
    taken = type(ref).objects.filter(store_id=ref.store_id, install_path=ref.install_path, state__in=LIVE_REF_STATES)
    if taken.exists():
        message = f"Another item lies at {ref.install_path} on {ref.store.name}."
        raise Conflict(message, remedy="Delete that one first, or leave this one deleted.")
    later = type(ref).objects.filter(store_id=ref.store_id, install_path=ref.install_path, pk__gt=ref.pk)
    if later.exclude(item_id=ref.item_id).exists():
        message = f"After {ref.item.name} another item had the place {ref.install_path} on {ref.store.name}, and was deleted too."
        message += " The trash gives back what was deleted last, which may be that one's bytes."
        raise Conflict(message, remedy="Take the right file out of .cs-trash on the export by hand, then scan the store.")
    driver = driver_for(ref.store)
    if not driver.capabilities.trash:
        return []
    driver.check()
    driver.undelete(ref.install_path)
    reach("undelete.bytes-back")
    inside = (ref.install_path, f"{ref.install_path}/")
    return [found for found in driver.list(ref.install_path) if found.key == inside[0] or found.key.startswith(inside[1])]


def _half(ref: Any, files: Sequence[ObjectInfo]) -> Missing:
    """Its files were deleted one by one, maybe hours apart, and so they are purged: half an item is none."""
    have = sum(file.size for file in files)
    message = f"Of {ref.item.name} only {have} of {ref.size} bytes were still in the trash of {ref.store.name}."
    remedy = f"They lie at {ref.install_path} there again: add the rest from a backup and scan the store, or take them away."
    return Missing(message, remedy=remedy)


def _write(actor: Actor, kind: Kind, former: StoreRef, files: Sequence[ObjectInfo]) -> None:
    """The rows of one export, in one transaction with the promise that a conversion asks for."""
    models = KINDS[kind]
    try:
        with transaction.atomic():
            store = ImageStore.objects.select_for_update(no_key=True).get(pk=former.store_id)
            item = models.item.objects.select_for_update(no_key=True).get(pk=former.item_id)
            if kind is Kind.TEMPLATE and item.removed is not None:
                _show_again(item)
            models.item.objects.filter(pk=item.pk).update(removed=None)
            size = sum(file.size for file in files)
            ref = models.ref.objects.create(
                store=store,
                item=item,
                state=RefState.READY,
                install_path=former.install_path,
                size=size,
                physical_size=sum(file.allocated or file.size for file in files),
                proof=Proof.ADOPTED,
            )
            models.file.objects.bulk_create(
                models.file(ref=ref, path=file.key, size=file.size, version=file.version, proof=Proof.ADOPTED) for file in files
            )
            promised = holds.make_promises(kind, store.pk, [ref])
            record(actor, f"{kind}.undelete", f"{kind}:{item.uuid}", name=item.name, store=str(store.uuid), promised_on=promised)
            reach("undelete.before-commit")
            wake(PUMP)
    except IntegrityError as error:
        message = f"Another {kind} has taken the place of this one."
        raise Conflict(message, remedy="Delete that one first, or leave this one deleted.") from error


def _show_again(item: Any) -> None:
    """In the zones that showed it when it was deleted: their rows were taken back after the item's."""
    for shown in TemplateZoneRef.objects.filter(template_id=item.pk, removed__gte=item.removed):
        with suppress(IntegrityError), transaction.atomic():
            TemplateZoneRef.objects.filter(pk=shown.pk).update(removed=None)
