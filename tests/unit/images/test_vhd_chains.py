"""Shows that VHD chains and links of every format are followed, judged and never taken as whole when they are not."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from stores.images import (
    FileReader,
    ImageHeader,
    chain_of,
    check_vhd,
    inspect,
    verify_link,
)
from tests.demo import vhd
from tests.unit.images.helpers import SIZE, Bytes, header_of, run

pytestmark = pytest.mark.unit


def test_written_chain_reads_back_when_members_differ(vhds: tuple[Path, list[str], bytes], tmp_path: Path) -> None:
    folder, names, content = vhds
    assert vhd.read_chain(folder / names[-1]) == content
    assert len({vhd.read_chain(folder / name) for name in names}) == len(names)
    run("qemu-img", "convert", "-f", "vpc", "-O", "raw", folder / names[0], tmp_path / "root.raw")
    assert (tmp_path / "root.raw").read_bytes() == vhd.read_chain(folder / names[0])


def test_whole_chain_is_followed_when_every_parent_is_there(vhds: tuple[Path, list[str], bytes]) -> None:
    folder, names, _ = vhds
    headers = {name: header_of(folder / name) for name in names}
    chain = chain_of(names[-1], headers)
    assert chain.members == tuple(reversed(names))
    assert (chain.depth, chain.whole, chain.problems) == (4, True, ())
    assert [headers[name].kind for name in names] == ["dynamic"] + ["differencing"] * 3
    for name in names:
        assert headers[name].problems == ()
        with FileReader(folder / name) as file:
            assert check_vhd(file) == []


def test_every_parent_link_is_reported_when_vhd_is_differencing(vhds: tuple[Path, list[str], bytes]) -> None:
    folder, names, _ = vhds
    header = header_of(folder / names[1])
    assert dict(header.locators) == {"W2ru": f".\\{names[0]}", "W2ku": names[0], "MacX": f"file://./{names[0]}", "name": names[0]}
    assert (header.backing, header.backing_name) == (f".\\{names[0]}", names[0])
    assert header.parent_unique_id == header_of(folder / names[0]).unique_id
    assert header.parent_timestamp == 800_000_000


def test_chain_is_broken_when_a_parent_is_missing(vhds: tuple[Path, list[str], bytes]) -> None:
    folder, names, _ = vhds
    chain = chain_of(names[3], {name: header_of(folder / name) for name in names if name != names[1]})
    assert chain.members == (names[3], names[2])
    assert not chain.whole
    assert names[1] in chain.problems[0]


def test_chain_is_broken_when_the_parent_is_another_disk(vhds: tuple[Path, list[str], bytes], tmp_path: Path) -> None:
    folder, names, _ = vhds
    vhd.write_vhd(tmp_path / names[0], SIZE, [(0, b"x" * 512)])
    parent, child = header_of(tmp_path / names[0]), header_of(folder / names[1])
    assert parent.unique_id is not None
    assert parent.unique_id in verify_link(child, parent)[0]
    assert not chain_of(names[1], {names[0]: parent, names[1]: child}).whole


def test_chain_ends_when_files_name_each_other() -> None:
    one = ImageHeader("qcow2", 1, backing="b", backing_name="b")
    two = ImageHeader("qcow2", 1, backing="/x/a", backing_name="a")
    chain = chain_of("a", {"a": one, "b": two})
    assert chain.members == ("a", "b")
    assert "also its child" in chain.problems[0]


def test_chain_is_bounded_when_a_directory_is_hostile() -> None:
    headers = {str(n): ImageHeader("qcow2", 1, backing=str(n + 1), backing_name=str(n + 1)) for n in range(2000)}
    chain = chain_of("0", headers)
    assert chain.depth == 1000
    assert "longer than" in chain.problems[0]


@pytest.mark.parametrize(
    ("child", "parent", "words"),
    [
        (ImageHeader("qcow2", 10, backing_format="raw"), ImageHeader("qcow2", 10), "expects a raw parent"),
        (ImageHeader("qcow2", 10), ImageHeader("vhd", 10), "cannot have a vhd"),
        (ImageHeader("qcow2", 10), ImageHeader("raw", 20), "smaller than its parent"),
        (ImageHeader("vhd", 10), ImageHeader("qcow2", 10), "cannot have a qcow2"),
        (ImageHeader("vhdx", 10), ImageHeader("vhdx", 10), "cannot have a vhdx"),
        (ImageHeader("vmdk", 10, parent_unique_id="1"), ImageHeader("vmdk", 10, unique_id="2"), "over id 1"),
    ],
)
def test_link_is_refused_when_images_do_not_belong_together(child: ImageHeader, parent: ImageHeader, words: str) -> None:
    assert words in " ".join(verify_link(child, parent))


def test_problem_is_named_when_vhd_parent_links_disagree(vhds: tuple[Path, list[str], bytes], tmp_path: Path) -> None:
    folder, names, _ = vhds
    data = bytearray((folder / names[1]).read_bytes())
    data[512 + 64 : 512 + 576] = "other.vhd".encode("utf-16-be").ljust(512, b"\0")
    data[512 + 36 : 512 + 40] = bytes(4)
    struct.pack_into(">I", data, 512 + 36, vhd.checksum(data[512:1536]))
    assert "disagree" in inspect(Bytes(bytes(data))).problems[0]


@pytest.mark.parametrize(
    ("link", "words"),
    [("..", "names no file"), ("C:\\vhds\\base.vhd", "")],
)
def test_vhd_link_is_judged_when_it_is_hostile_or_windows(tmp_path: Path, link: str, words: str) -> None:
    vhd.write_vhd(tmp_path / "base.vhd", SIZE, [])
    vhd.write_vhd(tmp_path / "child.vhd", SIZE, [], parent=tmp_path / "base.vhd", parent_link=link)
    header = header_of(tmp_path / "child.vhd")
    assert header.has_parent
    if words:
        assert header.backing_name is None
        assert words in " ".join(header.problems)
    else:
        assert header.backing_name == "base.vhd"


def damaged(path: Path, *, cut: int | None = None, at: int | None = None) -> Bytes:
    data = bytearray(path.read_bytes()[:cut])
    if at is not None:
        data[at] ^= 0xFF
    return Bytes(bytes(data))


@pytest.mark.parametrize(
    ("cut", "at", "words"),
    [
        (-512, None, "cut short"),
        (1024, None, "cut short"),
        (100, None, "damaged or cut short"),
        (None, 50, "copy of the footer"),
        (None, 600, "dynamic disk header"),
        (None, -450, "cut short"),
    ],
)
def test_differencing_vhd_is_never_complete_when_damaged(
    vhds: tuple[Path, list[str], bytes], cut: int | None, at: int | None, words: str
) -> None:
    folder, names, _ = vhds
    header = inspect(damaged(folder / names[1], cut=cut, at=at))
    assert words in " ".join(header.problems)
    assert header.has_parent or header.virtual_size is None


def test_disagreeing_footers_are_found_when_only_one_was_rewritten(vhds: tuple[Path, list[str], bytes]) -> None:
    folder, names, _ = vhds
    data = bytearray((folder / names[1]).read_bytes())
    data[68:84] = uuid.uuid4().bytes
    data[64:68] = bytes(4)
    struct.pack_into(">I", data, 64, vhd.checksum(data[:512]))
    assert "the two footers of the file disagree" in inspect(Bytes(bytes(data))).problems


@pytest.mark.parametrize(
    ("entry", "words"), [(1 << 30, "past the end"), (0, "inside the header"), (None, "share the same bytes")]
)
def test_block_table_is_refused_when_an_entry_is_impossible(tmp_path: Path, entry: int | None, words: str) -> None:
    path = tmp_path / "disk.vhd"
    vhd.write_vhd(path, SIZE, [(0, b"a" * SIZE)], block_size=1 << 20)
    data = bytearray(path.read_bytes())
    first = struct.unpack_from(">I", data, 1536)[0]
    struct.pack_into(">I", data, 1540, first + 1 if entry is None else entry)
    assert words in " ".join(check_vhd(Bytes(bytes(data))))
