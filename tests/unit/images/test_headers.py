"""Shows that headers of real images are read truly."""

from __future__ import annotations

import shutil
import struct
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from stores.images import (
    FileReader,
    ImageHeader,
    expected_format,
    inspect,
    qemu_img_info,
    resolve_backing,
    verify_link,
)
from tests.unit.images.helpers import SIZE, Bytes, header_of, run

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "fmt", "kind"),
    [
        ("plain.raw", "raw", ""),
        ("base.qcow2", "qcow2", ""),
        ("old.qcow2", "qcow2", ""),
        ("extended.qcow2", "qcow2", ""),
        ("dynamic.vhd", "vhd", "dynamic"),
        ("fixed.vhd", "vhd", "fixed"),
        ("disk.vhdx", "vhdx", "dynamic"),
        ("fixed.vhdx", "vhdx", "fixed"),
        ("disk.vdi", "vdi", "dynamic"),
        ("fixed.vdi", "vdi", "fixed"),
        ("disk.vmdk", "vmdk", "monolithicSparse"),
        ("stream.vmdk", "vmdk", "streamOptimized"),
        ("split.vmdk", "vmdk", "twoGbMaxExtentSparse"),
    ],
)
def test_header_is_complete_when_a_real_image_stands_alone(real: Path, name: str, fmt: str, kind: str) -> None:
    header = header_of(real / name)
    assert (header.format, header.virtual_size, header.kind) == (fmt, SIZE, kind)
    assert header.problems == ()
    assert not header.has_parent
    assert not header.encrypted


@pytest.mark.parametrize(
    "name", ["base.qcow2", "old.qcow2", "geometry.vhd", "dynamic.vhd", "disk.vhdx", "disk.vdi", "disk.vmdk", "stream.vmdk"]
)
def test_virtual_size_equals_qemus_when_read_by_our_own_reader(real: Path, name: str) -> None:
    header = header_of(real / name)
    info = qemu_img_info(real / name, header)
    assert info.virtual_size == header.virtual_size
    assert info.format == {"vhd": "vpc"}.get(header.format, header.format)


def test_backing_link_and_format_are_read_when_qcow2_has_a_parent(real: Path) -> None:
    header = header_of(real / "two.qcow2")
    assert (header.backing, header.backing_name, header.backing_format) == ("one.qcow2", "one.qcow2", "qcow2")
    assert header.problems == ()
    assert qemu_img_info(real / "two.qcow2", header).backing == "one.qcow2"


def test_absolute_backing_link_keeps_its_text_when_only_the_base_name_counts(real: Path, tmp_path: Path) -> None:
    shutil.copy(real / "base.qcow2", tmp_path)
    link = f"{tmp_path}/base.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-b", link, "-F", "qcow2", "child.qcow2", cwd=tmp_path)
    header = header_of(tmp_path / "child.qcow2")
    assert (header.backing, header.backing_name) == (link, "base.qcow2")
    assert resolve_backing(header, {"base.qcow2", "child.qcow2"}) == "base.qcow2"
    assert resolve_backing(header, {"child.qcow2"}) is None


def test_problem_is_named_when_qcow2_data_is_in_another_file(real: Path) -> None:
    header = header_of(real / "external.qcow2")
    assert header.external_data == ("away.raw",)
    assert "another file" in header.problems[0]


@pytest.mark.parametrize("name", ["aes.qcow2", "luks.raw"])
def test_encryption_is_seen_when_image_is_encrypted(real: Path, name: str) -> None:
    assert header_of(real / name).encrypted


def test_vmdk_parent_is_linked_by_content_id_when_it_is_a_child(real: Path) -> None:
    child, parent = header_of(real / "child.vmdk"), header_of(real / "disk.vmdk")
    assert child.backing == "disk.vmdk"
    assert child.parent_unique_id == parent.unique_id is not None
    assert verify_link(child, parent) == ()


def test_extents_are_external_when_vmdk_is_a_text_descriptor(real: Path) -> None:
    assert header_of(real / "split.vmdk").external_data == ("split-s001.vmdk",)
    extent = header_of(real / "split-s001.vmdk")
    assert extent.kind == "extent"
    assert "described elsewhere" in extent.problems[0]


def test_iso_is_recognised_and_its_cut_is_found_when_bytes_are_missing(real: Path) -> None:
    whole = (real / "disk.iso").read_bytes()
    header = inspect(Bytes(whole))
    assert (header.format, header.virtual_size, header.problems) == ("iso", len(whole), ())
    assert "cut short" in inspect(Bytes(whole[: len(whole) // 2])).problems[0]


def test_ova_lists_members_and_disk_size_when_read(real: Path) -> None:
    header = header_of(real / "machine.ova")
    assert (header.format, header.virtual_size, header.problems) == ("ova", SIZE, ())
    assert header.members == (("machine.ovf", 11), ("machine-disk1.vmdk", (real / "stream.vmdk").stat().st_size))


def test_disks_of_an_ova_are_read_no_further_than_one_header_altogether() -> None:
    """Each says that its directory is as long as any: the archive is listed all the same."""
    head = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, 0, 128 * 250_000, 128, 0, 0, 1, 0, 1)
    disk = head.ljust(512, b"\0") + bytes(1_000_000)
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(16):
            member = tarfile.TarInfo(f"{number}.vmdk")
            member.size = len(disk)
            archive.addfile(member, BytesIO(disk))
        archive.addfile(tarfile.TarInfo("machine.ovf"), BytesIO())
    header = inspect(Bytes(out.getvalue()))
    assert (header.format, header.virtual_size, len(header.members), header.problems) == ("ova", None, 17, ())


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_member_names_are_whole_when_tar_is_pax_or_gnu(form: int) -> None:
    name = "d" * 150 + ".ovf"
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, BytesIO(b"abc"))
        archive.addfile(tarfile.TarInfo("short"), BytesIO())
    header = inspect(Bytes(out.getvalue()))
    assert header.members == ((name, 3), ("short", 0))
    assert header.format == "ova"


def test_cut_is_found_when_ova_ends_early(real: Path) -> None:
    data = (real / "machine.ova").read_bytes()
    assert any("cut short" in text for text in inspect(Bytes(data[: len(data) // 2])).problems)


@pytest.mark.parametrize(("suffix", "fmt"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_compression_is_recognised_when_file_is_packed(real: Path, tmp_path: Path, suffix: str, fmt: str) -> None:
    program = {"gzip": "gzip", "bzip2": "bzip2", "xz": "xz"}[fmt]
    (tmp_path / "file").write_bytes(b"content" * 100)
    run(program, "file", cwd=tmp_path)
    assert header_of(tmp_path / f"file.{suffix}").format == fmt


@pytest.mark.parametrize(
    "name",
    [
        "base.qcow2",
        "old.qcow2",
        "extended.qcow2",
        "dynamic.vhd",
        "fixed.vhd",
        "disk.vdi",
        "stream.vmdk",
        "machine.ova",
        "disk.iso",
    ],
)
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_cut_is_found_when_the_end_is_missing(real: Path, name: str, part: float) -> None:
    data = (real / name).read_bytes()
    expect = expected_format(name)
    assert inspect(Bytes(data), expect=expect).problems == ()
    assert inspect(Bytes(data[: int(len(data) * part)]), expect=expect).problems


@pytest.mark.parametrize(("name", "expect"), [("plain.raw", "qcow2"), ("base.qcow2", "vhd"), ("disk.iso", "ova")])
def test_problem_is_named_when_format_is_not_the_promised_one(real: Path, name: str, expect: str) -> None:
    with FileReader(real / name) as file:
        assert f"expected to be {expect}" in inspect(file, expect=expect).problems[-1]


def test_format_is_promised_by_the_suffix_when_cloudstack_knows_it() -> None:
    names = {"a.QCOW2": "qcow2", "a.img": "raw", "a.vhdx": "vhdx", "a.vhd": "vhd", "0f0e": None, "a.txt": None}
    assert {name: expected_format(name) for name in names} == names


def test_raw_disk_is_not_probed_when_it_is_known_to_be_raw(real: Path) -> None:
    pretender = (real / "one.qcow2").read_bytes()
    assert inspect(Bytes(pretender)).backing == "base.qcow2"
    assert inspect(Bytes(pretender), expect="raw") == ImageHeader("raw", len(pretender))


def test_empty_file_is_a_problem() -> None:
    assert inspect(Bytes(b"")).problems == ("the file is empty",)
