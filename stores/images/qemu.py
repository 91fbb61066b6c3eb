"""The one place that runs qemu-img: on one open file, never on its parent, within limits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import tempfile
from dataclasses import dataclass, replace
from typing import Any

from stores.images.header import FileReader, ImageError, ImageHeader
from stores.images.probe import inspect

_DRIVERS = {
    "qcow2": "qcow2",
    "raw": "raw",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
}
_TAKES_BACKING = ("qcow2", "vmdk")
_CHECKABLE = ("qcow2", "vhdx", "vmdk", "vdi")
_MEMORY_LIMIT = 1 << 30
_OUTPUT_LIMIT = 4 << 20
_CORRUPT, _LEAKS = 2, 3


class QemuError(ImageError):
    """qemu-img could not answer."""


class QemuRefused(QemuError):
    """The image must not be given to qemu-img: it would follow a link or return wrong content."""


class QemuMissing(QemuError):
    """qemu-img or prlimit is not installed: install the packages qemu-utils and util-linux."""


class QemuTimeout(QemuError):
    """qemu-img took longer than allowed and was killed."""


class QemuFailed(QemuError):
    """qemu-img ended with an error; its words are the message."""


@dataclass(frozen=True)
class QemuInfo:
    """What `qemu-img info` found; sizes in bytes."""

    format: str
    virtual_size: int
    allocated_size: int
    backing: str | None


@dataclass(frozen=True)
class QemuCheck:
    """What `qemu-img check` found. Leaks waste space only; corruptions and errors mean lost data."""

    corruptions: int
    leaks: int
    errors: int

    @property
    def sound(self) -> bool:
        return self.corruptions == 0 and self.errors == 0


def qemu_img_info(path: str | bytes | os.PathLike[str] | int, header: ImageHeader, *, timeout: float = 30) -> QemuInfo:
    """`qemu-img info` of one file (path or open descriptor) whose header was read before.

    Takes no lock (`-U`): it only reads the header, and a lock on an NFS export can hang.
    Raises `QemuRefused`, `QemuMissing`, `QemuTimeout` or `QemuFailed`.
    """
    _, answer = _run("info", path, header, timeout, share=True, good=(0,))
    return QemuInfo(
        format=str(answer["format"]),
        virtual_size=int(answer["virtual-size"]),
        allocated_size=int(answer.get("actual-size", 0)),
        backing=answer.get("backing-filename"),
    )


def qemu_img_check(path: str | bytes | os.PathLike[str] | int, header: ImageHeader, *, timeout: float = 600) -> QemuCheck:
    """`qemu-img check` of one file; its parent is not opened. Formats: qcow2, vhdx, vmdk, vdi.

    Keeps qemu's lock (no `-U`): an image that someone writes would be called corrupt.
    Raises like `qemu_img_info`; a VHD is checked with `check_vhd`, never here.
    """
    if header.format not in _CHECKABLE:
        raise QemuRefused(f"qemu-img cannot check the format {header.format}")
    if header.encrypted:
        raise QemuRefused("the image is encrypted and cannot be checked without its key")
    good = (0, _CORRUPT, _LEAKS)
    _, answer = _run("check", path, header, timeout, share=False, good=good)
    return QemuCheck(
        corruptions=int(answer.get("corruptions", 0)),
        leaks=int(answer.get("leaks", 0)),
        errors=int(answer.get("check-errors", 0)),
    )


def _refuse_unsafe(header: ImageHeader) -> None:
    if header.format == "vhd" and header.kind not in ("fixed", "dynamic"):
        raise QemuRefused(f"a {header.kind or 'damaged'} VHD is never given to qemu-img, which would ignore its parent")
    if header.format not in _DRIVERS:
        raise QemuRefused(f"qemu-img is not asked about files of format {header.format}")
    if header.external_data:
        raise QemuRefused(f"the image keeps its data in other files: {header.external_data!r}")
    if header.has_parent and header.format not in _TAKES_BACKING:
        raise QemuRefused(f"differencing {header.format} files are not given to qemu-img")
    if header.has_parent and header.backing_name is None:
        raise QemuRefused(f"the parent link {header.backing!r} names no file beside the image")
    if header.virtual_size is None:
        raise QemuRefused("the header could not be read: " + "; ".join(header.problems))


def _run(
    command: str,
    path: str | bytes | os.PathLike[str] | int,
    header: ImageHeader,
    timeout: float,
    *,
    share: bool,
    good: tuple[int, ...],
) -> tuple[int, dict[str, Any]]:
    _refuse_unsafe(header)
    with FileReader(path) as file:
        if not stat.S_ISREG(os.fstat(file.fd).st_mode):
            raise QemuRefused("not a regular file")
        found = inspect(file, expect="raw" if header.format == "raw" else None)
        if replace(found, problems=()) != replace(header, problems=()):
            raise QemuRefused("the file's header is not the one read before: scan it again")
        # named by descriptor: the very file that was inspected, whatever its name leads to by now;
        # "backing": null: qemu opens this one file and nothing it points to
        node: dict[str, Any] = {
            "driver": _DRIVERS[header.format],
            "file": {"driver": "file", "filename": f"/proc/self/fd/{file.fd}"},
        }
        if header.format in _TAKES_BACKING:
            node["backing"] = None
        seconds = max(1, int(timeout) + 1)
        argv = [
            "prlimit",
            f"--as={_MEMORY_LIMIT}",
            f"--cpu={seconds}",
            f"--fsize={_OUTPUT_LIMIT}",
            "--core=0",
            "--",
            "qemu-img",
            command,
            "--output=json",
            *(["-U"] if share else []),
            "json:" + json.dumps(node),
        ]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = _wait(argv, timeout, file.fd, out.fileno(), err.fileno())
            answer = os.pread(out.fileno(), _OUTPUT_LIMIT, 0)
            words = os.pread(err.fileno(), 2000, 0).decode("utf-8", "replace").strip()
    if code not in good:
        if code == 127:
            raise QemuMissing(str(QemuMissing.__doc__))
        raise QemuFailed(f"qemu-img {command} ended with {code}: {words or 'no message'}")
    try:
        return code, dict(json.loads(answer))
    except ValueError as error:
        raise QemuFailed(f"qemu-img {command} gave no JSON: {words}") from error


def _wait(argv: list[str], timeout: float, fd: int, out: int, err: int) -> int:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        process = subprocess.Popen(  # noqa: S603 - fixed program, no shell; the file is named by descriptor
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            pass_fds=(fd,),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise QemuMissing(str(QemuMissing.__doc__)) from error
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise QemuTimeout(f"{argv[6]} {argv[7]} took longer than {timeout} s") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            # a process stuck in the kernel on a hung export dies only when the export answers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
