"""`manage.py store_scan`: adopt what lies on a store, and report how it differs from the rows."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, human_bytes
from cloudstorage.errors import Conflict, Invalid
from stores.models import ImageStore
from stores.services.region import find_store
from stores.services.scan import cancel_scan, live_scan, scan_store

_TOLD = ("missing", "orphaned", "changed", "corrupt", "unreadable", "foreign_writes", "conflicts", "in_flight", "unknown")


class Command(ServiceCommand):
    help = "Adopt what lies on a store and report drift; deletes nothing and may be repeated or cut off at any time."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("store", help="name or uuid")
        parser.add_argument("--catalogue", metavar="FILE", help="JSON with the items' names and owners (- = stdin)")
        parser.add_argument("--cancel", action="store_true", help="end the scan of the store that waits or runs, instead")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        store = find_store(options["store"])
        if options["cancel"]:
            self._cancel(actor, store)
            return None
        catalogue = _catalogue(options["catalogue"]) if options["catalogue"] else None
        report = scan_store(actor=actor, store=store, catalogue=catalogue).as_json()
        if self.as_json:
            self.say("", report)
            return None
        found = ", ".join(f"{count} {kind}" for kind, count in report["found"].items()) or "nothing"
        self.stdout.write(f"found {found}: {report['files']} files, {human_bytes(report['bytes'])}, in {report['seconds']:.1f} s")
        self.stdout.write(f"adopted {report['adopted']}, unchanged {report['unchanged']}")
        for name in _TOLD:
            self._tell(name.replace("_", " "), report[name])
        for rule, count in report["skipped"].items():
            self.stdout.write(f"passed over {count} by the rule {rule}")
        return None

    def _cancel(self, actor: Actor, store: ImageStore) -> None:
        run = live_scan(store)
        if run is None:
            raise Conflict(f"No scan of {store.name} waits or runs.", remedy="Nothing is to be done.")
        cancel_scan(actor=actor, run=run)
        self.say(f"the scan of {store.name} by {run.actor} is cancelled", {"id": run.uuid, "state": run.state})

    def _tell(self, name: str, findings: Mapping[str, Any]) -> None:
        if not findings["count"]:
            return
        self.stdout.write(f"{name}: {findings['count']}")
        for example in findings["examples"][:20]:
            self.stdout.write(f"  {example['path']}" + (f": {example['message']}" if example["message"] else ""))


def _catalogue(source: str) -> dict[str, Any]:
    try:
        text = Path("/dev/stdin" if source == "-" else source).read_text()
        found = json.loads(text)
    except OSError as error:
        raise Invalid(f"The catalogue cannot be read: {error.strerror}.", field="catalogue") from None
    except ValueError as error:
        raise Invalid(f"The catalogue is not JSON: {error}.", field="catalogue") from None
    if not isinstance(found, dict):
        raise Invalid("The catalogue must be a JSON object.", field="catalogue")
    return found
