"""`manage.py store_list`: the image stores and what is on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, human_bytes
from stores.models import ImageStore


class Command(ServiceCommand):
    help = "List the image stores."

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        stores = list(ImageStore.objects.with_usage().filter(removed=None).select_related("zone"))
        if self.as_json:
            self.say("", [_as_json(store) for store in stores])
            return None
        headings = ("NAME", "PROVIDER", "ROLE", "ZONE", "STATE", "TEMPLATES", "SNAPSHOTS", "VOLUMES", "PENDING", "BYTES", "PLACE")
        self.tell_table(headings, [_as_row(store) for store in stores])
        return None


def _as_json(store: Any) -> dict[str, object]:
    return {
        "id": store.uuid,
        "name": store.name,
        "provider": store.image_provider_name,
        "url": store.url,
        "place": store.place,
        "role": store.role,
        "zone": store.zone.name if store.zone else None,
        "state": store.state,
        "readonly": store.readonly,
        "templates": store.templates,
        "snapshots": store.snapshots,
        "volumes": store.volumes,
        "pending": store.pending,
        "bytes": store.bytes,
        "probed_at": store.probed_at,
        "scanned_at": store.scanned_at,
    }


def _as_row(store: Any) -> tuple[object, ...]:
    zone = store.zone.name if store.zone else "(region)"
    counts = (store.templates, store.snapshots, store.volumes, store.pending)
    return (store.name, store.image_provider_name, store.role, zone, store.state, *counts, human_bytes(store.bytes), store.place)
