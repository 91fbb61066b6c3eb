"""A real mount point (bindfs) that can be taken away, broken or made to hang in the middle of a copy, as NFS can; and a disk that fills up."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Self

from tests.servers.process import ProcessGroup, ServerError, system_program


def _mount_table() -> dict[str, str]:
    """Mount point to file system type, as the kernel tells it; never touches a mount, so it cannot hang."""
    table = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        table[fields.split()[4].encode().decode("unicode_escape")] = rest.split()[0]
    return table


class BindMount:
    """`source` seen at `mountpoint` through FUSE. Every method can be called in every state, and twice."""

    def __init__(self, source: Path, mountpoint: Path, *, log_directory: Path | None = None) -> None:
        self.source = source.resolve()
        self.mountpoint = mountpoint.resolve()
        self._unmount = [system_program("fusermount3", "fuse3"), "-u", "-z", str(self.mountpoint)]
        log_directory = log_directory or self.mountpoint.parent / f".{self.mountpoint.name}-log"
        self._group = ProcessGroup(f"bindfs on {mountpoint}", log_directory, on_death=self._unmount)

    @property
    def mounted(self) -> bool:
        """Whether the mount table has it: also when it hangs or is dead."""
        return str(self.mountpoint) in _mount_table()

    def mount(self, *, read_only: bool = False) -> Self:
        """Mount, or mount again; ServerError with bindfs's own words when it fails."""
        self.unmount()
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        # The kernel remembers nothing of the source, so that what changes there is seen here at once, and a mount that hangs
        # does not seem to answer from memory.
        options = "attr_timeout=0,entry_timeout=0,negative_timeout=0" + (",ro" if read_only else "")
        program = system_program("bindfs", "bindfs")
        self._group.start("bindfs", [program, "-f", "--no-allow-other", "-o", options, str(self.source), str(self.mountpoint)])
        try:
            self._group.wait_until(lambda: self.mounted, "the mount table shows the mount", timeout=20)
        except BaseException:
            self.unmount()
            raise
        return self

    def hang(self) -> None:
        """From now on whoever touches the mount waits, as with an NFS server that is gone."""
        self._group.freeze()

    def release(self) -> None:
        """End of hang(): those who wait go on."""
        self._group.thaw()

    def take_away(self) -> None:
        """Lazy unmount: open files still work, the path shows the empty folder below."""
        if self.mounted:
            subprocess.run(self._unmount, check=True, capture_output=True)

    def kill(self) -> None:
        """The file system's process dies: everyone, waiting or not, gets ENOTCONN; the dead mount stays in the table."""
        self._group.kill()

    def unmount(self) -> None:
        """Clean up, whatever state it is in: hung, dead or taken away."""
        self._group.kill()
        if self.mounted:
            done = subprocess.run(self._unmount, check=False, capture_output=True, text=True)
            if self.mounted:
                raise ServerError(f"{self.mountpoint} cannot be unmounted: {done.stderr.strip()}")

    def __enter__(self) -> Self:
        return self if self._group.running else self.mount()

    def __exit__(self, *_: object) -> None:
        self.unmount()


class SmallDisk:
    """A file system in memory that can be full."""

    def __init__(self, mountpoint: Path, *, size: int) -> None:
        self.mountpoint = mountpoint.resolve()
        self._size = size
        self._filling = self.mountpoint / "filling"

    def fill(self) -> None:
        """To the last byte."""
        block = bytes(1 << 16)
        with self._filling.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(block)

    def make_room(self) -> None:
        self._filling.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        options = f"size={self._size},mode=0711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.mountpoint)], check=True, capture_output=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.mountpoint)], check=True, capture_output=True)
