"""`manage.py migration_plan`: plan the drain of the open conversion."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, bytes_from, human_bytes
from cloudstorage.errors import Conflict
from migration import drain
from migration.conversion import open_conversion


class Command(ServiceCommand):
    help = "Plan the drain of the converted region: a transfer for every item. Nothing moves before migration_start."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", default="")
        parser.add_argument("--concurrency", type=int, default=8, help="items under way at once (default 8)")
        parser.add_argument("--bandwidth", default="none", help="bytes per second, such as 100M (default: no limit)")
        parser.add_argument("--window", default="", help="HH:MM-HH:MM during which it may run (default: always)")
        parser.add_argument("--canary-items", type=int, default=5, help="items that are copied and read back before the rest")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        conversion = open_conversion()
        if conversion is None:
            raise Conflict("The region is not converted, so there is nothing to drain.", remedy="Convert it: use_object_store.")
        row = drain.plan(
            actor=actor,
            conversion=conversion,
            name=options["name"],
            concurrency=options["concurrency"],
            bandwidth=bytes_from(options["bandwidth"], "bandwidth"),
            window=options["window"],
            canary_items=options["canary_items"],
        )
        found = drain.progress(row)
        size = human_bytes(found.bytes["total"])
        text = f"drain {row.uuid} planned: {found.items['total']} items, {size}\n-> migration_start begins it"
        self.say(text, {"id": row.uuid, "state": row.state, "items": found.items["total"], "bytes": found.bytes["total"]})
        return None
