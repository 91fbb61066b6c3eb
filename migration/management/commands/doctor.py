"""`manage.py doctor`: what is wrong with this installation, and the command that mends it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand
from migration.doctor import examine, repair_counts


class Command(ServiceCommand):
    help = "Examine this installation; changes nothing. Exits with 6 when there is a problem."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--repair-counts", action="store_true", help="first set wrong ref counts to what the holds say")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        repaired = repair_counts(actor=actor) if options["repair_counts"] else 0
        if options["repair_counts"] and not self.as_json:
            self.stdout.write(f"{repaired} ref counts repaired")
        checks = examine(actor=actor)
        if self.as_json:
            self.say("", {"repaired": repaired, "checks": [asdict(check) for check in checks]})
        for check in [] if self.as_json else checks:
            self.stdout.write(f"{check.status:>8}  {check.name}: {check.message}")
            if check.remedy:
                self.stdout.write(f"{'':>8}  -> {check.remedy}")
        return 6 if any(check.status == "problem" for check in checks) else None
