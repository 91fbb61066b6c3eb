"""The place where the runbook is carried out: its blocks as the document has them, one host's services, and the servers behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

import boto3
import psycopg
from botocore.config import Config

from tests.crash.machine import Machine, wait_for
from tests.runbook.shell import Done, Shell
from tests.servers.postgres import PostgresServer
from tests.servers.postgres import program as postgres_program
from tests.servers.process import REPOSITORY, free_ports
from tests.servers.proxy import LoggingHttpProxy
from tests.servers.swift import SwiftServer

DOCUMENTS = REPOSITORY / "docs"
HOST = "storage.example.org"
BUCKET = "runbook"
ROLE = "runbook"
"""A role that may do nothing more than own its database, which is named as it is."""
CREATE = "createdb --owner cloudstorage cloudstorage"
OF_THIS_MACHINE = {
    # What differs from a host of the example: no mount, a server on loopback, nobody who waits for minutes, and no hypervisor of
    # those raw volumes (CloudStack's Ovm) that would need a staging store in its zone.
    "CLOUDSTORAGE_DIRECT_HYPERVISORS": "Ovm",
    "CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS": "true",
    "CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK": "true",
    "CLOUDSTORAGE_LEASE_SECONDS": "4",
    "CLOUDSTORAGE_HEARTBEAT_SECONDS": "0.5",
}


@dataclass(frozen=True)
class Block:
    """Commands that the document shows together."""

    heading: str
    number: int
    lines: tuple[str, ...]
    shown: tuple[str, ...] = ()
    """Of what they say, in their order; … stands for anything."""

    def is_said(self, text: str) -> bool:
        """Whether that was said."""
        expected = ".*".join(re.escape(line).replace("…", "[^\n]*") for line in self.shown)
        return re.search(expected, text, re.DOTALL) is not None


@cache
def blocks() -> tuple[Block, ...]:
    """Every block of commands of the runbook, in its order; a number counts below one heading."""
    found: list[Block] = []
    heading = ""
    shape = r"^#+ (?P<heading>[^\n]+)$|^```sh\n(?P<block>.*?)^```(?:\n\n```text\n(?P<shown>.*?)^```)?"
    pattern = re.compile(shape, re.DOTALL | re.MULTILINE)
    for match in pattern.finditer((DOCUMENTS / "operations.md").read_text()):
        if match["heading"]:
            heading = match["heading"]
        else:
            number = 1 + sum(block.heading == heading for block in found)
            shown = tuple((match["shown"] or "").splitlines())
            found.append(Block(heading, number, tuple(match["block"].splitlines()), shown))
    return tuple(found)


class Site:
    """One host with PostgreSQL and a bucket. `words` says what stands here for what the document names."""

    def __init__(self, folder: Path, postgres: PostgresServer, swift: SwiftServer, proxy: LoggingHttpProxy) -> None:
        self.folder, self.swift, self.proxy = folder, swift, proxy
        self.export = folder / "export"
        for name in ("export", "data", "backup", "keys"):
            (folder / name).mkdir(parents=True)
        (self.port,) = free_ports(1)
        self._postgres = postgres
        url = f"postgres://{ROLE}@127.0.0.1:{postgres.port}/{ROLE}"
        (folder / "keys" / "s3").write_text(swift.secret_key)
        (folder / "keys" / "s3-new").write_text(swift.second_secret_key)
        (folder / "passphrase").write_text("correct horse battery staple\n")
        self.words = {
            "s3.example.org": proxy.url.removeprefix("http://") + " --detail usehttps=false",
            "bucket=secondary": f"bucket={BUCKET}",
            "AKEXAMPLE": swift.access_key,
            "AKROTATED": swift.second_access_key,
            "/run/keys/": f"{folder / 'keys'}/",
            "/etc/cloudstorage.passphrase": str(folder / "passphrase"),
            "/backup/": f"{folder / 'backup'}/",
            "/var/lib/cloudstorage": str(folder / "data"),
            "/opt/cloudstorage/.venv/bin/python": sys.executable,
            "install -o cloudstorage": "install",
            "--pwprompt cloudstorage": f"--pwprompt {ROLE}",
            CREATE: f"createdb --owner {ROLE} {ROLE}",
            "127.0.0.1:8000": f"127.0.0.1:{self.port}",
        }
        self._environment = self._example_environment(url) | OF_THIS_MACHINE
        self._environment["CLOUDSTORAGE_NFS_MOUNTS"] = f"filer:/export/secondary={self.export}"
        self._services: dict[str, Machine] = {}
        self.left = list(blocks())
        self.shell = Shell(self._environment)
        self.s3 = boto3.client(
            "s3",
            endpoint_url=swift.s3_url,
            aws_access_key_id=swift.access_key,
            aws_secret_access_key=swift.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required"),
        )
        self.s3.create_bucket(Bucket=BUCKET)

    def _example_environment(self, database: str) -> dict[str, str]:
        """The example of /etc/cloudstorage.env with the secrets of this host."""
        lines = (DOCUMENTS / "deploy" / "cloudstorage.env").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        given = {name: self.here(value) for name, value in given.items()}
        secret = "a-secret-of-this-host-that-is-long-enough-and-has-4711-in-it"
        return given | {"DATABASE_URL": database, "SECRET_KEY": secret, "CLOUDSTORAGE_QUEUE_SECRET_KEY": secret[::-1]}

    def here(self, text: str) -> str:
        """What the document says, with this machine's places and secrets."""
        words = sorted(self.words, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, words)), lambda found: self.words[found[0]], text)

    def __enter__(self) -> Self:
        self.shell.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self._services.values():
            machine.kill_all()
        self.shell.__exit__()

    # --- carrying the document out -----------------------------------------------------------------------------------------

    def follow(
        self, heading: str, number: int = 1, *, codes: Mapping[str, int | None] | None = None, typed: str = ""
    ) -> list[Done]:
        """Carry one block out; every command of ours ends with 0, or as `codes` says of those that begin so (None: as it may)."""
        (block,) = [block for block in blocks() if (block.heading, block.number) == (heading, number)]
        self.left = [other for other in self.left if other != block]
        expected = dict(codes or {})
        told = []
        for line in block.lines:
            began = time.monotonic()
            done = self.do(line, typed=typed)
            print(f"{time.monotonic() - began:5.1f} s  {line}")
            wanted = [code for start, code in expected.items() if line.startswith(f"manage.py {start}")]
            assert done.code == (wanted[0] if wanted else 0) or None in wanted, (
                f"{line}\nended with {done.code}:\n{done.said}\n{self.logs()}"
            )
            told.append(done)
        said = "".join(done.said for done in told)
        assert block.is_said(said), f"{block.shown} is not what it said:\n{said}"
        return told

    def do(self, line: str, *, typed: str = "") -> Done:
        """One line of the document."""
        program, *rest = line.split(" ", 1)
        if program == "systemctl":
            return self._systemctl(rest[0].split())
        if program == "manage.py":
            spelled = subprocess.run(["bash", "-c", f'printf "%s\\0" {self.here(rest[0])}'], capture_output=True, check=True)
            return self.shell.manage(spelled.stdout.decode().split("\0")[:-1], typed=typed)
        by = {"PGHOST": "127.0.0.1", "PGPORT": str(self._postgres.port), "PGUSER": self._postgres.user}
        by["PATH"] = f"{Path(postgres_program('createdb')).parent}:{os.environ['PATH']}"
        # Without a terminal, what asks for a password takes it from here.
        given: dict[str, Any] = {"input": typed, "env": os.environ | by, "start_new_session": True}
        done = subprocess.run(["bash", "-c", self.here(line)], capture_output=True, text=True, check=False, **given)
        return Done(done.returncode, done.stdout + done.stderr)

    def manage(self, line: str) -> Any:
        """What a command tells in JSON."""
        done = self.shell.manage([*shlex.split(line), "--json"])
        assert done.code in {0, 4, 6}, done.said
        return json.loads(done.said.splitlines()[-1])

    # --- services ----------------------------------------------------------------------------------------------------------

    def _systemctl(self, words: list[str]) -> Done:
        """Starts the very command line of the shipped unit, with the environment that it names."""
        verb, *units = [word for word in words if not word.startswith("--")]
        for unit in units:
            if verb in {"stop", "restart"}:
                self._services.pop(unit).kill_all()
            if verb in {"enable", "start", "restart"}:
                self._start(unit)
        return Done(0, "")

    def _start(self, unit: str) -> None:
        said = (DOCUMENTS / "deploy" / f"{unit}.service").read_text()
        facts = dict(line.split("=", 1) for line in said.splitlines() if "=" in line and not line.startswith("#"))
        assert (facts["EnvironmentFile"], facts["WorkingDirectory"]) == ("/etc/cloudstorage.env", "/opt/cloudstorage")
        program, *arguments = shlex.split(self.here(facts["ExecStart"]))
        if program != sys.executable:
            arguments = ["-m", Path(program).name, *arguments]
        self._services[unit] = Machine(arguments, self._environment, self.folder / f"{unit}.log")
        machine = self._services[unit]
        ready = self._answers if unit == "cloudstorage-web" else lambda: self._has_looked(machine.pid)
        wait_for(ready, unit, machine)

    def _has_looked(self, pid: int) -> bool:
        """Whether this worker has tried to reach every store."""
        known = f"SELECT 1 FROM stores_worker WHERE pid = {pid}"
        tried = f"SELECT store_id FROM stores_workerreach r JOIN stores_worker w ON w.id = r.worker_id WHERE w.pid = {pid}"
        new = f"SELECT 1 FROM image_store WHERE state = 'Attached' AND id NOT IN ({tried})"
        return bool(self.query(known)) and not self.query(new)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("/login/", token="").status)
        except OSError:
            return False

    def lose_worker(self) -> None:
        """Its host loses power."""
        self._services.pop("cloudstorage-worker").kill_all()

    def logs(self) -> str:
        told = [f"--- {name}\n{machine.tail()[-3000:]}" for name, machine in self._services.items()]
        unproven = "SELECT id, state, attempts, lease_until, next_attempt_at, now(), error_cause FROM stores_transfer"
        with contextlib.suppress(psycopg.Error):  # it may be the database that is lost
            told += map(str, self.query(f"{unproven} WHERE state <> 'Proven'") + self.query("SELECT * FROM stores_workerreach"))
        return "\n".join(told)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        print(f"{wait_for(condition, what, *self._services.values(), seconds=60):5.1f} s  until {what}")

    def lose_database(self) -> None:
        """It is gone with all that was in it; an empty one takes its place."""
        with psycopg.connect(self._postgres.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {ROLE} WITH (FORCE)")
        assert self.do(CREATE).code == 0

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The database, without the product."""
        with psycopg.connect(self._environment["DATABASE_URL"]) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]  # a test's own text

    def change(self, sql: str) -> None:
        """What only time would change."""
        with psycopg.connect(self._environment["DATABASE_URL"]) as connection:
            connection.execute(sql)  # type: ignore[call-overload]  # a test's own text

    # --- looking, without the product --------------------------------------------------------------------------------------

    def ask(self, path: str, *, token: str, method: str = "GET", body: bytes | None = None) -> Any:
        """A request as the TLS proxy of the example hands it on."""
        headers = {"Host": HOST, "X-Forwarded-Proto": "https", "Content-Type": "application/octet-stream"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        return urllib.request.urlopen(request, timeout=20)

    def on_export(self) -> set[str]:
        """SHA-256 of every file of an item on the export."""
        files = [path for path in (self.export / "volumes").rglob("*") if path.is_file()]
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def in_bucket(self) -> set[str]:
        """SHA-256 of every object of an item."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="volumes/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {hashlib.sha256(self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()).hexdigest() for key in keys}

    def window(self, *, opened: bool) -> None:
        """Make the night of the document one that is, or is not, now."""
        hour = datetime.now(ZoneInfo(self._environment["CLOUDSTORAGE_TIME_ZONE"])).hour
        begin, end = (hour - 1, hour + 2) if opened else (hour + 6, hour + 8)
        self.words["20:00-06:00"] = f"{begin % 24:02}:00-{end % 24:02}:00"
