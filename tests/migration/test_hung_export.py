"""An export that hangs, goes away or comes back empty in the middle of a drain: it is said so, and nothing else waits for it."""

from __future__ import annotations

import pytest

from cloudstorage.errors import Unreachable
from migration import drain, verify
from migration.conversion import convert
from migration.states import DrainState
from stores import worker as pump_module
from stores.models import ImageStore, Transfer, Worker, WorkerReach
from stores.services import image_stores
from stores.services.scan import scan_store
from stores.states import TransferState
from stores.worker import Pump
from tests.migration.test_drain import BYPASS, run_to_end

pytestmark = [pytest.mark.db, pytest.mark.live]


@pytest.fixture
def mounted(region, bind_mount, settings, admin):
    """Zone north, whose export is a FUSE mount that can hang; three volumes there, three in zone east."""
    from stores.models import Zone

    settings.NFS_MOUNTS = {"filer:/export": str(bind_mount.mountpoint)}
    region.zones["north"] = Zone.objects.create(name="north")
    url, zone = "nfs://filer/export", region.zones["north"]
    store = image_stores.add_store(actor=admin, name="nfs-north", provider="NFS", url=url, details={}, zone=zone)
    region.stores["north"] = store
    region.folder = lambda name: bind_mount.source if name == "north" else region.root / name
    for number in range(3):
        region.volume(f"north-{number}", "north")
        region.volume(f"east-{number}", "east")
    return bind_mount


@pytest.fixture
def running(mounted, region, target, admin, operator):
    """A converted region with its drain begun, and a worker that reaches everything."""
    ImageStore.objects.update(scanned_at="2026-01-01T00:00:00Z", scan_report={})
    conversion = convert(actor=admin, override=BYPASS, **target)
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    row = drain.plan(actor=operator, conversion=conversion, canary_items=0)
    drain.start(actor=operator, drain=row)
    drain.advance(row)
    return row, worker


def test_other_stores_drain_and_the_stuck_one_is_named_when_an_export_hangs(running, mounted, operator, monkeypatch, settings):
    row, worker = running
    settings.HEARTBEAT_SECONDS = 0.2
    monkeypatch.setattr(pump_module, "STUCK_SECONDS", 1.0)
    monkeypatch.setattr(drain, "STUCK_SECONDS", 1.0)
    mounted.hang()
    seen = {}

    def stop() -> bool:
        """Asked by the pump's own thread once a second."""
        told = drain.progress(row)
        stuck = [entry["stuck"] for entry in told.running if entry["stuck"]]
        if told.items["proven"] == 3 and stuck:
            seen["stuck"], seen["bottleneck"] = stuck, told.bottleneck and told.bottleneck.words
            seen["leases"] = Transfer.objects.filter(state=TransferState.RUNNING, lease_until=None).count()
            mounted.release()
            return True
        return False

    Pump(worker.pk, slots=2, stop=stop).run()
    assert all(text.startswith("stuck ") and text.endswith(" s on nfs-north") for text in seen["stuck"])
    assert seen["bottleneck"] == seen["stuck"][0]
    assert seen["leases"] == 0
    assert run_to_end(row, worker).state == DrainState.FINISHED
    assert drain.progress(row).items["proven"] == 6


def test_nothing_fails_for_good_when_an_export_is_gone_for_a_while(running, mounted, operator):
    row, worker = running
    mounted.take_away()
    Pump(worker.pk, slots=2).run()
    told = drain.progress(row)
    assert told.items["proven"] == 3
    assert told.items["failed"] == 0
    assert {error["cause"] for error in told.errors} == {"unavailable"}
    mounted.mount()
    Transfer.objects.filter(state=TransferState.QUEUED).update(next_attempt_at="2026-01-01T00:00:00Z")
    assert run_to_end(row, worker).state == DrainState.FINISHED
    assert drain.progress(row).items["proven"] == 6


def test_nothing_is_taken_for_lost_when_an_export_comes_back_empty(running, mounted, tmp_path, admin):
    row, worker = running
    full, mounted.source = mounted.source, tmp_path / "empty"
    mounted.source.mkdir()
    mounted.mount()
    Pump(worker.pk, slots=2).run()
    told = drain.progress(row)
    assert (told.items["proven"], told.items["failed"]) == (3, 0)
    assert {error["cause"] for error in told.errors} == {"unavailable"}
    north = ImageStore.objects.get(name="nfs-north")
    with pytest.raises(Unreachable):
        scan_store(actor=admin, store=north)
    check = verify.verify(actor=admin, store=north)
    verify.run(check)
    check.refresh_from_db()
    assert (check.findings, check.state) == ([], "Running")
    assert list(mounted.source.iterdir()) == []
    mounted.source = full
    mounted.mount()
    Transfer.objects.filter(state=TransferState.QUEUED).update(next_attempt_at="2026-01-01T00:00:00Z")
    assert run_to_end(row, worker).note == "Every item is proven."
