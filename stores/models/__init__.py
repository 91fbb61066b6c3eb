"""The truth: which store has which item, and the work to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stores.models.history import ItemEvent
from stores.models.image_stores import ImageStore, ImageStoreDetail, heavy
from stores.models.items import Item, Snapshot, Template, TemplateZoneRef, Volume
from stores.models.refs import (
    Hold,
    SnapshotStoreFile,
    SnapshotStoreRef,
    StoreFile,
    StoreRef,
    TemplateStoreFile,
    TemplateStoreRef,
    VolumeStoreFile,
    VolumeStoreRef,
)
from stores.models.region import Account, Zone
from stores.models.scans import ScanRun
from stores.models.transfers import (
    SILENT_AFTER,
    Claimer,
    Transfer,
    TransferBatch,
    TransferPart,
    TransferUpload,
    Worker,
    WorkerReach,
)
from stores.states import Kind


@dataclass(frozen=True, slots=True)
class KindModels:
    """The three tables of one kind of item: subclasses of Item, StoreRef and StoreFile, which being abstract have no manager
    that a type checker knows."""

    item: Any
    ref: Any
    file: Any


KINDS: dict[Kind, KindModels] = {
    Kind.TEMPLATE: KindModels(Template, TemplateStoreRef, TemplateStoreFile),
    Kind.SNAPSHOT: KindModels(Snapshot, SnapshotStoreRef, SnapshotStoreFile),
    Kind.VOLUME: KindModels(Volume, VolumeStoreRef, VolumeStoreFile),
}

__all__ = [
    "KINDS",
    "SILENT_AFTER",
    "Account",
    "Claimer",
    "Hold",
    "ImageStore",
    "ImageStoreDetail",
    "Item",
    "ItemEvent",
    "Kind",
    "KindModels",
    "ScanRun",
    "Snapshot",
    "SnapshotStoreFile",
    "SnapshotStoreRef",
    "StoreFile",
    "StoreRef",
    "Template",
    "TemplateStoreFile",
    "TemplateStoreRef",
    "TemplateZoneRef",
    "Transfer",
    "TransferBatch",
    "TransferPart",
    "TransferUpload",
    "Volume",
    "VolumeStoreFile",
    "VolumeStoreRef",
    "Worker",
    "WorkerReach",
    "Zone",
    "heavy",
]
