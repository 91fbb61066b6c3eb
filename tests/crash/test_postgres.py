"""Real workers on a real PostgreSQL: its disk runs full, it is killed, a worker sleeps past its lease, the store's key is rotated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.crash.ground import LARGE, Ground, s3_client
from tests.crash.machine import Machine, kill, wait_for
from tests.crash.stage import MiB
from tests.demo.build import BuiltFile, BuiltItem, BuiltRegion, hash_file
from tests.servers.mounts import SmallDisk
from tests.servers.postgres import PostgresServer
from tests.servers.process import REPOSITORY
from tests.soak.clock import ProcessClock

pytestmark = [pytest.mark.live, pytest.mark.crash]

SMALL = 60
SLOW = 3 * MiB
"""Bytes per second: the large file is under way for 13 s, and its first part has arrived after 5."""
SAVED = "saved"


def build(root: Path) -> BuiltRegion:
    items = []
    for number in range(SMALL + 1):
        name = f"volumes/2/{number + 1}/{uuid.uuid4()}.raw" if number else LARGE
        path = root / "zone1" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(3000 + number if number else 40 * MiB))
        file = BuiltFile(name, path.stat().st_size, hash_file(path))
        items.append(BuiltItem("zone1", "volume", "raw", 2, name.split("/")[2], (file,), path.name))
    (root / "zone2").mkdir()
    return BuiltRegion(root, tuple(items), (), ())


@dataclass
class Site:
    """A converted region on a PostgreSQL whose disk is small."""

    disk: SmallDisk
    server: PostgresServer
    ground: Ground

    @property
    def environment(self) -> dict[str, str]:
        return self.ground.environment() | {
            "CLOUDSTORAGE_QUEUE_MUTED": "false",
            "CLOUDSTORAGE_LEASE_SECONDS": "6",
            "CLOUDSTORAGE_HEARTBEAT_SECONDS": "1",
        }

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The database, without the product."""
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def count(self, query: str) -> int:
        return int(self.rows(query)[0][0])

    def change(self, statement: str) -> None:
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def renew(self) -> None:
        """As it was when the region had just been converted."""
        with psycopg.connect(self.server.database_url("postgres"), autocommit=True) as connection:
            name = self.server.database
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {SAVED} STRATEGY file_copy".encode())
        self.ground.restore(SAVED)

    def worker(self, name: str, environment: Mapping[str, str] | None = None) -> Machine:
        machine = Machine.worker(
            self.environment | dict(environment or {}), self.ground.folder / f"{name}-{uuid.uuid4().hex[:6]}.log"
        )
        wait_for(machine.queue_workers, "the queue cluster", machine)
        return machine

    def begin(self) -> None:
        self.ground.must("begin_drain", variables={"CRASH_BANDWIDTH": str(SLOW), "CRASH_CANARY": "0"})

    def hurry(self) -> None:
        self.change("UPDATE stores_transferbatch SET bandwidth = NULL")

    def proven(self) -> int:
        return self.count("SELECT count(*) FROM stores_transfer WHERE state = 'Proven'")

    def has_part(self) -> bool:
        """Whether something of the large file is on the store, and written down."""
        return bool(self.count("SELECT count(*) FROM stores_transferpart"))

    def finished(self) -> bool:
        return self.rows("SELECT state FROM migration_drain") == [("Finished",)]

    def assert_nothing_promised_falsely(self) -> None:
        """What is Ready on the object store lies there as on the export, as the server gives it now."""
        stored = self.ground.stored()
        ready = self.rows(
            "SELECT f.path FROM volume_store_file f JOIN volume_store_ref r ON r.id = f.ref_id"
            " JOIN image_store s ON s.id = r.store_id WHERE s.scope = 'REGION' AND r.state = 'Ready'"
        )
        assert {path: stored.get(path) for (path,) in ready} == {path: self.ground.hashes[path] for (path,) in ready}

    def assert_complete(self) -> None:
        told = self.ground.must("settle")
        assert told["refs"] == {"Ready": SMALL + 1}, told
        assert told["counts"] == told["listing"] == [], told
        assert self.ground.stored() == self.ground.hashes
        assert self.ground.pending_uploads() == []


@pytest.fixture(scope="module")
def prepared(server_directory, swift_server) -> Iterator[Site]:
    folder = server_directory / "small-disk"
    with ExitStack() as ends:
        disk = ends.enter_context(SmallDisk(folder, size=320 * MiB))
        server = ends.enter_context(PostgresServer(folder / "postgres"))
        ground = ends.enter_context(Ground(server_directory / "on-postgres", swift_server, build=build, database=server.url))
        for stage in ("migrate", "store_add", "scan", "preflight", "convert"):
            ground.must(stage)
        ground.save(SAVED)
        site = Site(disk, server, ground)
        with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {SAVED} TEMPLATE {server.database} STRATEGY file_copy".encode())
        yield site


@pytest.fixture
def site(prepared) -> Site:
    prepared.renew()
    return prepared


@pytest.mark.parametrize("which", ["data", "log"])
def test_drain_goes_on_when_the_disk_under_the_database_was_full(site, which):
    """Full for its data, the server refuses what needs room; full for its write-ahead log, it ends."""
    site.begin()
    # What is written of these, once the disk is full, does not fit into the pages that there are.
    site.change("UPDATE stores_transfer SET next_attempt_at = now() + interval '15 seconds' WHERE item_id % 5 > 0")
    with site.worker("full") as machine:
        wait_for(lambda: site.proven() >= 5, "a drain under way", machine)
        site.change("SELECT pg_switch_wal()")
        site.disk.fill()
        if which == "log":
            with pytest.raises(psycopg.OperationalError):
                site.change("SELECT pg_logical_emit_message(true, 'filling', repeat('x', 1000000)) FROM generate_series(1, 100)")
        said = "No space left on device" if which == "data" else "the database did not answer"
        wait_for(lambda: said in machine.log.read_text(errors="replace"), "the worker to notice", machine)
        if which == "data":
            site.assert_nothing_promised_falsely()
        site.disk.make_room()
        if which == "log":
            wait_for(lambda: not site.server.running, "the server's end")
            site.server.kill()
            site.server.start()
            site.assert_nothing_promised_falsely()
        site.hurry()
        wait_for(site.finished, "the drain", machine)
        assert machine.process.poll() is None
    site.assert_complete()


def test_drain_goes_on_when_the_database_was_killed_and_started_again(site):
    with site.worker("restart") as machine:
        site.begin()
        wait_for(lambda: site.has_part() and site.proven() >= 5, "a drain under way", machine)
        site.server.kill()
        wait_for(lambda: "the database did not answer" in machine.log.read_text(), "the worker to notice", machine)
        site.server.start()
        site.assert_nothing_promised_falsely()
        site.hurry()
        wait_for(site.finished, "the drain", machine)
        assert machine.process.poll() is None
    site.assert_complete()


def test_worker_that_slept_past_its_lease_changes_nothing_when_it_wakes_up(site):
    path = site.ground.region.zones["zone1"] / LARGE
    large = (
        "SELECT w.pid, t.epoch FROM stores_transfer t JOIN stores_worker w ON w.id = t.worker_id WHERE t.bytes_total > 1000000"
    )
    with site.worker("one") as one, site.worker("two") as two:
        reached = f"SELECT count(*) FROM stores_workerreach JOIN stores_worker w ON w.id = worker_id WHERE ok AND pid IN ({one.pid}, {two.pid})"
        wait_for(lambda: site.count(reached) == 6, "both to reach every store", one, two)
        site.begin()
        wait_for(lambda: (one.copying(path) or two.copying(path)) and site.has_part(), "a copy under way", one, two)
        sleeper, other = (one, two) if one.copying(path) else (two, one)
        stop(site, sleeper)
        assert site.rows(large) == [(sleeper.pid, 1)]
        wait_for(lambda: site.rows(large) == [(other.pid, 2)], "the other to take it over", one, two)
        site.hurry()
        wait_for(site.finished, "the drain", one, two)
        before = everything(site)
        for pid in sleeper.processes():
            kill(pid, signal.SIGCONT)
        beats = f"SELECT count(*) FROM stores_worker WHERE pid = {sleeper.pid} AND heartbeat > now() - interval '2 seconds'"
        wait_for(lambda: site.count(beats), "the sleeper to wake up", sleeper)
        wait_for(lambda: not sleeper.copying(path), "the sleeper's copy to end", sleeper)
        assert everything(site) == before
    site.assert_complete()


def test_worker_goes_on_when_its_clock_is_right_again_that_was_hours_ahead_and_behind(site, tmp_path):
    clock = ProcessClock(tmp_path)
    preloaded = clock.environment
    assert preloaded, "the clock of a process is set by what a compiler makes: run make setup"
    with site.worker("jumper", preloaded) as machine:
        site.begin()
        wait_for(lambda: site.has_part() and site.proven() >= 5, "a drain under way", machine)
        refused = "SELECT count(*) FROM stores_workerreach WHERE NOT ok AND error LIKE '%clocks%'"
        for hours in (2, -2):
            clock.set(hours * 3600)
            wait_for(lambda: site.count(refused), "the worker to be refused", machine)
            clock.set(0)
            wait_for(lambda: not site.count(refused), "the worker to be let in again", machine)
        assert not site.count("SELECT count(*) FROM stores_transfer WHERE state = 'Failed' OR faults > 0")
        site.hurry()
        wait_for(site.finished, "the drain", machine)
    site.assert_complete()


@pytest.fixture
def rotate(site) -> Iterator[Callable[[], str]]:
    """Changes the object store's key and returns the new one; the former is right again afterwards."""
    swift, former = site.ground.swift, site.ground.swift.key

    def change(key: str) -> str:
        swift.kill()
        swift.key = swift.secret_key = key
        swift.start()
        site.ground.s3 = s3_client(swift)
        return key

    yield lambda: change(uuid.uuid4().hex)
    change(former)


def test_running_workers_go_on_when_the_key_was_revoked_and_rotated(site, rotate, tmp_path):
    with site.worker("rotated") as machine:
        site.begin()
        wait_for(lambda: site.has_part() and site.proven() >= 5, "a drain under way", machine)
        pids = machine.queue_workers()
        secret = tmp_path / "secret"
        secret.write_text(rotate())
        secret.chmod(0o600)
        told = "SELECT count(*) FROM stores_workerreach WHERE NOT ok AND error LIKE '%secret key%'"
        wait_for(lambda: site.count(told), "the worker to be refused", machine)
        assert not site.count("SELECT count(*) FROM stores_transfer WHERE state = 'Failed' OR faults > 0")
        command = [sys.executable, "manage.py", "store_update", "objects", "--secret-file", f"secretkey={secret}"]
        subprocess.run(command, cwd=REPOSITORY, env=os.environ | site.environment, check=True, capture_output=True)
        site.hurry()
        wait_for(site.finished, "the drain", machine)
        assert machine.queue_workers() == pids
        site.assert_complete()


def stop(site: Site, machine: Machine) -> None:
    """SIGSTOP of all its processes, between two transactions."""
    within = "SELECT count(*) FROM pg_stat_activity WHERE state IN ('active', 'idle in transaction') AND pid <> pg_backend_pid()"
    within += " AND datname = current_database()"
    while True:
        for pid in machine.processes():
            kill(pid, signal.SIGSTOP)
        if not site.count(within):
            return
        for pid in machine.processes():
            kill(pid, signal.SIGCONT)


def everything(site: Site) -> dict[str, Any]:
    """What a late worker could change; the journal is written when its turn comes."""
    of_ref = "id, volume_id, store_id, state, install_path, size, proof, proven_at, sha256, ref_cnt, update_count"
    columns = {"volume_store_ref": of_ref}
    tables = ("stores_transfer", "stores_transferupload", "stores_transferpart", "volume_store_ref", "volume_store_file")
    found: dict[str, Any] = {table: site.rows(f"SELECT {columns.get(table, '*')} FROM {table} ORDER BY id") for table in tables}
    return found | {"objects": {key: etag for key, etag in site.ground.keys().items() if "/.cs-" not in key}}
