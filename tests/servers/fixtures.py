"""pytest fixtures of the real servers: each starts when the first test asks for it, once per run, and ends with the run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.servers.keystone import KeystoneServer
from tests.servers.migrated import MigratedDatabases
from tests.servers.moto import MotoServer
from tests.servers.mounts import BindMount
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import LoggingHttpProxy, TcpProxy
from tests.servers.swift import SwiftServer

Proxy = TypeVar("Proxy", TcpProxy, LoggingHttpProxy)


Server = TypeVar("Server", SwiftServer, KeystoneServer)


@contextmanager
def until_killed(server: Server) -> Iterator[Server]:
    """Started, and not asked to end: they wait for connections that clients keep open, and what they hold is thrown away."""
    try:
        yield server.start()
    finally:
        server.kill()


@dataclass(frozen=True)
class KeystoneSwift:
    """A Keystone, and the Swift that believes it."""

    keystone: KeystoneServer
    swift: SwiftServer


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """Throwaway folder of the run's servers; PostgreSQL's own user may enter it, unlike pytest's temporary folders."""
    directory = Path(tempfile.mkdtemp(prefix="cloudstorage-servers-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def swift_server(server_directory: Path) -> Iterator[SwiftServer]:
    """Swift with auth v1 and S3. Whoever stops, kills or freezes it starts it again."""
    with until_killed(SwiftServer(server_directory / "swift")) as server:
        yield server


@pytest.fixture(scope="session")
def keystone_swift(server_directory: Path) -> Iterator[KeystoneSwift]:
    """Keystone and a second Swift of its own behind it."""
    with (
        until_killed(KeystoneServer(server_directory / "keystone")) as keystone,
        until_killed(SwiftServer(server_directory / "keystone-swift", keystone=keystone)) as swift,
    ):
        yield KeystoneSwift(keystone, swift)


@pytest.fixture(scope="session")
def postgres_server(server_directory: Path) -> Iterator[PostgresServer]:
    with PostgresServer(server_directory / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def migrated(server_directory: Path) -> MigratedDatabases:
    folder = server_directory / "migrated"
    folder.mkdir()
    return MigratedDatabases(folder)


@pytest.fixture(scope="session")
def moto_server(server_directory: Path) -> Iterator[MotoServer]:
    with MotoServer(server_directory / "moto") as server:
        yield server


@pytest.fixture
def bind_mount(tmp_path: Path) -> Iterator[BindMount]:
    """An empty folder `tmp_path/source`, mounted at `tmp_path/mount`."""
    source = tmp_path / "source"
    source.mkdir()
    with BindMount(source, tmp_path / "mount") as mount:
        yield mount


@pytest.fixture
def tcp_proxy() -> Iterator[Callable[[str], TcpProxy]]:
    """Makes proxies: `proxy = tcp_proxy(server.s3_url)`; they end with the test."""
    yield from _proxies(TcpProxy)


@pytest.fixture
def http_proxy() -> Iterator[Callable[[str], LoggingHttpProxy]]:
    """Makes proxies: `proxy = http_proxy(server.s3_url)`; they end with the test."""
    yield from _proxies(LoggingHttpProxy)


def _proxies(kind: type[Proxy]) -> Iterator[Callable[[str], Proxy]]:
    made: list[Proxy] = []

    def make(upstream: str) -> Proxy:
        made.append(kind(upstream).start())
        return made[-1]

    try:
        yield make
    finally:
        for proxy in made:
            proxy.stop()
