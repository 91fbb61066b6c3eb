"""Runs claimed transfers: one thread owns the database, the copies run beside it and never touch it.

A `Pump` is what a queue task runs: it claims, starts copying threads, renews leases, persists what a resume needs, steers
(pause, limits, cancel) and ends items in batches. It stops by its own monotonic clock when it could not renew. A copying thread
goes on with what waits for the same seat, so that no slot is idle while the database is written to.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection, transaction
from django.db.models import Count
from django.db.models.functions import Now

from cloudstorage.models import Installation
from cloudstorage.queue import wake
from cloudstorage.sessions import SESSION_LOST
from stores.copier import Control, CopiedFile, CopyEngine, FileToCopy, RecordedUpload, Stopped, Throttle
from stores.drivers.base import Part, StoreDriver, Upload
from stores.drivers.errors import LockedOut, NotFound
from stores.models import (
    Claimer,
    ImageStore,
    Transfer,
    TransferBatch,
    TransferPart,
    TransferUpload,
    Worker,
    WorkerReach,
)
from stores.services import transfers
from stores.services.image_stores import driver_for
from stores.services.inventory import identity_of
from stores.services.transfers import Job, Lease
from stores.services.windows import is_open
from stores.states import TransferState
from stores.timing import LastMinute

log = logging.getLogger(__name__)

STUCK_SECONDS = 30.0
"""Without any progress for so long, a copy is stuck: its slot is given to others and its store is not claimed for."""

_AHEAD = 16
"""Times its slots: so much a pump claims ahead at most, while it ends as many in two seconds."""
_AHEAD_SECONDS = 5.0
"""What was claimed ahead and could not begin for so long is given back: others could take it."""
_STEER_SECONDS = 1.0
_CLAIM_SECONDS = 0.5
_IDLE_SECONDS = 0.3
_PARTS_SECONDS = 5.0
_TURN_SECONDS = 0.1
_LOOK_SECONDS = 0.1
_MAX_STUCK = 32


@dataclass(slots=True)
class _Running:
    """A claimed job: waiting for a slot and a seat, or being copied."""

    job: Job
    control: Control
    renewed: float
    recorded: dict[str, RecordedUpload]
    identity: dict[str, str]
    source: StoreDriver | None = None
    target: StoreDriver | None = None
    journal: _PumpJournal | None = None
    begun: bool = False
    """A thread copies it, or has."""
    ended: bool = False
    """Its copy has ended; what came of it is not written down yet."""
    reported: float = 0.0
    broken: Exception | None = None
    """What its rows refused to take."""


@dataclass(slots=True)
class _Event:
    """What a copying thread asks the database thread to make durable; `done` is set when it is."""

    write: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    refused: Exception | None = None


class _PumpJournal:
    """The journal of one job: writes go through the pump's database thread."""

    def __init__(self, pump: Pump, running: _Running) -> None:
        self._pump = pump
        self._running = running
        self._upload_rows: dict[str, int] = {upload.key: upload.pk for upload in running.job.uploads}
        self._lock = threading.Lock()
        self._parts: list[TransferPart] = []

    def recorded(self, target_key: str) -> RecordedUpload | None:
        return self._running.recorded.get(target_key)

    def begun(self, file: FileToCopy, source_version: str, upload: Upload) -> None:
        def write() -> None:
            TransferUpload.objects.filter(transfer_id=self._running.job.transfer.pk, key=upload.key).delete()
            row = TransferUpload.objects.create(
                transfer_id=self._running.job.transfer.pk,
                key=upload.key,
                source_path=file.source_key,
                source_version=source_version,
                upload_id=upload.upload_id,
                token=upload.token,
                size=upload.size or 0,
                part_size=upload.part_size,
            )
            self._upload_rows[upload.key] = row.pk

        self._durable(lambda: self._while_ours(write))

    def part_stored(self, target_key: str, part: Part, prefix_sha256: str) -> None:
        with self._lock:
            self._parts.append(
                TransferPart(
                    upload_id=self._upload_rows[target_key],
                    number=part.number,
                    offset=part.offset,
                    size=part.size,
                    prefix_sha256=prefix_sha256,
                    etag=part.etag,
                    digest=part.digest,
                    verified=part.verified,
                )
            )

    def completing(self, target_key: str) -> None:
        self._durable(self.flush)

    def abandoned(self, target_key: str) -> None:
        def write() -> None:
            TransferUpload.objects.filter(transfer_id=self._running.job.transfer.pk, key=target_key).delete()

        self._running.recorded.pop(target_key, None)
        self._forget_parts(target_key)
        self._durable(lambda: self._while_ours(write))

    def _forget_parts(self, target_key: str) -> None:
        with self._lock:
            self._parts = [part for part in self._parts if part.upload_id != self._upload_rows.get(target_key)]

    def flush(self) -> None:
        """Write the parts that gathered; called by the database thread. Where that fails, they are kept for the next time."""
        with self._lock:
            parts = list(self._parts)
        if not parts:
            return

        def write() -> None:
            TransferPart.objects.bulk_create(
                parts,
                batch_size=500,
                update_conflicts=True,
                unique_fields=["upload", "number"],
                update_fields=["offset", "size", "prefix_sha256", "etag", "digest", "verified"],
            )

        self._while_ours(write)
        written = set(map(id, parts))
        with self._lock:
            self._parts = [part for part in self._parts if id(part) not in written]

    def _while_ours(self, write: Callable[[], None]) -> None:
        """Write in one transaction if the lease is still ours; else nothing, and the copy stops."""
        job = self._running.job
        ours = Transfer.objects.filter(pk=job.transfer.pk, epoch=job.epoch, state=TransferState.RUNNING)
        with transaction.atomic():
            if ours.select_for_update().exists():
                write()
            else:
                self._running.control.stop("the lease was lost")

    def _durable(self, write: Callable[[], None]) -> None:
        event = _Event(write)
        self._pump.events.put(event)
        while not event.done.wait(0.2):
            self._running.control.check()
        if event.refused is not None:
            raise event.refused
        self._running.control.check()


class Pump:
    """Claims and runs transfers until none is left that this worker may take, or `stop` says so."""

    def __init__(
        self, worker_id: int, *, slots: int, stop: Callable[[], bool] = lambda: False, patience: float = _IDLE_SECONDS
    ) -> None:
        """`patience`: seconds without work that it stays for the rest of a batch whose canary is being looked at."""
        self.worker_id = worker_id
        self.number = os.getpid()
        self.slots = slots
        self.events: queue.Queue[_Event | None] = queue.Queue()
        """What copying threads ask for; None: a slot is free, or so many copies have ended that they are worth a turn."""
        self._nudged = False
        self._stop = stop
        self._patience = patience
        self._awaits_canary = False
        self._engine = CopyEngine()
        self._waiting: dict[int, _Running] = {}
        self._running: dict[int, _Running] = {}
        self._handover = threading.Lock()
        """Held while a copy begins or is given back: threads begin some of themselves."""
        self._finished: list[tuple[Job, Sequence[CopiedFile]]] = []
        self._released: list[Job] = []
        self._ended: queue.Queue[tuple[Job, Sequence[CopiedFile] | Exception]] = queue.Queue()
        self._drivers: dict[int, StoreDriver] = {}
        self._open_batches: list[int] = []
        self._throttles: dict[tuple[str, int], Throttle] = defaultdict(Throttle)
        self._last_minute = LastMinute()
        self._cloud = Installation.get().uuid
        self._next_steer = self._next_parts = self._next_claim = self._last_claim = 0.0
        self._ended_now = self._ended_before = 0
        self._idle_since: float | None = None
        self._stopping = False
        self._next_renewal = time.monotonic() + settings.HEARTBEAT_SECONDS

    def run(self) -> int:
        """Run until there is nothing to do; returns how many items were proven."""
        proven = told = 0
        try:
            while True:
                try:
                    proven += self._turn()
                except DatabaseError:
                    if connection.in_atomic_block:
                        raise  # a transaction of the caller's: nothing of ours could go on in it
                    log.exception("the database did not answer; copies go on until their leases are half over")
                    connection.close()
                    self._drivers.clear()
                    self._stop_unrenewed()
                    time.sleep(1)
                    continue
                if self._running or self._waiting or self._finished or self._released:
                    self._idle_since = None
                    continue
                if proven > told:
                    wake(settings.WORKER_WHEN_DONE)
                    told = proven
                self._idle_since = self._idle_since or time.monotonic()
                if self._stopping or not self._worth_waiting(time.monotonic() - self._idle_since):
                    return proven
        finally:
            self._stop_all("the pump has ended")
            self._engine.close()
            with suppress(DatabaseError):
                Claimer.objects.filter(worker=self.worker_id, number=self.number).delete()

    def _turn(self) -> int:
        """One round of everything that is due; returns how many items it proved."""
        self._handle_events(0.0 if self._worth_ending() else _TURN_SECONDS)
        proven = self._end_items()
        if proven:  # their children may be free now, and an idle pump would end before it looked
            self._next_claim = 0.0
        now = time.monotonic()
        if now >= self._next_steer:
            self._steer()
            self._start_waiting()  # with the drivers as they are now; threads go on with nothing until then
            self._next_steer = now + _STEER_SECONDS
        if now >= self._next_parts:
            self._flush_parts()
            self._next_parts = now + _PARTS_SECONDS
        if now >= self._next_renewal:
            self._renew()
            self._next_renewal = now + settings.HEARTBEAT_SECONDS
        if self._stopping:
            self._stop_all("the worker is shutting down")
        elif now >= self._next_claim:
            claimed = self._claim()
            self._next_claim = now + (0 if claimed else _CLAIM_SECONDS if self._copying() else _LOOK_SECONDS)
        self._start_waiting()
        return proven

    def _worth_waiting(self, idle: float) -> bool:
        """Whether it goes on without work: a new pump would come later, and unconnected, to what follows a canary, or to seats
        that others give up because this one asks."""
        if idle <= _IDLE_SECONDS:
            return True
        waited = self._awaits_canary
        canaries = TransferBatch.objects.filter(pk__in=self._open_batches, open=True, only_canary=True)
        self._awaits_canary = idle < self._patience and canaries.exists()
        if waited and not self._awaits_canary:
            self._next_claim = 0.0  # it has passed, perhaps since the last claim
        return waited or self._awaits_canary or (idle < self._patience and self._asks_for_seats())

    def _asks_for_seats(self) -> bool:
        return any(Claimer.objects.filter(worker_id=self.worker_id, number=self.number).values_list("asks", flat=True))

    # --- starting ------------------------------------------------------------------------------------------------------

    def _claim(self) -> int:
        """Claim what fills the free slots, and ahead of need what ends in about two seconds: small items cost few statements."""
        stuck = self._stuck()
        if len(stuck) >= _MAX_STUCK:
            return 0
        free = max(0, self._free_slots())
        pace = min(_AHEAD * self.slots, 2 * max(self._ended_now, self._ended_before))
        ahead = max(0, pace - len(self._waiting))
        now = time.monotonic()
        enough = (self.slots + pace) // 2 or 1
        if free + ahead < enough and (not free or now - self._last_claim < _CLAIM_SECONDS):
            return 0
        self._last_claim = now
        jobs = transfers.claim(
            self.worker_id,
            limit=free,
            ahead=ahead,
            pump=self.number,
            avoid_stores=self._avoided(stuck),
            open_batches=self._open_batches,
        )
        for job in jobs:
            self._take(job)
        return len(jobs)

    def _stuck(self) -> list[_Running]:
        return [running for running in self._copying() if self._is_stuck(running)]

    def _copying(self) -> list[_Running]:
        held = (*list(self._waiting.values()), *list(self._running.values()))
        return [running for running in held if running.begun and not running.ended]

    def _free_slots(self) -> int:
        """Stuck copies have given theirs to others."""
        return self.slots - sum(not self._is_stuck(running) for running in self._copying())

    @staticmethod
    def _is_stuck(running: _Running) -> bool:
        return running.control.silent > STUCK_SECONDS

    @staticmethod
    def _avoided(stuck: Sequence[_Running]) -> set[int]:
        """The stores that stuck copies wait for."""
        return {
            running.job.transfer.source_id if running.control.waiting_on == "source" else running.job.transfer.target_id
            for running in stuck
            if not running.control.in_line  # those whose memory it waits for tell which store it is
        }

    def _take(self, job: Job) -> None:
        transfer = job.transfer
        if transfer.pk in self._running or transfer.pk in self._waiting:  # its lease was lost, and we have not let go of it yet
            transfers.release([job], delay=settings.HEARTBEAT_SECONDS)
            return
        if not job.files:
            transfers.fail(job, NotFound(f"Nothing of {job.item.name} is on {transfer.source.name} any more."))
            return
        throttles = self._throttles_of(transfer)
        recorded = {upload.key: _recorded(upload) for upload in job.uploads}
        running = _Running(
            job,
            Control(throttles, self._last_minute.times[transfer.batch_id, transfer.source_id]),
            time.monotonic(),
            recorded,
            identity_of(job.item, self._cloud, files=len(job.files)),
        )
        running.journal = _PumpJournal(self, running)
        running.control.valid_until = running.renewed + settings.LEASE_SECONDS / 2
        with self._handover:
            self._waiting[transfer.pk] = running

    def _throttles_of(self, transfer: Transfer) -> list[Throttle]:
        """A new one begins with all of the limit, for not a byte may pass without; at the next steer it gets our part of it."""
        if (store := ("store", transfer.source_id)) not in self._throttles:
            self._throttles[store].set_rate(transfer.source.read_limit)
        if transfer.batch_id is None:
            return [self._throttles[store]]
        if (batch := ("batch", transfer.batch_id)) not in self._throttles:
            limits = TransferBatch.objects.filter(pk=transfer.batch_id).values_list("bandwidth", flat=True)
            self._throttles[batch].set_rate(limits.first())
        return [self._throttles[store], self._throttles[batch]]

    def _start_waiting(self) -> None:
        """Begin what has a free slot and, in its batch, a seat; give back what cannot begin."""
        if not self._waiting:
            return
        with self._handover:
            self._take_note_of_begun()
            avoided = self._avoided(self._stuck())
            free = self._free_slots()
            held = self._seats()
            seats = held - Counter(running.job.transfer.batch_id for running in self._copying() if running.job.background)
            late = time.monotonic() - _AHEAD_SECONDS
            for pk, running in list(self._waiting.items()):
                transfer, job = running.job.transfer, running.job
                seated = not job.background or seats[transfer.batch_id] > 0
                if running.control.stopped is not None or {transfer.source_id, transfer.target_id} & avoided:
                    self._released.append(self._waiting.pop(pk).job)
                elif free > 0 and seated:
                    free -= 1
                    seats[transfer.batch_id] -= job.background
                    self._start(self._waiting.pop(pk))
                elif running.control.progress_at < late or (job.background and not held[transfer.batch_id]):
                    self._released.append(self._waiting.pop(pk).job)

    def _take_note_of_begun(self) -> None:
        """What threads began by themselves is running; only here and in `_start` does anything become so."""
        for pk in [pk for pk, running in self._waiting.items() if running.begun]:
            self._running[pk] = self._waiting.pop(pk)

    def _seats(self) -> Counter[int | None]:
        """Batch -> seats of ours. What ended passes its own on before it is proven: another copy may begin on it."""
        jobs = [running.job for running in (*self._running.values(), *self._waiting.values())]
        jobs += [job for job, _ in self._finished]
        return Counter(job.transfer.batch_id for job in jobs if job.background and job.transfer.pump is not None)

    def _start(self, running: _Running) -> None:
        transfer = running.job.transfer
        try:
            running.source, running.target = self._driver(transfer.source), self._driver(transfer.target)
        except SESSION_LOST:
            self._waiting[transfer.pk] = running
            raise
        except Exception as error:  # noqa: BLE001 - whatever keeps a driver from being made fails the item, with its message
            transfers.fail(running.job, error)
            return
        running.begun = True
        running.control.alive()
        self._running[transfer.pk] = running
        threading.Thread(target=self._copy_on, args=(running,), name=f"copy-{transfer.pk}", daemon=True).start()

    def _driver(self, store: ImageStore) -> StoreDriver:
        """Looked up again at every steer, so that new secrets take effect within a second."""
        if store.pk not in self._drivers:
            self._drivers[store.pk] = driver_for(store)
        return self._drivers[store.pk]

    def _copy_on(self, running: _Running) -> None:
        """Copy it, and then what waits for its seat, until nothing does."""
        following: _Running | None = running
        while following is not None:
            running = following
            outcome = self._copy(running)
            with self._handover:
                running.ended = True
                following = None if isinstance(outcome, Exception) else self._heir(running)
            self._ended.put((running.job, outcome))
            if not self._nudged and (following is None or self._worth_ending()):
                self._nudged = True
                self.events.put(None)

    def _heir(self, ended: _Running) -> _Running | None:
        """What may begin on the seat and in the slot of a copy that ended well, marked as begun; between the same stores, whose
        drivers are still those of the last steer."""
        transfer = ended.job.transfer
        drivers = self._drivers.get(transfer.source_id), self._drivers.get(transfer.target_id)
        if drivers != (ended.source, ended.target) or self._free_slots() <= 0 or self._stopping:
            return None
        for running in self._waiting.values():
            other = running.job.transfer
            if running.begun or running.control.stopped is not None:
                continue
            if running.job.background and (other.batch_id != transfer.batch_id or not ended.job.background):
                continue
            if (other.source_id, other.target_id) != (transfer.source_id, transfer.target_id):
                continue
            running.source, running.target, running.begun = ended.source, ended.target, True
            running.control.alive()
            return running
        return None

    def _copy(self, running: _Running) -> Sequence[CopiedFile] | Exception:
        """What came of it: every end of a copy is an outcome that the database thread writes down."""
        job = running.job
        assert running.source is not None
        assert running.target is not None
        assert running.journal is not None
        again = job.epoch > 1 and not job.disproven
        try:
            files = [
                FileToCopy(
                    file.path, job.target_key(file.path), file.size, file.version, file.sha256, again, job.transfer.read_back
                )
                for file in job.files
            ]
            return self._engine.copy_item(
                running.source,
                running.target,
                files,
                metadata=running.identity,
                token=job.token,
                journal=running.journal,
                control=running.control,
            )
        except Exception as error:  # noqa: BLE001 - told, not lost
            return error

    # --- steering ------------------------------------------------------------------------------------------------------

    def _handle_events(self, timeout: float) -> None:
        try:
            event = self.events.get(timeout=timeout) if timeout else self.events.get_nowait()
        except queue.Empty:
            return
        if event is None:
            self._nudged = False
            return
        try:
            event.write()
        except SESSION_LOST:
            self.events.put(event)
            raise
        except Exception as error:  # noqa: BLE001 - the rows will never take it: the copy that asked for it ends with it
            event.refused = error
        event.done.set()

    def _steer(self) -> None:
        """Apply pauses, windows, cancellations and limits as the rows have them now."""
        if not connection.in_atomic_block:
            close_old_connections()
        self._stopping = self._stop()
        self._tell()
        self._drivers.clear()
        self._open_batches = open_batches()
        self._ended_now, self._ended_before = 0, self._ended_now
        held = {**self._waiting, **self._running}
        if not held:
            return
        columns = ("pk", "state", "epoch", "priority", "batch_id", "source_id")
        rows = {row[0]: row[1:] for row in Transfer.objects.filter(pk__in=held).values_list(*columns)}
        batches = TransferBatch.objects.in_bulk({row[3] for row in rows.values() if row[3]})
        ours = _Busy(Counter(), Counter())
        for pk, running in held.items():
            state, epoch, priority, batch_id, source_id = rows.get(pk, (None,) * 5)
            if state != TransferState.RUNNING or epoch != running.job.epoch:
                running.control.stop("cancelled or taken over")
                continue
            running.job.transfer.priority = priority
            if running.begun and not running.ended:
                ours.batches[batch_id] += 1
                ours.stores[source_id] += 1
            batch = batches.get(batch_id)
            if batch is None or priority == transfers.ON_DEMAND:
                continue
            if not (batch.open and is_open(batch.window, batch.time_zone)):
                running.control.stop("paused")
            elif ours.batches[batch_id] > batch.concurrency:
                running.control.stop("concurrency was lowered")
        self._split_limits(batches, ours)

    def _split_limits(self, batches: Mapping[int, TransferBatch], ours: _Busy) -> None:
        """Give each throttle of ours its part of the limit, as what we copy is to what all workers copy."""
        read_limits = dict(ImageStore.objects.filter(pk__in=ours.stores).values_list("pk", "read_limit"))
        limited = any(read_limits.values()) or any(batch.bandwidth for batch in batches.values())
        busy = _busy(batches, read_limits) if limited else ours
        for pk, batch in batches.items():
            if ours.batches[pk]:
                share = ours.batches[pk] / max(1, busy.batches[pk])
                self._throttles["batch", pk].set_rate(batch.bandwidth * share if batch.bandwidth else None)
        for pk, limit in read_limits.items():
            share = ours.stores[pk] / max(1, busy.stores[pk])
            self._throttles["store", pk].set_rate(limit * share if limit else None)

    def _tell(self) -> None:
        """Let the supervisor and the other pumps see that this one is at work, and now and then what its copies wait for."""
        Worker.objects.filter(pk=self.worker_id).update(pumped=Now())
        known = Claimer.objects.filter(worker_id=self.worker_id, number=self.number)
        told: dict[str, Any] = {"times": self._last_minute.told()} if self._last_minute.due() else {}
        if not known.update(seen=Now(), **told):
            Claimer.objects.update_or_create(worker_id=self.worker_id, number=self.number, defaults={"seen": Now(), **told})

    def _renew(self) -> None:
        started = time.monotonic()
        leases = []
        held = {**self._waiting, **self._running}
        for pk, running in held.items():
            progressed = running.control.progress_at > running.reported
            running.reported = running.control.progress_at
            leases.append(Lease(pk, running.job.epoch, running.control.bytes_done, progressed, running.control.waiting_on))
        kept = transfers.renew(leases)
        for pk, running in held.items():
            if pk in kept:
                running.renewed = started
                running.control.valid_until = started + settings.LEASE_SECONDS / 2
            else:
                running.control.stop("the lease was lost")

    def _stop_unrenewed(self) -> None:
        """Stop by our own clock: past half a lease without a renewal somebody else may soon take over."""
        for running in (*self._running.values(), *self._waiting.values()):
            if time.monotonic() - running.renewed > settings.LEASE_SECONDS / 2:
                running.control.stop("the lease could not be renewed in time")

    def _flush_parts(self) -> None:
        for running in self._copying():
            assert running.journal is not None
            try:
                running.journal.flush()
            except SESSION_LOST:
                raise
            except DatabaseError as error:
                running.broken = error
                running.control.stop("its parts could not be written down")

    def _stop_all(self, reason: str) -> None:
        for running in (*self._running.values(), *self._waiting.values()):
            running.control.stop(reason)

    # --- ending --------------------------------------------------------------------------------------------------------

    def _end_items(self) -> int:
        while True:
            try:
                job, outcome = self._ended.get_nowait()
            except queue.Empty:
                break
            try:
                self._end(job, outcome)
            except SESSION_LOST:
                self._ended.put((job, outcome))
                raise
            self._ended_now += 1
        if self._released:
            transfers.release(self._released)
            transfers.mark_unswept(self._released)
            self._released = []
        if not self._finished or (self._running and len(self._finished) < self._lot() and not self._due()):
            return 0
        proven = self._prove()
        transfers.mark_unswept(job for job, _ in self._finished if job.transfer.pk not in proven)
        self._finished = []
        return len(proven)

    def _end(self, job: Job, outcome: Sequence[CopiedFile] | Exception) -> None:
        """Write down how a copy ended; what is proven or given back waits for others to be written with it."""
        with self._handover:
            self._take_note_of_begun()
        running = self._running[job.transfer.pk]
        assert running.journal is not None
        if isinstance(outcome, Exception):
            try:
                running.journal.flush()
            except SESSION_LOST:
                raise
            except DatabaseError as error:
                running.broken = error
            outcome = running.broken or outcome
            if isinstance(outcome, Stopped):
                self._released.append(job)
            else:
                log.warning("transfer %s failed: %s", job.transfer.pk, outcome, exc_info=_unexpected(outcome))
                transfers.fail(job, outcome)
                if isinstance(outcome, LockedOut):
                    self._leave_alone(job, outcome)
        elif time.monotonic() - running.renewed > settings.LEASE_SECONDS:
            self._released.append(job)
        else:
            self._finished.append((job, outcome))
        with self._handover:
            del self._running[job.transfer.pk]

    def _leave_alone(self, job: Job, error: LockedOut) -> None:
        """Claim nothing more for an object store that refuses us, until the worker's clock finds that it lets us in again."""
        stores = {store.pk for store in (job.transfer.source, job.transfer.target) if store.scope == "REGION"}
        reach = WorkerReach.objects.filter(worker=self.worker_id, store__in=stores)
        reach.update(ok=False, error=str(error)[:1000], checked_at=Now())
        with self._handover:
            for pk, running in list(self._waiting.items()):
                if not running.begun and {running.job.transfer.source_id, running.job.transfer.target_id} & stores:
                    self._released.append(self._waiting.pop(pk).job)

    def _prove(self) -> set[int]:
        """Prove what finished in one transaction; where the rows do not take it, one by one, so that the bad one fails alone."""
        with self._handover:
            self._take_note_of_begun()
        held = [running.job for running in (*self._running.values(), *self._waiting.values())]
        heirs = [job for job in held if job.background and job.transfer.pump is None]
        try:
            return transfers.prove(self._finished, heirs=heirs)
        except SESSION_LOST:
            raise
        except Exception:
            log.exception("a batch of %s copies could not be written down as proven; each is tried alone", len(self._finished))
        proven: set[int] = set()
        for job, files in self._finished:
            try:
                proven |= transfers.prove([(job, files)], heirs=heirs)
            except SESSION_LOST:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's, and told as its failure
                transfers.fail(job, error)
        return proven

    def _lot(self) -> int:
        """So many proofs are worth a transaction: many, while threads find work without it."""
        return _AHEAD * self.slots if self._waiting else self.slots // 2

    def _worth_ending(self) -> bool:
        ended = self._ended.qsize()
        return ended > 0 and (ended + len(self._finished) >= self._lot() or ended >= len(self._running))

    def _due(self) -> bool:
        """Nobody waits long for a proof: what finished is written at the next steer at the latest."""
        return time.monotonic() >= self._next_steer


def _unexpected(error: Exception) -> bool:
    return not hasattr(error, "cause")


@dataclass(frozen=True, slots=True)
class _Busy:
    batches: Counter[int | None]
    stores: Counter[int]


def _busy(batches: Collection[int], stores: Collection[int]) -> _Busy:
    """What is copied over all workers, by batch and by source: what a limit is split over."""
    running = Transfer.objects.filter(state=TransferState.RUNNING, pump__isnull=False).order_by()
    return _Busy(
        Counter(dict(running.filter(batch__in=batches).values_list("batch").annotate(n=Count("pk")))),
        Counter(dict(running.filter(source__in=stores).values_list("source").annotate(n=Count("pk")))),
    )


def _recorded(row: TransferUpload) -> RecordedUpload:
    upload = Upload(row.key, row.upload_id, row.size, row.part_size, row.token)
    parts = {
        part.number: (Part(part.number, part.offset, part.size, part.etag, part.digest, part.verified), part.prefix_sha256)
        for part in row.parts.all()
    }
    return RecordedUpload(upload, row.source_version, parts)


def open_batches() -> list[int]:
    """The batches that may run now: open, and inside their window."""
    batches = TransferBatch.objects.filter(open=True).order_by("pk")
    return [batch.pk for batch in batches if is_open(batch.window, batch.time_zone)]
