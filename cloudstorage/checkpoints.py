"""The seams at which a crash test kills the process: before and after every commit, fsync, link and mutating driver call.

`reach("name")` costs one dictionary look-up when no test is running. With CLOUDSTORAGE_CRASH_AT="name[:n]" the process kills
itself with SIGKILL when the name is reached for the n-th time (default: the first). CLOUDSTORAGE_CRASH_TRACE=file appends each
name that was reached, which is how the tests enumerate the seams.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_crash_at, _, _nth = os.environ.get("CLOUDSTORAGE_CRASH_AT", "").partition(":")
_countdown = int(_nth or 1)
_trace = os.environ.get("CLOUDSTORAGE_CRASH_TRACE", "")
_active = bool(_crash_at or _trace)


def reach(name: str) -> None:
    """Die here if the environment says so."""
    if not _active:
        return
    global _countdown  # noqa: PLW0603 - one process, one countdown
    if _trace:
        with Path(_trace).open("a") as file:
            file.write(name + "\n")
    if name == _crash_at:
        _countdown -= 1
        if _countdown <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
