"""An image store in memory: the whole contract, verifying and deterministic, shared by every driver of the same url."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

from stores.drivers.base import (
    MARKER_KEY,
    Capabilities,
    ObjectInfo,
    Option,
    Part,
    PartData,
    PartSource,
    PendingUpload,
    ProbeStep,
    Reader,
    Stored,
    StoreDriver,
    Upload,
)
from stores.drivers.confined import components
from stores.drivers.errors import AlreadyExists, Corrupt, Foreign, LockedOut, Misconfigured, NotFound, Unavailable, UploadGone
from stores.drivers.probe import PROBE_FOLDER, Sandbox, generic_checks, run
from stores.states import Proof

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class MemoryUpload:
    upload: Upload
    metadata: dict[str, str]
    started: datetime
    parts: dict[int, tuple[Part, bytes]] = field(default_factory=dict)


@dataclass
class MemoryServer:
    """What a store of this url holds; tests look into it, stop it and change its password."""

    objects: dict[str, tuple[ObjectInfo, bytes]] = field(default_factory=dict)
    uploads: dict[str, MemoryUpload] = field(default_factory=dict)
    completed: dict[str, Stored] = field(default_factory=dict)
    marker: dict[str, str] | None = None
    available: bool = True
    password: str = ""
    corrupt: Callable[[bytes], bytes] | None = None
    """Changes bytes on their way to the server, which it notices."""
    clock: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def now(self) -> datetime:
        """A clock that ticks with every write, so that runs are the same."""
        self.clock += 1
        return _EPOCH + timedelta(seconds=self.clock)

    def receive(self, data: bytes | memoryview, digest: str) -> bytes:
        received = bytes(data) if self.corrupt is None else self.corrupt(bytes(data))
        if hashlib.sha256(received).hexdigest() != digest:
            raise Corrupt("The store received other bytes than were sent.")
        return received

    def store(self, key: str, data: bytes, etag: str, metadata: Mapping[str, str], *, if_absent: bool) -> Stored:
        if if_absent and key in self.objects:
            raise AlreadyExists(f"{key} exists already.")
        modified = self.now()
        info = ObjectInfo(key, len(data), modified, f"{etag}-{self.clock}", etag, len(data), dict(metadata))
        self.objects[key] = (info, data)
        return Stored(len(data), etag, info.version, Proof.VERIFIED)


SERVERS: dict[str, MemoryServer] = {}


def server_at(url: str) -> MemoryServer:
    """The server behind `memory://name`, made on first use."""
    return SERVERS.setdefault(url, MemoryServer())


class MemoryReader(Reader):
    def __init__(self, driver: MemoryDriver, info: ObjectInfo, data: bytes) -> None:
        self.info = info
        self._driver = driver
        self._data = data

    def pread(self, offset: int, length: int) -> bytes:
        with self._driver.server():
            return self._data[offset : offset + max(0, length)]

    def current_version(self) -> str:
        return self._driver.stat(self.info.key).version


class MemoryDriver(StoreDriver):
    """A region-wide store in this process."""

    name: ClassVar[str] = "Memory"
    label: ClassVar[str] = "Memory (tests)"
    scope: ClassVar[Literal["ZONE", "REGION"]] = "REGION"
    url_help: ClassVar[str] = "memory://name"
    options: ClassVar[tuple[Option, ...]] = (Option("password", "Password", "Must equal the server's.", secret=True),)

    @classmethod
    def clean(cls, url: str, details: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        if not url.startswith("memory://"):
            raise Misconfigured(f"The url {url!r} must look like memory://name.", field="url")
        return super().clean(url, details)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(min_part_size=64 * 1024, metadata=True, conditional_put=True, verifies_writes=True)

    @property
    def protocol(self) -> str:
        return "http"

    @property
    def display_url(self) -> str:
        return self.config.url

    def server(self) -> _Session:
        """The server, locked for one call; raises what a stopped or unwilling server would."""
        return _Session(server_at(self.config.url), self.config.details.get("password", ""))

    # --- facts ---------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        marker = self.read_marker()
        if marker is None:
            raise Unavailable(f"{self.display_url} has no ownership marker.")
        if (marker.get("cloud"), marker.get("store")) != (self.config.cloud_uuid, self.config.store_uuid):
            raise Foreign(f"{self.display_url} carries the marker of another store.")

    def probe(self) -> Iterator[ProbeStep]:
        sandbox = Sandbox(self)
        yield from run(generic_checks(sandbox), sandbox)

    def read_marker(self) -> Mapping[str, str] | None:
        with self.server() as server:
            return None if server.marker is None else dict(server.marker)

    def write_marker(self, marker: Mapping[str, str]) -> None:
        with self.server() as server:
            if server.marker is not None and server.marker != dict(marker):
                raise Foreign(f"{self.display_url} already carries another ownership marker.")
            server.marker = dict(marker)

    def stat(self, key: str) -> ObjectInfo:
        return self._find(key)[0]

    def _find(self, key: str) -> tuple[ObjectInfo, bytes]:
        components(key)
        with self.server() as server:
            if key not in server.objects:
                raise NotFound(f"{key} is not on {self.display_url}.")
            return server.objects[key]

    def list(self, prefix: str = "", *, after: str = "", prune: Callable[[str], bool] | None = None) -> Iterator[ObjectInfo]:
        with self.server() as server:
            keys = sorted((key for key in server.objects if key.startswith(prefix)), key=_order)
        for key in keys:
            folders = [key[: end + 1] for end, letter in enumerate(key) if letter == "/" and end + 1 >= len(prefix)]
            hidden = key.startswith(PROBE_FOLDER) and not prefix.startswith(PROBE_FOLDER)
            if hidden or _order(key) <= _order(after) or (prune and any(prune(name) for name in [*folders, key])):
                continue
            with self.server() as server:
                found = server.objects.get(key)
            if found is not None:
                yield found[0]

    # --- reading and writing -------------------------------------------------------------------------------------------

    def open(self, key: str) -> Reader:
        return MemoryReader(self, *self._find(key))

    def put(
        self, key: str, data: bytes | memoryview, *, metadata: Mapping[str, str], token: str, if_absent: bool = False
    ) -> Stored:
        components(key)
        with self.server() as server:
            received = server.receive(data, hashlib.sha256(data).hexdigest())
            return server.store(key, received, _md5(received), metadata, if_absent=if_absent)

    def begin_upload(self, key: str, *, size: int | None, part_size: int, metadata: Mapping[str, str], token: str) -> Upload:
        components(key)
        with self.server() as server:
            started = server.now()
            upload = Upload(key, f"upload-{server.clock}", size, part_size, token)
            server.uploads[upload.upload_id] = MemoryUpload(upload, dict(metadata), started)
            return upload

    def put_part(self, upload: Upload, number: int, offset: int, data: PartData) -> Part:
        digest = data.digest if isinstance(data, PartSource) else hashlib.sha256(data).hexdigest()
        content = held(data)
        with self.server() as server:
            pending = _pending(server, upload)
            received = server.receive(content, digest)
            part = Part(number, offset, len(received), _md5(received), digest, verified=True)
            pending.parts[number] = (part, received)
            return part

    def list_parts(self, upload: Upload) -> Sequence[Part]:
        with self.server() as server:
            found = _pending(server, upload).parts
            return [replace(found[number][0], digest="") for number in sorted(found)]

    def complete_upload(self, upload: Upload, parts: Sequence[Part], *, if_absent: bool = False) -> Stored:
        with self.server() as server:
            if upload.upload_id in server.completed:
                return server.completed[upload.upload_id]
            pending = _pending(server, upload)
            have = {number: (part.size, part.etag) for number, (part, _) in pending.parts.items()}
            if {part.number: (part.size, part.etag) for part in parts} != have:
                raise Corrupt(f"{upload.key}: the parts on the store are not those that were sent.")
            content = b"".join(pending.parts[number][1] for number in sorted(pending.parts))
            if upload.size not in {None, len(content)}:
                raise Corrupt(f"{upload.key}: the parts add up to {len(content)} bytes, not to {upload.size}.")
            etag = _md5(b"".join(bytes.fromhex(pending.parts[number][0].etag) for number in sorted(pending.parts)))
            etag = f"{etag}-{len(parts)}"
            stored = server.store(upload.key, content, etag, pending.metadata, if_absent=if_absent)
            del server.uploads[upload.upload_id]
            server.completed[upload.upload_id] = stored
            return stored

    def abort_upload(self, upload: Upload) -> None:
        with self.server() as server:
            server.uploads.pop(upload.upload_id, None)

    def pending_uploads(self) -> Iterator[PendingUpload]:
        with self.server() as server:
            found = sorted(server.uploads.items())
        for upload_id, pending in found:
            yield PendingUpload(pending.upload.key, upload_id, pending.upload.token, pending.started)

    def delete(self, key: str) -> bool:
        components(key)
        with self.server() as server:
            return server.objects.pop(key, None) is not None


class _Session:
    """One call to the server."""

    def __init__(self, server: MemoryServer, password: str) -> None:
        self._server = server
        self._password = password

    def __enter__(self) -> MemoryServer:
        if not self._server.available:
            raise Unavailable("The store does not answer.")
        if self._server.password != self._password:
            raise LockedOut("The store refused the password.")
        self._server.lock.acquire()
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.lock.release()


def held(data: PartData) -> bytes:
    """All bytes of a part, as a server has them that received it."""
    return b"".join(data.blocks()) if isinstance(data, PartSource) else bytes(data)


def _pending(server: MemoryServer, upload: Upload) -> MemoryUpload:
    try:
        return server.uploads[upload.upload_id]
    except KeyError:
        raise UploadGone(f"The upload {upload.upload_id} of {upload.key} is no longer there.") from None


def _order(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


__all__ = ["MARKER_KEY", "SERVERS", "MemoryDriver", "MemoryServer", "held", "server_at"]
