"""`manage.py migration_retry`: try what failed again, all of it or what failed of a cause."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from migration import drain
from migration.commands import DrainCommand
from stores.services import transfers


class Command(DrainCommand):
    help = "Queue failed items of a drain again; mend the causes that migration_status names first."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument(
            "--cause",
            action="append",
            default=[],
            metavar="CAUSE",
            help="only what failed of this cause, as migration_status names it, and what failed behind it; may be repeated",
        )

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        row = self.drain(options)
        count = drain.retry_failed(actor=actor, drain=row, causes=options["cause"])
        told = f"{count} item{'' if count == 1 else 's'} of drain {row.uuid} {'is' if count == 1 else 'are'} tried again"
        if not count and options["cause"]:
            failed = [str(error["cause"]) for error in transfers.errors_by_cause(row.batch) if error["failed"]]
            told += f"; what failed has the causes: {', '.join(sorted(failed)) or 'none'}"
        self.say(told, {"id": row.uuid, "count": count})
        return None
