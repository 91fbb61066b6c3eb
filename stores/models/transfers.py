"""The work to do: the row is the job. Transfers, the batch they belong to, their uploads, and the workers that run them."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now
from django.utils import timezone

from stores.models.image_stores import ImageStore, heavy
from stores.states import LIVE_TRANSFER_STATES, Kind, Proof, TransferState

SILENT_AFTER = timedelta(seconds=90)
"""A worker that has given no sign of life for so long counts as gone: it writes one every second."""


class WorkerQuerySet(models.QuerySet["Worker"]):
    """Who can be counted on."""

    def living(self) -> WorkerQuerySet:
        """Neither stopped nor silent, by the clock that wrote their heartbeats."""
        return self.filter(stopped=None, heartbeat__gt=Now() - SILENT_AFTER)

    def with_reach(self) -> WorkerQuerySet:
        """With `reach.all()` and its stores, without what of these is long."""
        seen = WorkerReach.objects.select_related("store").defer(*heavy("store"))
        return self.prefetch_related(models.Prefetch("reach", queryset=seen))


class Worker(models.Model):
    """One `manage.py worker` process; it claims only transfers between stores that it reaches."""

    objects = WorkerQuerySet.as_manager()

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    hostname = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    os_user = models.CharField(max_length=255, blank=True)
    version = models.CharField(max_length=64, blank=True)
    started = models.DateTimeField(default=timezone.now)
    heartbeat = models.DateTimeField(db_default=Now())
    """By the database's clock, as all that others judge it by."""
    pumped = models.DateTimeField(null=True, blank=True)
    """When a process of its queue cluster was last seen at work."""
    pumps = models.PositiveSmallIntegerField(default=1)
    """How many pumps its queue cluster runs at most."""
    stopped = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"{self.hostname}:{self.pid}"


class WorkerReachQuerySet(models.QuerySet["WorkerReach"]):
    """What living workers say."""

    def of_living_workers(self) -> WorkerReachQuerySet:
        """Not of those that stopped or are silent."""
        return self.filter(worker__stopped=None, worker__heartbeat__gt=Now() - SILENT_AFTER)


class WorkerReach(models.Model):
    """Whether a worker reaches a store, as it saw it last."""

    objects = WorkerReachQuerySet.as_manager()

    id = models.BigAutoField(primary_key=True)
    worker = models.ForeignKey(Worker, on_delete=models.CASCADE, related_name="reach")
    store = models.ForeignKey(ImageStore, on_delete=models.CASCADE, related_name="reach")
    ok = models.BooleanField()
    error = models.TextField(blank=True, default="")
    checked_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["worker", "store"], name="worker_reach_once")]

    def __str__(self) -> str:
        return f"worker {self.worker_id} {'reaches' if self.ok else 'does not reach'} store {self.store_id}"


class Claimer(models.Model):
    """A pump at work: a process that claims for its worker. Its asks are what makes others leave it its share."""

    id = models.BigAutoField(primary_key=True)
    worker = models.ForeignKey(Worker, on_delete=models.CASCADE, related_name="claimers")
    number = models.PositiveIntegerField()
    """Its process id."""
    seen = models.DateTimeField(default=timezone.now)
    asks = models.JSONField(default=dict)
    """Batch id -> how many more transfers of it the pump would copy at once, were it not for the batch's concurrency."""
    times = models.JSONField(default=dict, db_default=Value({}, models.JSONField()))
    """What its copies spent the last minute on, as `stores.timing.LastMinute` tells it."""

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["worker", "number"], name="claimer_once")]

    def __str__(self) -> str:
        return f"pump {self.number} of worker {self.worker_id}"


class TransferBatch(models.Model):
    """Transfers that are run, paused and limited together. Limits may change at any time and bite within one part."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=255)
    open = models.BooleanField(default=False)
    """Its transfers may be claimed and may go on; false = paused."""
    opened = models.DateTimeField(null=True, blank=True)
    """When it was opened last; for a moment after it every worker finds its share untouched."""
    only_canary = models.BooleanField(default=False)
    """Only transfers marked as canary may be claimed."""
    concurrency = models.PositiveIntegerField(default=8)
    """Items under way at once, over all workers."""
    bandwidth = models.BigIntegerField(null=True, blank=True)
    """Bytes per second over all workers; null = no limit."""
    window = models.CharField(max_length=255, blank=True, default="")
    """When it may run, as `services/windows` reads it: `Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00`; empty = always."""
    time_zone = models.CharField(max_length=64, blank=True, default="", db_default="")
    """By whose clock the windows go: a name of the IANA database; empty = CLOUDSTORAGE_TIME_ZONE."""

    def __str__(self) -> str:
        return self.name


class Transfer(models.Model):
    """The copying of one item from one store to another.

    Lease and epoch fence: every change a worker makes carries `epoch` and state Running in its WHERE clause.
    """

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    kind = models.CharField(max_length=16, choices=[(kind, kind) for kind in Kind])
    item_id = models.BigIntegerField()
    # Without an index of their own: nearly all transfers have the same, and SQLite would prefer it to that of a claim.
    source = models.ForeignKey(ImageStore, on_delete=models.PROTECT, related_name="transfers_from", db_index=False)
    target = models.ForeignKey(ImageStore, on_delete=models.PROTECT, related_name="transfers_to", db_index=False)
    source_ref_id = models.BigIntegerField()
    target_ref_id = models.BigIntegerField()
    batch = models.ForeignKey(TransferBatch, null=True, blank=True, on_delete=models.SET_NULL, related_name="transfers")
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="children")
    """The transfer of the parent in the chain, to the same target; Blocked until that one is Proven."""
    depth = models.PositiveIntegerField(default=0)
    priority = models.SmallIntegerField(default=10)
    """0 = on demand, 10 = drain; lower goes first."""
    canary = models.BooleanField(default=False)
    read_back = models.BooleanField(default=False, db_default=False)
    """Its copy is fetched and hashed again before it counts as proven, whatever the target says of it."""
    state = models.CharField(max_length=16, choices=[(state, state) for state in TransferState], default=TransferState.QUEUED)

    attempts = models.PositiveIntegerField(default=0)
    faults = models.PositiveIntegerField(default=0, db_default=0)
    """Attempts that ended with an error which is no outage."""
    lost = models.PositiveIntegerField(default=0, db_default=0)
    """Workers in a row that stopped answering while they ran it."""
    next_attempt_at = models.DateTimeField(db_default=Now())
    worker = models.ForeignKey(Worker, null=True, blank=True, on_delete=models.SET_NULL, related_name="transfers")
    copied_by = models.ForeignKey(Worker, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", db_index=False)
    """Whose copy was proven."""
    lease_until = models.DateTimeField(null=True, blank=True)
    epoch = models.PositiveIntegerField(default=0)
    pump = models.PositiveIntegerField(null=True, blank=True)
    """While Running: number of the worker's pump that has a seat for it, which is what the batch's concurrency counts; null for
    what was claimed ahead, so that it can begin when another of the pump's ends."""

    bytes_total = models.BigIntegerField(default=0)
    bytes_done = models.BigIntegerField(default=0)
    """Bytes that the target has of this attempt (holes count as done); never above `bytes_total`."""
    proof = models.CharField(max_length=16, choices=[(proof, proof) for proof in Proof], blank=True, default="")
    error_cause = models.CharField(max_length=32, blank=True, default="")
    error = models.TextField(blank=True, default="")
    remedy = models.TextField(blank=True, default="")
    created = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    progress_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    waiting_on = models.CharField(max_length=8, blank=True, default="")
    """source or target: where the copy was at its last heartbeat, to say what a stuck one is stuck on."""
    swept = models.BooleanField(default=True)
    """False from a claim on, until it is proven or the reaper has removed what it may have left on the target."""

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["priority", "depth", "id"], condition=Q(state=TransferState.QUEUED), name="transfer_claim"),
            models.Index(fields=["lease_until"], condition=Q(state=TransferState.RUNNING), name="transfer_leases"),
            models.Index(
                fields=["lease_until"],
                condition=~Q(state=TransferState.RUNNING) & Q(lease_until__isnull=False),
                name="transfer_being_swept",
            ),
            models.Index(fields=["batch", "state", "id"], name="transfer_by_batch"),
            models.Index(fields=["id"], condition=Q(state=TransferState.FAILED), name="transfer_failed"),
            models.Index(fields=["kind", "item_id"], name="transfer_by_item"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["kind", "item_id", "target"],
                condition=Q(state__in=sorted(LIVE_TRANSFER_STATES)),
                name="transfer_one_live",
            ),
            models.CheckConstraint(condition=Q(bytes_done__lte=models.F("bytes_total")), name="transfer_progress_bound"),
            models.CheckConstraint(condition=~Q(state=TransferState.PROVEN) | Q(proof__gt=""), name="transfer_proven_has_proof"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.item_id} to store {self.target_id}: {self.state}"


class TransferUpload(models.Model):
    """A multipart upload of one file: recorded before its first part, so that it can be resumed, adopted or aborted."""

    id = models.BigAutoField(primary_key=True)
    transfer = models.ForeignKey(Transfer, on_delete=models.CASCADE, related_name="uploads")
    source_path = models.CharField(max_length=1024)
    source_version = models.CharField(max_length=255)
    key = models.CharField(max_length=1024)
    upload_id = models.TextField()
    token = models.CharField(max_length=255)
    size = models.BigIntegerField()
    part_size = models.BigIntegerField()
    created = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["transfer", "key"], name="transfer_upload_once")]

    def __str__(self) -> str:
        return f"upload of {self.key}"


class TransferPart(models.Model):
    """A part that the target has. A resume reads the source anew: up to the part's end it must still have `prefix_sha256`."""

    id = models.BigAutoField(primary_key=True)
    upload = models.ForeignKey(TransferUpload, on_delete=models.CASCADE, related_name="parts")
    number = models.PositiveIntegerField()
    offset = models.BigIntegerField()
    size = models.BigIntegerField()
    prefix_sha256 = models.CharField(max_length=64)
    etag = models.CharField(max_length=255)
    digest = models.CharField(max_length=255, blank=True)
    verified = models.BooleanField(default=False)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["upload", "number"], name="transfer_part_once")]

    def __str__(self) -> str:
        return f"part {self.number}"
