"""The way back: from any point of a drain every item is on NFS again, byte for byte, and the region can be converted once more."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from django.db import transaction

from cloudstorage.errors import Blocked, Busy, Conflict, Denied, Missing
from cloudstorage.models import AuditEvent
from migration import drain, homeward, rollback
from migration.commit import commit
from migration.conversion import ConvertPlan, convert, open_conversion, pinned_by
from migration.models import Conversion, Drain, Rollback, Verification
from migration.states import ConversionState, DrainState
from stores import tasks
from stores.drivers.errors import Full
from stores.drivers.nfs import NFSDriver
from stores.models import KINDS, Hold, ImageStore, Kind, Template, TemplateZoneRef, Transfer, Worker, WorkerReach
from stores.services import holds, items, proofs, transfers
from stores.services.inventory import open_content
from stores.services.uploads import register_upload
from stores.states import RefState, Role, StoreState, TransferState
from stores.worker import Pump
from tests.migration.region import changed, dump

pytestmark = pytest.mark.db

BYPASS = ["preflight-absent"]


@pytest.fixture
def before(region) -> dict[tuple[Kind, str], str]:
    """A template in both zones and one in each, two volumes, a chain of four; the SHA-256 of each."""
    region.template("web", "east", "west")
    region.template("eastern", "east")
    region.template("western", "west")
    region.volume("data", "east")
    region.volume("logs", "west")
    parent = None
    for name in ("one", "two", "three", "four"):
        parent = region.snapshot(name, "west", parent=parent)
    return contents(region.admin)


@pytest.fixture
def converted(before, target, admin) -> Conversion:
    return convert(actor=admin, override=BYPASS, **target)


@pytest.fixture
def worker(converted) -> Worker:
    row = Worker.objects.create(hostname="here", pid=7)
    WorkerReach.objects.bulk_create(WorkerReach(worker=row, store=store, ok=True) for store in ImageStore.objects.all())
    return row


def contents(actor) -> dict[tuple[Kind, str], str]:
    """SHA-256 of every item that exists, as anybody reads it now."""
    found = {}
    for kind, models in KINDS.items():
        for item in models.item.objects.filter(removed=None):
            try:
                with open_content(actor=actor, kind=kind, item=item) as content:
                    found[kind, item.name] = hashlib.sha256(b"".join(content.chunks())).hexdigest()
            except Missing:
                assert models.ref.objects.filter(item=item, state=RefState.DESTROYING).exists(), f"{item} cannot be read"
    return found


def pump(worker: Worker) -> int:
    return Pump(worker.pk, slots=4).run()


def drain_some(converted: Conversion, worker: Worker, actor, share: float) -> Drain:
    """A drain that has moved this share of its items and goes on."""
    row = drain.start(actor=actor, drain=drain.plan(actor=actor, conversion=converted, canary_items=0))
    drain.advance(row)
    held = list(Transfer.objects.order_by("-depth", "-pk").values_list("pk", flat=True))
    held = held[: round(len(held) * (1 - share))]
    Transfer.objects.filter(pk__in=held).update(next_attempt_at="2100-01-01T00:00:00Z")
    pump(worker)
    proven = Transfer.objects.filter(state=TransferState.PROVEN).count()
    assert proven == Transfer.objects.count() - len(held)
    return row


def upload(actor, kind: Kind, name: str, zone: Any, *, times: int = 1000, **more: Any) -> tuple[Kind, str, str]:
    body = f"born as {name}".encode() * times
    stream = io.BytesIO(body)
    register_upload(
        actor=actor, kind=kind, zone=zone, account_id=2, name=name, filename=f"{name}.raw", stream=stream, size=len(body), **more
    )
    return kind, name, hashlib.sha256(body).hexdigest()


def bring_home(row: Rollback, worker: Worker) -> Rollback:
    for _ in range(20):
        row.refresh_from_db()
        if row.ended_at is not None:
            return row
        pump(worker)
        rollback.advance(row)
    raise AssertionError(f"not home: {rollback.progress(row)}")


def properties_of(template: Template) -> str:
    return f"template/tmpl/{template.account_id}/{template.upstream_id}/template.properties"


def assert_on_nfs(region, converted: Conversion) -> None:
    """The stores are what they were before, nobody waits for anything, and the counts are right."""
    converted.refresh_from_db()
    assert (converted.state, converted.ended_at is not None) == (ConversionState.ROLLED_BACK, True)
    for store in region.stores.values():
        store.refresh_from_db()
        assert (store.role, store.state) == (Role.IMAGE, StoreState.ATTACHED)
    objects = converted.object_store
    objects.refresh_from_db()
    assert (objects.role, objects.state, objects.readonly) == (Role.IMAGE, StoreState.DETACHED, False)
    for models in KINDS.values():
        states = set(models.ref.objects.filter(store=objects).values_list("state", flat=True))
        assert states <= {RefState.READY, RefState.HIDDEN, RefState.DESTROYING, RefState.DESTROYED}
        assert not models.ref.objects.filter(store__in=[*region.stores.values()], ref_cnt__gt=0).exists()
    assert not Transfer.objects.exclude(state__in=[TransferState.PROVEN, TransferState.CANCELLED]).exists()
    assert not Template.objects.exclude(cross_zones_by=None).exists()
    assert not TemplateZoneRef.objects.filter(removed=None).exclude(added_by=None).exists()
    assert holds.recount() == []
    assert open_conversion() is None
    assert [pinned_by(store) for store in region.stores.values()] == [None, None]


@pytest.mark.parametrize("share", [0, 0.5, 0.99], ids=["0 %", "50 %", "99 %"])
def test_every_item_is_on_nfs_again_whatever_was_moved_born_and_deleted(
    region, before, converted, worker, admin, operator, viewer, memory_store, share
):
    moving = drain_some(converted, worker, operator, share)
    kept = dict(before)
    born = [
        upload(admin, Kind.VOLUME, "new-east", region.zones["east"]),
        upload(admin, Kind.TEMPLATE, "new-everywhere", None),
        upload(admin, Kind.SNAPSHOT, "new-west", region.zones["west"], volume_upstream_id=9),
        upload(admin, Kind.VOLUME, "new-nowhere", None),
    ]
    kept |= {(kind, name): digest for kind, name, digest in born}
    for kind, name in ((Kind.VOLUME, "logs"), (Kind.TEMPLATE, "eastern"), (Kind.SNAPSHOT, "four")):
        items.delete_item(actor=admin, kind=kind, item=KINDS[kind].item.objects.get(name=name))
        del kept[kind, name]
    tasks.clean_up()
    plan = rollback.plan_rollback(actor=viewer, conversion=converted)
    assert plan.born == {"template": 1, "snapshot": 1, "volume": 2}
    assert plan.deleted == {"template": 1, "snapshot": 1, "volume": 1}
    assert {kind: entry["items"] for kind, entry in plan.home.items()} == {"template": 2, "snapshot": 1, "volume": 3}
    assert {row["name"]: row["items"] for row in plan.exports} == {"nfs-east": 3, "nfs-west": 3}
    assert all(row["enough"] and row["free"] for row in plan.exports)
    assert [found.code for found in plan.findings] == ["drain-live"]

    row = bring_home(rollback.start(actor=admin, conversion=converted), worker)

    assert row.note == "The region is on NFS again."
    moving.refresh_from_db()
    assert moving.state == DrainState.CANCELLED
    assert_on_nfs(region, converted)
    assert contents(viewer) == kept
    template = Template.objects.get(name="new-everywhere")
    home = [store for name, store in region.stores.items() if (region.folder(name) / properties_of(template)).exists()]
    assert home == list(region.stores.values()), "CloudStack knows no template without them"
    tasks.clean_up()
    memory_store.available = False  # nothing depends on it any more
    assert contents(viewer) == kept
    assert sorted(
        TemplateZoneRef.objects.filter(removed=None, template__name="western").values_list("zone__name", flat=True)
    ) == ["west"]
    done = AuditEvent.objects.filter(action__startswith="conversion.rollback", outcome="done").order_by("pk")
    assert [(event.actor, event.action) for event in done] == [
        ("admin", "conversion.rollback"),
        ("system", "conversion.rollback.finish"),
    ]


@pytest.mark.parametrize("share", [0, 0.5, 0.99], ids=["0 %", "50 %", "99 %"])
def test_it_can_be_converted_to_the_same_store_again_and_what_is_proven_there_is_not_moved_twice(
    region, before, converted, worker, admin, operator, viewer, target, share
):
    drain_some(converted, worker, operator, share)
    proven = Transfer.objects.filter(state=TransferState.PROVEN).count()
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    plan = convert(actor=admin, override=BYPASS, dry_run=True, **target)
    assert isinstance(plan, ConvertPlan)
    assert sum(plan.reused.values()) == proven
    again = convert(actor=admin, override=BYPASS, **target)
    assert isinstance(again, Conversion)
    assert again.object_store == converted.object_store
    assert again.counts["promised"] == plan.promised
    assert sum(again.counts["promised"].values()) == len(before) - proven
    assert sum(again.counts["counted"].values()) == sum(plan.counted.values())
    assert Verification.objects.filter(store=again.object_store, mode=Verification.LISTING).exists() == bool(proven)
    assert holds.recount() == []
    second = drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=again, canary_items=0))
    for _ in range(5):
        drain.advance(second)
        pump(worker)
    second.refresh_from_db()
    assert second.state == DrainState.FINISHED, second.note
    assert Transfer.objects.filter(batch=second.batch_id).count() == len(before) - proven
    for models in KINDS.values():
        assert not models.ref.objects.filter(store=again.object_store, state=RefState.PROMISED).exists()
    assert contents(viewer) == before


def on_objects(converted: Conversion, name: str) -> Any:
    return KINDS[Kind.VOLUME].ref.objects.exclude(state=RefState.DESTROYED).get(store=converted.object_store, item__name=name)


def test_what_a_rollback_left_to_be_removed_is_waited_for_and_its_item_promised_then(
    region, before, converted, worker, admin, operator, viewer, target
):
    drain_some(converted, worker, operator, 1)
    ref = on_objects(converted, "data")
    with transaction.atomic():
        proofs.withdraw(Kind.VOLUME, [ref.pk], "damaged: a bit is another")
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    assert on_objects(converted, "data").state == RefState.DESTROYING
    unchanged = dump()
    for dry_run in (True, False):
        with pytest.raises(Busy, match="1 former copy on objects"):
            convert(actor=admin, override=BYPASS, dry_run=dry_run, **target)
    assert changed(unchanged, dump()) == set()
    tasks.clean_up()
    again = convert(actor=admin, override=BYPASS, **target)
    assert again.counts["promised"] == {"template": 0, "snapshot": 0, "volume": 1}
    assert on_objects(converted, "data").state == RefState.PROMISED
    assert contents(viewer) == before


def test_what_was_damaged_on_the_object_store_is_promised_when_it_is_on_nfs_and_converted_again(
    region, before, converted, worker, admin, operator, viewer, target
):
    drain_some(converted, worker, operator, 1)
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    damaged = KINDS[Kind.VOLUME].ref.objects.filter(pk=on_objects(converted, "data").pk)
    damaged.update(state=RefState.FAILED, proof="", proven_at=None, error_str="damaged: a bit is another; this was the only copy")
    plan = convert(actor=admin, override=BYPASS, dry_run=True, **target)
    again = convert(actor=admin, override=BYPASS, **target)
    assert isinstance(plan, ConvertPlan)
    assert again.counts["promised"] == plan.promised == {"template": 0, "snapshot": 0, "volume": 1}
    assert again.counts["counted"] == plan.counted == {"template": 0, "snapshot": 0, "volume": 1}
    assert holds.recount() == []
    second = drain.start(actor=operator, drain=drain.plan(actor=operator, conversion=again, canary_items=0))
    drain.advance(second)
    pump(worker)
    assert on_objects(converted, "data").state == RefState.READY
    assert contents(viewer) == before


def test_it_can_be_converted_to_another_store_afterwards(region, before, converted, worker, admin, viewer, target):
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    other = convert(actor=admin, override=BYPASS, **target | {"name": "others", "url": "memory://others"})
    assert other.object_store != converted.object_store
    assert sum(other.counts["promised"].values()) == len(before)
    assert holds.recount() == []
    assert contents(viewer) == before


def test_the_name_of_a_detached_store_is_kept_for_its_place(converted, worker, admin, target):
    rollback.start(actor=admin, conversion=converted)
    with pytest.raises(Conflict, match="of another place"):
        convert(actor=admin, override=BYPASS, **target | {"url": "memory://elsewhere"})


def test_it_is_too_late_after_the_commit(converted, admin):
    commit(actor=admin, conversion=converted)
    unchanged = dump()
    with pytest.raises(Conflict, match=r"was committed .* originals on NFS are cache"):
        rollback.start(actor=admin, conversion=converted)
    with pytest.raises(Conflict, match="was committed"):
        rollback.plan_rollback(actor=admin, conversion=converted)
    assert changed(unchanged, dump()) == set()
    assert AuditEvent.objects.get(action="conversion.rollback").outcome == "refused"


def test_only_an_administrator_rolls_back(converted, operator):
    with pytest.raises(Denied):
        rollback.start(actor=operator, conversion=converted)
    converted.refresh_from_db()
    assert converted.state == ConversionState.CONVERTED


def test_the_plan_changes_nothing(region, converted, worker, admin, viewer):
    upload(admin, Kind.VOLUME, "new", region.zones["east"])
    unchanged = dump()
    rollback.plan_rollback(actor=viewer, conversion=converted)
    assert changed(unchanged, dump()) == set()


def test_a_full_target_is_refused_with_the_finding(region, converted, admin, monkeypatch):
    upload(admin, Kind.VOLUME, "new", region.zones["east"])
    monkeypatch.setattr(NFSDriver, "free_bytes", lambda self: 1000)
    unchanged = dump()
    with pytest.raises(Blocked) as refused:
        rollback.start(actor=admin, conversion=converted)
    assert [(found.code, found.store) for found in refused.value.findings] == [("target-full", "nfs-east")]
    assert "1000 B free" in refused.value.message
    assert changed(unchanged, dump()) == set()


def test_an_export_that_fills_up_on_the_way_stops_it_with_the_reason_until_it_is_retried(
    region, before, converted, worker, admin, viewer, monkeypatch
):
    _, name, digest = upload(admin, Kind.VOLUME, "new", region.zones["east"])

    def full(*_: Any, **__: Any) -> None:
        raise Full("No space is left on the export.")

    with monkeypatch.context() as patched:
        patched.setattr(NFSDriver, "put", full)
        row = rollback.start(actor=admin, conversion=converted)
        pump(worker)
        rollback.advance(row)
    told = rollback.progress(row)
    assert (told.state, told.items["failed"]) == ("RollingBack", 1)
    assert "retry" in told.note
    assert [error["cause"] for error in told.errors] == ["full"]
    assert contents(viewer) == before | {(Kind.VOLUME, name): digest}
    assert rollback.retry(actor=admin, conversion=converted) == 1
    bring_home(row, worker)
    assert_on_nfs(region, converted)
    assert contents(viewer) == before | {(Kind.VOLUME, name): digest}


def test_an_abandoned_one_leaves_the_region_converted_and_can_be_begun_again(
    region, before, converted, worker, admin, operator, viewer
):
    _, name, digest = upload(admin, Kind.VOLUME, "new", region.zones["east"])
    row = rollback.start(actor=admin, conversion=converted)
    assert row.ended_at is None
    with pytest.raises(Conflict):
        drain.plan(actor=operator, conversion=converted)
    with pytest.raises(Conflict, match="is being rolled back"):
        commit(actor=admin, conversion=converted)
    rollback.abandon(actor=admin, conversion=converted)
    converted.refresh_from_db()
    assert converted.state == ConversionState.CONVERTED
    assert rollback.progress(row).state == "Abandoned"
    assert not Transfer.objects.exclude(state=TransferState.CANCELLED).exists()
    tasks.clean_up()
    assert contents(viewer) == before | {(Kind.VOLUME, name): digest}
    assert holds.recount() == []
    drain.plan(actor=operator, conversion=converted)
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    assert_on_nfs(region, converted)
    assert contents(viewer) == before | {(Kind.VOLUME, name): digest}


def test_nothing_is_planned_any_more_when_it_is_abandoned_while_it_is_planned(
    region, before, converted, worker, admin, viewer, monkeypatch
):
    _, name, digest = upload(admin, Kind.VOLUME, "new", region.zones["east"])
    returning = homeward.returning

    def while_somebody_abandons_it(homes):
        for found in returning(homes):
            if Rollback.objects.filter(ended_at=None).exists():
                rollback.abandon(actor=admin, conversion=converted)
            yield found

    with monkeypatch.context() as patched:
        patched.setattr(homeward, "returning", while_somebody_abandons_it)
        row = rollback.start(actor=admin, conversion=converted)
    assert rollback.progress(row).state == "Abandoned"
    assert not Transfer.objects.exists()
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    assert_on_nfs(region, converted)
    assert contents(viewer) == before | {(Kind.VOLUME, name): digest}


def test_what_is_being_written_is_waited_for_and_nothing_follows_it(region, before, converted, worker, admin, viewer):
    zone = region.zones["west"]
    ref = items.begin_item(actor=admin, kind=Kind.VOLUME, zone=zone, account=region.account, name="late")
    assert rollback.plan_rollback(actor=viewer, conversion=converted).being_written == 1
    row = rollback.start(actor=admin, conversion=converted)
    assert (row.closing, row.ended_at) == (True, None)
    assert "still being written" in row.note
    with pytest.raises(Conflict, match="takes new items"):
        items.begin_item(actor=admin, kind=Kind.VOLUME, zone=zone, account=region.account, name="later")
    body = b"written while all else had gone home"
    key = f"{ref.install_path}/late.raw"
    stored = tasks.driver_for(ref.store).put(key, body, metadata={}, token="x-1")
    digest = hashlib.sha256(body).hexdigest()
    file = items.WrittenFile(key, len(body), digest, stored.proof, stored.version)
    items.finish_item(actor=admin, kind=Kind.VOLUME, ref=ref, files=[file])
    bring_home(row, worker)
    assert_on_nfs(region, converted)
    assert contents(viewer) == before | {(Kind.VOLUME, "late"): digest}


def test_what_is_born_while_the_first_came_home_is_the_last_that_is_let_in(region, before, converted, worker, admin, viewer):
    kept = dict(before)
    for name in ("first", "second"):
        kind, _, digest = upload(admin, Kind.VOLUME, name, region.zones["east"])
        kept[kind, name] = digest
        row = rollback.start(actor=admin, conversion=converted) if name == "first" else Rollback.objects.get()
        assert not row.closing
        pump(worker)
    rollback.advance(row)
    row.refresh_from_db()
    assert (row.closing, rollback.progress(row).items["total"]) == (True, 2)
    with pytest.raises(Conflict, match="takes new items"):
        upload(admin, Kind.VOLUME, "third", region.zones["east"])
    bring_home(row, worker)
    assert_on_nfs(region, converted)
    assert contents(viewer) == kept


def test_an_item_whose_writer_died_does_not_keep_it_waiting(region, before, converted, worker, admin, viewer):
    items.begin_item(actor=admin, kind=Kind.VOLUME, zone=region.zones["west"], account=region.account, name="dead")
    Hold.objects.update(expires="2000-01-01T00:00:00Z")
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    tasks.clean_up()
    assert_on_nfs(region, converted)
    assert contents(viewer) == before


def test_a_chain_that_was_born_comes_home_whole_beside_its_parent(region, before, converted, worker, admin, operator, viewer):
    drain_some(converted, worker, operator, 1)
    four = KINDS[Kind.SNAPSHOT].item.objects.get(name="four")
    objects = converted.object_store
    parent = four
    made = {}
    for name in ("five", "six"):
        ref = items.begin_item(
            actor=admin, kind=Kind.SNAPSHOT, zone=region.zones["east"], account=region.account, name=name,
            volume_upstream_id=9, path=name, parent=parent,
        )  # fmt: skip
        assert ref.item.parent == parent
        body = f"delta {name}".encode()
        stored = tasks.driver_for(objects).put(ref.install_path, body, metadata={}, token="x-1")
        made[Kind.SNAPSHOT, name] = hashlib.sha256(body).hexdigest()
        file = items.WrittenFile(ref.install_path, len(body), made[Kind.SNAPSHOT, name], stored.proof, stored.version)
        items.finish_item(actor=admin, kind=Kind.SNAPSHOT, ref=ref, files=[file])
        parent = ref.item
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=KINDS[Kind.SNAPSHOT].item.objects.get(name="five"))
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    assert_on_nfs(region, converted)
    refs = KINDS[Kind.SNAPSHOT].ref.objects.filter(item__name__in=["five", "six"], store__scope="ZONE")
    assert sorted(refs.values_list("item__name", "store__name", "state")) == [
        ("five", "nfs-west", RefState.HIDDEN),
        ("six", "nfs-west", RefState.READY),
    ]
    items.delete_item(actor=admin, kind=Kind.SNAPSHOT, item=parent)
    tasks.clean_up()
    assert not refs.exclude(state=RefState.DESTROYED).exists()


def test_what_cannot_go_home_is_named_and_refuses_it(region, converted, worker, admin):
    region.zones["north"] = type(region.zones["east"]).objects.create(name="north")
    upload(admin, Kind.VOLUME, "northern", region.zones["north"])
    plan = rollback.plan_rollback(actor=admin, conversion=converted)
    assert (plan.stranded_count, [found.name for found in plan.stranded]) == (1, ["northern"])
    with pytest.raises(Blocked, match="cannot go home"):
        rollback.start(actor=admin, conversion=converted, override=["cannot-go-home"])
    items.delete_item(actor=admin, kind=Kind.VOLUME, item=KINDS[Kind.VOLUME].item.objects.get(name="northern"))
    bring_home(rollback.start(actor=admin, conversion=converted), worker)
    assert_on_nfs(region, converted)


def test_a_damaged_original_refuses_it_unless_that_is_accepted(region, converted, worker, admin, operator):
    drain_some(converted, worker, operator, 1)
    file = KINDS[Kind.VOLUME].file.objects.get(ref__item__name="data", ref__store=region.stores["east"])
    type(file).objects.filter(pk=file.pk).update(problem="missing: it is gone")
    with pytest.raises(Blocked) as refused:
        rollback.start(actor=admin, conversion=converted)
    assert [found.code for found in refused.value.findings] == ["damaged-originals"]
    row = bring_home(rollback.start(actor=admin, conversion=converted, override=["damaged-originals"]), worker)
    assert row.overrides == ["damaged-originals"]
    assert_on_nfs(region, converted)


def test_an_original_that_is_lost_on_the_way_keeps_the_object_store_attached(
    region, before, converted, worker, admin, operator, viewer
):
    drain_some(converted, worker, operator, 1)
    _, name, digest = upload(admin, Kind.VOLUME, "new", region.zones["east"])
    row = rollback.start(actor=admin, conversion=converted)
    lost = KINDS[Kind.VOLUME].file.objects.filter(ref__item__name="data", ref__store=region.stores["east"])
    lost.update(problem="missing: it is gone")
    pump(worker)
    rollback.advance(row)
    row.refresh_from_db()
    assert row.ended_at is None
    assert "1 originals on nfs-east are missing" in row.note
    assert ImageStore.objects.get(pk=converted.object_store_id).state == StoreState.ATTACHED
    lost.update(problem="")
    bring_home(row, worker)
    assert_on_nfs(region, converted)
    assert contents(viewer) == before | {(Kind.VOLUME, name): digest}


def test_a_turn_that_died_is_taken_up_when_its_lease_has_lapsed(region, before, converted, worker, admin, viewer):
    upload(admin, Kind.VOLUME, "new", region.zones["east"])
    row = rollback.start(actor=admin, conversion=converted)
    pump(worker)
    Rollback.objects.filter(pk=row.pk).update(advancing_until="2100-01-01T00:00:00Z")
    rollback.advance(row)
    converted.refresh_from_db()
    assert converted.state == ConversionState.ROLLING_BACK
    Rollback.objects.filter(pk=row.pk).update(advancing_until="2000-01-01T00:00:00Z")
    rollback.advance(row)
    assert_on_nfs(region, converted)
    rollback.advance(row)
    assert Conversion.objects.filter(state=ConversionState.ROLLED_BACK).count() == 1


def test_a_copy_that_was_asked_for_at_the_wrong_moment_is_cancelled_by_the_clock(converted, worker, admin, operator, region):
    rollback.start(actor=admin, conversion=converted)
    volume = KINDS[Kind.VOLUME].item.objects.get(name="data")
    transfers.ensure(actor=operator, kind=Kind.VOLUME, item=volume, store=converted.object_store)
    tasks.keep_house()
    assert Transfer.objects.get().state == TransferState.CANCELLED


def test_a_finished_drain_cannot_be_retried_after_it(converted, worker, admin, operator):
    row = drain_some(converted, worker, operator, 1)
    drain.advance(row)
    rollback.start(actor=admin, conversion=converted)
    with pytest.raises(Conflict, match="RolledBack"):
        drain.retry_failed(actor=operator, drain=row)
