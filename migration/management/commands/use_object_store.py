"""`manage.py use_object_store`: CloudStack's updateCloudToUseObjectStore, with a look before the leap."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, add_details_arguments, details_from, human_bytes, human_seconds
from migration import conversion
from migration.models import Preflight
from migration.preflight import preflight
from stores.services import image_stores


class Command(ServiceCommand):
    help = "Switch the region from NFS to an object store. Run it with --preflight-only first, and read the report."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--provider", required=True, help="S3 or Swift")
        parser.add_argument("--url", default="")
        parser.add_argument("--name", default="", help="default: the url")
        add_details_arguments(parser)
        only = parser.add_mutually_exclusive_group()
        only.add_argument("--preflight-only", action="store_true", help="look at everything and keep the report; change nothing")
        only.add_argument("--dry-run", action="store_true", help="tell what would be changed, exactly; change nothing")
        parser.add_argument(
            "--override", action="append", default=[], metavar="CODE", help="accept a blocker that may be accepted"
        )
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        driver = image_stores.driver_class(options["provider"])
        details = details_from(options, {option.name for option in driver.options if option.secret})
        place = {"provider": options["provider"], "url": options["url"], "name": options["name"], "details": details}
        if options["preflight_only"]:
            found = preflight(actor=actor, **place)
            self._tell_preflight(found)
            return 4 if found.blockers else None
        if not options["dry_run"]:
            self.confirm("This makes every NFS store a staging store of the new object store.", yes=options["yes"])
        done = conversion.update_cloud_to_use_object_store(
            actor=actor, **place, override=options["override"], dry_run=options["dry_run"]
        )
        if isinstance(done, conversion.ConvertPlan):
            self.say(_plan(done), asdict(done))
            return None
        promised = ", ".join(f"{count} {kind}s" for kind, count in done.counts["promised"].items())
        text = (
            f"conversion {done.uuid}: the region uses {done.object_store.name}; promised {promised}"
            f" in {done.counts['seconds']} s\n-> migration_plan plans moving the bytes"
        )
        self.say(text, {"id": done.uuid, "state": done.state, "object_store": done.object_store.uuid, "counts": done.counts})
        return None

    def _tell_preflight(self, row: Preflight) -> None:
        if self.as_json:
            counts = {"blockers": row.blockers, "warnings": row.warnings}
            self.say("", {"id": row.uuid, "created": row.created, **counts, "report": row.report})
            return
        write = self.stdout.write
        write(f"preflight {row.uuid}: {row.blockers} blockers, {row.warnings} warnings")
        for zone in row.report["zones"]:
            items = ", ".join(f"{entry['count']} {kind}s ({_size(entry)})" for kind, entry in zone["items"].items())
            write(f"zone {zone['zone']}: {items or 'nothing'}")
        self.tell_steps(row.report["object_store"]["steps"])
        for finding in row.report["findings"]:
            write(f"{finding['severity']:>8}  [{finding['code']}] {finding['message']}")
            if finding["remedy"]:
                write(f"{'':>8}  -> {finding['remedy']}" + (" (may be overridden)" if finding["overridable"] else ""))
        write(_time(row.report["time"]))
        for line in row.report["not_checked"]:
            write(f"not checked: {line}")


def _size(entry: Mapping[str, Any]) -> str:
    return human_bytes(entry.get("apparent", 0))


def _time(found: Mapping[str, Any]) -> str:
    if found["low_seconds"] is None:
        return f"time: unknown ({found['basis']})"
    return f"time: {human_seconds(found['low_seconds'])} to {human_seconds(found['high_seconds'])} ({found['basis']})"


def _plan(plan: conversion.ConvertPlan) -> str:
    lines = [f"would add {plan.object_store['name']} ({plan.object_store['provider']} {plan.object_store['url']})"]
    for zone in plan.zones:
        lines += [f"zone {zone['zone']}: {store['name']} becomes {store['role_to']}" for store in zone["stores"]]
        lines.append(f"zone {zone['zone']}: {zone['template_refs_added']} templates would be shown in addition")
    lines += [f"would promise {count} {kind}s" for kind, count in plan.promised.items()]
    if plan.overridden:
        lines.append(f"accepted in spite of: {', '.join(plan.overridden)}")
    return "\n".join([*lines, "nothing was changed"])
