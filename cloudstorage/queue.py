"""The one file that knows django-q2: a bell that wakes workers. It may lose, repeat or reorder; the rows are the truth."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django_q.brokers import get_broker
from django_q.brokers.orm import ORM
from django_q.cluster import Cluster
from django_q.models import OrmQ
from django_q.signals import post_spawn
from django_q.tasks import async_task

from cloudstorage.stopping import Stopping

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_CHANNEL = "cloudstorage_queue"
_CLUSTER_ENV = "CLOUDSTORAGE_QUEUE_CLUSTER"
"""In a cluster's processes its name."""
_PARENT_ENV = "CLOUDSTORAGE_QUEUE_PARENT"
"""In a cluster's processes the process that started it."""
_PARENT_SECONDS = 1.0
"""How often a cluster looks whether that one lives: its parent's death would be told to it once for each of its threads."""
_LOOK_SECONDS = 0.2
"""How often a queue is looked at in a database that tells of nothing."""
_HEAR_SECONDS = 0.5
"""How often in one that does: what it tells may be lost, as by a pool of connections before it."""


def wake(task: str, number: int = 0, *, cluster: str = "") -> None:
    """After the present transaction commits, ask the queue to run the function at dotted path `task` with one integer; where a
    `cluster` is named, by that one and no other."""
    transaction.on_commit(lambda: _ring(task, number, cluster))


def _ring(task: str, number: int, cluster: str) -> None:
    if settings.QUEUE_MUTED:
        return
    try:
        async_task(task, number, broker=get_broker(_key_of(cluster)))
    except Exception:
        log.exception("the queue did not take %s(%s); the worker's own clock will find the work", task, number)


class Bell(ORM):  # type: ignore[misc]  # django-q2 has no types
    """The queue as rows of the database; PostgreSQL tells who waits for them at once."""

    list_key: str | None
    _heard: Any = None
    """The connection that listens."""

    def enqueue(self, task: str) -> Any:
        key = super().enqueue(task)
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"NOTIFY {_CHANNEL}")
        return key

    def dequeue(self) -> Any:
        if connection.vendor == "postgresql":
            self._listen()
        if tasks := self._fetch():  # after it listens: what comes between the two is told
            return tasks
        if self._heard is None or connection.connection is not self._heard:
            time.sleep(_LOOK_SECONDS)
        else:
            for _ in self._heard.notifies(timeout=_HEAR_SECONDS, stop_after=1):
                pass
        return None

    def _fetch(self) -> Any:
        """What is for our cluster alone before what is for any: PostgreSQL tells those first that have listened longest, so a new
        cluster would get nothing of what all are asked."""
        shared = self.list_key
        if own := os.environ.get(_CLUSTER_ENV):
            self.list_key = own
            try:
                if tasks := super().dequeue():
                    return tasks
            finally:
                self.list_key = shared
        return super().dequeue()

    def _listen(self) -> None:
        connection.ensure_connection()
        if connection.connection is not self._heard:
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {_CHANNEL}")
            self._heard = connection.connection


def _key_of(cluster: str) -> str | None:
    """Where a cluster's own messages lie; Redis gives those for any to who has waited longest, and needs no other place."""
    return cluster if cluster and "redis" not in settings.Q_CLUSTER else None


def pending(cluster: str = "") -> int:
    """Messages that nobody has fetched yet: those for a cluster alone, or those for any."""
    return int(get_broker(_key_of(cluster)).queue_size())


def forget_all_but(clusters: Collection[str]) -> int:
    """Remove what waits for clusters alone that are none of these: nobody else would ever fetch it. Returns how many messages."""
    if _key_of("any") is None:
        return 0
    kept = [settings.Q_CLUSTER["name"], *clusters]
    return int(OrmQ.objects.exclude(key__in=kept).delete()[0])


def start_cluster(name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a queue cluster as a child in a process group of its own; it stops when this process dies."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter and command
        [sys.executable, str(settings.BASE_DIR / "manage.py"), "worker_queue"],
        env={**os.environ, **environment, _CLUSTER_ENV: name, _PARENT_ENV: str(os.getpid())},
        start_new_session=True,
    )


def run_cluster() -> None:
    """Be the cluster that `start_cluster` started, until it is told to end or who started it has died.

    django-q2's own handler waits for locks and processes inside of the signal, and hangs for ever when it interrupts itself
    (its issue 346): as when a host shuts down, which tells everybody, and the supervisor tells its cluster as well.
    """
    cluster = Cluster()
    stopping = Stopping()  # in the place of its handlers
    cluster.start()
    parent = int(os.environ[_PARENT_ENV])
    while cluster.sentinel.is_alive() and os.getppid() == parent and not stopping.wait(_PARENT_SECONDS):
        pass
    cluster.stop()


def kill_cluster(process: subprocess.Popen[bytes]) -> None:
    """Kill the cluster with every process of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def share_memory_with_forks() -> None:
    """Called in the process that forks a cluster's: keep its garbage collector, and theirs, from what there is at a fork.

    It writes to every object that it looks at, and so each process would soon have a copy of all that was loaded before.
    """
    os.register_at_fork(before=_freeze)


def _freeze() -> None:
    gc.collect()
    gc.freeze()


def _on_spawn(**_: Any) -> None:
    """In each queue process: end with the cluster, whose death would otherwise leave it waiting for ever."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


post_spawn.connect(_on_spawn, dispatch_uid="cloudstorage.queue")
