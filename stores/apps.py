"""What is stored where, as a Django app."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks

from cloudstorage.sessions import end_idle_transactions
from stores.drivers import load


class StoresConfig(AppConfig):
    name = "stores"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        checks.register(check_store_drivers)
        if sys.argv[1:2] in (["worker_queue"], ["worker"]):
            # Who is silent so long has lost its leases; no transaction of theirs waits for anything but the database.
            end_idle_transactions(settings.LEASE_SECONDS)
        if sys.argv[1:2] == ["worker_queue"]:
            _load_before_forking()


def _load_before_forking() -> None:
    """What the queue's processes would each load with their first task: they share it, and the first copy begins earlier."""
    from cloudstorage import queue  # its models can only be imported when all apps are known

    for path, _ in settings.WORKER_TICKS:
        import_module(path.rpartition(".")[0])
    for path in settings.STORE_DRIVERS.values():
        load(path).prepare()
    queue.share_memory_with_forks()


def check_store_drivers(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:  # noqa: ARG001 - Django's signature
    """Every driver of STORE_DRIVERS must load and go by the name it is registered under."""
    found: list[checks.CheckMessage] = []
    hint = "Correct STORE_DRIVERS in the settings: provider name -> dotted path of its driver class."
    for name, path in settings.STORE_DRIVERS.items():
        try:
            driver = load(path)
        except (ImportError, TypeError) as error:
            found.append(checks.Error(f"The store driver {name} cannot be loaded: {error}", hint=hint, id="stores.E001"))
            continue
        if driver.name != name:
            message = f"The store driver {path} is called {driver.name}, not {name}."
            found.append(checks.Error(message, hint=hint, id="stores.E001"))
    return found
