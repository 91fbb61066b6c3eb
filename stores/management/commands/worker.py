"""`manage.py worker`: registers what this host reaches, supervises a queue cluster, and keeps the clock of all upkeep."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import close_old_connections, connections
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.module_loading import import_string

from cloudstorage import queue
from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand
from cloudstorage.models import Installation
from cloudstorage.stopping import Stopping
from stores.models import ImageStore, Worker, WorkerReach
from stores.services import transfers
from stores.services.image_stores import driver_for
from stores.states import StoreState
from stores.tasks import WORKER_ENV, register_worker
from stores.worker import open_batches

log = logging.getLogger(__name__)

_REACH = "reach"
_REACH_TIMEOUT = 10.0
_OFTEN = 5.0
"""What runs so often keeps its connection to the database: to open one costs both sides more than most runs do."""
_SILENCE_SECONDS = 20.0
"""Work waits and no queue process was seen for so long: the cluster is restarted, all of it."""


class _Repeating:
    """Runs a function every `period` seconds in a thread of its own; a run that hangs delays only itself."""

    def __init__(self, name: str, period: float, function: Callable[[], None]) -> None:
        self.name, self.period, self._function = name, period, function
        self._thread: threading.Thread | None = None
        self._due = threading.Event()
        """Set while it runs, too."""
        self._next = 0.0

    def start_if_due(self) -> None:
        alive = self._thread is not None and self._thread.is_alive()
        if time.monotonic() < self._next or (alive and self._due.is_set()):
            return
        self._next = time.monotonic() + self.period
        self._due.set()
        if not alive:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._due.wait():
            try:
                try:
                    self._function()
                finally:
                    close_old_connections() if self.period <= _OFTEN else connections.close_all()
            except Exception:
                log.exception("%s failed; it runs again in %s s", self.name, self.period)
            self._due.clear()


class _Reach:
    """Checks every store in a thread of its own, so that a hung mount is one row that says so and nothing else."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._checks: dict[int, tuple[threading.Thread, float]] = {}

    def check_all(self) -> None:
        for store in ImageStore.objects.exclude(state=StoreState.REMOVED):
            thread, started = self._checks.get(store.pk, (None, 0.0))
            if thread is not None and thread.is_alive():
                if time.monotonic() - started > _REACH_TIMEOUT:
                    self._note(store.pk, f"no answer for {time.monotonic() - started:.0f} s")
                continue
            thread = threading.Thread(target=self._check, args=(store,), name=f"reach-{store.pk}", daemon=True)
            self._checks[store.pk] = (thread, time.monotonic())
            thread.start()

    def _check(self, store: ImageStore) -> None:
        try:
            driver_for(store).check()
        except Exception as error:  # noqa: BLE001 - whatever it is, the store is not reached, and the row says why
            self._note(store.pk, str(error) or type(error).__name__)
        else:
            self._note(store.pk, "")
        finally:
            connections.close_all()

    def _note(self, store_id: int, error: str) -> None:
        WorkerReach.objects.update_or_create(
            worker=self._worker,
            store_id=store_id,
            defaults={"ok": not error, "error": error[:1000], "checked_at": timezone.now()},
        )


class Command(ServiceCommand):
    help = "Run transfers and upkeep on this host until stopped; several hosts may run one each on the same database."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--until-idle", action="store_true", help="end when no transfer is left that this worker may take")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        worker = register_worker()
        os.environ[WORKER_ENV] = str(worker.pk)
        stopping = Stopping()
        reach = _Reach(worker)
        reach.check_all()
        ticks = [_Repeating(path, period, import_string(path)) for path, period in settings.WORKER_TICKS]
        ticks.append(_Repeating(_REACH, settings.HEARTBEAT_SECONDS, reach.check_all))
        cluster = self._start(worker)
        waiting_since: float | None = None
        self.say(f"worker {worker} is running", {"worker": str(worker.uuid)})
        try:
            while not stopping.wait(1.0):
                close_old_connections()
                try:
                    read_only = bool(Installation.why_read_only())
                    for tick in ticks:
                        if tick.name == _REACH or not read_only:
                            tick.start_if_due()
                    waits, at_work, seen = self._look(worker, read_only=read_only)
                except Exception:
                    log.exception("the database did not answer; trying again")
                    continue
                if waits and at_work < settings.QUEUE_WORKERS:
                    self._ring(worker, settings.QUEUE_WORKERS - at_work)
                waiting_since = None if seen or not waits else waiting_since or time.monotonic()
                silent = waiting_since is not None and time.monotonic() - waiting_since > _SILENCE_SECONDS
                if cluster.poll() is not None or silent:
                    log.warning("the queue cluster %s; it is restarted", "is silent while work waits" if silent else "has ended")
                    queue.kill_cluster(cluster)
                    cluster = self._start(worker)
                    waiting_since = None
                if options["until_idle"] and not waits and not at_work:
                    break
        finally:
            self._stop(worker, cluster)
        return None

    @staticmethod
    def _start(worker: Worker) -> subprocess.Popen[bytes]:
        return queue.start_cluster(str(worker.uuid), {WORKER_ENV: str(worker.pk)})

    @staticmethod
    def _look(worker: Worker, *, read_only: bool = False) -> tuple[bool, int, bool]:
        """(work waits that this worker may take or ask for, how many pumps of ours are at it, whether one was just now).

        One that found all seats of a batch taken has ended again: that is no silence.
        """
        mine = Worker.objects.filter(pk=worker.pk)
        mine.update(heartbeat=Now())
        seen = mine.filter(pumped__gt=Now() - timedelta(seconds=5)).exists()
        waits = not read_only and transfers.waits_for(worker.pk, open_batches=open_batches())
        return waits, transfers.pumps_at_work(worker.pk), seen

    @staticmethod
    def _ring(worker: Worker, missing: int) -> None:
        """Wake so many of our processes, but never pile messages up behind busy or dead ones."""
        cluster = str(worker.uuid)
        if queue.pending(cluster) < settings.QUEUE_WORKERS:
            for _ in range(missing):
                queue.wake(transfers.PUMP, cluster=cluster)

    @staticmethod
    def _stop(worker: Worker, cluster: subprocess.Popen[bytes]) -> None:
        """Let copies stop at their next part and give their transfers back, then end the cluster."""
        try:
            Worker.objects.filter(pk=worker.pk).update(stopped=timezone.now())
            WorkerReach.objects.filter(worker=worker).delete()
        finally:
            cluster.terminate()
            try:
                cluster.wait(30)
            except subprocess.TimeoutExpired:
                log.warning("the queue cluster did not end in 30 s and is killed; its leases lapse by themselves")
            queue.kill_cluster(cluster)
