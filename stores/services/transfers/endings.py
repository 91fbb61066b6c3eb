"""How transfers end: proven in batches, failed with a cause and a remedy, cancelled; and what they leave is swept up."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Case, Count, F, Max, Min, Q, QuerySet, When
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage.checkpoints import reach
from stores.copier import CopiedFile
from stores.drivers.errors import StoreError
from stores.manifest import manifest_sha256
from stores.models import KINDS, Kind, Transfer, TransferBatch, TransferUpload
from stores.services import holds
from stores.services.history import note_attempt
from stores.services.inventory import keep_hidden
from stores.services.once import Once
from stores.services.transfers.jobs import GOING, MAX_ATTEMPTS, Job, install_path_on, lease_end
from stores.states import (
    LIVE_TRANSFER_STATES,
    READABLE,
    REF_TRANSITIONS,
    TRANSFER_TRANSITIONS,
    Proof,
    RefEvent,
    RefState,
    StoreState,
    TransferEvent,
    TransferState,
    next_state,
    sources,
)

PARENT_FAILED = "parent-failed"
"""Cause of what failed for no other reason than that its parent did."""

_LONGEST_PAUSE = 600
_LONGEST_PAUSE_OF_OUTAGE = 60
"""An outage ends without the item's doing, and then nothing is to wait for long; meanwhile pumps avoid the store anyway."""


def prove(finished: Sequence[tuple[Job, Sequence[CopiedFile]]], *, heirs: Sequence[Job] = ()) -> set[int]:
    """Make the promises of proven copies true, many in one transaction; returns the transfers that were still ours.

    Transfer Proven, target ref Ready with its files, the originals' count taken back, children freed. The seats that become
    free go to `heirs`, in their order: what the same pump has claimed ahead.
    """
    results = {job.transfer.pk: (job, files) for job, files in finished}
    reach("prove.before")
    with transaction.atomic():
        locked = [_Locked(*row) for row in _LOCK.rows([*results], [job.transfer.pk for job in heirs])]
        rows = [row for row in locked if row.pk in results and row.state == TransferState.RUNNING]
        ours = [row for row in rows if row.epoch == results[row.pk][0].epoch]
        by_kind: dict[Kind, list[_Locked]] = defaultdict(list)
        for row in ours:
            by_kind[Kind(row.kind)].append(row)
        proven: list[_Locked] = []
        other_bytes: list[_Locked] = []
        for kind, group in by_kind.items():
            proven += _prove_kind(kind, group, results, other_bytes)
        _end_proven(proven, results)
        ids = [row.pk for row in proven]
        if other_bytes:
            _fail_as_other([row.pk for row in other_bytes])
        if others := [row.pk for row in ours if row.pk not in ids and row not in other_bytes]:
            cancel_live(Transfer.objects.filter(pk__in=others))  # its ref went another way
        if uploads := [pk for (pk,) in _UPLOADS.rows(ids)]:
            TransferUpload.objects.filter(pk__in=uploads).delete()
        _UNBLOCK.update(ids)
        seated = _pass_seats(ours, heirs)
        reach("prove.before-commit")
    for job, pump in seated:
        job.transfer.pump = pump
    reach("prove.committed")
    return set(ids)


class _Locked(NamedTuple):
    """What a proof needs to know of a transfer's row."""

    pk: int
    state: str
    kind: str
    item_id: int
    target_ref_id: int
    batch_id: int | None
    epoch: int
    pump: int | None
    bytes_total: int


def _all_that_change(ids: Collection[int], heirs: Collection[int]) -> QuerySet[Transfer, Any]:
    """What is proven, its children and those that get its seats: at once and in key order, as `cancel_live` takes them."""
    proven = Q(pk__in=ids, state=TransferState.RUNNING)
    changing = proven | Q(parent__in=ids, state=TransferState.BLOCKED) | Q(pk__in=heirs)
    return Transfer.objects.select_for_update().filter(changing).order_by("pk").values_list(*_Locked._fields)


_LOCK = Once(_all_that_change)
_UPLOADS = Once(lambda ids: TransferUpload.objects.filter(transfer__in=ids).values_list("pk"))
_UNBLOCK = Once(
    lambda ids: (
        Transfer.objects.filter(parent__in=ids, state=TransferState.BLOCKED),
        {"state": next_state(TRANSFER_TRANSITIONS, TransferState.BLOCKED, TransferEvent.UNBLOCK)},
    )
)


def _end_proven(proven: Sequence[_Locked], results: Mapping[int, tuple[Job, Sequence[CopiedFile]]]) -> None:
    """One statement for all that are alike: every item of the size it was planned with, as nearly all are."""
    alike: dict[tuple[Proof, int | None], list[int]] = defaultdict(list)
    for row in proven:
        files = results[row.pk][1]
        total = sum(file.size for file in files)
        alike[_weakest(files), None if total == row.bytes_total else total].append(row.pk)
    for (proof, other), ids in alike.items():
        _END.update(ids, *([] if other is None else [other]), proof=proof)


def _ended(ids: Collection[int], size: int | None = None, *, proof: Proof) -> tuple[QuerySet[Transfer], dict[str, Any]]:
    return Transfer.objects.filter(pk__in=ids), {
        "state": next_state(TRANSFER_TRANSITIONS, TransferState.RUNNING, TransferEvent.PROVE),
        "proof": proof,
        "bytes_total": F("bytes_total") if size is None else size,
        "bytes_done": F("bytes_total") if size is None else size,
        "finished_at": Now(),
        "progress_at": Now(),
        "copied_by": F("worker"),
        "worker": None,
        "lease_until": None,
        "swept": True,
        "error": "",
        "error_cause": "",
        "remedy": "",
    }


_END = Once(_ended)


def _pass_seats(ended: Iterable[_Locked], heirs: Sequence[Job]) -> list[tuple[Job, int]]:
    """Give the seats of what ended to as many of the heirs; returns those that got one, with its pump."""
    free: dict[int | None, list[int]] = defaultdict(list)
    for row in ended:
        if row.pump is not None:
            free[row.batch_id].append(row.pump)
    seated = [(job, free[job.transfer.batch_id].pop()) for job in heirs if free[job.transfer.batch_id]]
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for job, pump in seated:
        alike[job.epoch, pump].append(job.transfer.pk)
    for (epoch, pump), ids in alike.items():
        _PASS_SEAT.update(ids, epoch, pump)
    return seated


_PASS_SEAT = Once(
    lambda ids, epoch, pump: (Transfer.objects.filter(pk__in=ids, epoch=epoch, state=TransferState.RUNNING), {"pump": pump})
)


def _weakest(files: Sequence[CopiedFile]) -> Proof:
    """The proof of an item is that of its least proven file."""
    order = [Proof.VERIFIED, Proof.ATTESTED, Proof.READ_BACK]
    return min((file.proof for file in files), key=order.index)


def _fail_as_other(ids: list[int]) -> None:
    """What was copied is not what was proven before: of two contents, a machine cannot say which one is the item's."""
    Transfer.objects.filter(pk__in=ids).update(
        state=next_state(TRANSFER_TRANSITIONS, TransferState.RUNNING, TransferEvent.FAIL),
        worker=None,
        lease_until=None,
        finished_at=Now(),
        error_cause="other-content",
        error="The copy that it was read from has another SHA-256 than was proven of this item before.",
        remedy="Restore the file that it is copied from, or, if that one is right, write it anew and scan its store; then retry."
        " A retry takes another zone's copy where there is one.",
    )
    fail_descendants(ids)


def _prove_kind(
    kind: Kind,
    group: Sequence[_Locked],
    results: Mapping[int, tuple[Job, Sequence[CopiedFile]]],
    other_bytes: list[_Locked],
) -> list[_Locked]:
    """Those whose refs are Ready now; `other_bytes` takes those that are not what was proven of them before."""
    models = KINDS[kind]
    states = {pk: (state, sha256) for pk, state, sha256 in _REF_STATES.rows([row.target_ref_id for row in group], kind=kind)}
    ready: list[tuple[int, str, str, str, int]] = []
    files: list[tuple[Any, ...]] = []
    proven: list[_Locked] = []
    for row in group:
        state, expected = states.get(row.target_ref_id, ("", ""))
        if state not in {RefState.PROMISED, RefState.CREATING, *READABLE}:
            continue
        job, copied = results[row.pk]
        sha256 = manifest_sha256(_relative_names(job, copied))
        if expected and expected != sha256 and state not in READABLE:
            other_bytes.append(row)
            continue
        size = sum(file.size for file in copied)
        ready.append((row.target_ref_id, job.target_path, str(_weakest(copied)), sha256, size))
        files += _target_files(job, copied, row.target_ref_id)
        proven.append(row)
    if proven:
        _make_ready(models.ref, ready)
        _write_files(models.file, [ref_id for ref_id, *_ in ready], files)
        item_ids = [row.item_id for row in proven]
        keep_hidden(kind, item_ids)
        holds.keep_promises(kind, item_ids)
    return proven


_REF_STATES = Once(
    lambda ids, *, kind: (
        KINDS[kind].ref.objects.select_for_update().filter(pk__in=ids).order_by("pk").values_list("pk", "state", "sha256")
    )
)


def _make_ready(model: Any, refs: Sequence[tuple[int, str, str, str, int]]) -> None:
    """Write the refs (id, path, proof, sha256, size) as they are now, Ready. By hand, for the ORM takes longer to build a CASE
    per column than a copy takes.

    One that is readable already stays as it is: another transfer was faster, and ours has just replaced its object.
    """
    table = model._meta.db_table  # noqa: SLF001 - Django's public name for it
    now = connection.ops.adapt_datetimefield_value(timezone.now())
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH given AS ({_given(_READY_COLUMNS)})"  # noqa: S608 - names of columns
            f" UPDATE {table} SET install_path = given.install_path, proof = given.proof, sha256 = given.sha256,"
            f" size = given.size, physical_size = given.size, proven_at = %s, updated = %s, error_str = '', journalled = %s,"
            f" update_count = {table}.update_count + 1,"
            f" state = CASE WHEN {table}.state IN (%s, %s) THEN {table}.state ELSE %s END"
            f" FROM given WHERE {table}.id = given.id",
            [json.dumps(refs, ensure_ascii=False), now, now, False, *map(str, READABLE), str(RefState.READY)],
        )


_READY_COLUMNS = {"id": "bigint", "install_path": "text", "proof": "text", "sha256": "text", "size": "bigint"}
_FILE_COLUMNS = {
    "ref_id": "bigint", "path": "text", "size": "bigint", "version": "text", "sha256": "text", "etag": "text", "proof": "text",
    "format": "text", "virtual_size": "bigint", "backing": "text", "problem": "text",
}  # fmt: skip


def _write_files(model: Any, ref_ids: Sequence[int], files: Sequence[tuple[Any, ...]]) -> None:
    """Let these be all files of these refs; by hand as well."""
    table = model._meta.db_table  # noqa: SLF001 - Django's public name for it
    with connection.cursor() as cursor:
        of_refs = _given({"id": "bigint"})
        cursor.execute(f"DELETE FROM {table} WHERE ref_id IN ({of_refs})", [json.dumps([[pk] for pk in ref_ids])])  # noqa: S608 - its name
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(_FILE_COLUMNS)}) {_given(_FILE_COLUMNS)}",
            [json.dumps(files, ensure_ascii=False)],
        )


def _given(columns: Mapping[str, str]) -> str:
    """A SELECT of rows that come as one JSON parameter, each with the values of these columns (name -> type): the driver takes
    longer to put hundreds of parameters into a statement than the database to read them from one."""
    if connection.vendor == "postgresql":
        values, rows = "value->>{}", "json_array_elements(%s::json)"
    else:
        values, rows = "json_extract(value, '$[{}]')", "json_each(%s)"
    chosen = [f"CAST({values.format(place)} AS {type_}) AS {name}" for place, (name, type_) in enumerate(columns.items())]
    return f"SELECT {', '.join(chosen)} FROM {rows}"  # noqa: S608 - names of columns


def _relative_names(job: Job, copied: Sequence[CopiedFile]) -> list[tuple[str, str]]:
    if len(copied) == 1:
        return [("", copied[0].sha256)]
    prefix = len(job.target_path) + 1
    return [(file.target_key[prefix:], file.sha256) for file in copied]


def _target_files(job: Job, copied: Sequence[CopiedFile], ref_id: int) -> list[tuple[Any, ...]]:
    """The rows of a ref's files, as `_FILE_COLUMNS` names them."""
    known = {file.path: file for file in job.files}
    rows: list[tuple[Any, ...]] = []
    for file in copied:
        source = known[file.source_key]
        written = (ref_id, file.target_key, file.size, file.version, file.sha256, file.etag, str(file.proof))
        rows.append((*written, source.format, source.virtual_size, source.backing, source.problem))
    return rows


def fail(job: Job, error: Exception) -> None:
    """Note the error; one that may pass is tried again later with growing pauses, another waits for a person. A copy of what was
    deleted while it was planned is cancelled."""
    cause, retryable, remedy, wait = "unexpected", True, "Look into the worker's log; report it if it repeats.", 0.0
    outage = False
    if isinstance(error, StoreError):
        cause, retryable, remedy = error.cause, error.retryable, error.remedy
        outage = error.outage  # it is not the item's, and never uses up the attempts
        wait = min(getattr(error, "retry_after", None) or 0.0, _LONGEST_PAUSE)  # a server that says "in a year" is asked before
    # A server's words or an odd file name must not make the failure itself impossible to write down.
    message = str(error).encode(errors="backslashreplace").decode().replace("\0", "")
    attempts = job.transfer.attempts
    faults = job.transfer.faults + (not outage)
    again = retryable and (outage or faults < MAX_ATTEMPTS)
    models = KINDS[Kind(job.transfer.kind)]
    deleted = models.ref.objects.filter(pk=job.transfer.target_ref_id, state__in=GOING).exists()
    again = again and not deleted
    event = TransferEvent.CANCEL if deleted else TransferEvent.RELEASE if again else TransferEvent.FAIL
    longest = _LONGEST_PAUSE_OF_OUTAGE if outage else _LONGEST_PAUSE
    spread = random.uniform(0.5, 1.0)  # noqa: S311 - keeps items that failed together from coming back together; no secret
    pause = max(wait, min(longest, 5 * 2 ** min(attempts, 10)) * spread) if again else 0
    with transaction.atomic():
        changed = Transfer.objects.filter(pk=job.transfer.pk, epoch=job.epoch, state=TransferState.RUNNING).update(
            state=next_state(TRANSFER_TRANSITIONS, TransferState.RUNNING, event),
            worker=None,
            lease_until=None,
            faults=faults,
            lost=0,
            next_attempt_at=Now() + timedelta(seconds=pause),
            finished_at=None if again else Now(),
            error_cause=cause,
            error=message[:2000],
            remedy=remedy,
        )
        if changed and not (outage and attempts & (attempts - 1)):  # an outage meets many items, and each of them many times
            what = "failed, to be tried again" if event == TransferEvent.RELEASE else "failed"
            note_attempt(job, what, f"{cause}: {message}", remedy)
        if changed and event == TransferEvent.FAIL:
            fail_descendants([job.transfer.pk])
            begun = models.ref.objects.filter(pk=job.transfer.target_ref_id, state=RefState.CREATING)
            back = next_state(REF_TRANSITIONS, RefState.CREATING, RefEvent.OPERATION_FAILED)
            begun.update(state=back, error_str=message[:255], updated=Now())
    reach("fail.committed")


def fail_descendants(ids: list[int]) -> None:
    """What is Blocked behind a failed parent fails with it, and says why; a retry of the batch brings all back."""
    while ids:
        children = list(Transfer.objects.filter(parent__in=ids, state=TransferState.BLOCKED).values_list("pk", flat=True))
        fail_behind_parent(Transfer.objects.filter(pk__in=children))
        ids = children


def fail_behind_parent(transfers: QuerySet[Transfer]) -> None:
    update_in_order(
        transfers,
        [TransferState.BLOCKED],
        state=next_state(TRANSFER_TRANSITIONS, TransferState.BLOCKED, TransferEvent.FAIL),
        error_cause=PARENT_FAILED,
        error="The parent of this snapshot could not be copied, and a child is of no use without it.",
        remedy="Mend the parent's failure; a retry takes the children along.",
        finished_at=Now(),
    )


def fail_without_source(transfers: QuerySet[Transfer]) -> None:
    """What was to be read from a copy that never came."""
    update_in_order(
        transfers,
        [TransferState.BLOCKED],
        state=next_state(TRANSFER_TRANSITIONS, TransferState.BLOCKED, TransferEvent.FAIL),
        error_cause="source-cancelled",
        error="It was to be read from a copy that was being made, and the making of that copy was cancelled.",
        remedy="Ask for the item again: it is then brought to the object store first.",
        finished_at=Now(),
    )


def cancel_live(transfers: QuerySet[Transfer]) -> int:
    """Cancel what has not ended; a running copy notices at its next heartbeat, and the reaper removes what it left."""
    return update_in_order(
        transfers,
        [*sources(TRANSFER_TRANSITIONS, TransferEvent.CANCEL)],
        state=TransferState.CANCELLED,
        finished_at=Now(),
        worker=None,
        lease_until=Case(When(state=TransferState.FAILED, then=F("lease_until")), default=None),  # the lease of a sweep
    )


def update_in_order(transfers: QuerySet[Transfer], states: Sequence[TransferState], **changes: Any) -> int:
    """Update those in one of the states, locked in key order as `prove` does, or each could wait for the other; how many."""
    with transaction.atomic():
        locked = transfers.filter(state__in=states).select_for_update(of=("self",)).order_by("pk").values("pk")
        return Transfer.objects.filter(pk__in=locked, state__in=states).update(**changes)


def cancel_unattached() -> int:
    """Cancel what was asked for in the moment in which one of its stores was detached: no worker would ever claim it."""
    away = Q(source__state=StoreState.DETACHED) | Q(target__state=StoreState.DETACHED)
    return cancel_live(Transfer.objects.filter(away))


def lease_for_sweep(transfer: Transfer) -> bool:
    """Let nobody copy the item to that store while debris of this ended transfer is removed; false if that is not ours to do.

    Without it, a copy that is asked for anew could be proven between the question whether anybody needs what lies there and
    its removal. The lease outlives a retry of this very transfer, and lapses like any other.
    """
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    ended = Transfer.objects.filter(free, pk=transfer.pk, state__in=[TransferState.CANCELLED, TransferState.FAILED])
    with transaction.atomic():
        if not ended.update(lease_until=lease_end()):
            return False
        transfer.refresh_from_db(fields=["lease_until"])
    return True


def keep_sweeping(transfer: Transfer) -> bool:
    """Prolong the lease of a sweep, by the database's clock; false once it has lapsed, for then somebody may copy to that place.

    Whoever sweeps asks before each removal: the one before may have hung, and this process or its host may have been stopped.
    """
    with transaction.atomic():
        if not _holds_lease(transfer, Transfer.objects.filter(lease_until__gt=Now())):
            return False
        Transfer.objects.filter(pk=transfer.pk).update(lease_until=lease_end())
        transfer.refresh_from_db(fields=["lease_until"])
    return True


def _holds_lease(transfer: Transfer, rows: QuerySet[Transfer]) -> bool:
    """Whether the lease that the row has is the one that was taken for this sweep; locks the row."""
    held = rows.select_for_update(no_key=True).filter(pk=transfer.pk).exclude(state=TransferState.RUNNING)
    return list(held.values_list("lease_until", flat=True)) == [transfer.lease_until]


def end_sweep(transfer: Transfer, *, clean: bool) -> bool:
    """Give the lease back; `clean`: nothing is left of what the transfer wrote. Returns whether nothing can come any more.

    A copy that was cancelled publishes until its worker notices, and a worker may die before it says so: what was cancelled is
    swept again until a lease has passed since.
    """
    row = Transfer.objects.filter(pk=transfer.pk)
    silent = Q(state=TransferState.FAILED) | Q(finished_at__lte=Now() - timedelta(seconds=settings.LEASE_SECONDS))
    with transaction.atomic():
        if not _holds_lease(transfer, Transfer.objects.all()):
            return False
        over = clean and bool(row.filter(silent, state=transfer.state, epoch=transfer.epoch).update(swept=True))
        if over:
            TransferUpload.objects.filter(transfer=transfer).delete()
        row.update(lease_until=None)
    return over


def target_paths(transfer: Transfer) -> tuple[str, bool]:
    """(install path that an ended transfer wrote to, whether anybody may keep what lies there): a live transfer of the item to
    the same place, a ref there that is Ready, or another item of the same path."""
    models = KINDS[Kind(transfer.kind)]
    there = {"item_id": transfer.item_id, "target": transfer.target, "kind": transfer.kind}
    kept = (
        Transfer.objects.filter(state__in=LIVE_TRANSFER_STATES, **there).exists()
        or models.ref.objects.filter(store=transfer.target, item_id=transfer.item_id, state__in=READABLE).exists()
    )
    item = models.item.objects.get(pk=transfer.item_id)
    source_path = models.ref.objects.values_list("install_path", flat=True).get(pk=transfer.source_ref_id)
    path = install_path_on(item, source_path, transfer.target)
    # A snapshot's name is its path, and free again when it is deleted: its namesake's bytes are not debris of this one.
    living = models.ref.objects.filter(store=transfer.target, install_path=path).exclude(state=RefState.DESTROYED)
    kept = kept or living.exclude(item_id=transfer.item_id).exists()
    if transfer.kind == Kind.SNAPSHOT:
        alike = {"account_id": item.account_id, "volume_upstream_id": item.volume_upstream_id, "path": item.path}
        kept = kept or models.item.objects.filter(removed=None, **alike).exclude(pk=item.pk).exists()
    return path, kept


def first_asked_for(transfer: Transfer) -> datetime:
    """Since when copies of the item to that store have been asked for: what they left there is not older."""
    same = Transfer.objects.filter(kind=transfer.kind, item_id=transfer.item_id, target=transfer.target_id)
    first: datetime = same.aggregate(first=Min("created"))["first"]
    return first


def mark_unswept(jobs: Iterable[Job]) -> None:
    """A copy that ended after it was cancelled may have published just now: the reaper is to look again."""
    ids = [job.transfer.pk for job in jobs]
    Transfer.objects.filter(pk__in=ids, state__in=[TransferState.CANCELLED, TransferState.FAILED]).update(swept=False)


def errors_by_cause(batch: TransferBatch) -> list[dict[str, object]]:
    """Failures and pending retries of a batch grouped by cause: how many, one example, and what to do."""
    rows = (
        Transfer.objects.filter(batch=batch, state__in=[TransferState.FAILED, TransferState.QUEUED, TransferState.RUNNING])
        .exclude(error_cause="")
        .values("error_cause", "state")
        .annotate(count=Count("pk"), example=Min("error"), remedy=Max("remedy"))
        .order_by("-count")
    )
    return [
        {
            "cause": row["error_cause"],
            "count": row["count"],
            "failed": row["state"] == TransferState.FAILED,
            "example": row["example"],
            "remedy": row["remedy"],
        }
        for row in rows
    ]
