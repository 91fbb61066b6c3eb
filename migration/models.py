"""Rows of moving a whole cloud: preflight reports, conversions with the former state, drains, verifications."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from migration.states import ConversionState, DrainState, VerificationState
from stores.models import ImageStore, TransferBatch


class Preflight(models.Model):
    """A stored report of what a conversion would meet, with the fingerprint of what it saw."""

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

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [models.Index(fields=["details_digest", "-id"], name="preflight_by_store")]

    def __str__(self) -> str:
        return f"preflight {self.uuid} of {self.created:%Y-%m-%d %H:%M}"


class Conversion(models.Model):
    """The switch of a region from NFS to an object store, until it is committed or rolled back."""

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


class Drain(models.Model):
    """Moving every item off the staging stores in the background; its transfers are those of its batch."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    conversion = models.ForeignKey(Conversion, on_delete=models.PROTECT, related_name="drains")
    batch = models.OneToOneField(TransferBatch, on_delete=models.PROTECT, related_name="drain")
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

    CONTENT, LISTING = "content", "listing"

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    store = models.ForeignKey(ImageStore, on_delete=models.CASCADE, related_name="verifications")
    state = models.CharField(
        max_length=16, choices=[(state, state) for state in VerificationState], default=VerificationState.QUEUED
    )
    actor = models.CharField(max_length=255)
    mode = models.CharField(max_length=8, choices=[(CONTENT, CONTENT), (LISTING, LISTING)], default=CONTENT)
    sample_percent = models.FloatField(default=100)
    created = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)
    cursor = models.JSONField(default=dict, blank=True)
    """Where it goes on after a stop: last ref id by kind."""
    lease_until = models.DateTimeField(null=True, blank=True)
    items_checked = models.BigIntegerField(default=0)
    bytes_checked = models.BigIntegerField(default=0)
    findings = models.JSONField(default=list, blank=True)
    """The first thousand: {item, path, problem, expected, found}."""
    findings_count = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"verification {self.uuid}: {self.state}"
