"""The one hash of an item: of its single file, or of the sorted manifest of several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def manifest_sha256(files: Iterable[tuple[str, str]]) -> str:
    r"""SHA-256 of an item, hex.

    `files` are (name relative to the item's directory, SHA-256 hex). A single file's own hash is the item's; several are
    hashed as `sha256sum` prints them, sorted by name: `<sha256>  <name>\n`. Empty if any file's hash is unknown.
    """
    listed = sorted(files)
    if not listed or any(not digest for _, digest in listed):
        return ""
    if len(listed) == 1:
        return listed[0][1]
    lines = "".join(sum_line(digest, name) for name, digest in listed)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def sum_line(sha256: str, name: str) -> str:
    """A line as `sha256sum` prints it: one with an escape in the name begins with a backslash."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"
