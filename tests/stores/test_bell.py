"""Whoever waits at the queue gets a message when it is put there; where the database tells of it, at once."""

from __future__ import annotations

import threading

import pytest
from django.db import connections
from django_q.brokers.orm import ORM

from cloudstorage import queue

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


def test_message_reaches_who_waits_for_it(monkeypatch):
    monkeypatch.setattr(queue, "_HEAR_SECONDS", 600)  # without being told, PostgreSQL's would wait as long
    looked, look = threading.Event(), ORM.dequeue
    monkeypatch.setattr(ORM, "dequeue", lambda bell: (look(bell), looked.set())[0])
    found: list[tuple[int, str]] = []

    def wait() -> None:
        bell = queue.Bell("bell")
        while not found:
            found.extend(bell.dequeue() or [])
        connections.close_all()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert looked.wait(60)
    queue.Bell("bell").enqueue("message")
    waiting.join(60)
    assert [message for _, message in found] == ["message"]
