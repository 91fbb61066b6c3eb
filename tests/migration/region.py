"""A small region for the tests of moving: two zones with real exports, items with real files, and an object store in memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.apps import apps
from django.utils import timezone

from cloudstorage.actors import Actor
from stores.models import KINDS, Account, ImageStore, Kind, Snapshot, Template, TemplateZoneRef, Volume, Worker, WorkerReach, Zone
from stores.services import image_stores
from stores.states import READABLE, Proof, RefState

_numbers = itertools.count(200)


@dataclass
class Region:
    """Zones and stores by name; `put` gives an item a copy."""

    admin: Actor
    root: Path
    zones: dict[str, Zone] = field(default_factory=dict)
    stores: dict[str, ImageStore] = field(default_factory=dict)
    account: Account | None = None

    def add_zone(self, name: str) -> ImageStore:
        """A zone with one NFS store `nfs-<name>` on a plain folder, scanned and reached by a worker."""
        folder = self.root / name
        folder.mkdir(parents=True)
        self.zones[name] = Zone.objects.create(name=name)
        store = image_stores.add_store(
            actor=self.admin,
            name=f"nfs-{name}",
            provider="NFS",
            url=f"nfs://localhost{folder}",
            details={},
            zone=self.zones[name],
        )
        ImageStore.objects.filter(pk=store.pk).update(scanned_at=timezone.now(), scan_report={"adopted": 0})
        store.refresh_from_db()
        worker = Worker.objects.create(hostname="worker", pid=1)
        WorkerReach.objects.create(worker=worker, store=store, ok=True)
        self.stores[name] = store
        return store

    def template(self, name: str, *zones: str, **fields: Any) -> Template:
        number = next(_numbers)
        fields = {"unique_name": f"{number}-{name}", "format": "QCOW2", "upstream_id": number} | fields
        item = Template.objects.create(name=name, account=self._account(), **fields)
        for zone in zones:
            TemplateZoneRef.objects.create(zone=self.zones[zone], template=item)
            self.put(item, zone, f"template/tmpl/2/{number}")
        return item

    def volume(self, name: str, zone: str) -> Volume:
        number = next(_numbers)
        item = Volume.objects.create(name=name, account=self._account(), upstream_id=number, zone=self.zones[zone])
        self.put(item, zone, f"volumes/2/{number}")
        return item

    def snapshot(self, name: str, *zones: str, parent: Snapshot | None = None, state: str = RefState.READY) -> Snapshot:
        item = Snapshot.objects.create(
            name=name,
            account=self._account(),
            volume_upstream_id=9,
            path=name,
            parent=parent,
            depth=parent.depth + 1 if parent else 0,
            zone=self.zones[zones[0]] if zones else None,
        )
        for zone in zones:
            self.put(item, zone, f"snapshots/2/9/{name}", state=state, single=True)
        return item

    def put(
        self,
        item: Any,
        zone: str,
        path: str,
        *,
        content: bytes | None = None,
        state: str = RefState.READY,
        single: bool = False,
    ) -> Any:
        """A copy of the item on the zone's export, with its row and its bytes."""
        content = f"content of {item.name}".encode() if content is None else content
        models = KINDS[Kind(item.kind)]
        ready = state in READABLE
        ref = models.ref.objects.create(
            item=item,
            store=self.stores[zone],
            state=state,
            install_path=path if ready else "",
            size=len(content),
            physical_size=len(content),
            proof=Proof.ADOPTED if ready else "",
        )
        if ready:
            key = path if single else f"{path}/{item.uuid}.qcow2"
            target = self.folder(zone) / key
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            models.file.objects.create(ref=ref, path=key, size=len(content), proof=Proof.ADOPTED)
        return ref

    def folder(self, zone: str) -> Path:
        return self.root / zone

    def _account(self) -> Account:
        if self.account is None:
            self.account = Account.objects.create(id=2, account_name="acme")
        return self.account


def refs(kind: Kind, **where: Any) -> list[tuple[str, str, int]]:
    """(item, state, ref_cnt) of refs, sorted."""
    rows = KINDS[kind].ref.objects.filter(**where).values_list("item__name", "state", "ref_cnt")
    return sorted(rows)


def dump(*, without: tuple[str, ...] = ("cloudstorage.AuditEvent",)) -> dict[str, str]:
    """A hash of every table's rows, to show that nothing changed."""
    found = {}
    for model in apps.get_models():
        if model._meta.label in without:
            continue
        rows = model._base_manager.order_by(model._meta.pk.name).values_list()
        digest = hashlib.sha256("\n".join(map(repr, rows)).encode())
        found[model._meta.label] = digest.hexdigest()
    return found


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {label for label in before if before[label] != after[label]}


def age_preflight(row: Any, seconds: float) -> None:
    """Make a preflight older than it is."""
    type(row).objects.filter(pk=row.pk).update(created=timezone.now() - timedelta(seconds=seconds))
