"""How an NFS export is laid out on disk: our own folders, what a listing shows, where deleted files go."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from cloudstorage.checkpoints import reach
from stores.drivers import confined
from stores.drivers.base import MARKER_KEY, EntryKind, ObjectInfo
from stores.drivers.confined import components, folder
from stores.drivers.errors import AlreadyExists, Unavailable, UnsafeName
from stores.drivers.probe import PROBE_FOLDER

TMP = ".cs-tmp"
TRASH = ".cs-trash"
OWN = frozenset({TMP, TRASH, MARKER_KEY})
_MAX_DEPTH = 64
# Deleting the last item of a kind leaves these: the storage VM expects them.
_KEPT_FOLDERS = (["template", "tmpl"],)

_Level = tuple[int, str, list[tuple[bytes, bool]]]
"""An open folder, the key in front of its names, and its names still to come."""


def safe_names(key: str) -> list[str]:
    """The components of a key; raises UnsafeName also for what cloudstorage keeps for itself."""
    names = components(key)
    if names[0] in OWN:
        message = f"{key!r} lies in what cloudstorage keeps for itself on an export."
        raise UnsafeName(message)
    return names


def info_of(key: str, status: os.stat_result, kind: EntryKind = "file") -> ObjectInfo:
    """What the status of a file says, in the contract's words."""
    return ObjectInfo(
        key=key,
        size=status.st_size,
        modified=datetime.fromtimestamp(status.st_mtime, UTC),
        version=f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}",
        allocated=status.st_blocks * 512,
        kind=kind,
    )


# --- listing -----------------------------------------------------------------------------------------------------------


class Walk:
    """A walk in the byte order of whole keys; it keeps one folder's names per level and never follows a link."""

    def __init__(self, base: str, prefix: str, after: str, prune: Callable[[str], bool] | None) -> None:
        """`base` is the folder part of `prefix`, where the walk starts."""
        self.base = base
        self.prefix = os.fsencode(prefix)
        self.after = os.fsencode(after)
        self.prune = prune or (lambda _: False)
        self.hidden = set(OWN)
        if not prefix.startswith(PROBE_FOLDER):
            self.hidden.add(PROBE_FOLDER)

    def run(self, start: int) -> Iterator[ObjectInfo]:
        """Walk the folder with the handle `start`, and close it."""
        stack: list[_Level] = [(start, self.base, [])]
        try:
            stack[0] = (start, self.base, self._entries(start, self.base))
            while stack:
                handle, path, entries = stack[-1]
                if not entries:
                    stack.pop()
                    os.close(handle)
                    continue
                name, is_folder = entries.pop()
                key = path + os.fsdecode(name)
                if not self._wanted(os.fsencode(key), is_folder=is_folder) or self.prune(key):
                    continue
                found = self._enter(stack, key, name) if is_folder else _entry(handle, key, os.fsdecode(name))
                if found is not None:
                    yield found
        finally:
            for handle, _, _ in stack:
                os.close(handle)

    def _enter(self, stack: list[_Level], key: str, name: bytes) -> ObjectInfo | None:
        """Push a folder; returns an entry to report where it cannot be read, None also where it is gone."""
        if len(stack) > _MAX_DEPTH:
            return _unreadable(key)
        try:
            handle = confined.enter(stack[-1][0], os.fsdecode(name[:-1]))
            stack.append((handle, key, []))
            stack[-1] = (handle, key, self._entries(handle, key))
        except (FileNotFoundError, NotADirectoryError, UnsafeName):  # replaced since it was listed
            return None
        except PermissionError:
            return _unreadable(key)
        return None

    def _entries(self, handle: int, path: str) -> list[tuple[bytes, bool]]:
        return confined.sorted_entries(handle, skip=lambda name: not path and name in self.hidden)

    def _wanted(self, key: bytes, *, is_folder: bool) -> bool:
        if is_folder:
            reachable = key.startswith(self.prefix) or self.prefix.startswith(key)
            return reachable and (key > self.after or self.after.startswith(key))
        return key.startswith(self.prefix) and key > self.after


def _entry(parent: int, key: str, name: str) -> ObjectInfo | None:
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except PermissionError:
        return _unreadable(key)
    if stat.S_ISREG(status.st_mode):
        return info_of(key, status)
    return info_of(key, status, "symlink" if stat.S_ISLNK(status.st_mode) else "special")


def _unreadable(key: str) -> ObjectInfo:
    return ObjectInfo(key, 0, datetime.fromtimestamp(0, UTC), "", kind="unreadable")


# --- deleting ----------------------------------------------------------------------------------------------------------


def remove(root: int, names: Sequence[str]) -> bool:
    """Take a file away, into the trash (what a probe wrote: for good); false where there was none."""
    *parents, name = names
    try:
        with folder(root, parents) as parent:
            for _ in range(10):
                confined.status_of(parent, name)
                # That the file was there and no longer is, or that a purge took the new trash folder: look again.
                with suppress(FileNotFoundError):
                    _take_away(root, parent, names)
                    break
            else:
                message = f"{'/'.join(names)} could not be moved to the trash: its folder there does not stay."
                raise Unavailable(message)
            os.fsync(parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    _remove_empty(root, parents)
    return True


def _take_away(root: int, parent: int, names: Sequence[str]) -> None:
    if names[0] == PROBE_FOLDER:
        os.unlink(names[-1], dir_fd=parent)
    else:
        to_trash(root, parent, names)


def to_trash(root: int, parent: int, names: Sequence[str]) -> str:
    """Move the file `names[-1]` in the folder `parent` to the trash, below its whole key; returns the folder in the trash."""
    batch = f"{int(time.time())}-{secrets.token_hex(6)}"
    with folder(root, [TRASH, batch, *names[:-1]], create=True) as trash:
        reach("nfs.before-trash")
        os.rename(names[-1], names[-1], src_dir_fd=parent, dst_dir_fd=trash)
        reach("nfs.in-trash")
        os.fsync(trash)
    return batch


def restore(root: int, path: str) -> int:
    """Bring back the file `path`, or those below it, out of the trash: of each the one that was deleted last.

    Returns how many. One that came back before, and is still there, is left: whoever asked for it may have died then.
    """
    restored: set[str] = set()
    count = 0
    try:
        trash = confined.walk(root, [TRASH])
    except FileNotFoundError:
        return 0
    with confined.closing(trash):
        for batch in sorted(_batches(trash), key=lambda name: _moved(trash, name), reverse=True):
            base = path.rpartition("/")[0]
            try:
                start = confined.walk(trash, [batch, *components(base)] if base else [batch])
            except (FileNotFoundError, NotADirectoryError):
                continue
            for found in Walk(f"{base}/" if base else "", path, "", None).run(start):
                inside = found.key == path or found.key.startswith(f"{path}/")
                if not inside or found.key in restored:
                    continue
                if found.kind == "file":
                    _bring_back(root, trash, batch, components(found.key))
                    restored.add(found.key)
                    count += 1
                elif found.kind == "symlink" and _is_back(root, trash, batch, components(found.key)):
                    restored.add(found.key)
    return count


def _batches(trash: int) -> list[str]:
    return [name for name in os.listdir(trash) if (moved := name.partition("-")[0]).isascii() and moved.isdigit()]


def _moved(trash: int, batch: str) -> int:
    """When its file was moved to the trash, by the file server's clock: those of hosts differ, and a second is long."""
    try:
        return os.stat(batch, dir_fd=trash, follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:  # purged just now
        return 0


def _bring_back(root: int, trash: int, batch: str, names: Sequence[str]) -> None:
    """Link it to its place; in the trash a link that leads nowhere then says which file came back, until that is purged."""
    *parents, name = names
    with folder(trash, [batch, *parents]) as source, folder(root, parents, create=True) as target:
        reach("nfs.before-undelete")
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError as error:
            # Else we died here before, and both names are of one file.
            if status.st_ino != os.stat(name, dir_fd=target, follow_symlinks=False).st_ino:
                message = f"{'/'.join(names)} is taken by another file, so what was deleted there cannot come back."
                raise AlreadyExists(message) from error
        reach("nfs.undeleted")
        os.fsync(target)
        note = secrets.token_hex(6)
        os.symlink(_identity(status), note, dir_fd=source)
        os.rename(note, name, src_dir_fd=source, dst_dir_fd=source)


def _is_back(root: int, trash: int, batch: str, names: Sequence[str]) -> bool:
    """Whether the file that a link in the trash speaks of is in its place."""
    *parents, name = names
    try:
        with folder(trash, [batch, *parents]) as source, folder(root, parents) as target:
            return os.readlink(name, dir_fd=source) == _identity(os.stat(name, dir_fd=target, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _identity(status: os.stat_result) -> str:
    """Which file it is, whatever names it gets and loses."""
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def purge(trash: int, *, older_than: float) -> int:
    """Finally remove what was moved to the trash more than `older_than` seconds ago; returns how many files.

    By the file server's clock alone: that of a host may have jumped, when it deleted or now.
    """
    removed = 0
    os.utime(trash)
    now = os.stat(trash).st_mtime
    for batch in sorted(_batches(trash)):
        if now - os.stat(batch, dir_fd=trash, follow_symlinks=False).st_mtime >= older_than:
            removed += remove_tree(trash, batch)
    return removed


def remove_tree(parent: int, name: str) -> int:
    """Remove a folder with all in it, following nothing; returns how many files, links not counted."""
    removed = 0
    for _, folders, files, handle in os.fwalk(name, topdown=False, follow_symlinks=False, dir_fd=parent, onerror=_raise):
        for file in files:
            removed += not stat.S_ISLNK(os.stat(file, dir_fd=handle, follow_symlinks=False).st_mode)
            os.unlink(file, dir_fd=handle)
        for subfolder in folders:
            _remove_folder(handle, subfolder)
    _remove_folder(parent, name)
    return removed


def _remove_folder(parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except NotADirectoryError:  # a link to a folder
        os.unlink(name, dir_fd=parent)
    except OSError as error:
        # The NFS client keeps a `.nfs*` file where a reader still has a removed file open: the next purge takes it.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def _remove_empty(root: int, names: Sequence[str]) -> None:
    """Remove the folders that a delete emptied, below the one of their kind."""
    kept = 0 if names[:1] == [PROBE_FOLDER] else 1
    while len(names) > kept and list(names) not in _KEPT_FOLDERS:
        try:
            with folder(root, names[:-1]) as parent:
                os.rmdir(names[-1], dir_fd=parent)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EBUSY}:
                return
            raise
        names = names[:-1]


def _raise(error: OSError) -> None:
    raise error
