"""Finding an export in the kernel's mount table."""

from __future__ import annotations

from pathlib import Path

import pytest

from stores.drivers import mounts
from stores.drivers.base import DriverEnvironment
from stores.drivers.errors import Unavailable

pytestmark = pytest.mark.unit

TABLE = r"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
60 27 0:50 / /mnt/secondary rw,relatime shared:1 - nfs4 filer.example:/export/secondary rw,vers=4.2,hard,proto=tcp,addr=10.1.2.3
61 27 0:51 / /mnt/zone1 ro,relatime - nfs filer.example:/export/secondary/zone1 rw,vers=3,soft,addr=10.1.2.3
62 27 0:52 / /mnt/with\040space rw - nfs4 filer.example:/export/with\040space rw,vers=4.1,addr=10.1.2.3
63 27 0:53 / /mnt/six rw - nfs4 [fd00::5]:/export rw,vers=4.2,addr=fd00::5
64 27 0:54 /sub/folder /mnt/bound rw - nfs4 bound.example:/export rw,vers=4.2
65 27 0:55 / /mnt/hidden rw - nfs4 hidden.example:/export rw
66 27 0:56 / /mnt/hidden rw - tmpfs tmpfs rw
67 27 0:57 / /mnt/mapped rw - fuse.bindfs /srv rw
68 27 0:58 / /mnt/twice-ro ro - nfs4 twice.example:/export rw
69 27 0:59 / /mnt/twice-rw rw - nfs4 twice.example:/export rw
70 27 0:60 / /mnt/pseudo rw - nfs4 pseudo.example:/ rw
"""


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    path.write_text(TABLE)
    monkeypatch.setattr(mounts, "MOUNT_TABLE", path)


@pytest.mark.parametrize(
    ("host", "path", "base", "below", "ident"),
    [
        ("filer.example", "/export/secondary", "/mnt/secondary", (), 60),
        ("filer.example", "/export/secondary/zone2/x", "/mnt/secondary", ("zone2", "x"), 60),
        ("filer.example", "/export/secondary/zone1", "/mnt/zone1", (), 61),
        ("filer.example", "/export/secondary/zone1/deep", "/mnt/zone1", ("deep",), 61),
        ("filer.example", "/export/with space", "/mnt/with space", (), 62),
        ("10.1.2.3", "/export/secondary", "/mnt/secondary", (), 60),
        ("fd00::5", "/export", "/mnt/six", (), 63),
        ("bound.example", "/export/sub/folder/x", "/mnt/bound", ("x",), 64),
        ("twice.example", "/export", "/mnt/twice-rw", (), 69),
        ("pseudo.example", "/any/path", "/mnt/pseudo", ("any", "path"), 70),
        ("pseudo.example", "/", "/mnt/pseudo", (), 70),
    ],
)
def test_export_is_found_when_mounted(host: str, path: str, base: str, below: tuple[str, ...], ident: int) -> None:
    place = mounts.locate(host, path, DriverEnvironment())
    assert (place.base, place.below) == (base, below)
    assert place.mount is not None
    assert place.mount.ident == ident


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("other.example", "/export/secondary"),
        ("filer.example", "/export"),
        ("filer.example", "/export/secondary2"),
        ("hidden.example", "/export"),
        ("bound.example", "/export"),
        ("bound.example", "/export/other"),
        ("localhost", "/srv"),
    ],
)
def test_export_is_unavailable_when_not_mounted(host: str, path: str) -> None:
    with pytest.raises(Unavailable, match="not mounted on this machine"):
        mounts.locate(host, path, DriverEnvironment())


def test_mapping_wins_when_configured() -> None:
    environment = DriverEnvironment(
        mounts={"Filer.example:/export/secondary": "/mnt/mapped", "filer.example:/export": "/mnt/nowhere"}
    )
    place = mounts.locate("filer.example", "/export/secondary/zone1", environment)
    assert (place.base, place.below) == ("/mnt/mapped", ("zone1",))
    assert place.mount is not None
    assert place.mount.ident == 67


def test_mapped_folder_is_refused_when_nothing_is_mounted_there(tmp_path: Path) -> None:
    mapping = {"filer.example:/else": str(tmp_path)}
    with pytest.raises(Unavailable, match="nothing is mounted there"):
        mounts.locate("filer.example", "/else", DriverEnvironment(mounts=mapping))
    allowed = mounts.locate("filer.example", "/else", DriverEnvironment(mounts=mapping, allow_plain_exports=True))
    assert (allowed.base, allowed.mount) == (str(tmp_path), None)


def test_plain_folder_is_an_export_only_when_allowed() -> None:
    place = mounts.locate("localhost", "/srv/export", DriverEnvironment(allow_plain_exports=True))
    assert (place.base, place.below, place.mount) == ("/srv/export", (), None)
    for host, path in (("localhost", "/"), ("elsewhere", "/srv/export")):
        with pytest.raises(Unavailable):
            mounts.locate(host, path, DriverEnvironment(allow_plain_exports=True))


def test_options_are_told_when_asked() -> None:
    by_id = {mount.ident: mount for mount in mounts.mount_table()}
    assert by_id[60].option("vers") == "4.2"
    assert by_id[60].option("none") == ""
    assert not by_id[60].read_only
    assert by_id[61].read_only
    assert "soft" in by_id[61].options
