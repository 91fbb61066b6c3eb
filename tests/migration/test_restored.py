"""A database that was restored and not yet compared with its stores: what comes from its former life changes nothing in it."""

from __future__ import annotations

import pytest

from cloudstorage import backup
from cloudstorage.models import Installation
from migration import preflight, rollback, tasks, verify
from migration.states import ConversionState, DrainState
from stores.management.commands.worker import Command
from stores.models import ImageStore, Kind
from tests.migration.region import changed, dump
from tests.migration.test_rollback import upload
from tests.migration.under_way import begin

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def moving(region, target, admin, operator):
    """A drain of which everything is proven: its next turn ends it."""
    region.volume("data", "east")
    found = begin(region, admin, operator, **target)
    found.pump()
    return found


def read_only(why: str) -> None:
    Installation.objects.update(read_only=why)


def test_messages_about_a_drain_and_a_verification_wait_for_the_comparison(moving, admin):
    check = verify.verify(actor=admin, store=moving.store)
    read_only(backup.RESTORED)
    before = dump()
    tasks.advance()
    tasks.run_verification(check.pk)
    assert changed(before, dump()) == set()
    read_only("")
    tasks.advance()
    tasks.run_verification(check.pk)
    moving.drain.refresh_from_db()
    check.refresh_from_db()
    assert (moving.drain.state, check.state) == (DrainState.FINISHED, "Finished")


def test_a_message_about_a_roll_back_does_not_switch_before_the_comparison(moving, admin):
    conversion = moving.drain.conversion
    upload(admin, Kind.VOLUME, "born", moving.region.zones["east"])
    rollback.start(actor=admin, conversion=conversion)
    moving.pump()
    read_only(backup.RESTORED)
    before = dump()
    tasks.advance()
    assert changed(before, dump()) == set()
    read_only("")
    tasks.advance()
    conversion.refresh_from_db()
    assert conversion.state == ConversionState.ROLLED_BACK
    assert not ImageStore.objects.filter(scope="REGION", state="Attached").exists()


def test_a_message_about_a_preflight_waits_for_the_comparison(region, admin, target):
    asked = preflight.request_preflight(actor=admin, **target)
    read_only(backup.RESTORED)
    before = dump()
    tasks.run_preflight(asked.pk)
    assert changed(before, dump()) == set()


def test_a_worker_does_not_restart_a_queue_that_does_nothing_before_the_comparison(region, target, admin, operator):
    region.volume("data", "east")
    worker = begin(region, admin, operator, **target).worker
    assert Command._look(worker)[0]
    assert not Command._look(worker, read_only=True)[0]
