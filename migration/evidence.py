"""Reads what a retirement rests on: every original and its proven copy once more, and what else lies on the export."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from cloudstorage.checkpoints import reach
from migration.damage import Wrong, difference
from migration.listing import PAGE, Looks, is_own, known_paths, living_paths, printable, side_by_side
from migration.models import Decommission, RetiredFile, UnknownFile, Verification
from migration.rereading import Watch, is_going, next_refs, proven_copies, sampled, save
from stores.copier import CopyEngine
from stores.drivers.base import MiB, ObjectInfo, StoreDriver
from stores.drivers.errors import NotFound
from stores.models import KINDS, Kind
from stores.services.image_stores import driver_for
from stores.services.inventory import relative_name
from stores.states import READABLE

_LOST_AT_MOST = 1024 * MiB
"""So much is read at most before what was read is written down: a death costs no more, and small files no transaction each."""


def not_looked_at(kind: Kind, decommission: Decommission) -> QuerySet[Any]:
    """Refs on the store without a line of evidence: those that came after it had passed them."""
    lines = RetiredFile.objects.filter(decommission=decommission, kind=kind, ref_id=OuterRef("pk"))
    refs: QuerySet[Any] = KINDS[kind].ref.objects.filter(~Exists(lines), store_id=decommission.store_id, state__in=READABLE)
    return refs


def read_for_retirement(row: Verification, driver: StoreDriver) -> None:
    """Every original and its proven copy that there is no line of yet, then what else lies there. The listing begins anew."""
    decommission = row.decommission
    engine = CopyEngine(lanes=1)
    reader = _PairReader(row, engine, driver)
    try:
        for kind in KINDS:
            while page := next_refs(row, kind, not_looked_at(kind, decommission)):
                reader.find_copies(kind, page)
                evidence: list[RetiredFile] = []
                written = row.bytes_checked
                for ref in page:
                    wrong, lines = reader.read(kind, ref)
                    evidence += [RetiredFile(decommission=decommission, kind=kind, ref_id=ref.pk, **line) for line in lines]
                    row.cursor[kind] = ref.pk
                    row.items_checked += 1
                    if ref is page[-1] or row.bytes_checked - written >= _LOST_AT_MOST or any(of.findings for of in wrong):
                        _write(row, evidence, wrong)
                        evidence, written = [], row.bytes_checked
        if not row.findings_count:
            _list_unknown(row, decommission, engine, driver)
    finally:
        engine.close()


def _write(row: Verification, evidence: Sequence[RetiredFile], wrong: Sequence[Wrong]) -> None:
    """The evidence of some items, and what follows from what is wrong with the last of them, with the reading's place."""
    with transaction.atomic():
        for of in wrong:
            of.act()
        paths = [line.path for line in evidence]
        RetiredFile.objects.filter(decommission=row.decommission, path__in=paths).delete()  # of items that are gone
        RetiredFile.objects.bulk_create(evidence)
        save(row, [finding for of in wrong for finding in of.findings])
        reach("retire.before-line")
    reach("retire.line")


class _PairReader:
    """Reads an original and its proven copy again, and tells what it saw of both."""

    def __init__(self, row: Verification, engine: CopyEngine, driver: StoreDriver) -> None:
        self._row, self._engine, self._driver = row, engine, driver
        self._watch = Watch(row, row.store)
        self._copies: dict[int, Any] = {}
        self._drivers: dict[int, StoreDriver] = {}
        self._watches: dict[int, Watch] = {}

    def find_copies(self, kind: Kind, refs: Sequence[Any]) -> None:
        """Of a page of refs; with the drivers of their stores as they are set up now."""
        found = proven_copies(kind).filter(item_id__in=[ref.item_id for ref in refs]).order_by("-pk")
        self._copies = {copy.item_id: copy for copy in found.select_related("store", "item").prefetch_related("files")}
        stores = {copy.store_id: copy.store for copy in self._copies.values()}
        self._drivers = {pk: driver_for(store) for pk, store in stores.items()}

    def read(self, kind: Kind, ref: Any) -> tuple[list[Wrong], list[dict[str, Any]]]:
        """(what is wrong with the original and with its copy, evidence) of one item."""
        copy = self._copies.get(ref.item_id)
        original, there = Wrong(kind, ref), Wrong(kind, copy or ref)
        lines: list[dict[str, Any]] = []
        files = sorted(ref.files.all(), key=lambda file: file.path)
        names = {} if copy is None else {relative_name(copy.install_path, file.path): file for file in copy.files.all()}
        if not files:
            original.tell(ref.install_path, {"problem": "no file known", "expected": "", "found": ""})
        for file in files:
            twin = names.get(relative_name(ref.install_path, file.path))
            if twin is None and len(files) == len(names) == 1:
                twin = next(iter(names.values()))
            if twin is None:
                original.tell(file.path, {"problem": "not proven elsewhere", "expected": "a proven copy", "found": ""})
                continue
            lines.append(self._read_pair(original, there, file, twin))
        going = (original.findings or there.findings) and is_going(ref)
        return ([] if going else [original, there]), lines

    def _read_pair(self, original: Wrong, copy: Wrong, file: Any, there: Any) -> dict[str, Any]:
        item = original.ref.item
        line = {
            "item_uuid": item.uuid,
            "item_name": item.name,
            "account": item.account.account_name,
            "path": file.path,
            "size": there.size,
            "sha256": there.sha256,
            "version": file.version,
            "copy_store": copy.ref.store,
            "key": there.path,
            "proof": there.proof,
            "proven_at": copy.ref.proven_at,
            "original_read_at": None,
            "copy_read_at": None,
        }
        chosen = bool(there.problem) or sampled(item.uuid.bytes, self._row)
        # What was never hashed is always read: the copy may have been made of another zone's, which may differ.
        if chosen or file.sha256 != there.sha256:
            line["version"], differs = self._read_original(file.path, there)
            line["original_read_at"] = timezone.now()
            if differs is not None:
                file.sha256, file.size = there.sha256, there.size
                original.known[file.path] = there.sha256
                original.look_again(self._engine, self._driver, self._watch, file, differs)
        if not chosen:
            return line
        store = copy.ref.store
        watch = self._watches.setdefault(store.pk, Watch(self._row, store))
        driver = self._drivers[store.pk]
        differs, size = difference(self._engine, driver, watch, there.path, there.sha256, there.size)
        line["copy_read_at"] = timezone.now()
        self._row.bytes_checked += size
        if differs is not None:
            copy.known[there.path] = there.sha256
            copy.look_again(self._engine, driver, watch, there, differs, label=f"{store.name}: {there.path}")
        return line

    def _read_original(self, path: str, there: Any) -> tuple[str, dict[str, str] | None]:
        """(version, difference): whoever writes while we read is found by the version."""
        try:
            before = self._driver.stat(path).version
        except NotFound:
            return "", {"problem": "missing", "expected": there.sha256, "found": ""}
        differs, size = difference(self._engine, self._driver, self._watch, path, there.sha256, there.size)
        self._row.bytes_checked += size
        if differs is None and self._driver.stat(path).version != before:
            differs = {"problem": "changed while it was read", "expected": before, "found": ""}
        return before, differs


def _list_unknown(row: Verification, decommission: Decommission, engine: CopyEngine, driver: StoreDriver) -> None:
    """Keep what the listing has and no ref knows, with a digest that says exactly what an acknowledgement is of."""
    row.findings, row.findings_count = [], 0
    UnknownFile.objects.filter(decommission=decommission).delete()
    digest, count, size = hashlib.sha256(), 0, 0
    page: list[ObjectInfo] = []
    findings: list[dict[str, Any]] = []
    looks = Looks(row, engine, driver)

    def keep() -> None:
        nonlocal count, size
        known = living_paths(row.store, [info.key for info in page])[0]
        unknown = [UnknownFile(decommission=decommission, path=printable(i.key), size=i.size) for i in page if i.key not in known]
        wrong, told = looks.judge(findings)
        with transaction.atomic():
            for of in wrong:
                of.act()
            save(row, told)
            UnknownFile.objects.bulk_create(unknown)
        for file in unknown:
            digest.update(f"{file.size}  {file.path}\n".encode())
        count, size = count + len(unknown), size + sum(file.size for file in unknown)
        page.clear()
        findings.clear()

    listed = (info for info in driver.list(prune=is_own) if not is_own(info.key))
    for number, (path, info, known) in enumerate(side_by_side(listed, known_paths(row.store)), 1):
        if info is None:
            findings.append({"path": path, "problem": "missing", "expected": str(known and known.size), "found": ""})
        elif known is None:
            page.append(info)
        elif info.size != known.size:
            findings.append({"path": path, "problem": "size differs", "expected": str(known.size), "found": str(info.size)})
        if number % PAGE == 0:
            keep()
    keep()
    reach("retire.listed")
    with transaction.atomic():
        save(row, [])
        Decommission.objects.filter(pk=decommission.pk).update(
            unknown_count=count, unknown_bytes=size, unknown_digest=digest.hexdigest() if count else ""
        )
