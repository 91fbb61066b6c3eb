"""Whoever waits at the queue gets a message when it is put there; where the database tells of it, at once."""

from __future__ import annotations

import threading

import pytest
from django.db import connections
from django.db.models.functions import Now
from django_q.brokers import get_broker
from django_q.brokers.orm import ORM
from django_q.signing import SignedPackage

from cloudstorage import queue
from stores import tasks
from stores.models import SILENT_AFTER, Worker

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


def test_message_for_one_cluster_is_taken_by_no_other(monkeypatch):
    monkeypatch.setattr(queue, "_LOOK_SECONDS", 0)
    monkeypatch.setattr(queue, "_HEAR_SECONDS", 0)
    monkeypatch.setattr(queue.settings, "QUEUE_MUTED", False)
    queue.wake("stores.tasks.pump", cluster="late")
    assert (queue.pending("late"), queue.pending("early")) == (1, 0)

    def found(cluster: str) -> list[str]:
        monkeypatch.setenv("CLOUDSTORAGE_QUEUE_CLUSTER", cluster)
        messages = get_broker().dequeue() or []
        return [SignedPackage.loads(message)["func"] for _, message in messages]

    assert found("early") == []
    assert found("late") == ["stores.tasks.pump"]
    queue.wake("stores.tasks.run_scans")
    assert found("early") == ["stores.tasks.run_scans"]


def test_messages_for_a_worker_that_is_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr(queue.settings, "QUEUE_MUTED", False)
    living, stopped, silent = (tasks.register_worker() for _ in range(3))
    Worker.objects.filter(pk=stopped.pk).update(stopped=Now())
    Worker.objects.filter(pk=silent.pk).update(heartbeat=Now() - 2 * SILENT_AFTER)
    clusters = ["", *(str(worker.uuid) for worker in (living, stopped, silent))]
    for cluster in clusters:
        queue.wake("stores.tasks.pump", cluster=cluster)
    assert [queue.pending(cluster) for cluster in clusters] == [1, 1, 1, 1]
    tasks.forget_the_dead()
    assert [queue.pending(cluster) for cluster in clusters] == [1, 1, 0, 0]
