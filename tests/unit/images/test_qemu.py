"""Shows that qemu-img runs on one file only, within limits, and never where it would lie."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from stores.images import (
    FileReader,
    QemuFailed,
    QemuMissing,
    QemuRefused,
    QemuTimeout,
    inspect,
    qemu_img_check,
    qemu_img_info,
)
from tests.unit.images.helpers import SIZE, header_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["base.qcow2", "two.qcow2", "child.vmdk", "disk.vmdk", "disk.vhdx", "disk.vdi"])
def test_check_is_sound_when_image_is_whole(real: Path, name: str) -> None:
    assert qemu_img_check(real / name, header_of(real / name)).sound


def test_check_opens_no_parent_when_the_parent_is_gone(real: Path, tmp_path: Path) -> None:
    shutil.copy(real / "two.qcow2", tmp_path)
    assert qemu_img_check(tmp_path / "two.qcow2", header_of(tmp_path / "two.qcow2")).sound


def test_check_counts_corruptions_when_a_table_is_broken(real: Path, tmp_path: Path) -> None:
    data = bytearray((real / "base.qcow2").read_bytes())
    l1_at = struct.unpack_from(">Q", data, 40)[0]
    l2_at = struct.unpack_from(">Q", data, l1_at)[0] & 0x00FFFFFFFFFFFE00
    struct.pack_into(">Q", data, l2_at, 1 << 63 | 1 << 40)
    path = tmp_path / "broken.qcow2"
    path.write_bytes(data)
    assert not qemu_img_check(path, header_of(path)).sound


def test_open_descriptor_is_accepted_when_given_instead_of_a_path(real: Path) -> None:
    with (real / "base.qcow2").open("rb") as file:
        assert qemu_img_check(file.fileno(), header_of(real / "base.qcow2")).sound
        assert file.read(4) == b"QFI\xfb"


def test_file_name_is_harmless_when_it_looks_like_an_option(real: Path, tmp_path: Path) -> None:
    for name in (b"json:{}", b"-O", b"nbd:unix", b"caf\xe9,file=x"):
        path = os.path.join(os.fsencode(tmp_path), name)
        shutil.copy(real / "base.qcow2", path)
        with FileReader(path) as file:
            assert qemu_img_info(path, inspect(file)).virtual_size == SIZE


def test_check_is_refused_when_image_is_encrypted(real: Path) -> None:
    with pytest.raises(QemuRefused, match="without its key"):
        qemu_img_check(real / "aes.qcow2", header_of(real / "aes.qcow2"))


@pytest.mark.parametrize("name", ["external.qcow2", "split.vmdk", "disk.iso", "machine.ova"])
def test_qemu_is_not_run_when_image_needs_other_files_or_is_no_disk(real: Path, name: str) -> None:
    with pytest.raises(QemuRefused):
        qemu_img_info(real / name, header_of(real / name))


def test_qemu_is_never_run_when_vhd_is_differencing(vhds: tuple[Path, list[str], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, names, _ = vhds
    monkeypatch.setenv("PATH", "/nonexistent")
    for call in (qemu_img_info, qemu_img_check):
        with pytest.raises(QemuRefused):
            call(folder / names[1], header_of(folder / names[1]))


def test_qemu_is_not_run_when_file_changed_since_its_header_was_read(real: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    shutil.copy(real / "base.qcow2", path)
    header = header_of(path)
    shutil.copy(real / "one.qcow2", path)
    with pytest.raises(QemuRefused, match="not the one read before"):
        qemu_img_info(path, header)


def test_qemu_is_not_run_when_path_is_a_link_or_no_file(real: Path, tmp_path: Path) -> None:
    header = header_of(real / "base.qcow2")
    (tmp_path / "link").symlink_to(real / "base.qcow2")
    with pytest.raises(OSError, match="symbolic"):
        qemu_img_info(tmp_path / "link", header)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(QemuRefused, match="regular"):
        qemu_img_info(tmp_path / "pipe", header)


def test_check_says_so_when_another_process_writes_the_image(real: Path, tmp_path: Path) -> None:
    path = tmp_path / "busy.qcow2"
    shutil.copy(real / "base.qcow2", path)
    header = header_of(path)
    with subprocess.Popen(["qemu-io", "-f", "qcow2", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin
        assert writer.stdout
        writer.stdin.write(b"length\n")
        writer.stdin.flush()
        while b"MiB" not in writer.stdout.readline():
            assert writer.poll() is None
        with pytest.raises(QemuFailed, match="lock"):
            qemu_img_check(path, header)
        assert qemu_img_info(path, header).virtual_size == SIZE
        writer.stdin.close()
        writer.wait(10)
    assert qemu_img_check(path, header).sound


def test_process_is_killed_when_it_takes_too_long(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "qemu-img"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(QemuTimeout, match="took longer than 1 s"):
        qemu_img_info(real / "base.qcow2", header_of(real / "base.qcow2"), timeout=1)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_missing_program_is_named_when_qemu_is_not_installed(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prlimit = shutil.which("prlimit")
    assert prlimit
    (tmp_path / "prlimit").symlink_to(prlimit)
    for path in (str(tmp_path), "/nonexistent"):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(QemuMissing, match="qemu-utils"):
            qemu_img_info(real / "base.qcow2", header_of(real / "base.qcow2"))
