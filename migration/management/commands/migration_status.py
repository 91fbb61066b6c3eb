"""`manage.py migration_status`: how far a drain is, once or until it ends."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cloudstorage.actors import Actor
from cloudstorage.commands import human_bytes, seconds_from
from migration import drain
from migration.commands import DrainCommand, exit_code, progress_as_json, progress_as_text
from migration.models import Drain
from migration.states import ENDED_DRAINS, DrainState


class Command(DrainCommand):
    help = "Show how far a drain is. Exits with 6 when it is finished and items failed; --follow with 4 when it was stopped."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument("--follow", action="store_true", help="until it ends, is cancelled or paused: a bar, or JSON lines")
        parser.add_argument("--interval", type=seconds_from, default=2.0, help="seconds between two looks (default 2)")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        row = self.drain(options)
        found = self._follow(row, options["interval"]) if options["follow"] else drain.progress(row)
        if not (options["follow"] and self.as_json):
            self.say(progress_as_text(row, found), progress_as_json(row, found))
        if options["follow"] and found.state in {DrainState.PAUSED, DrainState.CANCELLED}:
            return 4
        return exit_code(found)

    def _follow(self, row: Drain, interval: float) -> drain.Progress:
        bar = None if self.as_json or not self.stdout.isatty() else self._bar()
        try:
            while True:
                found = drain.progress(row)
                if self.as_json:
                    self.say("", progress_as_json(row, found))
                    self.stdout.flush()
                elif bar is not None:
                    self._draw(bar, found)
                if found.state in {*ENDED_DRAINS, DrainState.PAUSED}:
                    return found
                time.sleep(interval)
        finally:
            if bar is not None:
                bar.stop()

    @staticmethod
    def _bar() -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"))
        bar = Progress(*columns)
        bar.add_task("", total=None, told="")
        bar.start()
        return bar

    @staticmethod
    def _draw(bar: Progress, found: drain.Progress) -> None:
        size = found.bytes
        told = (
            f"{human_bytes(size['proven'])} proven, {human_bytes(size['copied'])} copied, {human_bytes(size['remaining'])} left"
        )
        if found.rate:
            told += f", {human_bytes(found.rate)}/s"
        if found.items["failed"]:
            told += f", {found.items['failed']} failed"
        done = f"{found.state} {found.items['proven']}/{found.items['total']}"
        bar.update(bar.task_ids[0], description=done, total=max(1, size["total"]), completed=size["proven"], told=told)
