"""Rows of moving a whole cloud: preflight reports, conversions with the former state, drains, retirements, verifications."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from migration.states import ConversionState, DecommissionState, DrainState, VerificationState
from stores.models import ImageStore, TransferBatch


class Preflight(models.Model):
    """A stored report of what a conversion would meet, with the fingerprint of what it saw."""

    PLAN, START = "plan", "start"

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    created = models.DateTimeField(default=timezone.now)
    woken = models.DateTimeField(default=timezone.now, editable=False)
    """When the queue was last asked to run it."""
    finished = models.DateTimeField(null=True, blank=True)
    actor = models.CharField(max_length=255)
    name = models.CharField(max_length=255)
    provider = models.CharField(max_length=255)
    url = models.CharField(max_length=2048, blank=True)
    details_digest = models.CharField(max_length=64)
    """SHA-256 over provider, url and details without secrets: the report is of this very object store."""
    sealed = models.TextField(blank=True, default="", editable=False)
    """The details as JSON, encrypted with the key ring, so that a queue task can run the preflight and the conversion can follow
    without asking for the secrets again; emptied by the conversion and by a newer preflight of the same object store."""
    fingerprint = models.CharField(max_length=64, blank=True, default="")
    """SHA-256 over what was seen of stores and refs; another one at convert time makes the report stale."""
    report = models.JSONField(default=dict)
    blockers = models.PositiveIntegerField(default=0)
    warnings = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True, default="")
    """Why it ended without a report, for people."""
    rules = models.JSONField(default=dict, blank=True)
    """Of the drain that is to follow the conversion, as `rules.of` reads them."""
    then = models.CharField(max_length=8, choices=[(then, then) for then in (PLAN, START)], blank=True, default="")
    """What follows the conversion at once; empty = nothing."""

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [models.Index(fields=["details_digest", "-id"], name="preflight_by_store")]

    def __str__(self) -> str:
        return f"preflight {self.uuid} of {self.created:%Y-%m-%d %H:%M}"


class Draft(models.Model):
    """What somebody has entered on the way to a conversion, so that it survives the browser; one for each person."""

    id = models.BigAutoField(primary_key=True)
    actor = models.CharField(max_length=255, unique=True)
    provider = models.CharField(max_length=255)
    sealed = models.TextField(editable=False)
    """The entries of the first step as JSON, encrypted with the key ring: secrets are among them."""
    step = models.PositiveSmallIntegerField(default=1)
    """Where they were last: object store, rules, preflight, review."""
    preflight = models.ForeignKey(Preflight, null=True, blank=True, on_delete=models.SET_NULL, related_name="drafts")
    """It keeps the rules; null before the object store was entered to the end."""
    updated = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"draft of {self.actor}"


class Conversion(models.Model):
    """The switch of a region from NFS to an object store, until it is committed or rolled back."""

    was: str = ""
    """No column: the state before the event that has just moved it, for the audit trail."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    object_store = models.ForeignKey(ImageStore, on_delete=models.PROTECT, related_name="conversions")
    preflight = models.ForeignKey(Preflight, null=True, blank=True, on_delete=models.SET_NULL, related_name="conversions")
    state = models.CharField(
        max_length=16, choices=[(state, state) for state in ConversionState], default=ConversionState.CONVERTED
    )
    actor = models.CharField(max_length=255)
    converted_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    overrides = models.JSONField(default=list, blank=True)
    """Codes of the blockers that the operator overrode."""
    counts = models.JSONField(default=dict, blank=True)
    """Promised refs by kind and the seconds that the transaction took."""

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                models.Value(1),
                condition=Q(state__in=[ConversionState.CONVERTED, ConversionState.ROLLING_BACK]),
                name="conversion_one_open",
            ),
        ]

    def __str__(self) -> str:
        return f"conversion to {self.object_store_id}: {self.state}"


class ConversionStore(models.Model):
    """An NFS store as it was before the conversion, for the roll-back; while the conversion is open its refs are pinned."""

    id = models.BigAutoField(primary_key=True)
    conversion = models.ForeignKey(Conversion, on_delete=models.CASCADE, related_name="stores")
    store = models.ForeignKey(ImageStore, on_delete=models.PROTECT, related_name="conversion_stores")
    former_role = models.CharField(max_length=16)
    former_readonly = models.BooleanField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["conversion", "store"], name="conversion_store_once")]

    def __str__(self) -> str:
        return f"store {self.store_id} before conversion {self.conversion_id}"


class Rollback(models.Model):
    """The way back to NFS of a conversion: its batch brings home what is on the object store only. How far it is, is the state of
    the conversion; one that was abandoned has ended and left the conversion as it was."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    conversion = models.ForeignKey(Conversion, on_delete=models.PROTECT, related_name="rollbacks")
    batch = models.OneToOneField(TransferBatch, on_delete=models.PROTECT, related_name="rollback")
    actor = models.CharField(max_length=255)
    overrides = models.JSONField(default=list, blank=True)
    """Codes of the blockers that the operator overrode."""
    created = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    former_readonly = models.BooleanField(default=False)
    """Whether the object store took no new items before the roll-back did."""
    closing = models.BooleanField(default=False)
    """All but the newest is home, so the object store takes no new items until the switch."""
    note = models.TextField(blank=True, default="")
    """What it waits for, or how it ended, for people."""
    advancing_until = models.DateTimeField(null=True, blank=True)
    """One worker at a time plans, looks and switches."""

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["conversion"], condition=Q(ended_at=None), name="rollback_one_live"),
        ]

    def __str__(self) -> str:
        return f"rollback {self.uuid} of conversion {self.conversion_id}"


class Drain(models.Model):
    """Moving every item off the staging stores in the background; its transfers are those of its batch."""

    was: str = ""
    """No column: the state before the event that has just moved it, for the audit trail."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    conversion = models.ForeignKey(Conversion, on_delete=models.PROTECT, related_name="drains")
    batch = models.OneToOneField(TransferBatch, on_delete=models.PROTECT, related_name="drain")
    rules = models.JSONField(default=dict, blank=True)
    """What it moves and how, as `rules.of` reads them; its limits are the batch's."""
    state = models.CharField(max_length=16, choices=[(state, state) for state in DrainState], default=DrainState.PLANNED)
    actor = models.CharField(max_length=255)
    created = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    canary_proven_at = models.DateTimeField(null=True, blank=True)
    """The canary's items were read back from the store; a resume goes on with the rest."""
    note = models.TextField(blank=True, default="")
    """Why it is in this state, for people."""
    advancing_until = models.DateTimeField(null=True, blank=True)
    """One worker at a time samples it, reads its canary back and ends it."""

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["conversion"],
                condition=~Q(state__in=[DrainState.CANCELLED, DrainState.FINISHED]),
                name="drain_one_live",
            ),
        ]

    def __str__(self) -> str:
        return f"drain {self.uuid}: {self.state}"


class DrainSample(models.Model):
    """A point of a drain's history, for the chart, the rate and the ETA."""

    id = models.BigAutoField(primary_key=True)
    drain = models.ForeignKey(Drain, on_delete=models.CASCADE, related_name="samples")
    at = models.DateTimeField(default=timezone.now)
    items_proven = models.BigIntegerField()
    bytes_proven = models.BigIntegerField()
    bytes_copied = models.BigIntegerField()
    """Bytes on the target of transfers that are not proven yet."""
    running = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [models.Index(fields=["drain", "id"], name="drain_sample_order")]

    def __str__(self) -> str:
        return f"{self.at}: {self.bytes_proven}"


class Verification(models.Model):
    """A check of what a store really has: contents read again and hashed, or its listing compared with the refs."""

    CONTENT, LISTING, RETIRE = "content", "listing", "retire"

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    store = models.ForeignKey(ImageStore, on_delete=models.CASCADE, related_name="verifications")
    state = models.CharField(
        max_length=16, choices=[(state, state) for state in VerificationState], default=VerificationState.QUEUED
    )
    actor = models.CharField(max_length=255)
    mode = models.CharField(max_length=8, choices=[(CONTENT, CONTENT), (LISTING, LISTING), (RETIRE, RETIRE)], default=CONTENT)
    """`retire` reads every original and its proven copy, then lists what no ref knows; see `Decommission`."""
    sample_percent = models.FloatField(default=100)
    created = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)
    cursor = models.JSONField(default=dict, blank=True)
    """Where it goes on after a stop: last ref id by kind."""
    lease_until = models.DateTimeField(null=True, blank=True)
    epoch = models.PositiveIntegerField(default=0)
    """Fences whoever held the lease before."""
    items_checked = models.BigIntegerField(default=0)
    bytes_checked = models.BigIntegerField(default=0)
    findings = models.JSONField(default=list, blank=True)
    """The first thousand: {item, path, problem, expected, found}."""
    findings_count = models.PositiveIntegerField(default=0)
    note = models.TextField(blank=True, default="")
    """What it waits for, and what is to be done."""

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"verification {self.uuid}: {self.state}"


class Decommission(models.Model):
    """The retirement of a staging store; its evidence is in `RetiredFile` and outlives the store's refs."""

    was: str = ""
    """No column: the state before the event that has just moved it, for the audit trail."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    store = models.ForeignKey(ImageStore, on_delete=models.PROTECT, related_name="decommissions")
    verification = models.OneToOneField(Verification, on_delete=models.PROTECT, related_name="decommission")
    state = models.CharField(
        max_length=16, choices=[(state, state) for state in DecommissionState], default=DecommissionState.CHECKING
    )
    actor = models.CharField(max_length=255)
    created = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    """When the store was removed, or why not: refused or cancelled."""
    note = models.TextField(blank=True, default="")
    """Why it is in this state, for people."""
    former_readonly = models.BooleanField()
    lease_until = models.DateTimeField(null=True, blank=True)
    """One worker at a time ends it or deletes its files; also when it is to be tried again."""
    unknown_count = models.BigIntegerField(default=0)
    unknown_bytes = models.BigIntegerField(default=0)
    unknown_digest = models.CharField(max_length=64, blank=True, default="")
    """SHA-256 over the lines `<size>  <path>` of all files that no ref knows, in the order of the listing."""
    acknowledged_digest = models.CharField(max_length=64, blank=True, default="")
    acknowledged_by = models.CharField(max_length=255, blank=True, default="")
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    totals = models.JSONField(default=dict, blank=True)
    """Of the signed report: items, files, bytes, files not read again."""
    sums_sha256 = models.CharField(max_length=64, blank=True, default="")
    """SHA-256 of the report's SHA256SUMS, which stands in the audit trail too."""
    deletion_by = models.CharField(max_length=255, blank=True, default="")
    deletion_at = models.DateTimeField(null=True, blank=True)
    in_trash_at = models.DateTimeField(null=True, blank=True)
    deletion_cursor = models.BigIntegerField(default=0)
    files_deleted = models.BigIntegerField(default=0)
    files_left = models.BigIntegerField(default=0)
    """Changed or gone since they were read, so left alone."""

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["store"],
                condition=Q(state__in=[DecommissionState.CHECKING, DecommissionState.WAITING]),
                name="decommission_one_live",
            ),
        ]

    def __str__(self) -> str:
        return f"decommission {self.uuid}: {self.state}"


class RetiredFile(models.Model):
    """A line of a retirement's report: an original, its proven copy, and when both were read again (null: not in the sample)."""

    id = models.BigAutoField(primary_key=True)
    decommission = models.ForeignKey(Decommission, on_delete=models.CASCADE, related_name="files")
    kind = models.CharField(max_length=16)
    ref_id = models.BigIntegerField()
    """Of the original; it is Destroyed once the store is retired."""
    item_uuid = models.UUIDField()
    item_name = models.CharField(max_length=255)
    account = models.CharField(max_length=255)
    path = models.CharField(max_length=1024)
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    version = models.CharField(max_length=255, blank=True)
    """The original's, as it was read; another one later means that somebody changed it."""
    copy_store = models.ForeignKey(ImageStore, on_delete=models.PROTECT, related_name="+")
    key = models.CharField(max_length=1024)
    proof = models.CharField(max_length=16)
    proven_at = models.DateTimeField(null=True)
    original_read_at = models.DateTimeField(null=True)
    copy_read_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["decommission", "path"], name="retired_file_once")]
        indexes: ClassVar = [
            models.Index(fields=["decommission", "id"], name="retired_file_order"),
            models.Index(fields=["decommission", "kind", "ref_id"], name="retired_file_by_ref"),
        ]

    def __str__(self) -> str:
        return self.path


class UnknownFile(models.Model):
    """A file on a store to be retired that no ref knows."""

    id = models.BigAutoField(primary_key=True)
    decommission = models.ForeignKey(Decommission, on_delete=models.CASCADE, related_name="unknown")
    path = models.TextField()
    """Bytes that are no UTF-8 are escaped."""
    size = models.BigIntegerField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["decommission", "id"], name="unknown_file_order")]

    def __str__(self) -> str:
        return self.path
