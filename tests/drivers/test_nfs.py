"""An NFS export as a store: its url, its content with holes, its listing, its trash, and a copy killed in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from stores.drivers.base import MiB, StoreConfig
from stores.drivers.errors import (
    Misconfigured,
    NotFound,
    SourceChanged,
    StoreError,
    UploadGone,
)
from stores.drivers.nfs import NFSDriver
from tests.drivers.conftest import new_config
from tests.drivers.exports import KEY, begin, every_use, keys, put
from tests.servers.process import REPOSITORY

pytestmark = pytest.mark.unit


@pytest.fixture
def driver(export_config: StoreConfig) -> NFSDriver:
    driver = NFSDriver(export_config)
    driver.claim()
    return driver


# --- the url -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("nfs://Filer.Example/export", "nfs://filer.example/export"),
        (" NFS://filer//export///zone1/ ", "nfs://filer/export/zone1"),
        ("nfs://[FD00::5]/export", "nfs://[fd00::5]/export"),
        ("nfs://filer/with%20space", "nfs://filer/with%20space"),
        ("nfs://filer/with space", "nfs://filer/with%20space"),
        ("nfs://filer/", "nfs://filer/"),
    ],
)
def test_url_is_normalised_when_cleaned(url: str, clean: str) -> None:
    assert NFSDriver.clean(url, {"nfs.version": "4.2"}) == (clean, {"nfs.version": "4.2"})
    assert NFSDriver.clean(clean, {})[0] == clean
    assert NFSDriver(new_config(clean)).display_url == clean


@pytest.mark.parametrize(
    "url",
    [
        "", "nfs://filer", "filer:/export", "nfs:///export", "http://filer/export", "nfs://user:pw@filer/export", "nfs://filer:2049/x",
        "nfs://filer/export?vers=3", "nfs://filer/export#x", "nfs://filer/export/../etc", "nfs://filer/%2e%2e/etc", "nfs://filer/./x",
        "nfs://filer/a%00b", "nfs://filer/a%0ab", "nfs://[fd00/export",
    ],
)  # fmt: skip
def test_url_is_refused_when_it_is_no_export(url: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        NFSDriver.clean(url, {})
    assert raised.value.field == "url"


def test_option_is_refused_when_unknown() -> None:
    with pytest.raises(Misconfigured) as raised:
        NFSDriver.clean("nfs://filer/export", {"nfs.version": "2"})
    assert raised.value.field == "nfs.version"


# --- content -----------------------------------------------------------------------------------------------------------


def test_holes_are_neither_written_nor_read_when_the_content_is_zeros(driver: NFSDriver) -> None:
    part = 4 * MiB
    data = bytes(part) + b"x" * 100_000 + bytes(part - 100_000) + bytes(part)
    upload = driver.begin_upload(KEY, size=len(data), part_size=part, metadata={}, token="t")
    parts = [
        driver.put_part(upload, number + 1, number * part, data[number * part : (number + 1) * part]) for number in (2, 1, 0)
    ]
    driver.complete_upload(upload, sorted(parts, key=lambda part: part.number))
    found = driver.stat(KEY)
    assert found.size == len(data)
    assert found.allocated is not None
    assert found.allocated < MiB
    with driver.open(KEY) as reader:
        assert list(reader.extents()) == [(part, 128 * 1024)]
        assert reader.pread(0, len(data)) == data


def test_small_holes_count_as_data_when_extents_are_told(driver: NFSDriver, export: Path) -> None:
    (export / "volumes").mkdir()
    with (export / "volumes" / "sparse").open("wb") as file:
        for offset in (0, 64 * 1024, 192 * 1024, 3 * MiB, 8 * MiB):
            file.seek(offset)
            file.write(b"x" * 4096)
        file.truncate(16 * MiB)
    with driver.open("volumes/sparse") as reader:
        assert list(reader.extents()) == [(0, 192 * 1024 + 4096), (3 * MiB, 4096), (8 * MiB, 4096)]
        assert list(reader.extents(4096, 3 * MiB + 100)) == [(4096, 192 * 1024), (3 * MiB, 100)]
        assert list(reader.extents(3 * MiB + 4096, 5 * MiB)) == []
    (export / "volumes" / "hole").write_bytes(b"")
    os.truncate(export / "volumes" / "hole", 5 * MiB)
    with driver.open("volumes/hole") as reader:
        assert list(reader.extents()) == []
        assert reader.pread(0, 5 * MiB) == bytes(5 * MiB)


def test_zeros_replace_data_when_a_part_is_sent_again(driver: NFSDriver) -> None:
    upload = begin(driver)
    driver.put_part(upload, 1, 0, b"x" * MiB)
    again = driver.put_part(upload, 1, 0, bytes(MiB))
    driver.complete_upload(upload, [again])
    with driver.open(KEY) as reader:
        assert reader.pread(0, MiB) == bytes(MiB)


def test_part_does_not_count_when_its_record_was_cut_off(driver: NFSDriver, export: Path) -> None:
    upload = begin(driver)
    first = driver.put_part(upload, 1, 0, b"one")
    driver.put_part(upload, 2, 3, b"two")
    log = export / ".cs-tmp" / f"{upload.upload_id}.log"
    log.write_bytes(log.read_bytes()[:-10])
    assert driver.list_parts(upload) == [first]


def test_change_is_seen_when_size_and_time_are_put_back(driver: NFSDriver, export: Path) -> None:
    put(driver, KEY, b"before")
    with driver.open(KEY) as reader:
        status = (export / KEY).stat()
        (export / KEY).write_bytes(b"after!")
        os.utime(export / KEY, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert reader.current_version() != reader.info.version
        (export / KEY).unlink()
        with pytest.raises(NotFound):
            reader.current_version()


def test_reading_fails_when_the_file_is_cut_off_meanwhile(driver: NFSDriver, export: Path) -> None:
    put(driver, KEY, b"x" * 1000)
    with driver.open(KEY) as reader:
        os.truncate(export / KEY, 500)
        assert reader.pread(0, 500) == b"x" * 500
        with pytest.raises(SourceChanged):
            reader.pread(0, 1000)


def test_handles_are_returned_when_everything_was_used(driver: NFSDriver) -> None:
    before = len(os.listdir("/proc/self/fd"))
    put(driver, KEY)
    for use in [*every_use(driver, "missing"), *every_use(driver, "a/../b"), lambda: list(driver.probe())]:
        try:
            use()
        except StoreError:
            continue
    list(zip(range(1), driver.list(), strict=False))
    with driver.open("missing"):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_log_that_was_cut_in_the_middle_costs_the_parts_that_it_lost_and_no_more(driver):
    upload = begin(driver)
    data = [bytes([number]) * MiB for number in range(3)]
    driver.put_part(upload, 1, 0, data[0])
    driver.put_part(upload, 2, MiB, data[1])
    log = Path(driver.path, ".cs-tmp", f"{upload.upload_id}.log")
    log.write_bytes(log.read_bytes()[:-20])  # the disk was full, or the server lost its power
    driver.put_part(upload, 3, 2 * MiB, data[2])
    assert [part.number for part in driver.list_parts(upload)] == [1]
    parts = [driver.put_part(upload, number + 1, number * MiB, data[number]) for number in range(3)]
    assert driver.complete_upload(upload, parts).size == 3 * MiB
    with driver.open(KEY) as reader:
        assert reader.pread(0, 3 * MiB) == b"".join(data)


# --- listing -----------------------------------------------------------------------------------------------------------


def test_memory_stays_bounded_when_the_export_is_large(driver: NFSDriver, export: Path) -> None:
    for account in range(200):
        folder = export / "volumes" / str(account)
        folder.mkdir(parents=True)
        for number in range(100):
            (folder / f"{number}-a-name-as-long-as-those-of-real-volumes.qcow2").touch()
    tracemalloc.start()
    started = time.process_time()
    count = sum(1 for _ in driver.list())
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < MiB
    assert seconds < 30, "20,000 files take far less than a second per thousand"


def test_folder_is_named_when_it_lies_too_deep(driver: NFSDriver, export: Path) -> None:
    deep = "volumes/" + "/".join(["d"] * 100)
    put(driver, deep + "/v")
    assert [(info.kind, info.key.count("/")) for info in driver.list()] == [("unreadable", 65)]


def test_our_own_files_are_left_out_when_listing(driver: NFSDriver, export: Path) -> None:
    put(driver, "volumes/1/v")
    put(driver, "volumes/1/w")
    driver.delete("volumes/1/w")
    begin(driver)
    (export / ".cs-probe").mkdir()
    (export / ".cs-probe" / "left").touch()
    (export / "volumes" / ".cs-tmp").mkdir()
    (export / "volumes" / ".cs-tmp" / "theirs").touch()
    assert keys(driver) == ["volumes/.cs-tmp/theirs", "volumes/1/v"]
    assert keys(driver, ".cs") == keys(driver, ".cs-t") == []
    assert keys(driver, ".cs-probe/") == [".cs-probe/left"]


# --- deleting ----------------------------------------------------------------------------------------------------------


def test_deleted_file_lies_in_the_trash_when_its_time_is_not_up(driver: NFSDriver, export: Path) -> None:
    put(driver, KEY, b"precious")
    put(driver, "volumes/1/2/v")
    assert driver.delete(KEY) is True
    (batch,) = (export / ".cs-trash").iterdir()
    assert (batch / KEY).read_bytes() == b"precious"
    assert abs(int(batch.name.partition("-")[0]) - time.time()) < 60
    assert driver.purge_trash(older_than=3600) == 0
    assert (batch / KEY).exists()
    os.utime(batch, (time.time() - 7200,) * 2)
    (export / ".cs-trash" / "notes").mkdir()
    assert driver.delete("volumes/1/2/v") is True
    assert driver.purge_trash(older_than=3600) == 1
    assert len(list((export / ".cs-trash").iterdir())) == 2
    assert driver.purge_trash(older_than=0) == 1
    assert [path.name for path in (export / ".cs-trash").iterdir()] == ["notes"]


@pytest.mark.parametrize("days", [-30, 30])
def test_trash_is_kept_for_its_time_when_the_clock_of_a_host_jumps(
    driver: NFSDriver, export: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    now = time.time
    for shift in (0, days * 86400):
        monkeypatch.setattr(time, "time", lambda shift=shift: now() + shift)
        put(driver, KEY, b"precious")
        assert driver.delete(KEY)
        assert driver.purge_trash(older_than=3600) == 0
    monkeypatch.undo()
    assert driver.purge_trash(older_than=3600) == 0
    assert len(list((export / ".cs-trash").rglob(KEY.rpartition("/")[2]))) == 2


def test_emptied_folders_go_when_their_last_file_is_deleted(driver: NFSDriver, export: Path) -> None:
    put(driver, KEY)
    put(driver, "volumes/1/2/v")
    put(driver, "volumes/1/3/w")
    driver.delete(KEY)
    driver.delete("volumes/1/2/v")
    left = sorted(str(path.relative_to(export)) for path in export.rglob("*") if ".cs-" not in str(path))
    assert left == [".cloudstorage.json", "template", "template/tmpl", "volumes", "volumes/1", "volumes/1/3", "volumes/1/3/w"]


def test_nothing_outside_is_removed_when_a_link_lies_in_the_trash(driver: NFSDriver, export: Path, outside: Path) -> None:
    put(driver, KEY)
    driver.delete(KEY)
    (batch,) = (export / ".cs-trash").iterdir()
    (batch / "folder").symlink_to(outside)
    (batch / "file").symlink_to(outside / "secret")
    assert driver.purge_trash(older_than=0) >= 1
    assert (outside / "secret").exists()
    assert list((export / ".cs-trash").iterdir()) == []


def test_writes_succeed_when_deletes_remove_their_folder(driver: NFSDriver) -> None:
    stop = threading.Event()
    failures: list[StoreError] = []

    def delete_all_the_time() -> None:
        while not stop.is_set():
            try:
                driver.delete("volumes/1/2/a")
            except StoreError as error:
                failures.append(error)
                return

    thread = threading.Thread(target=delete_all_the_time)
    thread.start()
    try:
        for number in range(50):
            put(driver, "volumes/1/2/a", token=f"a{number}")
            put(driver, "volumes/1/2/b", token=f"b{number}")
            driver.delete("volumes/1/2/b")
    finally:
        stop.set()
        thread.join()
    assert failures == []


# --- killed in the middle ----------------------------------------------------------------------------------------------

COPY = """
import sys
from stores.drivers.base import DriverEnvironment, StoreConfig, Upload
from stores.drivers.nfs import NFSDriver
url, cloud, store, upload_id = sys.argv[1:]
driver = NFSDriver(StoreConfig(url, {}, store, cloud, environment=DriverEnvironment(allow_plain_exports=True)))
upload = Upload("volumes/1/1/v", upload_id, 6, 3, "t")
parts = [driver.put_part(upload, 1, 0, b"one"), driver.put_part(upload, 2, 3, b"two")]
driver.complete_upload(upload, parts)
driver.delete("volumes/1/1/old")
"""
SEAMS = [
    "nfs.part-on-disk",
    "nfs.before-fsync",
    "nfs.before-link",
    "nfs.linked",
    "nfs.published",
    "nfs.before-trash",
    "nfs.in-trash",
]


@pytest.mark.crash
@pytest.mark.parametrize("seam", SEAMS)
def test_copy_is_whole_or_absent_when_the_process_is_killed(
    driver: NFSDriver, export_config: StoreConfig, export: Path, seam: str
) -> None:
    put(driver, "volumes/1/1/old", b"old")
    upload = driver.begin_upload("volumes/1/1/v", size=6, part_size=3, metadata={}, token="t")
    killed = subprocess.run(
        [sys.executable, "-c", COPY, export_config.url, export_config.cloud_uuid, export_config.store_uuid, upload.upload_id],
        env={**os.environ, "CLOUDSTORAGE_CRASH_AT": seam},
        cwd=REPOSITORY,
        check=False,
    )
    assert killed.returncode == -9, f"{seam} was never reached"
    if driver.exists("volumes/1/1/v"):
        assert (export / "volumes/1/1/v").read_bytes() == b"onetwo"
    try:
        have = {part.number for part in driver.list_parts(upload)}
        for number, offset, data in ((1, 0, b"one"), (2, 3, b"two")):
            if number not in have:
                driver.put_part(upload, number, offset, data)
        driver.complete_upload(upload, driver.list_parts(upload))
    except UploadGone:
        assert seam in {"nfs.published", "nfs.before-trash", "nfs.in-trash"}
    assert (export / "volumes/1/1/v").read_bytes() == b"onetwo"
    driver.abort_upload(upload)
    assert list(driver.pending_uploads()) == []
    kept = list(export.glob("volumes/1/1/old")) + list(export.glob(".cs-trash/*/volumes/1/1/old"))
    assert [path.read_bytes() for path in kept] == [b"old"]
