"""Confines file access to one folder: names are opened one by one below its handle, and no symbolic link is ever followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from stores.drivers.errors import (
    AccessDenied,
    AlreadyExists,
    Foreign,
    Full,
    NotFound,
    StoreError,
    Unavailable,
    UnsafeName,
)

MAX_NAME = 255
SMALL_HOLE = 256 * 1024
FILE_MODE = 0o644
FOLDER_MODE = 0o755
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that took a file's place would wait for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def components(key: str) -> list[str]:
    """Split a key into names that are safe to open one by one; raise UnsafeName for whatever could lead elsewhere."""
    names = key.split("/")
    for name in names:
        try:
            encoded = os.fsencode(name)
        except UnicodeEncodeError:
            message = f"The name {key!r} cannot be written in the file system's encoding."
            raise UnsafeName(message) from None
        if name in {"", ".", ".."} or "\0" in name or len(encoded) > MAX_NAME:
            message = f"The name {key!r} is not a plain path below the store: {name[:40]!r} is not allowed in it."
            raise UnsafeName(message)
    return names


# --- what the operating system says ------------------------------------------------------------------------------------

_GONE = (
    "ESTALE ENOTCONN EIO ETIMEDOUT ECONNREFUSED ECONNRESET ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH "
    "EREMOTEIO ENODEV ESHUTDOWN EAGAIN EINTR EBUSY ETXTBSY EMFILE ENFILE ENOMEM"
)
_MEANING: dict[int, tuple[type[StoreError], str]] = {
    **{getattr(errno, name): (Unavailable, "the export does not answer") for name in _GONE.split()},
    errno.ENOENT: (NotFound, "there is no such file"),
    errno.ENOTDIR: (NotFound, "there is no such file, a part of its path is itself a file"),
    errno.ENOSPC: (Full, "no space is left on the export"),
    errno.EDQUOT: (Full, "the quota on the export is used up"),
    errno.EFBIG: (Full, "the file is larger than the export's file system permits"),
    errno.EACCES: (AccessDenied, "the export refuses this to the user of the worker"),
    errno.EPERM: (AccessDenied, "the export refuses this to the user of the worker"),
    errno.EROFS: (AccessDenied, "the export is mounted or exported read-only"),
    errno.EEXIST: (AlreadyExists, "the name is taken"),
    errno.ELOOP: (UnsafeName, "it is, or leads through, a symbolic link"),
    errno.ENXIO: (UnsafeName, "it is a special file"),
    errno.ENAMETOOLONG: (UnsafeName, "the name is too long for the export"),
    errno.EILSEQ: (UnsafeName, "the export cannot hold this name"),
}


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Turn an OSError into the StoreError that it means; `what` names the place or object at the front of its message."""
    try:
        yield
    except OSError as error:
        kind, meaning = _MEANING.get(error.errno or 0, (StoreError, "the system refused"))
        message = f"{what}: {meaning} ({error.strerror or error})."
        raise kind(message) from error


# --- folders and files -------------------------------------------------------------------------------------------------


@contextmanager
def closing(handle: int) -> Iterator[int]:
    """Hand out an open handle and close it on the way out."""
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def folder(root: int, names: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """Open the folder `names` below the handle `root`, making what is missing where `create`."""
    with closing(walk(root, names, create=create)) as handle:
        yield handle


def walk(root: int, names: Sequence[str], *, create: bool = False) -> int:
    """As `folder`, but the caller closes the handle."""
    here = os.dup(root)
    for name in names:
        with closing(here):
            here = enter(here, name, create=create)
    return here


def enter(parent: int, name: str, *, create: bool = False) -> int:
    """Open one folder below the handle `parent`; raise UnsafeName where it is a link, Foreign where a file is in the way."""
    created = False
    while True:
        try:
            handle = os.open(name, _FOLDER, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):
                os.mkdir(name, FOLDER_MODE, dir_fd=parent)
                created = True
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise UnsafeName(_not_a_file(name, status)) from error
                if create:
                    message = f"A file lies at {name!r}, where a folder is needed."
                    raise Foreign(message) from error
            raise
        else:
            break
    if created:
        os.fchmod(handle, FOLDER_MODE)  # whatever the umask
        os.fsync(parent)
    return handle


def status_of(parent: int, name: str) -> os.stat_result:
    """Status of the regular file `name`; FileNotFoundError for a folder, UnsafeName for a link or special file."""
    return _regular(name, os.stat(name, dir_fd=parent, follow_symlinks=False))


def open_file(parent: int, name: str) -> int:
    """Open the regular file `name` below the handle `parent` for reading; the caller closes it."""
    status_of(parent, name)
    handle = os.open(name, _FILE, dir_fd=parent)
    try:
        _regular(name, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _regular(name: str, status: os.stat_result) -> os.stat_result:
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "it is a folder", name)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeName(_not_a_file(name, status))
    return status


def _not_a_file(name: str, status: os.stat_result) -> str:
    what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a special file"
    return f"{name!r} is {what}, which cloudstorage neither follows nor touches."


def read_exactly(handle: int, offset: int, length: int) -> bytes:
    """Read up to `length` bytes, fewer only at the end of the file."""
    data = os.pread(handle, length, offset)
    if len(data) in {0, length}:
        return data
    pieces = [data]
    have = len(data)
    while have < length and (data := os.pread(handle, length - have, offset + have)):
        pieces.append(data)
        have += len(data)
    return b"".join(pieces)


def read_into(handle: int, view: memoryview, offset: int) -> int:
    """Fill `view` from the file; returns how many bytes there were, fewer only at the end of the file."""
    have = 0
    while have < len(view) and (done := os.preadv(handle, [view[have:]], offset + have)):
        have += done
    return have


def write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte at `offset`, or raise."""
    left = memoryview(data).cast("B")
    while left:
        done = os.pwrite(handle, left, offset)
        left, offset = left[done:], offset + done


# --- holes -------------------------------------------------------------------------------------------------------------


def extents(handle: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the data of a file in [start, end), in order; the whole of it where the file system does not tell.

    Holes smaller than SMALL_HOLE count as data: reading their zeros is cheaper than keeping account of them.
    """
    begin, position = start, start
    while position < end:
        try:
            data = min(os.lseek(handle, position, os.SEEK_DATA), end)
            hole = min(os.lseek(handle, data, os.SEEK_HOLE), end) if data < end else end
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                data = hole = end
            elif error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
                data, hole = position, end
            else:
                raise
        if data - position >= SMALL_HOLE or data == end:
            if position > begin:
                yield begin, position - begin
            begin = data
        position = max(hole, position + 1)
    if position > begin and begin < end:
        yield begin, end - begin


def is_hole(handle: int, offset: int, length: int) -> bool:
    """Whether nothing was ever written at [offset, offset+length); False where the file system does not tell."""
    try:
        return os.lseek(handle, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
            return False
        raise


def write_sparse(handle: int, data: bytes | memoryview, offset: int, *, block: int = 128 * 1024) -> None:
    """Write `data`, leaving runs of zeros as holes where a hole is there already (so that rewriting stays right)."""
    view = memoryview(data).cast("B")
    zeros = bytes(block)
    may_skip: bool | None = None
    begin = 0
    for start in range(0, len(view), block):
        piece = view[start : start + block]
        if piece[0] or piece[-1] or bytes(piece) != zeros[: len(piece)]:
            continue
        if may_skip is None:
            may_skip = is_hole(handle, offset, len(view))
        if not may_skip:
            break
        write_all(handle, view[begin:start], offset + begin)
        begin = start + len(piece)
    write_all(handle, view[begin:], offset + begin)


# --- walking -----------------------------------------------------------------------------------------------------------


def sorted_entries(handle: int, *, skip: Callable[[str], bool]) -> list[tuple[bytes, bool]]:
    """(encoded name, whether it is a folder) of one folder, in the byte order of whole keys: a folder sorts as `name/`."""
    found: list[tuple[bytes, bool]] = []
    with os.scandir(handle) as entries:
        for entry in entries:
            if not skip(entry.name):
                is_folder = entry.is_dir(follow_symlinks=False)
                found.append((os.fsencode(entry.name) + (b"/" if is_folder else b""), is_folder))
    found.sort(reverse=True)  # taken from the end
    return found
