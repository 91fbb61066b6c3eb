"""`manage.py migration_start`: let a planned drain run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from migration import drain
from migration.commands import DrainCommand


class Command(DrainCommand):
    help = "Start a planned drain: its canary first, and the rest once that was read back."

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        self.say_drain(drain.start(actor=actor, drain=self.drain(options)))
        return None
