"""Proves again what is proven: re-reads and re-hashes a store's contents, or compares its listing with the refs."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import F, Q
from django.db.models.functions import Collate, Now
from django.utils import timezone

from cloudstorage.actors import SYSTEM, Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.errors import Invalid
from cloudstorage.queue import wake
from migration.models import Verification
from migration.states import VerificationState
from stores.copier import Control, CopyEngine
from stores.drivers.base import MARKER_KEY, ObjectInfo, StoreDriver
from stores.drivers.errors import NotFound, StoreError, Unavailable
from stores.models import KINDS, ImageStore, Kind, Transfer
from stores.services.image_stores import driver_for
from stores.states import RefState, Role, StoreState

log = logging.getLogger(__name__)

RUN = "migration.tasks.run_verification"
OWN_FOLDERS = (MARKER_KEY, ".cs-")
"""Keys that are ours but no item's: marker, journal, probes, temporary files, trash."""

_LEASE = timedelta(minutes=5)
_KEPT_FINDINGS = 1000
_PAGE = 500


def verify(*, actor: Actor, store: ImageStore, sample_percent: float = 100, mode: str = Verification.CONTENT) -> Verification:
    """Queue a check of a store; raises Invalid for a percentage outside (0, 100]."""
    if not 0 < sample_percent <= 100:
        raise Invalid("The sample is a percentage above 0, up to 100.", field="sample_percent")
    with audited(actor, ActorRole.OPERATOR, "store.verify", f"store:{store.uuid}"):
        row = Verification.objects.create(store=store, actor=actor.name, sample_percent=sample_percent, mode=mode)
        record(actor, "store.verify", f"store:{store.uuid}", mode=mode, sample_percent=sample_percent)
        wake(RUN, row.pk)
        return row


def resume_abandoned() -> None:
    """Wake the queue for verifications that nobody runs: not begun, or their worker is gone."""
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    waiting = Verification.objects.filter(free, state__in=[VerificationState.QUEUED, VerificationState.RUNNING])
    for row in waiting.filter(created__lt=Now() - timedelta(seconds=10)):
        wake(RUN, row.pk)


def schedule_listings() -> None:
    """A listing check of every object store, once a day whatever the number of workers."""
    since = timezone.now() - timedelta(hours=23)
    stores = ImageStore.objects.filter(scope="REGION", state=StoreState.ATTACHED, role=Role.IMAGE)
    recent = Verification.objects.filter(mode=Verification.LISTING, created__gt=since).values("store")
    for store in stores.exclude(pk__in=recent):
        verify(actor=SYSTEM, store=store, mode=Verification.LISTING)


def run(row: Verification) -> None:
    """Run a verification from where it stands until it is finished; a second runner of the same row does nothing.

    A store that does not answer leaves it Running without a lease, to be resumed later: silence is never a finding.
    """
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    waiting = Q(state__in=[VerificationState.QUEUED, VerificationState.RUNNING])
    if not Verification.objects.filter(free, waiting, pk=row.pk).update(
        state=VerificationState.RUNNING, lease_until=Now() + _LEASE
    ):
        return
    row.refresh_from_db()
    try:
        driver = driver_for(row.store)
        driver.check()
        if row.mode == Verification.LISTING:
            _compare_listing(row, driver)
        else:
            _read_contents(row, driver)
    except Unavailable as error:
        log.warning("verification %s waits: %s", row.uuid, error)
        Verification.objects.filter(pk=row.pk).update(lease_until=Now() + timedelta(seconds=30))
        return
    Verification.objects.filter(pk=row.pk, state=VerificationState.RUNNING).update(
        state=VerificationState.FINISHED, finished_at=Now(), lease_until=None
    )


def _save(row: Verification, findings: Sequence[dict[str, Any]]) -> None:
    row.findings = [*row.findings, *findings][:_KEPT_FINDINGS]
    row.findings_count += len(findings)
    Verification.objects.filter(pk=row.pk).update(
        cursor=row.cursor,
        items_checked=row.items_checked,
        bytes_checked=row.bytes_checked,
        findings=row.findings,
        findings_count=row.findings_count,
        lease_until=Now() + _LEASE,
    )


# --- contents --------------------------------------------------------------------------------------------------------------


def _read_contents(row: Verification, driver: StoreDriver) -> None:
    engine = CopyEngine(lanes=1)
    try:
        for kind, models in KINDS.items():
            refs = models.ref.objects.filter(store=row.store, state__in=[RefState.READY, RefState.HIDDEN])
            while page := list(refs.filter(pk__gt=row.cursor.get(kind, 0)).order_by("pk").select_related("item")[:20]):
                for ref in page:
                    row.cursor[kind] = ref.pk
                    if not _sampled(ref.item.uuid.bytes, row):
                        continue
                    findings = [
                        found for file in ref.files.order_by("path") if (found := _check(row, engine, driver, kind, ref, file))
                    ]
                    row.items_checked += 1
                    _save(row, findings)
                _save(row, [])
    finally:
        engine.close()


def _sampled(identity: bytes, row: Verification) -> bool:
    """The same items on every run of one verification, other ones on the next."""
    return zlib.crc32(identity + row.uuid.bytes) % 10_000 < row.sample_percent * 100


def _check(row: Verification, engine: CopyEngine, driver: StoreDriver, kind: Kind, ref: Any, file: Any) -> dict[str, Any] | None:
    finding = {"kind": str(kind), "item": str(ref.item.uuid), "name": ref.item.name, "path": file.path}
    try:
        found, size = engine.hash_object(driver, file.path, Control())
    except NotFound:
        if not type(ref).objects.filter(pk=ref.pk, state__in=[RefState.READY, RefState.HIDDEN]).exists():
            return None  # deleted meanwhile
        return finding | {"problem": "missing", "expected": file.sha256, "found": ""}
    except Unavailable:
        raise
    except StoreError as error:
        return finding | {"problem": error.cause, "expected": file.sha256, "found": str(error)[:300]}
    row.bytes_checked += size
    if file.sha256 and found != file.sha256:
        return finding | {"problem": "content differs", "expected": file.sha256, "found": found}
    if size != file.size:
        return finding | {"problem": "size differs", "expected": str(file.size), "found": str(size)}
    return None


# --- listing ---------------------------------------------------------------------------------------------------------------


def _compare_listing(row: Verification, driver: StoreDriver) -> None:
    """Walk the listing and the file rows side by side in key order; memory is one page of each."""
    known = _known_paths(row.store)
    listed = (info for info in driver.list(prune=_is_own) if not _is_own(info.key))
    row.items_checked, row.findings, row.findings_count = 0, [], 0  # a listing that was interrupted begins anew
    findings: list[dict[str, Any]] = []
    begun = timezone.now()
    moving = Transfer.objects.filter(target=row.store, swept=False).exists()
    young = begun - timedelta(seconds=2 * settings.LEASE_SECONDS) if moving else begun
    for path, info, size in _side_by_side(listed, known):
        row.items_checked += 1
        if info is None:
            findings.append({"path": path, "problem": "missing", "expected": str(size), "found": ""})
        elif size is None:
            if info.modified < young:  # else it may be a copy that is proven, or swept, in a moment
                findings.append({"path": path, "problem": "foreign", "expected": "", "found": str(info.size)})
        elif info.size != size:
            findings.append({"path": path, "problem": "size differs", "expected": str(size), "found": str(info.size)})
        if row.items_checked % _PAGE == 0:
            _save(row, _still_so(row.store, driver, findings))
            findings = []
    _save(row, _still_so(row.store, driver, findings))


def _still_so(store: ImageStore, driver: StoreDriver, findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The listing and the rows are read page by page, not at one moment: what came or went in between is no finding."""
    paths = [finding["path"] for finding in findings]
    living: set[str] = set()
    readable: set[str] = set()
    for models in KINDS.values():
        files = models.file.objects.filter(ref__store=store, path__in=paths).exclude(ref__state=RefState.DESTROYED)
        for path, state in files.values_list("path", "ref__state"):
            living.add(path)
            if state in {RefState.READY, RefState.HIDDEN}:
                readable.add(path)
    kept = []
    for finding in findings:
        path, problem = finding["path"], finding["problem"]
        if problem == "foreign" and path in living:
            continue
        if problem == "missing" and (path not in readable or driver.exists(path)):
            continue
        kept.append(finding)
    return kept


def _is_own(key: str) -> bool:
    return key.startswith(OWN_FOLDERS)


def _order(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _side_by_side(
    listed: Iterable[ObjectInfo], known: Iterator[tuple[str, int]]
) -> Iterator[tuple[str, ObjectInfo | None, int | None]]:
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


def _known_paths(store: ImageStore) -> Iterator[tuple[str, int]]:
    """(path, size) of every file that a Ready ref has on the store, in byte order; and of what is just being written or deleted
    nothing is said: a Promised or Destroying item is no finding either way."""
    collation = "BINARY" if connection.vendor == "sqlite" else "C"
    after = ""
    while True:
        page: list[tuple[str, int]] = []
        for models in KINDS.values():
            files = models.file.objects.filter(ref__store=store, ref__state__in=[RefState.READY, RefState.HIDDEN])
            ordered = files.annotate(key=Collate(F("path"), collation)).filter(key__gt=after).order_by("key")
            page += ordered.values_list("path", "size")[:_PAGE]
        page = list(islice(sorted(page, key=lambda row: _order(row[0])), _PAGE))
        if not page:
            return
        yield from page
        after = page[-1][0]
