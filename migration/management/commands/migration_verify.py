"""`manage.py migration_verify`: read again what a store has, and compare it with what was proven."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, human_bytes
from cloudstorage.errors import Conflict, Missing
from migration import report, verify
from migration.models import Verification
from migration.states import LIVE_VERIFICATION_STATES, VerificationState
from stores.models import ImageStore
from stores.services.image_stores import driver_for, store_errors
from stores.services.region import find_store
from stores.states import Role, StoreState


class Command(ServiceCommand):
    help = "Hash a store's content again, all or a sample, or compare its listing with the refs. Exits with 10 on differences."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--store", help="name or uuid (default: the region's object store)")
        parser.add_argument("--sample", type=float, default=100, metavar="PERCENT", help="of the items (default 100)")
        parser.add_argument("--listing", action="store_true", help="compare the listing only; read no content")
        parser.add_argument(
            "--report",
            metavar="FILE",
            help="compare it with the report (JSON or SHA256SUMS) of a retired store, here and now",
        )
        parser.add_argument("--wait", action="store_true", help="do it here and now, and tell what was found")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        if options["report"]:
            return self._compare(Path(options["report"]), options["store"])
        store = find_store(options["store"]) if options["store"] else _object_store()
        mode = Verification.LISTING if options["listing"] else Verification.CONTENT
        if options["wait"]:
            with store_errors():
                driver_for(store).check()
        row = verify.verify(actor=actor, store=store, sample_percent=options["sample"], mode=mode)
        if not options["wait"]:
            self.say(f"verification {row.uuid} of {store.name} is queued", {"id": row.uuid, "state": row.state})
            return None
        told = ""
        while row.state in LIVE_VERIFICATION_STATES:
            verify.run(row)
            row.refresh_from_db()
            if row.note and row.note != told:
                told = row.note
                self.stderr.write(told)
            if row.state == VerificationState.RUNNING:  # the store is silent, or a worker has it: either ends by itself
                time.sleep(1)
        if row.state == VerificationState.CANCELLED:
            raise Conflict(row.note, remedy="Add the store again, then verify it.")
        self._tell(row, store)
        return 10 if row.findings_count else None

    def _compare(self, path: Path, wanted: str | None) -> int | None:
        stores = [find_store(wanted)] if wanted else report.stores_named_in(path) or [_object_store()]
        failed = False
        for store in stores:
            with store_errors():
                found = report.check(path, store)
            failed = failed or bool(found.findings_count)
            lines = [f"{found.files} files of the report read from {store.name}, {human_bytes(found.bytes)}"]
            lines += _differences(found.findings, found.findings_count)
            self.say("\n".join(lines), {"store": store.name, **asdict(found)})
        return 10 if failed else None

    def _tell(self, row: Verification, store: ImageStore) -> None:
        lines = [f"{row.items_checked} entries of {store.name} checked, {human_bytes(row.bytes_checked)} read"]
        lines += _differences(row.findings, row.findings_count)
        counts = {"items_checked": row.items_checked, "bytes_checked": row.bytes_checked, "differences": row.findings_count}
        self.say("\n".join(lines), {"id": row.uuid, "state": row.state, **counts, "findings": row.findings})


def _differences(findings: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    lines = [
        f"  {found['problem']}: {found['path']}: expected {found['expected'] or 'nothing'}, is {found['found'] or 'nothing'}"
        for found in findings[:100]
    ]
    remedies = {_named(found): found["remedy"] for found in findings if found.get("remedy")}
    lines += [f"  {problem} -> {remedy}" for problem, remedy in sorted(remedies.items())]
    return [*lines, f"{count} differences" if count else "no difference"]


def _named(found: Mapping[str, Any]) -> str:
    """The problem, and what came of it."""
    return f"{found['problem']} ({found['outcome']})" if found.get("outcome") else str(found["problem"])


def _object_store() -> ImageStore:
    stores = ImageStore.objects.filter(role=Role.IMAGE, scope="REGION", state=StoreState.ATTACHED)
    store = stores.order_by("id").first()
    if store is None:
        raise Missing("The region has no object store.", remedy="Name a store with --store.", field="store")
    return store
