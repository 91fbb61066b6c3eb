"""`manage.py store_decommission`: retire a staging store, fetch the signed report, and later let its files go."""

from __future__ import annotations

import time
import uuid
from argparse import ArgumentParser
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, human_bytes
from cloudstorage.errors import Blocked, Invalid, Missing, plain
from migration import decommission, report, tasks
from migration.models import Decommission
from migration.states import DecommissionState
from stores.models import ImageStore
from stores.services.region import find_store


class Command(ServiceCommand):
    help = (
        "Retire a staging store: every original and its proven copy are read again by the workers, then the store is removed and"
        " a signed report stays. Its files are left, until --delete-files is asked for. Exits with 4 and the list while anything"
        " on it is needed, with 10 when a difference was found."
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("store", help="name or uuid; of a store that is retired too")
        parser.add_argument(
            "--sample", type=float, default=100, metavar="PERCENT", help="of the copies to read; the report says so"
        )
        parser.add_argument("--dry-run", action="store_true", help="only tell what it would be refused for")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument("--wait", action="store_true", help="do it here and now, and tell what came of it")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--status", action="store_true", help="tell how far the last retirement of the store is")
        what.add_argument("--acknowledge", metavar="COUNT:DIGEST", help="accept that files which no ref knows are given up")
        what.add_argument("--look-again", action="store_true", help="after unknown files were taken away or adopted by a scan")
        what.add_argument("--cancel", action="store_true", help="give the retirement up")
        what.add_argument("--report", metavar="FOLDER", help="write the signed report there: JSON, CSV and SHA256SUMS")
        what.add_argument("--delete-files", action="store_true", help="move the retired files to the export's trash folder")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        if options["report"]:
            return self._write_report(_last(options["store"]), Path(options["report"]))
        if options["status"]:
            return self._tell(_last(options["store"]))
        if options["cancel"]:
            return self._tell(decommission.cancel(actor=actor, row=_last(options["store"])))
        if options["delete_files"]:
            return self._delete(actor, _last(options["store"]), options)
        if options["acknowledge"]:
            count, digest = _acknowledged(options["acknowledge"])
            row = decommission.acknowledge(actor=actor, row=_last(options["store"]), count=count, digest=digest)
        elif options["look_again"]:
            row = decommission.look_again(actor=actor, row=_last(options["store"]))
        else:
            store = find_store(options["store"])
            if options["dry_run"]:
                return self._plan(decommission.plan(actor=actor, store=store), store)
            if not decommission.blockers(store):  # else it is refused with the list, and nobody need be asked
                self.confirm(
                    f"This takes {store.name} out of the cloud once everything on it was read again.", yes=options["yes"]
                )
            row = decommission.begin(actor=actor, store=store, sample_percent=options["sample"])
        return self._follow(row) if options["wait"] else self._tell(row)

    def _plan(self, found: list[decommission.Blocker], store: ImageStore) -> int | None:
        if self.as_json:
            self.say("", {"blockers": [plain(blocker) for blocker in found]})
        elif found:
            self._complain(Blocked(f"{store.name} cannot be retired now.", findings=found))
        else:
            self.say(f"nothing stands against retiring {store.name}; nothing was changed")
        return 4 if found else None

    def _follow(self, row: Decommission) -> int | None:
        while row.state == DecommissionState.CHECKING:
            before = (row.note, row.state)
            tasks.run_verification(row.verification_id)
            row = _again(row)
            if row.state == DecommissionState.CHECKING:  # a store is silent, somebody reads an item, or a worker has it
                if row.note and (row.note, row.state) != before:
                    self.stderr.write(row.note)
                time.sleep(1)
        return self._tell(row)

    def _delete(self, actor: Actor, row: Decommission, options: Mapping[str, Any]) -> int | None:
        self.confirm(f"This moves {row.totals.get('files', 0)} files of {row.store.name} to its trash.", yes=options["yes"])
        decommission.delete_files(actor=actor, row=row, confirm=row.store.name)
        if options["wait"]:
            tasks.delete_retired_files(row.pk)
        return self._tell(_again(row))

    def _write_report(self, row: Decommission, folder: Path) -> int | None:
        written = []
        for form in report.FORMS:
            lines = report.stream(row, form)
            path = folder / report.name_of(row, form)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with path.open("w", encoding="utf-8", newline="") as file:
                    file.writelines(lines)
            except OSError as error:
                raise Invalid(
                    f"{path} cannot be written: {error.strerror}.", remedy="Name another folder.", field="report"
                ) from None
            written.append(str(path))
        self.say("\n".join(written), {"id": row.uuid, "files": written, "sha256sums": row.sums_sha256})
        return None

    def _tell(self, row: Decommission) -> int | None:
        row = _again(row)
        check, store = row.verification, row.store
        lines = [f"retirement {row.uuid} of {store.name}: {row.state}"]
        if row.note:
            lines.append(f"  {row.note}")
        lines.append(f"  {check.items_checked} items looked at, {human_bytes(check.bytes_checked)} read")
        lines += [f"  {found['problem']}: {found['path']}" for found in check.findings[:100]]
        if row.state == DecommissionState.WAITING:
            examples = list(row.unknown.order_by("pk").values_list("path", flat=True)[:20])
            lines += [f"    {path}" for path in examples]
            lines.append(f"  -> to give them up: store_decommission {store.name} --acknowledge {_spelled(row)}")
        if row.state in report.SIGNED:
            lines.append(f"  SHA-256 of the report's SHA256SUMS: {row.sums_sha256}")
        if row.state == DecommissionState.RETIRED:
            lines.append(f"  -> store_decommission {store.uuid} --report FOLDER writes the report; the files are still there")
        figures = {
            "items_checked": check.items_checked,
            "bytes_checked": check.bytes_checked,
            "differences": check.findings_count,
        }
        unknown = {"count": row.unknown_count, "bytes": row.unknown_bytes, "digest": row.unknown_digest}
        found = {"id": row.uuid, "state": row.state, "note": row.note, **figures, "findings": check.findings, "unknown": unknown}
        self.say(
            "\n".join(lines), {**found, "totals": row.totals, "files_deleted": row.files_deleted, "files_left": row.files_left}
        )
        return 10 if row.state == DecommissionState.REFUSED else 4 if row.state == DecommissionState.WAITING else None


def _again(row: Decommission) -> Decommission:
    return Decommission.objects.select_related("store__zone", "verification").get(pk=row.pk)


def _last(text: str) -> Decommission:
    """The last retirement of the store of this name or uuid, which may be removed."""
    rows = Decommission.objects.select_related("store__zone", "verification")
    found = rows.filter(store__name=text).first()
    if found is None:
        with suppress(ValueError):
            found = rows.filter(store__uuid=uuid.UUID(text)).first()
    if found is None:
        raise Missing(f"No store {text!r} is being retired or was.", remedy="Begin with store_decommission STORE.", field="store")
    return found


def _spelled(row: Decommission) -> str:
    return f"{row.unknown_count}:{row.unknown_digest[:16]}"


def _acknowledged(text: str) -> tuple[int, str]:
    count, _, digest = text.partition(":")
    if not (count.isascii() and count.isdigit()) or not digest:
        raise Invalid(f"{text!r} is not COUNT:DIGEST.", remedy="Take it from --status.", field="acknowledge")
    return int(count), digest
