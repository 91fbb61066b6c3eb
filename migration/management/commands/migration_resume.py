"""`manage.py migration_resume`: let a paused drain go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from migration import drain
from migration.commands import DrainCommand


class Command(DrainCommand):
    help = "Let a paused drain go on, its canary first where that was not proven yet."

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        self.say_drain(drain.resume(actor=actor, drain=self.drain(options)))
        return None
