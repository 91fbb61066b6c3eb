"""Where the time of copies went: to the source, the network, the store, a limit, the database, or to ourselves."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from stores import timing
from stores.copier import Control, CopyEngine, FileToCopy, Throttle
from stores.drivers.base import MiB, StoreConfig
from stores.drivers.http_pool import HttpPool
from stores.drivers.tcp_info import Observed
from stores.timing import LastMinute, Times, measured, shares_of
from tests.drivers.http_cases import OK, Scripted, scripted_server
from tests.fakes import memory
from tests.fakes.memory import MemoryDriver, MemoryReader
from tests.servers.proxy import TcpProxy
from tests.unit.test_copier import Memory

pytestmark = pytest.mark.unit

PART = 64 * 1024


@dataclass
class Clock:
    """Stands still until somebody waits or computes."""

    now: float = 1000.0
    cpu: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.cpu

    process_time = thread_time

    def wait(self, seconds: float = 1.0) -> None:
        self.now += seconds

    def compute(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.cpu += seconds


class SmallParts(MemoryDriver):
    def part_size_for(self, size: int) -> int:
        return PART


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


@pytest.fixture
def engine() -> Iterator[CopyEngine]:
    made = CopyEngine(lanes=1)
    yield made
    made.close()
    memory.SERVERS.clear()


def copied(engine: CopyEngine, size: int, throttles: tuple[Throttle, ...] = ()) -> dict[str, float]:
    """The shares of a copy between stores in memory."""
    source, target = (SmallParts(StoreConfig(f"memory://{name}", {}, "store", "cloud")) for name in ("here", "there"))
    source.put("a", bytes(size), metadata={}, token="test")
    times = Times()
    file = FileToCopy("a", "a")
    engine.copy_item(source, target, [file], metadata={}, token="1", journal=Memory(), control=Control(throttles, times))
    return shares_of(times.spent())


def slow(patch: pytest.MonkeyPatch, owner: type, method: str, delay: Callable[[], None]) -> None:
    real = getattr(owner, method)

    def slowly(*args: object, **options: object) -> object:
        delay()
        return real(*args, **options)

    patch.setattr(owner, method, slowly)


@pytest.mark.parametrize(
    ("size", "owner", "method", "cause"),
    [(10, MemoryReader, "pread", timing.SOURCE), (4 * PART, MemoryReader, "pread", timing.SOURCE),
     (10, Throttle, "take", timing.LIMIT), (4 * PART, Throttle, "take", timing.LIMIT),
     (10, Control, "progress", timing.OURS)],
)  # fmt: skip
def test_time_is_put_down_to_what_was_waited_for(engine, clock, monkeypatch, size, owner, method, cause):
    monkeypatch.setattr("stores.reading.BLOCK", PART)
    slow(monkeypatch, owner, method, clock.wait)
    shares = copied(engine, size, (Throttle(1e12),) if cause == timing.LIMIT else ())
    assert max(shares, key=shares.__getitem__) == cause, shares
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)


def test_what_takes_the_bytes_is_the_network_or_the_store_where_no_connection_tells_more(engine, clock, monkeypatch):
    put = MemoryDriver.put
    slow(monkeypatch, MemoryDriver, "put", clock.wait)
    slow(monkeypatch, MemoryReader, "current_version", clock.wait)
    assert copied(engine, 10) == {timing.EITHER: 0.5, timing.SOURCE: 0.5}
    monkeypatch.setattr(MemoryDriver, "put", put)
    slow(monkeypatch, MemoryDriver, "put_part", clock.wait)
    shares = copied(engine, 4 * PART)
    assert max(shares, key=shares.__getitem__) == timing.EITHER, shares


def test_waiting_for_rows_is_the_databases(engine, clock, monkeypatch):
    slow(monkeypatch, Memory, "completing", clock.wait)
    assert copied(engine, 2 * PART) == {timing.DATABASE: 1.0}


def test_what_is_read_from_memory_waits_for_nobody(engine, clock, monkeypatch):
    slow(monkeypatch, MemoryReader, "pread", clock.compute)
    assert copied(engine, PART) == {timing.OURS: 1.0}


def test_a_minute_is_told_and_nothing_older(clock):
    minute = LastMinute()
    times = minute.times[7, 3]
    with measured(times), timing.spending(timing.SOURCE):
        clock.wait(50)
    clock.wait(5)
    assert minute.due()
    assert minute.told()["copies"] == [{"batch": 7, "source": 3, "spent": {"path.source": 50.0}}]
    assert not minute.due()
    for _ in range(14):
        with measured(times), timing.spending(timing.LIMIT):
            clock.wait(1)
        clock.compute(4)
        told = minute.told()
    assert told["copies"] == [{"batch": 7, "source": 3, "spent": {"path.limit": 12.0}}]
    assert (told["seconds"], told["cpu"]) == (60.0, 48.0)


def test_what_is_not_over_yet_is_told_up_to_its_last_wait(clock):
    times = Times()
    with measured(times):
        with timing.spending(timing.SOURCE):
            clock.wait(3)
        with timing.spending(timing.LIMIT):
            clock.wait(5)
            assert times.spent() == {"path.us": 0.0, "path.source": 3.0}
        assert times.spent()["path.limit"] == 5.0


# --- on real connections ---------------------------------------------------------------------------------------------------


def sent(url: str, body: bytes) -> dict[str, float]:
    times = Times()
    pool = HttpPool(connect_timeout=5, read_timeout=30)
    with measured(times), timing.spending(timing.TARGET):
        pool.request(url, "PUT", "/a", {}, body)
    pool.close()
    return shares_of(times.spent())


def test_a_store_that_takes_bytes_slowly_is_told_from_the_network():
    def script(seen: Scripted, stream: socket.socket, reader: object) -> None:
        seen.read(reader)
        stream.sendall(OK)

    with scripted_server(script) as server, TcpProxy(server.url) as proxy:
        proxy.throttle(40 * MiB)
        shares = sent(proxy.url, bytes(16 * MiB))
    assert max(shares, key=shares.__getitem__) == timing.STORE, shares


def test_a_store_that_answers_late_is_told_from_the_network():
    def script(seen: Scripted, stream: socket.socket, reader: object) -> None:
        seen.read(reader)
        time.sleep(0.2)  # the server that answers late
        stream.sendall(OK)

    with scripted_server(script) as server:
        shares = sent(server.url, b"small")
    assert max(shares, key=shares.__getitem__) == timing.STORE, shares


class Stream:
    """Says of itself what the kernel says of a connection."""

    def __init__(self, **found: int) -> None:
        self.found = found

    def getsockopt(self, _level: int, _option: int, size: int) -> bytes:
        info = bytearray(size)
        for where, name in ((68, "round_trip"), (148, "least")):
            struct.pack_into("=I", info, where, self.found[name])
        for where, name in ((120, "acknowledged"), (160, "rate"), (168, "busy"), (176, "full")):
            struct.pack_into("=Q", info, where, self.found[name])
        return bytes(info)


@pytest.mark.parametrize(
    ("busy", "full", "cause"),
    [(900_000, 0, timing.NETWORK), (900_000, 800_000, timing.STORE), (100_000, 0, timing.STORE), (500_000, 0, timing.EITHER)],
)
def test_the_kernel_tells_who_was_waited_for(clock, busy, full, cause):
    stream = Stream(round_trip=40_000, least=30_000, acknowledged=10_000_000, rate=10_000_000, busy=busy, full=full)
    times = Times()
    observed = Observed(stream)
    with measured(times), timing.spending(timing.TARGET):
        with timing.spending(timing.SEND):
            clock.wait(0.7)
        with timing.spending(timing.ANSWER):
            clock.wait(0.3)
        observed.tell()
    shares = shares_of(times.spent())
    assert max(shares, key=shares.__getitem__) == cause
    with measured(times):
        observed.tell()
    assert times.spent()["net.on_its_way"] == pytest.approx((busy - full) / 1e6), "what was told is not told again"
    assert times.spent()["net.round_trips"] == pytest.approx(0.06)


def test_an_acknowledgement_that_waits_for_the_answer_is_not_the_networks():
    stream = Stream(round_trip=200, least=100, acknowledged=1000, rate=100_000_000, busy=40_000, full=0)
    times = Times()
    with measured(times):
        Observed(stream).tell()
    assert times.spent()["net.on_its_way"] < 0.001


def test_where_the_kernel_tells_nothing_nothing_is_made_up():
    times = Times()
    with measured(times):
        Observed(object()).tell()
    assert "net.requests" not in times.spent()
