"""What a verification does about bytes that are not what was proven: it looks again, and only then takes back what was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudstorage.actors import SYSTEM
from cloudstorage.audit import record
from stores.copier import Control, CopyEngine
from stores.drivers.base import StoreDriver
from stores.drivers.errors import NotFound, StoreError
from stores.models import Kind
from stores.services import proofs
from stores.services.proofs import DAMAGED, Fate
from stores.services.scan.rows import CHANGED, MISSING
from stores.states import READABLE, StoreState

DISPROVING = frozenset({"missing", "content differs", "size differs"})
"""Problems that say, seen twice, that the bytes are not there or are others."""
TWICE = "read differently twice"
_PROBLEMS_TOLD = 20

_REMEDIES = {
    Fate.LEFT: "It changed while it was read, is being written, or its store has left the cloud: nothing was taken back. Verify"
    " the store again.",
    Fate.PROMISED: "It is a promise again, and read from another copy. A running drain copies it anew; else plan and start one"
    " (migration_plan, migration_start), or bring it now on its page. If there is more of it, mend the store first.",
    Fate.SET_ASIDE: "This copy is served to nobody any more; another one is. Put the right file back and verify the store: then"
    " it is used again. Or move it away, and bring the item there.",
    Fate.ONLY_COPY: "This was the only copy. It is kept as it is, and served to nobody. Put the right content back (from versions"
    " of the bucket, or a backup) and verify the store: then it is served again. Or delete the item.",
}

_DETACHED_REMEDIES = {
    Fate.SET_ASIDE: "The store is detached, so nobody is served from it; this copy is not proven any more. A conversion that"
    " attaches the store again copies the item anew. Nothing need be done.",
    Fate.ONLY_COPY: "The store is detached, and no store in use has another copy. This one is kept as it is. Put the right"
    " content back (from versions of the bucket, or a backup) and verify the store: then it is proven again. Or delete the item.",
}
"""Where they are other ones on a store that a roll-back has detached."""


def difference(
    engine: CopyEngine,
    driver: StoreDriver,
    control: Control,
    key: str,
    sha256: str,
    size: int | None,
    seen: dict[str, str] | None = None,
) -> tuple[dict[str, str] | None, int]:
    """({problem, expected, found} or None where the object is what it should be, bytes read). An empty `sha256`, or no `size`:
    nobody knows it. `seen` takes the SHA-256 of what was read.

    A store that does not answer, or lets us in no more, is no finding: that is raised on.
    """
    try:
        found, read = engine.hash_object(driver, key, control)
    except NotFound:
        return {"problem": "missing", "expected": sha256, "found": ""}, 0
    except StoreError as error:
        if error.outage:
            raise
        return {"problem": error.cause, "expected": sha256, "found": str(error)[:300]}, 0
    if seen is not None:
        seen[key] = found
    if sha256 and found != sha256:
        return {"problem": "content differs", "expected": sha256, "found": found}, read
    if size is not None and read != size:
        return {"problem": "size differs", "expected": str(size), "found": str(read)}, read
    return None, read


def again(
    engine: CopyEngine,
    driver: StoreDriver,
    control: Control,
    key: str,
    sha256: str,
    size: int | None,
    first: dict[str, str],
) -> tuple[dict[str, str] | None, bool]:
    """(what a second look says of a difference, whether it confirms the first). None: it is there, and as it should be.

    A store that is not ours any more, or does not answer, raises: then nothing it says or has not is taken for a fact. Two
    readings agree where they read the same, and nobody wrote meanwhile; a store may also put aside what it found damaged.
    """
    if first["problem"] not in DISPROVING:
        return first, False
    driver.check()
    try:
        before = driver.stat(key).version
        second, _ = difference(engine, driver, control, key, sha256, size)
        quiet = driver.stat(key).version == before
    except NotFound:
        return {**first, "problem": "missing", "found": ""} if first["problem"] == "missing" else first, True
    if second is None:
        return (None, False) if first["problem"] == "missing" else ({**first, "problem": TWICE}, False)
    if second["problem"] == "missing":
        return first, True
    return second, quiet and second == first


class Wrong:
    """What is wrong with the files of a ref, and which of it two looks have shown."""

    def __init__(self, kind: Kind, ref: Any) -> None:
        self.kind, self.ref = kind, ref
        self.known: dict[str, str] = {}
        """The SHA-256 that its files must have, by path; empty where nobody knows it."""
        self.findings: list[dict[str, Any]] = []
        self._sure: list[tuple[str, dict[str, Any]]] = []
        self._changed: list[str] = []

    def tell(self, label: str, found: Mapping[str, Any]) -> dict[str, Any]:
        """Tell a finding that nothing follows from."""
        item = self.ref.item
        finding = {"kind": str(self.kind), "item": str(item.uuid), "name": item.name, "path": label, **found}
        self.findings.append(finding)
        if found["problem"] == "changed":
            self._changed.append(label)
        return finding

    def look_again(
        self, engine: CopyEngine, driver: StoreDriver, control: Control, file: Any, found: dict[str, str], label: str = ""
    ) -> None:
        """Tell a difference as a second look has it, unless that finds none."""
        second, confirmed = again(engine, driver, control, file.path, file.sha256, file.size, found)
        if second is None:
            return
        finding = self.tell(label or file.path, second)
        if confirmed and (file.sha256 or second["problem"] == "missing"):
            self._sure.append((file.path, finding))
        elif second["problem"] == "size differs":
            self._changed.append(file.path)

    def act(self) -> None:
        """Take back, in the caller's transaction, what was said of the ref and is disproven; with an audit record. The findings
        get the remedy that fits what came of it."""
        if self._changed:
            proofs.note(self.kind, self.ref, dict.fromkeys(self._changed, f"{CHANGED}written to since it was known"))
        if not self._sure or self.ref.state not in READABLE:
            return
        damage = {path: _words(finding) for path, finding in self._sure}
        fate = proofs.disprove(self.kind, self.ref, damage, self.known)
        detached = self.ref.store.state == StoreState.DETACHED
        remedies = _REMEDIES | (_DETACHED_REMEDIES if detached else {})
        problems = []
        for path, finding in self._sure:
            finding["outcome"] = str(fate)
            if fate in remedies:
                finding["remedy"] = remedies[fate]
            problems.append({"path": path, **{name: finding[name] for name in ("problem", "expected", "found")}})
        if fate not in {Fate.LEFT, Fate.NOTED}:
            target, store = f"{self.kind}:{self.ref.item.uuid}", str(self.ref.store.uuid)
            record(SYSTEM, "ref.disprove", target, store=store, outcome=str(fate), problems=problems[:_PROBLEMS_TOLD])


def _words(finding: Mapping[str, str]) -> str:
    if finding["problem"] == "missing":
        return f"{MISSING}it is no longer on the store, as two looks have shown"
    if finding["problem"] == "size differs":
        return f"{DAMAGED}it has {finding['found']} bytes, not {finding['expected']}, as two looks have shown"
    return f"{DAMAGED}two readings gave the SHA-256 {finding['found'][:12]}…, not {finding['expected'][:12]}…"
