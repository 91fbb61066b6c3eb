"""A later scan tells how an export drifted from the rows, and never overwrites a proof."""

from __future__ import annotations

import pytest
from django.db.models.functions import Now

from stores.models import KINDS, ImageStore, Template, Volume
from stores.services import holds
from stores.services.image_stores import add_store
from stores.services.scan import run, scan_store
from stores.states import Kind, Proof, RefState, Role
from tests.demo import damage
from tests.stores.scan.helpers import paths, ref_of, rows

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


def test_file_is_missing_when_it_is_gone_and_known_again_when_it_is_back(operator, region, zone1):
    scan_store(actor=operator, store=zone1)
    item = region.item("zone1", "301")
    image = region.image(item)
    image.rename(region.root / "aside")
    report = scan_store(actor=operator, store=zone1)
    path = next(file.path for file in item.files if file.path.endswith(".qcow2"))
    assert paths(report.missing) == [path]
    assert report.orphaned.count == 0
    ref = ref_of(zone1, item)
    assert (ref.state, ref.proof) == (RefState.READY, Proof.ADOPTED)
    assert ref.error_str.startswith("missing")
    assert ref.files.get(path=path).problem.startswith("missing")
    before = rows()
    assert paths(scan_store(actor=operator, store=zone1).missing) == [path]
    assert rows() == before
    (region.root / "aside").rename(image)
    report = scan_store(actor=operator, store=zone1)
    assert report.missing.count == 0
    ref = ref_of(zone1, item)
    assert (ref.error_str, ref.files.get(path=path).problem) == ("", "")


def test_file_is_missing_when_a_link_took_its_place(operator, region, zone1):
    scan_store(actor=operator, store=zone1)
    image = region.image(region.chain("zone1", 11)[0])
    image.unlink()
    image.symlink_to("/etc/passwd")
    report = scan_store(actor=operator, store=zone1)
    path = str(image.relative_to(region.zones["zone1"]))
    assert path in paths(report.unknown)
    assert paths(report.missing) == [path]
    assert "no regular file" in report.missing.examples[0]["message"]


def test_row_follows_the_file_when_it_changed_and_nobody_had_proven_it(operator, region, zone1):
    scan_store(actor=operator, store=zone1)
    item = region.item("zone1", "303")
    image = region.image(item)
    with image.open("ab") as file:
        file.write(bytes(1 << 20))
    report = scan_store(actor=operator, store=zone1)
    assert paths(report.changed) == [str(image.relative_to(region.zones["zone1"]))]
    assert report.corrupt.count == 0
    ref = ref_of(zone1, item)
    assert ref.size == item.size + (1 << 20)
    assert ref.item.size == image.stat().st_size
    assert ref.files.get(path__endswith=".raw").size == image.stat().st_size
    assert scan_store(actor=operator, store=zone1).changed.count == 0


def test_proof_stays_and_change_is_reported_when_the_bytes_were_proven(operator, region, zone1):
    scan_store(actor=operator, store=zone1)
    item = region.item("zone1", "303")
    ref = ref_of(zone1, item)
    ref.files.update(sha256="a" * 64)
    before = ref.files.get(path__endswith=".raw")
    path = damage.change_content(region, item)
    for _ in range(2):
        report = scan_store(actor=operator, store=zone1)
        assert paths(report.changed) == [str(path.relative_to(region.zones["zone1"]))]
        row = ref.files.get(path__endswith=".raw")
        assert (row.sha256, row.version, row.size, row.proof) == (before.sha256, before.version, before.size, before.proof)
        assert row.problem.startswith("changed: ")
    assert ref_of(zone1, item).error_str.startswith("changed: ")


def test_proof_elsewhere_protects_the_rows_when_the_original_changes(operator, admin, region, zone1):
    scan_store(actor=operator, store=zone1)
    item = region.item("zone1", "303")
    ref = ref_of(zone1, item)
    ImageStore.objects.filter(pk=zone1.pk).update(role=Role.IMAGE_CACHE)
    objects = add_store(actor=admin, name="objects", provider="Memory", url="memory://objects", details={})
    KINDS[Kind.VOLUME].ref.objects.create(
        store=objects, item=ref.item, state=RefState.READY, proof=Proof.VERIFIED, install_path=ref.install_path
    )
    before = ref.files.get(path__endswith=".raw")
    damage.change_content(region, item)
    zone1.refresh_from_db()
    report = scan_store(actor=operator, store=zone1)
    assert (report.changed.count, report.foreign_writes.count) == (1, 1)
    row = ref.files.get(path__endswith=".raw")
    assert row.version == before.version
    assert row.problem.startswith("changed: ")


def test_stray_files_are_orphans_when_no_ref_knows_them(operator, region, zone1):
    root = region.zones["zone1"]
    empty = root / "template" / "tmpl" / "2" / "999"
    empty.mkdir()
    only_text = root / "volumes" / "2" / "998"
    only_text.mkdir()
    (only_text / "volume.properties").write_text("filename=gone.qcow2\n")
    beside = region.image(region.item("zone1", "201")).parent / "leftover.qcow2"
    beside.write_bytes(b"x" * 100)
    names = {"template/tmpl/2/999/", "volumes/2/998/", str(beside.relative_to(root))}
    for _ in range(2):
        report = scan_store(actor=operator, store=zone1)
        assert set(paths(report.orphaned)) == names
    late = region.image(region.item("zone1", "301")).parent / "late.qcow2"
    late.write_bytes(b"y")
    report = scan_store(actor=operator, store=zone1)
    assert set(paths(report.orphaned)) == names | {str(late.relative_to(root))}
    assert report.opened < 5
    assert not Template.objects.filter(upstream_id=999).exists()


def test_new_snapshot_is_linked_when_it_appears_after_the_first_scan(operator, region, zone1):
    chain = region.chain("zone1", 11)
    last = region.image(chain[-1])
    last.rename(region.root / "later")
    assert scan_store(actor=operator, store=zone1).complete
    (region.root / "later").rename(last)
    report = scan_store(actor=operator, store=zone1)
    assert (report.adopted, report.changed.count) == (1, 0)
    item = ref_of(zone1, chain[-1]).item
    assert (item.parent.path, item.depth) == (chain[-2].name, len(chain) - 1)


def test_new_item_is_a_foreign_write_and_promised_when_the_store_is_converted(operator, admin, region, zone1):
    late = region.item("zone1", "301")
    folder = region.image(late).parent
    folder.rename(region.root / "later")
    scan_store(actor=operator, store=zone1)
    ImageStore.objects.filter(pk=zone1.pk).update(role=Role.IMAGE_CACHE)
    objects = add_store(actor=admin, name="objects", provider="Memory", url="memory://objects", details={})
    zone1.refresh_from_db()
    (region.root / "later").rename(folder)
    report = scan_store(actor=operator, store=zone1)
    assert paths(report.foreign_writes) == ["volumes/2/301"]
    ref = ref_of(zone1, late)
    assert ref.ref_cnt == 1
    promised = KINDS[Kind.VOLUME].ref.objects.get(store=objects)
    assert (promised.item_id, promised.state, promised.install_path, promised.proof) == (ref.item_id, RefState.PROMISED, "", "")
    assert holds.recount() == []
    assert scan_store(actor=operator, store=zone1).foreign_writes.count == 0


def test_item_is_left_alone_when_it_is_being_written_or_deleted(operator, region, zone1):
    scan_store(actor=operator, store=zone1)
    ref = ref_of(zone1, region.item("zone1", "301"))
    model = KINDS[Kind.VOLUME].ref
    for state in (RefState.DESTROYING, RefState.CREATING):
        model.objects.filter(pk=ref.pk).update(state=state)
        report = scan_store(actor=operator, store=zone1)
        assert paths(report.in_flight) == ["volumes/2/301"]
        assert report.orphaned.count == report.missing.count == 0
        assert model.objects.get(pk=ref.pk).state == state
    download = region.zones["zone1"] / "template" / "tmpl" / "2" / "201" / "dnld123tmp_"
    download.write_bytes(b"half")
    assert f"template/tmpl/2/201/{download.name}" in paths(scan_store(actor=operator, store=zone1).in_flight)


def test_item_is_not_adopted_anew_when_it_was_deleted_during_the_scan(operator, region, zone1, monkeypatch):
    scan_store(actor=operator, store=zone1)
    ref = ref_of(zone1, region.item("zone1", "301"))

    def delete(name: str) -> None:
        KINDS[Kind.VOLUME].ref.objects.filter(pk=ref.pk).update(state=RefState.DESTROYED, updated=Now(), update_count=9)
        Volume.objects.filter(pk=ref.item_id).update(removed=Now())

    damage.change_content(region, region.item("zone1", "301"))
    monkeypatch.setattr(run, "reach", delete)
    report = scan_store(actor=operator, store=zone1)
    assert paths(report.in_flight) == ["volumes/2/301"]
    assert Volume.objects.filter(upstream_id=301).count() == 1
