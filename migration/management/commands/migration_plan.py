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
from migration.rules import DEFAULT, of_drain
from stores.services.transfers import Order


class Command(ServiceCommand):
    help = "Plan the drain of the converted region: a transfer for every item. Nothing moves before migration_start."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", default="")
        parser.add_argument("--zone", action="append", default=[], dest="zones", help="only what has a copy there; repeatable")
        parser.add_argument("--kind", action="append", default=[], dest="kinds", help="template, snapshot, volume; repeatable")
        parser.add_argument("--order", default=DEFAULT.order, help=f"{', '.join(Order)} (default {DEFAULT.order})")
        parser.add_argument(
            "--verification",
            default=DEFAULT.verification,
            help="server: its own checks; read-back: every object is read again too",
        )
        parser.add_argument(
            "--canary-items", type=int, default=DEFAULT.canary_items, help="items that are copied and read back before the rest"
        )
        parser.add_argument("--concurrency", type=int, default=DEFAULT.concurrency, help="items under way at once (default 8)")
        parser.add_argument("--bandwidth", default="none", help="bytes per second, such as 100M (default: no limit)")
        parser.add_argument(
            "--window", default="", help="when it may run: 22:00-06:00, or Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00"
        )
        parser.add_argument("--time-zone", default="", help="by whose clock the windows go, such as Europe/Berlin")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        conversion = open_conversion()
        if conversion is None:
            raise Conflict("The region is not converted, so there is nothing to drain.", remedy="Convert it: use_object_store.")
        row = drain.plan(
            actor=actor,
            conversion=conversion,
            name=options["name"],
            zones=options["zones"],
            kinds=options["kinds"],
            order=options["order"],
            verification=options["verification"],
            canary_items=options["canary_items"],
            concurrency=options["concurrency"],
            bandwidth=bytes_from(options["bandwidth"], "bandwidth"),
            window=options["window"],
            time_zone=options["time_zone"],
        )
        found = drain.progress(row)
        size = human_bytes(found.bytes["total"])
        rules = of_drain(row)
        lines = [f"drain {row.uuid} planned: {found.items['total']} items, {size}"]
        lines += [f"  {about:<10} {words}" for about, words in rules.words()]
        told = {"id": row.uuid, "state": row.state, "items": found.items["total"], "bytes": found.bytes["total"]}
        self.say("\n".join([*lines, "-> migration_start begins it"]), told | {"rules": rules.as_json()})
        return None
