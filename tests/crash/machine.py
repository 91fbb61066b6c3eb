"""One machine of the cloud: `manage.py worker` or the web server with all their processes, to be killed one by one or together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.servers.process import REPOSITORY, Guard

_MARK = "CRASH_MACHINE"


class Machine:
    """A program and everything it starts, known by a variable in their environment."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, *, prefix: Sequence[str] = ()
    ) -> None:
        """`prefix` is put before the command, as `ip netns exec NAME`."""
        self._mark = uuid.uuid4().hex
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *arguments],
                env={**os.environ, **environment, _MARK: self._mark},
                cwd=REPOSITORY,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._guard = Guard(self.process.pid)

    @classmethod
    def worker(cls, environment: Mapping[str, str], log: Path, *, prefix: Sequence[str] = ()) -> Self:
        return cls(["manage.py", "worker"], environment, log, prefix=prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    def processes(self) -> set[int]:
        """Every living process of this machine."""
        mark = f"{_MARK}={self._mark}".encode()
        return {pid for pid in all_pids() if mark in environment_of(pid)}

    def children(self, pid: int) -> list[int]:
        """Living children in the order in which they were started."""
        return sorted(child for child in self.processes() if parent_of(child) == pid)

    def queue_workers(self) -> list[int]:
        """The processes of the queue cluster that take messages; empty while it starts."""
        for cluster in self.children(self.pid):
            for guard in self.children(cluster):
                # django-q2 starts its workers first, then the monitor and the pusher.
                if len(found := self.children(guard)) == 5:
                    return found[:3]
        return []

    def copying(self, path: Path) -> int | None:
        """The process that has this file of an export open."""
        for pid in self.processes():
            try:
                if any(os.readlink(f"/proc/{pid}/fd/{number}") == str(path) for number in os.listdir(f"/proc/{pid}/fd")):
                    return pid
            except OSError:
                continue
        return None

    def kill_all(self) -> None:
        """The machine loses its power."""
        while left := self.processes():
            for pid in left:
                kill(pid)
            if self.process.poll() is None and self.pid in left:
                self.process.wait()
        self.process.wait()
        self._guard.dismiss()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def state_of(pid: int) -> str:
    return _stat(pid)[0]


def parent_of(pid: int) -> int:
    return int(_stat(pid)[1])


def environment_of(pid: int) -> bytes:
    """Empty for what is dead, also while nobody has taken notice of it. Asked of the whole machine at every look of `wait_for`."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def wait_for(condition: Callable[[], object], what: str, *machines: Machine, seconds: float = 90) -> float:
    """Poll until it is true; returns the seconds it took, or fails with the machines' logs."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            logs = "\n".join(f"--- {machine.log}\n{machine.tail()}" for machine in machines)
            raise AssertionError(f"waited {seconds:.0f} s for {what}\n{logs}")
        time.sleep(0.05)
    return time.monotonic() - started
