"""What the queue and the worker's clock call: each takes at most one integer, may run twice, and finds its work in the rows."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Collection

from django.conf import settings
from django.db import connections
from django.db.models import Count, Q

from cloudstorage import queue
from cloudstorage.actors import cli_actor
from cloudstorage.errors import ServiceError
from cloudstorage.models import Installation
from stores import debris, worker
from stores.models import ImageStore, ScanRun, Worker, WorkerReach
from stores.services import holds, items, journal, scan, transfers
from stores.services.image_stores import driver_for
from stores.states import StoreState

log = logging.getLogger(__name__)

WORKER_ENV = "CLOUDSTORAGE_WORKER_ID"

_PATIENCE_SECONDS = 3.0
_SCANS_AT_ONCE = 8
_SCAN_THREAD = "scan-"


def register_worker() -> Worker:
    """The row of this process as a worker."""
    return Worker.objects.create(
        hostname=socket.gethostname(),
        pid=os.getpid(),
        os_user=cli_actor().name.removeprefix("cli:"),
        version=settings.VERSION,
        pumps=settings.QUEUE_WORKERS,
    )


def pump(_number: int = 0) -> int:
    """Run transfers until none is left that this worker may take; returns how many items were proven."""
    worker_id = int(os.environ.get(WORKER_ENV, "0"))
    if not worker_id:
        log.error("a queue cluster was started without `manage.py worker`, which knows what this host reaches; nothing was done")
        return 0

    if Installation.why_read_only():
        return 0

    if not transfers.enlist(worker_id, os.getpid(), limit=settings.QUEUE_WORKERS):  # this queue process is kept for other work
        return 0

    def stop() -> bool:
        return Worker.objects.filter(pk=worker_id, stopped__isnull=False).exists()

    return worker.Pump(worker_id, slots=settings.WORKER_SLOTS, stop=stop, patience=_PATIENCE_SECONDS).run()


def run_scans() -> None:
    """Take up scans that wait, each in a thread: a drain keeps the queue's processes busy for days, and a hung export must hold
    up nothing but its own scan.
    """
    scan.free_abandoned()
    running = sum(thread.name.startswith(_SCAN_THREAD) for thread in threading.enumerate())
    for run in scan.take_waiting(int(os.environ.get(WORKER_ENV, "0")), limit=_SCANS_AT_ONCE - running):
        threading.Thread(target=_scan, args=(run,), name=f"{_SCAN_THREAD}{run.pk}", daemon=True).start()


def _scan(run: ScanRun) -> None:
    try:
        scan.perform(run)
    except ServiceError as error:
        log.warning("the scan %s of %s ended early: %s", run.uuid, run.store.name, error.message)
    except Exception:
        log.exception("the scan %s of %s broke off", run.uuid, run.store.name)
    finally:
        connections.close_all()


def keep_house() -> None:
    """What needs only the database: lapsed leases and holds, freed children, items that nobody finished."""
    if expired := transfers.expire_leases():
        log.warning("%s transfers were queued again: the lease of their worker had lapsed", expired)
    transfers.cancel_unattached()
    transfers.cancel_overtaken()
    transfers.unblock_ready()
    holds.expire_holds()
    items.give_up_unfinished()


def forget_the_dead() -> None:
    """What nobody will fetch any more: a killed worker says no good-bye to its queue."""
    queue.forget_all_but([str(number) for number in Worker.objects.living().values_list("uuid", flat=True)])


def hand_on(task: str, number: int, stores: Collection[int]) -> bool:
    """Whether a queue's task was handed on, as this worker does not reach all of these stores and another one does: not every
    host mounts every export, and a message goes to whoever waits."""
    worker_id = int(os.environ.get(WORKER_ENV, "0"))
    reached = Count("reach", filter=Q(reach__ok=True, reach__store__in=stores))
    able = dict(Worker.objects.living().annotate(reached=reached).filter(reached=len(stores)).values_list("pk", "uuid"))
    if not worker_id or worker_id in able or not able:
        return False
    queue.wake(task, number, cluster=str(random.choice(list(able.values()))))  # noqa: S311 - spreads work; no secret
    return True


def _dark() -> set[int]:
    """Stores that no worker reaches now, for a hung export would keep the upkeep of all others waiting; and what this worker does
    not reach, which is left to others."""
    silent = WorkerReach.objects.of_living_workers().filter(ok=False)
    answering = WorkerReach.objects.of_living_workers().filter(ok=True).values("store")
    mine = Q(worker=int(os.environ.get(WORKER_ENV, "0")))
    return set(silent.filter(mine | ~Q(store__in=answering)).values_list("store_id", flat=True))


def clean_up() -> None:
    """Debris of ended transfers, and the bytes of deleted items."""
    dark = _dark()
    debris.sweep(avoid_stores=dark)
    items.finish_deletes(avoid_stores=dark)


def reap() -> None:
    """Uploads that no row knows and what dead probes left, store by store; one that does not answer does not keep the others from
    being looked at."""
    for store in ImageStore.objects.exclude(state=StoreState.REMOVED).exclude(pk__in=_dark()):
        try:
            debris.reap_uploads(store)
            debris.reap_probes(store)
        except Exception:
            log.exception("abandoned uploads on %s could not be looked for", store.name)


def purge_trash() -> None:
    """Finally remove what was deleted from exports longer ago than the grace time."""
    for store in ImageStore.objects.filter(state=StoreState.ATTACHED, removed=None).exclude(pk__in=_dark()):
        try:
            purged = driver_for(store).purge_trash(older_than=settings.TRASH_GRACE_SECONDS)
        except Exception:
            log.exception("the trash of %s could not be purged", store.name)
        else:
            if purged:
                log.info("%s files were purged from the trash of %s", purged, store.name)


def compact_journals() -> None:
    """Merge the small journal objects that a slow drain leaves, so that a rebuild has few to read."""
    for store in ImageStore.objects.filter(scope="REGION", state=StoreState.ATTACHED):
        try:
            journal.compact(store)
        except Exception:
            log.exception("the journal of %s could not be compacted; it is tried again", store.name)


def write_journals() -> None:
    """Tell each object store what it holds, so that it can be understood without the database."""
    for store in ImageStore.objects.filter(scope="REGION").exclude(state=StoreState.REMOVED):
        try:
            journal.write(store)
        except Exception:
            log.exception("the journal of %s could not be written; it is tried again", store.name)
