"""Proves again what is proven: re-reads and re-hashes a store's contents, compares its listing with the refs, and reads what a
retirement rests on."""

from __future__ import annotations

import hashlib
import heapq
import logging
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from cloudstorage.actors import SYSTEM, Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.checkpoints import reach
from cloudstorage.errors import Invalid, ServiceError
from cloudstorage.queue import wake
from migration.damage import TWICE, Wrong, difference
from migration.models import Decommission, RetiredFile, UnknownFile, Verification
from migration.states import DecommissionState, VerificationState
from stores import layout
from stores.copier import Control, CopyEngine, Stopped, Throttle
from stores.drivers.base import MARKER_KEY, ObjectInfo, StoreDriver
from stores.drivers.errors import NotFound, StoreError, Unavailable
from stores.models import KINDS, ImageStore, Kind, Transfer
from stores.services import proofs
from stores.services.image_stores import driver_for
from stores.services.inventory import relative_name
from stores.states import PROVEN, Proof, RefState, Role, StoreState

log = logging.getLogger(__name__)

RUN = "migration.tasks.run_verification"
OWN_FOLDERS = (MARKER_KEY, ".cs-")
"""Keys that are ours but no item's: marker, journal, probes, temporary files, trash."""

READABLE = (RefState.READY, RefState.HIDDEN)
_WITH_BYTES = (*READABLE, RefState.FAILED)
"""What a reading of the content looks at: what was found damaged, too, until it is mended."""
_UNKNOWN = {"foreign", "foreign write", "not adopted"}
REMEDIES = {
    "missing": "Bring it back (trash, bucket versions, backup), then scan and verify; or delete the item, if it is to be gone.",
    "size differs": "Somebody wrote to it. Bring the former content back, or scan the store to see what the item is now.",
    "changed": "Somebody wrote to it since it was known. Verify its content; scan the store to take over what is meant.",
    "content differs": "These bytes are not what was proven. Put the right content back and verify again, or delete the item.",
    TWICE: "Two readings differ, so nothing is said of the bytes. Look what changes them on the way: memory, network, a proxy.",
    "foreign": "Nobody here wrote it. If a backup was restored or a database lost, scan the store; else ask who writes there.",
    "foreign write": "Somebody still writes to a converted export. Scan the store: what is an item is adopted and promised.",
    "not adopted": "Written by the cloud since the last scan. Scan the store.",
}
_OTHER_REMEDY = "Look at the file on the store, and at the worker's log; then verify again."
_KEPT_FINDINGS = 1000
_PAGE = 500
_LEAST_PERCENT = 0.01
"""What `sampled` can tell from nothing."""
_REFS = 20
_REFUSED_SECONDS = 300


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


def schedule_drift_checks() -> None:
    """Once a day, whatever the number of workers: every store's listing, and the content of so many items as the budget of a day
    allows; and all content of an object store of which a rebuild has adopted something that was never read.

    A store's first day begins with a scan that has just listed it, or empty; its check then would only slow the first drain.
    """
    since = timezone.now() - timedelta(hours=23)
    recent = Verification.objects.filter(created__gt=since)
    stores: Any = ImageStore.objects.attached().with_usage()
    for store in stores.exclude(pk__in=recent.filter(mode=Verification.LISTING).values("store")):
        if store.created <= since and (store.scope == "REGION" or store.scanned_at is not None):
            _begin_daily(store, Verification.LISTING, 100, since)
    for store in stores.exclude(pk__in=recent.filter(mode=Verification.CONTENT).values("store")):
        budget = settings.REHASH_BYTES_PER_DAY if store.created <= since else 0
        percent = 100.0 if _unread(store) else 100.0 * budget / max(1, store.bytes)
        if store.bytes and percent >= _LEAST_PERCENT:
            _begin_daily(store, Verification.CONTENT, min(100.0, percent), since)


def _begin_daily(store: ImageStore, mode: str, sample_percent: float, since: datetime) -> None:
    """Where the clocks of two workers coincide, the one that has the store's row first begins it."""
    with transaction.atomic():
        ImageStore.objects.select_for_update(no_key=True).only("pk").get(pk=store.pk)
        if not Verification.objects.filter(store=store, mode=mode, created__gt=since).exists():
            verify(actor=SYSTEM, store=store, mode=mode, sample_percent=sample_percent)


def _unread(store: ImageStore) -> bool:
    """Whether something on an object store was adopted since its whole content was read last."""
    if store.scope != "REGION":
        return False
    whole = Verification.objects.filter(mode=Verification.CONTENT, sample_percent=100, state=VerificationState.FINISHED)
    read = whole.filter(store=store).order_by("-created").values_list("created", flat=True).first()
    fresh = Q(updated__gt=read) if read is not None else Q()
    adopted = Q(store=store, state__in=READABLE, proof=Proof.ADOPTED)
    return any(models.ref.objects.filter(adopted, fresh).exists() for models in KINDS.values())


def run(row: Verification) -> None:
    """Run a verification from where it stands until it is finished; a second runner of the same row does nothing.

    A store that does not answer, or refuses us, leaves it Running with a note, to be resumed later: silence is never a finding.
    """
    free = Q(lease_until=None) | Q(lease_until__lt=Now())
    waiting = Q(state__in=[VerificationState.QUEUED, VerificationState.RUNNING])
    if not Verification.objects.filter(free, waiting, pk=row.pk).update(
        state=VerificationState.RUNNING, lease_until=_lease_end(), epoch=F("epoch") + 1
    ):
        return
    row.refresh_from_db()
    try:
        driver = driver_for(row.store)
        driver.check()
        _go_on(row)
        if row.mode == Verification.LISTING:
            _compare_listing(row, driver)
        elif row.mode == Verification.RETIRE:
            _read_for_retirement(row, driver)
        else:
            _read_contents(row, driver)
    except (StoreError, ServiceError) as error:
        _wait(row, error)
        return
    except Stopped as stop:
        log.info("verification %s ended here: %s", row.uuid, stop)
        return
    reach("verify.read")
    _ours(row).update(state=VerificationState.FINISHED, finished_at=Now(), lease_until=None, note="")


def _wait(row: Verification, error: StoreError | ServiceError) -> None:
    """Say what is in the way, and try again later: an outage ends by itself, a refusal when somebody mends its cause."""
    log.warning("verification %s waits: %s", row.uuid, error)
    note = f"It waits: {error} {error.remedy}".replace("\0", "").encode(errors="backslashreplace").decode()
    pause = settings.HEARTBEAT_SECONDS * 2 if isinstance(error, Unavailable) else _REFUSED_SECONDS
    with transaction.atomic():
        if _ours(row).update(lease_until=Now() + timedelta(seconds=pause), note=note):
            Decommission.objects.filter(verification=row, state=DecommissionState.CHECKING).update(note=note)


def _go_on(row: Verification) -> None:
    """What was in the way is gone."""
    if row.note:
        _ours(row).update(note="")
        Decommission.objects.filter(verification=row, state=DecommissionState.CHECKING).update(note="")


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


def _ours(row: Verification) -> QuerySet[Verification]:
    """The row as long as nobody has cancelled it or taken it over."""
    return Verification.objects.filter(pk=row.pk, epoch=row.epoch, state=VerificationState.RUNNING)


def _save(row: Verification, findings: Sequence[dict[str, Any]]) -> None:
    told = [{"remedy": REMEDIES.get(finding["problem"], _OTHER_REMEDY)} | finding for finding in findings]
    row.findings = [*row.findings, *told][:_KEPT_FINDINGS]
    row.findings_count += len(findings)
    if not _ours(row).update(
        cursor=row.cursor,
        items_checked=row.items_checked,
        bytes_checked=row.bytes_checked,
        findings=row.findings,
        findings_count=row.findings_count,
        lease_until=_lease_end(),
    ):
        raise Stopped("it was cancelled, or another worker has taken it over")


class Watch(Control):
    """Paces the reading from one store by that store's limit, keeps the lease meanwhile, and stops whoever has lost it."""

    def __init__(self, row: Verification, store: ImageStore) -> None:
        self._throttle = Throttle(store.read_limit)
        super().__init__([self._throttle])
        self._row, self._store = row, store
        self._renew_at = time.monotonic() + settings.HEARTBEAT_SECONDS

    def check(self) -> None:
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + settings.HEARTBEAT_SECONDS
            self._throttle.set_rate(ImageStore.objects.values_list("read_limit", flat=True).get(pk=self._store.pk))
            if not _ours(self._row).update(lease_until=_lease_end()):
                self.stop("it was cancelled, or another worker has taken it over")
        super().check()


# --- contents --------------------------------------------------------------------------------------------------------------


def _read_contents(row: Verification, driver: StoreDriver) -> None:
    engine = CopyEngine(lanes=1)
    watch = Watch(row, row.store)
    try:
        for kind, models in KINDS.items():
            refs = models.ref.objects.filter(store=row.store)
            while page := _next_refs(row, kind, refs, _WITH_BYTES):
                proven = _proven_hashes(kind, page)
                for ref in page:
                    row.cursor[kind] = ref.pk
                    if sampled(ref.item.uuid.bytes, row):
                        _read_item(row, engine, driver, watch, kind, ref, proven.get(ref.item_id, {}))
                _save(row, [])
    finally:
        engine.close()


def _read_item(
    row: Verification, engine: CopyEngine, driver: StoreDriver, watch: Watch, kind: Kind, ref: Any, proven: Mapping[str, str]
) -> None:
    """Hash its files, twice what differs; what that shows is written in the transaction that moves the reading on."""
    files = sorted(ref.files.all(), key=lambda file: str(file.path))
    seen: dict[str, str] = {}
    wrong = Wrong(kind, ref)
    for file in files:
        file.sha256 = file.sha256 or proven.get(relative_name(ref.install_path, file.path), "")
        wrong.known[file.path] = file.sha256
        found = _check(row, engine, driver, watch, ref, file, seen)
        if found is not None:
            wrong.look_again(engine, driver, watch, file, found)
    row.items_checked += 1
    if not files or (wrong.findings and _is_going(ref)):
        _save(row, [])
        return
    with transaction.atomic():
        wrong.act()
        _save(row, wrong.findings)
    if wrong.findings:
        return
    if ref.state == RefState.FAILED and all(wrong.known.values()):
        proofs.mend(kind, ref, {file.path: driver.stat(file.path) for file in files}, seen)
    elif row.store.scope == "REGION" and ref.proof == Proof.ADOPTED and ref.state in READABLE:
        proofs.confirm(kind, ref, seen)


def _proven_hashes(kind: Kind, refs: Sequence[Any]) -> dict[int, dict[str, str]]:
    """Item -> name in its directory -> SHA-256, as proven on a store of record: what an original that nobody hashed must be."""
    copies = proven_copies(kind).filter(item_id__in=[ref.item_id for ref in refs]).prefetch_related("files")
    return {
        copy.item_id: {relative_name(copy.install_path, file.path): file.sha256 for file in copy.files.all()} for copy in copies
    }


def _next_refs(row: Verification, kind: Kind, refs: QuerySet[Any], states: Sequence[RefState] = READABLE) -> list[Any]:
    """A page of what has bytes behind the cursor. One query for each state: asked for all, the database would sort all that is
    left of the store for every page."""
    behind = refs.filter(pk__gt=row.cursor.get(kind, 0)).order_by("pk")
    behind = behind.select_related("item__account").prefetch_related("files")
    found = {ref.pk: ref for state in states for ref in behind.filter(state=state)[:_REFS]}
    return [found[pk] for pk in sorted(found)[:_REFS]]


def sampled(identity: bytes, row: Verification) -> bool:
    """The same items on every run of one verification, other ones on the next."""
    return zlib.crc32(identity + row.uuid.bytes) % 10_000 < row.sample_percent * 100


def _check(
    row: Verification, engine: CopyEngine, driver: StoreDriver, watch: Watch, ref: Any, file: Any, seen: dict[str, str]
) -> dict[str, str] | None:
    found, size = difference(engine, driver, watch, file.path, file.sha256, file.size, seen)
    row.bytes_checked += size
    if found is None and row.store.scope == "ZONE" and file.version and ref.state in READABLE:
        try:
            version = driver.stat(file.path).version
        except NotFound:
            version = ""
        found = None if version == file.version else {"problem": "changed", "expected": file.version, "found": version}
    return found


def _is_going(ref: Any) -> bool:
    """Whether it was deleted, or withdrawn, meanwhile: then nothing about it is a finding."""
    return not type(ref).objects.filter(pk=ref.pk, state__in=_WITH_BYTES).exists()


# --- retirement ------------------------------------------------------------------------------------------------------------


def proven_copies(kind: Kind) -> QuerySet[Any]:
    """Refs that let an original go: proven, hashed, and on a store of record that is in use."""
    refs: QuerySet[Any] = KINDS[kind].ref.objects.filter(
        state__in=READABLE, proof__in=PROVEN, store__role=Role.IMAGE, store__state=StoreState.ATTACHED
    )
    return refs.exclude(sha256="")


def not_looked_at(kind: Kind, decommission: Decommission) -> QuerySet[Any]:
    """Refs on the store without a line of evidence: those that came after it had passed them."""
    lines = RetiredFile.objects.filter(decommission=decommission, kind=kind, ref_id=OuterRef("pk"))
    refs: QuerySet[Any] = KINDS[kind].ref.objects.filter(~Exists(lines), store_id=decommission.store_id, state__in=READABLE)
    return refs


def _read_for_retirement(row: Verification, driver: StoreDriver) -> None:
    """Every original and its proven copy that there is no line of yet, then what else lies there. The listing begins anew."""
    decommission = row.decommission
    engine = CopyEngine(lanes=1)
    reader = _PairReader(row, engine, driver)
    try:
        for kind in KINDS:
            while page := _next_refs(row, kind, not_looked_at(kind, decommission)):
                reader.find_copies(kind, page)
                for ref in page:
                    wrong, lines = reader.read(kind, ref)
                    row.cursor[kind] = ref.pk
                    row.items_checked += 1
                    with transaction.atomic():
                        for of in wrong:
                            of.act()
                        paths = [line["path"] for line in lines]
                        RetiredFile.objects.filter(decommission=decommission, path__in=paths).delete()  # of an item that is gone
                        RetiredFile.objects.bulk_create(
                            RetiredFile(decommission=decommission, kind=kind, ref_id=ref.pk, **line) for line in lines
                        )
                        _save(row, [finding for of in wrong for finding in of.findings])
                        reach("retire.before-line")
                    reach("retire.line")
        if not row.findings_count:
            _list_unknown(row, decommission, engine, driver)
    finally:
        engine.close()


class _PairReader:
    """Reads an original and its proven copy again, and tells what it saw of both."""

    def __init__(self, row: Verification, engine: CopyEngine, driver: StoreDriver) -> None:
        self._row, self._engine, self._driver = row, engine, driver
        self._watch = Watch(row, row.store)
        self._copies: dict[int, Any] = {}
        self._watches: dict[int, Watch] = {}

    def find_copies(self, kind: Kind, refs: Sequence[Any]) -> None:
        """Two queries for a page of refs."""
        found = proven_copies(kind).filter(item_id__in=[ref.item_id for ref in refs]).order_by("-pk")
        self._copies = {copy.item_id: copy for copy in found.select_related("store", "item").prefetch_related("files")}

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
        going = (original.findings or there.findings) and _is_going(ref)
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
        chosen = sampled(item.uuid.bytes, self._row)
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
        differs, size = difference(self._engine, driver_for(store), watch, there.path, there.sha256, there.size)
        line["copy_read_at"] = timezone.now()
        self._row.bytes_checked += size
        if differs is not None:
            copy.known[there.path] = there.sha256
            copy.look_again(self._engine, driver_for(store), watch, there, differs, label=f"{store.name}: {there.path}")
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
    looks = _Looks(row, engine, driver)

    def keep() -> None:
        nonlocal count, size
        known = _living(row.store, [info.key for info in page])[0]
        unknown = [UnknownFile(decommission=decommission, path=_told(i.key), size=i.size) for i in page if i.key not in known]
        wrong, told = looks.judge(findings)
        with transaction.atomic():
            for of in wrong:
                of.act()
            _save(row, told)
            UnknownFile.objects.bulk_create(unknown)
        for file in unknown:
            digest.update(f"{file.size}  {file.path}\n".encode())
        count, size = count + len(unknown), size + sum(file.size for file in unknown)
        page.clear()
        findings.clear()

    listed = (info for info in driver.list(prune=_is_own) if not _is_own(info.key))
    for number, (path, info, known) in enumerate(_side_by_side(listed, _known_paths(row.store)), 1):
        if info is None:
            findings.append({"path": path, "problem": "missing", "expected": str(known and known.size), "found": ""})
        elif known is None:
            page.append(info)
        elif info.size != known.size:
            findings.append({"path": path, "problem": "size differs", "expected": str(known.size), "found": str(info.size)})
        if number % _PAGE == 0:
            keep()
    keep()
    reach("retire.listed")
    with transaction.atomic():
        _save(row, [])
        Decommission.objects.filter(pk=decommission.pk).update(
            unknown_count=count, unknown_bytes=size, unknown_digest=digest.hexdigest() if count else ""
        )


def _told(path: str) -> str:
    """A path as a row can hold it and as people can read it."""
    return path.encode("utf-8", "backslashreplace").decode().replace("\0", "")


# --- listing ---------------------------------------------------------------------------------------------------------------


def _compare_listing(row: Verification, driver: StoreDriver) -> None:
    """Walk the listing and the file rows side by side in key order; memory is one page of each."""
    passed_over = _is_own if row.store.scope == "REGION" else _is_passed_over
    listed = (info for info in driver.list(prune=passed_over) if not passed_over(info.key))
    row.items_checked, row.findings, row.findings_count = 0, [], 0  # a listing that was interrupted begins anew
    findings: list[dict[str, Any]] = []
    begun = timezone.now()
    moving = Transfer.objects.filter(target=row.store, swept=False).exists()
    young = begun - timedelta(seconds=2 * settings.LEASE_SECONDS) if moving else begun
    engine = CopyEngine(lanes=1)
    looks = _Looks(row, engine, driver)
    try:
        for path, info, known in _side_by_side(listed, _known_paths(row.store)):
            row.items_checked += 1
            if info is None:
                findings.append({"path": path, "problem": "missing", "expected": str(known and known.size), "found": ""})
            elif known is None:
                if info.modified < young:  # else it may be a copy that is proven, or swept, in a moment
                    findings.append({"path": path, "problem": _foreign(row.store), "expected": "", "found": str(info.size)})
            elif found := _drift(row.store, info, known):
                findings.append({"path": path, **found})
            if row.items_checked % _PAGE == 0:
                looks.save(findings)
                findings = []
        looks.save(findings)
    finally:
        engine.close()


class _Looks:
    """What a listing says is only where to look: at the objects themselves, and twice before anything is taken back."""

    def __init__(self, row: Verification, engine: CopyEngine, driver: StoreDriver) -> None:
        self._row, self._engine, self._driver = row, engine, driver
        self._watch = Watch(row, row.store)

    def save(self, findings: Sequence[dict[str, Any]]) -> None:
        """Tell what holds of a page's findings, and act on it, in the transaction that moves the reading on."""
        wrong, told = self.judge(findings)
        with transaction.atomic():
            for of in wrong:
                of.act()
            _save(self._row, told)

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
            if not file.sha256:
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
        storable = [path for path in paths if _told(path) == path]
        places = {place for path in storable for place in layout.install_paths(path)}
        for kind, models in KINDS.items():
            known = {"ref__store": self._row.store, "ref__install_path__in": places, "path__in": storable}
            rows = models.file.objects.filter(ref__state__in=READABLE, **known).select_related("ref__item", "ref__store")
            files = list(rows.order_by("path"))
            proven = _proven_hashes(kind, [file.ref for file in files])
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
    living, readable = _living(store, [finding["path"] for finding in findings])
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


def _living(store: ImageStore, paths: Sequence[str]) -> tuple[set[str], set[str]]:
    """Of these paths those that a ref knows, and those of them that can be read."""
    living: set[str] = set()
    readable: set[str] = set()
    storable = [path for path in paths if _told(path) == path]
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


def _is_own(key: str) -> bool:
    return key.startswith(OWN_FOLDERS)


def _is_passed_over(key: str) -> bool:
    """What a scan of an export passes over by a rule, or leaves to CloudStack: no drift is found in it."""
    name = key.rpartition("/")[2]
    return _is_own(key) or layout.skip_rule(key) is not None or layout.is_system_iso(key) or layout.is_unfinished(name)


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What a file's row says that a listing can contradict."""

    size: int
    etag: str
    version: str


def _order(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _side_by_side(
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


def _known_paths(store: ImageStore) -> Iterator[tuple[str, KnownFile]]:
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
    while page := list(_behind(refs, after, last).values_list("install_path", "pk", "state")[:_PAGE]):
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
