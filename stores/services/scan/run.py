"""The scan itself: streams the listing, reads headers outside of transactions, commits by batch, then looks for what is gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from cloudstorage.actors import Actor
from cloudstorage.audit import record, refused
from cloudstorage.checkpoints import reach
from cloudstorage.errors import ServiceError
from stores.drivers.base import StoreDriver
from stores.drivers.errors import AccessDenied, NotFound, StoreError, UnsafeName
from stores.models import KINDS, ImageStore, ScanRun
from stores.services.image_stores import driver_for, refusal
from stores.services.scan import rows
from stores.services.scan.catalogue import Catalogue
from stores.services.scan.compare import compare
from stores.services.scan.idset import IdSet
from stores.services.scan.lease import Lease
from stores.services.scan.listing import Folder, folders
from stores.services.scan.reading import Contents, FoundItem, is_image_name, read_folder
from stores.services.scan.rebuild import rebuild
from stores.services.scan.report import ScanReport
from stores.services.scan.rows import MISSING, Known, Verdict
from stores.states import READABLE, SCAN_TRANSITIONS, Kind, ScanEvent, ScanState, next_state

BATCH_FILES = 500
"""Files after which a batch is committed; a directory is never split."""
_TRIES = 3


def perform(run: ScanRun) -> ScanReport:
    """Adopt what lies on an NFS store and report how it differs from the rows; object stores are compared only.

    For a run that was started: ends it one way or another. Raises Unreachable when the store stops answering (what was adopted
    until then stays, nothing is said to be missing), Conflict when it was cancelled, Busy when another process has taken over.
    """
    scan = _Scan(run)
    try:
        scan.go()
    except StoreError as error:
        told = refusal(error)
        scan.give_up(told)
        raise told from error
    except ServiceError as error:
        scan.give_up(error)
        raise
    except BaseException as error:
        scan.give_up(_broken(run, error))
        raise
    return scan.report


def _broken(run: ScanRun, error: BaseException) -> ServiceError:
    what = "it was interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    return ServiceError(f"The scan of {run.store.name} broke off: {what}.", remedy="What it has adopted stays. Scan again.")


@dataclass(slots=True)
class _Batch:
    """What one batch found before it is committed."""

    report: ScanReport = field(default_factory=ScanReport)
    items: list[FoundItem] = field(default_factory=list)
    seen: dict[Kind, list[int]] = field(default_factory=lambda: defaultdict(list))


class _Scan:
    driver: StoreDriver

    def __init__(self, run: ScanRun) -> None:
        self.run, self.store = run, run.store
        self.started = timezone.now()
        self.report = ScanReport(store=str(self.store.uuid), started=self.started)
        self.lease = Lease(run, self.report)
        self.seen: dict[Kind, IdSet] = {kind: IdSet() for kind in Kind}

    def go(self) -> None:
        """From the listing to the report that is kept."""
        catalogue = None if self.run.catalogue is None else Catalogue.parse(self.run.catalogue)
        self.driver = driver_for(self.store)
        if self.store.scope == "REGION":
            rebuild(self.store, self.driver, self.report, self.lease)
            compare(self.store, self.driver, self.report, self.lease)
        else:
            for batch in _batches(folders(self.driver, self.report)):
                self._take(batch)
            self._look_for_missing()
        if catalogue is not None:
            catalogue.apply(self.report, self.lease)
        self.report.complete = True
        self._keep()

    # --- one batch -----------------------------------------------------------------------------------------------------

    def _take(self, batch: Sequence[Folder]) -> None:
        paths: dict[Kind, list[str]] = defaultdict(list)
        for folder in batch:
            paths[folder.place.kind] += folder.units()
        known = rows.load(self.store, paths)
        found = _Batch()
        for folder in batch:
            self.lease.beat()
            self._judge(folder, known, found)
        reach("scan.read")
        outcome = self._commit(found, known)
        reach("scan.committed")
        self.report.merge(found.report)
        self.report.merge(outcome.report)
        for seen in (found.seen, outcome.seen):
            for kind, ids in seen.items():
                self.seen[kind].add(ids)

    def _commit(self, found: _Batch, known: Mapping[str, Known]) -> rows.Outcome:
        for left in reversed(range(_TRIES)):
            try:
                with transaction.atomic():
                    self.lease.renew()
                    return rows.apply(self.store, self.started, found.items, known)
            except IntegrityError:  # another store's scan adopted the same item at the same moment: now its row can be seen
                if not left:
                    raise
        raise AssertionError

    def _judge(self, folder: Folder, known: Mapping[str, Known], found: _Batch) -> None:
        """Believe a directory whose versions are all known; read it else. Snapshots are read together, for their chains."""
        units = folder.units()
        names = {folder.name_of(key) for key in folder.entries}
        verdicts = {path: rows.judge(known[path], infos, names) for path, infos in units.items() if path in known}
        wanted = [path for path in units if path not in verdicts and self._may_be_new(folder, path)]
        contents: Contents | None = None
        if wanted or Verdict.READ in verdicts.values():
            contents = read_folder(self.driver, folder)
            self._note(folder, contents, known, found)
        read = {item.install_path for item in contents.items} if contents else set()
        for path, infos in units.items():
            ref = known.get(path)
            if ref is None:
                if contents is None and (infos or folder.place.kind is not Kind.SNAPSHOT):
                    self._note_strange(folder, path, found)
                continue
            if verdicts[path] is Verdict.IN_FLIGHT:
                found.report.in_flight.add(path, f"The item is {ref.ref.state} on this store.")
            elif path not in read:
                self._note_known(ref, infos, found, extras=contents is None)

    def _may_be_new(self, folder: Folder, path: str) -> bool:
        if folder.place.kind is not Kind.SNAPSHOT:
            return bool(folder.entries)
        return path not in folder.entries or is_image_name(path.rpartition("/")[2])

    def _note(self, folder: Folder, contents: Contents, known: Mapping[str, Known], found: _Batch) -> None:
        """Take over what a directory's headers said."""
        for item in contents.items:
            ref = known.get(item.install_path)
            if ref is not None and ref.ref.state not in READABLE:
                continue
            found.items.append(item)
            kind = "iso" if item.kind is Kind.TEMPLATE and item.format == "ISO" else str(item.kind)
            found.report.count_item(kind, [(file.size, file.allocated) for file in item.files])
        for path, message in contents.orphans:
            if path.removesuffix("/") not in known:
                found.report.orphaned.add(path, message)
        for path, message in contents.unknown:
            found.report.unknown.add(path, message)
        for path, message in contents.unreadable:
            found.report.unreadable.add(path, message)
        found.report.opened += contents.opened

    def _note_strange(self, folder: Folder, path: str, found: _Batch) -> None:
        if folder.place.kind is Kind.SNAPSHOT:
            found.report.unknown.add(path, "No image by its name, so no snapshot.")
        else:
            found.report.orphaned.add(f"{path}/", "A directory without an image.")

    def _note_known(self, known: Known, infos: Sequence[Any], found: _Batch, *, extras: bool) -> None:
        """Count an item whose files are as their rows say, with the problems that its rows remember."""
        ref, kind = known.ref, Kind(known.ref.item.kind)
        sizes = []
        for info in infos:
            row = known.files.get(info.key)
            if row is not None:
                found.seen[kind].append(row.pk)
                sizes.append((info.size, info.allocated))
                if row.problem:
                    found.report.corrupt.add(info.key, row.problem)
            elif extras:
                found.report.orphaned.add(info.key, "No file of the item whose directory it lies in.")
        if ref.error_str and not any(row.problem for row in known.files.values()):
            found.report.corrupt.add(ref.install_path, ref.error_str)
        if sizes:
            found.report.count_item("iso" if ref.item.format == "ISO" and kind is Kind.TEMPLATE else str(kind), sizes)
            found.report.unchanged += 1

    # --- what is gone --------------------------------------------------------------------------------------------------

    def _look_for_missing(self) -> None:
        """Ask for every file that the listing did not show; only the store's own word that it is not there counts."""
        for kind, models in KINDS.items():
            after = 0
            while True:
                files = models.file.objects.filter(ref__store=self.store, ref__state__in=READABLE, pk__gt=after)
                page = list(files.order_by("pk").values_list("pk", "path")[: 4 * BATCH_FILES])
                if not page:
                    break
                after = page[-1][0]
                gone = {pk: text for pk, path in page if pk not in self.seen[kind] and (text := self._why_gone(path))}
                if gone:
                    self._note_missing(kind, gone)

    def _why_gone(self, path: str) -> str:
        self.lease.beat()
        try:
            self.driver.stat(path)
        except NotFound:
            return "the file is no longer on the store"
        except UnsafeName:
            return "something that is no regular file lies in its place"
        except AccessDenied:
            return ""
        return ""

    def _note_missing(self, kind: Kind, gone: Mapping[int, str]) -> None:
        models = KINDS[kind]
        delta = ScanReport()
        with transaction.atomic():
            self.lease.renew()
            files = models.file.objects.select_for_update(of=("self",)).filter(pk__in=list(gone), ref__state__in=READABLE)
            changed, refs = [], {}
            for row in files.select_related("ref").order_by("pk"):
                problem = f"{MISSING}{gone[row.pk]}"
                delta.missing.add(row.path, gone[row.pk])
                if row.problem != problem:
                    row.problem = problem
                    changed.append(row)
                if row.ref.error_str != problem:
                    row.ref.error_str = problem
                    refs[row.ref_id] = row.ref
            models.file.objects.bulk_update(changed, ["problem"], batch_size=BATCH_FILES)
            models.ref.objects.bulk_update(list(refs.values()), ["error_str"], batch_size=BATCH_FILES)
        self.report.merge(delta)

    # --- the end -------------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Store the report with the audit row."""
        self.report.finished = timezone.now()
        with transaction.atomic():
            if not self._end(ScanEvent.FINISH, files=self.report.files, report=self.report.as_json()):
                raise self.lease.lost()
            self._note_on_store(self.report.as_json(), scanned_at=self.started)
            record(Actor(self.run.actor, frozenset()), "store.scan.finish", self.store.name, **self._summary())

    def give_up(self, error: ServiceError) -> None:
        """Note the failure beside the last complete report, which stays: half a report would say that all else is well."""
        self.report.finished = timezone.now()
        self.report.error = error.message
        with transaction.atomic():
            report = self.report.as_json()
            if not self._end(ScanEvent.FAIL, files=self.report.files, report=report, error=error.message, remedy=error.remedy):
                return  # cancelled or taken over: whoever did that has said so
            last = ImageStore.objects.values_list("scan_report", flat=True).get(pk=self.store.pk)
            failed = {"at": self.report.finished.isoformat(), "error": error.message, "remedy": error.remedy}
            self._note_on_store((last or report) | {"failed": failed})
            refused(Actor(self.run.actor, frozenset()), "store.scan.finish", self.store.name, error)

    def _end(self, event: ScanEvent, **values: Any) -> int:
        state = next_state(SCAN_TRANSITIONS, ScanState.RUNNING, event)
        return self.lease.mine.update(
            state=state, finished_at=self.report.finished, token=None, lease_until=None, catalogue=None, **values
        )

    def _note_on_store(self, report: dict[str, Any], **more: datetime) -> None:
        ImageStore.objects.filter(pk=self.store.pk).update(scan_report=report, **more)
        self.store.scan_report = report
        for name, value in more.items():
            setattr(self.store, name, value)

    def _summary(self) -> dict[str, Any]:
        names = ("missing", "orphaned", "changed", "corrupt", "foreign_writes", "conflicts", "unknown")
        counts = {name: getattr(self.report, name).count for name in names}
        return {"found": dict(self.report.found), "adopted": self.report.adopted, **counts}


def _batches(stream: Iterator[Folder]) -> Iterator[list[Folder]]:
    batch: list[Folder] = []
    size = 0
    for folder in stream:
        batch.append(folder)
        size += 1 + len(folder.entries)
        if size >= BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
