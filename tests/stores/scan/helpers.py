"""What the tests of scans share: exports as stores, and the rows that a scan writes."""

from __future__ import annotations

import uuid
from pathlib import Path

from stores.models import KINDS, Account, ImageStore, Snapshot, Template, TemplateZoneRef, Volume, Zone
from stores.services.image_stores import add_store
from stores.states import Kind
from tests.demo.build import BuiltItem


def add_export(admin, zone: str, path: Path) -> ImageStore:
    where, _ = Zone.objects.get_or_create(name=zone)
    return add_store(actor=admin, name=f"nfs-{zone}", provider="NFS", url=f"nfs://localhost{path}", details={}, zone=where)


def rows() -> dict[str, list[dict]]:
    """Every row that a scan may write, for comparing before and after."""
    models = [Account, Template, Snapshot, Volume, TemplateZoneRef]
    models += [model for kind in KINDS.values() for model in (kind.ref, kind.file)]
    return {model.__name__: list(model.objects.order_by("pk").values()) for model in models}


def ref_of(store: ImageStore, item: BuiltItem):
    kind = Kind.TEMPLATE if item.kind == "iso" else Kind(item.kind)
    if kind is Kind.SNAPSHOT:
        key = {"item__volume_upstream_id": item.volume_id, "item__path": item.name}
    else:
        key = {"item__upstream_id": int(item.upstream_id)}
    return KINDS[kind].ref.objects.select_related("item").get(store=store, item__account_id=item.account_id, **key)


def paths(findings) -> list[str]:
    return [example["path"] for example in findings.examples]


def stable_rows() -> dict[str, object]:
    """What a scan writes, without ids and times."""
    found: dict[str, object] = {}
    for kind, models in KINDS.items():
        for ref in models.ref.objects.select_related("item").order_by("install_path"):
            item = ref.item
            own = (item.account_id, item.upstream_id, item.name, item.format, item.hypervisor_type, item.size)
            chain = (item.parent.path if item.parent else None, item.depth) if kind is Kind.SNAPSHOT else ()
            files = [
                (file.path, file.size, file.version, file.format, file.virtual_size, file.backing, file.problem)
                for file in ref.files.order_by("path")
            ]
            found[ref.install_path] = (own, chain, ref.state, ref.size, ref.physical_size, ref.error_str, files)
    return found


def raw_snapshots(root: Path, count: int) -> None:
    for number in range(count):
        folder = root / "snapshots" / "2" / str(1000 + number // 5)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(uuid.UUID(int=number))).write_bytes(b"content %d" % number)
