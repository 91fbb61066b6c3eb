"""Databases with every table and no row of ours: migrated once, then copied, for the steps of all migrations take seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.postgres import PostgresServer
from tests.servers.process import REPOSITORY

_TEMPLATE = "migrated"


class MigratedDatabases:
    """Makes them for programs that run on a database of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: set[int] = set()
        """Ports of those that have the template."""

    def sqlite(self, path: Path) -> str:
        """One in a file; its url."""
        template = self._folder / "migrated.sqlite3"
        if not template.exists():
            self._migrate(f"sqlite:///{template}")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(template, path)
        return f"sqlite:///{path}"

    def postgres(self, server: PostgresServer, name: str) -> str:
        """One on the server; its url."""
        if server.port not in self._servers:
            self._migrate(server.create_database(_TEMPLATE))
            self._servers.add(server.port)
        return server.create_database(name, template=_TEMPLATE)

    def _migrate(self, url: str) -> None:
        environment = {"DATABASE_URL": url, "CLOUDSTORAGE_DATA_DIR": str(self._folder), "CLOUDSTORAGE_LOG_LEVEL": "WARNING"}
        command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
        subprocess.run(command, cwd=REPOSITORY, env=os.environ | environment, check=True)
