"""`manage.py migration_pause`: pause a drain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from migration import drain
from migration.commands import DrainCommand


class Command(DrainCommand):
    help = "Pause a drain: what is under way stops within a part and goes on from there later."

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        self.say_drain(drain.pause(actor=actor, drain=self.drain(options)))
        return None
