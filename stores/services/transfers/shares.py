"""How a batch's concurrency is shared among the pumps of all workers: fairly, and so that nobody keeps what others could use.

A transfer that is copied takes a seat of its batch (`Transfer.pump`). A free seat goes to the worker that has fewest of those
that ask, and there to the pump that has fewest. What a pump has it keeps; above its share it gets no more while others ask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import BooleanField, Case, Count, Exists, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Now

from stores.models import SILENT_AFTER, Claimer, Transfer, TransferBatch, Worker, WorkerReach
from stores.services.once import Once
from stores.states import TransferState

ASK_SECONDS = 3.0
"""A pump that has not asked for so long is not there: its share is given to others."""
_GATHERING_SECONDS = 5.0
"""So long after a batch was opened, the shares of living workers wait for them; later only for those that ask."""
_PLENTY = 1 << 20


@dataclass(slots=True)
class Claimant:
    """A pump that holds seats of a batch or wants some."""

    worker: int
    pump: int
    held: int = 0
    wants: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What a pump may take of a batch now."""

    seats: int
    ahead: bool
    """It may claim what has no seat yet: it has seats to pass on, and enough are left for whoever asks and has less than its
    share."""


def share_out(free: int, claimants: Collection[Claimant], asking: Claimant) -> Share:
    """What `asking`, one of the claimants, gets of `free` seats: each goes to whoever then has fewest, the asking one before
    others that have as few."""
    total: dict[int, int] = defaultdict(int)
    held = {id(claimant): claimant.held for claimant in claimants}
    wants = {id(claimant): claimant.wants for claimant in claimants}
    for claimant in claimants:
        total[claimant.worker] += claimant.held
    floor = (free + sum(held.values())) // len(claimants)
    others = [claimant for claimant in claimants if claimant is not asking]
    due = sum(min(claimant.wants, max(0, floor - claimant.held)) for claimant in others)
    at_first, got = free, 0
    while free > 0 and (left := [claimant for claimant in claimants if wants[id(claimant)] > 0]):
        first = min(left, key=lambda one: (total[one.worker], held[id(one)], one is not asking))
        free -= 1
        held[id(first)] += 1
        wants[id(first)] -= 1
        total[first.worker] += 1
        got += first is asking
    return Share(got, ahead=asking.held + got > 0 and due <= max(0, at_first - got))


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """What a claim is to know of a batch that may run now."""

    pk: int
    concurrency: int = 0
    only_canary: bool = False
    opening: bool = False
    """It was opened a moment ago."""


def _open(ids: Collection[int]) -> QuerySet[TransferBatch, Any]:
    opening = Case(When(opened__gt=_ago(_GATHERING_SECONDS), then=True), default=Value(False), output_field=BooleanField())
    rows = TransferBatch.objects.select_for_update().filter(pk__in=ids, open=True).annotate(opening=opening)
    return rows.order_by("pk").values_list("pk", "concurrency", "only_canary", "opening")


def _seats(batches: Collection[int]) -> QuerySet[Transfer, Any]:
    seats = Transfer.objects.filter(batch__in=batches, state=TransferState.RUNNING, pump__isnull=False)
    return seats.values_list("batch", "worker", "pump").annotate(n=Count("pk")).order_by()


def _asking() -> QuerySet[Claimer, Any]:
    asking = Claimer.objects.filter(worker__stopped=None, worker__heartbeat__gt=Now() - SILENT_AFTER, seen__gt=_ago(ASK_SECONDS))
    return asking.values_list("worker", "number", "asks")


_OPEN, _SEATS, _ASKING = Once(_open), Once(_seats), Once(_asking)


class Shares:
    """The seats of the batches that are open now, as one pump sees them. Made inside the transaction of its claim, whose lock on
    the batches keeps it true. A fixed number of statements."""

    def __init__(self, worker_id: int, pump: int, open_batches: Collection[int], *, wants: int) -> None:
        self.batches = [OpenBatch(*row) for row in _OPEN.rows([*open_batches])]
        self._pump = (worker_id, pump)
        self._asked: dict[str, int] | None = None
        self._shares: dict[int, Share] = {}
        if self.batches:
            self._divide(wants)

    def __getitem__(self, batch_id: int) -> Share:
        return self._shares[batch_id]

    def _divide(self, wants: int) -> None:
        found: dict[int, dict[tuple[int, int], Claimant]] = defaultdict(dict)
        for batch_id, worker, pump, count in _SEATS.rows([batch.pk for batch in self.batches]):
            found[batch_id][worker, pump] = Claimant(worker, pump, held=count)
        pumps: dict[int, set[int]] = defaultdict(set)
        for worker, pump, asks in _ASKING.rows():
            pumps[worker].add(pump)
            if (worker, pump) == self._pump:
                self._asked = asks
                continue
            for batch_id, asked in asks.items():
                claimant = found[int(batch_id)].setdefault((worker, pump), Claimant(worker, pump))
                claimant.wants = asked
        expected = _expected([batch for batch in self.batches if batch.opening])
        for batch in self.batches:
            of_batch = found[batch.pk]
            asking = of_batch.setdefault(self._pump, Claimant(*self._pump))
            asking.wants = wants
            for worker, count in expected.get(batch.pk, {}).items():
                known = {pump for its_worker, pump in of_batch if its_worker == worker}
                idle = pumps[worker] - known  # waiting since before it was opened, such as for a canary
                to_come = range(-1, len(known | idle) - count - 1, -1)
                for pump in (*idle, *to_come):
                    of_batch[worker, pump] = Claimant(worker, pump, wants=_PLENTY)
            free = batch.concurrency - sum(claimant.held for claimant in of_batch.values())
            self._shares[batch.pk] = share_out(free, list(of_batch.values()), asking)

    def ask(self, missing: Mapping[int, int]) -> None:
        """Tell the others what this pump would take more of each batch; they leave it its share from now on."""
        asks = {str(batch_id): wanted for batch_id, wanted in missing.items()}
        if self._asked is None and not asks:
            return
        if self._asked != asks:
            worker_id, number = self._pump
            Claimer.objects.update_or_create(worker_id=worker_id, number=number, defaults={"asks": asks, "seen": Now()})


def open_batch(batch_id: int, *, only_canary: bool = False) -> None:
    """Let a batch run. Whoever lives is given time to come for its share before others take it."""
    TransferBatch.objects.filter(pk=batch_id).update(open=True, only_canary=only_canary, opened=Now())


def enlist(worker_id: int, pump: int, *, limit: int) -> bool:
    """Note that a pump is at work; false where the worker has `limit` others. Those that start at once wait for each other."""
    with transaction.atomic():
        known = Worker.objects.select_for_update(no_key=True).filter(pk=worker_id).first()
        others = Claimer.objects.filter(worker=worker_id, seen__gt=_ago(ASK_SECONDS)).exclude(number=pump)
        if known is None or others.count() >= limit:
            return False
        Claimer.objects.update_or_create(worker_id=worker_id, number=pump, defaults={"seen": Now()})
    return True


def pumps_at_work(worker_id: int) -> int:
    """How many pumps of this worker claim now."""
    return Claimer.objects.filter(worker=worker_id, seen__gt=_ago(ASK_SECONDS)).count()


def _expected(batches: Collection[OpenBatch]) -> dict[int, dict[int, int]]:
    """Batch id -> living worker that could take something of it -> how many pumps it may send."""
    if not batches:
        return {}
    there = WorkerReach.objects.filter(worker=OuterRef(OuterRef("pk")), ok=True)
    reached = Q(Exists(there.filter(store=OuterRef("source")))) & Q(Exists(there.filter(store=OuterRef("target"))))
    queued = Transfer.objects.filter(reached, state=TransferState.QUEUED)
    may = {f"may_{batch.pk}": Exists(queued.filter(batch=batch.pk, canary__in=[True, batch.only_canary])) for batch in batches}
    workers = list(Worker.objects.living().annotate(**may))
    return {batch.pk: {row.pk: row.pumps for row in workers if getattr(row, f"may_{batch.pk}")} for batch in batches}


def _ago(seconds: float) -> Now:
    return Now() - timedelta(seconds=seconds)  # type: ignore[return-value]  # as in jobs.lease_end
