"""What every test shares: real servers on demand, users by role, and an audit trail that tests may empty between them."""

from __future__ import annotations

import importlib
import os
from collections import Counter

import pytest
from django.db import connection
from django.test import TransactionTestCase

from cloudstorage.actors import Actor, ActorRole
from migration import sampling
from stores import worker
from stores.drivers import probe
from stores.drivers.base import MiB

pytest_plugins = ["tests.servers.fixtures"]

# The browser tests' driver keeps an event loop in the main thread, where later tests of the same process use the database.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

_triggers = importlib.import_module("cloudstorage.migrations.0002_append_only_audit_and_roles")
_flush = TransactionTestCase._fixture_teardown


def _flush_with_audit(case: TransactionTestCase) -> None:
    """Tests with real transactions empty every table, which the audit trail's triggers rightly refuse."""
    with connection.schema_editor() as editor:
        _triggers.remove_triggers(None, editor)
    try:
        _flush(case)
    finally:
        with connection.schema_editor() as editor:
            _triggers.install_triggers(None, editor)


TransactionTestCase._fixture_teardown = _flush_with_audit


_SLOW_FIRST = ("longest", "crash", "browser", "live")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files are handed to processes in this order: what is slow first, so that no process is left with it at the end."""
    sizes = Counter(item.path for item in items)
    turns = dict.fromkeys(sizes, len(_SLOW_FIRST))
    for item in items:
        turn = next((turn for turn, mark in enumerate(_SLOW_FIRST) if item.get_closest_marker(mark)), len(_SLOW_FIRST))
        turns[item.path] = min(turn, turns[item.path])
    items.sort(key=lambda item: (turns[item.path], -sizes[item.path], item.path))


@pytest.fixture(autouse=True)
def _quiet_queue(settings) -> None:
    """No test leaves messages for a queue that nobody runs; those that want the bell switch it on."""
    settings.QUEUE_MUTED = True


@pytest.fixture(autouse=True)
def _pumps_end_at_once(request, monkeypatch) -> None:
    """A pump that finds nothing does not look again: nobody gives it work meanwhile."""
    if request.node.get_closest_marker("db"):
        monkeypatch.setattr(worker, "_IDLE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _small_trials(request, monkeypatch) -> None:
    """A probe and a preflight write little where no server has a smallest part: hundreds of tests begin with both."""
    if request.node.get_closest_marker("db") and not request.node.get_closest_marker("live"):
        monkeypatch.setattr(probe, "PART_SIZE", 64 * 1024)
        monkeypatch.setattr(sampling, "WRITE_SIZE", MiB)


@pytest.fixture
def admin() -> Actor:
    return Actor("admin", frozenset({ActorRole.STORAGE_ADMIN, ActorRole.AUDITOR}))


@pytest.fixture
def operator() -> Actor:
    return Actor("operator", frozenset({ActorRole.OPERATOR}))


@pytest.fixture
def viewer() -> Actor:
    return Actor("viewer", frozenset({ActorRole.VIEWER}))
