"""`manage.py migration_commit`: end the way back to NFS."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import human_bytes
from migration.commands import ConversionCommand, counts_as_text, findings_as_text
from migration.commit import CommitPlan, commit, plan_commit


class Command(ConversionCommand):
    help = "Commit the conversion: it can no longer be rolled back, and the originals on NFS become cache. Deletes nothing."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument(
            "--override", action="append", default=[], metavar="CODE", help="accept a blocker that may be accepted"
        )

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        row = self.conversion(options)
        plan = plan_commit(actor=actor, conversion=row)
        if options["dry_run"]:
            self.say("\n".join([*_lines(plan), "nothing was changed"]), asdict(plan))
            return 4 if any(found.severity == "blocker" for found in plan.findings) else None
        if not self.as_json and not options["yes"]:
            self.stdout.write("\n".join(_lines(plan)))
        self.confirm("This cannot be undone.", yes=options["yes"])
        done = commit(actor=actor, conversion=row, override=options["override"])
        text = f"conversion {done.uuid} is {done.state}: {done.object_store.name} is the record, the originals on NFS are cache"
        self.say(text, {"id": done.uuid, "state": done.state, "ended_at": done.ended_at})
        return None


def _lines(plan: CommitPlan) -> list[str]:
    lines = [plan.ends]
    for store in plan.stores:
        where = f"{store['name']} (zone {store['zone']})"
        lines.append(f"released on {where}: {store['items']} copies, {human_bytes(store['bytes'])}")
    lines.append(f"not yet on {plan.object_store}, and still held where they are: {counts_as_text(plan.promised)}")
    return [*lines, *findings_as_text(plan.findings)]
