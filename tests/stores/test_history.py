"""What happened to an item is one list: found, promised, tried, lost, proven, removed, and what people did with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from cloudstorage.audit import record
from stores.drivers.errors import Full, Unavailable
from stores.models import KINDS, Hold, ImageStore, ItemEvent, Kind, Transfer, Worker
from stores.services import proofs, transfers
from stores.services.history import timeline
from stores.services.transfers import claim, expire_leases, fail
from stores.states import RefState
from stores.worker import Pump
from tests.factories import make_promises, make_store, make_volume, make_worker, make_zone

pytestmark = pytest.mark.db


@pytest.fixture
def volume(db, tmp_path, settings):
    """On an export, promised on the object store, and asked for."""
    settings.NFS_MOUNTS = {}
    nfs = make_store("NFS", name="nfs", zone=make_zone("east"), folder=tmp_path / "east")
    made = make_volume([nfs])
    make_promises(make_store("Memory", name="objects"))
    return made


@pytest.fixture
def worker(volume) -> Worker:
    return make_worker(*ImageStore.objects.all())


def told(item, *, audit: bool = False, **options) -> list[tuple[str, str]]:
    found = timeline(Kind.VOLUME, item, audit=audit, **options)
    return [(one.what, one.outcome) for one in reversed(found.happenings)]


def test_a_copy_that_works_at_last_tells_every_attempt_and_who_made_it(volume, worker, operator):
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume)
    (job,) = claim(worker.pk, limit=1)
    fail(job, Unavailable("The server answers 503."))
    Transfer.objects.update(next_attempt_at=timezone.now() - timedelta(hours=1))
    (job,) = claim(worker.pk, limit=1)
    Transfer.objects.update(lease_until=datetime(2020, 1, 1, tzinfo=UTC))
    assert expire_leases() == 1
    assert Pump(worker.pk, slots=1).run() == 1
    assert set(told(volume)) == {
        ("known", "done"),
        ("found", "done"),
        ("promised or begun", "done"),
        ("copy planned", "done"),
        ("failed, to be tried again (attempt 1)", "failed"),
        ("worker lost (attempt 2)", "failed"),
        ("copied and proven: verified", "done"),
        ("proven: verified", "done"),
    }
    found = {one.what: one for one in timeline(Kind.VOLUME, volume, audit=False).happenings}
    assert found["failed, to be tried again (attempt 1)"].words == "unavailable: The server answers 503."
    assert {found[what].worker for what in found if "attempt" in what or what.startswith("copied")} == {str(worker)}
    assert found["copied and proven: verified"].store == "nfs → objects"
    assert told(volume, audit=True)[-1][0] in {"proven: verified", "copied and proven: verified"}
    assert ("transfer.ensure", "done") in told(volume, audit=True)


def test_a_failure_that_waits_for_a_person_says_what_to_do(volume, worker, operator):
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume)
    (job,) = claim(worker.pk, limit=1)
    fail(job, Full("No space is left."))
    found = {one.what: one for one in timeline(Kind.VOLUME, volume, audit=False).happenings}
    assert found["copy failed"].remedy
    assert found["copy failed"].outcome == "failed"


def test_a_proof_that_is_withdrawn_leaves_its_reason(volume, worker, operator):
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume)
    assert Pump(worker.pk, slots=1).run() == 1
    proven = KINDS[Kind.VOLUME].ref.objects.get(item=volume, store__name="objects")
    with transaction.atomic():
        assert proofs.withdraw(Kind.VOLUME, [proven.pk], "It was read back and differs.") == [volume.pk]
    (found,) = [one for one in timeline(Kind.VOLUME, volume, audit=False).happenings if one.what == "proof withdrawn"]
    assert (found.words, found.store, found.outcome) == ("It was read back and differs.", "objects", "failed")


def test_holds_removal_and_deletion_are_told(volume):
    ref = KINDS[Kind.VOLUME].ref.objects.filter(item=volume, state=RefState.READY).get()
    Hold.objects.create(kind=Kind.VOLUME, ref_id=ref.pk, reason="read", owner="a client")
    KINDS[Kind.VOLUME].ref.objects.exclude(pk=ref.pk).update(state=RefState.DESTROYED, install_path="", proof="")
    KINDS[Kind.VOLUME].item.objects.update(removed=timezone.now())
    volume.refresh_from_db()
    assert {("held: read", "done"), ("removed", "done"), ("deleted", "done")} <= set(told(volume))


def test_a_long_history_is_read_page_by_page_with_as_many_queries(volume, admin, django_assert_max_num_queries):
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    ItemEvent.objects.bulk_create(
        ItemEvent(kind=Kind.VOLUME, item_id=volume.pk, what=f"event {number}", at=begin + timedelta(minutes=number // 2))
        for number in range(150)
    )
    for _ in range(40):
        record(admin, "volume.look", f"volume:{volume.uuid}")
    seen: list[str] = []
    before = None
    while True:
        with django_assert_max_num_queries(7):
            page = timeline(Kind.VOLUME, volume, audit=True, before=before, size=20)
        seen += [one.what for one in page.happenings]
        if (before := page.before) is None:
            break
    assert len(seen) == len(told(volume, audit=True, size=10_000))
    assert [what for what in seen if what.startswith("event")][:2] in (["event 149", "event 148"], ["event 148", "event 149"])
    assert len({what for what in seen if what.startswith("event")}) == 150


def test_an_outage_fills_no_history(volume, worker, operator):
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume)
    for _ in range(9):
        Transfer.objects.update(next_attempt_at=datetime(2026, 1, 1, tzinfo=UTC))
        (job,) = claim(worker.pk, limit=1)
        fail(job, Unavailable("The server answers 503."))
    noted = ItemEvent.objects.order_by("pk").values_list("what", flat=True)
    assert [what.partition(" (")[2] for what in noted] == [f"attempt {number})" for number in (1, 2, 4, 8)]
