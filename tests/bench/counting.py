"""Rows about bookkeeping: SQL statements per item, and what a plan of many items costs, with image stores in memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from tests.bench.figures import Row, compared, verdict
from tests.bench.ground import Bench, Control

FEW, MANY = 1_000, 100_000
PLANNED = 100_000
LIMIT, SAME = 10, "<= 1.1"
CONTENT = bytes(1000)
CHAIN = 16
LOTS, CLAIMS = 5, 30
"""So often the medians of so many claims are compared, the two plans in turns, so that both see the same load."""


def bookkeeping(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """SQL statements per item, all of few items moved and all of many."""
    many = int(MANY * scale)
    told = {}
    for count in (FEW, many):
        with _control(bench) as control:
            told[count] = control.call("tests.bench.counting:move", count)
        say(f"  {count:,} items moved: {told[count]['sql']:.2f} SQL statements and {told[count]['cpu']:.2f} ms CPU each")
    few, much = (told[count]["sql"] for count in (FEW, many))
    same = verdict([much / few], SAME, exact=True)
    row = compared("bookkeeping", f"SQL per item at {many:,} items against {FEW:,}, in memory", SAME, [(much, few)], exact=True)
    return [replace(row, bar=f"<= {LIMIT}, ratio {SAME}", met=same is True and max(few, much) <= LIMIT)]


def plan(
    bench: Bench, rounds: int, scale: float, say: Callable[[str], None], *, items: int = PLANNED, name: str = "plan"
) -> list[Row]:
    """Planning a tenth of the items and all of them, in chains: time and memory per item, and the time of a claim."""
    few = max(2000, int(items * scale / 10))
    many = 10 * few
    filled = {count: _filled(bench, count) for count in (few, many)}
    seconds, memory, claims = [], [], []
    for _ in range(rounds):
        with _control(bench, filled[few]) as small, _control(bench, filled[many]) as large:
            bench.sql("CHECKPOINT")  # of the copying
            controls = {few: small, many: large}
            told = {count: control.call("tests.bench.counting:plan_chains", count) for count, control in controls.items()}
            for control in controls.values():
                control.call("tests.bench.counting:claim_and_give_back", CLAIMS)  # statements are prepared, pages read
            for _ in range(LOTS):
                lot = {
                    count: control.call("tests.bench.counting:claim_and_give_back", CLAIMS) for count, control in controls.items()
                }
                claims.append((lot[many], lot[few]))
        for count, found in told.items():
            say(
                f"  {count:,} items in chains of {CHAIN}: planned in {found['seconds']:.1f} s, {found['grown']:.0f} MiB more memory"
            )
        say("  ms of a claim: " + ", ".join(f"{large:.1f} against {small:.1f}" for large, small in claims[-LOTS:]))
        seconds.append((told[many]["seconds"] / many * 1000, told[few]["seconds"] / few * 1000))
        memory.append((max(told[many]["grown"], 16) / many * 1024, max(told[few]["grown"], 16) / few * 1024))
    words = f"{many:,} items in chains of {CHAIN} against {few:,}"
    return [
        compared(f"{name}-time", f"plan {words}, ms per item", "<= 1.3", seconds),
        compared(f"{name}-memory", f"plan {words}, KiB of memory per item", "<= 1.3", memory),
        compared(f"{name}-claim", f"plan {words}, ms of a claim", "<= 1.5", claims),
    ]


def plan_million(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """The same with a million; takes too long to be run unasked."""
    return plan(bench, rounds, scale, say, items=1_000_000, name="plan-million")


def _filled(bench: Bench, count: int) -> str:
    def fill(control: Control) -> None:
        control.call("tests.bench.counting:fill_chains", count)

    return bench.template(f"chains-{count}", fill, base=bench.migrated())


@contextmanager
def _control(bench: Bench, template: str = "") -> Iterator[Control]:
    """A process of ours with a database like the template, or an empty one."""
    name = bench.clone(template or bench.migrated())
    try:
        with bench.control(bench.postgres.database_url(name)) as control:
            yield control
    finally:
        bench.drop(name)


# --- in the control process ------------------------------------------------------------------------------------------------


def _use_memory_driver() -> None:
    from django.conf import settings

    settings.STORE_DRIVERS = settings.STORE_DRIVERS | {"Memory": "tests.fakes.memory.MemoryDriver"}
    settings.QUEUE_MUTED = True


def _source() -> Any:
    """An image store in this process's memory, in a zone as an export is."""
    from django.utils import timezone

    from stores.models import ImageStore, Zone

    _use_memory_driver()
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


def move(count: int) -> dict[str, float]:
    """Run a pump over a plan of `count` volumes until all are proven; SQL statements and CPU of the pump for each."""
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
    statements = 0

    def note(execute: Any, *arguments: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(*arguments)

    pump = Pump(worker.pk, slots=settings.WORKER_SLOTS)
    started = time.process_time()
    with connection.execute_wrapper(note):
        pump.run()
    cpu = time.process_time() - started
    if (items := Transfer.objects.filter(batch=batch, state="Proven").count()) != count:
        raise RuntimeError(f"only {items} of {count} items were proven: {Transfer.objects.exclude(error='').first()}")
    return {"sql": statements / count, "cpu": cpu * 1000 / count}


def fill_chains(count: int) -> None:
    """`count` snapshots in chains, all promised on a second store."""
    from stores.models import Kind
    from tests.bench.rows import fill

    source = _source()
    fill(0, count, 0, CHAIN)
    _promise_all(Kind.SNAPSHOT, source, _add("target"))


def plan_chains(count: int) -> dict[str, float]:
    """Plan the `count` snapshots of `fill_chains`."""
    from django.db import connection, transaction

    from stores.models import ImageStore, TransferBatch
    from stores.services import transfers

    _use_memory_driver()
    _reached(*ImageStore.objects.all())
    batch = TransferBatch.objects.create(name="bench")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with transaction.atomic():
        planned = transfers.plan_batch(batch, ImageStore.objects.get(name="target"))
    seconds = time.monotonic() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert planned == count, f"{planned} of {count} were planned"
    TransferBatch.objects.filter(pk=batch.pk).update(open=True, concurrency=256)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return {"seconds": seconds, "grown": grown}


def claim_and_give_back(times: int) -> float:
    """The median time of a claim of eight transfers, in ms; they are given back in between, so that each finds the same plan."""
    from stores.models import Transfer, TransferBatch, Worker
    from stores.services import transfers

    worker, batch = Worker.objects.get(), TransferBatch.objects.get()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        jobs = transfers.claim(worker.pk, limit=8, open_batches=[batch.pk])
        taken.append(time.perf_counter() - started)
        assert len(jobs) == 8, f"{len(jobs)} claimed"
        claimed = Transfer.objects.filter(batch=batch, state="Running")
        claimed.update(state="Queued", worker=None, pump=None, lease_until=None, swept=True)
    return median(taken) * 1000
