"""A region under random orders, deaths, lost leases and lying stores: after every step nothing that must hold is broken."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloudstorage.actors import Actor, ActorRole
from cloudstorage.errors import Conflict, Missing, ServiceError
from migration import drain as drains
from migration import tasks as migration_tasks
from migration import verify
from migration.conversion import convert
from migration.models import Conversion, Drain, Verification
from migration.states import DrainState
from stores import tasks, worker
from stores.copier import Control, CopiedFile, CopyEngine, FileToCopy, Stopped
from stores.drivers.base import MARKER_KEY
from stores.drivers.errors import StoreError, Throttled, Unavailable, UploadGone
from stores.models import KINDS, Hold, ImageStore, Kind, Transfer, TransferPart, TransferUpload, Worker, WorkerReach
from stores.services import holds, inventory, items, transfers
from stores.services.image_stores import driver_for
from stores.services.items import WrittenFile
from stores.services.transfers import Job, Lease
from stores.states import LIVE_TRANSFER_STATES, PROVEN, READABLE, Proof, RefState, TransferState
from tests import factories
from tests.fakes.faulty import FAULTS, Faults, faults_at, flip
from tests.fakes.memory import SERVERS, server_at

URL = "memory://objects"
ADMIN = Actor("admin", frozenset({ActorRole.STORAGE_ADMIN}))
BETWEEN = ["nothing", "lapse", "taken over", "deleted", "paused", "fault"]
"""What may come between a claim, its copy and its proof."""
FENCED_TABLES = (
    Transfer,
    TransferUpload,
    TransferPart,
    Hold,
    *(model for kind in KINDS.values() for model in (kind.ref, kind.file)),
)


@dataclass
class Held:
    """A job that a worker of ours took, and how far it is with it."""

    job: Job
    copied: list[CopiedFile] | None = None
    error: Exception | None = None
    dead: bool = False
    """The worker is gone, or somebody else has taken over: whatever it does must change nothing."""


class StepJournal(worker._PumpJournal):
    """The pump's own journal where one thread does everything."""

    def _durable(self, write: Any) -> None:
        write()
        self._running.control.check()


def rows(models: Any = FENCED_TABLES) -> list[Any]:
    return [list(model.objects.order_by("pk").values()) for model in models]


class Region(RuleBasedStateMachine):
    """Two zones with exports, an object store, a few items: one in both zones, and a chain of snapshots."""

    steps: Counter[str] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        self.root = Path(tempfile.mkdtemp(prefix="region-"))
        SERVERS.pop(URL, None)
        FAULTS.clear()
        self.engine = CopyEngine(lanes=2, memory=1 << 20)
        self.held: list[Held] = []
        self.items: dict[tuple[Kind, int], dict[str, bytes]] = {}
        """What each file of an item must read as, by its name in the item's directory."""
        self.deleted: set[tuple[Kind, int]] = set()
        self.begun: list[tuple[Kind, Any]] = []
        self.progress: dict[tuple[int, int], int] = {}
        self.numbers = random.Random(7)
        self.nfs_at_conversion: set[Path] | None = None
        self.allowed_on_nfs: set[Path] = set()
        self.staging = False
        self.seen: list[Any] = []

    # --- the ground ----------------------------------------------------------------------------------------------------

    @initialize(
        begin=st.sampled_from(["drain", "drain", "canary", "converted", "before"]),
        opening=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3), st.sampled_from(BETWEEN)), min_size=2, max_size=5),
        data=st.data(),
    )
    def build(self, begin: str, opening: list[tuple[int, int, str]], data: st.DataObject) -> None:
        """The opening makes sure that much is under way in every run, whichever rules it may draw afterwards."""
        east, west = factories.make_zone("east"), factories.make_zone("west")
        self.east = factories.make_store("NFS", name="nfs-east", zone=east, folder=self.root / "east")
        self.west = factories.make_store("NFS", name="nfs-west", zone=west, folder=self.root / "west")
        now = timezone.now()
        ImageStore.objects.update(scanned_at=now, scan_report={"adopted": 0})
        self.workers = [Worker.objects.create(hostname=name, pid=1) for name in ("one", "two")]
        self._reach()
        self._know(factories.make_template([self.east, self.west], name="web", size=50))
        self._know(factories.make_volume([self.east], name="data", size=10))
        for snapshot in factories.make_chain([self.west], 3, size=40):
            self._know(snapshot)
        if begin != "before":
            self.convert()
        if begin in {"drain", "canary"}:
            self.plan(canary=int(begin == "canary"), concurrency=8)
            self.clock()
            for who, limit, between in opening:
                self.work(who, limit, between, data)

    def _reach(self) -> None:
        for row in self.workers:
            for store in ImageStore.objects.all():
                WorkerReach.objects.update_or_create(worker=row, store=store, defaults={"ok": True})

    def _know(self, item: Any) -> None:
        """Remember an item as its first copy has it."""
        ref = KINDS[item.kind].ref.objects.filter(item=item, state=RefState.READY).order_by("pk").first()
        driver = driver_for(ref.store)
        files = {}
        for file in ref.files.all():
            with self._honest(), driver.open(file.path) as reader:
                files[inventory.relative_name(ref.install_path, file.path)] = reader.pread(0, reader.size)
        self.items[item.kind, item.pk] = files

    @contextmanager
    def _honest(self) -> Any:
        """The stores behave while we look at them."""
        saved = {url: faults._faults for url, faults in FAULTS.items()}
        for faults in FAULTS.values():
            faults._faults = []
        try:
            yield
        finally:
            for url, script in saved.items():
                FAULTS[url]._faults = script

    def teardown(self) -> None:
        self.steps["runs"] += 1
        try:
            if hasattr(self, "workers"):
                self._settle()
        finally:
            self.engine.close()
            transaction.set_rollback(True)
            self.transaction.__exit__(None, None, None)
            shutil.rmtree(self.root, ignore_errors=True)
            SERVERS.pop(URL, None)
            FAULTS.clear()

    # --- items come and go ---------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from([Kind.VOLUME, Kind.TEMPLATE]))
    def begin_item(self, kind: Kind) -> None:
        number = self.numbers.randrange(10**6)
        if len(self.begun) > 2:
            return
        with suppress(Conflict):
            ref = items.begin_item(
                actor=ADMIN, kind=kind, zone=self.east.zone, account=factories.make_account(), name=f"new-{number}"
            )
            self.begun.append((kind, ref))

    @precondition(lambda self: self.begun)
    @rule()
    def finish_item(self) -> None:
        """The writer had its bytes on the store before it says so; the store may have been converted meanwhile."""
        kind, ref = self.begun.pop(0)
        key, body = f"{ref.install_path}/disk.raw", self.numbers.randbytes(45)
        with self._honest():
            stored = driver_for(ref.store).put(key, body, metadata={}, token=f"writer-{ref.pk}")
        if ref.store.scope == "ZONE":
            self.allowed_on_nfs.add(Path(ref.store.name) / key)
        file = WrittenFile(key, len(body), hashlib.sha256(body).hexdigest(), stored.proof or Proof.READ_BACK, stored.version)
        items.finish_item(actor=ADMIN, kind=kind, ref=ref, files=[file])
        self._know(ref.item)

    @rule(data=st.data())
    def delete_item(self, data: st.DataObject) -> None:
        alive = sorted(set(self.items) - self.deleted)
        if len(alive) < 3:
            return
        kind, pk = data.draw(st.sampled_from(alive))
        with suppress(Conflict):
            items.delete_item(actor=ADMIN, kind=kind, item=KINDS[kind].item.objects.get(pk=pk))
            self.deleted.add((kind, pk))
        with suppress(ServiceError):
            items.delete_item(actor=ADMIN, kind=kind, item=KINDS[kind].item.objects.get(pk=pk))

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(sorted(KINDS)))
        found = list(KINDS[kind].ref.objects.order_by("pk").values_list("pk", flat=True))
        if found:
            with suppress(Conflict):
                owner = data.draw(st.sampled_from(["a", "b"]))
                holds.take_hold(kind, data.draw(st.sampled_from(found)), "read", owner, data.draw(st.sampled_from([None, 0, 60])))

    @rule()
    def release_holds(self) -> None:
        for hold in list(Hold.objects.filter(reason="read")):
            holds.release_hold(Kind(hold.kind), hold.ref_id, hold.reason, hold.owner)
            holds.release_hold(Kind(hold.kind), hold.ref_id, hold.reason, hold.owner)

    # --- conversion and drain ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.nfs_at_conversion is None)
    @rule()
    def convert(self) -> None:
        with self._honest():
            convert(actor=ADMIN, name="objects", url=URL, provider="Memory", details={}, override=["preflight-absent"])
        self._reach()
        self.nfs_at_conversion = self._on_nfs()

    @property
    def conversion(self) -> Conversion | None:
        return Conversion.objects.select_related("object_store").first()

    @precondition(lambda self: self.nfs_at_conversion is not None)
    @rule(canary=st.sampled_from([0, 1]), concurrency=st.sampled_from([1, 8]))
    def plan(self, canary: int, concurrency: int) -> None:
        with suppress(Conflict):
            row = drains.plan(actor=ADMIN, conversion=self.conversion, canary_items=canary, concurrency=concurrency)
            drains.start(actor=ADMIN, drain=row)

    @precondition(lambda self: self.nfs_at_conversion is not None)
    @rule(
        act=st.sampled_from([drains.pause, drains.resume, drains.resume, drains.cancel, drains.retry_failed, drains.retry_failed])
    )
    def steer(self, act: Any) -> None:
        for row in Drain.objects.order_by("-pk")[:2]:
            with suppress(Conflict):
                act(actor=ADMIN, drain=row)

    @rule()
    def clock(self) -> None:
        """What the worker's clock does, twice as a queue may."""
        for _ in range(2):
            tasks.keep_house()
            with suppress(StoreError, Conflict):
                migration_tasks.advance_drains()

    @precondition(lambda self: self.nfs_at_conversion is not None)
    @rule(data=st.data(), staged=st.booleans())
    def ask_for(self, data: st.DataObject, staged: bool) -> None:
        alive = sorted(set(self.items) - self.deleted)
        kind, pk = data.draw(st.sampled_from(alive))
        with suppress(Conflict, Missing):
            store = self.east if staged else None
            transfers.ensure(
                actor=ADMIN,
                kind=kind,
                item=KINDS[kind].item.objects.get(pk=pk),
                store=store and ImageStore.objects.get(pk=store.pk),
            )
        self.staging = self.staging or staged

    # --- workers, one step at a time -----------------------------------------------------------------------------------

    @rule(who=st.sampled_from([0, 1]), limit=st.integers(1, 3))
    def claim(self, who: int, limit: int) -> None:
        for job in transfers.claim(self.workers[who].pk, limit=limit, open_batches=worker.open_batches()):
            self.steps["claimed"] += 1
            for other in self.held:
                other.dead = other.dead or other.job.transfer.pk == job.transfer.pk
            self.held.append(Held(job))

    @precondition(lambda self: any(held.copied is None and held.error is None for held in self.held))
    @rule()
    def copy(self) -> None:
        held = next(held for held in self.held if held.copied is None and held.error is None)
        self._copy_fenced(held)

    def _copy_fenced(self, held: Held) -> None:
        self._see_who_is_fenced()
        before = rows() if held.dead else None
        self._copy(held)
        if before is not None:
            self.steps["fenced copy"] += 1
            assert rows() == before, "a worker that lost its lease changed a row"

    def _copy(self, held: Held) -> None:
        job = held.job
        recorded = {upload.key: worker._recorded(upload) for upload in job.transfer.uploads.all()}
        running = worker._Running(job, Control(), 0.0, recorded, {})
        steps = StepJournal(None, running)  # type: ignore[arg-type]
        files = [FileToCopy(file.path, job.target_key(file.path), file.size, file.version, file.sha256) for file in job.files]
        source, target = driver_for(job.transfer.source), driver_for(job.transfer.target)
        try:
            held.copied = self.engine.copy_item(
                source, target, files, metadata={}, token=job.token, journal=steps, control=running.control
            )
        except (StoreError, Stopped) as error:
            held.error = error
        steps.flush()
        self.steps[f"copy {'ok' if held.error is None else type(held.error).__name__}"] += 1
        if not held.dead:
            transfers.renew([Lease(job.transfer.pk, job.epoch, running.control.bytes_done, True, "target")])

    @precondition(lambda self: any(held.copied or held.error for held in self.held))
    @rule(twice=st.booleans())
    def end(self, twice: bool) -> None:
        held = next(held for held in self.held if held.copied or held.error)
        self._end_fenced(held, times=1 + twice)

    def _end_fenced(self, held: Held, times: int = 1) -> None:
        self._see_who_is_fenced()
        before = rows() if held.dead else None
        for _ in range(times):
            self._end(held)
        self.held.remove(held)
        if before is not None:
            self.steps["fenced end"] += 1
            assert self._without_swept(rows()) == self._without_swept(before), "a worker that lost its lease changed a row"

    @staticmethod
    def _without_swept(found: list[Any]) -> list[Any]:
        """The one thing that a late worker may say: that there may be something to sweep."""
        return [[{**row, "swept": None} for row in found[0]], *found[1:]]

    @staticmethod
    def _end(held: Held) -> None:
        if held.copied is not None:
            proven = transfers.prove([(held.job, held.copied)])
            if not proven:
                transfers.mark_unswept([held.job])
        elif isinstance(held.error, Stopped):
            transfers.release([held.job])
            transfers.mark_unswept([held.job])
        else:
            assert held.error is not None
            transfers.fail(held.job, held.error)

    @rule(
        who=st.sampled_from([0, 1]),
        limit=st.integers(1, 3),
        between=st.sampled_from(BETWEEN),
        data=st.data(),
    )
    def work(self, who: int, limit: int, between: str, data: st.DataObject) -> None:
        """A worker's whole way with a few items, and what may come between the claim, the copy and the proof."""
        self.time_passes()
        known = len(self.held)
        self.claim(who, limit)
        ours = self.held[known:]
        at = data.draw(st.sampled_from(["before", "after"]))
        if at == "before":
            self._come_between(between, who, data)
        for held in ours:
            self._copy_fenced(held)
        if at == "after":
            self._come_between(between, who, data)
        for held in [held for held in ours if held in self.held]:
            self._end_fenced(held)

    def _come_between(self, what: str, who: int, data: st.DataObject) -> None:
        if what in {"lapse", "taken over"}:
            self.leases_lapse()
        if what == "taken over":
            self.pump(1 - who)
        elif what == "deleted":
            self.delete_item(data)
            tasks.clean_up()
        elif what == "paused":
            self.steer(drains.pause)
            self.steer(drains.resume)
        elif what == "fault":
            self._target().on(data.draw(st.sampled_from(["put_part", "complete_upload"])), raises=Unavailable("down"))

    @precondition(lambda self: self.held)
    @rule()
    def give_back(self) -> None:
        held = self.held.pop(0)
        transfers.release([held.job])
        transfers.mark_unswept([held.job])

    @precondition(lambda self: self.held)
    @rule()
    def die(self) -> None:
        """The worker is gone without a word; its lease is not."""
        self.held.pop(0)

    @rule()
    def leases_lapse(self) -> None:
        Transfer.objects.filter(state=TransferState.RUNNING).update(lease_until=timezone.now() - timedelta(seconds=1))
        transfers.expire_leases()
        for held in self.held:
            held.dead = True

    @rule()
    def time_passes(self) -> None:
        Transfer.objects.filter(state=TransferState.QUEUED).update(next_attempt_at=timezone.now() - timedelta(seconds=1))
        for models in KINDS.values():
            models.ref.objects.filter(state=RefState.DESTROYING).update(updated=timezone.now() - timedelta(hours=1))

    @rule(who=st.sampled_from([0, 1]))
    def pump(self, who: int) -> None:
        self.steps["pumped"] += worker.Pump(self.workers[who].pk, slots=4).run()

    def _see_who_is_fenced(self) -> None:
        for held in self.held:
            row = Transfer.objects.get(pk=held.job.transfer.pk)
            held.dead = held.dead or (row.epoch, row.state) != (held.job.epoch, TransferState.RUNNING)

    @rule()
    def clean_up(self) -> None:
        tasks.clean_up()
        tasks.reap()

    @rule()
    def write_journals(self) -> None:
        tasks.write_journals()

    @precondition(lambda self: self.nfs_at_conversion is not None)
    @rule(mode=st.sampled_from([Verification.CONTENT, Verification.LISTING]))
    def verify(self, mode: str) -> None:
        """What is Ready is there and right, whatever else is going on."""
        with self._honest():
            row = verify.verify(actor=ADMIN, store=self.conversion.object_store, mode=mode)
            verify.run(row)
            verify.run(row)
        row.refresh_from_db()
        assert row.state == "Finished"
        wrong = [found for found in row.findings if found["problem"] != "foreign"]
        assert wrong == [], wrong

    @precondition(lambda self: self.nfs_at_conversion is not None)
    @rule(gone=st.booleans(), mode=st.sampled_from([Verification.CONTENT, Verification.LISTING]), data=st.data())
    def what_was_proven_is_damaged(self, gone: bool, mode: str, data: st.DataObject) -> None:
        """Behind our back, after its proof; the next verification finds it, and no lie stays."""
        kept = server_at(URL).objects
        whole = [
            ref
            for kind, models in KINDS.items()
            for ref in models.ref.objects.filter(store__scope="REGION", state__in=READABLE).order_by("pk")
            if models.ref.objects.filter(item_id=ref.item_id, store__scope="ZONE", state__in=READABLE).exists()
            and not Transfer.objects.filter(kind=kind, target_ref_id=ref.pk, state=TransferState.RUNNING).exists()
        ]
        if not whole:
            return
        ref = data.draw(st.sampled_from(whole))
        path = ref.files.order_by("path").first().path
        if gone:
            del kept[path]
        else:
            kept[path] = (kept[path][0], flip(kept[path][1]))
            mode = Verification.CONTENT
        with self._honest():
            row = verify.verify(actor=ADMIN, store=self.conversion.object_store, mode=mode)
            verify.run(row)
        row.refresh_from_db()
        assert [found["outcome"] for found in row.findings if found["problem"] != "foreign"] == ["promised"]
        ref.refresh_from_db()
        assert ref.state == RefState.PROMISED
        self.steps["damaged"] += 1

    # --- stores that misbehave -----------------------------------------------------------------------------------------

    def _target(self) -> Faults:
        return faults_at(URL)

    @rule(
        method=st.sampled_from(
            ["put", "put_part", "begin_upload", "complete_upload", "list_parts", "abort_upload", "delete", "list"]
        ),
        nth=st.integers(1, 3),
        lost=st.booleans(),
        error=st.sampled_from([Unavailable("down"), Throttled("slow down"), UploadGone("gone")]),
    )
    def target_fails(self, method: str, nth: int, lost: bool, error: StoreError) -> None:
        if isinstance(error, UploadGone) and method not in {"put_part", "complete_upload", "list_parts"}:
            error = Unavailable("down")
        self._target().on(method, nth=nth, **({"then_raises": error} if lost else {"raises": error}))

    @rule(method=st.sampled_from(["put", "put_part"]), nth=st.integers(1, 3))
    def target_keeps_other_bytes_and_proves_nothing(self, method: str, nth: int) -> None:
        """It says that it has what it was sent, and attests nothing: reading back must find it."""
        self._target().on(method, nth=nth, data=flip)
        for published in ("put", "complete_upload"):
            self._target().on(published, times=10**9, result=lambda stored: replace(stored, proof=None))

    @rule(
        which=st.sampled_from(["east", "west"]),
        method=st.sampled_from(["open", "pread", "current_version"]),
        nth=st.integers(1, 3),
    )
    def source_fails(self, which: str, method: str, nth: int) -> None:
        faults_at(f"nfs://localhost{self.root / which}").on(method, nth=nth, raises=Unavailable("stale handle"))

    @rule(which=st.sampled_from(["objects", "objects-suffix"]))
    def listing_lags(self, which: str) -> None:
        self._target().lag_listing(lambda key: which == "objects" or key.endswith("w"))

    @rule()
    def store_behaves(self) -> None:
        for faults in FAULTS.values():
            faults.clear()

    @rule()
    def store_loses_uploads(self) -> None:
        """A lifecycle rule aborts what is under way."""
        server_at(URL).uploads.clear()

    # --- what must always hold -----------------------------------------------------------------------------------------

    @invariant()
    def every_item_is_readable_somewhere(self) -> None:
        seen = self._what_can_be_read()
        if seen == self.seen:
            return
        self.seen = seen
        with self._honest():
            for (kind, pk), files in self.items.items():
                if (kind, pk) in self.deleted:
                    continue
                item = KINDS[kind].item.objects.get(pk=pk)
                for name, body in files.items():
                    assert self._read(kind, item, name) == body, f"{item} reads otherwise"

    def _what_can_be_read(self) -> list[Any]:
        tables = rows([model for kind in KINDS.values() for model in (kind.ref, kind.file)])
        objects = {key: info.version for key, (info, _) in server_at(URL).objects.items()}
        return [tables, objects, sorted(self._on_nfs()), sorted(self.deleted)]

    @staticmethod
    def _read(kind: Kind, item: Any, name: str) -> bytes:
        alone = len(KINDS[kind].file.objects.filter(ref__item=item, ref__state=RefState.READY).values("path").distinct()) == 1
        with inventory.open_content(actor=ADMIN, kind=kind, item=item, path=None if alone else name) as content:
            found: bytes = content.pread(0, content.size)
            return found

    @invariant()
    def ready_means_proven_and_there(self) -> None:
        kept = server_at(URL).objects
        for kind, models in KINDS.items():
            for ref in models.ref.objects.filter(state__in=READABLE, store__scope="REGION").prefetch_related("files"):
                assert ref.proof in PROVEN
                expected = self.items[kind, ref.item_id]
                found = {inventory.relative_name(ref.install_path, file.path): kept[file.path][1] for file in ref.files.all()}
                if len(expected) == 1:
                    assert list(found.values()) == list(expected.values())
                else:
                    assert found == expected

    @invariant()
    def sources_are_untouched(self) -> None:
        for kind, models in KINDS.items():
            for ref in models.ref.objects.filter(state__in=READABLE, store__scope="ZONE").select_related("store"):
                folder = self.root / ref.store.name.removeprefix("nfs-")
                bodies = sorted((folder / file.path).read_bytes() for file in ref.files.all())
                assert bodies == sorted(self.items[kind, ref.item_id].values())

    @invariant()
    def counts_equal_the_holds(self) -> None:
        assert holds.recount() == []

    @invariant()
    def children_are_ready_only_where_their_parent_is(self) -> None:
        refs = KINDS[Kind.SNAPSHOT].ref.objects
        for ref in refs.filter(state=RefState.READY).exclude(item__parent=None).select_related("item"):
            parents = refs.filter(item=ref.item.parent_id, store=ref.store_id)
            withdrawn = parents.filter(state=RefState.PROMISED, error_str__gt="")  # what the child has of it stays proven
            assert parents.filter(state__in=READABLE).exists() or withdrawn.exists()

    @invariant()
    def progress_never_runs_backwards(self) -> None:
        for row in Transfer.objects.all():
            assert 0 <= row.bytes_done <= row.bytes_total
            key = row.pk, row.epoch
            assert row.bytes_done >= self.progress.get(key, 0), "progress ran backwards"
            self.progress[key] = row.bytes_done

    @invariant()
    def one_live_transfer_for_an_item_and_a_target(self) -> None:
        live = Transfer.objects.filter(state__in=LIVE_TRANSFER_STATES).values_list("kind", "item_id", "target")
        assert len(live) == len(set(live))
        gone = Transfer.objects.filter(state__in=LIVE_TRANSFER_STATES)
        for row in gone:
            states = KINDS[Kind(row.kind)].ref.objects.filter(item_id=row.item_id).values_list("state", flat=True)
            assert set(states) - {RefState.DESTROYED, RefState.DESTROYING}, "a transfer of what was deleted is live"

    def _on_nfs(self) -> set[Path]:
        found = (path for zone in ("east", "west") for path in (self.root / zone).rglob("*") if path.is_file())
        names = {Path(f"nfs-{path.relative_to(self.root)}") for path in found}
        return {name for name in names if not any(part.startswith(".cs-") or part == MARKER_KEY for part in name.parts)}

    @invariant()
    def nothing_new_is_on_nfs_after_the_conversion(self) -> None:
        if self.nfs_at_conversion is None or self.staging:
            return
        assert self._on_nfs() - self.nfs_at_conversion - self.allowed_on_nfs == set()

    # --- the end -------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Whatever happened: all can be cancelled without a trace, and then be drained to the end."""
        for faults in FAULTS.values():
            faults.clear()
        self.held.clear()
        for kind, ref in self.begun:
            items.give_up(kind, ref)
        for row in Drain.objects.exclude(state__in=[DrainState.CANCELLED, DrainState.FINISHED]):
            drains.cancel(actor=ADMIN, drain=row)
        transfers.cancel_live(Transfer.objects.all())
        for hold in list(Hold.objects.all()):
            holds.release_hold(Kind(hold.kind), hold.ref_id, hold.reason, hold.owner)
        self.time_passes()
        for models in KINDS.values():
            models.ref.objects.filter(state=RefState.CREATING).update(updated=timezone.now() - timedelta(days=2))
        tasks.keep_house()
        tasks.clean_up()
        tasks.clean_up()
        if self.nfs_at_conversion is None:
            return
        tasks.reap()
        self._nothing_is_left_over()
        self._drain_to_the_end()
        self._nothing_is_left_over()

    def _nothing_is_left_over(self) -> None:
        server = server_at(URL)
        assert server.uploads == {}, "uploads were left"
        known: set[str] = set()
        withdrawn: set[str] = set()
        for models in KINDS.values():
            there = models.file.objects.filter(ref__store__scope="REGION")
            known |= set(there.filter(ref__state__in=READABLE).values_list("path", flat=True))
            withdrawn |= set(there.filter(ref__state=RefState.PROMISED).values_list("path", flat=True))
            left = models.ref.objects.filter(store__scope="REGION").exclude(
                state__in=[*READABLE, RefState.PROMISED, RefState.DESTROYED]
            )
            assert list(left) == [], "ghost refs were left"
        assert {key for key in server.objects if not key.startswith(".cs-")} - withdrawn == known
        temporary = [path for path in self.root.rglob("*") if ".cs-tmp" in path.parts and path.is_file()]
        assert temporary == []

    def _drain_to_the_end(self) -> None:
        if not any(models.ref.objects.filter(state=RefState.PROMISED).exists() for models in KINDS.values()):
            return
        row = drains.plan(actor=ADMIN, conversion=self.conversion, canary_items=0)
        drains.start(actor=ADMIN, drain=row)
        for _ in range(10):
            drains.advance(row)
            worker.Pump(self.workers[0].pk, slots=4).run()
            row.refresh_from_db()
            if row.state == DrainState.FINISHED:
                break
        assert (row.state, row.note) == (DrainState.FINISHED, "Every item is proven.")
        for kind, models in KINDS.items():
            assert not models.ref.objects.filter(state=RefState.PROMISED).exists()
            for pk in [pk for of, pk in self.items if of is kind and (of, pk) not in self.deleted]:
                assert models.ref.objects.filter(item_id=pk, store__scope="REGION", state=RefState.READY).exists()
        self.seen = []
        self.every_item_is_readable_somewhere()
        self.ready_means_proven_and_there()
        self.counts_equal_the_holds()
        self.sources_are_untouched()
