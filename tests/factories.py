"""Makes zones, stores and items with real bytes, rows and proofs as they are after a scan, for tests of services."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from django.utils import timezone

from stores.layout import install_path
from stores.manifest import manifest_sha256
from stores.models import (
    KINDS,
    Account,
    ImageStore,
    Item,
    Kind,
    Snapshot,
    StoreRef,
    Template,
    TemplateZoneRef,
    Volume,
    Worker,
    WorkerReach,
    Zone,
)
from stores.services.image_stores import driver_class, driver_for
from stores.services.inventory import relative_name
from stores.states import READABLE, Proof, RefState, Role

MEMORY = {"Memory": "tests.fakes.memory.MemoryDriver"}
"""For settings.STORE_DRIVERS: the provider that needs no server."""

_numbers = itertools.count(1)


def content(seed: str, size: int = 5000) -> bytes:
    """Bytes that differ from those of every other seed, and are the same in every run."""
    return random.Random(seed).randbytes(size)


def make_zone(name: str = "") -> Zone:
    return Zone.objects.create(name=name or f"zone-{next(_numbers)}")


def make_account(account_id: int = 2) -> Account:
    return Account.objects.get_or_create(pk=account_id, defaults={"account_name": f"account-{account_id}"})[0]


def make_store(
    provider: str = "Memory",
    *,
    name: str = "",
    zone: Zone | None = None,
    folder: Path | None = None,
    role: str = Role.IMAGE,
    facts: Mapping[str, object] | None = None,
) -> ImageStore:
    """A store with our marker: NFS in the plain folder `folder` of `zone`, or Memory for the region (url memory://<name>)."""
    name = name or f"store-{next(_numbers)}"
    driver = driver_class(provider)
    url = f"memory://{name}" if folder is None else f"nfs://localhost{folder}"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    store = ImageStore.objects.create(
        name=name,
        image_provider_name=provider,
        protocol="http" if folder is None else "nfs",
        url=url,
        zone=zone,
        scope=driver.scope,
        role=role,
        facts=dict(facts or {}),
    )
    driver_for(store).claim()
    return store


def make_worker(*reached: ImageStore) -> Worker:
    """A worker of this process that reaches the stores."""
    worker = Worker.objects.create(hostname="host", pid=os.getpid())
    WorkerReach.objects.bulk_create([WorkerReach(worker=worker, store=store, ok=True) for store in reached])
    return worker


def make_ref(
    kind: Kind,
    item: Item,
    store: ImageStore,
    where: str,
    files: Mapping[str, bytes],
    *,
    state: RefState = RefState.READY,
    proof: Proof = Proof.ADOPTED,
) -> StoreRef:
    """A copy of an item: bytes on the store (names are keys), the ref and its file rows. Adopted copies have no hashes."""
    driver = driver_for(store)
    ref = KINDS[kind].ref.objects.create(
        store=store,
        item=item,
        state=state,
        install_path=where,
        size=sum(map(len, files.values())),
        physical_size=sum(map(len, files.values())),
        proof=proof,
        proven_at=timezone.now(),
    )
    hashed = []
    for key, data in files.items():
        stored = driver.put(key, data, metadata={"cs-uuid": str(item.uuid)}, token=f"factory-{ref.pk}")
        digest = "" if proof is Proof.ADOPTED else hashlib.sha256(data).hexdigest()
        hashed.append((relative_name(where, key), digest))
        KINDS[kind].file.objects.create(
            ref_id=ref.pk, path=key, size=len(data), version=stored.version, etag=stored.etag, sha256=digest, proof=proof
        )
    ref.sha256 = manifest_sha256(hashed)
    ref.save(update_fields=["sha256"])
    return ref


def make_template(
    stores: Sequence[ImageStore],
    *,
    name: str = "",
    account: Account | None = None,
    size: int = 5000,
    proof: Proof = Proof.ADOPTED,
) -> Template:
    """A template of two files (image and template.properties), Ready on each of `stores` and shown in their zones."""
    number = next(_numbers)
    account = account or make_account()
    name = name or f"template-{number}"
    template = Template.objects.create(
        name=name, unique_name=f"{account.pk}-{number}-{name}", account=account, upstream_id=number, format="QCOW2"
    )
    for store in stores:
        unique = "" if store.scope == "ZONE" else template.unique_name
        where = install_path(Kind.TEMPLATE, account.pk, number, unique_name=unique)
        files = {f"{where}/{template.uuid}.qcow2": content(name, size)}
        if store.scope == "ZONE":
            files[f"{where}/template.properties"] = f"uniquename={template.unique_name}\n".encode()
        make_ref(Kind.TEMPLATE, template, store, where, files, proof=proof)
        if store.zone is not None:
            TemplateZoneRef.objects.get_or_create(zone=store.zone, template=template, removed=None)
    return template


def make_volume(
    stores: Sequence[ImageStore],
    *,
    name: str = "",
    account: Account | None = None,
    size: int = 5000,
    proof: Proof = Proof.ADOPTED,
) -> Volume:
    """A volume of one file, Ready on each of `stores`."""
    number = next(_numbers)
    account = account or make_account()
    name = name or f"volume-{number}"
    volume = Volume.objects.create(name=name, account=account, upstream_id=number, format="RAW", zone=stores[0].zone)
    where = install_path(Kind.VOLUME, account.pk, number)
    for store in stores:
        make_ref(Kind.VOLUME, volume, store, where, {f"{where}/{volume.uuid}.raw": content(name, size)}, proof=proof)
    return volume


def make_chain(
    stores: Sequence[ImageStore],
    length: int = 3,
    *,
    account: Account | None = None,
    size: int = 3000,
    proof: Proof = Proof.ADOPTED,
) -> list[Snapshot]:
    """Snapshots of one volume, each building on the one before it, Ready on each of `stores`; the full one first."""
    number = next(_numbers)
    account = account or make_account()
    chain: list[Snapshot] = []
    for depth in range(length):
        name = f"snapshot-{number}-{depth}"
        snapshot = Snapshot.objects.create(
            name=name,
            account=account,
            zone=stores[0].zone,
            volume_upstream_id=number,
            path=f"{name}.vhd",
            parent=chain[-1] if chain else None,
            depth=depth,
            format="VHD",
        )
        where = install_path(Kind.SNAPSHOT, account.pk, number, name=snapshot.path)
        for store in stores:
            make_ref(Kind.SNAPSHOT, snapshot, store, where, {where: content(name, size)}, proof=proof)
        chain.append(snapshot)
    return chain


def make_promises(store: ImageStore) -> int:
    """What a conversion to `store` writes for everything readable on NFS: staging stores, promises and counts. Returns how many."""
    from stores.services import holds

    count = 0
    ImageStore.objects.filter(scope="ZONE").update(role=Role.IMAGE_CACHE)
    for kind, models in KINDS.items():
        readable = models.ref.objects.filter(store__scope="ZONE", state__in=READABLE)
        for item_id in sorted(set(readable.values_list("item_id", flat=True))):
            models.ref.objects.create(store=store, item_id=item_id, state=RefState.PROMISED)
            holds.keep_promises(kind, [item_id])
            count += 1
    return count
