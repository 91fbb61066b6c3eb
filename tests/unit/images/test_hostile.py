"""Shows that hostile bytes can neither raise, nor be read out of bounds, nor mislead."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stores.images import (
    QemuRefused,
    base_name,
    check_vhd,
    inspect,
    is_plain_name,
    qemu_img_info,
)
from tests.unit.images.helpers import SAMPLES, SIZE, Bytes

pytestmark = pytest.mark.unit


def _qcow2(**fields: int) -> bytes:
    values = {
        "version": 3,
        "link_at": 0,
        "link_size": 0,
        "bits": 16,
        "size": SIZE,
        "l1": 1,
        "l1_at": 3 << 16,
        "refs_at": 1 << 16,
        "refs": 1,
    } | fields
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb", values["version"], values["link_at"], values["link_size"], values["bits"], values["size"],
        0, values["l1"], values["l1_at"], values["refs_at"], values["refs"], 0, 0,
    )  # fmt: skip
    return (head + struct.pack(">QQQII", values.get("features", 0), 0, 0, 4, 104)).ljust(5 << 16, b"\0")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 4}, "version 4"),
        ({"bits": 40}, "cluster size"),
        ({"link_at": 1 << 20, "link_size": 4}, "parent is unknown"),
        ({"link_at": 200, "link_size": 5000}, "parent is unknown"),
        ({"link_at": 200, "link_size": 0}, "parent is unknown"),
        ({"link_at": 2**64 - 1, "link_size": 4}, "parent is unknown"),
        ({"l1_at": 1 << 40}, "cut short"),
        ({"l1_at": 3}, "impossible offset"),
        ({"l1": 0}, "too short"),
        ({"features": 1 << 1}, "marked corrupt"),
        ({"features": 1 << 40}, "unknown incompatible"),
        ({"features": 1 << 2}, "another file"),
        ({"size": 2**63, "l1": 2**31}, "impossible"),
    ],
)
def test_problem_is_named_when_qcow2_header_lies(fields: dict[str, int], words: str) -> None:
    header = inspect(Bytes(_qcow2(**fields)))
    assert header.format == "qcow2"
    assert words in " ".join(header.problems)
    assert inspect(Bytes(_qcow2())).problems == ()


@pytest.mark.parametrize("link", ["json:{}", "nbd://host/x", "..", "a/..", "x/", "file:"])
def test_backing_name_is_none_when_link_names_no_sibling(link: str) -> None:
    data = bytearray(_qcow2(link_at=200, link_size=len(link)))
    data[200 : 200 + len(link)] = link.encode()
    header = inspect(Bytes(bytes(data)))
    assert header.backing == link
    assert header.backing_name is None
    assert header.has_parent
    assert "names no file" in header.problems[-1]


def test_vmdk_data_is_external_when_capacity_is_zero() -> None:
    text = b'# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 8 FLAT "/etc/passwd" 0\n'
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 1).ljust(512, b"\0")
    header = inspect(Bytes(head + text.ljust(512, b"\0")))
    assert header.external_data == ("/etc/passwd",)
    assert "not a file beside" in header.problems[0]
    assert header.virtual_size == 4096


def test_cut_is_found_when_a_streamed_vmdk_has_lost_its_footer() -> None:
    text = b'CID=00000001\nparentCID=ffffffff\ncreateType="streamOptimized"\n'
    head = struct.pack("<4sIIQQQQIQQ", b"KDMV", 3, 1 << 16, 8192, 128, 1, 1, 512, 0, 2**64 - 1).ljust(512, b"\0")
    whole = head + text.ljust(4096, b"\0") + head + bytes(512)
    assert inspect(Bytes(whole)).problems == ()
    assert "cut short" in inspect(Bytes(whole[:-512])).problems[0]


def test_vhdx_parent_is_reported_when_it_is_differencing(real: Path) -> None:
    data = bytearray((real / "disk.vhdx").read_bytes())
    table_at = data.index(uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le)
    region_at = data.index(b"metadata")
    (offset,) = struct.unpack_from("<I", data, table_at + 16)
    data[region_at + offset + 4] |= 2
    header = inspect(Bytes(bytes(data)))
    assert header.kind == "differencing"
    assert header.has_parent
    assert "not supported" in header.problems[-1]


def test_vdi_parent_is_reported_when_it_is_differencing(real: Path) -> None:
    data = bytearray((real / "disk.vdi").read_bytes())
    struct.pack_into("<I", data, 76, 4)
    header = inspect(Bytes(bytes(data)))
    assert (header.kind, header.has_parent) == ("differencing", True)
    with pytest.raises(QemuRefused):
        qemu_img_info(real / "disk.vdi", header)


MAGICS = [
    b"", b"QFI\xfb\0\0\0\1", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3", b"conectix", b"vhdxfile", b"KDMV", b"COWD",
    b"# Disk DescriptorFile\n", b"\0" * 64 + b"\x7f\x10\xda\xbe", b"\0" * 257 + b"ustar", b"\x1f\x8b\x08",
]  # fmt: skip


@given(
    magic=st.sampled_from(MAGICS),
    data=st.binary(max_size=3000),
    tail=st.sampled_from([b"", b"conectix".ljust(512, b"\xff")]),
    short=st.integers(1, 600),
)
@settings(max_examples=300, deadline=None)
def test_nothing_raises_when_bytes_are_random(magic: bytes, data: bytes, tail: bytes, short: int) -> None:
    header = inspect(Bytes(magic + data + tail, short))
    assert header.virtual_size is None or 0 <= header.virtual_size < 2**63
    assert header.backing_name is None or is_plain_name(header.backing_name)
    check_vhd(Bytes(magic + data + tail))


@given(
    name=st.sampled_from(SAMPLES),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), max_size=6),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    near=st.sampled_from([600, 2000, 70_000, 300_000]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_raises_when_a_real_header_is_mutated(
    samples: dict[str, bytes], name: str, changes: list[tuple[float, bytes]], cut: float | None, near: int
) -> None:
    data = bytearray(samples[name])
    for place, new in changes:
        at = int(place * min(near, len(data) - 10))
        data[at : at + len(new)] = new
    reader = Bytes(bytes(data if cut is None else data[: int(cut * len(data))]))
    header = inspect(reader)
    assert header.virtual_size is None or 0 <= header.virtual_size < 2**63
    assert header.backing_name is None or is_plain_name(header.backing_name)
    assert "\0" not in repr((header.backing, header.members, header.locators)).replace("\\x00", "\0")
    check_vhd(Bytes(reader.data))


@given(st.text())
@example("a" * 10_000)
@example("\ud800")
def test_base_name_is_plain_or_none_when_link_is_any_text(link: str) -> None:
    name = base_name(link)
    assert name is None or (is_plain_name(name) and "/" not in name and "\\" not in name and name not in ("", ".", ".."))


def test_reading_time_is_linear_when_a_descriptor_is_one_long_line() -> None:
    text = b"# Disk DescriptorFile\nCID=" + b" " * 60_000 + b"x\nRW" + b" " * 5000
    assert inspect(Bytes(text)).format == "vmdk"


def test_reader_errors_pass_through_when_the_store_fails() -> None:
    class Broken:
        size = 100

        def pread(self, offset: int, length: int) -> bytes:
            raise OSError(116, "Stale file handle")

    with pytest.raises(OSError, match="Stale"):
        inspect(Broken())


def test_file_that_shrinks_while_read_is_a_problem_when_bytes_are_missing() -> None:
    data = _qcow2()
    reader = Bytes(data)
    reader.data = data[:50]
    assert "cut short" in inspect(reader).problems[0]
