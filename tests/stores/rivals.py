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

    def somebody_waits() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return bool(cursor.fetchone()[0])

    def plan() -> None:
        half_way.wait(60)
        with transaction.atomic():
            transfers.plan_batch(TransferBatch.objects.create(name="drain"), objects)

    planning._ensure_one = ensure_and_wait
    outcomes = at_once(lambda: transfers.ensure(actor=cli_actor(), kind=Kind.SNAPSHOT, item=child), plan)
    planning._ensure_one = ensure_one
    return [outcomes, sorted(Transfer.objects.values_list("depth", "priority"))]


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
