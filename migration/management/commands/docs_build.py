"""`manage.py docs_build`: writes what the docs show of the code (state diagrams, driver options) between their markers."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand
from migration import states as migration_states
from stores import states
from stores.services.image_stores import driver_class, provider_names

_BEGIN, _END = "<!-- generated: {} -->", "<!-- end: {} -->"


def generated() -> dict[str, str]:
    """Marker name -> Markdown."""
    diagrams = {
        "store-ref": states.mermaid(states.REF_TRANSITIONS),
        "image-store": states.mermaid(states.STORE_TRANSITIONS),
        "transfer": states.mermaid(states.TRANSFER_TRANSITIONS),
        "scan": states.mermaid(states.SCAN_TRANSITIONS),
        "conversion": states.mermaid(migration_states.CONVERSION_TRANSITIONS),
        "drain": states.mermaid(migration_states.DRAIN_TRANSITIONS),
        "decommission": states.mermaid(migration_states.DECOMMISSION_TRANSITIONS),
    }
    parts = {name: f"```mermaid\n{diagram}\n```" for name, diagram in diagrams.items()}
    for provider in provider_names():
        rows = ["| option | required | default | meaning |", "|---|---|---|---|"]
        for option in driver_class(provider).options:
            kind = "secret" if option.secret else option.default or ""
            rows.append(f"| `{option.name}` | {'yes' if option.required else ''} | {kind} | {option.label}. {option.help} |")
        parts[f"options-{provider}"] = "\n".join(rows)
    return parts


def rebuilt(text: str) -> str:
    """`text` with every generated section that it has a marker for made anew."""
    for name, content in generated().items():
        begin, end = _BEGIN.format(name), _END.format(name)
        if begin in text:
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


class Command(ServiceCommand):
    help = "Write the generated sections of docs/*.md."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="write nothing; exit status 6 if a page is not current")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        stale = []
        for page in sorted(Path(settings.BASE_DIR / "docs").glob("*.md")):
            text = page.read_text()
            if (fresh := rebuilt(text)) != text:
                stale.append(page.name)
                if not options["check"]:
                    page.write_text(fresh)
        self.say(", ".join(stale) or "every page is current", {"stale": stale})
        return 6 if stale and options["check"] else None
