"""Unfinished files of an NFS export: data and a log of its parts in `.cs-tmp`, published under the final name by link(2)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from cloudstorage.checkpoints import reach
from stores.drivers import confined
from stores.drivers.base import Part, PartData, PartSource, PendingUpload, Stored, Upload
from stores.drivers.confined import closing, folder
from stores.drivers.errors import AlreadyExists, Corrupt, Foreign, UnsafeName
from stores.drivers.nfs_files import info_of

DATA, LOG = ".data", ".log"
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UPLOAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")


def upload_id_for(key: str, token: str) -> str:
    """The name of an upload below `.cs-tmp`, without suffix."""
    if not _TOKEN.fullmatch(token):
        message = f"The upload token {token!r} cannot be part of a file name."
        raise UnsafeName(message)
    return f"{token}.{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}"


def safe_upload_id(upload_id: str) -> str:
    """The id itself; UnsafeName for one that is not of our making."""
    if not _UPLOAD_ID.fullmatch(upload_id):
        message = f"{upload_id!r} is not the id of an upload."
        raise UnsafeName(message)
    return upload_id


def open_own(parent: int, name: str, flags: int) -> int:
    """Open one of our own files, refusing a link that somebody put in its place."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, confined.FILE_MODE, dir_fd=parent)


def write_file(parent: int, name: str, data: bytes | memoryview) -> None:
    """Write a new file and bring it to the disk."""
    with closing(open_own(parent, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)) as handle:
        os.fchmod(handle, confined.FILE_MODE)
        confined.write_all(handle, data, 0)
        os.fsync(handle)
        forget_cached(handle)


def forget_cached(handle: int) -> None:
    """What is read back after a write is to come from the server, not from this machine's memory."""
    with suppress(OSError):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def begin(tmp: int, upload: Upload) -> None:
    """Make the empty files of an upload, in place of those of an earlier attempt under the same token."""
    remove_upload(tmp, upload.upload_id)
    # The log first, so that whoever finds the data can tell whose it is.
    write_file(tmp, upload.upload_id + LOG, json.dumps({"key": upload.key, "begun": time.time()}).encode() + b"\n")
    write_file(tmp, upload.upload_id + DATA, b"")
    os.fsync(tmp)


def write_part(tmp: int, upload: Upload, part: Part, data: PartData) -> None:
    """Write one part and, once it is on the disk, log it: a resumed upload trusts the log."""
    with closing(open_own(tmp, upload.upload_id + DATA, os.O_RDWR)) as handle:
        offset = part.offset
        for block in data.blocks() if isinstance(data, PartSource) else [data]:
            confined.write_sparse(handle, block, offset)
            offset += len(block)
        os.fdatasync(handle)
    reach("nfs.part-on-disk")
    with closing(open_own(tmp, upload.upload_id + LOG, os.O_WRONLY | os.O_APPEND)) as log:
        left = json.dumps(asdict(part)).encode() + b"\n"
        while left:  # a full disk takes a piece of it first, and refuses the rest
            left = left[os.write(log, left) :]


def finish(tmp: int, upload: Upload, parts: Sequence[Part], size: int) -> None:
    """Give the data its size and bring it to the disk; raises Corrupt when it does not consist of `parts`."""
    sent = [(part.number, part.offset, part.size, part.etag) for part in parts]
    if sent != [(part.number, part.offset, part.size, part.etag) for part in logged_parts(tmp, upload.upload_id)]:
        message = f"{upload.key}: the parts on the export are not those that were sent."
        raise Corrupt(message)
    with closing(open_own(tmp, upload.upload_id + DATA, os.O_RDWR)) as handle:
        os.ftruncate(handle, size)
        reach("nfs.before-fsync")
        os.fsync(handle)
        forget_cached(handle)


def remove_upload(tmp: int, upload_id: str) -> None:
    """Remove what there is of an upload."""
    for suffix in (DATA, LOG):
        with suppress(FileNotFoundError):
            os.unlink(upload_id + suffix, dir_fd=tmp)


def _log_lines(tmp: int, upload_id: str) -> list[dict[str, object]]:
    with closing(open_own(tmp, upload_id + LOG, os.O_RDONLY)) as log:
        content = confined.read_exactly(log, 0, os.fstat(log).st_size)
    lines = []
    for line in content.split(b"\n")[:-1]:
        # Its write was interrupted, or the server lost its end: that part does not count, nor what was written behind it there.
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def logged_parts(tmp: int, upload_id: str) -> list[Part]:
    """The parts that the log tells of, the last one of each number."""
    parts: dict[int, Part] = {}
    for line in _log_lines(tmp, upload_id)[1:]:
        part = Part(**line)  # type: ignore[arg-type]  # JSON that we wrote from a Part
        parts[part.number] = part
    return [parts[number] for number in sorted(parts)]


def pending(tmp: int, upload_id: str) -> PendingUpload | None:
    """What is known of an unfinished upload, key and token as far as they can be told; None if it is gone."""
    if not _UPLOAD_ID.fullmatch(upload_id):  # not of our making, and `abort_upload` would not touch it
        return None
    begun, key = 0.0, ""
    try:
        for suffix in (LOG, DATA):
            with suppress(FileNotFoundError):
                begun = os.stat(upload_id + suffix, dir_fd=tmp, follow_symlinks=False).st_mtime
        key = str(_log_lines(tmp, upload_id)[0]["key"])
    except (FileNotFoundError, ValueError, KeyError, IndexError):
        if not begun:  # finished since it was listed
            return None
    return PendingUpload(key, upload_id, upload_id.rpartition(".")[0], datetime.fromtimestamp(begun, UTC))


def size_of(upload: Upload, parts: Sequence[Part]) -> int:
    """The size of the whole; raises Corrupt unless the parts follow each other without gap and add up."""
    total = 0
    for part in parts:
        if part.offset != total:
            message = f"{upload.key}: part {part.number} begins at {part.offset}, but the parts before it end at {total}."
            raise Corrupt(message)
        total += part.size
    if upload.size is not None and total != upload.size:
        message = f"{upload.key}: the parts add up to {total} bytes, not to {upload.size}."
        raise Corrupt(message)
    return total


def publish(root: int, tmp: int, name: str, names: Sequence[str], *, if_absent: bool) -> Stored:
    """Give the finished file `name` its final name, atomically, and take away the temporary one."""
    *parents, final = names
    for left in reversed(range(10)):
        status = os.stat(name, dir_fd=tmp, follow_symlinks=False)
        try:
            with folder(root, parents, create=True) as parent:
                reach("nfs.before-link")
                _link(tmp, name, parent, final, if_absent=if_absent)
                reach("nfs.published")
                os.fsync(parent)
                with suppress(FileNotFoundError):  # deleted already
                    status = confined.status_of(parent, final)
            return Stored(status.st_size, "", info_of(final, status).version, None)
        except FileNotFoundError:
            # A delete removed an emptied folder between our making and our using it.
            if not left:
                raise
    raise AssertionError


def _link(tmp: int, name: str, parent: int, final: str, *, if_absent: bool) -> None:
    try:
        os.link(name, final, src_dir_fd=tmp, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError as error:
        ours = os.stat(name, dir_fd=tmp, follow_symlinks=False)
        found = os.stat(final, dir_fd=parent, follow_symlinks=False)
        # The same file: linked by an earlier call whose answer was lost, or by a resent request of the NFS client.
        if not os.path.samestat(ours, found):
            if stat.S_ISDIR(found.st_mode):
                message = f"A folder lies at {final!r}, where a file is to be written."
                raise Foreign(message) from error
            if not stat.S_ISREG(found.st_mode):
                message = f"A link or special file lies at {final!r}; cloudstorage does not touch it."
                raise UnsafeName(message) from error
            if if_absent:
                message = f"{final!r} exists already."
                raise AlreadyExists(message) from error
            os.rename(name, final, src_dir_fd=tmp, dst_dir_fd=parent)
            return
    reach("nfs.linked")
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=tmp)
