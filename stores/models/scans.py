"""Scans of stores: who asked for which, how far it is, who runs it, and what came of it."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from stores.models.image_stores import ImageStore
from stores.states import LIVE_SCAN_STATES, ScanState


class ScanRun(models.Model):
    """One scan of one store; at most one of a store waits or runs."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    store = models.ForeignKey(ImageStore, on_delete=models.CASCADE, related_name="scans")
    state = models.CharField(max_length=16, choices=[(state, state) for state in ScanState], default=ScanState.QUEUED)
    actor = models.CharField(max_length=255)
    created = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    catalogue = models.JSONField(null=True, blank=True)
    """The catalogue that it was given, until it has ended."""
    attempts = models.PositiveIntegerField(default=0)
    token = models.UUIDField(null=True, blank=True, editable=False)
    """Of the process that runs it: another one in its place ends that process's writing."""
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    """By the database's clock; later than this the process that runs it counts as dead."""
    files = models.BigIntegerField(default=0)
    """Files of items that it has seen so far."""
    report = models.JSONField(default=dict, blank=True)
    error = models.TextField(blank=True, default="")
    remedy = models.TextField(blank=True, default="")

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["store"], condition=Q(state__in=sorted(LIVE_SCAN_STATES)), name="scan_run_one_live"),
        ]

    def __str__(self) -> str:
        return f"scan {self.uuid}: {self.state}"
