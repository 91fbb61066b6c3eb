"""A converted, drained and committed region whose eastern staging store is to be retired."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from migration import decommission
from migration.models import Conversion, ConversionStore, Decommission
from migration.states import ConversionState
from migration.tasks import run_verification
from stores.models import KINDS, ImageStore, Kind, Transfer
from stores.services.image_stores import add_store, driver_for
from stores.states import Proof, Role, TransferState
from tests.factories import make_ref, make_store


def move_all(region: Any) -> Conversion:
    """The rows and bytes of a region that was converted to Memory and drained, without waiting for either."""
    exports = list(ImageStore.objects.filter(scope="ZONE"))
    objects = make_store("Memory", name="objects")
    conversion = Conversion.objects.create(object_store=objects, actor="test")
    for store in exports:
        ConversionStore.objects.create(conversion=conversion, store=store, former_role=Role.IMAGE, former_readonly=False)
    ImageStore.objects.filter(pk__in=[store.pk for store in exports]).update(role=Role.IMAGE_CACHE)
    for kind, models in KINDS.items():
        for ref in models.ref.objects.filter(store__in=exports).order_by("pk").select_related("store", "item"):
            if not models.ref.objects.filter(store=objects, item=ref.item).exists():
                prove(kind, ref, objects)
    return conversion


def prove(kind: Kind, ref: Any, objects: ImageStore) -> None:
    """A proven copy of the original, and the transfer that brought it."""
    models = KINDS[kind]
    contents = {}
    for file in ref.files.all():
        with driver_for(ref.store).open(file.path) as reader:
            contents[file.path] = reader.pread(0, reader.size)
    made = make_ref(kind, ref.item, objects, ref.install_path, contents, proof=Proof.VERIFIED)
    assert models.ref.objects.filter(pk=made.pk).exclude(sha256="").exists()
    Transfer.objects.create(
        kind=kind, item_id=ref.item_id, source=ref.store, target=objects, source_ref_id=ref.pk, target_ref_id=made.pk,
        state=TransferState.PROVEN, proof=Proof.VERIFIED,
    )  # fmt: skip


def commit(conversion: Conversion) -> None:
    Conversion.objects.filter(pk=conversion.pk).update(state=ConversionState.COMMITTED, ended_at=timezone.now())


def add_staging(region: Any, zone: str) -> ImageStore:
    """Another staging store in the zone."""
    folder = region.root / f"{zone}-cache"
    folder.mkdir()
    url = f"nfs://localhost{folder}"
    zone_row = region.zones[zone]
    return add_store(
        actor=region.admin, name=f"cache-{zone}", provider="NFS", url=url, details={}, zone=zone_row, role=Role.IMAGE_CACHE
    )


def ready_to_retire(region: Any) -> ImageStore:
    """Everything is proven and committed, and the zone has another staging store."""
    commit(move_all(region))
    add_staging(region, "east")
    return ImageStore.objects.get(pk=region.stores["east"].pk)


def retire(store: ImageStore, actor: Any, **options: Any) -> Decommission:
    """Ask for it, and let a worker do it."""
    row = decommission.begin(actor=actor, store=store, **options)
    work(row)
    return row


def work(row: Decommission) -> None:
    """What the queue would do."""
    for _ in range(3):
        run_verification(row.verification_id)
    row.refresh_from_db()
