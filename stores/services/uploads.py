"""Registers an item from a stream of bytes: written to the store of record in bounded memory, proven, looked into, then Ready."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from django.utils import timezone

from cloudstorage.actors import Actor
from cloudstorage.checkpoints import reach
from cloudstorage.errors import Conflict, Invalid
from cloudstorage.models import Installation
from stores import images, layout
from stores.copier import Control
from stores.drivers import confined
from stores.drivers.base import Digest, MiB, ObjectInfo, Part, PartData, Reader, Stored, StoreDriver
from stores.drivers.errors import AlreadyExists, Corrupt, StoreError
from stores.images.properties import FormatEntry, TemplateProperties
from stores.models import KINDS, Account, Kind, Snapshot, StoreRef, Template, Zone
from stores.reading import Source
from stores.services import items
from stores.services.image_stores import driver_for, refusal
from stores.services.inventory import identity_of
from stores.services.items import WrittenFile
from stores.states import Proof, RefState

UNKNOWN_PART_SIZE = 64 * MiB
"""Part size of a stream whose length nobody told: the 1,000 parts that every store takes then carry 64 GB."""
HELD = UNKNOWN_PART_SIZE
"""A part above it waits in a file until it is sent: no stream gives its bytes again, and memory must not grow with an upload."""
BLOCK = 4 * MiB


class Stream(Protocol):
    """Where the bytes come from; `read` may return less than asked for, and nothing at the end."""

    def read(self, size: int, /) -> bytes: ...


def register_upload(
    *,
    actor: Actor,
    kind: Kind,
    zone: Zone | None,
    account_id: int,
    name: str,
    filename: str,
    stream: Stream,
    size: int | None = None,
    sha256: str = "",
    unique_name: str = "",
    display_text: str = "",
    public: bool = False,
    volume_upstream_id: int | None = None,
    parent: Snapshot | None = None,
) -> StoreRef:
    """Make an item of the bytes of `stream`: the ref, Ready and proven, on the store of record of `zone`.

    `size` and `sha256`, where given, must be those of the bytes. A snapshot with a `parent` is refused (Conflict) where the
    parent cannot be read on that store: the caller then sends a full one. Raises Invalid for a name or bytes that are no such
    image, Unreachable and the like for the store; then nothing is left but what `finish_deletes` removes.
    """
    image_format = _check_names(filename, sha256)
    account = Account.objects.filter(pk=account_id).first()
    if account is None:
        raise Invalid(f"There is no account {account_id}.", remedy="Use the id of a known account.", field="account")
    ref = items.begin_item(
        actor=actor,
        kind=kind,
        zone=zone,
        account=account,
        name=name,
        image_format=image_format,
        hypervisor_type=layout.hypervisor_of(image_format),
        unique_name=unique_name,
        display_text=display_text,
        public=public,
        volume_upstream_id=volume_upstream_id,
        path=filename if kind is Kind.SNAPSHOT else "",
        parent=parent,
    )
    try:
        expected = _Expected(size, sha256.lower(), _parent_names(ref, parent))
        files = _write_all(kind, ref, filename, stream, expected)
        return items.finish_item(actor=actor, kind=kind, ref=ref, files=files)
    except StoreError as error:
        items.give_up(kind, ref)
        raise refusal(error) from error
    except BaseException:
        items.give_up(kind, ref)
        raise


def _parent_names(ref: StoreRef, parent: Snapshot | None) -> frozenset[str]:
    """Names of the parent's files on the ref's store; Conflict where it is not readable there."""
    if parent is None:
        return frozenset()
    there = KINDS[Kind.SNAPSHOT].file.objects.filter(
        ref__item_id=parent.pk, ref__store_id=ref.store_id, ref__state=RefState.READY
    )
    names = frozenset(path.rpartition("/")[2] for path in there.values_list("path", flat=True))
    if not names:
        message = f"The parent {parent.name} cannot be read on the store that takes new snapshots."
        raise Conflict(message, remedy="Send a full snapshot.", field="parent")
    return names


def _check_names(filename: str, sha256: str) -> str:
    """The format that the file's name promises, as CloudStack writes it (empty for none); raises Invalid for a bad name."""
    if not images.is_plain_name(filename) or filename.startswith(".") or filename.endswith(".properties"):
        message = f"{filename!r} cannot be the name of an image."
        raise Invalid(message, remedy="Use a plain file name such as disk.qcow2.", field="filename")
    if len(filename.encode("utf-8", "surrogateescape")) > 200:
        raise Invalid("The file name is longer than 200 bytes.", remedy="Choose a shorter one.", field="filename")
    if sha256 and (len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef")):
        raise Invalid("A SHA-256 has 64 hexadecimal digits.", remedy="Correct it or leave it out.", field="sha256")
    return (images.expected_format(filename) or "").upper()


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the caller says of the bytes."""

    size: int | None
    sha256: str
    parent_names: frozenset[str]
    """Files of the parent beside it, one of which its header must name; empty for a full image."""


@dataclass(frozen=True, slots=True)
class _Written:
    key: str
    size: int
    sha256: str
    stored: Stored


def _write_all(kind: Kind, ref: StoreRef, filename: str, stream: Stream, expected: _Expected) -> list[WrittenFile]:
    driver = driver_for(ref.store)
    key = ref.install_path if kind is Kind.SNAPSHOT else f"{ref.install_path}/{filename}"
    written = _write(driver, kind, ref, key, stream, expected.size)
    _compare(written, expected)
    proof = written.stored.proof or _read_back(driver, written)
    with driver.open(key) as reader:
        header = _look_into(reader, filename, expected)
    image = WrittenFile(
        path=key,
        size=written.size,
        sha256=written.sha256,
        proof=proof,
        version=written.stored.version,
        etag=written.stored.etag,
        format=header.format,
        virtual_size=header.virtual_size,
        backing=header.backing_name or "",
    )
    # On an object store too: what was drained has them there, and a template that comes home is nothing to CloudStack without.
    return [image, _write_properties(driver, ref, filename, image)] if kind is Kind.TEMPLATE else [image]


def _write(driver: StoreDriver, kind: Kind, ref: StoreRef, key: str, stream: Stream, size: int | None) -> _Written:
    """Send the stream part by part; a single put where it fits."""
    if driver.exists(key):
        raise _taken(key)
    items.announce_file(kind, ref, key)
    reach("upload.announced")
    metadata = identity_of(ref.item, Installation.get().uuid)
    token = items.upload_token(kind, ref)
    part_size = driver.part_size_for(size) if size is not None else max(UNKNOWN_PART_SIZE, driver.capabilities.min_part_size)
    whole = hashlib.sha256()
    parts = _parts(driver, stream, part_size, whole)
    first = next(parts, b"")
    try:
        if isinstance(first, bytes) and len(first) < part_size:
            stored = driver.put(key, first, metadata=metadata, token=token, if_absent=True)
            return _Written(key, len(first), whole.hexdigest(), stored)
        content = chain([first], parts)
        del first  # here and below: a part that was sent must not stay in memory while the next is read
        return _write_parts(driver, kind, ref, key, content, whole, part_size)
    except AlreadyExists as error:
        items.retract_file(kind, ref, key)
        raise _taken(key) from error


def _taken(key: str) -> Conflict:
    return Conflict(f"Something lies at {key} already.", remedy="Scan the store; another writer uses this id.")


def _write_parts(
    driver: StoreDriver, kind: Kind, ref: StoreRef, key: str, content: Iterable[PartData], whole: Digest, part_size: int
) -> _Written:
    token = items.upload_token(kind, ref)
    upload = driver.begin_upload(
        key, size=None, part_size=part_size, metadata=identity_of(ref.item, Installation.get().uuid), token=token
    )
    try:
        reach("upload.begun")
        parts: list[Part] = []
        offset = 0
        for data in content:
            parts.append(driver.put_part(upload, len(parts) + 1, offset, data))
            offset += len(data)
            del data
            items.still_writing(kind, ref)
        stored = driver.complete_upload(upload, parts, if_absent=True)
    except BaseException:
        with suppress(StoreError):  # else `finish_deletes` finds the upload by its token
            driver.abort_upload(upload)
        raise
    return _Written(key, offset, whole.hexdigest(), stored)


def _parts(driver: StoreDriver, stream: Stream, part_size: int, whole: Digest) -> Iterator[PartData]:
    """The stream cut into parts, each to be sent before the next is asked for; `whole` is their checksum so far."""
    while part_size <= HELD:
        data = b"".join(_blocks(stream, part_size))
        if not data:
            return
        whole.update(data)
        yield data
        del data
    while True:
        with tempfile.TemporaryFile() as file:
            size = _keep(stream, file.fileno(), part_size)
            if not size:
                return
            yield Source(_KeptPart(file.fileno(), size), Control()).window(0, size, whole, driver.part_digest())


def _blocks(stream: Stream, size: int) -> Iterator[bytes]:
    """The next `size` bytes, or less at the end of the stream."""
    while size and (block := stream.read(min(size, BLOCK))):
        yield block
        size -= len(block)


def _keep(stream: Stream, handle: int, size: int) -> int:
    """Write the next `size` bytes of the stream to a file; returns how many there were."""
    kept = 0
    for block in _blocks(stream, size):
        try:
            confined.write_all(handle, block, kept)
        except OSError as error:
            message = f"A part of {size} bytes has to wait on this server's own disk, which refuses it: {error.strerror}."
            raise Conflict(message, remedy=f"Make room in {tempfile.gettempdir()}, or set TMPDIR, and send it again.") from error
        kept += len(block)
    return kept


class _KeptPart(Reader):
    """A part of a stream in a file of this machine."""

    def __init__(self, handle: int, size: int) -> None:
        self.info = ObjectInfo("The upload", size, timezone.now(), "")
        self._handle = handle

    def pread(self, offset: int, length: int) -> bytes:
        return confined.read_exactly(self._handle, offset, length)


def _compare(written: _Written, expected: _Expected) -> None:
    if expected.size is not None and written.size != expected.size:
        message = f"{written.size} bytes arrived, {expected.size} were announced: the upload was cut short."
        raise Invalid(message, remedy="Send it again.", field="size")
    if expected.sha256 and written.sha256 != expected.sha256:
        message = f"The bytes have SHA-256 {written.sha256}, not {expected.sha256}."
        raise Invalid(message, remedy="Send it again; if it repeats, check the source.", field="sha256")


def _read_back(driver: StoreDriver, written: _Written) -> Proof:
    digest = hashlib.sha256()
    with driver.open(written.key) as reader:
        for offset in range(0, reader.size, BLOCK):
            digest.update(reader.pread(offset, BLOCK))
    if digest.hexdigest() != written.sha256:
        raise Corrupt(f"{written.key} reads back with other content than was written.")
    return Proof.READ_BACK


def _look_into(reader: Reader, filename: str, expected: _Expected) -> images.ImageHeader:
    """What the image says of itself; raises Invalid where it is damaged, or builds on what is not there."""
    header = images.inspect(reader, expect=images.expected_format(filename))
    if header.problems:
        message = f"{filename} is no sound image: {'; '.join(header.problems)}."
        raise Invalid(message, remedy="Check the file where it comes from.", field="filename")
    if header.external_data:
        message = f"{filename} keeps its data in other files: {', '.join(header.external_data)}."
        raise Invalid(message, remedy="Convert it to an image of one file.", field="filename")
    if header.backing is not None and header.backing_name not in expected.parent_names:
        message = f"{filename} builds on {header.backing or 'another file'} and is of no use without it."
        raise Invalid(message, remedy="Send a full image, or name the parent that it builds on.", field="parent")
    if header.backing is None and expected.parent_names:
        message = f"{filename} is a full image and builds on no parent."
        raise Invalid(message, remedy="Leave the parent out.", field="parent")
    return header


def _write_properties(driver: StoreDriver, ref: StoreRef, filename: str, image: WrittenFile) -> WrittenFile:
    """The template.properties that CloudStack expects beside a template."""
    template: Template = ref.item  # type: ignore[assignment]  # the ref is a template's
    virtual = image.virtual_size or image.size
    data = TemplateProperties(
        uniquename=template.unique_name,
        filename=filename,
        size=image.size,
        virtualsize=virtual,
        physical_size=image.size,
        id=template.upstream_id,
        public=template.public,
        checksum=image.sha256,
        description=template.display_text or template.name,
        formats=(FormatEntry(image.format, filename, image.size, virtual),),
    ).to_bytes()
    key = f"{ref.install_path}/{layout.TEMPLATE_PROPERTIES}"
    if driver.exists(key):
        raise _taken(key)
    items.announce_file(Kind.TEMPLATE, ref, key)
    token = f"{items.upload_token(Kind.TEMPLATE, ref)}-properties"
    try:
        stored = driver.put(key, data, metadata=identity_of(template, Installation.get().uuid), token=token, if_absent=True)
    except AlreadyExists as error:
        items.retract_file(Kind.TEMPLATE, ref, key)
        raise _taken(key) from error
    written = _Written(key, len(data), hashlib.sha256(data).hexdigest(), stored)
    proof = stored.proof or _read_back(driver, written)
    return WrittenFile(key, written.size, written.sha256, proof, stored.version, stored.etag, "properties")
