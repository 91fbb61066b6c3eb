"""The contract of an image store: a driver moves bytes and tells facts, and decides nothing.

Plain Python. A driver instance belongs to one process and may be used by many threads; SDK clients are made lazily, on first
use, because some of them do not survive a fork. Keys are `/`-separated relative paths; undecodable bytes of a file name are
kept as surrogate escapes. All sizes and offsets are bytes, all durations seconds.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Literal, Protocol, Self

from stores.drivers.errors import Foreign, Misconfigured, NotFound
from stores.states import Proof

MiB = 1024 * 1024
MARKER_KEY = ".cloudstorage.json"
"""The ownership marker at the root (or prefix) of every store."""
MARKER_LIMIT = 64 * 1024
"""What is longer is no marker of ours, and is not read to its end."""

OptionKind = Literal["text", "integer", "boolean", "choice"]
EntryKind = Literal["file", "symlink", "special", "unreadable"]
Status = Literal["ok", "info", "warning", "blocker", "unknown"]


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a driver; feeds the console form, REST schema, query API, command line, redaction and docs."""

    name: str
    label: str
    help: str
    kind: OptionKind = "text"
    required: bool = False
    secret: bool = False
    default: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What planning may rely on; a driver refines them with the facts of its last probe."""

    max_parts: int = 10_000
    min_part_size: int = 16 * MiB
    max_part_size: int = 5 * 1024 * MiB
    presign: bool = False
    metadata: bool = False
    conditional_put: bool = False
    verifies_writes: bool = False
    """The last probe sent a wrong checksum and the server refused it."""
    etag_is_md5: bool = False
    """The ETag of an object that was put in one piece is the MD5 of its content."""
    trash: bool = False
    sparse: bool = False


def _allow_any_url(url: str) -> None:
    """The policy of an installation that sets none."""


@dataclass(frozen=True, slots=True)
class DriverEnvironment:
    """What the installation, not the store, decides."""

    mounts: Mapping[str, str] = field(default_factory=dict)
    """`host:/path` -> local mount point, where the mount table alone does not tell."""
    allow_plain_exports: bool = False
    """Accept a plain folder as an NFS export (demo and tests)."""
    check_url: Callable[[str], None] = _allow_any_url
    """Raises Misconfigured for an endpoint that the outbound policy forbids."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Everything a driver instance needs to know of its store."""

    url: str
    details: Mapping[str, str]
    store_uuid: str
    cloud_uuid: str
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the last probe found, as `ProbeStep.facts` merged; empty before the first."""
    environment: DriverEnvironment = field(default_factory=DriverEnvironment)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object or file as the store tells of it."""

    key: str
    size: int
    modified: datetime
    version: str
    """Changes whenever the content may have changed (NFS: inode, size, mtime, ctime; objects: etag and time)."""
    etag: str | None = None
    allocated: int | None = None
    """Bytes that really occupy space, where the store tells."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: EntryKind = "file"


@dataclass(frozen=True, slots=True)
class Upload:
    """A begun multipart upload; every field can be kept in a row and brought back in another process."""

    key: str
    upload_id: str
    size: int | None
    part_size: int
    token: str


@dataclass(frozen=True, slots=True)
class Part:
    """A stored part. `number` counts from 1; `digest` is the driver's own checksum of the bytes sent, hex."""

    number: int
    offset: int
    size: int
    etag: str
    digest: str
    verified: bool
    """The server was given a checksum that its probe showed it to verify."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished write. `proof` is None where the server proved nothing: then only reading back proves it."""

    size: int
    etag: str
    version: str
    proof: Proof | None


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """Debris or work in progress: an upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    token: str
    started: datetime


@dataclass(frozen=True, slots=True)
class ProbeStep:
    """One line of a probe's report. `unknown` means that we were not allowed to find out, never that it is absent."""

    name: str
    status: Status
    message: str
    remedy: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    field: str | None = None
    seconds: float = 0.0


class Digest(Protocol):
    """A checksum in the making, as hashlib has them."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class PartSource(ABC):
    """A part that is not held in one piece, with its holes or at all: whoever sends it takes it anew for every attempt."""

    sha256: str
    digest: str
    """Of the kind that the target's `part_digest` makes; both in hex."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def blocks(self) -> Iterator[bytes | memoryview]:
        """All bytes from the beginning, in blocks of bounded size.

        Raises instead of yielding the last block when they are not those that `digest` was made of: no server can have them all.
        """


PartData = bytes | memoryview | PartSource


class Reader(ABC):
    """Random access to one object's content; safe for several threads at once."""

    info: ObjectInfo

    @property
    def size(self) -> int:
        return self.info.size

    @abstractmethod
    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly the bytes at [offset, offset+length) cut at the end of the object; raise StoreError, never be short."""

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on; raise StoreError as `pread` does, and never be short."""
        view[:] = self.pread(offset, len(view))

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the data in [start, end) in ascending order; all else there is a hole that reads as zeros."""
        end = self.size if end is None else end
        if end > start:
            yield start, end - start

    def current_version(self) -> str:
        """Ask the store again for the version, to see whether the source changed since it was opened."""
        return self.info.version

    def close(self) -> None:
        """Release what the reader holds; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class StoreDriver(ABC):
    """An image store of one provider. Every method raises only `StoreError` children for what happens at the store."""

    name: ClassVar[str]
    """Provider name as in `image_store.image_provider_name`."""
    label: ClassVar[str]
    scope: ClassVar[Literal["ZONE", "REGION"]]
    url_help: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()

    def __init__(self, config: StoreConfig) -> None:
        self.config = config

    @classmethod
    def prepare(cls) -> None:
        """Load what every process needs that uses such a store. Called before processes are forked, which then share it."""

    # --- configuration -------------------------------------------------------------------------------------------------

    @classmethod
    def clean(cls, url: str, details: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Return (url, details) normalised and with defaults filled in.

        Raises Misconfigured naming the field: unknown, missing or malformed. Subclasses extend it for their url.
        """
        known = {option.name: option for option in cls.options}
        for name in details:
            if name not in known:
                allowed = ", ".join(sorted(known)) or "none"
                message = f"{cls.name} has no option {name!r}; it knows: {allowed}."
                raise Misconfigured(message, field=name)
        return url, {option.name: cls._clean_option(option, details.get(option.name, "")) for option in cls.options}

    @classmethod
    def _clean_option(cls, option: Option, raw: str) -> str:
        value = raw if option.secret else str(raw).strip()
        value = value or option.default
        if option.required and not value:
            message = f"{option.label} ({option.name}) is required for {cls.name}."
            raise Misconfigured(message, field=option.name)
        if value and option.kind == "integer" and not (value.isascii() and value.isdigit()):
            message = f"{option.label} ({option.name}) must be a whole number, not {value!r}."
            raise Misconfigured(message, field=option.name)
        if option.kind == "boolean" and value:
            if value.lower() not in {"true", "false"}:
                message = f"{option.label} ({option.name}) must be true or false, not {value!r}."
                raise Misconfigured(message, field=option.name)
            value = value.lower()
        if value and option.kind == "choice" and value not in option.choices:
            message = f"{option.label} ({option.name}) must be one of {', '.join(option.choices)}, not {value!r}."
            raise Misconfigured(message, field=option.name)
        return value

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Capabilities as the last probe's facts refine them."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """`image_store.protocol`: nfs, http or https."""

    @property
    @abstractmethod
    def display_url(self) -> str:
        """What identifies the place to a person, without secrets (`nfs://host/path`, `https://host/bucket/prefix`)."""

    # --- facts ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Cheaply prove that the store is there and ours: raise Unavailable, AccessDenied or Foreign otherwise."""

    @abstractmethod
    def probe(self) -> Iterator[ProbeStep]:
        """Try everything the product relies on, yielding each step as it ends; leaves nothing behind. Never raises StoreError:
        a step that failed is a `blocker`, and steps that need it are left out.
        """

    @abstractmethod
    def read_marker(self) -> Mapping[str, str] | None:
        """Return the ownership marker, None where the store is reachable and has none."""

    @abstractmethod
    def write_marker(self, marker: Mapping[str, str]) -> None:
        """Write the marker if absent; raise Foreign if another one is there."""

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo:
        """Raise NotFound when the reachable store has no such object."""

    @abstractmethod
    def list(self, prefix: str = "", *, after: str = "", prune: Callable[[str], bool] | None = None) -> Iterator[ObjectInfo]:
        """Yield objects whose key starts with `prefix` and sorts behind `after`, in the store's stable order, in bounded memory.

        Symbolic links, special and unreadable entries come with their `kind`. Folders (keys with a trailing `/`) for which
        `prune` answers true are not entered, nor are objects listed for whose key it answers true. Metadata may be left out.
        """

    # --- reading -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def open(self, key: str) -> Reader:
        """Open for reading; raise NotFound or UnsafeName."""

    def presign(self, key: str, *, expires: int, filename: str = "") -> str | None:
        """A URL that lets its bearer GET the object for `expires` seconds; None where the store has no such thing."""
        return None

    # --- writing -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def put(
        self, key: str, data: bytes | memoryview, *, metadata: Mapping[str, str], token: str, if_absent: bool = False
    ) -> Stored:
        """Store a whole object of at most one part, atomically. `if_absent` raises AlreadyExists where the key is taken and the
        server honours the condition.
        """

    @abstractmethod
    def begin_upload(self, key: str, *, size: int | None, part_size: int, metadata: Mapping[str, str], token: str) -> Upload:
        """Begin a multipart upload; nothing is visible at `key` before it completes. `token` makes it ours to find again."""

    def part_digest(self) -> Digest:
        """Begin the checksum that a `PartSource` for this store has to bring along."""
        return hashlib.sha256()

    @abstractmethod
    def put_part(self, upload: Upload, number: int, offset: int, data: PartData) -> Part:
        """Store a part; storing the same number again replaces it. Raises UploadGone, Corrupt, Throttled, Full.

        What a `PartSource` raises while it is read comes out as it is.
        """

    @abstractmethod
    def list_parts(self, upload: Upload) -> Sequence[Part]:
        """The parts that the server has, in order (digest empty where the server does not tell it). Raises UploadGone."""

    @abstractmethod
    def complete_upload(self, upload: Upload, parts: Sequence[Part], *, if_absent: bool = False) -> Stored:
        """Publish the object. Raises Corrupt when what the server has is not `parts`; may be repeated after a lost answer."""

    @abstractmethod
    def abort_upload(self, upload: Upload) -> None:
        """Remove every trace of the upload; fine if it is gone already."""

    @abstractmethod
    def pending_uploads(self) -> Iterator[PendingUpload]:
        """Uploads of ours that were neither completed nor aborted, for the reaper."""

    def as_upload(self, pending: PendingUpload) -> Upload:
        """The form in which `abort_upload` takes a pending upload."""
        return Upload(pending.key, pending.upload_id, None, 0, pending.token)

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Delete an object (with its segments, or into the trash where `capabilities.trash`); false if it was not there."""

    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where the store knows no end."""
        return None

    def undelete(self, path: str) -> int:
        """Bring back from the trash the object `path`, or all below that folder, as it was deleted last; returns how many.

        May be repeated after a crash. Raises AlreadyExists where something else has taken its place meanwhile.
        """
        return 0

    def purge_trash(self, *, older_than: float) -> int:
        """Finally remove what was deleted more than `older_than` seconds ago; returns how many files."""
        return 0

    def close(self) -> None:
        """Release connections; may be called twice."""

    # --- shared by all -------------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Make the store ours: write our marker, or raise Foreign if it carries another's."""
        ours = {"cloud": self.config.cloud_uuid, "store": self.config.store_uuid}
        found = self.read_marker()
        if found is None:
            self.write_marker(ours)
        elif found.get("cloud") != ours["cloud"]:
            message = f"{self.display_url} belongs to another cloud ({found.get('cloud', 'unreadable marker')})."
            raise Foreign(message)
        elif found.get("store") != ours["store"]:
            message = f"{self.display_url} is already the store {found.get('store')} of this cloud."
            raise Foreign(message)

    def exists(self, key: str) -> bool:
        """Whether the reachable store has the object."""
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def part_size_for(self, size: int) -> int:
        """Bytes per part: large enough that `size` fits the store's maximum of parts (design.md section 6)."""
        limits = self.capabilities
        needed = -(-size // limits.max_parts)
        rounded = -(-needed // MiB) * MiB
        return max(limits.min_part_size, rounded)
