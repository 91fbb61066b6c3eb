"""What the image tests share: a strict reader, a program runner and the names of the sample files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from stores.images import (
    FileReader,
    ImageHeader,
    inspect,
)
from stores.images.header import MAX_HEADER_BYTES

SIZE = 4 << 20


class Bytes:
    """A reader that fails the test when it is asked for bytes outside the file, and answers in short reads."""

    def __init__(self, data: bytes, short: int | None = None) -> None:
        self.data, self.size, self.short, self.total = data, len(data), short, 0

    def pread(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        assert offset + length <= self.size
        self.total += length
        assert self.total <= MAX_HEADER_BYTES
        return self.data[offset : offset + min(length, self.short or length)]


def run(*argv: object, cwd: Path | None = None) -> None:
    done = subprocess.run([str(arg) for arg in argv], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def header_of(path: Path) -> ImageHeader:
    with FileReader(path) as file:
        return inspect(file)


SAMPLES = [
    "base.qcow2",
    "one.qcow2",
    "old.qcow2",
    "disk.vhdx",
    "disk.vmdk",
    "child.vmdk",
    "stream.vmdk",
    "split.vmdk",
    "disk.vdi",
    "dynamic.vhd",
    "disk.iso",
    "machine.ova",
    "chain.vhd",
]
