"""Shows that the demo region is what it claims: real images, true hashes, chains whose members differ, and fast."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from stores.images import (
    FileReader,
    TemplateProperties,
    chain_of,
    check_vhd,
    expected_format,
    inspect,
    qemu_img_check,
    verify_link,
)
from tests.demo import damage, vhd
from tests.demo.build import TEMPLATE_IN_BOTH_ZONES, BuiltItem, BuiltRegion, build_region, copy_region

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> BuiltRegion:
    return build_region(tmp_path_factory.mktemp("region"), scale="tiny")


@pytest.fixture
def broken(region: BuiltRegion, tmp_path: Path) -> BuiltRegion:
    """A copy that a test may damage."""
    return copy_region(region, tmp_path / "copy")


def header_of(path: Path):
    with FileReader(path) as file:
        return inspect(file, expect=expected_format(path.name))


def vhd_chain(region: BuiltRegion) -> list[BuiltItem]:
    return region.chain("zone1", 21)


def test_every_listed_file_has_its_hash_when_read_from_disk(region: BuiltRegion) -> None:
    for item in region.items:
        assert item.files
        for file in item.files:
            data = (region.zones[item.zone] / file.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


def test_nothing_is_on_the_exports_but_what_is_listed(region: BuiltRegion) -> None:
    listed = {f"{item.zone}/{file.path}" for item in region.items for file in item.files}
    found = {str(path.relative_to(region.root)) for zone in region.zones.values() for path in zone.rglob("*") if path.is_file()}
    assert found == listed | set(region.skipped) | set(region.foreign)
    assert len(region.skipped) == 3


def test_every_image_is_sound_when_its_own_program_looks(region: BuiltRegion) -> None:
    checked = set()
    for item in region.items:
        path = region.image(item)
        header = header_of(path)
        assert header.problems == (), path
        assert header.format == {"ova": "vmdk"}.get(item.format, item.format) if item.kind == "snapshot" else item.format
        if header.format in ("qcow2", "vmdk"):
            assert qemu_img_check(path, header).sound
        with FileReader(path) as file:
            assert check_vhd(file) == []
        checked.add((item.kind, header.format))
    assert checked == {
        *(("template", fmt) for fmt in ("qcow2", "vhd", "raw", "ova")),
        ("iso", "iso"),
        *(("volume", fmt) for fmt in ("qcow2", "vhd", "raw")),
        *(("snapshot", fmt) for fmt in ("qcow2", "vhd", "vmdk")),
    }


def test_properties_are_sound_when_beside_every_template(region: BuiltRegion) -> None:
    for item in [*region.of("zone1", "template"), *region.of("zone1", "iso"), *region.of("zone2", "template")]:
        path = region.image(item)
        read = TemplateProperties.from_bytes((path.parent / "template.properties").read_bytes())
        assert (read.problems, read.corrupt) == ((), False)
        assert (read.filename, read.size, read.uniquename, str(read.id)) == (
            path.name,
            path.stat().st_size,
            item.name,
            item.upstream_id,
        )
        assert [entry.format for entry in read.formats] == [item.format]
        assert read.virtualsize == header_of(path).virtual_size


def test_template_is_identical_when_in_both_zones(region: BuiltRegion) -> None:
    one, two = (region.item(zone, TEMPLATE_IN_BOTH_ZONES) for zone in region.zones)
    assert one.files == two.files
    assert one.name == two.name


@pytest.mark.parametrize(("zone", "volume", "depth"), [("zone1", 11, 6), ("zone2", 51, 5)])
def test_kvm_chain_is_whole_and_members_differ_when_read(
    region: BuiltRegion, tmp_path: Path, zone: str, volume: int, depth: int
) -> None:
    items = region.chain(zone, volume)
    paths = [region.image(item) for item in items]
    assert not any(path.suffix for path in paths)
    headers = {path.name: header_of(path) for path in paths}
    chain = chain_of(paths[-1].name, headers)
    assert (chain.members, chain.problems) == (tuple(path.name for path in reversed(paths)), ())
    assert len(items) == depth
    assert [item.parent for item in items[1:]] == [item.upstream_id for item in items[:-1]]
    if zone == "zone2":
        assert all(
            str(header.backing).startswith("/mnt/SecStorage/") for name, header in headers.items() if name != paths[0].name
        )
        return
    contents = set()
    for path in paths:
        out = tmp_path / path.name
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, out], check=True)
        contents.add(hashlib.sha256(out.read_bytes()).digest())
    assert len(contents) == depth


def test_xen_chain_is_whole_and_members_differ_when_read(region: BuiltRegion) -> None:
    paths = [region.image(item) for item in vhd_chain(region)]
    chain = chain_of(paths[-1].name, {path.name: header_of(path) for path in paths})
    assert (chain.depth, chain.problems) == (4, ())
    assert len({vhd.read_chain(path) for path in paths}) == 4


def test_volume_has_holes_when_it_is_sparse(region: BuiltRegion) -> None:
    path = region.image(region.item("zone1", "303"))
    assert path.stat().st_blocks * 512 < path.stat().st_size


def test_region_is_small_and_the_same_items_when_built_from_one_seed(region: BuiltRegion, tmp_path: Path) -> None:
    assert region.size < 8_000_000
    again = build_region(tmp_path, scale="tiny")
    assert [(i.zone, i.upstream_id, i.name, i.parent) for i in again.items] == [
        (i.zone, i.upstream_id, i.name, i.parent) for i in region.items
    ]
    other = build_region(tmp_path, scale="tiny", seed=2)
    assert [i.name for i in other.items] != [i.name for i in region.items]


def test_tree_is_reused_when_intact_and_rebuilt_when_not(region: BuiltRegion, tmp_path: Path) -> None:
    copy = copy_region(region, tmp_path / "copy")
    assert build_region(copy.root, scale="tiny") == copy
    assert sorted(os.listdir(copy.root)) == ["region.json", "zone1", "zone2"]
    victim = damage.change_content(copy, copy.items[0])
    before = hashlib.sha256(victim.read_bytes()).hexdigest()
    rebuilt = build_region(copy.root, scale="tiny")
    assert rebuilt.items[0].files == copy.items[0].files
    assert hashlib.sha256(victim.read_bytes()).hexdigest() != before


def test_build_is_refused_when_the_folder_holds_someones_zones(tmp_path: Path) -> None:
    (tmp_path / "zone1").mkdir()
    (tmp_path / "zone1" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="empty folder"):
        build_region(tmp_path, scale="tiny")
    assert (tmp_path / "zone1" / "precious").exists()


def test_build_is_finished_when_an_earlier_one_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "region.unfinished").touch()
    (tmp_path / "zone1" / "half").mkdir(parents=True)
    region = build_region(tmp_path, scale="tiny")
    assert not (tmp_path / "zone1" / "half").exists()
    assert build_region(tmp_path, scale="tiny") == region


def test_header_damage_is_seen_when_an_image_is_cut(broken: BuiltRegion) -> None:
    for upstream_id in ("201", "202", "205", "204", "301", "302"):
        assert header_of(damage.cut_tail(broken, broken.item("zone1", upstream_id))).problems, upstream_id
    assert header_of(damage.truncate_header(broken, broken.item("zone1", "3"))).problems
    assert header_of(damage.truncate_header(broken, vhd_chain(broken)[2], 600)).problems


def test_chain_damage_is_seen_when_a_parent_is_gone_or_another(broken: BuiltRegion) -> None:
    items = vhd_chain(broken)
    swapped = damage.swap_parent(broken, items[1])
    assert header_of(swapped).problems == ()
    assert verify_link(header_of(broken.image(items[1])), header_of(swapped))
    gone = damage.remove_parent(broken, items[3])
    headers = {path.name: header_of(path) for path in gone.parent.iterdir()}
    assert gone.name in chain_of(broken.image(items[3]).name, headers).problems[0]


def test_properties_damage_is_seen_when_read(broken: BuiltRegion) -> None:
    item = broken.item("zone1", "203")
    assert TemplateProperties.from_bytes(damage.point_properties_outside(broken, item).read_bytes()).filename is None
    assert TemplateProperties.from_bytes(damage.corrupt_properties(broken, broken.item("zone1", "202")).read_bytes()).corrupt
    assert not damage.remove_properties(broken, item).exists()


def test_strange_files_are_what_they_claim_when_placed(broken: BuiltRegion, tmp_path: Path) -> None:
    assert damage.escaping_symlink(broken).is_symlink()
    assert damage.escaping_folder(broken, tmp_path).is_symlink()
    assert stat.S_ISFIFO(damage.fifo(broken).stat().st_mode)
    assert b"\xe9" in os.fsencode(damage.non_utf8_name(broken))
    path = damage.make_unreadable(broken, broken.items[0])
    head = shutil.which("head")
    assert head
    refused = subprocess.run([head, "-c1", path], user="nobody", capture_output=True, check=False)
    assert refused.returncode != 0
