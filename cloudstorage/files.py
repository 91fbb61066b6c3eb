"""Files that are there, whole, also after the host has lost its power."""

from __future__ import annotations

import os
from pathlib import Path


def publish(temporary: Path, path: Path) -> None:
    """Give a file that was written and synced one more name, for good; raises FileExistsError where that is taken.

    Then, too, the name is durable: whoever gave it may not have come so far.
    """
    try:
        os.link(temporary, path)
    finally:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
