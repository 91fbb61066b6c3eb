"""`manage.py store_check`: probe image stores again, live."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand
from cloudstorage.errors import plain
from stores.services.image_stores import probe_store
from stores.services.region import find_store


class Command(ServiceCommand):
    help = "Try an image store out, step by step; the steps are kept on it. Exits with 4 when a step is a blocker."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("store", help="name or uuid")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        store = find_store(options["store"])
        steps = probe_store(actor=actor, store=store)
        if self.as_json:
            self.say("", {"id": store.uuid, "name": store.name, "steps": [plain(step) for step in steps]})
        else:
            self.tell_steps(steps)
        return 4 if any(step.status == "blocker" for step in steps) else None
