"""What a drain's rules leave out stays on NFS and is told; order, read-back, limits, and what is wrong with rules."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage.errors import Conflict, Invalid, Missing
from migration import drain
from migration.commit import plan_commit
from migration.conversion import convert
from migration.models import Drain
from migration.rules import Rules, of, of_drain, rules_from
from migration.states import DrainState
from stores.models import KINDS, ImageStore, Kind, Snapshot, Template, Transfer, Worker, WorkerReach
from stores.services import holds
from stores.states import Proof, RefState, TransferState
from stores.worker import Pump, open_batches

pytestmark = pytest.mark.db


@pytest.fixture
def converted(region, target, admin):
    """A template in both zones, one and a volume in the east, and in the west a chain of three snapshots."""
    region.template("web", "east", "west")
    region.template("local", "east")
    region.volume("data", "east")
    parent = None
    for name in ("one", "two", "three"):
        parent = region.snapshot(name, "west", parent=parent)
    return convert(actor=admin, override=["preflight-absent"], **target)


@pytest.fixture
def worker(converted) -> Worker:
    row = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=row, store=store, ok=True) for store in ImageStore.objects.all())
    return row


def run_to_end(row: Drain, worker: Worker) -> Drain:
    for _ in range(20):
        Pump(worker.pk, slots=4).run()
        drain.advance(row)
        row.refresh_from_db()
        if row.state in {DrainState.FINISHED, DrainState.PAUSED}:
            return row
    raise AssertionError(f"the drain is still {row.state}: {drain.progress(row)}")


def started(actor, conversion, **rules) -> Drain:
    return drain.start(actor=actor, drain=drain.plan(actor=actor, conversion=conversion, **rules))


def planned(row: Drain) -> list[str]:
    """The names of what a drain moves, in the order in which it is claimed but for its parents."""
    rows = Transfer.objects.filter(batch=row.batch).order_by("id")
    names = {(kind, item.pk): item.name for kind in Kind for item in KINDS[kind].item.objects.all()}
    return [names[Kind(transfer.kind), transfer.item_id] for transfer in rows]


def promised() -> set[str]:
    """What is on NFS only."""
    return {
        name
        for models in KINDS.values()
        for name in models.ref.objects.filter(state=RefState.PROMISED).values_list("item__name", flat=True)
    }


@pytest.mark.parametrize(
    ("rules", "moved"),
    [
        ({"zones": ["west"]}, {"web", "one", "two", "three"}),
        ({"kinds": ["template", "volume"], "zones": ["east"]}, {"web", "local", "data"}),
        ({"kinds": ["snapshot"], "zones": ["east"]}, set()),
    ],
)
def test_a_drain_moves_its_scope_and_ends_and_another_takes_the_rest(converted, worker, operator, viewer, rules, moved):
    row = started(operator, converted, **rules)
    assert set(planned(row)) == moved
    row = run_to_end(row, worker)
    everything = {"web", "local", "data", "one", "two", "three"}
    left = everything - moved
    assert promised() == left
    assert row.state == DrainState.FINISHED
    assert row.note.startswith(f"Every item in its scope is proven. {len(left)} items outside of its scope are still on NFS")
    assert drain.promised(converted.object_store)["items"] == len(left)
    assert sum(plan_commit(actor=viewer, conversion=converted).promised.values()) == len(left)
    assert holds.recount() == []
    rest = run_to_end(started(operator, converted), worker)
    assert (rest.note, promised()) == ("Every item is proven.", set())


def test_parents_that_only_another_zone_has_come_along(region, converted, worker, operator):
    """A chain of which each zone has a part: a child is of no use without what it builds on, so that moves too."""
    last = region.snapshot("four", "east", parent=Snapshot.objects.get(name="three"))
    KINDS[Kind.SNAPSHOT].ref.objects.create(item=last, store=converted.object_store, state=RefState.PROMISED)
    KINDS[Kind.SNAPSHOT].ref.objects.filter(item=last, state=RefState.READY).update(ref_cnt=1)
    row = started(operator, converted, zones=["east"], kinds=["snapshot"])
    assert set(planned(row)) == {"one", "two", "three", "four"}
    row = run_to_end(row, worker)
    assert (row.state, promised()) == (DrainState.FINISHED, {"web", "local", "data"})


def test_what_comes_into_its_scope_meanwhile_is_moved_and_the_rest_is_not(region, converted, worker, operator):
    row = started(operator, converted, kinds=["template"], canary_items=0)
    for name, zone in (("late", "east"), ("later", "west")):
        item = region.template(name, zone)
        KINDS[Kind.TEMPLATE].ref.objects.create(item=item, store=converted.object_store, state=RefState.PROMISED, size=15)
        KINDS[Kind.TEMPLATE].ref.objects.filter(item=item, state=RefState.READY).update(ref_cnt=1)
    run_to_end(row, worker)
    assert promised() == {"data", "one", "two", "three"}


def test_items_of_all_kinds_are_planned_in_the_order_that_was_chosen(converted, operator):
    by_size = ["two", "data", "web", "three", "local", "one"]
    by_age = ["three", "web", "two", "data", "one", "local"]
    for models in KINDS.values():
        for item in models.item.objects.all():
            models.ref.objects.filter(item=item).update(size=(by_size.index(item.name) + 1) * 100)
            at = item.created - timedelta(days=by_age.index(item.name) + 1)
            models.item.objects.filter(pk=item.pk).update(created=at)
    as_planned = ["web", "local", "one", "two", "three", "data"]
    expected = {"planned": as_planned, "smallest": by_size, "largest": by_size[::-1], "newest": by_age}
    found = {}
    for order in expected:
        row = drain.plan(actor=operator, conversion=converted, order=order)
        found[order] = planned(row)
        drain.cancel(actor=operator, drain=row)
    assert found == expected


def test_every_copy_is_read_back_where_the_rules_say_so(converted, worker, operator, memory_store):
    row = run_to_end(started(operator, converted, verification="read-back", kinds=["snapshot"]), worker)
    assert row.state == DrainState.FINISHED
    of_rules = KINDS[Kind.SNAPSHOT].ref.objects.filter(store=converted.object_store)
    assert set(of_rules.values_list("proof", flat=True)) == {Proof.READ_BACK}
    run_to_end(started(operator, converted, canary_items=0), worker)
    others = KINDS[Kind.VOLUME].ref.objects.filter(store=converted.object_store)
    assert set(others.values_list("proof", flat=True)) == {Proof.VERIFIED}


def test_planning_takes_as_many_statements_whatever_the_rows(region, converted, operator):
    def statements(**rules) -> int:
        with CaptureQueriesContext(connection) as found:
            row = drain.plan(actor=operator, conversion=converted, canary_items=0, zones=["east", "west"], **rules)
        drain.cancel(actor=operator, drain=row)
        return len(found)

    few = statements(order="smallest")
    for number in range(20):
        item = region.template(f"more-{number}", "east", "west")
        KINDS[Kind.TEMPLATE].ref.objects.create(item=item, store=converted.object_store, state=RefState.PROMISED)
    assert statements(order="smallest") == few
    assert Template.objects.count() == 22


def test_rules_are_kept_with_the_drain_and_limits_are_those_of_now(converted, operator):
    given = {"zones": ["west", "east"], "kinds": ["volume", "template"], "order": "newest", "verification": "read-back"}
    window = "mon-fri 22:00-06:00;sat,sun 00:00-24:00"
    limits = {"concurrency": 3, "bandwidth": 5, "window": window, "time_zone": "Europe/Berlin"}
    row = drain.plan(actor=operator, conversion=converted, canary_items=1, **given, **limits)
    expected = Rules(
        ("west", "east"), ("template", "volume"), "newest", "read-back", 1, 3, 5,
        "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00", "Europe/Berlin",
    )  # fmt: skip
    assert of_drain(Drain.objects.get(pk=row.pk)) == expected == of(expected.as_json()) == rules_from(expected.as_json())
    drain.set_limits(actor=operator, drain=row, window="", concurrency=9)
    assert of_drain(Drain.objects.get(pk=row.pk)) == of(expected.as_json() | {"window": "", "concurrency": 9})
    words = dict(expected.words())
    assert words["What"] == "templates and ISOs, volumes in zones west, east"
    assert words["When"] == "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00 by the clock of Europe/Berlin"


def test_a_wrong_rule_is_named_and_nothing_is_planned(converted, operator):
    for field, wrong in [
        ("zones", ["north"]), ("kinds", ["floppy"]), ("order", "random"), ("verification", "none"), ("canary_items", -1),
        ("concurrency", 0), ("concurrency", 257), ("bandwidth", 0), ("bandwidth", 1 << 70), ("window", "late"),
        ("time_zone", "Berlin"),
    ]:  # fmt: skip
        with pytest.raises((Invalid, Missing)) as refusal:
            drain.plan(actor=operator, conversion=converted, **{field: wrong})
        assert (refusal.value.field, bool(refusal.value.remedy)) == (field, True)
    assert not Transfer.objects.exists()


def test_a_closed_window_of_another_time_zone_keeps_it_from_running(converted, worker, operator):
    row = started(operator, converted, window="00:00-24:00", time_zone="Asia/Kathmandu")
    assert open_batches() == [row.batch_id]
    day = (timezone.now() + timedelta(days=3)).strftime("%a")
    drain.set_limits(actor=operator, drain=row, window=f"{day} 00:00-24:00")
    assert open_batches() == []
    assert Pump(worker.pk, slots=4).run() == 0
    assert not Transfer.objects.filter(state=TransferState.PROVEN).exists()


def test_one_drain_at_a_time_whatever_its_scope(converted, operator):
    drain.plan(actor=operator, conversion=converted, zones=["east"])
    with pytest.raises(Conflict):
        drain.plan(actor=operator, conversion=converted, zones=["west"])
