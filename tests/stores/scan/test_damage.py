"""Damage is named and hostile entries are never followed, whatever an export holds."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import shutil
import struct
import subprocess
import tarfile
import uuid

import pytest
from django.utils import timezone

from stores import layout
from stores.drivers import confined
from stores.drivers.base import ObjectInfo
from stores.models import Snapshot, Template
from stores.services.scan import scan_store
from stores.services.scan.listing import Folder
from stores.services.scan.reading import read_folder
from stores.services.scan.report import printable
from stores.states import RefState
from tests.demo import damage
from tests.stores.scan.helpers import paths, ref_of, rows

pytestmark = [pytest.mark.db, pytest.mark.django_db(transaction=True)]


def test_broken_chain_is_named_and_its_items_adopted_when_a_parent_is_gone(operator, region, zone1):
    chain = region.chain("zone1", 21)
    gone = damage.remove_parent(region, chain[2])
    report = scan_store(actor=operator, store=zone1)
    assert report.adopted == len(region.of("zone1")) - 1
    broken = ref_of(zone1, chain[2])
    assert gone.name in broken.files.get().problem
    assert gone.name in broken.error_str
    assert (broken.item.parent, broken.item.depth) == (None, 0)
    child = ref_of(zone1, chain[3])
    assert child.item.parent_id == broken.item_id
    assert gone.name in child.files.get().problem
    assert set(paths(report.corrupt)) == {file.path for item in chain[2:] for file in item.files}


def test_chain_is_reported_broken_when_the_parent_goes_after_adoption(operator, region, zone1):
    scan_store(actor=operator, store=zone1)
    chain = region.chain("zone1", 11)
    gone = damage.remove_parent(region, chain[-1])
    report = scan_store(actor=operator, store=zone1)
    assert paths(report.missing) == [str(gone.relative_to(region.zones["zone1"]))]
    assert paths(report.corrupt) == [file.path for file in chain[-1].files]
    assert gone.name in ref_of(zone1, chain[-1]).files.get().problem


def test_child_is_reported_when_its_vhd_parent_is_another_disk(operator, region, zone1):
    chain = region.chain("zone1", 21)
    damage.swap_parent(region, chain[1])
    report = scan_store(actor=operator, store=zone1)
    assert set(paths(report.corrupt)) >= {file.path for item in chain[1:] for file in item.files}
    assert "written over id" in ref_of(zone1, chain[1]).files.get().problem


def test_impossible_sizes_are_problems_of_their_items_and_end_no_scan(operator, region, zone1):
    """Two disks, each as large as a number can say."""
    folder = region.zones["zone1"] / "snapshots" / "2" / "77" / "of-vmware"
    folder.mkdir(parents=True)
    for number in range(2):
        header = struct.pack("<4sIIQQQQ", b"KDMV", 1, 0, 2**54 - 1, 128, 0, 0)
        (folder / f"disk-{number}.vmdk").write_bytes(header.ljust(1024, b"\0"))
    report = scan_store(actor=operator, store=zone1)
    assert report.adopted == len(region.of("zone1")) + 1
    assert "snapshots/2/77/of-vmware" in paths(report.corrupt)
    found = Snapshot.objects.get(path="of-vmware")
    assert (found.size, "which is impossible" in found.refs.get().error_str) == (None, True)


def test_files_that_are_impossible_together_are_no_item():
    place = layout.parse("snapshots/2/77/of-vmware/a.ovf")
    entries = {
        key: ObjectInfo(key, 2**62, timezone.now(), "v")
        for key in (f"snapshots/2/77/of-vmware/{name}" for name in ("a.ovf", "b.nvram", "c.mf"))
    }
    contents = read_folder(None, Folder(place, entries))
    assert contents.items == []
    assert [path for path, _ in contents.unreadable] == ["snapshots/2/77/of-vmware"]


def test_damaged_header_is_a_problem_of_its_file_when_scanned(operator, region, zone1):
    items = [region.item("zone1", "301"), region.chain("zone1", 11)[0], region.item("zone1", "205")]
    for item in items:
        damage.truncate_header(region, item)
    cut = region.item("zone1", "201")
    damage.cut_tail(region, cut)
    report = scan_store(actor=operator, store=zone1)
    for item in [*items, cut]:
        ref = ref_of(zone1, item)
        assert ref.state == RefState.READY
        assert any(file.problem for file in ref.files.all()), item
        assert ref.error_str
    assert "cut short" in ref_of(zone1, cut).error_str
    assert report.corrupt.count >= 4
    again = scan_store(actor=operator, store=zone1)
    assert again.opened == 0
    assert set(paths(again.corrupt)) == set(paths(report.corrupt))


def test_properties_are_judged_by_cloudstacks_rule_when_they_are_damaged(operator, region, zone1, tmp_path):
    damage.corrupt_properties(region, region.item("zone1", "202"))
    damage.point_properties_outside(region, region.item("zone1", "203"))
    damage.remove_properties(region, region.item("zone1", "201"))
    report = scan_store(actor=operator, store=zone1)
    corrupt, outside, without = (ref_of(zone1, region.item("zone1", number)) for number in ("202", "203", "201"))
    assert "corrupt: format vhd" in corrupt.files.get(path__endswith=".properties").problem
    assert "not a plain file name" in outside.files.get(path__endswith=".properties").problem
    assert all(file.path.startswith("template/tmpl/2/203/") for file in outside.files.all())
    assert without.item.unique_name == region.image(region.item("zone1", "201")).stem
    assert "template.properties is missing" in without.error_str
    assert report.adopted == len(region.of("zone1"))
    assert not any(Template.objects.filter(name__contains="passwd"))


def test_circle_and_outward_links_are_problems_when_read(operator, region, zone1):
    folder = region.zones["zone1"] / "snapshots" / "2" / "77"
    folder.mkdir()
    names = [str(uuid.UUID(int=number)) for number in range(4)]

    def overlay(name: str, backing: str) -> None:
        subprocess.run(
            ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, folder / name, "1M"], check=True
        )

    overlay(names[0], names[1])
    overlay(names[1], names[0])
    overlay(names[2], "../77/" + names[0])
    overlay(names[3], "/etc/passwd")
    scan_store(actor=operator, store=zone1)
    found = {item.path: item for item in Snapshot.objects.filter(volume_upstream_id=77)}
    assert set(found) == set(names)
    assert found[names[0]].parent is found[names[1]].parent is None
    problems = [found[name].refs.get().error_str for name in names]
    assert "also its child" in problems[0]
    assert "also its child" in problems[1]
    assert "leads out of the directory" in problems[2]
    assert "'/etc/passwd' is not in this directory" in problems[3]


def test_strange_entries_are_named_and_never_followed_when_scanned(operator, region, zone1, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    strange = [
        damage.escaping_symlink(region),
        damage.escaping_folder(region, outside),
        damage.fifo(region),
        damage.non_utf8_name(region),
    ]
    newline = region.zones["zone1"] / "snapshots" / "9" / "95" / "two\nlines"
    newline.parent.mkdir(parents=True)
    newline.write_bytes(b"x")
    inner = region.zones["zone1"] / "volumes" / "2" / "301" / "deeper" / "still"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    odd_ids = region.zones["zone1"] / "volumes" / "2" / "99999999999999999999" / "v.qcow2"
    odd_ids.parent.mkdir()
    odd_ids.write_text("x")
    long = region.zones["zone1"] / "snapshots" / "9" / "96" / ("n" * 255)
    long.parent.mkdir(parents=True)
    long.write_bytes(b"raw content of a snapshot with a long name")
    root = region.zones["zone1"]
    report = scan_store(actor=operator, store=zone1)
    expected = {printable(str(path.relative_to(root))) for path in [*strange, newline, odd_ids]}
    assert set(paths(report.unknown)) == expected | {"notes-from-admin.txt"}
    assert paths(report.orphaned) == ["volumes/2/301/deeper/still/file"]
    assert Snapshot.objects.get(account_id=9).path == "n" * 255
    json.dumps(report.as_json()).encode()
    assert "\n" not in "".join(paths(report.unknown))


def test_item_is_adopted_with_a_problem_when_the_worker_may_not_read_it(operator, region, zone1, monkeypatch):
    item = region.item("zone1", "303")
    path = region.image(item)
    real = confined.open_file

    def refuse(parent: int, name: str) -> int:
        if name == path.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(parent, name)

    monkeypatch.setattr(confined, "open_file", refuse)
    report = scan_store(actor=operator, store=zone1)
    assert paths(report.unreadable) == [str(path.relative_to(region.zones["zone1"]))]
    assert "unreadable" in ref_of(zone1, item).files.get(path__endswith=".raw").problem


def test_unpacked_members_belong_to_the_item_when_they_lie_beside_their_ova(operator, region, zone1):
    item = region.item("zone1", "205")
    image = region.image(item)
    with tarfile.open(image) as archive:
        members = archive.getnames()
        archive.extractall(image.parent, filter="data")
    report = scan_store(actor=operator, store=zone1)
    assert report.orphaned.count == 0
    found = {path.rpartition("/")[2] for path in ref_of(zone1, item).files.values_list("path", flat=True)}
    assert found == {*members, image.name, "template.properties"}


@pytest.mark.parametrize("seed", range(6))
def test_second_scan_says_the_same_and_writes_nothing_when_an_export_is_damaged_anyhow(operator, region, zone1, tmp_path, seed):
    rng = random.Random(seed)
    if seed % 2:
        scan_store(actor=operator, store=zone1)
    items = region.of("zone1")
    templates = [item for item in items if item.kind == "template"]
    chained = [item for item in items if item.parent]
    for name in rng.sample(
        ["cut", "header", "parent", "corrupt", "outside", "without", "link", "fifo", "name", "change", "lost"], 5
    ):
        with contextlib.suppress(FileNotFoundError, ValueError):  # an earlier damage took what this one needs
            match name:
                case "cut":
                    damage.cut_tail(region, rng.choice(items))
                case "header":
                    damage.truncate_header(region, rng.choice(items))
                case "parent":
                    damage.remove_parent(region, rng.choice(chained))
                case "corrupt":
                    damage.corrupt_properties(region, rng.choice(templates))
                case "outside":
                    damage.point_properties_outside(region, rng.choice(templates))
                case "without":
                    damage.remove_properties(region, rng.choice(templates))
                case "link":
                    damage.escaping_symlink(region)
                case "fifo":
                    damage.fifo(region)
                case "name":
                    damage.non_utf8_name(region)
                case "change":
                    damage.change_content(region, rng.choice(items))
                case "lost":
                    shutil.rmtree(region.image(rng.choice(templates)).parent)
    first = scan_store(actor=operator, store=zone1)
    before = rows()
    second = scan_store(actor=operator, store=zone1)
    assert rows() == before
    for name in ("missing", "orphaned", "corrupt", "unknown", "conflicts", "unreadable"):
        assert sorted(paths(getattr(second, name))) == sorted(paths(getattr(first, name))), name
    assert second.found == first.found
    assert (second.adopted, second.changed.count, second.opened) == (0, 0, 0)
