"""`manage.py worker_queue`: the queue cluster that `manage.py worker` starts."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from cloudstorage import queue


class Command(BaseCommand):
    help = "The queue processes of `manage.py worker`, which starts and watches them; not for people."

    def handle(self, **_options: Any) -> None:
        queue.run_cluster()
