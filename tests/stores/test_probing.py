"""A live test answers in time even when the store does not, and leaves nothing on the store once that goes on."""

from __future__ import annotations

import threading

import pytest

from cloudstorage.errors import Blocked
from stores.models import ImageStore
from stores.services import image_stores
from tests.factories import MEMORY
from tests.fakes import memory
from tests.fakes.memory import MemoryDriver

pytestmark = [pytest.mark.db, pytest.mark.django_db]

PLACE = {"provider": "Memory", "url": "memory://objects", "details": {}}


@pytest.fixture
def server():
    memory.SERVERS.pop("memory://objects", None)
    yield memory.server_at("memory://objects")
    memory.SERVERS.pop("memory://objects", None)


@pytest.fixture
def hung(server, settings, monkeypatch):
    """The store answers no listing until the test says so; then whoever probes it has ended too."""
    settings.STORE_DRIVERS = MEMORY
    answers = threading.Event()
    listing = MemoryDriver.list

    def hang(self, *args, **kwargs):
        answers.wait(60)
        return listing(self, *args, **kwargs)

    monkeypatch.setattr(MemoryDriver, "list", hang)

    def go_on() -> None:
        answers.set()
        for thread in threading.enumerate():
            if thread.name.startswith("probing "):
                thread.join(60)

    yield go_on
    go_on()


def test_test_of_a_hung_store_ends_with_its_steps_and_a_blocker(admin, server, settings, hung):
    settings.PROBE_SECONDS = 2
    steps = image_stores.test_store(actor=admin, **PLACE)
    assert [step.name for step in steps][:4] == ["reach", "ownership", "write", "read back"]
    assert (steps[-1].name, steps[-1].status) == ("time", "blocker")
    assert f"after the step {steps[-2].name!r}" in steps[-1].message
    assert "CLOUDSTORAGE_PROBE_SECONDS" in steps[-1].remedy
    assert server.objects
    hung()
    assert not server.objects


def test_hung_store_is_not_added(admin, settings, hung):
    settings.PROBE_SECONDS = 0.1
    with pytest.raises(Blocked):
        image_stores.add_store(actor=admin, name="objects", **PLACE)
    assert not ImageStore.objects.exists()
