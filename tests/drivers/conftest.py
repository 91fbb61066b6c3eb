"""The table of stores that the contract suite runs on: one entry per kind of store, each giving a fresh one per test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from stores.drivers.base import DriverEnvironment, PartSource, StoreConfig, StoreDriver, Upload
from stores.drivers.probe import facts_of
from tests.drivers import s3_cases, swift_cases

CLOUD = "5b0a9bd6-3f7e-4a3a-9d6a-4a2e2f3c1d10"
KiB = 1024


@contextlib.contextmanager
def _impossible() -> Iterator[None]:
    raise AssertionError("this store cannot be made to corrupt bytes on the wire")
    yield


@dataclass
class DriverCase:
    """A store that holds nothing but our marker, and the ways to disturb it."""

    driver_class: type[StoreDriver]
    config: StoreConfig
    stop: Callable[[], object]
    start: Callable[[], object]
    part_size: int = 64 * KiB
    wrong_details: Mapping[str, str] | None = None
    """Credentials that the store refuses; None where it has none."""
    lacks: frozenset[str] = frozenset()
    """What its server or protocol does not have: "tokens of pending uploads", "refusing wrong credentials", "telling that an
    upload is gone"."""
    corrupting: Callable[[], contextlib.AbstractContextManager[None]] = _impossible
    """While it lasts, the bytes of `CORRUPTED` are changed on their way to the server."""
    small_pages: Callable[[StoreDriver, int], None] = lambda driver, size: None
    drivers: list[StoreDriver] = field(default_factory=list)

    def connect(self, **changes: Any) -> StoreDriver:
        """A new driver instance, as another process would make it."""
        driver = self.driver_class(replace(self.config, **changes))
        self.drivers.append(driver)
        return driver

    def prepare(self) -> None:
        """Probe and claim the store, as adding it does; later drivers know the facts."""
        if not self.config.facts:
            steps = list(self.connect().probe())
            bad = [step for step in steps if step.status == "blocker"]
            assert not bad, f"the probe refuses the store: {bad}"
            self.config = replace(self.config, facts=facts_of(steps))
        self.connect().claim()


CORRUPTED = b"these bytes are changed on the wire"


class Streamed(PartSource):
    """A part that is not held, but given out in blocks for each attempt; `fails` instead of giving the last one."""

    def __init__(self, driver: StoreDriver, data: bytes, *, fails: Exception | None = None) -> None:
        digest = driver.part_digest()
        digest.update(data)
        self.digest = digest.hexdigest()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.readings = 0
        self._data = data
        self._fails = fails

    def __len__(self) -> int:
        return len(self._data)

    def blocks(self) -> Iterator[bytes]:
        self.readings += 1
        block = max(1, len(self._data) // 3)
        for at in range(0, len(self._data), block):
            if self._fails is not None and at + block >= len(self._data):
                raise self._fails
            yield self._data[at : at + block]


def as_kept(upload: Upload) -> Upload:
    """An upload as it comes back from a database row."""
    return Upload(**json.loads(json.dumps(asdict(upload))))


def new_config(url: str, details: Mapping[str, str] | None = None, **environment: Any) -> StoreConfig:
    return StoreConfig(url, details or {}, str(uuid.uuid4()), CLOUD, environment=DriverEnvironment(**environment))


# --- the table ---------------------------------------------------------------------------------------------------------


def memory(request: pytest.FixtureRequest) -> Iterator[DriverCase]:
    from tests.fakes.memory import MemoryDriver, server_at

    config = new_config(f"memory://{uuid.uuid4()}")
    server = server_at(config.url)

    @contextlib.contextmanager
    def corrupting() -> Iterator[None]:
        server.corrupt = lambda data: data.replace(CORRUPTED, CORRUPTED[::-1])
        yield
        server.corrupt = None

    yield DriverCase(
        MemoryDriver,
        config,
        stop=lambda: setattr(server, "available", False),
        start=lambda: setattr(server, "available", True),
        wrong_details={"password": "wrong"},
        corrupting=corrupting,
    )


def nfs(request: pytest.FixtureRequest) -> Iterator[DriverCase]:
    from stores.drivers.nfs import NFSDriver

    export = request.getfixturevalue("tmp_path") / "export"
    away = export.with_name("away")
    export.mkdir()
    yield DriverCase(
        NFSDriver,
        new_config(f"nfs://localhost{export}", allow_plain_exports=True),
        stop=lambda: export.rename(away),
        start=lambda: away.rename(export),
    )


def nfs_on_bindfs(request: pytest.FixtureRequest) -> Iterator[DriverCase]:
    from stores.drivers.nfs import NFSDriver

    mount = request.getfixturevalue("bind_mount")
    config = new_config("nfs://filer.example/export", mounts={"filer.example:/export": str(mount.mountpoint)})
    yield DriverCase(NFSDriver, config, stop=mount.unmount, start=mount.mount)


CASES = {
    "memory": (memory, pytest.mark.unit),
    "nfs": (nfs, pytest.mark.unit),
    "nfs-bindfs": (nfs_on_bindfs, pytest.mark.live),
    "s3-moto": (s3_cases.on_moto, pytest.mark.live),
    "s3-swift": (s3_cases.on_swift, pytest.mark.live),
    "swift": (swift_cases.on_swift, pytest.mark.live),
}


_facts: dict[str, Mapping[str, object]] = {}
"""What the first probe of each case found: probing for every test would take most of the suite's time."""


@pytest.fixture(params=[pytest.param(name, marks=mark) for name, (_, mark) in CASES.items()])
def case(request: pytest.FixtureRequest) -> Iterator[DriverCase]:
    """A fresh store of each kind, probed and claimed."""
    make, _ = CASES[request.param]
    with contextlib.contextmanager(make)(request) as found:
        found.config = replace(found.config, facts=_facts.get(request.param, found.config.facts))
        found.prepare()
        _facts[request.param] = found.config.facts
        yield found
        for driver in found.drivers:
            driver.close()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An empty folder to be used as an export."""
    folder = tmp_path / "export"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the export that nothing may ever touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture
def export_config(export: Path) -> StoreConfig:
    return new_config(f"nfs://localhost{export}", allow_plain_exports=True)


@pytest.fixture
def driver(case: DriverCase) -> StoreDriver:
    return case.connect()
