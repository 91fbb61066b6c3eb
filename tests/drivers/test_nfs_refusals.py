"""What an NFS export must refuse: a root that is not ours, names that lead elsewhere, missing rights, missing space."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stores.drivers.base import MARKER_KEY, StoreConfig, Upload
from stores.drivers.confined import translating
from stores.drivers.errors import (
    AccessDenied,
    AlreadyExists,
    Foreign,
    Full,
    NotFound,
    StoreError,
    Unavailable,
    UnsafeName,
)
from stores.drivers.nfs import NFSDriver
from tests.drivers.conftest import new_config
from tests.drivers.exports import KEY, begin, every_use, keys, put
from tests.servers.process import REPOSITORY

pytestmark = pytest.mark.unit


@pytest.fixture
def driver(export_config: StoreConfig) -> NFSDriver:
    driver = NFSDriver(export_config)
    driver.claim()
    return driver


# --- the root ----------------------------------------------------------------------------------------------------------


def test_nothing_is_done_when_the_marker_is_missing(driver: NFSDriver, export: Path) -> None:
    put(driver, KEY)
    (export / MARKER_KEY).rename(export / "marker-elsewhere")
    for use in every_use(driver):
        with pytest.raises(Unavailable, match="no ownership marker"):
            use()
    assert driver.read_marker() is None
    assert (export / KEY).read_bytes() == b"content"


def test_nothing_is_done_when_the_export_is_not_allowed(driver: NFSDriver, export_config: StoreConfig) -> None:
    put(driver, KEY)
    stranger = NFSDriver(new_config(export_config.url))
    for use in [*every_use(stranger), stranger.read_marker, stranger.claim]:
        with pytest.raises(Unavailable, match="not mounted on this machine"):
            use()
    steps = list(stranger.probe())
    assert [(step.name, step.status) for step in steps if step.status == "blocker"] == [("mount", "blocker")]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cloud": "other", "store": "other"}'])
def test_nothing_is_done_when_the_marker_is_not_ours(driver: NFSDriver, export: Path, content: str) -> None:
    (export / MARKER_KEY).write_text(content)
    for use in [*every_use(driver), driver.claim]:
        with pytest.raises(Foreign):
            use()
    assert (export / MARKER_KEY).read_text() == content


def test_nothing_is_done_when_the_marker_is_a_link(driver: NFSDriver, export: Path) -> None:
    (export / MARKER_KEY).rename(export / "real")
    (export / MARKER_KEY).symlink_to("real")
    for use in [*every_use(driver), driver.claim]:
        with pytest.raises(UnsafeName):
            use()


def test_listing_does_not_end_when_the_export_is_replaced_meanwhile(driver: NFSDriver, export: Path) -> None:
    for number in range(5):
        put(driver, f"volumes/{number}/v")
    listing = driver.list()
    seen = [next(listing).key, next(listing).key]
    export.rename(export.with_name("away"))
    export.mkdir()
    with pytest.raises(Unavailable):
        seen += [info.key for info in listing]
    assert "volumes/0/v" in seen


def test_listing_does_not_end_when_another_store_of_ours_is_mounted_meanwhile(driver: NFSDriver, export: Path) -> None:
    put(driver, "volumes/1/v")
    put(driver, "volumes/2/v")
    listing = driver.list()
    next(listing)
    marker = (export / MARKER_KEY).read_bytes()
    export.rename(export.with_name("away"))
    export.mkdir()
    (export / MARKER_KEY).write_bytes(marker)
    with pytest.raises(Unavailable, match="mounted anew"):
        list(listing)


@pytest.mark.parametrize("operation", ["stat", "open", "delete", "list", "abort"])
def test_absence_is_not_believed_when_the_export_goes_during_the_call(
    driver: NFSDriver, export: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    put(driver, KEY)
    checked = driver._require_marker

    def check_then_go(root) -> None:
        checked(root)
        export.rename(export.with_name("away"))
        export.mkdir()
        monkeypatch.setattr(driver, "_require_marker", checked)

    monkeypatch.setattr(driver, "_require_marker", check_then_go)
    use = {
        "stat": lambda: driver.stat("missing"),
        "open": lambda: driver.open("missing"),
        "delete": lambda: driver.delete("missing"),
        "list": lambda: list(driver.list("missing/")),
        "abort": lambda: driver.abort_upload(Upload("a", "t.0", None, 1, "t")),
    }
    with pytest.raises(Unavailable):
        use[operation]()
    assert (export.with_name("away") / KEY).read_bytes() == b"content"


def test_probe_leaves_an_export_as_it_was_when_it_is_not_ours_yet(export_config: StoreConfig, export: Path) -> None:
    (export / "template").mkdir()
    steps = {step.name: step for step in NFSDriver(export_config).probe()}
    assert {step.status for step in steps.values()} <= {"ok", "info"}
    assert steps["ownership"].facts == {"marker": "none"}
    assert steps["owner"].facts["file_owner"] == os.geteuid()
    assert steps["space"].facts["free_bytes"] > 0
    assert [path.name for path in export.iterdir()] == ["template"]


# --- names that lead elsewhere -----------------------------------------------------------------------------------------


def test_link_is_never_followed_when_it_is_a_folder(driver: NFSDriver, export: Path, outside: Path) -> None:
    (export / "template").mkdir()
    (export / "template" / "escape").symlink_to(outside)
    for use in every_use(driver, "template/escape/secret")[1:5] + every_use(driver, "template/escape/new")[7:8]:
        with pytest.raises(UnsafeName, match="symbolic link"):
            use()
    with pytest.raises(UnsafeName):
        list(driver.list("template/escape/"))
    upload = begin(driver, "template/escape/new")
    with pytest.raises(UnsafeName):
        driver.complete_upload(upload, [driver.put_part(upload, 1, 0, b"x")])
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert [(info.key, info.kind) for info in driver.list()] == [("template/escape", "symlink")]


def test_link_is_never_followed_when_it_is_a_file(driver: NFSDriver, export: Path, outside: Path) -> None:
    (export / "volumes").mkdir()
    (export / "volumes" / "link").symlink_to(outside / "secret")
    (export / "volumes" / "dangling").symlink_to(outside / "new")
    for name in ("volumes/link", "volumes/dangling"):
        for use in every_use(driver, name)[1:5] + every_use(driver, name)[7:8]:
            with pytest.raises(UnsafeName):
                use()
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert (export / "volumes" / "link").is_symlink()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_special_file_is_named_and_left_alone_when_found(driver: NFSDriver, export: Path, kind: str) -> None:
    (export / "volumes").mkdir()
    path = export / "volumes" / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            folder = os.open(path.parent, os.O_RDONLY)  # the whole path would be too long for a socket's address
            listener.bind(f"/proc/self/fd/{folder}/odd")
            os.close(folder)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    for use in every_use(driver, "volumes/odd")[1:5] + every_use(driver, "volumes/odd")[7:8]:
        with pytest.raises(UnsafeName):
            use()
    assert [(info.key, info.kind) for info in driver.list()] == [("volumes/odd", "special")]
    assert path.exists()


@pytest.mark.parametrize("own", [".cs-tmp", ".cs-trash"])
def test_nothing_is_written_outside_when_our_own_folder_is_a_link(
    driver: NFSDriver, export: Path, outside: Path, own: str
) -> None:
    put(driver, KEY)
    if own == ".cs-tmp":
        (export / own).rmdir()
    (export / own).symlink_to(outside)
    uses = {
        ".cs-tmp": [lambda: begin(driver), lambda: put(driver, KEY), lambda: list(driver.pending_uploads())],
        ".cs-trash": [lambda: driver.delete(KEY), lambda: driver.purge_trash(older_than=0)],
    }
    for use in uses[own]:
        with pytest.raises(UnsafeName):
            use()
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (export / KEY).exists()


def test_unfinished_file_is_not_written_when_it_was_replaced_by_a_link(driver: NFSDriver, export: Path, outside: Path) -> None:
    upload = begin(driver)
    data = export / ".cs-tmp" / f"{upload.upload_id}.data"
    data.unlink()
    data.symlink_to(outside / "secret")
    with pytest.raises(UnsafeName):
        driver.put_part(upload, 1, 0, b"overwritten")
    assert (outside / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("key", [".cs-tmp/x", ".cs-trash/1-a/x", MARKER_KEY])
def test_our_own_files_are_refused_when_named_as_objects(driver: NFSDriver, key: str) -> None:
    for use in every_use(driver, key)[1:5] + every_use(driver, key)[7:9]:
        with pytest.raises(UnsafeName):
            use()


@pytest.mark.parametrize("token", ["", "../x", "a/b", ".hidden", "a b", "x" * 101, "nul\0"])
def test_token_is_refused_when_it_cannot_be_a_name(driver: NFSDriver, token: str) -> None:
    with pytest.raises(UnsafeName):
        begin(driver, token=token)
    with pytest.raises(UnsafeName):
        put(driver, KEY, token=token)
    with pytest.raises(UnsafeName):
        driver.abort_upload(Upload(KEY, "../../etc/passwd", None, 1, "t"))


def test_strange_files_are_no_uploads_when_they_lie_among_ours(driver: NFSDriver, export: Path) -> None:
    upload = begin(driver)
    for name in ("notes", "-rf.data", ".hidden.log", "a b.data"):
        (export / ".cs-tmp" / name).touch()
    (export / ".cs-tmp" / "t2.0123456789abcdef.data").touch()
    found = [(pending.upload_id, pending.key, pending.token) for pending in driver.pending_uploads()]
    assert found == [(upload.upload_id, KEY, "t"), ("t2.0123456789abcdef", "", "t2")]


def test_file_stays_when_a_folder_is_needed_in_its_place(driver: NFSDriver, export: Path) -> None:
    put(driver, "volumes/1")
    with pytest.raises(Foreign):
        put(driver, "volumes/1/2")
    put(driver, "snapshots/1/2")
    with pytest.raises(Foreign):
        put(driver, "snapshots/1")
    assert sorted(keys(driver)) == ["snapshots/1/2", "volumes/1"]


# --- rights, space -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ESTALE, Unavailable),
        (errno.ENOTCONN, Unavailable),
        (errno.EIO, Unavailable),
        (errno.ETIMEDOUT, Unavailable),
        (errno.ENOSPC, Full),
        (errno.EDQUOT, Full),
        (errno.EACCES, AccessDenied),
        (errno.EPERM, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.ELOOP, UnsafeName),
        (errno.ENXIO, UnsafeName),
        (errno.ENAMETOOLONG, UnsafeName),
        (errno.ENOENT, NotFound),
        (errno.EEXIST, AlreadyExists),
        (errno.EINVAL, StoreError),
    ],
)
def test_error_of_the_system_is_told_in_our_words_when_it_comes(number: int, kind: type[StoreError]) -> None:
    with pytest.raises(StoreError, match="the place: ") as raised, translating("the place"):
        raise OSError(number, os.strerror(number))
    assert type(raised.value) is kind
    assert os.strerror(number) in str(raised.value)


AS_NOBODY = """
import json, os, resource, signal, sys
from stores.drivers.base import DriverEnvironment, StoreConfig
from stores.drivers.errors import StoreError
from stores.drivers.nfs import NFSDriver
url, cloud, store, limit, statement = sys.argv[1:]
driver = NFSDriver(StoreConfig(url, {}, store, cloud, environment=DriverEnvironment(allow_plain_exports=True)))
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
elif os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    print(json.dumps(eval(statement)))
except StoreError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def elsewhere(export_config: StoreConfig, statement: str, *, file_limit: str = "") -> list:
    """The value of an expression about `driver` in another process: as an unprivileged user, or as one whose files end early."""
    command = [
        sys.executable,
        "-c",
        AS_NOBODY,
        export_config.url,
        export_config.cloud_uuid,
        export_config.store_uuid,
        file_limit,
        statement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def enterable(export: Path) -> Iterator[None]:
    """Anybody may come as far as the export, which pytest's own folders forbid."""
    parents = [folder for folder in export.parents if folder.stat().st_uid == os.geteuid() and str(folder) not in {"/", "/tmp"}]
    modes = [(folder, folder.stat().st_mode) for folder in parents]
    for folder, mode in modes:
        folder.chmod(mode | 0o055)
    yield
    for folder, mode in modes:
        folder.chmod(mode)


@pytest.mark.usefixtures("enterable")
def test_access_is_denied_when_the_user_may_not(driver: NFSDriver, export_config: StoreConfig, export: Path) -> None:
    put(driver, "volumes/1/locked/v")
    put(driver, "volumes/1/open")
    put(driver, "volumes/2/unreadable")
    (export / "volumes/1/locked").chmod(0o700)
    (export / "volumes/2/unreadable").chmod(0o600)
    denied = "AccessDenied"
    assert elsewhere(export_config, "driver.stat('volumes/1/locked/v')")[0] == denied
    assert elsewhere(export_config, "driver.open('volumes/2/unreadable')")[0] == denied
    assert elsewhere(export_config, "driver.delete('volumes/1/open')")[0] == denied
    assert elsewhere(export_config, "driver.put('volumes/1/new', b'x', metadata={}, token='t')")[0] == denied
    listed = elsewhere(export_config, "[[info.key, info.kind] for info in driver.list()]")
    assert listed == [["volumes/1/locked/", "unreadable"], ["volumes/1/open", "file"], ["volumes/2/unreadable", "file"]]
    statuses = elsewhere(export_config, "{step.name: step.status for step in driver.probe()}")
    assert statuses["write"] == "blocker"
    assert (export / "volumes/1/open").exists()


def test_nothing_is_published_when_the_file_cannot_be_written_whole(driver: NFSDriver, export_config: StoreConfig) -> None:
    kind, message = elsewhere(
        export_config, "driver.put('volumes/1/v', b'x' * 200_000, metadata={}, token='t')", file_limit=str(100_000)
    )
    assert (kind, "larger than" in message) == ("Full", True)
    assert keys(driver) == []
    assert list(driver.pending_uploads()) == []


def test_files_and_folders_are_readable_when_the_umask_is_strict(driver: NFSDriver, export: Path) -> None:
    before = os.umask(0o077)
    try:
        put(driver, KEY)
        upload = begin(driver, "volumes/1/v", token="t2")
        driver.complete_upload(upload, [driver.put_part(upload, 1, 0, b"x")])
    finally:
        os.umask(before)
    modes = {str(path.relative_to(export)): stat.S_IMODE(path.stat().st_mode) for path in export.rglob("*")}
    assert {modes[KEY], modes["volumes/1/v"], modes[MARKER_KEY]} == {0o644}
    assert {modes["template"], modes["template/tmpl/2/201"], modes["volumes/1"], modes[".cs-tmp"]} == {0o755}
