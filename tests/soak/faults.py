"""What goes wrong during the soak: seeded choices among faults of the store, the database, the exports, clocks and processes."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from tests.crash.ground import BUCKET
from tests.crash.machine import kill
from tests.servers.http_messages import HttpRequest
from tests.servers.proxy import Action, Answer, Corrupt, Cut, Hold, TcpProxy
from tests.soak.site import WORKERS, Site

XML = {"Content-Type": "application/xml"}
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
FURTHEST = 600
"""Seconds that a clock is off at most: an object store refuses signatures that are a quarter of an hour off."""


def to_bucket(request: HttpRequest) -> bool:
    return request.target.startswith(f"/{BUCKET}")


def writes(request: HttpRequest) -> bool:
    return to_bucket(request) and request.method == "PUT"


def completes(request: HttpRequest) -> bool:
    return to_bucket(request) and request.method == "POST" and "uploadId=" in request.target


class Faults:
    """Strikes when told to, and takes back what has lasted long enough."""

    def __init__(self, site: Site, random: Random) -> None:
        self._site, self._random = site, random
        self.counts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self._endings: list[tuple[float, str, Callable[[], object]]] = []
        """(moment, what it concerns, what takes it back)"""

    @property
    def concerned(self) -> set[str]:
        return {what for _, what, _ in self._endings}

    def tick(self) -> None:
        """Take back what is over."""
        now = time.monotonic()
        over = [ending for ending in self._endings if ending[0] <= now]
        self._endings = [ending for ending in self._endings if ending[0] > now]
        for _, _, take_back in over:
            take_back()

    def end_all(self) -> None:
        """All is well from now on."""
        for _, _, take_back in self._endings:
            take_back()
        self._endings = []
        self._site.http.clear_rules()
        if self._site.clock.is_there:
            self._site.clock.set(0)

    def strike(self) -> str:
        """One fault or kill; what it was."""
        acts = [
            (self._request, 12),
            (self._connection, 5),
            (self._database, 3),
            (self._database_server, 1),
            (self._store_server, 1),
            (self._export, 4),
            (self._clock, 2),
            (self._stop, 3),
            (self._kill, 14),
        ]
        (act,) = self._random.choices([act for act, _ in acts], [weight for _, weight in acts])
        return act()

    def _until(self, least: float, most: float, what: str, take_back: Callable[[], object]) -> float:
        seconds = self._random.uniform(least, most)
        self._endings.append((time.monotonic() + seconds, what, take_back))
        return seconds

    def _fault(self, what: str) -> str:
        self.counts[what] += 1
        return what

    # --- the store -------------------------------------------------------------------------------------------------------------

    def _request(self) -> str:
        hold = Hold()
        kinds: list[tuple[str, Callable[[HttpRequest], bool], Action]] = [
            ("503 with Retry-After", to_bucket, Answer(503, XML | {"Retry-After": "2"}, SLOW_DOWN)),
            ("429", to_bucket, Answer(429, XML | {"Retry-After": "1"}, SLOW_DOWN)),
            ("500", to_bucket, Answer(500, XML, INTERNAL)),
            ("200 with an error on completing", completes, Answer(200, XML, INTERNAL)),
            ("request cut", to_bucket, Cut("request")),
            ("body cut", writes, Cut("body", self._random.randrange(400_000))),
            ("answer cut", to_bucket, Cut("response")),
            ("answer to completing cut", completes, Cut("response")),
            ("byte flipped on the way", writes, Corrupt("request", self._random.randrange(60_000))),
            ("request held", to_bucket, hold),
        ]
        what, matches, action = self._random.choice(kinds)
        times = 1 if action is hold else self._random.randint(1, 6)
        self._site.http.clear_records()
        self._site.http.add_rule(matches, action, times=times)
        self._until(4, 12, "request", lambda: (hold.release.set(), self._site.http.clear_rules()))
        return self._fault(f"store: {what}")

    def _connection(self) -> str:
        return self._fault(f"store: {self._disturb(self._site.to_store, 'to store')}")

    def _store_server(self) -> str:
        swift = self._site.swift
        swift.kill()
        swift.start()
        return self._fault("store: server killed and started again")

    def _disturb(self, proxy: TcpProxy, name: str) -> str:
        if name in self.concerned:
            proxy.reset_connections()
            return "connections reset"
        what = self._random.choice(["reset", "stalled", "refused", "throttled", "reset after some bytes"])
        if what == "reset":
            proxy.reset_connections()
        elif what == "stalled":
            proxy.stall()
        elif what == "refused":
            proxy.refuse()
        elif what == "throttled":
            proxy.throttle(200_000)
        else:
            proxy.reset_after(self._random.randrange(1000, 200_000), times=4)
        if what != "reset":
            self._until(1, 6, name, proxy.pass_through)
        return f"connections {what}"

    # --- the database ------------------------------------------------------------------------------------------------------------

    def _database(self) -> str:
        return self._fault(f"database: {self._disturb(self._site.to_database, 'to database')}")

    def _database_server(self) -> str:
        self._site.postgres.kill()
        self._site.postgres.start()
        return self._fault("database: server killed and started again")

    # --- the exports -------------------------------------------------------------------------------------------------------------

    def _export(self) -> str:
        zone = self._random.choice(sorted(self._site.exports))
        export = self._site.exports[zone]
        if zone in self.concerned:
            return "nothing: the export is out of order already"
        what = self._random.choice(["hung", "server killed", "taken away, its folder empty"])
        if what == "hung":
            export.hang()
            self._until(2, 15, zone, export.release)
        else:
            (export.kill if what == "server killed" else export.take_away)()
            self._until(1, 8, zone, export.mount)
        return self._fault(f"export: {what}")

    # --- clocks and processes ------------------------------------------------------------------------------------------------------

    def _clock(self) -> str:
        if not self._site.clock.is_there:
            return "nothing: there is no compiler for the clock"
        seconds = self._random.randint(-FURTHEST, FURTHEST)
        self._site.clock.set(seconds)
        return self._fault("clock: jumped")

    def _stop(self) -> str:
        """SIGSTOP for longer than a lease; then they go on as if nothing had been."""
        machine = self._site.machines[self._random.choice(WORKERS)]
        workers = machine.queue_workers()
        pids = sorted(machine.processes()) if not workers or self._random.random() < 0.3 else [self._random.choice(workers)]
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        self._until(3, 18, "stopped", lambda: [kill(pid, signal.SIGCONT) for pid in pids])
        return self._fault("process: stopped")

    def _kill(self) -> str:
        name = self._random.choice([*WORKERS, *WORKERS, "web"])
        machine = self._site.machines[name]
        whom = self._random.choices(["queue process", "any process", "supervisor", "machine"], [5, 3, 1, 1])[0]
        if name == "web" and whom == "queue process":
            whom = "any process"
        if whom == "machine":
            machine.kill_all()
            self._until(0, 5, name, lambda: None)
        else:
            pids = machine.queue_workers() if whom == "queue process" else sorted(machine.processes())
            if not pids:
                return "nothing: no such process lives yet"
            kill(machine.pid if whom == "supervisor" else self._random.choice(pids))
        what = f"kill: {whom} of {'the web server' if name == 'web' else 'a worker'}"
        self.kills[what] += 1
        return what
