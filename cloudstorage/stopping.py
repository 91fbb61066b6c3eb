"""How a process hears that it is to end: in its own time, for a signal's handler may interrupt who holds the lock it needs."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue
from types import FrameType


class Stopping:
    """Takes note of SIGTERM and SIGINT, of which many may come at once; made in the main thread."""

    def __init__(self) -> None:
        self._told: SimpleQueue[int] = SimpleQueue()
        """The one queue of the standard library whose `put` may interrupt itself and its `get`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._told.put(number)

    def wait(self, seconds: float) -> bool:
        """Whether the process was told to end by then."""
        try:
            self._note(self._told.get(timeout=seconds), None)
        except Empty:
            return False
        return True
