"""A real PostgreSQL on loopback, run as a user other than root."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from tests.servers.process import ProcessGroup, ServerError, free_ports, port_is_free


def program(name: str) -> str:
    """The path of one of them. Debian keeps the server's programs outside PATH, one folder per major version; the newest is taken."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise ServerError(f"PostgreSQL's program {name} is missing: run `make setup` (Debian package postgresql)")
    return found


def _server_user() -> str | None:
    """PostgreSQL refuses to run as root; None when we are not."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise ServerError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")


class PostgresServer:
    """One cluster in one directory, database `cloudstorage`, password-less on loopback TCP only."""

    user, database = "cloudstorage", "cloudstorage"

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        """`durable=False` switches fsync off: faster, and still safe when only the process is killed."""
        self.directory = directory.resolve()
        self._durable = durable
        self._port = 0
        self._group = ProcessGroup("PostgreSQL", self.directory / "log")

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        """For DATABASE_URL."""
        return self.database_url(self.database)

    def database_url(self, database: str) -> str:
        return f"postgres://{self.user}@127.0.0.1:{self._port}/{database}"

    @property
    def running(self) -> bool:
        return self._group.running

    def start(self, timeout: float = 120) -> Self:
        """Start; the first start on a directory makes the cluster. ServerError with the log's end when it fails."""
        user, data = _server_user(), self.directory / "data"
        self.directory.mkdir(parents=True, exist_ok=True)
        if user is not None:
            self._require_reachable(user)
            data.mkdir(mode=0o700, exist_ok=True)
            shutil.chown(data, user, user)
        fresh = not (data / "PG_VERSION").exists()
        if fresh:
            # As most installations have it: what is compared with a listing must be asked for in byte order by name.
            order = ["--encoding=UTF8", "--locale=C", "--locale-provider=icu", "--icu-locale=en-US"]
            self._run(["initdb", f"--pgdata={data}", "--auth=trust", f"--username={self.user}", *order, "--no-sync"], user)
        if not self._port or not port_is_free(self._port):
            (self._port,) = free_ports(1)
        settings = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 100,
            "shared_buffers": "64MB",
        }
        if not self._durable:
            # synchronous_commit stays on: without it a kill of the server, not only of the machine, loses commits.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._group.start("postgres", [program("postgres"), "-D", str(data), *options], user=user)
        try:
            self._group.wait_until(self._is_ready, "PostgreSQL takes connections", timeout)
            if fresh:
                self.create_database(self.database)
        except BaseException:
            self.kill()
            raise
        return self

    def create_database(self, name: str, *, template: str = "") -> str:
        """Make one more database, empty or as another that nobody is connected to; its url."""
        self._run(["createdb", *self._address(), *([f"--template={template}"] if template else []), name], None)
        return self.database_url(name)

    def stop(self) -> None:
        """Fast shutdown: running transactions are rolled back."""
        self._group.stop(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL; the next start recovers."""
        self._group.kill()

    def freeze(self) -> None:
        """SIGSTOP of the postmaster: no new connection is served, open ones go on."""
        self._group.freeze()

    def thaw(self) -> None:
        self._group.thaw()

    def __enter__(self) -> Self:
        return self.start() if not self.running else self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _address(self) -> list[str]:
        return ["--host=127.0.0.1", f"--port={self._port}", f"--username={self.user}", "--no-password"]

    def _is_ready(self) -> bool:
        command = [program("pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={self._port}"]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, command: list[str], user: str | None) -> None:
        done = subprocess.run(
            [program(command[0]), *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd="/",
        )
        if done.returncode:
            raise ServerError(f"PostgreSQL: {command[0]} failed ({done.returncode}):\n{done.stderr[-4000:]}")

    def _require_reachable(self, user: str) -> None:
        check = subprocess.run(["test", "-x", str(self.directory)], user=user, group=user, extra_groups=[], cwd="/", check=False)
        if check.returncode:
            raise ServerError(
                f"PostgreSQL runs as {user}, not as {getpass.getuser()}, and {user} may not enter {self.directory}: "
                "choose a directory whose parents everyone may enter (mode 711)"
            )
