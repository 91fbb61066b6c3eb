"""`manage.py restore`: load a backup into an empty database, compare it with every store, then open it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloudstorage import backup
from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, passphrase_from
from cloudstorage.errors import Invalid
from migration import recovery


class Command(ServiceCommand):
    help = "Load a backup into an empty database, read-only until it was compared with every store. Exits with 4 if it stays so."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, nargs="?")
        parser.add_argument("--passphrase-file", metavar="FILE", help="opens the key ring (- = stdin)")
        parser.add_argument("--passphrase-env", metavar="VARIABLE")
        parser.add_argument("--check", action="store_true", help="only read the archive and say whether it is whole")
        parser.add_argument("--stay-read-only", action="store_true", help="load only; compare and open later, with --reconcile")
        parser.add_argument("--reconcile", action="store_true", help="compare what was restored with the stores, and open")
        parser.add_argument(
            "--accept-vanished",
            action="append",
            default=[],
            metavar="STORE",
            help="name or uuid of a store whose many missing items are really gone",
        )
        parser.add_argument(
            "--gone",
            action="append",
            default=[],
            metavar="STORE",
            help="name or uuid of a store that does not answer and never will, as an export that was retired since",
        )

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        if (options["file"] is None) != options["reconcile"]:
            raise Invalid("Name a backup, or give --reconcile for one that was restored.", field="file")
        if options["file"] is not None:
            passphrase = passphrase_from(options)
            if options["check"]:
                found = backup.verify(options["file"], passphrase=passphrase)
                self._tell_manifest("is whole", found)
                return None
            self._tell_manifest(
                "was restored, read-only", recovery.restore(actor=actor, path=options["file"], passphrase=passphrase)
            )
            if options["stay_read_only"]:
                return None
        return self._reconcile(actor, options["accept_vanished"], options["gone"])

    def _reconcile(self, actor: Actor, accepted: list[str], gone: list[str]) -> int | None:
        found = recovery.reconcile(actor=actor, accept_vanished=accepted, gone=gone)
        if self.as_json:
            self.say("", asdict(found))
        else:
            for name, told in found.stores.items():
                self.stdout.write(f"{name}: " + ", ".join(f"{what} {count}" for what, count in told.items()))
        if found.opened:
            if not self.as_json:
                self.stdout.write("open: workers may be started")
            return None
        for name in found.undecided:
            self.stderr.write(f"Much is gone from {name}: if that is right, add --accept-vanished {name}; else mend the store.")
        for name in found.unreachable:
            self.stderr.write(
                f"{name} could not be compared: mend what is said above, or add --gone {name} if it is gone for good."
            )
        self.stderr.write("The database stays read-only. Then: manage.py restore --reconcile")
        return 4

    def _tell_manifest(self, what: str, found: backup.Manifest) -> None:
        ring = "with the key ring" if found.has_key_ring else "without a key ring"
        told = {"cloud": found.cloud, "created": found.created, "rows": found.rows, "key_ring": found.has_key_ring}
        self.say(f"the backup of {found.created} {what}: cloud {found.cloud}, {found.rows} rows, {ring}", told)
