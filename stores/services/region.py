"""Adds zones, and finds zones and stores by the name or uuid that a person or a program gives."""

from __future__ import annotations

import uuid

from django.db import IntegrityError, transaction

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.errors import Conflict, Invalid, Missing
from stores.models import ImageStore, Zone


def add_zone(*, actor: Actor, name: str) -> Zone:
    """Add a zone; raises Invalid for an unusable name, Conflict for a taken one."""
    with audited(actor, ActorRole.STORAGE_ADMIN, "zone.add", name):
        if not name.strip() or len(name) > 255:
            raise Invalid("A zone's name has 1 to 255 characters.", remedy="Choose another name.", field="name")
        try:
            with transaction.atomic():
                zone = Zone.objects.create(name=name.strip())
        except IntegrityError as error:
            message = f"There is already a zone called {name.strip()!r}."
            raise Conflict(message, remedy="Choose another name.", field="name") from error
        record(actor, "zone.add", name, uuid=str(zone.uuid))
    return zone


def find_zone(text: str) -> Zone:
    """The zone of this uuid or name; raises Missing(field="zone")."""
    zone = Zone.objects.filter(uuid=found).first() if (found := _uuid(text)) else None
    zone = zone or Zone.objects.filter(name=text).first()
    if zone is None:
        known = ", ".join(Zone.objects.values_list("name", flat=True)[:20]) or "none yet"
        raise Missing(f"There is no zone {text!r}.", remedy=f"Zones are: {known}. zone_add adds one.", field="zone")
    return zone


def find_store(text: str, *, field: str = "store") -> ImageStore:
    """The store of this uuid or name that was not removed; raises Missing."""
    stores = ImageStore.objects.filter(removed=None)
    store = stores.filter(uuid=found).first() if (found := _uuid(text)) else None
    store = store or stores.filter(name=text).first()
    if store is None:
        known = ", ".join(stores.values_list("name", flat=True)[:20]) or "none yet"
        raise Missing(f"There is no store {text!r}.", remedy=f"Stores are: {known}. store_add adds one.", field=field)
    return store


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
