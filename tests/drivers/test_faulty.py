"""The misbehaving driver misbehaves exactly as told, or the tests built on it would prove nothing."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace

import pytest

from stores.drivers.errors import NotFound, Unavailable
from stores.states import Proof
from tests.drivers.conftest import new_config
from tests.fakes.faulty import EVERY, FaultyDriver, FaultyMemoryDriver, cut, faults_at, flip

pytestmark = pytest.mark.unit


@pytest.fixture
def driver() -> FaultyDriver:
    driver = FaultyMemoryDriver(new_config(f"memory://{uuid.uuid4()}"))
    driver.claim()
    return driver


def put(driver: FaultyDriver, key: str, data: bytes):
    return driver.put(key, data, metadata={}, token="t")


def read(driver: FaultyDriver, key: str) -> bytes:
    with driver.open(key) as reader:
        return reader.pread(0, reader.size)


def test_only_the_named_call_fails_when_an_error_is_scripted(driver: FaultyDriver) -> None:
    driver.faults.on("put", nth=2, raises=Unavailable("away"))
    put(driver, "a", b"1")
    with pytest.raises(Unavailable):
        put(driver, "b", b"2")
    put(driver, "c", b"3")
    assert [info.key for info in driver.list()] == ["a", "c"]


def test_the_work_is_done_when_only_the_answer_is_lost(driver: FaultyDriver) -> None:
    driver.faults.on("put", then_raises=Unavailable("answer lost"))
    with pytest.raises(Unavailable):
        put(driver, "a", b"1")
    assert read(driver, "a") == b"1"


def test_server_claims_success_when_it_kept_other_bytes(driver: FaultyDriver) -> None:
    driver.faults.on("put_part", nth=2, data=flip)
    upload = driver.begin_upload("a", size=8, part_size=4, metadata={}, token="t")
    parts = [driver.put_part(upload, 1, 0, b"abcd"), driver.put_part(upload, 2, 4, b"efgh")]
    honest = FaultyMemoryDriver(new_config(f"memory://{uuid.uuid4()}"))
    other = honest.begin_upload("a", size=8, part_size=4, metadata={}, token="t")
    assert parts[1].digest == honest.put_part(other, 2, 4, b"efgh").digest
    stored = driver.complete_upload(upload, parts)
    assert stored.proof is Proof.VERIFIED
    assert read(driver, "a") == b"abcdef" + b"fh"


def test_content_is_short_when_the_server_loses_its_end(driver: FaultyDriver) -> None:
    driver.faults.on("put", data=cut, result=lambda stored: replace(stored, size=stored.size + 1))
    assert put(driver, "a", b"1234").size == 4
    assert read(driver, "a") == b"123"


def test_reading_differs_once_when_a_bit_flips_on_the_way(driver: FaultyDriver) -> None:
    put(driver, "a", b"1234")
    driver.faults.on("pread", result=flip)
    assert read(driver, "a") == b"1224"
    assert read(driver, "a") == b"1234"


def test_object_stays_when_a_delete_lies(driver: FaultyDriver) -> None:
    put(driver, "a", b"1")
    driver.faults.on("delete", answers=True)
    assert driver.delete("a") is True
    assert driver.exists("a")
    assert driver.delete("a") is True
    with pytest.raises(NotFound):
        driver.stat("a")


def test_new_objects_are_unseen_when_the_listing_lags(driver: FaultyDriver) -> None:
    put(driver, "a", b"1")
    driver.faults.lag_listing(lambda key: key == "b")
    put(driver, "b", b"2")
    assert [info.key for info in driver.list()] == ["a"]
    driver.faults.clear()
    assert [info.key for info in driver.list()] == ["a", "b"]


def test_call_waits_when_stalled(driver: FaultyDriver) -> None:
    put(driver, "a", b"1")
    stall = driver.faults.stall("pread")
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(read(driver, "a")))
    thread.start()
    assert stall.reached.wait(10)
    assert found == []
    assert read(driver, "a") == b"1"
    stall.release.set()
    thread.join(10)
    assert found == [b"1"]


def test_version_changes_when_the_source_is_rewritten_during_a_read(driver: FaultyDriver) -> None:
    put(driver, "a", b"1234")
    driver.faults.on("pread", nth=2, hook=lambda: driver.inner.put("a", b"5678", metadata={}, token="t"))
    with driver.open("a") as reader:
        assert reader.pread(0, 2) == b"12"
        assert reader.current_version() == reader.info.version
        reader.pread(2, 2)
        assert reader.current_version() != reader.info.version


def test_calls_are_recorded_when_made_by_any_driver_of_the_store(driver: FaultyDriver) -> None:
    FaultyMemoryDriver(driver.config).put("a", b"1", metadata={}, token="t")
    faults = faults_at(driver.config.url)
    assert faults.count("put", "a") == 1
    faults.on("stat", times=EVERY, raises=Unavailable("away"))
    for _ in range(3):
        with pytest.raises(Unavailable):
            driver.stat("a")
    assert faults.count("stat") == 3
