"""Converts a region while other processes register, read and delete, and reports every failure and the longest stall.

Run as a program: `python -m tests.migration.under_load convert <items> <details as JSON>`; it starts `... traffic <seed>` itself.
DATABASE_URL and CLOUDSTORAGE_* say where. Prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import django

from stores.drivers.base import MiB
from stores.states import READABLE

SETTLE_OPERATIONS = 30
"""Operations that each process does before and after the conversion."""


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstorage.settings")
    django.setup()
    from migration import sampling

    sampling.WRITE_SIZE = MiB
    if sys.argv[1] == "traffic":
        print(json.dumps(traffic(int(sys.argv[2]))), flush=True)
    elif sys.argv[1] == "hold":
        hold_refs()
    elif sys.argv[1] == "crossed":
        print(json.dumps(convert_across_held_refs(json.loads(sys.argv[2]))), flush=True)
    elif sys.argv[1] == "rival":
        print(json.dumps(rival(json.loads(sys.argv[2]))), flush=True)
    elif sys.argv[1] == "rollback":
        print(json.dumps(roll_back_under_load(json.loads(sys.argv[2]))), flush=True)
    else:
        print(json.dumps(convert_under_load(int(sys.argv[2]), json.loads(sys.argv[3]))), flush=True)


# --- what the others do --------------------------------------------------------------------------------------------------


def traffic(seed: int) -> dict[str, Any]:
    """Register, read and delete until standard input closes; tells on standard error how many operations are done."""
    from cloudstorage.actors import cli_actor
    from stores.models import Kind, Template, Zone
    from stores.services.inventory import open_content
    from stores.services.items import delete_item
    from stores.services.uploads import register_upload

    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    rng = random.Random(seed)
    actor, zones = cli_actor(), list(Zone.objects.all())
    mine: deque[tuple[Any, str]] = deque()
    old = list(Template.objects.filter(name__startswith="old-").order_by("id"))
    longest: dict[str, float] = {}
    failures: list[str] = []
    done = 0

    def timed(what: str, work: Any) -> Any:
        started = time.monotonic()
        try:
            return work()
        except Exception as error:
            failures.append(f"{what}: {type(error).__name__}: {error}")
            return None
        finally:
            longest[what] = max(longest.get(what, 0.0), time.monotonic() - started)

    def read(item: Any) -> str:
        with open_content(actor=actor, kind=Kind.TEMPLATE, item=item) as content:
            return hashlib.sha256(b"".join(content.chunks())).hexdigest()

    while not stop.is_set():
        data = rng.randbytes(20_000)
        name = f"new-{seed}-{done}"
        ref = timed(
            "register",
            lambda name=name, data=data: register_upload(
                actor=actor,
                kind=Kind.TEMPLATE,
                zone=rng.choice(zones),
                account_id=2,
                name=name,
                filename="disk.raw",
                stream=io.BytesIO(data),
                size=len(data),
            ),
        )
        if ref is not None:
            mine.append((ref.item, hashlib.sha256(data).hexdigest()))
        if mine:
            item, expected = rng.choice(mine)
            if (found := timed("read", lambda item=item: read(item))) not in (None, expected):
                failures.append(f"{item} reads as {found}, not {expected}")
        item = rng.choice(old)
        if (found := timed("read", lambda item=item: read(item))) not in (None, item.checksum):
            failures.append(f"{item} reads as {found}, not {item.checksum}")
        if len(mine) > 6:
            item, _ = mine.popleft()
            timed("delete", lambda item=item: delete_item(actor=actor, kind=Kind.TEMPLATE, item=item))
        done += 1
        print(done, file=sys.stderr, flush=True)
    kept = [str(item.uuid) for item, _ in mine]
    return {"operations": done, "failures": failures, "longest": longest, "kept": kept}


class Traffic:
    """A process that uses the cloud."""

    def __init__(self, seed: int) -> None:
        command = [sys.executable, "-m", "tests.migration.under_load", "traffic", str(seed)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.done = 0

    def await_operations(self, more: int) -> None:
        """Wait until that many more operations have been done."""
        assert self.process.stderr is not None
        wanted = self.done + more
        lines = []
        while self.done < wanted:
            line = self.process.stderr.readline()
            if not line:
                raise AssertionError("the traffic ended: " + "".join(lines[-30:]))
            lines.append(line)
            if line.strip().isdigit():
                self.done = int(line)

    def end(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=120)
        if self.process.returncode:
            raise AssertionError(err[-3000:])
        return json.loads(out)


# --- the conversion ------------------------------------------------------------------------------------------------------


def convert_under_load(items: int, target: dict[str, Any]) -> dict[str, Any]:
    from cloudstorage.actors import cli_actor
    from migration.conversion import convert
    from migration.preflight import preflight
    from stores.models import Account
    from tests.migration.region import Region

    actor = cli_actor()
    region = Region(actor, Path(os.environ["CLOUDSTORAGE_DATA_DIR"]) / "exports")
    region.account = Account.objects.create(id=2, account_name="acme")
    for zone in ("east", "west"):
        region.add_zone(zone)
    for number in range(20):
        content = random.Random(number).randbytes(20_000)
        item = region.template(f"old-{number}", checksum=hashlib.sha256(content).hexdigest(), cross_zones=number % 3 == 0)
        for zone in ("east", "west")[: 1 + number % 2]:
            region.put(item, zone, f"template/tmpl/2/{item.upstream_id}", content=content)
    _many(region, items)
    preflight(actor=actor, **target)
    others = [Traffic(seed) for seed in (1, 2)]
    rivals = [_start_rival(target) for _ in range(int(os.environ.get("RIVALS", "0")))]
    for other in others:
        other.await_operations(SETTLE_OPERATIONS)
    outcomes = []
    if rivals:
        for process in rivals:
            process.stdin.close()
        outcomes = [_outcome(process) for process in rivals]
        seconds, counts = 0.0, {}
    else:
        started = time.monotonic()
        conversion = convert(actor=actor, override=["unreadable-files"], **target)
        seconds, counts = time.monotonic() - started, conversion.counts
    for other in others:
        other.await_operations(SETTLE_OPERATIONS)
    for other in others:
        other.process.stdin.close()
        other.process.stdin = None
    results = [other.end() for other in others]
    longest: dict[str, float] = {}
    for result in results:
        for what, value in result["longest"].items():
            longest[what] = max(longest.get(what, 0.0), value)
    return {
        "seconds": seconds,
        "counts": counts,
        "operations": sum(result["operations"] for result in results),
        "failures": [failure for result in results for failure in result["failures"]],
        "longest": longest,
        "rivals": outcomes,
        "wrong": violations([uuid for result in results for uuid in result["kept"]]),
    }


def roll_back_under_load(target: dict[str, Any]) -> dict[str, Any]:
    """Convert, let two processes use the cloud, go home while they do; they go on afterwards."""
    from cloudstorage.actors import cli_actor
    from migration import rollback
    from migration.conversion import convert
    from stores import tasks
    from stores.models import KINDS, Account, ImageStore, Template, Worker, WorkerReach
    from stores.services import holds
    from stores.worker import Pump
    from tests.migration.region import Region

    actor = cli_actor()
    region = Region(actor, Path(os.environ["CLOUDSTORAGE_DATA_DIR"]) / "exports")
    region.account = Account.objects.create(id=2, account_name="acme")
    for zone in ("east", "west"):
        region.add_zone(zone)
    for number in range(10):
        content = random.Random(number).randbytes(20_000)
        item = region.template(f"old-{number}", checksum=hashlib.sha256(content).hexdigest())
        region.put(item, "east", f"template/tmpl/2/{item.upstream_id}", content=content)
    conversion = convert(actor=actor, override=["preflight-absent"], **target)
    worker = Worker.objects.create(hostname="here", pid=os.getpid())
    for store in ImageStore.objects.all():
        WorkerReach.objects.create(worker=worker, store=store, ok=True)
    others = [Traffic(seed) for seed in (1, 2)]
    for other in others:
        other.await_operations(SETTLE_OPERATIONS)
    row = rollback.start(actor=actor, conversion=conversion)
    deadline = time.monotonic() + 120
    while row.ended_at is None and time.monotonic() < deadline:
        tasks.keep_house()
        Pump(worker.pk, slots=4).run()
        rollback.advance(row)
        row.refresh_from_db()
    conversion.refresh_from_db()
    for other in others:
        other.await_operations(SETTLE_OPERATIONS)
    for other in others:
        other.process.stdin.close()
        other.process.stdin = None
    results = [other.end() for other in others]
    readable = Template.objects.filter(refs__state="Ready", refs__store__scope="ZONE").values_list("uuid", flat=True)
    kept = {uuid for result in results for uuid in result["kept"]}
    return {
        "state": conversion.state,
        "note": row.note,
        "operations": sum(result["operations"] for result in results),
        "failures": [failure for result in results for failure in result["failures"]],
        "lost": sorted(kept - {str(found) for found in readable}),
        "counts": [str(mismatch) for mismatch in holds.recount()],
        "unfinished": sum(models.ref.objects.filter(state="Creating").count() for models in KINDS.values()),
        "stores": sorted(set(ImageStore.objects.values_list("scope", "role", "state"))),
    }


def _many(region: Any, count: int) -> None:
    """Rows without bytes, so that the conversion takes a while."""
    from stores.models import Snapshot, SnapshotStoreRef

    store = region.stores["east"]
    for start in range(0, count, 5000):
        numbers = range(start, min(start + 5000, count))
        made = Snapshot.objects.bulk_create(
            Snapshot(name=f"s{n}", account_id=2, volume_upstream_id=n % 97, path=f"s{n}") for n in numbers
        )
        SnapshotStoreRef.objects.bulk_create(
            SnapshotStoreRef(item=item, store=store, state="Ready", install_path=f"s/{item.path}", proof="adopted")
            for item in made
        )


def violations(kept: list[str]) -> list[str]:
    """What must hold after a conversion and does not, in words; `kept` are uuids of items that nobody deleted."""
    from django.db.models import Count, Exists, OuterRef, Q

    from stores.models import KINDS, ImageStore, Template
    from stores.services import holds
    from stores.states import RefState, Role

    wrong = [f"{mismatch}" for mismatch in holds.recount()]
    target = ImageStore.objects.get(role=Role.IMAGE)
    readable = READABLE
    gone = [RefState.DESTROYING, RefState.DESTROYED]
    for kind, models in KINDS.items():
        on_target = models.ref.objects.filter(item=OuterRef("item"), store=target).exclude(state__in=gone)
        staged = models.ref.objects.filter(store__role=Role.IMAGE_CACHE, state__in=readable)
        wrong += [f"{kind} {ref.item_id} is readable and not promised" for ref in staged.filter(~Exists(on_target))[:5]]
        copies = models.ref.objects.filter(item=OuterRef("item"), state__in=readable)
        promised = models.ref.objects.filter(store=target, state=RefState.PROMISED)
        wrong += [f"{kind} {ref.item_id} is promised and gone" for ref in promised.filter(~Exists(copies))[:5]]
        several = models.item.objects.annotate(n=Count("refs", filter=Q(refs__store=target) & ~Q(refs__state__in=gone)))
        wrong += [f"{kind} {item.pk} is promised {item.n} times" for item in several.filter(n__gt=1)[:5]]
    lost = set(kept) - {str(found) for found in Template.objects.filter(refs__state__in=readable).values_list("uuid", flat=True)}
    return wrong + [f"template {item} was lost" for item in sorted(lost)]


# --- somebody holds refs -------------------------------------------------------------------------------------------------


def hold_refs() -> None:
    """Change a snapshot's ref, and when told by a line change a template's in the same transaction, as a scan may."""
    from django.db import transaction
    from django.db.models import F

    from stores.models import SnapshotStoreRef, TemplateStoreRef

    with transaction.atomic():
        SnapshotStoreRef.objects.update(update_count=F("update_count") + 1)
        print("held", flush=True)
        sys.stdin.readline()
        TemplateStoreRef.objects.update(update_count=F("update_count") + 1)
    print("done", flush=True)


def convert_across_held_refs(target: dict[str, Any]) -> dict[str, Any]:
    """Convert while another holds one table of refs and comes to want another: what becomes of both (PostgreSQL)."""
    from django.db import connection

    from cloudstorage.actors import cli_actor
    from cloudstorage.errors import Busy
    from migration import conversion, standstill
    from migration.preflight import preflight
    from tests.migration.region import Region, changed, dump

    actor = cli_actor()
    region = Region(actor, Path(os.environ["CLOUDSTORAGE_DATA_DIR"]) / "exports")
    region.add_zone("east")
    region.template("image", "east")
    region.snapshot("snapshot", "east")
    preflight(actor=actor, **target)
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "tests.migration.under_load", "hold"]
    holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"

    before, patience = dump(), standstill.LOCK_SECONDS
    standstill.LOCK_SECONDS = 2
    try:
        conversion.convert(actor=actor, **target)
        busy = ""
    except Busy as error:
        busy = error.message
    untouched = changed(before, dump()) == set()

    standstill.LOCK_SECONDS = patience
    converting = threading.Thread(target=lambda: conversion.convert(actor=actor, **target))
    converting.start()
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' AND relation = 'template_store_ref'::regclass AND granted"
    )
    with connection.cursor() as cursor:
        while not cursor.execute(waiting).fetchone()[0]:
            pass
    out, err = holder.communicate("go on\n", timeout=60)
    converting.join(timeout=60)
    return {
        "busy": busy,
        "untouched": untouched,
        "holder": out.strip() or err[-500:],
        "converted": conversion.open_conversion() is not None,
        "wrong": violations([]),
    }


# --- two at once ---------------------------------------------------------------------------------------------------------


def _start_rival(target: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "tests.migration.under_load", "rival", json.dumps(target)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    return process


def _outcome(process: Any) -> str:
    process.stdin = None
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)


def rival(target: dict[str, Any]) -> str:
    """Convert as soon as standard input closes; how it ended."""
    from cloudstorage.actors import cli_actor
    from cloudstorage.errors import ServiceError
    from migration.conversion import convert

    print("ready", flush=True)
    sys.stdin.read()
    try:
        convert(actor=cli_actor(), override=["unreadable-files"], **target)
    except ServiceError as error:
        return error.code
    return "converted"


if __name__ == "__main__":
    main()
