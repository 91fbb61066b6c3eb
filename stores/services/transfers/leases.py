"""Who runs a transfer: claimed by lease and epoch, renewed, given back, expired; every change is fenced by the epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, When
from django.db.models.functions import Greatest, Now
from django.utils import timezone

from cloudstorage.checkpoints import reach
from stores.models import KINDS, ImageStore, Kind, StoreFile, Transfer, TransferBatch, TransferUpload
from stores.services.history import note_lost_workers
from stores.services.once import Once
from stores.services.transfers.endings import fail_descendants
from stores.services.transfers.jobs import MAX_ATTEMPTS, ON_DEMAND, Job, install_path_on, lease_end
from stores.services.transfers.shares import OpenBatch, Shares
from stores.states import READABLE, TRANSFER_TRANSITIONS, StoreState, TransferEvent, TransferState, next_state


def claim(
    worker_id: int,
    *,
    limit: int,
    ahead: int = 0,
    pump: int = 0,
    avoid_stores: Collection[int] = (),
    open_batches: Collection[int] = (),
) -> list[Job]:
    """Take up to `limit` transfers that this worker reaches, on demand before background, parents before children; and up to
    `ahead` more that may begin only when others of this pump end.

    `open_batches` are the batches whose window is open now. A fixed number of statements, whatever the rows.
    """
    if limit + ahead <= 0:
        return []
    with transaction.atomic():
        shares = Shares(worker_id, pump, open_batches, wants=limit)
        useful = [batch for batch in shares.batches if shares[batch.pk].seats or (ahead and shares[batch.pk].ahead)]
        queued = _QUEUED.objects(Transfer, worker_id, *_by_canary(useful), [*avoid_stores], limit + ahead)
        seated, unseated, missing = _within(queued, shares, limit, ahead)
        others = [batch for batch in shares.batches if batch not in useful]
        if len(seated) < limit and others:
            missing |= dict.fromkeys(_waiting(worker_id, others, avoid_stores), limit - len(seated))
        shares.ask(missing)
        taken = [*seated, *unseated]
        if not taken:
            return []
        ids, with_seat = [transfer.pk for transfer in taken], [transfer.pk for transfer in seated]
        _CLAIM.update(ids, with_seat, worker_id, *([pump] if seated else []), lease=settings.LEASE_SECONDS)
        now = timezone.now()
        for transfer in taken:  # as the UPDATE has just left them, and nobody else can change them before the commit
            transfer.state = TransferState.RUNNING
            transfer.worker_id, transfer.pump = worker_id, None
            transfer.epoch, transfer.attempts, transfer.bytes_done = transfer.epoch + 1, transfer.attempts + 1, 0
            transfer.started_at = transfer.progress_at = now
            transfer.swept = False
        for transfer in seated:
            transfer.pump = pump
        jobs = _jobs(taken)
    reach("claim.committed")
    return jobs


def _claimable(
    worker_id: int, batches: Collection[int], of_canary: Collection[int], avoid_stores: Collection[int]
) -> QuerySet[Transfer]:
    """`batches`: of which all may be claimed; `of_canary`: of which only the canary may."""
    reachable = {"reach__worker_id": worker_id, "reach__ok": True, "state": StoreState.ATTACHED}
    stores = ImageStore.objects.filter(**reachable).exclude(pk__in=avoid_stores).values("pk")
    may = Q(batch=None) | Q(priority=ON_DEMAND) | Q(batch__in=batches) | Q(batch__in=of_canary, canary=True)
    same = {"kind": OuterRef("kind"), "item_id": OuterRef("item_id"), "target": OuterRef("target")}
    swept_now = Transfer.objects.filter(lease_until__gte=Now(), **same).exclude(state=TransferState.RUNNING)
    return Transfer.objects.filter(
        may, ~Exists(swept_now), state=TransferState.QUEUED, next_attempt_at__lte=Now(), source__in=stores, target__in=stores
    )


def _first_queued(
    worker_id: int, batches: Collection[int], of_canary: Collection[int], avoid_stores: Collection[int], limit: int
) -> QuerySet[Transfer]:
    queued = _claimable(worker_id, batches, of_canary, avoid_stores).order_by("priority", "depth", "id")
    return queued.select_for_update(skip_locked=True, of=("self",))[:limit]


_QUEUED = Once(_first_queued)


def _by_canary(batches: Iterable[OpenBatch]) -> tuple[list[int], list[int]]:
    """(those of which all may be claimed, those of which only the canary may)."""
    of_canary = [batch.pk for batch in batches if batch.only_canary]
    return [batch.pk for batch in batches if not batch.only_canary], of_canary


def _claimed(
    ids: Collection[int], with_seat: Collection[int], worker_id: int, pump: int | None = None, *, lease: int
) -> tuple[QuerySet[Transfer], dict[str, Any]]:
    return Transfer.objects.filter(pk__in=ids), {
        "state": next_state(TRANSFER_TRANSITIONS, TransferState.QUEUED, TransferEvent.CLAIM),
        "worker": worker_id,
        "pump": Case(When(pk__in=with_seat, then=pump), default=None),
        "lease_until": lease_end(lease),
        "epoch": F("epoch") + 1,
        "attempts": F("attempts") + 1,
        "bytes_done": 0,
        "started_at": Now(),
        "progress_at": Now(),
        "swept": False,
    }


_CLAIM = Once(_claimed)


def _waiting(worker_id: int, batches: Sequence[OpenBatch], avoid_stores: Collection[int]) -> list[int]:
    """Those of the batches of which this worker could take something."""
    claimable = _claimable(worker_id, *_by_canary(batches), avoid_stores)
    waiting = claimable.filter(batch=OuterRef("pk")).exclude(priority=ON_DEMAND)
    return list(
        TransferBatch.objects.filter(Exists(waiting), pk__in=[batch.pk for batch in batches]).values_list("pk", flat=True)
    )


def waits_for(worker_id: int, *, open_batches: Collection[int]) -> bool:
    """Whether a transfer waits that this worker may take, or ask for."""
    open_now = TransferBatch.objects.filter(pk__in=open_batches, open=True).values_list("pk", "only_canary")
    batches = _by_canary([OpenBatch(pk, only_canary=only_canary) for pk, only_canary in open_now])
    return _claimable(worker_id, *batches, ()).exists()


def _within(
    candidates: Sequence[Transfer], shares: Shares, limit: int, ahead: int
) -> tuple[list[Transfer], list[Transfer], dict[int, int]]:
    """(what gets a seat, what is claimed ahead, batch -> how many more would have had one but for its concurrency)."""
    seats = {batch.pk: shares[batch.pk].seats for batch in shares.batches}
    seated: list[Transfer] = []
    unseated: list[Transfer] = []
    missing: dict[int, int] = {}
    for transfer in candidates:
        batch = None if transfer.priority == ON_DEMAND else transfer.batch_id
        if len(seated) < limit and (batch is None or seats[batch] > 0):
            seated.append(transfer)
            if batch is not None:
                seats[batch] -= 1
        elif batch is not None:
            if len(seated) < limit:
                missing[batch] = limit - len(seated)
            if len(unseated) < ahead and shares[batch].ahead:
                unseated.append(transfer)
    return seated, unseated, missing


_STORES = Once(lambda ids: ImageStore.objects.filter(pk__in=ids).order_by())
_ITEMS = Once(lambda ids, *, kind: KINDS[kind].item.objects.filter(pk__in=ids).order_by())
_PATHS = Once(lambda ref_ids, *, kind: KINDS[kind].ref.objects.filter(pk__in=ref_ids).values_list("pk", "install_path"))
_FILES = Once(lambda ref_ids, *, kind: KINDS[kind].file.objects.filter(ref_id__in=ref_ids).order_by("ref_id", "path"))


def _jobs(transfers: Sequence[Transfer]) -> list[Job]:
    jobs: list[Job] = []
    by_kind: dict[Kind, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        by_kind[Kind(transfer.kind)].append(transfer)
    wanted = sorted({pk for transfer in transfers for pk in (transfer.source_id, transfer.target_id)})
    stores = {store.pk: store for store in _STORES.objects(ImageStore, wanted)}
    for transfer in transfers:  # not joined to every row: a store's JSON would be decoded for each
        transfer.source, transfer.target = stores[transfer.source_id], stores[transfer.target_id]
    uploads: dict[int, list[TransferUpload]] = defaultdict(list)
    if again := [transfer.pk for transfer in transfers if transfer.epoch > 1]:
        for upload in TransferUpload.objects.filter(transfer__in=again).prefetch_related("parts"):
            uploads[upload.transfer_id].append(upload)
    for kind, group in by_kind.items():
        models = KINDS[kind]
        items = {item.pk: item for item in _ITEMS.objects(models.item, [transfer.item_id for transfer in group], kind=kind)}
        files: dict[int, list[StoreFile]] = defaultdict(list)
        ref_ids = [transfer.source_ref_id for transfer in group]
        paths = dict(_PATHS.rows(ref_ids, kind=kind))
        targets = [transfer.target_ref_id for transfer in group if transfer.epoch > 1]
        unproven = models.ref.objects.filter(pk__in=targets, sha256__gt="").exclude(state__in=READABLE)
        disproven = set(unproven.values_list("pk", flat=True)) if targets else set()
        for file in _FILES.objects(models.file, ref_ids, kind=kind):
            files[file.ref_id].append(file)
        for transfer in group:
            item = items[transfer.item_id]
            source_path = paths[transfer.source_ref_id]
            target_path = install_path_on(item, source_path, transfer.target)
            of_ref, begun = tuple(files[transfer.source_ref_id]), tuple(uploads[transfer.pk])
            damaged = transfer.target_ref_id in disproven
            jobs.append(Job(transfer, item, source_path, target_path, of_ref, transfer.epoch, begun, damaged))
    order = {transfer.pk: position for position, transfer in enumerate(transfers)}
    return sorted(jobs, key=lambda job: (job.transfer.priority, job.transfer.depth, order[job.transfer.pk]))


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker says of a transfer that it runs."""

    transfer_id: int
    epoch: int
    bytes_done: int
    progressed: bool
    waiting_on: str


def renew(leases: Sequence[Lease]) -> set[int]:
    """Extend the leases and write down progress; returns the transfers that are still ours. Others are to stop at once."""
    if not leases:
        return set()
    by_id = {lease.transfer_id: lease for lease in leases}
    with transaction.atomic():
        rows = Transfer.objects.select_for_update().filter(pk__in=by_id, state=TransferState.RUNNING).order_by("pk")
        ours = [row for row in rows if row.epoch == by_id[row.pk].epoch]
        for row in ours:
            lease = by_id[row.pk]
            row.bytes_done = max(row.bytes_done, min(lease.bytes_done, row.bytes_total))
            row.waiting_on = lease.waiting_on
            if lease.progressed:
                row.progress_at = Now()
        Transfer.objects.bulk_update(ours, ["bytes_done", "progress_at", "waiting_on"])
        kept = {row.pk for row in ours}
        Transfer.objects.filter(pk__in=kept).update(lease_until=lease_end())
    return kept


def release(jobs: Sequence[Job], *, delay: float = 0) -> None:
    """Give transfers back unharmed (pause, shutdown): Queued again, what was sent stays for a resume."""
    for epoch, ids in _by_epoch(jobs).items():
        Transfer.objects.filter(pk__in=ids, epoch=epoch, state=TransferState.RUNNING).update(
            state=next_state(TRANSFER_TRANSITIONS, TransferState.RUNNING, TransferEvent.RELEASE),
            worker=None,
            lease_until=None,
            attempts=Greatest(F("attempts") - 1, 0),
            lost=0,
            next_attempt_at=Now() + timedelta(seconds=delay),
        )


def _by_epoch(jobs: Iterable[Job]) -> dict[int, list[int]]:
    grouped: dict[int, list[int]] = defaultdict(list)
    for job in jobs:
        grouped[job.epoch].append(job.transfer.pk)
    return grouped


def expire_leases() -> int:
    """Queue again what a dead or stopped worker had claimed; the next claim raises the epoch, so a late one changes nothing.

    What took its worker along time and again fails instead, before it takes down every other copy with it.
    """
    lapsed = Transfer.objects.filter(state=TransferState.RUNNING, lease_until__lt=Now())
    with transaction.atomic():
        deadly = list(lapsed.filter(lost__gte=MAX_ATTEMPTS - 1).select_for_update().values_list("pk", flat=True))
        Transfer.objects.filter(pk__in=deadly).update(
            state=next_state(TRANSFER_TRANSITIONS, TransferState.RUNNING, TransferEvent.FAIL),
            worker=None,
            lease_until=None,
            finished_at=Now(),
            error_cause="worker-lost",
            error=f"{MAX_ATTEMPTS} workers in a row stopped answering while they copied it.",
            remedy="Look into the workers' logs and the hosts' memory at that time, then retry.",
        )
        fail_descendants(deadly)
        note_lost_workers(lapsed)
    return len(deadly) + lapsed.update(
        state=next_state(TRANSFER_TRANSITIONS, TransferState.RUNNING, TransferEvent.RELEASE),
        worker=None,
        lease_until=None,
        lost=F("lost") + 1,
    )
