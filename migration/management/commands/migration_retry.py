"""`manage.py migration_retry`: try what failed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from migration import drain
from migration.commands import DrainCommand


class Command(DrainCommand):
    help = "Queue every failed item of a drain again; mend the causes that migration_status names first."

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        row = self.drain(options)
        count = drain.retry_failed(actor=actor, drain=row)
        self.say(f"{count} items of drain {row.uuid} are tried again", {"id": row.uuid, "count": count})
        return None
