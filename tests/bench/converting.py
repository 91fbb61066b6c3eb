"""The rows that convert a million refs: the command beside the same INSERTs and UPDATEs by hand, on the same tables.

The command's probe of the object store is taken off and told in the row: it takes as long for no refs as for a million.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from tests.bench.figures import Row, compared
from tests.bench.ground import EXPORT, Bench, s3_target
from tests.bench.measure import cpu_seconds

REFS = 1_000_000
SHARES = {"template": 0.05, "snapshot": 0.8, "volume": 0.15}

_PROMISE = """
    INSERT INTO {kind}_store_ref ({kind}_id, store_id, state, install_path, size, physical_size, proof, sha256, ref_cnt,
        error_str, created, updated, update_count, journalled)
    SELECT {kind}_id, {target}, 'Promised', '', size, 0, '', '', 0, '', {now}, {now}, 0, false
    FROM {kind}_store_ref WHERE store_id = {store} AND state IN ('Ready', 'Hidden')
"""
_COUNT = "UPDATE {kind}_store_ref SET ref_cnt = ref_cnt + 1 WHERE store_id = {store} AND state IN ('Ready', 'Hidden')"
_REGION_WIDE = """
    UPDATE vm_template SET cross_zones = true WHERE NOT cross_zones
        AND id IN (SELECT template_id FROM template_store_ref WHERE store_id = {store} AND state IN ('Ready', 'Hidden'))
"""
_STORE = """
    INSERT INTO image_store (uuid, name, image_provider_name, protocol, url, place, scope, role, state, readonly, created,
        probe_steps, facts, scan_report)
    VALUES ({uuid}, 'objects', 'S3', 's3', '', '', 'REGION', 'Image', 'Attached', false, {now}, '[]', '{{}}', '{{}}') RETURNING id
"""
_STAGING = "UPDATE image_store SET role = 'ImageCache' WHERE id = {store}"


def by_hand(execute: Callable[[str], Any], *, uuid: str, now: str) -> None:
    """What one who knows the tables would type, between BEGIN and COMMIT."""
    (store,) = execute("SELECT id FROM image_store").fetchone()
    (target,) = execute(_STORE.format(uuid=uuid, now=now)).fetchone()
    for kind in SHARES:
        execute(_PROMISE.format(kind=kind, target=target, store=store, now=now))
        execute(_COUNT.format(kind=kind, store=store))
    execute(_REGION_WIDE.format(store=store))
    execute(_STAGING.format(store=store))


def postgres(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    counts = [int(REFS * scale * share) for share in SHARES.values()]
    more = environment(bench)
    empty = bench.template("empty", lambda control: control.call("tests.bench.control:adopt"), base=bench.migrated(), **more)
    filled = bench.template("filled", lambda control: control.call("tests.bench.rows:fill", *counts), base=empty, **more)

    @contextmanager
    def copy() -> Iterator[str]:
        name = bench.clone(filled)
        bench.sql("CHECKPOINT")  # of the copying, so that it burdens nobody's time
        try:
            yield bench.postgres.database_url(name)
        finally:
            bench.drop(name)

    def hand(database: str) -> None:
        with psycopg.connect(database) as connection:
            by_hand(connection.execute, uuid="gen_random_uuid()", now="now()")  # type: ignore[arg-type]

    return [_measured("convert-postgres", "PostgreSQL", bench, more, copy, hand, rounds, sum(counts), say)]


def sqlite(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    counts = [int(REFS * scale * share) for share in SHARES.values()]
    folder = bench.folder / "sqlite"
    folder.mkdir()
    filled = folder / "filled.sqlite3"
    more = environment(bench, "empty-sqlite")
    with bench.control(f"sqlite:///{filled}", **more) as control:
        control.call("tests.bench.control:migrate")
        control.call("tests.bench.control:adopt")
        control.call("tests.bench.rows:fill", *counts)

    @contextmanager
    def copy() -> Iterator[str]:
        path = folder / "copy.sqlite3"
        shutil.copy(filled, path)
        try:
            yield f"sqlite:///{path}"
        finally:
            for left in folder.glob("copy.sqlite3*"):
                left.unlink()

    def hand(database: str) -> None:
        connection = sqlite3.connect(Path(database.removeprefix("sqlite:///")), isolation_level=None)
        for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN IMMEDIATE")
        by_hand(connection.execute, uuid="lower(hex(randomblob(16)))", now="datetime('now')")
        connection.execute("COMMIT")
        connection.close()

    found = [_measured("convert-sqlite", "SQLite", bench, more, copy, hand, rounds, sum(counts), say)]
    shutil.rmtree(folder)
    return found


def environment(bench: Bench, export: str = "empty") -> dict[str, str]:
    """Of a region whose export is empty, for rows without bytes. Every cloud needs an export of its own."""
    folder = bench.folder / "exports" / export
    folder.mkdir(parents=True, exist_ok=True)
    return {"CLOUDSTORAGE_NFS_MOUNTS": f"{EXPORT}={folder}", "BENCH_SECRET": bench.swift.secret_key}


def _measured(
    row: str,
    where: str,
    bench: Bench,
    more: dict[str, str],
    copy: Callable[[], Any],
    hand: Callable[[str], None],
    rounds: int,
    refs: int,
    say: Callable[[str], None],
) -> Row:
    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        cpu, started = cpu_seconds([bench.postgres_pid()]), time.monotonic()
        told = work()
        elapsed = time.monotonic() - started
        say(f"    {elapsed:.2f} s, PostgreSQL's CPU {cpu_seconds([bench.postgres_pid()]) - cpu:.2f} s")
        return told, elapsed

    probes: list[float] = []

    def ours() -> float:
        with copy() as database, bench.control(database, **more) as control:
            control.call("tests.bench.control:say_that_a_worker_reaches_all")
            control.call("tests.bench.converting:load_driver")  # as a worker has, and who serves the console
            command = ["use_object_store", "--name", "objects", *s3_target(bench).arguments, "--override", "preflight-absent"]
            told, elapsed = timed(lambda: control.command(*command, "--yes"))
            if sum(told["counts"]["promised"].values()) != refs:
                raise RuntimeError(f"{told['counts']} instead of {refs} refs")
            probes.append(control.call("tests.bench.converting:probe_seconds"))
            say(f"    {probes[-1]:.2f} s of it the object store's probe")
            return elapsed - probes[-1]

    def theirs() -> float:
        with copy() as database:
            return timed(lambda: hand(database))[1]

    found = []
    for number in range(rounds):
        if number % 2 == 0:
            mine, other = ours(), theirs()
        else:
            other, mine = theirs(), ours()
        say(f"  {where} {number + 1}/{rounds} ours {mine:.2f} s, by hand {other:.2f} s")
        found.append((mine, other))
    what = f"convert {refs:,} refs on {where}, s without the object store's probe of {median(probes):.1f} s, against SQL by hand"
    return compared(row, what, "<= 1.5", found)


# --- in the control process ------------------------------------------------------------------------------------------------


def load_driver() -> None:
    from stores.services.image_stores import driver_class

    driver_class("S3")


def probe_seconds() -> float:
    """What the probe of the new object store took, by the steps that are kept with it."""
    from stores.models import ImageStore

    return sum(float(step["seconds"]) for step in ImageStore.objects.get(scope="REGION").probe_steps)
