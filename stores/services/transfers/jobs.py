"""What a transfer is to those who run it: the claimed job, where its item goes, and how hard it is tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db.models.functions import Now

from stores import layout
from stores.models import ImageStore, Item, Kind, StoreFile, Transfer, TransferUpload
from stores.states import RefState

ON_DEMAND, BACKGROUND = 0, 10
MAX_ATTEMPTS = 5
"""Attempts that an error which may pass gets before the transfer is Failed and waits for a person."""
GOING = (RefState.DESTROYING, RefState.DESTROYED)
PUMP = "stores.tasks.pump"


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed transfer with all that its copy needs; no further query until it ends."""

    transfer: Transfer
    item: Item
    source_path: str
    """`install_path` of the source ref."""
    target_path: str
    """`install_path` that the target ref will have."""
    files: tuple[StoreFile, ...]
    epoch: int
    uploads: tuple[TransferUpload, ...] = ()
    """What earlier attempts had begun and recorded, with its parts."""
    disproven: bool = False
    """What lies at the target was found damaged: whatever its store attests, it is written anew."""

    @property
    def background(self) -> bool:
        """Whether it is copied only on a seat of its batch."""
        return self.transfer.batch_id is not None and self.transfer.priority != ON_DEMAND

    @property
    def token(self) -> str:
        return f"{self.transfer.pk}-{self.epoch}"

    def target_key(self, source_key: str) -> str:
        return self.target_path + source_key[len(self.source_path) :]


def install_path_on(item: Item, source_path: str, target: ImageStore) -> str:
    """Where an item goes on `target`: upstream's layout is the same everywhere, but for a template's unique name in the keys of
    an object store (reference: CloudStack's S3 plug-in)."""
    if item.kind != Kind.TEMPLATE:
        return source_path
    unique_name = ""
    if target.scope == "REGION":
        wanted = item.unique_name.replace("/", "_")  # type: ignore[attr-defined]  # a template, by its kind
        unique_name = wanted if wanted.strip(".") else str(item.uuid)
    return layout.install_path(Kind.TEMPLATE, item.account_id, item.upstream_id or 0, unique_name=unique_name)


def lease_end(seconds: int | None = None) -> Now:
    return Now() + timedelta(seconds=settings.LEASE_SECONDS if seconds is None else seconds)  # type: ignore[return-value]  # an expression of the database's, which the stubs take for a duration


def slices(ids: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
