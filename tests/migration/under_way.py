"""A drain that has begun, for the tests of faults: pumped by hand, and looked at from outside."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from cloudstorage.actors import Actor
from migration import drain
from migration.conversion import convert
from migration.models import Drain
from migration.states import DrainState
from stores.drivers.errors import StoreError
from stores.management.commands.worker import _Reach
from stores.models import KINDS, ImageStore, Kind, Transfer, Volume, VolumeStoreRef, Worker, WorkerReach
from stores.services.image_stores import driver_for
from stores.services.inventory import open_content
from stores.states import READABLE, RefState, TransferState
from stores.worker import Pump
from tests.migration.region import Region


@dataclass
class UnderWay:
    """A converted region whose drain has begun, and a worker that reaches everything."""

    region: Region
    drain: Drain
    worker: Worker
    admin: Actor

    @property
    def store(self) -> ImageStore:
        return ImageStore.objects.get(scope="REGION")

    def pump(self, *, slots: int = 2) -> None:
        """As often as a worker's clock would; pauses before the next attempt are over at once."""
        Transfer.objects.filter(state=TransferState.QUEUED).update(next_attempt_at="2026-01-01T00:00:00Z")
        self.pump_as_planned(slots=slots)

    def pump_as_planned(self, *, slots: int = 2) -> int:
        """What may be tried now; how many items were proven."""
        return Pump(self.worker.pk, slots=slots).run()

    def look(self) -> bool:
        """Whether the worker reaches the object store now, as its supervisor finds out."""
        told = ""
        try:
            driver_for(self.store).check()
        except StoreError as error:
            told = str(error)
        _Reach(self.worker)._note(self.store.pk, told)
        return WorkerReach.objects.get(worker=self.worker, store=self.store).ok

    def run_to_end(self) -> Drain:
        """Until the drain stops by itself."""
        for _ in range(20):
            self.pump()
            drain.advance(self.drain)
            self.drain.refresh_from_db()
            if self.drain.state in {DrainState.FINISHED, DrainState.PAUSED}:
                return self.drain
        raise AssertionError(f"the drain is still {self.drain.state}: {drain.progress(self.drain)}")

    def states(self) -> list[str]:
        return sorted(Transfer.objects.values_list("state", flat=True))

    def causes(self) -> set[str]:
        return set(Transfer.objects.exclude(error_cause="").values_list("error_cause", flat=True))

    def ready(self) -> list[Any]:
        """What is said to be on the object store."""
        return list(VolumeStoreRef.objects.filter(store=self.store, state__in=READABLE).order_by("pk"))

    def assert_nothing_promised_falsely(self) -> None:
        """What is Ready on the object store has the bytes of its original there, as the server gives them now."""
        server = driver_for(self.store)
        for ref in self.ready():
            (file,) = ref.files.all()
            with server.open(file.path) as reader:
                stored = reader.pread(0, reader.size)
            assert stored == self.original(ref.item), f"{ref.item} is Ready and its bytes are not there"
            assert file.sha256 == hashlib.sha256(stored).hexdigest()

    def assert_readable(self) -> None:
        """Every item is given out as it was, wherever it is now."""
        for item in Volume.objects.all():
            with open_content(actor=self.admin, kind=Kind.VOLUME, item=item) as content:
                assert b"".join(content.chunks()) == self.original(item)

    def assert_whole(self) -> None:
        """Every item is Ready on the server, with the bytes of its original."""
        states = set(VolumeStoreRef.objects.filter(store=self.store).values_list("state", flat=True))
        assert states == {RefState.READY}
        assert len(self.ready()) == Volume.objects.count()
        self.assert_nothing_promised_falsely()

    def original(self, item: Any) -> bytes:
        """As the export has it."""
        ref = KINDS[Kind.VOLUME].ref.objects.get(item=item, store__scope="ZONE")
        content: bytes = (self.region.folder(ref.store.name.removeprefix("nfs-")) / ref.files.get().path).read_bytes()
        return content


def begin(region: Region, admin: Actor, operator: Actor, *, canary_items: int = 0, **target: Any) -> UnderWay:
    """Convert the region to `target` and start its drain."""
    conversion = convert(actor=admin, override=["preflight-absent"], **target)
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    row = drain.plan(actor=operator, conversion=conversion, canary_items=canary_items)
    drain.start(actor=operator, drain=row)
    if not canary_items:
        drain.advance(row)
    return UnderWay(region, row, worker, admin)
