"""The bench's warm process of the product: runs commands and functions that it is told on standard input, one line of JSON each."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import traceback
from typing import Any

import django


def main() -> None:
    django.setup()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed here belongs to the log
    importlib.import_module("migration.tasks")
    for line in sys.stdin:
        function, arguments = json.loads(line)
        module, _, name = function.partition(":")
        try:
            answer = {"told": getattr(importlib.import_module(module), name)(*arguments)}
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


def command(name: str, *arguments: str) -> Any:
    """What `manage.py name --json` prints."""
    from django.core.management import call_command

    out = io.StringIO()
    try:
        call_command(name, *arguments, "--json", stdout=out, stderr=sys.stderr)
    except SystemExit:
        sys.stderr.write(out.getvalue())  # it says why
        raise
    text = out.getvalue().strip()
    return json.loads(text) if text else None


def migrate() -> None:
    from django.core.management import call_command

    from cloudstorage.models import Installation

    call_command("migrate", verbosity=0)
    Installation.get()


def adopt() -> None:
    command("zone_add", "zone1")
    command("store_add", "--name", "nfs1", "--provider", "NFS", "--url", "nfs://filer.example/export", "--zone", "zone1")
    command("store_scan", "nfs1")


def say_that_a_worker_reaches_all() -> None:
    """The preflight asks for it; the round's own workers start when both stores are there, and reach them at once."""
    from stores.models import ImageStore, WorkerReach
    from stores.tasks import register_worker

    worker = register_worker()
    for store in ImageStore.objects.all():
        WorkerReach.objects.create(worker=worker, store=store, ok=True)


def let_that_worker_go() -> None:
    from django.utils import timezone

    from stores.models import Worker, WorkerReach

    WorkerReach.objects.all().delete()
    Worker.objects.update(stopped=timezone.now())


if __name__ == "__main__":
    main()
