"""`manage.py migration_cancel`: end a drain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from migration import drain
from migration.commands import DrainCommand


class Command(DrainCommand):
    help = "End a drain: what is proven stays proven, everything else stays readable where it is."

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        self.say_drain(drain.cancel(actor=actor, drain=self.drain(options)))
        return None
