"""What the soak knows of every item by itself: the bytes that were sent, and what it was told became of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from random import Random
from typing import Literal

Fate = Literal["there", "maybe born", "going", "gone"]
"""`maybe born`: its upload got no answer. `going`: a deletion was sent and not answered with success."""


@dataclass
class Entry:
    """An item, and the SHA-256 of its files by their path below the item, taken before the product saw them."""

    kind: str
    name: str
    hashes: dict[str, str]
    uuid: str = ""
    fate: Fate = "there"
    originals: dict[str, str] = field(default_factory=dict)
    """Path, zone first, of what lay on the exports before -> SHA-256."""

    @property
    def url(self) -> str:
        return f"/api/v1/{self.kind}s/{self.uuid}"


class Ledger:
    """All entries; safe for threads."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.lies: list[str] = []
        """What a reader was given with every sign of success, and was wrong."""
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        with self._lock:
            self.entries.append(entry)

    def lie(self, what: str) -> None:
        with self._lock:
            self.lies.append(what)

    def choose(self, random: Random, *fates: Fate) -> Entry | None:
        with self._lock:
            found = [entry for entry in self.entries if entry.fate in fates]
        return random.choice(found) if found else None
