"""An export whose mount is taken away, dies, hangs or comes back as another: nothing reads as empty, nothing counts as deleted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from stores.drivers import mounts
from stores.drivers.base import MARKER_KEY, MiB, StoreConfig
from stores.drivers.errors import AccessDenied, NotFound, Unavailable
from stores.drivers.nfs import NFSDriver
from tests.drivers.conftest import new_config
from tests.drivers.exports import KEY, begin, every_use, keys, put
from tests.servers.mounts import BindMount

pytestmark = pytest.mark.live


@pytest.fixture
def config(bind_mount: BindMount) -> StoreConfig:
    return new_config("nfs://filer.example/export", mounts={"filer.example:/export": str(bind_mount.mountpoint)})


@pytest.fixture
def driver(config: StoreConfig) -> NFSDriver:
    driver = NFSDriver(config)
    driver.claim()
    put(driver, KEY)
    put(driver, "volumes/1/1/v")
    return driver


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[NFSDriver]:
    """Another store, which has nothing to do with the mount."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = NFSDriver(new_config(f"nfs://localhost{folder}", allow_plain_exports=True))
    other.claim()
    yield other
    other.close()


LOST = {
    "taken away": BindMount.take_away,
    "dead": BindMount.kill,
    "unmounted": BindMount.unmount,
}


@pytest.fixture(params=LOST)
def lose(request: pytest.FixtureRequest):
    return LOST[request.param]


def test_every_call_says_unavailable_when_the_mount_is_lost(driver: NFSDriver, bind_mount: BindMount, lose) -> None:
    lose(bind_mount)
    for use in [*every_use(driver), *every_use(driver, "missing"), driver.read_marker, driver.claim]:
        with pytest.raises(Unavailable):
            use()
    assert "blocker" in {step.status for step in driver.probe()}
    bind_mount.unmount()
    assert list(bind_mount.mountpoint.iterdir()) == [], "something was written below the mount point"
    bind_mount.mount()
    assert keys(driver) == [KEY, "volumes/1/1/v"]


def test_copy_stops_and_goes_on_when_the_mount_is_lost_in_the_middle(driver: NFSDriver, bind_mount: BindMount, lose) -> None:
    upload = begin(driver, "volumes/2/2/v")
    first = driver.put_part(upload, 1, 0, b"1" * MiB)
    with driver.open(KEY) as reader:
        lose(bind_mount)
        with pytest.raises(Unavailable):
            driver.put_part(upload, 2, MiB, b"2" * MiB)
        with pytest.raises(Unavailable):
            driver.complete_upload(upload, [first])
        with pytest.raises(Unavailable):
            driver.abort_upload(upload)
        with pytest.raises(Unavailable):
            reader.current_version()
    bind_mount.unmount()
    assert list(bind_mount.mountpoint.iterdir()) == []
    assert not (bind_mount.source / "volumes/2/2/v").exists()
    bind_mount.mount()
    assert driver.list_parts(upload) == [first]
    second = driver.put_part(upload, 2, MiB, b"2" * MiB)
    driver.complete_upload(upload, [first, second])
    assert (bind_mount.source / "volumes/2/2/v").read_bytes() == b"1" * MiB + b"2" * MiB


def test_reading_fails_when_the_mount_dies_in_the_middle(driver: NFSDriver, bind_mount: BindMount) -> None:
    # Larger than what the kernel reads ahead, so that it cannot answer from memory.
    with (bind_mount.source / KEY).open("wb") as file:
        file.write(b"x" * 8 * MiB)
    with driver.open(KEY) as reader:
        assert reader.pread(0, 10) == b"x" * 10
        bind_mount.kill()
        with pytest.raises(Unavailable):
            reader.pread(7 * MiB, 10)


def test_listing_does_not_end_when_the_mount_is_lost_in_the_middle(driver: NFSDriver, bind_mount: BindMount, lose) -> None:
    for number in range(20):
        put(driver, f"volumes/1/{number}/v")
    listing = driver.list()
    assert next(listing).key == KEY
    lose(bind_mount)
    with pytest.raises(Unavailable):
        list(listing)


def test_file_is_not_deleted_when_the_mount_is_lost_before(driver: NFSDriver, bind_mount: BindMount, lose) -> None:
    lose(bind_mount)
    for key in (KEY, "missing"):
        with pytest.raises(Unavailable):
            driver.delete(key)
    assert (bind_mount.source / KEY).read_bytes() == b"content"


@pytest.mark.parametrize("other", ["empty", "another store", "copy of the marker"])
def test_nothing_is_believed_when_something_else_is_mounted_there(
    driver: NFSDriver, bind_mount: BindMount, tmp_path: Path, other: str
) -> None:
    folder = tmp_path / "something-else"
    folder.mkdir()
    if other == "another store":
        (folder / MARKER_KEY).write_text('{"cloud": "theirs", "store": "theirs"}')
    if other == "copy of the marker":
        (folder / MARKER_KEY).write_bytes((bind_mount.source / MARKER_KEY).read_bytes())
    listing = driver.list()
    next(listing)
    bind_mount.unmount()
    with BindMount(folder, bind_mount.mountpoint) as _:
        with pytest.raises(Unavailable):
            list(listing)
        if other == "copy of the marker":
            return  # such a copy is the store as far as anybody can tell, but not for what began on the first
        for use in every_use(driver):
            with pytest.raises(Exception) as raised:
                use()
            assert type(raised.value).__name__ == ("Unavailable" if other == "empty" else "Foreign")
        assert sorted(path.name for path in folder.iterdir()) == ([] if other == "empty" else [MARKER_KEY])
    assert (bind_mount.source / KEY).read_bytes() == b"content"


def test_nothing_is_believed_when_another_mount_hides_it(
    driver: NFSDriver, config: StoreConfig, bind_mount: BindMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = mounts.MOUNT_TABLE.read_text()
    point = str(bind_mount.mountpoint)
    line = next(line for line in table.splitlines() if line.split()[4] == point)
    stale = Path(bind_mount.mountpoint.parent / "table")
    stale.write_text(table.replace(line, line.replace(line.split()[0], "999999", 1)))
    monkeypatch.setattr(mounts, "MOUNT_TABLE", stale)
    with pytest.raises(Unavailable, match="another file system is mounted over"):
        driver.check()


def test_export_is_found_in_the_mount_table_when_its_source_names_it(
    driver: NFSDriver, config: StoreConfig, bind_mount: BindMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel here has no NFS: its table is shown with the lines that an NFS mount would have."""
    table = mounts.MOUNT_TABLE.read_text()
    shown = bind_mount.mountpoint.parent / "table"
    lines = [
        line.partition(" - ")[0] + " - nfs4 filer.example:/export rw,vers=4.2,hard,addr=10.0.0.1"
        if line.split()[4] == str(bind_mount.mountpoint)
        else line
        for line in table.splitlines()
    ]
    shown.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mounts, "MOUNT_TABLE", shown)
    found = NFSDriver(replace(config, environment=new_config("").environment))
    assert keys(found) == [KEY, "volumes/1/1/v"]
    (step,) = [step for step in found.probe() if step.name == "mount"]
    assert (step.status, step.facts["nfs_version"], step.facts["soft"]) == ("ok", "4.2", False)

    wanted = NFSDriver(replace(config, environment=found.config.environment, details={"nfs.version": "3"}))
    (step,) = [step for step in wanted.probe() if step.name == "mount"]
    assert (step.status, "version 4.2, not 3" in step.message) == ("warning", True)

    shown.write_text(shown.read_text().replace("vers=4.2,hard", "vers=4.2,soft"))
    (step,) = [step for step in found.probe() if step.name == "mount"]
    assert (step.status, step.facts["soft"]) == ("warning", True)

    below = NFSDriver(replace(found.config, url="nfs://filer.example/export/volumes"))
    with pytest.raises(Unavailable, match="no ownership marker"):
        below.check()
    missing = NFSDriver(replace(found.config, url="nfs://filer.example/export/nowhere"))
    with pytest.raises(Unavailable, match="is missing below"):
        missing.claim()


def test_writing_is_denied_when_the_mount_is_read_only(driver: NFSDriver, bind_mount: BindMount) -> None:
    bind_mount.mount(read_only=True)
    assert keys(driver) == [KEY, "volumes/1/1/v"]
    for use in (lambda: put(driver, "volumes/1/1/w"), lambda: begin(driver), lambda: driver.delete(KEY)):
        with pytest.raises(AccessDenied, match="read-only"):
            use()
    steps = {step.name: step for step in driver.probe()}
    assert steps["mount"].status == "blocker"
    assert "read-only" in steps["mount"].message
    assert driver.exists(KEY)


def test_only_its_own_calls_wait_when_a_mount_hangs(driver: NFSDriver, elsewhere: NFSDriver, bind_mount: BindMount) -> None:
    upload = begin(driver, "volumes/3/3/v")
    with ThreadPoolExecutor(4) as pool:
        bind_mount.hang()
        try:
            waiting = [
                pool.submit(driver.put_part, upload, 1, 0, b"x" * MiB),
                pool.submit(driver.stat, KEY),
                pool.submit(lambda: keys(driver)),
            ]
            done = threading.Event()

            def work() -> None:
                for number in range(20):
                    put(elsewhere, f"volumes/1/{number}/v")
                assert len(keys(elsewhere)) == 20
                done.set()

            pool.submit(work).result(timeout=30)
            assert done.is_set()
            assert [future.done() for future in waiting] == [False, False, False]
        finally:
            bind_mount.release()
        part = waiting[0].result(timeout=30)
        assert waiting[1].result(timeout=30).key == KEY  # type: ignore[union-attr]
        assert KEY in waiting[2].result(timeout=30)  # type: ignore[operator]
    driver.complete_upload(upload, [part])
    assert (bind_mount.source / "volumes/3/3/v").read_bytes() == b"x" * MiB


def test_waiting_calls_end_when_a_hanging_mount_is_given_up(driver: NFSDriver, bind_mount: BindMount) -> None:
    with ThreadPoolExecutor(3) as pool:
        bind_mount.hang()
        try:
            waiting = [
                pool.submit(driver.delete, KEY),
                pool.submit(driver.stat, "missing"),
                pool.submit(lambda: keys(driver)),
            ]
        finally:
            bind_mount.kill()
        for future in waiting:
            with pytest.raises(Unavailable):
                future.result(timeout=30)
    assert (bind_mount.source / KEY).exists()


def test_absence_is_told_when_the_mount_is_there(driver: NFSDriver) -> None:
    with pytest.raises(NotFound):
        driver.stat("missing")
    assert driver.delete("missing") is False
    assert keys(driver, "nowhere/") == []
