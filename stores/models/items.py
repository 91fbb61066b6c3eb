"""What is stored: templates (ISOs among them), snapshots and volumes; columns follow `vm_template`, `snapshots`, `volumes`."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from stores.models.region import Account, Zone
from stores.states import Kind


class Item(models.Model):
    """What the three kinds share. `upstream_id` is the database id that stands in the item's path on an export."""

    kind: ClassVar[Kind]

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=255)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    upstream_id = models.BigIntegerField(null=True, blank=True)
    format = models.CharField(max_length=16, blank=True)
    hypervisor_type = models.CharField(max_length=32, blank=True)
    size = models.BigIntegerField(null=True, blank=True)
    """Virtual size in bytes, where the image's header or properties tell it."""
    created = models.DateTimeField(default=timezone.now)
    removed = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.name


class Template(Item):
    """A template or ISO (format ISO)."""

    kind = Kind.TEMPLATE

    unique_name = models.CharField(max_length=255)
    display_text = models.CharField(max_length=4096, blank=True)
    public = models.BooleanField(default=False)
    featured = models.BooleanField(default=False)
    extractable = models.BooleanField(default=True)
    type = models.CharField(max_length=32, default="USER")
    url = models.CharField(max_length=2048, blank=True)
    checksum = models.CharField(max_length=255, blank=True)
    cross_zones = models.BooleanField(default=False)
    cross_zones_by = models.UUIDField(null=True, blank=True, editable=False)
    """The conversion that made it region-wide; null where it was so by itself."""

    class Meta:
        db_table = "vm_template"
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["account", "upstream_id"], condition=Q(removed=None), name="template_identity"),
        ]


class TemplateZoneRef(models.Model):
    """Which zones show a template; columns follow `template_zone_ref`."""

    id = models.BigAutoField(primary_key=True)
    zone = models.ForeignKey(Zone, on_delete=models.CASCADE, related_name="template_refs")
    template = models.ForeignKey(Template, on_delete=models.CASCADE, related_name="zone_refs")
    created = models.DateTimeField(default=timezone.now)
    removed = models.DateTimeField(null=True, blank=True)
    added_by = models.UUIDField(null=True, blank=True, editable=False)
    """The conversion that added it; null where it was there by itself."""

    class Meta:
        db_table = "template_zone_ref"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["zone", "template"], condition=Q(removed=None), name="template_zone_once")
        ]

    def __str__(self) -> str:
        return f"template {self.template_id} in zone {self.zone_id}"


class Volume(Item):
    """A volume in secondary storage (uploaded, or extracted)."""

    kind = Kind.VOLUME

    zone = models.ForeignKey(Zone, null=True, blank=True, on_delete=models.PROTECT, db_column="data_center_id", related_name="+")

    class Meta:
        db_table = "volumes"
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["account", "upstream_id"], condition=Q(removed=None), name="volume_identity"),
        ]


class Snapshot(Item):
    """A volume snapshot; identified by its volume and file (or directory) name. `upstream_id` is unknown to a scan."""

    kind = Kind.SNAPSHOT

    zone = models.ForeignKey(Zone, null=True, blank=True, on_delete=models.PROTECT, db_column="data_center_id", related_name="+")
    volume_upstream_id = models.BigIntegerField(null=True, blank=True)
    path = models.CharField(max_length=255)
    """File or directory name below `snapshots/<account>/<volume>/`."""
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="children")
    """The snapshot whose blocks this one builds on; null = full. Upstream keeps it per store ref; ours are byte-identical."""
    depth = models.PositiveIntegerField(default=0)
    """0 for a full snapshot, parent's depth + 1 else."""

    class Meta:
        db_table = "snapshots"
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [models.Index(fields=["depth", "id"], name="snapshot_depth")]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "volume_upstream_id", "path"], condition=Q(removed=None), name="snapshot_identity"
            ),
        ]
