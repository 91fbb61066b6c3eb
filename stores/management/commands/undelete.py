"""`manage.py undelete`: bring a deleted item back from the trash of the exports, or list what can be."""

from __future__ import annotations

import uuid
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand
from cloudstorage.errors import Missing
from stores.models import KINDS, Kind
from stores.services.undelete import undeletable, undelete_item

_SHOWN = 100


class Command(ServiceCommand):
    help = "Bring a deleted item back while its bytes wait in the trash of an NFS export; without an item, list what can be."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("kind", choices=[kind.value for kind in Kind])
        parser.add_argument("item", nargs="?", type=uuid.UUID, metavar="UUID", help="of the item; left out, list them")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        kind = Kind(options["kind"])
        if options["item"] is None:
            found = undeletable(kind).order_by("-removed", "-pk")[:_SHOWN]
            if self.as_json:
                self.say("", {"items": [{"id": item.uuid, "name": item.name, "deleted": item.removed} for item in found]})
            else:
                rows = [(item.uuid, f"{item.removed:%Y-%m-%d %H:%M}", item.name) for item in found]
                self.tell_table(["uuid", "deleted", "name"], rows)
            return None
        item = KINDS[kind].item.objects.filter(uuid=options["item"]).first()
        if item is None:
            raise Missing(f"There never was a {kind} {options['item']}.", remedy="List them: leave the uuid out.", field="item")
        stores = undelete_item(actor=actor, kind=kind, item=item)
        self.say(f"{kind} {item.name} is back on {', '.join(stores)}", {"id": item.uuid, "stores": stores})
        return None
