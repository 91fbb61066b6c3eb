"""`manage.py store_update`: new credentials, another name, a read limit, read-only or not."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, add_details_arguments, bytes_from, details_from
from cloudstorage.errors import Invalid
from stores.services import image_stores
from stores.services.region import find_store


class Command(ServiceCommand):
    help = (
        "Change an image store; what is left out stays as it is. New details must pass the live probe and lead to the same"
        " store; workers use them within seconds, without a restart."
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("store", help="name or uuid")
        parser.add_argument("--name", help="its new name")
        parser.add_argument(
            "--readonly", action=BooleanOptionalAction, default=None, help="take no new items, or take them again"
        )
        parser.add_argument("--read-limit", metavar="BYTES", help="per second, such as 100M; none = no limit")
        add_details_arguments(parser)

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        store = find_store(options["store"])
        driver = image_stores.driver_class(store.image_provider_name)
        details = details_from(options, {option.name for option in driver.options if option.secret})
        changes = {name: options[name] for name in ("name", "readonly") if options[name] is not None}
        if details:
            changes["details"] = details
        if options["read_limit"] is not None:
            changes["read_limit"] = bytes_from(options["read_limit"], "read_limit")
        if not changes:
            raise Invalid("Nothing was given to change.", remedy="See store_update --help.", field="store")
        store = image_stores.update_store(actor=actor, store=store, **changes)
        found = {"id": store.uuid, "name": store.name, "readonly": store.readonly, "read_limit": store.read_limit}
        self.say(f"store {store.name} {store.uuid}: changed {', '.join(sorted(changes))}", {**found, "changed": sorted(changes)})
        return None
