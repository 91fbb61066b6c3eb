"""What a scan says: counts, and names in bounded lists, so that a store of a million strange files makes a readable report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MAX_EXAMPLES = 100


def printable(path: str) -> str:
    """A name as a person can read it and JSON can hold it: undecodable bytes and control characters are escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@dataclass(slots=True)
class Findings:
    """How many, and the first of them by name; each example is {"path", "message"}."""

    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, path: str, message: str = "") -> None:
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append({"path": printable(path), "message": printable(message)})

    def merge(self, other: Findings) -> None:
        self.count += other.count
        self.examples += other.examples[: MAX_EXAMPLES - len(self.examples)]


_FINDINGS = (
    "missing", "orphaned", "changed", "corrupt", "unreadable", "foreign_writes", "conflicts", "in_flight", "unknown",
)  # fmt: skip


@dataclass(slots=True)
class ScanReport:
    """The account of one scan; every entry of the listing is in one of its numbers."""

    store: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    complete: bool = False
    """The listing was read to its end. Only then is anything said to be missing."""
    error: str = ""
    """Why it is not complete."""
    found: Counter[str] = field(default_factory=Counter)
    """Items by kind: template, iso, snapshot, volume, and system (ISOs of system VMs, which are never migrated)."""
    files: int = 0
    """Files of items."""
    bytes: int = 0
    """Their content, holes included."""
    allocated: int = 0
    """Bytes they occupy on the store."""
    adopted: int = 0
    unchanged: int = 0
    opened: int = 0
    """Files whose header was read."""
    missing: Findings = field(default_factory=Findings)
    """Files of a ref that are gone; the ref keeps its state."""
    orphaned: Findings = field(default_factory=Findings)
    """Files in an item's directory that belong to no item, and such directories without an image."""
    changed: Findings = field(default_factory=Findings)
    corrupt: Findings = field(default_factory=Findings)
    """Files with a problem, broken chains among them."""
    unreadable: Findings = field(default_factory=Findings)
    foreign_writes: Findings = field(default_factory=Findings)
    """What somebody else wrote after the conversion: new items, adopted and promised, and changed files."""
    conflicts: Findings = field(default_factory=Findings)
    """Same key as an item on another store, other content: left out until a person decides."""
    in_flight: Findings = field(default_factory=Findings)
    """Being written or deleted right now, so left to the next scan."""
    unknown: Findings = field(default_factory=Findings)
    skipped: Counter[str] = field(default_factory=Counter)
    """Entries passed over, by the name of the rule."""
    catalogue: dict[str, int] = field(default_factory=dict)
    """Entries of the catalogue: matched, updated, unmatched."""

    @property
    def seconds(self) -> float:
        if self.started is None or self.finished is None:
            return 0.0
        return round((self.finished - self.started).total_seconds(), 3)

    def count_item(self, kind: str, sizes: list[tuple[int, int | None]]) -> None:
        """Count an item with (size, allocated) of its files."""
        self.found[kind] += 1
        self.files += len(sizes)
        self.bytes += sum(size for size, _ in sizes)
        self.allocated += sum(size if allocated is None else allocated for size, allocated in sizes)

    def merge(self, other: ScanReport) -> None:
        """Add what a batch found, once it is committed."""
        self.found += other.found
        self.skipped += other.skipped
        for name in ("files", "bytes", "allocated", "adopted", "unchanged", "opened"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _FINDINGS:
            getattr(self, name).merge(getattr(other, name))

    def as_json(self) -> dict[str, Any]:
        """The report as it is stored, shown by REST and printed by `store_scan --json`."""
        found: dict[str, Any] = {
            "store": self.store,
            "started": self.started.isoformat() if self.started else None,
            "finished": self.finished.isoformat() if self.finished else None,
            "seconds": self.seconds,
            "complete": self.complete,
            "error": self.error,
            "found": dict(sorted(self.found.items())),
            "files": self.files,
            "bytes": self.bytes,
            "allocated": self.allocated,
            "adopted": self.adopted,
            "unchanged": self.unchanged,
            "opened": self.opened,
            "skipped": dict(sorted(self.skipped.items())),
            "catalogue": self.catalogue,
        }
        for name in _FINDINGS:
            findings: Findings = getattr(self, name)
            found[name] = {"count": findings.count, "examples": findings.examples}
        return found
