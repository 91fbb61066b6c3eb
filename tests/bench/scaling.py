"""The scale rows: one, two and four workers beside each other, where waiting and not the machine's cores decides."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import psycopg

from stores.drivers.base import Reader
from stores.drivers.nfs import NFSDriver
from tests.bench.figures import Row, compared, unless_busy
from tests.bench.ground import Bench, converted_region, refuse_failures, s3_target, scalar, start_worker
from tests.bench.measure import idle_share, machine_ticks
from tests.crash.machine import Machine, wait_for
from tests.servers.proxy import _Proxy

SECONDS = 0.01
"""What a request to either store takes at least: the slowness that the row is about, so it is slept and not waited for."""
SOURCE_REQUEST = 64 * 1024
"""What one of them reads of the export, as with `rsize=65536`."""
COUNTS = (1, 2, 4)
ITEMS, SIZE = 900, 512 * 1024
"""More than all workers of a round copy."""
SETTLE_SECONDS, WINDOW_SECONDS = 3.0, 8.0
"""A number of workers is let alone before its items are counted; a rate needs a stretch of time to be counted in."""


class SlowProxy(_Proxy):
    """Passes bytes on, keeps the beginning of every answer back for a while, and notes when an item had been sent."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.sent: list[float] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await self._connect()
        asked = item = False

        async def up() -> None:
            nonlocal asked, item
            while block := await reader.read(1 << 16):
                if not asked:
                    item = block.startswith(b"PUT ") and b"/volumes/" in block.partition(b"\r\n")[0]
                asked = True
                upstream_writer.write(block)
                await upstream_writer.drain()
            upstream_writer.write_eof()

        async def down() -> None:
            nonlocal asked
            while block := await upstream_reader.read(1 << 16):
                if asked:
                    asked = False
                    await asyncio.sleep(SECONDS)
                    if item:
                        self.sent.append(time.monotonic())
                writer.write(block)
                await writer.drain()
            writer.write_eof()

        try:
            await asyncio.gather(up(), down())
        finally:
            upstream_writer.close()


class SlowReader(Reader):
    """Another reader, at which each request for bytes takes a while."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.info = reader.info
        self.extents = reader.extents
        self.current_version = reader.current_version
        self.close = reader.close

    def pread(self, offset: int, length: int) -> bytes:
        _take_a_while(length)
        return self._reader.pread(offset, length)

    def read_into(self, view: memoryview, offset: int) -> None:
        _take_a_while(len(view))
        self._reader.read_into(view, offset)


def _take_a_while(length: int) -> None:
    """The slowness that the row is about: a source is not reached through a proxy, so it waits here as the store's answers do there."""
    time.sleep(SECONDS * max(1, -(-length // SOURCE_REQUEST)))


class SlowNFSDriver(NFSDriver):
    """An export on which opening, and reading as much as one request does, take a while each."""

    def open(self, key: str) -> Reader:
        _take_a_while(0)
        return SlowReader(super().open(key))


def workers(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """N workers with a slot each beside N times what one of them does, in one drain that more of them join, or leave."""
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    idle: dict[int, list[float]] = {count: [] for count in COUNTS}
    for number in range(rounds):
        found = _round(bench, COUNTS if number % 2 == 0 else COUNTS[::-1], scale)
        for count, (rate, share) in found.items():
            rates[count].append(rate)
            idle[count].append(share)
            say(f"  {count} workers {number + 1}/{rounds}: {rate:6.1f} items/s, {share:.0%} of the cores idle")
    rows = []
    for count in COUNTS[1:]:
        left = median(idle[count])
        what = f"{count} workers against {count} x one, stores slowed to 10 ms a request, items/s; {left:.0%} of the cores idle"
        row = compared(
            f"scale-{count}", what, ">= 0.9", [(n, count * one) for n, one in zip(rates[count], rates[1], strict=True)]
        )
        rows.append(unless_busy(row, left, median(idle[1])))
    return rows


def _round(bench: Bench, counts: tuple[int, ...], scale: float) -> dict[int, tuple[float, float]]:
    """Number of workers -> (items per second, share of the cores that was idle)."""
    dataset = bench.dataset("scale", max(300, int(ITEMS * scale)), SIZE)
    alone = {"CLOUDSTORAGE_WORKER_SLOTS": "1", "CLOUDSTORAGE_QUEUE_WORKERS": "1"}
    slowed = {"DJANGO_SETTINGS_MODULE": "tests.bench.slowed"}
    found: dict[int, tuple[float, float]] = {}
    with ExitStack() as stack:
        proxy = stack.enter_context(SlowProxy(bench.swift.s3_url))
        region = converted_region(
            bench, dataset, s3_target(bench, proxy.url), plan=("--canary-items", "0", "--concurrency", "64"), **alone, **slowed
        )
        database, environment, control = stack.enter_context(region)
        connection = stack.enter_context(psycopg.connect(database, autocommit=True))
        machines: list[Machine] = []
        for count in counts:
            for machine in machines[count:]:
                machine.process.send_signal(signal.SIGTERM)
                machine.process.wait(60)
            started = [stack.enter_context(start_worker(bench, environment)) for _ in range(count - len(machines))]
            machines = [*machines[:count], *started]
            if not found:
                _wait_until(connection, _REACHED, 2 * count, machines)
                control.command("migration_start")
            _wait_until(connection, _AT_WORK, count, machines)
            time.sleep(SETTLE_SECONDS * scale)
            before, began = machine_ticks(), time.monotonic()
            time.sleep(WINDOW_SECONDS * scale)
            items, seconds = sum(moment >= began for moment in proxy.sent), time.monotonic() - began
            found[count] = items / seconds, idle_share(before, machine_ticks())
            refuse_failures(connection, machines, late=not scalar(connection, _LEFT))
        for machine in machines:
            machine.kill_all()
    bench.wipe()
    return found


def _wait_until(connection: psycopg.Connection[Any], query: str, number: int, machines: list[Machine]) -> None:
    wait_for(lambda: scalar(connection, query) == number, f"{number} to be the answer of {query}", *machines)


_REACHED = "SELECT count(*) FROM stores_workerreach r JOIN stores_worker w ON w.id = worker_id WHERE ok AND stopped IS NULL"
_AT_WORK = "SELECT count(DISTINCT worker_id) FROM stores_transfer WHERE state = 'Running' AND pump IS NOT NULL"
_LEFT = "SELECT count(*) FROM stores_transfer WHERE state = 'Queued'"
