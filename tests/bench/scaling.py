"""The scale rows: one, two and four workers beside each other, where waiting and not the machine's cores decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from statistics import median
from typing import Any

import psycopg

from stores.drivers.base import Reader
from stores.drivers.nfs import NFSDriver
from tests.bench.figures import Row, compared, unless_busy
from tests.bench.ground import REFS, Bench, converted_region, drain, s3_target, workers_up
from tests.bench.measure import idle_share, machine_ticks
from tests.servers.proxy import _Proxy

SECONDS = 0.01
"""What a request to either store takes at least."""
COUNTS = (1, 2, 4)
ITEMS, SIZE = 150, 64 * 1024
"""For each worker."""


class SlowProxy(_Proxy):
    """Passes bytes on, and keeps the beginning of every answer back for a while."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await self._connect()
        asked = False

        async def up() -> None:
            nonlocal asked
            while block := await reader.read(1 << 16):
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
                writer.write(block)
                await writer.drain()
            writer.write_eof()

        try:
            await asyncio.gather(up(), down())
        finally:
            upstream_writer.close()


class SlowNFSDriver(NFSDriver):
    """An export on which opening and reading take a while each."""

    def open(self, key: str) -> Reader:
        time.sleep(SECONDS)
        reader = super().open(key)
        read = reader.pread

        def slowly(offset: int, length: int) -> Any:
            time.sleep(SECONDS)
            return read(offset, length)

        reader.pread = slowly  # type: ignore[method-assign]
        return reader


def workers(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """N workers with a slot each beside N times what one of them does."""
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    idle: dict[int, list[float]] = {count: [] for count in COUNTS}
    with SlowProxy(bench.swift.s3_url) as proxy:
        for number in range(rounds):
            for count in COUNTS if number % 2 == 0 else COUNTS[::-1]:
                rate, share = _run(bench, proxy.url, count, scale)
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


def _run(bench: Bench, endpoint: str, count: int, scale: float) -> tuple[float, float]:
    """(items per second, share of the cores that was idle)."""
    dataset = bench.dataset(f"scale-{count}", max(20, int(ITEMS * scale)) * count, SIZE)
    target = s3_target(bench, endpoint)
    alone = {"CLOUDSTORAGE_WORKER_SLOTS": "1", "CLOUDSTORAGE_QUEUE_WORKERS": "1"}
    slowed = {"DJANGO_SETTINGS_MODULE": "tests.bench.slowed"}
    with (
        converted_region(bench, dataset, target, plan=("--canary-items", "0"), **alone, **slowed) as (
            database,
            environment,
            control,
        ),
        workers_up(bench, database, environment, count) as machines,
    ):
        before = machine_ticks()
        drain(bench, database, control, machines)
        share = idle_share(before, machine_ticks())
        with psycopg.connect(database) as connection:
            proven = connection.execute(f"SELECT r.proven_at FROM {REFS} ORDER BY 1").fetchall()  # type: ignore[call-overload]
    bench.wipe()
    return _middle_rate([moment for (moment,) in proven]), share


def _middle_rate(proven: list[datetime]) -> float:
    """Items per second without the beginning, when processes import what they need, and without the end, when some have nothing
    left."""
    first, last = len(proven) // 4, len(proven) * 9 // 10
    return (last - first) / (proven[last] - proven[first]).total_seconds()
