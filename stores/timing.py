"""Where the time of copies goes: cheap clocks around what waits, so that a page can tell the source from the network from us.

A copying thread's own time is put down as `path`: the source, a limit, what takes the bytes, the database, and all else, which is
our own computing. What takes the bytes may have other threads at work, whose time is put down as `part`, as is that of a thread
that sends by itself. Plain Python; who measures nothing pays for nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

Level = Literal["path", "part"]

OURS = "us"
SOURCE, LIMIT, DATABASE = "source", "limit", "database"
LANES, TARGET = "lanes", "target"
"""Waiting for threads that send; being at a driver of the target oneself."""
SEND, ANSWER = "send", "answer"
NETWORK, STORE, EITHER = "network", "store", "network-or-store"
"""Who was waited for while something was sent and answered."""

_LEVELS: tuple[Level, ...] = ("path", "part")
_NAMES = (OURS, SOURCE, LIMIT, DATABASE, LANES, TARGET, SEND, ANSWER)
_KEYS = {(level, name): f"{level}.{name}" for level in _LEVELS for name in _NAMES}
_MANY = 64 * 1024

_CLEAR = 0.65
"""Of what was waited for at the far end, the share from which on it is said to have been the network, or the store."""

_WORTH_TELLING = 0.0005

MINUTE = 60.0
_STEP = 5.0


class Times:
    """Seconds by level and what they were spent on, and what the kernel tells of connections; summed over threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: dict[str, float] = {}
        self._open: list[_Account] = []

    def begin(self, account: _Account) -> None:
        with self._lock:
            self._open.append(account)

    def end(self, account: _Account) -> None:
        with self._lock:
            self._open.remove(account)
            _sum(self._ended, account.spent)

    def spent(self) -> dict[str, float]:
        """`level.name` -> seconds, of what is not over yet, too."""
        with self._lock:
            found = dict(self._ended)
            for account in self._open:
                _sum(found, account.spent.copy())
        return found


class _Account:
    """What one thread spends within one `measured`. Nobody else writes to it, so that its clocks take no lock."""

    __slots__ = ("level", "since", "spent")

    def __init__(self, level: Level) -> None:
        self.level: Level | None = level
        """At which level time is put down now; None where nothing is told apart any more."""
        self.since = time.monotonic()
        """From when on it is put down to nothing yet."""
        self.spent: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.spent[name] = self.spent.get(name, 0.0) + seconds


class _Here(threading.local):
    account: _Account | None = None


_here = _Here()


class measured:  # noqa: N801 - used as a statement
    """What this thread does within is put down in `times`, if there are any; what `spending` does not name, as our own."""

    __slots__ = ("_account", "_before", "_level", "_times")

    def __init__(self, times: Times | None, level: Level = "path") -> None:
        self._times = times
        self._level: Level = level

    def __enter__(self) -> Self:
        self._before = _here.account
        self._account = None if self._times is None else _Account(self._level)
        if self._times is not None and self._account is not None:
            self._times.begin(self._account)
        _here.account = self._account
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._times is not None and self._account is not None:
            self._account.add(_KEYS[self._level, OURS], time.monotonic() - self._account.since)
            self._times.end(self._account)
        _here.account = self._before


class spending:  # noqa: N801 - used as a statement
    """The time within is spent on this. Within `target` a new level begins; within all else nothing is told apart any more.

    `moved`: bytes that are read or sent. Of many, the thread's CPU time is ours: what comes from memory or is encrypted waits for
    nobody. Of few, to look at that clock would take longer.
    """

    __slots__ = ("_account", "_began", "_cpu", "_level", "_name")

    def __init__(self, name: str, moved: int = 0) -> None:
        self._name = name
        self._cpu: float | None = 0.0 if moved >= _MANY else None

    def __enter__(self) -> Self:
        account = _here.account
        if account is None or account.level is None:
            self._account = None
            return self
        self._account, self._level = account, account.level
        now = time.monotonic()
        account.add(_KEYS[account.level, OURS], now - account.since)
        account.level = "part" if self._name == TARGET and account.level == "path" else None
        account.since = self._began = now
        if self._cpu is not None:
            self._cpu = time.thread_time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        account = self._account
        if account is None:
            return
        now = time.monotonic()
        if account.level is not None:
            account.add(_KEYS[account.level, OURS], now - account.since)
        waited = now - self._began
        if self._cpu is not None:
            computed = min(waited, time.thread_time() - self._cpu)
            account.add(_KEYS[self._level, OURS], computed)
            waited -= computed
        account.add(_KEYS[self._level, self._name], waited)
        account.level, account.since = self._level, now


def is_sending() -> bool:
    """Whether this thread is measured while it is at what takes the bytes."""
    return _here.account is not None and _here.account.level == "part"


def add_request(*, round_trip: float, on_its_way: float) -> None:
    """Of one request of this thread: the round trip to the server, and how long the network had something of it to carry."""
    if (account := _here.account) is not None:
        account.add("net.requests", 1)
        account.add("net.round_trips", round_trip)
        account.add("net.on_its_way", on_its_way)


def _sum(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, seconds in more.items():
        total[name] = total.get(name, 0.0) + seconds


class LastMinute:
    """What a pump tells of its copies: what they spent their time on during the last minute, and the process its CPU."""

    def __init__(self) -> None:
        self.times: defaultdict[tuple[int | None, int], Times] = defaultdict(Times)
        """By batch and source."""
        self._marks: deque[tuple[float, float, dict[tuple[int | None, int], dict[str, float]]]] = deque()
        self._mark(time.monotonic())

    def due(self) -> bool:
        """Whether there is something new worth telling."""
        return time.monotonic() - self._marks[-1][0] >= _STEP

    def told(self) -> dict[str, object]:
        """`seconds` that this is of, `cpu` seconds of the process, `cores` it may use, `copies`: a list of `batch`, `source` and
        `spent`, seconds by name."""
        now = time.monotonic()
        self._mark(now)
        while len(self._marks) > 2 and now - self._marks[1][0] >= MINUTE:
            self._marks.popleft()
        then, cpu, spent = self._marks[0]
        copies = {pk: _difference(times, spent.get(pk, {})) for pk, times in self._marks[-1][2].items()}
        return {
            "seconds": round(now - then, 2),
            "cpu": round(self._marks[-1][1] - cpu, 2),
            "cores": len(os.sched_getaffinity(0)),
            "copies": [{"batch": batch, "source": source, "spent": spent} for (batch, source), spent in copies.items() if spent],
        }

    def _mark(self, now: float) -> None:
        self._marks.append((now, time.process_time(), {pk: times.spent() for pk, times in self.times.items()}))


def _difference(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    found = {name: round(value - before.get(name, 0.0), 4) for name, value in now.items()}
    return {name: value for name, value in found.items() if value > 0}


def shares_of(spent: Mapping[str, float]) -> dict[str, float]:
    """By cause, its share of what copies spent their time on.

    What takes the bytes is told apart by what the sending threads did, and the network from the store by what the kernel says was
    on its way; where that is not clear, it is either.
    """
    path, parts = (_of(level, spent) for level in _LEVELS)
    total, sending, waited = sum(path.values()), sum(parts.values()), parts.get(SEND, 0.0) + parts.get(ANSWER, 0.0)
    if total <= 0:
        return {}
    behind = path.pop(TARGET, 0.0) + path.pop(LANES, 0.0)
    if not waited:  # a driver without connections of ours: all that it does is the far end's
        parts[ANSWER] = parts.pop(OURS, 0.0) or 1.0
        sending = sum(parts.values())
    for name, value in parts.items():
        path[name] = path.get(name, 0.0) + behind * value / sending
    far = path.pop(SEND, 0.0) + path.pop(ANSWER, 0.0)
    network = min(1.0, spent.get("net.on_its_way", 0.0) / waited) if waited and spent.get("net.requests") else 0.5
    if 1 - _CLEAR < network < _CLEAR:
        path[EITHER] = far
    else:
        path[NETWORK], path[STORE] = far * network, far * (1 - network)
    return {name: round(value / total, 3) for name, value in path.items() if value / total >= _WORTH_TELLING}


def _of(level: Level, spent: Mapping[str, float]) -> dict[str, float]:
    return {name: spent[key] for (of, name), key in _KEYS.items() if of == level and key in spent}
