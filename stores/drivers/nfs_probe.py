"""What is tried out on an NFS export beyond the shared steps: the mount itself, links, the trash, owners, space, clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from stores.drivers import mounts, nfs_files
from stores.drivers.base import MiB, StoreConfig
from stores.drivers.confined import folder, status_of, translating
from stores.drivers.probe import Check, Finding, Sandbox, clock_skew, conditional_put, generic_checks, ok

_GIB = 1024 * MiB
_LOW_SPACE = _GIB


class OpenRoot(Protocol):
    """The open root of an export."""

    @property
    def handle(self) -> int: ...


class Export(Protocol):
    """What the checks need of the NFS driver beyond the contract."""

    host: str
    path: str
    config: StoreConfig

    def root(self, *, marked: bool = True) -> AbstractContextManager[OpenRoot]: ...


def checks(export: Export, sandbox: Sandbox) -> Iterator[Check]:
    """Every check of an export, in order; `export` is the sandbox's driver."""
    steps = _Steps(export, sandbox)
    yield Check("mount", steps.mount)
    for check in generic_checks(sandbox):
        yield replace(check, needs=(*check.needs, "mount"))
    yield Check("link", steps.link, needs=("write",))
    yield Check("rename", steps.rename, needs=("write",))
    yield Check("trash", steps.trash, needs=("delete",))
    yield Check("owner", steps.owner, needs=("write",))
    yield Check("clock", steps.clock, needs=("write",))
    yield Check("space", steps.space, needs=("mount",))


class _Steps:
    def __init__(self, export: Export, sandbox: Sandbox) -> None:
        self.export = export
        self.driver = sandbox.driver
        self.sandbox = sandbox

    def mount(self) -> Finding:
        place = mounts.locate(self.export.host, self.export.path, self.export.config.environment)
        with self.export.root(marked=False):
            pass
        mount = place.mount
        if mount is None:
            return Finding(
                "info", f"{place.base} is a plain folder of this machine, used as an export.", facts={"mount": "plain"}
            )
        version = mount.option("vers")
        wanted = self.driver.config.details.get("nfs.version", "")
        facts = {"mount": mount.source, "mount_point": mount.point, "nfs_version": version, "soft": "soft" in mount.options}
        if mount.read_only:
            remedy = f"Mount {mount.source} read-write: scanning works, but nothing can be written, moved or deleted."
            return Finding("blocker", f"{mount.source} is mounted read-only at {mount.point}.", remedy, facts)
        if "soft" in mount.options:
            remedy = "Mount it `hard`: a soft mount gives up after a time-out, and a write may then be lost without an error."
            return Finding("warning", f"{mount.source} is mounted `soft` at {mount.point}.", remedy, facts)
        if wanted and version and not version.startswith(wanted):
            remedy = f"Mount it with vers={wanted}, or correct the option nfs.version."
            return Finding("warning", f"{mount.source} is mounted with version {version}, not {wanted}.", remedy, facts)
        kind = f"{mount.fstype} version {version}" if version else mount.fstype
        return Finding("ok", f"{mount.source} is mounted at {mount.point} ({kind}).", facts=facts)

    def link(self) -> Finding:
        def put_if_absent(key: str, data: bytes) -> object:
            return self.driver.put(key, data, metadata={}, token=self.sandbox.token, if_absent=True)

        found = conditional_put(self.sandbox, put_if_absent)
        if found.status == "ok":
            return ok("A file is published by a hard link, and a name that is taken is refused.", **found.facts)
        remedy = "cloudstorage publishes files by link(2); export a file system that has hard links."
        return Finding("blocker", f"Files cannot be published safely: {found.message}", remedy, found.facts)

    def rename(self) -> Finding:
        self.sandbox.put("replaced", b"before")
        self.sandbox.put("replaced", b"after")
        with self.driver.open(self.sandbox.key("replaced")) as reader:
            if reader.pread(0, 100) != b"after":
                return Finding("blocker", "A file that was replaced still reads as before.", "Mount the export without caches.")
        return ok("A file is replaced atomically by a rename.")

    def trash(self) -> Finding:
        self.sandbox.put("deleted", b"to the trash")
        *parents, name = self.sandbox.key("deleted").split("/")
        with self.export.root() as root, folder(root.handle, parents) as parent:
            batch = nfs_files.to_trash(root.handle, parent, [*parents, name])
            with folder(root.handle, [nfs_files.TRASH]) as trash:
                removed = nfs_files.remove_tree(trash, batch)
        if removed != 1:
            return Finding("blocker", "A deleted file did not arrive in the trash folder.", "Check the export's file system.")
        return ok("Deleted files can be moved to the trash folder.")

    def owner(self) -> Finding:
        self.sandbox.put("owned", b"whose?")
        *parents, name = self.sandbox.key("owned").split("/")
        with self.export.root() as root, folder(root.handle, parents) as parent:
            status = status_of(parent, name)
        facts = {"file_owner": status.st_uid, "worker_uid": os.geteuid()}
        if status.st_uid == os.geteuid():
            return Finding("ok", f"Files belong to the worker's user ({status.st_uid}).", facts=facts)
        remedy = "Make sure that this user may read and delete what the storage VMs wrote, or export with no_root_squash."
        message = f"The export maps the worker's user {os.geteuid()} to {status.st_uid} (root squash)."
        return Finding("warning", message, remedy, facts)

    def clock(self) -> Finding:
        before = time.time()
        self.sandbox.put("dated", b"when?")
        modified = self.driver.stat(self.sandbox.key("dated")).modified.timestamp()
        after = time.time()
        skew = 0.0 if before - 1 <= modified <= after + 1 else modified - (before + after) / 2
        return clock_skew(skew)

    def space(self) -> Finding:
        with self.export.root(marked=False) as root, translating("free space"):
            found = os.fstatvfs(root.handle)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        facts = {"free_bytes": free, "total_bytes": total}
        if free < _LOW_SPACE:
            remedy = "Add space before anything is staged or brought back to this export."
            return Finding("warning", f"Only {free // MiB} MiB of {total / _GIB:.1f} GiB are free.", remedy, facts)
        return Finding("ok", f"{free / _GIB:.1f} GiB of {total / _GIB:.1f} GiB are free.", facts=facts)
