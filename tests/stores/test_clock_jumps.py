"""What one host writes is judged by the database's clock: a host whose own clock has jumped neither dies nor kills."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

import pytest
from django.utils import timezone

from cloudstorage.actors import cli_actor
from stores import tasks
from stores.management.commands.worker import Command
from stores.models import KINDS, Kind, Transfer, Worker, WorkerReach
from stores.services import items, transfers
from stores.services.transfers import Lease
from stores.states import RefState
from stores.worker import Pump
from tests import factories

pytestmark = [pytest.mark.db, pytest.mark.django_db]


def jump(monkeypatch, shift: timedelta) -> None:
    """Also for the defaults of models, which call the function that they were given."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + shift

    monkeypatch.setattr(timezone, "datetime", Shifted)


BACK_AND_AHEAD = pytest.mark.parametrize("hours", [-2, 2])


@BACK_AND_AHEAD
def test_a_worker_lives_whatever_its_clock_says(monkeypatch, hours):
    store = factories.make_store(name="objects")
    jump(monkeypatch, timedelta(hours=hours))
    row = tasks.register_worker()
    WorkerReach.objects.create(worker=row, store=store, ok=True)
    assert WorkerReach.objects.of_living_workers().count() == 1
    Worker.objects.update(heartbeat="2000-01-01T00:00:00Z")
    Command._look(row)
    assert WorkerReach.objects.of_living_workers().count() == 1
    Pump(row.pk, slots=1)._tell()
    assert Command._look(row)[2], "its queue process was not seen at work"


@BACK_AND_AHEAD
def test_a_dead_worker_is_dead_whatever_its_clock_said(monkeypatch, hours):
    store = factories.make_store(name="objects")
    row = tasks.register_worker()
    WorkerReach.objects.create(worker=row, store=store, ok=True)
    jump(monkeypatch, timedelta(hours=hours))
    Command._look(row)
    monkeypatch.undo()
    written = Worker.objects.get(pk=row.pk).heartbeat
    assert abs((timezone.now() - written).total_seconds()) < 60


@BACK_AND_AHEAD
def test_what_is_asked_for_may_be_taken_at_once(monkeypatch, hours, tmp_path):
    export = factories.make_store("NFS", name="east", zone=factories.make_zone("east"), folder=tmp_path / "east")
    objects = factories.make_store(name="objects")
    volume = factories.make_volume([export])
    row = factories.make_worker(export, objects)
    jump(monkeypatch, timedelta(hours=hours))
    asked = transfers.ensure(actor=cli_actor(), kind=Kind.VOLUME, item=volume, store=objects)
    assert asked is not None
    assert [job.transfer.pk for job in transfers.claim(row.pk, limit=5)] == [asked.pk]
    Transfer.objects.update(state="Failed", lease_until=None)
    again = transfers.ensure(actor=cli_actor(), kind=Kind.VOLUME, item=volume, store=objects)
    assert again is not None
    assert [job.transfer.pk for job in transfers.claim(row.pk, limit=5)] == [asked.pk]


@BACK_AND_AHEAD
def test_progress_is_of_the_moment_at_which_it_was_made(monkeypatch, hours, tmp_path):
    export = factories.make_store("NFS", name="east", zone=factories.make_zone("east"), folder=tmp_path / "east")
    objects = factories.make_store(name="objects")
    transfers.ensure(actor=cli_actor(), kind=Kind.VOLUME, item=factories.make_volume([export]), store=objects)
    (job,) = transfers.claim(factories.make_worker(export, objects).pk, limit=1)
    Transfer.objects.update(progress_at="2020-01-01T00:00:00Z")
    jump(monkeypatch, timedelta(hours=hours))
    assert transfers.renew([Lease(job.transfer.pk, job.epoch, 1, True, "target")]) == {job.transfer.pk}
    monkeypatch.undo()
    written = Transfer.objects.get().progress_at
    assert written is not None
    assert abs((timezone.now() - written).total_seconds()) < 60


def test_what_is_being_written_is_not_given_up_by_a_clock_days_ahead(monkeypatch):
    store = factories.make_store(name="objects")
    volume = factories.make_volume([store])
    refs = KINDS[Kind.VOLUME].ref.objects.filter(item=volume)
    refs.update(state=RefState.CREATING, updated=timezone.now())
    jump(monkeypatch, timedelta(days=3))
    assert items.give_up_unfinished() == 0
    monkeypatch.undo()
    refs.update(updated=timezone.now() - timedelta(days=3))
    assert items.give_up_unfinished() == 1
