"""`manage.py migration_limits`: change what a drain may take, while it runs."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import bytes_from
from cloudstorage.errors import Invalid
from migration import drain
from migration.commands import DrainCommand
from stores.services.region import find_store


class Command(DrainCommand):
    help = "Change the limits of a drain; they bite within one part. What is left out stays as it is."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument("--concurrency", type=int, help="items under way at once")
        parser.add_argument("--bandwidth", help="bytes per second, such as 100M; none = no limit")
        parser.add_argument("--window", help="22:00-06:00, or Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00; always = no window")
        parser.add_argument("--time-zone", help="by whose clock the windows go, such as Europe/Berlin")
        parser.add_argument(
            "--read-limit", action="append", default=[], metavar="STORE=BYTES", help="bytes per second read from one store"
        )

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        given: dict[str, Any] = {}
        if options["concurrency"] is not None:
            given["concurrency"] = options["concurrency"]
        if options["bandwidth"] is not None:
            given["bandwidth"] = bytes_from(options["bandwidth"], "bandwidth")
        if options["window"] is not None:
            given["window"] = "" if options["window"] == "always" else options["window"]
        if options["time_zone"] is not None:
            given["time_zone"] = options["time_zone"]
        if options["read_limit"]:
            given["read_limits"] = dict(map(_read_limit, options["read_limit"]))
        if not given:
            raise Invalid("No limit is given.", remedy="Give --concurrency, --bandwidth, --window, --time-zone or --read-limit.")
        row = drain.set_limits(actor=actor, drain=self.drain(options), **given)
        limits = drain.progress(row).limits
        told = ", ".join(f"{name} {'none' if value in {None, ''} else value}" for name, value in limits.items())
        self.say(f"drain {row.uuid}: {told}", {"id": row.uuid, **limits})
        return None


def _read_limit(text: str) -> tuple[str, int | None]:
    name, equals, limit = text.rpartition("=")
    if not equals:
        message = f"--read-limit takes STORE=BYTES, not {text!r}."
        raise Invalid(message, remedy="As in --read-limit nfs1=100M.", field="read_limits")
    return str(find_store(name, field="read_limits").uuid), bytes_from(limit, "read_limits")
