"""What a tree of processes used: CPU with that of its dead children, and memory with every page counted once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICK = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.2


def tree(root: int) -> set[int]:
    """A process and everything below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU that trees of processes have used so far: of the living, and of children that were waited for."""
    ticks = 0
    for pid in {pid for root in roots for pid in tree(root)}:
        if fields := _stat(pid):
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def idle_share(before: list[int], after: list[int]) -> float:
    """How much of the machine's cores did nothing between two `machine_ticks`."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return (spent[3] + spent[4]) / max(1, sum(spent))


def machine_ticks() -> list[int]:
    """What all cores did since the start: user, nice, system, idle, iowait, and so on."""
    return list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))


@dataclass
class Memory:
    """Peak of the resident memory of a tree of processes, sampled: pages that forks share count once (PSS)."""

    roots: Callable[[], Iterable[int]]
    peak: int = 0

    def __enter__(self) -> Self:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(_SAMPLE_SECONDS):
            pids = {pid for root in self.roots() for pid in tree(root)}
            self.peak = max(self.peak, sum(map(_resident, pids)))


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it ended in this moment
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
