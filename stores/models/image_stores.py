"""Image stores and their details; columns follow CloudStack's `image_store` and `image_store_details`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from django.db import models
from django.db.models import Count, OuterRef, Q, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from stores.models.region import Zone
from stores.states import READABLE, RefState, Role, StoreState


def heavy(*sides: str) -> list[str]:
    """Columns of stores, joined as `sides`, that are long and that no list shows: `rows.defer(*heavy("store"))`."""
    before = [f"{side}__" for side in sides] or [""]
    return [f"{side}{column}" for side in before for column in ("probe_steps", "facts", "scan_report")]


class ImageStoreQuerySet(models.QuerySet["ImageStore"]):
    """The questions that are asked of all stores."""

    def attached(self) -> Self:
        """Stores in use."""
        return self.filter(state=StoreState.ATTACHED)

    def of_record(self) -> Self:
        """Attached stores that new items may be written to."""
        return self.attached().filter(role=Role.IMAGE, readonly=False)

    def of_zone(self, zone: Zone | None) -> Self:
        """Stores that serve a zone: its own and the region's; all for no zone (CloudStack's rule)."""
        return self if zone is None else self.filter(Q(zone=zone) | Q(scope="REGION"))

    def with_usage(self) -> Self:
        """Adds per kind `templates`, `snapshots`, `volumes` (items Ready or Hidden there), `pending` (promised, not yet in
        bytes) and `bytes` (content of the items that are there), in the same query.
        """
        from stores.models.refs import SnapshotStoreRef, TemplateStoreRef, VolumeStoreRef

        def total(ref: Any, states: Sequence[RefState], what: models.Aggregate) -> Coalesce:
            rows = ref.objects.filter(store=OuterRef("pk"), state__in=states).order_by()
            grouped = rows.values("store").annotate(total=what).values("total")
            return Coalesce(Subquery(grouped, output_field=models.BigIntegerField()), 0)

        kinds = (TemplateStoreRef, SnapshotStoreRef, VolumeStoreRef)
        templates, snapshots, volumes = (total(ref, READABLE, Count("pk")) for ref in kinds)
        pending = [total(ref, (RefState.PROMISED,), Count("pk")) for ref in kinds]
        content = [total(ref, READABLE, Sum("size")) for ref in kinds]
        return self.annotate(
            templates=templates,
            snapshots=snapshots,
            volumes=volumes,
            pending=pending[0] + pending[1] + pending[2],
            bytes=content[0] + content[1] + content[2],
        )


class ImageStore(models.Model):
    """A secondary storage. Role Image: store of record; ImageCache: staging store of its zone."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=255)
    image_provider_name = models.CharField(max_length=255)
    protocol = models.CharField(max_length=255)
    url = models.CharField(max_length=2048, blank=True)
    place = models.CharField(max_length=2048, blank=True, default="")
    """What identifies it to a person, as its driver says (`display_url`): an S3 store has no url, but a bucket."""
    zone = models.ForeignKey(
        Zone, null=True, blank=True, on_delete=models.PROTECT, db_column="data_center_id", related_name="stores"
    )
    scope = models.CharField(max_length=8, choices=[("ZONE", "Zone"), ("REGION", "Region")])
    role = models.CharField(max_length=16, choices=[(role, role) for role in Role], default=Role.IMAGE)
    state = models.CharField(max_length=16, choices=[(state, state) for state in StoreState], default=StoreState.ATTACHED)
    readonly = models.BooleanField(default=False)
    created = models.DateTimeField(default=timezone.now)
    removed = models.DateTimeField(null=True, blank=True)
    total_size = models.BigIntegerField(null=True, blank=True)
    used_bytes = models.BigIntegerField(null=True, blank=True)
    read_limit = models.BigIntegerField(null=True, blank=True)
    """Bytes per second that all transfers together may read from this store; null = no limit."""
    probed_at = models.DateTimeField(null=True, blank=True)
    probe_steps = models.JSONField(default=list, blank=True)
    """The last probe, a list of `ProbeStep` as dictionaries."""
    facts = models.JSONField(default=dict, blank=True)
    scanned_at = models.DateTimeField(null=True, blank=True)
    scan_report = models.JSONField(default=dict, blank=True)
    """What the last scan that came to its end said, and in `failed` why a later one did not."""

    objects: ClassVar = ImageStoreQuerySet.as_manager()

    class Meta:
        db_table = "image_store"
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["name"], condition=Q(removed=None), name="image_store_name_unique"),
            models.CheckConstraint(
                condition=Q(scope="ZONE", zone__isnull=False) | Q(scope="REGION", zone=None), name="image_store_scope"
            ),
            models.CheckConstraint(condition=Q(removed=None) | Q(state=StoreState.REMOVED), name="image_store_removed_state"),
        ]

    def __str__(self) -> str:
        return self.name


class ImageStoreDetail(models.Model):
    """One driver option of a store; a secret's value is encrypted with the key ring."""

    id = models.BigAutoField(primary_key=True)
    store = models.ForeignKey(ImageStore, on_delete=models.CASCADE, related_name="details")
    name = models.CharField(max_length=255)
    value = models.TextField(blank=True)
    secret = models.BooleanField(default=False)

    class Meta:
        db_table = "image_store_details"
        constraints: ClassVar = [models.UniqueConstraint(fields=["store", "name"], name="image_store_detail_unique")]

    def __str__(self) -> str:
        return f"{self.name} of store {self.store_id}"
