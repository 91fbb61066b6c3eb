"""Rows about bookkeeping: SQL statements per item, and what a plan of many items costs, with image stores in memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.bench.figures import Row, compared, verdict
from tests.bench.ground import Bench

FEW, MANY = 1_000, 100_000
PLANNED = 30_000
SAMPLE = 4_000
"""So many of the items are moved; SQL per item does not depend on how many were moved before."""
LIMIT, SAME = 10, "<= 1.1"
CONTENT = bytes(1000)
CHAIN = 16


def bookkeeping(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """SQL statements per item in a plan of few items and in one of many."""
    many = int(MANY * scale)
    told = {}
    for count in (FEW, many):
        told[count] = _in_memory(bench, "tests.bench.counting:move", count, min(count, SAMPLE))
        say(
            f"  {told[count]['items']} of {count:,} items: {told[count]['sql']:.2f} SQL statements and {told[count]['cpu']:.2f} ms CPU each"
        )
    few, much = (told[count]["sql"] for count in (FEW, many))
    same = verdict([much / few], SAME, exact=True)
    row = compared("bookkeeping", f"SQL per item at {many:,} items against {FEW:,}, in memory", SAME, [(much, few)], exact=True)
    return [replace(row, bar=f"<= {LIMIT}, ratio {SAME}", met=same is True and max(few, much) <= LIMIT)]


def plan(bench: Bench, rounds: int, scale: float, say: Callable[[str], None], *, items: int = PLANNED) -> list[Row]:
    """Planning a tenth of the items and all of them, in chains: time and memory per item, and the time of a claim."""
    few = max(2000, int(items * scale / 10))
    many = 10 * few
    seconds, memory, claims = [], [], []
    for _ in range(rounds):
        told = {count: _in_memory(bench, "tests.bench.counting:plan_chains", count) for count in (few, many)}
        for count, found in told.items():
            say(
                f"  {count:,} items in chains of {CHAIN}: planned in {found['seconds']:.1f} s, {found['grown']:.0f} MiB more memory,"
                f" a claim {found['claim']:.1f} ms"
            )
        seconds.append((told[many]["seconds"] / many * 1000, told[few]["seconds"] / few * 1000))
        memory.append((max(told[many]["grown"], 16) / many * 1024, max(told[few]["grown"], 16) / few * 1024))
        claims.append((told[many]["claim"], told[few]["claim"]))
    words = f"{many:,} items in chains of {CHAIN} against {few:,}"
    return [
        compared("plan-time", f"plan {words}, ms per item", "<= 1.3", seconds),
        compared("plan-memory", f"plan {words}, KiB of memory per item", "<= 1.3", memory),
        compared("plan-claim", f"plan {words}, ms of a claim", "<= 1.5", claims),
    ]


def plan_million(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """The same with a million; takes too long to be run unasked."""
    return plan(bench, rounds, scale, say, items=1_000_000)


def _in_memory(bench: Bench, function: str, *arguments: Any) -> Any:
    name = bench.clone(bench.migrated())
    try:
        with bench.control(bench.postgres.database_url(name)) as control:
            return control.call(function, *arguments)
    finally:
        bench.drop(name)


# --- in the control process ------------------------------------------------------------------------------------------------


def _source() -> Any:
    """An image store in this process's memory, in a zone as an export is."""
    from django.conf import settings
    from django.utils import timezone

    from stores.models import ImageStore, Zone

    settings.STORE_DRIVERS = settings.STORE_DRIVERS | {"Memory": "tests.fakes.memory.MemoryDriver"}
    settings.QUEUE_MUTED = True
    source = _add("source")
    ImageStore.objects.filter(pk=source.pk).update(
        scope="ZONE", zone=Zone.objects.create(name="zone1"), scanned_at=timezone.now()
    )
    source.refresh_from_db()
    return source


def _add(name: str) -> Any:
    from cloudstorage.actors import cli_actor
    from stores.services.image_stores import add_store

    return add_store(actor=cli_actor(), name=name, provider="Memory", url=f"memory://{name}", details={}, zone=None)


def _reached(*stores: Any) -> Any:
    """A worker that reaches them."""
    from stores.models import WorkerReach
    from stores.tasks import register_worker

    worker = register_worker()
    for store in stores:
        WorkerReach.objects.create(worker=worker, store=store, ok=True)
    return worker


def _promise_all(kind: Any, source: Any, target: Any) -> None:
    """What a conversion does to the refs of a kind."""
    from django.db import connection

    from stores.models import KINDS

    model = KINDS[kind].ref
    columns = [field.column for field in model._meta.concrete_fields if not field.primary_key]
    changed = {"store_id": str(target.pk), "state": "'Promised'", "install_path": "''", "proof": "''"}
    chosen = ", ".join(changed.get(column, column) for column in columns)
    table = model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM {table} ORDER BY id")
        cursor.execute(f"UPDATE {table} SET ref_cnt = 1 WHERE store_id = {source.pk}")
        cursor.execute(f"VACUUM ANALYZE {table}")


def move(count: int, wanted: int) -> dict[str, float]:
    """Run a pump over a plan of `count` volumes until `wanted` are proven; SQL statements and CPU of the pump for each."""
    from django.conf import settings
    from django.db import connection

    from stores.models import Kind, Transfer, TransferBatch, VolumeStoreFile
    from stores.services import transfers
    from stores.worker import Pump
    from tests.bench.rows import fill
    from tests.fakes.memory import server_at

    source = _source()
    fill(0, 0, count)
    server = server_at("memory://source")
    before = server.clock
    for number in range(1, count + 1):
        server.store(f"volumes/2/{number}/disk", CONTENT, "same", {}, if_absent=False)
    first = server.objects["volumes/2/1/disk"][0]
    assert first.version == f"same-{before + 1}"
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {VolumeStoreFile._meta.db_table} SET version = 'same-' || (id + {before})")
    target = _add("target")
    worker = _reached(source, target)
    _promise_all(Kind.VOLUME, source, target)
    batch = TransferBatch.objects.create(name="bench")
    transfers.plan_batch(batch, target)
    TransferBatch.objects.filter(pk=batch.pk).update(open=True)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    proven = Transfer.objects.filter(batch=batch, state="Proven")
    statements = 0

    def note(execute: Any, *arguments: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(*arguments)

    target_server = server_at("memory://target")
    there = len(target_server.objects)
    pump = Pump(worker.pk, slots=settings.WORKER_SLOTS, stop=lambda: len(target_server.objects) - there >= wanted)
    started = time.process_time()
    with connection.execute_wrapper(note):
        pump.run()
    cpu = time.process_time() - started
    items = proven.count()
    if items < wanted:
        raise RuntimeError(f"only {items} of {wanted} items were proven: {Transfer.objects.exclude(error='').first()}")
    return {"items": items, "sql": statements / items, "cpu": cpu * 1000 / items}


def plan_chains(count: int) -> dict[str, float]:
    """Plan `count` snapshots in chains, then claim."""
    from django.db import connection, transaction

    from stores.models import Kind, TransferBatch
    from stores.services import transfers
    from tests.bench.rows import fill

    source = _source()
    fill(0, count, 0, CHAIN)
    target = _add("target")
    worker = _reached(source, target)
    _promise_all(Kind.SNAPSHOT, source, target)
    batch = TransferBatch.objects.create(name="bench")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with transaction.atomic():
        planned = transfers.plan_batch(batch, target)
    seconds = time.monotonic() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert planned == count, f"{planned} of {count} were planned"
    TransferBatch.objects.filter(pk=batch.pk).update(open=True, concurrency=256)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    times = []
    for _ in range(12):
        started = time.monotonic()
        jobs = transfers.claim(worker.pk, limit=8, open_batches=[batch.pk])
        times.append(time.monotonic() - started)
        assert len(jobs) == 8, f"{len(jobs)} claimed"
    return {"seconds": seconds, "grown": grown, "claim": sorted(times)[len(times) // 2] * 1000}
