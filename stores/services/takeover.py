"""Takes over the identity of a cloud whose database was lost, so that its stores, and what they say of themselves, are ours."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from django.db import transaction

from cloudstorage import audit
from cloudstorage.actors import Actor, ActorRole
from cloudstorage.errors import Conflict, Invalid
from cloudstorage.models import Installation
from stores.models import ImageStore, Zone
from stores.services import life
from stores.services.image_stores import store_errors, trial_driver


def take_over(
    *, actor: Actor, provider: str, url: str = "", details: Mapping[str, str], zone: Zone | None = None, cloud: str
) -> None:
    """Become the cloud `cloud` (a uuid), whose marker the store at that place carries; then the store can be added.

    Only for a database that knows no store yet: two clouds are never made one. Naming the cloud is the operator's word that its
    own installation is gone for good; nothing in the store could tell that. Raises Invalid naming the field, Conflict.
    """
    with audit.refusals_noted(actor, ActorRole.STORAGE_ADMIN, "cloud.take-over", cloud):
        try:
            wanted = str(uuid.UUID(cloud))
        except ValueError:
            message = f"{cloud!r} is no uuid of a cloud."
            raise Invalid(message, remedy="Take it from the refusal of store_add.", field="take_over") from None
        driver = trial_driver(provider, url, details, zone)
        with store_errors(field="url"):
            marker = driver.read_marker()
        if marker is None:
            message = f"{driver.display_url} carries no marker, so there is no cloud to take over there."
            raise Conflict(message, remedy="Check the place; or add the store without --take-over.", field="take_over")
        if marker.get("cloud") != wanted:
            named = marker.get("cloud", "of an unreadable marker")
            message = f"{driver.display_url} belongs to the cloud {named}, not to {wanted}."
            raise Invalid(message, remedy="Name the cloud that the marker names, if its installation is gone.", field="take_over")
        ours = Installation.get()
        if str(ours.uuid) == wanted:
            return
        if ImageStore.objects.exists():
            message = f"This database is the cloud {ours.uuid} and has stores of its own: it cannot become another one."
            raise Conflict(message, remedy="Use an empty database (manage.py migrate).", field="take_over")
        with transaction.atomic():
            Installation.objects.filter(pk=ours.pk).update(uuid=wanted)
            life.begin()
            audit.record(actor, "cloud.take-over", wanted, former=str(ours.uuid), place=driver.display_url)
