"""Where the bench runs: servers and data in throwaway folders, a fresh region for every round, and the product driven by its commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import boto3
import psycopg
from botocore.config import Config

from tests.bench.measure import Memory, cpu_seconds
from tests.crash.machine import Machine, wait_for
from tests.servers.postgres import PostgresServer
from tests.servers.process import REPOSITORY
from tests.servers.swift import SwiftServer

MiB = 1 << 20
PREFIX = "cloudstorage-bench-"
EXPORT = "filer.example:/export"


# A shell that waits on a pipe held by us: when we end, however we end, it kills what has the first folder's name in its
# environment, as workers and peers do, and removes the folders. Servers have such a shell of their own.
_GUARD = """
trap '' INT TERM HUP
read -r _
while pids=$(grep -lsF -- "$1" /proc/[0-9]*/environ | cut -d/ -f3); [ -n "$pids" ]; do
    kill -KILL $pids 2>/dev/null
    sleep 0.1
done
for try in 1 2 3 4 5 6 7 8 9; do
    rm -rf -- "$@" 2>/dev/null && break
    sleep 0.5
done
"""


@contextmanager
def cleaned_up(*folders: Path) -> Iterator[None]:
    """Afterwards, even when this process was killed, the folders are gone, and so is whoever knew the first of them."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", *map(str, folders)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0
    )
    assert guard.stdin is not None
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait()


@dataclass(frozen=True)
class Dataset:
    """Files on an export in the product's layout, which peers copy as they lie there."""

    name: str
    export: Path
    files: int
    size: int

    @property
    def mib(self) -> float:
        return self.size / MiB


@dataclass(frozen=True)
class Run:
    """What one side did in one round."""

    seconds: float
    cpu: float
    proof: str = ""
    database_cpu: float = 0.0
    peak: int = 0


class Bench:
    """PostgreSQL with fsync on the disk, Swift with its device on a RAM disk, and the data sets; all gone at the end."""

    def __init__(self, *, swift: SwiftServer | None = None, postgres: PostgresServer | None = None) -> None:
        """Servers that are given are used as they are, and never wiped."""
        self._given = (swift, postgres)
        self._templates: dict[str, str] = {}

    def __enter__(self) -> Self:
        swift, postgres = self._given
        with ExitStack() as stack:
            self.folder, memory = self._throwaway(None), self._throwaway("/dev/shm")
            stack.enter_context(cleaned_up(self.folder, memory))
            self.data = self.folder / "data"
            self.swift = swift or stack.enter_context(SwiftServer(memory / "swift", workers=2))
            self.postgres = postgres or stack.enter_context(PostgresServer(self.folder / "postgres", durable=True))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _throwaway(place: str | None) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        folder.chmod(0o711)  # PostgreSQL's own user goes through it
        return folder

    # --- data --------------------------------------------------------------------------------------------------------------

    def dataset(self, name: str, count: int, size: int, *, data_every: int = 1) -> Dataset:
        """`count` files of `size` random bytes, made once; `data_every`: of so many MiB only the first is data, the rest holes."""
        export = self.folder / "exports" / name
        if not export.exists():
            for number in range(1, count + 1):
                path = export / "volumes" / "2" / str(number) / f"{uuid.uuid4()}.raw"
                path.parent.mkdir(parents=True)
                with path.open("wb") as file:
                    for offset in range(0, size, MiB * data_every):
                        file.seek(offset)
                        file.write(os.urandom(min(MiB, size - offset)))
                    file.truncate(size)
        return Dataset(name, export, count, count * size)

    def forget(self, dataset: Dataset) -> None:
        """Give its space back."""
        shutil.rmtree(dataset.export)

    # --- the object store --------------------------------------------------------------------------------------------------

    def s3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.swift.s3_url,
            aws_access_key_id=self.swift.access_key,
            aws_secret_access_key=self.swift.secret_key,
            region_name=self.swift.region,
            config=Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required"),
        )

    def new_bucket(self) -> str:
        name = f"bench-{uuid.uuid4().hex[:12]}"
        self.s3().create_bucket(Bucket=name)
        return name

    def stored(self, bucket: str, part: str) -> tuple[int, int]:
        """Objects and bytes whose key holds `part`: whoever copied less was not faster."""
        pages = self.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        sizes = [entry["Size"] for page in pages for entry in page.get("Contents", []) if part in entry["Key"]]
        return len(sizes), sum(sizes)

    def wipe(self) -> None:
        """Empty the RAM disk between two runs; nobody speaks to the server now, and buckets are never used twice."""
        if self._given[0] is None:
            shutil.rmtree(self.swift.directory / "devices" / "d1" / "objects", ignore_errors=True)

    # --- databases ---------------------------------------------------------------------------------------------------------

    def sql(self, statement: str) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def clone(self, template: str) -> str:
        """A new database like another; its name."""
        name = f"bench_{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop(self, name: str) -> None:
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def template(self, name: str, prepare: Callable[[Control], None], *, base: str = "", **environment: str) -> str:
        """A database that `prepare` has filled once, to be cloned: by default one with the product's tables."""
        if name not in self._templates:
            made = self.clone(base) if base else f"bench_{uuid.uuid4().hex[:12]}"
            if not base:
                self.sql(f"CREATE DATABASE {made}")
            with self.control(self.postgres.database_url(made), **environment) as control:
                prepare(control)
            self._templates[name] = made
        return self._templates[name]

    def migrated(self) -> str:
        """A database with the product's tables, the installation's identity, and nothing else."""
        return self.template("migrated", lambda control: control.call("tests.bench.control:migrate"))

    def environment(self, database: str, **more: str) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "cloudstorage.settings",
            "DATABASE_URL": database,
            "CLOUDSTORAGE_DATA_DIR": str(self.data),
            "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
            "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK": "true",
            **more,
        }

    def control(self, database: str, **more: str) -> Control:
        self.data.mkdir(exist_ok=True)
        return Control(self.environment(database, **more), self.folder / "control.log")

    def postgres_pid(self) -> int:
        return int((self.postgres.directory / "data" / "postmaster.pid").read_text().split()[0])


class Control:
    """A warm process of ours that runs what it is told, so that a command's start-up is not taken for its work."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.control"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=REPOSITORY,
                env=os.environ | environment,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, function: str, *arguments: Any) -> Any:
        """What `module:function` returns there; RuntimeError when it raises."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it died"}
        if "error" in answer:
            tail = self._log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{function}{tuple(arguments)}: {answer['error']}\n{tail}")
        return answer["told"]

    def command(self, name: str, *arguments: str) -> Any:
        """`manage.py name arguments`."""
        return self.call("tests.bench.control:command", name, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if error is not None:
            self._process.kill()  # it may be busy with what nobody waits for any more
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@dataclass(frozen=True)
class Target:
    """An object store as `use_object_store` takes it, and the bucket or container in which it keeps everything."""

    bucket: str
    arguments: tuple[str, ...]


def s3_target(bench: Bench, endpoint: str = "") -> Target:
    bucket = bench.new_bucket()
    host = (endpoint or bench.swift.s3_url).removeprefix("http://").rstrip("/")
    details = {"accesskey": bench.swift.access_key, "bucket": bucket, "endpoint": host, "usehttps": "false"}
    return Target(bucket, ("--provider", "S3", *_details(details), "--secret-env", "secretkey=BENCH_SECRET"))


def swift_target(bench: Bench) -> Target:
    bucket = bench.new_bucket()
    details = {"username": bench.swift.username, "container": bucket}
    place = ("--provider", "Swift", "--url", bench.swift.auth_url)
    return Target(bucket, (*place, *_details(details), "--secret-env", "key=BENCH_SECRET"))


def _details(details: dict[str, str]) -> list[str]:
    return [word for name, value in details.items() for word in ("--detail", f"{name}={value}")]


@contextmanager
def converted_region(
    bench: Bench, dataset: Dataset, target: Target, *, plan: tuple[str, ...] = (), **more: str
) -> Iterator[tuple[str, dict[str, str], Control]]:
    """A region that adopted the data set and was converted and planned: its database's url, its environment, its control."""
    more = {"CLOUDSTORAGE_NFS_MOUNTS": f"{EXPORT}={dataset.export}", "BENCH_SECRET": bench.swift.secret_key, **more}
    scanned = bench.template(
        f"scanned-{dataset.name}", lambda control: control.call("tests.bench.control:adopt"), base=bench.migrated(), **more
    )
    name = bench.clone(scanned)
    database = bench.postgres.database_url(name)
    try:
        with bench.control(database, **more) as control:
            control.call("tests.bench.control:say_that_a_worker_reaches_all")
            control.command("use_object_store", "--name", "objects", *target.arguments, "--preflight-only")
            control.command("use_object_store", "--name", "objects", *target.arguments, "--yes")
            control.command("migration_plan", *plan)
            control.call("tests.bench.control:let_that_worker_go")
            yield database, bench.environment(database, **more), control
    finally:
        bench.drop(name)


@contextmanager
def workers_up(bench: Bench, database: str, environment: dict[str, str], count: int = 1) -> Iterator[list[Machine]]:
    """`manage.py worker`, so many times, reaching both stores, their queues waiting."""
    processes = int(environment.get("CLOUDSTORAGE_QUEUE_WORKERS", "2"))
    with psycopg.connect(database, autocommit=True) as connection:
        reach = "SELECT count(*) FROM stores_workerreach r JOIN stores_worker w ON w.id = worker_id WHERE ok AND stopped IS NULL"
        machines = [start_worker(bench, environment) for _ in range(count)]
        try:
            wait_for(lambda: scalar(connection, reach) == 2 * count, "the workers to reach both stores", *machines)
            for machine in machines:
                wait_for(lambda machine=machine: queue_is_up(machine, processes), "its queue", machine)  # type: ignore[misc]
            yield machines
        finally:
            for machine in machines:
                machine.kill_all()


def start_worker(bench: Bench, environment: dict[str, str]) -> Machine:
    return Machine.worker(environment, bench.folder / f"worker{uuid.uuid4().hex[:6]}.log")


def queue_is_up(machine: Machine, processes: int) -> bool:
    """Its cluster's guard has started the workers, the monitor and the pusher."""
    return any(
        len(machine.children(guard)) >= processes + 2
        for cluster in machine.children(machine.pid)
        for guard in machine.children(cluster)
    )


def scalar(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()  # type: ignore[call-overload]
    assert row is not None
    return row[0]


REFS = "volume_store_ref r JOIN image_store s ON s.id = r.store_id WHERE s.scope = 'REGION'"


def drain(
    bench: Bench, database: str, control: Control, machines: list[Machine], *, memory: bool = False, seconds: float = 900
) -> Run:
    """From `migration_start` to the last Ready ref."""
    roots = [control.pid, *(machine.pid for machine in machines)]
    with psycopg.connect(database, autocommit=True) as connection, ExitStack() as stack:
        watch = stack.enter_context(Memory(lambda: [machine.pid for machine in machines])) if memory else None
        cpu, database_cpu = cpu_seconds(roots), cpu_seconds([bench.postgres_pid()])
        started = looked = time.monotonic()
        control.command("migration_start")
        while scalar(connection, f"SELECT EXISTS (SELECT FROM {REFS} AND r.state <> 'Ready')"):
            time.sleep(0.04)
            if time.monotonic() - looked > 1:  # what the bench asks uses the cores and the database, too
                looked = time.monotonic()
                refuse_failures(connection, machines, looked - started > seconds)
        elapsed = time.monotonic() - started
        used = cpu_seconds(roots) - cpu
        database_used = cpu_seconds([bench.postgres_pid()]) - database_cpu
        proofs = connection.execute(f"SELECT DISTINCT r.proof FROM {REFS} ORDER BY 1").fetchall()  # type: ignore[call-overload]
        stack.close()
        return Run(elapsed, used, " and ".join(proof for (proof,) in proofs), database_used, watch.peak if watch else 0)


def refuse_failures(connection: psycopg.Connection[Any], machines: list[Machine], late: bool) -> None:
    """RuntimeError with the workers' logs when a copy failed, the drain was paused, or it is `late`."""
    failed = connection.execute("SELECT error FROM stores_transfer WHERE state = 'Failed' LIMIT 1").fetchone()
    stopped = connection.execute("SELECT note FROM migration_drain WHERE state = 'Paused'").fetchone()
    if failed or stopped or late:
        logs = "\n".join(machine.tail() for machine in machines)
        raise RuntimeError(f"the drain went wrong: {failed or stopped or 'it ended too late, or too early'}\n{logs}")
