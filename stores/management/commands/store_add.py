"""`manage.py store_add`: add an image store after a live probe."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, add_details_arguments, details_from
from cloudstorage.errors import plain
from stores.services import image_stores, takeover
from stores.services.region import find_zone
from stores.states import Role


class Command(ServiceCommand):
    help = "Add an image store: it is probed step by step first, and a blocker refuses it with nothing changed."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--provider", required=True, help="NFS, S3 or Swift")
        parser.add_argument("--url", default="", help="nfs://host/path, or the endpoint of an object store")
        parser.add_argument("--name", default="", help="default: the url")
        parser.add_argument("--zone", help="name or uuid; NFS stores need one, object stores take none")
        parser.add_argument("--role", choices=[role.value for role in Role], default=Role.IMAGE.value)
        parser.add_argument("--dry-run", action="store_true", help="only probe; nothing is saved")
        parser.add_argument(
            "--take-over",
            metavar="CLOUD",
            default="",
            help="uuid of the cloud whose marker the store carries: its database is lost and this empty one takes its place",
        )
        add_details_arguments(parser)

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        driver = image_stores.driver_class(options["provider"])
        details = details_from(options, {option.name for option in driver.options if option.secret})
        place = {"provider": options["provider"], "url": options["url"], "details": details}
        place["zone"] = find_zone(options["zone"]) if options["zone"] else None
        if options["dry_run"]:
            steps = image_stores.test_store(actor=actor, **place)
            if self.as_json:
                self.say("", {"steps": [plain(step) for step in steps]})
            else:
                self.tell_steps(steps)
            return 4 if any(step.status == "blocker" for step in steps) else None
        if options["take_over"]:
            takeover.take_over(actor=actor, cloud=options["take_over"], **place)
        store = image_stores.add_store(actor=actor, name=options["name"], role=options["role"], **place)
        if not self.as_json:
            self.tell_steps(store.probe_steps)
        found = {"id": store.uuid, "name": store.name, "provider": store.image_provider_name, "role": store.role}
        self.say(f"store {store.name} {store.uuid}", {**found, "url": store.url, "steps": store.probe_steps})
        return None
