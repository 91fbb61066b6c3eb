"""`manage.py zone_add`: add a zone of the cloud."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand
from stores.services.region import add_zone


class Command(ServiceCommand):
    help = "Add a zone; NFS stores belong to one."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        zone = add_zone(actor=actor, name=options["name"])
        self.say(f"zone {zone.name} {zone.uuid}", {"id": zone.uuid, "name": zone.name})
        return None
