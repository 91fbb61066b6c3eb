"""What holds a drain up is said with the reason and with what can be done, from what its copies waited for."""

from __future__ import annotations

import itertools
import threading
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from migration import bottleneck, drain
from migration.conversion import convert
from migration.models import Drain
from migration.states import DrainState
from stores import timing
from stores import worker as pumps
from stores.models import Claimer, ImageStore, Transfer, TransferBatch, Worker, WorkerReach
from stores.reading import Source
from stores.states import TransferState
from stores.worker import Pump

pytestmark = pytest.mark.db


@pytest.fixture
def row(region, target, admin, operator) -> Drain:
    """A drain of three volumes, east and west, that runs."""
    for name, zone in (("a", "east"), ("b", "west"), ("c", "west")):
        region.volume(name, zone)
    converted = convert(actor=admin, override=["preflight-absent"], **target)
    planned = drain.plan(actor=operator, conversion=converted, canary_items=0)
    drain.start(actor=operator, drain=planned)
    drain.advance(planned)
    return planned


@pytest.fixture
def worker(row) -> Worker:
    found = Worker.objects.create(hostname="host", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=found, store=store, ok=True) for store in ImageStore.objects.all())
    return found


def told(row: Drain) -> bottleneck.Bottleneck | None:
    return drain.progress(row).bottleneck


def measured(row: Drain, worker: Worker, *, store: str = "nfs-west", cpu: float = 10.0, **spent: float) -> None:
    """A pump that copies from that store tells of its minute."""
    source = ImageStore.objects.get(name=store)
    spent = {name.replace("_", ".", 1): seconds for name, seconds in spent.items()}
    copies = [{"batch": row.batch_id, "source": source.pk, "spent": spent}]
    times = {"seconds": 60.0, "cpu": cpu, "cores": 2, "copies": copies}
    Claimer.objects.create(worker=worker, number=Claimer.objects.count() + 1, seen=Now(), times=times)


SENT = {"path_target": 60.0, "part_send": 30.0, "part_answer": 20.0, "net_requests": 10.0, "net_round_trips": 0.4}


@pytest.mark.parametrize(
    ("spent", "cause", "words", "why"),
    [
        ({"path_source": 50.0, "path_us": 10.0}, "source", "the source: nfs-west (west's export)", "83 % of the last minute"),
        ({**SENT, "net_on_its_way": 45.0}, "network", "the network to the object store", "A round trip takes 40.0 ms"),
        ({**SENT, "net_on_its_way": 5.0}, "store", "the object store", "answer when it had them all"),
        ({**SENT, "net_on_its_way": 25.0}, "network-or-store", "the network or the object store", "cannot be told"),
        ({"path_us": 50.0, "path_source": 10.0}, "us", "us: the workers' CPU", "checksums"),
        ({"path_limit": 50.0, "path_us": 10.0}, "limit", "a limit that was set: the drain's bandwidth", "Copies held back"),
        ({"path_database": 50.0, "path_us": 10.0}, "database", "the database", "written down"),
    ],
)
def test_the_last_minute_of_the_pumps_tells_it(row, worker, spent, cause, words, why):
    TransferBatch.objects.update(bandwidth=10**6 if cause == "limit" else None)
    Transfer.objects.update(state=TransferState.RUNNING, worker=worker, bytes_total=9, progress_at=Now())
    measured(row, worker, **spent)
    measured(row, worker, store="nfs-east", path_us=0.1)
    found = told(row)
    assert (found.cause, found.words) == (cause, words)
    assert why in found.why
    assert found.remedy
    assert sum(found.shares.values()) == pytest.approx(1, abs=0.02)


def test_more_at_once_is_said_to_take_a_higher_limit_or_more_workers(row, worker):
    running = Transfer.objects.order_by("pk").first()
    Transfer.objects.filter(pk=running.pk).update(state=TransferState.RUNNING, worker=worker, pump=1, progress_at=Now())
    measured(row, worker, **SENT, net_on_its_way=5.0)
    assert told(row).remedy.startswith("Only 1 of the 8 copies that may run at once do: if it can bear more, start more workers.")
    TransferBatch.objects.update(concurrency=1)
    assert told(row).remedy.startswith("Raise the concurrency if it can bear more at once.")
    Transfer.objects.filter(state=TransferState.QUEUED).update(state=TransferState.PROVEN, proof="verified")
    assert told(row).remedy.startswith("Look at the object store's load")


def test_a_host_whose_cpus_are_all_used_is_named(row, worker):
    Transfer.objects.update(state=TransferState.RUNNING, worker=worker, bytes_total=9, progress_at=Now())
    measured(row, worker, path_source=50.0, cpu=60.0)
    measured(row, worker, path_source=50.0, cpu=50.0)
    found = told(row)
    assert (found.cause, "The CPUs of host are 92 % busy" in found.why) == ("us", True)


def test_read_limit_is_named_and_a_pump_that_has_gone_tells_nothing(row, worker):
    Transfer.objects.update(state=TransferState.RUNNING, worker=worker, bytes_total=9, progress_at=Now(), waiting_on="source")
    ImageStore.objects.filter(name="nfs-west").update(read_limit=5)
    measured(row, worker, path_limit=9.0)
    assert told(row).words == "a limit that was set: the read limit of nfs-west"
    Claimer.objects.update(seen="2026-01-01T00:00:00Z")
    assert (told(row).cause, told(row).shares) == ("source", {})


def test_where_nothing_is_copied_the_reason_is_said(row, worker):
    assert told(row).words == "waiting for workers: none has claimed anything yet"
    another_day = (timezone.now() + timedelta(days=3)).strftime("%a")
    TransferBatch.objects.update(window=f"{another_day} 00:00-24:00", time_zone="Asia/Kathmandu")
    closed = told(row)
    assert closed.words == f"its time window {another_day} 00:00-24:00 (Asia/Kathmandu), which is closed now"
    assert closed.why.startswith(f"It opens {another_day} ")
    TransferBatch.objects.update(window="", time_zone="")
    Transfer.objects.update(next_attempt_at="2100-01-01T00:00:00Z")
    assert told(row).cause == "retry"
    WorkerReach.objects.filter(store__name="objects").update(ok=False, error="Connection refused.")
    assert told(row).words == "no worker reaches objects: Connection refused."
    Worker.objects.update(stopped=Now())
    assert told(row).words == "waiting for workers: none runs"
    Transfer.objects.update(state=TransferState.FAILED)
    assert (told(row).cause, told(row).why) == ("nothing", "What could be copied is copied; 3 failed.")
    Transfer.objects.update(canary=True, state=TransferState.PROVEN, proof="verified")
    Drain.objects.update(state=DrainState.CANARY)
    assert told(row).words == "the canary is being read back"
    Drain.objects.update(state=DrainState.PAUSED)
    assert told(row) is None


def test_a_slow_export_is_found_by_the_pump_that_reads_it(row, worker, monkeypatch):
    monkeypatch.setattr(pumps, "_STEER_SECONDS", 0.05)
    monkeypatch.setattr(timing, "_STEP", 0.0)
    turns, steers = threading.Semaphore(0), itertools.count(1)
    read = Source.read
    seen = []

    def slowly(self, view, offset):
        with timing.spending(timing.SOURCE):
            assert turns.acquire(timeout=60)
        return read(self, view, offset)

    monkeypatch.setattr(Source, "read", slowly)

    def stop() -> bool:
        """Asked by the pump's own thread at each of its steers."""
        found = told(row)
        seen.append((found.cause, found.shares) if found is not None else None)
        if next(steers) % 4 == 0:
            turns.release()
        return False

    assert Pump(worker.pk, slots=1, stop=stop).run() == 3
    measured_ones = [found for found in seen if found is not None and found[1]]
    assert measured_ones, seen
    assert measured_ones[-1][0] == "source", seen
    assert not Claimer.objects.exists()
