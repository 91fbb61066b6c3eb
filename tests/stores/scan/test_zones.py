"""What lies on two exports is one item only where both agree."""

from __future__ import annotations

import shutil
import subprocess
import uuid

import pytest

from stores.models import Snapshot, Template, Volume
from stores.services.scan import run, scan_store
from stores.states import Kind
from tests.stores.scan.helpers import paths

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize("change", ["unique name", "size", "format"])
def test_conflict_is_reported_and_nothing_merged_when_zones_disagree(operator, region, zone1, zone2, change):
    scan_store(actor=operator, store=zone1)
    image = region.image(region.item("zone2", "201"))
    properties = image.parent / "template.properties"
    text = properties.read_text()
    if change == "unique name":
        text = text.replace(f"uniquename={region.item('zone2', '201').name}", "uniquename=another")
    elif change == "size":
        subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", image, "+1M"], check=True)
    else:
        raw = image.with_suffix(".raw")
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
        image.unlink()
        text = text.replace("qcow2", "raw")
    properties.write_text(text)
    for _ in range(2):
        report = scan_store(actor=operator, store=zone2)
        assert paths(report.conflicts) == ["template/tmpl/2/201"]
        assert change in report.conflicts.examples[0]["message"]
    template = Template.objects.get(upstream_id=201)
    assert [ref.store_id for ref in template.refs.all()] == [zone1.pk]
    assert template.zone_refs.count() == 1


def test_conflict_is_reported_when_volumes_of_one_id_have_other_files(operator, region, zone1, zone2):
    scan_store(actor=operator, store=zone1)
    ours = region.image(region.item("zone1", "301"))
    theirs = region.zones["zone2"] / "volumes" / "2" / "301"
    theirs.mkdir(parents=True)
    shutil.copy2(ours, theirs / f"{uuid.UUID(int=5)}.qcow2")
    report = scan_store(actor=operator, store=zone2)
    assert paths(report.conflicts) == ["volumes/2/301"]
    assert "file name" in report.conflicts.examples[0]["message"]
    assert Volume.objects.get(upstream_id=301).refs.count() == 1


def test_chain_above_a_conflict_is_left_out_with_it_when_zones_disagree(operator, region, zone1, zone2):
    scan_store(actor=operator, store=zone1)
    chain = region.chain("zone1", 11)
    theirs = region.zones["zone2"] / "snapshots" / "2" / "11"
    shutil.copytree(region.image(chain[0]).parent, theirs)
    middle = theirs / chain[2].name
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", middle], check=True)
    report = scan_store(actor=operator, store=zone2)
    assert set(paths(report.conflicts)) == {f"snapshots/2/11/{item.name}" for item in chain[2:]}
    assert "parent" in report.conflicts.examples[0]["message"]
    for number, item in enumerate(chain):
        found = Snapshot.objects.get(path=item.name)
        assert found.depth == number
        assert found.refs.count() == (2 if number < 2 else 1)


def test_two_scans_end_with_one_item_when_zones_have_the_same_template(operator, region, zone1, zone2, monkeypatch):
    calls = iter([False, True])

    def other_zone_first(name: str) -> None:
        if name == "scan.read" and next(calls, True) is False:
            scan_store(actor=operator, store=zone2)

    monkeypatch.setattr(run, "reach", other_zone_first)
    scan_store(actor=operator, store=zone1)
    assert Template.objects.get(upstream_id=201).refs.count() == 2


def test_batch_is_written_once_more_when_another_scan_inserted_the_item_first(operator, region, zone1, zone2, monkeypatch):
    scan_store(actor=operator, store=zone2)
    real = run.rows._Kind._items_by_key
    blind = iter([True])

    def not_yet_visible(self, found):
        return {} if self.kind is Kind.TEMPLATE and next(blind, False) else real(self, found)

    monkeypatch.setattr(run.rows._Kind, "_items_by_key", not_yet_visible)
    report = scan_store(actor=operator, store=zone1)
    assert report.adopted == len(region.of("zone1"))
    assert next(blind, None) is None
    assert Template.objects.get(upstream_id=201).refs.count() == 2
