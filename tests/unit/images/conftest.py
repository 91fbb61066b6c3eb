"""Makes the sample images once for all image tests."""

from __future__ import annotations

import random
import tarfile
import uuid
from pathlib import Path

import pytest

from tests.demo import vhd
from tests.unit.images.helpers import SAMPLES, SIZE, run


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind, made by the programs that clouds use."""
    folder = tmp_path_factory.mktemp("real")
    rng = random.Random(7)
    (folder / "plain.raw").write_bytes(rng.randbytes(SIZE))
    for name, fmt, options in (
        ("base.qcow2", "qcow2", ()),
        ("old.qcow2", "qcow2", ("-o", "compat=0.10")),
        ("extended.qcow2", "qcow2", ("-o", "extended_l2=on,cluster_size=128k")),
        ("dynamic.vhd", "vpc", ("-o", "force_size=on")),
        ("fixed.vhd", "vpc", ("-o", "subformat=fixed,force_size=on")),
        ("geometry.vhd", "vpc", ()),
        ("disk.vhdx", "vhdx", ()),
        ("fixed.vhdx", "vhdx", ("-o", "subformat=fixed")),
        ("disk.vdi", "vdi", ()),
        ("fixed.vdi", "vdi", ("-o", "static=on")),
        ("disk.vmdk", "vmdk", ()),
        ("stream.vmdk", "vmdk", ("-o", "subformat=streamOptimized")),
        ("split.vmdk", "vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
    ):
        run("qemu-img", "convert", "-f", "raw", "-O", fmt, *options, "plain.raw", name, cwd=folder)
    for child, parent, fmt in (
        ("one.qcow2", "base.qcow2", "qcow2"),
        ("two.qcow2", "one.qcow2", "qcow2"),
        ("child.vmdk", "disk.vmdk", "vmdk"),
    ):
        run("qemu-img", "create", "-f", fmt, "-b", parent, "-F", fmt, child, cwd=folder)
    run("qemu-img", "create", "-f", "qcow2", "-o", "data_file=away.raw", "external.qcow2", "4M", cwd=folder)
    # not LUKS by qemu-img: its timing of the key derivation fails now and then on a busy machine
    secret = ("--object", "secret,id=s,data=x")
    run(
        "qemu-img",
        "create",
        *secret,
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=aes,encrypt.key-secret=s",
        "aes.qcow2",
        "4M",
        cwd=folder,
    )
    (folder / "luks.raw").write_bytes(b"LUKS\xba\xbe\0\1aes" + rng.randbytes(SIZE))
    (folder / "content").mkdir()
    (folder / "content" / "file").write_bytes(rng.randbytes(100_000))
    run("xorriso", "-as", "mkisofs", "-quiet", "-o", "disk.iso", "content", cwd=folder)
    with tarfile.open(folder / "machine.ova", "w", format=tarfile.USTAR_FORMAT) as ova:
        (folder / "machine.ovf").write_text("<Envelope/>")
        ova.add(folder / "machine.ovf", "machine.ovf")
        ova.add(folder / "stream.vmdk", "machine-disk1.vmdk")
    return folder


@pytest.fixture(scope="session")
def vhds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], bytes]:
    """Folder, names from root to leaf and the leaf's raw content of a chain whose members all differ."""
    folder = tmp_path_factory.mktemp("vhds")
    rng = random.Random(3)
    content = bytearray(SIZE)
    names: list[str] = []
    for number in range(4):
        writes = [(rng.randrange(SIZE // 512 - 300) * 512, rng.randbytes(rng.randrange(1, 300) * 512)) for _ in range(3)]
        for offset, data in writes:
            content[offset : offset + len(data)] = data
        name = f"{uuid.UUID(int=number + 1)}.vhd"
        parent = folder / names[-1] if names else None
        vhd.write_vhd(folder / name, SIZE, writes, parent=parent, block_size=(2 << 20, 64 << 10)[number % 2])
        names.append(name)
    return folder, names, bytes(content)


@pytest.fixture(scope="session")
def samples(real: Path, vhds: tuple[Path, list[str], bytes]) -> dict[str, bytes]:
    """The first 300 KiB of each real file: more than any header reaches."""
    found = {name: (real / name).read_bytes()[: 300 << 10] for name in SAMPLES[:-1]}
    return found | {"chain.vhd": (vhds[0] / vhds[1][1]).read_bytes()}
