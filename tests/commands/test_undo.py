"""The commands that end a conversion: `migration_commit` and `migration_rollback`."""

from __future__ import annotations

import time

import pytest

from migration import rollback
from migration.models import Conversion, Rollback
from stores.drivers.errors import Full
from stores.drivers.nfs import NFSDriver
from stores.models import ImageStore, Worker, WorkerReach
from stores.worker import Pump
from tests.api.test_undo import bear

pytestmark = [pytest.mark.db, pytest.mark.django_db]


def copy(cloud) -> None:
    worker = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.all())
    Pump(worker.pk, slots=4).run()


def test_commit_tells_what_ends_and_asks_first(run, cloud):
    told = run("migration_commit", "--dry-run")
    assert told.code == 0, told.err
    for words in (
        "no longer be rolled back",
        "released on nfs-east (zone east): 2 copies",
        "[not-proven]",
        "nothing was changed",
    ):
        assert words in told.out
    assert run("migration_commit").code == 2
    assert Conversion.objects.get().state == "Converted"
    done = run("migration_commit", "--yes", "--json")
    assert (done.code, done.json()["state"]) == (0, "Committed")
    late = run("migration_rollback", "--yes")
    assert late.code == 4
    assert "was committed" in late.err
    assert "no way back" in late.err
    assert run("migration_commit", "--yes").code == 4
    assert run("migration_commit", "--conversion", "00000000-0000-0000-0000-000000000000").code == 3


def test_rollback_without_copies_ends_at_once(run, cloud):
    planned = run("migration_rollback", "--dry-run")
    assert planned.code == 0, planned.err
    for words in ("to bring home: nothing", "born since the conversion: nothing", "promises taken back: 1 template, 2 snapshots"):
        assert words in planned.out
    assert run("migration_rollback", "--dry-run", "--json").json()["object_store"] == "objects"
    assert run("migration_rollback").code == 2
    assert run("migration_rollback", "--status").code == 4
    done = run("migration_rollback", "--yes")
    assert done.code == 0, done.err
    assert "RolledBack" in done.out
    assert run("migration_rollback", "--status", "--json").json()["state"] == "RolledBack"
    assert run("migration_rollback", "--abandon").code == 4


def test_exit_code_says_whether_it_has_ended_goes_on_or_waits(run, cloud, monkeypatch):
    bear(cloud, "born")
    planned = run("migration_rollback", "--dry-run")
    assert "to bring home: 1 volume" in planned.out
    assert "to nfs-east (zone east): 1 copy, 2.9 KiB" in planned.out
    begun = run("migration_rollback", "--yes", "--json")
    assert (begun.code, begun.json()["items"]["total"]) == (5, 1)
    with monkeypatch.context() as patched:
        patched.setattr(NFSDriver, "put", lambda *_, **__: (_ for _ in ()).throw(Full("No space is left.")))
        copy(cloud)
    failed = run("migration_rollback", "--follow", "--status")
    assert failed.code == 6
    assert "full: No space is left." in failed.out
    assert run("migration_rollback", "--retry").code == 5
    copy(cloud)
    rollback.advance(Rollback.objects.get())
    assert run("migration_rollback", "--follow", "--status").code == 0


def test_following_tells_what_it_waits_for(run, cloud, monkeypatch):
    bear(cloud, "born")
    assert run("migration_rollback", "--yes").code == 5
    monkeypatch.setattr(time, "sleep", lambda _: copy(cloud) or rollback.advance(Rollback.objects.get()))
    followed = run("migration_rollback", "--follow", "--status", "--json")
    assert (followed.code, followed.err) == (0, "Copies are on their way home.\n")
    assert followed.json()["state"] == "RolledBack"


def test_doctor_sends_nobody_to_plan_a_drain_while_the_region_goes_home(run, cloud):
    bear(cloud, "born")
    run("migration_rollback", "--yes")
    told = run("doctor").out
    assert "is RollingBack. Copies are on their way home.\n          -> manage.py migration_rollback --status" in told
    assert "migration_plan" not in told


def test_what_refuses_it_is_told_with_its_remedy_and_exit_code_4(run, cloud, monkeypatch):
    bear(cloud, "born")
    monkeypatch.setattr(NFSDriver, "free_bytes", lambda self: 10)
    planned = run("migration_rollback", "--dry-run")
    assert planned.code == 4
    assert "NOT ENOUGH" in planned.out
    refused = run("migration_rollback", "--yes")
    assert refused.code == 4
    assert "Add space" in refused.err
    assert Conversion.objects.get().state == "Converted"
