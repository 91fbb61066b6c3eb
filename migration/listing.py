"""Compares a store's listing with the refs, side by side in key order, and looks at the objects before it believes either."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from migration.damage import Wrong, difference
from migration.models import Verification
from migration.rereading import Watch, proven_hashes, save
from stores import layout
from stores.copier import CopyEngine
from stores.drivers.base import MARKER_KEY, ObjectInfo, StoreDriver
from stores.drivers.errors import NotFound
from stores.models import KINDS, ImageStore, Kind, Transfer
from stores.services.inventory import relative_name
from stores.states import READABLE, RefState, Role

OWN_FOLDERS = (MARKER_KEY, ".cs-")
"""Keys that are ours but no item's: marker, journal, probes, temporary files, trash."""
PAGE = 500
_UNKNOWN = {"foreign", "foreign write", "not adopted"}


def compare_listing(row: Verification, driver: StoreDriver) -> None:
    """Walk the listing and the file rows side by side in key order; memory is one page of each."""
    passed_over = is_own if row.store.scope == "REGION" else _is_passed_over
    listed = (info for info in driver.list(prune=passed_over) if not passed_over(info.key))
    row.items_checked, row.findings, row.findings_count = 0, [], 0  # a listing that was interrupted begins anew
    findings: list[dict[str, Any]] = []
    begun = timezone.now()
    moving = Transfer.objects.filter(target=row.store, swept=False).exists()
    young = begun - timedelta(seconds=2 * settings.LEASE_SECONDS) if moving else begun
    engine = CopyEngine(lanes=1)
    looks = Looks(row, engine, driver, budget=settings.REHASH_BYTES_PER_DAY)
    try:
        for path, info, known in side_by_side(listed, known_paths(row.store)):
            row.items_checked += 1
            if info is None:
                findings.append({"path": path, "problem": "missing", "expected": str(known and known.size), "found": ""})
            elif known is None:
                if info.modified < young:  # else it may be a copy that is proven, or swept, in a moment
                    findings.append({"path": path, "problem": _foreign(row.store), "expected": "", "found": str(info.size)})
            elif found := _drift(row.store, info, known):
                findings.append({"path": path, **found})
            if row.items_checked % PAGE == 0:
                looks.save(findings)
                findings = []
        looks.save(findings)
    finally:
        engine.close()


class Looks:
    """What a listing says is only where to look: at the objects themselves, and twice before anything is taken back.

    With a `budget` of bytes: a change of owner, or a move of the export, shows every file as changed, every day. What it does
    not pay for is told as the listing has it, and nothing follows from it.
    """

    def __init__(self, row: Verification, engine: CopyEngine, driver: StoreDriver, budget: float = math.inf) -> None:
        self._row, self._engine, self._driver, self._budget = row, engine, driver, budget
        self._watch = Watch(row, row.store)

    def save(self, findings: Sequence[dict[str, Any]]) -> None:
        """Tell what holds of a page's findings, and act on it, in the transaction that moves the reading on."""
        wrong, told = self.judge(findings)
        with transaction.atomic():
            for of in wrong:
                of.act()
            save(self._row, told)

    def judge(self, findings: Sequence[dict[str, Any]]) -> tuple[list[Wrong], list[dict[str, Any]]]:
        """(what is wrong with which refs, all that is to be told)."""
        kept = _still_so(self._row.store, self._driver, findings)
        drifted = [finding for finding in kept if finding["problem"] not in _UNKNOWN]
        wrong: dict[tuple[Kind, int], Wrong] = {}
        for kind, path, file, sha256 in self._files([finding["path"] for finding in drifted]):
            finding = next(finding for finding in drifted if finding["path"] == path)
            of = wrong.setdefault((kind, file.ref_id), Wrong(kind, file.ref))
            of.known[path] = file.sha256 = sha256
            self._look(of, file, finding)
        told = [finding for finding in kept if finding["problem"] in _UNKNOWN]
        return list(wrong.values()), told + [finding for of in wrong.values() for finding in of.findings]

    def _look(self, of: Wrong, file: Any, finding: dict[str, Any]) -> None:
        first: dict[str, str] | None = {name: finding[name] for name in ("problem", "expected", "found")}
        if finding["problem"] != "missing":
            if not file.sha256 or self._row.bytes_checked >= self._budget:
                of.tell(file.path, {name: finding[name] for name in ("problem", "expected", "found")})
                return
            first, size = difference(self._engine, self._driver, self._watch, file.path, file.sha256, file.size)
            self._row.bytes_checked += size
        if first is None:  # somebody wrote the same bytes anew
            of.tell(file.path, {name: finding[name] for name in ("problem", "expected", "found")})
            return
        of.look_again(self._engine, self._driver, self._watch, file, first)

    def _files(self, paths: Sequence[str]) -> Iterator[tuple[Kind, str, Any, str]]:
        """The rows of these files that can be read, with the SHA-256 that they must have as far as anybody knows it."""
        storable = [path for path in paths if printable(path) == path]
        places = {place for path in storable for place in layout.install_paths(path)}
        for kind, models in KINDS.items():
            known = {"ref__store": self._row.store, "ref__install_path__in": places, "path__in": storable}
            rows = models.file.objects.filter(ref__state__in=READABLE, **known).select_related("ref__item", "ref__store")
            files = list(rows.order_by("path"))
            proven = proven_hashes(kind, [file.ref for file in files])
            for file in files:
                name = relative_name(file.ref.install_path, file.path)
                yield kind, file.path, file, file.sha256 or proven.get(file.ref.item_id, {}).get(name, "")


def _foreign(store: ImageStore) -> str:
    """What a file that no ref knows is: after a conversion nobody writes to an export but us."""
    if store.scope == "REGION":
        return "foreign"
    return "foreign write" if store.role == Role.IMAGE_CACHE else "not adopted"


def _drift(store: ImageStore, info: ObjectInfo, known: KnownFile) -> dict[str, str] | None:
    """How a listed file is another than its row says: by size; by etag on an object store, by version (times, inode) on NFS."""
    if info.size != known.size:
        return {"problem": "size differs", "expected": str(known.size), "found": str(info.size)}
    if store.scope == "REGION":
        if info.etag and known.etag and info.etag != known.etag:
            return {"problem": "changed", "expected": known.etag, "found": info.etag}
    elif known.version and info.version != known.version:
        return {"problem": "changed", "expected": known.version, "found": info.version}
    return None


def _still_so(store: ImageStore, driver: StoreDriver, findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The listing and the rows are read page by page, not at one moment: what came or went in between is no finding; nor is what
    only a listing says that lags behind its object store."""
    living, readable = living_paths(store, [finding["path"] for finding in findings])
    kept = []
    for finding in findings:
        path, problem = finding["path"], finding["problem"]
        if problem in _UNKNOWN and path in living:
            continue
        if problem == "missing" and (path not in readable or driver.exists(path)):
            continue
        if problem == "changed" and path not in readable:
            continue
        if store.scope == "REGION" and problem != "missing" and _is_hearsay(driver, finding):
            continue
        kept.append(finding)
    return kept


def _is_hearsay(driver: StoreDriver, finding: dict[str, Any]) -> bool:
    """Whether the object itself is gone, or is what its row says."""
    try:
        info = driver.stat(finding["path"])
    except NotFound:
        return True
    return finding["expected"] in {str(info.size), info.etag}


def living_paths(store: ImageStore, paths: Sequence[str]) -> tuple[set[str], set[str]]:
    """Of these paths those that a ref knows, and those of them that can be read."""
    living: set[str] = set()
    readable: set[str] = set()
    storable = [path for path in paths if printable(path) == path]
    places = {place for path in storable for place in layout.install_paths(path)}
    for models in KINDS.values():
        files = models.file.objects.filter(ref__store=store, ref__install_path__in=places, path__in=storable)
        files = files.exclude(ref__state=RefState.DESTROYED)
        for path, state in files.values_list("path", "ref__state"):
            living.add(path)
            if state in READABLE:
                readable.add(path)
    if store.scope == "REGION":
        living |= _awaited(store, [path for path in storable if path not in living])
    return living, readable


def _awaited(store: ImageStore, paths: Sequence[str]) -> set[str]:
    """Of these paths those that lie where an item belongs which is promised here: an earlier copy was withdrawn, or one comes."""
    found: set[str] = set()
    places = {place for path in paths for place in layout.install_paths(path)}
    for models in KINDS.values():
        promised = models.ref.objects.filter(store=store, item_id=OuterRef("item_id"), state=RefState.PROMISED)
        elsewhere = models.ref.objects.filter(Exists(promised), install_path__in=places, state__in=READABLE)
        found |= set(elsewhere.filter(store__in=list(ImageStore.objects.attached())).values_list("install_path", flat=True))
    return {path for path in paths if found.intersection(layout.install_paths(path))}


def is_own(key: str) -> bool:
    return key.startswith(OWN_FOLDERS)


def _is_passed_over(key: str) -> bool:
    """What a scan of an export passes over by a rule, or leaves to CloudStack: no drift is found in it."""
    name = key.rpartition("/")[2]
    return is_own(key) or layout.skip_rule(key) is not None or layout.is_system_iso(key) or layout.is_unfinished(name)


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What a file's row says that a listing can contradict."""

    size: int
    etag: str
    version: str


def _order(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def side_by_side(
    listed: Iterable[ObjectInfo], known: Iterator[tuple[str, KnownFile]]
) -> Iterator[tuple[str, ObjectInfo | None, KnownFile | None]]:
    expected = next(known, None)
    for info in listed:
        while expected is not None and _order(expected[0]) < _order(info.key):
            yield expected[0], None, expected[1]
            expected = next(known, None)
        if expected is not None and expected[0] == info.key:
            yield info.key, info, expected[1]
            expected = next(known, None)
        else:
            yield info.key, info, None
    while expected is not None:
        yield expected[0], None, expected[1]
        expected = next(known, None)


def known_paths(store: ImageStore) -> Iterator[tuple[str, KnownFile]]:
    """(path, what is known) of every file that a Ready ref has on the store, in byte order; and of what is just being written or
    deleted nothing is said: a Promised or Destroying item is no finding either way."""
    yield from heapq.merge(*(_known_of(kind, store) for kind in KINDS), key=lambda found: _order(found[0]))


def _known_of(kind: Kind, store: ImageStore) -> Iterator[tuple[str, KnownFile]]:
    """A kind's, by the index of install paths: a file lies at or below its ref's, so what comes before the last one of a page is
    complete. Which refs can be read is not asked of the database, which would take another index and sort."""
    models = KINDS[kind]
    refs = models.ref.objects.filter(store=store).exclude(install_path="").order_by("install_path", "pk")
    waiting: list[tuple[bytes, str, KnownFile]] = []
    after, last = "", 0
    while page := list(_behind(refs, after, last).values_list("install_path", "pk", "state")[:PAGE]):
        after, last, _ = page[-1]
        readable = [pk for _, pk, state in page if state in READABLE]
        files = models.file.objects.filter(ref__in=readable).values_list("path", "size", "etag", "version")
        waiting += [(_order(path), path, KnownFile(*told)) for path, *told in files]
        waiting.sort(key=itemgetter(0))
        complete = bisect_left(waiting, _order(after), key=itemgetter(0))
        yield from ((path, known) for _, path, known in waiting[:complete])
        del waiting[:complete]
    yield from ((path, known) for _, path, known in waiting)


def _behind(refs: QuerySet[Any], install_path: str, pk: int) -> QuerySet[Any]:
    return refs.filter(install_path__gte=install_path).exclude(install_path=install_path, pk__lte=pk)


def printable(path: str) -> str:
    """A path as a row can hold it and as people can read it."""
    return path.encode("utf-8", "backslashreplace").decode().replace("\0", "")
