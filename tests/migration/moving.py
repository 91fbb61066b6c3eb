"""Drains a region to a real object store while every item is read over REST again and again; tells each read that differed.

Run as a program: `python -m tests.migration.moving <folder of a built region> <details as JSON>`. DATABASE_URL and
CLOUDSTORAGE_* say where. Prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django

ROUNDS_AFTER = 1
"""Times that all is read again after the last item was proven."""


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstorage.settings")
    django.setup()
    print(json.dumps(move(Path(sys.argv[1]), json.loads(sys.argv[2]))), flush=True)


def move(folder: Path, details: dict[str, str]) -> dict[str, Any]:
    from cloudstorage.actors import cli_actor
    from migration import conversion, drain
    from stores.models import ImageStore, Transfer, Worker, WorkerReach
    from stores.services import image_stores, region
    from stores.services.scan import scan_store

    actor = cli_actor()
    hashes = json.loads((folder / "region.json").read_text())
    known = {(item["zone"], file["path"]): file["sha256"] for item in hashes["items"] for file in item["files"]}
    for name in ("zone1", "zone2"):
        store = image_stores.add_store(
            actor=actor,
            name=f"nfs-{name}",
            provider="NFS",
            url=f"nfs://localhost{folder / name}",
            details={},
            zone=region.add_zone(actor=actor, name=name),
        )
        scan_store(actor=actor, store=store)
    worker = Worker.objects.create(hostname="here", pid=os.getpid())
    for store in ImageStore.objects.all():
        WorkerReach.objects.create(worker=worker, store=store, ok=True)
    plan = list(_addresses(known))
    reader = _Reader(plan)
    first = reader.round()
    converted = conversion.convert(
        actor=actor, name="objects", url="", provider="S3", details=details, override=["preflight-absent"]
    )
    WorkerReach.objects.create(worker=worker, store=converted.object_store, ok=True)
    row = drain.start(actor=actor, drain=drain.plan(actor=actor, conversion=converted, canary_items=2, concurrency=2))
    mover = threading.Thread(target=_drain_to_the_end, args=(row, worker.pk))
    mover.start()
    sources = []
    while mover.is_alive():
        sources.append(reader.round())
    mover.join()
    for _ in range(ROUNDS_AFTER):
        last = reader.round()
    row.refresh_from_db()
    return {
        "files": len(plan),
        "reads": reader.reads,
        "wrong": reader.wrong[:20],
        "state": row.state,
        "note": row.note,
        "proven": Transfer.objects.filter(batch=row.batch_id, state="Proven").count(),
        "before": first,
        "mixed_rounds": sum(len(found) > 1 for found in sources),
        "after": last,
    }


def _drain_to_the_end(row: Any, worker_id: int) -> None:
    from django.db import connection

    from migration import drain
    from migration.states import DrainState
    from stores.worker import Pump

    try:
        for _ in range(200):
            Pump(worker_id, slots=2).run()
            drain.advance(row)
            row.refresh_from_db()
            if row.state in {DrainState.FINISHED, DrainState.PAUSED}:
                return
    finally:
        connection.close()


def _addresses(known: dict[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    """(address in the REST API, SHA-256 before adoption) of every file of every item, by its copy on an export."""
    from stores.models import KINDS
    from stores.services.inventory import relative_name

    for kind, models in KINDS.items():
        for item in models.item.objects.order_by("pk"):
            ref = models.ref.objects.filter(item=item).select_related("store").order_by("pk").first()
            for file in ref.files.order_by("path"):
                sha256 = known[ref.store.name.removeprefix("nfs-"), file.path]
                yield f"/api/v1/{kind}s/{item.uuid}/content?path={relative_name(ref.install_path, file.path)}", sha256


def _being_read() -> Iterator[str]:
    """The stores of the copies that are held by a reader now."""
    from stores.models import KINDS, Hold, Kind

    for hold in Hold.objects.filter(reason="read"):
        yield KINDS[Kind(hold.kind)].ref.objects.values_list("store__name", flat=True).get(pk=hold.ref_id)


class _Reader:
    """A client of the REST API that reads everything and compares."""

    def __init__(self, plan: list[tuple[str, str]]) -> None:
        from django.contrib.auth import get_user_model
        from django.contrib.auth.models import Group
        from django.test import Client

        from cloudstorage.models import ApiToken

        user = get_user_model().objects.create_user("reader")
        user.groups.set([Group.objects.get_or_create(name="viewer")[0]])
        secret = ApiToken.new_secret()
        ApiToken.objects.create(user=user, name="tests", prefix=secret[:12], digest=ApiToken.digest_of(secret), role="viewer")
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._client = Client(raise_request_exception=False, SERVER_NAME="localhost")
        self._plan = plan
        self.reads = 0
        self.wrong: list[str] = []

    def round(self) -> list[str]:
        """Read every file once; the names of the stores that they came from."""
        stores = set()
        for address, sha256 in self._plan:
            answer = self._client.get(address, headers=self._headers)
            self.reads += 1
            digest = hashlib.sha256()
            for position, block in enumerate(answer.streaming_content if answer.streaming else [answer.content]):
                digest.update(block)
                if position == 0:
                    stores.update(_being_read())
            if answer.status_code != 200 or digest.hexdigest() != sha256:
                self.wrong.append(f"{address}: {answer.status_code} {digest.hexdigest()}")
        return sorted(stores)


if __name__ == "__main__":
    main()
