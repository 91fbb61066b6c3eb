"""Services under rivals and sudden death, as a program on a database of its own: `python -m tests.stores.rivals <scenario>`.

DATABASE_URL and CLOUDSTORAGE_* say where; exports are folders below CLOUDSTORAGE_DATA_DIR. Prints one line of JSON.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import django

from cloudstorage import checkpoints

DATA = random.Random("rivals").randbytes(17 * 1024 * 1024)
"""Two parts on an export."""


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstorage.settings")
    django.setup()
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])), flush=True)


def at_once(*works: Callable[[], Any]) -> list[str]:
    """Run all in threads from a common start; tells what each returned or raised."""
    from django.db import connection

    start = threading.Barrier(len(works))
    told: list[str] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            start.wait()
            work()
            told.append("done")
        except Exception as error:
            told.append(type(error).__name__)
            if type(error).__name__ not in {"Conflict", "Missing", "Blocked"}:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(told)


def root() -> Path:
    return Path(os.environ["CLOUDSTORAGE_DATA_DIR"])


def export(name: str) -> str:
    (root() / name).mkdir(exist_ok=True)
    return f"nfs://localhost{root() / name}"


def zone() -> Any:
    from stores.models import Account, Zone

    Account.objects.get_or_create(pk=2, defaults={"account_name": "a"})
    return Zone.objects.get_or_create(name="z1")[0]


def add(name: str, folder: str) -> Any:
    from cloudstorage.actors import cli_actor
    from stores.services import image_stores

    return image_stores.add_store(actor=cli_actor(), name=name, provider="NFS", url=export(folder), details={}, zone=zone())


def register(name: str, data: bytes = b"bytes") -> Any:
    from cloudstorage.actors import cli_actor
    from stores.models import Kind
    from stores.services import uploads

    return uploads.register_upload(
        actor=cli_actor(),
        kind=Kind.VOLUME,
        zone=zone(),
        account_id=2,
        name=name,
        filename="disk.raw",
        stream=io.BytesIO(data),
        size=len(data),
    )


def delete(item: Any) -> None:
    from cloudstorage.actors import cli_actor
    from stores.models import Kind
    from stores.services import items

    items.delete_item(actor=cli_actor(), kind=Kind.VOLUME, item=item)


# --- rivals ----------------------------------------------------------------------------------------------------------


def rivals() -> dict[str, Any]:
    """Everything that two can do at once; each answer is what the test expects exactly."""
    from stores.models import ImageStore, Kind, Volume, VolumeStoreRef
    from stores.services import holds, items

    zone()
    told: dict[str, Any] = {}
    same_place = at_once(*(lambda n=n: add(f"place-{n}", "shared") for n in range(4)))
    told["stores of one place"] = [same_place.count("done"), ImageStore.objects.count()]
    same_name = at_once(*(lambda n=n: add("name", f"folder-{n}") for n in range(4)))
    told["stores of one name"] = [same_name.count("done"), ImageStore.objects.filter(name="name").count()]

    outcomes = Counter(at_once(*(lambda n=n: [register(f"{n}-{i}") for i in range(4)] for n in range(4))))
    told["registered"] = [dict(outcomes), len(set(Volume.objects.values_list("upstream_id", flat=True)))]

    ref = VolumeStoreRef.objects.first()
    assert ref is not None

    def hold(owner: int) -> None:
        for _ in range(5):
            holds.take_hold(Kind.VOLUME, ref.pk, "read", str(owner), 60)
            holds.release_hold(Kind.VOLUME, ref.pk, "read", str(owner))
        holds.take_hold(Kind.VOLUME, ref.pk, "kept", str(owner), 60)

    def settle() -> None:
        for _ in range(10):
            holds.keep_promises(Kind.VOLUME, [ref.item_id])
            holds.expire_holds()

    from django.db import transaction

    outcomes = Counter(at_once(*(lambda n=n: hold(n) for n in range(4)), transaction.atomic(settle)))
    ref.refresh_from_db()
    told["holds"] = [dict(outcomes), ref.ref_cnt, len(holds.recount())]
    for owner in range(4):
        holds.release_hold(Kind.VOLUME, ref.pk, "kept", str(owner))

    doomed = list(Volume.objects.all())
    twice = at_once(*(lambda item=item: delete(item) for item in doomed[:4] for _ in range(2)))
    told["deleted twice"] = dict(Counter(twice))
    for item in doomed[4:]:
        delete(item)
    outcomes = Counter(at_once(*(lambda: [items.finish_deletes(3) for _ in range(8)] for _ in range(3))))
    items.finish_deletes()
    told["finished"] = [dict(outcomes), Volume.objects.filter(removed=None).count(), len(holds.recount())]
    told["files left"] = files_left()
    told["planned and asked for"] = plan_while_asking()
    told["proven and cancelled"] = cancel_while_proving()
    told["proven and disproven"] = disprove_while_proving()
    told["built on and deleted"] = build_on_what_is_deleted()
    return told


def plan_while_asking() -> list[Any]:
    """A drain is planned between the two halves of asking for a chain, in the opposite order: the child was promised first."""
    from django.db import connection, transaction

    from cloudstorage.actors import cli_actor
    from stores.models import ImageStore, Kind, Snapshot, SnapshotStoreRef, Transfer, TransferBatch
    from stores.services import transfers
    from stores.services.transfers import planning
    from stores.states import Proof, RefState, Role

    z1, objects_url = zone(), "http://objects"
    common = {"image_provider_name": "S3", "protocol": "http"}
    nfs = ImageStore.objects.create(name="staging", url="nfs://staging", zone=z1, scope="ZONE", role=Role.IMAGE_CACHE, **common)
    objects = ImageStore.objects.create(name="objects", url=objects_url, scope="REGION", role=Role.IMAGE, **common)
    of_volume = {"account_id": 2, "zone": z1, "volume_upstream_id": 9}
    parent = Snapshot.objects.create(name="parent", path="parent", **of_volume)
    child = Snapshot.objects.create(name="child", path="child", parent=parent, depth=1, **of_volume)
    for item in (child, parent):
        SnapshotStoreRef.objects.create(store=objects, item=item, state=RefState.PROMISED)
        where = f"snapshots/2/9/{item.name}"
        SnapshotStoreRef.objects.create(store=nfs, item=item, state=RefState.READY, install_path=where, proof=Proof.ADOPTED)
    half_way = threading.Event()
    ensure_one = planning._ensure_one

    def ensure_and_wait(kind: Kind, item: Any, *more: Any) -> Any:
        made = ensure_one(kind, item, *more)
        half_way.set()
        while connection.vendor == "postgresql" and item == parent and not somebody_waits():
            pass
        return made

    def plan() -> None:
        half_way.wait(60)
        with transaction.atomic():
            transfers.plan_batch(TransferBatch.objects.create(name="drain"), objects)

    planning._ensure_one = ensure_and_wait
    outcomes = at_once(lambda: transfers.ensure(actor=cli_actor(), kind=Kind.SNAPSHOT, item=child), plan)
    planning._ensure_one = ensure_one
    return [outcomes, sorted(Transfer.objects.values_list("depth", "priority"))]


def somebody_waits() -> bool:
    """For a lock that another has."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


def in_the_middle_of_a_proof(job: Any, copied: list[Any], work: Callable[[], Any]) -> list[str]:
    """A proof has locked its transfers; `work` begins, and the proof goes on when that waits for it."""
    from django.db import connection

    from stores.services import transfers
    from stores.services.transfers import endings

    half_way = threading.Event()
    prove_kind = endings._prove_kind

    def wait_and_prove(*arguments: Any) -> Any:
        half_way.set()
        while connection.vendor == "postgresql" and not somebody_waits():
            pass
        return prove_kind(*arguments)

    def begin() -> None:
        half_way.wait(60)
        work()

    endings._prove_kind = wait_and_prove
    outcomes = at_once(lambda: transfers.prove([(job, copied)]), begin)
    endings._prove_kind = prove_kind
    return outcomes


def disprove_while_proving() -> list[Any]:
    """A damaged copy on the object store is what a copy is read from that is just being proven; there is a third one."""
    from django.db import transaction

    from stores.copier import CopiedFile
    from stores.models import ImageStore, Kind, Transfer, Volume, VolumeStoreFile, VolumeStoreRef, Worker
    from stores.services import proofs, transfers
    from stores.states import Proof, RefState, Role, TransferState

    common = {"image_provider_name": "NFS", "protocol": "nfs", "zone": zone(), "scope": "ZONE", "role": Role.IMAGE_CACHE}
    stores = [ImageStore.objects.get(name=name) for name in ("objects", "staging")]
    stores.append(ImageStore.objects.create(name="third", url="nfs://third", **common))
    item = Volume.objects.create(name="volume", account_id=2, zone=zone(), upstream_id=77)
    states = (RefState.READY, RefState.CREATING, RefState.READY)
    refs = [
        VolumeStoreRef.objects.create(
            store=store, item=item, state=state, install_path="volumes/2/77", proof=Proof.VERIFIED, sha256="0" * 64
        )
        for store, state in zip(stores, states, strict=True)
    ]
    key = "volumes/2/77/disk.raw"
    row = Transfer.objects.create(
        kind=Kind.VOLUME,
        item_id=item.pk,
        source=stores[0],
        target=stores[1],
        source_ref_id=refs[0].pk,
        target_ref_id=refs[1].pk,
        state=TransferState.RUNNING,
        epoch=1,
        worker=Worker.objects.create(hostname="h", pid=2),
    )
    job = transfers.Job(row, item, "volumes/2/77", "volumes/2/77", (VolumeStoreFile(path=key, size=1),), epoch=1)
    copied = [CopiedFile(key, key, 1, "0" * 64, "e", "v", "v", Proof.VERIFIED)]

    def disprove() -> None:
        with transaction.atomic():
            proofs.disprove(Kind.VOLUME, refs[0], {key: f"{proofs.DAMAGED}other bytes"}, {})

    outcomes = in_the_middle_of_a_proof(job, copied, disprove)
    return [outcomes, list(VolumeStoreRef.objects.filter(item=item).order_by("pk").values_list("state", flat=True))]


def cancel_while_proving() -> list[Any]:
    """A drain is cancelled in the middle of a proof; the child of what is proven was planned before it, as smaller ones are."""
    from stores.copier import CopiedFile
    from stores.models import ImageStore, Kind, Snapshot, SnapshotStoreFile, SnapshotStoreRef, Transfer, TransferBatch, Worker
    from stores.services import transfers
    from stores.states import Proof, RefState, TransferState

    nfs, objects = ImageStore.objects.get(name="staging"), ImageStore.objects.get(name="objects")
    of_volume = {"account_id": 2, "zone": zone(), "volume_upstream_id": 10}
    older = Snapshot.objects.create(name="older", path="older", **of_volume)
    younger = Snapshot.objects.create(name="younger", path="younger", parent=older, depth=1, **of_volume)
    batch = TransferBatch.objects.create(name="cancelled")
    made = {}
    for item, state in ((younger, TransferState.BLOCKED), (older, TransferState.RUNNING)):
        where = f"snapshots/2/10/{item.name}"
        source = SnapshotStoreRef.objects.create(
            store=nfs, item=item, state=RefState.READY, install_path=where, proof=Proof.ADOPTED
        )
        target = SnapshotStoreRef.objects.create(store=objects, item=item, state=RefState.PROMISED)
        refs = {"source_ref_id": source.pk, "target_ref_id": target.pk}
        common = {"kind": Kind.SNAPSHOT, "item_id": item.pk, "source": nfs, "target": objects, "batch": batch, "epoch": 1}
        made[item.pk] = Transfer.objects.create(state=state, **common, **refs)
    proven, blocked = made[older.pk], made[younger.pk]
    worker = Worker.objects.create(hostname="h", pid=1)
    Transfer.objects.filter(pk=blocked.pk).update(parent=proven)
    Transfer.objects.filter(pk=proven.pk).update(worker=worker)
    key = f"snapshots/2/10/{older.name}"
    file = SnapshotStoreFile(path=key, size=1, proof=Proof.ADOPTED)
    job = transfers.Job(proven, older, key, key, (file,), epoch=1)
    copied = [CopiedFile(key, key, 1, "0" * 64, "e", "v", "v", Proof.VERIFIED)]
    outcomes = in_the_middle_of_a_proof(job, copied, lambda: transfers.cancel_batch(batch.pk))
    return [outcomes, sorted(Transfer.objects.filter(pk__in=[proven.pk, blocked.pk]).values_list("state", flat=True))]


def build_on_what_is_deleted() -> list[Any]:
    """A snapshot is begun between the moment in which its parent had no child and was deleted, and that in which others see it."""
    from django.db import connection

    from cloudstorage.actors import cli_actor
    from stores.models import Account, ImageStore, Kind, Snapshot, SnapshotStoreRef
    from stores.services import items
    from stores.states import Proof, RefState

    of_volume = {"account": Account.objects.get(pk=2), "zone": zone(), "volume_upstream_id": 11}
    parent = Snapshot.objects.create(name="parent", path="parent", **of_volume)
    place = {"install_path": "snapshots/2/11/parent", "state": RefState.READY, "proof": Proof.VERIFIED}
    SnapshotStoreRef.objects.create(store=ImageStore.objects.get(name="objects"), item=parent, **place)
    half_way, begun = threading.Event(), threading.Event()
    reach = items.reach

    def wait_before_commit(name: str) -> None:
        half_way.set()
        while name == "delete.before-commit" and connection.vendor == "postgresql" and not (somebody_waits() or begun.is_set()):
            pass

    def begin() -> None:
        half_way.wait(60)
        items.begin_item(actor=cli_actor(), kind=Kind.SNAPSHOT, name="child", path="child", parent=parent, **of_volume)
        begun.set()

    items.reach = wait_before_commit
    outcomes = at_once(lambda: items.delete_item(actor=cli_actor(), kind=Kind.SNAPSHOT, item=parent), begin)
    items.reach = reach
    return [outcomes, list(Snapshot.objects.filter(path="child", volume_upstream_id=11).values_list("parent", flat=True))]


def files_left() -> list[str]:
    """Files on the exports but for markers and the trash."""
    found = [path for path in root().rglob("*") if path.is_file() and path.suffix in {".raw", ".data", ".log"}]
    return [str(path.relative_to(root())) for path in found if ".cs-trash" not in path.parts]


# --- sudden death ----------------------------------------------------------------------------------------------------


def add_again() -> str:
    return str(add("again", "export").uuid)


def die_and_recover(checkpoint: str) -> dict[str, Any]:
    """An item's life in a fork, which the checkpoint ends; then what the worker's clock does later, in this process."""
    child = os.fork()
    if not child:
        try:
            os.environ["CLOUDSTORAGE_CRASH_AT"] = checkpoint
            importlib.reload(checkpoints)  # reads the environment again
            live()
        finally:
            traceback.print_exc()
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return {"died": os.waitstatus_to_exitcode(status)} | recover()


def live() -> None:
    """An item's life, in the middle of which a checkpoint may end the process."""
    from stores.services import items

    add("nfs", "export")
    delete(register("mortal", DATA).item)
    items.finish_deletes()


def recover() -> dict[str, Any]:
    """What the worker's clock does later; tells what is left of the item."""
    from django.utils import timezone

    from cloudstorage.actors import cli_actor
    from stores.models import Hold, ImageStore, Kind, Volume, VolumeStoreRef
    from stores.services import holds, inventory, items

    later = timezone.now() - timedelta(days=2)
    if not ImageStore.objects.exists():
        add("nfs", "export")
    Hold.objects.update(expires=later)
    VolumeStoreRef.objects.update(updated=later)
    holds.expire_holds()
    items.give_up_unfinished()
    items.finish_deletes()
    readable = 0
    for volume in Volume.objects.filter(removed=None):
        with inventory.open_content(actor=cli_actor(), kind=Kind.VOLUME, item=volume) as content:
            assert b"".join(content.chunks()) == DATA
        readable += 1
    return {"readable": readable, "files": len(files_left()), "wrong counts": len(holds.recount())}


if __name__ == "__main__":
    main()
