"""A region is switched whole or not at all, and everything in it stays readable and deletable."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cloudstorage.errors import Blocked, Busy, Conflict, Denied, Invalid
from cloudstorage.models import AuditEvent
from migration import conversion as conversion_module
from migration.conversion import ConvertPlan, convert, open_conversion, pinned_by, update_cloud_to_use_object_store
from migration.models import Conversion
from migration.preflight import preflight
from stores.models import KINDS, ImageStore, Kind, SnapshotStoreFile, Template, TemplateStoreRef, TemplateZoneRef
from stores.services import holds, items
from stores.services.inventory import open_content, relative_name
from stores.services.scan import scan_store
from stores.states import Proof, RefState, Role
from tests.demo.build import build_region
from tests.migration.region import age_preflight, changed, dump, refs

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def converted(filled, target, admin):
    preflight(actor=admin, **target)
    convert(actor=admin, **target)
    return filled


@pytest.fixture
def filled(region):
    region.template("both", "east", "west")
    region.template("east-only", "east")
    full = region.snapshot("full", "west", state=RefState.HIDDEN)
    region.snapshot("delta", "west", parent=full)
    region.volume("disk", "east")
    return region


def test_every_item_is_promised_once_and_every_copy_counted_when_converted(filled, target, admin):
    preflight(actor=admin, **target)
    conversion = convert(actor=admin, **target)

    store = conversion.object_store
    assert refs(Kind.TEMPLATE, store=store) == [("both", "Promised", 0), ("east-only", "Promised", 0)]
    assert refs(Kind.SNAPSHOT, store=store) == [("delta", "Promised", 0), ("full", "Promised", 0)]
    assert refs(Kind.VOLUME, store=store) == [("disk", "Promised", 0)]
    east, west = filled.stores["east"], filled.stores["west"]
    assert refs(Kind.TEMPLATE, store=east) == [("both", "Ready", 1), ("east-only", "Ready", 1)]
    assert refs(Kind.TEMPLATE, store=west) == [("both", "Ready", 1)]
    assert refs(Kind.SNAPSHOT, store=west) == [("delta", "Ready", 1), ("full", "Hidden", 1)]
    assert conversion.counts["promised"] == {"template": 2, "snapshot": 2, "volume": 1}
    assert conversion.counts["counted"] == {"template": 3, "snapshot": 2, "volume": 1}


def test_nfs_stores_become_staging_stores_when_converted(filled, target, admin):
    preflight(actor=admin, **target)
    conversion = convert(actor=admin, **target)
    roles = dict(ImageStore.objects.values_list("name", "role"))
    assert roles == {"nfs-east": Role.IMAGE_CACHE, "nfs-west": Role.IMAGE_CACHE, "objects": Role.IMAGE}
    former = {entry.store.name: entry.former_role for entry in conversion.stores.select_related("store")}
    assert former == {"nfs-east": Role.IMAGE, "nfs-west": Role.IMAGE}
    assert open_conversion() == conversion
    assert [pinned_by(store) for store in filled.stores.values()] == [conversion, conversion]


def test_counts_are_those_of_holds_and_promises_when_converted(converted):
    assert holds.recount() == []


def test_staged_copies_of_before_are_counted_too_when_converted(filled, target, admin):
    store = filled.add_zone("north")
    ImageStore.objects.filter(pk=store.pk).update(role=Role.IMAGE_CACHE)
    filled.put(Template.objects.get(name="both"), "north", "template/tmpl/2/999")
    preflight(actor=admin, **target)
    plan = convert(actor=admin, dry_run=True, **target)
    assert convert(actor=admin, **target).counts["counted"] == plan.counted
    assert refs(Kind.TEMPLATE, store=store) == [("both", "Ready", 1)]
    assert holds.recount() == []


def test_templates_are_shown_in_every_zone_when_converted(filled, target, admin):
    Template.objects.filter(name="both").update(cross_zones=True)
    preflight(actor=admin, **target)
    conversion = convert(actor=admin, **target)
    shown = set(TemplateZoneRef.objects.filter(removed=None).values_list("template__name", "zone__name", "added_by"))
    assert shown == {
        ("both", "east", None),
        ("both", "west", None),
        ("east-only", "east", None),
        ("east-only", "west", conversion.uuid),
    }
    assert set(Template.objects.values_list("name", "cross_zones", "cross_zones_by")) == {
        ("both", True, None),
        ("east-only", True, conversion.uuid),
    }


def test_every_item_reads_as_before_and_can_be_deleted_when_converted(converted, admin):
    for template in Template.objects.all():
        with open_content(actor=admin, kind=Kind.TEMPLATE, item=template) as content:
            read = b"".join(content.chunks())
        assert hashlib.sha256(read).digest() == hashlib.sha256(f"content of {template.name}".encode()).digest()
    both = Template.objects.get(name="both")
    items.delete_item(actor=admin, kind=Kind.TEMPLATE, item=both)
    assert set(TemplateStoreRef.objects.filter(item=both).values_list("state", flat=True)) == {RefState.DESTROYING}
    assert items.finish_deletes() == 3
    both.refresh_from_db()
    assert both.removed is not None
    assert holds.recount() == []


def test_item_that_was_being_written_is_promised_when_it_becomes_ready(filled, target, admin):
    ref = items.begin_item(
        actor=admin, kind=Kind.TEMPLATE, zone=filled.zones["east"], account=filled.account, name="late", image_format="QCOW2"
    )
    preflight(actor=admin, **target)
    conversion = convert(actor=admin, **target)
    assert "late" not in {name for name, *_ in refs(Kind.TEMPLATE, store=conversion.object_store)}

    written = items.WrittenFile(f"{ref.install_path}/late.qcow2", 4, hashlib.sha256(b"late").hexdigest(), Proof.READ_BACK)
    items.finish_item(actor=admin, kind=Kind.TEMPLATE, ref=ref, files=[written])
    assert ("late", "Promised", 0) in refs(Kind.TEMPLATE, store=conversion.object_store)
    assert ("late", "Ready", 1) in refs(Kind.TEMPLATE, store=filled.stores["east"])
    assert holds.recount() == []


def test_new_items_go_to_the_object_store_and_snapshots_are_full_when_converted(converted, admin):
    parent = converted.snapshot("parent", "west")
    ref = items.begin_item(
        actor=admin,
        kind=Kind.SNAPSHOT,
        zone=converted.zones["west"],
        account=converted.account,
        name="new",
        volume_upstream_id=9,
        path="new",
        parent=parent,
    )
    assert ref.store.name == "objects"
    assert (ref.item.parent, ref.item.depth) == (None, 0)


def test_statements_do_not_grow_with_the_rows_when_converted(region, target, admin):
    def statements() -> int:
        preflight(actor=admin, **target)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            convert(actor=admin, **target)
        return len(queries)

    for number in range(3):
        region.template(f"t{number}", "east")
    few = statements()
    Conversion.objects.all().delete()
    TemplateStoreRef.objects.filter(store__role=Role.IMAGE).delete()
    ImageStore.objects.filter(name="objects").delete()
    TemplateStoreRef.objects.update(ref_cnt=0)
    ImageStore.objects.update(role=Role.IMAGE)
    for number in range(30):
        region.template(f"more{number}", "east", "west")
    assert statements() == few


def test_plan_says_what_would_change_and_nothing_is_written_when_it_is_a_dry_run(filled, target, admin):
    preflight(actor=admin, **target)
    before = dump()
    plan = convert(actor=admin, dry_run=True, **target)
    assert changed(before, dump()) == set()
    assert isinstance(plan, ConvertPlan)
    assert plan.promised == {"template": 2, "snapshot": 2, "volume": 1}
    assert plan.counted == {"template": 3, "snapshot": 2, "volume": 1}
    assert plan.templates_made_region_wide == 2
    east, west = plan.zones
    assert (east["zone"], east["template_refs_added"], west["template_refs_added"]) == ("east", 0, 1)
    assert east["stores"][0]["refs"]["volume"] == {"count": 1, "bytes": len("content of disk")}

    conversion = convert(actor=admin, **target)
    assert conversion.counts["promised"] == plan.promised
    assert conversion.counts["counted"] == plan.counted
    assert conversion.counts["templates"] == plan.templates_made_region_wide


def test_region_without_nfs_gets_the_object_store_when_converted(db, admin, settings, memory_store, target):
    report = preflight(actor=admin, **target).report
    assert [found["code"] for found in report["findings"]] == ["no-nfs-stores"]
    conversion = convert(actor=admin, **target)
    assert list(ImageStore.objects.values_list("name", "role")) == [("objects", Role.IMAGE)]
    assert conversion.counts["promised"] == {"template": 0, "snapshot": 0, "volume": 0}


def test_cloudstack_s_parameters_are_enough_when_a_preflight_was_run(filled, target, admin):
    preflight(actor=admin, **target)
    found = update_cloud_to_use_object_store(actor=admin, provider="Memory", url="memory://objects")
    assert isinstance(found, Conversion)
    assert found.object_store.name == "memory://objects"


def test_audit_trail_tells_of_the_conversion_and_of_refusals(filled, target, admin, operator):
    preflight(actor=admin, **target)
    with pytest.raises(Denied):
        convert(actor=operator, **target)
    conversion = convert(actor=admin, **target)
    told = list(AuditEvent.objects.filter(action="conversion.convert").order_by("id").values_list("actor", "outcome", "target"))
    assert told == [("operator", "refused", "objects"), ("admin", "done", f"conversion {conversion.uuid}")]


def test_real_region_reads_byte_for_byte_when_scanned_and_converted(region, target, admin, tmp_path):
    built = build_region(tmp_path / "built", scale="tiny")
    for zone, name in zip(built.zones, ("east", "west"), strict=True):
        subprocess.run(["cp", "-a", f"{built.zones[zone]}/.", str(region.folder(name))], check=True)
        scan_store(actor=admin, store=region.stores[name])
    found = preflight(actor=admin, **target)
    assert found.blockers == 0, found.report["findings"]
    conversion = convert(actor=admin, **target)
    assert sum(conversion.counts["counted"].values()) == len(built.items)
    assert holds.recount() == []
    by_hash = {file.sha256 for item in built.items for file in item.files}
    read = set()
    for kind, models in KINDS.items():
        for item in models.item.objects.all():
            copies = models.ref.objects.filter(item=item).exclude(store=conversion.object_store).order_by("store_id")
            names = [relative_name(copies[0].install_path, path) for path in copies[0].files.values_list("path", flat=True)]
            for name in names:
                with open_content(actor=admin, kind=kind, item=item, path=name) as content:
                    read.add(hashlib.sha256(b"".join(content.chunks())).hexdigest())
    assert read <= by_hash
    assert len(read) >= len(built.items) / 2


# --- refused, with nothing changed ---------------------------------------------------------------------------------------


@pytest.fixture
def refused(admin):
    """Converts, expects a refusal that names field and remedy, and that no row has changed."""

    def refuse(error: type[Exception], field: str, **parameters):
        before = dump()
        with pytest.raises(error) as told:
            convert(actor=admin, **parameters)
        assert changed(before, dump()) == set()
        assert told.value.field == field, told.value
        assert told.value.remedy
        assert told.value.status in range(400, 500)
        return told.value

    return refuse


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"provider": "Floppy"}, Invalid, "provider"),
        ({"provider": "NFS", "url": "nfs://localhost/export"}, Invalid, "zone"),
        ({"url": "gopher://objects"}, Invalid, "url"),
        ({"details": {"colour": "red"}}, Invalid, "colour"),
        ({"name": "nfs-east"}, Conflict, "name"),
        ({"provider": "S3", "url": "", "details": {}}, Invalid, "accesskey"),
    ],
    ids=["unknown provider", "not an object store", "bad url", "unknown option", "duplicate name", "missing option"],
)
def test_conversion_is_refused_when_a_parameter_is_wrong(filled, target, admin, refused, changes, error, field):
    preflight(actor=admin, **target)
    refused(error, field, **(target | changes))


def test_conversion_is_refused_when_providers_are_mixed(filled, target, admin, refused):
    preflight(actor=admin, **target)
    ImageStore.objects.filter(name="nfs-west").update(image_provider_name="Swift")
    assert "nfs-west" in refused(Invalid, "provider", **target).message


def test_conversion_is_refused_when_it_was_converted_before(converted, target, refused):
    told = refused(Conflict, "name", **(target | {"name": "other", "url": "memory://other"}))
    assert str(open_conversion().uuid) in told.message


def test_conversion_is_refused_when_no_preflight_was_run(filled, target, refused):
    assert "preflight-absent" in refused(Blocked, "preflight", **target).remedy


def test_conversion_is_refused_when_the_preflight_is_old(filled, target, admin, settings, refused):
    age_preflight(preflight(actor=admin, **target), settings.PREFLIGHT_MAX_AGE_SECONDS + 60)
    told = refused(Blocked, "preflight", **target)
    assert [found.code for found in told.findings] == ["preflight-old"]


def test_conversion_is_refused_when_a_store_was_added_since_the_preflight(filled, target, admin, refused):
    preflight(actor=admin, **target)
    filled.add_zone("north")
    told = refused(Blocked, "preflight", **target)
    assert [found.code for found in told.findings] == ["preflight-stale"]


def test_conversion_is_refused_when_the_preflight_is_of_another_object_store(filled, target, admin, refused):
    other = preflight(actor=admin, **(target | {"url": "memory://elsewhere"}))
    refused(Conflict, "preflight", **target, preflight=other)


def test_preflight_holds_when_items_come_and_go_meanwhile(filled, target, admin):
    preflight(actor=admin, **target)
    filled.template("later", "west")
    items.delete_item(actor=admin, kind=Kind.TEMPLATE, item=Template.objects.get(name="east-only"))
    conversion = convert(actor=admin, **target)
    assert refs(Kind.TEMPLATE, store=conversion.object_store) == [("both", "Promised", 0), ("later", "Promised", 0)]


def test_conversion_is_refused_when_an_export_is_not_mounted(filled, target, admin, refused):
    preflight(actor=admin, **target)
    filled.folder("east").rename(filled.folder("gone"))
    told = refused(Blocked, "stores", **target)
    assert "nfs-east" in told.message
    assert [(found.code, found.zone) for found in told.findings] == [("export-unreachable", "east")]
    refused(Blocked, "override", **target, override=["export-unreachable"])


def test_conversion_is_refused_unless_overridden_when_a_file_cannot_be_read(filled, target, admin, refused):
    next(filled.folder("east").rglob("*.qcow2")).unlink()
    found = preflight(actor=admin, **target)
    assert found.blockers == 1
    told = refused(Blocked, "stores", **target)
    assert "override: unreadable-files" in told.remedy
    assert isinstance(convert(actor=admin, override=["unreadable-files"], **target), Conversion)


def test_conversion_is_refused_whatever_is_overridden_when_a_chain_is_broken(filled, target, admin, refused):
    SnapshotStoreFile.objects.filter(path="snapshots/2/9/delta").update(backing="full", problem="its parent full is gone")
    found = preflight(actor=admin, **target)
    assert [entry["code"] for entry in found.report["findings"] if not entry["overridable"]] == ["chain-broken"]
    told = refused(Blocked, "override", **target, override=["chain-broken"])
    assert told.findings[0].examples == ("snapshots/2/9/delta: its parent full is gone",)


def test_conversion_is_refused_when_a_chain_broke_after_the_preflight_that_is_overridden(filled, target, admin, refused):
    preflight(actor=admin, **target)
    SnapshotStoreFile.objects.filter(path="snapshots/2/9/delta").update(backing="full", problem="its parent full is gone")
    told = refused(Blocked, "stores", **target, override=["preflight-stale"])
    assert [found.code for found in told.findings] == ["chain-broken"]


def test_conversion_is_refused_when_the_object_store_is_foreign_wrong_or_away(filled, target, admin, memory_store, refused):
    preflight(actor=admin, **target)
    memory_store.marker = {"cloud": "other", "store": "other"}
    told = refused(Blocked, None, **target, override=["object-store"])
    assert "another cloud" in told.message
    memory_store.marker = None
    memory_store.password = "changed"
    refused(Blocked, None, **target)


def test_nothing_changes_when_the_transaction_fails_half_way_and_it_converts_when_tried_again(filled, target, admin, monkeypatch):
    preflight(actor=admin, **target)
    before = dump()

    def fails(*_: object) -> int:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as broken:
        broken.setattr(conversion_module, "_show_in_all_zones", fails)
        with pytest.raises(RuntimeError):
            convert(actor=admin, **target)
    assert changed(before, dump()) == set()
    conversion = convert(actor=admin, **target)
    assert conversion.counts["promised"]["template"] == 2


def test_conversion_gives_way_when_a_store_was_added_between_gate_and_transaction(filled, target, admin, monkeypatch):
    preflight(actor=admin, **target)
    original = conversion_module._switch

    def late(*arguments):
        ImageStore.objects.filter(name="nfs-west").update(role=Role.IMAGE_CACHE)
        return original(*arguments)

    monkeypatch.setattr(conversion_module, "_switch", late)
    with pytest.raises(Busy):
        convert(actor=admin, **target)
    assert open_conversion() is None
