"""The copy engine between stores in memory: what it reads, holds, proves, remembers, and leaves behind when something fails."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from stores import reading
from stores.buffers import Buffers
from stores.copier import Control, CopiedFile, CopyEngine, FileToCopy, RecordedUpload, Stopped, Throttle, stores_of
from stores.drivers.base import Capabilities, MiB, Part, Reader, StoreConfig, Stored, Upload
from stores.drivers.errors import Corrupt, SourceChanged, Unavailable, UploadGone
from stores.reading import SMALL_HOLE
from stores.states import Proof
from tests.fakes.faulty import EVERY, FAULTS, Faults, faulty, flip
from tests.fakes.memory import SERVERS, MemoryDriver, MemoryReader, MemoryServer, server_at

pytestmark = pytest.mark.unit

PART = 64 * 1024
BLOCK = PART // 4
"""Of the parts that are read twice."""

held = pytest.mark.parametrize("copying", ["held"], indirect=True)
windowed = pytest.mark.parametrize("copying", ["windowed"], indirect=True)


class SparseReader(MemoryReader):
    extents_of: tuple[tuple[int, int], ...] = ()

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        end = self.size if end is None else end
        for offset, size in self.extents_of:
            if offset < end and offset + size > start:
                yield max(offset, start), min(offset + size, end) - max(offset, start)


class SmallParts(MemoryDriver):
    """Parts of 64 KiB whatever the size, so that a small object has many; a sparse source where `holes` says so."""

    extents: dict[str, tuple[tuple[int, int], ...]] = {}
    proves = True

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(min_part_size=PART, metadata=True, conditional_put=True, verifies_writes=True, etag_is_md5=True)

    def part_size_for(self, size: int) -> int:
        return PART

    def open(self, key: str) -> Reader:
        if key not in self.extents:
            return super().open(key)
        reader = SparseReader(self, *self._find(key))
        reader.extents_of = self.extents[key]
        return reader


FaultyDriver = faulty(SmallParts)


class FaultySmallParts(FaultyDriver):
    def part_size_for(self, size: int) -> int:
        return PART


@dataclass
class Memory:
    """A journal that survives like the rows do."""

    uploads: dict[str, RecordedUpload] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def recorded(self, target_key: str) -> RecordedUpload | None:
        return self.uploads.get(target_key)

    def begun(self, file: FileToCopy, source_version: str, upload: Upload) -> None:
        self.log.append("begun")
        self.uploads[file.target_key] = RecordedUpload(upload, source_version)

    def part_stored(self, target_key: str, part: Part, prefix_sha256: str) -> None:
        self.log.append(f"part {part.number}")
        self.uploads[target_key].parts[part.number] = (part, prefix_sha256)

    def completing(self, target_key: str) -> None:
        self.log.append("completing")

    def abandoned(self, target_key: str) -> None:
        self.log.append("abandoned")
        self.uploads.pop(target_key, None)


@dataclass
class Copying:
    """A source and a target that misbehave by script, and one engine between them."""

    engine: CopyEngine
    source: FaultySmallParts
    target: FaultySmallParts
    journal: Memory = field(default_factory=Memory)

    @property
    def kept(self) -> MemoryServer:
        return server_at(self.target.config.url)

    @property
    def source_faults(self) -> Faults:
        return self.source.faults

    @property
    def faults(self) -> Faults:
        return self.target.faults

    def put(self, key: str, data: bytes) -> None:
        self.source.inner.put(key, data, metadata={}, token="test")

    def copy(self, *keys: str, control: Control | None = None, **expected: object) -> list[CopiedFile]:
        files = [FileToCopy(key, f"there/{key}", **expected) for key in keys]
        return self.engine.copy_item(
            self.source,
            self.target,
            files,
            metadata={"cs-uuid": "one"},
            token="1-1",
            journal=self.journal,
            control=control or Control(),
        )

    def content(self, key: str) -> bytes:
        return self.kept.objects[f"there/{key}"][1]


_numbers = itertools.count()


def driver(name: str) -> FaultySmallParts:
    return FaultySmallParts(StoreConfig(f"memory://{name}-{next(_numbers)}", {}, "store", "cloud"))


@pytest.fixture(params=["held", "windowed"])
def copying(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copying]:
    """Parts that are held in memory, and parts so large (for their engine) that they are read twice."""
    windowed = request.param == "windowed"
    if windowed:
        monkeypatch.setattr(reading, "BLOCK", BLOCK)
    engine = CopyEngine(lanes=4, memory=4 * PART, held=PART // 2 if windowed else 32 * MiB)
    yield Copying(engine, driver("source"), driver("target"))
    engine.close()
    SERVERS.clear()
    FAULTS.clear()
    SmallParts.extents.clear()


def data(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


SIZES = [0, 1, PART - 1, PART, PART + 1, 5 * PART, 7 * PART + 123]


@pytest.mark.parametrize("size", SIZES)
def test_copy_equals_its_source_and_is_proven(copying, size):
    body = data(size)
    copying.put("a", body)
    (copied,) = copying.copy("a")
    assert copying.content("a") == body
    assert (copied.size, copied.sha256) == (size, hashlib.sha256(body).hexdigest())
    assert copied.proof is Proof.VERIFIED
    assert copying.kept.objects["there/a"][0].metadata == {"cs-uuid": "one"}
    assert copying.kept.uploads == {}
    assert server_at(copying.source.config.url).objects["a"][1] == body


def memory_taken(patch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every buffer that is taken from now on."""
    taken: list[int] = []
    take = Buffers.take
    patch.setattr(Buffers, "take", lambda self, size, *rest: taken.append(size) or take(self, size, *rest))
    return taken


@held
def test_holes_take_no_memory_but_for_the_smallest(copying, monkeypatch):
    part = 8 * SMALL_HOLE
    monkeypatch.setattr(SmallParts, "part_size_for", lambda *_: part)
    monkeypatch.setattr(FaultySmallParts, "part_size_for", lambda *_: part)
    extents = ((100, 100), (200 + SMALL_HOLE - 1, 10), (5 * SMALL_HOLE, 7), (part + SMALL_HOLE, part), (4 * part - 1, 1))
    body = bytearray(4 * part)
    for offset, size in extents:
        body[offset : offset + size] = data(size, offset)
    copying.put("sparse", bytes(body))
    SmallParts.extents["sparse"] = extents
    taken = memory_taken(monkeypatch)
    (copied,) = copying.copy("sparse")
    assert taken == [200 + SMALL_HOLE - 1 + 10 + 7, part - SMALL_HOLE, SMALL_HOLE, 1]
    assert copying.content("sparse") == bytes(body)
    assert copied.sha256 == hashlib.sha256(body).hexdigest()


@held
def test_holes_are_not_read(copying):
    body = bytearray(6 * PART)
    body[PART : PART + 100] = data(100)
    body[4 * PART - 50 : 4 * PART + 50] = data(100, 2)
    copying.put("sparse", bytes(body))
    SmallParts.extents["sparse"] = ((PART, 100), (4 * PART - 50, 100))
    read: list[int] = []
    inner = MemoryReader.pread

    def pread(self: MemoryReader, offset: int, length: int) -> bytes:
        read.append(length)
        return inner(self, offset, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryReader, "pread", pread)
        (copied,) = copying.copy("sparse")
    assert sum(read) == 200
    assert copying.source_faults.count("pread") == 3, "one for each extent in each part"
    assert copying.content("sparse") == bytes(body)
    assert copied.sha256 == hashlib.sha256(body).hexdigest()


@held
def test_every_byte_is_read_once_when_nothing_fails(copying):
    copying.put("a", data(9 * PART))
    copying.copy("a")
    assert copying.source_faults.count("pread") == 9
    assert copying.faults.count("pread") == 0


@held
def test_buffers_under_way_never_exceed_the_budget(copying):
    """However many items are copied at once and however slow the target: what is read and not yet sent stays in the budget."""
    under_way, most, lock = 0, 0, threading.Lock()
    read = reading.Source.read
    free = Buffers.free

    def counted(*args: object) -> memoryview:
        nonlocal under_way, most
        found = read(*args)
        with lock:
            under_way += len(found)
            most = max(most, under_way)
        return found

    def freed(self: Buffers, size: int, *rest: object) -> None:
        nonlocal under_way
        with lock:
            under_way -= size
        free(self, size, *rest)

    keys = ["a", "b", "c"]
    for key in keys:
        copying.put(key, data(12 * PART))
    failures: list[BaseException] = []

    def one(key: str) -> None:
        try:
            copying.copy(key)
        except BaseException as error:
            failures.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading.Source, "read", counted)
        patch.setattr(Buffers, "free", freed)
        threads = [threading.Thread(target=one, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert under_way == 0
    assert 0 < most <= 4 * PART
    assert all(copying.content(key) == data(12 * PART) for key in keys)


def test_part_larger_than_the_budget_passes_alone(copying):
    small = CopyEngine(lanes=4, memory=PART // 2)
    copying.engine.close()
    copying.engine = small
    copying.put("a", data(4 * PART))
    copying.copy("a")
    assert copying.content("a") == data(4 * PART)


# --- what changes under way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 3 * PART])
def test_source_that_is_not_what_the_row_knows_is_refused_before_anything_is_sent(copying, size):
    copying.put("a", data(size))
    for wrong in ({"version": "other"}, {"size": size + 1}):
        with pytest.raises(SourceChanged):
            copying.copy("a", **wrong)
    assert copying.kept.objects == copying.kept.uploads == {}
    assert copying.faults.calls == []


@pytest.mark.parametrize("size", [100, 3 * PART])
def test_nothing_is_published_when_the_source_changes_during_the_copy(copying, size):
    copying.put("a", data(size))
    copying.source_faults.on("current_version", hook=lambda: copying.put("a", data(size, 2)))
    with pytest.raises(SourceChanged):
        copying.copy("a")
    assert copying.kept.objects == copying.kept.uploads == {}
    copying.copy("a")
    assert copying.content("a") == data(size, 2)


@pytest.mark.parametrize("size", [100, 3 * PART])
def test_nothing_is_published_when_the_source_is_deleted_during_the_copy(copying, size):
    copying.put("a", data(size))
    copying.source_faults.on("current_version", hook=lambda: copying.source.inner.delete("a"))
    with pytest.raises(SourceChanged):
        copying.copy("a")
    assert copying.kept.objects == copying.kept.uploads == {}


@pytest.mark.parametrize("size", [100, 3 * PART])
def test_bytes_that_are_not_those_recorded_are_never_published(copying, size):
    """The source's disk has rotted: what an earlier, right copy of the item put there must not be replaced or removed."""
    good, bad = data(size), flip(data(size))
    copying.put("a", good)
    copying.copy("a")
    copying.put("a", bad)
    with pytest.raises(Corrupt) as refusal:
        copying.copy("a", sha256=hashlib.sha256(good).hexdigest())
    assert "no longer has the SHA-256" in str(refusal.value)
    assert copying.content("a") == good
    assert copying.kept.uploads == {}


# --- resume ----------------------------------------------------------------------------------------------------------------


def interrupted(copying: Copying, key: str = "a", *, after: int = 3) -> None:
    """A copy that fails once it has sent `after` parts."""
    fault = copying.faults.on("put_part", nth=after + 1, times=EVERY, raises=Unavailable("gone"))
    with pytest.raises(Unavailable):
        copying.copy(key)
    fault.times = 0


def test_upload_is_remembered_before_its_first_part(copying):
    copying.put("a", data(5 * PART))
    interrupted(copying, after=0)
    assert copying.journal.log == ["begun"]
    assert set(copying.kept.uploads) == {recorded.upload.upload_id for recorded in copying.journal.uploads.values()}


def test_parts_are_remembered_before_the_upload_is_completed(copying):
    copying.put("a", data(5 * PART))
    copying.copy("a")
    log = copying.journal.log
    assert log[0] == "begun"
    assert log[-1] == "completing"
    assert sorted(log[1:-1]) == [f"part {number}" for number in range(1, 6)]


def test_resume_sends_only_what_is_missing(copying):
    body = data(8 * PART)
    copying.put("a", body)
    interrupted(copying)
    sent = len(next(iter(copying.kept.uploads.values())).parts)
    assert sent >= 3
    before = copying.faults.count("put_part")
    control = Control()
    copying.copy("a", control=control)
    assert copying.faults.count("put_part") - before == 8 - sent
    assert copying.faults.count("begin_upload") == 1
    assert copying.content("a") == body
    assert control.bytes_done == len(body)


@pytest.mark.parametrize("place", [0, 1, -1], ids=["first", "second", "last"])
@pytest.mark.parametrize("lost", [False, True], ids=["sent", "to be sent again"])
def test_resume_finds_a_part_that_changed_though_its_version_did_not(copying, place, lost):
    """Also one whose bytes are not on the store, as long as a later part is: what was sent were parts of another file."""
    body = data(8 * PART)
    copying.put("a", body)
    interrupted(copying)
    server = server_at(copying.source.config.url)
    info, _ = server.objects["a"]
    (recorded,) = copying.journal.uploads.values()
    number = sorted(recorded.parts)[place]  # lanes race: the first part need not be among those that were sent
    start = (number - 1) * PART
    changed = body[:start] + flip(body[start : start + PART]) + body[start + PART :]
    server.objects["a"] = (info, changed)
    if lost:
        del next(iter(copying.kept.uploads.values())).parts[number]
    if not lost or number < max(recorded.parts):
        with pytest.raises(SourceChanged):
            copying.copy("a")
        assert copying.kept.objects == copying.kept.uploads == {}
    copying.copy("a")
    assert copying.content("a") == changed


def test_resume_begins_anew_when_the_source_has_another_version(copying):
    copying.put("a", data(8 * PART))
    interrupted(copying)
    copying.put("a", data(8 * PART, 2))
    copying.copy("a")
    assert copying.content("a") == data(8 * PART, 2)
    assert copying.kept.uploads == {}


def test_part_that_the_store_has_lost_or_changed_is_sent_again(copying):
    body = data(8 * PART)
    copying.put("a", body)
    interrupted(copying)
    (upload,) = copying.kept.uploads.values()
    part, kept = upload.parts[2]
    upload.parts[2] = (replace(part, etag="other"), flip(kept))
    del upload.parts[1]
    copying.copy("a")
    assert copying.content("a") == body


def test_copy_begins_anew_when_the_store_has_forgotten_the_upload(copying):
    copying.put("a", data(8 * PART))
    interrupted(copying)
    copying.kept.uploads.clear()
    copying.copy("a")
    assert copying.content("a") == data(8 * PART)
    assert copying.kept.uploads == {}


def test_completing_again_after_a_lost_answer_neither_sends_nor_loses_anything(copying):
    copying.put("a", data(4 * PART))
    copying.faults.on("complete_upload", then_raises=Unavailable("the answer was lost"))
    with pytest.raises(Unavailable):
        copying.copy("a")
    sent = copying.faults.count("put_part")
    (copied,) = copying.copy("a")
    assert copying.faults.count("put_part") == sent == 4
    assert copying.content("a") == data(4 * PART)
    assert copied.proof is Proof.VERIFIED


def test_upload_that_was_aborted_with_all_its_parts_is_given_up_and_the_next_copy_begins_anew(copying):
    copying.put("a", data(4 * PART))
    fault = copying.faults.on("complete_upload", raises=Unavailable("gone"))
    with pytest.raises(Unavailable):
        copying.copy("a")
    fault.times = 0
    copying.kept.uploads.clear()
    with pytest.raises(UploadGone):
        copying.copy("a")
    assert copying.journal.uploads == {}
    copying.copy("a")
    assert copying.content("a") == data(4 * PART)


def test_upload_that_was_completed_with_other_bytes_is_sent_anew(copying):
    copying.put("a", data(4 * PART))
    copying.faults.on("complete_upload", times=2, then_raises=Corrupt("its ETag is another"))
    for _ in range(2):
        with pytest.raises(Corrupt):
            copying.copy("a")
    (copied,) = copying.copy("a")
    assert copying.faults.count("put_part") == 8
    assert copied.proof is Proof.VERIFIED


# --- parts that are too large to be held ----------------------------------------------------------------------------------


def reads_of(patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, length) of every read from now on."""
    seen: list[tuple[int, int]] = []
    inner = MemoryReader.pread
    patch.setattr(MemoryReader, "pread", lambda self, at, size: seen.append((at, size)) or inner(self, at, size))
    return seen


@windowed
def test_large_part_is_read_twice_in_blocks_and_both_readings_count_against_the_limit(copying, monkeypatch):
    copying.put("a", data(3 * PART + 100))
    reads = reads_of(monkeypatch)
    control = Stepped(1 << 40)
    copying.copy("a", control=control)
    assert Counter(reads) == {(at, BLOCK): 2 for at in range(0, 3 * PART, BLOCK)} | {(3 * PART, 100): 1}
    assert control.read == 6 * PART + 100
    assert control.bytes_done == 3 * PART + 100
    assert copying.content("a") == data(3 * PART + 100)


@windowed
def test_holes_of_a_large_part_are_read_in_neither_pass(copying, monkeypatch):
    body = bytearray(6 * PART)
    body[PART : PART + 100] = data(100)
    body[4 * PART - 50 : 4 * PART + 50] = data(100, 2)
    copying.put("sparse", bytes(body))
    SmallParts.extents["sparse"] = ((PART, 100), (4 * PART - 50, 100))
    reads = reads_of(monkeypatch)
    (copied,) = copying.copy("sparse")
    assert Counter(reads) == {(PART, 100): 2, (4 * PART - 50, 50): 2, (4 * PART, 50): 2}
    assert copying.content("sparse") == bytes(body)
    assert copied.sha256 == hashlib.sha256(body).hexdigest()


@windowed
@pytest.mark.parametrize("at", [0, PART // 2, PART - BLOCK], ids=["first block", "middle", "last block"])
def test_part_that_reads_differently_when_it_is_sent_is_never_stored(copying, monkeypatch, at):
    """The version does not tell: the bytes alone do."""
    body = data(3 * PART)
    copying.put("a", body)
    block = PART + at
    seen: list[int] = []
    inner = MemoryReader.pread

    def changing(self: MemoryReader, offset: int, length: int) -> bytes:
        found = inner(self, offset, length)
        seen.append(offset)
        return flip(found) if offset == block and seen.count(block) == 2 else found

    monkeypatch.setattr(MemoryReader, "pread", changing)
    with pytest.raises(SourceChanged) as refusal:
        copying.copy("a")
    assert "when it was read again" in str(refusal.value)
    assert "part 2" not in copying.journal.log
    assert copying.journal.log[-1] == "abandoned"
    assert copying.kept.objects == copying.kept.uploads == {}
    copying.copy("a")
    assert copying.content("a") == body


@windowed
def test_resume_reads_a_large_part_that_is_there_only_once(copying, monkeypatch):
    copying.put("a", data(6 * PART))
    interrupted(copying)
    sent = set(copying.journal.uploads["there/a"].parts)
    assert len(sent) >= 3
    reads = reads_of(monkeypatch)
    copying.copy("a")
    times = {number: 1 if number in sent else 2 for number in range(1, 7)}
    assert Counter(at // PART + 1 for at, _ in reads) == {number: 4 * count for number, count in times.items()}
    assert copying.content("a") == data(6 * PART)


@windowed
def test_stop_bites_within_a_large_part(copying):
    copying.put("a", data(4 * PART))
    control = Stepped(3 * BLOCK)
    with pytest.raises(Stopped):
        copying.copy("a", control=control)
    assert control.read == 3 * BLOCK
    copying.copy("a")
    assert copying.content("a") == data(4 * PART)
    assert copying.faults.count("begin_upload") == 1


@windowed
def test_large_parts_take_their_blocks_alone_from_the_budget(copying, monkeypatch):
    taken = memory_taken(monkeypatch)
    copying.put("a", data(4 * PART))
    copying.copy("a")
    assert taken == [2 * BLOCK] * 4
    assert copying.engine._buffers.in_use == 0


# --- proof -----------------------------------------------------------------------------------------------------------------


@held
def test_what_an_earlier_attempt_put_there_is_taken_for_what_it_is_and_not_sent_again(copying):
    copying.put("a", data(PART))
    copying.copy("a")
    (copied,) = copying.copy("a", perhaps_there=True)
    assert copying.faults.count("put") == 1
    assert copied.proof is Proof.ATTESTED
    assert copied.sha256 == hashlib.sha256(data(PART)).hexdigest()


@pytest.mark.parametrize(("body", "identity"), [(b"other bytes", "one"), (data(10), "another item")])
def test_what_lies_there_is_replaced_when_its_bytes_or_identity_are_others(copying, body, identity):
    copying.put("a", data(10))
    copying.target.inner.put("there/a", body, metadata={"cs-uuid": identity}, token="0-1")
    (copied,) = copying.copy("a", perhaps_there=True)
    assert copied.proof is Proof.VERIFIED
    assert copying.content("a") == data(10)
    assert copying.kept.objects["there/a"][0].metadata == {"cs-uuid": "one"}


def unproven(stored: Stored) -> Stored:
    return replace(stored, proof=None)


@pytest.mark.parametrize(("size", "method"), [(100, "put"), (3 * PART, "complete_upload")])
def test_copy_is_read_back_when_the_store_proves_nothing(copying, size, method):
    copying.put("a", data(size))
    copying.faults.on(method, result=unproven)
    (copied,) = copying.copy("a")
    assert copied.proof is Proof.READ_BACK
    assert copying.faults.count("pread", "there/a") >= 1


@pytest.mark.parametrize(("size", "writes", "method"), [(100, "put", "put"), (3 * PART, "put_part", "complete_upload")])
def test_wrong_bytes_on_a_store_that_proves_nothing_are_found_and_removed(copying, size, writes, method):
    copying.put("a", data(size))
    copying.faults.on(writes, data=flip)
    copying.faults.on(method, result=unproven)
    with pytest.raises(Corrupt):
        copying.copy("a")
    assert copying.kept.objects == {}


@pytest.mark.parametrize(("size", "method"), [(100, "put"), (3 * PART, "complete_upload")])
def test_object_of_another_size_is_refused_and_removed(copying, size, method):
    copying.put("a", data(size))
    copying.faults.on(method, result=lambda stored: replace(stored, size=stored.size - 1))
    with pytest.raises(Corrupt):
        copying.copy("a")
    assert copying.kept.objects == {}


def test_copy_that_lost_its_lease_removes_nothing_that_another_may_have_proven(copying):
    copying.put("a", data(100))
    control = Control()

    def fenced(stored: Stored) -> Stored:
        control.stop("the lease was lost")
        return replace(stored, size=stored.size - 1)

    copying.faults.on("put", result=fenced)
    with pytest.raises(Stopped):
        copying.copy("a", control=control)
    assert copying.content("a") == data(100)


def test_every_file_of_an_item_is_copied_with_its_own_hash(copying):
    bodies = {"dir/image": data(3 * PART), "dir/template.properties": b"a=b\n"}
    for key, body in bodies.items():
        copying.put(key, body)
    copied = copying.copy(*bodies)
    assert [file.sha256 for file in copied] == [hashlib.sha256(body).hexdigest() for body in bodies.values()]
    assert [file.target_key for file in copied] == [f"there/{key}" for key in bodies]
    assert sorted(copying.kept.objects) == sorted(f"there/{key}" for key in bodies)


# --- steering --------------------------------------------------------------------------------------------------------------


class Stepped(Control):
    """Stops once so many bytes were read."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.read = limit, 0

    def pace(self, size: int) -> None:
        self.read += size
        if self.read >= self.limit:
            self.stop("paused")
        super().pace(size)


@held
def test_stop_bites_within_one_part_and_what_was_sent_stays(copying):
    copying.put("a", data(20 * PART))
    control = Stepped(6 * PART)
    with pytest.raises(Stopped) as reason:
        copying.copy("a", control=control)
    assert str(reason.value) == "paused"
    assert control.read == 6 * PART, "nothing was read after the stop"
    assert copying.kept.objects == {}
    assert len(copying.kept.uploads) == 1
    copying.copy("a")
    assert copying.content("a") == data(20 * PART)
    assert copying.faults.count("begin_upload") == 1


def test_stop_is_heard_while_the_limit_makes_it_wait(copying):
    copying.put("a", data(20 * PART))
    control = Control([Throttle(1.0)])
    timer = threading.Timer(0.2, control.stop, ["paused"])
    timer.start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        copying.copy("a", control=control)
    assert time.monotonic() - started < 10


def test_limit_is_honoured_and_what_is_read_is_not_more(copying):
    copying.put("a", data(8 * PART))
    rate = 16 * PART
    started = time.monotonic()
    copying.copy("a", control=Control([Throttle(rate)]))
    assert time.monotonic() - started >= 0.8 * 8 * PART / rate


def test_limit_is_shared_by_all_who_read_under_it(copying):
    throttle = Throttle(32 * PART)
    for key in ("a", "b"):
        copying.put(key, data(8 * PART))
    started = time.monotonic()
    threads = [threading.Thread(target=copying.copy, args=(key,), kwargs={"control": Control([throttle])}) for key in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert time.monotonic() - started >= 0.8 * 16 / 32


def test_raised_limit_frees_who_waits_under_the_old_one(copying):
    copying.put("a", data(4 * PART))
    throttle = Throttle(1.0)
    timer = threading.Timer(0.2, throttle.set_rate, [None])
    timer.start()
    started = time.monotonic()
    copying.copy("a", control=Control([throttle]))
    assert time.monotonic() - started < 30, "4 parts at one byte per second would take three days"


@held
def test_limited_reads_are_small_enough_for_a_pause_to_bite(copying):
    body = data(3 * MiB)
    reads: list[int] = []
    copying.put("a", body)
    inner = MemoryReader.pread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryDriver, "part_size_for", lambda *_: 8 * MiB)
        patch.setattr(FaultySmallParts, "part_size_for", lambda *_: 8 * MiB)
        patch.setattr(MemoryReader, "pread", lambda self, at, size: reads.append(size) or inner(self, at, size))
        copying.copy("a", control=Control([Throttle(10**12)]))
    assert reads == [MiB] * 3


def test_progress_counts_every_byte_once(copying):
    copying.put("a", data(5 * PART + 7))
    control = Control()
    copying.copy("a", control=control)
    assert control.bytes_done == 5 * PART + 7


def test_failing_source_leaves_the_upload_for_a_resume(copying):
    copying.put("a", data(8 * PART))
    copying.source_faults.on("pread", nth=5, raises=Unavailable("stale handle"))
    with pytest.raises(Unavailable):
        copying.copy("a")
    assert copying.kept.objects == {}
    copying.copy("a")
    assert copying.content("a") == data(8 * PART)
    assert copying.faults.count("begin_upload") == 1


def test_engine_serves_the_next_item_after_one_failed(copying):
    """Lanes and buffers of a failed copy are given back."""
    copying.put("bad", data(8 * PART))
    copying.put("good", data(8 * PART, 2))
    for _ in range(5):
        fault = copying.faults.on("put_part", nth=2, times=EVERY, key="there/bad", raises=Unavailable("gone"))
        with pytest.raises(Unavailable):
            copying.copy("bad")
        fault.times = 0
    copying.copy("good")
    assert copying.content("good") == data(8 * PART, 2)
    assert copying.engine._buffers.in_use == 0


@held
def test_copies_end_when_their_engine_is_closed_while_parts_wait_for_a_lane(copying, monkeypatch):
    engine = CopyEngine(lanes=1, memory=8 * PART)
    lanes = engine.lanes_between(stores_of(copying.source, copying.target))
    submit, submitted = lanes.submit, threading.Semaphore(0)
    monkeypatch.setattr(lanes, "submit", lambda *work: (submit(*work), submitted.release())[0])
    stall = copying.faults.stall("put_part")
    control = Control()
    told: list[str] = []

    def copy(key: str) -> None:
        files, journal = [FileToCopy(key, f"there/{key}")], Memory()
        try:
            engine.copy_item(copying.source, copying.target, files, metadata={}, token="1", journal=journal, control=control)
        except Stopped as stopped:
            told.append(str(stopped))

    copying.put("a", data(3 * PART))
    copying.put("b", data(3 * PART))
    threads = [threading.Thread(target=copy, args=(key,), daemon=True) for key in "ab"]
    for thread in threads:
        thread.start()
        assert submitted.acquire(timeout=10)
    control.stop("the pump has ended")
    engine.close()
    assert stall.reached.wait(10)
    stall.release.set()
    for thread in threads:
        thread.join(10)
    assert told == ["the pump has ended"] * 2
    assert engine._buffers.in_use == 0


@held
@pytest.mark.parametrize(("hanging", "at_once"), [("source", 4), ("target", 2)])
def test_store_that_hangs_keeps_neither_memory_nor_lanes_from_the_others(copying, hanging, at_once):
    """As an export does whose server is gone, for as long as it is."""
    engine = CopyEngine(lanes=2, memory=4 * PART, patience=math.inf)
    copying.engine.close()
    copying.engine = engine
    others = Copying(engine, driver("other source"), driver("other target"))
    reached, release = threading.Semaphore(0), threading.Event()
    faults, method = (copying.source_faults, "pread") if hanging == "source" else (copying.faults, "put_part")
    faults.on(method, times=EVERY, hook=lambda: (reached.release(), release.wait(60)))
    for key in "abcd":
        copying.put(key, data(8 * PART))
    others.put("e", data(8 * PART))
    with ThreadPoolExecutor(5) as copies:
        try:
            hung = [copies.submit(copying.copy, key) for key in "abcd"]
            assert all(reached.acquire(timeout=30) for _ in range(at_once))
            engine._buffers._patience = 0.0  # they have hung long enough
            (copied,) = copies.submit(others.copy, "e").result(timeout=30)
            assert copied.proof is Proof.VERIFIED
        finally:
            release.set()
        assert [one.result(timeout=30)[0].proof for one in hung] == [Proof.VERIFIED] * 4
    assert engine._buffers.in_use == 0
