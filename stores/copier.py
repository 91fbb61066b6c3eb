"""Copies one item from driver to driver: parts in parallel, hashing, resume, throttle, proof.

Plain Python, no database: what must survive a crash goes through a `Journal`, and whoever runs the copy steers it through a
`Control` from another thread. Memory is bounded by the engine's budget whatever the object's size: a part is read once and held
until it is sent or, above a limit, read twice in small blocks, first for its checksums and then to be sent.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from cloudstorage.checkpoints import reach
from stores import reading
from stores.buffers import Buffer, Buffers
from stores.drivers.base import MiB, Part, PartSource, Reader, Stored, StoreDriver, Upload
from stores.drivers.errors import AlreadyExists, Corrupt, NotFound, SourceChanged, Unavailable, UploadGone
from stores.reading import Source
from stores.states import Proof
from stores.timing import DATABASE, LANES, LIMIT, SOURCE, TARGET, Times, measured, spending


class SourceCorrupt(Corrupt):
    """The source's own bytes are not those that were recorded; nothing was published."""


class Occupied(AlreadyExists):
    """Something lies where the copy would go, and its bytes are others: nothing was written over."""

    cause = "occupied"
    remedy = "Scan that store: it adopts the file or says what it is. Take the file away if nobody needs it, then retry."


class Stopped(Exception):
    """The copy was told to stop (paused, cancelled, fenced, shutting down); what was sent stays for a resume."""


@dataclass(frozen=True, slots=True)
class FileToCopy:
    """One file of an item. `version` and `size` are what the source's row knows; empty/None where it knows nothing."""

    source_key: str
    target_key: str
    size: int | None = None
    version: str = ""
    sha256: str = ""
    perhaps_there: bool = False
    """An earlier attempt may have written it and died before anybody knew."""
    read_back: bool = False
    """It is fetched and hashed again whatever the target says of it."""


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file whose copy is proven."""

    source_key: str
    target_key: str
    size: int
    sha256: str
    etag: str
    version: str
    source_version: str
    proof: Proof


@dataclass(slots=True)
class RecordedUpload:
    """An upload of an earlier attempt. With each part stands the SHA-256 of the file up to that part's end: the source must
    still give it before the part counts."""

    upload: Upload
    source_version: str
    parts: dict[int, tuple[Part, str]] = field(default_factory=dict)
    gone: bool = False
    """The store does not know it any more, perhaps because it was completed."""


class Journal(Protocol):
    """Remembers what a resume needs. Called from copying threads; all but `part_stored` return only when it is durable."""

    def recorded(self, target_key: str) -> RecordedUpload | None: ...

    def begun(self, file: FileToCopy, source_version: str, upload: Upload) -> None: ...

    def part_stored(self, target_key: str, part: Part, prefix_sha256: str) -> None: ...

    def completing(self, target_key: str) -> None: ...

    def abandoned(self, target_key: str) -> None: ...


class Throttle:
    """A token bucket shared by all who read under one limit; the rate (bytes/s, None = no limit) may change at any time."""

    def __init__(self, rate: float | None = None) -> None:
        self._changed = threading.Condition()
        self._rate = rate
        self._next = time.monotonic()

    @property
    def rate(self) -> float | None:
        return self._rate

    def set_rate(self, rate: float | None) -> None:
        with self._changed:
            if rate != self._rate:
                self._rate = rate
                self._next = time.monotonic()
                self._changed.notify_all()

    def take(self, size: int, control: Control) -> None:
        """Wait until `size` bytes may pass; wakes up for a changed rate and for a stop."""
        with self._changed:
            if self._rate is None:
                return
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + size / self._rate
            while (delay := self._next - time.monotonic()) > 0 and self._rate is not None:
                self._changed.wait(min(delay, 0.2))
                control.check()
                control.alive()  # nobody but we ourselves holds it up


class Control:
    """How a running copy is steered and watched; one per item. `waiting_on` says at which end it is: source or target."""

    def __init__(self, throttles: Sequence[Throttle] = (), times: Times | None = None) -> None:
        """`times`: where it is put down what the copy waits for."""
        self.throttles = tuple(throttles)
        self.bytes_done = 0
        self.progress_at = time.monotonic()
        self.times = times
        self.waiting_on = "source"
        self.in_line = False
        """It waits for memory that other copies have, whatever these wait for."""
        self.valid_until = math.inf
        """By the monotonic clock: when the copy stops by itself, because nobody has said that it may go on."""
        self._stop: str | None = None
        self._lock = threading.Lock()

    def stop(self, reason: str) -> None:
        """Make the copy raise Stopped at its next step; the first reason stays."""
        self._stop = self._stop or reason

    @property
    def stopped(self) -> str | None:
        return self._stop

    def check(self) -> None:
        if time.monotonic() > self.valid_until:
            self.stop("the lease could not be renewed in time")
        if self._stop is not None:
            raise Stopped(self._stop)

    def progress(self, size: int) -> None:
        with self._lock:
            self.bytes_done += size
            self.progress_at = time.monotonic()

    def alive(self) -> None:
        self.progress_at = time.monotonic()

    @property
    def silent(self) -> float:
        """Seconds since something of it went on; waiting for a limit of ours counts as going on."""
        return time.monotonic() - self.progress_at

    @property
    def limited(self) -> bool:
        return any(throttle.rate is not None for throttle in self.throttles)

    def pace(self, size: int) -> None:
        self.check()
        if not self.limited:
            return
        with spending(LIMIT):
            for throttle in self.throttles:
                throttle.take(size, self)


_Stores = tuple[str, str]
"""Between which stores a copy goes."""


def stores_of(source: StoreDriver, target: StoreDriver) -> _Stores:
    """The same for all drivers of these stores, for they are made anew with other settings."""
    first, second = (f"{driver.config.store_uuid} {driver.config.url}" for driver in (source, target))
    return first, second


class CopyEngine:
    """The buffers that all copies of one process share, and the lanes of those between the same stores: one that hangs holds up
    no other.

    A part of more than `held` bytes is read twice instead of held in memory. `patience`: seconds after which stores hang.
    """

    def __init__(self, *, lanes: int = 8, memory: int = 192 * MiB, held: int = 32 * MiB, patience: float = 30.0) -> None:
        self._pools: dict[_Stores, ThreadPoolExecutor] = {}
        self._making = threading.Lock()
        self._buffers = Buffers(memory, held, patience=patience)
        self._lanes = lanes
        self._held = held

    def close(self) -> None:
        """Take no more parts. Those that wait for a lane see that their copy was stopped; nobody hears of a cancelled one."""
        with self._making:
            for pool in self._pools.values():
                pool.shutdown(wait=False)
        self._buffers.close()

    def lanes_between(self, stores: _Stores) -> ThreadPoolExecutor:
        """What sends the parts of copies between these stores."""
        with self._making:
            if stores not in self._pools:
                self._pools[stores] = ThreadPoolExecutor(self._lanes, thread_name_prefix="part")
            return self._pools[stores]

    def _buffer(self, size: int, stores: _Stores, control: Control) -> Buffer:
        control.in_line = True
        try:
            with spending(LANES):
                return self._buffers.take(size, control, stores)
        finally:
            control.in_line = False

    def copy_item(
        self,
        source: StoreDriver,
        target: StoreDriver,
        files: Sequence[FileToCopy],
        *,
        metadata: Mapping[str, str],
        token: str,
        journal: Journal,
        control: Control,
    ) -> list[CopiedFile]:
        """Copy every file and prove it; raises StoreError or Stopped, and then whatever was published is not promised to anyone.

        The source is never changed. `token` names this attempt's debris on the target.
        """
        with measured(control.times):
            return [
                self._copy_file(source, target, file, metadata=metadata, token=token, journal=journal, control=control)
                for file in files
            ]

    def hash_object(self, driver: StoreDriver, key: str, control: Control) -> tuple[str, int]:
        """(SHA-256 hex, size) of an object's content as its store gives it now."""
        digest = hashlib.sha256()
        with driver.open(key) as reader:
            for offset in range(0, reader.size, 4 * MiB):
                length = min(4 * MiB, reader.size - offset)
                control.pace(length)
                block = reader.pread(offset, length)
                if len(block) != length:
                    raise Unavailable(f"{key} ended after {offset + len(block)} of {reader.size} bytes: the answer was cut off.")
                digest.update(block)
                control.alive()
            return digest.hexdigest(), reader.size

    # --- one file ------------------------------------------------------------------------------------------------------

    def _copy_file(
        self,
        source: StoreDriver,
        target: StoreDriver,
        file: FileToCopy,
        *,
        metadata: Mapping[str, str],
        token: str,
        journal: Journal,
        control: Control,
    ) -> CopiedFile:
        control.check()
        control.waiting_on = "source"
        with spending(SOURCE):
            opened = source.open(file.source_key)
        with opened as reader:
            version = reader.info.version
            # Where the SHA-256 is known, it decides: a late worker may have written the same bytes anew.
            renewed = file.version and version != file.version and not file.sha256
            if renewed or (file.size is not None and reader.size != file.size):
                raise SourceChanged(f"{file.source_key} is not what it was when it was scanned; scan its store again.")
            stores = stores_of(source, target)
            part_size = target.part_size_for(reader.size)
            if reader.size <= min(part_size, self._held):
                sha256, stored = self._put(reader, stores, target, file, metadata, token, control)
            else:
                sha256, stored = self._upload(reader, stores, target, file, part_size, metadata, token, journal, control)
        if stored.size != reader.size:
            self._discard(target, file.target_key, control)
            raise Corrupt(f"{file.target_key} has {stored.size} bytes on the store; {reader.size} were sent.")
        with spending(TARGET):
            attested = None if file.read_back else stored.proof
            proof = attested or self._read_back(target, file.target_key, sha256, control)
        return CopiedFile(
            source_key=file.source_key,
            target_key=file.target_key,
            size=reader.size,
            sha256=sha256,
            etag=stored.etag,
            version=stored.version,
            source_version=version,
            proof=proof,
        )

    def _put(
        self,
        reader: Reader,
        stores: _Stores,
        target: StoreDriver,
        file: FileToCopy,
        metadata: Mapping[str, str],
        token: str,
        control: Control,
    ) -> tuple[str, Stored]:
        buffer = self._buffer(reader.size, stores, control)
        try:
            data = Source(reader, control).read(buffer.view, 0)
            sha256 = hashlib.sha256(data).hexdigest()
            self._unchanged(reader, file, sha256)
            control.check()
            control.waiting_on = "target"
            with spending(TARGET):
                stored = self._found_there(target, file, data, metadata)
                if stored is None:
                    self._spare(target, file.target_key, sha256, control)
                    reach("copy.before-put")
                    stored = target.put(file.target_key, data, metadata=metadata, token=token)
                    reach("copy.put")
            control.progress(len(data))
            return sha256, stored
        finally:
            buffer.free()

    @staticmethod
    def _found_there(target: StoreDriver, file: FileToCopy, data: memoryview, metadata: Mapping[str, str]) -> Stored | None:
        """What an earlier attempt put there, if the store attests that it is this content under this identity."""
        if not (file.perhaps_there and target.capabilities.etag_is_md5):
            return None
        try:
            found = target.stat(file.target_key)
        except NotFound:
            return None
        ours = {name: value for name, value in metadata.items() if value}.items() <= found.metadata.items()
        same = ours and found.size == len(data) and found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        return Stored(found.size, found.etag or "", found.version, Proof.ATTESTED) if same else None

    def _upload(
        self,
        reader: Reader,
        stores: _Stores,
        target: StoreDriver,
        file: FileToCopy,
        part_size: int,
        metadata: Mapping[str, str],
        token: str,
        journal: Journal,
        control: Control,
    ) -> tuple[str, Stored]:
        version = reader.info.version
        control.waiting_on = "target"
        recorded = self._resumable(target, file, version, journal)
        if recorded is None:
            reach("copy.before-begin")
            with spending(TARGET):
                upload = target.begin_upload(
                    file.target_key, size=reader.size, part_size=part_size, metadata=metadata, token=token
                )
            reach("copy.begun")
            with spending(DATABASE):
                journal.begun(file, version, upload)
            reach("copy.recorded")
            recorded = RecordedUpload(upload, version)
        upload = recorded.upload
        try:
            sha256, parts = self._send_parts(reader, stores, target, recorded, journal, control, file)
            self._unchanged(reader, file, sha256)
            self._spare(target, file.target_key, sha256, control)
            control.check()
            with spending(DATABASE):
                journal.completing(file.target_key)
            reach("copy.before-complete")
            with spending(TARGET):
                stored = target.complete_upload(upload, parts)
        except (SourceChanged, SourceCorrupt, UploadGone):
            self._abandon(target, upload, journal)
            raise
        except Corrupt:
            if recorded.gone:  # what was published is not what was sent, and would be met by every further attempt
                self._abandon(target, upload, journal)
            raise
        reach("copy.completed")
        return sha256, stored

    @staticmethod
    def _abandon(target: StoreDriver, upload: Upload, journal: Journal) -> None:
        target.abort_upload(upload)
        journal.abandoned(upload.key)

    @classmethod
    def _resumable(cls, target: StoreDriver, file: FileToCopy, version: str, journal: Journal) -> RecordedUpload | None:
        recorded = journal.recorded(file.target_key)
        if recorded is None:
            return None
        if recorded.source_version != version:
            cls._abandon(target, recorded.upload, journal)
            return None
        try:
            present = {part.number: part for part in target.list_parts(recorded.upload)}
        except UploadGone:
            if sum(part.size for part, _ in recorded.parts.values()) == recorded.upload.size:
                recorded.gone = True
                return recorded  # perhaps completed, and only the answer or our row was lost: completing again tells
            journal.abandoned(file.target_key)
            return None
        recorded.parts = {
            number: (part, prefix_sha256)
            for number, (part, prefix_sha256) in recorded.parts.items()
            if number in present and present[number].etag == part.etag and present[number].size == part.size
        }
        return recorded

    def _send_parts(
        self,
        reader: Reader,
        stores: _Stores,
        target: StoreDriver,
        recorded: RecordedUpload,
        journal: Journal,
        control: Control,
        file: FileToCopy,
    ) -> tuple[str, list[Part]]:
        upload = recorded.upload
        whole = hashlib.sha256()
        source = Source(reader, control)
        done: dict[int, Part] = {}
        pending: set[Future[Part]] = set()
        try:
            for number, offset in enumerate(range(0, reader.size, upload.part_size), start=1):
                length = min(upload.part_size, reader.size - offset)
                control.waiting_on = "source"
                with spending(SOURCE):
                    held = source.data(offset, length) if length <= self._held else None
                needed = min(length, 2 * reading.BLOCK) if held is None else sum(size for _, size in held)
                control.waiting_on = "target"  # whose parts have the memory
                buffer = self._buffer(needed, stores, control)
                handed_over = False
                try:
                    control.waiting_on = "source"
                    data: memoryview | PartSource
                    if held is None:
                        data = source.window(offset, length, whole, target.part_digest())
                    else:
                        data = source.part(buffer.view, held, offset, length, target.part_digest)
                        for block in data.blocks() if isinstance(data, PartSource) else (data,):
                            whole.update(block)
                    control.waiting_on = "target"
                    prefix_sha256 = whole.copy().hexdigest()
                    if number in recorded.parts:
                        part, read_before = recorded.parts[number]
                        if prefix_sha256 != read_before:
                            raise SourceChanged(f"{file.source_key} differs from what an earlier attempt read of it.")
                        done[number] = part
                        control.progress(length)
                        continue
                    pending.add(
                        self.lanes_between(stores).submit(
                            self._send, target, upload, number, offset, data, prefix_sha256, buffer, journal, control
                        )
                    )
                    handed_over = True
                finally:
                    if not handed_over:
                        buffer.free()
                pending = self._collect(pending, done, block=len(pending) >= self._lanes)
            while pending:
                pending = self._collect(pending, done, block=True)
        except BaseException:
            for future in pending:
                future.add_done_callback(lambda finished: finished.cancelled() or finished.exception())
            wait(pending)
            raise
        return whole.hexdigest(), [done[number] for number in sorted(done)]

    @staticmethod
    def _collect(pending: set[Future[Part]], done: dict[int, Part], *, block: bool) -> set[Future[Part]]:
        with spending(LANES):
            finished, waiting = wait(pending, timeout=None if block else 0, return_when=FIRST_COMPLETED)
        for future in finished:
            part = future.result()
            done[part.number] = part
        return waiting

    def _send(
        self,
        target: StoreDriver,
        upload: Upload,
        number: int,
        offset: int,
        data: memoryview | PartSource,
        prefix_sha256: str,
        buffer: Buffer,
        journal: Journal,
        control: Control,
    ) -> Part:
        try:
            control.check()
            reach("copy.before-part")
            with measured(control.times, "part"):
                part = target.put_part(upload, number, offset, data)
            reach("copy.part")
            journal.part_stored(upload.key, part, prefix_sha256)
            control.progress(len(data))
            return part
        finally:
            buffer.free()

    @staticmethod
    def _unchanged(reader: Reader, file: FileToCopy, sha256: str) -> None:
        """Asked before anything is published: what lies at the target may be an earlier, right copy."""
        try:
            with spending(SOURCE):
                now = reader.current_version()
        except NotFound:
            raise SourceChanged(f"{file.source_key} was deleted while it was copied.") from None
        if now != reader.info.version:
            raise SourceChanged(f"{file.source_key} changed while it was copied.")
        if file.sha256 and sha256 != file.sha256:
            raise SourceCorrupt(
                f"{file.source_key} no longer has the SHA-256 that was recorded for it: the source's bytes have changed."
            )

    def _spare(self, target: StoreDriver, key: str, sha256: str, control: Control) -> None:
        """An export has files that no row knows, of others or left out by a scan: none is replaced by another content."""
        if target.scope != "ZONE":  # all below an object store's prefix is ours
            return
        try:
            found, size = self.hash_object(target, key, control)
        except NotFound:
            return
        if found != sha256:
            raise Occupied(f"{key} is on {target.display_url} already, with {size} bytes of another content.")

    def _read_back(self, target: StoreDriver, key: str, sha256: str, control: Control) -> Proof:
        found, _ = self.hash_object(target, key, control)
        if found != sha256:
            self._discard(target, key, control)
            raise Corrupt(f"{key} was read back from the store and differs from what was sent.")
        return Proof.READ_BACK

    @staticmethod
    def _discard(target: StoreDriver, key: str, control: Control) -> None:
        """Remove what was published but is wrong. Who lost the lease leaves it: another's ref may point to it by now."""
        control.check()
        target.delete(key)
