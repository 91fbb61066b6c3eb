"""Which store has which item: one ref table per kind as upstream has them, each with a table of its files, and the holds."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from stores.models.image_stores import ImageStore
from stores.models.items import Item, Snapshot, Template, Volume
from stores.states import Kind, Proof, RefState

_STATES = [(state, state) for state in RefState]
_PROOFS = [(proof, proof) for proof in Proof]


def _constraints(kind: str) -> list[models.BaseConstraint]:
    return [
        models.UniqueConstraint(fields=["store", "item"], condition=~Q(state=RefState.DESTROYED), name=f"{kind}_ref_once"),
        models.CheckConstraint(
            condition=~Q(state=RefState.READY) | (Q(install_path__gt="") & Q(proof__gt="")), name=f"{kind}_ready_is_proven"
        ),
        models.CheckConstraint(
            condition=~Q(state=RefState.PROMISED) | Q(install_path="", proof=""), name=f"{kind}_promised_is_not"
        ),
        models.CheckConstraint(condition=Q(ref_cnt__gte=0), name=f"{kind}_ref_cnt_positive"),
    ]


class StoreRef(models.Model):
    """An item is, or will be, on a store. Columns follow `*_store_ref`; `proof` says how we know the bytes are right."""

    item: Item
    item_id: int

    id = models.BigAutoField(primary_key=True)
    store = models.ForeignKey(ImageStore, on_delete=models.PROTECT, related_name="+", db_index=False)
    """Three indexes begin with it; a fourth of its own would only cost."""
    state = models.CharField(max_length=16, choices=_STATES, default=RefState.ALLOCATED)
    install_path = models.CharField(max_length=1024, blank=True, default="")
    """Directory of a template or volume, file or directory of a snapshot, relative to the store's root."""
    size = models.BigIntegerField(default=0)
    """Bytes of content, all files together."""
    physical_size = models.BigIntegerField(default=0)
    """Bytes that it occupies on the store."""
    proof = models.CharField(max_length=16, choices=_PROOFS, blank=True, default="")
    sha256 = models.CharField(max_length=64, blank=True, default="")
    """Of the single file, or of the sorted manifest of several; empty while nobody hashed it."""
    proven_at = models.DateTimeField(null=True, blank=True)
    ref_cnt = models.PositiveIntegerField(default=0)
    """Holds on this ref, plus one for a promise elsewhere that is not kept yet."""
    error_str = models.CharField(max_length=255, blank=True, default="")
    created = models.DateTimeField(default=timezone.now)
    updated = models.DateTimeField(default=timezone.now)
    last_used = models.DateTimeField(null=True, blank=True)
    update_count = models.PositiveBigIntegerField(default=0)
    journalled = models.BooleanField(default=False)
    """Its hashes, owner, chain and proof are in the store's journal."""

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.state} on store {self.store_id}"


class StoreFile(models.Model):
    """One file of a ref: where it is, what it should be, and how we know."""

    id = models.BigAutoField(primary_key=True)
    path = models.CharField(max_length=1024)
    """Key relative to the store's root or prefix."""
    size = models.BigIntegerField()
    version = models.CharField(max_length=255, blank=True, default="")
    """The store's version token when we last knew the content."""
    sha256 = models.CharField(max_length=64, blank=True, default="")
    etag = models.CharField(max_length=255, blank=True, default="")
    proof = models.CharField(max_length=16, choices=_PROOFS)
    format = models.CharField(max_length=16, blank=True, default="")
    virtual_size = models.BigIntegerField(null=True, blank=True)
    backing = models.CharField(max_length=1024, blank=True, default="")
    """Base name of the backing file as the image's header names it."""
    problem = models.CharField(max_length=255, blank=True, default="")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.path


class TemplateStoreRef(StoreRef):
    item = models.ForeignKey(Template, on_delete=models.CASCADE, db_column="template_id", related_name="refs")

    class Meta:
        db_table = "template_store_ref"
        indexes: ClassVar = [
            models.Index(fields=["store", "state", "id"], name="template_ref_by_store"),
            models.Index(fields=["store", "install_path"], name="template_ref_by_path"),
        ]
        constraints: ClassVar = _constraints("template")


class SnapshotStoreRef(StoreRef):
    item = models.ForeignKey(Snapshot, on_delete=models.CASCADE, db_column="snapshot_id", related_name="refs")

    class Meta:
        db_table = "snapshot_store_ref"
        indexes: ClassVar = [
            models.Index(fields=["store", "state", "id"], name="snapshot_ref_by_store"),
            models.Index(fields=["store", "install_path"], name="snapshot_ref_by_path"),
        ]
        constraints: ClassVar = _constraints("snapshot")


class VolumeStoreRef(StoreRef):
    item = models.ForeignKey(Volume, on_delete=models.CASCADE, db_column="volume_id", related_name="refs")

    class Meta:
        db_table = "volume_store_ref"
        indexes: ClassVar = [
            models.Index(fields=["store", "state", "id"], name="volume_ref_by_store"),
            models.Index(fields=["store", "install_path"], name="volume_ref_by_path"),
        ]
        constraints: ClassVar = _constraints("volume")


class TemplateStoreFile(StoreFile):
    ref = models.ForeignKey(TemplateStoreRef, on_delete=models.CASCADE, related_name="files")

    class Meta:
        db_table = "template_store_file"
        constraints: ClassVar = [models.UniqueConstraint(F("ref"), F("path"), name="template_file_once")]


class SnapshotStoreFile(StoreFile):
    ref = models.ForeignKey(SnapshotStoreRef, on_delete=models.CASCADE, related_name="files")

    class Meta:
        db_table = "snapshot_store_file"
        constraints: ClassVar = [models.UniqueConstraint(F("ref"), F("path"), name="snapshot_file_once")]


class VolumeStoreFile(StoreFile):
    ref = models.ForeignKey(VolumeStoreRef, on_delete=models.CASCADE, related_name="files")

    class Meta:
        db_table = "volume_store_file"
        constraints: ClassVar = [models.UniqueConstraint(F("ref"), F("path"), name="volume_file_once")]


class Hold(models.Model):
    """Forbids eviction of a ref while its owner reads it; `ref_cnt` of the ref is the kept count of its holds."""

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=16, choices=[(kind, kind) for kind in Kind])
    ref_id = models.BigIntegerField()
    reason = models.CharField(max_length=32)
    owner = models.CharField(max_length=255)
    created = models.DateTimeField(default=timezone.now)
    expires = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["kind", "ref_id", "reason", "owner"], name="hold_once")]

    def __str__(self) -> str:
        return f"{self.reason} of {self.owner}"
