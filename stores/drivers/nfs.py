"""The NFS store: files below an export that the operator mounted, where a missing mount never reads as an empty store."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal
from urllib.parse import quote, unquote, urlsplit

from stores.drivers import confined, mounts, nfs_files, nfs_probe, probe
from stores.drivers import nfs_uploads as uploads
from stores.drivers.base import (
    MARKER_KEY,
    MARKER_LIMIT,
    Capabilities,
    MiB,
    ObjectInfo,
    Option,
    Part,
    PartData,
    PartSource,
    PendingUpload,
    ProbeStep,
    Reader,
    StoreConfig,
    Stored,
    StoreDriver,
    Upload,
)
from stores.drivers.confined import closing, components, folder, translating
from stores.drivers.errors import Foreign, Misconfigured, NotFound, SourceChanged, StoreError, Unavailable, UploadGone
from stores.drivers.nfs_files import TMP, TRASH, Walk, info_of, safe_names


class NFSReader(Reader):
    """An open file; what it reads is this very file, whatever becomes of its name."""

    def __init__(self, driver: NFSDriver, handle: int, info: ObjectInfo) -> None:
        self.info = info
        self._driver = driver
        self._handle = handle

    def pread(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        with translating(self.info.key):
            data = confined.read_exactly(self._handle, offset, length) if length else b""
        self._whole(offset + len(data), offset + length)
        return data

    def read_into(self, view: memoryview, offset: int) -> None:
        with translating(self.info.key):
            have = confined.read_into(self._handle, view, offset)
        self._whole(offset + have, offset + len(view))

    def _whole(self, found: int, wanted: int) -> None:
        if found < wanted:
            raise SourceChanged(f"{self.info.key} was cut off while it was read: {found} of {self.size} bytes are left.")

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        with translating(self.info.key):
            yield from confined.extents(self._handle, start, self.size if end is None else end)

    def current_version(self) -> str:
        # Opening, not only asking for the status: NFS promises fresh attributes only to an open (close-to-open consistency).
        with self._driver.open(self.info.key) as fresh:
            return fresh.info.version

    def close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)


@dataclass(frozen=True, slots=True)
class Root:
    """The open root of the export, with what proves later that the same one is still mounted."""

    handle: int

    @property
    def identity(self) -> tuple[int, int, int]:
        status = os.fstat(self.handle)
        return _mount_id(self.handle), status.st_dev, status.st_ino


class NFSDriver(StoreDriver):
    """Files on a mounted export, in CloudStack's layout.

    Uploads are written to `.cs-tmp/<token>.<hash of the key>.data`, beside a log of their parts, and published by link(2), which
    is atomic and refuses a taken name also on NFS. Deleted files move to `.cs-trash/<seconds>-<random>/<key>`. Every call looks
    the mount up anew and holds no handle afterwards, so that the operator can unmount an idle store.
    """

    name: ClassVar[str] = "NFS"
    label: ClassVar[str] = "NFS export"
    scope: ClassVar[Literal["ZONE", "REGION"]] = "ZONE"
    url_help: ClassVar[str] = "nfs://host/path of the export, or of a folder in it; mounted on every worker by the operator."
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            "nfs.version",
            "NFS version",
            "Version that the export is to be mounted with; the probe warns when the mount has another.",
            kind="choice",
            choices=("3", "4", "4.0", "4.1", "4.2"),
        ),
    )

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.host, self.path = _split_url(config.url)
        self._display_url = _join_url(self.host, self.path)
        self._needs_marker = True

    # --- configuration -------------------------------------------------------------------------------------------------

    @classmethod
    def clean(cls, url: str, details: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        host, path = _split_url(url)
        return _join_url(host, path), super().clean(url, details)[1]

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(min_part_size=16 * MiB, conditional_put=True, trash=True, sparse=True)

    @property
    def protocol(self) -> str:
        return "nfs"

    @property
    def display_url(self) -> str:
        return self._display_url

    # --- the root ------------------------------------------------------------------------------------------------------

    @contextmanager
    def root(self, *, marked: bool = True) -> Iterator[Root]:
        """The root, proven to be there and (where `marked`) ours; a NotFound is believed only while it still is."""
        marked = marked and self._needs_marker
        with self._opened_root() as root, translating(self.display_url):
            if marked:
                self._require_marker(root)
            try:
                with translating(self.display_url):
                    yield root
            except (NotFound, UploadGone):
                self._confirm(root, marked=marked)
                raise

    @contextmanager
    def _opened_root(self) -> Iterator[Root]:
        with translating(self.display_url):
            place = mounts.locate(self.host, self.path, self.config.environment)
            try:
                base = os.open(place.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError) as error:
                message = f"{self.display_url}: its mount point {place.base} is not there. Mount the export."
                raise Unavailable(message) from error
            with closing(base):
                if place.mount is not None and _mount_id(base) != place.mount.ident:
                    message = f"{self.display_url}: another file system is mounted over {place.base}. Mount the export again."
                    raise Unavailable(message)
                try:
                    handle = confined.walk(base, place.below)
                except FileNotFoundError as error:
                    message = f"{self.display_url}: the folder {'/'.join(place.below)} is missing below {place.base}."
                    raise Unavailable(message) from error
        with closing(handle):
            yield Root(handle)

    def _require_marker(self, root: Root) -> None:
        marker = _marker(root)
        if marker is None:
            message = (
                f"{self.display_url} has no ownership marker ({MARKER_KEY}): the export is not mounted, or another one is "
                "mounted in its place."
            )
            raise Unavailable(message)
        if (marker.get("cloud"), marker.get("store")) != (self.config.cloud_uuid, self.config.store_uuid):
            message = f"{self.display_url} carries the marker of another store (cloud {marker.get('cloud', 'unreadable')})."
            raise Foreign(message)

    def _confirm(self, root: Root, *, marked: bool = True) -> None:
        """Raise Unavailable unless the export that `root` is open on is still the mounted one, and still ours."""
        with self._opened_root() as now, translating(self.display_url):
            if now.identity != root.identity:
                message = f"{self.display_url} was unmounted or mounted anew in the middle of an operation, which proves nothing."
                raise Unavailable(message)
            if marked and self._needs_marker:
                self._require_marker(now)

    # --- facts ---------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        with self.root():
            pass

    def probe(self) -> Iterator[ProbeStep]:
        # A store is probed before it gets its marker, so the trial is made by a driver that does not ask for one.
        trial = NFSDriver(self.config)
        trial._needs_marker = False
        sandbox = probe.Sandbox(trial)
        try:
            yield from probe.run(nfs_probe.checks(trial, sandbox), sandbox)
        finally:
            trial._remove_own_folders()

    def _remove_own_folders(self) -> None:
        """Leave an export that is not ours as it was before the probe."""
        with suppress(StoreError), self.root(marked=False) as root:
            if _marker(root) is None:
                for name in (TMP, TRASH):
                    with suppress(OSError):  # something is in it
                        os.rmdir(name, dir_fd=root.handle)

    def read_marker(self) -> Mapping[str, str] | None:
        with self.root(marked=False) as root:
            marker = _marker(root)
            if marker is None:
                self._confirm(root, marked=False)
            return marker

    def write_marker(self, marker: Mapping[str, str]) -> None:
        with self.root(marked=False) as root, folder(root.handle, [TMP], create=True) as tmp:
            name = f"marker-{secrets.token_hex(8)}{uploads.DATA}"
            try:
                uploads.write_file(tmp, name, json.dumps(dict(marker), sort_keys=True).encode())
                os.link(name, MARKER_KEY, src_dir_fd=tmp, dst_dir_fd=root.handle, follow_symlinks=False)
                os.fsync(root.handle)
            except FileExistsError as error:
                if _marker(root) != dict(marker):
                    message = f"{self.display_url} already carries another ownership marker."
                    raise Foreign(message) from error
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=tmp)

    def stat(self, key: str) -> ObjectInfo:
        *parents, name = safe_names(key)
        with self.root() as root, translating(key), folder(root.handle, parents) as parent:
            return info_of(key, confined.status_of(parent, name))

    def list(self, prefix: str = "", *, after: str = "", prune: Callable[[str], bool] | None = None) -> Iterator[ObjectInfo]:
        base = prefix.rpartition("/")[0]
        names = components(base) if base else []
        with self.root() as root:
            try:
                start = confined.walk(root.handle, names)
            except (FileNotFoundError, NotADirectoryError):
                self._confirm(root)
                return
            yield from Walk(f"{base}/" if base else "", prefix, after, prune).run(start)
            self._confirm(root)

    # --- reading -------------------------------------------------------------------------------------------------------

    def open(self, key: str) -> Reader:
        *parents, name = safe_names(key)
        with self.root() as root, translating(key), folder(root.handle, parents) as parent:
            handle = confined.open_file(parent, name)
            info = info_of(key, os.fstat(handle))
            with suppress(OSError):  # only a hint to the kernel
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return NFSReader(self, handle, info)

    # --- writing -------------------------------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        data: bytes | memoryview,
        *,
        metadata: Mapping[str, str],
        token: str,
        if_absent: bool = False,
    ) -> Stored:
        names = safe_names(key)
        name = uploads.upload_id_for(key, token) + uploads.DATA
        with self.root() as root, translating(key), folder(root.handle, [TMP], create=True) as tmp:
            try:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=tmp)
                uploads.write_file(tmp, name, data)
                return uploads.publish(root.handle, tmp, name, names, if_absent=if_absent)
            finally:
                with suppress(OSError):
                    os.unlink(name, dir_fd=tmp)

    def begin_upload(
        self,
        key: str,
        *,
        size: int | None,
        part_size: int,
        metadata: Mapping[str, str],
        token: str,
    ) -> Upload:
        safe_names(key)
        upload = Upload(key, uploads.upload_id_for(key, token), size, part_size, token)
        with self.root() as root, translating(key), folder(root.handle, [TMP], create=True) as tmp:
            uploads.begin(tmp, upload)
        return upload

    def put_part(self, upload: Upload, number: int, offset: int, data: PartData) -> Part:
        if isinstance(data, PartSource):
            size, digest = len(data), data.digest
        else:
            size, digest = memoryview(data).nbytes, hashlib.sha256(data).hexdigest()
        part = Part(number, offset, size, digest, digest, verified=False)
        with self._upload(upload) as (_, tmp):
            uploads.write_part(tmp, upload, part, data)
        return part

    def list_parts(self, upload: Upload) -> Sequence[Part]:
        with self._upload(upload) as (_, tmp):
            os.stat(upload.upload_id + uploads.DATA, dir_fd=tmp, follow_symlinks=False)
            return uploads.logged_parts(tmp, upload.upload_id)

    def complete_upload(self, upload: Upload, parts: Sequence[Part], *, if_absent: bool = False) -> Stored:
        size = uploads.size_of(upload, parts)
        names = safe_names(upload.key)
        try:
            with self._upload(upload) as (root, tmp):
                uploads.finish(tmp, upload, parts, size)
                name = upload.upload_id + uploads.DATA
                stored = uploads.publish(root.handle, tmp, name, names, if_absent=if_absent)
                uploads.remove_upload(tmp, upload.upload_id)
                return stored
        except UploadGone:
            earlier = self._completed_earlier(upload, parts, size)
            if earlier is None:
                raise
            return earlier

    def _completed_earlier(self, upload: Upload, parts: Sequence[Part], size: int) -> Stored | None:
        """What an earlier call published, if the object consists of exactly these parts."""
        try:
            with self.open(upload.key) as reader:
                if reader.size != size:
                    return None
                if any(_sha256(reader, part.offset, part.size) != part.etag for part in parts):
                    return None
                return Stored(size, "", reader.info.version, None)
        except NotFound:
            return None

    def abort_upload(self, upload: Upload) -> None:
        with suppress(UploadGone), self._upload(upload) as (root, tmp):
            uploads.remove_upload(tmp, upload.upload_id)
            self._confirm(root)

    def pending_uploads(self) -> Iterator[PendingUpload]:
        with self.root() as root:
            try:
                tmp = confined.walk(root.handle, [TMP])
            except FileNotFoundError:
                self._confirm(root)
                return
            with closing(tmp):
                names = os.listdir(tmp)  # noqa: PTH208 - of an open handle
                ids = {name.removesuffix(uploads.DATA).removesuffix(uploads.LOG) for name in names}
                for upload_id in sorted(ids):
                    found = uploads.pending(tmp, upload_id)
                    if found is not None:
                        yield found
            self._confirm(root)

    @contextmanager
    def _upload(self, upload: Upload) -> Iterator[tuple[Root, int]]:
        """The root and the folder of unfinished uploads; a file that is missing in there means UploadGone."""
        uploads.safe_upload_id(upload.upload_id)
        with self.root() as root, translating(upload.key):
            try:
                with folder(root.handle, [TMP]) as tmp:
                    yield root, tmp
            except FileNotFoundError as error:
                message = f"The upload {upload.upload_id} of {upload.key} is no longer on the export."
                raise UploadGone(message) from error

    # --- deleting ------------------------------------------------------------------------------------------------------

    def delete(self, key: str) -> bool:
        names = safe_names(key)
        with self.root() as root, translating(key):
            removed = nfs_files.remove(root.handle, names)
            self._confirm(root)
            return removed

    def free_bytes(self) -> int | None:
        with self.root() as root, translating(self.display_url):
            found = os.fstatvfs(root.handle)
            return found.f_bavail * found.f_frsize

    def undelete(self, path: str) -> int:
        safe_names(path)
        with self.root() as root, translating(path):
            restored = nfs_files.restore(root.handle, path)
            self._confirm(root)
            return restored

    def purge_trash(self, *, older_than: float) -> int:
        with self.root() as root:
            try:
                with folder(root.handle, [TRASH]) as trash:
                    return nfs_files.purge(trash, older_than=older_than)
            except FileNotFoundError:
                self._confirm(root)
                return 0


def _sha256(reader: Reader, offset: int, length: int) -> str:
    digest = hashlib.sha256()
    for start in range(offset, offset + length, MiB):
        digest.update(reader.pread(start, min(MiB, offset + length - start)))
    return digest.hexdigest()


# --- the url -----------------------------------------------------------------------------------------------------------


def _split_url(url: str) -> tuple[str, str]:
    """(host, path) of `nfs://host/path`, normalised; raises Misconfigured."""
    example = "it must look like nfs://host/path"
    try:
        parts = urlsplit(url.strip())
        extra = parts.port or parts.username or parts.password or parts.query or parts.fragment
        host = parts.hostname
    except ValueError as error:
        message = f"The url {url!r} is malformed ({error}); {example}."
        raise Misconfigured(message, field="url") from error
    path = unquote(parts.path, errors="surrogateescape")
    if parts.scheme.lower() != "nfs" or not host or not path:
        message = f"The url {url!r} is not of an NFS export; {example}."
        raise Misconfigured(message, field="url")
    names = [name for name in path.split("/") if name]
    if extra or ".." in names or "." in names or any(ord(letter) < 32 for letter in path):
        message = f"The url {url!r} must have a host and a plain path only; {example}. Ports and the like belong to the mount."
        raise Misconfigured(message, field="url")
    return host.lower(), "/" + "/".join(names)


def _join_url(host: str, path: str) -> str:
    host = f"[{host}]" if ":" in host else host
    return f"nfs://{host}{quote(path, errors='surrogateescape')}"


# --- facts ---------------------------------------------------------------------------------------------------------------


def _mount_id(handle: int) -> int:
    """The kernel's number of the mount that an open handle is on (proc_pid_fdinfo(5))."""
    for line in mounts.kernel_says(f"/proc/self/fdinfo/{handle}").splitlines():
        if line.startswith(b"mnt_id:"):
            return int(line.split()[1])
    return -1


def _marker(root: Root) -> Mapping[str, str] | None:
    try:
        handle = confined.open_file(root.handle, MARKER_KEY)
    except FileNotFoundError:
        return None
    with closing(handle):
        content = confined.read_exactly(handle, 0, MARKER_LIMIT)
    return _parsed(content)


@lru_cache(maxsize=64)
def _parsed(content: bytes) -> Mapping[str, str]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
