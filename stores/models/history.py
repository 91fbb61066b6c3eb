"""What happened to an item and left no other row: attempts that failed, workers that were lost, proofs that were withdrawn."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models.functions import Now

from stores.models.image_stores import ImageStore
from stores.states import Kind


class ItemEvent(models.Model):
    """One such thing. What succeeds has its rows already, so that the many copies that just work cost nothing here."""

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=16, choices=[(kind, kind) for kind in Kind])
    item_id = models.BigIntegerField()
    at = models.DateTimeField(db_default=Now())
    what = models.CharField(max_length=64)
    store = models.ForeignKey(ImageStore, null=True, on_delete=models.SET_NULL, related_name="+", db_index=False)
    """Where it was to be, or is."""
    worker = models.CharField(max_length=300, blank=True, default="")
    words = models.TextField(blank=True, default="")
    remedy = models.TextField(blank=True, default="")

    class Meta:
        indexes: ClassVar = [models.Index(fields=["kind", "item_id", "-at"], name="item_event_by_item")]

    def __str__(self) -> str:
        return f"{self.what}: {self.kind} {self.item_id}"
