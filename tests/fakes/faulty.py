"""A driver that wraps another and misbehaves by script: fails, stalls, lies, corrupts, forgets; keyed by the store's url."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from stores.drivers.base import (
    Capabilities,
    Digest,
    ObjectInfo,
    Part,
    PartData,
    PendingUpload,
    ProbeStep,
    Reader,
    StoreConfig,
    Stored,
    StoreDriver,
    Upload,
)
from stores.drivers.errors import StoreError
from tests.fakes.memory import MemoryDriver, held

EVERY = 1_000_000_000
"""As `times`: the fault never ends."""


def flip(data: bytes | memoryview) -> bytes:
    """The same bytes with one bit of the middle one changed."""
    changed = bytearray(data)
    if changed:
        changed[len(changed) // 2] ^= 1
    return bytes(changed)


def cut(data: bytes | memoryview) -> bytes:
    """The bytes without their last."""
    return bytes(data)[:-1]


@dataclass
class Fault:
    """What happens instead of, around or after the `nth` call (and the `times` - 1 that follow) of `method`.

    The order within a call: `hook`, `raises`, `answers` (without doing anything), the real call with its bytes changed by
    `data`, its result changed by `result`, `then_raises` (the answer was lost: all was done, and the caller is not told).
    """

    method: str
    nth: int = 1
    times: int = 1
    key: str | None = None
    hook: Callable[[], object] | None = None
    raises: StoreError | None = None
    answers: Any = None
    data: Callable[[bytes | memoryview], bytes] | None = None
    result: Callable[[Any], Any] | None = None
    then_raises: StoreError | None = None
    seen: int = 0

    def strikes(self, method: str, key: str) -> bool:
        if method != self.method or self.key not in {None, key}:
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass
class Stall:
    """A call that waits: `reached` is set when it got there, and setting `release` lets it go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.reached.set()
        assert self.release.wait(60), "nobody released the stalled call"


class Faults:
    """The script of one store, and the record of every call made to it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.calls: list[tuple[str, str]] = []
        """(method, key) of every call, in order; `pread` and `current_version` are calls of the readers."""

    def on(self, method: str, **what: Any) -> Fault:
        """Add a fault; see `Fault` for what can be said of it. Counting begins now."""
        fault = Fault(method, **what)
        with self._lock:
            self._faults.append(fault)
        return fault

    def stall(self, method: str, *, nth: int = 1, key: str | None = None) -> Stall:
        """Let the nth call wait until it is released."""
        stall = Stall()
        self.on(method, nth=nth, key=key, hook=stall)
        return stall

    def lag_listing(self, unseen: Callable[[str], bool], still_shown: Sequence[ObjectInfo] = ()) -> Fault:
        """Until `clear`, listings leave out the keys for which `unseen` answers true; those of everything have `still_shown`."""

        def late(infos: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
            former = {info.key: info for info in still_shown}
            now = {info.key: info for info in infos if not unseen(info.key)}
            return iter(sorted((now | former).values(), key=lambda info: info.key.encode("utf-8", "surrogateescape")))

        return self.on("list", times=EVERY, result=late, key="" if still_shown else None)

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._faults.clear()

    def count(self, method: str, key: str | None = None) -> int:
        """How often a method was called (for a key)."""
        with self._lock:
            return sum(1 for name, of in self.calls if name == method and key in {None, of})

    def around(self, method: str, key: str, call: Callable[..., Any], data: PartData | None = None) -> Any:
        """Do one call under the script; `call` gets `data` where there is any."""
        with self._lock:
            self.calls.append((method, key))
            striking = [fault for fault in self._faults if fault.strikes(method, key)]
        for fault in striking:
            if fault.hook is not None:
                fault.hook()
            if fault.raises is not None:
                raise fault.raises
            if fault.answers is not None:
                return fault.answers
            if fault.data is not None and data is not None:
                data = fault.data(held(data))
        result = call() if data is None else call(data)
        for fault in striking:
            if fault.result is not None:
                result = fault.result(result)
            if fault.then_raises is not None:
                raise fault.then_raises
        return result


FAULTS: dict[str, Faults] = {}


def faults_at(url: str) -> Faults:
    """The script of the store with this url, made on first use; every driver of that url in this process follows it."""
    return FAULTS.setdefault(url, Faults())


class FaultyReader(Reader):
    def __init__(self, inner: Reader, faults: Faults) -> None:
        self.info = inner.info
        self._inner = inner
        self._faults = faults

    def pread(self, offset: int, length: int) -> bytes:
        found: bytes = self._faults.around("pread", self.info.key, lambda: self._inner.pread(offset, length))
        return found

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        yield from self._inner.extents(start, end)

    def current_version(self) -> str:
        version: str = self._faults.around("current_version", self.info.key, self._inner.current_version)
        return version

    def close(self) -> None:
        self._inner.close()


class FaultyDriver(StoreDriver):
    """The wrapper; `faulty(SomeDriver)` makes the class of a given kind."""

    inner_class: ClassVar[type[StoreDriver]]

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.inner = self.inner_class(config)
        self.faults = faults_at(config.url)
        self._really: dict[tuple[str, int], Part] = {}

    @classmethod
    def clean(cls, url: str, details: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        return cls.inner_class.clean(url, details)

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def protocol(self) -> str:
        return self.inner.protocol

    @property
    def display_url(self) -> str:
        return self.inner.display_url

    def check(self) -> None:
        self.faults.around("check", "", self.inner.check)

    def probe(self) -> Iterator[ProbeStep]:
        yield from self.faults.around("probe", "", self.inner.probe)

    def read_marker(self) -> Mapping[str, str] | None:
        return self.faults.around("read_marker", "", self.inner.read_marker)

    def write_marker(self, marker: Mapping[str, str]) -> None:
        self.faults.around("write_marker", "", lambda: self.inner.write_marker(marker))

    def stat(self, key: str) -> ObjectInfo:
        return self.faults.around("stat", key, lambda: self.inner.stat(key))

    def list(self, prefix: str = "", *, after: str = "", prune: Callable[[str], bool] | None = None) -> Iterator[ObjectInfo]:
        yield from self.faults.around("list", prefix, lambda: self.inner.list(prefix, after=after, prune=prune))

    def open(self, key: str) -> Reader:
        return FaultyReader(self.faults.around("open", key, lambda: self.inner.open(key)), self.faults)

    def presign(self, key: str, *, expires: int, filename: str = "") -> str | None:
        return self.inner.presign(key, expires=expires, filename=filename)

    def put(
        self, key: str, data: bytes | memoryview, *, metadata: Mapping[str, str], token: str, if_absent: bool = False
    ) -> Stored:
        def call(data: bytes | memoryview) -> Stored:
            return self.inner.put(key, data, metadata=metadata, token=token, if_absent=if_absent)

        return self.faults.around("put", key, call, data)

    def begin_upload(self, key: str, *, size: int | None, part_size: int, metadata: Mapping[str, str], token: str) -> Upload:
        def call() -> Upload:
            return self.inner.begin_upload(key, size=size, part_size=part_size, metadata=metadata, token=token)

        return self.faults.around("begin_upload", key, call)

    def part_digest(self) -> Digest:
        return self.inner.part_digest()

    def put_part(self, upload: Upload, number: int, offset: int, data: PartData) -> Part:
        def call(changed: PartData) -> Part:
            claimed = self.inner.put_part(upload, number, offset, data)
            if changed != data:
                # The server says that it has what was sent, and keeps something else.
                self._really[upload.upload_id, number] = self.inner.put_part(upload, number, offset, changed)
            return claimed

        return self.faults.around("put_part", upload.key, call, data)

    def list_parts(self, upload: Upload) -> Sequence[Part]:
        return self.faults.around("list_parts", upload.key, lambda: self.inner.list_parts(upload))

    def complete_upload(self, upload: Upload, parts: Sequence[Part], *, if_absent: bool = False) -> Stored:
        def call() -> Stored:
            really = [self._really.get((upload.upload_id, part.number), part) for part in parts]
            changed = replace(upload, size=sum(part.size for part in really))
            return self.inner.complete_upload(changed, really, if_absent=if_absent)

        return self.faults.around("complete_upload", upload.key, call)

    def abort_upload(self, upload: Upload) -> None:
        self.faults.around("abort_upload", upload.key, lambda: self.inner.abort_upload(upload))

    def pending_uploads(self) -> Iterator[PendingUpload]:
        yield from self.faults.around("pending_uploads", "", self.inner.pending_uploads)

    def as_upload(self, pending: PendingUpload) -> Upload:
        return self.inner.as_upload(pending)

    def delete(self, key: str) -> bool:
        return self.faults.around("delete", key, lambda: self.inner.delete(key))

    def purge_trash(self, *, older_than: float) -> int:
        return self.faults.around("purge_trash", "", lambda: self.inner.purge_trash(older_than=older_than))

    def close(self) -> None:
        self.inner.close()


def faulty(inner: type[StoreDriver]) -> type[FaultyDriver]:
    """The class of drivers that wrap `inner` and present themselves as such."""
    shown = ("name", "label", "scope", "url_help", "options")
    return type(
        f"Faulty{inner.__name__}", (FaultyDriver,), {"inner_class": inner, **{name: getattr(inner, name) for name in shown}}
    )


FaultyMemoryDriver = faulty(MemoryDriver)
"""For STORE_DRIVERS of tests: `{"Memory": "tests.fakes.faulty.FaultyMemoryDriver"}`."""
