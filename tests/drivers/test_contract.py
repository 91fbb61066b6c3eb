"""What every image store must do alike; a new driver is done when it passes as one more entry of the table in conftest.py."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from stores.drivers.base import MARKER_KEY, Stored, StoreDriver, Upload
from stores.drivers.errors import (
    AccessDenied,
    AlreadyExists,
    Corrupt,
    Foreign,
    NotFound,
    SourceChanged,
    StoreError,
    Unavailable,
    UnsafeName,
    UploadGone,
)
from tests.drivers.conftest import CORRUPTED, DriverCase, KiB, Streamed, as_kept

KEY = "template/tmpl/2/201/201-2-centos.qcow2"


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def read(driver: StoreDriver, key: str) -> bytes:
    with driver.open(key) as reader:
        return reader.pread(0, reader.size)


def put(driver: StoreDriver, key: str, data: bytes, **arguments: object) -> Stored:
    return driver.put(key, data, **{"metadata": {}, "token": "token-1", **arguments})  # type: ignore[arg-type]


def begin(driver: StoreDriver, data: bytes | None, part_size: int, *, key: str = KEY, token: str = "token-1") -> Upload:
    size = None if data is None else len(data)
    return driver.begin_upload(key, size=size, part_size=part_size, metadata={}, token=token)


def pieces(data: bytes, part_size: int) -> list[tuple[int, int, bytes]]:
    """(number, offset, bytes) of each part."""
    return [(at // part_size + 1, at, data[at : at + part_size]) for at in range(0, len(data), part_size)]


def keys(driver: StoreDriver, prefix: str = "", **arguments: object) -> list[str]:
    return [info.key for info in driver.list(prefix, **arguments)]  # type: ignore[arg-type]


# --- writing and reading -----------------------------------------------------------------------------------------------


def test_etag_of_a_whole_object_is_its_md5_when_the_store_says_so(driver):
    driver.put("one", b"content", metadata={}, token="t")
    assert not driver.capabilities.etag_is_md5 or driver.stat("one").etag == hashlib.md5(b"content").hexdigest()


@pytest.mark.parametrize("size", ["nothing", "one byte", "one part"])
def test_content_is_kept_when_put_whole(case: DriverCase, driver: StoreDriver, size: str) -> None:
    data = some_bytes({"nothing": 0, "one byte": 1, "one part": case.part_size}[size])
    stored = put(driver, KEY, data)
    assert stored.size == len(data)
    found = driver.stat(KEY)
    assert (found.key, found.size, found.kind) == (KEY, len(data), "file")
    assert read(case.connect(), KEY) == data
    assert keys(driver) == [KEY]
    assert list(driver.pending_uploads()) == []


@pytest.mark.parametrize("size", ["one byte", "one part", "one part and a byte", "several parts"])
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_content_is_kept_when_uploaded_in_parts(case: DriverCase, driver: StoreDriver, size: str, length: str) -> None:
    part = case.part_size
    data = some_bytes({"one byte": 1, "one part": part, "one part and a byte": part + 1, "several parts": 3 * part + 7}[size])
    upload = begin(driver, data if length == "known" else None, part)
    parts = [driver.put_part(upload, *piece) for piece in pieces(data, part)]
    assert not driver.exists(KEY)
    assert keys(driver) == []
    stored = driver.complete_upload(upload, parts)
    assert stored.size == len(data)
    assert driver.stat(KEY).size == len(data)
    assert driver.stat(KEY).version == stored.version
    assert read(case.connect(), KEY) == data
    assert keys(driver) == [KEY]
    assert list(driver.pending_uploads()) == []


def test_content_is_kept_when_parts_arrive_in_parallel_and_out_of_order(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(5 * case.part_size + 1)
    upload = begin(driver, data, case.part_size)
    todo = pieces(data, case.part_size)
    random.Random(3).shuffle(todo)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda piece: driver.put_part(upload, *piece), todo))
    driver.complete_upload(upload, sorted(parts, key=lambda part: part.number))
    assert read(driver, KEY) == data


def test_zeros_are_kept_when_whole_parts_consist_of_them(case: DriverCase, driver: StoreDriver) -> None:
    part = case.part_size
    data = bytes(part) + some_bytes(part) + bytes(part)
    upload = begin(driver, data, part)
    parts = [driver.put_part(upload, *piece) for piece in pieces(data, part)]
    driver.complete_upload(upload, parts)
    assert read(driver, KEY) == data
    with driver.open(KEY) as reader:
        told = bytearray(len(data))
        for offset, length in reader.extents():
            told[offset : offset + length] = reader.pread(offset, length)
    assert bytes(told) == data


def test_a_part_is_replaced_when_sent_again(case: DriverCase, driver: StoreDriver) -> None:
    part = case.part_size
    upload = begin(driver, None, part)
    driver.put_part(upload, 1, 0, some_bytes(part, seed=8))
    half = part // 2
    data = bytes(half) + some_bytes(part - half, seed=9)
    again = driver.put_part(upload, 1, 0, data)
    driver.complete_upload(upload, [again])
    assert read(driver, KEY) == data


def test_memoryview_is_accepted_when_writing(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(2 * case.part_size)
    view = memoryview(data)
    upload = begin(driver, data, case.part_size)
    parts = [
        driver.put_part(upload, number, at, view[at : at + len(piece)]) for number, at, piece in pieces(data, case.part_size)
    ]
    driver.complete_upload(upload, parts)
    put(driver, "small", view[:100])
    assert read(driver, KEY) == data
    assert read(driver, "small") == data[:100]


def test_part_is_the_same_when_it_is_read_while_it_is_sent(case: DriverCase, driver: StoreDriver) -> None:
    part = case.part_size
    half = part // 2
    data = bytes(half) + some_bytes(part - half) + bytes(100) + some_bytes(1000)
    upload = begin(driver, data, part)
    held = [driver.put_part(upload, *piece) for piece in pieces(data, part)]
    for number, at, piece in pieces(data, part):
        source = Streamed(driver, piece)
        assert driver.put_part(upload, number, at, source) == held[number - 1]
        assert source.readings == 1
    assert driver.complete_upload(upload, held).size == len(data)
    assert read(case.connect(), KEY) == data


@pytest.mark.parametrize("failure", [SourceChanged("other bytes"), KeyError("not the store's")], ids=["store", "other"])
def test_no_part_is_stored_when_its_source_fails_while_it_is_sent(
    case: DriverCase, driver: StoreDriver, failure: Exception
) -> None:
    data = some_bytes(3 * KiB)
    upload = begin(driver, data, case.part_size)
    source = Streamed(driver, data, fails=failure)
    with pytest.raises(type(failure)) as raised:
        driver.put_part(upload, 1, 0, source)
    assert raised.value is failure
    assert source.readings == 1, "such a failure is not the network's, and not worth another attempt"
    assert list(driver.list_parts(upload)) == []
    driver.complete_upload(upload, [driver.put_part(upload, 1, 0, Streamed(driver, data))])
    assert read(driver, KEY) == data


def test_ranges_are_exact_when_read_anywhere(case: DriverCase, driver: StoreDriver) -> None:
    part = case.part_size
    data = some_bytes(2 * part + 100)
    upload = begin(driver, data, part)
    driver.complete_upload(upload, [driver.put_part(upload, *piece) for piece in pieces(data, part)])
    size = len(data)
    wanted = [(0, 1), (0, 100), (1000, 333), (part - 50, 100), (part - 1, part + 2), (size - 10, 10), (size - 10, 99), (0, size)]
    with driver.open(KEY) as reader:
        assert reader.size == size
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda span: reader.pread(*span), wanted))
        assert found == [data[offset : offset + length] for offset, length in wanted]
        assert [reader.pread(*span) for span in [(size, 10), (size + 10, 10), (5, 0)]] == [b"", b"", b""]


# --- names -------------------------------------------------------------------------------------------------------------

NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
HOSTILE = {
    "spaces": "a dir/ b  c /d ",
    "percent": "100%/%41%2F%zz",
    "plus": "a+b/c+d",
    "query": "what?/is=this&that",
    "fragment": "a#b/#c",
    "semicolon": "a;b/;c",
    "quotes": 'it\'s/"quoted"/`so`',
    "backslash": "back\\slash/\\x",
    "newline": "new\nline/\tand tab",
    "control": "bell\x07/\x01",
    "xml": "a&b<c>/]]>",
    "unicode": "тест/日本語/💾",
    "undecodable": "bytes-\udcff-\udc80/x",
    "long": "l" * 200 + "/" + "ö" * 100,
    "dots": ".hidden/..twodots/...",
    "dashes": "-rf/--help",
    "wildcards": "*/?[a-z]/{x}",
    "colon": "c:/d:e",
    "tilde": "~/~root",
    "dollar": "$HOME/$(x)",
    "case": "CamelCase/camelcase",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_object_is_found_again_when_its_key_is_hostile(driver: StoreDriver, name: str) -> None:
    key = "volumes/" + HOSTILE[name]
    put(driver, key, name.encode())
    assert driver.stat(key).key == key
    assert read(driver, key) == name.encode()
    assert keys(driver) == [key]
    assert keys(driver, key[:-1]) == [key]
    assert keys(driver, key.rpartition("/")[0] + "/") == [key]
    upload = begin(driver, None, 1000, key=key + "2")
    driver.complete_upload(upload, [driver.put_part(upload, 1, 0, b"second")])
    assert read(driver, key + "2") == b"second"
    assert driver.delete(key) is True
    assert not driver.exists(key)
    assert keys(driver) == [key + "2"]


def test_keys_are_kept_apart_when_only_their_unicode_form_differs(driver: StoreDriver) -> None:
    put(driver, f"volumes/{NFC}", b"composed")
    put(driver, f"volumes/{NFD}", b"decomposed")
    put(driver, "volumes/E", b"upper")
    put(driver, "volumes/e", b"lower")
    assert read(driver, f"volumes/{NFC}") == b"composed"
    assert read(driver, f"volumes/{NFD}") == b"decomposed"
    assert read(driver, "volumes/E") == b"upper"
    assert sorted(keys(driver)) == sorted([f"volumes/{NFC}", f"volumes/{NFD}", "volumes/E", "volumes/e"])


UNSAFE = ["../out", "a/../../out", "a/..", "/etc/passwd", "a//b", "a/./b", "./a", "a/", "", "nul\0byte", "lone \ud800 surrogate"]


@pytest.mark.parametrize("key", UNSAFE)
def test_name_is_refused_when_it_is_no_plain_path(driver: StoreDriver, key: str) -> None:
    put(driver, "a/b", b"neighbour")
    for use in (driver.stat, driver.open, driver.delete, driver.exists):
        with pytest.raises(UnsafeName):
            use(key)
    with pytest.raises(UnsafeName):
        put(driver, key, b"x")
    with pytest.raises(UnsafeName):
        begin(driver, b"x", 1000, key=key)
    assert keys(driver) == ["a/b"]


# --- overwriting, conditions, absence ----------------------------------------------------------------------------------


def test_content_and_version_change_when_overwritten(case: DriverCase, driver: StoreDriver) -> None:
    first = put(driver, KEY, b"first")
    with driver.open(KEY) as reader:
        assert reader.current_version() == reader.info.version == first.version
        second = put(driver, KEY, b"other")
        assert reader.current_version() == second.version != first.version
    assert read(driver, KEY) == b"other"
    data = some_bytes(case.part_size + 5)
    upload = begin(driver, data, case.part_size)
    driver.complete_upload(upload, [driver.put_part(upload, *piece) for piece in pieces(data, case.part_size)])
    assert read(driver, KEY) == data
    assert keys(driver) == [KEY]


def test_taken_key_is_refused_when_written_if_absent(case: DriverCase, driver: StoreDriver) -> None:
    if not driver.capabilities.conditional_put:
        # The probe saw that the server ignores the condition; then nobody may rely on it, and that is all there is to test.
        assert driver.config.facts.get("conditional_put") is not True
        return
    put(driver, KEY, b"first", if_absent=True)
    with pytest.raises(AlreadyExists):
        put(driver, KEY, b"second", if_absent=True, token="token-2")
    upload = begin(driver, None, case.part_size, token="token-3")
    parts = [driver.put_part(upload, 1, 0, b"third")]
    with pytest.raises(AlreadyExists):
        driver.complete_upload(upload, parts, if_absent=True)
    driver.abort_upload(upload)
    assert read(driver, KEY) == b"first"
    assert list(driver.pending_uploads()) == []


def test_absence_is_told_when_the_object_is_missing(driver: StoreDriver) -> None:
    put(driver, KEY, b"x")
    for missing in ("template/tmpl/2/201/missing", "nowhere/at/all", KEY + "/below", "template/tmpl"):
        with pytest.raises(NotFound):
            driver.stat(missing)
        with pytest.raises(NotFound):
            driver.open(missing)
        assert driver.exists(missing) is False
        assert driver.delete(missing) is False
    assert keys(driver, "nowhere/") == []
    assert keys(driver) == [KEY]


def test_second_delete_says_so_when_deleted_twice(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(case.part_size + 1)
    upload = begin(driver, data, case.part_size)
    driver.complete_upload(upload, [driver.put_part(upload, *piece) for piece in pieces(data, case.part_size)])
    put(driver, "volumes/1/2/neighbour", b"stays")
    assert driver.delete(KEY) is True
    assert driver.delete(KEY) is False
    assert keys(case.connect()) == ["volumes/1/2/neighbour"]


def test_metadata_is_kept_when_the_store_has_any(driver: StoreDriver) -> None:
    if not driver.capabilities.metadata:
        assert driver.name == "NFS"
        return
    metadata = {"cs-kind": "template", "cs-id": "201", "cs-name": "Übergröße 100% + 日本"}
    put(driver, "small", b"x", metadata=metadata)
    upload = driver.begin_upload("large", size=None, part_size=1000, metadata=metadata, token="token-2")
    driver.complete_upload(upload, [driver.put_part(upload, 1, 0, b"y")])
    for key in ("small", "large"):
        found = driver.stat(key).metadata
        assert {name: found.get(name) for name in metadata} == metadata


# --- uploads that are interrupted, repeated, abandoned -----------------------------------------------------------------


def test_upload_is_resumed_when_another_process_takes_over(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(3 * case.part_size + 11)
    todo = pieces(data, case.part_size)
    upload = begin(driver, data, case.part_size)
    driver.put_part(upload, *todo[2])
    driver.put_part(upload, *todo[0])
    driver.close()

    other = case.connect()
    kept = as_kept(upload)
    have = {part.number: part for part in other.list_parts(kept)}
    assert {number: part.size for number, part in have.items()} == {1: case.part_size, 3: case.part_size}
    for piece in todo:
        if piece[0] not in have:
            other.put_part(kept, *piece)
    listed = other.list_parts(kept)
    assert [(part.number, part.offset, part.size) for part in listed] == [(n, at, len(piece)) for n, at, piece in todo]
    stored = other.complete_upload(kept, listed)
    assert stored.size == len(data)
    assert read(other, KEY) == data
    assert list(other.pending_uploads()) == []


def test_nothing_changes_when_completed_twice(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(case.part_size + 1)
    upload = begin(driver, data, case.part_size)
    parts = [driver.put_part(upload, *piece) for piece in pieces(data, case.part_size)]
    first = driver.complete_upload(upload, parts)
    again = case.connect().complete_upload(as_kept(upload), parts)
    assert (again.size, again.version) == (first.size, first.version)
    assert read(driver, KEY) == data
    assert keys(driver) == [KEY]


def test_completion_is_refused_when_the_parts_are_not_those_on_the_store(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(2 * case.part_size)
    upload = begin(driver, data, case.part_size)
    parts = [driver.put_part(upload, *piece) for piece in pieces(data, case.part_size)]
    wrong = replace(parts[1], etag="0" * 32, digest="0" * len(parts[1].digest))
    with pytest.raises(Corrupt):
        driver.complete_upload(upload, [parts[0], wrong])
    assert not driver.exists(KEY)


def test_nothing_is_left_when_an_upload_is_cancelled(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(2 * case.part_size)
    upload = begin(driver, None, case.part_size)
    sent = driver.put_part(upload, *pieces(data, case.part_size)[0])
    case.connect().abort_upload(as_kept(upload))
    driver.abort_upload(upload)
    assert list(driver.pending_uploads()) == []
    assert keys(driver) == []
    assert not driver.exists(KEY)
    with pytest.raises(UploadGone):
        driver.list_parts(upload)
    gone = StoreError if "telling that an upload is gone" in case.lacks else UploadGone
    with pytest.raises(gone):
        driver.put_part(upload, 2, case.part_size, data[case.part_size :])
    with pytest.raises(gone):
        driver.complete_upload(upload, [sent])


def test_older_object_stays_when_an_upload_over_it_is_cancelled(case: DriverCase, driver: StoreDriver) -> None:
    put(driver, KEY, b"older")
    upload = begin(driver, None, case.part_size, token="token-2")
    driver.put_part(upload, 1, 0, b"newer")
    assert read(driver, KEY) == b"older"
    driver.abort_upload(upload)
    assert read(driver, KEY) == b"older"


def test_abandoned_upload_is_found_when_the_reaper_looks(case: DriverCase, driver: StoreDriver) -> None:
    begun = begin(driver, None, case.part_size, token="transfer-7-2")
    driver.put_part(begun, 1, 0, b"half")
    other = begin(driver, None, case.part_size, key="volumes/1/1/other", token="transfer-8-1")
    reaper = case.connect()
    found = {pending.upload_id: pending for pending in reaper.pending_uploads()}
    assert set(found) == {begun.upload_id, other.upload_id}
    pending = found[begun.upload_id]
    assert (pending.key, pending.token) == (KEY, "" if "tokens of pending uploads" in case.lacks else "transfer-7-2")
    assert pending.started.tzinfo is not None
    reaper.abort_upload(reaper.as_upload(pending))
    assert [left.upload_id for left in reaper.pending_uploads()] == [other.upload_id]
    reaper.abort_upload(other)
    assert list(reaper.pending_uploads()) == []


# --- listing -----------------------------------------------------------------------------------------------------------


def test_every_object_comes_once_when_the_listing_has_several_pages(case: DriverCase, driver: StoreDriver) -> None:
    names = [f"snapshots/{account}/{volume}/{file}" for account in (2, 3) for volume in (4, 40, 5) for file in "abcd"]
    names += ["template/tmpl/1/2/a.qcow2", "template/tmpl/1/2/template.properties", "template/tmpl/1/2.iso", "volumes/1/1/v"]
    shuffled = random.Random(5).sample(names, len(names))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: put(driver, key, key.encode()), shuffled))
    for lister in (case.connect(), case.connect()):
        case.small_pages(lister, 7)
        listed = list(lister.list())
        assert len(listed) == len(names)
        assert {info.key: info.size for info in listed} == {key: len(key) for key in names}
        order = [info.key for info in listed]
        assert order == keys(driver)
        for position in (0, 6, 7, 13, 20, len(order) - 1):
            assert keys(lister, after=order[position]) == order[position + 1 :]
        for prefix in ("snapshots/2/4", "snapshots/2/4/", "snapshots/3", "template/tmpl/1/2.", "volumes/1/1/v", "volumes/2"):
            assert keys(lister, prefix) == [key for key in order if key.startswith(prefix)]
        inside = [key for key in order if key.startswith("snapshots/")]
        assert keys(lister, "snapshots/", after=inside[9]) == inside[10:]


def test_folder_is_not_entered_when_pruned(case: DriverCase, driver: StoreDriver) -> None:
    for key in ("a/1", "a/lost+found/2", "lost+found/3", "b/4", "b/.nfs0001", "c/5"):
        put(driver, key, b"x")
    case.small_pages(driver, 2)
    asked: list[str] = []

    def prune(key: str) -> bool:
        asked.append(key)
        return key.endswith("lost+found/") or key == "c/" or "/.nfs" in key

    assert sorted(keys(driver, prune=prune)) == ["a/1", "b/4"]
    assert "lost+found/" in asked
    assert not [key for key in asked if key.startswith(("lost+found/3", "a/lost+found/2", "c/5"))]


# --- whose it is, and whether it is there ------------------------------------------------------------------------------


def test_marker_stays_ours_when_claimed_again(case: DriverCase, driver: StoreDriver) -> None:
    assert driver.read_marker() == {"cloud": case.config.cloud_uuid, "store": case.config.store_uuid}
    driver.claim()
    driver.check()
    assert keys(driver) == []
    assert MARKER_KEY not in keys(driver)


@pytest.mark.parametrize("other", [{"cloud_uuid": "another-cloud"}, {"store_uuid": "another-store"}])
def test_store_is_refused_when_it_belongs_to_another(case: DriverCase, driver: StoreDriver, other: dict[str, str]) -> None:
    stranger = case.connect(**other)
    with pytest.raises(Foreign):
        stranger.claim()
    with pytest.raises(Foreign):
        stranger.check()
    assert "blocker" in {step.status for step in stranger.probe()}
    assert driver.read_marker() == {"cloud": case.config.cloud_uuid, "store": case.config.store_uuid}


def test_probe_leaves_nothing_when_it_ran(case: DriverCase, driver: StoreDriver) -> None:
    put(driver, KEY, b"x")
    steps = list(driver.probe())
    assert [step.name for step in steps if step.status == "blocker"] == []
    assert {"reach", "ownership", "write", "read back", "range", "list", "multipart", "delete"} <= {step.name for step in steps}
    assert keys(driver) == [KEY]
    assert keys(driver, ".cs-probe") == []
    assert list(driver.pending_uploads()) == []


def test_access_is_denied_when_the_credentials_are_wrong(case: DriverCase, driver: StoreDriver) -> None:
    if case.wrong_details is None:
        assert driver.name == "NFS" or "refusing wrong credentials" in case.lacks
        return
    put(driver, KEY, b"x")
    stranger = case.connect(details={**case.config.details, **case.wrong_details})
    for use in (stranger.check, stranger.claim, lambda: stranger.stat(KEY), lambda: list(stranger.list())):
        with pytest.raises(AccessDenied):
            use()
    with pytest.raises(AccessDenied):
        put(stranger, KEY, b"y")
    with pytest.raises(AccessDenied):
        stranger.delete(KEY)
    steps = list(stranger.probe())
    assert "blocker" in {step.status for step in steps}
    assert read(driver, KEY) == b"x"


def test_copy_goes_on_when_the_server_was_gone_half_way(case: DriverCase, driver: StoreDriver) -> None:
    data = some_bytes(2 * case.part_size)
    first, second = pieces(data, case.part_size)
    upload = begin(driver, None, case.part_size)
    parts = [driver.put_part(upload, *first)]
    case.stop()
    for use in (
        lambda: driver.put_part(upload, *second),
        lambda: driver.list_parts(upload),
        lambda: driver.complete_upload(upload, parts),
        lambda: driver.abort_upload(upload),
        lambda: list(driver.pending_uploads()),
    ):
        with pytest.raises(Unavailable) as raised:
            use()
        assert raised.value.retryable
    case.start()
    assert not driver.exists(KEY)
    assert keys(driver) == []
    parts.append(driver.put_part(upload, *second))
    driver.complete_upload(upload, parts)
    assert read(driver, KEY) == data


def test_nothing_is_said_of_the_content_when_the_server_is_gone(case: DriverCase, driver: StoreDriver) -> None:
    put(driver, KEY, b"x")
    case.stop()
    for use in (
        driver.check,
        driver.read_marker,
        driver.claim,
        lambda: driver.stat(KEY),
        lambda: driver.exists("missing"),
        lambda: driver.open(KEY),
        lambda: driver.delete(KEY),
        lambda: driver.delete("missing"),
        lambda: list(driver.list()),
        lambda: list(driver.list("nowhere/")),
        lambda: put(driver, "other", b"y"),
        lambda: begin(driver, b"y", 1000, key="other"),
    ):
        with pytest.raises(Unavailable):
            use()
    steps = list(driver.probe())
    assert "blocker" in {step.status for step in steps}
    case.start()
    assert read(driver, KEY) == b"x"
    assert keys(driver) == [KEY]


def test_corruption_is_refused_when_the_server_verifies(case: DriverCase, driver: StoreDriver) -> None:
    if not driver.capabilities.verifies_writes:
        # Such a store's writes are proven by reading back: it may claim nothing by itself.
        stored = put(driver, KEY, b"x")
        assert stored.proof is None or stored.proof.value == "attested"
        return
    data = some_bytes(1000) + CORRUPTED + some_bytes(1000)
    upload = begin(driver, None, case.part_size)
    with case.corrupting():
        with pytest.raises(StoreError) as whole:
            put(driver, "whole", data)
        with pytest.raises(StoreError) as part:
            driver.put_part(upload, 1, 0, data)
        with pytest.raises(StoreError) as streamed:
            driver.put_part(upload, 1, 0, Streamed(driver, data))
    assert [type(raised.value) for raised in (whole, part, streamed)] == [Corrupt, Corrupt, Corrupt]
    assert not driver.exists("whole")
    sent = driver.put_part(upload, 1, 0, data)
    assert sent.verified
    assert driver.complete_upload(upload, [sent]).proof is not None
    assert read(driver, KEY) == data
