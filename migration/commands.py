"""What the commands about a drain or a conversion share: which one is meant, and how far it is, in words."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ValidationError

from cloudstorage.commands import ServiceCommand, human_bytes, human_seconds
from cloudstorage.errors import Missing
from migration.drain import Progress
from migration.findings import Finding
from migration.models import Conversion, Drain
from migration.states import DrainState


class DrainCommand(ServiceCommand):
    """A command about one drain: the newest, unless another is named."""

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--drain", metavar="UUID", help="default: the newest")

    def drain(self, options: Mapping[str, Any]) -> Drain:
        """The drain that is meant; raises Missing."""
        rows = Drain.objects.select_related("batch", "conversion__object_store")
        if not options["drain"]:
            found = rows.first()
            if found is None:
                raise Missing("There is no drain.", remedy="Plan one with migration_plan.", field="drain")
            return found
        try:
            return rows.get(uuid=options["drain"])
        except (Drain.DoesNotExist, ValidationError):
            raise Missing(f"There is no drain {options['drain']}.", remedy="See migration_status.", field="drain") from None

    def say_drain(self, row: Drain) -> None:
        """Its state, and where to go on from here."""
        note = f": {row.note}" if row.note else ""
        self.say(f"drain {row.uuid} is {row.state}{note}", {"id": row.uuid, "state": row.state, "note": row.note})


class ConversionCommand(ServiceCommand):
    """A command about one conversion: the newest, unless another is named."""

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--conversion", metavar="UUID", help="default: the newest")
        parser.add_argument("--dry-run", action="store_true", help="tell the plan; change nothing")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def conversion(self, options: Mapping[str, Any]) -> Conversion:
        """The conversion that is meant; raises Missing."""
        rows = Conversion.objects.select_related("object_store")
        if not options["conversion"]:
            found = rows.first()
            if found is None:
                raise Missing("The region was never converted.", remedy="Convert it: use_object_store.", field="conversion")
            return found
        try:
            return rows.get(uuid=options["conversion"])
        except (Conversion.DoesNotExist, ValidationError):
            message = f"There is no conversion {options['conversion']}."
            raise Missing(message, remedy="Leave it out for the newest.", field="conversion") from None


def findings_as_text(findings: Sequence[Finding]) -> list[str]:
    """Each finding with its remedy."""
    lines = []
    for found in findings:
        lines.append(f"{found.severity:>8}  [{found.code}] {found.message}")
        lines += [f"{'':>10}{example}" for example in found.examples]
        if found.remedy:
            lines.append(f"{'':>8}  -> {found.remedy}" + (" (may be overridden)" if found.overridable else ""))
    return lines


def counts_as_text(counts: Mapping[str, int]) -> str:
    """`2 templates, 1 volume`; `nothing` where there is none."""
    return ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count) or "nothing"


def progress_as_json(row: Drain, found: Progress) -> dict[str, Any]:
    """One object, the same in every line of `--follow --json`."""
    return {"id": row.uuid, **asdict(found)}


def progress_as_text(row: Drain, found: Progress) -> str:
    """Some lines for people; proven, copied and remaining are kept apart."""
    items, size = found.items, found.bytes
    lines = [f"drain {row.uuid} to {row.conversion.object_store.name}: {found.state}"]
    if found.note:
        lines.append(f"  {found.note}")
    lines.append(f"  items   {items['proven']} of {items['total']} proven, {items['running']} running, {items['failed']} failed")
    lines.append(
        f"  bytes   {human_bytes(size['proven'])} of {human_bytes(size['total'])} proven ({found.percent:.1f} %),"
        f" {human_bytes(size['copied'])} copied, {human_bytes(size['remaining'])} remaining"
    )
    if found.rate:
        lines.append(f"  rate    {human_bytes(found.rate)}/s{_eta(found)}")
    if found.window:
        stands = f"closed now, opens {found.window.when}" if found.window.opens else "open now"
        lines.append(f"  window  {found.window.words}, {stands}")
    if found.bottleneck:
        lines.append(f"  held up by: {found.bottleneck.words}. {found.bottleneck.why}")
        if found.bottleneck.remedy:
            lines.append(f"    -> {found.bottleneck.remedy}")
    for error in found.errors:
        lines.append(f"  {error['count']} x {error['cause']}: {error['example']}")
        if error["remedy"]:
            lines.append(f"    -> {error['remedy']}")
    lines.append(f"  possible now: {', '.join(found.allowed) or 'nothing'}")
    return "\n".join(lines)


def _eta(found: Progress) -> str:
    if found.eta_low is None or found.eta_high is None:
        return ""
    low, high = sorted((found.eta_low, found.eta_high))
    return f", {human_seconds(low)} to {human_seconds(high)} left"


def exit_code(found: Progress) -> int:
    """6 for a drain that ended with failures, 0 else."""
    return 6 if found.state == DrainState.FINISHED and found.items["failed"] else 0
