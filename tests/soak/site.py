"""The cloud that the soak runs on: two FUSE exports, Swift and PostgreSQL behind proxies, two workers and a web server to be killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Self

import psycopg

from tests.crash.ground import Ground, mounts
from tests.crash.machine import Machine, state_of, wait_for
from tests.crash.stage import ZONES, MiB
from tests.crash.test_supervision import reaches
from tests.demo.build import BuiltFile, BuiltItem, BuiltRegion, build_region, hash_file
from tests.servers.mounts import BindMount
from tests.servers.postgres import PostgresServer
from tests.servers.process import REPOSITORY, free_ports
from tests.servers.proxy import LoggingHttpProxy, TcpProxy
from tests.servers.swift import SwiftServer
from tests.soak.clock import ProcessClock
from tests.soak.ledger import Entry

SMALL_PER_MINUTE, LARGE_PER_MINUTE = 60, 2
WORKERS = ("worker-1", "worker-2")
CLOCKED = WORKERS[1]
"""The worker whose clock jumps."""


def build_exports(root: Path, minutes: float, random: Random) -> BuiltRegion:
    """The tiny region with all its kinds, and volumes enough to be copied for so long."""
    region = build_region(root, scale="tiny")
    items = list(region.items)
    small, large = int(SMALL_PER_MINUTE * minutes), int(LARGE_PER_MINUTE * minutes)
    for number in range(small + large):
        zone = ZONES[number % 2]
        size = random.randrange(50_000, 400_000) if number < small else random.randrange(17, 40) * MiB
        path = root / zone / "volumes" / "2" / str(5000 + number) / f"{uuid.UUID(int=random.getrandbits(128))}.raw"
        path.parent.mkdir(parents=True)
        path.write_bytes(random.randbytes(size))
        file = BuiltFile(str(path.relative_to(root / zone)), size, hash_file(path))
        items.append(BuiltItem(zone, "volume", "raw", 2, str(5000 + number), (file,), path.name))
    return BuiltRegion(root, tuple(items), region.skipped, region.foreign)


class Site:
    """Everything that runs, and how to start again what was killed."""

    def __init__(self, folder: Path, minutes: float, random: Random) -> None:
        self.folder = folder
        self._minutes, self._random = minutes, random
        self._ends = contextlib.ExitStack()
        self.machines: dict[str, Machine] = {}
        self.exports: dict[str, BindMount] = {}
        self.clock = ProcessClock(folder)

    def __enter__(self) -> Self:
        enter = self._ends.enter_context
        try:
            self.swift = enter(SwiftServer(self.folder / "swift", async_delete=False))
            self.postgres = enter(PostgresServer(self.folder / "postgres"))
            self.http = enter(LoggingHttpProxy(self.swift.s3_url))
            self.to_store = enter(TcpProxy(self.http.url))
            self.to_database = enter(TcpProxy(self.postgres.url))
            self.ground = enter(
                Ground(
                    self.folder / "ground",
                    self.swift,
                    build=lambda root: build_exports(root, self._minutes, self._random),
                    database=self.to_database.url,
                    endpoint=self.to_store.url,
                )
            )
            for zone, path in self.ground.region.zones.items():
                self.exports[zone] = enter(BindMount(path, self.folder / "mounts" / zone))
            self.environment = self._environment()
            self._ends.callback(self._kill_machines)
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def mounted(self) -> dict[str, Path]:
        return {zone: export.mountpoint for zone, export in self.exports.items()}

    def _environment(self) -> dict[str, str]:
        (self.port,) = free_ports(1)
        return self.ground.environment() | {
            "CLOUDSTORAGE_NFS_MOUNTS": mounts(self.mounted),
            "CLOUDSTORAGE_QUEUE_MUTED": "false",
            "CLOUDSTORAGE_LEASE_SECONDS": "10",
            "CLOUDSTORAGE_HEARTBEAT_SECONDS": "1",
            "CLOUDSTORAGE_WORKER_SLOTS": "4",
        }

    def must(self, stage: str, **options: object) -> object:
        """A stage that has to succeed, with the exports as the workers see them."""
        return self.ground.must(stage, exports=self.mounted, **options)

    def manage(self, *arguments: str, given: str = "") -> str:
        """A command that an operator types, with `given` on its standard input; what it printed, whatever its status."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            env=os.environ | self.environment,
            cwd=REPOSITORY,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    def unmount(self) -> None:
        """Take the exports away, so that what lies below the mounts is seen."""
        for export in self.exports.values():
            export.unmount()

    # --- processes -----------------------------------------------------------------------------------------------------------

    def start_machine(self, name: str) -> None:
        log = self.folder / f"{name}.log"
        if name == "web":
            served = [
                "-m",
                "gunicorn",
                "cloudstorage.wsgi",
                "--bind",
                f"127.0.0.1:{self.port}",
                "--threads",
                "8",
                "--timeout",
                "60",
            ]
            self.machines[name] = Machine(served, self.environment, log)
        else:
            clock = self.clock.environment if name == CLOCKED else {}
            self.machines[name] = Machine.worker(self.environment | clock, log)

    def start_machines(self) -> None:
        for name in (*WORKERS, "web"):
            self.start_machine(name)
        wait_for(lambda: reaches(f"http://127.0.0.1:{self.port}"), "the web server", self.machines["web"], seconds=120)
        pids = ", ".join(str(self.machines[name].pid) for name in WORKERS)
        reached = (
            f"SELECT count(*) FROM stores_workerreach r JOIN stores_worker w ON w.id = worker_id WHERE ok AND pid IN ({pids})"
        )
        wait_for(lambda: self.number(reached) == 3 * len(WORKERS), "the workers", *self.machines.values(), seconds=120)

    def restart_dead(self, *, but: set[str]) -> None:
        """Start what has ended as a service manager would."""
        for name, machine in list(self.machines.items()):
            if name not in but and (machine.process.poll() is not None or state_of(machine.pid) in "ZX"):
                machine.kill_all()
                self.start_machine(name)

    def _kill_machines(self) -> None:
        for machine in self.machines.values():
            machine.kill_all()

    # --- the database, without the product -------------------------------------------------------------------------------------

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=30) as connection:
            return connection.execute(query.encode()).fetchall()

    def number(self, query: str) -> int:
        return int(str(self.rows(query)[0][0]))

    def change(self, statement: str) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=30) as connection:
            connection.execute(statement.encode())

    def files(self, kind: str) -> Iterator[tuple[str, str, str, str, str, str]]:
        """(item's uuid, store's name, ref's state, name below the item, path, the ref's id) of every file that is shown as there."""
        item = {"template": "vm_template", "snapshot": "snapshots", "volume": "volumes"}[kind]
        query = f"""
            SELECT i.uuid::text, s.name, r.state, r.install_path, f.path, r.id::text FROM {kind}_store_file f
            JOIN {kind}_store_ref r ON r.id = f.ref_id JOIN {item} i ON i.id = r.{kind}_id JOIN image_store s ON s.id = r.store_id
            WHERE r.state IN ('Ready', 'Hidden')"""
        for found, store, state, place, path, ref in self.rows(query):
            below = str(path).removeprefix(f"{place}/") if str(path).startswith(f"{place}/") else Path(str(path)).name
            yield str(found), str(store), str(state), below, str(path), str(ref)

    def entries(self) -> list[Entry]:
        """What was adopted by the scan, with the hashes taken when the exports were built."""
        found: dict[str, Entry] = {}
        for kind in ("template", "snapshot", "volume"):
            for item, store, _, name, path, _ in self.files(kind):
                sha256 = self.ground.hashes[path]
                entry = found.setdefault(item, Entry(kind, f"{kind} {path}", {}, item))
                entry.hashes[name] = sha256
                entry.originals[f"{store.removeprefix('nfs-')}/{path}"] = sha256
        expected = {file.path for item in self.ground.region.items for file in item.files}
        covered = {path.partition("/")[2] for entry in found.values() for path in entry.originals}
        assert covered == expected, covered ^ expected
        return list(found.values())
