"""`manage.py migration_rollback`: take a converted region back to NFS."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import human_bytes, human_seconds, seconds_from
from migration import rollback
from migration.commands import ConversionCommand, counts_as_text, findings_as_text
from migration.homeward import RollbackPlan
from migration.models import Conversion, Rollback
from migration.states import ConversionState


class Command(ConversionCommand):
    help = (
        "Take the region back to NFS: what is on the object store only is copied home, then the exports are its secondary storage"
        " again. Look with --dry-run first. Exits with 0 when it has ended, 5 while copies are on their way (--follow waits),"
        " 6 when copies home failed."
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument(
            "--override", action="append", default=[], metavar="CODE", help="accept a blocker that may be accepted"
        )
        parser.add_argument("--follow", action="store_true", help="until it has ended, or copies failed")
        parser.add_argument("--interval", type=seconds_from, default=2.0, help="seconds between two looks (default 2)")
        instead = parser.add_mutually_exclusive_group()
        instead.add_argument("--status", action="store_true", help="only tell how far it is")
        instead.add_argument("--retry", action="store_true", help="try the copies home that failed again")
        instead.add_argument("--abandon", action="store_true", help="stay converted after all; what came home stays there")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        row = self.conversion(options)
        if options["dry_run"]:
            plan = rollback.plan_rollback(actor=actor, conversion=row)
            self.say("\n".join([*_lines(plan), "nothing was changed"]), asdict(plan))
            return 4 if any(found.severity == "blocker" for found in plan.findings) else None
        if options["abandon"]:
            done = rollback.abandon(actor=actor, conversion=row)
            text = f"conversion {done.uuid} is {done.state} again\n-> migration_plan plans moving on"
            self.say(text, {"id": done.uuid, "state": done.state})
            return None
        found = self._going(actor, row, options)
        if options["follow"]:
            self._follow(found, options["interval"])
        return self._tell(found)

    def _follow(self, row: Rollback, interval: float) -> None:
        told = ""
        while (now := rollback.progress(row)).state == ConversionState.ROLLING_BACK and not _waits(now.items):
            if now.note != told:
                told = now.note
                self.stderr.write(told)
            time.sleep(interval)

    def _going(self, actor: Actor, row: Conversion, options: Mapping[str, Any]) -> Rollback:
        if options["status"]:
            newest = Rollback.objects.select_related("batch").filter(conversion=row).first()
            return newest or rollback.live(row)
        if options["retry"]:
            rollback.retry(actor=actor, conversion=row)
            return rollback.live(row)
        if not options["yes"] and not self.as_json:
            self.stdout.write("\n".join(_lines(rollback.plan_rollback(actor=actor, conversion=row))))
        self.confirm(f"This ends the use of {row.object_store.name}.", yes=options["yes"])
        return rollback.start(actor=actor, conversion=row, override=options["override"])

    def _tell(self, row: Rollback) -> int | None:
        found = rollback.progress(row)
        items, size = found.items, found.bytes
        lines = [f"roll-back {found.id}: {found.state}", *([f"  {found.note}"] if found.note else [])]
        told = f"{human_bytes(size['proven'])} of {human_bytes(size['total'])}"
        lines.append(f"  home    {items['proven']} of {items['total']} copies, {told}")
        for error in found.errors:
            lines.append(f"  {error['count']} x {error['cause']}: {error['example']}")
            if error["remedy"]:
                lines.append(f"    -> {error['remedy']}")
        self.say("\n".join(lines), asdict(found))
        if found.state != ConversionState.ROLLING_BACK:
            return None
        return 6 if _waits(items) else 5


def _waits(items: Mapping[str, int]) -> bool:
    """Whether it goes on only when a person does something."""
    return bool(items["failed"]) and not any(items[state] for state in ("queued", "blocked", "running"))


def _lines(plan: RollbackPlan) -> list[str]:
    lines = [plan.ends]
    home = {kind: entry["items"] for kind, entry in plan.home.items()}
    size = sum(entry["bytes"] for entry in plan.home.values())
    lines.append(f"to bring home: {counts_as_text(home)} ({human_bytes(size)})")
    for export in plan.exports:
        free = "unknown" if export["free"] is None else human_bytes(export["free"])
        copies = f"{export['items']} {'copy' if export['items'] == 1 else 'copies'}"
        told = f"{copies}, {human_bytes(export['bytes'])}; {free} free"
        lines.append(f"  to {export['name']} (zone {export['zone']}): {told}{'' if export['enough'] else ': NOT ENOUGH'}")
    low, high = plan.time["low_seconds"], plan.time["high_seconds"]
    span = "unknown" if low is None else f"{human_seconds(low)} to {human_seconds(high)}"
    lines.append(f"time: {span} ({plan.time['basis']})")
    lines.append(f"born since the conversion: {counts_as_text(plan.born)}")
    lines.append(f"deleted since the conversion, and staying so: {counts_as_text(plan.deleted)}")
    lines.append(f"promises taken back: {counts_as_text(plan.promised)}")
    lines.append(f"staying on {plan.object_store}, detached and usable again: {counts_as_text(plan.kept)}")
    lines += [f"cannot go home: {found.kind} {found.name}: {found.reason}" for found in plan.stranded]
    return [*lines, *findings_as_text(plan.findings)]
